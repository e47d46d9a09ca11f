"""Train, evaluate and compare object detectors: SSD and Faster R-CNN and their relatives, on Lightning."""

from lit_detect.boxes import Anchors
from lit_detect.callbacks import DetectionPictures, PredictionWriter, ResultsTable
from lit_detect.data import (
    COCODetection,
    Concatenation,
    DetectionDataModule,
    DetectionDataset,
    DigitsCOCO,
    DigitsVOC,
    ImageFolder,
    VOCDetection,
)
from lit_detect.detections import PostProcess
from lit_detect.detector import Detector, OneCycle
from lit_detect.errors import InputError
from lit_detect.losses import BoxLoss, Criterion, FocalLoss, HardNegativeMining, IoULoss, SmoothL1
from lit_detect.metrics import COCOMeanAveragePrecision
from lit_detect.models.backbones import VGG16, Backbone, TorchvisionBackbone
from lit_detect.models.faster_rcnn import FasterRCNN
from lit_detect.models.ssd import SSD, SSDLite
from lit_detect.visualize import draw_detections

__version__ = "0.1.0"

__all__ = [
    "SSD",
    "VGG16",
    "Anchors",
    "Backbone",
    "BoxLoss",
    "COCODetection",
    "COCOMeanAveragePrecision",
    "Concatenation",
    "Criterion",
    "DetectionDataModule",
    "DetectionDataset",
    "DetectionPictures",
    "Detector",
    "DigitsCOCO",
    "DigitsVOC",
    "FasterRCNN",
    "FocalLoss",
    "HardNegativeMining",
    "ImageFolder",
    "InputError",
    "IoULoss",
    "OneCycle",
    "PostProcess",
    "PredictionWriter",
    "ResultsTable",
    "SSDLite",
    "SmoothL1",
    "TorchvisionBackbone",
    "VOCDetection",
    "__version__",
    "draw_detections",
]
