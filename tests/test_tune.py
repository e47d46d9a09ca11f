"""`tune`: the search's bookkeeping with a training that is made up, and two real trials of a tiny one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from lightning.pytorch.trainer.states import TrainerFn

import lit_detect.tune
from lit_detect import InputError
from lit_detect.cli import CONFIGS, find_configs
from lit_detect.data.digits import write_digits
from lit_detect.data.yolo import read_yaml
from lit_detect.tune import ReportTrial, tune
from lit_detect.tune_space import read_space

optuna = pytest.importorskip("optuna", reason="needs optuna: pip install 'lit_detect[optuna]'")

LR = "model.init_args.optimizer.init_args.lr"
SEARCH = {LR: {"low": 1e-4, "high": 1e-1, "log": True}, "data.batch_size": {"choices": [2, 4]}}


@pytest.fixture
def files(tmp_path):
    """A config and a search."""
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(SEARCH))
    return {"config": str(CONFIGS / "quickstart.yaml"), "search": str(tmp_path / "search.yaml"), "out": str(tmp_path / "tune")}


@pytest.fixture
def trained(monkeypatch):
    """Trials that are made up: the value of each epoch is asked of a function; gives what was trained, by trial and epochs."""
    calls = []

    def use(value, epochs=3):
        def train(run):
            config = run.config
            callback = ReportTrial(**config["trainer"]["callbacks"][-1]["init_args"])
            calls.append([run.name, 0])
            for epoch in range(epochs):
                calls[-1][1] += 1
                if callback.report(value(callback.trial, epoch, config), epoch):
                    break

        monkeypatch.setattr(lit_detect.tune, "train", train)
        return calls

    return use


def study_of(out):
    return optuna.load_study(study_name="tune", storage=f"sqlite:///{out}/study.db")


def learning_rate(config):
    return config["model"]["init_args"]["optimizer"]["init_args"]["lr"]


def test_the_best_config_is_the_base_with_the_best_trials_values(files, trained, capsys):
    """The value is -|log10(lr) + 2|: nearest to 0.01 wins, whatever the batch."""
    import math

    seen = []

    def value(trial, epoch, config):
        seen.append((round(1 - abs(math.log10(learning_rate(config)) + 2), 6), learning_rate(config), config["data"]["batch_size"]))
        return seen[-1][0]

    trained(value, epochs=1)
    tune(**files, trials=6)
    best = max(seen)
    base, found = read_yaml(Path(files["config"])), read_yaml(Path(files["out"]) / "best.yaml")
    assert (learning_rate(found), found["data"]["batch_size"]) == best[1:]
    base["model"]["init_args"]["optimizer"]["init_args"]["lr"], base["data"]["batch_size"] = best[1:]
    assert found == base  # no callback, logger or folder of the trial's
    assert {size for *_, size in seen} <= {2, 4}
    assert len({rate for _, rate, _ in seen}) == 6
    out = capsys.readouterr().out
    assert out.count("trial_00") == 6
    assert f"val/map {best[0]:.3f}" in out


def test_a_hopeless_trial_is_pruned(files, trained, capsys):
    calls = trained(lambda trial, epoch, config: (0.5 if trial < 3 else 0.1) + epoch / 10)
    tune(**files, trials=4, startup_trials=2, warmup_epochs=2)
    assert calls == [["trial_000", 3], ["trial_001", 3], ["trial_002", 3], ["trial_003", 2]]  # at the end of the warm-up
    states = [trial.state.name for trial in study_of(files["out"]).trials]
    assert states == ["COMPLETE"] * 3 + ["PRUNED"]
    assert "pruned after 2 epochs" in capsys.readouterr().out


def test_started_again_it_goes_on_and_repeats_nothing(files, trained):
    def cut(trial, epoch, config):
        if trial == 2 and epoch == 1:
            raise KeyboardInterrupt
        return 0.5

    calls = trained(cut)
    with pytest.raises(KeyboardInterrupt):
        tune(**files, trials=4)
    (first, second, third) = (trial.params for trial in study_of(files["out"]).trials)
    calls = trained(lambda *_: 0.5)
    del calls[:]
    tune(**files, trials=4)
    assert calls == [["trial_002", 3], ["trial_003", 3]]
    trials = study_of(files["out"]).trials
    assert [trial.params for trial in trials[:3]] == [first, second, third]
    assert trials[3].params not in (first, second, third)  # not drawn from the seed's beginning again
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 4
    del calls[:]
    tune(**files, trials=4)
    assert calls == []
    tune(**files, trials=5)
    assert calls == [["trial_004", 3]]


def test_a_trial_that_fails_is_recorded_with_the_reason(files, monkeypatch, trained, capsys):
    trained(lambda *_: 0.25)
    train = lit_detect.tune.train

    def fail_once(run):
        if run.name == "trial_001":
            raise RuntimeError("CUDA out of memory")
        if run.name != "trial_002":  # which logs nothing
            train(run)

    monkeypatch.setattr(lit_detect.tune, "train", fail_once)
    tune(**files, trials=4)
    trials = study_of(files["out"]).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", "FAIL", "COMPLETE"]
    assert trials[1].user_attrs["reason"] == "CUDA out of memory"
    assert "no val/map was logged" in trials[2].user_attrs["reason"]
    assert "CUDA out of memory" in " ".join(capsys.readouterr().out.split())


def test_where_all_trials_fail_the_reason_ends_it(files, monkeypatch):
    def fail(run):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(lit_detect.tune, "train", fail)
    with pytest.raises(InputError, match="Expected a trial that gives val/map but got none of 2: CUDA out of memory"):
        tune(**files, trials=2)


def test_another_search_in_the_folder_and_one_that_is_running(files, trained, tmp_path):
    trained(lambda *_: 0.25)
    tune(**files, trials=1)
    (tmp_path / "search.yaml").write_text(yaml.safe_dump({**SEARCH, "data.batch_size": {"choices": [2, 8]}}))
    with pytest.raises(InputError, match=r"differs in search\.data\.batch_size"):
        tune(**files, trials=1)
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(SEARCH))
    with lit_detect.tune.FileLock(tmp_path / "tune" / "tune.lock"), pytest.raises(InputError, match="another is running"):
        tune(**files, trials=2)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"low": 1, "high": 1}, "numbers low < high"),
        ({"low": 0, "high": 1, "log": True}, "above 0 for log"),
        ({"low": 1}, "numbers low < high"),
        ({"choices": []}, "list of choices"),
        ({"low": 1, "high": 2, "choices": [1]}, "list of choices"),
        ({"low": 1, "hgih": 2}, "hgih"),
        (3, "mapping"),
    ],
)
def test_ranges_that_are_none(entry, message, tmp_path):
    (tmp_path / "search.yaml").write_text(yaml.safe_dump({"data.batch_size": entry}))
    with pytest.raises(InputError, match=message):
        read_space(tmp_path / "search.yaml", {"data": {"batch_size": 8}})


def test_a_range_in_yamls_numbers_and_a_key_that_is_not_there(tmp_path):
    path = tmp_path / "search.yaml"
    path.write_text("data.batch_size: {low: 1e-4, high: 1}\n")  # YAML 1.1 takes the first for a word
    assert read_space(path, {"data": {}}) == {"data.batch_size": {"low": 1e-4, "high": 1, "log": False}}
    for key in ("data.tarin.root", "dta.batch_size", "dta"):
        path.write_text(yaml.safe_dump({key: {"low": 1, "high": 2}}))
        with pytest.raises(InputError, match="is not there"):
            read_space(path, {"data": {"batch_size": 8}})


def test_a_trial_ends_with_the_search_that_started_it():
    callback = ReportTrial("sqlite://", 0, 1, 1)
    callback.on_train_batch_start(SimpleNamespace(), None, None, 0)
    callback.parent = -1
    with pytest.raises(RuntimeError, match="tune has ended"):
        callback.on_train_batch_start(SimpleNamespace(), None, None, 0)


def test_a_trial_reports_the_best_validation_of_each_epoch(monkeypatch):
    callback, told = ReportTrial("sqlite://", 0, 1, 1), []
    monkeypatch.setattr(callback, "report", lambda value, epoch: bool(told.append((value, epoch))) or epoch == 2)
    trainer = SimpleNamespace(state=SimpleNamespace(fn=TrainerFn.FITTING), sanity_checking=False, is_global_zero=True, should_stop=False)
    trainer.strategy = SimpleNamespace(broadcast=lambda value: value)
    for epoch, values in enumerate([[0.1, 0.3, 0.2], [], [0.0]]):
        trainer.current_epoch = epoch
        for value in values:
            trainer.callback_metrics = {"val/map": torch.tensor(value, dtype=torch.float64)}
            callback.on_validation_end(trainer, None)
            again = ReportTrial("sqlite://", 0, 1, 1)  # as in a trial that is killed here and goes on
            again.load_state_dict(callback.state_dict())
            assert again.best == callback.best
        assert not trainer.should_stop
        callback.on_train_epoch_end(trainer, None)
    assert told == [(0.3, 0), (0.0, 2)]
    assert trainer.should_stop


def test_optuna_missing_is_said(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"pip install 'lit_detect\[optuna\]'"):
        tune(**files)


@pytest.fixture
def real(tmp_path):
    """Arguments for real trials, of two epochs on a few digits."""
    root = write_digits(str(tmp_path / "set"), {"train": 6, "val": 4})
    config = yaml.safe_load((CONFIGS / "quickstart.yaml").read_text())
    config["trainer"] = {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False, "num_sanity_val_steps": 0}
    config["model"]["init_args"] |= {
        "backbone": {"class_path": "tests.conftest.TinyBackbone"}, "extra_channels": [16], "scales": "linear", "aspect_ratios": [[2]] * 4,
    }  # fmt: skip
    config["data"]["train"]["init_args"]["root"] = config["data"]["val"]["init_args"]["root"] = str(root)
    config["data"] |= {"num_workers": 0, "batch_size": 2}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(SEARCH))
    return {"config": str(tmp_path / "config.yaml"), "search": str(tmp_path / "search.yaml"), "out": str(tmp_path / "out")}


def assert_complete(out, count):
    """Trials were trained with what they were given, and their value is what they logged."""
    trials = study_of(out).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * count
    for trial in trials:
        assert sorted(trial.intermediate_values) == [0, 1]
        folder = out / f"trial_{trial.number:03d}"
        assert learning_rate(read_yaml(folder / "config.yaml")) == trial.params[LR]
        logged = lit_detect.compare_runs.read_history(folder)["val/map"][1]
        assert trial.value == pytest.approx(max(logged), rel=1e-6)
    assert learning_rate(read_yaml(out / "best.yaml")) == study_of(out).best_params[LR]


def test_a_real_trial(real, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    tune(**real, trials=1)
    assert_complete(tmp_path / "out", 1)


@pytest.mark.slow
def test_real_trials_killed_in_the_second_and_started_again(real, tmp_path):
    """The search is ended while the second of two trials trains."""
    out = tmp_path / "out"
    arguments = [f"--{name}={value}" for name, value in {**real, "trials": 2}.items()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    line = [sys.executable, "-m", "lit_detect", "tune", *arguments]
    search = subprocess.Popen(line, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 600
    while not (out / "trial_001" / "fit.log").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    search.send_signal(signal.SIGTERM)
    assert "trial_000: val/map" in search.communicate(timeout=60)[0]
    first = (out / "trial_000" / "config.yaml").stat().st_mtime_ns
    assert [trial.state.name for trial in study_of(out).trials] == ["COMPLETE", "RUNNING"]

    done = subprocess.run(line, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_complete(out, 2)
    assert (out / "trial_000" / "config.yaml").stat().st_mtime_ns == first
    assert "trial_000:" not in done.stdout


def test_the_shipped_search_fits_the_quickstart():
    space = read_space(CONFIGS / "search_quickstart.yaml", read_yaml(CONFIGS / "quickstart.yaml"))
    assert LR in space


def test_a_search_is_found_by_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    asked = find_configs(["tune", "--config", "quickstart.yaml", "--search", "search_quickstart.yaml"])
    assert asked[2::2] == [str(CONFIGS / "quickstart.yaml"), str(CONFIGS / "search_quickstart.yaml")]
