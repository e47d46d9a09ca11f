import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from torch import nn
from torchvision.models import get_model, mobilenet_v2

from lit_detect import VGG16, InputError, TimmBackbone, TorchvisionBackbone

NODES = ["features.14.conv.0", "features.18"]


@pytest.fixture
def weights(tmp_path):
    """A state dict of MobileNetV2, with its classifier, as torchvision saves it."""
    path = tmp_path / "files" / "mobilenet.pth"
    path.parent.mkdir()
    torch.save(mobilenet_v2(weights=None).state_dict(), path)
    return path


@pytest.fixture
def server(weights, monkeypatch, tmp_path):
    """A file server on this machine, and a hub folder of its own."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    handler = partial(SimpleHTTPRequestHandler, directory=str(weights.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def same_weights(backbone, path):
    state = torch.load(path, weights_only=True)
    return all(torch.equal(value, state[name]) for name, value in backbone.body.state_dict().items())


@pytest.mark.parametrize(
    ("name", "nodes"),
    [
        ("resnet50", ["layer2", "layer4"]),
        ("mobilenet_v2", NODES),
        ("vgg16", ["features.22", "features.29"]),
        ("regnet_y_400mf", ["trunk_output.block3"]),
    ],
)
def test_same_features_as_the_network_it_is_cut_from(name, nodes):
    backbone = TorchvisionBackbone(name, nodes).eval()
    whole = get_model(name, weights=None).eval()
    whole.load_state_dict(backbone.body.state_dict(), strict=False)
    seen = []
    for node in nodes:
        whole.get_submodule(node).register_forward_hook(lambda module, args, output: seen.append(output.clone()))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        whole(images)
        features = backbone(images)
    assert [feature.shape[1] for feature in features.values()] == backbone.out_channels
    assert [feature.shape[-1] for feature in features.values()] == backbone.feature_sizes(64)
    for feature, expected in zip(features.values(), seen, strict=True):
        torch.testing.assert_close(feature, expected)


def test_nothing_is_loaded_before_a_training_starts(weights):
    backbone = TorchvisionBackbone("mobilenet_v2", NODES, weights=str(weights))
    assert not same_weights(backbone, weights)
    backbone.load_weights()
    assert same_weights(backbone, weights)


def test_weights_are_fetched_from_a_url_once(server, weights):
    backbone = TorchvisionBackbone("mobilenet_v2", NODES, weights=f"{server}/mobilenet.pth")
    backbone.load_weights()
    assert same_weights(backbone, weights)
    weights.unlink()
    backbone.load_weights()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("http://127.0.0.1:9/mobilenet.pth", "Could not fetch .* without network, save that file as .*-mobilenet.pth"),
        ("IMAGENET1K_V9", "Expected one of IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT, a file or a URL"),
        ("no/such/file.pth", "a file or a URL as weights of mobilenet_v2 but got 'no/such/file.pth'"),
    ],
)
def test_weights_that_are_not_there_say_what_to_do(given, message, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(InputError, match=message):
        TorchvisionBackbone("mobilenet_v2", NODES, weights=given).load_weights()


def test_a_name_of_torchvisions_weights_leads_to_their_address(monkeypatch, tmp_path):
    asked = []
    state = mobilenet_v2(weights=None).state_dict()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda url, path, **_: asked.append(url) or torch.save(state, path))
    TorchvisionBackbone("mobilenet_v2", NODES, weights="IMAGENET1K_V2").load_weights()
    assert asked[0].endswith("mobilenet_v2-7ebf99e0.pth")


def test_weights_of_another_network_are_refused(weights):
    with pytest.raises(InputError, match=r"of 75 tensors are missing or of another shape: conv1\.weight"):
        TorchvisionBackbone("resnet18", ["layer2", "layer3"], weights=str(weights)).load_weights()


def test_frozen_modules_and_norms_stay_in_eval_and_get_no_gradient():
    backbone = TorchvisionBackbone("mobilenet_v2", NODES, frozen=["features.[0-6]"], frozen_norms=True).train()
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training for norm in norms)
    frozen = {name for name, parameter in backbone.body.named_parameters() if not parameter.requires_grad}
    convolutions = {name.split(".")[1] for name, p in backbone.body.named_parameters() if p.ndim == 4 and name in frozen}
    assert convolutions == {"0", "1", "2", "3", "4", "5", "6"}
    before = [norm.running_mean.clone() for norm in norms]
    backbone(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, before, strict=True))


def test_what_is_frozen_stays_so_when_syncbn_takes_the_norms_places():
    """Lightning's `sync_batchnorm` makes new modules of the batch norms, which are to stay in eval as the old ones were."""
    backbone = TorchvisionBackbone("mobilenet_v2", NODES, frozen=["features.[0-6]"], frozen_norms=False)
    before = {name: parameter.requires_grad for name, parameter in backbone.named_parameters()}
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(backbone).train()
    norms = {name: norm for name, norm in synced.named_modules() if isinstance(norm, nn.SyncBatchNorm)}
    assert {name for name, norm in norms.items() if not norm.training} == {
        name for name in norms if int(name.split(".")[2]) <= 6
    }  # fmt: skip
    assert {name: parameter.requires_grad for name, parameter in synced.named_parameters()} == before
    frozen = nn.SyncBatchNorm.convert_sync_batchnorm(TorchvisionBackbone("mobilenet_v2", NODES, frozen_norms=True)).train()
    assert not any(module.training for module in frozen.modules() if isinstance(module, nn.SyncBatchNorm))
    frozen(torch.randn(2, 3, 64, 64))  # in eval nothing is synchronised, so that this runs on one CPU


@pytest.mark.parametrize(
    ("name", "node", "layers", "width"),
    [
        ("resnet18", "layer3", ["layer4"], 512),
        ("vgg11", "features.19", ["classifier.0", "classifier.1", "classifier.2", "classifier.3", "classifier.4"], 4096),
    ],
)
def test_region_layers_go_on_where_the_maps_end(name, node, layers, width, tmp_path):
    """On the map of one whole image they give what the classification network has before its last layer."""
    torch.save(get_model(name, weights=None).state_dict(), tmp_path / "network.pth")
    whole = get_model(name, weights=None).eval()
    whole.load_state_dict(torch.load(tmp_path / "network.pth", weights_only=True))
    backbone = TorchvisionBackbone(name, [node], str(tmp_path / "network.pth"), region_layers=layers).eval()
    backbone.load_weights()
    seen = []
    last = whole.fc if hasattr(whole, "fc") else whole.classifier[6]
    last.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        whole(images)
        feature = backbone(images)[node]
        regions = backbone.regions(nn.functional.max_pool2d(feature, 2) if name == "vgg11" else feature)
    assert regions.shape == (2, width)
    torch.testing.assert_close(regions, seen[0], rtol=1e-4, atol=1e-4)


def test_regions_without_region_layers_are_refused():
    with pytest.raises(InputError, match="Expected an extractor with layers for regions"):
        TorchvisionBackbone("resnet18", ["layer3"]).regions(torch.zeros(1, 256, 7, 7))


@pytest.mark.parametrize(
    ("name", "indices"), [("resnet18", [2, 3]), ("mobilenetv3_small_050", [3, 4]), ("swin_tiny_patch4_window7_224", [2, 3])]
)
def test_timm_networks(name, indices, tmp_path):
    timm = pytest.importorskip("timm", reason="the extra timm is not installed")
    torch.save(timm.create_model(name).state_dict(), tmp_path / "network.pth")
    backbone = TimmBackbone(name, indices, str(tmp_path / "network.pth"), frozen_norms=True).eval()
    assert backbone.feature_sizes(224) == [224 // stride for stride in backbone.body.feature_info.reduction()]
    before = {key: value.clone() for key, value in backbone.body.state_dict().items()}
    backbone.load_weights()
    saved = torch.load(tmp_path / "network.pth", weights_only=True).values()
    changed = [key for key, value in backbone.body.state_dict().items() if not torch.equal(value, before[key])]
    assert changed
    assert all(
        any(value.shape == other.shape and torch.equal(value, other) for other in saved)
        for value in (backbone.body.state_dict()[key] for key in changed)
    )
    with torch.no_grad():
        maps = list(backbone(torch.randn(1, 3, 224, 224)).values())
    assert [(feature.shape[1], feature.shape[-1]) for feature in maps] == list(
        zip(backbone.out_channels, backbone.feature_sizes(224), strict=True)
    )
    assert not any(module.training for module in backbone.train().modules() if isinstance(module, nn.BatchNorm2d))
    local = {"file": str(tmp_path / "network.pth")}
    whole = timm.create_model(name, features_only=True, out_indices=indices, pretrained=True, pretrained_cfg_overlay=local).eval()
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(backbone).eval()  # which knows nothing of activations inside of norms
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        for found, expected in zip(synced(images).values(), whole(images), strict=True):
            expected = expected.permute(0, 3, 1, 2) if name.startswith("swin") else expected
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet999"}, "Expected a network of timm .* but got resnet999"),
        ({"name": "resnet18", "indices": [9]}, "but got resnet18"),
    ],
)
def test_what_timm_does_not_have_is_named(arguments, message):
    pytest.importorskip("timm", reason="the extra timm is not installed")
    with pytest.raises(InputError, match=message):
        TimmBackbone(**arguments)


def test_mean_and_std_go_with_the_weights():
    assert VGG16(weights="IMAGENET1K_FEATURES").mean == pytest.approx([0.48235, 0.45882, 0.40784])
    assert VGG16(weights="IMAGENET1K_FEATURES").std == pytest.approx([1 / 255] * 3)
    assert VGG16(weights="IMAGENET1K_V1").std == pytest.approx([0.229, 0.224, 0.225])
    assert VGG16(weights=None, mean=[0.0, 0.0, 0.0]).mean == [0, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet9", "nodes": ["layer1"]}, "Expected the name of a torchvision network but got 'resnet9'"),
        ({"name": "resnet18", "nodes": ["layer9"]}, "Expected node names of resnet18"),
        ({"name": "resnet18", "nodes": ["layer1"], "frozen": ["layer8"]}, "'layer8' names none of"),
    ],
)
def test_what_does_not_exist_is_named(arguments, message):
    with pytest.raises(InputError, match=message):
        TorchvisionBackbone(**arguments)


def test_vgg_takes_no_other_size():
    with pytest.raises(InputError, match="Expected size 300 or 512"):
        VGG16(400)
