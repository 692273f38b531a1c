"""Data sets as uint8 images, and the batches made of them, in memory or streamed.

In the order of use: ``datasets`` (one of ``cifar``, ``image_folder``, ``shapes``) → ``decode`` → ``cache`` →
``reader`` → ``loader`` → ``datamodule``. The first three need no torch; the others are imported only when a
run has passed its checks.
"""
