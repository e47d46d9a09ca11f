"""From a path to data sets by split, whatever the format: for the verbs ``audit`` and ``convert``, and for ``data.folder``."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from lit_detect.data.coco import COCODetection
from lit_detect.data.dataset import DetectionDataset
from lit_detect.data.faults import OnInvalid
from lit_detect.data.images import IMAGE_SUFFIXES
from lit_detect.data.voc import VOCDetection
from lit_detect.data.yolo import YOLO_SETS, YOLODetection, read_yaml
from lit_detect.errors import InputError

__all__ = ["open_splits", "splits_to_train"]

log = logging.getLogger(__name__)
LOOKED_FOR = (
    "a VOC folder (Annotations, ImageSets/Main), a COCO folder (annotations/instances_*.json or */_annotations.coco.json), "
    "a YOLO folder (data.yaml), a COCO json, a YOLO data.yaml or a training's config"
)
NAMED = {"train": r"train\d*", "val": r"val(id|idation)?\d*", "test": r"test\d*"}  # what splits are called: train2017


def open_splits(data: str) -> dict[str, DetectionDataset]:
    """The data sets of a path, by the names of their splits. Annotations are not read yet.

    Args:
        data: a VOC folder, of whose image sets those of one class (``cat_train``) are left out, and ``trainval`` where it is ``train``
            and ``val`` together; a COCO folder (also Roboflow's, with a folder for each split) or one of its json files, with images in
            a folder nearby; a YOLO ``data.yaml`` or its folder; or a training's config, whose ``train``, ``val`` and ``test`` are
            taken.

    Raises:
        InputError: nothing of the kind is there; the message says what was looked for.
    """
    path = Path(data)
    if path.is_dir():
        return folder_splits(path)
    if not path.is_file():
        raise InputError(f"Expected {LOOKED_FOR} but there is no {path}.")
    if path.suffix == ".json":
        if (images := images_of(path)) is None:
            raise no_images(path)
        return {split_of(path): COCODetection(str(images), str(path))}
    if path.suffix not in (".yaml", ".yml"):
        raise InputError(f"Expected {LOOKED_FOR} but got {path}.")
    if not isinstance(read_yaml(path).get("data"), dict):
        return yolo_file_splits(path)
    if path.stem == "data":  # which comes with other people's images; a config is a program, and no one's to be run by mistake
        raise InputError(f"Expected {path} as a YOLO data.yaml but it is a training's config, which is not run by this name: rename it.")
    return config_splits(path)


def folder_splits(root: Path, on_invalid: OnInvalid = "fix") -> dict[str, DetectionDataset]:
    """The data sets of a folder."""
    for find in (voc_splits, coco_splits, yolo_splits):
        if splits := find(root, on_invalid):
            return splits
    roots = sorted(str(marker.parent) for pattern in ("*/Annotations", "*/*/Annotations") for marker in root.glob(pattern))
    raise InputError(
        f"Expected {LOOKED_FOR} but {root} has none of them."
        + (f" There are VOC folders in it, give one of them: {', '.join(roots)}." if roots else "")
    )


def splits_to_train(folder: str, on_invalid: OnInvalid = "fix") -> dict[str, DetectionDataset]:
    """The data sets of a folder for ``train``, ``val`` and ``test``, as far as it has splits of these names.

    Args:
        folder: a VOC, COCO or YOLO folder, as `open_splits` takes it. A name may have a number after it (``train2017``), and ``valid``
            and ``validation`` are ``val``.
        on_invalid: what the readers do about faults.

    Raises:
        InputError: no such folder, none of these splits, or two for one of them.
    """
    if not Path(folder).is_dir():
        raise InputError(f"Expected a VOC, COCO or YOLO folder as data.folder but there is no folder {folder}.")
    splits, found = folder_splits(Path(folder), on_invalid), dict[str, DetectionDataset]()
    for name, pattern in NAMED.items():
        matching = [split for split in splits if re.fullmatch(pattern, split)]
        if len(matching) > 1:
            raise InputError(
                f"Expected one split for data.{name} in {folder} but there are {', '.join(matching)}: name the data sets in place of it."
            )
        if matching:
            found[name] = splits[matching[0]]
    if not found:
        raise InputError(
            f"Expected splits called train, val or test in {folder} but there are {', '.join(splits)}: name the data sets in place of it."
        )
    return found


def voc_splits(root: Path, on_invalid: OnInvalid) -> dict[str, DetectionDataset]:
    """The image sets of a VOC folder."""
    if not (root / "Annotations").is_dir() or not (root / "ImageSets" / "Main").is_dir():
        return {}
    files = sorted((root / "ImageSets" / "Main").glob("*.txt"))
    sets = {file.stem: VOCDetection(str(root), file.stem, on_invalid=on_invalid) for file in files if not of_one_class(file)}
    if not sets:
        raise InputError(f"Expected image sets in {root / 'ImageSets' / 'Main'} but there are none (*.txt).")
    if {"train", "val", "trainval"} <= set(sets) and set(sets["trainval"].ids) == {*sets["train"].ids, *sets["val"].ids}:
        del sets["trainval"]
    return {**sets}


def of_one_class(file: Path) -> bool:
    """Whether an image set is one of VOC's for classification: called after another, with a flag on each line."""
    whole = file.with_name(f"{file.stem.rpartition('_')[2]}.txt")
    if whole == file or not whole.is_file():
        return False
    with file.open(encoding="utf-8", errors="replace") as lines:
        return bool(re.search(r"\s(-1|0|1)$", lines.readline().rstrip()))


def coco_splits(root: Path, on_invalid: OnInvalid) -> dict[str, DetectionDataset]:
    """The annotation files of a COCO folder; those whose images are not there are left out, if there are others."""
    images = {file: images_of(file) for file in sorted((root / "annotations").glob("instances_*.json"))}
    found = {split_of(file): COCODetection(str(folder), str(file), on_invalid) for file, folder in images.items() if folder}
    missing = [no_images(file) for file, folder in images.items() if not folder]
    if missing and not found:
        raise missing[0]
    for reason in missing:
        log.warning("A split is left out. %s", reason)
    if found:
        return {**found}
    exported = sorted(root.glob("*/_annotations.coco.json"))  # Roboflow's: a folder for each split, with its images
    return {file.parent.name: COCODetection(str(file.parent), str(file), on_invalid) for file in exported}


def split_of(file: Path) -> str:
    """The split that an annotation file is called after.

    >>> split_of(Path("annotations/instances_val2017.json")), split_of(Path("cells/test.json"))
    ('val2017', 'test')
    """
    return file.stem.removeprefix("instances_")


def image_folders(file: Path) -> list[Path]:
    """Where the images of an annotation file may be."""
    split = split_of(file)
    root = file.parent.parent if file.parent.name == "annotations" else file.parent
    return [root / split, root / "images" / split, root / "images", root / "JPEGImages"]


def images_of(file: Path) -> Path | None:
    """The folder of the images that an annotation file is of, if there is one."""
    found = next((folder for folder in image_folders(file) if folder.is_dir()), None)
    if found is None and any(other.suffix.lower() in IMAGE_SUFFIXES for other in file.parent.iterdir()):
        found = file.parent  # Roboflow's exports have both in one folder
    return found


def no_images(file: Path) -> InputError:
    """What is wrong where `images_of` finds none."""
    folders = ", ".join(map(str, image_folders(file)))
    return InputError(f"Expected the images of {file} in one of {folders} but there is none of these folders.")


def yolo_splits(root: Path, on_invalid: OnInvalid) -> dict[str, DetectionDataset]:
    """The splits of a folder with a YOLO data.yaml, by any name if there is but one."""
    files = [root / "data.yaml"] if (root / "data.yaml").is_file() else sorted([*root.glob("*.yaml"), *root.glob("*.yml")])
    files = [file for file in files if file.name == "data.yaml" or "names" in read_yaml(file)]
    if len(files) > 1:
        raise InputError(f"Expected one YOLO data.yaml in {root} but there are {', '.join(file.name for file in files)}: give one of them.")
    return yolo_file_splits(files[0], on_invalid) if files else {}


def yolo_file_splits(file: Path, on_invalid: OnInvalid = "fix") -> dict[str, DetectionDataset]:
    """The splits that a YOLO data.yaml names."""
    content = read_yaml(file)
    names = [name for name in YOLO_SETS if content.get(name) is not None]
    if not names:
        raise InputError(
            f"Expected {file} as a YOLO data.yaml ({', '.join(YOLO_SETS)}, names) or a training's config (data) "
            f"but its keys are: {', '.join(map(str, list(content)[:20])) or 'none'}."
        )
    return {name: YOLODetection(str(file), name, on_invalid) for name in names}


def config_splits(file: Path) -> dict[str, DetectionDataset]:
    """The data sets of a training's config."""
    from lit_detect.lightning_cli import read_config  # not on top: only configs need Lightning

    data, _ = read_config(file, with_model=False)
    splits = {name: data.dataset(name) for name in ("train", "val", "test") if data.splits[name] not in (None, [])}
    if not splits:
        raise InputError(f"Expected data.train, data.val or data.test in {file} but none is set.")
    return splits
