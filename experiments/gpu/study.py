"""Measure all that waits for a GPU: each measurement a process with a time limit, what it found kept at once.

python -m experiments.gpu.study OUT [NAME…] [--toy] [--data DIR] [--work DIR] [--seconds N]

`run.sh` beside this file prepares packages and images and then calls it. OUT/results.json and results.md are
written anew after every measurement. What is finished there is measured again only if it is named.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.gpu.figures import read_benchmark, read_float16, read_memory, read_resume, read_training
from vitlab.config import combinations, keys
from vitlab.core.cli import Parser, finish
from vitlab.core.console import escape_markdown, say
from vitlab.core.errors import UserError
from vitlab.core.files import make_folder, write_atomic, write_json
from vitlab.core.processes import describe_exit
from vitlab.core.provenance import find_commit, find_versions
from vitlab.core.run_folder import RunFolder
from vitlab.core.signals import PARENT, on_signal
from vitlab.core.suggest import suggest

ROOT = Path(__file__).parents[2]
GRACE = 5.0  # seconds to write what there is, after the time is up
LEAST = 15.0  # seconds under which nothing is begun
RUNNING: set[subprocess.Popen[bytes]] = set()
COMPOSING = threading.Lock()  # Hydra composes one config at a time
RECIPES = (
    *("convstem_fast", "vit_conv_blocks", "vit_cifar", "vit_small_data", "vit_small_data_spt_lsa"),
    *("cct_7_3x1", "cnn_vs_vit", "tutorial_224", "vit_b16_finetune"),
)
OF_RECIPES = {"cnn_vs_vit": ["model=resnet18"], "vit_b16_finetune": ["model.pretrained=false"]}
# Adam's rate grows with the root of the batch. With a fourth of the steps, each at twice the rate, the decay
# has to double for the weights to decay as far.
BATCH_128 = ("data.batch_size=128", "optimizer.lr=4e-3", "optimizer.weight_decay=2e-3")
# A network of every part, in which each kernel that training uses has its turn.
KILLED = (
    *("model=vit_convstem_tiny", "model.dim=96", "model.heads=3", "model.drop_path=0.1", "augment=strong"),
    *("data.image_size=32", "data.num_train=3072", "data.val_size=1024", "data.num_test=512"),
    *("data.batch_size=128", "optimizer=muon", "callbacks.ema.decay=0.9", "trainer.precision=bf16-mixed"),
)
TOY = (
    *("data=shapes", "data.num_train=320", "data.num_test=32", "data.val_size=32", "data.batch_size=16"),
    *("data.image_size=16", "trainer=cpu", "trainer.precision=32", "trainer.max_epochs=2", "compile=false"),
    *("model.dim=16", "model.depth=1", "model.heads=2", "scheduler.warmup_epochs=1"),
)
TOY_BENCHMARK = ("benchmark.rounds=2", "benchmark.seconds=0.02", "benchmark.warmup_steps=1")


@dataclass(frozen=True)
class Measurement:
    """One process.

    Attributes:
        limit: seconds after which it is ended; what it has left by then is read all the same.
        command: its folder → the arguments of its Python; writes what the process needs to find there.
        read: its folder, and when the process was started (`time.time`) → figures.
    """

    name: str
    limit: float
    command: Callable[[Path], list[str]]
    read: Callable[[Path, float], dict[str, Any]]


def plan(toy: bool, data: Sequence[str]) -> list[list[Measurement]]:
    """Return the measurements, the most valuable first; those in one list time nothing and run side by side.

    Args:
        toy: tiny networks on built-in images and the CPU; nothing found means anything.
        data: overrides that say where CIFAR-10 is.
    """
    place = TOY if toy else (*data, "trainer=gpu")
    quiet = ("callbacks.figures=false", "trainer.enable_checkpointing=false")
    blocks_in_toy = ("model.tokenizer.width=8",) if toy else BATCH_128
    float16 = "auto" if toy else "16-mixed"

    def limit(seconds: float) -> float:
        return 300 if toy else seconds

    def train(*overrides: str, module: str = "vitlab") -> Callable[[Path], list[str]]:
        return lambda folder: ["-m", module, str(make_run(folder / "run", *quiet, *place, *overrides))]

    def benchmark(*overrides: str) -> Callable[[Path], list[str]]:
        asked = last_of_each(*place, *(TOY_BENCHMARK if toy else ()), *overrides)
        return lambda folder: [
            "-m",
            "experiments.gpu.measures",
            "benchmark",
            str(folder / "benchmark"),
            *asked,
        ]

    def memory(folder: Path) -> list[str]:
        steps = ("compile=false", "trainer.fast_dev_run=12", "logger=none", "callbacks.figures=false")
        for recipe in RECIPES[:1] if toy else RECIPES:
            make_run(folder / recipe, f"experiment={recipe}", *place, *steps, *OF_RECIPES.get(recipe, []))
        return ["-m", "experiments.gpu.measures", "memory", str(folder)]

    def resume(folder: Path) -> list[str]:
        asked = ["trainer.deterministic=true", *(() if toy else (*KILLED, "trainer=gpu"))]
        return ["-m", "experiments.gpu.measures", "resume", str(folder), *asked]

    return [
        [Measurement("convstem_fast", limit(210), train("experiment=convstem_fast"), read_training)],
        [
            Measurement(
                "layers",
                limit(120),
                benchmark(
                    *("experiment=convstem_fast", "callbacks.ema.decay=null", "compile=true"),
                    *(() if toy else ("benchmark.seconds=0.7", "benchmark.warmup_steps=10")),
                ),
                read_benchmark,
            )
        ],
        [
            Measurement(
                "vit_conv_blocks",
                limit(150),
                train("experiment=vit_conv_blocks", *blocks_in_toy, *(() if toy else ("compile=true",))),
                read_training,
            )
        ],
        [
            Measurement(
                "randaugment",
                limit(60),
                benchmark(
                    *("augment=randaugment", "benchmark.layers=[input]"),
                    *(() if toy else ("data.batch_size=4096", "benchmark.seconds=0.5")),
                ),
                read_benchmark,
            )
        ],
        [
            Measurement(
                "float16",
                limit(60),
                train(
                    *("experiment=convstem_fast", f"trainer.precision={float16}", "compile=false"),
                    *(() if toy else ("trainer.max_epochs=6",)),
                    module="tests.float16" if toy else "vitlab",  # a CPU has to pretend
                ),
                read_float16,
            ),
            Measurement("resume", limit(100), resume, read_resume),
            Measurement("memory", limit(100), memory, read_memory),
        ],
    ]


def last_of_each(*overrides: str) -> list[str]:
    """Return the overrides, of those with one key the last."""
    return [*{override.partition("=")[0]: override for override in overrides}.values()]


def make_run(folder: Path, *overrides: str) -> Path:
    """Make a run folder for ``python -m vitlab`` to begin with; of overrides with one key the last counts.

    Raises:
        UserError: the config is refused.
    """
    (composed,) = combinations([*last_of_each(*overrides), f"hydra.run.dir={folder}"])
    RunFolder.create(folder, composed.record)
    return folder


def measure(measurement: Measurement, folder: Path, deadline: float) -> dict[str, Any]:
    """Measure in ``folder``, which is emptied first; write and return result.json.

    Where no time is left, an earlier result stays.

    Args:
        deadline: of all measurements, by `time.monotonic`.
    """
    limit = min(measurement.limit, deadline - time.monotonic() - GRACE)
    record: dict[str, Any] = {
        "name": measurement.name,
        "status": "finished",  # or failed, timed out, not begun
        "error": None,
        "limit_seconds": round(limit, 1),
        "seconds": 0.0,
        "figures": {},
    }
    if limit < LEAST and (result := read_result(folder)):
        return result
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder)
    if limit < LEAST:
        record |= {"status": "not begun", "error": "the time of all measurements was up"}
    else:
        begun = time.time()
        try:
            with COMPOSING:
                command = measurement.command(folder)
            record |= run(command, folder / "output.txt", limit)
        except Exception as error:
            record |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        record["seconds"] = round(time.time() - begun, 1)
        try:
            record["figures"] = measurement.read(folder, begun)
        except Exception as error:  # what went wrong first says more
            if record["status"] == "finished":
                record |= {"status": "failed", "error": f"no figures: {type(error).__name__}: {error}"}
    write_json(folder / "result.json", record)
    return record


def read_result(folder: Path) -> dict[str, Any] | None:
    """Return an earlier result of a measurement; None if there is none."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads((folder / "result.json").read_text())
    return None


def run(command: Sequence[str], output: Path, limit: float) -> dict[str, Any]:
    """Run this Python with ``command`` for ``limit`` seconds at most; return status and error, if any."""
    environment = os.environ | {PARENT: str(os.getpid()), "PYTHONUNBUFFERED": "1"}
    with (
        open(output, "wb") as said,
        subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        RUNNING.add(process)
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            process.terminate()  # runs and benchmarks then write what they have
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            return {"status": "timed out", "error": f"ended after {limit:.0f} s"}
        finally:
            end(process)
            RUNNING.discard(process)
    if code:
        lines = output.read_text(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        return {"status": "failed", "error": f"{describe_exit(code)}: {last}"}
    return {}


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process, if it has not, and what it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def end_all(signum: int) -> None:
    """End at once with all processes; what was measured before is written."""
    for process in [*RUNNING]:
        end(process)
    os._exit(128 + signum)


def describe(figures: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield every figure with its dotted key, as text."""
    for key, value in keys.leaves(figures):
        if isinstance(value, float):
            yield key, f"{value:,.4f}" if abs(value) < 100 else f"{value:,.0f}"
        elif value is not None:
            yield key, f"{value:,}" if type(value) is int else str(value)


def write_results(out: Path, records: Sequence[Mapping[str, Any]], toy: bool) -> None:
    """Write results.json and results.md of what has been measured so far."""
    about = {"toy": toy, "commit": find_commit(), "versions": find_versions("triton", "tensorboard")}
    write_json(out / "results.json", about | {"measurements": records})
    lines = ["# toy: nothing here means anything" if toy else "# Measured on a GPU", ""]
    lines += [f"commit {about['commit']}; {json.dumps(about['versions'])}", ""]
    lines += ["| measurement | what | |", "|---|---|---|"]
    for record in records:
        limit = f"{record['seconds']:.0f} of {record['limit_seconds']:.0f} s"
        about_it = {record["status"]: limit, "error": record["error"]}
        for key, value in describe(about_it | record["figures"]):
            lines.append(f"| {record['name']} | {escape_markdown(key)} | {escape_markdown(value)} |")
    write_atomic(out / "results.md", ("\n".join(lines) + "\n").encode())


def measure_all(
    groups: Sequence[Sequence[Measurement]],
    out: Path,
    work: Path,
    seconds: float,
    *,
    named: Sequence[str] = (),
    toy: bool = False,
) -> list[dict[str, Any]]:
    """Measure group after group within ``seconds``; return the records, in order.

    Args:
        named: measure these alone; otherwise what is not finished in ``work``.

    Raises:
        UserError: there is no measurement of such a name.
    """
    deadline = time.monotonic() + seconds
    names = [measurement.name for group in groups for measurement in group]
    for name in named:
        if name not in names:
            raise UserError(f"there is no measurement {name!r}{suggest(name, names)}: {', '.join(names)}.")
    records = {name: result for name in names if (result := read_result(work / name))}
    for group in groups:
        chosen = [
            one
            for one in group
            if (one.name in named if named else records.get(one.name, {}).get("status") != "finished")
        ]
        with ThreadPoolExecutor(max_workers=len(group)) as pool:
            for done in as_completed(pool.submit(measure, one, work / one.name, deadline) for one in chosen):
                record = done.result()
                records[record["name"]] = record
                say(
                    f"{record['name']}: {record['status']}, {record['seconds']:.0f} s {record['error'] or ''}"
                )
                write_results(out, [records[name] for name in names if name in records], toy)
    return [records[name] for name in names if name in records]


def main() -> None:
    parser = Parser(prog="-m experiments.gpu.study", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--data", type=Path, help="CIFAR-10 as class folders; without it data=cifar10")
    parser.add_argument("--work", type=Path, help="folder for the runs (default: OUT/work)")
    parser.add_argument("--seconds", type=float, default=540.0, help="for all measurements")
    asked = parser.parse_args()
    out, work = make_folder(asked.out.absolute()), make_folder((asked.work or asked.out / "work").absolute())
    data = ["data=cifar10"]
    if asked.data:
        data = ["data=image_folder", f"data.root={asked.data.absolute()}", f"data.cache={work / 'cache'}"]
    with on_signal(end_all):
        groups = plan(asked.toy, data)
        records = measure_all(groups, out, work, asked.seconds, named=asked.names, toy=asked.toy)
    say(f"results  {out}/results.json, results.md")
    if left := [record["name"] for record in records if record["status"] != "finished"]:
        raise UserError(
            f"{len(left)} not finished: {', '.join(left)}. The same command again measures these."
        )


if __name__ == "__main__":
    sys.exit(finish(main))
