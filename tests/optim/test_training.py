"""Optimizers, freezing and schedules in whole runs."""

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from tests.conftest import TINY, checkpoint, same_weights, summary, verb
from vitlab.config import CONF, compose, to_plain
from vitlab.core.errors import UserError
from vitlab.core.metrics_csv import read_metrics
from vitlab.core.run_folder import RunFolder
from vitlab.core.signals import Interrupted
from vitlab.data.loader import TrainLoader
from vitlab.tasks.classify import Classify
from vitlab.training import announce, figures
from vitlab.training.build import build
from vitlab.training.run import run

Train = Callable[..., Path]
OPTIMIZERS = sorted(file.stem for file in CONF.glob("optimizer/*.yaml"))


def optimizer_state(folder: Path) -> dict[str, Any]:
    (state,) = checkpoint(folder)["optimizer_states"]
    return state


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_resumes_bit_for_bit(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    options = (f"optimizer={name}", "optimizer.layer_decay=0.8", "task.freeze=first_1")
    whole, stopped = train(*options, name="whole"), tmp_path / "stopped"
    real, count = TrainLoader.__iter__, itertools.count(1)

    def counting(self: TrainLoader) -> Iterator[Any]:
        for item in real(self):
            if next(count) == 11:
                os.kill(os.getpid(), signal.SIGINT)
            yield item

    with monkeypatch.context() as patch:
        patch.setattr(TrainLoader, "__iter__", counting)
        with pytest.raises(Interrupted):
            train(*options, name="stopped")
    run(RunFolder(stopped))
    assert summary(stopped)["train"]["resumed_at"] == [11]
    assert same_weights(whole, stopped)
    one, other = optimizer_state(whole), optimizer_state(stopped)
    assert one["state"]
    torch.testing.assert_close(one["state"], other["state"], rtol=0, atol=0)
    assert one["param_groups"] == other["param_groups"]


def test_frozen_layers_end_as_they_began(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    modes: list[bool] = []
    initial: dict[str, torch.Tensor] = {}
    step = Classify.training_step

    def watching(self: Classify, batch: Any, index: int) -> torch.Tensor:
        if not initial:
            initial.update({name: value.clone() for name, value in self.net.state_dict().items()})
        modes.append(self.net.stem.training)
        assert self.net.blocks[7].training
        return step(self, batch, index)

    monkeypatch.setattr(Classify, "training_step", watching)
    resnet = [option for option in TINY if not option.startswith("model")]
    resnet += ["model=resnet18", "model.width=4", "task.freeze=first_8", "optimizer=muon"]
    resnet += ["optimizer.layer_decay=0.5", "optimizer.lr=0.01", "scheduler=constant"]
    folder = train(base=resnet)
    assert len(modes) == 16
    assert not any(modes), "neither at the start nor after a validation"
    assert {row["learning_rate"] for row in read_metrics(RunFolder(folder))} == {0.01}, "the head's"
    frozen = ("stem.", *(f"blocks.{i}." for i in range(7)))
    last = checkpoint(folder)["state_dict"]
    for name, value in initial.items():
        assert torch.equal(last[f"net.{name}"], value) == name.startswith(frozen), name
    model = summary(folder)["model"]
    trained = [name for group in optimizer_state(folder)["param_groups"] for name in group["names"]]
    assert model["trainable_parameters"] == sum(initial[name].numel() for name in trained)
    assert model["trainable_parameters"] < model["parameters"]
    assert not any(name.startswith(frozen) for name in trained)
    said = " ".join(capsys.readouterr().out.split())
    statistics = ("mean", "var", "tracked")
    tensors = [name for name in initial if name.startswith(frozen) and not name.endswith(statistics)]
    assert f"frozen {len(tensors)} " in said
    assert "optimizer=muon finds no matrix" in said
    assert "task.freeze=first_8 keeps layers as they were drawn at random" in said
    assert "(model.checkpoint_path)" in said


def test_refused_and_nothing_left(train: Train, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"freeze=first_4 would leave nothing .*stem to head.*first_1 to first_3"
    ):
        train("task.freeze=first_4")
    assert not (tmp_path / "run").exists()


def job(*overrides: str) -> Any:
    config = to_plain(compose([*TINY, *overrides]))
    choices = {"optimizer": "adamw", "scheduler": "warmup_cosine"}
    return build(config | {"choices": choices})


def test_a_linear_probe_trains_the_last_layer_alone() -> None:
    some = job("task.freeze=head_only", "optimizer=muon")
    names = {name for group in some.task.built_optimizer.param_groups for name in group["names"]}
    assert names == {"pool.norm.weight", "pool.norm.bias", "head.weight", "head.bias"}
    assert names == {name for name, p in some.net.named_parameters() if p.requires_grad}


def test_frozen_layers_rest_whoever_calls_train() -> None:
    some = job("task.freeze=first_2")
    for mode in (False, True):
        some.task.train(mode)
        assert not some.net.blocks[0].training
        assert some.net.blocks[1].training == mode


def table(some: Any) -> list[list[str]]:
    """Return the cells of the table that a run starts with."""
    found = announce._group_table(some.task.built_optimizer.param_groups, some.net)
    return [list(row) for row in zip(*(column.cells for column in found.columns), strict=True)]


def test_the_table_counts_every_parameter() -> None:
    plain = job()
    assert [row[0] for row in table(plain)] == ["with decay", "without decay"]
    assert [row[3:] for row in table(plain)] == [["0.001", "0.05"], ["0.001", "0"]]
    muon = job("optimizer=muon", "optimizer.layer_decay=0.5", "task.freeze=first_1")
    rows = {row[0]: row[1:] for row in table(muon)}
    assert rows["matrices (Muon)"] == ["6", f"{2 * (256 + 2 * 1024):,}", "0.00025 to 0.0005", "0.05"]
    assert rows["query, key, value (Muon)"] == ["2", "1,536", "0.00025 to 0.0005", "0.05"]
    assert rows["with decay"][2] == "0.001"
    assert rows["frozen"][2:] == ["", ""]
    for some in (plain, muon):
        counts = [int(row[2].replace(",", "")) for row in table(some)]
        assert sum(counts) == sum(p.numel() for p in some.net.parameters())
        assert sum(int(row[1]) for row in table(some)) == len(list(some.net.parameters()))


def test_the_figure_of_the_schedule_is_drawn_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plot = Mock(side_effect=figures.plot_learning_rate)
    monkeypatch.setattr(figures, "plot_learning_rate", plot)
    figures.draw_learning_rate(RunFolder(tmp_path), job("scheduler.warmup_epochs=0.5"), None)
    curves, warmup, title = plot.call_args.args
    (curve,) = curves.values()
    assert (tmp_path / "figures" / "learning_rate.png").exists()
    assert warmup == 0.5
    assert "peak 0.001, last 1.7e-05; 16 steps, batch 8" in title
    assert [epoch for epoch, _ in curve] == [(s + 1) / 8 for s in range(16)]
    assert curve[4][1] == 0.001
    figures.draw_learning_rate(RunFolder(tmp_path), job(), None)
    assert plot.call_count == 1, "a resumed run has its figure"
    (tmp_path / "other").mkdir()
    decayed = job("optimizer.layer_decay=0.5", "trainer.max_epochs=500")
    figures.draw_learning_rate(RunFolder(tmp_path / "other"), decayed, None)
    curves = plot.call_args.args[0]
    assert list(curves) == ["head", "stem"]
    assert max(rate for _, rate in curves["stem"]) == pytest.approx(0.001 / 8)
    assert curves["head"][-1][0] == 500, "the last step is shown"
    assert len(curves["head"]) < 600
    labels = [text.get_text() for text in plot(*plot.call_args.args).axes[0].get_legend().get_texts()]
    assert labels == ["warmup: 25 epoch(s)", "head, peak 0.001", "stem, peak 0.000125"]


def test_a_run_draws_it_and_shows_it_to_tensorboard(train: Train) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = train("callbacks.figures=true", "logger=tensorboard", "trainer.max_epochs=1")
    assert (folder / "figures" / "learning_rate.png").exists()
    events = EventAccumulator(str(folder)).Reload()
    assert "learning_rate" in events.Tags()["images"]


@pytest.mark.slow
def test_two_processes_with_frozen_layers_and_muon_agree_with_one(tmp_path: Path) -> None:
    options = [o for o in TINY if not o.startswith(("trainer=", "model.dropout"))]
    options += ["augment=none", "model.dropout=0", "optimizer=muon", "task.freeze=first_2"]
    options += ["trainer.accelerator=cpu"]
    folders = []
    for number in (1, 2):
        folders.append(tmp_path / str(number))
        ended = verb(*options, "trainer=ddp", f"trainer.devices={number}", f"hydra.run.dir={folders[-1]}")
        assert ended.returncode == 0, ended.stdout + ended.stderr
    one, two = (read_metrics(RunFolder(folder)) for folder in folders)
    for row, other in zip(one, two, strict=True):
        assert other["train/loss"] == pytest.approx(row["train/loss"], rel=1e-4)
    one, two = (checkpoint(folder)["state_dict"] for folder in folders)
    for name, value in one.items():
        if name.startswith(("net.tokenizer.", "net.position.", "net.blocks.0.")):
            assert torch.equal(two[name], value), name
