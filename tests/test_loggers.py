"""One small training with every experiment manager that is installed, offline; and what landed in each, read back by its own means."""

import json
import os
import sqlite3
import struct
import subprocess
import sys
from collections import defaultdict
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from jsonargparse import dict_to_namespace
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

import lit_detect.lightning_cli
from lit_detect import InputError
from lit_detect.clearml_logger import ClearMLLogger, title_and_series
from lit_detect.cli import CONFIGS, find_configs
from lit_detect.data.digits import write_digits
from lit_detect.lightning_cli import DetectionCLI, place_loggers
from lit_detect.loggers import log_config, with_csv_file
from lit_detect.report_history import read_csv, read_history

OVERLAYS = CONFIGS / "overlays"
PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "clearml": "clearml"}  # by overlay
INSTALLED = [name for name, package in PACKAGES.items() if find_spec(package)]
OFFLINE = {"WANDB_MODE": "offline", "CLEARML_OFFLINE_MODE": "1", "CLEARML_LOG_LEVEL": "ERROR", "OMP_NUM_THREADS": "1"}
SCORE_THRESHOLD = 0.0625  # a hyper-parameter like no other


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A training of two epochs on a few digits."""
    root = write_digits(str(tmp_path_factory.mktemp("digits") / "set"), {"train": 6, "val": 4})
    content = yaml.safe_load((CONFIGS / "quickstart.yaml").read_text())
    content["trainer"] = {
        "max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False, "num_sanity_val_steps": 0, "log_every_n_steps": 1,
    }  # fmt: skip
    content["model"]["init_args"] |= {
        "backbone": {"class_path": "tests.conftest.TinyBackbone"}, "extra_channels": [16], "scales": "linear",
        "aspect_ratios": [[2]] * 4, "score_threshold": SCORE_THRESHOLD,
    }  # fmt: skip
    content["data"]["train"]["init_args"]["root"] = content["data"]["val"]["init_args"]["root"] = str(root)
    content["data"] |= {"num_workers": 0, "batch_size": 3}
    (root / "config.yaml").write_text(yaml.safe_dump(content))
    return root / "config.yaml"


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    """The folder in which one training ran with the loggers of all overlays, in a process of its own, which closes what they opened."""
    folder = tmp_path_factory.mktemp("run")
    loggers = [yaml.safe_load((OVERLAYS / f"{name}.yaml").read_text())["trainer"]["logger"] for name in INSTALLED]
    (folder / "loggers.yaml").write_text(yaml.safe_dump({"trainer": {"logger": loggers or True}}))
    line = [sys.executable, "-m", "lit_detect", "fit", "--config", str(config), "--config", "loggers.yaml"]
    repository = str(Path(__file__).parents[1])
    environment = {**os.environ, **OFFLINE, "CLEARML_CACHE_DIR": str(folder / "clearml"), "PYTHONPATH": repository}
    # ClearML forks to report while a thread of its own starts git, and waits for ever if the fork takes git's pipe along
    (folder / "clearml.conf").write_text("sdk.development.report_use_subprocess: false\n")
    environment["CLEARML_CONFIG_FILE"] = str(folder / "clearml.conf")
    environment |= {name: str(folder / "cache") for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR")}
    done = subprocess.run(line, capture_output=True, text=True, cwd=folder, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def expected(run):
    """What the CSV file says: by metric, step and value."""
    (path,) = run.rglob("metrics.csv")
    points = defaultdict(list)
    read_csv(path, points)
    return {name: sorted(found) for name, found in points.items()}


def needs(overlay):
    """Skip a test without an overlay's package."""
    return pytest.mark.skipif(overlay not in INSTALLED, reason=f"needs {PACKAGES[overlay]}: pip install 'lit_detect[{overlay}]'")


def assert_same(points, expected):
    """Steps are the same and values to single precision; a metric that was logged twice at one step is in any order."""
    assert len(expected) >= 2
    np.testing.assert_allclose(np.array(sorted(points)), np.array(sorted(expected)), rtol=1e-6)


def assert_config(text):
    content = yaml.safe_load(text)
    assert content["model"]["init_args"]["score_threshold"] == SCORE_THRESHOLD
    assert content["data"]["batch_size"] == 3
    assert content["trainer"]["max_epochs"] == 2


def assert_picture(file, run, loss=0.0):
    """The last picture that was drawn, pixel by pixel; to some loss where it is kept as JPEG."""
    want = np.asarray(Image.open(run / "lightning_logs" / "version_0" / "detections.png").convert("RGB")).astype(float)
    found = np.asarray(Image.open(file).convert("RGB")).astype(float)
    assert found.shape == want.shape
    assert np.abs(found - want).mean() <= loss


def assert_checkpoint(path):
    content = torch.load(path, weights_only=True)
    assert content["hyper_parameters"]["score_threshold"] == SCORE_THRESHOLD
    assert content["state_dict"]


def test_the_csv_file_is_written_first_whatever_is_installed(run, expected):
    folder = run / "lightning_logs" / "version_0"
    assert [path.parent for path in run.rglob("metrics.csv")] == [folder]
    assert len(expected["train/loss"]) == 4
    assert [step for step, _ in expected["val/map"]] == [1, 3, 4]  # of two epochs, and of the best checkpoint at the end
    assert_config((folder / "config.yaml").read_text())
    assert yaml.safe_load((folder / "hparams.yaml").read_text())["score_threshold"] == SCORE_THRESHOLD
    assert_checkpoint(folder / "checkpoints" / "best.ckpt")
    assert len(list(folder.glob("pictures/*.png"))) == 2


@needs("tensorboard")
def test_tensorboard(run, expected):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = run / "lightning_logs" / "version_0"  # where the config and the checkpoints are
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()
    for name in ("train/loss", "val/map"):
        assert_same([(event.step, event.value) for event in events.Scalars(name)], expected[name])
    assert "hp_metric" not in events.Tags()["scalars"]
    text = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert_config("\n".join(line.removeprefix("    ") for line in text.splitlines()))
    assert_picture(BytesIO(events.Images("val/detections")[-1].encoded_image_string), run)
    assert any(path.name.startswith("events.out") and b"score_threshold" in path.read_bytes() for path in folder.iterdir())
    assert read_history(folder)["val/map"][0].tolist() == [1, 3, 4]


def wandb_records(path):
    """The records of a .wandb file: blocks of 32 KiB with chunks, each after a checksum, a length and a kind, as in LevelDB's log."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, position, parts = path.read_bytes(), 7, b""
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or last
            yield Record.FromString(parts)
            parts = b""


@needs("wandb")
def test_wandb(run, expected):
    (folder,) = run.glob("wandb/offline-run-*")
    (path,) = folder.glob("*.wandb")
    records = list(wandb_records(path))
    rows = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    for name in ("train/loss", "val/map"):
        assert_same([(row["trainer/global_step"], row[name]) for row in rows if name in row], expected[name])
    settings = {}
    for record in records:
        of_record = record.run.config if record.WhichOneof("record_type") == "run" else record.config
        settings |= {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in of_record.update}
    assert settings["score_threshold"] == SCORE_THRESHOLD
    assert_config((folder / "files" / "training_config.yaml").read_text())
    shown = [row["val/detections/filenames"] for row in rows if "val/detections/filenames" in row]
    assert_picture(folder / "files" / shown[-1][0], run)
    artifact = next(record.artifact for record in records if record.WhichOneof("record_type") == "artifact")
    assert artifact.type == "model"
    assert_checkpoint(artifact.manifest.contents[0].local_path)


@needs("mlflow")
def test_mlflow(run, expected):
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{run}/mlflow.db")
    (found,) = client.search_runs([client.get_experiment_by_name("lit_detect").experiment_id])
    for name in ("train/loss", "val/map"):
        history = client.get_metric_history(found.info.run_id, name)
        assert_same([(metric.step, metric.value) for metric in history], expected[name])
    assert float(found.data.params["score_threshold"]) == SCORE_THRESHOLD
    assert found.info.status == "FINISHED"
    folder = run / "mlruns" / found.info.experiment_id / found.info.run_id / "artifacts"
    assert_config((folder / "training_config.yaml").read_text())
    assert_picture(max(folder.glob("images/val~detections+step+4+*.png"), key=lambda path: path.name.split("+")[4]), run)
    assert_checkpoint(folder / "best" / "best.ckpt")
    assert sqlite3.connect(run / "mlflow.db").execute("select count(*) from metrics").fetchone()[0] > 20  # kept in the file


@needs("clearml")
def test_clearml(run, expected):
    (folder,) = (path for path in run.glob("clearml/offline/*") if path.is_dir())
    assert folder.with_suffix(".zip").exists()
    task = json.loads((folder / "task.json").read_text())
    events = [event for line in (folder / "metrics.jsonl").read_text().splitlines() for event in json.loads(line)]
    for name in ("train/loss", "val/map"):
        scalars = [event for event in events if [event["metric"], event["variant"]] == name.split("/") and "value" in event]
        assert_same([(event["iter"], event["value"]) for event in scalars], expected[name])
    assert float(task["hyperparams"]["hyper-parameters"]["score_threshold"]["value"]) == SCORE_THRESHOLD
    assert_config(task["configuration"]["config"]["value"])
    pictures = {event["iter"]: event["url"] for event in events if event["variant"] == "detections"}
    assert_picture(pictures[4], run, loss=8)
    artifacts = {artifact["key"]: artifact["uri"] for artifact in task["execution"]["artifacts"]}
    assert set(artifacts) >= {"best.ckpt", "last.ckpt"}
    assert_checkpoint(artifacts["best.ckpt"])


def test_a_missing_clearml_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "clearml", None)
    with pytest.raises(InputError, match=r"pip install 'lit_detect\[clearml\]'"):
        ClearMLLogger()
    assert title_and_series("val/ap/cat") == ("val/ap", "cat")


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_package_is_said(name, monkeypatch):
    monkeypatch.setattr(lit_detect.lightning_cli, "find_spec", lambda _: None)
    logger = yaml.safe_load((OVERLAYS / f"{name}.yaml").read_text())["trainer"]["logger"]
    with pytest.raises(InputError, match=rf"Expected {name} for \w+Logger but .* pip install 'lit_detect\[{name}\]'"):
        place_loggers(dict_to_namespace({"logger": [logger], "default_root_dir": None}))


@pytest.mark.parametrize("name", ["csv", *(name for name in ("tensorboard", "wandb") if name in INSTALLED)])  # those with a save_dir
def test_an_overlay_is_found_by_name_and_keeps_to_the_root_folder(name, config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = find_configs(["fit", "--config", str(config), "--config", f"overlays/{name}.yaml", "--trainer.default_root_dir", "root"])
    assert arguments[4] == str(OVERLAYS / f"{name}.yaml")
    monkeypatch.setattr(sys, "argv", ["lit-detect"])
    monkeypatch.setattr(DetectionCLI, "_run_subcommand", lambda *_: None)  # all but to train
    loggers = DetectionCLI(arguments).trainer.loggers
    assert isinstance(loggers[0], CSVLogger)
    assert Path(loggers[0].log_dir) == Path("root/lightning_logs/version_0")
    assert len(loggers) == (1 if name == "csv" else 2)
    assert all(logger.save_dir == "root" for logger in loggers)


def test_no_logger_stays_none_and_a_csv_file_that_is_asked_for_is_the_only_one(tmp_path):
    assert with_csv_file(False, tmp_path) == with_csv_file([], tmp_path) == []
    own = CSVLogger(tmp_path / "own")
    assert with_csv_file(own, tmp_path) == with_csv_file([own], tmp_path) == [own]
    assert with_csv_file([CSVLogger(tmp_path / "of a config"), own], tmp_path) == [own]
    for asked in (None, True):
        (logger,) = with_csv_file(asked, tmp_path)
        assert (logger.save_dir, logger.name) == (str(tmp_path), "lightning_logs")
    log_config(own, "a: 1")  # is in the run's folder already
    assert not list(tmp_path.rglob("*"))


def test_a_second_run_leaves_the_first_ones_metrics(tmp_path):
    for value in (0.25, 0.5):
        (logger,) = with_csv_file(True, tmp_path)
        logger.log_metrics({"val/map": value}, step=int(value * 8))
        logger.save()
    assert read_history(tmp_path)["val/map"][1].tolist() == [0.25, 0.5]
