"""Where the tokens of a network look: the weights of its attention, whichever kernel computes them."""

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitlab.core.errors import UserError

# One thread at a time puts its own functions in the place of torch's.
_WATCHING = threading.Lock()


@dataclass(frozen=True)
class TokenLayout:
    """How the tokens of a transformer lie: learnable ones first, then the patches of the image, row by row.

    Attributes:
        grid: patches (down, across).
        prefix: tokens before those of the image.
        read: how many of these the prediction is read from, such as 1 for a class token; 0: from the patches.
        blocks: in order.
        attentions: of the blocks, one each.
        norms: what comes before each attention, ``(B, prefix + N, dim)``.
        positions: those that are learned, ``(1, N, dim)`` or with the prefix before them; None without any.
    """

    grid: tuple[int, int]
    prefix: int
    read: int
    blocks: Sequence[nn.Module]
    attentions: Sequence[nn.Module]
    norms: Sequence[nn.Module]
    positions: nn.Parameter | None

    @property
    def num_tokens(self) -> int:
        """All of them."""
        return self.prefix + self.grid[0] * self.grid[1]

    def row(self, weights: Tensor) -> Tensor:
        """Return what the prediction's tokens see of the patches, their mean: ``(…, N, N) -> (…, h, w)``."""
        queries = weights[..., : self.read, :] if self.read else weights[..., self.prefix :, :]
        return queries.mean(-2)[..., self.prefix :].unflatten(-1, self.grid)

    def patches(self, tokens: Tensor) -> Tensor:
        """Return the patches of tokens as an image: ``(B, prefix + N, dim) -> (B, dim, h, w)``."""
        return tokens[:, self.prefix :].transpose(1, 2).unflatten(-1, self.grid)


def token_layout(net: nn.Module) -> TokenLayout | None:
    """Return how the tokens of ``net`` lie; None where all tokens do not attend to all (CNNs, windows)."""
    describe = getattr(net, "token_layout", None)
    return describe() if describe else None


def eager_copy(net: nn.Module) -> nn.Module:
    """Return a float32 copy of ``net`` in eval mode, not compiled: a compiled network ignores new hooks."""
    copied = copy.deepcopy(net).float().eval()
    for module in copied.modules():
        if hasattr(module, "fused_attn"):  # timm's switch, which the environment can turn off
            setattr(module, "fused_attn", True)  # noqa: B010  (mypy takes any attribute for a tensor)
    return copied


@contextmanager
def watch(
    on_attention: Callable[[Tensor, Tensor], object], on_gelu: Callable[[Tensor], object] | None = None
) -> Iterator[None]:
    """Show what is computed inside the networks that run meanwhile, block after block.

    Every library calls the same two functions of torch, and neither keeps what it had inside: here they are
    written out.

    Args:
        on_attention: called with the scores Q Kᵀ · scale, masked, and their softmax, ``(B, heads, N, M)``.
        on_gelu: called with the output of a GELU.
    """

    def attend(
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **_: Any,
    ) -> Tensor:
        scores = queries @ keys.transpose(-2, -1) * (scale or queries.shape[-1] ** -0.5)
        if attn_mask is not None:
            hides = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, -torch.inf) if hides else scores + attn_mask
        weights = scores.softmax(-1)
        on_attention(scores, weights)
        return weights @ values

    def gelu(values: Tensor, approximate: str = "none") -> Tensor:
        activated = plain_gelu(values, approximate=approximate)
        if on_gelu:
            on_gelu(activated)
        return activated

    plain_gelu, fast = F.gelu, torch.backends.mha.get_fastpath_enabled()
    with _WATCHING, patch.multiple(F, scaled_dot_product_attention=attend, gelu=gelu):
        torch.backends.mha.set_fastpath_enabled(False)  # MultiheadAttention's, which calls neither
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)


def record_attention(net: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the logits ``(B, K)`` of images, and the attention weights of every block.

    The weights are softmax(Q Kᵀ · scale) as the network uses them, ``(B, heads, N, N)``, in autograd's
    graph; ``(B, heads, N, M)`` where keys are mixed, see `weights_over_tokens`.

    Args:
        net: an `eager_copy`.
        images: ``(B, C, H, W)``, normalised.

    Raises:
        UserError: the network is no transformer whose tokens all attend to each other.
    """
    layout = token_layout(net)
    recorded: list[Tensor] = []
    with watch(lambda scores, weights: recorded.append(weights)):
        logits = net(images)
    depth = len(layout.blocks) if layout else 0
    # Attention that pools comes after the blocks.
    if layout is None or len(recorded) < depth or recorded[0].shape[-2] != layout.num_tokens:
        raise UserError(f"{why_no_attention(net)}.")
    return logits, recorded[:depth]


def weights_over_tokens(attention: nn.Module, weights: Tensor) -> Tensor:
    """Return recorded weights as weights over the tokens, ``(B, heads, N, N)``, in rows that sum to one.

    They are so already but for Linformer's, which are over M mixtures of the tokens: each is divided over the
    tokens by the magnitudes of its projection's weights, which can be negative.
    """
    over_tokens: Callable[[Tensor], Tensor] | None = getattr(attention, "weights_over_tokens", None)
    return over_tokens(weights) if over_tokens else weights


def why_no_attention(net: nn.Module) -> str:
    """Return what to say of a network without attention of all tokens to all."""
    return (
        f"{type(getattr(net, 'net', net)).__name__} has no attention of all tokens to all, which attention "
        "and rollout need: choose gradcam, integrated_gradients or occlusion"
    )
