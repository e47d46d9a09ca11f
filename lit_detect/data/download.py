"""Pascal VOC and COCO 2017 from their own servers, for who asks for it."""

from __future__ import annotations

import re
import shutil
import tarfile
import zipfile
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock
from torchvision.datasets.utils import download_and_extract_archive
from torchvision.datasets.voc import DATASET_YEAR_DICT

from lit_detect.errors import InputError

__all__ = ["download_coco", "download_voc"]


class Archive(NamedTuple):
    """An archive, and the folder of it that is wanted."""

    url: str
    md5: str
    folder: str


VOC_ARCHIVES = {year: Archive(entry["url"], entry["md5"], entry["base_dir"]) for year, entry in DATASET_YEAR_DICT.items()}
COCO_ARCHIVES = {
    "train2017": Archive("http://images.cocodataset.org/zips/train2017.zip", "cced6f7f71b7629ddf16f17bbcfab6b2", "train2017"),
    "val2017": Archive("http://images.cocodataset.org/zips/val2017.zip", "442b8da7639aecaf257c1dceb8ba8c80", "val2017"),
    "annotations": Archive(
        "http://images.cocodataset.org/annotations/annotations_trainval2017.zip", "f4bbac642086de4f52a3fdda2de5fa2c", "annotations"
    ),
}


def download_voc(root: Path, image_set: str) -> None:
    """Download VOC 2007 or 2012 unless the image set is there.

    Args:
        root: the folder to be, called ``VOC2007`` or ``VOC2012``.
        image_set: ``train``, ``val``, ``trainval``; of 2007, ``test``, which is an archive of its own; or one of a class of these.

    Raises:
        InputError: another year or image set, or a download that fails.
    """
    needed = root / "ImageSets" / "Main" / f"{image_set}.txt"
    if needed.is_file():
        return
    year, split = root.absolute().name.removeprefix("VOC"), image_set.rpartition("_")[2]
    if not re.fullmatch("VOC(2007|2012)", root.absolute().name):
        raise InputError(f"Expected a folder called VOC2007 or VOC2012 to download VOC to but got {root}.")
    known = ["train", "val", "trainval", *(["test"] if year == "2007" else [])]
    if split not in known:
        raise InputError(f"Expected an image set of VOC{year} to download ({', '.join(known)}) but got {image_set!r}.")
    fetch(VOC_ARCHIVES["2007-test" if split == "test" else year], root, needed)


def download_coco(images: Path, annotations: Path) -> None:
    """Download COCO 2017 unless it is there: 19 GB for training, 1 GB for validation.

    Args:
        images: the folder to be, called ``train2017`` or ``val2017``.
        annotations: the file to be, ``annotations/instances_train2017.json`` or ``instances_val2017.json``.

    Raises:
        InputError: other names, or a download that fails.
    """
    split = images.absolute().name
    if there(images) and there(annotations):
        return
    if split not in ("train2017", "val2017") or annotations.absolute().parts[-2:] != ("annotations", f"instances_{split}.json"):
        raise InputError(
            "Expected images as train2017 or val2017 and annotations/instances_train2017.json or instances_val2017.json, in any folder, "
            f"to download COCO to but got {images} and {annotations}."
        )
    fetch(COCO_ARCHIVES["annotations"], annotations.parent, annotations)
    fetch(COCO_ARCHIVES[split], images, images)


def fetch(archive: Archive, target: Path, needed: Path) -> None:
    """Put an archive's folder in place, unless what is needed is there. Of several processes one does it, and the others wait.

    Args:
        archive: what to download.
        target: what its folder is to be; files are added to it if it is there.
        needed: the file or folder that tells that nothing is to be done.

    Raises:
        InputError: no connection, a broken archive, or no place to write; the message names the address and the file.
    """
    if there(needed):
        return
    # what is not yet whole has a name of its own, on the same drive
    aside = target.parent / f".{target.name}.part"
    file = aside / archive.url.rpartition("/")[2]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / f".{target.name}.lock"):
            if there(needed):
                return
            shutil.rmtree(aside / "unpacked", ignore_errors=True)
            download_and_extract_archive(archive.url, str(aside), str(aside / "unpacked"), file.name, archive.md5, remove_finished=True)
            move(aside / "unpacked" / archive.folder, target)
            shutil.rmtree(aside)
    except (OSError, RuntimeError, HTTPException, tarfile.TarError, zipfile.BadZipFile) as error:
        state = f" {file} has {file.stat().st_size} bytes and should have the MD5 sum {archive.md5}." if file.is_file() else ""
        raise InputError(f"Expected to download {archive.url} to {file} and to unpack it but: {error}.{state}") from error
    if not there(needed):
        raise InputError(f"Expected {needed} in {archive.url} but it is not there.")


def there(path: Path) -> bool:
    """Whether there is such a file, or such a folder with something in it."""
    return path.is_file() or (path.is_dir() and any(path.iterdir()))


def move(source: Path, target: Path) -> None:
    """Move a folder, or its files into the one that is there: lists of images last, so that what is listed is there."""
    if not there(target):
        if target.is_dir():
            target.rmdir()
        source.rename(target)
        return
    files = [path.relative_to(source) for path in source.rglob("*") if path.is_file()]
    for path in sorted(files, key=lambda path: (path.parts[0] == "ImageSets", path)):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).replace(target / path)
