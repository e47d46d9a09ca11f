"""Nothing is imported before it is used, and every public name is there all the same."""

import ast
import pickle
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import lit_detect
from lit_detect.data.digits import write_digits

SECONDS = {"torch", "torchvision", "torchmetrics", "lightning", "albumentations", "matplotlib", "scipy", "sklearn", "faster_coco_eval"}
TENTHS = {"numpy", "cv2", "PIL", "jsonargparse", "rich", "yaml"}


def imported(code):
    """The packages that a fresh Python has imported once it has run the code, whatever that prints and however it exits."""
    ending = "import atexit, sys; atexit.register(lambda: print('\\nimported', *sys.modules))"
    done = subprocess.run([sys.executable, "-c", f"{ending}\n{code}"], capture_output=True, text=True, timeout=300)
    assert "Traceback" not in done.stderr, done.stderr
    return {name.partition(".")[0] for name in done.stdout.rpartition("\nimported ")[2].split()}


@pytest.mark.parametrize("code", ["import lit_detect", "from lit_detect.cli import main; main(['--help'])"])
def test_the_package_and_its_help_import_nothing(code):
    found = imported(code)
    assert "lit_detect" in found
    assert not found & (SECONDS | TENTHS)


@pytest.mark.parametrize("verb", ["audit", "convert"])
def test_verbs_for_data_import_no_network_code(verb, tmp_path):
    root = write_digits(str(tmp_path / "digits"), {"train": 2, "val": 2})
    arguments = {
        "audit": ["audit", "--data", str(root), "--out", str(tmp_path / "out")],
        "convert": ["convert", "--data", str(root), "--format", "coco", "--out", str(tmp_path / "out")],
    }
    assert not imported(f"from lit_detect.cli import main; main(['{verb}', '--help'])") & SECONDS
    found = imported(f"from lit_detect.cli import main; main({arguments[verb]})")
    assert any((tmp_path / "out").iterdir())
    assert found & SECONDS <= {"matplotlib"}  # the audit's page


def test_an_unknown_verb_is_named_at_once():
    done = subprocess.run([sys.executable, "-X", "importtime", "-m", "lit_detect", "fti"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "invalid choice: 'fti'" in done.stderr
    assert " lightning" not in done.stderr


@pytest.mark.parametrize("name", ["Detector", "DetectionDataModule"])
def test_what_is_chosen_by_name_is_imported_with_what_takes_it(name):
    """Short names in YAML are looked for among the classes that are imported."""
    code = f"import lit_detect, sys; lit_detect.{name}; assert {{*lit_detect.HOMES.values()}} <= {{*sys.modules}}"
    assert "lightning" in imported(code)


def test_public_names_are_those_of_their_modules():
    for name, home in lit_detect.HOMES.items():
        assert getattr(lit_detect, name) is getattr(import_module(home), name)
        assert getattr(lit_detect, name).__module__ == home
        assert name in import_module(home).__all__
    assert {*lit_detect.__all__, "__all__", "__doc__"} <= {*dir(lit_detect)}
    assert len(set(lit_detect.__all__)) == len(lit_detect.__all__) == sum(map(len, lit_detect.NAMES.values())) + 1
    with pytest.raises(AttributeError, match="module 'lit_detect' has no attribute 'SDD'"):
        lit_detect.SDD  # noqa: B018


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(lit_detect.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.asname: node.module for node in block.body for alias in node.names if alias.asname == alias.name}
    assert seen == lit_detect.HOMES


def test_star_imports_and_pickles_work():
    names = {}
    exec("from lit_detect import *", names)
    assert {*lit_detect.__all__} <= {*names}
    for name in lit_detect.HOMES:
        assert pickle.loads(pickle.dumps(names[name])) is getattr(lit_detect, name)
    assert pickle.loads(pickle.dumps(lit_detect.FocalLoss())).gamma == lit_detect.FocalLoss().gamma
