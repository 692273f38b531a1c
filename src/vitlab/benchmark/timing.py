"""Images per second of several candidates that take turns: samples, rounds, medians, ratios."""

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from vitlab.core.signals import Interrupted, StopSignal
from vitlab.training.callbacks.throughput import wait_for_device

SETTLE = 3  # steps before each measurement that nobody counts: caches are another's, and queues full or empty


class Sample(NamedTuple):
    """One measurement."""

    images: int
    seconds: float

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.images / self.seconds


@dataclass
class Candidate:
    """Something that takes steps and can say how long they took.

    Attributes:
        measure: takes so many steps, after some that are not counted.
        note: what it is, for the table.
        workers: processes that make its batches. They began to fill their queues together, so batches come in
            bursts of one each, and steps are counted in whole bursts.
        flops: of one image's training step; None where there is none.
        details: for the record, such as the rates at other numbers of workers.
        samples: of the rounds.
        peak_bytes: most memory on a CUDA device in a measurement, with what the others keep there.
    """

    name: str
    measure: Callable[[int], Sample]
    note: str = ""
    workers: int = 0
    flops: int | None = None
    precision: str = "32-true"
    details: dict[str, Any] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    peak_bytes: int | None = None


def timed(steps: Iterator[int], count: int, stop: StopSignal, settle: int = SETTLE) -> Sample:
    """Take ``settle`` steps and then ``count`` steps that are timed, from an idle device to an idle device.

    Args:
        steps: each ``next`` takes a step and returns its number of images.

    Raises:
        Interrupted: a signal came; between two steps.
    """
    images, start = 0, 0.0
    for step in range(settle + count):
        if step == settle:
            wait_for_device()
            images, start = 0, time.perf_counter()
        images += next(steps)
        if stop.received:
            raise Interrupted(stop.received)
    wait_for_device()
    return Sample(images, time.perf_counter() - start)


def warm_up(candidate: Candidate, seconds: float, steps: int) -> int:
    """Let the candidate compile, allocate and fill its caches; return how many steps last ``seconds``."""
    burst = candidate.workers or 1
    whole = burst * math.ceil(steps / burst)
    candidate.measure(whole)  # a compilation falls in here
    sample = candidate.measure(whole)
    wanted = whole * seconds / sample.seconds
    return burst * max(1 if burst == 1 else 3, round(wanted / burst))


def measure_in_turn(candidates: Sequence[Candidate], rounds: int, seconds: float, warmup_steps: int) -> None:
    """Warm all up, then measure them in turn; each keeps its samples.

    A drift of the machine then falls on all alike, and a round's ratio is between neighbouring measurements.
    Who begins changes from round to round.
    """
    turns = deque((candidate, warm_up(candidate, seconds, warmup_steps)) for candidate in candidates)
    for _ in range(rounds):
        for candidate, count in turns:
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            candidate.samples.append(candidate.measure(count))
            if torch.cuda.is_available():
                candidate.peak_bytes = max(candidate.peak_bytes or 0, torch.cuda.max_memory_allocated())
        turns.rotate(-1)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, min and max."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summarize(candidates: Sequence[Candidate]) -> dict[str, dict[str, Any]]:
    """Return name → what was measured; ``ratio`` is the first candidate's rate over this one's, by round.

    Candidates without a sample (the measurement was stopped) are left out.
    """
    first = candidates[0].samples
    found: dict[str, dict[str, Any]] = {}
    for candidate in candidates:
        if not candidate.samples:
            continue
        ratios = [ours.rate / other.rate for ours, other in zip(first, candidate.samples, strict=False)]
        found[candidate.name] = {
            "note": candidate.note,
            "images_per_second": spread([sample.rate for sample in candidate.samples]),
            "ratio": spread(ratios) if ratios and candidate is not candidates[0] else None,
            "precision": candidate.precision,
            "flops_per_image": candidate.flops,
            "peak_device_bytes": candidate.peak_bytes,
            **candidate.details,
            "samples": [sample._asdict() for sample in candidate.samples],
        }
    return found
