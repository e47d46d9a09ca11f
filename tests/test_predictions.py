"""Files of detections: read back by others they give the AP of the run."""

import csv
import json
import os
import shutil
import sys

import cv2
import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn
from torch.utils.data import DataLoader

from lit_detect import (
    SSD,
    DetectionDataModule,
    DetectionDataset,
    Detector,
    InputError,
    PostProcess,
    PredictionWriter,
    TorchvisionBackbone,
    write_predictions,
)
from lit_detect.cli import CONFIGS, main
from lit_detect.data.images import read_image
from lit_detect.data.writers import Labelled, encode_image, write_coco
from lit_detect.data.yolo import corners, label_name
from lit_detect.predict import Pixels
from lit_detect.visualize import colour
from tests.conftest import TinyBackbone, write_video
from tests.test_tiles import Drawn, drawing

CLASSES, CATEGORY_IDS = ["cat", "dog"], [3, 90]


class Squares(DetectionDataset):
    """Images of rectangles in a folder."""

    def __init__(self, folder, classes=CLASSES):
        self.files, self.classes = sorted(folder.glob("*.png")), classes

    category_ids = CATEGORY_IDS

    def __len__(self):
        return len(self.files)

    def load(self, index):
        image = read_image(self.files[index])
        target = Drawn().find(torch.from_numpy(image).permute(2, 0, 1))
        labels = target["labels"] if len(self.classes) > 1 else target["labels"].clamp(max=1)
        return image, {"boxes": target["boxes"].numpy(), "labels": labels.numpy(), "image_id": index}


class Unsteady(nn.Module):
    """Finds rectangles with faults that depend on the image alone: places off, some missed, some made up, equal scores."""

    def __init__(self, classes):
        super().__init__()
        self.classes, self.post_process, self.weight = classes, PostProcess(), nn.Parameter(torch.zeros(1))

    def forward(self, images, targets=None):
        return [self.find(image) for image in images]

    def evaluate(self, images, targets):
        return {"loss": self.weight.sum()}, self(images)

    def find(self, image):
        rng = np.random.default_rng(int(image.long().sum()))
        boxes, labels = Drawn().find(image)["boxes"].numpy().repeat(2, axis=0), Drawn().find(image)["labels"].numpy().repeat(2)
        sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
        boxes = (boxes + sides * rng.normal(0, 0.06, boxes.shape)).astype(np.float32).clip(0, np.tile(image.shape[:0:-1], 2))
        labels = np.where(rng.random(len(labels)) < 0.2, 1, labels).clip(max=self.classes)
        kept = rng.random(len(labels)) < 0.8
        scores = rng.integers(1, 20, len(labels)).astype(np.float32) / 20
        order = np.argsort(-scores[kept], kind="stable")
        columns = {"boxes": boxes, "labels": labels, "scores": scores}
        return {name: torch.from_numpy(column[kept][order]) for name, column in columns.items()}


class Fake(Detector):
    def __init__(self, classes=CLASSES, category_ids=CATEGORY_IDS):
        super().__init__(classes, category_ids)
        self.network = Unsteady(len(classes))


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(12):
        image, _ = drawing(number, 150 + number, 120, (8, 60))
        encode_image(folder / f"{number:02}.png", image.permute(1, 2, 0).numpy())
    Image.new("RGB", (50, 40)).save(folder / "99.png")  # nothing on it, and nothing found
    return folder


def trainer(callback=None):
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=callback,
        enable_model_summary=False,
    )


def predict(detector, source, tmp_path, **arguments):
    writer = PredictionWriter(str(tmp_path / "out"), **arguments)
    data = DetectionDataModule(predict=str(source), batch_size=4, num_workers=0)
    trainer(writer).predict(detector, data, return_predictions=False)
    return tmp_path / "out"


def from_json(out, folder):
    return json.loads((out / "predictions.json").read_text())


def from_csv(out, folder):
    rows = list(csv.DictReader((out / "predictions.csv").open()))
    bbox = ("x", "y", "width", "height")
    numbers = [{"image_id": int(row["image_id"]), "category_id": int(row["category_id"]), "score": float(row["score"])} for row in rows]
    return [{**number, "bbox": [float(row[name]) for name in bbox]} for number, row in zip(numbers, rows, strict=True)]


def from_yolo(out, folder):
    results = []
    for index, file in enumerate(sorted(folder.glob("*.png"))):
        width, height = Image.open(file).size
        for line in (out / label_name(f"images/{file.name}")).read_text().splitlines():
            label, *box, score = map(float, line.split())
            x1, y1, x2, y2 = np.multiply(corners(*box), [width, height] * 2).round(6).tolist()
            results.append({"image_id": index, "category_id": CATEGORY_IDS[int(label)], "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score})
    return results


@pytest.mark.parametrize("classes", [CLASSES, ["cat"]])
def test_ap_through_the_files_is_that_of_the_run(folder, tmp_path, classes, capsys):
    ids = CATEGORY_IDS[: len(classes)]
    dataset, detector = Squares(folder, classes), Fake(classes, ids)
    data = DetectionDataModule(test=dataset, batch_size=4, num_workers=0, classes=classes, category_ids=ids)
    run = trainer().test(detector, data, verbose=False)[0]
    assert 0.2 < run["test/map"] < run["test/map_50"] < 0.95

    out = predict(detector, folder, tmp_path, outputs=["json", "csv", "yolo"])
    assert sorted(path.name for path in out.iterdir()) == ["labels", "predictions.csv", "predictions.json"]
    assert "(json, csv, yolo: " in capsys.readouterr().out
    assert (out / "labels" / "99.txt").read_text() == ""
    categories = [{"id": id, "name": name} for id, name in zip(ids, classes, strict=True)]
    images = [Labelled(file.name, 0, 0, dataset.load(index)[1]) for index, file in enumerate(dataset.files)]
    write_coco(tmp_path / "truth.json", images, categories)
    for read in (from_json, from_csv, from_yolo):
        truth = COCO(str(tmp_path / "truth.json"))
        evaluation = COCOeval(truth, truth.loadRes(read(out, folder)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        expected = [run[f"test/{name}"] for name in ("map", "map_50", "map_75", "map_small")]
        assert evaluation.stats[:4] == pytest.approx(expected, abs=1e-6), read.__name__


def test_thresholds_by_class_and_the_classes_that_are_written(folder, tmp_path):
    detector = Fake()
    everything = from_json(predict(detector, folder, tmp_path, outputs=["json"]), folder)

    def written(**arguments):
        return from_json(predict(detector, folder, tmp_path, outputs=["json"], **arguments), folder)

    assert min(result["score"] for result in everything) < 0.1
    assert written(score_threshold=0.35) == [result for result in everything if result["score"] >= 0.35]
    least = {3: 0.0, 90: 0.6}
    assert written(score_threshold={"dog": 0.6}) == [result for result in everything if result["score"] >= least[result["category_id"]]]
    assert written(classes=["dog"]) == [result for result in everything if result["category_name"] == "dog"]
    assert written(score_threshold=1.0) == []
    for arguments in ({"score_threshold": {"cow": 0.1}}, {"classes": ["cow"]}):
        with pytest.raises(InputError, match="Expected classes of the detector, cat, dog, but got cow"):
            written(**arguments)


class Sure(nn.Module):
    """Finds rectangles."""

    def forward(self, images, targets=None):
        return Drawn()(images)


def sure():
    detector = Fake()
    detector.network = Sure()
    return detector


def outlined(picture, box, label, scale):
    """Whether a box is drawn at its place: the middles of its lower and right sides are in the class's colour."""
    x1, y1, x2, y2 = (value * scale for value in box)
    places = [((x1 + x2) / 2, y2), (x2, (y1 + y2) / 2)]
    return all(np.abs(picture[round(y), round(x)].astype(int) - colour(label, 2)).max() < 60 for x, y in places)


def test_pictures_of_a_folder_with_all_kinds_of_files(tmp_path, capsys):
    source = tmp_path / "source" / "deep"
    source.mkdir(parents=True)
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[20:40, 30:60] = [2, 1, 200]  # a dog, score 200 / 255
    turned = Image.Exif()
    turned[0x0112] = 6  # to be seen a quarter turn clockwise: stored (x, y) is at (60 - y, x)
    Image.fromarray(pixels).save(source / "a.png")
    Image.fromarray(pixels).save(source / "b.png", exif=turned)
    Image.fromarray(np.dstack([pixels, pixels[..., 0] * 50])).save(source / "c.png")  # with alpha
    Image.fromarray(pixels[..., 0] * 0).save(source / "d.png")  # grey, with nothing on it
    (source / "e.png").write_bytes(b"broken")
    out = predict(sure(), tmp_path / "source", tmp_path)
    said = capsys.readouterr().out
    assert "could not read 1 of 5 images, which were skipped: deep/e.png" in said
    assert "3 detections on 4 images" in said
    boxes = {result["file_name"]: result["bbox"] for result in from_json(out, None)}
    assert boxes == {"deep/a.png": [30, 20, 30, 20], "deep/b.png": [20, 30, 20, 30], "deep/c.png": [30, 20, 30, 20]}
    pictures = {path.name: np.asarray(Image.open(path)) for path in (out / "images" / "deep").iterdir()}
    assert sorted(pictures) == ["a.png.png", "b.png.png", "c.png.png", "d.png.png"]
    for name, box in [("a", (30, 20, 60, 40)), ("b", (20, 30, 40, 60)), ("c", (30, 20, 60, 40))]:
        assert outlined(pictures[f"{name}.png.png"], box, 2, 320 / 60)
    assert not outlined(pictures["d.png.png"], (30, 20, 60, 40), 2, 320 / 60)


def test_text_files_of_one_name_are_refused(folder, tmp_path):
    shutil.copy(folder / "00.png", folder / "00.jpg")
    with pytest.raises(InputError, match=r"but 00\.jpg and 00\.png both have 00\.txt"):
        predict(sure(), folder, tmp_path, outputs=["yolo"])


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_from_python_the_files_are_those_of_the_command(folder, tmp_path, capsys):
    (folder / "50.png").write_bytes(b"broken")
    every = ("json", "csv", "yolo", "images")
    arguments = {"outputs": every, "score_threshold": {"dog": 0.6}, "classes": ["dog", "cat"]}
    expected = contents(predict(sure(), folder, tmp_path, **arguments))
    assert len(expected) == 2 + 2 * 13
    said = capsys.readouterr().out
    found = sure().predict(folder, skip_unreadable=True)
    write_predictions(sure(), folder, found, tmp_path / "python", **arguments)
    assert contents(tmp_path / "python") == expected
    assert capsys.readouterr().out == said.replace(str(tmp_path / "out"), str(tmp_path / "python"))
    write_predictions(sure(), [np.zeros((40, 50, 3), np.uint8)], [found[0]], tmp_path / "array", ["json", "images"])
    assert sorted(contents(tmp_path / "array")) == ["images/image 0.png", "predictions.json"]
    with pytest.raises(InputError, match=r"Expected images that have files of their own for images but 00\.png and 00\.png"):
        write_predictions(sure(), [folder / "00.png"] * 2, found[:2], tmp_path / "twice")


def test_a_name_that_is_not_utf_8_is_kept(tmp_path, capsys):
    name = os.fsdecode(b"caf\xe9")
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[20:40, 30:60] = [2, 1, 200]
    (tmp_path / "source").mkdir()
    try:
        Image.fromarray(pixels).save(tmp_path / "source" / f"{name}.png")
    except OSError:
        pytest.skip("needs a file system that takes any name")
    (tmp_path / "source" / f"{name}.jpg").write_bytes(b"broken")
    out = predict(sure(), tmp_path / "source", tmp_path, outputs=["json", "csv", "images"])
    assert "1 of 2 images, which were skipped: caf?.jpg" in capsys.readouterr().out
    assert [result["file_name"] for result in from_json(out, None)] == [f"{name}.png"]
    assert "caf\\udce9.png" in (out / "predictions.csv").read_text(encoding="utf-8")
    assert [path.name for path in (out / "images").iterdir()] == [f"{name}.png.png"]
    main(["visualize", "--predictions", str(out / "predictions.json"), "--images", str(tmp_path / "source"), "--out", str(tmp_path / "v")])


def test_without_a_datamodule_there_are_no_names(folder, tmp_path):
    with pytest.raises(InputError, match="Expected a DetectionDataModule to predict on"):
        trainer(PredictionWriter(str(tmp_path))).predict(sure(), DataLoader(Squares(folder)), return_predictions=False)


def test_a_video_becomes_a_video(tmp_path):
    frames = []
    for number in range(9):
        frame = np.zeros((330, 480, 3), np.uint8)
        frame[100:200, 30 * number : 30 * number + 100] = [2, 1, 240]
        frames.append(frame)
    path = write_video(tmp_path / "clip.avi", frames, rate=12, codec="MJPG")

    class Bright(nn.Module):  # a codec changes pixels a little
        def forward(self, images, targets=None):
            return [self.find(image) for image in images]

        def find(self, image):
            y, x = (image[2] > 120).nonzero().T
            box = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]).float()
            return {"boxes": box[None], "labels": torch.tensor([2]), "scores": torch.tensor([0.75])}

    detector = Fake()
    detector.network = Bright()
    out = predict(detector, path, tmp_path, outputs=["json", "yolo", "images"])
    results = from_json(out, None)
    assert [result["image_id"] for result in results] == list(range(9))
    for number, result in enumerate(results):
        assert result["bbox"] == pytest.approx([30 * number, 100, 100, 100], abs=4)
    assert sorted(file.name for file in (out / "labels").iterdir()) == [f"clip_{number:06}.txt" for number in range(9)]
    assert [file.name for file in (out / "images").iterdir()] == ["clip.mp4"]
    video = cv2.VideoCapture(str(out / "images" / "clip.mp4"))
    assert (video.get(cv2.CAP_PROP_FPS), video.get(cv2.CAP_PROP_FRAME_COUNT)) == (12, 9)
    for result in results:
        x, y, width, height = result["bbox"]
        read, frame = video.read()
        assert read
        assert frame.shape == (330, 480, 3)
        green, row, column = frame[..., 1].astype(int), round(y + height), round(x + width / 2)  # of the line alone, codec or not
        assert green[row - 2 : row + 2, column].max() > 100
        assert green[row - 15 : row - 5, column].max() < 50


@pytest.fixture
def real(shared, tmp_path, monkeypatch):
    """Four photographs and a file that is none in a folder, and a detector that was never trained."""
    source = tmp_path / "photographs"
    source.mkdir()
    for file in sorted((shared / "data" / "voc_mini" / "VOCdevkit" / "VOC2012" / "JPEGImages").iterdir())[:4]:
        shutil.copy(file, source)
    (source / "broken.jpg").write_bytes(b"broken")
    model = yaml.safe_load((CONFIGS / "quickstart.yaml").read_text())["model"]["init_args"]
    shape = {name: model[name] for name in ("size", "extra_channels", "scales", "aspect_ratios")}
    backbone = TorchvisionBackbone("resnet18", ["layer2", "layer3"])
    detector = SSD(CLASSES, category_ids=CATEGORY_IDS, backbone=backbone, score_threshold=0.99, **shape)
    saver = trainer()
    saver.strategy.connect(detector)
    saver.save_checkpoint(tmp_path / "random.ckpt")
    monkeypatch.chdir(tmp_path)

    def command(*args):
        monkeypatch.setattr(sys, "argv", ["lit-detect"])
        options = ["--trainer.logger", "false", "--trainer.accelerator", "cpu", "--data.num_workers", "1", "--data.batch_size", "3"]
        model = ["--config", str(CONFIGS / "quickstart.yaml"), "--ckpt_path", "random.ckpt", *options]
        main(["predict", *model, "--data.predict", "photographs", *args])
        return json.loads((tmp_path / "predictions" / "predictions.json").read_text())

    return command


def test_the_command(real, tmp_path, capsys):
    # the checkpoint was made with a threshold of .99: what is asked for now counts
    low = real("--model.init_args.score_threshold", "0.3", "--predictions.outputs", "[json,csv,yolo,images]")
    said = capsys.readouterr().out
    assert "(json, csv, yolo, images: " in said
    assert "could not read 1 of 5 images, which were skipped: broken.jpg" in said
    for folder in ("labels", "images"):
        assert len(list((tmp_path / "predictions" / folder).iterdir())) == 4
    scores = sorted(result["score"] for result in low)
    assert len({result["image_id"] for result in low}) == 4
    assert 0.3 < scores[0] < 0.99

    middle = scores[len(scores) // 2]
    arguments = ["--model.init_args.score_threshold", "0.3", "--predictions.outputs", "[json]"]
    assert real(*arguments, "--predictions.score_threshold", str(middle)) == [result for result in low if result["score"] >= middle]
    dogs = [result for result in low if result["category_name"] == "dog" and result["score"] >= middle]
    assert real(*arguments, "--predictions.score_threshold", f"{{dog: {middle}}}", "--predictions.classes", "[dog]") == dogs

    tiled = real(*arguments, "--tiles.size", "200", "--tiles.overlap", "0.2")
    detector = SSD.load_from_checkpoint("random.ckpt", score_threshold=0.3, map_location="cpu")
    found = detector.predict("photographs", tile=200, overlap=0.2, skip_unreadable=True, batch_size=3)
    assert [result["score"] for result in tiled] == pytest.approx(torch.cat([one["scores"] for one in found]).tolist(), abs=1e-5)
    assert len(tiled) > len(low)


def test_what_the_user_can_mend(real):
    for args, message in [
        (["--predictions.classes", "[cow]"], "Expected classes of the detector, cat, dog, but got cow"),
        (["--data.predict", "no.mp4"], "Expected a video but could not read no.mp4: no such file"),
        (["--tiles.size", "0"], "Expected tiles of a side of 1 or more"),
    ]:
        with pytest.raises(SystemExit) as exit:
            real(*args)
        assert exit.value.code.startswith(f"lit-detect: error: {message}")


def test_a_table_has_no_formulas(tmp_path):
    names = ["=HYPERLINK(1).png", "+1.png", "-1.png", "@a.png", "a=1.png"]
    for name in names:
        Image.new("RGB", (40, 30)).save(tmp_path / name)
    detector = SSD(["=1+2", "b"], size=96, backbone=TinyBackbone(), scales="linear", extra_channels=[16])
    found = {"boxes": torch.tensor([[1.0, 2, 11, 12]]), "labels": torch.tensor([1]), "scores": torch.tensor([0.5])}
    write_predictions(detector, str(tmp_path), [found] * 5, tmp_path / "out", outputs=["json", "csv"])
    rows = list(csv.DictReader((tmp_path / "out" / "predictions.csv").open()))
    assert sorted(row["file_name"] for row in rows) == sorted(["'=HYPERLINK(1).png", "'+1.png", "'-1.png", "'@a.png", "a=1.png"])
    assert {row["category_name"] for row in rows} == {"'=1+2"}
    assert {one["file_name"] for one in json.loads((tmp_path / "out" / "predictions.json").read_text())} == set(names)


def test_a_name_without_room_for_a_suffix_is_refused_before_anything_is_done(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / f"{'a' * 251}.png")
    detector = SSD(["a", "b"], size=96, backbone=TinyBackbone(), scales="linear", extra_channels=[16])
    with pytest.raises(InputError, match="leave room for a suffix"):
        write_predictions(detector, str(tmp_path), [{}], tmp_path / "out", outputs=["images"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../out", "/out", "a/../../out", "link/out"])
@pytest.mark.parametrize("output", ["images", "yolo"])
def test_nothing_is_written_out_of_the_folder(tmp_path, name, output):
    class Named(Pixels):
        def file_name(self, index):
            return name.replace("/out", f"{tmp_path}/out") if name == "/out" else name

    target = tmp_path / "out" / {"images": "images", "yolo": "labels"}[output]
    target.mkdir(parents=True)
    (target / "link").symlink_to(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    detector = SSD(["a", "b"], size=96, backbone=TinyBackbone(), scales="linear", extra_channels=[16])
    found = {"boxes": torch.tensor([[1.0, 2, 11, 12]]), "labels": torch.tensor([1]), "scores": torch.tensor([0.5])}
    with pytest.raises(InputError, match="leads out of it"):
        write_predictions(detector, Named([np.zeros((30, 40, 3), np.uint8)]), [found], tmp_path / "out", outputs=[output])
    assert sorted(tmp_path.rglob("*")) == before
