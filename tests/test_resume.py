"""A training that is killed and started again by the same command ends as one that was not, bit by bit; see resume_trials."""

import json
import os
import subprocess
import sys

import pytest
import torch

from lit_detect.checkpoints import newest_last
from lit_detect.seeds import seed_step

VARIANTS = ["workers", "accumulation", "steps and validation by steps"]
MORE = ["validation within epochs", "no validation", "epochs", "steps", "validation every other epoch"]


def outcome(folder, variants, hooks="", moments=0):
    line = [sys.executable, "-m", "tests.resume_trials", str(folder), ",".join(variants), hooks, str(moments)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=900, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def trials(folder, variants, hooks, moments=0):
    """The exit statuses of trainings that were killed and went on, by variant and kind of death."""
    found = outcome(folder, variants, hooks, moments)
    assert list(found) == variants
    for variant, of_variant in found.items():
        for name, trial in of_variant.items():
            assert trial["differences"] == [], (variant, name, trial)
            assert trial["statuses"][-1] == 0, (variant, name, trial)
    return {variant: {name: trial["statuses"][0] for name, trial in of_variant.items()} for variant, of_variant in found.items()}


def test_a_training_goes_on_as_if_it_had_not_been_killed(tmp_path):
    deaths = {"in step 8": -9, "in a checkpoint": -9, "SIGTERM in a validation": 143}
    assert trials(tmp_path, ["plain"], ",".join(deaths)) == {"plain": {"whole": 0, **deaths}}


@pytest.mark.slow
def test_wherever_it_is_killed(tmp_path):
    statuses = trials(tmp_path, ["plain"], "all", 12)["plain"]
    assert len(statuses) == 25
    assert statuses["in a checkpoint"] == statuses["in step 3"] == statuses["in the second validation"] == -9
    assert statuses["SIGTERM in a step"] == statuses["SIGTERM in a validation"] == 143


def test_whatever_is_counted_saved_and_shuffled(tmp_path):
    statuses = trials(tmp_path, VARIANTS, "in step 8")
    assert all(of_variant == {"whole": 0, "in step 8": -9} for of_variant in statuses.values())


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS + MORE)
def test_whatever_is_counted_wherever_it_is_killed(tmp_path, variant):
    trials(tmp_path, [variant], "in step 8,in the second validation,SIGTERM in a step")


@pytest.mark.slow
def test_an_epoch_goes_on_with_its_other_images_in_batches_of_another_size(tmp_path):
    # 10 of 24 images are taken: there are 4 more batches of 3, or 3 of 4, that are full
    assert outcome(tmp_path, ["another batch size"]) == {"3": [5 + 4, 0, True], "4": [5 + 3, 0, True]}


def test_the_newest_last_checkpoint_is_found(tmp_path):
    assert newest_last([str(tmp_path / "*")]) is None
    for age, name in enumerate(["version_0/last.ckpt", "version_1/last-v1.ckpt", "version_2/best.ckpt", "version_3/last.ckpt.part"]):
        path = tmp_path / name
        path.parent.mkdir()
        path.touch()
        os.utime(path, (age, age))
    assert newest_last([str(tmp_path / "*")]) == tmp_path / "version_1" / "last-v1.ckpt"
    os.utime(tmp_path / "version_0" / "last.ckpt", (9, 9))
    assert newest_last([str(tmp_path / "*")]) == tmp_path / "version_0" / "last.ckpt"


def test_random_numbers_of_a_step_depend_on_the_step_alone():
    def drawn(*step):
        seed_step(*step)
        return torch.rand(3).tolist()

    first = drawn(1, 2, 3, 0)
    assert first == drawn(1, 2, 3, 0)
    others = [drawn(*step) for step in [(0, 2, 3, 0), (1, 3, 3, 0), (1, 2, 4, 0), (1, 2, 3, 1), (1, 3, 2, 0)]]
    assert len({*map(tuple, others), tuple(first)}) == 6
