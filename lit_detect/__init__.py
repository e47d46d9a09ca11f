"""Train, evaluate and compare object detectors: SSD and Faster R-CNN and their relatives, on Lightning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

NAMES = {  # what the package gives, by the modules that have it; a module is imported when one of its names is first asked for
    "boxes": ["Anchors"],
    "callbacks": ["ResultsTable"],
    "data.annotated": ["AnnotatedImages"],
    "data.coco": ["COCODetection"],
    "data.colours": ["RandomPhotometricDistort"],
    "data.datamodule": ["DetectionDataModule"],
    "data.dataset": ["Concatenation", "DetectionDataset"],
    "data.digits": ["DigitsCOCO", "DigitsVOC"],
    "data.folder": ["ImageFolder"],
    "data.transforms": ["RandomIoUCrop", "RandomZoomOut"],
    "data.video": ["Video"],
    "data.voc": ["VOCDetection"],
    "data.windows": ["LargeScaleJitter", "RandomResizedZoom", "RandomShortestSize", "WindowTransform"],
    "data.yolo": ["YOLODetection"],
    "detections": ["PostProcess"],
    "detector": ["Detector"],
    "errors": ["InputError"],
    "finders": ["FindBatchSize", "FindLearningRate"],
    "losses": ["BoxLoss", "Criterion", "FocalLoss", "HardNegativeMining", "IoULoss", "SmoothL1", "YOLOBoxLoss", "YOLOLoss"],
    "metrics": ["COCOMeanAveragePrecision", "DetectionMetric", "VOCMeanAveragePrecision"],
    "models.backbones": ["Backbone", "TimmBackbone", "TorchvisionBackbone"],
    "models.darknet": ["Darknet53"],
    "models.dssd": ["AtrousResNet", "DSSD"],
    "models.faster_rcnn": ["FasterRCNN"],
    "models.fcos": ["FCOS", "FCOSLoss"],
    "models.retinanet": ["RetinaNet"],
    "models.rfcn": ["RFCN"],
    "models.ssd": ["SSD", "SSDLite"],
    "models.vgg": ["VGG16"],
    "models.yolo": ["YOLOv3"],
    "pictures": ["DetectionPictures"],
    "predictions": ["PredictionWriter", "write_predictions"],
    "schedules": ["OneCycle"],
    "tiles": ["Tiled", "Tiles"],
    "visualize": ["draw_against_targets", "draw_detections"],
}
HOMES = {name: f"lit_detect.{module}" for module, names in NAMES.items() for name in names}

if TYPE_CHECKING:  # the same, for editors and type checkers
    from lit_detect.boxes import Anchors as Anchors
    from lit_detect.callbacks import ResultsTable as ResultsTable
    from lit_detect.data.annotated import AnnotatedImages as AnnotatedImages
    from lit_detect.data.coco import COCODetection as COCODetection
    from lit_detect.data.colours import RandomPhotometricDistort as RandomPhotometricDistort
    from lit_detect.data.datamodule import DetectionDataModule as DetectionDataModule
    from lit_detect.data.dataset import Concatenation as Concatenation
    from lit_detect.data.dataset import DetectionDataset as DetectionDataset
    from lit_detect.data.digits import DigitsCOCO as DigitsCOCO
    from lit_detect.data.digits import DigitsVOC as DigitsVOC
    from lit_detect.data.folder import ImageFolder as ImageFolder
    from lit_detect.data.transforms import RandomIoUCrop as RandomIoUCrop
    from lit_detect.data.transforms import RandomZoomOut as RandomZoomOut
    from lit_detect.data.video import Video as Video
    from lit_detect.data.voc import VOCDetection as VOCDetection
    from lit_detect.data.windows import LargeScaleJitter as LargeScaleJitter
    from lit_detect.data.windows import RandomResizedZoom as RandomResizedZoom
    from lit_detect.data.windows import RandomShortestSize as RandomShortestSize
    from lit_detect.data.windows import WindowTransform as WindowTransform
    from lit_detect.data.yolo import YOLODetection as YOLODetection
    from lit_detect.detections import PostProcess as PostProcess
    from lit_detect.detector import Detector as Detector
    from lit_detect.errors import InputError as InputError
    from lit_detect.finders import FindBatchSize as FindBatchSize
    from lit_detect.finders import FindLearningRate as FindLearningRate
    from lit_detect.losses import BoxLoss as BoxLoss
    from lit_detect.losses import Criterion as Criterion
    from lit_detect.losses import FocalLoss as FocalLoss
    from lit_detect.losses import HardNegativeMining as HardNegativeMining
    from lit_detect.losses import IoULoss as IoULoss
    from lit_detect.losses import SmoothL1 as SmoothL1
    from lit_detect.losses import YOLOBoxLoss as YOLOBoxLoss
    from lit_detect.losses import YOLOLoss as YOLOLoss
    from lit_detect.metrics import COCOMeanAveragePrecision as COCOMeanAveragePrecision
    from lit_detect.metrics import DetectionMetric as DetectionMetric
    from lit_detect.metrics import VOCMeanAveragePrecision as VOCMeanAveragePrecision
    from lit_detect.models.backbones import Backbone as Backbone
    from lit_detect.models.backbones import TimmBackbone as TimmBackbone
    from lit_detect.models.backbones import TorchvisionBackbone as TorchvisionBackbone
    from lit_detect.models.darknet import Darknet53 as Darknet53
    from lit_detect.models.dssd import DSSD as DSSD
    from lit_detect.models.dssd import AtrousResNet as AtrousResNet
    from lit_detect.models.faster_rcnn import FasterRCNN as FasterRCNN
    from lit_detect.models.fcos import FCOS as FCOS
    from lit_detect.models.fcos import FCOSLoss as FCOSLoss
    from lit_detect.models.retinanet import RetinaNet as RetinaNet
    from lit_detect.models.rfcn import RFCN as RFCN
    from lit_detect.models.ssd import SSD as SSD
    from lit_detect.models.ssd import SSDLite as SSDLite
    from lit_detect.models.vgg import VGG16 as VGG16
    from lit_detect.models.yolo import YOLOv3 as YOLOv3
    from lit_detect.pictures import DetectionPictures as DetectionPictures
    from lit_detect.predictions import PredictionWriter as PredictionWriter
    from lit_detect.predictions import write_predictions as write_predictions
    from lit_detect.schedules import OneCycle as OneCycle
    from lit_detect.tiles import Tiled as Tiled
    from lit_detect.tiles import Tiles as Tiles
    from lit_detect.visualize import draw_against_targets as draw_against_targets
    from lit_detect.visualize import draw_detections as draw_detections
else:
    __all__ = ["__version__", *HOMES]

    def __getattr__(name: str) -> Any:
        if name not in HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if name in ("Detector", "DetectionDataModule"):  # YAML gives their kinds and parts by short names of classes that are imported
            for module in HOMES.values():
                import_module(module)
        value = globals()[name] = getattr(import_module(HOMES[name]), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
