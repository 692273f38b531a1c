"""Data sets as uint8 images (torch-free), and the batches made of them, in memory or streamed.

``sources`` is the torch-free half: what is there, how many, which classes, the decoding and its cache.
``feed``, ``loader``, ``preprocess`` and ``datamodule`` need torch and are imported only when a run has
passed its checks.
"""
