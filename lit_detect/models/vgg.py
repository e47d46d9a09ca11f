"""SSD's VGG16."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import vgg16

from lit_detect.errors import InputError
from lit_detect.models.backbones import Backbone, normalisation
from lit_detect.models.weights import load_backbone_weights

__all__ = ["VGG16"]


class VGG16(Backbone):
    """VGG16 as SSD changes it: section 3, "Base network", and for 512 section 3.3.

    pool3 rounds up, conv4_3 is L2-normalised with a learnt scale that starts at 20, pool5 is 3x3 with stride 1, fc6 is an atrous 3x3
    convolution (dilation 6) and fc7 a 1x1, and extra layers go on down to a map of 1x1.

    Args:
        size: 300 or 512: which extra layers are added.
        weights: see `TorchvisionBackbone`. ``IMAGENET1K_FEATURES`` are the original Caffe weights, and have a mean and std of their own.
        frozen: patterns of module names in torchvision's naming (``features.[0-4]``).
        mean: see `TorchvisionBackbone`.
        std: see `TorchvisionBackbone`.

    Raises:
        InputError: another size; a pattern that names no module; weights that are not there or do not fit.

    >>> VGG16(300).feature_sizes(300), VGG16(512).feature_sizes(512)
    ([38, 19, 10, 5, 3, 1], [64, 32, 16, 8, 4, 2, 1])
    """

    def __init__(
        self,
        size: int = 300,
        weights: str | None = "IMAGENET1K_FEATURES",
        frozen: Sequence[str] = (),
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if size not in (300, 512):
            raise InputError(f"Expected size 300 or 512 for SSD's VGG16 but got {size}; TorchvisionBackbone('vgg16', ...) takes any size.")
        self.size, self.weights, self.frozen = size, weights, list(frozen)
        self.mean, self.std = normalisation("vgg16", weights, mean, std)
        self.features = vgg16(weights=None).features[:-1]  # conv1_1 to conv5_3
        self.features[16].ceil_mode = True  # pool3: 75 -> 38, as in Caffe
        self.scale_weight = nn.Parameter(torch.full((512,), 20.0))
        self.fc = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1),
            nn.Conv2d(512, 1024, 3, padding=6, dilation=6),
            nn.ReLU(inplace=True),
            nn.Conv2d(1024, 1024, 1),
            nn.ReLU(inplace=True),
        )
        half = {"stride": 2, "padding": 1}
        kinds: list[dict[str, int]] = [half, half, {}, {}] if size == 300 else [half, half, half, half, {"kernel_size": 4, "padding": 1}]
        self.out_channels = [512, 1024, 512, *[256] * (len(kinds) - 1)]
        self.extra = nn.ModuleList(
            vgg_extra(c_in, c_out, **kind) for c_in, c_out, kind in zip(self.out_channels[1:], self.out_channels[2:], kinds, strict=False)
        )
        for layer in [*self.fc.modules(), *self.extra.modules()]:
            if isinstance(layer, nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.freeze(self, self.frozen, norms=False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        conv4_3 = self.features[:23](images)
        maps = [self.scale_weight.view(1, -1, 1, 1) * F.normalize(conv4_3.float()), self.fc(self.features[23:](conv4_3))]
        for extra in self.extra:
            maps.append(extra(maps[-1]))
        return {str(index): feature for index, feature in enumerate(maps)}

    def load_weights(self) -> None:
        if self.weights is not None:
            load_backbone_weights({"features": self.features}, "vgg16", self.weights)


def vgg_extra(in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1, padding: int = 0) -> nn.Sequential:
    """conv8 to conv12 of SSD: a 1x1 reduction to half the channels, then a convolution that shrinks the map."""
    middle = out_channels // 2
    return nn.Sequential(
        nn.Conv2d(in_channels, middle, 1),
        nn.ReLU(inplace=True),
        nn.Conv2d(middle, out_channels, kernel_size, stride=stride, padding=padding),
        nn.ReLU(inplace=True),
    )
