"""Images without annotations, to predict on."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np

from lit_detect.data.dataset import DetectionDataset, Target, nothing_to_find
from lit_detect.data.images import IMAGE_SUFFIXES, images_below, read_header, read_image
from lit_detect.data.video import VIDEO_SUFFIXES, Video
from lit_detect.errors import InputError

__all__ = ["ImageFolder", "to_predict"]


class ImageFolder(DetectionDataset):
    """All images under a folder, or one file; ``image_id`` counts them in the order of their paths.

    Args:
        path: the folder, searched to any depth, or the file.

    Raises:
        InputError: no such path, or no image in it.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.classes: list[str] = []

    @cached_property
    def files(self) -> list[Path]:
        """The image files, sorted."""
        if self.path.is_file():
            return [self.path]
        files = sorted(images_below(self.path))
        if not files:
            raise InputError(f"Expected images to predict on in {self.path} but found none ({', '.join(IMAGE_SUFFIXES)}).")
        return files

    def __len__(self) -> int:
        return len(self.files)

    def load(self, index: int) -> tuple[np.ndarray, Target]:
        read_header(self.files[index])  # which refuses what is too large to be decoded
        return read_image(self.files[index], rotate=True), nothing_to_find(index)

    def file_name(self, index: int) -> str:
        return str(self.files[index].relative_to(self.path)) if self.path.is_dir() else self.path.name


def to_predict(path: str) -> DetectionDataset:
    """The images of a folder or a file, or the frames of a video, as its suffix says."""
    return Video(path) if path.lower().endswith(VIDEO_SUFFIXES) and not Path(path).is_dir() else ImageFolder(path)
