"""Frozen layers take no gradient, keep their statistics, and drop nothing."""

import pytest
import torch
from torch import nn

from vitlab.config import compose, preflight, to_plain
from vitlab.core.errors import UserError
from vitlab.optim.freezing import freeze, freeze_eval
from vitlab.training.build import build_net

VIT = ["model=vit_tiny", "model.dim=16", "model.depth=3", "model.heads=2"]
VIT += ["model.drop_path=0.5", "model.emb_dropout=0.5"]


def net_of(*overrides: str) -> nn.Module:
    config = to_plain(compose(["data=shapes", "data.image_size=16", *overrides]))
    torch.manual_seed(0)
    return build_net(config | {"model": config["model"] | {"num_classes": 10}})


@pytest.mark.parametrize(
    ("what", "frozen"),
    [("none", []), ("first_1", []), ("first_3", ["0.", "1."]), ("first_4", ["0.", "1.", "2."])],
)
def test_the_first_entries_of_the_layers_are_frozen(what: str, frozen: list[str]) -> None:
    net = net_of(*VIT)
    freeze(net, what)
    for name, parameter in net.named_parameters():
        part, _, inside = name.partition(".")
        still = part in ("tokenizer", "class_token", "position") and what != "none"
        still = still or (part == "blocks" and inside.startswith(tuple(frozen)))
        assert parameter.requires_grad != still, name


@pytest.mark.parametrize("overrides", [VIT, ["model=resnet18", "model.width=4"]])
def test_a_linear_probe_trains_the_last_layer_alone(overrides: list[str]) -> None:
    net = net_of(*overrides)
    prefixes = freeze(net, "head_only")
    (*_, (_, head)) = net.layers()
    left = {name for name, p in net.named_parameters() if p.requires_grad}
    assert left == {name for name, _ in net.named_parameters() if name.startswith(tuple(head))}
    assert left
    assert not any(name.startswith(prefixes) for name in left)


def test_gradients_reach_what_is_left_and_nothing_else() -> None:
    net = net_of(*VIT)
    freeze(net, "first_2")
    net(torch.rand(4, 3, 16, 16)).sum().backward()
    assert {name for name, p in net.named_parameters() if p.grad is None} == {
        name for name, p in net.named_parameters() if not p.requires_grad
    }


@pytest.mark.parametrize(
    ("what", "overrides"),
    [("first_5", VIT), ("first_99", VIT), ("first_10", ["model=resnet18", "model.width=4"])],
)
def test_freezing_everything_is_refused(what: str, overrides: list[str]) -> None:
    net = net_of(*overrides)
    most = len(net.layers()) - 1
    said = rf"{what} would leave nothing .* stem to head.* first_1 to first_{most}"
    with pytest.raises(UserError, match=said):
        freeze(net, what)


def test_a_network_without_layers_cannot_be_frozen() -> None:
    with pytest.raises(UserError, match=r"task.freeze=head_only needs .* Linear does not"):
        freeze(nn.Linear(2, 2), "head_only")


def test_frozen_modules_rest() -> None:
    net = net_of(*VIT)
    prefixes = freeze(net, "first_3")
    net.train()
    freeze_eval(net, prefixes)
    modes = {name: module.training for name, module in net.named_modules()}
    assert modes[""]
    assert not modes["dropout"], "it comes before a frozen block, and layers() says so"
    assert not modes["tokenizer"]
    for name, training in modes.items():
        if name.startswith("blocks."):
            assert training == name.startswith("blocks.2"), name
    assert modes["head"]
    freeze_eval(net.train(), ())
    assert all(module.training for module in net.modules())


def test_frozen_statistics_stay() -> None:
    net = net_of("model=resnet18", "model.width=4")
    freeze_eval(net, freeze(net, "first_4"))
    before = {name: value.clone() for name, value in net.state_dict().items() if "running" in name}
    net(torch.rand(8, 3, 16, 16))
    frozen = ("stem.", "blocks.0.", "blocks.1.", "blocks.2.")
    for name, value in before.items():
        assert torch.equal(value, net.state_dict()[name]) == name.startswith(frozen), name


@pytest.mark.parametrize("word", ["frist_3", "first_0", "first_-1", "first_", "head", "3"])
def test_words_that_mean_nothing_are_refused_before_torch(word: str) -> None:
    with pytest.raises(UserError, match=r"task\.freeze=.* expected none, head_only or first_N"):
        preflight([f"task.freeze={word}"])


def test_words_that_mean_something_pass() -> None:
    for word in ("none", "head_only", "first_1", "first_12"):
        preflight([f"task.freeze={word}"])
