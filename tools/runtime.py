"""Detections of an exported ONNX file on an image, drawn and printed, without torch: NumPy, Pillow and ONNX Runtime are enough.

python -m lit_detect export --ckpt_path best.ckpt
python tools/runtime.py best.onnx photograph.jpg --out drawn.png
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw, ImageOps


def main() -> None:
    """Read, run, print a line of JSON for each detection, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="an .onnx file")
    parser.add_argument("image")
    parser.add_argument("--score_threshold", type=float, default=0.5, help="leave out what scores less, 0..1")
    parser.add_argument("--out", default="drawn.png")
    arguments = parser.parse_args()
    session = onnxruntime.InferenceSession(arguments.model, providers=["CPUExecutionProvider"])
    about = {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}
    image = ImageOps.exif_transpose(Image.open(arguments.image)).convert("RGB")
    # uint8 in any size: the graph resizes to about["input"]["resized_to"] and normalises; boxes are in this image's pixels
    pixels = np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)[None])
    boxes, labels, scores, counts = session.run(["boxes", "labels", "scores", "counts"], {"images": pixels})
    draw = ImageDraw.Draw(image)
    for box, label, score in zip(boxes[0, : counts[0]], labels[0], scores[0], strict=False):
        if score < arguments.score_threshold:
            break  # the best come first
        name = about["classes"][label - 1]  # label 0 would be the background
        print(json.dumps({"class": name, "score": float(score), "box": box.tolist()}))
        draw.rectangle(box.tolist(), outline="red", width=2)
        draw.text((box[0] + 3, box[1] + 1), f"{name} {score:.2f}", fill="red", font_size=14)
    image.save(arguments.out)


if __name__ == "__main__":
    main()
