"""Augmentation on whole batches, on the device that holds them: see `Augmentation`."""

from vitlab.augment.base import Augmentation, Compose, ImageOp

__all__ = ["Augmentation", "Compose", "ImageOp"]
