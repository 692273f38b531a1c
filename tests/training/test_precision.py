"""Float16 recovers from overflows and counts them; float32 products are as precise as asked."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Train, checkpoint, same_weights, summary
from tests.float16 import HUGE, pretend
from vitlab.core import hardware
from vitlab.core.metrics_csv import read_metrics
from vitlab.core.run_folder import RunFolder
from vitlab.tasks.classify import Classify
from vitlab.training.run import run


@pytest.fixture
def float16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a CPU train in float16, with a scale that is far too big at first."""
    pretend(monkeypatch)


def rows(folder: Path) -> list[dict[str, float]]:
    return read_metrics(RunFolder(folder))


@pytest.mark.usefixtures("float16")
def test_overflows_are_skipped_counted_and_got_over(
    train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[bool] = []
    real = Classify.on_train_batch_end

    def spy(self: Classify, *args: Any) -> None:
        now = self.net.head.weight.detach().clone()  # type: ignore[union-attr]
        moved.append(not torch.equal(now, getattr(self, "before", torch.zeros_like(now))))
        self.before = now  # type: ignore[assignment]
        real(self, *args)

    monkeypatch.setattr(Classify, "on_train_batch_end", spy)
    folder = train("trainer.max_epochs=4", "optimizer.lr=0.003")
    found, kept = summary(folder), checkpoint(folder)
    skipped = found["train"]["skipped_steps"]
    assert 8 < skipped < 20, "into the second epoch, and then it trains"
    assert kept["MixedPrecision"]["scale"] == HUGE / 2**skipped
    assert kept["MixedPrecision"]["skipped"] == skipped
    assert moved[1:].count(False) == skipped - 1, (
        "a skipped step leaves the weights (the first has no before)"
    )
    assert not any(moved[1:10])
    assert all(moved[-8:])
    steps = {int(state["step"]) for state in kept["optimizer_states"][0]["state"].values()}
    assert steps == {32 - skipped}, "the optimizer has not seen them"
    assert found["train"]["optimizer_steps"] == 32, "the schedule and the length of the run have"
    assert kept["lr_schedulers"][0]["last_epoch"] == 32
    assert all(torch.isfinite(value).all() for value in kept["state_dict"].values())
    assert rows(folder)[0]["train/skipped_steps"] == 8
    assert sum(row["train/skipped_steps"] for row in rows(folder)) == skipped
    assert rows(folder)[-1]["train/skipped_steps"] == 0
    assert f"{skipped} of 32 optimizer steps were skipped" in capsys.readouterr().out
    assert found["precision"] == "16-mixed"


def norms(train: Train, monkeypatch: pytest.MonkeyPatch, name: str) -> list[float]:
    """Train with hardly a step, so that the weights stay; return the gradients' norms before clipping."""
    found: list[float] = []
    real = Classify.configure_gradient_clipping

    def spy(self: Classify, *args: Any, **options: Any) -> None:
        gradients = [p.grad for p in self.net.parameters()]
        found.append(float(torch.nn.utils.get_total_norm(gradients)))
        real(self, *args, **options)
        clipped = float(torch.nn.utils.get_total_norm(gradients))
        assert clipped == pytest.approx(0.5, rel=1e-3) or not clipped < float("inf")

    options = ("trainer.gradient_clip_val=0.5", "optimizer=sgd", "optimizer.lr=1e-9", "model.dropout=0")
    with monkeypatch.context() as patch:
        patch.setattr(Classify, "configure_gradient_clipping", spy)
        train(*options, name=name)
    return found


def test_clipped_are_the_gradients_without_their_scale(
    train: Train, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    true = norms(train, monkeypatch, "float32")
    request.getfixturevalue("float16")
    scaled = norms(train, monkeypatch, "float16")
    skipped = summary(request.getfixturevalue("tmp_path") / "float16")["train"]["skipped_steps"]
    assert 0 < skipped < 16
    assert scaled[skipped:] == pytest.approx(true[skipped:], rel=0.02)


@pytest.mark.usefixtures("float16")
def test_the_scale_and_the_count_survive_a_stop(train: Train, stopped: Train) -> None:
    options = ("trainer.max_epochs=3", "callbacks.ema.decay=0.9")
    # In the second epoch, while steps are skipped.
    whole, cut = train(*options, name="whole"), stopped(12, *options)
    assert summary(cut)["train"]["skipped_steps"] == 12
    run(RunFolder(cut))
    assert summary(cut)["train"]["resumed_at"] == [12]
    assert same_weights(whole, cut)
    assert checkpoint(whole)["MixedPrecision"] == checkpoint(cut)["MixedPrecision"]
    assert rows(whole) == [pytest.approx(row, rel=1e-6) for row in rows(cut)]


def test_without_scaling_nothing_is_counted(finished: Path) -> None:
    assert summary(finished)["train"]["skipped_steps"] is None
    assert "train/skipped_steps" not in rows(finished)[0]
    assert (summary(finished)["precision"], summary(finished)["matmul_precision"]) == ("32-true", "high")


def test_matmul_precision_is_set_for_the_run_alone(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    real = Classify.training_step

    def spy(self: Classify, *args: Any) -> Any:
        seen.add((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
        return real(self, *args)

    monkeypatch.setattr(Classify, "training_step", spy)
    before = torch.get_float32_matmul_precision()
    folder = train("trainer.max_epochs=1", "matmul_precision=medium")
    assert seen == {("medium", True)}
    assert torch.get_float32_matmul_precision() == before
    assert summary(folder)["matmul_precision"] == "medium"


def test_highest_is_float32_in_convolutions_too() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with hardware.use_matmul_precision("highest"):
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cudnn.allow_tf32
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


# Of AVX2 to AVX512-BF16, of AMX, and of AMX-FP16.
@pytest.mark.parametrize(
    ("rounding", "notes"),
    [((), [0, 1, 1]), (("medium",), [0, 1, 0]), (("medium", "high"), [0, 0, 0])],
)
def test_what_does_nothing_on_a_cpu_is_said(
    monkeypatch: pytest.MonkeyPatch, rounding: tuple[str, ...], notes: list[int]
) -> None:
    monkeypatch.setattr(hardware, "rounds_float32", lambda name: name in rounding)
    assert [len(list(hardware.matmul_notes(name))) for name in ("high", "highest", "medium")] == notes


@pytest.mark.parametrize("name", ["highest", "high", "medium"])
def test_float32_products_are_as_rough_as_is_said_of_this_cpu(name: str) -> None:
    a, b = torch.randn(2, 256, 256, generator=torch.Generator().manual_seed(0))
    exact = a.double() @ b.double()
    with hardware.use_matmul_precision(name):
        error = (a @ b - exact).abs().max().item()
    assert 1e-3 < error < 1 if hardware.rounds_float32(name) else error < 1e-3
    assert (a @ b - exact).abs().max() < 1e-3


def test_a_cpu_that_rounds_float32_products_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b: real(a.bfloat16(), b.bfloat16()).float())
    assert hardware.rounds_float32.__wrapped__("medium")
    assert not hardware.rounds_float32("highest")
