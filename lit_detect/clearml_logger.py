"""A logger for ClearML, which was Allegro Trains; Lightning has none."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from lit_detect.errors import InputError

__all__ = ["ClearMLLogger"]


class ClearMLLogger(Logger):
    """Log metrics, hyper-parameters, the config, pictures and checkpoints to a task of ClearML.

    Where the server is says ``clearml.conf``, or the environment (``CLEARML_API_HOST`` and others). With ``CLEARML_OFFLINE_MODE=1``
    there need be none: the task is a folder and a zip below ``CLEARML_CACHE_DIR``, for ``clearml-task --import-offline-session``.

    Args:
        project: the project's name.
        name: the task's name.
        tags: of the task.
        log_model: upload the best and the last checkpoint at the end of a training, as artifacts.

    Raises:
        InputError: clearml is not installed.
    """

    def __init__(self, project: str = "lit_detect", name: str = "run", tags: Sequence[str] = (), log_model: bool = True) -> None:
        super().__init__()
        try:
            import clearml
        except ImportError as error:
            raise InputError("Expected clearml for ClearMLLogger but it is not installed: pip install 'lit_detect[clearml]'.") from error
        self.clearml = clearml
        self.project, self.task_name, self.tags, self.log_model = project, name, list(tags), log_model
        self.task: Any = None
        self.checkpoints: ModelCheckpoint | None = None
        self.uploaded: dict[str, float] = {}  # when they were written

    @property
    def name(self) -> str:
        return self.project

    @property
    def version(self) -> str | None:
        return self.task.id if self.task is not None else None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The ``clearml.Task``, which is made where it is first asked for."""
        if self.task is None:
            self.task = self.clearml.Task.init(
                project_name=self.project,
                task_name=self.task_name,
                tags=self.tags,
                reuse_last_task_id=False,
                # what there is to log comes from Lightning, and would come twice
                auto_connect_arg_parser=False,
                auto_connect_frameworks=False,
            )
        return self.task

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        logger = self.experiment.get_logger()
        for key, value in metrics.items():
            logger.report_scalar(*title_and_series(key), iteration=step or 0, value=float(value))

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        self.experiment.connect(dict(vars(params) if isinstance(params, Namespace) else params), name="hyper-parameters")

    @rank_zero_only
    def log_config(self, text: str) -> None:
        """Keep a run's config, in YAML."""
        self.experiment.set_configuration_object("config", config_text=text, config_type="yaml")

    @rank_zero_only
    def log_image(self, key: str, images: Sequence[Image.Image], step: int | None = None) -> None:
        """Show pictures, as `WandbLogger.log_image` does."""
        title, series = title_and_series(key)
        for index, image in enumerate(images):
            name = f"{series}/{index}" if len(images) > 1 else series
            self.experiment.get_logger().report_image(title, name, iteration=step or 0, image=np.asarray(image))

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        self.checkpoints = checkpoint_callback

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self.task is None:
            return
        if self.log_model and self.checkpoints is not None:
            for path in filter(None, (self.checkpoints.best_model_path, self.checkpoints.last_model_path)):
                written = Path(path).stat().st_mtime
                if self.uploaded.get(path) != written:
                    self.task.upload_artifact(Path(path).name, path, wait_on_upload=True)
                    self.uploaded[path] = written
        self.task.flush(wait_for_uploads=True)  # and not closed: a training is followed by a validation


def title_and_series(key: str) -> tuple[str, str]:
    """The plot and the line in it.

    >>> title_and_series("val/ap/cat"), title_and_series("epoch")
    (('val/ap', 'cat'), ('epoch', 'epoch'))
    """
    title, _, series = key.rpartition("/")
    return title or key, series
