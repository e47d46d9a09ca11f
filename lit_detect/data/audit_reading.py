"""Reading everything of a data set: every annotation as arrays, every file decoded and hashed, and what is wrong with them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lit_detect.data.annotated import AnnotatedImages
from lit_detect.data.dataset import Concatenation, DecodedImage, DetectionDataset, Target, checked
from lit_detect.data.faults import Fault, Faults
from lit_detect.data.images import IMAGE_SUFFIXES, ImageFile, read_header, read_image
from lit_detect.errors import InputError

__all__ = ["Boxes", "FileCheck", "SplitContents", "check_file", "merge", "parts_of", "unlisted"]


Item = tuple[str, tuple[int, int], Target]  # what an image is called, its width and height, its boxes


class Boxes(NamedTuple):
    """The boxes of a split, crowds included, as columns of one length M.

    Attributes:
        image: number of each box's image in the split.
        xyxy: ``(M, 4)`` in pixels.
        label: position in the names of all classes.
        area: in pixels, as the annotations give it, else width times height: what AP small, medium and large go by.
        crowd: whether it stands for many objects.
        difficult: VOC's flag.
    """

    image: np.ndarray
    xyxy: np.ndarray
    label: np.ndarray
    area: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray

    def of(self, rows: np.ndarray) -> Boxes:
        """Some of the boxes."""
        return Boxes(*(column[rows] for column in self))


EMPTY = Boxes(np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0), np.zeros(0, bool), np.zeros(0, bool))


@dataclass
class SplitContents:
    """What one split holds. Images are those that can be used.

    Attributes:
        name: of the split.
        data: the data sets it is made of.
        images: what each image is called: its path, if it is a file.
        sizes: ``(N, 2)`` width and height of each, as it is read.
        boxes: of all images.
        faults: what is wrong, but for what only decoding shows.
        files: every image file that the split lists and that is there; None for what cannot be used.
        sources: annotation files that belong to one image each.
        pixels: a digest of each image that has no file, by what it is called.
        failed: whether a part could not be read at all.
    """

    name: str
    data: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    sizes: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    boxes: Boxes = EMPTY
    faults: Faults = field(default_factory=Faults)
    files: dict[Path, ImageFile | None] = field(default_factory=dict)
    sources: set[Path] = field(default_factory=set)
    pixels: dict[str, str] = field(default_factory=dict)
    failed: bool = False

    def add(self, part: DetectionDataset, classes: dict[str, int], track: Callable[[range], Iterable[int]] = iter) -> None:
        """Read one data set into the split.

        Args:
            part: the data set, not a `Concatenation`.
            classes: position of each class that is known so far; others are added.
            track: shows how far it is, where that is known.
        """
        self.data.append(repr(part))
        try:
            labels = np.array([classes.setdefault(name, len(classes)) for name in part.classes], dtype=np.int64)
            self._append(list(self._annotated(part) if isinstance(part, AnnotatedImages) else self._opened(part, track)), labels)
        except Exception as error:
            if isinstance(part, AnnotatedImages) and not isinstance(error, InputError):
                raise  # which would be a fault of ours
            self.failed = True
            self.faults.report("annotation unreadable", repr(part), "", sentence(error))

    def _annotated(self, part: AnnotatedImages) -> Iterator[Item]:
        """The images of files that were checked when they were read."""
        contents = part.contents
        self.faults += contents.faults
        for path, source in contents.listed:
            if source.suffix != ".json":
                self.sources.add(source)
            if path.is_file():
                self.files.setdefault(path, None)
        for file, target in zip(contents.files, contents.targets, strict=True):
            self.files[file.path] = file
            yield str(file.path), (file.width, file.height), target

    def _opened(self, part: DetectionDataset, track: Callable[[range], Iterable[int]]) -> Iterator[Item]:
        """The images of somebody's own data set, one after the other, since nobody said that it can be read by several threads."""
        for index in track(range(len(part))):
            name = f"{self.name} {len(self.data)}: {index}"  # unlike any other image's
            try:
                name = f"{self.name} {len(self.data)}: {part.file_name(index)}"
                image, target = part.open(index)
                target = checked(part, index, image, target)
            except Exception as error:  # whatever somebody's code raises is a fault of that image, and the others are still read
                self.faults.report("image unreadable", name, f"image {index}", sentence(error))
                continue
            if isinstance(image, DecodedImage):
                self.pixels[name] = digest(np.ascontiguousarray(image.pixels).tobytes() + repr(image.pixels.shape).encode())
            else:
                name = str(image.path)
                self.files[image.path] = image
            yield name, (image.width, image.height), target

    def _append(self, items: list[Item], labels: np.ndarray) -> None:
        """Add images and their boxes."""
        targets = [target for *_, target in items]
        counts = [len(target["labels"]) for target in targets]

        def column(name: str, width: tuple[int, ...] = ()) -> np.ndarray:
            values = [
                np.asarray(target.get(name, np.zeros(count)), dtype=np.float64) for target, count in zip(targets, counts, strict=True)
            ]
            return np.concatenate([np.zeros((0, *width)), *values])

        xyxy = column("boxes", (4,))
        area = column("area")
        boxes = Boxes(
            image=len(self.images) + np.repeat(np.arange(len(items)), counts),
            xyxy=xyxy,
            label=labels[column("labels").astype(np.int64) - 1],
            area=np.where(area > 0, area, (xyxy[:, 2:] - xyxy[:, :2]).prod(axis=1)),
            crowd=column("iscrowd") != 0,
            difficult=column("difficult") != 0,
        )
        self.boxes = Boxes(*(np.concatenate(pair) for pair in zip(self.boxes, boxes, strict=True)))
        self.images += [name for name, *_ in items]
        self.sizes = np.concatenate([self.sizes, np.array([size for _, size, _ in items], dtype=np.int64).reshape(-1, 2)])


def parts_of(dataset: DetectionDataset) -> list[DetectionDataset]:
    """The data sets that one is made of, or itself."""
    return [one for part in dataset.parts for one in parts_of(part)] if isinstance(dataset, Concatenation) else [dataset]


def sentence(error: Exception) -> str:
    """What an error says."""
    return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"


def merge(splits: Iterable[SplitContents]) -> SplitContents:
    """All splits as one, with each image once."""
    merged = SplitContents("all")
    seen: dict[str, None] = {}
    sizes, boxes = [merged.sizes], [EMPTY]
    for split in splits:
        first = dict(zip(reversed(split.images), range(len(split.images) - 1, -1, -1), strict=True))
        fresh = np.array([name not in seen and first[name] == number for number, name in enumerate(split.images)], dtype=bool)
        places = len(seen) + np.cumsum(fresh) - 1
        of_fresh = split.boxes.of(fresh[split.boxes.image]) if len(fresh) else EMPTY
        boxes.append(of_fresh._replace(image=places[of_fresh.image]))
        sizes.append(split.sizes[fresh])
        seen |= dict.fromkeys(split.images)
    merged.images, merged.sizes = list(seen), np.concatenate(sizes)
    merged.boxes = Boxes(*(np.concatenate(columns) for columns in zip(*boxes, strict=True)))
    return merged


class FileCheck(NamedTuple):
    """What reading a whole file shows: its size in bytes, a digest of them, and what is wrong with the image, if anything."""

    bytes: int
    digest: str
    wrong: str = ""


def check_file(path: Path, file: ImageFile | None) -> FileCheck:
    """Read a file and decode the image.

    Args:
        path: the file.
        file: what is known of the image from its header; None if it cannot be used anyway.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        return FileCheck(0, "", f"Expected an image but could not read {path}: {error.strerror}.")
    check = FileCheck(len(content), digest(content) if content else "")
    try:
        if file is None:
            read_header(path)  # which refuses what is too large to be decoded
        height, width = read_image(path, file is not None and file.rotate).shape[:2]
    except InputError as error:
        return check._replace(wrong=str(error))
    if file is not None and (width, height) != (file.width, file.height):
        return check._replace(wrong=f"Expected {file.width} x {file.height} pixels, as {path} says, but it decodes to {width} x {height}.")
    return check


def digest(content: bytes) -> str:
    """What is the same for the same bytes and no others."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def unlisted(splits: Sequence[SplitContents]) -> list[Fault]:
    """Images, and annotation files of one image, that lie beside those of the splits and that no split lists."""
    images = {path for split in splits for path in split.files}
    sources = {path for split in splits for path in split.sources}
    # an annotation that could not be read was listed all the same, and so was its image
    unread = {Path(fault.file).stem for split in splits for fault in split.faults if fault.kind == "annotation unreadable"}
    wanted: dict[Path, set[str]] = {path.parent: {*IMAGE_SUFFIXES} for path in images}
    for path in sources:
        wanted.setdefault(path.parent, set()).add(path.suffix)
    beside = [
        path for folder, suffixes in wanted.items() if folder.is_dir() for path in folder.iterdir() if path.suffix.lower() in suffixes
    ]
    lone = sorted(path for path in beside if path not in images and path not in sources and path.stem not in unread)
    names = ", ".join(split.name for split in splits)
    return [Fault("file unlisted", str(path), "", f"Expected {path.name} in one of {names}, or nowhere.") for path in lone]
