"""From somebody else's folder to a tested model: the commands of docs/finetune.md, with a few steps."""

import json
import sys
from pathlib import Path

import pytest
import torch

from lit_detect.cli import main
from lit_detect.data.digits import write_digits

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SMALL = """
trainer: {accelerator: cpu, enable_progress_bar: false, max_epochs: 1, limit_train_batches: 2, num_sanity_val_steps: 0}
model: {init_args: {size: 96, scales: linear, fpn_channels: 16, backbone: {init_args: {weights: null}}}}
data: {batch_size: 2, num_workers: 0}
"""


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run a command in an empty folder, and give what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lit-detect"])

    def run(*args):
        main([*map(str, args)])
        return "".join(capsys.readouterr())

    return run


@pytest.fixture
def folders(tmp_path, command):
    """A VOC folder of words with splits for training, validation and test, and a COCO folder of the same digits as numbers."""
    (tmp_path / "small.yaml").write_text(SMALL)
    digits = write_digits(str(tmp_path / "digits"), {"train": 6, "val": 4})
    command("convert", "--data", digits, "--format", "voc", "--out", "words")
    command("convert", "--data", digits, "--format", "coco", "--out", "numbers")
    for file in Path("words/Annotations").iterdir():
        text = file.read_text()
        for number, word in enumerate(WORDS):
            text = text.replace(f"<name>{number}</name>", f"<name>{word}</name>")
        file.write_text(text)
    sets = Path("words/ImageSets/Main")
    names = (sets / "val.txt").read_text().splitlines()
    (sets / "val.txt").write_text("\n".join(names[:2]))
    (sets / "test.txt").write_text("\n".join(names[2:]))


def test_three_commands(command, folders):
    out = command("audit", "--data", "words")
    audited = json.loads(Path("audit/audit.json").read_text())
    assert audited["splits"].keys() == {"train", "val", "test"}
    classes = audited["classes"]
    assert len({*classes} & {*WORDS}) == len(classes) > 5
    assert all(word in out for word in classes)

    command("fit", "--config", "finetune.yaml", "--data.folder", "numbers", "--config", "small.yaml")
    start = "lightning_logs/version_0/checkpoints/best.ckpt"
    finder = ["--trainer.callbacks+=FindLearningRate", "--trainer.callbacks.num_training_steps=25", "--trainer.callbacks.max_lr=0.01"]
    out = command(
        "fit",
        "--config",
        "finetune.yaml",
        "--data.folder",
        "words",
        "--model.init_from",
        start,
        "--seed_everything",
        "1",
        *finder,
        "--config",
        "small.yaml",
    )
    run = Path("lightning_logs/version_1")
    assert "learning rate: " in out
    assert {"learning_rate.png", "detections.png", "metrics.json", "checkpoints", "config.yaml"} <= {path.name for path in run.iterdir()}
    before, after = (torch.load(path, weights_only=True) for path in (start, run / "checkpoints/best.ckpt"))
    assert after["hyper_parameters"]["classes"] == sorted(classes)
    frozen = [name for name in before["state_dict"] if "body.features.1." in name]
    assert frozen
    for name in frozen:  # of the first training's random weights, which the second starts from
        torch.testing.assert_close(before["state_dict"][name], after["state_dict"][name], rtol=1e-6, atol=0)  # averaging rounds

    out = command("report", "--run", run, "--split", "test")
    page = (run / "report.html").read_text()
    assert all(word in page for word in classes)
    out = command("test", "--config", run / "config.yaml", "--ckpt_path", run / "checkpoints/best.ckpt")
    assert "AP50" in out
    assert json.loads((run.with_name("version_2") / "metrics.json").read_text())["test"]["images"] == 2


def test_a_folder_without_validation_is_trained_to_the_end(command, folders):
    Path("numbers/annotations/instances_val.json").unlink()
    command("fit", "--config", "finetune.yaml", "--data.folder", "numbers", "--config", "small.yaml")
    assert [path.name for path in Path("lightning_logs/version_0/checkpoints").iterdir()] == ["last.ckpt"]
    with pytest.raises(SystemExit) as exit:
        command(
            "test", "--config", "finetune.yaml", "--data.folder", "numbers", "--ckpt_path", "lightning_logs/version_0/checkpoints/last.ckpt"
        )
    assert "Expected data.test, which this command reads, but it is not set, and numbers has no split of this name." in exit.value.code
