"""What does not fit inside a model: sizes, heads, positions, tokenizers, weights."""

from pathlib import Path
from typing import Any

from vitlab.config.cross_checks.reader import Conflicts, Reader, two
from vitlab.config.types import alternatives, show


def is_distilled(read: Reader) -> bool:
    """Whether the model has a distillation token, and a head for it."""
    return str(read("model._target_")).endswith(".DistilledViT")


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def model_conflicts(read: Reader) -> Conflicts:
    """Yield (key, sentence) for what does not fit inside the model."""
    patch, image = read("model.patch_size"), read("model.image_size")
    if patch is not None and image is not None:
        (height, width), (down, across) = two(image), two(patch)
        if height % down or width % across:
            common = [side for side in _divisors(height) if width % side == 0]
            yield (
                "model.patch_size",
                f"model.patch_size={show(patch)} does not divide the image of {height} x {width} "
                f"(model.image_size): choose {alternatives(common)}",
            )
    dim, heads = read("model.dim"), read("model.heads")
    if dim and heads and read("model.dim_head") is None and dim % heads:
        yield (
            "model.heads",
            f"model.heads={heads} does not divide model.dim={dim}: choose "
            f"{alternatives(_divisors(dim))}, or set model.dim_head",
        )
    ratio = read("model.mlp_ratio")
    if dim and ratio and int(dim * ratio) < 1:
        yield (
            "model.mlp_ratio",
            f"model.mlp_ratio={show(ratio)} of model.dim={dim} leaves the MLP no unit: choose "
            f"{1 / dim:g} or more",
        )
    if dim and dim % 4 and read("model.position") == "sincos":
        yield (
            "model.position",
            f"model.position=sincos needs a model.dim divisible by 4, found {dim}: choose "
            f"model.dim={dim + 4 - dim % 4} or model.position=learnable",
        )
    yield from _attention(read)
    if dim and read.is_null("model.drop_path"):
        yield (
            "model.drop_path",
            "model.drop_path=null: expected a number from 0 and below 1, found null; 0 is none",
        )
    if read("model.pretrained") and read("model.checkpoint_path"):
        yield (
            "model.checkpoint_path",
            "model.pretrained=true and model.checkpoint_path both give the weights: keep one, set "
            "model.pretrained=false or model.checkpoint_path=null",
        )
    elif (path := read("model.checkpoint_path")) and not Path(path).expanduser().exists():
        yield (
            "model.checkpoint_path",
            f"model.checkpoint_path={path}: there is no such file or folder (looked for "
            f"{Path(path).expanduser().absolute()})",
        )
    check = TOKENIZERS.get(str(read("model.tokenizer._target_")).rpartition(".")[2])
    if check and patch is not None:
        yield from check(read, patch)


def _attention(read: Reader) -> Conflicts:
    """Check positions, first weights and attention against the sizes of heads and the number of tokens."""
    dim, heads, position = read("model.dim"), read("model.heads"), read("model.position")
    width = read("model.dim_head") or (dim and heads and dim // heads)
    if width and position == "rotary" and width % 4:
        yield (
            "model.position",
            "model.position=rotary turns pairs along two axes and needs heads of a width divisible by 4, "
            f"found {width} (model.dim_head, or model.dim / model.heads): set "
            f"model.dim_head={width + 4 - width % 4}",
        )
    if dim and width and read("model.init") == "mimetic":
        if dim % 4 and position == "learnable":
            yield (
                "model.init",
                "model.init=mimetic starts positions as sines and cosines and needs a model.dim divisible "
                f"by 4, found {dim}: choose model.dim={dim + 4 - dim % 4}",
            )
        if heads * width > dim:
            yield (
                "model.init",
                f"model.init=mimetic factors matrices of model.dim={dim} and cannot fill heads of "
                f"{heads} x {width} (model.heads x model.dim_head): set model.dim_head=null or "
                "model.init=xavier",
            )
    kind = str(read("model.attention._target_")).rpartition(".")[2]
    if kind == "LinformerAttention" and position == "rotary":
        yield (
            "model.position",
            "model/attention=linformer mixes keys of all places, so model.position=rotary cannot turn them "
            "by theirs: choose model.position=learnable or sincos, or model/attention=softmax",
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
            f"model.attention.projection_length={length} saves nothing over {tokens} tokens (of "
            f"model.image_size, patch_size and pool): choose less than {tokens}, or model/attention=softmax",
        )
    if kind == "LocalityAttention" and tokens == 1:
        yield (
            "model.patch_size",
            "model/attention=lsa hides each token from itself, and here there is one token: choose a smaller "
            "model.patch_size, or model.pool=cls",
        )


def _conv_stem(read: Reader, patch: Any) -> Conflicts:
    dim, convs = read("model.dim"), read("model.tokenizer.num_convs")
    if dim is None or convs is None:
        return
    if any(side & (side - 1) for side in two(patch)):
        yield (
            "model.patch_size",
            f"model.patch_size={show(patch)} is no power of two, and a convolutional stem can only "
            "halve the image: choose 1, 2, 4, 8 or 16",
        )
        return
    full_size = read("model.tokenizer.full_size_convs") or 0
    needed = max(side.bit_length() - 1 for side in two(patch)) + full_size
    if needed > convs:
        yield (
            "model.tokenizer.num_convs",
            f"model.patch_size={show(patch)} needs {needed - full_size} halvings after {full_size} full-size "
            f"convolutions, and the stem has model.tokenizer.num_convs={convs}: set "
            f"model.tokenizer.num_convs={needed}",
        )
    elif dim % 2 ** (convs - 1):
        yield (
            "model.dim",
            f"model.dim={dim} cannot be halved {convs - 1} times, as the widths of "
            f"model.tokenizer.num_convs={convs} convolutions need: choose a multiple of "
            f"{2 ** (convs - 1)}",
        )


def _conv_pool(read: Reader, patch: Any) -> Conflicts:
    layers = read("model.tokenizer.num_layers")
    if layers is not None and two(patch) != (2**layers, 2**layers):
        fit = [n for n in range(1, 9) if two(patch) == (2**n, 2**n)]
        yield (
            "model.patch_size",
            f"model.patch_size={show(patch)} is not what model.tokenizer.num_layers={layers} gives, as each "
            f"halves the image: set model.patch_size={2**layers}"
            + (f", or model.tokenizer.num_layers={fit[0]}" if fit else ""),
        )
    if read("model.patch_norm"):
        yield (
            "model.patch_norm",
            "model.patch_norm=true needs a projection to normalise around, and model/tokenizer=cct has none: "
            "set model.patch_norm=false",
        )


def _shifted_patches(read: Reader, patch: Any) -> Conflicts:
    if min(two(patch)) < 2:
        yield (
            "model.patch_size",
            f"model.patch_size={show(patch)} has no half to shift by, as model/tokenizer=spt does: choose 2 "
            "or more",
        )


TOKENIZERS = {"ConvStem": _conv_stem, "ConvPool": _conv_pool, "ShiftedPatches": _shifted_patches}
