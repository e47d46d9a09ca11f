"""The verb ``compare``: a whole comparison on a few digits, and how its parts are read, resumed and drawn."""

import json
import os
import struct
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from lit_detect import InputError
from lit_detect.cli import CONFIGS, main
from lit_detect.compare import by_objects, compare, measure_latency, measured, write_report
from lit_detect.compare_measure import load_detector
from lit_detect.compare_plots import draw_pictures
from lit_detect.compare_runs import call, differing, epochs, names_of, read_models, read_training, train
from lit_detect.cost import machine
from lit_detect.data.digits import write_digits
from lit_detect.lightning_cli import read_config

SSD = {"class_path": "SSD", "init_args": {"size": 64, "scales": "linear", "extra_channels": [16]}}
BACKBONE = {"class_path": "TorchvisionBackbone", "init_args": {"name": "resnet18", "nodes": ["layer1", "layer2"]}}
SMALL = {**SSD, "init_args": {**SSD["init_args"], "backbone": BACKBONE}}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    root = str(write_digits(str(tmp_path_factory.mktemp("digits") / "set"), {"train": 4, "val": 4}))
    data = {
        "train": {"class_path": "DigitsVOC", "init_args": {"image_set": "train", "root": root}},
        "val": {"class_path": "DigitsCOCO", "init_args": {"image_set": "val", "root": root}},
        "batch_size": 2,
        "num_workers": 0,
    }
    return {"trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False}, "data": data}


def test_a_comparison_from_yaml_to_pictures_and_again(shared, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    models = {"small SSD": {"model": SMALL}, "broken": {"model": {**SMALL, "init_args": {**SMALL["init_args"], "scales": [1]}}}}
    compare(models, shared, out=str(out), device="cpu", images=2)
    report = json.loads((out / "compare.json").read_text())
    row, broken = report["rows"]
    assert broken == {"name": "broken", "error": "Expected 6 scales for 5 feature maps ([16, 8, 4, 2, 1]) but got 1."}
    assert (row["detector"], row["extractor"], row["input_size"]) == ("SSD", "resnet18", 64)
    assert 0 <= row["ap"] <= row["ap50"] <= 1
    assert row["latency_p95_ms"] >= row["latency_ms"] > 0
    assert row["parameters"] == sum(parameter.numel() for parameter in load_detector(row["checkpoint"]).parameters())
    assert min(row[key] for key in ("gflops", "images_per_second", "training_seconds", "memory_mb")) > 0
    assert "latency_by_proposals" not in row
    assert report["pareto_front"] == ["small SSD"]
    assert "**small SSD**" in (out / "compare.md").read_text()
    assert "broken (failed)" in capsys.readouterr().out

    assert "command" not in report
    assert (row["criterion"], row["validation_images"]) == ("HardNegativeMining", 4)
    assert [claim for claim, *_ in report["claims"]] == ["SSD is worse at small objects than at large ones (Liu et al. 2016)"]

    # again: what is measured is left as it is, what failed is tried once more; and a run by its folder needs no model
    called = []

    def refuse(arguments, log):
        called.append(arguments)
        raise RuntimeError("not again")

    for module in ("compare", "compare_runs"):
        monkeypatch.setattr(f"lit_detect.{module}.call", refuse)
    compare(models, shared, out=str(out), device="cpu", images=2, least_ap=0.99)
    again = json.loads((out / "compare.json").read_text())
    assert [arguments[2] for arguments in called] == ["fit"]
    assert again["rows"][1] == {"name": "broken", "error": "not again"}
    assert again["rows"][0]["ap"] == row["ap"]
    assert again["verdict"][0] == "Fastest with AP of .990 or more: none."
    folder = out / "small-SSD"
    (run,) = read_models({}, {"a": {"run": str(folder)}}, tmp_path / "other")
    assert run.weights == folder / "checkpoints" / "best.ckpt"
    assert [ap for _, ap in epochs(run.trained_in)] == pytest.approx([row["ap"]])


def test_a_training_goes_on_where_it_stopped(shared, tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr("lit_detect.compare_runs.call", lambda arguments, log: called.append(arguments[4:]))

    def run(**trainer):
        (found,) = read_models(shared, {"a": {"model": SMALL, "trainer": trainer}}, tmp_path)
        train(found)
        return found

    config = ["--config", str(tmp_path / "a" / "config.yaml")]
    found = run()
    assert called.pop() == config[1:]
    last = found.folder / "checkpoints" / "last.ckpt"
    last.parent.mkdir()
    last.touch()
    (found.folder / "trained").unlink()
    assert found.weights == last
    run()
    assert called.pop() == [*config[1:], "--ckpt_path", str(last)]
    run()
    assert called == []
    with pytest.raises(InputError, match=r"to hold this training but its config.yaml differs in trainer.max_epochs: delete"):
        run(max_epochs=7)
    # another logger, or another place, is the same training
    run(logger={"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": {"save_dir": "elsewhere"}})
    moved = (tmp_path / "a").rename(tmp_path / "moved")
    train(replace(found, folder=moved))
    assert called == []
    written = yaml.safe_load((moved / "config.yaml").read_text())
    assert written["checkpoint"]["dirpath"] == str(moved / "checkpoints")


def test_models_are_laid_over_what_they_share(shared, tmp_path):
    (tmp_path / "below.yaml").write_text(yaml.safe_dump({"data": {"batch_size": 99, "mosaic": 0.5}, "model": SMALL, "seed_everything": 3}))
    entry = {"config": str(tmp_path / "below.yaml"), "data": {"num_workers": 1}, "model": {"init_args": {"size": 32}}}
    (run,) = read_models(shared, {"A / b": entry}, tmp_path)
    assert run.folder == tmp_path / "A-b"
    assert run.config["seed_everything"] == 3
    assert {key: run.config["data"][key] for key in ("batch_size", "mosaic", "num_workers")} == {
        "batch_size": 2, "mosaic": 0.5, "num_workers": 1,
    }  # fmt: skip
    assert run.config["model"] == {"class_path": "SSD", "init_args": {**SMALL["init_args"], "size": 32}}


def test_extractors_and_sizes_make_models_of_their_own(shared, tmp_path):
    other = {"class_path": "TorchvisionBackbone", "init_args": {"name": "mobilenet_v2", "nodes": ["features.6"]}}
    entry = {"model": SSD, "sizes": [64, 96], "extractors": {"ResNet": BACKBONE, "MobileNet": other}}
    runs = read_models(shared, {"SSD": entry, "RFCN": {"model": {"class_path": "lit_detect.RFCN"}, "sizes": [200]}}, tmp_path)
    assert [run.name for run in runs] == ["SSD ResNet 64", "SSD ResNet 96", "SSD MobileNet 64", "SSD MobileNet 96", "RFCN 200"]
    arguments = runs[3].config["model"]["init_args"]
    assert (arguments["size"], arguments["backbone"], arguments["scales"]) == (96, other, "linear")
    assert runs[3].extractor == "MobileNet"
    assert runs[4].config["model"]["init_args"] == {"min_size": 200}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"modle": SSD}, "in models.a but got modle"),
        ({"model": {"init_args": {}}}, "Expected a model for a, with its class_path"),
        ({"ckpt_path": "no.ckpt"}, "Expected a checkpoint of a at no.ckpt"),
        ({"run": "nowhere"}, "nowhere/config.yaml"),
        ({"model": {"class_path": "SDD"}, "sizes": [3]}, "Expected a class to import but found none as SDD"),
        (["model"], "Expected a mapping as models.a"),
        ({"ckpt_path": "a.ckpt", "sizes": [64]}, "models.a, which is trained already, but got sizes"),
        ({"run": "a", "config": "a.yaml"}, "models.a, which is trained already, but got config"),
        ({"run": "a", "trainer": {}}, "Expected ckpt_path, data, run in models.a"),
    ],
)
def test_what_is_wrong_with_a_model_is_said(shared, tmp_path, entry, message):
    with pytest.raises(InputError, match=message):
        read_models(shared, {"a": entry}, tmp_path)


def test_what_is_wrong_with_a_comparison_is_said(shared, tmp_path):
    with pytest.raises(InputError, match="Expected models or runs"):
        compare()
    with pytest.raises(InputError, match="runs of a folder of its own each"):
        compare(runs=["a/version_0", "a/../a/version_0"])
    with pytest.raises(InputError, match="at least 1 image"):
        compare(runs=["a"], images=0)
    with pytest.raises(InputError, match="differ in letters or digits"):
        read_models(shared, {"a b": {"model": SMALL}, "a/b": {"model": SMALL}}, tmp_path)
    with pytest.raises(InputError, match="Expected data for a"):
        read_models({}, {"a": {"model": SMALL}}, tmp_path)


def test_why_a_process_failed_is_its_last_line(tmp_path):
    with pytest.raises(RuntimeError, match=r"^Expected this\.$"):
        call(["-c", "print('more'); raise SystemExit('lit-detect: error: Expected this.')"], tmp_path / "log")
    with pytest.raises(RuntimeError, match="ended by signal 9; before"):
        call(["-c", "import os; print('before', flush=True); os.kill(os.getpid(), 9)"], tmp_path / "log")


def test_epochs_of_a_training_that_was_resumed_are_read_once(tmp_path):
    head = "epoch,step,train/seconds,val/map\n"
    for version, rows in enumerate(["0,9,5.0,0.1\n1,19,,\n1,19,10.0,0.2\n", "1,19,11.0,0.25\n2,29,16.0,0.3\n3,30,,0.3\n"]):
        path = tmp_path / f"version_{version}" / "metrics.csv"
        path.parent.mkdir()
        path.write_text(head + rows)
        os.utime(path, (version, version))
    assert epochs(tmp_path) == [(5.0, 0.1), (11.0, 0.25), (16.0, 0.3)]
    os.utime(tmp_path / "version_0" / "metrics.csv", (9, 9))  # what was written last counts
    assert epochs(tmp_path) == [(5.0, 0.1), (10.0, 0.2), (16.0, 0.3)]


def test_runs_are_named_by_what_tells_them_apart():
    assert list(names_of(["one/version_0", "two/version_0"], [])) == ["one/version_0", "two/version_0"]
    assert list(names_of(["one/version_0", "one/version_1"], [])) == ["version_0", "version_1"]
    assert list(names_of(["one/SSD"], ["SSD"])) == ["one/SSD"]
    assert names_of([], ["SSD"]) == {}


def test_a_users_logger_is_kept_beside_the_one_that_is_read(shared, tmp_path, monkeypatch):
    monkeypatch.setattr("lit_detect.compare_runs.call", lambda arguments, log: None)
    users = {"class_path": "WandbLogger"}
    for logger, others in ((users, [users]), ([users], [users]), (True, []), (None, [])):
        (run,) = read_models(shared, {f"{logger}": {"model": SMALL, "trainer": {"logger": logger}}}, tmp_path)
        train(run)
        first, *found = yaml.safe_load(run.config_file.read_text())["trainer"]["logger"]
        assert first["class_path"].endswith("CSVLogger")
        assert found == others


def test_only_what_changes_a_training_makes_configs_differ():
    one = {"trainer": {"logger": [1], "max_epochs": 2}, "data": {"num_workers": 2, "batch_size": 3}, "checkpoint": {"dirpath": "a"}}
    other = {"trainer": {"logger": [2], "max_epochs": 2}, "data": {"num_workers": 0, "batch_size": 4}, "checkpoint": {"dirpath": "b"}}
    assert differing(one, other) == ["data.batch_size"]


@pytest.fixture
def trained(shared, tmp_path):
    """A model with a checkpoint that is not looked into."""
    (tmp_path / "a.ckpt").touch()
    (run,) = read_models(shared, {"a": {"ckpt_path": str(tmp_path / "a.ckpt")}}, tmp_path / "out")
    run.folder.mkdir(parents=True)
    return run


def test_a_measurement_is_used_again_only_for_the_same(trained, tmp_path, monkeypatch):
    called = []

    def measure(arguments, log):
        called.append(arguments)
        Path(arguments[4]).write_text(json.dumps({"ap": len(called)}))

    monkeypatch.setattr("lit_detect.compare.call", measure)
    (tmp_path / "b.ckpt").touch()
    result = trained.folder / "measured_cpu_32-true.json"
    os.utime(trained.checkpoint, (1, 1))
    assert [measured(trained, "cpu", "32-true", images)["ap"] for images in (5, 5, 6, 6)] == [1, 1, 2, 2]
    other = replace(trained, checkpoint=tmp_path / "b.ckpt")
    os.utime(other.checkpoint, (1, 1))  # no newer than what was measured
    assert [measured(other, "cpu", "32-true", 6)["ap"] for _ in range(2)] == [3, 3]
    os.utime(other.checkpoint, (2, 2))
    assert measured(other, "cpu", "32-true", 6)["ap"] == 4
    monkeypatch.setattr("lit_detect.compare.machine", lambda device, precision: {"cpu": "another"})
    assert measured(other, "cpu", "32-true", 6)["ap"] == 5
    result.write_text('{"ap": 0.')  # half of a file
    assert measured(other, "cpu", "32-true", 6)["ap"] == 6


def test_a_process_that_ends_early_leaves_its_ap(trained, monkeypatch):
    def fail(arguments, log, row='{"ap": 0.5}'):
        if row:
            Path(arguments[4]).write_text(row)
        raise RuntimeError("ended by signal 9")

    monkeypatch.setattr("lit_detect.compare.call", fail)
    for _ in range(2):  # and is measured again
        assert measured(trained, "cpu", "32-true", 5) == {"ap": 0.5, "warning": "images a second were not measured: ended by signal 9"}
    monkeypatch.setattr("lit_detect.compare.call", partial(fail, row=None))
    with pytest.raises(RuntimeError, match="signal 9"):
        measured(trained, "cpu", "32-true", 5)


@pytest.mark.parametrize("fails_at", ["look", "proposals"])
def test_a_model_that_fails_while_it_is_timed_is_dropped(trained, monkeypatch, fails_at):
    class Network(torch.nn.Module):
        rpn = None

    networks = {name: Network() for name in "ab"}
    looks = []

    def detection_pass(network, device, precision):
        def detect(images):
            looks.append(network)
            if fails_at == "look" and network is networks["a"] and looks.count(network) > 2:
                raise torch.OutOfMemoryError("memory\nis full")

        return detect

    def proposals_of(network, images):
        if network is networks["a"]:
            raise RuntimeError("memory is full")
        return 7 * len(images)

    fakes = {
        "validation_images": lambda data, count: [(torch.zeros(3, 2, 2), 1)] * 4,
        "read_config": lambda *args, **kwargs: [None],
        "load_detector": lambda weights: SimpleNamespace(network=networks[weights.stem]),
        "detection_pass": detection_pass,
        "proposals_of": proposals_of,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(f"lit_detect.compare.{name}", fake)
    entries = [replace(trained, name=name, checkpoint=Path(f"{name}.ckpt")) for name in "ab"]
    rows = [{"name": "a", "ap": 0.5}, {"name": "b", "ap": 0.4}]
    measure_latency(entries, rows, "cpu", "32-true", 4)
    assert rows[0] == {"name": "a", "ap": 0.5, "error": "memory is full"}
    assert rows[1]["latency_ms"] > 0
    assert [count for count, _ in rows[1]["latency_by_proposals"]] == [7.0]
    if fails_at == "look":
        assert looks.count(networks["a"]) == 3


def test_the_command_line_takes_a_file_and_says_what_is_wrong_with_it(shared, tmp_path):
    config = tmp_path / "compare.yaml"
    config.write_text(yaml.safe_dump({"shared": shared, "models": {"a": {"model": SMALL}}, "out": str(tmp_path / "out")}))
    for args, message in ((["--images", "0"], "Expected at least 1 image but got 0."), ([], "Expected runs of a folder of its own each")):
        if not args:
            config.write_text(yaml.safe_dump({"runs": ["a", "a"]}))
        with pytest.raises(SystemExit) as exit:
            main(["compare", "--config", str(config), *args])
        assert exit.value.code.startswith(f"lit-detect: error: {message}")


def test_the_command_is_written_where_there_is_one(tmp_path, monkeypatch, capsys):
    report = {"rows": [], "verdict": [], "claims": [], "pictures": [], "images": 1, "least_ap": 0.5, "machine": machine("cpu")}
    for argv, command in ((["x", "compare", "--out", "a b"], "lit-detect compare --out 'a b'"), (["pytest", "tests"], None)):
        monkeypatch.setattr(sys, "argv", argv)
        write_report(tmp_path, report)
        assert json.loads((tmp_path / "compare.json").read_text()).get("command") == command
        assert ("```bash" in capsys.readouterr().out) == (command is not None)


def test_pictures_are_drawn_of_what_there_is(tmp_path):
    row = {"detector": "SSD", "extractor": "resnet18", "ap": 0.5, "latency_ms": 10.0, "latency_p95_ms": 12.0}
    rows = [{**row, "name": "a"}, {**row, "name": "b", "detector": "Mine", "latency_ms": 100.0}, {"name": "c", "error": "failed"}]
    assert draw_pictures(tmp_path, rows[2:]) == []
    assert draw_pictures(tmp_path, rows) == ["speed_accuracy.png"]
    two_stage = {**row, "name": "d", "latency_by_proposals": [[10, 9.0], [100, 20.0]], "latency_by_objects": [[1, 9.0]]}
    drawn = draw_pictures(tmp_path, [*rows, two_stage])
    assert drawn == ["speed_accuracy.png", "latency_proposals.png", "latency_objects.png"]
    for name in drawn:
        assert struct.unpack(">II", (tmp_path / name).read_bytes()[16:24]) == (960, 600)


def test_latency_by_objects_leaves_images_without_any_out():
    assert by_objects([5.0, 1.0, 2.0, 3.0], [0, 2, 2, 2]) == [(2.0, 2.0)]


@pytest.fixture(scope="module")
def quickstart(shared):
    content = yaml.safe_load((CONFIGS / "compare_quickstart.yaml").read_text())
    for split in ("train", "val"):
        content["shared"]["data"][split]["init_args"]["root"] = shared["data"][split]["init_args"]["root"]
    return content


@pytest.mark.parametrize("name", ["SSD", "SSDLite", "DSSD", "RetinaNet", "YOLOv3", "Faster R-CNN", "R-FCN"])
def test_the_shipped_comparison_builds_and_takes_a_step(quickstart, name, tmp_path):
    (run,) = read_models(quickstart["shared"], {name: quickstart["models"][name]}, tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(run.config))
    data, detector = read_config(tmp_path / "config.yaml")
    data.num_workers = 0
    data.setup("fit")
    images, targets = next(iter(data.val_dataloader()))
    assert all(loss.isfinite() for loss in detector.network.train()(images, targets).values())


def test_the_shipped_comparison_has_no_other_models(quickstart):
    assert list(quickstart["models"]) == ["SSD", "SSDLite", "DSSD", "RetinaNet", "YOLOv3", "Faster R-CNN", "R-FCN"]


def test_a_runs_config_is_a_trainings_config(tmp_path):
    of_a_run = {"ckpt_path": "last.ckpt", "weights_only": True, "predictions": {"outputs": ["csv"]}, "tiles": {"size": 640}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": {"class_path": "SSD"}, **of_a_run}))
    assert read_training(tmp_path / "config.yaml") == {"model": {"class_path": "SSD"}}
