"""How a sweep stands, in words: a line for each job that ends, and the table of results. Torch-free."""

import contextlib
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from vitlab.core.console import duration, make_console, say
from vitlab.core.run_folder import RunFolder, Summary, SummaryData
from vitlab.sweep.record import OBJECTIVE, Job, Sweep

ROWS = 20  # of the table at the end


class Progress:
    """Say one line for each job that ends, in whatever process it runs.

    Args:
        say: prints a line.
    """

    def __init__(self, sweep: Sweep, say: Callable[[str], None]) -> None:
        self._sweep, self._say = sweep, say
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._done: dict[Job, SummaryData] = {}  # finished ones, with their summaries
        self._before: dict[Job, int] = {}  # open ones, with the age of their summaries
        self._states: dict[Job, str] = {}
        self.failed: list[Job] = []
        self._ended = 0
        for job in sweep.runnable:
            if sweep.state(job) == "finished":
                self._done[job] = Summary(sweep.run_folder(job)).data
            else:
                self._before[job] = _changed(sweep.run_folder(job))

    def look(self) -> None:
        """Look at every job that has not ended, and say which have by now."""
        with self._lock:
            states = {job: self._sweep.state(job) for job in self._before}
            for job, state in states.items():
                folder = self._sweep.run_folder(job)
                # Of a job that failed before, the folder says so until it runs again.
                if state in ("finished", "failed") and _changed(folder) != self._before[job]:
                    del self._before[job]
                    self._ended += 1
                    summary = Summary(folder).data
                    if state == "finished":
                        self._done[job] = summary
                    else:
                        self.failed.append(job)
                    running = sum(states[other] == "running" for other in self._before)
                    self._say(self._line(job, summary, running))
            if states != self._states:
                self._sweep.save()
            self._states = states

    @contextlib.contextmanager
    def follow(self) -> Iterator[None]:
        """Look every second, and a last time at the end."""
        ended = threading.Event()

        def watch() -> None:
            pause = 1.0
            while not ended.wait(pause):
                begun = time.monotonic()
                self.look()
                pause = max(1.0, 20 * (time.monotonic() - begun))  # of thousands of jobs a look takes a while

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.look()

    def _line(self, job: Job, summary: Mapping[str, Any], running: int) -> str:
        number, left = len(self._done) + len(self.failed), len(self._before)
        took = duration(summary.get("train", {}).get("wall_seconds") or 0)
        if job in self._done:
            accuracy = _accuracy(summary)
            result = f"{OBJECTIVE} {accuracy:.4f}  {took}" if accuracy is not None else f"finished  {took}"
        else:
            # The job itself has said the rest, or train.log has it.
            said = str(summary.get("error", "")).partition("\n")[0].partition(". ")[0]
            result = f"failed after {took}: {said} ({self._sweep.run_folder(job)}/train.log)"
        counts = f"failed {len(self.failed)}, skipped {self._sweep.skipped}, left {left}"
        if running:
            counts += f" ({running} running)"
        if left:
            seconds = (time.monotonic() - self._started) / self._ended * left
            counts += f", about {seconds / 60:.0f} min" if seconds >= 60 else ", less than a minute"
        ranked = ranking(self._done)
        best = f"; best {ranked[0][0] or 'so far'}: {ranked[0][1][OBJECTIVE][0]:.4f}" if ranked else ""
        return f"[{number}/{number + left}] {job.label}  {result}   {counts}{best}"


def _changed(folder: RunFolder) -> int:
    try:
        return folder.summary.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _accuracy(summary: Mapping[str, Any]) -> float | None:
    value = summary.get("metrics", {}).get(OBJECTIVE)
    return value if isinstance(value, float | int) else None


Row = tuple[str, dict[str, tuple[float, float | None, int]]]


def ranking(summaries: Mapping[Job, Mapping[str, Any]]) -> list[Row]:
    """Return, best first by hold-out accuracy, each combination with mean, deviation and number of its seeds.

    Test accuracy has no part in the order: nothing is selected on test data.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for job, summary in summaries.items():
        if _accuracy(summary) is not None:
            groups.setdefault(job.without_seed, []).append(summary["metrics"])
    rows = []
    for name, metrics in groups.items():
        row = {}
        for key in (OBJECTIVE, "test/accuracy"):
            if found := [m[key] for m in metrics if m.get(key) is not None]:
                spread = statistics.stdev(found) if len(found) > 1 else None
                row[key] = statistics.fmean(found), spread, len(found)
        rows.append((name, row))
    return sorted(rows, key=lambda row: -row[1][OBJECTIVE][0])


def show_results(sweep: Sweep) -> None:
    """Print the finished jobs as a table, best first, the seeds of one combination in one row."""
    done = {j: Summary(sweep.run_folder(j)).data for j in sweep.runnable if sweep.state(j) == "finished"}
    rows = ranking(done)
    table = Table()
    table.add_column("combination")
    for name in ("runs", OBJECTIVE, "test/accuracy"):
        table.add_column(name, justify="right")
    for name, row in rows[:ROWS]:
        cells = [_cell(*row[key]) if key in row else "-" for key in (OBJECTIVE, "test/accuracy")]
        table.add_row(name or "all alike", str(row[OBJECTIVE][2]), *cells)
    if len(rows) > ROWS:
        table.caption = f"and {len(rows) - ROWS} more"
    say(f"{sweep}, best {OBJECTIVE} first")  # no title of the table, which would break it to its own width
    make_console().print(table, soft_wrap=False)
    say(f"more: python compare.py {sweep}")


def _cell(mean: float, spread: float | None, _: int) -> str:
    return f"{mean:.4f}" if spread is None else f"{mean:.4f} ± {spread:.4f}"


def unfinished(sweep: Sweep, jobs: Sequence[Job] | None = None, most: int = 10) -> str:
    """Return which jobs are left, in lines."""
    jobs = sweep.left() if jobs is None else jobs
    lines = [f"  {job.label or job.folder}: {sweep.state(job)}" for job in jobs[:most]]
    return "\n".join([*lines, *([f"  and {len(jobs) - most} more"] if len(jobs) > most else [])])
