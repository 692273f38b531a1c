"""Augmentation on whole batches, on the device that holds them.

Every augmentation is a module ``(images, targets, generator) → (images, targets)``: images (B, C,
H, W) uint8, or float from 0 to 1, and targets float (B, K), one-hot or soft. The generator is a CPU
generator whatever the device, and the only source of chance: the draws are a few numbers an image,
every device gets the same ones, and nothing has to be read back from a GPU to know them.
"""

from vitlab.augment.base import Augmentation, Compose, ImageOp

__all__ = ["Augmentation", "Compose", "ImageOp"]
