"""Data sets with every fault there is, and what is to be found in them."""

import json
import zlib
from io import BytesIO

import cv2
import numpy as np
from PIL import Image


def encoded(name, form="JPEG", mode="RGB", **options):
    """An image file of 80 x 60 pixels, unlike those of other names."""
    file = BytesIO()
    blocks = np.random.default_rng(zlib.crc32(name.encode())).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(cv2.resize(blocks, (80, 60))).convert(mode).save(file, form, **options)
    return file.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def sixteen(channels):
    return cv2.imencode(".png", np.random.default_rng(1).integers(0, 2**16, (60, 80, channels), dtype=np.uint16))[1].tobytes()


def enormous():
    """A small PNG whose header says 60000 x 60000."""
    content = bytearray(encoded("enormous", "PNG"))
    content[16:24] = (60000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


IMAGES = {  # file name: content, and what is to be said of it
    "zero.jpg": (b"", ["image unreadable"]),
    "truncated.jpg": (encoded("a")[:-400], ["image unreadable"]),
    "torn.png": (encoded("b", "PNG")[:-400], ["image unreadable"]),
    "text.jpg": (b"not an image", ["image unreadable"]),
    "enormous.png": (enormous(), ["image unreadable"]),
    "turned.jpg": (encoded("c", exif=turned(3)), ["EXIF orientation"]),
    "quarter.jpg": (encoded("d", exif=turned(6)), ["EXIF orientation"]),
    "cmyk.jpg": (encoded("e", mode="CMYK"), ["CMYK"]),
    "sixteen.png": (sixteen(3), ["16 bits"]),
    "grey16.png": (sixteen(1), ["16 bits", "grey"]),
    "grey.jpg": (encoded("f", mode="L"), ["grey"]),
    "palette.png": (encoded("g", "PNG", "P"), ["palette"]),
    "alpha.png": (encoded("h", "PNG", "RGBA"), ["alpha"]),
    "frames.gif": (encoded("i", "GIF", save_all=True, append_images=[Image.new("RGB", (80, 60))]), ["palette", "animated"]),
    "lone.jpg": (encoded("j"), ["file unlisted"]),
    "plain.jpg": (encoded("k"), []),
    "webp.webp": (encoded("l", "WEBP", lossless=True), []),
    "tiff.tiff": (encoded("m", "TIFF"), []),
}
BOX = (11, 21, 40, 50)  # 30 x 30 pixels, counted from 1


def thing(box=BOX, name="cat", more=""):
    corners = "".join(f"<{side}>{value}</{side}>" for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{name}</name>{more}<bndbox>{corners}</bndbox></object>"


def annotation(objects, size=(80, 60)):
    said = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>" if size else ""
    return f"<annotation>{said}{''.join(objects)}</annotation>"


XMLS = {  # name of an image, the annotation's objects, its size, and faults with the object that they are of
    "outside": ([thing((11, 21, 90, 50))], (80, 60), [("box partly outside", "object 1")]),
    "flat": ([thing(), thing((11, 21, 11, 50))], (80, 60), [("box without area", "object 2")]),
    "swapped": ([thing((40, 21, 11, 50))], (80, 60), [("corners swapped", "object 1")]),
    "sizeless": ([thing()], None, [("size missing", "")]),
    "upright": ([thing()], (60, 80), [("size of the turned image", "")]),
    "wide": ([thing()], (81, 60), [("size not the image's", "")]),
    "words": ([thing(("eleven", 21, 40, 50))], (80, 60), [("box not four numbers", "object 1")]),
    "beyond": ([thing(), thing((90, 21, 95, 50))], (80, 60), [("box outside", "object 2")]),
    "nameless": ([thing(name="")], (80, 60), [("class missing", "object 1")]),
    "floats": ([thing((11.5, 21, 40, 50))], (80, 60), [("float coordinates", "object 1")]),
    "parts": ([thing(more="<part/>")], (80, 60), [("boxes of parts", "object 1")]),
    "broken": (["<object>"], (80, 60), [("annotation unreadable", "")]),
    "gone": ([thing()], (80, 60), []),
    "empty": ([], (80, 60), []),
    "difficult": ([thing(more="<difficult>1</difficult>", name="[red]dog[/red]")], (80, 60), []),
}


def make_voc(root):
    """One VOC set with all that such a set can have, and what is to be found, as (kind, file, annotation)."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    found = [("image missing", "JPEGImages/gone.jpg", ""), ("name leaves the folder", "ImageSets/Main/train.txt", "")]
    found += [("listed twice", "ImageSets/Main/train.txt", ""), ("EXIF orientation", "JPEGImages/upright.jpg", "")]
    found += [("file unlisted", "Annotations/lone.xml", "")]
    for name, (content, kinds) in IMAGES.items():
        (root / "JPEGImages" / name).write_bytes(content)
        found += [(kind, f"JPEGImages/{name}", "") for kind in kinds]
    for name, (_, _, faults) in XMLS.items():
        content = encoded(name, exif=turned(6)) if name == "upright" else encoded(name)
        if name != "gone":
            (root / "JPEGImages" / f"{name}.jpg").write_bytes(content)
        found += [(kind, f"Annotations/{name}.xml", where) for kind, where in faults]
    rows = {name.partition(".")[0]: ([thing()], (80, 60)) for name in IMAGES} | {name: row[:2] for name, row in XMLS.items()}
    for name, (objects, size) in rows.items():
        (root / "Annotations" / f"{name}.xml").write_text(annotation(objects, size))
    names = [name for name in rows if name != "lone"]
    (root / "ImageSets/Main/train.txt").write_text("\n".join([*names, "plain", "../../../secret"]))
    return found


def make_coco(root):
    """One COCO set with all that such a set can have, and what is to be found."""
    (root / "images" / "train").mkdir(parents=True)
    (root / "annotations").mkdir()
    for name, (content, _) in IMAGES.items():
        (root / "images" / "train" / name).write_bytes(content)
    file, found = "annotations/instances_train.json", [(kind, f"images/train/{name}", "") for name in IMAGES for kind in IMAGES[name][1]]
    images = [{"id": number, "file_name": name, "width": 80, "height": 60} for number, name in enumerate(IMAGES, 1) if name != "lone.jpg"]
    plain = next(image["id"] for image in images if image["file_name"] == "plain.jpg")
    (root / "images" / "train" / "plain2.jpg").write_bytes(encoded("plain2"))
    next(image for image in images if image["file_name"] == "quarter.jpg").update(width=60, height=80)
    images += [{"id": 100, "file_name": "../../secret.jpg"}, {"id": 101, "file_name": "gone.jpg"}, {"id": "x", "file_name": "y.jpg"}]
    images += [{"id": plain, "file_name": "plain.jpg"}, {"id": 102, "file_name": "plain2.jpg", "width": 0, "height": 0}]
    next(image for image in images if image["file_name"] == "turned.jpg").update(width=81)
    found += [("size of the turned image", file, ""), ("name leaves the folder", file, ""), ("image missing", "images/train/gone.jpg", "")]
    found += [
        ("id wrong", file, "image x"),
        ("id repeated", file, f"image {plain}"),
        ("size missing", file, ""),
        ("size not the image's", file, ""),
    ]
    found.remove(("EXIF orientation", "images/train/turned.jpg", ""))  # whose size is wrong, so that it is not used
    boxes = {
        "box partly outside": [60, 20, 40, 30],
        "box without area": [10, 20, 0, 30],
        "corners swapped": [40, 20, -30, 30],
        "box outside": [90, 20, 5, 30],
        "box not four numbers": [10, 20, 30],
    }
    annotations = [{"id": number, "image_id": plain, "category_id": 2, "bbox": box} for number, box in enumerate(boxes.values(), 1)]
    found += [(kind, file, f"annotation {number}") for number, kind in enumerate(boxes, 1)]
    good = {"image_id": plain, "category_id": 5, "bbox": [10, 20, 30, 30], "area": 500}
    annotations += [
        {**good, "id": 10},
        {**good, "id": 10},
        {**good, "id": 11, "category_id": 3},
        {**good, "id": 12, "iscrowd": 1, "segmentation": {}},
    ]
    found += [("id repeated", file, "annotation 10"), ("id dangling", file, "annotation 11"), ("crowd with RLE", file, "annotation 12")]
    found += [("gaps in category ids", file, "")]
    categories = [{"id": 2, "name": "cat"}, {"id": 5, "name": "dog"}]
    (root / file).write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return found


def make_yolo(root):
    """What only YOLO's format can have."""
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for name in "abc":
        (root / "images" / f"{name}.jpg").write_bytes(encoded(name))
    (root / "labels" / "a.txt").write_text("0 .5 .5 .2 .2\n9 .5 .5 .2 .2\n")
    (root / "labels" / "b.txt").write_text("0 .1 .1 .5 .1 .5 .5\n")
    (root / "data.yaml").write_text("train: images\nnames: [cat]\n")
    return [
        ("class unknown", "labels/a.txt", "line 2"),
        ("polygon taken as its box", "labels/b.txt", ""),
        ("no label file", "labels/c.txt", ""),
    ]


def write_voc(root, images, splits):
    """A VOC set of one box an image, from contents by name and names by split."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for name, content in images.items():
        (root / "JPEGImages" / f"{name}.jpg").write_bytes(content)
        (root / "Annotations" / f"{name}.xml").write_text(annotation([thing()]))
    for split, names in splits.items():
        (root / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(names))
