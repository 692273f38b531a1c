"""One of our own networks starts from what another has learned: on other data, other sizes of image."""

from pathlib import Path

from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import nn

from vitlab.models.positions import LearnablePositions
from vitlab.models.pretrained import Loaded, Weights, fit_channels, load_pretrained
from vitlab.models.tokenizers import PatchEmbedding

PATCHES = "tokenizer.projection.linear.weight"  # (dim, channels * down * across), a flattened kernel


def load_initial_weights(net: nn.Module, path: Path) -> Loaded:
    """Fill ``net`` from a run folder or a file of weights; what is called ``…head`` may have other classes.

    Learned positions are resized to another grid, bicubically (Dosovitskiy et al. 2021, section 3.2), patches
    to another size, so that an enlarged patch gives the same token (Beyer et al. 2023, "FlexiViT", section
    3.4), and a first convolution for three channels, or patches of them, to another number. Weights that do
    not fit even so: a UserError.
    """

    def convert(weights: Weights, size: tuple[int, int] | None) -> Weights:
        weights = _fit_patches(net, weights)
        position, table = getattr(net, "position", None), weights.get("position.table")
        if table is None or not isinstance(position, LearnablePositions):
            return weights
        tokens = table.shape[1] - position.prefix
        # The grid is not on record. It had the image's proportions, or was a square, as nearly all are.
        height, width = size or (1, 1)
        down = max(1, round((tokens * height / width) ** 0.5))
        across = tokens // down
        if down * across != tokens or (down, across) == position.grid:
            return weights
        resized = resample_abs_pos_embed(table, [*position.grid], [down, across], position.prefix)
        return weights | {"position.table": resized}  # (1, prefix + N, dim)

    convolutions = [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d)]
    return load_pretrained(
        net,
        path,
        convert=convert,
        heads=[name for name, _ in net.named_children() if name.endswith("head")],
        stems=convolutions[:1],
    )


def _fit_patches(net: nn.Module, weights: Weights) -> Weights:
    tokenizer, old = getattr(net, "tokenizer", None), weights.get(PATCHES)
    # Of shifted patches, a subclass, no shape says what they were.
    if old is None or type(tokenizer) is not PatchEmbedding:
        return weights
    needed, values = tokenizer.projection.linear.in_features, old.shape[1]
    if values == needed:
        return weights
    own = needed // (tokenizer.patch[0] * tokenizer.patch[1])  # channels
    # What a patch was is not on record, but its number of values allows one square patch.
    for channels in (own, 3, 1):
        side = round((values / channels) ** 0.5)
        if channels * side * side == values:
            kernel = fit_channels(old.unflatten(1, (channels, side, side)), own)  # (dim, own, side, side)
            return weights | {PATCHES: resample_patch_embed(kernel, [*tokenizer.patch]).flatten(1)}
    return weights
