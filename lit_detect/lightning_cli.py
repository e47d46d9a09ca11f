"""Lightning's command line for detectors: ``fit``, ``validate``, ``test`` and ``predict``, and configs read without a trainer."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, Namespace
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.rank_zero import rank_zero_info  # type: ignore[attr-defined]

import lit_detect
from lit_detect import DetectionDataModule, Detector
from lit_detect.callbacks import ResultsTable, TrainingTime
from lit_detect.checkpoints import newest_last, read_checkpoint
from lit_detect.data.presets import RESIZING_PRESETS
from lit_detect.data.splits import splits_to_train
from lit_detect.data.yolo import read_yaml
from lit_detect.errors import InputError
from lit_detect.faults import NonFinite
from lit_detect.loggers import log_config, with_csv_file
from lit_detect.pictures import DetectionPictures
from lit_detect.predictions import PredictionWriter
from lit_detect.ranks import refuse_sharding
from lit_detect.saving import RunCheckpoint, WholeFiles
from lit_detect.tiles import Tiles
from lit_detect.watch import RankWatch

__all__ = ["DetectionCLI", "read_config"]

NEEDED = {"TensorBoardLogger": "tensorboard", "WandbLogger": "wandb", "MLFlowLogger": "mlflow"}  # by Lightning's loggers


class SaveConfig(SaveConfigCallback):
    """Save the config in the run's folder, and give it to the loggers."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        text = self.parser.dump(self.config, skip_none=False)
        for logger in trainer.loggers:
            log_config(logger, text)


class DetectionCLI(LightningCLI):
    """Lightning's command line with the data's classes flowing to the model, and results at the end of a run."""

    def __init__(self, args: ArgsType = None) -> None:
        super().__init__(
            Detector,
            DetectionDataModule,
            subclass_mode_model=True,
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"callbacks": [ResultsTable(), TrainingTime(), RankWatch()]},
            auto_configure_optimizers=False,
            seed_everything_default=0,
            parser_kwargs={"prog": "lit-detect", "description": lit_detect.__doc__},
            args=args,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        link_classes(parser)
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.monitor": "val/map",
                "checkpoint.mode": "max",
                "checkpoint.save_last": True,
                "checkpoint.filename": "best",
                "checkpoint.enable_version_counter": False,
            }
        )
        parser.add_lightning_class_args(NonFinite, "faults")
        parser.add_lightning_class_args(DetectionPictures, "pictures")
        parser.add_lightning_class_args(PredictionWriter, "predictions")
        parser.add_lightning_class_args(Tiles, "tiles")

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration as it is.

        Lightning 2.6 lets a checkpoint's hyper-parameters replace what was asked for: a score threshold for a test is silently ignored.
        """

    def before_instantiate_classes(self) -> None:
        """Settings that depend on other settings."""
        config = self.config[self.subcommand]
        strategy = config.trainer.strategy  # before the trainer, which gives a traceback where there is no GPU
        refuse_sharding(str(strategy.get("class_path") if isinstance(strategy, Namespace) else strategy))
        follow_the_model(config)
        place_loggers(config.trainer)
        if config.get("weights_only") is None:
            config.weights_only = True  # a checkpoint is data: code pickled into one is refused
        for name in ("verbose", "return_predictions"):  # our callbacks print the results, and write what is predicted
            if name in config:
                config[name] = False
        if config.checkpoint.monitor == "val/map" and not self._validates(config.data):  # no AP to choose checkpoints by: keep the last
            config.checkpoint.monitor, config.checkpoint.filename, config.checkpoint.save_last = None, "last", None
        if config.get("ckpt_path") == "last" and self.subcommand == "fit":
            config.ckpt_path = last_of_runs(config)
        path = config.get("ckpt_path")
        if path is None and self.subcommand != "fit":
            raise InputError(f"Expected a checkpoint to {self.subcommand} but got none: give --ckpt_path.")
        if path not in (None, "last", "best", "hpc", "registry"):
            self._take_classes(config, Path(path))
            if config.checkpoint.dirpath is None and self.subcommand == "fit":
                config.checkpoint.dirpath = str(Path(path).parent)  # a resumed run goes on choosing among its checkpoints

    def _validates(self, data: Namespace) -> bool:
        """Whether there is a validation set; only a training looks into a folder."""
        return data.val is not None if data.folder is None or self.subcommand != "fit" else "val" in splits_to_train(data.folder)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A trainer that writes whole checkpoints, and metrics to a CSV file: Lightning would take TensorBoard where that is installed."""
        settings = self.config_init[self.subcommand].trainer
        trainer = super().instantiate_trainer(logger=with_csv_file(settings.logger, settings.default_root_dir or "."), **kwargs)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # and not one that the user chose
            trainer.strategy.checkpoint_io = WholeFiles()
        return trainer

    def _take_classes(self, config: Namespace, path: Path) -> None:
        """A checkpoint's classes go before the data's, so that the data need not be there to predict."""
        saved = read_checkpoint(path).get("hyper_parameters", {})
        if config.data.classes is None and "classes" in saved:
            config.data.classes, config.data.category_ids = list(saved["classes"]), list(saved["category_ids"])

    def after_fit(self) -> None:
        """Evaluate the best checkpoint, so that a training ends with its results."""
        checkpoint = self.trainer.checkpoint_callback
        if self.datamodule.splits["val"] is not None and isinstance(checkpoint, ModelCheckpoint) and checkpoint.best_model_path:
            self.trainer.validate(self.model, datamodule=self.datamodule, ckpt_path="best", verbose=False, weights_only=True)


def link_classes(parser: LightningArgumentParser) -> None:
    """The data tells the model its classes."""
    for name in ("classes", "category_ids"):
        parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")


def place_loggers(trainer: Namespace) -> None:
    """Loggers that would write in the current folder go where the run does.

    Raises:
        InputError: what a logger needs is not installed.
    """
    for name, logger in asked_loggers(trainer):
        package = NEEDED.get(name)
        if package and not find_spec(package):
            raise InputError(f"Expected {package} for {name} but it is not installed: pip install 'lit_detect[{package}]'.")
        if logger.get("init_args.save_dir") == "." and trainer.default_root_dir:
            logger.init_args.save_dir = str(trainer.default_root_dir)


def asked_loggers(trainer: Namespace) -> list[tuple[str, Namespace]]:
    """The loggers of a config, each with the name of its class."""
    loggers = trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]
    return [(logger.class_path.rpartition(".")[2], logger) for logger in loggers if isinstance(logger, Namespace)]


def last_of_runs(config: Namespace) -> str | None:
    """The last checkpoint that was saved by any run of this config; none, and a line that says so, where there is none."""
    folders = [config.checkpoint.dirpath] if config.checkpoint.dirpath else checkpoint_folders(config.trainer)
    found = newest_last(folders)
    if found is None:
        rank_zero_info(f"--ckpt_path last: no last.ckpt in {folders[0]}, so the training starts from its beginning.")
    else:
        rank_zero_info(f"--ckpt_path last: the training goes on from {found}.")
    return None if found is None else str(found)


def checkpoint_folders(trainer: Namespace) -> list[str]:
    """Where runs leave their checkpoints, as patterns: below the CSV file's folder (see `with_csv_file`), or without it the trainer's."""
    root = trainer.default_root_dir or os.getcwd()
    if trainer.logger is False or trainer.logger == []:
        return [os.path.join(root, "checkpoints")]
    by_name = {name: logger.get("init_args", {}) for name, logger in asked_loggers(trainer)}
    arguments = by_name.get("CSVLogger") or by_name.get("TensorBoardLogger") or {}
    return [os.path.join(arguments.get("save_dir") or root, arguments.get("name", "lightning_logs") or "", "*", "checkpoints")]


def follow_the_model(config: Namespace) -> None:
    """Training images are made in the network's size, and a network leaves sizes alone that a preset draws."""
    arguments = config.model.init_args
    if config.data.image_size is None and "size" in arguments:
        config.data.image_size = arguments.size
    if config.data.transforms in RESIZING_PRESETS and "train_min_sizes" in arguments and arguments.train_min_sizes is None:
        arguments.train_min_sizes = []


def read_config(path: Path | str, with_model: bool = True) -> tuple[DetectionDataModule, Detector | None]:
    """The data and the model of a training's config, without the trainer.

    Args:
        path: a YAML file with ``data``, and with ``model`` unless None is to be returned for it.
        with_model: build the model too, which reads the classes from the data.

    Raises:
        InputError: the file has no data, or what it has cannot be understood.
    """
    content = read_yaml(Path(path))
    if not isinstance(content.get("data"), dict):
        raise InputError(f"Expected a training config with data in {path}.")
    parts = {key: content[key] for key in ("data", "model") if key in content}
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(DetectionDataModule, "data")
    if "model" in parts:
        parser.add_lightning_class_args(Detector, "model", subclass_mode=True)
        link_classes(parser)
    try:
        config = parser.parse_object(parts)
    except ArgumentError as error:
        raise InputError(f"Expected a training config in {path} but: {error}") from error
    if "model" in parts:
        follow_the_model(config)
    if not with_model:  # by a parser of its own, since links would build what they start from
        for_data = LightningArgumentParser()
        for_data.add_lightning_class_args(DetectionDataModule, "data")
        return for_data.instantiate_classes(Namespace(data=config.data)).data, None  # type: ignore[no-untyped-call]
    made = parser.instantiate_classes(config)
    return made.data, made.get("model")
