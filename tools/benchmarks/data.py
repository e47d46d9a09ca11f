"""Images a second of SSD's augmentation, from the JPEG file to a uint8 tensor of 300 x 300: ours against torchvision's v2 preset.

One process, one thread, in the core's time, so that waiting for a core that others use does not count; DataLoaders in time that passes.
All ways take turns over the same images, after a round that is not counted; the median of the rounds counts.
Before, it is checked that boxes follow their pixels through files, and that all ways give what a network takes. Boxes are VOC's, or
random ones for a folder of JPEGs alone.

    python tools/benchmarks/data.py --images VOCdevkit/VOC2012 --json data.json
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.io import read_image
from torchvision.transforms import v2
from torchvision.tv_tensors import BoundingBoxes
from torchvision.tv_tensors import Image as ImageTensor

from lit_detect import DetectionDataset, VOCDetection
from lit_detect.data.batches import collate
from lit_detect.data.feed import EpochSampler, Feed
from lit_detect.data.images import ImageFile, read_header
from lit_detect.data.presets import preset
from lit_detect.data.transforms import MEAN, compose
from lit_detect.data.workers import start_worker

SIZE, BATCH = 300, 32
Run = Callable[[int, int], Any]  # of an epoch and an image's number


class Files(DetectionDataset):
    """JPEGs with the boxes given."""

    classes = ("object",)

    def __init__(self, paths: list[Path], boxes: list[np.ndarray]) -> None:
        self.paths, self.boxes = paths, boxes
        self.files = [ImageFile.from_header(path, read_header(path)) for path in paths]

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, index: int) -> tuple[ImageFile, dict[str, Any]]:
        return self.files[index], {"boxes": self.boxes[index], "labels": np.ones(len(self.boxes[index]), np.int64), "image_id": index}

    def load(self, index: int) -> tuple[np.ndarray, dict[str, Any]]:
        file, target = self.open(index)
        return file.read(), target


class Torchvision(Dataset[Any]):
    """torchvision's preset as its references have it, and resized: on PIL images or on tensors."""

    def __init__(self, files: Files, pil: bool) -> None:
        self.files, self.pil = files, pil
        geometry = [v2.RandomZoomOut(defaultdict(lambda: MEAN)), v2.RandomIoUCrop(), v2.RandomHorizontalFlip(), v2.Resize([SIZE, SIZE])]
        to_tensor = [v2.PILToTensor()] if pil else []
        last = [v2.SanitizeBoundingBoxes(), v2.ToPureTensor()]
        self.transforms = v2.Compose([v2.RandomPhotometricDistort(), *geometry, *to_tensor, *last])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        file, target = self.files.open(index)
        image = Image.open(file.path).convert("RGB") if self.pil else ImageTensor(read_image(str(file.path), "RGB"))
        boxes = BoundingBoxes(torch.as_tensor(target["boxes"]), format="XYXY", canvas_size=(file.height, file.width))
        return self.transforms(image, {"boxes": boxes, "labels": torch.as_tensor(target["labels"])})


def find(root: Path) -> Files:
    """The JPEGs of a folder, or of a VOC root with its boxes."""
    if (root / "Annotations").is_dir():
        sets = sorted((root / "ImageSets" / "Main").glob("*.txt"), key=lambda path: path.stat().st_size)
        voc = VOCDetection(str(root), sets[-1].stem)
        opened = [voc.open(index) for index in range(len(voc))]
        return Files([image.path for image, _ in opened], [target["boxes"] for _, target in opened])
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not paths:
        raise SystemExit(f"Expected JPEGs in {root} but there are none.")
    files, generator = Files(paths, []), np.random.default_rng(0)
    for file in files.files:
        corners = generator.uniform(0, 0.5, (generator.integers(1, 5), 2))
        edges = np.concatenate([corners, corners + generator.uniform(0.1, 0.5, corners.shape)], axis=1)
        files.boxes.append((edges * np.array([file.width, file.height] * 2)).astype(np.float32))
    return files


def check_boxes(draws: int = 300) -> None:
    """A red box, in JPEGs of which decoders must round sides up, is where the target says, whatever the zoom."""
    box = np.array([101, 57, 330, 290])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "box.jpg"
        pixels = np.full((375, 499, 3), 60, np.uint8)
        pixels[box[1] : box[3], box[0] : box[2]] = [60, 60, 255]  # BGR
        cv2.imwrite(str(path), pixels, [cv2.IMWRITE_JPEG_QUALITY, 100])
        feed = Feed(Files([path], [box[None]]), preset("ssd", SIZE)[:-1])  # not the colours
        farthest = 0.0
        for epoch in range(draws):
            image, target = feed[epoch, 0]
            red = np.argwhere(image[0].numpy().astype(int) - image[2].numpy() > 100)[:, ::-1]  # more than MEAN's own
            found = np.concatenate([red.min(axis=0), red.max(axis=0) + 1])
            farthest = max(farthest, float(np.abs(found - target["boxes"][0].numpy()).max()))
    print(f"Boxes are at most {farthest:.2f} pixels from their pixels in {draws} draws.")
    assert farthest < 1, farthest


def check_samples(ways: dict[str, Run], count: int) -> None:
    """All ways but decoding give images of one shape, and boxes inside."""
    for name, run in ways.items():
        for index in range(0 if name.startswith("decode") else count):
            image, target = run(0, index)
            assert (image.shape, image.dtype) == ((3, SIZE, SIZE), torch.uint8), name
            boxes = torch.as_tensor(target["boxes"])
            assert bool(((boxes >= 0) & (boxes <= SIZE)).all() and (boxes[:, 2:] > boxes[:, :2]).all()), name


def speeds(ways: dict[str, Run], images: int, chunk: int, rounds: int) -> dict[str, list[float]]:
    """Images a second of each way in each round."""
    numbers = itertools.cycle(range(images))
    found: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(rounds + 1):
        turn = list(itertools.islice(numbers, chunk))
        for name, run in ways.items():
            start = time.process_time()
            for index in turn:
                run(round_, index)
            found[name].append(chunk / (time.process_time() - start))
    return {name: values[1:] for name, values in found.items()}


def stages(files: Files, draws: int) -> dict[str, float]:
    """Mean milliseconds an image of what our way consists of, each alone."""
    feed = Feed(files, preset("ssd", SIZE), train=True)
    zoom, flip, colours = feed.augment.transforms
    idle = compose([type(flip)(p=0)] * 3)
    took: dict[str, float] = defaultdict(float)

    def timed(name: str, run: Callable[[], Any]) -> Any:
        start = time.process_time()
        result = run()
        took[name] += (time.process_time() - start) * 1000 / draws
        return result

    for draw in range(draws):
        file, target = files.open(draw % len(files))
        boxes = target["boxes"].astype(np.float64)
        rng = np.random.default_rng(draw)
        timed("seeding", lambda: feed.augment.set_random_state(rng, random.Random(draw)))  # noqa: B023
        window = timed("drawing a window", lambda: zoom.draw(file.height, file.width, boxes))  # noqa: B023
        by = window.reduction
        image = timed("decoding, reduced", lambda: file.read(by))  # noqa: B023
        data = {"image": image, "bboxes": boxes / by, "kept": np.arange(len(boxes))}
        window = window.reduced(by)
        params = {"window": window, "shape": image.shape, **zoom.get_params_dependent_on_data({"shape": image.shape}, {"window": window})}
        seen = timed("resize and fill", lambda: zoom.apply(image, **params))  # noqa: B023
        timed("Compose around three transforms that do nothing", lambda: idle(**data))  # noqa: B023
        timed("flip", lambda: flip(image=seen))  # noqa: B023
        timed("colours", lambda: colours(image=seen))  # noqa: B023
        timed("all, with checks and tensors", lambda: feed[0, draw % len(files)])  # noqa: B023
    return took


def epochs(loader: DataLoader[Any]) -> Iterator[float]:
    """Images a second of one epoch after another; the first, in which workers start, is not counted."""
    for epoch in itertools.count():
        start, images = time.perf_counter(), 0
        for batch, _ in loader:
            images += len(batch)
        if epoch:
            yield images / (time.perf_counter() - start)


def loaders(files: Files, rounds: int) -> dict[str, list[float]]:
    """Images a second of whole DataLoaders, in turn."""
    feed, reference = Feed(files, preset("ssd", SIZE), train=True), Torchvision(files, pil=False)
    shared: dict[str, Any] = {"collate_fn": collate, "worker_init_fn": start_worker}
    runs = {
        "ours, 0 workers": DataLoader(feed, BATCH, sampler=EpochSampler(feed, 1, 0), **shared),
        "ours, 2 workers": DataLoader(feed, BATCH, sampler=EpochSampler(feed, 1, 0), num_workers=2, persistent_workers=True, **shared),
        "torchvision on tensors, 2 workers": DataLoader(reference, BATCH, True, num_workers=2, persistent_workers=True, **shared),
    }
    running = {name: epochs(loader) for name, loader in runs.items()}
    turns = [{name: next(speed) for name, speed in running.items()} for _ in range(rounds)]
    return {name: [turn[name] for turn in turns] for name in runs}


def main() -> None:
    """Check, measure, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="a folder of JPEGs, or a VOC root")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--chunk", type=int, default=25, help="images a round")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    arguments = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    files = find(arguments.images)
    feed = Feed(files, preset("ssd", SIZE), train=True)
    whole = Feed(copy.copy(files), preset("ssd", SIZE), train=True)
    whole.dataset.files = [file._replace(reductions=(1,)) for file in files.files]
    pil, tensors = Torchvision(files, pil=True), Torchvision(files, pil=False)
    ways: dict[str, Run] = {
        "decode alone (OpenCV)": lambda epoch, index: files.files[index].read(),
        "torchvision v2 on PIL images": lambda epoch, index: pil[index],
        "torchvision v2 on tensors": lambda epoch, index: tensors[index],
        "ours, decoded whole": lambda epoch, index: whole[epoch, index],
        "ours": lambda epoch, index: feed[epoch, index],
    }
    check_boxes()
    check_samples(ways, count=min(len(files), 20))
    results: dict[str, Any] = {"images": len(files), "opencv": cv2.__version__, "torch": torch.__version__}
    found = results["speeds"] = speeds(ways, len(files), arguments.chunk, arguments.rounds)
    decode, *_, ours = found
    fastest = max(("torchvision v2 on PIL images", "torchvision v2 on tensors"), key=lambda name: statistics.median(found[name]))

    def ratio(name: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(found[name], found[other], strict=True))

    print(f"\n| one core, {len(files)} images | images/s | of decoding | of the faster of torchvision's |\n|---|---|---|---|")
    for name, values in found.items():
        print(f"| {name} | {statistics.median(values):.0f} | {100 * ratio(name, decode):.0f} % | {ratio(name, fastest):.1f} |")
    results["ratios"] = {"of decoding": ratio(ours, decode), "of torchvision": ratio(ours, fastest)}
    results["stages"] = stages(files, draws=800)
    print("\n| of ours | ms an image |\n|---|---|")
    for name, value in results["stages"].items():
        print(f"| {name} | {value:.2f} |")
    results["loaders"] = loaders(files, max(2, arguments.rounds // 5))
    print(f"\n| DataLoader, batches of {BATCH} | images/s |\n|---|---|")
    for name, values in results["loaders"].items():
        print(f"| {name} | {statistics.median(values):.0f} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
