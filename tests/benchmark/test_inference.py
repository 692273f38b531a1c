"""All that answers images answers the same, and is timed step by step. Nothing here asserts on a time."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benchmark.test_measure import job, run_verb
from tests.conftest import slow
from vitlab.benchmark import inference
from vitlab.benchmark.inference import BATCHES, Runtime, build_runtimes, choose_images, make_candidate
from vitlab.benchmark.timing import measure_in_turn, summarize
from vitlab.core.signals import StopSignal

ALL = ["eager", "compiled", "onnxruntime", "onnxruntime_int8", "timm"]
WITHOUT_COMPILER = [name for name in ALL if name != "compiled"]


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "has_compiler", lambda kind: False)


@pytest.mark.parametrize("compiler", [False, slow(True)])
@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_all_compute_the_same_from_the_same_weights(
    pool: str, compiler: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(inference, "has_compiler", lambda kind: compiler)
    ours = job(f"model.pool={pool}", "model.dropout=0.5", "trainer.precision=bf16-mixed")
    with torch.no_grad():  # a new head says nearly the same of all images
        ours.net.head.weight.mul_(20)  # type: ignore[union-attr, operator]
    images = choose_images(ours)
    assert images.shape == (256, 3, 16, 16)
    assert images.dtype == torch.uint8
    runtimes, notes = build_runtimes(ours, images, tmp_path)
    assert [runtime.name for runtime in runtimes] == (ALL if compiler else WITHOUT_COMPILER)
    assert len(notes) == (not compiler)
    for size in BATCHES:
        eager, *others = (runtime.answer(images[:size]) for runtime in runtimes)
        assert eager.shape == (size, 10)
        assert size == 1 or eager.std(0).max() > 0.01
        top = eager.topk(2).values
        for runtime, found in zip(runtimes[1:], others, strict=True):
            near = 1e-4 if runtime.precision == "32-true" else 0.1
            torch.testing.assert_close(found, eager, rtol=0, atol=near)
            clear = top[:, 0] - top[:, 1] > 2 * near
            assert torch.equal(found.argmax(1)[clear], eager.argmax(1)[clear])


def test_the_layer_has_rates_ratios_and_latencies_for_each_batch_size(
    no_compiler: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_verb(monkeypatch, tmp_path / "run", "benchmark.layers=[inference]")
    record = json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(record["layers"]) == ["inference_1", "inference_256"]
    for size, rows in zip(BATCHES, record["layers"].values(), strict=True):
        assert list(rows) == WITHOUT_COMPILER
        for name, row in rows.items():
            steps = sum(sample["images"] for sample in row["samples"]) / size
            assert row["latency_ms"]["n"] == steps
            assert 0 < row["latency_ms"]["median"] <= row["latency_ms"]["p99"]
            assert (row["ratio"] is None) == (name == "eager")
            assert (row["flops_per_image"] is None) == (name == "onnxruntime_int8")
    said = capsys.readouterr().out
    assert "ms (p99)" in said
    assert "note: PyTorch compiled is not measured" in said
    assert (tmp_path / "run" / "benchmark.png").stat().st_size > 10_000


def test_without_the_extra_it_is_named_and_the_rest_is_measured(
    no_compiler: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = importlib.util.find_spec

    def find(name: str, *rest: Any) -> Any:
        return None if name == "onnxscript" else real(name, *rest)

    ours = job()
    monkeypatch.setattr(importlib.util, "find_spec", find)
    runtimes, notes = build_runtimes(ours, choose_images(ours), tmp_path)
    assert [runtime.name for runtime in runtimes] == ["eager", "timm"]
    assert any("ONNX Runtime needs onnx" in note and "[onnx]" in note for note in notes)


def test_what_timm_does_not_have_is_left_out_with_its_reason(
    no_compiler: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(inference, "build_onnx", lambda *given: [])
    ours = job("model.position=rotary")
    runtimes, notes = build_runtimes(ours, choose_images(ours), tmp_path)
    assert [runtime.name for runtime in runtimes] == ["eager"]
    assert "timm" in notes[-1]
    assert "rotary" in notes[-1]


def test_images_come_at_the_size_of_the_network() -> None:
    assert choose_images(job("data.image_size=12", "model.image_size=24")).shape == (256, 3, 24, 24)


def test_latencies_are_those_of_the_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    now, taken = 0.0, iter([*[5.0] * 8, *[1.0] * 3, *[0.010] * 4, *[1.0] * 3, *[0.030] * 4])

    def answer(images: torch.Tensor) -> torch.Tensor:
        nonlocal now
        now += next(taken)
        return images

    monkeypatch.setattr(inference.time, "perf_counter", lambda: now)
    candidate = make_candidate(Runtime("slow", answer, ""), torch.zeros(6, 1), StopSignal(), 100)
    # Warm-up: twice three steps to settle and one; then two rounds of four, after three that do not count.
    measure_in_turn([candidate], rounds=2, seconds=20.0, warmup_steps=1)
    row = summarize([candidate])["slow"]
    assert row["latency_ms"] == pytest.approx({"median": 20, "p99": 30, "n": 8})
    assert [sample["images"] for sample in row["samples"]] == [24, 24]
