"""Kill sweeps and searches at random moments, run the command again until it ends, compare with whole ones.

    python -m tests.chaos_sweeps --kills 60 --seed 0 --out kills.csv

Victims are drawn by lot: the process that was called (SIGKILL, SIGTERM or SIGINT), a job, a process of the
launcher, everything at once as when the power fails. At last every job is to be there once and to have been
trained once, with the weights of a sweep that was never killed, bit for bit.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna

from tests.chaos import BASE, differences
from tests.conftest import ROOT, summary
from tests.soak import list_tree
from vitlab.core.files import csv_text

RATE = "optimizer.lr=tag(log,interval(1e-4,4e-3))"
SEARCH = ["sweep=optuna", RATE, "model.depth=1,2"]
KINDS: dict[str, list[str]] = {
    "grid": ["seed=1,2"],
    "grid, two at a time": ["seed=1,2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "search": [*SEARCH, "sweep.trials=2", "sweep.random_trials=1", "sweep.pruner=none"],
    "search, two at a time": [*SEARCH, "sweep.trials=2", "sweep.jobs=2", "sweep.pruner=none"],
    "search that prunes": [*SEARCH, "sweep.trials=3", "sweep.warmup_trials=1", "sweep.warmup_epochs=1"],
}
VICTIMS = ("launcher", "launcher", "launcher SIGTERM", "launcher SIGINT", "job", "all", "all", "worker")
FEWEST, MOST = 4, 8  # kills of one sweep


def list_processes(root: int, kind: str) -> list[int]:
    """Return those below a process that train a job, or those of its launcher."""
    word = {"job": b"-m\0vitlab\0", "worker": b"loky"}[kind]
    found = []
    for pid in list_tree(root)[1:]:
        with contextlib.suppress(OSError):
            if word in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def strike(process: subprocess.Popen[bytes], victim: str, lot: random.Random) -> bool:
    """Kill the victim; return whether it was still there."""
    if victim in ("job", "worker"):
        while not (found := list_processes(process.pid, victim)):
            if process.poll() is not None:
                return False
            time.sleep(0.01)
        chosen, signum = [lot.choice(found)], signal.SIGKILL
    elif victim == "all":
        for pid in (tree := list_tree(process.pid)):  # so that nobody sees another die
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        chosen, signum = [*tree, *list_tree(process.pid)], signal.SIGKILL
    else:
        chosen, signum = [process.pid], signal.Signals[(victim + " SIGKILL").split()[1]]
    if process.poll() is not None:
        return False
    for pid in chosen:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signum)
    return True


def call(
    folder: Path, typed: Sequence[str], lot: random.Random, victim: str = "", seconds: float = 0
) -> tuple[bool, int]:
    """Run the command, and kill the victim after so many seconds; return whether it was, and the status."""
    with open(folder.with_suffix(".txt"), "ab") as said:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *typed],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
    struck = False
    if victim:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        struck = strike(process, victim, lot)
    return struck, process.wait(600)


def look(folder: Path) -> dict[str, int]:
    """Return when each job that has finished wrote its last checkpoint."""
    jobs = [path.parent for path in folder.glob("*/summary.json")]
    done = [job for job in jobs if summary(job).get("status") == "finished"]
    return {job.name: (job / "checkpoints" / "last.ckpt").stat().st_mtime_ns for job in done}


def shortcomings(whole: Path, other: Path, kind: str, kills: int) -> Iterator[str]:
    """Yield what is wrong with a sweep that was killed."""
    records = [json.loads((folder / "sweep.json").read_text())["jobs"] for folder in (whole, other)]
    labels = [[job["label"] for job in jobs] for jobs in records]
    if labels[0] != labels[1]:
        yield f"jobs {labels[1]} in place of {labels[0]}"
        return
    folders = [job["folder"] for job in records[1]]
    there = {path.parent.name for path in other.glob("*/config.yaml")}
    if {*folders} != there or len({*folders}) != len(folders):
        yield f"folders {sorted(there)} of the jobs {folders}"
        return
    prunes = "prunes" in kind  # it depends on the moment at which epoch a trial is ended
    for one, job in zip(*records, strict=True):
        found, name = summary(other / job["folder"]), job["folder"]
        if job["state"] != found["status"] or job["state"] not in ("finished", *["pruned"] * prunes):
            yield f"{name} is {job['state']}, {found['status']}"
            continue
        starts = found["train"]["resumed_at"]
        if (
            starts != sorted(starts) or len(starts) > kills + 1
        ):  # the best of a search is resumed for its test
            yield f"{name} resumed at {starts}"
        if not prunes:
            yield from (f"{name}: {what}" for what in differences(whole / name, other / one["folder"]))
    if (other / "study.db").exists():
        trials = [read_trials(folder) for folder in (whole, other)]
        if [t.params for t in trials[0]] != [t.params for t in trials[1]]:
            yield "other trials in study.db"
        if [t.user_attrs["state"] for t in trials[1]] != [job["state"] for job in records[1]]:
            yield "study.db and sweep.json say different things"
        tested = ["test/accuracy" in summary(other / name)["metrics"] for name in folders]
        if sum(tested) != 1:
            yield f"{sum(tested)} trials were tested"
    if "Traceback" in (said := other.with_suffix(".txt").read_text(errors="replace")):
        yield "a traceback" if "KeyboardInterrupt" not in said else "a traceback of KeyboardInterrupt"


def read_trials(folder: Path) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="vitlab", storage=f"sqlite:///{folder}/study.db").trials


def rampage(
    kills: int, seed: int, work: Path, kinds: Sequence[str] = tuple(KINDS), victims: Sequence[str] = VICTIMS
) -> Iterator[dict[str, Any]]:
    """Kill until so many kills have been made, a kind after the other; yield a row a sweep."""
    lot, made = random.Random(seed), 0
    whole: dict[str, tuple[Path, float]] = {}
    for number in itertools.count():
        kind = kinds[number % len(kinds)]
        base = {o.split("=", 1)[0]: o for o in (*BASE, *KINDS[kind])}
        if kind not in whole:
            folder, begun = work / f"whole{number}", time.monotonic()
            typed = ["-m", *base.values(), f"hydra.sweep.dir={folder}"]
            assert call(folder, typed, lot)[1] == 0, folder.with_suffix(".txt").read_text()
            whole[kind] = folder, time.monotonic() - begun
        reference, seconds = whole[kind]
        folder = work / f"killed{number}"
        typed = ["-m", *base.values(), f"hydra.sweep.dir={folder}"]
        planned, struck, wrong, code = min(lot.randint(FEWEST, MOST), kills - made), [], [], 1
        for chance in itertools.count():
            # A trial that is killed twice before its first epoch counts as failed.
            once = "search" in kind and "job" in struck
            mine = [
                v for v in victims if not (v == "job" and once) and (v != "worker" or "joblib" in str(typed))
            ]
            victim = lot.choice(mine) if chance < planned else ""
            again = lot.random() < 0.5 and (folder / "sweep.json").exists()
            before = look(folder)
            was, code = call(
                folder,
                [f"sweep.resume={folder}"] if again else typed,
                lot,
                victim,
                lot.uniform(0.05, 0.6) * seconds,
            )
            struck += [victim] * was
            after = look(folder)
            if again_trained := [name for name in before if before[name] != after.get(name)]:
                wrong.append(f"trained again: {again_trained}")
            if code == 0 or chance > planned:
                break
        if code:
            wrong.append(f"the last call ended with status {code}")
        else:
            wrong += shortcomings(reference, folder, kind, len(struck))
        if orphans := find_orphans(folder):
            wrong.append(f"{len(orphans)} processes go on")
        made += len(struck)
        yield {
            "kind": kind,
            "kills": len(struck),
            "victims": "; ".join(struck),
            "resumes": sum(
                len(summary(path.parent)["train"]["resumed_at"]) for path in folder.glob("*/summary.json")
            ),
            "wrong": "; ".join(wrong),
        }
        if made >= kills:
            return


def find_orphans(folder: Path) -> list[int]:
    """Return the processes that train in the folder although the sweep has ended."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if f"{folder}/".encode() in line.read_bytes():
                found.append(int(line.parent.name))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--out", type=Path, help="a CSV file for the table")
    parser.add_argument("--work", type=Path, help="where to keep the sweeps; by default they are removed")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for row in rampage(given.kills, given.seed, given.work or Path(temporary), given.kinds):
            print(f"{row['kind']}: {row['victims'] or 'not killed'}: {row['wrong'] or 'right'}", flush=True)
            rows.append(row)
            if given.out:
                given.out.write_text(csv_text(list(row), rows))
    wrong = [row for row in rows if row["wrong"]]
    print(f"{sum(row['kills'] for row in rows)} kills of {len(rows)} sweeps, {len(wrong)} came out wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
