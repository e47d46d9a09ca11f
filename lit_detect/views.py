"""The verb ``visualize``: data as the network gets it, anchors, proposals and predictions, as PNG files."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal, cast

import torch
from PIL import Image
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from lit_detect.boxes import without_crowd
from lit_detect.checkpoints import load_checkpoint
from lit_detect.data.feed import Feed
from lit_detect.data.folder import ImageFolder
from lit_detect.data.images import IMAGE_SUFFIXES, inside, read_header, read_image
from lit_detect.detector import Detector
from lit_detect.errors import InputError, printable
from lit_detect.models.dense import DenseNetwork
from lit_detect.models.inputs import FixedSize, Inputs, ShortestSide
from lit_detect.models.two_stage import TwoStageNetwork
from lit_detect.visualize import DASHED, EDGE, TRUE, Outline, colour, draw_boxes, draw_detections, montage, with_caption

__all__ = ["draw_anchors", "draw_data", "draw_proposals", "visualize"]

GREY = (90, 90, 90)
WIDTH = 400  # pixels of a panel
Panels = list[tuple[str, Image.Image]]  # each with its caption
Target = dict[str, Tensor]
Found = dict[str, list[tuple[list[float], str, float]]]  # boxes xyxy, classes and scores by the image's name


def visualize(
    config: str | None = None,
    what: Literal["data", "anchors", "proposals"] = "data",
    ckpt_path: str | None = None,
    predictions: str | None = None,
    images: str | None = None,
    out: str = "visualize",
    count: int = 8,
    epochs: int = 4,
    proposals: int = 50,
    score_threshold: float = 0.5,
) -> None:
    """Draw data, anchors or proposals of a training config, or a file of predictions.

    Args:
        config: a training config, or the ``config.yaml`` of a run.
        what: ``data``: training images as they are, and as the network gets them in several epochs, augmented and in its size;
            ``anchors``: on each feature map, those that training images' boxes are matched to; ``proposals``: a two-stage detector's
            best on validation or test images, before its second stage.
        ckpt_path: the detector's checkpoint, for proposals.
        predictions: in place of a config: a file as ``predict`` writes it.
        images: the folder that the predictions are of.
        out: the folder to write to.
        count: images to draw, the first ones.
        epochs: to draw data of.
        proposals: how many to draw.
        score_threshold: draw predictions that score at least this, 0..1.

    Raises:
        InputError: not one of config and predictions; a detector that has not what is asked for; files that cannot be read.
    """
    if (config is None) == (predictions is None) or (predictions is None) != (images is None):
        raise InputError("Expected either --config, or --predictions and --images, the folder they are of.")
    sheets: Iterator[Image.Image]
    remark = ""
    if predictions is not None:
        found, of_images = read_predictions(Path(predictions)), Path(str(images))
        what_is_drawn, sheets = "predictions", draw_predictions(found, of_images, score_threshold)
        remark = without_detections(found, of_images)
    else:
        what_is_drawn, sheets = what, draw_config(str(config), what, ckpt_path, epochs, proposals)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    for number, sheet in enumerate(islice(sheets, count), start=1):
        sheet.save(folder / f"{what_is_drawn}-{number:02d}.png")
    print(printable(f"{what_is_drawn} drawn: {number} pictures, {folder}/{what_is_drawn}-*.png{remark}"))


def draw_config(config: str, what: str, ckpt_path: str | None, epochs: int, proposals: int) -> Iterator[Image.Image]:
    """Pictures of what a training config has, an image after the other."""
    from lit_detect.lightning_cli import read_config

    if what == "proposals" and ckpt_path is None:
        raise InputError("Expected --ckpt_path, since proposals have to be learnt.")
    data, detector = read_config(config)
    if detector is None and what != "data":
        raise InputError(f"Expected a model in {config}, whose {what} are to be drawn.")
    if detector is not None and ckpt_path is not None:
        load_checkpoint(detector, Path(ckpt_path))
    held_out = [name for name in ("val", "test") if data.splits[name] is not None]
    split = held_out[0] if what == "proposals" and held_out else "train"
    data.setup({"train": "fit", "val": "validate", "test": "test"}[split])
    feed, dataset = data.feeds[split], data.feeds[split].dataset
    as_it_is = Feed(dataset, indices=feed.indices)
    for position, index in enumerate(feed.indices):
        image, target = cast("tuple[Tensor, Target]", as_it_is[position])
        panels = [(f"{dataset.file_name(index)}, {size(image)}", draw_target(image, target, data.classes))]
        if what == "data":
            panels += draw_data(feed, position, getattr(detector and detector.network, "inputs", None), data.classes, epochs)
        elif len((learnt := without_crowd(target))["boxes"]) and what == "anchors":
            panels += draw_anchors(cast(Detector, detector), image, learnt)
        elif len(learnt["boxes"]):
            panels += draw_proposals(cast(Detector, detector), image, learnt, proposals)
        if len(panels) > 1:
            yield sheet_of(panels)


def size(image: Tensor) -> str:
    """Width and height, as text."""
    return f"{image.shape[-1]} x {image.shape[-2]}"


def draw_target(image: Tensor, target: Target, classes: Sequence[str]) -> Image.Image:
    """An image with its boxes; those of crowds dashed."""
    crowd = target.get("iscrowd", torch.zeros_like(target["labels"])).tolist()
    columns = (target["boxes"].tolist(), target["labels"].tolist(), crowd)
    outlines = [
        Outline(box, classes[label - 1], colour(label, len(classes)), DASHED if many else None)
        for box, label, many in zip(*columns, strict=True)
    ]
    return draw_boxes(image, outlines)


def sheet_of(panels: Panels) -> Image.Image:
    """Panels side by side, each under its caption."""
    scaled = [(text, montage([picture], width=WIDTH - EDGE)) for text, picture in panels]
    return montage([with_caption(picture, [(text, GREY)]) for text, picture in scaled], columns=min(len(panels), 5), width=WIDTH)


def seen(inputs: Inputs, module: FixedSize | ShortestSide) -> Tensor:
    """The first image of a batch as it is normalised, in colours again: ``(3, H, W)`` uint8 with padding."""
    image: Tensor = (inputs.images * module.std + module.mean)[0]
    return image.round().clamp(0, 255).byte()


def draw_data(feed: Feed, position: int, inputs: FixedSize | ShortestSide | None, classes: Sequence[str], epochs: int) -> Panels:
    """An image of a feed in several epochs, as the network gets it; without its inputs, as it is fed.

    Args:
        feed: of training.
        position: of the image in it.
        inputs: the network's, which may draw sizes of their own in training.
        classes: names of the labels 1..C.
        epochs: the number of versions.
    """
    panels = []
    for epoch in range(epochs):
        image, target = cast("tuple[Tensor, Target]", feed[epoch, position])
        if inputs is not None:
            batch = inputs.train()([image])
            image, target = seen(batch, inputs), batch.scale_targets([target])[0]
        panels.append((f"epoch {epoch}: {size(image)}, boxes: {len(target['boxes'])}", draw_target(image, target, classes)))
    return panels


@torch.no_grad()
def draw_anchors(detector: Detector, image: Tensor, target: Target) -> Panels:
    """An image for each feature map, with the anchors that are matched to its boxes, in the box's colour (SSD, figure 1).

    Args:
        detector: a one-stage one, or a two-stage one, of which the proposal network's anchors count.
        image: ``(3, H, W)`` uint8 RGB.
        target: with at least one box.

    Raises:
        InputError: a detector of another kind.
    """
    network = detector.network.eval()
    if not isinstance(network, DenseNetwork | TwoStageNetwork):
        raise InputError(f"Expected a detector with anchors but {type(detector).__name__} has none.")
    inputs = network.inputs([image])
    boxes = inputs.scale_targets([target])[0]["boxes"]
    maps = list(network.backbone(inputs.images).values())
    if isinstance(network, DenseNetwork):
        found = network.anchors(inputs.images, maps)
        (matches,) = network.matcher(found, boxes[None], torch.ones(1, len(boxes), dtype=torch.bool))
        anchors, counts = found.boxes, list(found.per_map)
    else:
        generator = network.rpn.anchor_generator
        maps = maps[: len(generator.sizes)]  # R-FCN's other maps are for the second stage
        anchors = generator(ImageList(inputs.images, inputs.sizes), maps)[0]
        matches = network.rpn.proposal_matcher(box_iou(boxes, anchors))
        counts = [n * of_map[0, 0].numel() for n, of_map in zip(generator.num_anchors_per_location(), maps, strict=True)]
    panels, shown = [], seen(inputs, network.inputs)
    for of_map, found_here, matched in zip(maps, torch.split(anchors, counts), torch.split(matches, counts), strict=True):
        outlines = [Outline(box, "", colour(index + 1, len(boxes)), DASHED) for index, box in enumerate(boxes.tolist())]
        chosen = (matched >= 0).nonzero().flatten().tolist()
        outlines += [Outline(found_here[place].tolist(), "", colour(int(matched[place]) + 1, len(boxes))) for place in chosen]
        text = f"map of {size(of_map)}: {len(chosen)} of {len(found_here)} matched"
        panels.append((text, draw_boxes(shown, outlines)))
    return panels


@torch.no_grad()
def draw_proposals(detector: Detector, image: Tensor, target: Target, count: int) -> Panels:
    """The best proposals of an image, green where they overlap a box by an IoU of .5.

    Args:
        detector: a two-stage one.
        image: ``(3, H, W)`` uint8 RGB.
        target: with at least one box.
        count: how many to draw.

    Raises:
        InputError: a detector of another kind.
    """
    network = detector.network.eval()
    if not isinstance(network, TwoStageNetwork):
        raise InputError(f"Expected a two-stage detector, which has proposals, but got {type(detector).__name__}.")
    inputs = network.inputs([image])
    boxes = inputs.scale_targets([target])[0]["boxes"]
    _, (proposals,) = network.propose(inputs, network.features(inputs), None)
    overlaps = box_iou(proposals, boxes) >= 0.5  # (P, M), the best proposals first
    outlines = [
        Outline(box, "", TRUE if good else GREY) for box, good in zip(proposals[:count].tolist(), overlaps[:count].any(dim=1), strict=True)
    ]
    outlines.sort(key=lambda outline: outline.colour != TRUE)
    best, all_of_them = (int(rows.any(dim=0).sum()) for rows in (overlaps[:count], overlaps))
    text = f"{len(outlines)} of {len(proposals)} proposals cover {best} of {len(boxes)}, all {all_of_them}"
    return [(text, draw_boxes(seen(inputs, network.inputs), outlines))]


def read_predictions(file: Path) -> Found:
    """What a predictions file has, in its order.

    Raises:
        InputError: a file that cannot be read, or an entry that is not as `predict` writes it.
    """
    by_image: Found = defaultdict(list)
    where = ""
    try:
        for number, entry in enumerate(json.loads(file.read_text(encoding="utf-8"))):
            where = f" in entry {number}, {str(entry)[:200]}"
            x, y, width, height, score = map(float, (*entry["bbox"], entry["score"]))
            if min(width, height) < 0 or not all(abs(value) < 1e9 for value in (x, y, width, height, score)):
                raise ValueError("a box with negative sides, or a number that is not finite or beyond any image")
            by_image[str(entry["file_name"])].append(([x, y, x + width, y + height], str(entry["category_name"]), score))
    except OSError as error:
        raise InputError(f"Expected predictions but could not read {file}: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(
            f"Expected {file} as predict writes it, entries with bbox, file_name, category_name and score, but got: {error!r}{where}."
        ) from error
    return by_image


def draw_predictions(by_image: Found, folder: Path, score_threshold: float) -> Iterator[Image.Image]:
    """The images of a folder with what was found on them, in the order of the predictions file."""
    classes = sorted({name for found in by_image.values() for _, name, _ in found})
    for image_name, found in by_image.items():
        path = inside(folder, image_name)
        if path.suffix.lower() not in IMAGE_SUFFIXES and not path.is_file():
            raise InputError(
                f"Expected predictions on image files but got {image_name!r}: frames of a video are drawn by predict itself, "
                "with images among its outputs."
            )
        read_header(path)  # which refuses what is too large to be decoded
        image = torch.from_numpy(read_image(path, rotate=True)).permute(2, 0, 1)
        boxes, names, scores = zip(*found, strict=True)
        detections = {
            "boxes": torch.tensor(boxes),
            "labels": torch.tensor([classes.index(name) + 1 for name in names]),
            "scores": torch.tensor(scores),
        }
        yield sheet_of([(image_name, draw_detections(image, detections, classes, score_threshold))])


def without_detections(by_image: Found, folder: Path) -> str:
    """How many images of a folder a predictions file does not name, for the terminal."""
    images = ImageFolder(str(folder))
    count = sum(images.file_name(index) not in by_image for index in range(len(images)))
    return f"; {count} of {len(images)} images have no detections"
