"""Randomness as a function of the place in the run, so that a resumed run repeats it."""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """Mix integers and names into a 63-bit seed.

    The streams of neighbouring places (seed 0 epoch 1, seed 1 epoch 0) must not be related, so the parts are
    hashed and not added. Names separate the streams that share a place, such as ``"order"`` and
    ``"augment"``.
    """
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
