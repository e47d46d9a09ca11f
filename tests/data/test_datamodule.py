import copy
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from lightning.fabric.utilities import move_data_to_device

from lit_detect import COCODetection, DetectionDataModule, InputError, VOCDetection
from lit_detect.data.batches import TargetList, collate
from lit_detect.data.feed import Feed

CLASSES = ["cat", "dog", "horse"]


@pytest.fixture
def train(voc_root):
    return VOCDetection(str(voc_root), "train", CLASSES)


def first_batch(data, stage="fit"):
    data.setup(stage)
    return next(iter(data.train_dataloader() if stage == "fit" else data.val_dataloader()))


def test_images_of_one_size_are_stacked_and_others_listed():
    target = {"boxes": torch.zeros(0, 4)}
    same = [(torch.zeros(3, 4, 5), target)] * 2
    assert collate(same)[0].shape == (2, 3, 4, 5)
    images, targets = collate([*same, None, (torch.zeros(3, 5, 4), target)])
    assert ([tuple(image.shape) for image in images], len(targets)) == ([(3, 4, 5), (3, 4, 5), (3, 5, 4)], 3)
    assert collate([None]) == ([], [])


@pytest.mark.parametrize("copied", [lambda batch: ForkingPickler.loads(ForkingPickler.dumps(batch)), copy.copy])
def test_targets_are_the_same_after_a_worker_has_sent_them(train, copied):
    """As arrays by value, not as files in shared memory."""
    targets = collate([Feed(train)[index] for index in range(5)])[1]
    received = copied(targets)
    assert type(received) is type(targets)
    for one, other in zip(targets, received, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert torch.equal(one[name], other[name])
            assert (one[name].dtype, one[name].shape) == (other[name].dtype, other[name].shape)
            assert not other[name].is_shared()


def test_lists_of_data_sets_are_one(train, voc_root):
    data = DetectionDataModule(train=[train, VOCDetection(str(voc_root), "val", CLASSES)], num_workers=0, batch_size=7)
    images, targets = first_batch(data)
    assert images.shape == (7, 3, 60, 80)
    assert sorted(int(target["image_id"]) for target in targets) == list(range(7))


def test_images_without_boxes_are_negatives_unless_switched_off(train):
    for keep, count in [(True, 5), (False, 4)]:
        data = DetectionDataModule(train=train, num_workers=0, batch_size=5, keep_empty=keep)
        data.setup("fit")
        assert len(data.feeds["train"]) == count
        assert len(first_batch(data)[1]) == count


def test_classes_come_from_the_data(train, coco_files):
    assert DetectionDataModule(train=train).classes == CLASSES
    coco = DetectionDataModule(train=train, val=COCODetection(*map(str, coco_files)))
    assert (coco.classes, coco.category_ids) == (CLASSES, [3, 7, 90])
    coco.setup("fit")  # a VOC and a COCO set of the same classes go together


def test_a_wrong_annotation_is_found_before_training_starts(train, voc_root):
    path = voc_root / "Annotations" / "image3.xml"
    path.write_text(path.read_text().replace("<xmin>14</xmin>", "<xmin>x</xmin>"))
    for data in (DetectionDataModule(train=train), DetectionDataModule(train=[train])):
        with pytest.raises(InputError, match=r"image3\.xml"):
            data.setup("fit")


def test_a_train_set_smaller_than_a_batch_still_trains(train):
    assert len(first_batch(DetectionDataModule(train=train, num_workers=0, batch_size=64))[1]) == 5


@pytest.mark.parametrize(
    ("arguments", "stage", "message"),
    [
        ({}, "fit", r"Expected data\.train, which this command reads"),
        ({"test": None}, "test", r"Expected data\.test"),
        ({"classes": ["cow"]}, "validate", r"Expected data\.val with the classes \['cow'\]"),
    ],
)
def test_what_does_not_fit_is_named(train, arguments, stage, message):
    data = DetectionDataModule(val=train, **arguments)
    with pytest.raises(InputError, match=message):
        data.setup(stage)


def test_a_folder_goes_before_what_is_given(train, voc_root):
    data = DetectionDataModule(train=train, val=train, test=train, folder=str(voc_root), on_invalid="drop")
    data.setup("fit")
    for name, count in (("train", 5), ("val", 2)):
        found = data.splits[name]
        assert (found.image_set, found.on_invalid, len(data.feeds[name])) == (name, "drop", count)
    with pytest.raises(InputError, match=r"Expected data\.test, .* not set, and .*VOC has no split of this name"):
        data.setup("test")
    with pytest.raises(InputError, match=r"Expected data\.folder, whose readers data\.on_invalid is for, but got none"):
        DetectionDataModule(train=train, on_invalid="drop")


def test_a_folder_is_not_looked_for_to_predict(voc_root):
    data = DetectionDataModule(folder="nowhere", predict=str(voc_root / "JPEGImages"), classes=["cat"])
    data.setup("predict")
    assert (data.classes, len(data.feeds["predict"])) == (["cat"], 5)
    with pytest.raises(InputError, match="there is no folder nowhere"):
        data.setup("fit")


def test_no_classes_at_all_is_named():
    with pytest.raises(InputError, match="Expected data with classes"):
        DetectionDataModule().classes  # noqa: B018


def test_an_empty_split_is_named(train, voc_root):
    (voc_root / "ImageSets" / "Main" / "none.txt").write_text("\n")
    data = DetectionDataModule(train=VOCDetection(str(voc_root), "none", CLASSES), val=train)
    with pytest.raises(InputError, match=r"Expected images in data\.train but .*'none'\) has none"):
        data.setup("fit")
    (voc_root / "ImageSets" / "Main" / "none.txt").write_text("image4\n")
    data = DetectionDataModule(train=VOCDetection(str(voc_root), "none", CLASSES), keep_empty=False)
    with pytest.raises(InputError, match="Expected images with boxes"):
        data.setup("fit")


def test_predict_refuses_an_image_of_absurd_size(voc_root, caplog):
    (voc_root / "JPEGImages" / "image1.jpg").write_bytes(b"P6 60000 60000 255\n")
    data = DetectionDataModule(predict=str(voc_root / "JPEGImages"), num_workers=0, batch_size=5)
    data.setup("predict")
    assert len(next(iter(data.predict_dataloader()))[1]) == 4
    assert "an image of at most" in caplog.text


def test_predict_reads_a_folder_and_skips_what_it_cannot_read(voc_root, caplog):
    (voc_root / "JPEGImages" / "image1.jpg").write_bytes(b"broken")
    data = DetectionDataModule(predict=str(voc_root / "JPEGImages"), num_workers=0, batch_size=5)
    data.setup("predict")
    _images, targets = next(iter(data.predict_dataloader()))
    assert [int(target["image_id"]) for target in targets] == [0, 2, 3, 4]
    assert "image1.jpg" in caplog.text
    with pytest.raises(InputError, match=r"Expected images to predict on in .*Main but found none"):
        DetectionDataModule(predict=str(voc_root / "ImageSets" / "Main")).setup("predict")


def test_a_batchs_targets_move_field_by_field(monkeypatch):
    """Also where one has a field that others do not, and where there is no box."""
    targets = TargetList(
        [
            {"boxes": torch.rand(2, 4), "labels": torch.tensor([3, 1]), "image_id": torch.tensor(7)},
            {"boxes": torch.rand(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "image_id": torch.tensor(9), "area": torch.rand(0)},
            {"boxes": torch.rand(1, 4), "labels": torch.tensor([2]), "image_id": torch.tensor(8), "area": torch.rand(1)},
        ]
    )
    copies = []
    real = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *args, **kwargs: copies.append(kwargs) or real(self, *args, **kwargs))
    moved = move_data_to_device(targets, torch.device("cpu"))
    assert copies == [{"non_blocking": False}] * 4
    assert isinstance(moved, TargetList)
    for before, after in zip(targets, moved, strict=True):
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) and before[name].shape == after[name].shape for name in before)
    assert move_data_to_device(targets, torch.device("meta"))[0]["boxes"].is_meta
    assert copies[4:] == [{"non_blocking": False}] * 4  # but to CUDA


def test_another_training_begins_at_the_beginning(train):
    data = DetectionDataModule(train=train, num_workers=0, batch_size=2)
    data.setup("fit")
    data.load_state_dict({"epoch": 3, "taken": 2})
    assert len(list(data.train_dataloader().sampler)) == len(train) - 2
    data.setup("fit")
    sampler = data.train_dataloader().sampler
    sampler.set_epoch(0)
    assert [epoch for epoch, _ in sampler] == [0] * len(train)
