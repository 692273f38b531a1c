"""Random configs: what is accepted trains, and loads and resumes; a broken command line ends in a sentence.

    python -m tests.properties --valid 1000 --invalid 1000 --seed 0 --out rows.csv

What is drawn, and how it is broken, stands in `tests.random_lines`.
"""

import argparse
import contextlib
import csv
import importlib
import io
import os
import re
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock
from urllib.error import URLError

import hydra
import hypothesis
import torch
from hypothesis.strategies import SearchStrategy

import vitlab
from tests.conftest import checkpoint, logging_restored, same_weights, summary, train_in
from tests.random_lines import Material, broken_lines, lines, words_of_verbs
from vitlab.core.cli import finish
from vitlab.core.errors import Diverged, UserError
from vitlab.core.run_folder import RunFolder
from vitlab.core.signals import Interrupted
from vitlab.data.loader import TrainLoader
from vitlab.training import run as running


class Outcome(NamedTuple):
    """What became of a command line: trained, diverged, refused, refused while building, or valid."""

    kind: str
    said: str = ""


def check_sentence(said: str) -> None:
    """Check that what a person reads is one answer in words."""
    assert said.strip(), "nothing is said"
    for word in ("Traceback", "Error(", " object at 0x", "DictConfig", "omegaconf", "<class"):
        assert word not in said, said
    assert max(map(len, said.splitlines())) < 6000, "more than a screen"


@contextlib.contextmanager
def composing_once() -> Iterator[None]:
    """Remember what Hydra has composed: it takes 0.1 s each time."""
    real = hydra.compose
    known: dict[tuple[str, ...], Any] = {}

    def remembered(root: str, overrides: list[str], **how: Any) -> Any:
        if (key := (root, *overrides)) not in known:
            known[key] = real(root, overrides, **how)
        return known[key]

    with mock.patch.object(hydra, "compose", remembered):
        yield


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Let nothing be downloaded."""
    gone = URLError("no network")
    with (
        mock.patch("urllib.request.urlopen", side_effect=gone),
        mock.patch("vitlab.models.hub.urlopen", side_effect=gone),
        mock.patch.dict(os.environ, {"HF_HUB_OFFLINE": "1"}),
    ):
        yield


def train_and_load(given: Sequence[str], work: Path, *, resumes: bool) -> Outcome:
    """Train what was drawn, and check that the files have what was in memory.

    Args:
        given: overrides.
        work: an empty folder.
        resumes: also stop another such run at its first step, and resume it.
    """
    folder, trained = work / "run", []

    def make_trainer(session: Any, parts: Any, logger: Any) -> Any:
        trained.append(parts)
        return make(session, parts, logger)

    make = running.make_trainer
    with (
        offline(),
        contextlib.chdir(work),
        contextlib.redirect_stdout(io.StringIO()),
        mock.patch.object(running, "make_trainer", make_trainer),
        mock.patch.object(running, "run", wraps=running.run) as run,
    ):
        try:
            train_in(folder, base=given)
        except Diverged as error:
            check_sentence(str(error))
            return Outcome("diverged", str(error))
        except UserError as error:
            check_sentence(str(error))
            left = [path for path in work.rglob("*") if path.is_file() and "cache" not in str(path)]
            assert not left, f"left behind: {left}"
            return Outcome("refused while building" if run.called else "refused", str(error))
        assert summary(folder)["status"] == "finished"
        (parts,) = trained
        config = parts.config
        if config["trainer"]["fast_dev_run"] or config["trainer"]["enable_checkpointing"] is False:
            assert not (folder / "checkpoints").exists()
            return Outcome("trained", "and kept nothing, as asked for")
        net = parts.task.net.float().eval()
        loaded = vitlab.load(folder)
        images = torch.rand(12, loaded.channels, *loaded.stored_size)
        with torch.no_grad():
            logits, expected = loaded(images), net(loaded.preprocess(images))
        assert torch.isfinite(expected).all(), "finished with logits that are not finite"
        assert torch.equal(logits, expected), f"logits differ by {(logits - expected).abs().max():.3g}"
        checkpoint(folder)
        if resumes:
            stop_and_resume(work / "stopped", given)
            assert same_weights(folder, work / "stopped"), "another end after a stop and a resume"
    return Outcome("trained", "resumed" if resumes else "")


def stop_and_resume(folder: Path, given: Sequence[str]) -> None:
    real = TrainLoader.__iter__

    def interrupted(loader: TrainLoader) -> Iterator[Any]:
        for number, batch in enumerate(real(loader)):
            if number == 0:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    with mock.patch.object(TrainLoader, "__iter__", interrupted), contextlib.suppress(Interrupted):
        train_in(folder, base=given)
    running.run(RunFolder(folder))


class PassedError(Exception):
    """All checks are passed, and something would be started."""


def answer(verb: str, words: Sequence[str], work: Path) -> Outcome:
    """Call a verb as its process would, without anything that trains."""
    before = listed(work)
    main: Callable[[], None] = importlib.import_module(verb).main
    out, err = io.StringIO(), io.StringIO()
    with (
        offline(),
        contextlib.chdir(work),
        logging_restored(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.dict(os.environ),
        mock.patch("sys.argv", [f"{verb}.py", *words]),
        mock.patch("sys.stdin", io.TextIOWrapper(io.BytesIO(b"nowhere.png\n"))),
        mock.patch("vitlab.training.run.run", side_effect=PassedError),
        mock.patch("vitlab.sweep.worker.start", side_effect=PassedError),
        mock.patch("vitlab.sweep.launchers._launch_elsewhere", side_effect=PassedError),
        mock.patch("vitlab.benchmark.measure.measure", side_effect=PassedError),
    ):
        try:
            status = finish(main)
        except PassedError:
            return Outcome("valid")
        except SystemExit as end:  # Hydra's and argparse's own, of --help
            status = int(end.code or 0)
    if status == 0:
        return Outcome("valid", "shown" if out.getvalue() else "")
    said = err.getvalue()
    assert status == 1, f"status {status}"
    assert said.startswith("error: "), said
    check_sentence(said.removeprefix("error: "))
    assert listed(work) == before, f"left behind: {listed(work) - before}"
    return Outcome("refused", said)


def listed(work: Path) -> set[Path]:
    return {path for path in work.rglob("*") if "__pycache__" not in str(path)}


def make_places(work: Path) -> None:
    """Put things beside a verb that are no trained networks."""
    (work / "empty").mkdir()
    (work / "file.txt").write_text("words")
    (work / "emptied.ckpt").touch()
    (work / "torn.ckpt").write_bytes(b"PK\x03\x04" + b"\0" * 100)
    (work / "run").mkdir()
    (work / "run" / "config.yaml").write_text("model: {}\n")


# The script


def examine(kind: str, number: int, drawn: list[str]) -> Outcome:
    """Return what became of a command line; a fault is no end of the script."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        try:
            if kind == "valid":
                return train_and_load(drawn, work, resumes=number % 4 == 0)
            if kind == "verbs":
                make_places(work)
                return answer(drawn[0], drawn[1:], work)
            return answer("benchmark" if number % 8 == 0 else "train", drawn, work)
        except (Exception, SystemExit) as error:
            where = [f for f in traceback.extract_tb(error.__traceback__) if "/vitlab/" in f.filename][-1:]
            place = "".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in where)
            return Outcome("FAULT", f"{type(error).__name__} {place}: {error}")


def explore(
    kind: str, drawn: SearchStrategy[list[str]], count: int, seed: int, out: Path | None
) -> Counter[Any]:
    """Try so many command lines; return how often there was which outcome, and for which cause."""
    found: Counter[Any] = Counter()

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.given(drawn)
    def test(words: list[str]) -> None:
        number = found.total()
        outcome = examine(kind, number, words)
        cause = re.sub(r"\S*[=/]\S*|\d+", "…", outcome.said)[:90]  # without what was typed
        found[kind, outcome.kind, cause] += 1
        if outcome.kind == "FAULT":
            print(f"{outcome.said!r}\n    {words!r}"[:5000], flush=True)
        if out:
            with open(out, "a", newline="", encoding="utf-8", errors="surrogateescape") as file:
                csv.writer(file, lineterminator="\n").writerow([kind, seed, number, *outcome, words])

    test()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.properties", description=__doc__)
    for kind in ("valid", "invalid", "verbs"):
        parser.add_argument(f"--{kind}", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a CSV file to which a row a command line is added")
    given = parser.parse_args()
    out = given.out and given.out.absolute()
    torch.set_num_threads(1)
    found: Counter[Any] = Counter()
    with tempfile.TemporaryDirectory() as name, composing_once():
        with contextlib.redirect_stdout(io.StringIO()):
            material = Material.make(Path(name))
        for kind, drawn in (
            ("valid", lines(material)),
            ("invalid", broken_lines(material)),
            ("verbs", words_of_verbs()),
        ):
            if number := getattr(given, kind):
                found += explore(kind, drawn, number, given.seed, out)
    for (kind, outcome, cause), number in found.most_common():
        print(f"{number:5} {kind}: {outcome} {cause!r}")
    sys.exit(any(outcome == "FAULT" for _, outcome, _ in found))


if __name__ == "__main__":
    main()
