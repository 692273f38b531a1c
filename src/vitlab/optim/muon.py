"""Muon: steps of equal size in every direction, for the matrices of the hidden layers."""

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from vitlab.core.hardware import has_bf16

# Of the quintic iteration in Jordan et al. 2024: steepest at zero, so that small singular values grow fast;
# the result has singular values about 0.7 to 1.2 rather than 1.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
# An update with singular values of one has entries of root mean square 1 / sqrt(max(rows, columns)), AdamW's
# are 0.2 to 0.4: Liu et al. 2025, section 2.2, equation 4.
ADAMW_RMS = 0.2


@functools.cache
def working_type(kind: str) -> torch.dtype:
    """Return the type of the iteration on a kind of device: the fastest that it tolerates."""
    # Where bfloat16 is only emulated (one core of an AMD Zen 3) it took 16 to 27 times as long as float32.
    return torch.bfloat16 if has_bf16(kind) else torch.float32


def orthogonalize(matrices: Tensor, steps: int) -> Tensor:
    """Bring the singular values of every matrix (N, rows, columns) near one: U S Vᵀ → about U Vᵀ.

    By the Newton-Schulz iteration of Jordan et al. 2024 (kellerjordan.github.io/posts/muon), in the type that
    `working_type` says.
    """
    a, b, c = COEFFICIENTS
    x = matrices.to(working_type(matrices.device.type))
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x  # the products below are of the shorter side
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)  # no singular value above one
    for _ in range(steps):
        # Products and sums in one, so that bfloat16 rounds once: x ← a x + (b x xᵀ + c (x xᵀ)²) x.
        gram = x @ x.mT  # (N, short, short)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)  # (N, short, long)
    return x.mT if tall else x


class Muon(Optimizer):
    """Muon for groups that have ``stacked``, AdamW for the others, as one optimizer.

    Muon orthogonalizes the momentum of a matrix (Jordan et al. 2024), which makes rare directions count as
    much as frequent ones. It is for linear maps between hidden layers. The rest is AdamW's: the stem and the
    head, whose inputs and outputs are no hidden features; norms, biases, positions and tokens, which are
    vectors; and convolution kernels, unless ``kernels`` gives them to Muon, but for the first, as matrices of
    (channels out, channels in · height · width), as in Jordan et al. 2024.

    Both take the same ``lr`` and ``weight_decay``: Muon's update is scaled to the size of AdamW's (Liu et al.
    2025, "Muon is Scalable for LLM Training", section 2.2). Where one parameter stacks several matrices, such
    as query, key and value, each is orthogonalized alone (Jordan et al. 2024, "Empirical considerations").

    The step of a matrix is that of ``torch.optim.Muon`` with ``adjust_lr_fn="match_rms_adamw"``, which takes
    matrix by matrix, some twenty small kernels each, and a stacked parameter whole; here all matrices of one
    shape go through together.

    Args:
        groups: as `vitlab.optim.parameter_groups` makes them with ``matrices_apart``.
        momentum: of the running mean of gradients, and ``nesterov``: look one step ahead.
        ns_steps: of the iteration in `orthogonalize`.
        betas, eps, fused: of AdamW, see `vitlab.optim.adamw`.
    """

    matrices_apart: ClassVar[bool] = True

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        weight_decay: float,
        momentum: float,
        nesterov: bool,
        ns_steps: int,
        betas: Sequence[float],
        eps: float,
        fused: bool,
    ) -> None:
        ours = {"momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps}
        theirs = {"betas": tuple(betas), "eps": eps, "fused": fused}
        groups = [(ours if "stacked" in group else theirs) | group for group in groups]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})
        self._link()

    def notes(self) -> Iterator[str]:
        """Yield whether it has nothing to do."""
        if not any("stacked" in group for group in self.param_groups):
            yield (
                "optimizer=muon finds no matrix in a hidden layer that is trained: AdamW trains all there is."
            )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # from load_state_dict, copy or pickle: new groups and a new state
        self._link()

    def _link(self) -> None:
        # An AdamW that works on our own dictionaries: what changes here (a rate) or there (a moment) is one.
        rest = [group for group in self.param_groups if "stacked" not in group]
        self._adamw = AdamW(rest) if rest else None
        if self._adamw:
            self._adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; parameters without a gradient stay."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if "stacked" in group:
                self._step(group)
        if self._adamw:
            self._adamw.step()
        return loss

    def _step(self, group: dict[str, Any]) -> None:
        shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                if not self.state[parameter]:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
                shapes[parameter.shape].append(parameter)
        for shape, parameters in shapes.items():
            gradients: Any = [parameter.grad for parameter in parameters]
            means: Any = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
            torch._foreach_lerp_(means, gradients, 1 - group["momentum"])
            if group["nesterov"]:
                means = torch._foreach_lerp(gradients, means, group["momentum"])
            rows, columns = shape[0] // group["stacked"], math.prod(shape[1:])
            updates = torch.stack(means).reshape(-1, rows, columns)  # (parameters · stacked, rows, columns)
            updates = orthogonalize(updates, group["ns_steps"]).to(updates.dtype)
            updates = updates.reshape(len(parameters), *shape)
            size = ADAMW_RMS * math.sqrt(max(rows, columns))
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(parameters, list(updates), alpha=-group["lr"] * size)
