"""What a detector costs, against counts by hand, fake clocks and fake counters."""

import ast
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from lit_detect.cost import (
    detection_pass,
    energy_counter,
    gflops,
    images_per_second,
    in_turn,
    machine,
    memory_left,
    proposals,
    proposals_of,
)
from tests.conftest import DETECTORS


class Clock:
    """Time that passes only when something says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_models_take_turns_and_the_warm_up_does_not_count():
    clock, order = Clock(), []

    def run(name, seconds):
        def step(number):
            order.append((name, number))
            clock.now += seconds if len(order) > 4 else 100.0  # the first rounds are slow

        return step

    times = in_turn({"a": run("a", 1.0), "b": run("b", 2.0)}, rounds=3, warm_up=2, clock=clock)
    assert times == {"a": [1000.0] * 3, "b": [2000.0] * 3}
    assert order == [(name, number) for number in (1, 2, 0, 1, 2) for name in "ab"]


def test_what_takes_long_has_fewer_rounds():
    clock = Clock()

    def run(seconds):
        def step(number):
            clock.now += seconds

        return step

    times = in_turn({"slow": run(6.0), "fast": run(1.0)}, rounds=5, limit=10.0, clock=clock)
    assert {name: len(of_it) for name, of_it in times.items()} == {"slow": 2, "fast": 5}


def test_the_best_batch_is_found_and_the_search_ends():
    clock, sizes = Clock(), []

    def run(images):
        sizes.append(len(images))
        clock.now += 1.0 + 0.1 * len(images) + 0.2 * max(0, len(images) - 4) ** 2  # a fixed cost, and a cliff after 4

    speeds = images_per_second(run, [torch.zeros(3, 8, 8)] * 3, repeats=2, clock=clock)
    assert list(speeds) == [1, 2, 4, 8, 16]
    assert max(speeds, key=speeds.get) == 4
    assert speeds[4] == pytest.approx(4 / 1.4)
    assert sizes == [size for size in speeds for _ in range(3)]


def test_a_full_memory_ends_the_search():
    def run(images):
        if len(images) > 2:
            raise torch.OutOfMemoryError

    assert list(images_per_second(run, [torch.zeros(3, 8, 8)])) == [1, 2]


def peak_is_set_back():
    """Whether a process may set its peak back, which some sandboxes do not let it."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return False
    return True


needs_peaks = pytest.mark.skipif(not peak_is_set_back(), reason="needs Linux's /proc/self/clear_refs")


def alone(code):
    """What a process prints that does nothing else; in one with other tests memory comes and goes."""
    imports = "import numpy as np, torch; from lit_detect.cost import PeakMemory, images_per_second\n"
    run = subprocess.run([sys.executable, "-c", imports + textwrap.dedent(code)], capture_output=True, text=True, check=True)
    return ast.literal_eval(run.stdout)


@needs_peaks
def test_the_search_ends_before_the_memory_is_full():
    held = alone("""
        def run(images):
            return np.ones(len(images) * 50_000_000, dtype=np.uint8)
        print(list(images_per_second(run, [torch.zeros(1)], available=lambda: 150.0)))
    """)
    assert held == [1, 2]  # 50 and 100 MB; 200 would be too much
    assert memory_left() > 0


def test_flops_are_those_counted_by_hand():
    network = nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 5 * 5, 3))
    convolution = 2 * 8 * 5 * 5 * (4 // 2) * 3 * 3  # twice the multiplications; each output sees half of the inputs
    linear = 2 * 8 * 5 * 5 * 3
    assert gflops(lambda: network(torch.zeros(1, 4, 10, 10))) * 1e9 == pytest.approx(convolution + linear)


@needs_peaks
def test_peak_memory_sees_what_was_in_use_and_is_not_any_more():
    megabytes = alone("""
        np.ones(300_000_000, dtype=np.uint8)
        with PeakMemory() as memory:
            held = np.ones(100_000_000, dtype=np.uint8)
            del held
        print(memory.megabytes)
    """)
    assert 95 < megabytes < 150


@pytest.fixture
def powercap(tmp_path):
    package = tmp_path / "intel-rapl:0"
    package.mkdir()
    (package / "max_energy_range_uj").write_text("1000000\n")
    (package / "energy_uj").write_text("900000\n")
    return tmp_path


def test_energy_goes_on_where_the_counter_starts_again(powercap):
    joules = energy_counter("cpu", str(powercap))
    (powercap / "intel-rapl:0" / "energy_uj").write_text("100000\n")
    assert joules() == pytest.approx(0.2)
    (powercap / "intel-rapl:0" / "energy_uj").write_text("400000\n")
    assert joules() == pytest.approx(0.5)


def test_without_a_counter_there_is_no_energy(tmp_path):
    assert energy_counter("cpu", str(tmp_path)) is None
    (tmp_path / "intel-rapl:0").mkdir()  # there, but not to be read
    assert energy_counter("cpu", str(tmp_path)) is None


@pytest.mark.parametrize("name", ["faster_rcnn_fpn", "rfcn"])
def test_as_many_proposals_as_asked_for_reach_the_second_stage(name):
    network = DETECTORS[name]().network.eval()
    images = [torch.randint(0, 256, (3, 96, 96), dtype=torch.uint8)] * 2
    settings = dict(vars(network.rpn))
    for count in (3, 40):
        with proposals(network, count):
            assert proposals_of(network, images) <= 2 * count
            nn.init.zeros_(network.rpn.head.bbox_pred.weight)  # random ones move boxes out of the image, where they are left out
            assert proposals_of(network, images) == 2 * count
    assert {key: getattr(network.rpn, key) for key in ("_pre_nms_top_n", "_post_nms_top_n", "nms_thresh", "score_thresh")} == {
        key: settings[key] for key in ("_pre_nms_top_n", "_post_nms_top_n", "nms_thresh", "score_thresh")
    }


def test_a_one_stage_network_finds_as_much_as_ever():
    network = DETECTORS["ssd"]().network.eval()
    image = torch.randint(0, 256, (3, 96, 96), dtype=torch.uint8)
    detect = detection_pass(network)
    with proposals(network, 1):
        limited = detect([image])
    assert len(limited[0]["boxes"]) == len(detect([image])[0]["boxes"]) > 1


@pytest.mark.parametrize("sizes", [[(96, 96)], [(60, 80), (96, 96)]])
def test_a_pass_gives_the_networks_detections(sizes):
    network = DETECTORS["ssd"]().network.eval()
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in sizes]
    with torch.no_grad():
        expected = network(images)
    found = detection_pass(network)(images)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one["boxes"], other["boxes"], rtol=1e-3, atol=1e-3)
    assert len(detection_pass(network, precision="bf16-mixed")(images)) == len(images)


def test_the_machine_is_named():
    found = machine("cpu", "32-true")
    assert found["torch"] == torch.__version__
    assert found["cpu"]
    assert found["cores"] >= 1
    assert "gpu" not in found
