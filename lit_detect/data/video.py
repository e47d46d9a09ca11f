"""The frames of a video, to predict on."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from lit_detect.data.dataset import DetectionDataset, Target, nothing_to_find
from lit_detect.data.images import MOST_PIXELS
from lit_detect.errors import InputError

__all__ = ["VIDEO_SUFFIXES", "Video"]

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")


class Video(DetectionDataset):
    """The frames of a video file; ``image_id`` counts them from 0.

    A frame is found by decoding on from the last one that was read, since seeking is not exact in all formats, and frames are counted
    by decoding all of them, since what the file says of it may be a guess. So each worker decodes the whole video.

    Args:
        path: the file.

    Raises:
        InputError: a file that cannot be read as a video.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.classes: list[str] = []
        self._capture: Any = None
        self._next = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_capture": None}  # each worker opens the file for itself

    def _open(self) -> Any:
        capture = cv2.VideoCapture(str(self.path))
        if not capture.isOpened():
            raise InputError(
                f"Expected a video but could not read {self.path}: {'not a video' if self.path.is_file() else 'no such file'}."
            )
        width, height = (int(capture.get(side)) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        if width * height > MOST_PIXELS:
            raise InputError(f"Expected frames of at most {MOST_PIXELS} pixels but {self.path} declares {width} x {height}.")
        return capture

    @cached_property
    def rate(self) -> float:
        """Frames a second."""
        return float(self._open().get(cv2.CAP_PROP_FPS)) or 25.0

    @cached_property
    def frames(self) -> int:
        """Number of frames."""
        capture, count = self._open(), 0
        while capture.grab():
            count += 1
        if count == 0:
            raise InputError(f"Expected a video but no frame of {self.path} can be decoded.")
        return count

    def __len__(self) -> int:
        return self.frames

    def load(self, index: int) -> tuple[np.ndarray, Target]:
        if self._capture is None or index < self._next:
            self._capture, self._next = self._open(), 0
        for _ in range(index - self._next):
            self._capture.grab()
        self._next = index + 1
        read, frame = self._capture.read()
        if not read:
            raise InputError(f"Expected {len(self)} frames in {self.path} but frame {index} cannot be decoded.")
        return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), nothing_to_find(index)

    def file_name(self, index: int) -> str:
        return f"{self.path.stem}_{index:06d}"
