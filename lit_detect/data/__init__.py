"""Data sets, and the data module that feeds them."""

from lit_detect.data.coco import COCODetection
from lit_detect.data.datamodule import DetectionDataModule
from lit_detect.data.dataset import Concatenation, DetectionDataset
from lit_detect.data.digits import DigitsCOCO, DigitsVOC
from lit_detect.data.folder import ImageFolder
from lit_detect.data.transforms import RandomIoUCrop, RandomZoomOut
from lit_detect.data.voc import VOCDetection

__all__ = [
    "COCODetection",
    "Concatenation",
    "DetectionDataModule",
    "DetectionDataset",
    "DigitsCOCO",
    "DigitsVOC",
    "ImageFolder",
    "RandomIoUCrop",
    "RandomZoomOut",
    "VOCDetection",
]
