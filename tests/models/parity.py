"""Compare a detector with torchvision's, given the same weights."""

import torch
from torchvision.models._meta import _COCO_CATEGORIES

from tests.conftest import random_batch

CLASSES_91 = [f"class {number}" for number in range(1, 91)]


COCO_80 = [name for name in _COCO_CATEGORIES[1:] if name != "N/A"]


def only_coco(layer, per_cell):
    """Silence the outputs of a sigmoid detector that stand for no class, of torchvision's 91: ours has no such outputs."""
    silent = torch.tensor([name in ("N/A", "__background__") for name in _COCO_CATEGORIES]).repeat(per_cell)
    with torch.no_grad():
        layer.weight[silent] = 0
        layer.bias[silent] = -50.0


def spread_scores(reference, images):
    """Make the random weights decided: scores that are nearly tied come out in an order that rounding picks."""

    def rescale(layer, args, output):
        layer.weight.mul_(2 / output.std())

    last = [layer for layer in reference.modules() if getattr(layer, "weight", None) is not None and layer.weight.shape[0] % 91 == 0]
    hooks = [layer.register_forward_hook(rescale) for layer in last]
    with torch.no_grad():
        for layer in last:
            torch.nn.init.normal_(layer.weight)
        reference.eval()(images)
    for hook in hooks:
        hook.remove()


def assert_parity(detector, reference, losses, tmp_path, prepare=spread_scores, detections=True, tolerance=1e-4):
    """Losses and detections of both on the same images, relative to a tolerance; the weights go through a file and `init_from`."""
    images, targets = random_batch([(240, 320), (330, 200)], [3, 1])
    floats = [image / 255 for image in images]
    prepare(reference, floats)
    torch.save(reference.state_dict(), tmp_path / "torchvision.pth")
    detector.init_from = str(tmp_path / "torchvision.pth")
    detector.load_start_weights()
    network = detector.network
    coco = set(detector.classes) <= set(_COCO_CATEGORIES)
    theirs_of = torch.tensor([0, *(_COCO_CATEGORIES.index(name) if coco else label for label, name in enumerate(detector.classes, 1))])
    reference.eval()
    network.eval()
    with torch.no_grad():
        for theirs, ours in zip(reference(floats), network(images), strict=True) if detections else ():
            assert len(ours["boxes"]) == len(theirs["boxes"]) > 0
            assert torch.equal(theirs_of[ours["labels"]], theirs["labels"])
            torch.testing.assert_close(ours["scores"], theirs["scores"], rtol=tolerance, atol=tolerance)
            torch.testing.assert_close(ours["boxes"], theirs["boxes"], rtol=tolerance, atol=1e-2)
    for module in (*reference.train().modules(), *network.train().modules()):
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()  # the statistics of two images on a map of one cell blow rounding up
    torch.manual_seed(1)
    expected = reference(floats, [{**target, "labels": theirs_of[target["labels"]]} for target in targets])
    torch.manual_seed(1)
    if getattr(reference, "rpn", None) is not None:
        for _ in images:  # torchvision draws the size of each image, be it one of one
            torch.empty(1).uniform_()
    found = network(images, targets)
    assert set(found) == set(losses)
    for name, theirs in losses.items():
        torch.testing.assert_close(found[name], expected[theirs], rtol=tolerance, atol=tolerance)
