"""Augmentation on whole batches, on the device that holds them.

Every augmentation is a module ``(images, targets, generator) → (images, targets)``: images (B, C,
H, W) uint8 or float, targets float (B, K) one-hot or soft, the generator on their device and the
only source of chance.
"""

from vitlab.augment.base import Augmentation, Compose, ImageOp

__all__ = ["Augmentation", "Compose", "ImageOp"]
