import json
import time

from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from lit_detect.callbacks import ResultsTable, TrainingTime
from tests.conftest import DETECTORS, random_batch


def test_validate_and_test_leave_their_results_and_detections_side_by_side(tmp_path, capsys):
    detector = DETECTORS["ssd"]()
    batches = [random_batch([(96, 96)] * 2, [2, 3])]
    run = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path, callbacks=[ResultsTable()])
    run.validate(detector, DataLoader(batches, batch_size=None), verbose=False)
    run.save_checkpoint(tmp_path / "run.ckpt")
    run.test(detector, DataLoader(batches, batch_size=None), verbose=False, ckpt_path=tmp_path / "run.ckpt")
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found.keys() == {"val", "test"}
    assert found["val"]["checkpoint"] is None
    assert found["test"]["checkpoint"] == str(tmp_path / "run.ckpt")
    for stage, values in found.items():
        assert values["metrics"].keys() >= {"map", "loss"}
        assert (values["images"], values["targets"]) == (2, 5)
        detections = json.loads((tmp_path / f"detections_{stage}.json").read_text())
        assert len(detections) == values["detections"] > 0
        assert {one["image_id"] for one in detections} <= {0, 1}
    assert "metrics.json" in capsys.readouterr().out


def test_a_training_leaves_no_results_of_its_epochs(tmp_path):
    batches = [random_batch([(96, 96)] * 2, [2, 3])]
    settings = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "default_root_dir": tmp_path}
    run = Trainer(**settings, enable_checkpointing=False, callbacks=[ResultsTable()])
    run.fit(DETECTORS["ssd"](), DataLoader(batches, batch_size=None), DataLoader(batches, batch_size=None))
    assert not (tmp_path / "metrics.json").exists()


def test_training_time_leaves_validation_out_and_goes_on_after_a_resume(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    logged = []

    class Module:
        def log(self, name, value):
            logged.append((name, value))

    def validate(clock):
        clock.on_validation_start(None, Module())
        now[0] += 50
        clock.on_validation_epoch_end(None, Module())
        clock.on_validation_end(None, Module())

    clock = TrainingTime()
    validate(clock)  # before the training, to see that it works
    clock.on_train_start(None, Module())
    now[0] += 10
    validate(clock)
    resumed = TrainingTime()
    resumed.load_state_dict(clock.state_dict())
    resumed.on_train_start(None, Module())
    now[0] += 3
    validate(resumed)
    resumed.on_train_end(None, Module())
    validate(resumed)  # of the best checkpoint
    assert logged == [("train/seconds", 10.0), ("train/seconds", 13.0)]
