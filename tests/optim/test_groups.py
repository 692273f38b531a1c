"""Every parameter is in exactly one group, and only matrices decay."""

import pytest
import torch
from torch import nn

from vitlab.optim import adam, adamw, parameter_groups, sgd


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


def test_matrices_decay_and_the_rest_does_not() -> None:
    groups = {g["name"]: g for g in parameter_groups(Small({"position"}), 0.05)}
    assert groups["decay"]["names"] == ["linear.weight"]
    assert groups["decay"]["weight_decay"] == 0.05
    assert sorted(groups["no_decay"]["names"]) == [
        "linear.bias",
        "norm.bias",
        "norm.weight",
        "position",
    ]
    assert groups["no_decay"]["weight_decay"] == 0.0


def test_every_trainable_parameter_is_claimed_once() -> None:
    model = Small(set())
    claimed = [id(p) for group in parameter_groups(model, 0.1) for p in group["params"]]
    assert len(claimed) == len(set(claimed))
    assert set(claimed) == {id(p) for p in model.parameters() if p.requires_grad}


def test_an_exemption_that_names_nothing_fails() -> None:
    with pytest.raises(ValueError, match="positoin"):
        parameter_groups(Small({"positoin"}), 0.1)


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (adamw, {"weight_decay": 0.1, "betas": [0.9, 0.99], "eps": 1e-8}),
        (adam, {"weight_decay": 0.1, "betas": [0.9, 0.99], "eps": 1e-8}),
        (sgd, {"weight_decay": 0.1, "momentum": 0.9, "nesterov": True}),
    ],
)
def test_optimizers_step_and_fuse_where_they_can(build, options) -> None:  # type: ignore[no-untyped-def]
    model = Small({"position"})
    optimizer = build(parameter_groups(model, 0.1), lr=0.1, fused="auto", **options)
    assert optimizer.defaults["fused"] is True
    before = model.linear.weight.clone()
    model.linear(torch.ones(2, 8)).sum().backward()
    optimizer.step()
    assert not torch.equal(before, model.linear.weight)
