"""Constructor arguments as plain data: what a checkpoint holds, and what builds the same objects again."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from lit_detect.errors import InputError

if TYPE_CHECKING:
    from lit_detect.detector import Detector

__all__ = ["built", "class_at", "class_path", "constructor_arguments", "known_class", "made", "plain", "save_arguments"]

Kind = TypeVar("Kind")


def class_path(cls: type) -> str:
    """Where to import a class from.

    Raises:
        InputError: it is made within a function or another class, where nothing finds it by its name.
    """
    if "." in cls.__qualname__:
        raise InputError(f"Expected {cls.__qualname__} at the top of {cls.__module__}, so that a checkpoint can say where to find it.")
    return f"{cls.__module__}.{cls.__qualname__}"


def class_at(path: str) -> Any:
    """The class at a path, which is imported, and for a name alone that of `lit_detect`: for configs. See `known_class`.

    Raises:
        InputError: nothing is there.
    """
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module or "lit_detect"), name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"Expected a class to import but found none as {path}: {error}.") from error


def constructor_arguments(cls: type) -> list[str]:
    """Names of a constructor's arguments, and of its parents' as far as they are handed on by ``**kwargs``."""
    names: dict[str, None] = {}
    for parent in cls.__mro__:
        parameters = inspect.signature(parent).parameters.values() if "__init__" in vars(parent) else []
        names |= {one.name: None for one in parameters if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)}
        if parameters and not any(one.kind is one.VAR_KEYWORD for one in parameters):
            break
    return list(names)


def plain(value: Any) -> Any:
    """A constructor argument as plain data: modules become ``class_path`` and ``init_args``, tuples become lists.

    Raises:
        InputError: data that a checkpoint could not hold without code, or a module that does not know its arguments.
    """
    if isinstance(value, nn.Module):
        names = constructor_arguments(type(value))
        missing = [name for name in names if not hasattr(value, name)]
        if missing:
            raise InputError(
                f"Expected {type(value).__name__} to keep its constructor arguments as attributes, so that a checkpoint can say how "
                f"to build it, but it has no {', '.join(missing)}."
            )
        return {"class_path": class_path(type(value)), "init_args": {name: plain(getattr(value, name)) for name in names}}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float, str):  # and not a kind of these, such as NumPy's, which a checkpoint could hold by code alone
        if isinstance(value, kind):
            return kind(value)
    raise InputError(f"Expected numbers, text, lists and dicts as a detector's arguments, which a checkpoint can hold, but got {value!r}.")


def save_arguments(detector: Detector, of_training: Iterable[str]) -> None:
    """Save a detector's arguments as plain data, which `torch.load(weights_only=True)` reads and the command line can build.

    Args:
        detector: whose constructor this is called from.
        of_training: arguments that steer training, and are left out; its classes are saved in any case.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Attribute .* is an instance of `nn.Module`")  # made plain data below
        detector.save_hyperparameters(ignore=list(of_training))
    described = {**detector.hparams, "classes": detector.classes, "category_ids": detector.category_ids}
    described = {name: plain(value) for name, value in described.items()}
    described.setdefault("_instantiator", "lightning.pytorch.cli.instantiate_module")
    kind = type(detector)
    if kind.__module__ != "__main__" and "." not in kind.__qualname__:  # nobody else can import it from there
        described.setdefault("_class_path", class_path(kind))
    detector.save_hyperparameters(described)


def known_class(path: object, kind: type[Kind]) -> type[Kind]:
    """The class that a checkpoint names: one of this package, or of a module that is imported already.

    A checkpoint is data, so it chooses neither what is imported, since to import is to run, nor what but a `kind` is built.

    Raises:
        InputError: not the path of such a class.
    """
    module, _, name = str(path).rpartition(".")
    found = vars(sys.modules[module]).get(name) if module in sys.modules else None
    if module.partition(".")[0] == "lit_detect":
        with contextlib.suppress(ImportError):
            found = getattr(importlib.import_module(module), name, None)  # which imports the module of a name of the package's own
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise InputError(
            f"Expected the class of a {kind.__name__} that this program knows but the checkpoint names {path!r}. If it is yours, import "
            f"{module or 'its module'} before; what a checkpoint names is not imported."
        )
    return found


def built(value: Any) -> Any:
    """What `plain` described: modules are made of their ``class_path`` and ``init_args``, and nothing else is called.

    Raises:
        InputError: a class that is not known, or no module, or arguments that it does not take.
    """
    if isinstance(value, dict) and "class_path" in value:
        return made(known_class(value["class_path"], nn.Module), built(value.get("init_args", {})))
    if isinstance(value, list | tuple):
        return [built(item) for item in value]
    if isinstance(value, dict):
        return {name: built(item) for name, item in value.items()}
    return value


def made(cls: type[Kind], arguments: Any) -> Kind:
    """An object of a class, by the names of its arguments.

    Raises:
        InputError: arguments that it does not take.
    """
    try:
        return cls(**arguments)
    except (TypeError, ValueError, AttributeError) as error:  # such as text where a module is expected
        raise InputError(f"Expected arguments of {cls.__name__} in the checkpoint but: {error}.") from error
