import pickle

import pytest
import torch
import yaml

import lit_detect
from lit_detect import Detector, InputError
from lit_detect.checkpoints import best_or_last, check_callbacks, load_checkpoint, read_checkpoint, where_it_was
from lit_detect.hyperparameters import known_class
from tests.conftest import CLASSES, DETECTORS


def save(path, classes=CLASSES, **more):
    """A checkpoint of the small SSD, whose weights are all 1."""
    state = {name: torch.ones_like(value) for name, value in DETECTORS["ssd"]().state_dict().items()}
    torch.save({"state_dict": state, "hyper_parameters": {"classes": classes}, **more}, path)
    return path


def test_a_checkpoint_is_loaded(tmp_path):
    detector = DETECTORS["ssd"]()
    assert load_checkpoint(detector, save(tmp_path / "a.ckpt", epoch=3))["epoch"] == 3
    assert all((parameter == 1).all() for parameter in detector.parameters())


@pytest.mark.parametrize("classes", [["dog", "cat", "horse"], ["cat", "dog", "cow"]])
def test_a_checkpoint_of_other_classes_is_refused(tmp_path, classes):
    with pytest.raises(InputError, match=r"classes \['cat', 'dog', 'horse'\], in this order, but .*a\.ckpt has \['"):
        load_checkpoint(DETECTORS["ssd"](), save(tmp_path / "a.ckpt", classes))


def test_a_checkpoint_of_another_detector_is_refused(tmp_path):
    with pytest.raises(InputError, match="Expected a checkpoint of RetinaNet as configured"):
        load_checkpoint(DETECTORS["retinanet"](), save(tmp_path / "a.ckpt"))


@pytest.mark.parametrize("content", [b"", b"text", pickle.dumps({"state_dict": print}), pickle.dumps([1])])
def test_what_is_damaged_or_holds_code_is_refused(tmp_path, content):
    path = tmp_path / "a.ckpt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.ckpt is damaged or holds code"):
        read_checkpoint(path)
    path.write_bytes(save(tmp_path / "b.ckpt").read_bytes()[:5000])
    with pytest.raises(InputError, match=r"a\.ckpt is damaged or holds code"):
        read_checkpoint(path)


def test_what_is_missing_or_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"a\.ckpt but there is no such file"):
        read_checkpoint(tmp_path / "a.ckpt")
    torch.save([1], tmp_path / "a.ckpt")
    with pytest.raises(InputError, match=r"a\.ckpt has no state_dict"):
        read_checkpoint(tmp_path / "a.ckpt")


def test_the_checkpoint_of_a_run(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for run in (first, second):
        run.mkdir()
    with pytest.raises(InputError, match=r"first/checkpoints/best\.ckpt or last\.ckpt but there is neither"):
        best_or_last(first)
    (first / "checkpoints").mkdir()
    last, best = (first / "checkpoints" / f"{name}.ckpt" for name in ("last", "best"))
    last.touch()
    assert best_or_last(first) == last
    best.touch()
    assert best_or_last(first) == best
    for said in ({"ckpt_path": str(last)}, {"ckpt_path": "last", "checkpoint": {"dirpath": str(last.parent)}}):
        (second / "config.yaml").write_text(yaml.safe_dump(said))  # a resumed run, which has none of its own
        assert best_or_last(second) == best
    (second / "checkpoints").mkdir()
    (second / "checkpoints" / "last.ckpt").touch()
    assert best_or_last(second) == second / "checkpoints" / "last.ckpt"


def test_a_class_is_found_by_the_packages_own_name_where_it_was_not_asked_for_yet(monkeypatch):
    monkeypatch.delitem(vars(lit_detect), "SSDLite", raising=False)  # as in a fresh process: names are imported when first used
    assert known_class("lit_detect.SSDLite", Detector).__name__ == "SSDLite"
    with pytest.raises(InputError, match=r"the checkpoint names 'lit_detect\.import_module'"):
        known_class("lit_detect.import_module", Detector)


@pytest.mark.parametrize(
    ("location", "devices", "there"), [("cpu", 0, True), ("cuda:0", 0, False), ("cuda:3", 1, False), ("cuda:3", 4, True)]
)
def test_a_tensor_goes_to_the_cpu_where_its_device_is_not(location, devices, there, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    storage = torch.zeros(1).untyped_storage()
    found = where_it_was(storage, location)
    assert (found is None) == there  # with None torch goes by the location


def test_a_best_checkpoint_beside_the_folder_is_not_its_own():
    state = {"dirpath": "/runs/a", "best_k_models": {}, "kth_best_model_path": "", "last_model_path": "/runs/a/last.ckpt"}
    check_callbacks({"checkpoint": state}, "x.ckpt")
    with pytest.raises(InputError, match=r"names '/runs/ab/best\.ckpt'"):
        check_callbacks({"checkpoint": state | {"best_k_models": {"/runs/ab/best.ckpt": 1}}}, "x.ckpt")
