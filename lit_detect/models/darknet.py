"""Darknet-53, the feature extractor of YOLOv3 (Redmon and Farhadi 2018, section 2.4)."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from lit_detect.errors import InputError
from lit_detect.models.backbones import Backbone
from lit_detect.models.weights import local_file, read_file

__all__ = ["Darknet53", "convolution"]


class Darknet53(Backbone):
    """The 52 convolutions of Darknet-53 before its classifier: table 1.

    Args:
        weights: what training starts from: a file or a URL of this network's own state dict, a file in darknet's format
            (``darknet53.conv.74``, ``yolov3.weights``), or none. Nothing is read or fetched before a training starts.
        frozen: patterns of module names (``stem``, ``stages.[0-1]``) whose parameters are kept and whose norms stay in eval.
        frozen_norms: keep all batch norms as they were loaded: statistics, weight and bias.

    Raises:
        InputError: a pattern that names no module; weights that are not there or do not fit.

    >>> Darknet53().feature_sizes(416)
    [52, 26, 13]
    """

    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)  # darknet's networks see RGB in 0..1

    def __init__(self, weights: str | None = None, frozen: Sequence[str] = (), frozen_norms: bool = False) -> None:
        super().__init__()
        self.weights, self.frozen, self.frozen_norms = weights, list(frozen), frozen_norms
        self.out_channels = [256, 512, 1024]
        self.stem = convolution(3, 32, 3)
        self.stages = nn.ModuleList()
        for channels, blocks in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
            self.stages.append(nn.Sequential(convolution(channels // 2, channels, 3, 2), *(Residual(channels) for _ in range(blocks))))
        self.freeze(self, self.frozen, frozen_norms)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = [self.stem(images)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return {str(index): feature for index, feature in enumerate(maps) if index >= 3}  # of stride 8, 16 and 32

    def load_weights(self) -> None:
        if self.weights is None:
            return
        purpose = " as weights of Darknet-53"
        path = local_file(self.weights, "a file in darknet's format", purpose)
        state = read_file(str(path), "", purpose) if zipfile.is_zipfile(path) else read_darknet(self, path)  # torch saves zip files
        wrong = [key for key, tensor in self.state_dict().items() if key not in state or state[key].shape != tensor.shape]
        if wrong:
            found = f"{len(wrong)} tensors are missing or of another shape: {', '.join(wrong[:3])} ..."
            raise InputError(f"Expected weights of Darknet-53 in {self.weights} but {found}")
        self.load_state_dict(state, strict=False)
        rank_zero_info(f"backbone: Darknet-53 from {self.weights}")


class Residual(nn.Module):
    """1x1 to half the channels, 3x3 back, and the input added: table 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(convolution(channels, channels // 2, 1), convolution(channels // 2, channels, 3))

    def forward(self, features: Tensor) -> Tensor:
        added: Tensor = self.layers(features)
        return features + added


def convolution(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Module:
    """Convolution, batch norm and leaky ReLU of slope .1 (YOLO, section 2.2, equation 2), as in all of YOLOv3."""
    leaky = partial(nn.LeakyReLU, negative_slope=0.1)
    layer: nn.Module = Conv2dNormActivation(in_channels, out_channels, kernel_size, stride, activation_layer=leaky)
    return layer


def read_darknet(network: nn.Module, path: Path) -> dict[str, Tensor]:
    """The state dict of a network that a file in darknet's format starts with: its version, images seen, then float32 by layer."""
    version = np.fromfile(path, "<i4", count=3)[:2].tolist()
    if version not in ([0, 1], [0, 2]):
        raise InputError(f"Expected a state dict, or a file in darknet's format, which starts with its version 0.1 or 0.2, but got {path}.")
    state = network.state_dict()
    order = ("1.bias", "1.weight", "1.running_mean", "1.running_var", "0.weight")
    keys = [f"{name}.{key}" for name, layer in network.named_modules() if isinstance(layer, Conv2dNormActivation) for key in order]
    sizes = [state[key].numel() for key in keys]
    numbers = torch.from_numpy(np.fromfile(path, "<f4", count=sum(sizes), offset=20 if version == [0, 2] else 16))
    if len(numbers) < sum(sizes):
        raise InputError(f"Expected a state dict, or {sum(sizes)} numbers in darknet's format, in {path} but got {len(numbers)} numbers.")
    return state | {key: part.view_as(state[key]) for key, part in zip(keys, torch.split(numbers, sizes), strict=True)}
