"""Data sets as uint8 images, and the batches made of them, in memory or streamed.

In the order of use: ``datasets`` (one of ``cifar``, ``image_folder``, ``shapes``) → ``decode`` → ``cache`` →
``reader`` → ``loader`` → ``datamodule``. Building a data set needs no torch; the last three are imported only
when a run has passed its checks.
"""
