"""DSSD: Deconvolutional Single Shot Detector (Fu et al. 2017), and its ResNet extractor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection.ssd import SSDHead
from torchvision.ops import Conv2dNormActivation

from lit_detect.errors import InputError
from lit_detect.models.backbones import Backbone, TorchvisionBackbone
from lit_detect.models.ssd import SSD, ExtraLayers

__all__ = ["DSSD", "AtrousResNet"]


class DSSD(SSD):
    """SSD whose coarse maps are brought back up to the fine ones, where small objects are found (section 3.2).

    Args:
        classes: see `Detector`.
        size: side of the square input in pixels.
        backbone: the feature extractor; by default ResNet-101 with the paper's geometry at 321 and 513.
        deconvolution_channels: channels of the maps that deconvolution gives.
        prediction_channels: channels of the prediction modules' outputs.
        **kwargs: see `SSD`.

    >>> len(DSSD(["cat", "dog"], scales="voc").network.anchors.boxes)
    17080
    """

    def __init__(
        self,
        classes: Sequence[str],
        size: int = 321,
        backbone: Backbone | None = None,
        deconvolution_channels: int = 512,
        prediction_channels: int = 1024,
        **kwargs: Any,
    ) -> None:
        # set first, since SSD's constructor calls the hooks below
        self.deconvolution_channels, self.prediction_channels = deconvolution_channels, prediction_channels
        super().__init__(classes, size, backbone, **kwargs)

    def default_backbone(self, size: int) -> Backbone:
        return AtrousResNet("resnet101", size)

    def default_aspect_ratios(self, maps: int) -> list[list[float]]:
        """Section 3.1, "Training": 1.6 beside 2 and 3, on every map; 8 default boxes a cell."""
        return [[1.6, 2.0, 3.0]] * maps

    def trunk(self, backbone: Backbone, size: int, extra_channels: Sequence[int]) -> ExtraLayers:
        return Deconvolutions(backbone, size, extra_channels, self.extra_layer, self.deconvolution_channels)

    def head(self, channels: list[int], boxes_per_cell: list[int], num_logits: int) -> nn.Module:
        return PredictionHead(channels, boxes_per_cell, num_logits, self.prediction_channels)


class Deconvolutions(ExtraLayers):
    """SSD's maps, and an hourglass back up from the coarsest: figure 1.

    Its modules have the names that `ExtraLayers` has, so that a trained SSD's weights can start it (section 3.3).

    Args:
        backbone: see `ExtraLayers`.
        size: see `ExtraLayers`.
        channels: see `ExtraLayers`.
        layer: see `ExtraLayers`.
        width: channels of every map but the coarsest.
    """

    def __init__(self, backbone: Backbone, size: int, channels: Sequence[int], layer: Callable[[int, int], nn.Module], width: int) -> None:
        super().__init__(backbone, size, channels, layer)
        steps = range(len(self.sizes) - 2, -1, -1)  # from the coarsest but one to the finest
        above = [self.out_channels[-1], *[width] * (len(self.sizes) - 2)]
        self.up = nn.ModuleList(
            Deconvolution(coarse, self.out_channels[step], width, self.sizes[step + 1], self.sizes[step])
            for coarse, step in zip(above, steps, strict=True)
        )
        self.out_channels = [*[width] * len(steps), self.out_channels[-1]]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = super().forward(images)
        names = list(features)
        for module, coarse, fine in zip(self.up, names[:0:-1], names[-2::-1], strict=True):
            features[fine] = module(features[coarse], features[fine])
        return features


class Deconvolution(nn.Module):
    """The deconvolution module: a coarse map, brought up, times a fine one (section 3.2.2, figure 3).

    Args:
        coarse_channels: of the coarse map.
        fine_channels: of the fine map.
        width: channels of the result.
        coarse: side of the coarse map in cells.
        fine: side of the fine map in cells: twice the coarse one's, or one more or less.
    """

    def __init__(self, coarse_channels: int, fine_channels: int, width: int, coarse: int, fine: int) -> None:
        super().__init__()
        missing = fine - 2 * (coarse - 1)  # the paper's 2x2 kernel doubles; odd maps need one cell more, or one less
        kernel, padding = (3, 1) if missing == 1 else (missing, 0)
        norm = nn.BatchNorm2d(width)
        # the product starts as the fine map alone: two random maps multiplied tell little, and from scratch take long to tell more
        nn.init.zeros_(norm.weight)
        nn.init.ones_(norm.bias)
        self.up = nn.Sequential(
            nn.ConvTranspose2d(coarse_channels, width, kernel, stride=2, padding=padding),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            norm,
        )
        self.lateral = nn.Sequential(
            Conv2dNormActivation(fine_channels, width, 3),
            Conv2dNormActivation(width, width, 3, activation_layer=None),
        )

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """The product of both paths ``(N, D, h, w)``, of the fine map's size."""
        product: Tensor = (self.up(coarse) * self.lateral(fine)).relu()
        return product


class ResidualBlock(nn.Module):
    """A bottleneck with a convolution of the same kernel on the shortcut, which may shrink the map.

    Args:
        in_channels: of the map.
        out_channels: of the result, a quarter of them inside.
        kernel_size: of the middle convolution and the shortcut.
        stride: likewise.
        padding: likewise.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        middle = out_channels // 4
        last = Conv2dNormActivation(middle, out_channels, 1, activation_layer=None)
        nn.init.zeros_(last[1].weight)  # the block starts as the shortcut alone (Goyal et al. 2017, section 5.1)
        self.block = nn.Sequential(
            Conv2dNormActivation(in_channels, middle, 1),
            Conv2dNormActivation(middle, middle, kernel_size, stride, padding),
            last,
        )
        self.shortcut = Conv2dNormActivation(in_channels, out_channels, kernel_size, stride, padding, activation_layer=None)

    def forward(self, feature: Tensor) -> Tensor:
        """``(N, out_channels, h, w)`` from ``(N, in_channels, h, w)``."""
        total: Tensor = (self.block(feature) + self.shortcut(feature)).relu()
        return total


class PredictionModule(ResidualBlock):
    """Prediction module (c): a residual block before the predictors, with a convolution on the shortcut (section 3.1, figure 2).

    Args:
        in_channels: of the map.
        out_channels: of the result; the paper's 1024, with 256 inside.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1)


class PredictionHead(SSDHead):  # type: ignore[misc]
    """SSD's predictors, each behind a prediction module.

    Args:
        channels: of each map.
        boxes_per_cell: default boxes of each map.
        num_logits: for each default box.
        width: channels of the prediction modules' outputs.
    """

    def __init__(self, channels: list[int], boxes_per_cell: list[int], num_logits: int, width: int) -> None:
        super().__init__([width] * len(channels), boxes_per_cell, num_logits)
        self.prediction = nn.ModuleList(PredictionModule(of_map, width) for of_map in channels)

    def forward(self, maps: list[Tensor]) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = super().forward([module(one) for module, one in zip(self.prediction, maps, strict=True)])
        return outputs


class AtrousResNet(TorchvisionBackbone):
    """ResNet as DSSD changes it: section 3.1, "Using Residual-101 in place of VGG".

    The first pooling rounds up as Caffe's does (maps of 40 instead of 41 at 321), conv5 is dilated in place of strided, and residual
    blocks go on down to a map of 1x1.

    Args:
        name: ``resnet50``, ``resnet101`` or ``resnet152``, whose bottlenecks can be dilated.
        size: 321 or 513: which blocks are added.
        weights: see `TorchvisionBackbone`.
        frozen: patterns of module names; the added blocks are ``extra.*``, and ``*`` is all (section 3.3, the first stage).
        frozen_norms: see `TorchvisionBackbone`.
        mean: see `TorchvisionBackbone`.
        std: see `TorchvisionBackbone`.

    Raises:
        InputError: another size; a name, patterns or weights that `TorchvisionBackbone` refuses.

    >>> AtrousResNet("resnet50", 321).feature_sizes(321), AtrousResNet("resnet50", 513).feature_sizes(513)
    ([40, 20, 10, 5, 3, 1], [64, 32, 16, 8, 4, 2, 1])
    """

    def __init__(
        self,
        name: str = "resnet101",
        size: int = 321,
        weights: str | None = "IMAGENET1K_V1",
        frozen: Sequence[str] = (),
        frozen_norms: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        if size not in (321, 513):
            raise InputError(f"Expected size 321 or 513 for DSSD's ResNet but got {size}; TorchvisionBackbone({name!r}, ...) takes any.")
        atrous = {"replace_stride_with_dilation": [False, False, True]}
        super().__init__(name, ["layer2", "layer4"], weights, mean=mean, std=std, arguments=atrous)
        self.size, self.frozen, self.frozen_norms = size, list(frozen), frozen_norms
        self.body.maxpool.padding, self.body.maxpool.ceil_mode = 0, True
        half, corner = {"kernel_size": 2, "stride": 2}, {"kernel_size": 3, "padding": 0}
        kinds: list[dict[str, int]] = [half, half, corner, corner] if size == 321 else [half] * 5
        self.out_channels = [*self.out_channels, *[1024] * len(kinds)]
        self.extra = nn.ModuleList(
            ResidualBlock(c_in, c_out, **kind)
            for c_in, c_out, kind in zip(self.out_channels[1:], self.out_channels[2:], kinds, strict=False)
        )
        self.freeze(nn.ModuleDict({**dict(self.body.named_children()), "extra": self.extra}), self.frozen, frozen_norms)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = super().forward(images)
        last = features["layer4"]
        for index, block in enumerate(self.extra):
            last = features[f"extra.{index}"] = block(last)
        return features
