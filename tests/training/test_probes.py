"""What is measured inside a network, on networks whose inside is known."""

import math

import pytest
import torch
from torch import Tensor, nn

from tests.models.helpers import build, small_vit
from vitlab.models.attention_weights import TokenLayout, token_layout
from vitlab.training.probes import distance, entropy, probe_tokens

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def without_scores(net: nn.Module) -> nn.Module:
    """Return a network all of whose queries and keys are zero."""
    for block in net.blocks:
        rows = block.attention.heads * block.attention.dim_head * 2
        block.attention.qkv.weight.data[:rows] = 0
        block.attention.qkv.bias.data[:rows] = 0
    return net


def test_entropy_is_one_for_uniform_rows_and_zero_for_a_single_token() -> None:
    assert entropy(torch.full((2, 8), 1 / 8)).tolist() == pytest.approx([1, 1])
    assert entropy(torch.eye(8)).tolist() == pytest.approx([0] * 8)
    assert entropy(torch.tensor([0.5, 0.5, 0, 0])).item() == pytest.approx(math.log(2) / math.log(4))


def test_distance_is_in_patches_and_leaves_the_class_token_out() -> None:
    layout = TokenLayout(grid=(1, 3), prefix=1, read=1, blocks=(), attentions=(), norms=(), positions=None)
    weights = torch.tensor([[0.4, 0.2, 0.2, 0.2], [0.5, 0.5, 0, 0], [0.5, 0, 0, 0.5], [0.2, 0.8, 0, 0]])
    assert distance(weights, layout).tolist() == pytest.approx([0, 1, 2])


def test_a_network_without_scores_is_uniform() -> None:
    found = probe_tokens(without_scores(small_vit(pool="cls")), IMAGES)
    torch.testing.assert_close(found["entropy"], torch.ones(2, 2))
    assert found["largest_score"].abs().max() == 0


def test_units_that_never_fire_are_dead() -> None:
    net = small_vit(pool="mean")
    net.blocks[1].mlp.fc1.weight.data[:16] = 0
    net.blocks[1].mlp.fc1.bias.data[:16] = -20  # GELU of that is 0
    found = probe_tokens(net, IMAGES)
    assert found["dead"].tolist() == pytest.approx([0, 16 / 64])
    assert found["near_zero"][1] >= 16 / 64


def test_norms_are_those_of_the_tokens() -> None:
    net = small_vit(pool="mean").eval()
    found = probe_tokens(net, IMAGES)
    with torch.no_grad():
        tokens = net.encode(IMAGES)
    torch.testing.assert_close(found["residual_norm"][1], tokens.norm(dim=-1).mean())
    torch.testing.assert_close(found["feature_norm"][0], tokens.mean(1).norm(dim=-1).mean())


@pytest.mark.parametrize(
    "make",
    [
        lambda: small_vit("model/tokenizer=conv_stem", patch_size=4),
        lambda: build(
            "model=timm_vit_b16", "model.name=vit_tiny_patch16_224", image_size=32, kwargs={"depth": 2}
        ),
        lambda: build("model=torchvision_vit_b16", image_size=32),
        lambda: build("model=vit_distilled_tiny", depth=2),
    ],
    ids=["conv stem", "timm", "torchvision", "distilled"],
)
def test_every_block_is_measured_once_and_the_network_stays_as_it_is(make) -> None:  # type: ignore[no-untyped-def]
    net = make().train()
    layout = token_layout(net)
    before: dict[str, Tensor] = {key: value.clone() for key, value in net.state_dict().items()}
    generator = torch.random.get_rng_state()
    found = probe_tokens(net, torch.randn(2, 3, *net.image_size, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(torch.random.get_rng_state(), generator)
    for measure in ("entropy", "distance", "largest_score", "near_zero", "dead", "residual_norm"):
        assert len(found[measure]) == len(layout.blocks), measure
        assert found[measure].isfinite().all()
    assert found["maps"].shape == (2, *layout.grid)
    assert net.training
    assert not any(module._forward_hooks for module in net.modules())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
