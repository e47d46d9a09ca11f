import shutil
from functools import partial, partialmethod

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.cli import ReduceLROnPlateau as LightningPlateau
from torch import nn
from torch.optim.lr_scheduler import MultiStepLR, OneCycleLR, ReduceLROnPlateau
from torch.utils.data import DataLoader

from lit_detect import SSD, COCOMeanAveragePrecision, HardNegativeMining, InputError, OneCycle, TorchvisionBackbone
from lit_detect.data.batches import collate
from tests.conftest import CLASSES, DETECTORS, TinyBackbone, random_batch


def loader(batches=4):
    images, targets = random_batch([(96, 96)] * 2 * batches, [2] * 2 * batches)
    return DataLoader(list(zip(images, targets, strict=True)), batch_size=2, collate_fn=collate)


def trainer(tmp_path, **kwargs):
    silent = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=tmp_path, **{"logger": False, "enable_checkpointing": False, "max_epochs": 1, **silent, **kwargs})


def build(**kwargs):
    return SSD(CLASSES, size=96, backbone=TinyBackbone(), scales="linear", extra_channels=[16], **kwargs)


class Rates(LearningRateMonitor):
    """Remember the learning rates of every step."""

    def __init__(self):
        self.seen = []

    def on_train_start(self, *args):
        pass

    def on_train_batch_start(self, trainer, *args):
        self.seen.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    def on_train_epoch_start(self, *args):
        pass


def rates(tmp_path, epochs=1, **kwargs):
    monitor = Rates()
    trainer(tmp_path, callbacks=[monitor], max_epochs=epochs).fit(build(**kwargs), loader())
    return monitor.seen


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=1.0, weight_decay=0.1)


def test_warmup_rises_by_steps_under_a_scheduler_of_epochs(tmp_path):
    seen = rates(tmp_path, 3, optimizer=sgd, warmup_steps=4, warmup_start=0.2, lr_scheduler=lambda o: MultiStepLR(o, [2], gamma=0.1))
    assert [step[0] for step in seen] == pytest.approx([0.2, 0.4, 0.6, 0.8, *[1.0] * 4, *[0.1] * 4])


def test_one_cycle_peaks_at_each_groups_own_rate(tmp_path):
    seen = rates(tmp_path, 2, optimizer=sgd, lr_scheduler=OneCycle(pct_start=0.5), backbone_lr_factor=0.1)
    backbone, rest = [max(column) for column in zip(*seen, strict=True)][::2]
    assert (min(backbone, rest), max(backbone, rest)) == pytest.approx((0.1, 1.0), rel=0.05)
    assert seen[-1][0] < 0.2 * max(step[0] for step in seen)


def test_groups_have_every_trainable_parameter_once_and_spare_norms_and_biases():
    detector = SSD(
        CLASSES, size=96, backbone=TorchvisionBackbone("resnet18", ["layer2", "layer3"], frozen=["conv1", "layer1"]), scales="linear"
    )
    groups = detector.parameter_groups()
    grouped = [parameter for group in groups for parameter in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in detector.network.parameters() if p.requires_grad}
    assert len(grouped) == len({id(p) for p in grouped})
    for group in groups:
        assert all((p.ndim <= 1) == (group.get("weight_decay") == 0.0) for p in group["params"])
    norms = {id(p) for m in detector.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
    assert norms & {id(p) for g in groups if "weight_decay" not in g for p in g["params"]} == set()


def test_plateau_with_mode_min_on_ap_is_refused(tmp_path):
    with pytest.raises(InputError, match="mode: max for val/map"):
        trainer(tmp_path).fit(build(lr_scheduler=lambda o: ReduceLROnPlateau(o)), loader())


def test_plateau_lowers_the_rate_when_ap_does_not_rise(tmp_path):
    detector = build(optimizer=sgd, lr_scheduler=lambda o: ReduceLROnPlateau(o, mode="max", patience=0, threshold=10))
    trainer(tmp_path, max_epochs=3).fit(detector, loader(), loader())
    assert detector.optimizers().param_groups[0]["lr"] < 1


def test_plateau_waits_for_the_epochs_that_validate(tmp_path):
    detector = build(optimizer=sgd, lr_scheduler=lambda o: ReduceLROnPlateau(o, mode="max", patience=1, threshold=10))
    trainer(tmp_path, max_epochs=4, check_val_every_n_epoch=2).fit(detector, loader(), loader())
    assert detector.optimizers().param_groups[0]["lr"] == 1  # one epoch was no better, and there were not two
    assert detector.lr_schedulers().num_bad_epochs == 1


def test_lightnings_plateau_watches_what_it_names(tmp_path):
    waits = partial(LightningPlateau, monitor="val/loss", patience=0, threshold=1e9, threshold_mode="abs")
    detector = build(optimizer=sgd, lr_scheduler=waits)
    trainer(tmp_path, max_epochs=3).fit(detector, loader(), loader())
    assert detector.optimizers().param_groups[0]["lr"] < 1


def test_a_plateau_that_could_not_work_is_refused(tmp_path):
    waits = partial(ReduceLROnPlateau, mode="max")
    with pytest.raises(InputError, match="Expected lr_interval: epoch with ReduceLROnPlateau"):
        trainer(tmp_path).fit(build(lr_scheduler=waits, lr_interval="step"), loader(), loader())
    with pytest.raises(InputError, match="Expected check_val_every_n_epoch as a number with ReduceLROnPlateau on val/map"):
        trainer(tmp_path, check_val_every_n_epoch=None, val_check_interval=3).fit(build(lr_scheduler=waits), loader(), loader())
    with pytest.raises(InputError, match=r"Expected val/map, which ReduceLROnPlateau watches, but what was logged is train/"):
        trainer(tmp_path).fit(build(lr_scheduler=waits), loader())


def test_a_plateau_lets_a_training_end_before_its_first_validation(tmp_path):
    detector = build(optimizer=sgd, lr_scheduler=partial(ReduceLROnPlateau, mode="max", patience=0))
    trainer(tmp_path, max_steps=2).fit(detector, loader(), loader())
    assert (detector.global_step, detector.lr_schedulers().last_epoch) == (2, 0)


def test_one_cycle_is_that_of_the_training_that_goes_on(tmp_path):
    """Of one that was to be shorter or longer; the rates of steps that are still to come are those of a training of this length."""

    def cycle(total):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1, momentum=0.9)
        return OneCycle()(optimizer, total)

    def rates(scheduler, steps):
        found = []
        for _ in range(steps):
            scheduler.optimizer.step()
            scheduler.step()
            found.append(scheduler.get_last_lr()[0])
        return found

    for planned, done, total in ((4, 4, 8), (8, 3, 6), (8, 5, 8)):
        first, resumed, whole = cycle(planned), cycle(total), cycle(total)
        rates(first, done)
        resumed.load_state_dict(first.state_dict())
        assert rates(resumed, total - done) == rates(whole, total)[done:]
        assert rates(resumed, 2) == [resumed.get_last_lr()[0]] * 2  # more steps than were planned keep the last rate
    rising = OneCycleLR(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1, momentum=0.9), max_lr=1, total_steps=8)
    assert rates(cycle(8), 7) == rates(rising, 7)


def test_one_cycle_without_an_end_is_refused(tmp_path):
    with pytest.raises(InputError, match="Expected max_epochs or max_steps with OneCycle"):
        trainer(tmp_path, max_epochs=-1).fit(build(lr_scheduler=OneCycle()), loader())


def test_ids_for_other_classes_are_refused():
    with pytest.raises(InputError, match="Expected an id for each of 3 classes but got 2 category_ids"):
        build(category_ids=[1, 2])


def test_a_coco_metric_of_other_settings_takes_the_place_of_the_usual_one(tmp_path):
    few, usual = build(metric=lambda classes: COCOMeanAveragePrecision(classes, max_detections=[1])), build()
    assert [metric.max_detections for metric in few.metrics["val"]] == [[1]]
    few.load_state_dict(usual.state_dict())
    found = [trainer(tmp_path).validate(detector, loader(2), verbose=False)[0] for detector in (few, usual)]
    assert {name for name in found[0] if "val/mar_1" in name} == {"val/mar_1"}
    assert found[0]["val/mar_1"] == found[1]["val/mar_1"]


@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_half_precision_weights_are_refused_in_a_sentence(tmp_path, precision):
    with pytest.raises(InputError, match="Expected precision 32-true, 16-mixed or bf16-mixed"):
        trainer(tmp_path, precision=precision).fit(build(), loader())


@pytest.mark.parametrize("name", DETECTORS)
def test_a_run_in_bf16_mixed_logs_finite_numbers(tmp_path, name):
    run = trainer(tmp_path, precision="bf16-mixed")
    run.fit(DETECTORS[name](), loader(2), loader(2))
    metrics = run.callback_metrics
    assert metrics["train/loss"].isfinite()
    assert metrics["val/loss"].isfinite()
    assert metrics["val/map"] >= 0
    assert float(metrics["train/loss"]) == pytest.approx(
        sum(float(v) for k, v in metrics.items() if k.startswith("train/") and k.endswith("_loss")), rel=1e-5
    )


def test_an_absent_value_is_not_logged(tmp_path):
    run = trainer(tmp_path)
    run.validate(build(), loader(1), verbose=False)
    assert not [name for name, value in run.callback_metrics.items() if value == -1]
    assert "val/map_large" not in run.callback_metrics  # boxes are under 40 pixels


def test_backbone_weights_are_loaded_when_a_training_starts_and_never_over_a_checkpoint(tmp_path):
    path = tmp_path / "resnet.pth"
    source = TorchvisionBackbone("resnet18", ["layer2", "layer3"]).body.state_dict()
    torch.save({name: torch.full_like(value, 0.01) if value.ndim == 4 else value for name, value in source.items()}, path)

    def detector():
        backbone = TorchvisionBackbone("resnet18", ["layer2", "layer3"], weights=str(path), frozen=["conv1"])
        return SSD(CLASSES, size=96, backbone=backbone, scales="linear")

    started = detector()
    run = trainer(tmp_path)
    run.fit(started, loader(1))
    assert (started.backbone.body.conv1.weight == 0.01).all()
    nn.init.ones_(started.backbone.body.conv1.weight)
    run.save_checkpoint(tmp_path / "run.ckpt")
    path.unlink()  # neither loading nor resuming needs it
    loaded = SSD.load_from_checkpoint(tmp_path / "run.ckpt", weights_only=True)
    trainer(tmp_path).fit(loaded, loader(1))
    resumed = detector()
    trainer(tmp_path, max_epochs=2).fit(resumed, loader(1), ckpt_path=tmp_path / "run.ckpt")
    for model in (loaded, resumed):
        assert (model.backbone.body.conv1.weight == 1).all()


def test_resuming_ends_with_the_weights_of_an_uninterrupted_run(tmp_path):
    def run(epochs, ckpt_path=None):
        torch.manual_seed(0)
        detector = build(optimizer=sgd, lr_scheduler=lambda o: MultiStepLR(o, [1]))
        torch.manual_seed(1)
        data = loader(2)
        one = trainer(tmp_path, max_epochs=epochs)
        one.fit(detector, data, ckpt_path=ckpt_path)
        one.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return detector.state_dict()

    run(1)
    resumed, whole = run(2, tmp_path / "1.ckpt"), run(2)
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())


def test_warm_up_before_one_cycle_is_refused(tmp_path):
    with pytest.raises(InputError, match="warmup_steps 0 with OneCycle"):
        trainer(tmp_path).fit(build(warmup_steps=3, lr_scheduler=OneCycle()), loader())


def test_weights_given_by_hand_are_kept(tmp_path):
    backbone = TorchvisionBackbone("resnet18", ["layer2", "layer3"], weights="IMAGENET1K_V1")  # would be fetched
    detector = SSD(CLASSES, size=96, backbone=backbone, scales="linear")
    detector.load_state_dict(detector.state_dict())
    trainer(tmp_path).fit(detector, loader(1))


class Distilled(SSD):
    """A subclass with a part and an argument of its own."""

    def __init__(self, classes, teacher_weight=0.5, **kwargs):
        super().__init__(classes, **kwargs)
        self.adapter = nn.Conv2d(16, 16, 1)


class Wide(TinyBackbone):
    """A part that hands arguments on."""

    def __init__(self, extra=1, **kwargs):
        super().__init__(**kwargs)
        self.extra = extra


class Plain(HardNegativeMining):
    """A criterion with an argument of its own."""

    def __init__(self, weight=1.0, **kwargs):
        super().__init__(**kwargs)
        self.weight = weight


def test_subclasses_of_all_parts_come_back_from_a_checkpoint(tmp_path):
    detector = Distilled(
        CLASSES,
        teacher_weight=0.25,
        size=96,
        backbone=Wide(2, width=8),
        criterion=Plain(3.0, ratio=5.0),
        scales="linear",
        extra_channels=[16],
    )
    run = trainer(tmp_path)
    run.fit(detector, loader(1))
    assert any(parameter is detector.adapter.weight for group in detector.parameter_groups() for parameter in group["params"])
    run.save_checkpoint(tmp_path / "run.ckpt")
    loaded = Distilled.load_from_checkpoint(tmp_path / "run.ckpt", weights_only=True)
    assert loaded.hparams["teacher_weight"] == 0.25
    assert (loaded.backbone.extra, loaded.backbone.width) == (2, 8)
    criterion = loaded.network.criterion
    assert (type(criterion), criterion.weight, criterion.ratio) == (Plain, 3.0, 5.0)


def test_an_argument_that_no_checkpoint_could_hold_is_refused_at_once():
    with pytest.raises(InputError, match="which a checkpoint can hold"):
        Distilled(CLASSES, teacher_weight=torch.ones(1), backbone=TinyBackbone(), size=96)


def test_numpys_numbers_and_text_are_saved_as_plain_data(tmp_path):
    found = {"score_threshold": np.float64(0.25), "scales": np.linspace(0.2, 1, 5).tolist(), "aspect_ratios": [[np.float64(2)]] * 4}
    found |= {"classes": list(np.unique(["cat", "dog"])), "category_ids": list(np.array([3, 7]))}
    detector = SSD(size=96, backbone=TinyBackbone(), extra_channels=[16], **found)
    trainer(tmp_path, max_steps=1).fit(detector, loader())
    detector.trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = SSD.load_from_checkpoint(tmp_path / "a.ckpt")
    assert (loaded.classes, loaded.category_ids, loaded.hparams["score_threshold"]) == (["cat", "dog"], [3, 7], 0.25)


def test_a_detector_that_a_function_makes_loads_its_own_checkpoints_and_a_part_is_refused(tmp_path):
    class Mine(SSD):
        pass

    class Part(TinyBackbone):
        pass

    detector = Mine(CLASSES, size=96, backbone=TinyBackbone(), scales="linear", extra_channels=[16])
    trainer(tmp_path, max_steps=1).fit(detector, loader())
    detector.trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert type(Mine.load_from_checkpoint(tmp_path / "a.ckpt")) is Mine
    with pytest.raises(InputError, match=r"Part at the top of tests\.test_detector, so that a checkpoint can say where to find it"):
        SSD(CLASSES, size=96, backbone=Part())


def test_boxes_of_crowds_are_not_learnt(tmp_path):
    images, targets = random_batch([(96, 96)] * 2, [3, 2])
    plain = [{name: value[:2] if value.ndim else value for name, value in target.items()} for target in targets]
    crowd = [{**target, "iscrowd": (torch.arange(len(target["labels"])) == 2).long()} for target in targets]
    losses = []
    for batch in ((images, plain), (images, crowd)):
        torch.manual_seed(0)
        detector = build()
        trainer(tmp_path, max_steps=1).fit(detector, DataLoader([batch], batch_size=None))
        losses.append(float(detector.trainer.callback_metrics["train/loss"]))
    assert losses[0] == losses[1]


def test_classes_are_names_each_once():
    for classes in ([], ["cat", "cat"]):
        with pytest.raises(InputError, match="Expected class names, each once"):
            SSD(classes)


def test_a_part_that_forgets_its_arguments_is_named():
    class Forgetful(TinyBackbone):
        def __init__(self, depth=3):
            super().__init__()

    with pytest.raises(InputError, match=r"Forgetful to keep its constructor arguments as attributes.*depth"):
        SSD(CLASSES, size=96, backbone=Forgetful())


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_run_ends_with_a_checkpoint_that_any_run_loads(tmp_path, monkeypatch, backend):
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=backend))
    detector = build(compile=True)
    run = trainer(tmp_path, max_steps=2)
    run.fit(detector, loader())
    run.save_checkpoint(tmp_path / "compiled.ckpt")
    loaded = SSD.load_from_checkpoint(tmp_path / "compiled.ckpt").eval()
    images, _ = random_batch([(96, 96)], [0])
    with torch.no_grad():
        (found,), (expected,) = loaded(images), detector.eval()(images)
    torch.testing.assert_close(found["scores"], expected["scores"], rtol=1e-3, atol=1e-4)
