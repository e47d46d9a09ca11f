"""Every shipped config parses, builds its model, and says how it is run."""

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer

from lit_detect import DetectionDataModule, Detector
from lit_detect.cli import CONFIGS
from tests.conftest import random_batch

FILES = sorted(CONFIGS.glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_config_builds_and_takes_a_step(path):
    text = path.read_text()
    assert f"--config configs/{path.name}" in text
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--seed_everything", type=int)
    parser.add_class_arguments(Trainer, "trainer", instantiate=False)
    parser.add_argument("--checkpoint", type=dict)
    parser.add_subclass_arguments(Detector, "model")
    parser.add_class_arguments(DetectionDataModule, "data")
    content = yaml.safe_load(text)
    content["model"]["init_args"]["classes"] = ["cat", "dog", "horse"]
    built = parser.instantiate_classes(parser.parse_object(content))
    images, targets = random_batch([(240, 320), (200, 100)], [2, 1])
    network = built.model.network.train()
    losses = network(images, targets)
    assert sum(losses.values()).isfinite()
    with torch.no_grad():
        network.eval().evaluate(images, targets)
    assert built.data.transforms


def test_there_are_configs():
    assert "quickstart" in [path.stem for path in FILES]
