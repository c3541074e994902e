"""Data sets as Lightning data modules: one file per family of data sets."""

from zoo.data.base import DataModule, SampleKey
from zoo.data.images import Augmentation, Digits, HuggingFaceImages, ImageDataModule, ImageFolder

__all__ = [
    "Augmentation",
    "DataModule",
    "Digits",
    "HuggingFaceImages",
    "ImageDataModule",
    "ImageFolder",
    "SampleKey",
]
