"""Let processes on two machines join, leave and die on one search, and its proxy and data base die as well.

    python -m tests.chaos_searches --rounds 5 --trials 20 --out kills.csv      (as root, on Linux)

The machines are those of tests/cluster, the trials those of tests/light_job.py, the storage is Debian's
PostgreSQL behind Optuna's proxy, which some processes go round. They come by lot, at most three at a time,
each with one or two trials at a time, and are killed (SIGKILL: alone, or with their trials at once, as when a
machine dies), told to leave (SIGTERM) or paused for longer than a beat may stand still. At last each trial
must have been trained once, in one place at a time, and the best alone tested, once.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests import light_job
from tests.chaos_workers import Observer, look, strike, wake
from tests.cluster import database as databases
from tests.cluster import machines as pair
from tests.cluster.database import DIRECT, PROXY, Database
from tests.cluster.machines import ADDRESS, Machines
from tests.conftest import TINY, summary
from tests.soak import list_tree
from tests.sweep.helpers import RATE
from vitlab.core.files import csv_text

LIGHT = [sys.executable, "-m", "tests.light_job", "train"]
WORKERS = ("worker", "worker", "machine", "machine", "SIGTERM", "pause worker", "pause machine")
VICTIMS = (*WORKERS, "proxy", "server")
AT_A_TIME = 3
PROGRAM = """\
from optuna.storages import get_storage, run_grpc_proxy_server
run_grpc_proxy_server(get_storage("postgresql://vitlab@localhost/trials"), host="0.0.0.0", port=13000)
"""


def play(folder: Path, trials: int, strikes: int, lot: random.Random, database: Database) -> dict[str, Any]:
    """Have a search worked on until all its trials have ended; return a row of the table."""
    machines, script = database.machines, folder.with_suffix(".sh")
    script.write_text(f"exec python -c '{PROGRAM}'\n")
    begin = ["-m", "sweep=optuna", *TINY, RATE, f"sweep.trials={trials}", f"hydra.sweep.dir={folder}"]
    struck: list[str] = []
    codes, again, finished_at = Counter[str](), set[str](), dict[str, int]()
    running: list[subprocess.Popen[bytes]] = []
    paused: list[tuple[float, subprocess.Popen[bytes], list[int]]] = []  # until when
    back: dict[str, float] = {"proxy": 0.0, "server": 0.0}  # when they are started
    started, next_strike, begun = 0, time.monotonic() + 15, time.monotonic()
    restart = {"proxy": lambda: database.start_proxy(script), "server": database.start_server}
    restart["proxy"]()
    back.clear()
    with Observer(folder) as observer:
        try:
            while True:
                now = time.monotonic()
                assert now - begun < 1200, machines.logs()
                for until, process, pids in [*paused]:
                    if now >= until:
                        wake(pids)
                        paused.remove((until, process, pids))
                        running.append(process)
                for name in [name for name, when in back.items() if now >= when]:
                    del back[name]
                    restart[name]()
                for process in [p for p in running if p.poll() is not None]:
                    running.remove(process)
                    codes[str(process.returncode)] += 1
                done = look(folder)
                again |= {name for name, when in finished_at.items() if done.get(name) != when}
                finished_at = done
                if not running and not paused and not back and is_over(folder, trials):
                    break
                while len(running) < AT_A_TIME and not is_over(folder, trials):
                    there = (folder / "sweep.json").exists()
                    typed = [f"sweep.resume={folder}"] if there else begin
                    typed = [*typed, f"sweep.storage={lot.choice((PROXY, PROXY, DIRECT))}"]
                    process = machines.start(
                        lot.choice([*ADDRESS]),
                        *LIGHT,
                        *typed,
                        f"sweep.jobs={lot.choice((1, 2))}",
                        env={light_job.SHORT: "1", light_job.SECONDS: "0.5", **database.env},
                        log=f"said-{folder.name}",
                        whole=False,
                    )
                    running.append(process)
                    started += 1
                if now >= next_strike and len(struck) < strikes and not is_over(folder, trials):
                    next_strike = now + lot.uniform(3, 10)
                    victim = lot.choice(VICTIMS)
                    mine = [process for process in running if len(list_tree(process.pid)) > 1]  # with trials
                    if victim in restart and not back:
                        struck.append(victim)
                        {"proxy": database.stop_proxy, "server": database.stop_server}[victim]()
                        back[victim] = now + lot.uniform(2, 12)
                    elif victim in WORKERS and mine:
                        struck.append(victim)
                        process = lot.choice(mine)
                        if pids := strike(process, victim):
                            running.remove(process)
                            paused.append((now + light_job.STALE + lot.uniform(5, 15), process, pids))
                time.sleep(0.1)
        finally:
            database.stop_proxy()
            for process in [*running, *(process for _, process, _ in paused)]:
                for pid in list_tree(process.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
    counts = Counter(struck)
    said = (machines.folder / f"said-{folder.name}.log").read_text(errors="replace")
    return {
        "trials": trials,
        "processes": started,
        **{victim: counts[victim] for victim in dict.fromkeys(VICTIMS)},
        "ended with": ", ".join(f"{code}: {number}" for code, number in sorted(codes.items())),
        # But for the one that is resumed for its test.
        "taken over": sum(len([*path.glob(".claim-*")]) - 1 for path in folder.glob("*/")) - 1,
        "resumed": sum(len(summary(path)["train"]["resumed_at"]) for path in folder.glob("[0-9]*/")) - 1,
        "outages noticed": said.count("does not answer ("),
        "two at once, s": round(observer.longest, 1),
        "minutes": round((time.monotonic() - begun) / 60, 1),
        "wrong": "; ".join([
            *shortcomings(folder, trials, said),
            *(["two trained one at once"] if observer.together else []),
            *(f"{name} was trained again" for name in again if not (folder / name / "tests").exists()),
        ]),
    }  # fmt: skip


def is_over(folder: Path, trials: int) -> bool:
    """Say whether the trials have ended, and the best is tested."""
    return len(look(folder)) == trials and any(folder.glob("*/tests")) and (folder / "values.png").exists()


def shortcomings(folder: Path, trials: int, said: str) -> Iterator[str]:
    """Yield what is wrong with a search."""
    states = Counter(job["state"] for job in json.loads((folder / "sweep.json").read_text())["jobs"])
    repeated = states.pop("repeated", 0)  # the same rate to four digits: not trained
    if states != {"finished": trials}:
        yield f"sweep.json: {dict(states)}"
    runs = [path.parent for path in folder.glob("*/config.yaml")]
    numbers = {int(path.name[:3]) for path in runs}
    if len(runs) != trials or len(numbers) != trials or max(numbers) >= trials + repeated:
        yield f"folders {sorted(path.name for path in runs)}"
    ends = Counter((path / "checkpoints" / "last.ckpt").read_text() for path in runs)
    if len(ends) != 1 or json.loads(next(iter(ends)))[1] != light_job.STEPS:
        yield f"{len(ends)} different ends"
    tests = {path.parent: path.read_text() for path in folder.glob("*/tests")}
    best = max(runs, key=lambda path: summary(path)["metrics"]["val/accuracy"])
    if tests != {best: "tested\n"}:
        yield f"tested: {tests}, and {best} is best"
    if "Traceback" in said:
        yield f"a traceback: {said[said.index('Traceback') :][:2000]}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--strikes", type=int, default=12, help="in each round")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a CSV file for the table")
    parser.add_argument("--work", type=Path, help="where to keep the searches; by default they are removed")
    given = parser.parse_args()
    if reason := pair.why_not() or databases.why_not():
        sys.exit(f"error: {reason}")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        work.mkdir(exist_ok=True)
        machines = Machines(work)
        machines.connect()
        database = Database(machines)
        try:
            database.start()
            for number in range(given.rounds):
                lot = random.Random(given.seed * 1000 + number)
                rows.append(play(work / f"round{number}", given.trials, given.strikes, lot, database))
                print(json.dumps(rows[-1]), flush=True)
                if given.out:
                    given.out.write_text(csv_text(list(rows[-1]), rows))
        finally:
            database.stop()
            machines.disconnect()
    sys.exit(any(row["wrong"] for row in rows))


if __name__ == "__main__":
    main()
