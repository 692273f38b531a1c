"""One of our own networks starts from what another has learned: on other data, other sizes of image."""

from pathlib import Path

from timm.layers import resample_abs_pos_embed
from torch import nn

from vitlab.models.positions import LearnablePositions
from vitlab.models.pretrained import Loaded, Weights, load_pretrained


def start_from(net: nn.Module, path: Path) -> Loaded:
    """Fill ``net`` from a run folder or a file of weights; what is called ``…head`` may have other classes.

    Learned positions are resized to another grid, bicubically (Dosovitskiy et al. 2021, section 3.2), and a
    first convolution for three channels to another number.

    Raises:
        UserError: there are no weights, or anything else is missing, left over or of another shape.
    """

    def convert(weights: Weights, size: tuple[int, int] | None) -> Weights:
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
        images=None,
        fetched=None,
    )
