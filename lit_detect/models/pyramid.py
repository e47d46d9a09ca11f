"""Feature pyramids: FPN (Lin et al. 2017) on the maps of any extractor."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelP6P7

from lit_detect.errors import InputError
from lit_detect.models.backbones import Backbone

__all__ = ["FeaturePyramid", "check_anchor_sizes", "dense_pyramid", "strides"]


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


def strides(backbone: Backbone) -> list[int]:
    """Pixels between the cells of each map of a backbone."""
    return [512 // side for side in backbone.feature_sizes(512)]


def dense_pyramid(backbone: Backbone, out_channels: int, p6_from: str) -> tuple[FeaturePyramid, list[int]]:
    """RetinaNet's pyramid (section 4, footnote 2), and the strides of its maps.

    Beyond the backbone's maps it has P6 and P7, by strided convolutions on ``c5`` (the paper) or ``p5`` (FCOS).
    """
    coarser = LastLevelP6P7(backbone.out_channels[-1] if p6_from == "c5" else out_channels, out_channels)
    coarser.use_P5 = p6_from == "p5"  # torchvision goes by the channels, which can be equal
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
