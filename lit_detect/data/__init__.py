"""Data sets, and the data module that feeds them."""

import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for its newest version at import

from lit_detect.data.annotated import AnnotatedImages
from lit_detect.data.coco import COCODetection
from lit_detect.data.colours import RandomPhotometricDistort
from lit_detect.data.datamodule import DetectionDataModule
from lit_detect.data.dataset import Concatenation, DetectionDataset
from lit_detect.data.digits import DigitsCOCO, DigitsVOC
from lit_detect.data.folder import ImageFolder
from lit_detect.data.transforms import RandomIoUCrop, RandomZoomOut
from lit_detect.data.video import Video
from lit_detect.data.voc import VOCDetection
from lit_detect.data.windows import LargeScaleJitter, RandomResizedZoom, RandomShortestSize, WindowTransform
from lit_detect.data.yolo import YOLODetection

__all__ = [
    "AnnotatedImages",
    "COCODetection",
    "Concatenation",
    "DetectionDataModule",
    "DetectionDataset",
    "DigitsCOCO",
    "DigitsVOC",
    "ImageFolder",
    "LargeScaleJitter",
    "RandomIoUCrop",
    "RandomPhotometricDistort",
    "RandomResizedZoom",
    "RandomShortestSize",
    "RandomZoomOut",
    "VOCDetection",
    "Video",
    "WindowTransform",
    "YOLODetection",
]
