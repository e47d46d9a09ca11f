"""Draw detections on images."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

__all__ = ["draw_detections", "montage"]

LEAST_SIDE = 320  # pixels: smaller images are enlarged, so that names can be read


def draw_detections(image: Tensor, detections: dict[str, Tensor], classes: Sequence[str], score_threshold: float = 0.5) -> Image.Image:
    """An image with boxes, class names and scores on it.

    Args:
        image: ``(3, H, W)`` uint8 RGB.
        detections: ``boxes`` ``(D, 4)`` in the image's pixels, ``labels`` and ``scores`` ``(D,)``.
        classes: names of the labels 1..C.
        score_threshold: leave out detections that score less, 0..1.

    Returns:
        The picture, enlarged if its shorter side is under 320 pixels.
    """
    picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
    scale = max(1.0, LEAST_SIDE / min(picture.size))
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(max(12, round(min(picture.size) / 30)))
    width = max(2, round(min(picture.size) / 200))
    columns = (detections[name].cpu().numpy() for name in ("boxes", "labels", "scores"))
    shown = [(box * scale, int(label), score) for box, label, score in zip(*columns, strict=True) if score >= score_threshold]
    for box, label, _ in reversed(shown):
        draw.rectangle(box.tolist(), outline=colour(label, len(classes)), width=width)
    for box, label, score in reversed(shown):  # names over all boxes, the best on top
        text = f"{classes[label - 1]} {score:.2f}"
        _, _, text_width, text_height = font.getbbox(text)
        x = float(np.clip(box[0], 0, max(0, picture.width - text_width - 4)))
        y = float(box[1] - text_height - 4 if box[1] > text_height + 4 else box[1])
        draw.rectangle([x, y, x + text_width + 4, y + text_height + 4], fill=colour(label, len(classes)))
        draw.text((x + 2, y + 1), text, fill="white", font=font)
    return picture


def colour(label: int, count: int) -> tuple[int, int, int]:
    """A colour of a class, dark enough for white letters."""
    red, green, blue = colorsys.hls_to_rgb((label - 1) / max(count, 1), 0.38, 0.9)
    return round(red * 255), round(green * 255), round(blue * 255)


def montage(pictures: Sequence[Image.Image], columns: int = 4, width: int = 400) -> Image.Image:
    """Pictures side by side on white, each scaled to one width.

    Args:
        pictures: at least one.
        columns: pictures a row.
        width: of each picture, in pixels.
    """
    scaled = [picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS) for picture in pictures]
    rows = [scaled[start : start + columns] for start in range(0, len(scaled), columns)]
    heights = [max(picture.height for picture in row) for row in rows]
    sheet = Image.new("RGB", (width * min(columns, len(scaled)), sum(heights)), "white")
    for index, row in enumerate(rows):
        for column, picture in enumerate(row):
            sheet.paste(picture, (column * width, sum(heights[:index])))
    return sheet
