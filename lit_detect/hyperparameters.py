"""Constructor arguments as plain data: what a checkpoint holds, and what builds the same objects again."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

from torch import nn

from lit_detect.errors import InputError

__all__ = ["class_at", "class_path", "constructor_arguments", "plain"]


def class_path(cls: type) -> str:
    """Where to import a class from."""
    return f"{cls.__module__}.{cls.__qualname__}"


def class_at(path: str) -> Any:
    """The class at a path, and for a name alone that of `lit_detect`.

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
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise InputError(f"Expected numbers, text, lists and dicts as a detector's arguments, which a checkpoint can hold, but got {value!r}.")
