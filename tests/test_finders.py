"""Finders of a learning rate and of a batch size, and trainings that start after them as if they had not been."""

import shutil

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import BatchSizeFinder, EMAWeightAveraging, LearningRateFinder
from torch import nn

from lit_detect import SSD, DetectionDataModule, DigitsCOCO, DigitsVOC, FindBatchSize, FindLearningRate, InputError, OneCycle
from lit_detect.data.digits import write_digits
from lit_detect.finders import keep_factors, steepest
from lit_detect.saving import RunCheckpoint
from tests.conftest import TinyBackbone


class LoadedBackbone(TinyBackbone):
    """Starts from weights that its constructor does not make."""

    def load_weights(self):
        for name, parameter in self.named_parameters():
            if name.endswith("0.weight"):
                nn.init.constant_(parameter[: self.width // 2], 0.02)


class SmallMemory(SSD):
    """Has no room for more than four images."""

    def training_step(self, batch, batch_idx):
        if len(batch[0]) > 4:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return super().training_step(batch, batch_idx)


class Keep(Callback):
    """A copy of the last checkpoint after the first epoch, and the rates of the first step."""

    def __init__(self):
        self.rates = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == 0 and trainer.ckpt_path is None:
            shutil.copy(trainer.checkpoint_callback.last_model_path, trainer.default_root_dir)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append([group["lr"] for group in optimizer.param_groups])


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return str(write_digits(str(tmp_path_factory.mktemp("digits") / "set"), {"train": 12, "val": 2}))


@pytest.fixture
def fit(digits, tmp_path, monkeypatch):
    """Train two epochs, and give the trainer, the detector and the rates of each step."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")  # which seed_everything sets, to be undone

    def training(name, callbacks=(), kind=SSD, lr=0.0625, batch_size=3, ckpt_path=None, length=None, **arguments):
        seed_everything(5, verbose=False)
        settings = {
            "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=lr, momentum=0.9),
            "lr_scheduler": OneCycle(),
        } | arguments
        detector = kind(
            [str(digit) for digit in range(10)], size=64, backbone=LoadedBackbone(), scales="linear", extra_channels=[16],
            backbone_lr_factor=0.5, **settings,
        )  # fmt: skip
        data = DetectionDataModule(DigitsVOC("train", digits), DigitsCOCO("val", digits), batch_size=batch_size, num_workers=0)
        keep, checkpoint = Keep(), RunCheckpoint(tmp_path / name / "checkpoints", "best", "val/map", mode="max", save_last=True)
        trainer = Trainer(
            **(length or {"max_epochs": 2}), accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=tmp_path / name, callbacks=[*callbacks, EMAWeightAveraging(decay=0.8), keep, checkpoint],
        )  # fmt: skip
        trainer.fit(detector, data, ckpt_path=ckpt_path)
        return trainer, detector, keep.rates

    return training


def last(trainer):
    return torch.load(trainer.checkpoint_callback.last_model_path, weights_only=True)


def assert_same(one, other):
    """Two checkpoints of trainings: weights, averaged and not, optimizer and schedule, and what was counted."""
    for part in ("state_dict", "current_model_state"):
        assert one[part].keys() == other[part].keys()
        assert all(torch.equal(one[part][name], other[part][name]) for name in one[part])
    for part in ("loops", "lr_schedulers", "global_step", "epoch", "DetectionDataModule"):
        assert one[part] == other[part], part
    states = [checkpoint["optimizer_states"][0]["state"] for checkpoint in (one, other)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key]["momentum_buffer"], states[1][key]["momentum_buffer"]) for key in states[0])


def test_a_training_goes_with_the_rate_that_was_found_and_as_if_it_had_been_given(fit, tmp_path, capsys):
    finder = FindLearningRate(min_lr=1e-4, max_lr=0.5, num_training_steps=20)
    trainer, detector, rates = fit("found", [finder])
    found = detector.found_lr
    assert 1e-4 < found < 0.5
    assert f"learning rate: {found:.3g}, where the loss falls fastest in 20 steps up to " in capsys.readouterr().out
    assert (tmp_path / "found" / "learning_rate.png").stat().st_size > 5000
    assert {path.name for path in (tmp_path / "found").iterdir()} == {"learning_rate.png", "last.ckpt", "checkpoints"}
    assert len(rates) == 8  # 2 epochs of 12 images, 3 a step; the schedule's peak is the rate
    assert max(max(step) for step in rates) <= found < 2 * max(max(step) for step in rates)
    assert {round(min(step) / max(step), 6) for step in rates} == {0.5}
    given, _, given_rates = fit("given", lr=found, base_batch_size=3)
    assert rates == given_rates
    assert_same(last(trainer), last(given))


def test_a_training_whose_length_is_in_steps_starts_at_its_first_epoch_too(fit):
    settings = {"length": {"max_steps": 8}, "lr_scheduler": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)}
    trainer, detector, rates = fit("found", [FindLearningRate(1e-4, 0.5, 14)], **settings)
    given, _, given_rates = fit("given", lr=detector.found_lr, **settings)
    assert rates == given_rates
    assert [max(step) / detector.found_lr for step in rates] == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5]
    assert_same(last(trainer), last(given))


def test_it_goes_on_from_a_checkpoint_with_what_was_found(fit, tmp_path):
    def finders():
        return [FindBatchSize(max_batch_size=4, steps_per_trial=1), FindLearningRate(1e-4, 0.5, 20)]

    trainer, _, rates = fit("whole", finders())
    assert trainer.datamodule.batch_size == 4
    resumed, _, rates_then = fit("resumed", finders(), ckpt_path=tmp_path / "whole" / "last.ckpt")
    assert resumed.datamodule.batch_size == 4
    assert rates_then == rates[3:]
    assert_same(last(trainer), last(resumed))


def test_the_largest_batch_that_memory_holds(fit, capsys):
    found, _, rates = fit("found", [FindBatchSize(max_batch_size=16)], SmallMemory, base_batch_size=8)
    assert "batch size: 4, the largest power of 2 that memory holds, of those up to 12" in capsys.readouterr().out
    given, _, given_rates = fit("given", batch_size=4, base_batch_size=8)
    assert rates == given_rates
    assert len(rates) == 6
    assert_same(last(found), last(given))


def test_parts_of_the_network_keep_their_share_of_the_rate_in_the_test():
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [one], "lr": rate} for one, rate in zip(parameters, (0.2, 0.02), strict=True)])
    hooks = keep_factors(optimizer)
    for hook in (None, *hooks):
        for group, parameter in zip(optimizer.param_groups, parameters, strict=True):
            group["lr"], parameter.grad = 8.0, torch.ones(1)
        if hook is None:
            optimizer.step()
            assert [parameter.item() for parameter in parameters] == [-8.0, pytest.approx(-0.8)]
            assert [group["lr"] for group in optimizer.param_groups] == [8.0, pytest.approx(8.0)]
        else:
            hook.remove()
    optimizer.step()
    assert [parameter.item() for parameter in parameters] == [-16.0, pytest.approx(-8.8)]


def test_the_steepest_place_is_one_of_finite_losses_after_the_first():
    rates = [10.0 ** (power / 4) for power in range(-24, 0)]
    losses = [9.0] + [5.0] * 12 + [4.9, 4.5, 2.5, 2.2, 2.2, 2.4, 3.0, 8.0, float("nan"), float("nan"), float("nan")]
    assert steepest(rates, losses) in rates[14:16]
    with pytest.raises(InputError, match="Expected a loss that falls somewhere in 24 steps"):
        steepest(rates, [5.0] * 24)
    with pytest.raises(InputError, match="Expected a loss that falls somewhere in 5 steps"):
        steepest(rates[:5], losses[:5])


def test_what_cannot_be_found_is_said(fit):
    with pytest.raises(InputError, match="Expected FindBatchSize before FindLearningRate"):
        fit("order", [FindLearningRate(), FindBatchSize()])
    for theirs, ours in ((LearningRateFinder, "FindLearningRate"), (BatchSizeFinder, "FindBatchSize")):
        with pytest.raises(InputError, match=f"Expected the callback {ours} of lit_detect but got Lightning's {theirs.__name__}"):
            fit("theirs", [theirs()])
    with pytest.raises(InputError, match="at least 13 steps"):
        FindLearningRate(num_training_steps=12)
    with pytest.raises(InputError, match="max_batch_size from 2"):
        FindBatchSize(max_batch_size=1)
