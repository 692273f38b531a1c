"""Muon steps as torch's own, beside an AdamW, and survives what happens to optimizers."""

import copy

import pytest
import torch
from torch import nn

from vitlab.optim import Muon, make_optimizer, muon
from vitlab.optim.muon import orthogonalize
from vitlab.optim.schedulers import lambda_lr

OPTIONS = {"momentum": 0.9, "nesterov": True, "ns_steps": 5, "betas": [0.9, 0.99], "eps": 1e-8, "fused": True}


class Net(nn.Module):
    """Two matrices of one shape, one tall, one that stacks three, and what Muon does not take."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 8)
        self.one = nn.Linear(8, 8)
        self.two = nn.Linear(8, 8)
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(24, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.two(self.one(self.stem(x)).tanh()).tanh()
        return self.head(self.out(self.qkv(x).tanh()))

    def layers(self) -> list[tuple[str, list[str]]]:
        return [("stem", ["stem."]), ("block", ["one.", "two.", "qkv.", "out."]), ("head", ["head."])]


def make(net: nn.Module, layer_decay: float = 1.0, **options: object) -> Muon:
    optimizer = make_optimizer(
        net, kind=Muon, lr=0.02, weight_decay=0.1, layer_decay=layer_decay, options=OPTIONS | options
    )
    assert isinstance(optimizer, Muon)
    return optimizer


def net_of(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def backward(net: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    net.zero_grad()
    net(torch.randn(16, 5, generator=generator)).square().mean().backward()


def steps(net: nn.Module, optimizer: torch.optim.Optimizer, places: range) -> None:
    for step in places:
        backward(net, step)
        optimizer.step()


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("nesterov", [True, False])
def test_a_step_is_torchs_muon_and_adamw_run_apart(monkeypatch: pytest.MonkeyPatch, nesterov: bool) -> None:
    monkeypatch.setattr(muon, "working_type", lambda kind: torch.bfloat16)  # torch's, whatever the hardware
    ours, theirs = net_of(), net_of()
    optimizer = make(ours, nesterov=nesterov)
    # Query, key and value apart: three parameters, whose gradients are slices of the stacked one's.
    parts = [nn.Parameter(part.clone()) for part in theirs.qkv.weight.detach().chunk(3)]
    matrices = [theirs.one.weight, theirs.two.weight, theirs.out.weight, *parts]
    reference = torch.optim.Muon(
        matrices, lr=0.02, weight_decay=0.1, momentum=0.9, nesterov=nesterov, adjust_lr_fn="match_rms_adamw"
    )
    biases = [p for p in theirs.parameters() if p.ndim == 1]
    groups = [
        {"params": [theirs.stem.weight, theirs.head.weight], "weight_decay": 0.1},
        {"params": biases, "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=0.02, betas=(0.9, 0.99), eps=1e-8)
    for step in range(4):
        backward(ours, step)
        optimizer.step()
        backward(theirs, step)
        for part, gradient in zip(parts, theirs.qkv.weight.grad.chunk(3), strict=True):
            part.grad = gradient.clone()
        reference.step()
        adamw.step()
        theirs.qkv.weight.data = torch.cat([part.data for part in parts])
        for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            # On some machines bfloat16 rounds several matrices at once otherwise than one by one.
            moved = (b - dict(net_of().named_parameters())[name]).norm()
            assert moved > 0
            assert (a - b).norm() < 0.05 * moved, name


class ConvNet(nn.Module):
    """A convolution that sees pixels, and one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3)
        self.second = nn.Conv2d(6, 4, 3)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x).tanh()).mean((2, 3)))

    def layers(self) -> list[tuple[str, list[str]]]:
        return [("stem", ["first.", "second."]), ("head", ["head."])]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_kernels_are_matrices_of_all_that_an_output_sees(
    monkeypatch: pytest.MonkeyPatch, layout: torch.memory_format
) -> None:
    monkeypatch.setattr(muon, "working_type", lambda kind: torch.bfloat16)
    torch.manual_seed(0)
    net = ConvNet().to(memory_format=layout)
    matrix = nn.Parameter(net.second.weight.detach().clone().flatten(1))
    optimizer = make(net, kernels=True)
    groups = {group["name"]: group["names"] for group in optimizer.param_groups}
    assert groups["kernels"] == ["second.weight"]
    assert groups["decay"] == ["first.weight", "head.weight"]
    reference = torch.optim.Muon(
        [matrix], lr=0.02, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw"
    )
    for step in range(3):
        net.zero_grad()
        net(torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        assert net.second.weight.grad is not None
        matrix.grad = net.second.weight.grad.flatten(1).clone()
        optimizer.step()
        reference.step()
        moved = (matrix - ConvNet().second.weight.flatten(1)).norm()
        assert (net.second.weight.flatten(1) - matrix).norm() < 0.01 * moved
    assert net.second.weight.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 32, 96), (2, 96, 32)])
def test_an_update_is_nearly_orthogonal(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 1e-3
    values = torch.linalg.svdvals(orthogonalize(matrices, 5).float())
    assert values.median() > 0.6
    assert values.min() > (0.01 if shape == (1, 64, 64) else 0.6), "a square matrix has tiny ones"
    assert values.max() < 1.3
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    assert torch.cosine_similarity(orthogonalize(matrices, 5).float().flatten(), (u @ vh).flatten(), 0) > 0.95


@pytest.mark.parametrize(("present", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_bfloat16_is_left_to_hardware_that_has_it(
    monkeypatch: pytest.MonkeyPatch, present: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr(muon, "has_bf16", lambda kind: present)
    muon.working_type.cache_clear()
    try:
        assert orthogonalize(torch.eye(4)[None], 5).dtype == expected
    finally:
        muon.working_type.cache_clear()


def test_the_update_has_the_size_of_adamws() -> None:
    net = net_of()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = make(net)
    for parameter in net.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    optimizer.step()
    for name in ("one.weight", "qkv.weight", "out.weight"):
        size = (dict(net.named_parameters())[name] - before[name]).square().mean().sqrt() / 0.02
        assert 0.15 < size < 0.25, "AdamW's is 0.2 to 0.4 in a run, and 1 at its first step"


def restored(net: Net, optimizer: Muon, *, by: str) -> tuple[Net, Muon]:
    if by == "deepcopy":
        return copy.deepcopy((net, optimizer))
    other = net_of(1)
    again = make(other, 0.5)
    other.load_state_dict(net.state_dict())
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return other, again


@pytest.mark.parametrize("by", ["state_dict", "deepcopy"])
def test_goes_on_bit_for_bit(by: str) -> None:
    net = net_of()
    optimizer = make(net, 0.5)
    steps(net, optimizer, range(3))
    other, again = restored(net, optimizer, by=by)
    assert not any(a is b for a, b in zip(net.parameters(), other.parameters(), strict=True))
    assert [g["name"] for g in again.param_groups] == [g["name"] for g in optimizer.param_groups]
    steps(net, optimizer, range(3, 6))
    steps(other, again, range(3, 6))
    assert same(net, other)
    state = again.state_dict()["state"]
    assert len(state) == len(list(net.parameters()))
    assert sum("momentum_buffer" in entry for entry in state.values()) == 4
    assert {int(entry["step"]) for entry in state.values() if "step" in entry} == {6}


@pytest.mark.parametrize("restore", [False, True])
def test_a_scheduler_reaches_both_parts(restore: bool) -> None:
    net = net_of()
    optimizer = make(net, 0.5)
    if restore:
        net, optimizer = restored(net, optimizer, by="state_dict")
    scheduler = lambda_lr(optimizer, lambda step, total: 1.0 if step == 0 else 0.0, 2)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == [0.005, 0.01, 0.02]
    steps(net, optimizer, range(1))
    scheduler.step()
    before = copy.deepcopy(net)
    steps(net, optimizer, range(1, 2))
    assert same(net, before), "with a rate of 0 nothing moves"


def test_a_gradient_scaler_and_a_closure_drive_it() -> None:
    plain, scaled = net_of(), net_of()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    one, other = make(plain), make(scaled)

    def closure() -> float:
        backward(plain, 0)
        return 7.0

    assert one.step(closure) == 7.0
    scaler.scale(
        scaled(torch.randn(16, 5, generator=torch.Generator().manual_seed(0))).square().mean()
    ).backward()
    scaler.unscale_(other)
    scaler.step(other)
    scaler.update()
    assert same(plain, scaled)
    before = copy.deepcopy(scaled)
    (scaler.scale(scaled(torch.ones(2, 5)).sum()) * float("inf")).backward()
    scaler.step(other)
    assert same(scaled, before), "an overflow takes no step"


@pytest.mark.parametrize("left", ["head.", "one.weight"])
def test_one_part_alone_is_enough(left: str) -> None:
    net = net_of()
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name.startswith(left))
    before = copy.deepcopy(net)
    steps(net, make(net), range(2))
    for (name, a), b in zip(net.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(a, b) != name.startswith(left), name


def test_a_parameter_without_a_gradient_stays() -> None:
    net = net_of()
    optimizer = make(net)
    backward(net, 0)
    net.two.weight.grad = None
    before = net.two.weight.detach().clone()
    optimizer.step()
    assert torch.equal(net.two.weight, before)
    assert optimizer.state[net.two.weight] == {}
