"""`detector.predict`: every kind of images gives what the network gives for the same pixels."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from lit_detect import COCODetection, Concatenation, DetectionDataset, ImageFolder, InputError, Tiled
from lit_detect.data.images import read_image
from lit_detect.predict import thresholds
from tests.conftest import DETECTORS, write_image, write_video


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    return DETECTORS["ssd"](score_threshold=0.2, detections_per_image=20)


def same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert set(one) == {"boxes", "labels", "scores"}
        for name in one:
            torch.testing.assert_close(one[name], other[name])


def looked_at(detector, images):
    detector.eval()
    with torch.no_grad():
        return [detector([torch.from_numpy(image.transpose(2, 0, 1).copy())])[0] for image in images]


def test_every_kind_of_image_gives_the_same(detector, tmp_path):
    rng = np.random.default_rng(1)
    arrays = [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in [(60, 80), (50, 50), (60, 80)]]
    (tmp_path / "deep").mkdir()
    paths = [tmp_path / "a.png", tmp_path / "b.png", tmp_path / "deep" / "c.png"]
    for path, image in zip(paths, arrays, strict=True):
        Image.fromarray(image).save(path)
    tensors = [torch.from_numpy(image).permute(2, 0, 1) for image in arrays]
    expected = looked_at(detector, arrays)
    assert len(expected[0]["boxes"])
    same(detector.predict(arrays), expected)
    same(detector.predict(arrays[0]), expected[:1])
    same(detector.predict(tensors, batch_size=2), expected)
    same(detector.predict(torch.stack([tensors[0], tensors[2]])), [expected[0], expected[2]])
    same(detector.predict(np.stack([arrays[0], arrays[2]])), [expected[0], expected[2]])
    same(detector.predict([Image.fromarray(image) for image in arrays]), expected)
    same(detector.predict(tmp_path), expected)
    same(detector.predict(str(paths[1])), expected[1:2])
    same(detector.predict(ImageFolder(str(tmp_path)), num_workers=1), expected)
    same(detector.predict([paths[2], arrays[1], str(tmp_path), tensors[0]]), [expected[2], expected[1], *expected, expected[0]])
    assert detector.predict([]) == []


def test_pictures_of_other_modes_are_read_as_files_are(detector, tmp_path):
    rng = np.random.default_rng(2)
    colours = rng.integers(0, 256, (40, 60, 4), dtype=np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    pictures = {
        "grey.png": (Image.fromarray(colours[..., 0]), {}),
        "rgba.png": (Image.fromarray(colours), {}),
        "palette.png": (Image.fromarray(colours[..., :3]).quantize(16), {}),
        "turned.png": (Image.fromarray(colours[..., :3]), {"exif": turned}),
    }
    for name, (picture, options) in pictures.items():
        picture.save(tmp_path / name, **options)
        expected = looked_at(detector, [read_image(tmp_path / name, rotate=True)])
        same(detector.predict(tmp_path / name), expected)
        same(detector.predict(Image.open(tmp_path / name)), expected)
    boxes = detector.predict(tmp_path / "turned.png")[0]["boxes"]
    assert boxes[:, 2].max() <= 40
    assert 40 < boxes[:, 3].max() <= 60


def test_frames_of_a_video(detector, tmp_path):
    frames = [np.full((48, 64, 3), 10 * n, np.uint8) for n in range(5)]
    path = write_video(tmp_path / "clip.mp4", frames)
    found = detector.predict(path, batch_size=2)
    assert len(found) == 5
    same(detector.predict([path, frames[0]], num_workers=2), [*found, *looked_at(detector, frames[:1])])


def test_a_data_sets_own_ids_do_not_matter(detector, coco_files):
    folder, annotations = coco_files  # of ids 7 and 3
    Image.new("RGB", (80, 60), "red").save(folder / "a.jpg")
    dataset = COCODetection(str(folder), str(annotations))
    expected = detector.predict([folder / dataset.file_name(index) for index in range(2)])
    assert expected[0]["scores"].tolist() != expected[1]["scores"].tolist()
    same(detector.predict(dataset), expected)
    same(detector.predict([dataset]), expected)


def test_the_mode_of_every_part_is_as_before(detector):
    detector.train()
    detector.backbone.stem.eval()
    before = [part.training for part in detector.modules()]
    found = detector.predict(np.zeros((40, 40, 3), np.uint8))[0]
    assert [part.training for part in detector.modules()] == before
    assert found["boxes"].is_inference()
    same([found], looked_at(detector, [np.zeros((40, 40, 3), np.uint8)]))
    detector.train()
    with pytest.raises(InputError):
        detector.predict(["no.jpg"])
    assert detector.training


def test_the_threshold_and_tiles(detector):
    image = np.random.default_rng(3).integers(0, 256, (150, 130, 3), dtype=np.uint8)
    everything = looked_at(detector, [image])[0]
    least = float(everything["scores"].median())
    found = detector.predict(image, score_threshold=least, progress=True)[0]
    same([found], [{name: value[everything["scores"] >= least] for name, value in everything.items()}])
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    with torch.no_grad():
        for whole in (True, False):
            expected = Tiled(detector.network.eval(), 96, 0.3, whole)(tensor[None])
            same(detector.predict(image, tile=96, overlap=0.3, whole=whole), expected)
    assert isinstance(detector.network, type(DETECTORS["ssd"]().network))  # tiles are for this call alone


def test_thresholds_by_class_and_some_classes(detector):
    image = np.random.default_rng(3).integers(0, 256, (150, 130, 3), dtype=np.uint8)
    everything = looked_at(detector, [image])[0]
    label, least = int(everything["labels"][0]), float(everything["scores"][0])
    name = detector.classes[label - 1]
    kept = (everything["labels"] != label) | (everything["scores"] >= least)
    assert 0 < kept.sum() < len(kept)
    same(detector.predict(image, score_threshold={name: least}), [{key: value[kept] for key, value in everything.items()}])
    of_class = everything["labels"] == label
    same(detector.predict(image, classes=[name]), [{key: value[of_class] for key, value in everything.items()}])
    with pytest.raises(InputError, match="Expected classes of the detector, cat, dog, horse, but got cow"):
        detector.predict(image, classes=["cow"])


def test_a_picture_that_is_cut_off_is_named_or_skipped(detector, tmp_path):
    write_image(tmp_path / "a.png", 40, 60)
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:1000])
    with pytest.raises(InputError, match=r"b\.png cannot be decoded"):
        detector.predict(Image.open(tmp_path / "b.png"))
    found = detector.predict([Image.open(tmp_path / name) for name in ("b.png", "a.png")], skip_unreadable=True)
    same(found[1:], detector.predict(tmp_path / "a.png"))
    assert len(found[0]["scores"]) == 0


def test_what_cannot_be_read_is_named(detector, tmp_path, caplog):
    write_image(tmp_path / "a.jpg", 40, 60)
    write_image(tmp_path / "c.jpg", 40, 60)
    (tmp_path / "b.jpg").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"b\.jpg: not an image"):
        detector.predict(tmp_path)
    found = detector.predict(tmp_path, skip_unreadable=True)
    assert "b.jpg" in caplog.text
    same([found[0], found[2]], detector.predict([tmp_path / "a.jpg", tmp_path / "c.jpg"]))
    assert (found[1]["boxes"].shape, found[1]["labels"].shape, found[1]["labels"].dtype) == ((0, 4), (0,), torch.int64)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"Expected images to predict on in .*empty but found none"):
        detector.predict(tmp_path / "empty")
    with pytest.raises(InputError, match=r"nowhere"):
        detector.predict("nowhere")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((40, 40), np.uint8), r"ndarray uint8 \(40, 40\)"),
        (np.zeros((40, 40, 3), np.float32), r"ndarray float32 \(40, 40, 3\)"),
        (torch.zeros(40, 40, 3, dtype=torch.uint8), r"Tensor torch.uint8 \(40, 40, 3\)"),
        ([Image.new("I;16", (40, 40))], "8 bits a colour to predict on but got a PIL image of mode I;16"),
        ([{"image": 1}], r"but got dict\."),
        (7, r"a sequence of them to predict on but got int\."),
    ],
)
def test_what_is_no_image_is_refused(detector, images, message):
    with pytest.raises(InputError, match=message):
        detector.predict(images)


def test_a_list_of_data_sets_is_one(detector, tmp_path):
    write_image(tmp_path / "a.jpg", 40, 60)
    folder = ImageFolder(str(tmp_path))
    same(detector.predict([folder, folder]), detector.predict(Concatenation([folder, folder])))


class Undecided(DetectionDataset):
    classes = ("unicorn",)

    def __len__(self):
        return 1

    def load(self, index):
        return np.full((50, 60, 3), 7, np.uint8), {"boxes": np.array([[9.0, 9, 1, 1]]), "labels": np.array([5]), "image_id": 3}


def test_of_a_data_set_the_images_alone_matter(detector):
    image = Undecided().load(0)[0]
    same(detector.predict([Undecided(), image]), looked_at(detector, [image, image]))


@pytest.mark.parametrize("threshold", [np.float32(0.25), torch.tensor(0.25), 0.25])
def test_any_number_is_a_threshold(threshold):
    assert thresholds(["cat"], threshold, default=0.0).tolist() == [0.25]
    assert thresholds(["cat"], None, default=0.5).tolist() == [0.5]


def test_the_documented_way_to_detect_with_torchvisions_weights(monkeypatch, tmp_path):
    """The page's own lines, with random weights in place of the download."""
    page = Path(__file__).parents[1] / "docs" / "predictions.md"
    code = re.search(r"```py\n(.*?)```", page.read_text(), re.DOTALL)[1]
    weights = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91).state_dict()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda url, path, **_: torch.save(weights, path))
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "street.jpg", 60, 80)
    found = {}
    exec(code, found)  # as its reader does
    assert len(found["classes"]) == 80
    assert len(found["detections"]) == 1
    assert (tmp_path / "predictions" / "predictions.json").is_file()
