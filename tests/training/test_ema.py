"""The average of the weights: what it is, and that it is what a run validates, tests and keeps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import vitlab
from tests.conftest import Train, checkpoint, equal, on_test_split, summary, train_in
from vitlab.core.checkpoint import RAW
from vitlab.tasks.classify import Classify
from vitlab.training.callbacks import EMA, Checkpointing
from vitlab.training.callbacks.ema import decay_at, describe_average, ema_notes

# BatchNorm in the stem: float statistics, and a counter. Two micro-batches a step, 8 steps; the average is
# swapped in and out three times an epoch, between micro-batches too.
OPTIONS = (
    *("model=vit_convstem_tiny", "model.tokenizer.norm=batch", "optimizer.lr=0.01"),
    *("trainer.accumulate_grad_batches=2", "trainer.val_check_interval=3"),
)


def state(folder: Path, key: str = "state_dict", name: str = "last") -> dict[str, Tensor]:
    return checkpoint(folder, name)[key]


def test_decay_rises_to_what_was_asked() -> None:
    assert [decay_at(t, 0.99, True) for t in (0, 8, 90, 10_000)] == [0.1, 0.5, 0.91, 0.99]
    assert decay_at(0, 0.99, False) == 0.99


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_in(tmp_path_factory.mktemp("plain") / "run", *OPTIONS)


@pytest.mark.parametrize(("decay", "warmup"), [(0.9, False), (0.45, True)])  # 0.45 is reached at t = 6.4
def test_it_is_the_average_over_the_optimizer_steps_which_training_does_not_notice(
    train: Train, plain: Path, monkeypatch: pytest.MonkeyPatch, decay: float, warmup: bool
) -> None:
    """Against the recursion by hand, in float64, and a run without."""
    seen: dict[int, dict[str, Tensor]] = {}

    def spy(at: str) -> Callable[..., None]:
        real = getattr(Checkpointing, at)

        def hook(self: Checkpointing, trainer: Any, task: Any, *rest: Any) -> None:
            now = {k: v.double() for k, v in task.net.state_dict(prefix="net.").items()}
            seen.setdefault(trainer.global_step, now)  # not at the micro-batch after the step
            real(self, trainer, task, *rest)

        return hook

    for at in ("on_train_start", "on_train_batch_end"):
        monkeypatch.setattr(Checkpointing, at, spy(at))
    folder = train(*OPTIONS, f"callbacks.ema.decay={decay}", f"callbacks.ema.warmup={warmup}")
    assert sorted(seen) == list(range(9))
    average = dict(seen[0])
    for step in range(8):
        d = min(decay, (1 + step) / (10 + step)) if warmup else decay
        average = {k: d * v + (1 - d) * seen[step + 1][k] for k, v in average.items()}
    kept, raw = state(folder), state(folder, RAW)
    assert equal(raw, state(plain))
    assert RAW not in checkpoint(plain)
    counters = {k for k in kept if k.endswith("num_batches_tracked")}
    assert counters
    for key, value in kept.items():
        last = seen[8][key]
        assert torch.equal(raw[key].double(), last), key
        expected = last if key in counters else average[key]
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-7, msg=key)
        assert value.dtype == raw[key].dtype
    # Statistics count micro-batches and the average steps, so this distinguishes them.
    assert not torch.allclose(kept["net.head.weight"], raw["net.head.weight"], atol=1e-4)


def test_validated_kept_and_tested_is_the_average(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = []

    def step(self: Classify, batch: Any, batch_idx: int) -> None:
        (ema,) = (callback for callback in self.trainer.callbacks if isinstance(callback, EMA))  # type: ignore[attr-defined]
        now = self.net.state_dict(prefix="net.")
        batches.append(all(torch.equal(now[key], value) for key, value in ema.average.items()))
        real(self, batch, batch_idx)

    real = Classify.validation_step
    monkeypatch.setattr(Classify, "validation_step", step)
    folder = train("callbacks.ema.decay=0.8", "trainer.val_check_interval=4", "optimizer.lr=0.05")
    assert batches == [True] * 8, "two batches, four times"
    found = summary(folder)
    assert found["tested"] == "best checkpoint by validation accuracy, EMA weights"
    raw = vitlab.load(folder, raw=True)
    losses = [F.cross_entropy(*on_test_split(model)).item() for model in (vitlab.load(folder), raw)]
    assert found["metrics"]["test/loss"] == pytest.approx(losses[0], rel=1e-5)
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)
    assert equal({f"net.{k}": v for k, v in raw.net.state_dict().items()}, state(folder, RAW, name="best"))


def test_raw_is_the_same_where_nothing_is_averaged(finished: Path) -> None:
    assert equal(vitlab.load(finished).state_dict(), vitlab.load(finished, raw=True).state_dict())


def test_without_validation_the_last_average_is_tested(train: Train) -> None:
    folder = train("callbacks.ema.decay=0.8", "data.val_size=0", "optimizer.lr=0.01")
    loss = F.cross_entropy(*on_test_split(vitlab.load(folder))).item()
    assert summary(folder)["tested"] == "last checkpoint, EMA weights"
    assert summary(folder)["metrics"]["test/loss"] == pytest.approx(loss, rel=1e-5)


def test_of_bfloat16_weights_the_average_is_float32(train: Train) -> None:
    folder = train("callbacks.ema.decay=0.999", "callbacks.ema.warmup=false", "trainer.precision=bf16-true")
    assert summary(folder)["status"] == "finished"
    kept = state(folder)["net.head.weight"]
    assert kept.dtype == torch.float32
    assert not torch.equal(kept, kept.bfloat16().float()), "steps of 0.1 % would be rounded away"


def test_the_warmup_of_the_decay_is_announced_where_the_run_ends_in_it() -> None:
    assert "decay 0.9998 (warmup: 0.4706 at the last step); validated" in describe_average(8, 0.9998, True)
    assert "warmup" not in describe_average(8, 0.2, True)


@pytest.mark.parametrize(
    ("ema", "overrides", "expected"),
    [
        ({"decay": 0.99, "warmup": False}, [], "averages about 100 steps, and the run has 8"),
        ({"decay": 0.8, "warmup": False}, [], ""),
        ({"decay": None, "warmup": False}, ["callbacks.ema.warmup=false"], "has no effect without"),
        ({"decay": None, "warmup": True}, ["seed=1"], ""),
    ],
)
def test_what_is_noted(ema: dict[str, Any], overrides: list[str], expected: str) -> None:
    notes = list(ema_notes(ema, 8, overrides))
    assert len(notes) == bool(expected)
    assert expected in "".join(notes)
