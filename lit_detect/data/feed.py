"""From a data set to samples: reading no more than is needed, augmenting, checking, shuffling, grouping."""

from __future__ import annotations

import logging
import math
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import albumentations as A
import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from lit_detect.data.dataset import DecodedImage, DetectionDataset, Fields, checked
from lit_detect.data.images import ImageFile
from lit_detect.data.transforms import compose
from lit_detect.data.windows import WindowTransform
from lit_detect.errors import InputError, printable

__all__ = ["EpochSampler", "Feed", "Sample"]

log = logging.getLogger(__name__)

MOST_IN_A_ROW = 10  # images that cannot be read one after the other: then the data is gone

Sample = tuple[Tensor, dict[str, Tensor]]


class UnreadableError(Exception):
    """An image that cannot be read: its number in the data set, and why."""

    def __init__(self, index: int, error: InputError) -> None:
        super().__init__(index, error)
        self.index, self.error = index, error


class Feed(Dataset[Sample]):
    """A data set as the network is fed: tensors, augmented if asked.

    The random numbers of a sample are a function of the seed, the epoch and its index, whatever the worker or rank that draws it
    and however the epoch began. If the first transform is a `WindowTransform`, its window is drawn before the image is decoded, so
    that a JPEG is decoded no larger than the window needs it.

    Args:
        dataset: where images and targets come from.
        transforms: albumentations transforms, none for evaluation.
        train: leave out what is not to be learnt (crowd boxes).
        min_visibility: leave out boxes of which a transform keeps a smaller share, 0..1.
        seed: of the augmentations.
        indices: the data set's images to use, all by default.
        mosaic: how often four images are put together before the transforms (YOLOv4, section 3.4), 0..1; a box stays that a quarter
            is left of.
        mosaic_size: side of such an image in pixels.
        skip_unreadable: warn of an image that cannot be read instead of raising, and give None, or in training the next one that can
            be read.

    Attributes:
        unreadable: of each of the data set's images, whether it was skipped; the memory is shared with worker processes.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        transforms: Sequence[A.BasicTransform] = (),
        train: bool = False,
        min_visibility: float = 0.0,
        seed: int = 0,
        indices: Sequence[int] | None = None,
        mosaic: float = 0.0,
        mosaic_size: int = 640,
        skip_unreadable: bool = False,
    ) -> None:
        self.dataset, self.train, self.seed, self.skip_unreadable = dataset, train, seed, skip_unreadable
        self.indices = range(len(dataset)) if indices is None else indices
        self.augment = compose(transforms, min_visibility) if transforms else None
        self.window = transforms[0] if transforms and isinstance(transforms[0], WindowTransform) else None
        self.unreadable = torch.zeros(len(dataset) if skip_unreadable and train else 0, dtype=torch.bool).share_memory_()  # type: ignore[no-untyped-call]
        self.mosaic = mosaic
        sides = (mosaic_size, mosaic_size)
        self.stitch = compose([A.Mosaic(target_size=sides, cell_shape=sides, center_range=(0.25, 0.75), p=1)], min_visibility=0.25)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample | None:  # type: ignore[override]
        epoch, position = key if isinstance(key, tuple) else (0, key)
        if position >= len(self):
            raise IndexError(position)  # so that a loop over a feed ends
        following = self._following(position)
        for number, index in enumerate(following, start=1):
            try:
                image, fields = self._read(index, np.random.default_rng([self.seed, epoch, index]))
                break
            except UnreadableError as unreadable:
                if not self.skip_unreadable or (self.train and number == len(following)):
                    raise unreadable.error from None
                self._skip(unreadable.index, unreadable.error)  # which in a mosaic may be another's
        else:
            return None
        self._check_pixels(image, index)
        pixels = np.empty((3, *image.shape[:2]), np.uint8)
        cv2.split(image, list(pixels))  # several times faster than a transposed copy
        return torch.from_numpy(pixels), {name: torch.as_tensor(value) for name, value in fields.items()}

    def _skip(self, index: int, error: InputError) -> None:
        """Warn of an image that cannot be read, in training once."""
        if not self.train or not self.unreadable[index]:
            log.warning("Skipped: %s", printable(error))
        if self.train:
            self.unreadable[index] = True

    def _read(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, Fields]:
        """An image and its target, augmented."""
        source: ImageFile | DecodedImage
        if rng.random() < self.mosaic:
            source, fields = self._stitched([index, *(self.indices[other] for other in rng.integers(len(self), size=3))], rng)
        else:
            source, fields = self._open(index)
        if self.augment is None:
            return self._decode(index, source), fields
        self.augment.set_random_state(rng, random.Random(int(rng.integers(2**32))))  # noqa: S311  # guards nothing
        boxes, reduction, drawn = fields["boxes"], 1, {}
        if self.window is not None:
            window = self.window.draw(source.height, source.width, boxes.astype(np.float64))
            reduction = min(window.reduction, source.reductions[-1])
            drawn["window"] = window.reduced(reduction)
        pixels = self._decode(index, source, reduction)
        augmented = self.augment(image=pixels, bboxes=boxes / reduction, kept=np.arange(len(boxes)), **drawn)
        return augmented["image"], follow(fields, augmented)

    def _stitched(self, indices: Sequence[int], rng: np.random.Generator) -> tuple[DecodedImage, Fields]:
        """Four images as one."""
        parts = [self._open(index) for index in indices]
        shared = set.intersection(*({name for name, value in fields.items() if value.ndim} for _, fields in parts))
        together = {name: np.concatenate([fields[name] for _, fields in parts]) for name in sorted(shared)}
        numbers = np.split(np.arange(len(together["boxes"])), np.cumsum([len(fields["boxes"]) for _, fields in parts])[:-1])
        entries = [
            {"image": self._decode(index, image), "bboxes": fields["boxes"], "kept": own}
            for index, (image, fields), own in zip(indices, parts, numbers, strict=True)
        ]
        self.stitch.set_random_state(rng, random.Random(int(rng.integers(2**32))))  # noqa: S311  # likewise
        out = self.stitch(**entries[0], mosaic_metadata=entries[1:])
        return DecodedImage(out["image"]), {**follow(together, out), "image_id": parts[0][1]["image_id"]}

    def _open(self, index: int) -> tuple[ImageFile | DecodedImage, Fields]:
        """An image that is not yet decoded, and its checked target without what is not to be learnt."""
        try:
            source, target = self.dataset.open(index)
        except InputError as error:
            raise UnreadableError(index, error) from error
        if isinstance(source, DecodedImage):
            self._check_pixels(source.pixels, index)
        fields = checked(self.dataset, index, source, target)
        if self.train and "iscrowd" in fields:
            fields = take(fields, np.flatnonzero(fields.pop("iscrowd") == 0))
        return source, fields

    def _decode(self, index: int, image: ImageFile | DecodedImage, reduction: int = 1) -> np.ndarray:
        """The pixels of an image of the data set."""
        try:
            return image.read(reduction)
        except InputError as error:
            raise UnreadableError(index, error) from error

    def _following(self, position: int) -> list[int]:
        """The data set's image at a position, and those that are taken in its place if it cannot be read."""
        tries = MOST_IN_A_ROW if self.skip_unreadable and self.train else 1
        return [self.indices[(position + offset) % len(self)] for offset in range(tries)]

    def image_at(self, position: int) -> int:
        """The data set's image that is taken at a position: where it was found unreadable, one of the next."""
        following = self._following(position)
        return next((index for index in following if not (len(self.unreadable) and self.unreadable[index])), following[0])

    def _check_pixels(self, image: np.ndarray, index: int) -> None:
        """Refuse what the network would take for something else."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise InputError(
                f"Expected {self.dataset.file_name(index)} as uint8 RGB (H, W, 3), which the network itself normalises, "
                f"but got {image.dtype} {image.shape}; is there a transform that normalises or makes a tensor?"
            )

    def aspect_groups(self, factor: int) -> list[int]:
        """A number for each image's aspect ratio: torchvision's bins, `factor` to each doubling of width over height from 1/2 to 2."""
        bins = 2 ** np.linspace(-1, 1, 2 * factor + 1)
        files = (self.dataset.open(index)[0] for index in self.indices)
        return np.digitize([file.width / file.height for file in files], bins).tolist()  # type: ignore[no-any-return]


def take(fields: Fields, kept: np.ndarray) -> Fields:
    """The target with some of its boxes, every field alike."""
    return {name: value[kept] if value.ndim else value for name, value in fields.items()}


def follow(fields: Fields, transformed: dict[str, Any]) -> Fields:
    """The target of an image that was transformed: boxes where they are now, and every field of those that are left."""
    boxes = np.asarray(transformed["bboxes"], dtype=np.float32).reshape(-1, 4)
    return {**take(fields, np.asarray(transformed["kept"], dtype=np.int64)), "boxes": boxes}


class EpochSampler(DistributedSampler[tuple[int, int]]):
    """Shuffled indices of one rank, each with its epoch, so that a sample knows which epoch it is drawn for.

    Lightning calls `set_epoch`, and leaves a `DistributedSampler` in place on any number of ranks.

    Args:
        feed: what is sampled.
        ranks: number of processes.
        rank: this one.
        seed: of the order.
        groups: a number for each image; a batch, and the batches of all ranks in one step, have images of one group, but for the
            few left over at the end of an epoch.
        batch_size: images a step on each rank, for the groups.
        start: the epoch to begin with, and how many images of it all ranks together have taken already; for a training that goes on.
            With groups the order is of the ranks and the batch size, so of another number of them some images of the epoch come twice.
    """

    def __init__(
        self,
        feed: Feed,
        ranks: int,
        rank: int,
        seed: int = 0,
        groups: Sequence[int] | None = None,
        batch_size: int = 1,
        start: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__(feed, ranks, rank, seed=seed)  # type: ignore[arg-type]
        self.groups, self.batch_size, self.start = [0] * len(feed) if groups is None else groups, batch_size, start
        self.epoch = start[0]

    def set_epoch(self, epoch: int) -> None:
        """Draw for an epoch, or for the first one if that is later: Lightning asks for epoch 0 before it has read where it was."""
        self.epoch = max(epoch, self.start[0])

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, (first, taken) = self.epoch, self.start  # the epoch now: later indices are asked for when there is a new one
        return ((epoch, index) for index in self.order()[taken // self.num_replicas if epoch == first else 0 :])

    def order(self) -> list[int]:
        """All indices of this rank in the epoch."""
        order = torch.randperm(len(self.groups), generator=torch.Generator().manual_seed(self.seed + self.epoch)).tolist()
        order = (order * math.ceil(self.total_size / len(order)))[: self.total_size]  # as many for each rank
        waiting: dict[int, list[int]] = defaultdict(list)
        grouped: list[int] = []
        for index in order:
            group = waiting[self.groups[index]]
            group.append(index)
            if len(group) == self.batch_size * self.num_replicas:
                grouped += group
                group.clear()
        left = [index for _, group in sorted(waiting.items()) for index in group]
        return (grouped + left)[self.rank :: self.num_replicas]
