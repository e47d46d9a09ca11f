"""Exported files give what their checkpoints give, by runtimes that are not torch's; and a file that does not is refused."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lit_detect import InputError, PostProcess, SSDLite
from lit_detect.cli import main
from lit_detect.export import export, images_to_check, metadata, write_graph
from lit_detect.export_check import agreement, check_detections, check_heads, load_exported
from lit_detect.export_graph import Vote, resized_sides, whole_sides
from lit_detect.models.inputs import ShortestSide
from tests.conftest import CLASSES, DETECTORS
from tests.test_contract import save

ROOT = Path(__file__).parents[1]
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra export is not installed")
pytest.importorskip("onnx", reason="the extra export is not installed")

ONE_OF_EACH = ["ssd", "retinanet", "faster_rcnn_fpn", "rfcn"]

FACTORS = {
    "retinanet": 12,
    "retinanet_v2": 12,
    "retinanet_mining": 12,
    "fcos_focal": 12,
    "faster_rcnn_last_map": 3,
    "faster_rcnn_roi_pool": 3,
}


def lively(name, factor=None, **kwargs):
    """A detector whose scores spread as those of a trained one do: untrained, all are nearly equal, and their order is noise."""
    torch.manual_seed(0)
    detector = DETECTORS[name](**kwargs).eval()
    for part, parameter in detector.network.named_parameters():
        if "backbone" not in part and "bbox" not in part and parameter.ndim > 1:
            parameter.data.mul_(factor or FACTORS.get(name, 8))
        elif "backbone" not in part and part.endswith("bias"):
            parameter.data.add_(0.3 * torch.randn_like(parameter))  # a dead unit's zeros would give all anchors one score
    return detector


@pytest.fixture(scope="module")
def images():
    """Two photographs, smaller and of several shapes."""
    found = {}
    for (name, image), size in zip(images_to_check(None, None, 2).items(), [(160, 100), (90, 140)], strict=True):
        found[name] = np.asarray(Image.fromarray(image).resize(size))
    return found


@pytest.mark.parametrize("name", DETECTORS)
def test_onnx_runtime_gives_the_detectors_detections(name, images, tmp_path):
    detector = lively(name)
    write_graph(detector, tmp_path / "a.onnx")
    agreed = check_detections(load_exported(tmp_path / "a.onnx"), detector, images)
    assert agreed.detections > 10
    assert agreed.undecided <= 2


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        *((name, ".pt") for name in ONE_OF_EACH),
        *((name, ".xml") for name in ["retinanet", "faster_rcnn_fpn", "faster_rcnn_roi_pool", "rfcn"]),
    ],
)
def test_so_do_torchscript_and_openvino(name, suffix, images, tmp_path):
    if suffix == ".xml":
        pytest.importorskip("openvino", reason="the extra export is not installed")
    detector = lively(name)
    write_graph(detector, tmp_path / f"a{suffix}")
    agreed = check_detections(load_exported(tmp_path / f"a{suffix}"), detector, images)
    assert agreed.detections > 10
    assert agreed.undecided <= 2


@pytest.mark.parametrize("name", ["ssd", "retinanet", "faster_rcnn_fpn"])
def test_batches_and_images_of_any_size(name, tmp_path):
    detector = lively(name)
    write_graph(detector, tmp_path / "a.onnx")
    run = load_exported(tmp_path / "a.onnx")
    for shape in [(1, 3, 96, 96), (3, 3, 200, 77), (5, 3, 31, 150)]:
        batch = torch.randint(0, 256, shape, dtype=torch.uint8)
        found = run(batch.numpy())
        for index, expected in enumerate(detector.predict(batch)):
            count = int(found["counts"][index])
            assert abs(count - len(expected["scores"])) <= 1  # two nearly equal scores at the end may change places
            most = min(count, len(expected["scores"])) - 1
            torch.testing.assert_close(found["scores"][index, :most], expected["scores"][:most], atol=1e-3, rtol=0)
            assert (found["scores"][index, count:] == 0).all()
            assert (found["labels"][index, count:] == 0).all()
            assert (found["boxes"][index, count:] == 0).all()


@pytest.mark.parametrize("name", ["ssd", "ssdlite", "dssd", "yolov3", "retinanet", "fcos", "fcos_focal"])
def test_heads_are_what_suppression_starts_from(name, images, tmp_path):
    detector = lively(name)
    write_graph(detector, tmp_path / "a.onnx", heads=True)
    run = load_exported(tmp_path / "a.onnx")
    assert check_heads(run, detector, images).score < 1e-4
    with pytest.raises(InputError, match=r"scores by up to 0\.01"):
        check_heads(lambda batch: {**run(batch), "scores": run(batch)["scores"] + 0.01}, detector, images)


@pytest.mark.parametrize("name", ["faster_rcnn_fpn", "rfcn"])
def test_a_two_stage_detector_has_no_heads_to_export(name, tmp_path):
    with pytest.raises(InputError, match="Expected a one-stage detector for heads"):
        write_graph(lively(name), tmp_path / "a.onnx", heads=True)
    assert not list(tmp_path.iterdir())


def changed(found, what):
    """A file's output with one thing wrong in it."""
    found = {name: value.clone() for name, value in found.items()}
    if what == "box":
        found["boxes"][0, 0] += 0.75
    if what == "score":
        found["scores"][1, 0] -= 0.01
    if what == "label":
        found["labels"][0, 0] = found["labels"][0, 0] % len(CLASSES) + 1
    if what == "missing":
        for name in ("boxes", "labels", "scores"):
            found[name][0] = found[name][0].roll(-1, dims=0)
        found["counts"][0] -= 1
    if what == "twice":
        for name in ("boxes", "labels", "scores"):
            found[name][0] = torch.cat([found[name][0, :1], found[name][0, :-1]])
        found["counts"][0] += 1
    return found


@pytest.mark.parametrize("what", ["box", "score", "label", "missing", "twice"])
def test_a_file_with_one_thing_wrong_is_refused_with_the_numbers(what, images):
    detector = lively("ssd", score_threshold=0.2)

    def run(batch):
        expected = detector.predict(torch.from_numpy(batch))
        most = max(len(found["scores"]) for found in expected) + 1
        rows = {
            name: torch.stack(
                [torch.cat([found[name], found[name].new_zeros(most - len(found[name]), *found[name].shape[1:])]) for found in expected]
            )
            for name in ("boxes", "labels", "scores")
        }
        return {**rows, "counts": torch.tensor([len(found["scores"]) for found in expected])}

    assert check_detections(run, detector, images)[1:] == (0.0, 0.0, 0)
    with pytest.raises(InputError, match=r"(china|flower)\.jpg.* to be the checkpoint's \d+, .*but it has \d+.*score 0\.\d+ at \["):
        check_detections(lambda batch: changed(run(batch), what), detector, images)


def test_nothing_detected_is_no_agreement(images):
    detector = lively("ssd", score_threshold=1.0)
    nothing = {"boxes": torch.zeros(2, 1, 4), "labels": torch.zeros(2, 1), "scores": torch.zeros(2, 1), "counts": torch.zeros(2)}
    with pytest.raises(InputError, match=r"china\.jpg, flower\.jpg it detects nothing: give --images"):
        check_detections(lambda batch: nothing, detector, images)


def test_voting_is_torchvisions_pooling():
    maps = DETECTORS["rfcn"]().network.maps
    features = torch.randn(2, 3**2 * 4, 12, 17)
    corners = torch.rand(2, 40, 2) * torch.tensor([17, 12]) * maps.stride
    boxes = torch.cat([corners, corners + torch.rand(2, 40, 2) * 150], dim=2)
    boxes = torch.minimum(boxes, torch.tensor([17, 12] * 2) * maps.stride)
    boxes[:, :4] = (boxes[:, :4] / 8).round() * 8  # edges half-way between cells
    boxes[:, 4] = 0.0
    rois = torch.cat([torch.arange(2.0)[:, None, None].expand(-1, 40, 1), boxes], dim=2).flatten(0, 1)
    torch.testing.assert_close(Vote(maps)(features, rois), maps.vote(features, list(boxes)))


def about(path):
    """What a file says of itself."""
    if path.suffix == ".onnx":
        return onnxruntime.InferenceSession(str(path)).get_modelmeta().custom_metadata_map
    if path.suffix == ".xml":
        import openvino

        return openvino.Core().read_model(str(path)).get_rt_info(["lit_detect"]).value
    files = {"metadata.json": ""}
    torch.jit.load(str(path), _extra_files=files)
    return {name: json.dumps(value) for name, value in json.loads(files["metadata.json"]).items()}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Of a detector that nobody has trained, but that detects."""
    path = tmp_path_factory.mktemp("run") / "best.ckpt"
    save(lively("ssdlite", score_threshold=0.3), path)
    return path


@pytest.mark.parametrize(("format", "suffix"), [("onnx", ".onnx"), ("torchscript", ".pt"), ("openvino", ".xml")])
def test_the_verb_writes_and_compares_and_the_file_says_what_it_is(format, suffix, checkpoint, tmp_path, capsys):
    pytest.importorskip("openvino", reason="the extra export is not installed")
    path = tmp_path / "deep" / f"a{suffix}"
    main(["export", "--ckpt_path", str(checkpoint), "--format", format, "--out", str(path)])
    out = capsys.readouterr().out
    assert f"export: {path} (" in out
    assert "compared with the checkpoint on 2 images and their mirror images" in out
    assert sorted(file.name for file in path.parent.iterdir()) == (["a.bin", "a.xml"] if suffix == ".xml" else [path.name])
    said = {name: json.loads(value) for name, value in about(path).items()}
    assert said == {name: json.loads(value) for name, value in metadata(SSDLite.load_from_checkpoint(checkpoint)).items()}
    assert (said["classes"], said["detector"], said["score_threshold"]) == (CLASSES, "SSDLite", 0.3)
    assert said["input"]["resized_to"] == {"height": 96, "width": 96}
    assert said["mean"] == pytest.approx([0.485, 0.456, 0.406])


def test_what_can_be_mended_is_a_sentence(checkpoint, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"Expected a file with the suffix \.onnx to write but got a\.pt"):
        export(str(checkpoint), out="a.pt")
    with pytest.raises(InputError, match="Expected --format onnx with int8"):
        export(str(checkpoint), "torchscript", int8=True)
    with pytest.raises(InputError, match="Expected either --images or --config"):
        export(str(checkpoint), images="a", config="b")
    for name in ("onnx", "onnxruntime"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(
                InputError, match=rf"Expected {name} for export but it is not installed: pip install 'lit_detect\[export\]'"
            ):
                export(str(checkpoint), out=str(tmp_path / "a.onnx"))
    assert not list(tmp_path.iterdir())


def test_in_8_bits(checkpoint, tmp_path, images):
    import onnx

    for name, image in images.items():
        Image.fromarray(image).save(tmp_path / name)
    export(str(checkpoint), out=str(tmp_path / "out" / "a.onnx"), int8=True, images=str(tmp_path))
    path = tmp_path / "out" / "a.int8.onnx"
    nodes = onnx.load(str(path)).graph.node
    convolutions = [node for node in nodes if node.op_type == "Conv"]
    made_of = {output: node.op_type for node in nodes for output in node.output}
    assert convolutions
    assert all(made_of[node.input[0]] == made_of[node.input[1]] == "DequantizeLinear" for node in convolutions)
    assert about(path) == about(tmp_path / "out" / "a.onnx")
    found = load_exported(path)(np.zeros((1, 3, 50, 60), np.uint8))
    assert all(value.isfinite().all() for value in found.values())


def test_the_runtime_example_gives_the_same_without_torch(checkpoint, images, tmp_path):
    model, photograph = tmp_path / "a.onnx", tmp_path / "photograph.png"
    export(str(checkpoint), out=str(model))
    Image.fromarray(images["china.jpg"]).save(photograph)
    without = "import runpy, sys; sys.modules['torch'] = None; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    line = [sys.executable, "-c", without, str(ROOT / "tools" / "runtime.py"), str(model), str(photograph), "--score_threshold", "0.35"]
    done = subprocess.run([*line, "--out", str(tmp_path / "drawn.png")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [json.loads(row) for row in done.stdout.splitlines()]
    (expected,) = SSDLite.load_from_checkpoint(checkpoint).predict(photograph, score_threshold=0.35)
    assert len(found) == len(expected["scores"]) > 0
    scores = [one["score"] for one in found]
    assert scores == sorted(scores, reverse=True)
    labels = torch.tensor([CLASSES.index(one["class"]) + 1 for one in found])
    own = {"boxes": torch.tensor([one["box"] for one in found]), "labels": labels, "scores": torch.tensor(scores)}
    assert agreement(expected, own, PostProcess(0.35), "photograph").undecided == 0
    drawn = np.asarray(Image.open(tmp_path / "drawn.png"))
    assert drawn.shape == images["china.jpg"].shape
    assert (drawn != images["china.jpg"]).any()


@pytest.mark.parametrize(("name", "suffix"), [("ssd", ".pt"), ("retinanet", ".xml"), ("faster_rcnn_fpn", ".onnx")])
def test_nothing_found_is_nothing_written(name, suffix, tmp_path):
    if suffix == ".xml":
        pytest.importorskip("openvino", reason="the extra export is not installed")
    write_graph(lively(name, score_threshold=1.0), tmp_path / f"a{suffix}")
    found = load_exported(tmp_path / f"a{suffix}")(np.zeros((2, 3, 50, 60), np.uint8))
    assert found["counts"].tolist() == [0, 0]
    assert all((value == 0).all() for value in found.values())
    assert found["boxes"].shape[:2] == found["scores"].shape == found["labels"].shape


@pytest.mark.parametrize("limits", [(800, 1333), (600, 1000), (96, 160)])
def test_sides_are_those_of_shortest_side(limits):
    inputs = ShortestSide(*limits, mean=[0.5] * 3, std=[0.5] * 3).eval()
    for sides in [(480, 640), (427, 640), (97, 100), (1, 500), (96, 96), (2000, 333), (161, 167)]:
        expected = inputs([torch.zeros(3, *sides, dtype=torch.uint8)]).sizes[0]
        for resized in (resized_sides, whole_sides):
            assert tuple(resized(torch.tensor(sides), *limits).tolist()) == expected
