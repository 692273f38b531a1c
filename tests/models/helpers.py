"""Networks for tests as a config describes them: a key that is added to the YAML needs no edit here."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from vitlab.config import compose, to_plain
from vitlab.models.attention import Attention, LinformerAttention
from vitlab.training.instantiate import build_net

SMALL: dict[str, Any] = {
    "image_size": 16,
    "dim": 32,
    "depth": 2,
    "heads": 2,
    "mlp_ratio": 2.0,
    "pool": "cls",
}

ATTENTION: dict[str, Any] = {
    "dim": 24,
    "heads": 3,
    "dim_head": None,
    "qkv_bias": False,
    "attn_dropout": 0.0,
    "drop_key": 0.0,
    "dropout": 0.0,
    "num_tokens": 10,
    "rotate": None,
}


@cache
def model_node(*overrides: str) -> dict[str, Any]:
    """Return ``cfg.model`` under Hydra overrides, resolved; do not change it."""
    return to_plain(compose(overrides))["model"]


def build(*overrides: str, **changes: Any) -> nn.Module:
    """Build the network of a config, with ``changes`` in its node."""
    torch.manual_seed(0)
    return build_net({"model": {**model_node(*overrides), **changes}})


def small_vit(*overrides: str, **changes: Any) -> Any:
    """Build a ViT of two blocks on images of 16x16; ``overrides`` such as "model/tokenizer=cct"."""
    return build("model=vit_tiny", *overrides, **{**SMALL, **changes})


def make_attention(kind: Callable[..., Attention], **changes: Any) -> Attention:
    torch.manual_seed(0)
    own: dict[Any, dict[str, Any]] = {
        Attention: {"qk_norm": False},
        LinformerAttention: {"projection_length": 4},
    }
    return kind(**{**ATTENTION, **own.get(kind, {}), **changes})


def projected(attention: Attention, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values ``(heads, N, head_dim)`` of one image's tokens ``(N, dim)``, head by head."""
    inner = attention.heads * attention.dim_head
    q, k, v = (tokens @ attention.qkv.weight[i * inner : (i + 1) * inner].T for i in range(3))
    return tuple(torch.stack(x.split(attention.dim_head, dim=1)) for x in (q, k, v))


def some_tokens(batch: int = 2, num_tokens: int = 10, dim: int = 24) -> Tensor:
    return torch.randn(batch, num_tokens, dim, generator=torch.Generator().manual_seed(1))
