import json
import re

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lit_detect import FasterRCNN
from lit_detect.cli import main
from lit_detect.data.anchor_recall import AnchorsBySize
from lit_detect.data.feed import Feed
from lit_detect.data.presets import preset
from lit_detect.data.voc import VOCDetection
from lit_detect.views import draw_anchors, draw_data, draw_proposals
from tests.conftest import CLASSES, DETECTORS, TinyBackbone, random_batch

SMALL = {"fpn_channels": 16, "head_channels": 16, "min_size": 96, "max_size": 160}


@pytest.fixture
def config(voc_root, tmp_path):
    """A config of two-stage detection on five small images."""
    sets = {
        split: {"class_path": "VOCDetection", "init_args": {"root": str(voc_root), "image_set": split, "classes": CLASSES}}
        for split in ("train", "val")
    }
    model = {"class_path": "FasterRCNN", "init_args": {"backbone": {"class_path": "tests.conftest.TinyBackbone"}, **SMALL}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"model": model, "data": {**sets, "transforms": "hflip"}}))
    return path


@pytest.fixture
def visualize(tmp_path, capsys):
    """Run the command and give what it prints and the pictures it leaves."""

    def run(*args):
        main(["visualize", *map(str, args), f"--out={tmp_path / 'out'}"])
        return capsys.readouterr().out, sorted((tmp_path / "out").iterdir())

    return run


def test_data_are_drawn_in_several_epochs(visualize, config):
    out, files = visualize("--config", config, "--count", 2, "--epochs", 3)
    assert "data drawn: 2 pictures" in out
    assert [file.name for file in files] == ["data-01.png", "data-02.png"]
    assert Image.open(files[0]).size == (4 * 400, 323)  # the first image is 427 x 320, enlarged


def test_anchors_are_drawn_on_images_with_boxes(visualize, config):
    out, files = visualize("--config", config, "--what", "anchors")
    assert "anchors drawn: 4 pictures" in out  # the fifth image has no boxes
    assert len(files) == 4


def test_proposals_need_a_checkpoint_and_are_drawn_with_it(visualize, config, tmp_path):
    with pytest.raises(SystemExit, match="Expected --ckpt_path"):
        visualize("--config", config, "--what", "proposals")
    checkpoint = tmp_path / "a.ckpt"
    torch.save({"state_dict": FasterRCNN(CLASSES, TinyBackbone(), **SMALL).state_dict()}, checkpoint)
    out, _ = visualize("--config", config, "--what", "proposals", "--ckpt_path", checkpoint)
    assert "proposals drawn: 2 pictures" in out
    torch.save({"state_dict": DETECTORS["ssd"]().state_dict()}, checkpoint)
    with pytest.raises(SystemExit, match="Expected a checkpoint of FasterRCNN as configured"):
        visualize("--config", config, "--what", "proposals", "--ckpt_path", checkpoint)
    checkpoint.write_text("damaged")
    with pytest.raises(SystemExit, match="damaged or holds code"):
        visualize("--config", config, "--what", "proposals", "--ckpt_path", checkpoint)


def test_it_is_either_a_config_or_predictions(visualize, config):
    for args in ([], ["--config", config, "--predictions", "p.json", "--images", "x"], ["--predictions", "p.json"]):
        with pytest.raises(SystemExit, match="Expected either --config, or --predictions and --images"):
            visualize(*args)


def test_predictions_are_drawn_on_their_images(visualize, voc_root, tmp_path):
    file = tmp_path / "predictions.json"
    result = {"file_name": "image0.jpg", "category_name": "cat", "bbox": [10, 20, 30, 25], "score": 0.9}
    file.write_text(json.dumps([result, {**result, "file_name": "image1.jpg", "score": 0.2}]))
    out, files = visualize("--predictions", file, "--images", voc_root / "JPEGImages")
    assert "predictions drawn: 2 pictures" in out
    assert "; 3 of 5 images have no detections" in out
    with_box, without = (np.asarray(Image.open(path)).astype(int) for path in files)
    assert with_box.shape == without.shape
    assert (abs(with_box - without) > 60).any()  # the images are the same, and what scores .2 is not drawn
    assert not (abs(with_box - without) > 60)[:, 250:].any()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "as predict writes it"),
        ('[{"image_id": 1, "category_id": 2, "bbox": [0, 0, 1, 1], "score": 1}]', "file_name"),
        ('[{"file_name": "../a.xml", "category_name": "x", "bbox": [0, 0, 1, 1], "score": 1}]', "leads out of it"),
        ('[{"file_name": "none.jpg", "category_name": "x", "bbox": [0, 0, 1, 1], "score": 1}]', "none.jpg"),
        ('[{"file_name": "clip_000001", "category_name": "x", "bbox": [0, 0, 1, 1], "score": 1}]', "drawn by predict itself"),
        (
            '[{"file_name": "image0.jpg", "category_name": "x", "bbox": [0, 0, -1, 1], "score": 1}]',
            "p.json as .* negative sides.* in entry 0",
        ),
        ('[{"file_name": "image0.jpg", "category_name": "x", "bbox": [0, NaN, 1, 1], "score": 1}]', "not finite.* in entry 0"),
        ('[{"file_name": "image0.jpg", "category_name": "x", "bbox": [0, 0, 1, 1], "score": Infinity}]', "not finite.* in entry 0"),
    ],
)
def test_predictions_that_are_none_are_named(visualize, voc_root, tmp_path, content, message):
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(SystemExit, match=message):
        visualize("--predictions", tmp_path / "p.json", "--images", voc_root / "JPEGImages")


@pytest.mark.parametrize("name", ["ssd", "ssd_fpn", "dssd", "yolov3", "retinanet", "fcos", "faster_rcnn_fpn", "faster_rcnn_c4", "rfcn"])
def test_all_anchors_are_on_some_map_and_every_box_has_one(name):
    detector = DETECTORS[name]()
    (image,), (target,) = random_batch([(96, 128)], [2])
    panels = draw_anchors(detector, image, target)
    numbers = [list(map(int, re.findall(r"\d+", text))) for text, _ in panels]
    anchors = AnchorsBySize(detector.network)
    assert sum(count for *_, count in numbers) == len(anchors.at(anchors.input_sizes(96, 128)[1]))
    assert sum(matched for _, _, matched, _ in numbers) >= 1  # of two boxes with the same best anchor one has none
    sides = [width for width, *_ in numbers]
    assert sides == sorted(sides, reverse=True)


def test_a_box_that_is_an_anchor_is_matched_on_its_map():
    detector = DETECTORS["ssd"]()
    middle = detector.network.anchors.boxes[144 + 4 * 6][None]  # the first of the middle cell on the map of 3 x 3
    target = {"boxes": middle, "labels": torch.tensor([1])}
    panels = draw_anchors(detector, torch.zeros(3, 96, 96, dtype=torch.uint8), target)
    matched = {text.split(":")[0]: int(text.split()[5]) for text, _ in panels}
    assert matched["map of 3 x 3"] >= 1
    assert matched["map of 1 x 1"] == 0


def test_only_two_stage_detectors_have_proposals():
    (image,), (target,) = random_batch([(96, 128)], [2])
    with pytest.raises(Exception, match="Expected a two-stage detector, which has proposals, but got SSD"):
        draw_proposals(DETECTORS["ssd"](), image, target, 10)
    ((text, _),) = draw_proposals(DETECTORS["faster_rcnn_fpn"](), image, target, 10)
    assert re.fullmatch(r"10 of [1-5]\d proposals cover \d of 2, all \d", text)


def test_the_networks_own_image_is_drawn(voc_root):
    dataset = VOCDetection(str(voc_root), "train", classes=CLASSES)
    feed = Feed(dataset, preset("ssd", 96), train=True)
    inputs = DETECTORS["ssd"]().network.inputs
    again = [draw_data(feed, 0, inputs, CLASSES, 3) for _ in range(2)]
    for (text, picture), (_, other) in zip(*again, strict=True):
        assert "96 x 96" in text
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(other))  # an epoch's version is always the same
    assert (np.asarray(again[0][0][1]) != np.asarray(again[0][1][1])).mean() > 0.5
    plain = Feed(dataset)
    (_, fed), (_, seen) = draw_data(plain, 4, None, CLASSES, 1)[0], draw_data(plain, 4, inputs, CLASSES, 1)[0]
    assert (fed.size, seen.size) == ((427, 320), (320, 320))  # the image without boxes, before and after the network's resizing
    assert abs(np.asarray(fed).mean() - np.asarray(seen).mean()) < 1


def test_predictions_that_are_nested_without_end_are_refused(tmp_path):
    (tmp_path / "a.json").write_text("[" * 200_000 + "]" * 200_000)
    with pytest.raises(SystemExit, match=r"a\.json as predict writes it"):
        main(["visualize", f"--predictions={tmp_path / 'a.json'}", f"--images={tmp_path}"])


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hosts", "link.png", "a/../../secret.png", "a\0.png", "a" * 5000 + ".png"])
def test_predictions_do_not_lead_out_of_the_folder(tmp_path, name):
    (tmp_path / "images" / "a").mkdir(parents=True)
    for place in ("secret.png", "images/inside.png"):
        Image.new("RGB", (40, 30)).save(tmp_path / place)
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "secret.png")
    name = name.replace("/etc/hosts", str(tmp_path / "secret.png"))
    (tmp_path / "a.json").write_text(json.dumps([{"file_name": name, "category_name": "b", "bbox": [1, 1, 5, 5], "score": 0.9}]))
    with pytest.raises(SystemExit, match="Expected"):
        main(["visualize", f"--predictions={tmp_path / 'a.json'}", f"--images={tmp_path / 'images'}", f"--out={tmp_path / 'out'}"])
    assert not list((tmp_path / "out").iterdir())
