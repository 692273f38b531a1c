"""The kinds of attention against their papers' formulas and against other implementations."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.conftest import TINY, verb
from tests.models.helpers import build, make_attention, projected, small_vit, some_tokens
from vitlab.config import preflight
from vitlab.core.errors import UserError
from vitlab.models.attention import Attention, LinformerAttention, LocalityAttention, is_transformer
from vitlab.models.flops import flops_per_image
from vitlab.optim.groups import parameter_groups

# QK norm


def test_qk_norm_bounds_the_scores() -> None:
    attention, tokens = make_attention(Attention, qk_norm=True), some_tokens() * 100
    queries, keys, _ = attention.queries_keys_values(tokens)
    for vectors in (queries, keys):
        assert vectors.norm(dim=-1).flatten().tolist() == pytest.approx([math.sqrt(8)] * 60, rel=1e-3)
    names = {name for name, _ in attention.named_parameters()}
    assert {"norm_queries.weight", "norm_keys.weight"} < names
    assert "norm_queries.bias" not in names


# Locality self-attention


def test_lsa_equals_vit_pytorchs_with_the_same_weights() -> None:
    small_dataset = pytest.importorskip("vit_pytorch.vit_for_small_dataset")
    reference = small_dataset.LSA(24, heads=3, dim_head=8).eval()
    attention = make_attention(LocalityAttention).eval()
    with torch.no_grad():
        reference.temperature.add_(0.3)  # theirs is the logarithm, and one for all heads
        reference.to_qkv.weight.mul_(3)
    attention.load_state_dict(
        {
            "inverse_temperature": reference.temperature.detach().exp().expand(3),
            "qkv.weight": reference.to_qkv.weight.detach(),
            "out.weight": reference.to_out[0].weight.detach(),
            "out.bias": reference.to_out[0].bias.detach(),
        }
    )
    tokens = some_tokens()
    with torch.no_grad():
        found = attention(reference.norm(tokens))
        torch.testing.assert_close(found, reference(tokens), atol=1e-6, rtol=1e-5)


def test_lsa_starts_at_the_usual_temperature_and_each_head_learns_its_own() -> None:
    attention = make_attention(LocalityAttention, dim_head=16)
    assert attention.inverse_temperature.tolist() == pytest.approx([0.25] * 3)
    queries, keys, _ = attention.queries_keys_values(some_tokens())
    with torch.no_grad():
        attention.inverse_temperature[1] *= 2
    sharper, same, _ = attention.queries_keys_values(some_tokens())
    torch.testing.assert_close(sharper[:, 1], 2 * queries[:, 1])
    torch.testing.assert_close(sharper[:, [0, 2]], queries[:, [0, 2]])
    torch.testing.assert_close(same, keys)


@pytest.mark.parametrize("drop_key", [0.0, 0.8])
def test_in_lsa_no_token_sees_its_own_value(drop_key: float) -> None:
    attention = make_attention(LocalityAttention, drop_key=drop_key).train()
    with torch.no_grad():
        attention.qkv.weight[:48] = 0  # even weights, so that a token's influence is through its value
    tokens = some_tokens(1).requires_grad_()
    torch.manual_seed(0)
    mixed = attention(tokens)[0]
    for i in range(10):
        (gradient,) = torch.autograd.grad(mixed[i].sum(), tokens, retain_graph=True)
        assert not gradient[0, i].any()
        assert gradient[0].any()


def test_the_temperature_goes_without_weight_decay() -> None:
    model = small_vit("model/attention=lsa")
    groups = parameter_groups(model, lr=1e-3, weight_decay=0.1, layer_decay=1.0)
    decayed = [name for group in groups if group["weight_decay"] for name in group["names"]]
    assert "blocks.0.attention.qkv.weight" in decayed
    assert not any("inverse_temperature" in name for name in decayed)


# Linformer


def test_linformer_is_equation_7() -> None:
    attention, tokens = make_attention(LinformerAttention).eval(), some_tokens()
    e, f = attention.project_keys.weight, attention.project_values.weight
    assert e.shape == f.shape == (4, 10)
    expected = []
    for image in tokens:
        q, k, v = projected(attention, image)
        heads = [(q[h] @ (e @ k[h]).T / math.sqrt(8)).softmax(-1) @ (f @ v[h]) for h in range(3)]
        expected.append(torch.cat(heads, dim=1))
    torch.testing.assert_close(attention(tokens), attention.out(torch.stack(expected)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "degree"), [("linformer", 1), ("softmax", 2), ("lsa", 2)])
def test_flops_grow_with_the_tokens(kind: str, degree: int) -> None:
    """A quadruple of tokens costs attention four times as much in Linformer, else sixteen times."""

    def attention_flops(side: int) -> int:
        changes = {"image_size": side, "pool": "mean", "depth": 1}
        tokens = (side // 4) ** 2
        total = flops_per_image(small_vit(f"model/attention={kind}", **changes), side, 3)
        dense = tokens * (4 * 4 * 3 * 32 + 32 * 3 * 32 + 32 * 32 + 2 * 32 * 64) + 32 * 10
        return total - 2 * dense

    costs = [attention_flops(side) for side in (32, 64, 128)]
    assert costs[1] == 4**degree * costs[0]
    assert costs[2] == 4**degree * costs[1]
    # Of 64 tokens, 16 mixtures: two products with the mixtures and two to make them, not two with the tokens.
    expected = 2 * 2 * 64 * 64 * 32 if degree == 2 else 2 * (2 + 2) * 64 * 16 * 32
    assert costs[0] == expected


def test_linformer_refuses_tokens_of_another_number() -> None:
    with pytest.raises(ValueError, match="expected 10 tokens, found 9"):
        make_attention(LinformerAttention)(some_tokens(num_tokens=9))


# What does not fit

LINFORMER = "model/attention=linformer"
MISFITS = [
    (
        [LINFORMER, "model.attention.projection_length=64"],
        "projection_length=64 saves nothing over 64 tokens",
    ),
    ([LINFORMER, "model.pool=cls", "model.attention.projection_length=65"], "over 65 tokens"),
    ([LINFORMER, "model.position=rotary"], "cannot turn them by theirs: choose model.position=learnable"),
    (["model/attention=lsa", "model.patch_size=32"], "choose a smaller model.patch_size, or model.pool=cls"),
    ([LINFORMER, "model.attention.projection_length=0"], "model.attention.projection_length=0: expected"),
    (["model.drop_key=1"], "model.drop_key=1: expected"),
    (["model/attention=lsa", "model.attention.qk_norm=true"], "lsa has no key 'qk_norm'"),
]


@pytest.mark.parametrize(("overrides", "said"), MISFITS, ids=[" ".join(o) for o, _ in MISFITS])
def test_what_does_not_fit_is_said_before_anything_is_built(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        preflight(["data=cifar10", "model=vit_tiny", *overrides])
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        (LinformerAttention, {"projection_length": 10}, "projection_length 10 of 10 tokens"),
        (LinformerAttention, {"projection_length": 0}, "projection_length 0 of 10 tokens"),
        (LinformerAttention, {"rotate": torch.clone}, "no position to rotate by"),
        (LocalityAttention, {"num_tokens": 1}, "one token alone"),
    ],
    ids=["as many as tokens", "none", "rotary", "one token"],
)
def test_constructors_say_it_too(kind: type[Attention], changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make_attention(kind, **changes)


def test_what_just_fits_passes() -> None:
    preflight(["data=cifar10", LINFORMER, "model.attention.projection_length=63"])
    preflight(["data=cifar10", LINFORMER, "model.pool=cls", "model.attention.projection_length=64"])
    distilled = "model=vit_distilled_tiny"  # whose own token counts
    preflight(["data=cifar10", distilled, LINFORMER, "model.attention.projection_length=64"])
    preflight(["data=cifar10", "model/attention=lsa", "model.patch_size=32", "model.pool=cls"])


# All together

VARIANTS = {
    "softmax": ("model.attention.qk_norm=true", "model.drop_key=0.2"),
    "lsa": ("model/attention=lsa", "model.position=rotary", "model.drop_key=0.2"),
    "linformer": (LINFORMER, "model.attention.projection_length=8", "model.init=mimetic"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_trains(variant: str, train: Callable[..., Path]) -> None:
    folder = train(*VARIANTS[variant], "trainer.max_epochs=1", "model.depth=1")
    assert (folder / "summary.json").exists()


@pytest.mark.slow
def test_the_kinds_can_be_swept(tmp_path: Path) -> None:
    kinds = ["model/attention=softmax,lsa,linformer", "model.patch_size=2", "trainer.max_epochs=1"]
    ended = verb("-m", *TINY, *kinds, f"hydra.sweep.dir={tmp_path}")
    assert ended.returncode == 0, ended.stderr
    assert len(list(tmp_path.glob("*/summary.json"))) == 3


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model=vit_tiny"], True),
        (["model=vit_tiny", "model/attention=linformer", "model.attention.projection_length=4"], True),
        (["model=resnet18"], False),
        (["model=timm_vit_b16", "model.name=vit_tiny_patch16_224"], True),
        (["model=timm_vit_b16", "model.name=resnet18"], False),
        (["model=torchvision_vit_b16"], True),
    ],
    ids=str,
)
def test_a_transformer_is_told_from_a_cnn(overrides: list[str], expected: bool) -> None:
    changes = {"pretrained": False} if "_vit_b16" in overrides[0] else {}
    with torch.device("meta"):
        assert is_transformer(build(*overrides, **changes)) is expected
    assert is_transformer(nn.TransformerEncoderLayer(8, 2))
