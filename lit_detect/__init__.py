"""Train, evaluate and compare object detectors: SSD and Faster R-CNN and their relatives, on Lightning."""

from lit_detect.boxes import Anchors
from lit_detect.callbacks import PredictionWriter, ResultsTable
from lit_detect.data import (
    AnnotatedImages,
    COCODetection,
    Concatenation,
    DetectionDataModule,
    DetectionDataset,
    DigitsCOCO,
    DigitsVOC,
    ImageFolder,
    LargeScaleJitter,
    RandomIoUCrop,
    RandomPhotometricDistort,
    RandomResizedZoom,
    RandomShortestSize,
    RandomZoomOut,
    VOCDetection,
    WindowTransform,
    YOLODetection,
)
from lit_detect.detections import PostProcess
from lit_detect.detector import Detector, OneCycle
from lit_detect.errors import InputError
from lit_detect.losses import BoxLoss, Criterion, FocalLoss, HardNegativeMining, IoULoss, SmoothL1, YOLOBoxLoss, YOLOLoss
from lit_detect.metrics import COCOMeanAveragePrecision, DetectionMetric, VOCMeanAveragePrecision
from lit_detect.models.backbones import Backbone, TimmBackbone, TorchvisionBackbone
from lit_detect.models.darknet import Darknet53
from lit_detect.models.dssd import DSSD, AtrousResNet
from lit_detect.models.faster_rcnn import FasterRCNN
from lit_detect.models.fcos import FCOS, FCOSLoss
from lit_detect.models.retinanet import RetinaNet
from lit_detect.models.rfcn import RFCN
from lit_detect.models.ssd import SSD, SSDLite
from lit_detect.models.vgg import VGG16
from lit_detect.models.yolo import YOLOv3
from lit_detect.pictures import DetectionPictures
from lit_detect.visualize import draw_against_targets, draw_detections

__version__ = "0.1.0"

__all__ = [
    "DSSD",
    "FCOS",
    "RFCN",
    "SSD",
    "VGG16",
    "Anchors",
    "AnnotatedImages",
    "AtrousResNet",
    "Backbone",
    "BoxLoss",
    "COCODetection",
    "COCOMeanAveragePrecision",
    "Concatenation",
    "Criterion",
    "Darknet53",
    "DetectionDataModule",
    "DetectionDataset",
    "DetectionMetric",
    "DetectionPictures",
    "Detector",
    "DigitsCOCO",
    "DigitsVOC",
    "FCOSLoss",
    "FasterRCNN",
    "FocalLoss",
    "HardNegativeMining",
    "ImageFolder",
    "InputError",
    "IoULoss",
    "LargeScaleJitter",
    "OneCycle",
    "PostProcess",
    "PredictionWriter",
    "RandomIoUCrop",
    "RandomPhotometricDistort",
    "RandomResizedZoom",
    "RandomShortestSize",
    "RandomZoomOut",
    "ResultsTable",
    "RetinaNet",
    "SSDLite",
    "SmoothL1",
    "TimmBackbone",
    "TorchvisionBackbone",
    "VOCDetection",
    "VOCMeanAveragePrecision",
    "WindowTransform",
    "YOLOBoxLoss",
    "YOLODetection",
    "YOLOLoss",
    "YOLOv3",
    "__version__",
    "draw_against_targets",
    "draw_detections",
]
