"""Weights to start a training from: of an extractor, or of a whole detector with other classes."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import re
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import get_model_weights, get_weight
from torchvision.models._meta import _COCO_CATEGORIES

from lit_detect.errors import InputError, printable

__all__ = ["load_backbone_weights", "local_file", "read_file", "read_plain", "start_from"]

# torchvision sets these models' norms to eps 0 after it has loaded these weights
WITHOUT_EPS = ("FasterRCNN_ResNet50_FPN_Weights.COCO_V1", "RetinaNet_ResNet50_FPN_Weights.COCO_V1")


def load_backbone_weights(parts: Mapping[str, nn.Module], name: str, weights: str) -> None:
    """Load a state dict of a classification network, of which `parts` are parts.

    Args:
        parts: modules by their name in torchvision's network; an empty name for the network itself.
        name: the torchvision network.
        weights: a torchvision weights name, a file or a URL.

    Raises:
        InputError: not a weights name and not a file; a fetch failed; a tensor that the parts need is missing or has another shape.
    """
    members = get_model_weights(name).__members__
    state = read_file(
        members[weights].value.url if weights in members else weights, f"one of {', '.join(members)}", f" as weights of {name}"
    )
    own = {f"{prefix}.{key}".lstrip("."): tensor for prefix, part in parts.items() for key, tensor in part.state_dict().items()}
    own = {key: tensor for key, tensor in own.items() if not key.endswith("num_batches_tracked")}
    wrong = [key for key, tensor in own.items() if key not in state or state[key].shape != tensor.shape]
    if wrong:
        raise InputError(
            f"Expected weights of {name} in {weights} but {len(wrong)} of {len(own)} tensors are missing or of another shape: "
            f"{', '.join(wrong[:3])} ..."
        )
    for key, tensor in own.items():
        tensor.copy_(state[key])
    rank_zero_info(f"backbone: {len(own)} tensors of {name} from {weights}")


def read_file(source: str, expected: str, purpose: str = "") -> dict[str, Any]:
    """What `torch.save` wrote, from a file or a URL; never unpickles code.

    Args:
        source: the file, or a URL, which is fetched once into torch's hub folder.
        expected: what else could have been given, for the message.
        purpose: what for, likewise.

    Raises:
        InputError: not a file, or not one of plain data; a fetch failed.
    """
    with torch.serialization.safe_globals([argparse.Namespace]):  # which torchvision's training script puts into checkpoints
        content = read_plain(local_file(source, expected, purpose), f"weights as plain data but {source}")
    if not isinstance(content, dict):
        raise InputError(f"Expected weights by name in {source} but got {type(content).__name__}.")
    return content


def read_plain(source: Path | IO[bytes], expected: str, map_location: Any = "cpu") -> Any:
    """What `torch.save` wrote: the one place where weights and checkpoints are unpickled. Code is refused, and never run.

    Args:
        source: the file.
        expected: the beginning of the message: what was expected, and what the file is called.
        map_location: where tensors go, as `torch.load` takes it.

    Raises:
        InputError: a file that cannot be read, is damaged, or holds anything else than plain data and tensors.
    """
    try:
        return torch.load(source, map_location=map_location, weights_only=True)
    except PermissionError as error:
        raise InputError(f"Expected {expected} could not be read: {error.strerror}.") from error
    except Exception as error:  # on a damaged file torch.load raises anything, from OSError to KeyError
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        named = f" ({code[1]})" if code else ""
        raise InputError(f"Expected {expected} is damaged or holds code{named}, which is not run.") from error


def local_file(source: str, expected: str, purpose: str = "") -> Path:
    """The file itself, or what a URL leads to, fetched once into torch's hub folder; for the rest see `read_file`."""
    url = urllib.parse.urlparse(source)
    if url.scheme == "file":
        source = urllib.request.url2pathname(url.path)
    if not source.startswith(("http://", "https://")):
        if not Path(source).is_file():
            raise InputError(f"Expected {expected}, a file or a URL{purpose} but got {source!r}.")
        return Path(source)
    name = Path(url.path).name
    if not re.search(r"-[0-9a-f]{8}\.", name):  # unless it says itself what is in it, as torchvision's do
        name = f"{hashlib.sha256(source.encode()).hexdigest()[:8]}-{name}"
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(source, str(path), progress=True)
        except OSError as error:
            raise InputError(
                f"Could not fetch {source} ({error}). On a machine without network, save that file as {path}, "
                "or give its path instead, or write `weights: null` in the config to train from scratch."
            ) from error
    return path


def start_from(network: nn.Module, source: str, classes: Sequence[str], class_outputs: Mapping[str, tuple[list[str], int]]) -> list[str]:
    """Take what fits of a trained detector's weights, and say what does not.

    Tensors are paired by name; or by order, where all agree in kind: torchvision's detectors have the same layers in the same order as
    ours. A layer whose outputs stand for classes is taken by the classes' names, in whatever
    order they are, if the source has all of them (so the 91 outputs of torchvision's COCO detectors give the 80 classes); else it stays
    as it was initialised.

    Args:
        network: what the weights are for.
        source: a torchvision detection weights name (``SSD300_VGG16_Weights.COCO_V1``), or a file or URL: a checkpoint of this
            package or of torchvision's training script, or a state dict.
        classes: names of the labels 1..C.
        class_outputs: see `Detector.class_outputs`.

    Returns:
        Names of the network's tensors that were taken.

    Raises:
        InputError: weights that are not there, or are another network's.
    """
    state, categories = read_detector(source)
    own = {name: tensor for name, tensor in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    state = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    state = pair(own, state, source)
    if source in WITHOUT_EPS:
        norms = [(f"{name}.running_var", module) for name, module in network.named_modules() if isinstance(module, _BatchNorm)]
        state |= {name: state[name] - module.eps for name, module in norms if name in state}
    names, taken, left = list[str](), Counter[str](), Counter[str]()
    for name, tensor in own.items():
        found, reason = state.get(name), "is not in it"
        layer, part = name.rpartition(".")[0], ".".join(name.split(".")[:2])
        if found is not None and layer in class_outputs:
            found, reason = select_classes(found, tensor, classes, categories, *class_outputs[layer])
        if found is not None and found.shape == tensor.shape:
            tensor.copy_(found)
            names.append(name)
            taken[part] += 1
        elif found is not None:
            left[f"{name}, which has the shape {list(found.shape)} there and {list(tensor.shape)} here"] += 1
        else:
            left[f"{part}, which {reason}"] += 1
    if not taken:
        raise InputError(
            f"Expected weights for {type(network).__name__} in {source} but none of its {len(state)} tensors fits: {next(iter(left))}."
        )
    without_place = Counter(".".join(name.split(".")[:2]) for name in set(state) - set(own))
    for verb, parts in (("took", taken), ("did not take", left), ("has no place for", without_place)):
        for part, count in parts.items():
            rank_zero_info(printable(f"init_from {source}: {verb} {part} (tensors: {count})"))
    return names


def read_detector(source: str) -> tuple[dict[str, Tensor], list[str] | None]:
    """A detector's tensors, and what its outputs stand for where that is known, in order and with the background."""
    weights = None
    if "_Weights." in source:  # torchvision takes "retinanet.pth" for a name, too
        with contextlib.suppress(ValueError, KeyError):
            weights = get_weight(source)
    if weights is not None:
        return read_file(weights.url, "weights"), list(weights.meta["categories"])
    content = read_file(source, "a torchvision detection weights name such as SSD300_VGG16_Weights.COCO_V1", " as init_from")
    if "state_dict" in content:
        state = {name.removeprefix("network."): tensor for name, tensor in content["state_dict"].items()}
        classes = content.get("hyper_parameters", {}).get("classes")
        return state, classes and ["__background__", *classes]
    return content.get("model", content), None


def pair(own: Mapping[str, Tensor], state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """The source's tensors by our names."""
    ours, theirs = ([(name.rpartition(".")[2], tensor.ndim) for name, tensor in tensors.items()] for tensors in (own, state))
    if set(own) != set(state) and ours == theirs:  # torchvision's: weight, bias, running_mean and so on, in the same order
        return dict(zip(own, state.values(), strict=True))
    if not set(own) & set(state):
        raise InputError(
            f"Expected {len(own)} tensors in {source}, in torchvision's order or with names such as {next(iter(own))}, "
            f"but it has {len(state)}, named {next(iter(state), 'nothing')} and so on: it is of another network."
        )
    return state


def select_classes(
    found: Tensor, own: Tensor, classes: Sequence[str], categories: Sequence[str] | None, names: list[str], together: int
) -> tuple[Tensor | None, str]:
    """The rows of a layer's weight or bias that stand for our classes; or none, and why.

    Args:
        found: the source's tensor.
        own: ours.
        classes: names of the labels 1..C.
        categories: what the source's outputs stand for, the background first, or none if that is not known.
        names: what ours stand for: the classes, and background, objectness or the like.
        together: how many rows of one class lie together.
    """
    repeats = len(own) // len(names)  # rows of each class: anchors of a cell, coordinates or positions
    count = len(found) // repeats
    if categories is None:
        if count == len(names):
            return found, ""  # nothing says that they differ
        categories = _COCO_CATEGORIES
    special = [name for name in names if name not in classes]
    there = list(categories) if count == len(categories) else []
    if len(special) + len(categories) - 1 == count:  # with what is not a class in the same places as ours
        first = names.index(classes[0])
        there = [*names[:first], *categories[1:], *names[first + len(classes) :]]
    if len(found) % repeats:
        return None, "has another number of outputs for each class there, and starts afresh"
    if not set(names) <= set(there):
        missing = [name for name in names if name not in there]
        return None, f"stands for other classes there ({', '.join(missing[:3])} ... is not among them), and starts afresh"
    rows = found.reshape(repeats // together, count, together, *found.shape[1:])
    return rows[:, [there.index(name) for name in names]].flatten(0, 2), ""
