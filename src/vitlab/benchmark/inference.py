"""What answers images after training: PyTorch, ONNX Runtime and timm, from the same weights."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import timm
import torch
from torch import Tensor, nn

from vitlab.benchmark.timing import Candidate, Sample, timed
from vitlab.core.checkpoint import CheckpointMeta
from vitlab.core.errors import UserError
from vitlab.core.hardware import has_compiler
from vitlab.core.signals import StopSignal
from vitlab.data.preprocess import resize_pixels
from vitlab.inference.load import Classifier
from vitlab.inference.onnx import export_onnx, need_onnx, open_onnx, quantize
from vitlab.inference.timm_format import to_timm, why_not_timm
from vitlab.models.attention_weights import eager_copy
from vitlab.training.build import Components
from vitlab.training.callbacks.throughput import wait_for_device

BATCHES = (1, 256)  # images that are answered at a time


@dataclass(frozen=True)
class Runtime:
    """Something that answers images.

    Attributes:
        answer: uint8 images (B, C, H, W) → probabilities (B, K).
        note: what it is, for the table.
    """

    name: str
    answer: Callable[[Tensor], Tensor]
    note: str
    precision: str = "32-true"


def choose_images(job: Components) -> Tensor:
    """Return training images at the network's size, uint8 (max(BATCHES), C, H, W), on the run's device."""
    number = max(BATCHES)
    images = resize_pixels(job.data.train_images(number)[0], job.data.input_size)
    return images[torch.arange(number) % len(images)].to(job.data.device)


def build_runtimes(job: Components, images: Tensor, folder: Path) -> tuple[list[Runtime], list[str]]:
    """Return all that can answer images here, PyTorch first, and why others cannot.

    Everything computes in float32 (or 8 bits), whatever the run's precision, with torch's number of threads.

    Args:
        job: the run, whose network is copied.
        images: from `choose_images`; those that 8 bits are calibrated on.
        folder: where files of networks can lie as long as they are used.
    """
    model = Classifier(eager_copy(job.net), cast(CheckpointMeta, job.task.meta)).to(images.device)
    runtimes, notes = [Runtime("eager", in_torch(model), "PyTorch")], []
    if has_compiler(job.kind):
        compiled = Classifier(eager_copy(job.net), model.meta).to(images.device)
        compiled.compile(dynamic=False)
        runtimes.append(Runtime("compiled", in_torch(compiled), "PyTorch, torch.compile"))
    else:
        notes.append("PyTorch compiled is not measured: torch.compile finds no compiler")
    if images.device.type == "cpu":
        try:
            need_onnx("measuring ONNX Runtime")
            runtimes += build_onnx(model, images, folder)
        except UserError as error:
            notes.append(str(error))
    else:
        notes.append("ONNX Runtime is not measured: vitlab uses it on the CPU alone (trainer=cpu)")
    if reason := why_not_timm(job.net):
        notes.append(f"timm's network in a plain loop is not measured: {reason}")
    else:
        form = to_timm(job.net, job.config["model"], len(model.classes))
        net = timm.create_model(form.architecture, **form.arguments).to(images.device)
        net.load_state_dict(form.weights)
        plain = nn.Sequential(model.preprocess, net)
        runtimes.append(Runtime("timm", in_torch(plain), f"{type(net).__name__} of timm, PyTorch"))
    return runtimes, notes


def in_torch(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return what answers by a module of uint8 images → logits."""
    model.eval()

    @torch.inference_mode()
    def answer(images: Tensor) -> Tensor:
        return model(images).softmax(-1)

    return answer


def build_onnx(model: Classifier, images: Tensor, folder: Path) -> Iterator[Runtime]:
    """Yield ONNX Runtime in float32 and in 8 bits."""
    whole, small = folder / "float32.onnx", folder / "int8.onnx"
    channels, height, width = images.shape[1:]
    export_onnx(model, whole, (channels, height, width))
    yield Runtime("onnxruntime", open_onnx(whole), "ONNX Runtime")
    quantize(whole, small, images)
    yield Runtime("onnxruntime_int8", open_onnx(small), "ONNX Runtime, 8 bits", precision="int8")


def make_candidate(runtime: Runtime, images: Tensor, stop: StopSignal, flops: int) -> Candidate:
    """Return a candidate whose every step answers ``images``, and which keeps how long each took.

    Its ``details`` have ``latency_ms``: median and 99th percentile of ``n`` steps, of all rounds.

    Args:
        flops: of a forward pass over one image.
    """
    times: list[float] = []  # seconds of each step since the last measurement
    counted: list[float] = []
    details: dict[str, Any] = {}

    def take_steps() -> Iterator[int]:
        while True:
            start = time.perf_counter()
            runtime.answer(images)
            wait_for_device()
            times.append(time.perf_counter() - start)
            yield len(images)

    steps = take_steps()

    def measure(count: int) -> Sample:
        if not candidate.samples:
            counted.clear()  # what the warm-up took
        times.clear()
        sample = timed(steps, count, stop)
        counted.extend(times[-count:])
        median, last = np.quantile(counted, (0.5, 0.99)) * 1000
        details["latency_ms"] = {"median": float(median), "p99": float(last), "n": len(counted)}
        return sample

    exact = runtime.precision == "32-true"
    candidate = Candidate(
        runtime.name,
        measure,
        runtime.note,
        flops=flops if exact else None,
        precision=runtime.precision,
        details=details,
    )
    return candidate
