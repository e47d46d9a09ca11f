"""The command line, as a user types it, on a small set of digits."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import lit_detect
from lit_detect import SSD
from lit_detect.cli import CONFIGS, SUMMARIES, VERBS, find_configs, main
from lit_detect.data.digits import write_digits
from lit_detect.lightning_cli import DetectionCLI


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = write_digits(str(tmp_path_factory.mktemp("digits") / "set"), {"train": 6, "val": 4})
    config = yaml.safe_load((CONFIGS / "quickstart.yaml").read_text())
    config["trainer"] = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "logger": False, "num_sanity_val_steps": 0}
    config["data"]["train"]["init_args"]["root"] = config["data"]["val"]["init_args"]["root"] = str(root)
    config["data"] |= {"num_workers": 0, "batch_size": 2, "test": config["data"]["val"]}
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    return root


@pytest.fixture
def run(folder, tmp_path, monkeypatch, capsys):
    """Run a command in an empty folder, and give what it prints."""
    monkeypatch.chdir(tmp_path)

    def command(verb, *args):
        monkeypatch.setattr(sys, "argv", ["lit-detect"])
        main([verb, "--config", str(folder / "config.yaml"), *args])
        return capsys.readouterr().out

    return command


def test_fit_then_validate_test_and_predict_from_its_checkpoint(run, folder, tmp_path):
    out = run("fit")
    checkpoint = tmp_path / "checkpoints" / "best.ckpt"
    for text in ("AP50", "AP75", "AP small", "best checkpoint: ", "best.ckpt", "detections drawn: ", "detections.png"):
        assert text in out
    assert (tmp_path / "detections.png").stat().st_size > 1000
    assert checkpoint.exists()
    detector = SSD.load_from_checkpoint(checkpoint, weights_only=True)
    assert detector.classes == [str(digit) for digit in range(10)]
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert saved["model"]["class_path"] == "lit_detect.SSD"

    assert "AP50" in run("validate", "--ckpt_path", str(checkpoint))
    assert "AP50" in run("test", "--ckpt_path", str(checkpoint))

    # the data sets need not be there: classes come with the checkpoint
    gone = [f"--data.{split}.init_args.root={tmp_path}" for split in ("train", "val", "test")]
    images = folder / "JPEGImages"
    (images / "broken.jpg").write_bytes(b"broken")
    out = run("predict", "--ckpt_path", str(checkpoint), "--data.predict", str(images), "--model.score_threshold", "0", *gone)
    (images / "broken.jpg").unlink()
    assert "could not read 1 of 11 images, which were skipped: broken.jpg" in out
    results = json.loads((tmp_path / "predictions" / "predictions.json").read_text())
    assert {result["file_name"] for result in results} == {path.name for path in images.iterdir()}
    assert all(result["category_name"] == str(result["category_id"] - 1) for result in results)
    assert len(list((tmp_path / "predictions" / "images").iterdir())) == 10
    # what is asked for on the command line is not replaced by what the checkpoint was trained with
    run("predict", "--ckpt_path", str(checkpoint), "--data.predict", str(images), "--model.score_threshold", "1")
    assert json.loads((tmp_path / "predictions" / "predictions.json").read_text()) == []


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_what_needs_a_checkpoint_says_so(run, verb):
    with pytest.raises(SystemExit) as exit:
        run(verb)
    assert exit.value.code == f"lit-detect: error: Expected a checkpoint to {verb} but got none: give --ckpt_path."


def test_fit_resumes(run, tmp_path):
    run("fit", "--model.lr_scheduler", "null")  # one cycle ends with its run
    last = str(tmp_path / "checkpoints" / "last.ckpt")
    run("fit", "--model.lr_scheduler", "null", "--ckpt_path", last, "--trainer.max_epochs", "2")
    assert torch.load(last, weights_only=True)["epoch"] == 1


def test_fit_without_validation_keeps_the_last_checkpoint(run, tmp_path):
    run("fit", "--data.val", "null")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]


def test_a_second_config_overlays_the_first(run, tmp_path):
    (tmp_path / "overlay.yaml").write_text("trainer: {max_steps: 1}\nmodel: {init_args: {nms_threshold: 0.25}}\n")
    run("fit", "--config", str(tmp_path / "overlay.yaml"))
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert saved["trainer"]["max_steps"] == 1
    assert (saved["model"]["init_args"]["nms_threshold"], saved["model"]["init_args"]["size"]) == (0.25, 96)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model.warmup_steps", "5"], "Expected warmup_steps 0 with OneCycle"),
        (["--ckpt_path", "no.ckpt"], "Expected a checkpoint at no.ckpt but there is no such file."),
        (
            ["--data.train", '{"class_path": "VOCDetection", "init_args": {"root": "nowhere", "image_set": "train"}}'],
            "the image set nowhere",
        ),
        (["--data.train.init_args.image_set", "none"], "There are: train, val."),
        (["--model.scales", "[1]"], "Expected 6 scales for 5 feature maps"),
        (["--model.backbone.init_args.name", "resnet9"], "Expected the name of a torchvision network but got 'resnet9'"),
        (["--model.backbone.init_args.weights", "no.pth"], "a file or a URL as weights of resnet18 but got 'no.pth'"),
        (["--data.classes", "[a]"], "Expected data.train with the classes ['a']"),
        (["--trainer.precision", "bf16-true"], "Expected precision 32-true"),
    ],
)
def test_what_the_user_can_mend_is_one_sentence(run, args, message):
    with pytest.raises(SystemExit) as exit:
        run("fit", *args)
    assert exit.value.code.startswith("lit-detect: error: Expected")
    assert message in exit.value.code
    assert "\n" not in exit.value.code


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model.init_args.sizee", "3"], "sizee"),
        (["--data.batch_sizee", "3"], "batch_sizee"),
        (["--data.batch_size", "many"], "batch_size"),
        (["--config", "missing.yaml"], "missing.yaml"),
        (["--model", "SDD"], "SDD"),
    ],
)
def test_a_typo_is_named_and_exits_with_2(run, args, message, capsys):
    with pytest.raises(SystemExit) as exit:
        run("fit", *args)
    assert exit.value.code == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", pickle.dumps({"state_dict": print})])
def test_a_checkpoint_that_is_damaged_or_holds_code_is_refused(run, tmp_path, content):
    (tmp_path / "bad.ckpt").write_bytes(content)
    with pytest.raises(SystemExit) as exit:
        run("test", "--ckpt_path", str(tmp_path / "bad.ckpt"))
    assert "bad.ckpt is damaged or holds code" in exit.value.code


def test_an_error_in_a_worker_is_one_sentence_too(run, folder, tmp_path):
    image = folder / "JPEGImages" / "train_0003.jpg"
    content = image.read_bytes()
    broken = content[: content.index(b"\xff\xda")] + b"\xff\xd9"  # it starts and ends as a JPEG: only decoding shows it
    image.write_bytes(broken)
    try:
        with pytest.raises(SystemExit) as exit:
            run("fit", "--data.num_workers", "1")
    finally:
        image.write_bytes(content)
    assert exit.value.code.startswith("lit-detect: error: Expected an image but")
    assert f"train_0003.jpg ({len(broken)} bytes) cannot be decoded" in exit.value.code
    assert "\n" not in exit.value.code


@pytest.mark.slow
def test_two_ranks_train_and_give_the_same_numbers_as_one(folder, tmp_path):
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["trainer"]["logger"] = True  # each command gets a folder of its own
    config["data"]["val"]["init_args"]["image_set"] = "train"  # 6 images: an even and an odd number for 2 ranks
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))

    def command(verb, ranks, *args):
        devices = ["--trainer.devices", str(ranks), "--trainer.strategy", "ddp" if ranks > 1 else "auto"]
        line = [sys.executable, "-m", "lit_detect", verb, "--config", "config.yaml", *devices, *args]
        done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    assert "detections drawn" in command("fit", 2)
    checkpoint = next(tmp_path.rglob("best.ckpt"))
    tables = []
    for ranks in (1, 2):
        out = command("validate", ranks, "--ckpt_path", str(checkpoint), "--data.batch_size", "1", "--model.score_threshold", "0")
        tables.append([line for line in out.splitlines() if "AP" in line])
    assert tables[0] == tables[1]
    assert len(tables[0]) > 5
    out = command(
        "predict", 2, "--ckpt_path", str(checkpoint), "--data.predict", str(folder / "JPEGImages"), "--model.score_threshold", "0"
    )
    assert "on 10 images" in out
    results = json.loads(next(tmp_path.rglob("predictions.json")).read_text())
    assert len({result["file_name"] for result in results}) == 10


def test_shipped_configs_are_found_by_name_where_no_such_file_is_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = str(CONFIGS / "quickstart.yaml")
    assert find_configs(["fit", "--config", "quickstart.yaml"]) == ["fit", "--config", shipped]
    assert find_configs(["fit", "--config=configs/quickstart.yaml"]) == ["fit", f"--config={shipped}"]
    assert find_configs(["fit", "-c", "nothing.yaml", "--x", "quickstart.yaml"]) == ["fit", "-c", "nothing.yaml", "--x", "quickstart.yaml"]
    (tmp_path / "quickstart.yaml").write_text("")
    assert find_configs(["fit", "--config", "quickstart.yaml"]) == ["fit", "--config", "quickstart.yaml"]


@pytest.mark.parametrize("flag", ["--config", "--data", "--search"])
def test_with_an_equals_sign_too(flag, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = find_configs(["tune", f"{flag}=search_quickstart.yaml", "--other=search_quickstart.yaml"])
    assert found[1].startswith(f"{flag}=/")
    assert Path(found[1].partition("=")[2]).is_file()
    assert found[2] == "--other=search_quickstart.yaml"


def test_help_lists_every_verb(capsys):
    assert SUMMARIES.keys() == {*DetectionCLI.subcommands(), *VERBS}
    with pytest.raises(SystemExit) as exit:
        main(["--help"])
    assert exit.value.code == 0
    out = " ".join(capsys.readouterr().out.split())  # a long verb has its summary in the next line
    assert " ".join(f"{verb} {summary}" for verb, summary in SUMMARIES.items()) in out


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == lit_detect.__version__


@pytest.mark.parametrize(
    ("args", "texts"),
    [
        ([], ["--data.batch_size", "images a step on each device", "--model", "--checkpoint.monitor", "--pictures.images"]),
        (["--model.help", "SSD"], ["side of the square input in pixels", "--model.warmup_steps", "--model.score_threshold"]),
    ],
)
def test_help_explains(args, texts, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lit-detect"])
    with pytest.raises(SystemExit) as exit:
        main(["fit", *(args or ["--help"])])
    assert exit.value.code in (None, 0)
    out = " ".join(capsys.readouterr().out.split())
    assert all(text in out for text in texts)
