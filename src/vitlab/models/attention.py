"""Attention: how tokens mix. A kind is a subclass, injected from YAML: it says what meets in `attend`."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vitlab.models.layers import layer_norm, linear
from vitlab.models.positions import Rotate


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, dropout_p: float, mask: Tensor | None = None
) -> Tensor:
    """Return softmax(Q Kᵀ / √head_dim) V, ``(B, heads, N, head_dim)``.

    Keys and values are ``(B, heads, M, head_dim)``, and ``dropout_p`` is the rate of the attention weights.
    ``mask``, bool, broadcastable to ``(B, heads, N, M)``, says which keys a query sees: at least one.

    By torch's fused kernel, but for reduced precision on a CPU: there the flash kernel of torch 2.15 spends
    most of a training step on its few tokens, and the operations written out made the step of a ViT
    with 16, 64 and 256 tokens 2.6, 1.9 and 1.4 times as fast (compiled, bfloat16, one core with AMX).
    """
    written_out = queries.device.type == "cpu" and queries.dtype != torch.float32
    # Weights of N x M are not to fill the memory.
    if not written_out or queries.shape[-2] * keys.shape[-2] > 256**2:
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=dropout_p)
    scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-2, -1)  # (B, heads, N, M)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    # Autocast takes the softmax in float32.
    weights = F.dropout(scores.softmax(-1), dropout_p).to(values.dtype)
    return weights @ values


def drop_keys(queries: Tensor, keys: Tensor, rate: float, mask: Tensor | None = None) -> Tensor:
    """Draw a mask for `attend`, ``(B, heads, N, M)``: every query of every head loses keys at random.

    Source: "DropKey for Vision Transformer" (Li et al. 2023). What is left sums to one, where dropout of the
    weights leaves any sum. Where chance takes every key of a query, it loses none: the paper's code, which
    adds -1e12, makes such a row uniform, or has it look at keys that ``mask`` hides.
    """
    keep = torch.rand(*queries.shape[:-1], keys.shape[-2], device=queries.device) >= rate
    if mask is None:
        return keep | ~keep.any(-1, keepdim=True)
    return mask & (keep | ~(keep & mask).any(-1, keepdim=True))


class Attention(nn.Module):
    """Multi-head self-attention, ``(B, N, dim) -> (B, N, dim)`` (Dosovitskiy et al. 2021, appendix A).

    Args:
        attn_dropout: rate of the attention weights.
        drop_key: rate of `drop_keys` in training.
        dropout: rate of the output.
        rotate: turns queries and keys by their positions; None: nothing does.
        qk_norm: LayerNorm of each query and key over its head, with a scale that heads share and no bias, as
            in Flax's `normalize_qk`; "Scaling Vision Transformers to 22 Billion Parameters" (Dehghani et al.
            2023, section 2) has it against scores that grow until the loss diverges.
    """

    mask: Tensor | None  # which keys a query sees, (N, N)

    def __init__(
        self,
        *,
        dim: int,
        heads: int,
        dim_head: int | None,
        qkv_bias: bool,
        attn_dropout: float,
        drop_key: float,
        dropout: float,
        num_tokens: int,
        rotate: Rotate | None,
        qk_norm: bool,
    ) -> None:
        super().__init__()
        if dim_head is None and dim % heads:
            raise ValueError(f"{heads} heads do not divide dim {dim}")
        self.heads = heads
        self.dim_head = dim_head or dim // heads
        self.attn_dropout = attn_dropout
        self.drop_key = drop_key
        self.rotate = rotate
        inner = heads * self.dim_head
        self.qkv = linear(dim, 3 * inner, bias=qkv_bias, stacked=3)
        self.norm_queries, self.norm_keys = (
            layer_norm(self.dim_head, bias=False) if qk_norm else nn.Identity() for _ in range(2)
        )
        self.out = linear(inner, dim)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("mask", None, persistent=False)

    def queries_keys_values(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project tokens ``(B, N, dim)`` to three tensors ``(B, heads, N, head_dim)``."""
        qkv = rearrange(
            self.qkv(tokens), "b n (three heads d) -> three b heads n d", three=3, heads=self.heads
        )  # (3, B, heads, N, head_dim)
        queries, keys, values = qkv.unbind(0)
        # Autocast leaves a LayerNorm in float32.
        queries = self.norm_queries(queries).to(values.dtype)
        keys = self.norm_keys(keys).to(values.dtype)
        if self.rotate is not None:
            queries, keys = self.rotate(queries), self.rotate(keys)
        return queries, keys, values

    def forward(self, tokens: Tensor) -> Tensor:
        queries, keys, values = self.queries_keys_values(tokens)
        mask = self.mask
        if self.training and self.drop_key > 0:
            mask = drop_keys(queries, keys, self.drop_key, mask)  # (B, heads, N, N)
        dropout_p = self.attn_dropout if self.training else 0.0
        mixed = attend(queries, keys, values, dropout_p, mask)  # (B, heads, N, head_dim)
        merged = rearrange(mixed, "b heads n d -> b n (heads d)")  # (B, N, heads * head_dim)
        return self.dropout(self.out(merged))  # (B, N, dim)


def is_transformer(net: nn.Module) -> bool:
    """Whether tokens of ``net`` attend to each other, be it ours, timm's or torchvision's.

    The libraries share no base class for attention, but a habit: ``Attention``, ``WindowAttention``,
    ``MultiheadAttention`` … for that of tokens, and ``…Attn``, ``…Module`` for gates of a CNN's channels.
    """
    return any(type(module).__name__.endswith("Attention") for module in net.modules())


class LocalityAttention(Attention):
    """Locality self-attention: no token looks at itself, and each head learns how sharply it looks.

    Source: "Vision Transformer for Small-Size Datasets" (Lee et al. 2021, section on LSA). What is learned
    is the inverse temperature, one a head, as in the authors' code, from the usual 1 / √head_dim. It takes no
    ``qk_norm``, and raises a ValueError where there is one token alone, which would see nothing.
    """

    def __init__(self, *, num_tokens: int, **options: Any) -> None:
        if num_tokens < 2:
            raise ValueError("one token alone would see nothing")
        super().__init__(num_tokens=num_tokens, qk_norm=False, **options)
        self.inverse_temperature = nn.Parameter(torch.full((self.heads,), self.dim_head**-0.5))
        self.mask = ~torch.eye(num_tokens, dtype=torch.bool)  # (N, N)

    def queries_keys_values(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys, values = super().queries_keys_values(tokens)
        # (heads, 1, 1), over what `attend` divides by
        sharpness = self.inverse_temperature.view(-1, 1, 1) * self.dim_head**0.5
        return (queries * sharpness).to(queries.dtype), keys, values


class LinformerAttention(Attention):
    """Attention to ``projection_length`` learned mixtures of the tokens: its cost is linear in the tokens.

    Source: "Linformer: Self-Attention with Linear Complexity" (Wang et al. 2020), equation 7. Keys and values
    have a projection each (E and F), which the heads of a block share, section 4's "headwise sharing".
    A class token is mixed in like any other; ``drop_key`` drops mixtures. It takes no ``qk_norm``. As many
    mixtures as tokens, rotary positions, or another number of tokens than ``num_tokens``: a ValueError.
    """

    def __init__(
        self, *, projection_length: int, num_tokens: int, rotate: Rotate | None, **options: Any
    ) -> None:
        if rotate is not None:
            raise ValueError("keys that are mixed have no position to rotate by")
        if not 0 < projection_length < num_tokens:
            raise ValueError(f"projection_length {projection_length} of {num_tokens} tokens")
        super().__init__(num_tokens=num_tokens, rotate=None, qk_norm=False, **options)
        self.num_tokens = num_tokens
        self.project_keys = linear(num_tokens, projection_length, bias=False)
        self.project_values = linear(num_tokens, projection_length, bias=False)

    def queries_keys_values(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if tokens.shape[1] != self.num_tokens:
            raise ValueError(f"expected {self.num_tokens} tokens, found {tokens.shape[1]}")
        queries, keys, values = super().queries_keys_values(tokens)
        # (M, N) @ (B, heads, N, head_dim), for M = projection_length
        return queries, self.project_keys.weight @ keys, self.project_values.weight @ values

    def weights_over_tokens(self, weights: Tensor) -> Tensor:
        """Return attention over the tokens, ``(B, heads, N, M) -> (B, heads, N, N)``."""
        shares = self.project_values.weight.abs()  # (M, N)
        return weights @ (shares / shares.sum(-1, keepdim=True))
