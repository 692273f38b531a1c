"""The counted cost against the formula that one can write down."""

import torch
from torch import nn

from tests.models.helpers import small_vit
from vitlab.models.flops import count_parameters, flops_per_image


def vit(pool: str) -> nn.Module:
    sizes = {"image_size": (16, 32), "dim": 24, "depth": 3, "dim_head": 16, "mlp_ratio": 2.5}
    return small_vit(**sizes, num_classes=7, pool=pool, patch_norm=True, attn_dropout=0.1)


def test_flops_of_a_vit_are_those_of_its_matrix_products() -> None:
    for pool, num_tokens in {"mean": 32, "cls": 33}.items():
        dense = 32 * (3 * 4 * 4) * 24 + 24 * 7  # patch projection, head
        block = num_tokens * (24 * 3 * 32 + 32 * 24 + 2 * 24 * 60)  # qkv, output, MLP
        attention = 2 * num_tokens**2 * 32  # scores, and the mixing of values
        expected = 2 * (dense + 3 * (block + attention))
        assert flops_per_image(vit(pool), (16, 32), 3) == expected


def test_flops_of_a_convolution() -> None:
    conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
    assert flops_per_image(conv, 32, 3) == 2 * 16 * 16 * 8 * 3 * 9


def test_counting_leaves_the_model_and_the_generator_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Dropout())
    model.train()
    model[2].eval()  # a frozen layer in a model that trains
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    flops_per_image(model, 8, 3)
    assert [module.training for module in model.modules()] == [True, True, True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_counting_does_not_run_a_compiled_model() -> None:
    model = vit("mean")
    plain = flops_per_image(model, (16, 32), 3)
    calls: list[None] = []
    model.compile(backend=lambda module, _: calls.append(None) or module.forward)
    assert flops_per_image(model, (16, 32), 3) == plain
    assert not calls


def test_a_shared_parameter_counts_once() -> None:
    first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    second.weight = first.weight
    assert count_parameters(nn.Sequential(first, second)) == 9
