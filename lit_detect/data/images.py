"""Image files: where they may lie, what their headers say, and how they are decoded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from lit_detect.errors import InputError

__all__ = ["IMAGE_SUFFIXES", "MOST_PIXELS", "ImageFile", "ImageHeader", "images_below", "inside", "read_header", "read_image"]

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
MOST_PIXELS = 178_956_970  # an image that declares more is refused before it is decoded (Pillow's limit); a camera's have a fifth of that
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
QUARTER_TURNS = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
REDUCED = {  # OpenCV's names of its flags speak of grey, but beside IMREAD_COLOR_RGB they ask for the size alone
    1: cv2.IMREAD_COLOR_RGB,
    2: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_8,
}


class ImageHeader(NamedTuple):
    """What an image file says of itself.

    Attributes:
        width: in stored pixels.
        height: in stored pixels.
        format: ``JPEG``, ``PNG``, ...
        mode: Pillow's: ``RGB``, ``L`` (grey), ``RGBA``, ``CMYK``, ...; with ``;16`` after it if a value has 16 bits, grey is then ``I;16``.
        orientation: EXIF's, 1 to 8; from 5 on it asks for a quarter turn. 1 for a TIFF, which is turned whenever it is read.
        frames: 2 if it is animated, whatever their number.
    """

    width: int
    height: int
    format: str
    mode: str
    orientation: int
    frames: int


class ImageFile(NamedTuple):
    """An image that is decoded when it is needed, and no larger than needed.

    Attributes:
        path: the file.
        width: in pixels, as it is read.
        height: likewise.
        reductions: it can be decoded at 1 over each of these, ascending: JPEG's blocks of 8 x 8 can, at less work.
        rotate: turn it as its EXIF tag says.
    """

    path: Path
    width: int
    height: int
    reductions: tuple[int, ...] = (1,)
    rotate: bool = False

    @classmethod
    def from_header(cls, path: Path, header: ImageHeader, rotate: bool = False) -> ImageFile:
        """The file of a header."""
        sides = (header.height, header.width) if rotate and header.orientation in QUARTER_TURNS else (header.width, header.height)
        return cls(path, *sides, tuple(REDUCED) if header.format == "JPEG" else (1,), rotate)

    def read(self, reduction: int = 1) -> np.ndarray:
        """The pixels ``(H, W, 3)`` uint8 RGB, with sides that are the file's divided by `reduction` and rounded up."""
        return read_image(self.path, self.rotate, reduction)


def read_header(path: Path) -> ImageHeader:
    """Read what an image file says of itself, without decoding it.

    Raises:
        InputError: no such file, not an image, one that declares more than `MOST_PIXELS`, or a JPEG or PNG that is cut off.
    """
    try:
        with Image.open(path) as image:
            jpeg = image.format in ("JPEG", "MPO")  # of an MPO, which phones write, the first image is a JPEG
            frames = 2 if not jpeg and getattr(image, "is_animated", False) else 1  # to count them is to read them all
            header = ImageHeader(*image.size, "JPEG" if jpeg else image.format or "", full_mode(image), orientation(image), frames)
    except OSError as error:
        raise InputError(f"Expected an image but could not read {path}: {error.strerror or 'not an image'}.") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"Expected an image of at most {MOST_PIXELS} pixels but {path} declares more.") from error
    except Exception as error:  # on a damaged file Pillow's readers raise anything, from SyntaxError to struct.error
        raise InputError(f"Expected an image but {path} cannot be read: {error!r}.") from error
    if header.width * header.height > MOST_PIXELS:
        raise InputError(f"Expected an image of at most {MOST_PIXELS} pixels but {path} declares {header.width} x {header.height}.")
    if not has_its_end(path, header.format):
        read_image(path)  # which may be possible all the same
    return header


def has_its_end(path: Path, format: str) -> bool:
    """Whether a file ends as its format does, as one that was cut off does not; of other formats, whether OpenCV reads them."""
    if format not in ENDS:
        return format in ("BMP", "GIF", "PPM", "TIFF", "WEBP")
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1024))  # some programs write something after the end
        return ENDS[format] in file.read()


def full_mode(image: Image.Image) -> str:
    """Pillow's mode, which for colours does not tell that the file has 16 bits a value, and so much if it has."""
    mode = image.mode.partition(";")[0]
    sixteen = any(";16" in str(tile[3]) or (tile[0].startswith("ppm") and tile[3][1] > 255) for tile in getattr(image, "tile", []))
    return f"{mode};16" if sixteen or ";16" in image.mode else image.mode


def orientation(image: Image.Image) -> int:
    """EXIF's orientation as OpenCV goes by it when the image is decoded."""
    if image.format == "TIFF":
        return 1  # Pillow's size is that of the turned image already, and OpenCV turns it even if told not to
    for name in ("xmp", "XML:com.adobe.xmp"):  # where Pillow looks for an orientation too, and OpenCV and browsers do not
        image.info.pop(name, None)
    tag = Image.Image.getexif(image).get(0x0112, 1)  # a PNG's own getexif decodes the image
    return tag if tag in range(1, 9) else 1


def read_image(path: Path, rotate: bool = False, reduction: int = 1) -> np.ndarray:
    """Decode an image file as RGB, whatever it holds: grey, alpha (dropped), CMYK or 16 bits; of several frames the first.

    Args:
        path: the file.
        rotate: turn the image as its EXIF tag says. Annotated images are turned only if their boxes are of the turned image.
        reduction: 1, 2, 4 or 8: decode a JPEG at 1 over this size.

    Returns:
        ``(H, W, 3)`` uint8.

    Raises:
        InputError: no such file, not an image, or a truncated one.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"Expected an image but could not read {path}: {error.strerror}.") from error
    flags = REDUCED[reduction] if rotate else REDUCED[reduction] | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags) if data else None
    except cv2.error:
        image = None
    if image is None:
        raise InputError(f"Expected an image but {path} ({len(data)} bytes) cannot be decoded.")
    return image


def images_below(folder: Path) -> list[Path]:
    """The image files of a folder and of those in it, at any depth; links to folders are followed, each folder once.

    Raises:
        InputError: a folder in it that cannot be read.
    """
    found, seen = list[Path](), set[str]()
    for parent, folders, files in os.walk(folder, onerror=stop_unless_missing, followlinks=True):
        if (real := os.path.realpath(parent)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()  # which of two links to a folder comes first
        found += [path for path in map(Path(parent).joinpath, files) if path.suffix.lower() in IMAGE_SUFFIXES]
    return found


def stop_unless_missing(error: OSError) -> None:
    """A folder that cannot be listed is not to be left out without a word."""
    if not isinstance(error, FileNotFoundError):
        raise InputError(f"Expected to list the images in {error.filename} but could not: {error.strerror}.") from error


def inside(folder: Path, name: str) -> Path:
    """The path of a file that an annotation names.

    Raises:
        InputError: a name that leaves the folder: by ``..``, an absolute path or a link.
    """
    path = folder / name
    try:
        if os.path.basename(name) == name not in ("..", ".") and "\0" not in name and not path.is_symlink():
            return path  # all but always; following links takes ten times as long
        within = Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
    except (ValueError, OSError) as error:  # a zero byte, half a surrogate pair, a loop of links
        raise InputError(f"Expected the name of a file in {folder} but got {name!r}.") from error
    if not within:
        raise InputError(f"Expected a file in {folder} but {name!r} leads out of it.")
    return path
