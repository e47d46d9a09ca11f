"""Compare a detector with torchvision's, given the same weights."""

import torch

from tests.conftest import random_batch

CLASSES_91 = [f"class {number}" for number in range(1, 91)]


def copy_weights(reference, network):
    """Both have the same tensors in the same order under other names."""
    theirs = [value for name, value in reference.state_dict().items() if "num_batches" not in name]
    ours = [value for name, value in network.state_dict().items() if "num_batches" not in name]
    assert [value.shape for value in theirs] == [value.shape for value in ours]
    for a, b in zip(theirs, ours, strict=True):
        b.copy_(a)


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


def assert_parity(detector, reference, losses, tolerance=1e-4):
    """Losses and detections of both on the same images, relative to a tolerance."""
    images, targets = random_batch([(240, 320), (330, 200)], [3, 1])
    floats = [image / 255 for image in images]
    spread_scores(reference, floats)
    network = detector.network
    copy_weights(reference, network)
    reference.eval()
    network.eval()
    with torch.no_grad():
        for theirs, ours in zip(reference(floats), network(images), strict=True):
            assert len(ours["boxes"]) == len(theirs["boxes"]) > 0
            assert torch.equal(ours["labels"], theirs["labels"])
            torch.testing.assert_close(ours["scores"], theirs["scores"], rtol=tolerance, atol=tolerance)
            torch.testing.assert_close(ours["boxes"], theirs["boxes"], rtol=tolerance, atol=1e-2)
    for module in (*reference.train().modules(), *network.train().modules()):
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()  # the statistics of two images on a map of one cell blow rounding up
    torch.manual_seed(1)
    expected = reference(floats, targets)
    torch.manual_seed(1)
    if getattr(reference, "rpn", None) is not None:
        for _ in images:  # torchvision draws the size of each image, be it one of one
            torch.empty(1).uniform_()
    found = network(images, targets)
    assert set(found) == set(losses)
    for name, theirs in losses.items():
        torch.testing.assert_close(found[name], expected[theirs], rtol=tolerance, atol=tolerance)
