"""Feature pyramids: FPN (Lin et al. 2017) on the maps of any extractor."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelP6P7

from lit_detect.models.backbones import Backbone

__all__ = ["FeaturePyramid", "coarser_maps", "strides"]


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


def coarser_maps(backbone: Backbone, out_channels: int, p6_from: str) -> LastLevelP6P7:
    """The maps P6 and P7 of RetinaNet (section 4, footnote 2), by strided convolutions on ``c5`` (the paper) or ``p5`` (FCOS)."""
    maps = LastLevelP6P7(backbone.out_channels[-1] if p6_from == "c5" else out_channels, out_channels)
    maps.use_P5 = p6_from == "p5"  # torchvision goes by the channels, which can be equal
    return maps
