"""Cut the power of a run after every call, and resume from whatever a disk may then have kept.

    python -m tests.power --states 70 --seed 0 --out power.csv

A run is recorded by strace: what it writes, names and syncs. From the record, disks are built as they may be
found after a crash (`tests.crashed_disk`). All such disks are read, and some of each kind, drawn by lot, are
resumed; the end is to be that of the run that was not cut.
"""

import argparse
import functools
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image

from tests.chaos import BASE, close, differences, read_series
from tests.conftest import ROOT
from tests.crashed_disk import LOSSES, Disk, State, path_of
from vitlab.core.errors import UserError
from vitlab.core.files import csv_text
from vitlab.core.metrics_csv import read_metrics
from vitlab.core.run_folder import RunFolder
from vitlab.training.callbacks.diagnostics import read_rows
from vitlab.training.resume import SavedRun
from vitlab.training.run import run

OPTIONS = ["callbacks=diagnostics", "callbacks.diagnostics.every_epochs=1", "callbacks.figures=true"]
CALLS = (
    "openat,write,pwrite64,writev,lseek,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,rmdir,"
    "ftruncate,mkdir,mkdirat,link,linkat,symlink,sendfile,copy_file_range,fallocate"
)


def record(command: Sequence[str], log: Path) -> None:
    """Run a command to its end under strace."""
    strace = ["strace", "-f", "-y", "-xx", "--seccomp-bpf", "-s", "100000000", "-o", str(log)]
    ended = subprocess.run(
        [*strace, "-e", f"trace={CALLS}", *command],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr


def read_calls(log: Path, root: Path) -> Iterator[tuple[str, list[str], int]]:
    """Yield name, arguments and result of the calls that went well and are about something below ``root``."""
    begun: dict[str, str] = {}
    mark, coded = f"{root}", "".join(f"\\x{byte:02x}" for byte in os.fsencode(root))
    with open(log, encoding="latin-1") as file:
        for line in file:
            pid, _, text = line.rstrip("\n").partition(" ")
            text = text.strip()
            if text.endswith("<unfinished ...>"):
                begun[pid] = text.removesuffix("<unfinished ...>")
                continue
            if text.startswith("<..."):
                text = begun.pop(pid, "") + text.partition("resumed>")[2]
            if not (mark in text or coded in text):
                continue
            found = re.match(r"(\w+)\((.*)\)\s+= (\d+)", text)
            if found:  # otherwise it failed
                yield found[1], re.findall(r'"[^"]*"|[^",\s][^",]*', found[2]), int(found[3])


@dataclass
class Crash:
    """What was found after the power went, and what had been promised by then: the steps of a checkpoint."""

    call: int
    loss: str
    state: State
    promised: int


def crashes(log: Path, root: Path, seed: int) -> Iterator[Crash]:
    """Yield every disk that may be found, each once for what had been promised."""
    disk, lot, seen = Disk(root), random.Random(seed), set()
    promised = written = 0
    for call, (name, arguments, result) in enumerate(read_calls(log, root)):
        synced = disk.apply(name, arguments, result)
        if name == "rename" and path_of(arguments[1]).endswith("/last.ckpt"):
            written += 1  # BASE has a checkpoint after each step
        if synced and synced.endswith("/checkpoints"):
            promised = written
        about = path_of(arguments[0])
        if name in ("openat", "lseek") or (name == "write" and about.endswith(".tmp")):
            continue  # temporary files are read by nobody
        for loss in LOSSES:
            state = disk.after(loss, lot)
            kept = [item for item in state.items() if not item[0].endswith(".tmp")]
            mark = hash((promised, *kept))
            if mark not in seen:
                seen.add(mark)
                yield Crash(call, loss, state, promised)


def lay_out(state: State, root: Path, place: Path) -> None:
    """Write a disk that was found below ``place`` instead of ``root``."""
    place.mkdir(parents=True)
    for path, content in state.items():
        target = place / os.path.relpath(path, root)
        if content is None:
            target.mkdir()
        else:
            target.write_bytes(content)


def faults(folder: RunFolder, whole: Path, promised: int) -> Iterator[str]:
    """Yield what is not as it must be in a run's folder that was found, before anybody resumes."""
    if not folder.config.exists():
        if promised:
            yield f"no config.yaml, and a checkpoint of step {promised} was promised"
        return
    if folder.config.read_bytes() != RunFolder(whole).config.read_bytes():
        yield "config.yaml"
        return
    if folder.summary.exists():
        try:
            if json.loads(folder.summary.read_text())["status"] == "finished":
                yield from (f"finished, but {what}" for what in differences(whole, folder.path))
                drawn = {path.name for path in RunFolder(whole).figures.iterdir()}
                yield from (
                    f"finished without {name}" for name in drawn if not (folder.figures / name).exists()
                )
        except ValueError:
            yield "summary.json"
    for picture in folder.figures.glob("*.png"):
        try:
            Image.open(picture).load()
        except OSError:
            yield f"half of {picture.name}"
    said: list[str] = []
    try:
        saved = SavedRun.find(folder, said.append)
    except UserError as error:
        yield f"cannot resume: {error}"
        return
    yield from said
    step = saved.step if saved else 0
    if step < promised:
        yield f"back to step {step}, and {promised} was promised"
    for what, read in (("metrics.csv", read_metrics), ("diagnostics.csv", read_rows)):
        kept, all_rows = (list(read(RunFolder(f))) for f in (folder.path, whole))
        if kept != all_rows[: len(kept)]:
            yield what
        if any(row["step"] <= step for row in all_rows[len(kept) :] if step):
            yield f"{what} has a gap before step {step}"
    one, two = (before(series, step) for series in (series_of(whole), read_series(folder.path)))
    if not close(one, two):
        yield f"TensorBoard has a gap before step {step}"


@functools.cache
def series_of(whole: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the series of the run that was not cut, which are read once."""
    return read_series(whole)


def before(series: Mapping[str, list[tuple[int, float]]], step: int) -> dict[str, list[tuple[int, float]]]:
    """Return what stands before an optimizer step, which a resume does not log again."""
    cut = {name: [point for point in points if point[0] < step] for name, points in series.items()}
    return {name: points for name, points in cut.items() if points}


def train_and_record(work: Path, options: Sequence[str] = OPTIONS) -> tuple[Path, Path, Path]:
    """Record a whole run; return the log, the folder below which it wrote, and the run's folder."""
    root = work.resolve() / "disk"
    root.mkdir()
    folder, log = root / "outputs" / "run", work / "calls.log"
    given = {o.split("=", 1)[0]: o for o in (*BASE, *options, f"hydra.run.dir={folder}")}
    record([sys.executable, "train.py", *given.values()], log)
    return log, root, folder


@dataclass
class Found:
    """What became of the disks of one kind of loss."""

    read: int = 0
    wrong: int = 0
    resumed: int = 0
    differ: int = 0


def survey(
    work: Path, states: int, seed: int, read: int | None = None, options: Sequence[str] = OPTIONS
) -> tuple[dict[str, Found], list[str]]:
    """Read all disks that may be found, or so many drawn by lot; resume some. Return what was wrong, too."""
    log, root, whole = train_and_record(work, options)
    lot, table, wrong = random.Random(seed), {loss: Found() for loss in LOSSES}, []
    found = list(crashes(log, root, seed))
    lot.shuffle(found)
    place = work / "found"
    folder = RunFolder(place / whole.relative_to(root))
    for crash in found[:read]:
        lay_out(crash.state, root, place)
        said = list(faults(folder, whole, crash.promised))
        table[crash.loss].read += 1
        table[crash.loss].wrong += bool(said)
        if table[crash.loss].resumed < -(-states // len(LOSSES)) and folder.config.exists():
            shutil.rmtree(place)
            lay_out(crash.state, root, place)
            run(folder)
            differ = [f"resumed, it differs in {what}" for what in differences(whole, folder.path)]
            table[crash.loss].resumed += 1
            table[crash.loss].differ += bool(differ)
            said += differ
        wrong += [f"after call {crash.call}, {crash.loss}: {what}" for what in said]
        shutil.rmtree(place)
    return table, wrong


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--states", type=int, default=50, help="so many are resumed, of each kind as many")
    parser.add_argument("--read", type=int, help="so many are read, drawn by lot; by default all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a CSV file for the table")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        table, wrong = survey(Path(work), given.states, given.seed, given.read)
    rows = [{"what is lost": loss} | asdict(found) for loss, found in table.items()]
    text = csv_text(list(rows[0]), rows)
    print("\n".join([*wrong, text]))
    if given.out:
        given.out.write_text(text)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
