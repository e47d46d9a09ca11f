"""Feature extractors: any classification network of torchvision by node names or of timm by indices."""

from __future__ import annotations

import fnmatch
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torchvision.models import get_model, get_model_weights, list_models
from torchvision.models.feature_extraction import create_feature_extractor

from lit_detect.errors import InputError
from lit_detect.models.weights import load_backbone_weights, read_file

__all__ = ["Backbone", "TimmBackbone", "TorchvisionBackbone"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# arguments of timm's builder that fetch or unpickle
OF_WEIGHTS = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")


class Backbone(nn.Module, ABC):
    """A network from normalised images to features.

    A subclass sets `out_channels` and returns as many maps from `forward`, largest first. It keeps each constructor argument in an
    attribute of the same name, so that a checkpoint can say how to build it again.

    Attributes:
        out_channels: channels of each feature map.
        mean: what is subtracted from RGB in 0..1, one value a channel.
        std: what RGB is then divided by.
        region_layers: names of the layers that `regions` applies, if there are any.
    """

    out_channels: list[int]
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    region_layers: Sequence[str] = ()
    _still: Sequence[str] = ()

    @abstractmethod
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Feature maps ``(N, C, h, w)`` by name, largest first, from normalised images ``(N, 3, H, W)``."""

    def load_weights(self) -> None:
        """Load the weights to start training from. Called once, before a training that no checkpoint starts."""

    def regions(self, pooled: Tensor) -> Tensor:
        """Features ``(P, D)`` of regions pooled from the last map ``(P, C, h, w)``: the rest of the network, where it has one.

        Raises:
            InputError: this extractor ends with its maps.
        """
        raise InputError(f"Expected an extractor with layers for regions (region_layers) but {type(self).__name__} has none.")

    def freeze(self, network: nn.Module, patterns: Sequence[str], norms: bool) -> None:
        """Keep parts of this extractor as they are loaded: no gradient, and eval in training too.

        Args:
            network: this, or the part of it in which the patterns are looked up.
            patterns: of module names, as the shell's: ``layer1``, ``features.[0-6]``.
            norms: all batch norms too.

        Raises:
            InputError: a pattern that names no module.
        """
        names = {module: name for name, module in self.named_modules()}
        chosen = frozen_modules(network, patterns, norms)
        for module in chosen:
            module.requires_grad_(False)
        self._still = [*self._still, *(names[module] for module in chosen)]  # by name, since SyncBN puts other modules in their places
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        """Switch to training, but for what is frozen."""
        super().train(mode)
        for name in self._still:
            self.get_submodule(name).eval()
        return self

    def feature_sizes(self, size: int) -> list[int]:
        """Side of each feature map, in cells, for a square input of `size` pixels."""
        return [shape[-1] for shape in feature_shapes(self, size)]


class TorchvisionBackbone(Backbone):
    """Any torchvision classification network, cut at named nodes.

    Args:
        name: the network, as in `torchvision.models.get_model`.
        nodes: where features are taken, largest map first; `torchvision.models.feature_extraction.get_graph_node_names` lists them.
        weights: what training starts from: a torchvision weights name (``IMAGENET1K_V1``, fetched once into torch's hub folder), a
            local file or a URL of a state dict, or none. Nothing is read or fetched before a training starts.
        frozen: patterns of module names (``features.[0-6]``, ``layer1``) whose parameters are kept and whose norms stay in eval.
        frozen_norms: keep all batch norms as they were loaded: statistics, weight and bias.
        mean: subtracted from RGB in 0..1; by default the weights' own, or ImageNet's.
        std: divided by after that, likewise.
        arguments: further arguments of torchvision's builder, such as ``{reduced_tail: true}``.
        region_layers: modules that go on from regions of the last map, in order: ResNet's ``[layer4]`` (He et al. 2016, appendix A),
            or VGG's ``[classifier.0, ..., classifier.4]``. What they give is averaged over its cells.

    Raises:
        InputError: an unknown network, node or pattern; weights that are not there or do not fit.

    >>> backbone = TorchvisionBackbone("mobilenet_v2", ["features.14.conv.0", "features.18"])
    >>> backbone.out_channels, backbone.feature_sizes(320)
    ([576, 1280], [20, 10])
    """

    def __init__(
        self,
        name: str,
        nodes: Sequence[str],
        weights: str | None = None,
        frozen: Sequence[str] = (),
        frozen_norms: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        arguments: dict[str, Any] | None = None,
        region_layers: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if name not in list_models():
            raise InputError(f"Expected the name of a torchvision network but got {name!r}; torchvision.models.list_models() lists them.")
        self.name, self.nodes, self.weights, self.arguments = name, list(nodes), weights, arguments
        self.frozen, self.frozen_norms, self.region_layers = list(frozen), frozen_norms, list(region_layers)
        self.mean, self.std = normalisation(name, weights, mean, std)
        network = get_model(name, weights=None, **dict(arguments or {}))
        try:
            self.region = nn.ModuleList(network.get_submodule(layer) for layer in self.region_layers)
            self.body = create_feature_extractor(network, {node: node for node in self.nodes})
        except (ValueError, AttributeError) as error:
            raise InputError(f"Expected node names of {name} but got {[*self.nodes, *self.region_layers]}: {error}") from error
        self.out_channels = [shape[1] for shape in feature_shapes(self.body, size=224)]
        self.freeze(self.body, self.frozen, norms=False)
        self.freeze(self, [], frozen_norms)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features: dict[str, Tensor] = self.body(images)
        return features

    def regions(self, pooled: Tensor) -> Tensor:
        if not self.region_layers:
            return super().regions(pooled)
        for layer in self.region:
            pooled = layer(pooled.flatten(1) if isinstance(layer, nn.Linear) else pooled)
        return pooled.mean(dim=(2, 3)) if pooled.ndim == 4 else pooled

    def load_weights(self) -> None:
        if self.weights is not None:
            regions = dict(zip(self.region_layers, self.region, strict=True))
            load_backbone_weights({"": self.body, **regions}, self.name, self.weights)


def resnet50(nodes: Sequence[str], region_layers: Sequence[str] = ()) -> TorchvisionBackbone:
    """ResNet-50 as torchvision trains detectors on it: ImageNet weights, all norms frozen, and the first two stages too."""
    frozen = ["conv1", "bn1", "layer1"]
    return TorchvisionBackbone("resnet50", nodes, "IMAGENET1K_V1", frozen, frozen_norms=True, region_layers=region_layers)


class TimmBackbone(Backbone):
    """Any timm network that gives feature maps (``features_only``); needs the extra ``timm``.

    Args:
        name: the network, as in `timm.create_model`.
        indices: which of its maps to take, finest first; by default all.
        weights: what training starts from: ``pretrained``, timm's own, fetched when a training starts; a local file of the network's
            state dict; or none.
        frozen: see `TorchvisionBackbone`.
        frozen_norms: see `TorchvisionBackbone`.
        mean: subtracted from RGB in 0..1; by default the weights' own.
        std: divided by after that, likewise.
        arguments: further arguments of timm's builder, such as ``{img_size: 320}``.

    Raises:
        InputError: timm is not installed, or knows no such network; weights that are not there or do not fit.
    """

    def __init__(
        self,
        name: str,
        indices: Sequence[int] | None = None,
        weights: str | None = None,
        frozen: Sequence[str] = (),
        frozen_norms: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        arguments: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.name, self.indices, self.weights, self.arguments = name, indices and list(indices), weights, arguments
        self.frozen, self.frozen_norms = list(frozen), frozen_norms
        self.body = self._build()
        self.out_channels = self.body.feature_info.channels()
        config = self.body.pretrained_cfg
        self.mean, self.std = list(mean or config.get("mean", IMAGENET_MEAN)), list(std or config.get("std", IMAGENET_STD))
        self.freeze(self.body, self.frozen, frozen_norms)

    def _build(self, **pretrained: Any) -> Any:
        try:
            import timm
            from timm.layers.norm_act import BatchNormAct2d
        except ImportError as error:
            raise InputError(f"Expected timm for the network {self.name}: pip install 'lit_detect[timm]'.") from error
        if ":" in self.name or (fetching := [name for name in OF_WEIGHTS if name in (self.arguments or {})]):
            # a name with a scheme is a hub's or a folder's; and a checkpoint, which may be a stranger's, says how to build its backbone
            got = self.name if ":" in self.name else ", ".join(fetching)
            raise InputError(f"Expected the name of one of timm's own networks, and weights in weights, but got {got}.")
        chosen: dict[str, Any] = {} if self.indices is None else {"out_indices": self.indices}
        try:
            network = timm.create_model(self.name, features_only=True, **chosen, **dict(self.arguments or {}), **pretrained)
        except (RuntimeError, AssertionError, IndexError, OSError) as error:
            raise InputError(f"Expected a network of timm with these maps and weights but got {self.name}: {error}") from error
        for module in list(network.modules()):
            for child_name, child in module.named_children():
                if isinstance(child, BatchNormAct2d):  # SyncBN would take its place, and its activation be gone
                    norm = nn.BatchNorm2d(child.num_features, child.eps, child.momentum)
                    norm.load_state_dict(child.state_dict())
                    setattr(module, child_name, nn.Sequential(norm, child.drop, child.act))
        return network

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.body(images)
        if getattr(self.body, "output_fmt", None) == "NHWC":  # Swin
            maps = [feature.permute(0, 3, 1, 2).contiguous() for feature in maps]
        return {str(index): feature for index, feature in enumerate(maps)}

    def load_weights(self) -> None:
        if self.weights is not None:
            file = {} if self.weights == "pretrained" else {"pretrained_cfg_overlay": {"file": self.weights}}
            if file and not self.weights.endswith((".safetensors", ".npz")):
                read_file(self.weights, "pretrained", f" as weights of {self.name}")  # stops at code, which timm 1.0.15 still runs
            self.body.load_state_dict(self._build(pretrained=True, **file).state_dict())


def feature_shapes(network: nn.Module, size: int) -> list[torch.Size]:
    """Shape of each feature map for one square image of `size` pixels; shapes alone are worked out, nothing is computed."""
    tensors = [*network.named_parameters(), *network.named_buffers()]
    state = {name: tensor.detach().to("meta") for name, tensor in tensors}
    training = network.training
    with torch.no_grad():
        features = functional_call(network.eval(), state, (torch.empty(1, 3, size, size, device="meta"),))
    network.train(training)
    return [feature.shape for feature in features.values()]


def normalisation(
    name: str, weights: str | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[list[float], list[float]]:
    """Mean and std that go with the weights, so that the wrong pair cannot be made by leaving them out."""
    preset: Any = None
    if weights is not None and weights in get_model_weights(name).__members__:
        preset = get_model_weights(name)[weights].transforms()
    own = (preset.mean, preset.std) if preset else (IMAGENET_MEAN, IMAGENET_STD)
    return list(mean or own[0]), list(std or own[1])


def frozen_modules(network: nn.Module, patterns: Sequence[str], norms: bool) -> list[nn.Module]:
    """The modules that the patterns name, and the batch norms if asked for."""
    modules = dict(network.named_modules())
    chosen = []
    for pattern in patterns:
        found = [module for name, module in modules.items() if name and fnmatch.fnmatchcase(name, pattern)]
        if not found:
            top = ", ".join(name for name in modules if name.count(".") <= 1 and name)
            raise InputError(f"Expected frozen patterns that name modules of the backbone but {pattern!r} names none of: {top}.")
        chosen += found
    if norms:
        chosen += [module for module in modules.values() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    return chosen
