"""Data sets as uint8 arrays (torch-free), and the in-memory batches made of them.

``sources`` is the torch-free half: what is there, how many, which classes, and the decoding.
``loader``, ``preprocess`` and ``datamodule`` need torch and are imported only when a run has passed
its checks.
"""
