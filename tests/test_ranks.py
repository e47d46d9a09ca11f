"""Several processes that train and evaluate together, against one."""

import copy
import functools
import itertools
import json
import os
import socket
import sys
import time

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

from lit_detect import (
    SSD,
    COCODetection,
    COCOMeanAveragePrecision,
    DetectionDataModule,
    InputError,
    VOCDetection,
    VOCMeanAveragePrecision,
)
from lit_detect.cli import CONFIGS, main
from lit_detect.data.batches import collate
from lit_detect.data.digits import write_digits
from tests.conftest import DETECTORS, SHARED, TinyBackbone, random_batch
from tests.test_metrics import random_images

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="to start afresh takes each process many seconds")
STEPPED = ["ssd", "ssd_focal", "yolov3", "fcos", "retinanet", "faster_rcnn_fpn", "rfcn"]


def in_processes(count, function, folder):
    """What a function of the rank, the number of ranks and a folder gives in each of several processes, as a launcher starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    run = functools.partial(as_rank, count=count, function=function, folder=folder, address=address)
    processes = torch.multiprocessing.start_processes(run, nprocs=count, join=False, start_method="forkserver")
    deadline = time.monotonic() + 300
    while not processes.join(timeout=5):
        assert time.monotonic() < deadline
    return [torch.load(folder / f"{count}_{rank}.pt") for rank in range(count)]


def as_rank(rank, count, function, folder, address):
    torch.set_num_threads(1)  # as a DataLoader's workers
    os.environ.update(address, LOCAL_RANK=str(rank), NODE_RANK="0")
    torch.save(function(rank, count, folder), folder / f"{count}_{rank}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def trainer(count, **kwargs):
    silent = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "enable_checkpointing": False}
    settings = {"strategy": "ddp" if count > 1 else "auto", "max_epochs": 1, **silent, **kwargs}
    return Trainer(accelerator="cpu", devices=count, **settings)


def small_ssd(classes, **kwargs):
    torch.manual_seed(0)
    return SSD(classes, size=96, backbone=TinyBackbone(), scales="linear", extra_channels=[16], **kwargs)


# ---- evaluation


def data_sets(folder):
    """Sets of images whose number none or only some numbers of ranks divide, down to fewer images than ranks."""
    sets = {f"digits {count}": VOCDetection(str(folder / "digits"), f"first{count}") for count in (2, 7)}
    if SHARED.is_dir():
        photos = SHARED / "data" / "coco_tiny"
        sets["coco_tiny"] = COCODetection(str(photos / "val2017"), str(photos / "annotations" / "instances_val2017.json"))
        sets["voc_mini"] = VOCDetection(str(SHARED / "data" / "voc_mini" / "VOCdevkit" / "VOC2012"), "val")
    return sets


def near(images, targets):
    """Losses and detections of what finds the targets nearly, some twice, with many equal scores."""
    found = []
    for target in targets:
        generator = torch.Generator().manual_seed(int(target["image_id"]))
        boxes = target["boxes"].repeat(2, 1)
        scores = torch.randint(0, 4, (len(boxes),), generator=generator) / 4
        found.append(
            {"boxes": boxes + 4 * torch.rand(boxes.shape, generator=generator), "labels": target["labels"].repeat(2), "scores": scores}
        )
    return {"class_loss": torch.zeros(())}, found


def evaluate(rank, count, folder):
    """Everything that a test logs of each data set, and what the metrics give of images that only the first rank has."""
    values = {}
    for name, dataset in data_sets(folder).items():
        for threshold in (0.0, 1.0) if name == "digits 7" else (0.0,):
            data = DetectionDataModule(test=dataset, batch_size=1, num_workers=0)
            detector = small_ssd(data.classes, score_threshold=threshold, detections_per_image=100, metric=VOCMeanAveragePrecision)
            if name.startswith("digits") and not threshold:
                detector.network.evaluate = near
            run = trainer(count)
            run.test(detector, data, verbose=False)
            logged = {key: float(value) for key, value in run.callback_metrics.items() if not key.endswith("loss")}
            values[name, threshold] = {**logged, "images": len(detector.metrics["test"][0].targets)}
    for kind in (COCOMeanAveragePrecision, VOCMeanAveragePrecision):
        metric = kind(["a", "b", "c"])
        for image in random_images(3, 12, 3, 20) if rank == 0 else []:
            metric.update(*([one] for one in image))
        values[kind.__name__] = metric.compute()
    return values


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("ranks")
    digits = write_digits(str(root / "digits"), {"train": 8, "val": 7})
    for count in (2, 7):
        names = (digits / "ImageSets" / "Main" / "val.txt").read_text().split()
        (digits / "ImageSets" / "Main" / f"first{count}.txt").write_text("\n".join(names[:count]))
    config = yaml.safe_load((CONFIGS / "quickstart.yaml").read_text())
    config["trainer"] = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False, "num_sanity_val_steps": 0, "max_epochs": 2}
    config["model"]["init_args"] |= {"backbone": {"class_path": "tests.conftest.TinyBackbone"}, "score_threshold": 0.0, "scales": "linear"}
    config["model"]["init_args"] |= {"extra_channels": [16], "aspect_ratios": [[2]] * 4, "lr_scheduler": None, "base_batch_size": 16}
    config["data"]["train"]["init_args"]["root"] = config["data"]["val"]["init_args"]["root"] = str(digits)
    config["data"] |= {"num_workers": 0, "batch_size": 2, "test": config["data"]["val"]}
    config["pictures"] = {"images": 1}
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    return root


@pytest.fixture(scope="module")
def evaluated(folder):
    return {1: [evaluate(0, 1, folder)], **{count: in_processes(count, evaluate, folder) for count in (2, 3)}}


def test_any_number_of_ranks_gives_every_number_of_one_to_the_last_digit(evaluated):
    (alone,) = evaluated[1]
    for ranks in evaluated.values():
        for values in ranks:
            assert values == alone
    for name, count in {"digits 2": 2, "digits 7": 7, "coco_tiny": 80, "voc_mini": 160}.items():
        if (name, 0.0) in alone:
            assert alone[name, 0.0]["images"] == count
    assert alone["digits 7", 1.0]["test/map"] == alone["digits 7", 1.0]["test/voc_map"] == 0
    assert all(0 < alone["digits 7", 0.0][key] < 1 for key in ("test/map", "test/voc_map"))
    if not SHARED.is_dir():
        pytest.skip(f"on digits alone: photographs are expected in {SHARED}")
    assert min(alone[name, 0.0][key] for name in ("coco_tiny", "voc_mini") for key in ("test/map", "test/voc_map")) > 0


# ---- training


class Still(Callback):
    """All batch norms as if they were frozen: over a part of a batch they would give other numbers than over all of it."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        for module in pl_module.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


def step(name, rank, count):
    """The weights after a step on 4 images of 0 to 9 boxes, shared among the ranks."""
    torch.manual_seed(0)
    exact = {"rpn_batch_size": 16} if "rcnn" in name or name == "rfcn" else {}  # as many as each image has, whatever its boxes
    detector = DETECTORS[name](optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1), **exact)
    images, targets = random_batch([(96, 96)] * 4, [0, 1, 9, 2])
    mine = list(zip(images, targets, strict=True))[rank * 4 // count : (rank + 1) * 4 // count]
    loader = DataLoader(mine, batch_size=4 // count, collate_fn=collate)
    before = {key: value.clone() for key, value in detector.named_parameters()}
    random_order, torch.randperm = torch.randperm, lambda number, **kwargs: torch.arange(number)  # the first anchors, not any
    try:
        trainer(count, use_distributed_sampler=False, callbacks=[Still()]).fit(detector, loader)
    finally:
        torch.randperm = random_order
    return {key: value.detach() - before[key].detach() for key, value in detector.named_parameters()}


def no_boxes(name, rank, empty):
    """Two steps in which some ranks have no box, of a plain DistributedDataParallel: it would miss a gradient in the second."""
    torch.manual_seed(0)
    network = DistributedDataParallel(DETECTORS[name]().network.train())
    images, targets = random_batch([(96, 96)] * 2, [0 if rank in empty else 2] * 2)
    for _ in range(2):
        losses = network(torch.stack(images), targets)
        sum(losses.values()).backward()
    gradients = [parameter.grad for parameter in network.parameters() if parameter.requires_grad]
    return all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def rate(folder, count, accumulated=1, **kwargs):
    """Learning rates of the backbone and the rest after the first warm-up step and in the end."""
    seen = []
    data = DetectionDataModule(train=VOCDetection(str(folder / "digits"), "train"), batch_size=2, num_workers=0)
    detector = small_ssd(
        data.classes, optimizer=lambda p: torch.optim.SGD(p, lr=1e-3), backbone_lr_factor=0.5, warmup_steps=2, warmup_start=0.5, **kwargs
    )

    class Rates(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            seen.append(sorted({group["lr"] for group in optimizer.param_groups}))

    trainer(count, accumulate_grad_batches=accumulated, max_epochs=4, callbacks=[Rates()]).fit(detector, data)
    return seen[0], seen[-1]


def plateau(rank, count):
    """The learning rate after three epochs, in which the loss of the first rank falls and that of the second rises by more."""
    detector = small_ssd(
        ["a", "b", "c"],
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-3),
        lr_scheduler=lambda optimizer: ReduceLROnPlateau(optimizer, patience=0),
        lr_monitor="own_loss",
    )

    class Loss(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            pl_module.log("own_loss", (2.0 if rank else -1.0) * trainer.current_epoch)

    images, targets = random_batch([(96, 96)] * 2, [1] * 2)
    loader = DataLoader(list(zip(images, targets, strict=True)), batch_size=2, collate_fn=collate)
    trainer(count, use_distributed_sampler=False, max_epochs=3, callbacks=[Loss()]).fit(detector, loader)
    return detector.optimizers().param_groups[0]["lr"]


def command(folder, count, verb, *args):
    """The real command line, in this process."""
    (folder / f"run{count}").mkdir(exist_ok=True)
    os.chdir(folder / f"run{count}")
    devices = ["--trainer.devices", str(count), "--trainer.strategy", "ddp" if count > 1 else "auto"]
    sys.argv = ["lit-detect"]
    try:
        main([verb, "--config", str(folder / "config.yaml"), *devices, *args])
    except SystemExit as exit:
        raise RuntimeError(exit.code) from exit  # which a process gives back


def train(rank, count, folder):
    found = {
        "steps": {name: step(name, rank, count) for name in STEPPED},  # first, since it starts the group of processes
        "rates": {base: rate(folder, count, base_batch_size=base) for base in (None, 2, 8)},
        "accumulated": rate(folder, count, accumulated=2, base_batch_size=4),
        "plateau": plateau(rank, count),
    }
    if count > 1:
        found["without boxes"] = {(name, empty): no_boxes(name, rank, empty) for name in DETECTORS for empty in ((0,), (0, 1))}
        command(folder, count, "fit")
    return found


@pytest.fixture(scope="module")
def trained(folder):
    return {1: [train(0, 1, folder)], 2: in_processes(2, train, folder)}


@pytest.mark.parametrize("name", STEPPED)
def test_a_step_of_two_ranks_is_that_of_one_with_all_their_images(trained, name):
    (alone,), (first, second) = ([found["steps"][name] for found in trained[count]] for count in (1, 2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    scale = max(float(change.abs().max()) for change in alone.values())
    difference = max(float((first[key] - change).abs().max()) for key, change in alone.items())
    assert difference < 1e-5 * scale
    assert sum(bool(change.any()) for change in alone.values()) > 10


def test_a_plateau_is_one_of_all_ranks(trained):
    assert trained[1][0]["plateau"] == 1e-3
    assert [found["plateau"] for found in trained[2]] == [pytest.approx(1e-5)] * 2


def test_no_gradient_is_missing_when_some_ranks_or_all_have_no_boxes(trained):
    for found in trained[2]:
        assert all(found["without boxes"].values())
        assert len(found["without boxes"]) == 2 * len(DETECTORS)


def test_the_learning_rate_is_multiplied_by_the_images_of_a_step_over_those_it_is_meant_for(trained):
    warm_up, end = (pytest.approx([0.5 * factor, factor]) for factor in (0.5e-3, 1e-3))  # the backbone's is half of the rest's
    for count, ranks in trained.items():
        for found in ranks:
            rates = {**found["rates"], "accumulated": found["accumulated"]}
            assert rates.pop(None) == (warm_up, end)
            for base, factor in {2: count, 8: count / 4, "accumulated": count}.items():
                expected = tuple(pytest.approx([0.5 * factor * one, factor * one]) for one in (0.5e-3, 1e-3))
                assert rates[base] == expected


def test_the_command_line_trains_on_two_ranks_and_evaluates_alike_on_any(trained, folder):
    checkpoint = folder / "run2" / "checkpoints" / "best.ckpt"
    state = torch.load(checkpoint, weights_only=True)
    assert [group["lr"] for group in state["optimizer_states"][0]["param_groups"]] == [0.002 * 2 * 2 / 16] * 4
    arguments = ["test", "--data.batch_size", "1", "--ckpt_path", str(checkpoint)]
    in_processes(3, functools.partial(run_command, arguments=arguments), folder)
    here = os.getcwd()
    try:
        command(folder, 1, *arguments)
    finally:
        os.chdir(here)
    runs = [folder / f"run{count}" for count in (1, 3)]
    first, second = ((run / "detections_test.json").read_text() for run in runs)
    assert first == second
    first, second = (json.loads((run / "metrics.json").read_text())["test"] for run in runs)
    for results in (first, second):  # losses are means over ranks, of which the last counts an image again
        assert results["metrics"].pop("loss") > 0
        results["metrics"] = {name: value for name, value in results["metrics"].items() if not name.endswith("_loss")}
    assert first == second


def run_command(rank, count, folder, arguments):
    command(folder, count, *arguments)


def test_the_scaled_rate_is_told_and_needs_to_know_the_batch(folder, caplog):
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        rate(folder, 1, base_batch_size=8)
    assert "Learning rate 0.00025, 0.000125 for 2 images a step (1 devices with 1 batches of 2)" in caplog.text
    loader = DataLoader([random_batch([(96, 96)], [1])], batch_size=None)
    with pytest.raises(InputError, match="a data module whose batch_size"):
        trainer(1).fit(small_ssd(["a", "b", "c"], base_batch_size=8), loader)


# ---- strategies


@pytest.mark.parametrize(
    "strategy", ["fsdp", "fsdp_cpu_offload", "deepspeed_stage_2", "lightning.pytorch.strategies.ModelParallelStrategy"]
)
def test_strategies_that_cut_the_network_up_are_refused_on_the_command_line(folder, strategy, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["lit-detect"])
    with pytest.raises(SystemExit) as exit:
        main(["fit", "--config", str(folder / "config.yaml"), "--trainer.strategy", strategy])
    assert f"such as ddp, but got {strategy}" in exit.value.code


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strategy": ModelParallelStrategy()}, "such as ddp, but got ModelParallelStrategy"),
        ({"strategy": "ddp", "sync_batchnorm": True}, "Expected sync_batchnorm false on the CPU"),
    ],
)
def test_what_would_fail_later_is_refused_in_a_sentence(arguments, message):
    with pytest.raises(InputError, match=message):
        trainer(1, **arguments).fit(small_ssd(["cat", "dog", "horse"]), [random_batch([(96, 96)], [1])])


# ---- averaged weights


def test_a_copy_shares_what_makes_optimizers_and_has_weights_of_its_own():
    class Maker:
        def __deepcopy__(self, memo):
            raise AssertionError("on the command line this leads to the trainer")

        def __call__(self, parameters):
            return torch.optim.SGD(parameters, lr=0.1)

    detector = small_ssd(["a"], optimizer=Maker(), lr_scheduler=Maker())
    detector.trainer = trainer(1)
    copied = copy.deepcopy(detector)
    assert copied.optimizer is detector.optimizer
    assert copied._trainer is None
    state = copied.state_dict()
    for name, value in detector.state_dict().items():
        assert torch.equal(state[name], value)
        assert state[name].data_ptr() != value.data_ptr()


@pytest.fixture
def averaging(folder, tmp_path):
    """A config whose weights are averaged, and a function that runs it here and gives its results."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["trainer"]["callbacks"] = [{"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.8}}]
    config["trainer"]["max_epochs"] = 3
    config["checkpoint"] = {"save_top_k": -1, "filename": "{epoch}"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    here = os.getcwd()

    def run(verb, *args):
        command(tmp_path, 1, verb, *args)
        return json.loads((tmp_path / "run1" / "metrics.json").read_text())["val"]["metrics"]

    yield run
    os.chdir(here)


def test_averaged_weights_are_what_is_evaluated_and_saved_and_go_on_after_a_resume(averaging, tmp_path):
    ended = averaging("fit")
    best = json.loads((tmp_path / "run1" / "metrics.json").read_text())["val"]["checkpoint"]
    assert averaging("validate", "--ckpt_path", best) == ended
    checkpoints = tmp_path / "run1" / "checkpoints"
    states = [torch.load(checkpoints / f"epoch={epoch}.ckpt", weights_only=True) for epoch in range(3)]
    for before, after in itertools.pairwise(states):
        averaged, current = after["state_dict"], after["current_model_state"]
        assert not all(torch.equal(averaged[name], current[name]) for name in averaged)
        assert after["averaging_state"]["n_averaged"] == before["averaging_state"]["n_averaged"] + 4
    started = SSD.load_from_checkpoint(checkpoints / "epoch=2.ckpt", weights_only=True).state_dict()
    assert all(torch.equal(started[name], value) for name, value in states[2]["state_dict"].items())

    averaging("fit", "--ckpt_path", str(checkpoints / "epoch=1.ckpt"), "--checkpoint.dirpath", str(tmp_path / "resumed"))
    resumed = torch.load(tmp_path / "resumed" / "epoch=2.ckpt", weights_only=True)
    for part in ("state_dict", "current_model_state", "averaging_state"):
        assert all(torch.equal(value, resumed[part][name]) for name, value in states[2][part].items())
