"""The candidates train, and the verb leaves what it promises. Nothing here asserts on a time."""

import copy
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from tests.benchmark.test_checks import config
from tests.conftest import ROOT
from vitlab.benchmark import measure as measuring
from vitlab.benchmark.baselines import endless_input, train_plainly, train_with_lightning
from vitlab.benchmark.measure import Benchmark, measure
from vitlab.benchmark.report import plot_throughput
from vitlab.benchmark.timing import Sample
from vitlab.core.errors import UserError
from vitlab.core.signals import Interrupted, StopSignal
from vitlab.training.build import Components, build
from vitlab.training.run import quieten

# Four batches an epoch, so that a few steps meet its end.
TINY = (  # noqa: SIM905
    "data.num_train=40 data.num_test=10 data.val_size=8 data.batch_size=8 data.image_size=16 augment=basic "
    "model.dim=16 model.depth=1 model.heads=2 trainer=cpu trainer.precision=32 compile=false "
    "benchmark.rounds=2 benchmark.seconds=0.01 benchmark.warmup_steps=1"
).split()


quieten()


def typed(*overrides: str) -> list[str]:
    return [*{o.partition("=")[0]: o for o in (*TINY, *overrides)}.values()]


def resolved(*overrides: str) -> dict[str, Any]:
    choices = {"model": "vit_tiny", "augment": "basic"}
    return config(*typed(*overrides)) | {"choices": choices, "swept": []}


def job(*overrides: str) -> Components:
    plain = resolved(*overrides)
    return build(plain | {"trainer": plain["trainer"] | {"limit_val_batches": 0}})


def weights(net: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("trainer.gradient_clip_val=0.05", "optimizer=sgd"),
        ("trainer.gradient_clip_val=0.01", "trainer.gradient_clip_algorithm=value"),
        ("trainer.precision=bf16-mixed", "scheduler.warmup_steps=3"),
        ("data.in_memory=false", "trainer.gradient_clip_val=null", "task.label_smoothing=0.0"),
    ],
)
def test_plain_and_lightning_do_the_same_arithmetic(overrides: tuple[str, ...]) -> None:
    ours = job(*overrides)
    net = copy.deepcopy(ours.net)
    start = weights(net)
    steps = train_plainly(ours, net, endless_input(ours))
    assert list(islice(steps, 7)) == [8] * 7  # beyond an epoch's end
    sample = train_with_lightning(ours, StopSignal(), 5, settle=2)
    assert sample.images == 5 * 8
    assert sample.seconds > 0
    assert not torch.equal(weights(net), start)
    torch.testing.assert_close(weights(ours.net), weights(net), rtol=0, atol=1e-6)


def test_both_train_on_one_fixed_batch_too() -> None:
    ours = job()
    net = copy.deepcopy(ours.net)
    batch = next(endless_input(ours))
    list(islice(train_plainly(ours, net, repeat(batch)), 6))
    assert train_with_lightning(ours, StopSignal(), 4, batch, settle=2).images == 4 * 8
    torch.testing.assert_close(weights(ours.net), weights(net), rtol=0, atol=1e-6)
    before = weights(ours.net)
    train_with_lightning(ours, StopSignal(), 1, batch)  # and once more, from there
    assert not torch.equal(weights(ours.net), before)


def test_the_input_is_that_of_a_run_and_does_not_end() -> None:
    ours = job()
    found = list(islice(endless_input(ours), 9))
    assert [(batch.epoch, batch.index) for batch in found] == [(i // 4, i % 4) for i in range(9)]
    assert found[0].images.dtype == torch.float32
    assert not torch.equal(found[0].images, found[4].images)
    again = list(islice(endless_input(ours), 9))
    assert all(torch.equal(a.images, b.images) for a, b in zip(found, again, strict=True))


def run_verb(monkeypatch: pytest.MonkeyPatch, folder: Path, *overrides: str) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    import benchmark

    monkeypatch.setattr(sys, "argv", ["benchmark.py", *typed(f"hydra.run.dir={folder}", *overrides)])
    benchmark.main()


def test_the_verb_leaves_numbers_figure_and_tables(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    run_verb(monkeypatch, folder, "benchmark.peak_flops=1e12")
    record = json.loads((folder / "results.json").read_text())
    assert record["status"] == "finished"
    layers = record["layers"]
    assert {layer: list(rows) for layer, rows in layers.items()} == {
        "step": ["vitlab", "plain"],
        "input": ["vitlab"],
        "input_one_core": ["vitlab"],
        "both": ["vitlab", "plain"],
    }
    for rows in layers.values():
        for name, row in rows.items():
            rates = [sample["images"] / sample["seconds"] for sample in row["samples"]]
            assert len(rates) == 2
            assert row["images_per_second"]["min"] == pytest.approx(min(rates))
            assert (row["ratio"] is None) == (name == "vitlab")
    step = layers["step"]["vitlab"]
    assert step["flops_per_image"] == 3 * record["model"]["flops_per_image"]
    assert step["mfu"] == pytest.approx(step["flops_per_image"] * step["images_per_second"]["median"] / 1e12)
    assert layers["input"]["vitlab"]["mfu"] is None
    assert record["config"]["data"]["num_train"] == 40
    assert record["config"]["choices"]["augment"] == "basic"
    assert record["config"]["trainer"]["limit_val_batches"] is None
    assert record["peak_memory_bytes"]["host"] > 2**26
    assert {"torch", "pillow"} <= record["versions"].keys()
    assert (folder / "benchmark.png").stat().st_size > 10_000
    assert sorted(file.name for file in folder.iterdir()) == ["benchmark.png", "results.json"]
    shown = capsys.readouterr().out
    assert shown.strip().splitlines()[-1] == f"results  {folder}/results.json, benchmark.png"
    assert "of peak" in shown


def test_an_own_folder_is_not_overwritten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(UserError, match="holds results already"):
        run_verb(monkeypatch, tmp_path)
    assert (tmp_path / "results.json").read_text() == "{}"


def test_several_devices_and_a_refused_config_leave_nothing(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()  # as Hydra does
    with pytest.raises(UserError, match=r"trainer\.devices=2: .* one device"):
        measure(tmp_path / "run", resolved("trainer.devices=2"))
    assert not (tmp_path / "run").exists()


def test_what_was_measured_is_kept_when_it_is_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    benchmark = Benchmark(tmp_path, resolved("benchmark.layers=[step,both]"), Console(quiet=True))
    calls = itertools.count(1)

    def interrupted_fit(*args: Any) -> Sample:
        if next(calls) == 6:  # in the warm-up of the second layer
            benchmark.stop.received = signal.SIGTERM
            raise RuntimeError("a compiler was killed by the same signal")
        return Sample(8, 0.1)

    monkeypatch.setattr(measuring, "train_with_lightning", interrupted_fit)
    with pytest.raises(Interrupted) as caught:
        benchmark.run()
    assert caught.value.exit_code == 143
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["status"] == "interrupted"
    assert list(record["layers"]) == ["step"]
    assert len(record["layers"]["step"]["plain"]["samples"]) == 2


def test_a_fault_is_recorded_and_raised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*args: Any) -> Sample:
        if args[2] > 1:
            raise ZeroDivisionError("broken")
        return Sample(8, 0.01)

    monkeypatch.setattr(measuring, "train_with_lightning", broken)
    once = resolved("benchmark.layers=[step]")
    measure(tmp_path, once)  # a step lasts as long as a measurement should
    assert json.loads((tmp_path / "results.json").read_text())["status"] == "finished"

    longer = resolved("benchmark.layers=[step]", "benchmark.seconds=0.05")
    (tmp_path / "run").mkdir()
    with pytest.raises(ZeroDivisionError):
        measure(tmp_path / "run", longer)
    assert not (tmp_path / "run").exists()  # nothing was measured

    both = Benchmark(tmp_path, resolved("benchmark.layers=[step,input]"), Console(quiet=True))
    monkeypatch.setattr(both, "input", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        both.run()
    record = json.loads((tmp_path / "results.json").read_text())
    assert (record["status"], record["error"]) == ("failed", "division by zero")
    assert list(record["layers"]) == ["step"]


@pytest.mark.slow
def test_ctrl_c_keeps_the_rounds_so_far(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    overrides = ["benchmark.layers=[step,input]", "benchmark.rounds=1000", f"hydra.run.dir={folder}"]
    with subprocess.Popen(
        [sys.executable, "benchmark.py", *typed(*overrides)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("measured"):
                break
        time.sleep(3)  # some rounds of the first layer
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    record = json.loads((folder / "results.json").read_text())
    assert record["status"] == "interrupted"
    assert 1 <= len(record["layers"]["step"]["vitlab"]["samples"]) < 1000
    assert out.strip().splitlines()[-1].startswith("results  ")


def test_the_figure_says_rates_and_ratios() -> None:
    spread = {"median": 2000.0, "min": 1500.0, "max": 2200.0}
    rows = {
        "vitlab": {"images_per_second": spread, "ratio": None},
        "other": {"images_per_second": spread, "ratio": {"median": 3.456, "min": 3, "max": 4}},
    }
    figure = plot_throughput({"one": rows, "two": rows}, "title")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["one", "two"]
    bars = figure.axes[0].patches
    assert [bar.get_width() for bar in bars] == [2000.0, 2000.0]
    words = [text.get_text().strip() for text in figure.axes[0].texts]
    assert words == ["2,000", "2,000   (vitlab: 3.46 times)"]
    (whiskers,) = [c for c in figure.axes[0].collections if len(c.get_segments()) == 2]
    assert whiskers.get_segments()[0][:, 0].tolist() == [1500.0, 2200.0]
