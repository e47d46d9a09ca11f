"""What an exported file gives, by its own runtime, and whether that is what the checkpoint gives."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from lit_detect.detections import PostProcess
from lit_detect.detector import Detector
from lit_detect.errors import InputError

__all__ = ["Agreement", "check_detections", "check_heads", "imported", "load_exported"]

PIXELS, SCORE = 0.5, 1e-3  # how far boxes and scores may be off
OVERLAP = 1e-4  # an IoU so near the NMS threshold that rounding decides

Run = Callable[[np.ndarray], dict[str, Tensor]]


class Agreement(NamedTuple):
    """How well a file agrees with its checkpoint.

    Attributes:
        detections: how many were compared.
        pixels: the largest difference of a box's edge.
        score: the largest difference of a score.
        undecided: how many are in one of them alone, where rounding decides: see `check_detections`.
    """

    detections: int
    pixels: float
    score: float
    undecided: int


def imported(name: str) -> Any:
    """A package of the extra ``export``.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"Expected {name} for export but it is not installed: pip install 'lit_detect[export]'.") from error


def load_exported(path: Path) -> Run:
    """What an exported file computes, on the CPU in float32: uint8 images ``(N, 3, H, W)`` to tensors by the outputs' names.

    Args:
        path: ``.onnx``, ``.xml`` (OpenVINO) or ``.pt`` (TorchScript, which is a program: load only your own).
    """
    if path.suffix == ".onnx":
        session = imported("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return lambda images: named(names, session.run(None, {"images": images}))
    if path.suffix == ".xml":
        # some processors would compute in bfloat16 unless told not to
        model = imported("openvino").Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        names = [output.get_any_name() for output in model.outputs]
        return lambda images: named(names, model(images).values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of TorchScript's age
        script = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    names = ["boxes", "labels", "scores", "counts"]

    def run(images: np.ndarray) -> dict[str, Tensor]:
        with torch.inference_mode():
            found = script(torch.from_numpy(images))
        return dict(zip(names if len(found) == len(names) else ["boxes", "scores"], found, strict=True))

    return run


def named(names: Sequence[str], values: Any) -> dict[str, Tensor]:
    """Outputs by name, as tensors."""
    return {name: torch.from_numpy(np.array(value)) for name, value in zip(names, values, strict=True)}


def with_mirror(image: np.ndarray) -> np.ndarray:
    """A batch ``(2, 3, H, W)`` of an image ``(H, W, 3)`` and its mirror image: a graph that holds for one image only would fail."""
    return np.ascontiguousarray(np.stack([image, image[:, ::-1]]).transpose(0, 3, 1, 2))


def check_heads(run: Run, detector: Detector, images: Mapping[str, np.ndarray]) -> Agreement:
    """Compare a file's boxes and scores of all anchors with the network's.

    Raises:
        InputError: they differ.
    """
    pixels, score, count = 0.0, 0.0, 0
    network: Any = detector.network.eval()
    for name, image in images.items():
        batch = with_mirror(image)
        with torch.inference_mode():
            inputs = network.inputs(torch.from_numpy(batch))
            logits, deltas, anchors = network.predict(inputs.images)
            boxes = [{"boxes": of_image} for of_image in anchors.decode(deltas)]
            expected = torch.stack([of_image["boxes"] for of_image in inputs.restore(boxes)])
            scores = network.criterion.scores(logits)
        found = run(batch)
        if found["boxes"].shape != expected.shape or found["scores"].shape != scores.shape:
            raise InputError(f"Expected boxes {tuple(expected.shape)} on {name} but the file gives {tuple(found['boxes'].shape)}.")
        pixels = max(pixels, float((found["boxes"] - expected).abs().max()))
        score = max(score, float((found["scores"] - scores).abs().max()))
        count += expected.shape[0] * expected.shape[1]
        if not (pixels <= PIXELS and score <= SCORE):
            raise InputError(
                f"Expected the file's heads to be the checkpoint's within {PIXELS} pixels and {SCORE} of the scores, but on {name} boxes "
                f"differ by up to {pixels:.3g} pixels and scores by up to {score:.3g}."
            )
    return Agreement(count, pixels, score, 0)


def check_detections(run: Run, detector: Detector, images: Mapping[str, np.ndarray]) -> Agreement:
    """Compare a file's detections with the checkpoint's, on each image and its mirror image.

    Each detection has to have one of the same class in the other, with a box within half a pixel and a score within 1e-3. One that has
    none is let pass, and counted, only where rounding decides: its score is within 1e-3 of the score threshold or, of a full image, of
    its lowest score; or it overlaps a better one of its class by what is within 1e-4 of the NMS threshold.

    Args:
        run: see `load_exported`.
        detector: what it is compared with.
        images: ``(H, W, 3)`` uint8 RGB, by name.

    Raises:
        InputError: they differ, or nothing is detected on any image.
    """
    total = Agreement(0, 0.0, 0.0, 0)
    network: Any = detector.network
    for name, image in images.items():
        batch = with_mirror(image)
        found = run(batch)
        for index, (expected, which) in enumerate(zip(detector.predict(torch.from_numpy(batch)), (name, f"{name} mirrored"), strict=True)):
            count = int(found["counts"][index])
            own = {key: found[key][index, :count] for key in ("boxes", "labels", "scores")}
            one = agreement(expected, own, network.post_process, which)
            total = Agreement(
                total.detections + one.detections,
                max(total.pixels, one.pixels),
                max(total.score, one.score),
                total.undecided + one.undecided,
            )
    if not total.detections:
        raise InputError(
            f"Expected images on which the checkpoint detects something, to check the file on, but on {', '.join(images)} it detects "
            "nothing: give --images, or --config for its validation images."
        )
    return total


def agreement(expected: dict[str, Tensor], found: dict[str, Tensor], post_process: PostProcess, name: str) -> Agreement:
    """How well the detections of an image agree: see `check_detections`."""
    free = torch.ones(len(found["scores"]), dtype=torch.bool)
    pixels, score, alone = 0.0, 0.0, []
    for place in range(len(expected["scores"])):
        far = (found["boxes"] - expected["boxes"][place]).abs().amax(dim=1)
        off = (found["scores"] - expected["scores"][place]).abs()
        near = free & (found["labels"] == expected["labels"][place]) & (far <= PIXELS) & (off <= SCORE)
        if near.any():
            chosen = int(torch.where(near, far, torch.inf).argmin())
            free[chosen] = False
            pixels, score = max(pixels, float(far[chosen])), max(score, float(off[chosen]))
        else:
            alone.append(place)
    lonely = [(expected, place, "checkpoint") for place in alone]
    lonely += [(found, int(place), "file") for place in free.nonzero()]
    full = max(len(expected["scores"]), len(found["scores"])) >= post_process.detections_per_image
    least = [post_process.score_threshold, *(float(one["scores"][-1]) for one in (expected, found) if full and len(one["scores"]))]
    wrong = [one for one in lonely if not undecided(*one[:2], (expected, found), least, post_process.nms_threshold)]
    if wrong:
        of, place, where = wrong[0]
        box = ", ".join(f"{edge:.2f}" for edge in of["boxes"][place].tolist())
        raise InputError(
            f"Expected the file's detections on {name} to be the checkpoint's {len(expected['scores'])}, boxes within {PIXELS} pixels and "
            f"scores within {SCORE}, but it has {len(found['scores'])}, and {len(wrong)} of one or the other have no partner; the first is "
            f"label {int(of['labels'][place])} of score {float(of['scores'][place]):.4f} at [{box}], of the {where} alone."
        )
    return Agreement(len(expected["scores"]), pixels, score, len(lonely))


def undecided(of: dict[str, Tensor], place: int, both: Sequence[dict[str, Tensor]], least: Sequence[float], nms_threshold: float) -> bool:
    """Whether rounding decides if a detection is there."""
    if any(abs(float(of["scores"][place]) - value) <= SCORE for value in least):
        return True
    for other in both:
        same = other["labels"] == of["labels"][place]
        overlap = box_iou(of["boxes"][place][None], other["boxes"][same])[0]
        better = other["scores"][same] >= of["scores"][place] - SCORE
        if (((overlap - nms_threshold).abs() <= OVERLAP) & better).any():
            return True
    return False
