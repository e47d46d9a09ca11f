"""The verb ``compare``: which detector to take, by speed and accuracy on one's own data (Huang et al. 2017, figure 6).

It trains what is not trained yet, each model by the ordinary ``fit`` in a process of its own, measures them all, and writes into a folder

- ``compare.json``: ``lit_detect``, ``command``, ``machine``, ``images``, ``least_ap``, ``most_ms``, ``verdict``, ``pareto_front`` (names),
  ``pictures``, and ``rows``: ``name`` and either ``error``, or ``detector``, ``extractor``, ``input_size``, ``checkpoint``, ``ap``,
  ``ap50``, ``ap75``, ``ap_small``, ``ap_medium``, ``ap_large`` (0..1, as ``validate`` gives them), ``latency_ms`` and ``latency_p95_ms``
  (median and 95th percentile, one image at a time), ``images_per_second`` at the best ``batch_size``, ``parameters``, ``gflops``,
  ``memory_mb``, ``joules_an_image``, ``training_seconds`` and ``seconds_to_least_ap`` (without validation), ``latency_by_proposals``
  and ``latency_by_objects`` (pairs of a count and milliseconds). What cannot be had is absent;
- ``compare.md``: the same as a page;
- ``speed_accuracy.png``, ``latency_proposals.png``, ``latency_objects.png``;
- a folder for each model, with its ``config.yaml``, the training's files and what was printed (``fit.log``, ``measure.log``).
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

import lit_detect
from lit_detect.compare_measure import load_detector, validation_images
from lit_detect.compare_plots import draw_pictures
from lit_detect.compare_report import front, limits, markdown, time_to, verdict
from lit_detect.compare_runs import Run, call, epochs, read_models, train
from lit_detect.cost import Pass, detection_pass, in_turn, machine, proposals, proposals_of
from lit_detect.detector import Detector
from lit_detect.errors import InputError
from lit_detect.lightning_cli import read_config

__all__ = ["compare"]

PROPOSALS = (10, 30, 100, 300, 1000)
ROUNDS = 20  # of each number of proposals
LIMIT = 120.0  # seconds of timing, for each model
FEW = 3  # images with about as many objects: of fewer there is no median

Row = dict[str, Any]


def compare(
    models: dict[str, dict] | None = None,  # type: ignore[type-arg]  # of a dict of anything the parser would make whole what has a class_path
    shared: dict | None = None,  # type: ignore[type-arg]
    runs: list[str] | None = None,
    out: str = "compare",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true",
    images: int = 100,
    least_ap: float | None = None,
    most_ms: float | None = None,
) -> None:
    """Train detectors alike, measure them, and say which to take.

    A model that is measured already is not trained again, one whose training was cut off goes on, and one that fails is a row that says
    why.

    Args:
        models: by name, what is laid over `shared` to give a whole training config. Beside that: ``config``, a training config that
            comes below `shared`; ``run``, the folder of a training that is done, or ``ckpt_path``, a checkpoint; ``extractors``, backbones
            by name, and ``sizes``, input sizes, each of which makes a model of its own.
        shared: a training config, or a part of one: data, trainer, seed.
        runs: folders of trainings that are done, in place of `models` or beside them; AP is that of `shared` data, or else of their own.
        out: the folder to write.
        device: what to measure on; by default a GPU if there is one.
        precision: what to measure in.
        images: how many images of the validation set latency is measured on.
        least_ap: the verdict names the fastest model of this AP or more, 0..1; by default nine tenths of the best.
        most_ms: and the most accurate one within so many milliseconds an image; by default the median of all.

    Raises:
        InputError: no model, or one that is not described as it should be.
    """
    if images < 1:
        raise InputError(f"Expected at least 1 image but got {images}.")
    named = {**(models or {}), **{Path(run).name: {"run": run} for run in runs or []}}
    if not named or len(named) < len(models or {}) + len(runs or []):
        raise InputError(f"Expected models or runs to compare, each of a name of its own, but got {list(models or {}) + (runs or [])}.")
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    folder = Path(out)
    entries = read_models(shared or {}, named, folder)
    rows = [train_and_measure(run, chosen, precision, images) for run in entries]
    measure_latency(entries, rows, chosen, precision, images)
    least_ap, most_ms = limits(rows, least_ap, most_ms)
    for run, row in zip(entries, rows, strict=True):
        if "error" not in row and (logged := epochs(run.trained_in or run.folder)):
            row["training_seconds"] = logged[-1][0]
            if (seconds := time_to(logged, least_ap)) is not None:
                row["seconds_to_least_ap"] = seconds
    report = {
        "lit_detect": lit_detect.__version__,
        "command": " ".join(["lit-detect", *sys.argv[1:]]),
        "machine": machine(chosen, precision),
        "images": images,
        "least_ap": least_ap,
        "most_ms": most_ms,
        "verdict": verdict(rows, least_ap, most_ms),
        "pareto_front": [row["name"] for row in front(rows)],
        "pictures": draw_pictures(folder, rows),
        "rows": rows,
    }
    (folder / "compare.json").write_text(json.dumps(report, indent=1))
    (folder / "compare.md").write_text(markdown(report))
    print(markdown(report))
    print(f"compared: {folder / 'compare.md'} ({sum('error' not in row for row in rows)} of {len(rows)} models)")


def train_and_measure(run: Run, device: str, precision: str, images: int) -> Row:
    """A model's row without its latency; or with why there is none."""
    try:
        train(run)
        result = run.folder / f"measured_{device}_{precision}.json"
        if not result.is_file() or result.stat().st_mtime < max(file.stat().st_mtime for file in (run.weights, run.config_file)):
            print(f"{run.name}: measuring", flush=True)
            arguments = [str(run.config_file), str(run.weights), str(result), "--device", device, "--precision", precision]
            call(["-m", "lit_detect.compare_measure", *arguments, "--images", str(images)], run.folder / "measure.log")
        row = {"name": run.name, **json.loads(result.read_text()), "checkpoint": str(run.weights)}
    except (InputError, RuntimeError) as error:
        print(f"{run.name}: failed: {error}", flush=True)
        return {"name": run.name, "error": str(error)}
    return row | ({"extractor": run.extractor} if run.extractor else {})


def measure_latency(entries: Sequence[Run], rows: Sequence[Row], device: str, precision: str, images: int) -> None:
    """Add to the rows what is measured of all models in turn, in this process; or why it cannot be."""
    passes: dict[str, Pass] = {}
    detectors: dict[str, Detector] = {}
    pool: list[tuple[Tensor, int]] = []
    for run, row in zip(entries, rows, strict=True):
        if "error" in row:
            continue
        try:
            pool = pool or validation_images(read_config(run.config_file, with_model=False)[0], images)
            detectors[run.name] = load_detector(run.weights)
            passes[run.name] = detection_pass(detectors[run.name].network, device, precision)
            passes[run.name]([pool[0][0]])
        except (InputError, RuntimeError) as error:
            row["error"] = " ".join(str(error).split())
            passes.pop(run.name, None)
    print(f"latency of {len(passes)} models in turn", flush=True)

    def look(name: str, number: int) -> None:
        passes[name]([pool[number % len(pool)][0]])

    def look_with(name: str, count: int, number: int) -> None:
        with proposals(detectors[name].network, count):
            look(name, number)

    times = in_turn({name: partial(look, name) for name in passes}, len(pool), warm_up=min(10, len(pool)), limit=LIMIT)
    two_stage = [name for name in passes if hasattr(detectors[name].network, "rpn")]
    against = {(name, count): partial(look_with, name, count) for name in two_stage for count in PROPOSALS}
    with_proposals = in_turn(against, ROUNDS, warm_up=2, limit=LIMIT / len(PROPOSALS))
    for row in rows:
        if (name := row["name"]) in passes:
            row["latency_ms"], row["latency_p95_ms"] = statistics.median(times[name]), float(np.quantile(times[name], 0.95))
            row["latency_by_objects"] = by_objects(times[name], [count for _, count in pool])
            if name in two_stage:
                medians = {count: statistics.median(with_proposals[name, count]) for count in PROPOSALS}
                row["latency_by_proposals"] = by_proposals(detectors[name].network, medians, [image for image, _ in pool[:5]])


def by_objects(times: Sequence[float], counts: Sequence[int]) -> list[tuple[float, float]]:
    """Median latency of images with 1, 2, 3 to 4, 5 to 8, ... objects, with the mean of their number.

    >>> by_objects([10.0, 12.0, 11.0, 20.0, 20.0, 23.0, 99.0], [1, 1, 1, 3, 4, 4, 100])
    [(1.0, 11.0), (3.67, 20.0)]
    """
    groups: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for count, ms in zip(counts, times, strict=False):  # what takes long is timed on fewer images
        if count:
            groups[(count - 1).bit_length()].append((count, ms))
    many = [zip(*group, strict=True) for _, group in sorted(groups.items()) if len(group) >= FEW]
    return [(round(statistics.fmean(objects), 2), statistics.median(of_them)) for objects, of_them in many]


def by_proposals(network: Any, medians: Mapping[int, float], images: Sequence[Tensor]) -> list[tuple[float, float]]:
    """Median latency by the proposals that reach the second stage, which are no more than there are anchors."""
    found: dict[float, float] = {}
    for count, ms in medians.items():
        with proposals(network, count):
            found.setdefault(proposals_of(network, images) / len(images), ms)
    return list(found.items())
