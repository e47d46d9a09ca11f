from argparse import Namespace

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader
from torchvision.models._meta import _COCO_CATEGORIES
from torchvision.models.detection import fasterrcnn_resnet50_fpn, retinanet_resnet50_fpn, ssdlite320_mobilenet_v3_large

from lit_detect import DSSD, RFCN, SSD, FasterRCNN, InputError, RetinaNet, SSDLite, TorchvisionBackbone, YOLOv3
from lit_detect.data.batches import collate
from lit_detect.models import weights
from tests.conftest import DETECTORS, OneStride, TinyBackbone, random_batch
from tests.test_contract import save

ANIMALS = ["dog", "zebra", "cat"]  # in another order than COCO's


@pytest.fixture
def log(monkeypatch):
    """What is said of the weights."""
    lines = []
    monkeypatch.setattr(weights, "rank_zero_info", lambda message: lines.extend(message.splitlines()))
    return lines


def ssdlite(classes, **kwargs):
    half = [0.5, 0.5, 0.5]
    nodes = ["features.13.block.0", "features.16"]
    backbone = TorchvisionBackbone("mobilenet_v3_large", nodes, mean=half, std=half, arguments={"reduced_tail": True})
    return SSDLite(classes, backbone=backbone, **kwargs)


@pytest.fixture(scope="module")
def reference():
    torch.manual_seed(1)
    return ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=91).eval()


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"model": state, "epoch": 3, "args": Namespace(lr=0.02)}])
def test_classes_are_found_among_cocos_91_by_name(reference, tmp_path, log, wrap):
    torch.save(wrap(reference.state_dict()), tmp_path / "retinanet.pth")
    detector = ssdlite(ANIMALS, init_from=str(tmp_path / "retinanet.pth"))
    detector.load_start_weights()
    images = torch.randn(1, 3, 320, 320)
    with torch.no_grad():
        expected = reference.head(list(reference.backbone(images).values()))
        logits, deltas, _ = detector.network.eval().predict(images)
    rows = [0, *(_COCO_CATEGORIES.index(name) for name in ANIMALS)]
    torch.testing.assert_close(logits, expected["cls_logits"][..., rows])
    torch.testing.assert_close(deltas, expected["bbox_regression"])
    assert log
    assert all(" took " in line for line in log)


def test_a_torchvision_weights_name_leads_to_their_address(reference, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    fetch = lambda url, path, **_: asked.append(url) or torch.save(reference.state_dict(), path)  # noqa: E731
    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    detector = ssdlite(ANIMALS, init_from="SSDLite320_MobileNet_V3_Large_Weights.COCO_V1")
    detector.load_start_weights()
    assert asked[0].endswith("ssdlite320_mobilenet_v3_large_coco-a79551df.pth")
    first = "head.classification_head.module_list.0.1.bias"
    theirs = reference.state_dict()[first].view(-1, 91)[:, _COCO_CATEGORIES.index("zebra")]
    assert torch.equal(detector.network.state_dict()[first].view(-1, 4)[:, 2], theirs)


def test_a_head_of_other_classes_starts_afresh_and_the_log_says_so(reference, tmp_path, log):
    torch.save(reference.state_dict(), tmp_path / "retinanet.pth")
    detector = ssdlite(["cat", "gnu"], init_from=str(tmp_path / "retinanet.pth"))
    before = {name: tensor.clone() for name, tensor in detector.network.state_dict().items()}
    detector.load_start_weights()
    after = detector.network.state_dict()
    kept = {name for name, tensor in after.items() if torch.equal(tensor, before[name]) and tensor.ndim == 4}
    assert kept == {f"head.classification_head.module_list.{index}.1.weight" for index in range(6)}
    (said,) = (line for line in log if " took " not in line)
    assert "did not take head.classification_head, which stands for other classes there (gnu ..." in said
    assert said.endswith("(tensors: 12)")


def same_outputs(source, target, path):
    """The target starts from a checkpoint of the source, and gives the source's logits for the classes of that name."""
    save(source, path)
    target.init_from = str(path)
    target.load_start_weights()
    state, other = source.network.state_dict(), target.network.state_dict()
    for layer, (names, together) in source.class_outputs().items():
        wanted = [names.index(name) for name in target.class_outputs()[layer][0]]
        for kind in ("weight", "bias"):
            theirs, ours = state[f"{layer}.{kind}"], other[f"{layer}.{kind}"]
            rows = torch.arange(len(theirs)).view(-1, len(names), together)[:, wanted].flatten()
            assert torch.equal(ours, theirs[rows])


@pytest.mark.parametrize("name", ["ssd_focal", "fcos", "retinanet", "yolov3", "rfcn", "faster_rcnn_fpn", "dssd"])
def test_some_classes_of_a_checkpoint_of_ours(name, tmp_path, log):
    """The checkpoint knows cat, dog and horse."""
    source = DETECTORS[name]()
    for layer in source.class_outputs():
        torch.nn.init.normal_(source.network.get_submodule(layer).bias)
    small = {"min_size": 96, "max_size": 160}
    target = {
        "ssd_focal": lambda c: SSD(c, 96, TinyBackbone(), source.network.criterion, scales="linear", extra_channels=[16]),
        "dssd": lambda c: DSSD(
            c, 96, TinyBackbone(), scales="linear", extra_channels=[16], deconvolution_channels=16, prediction_channels=32
        ),
        "fcos": lambda c: type(source)(c, TinyBackbone(), fpn_channels=64, **small),
        "retinanet": lambda c: RetinaNet(c, TinyBackbone(), fpn_channels=64, **small),
        "yolov3": lambda c: YOLOv3(
            c, size=96, backbone=TinyBackbone(), anchor_sizes=[[[10, 13], [16, 30]], [[33, 23], [60, 60]]], widths=[8, 16]
        ),
        "rfcn": lambda c: RFCN(c, OneStride(), region_channels=16, grid=3, anchor_sizes=[[32, 64]], **small),
        "faster_rcnn_fpn": lambda c: FasterRCNN(c, TinyBackbone(), fpn_channels=16, head_channels=16, **small),
    }[name](["horse", "cat"])
    same_outputs(source, target, tmp_path / "source.ckpt")
    assert all(" took " in line for line in log)


def test_dssd_starts_from_a_trained_ssd(tmp_path, log):
    """DSSD, section 3.3: the layers of SSD come from SSD, and those that SSD has not stay as they are."""
    ssd = DETECTORS["ssd"]()
    save(ssd, tmp_path / "ssd.ckpt")
    dssd = DETECTORS["dssd"](init_from=str(tmp_path / "ssd.ckpt"))
    dssd.load_start_weights()
    state = dssd.network.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in ssd.network.state_dict().items() if name.startswith("backbone."))
    assert any("did not take backbone.up, which is not in it" in line for line in log)
    assert any("has the shape" in line for line in log)


@pytest.mark.parametrize("synced", [False, True])
def test_norms_whose_eps_torchvision_sets_to_zero(monkeypatch, tmp_path, synced):
    reference = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    for module in reference.modules():
        if hasattr(module, "running_var"):
            module.running_var.uniform_(1e-6, 1e-4)  # where eps matters
            module.eps = 0.0  # as torchvision's builder does with these weights
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda url, path, **_: torch.save(reference.state_dict(), path))
    backbone = TorchvisionBackbone("resnet50", ["layer1", "layer2", "layer3", "layer4"], frozen_norms=True)
    detector = FasterRCNN(_COCO_CATEGORIES[1:2], backbone, init_from="FasterRCNN_ResNet50_FPN_Weights.COCO_V1")
    if synced:  # Lightning does so before a training starts from any weights
        detector = torch.nn.SyncBatchNorm.convert_sync_batchnorm(detector)
    detector.load_start_weights()
    norm, expected = detector.backbone.body.bn1.eval(), reference.backbone.body.bn1.eval()
    values = torch.randn(1, 64, 4, 4)
    torch.testing.assert_close(norm(values), expected(values), rtol=1e-4, atol=1e-4)


def test_a_training_starts_from_init_from_and_not_from_the_backbones_weights(tmp_path, log):
    source = DETECTORS["ssd"]()
    save(source, tmp_path / "source.ckpt")
    images, targets = random_batch([(96, 96)] * 2, [1, 1])
    loader = DataLoader(list(zip(images, targets, strict=True)), batch_size=2, collate_fn=collate)
    detector = DETECTORS["ssd"](init_from=str(tmp_path / "source.ckpt"), optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    silent = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "enable_checkpointing": False}
    Trainer(max_epochs=1, accelerator="cpu", **silent).fit(detector, loader)
    assert log
    assert all(" took " in line for line in log)
    for name, parameter in source.named_parameters():
        assert torch.equal(detector.get_parameter(name), parameter), name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"stem.weight": torch.zeros(2, 2)}, r"Expected \d+ tensors in .*other.pth, .* but it has 1, named stem.weight"),
        ({"backbone.backbone.stem.0.0.weight": torch.zeros(2, 2)}, r"none of its 1 tensors fits"),
    ],
)
def test_another_networks_weights_are_refused(content, message, tmp_path):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(InputError, match=message):
        DETECTORS["ssd"](init_from=str(tmp_path / "other.pth")).load_start_weights()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "SSD300_VGG16_Weights.COCO_V9",
            r"Expected a torchvision detection weights name such as .* but got 'SSD300_VGG16_Weights.COCO_V9'",
        ),
        ("http://127.0.0.1:9/x.pth", "Could not fetch .* without network"),
    ],
)
def test_weights_that_are_not_there_say_what_to_do(source, message, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(InputError, match=message):
        DETECTORS["ssd"](init_from=source).load_start_weights()


def test_heads_of_a_detector_over_another_backbone_are_no_start(tmp_path):
    save(DETECTORS["ssd"](), tmp_path / "source.ckpt")
    content = torch.load(tmp_path / "source.ckpt", weights_only=True)
    content["state_dict"] = {name: tensor for name, tensor in content["state_dict"].items() if ".backbone." not in name}
    torch.save(content, tmp_path / "source.ckpt")
    with pytest.raises(
        InputError, match=r"Expected a detector over this backbone in .*source\.ckpt but none of its tensors fits the backbone"
    ):
        DETECTORS["ssd"](init_from=str(tmp_path / "source.ckpt")).load_start_weights()


def test_torchvisions_detector_with_other_anchors_gives_its_backbone_all_the_same(tmp_path, log):
    torch.manual_seed(3)
    reference = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    torch.save(reference.state_dict(), tmp_path / "retinanet.pth")
    sizes = [[size, int(size * 1.3)] for size in (32, 64, 128, 256, 512)]
    detector = RetinaNet(ANIMALS, anchor_sizes=sizes, init_from=str(tmp_path / "retinanet.pth"))
    detector.load_start_weights()
    assert torch.equal(detector.backbone.body.conv1.weight, reference.backbone.body.conv1.weight)
    assert any("did not take" in line and "bbox_reg" in line for line in log)


def test_files_of_one_name_at_two_addresses_are_two(tmp_path, monkeypatch):
    fetched = []
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda url, path, **_: fetched.append(url) or torch.save({"url": url}, path))
    for url in ("http://a/best.ckpt", "http://b/best.ckpt", "http://a/best.ckpt", "http://c/net-0123abcd.pth", "http://d/net-0123abcd.pth"):
        found = weights.read_file(url, "weights")["url"]
        assert found == url or url == "http://d/net-0123abcd.pth"  # the name says that it has the same in it
    assert fetched == ["http://a/best.ckpt", "http://b/best.ckpt", "http://c/net-0123abcd.pth"]
    (tmp_path / "one two").mkdir()
    for value in (1, 2):  # a file on this machine is read where it is
        torch.save({"value": value}, tmp_path / "one two" / "best.ckpt")
        assert weights.read_file((tmp_path / "one two" / "best.ckpt").as_uri(), "weights") == {"value": value}


def test_outputs_that_no_number_of_classes_divides_start_afresh():
    found, reason = weights.select_classes(torch.zeros(87, 2), torch.zeros(16, 2), ANIMALS, ["-"] * 21, ["__background__", *ANIMALS], 1)
    assert found is None
    assert "another number of outputs" in reason
