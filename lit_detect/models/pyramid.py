"""Feature pyramids: FPN (Lin et al. 2017) on the maps of any extractor."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from lit_detect.errors import InputError
from lit_detect.models.backbones import Backbone

__all__ = ["FeaturePyramid", "StridedMaps", "check_anchor_sizes", "dense_pyramid", "strides"]


class FeaturePyramid(nn.Module):
    """A network of several maps, and torchvision's FPN on them: section 3.

    Args:
        backbone: normalised images to maps by name, largest first.
        in_channels: channels of its maps.
        out_channels: channels of every map of the pyramid.
        coarser: adds maps after the last.
        norms: batch norms after the pyramid's convolutions.
    """

    def __init__(
        self,
        backbone: nn.Module,
        in_channels: Sequence[int],
        out_channels: int,
        coarser: ExtraFPNBlock | None = None,
        norms: bool = False,
    ) -> None:
        super().__init__()
        self.backbone, self.out_channels = backbone, out_channels
        self.fpn = FeaturePyramidNetwork(list(in_channels), out_channels, coarser, nn.BatchNorm2d if norms else None)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = {str(index): feature for index, feature in enumerate(self.backbone(images).values())}
        features: dict[str, Tensor] = self.fpn(maps)
        return features


class StridedMaps(ExtraFPNBlock):  # type: ignore[misc]
    """Coarser maps after a pyramid's last, by strided convolutions: RetinaNet, section 4, footnote 2, but as many as are asked for.

    Args:
        in_channels: of the map that they start from.
        out_channels: of each map.
        count: of maps.
        from_pyramid: start from the pyramid's last map; by default from the backbone's.
    """

    def __init__(self, in_channels: int, out_channels: int, count: int, from_pyramid: bool = False) -> None:
        super().__init__()
        self.from_pyramid = from_pyramid
        channels = [in_channels, *[out_channels] * count]
        layers = [nn.Conv2d(before, after, 3, stride=2, padding=1) for before, after in pairwise(channels)]
        for layer in layers:
            nn.init.kaiming_uniform_(layer.weight, a=1)  # as torchvision's pyramids have it
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # there is one
        self.layers = nn.ModuleList(layers)

    def forward(self, results: list[Tensor], x: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        last = results[-1] if self.from_pyramid else x[-1]
        for index, layer in enumerate(self.layers):
            last = layer(last if index == 0 else last.relu())
            results.append(last)
            names.append(f"coarser.{index}")
        return results, names


def strides(backbone: Backbone) -> list[int]:
    """Pixels between the cells of each map of a backbone."""
    return [512 // side for side in backbone.feature_sizes(512)]


def dense_pyramid(backbone: Backbone, out_channels: int, p6_from: str) -> tuple[FeaturePyramid, list[int]]:
    """RetinaNet's pyramid (section 4, footnote 2), and the strides of its maps.

    Beyond the backbone's maps it has P6 and P7, by strided convolutions on ``c5`` (the paper) or ``p5`` (FCOS).
    """
    from_pyramid = p6_from == "p5"
    coarser = StridedMaps(out_channels if from_pyramid else backbone.out_channels[-1], out_channels, 2, from_pyramid)
    of_maps = strides(backbone)
    return FeaturePyramid(backbone, backbone.out_channels, out_channels, coarser), [*of_maps, 2 * of_maps[-1], 4 * of_maps[-1]]


def check_anchor_sizes(sizes: Sequence[Sequence[int]], strides: Sequence[int]) -> None:
    """Refuse anchor sizes that do not fit the maps.

    Raises:
        InputError: not a list for each map, or not all of one length.
    """
    if len(sizes) != len(strides):
        raise InputError(f"Expected anchor_sizes for {len(strides)} maps of strides {list(strides)} but got {len(sizes)} lists.")
    if len({len(of_map) for of_map in sizes}) > 1:
        raise InputError(f"Expected as many anchor_sizes on each map, since the head is shared, but got {sizes}.")
