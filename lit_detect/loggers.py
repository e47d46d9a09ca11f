"""What loggers are given beside metrics and hyper-parameters: pictures and the config; and the CSV file that is always written."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image

__all__ = ["log_config", "log_picture", "with_csv_file"]

CONFIG = "training_config.yaml"  # of a run in Weights & Biases, which writes a config.yaml of its own


def with_csv_file(asked: Logger | Iterable[Logger] | bool | None, folder: Path | str) -> list[Logger]:
    """The loggers of a run: first the CSV file, which is read by ``report`` and ``compare``, then those that are asked for.

    The first logger's folder is the run's. TensorBoard's is kept, so that its events and the CSV file lie side by side.

    Args:
        asked: what ``trainer.logger`` says; False or an empty list for none at all. Of several CSV files the last, which was asked for
            beside those of a config.
        folder: where runs get a folder each, ``lightning_logs/version_0`` and so on.
    """
    if asked is False or asked == []:
        return []
    loggers = [] if asked is None or asked is True else [asked] if isinstance(asked, Logger) else list(asked)
    of_csv = [logger for logger in loggers if isinstance(logger, CSVLogger)]
    if of_csv:
        return [of_csv[-1], *(logger for logger in loggers if logger not in of_csv)]
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            return [CSVLogger(logger.save_dir, logger.name, logger.version), *loggers]
    return [CSVLogger(folder), *loggers]


def log_picture(logger: Logger, name: str, picture: Image.Image, step: int) -> None:
    """Show a picture in a logger that takes images: Weights & Biases, ClearML, TensorBoard, MLflow or Comet; others go without.

    Args:
        logger: one of Lightning's, a `ClearMLLogger`, or another with the methods of one.
        name: what it is called there.
        picture: what is shown.
        step: the trainer's.
    """
    experiment: Any = getattr(logger, "experiment", None)
    if hasattr(logger, "log_image"):  # Weights & Biases, ClearML
        logger.log_image(name, [picture], step=step)
    elif hasattr(experiment, "add_image"):  # TensorBoard
        experiment.add_image(name, np.asarray(picture), step, dataformats="HWC")
    elif hasattr(experiment, "log_image") and hasattr(logger, "run_id"):  # MLflow
        experiment.log_image(logger.run_id, picture, key=name, step=step)
    elif hasattr(experiment, "log_image"):  # Comet
        experiment.log_image(picture, name=name, step=step)


def log_config(logger: Logger, text: str) -> None:
    """Give a run's config to Weights & Biases, ClearML, TensorBoard or MLflow; others have it in the run's folder only.

    Args:
        logger: one of Lightning's, or a `ClearMLLogger`.
        text: the config, in YAML.
    """
    if hasattr(logger, "log_config"):  # ClearML
        logger.log_config(text)
    elif isinstance(logger, WandbLogger):
        folder = logger.experiment.dir
        path = Path(folder) / CONFIG
        path.write_text(text)
        logger.experiment.save(str(path), base_path=folder, policy="now")
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_text("config", "\n".join(f"    {line}" for line in text.splitlines()))  # indented: code, in Markdown
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_text(logger.run_id, text, CONFIG)
