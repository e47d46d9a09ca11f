"""Claims of articles, held against hand-made rows."""

import pytest

from lit_detect.compare_claims import claims

SSD = {
    "name": "SSD", "detector": "SSD", "extractor": "resnet18", "input_size": 96, "criterion": "HardNegativeMining",
    "ap": 0.3, "ap_small": 0.1, "ap_large": 0.4, "latency_ms": 10.0, "latency_by_objects": [[1, 10.0], [4, 10.5]],
}  # fmt: skip
FASTER = {
    "name": "Faster", "detector": "FasterRCNN", "extractor": "resnet18", "input_size": 96, "ap": 0.5, "latency_ms": 30.0,
    "latency_by_proposals": [[10, 20.0], [100, 40.0]],
}  # fmt: skip
DSSD = {**SSD, "name": "DSSD", "detector": "DSSD", "ap_small": 0.2}
FPN = {**SSD, "name": "FPN", "fpn_channels": 64, "ap_small": 0.05}
LITE = {**SSD, "name": "Lite", "detector": "SSDLite", "extractor": "MobileNetV2", "latency_ms": 6.0}
RETINA = {**SSD, "name": "Retina", "detector": "RetinaNet", "criterion": "FocalLoss", "ap": 0.495}


def answers(*rows):
    """By the first words of each claim."""
    return {" ".join(claim.split()[:2]): (answer, found) for claim, answer, found in claims(rows)}


def test_what_needs_a_model_that_is_not_there_is_left_out():
    assert answers() == {}
    assert answers(FASTER) == {}
    assert list(answers(SSD)) == ["SSD is"]
    assert list(answers(SSD, FASTER)) == ["SSD's latency", "SSD is"]
    assert list(answers(SSD, DSSD, LITE, RETINA, {"name": "x", "error": "failed"})) == ["SSD is", "DSSD's deconvolutions", "A light"]
    assert "Focal loss" in answers(RETINA, FASTER)


@pytest.mark.parametrize(
    ("objects", "counts", "answer"),
    [
        ([[1, 10.0], [4, 10.5]], [[10, 20.0], [100, 40.0]], "held"),
        ([[1, 10.0], [4, 15.0]], [[10, 20.0], [100, 40.0]], "not held"),
        ([[1, 10.0], [4, 10.5]], [[10, 20.0], [100, 20.5]], "not held"),
        ([[1, 10.0]], [[10, 20.0], [100, 40.0]], "cannot be told"),
        ([], [[10, 20.0]], "cannot be told"),
    ],
)
def test_latency_against_objects_and_proposals(objects, counts, answer):
    found = answers({**SSD, "latency_by_objects": objects}, {**FASTER, "latency_by_proposals": counts})["SSD's latency"]
    assert found[0] == answer
    if answer == "held":
        assert found[1] == "SSD 10.0 ms with 1 objects, 10.5 ms with 4; Faster 20.0 ms with 10 proposals, 40.0 ms with 100"


def test_small_objects_against_large_ones():
    assert answers(SSD)["SSD is"] == ("held", "SSD AP small .100, large .400")
    assert answers({**SSD, "ap_small": 0.4})["SSD is"][0] == "not held"
    assert answers({**SSD, "ap_small": -1.0})["SSD is"] == ("cannot be told", "SSD AP small unknown, large .400")
    assert answers({**SSD, "ap_large": float("nan")})["SSD is"][0] == "cannot be told"


def test_context_is_compared_over_the_same_extractor_in_the_same_size():
    found = answers(SSD, DSSD, FPN)
    assert found["DSSD's deconvolutions"] == ("held", "AP small of SSD .100, of DSSD .200")
    assert found["A feature"] == ("not held", "AP small of SSD .100, of FPN .050")
    for other in ({"input_size": 128}, {"extractor": "resnet34"}):
        assert "DSSD's deconvolutions" not in answers(SSD, {**DSSD, **other})
    # of several pairs all have to
    assert answers(SSD, DSSD, {**DSSD, "ap_small": 0.1})["DSSD's deconvolutions"][0] == "not held"


def test_a_light_extractor_is_compared_in_the_same_size():
    assert answers(SSD, LITE)["A light"] == ("held", "SSD 10.0 ms, Lite 6.0 ms")
    assert answers(SSD, {**LITE, "latency_ms": 12.0})["A light"][0] == "not held"
    assert "A light" not in answers(SSD, {**LITE, "input_size": 128})


def test_focal_loss_against_the_best_two_stage_detector():
    assert answers(RETINA, FASTER, {**FASTER, "ap": 0.1})["Focal loss"] == ("held", "AP of Faster .500, of Retina .495")
    assert answers({**RETINA, "ap": 0.4}, FASTER)["Focal loss"][0] == "not held"
    assert answers({**SSD, "criterion": "FocalLoss", "ap": 0.6}, FASTER)["Focal loss"][0] == "held"
    assert answers({**RETINA, "ap": -1.0}, FASTER)["Focal loss"][0] == "cannot be told"
