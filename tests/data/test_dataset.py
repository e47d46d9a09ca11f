import albumentations as A
import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler

from lit_detect import COCODetection, Concatenation, DetectionDataset, InputError, VOCDetection
from lit_detect.data.feed import EpochSampler, Feed
from lit_detect.data.images import read_image

CLASSES = ["cat", "dog", "horse"]
AUGMENT = [A.HorizontalFlip(p=0.5), A.ColorJitter(p=1), A.RandomSizedBBoxSafeCrop(40, 50, p=0.5)]


@pytest.fixture
def dataset(voc_root):
    return VOCDetection(str(voc_root), "train", CLASSES)


def draw(samples, epoch, workers=0, ranks=1, rank=0, seed=0):
    """What one rank's loader gives in an epoch: image ids and sums of pixels."""
    sampler = EpochSampler(samples, ranks, rank, seed=seed)
    sampler.set_epoch(epoch)
    loader = DataLoader(samples, batch_size=None, sampler=sampler, num_workers=workers)
    return [(int(target["image_id"]), int(image.sum()), target["boxes"].tolist()) for image, target in loader]


def test_a_sample_is_a_function_of_seed_epoch_and_index(dataset):
    first = draw(Feed(dataset, AUGMENT, seed=1), epoch=0)
    assert draw(Feed(dataset, AUGMENT, seed=1), epoch=0) == first
    assert draw(Feed(dataset, AUGMENT, seed=1), epoch=0, workers=2) == first
    ranks = [draw(Feed(dataset, AUGMENT, seed=1), epoch=0, ranks=2, rank=rank) for rank in (0, 1)]
    assert {sample[:2] for rank in ranks for sample in rank} == {sample[:2] for sample in first}


def test_epochs_and_seeds_and_images_draw_different_augmentations(dataset):
    same_image = [{i: s for i, s, _ in draw(Feed(dataset, AUGMENT, seed=seed), epoch, 2)} for seed, epoch in [(0, 0), (0, 1), (1, 0)]]
    for a, b in [(0, 1), (0, 2), (1, 2)]:
        assert all(same_image[a][index] != same_image[b][index] for index in range(5))
    one_image = Concatenation([dataset] * 6)  # the same pixels under other indices
    sums = {Feed(one_image, AUGMENT)[index][0].sum().item() for index in range(0, 30, 5)}
    assert len(sums) == 6


def test_persistent_workers_learn_of_the_new_epoch(dataset):
    samples = Feed(dataset, AUGMENT)
    sampler = EpochSampler(samples, 1, 0)
    loader = DataLoader(samples, batch_size=None, sampler=sampler, num_workers=2, persistent_workers=True)
    epochs = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        epochs.append({int(target["image_id"]): int(image.sum()) for image, target in loader})
    assert all(epochs[0][image] != epochs[1][image] for image in epochs[0])
    assert epochs[1] == {image: pixels for image, pixels, _ in draw(samples, epoch=1)}


def test_every_field_follows_its_box(coco_files):
    dataset = COCODetection(*map(str, coco_files))
    keep_left = A.Crop(0, 0, 12, 60)  # cuts the horse to a sliver of 2 pixels
    _, target = Feed(dataset, [keep_left])[0]
    assert target["boxes"].tolist() == [[10, 10, 12, 40], [0, 0, 12, 50]]
    _, target = Feed(dataset, [A.Crop(0, 0, 10, 60)])[0]  # and off
    assert target["boxes"].tolist() == [[0, 0, 10, 50]]
    assert {name: target[name].tolist() for name in ("labels", "area", "iscrowd", "image_id")} == {
        "labels": [1], "area": [3000], "iscrowd": [1], "image_id": 7,
    }  # fmt: skip


def test_slivers_are_left_out_from_min_visibility_on(coco_files):
    dataset = COCODetection(*map(str, coco_files))
    crop = [A.Crop(0, 0, 12, 60)]  # a tenth of the horse remains, and a sixth of the cats
    assert [len(Feed(dataset, crop, min_visibility=least)[0][1]["labels"]) for least in (0, 0.09, 0.15, 0.2)] == [2, 2, 1, 0]
    empty = Feed(dataset, crop, min_visibility=0.5)[0][1]
    assert {name: tuple(value.shape) for name, value in empty.items()} == {
        "boxes": (0, 4), "labels": (0,), "area": (0,), "iscrowd": (0,), "image_id": (),
    }  # fmt: skip


def test_crowds_are_not_trained_on(coco_files):
    dataset = COCODetection(*map(str, coco_files))
    assert Feed(dataset)[0][1]["iscrowd"].tolist() == [0, 1]
    learnt = Feed(dataset, train=True)[0][1]
    assert "iscrowd" not in learnt  # so that a step need not look for any
    assert [len(learnt[name]) for name in ("boxes", "labels", "area")] == [1, 1, 1]


@pytest.mark.parametrize("transforms", [[], [A.HorizontalFlip(p=1.0)]])
def test_types_and_shapes_with_and_without_boxes(dataset, transforms):
    samples = Feed(dataset, transforms)
    for index in (0, 4):
        image, target = samples[index]
        assert (image.dtype, image.shape) == (torch.uint8, (3, 60, 80))
        assert (target["boxes"].dtype, target["labels"].dtype) == (torch.float32, torch.int64)
        assert target["boxes"].shape == (len(target["labels"]), 4)
    assert samples[4][1]["boxes"].shape == (0, 4)


class Circles(DetectionDataset):
    """A data set of somebody else's."""

    classes = ("red", "blue")

    def __init__(self, box, label):
        self.box, self.label = box, label

    def __len__(self):
        return 1

    def load(self, index):
        return np.zeros((20, 30, 3), np.uint8), {"boxes": [self.box], "labels": [self.label], "image_id": index}


def test_a_data_set_is_three_methods():
    _, target = Feed(Circles([-5, 2, 40, 9], 2))[0]
    assert target["boxes"].tolist() == [[0, 2, 30, 9]]
    assert target["boxes"].dtype == torch.float32


@pytest.mark.parametrize(
    ("box", "label"), [([5, 5, 5, 9], 1), ([40, 5, 50, 9], 1), ([1, 1, 9, 9], 0), ([1, 1, 9, 9], 3), ([1, 1, np.nan, 9], 1)]
)
def test_what_a_network_cannot_learn_from_is_named(box, label):
    with pytest.raises(InputError, match=r"inside the 30 x 20 pixels of Circles\[0\], and labels 1 to 2, but got .* with label"):
        Feed(Circles(box, label))[0]


@pytest.mark.parametrize("transform", [A.Normalize(), A.ToFloat()])
def test_a_transform_that_leaves_no_uint8_rgb_is_refused(dataset, transform):
    with pytest.raises(InputError, match=r"Expected image0\.jpg as uint8 RGB"):
        Feed(dataset, [transform])[0]


def test_concatenation_renumbers_images_and_wants_one_list_of_classes(dataset, voc_root):
    both = Concatenation([dataset, VOCDetection(str(voc_root), "val", CLASSES)])
    assert len(both) == 7
    assert [both.load(index)[1]["image_id"] for index in (0, 5, 6)] == [0, 5, 6]
    assert both.file_name(6) == "image1.jpg"
    with pytest.raises(IndexError):
        both.load(7)
    with pytest.raises(InputError, match="data sets of the same classes"):
        Concatenation([dataset, VOCDetection(str(voc_root), "val")]).classes  # noqa: B018


@pytest.mark.parametrize(
    ("name", "pixels"),
    [
        ("grey.png", np.full((20, 30), 100, np.uint8)),
        ("alpha.png", np.full((20, 30, 4), 100, np.uint8)),
        ("deep.png", np.full((20, 30, 3), 100 * 256, np.uint16)),
        ("deep_grey.tif", np.full((20, 30), 100 * 256, np.uint16)),
        ("colour.webp", np.full((20, 30, 3), 100, np.uint8)),
    ],
)
def test_any_kind_of_image_is_read_as_8_bit_rgb(tmp_path, name, pixels):
    cv2.imwrite(str(tmp_path / name), pixels)
    image = read_image(tmp_path / name)
    assert (image.shape, image.dtype) == ((20, 30, 3), np.uint8)
    assert np.abs(image.astype(int) - 100).max() <= 1


def test_channels_are_red_green_blue(tmp_path):
    cv2.imwrite(str(tmp_path / "red.png"), np.full((4, 4, 3), (0, 0, 255), np.uint8))  # OpenCV writes BGR
    assert read_image(tmp_path / "red.png")[0, 0].tolist() == [255, 0, 0]


def test_exif_rotation_is_applied_only_where_asked(tmp_path):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (30, 20)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (20, 30, 3)
    assert read_image(tmp_path / "turned.jpg", rotate=True).shape == (30, 20, 3)


HALF_A_JPEG = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))[1].tobytes()[:2000]


@pytest.mark.parametrize("content", [b"", b"not an image", HALF_A_JPEG, None])
def test_an_unreadable_image_is_named(tmp_path, content):
    path = tmp_path / "bad.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"Expected an image but .*bad\.jpg"):
        read_image(path)


@pytest.fixture
def wide_and_tall(voc_root):
    """Twelve images of 80 x 60 and twelve of 60 x 80."""
    names = [f"photo{number}" for number in range(24)]
    for number, name in enumerate(names):
        width, height = (80, 60) if number % 2 else (60, 80)
        cv2.imwrite(str(voc_root / "JPEGImages" / f"{name}.jpg"), np.full((height, width, 3), number, np.uint8))
        size = f"<size><width>{width}</width><height>{height}</height></size>"
        (voc_root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}</annotation>")
    (voc_root / "ImageSets" / "Main" / "photos.txt").write_text("\n".join(names))
    return Feed(VOCDetection(str(voc_root), "photos", CLASSES))


@pytest.mark.parametrize(("ranks", "batch_size"), [(1, 4), (2, 3), (3, 2)])
def test_batches_of_all_ranks_have_one_aspect_ratio(wide_and_tall, ranks, batch_size):
    groups = wide_and_tall.aspect_groups(3)
    assert len(set(groups)) == 2
    samplers = [EpochSampler(wide_and_tall, ranks, rank, 0, groups, batch_size) for rank in range(ranks)]
    epochs = []
    for epoch in (0, 1):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        orders = [[index for _, index in sampler] for sampler in samplers]
        assert sorted(index for order in orders for index in order) == list(range(24))
        for start in range(0, 24 // ranks, batch_size):
            assert len({groups[index] for order in orders for index in order[start : start + batch_size]}) == 1
        epochs.append(orders)
    assert epochs[0] != epochs[1]


def test_aspect_ratios_are_torchvisions_bins(wide_and_tall):
    from bisect import bisect_right

    bins = (2 ** np.linspace(-1, 1, 7)).tolist()  # torchvision/references/detection/group_by_aspect_ratio.py, k = 3
    assert wide_and_tall.aspect_groups(3) == [bisect_right(bins, 80 / 60 if index % 2 else 60 / 80) for index in range(24)]


def test_what_is_left_over_is_not_lost(wide_and_tall):
    groups = wide_and_tall.aspect_groups(3)
    orders = [[index for _, index in EpochSampler(wide_and_tall, 5, rank, 0, groups, 2)] for rank in range(5)]
    assert [len(order) for order in orders] == [5] * 5
    assert {index for order in orders for index in order} == set(range(24))


def test_more_ranks_than_images_all_get_as_many(wide_and_tall):
    feed = Feed(wide_and_tall.dataset, indices=[0, 1, 2])
    assert [len(list(EpochSampler(feed, 8, rank, 0, [0, 1, 0], 2))) for rank in range(8)] == [1] * 8


def test_mosaic_of_data_sets_with_other_fields(voc_root, coco_files):
    feed = Feed(Concatenation([VOCDetection(str(voc_root), "train", CLASSES), COCODetection(*map(str, coco_files))]), mosaic=1.0)
    for epoch in range(20):
        target = feed[epoch, epoch % 7][1]
        assert target.keys() >= {"boxes", "labels", "area", "image_id"}
        assert len({len(value) for value in target.values() if value.ndim}) == 1


def test_mosaic_puts_four_images_and_their_boxes_together(voc_root):
    colours = []
    for number in range(5):
        colour = 40 * number + 20
        image = np.full((60, 80, 3), 250, np.uint8)
        if number < 4:
            image[20:50, 10 + number : 40] = colour
            colours.append(colour)
        cv2.imwrite(str(voc_root / "JPEGImages" / f"image{number}.png"), image)
        (voc_root / "JPEGImages" / f"image{number}.jpg").unlink()
    feed = Feed(VOCDetection(str(voc_root), "train", CLASSES), mosaic=1.0, mosaic_size=200, seed=3)
    seen = 0
    for epoch in range(20):
        image, target = feed[epoch, epoch % 5]
        assert image.shape == (3, 200, 200)
        assert int(target["image_id"]) == epoch % 5
        assert {len(target[name]) for name in ("boxes", "labels", "difficult", "area")} == {len(target["boxes"])}
        for (left, top, right, bottom), label in zip(target["boxes"].round().int().tolist(), target["labels"], strict=True):
            patch = image[0, top + 3 : bottom - 3, left + 3 : right - 3]
            if min(right - left, bottom - top) >= 12:
                colour = int(patch.float().median())
                assert patch.float().std() < 4
                assert min(abs(colour - colours[number]) for number in range(4) if number % 3 == label - 1) <= 2
                seen += 1
    assert seen > 20
    again = feed[4, 2]
    assert torch.equal(again[0], feed[4, 2][0])
    assert not torch.equal(again[0], feed[5, 2][0])


def test_a_window_is_drawn_before_the_image_is_decoded(voc_root, monkeypatch):
    """What is decoded at a half is what would come of the whole image, but for the resampling."""
    from lit_detect.data import images
    from lit_detect.data.presets import preset

    smooth = cv2.resize(np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8), (640, 480), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(voc_root / "JPEGImages" / "image0.jpg"), smooth, [cv2.IMWRITE_JPEG_QUALITY, 98])
    path = voc_root / "Annotations" / "image0.xml"
    path.write_text(path.read_text().replace("<width>80</width><height>60</height>", "<width>640</width><height>480</height>"))
    feed = Feed(VOCDetection(str(voc_root), "val", CLASSES), preset("ssdlite", 150, zoom=True))
    reductions = []
    real = images.read_image

    def read(path, rotate=False, reduction=1):
        reductions.append(reduction)
        return real(path, rotate, reduction)

    monkeypatch.setattr(images, "read_image", read)
    small = [feed[epoch, 0] for epoch in range(30)]
    assert set(reductions) == {1, 2, 4, 8}
    monkeypatch.setitem(images.REDUCED, 2, images.REDUCED[1])
    monkeypatch.setattr(images.ImageFile, "from_header", classmethod(lambda cls, p, h, r: cls(p, h.width, h.height, (1,), r)))
    whole = Feed(VOCDetection(str(voc_root), "val", CLASSES), preset("ssdlite", 150, zoom=True))
    for epoch, (image, target) in enumerate(small):
        expected, boxes = whole[epoch, 0]
        assert torch.allclose(target["boxes"], boxes["boxes"], atol=1e-3)
        assert (image.float() - expected.float()).abs().mean() < 2


def test_a_loop_over_a_feed_ends(dataset):
    assert [int(target["image_id"]) for _, target in Feed(dataset)] == [0, 1, 2, 3, 4]


def test_without_groups_the_order_is_that_of_torchs_sampler(dataset):
    feed = Feed(dataset)
    for ranks in (1, 2, 3, 8):
        for rank in range(ranks):
            ours, torchs = EpochSampler(feed, ranks, rank, seed=4), DistributedSampler(feed, ranks, rank, seed=4)
            for epoch in (0, 5):
                ours.set_epoch(epoch)
                torchs.set_epoch(epoch)
                assert [index for _, index in ours] == list(torchs)


def test_of_a_mosaic_the_image_that_cannot_be_read_is_named(voc_root):
    dataset = VOCDetection(str(voc_root), "train", CLASSES)
    feed = Feed(dataset, [A.NoOp()], train=True, mosaic=0.15, skip_unreadable=True)
    dataset.read_annotations()
    (voc_root / "JPEGImages" / "image3.jpg").write_bytes(b"damaged")
    ids = {int(feed[epoch, 1][1]["image_id"]) for epoch in range(60)}
    assert feed.unreadable.nonzero().flatten().tolist() == [3]
    assert 3 not in ids
    assert [feed.image_at(position) for position in range(5)] == [0, 1, 2, 4, 4]


class Mislabelled(DetectionDataset):
    def __init__(self, **target):
        self.classes = ["cat"]
        self.target = {"boxes": np.array([[1.0, 1, 5, 5], [2, 2, 6, 6]]), "labels": np.array([1, 1]), **target}

    def __len__(self):
        return 1

    def load(self, index):
        return np.zeros((8, 8, 3), np.uint8), self.target


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"labels": np.array([1])}, r"Expected labels for 2 boxes of Mislabelled\[0\] but got 1"),
        ({"labels": np.array([1, 0])}, r"labels 1 to 1, but got \[2.0, 2.0, 6.0, 6.0\] with label 0"),
        ({"area": np.array([16.0])}, "Expected area for 2 boxes"),
        ({"iscrowd": 0}, "Expected iscrowd for 2 boxes"),
    ],
)
def test_a_wrong_target_is_an_error_and_not_an_image_that_cannot_be_read(wrong, message):
    with pytest.raises(InputError, match=message):
        Feed(Mislabelled(**wrong), train=True, skip_unreadable=True)[0]
