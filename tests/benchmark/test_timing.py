"""The arithmetic of the measurement, on a clock that the test turns."""

import signal
from collections.abc import Iterator
from typing import Any

import pytest

from vitlab.benchmark import timing
from vitlab.benchmark.timing import SETTLE, Candidate, Sample, measure_in_turn, summarize, timed, warm_up
from vitlab.core.signals import Interrupted, StopSignal


class Clock:
    """Steps that take as long as they say."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.taken: list[str] = []
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)

    def steps(self, name: str, *seconds: float) -> Iterator[int]:
        """Take ``seconds`` a step, the last for ever; 10 images each."""
        number = 0
        while True:
            self.now += seconds[min(number, len(seconds) - 1)]
            self.taken.append(name)
            number += 1
            yield 10

    def candidate(self, name: str, *seconds: float) -> Candidate:
        steps = self.steps(name, *seconds)
        return Candidate(name, lambda count: timed(steps, count, StopSignal()))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_the_first_steps_are_not_counted(clock: Clock) -> None:
    steps = clock.steps("slow start", *[100.0] * SETTLE, 0.5)
    assert timed(steps, 4, StopSignal()) == Sample(images=40, seconds=2.0)
    assert len(clock.taken) == SETTLE + 4


def test_warm_up_skips_the_compilation_and_finds_the_number_of_steps(clock: Clock) -> None:
    slow = clock.candidate("compiles", *[60.0] * (SETTLE + 2), 0.1)
    assert warm_up(slow, seconds=2.0, steps=2) == 20
    assert warm_up(clock.candidate("slower than that", 5.0), seconds=2.0, steps=2) == 1


def test_candidates_take_turns_and_each_begins_once(clock: Clock) -> None:
    candidates = [clock.candidate(name, 0.5) for name in "abc"]
    measure_in_turn(candidates, rounds=3, seconds=1.0, warmup_steps=1)
    turns = "".join(clock.taken)
    for name in "abc":
        turns = turns.replace(name * (SETTLE + 2), name.upper())
    assert turns.endswith("ABC" + "BCA" + "CAB")
    assert all(candidate.samples == [Sample(20, 1.0)] * 3 for candidate in candidates)


def measured(name: str, *samples: tuple[int, float], **options: Any) -> Candidate:
    return Candidate(name, lambda _: Sample(0, 0.0), samples=[Sample(*s) for s in samples], **options)


def test_medians_and_ratios_are_of_rounds() -> None:
    ours = measured("ours", (100, 1.0), (100, 0.5), (100, 1.0))
    theirs = measured("theirs", (50, 1.0), (10, 1.0), (25, 1.0), flops=7, details={"workers": 2})
    found = summarize([ours, theirs, measured("not measured")])
    assert list(found) == ["ours", "theirs"]
    assert found["ours"]["images_per_second"] == {"median": 100, "min": 100, "max": 200}
    assert found["ours"]["ratio"] is None
    # 100/50, 200/10, 100/25; the ratio of the medians would be another number, and fewer.
    assert found["theirs"]["ratio"] == {"median": 4, "min": 2, "max": 20}
    assert (found["theirs"]["workers"], found["theirs"]["flops_per_image"]) == (2, 7)
    assert found["theirs"]["samples"][1] == {"images": 10, "seconds": 1.0}


def test_an_unfinished_round_still_gives_ratios() -> None:
    found = summarize([measured("ours", (8, 1.0), (9, 1.0)), measured("theirs", (4, 1.0))])
    assert found["theirs"]["ratio"] == {"median": 2, "min": 2, "max": 2}


def test_a_signal_ends_it_between_two_steps(clock: Clock) -> None:
    stop = StopSignal()

    def steps() -> Iterator[int]:
        yield 1
        yield 1
        stop.received = signal.SIGINT
        yield 1
        raise AssertionError("went on")

    with pytest.raises(Interrupted) as caught:
        timed(steps(), 100, stop)
    assert caught.value.exit_code == 130


def test_steps_of_workers_are_counted_in_whole_bursts() -> None:
    taken = []

    def measure(steps: int) -> Sample:
        taken.append(steps)
        return Sample(steps, steps * 0.1)

    assert warm_up(Candidate("four workers", measure, workers=4), 2.0, 5) == 20
    assert taken == [8, 8], "five would end in the middle of a burst"
    assert warm_up(Candidate("four workers", measure, workers=4), 0.1, 5) == 12, "three bursts at least"
