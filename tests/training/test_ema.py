"""The average of the weights: what it is, and that it is what a run validates, tests and keeps."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import vitlab
from tests.conftest import checkpoint, summary, verb
from vitlab.core.checkpoint import RAW
from vitlab.core.errors import UserError
from vitlab.core.run_folder import RunFolder
from vitlab.core.signals import Interrupted
from vitlab.data import datasets
from vitlab.tasks.classify import Classify
from vitlab.training.callbacks import EMA, Checkpointing
from vitlab.training.callbacks.ema import decay_at, describe_average, ema_notes
from vitlab.training.run import run

Train = Callable[..., Path]
# BatchNorm in the stem: float statistics, and a counter.
CONV = ("model=vit_convstem_tiny", "model.tokenizer.norm=batch")


def state(folder: Path, key: str = "state_dict", name: str = "last") -> dict[str, Tensor]:
    return checkpoint(folder, name)[key]


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_decay_rises_to_what_was_asked() -> None:
    assert [decay_at(t, 0.99, True) for t in (0, 8, 90, 10_000)] == [0.1, 0.5, 0.91, 0.99]
    assert decay_at(0, 0.99, False) == 0.99


@pytest.mark.parametrize(("decay", "warmup"), [(0.9, False), (0.45, True)])  # 0.45 is reached at t = 6.4
def test_it_is_the_average_over_the_optimizer_steps(
    train: Train, monkeypatch: pytest.MonkeyPatch, decay: float, warmup: bool
) -> None:
    """Against the recursion by hand, in float64; two micro-batches a step, 8 steps."""
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
    folder = train(
        *CONV,
        f"callbacks.ema.decay={decay}",
        f"callbacks.ema.warmup={warmup}",
        "trainer.accumulate_grad_batches=2",
        "optimizer.lr=0.01",
    )
    assert sorted(seen) == list(range(9))
    average = dict(seen[0])
    for step in range(8):
        d = min(decay, (1 + step) / (10 + step)) if warmup else decay
        average = {k: d * v + (1 - d) * seen[step + 1][k] for k, v in average.items()}
    kept, raw = state(folder), state(folder, RAW)
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


def test_training_does_not_notice(train: Train) -> None:
    """Swapped in and out three times an epoch, between micro-batches too: the raw weights are as without."""
    options = (*CONV, "trainer.val_check_interval=3", "trainer.accumulate_grad_batches=2")
    plain, averaged = train(*options, name="plain"), train(*options, "callbacks.ema.decay=0.9", name="ema")
    assert equal(state(plain), state(averaged, RAW))
    assert not equal(state(plain), state(averaged))
    assert RAW not in checkpoint(plain)


def test_validated_and_kept_is_the_average(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = []

    def step(self: Classify, batch: Any, batch_idx: int) -> None:
        (ema,) = (callback for callback in self.trainer.callbacks if isinstance(callback, EMA))  # type: ignore[attr-defined]
        now = self.net.state_dict(prefix="net.")
        batches.append(all(torch.equal(now[key], value) for key, value in ema.average.items()))
        real(self, batch, batch_idx)

    real = Classify.validation_step
    monkeypatch.setattr(Classify, "validation_step", step)
    train("callbacks.ema.decay=0.9", "trainer.val_check_interval=4")
    assert batches == [True] * 8, "two batches, four times"


def test_tested_is_the_average_of_the_best_epoch(train: Train) -> None:
    folder = train("callbacks.ema.decay=0.8", "optimizer.lr=0.05")
    found = summary(folder)
    assert found["tested"] == "best checkpoint by validation accuracy, EMA weights"
    model, raw = vitlab.load(folder), vitlab.load(folder, raw=True)
    images, labels = (torch.from_numpy(a) for a in datasets.build(model.config["data"]).load("test"))
    with torch.no_grad():
        losses = [F.cross_entropy(net(images), labels).item() for net in (model, raw)]
    assert found["metrics"]["test/loss"] == pytest.approx(losses[0], rel=1e-5)
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)
    assert equal({f"net.{k}": v for k, v in raw.net.state_dict().items()}, state(folder, RAW, name="best"))


def test_raw_is_the_same_where_nothing_is_averaged(train: Train) -> None:
    folder = train("trainer.max_epochs=1")
    assert equal(vitlab.load(folder).state_dict(), vitlab.load(folder, raw=True).state_dict())


@pytest.mark.parametrize("dies", [False, True])
def test_without_validation_the_last_average_is_tested(
    train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dies: bool
) -> None:
    options = ("callbacks.ema.decay=0.8", "data.val_size=0", "optimizer.lr=0.01")
    if dies:  # before the test; what resumes has nothing to train

        def killed(*args: object, **kwargs: object) -> None:
            raise Interrupted(signal.SIGTERM)

        with monkeypatch.context() as patch:
            patch.setattr(L.Trainer, "test", killed)
            with pytest.raises(Interrupted):
                train(*options)
        run(RunFolder(tmp_path / "run"))
        folder = tmp_path / "run"
    else:
        folder = train(*options)
    model = vitlab.load(folder)
    images, labels = (torch.from_numpy(a) for a in datasets.build(model.config["data"]).load("test"))
    with torch.no_grad():
        loss = F.cross_entropy(model(images), labels).item()
    assert summary(folder)["tested"] == "last checkpoint, EMA weights"
    assert summary(folder)["metrics"]["test/loss"] == pytest.approx(loss, rel=1e-5)


def test_of_bfloat16_weights_the_average_is_float32(train: Train) -> None:
    folder = train("callbacks.ema.decay=0.999", "callbacks.ema.warmup=false", "trainer.precision=bf16-true")
    kept = state(folder)["net.head.weight"]
    assert kept.dtype == torch.float32
    assert not torch.equal(kept, kept.bfloat16().float()), "steps of 0.1 % would be rounded away"


def test_a_diverging_run_is_found_out_by_its_raw_weights(train: Train) -> None:
    with pytest.raises(UserError, match="diverged"):
        train(
            "optimizer=sgd",
            "optimizer.lr=900",
            "trainer.gradient_clip_val=null",
            "trainer.max_epochs=30",
            "callbacks.ema.decay=0.9999",
            "callbacks.ema.warmup=false",
        )


@pytest.mark.slow
def test_two_processes_average_and_accumulate_as_one(train: Train, tmp_path: Path) -> None:
    options = [
        *("callbacks.ema.decay=0.9", "trainer.accumulate_grad_batches=3", "model.dropout=0", "augment=none"),
        *("trainer.gradient_clip_val=0.1", "optimizer=sgd", "optimizer.lr=0.1"),
    ]
    one, two = train(*options, name="one"), tmp_path / "two"
    config = RunFolder(one).read_config()["overrides"]
    typed = [o for o in config if not o.startswith(("trainer=", "hydra."))]
    ddp = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", f"hydra.run.dir={two}"]
    ended = verb(*typed, *ddp)
    assert ended.returncode == 0, ended.stderr
    for key in ("state_dict", RAW):
        for name, value in state(one, key).items():
            torch.testing.assert_close(state(two, key)[name], value, rtol=1e-4, atol=1e-6, msg=name)
    for key, value in summary(one)["metrics"].items():
        assert summary(two)["metrics"][key] == pytest.approx(value, rel=1e-4), key


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


def test_it_is_not_switched_in_the_middle(train: Train) -> None:
    folder = train("callbacks.ema.decay=0.9", "trainer.max_epochs=1")
    (folder / "summary.json").unlink()
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("decay: 0.9\n", "decay: null\n"))
    with pytest.raises(UserError, match=r"callbacks\.ema\.decay: 0\.9 → null"):
        run(RunFolder(folder))


def test_one_is_no_decay(train: Train) -> None:
    with pytest.raises(UserError, match=r"callbacks\.ema\.decay"):
        train("callbacks.ema.decay=1")
