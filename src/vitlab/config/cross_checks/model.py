"""What does not fit inside a model: sizes, heads, positions, tokenizers, weights."""

from pathlib import Path
from typing import Any

from vitlab.config.cross_checks.config_reader import ConfigReader, Conflicts, two
from vitlab.config.types import alternatives


def is_distilled(read: ConfigReader) -> bool:
    """Whether the model has a distillation token, and a head for it."""
    return read.class_name("model") == "DistilledViT"


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def model_conflicts(read: ConfigReader) -> Conflicts:
    """Yield what does not fit inside the model."""
    patch, image = read("model.patch_size"), read("model.image_size")
    if patch is not None and image is not None:
        (height, width), (down, across) = two(image), two(patch)
        if height % down or width % across:
            fit = alternatives(side for side in _divisors(height) if width % side == 0)
            yield "model.patch_size", f"does not divide model.image_size, {height} x {width}: choose {fit}"
    dim, heads = read("model.dim"), read("model.heads")
    if dim and heads and read("model.dim_head") is None and dim % heads:
        choose = alternatives(_divisors(dim))
        yield "model.heads", f"does not divide model.dim={dim}: choose {choose}, or set model.dim_head"
    ratio = read("model.mlp_ratio")
    if dim and ratio and int(dim * ratio) < 1:
        yield "model.mlp_ratio", f"of model.dim={dim} leaves the MLP no unit: choose {1 / dim:g} or more"
    if dim and dim % 4 and read("model.position") == "sincos":
        yield (
            "model.position",
            f"needs a model.dim divisible by 4, found {dim}: choose model.dim={dim + 4 - dim % 4} or "
            "model.position=learnable",
        )
    yield from _attention(read)
    if dim and read.is_null("model.drop_path"):
        yield "model.drop_path", ": expected a number from 0 and below 1, found null; 0 is none"
    if read("model.pretrained") and read("model.checkpoint_path"):
        yield "model.pretrained", "and model.checkpoint_path both give the weights: set one to false or null"
    elif path := read("model.checkpoint_path"):
        file = Path(path).expanduser()
        if not file.exists():
            yield "model.checkpoint_path", f": there is no such file or folder (looked for {file.absolute()})"
    check = TOKENIZERS.get(read.class_name("model.tokenizer"))
    if check and patch is not None:
        yield from check(read, patch)


def _attention(read: ConfigReader) -> Conflicts:
    """Check positions, first weights and attention against the sizes of heads and the number of tokens."""
    dim, heads, position = read("model.dim"), read("model.heads"), read("model.position")
    width = read("model.dim_head") or (dim and heads and dim // heads)
    if width and position == "rotary" and width % 4:
        yield (
            "model.position",
            f"turns pairs along two axes and needs heads of a width divisible by 4, found {width} "
            f"(model.dim_head, or model.dim / model.heads): set model.dim_head={width + 4 - width % 4}",
        )
    if dim and width and read("model.init") == "mimetic":
        if dim % 4 and position == "learnable":
            yield (
                "model.init",
                f"starts positions as sines and cosines and needs a model.dim divisible by 4, found {dim}: "
                f"choose model.dim={dim + 4 - dim % 4}",
            )
        if heads * width > dim:
            yield (
                "model.init",
                f"factors matrices of model.dim={dim} and cannot fill heads of {heads} x {width} "
                "(model.heads x model.dim_head): set model.dim_head=null or model.init=xavier",
            )
    attention = read.class_name("model.attention")
    if attention == "LinformerAttention" and position == "rotary":
        yield (
            "model.position",
            "finds keys of all places mixed by model/attention=linformer, and cannot turn them by theirs: "
            "choose model.position=learnable or sincos, or model/attention=softmax",
        )
    patch, image = read("model.patch_size"), read("model.image_size")
    if patch is None or image is None:
        return
    (height, width), (down, across) = two(image), two(patch)
    tokens = (height // down) * (width // across) + (read("model.pool") == "cls") + is_distilled(read)
    length = read("model.attention.projection_length")
    if length and 0 < tokens <= length:
        yield (
            "model.attention.projection_length",
            f"saves nothing over {tokens} tokens (of model.image_size, patch_size and pool): choose less "
            f"than {tokens}, or model/attention=softmax",
        )
    if attention == "LocalityAttention" and tokens == 1:
        yield (
            "model.patch_size",
            "gives one token, which model/attention=lsa would hide from itself: choose a smaller "
            "model.patch_size, or model.pool=cls",
        )


def _conv_stem(read: ConfigReader, patch: Any) -> Conflicts:
    dim, convs = read("model.dim"), read("model.tokenizer.num_convs")
    if dim is None or convs is None:
        return
    if any(side & (side - 1) for side in two(patch)):
        yield "model.patch_size", "is no power of two, and a conv stem only halves: choose 1, 2, 4, 8 or 16"
        return
    full_size = read("model.tokenizer.full_size_convs") or 0
    halvings = max(side.bit_length() - 1 for side in two(patch))
    if halvings + full_size > convs:
        yield (
            "model.patch_size",
            f"needs {halvings} halvings after {full_size} full-size convolutions, and the stem has "
            f"model.tokenizer.num_convs={convs}: set model.tokenizer.num_convs={halvings + full_size}",
        )
    elif dim % 2 ** (convs - 1):
        yield (
            "model.dim",
            f"cannot be halved {convs - 1} times, as the widths of model.tokenizer.num_convs={convs} "
            f"convolutions need: choose a multiple of {2 ** (convs - 1)}",
        )


def _conv_pool(read: ConfigReader, patch: Any) -> Conflicts:
    layers = read("model.tokenizer.num_layers")
    if layers is not None and two(patch) != (2**layers, 2**layers):
        fit = [n for n in range(1, 9) if two(patch) == (2**n, 2**n)]
        yield (
            "model.patch_size",
            f"is not what model.tokenizer.num_layers={layers} gives, as each halves the image: set "
            f"model.patch_size={2**layers}" + (f", or model.tokenizer.num_layers={fit[0]}" if fit else ""),
        )
    if read("model.patch_norm"):
        yield "model.patch_norm", "needs a projection, and model/tokenizer=cct has none: set it to false"


def _conv_blocks(read: ConfigReader, patch: Any) -> Conflicts:
    if any(side & (side - 1) for side in two(patch)):
        yield "model.patch_size", "is no power of two, and conv blocks only halve: choose 2, 4, 8 or 16"
    if read("model.patch_norm"):
        yield "model.patch_norm", "needs a projection, and conv blocks have none: set it to false"


def _shifted_patches(read: ConfigReader, patch: Any) -> Conflicts:
    if min(two(patch)) < 2:
        yield "model.patch_size", "has no half to shift by, as model/tokenizer=spt does: choose 2 or more"


TOKENIZERS = {
    "ConvStem": _conv_stem,
    "ConvPool": _conv_pool,
    "ConvBlocks": _conv_blocks,
    "ShiftedPatches": _shifted_patches,
}
