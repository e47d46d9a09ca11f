import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_detect import (
    Darknet53,
    FocalLoss,
    HardNegativeMining,
    InputError,
    IoULoss,
    SmoothL1,
    TorchvisionBackbone,
    YOLOBoxLoss,
    YOLOLoss,
    YOLOv3,
)
from lit_detect.hyperparameters import plain
from lit_detect.models.darknet import convolution, read_darknet
from lit_detect.models.yolo import ANCHOR_SIZES, CellAnchors, Priors, Pyramid, YOLOHead, match_cells
from tests.conftest import CLASSES, TinyBackbone, random_batch
from tests.test_contract import save

SHAPES = [[(10.0, 13.0), (16.0, 30.0)], [(33.0, 23.0), (60.0, 60.0)]]


@pytest.fixture(scope="module")
def paper():
    """YOLOv3 for COCO at 416."""
    torch.manual_seed(1)
    return YOLOv3([f"class {number}" for number in range(80)]).network.eval()


def small(**kwargs):
    """A detector with maps of 6 and 3 cells a side."""
    return YOLOv3(CLASSES, size=96, backbone=TinyBackbone(), anchor_sizes=SHAPES, widths=[8, 16], **kwargs)


def priors(size, sides, shapes):
    return Priors(shapes)(torch.zeros(1, 3, size, size), [torch.zeros(1, 1, side, side) for side in sides])


def stored_numbers(network):
    return sum(tensor.numel() for name, tensor in network.state_dict().items() if "num_batches" not in name)


def test_the_papers_maps_and_number_of_boxes(paper):
    images = torch.zeros(1, 3, 416, 416)
    with torch.no_grad():
        features = paper.backbone.backbone(images)
        logits, deltas, anchors = paper.predict(images)
    assert [tuple(feature.shape[1:]) for feature in features.values()] == [(256, 52, 52), (512, 26, 26), (1024, 13, 13)]  # table 1
    assert logits.shape == (1, 10647, 81)
    assert deltas.shape == (1, 10647, 4)
    assert len(anchors) == 10647
    assert anchors.per_map == [3 * 52**2, 3 * 26**2, 3 * 13**2]
    assert anchors.boxes[0].tolist() == [4 - 5, 4 - 6.5, 4 + 5, 4 + 6.5]
    assert anchors.boxes[-1].tolist() == [400 - 186.5, 400 - 163, 400 + 186.5, 400 + 163]


def test_as_many_weights_as_darknets(paper):
    """Its files are a header of 20 bytes and float32: yolov3.weights of 248007048 bytes, darknet53.conv.74 of 162482580."""
    assert sum(parameter.numel() for parameter in paper.parameters()) == 61_949_149
    assert stored_numbers(paper) == (248_007_048 - 20) // 4
    assert stored_numbers(paper.backbone.backbone) == (162_482_580 - 20) // 4
    assert sum(isinstance(layer, torch.nn.Conv2d) for layer in paper.backbone.backbone.modules()) == 52  # and the classifier: 53


def test_any_extractor_and_odd_maps():
    backbone = TorchvisionBackbone("mobilenet_v2", ["features.3", "features.6", "features.13", "features.18"])
    network = YOLOv3(CLASSES, size=300, backbone=backbone, widths=(16, 24, 32)).network.eval()
    with torch.no_grad():
        logits, _, anchors = network.predict(torch.zeros(1, 3, 300, 300))
    assert anchors.per_map == [3 * 38**2, 3 * 19**2, 3 * 10**2]  # the last three maps
    assert logits.shape == (1, len(anchors), 4)
    assert anchors.strides.unique().tolist() == pytest.approx([300 / 38, 300 / 19, 300 / 10])
    assert anchors.sizes[0].tolist() == pytest.approx([10 * 300 / 416, 13 * 300 / 416], rel=1e-4)


def test_coarse_maps_are_carried_down_to_finer_ones():
    """Darknet's yolov3.cfg: 1x1 convolution, upsampling, and the finer map after it."""
    pyramid = Pyramid(TinyBackbone(), [8, 16]).eval()
    fine, coarse = torch.randn(1, 16, 6, 6), torch.randn(1, 16, 3, 3)
    pyramid.backbone.forward = lambda images: {"finest": None, "fine": fine, "coarse": coarse}
    with torch.no_grad():
        maps = list(pyramid(torch.zeros(1, 3, 96, 96)).values())
        branch = pyramid.blocks[1](coarse)
        upsampled = pyramid.reductions[0](branch).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        expected = [pyramid.branches[0](pyramid.blocks[0](torch.cat([upsampled, fine], dim=1))), pyramid.branches[1](branch)]
    assert [tuple(one.shape[1:]) for one in maps] == [(16, 6, 6), (32, 3, 3)]
    torch.testing.assert_close(maps, expected)


def test_a_convolution_has_a_leaky_relu():
    layer = convolution(1, 1, 1).eval()
    torch.nn.init.ones_(layer[0].weight)
    torch.testing.assert_close(layer(torch.tensor([-1.0, 2.0]).view(2, 1, 1, 1)).flatten(), torch.tensor([-0.1, 2.0]), rtol=1e-4, atol=0)


def test_the_heads_outputs_are_in_the_order_of_the_anchors():
    """The maps hold their cells' places, and each layer's biases say which prior it stands for."""
    sides, shapes = [4, 2], [[(10, 10), (20, 20)], [(30, 30), (40, 40)]]
    places = [torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="xy"))[None].float() for side in sides]
    head = YOLOHead([2, 2], [2, 2], num_logits=3)
    with torch.no_grad():
        for layer, of_map in zip(head.classification_head.module_list, shapes, strict=True):
            layer.weight.zero_()
            layer.bias.zero_()
            for prior, (side, _) in enumerate(of_map):
                layer.bias[3 * prior] = side
                layer.weight[3 * prior + 1, 0] = 1
                layer.weight[3 * prior + 2, 1] = 1
        logits = head(places)["cls_logits"][0]
    anchors = priors(64, sides, shapes)
    torch.testing.assert_close(logits[:, 0], anchors.sizes[:, 0])
    torch.testing.assert_close((logits[:, 1:] + 0.5) * anchors.strides, anchors.centres)


def test_offsets_of_the_head_and_boxes_are_the_papers():
    """Section 2.1: b_x = sigma(t_x) + c_x, b_w = p_w e^t_w, with cells of one pixel."""
    head = YOLOHead([5, 5], [2, 2], num_logits=4)
    maps = [torch.randn(1, 5, 6, 6), torch.randn(1, 5, 3, 3)]
    with torch.no_grad():
        deltas = head(maps)["bbox_regression"]
        raw = [layer(of_map) for layer, of_map in zip(head.regression_head.module_list, maps, strict=True)]
    boxes = priors(96, [6, 3], SHAPES).decode(deltas)[0]
    index = 0
    for t, shapes, stride in zip(raw, SHAPES, [16, 32], strict=True):
        for c_y in range(t.shape[2]):
            for c_x in range(t.shape[3]):
                for prior, (p_w, p_h) in enumerate(shapes):
                    t_x, t_y, t_w, t_h = t[0, 4 * prior : 4 * prior + 4, c_y, c_x].double().tolist()
                    b_x, b_y = 1 / (1 + math.exp(-t_x)) + c_x, 1 / (1 + math.exp(-t_y)) + c_y
                    b_w, b_h = p_w * math.exp(t_w), p_h * math.exp(t_h)
                    expected = [b_x * stride - b_w / 2, b_y * stride - b_h / 2, b_x * stride + b_w / 2, b_y * stride + b_h / 2]
                    assert boxes[index].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-3)
                    index += 1
    assert index == len(boxes)


@settings(deadline=None)
@given(st.integers(0, 2**31))
def test_encode_and_decode_are_inverse(seed):
    generator = torch.Generator().manual_seed(seed)
    anchors = priors(96, [6, 3], SHAPES)
    deltas = torch.rand(2, len(anchors), 4, generator=generator) * torch.tensor([1, 1, 3, 3])
    torch.testing.assert_close(anchors.encode(anchors.decode(deltas)), deltas, rtol=1e-4, atol=1e-4)
    some = torch.randperm(len(anchors), generator=generator)[:7]
    torch.testing.assert_close(anchors[some].decode(deltas[:, some]), anchors.decode(deltas)[:, some])
    torch.testing.assert_close(anchors[some].encode(anchors.boxes[some])[:, :2], torch.full((7, 2), 0.5), rtol=0, atol=1e-5)


def test_decode_does_not_overflow():
    anchors = priors(96, [6, 3], SHAPES)
    assert anchors.decode(torch.full((len(anchors), 4), 1e4)).isfinite().all()


def match_by_loops(size, sides, shapes, boxes, threshold):
    """Section 2.1: the best prior of all by its shape, then the cell with the box's centre; the rest by overlap in place."""
    matches, index_of = [], {}
    for of_map, (side, of_shapes) in enumerate(zip(sides, shapes, strict=True)):
        stride = size / side
        for row in range(side):
            for column in range(side):
                for prior, (width, height) in enumerate(of_shapes):
                    x, y = (column + 0.5) * stride, (row + 0.5) * stride
                    anchor = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
                    index_of[of_map, row, column, prior] = len(matches)
                    matches.append(-2 if any(iou(anchor, box) > threshold for box in boxes) else -1)
    for number, (x1, y1, x2, y2) in enumerate(boxes):
        best = max(
            ((of_map, prior) for of_map, of_shapes in enumerate(shapes) for prior in range(len(of_shapes))),
            key=lambda one: iou((0, 0, x2 - x1, y2 - y1), (0, 0, *shapes[one[0]][one[1]])),
        )
        side = sides[best[0]]
        column, row = (min(math.floor((a + b) / 2 * side / size), side - 1) for a, b in ((x1, x2), (y1, y2)))
        matches[index_of[best[0], row, column, best[1]]] = number
    return matches


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def matched(anchors, boxes, ignore_threshold):
    """The matches of one image's boxes, which has fewer than another."""
    padded = torch.cat([boxes, anchors.boxes[:2]])[None]
    return match_cells(anchors, padded, torch.arange(len(boxes) + 2)[None] < len(boxes), ignore_threshold)[0]


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 12), st.sampled_from([(96, [6, 3]), (100, [7, 4])]))
def test_matches_are_those_of_loops_over_boxes_and_anchors(seed, count, geometry):
    size, sides = geometry
    generator = torch.Generator().manual_seed(seed)
    corner, sides_of_boxes = torch.rand(count, 2, generator=generator) * size, torch.rand(count, 2, generator=generator) * 70 + 2
    boxes = torch.cat([corner, (corner + sides_of_boxes).clamp(max=size)], dim=1)
    matches = matched(priors(size, sides, SHAPES), boxes, 0.5)
    assert matches.dtype == torch.int64
    assert matches.tolist() == match_by_loops(size, sides, SHAPES, boxes.tolist(), 0.5)


def test_matches_by_hand():
    anchors = priors(96, [6, 3], SHAPES)
    boxes = torch.tensor(
        [
            [91.0, 90.0, 101.0, 102.0],  # its centre is the image's last corner: the last cell of stride 16
            [34.0, 33.0, 44.0, 46.0],  # both of the next in cell 2, 2 with the first prior: the later takes it
            [36.0, 35.0, 46.0, 48.0],
            [32.0, 25.0, 48.0, 55.0],  # also in that cell, with the second prior
            [32.0, 32.0, 96.0, 92.0],  # the fourth prior in cell 1, 2 of stride 32: its centre is at 64, 62
        ]
    )
    expected = torch.full((6 * 6 * 2 + 3 * 3 * 2,), -1)
    overlaps = torch.tensor([[iou(anchor, box) for box in boxes.tolist()] for anchor in anchors.boxes.tolist()])
    expected[overlaps.amax(dim=1) > 0.3] = -2
    expected[(5 * 6 + 5) * 2] = 0
    expected[(2 * 6 + 2) * 2] = 2
    expected[(2 * 6 + 2) * 2 + 1] = 3
    expected[72 + (1 * 3 + 2) * 2 + 1] = 4
    assert matched(anchors, boxes, 0.3).tolist() == expected.tolist()
    assert (expected == -2).any()
    assert match_by_loops(96, [6, 3], SHAPES, boxes.tolist(), 0.3) == expected.tolist()


def test_each_box_has_an_anchor_whose_offsets_lead_to_it():
    _, (target,) = random_batch([(416, 416)], [20])
    anchors = priors(416, [52, 26, 13], ANCHOR_SIZES)
    matches = matched(anchors, target["boxes"], 0.5)
    positive = (matches >= 0).nonzero().flatten()
    assert len(positive) == len(matches[positive].unique()) >= 18
    deltas = anchors[positive].encode(target["boxes"][matches[positive]])
    assert ((deltas[:, :2] >= 0) & (deltas[:, :2] <= 1)).all()
    torch.testing.assert_close(anchors[positive].decode(deltas), target["boxes"][matches[positive]], rtol=1e-4, atol=1e-2)


def test_loss_by_hand():
    """One object, one anchor left out, one of background; and an image of which all is left out."""
    anchors = priors(30, [1], [[(10, 10), (20, 20), (30, 30)]])
    boxes = anchors.decode(torch.tensor([[0.4, 0.5, 0.2, 0.0], [0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0]]))
    logits = torch.tensor([[0.0, math.log(3.0), 0.0], [5.0, 5.0, 5.0], [math.log(4.0), 7.0, 7.0]])
    deltas = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.9, 0.9, 9.0, 9.0], [0.9, 0.9, 9.0, 9.0]])
    labels = torch.tensor([[1, -1, 0], [-1, -1, -1]])
    losses = YOLOLoss()(logits.expand(2, 3, 3), deltas.expand(2, 3, 4), anchors, labels, boxes.expand(2, 3, 4))
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(
        {
            "objectness_loss": (math.log(2) + math.log(5)) / 2,
            "class_loss": (-math.log(0.75) - math.log(0.5)) / 2,
            "box_loss": (-0.4 * math.log(0.5) - 0.6 * math.log(0.5) - math.log(0.5) + 0.2**2 / 2) / 2,
        },
        rel=1e-4,
    )


def test_the_gradient_of_each_raw_output_is_its_error():
    """Section 2.1: "our gradient is the ground truth value (computed from the ground truth box) minus our prediction"."""
    anchors = priors(30, [1], [[(10, 10)]])
    wanted = torch.tensor([[0.9, 0.2, 0.3, -0.4]])
    raw = torch.tensor([[0.0, 1.0, 0.5, 0.5]], requires_grad=True)
    predicted = torch.cat([raw[:, :2].sigmoid(), raw[:, 2:]], dim=1)
    YOLOBoxLoss()(predicted, anchors, anchors.decode(wanted)).sum().backward()
    torch.testing.assert_close(raw.grad, (predicted - wanted).detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("positives", [0, 5])
def test_loss_and_scores_are_those_of_a_loop(positives):
    anchors = priors(96, [6, 3], SHAPES)
    logits, deltas = torch.randn(2, len(anchors), 4), torch.rand(2, len(anchors), 4)
    labels = torch.randint(-1, 1, (2, len(anchors)))
    labels[:, 3 : 3 + positives] = torch.randint(1, 4, (2, positives))
    boxes = anchors.decode(torch.rand(2, len(anchors), 4))
    wanted = anchors.encode(boxes)
    expected = dict.fromkeys(("objectness_loss", "class_loss", "box_loss"), 0.0)
    scores = YOLOLoss().scores(logits)
    assert scores.shape == (2, len(anchors), 3)
    for image in range(2):
        for index in range(len(anchors)):
            label, of_anchor = int(labels[image, index]), logits[image, index]
            for number in range(3):
                assert scores[image, index, number].item() == pytest.approx(
                    of_anchor[0].sigmoid().item() * of_anchor[1 + number].sigmoid().item()
                )
            if label >= 0:
                loss = F.binary_cross_entropy(of_anchor[0].sigmoid(), torch.tensor(float(label > 0)))
                expected["objectness_loss"] += loss.item() / 2
            if label > 0:
                target = torch.tensor([float(number == label - 1) for number in range(3)])
                expected["class_loss"] += F.binary_cross_entropy(of_anchor[1:].sigmoid(), target, reduction="sum").item() / 2
                delta, goal = deltas[image, index], wanted[image, index]
                expected["box_loss"] += F.binary_cross_entropy(delta[:2], goal[:2], reduction="sum").item() / 2
                expected["box_loss"] += ((delta[2:] - goal[2:]) ** 2).sum().item() / 2 / 2
    losses = YOLOLoss()(logits, deltas, anchors, labels, boxes)
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "criterion",
    [
        YOLOLoss(),
        YOLOLoss(prior=0.01),
        YOLOLoss(box_loss=IoULoss("ciou")),
        FocalLoss(),
        FocalLoss(box_loss=IoULoss("giou")),
        HardNegativeMining(box_loss=SmoothL1(beta=0.1)),
    ],
)
def test_any_criterion_learns(criterion):
    network = small(criterion=criterion).network.train()
    images, targets = random_batch([(96, 96), (96, 96)], [2, 3])
    optimizer = torch.optim.Adam(network.parameters(), lr=0.003)
    course = []
    for _ in range(8):
        losses = network(torch.stack(images), targets)
        course.append(sum(losses.values()).item())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert all(math.isfinite(loss) for loss in course)
    assert course[-1] < 0.9 * course[0]


def test_objectness_and_classes_start_from_the_prior():
    for layer in small().network.head.classification_head.module_list:
        assert (layer.bias == 0).all()
    for layer in small(criterion=YOLOLoss(prior=0.01)).network.head.classification_head.module_list:
        torch.testing.assert_close(layer.bias.sigmoid(), torch.full((8,), 0.01))


def test_what_the_logits_of_a_prediction_layer_stand_for():
    detector = small()
    assert detector.class_outputs() == {
        f"head.classification_head.module_list.{index}": (["__objectness__", *CLASSES], 1) for index in range(2)
    }
    for name in detector.class_outputs():
        assert detector.network.get_submodule(name).out_channels == 2 * 4


def test_a_checkpoint_keeps_criterion_and_box_loss(tmp_path):
    save(small(criterion=YOLOLoss(box_loss=IoULoss("ciou", weight=2.0))), tmp_path / "a.ckpt")
    criterion = YOLOv3.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True).network.criterion
    assert (type(criterion), criterion.box_loss.kind, criterion.box_loss.weight) == (YOLOLoss, "ciou", 2.0)
    assert plain(YOLOLoss())["init_args"]["box_loss"]["class_path"] == "lit_detect.losses.YOLOBoxLoss"
    assert plain(Darknet53(frozen=["stem"]))["init_args"] == {"weights": None, "frozen": ["stem"], "frozen_norms": False}


def test_half_precision_ends_in_the_prediction_layers(paper):
    images = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        exact_logits, exact, anchors = paper.predict(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits, deltas, _ = paper.predict(images)
            boxes = anchors.decode(deltas)
    assert logits.dtype == deltas.dtype == boxes.dtype == anchors.boxes.dtype == torch.float32
    assert not torch.equal(deltas[..., :2], deltas[..., :2].bfloat16().float())  # a sigmoid in bf16 would survive this
    torch.testing.assert_close(logits, exact_logits, rtol=0.05, atol=0.05)
    torch.testing.assert_close(deltas, exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    "arguments",
    [{"widths": [8, 8, 8]}, {"anchor_sizes": SHAPES[:1]}, {"anchor_sizes": None, "widths": [8, 8, 8]}],
)  # the last: three maps are wanted of a backbone of two
def test_settings_that_do_not_fit_are_named(arguments):
    with pytest.raises(InputError, match=r"Expected anchor_sizes and widths for as many maps.* but got"):
        YOLOv3(CLASSES, size=96, backbone=TinyBackbone(), **{"anchor_sizes": SHAPES, "widths": [8, 16], **arguments})


def test_what_is_frozen_stays_in_eval_and_without_gradient():
    backbone = Darknet53(frozen=["stem", "stages.[0-1]"], frozen_norms=True).train()
    names = {name for name, parameter in backbone.named_parameters() if not parameter.requires_grad}
    norms = {
        f"{name}.{kind}" for name, one in backbone.named_modules() if isinstance(one, torch.nn.BatchNorm2d) for kind in ("weight", "bias")
    }
    assert names == norms | {name for name, _ in backbone.named_parameters() if name.startswith(("stem", "stages.0", "stages.1"))}
    assert not any(module.training for module in backbone.modules() if isinstance(module, torch.nn.BatchNorm2d))
    with pytest.raises(InputError, match="'stage'"):
        Darknet53(frozen=["stage"])


def test_a_residual_block_adds_its_input(paper):
    block = paper.backbone.backbone.stages[0][1]
    features = torch.randn(1, 64, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(block(features) - features, block.layers[1](block.layers[0](features)), rtol=1e-4, atol=1e-5)


def write_darknet(path, layers, further=()):
    """A file in darknet's format: version 0.2.5, images seen, and for each layer bias, scale, mean, variance and weights."""
    with path.open("wb") as file:
        np.array([0, 2, 5], "<i4").tofile(file)
        np.array([32_013_312], "<i8").tofile(file)
        for layer in layers:
            norm = layer[1]
            for values in (norm.bias, norm.weight, norm.running_mean, norm.running_var, layer[0].weight):
                values.detach().numpy().astype("<f4").tofile(file)
        np.array(further, "<f4").tofile(file)


def test_darknets_format(tmp_path):
    network, other = (torch.nn.Sequential(convolution(3, 4, 3), torch.nn.Sequential(convolution(4, 5, 1))) for _ in range(2))
    for tensor in other.state_dict().values():
        torch.nn.init.uniform_(tensor.float() if tensor.dtype == torch.int64 else tensor)
    write_darknet(tmp_path / "net.weights", [other[0], other[1][0]], further=[1.0, 2.0])
    network.load_state_dict(read_darknet(network, tmp_path / "net.weights"))
    images = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(network.eval()(images), other.eval()(images))
    (tmp_path / "net.weights").write_bytes((tmp_path / "net.weights").read_bytes()[:-12])
    with pytest.raises(InputError, match=r"Expected a state dict, or 164 numbers in darknet's format, in .*net.weights but got 163"):
        read_darknet(network, tmp_path / "net.weights")


def test_weights_are_read_when_a_training_starts(paper, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    expected = paper.backbone.backbone
    torch.save(expected.state_dict(), tmp_path / "own.pth")
    layers = [expected.stem]
    for stage in expected.stages:
        layers.append(stage[0])
        for block in stage[1:]:
            layers += [block.layers[0], block.layers[1]]
    write_darknet(tmp_path / "darknet53.conv.74", layers)
    for weights in ((tmp_path / "own.pth").as_uri(), str(tmp_path / "darknet53.conv.74")):
        backbone = Darknet53(weights)
        assert not torch.equal(backbone.stem[0].weight, expected.stem[0].weight)
        backbone.load_weights()
        states = zip(backbone.state_dict().values(), expected.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in states)


def test_weights_that_do_not_fit_are_named(tmp_path):
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(
        InputError, match=r"Expected weights of Darknet-53 in .*other.pth but 312 tensors .*: stem.0.weight, stem.1.weight, "
    ):
        Darknet53(str(tmp_path / "other.pth")).load_weights()  # 52 layers of six tensors
    with pytest.raises(
        InputError, match=r"Expected a file in darknet's format, a file or a URL as weights of Darknet-53 but got 'nowhere'"
    ):
        Darknet53("nowhere").load_weights()


def test_cell_anchors_need_strides():
    with pytest.raises(TypeError, match="strides"):
        CellAnchors(torch.zeros(1, 4))
