"""The verb ``compare``: which detector to take, by speed and accuracy on one's own data (Huang et al. 2017, figure 6).

It trains what is not trained yet, each model by the ordinary ``fit`` in a process of its own, measures them all, and writes into a folder

- ``compare.json``: ``lit_detect``, ``command`` (where it was one), ``machine``, ``images``, ``least_ap``, ``most_ms``, ``verdict``,
  ``claims`` (see `lit_detect.compare_claims`), ``pareto_front`` (names), ``pictures``, and ``rows``: ``name``; ``error`` where a model
  failed, or ``warning`` where a part of it did; and what was measured: ``detector``, ``extractor``, ``input_size``, ``fpn_channels``,
  ``criterion``, ``checkpoint``, ``validation_images`` and ``validation_boxes`` (how many), ``ap``, ``ap50``, ``ap75``, ``ap_small``,
  ``ap_medium``, ``ap_large`` (0..1, as ``validate`` gives them), ``latency_ms`` and ``latency_p95_ms`` (median and 95th percentile, one
  image at a time), ``images_per_second`` at the best ``batch_size``, ``parameters``, ``gflops``, ``memory_mb``, ``joules_an_image``,
  ``training_seconds`` and ``seconds_to_least_ap`` (without validation), ``latency_by_proposals`` and ``latency_by_objects`` (pairs of a
  count and milliseconds). What cannot be had is absent;
- ``compare.md``: the same as a page;
- ``speed_accuracy.png``, ``latency_proposals.png``, ``latency_objects.png``;
- a folder for each model, with its ``config.yaml``, the training's files and what was printed (``fit.log``, ``measure.log``).
"""

from __future__ import annotations

import json
import shlex
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

import lit_detect
from lit_detect.compare_claims import claims
from lit_detect.compare_measure import load_detector, validation_images, write_json
from lit_detect.compare_plots import draw_pictures
from lit_detect.compare_report import front, limits, markdown, time_to, verdict
from lit_detect.compare_runs import Run, call, epochs, names_of, read_models, train
from lit_detect.cost import Pass, detection_pass, in_turn, machine, proposals, proposals_of
from lit_detect.errors import InputError, printable, printable_lines
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
        InputError: no model, one folder twice, or one that is not described as it should be.
    """
    if images < 1:
        raise InputError(f"Expected at least 1 image but got {images}.")
    named = {**(models or {}), **{name: {"run": run} for name, run in names_of(runs or [], models or {}).items()}}
    if not named:
        raise InputError("Expected models or runs to compare but got none.")
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    folder = Path(out)
    entries = read_models(shared or {}, named, folder)
    rows = [train_and_measure(run, chosen, precision, images) for run in entries]
    measure_latency(entries, rows, chosen, precision, images)
    least_ap, most_ms = limits(rows, least_ap, most_ms)
    for run, row in zip(entries, rows, strict=True):
        if "error" not in row:
            row |= training_time(run, least_ap)
    report = {"images": images, "machine": machine(chosen, precision), **conclusions(rows, least_ap, most_ms)}
    write_report(folder, {**report, "pictures": draw_pictures(folder, rows), "rows": rows})


def training_time(run: Run, least_ap: float) -> Row:
    """Seconds of training in all and until so much AP, as far as they were logged."""
    try:
        logged = epochs(run.trained_in or run.folder)
    except InputError as error:
        return {"warning": str(error)}
    seconds = time_to(logged, least_ap)
    return {**({"training_seconds": logged[-1][0]} if logged else {}), **({} if seconds is None else {"seconds_to_least_ap": seconds})}


def conclusions(rows: Sequence[Row], least_ap: float, most_ms: float) -> dict[str, Any]:
    """What follows from the rows."""
    return {
        "least_ap": least_ap,
        "most_ms": most_ms,
        "verdict": verdict(rows, least_ap, most_ms),
        "claims": claims(rows),
        "pareto_front": [row["name"] for row in front(rows)],
    }


def write_report(folder: Path, report: dict[str, Any]) -> None:
    """Write ``compare.json`` and ``compare.md``, and print the page."""
    of_command_line = {"command": shlex.join(["lit-detect", *sys.argv[1:]])} if sys.argv[1:2] == ["compare"] else {}
    report = {"lit_detect": lit_detect.__version__, **of_command_line, **report}
    write_json(folder / "compare.json", report)
    (folder / "compare.md").write_text(markdown(report))
    print(printable_lines(markdown(report)))
    rows = report["rows"]
    print(f"compared: {folder / 'compare.md'} ({sum('error' not in row for row in rows)} of {len(rows)} models)")


def train_and_measure(run: Run, device: str, precision: str, images: int) -> Row:
    """A model's row without its latency; or with why there is none."""
    try:
        train(run)
        row = measured(run, device, precision, images)
    except (InputError, RuntimeError) as error:
        print(printable(f"{run.name}: failed: {error}"), flush=True)
        return {"name": run.name, "error": str(error)}
    return {"name": run.name, **row, "checkpoint": str(run.weights)} | ({"extractor": run.extractor} if run.extractor else {})


def measured(run: Run, device: str, precision: str, images: int) -> Row:
    """What is measured of a trained model, now or when the same was measured before.

    Raises:
        InputError: its training left no checkpoint.
        RuntimeError: it failed before there was an AP. What fails later is a ``warning`` of the row, which is measured again next time.
    """
    result, weights = run.folder / f"measured_{device}_{precision}.json", run.weights
    of: Row = {"checkpoint": str(weights), "changed": weights.stat().st_mtime, "data": run.config["data"]}
    of = json.loads(json.dumps({**of, "images": images, "machine": machine(device, precision)}, default=str))
    row = read_row(result)
    if row.pop("measured", None) == of:
        return row
    print(f"{run.name}: measuring", flush=True)
    result.unlink(missing_ok=True)
    arguments = [str(run.config_file), str(weights), str(result), "--device", device, "--precision", precision]
    try:
        call(["-m", "lit_detect.compare_measure", *arguments, "--images", str(images)], run.folder / "measure.log")
    except RuntimeError as error:
        if row := read_row(result):
            return {**row, "warning": f"images a second were not measured: {error}"}
        raise
    row = read_row(result)
    write_json(result, {**row, "measured": of})
    return row


def read_row(file: Path) -> Row:
    """A row that was written; empty where there is none, or half of one."""
    try:
        row: Row = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return row


def measure_latency(entries: Sequence[Run], rows: Sequence[Row], device: str, precision: str, images: int) -> None:
    """Add to the rows what is measured of all models in turn, in this process; or why it cannot be."""
    loaded: dict[str, tuple[nn.Module, Pass]] = {}
    pool: list[tuple[Tensor, int]] = []

    def load(run: Run) -> None:
        pool.extend([] if pool else validation_images(read_config(run.config_file, with_model=False)[0], images))
        network = load_detector(run.weights).network
        loaded[run.name] = network, detection_pass(network, device, precision)
        look(run.name, 0)

    def look(name: str, number: int) -> None:
        loaded[name][1]([pool[number % len(pool)][0]])

    def look_with(name: str, count: int, number: int) -> None:
        with proposals(loaded[name][0], count):
            look(name, number)

    for run, row in zip(entries, rows, strict=True):
        dropping(loaded, row, load)(run)
    print(f"latency of {len(loaded)} models in turn", flush=True)
    measured = [row for row in rows if "error" not in row]
    looks = {row["name"]: dropping(loaded, row, partial(look, row["name"])) for row in measured}
    times = in_turn(looks, len(pool), warm_up=min(10, len(pool)), limit=LIMIT)
    two_stage = [row for row in measured if "error" not in row and hasattr(loaded[row["name"]][0], "rpn")]
    against = {
        (row["name"], count): dropping(loaded, row, partial(look_with, row["name"], count)) for row in two_stage for count in PROPOSALS
    }
    with_proposals = in_turn(against, ROUNDS, warm_up=2, limit=LIMIT / len(PROPOSALS))

    def count_proposals(row: Row) -> None:
        medians = {count: statistics.median(with_proposals[row["name"], count]) for count in PROPOSALS}
        row["latency_by_proposals"] = by_proposals(loaded[row["name"]][0], medians, [image for image, _ in pool[:5]])

    for row in two_stage:
        dropping(loaded, row, count_proposals)(row)
    for row in measured:
        if "error" not in row:
            of_model = times[row["name"]]
            row["latency_ms"], row["latency_p95_ms"] = statistics.median(of_model), float(np.quantile(of_model, 0.95))
            row["latency_by_objects"] = by_objects(of_model, [count for _, count in pool])


def dropping(loaded: dict[str, Any], row: Row, step: Callable[[Any], None]) -> Callable[[Any], None]:
    """A step of a model, which is dropped where it fails: its row says why, and it has no more steps."""

    def guarded(argument: Any) -> None:
        if "error" not in row:
            try:
                step(argument)
            except (InputError, RuntimeError) as error:
                row["error"] = " ".join(str(error).split()) or type(error).__name__
                loaded.pop(row["name"], None)

    return guarded


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
