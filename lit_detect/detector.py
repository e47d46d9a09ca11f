"""The LightningModule all detectors share. It knows steps, metrics and optimizers, and no architecture."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lit_detect.boxes import without_crowd
from lit_detect.errors import InputError
from lit_detect.hyperparameters import save_arguments
from lit_detect.metrics import DetectionMetric, metrics_of
from lit_detect.models.backbones import Backbone
from lit_detect.models.compiling import compile_parts
from lit_detect.models.weights import start_from
from lit_detect.ranks import check_trainer, scale_learning_rate
from lit_detect.schedules import OneCycle, schedulers, set_highest_rate, step_plateaus
from lit_detect.seeds import run_seed, seed_step

if TYPE_CHECKING:
    from typing_extensions import Self  # typing has it from Python 3.11

__all__ = ["Detector"]

Batch = tuple[Tensor | list[Tensor], list[dict[str, Tensor]]]


class Detector(LightningModule):
    """An object detector on Lightning.

    A subclass sets `network`, an ordinary module: ``network(images, targets)`` gives named losses in training, ``network(images)``
    gives detections in eval, and ``network.evaluate(images, targets)`` gives both. Images are uint8 RGB, one tensor
    ``(N, 3, H, W)`` or a list of ``(3, H, W)``; boxes are in pixels of the images as given.

    A checkpoint holds what a subclass's constructor was given, so that `load_from_checkpoint` needs nothing else, but not the
    arguments below that steer training; those are in the run's ``config.yaml``.

    Args:
        classes: names of the labels 1..C.
        category_ids: the data set's own ids of the classes, for prediction files; by default 1..C.
        init_from: what to start from in place of the backbone's weights: a torchvision detection weights name, a checkpoint or a
            state dict of a detector, if need be of other classes; see `lit_detect.models.weights.start_from`.
        optimizer: makes the optimizer from parameter groups.
        lr_scheduler: makes the learning-rate scheduler from the optimizer; or `OneCycle`; or none.
        lr_interval: step the scheduler after each ``epoch`` or each ``step``.
        lr_monitor: what torch's `ReduceLROnPlateau` watches after each epoch, or each that validates (``val/...``); Lightning's names it
            itself. A training loss is that of the epoch's last step.
        warmup_steps: optimizer steps over which the learning rate rises linearly. It multiplies what the scheduler gives, so the
            scheduler is to be one that multiplies too (MultiStepLR, CosineAnnealingLR, ...).
        warmup_start: the factor it starts from, above 0, at most 1.
        backbone_lr_factor: learning rate of the backbone relative to the rest.
        base_batch_size: images a step, over all devices and accumulated batches, that the learning rate is meant for: it is multiplied
            by how many there are over this (Goyal et al. 2017, section 2.1). By default it is taken as it is.
        decay_norms: apply weight decay to norms and biases too.
        compile: compile the parts that the network names in `compiled` (backbone, neck and heads) by `torch.compile`: the first steps
            take a minute or more, the others less time.
        metric: makes a metric from the classes, to be logged beside COCO's AP, such as `VOCMeanAveragePrecision`; or in place of
            it, a `COCOMeanAveragePrecision` with other settings.

    Attributes:
        metrics: for each of ``val`` and ``test``, COCO's AP and the other metric if there is one. After an evaluation they hold all its
            detections and targets.
        found_lr: if set, the highest learning rate of the schedule, in place of the optimizer's own and of what `base_batch_size` makes of
            it; `FindLearningRate` sets it.

    Raises:
        InputError: no class, two of one name, or another number of ids.
    """

    network: nn.Module
    metrics: Mapping[str, Sequence[DetectionMetric]]
    found_lr: float | None = None

    def __init__(
        self,
        classes: Sequence[str],
        category_ids: Sequence[int] | None = None,
        init_from: str | None = None,
        optimizer: Callable[[Iterable[Any]], Optimizer] = lambda parameters: torch.optim.SGD(
            parameters, lr=0.001, momentum=0.9, weight_decay=0.0005
        ),
        lr_scheduler: OneCycle | Callable[[Optimizer], LRScheduler | ReduceLROnPlateau] | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
        lr_monitor: str = "val/map",
        warmup_steps: int = 0,
        warmup_start: float = 0.001,
        backbone_lr_factor: float = 1.0,
        base_batch_size: int | None = None,
        decay_norms: bool = False,
        compile: bool = False,
        metric: Callable[[Sequence[str]], DetectionMetric] | None = None,
    ) -> None:
        super().__init__()
        if not classes or len(set(classes)) < len(classes):
            raise InputError(f"Expected class names, each once, but got {list(classes)}.")
        if category_ids is not None and len(category_ids) != len(classes):
            raise InputError(f"Expected an id for each of {len(classes)} classes but got {len(category_ids)} category_ids.")
        self.classes = [str(name) for name in classes]
        self.category_ids = [int(number) for number in (range(1, len(classes) + 1) if category_ids is None else category_ids)]
        save_arguments(self, of_training=inspect.signature(Detector).parameters)
        self.optimizer, self.lr_scheduler, self.lr_interval, self.lr_monitor = optimizer, lr_scheduler, lr_interval, lr_monitor
        self.init_from, self.warmup_steps, self.warmup_start = init_from, warmup_steps, warmup_start
        self.backbone_lr_factor, self.base_batch_size, self.decay_norms = backbone_lr_factor, base_batch_size, decay_norms
        self.metrics = nn.ModuleDict({stage: nn.ModuleList(metrics_of(self.classes, metric)) for stage in ("val", "test")})  # type: ignore[assignment]
        self.compiles, self._weights_are_loaded = compile, False
        self.register_load_state_dict_post_hook(remember_weights)  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: dict[int, Any]) -> Detector:
        """A copy, as averaging of weights makes one; it shares what makes optimizers, which may lead to the trainer, its data and ranks."""
        memo |= {id(shared): shared for shared in (self.optimizer, self.lr_scheduler)}
        copied = memo[id(self)] = type(self).__new__(type(self))
        copied.__setstate__(deepcopy(self.__getstate__(), memo))  # type: ignore[no-untyped-call]
        return copied

    @property
    def backbone(self) -> Backbone:
        """The feature extractor.

        Raises:
            InputError: the network has none.
        """
        for module in self.network.modules():
            if isinstance(module, Backbone):
                return module
        raise InputError(f"Expected a Backbone in the network of {type(self).__name__} but there is none.")

    def class_outputs(self) -> dict[str, tuple[list[str], int]]:
        """The network's layers whose outputs stand for classes: what for, and how many outputs of one class lie together.

        It is what lets weights trained on other classes start a training.
        """
        return {}

    def setup(self, stage: str) -> None:
        """Check the run against the model.

        Raises:
            InputError: a trainer that does not fit (`check_trainer`); classes that are not the data's.
        """
        check_trainer(self.trainer)
        data = getattr(self.trainer, "datamodule", None)
        found = getattr(data, "classes", None) if stage != "predict" else None
        if found is not None and list(found) != self.classes:
            raise InputError(
                f"Expected data with the model's {len(self.classes)} classes {self.classes} but it has {len(found)}: {list(found)}."
            )
        self.network.to(memory_format=torch.channels_last)  # a fifth faster on a CPU, and what mixed precision wants on a GPU
        if self.compiles:
            compile_parts(self.network)

    def on_fit_start(self) -> None:
        """Load the weights to start from where a training starts afresh; a checkpoint to resume from is loaded by now."""
        if not self._weights_are_loaded:
            self.load_start_weights()

    def load_start_weights(self) -> None:
        """Load the weights to start from: those of `init_from`, or the backbone's.

        Raises:
            InputError: weights that are not there, or are another network's.
        """
        if self.init_from is None:
            self.backbone.load_weights()
        else:
            taken = start_from(self.network, self.init_from, self.classes, self.class_outputs())
            backbone = self.backbone
            (of_backbone,) = (f"{name}." for name, module in self.network.named_modules() if module is backbone)
            if not any(name.startswith(of_backbone) for name in taken):  # it would stay random, and perhaps frozen
                raise InputError(f"Expected a detector over this backbone in {self.init_from} but none of its tensors fits the backbone.")
        self._weights_are_loaded = True

    def forward(self, images: Tensor | list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        """Losses in training, detections in eval: see the class."""
        return self.network(images, targets)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, targets = batch
        return self._log_losses("train", self.training_losses(images, [without_crowd(target) for target in targets]), len(images))

    def training_losses(self, images: Tensor | list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Named losses of a training batch, of which the step takes the sum; override to learn from something else too."""
        losses: dict[str, Tensor] = self.network(images, targets)
        return losses

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        return self._evaluation_step("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        return self._evaluation_step("test", batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Tensor]]:
        images, _ = batch
        return self.network(images) if len(images) else []

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Make a step's random numbers a function of the run's seed, if it has one, and of the step: so a training can go on as it was."""
        if (seed := run_seed()) is not None:
            seed_step(seed, self.trainer.current_epoch, batch_idx, self.trainer.global_rank)

    def on_train_epoch_end(self) -> None:
        step_plateaus(self.trainer)

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def _evaluation_step(self, stage: str, batch: Batch) -> dict[str, Any]:
        images, targets = batch
        losses, detections = self.network.evaluate(images, [without_crowd(target) for target in targets])  # type: ignore[operator]
        self._log_losses(stage, losses, len(images))
        for metric in self.metrics[stage]:
            metric.update(detections, targets)
        return {"detections": detections}

    def _log_losses(self, stage: str, losses: dict[str, Tensor], batch_size: int) -> Tensor:
        loss = torch.stack(list(losses.values())).sum()
        named = {f"{stage}/{name}": value.detach() for name, value in {"loss": loss, **losses}.items()}
        self.log_dict(named, prog_bar=stage == "train", batch_size=batch_size, sync_dist=stage != "train")
        return loss

    def _log_metrics(self, stage: str) -> None:
        for metric in self.metrics[stage]:
            if not self.trainer.sanity_checking:
                for name, value in metric.compute().items():
                    # every rank is told the same number; on the device, since NCCL reduces nothing else
                    self.log(f"{stage}/{name}", torch.tensor(value, device=self.device), prog_bar=name in ("map", "map_50", "voc_map"))
            metric.reset()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Trainable parameters by how they are optimised; override to change that.

        Returns:
            Groups for the optimizer. A key ``lr_factor`` multiplies the group's learning rate.
        """
        of_backbone = {id(parameter) for parameter in self.backbone.parameters()}
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for parameter in self.parameters():
            if parameter.requires_grad:
                decays = self.decay_norms or parameter.ndim > 1
                groups.setdefault((id(parameter) in of_backbone, decays), []).append(parameter)
        return [
            {
                "params": parameters,
                "lr_factor": self.backbone_lr_factor if in_backbone else 1.0,
                **({} if decays else {"weight_decay": 0.0}),
            }
            for (in_backbone, decays), parameters in groups.items()
        ]

    def configure_optimizers(self) -> Any:
        """The optimizer, and its schedulers.

        Raises:
            InputError: see `schedulers` and `scale_learning_rate`.
        """
        optimizer = self.optimizer(self.parameter_groups())
        for group in optimizer.param_groups:
            group["lr"] *= group.pop("lr_factor", 1.0)
        if self.found_lr is None:
            scale_learning_rate(optimizer, self._trainer, self.base_batch_size)
        else:
            set_highest_rate(optimizer, self.found_lr)
        return [optimizer], schedulers(self, optimizer)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]  # Lightning's is a class method of its own kind
        cls,
        checkpoint_path: str | Path | IO[bytes],
        map_location: Any = None,
        hparams_file: None = None,
        strict: bool | None = None,
        weights_only: bool | None = True,
        **kwargs: Any,
    ) -> Self:
        """The detector that a checkpoint describes, with its weights.

        A checkpoint is data: code that is pickled into it is refused, and it may name as its parts only modules of this package, or
        such as are imported already. Lightning's own would import what it names.

        Args:
            checkpoint_path: the file.
            map_location: where tensors go, as `torch.load` takes it; by default where they were, or the CPU if that is not there.
            hparams_file: none; a checkpoint has its own.
            strict: whether the weights are to be all of the detector's, and no others.
            weights_only: True.
            kwargs: arguments of the detector, which go before those that are saved.

        Raises:
            InputError: not a checkpoint, or one of another detector; or Lightning's way was asked for.
        """
        from lit_detect.checkpoints import detector_of  # which needs this class

        if hparams_file is not None or weights_only is False:
            raise InputError("Expected no hparams_file, and weights_only as True: a detector's checkpoint is plain data, and complete.")
        path = Path(checkpoint_path) if isinstance(checkpoint_path, str) else checkpoint_path
        return detector_of(cls, path, map_location, strict, **kwargs)

    def predict(self, images: Any, **arguments: Any) -> list[dict[str, Tensor]]:
        """Detections on images, a folder or a video: see `lit_detect.predict.predict`, which has the arguments."""
        from lit_detect.predict import predict  # which needs the reading of data, as a detector does not

        return predict(self, images, **arguments)


def remember_weights(detector: Detector, incompatible: Any) -> None:
    """A detector that was given weights, by a checkpoint or by hand, is not to start from the backbone's."""
    detector._weights_are_loaded = True
