"""The verb ``tune``: search for hyper-parameters with Optuna, over any training config.

Each trial is an ordinary ``fit`` in a process of its own; one that is worse than the median of the others at the same epoch is stopped.
The folder has ``study.db`` (Optuna's, in SQLite), ``best.yaml`` (the best trial's whole config), and a folder for each trial with its
``config.yaml``, the training's files and what was printed (``fit.log``).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from filelock import FileLock, Timeout
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.table import Table

from lit_detect.compare_runs import TRAINING_KEYS, Run, check_keys, differing, laid_over, read_training, train
from lit_detect.data.yolo import read_yaml
from lit_detect.errors import InputError
from lit_detect.tune_space import Space, read_space, values, with_values

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

__all__ = ["ReportTrial", "tune"]

METRIC = "val/map"


def tune(
    config: str, search: str, trials: int = 20, out: str = "tune", startup_trials: int = 5, warmup_epochs: int = 1, seed: int = 0
) -> None:
    """Search for the hyper-parameters of the highest ``val/map``, and write the best config.

    Started again, it goes on: trials that are finished are kept, and one that was cut off goes on from its last checkpoint.

    Args:
        config: a training config.
        search: a YAML file with, for each key of the config (``model.init_args.optimizer.init_args.lr``), ``low`` and ``high``, both
            included (whole numbers where both are), with ``log: true`` for a logarithmic scale; or ``choices``.
        trials: how many in all, with those of earlier calls, and with those that were pruned or failed.
        out: the folder to write.
        startup_trials: so many trials run to their end before any is pruned, and take values at random.
        warmup_epochs: no trial is pruned before it was validated after so many epochs.
        seed: of the search; the training's is in its config.

    Raises:
        InputError: optuna is not installed; a range or a config that is not as it should be; `out` has another search, or one that is
            still running; or no trial gave a result.
    """
    if trials < 1 or startup_trials < 1 or warmup_epochs < 1:
        raise InputError(f"Expected numbers of at least 1 but got {trials} trials, {startup_trials} to start and {warmup_epochs} epochs.")
    base = read_training(Path(config))
    check_keys(config, base, TRAINING_KEYS)
    space = read_space(Path(search), base)
    folder = Path(out).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # a scheduler's end of a job ends the trial's process too
    try:
        with FileLock(folder / "tune.lock", timeout=0):
            same_search(folder, {"config": base, "search": space})
            study = open_study(storage_of(folder), startup_trials, warmup_epochs, seed)
            while trial := next_trial(study, trials):
                run_trial(study, trial, base, space, {"startup_trials": startup_trials, "warmup_epochs": warmup_epochs}, folder)
            conclude(study, base, space, folder)
    except Timeout as error:
        raise InputError(f"Expected a folder of this search alone but another is running in {folder}.") from error


def same_search(folder: Path, asked: dict[str, Any]) -> None:
    """Keep what is searched; stop at a folder that has another search."""
    path = folder / "search.yaml"
    if path.exists() and (keys := differing(read_yaml(path), yaml.safe_load(yaml.safe_dump(asked)))):
        raise InputError(f"Expected {folder} to hold this search but its search.yaml differs in {', '.join(keys)}: delete the folder.")
    path.write_text(yaml.safe_dump(asked, sort_keys=False))


def storage_of(folder: Path) -> str:
    """The study's address."""
    return f"sqlite:///{folder / 'study.db'}"


def open_study(storage: str, startup_trials: int, warmup_epochs: int, seed: int | None = None) -> Study:
    """The study of a folder, which is made where there is none; with a seed for whom asks it for values."""
    try:
        import optuna
    except ImportError as error:
        raise InputError("Expected optuna for tune but it is not installed: pip install 'lit_detect[optuna]'.") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=startup_trials, n_warmup_steps=warmup_epochs - 1)
    study = optuna.create_study(study_name="tune", storage=storage, direction="maximize", pruner=pruner, load_if_exists=True)
    # one that goes on would draw what it drew at first, from the same seed
    drawn = None if seed is None else seed + len(study.get_trials(deepcopy=False))
    study.sampler = optuna.samplers.TPESampler(n_startup_trials=startup_trials, seed=drawn)  # Bergstra et al. 2011; Optuna's default
    return study


def next_trial(study: Study, trials: int) -> Trial | None:
    """A trial that was cut off, or else a new one; None where there are enough."""
    from optuna.trial import Trial, TrialState

    found = study.get_trials(deepcopy=False)
    for trial in found:
        if trial.state == TrialState.RUNNING:  # nobody runs it, since one process has the folder
            return Trial(study, trial._trial_id)
    return study.ask() if len(found) < trials else None


def run_trial(study: Study, trial: Trial, base: dict[str, Any], space: Space, pruning: dict[str, int], folder: Path) -> None:
    """Train a trial, and tell the study what came of it."""
    from optuna.trial import TrialState

    found = values(trial, space)
    report = {"class_path": f"{__name__}.ReportTrial", "init_args": {"storage": storage_of(folder), "trial": trial.number, **pruning}}
    config = with_values(base, found)
    callbacks = (config.get("trainer") or {}).get("callbacks") or []
    callbacks = [*(callbacks if isinstance(callbacks, list) else [callbacks]), report]
    name = f"trial_{trial.number:03d}"
    run = Run(name, folder / name, laid_over(config, {"trainer": {"callbacks": callbacks}}))
    try:
        if "pruned_at" not in trial.user_attrs:
            train(run)
        reported = study.get_trials(deepcopy=False)[trial.number]
        if not reported.intermediate_values:
            raise RuntimeError(f"no {METRIC} was logged; see {run.folder / 'fit.log'}")
    except RuntimeError as error:
        trial.set_user_attr("reason", str(error))
        study.tell(trial, state=TrialState.FAIL)
        outcome = f"failed: {error}"
    else:
        pruned = reported.user_attrs.get("pruned_at")
        value = max(reported.intermediate_values.values())
        study.tell(trial, None if pruned else value, TrialState.PRUNED if pruned else TrialState.COMPLETE)
        outcome = f"{METRIC} {value:.3f}{f', pruned after {pruned} epochs' if pruned else ''}"
    settings = ", ".join(f"{key.rpartition('.')[2]} {short(value)}" for key, value in found.items())
    print(f"{name}: {outcome} ({settings})", flush=True)


def short(value: Any) -> str:
    """A value in a few letters."""
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value)[:40]


def conclude(study: Study, base: dict[str, Any], space: Space, folder: Path) -> None:
    """Print the table, and write the best trial's config."""
    from optuna.trial import TrialState

    found = study.get_trials(deepcopy=False)
    Console().print(table(found, space))
    done = [trial for trial in found if trial.state == TrialState.COMPLETE]
    if not done:
        reasons = [str(trial.user_attrs["reason"]) for trial in found if "reason" in trial.user_attrs]
        raise InputError(f"Expected a trial that gives {METRIC} but got none of {len(found)}: {reasons[-1] if reasons else 'all pruned'}.")
    best = max(done, key=lambda trial: trial.value or 0.0)
    chosen = {key: json.loads(value) if "choices" in space[key] else value for key, value in best.params.items()}
    path = folder / "best.yaml"
    path.write_text(f"# {METRIC} {best.value:.4f}\n{yaml.safe_dump(with_values(base, chosen), sort_keys=False)}")
    print(f"best: {path} ({METRIC} {best.value:.3f}, trial {best.number} of {len(found)})")


def table(found: list[FrozenTrial], space: Space) -> Table:
    """All trials, the best first; of one that failed the reason."""
    shown = Table(title="trials, best first")
    for name in ("trial", METRIC, "epochs", *(key.rpartition(".")[2] for key in space), "seconds", ""):
        shown.add_column(name)
    value = {trial.number: max(trial.intermediate_values.values(), default=-1.0) for trial in found}
    for trial in sorted(found, key=lambda trial: (trial.state.name != "COMPLETE", -value[trial.number])):
        settings = [trial.params.get(key) for key in space]
        shown.add_row(
            str(trial.number),
            f"{value[trial.number]:.3f}" if trial.intermediate_values else "",
            str(1 + max(trial.intermediate_values, default=-1)),
            *("" if setting is None else setting if isinstance(setting, str) else short(setting) for setting in settings),
            f"{trial.duration.total_seconds():.0f}" if trial.duration else "",
            trial.user_attrs.get("reason", "pruned" if trial.state.name == "PRUNED" else ""),
        )
    return shown


class ReportTrial(Callback):
    """Report a training's ``val/map`` to a study, and stop it where the study says that it is not worth going on.

    It also stops a training whose ``tune`` has ended, so that one who goes on with the search has the folder alone.

    Args:
        storage: the study's address.
        trial: the trial's number.
        startup_trials: as `tune` was told.
        warmup_epochs: as `tune` was told.
    """

    def __init__(self, storage: str, trial: int, startup_trials: int, warmup_epochs: int) -> None:
        self.storage, self.trial, self.startup_trials, self.warmup_epochs = storage, trial, startup_trials, warmup_epochs
        self.parent = os.getppid()
        self.best: float | None = None  # of the validations since the last report

    @cached_property
    def study(self) -> Study:
        """The study, opened by the rank that reports."""
        return open_study(self.storage, self.startup_trials, self.warmup_epochs)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if os.getppid() != self.parent:
            raise RuntimeError("tune has ended, and so does its trial")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or METRIC not in trainer.callback_metrics:
            return
        value = float(trainer.callback_metrics[METRIC])
        self.best = value if self.best is None else max(self.best, value)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.best is None:
            return
        hopeless = trainer.is_global_zero and self.report(self.best, trainer.current_epoch)
        self.best = None
        if trainer.strategy.broadcast(hopeless):
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """What a trial needs that goes on between a validation and the epoch's end."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def report(self, value: float, epoch: int) -> bool:
        """Tell the study, and ask whether to prune."""
        from optuna.trial import Trial

        frozen = self.study.get_trials(deepcopy=False)[self.trial]
        trial = Trial(self.study, frozen._trial_id)
        if epoch not in frozen.intermediate_values:  # of a trial that was cut off after its report
            trial.report(value, epoch)
        hopeless = bool(trial.should_prune())
        if hopeless:
            trial.set_user_attr("pruned_at", epoch + 1)
        return hopeless
