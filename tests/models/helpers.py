"""Networks for tests as a config describes them: a key that is added to the YAML needs no edit here."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
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

# What the constructors of other libraries' networks are given, but for the name.
LIBRARY: dict[str, Any] = {
    "pretrained": False,
    "checkpoint_path": None,
    "num_classes": 10,
    "image_size": 32,
    "channels": 3,
    "drop_path": None,
    "kwargs": {},
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
    sizes = {"dim": 24, "heads": 3, "dim_head": None, "num_tokens": 10}
    rest = {"qkv_bias": False, "attn_dropout": 0.0, "drop_key": 0.0, "dropout": 0.0, "rotate": None}
    own: dict[Any, dict[str, Any]] = {
        Attention: {"qk_norm": False},
        LinformerAttention: {"projection_length": 4},
    }
    return kind(**{**sizes, **rest, **own.get(kind, {}), **changes})


def projected(attention: Attention, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values ``(heads, N, head_dim)`` of one image's tokens ``(N, dim)``, head by head."""
    inner = attention.heads * attention.dim_head
    q, k, v = (tokens @ attention.qkv.weight[i * inner : (i + 1) * inner].T for i in range(3))
    return tuple(torch.stack(x.split(attention.dim_head, dim=1)) for x in (q, k, v))


def some_tokens(batch: int = 2, num_tokens: int = 10, dim: int = 24) -> Tensor:
    return torch.randn(batch, num_tokens, dim, generator=torch.Generator().manual_seed(1))


def renamed(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Return ``state`` with the parts of its names replaced, in the order of ``names``."""

    def rename(name: str) -> str:
        for old, new in names.items():
            name = name.replace(old, new)
        return name

    return {rename(name): value for name, value in state.items()}


def save(weights: Mapping[str, Tensor], folder: Path) -> str:
    torch.save(weights, folder / "w.pth")
    return str(folder / "w.pth")


def check_layers(model: nn.Module) -> None:
    """Every parameter is claimed by one prefix of one layer, and the layers come in order, stem to head."""
    layers = model.layers()
    names = [name for name, _ in layers]
    assert len(set(names)) == len(names)
    assert (names[0], names[-1]) == ("stem", "head")
    parameters = [name for name, _ in model.named_parameters()]
    claims = {
        parameter: [name for name, prefixes in layers for p in prefixes if parameter.startswith(p)]
        for parameter in parameters
    }
    assert {name: claim for name, claim in claims.items() if len(claim) != 1} == {}
    # Nothing is named that claims nothing, and each layer comes after the one before.
    first_claim = [min(i for i, p in enumerate(parameters) if claims[p] == [n]) for n in names[1:]]
    assert first_claim == sorted(first_claim)
    assert model.no_weight_decay() <= {*parameters}
