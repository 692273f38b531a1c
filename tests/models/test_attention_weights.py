"""What is recorded of a network's attention is what the network computes, in every kind of it."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.helpers import build, small_vit
from vitlab.core.errors import UserError
from vitlab.models.attention import Attention
from vitlab.models.attention_weights import eager_copy, record_attention, token_layout, weights_over_tokens

SIZE = 32
TIMM = ("model=timm_vit_b16", "model.image_size=32", "+model.kwargs.patch_size=8", "+model.kwargs.depth=2")
OURS = {
    "class token": {"pool": "cls"},
    "mean": {"pool": "mean"},
    "sequence": {"pool": "sequence", "position": "sincos"},
    "rotary": {"pool": "cls", "position": "rotary"},
    "mimetic": {"init": "mimetic", "dim_head": 8},
}
PARTS = ("tokenizer=conv_stem", "tokenizer=cct", "tokenizer=spt", "attention=lsa", "attention=linformer")
NAMES = ("vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "vit_betwixt_patch16_reg4_gap_256")


def networks() -> dict[str, Any]:
    """Return what builds each, every kind of attention and layout of tokens among them."""
    found: dict[str, Any] = {name: lambda c=changes: small_vit(**c) for name, changes in OURS.items()}
    for part in PARTS:
        changes = {"pool": "mean", "patch_size": 4, "image_size": 32}
        found[part] = lambda p=part, c=changes: small_vit(f"model/{p}", **c)
    found["qk-norm"] = lambda: small_vit("model.attention.qk_norm=true")
    found["distilled"] = lambda: build("model=vit_distilled_tiny", depth=2, dim=48)
    for name in NAMES:
        found[f"timm {name}"] = lambda n=name: build(*TIMM, f"model.name={n}")
    found["torchvision vit_b_16"] = lambda: build("model=torchvision_vit_b16", image_size=32)
    return found


NETWORKS = networks()


@pytest.fixture(scope="module", params=NETWORKS)
def net(request: pytest.FixtureRequest) -> nn.Module:
    return eager_copy(NETWORKS[request.param]())


@pytest.fixture(scope="module")
def images(net: nn.Module) -> Tensor:
    return torch.randn(2, 3, *net.image_size, generator=torch.Generator().manual_seed(1))


def explicit_softmax(net: nn.Module, images: Tensor) -> list[Tensor]:
    """Return the weights by the ways that the three libraries have of their own."""
    layout = token_layout(net)
    found: list[Tensor] = []

    def of_ours(attention: Attention, inputs: tuple[Tensor]) -> None:
        queries, keys, _ = attention.queries_keys_values(*inputs)
        scores = torch.einsum("bhnd,bhmd->bhnm", queries, keys) / attention.dim_head**0.5
        if attention.mask is not None:
            scores[..., ~attention.mask] = -torch.inf
        found.append(scores.softmax(-1))

    def of_torchvision(attention: nn.MultiheadAttention, inputs: Any, options: Any) -> None:
        asked = options | {"need_weights": True, "average_attn_weights": False}
        found.append(nn.MultiheadAttention.forward(attention, *inputs, **asked)[1])

    for attention in layout.attentions:
        if isinstance(attention, Attention):
            attention.register_forward_pre_hook(of_ours)
        elif isinstance(attention, nn.MultiheadAttention):
            attention.register_forward_pre_hook(of_torchvision, with_kwargs=True)
        else:
            attention.fused_attn = False  # timm then calls its dropout with them
            attention.attn_drop.register_forward_hook(lambda *seen: found.append(seen[2]))
    with torch.no_grad():
        net(images)
    return found


def test_the_weights_are_those_of_an_explicit_softmax(net: nn.Module, images: Tensor) -> None:
    logits, weights = record_attention(net, images)
    expected = explicit_softmax(eager_copy(net), images)
    assert len(weights) == len(expected) == len(token_layout(net).blocks)
    for found, wanted in zip(weights, expected, strict=True):
        torch.testing.assert_close(found.detach(), wanted, atol=1e-5, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(logits.detach(), net(images), atol=1e-5, rtol=1e-4)


def test_weights_over_tokens_are_shares(net: nn.Module, images: Tensor) -> None:
    layout = token_layout(net)
    recorded = record_attention(net, images)[1]
    for attention, own in zip(layout.attentions, recorded, strict=True):
        weights = weights_over_tokens(attention, own)
        assert weights.shape[-2:] == (layout.num_tokens, layout.num_tokens)
        assert weights.min() >= 0
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


def test_the_logit_has_a_gradient_at_the_weights(net: nn.Module, images: Tensor) -> None:
    logits, weights = record_attention(net, images)
    for gradient in torch.autograd.grad(logits[:, 0].sum(), weights):
        assert gradient.isfinite().all()
        assert gradient.any()


def test_the_row_of_a_class_token_is_its_view_of_the_patches() -> None:
    layout = token_layout(small_vit(pool="cls"))  # 16 patches
    weights = torch.rand(1, 2, 17, 17)
    assert torch.equal(layout.row(weights), weights[..., 0, 1:].reshape(1, 2, 4, 4))
    layout = token_layout(small_vit(pool="mean"))
    weights = torch.rand(1, 2, 16, 16)
    assert torch.equal(layout.row(weights), weights.mean(-2).reshape(1, 2, 4, 4))


def test_learned_positions_are_found(net: nn.Module) -> None:
    layout = token_layout(net)
    if layout.positions is not None:  # not of rotary and fixed ones
        assert layout.positions.shape[1] in (layout.num_tokens, layout.num_tokens - layout.prefix)


def test_compiling_changes_nothing() -> None:
    net = small_vit(pool="cls").eval()
    pictures = torch.randn(2, 3, 16, 16)
    _, plain = record_attention(eager_copy(net), pictures)
    net.compile(backend="eager")
    net(pictures)
    _, compiled = record_attention(eager_copy(net), pictures)
    assert all(torch.equal(a, b) for a, b in zip(plain, compiled, strict=True))


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "resnet18", "mobilevit_xxs"])
def test_networks_without_such_attention_are_refused_by_name(name: str) -> None:
    net = eager_copy(build("model=timm_vit_b16", f"model.name={name}", image_size=224))
    with pytest.raises(UserError, match="has no attention of all tokens to all"):
        record_attention(net, torch.randn(1, 3, 224, 224))


def test_torch_gets_its_functions_back() -> None:
    before = F.scaled_dot_product_attention, F.gelu
    record_attention(eager_copy(small_vit()), torch.randn(1, 3, 16, 16))
    assert (F.scaled_dot_product_attention, F.gelu) == before
    assert torch.backends.mha.get_fastpath_enabled()
