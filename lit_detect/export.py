"""The verb ``export``: a trained detector as a file for ONNX Runtime, OpenVINO or TorchScript, checked against its checkpoint."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import lit_detect
from lit_detect.data.dataset import DetectionDataset
from lit_detect.data.folder import to_predict
from lit_detect.detector import Detector
from lit_detect.errors import InputError, printable
from lit_detect.export_check import Agreement, check_detections, check_heads, imported, load_exported
from lit_detect.export_graph import DetectionGraph
from lit_detect.models.inputs import FixedSize

__all__ = ["export", "metadata", "write_graph"]

OPSET = 17
SUFFIXES = {"onnx": ".onnx", "torchscript": ".pt", "openvino": ".xml"}


def export(
    ckpt_path: str,
    format: Literal["onnx", "torchscript", "openvino"] = "onnx",
    out: str | None = None,
    heads: bool = False,
    int8: bool = False,
    images: str | None = None,
    config: str | None = None,
    count: int = 8,
) -> None:
    """Write a checkpoint's detector as one file from uint8 images to detections, and compare what it gives with the checkpoint.

    Args:
        ckpt_path: the checkpoint.
        format: ``onnx`` for ONNX Runtime, ``openvino`` (``.xml`` and ``.bin``), or ``torchscript``.
        out: the file to write; by default that of the checkpoint with the format's suffix.
        heads: write boxes and scores of all anchors, before thresholds and non-maximum suppression, for runtimes with their own; of
            one-stage detectors only.
        int8: write a second ONNX file, ``.int8.onnx``, with convolutions in 8 bits, calibrated on the images.
        images: an image, a folder or a video to compare on.
        config: in place of images: a training config, to compare on its validation images; by default two photographs that come with
            scikit-learn.
        count: how many images, the first ones.

    Raises:
        InputError: files that cannot be read, packages that are not installed, heads of a two-stage detector; or the file does not give
            what the checkpoint gives.
    """
    if int8 and format != "onnx":
        raise InputError(f"Expected --format onnx with int8, which ONNX Runtime quantizes, but got {format}.")
    detector = Detector.load_from_checkpoint(Path(ckpt_path), map_location="cpu")
    path = Path(out) if out is not None else Path(ckpt_path).with_suffix(SUFFIXES[format])
    if path.suffix != SUFFIXES[format]:
        raise InputError(f"Expected a file with the suffix {SUFFIXES[format]} to write but got {path}.")
    pictures = images_to_check(images, config, count)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        written = Path(folder) / path.name
        write_graph(detector, written, heads)
        check = check_heads if heads else check_detections
        agreement = check(load_exported(written), detector, pictures)
        files = [written]
        if int8:
            files.append(quantize(written, pictures))
        for file in sorted({*files, *Path(folder).glob("*.bin")}):
            os.replace(file, path.parent / file.name)
    announce(path, len(pictures), agreement, heads, int8)


def announce(path: Path, images: int, agreement: Agreement, heads: bool, int8: bool) -> None:
    """Say what was written, and how it was compared."""
    off = f"boxes differ by at most {agreement.pixels:.2g} pixels, scores by {agreement.score:.2g}"
    edge = f"; {agreement.undecided} more at a threshold" if agreement.undecided else ""
    what = "boxes of anchors" if heads else "detections"
    print(printable(f"export: {path} ({path.stat().st_size / 1e6:.1f} MB)"))
    print(f"compared with the checkpoint on {images} images and their mirror images: {agreement.detections} {what}, {off}{edge}")
    if int8:
        written = path.with_suffix(".int8.onnx")
        print(printable(f"int8: {written}, calibrated on {images} images; what it costs in AP is to be measured"))


def images_to_check(images: str | None, config: str | None, count: int) -> dict[str, np.ndarray]:
    """The first images of a folder or of a config's validation set, or two photographs, by name."""
    if count < 1:
        raise InputError(f"Expected a count of at least 1 image to compare on but got {count}.")
    if images is not None and config is not None:
        raise InputError("Expected either --images or --config, whose validation images are taken, but got both.")
    if images is None and config is None:
        from sklearn.datasets import load_sample_images

        photographs = load_sample_images()
        return dict(zip(map(os.path.basename, photographs.filenames), photographs.images, strict=True))
    dataset: DetectionDataset
    if config is not None:
        from lit_detect.lightning_cli import read_config

        data, _ = read_config(config, with_model=False)
        if data.splits["val"] is None:
            raise InputError(f"Expected validation data in {config} but there is none: give --images.")
        data.setup("validate")
        dataset = data.feeds["val"].dataset
    else:
        dataset = to_predict(str(images))
    return {dataset.file_name(index): dataset.load(index)[0] for index in range(min(count, len(dataset)))}


def metadata(detector: Detector, heads: bool = False) -> dict[str, str]:
    """What a file says of itself: each value is JSON."""
    network: Any = detector.network
    inputs, post_process = network.inputs, network.post_process
    fixed = isinstance(inputs, FixedSize)
    size = {"height": inputs.size, "width": inputs.size} if fixed else {"min_size": inputs.min_size, "max_size": inputs.max_size}
    values = {
        "lit_detect": lit_detect.__version__,
        "detector": type(detector).__name__,
        "classes": detector.classes,
        "category_ids": detector.category_ids,
        "input": {"layout": "NCHW", "dtype": "uint8", "colours": "RGB", "resized_to": size},
        "mean": [round(value / 255, 6) for value in inputs.mean.flatten().tolist()],
        "std": [round(value / 255, 6) for value in inputs.std.flatten().tolist()],
        "heads": heads,
        "score_threshold": post_process.score_threshold,
        "nms_threshold": post_process.nms_threshold,
        "detections_per_image": post_process.detections_per_image,
    }
    return {name: json.dumps(value) for name, value in values.items()}


def write_graph(detector: Detector, path: Path, heads: bool = False) -> None:
    """Write a detector's graph, in the format of the suffix: ``.onnx``, ``.xml`` (OpenVINO) or ``.pt`` (TorchScript).

    Raises:
        InputError: a package is not installed, or heads are asked of a two-stage detector.
    """
    graph = DetectionGraph(detector.network, heads, float64=path.suffix != ".xml").eval()
    about = metadata(detector, heads)
    example = torch.randint(0, 256, (3, 3, 240, 320), dtype=torch.uint8)  # others than are checked, in number and size
    with quiet(), torch.no_grad():
        if path.suffix == ".pt":
            traced = torch.jit.trace(graph, example, check_trace=False)  # type: ignore[no-untyped-call]
            torch.jit.save(
                traced, str(path), _extra_files={"metadata.json": json.dumps({name: json.loads(value) for name, value in about.items()})}
            )  # type: ignore[no-untyped-call]
        elif path.suffix == ".onnx":
            write_onnx(graph, example, path, about)
        else:
            write_openvino(graph, example, path, about)


def write_onnx(graph: DetectionGraph, example: torch.Tensor, path: Path, about: Mapping[str, str]) -> None:
    """Trace a graph to ONNX; torch's other exporter does not take sizes that depend on what is found (vision#9462)."""
    onnx = imported("onnx")
    dynamic = {"images": {0: "N", 2: "H", 3: "W"}} | {name: {0: "N"} for name in graph.outputs}
    if graph.heads:
        dynamic |= {name: {0: "N", 1: "A"} for name in graph.outputs}
    torch.onnx.export(
        graph,
        (example,),
        str(path),
        dynamo=False,
        opset_version=OPSET,
        input_names=["images"],
        output_names=graph.outputs,
        dynamic_axes=dynamic,
    )
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, dict(about))
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def write_openvino(graph: DetectionGraph, example: torch.Tensor, path: Path, about: Mapping[str, str]) -> None:
    """Write OpenVINO's files, by way of ONNX."""
    openvino = imported("openvino")
    with tempfile.TemporaryDirectory() as folder:
        between = Path(folder) / "graph.onnx"
        write_onnx(graph, example, between, about)
        model = openvino.convert_model(str(between))
        for name, value in about.items():
            model.set_rt_info(value, ["lit_detect", name])
        openvino.save_model(model, str(path), compress_to_fp16=False)


def quantize(path: Path, pictures: Mapping[str, np.ndarray]) -> Path:
    """Beside an ONNX file one with convolutions in 8 bits, calibrated on pictures: ``.int8.onnx``."""
    onnx, quantization = imported("onnx"), imported("onnxruntime.quantization")
    batches = iter([{"images": np.ascontiguousarray(image.transpose(2, 0, 1)[None])} for image in pictures.values()])

    class Reader(quantization.CalibrationDataReader):  # type: ignore[name-defined,misc]
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(batches, None)

    prepared, written = path.with_suffix(".prepared.onnx"), path.with_suffix(".int8.onnx")
    quantization.quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
    quantization.quantize_static(str(prepared), str(written), Reader(), per_channel=True, op_types_to_quantize=["Conv"])
    model = onnx.load(str(written))
    del model.metadata_props[:]  # to which ONNX Runtime adds remarks of its own, which are not JSON
    model.metadata_props.extend(onnx.load(str(path)).metadata_props)
    onnx.save(model, str(written))
    return written


@contextmanager
def quiet() -> Iterator[None]:
    """Without the tracer's warnings of what it keeps as it is, which is meant, and of its age."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=UserWarning, module="torch")
        yield
