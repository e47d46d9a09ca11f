"""The LightningDataModule: data sets by split, and how they are fed."""

from __future__ import annotations

import logging
from functools import cached_property
from typing import Any, Literal

import albumentations as A
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from lit_detect.data.batches import collate
from lit_detect.data.dataset import Concatenation, DetectionDataset
from lit_detect.data.faults import OnInvalid
from lit_detect.data.feed import EpochSampler, Feed
from lit_detect.data.folder import to_predict
from lit_detect.data.presets import preset
from lit_detect.data.splits import splits_to_train
from lit_detect.data.workers import start_worker
from lit_detect.errors import InputError, printable
from lit_detect.ranks import gathered
from lit_detect.seeds import run_seed

__all__ = ["DetectionDataModule"]

log = logging.getLogger(__name__)

MOST_NAMES = 20  # of images, in a message

Split = DetectionDataset | list[DetectionDataset] | None


class DetectionDataModule(LightningDataModule):
    """Data sets for training, validation, test and prediction.

    Nothing is read before it is needed, so that a prediction runs where the training data is not.

    Args:
        train: a data set, or several of the same classes.
        val: likewise.
        test: likewise.
        predict: a folder of images, one image, or a video.
        transforms: for training: the name of a preset (``ssd``, ``ssdlite``, ``hflip``, ``multiscale``, ``lsj``: see `preset`), or
            albumentations transforms in order. Images are not normalised here, and resized only if a transform does it; the network
            does both.
        image_size: side in pixels of the images that the presets ``ssd`` and ``ssdlite`` make, and of mosaics; on the command line
            the model's `size` by default.
        zoom: put zoom-out into the preset (true), or leave it out (false); by default it is as the preset has it.
        mosaic: how often four images are put together as one before the transforms, 0..1.
        aspect_ratio_group_factor: make up training batches of images of like aspect ratio, so that little is padded; torchvision's
            bins, of which its references have 3 to each doubling; none for batches of any images.
        min_visibility: leave out boxes of which a transform keeps a smaller share of the area, 0..1.
        batch_size: images a step on each device.
        num_workers: processes that read and augment, on each device; 0 for none.
        keep_empty: train on images without boxes too.
        classes: names of the labels 1..C; by default the data sets', and for a checkpoint on the command line its own.
        category_ids: the data set's own ids of the classes, likewise.
        seed: of shuffling and augmentation; by default the run's (`seed_everything`), else 0.
        on_unreadable: at a training image that cannot be read any more ``stop``, or ``skip`` it: take the next one that can be read,
            warn, and count it at the end.
        folder: a VOC, COCO or YOLO folder, whose splits of these names (see `splits_to_train`) are taken in place of `train`, `val` and
            `test`, whatever these are.
        on_invalid: what the readers of `folder` do about faults (see `AnnotatedImages`); by default ``fix``.

    Raises:
        InputError: a split that is needed but not given, or empty, or of other classes.
    """

    def __init__(
        self,
        train: Split = None,
        val: Split = None,
        test: Split = None,
        predict: str | None = None,
        transforms: str | list[A.BasicTransform] | None = None,
        image_size: int | None = None,
        zoom: bool | None = None,
        mosaic: float = 0.0,
        aspect_ratio_group_factor: int | None = None,
        min_visibility: float = 0.1,
        batch_size: int = 8,
        num_workers: int = 4,
        keep_empty: bool = True,
        classes: list[str] | None = None,
        category_ids: list[int] | None = None,
        seed: int | None = None,
        on_unreadable: Literal["stop", "skip"] = "stop",
        folder: str | None = None,
        on_invalid: OnInvalid | None = None,
    ) -> None:
        super().__init__()
        self._given: dict[str, Split] = {"train": train, "val": val, "test": test}
        self._predict = None if predict is None else to_predict(predict)
        self.folder, self.on_invalid = folder, on_invalid
        if on_invalid is not None and folder is None:
            raise InputError(
                "Expected data.folder, whose readers data.on_invalid is for, but got none; a data set has an on_invalid of its own."
            )
        if zoom is not None and not isinstance(transforms, str):
            got = "none" if transforms is None else "a list, which says itself whether it zooms"
            raise InputError(f"Expected the name of a preset as transforms, which zoom changes, but got {got}.")
        self.transforms = preset(transforms, image_size, zoom) if isinstance(transforms, str) else list(transforms or [])
        self.image_size, self.mosaic, self.aspect_ratio_group_factor = image_size, mosaic, aspect_ratio_group_factor
        self.min_visibility = min_visibility
        self.on_unreadable = on_unreadable
        self.batch_size, self.num_workers, self.keep_empty = batch_size, num_workers, keep_empty
        self._classes, self._category_ids, self._seed = classes, category_ids, seed
        self.feeds: dict[str, Feed] = {}
        self._sampler: EpochSampler | None = None
        self._start = (0, 0)  # of a training that goes on: the epoch, and its images that are taken

    @cached_property
    def splits(self) -> dict[str, Split]:
        """The data sets for ``train``, ``val`` and ``test``; none where there is none."""
        if self.folder is None:
            return self._given
        found = splits_to_train(self.folder, self.on_invalid or "fix")
        rank_zero_info(printable(f"{self.folder}: {', '.join(f'{name} is {split!r}' for name, split in found.items())}"))
        return {name: found.get(name) for name in self._given}

    @property
    def seed(self) -> int:
        """The seed of shuffling and augmentation."""
        return self._seed if self._seed is not None else run_seed() or 0

    @property
    def classes(self) -> list[str]:
        """Names of the labels 1..C."""
        return self._classes if self._classes is not None else self._smallest().classes

    @property
    def category_ids(self) -> list[int] | None:
        """The data set's own ids of the classes; none where only names are known."""
        if self._category_ids is not None or self._classes is not None:
            return self._category_ids
        return self._smallest().category_ids

    def _smallest(self) -> DetectionDataset:
        """The data set whose classes are the cheapest to read: all have the same, which `setup` checks."""
        for name in ("val", "test", "train"):
            if self.splits[name] is not None:
                return self.dataset(name)
        raise InputError("Expected data with classes (data.train, data.val or data.test), or their names as data.classes.")

    def dataset(self, name: str) -> DetectionDataset:
        """The data set of a split, several as one."""
        split = self._predict if name == "predict" else self.splits[name]
        if split is None or split == []:
            nowhere = "" if self.folder is None or name == "predict" else f", and {self.folder} has no split of this name"
            raise InputError(f"Expected data.{name}, which this command reads, but it is not set{nowhere}.")
        return Concatenation(split) if isinstance(split, list) else split

    def setup(self, stage: str) -> None:
        """Read the annotations of what the stage needs, and check them."""
        if stage == "fit":
            self._start = (0, 0)  # the place in an earlier training's data; a checkpoint of this one is read after this
        needed = {"fit": ["train", "val"], "validate": ["val"], "test": ["test"], "predict": ["predict"]}[stage]
        if stage == "fit" and self.splits["val"] is None:
            needed = ["train"]
        for name in needed:
            if name not in self.feeds:
                self.feeds[name] = self._read(name)

    def _read(self, name: str) -> Feed:
        dataset = self.dataset(name)
        if name == "predict":
            return Feed(dataset, skip_unreadable=True)
        if len(dataset) == 0:
            raise InputError(f"Expected images in data.{name} but {dataset} has none.")
        if dataset.classes != self.classes:
            raise InputError(f"Expected data.{name} with the classes {self.classes} but {dataset} has {dataset.classes}.")
        dataset.read_annotations()
        if name != "train":
            return Feed(dataset)
        indices = None if self.keep_empty else [index for index in range(len(dataset)) if dataset.num_boxes(index)]
        if indices == []:
            raise InputError(f"Expected images with boxes in data.train but all {len(dataset)} of {dataset} are empty.")
        skip = self.on_unreadable == "skip"
        return Feed(dataset, self.transforms, True, self.min_visibility, self.seed, indices, self.mosaic, self.image_size or 640, skip)

    def state_dict(self) -> dict[str, Any]:
        """Where a training is in its data, for its checkpoint: the epoch, and how many images of it all ranks together have taken."""
        if self.trainer is None:
            return {}
        loop = self.trainer.fit_loop
        epoch: Any = loop.epoch_progress.current
        batches: Any = loop.epoch_loop.batch_progress.current
        taken = batches.processed * self.batch_size * self.trainer.world_size if epoch.started > epoch.processed else 0
        return {"epoch": epoch.processed, "taken": taken}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a training was in its data. Lightning tells this before anything asks for the loader."""
        self._start = (state_dict["epoch"], state_dict["taken"])

    def teardown(self, stage: str) -> None:
        """Say which training images were skipped, on all ranks together."""
        if stage == "fit" and self.on_unreadable == "skip":
            names = sorted({*gathered(self.unreadable())})
            if names and self.trainer is not None and self.trainer.is_global_zero:
                log.warning("%d training images could not be read, and others were taken: %s.", len(names), ", ".join(names[:MOST_NAMES]))

    def train_dataloader(self) -> DataLoader[Any]:
        feed = self.feeds["train"]
        trainer = self.trainer
        ranks = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
        factor = self.aspect_ratio_group_factor
        groups = None if factor is None else feed.aspect_groups(factor)
        sampler = self._sampler = EpochSampler(feed, *ranks, self.seed, groups, self.batch_size, start=self._start)
        # a last batch that is not full would be a step with a learning rate that is too large for it
        return self._loader(feed, sampler=sampler, drop_last=len(sampler) >= self.batch_size, persistent_workers=self.num_workers > 0)

    def file_names(self, batch: int) -> list[str]:
        """What the images of a training batch of this epoch and rank are called, for messages; of a mosaic its first image."""
        if self._sampler is None:
            return []
        feed, positions = self.feeds["train"], self._sampler.order()[batch * self.batch_size : (batch + 1) * self.batch_size]
        return [feed.dataset.file_name(feed.image_at(position)) for position in positions]

    def unreadable(self) -> list[str]:
        """The training images that were skipped on this rank, since they could not be read."""
        feed = self.feeds["train"]
        return [feed.dataset.file_name(index) for index in feed.unreadable.nonzero().flatten().tolist()]

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        return self._loader(self.feeds["val"]) if "val" in self.feeds else []

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.feeds["test"])

    def predict_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.feeds["predict"])

    def _loader(self, feed: Feed, **arguments: Any) -> DataLoader[Any]:
        return DataLoader(
            feed,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=start_worker,
            **arguments,
        )
