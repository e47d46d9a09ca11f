"""The best overlap of boxes with anchors, against torchvision's overlap of every box with every anchor."""

import json

import pytest
import torch
import yaml
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from lit_detect import SSD, TorchvisionBackbone, VOCDetection
from lit_detect.data.anchor_recall import best_overlaps, overlaps_with_anchors
from lit_detect.data.audit import audit


@torch.no_grad()
def by_torchvision(network, sizes, boxes):
    """The best overlap of each box by comparing it with every anchor."""
    found = []
    for (width, height), of_image in zip(sizes, boxes, strict=True):
        inputs = network.inputs([torch.zeros(3, height, width, dtype=torch.uint8)])
        maps = list(network.backbone(inputs.images).values())
        if hasattr(network, "rpn"):
            maps = maps[: len(network.rpn.anchor_generator.sizes)]  # R-FCN's first
            anchors = network.rpn.anchor_generator(ImageList(inputs.images, inputs.sizes), maps)[0]
        else:
            anchors = network.anchors(inputs.images, maps).boxes
        scaled = inputs.scale_targets([{"boxes": of_image}])[0]["boxes"]
        found.append(box_iou(scaled, anchors).amax(dim=1) if len(scaled) else scaled.new_zeros(0))
    return found


def test_overlaps_with_anchors_are_torchvisions(build):
    network = build().network.eval()
    sizes, boxes = [(90, 60), (200, 31), (64, 64), (90, 60)], []
    for width, height in sizes[:3]:
        corner = torch.rand(40, 2) * torch.tensor([width, height]) * 0.6
        boxes.append(torch.cat([corner, corner + torch.rand(40, 2) ** 2 * torch.tensor([width, height]) * 0.4 + 1], dim=1))
    boxes.append(torch.zeros(0, 4))
    found = overlaps_with_anchors(network, sizes, boxes)
    if type(build()).__name__ == "FCOS":
        assert found is None
        return
    for values, expected in zip(found, by_torchvision(network, sizes, boxes), strict=True):
        torch.testing.assert_close(values, expected)


def test_recall_of_an_ssds_anchors(tmp_path, shared, capsys):
    root = str(shared / "data/voc_mini/VOCdevkit/VOC2012")
    backbone = {"class_path": "TorchvisionBackbone", "init_args": {"name": "resnet18", "nodes": ["layer2", "layer3"]}}
    content = {
        "model": {"class_path": "SSD", "init_args": {"size": 300, "backbone": backbone, "scales": "linear"}},
        "data": {"val": {"class_path": "VOCDetection", "init_args": {"root": root, "image_set": "val"}}},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    audit(str(tmp_path / "config.yaml"), str(tmp_path / "out"))
    report = json.loads((tmp_path / "out" / "audit.json").read_text())["anchors"]
    data = VOCDetection(root, "val")
    anchors = SSD(data.classes, 300, TorchvisionBackbone("resnet18", ["layer2", "layer3"]), scales="linear").network.anchors.boxes
    files, targets = zip(*(data.open(index) for index in range(len(data))), strict=True)
    relative = [
        torch.from_numpy(target["boxes"]) / torch.tensor([file.width, file.height] * 2) for file, target in zip(files, targets, strict=True)
    ]
    best = box_iou(300 * torch.cat(relative), anchors).amax(dim=1)
    area, labels = (torch.cat([torch.from_numpy(target[name]) for target in targets]) for name in ("area", "labels"))
    of_class = labels == 1 + data.classes.index("dog")
    assert report["all"] == {"boxes": 666} | {f"{least}": pytest.approx((best >= least).float().mean()) for least in (0.4, 0.5, 0.6)}
    assert report["by_size"]["small"]["0.5"] == pytest.approx((best[area < 1024] >= 0.5).float().mean())
    assert report["by_class"]["dog"]["0.6"] == pytest.approx((best[of_class] >= 0.6).float().mean())
    missed = 100 * (best[area < 1024] < 0.5).float().mean()
    assert missed > 10
    assert f"warning: anchors miss {missed:.0f} % of the small boxes (IoU .5)" in capsys.readouterr().out


def test_anchors_on_no_grid_are_compared_one_by_one():
    anchors = torch.rand(500, 2) * 50
    anchors = torch.cat([anchors, anchors + torch.randint(1, 4, (500, 2)) * 8], dim=1)
    corner = torch.rand(70, 2) * 50
    boxes = torch.cat([corner, corner + torch.rand(70, 2) * 30 + 1], dim=1)
    torch.testing.assert_close(best_overlaps(boxes, anchors, chunk=32), box_iou(boxes, anchors).amax(dim=1))
