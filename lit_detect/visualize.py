"""Draw boxes on images: detections, and detections against targets."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lit_detect.analysis import match_detections

__all__ = ["Outline", "draw_against_targets", "draw_boxes", "draw_detections", "montage", "with_caption"]

LEAST_SIDE, ENLARGED_SIDE = 320, 1600  # pixels: smaller images are enlarged, so that names can be read, unless one side gets too long
TALLEST = 4  # times the width of a picture in a montage
EDGE = 6  # pixels between pictures with captions
Colour = tuple[int, int, int]
TRUE, FALSE, MISSED = (
    (0, 122, 90),
    (196, 73, 0),
    (0, 96, 168),
)  # told apart by the colour-blind too (Okabe and Ito), dark under white letters
DASHED, DOTTED = (6, 4), (2, 2)


class Outline(NamedTuple):
    """A box as it is drawn.

    Attributes:
        box: x1, y1, x2 and y2 in pixels of the image.
        text: on a label at its corner, none if empty.
        colour: of line and label.
        dash: lengths of a dash and of the gap after it, in widths of the line; by default the line is solid.
    """

    box: Sequence[float]
    text: str
    colour: Colour
    dash: tuple[int, int] | None = None


def draw_boxes(image: Tensor, outlines: Sequence[Outline]) -> Image.Image:
    """An image with boxes on it.

    Args:
        image: ``(3, H, W)`` uint8 RGB.
        outlines: the boxes, the first on top. Labels are over all lines; one that would cover another before it is left out.

    Returns:
        The picture, enlarged if its shorter side is under 320 pixels and its longer one under 1600.
    """
    picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
    scale = max(1.0, min(LEAST_SIDE / min(picture.size), ENLARGED_SIDE / max(picture.size)))
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(max(12, round(min(picture.size) / 24)))
    width = max(2, round(min(picture.size) / 130))
    scaled = [outline._replace(box=[side * scale for side in outline.box]) for outline in outlines]
    for outline in reversed(scaled):
        draw_line(draw, outline, width)
    labels: list[tuple[float, float, float, float]] = []
    for outline in scaled:
        x1, y1, x2, y2 = label = label_box(outline, font, picture.size)
        if outline.text and not any(x1 < right and left < x2 and y1 < below and above < y2 for left, above, right, below in labels):
            labels.append(label)
            draw.rectangle(label, fill=outline.colour)
            draw.text((x1 + 2, y1 + 1), outline.text, fill="white", font=font)
    return picture


def draw_line(draw: ImageDraw.ImageDraw, outline: Outline, width: int) -> None:
    """The edges of a box; gaps between dashes are white, so that they show on any ground."""
    if outline.dash is None:
        draw.rectangle(list(outline.box), outline=outline.colour, width=width)
        return
    draw.rectangle(list(outline.box), outline="white", width=width)
    x1, y1, x2, y2 = outline.box
    dash, gap = (length * width for length in outline.dash)
    for start in range(int(x1), int(x2) + 1, dash + gap):
        for y in (y1, max(y1, y2 - width + 1)):
            draw.rectangle([max(x1, start), y, min(start + dash - 1, x2), y + width - 1], fill=outline.colour)
    for start in range(int(y1), int(y2) + 1, dash + gap):
        for x in (x1, max(x1, x2 - width + 1)):
            draw.rectangle([x, max(y1, start), x + width - 1, min(start + dash - 1, y2)], fill=outline.colour)


def label_box(
    outline: Outline, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Where a box's label is: over its upper left corner, or in it where there is no room; under the box if that is dotted."""
    _, _, width, height = (side + 4 for side in font.getbbox(outline.text))
    x = min(max(outline.box[0], 0), max(0, size[0] - width))
    y = outline.box[1] - height if outline.box[1] > height else outline.box[1]
    if outline.dash == DOTTED:
        y = outline.box[3] if outline.box[3] < size[1] - height else outline.box[3] - height
    return x, y, x + width, y + height


def draw_detections(image: Tensor, detections: dict[str, Tensor], classes: Sequence[str], score_threshold: float = 0.5) -> Image.Image:
    """An image with boxes, class names and scores on it.

    Args:
        image: ``(3, H, W)`` uint8 RGB.
        detections: ``boxes`` ``(D, 4)`` in the image's pixels, ``labels`` and ``scores`` ``(D,)``.
        classes: names of the labels 1..C.
        score_threshold: leave out detections that score less, 0..1.

    Returns:
        The picture, enlarged as by `draw_boxes`.
    """
    columns = (detections[name].tolist() for name in ("boxes", "labels", "scores"))
    return draw_boxes(
        image,
        [
            Outline(box, f"{classes[label - 1]} {score:.2f}", colour(label, len(classes)))
            for box, label, score in zip(*columns, strict=True)
            if score >= score_threshold
        ],
    )


def draw_against_targets(
    image: Tensor, detections: dict[str, Tensor], target: dict[str, Tensor], classes: Sequence[str], score_threshold: float = 0.5
) -> tuple[Image.Image, dict[str, int]]:
    """An image with what is right and wrong on it: true detections solid, false ones dashed, missed targets dotted.

    Matching is COCO's at an IoU of .5; what matches a crowd or a difficult target is neither true nor false, and not drawn.

    Args:
        image: ``(3, H, W)`` uint8 RGB.
        detections: ``boxes`` ``(D, 4)`` in the image's pixels, ``labels`` and ``scores`` ``(D,)``.
        target: ``boxes`` ``(M, 4)`` and ``labels`` ``(M,)``, and ``iscrowd`` and ``difficult`` where there are any.
        classes: names of the labels 1..C.
        score_threshold: leave out detections that score less, 0..1.

    Returns:
        The picture, and how many are ``true``, ``false`` and ``missed``.
    """
    kept = detections["scores"] >= score_threshold
    found = {name: detections[name][kept].cpu() for name in ("boxes", "labels", "scores")}
    target = {name: value.cpu() for name, value in target.items()}
    matches = match_detections([found], [target], classes)
    outlines: dict[str, list[Outline]] = {"false": [], "true": [], "missed": []}  # the first are on top
    columns = (matches.true, matches.false, *(found[name].tolist() for name in ("boxes", "labels", "scores")))
    for true, false, box, label, score in zip(*columns, strict=True):
        if true:
            outlines["true"].append(Outline(box, f"{classes[label - 1]} {score:.2f}", TRUE))
        elif false:
            outlines["false"].append(Outline(box, f"false: {classes[label - 1]} {score:.2f}", FALSE, DASHED))
    for missed, box, label in zip(matches.missed, target["boxes"].tolist(), target["labels"].tolist(), strict=True):
        if missed:
            outlines["missed"].append(Outline(box, f"missed: {classes[label - 1]}", MISSED, DOTTED))
    picture = draw_boxes(image, [outline for kind in outlines.values() for outline in kind])
    return picture, {kind: len(of_kind) for kind, of_kind in outlines.items()}


def colour(label: int, count: int) -> Colour:
    """A colour of a class, dark enough for white letters."""
    red, green, blue = colorsys.hls_to_rgb((label - 1) / max(count, 1), 0.38, 0.9)
    return round(red * 255), round(green * 255), round(blue * 255)


def montage(pictures: Sequence[Image.Image], columns: int = 4, width: int = 400) -> Image.Image:
    """Pictures side by side on white, each scaled to one width; a very tall one is narrower.

    Args:
        pictures: at least one.
        columns: pictures a row.
        width: of each picture, in pixels.
    """
    scales = [min(width / picture.width, TALLEST * width / picture.height) for picture in pictures]
    sides = [[max(1, round(side * scale)) for side in picture.size] for picture, scale in zip(pictures, scales, strict=True)]
    scaled = [picture.resize((w, h), Image.Resampling.LANCZOS) for picture, (w, h) in zip(pictures, sides, strict=True)]
    rows = [scaled[start : start + columns] for start in range(0, len(scaled), columns)]
    heights = [max(picture.height for picture in row) for row in rows]
    sheet = Image.new("RGB", (width * min(columns, len(scaled)), sum(heights)), "white")
    for index, row in enumerate(rows):
        for column, picture in enumerate(row):
            sheet.paste(picture, (column * width, sum(heights[:index])))
    return sheet


def with_caption(picture: Image.Image, parts: Sequence[tuple[str, Colour]]) -> Image.Image:
    """A picture under a line of text, with a white edge to its right.

    Args:
        picture: any.
        parts: pieces of the line and their colours.
    """
    font = ImageFont.load_default(18)
    sheet = Image.new("RGB", (picture.width + EDGE, picture.height + 28), "white")
    draw, x = ImageDraw.Draw(sheet), 6.0
    for text, ink in parts:
        draw.text((x, 4), text, fill=ink, font=font)
        x += font.getlength(text) + 18
    sheet.paste(picture, (0, 28))
    return sheet
