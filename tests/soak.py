"""Whether memory, threads and open files stay flat over hours, hundreds of jobs and thousands of folders.

    python -m tests.soak watch PID OUT.csv --every 10     a process and its children, until it ends
    python -m tests.soak summary OUT.csv                  the first quarter against the last; OUT.png
    python -m tests.soak sweep --jobs 500 FOLDER          a sweep of the tiniest runs, watched
    python -m tests.soak compare --runs 250 500 1000 2000 compare.py on made run folders

Linux: all is read from /proc. Memory that several processes share counts for each of them.
"""

import argparse
import csv
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tests.compare.folders import make_run
from tests.conftest import ROOT, TINY
from vitlab.core.plotting import new_figure, save_figure
from vitlab.sweep.record import Sweep

# Of the process that was named, and of all that it started too.
MEASURES = ("processes", "rss_mb", "threads", "files", "tree_rss_mb", "tree_threads", "tree_files")
PAGE = os.sysconf("SC_PAGESIZE")


def list_tree(pid: int) -> list[int]:
    """Return a process and all that descend from it; those it has lost are others' by now."""
    children = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name, in brackets, may hold anything.
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it has ended
            continue
        if state != "Z":
            children[int(parent)].append(int(stat.parent.name))
    tree = [pid]
    for member in tree:  # which grows meanwhile
        tree += children[member]
    return tree


def measure(pid: int) -> tuple[float, int, int]:
    """Return resident memory in MB, threads and open files of one process.

    Raises:
        OSError: it has ended.
    """
    place = Path("/proc") / str(pid)
    resident = round(int((place / "statm").read_text().split()[1]) * PAGE / 1e6, 1)
    if (place / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
        raise ProcessLookupError(pid)  # ended, and nobody has taken note of it
    return resident, len(os.listdir(place / "task")), len(os.listdir(place / "fd"))


def sample(pid: int, every: float) -> Iterator[dict[str, float]]:
    """Yield what a process and its children hold, every so many seconds, until it ends."""
    begun = time.monotonic()
    for number in itertools.count(1):
        try:
            root = measure(pid)
        except OSError:
            return
        members = []
        for member in list_tree(pid):
            try:
                members.append(measure(member))
            except OSError:  # it ended between two looks
                continue
        totals = [sum(values) for values in zip(*members, strict=True)] or root
        values = (len(members), *root, *totals)
        yield {"seconds": round(time.monotonic() - begun, 1), **dict(zip(MEASURES, values, strict=True))}
        time.sleep(max(0.0, begun + number * every - time.monotonic()))


def watch(pid: int, out: Path, every: float) -> None:
    """Write samples to a CSV file, a line at a time, and sum them up."""
    with open(out, "w", newline="") as file:
        writer = csv.DictWriter(file, ["seconds", *MEASURES], lineterminator="\n")
        writer.writeheader()
        for row in sample(pid, every):
            writer.writerow(row)
            file.flush()
    summarize(out)


def summarize(out: Path) -> None:
    """Print the medians of the first and the last quarter and the slope of the whole; draw all of it."""
    with open(out, newline="") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    if len(rows) < 4:
        print(f"{out}: {len(rows)} samples are too few")
        return
    hours, quarter = [row["seconds"] / 3600 for row in rows], len(rows) // 4
    print(f"{len(rows)} samples in {hours[-1]:.2f} h     first quarter   last quarter   slope an hour")
    figure = new_figure(width=8, height=1.6 * len(MEASURES))
    for place, key in enumerate(MEASURES, 1):
        values = [row[key] for row in rows]
        first, last = statistics.median(values[:quarter]), statistics.median(values[-quarter:])
        slope = np.polyfit(hours, values, 1)[0]
        print(f"{key:24}{first:24.1f}{last:15.1f}{slope:+16.2f}")
        axes = figure.add_subplot(len(MEASURES), 1, place)
        axes.plot(hours, values, linewidth=0.8)
        axes.set(ylabel=key.replace("_", " "), ylim=(0, None), xlim=(0, None))
    axes.set_xlabel("hours")
    save_figure(figure, out.with_suffix(".png"))


def soak_sweep(folder: Path, jobs: int, every: float) -> None:
    """Run a sweep of the tiniest runs, two at a time, and watch the process that was called."""
    folder.mkdir(parents=True, exist_ok=True)
    options = [*TINY, "trainer.max_epochs=1", "data.num_train=32", f"seed=range({jobs})"]
    options = list({o.split("=", 1)[0]: o for o in options}.values())
    command = [sys.executable, str(ROOT / "train.py"), "-m", *options, f"hydra.sweep.dir={folder}/sweep"]
    command += ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    with open(folder / "said.txt", "a") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
        watch(process.pid, folder / "sweep.csv", every)
        code = process.wait()
    found = Sweep.load(folder / "sweep")
    print(f"{len(found.jobs)} jobs, exit status {code}: {dict(found.count_states())}")


def soak_compare(folder: Path, runs: Sequence[int]) -> None:
    """Compare more and more made run folders, five seeds a group, and print what that took."""
    print("runs   seconds   peak memory (MB)   most open files   most threads")
    parts, made = [], 0
    for number in runs:
        parts.append(folder / f"to{number}")
        for run in range(made, number):
            group, seed = divmod(run, 5)
            overrides = (f"optimizer.lr={1e-5 * (group + 1):.5f}", f"seed={seed}")
            val = 0.5 + 0.1 * (group % 7) / 7 + 0.001 * seed
            make_run(parts[-1] / f"run{run}", *overrides, val=val, swept=("optimizer.lr", "seed"))
        made = number
        command = [
            sys.executable,
            str(ROOT / "compare.py"),
            *map(str, parts),
            "--out",
            str(folder / "report"),
        ]
        begun = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        rows = list(sample(process.pid, 0.1))
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.monotonic() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        files, threads = (max(row[key] for row in rows) for key in ("files", "threads"))
        peak = used.ru_maxrss * 1024 / 1e6
        print(f"{number:<7}{seconds:7.1f}{peak:19.0f}{files:18.0f}{threads:15.0f}", flush=True)
        assert process.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    watching = commands.add_parser("watch")
    watching.add_argument("pid", type=int)
    watching.add_argument("out", type=Path)
    commands.add_parser("summary").add_argument("out", type=Path)
    sweeping = commands.add_parser("sweep")
    sweeping.add_argument("folder", type=Path)
    sweeping.add_argument("--jobs", type=int, default=500)
    for one in (watching, sweeping):
        one.add_argument("--every", type=float, default=10, help="seconds between two samples")
    commands.add_parser("compare").add_argument("--runs", type=int, nargs="+", default=[250, 500, 1000, 2000])
    given = parser.parse_args()
    if given.command == "watch":
        watch(given.pid, given.out, given.every)
    elif given.command == "summary":
        summarize(given.out)
    elif given.command == "sweep":
        soak_sweep(given.folder, given.jobs, given.every)
    else:
        with tempfile.TemporaryDirectory() as folder:
            soak_compare(Path(folder), sorted(given.runs))


if __name__ == "__main__":
    main()
