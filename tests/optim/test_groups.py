"""Every parameter is in exactly one group, only matrices decay, and early layers learn more slowly."""

from typing import Any

import pytest
import torch
from torch import nn

from vitlab.core.errors import UserError
from vitlab.optim import Muon, make_optimizer, parameter_groups, sgd
from vitlab.training.build import optimizer_factory


class Small(nn.Module):
    def __init__(self, exempt: set[str]) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(1, 4, 8))
        self.linear = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.exempt = exempt

    def no_weight_decay(self) -> set[str]:
        return self.exempt


class Deep(nn.Module):
    """A stem, two blocks and a head; ``claims`` are the prefixes of the blocks."""

    def __init__(self, *claims: list[str]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 2)
        self.embed = nn.Linear(4, 8)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"qkv": nn.Linear(8, 24), "out": nn.Linear(8, 8), "conv": nn.Conv1d(8, 8, 3)})
            for _ in range(2)
        )
        self.head = nn.Linear(8, 10)
        self.claims = claims or (["blocks.0."], ["blocks.1."])

    def layers(self) -> list[tuple[str, list[str]]]:
        blocks = [(f"block_{i}", claim) for i, claim in enumerate(self.claims)]
        return [("stem", ["stem.", "embed."]), *blocks, ("head", ["head."])]


def groups_of(model: nn.Module, layer_decay: float = 1.0, apart: bool = False) -> dict[str, dict]:
    groups = parameter_groups(
        model, lr=0.01, weight_decay=0.05, layer_decay=layer_decay, matrices_apart=apart
    )
    named = dict(model.named_parameters())
    for group in groups:
        assert [id(named[name]) for name in group["names"]] == [id(p) for p in group["params"]]
    assert len({group["name"] for group in groups}) == len(groups)
    return {group["name"]: group for group in groups}


def test_matrices_decay_and_the_rest_does_not() -> None:
    groups = groups_of(Small({"position"}))
    assert groups["decay"]["names"] == ["linear.weight"]
    assert groups["decay"]["weight_decay"] == 0.05
    assert {*groups["no_decay"]["names"]} == {"linear.bias", "norm.bias", "norm.weight", "position"}
    assert groups["no_decay"]["weight_decay"] == 0.0
    assert {group["lr"] for group in groups.values()} == {0.01}


@pytest.mark.parametrize(("layer_decay", "apart"), [(1.0, False), (0.5, False), (1.0, True), (0.5, True)])
def test_every_trainable_parameter_is_claimed_once(layer_decay: float, apart: bool) -> None:
    model = Deep()
    model.blocks[0].requires_grad_(False)
    claimed = [id(p) for group in groups_of(model, layer_decay, apart).values() for p in group["params"]]
    assert len(claimed) == len(set(claimed))
    assert set(claimed) == {id(p) for p in model.parameters() if p.requires_grad}


def test_an_exemption_that_names_nothing_fails() -> None:
    with pytest.raises(ValueError, match="posit_on"):
        groups_of(Small({"posit_on"}))


def test_layer_decay_slows_early_layers() -> None:
    groups = groups_of(Deep(), 0.5)
    rates = {name: group["lr"] for name, group in groups.items() if name.startswith("decay")}
    assert rates == {
        "decay/stem": 0.01 * 0.125,
        "decay/block_0": 0.01 * 0.25,
        "decay/block_1": 0.01 * 0.5,
        "decay/head": 0.01,
    }
    assert groups["decay/stem"]["names"] == ["stem.weight", "embed.weight"]
    assert groups["no_decay/head"]["names"] == ["head.bias"]
    assert groups["no_decay/head"]["lr"] == 0.01
    assert groups["no_decay/block_0"]["weight_decay"] == 0.0


def test_a_model_without_an_order_can_not_have_layer_decay() -> None:
    with pytest.raises(UserError, match=r"layer_decay=0\.9 needs .* Small does not"):
        groups_of(Small(set()), 0.9)
    with pytest.raises(UserError, match=r"optimizer=muon needs"):
        groups_of(Small(set()), apart=True)


def test_a_parameter_of_no_layer_or_of_two_is_named() -> None:
    with pytest.raises(ValueError, match=r"blocks\.1\.qkv\.weight is claimed by no layer"):
        groups_of(Deep(["blocks.0."]), 0.9)
    with pytest.raises(ValueError, match=r"blocks\.1\.out\.weight is claimed by block_0, block_1"):
        groups_of(Deep(["blocks.0.", "blocks.1.out"], ["blocks.1."]), 0.9)


def test_matrices_of_hidden_layers_are_muons() -> None:
    groups = groups_of(Deep(), apart=True)
    assert groups["matrices"]["names"] == ["blocks.0.out.weight", "blocks.1.out.weight"]
    assert groups["qkv"]["names"] == ["blocks.0.qkv.weight", "blocks.1.qkv.weight"]
    assert (groups["matrices"]["stacked"], groups["qkv"]["stacked"]) == (1, 3)
    assert groups["decay"]["names"] == [
        *("stem.weight", "embed.weight", "blocks.0.conv.weight", "blocks.1.conv.weight", "head.weight"),
    ]
    assert not any("stacked" in groups[name] for name in ("decay", "no_decay"))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("adamw", {"betas": [0.9, 0.99], "eps": 1e-8}),
        ("adam", {"betas": [0.9, 0.99], "eps": 1e-8}),
        ("sgd", {"momentum": 0.9, "nesterov": True}),
    ],
)
def test_optimizers_step_and_fuse_where_they_can(name: str, options: dict[str, Any]) -> None:
    model = Small({"position"})
    node = {"_target_": f"vitlab.optim.{name}", "lr": 0.1, "weight_decay": 0.1, "fused": "auto", **options}
    optimizer = optimizer_factory(node, "32-true", "cpu")(model)
    assert optimizer.defaults["fused"] is True
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    before = model.linear.weight.clone()
    model.linear(torch.ones(2, 8)).sum().backward()
    optimizer.step()
    assert not torch.equal(before, model.linear.weight)


def test_what_an_optimizer_refuses_is_said() -> None:
    arguments = {"lr": 0.1, "weight_decay": 0.1, "layer_decay": 1.0}
    with pytest.raises(UserError, match=r"RAdam cannot be built .*fused"):
        make_optimizer(Small(set()), kind=torch.optim.RAdam, options={"fused": True}, **arguments)
    with pytest.raises(UserError, match=r"Muon cannot be built .*2D"):
        make_optimizer(Small(set()), kind=torch.optim.Muon, options={}, **arguments)
    with pytest.raises(UserError, match=r"nesterov=true needs a momentum"):
        make_optimizer(
            Small(set()), kind=sgd, options={"momentum": 0, "nesterov": True, "fused": False}, **arguments
        )
    assert Muon.matrices_apart
