"""Run folders as plain numbers and words, whatever state they are in."""

import contextlib
import csv
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitlab.config import ignored_keys
from vitlab.config.checks import SECTIONS
from vitlab.config.keys import under
from vitlab.core.console import plain
from vitlab.core.errors import UserError
from vitlab.core.run_folder import RunFolder, State
from vitlab.core.suggest import suggest
from vitlab.core.untrusted import read_json, read_whole, read_yaml

FILES = {"config.yaml", "summary.json", "metrics.csv"}  # a folder with any of these is a run folder
SWEEP = "sweep.json"
BROKEN = "broken"  # a file of the run is missing or damaged
STATES = (*State, BROKEN)
COSTS = ("parameters", "flops_per_image", "images_per_second", "wall_seconds")
MOST_EPOCHS = 1e9  # a larger number is damage

# Keys that never separate groups: the seed, over which they are averaged, and what changes no result.
WITHOUT_EFFECT = ("seed", *ignored_keys.WITHOUT_EFFECT)
FROM_FILES = ("image_folder", "image_list")  # kinds of data whose root says which data it is
# What decides on which images an accuracy is measured.
MEASURED_ON = (
    *("data.kind", "data.root", "data.labels", "data.val_size", "data.test_size", "data.split_seed"),
    *("data.num_train", "data.num_test", "data.seed"),
    *("trainer.limit_val_batches", "trainer.limit_test_batches", "trainer.overfit_batches"),
)
DRAWN = ("data.image_size", "data.channels")  # with data=shapes the same numbers draw other images


@dataclass
class Run:
    """One run folder.

    Attributes:
        name: where it lies below the folder that was asked for.
        state: one of ``STATES``.
        reason: what went wrong, or how far it is.
        config: dotted key → value as text, without what has no effect on the result.
        choices: config group → option.
        asked: the keys that were swept, then those that were typed.
        overrides: as typed.
        sweep_command: as typed for the sweep that it is a job of; empty for others and for searches.
        metrics: such as ``val/accuracy``, as fractions.
        curve: epoch → ``val/accuracy``.
        cost: those of ``COSTS`` that are known.
        images: of train, val and test, where known.
        fingerprint: of image files, which of them; empty of other data, and of older runs.
        tested: which weights were tested, in words.
        sizes: the same in words.
        measured_on: what decides on which images the accuracies were measured.
    """

    path: Path
    name: str
    state: str
    reason: str = ""
    seed: str = ""
    model: str = ""
    config: dict[str, str] = field(default_factory=dict)
    choices: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    sweep_command: tuple[str, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)
    curve: dict[int, float] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    epochs: int = 0
    device: str = ""
    commit: str = ""
    images: dict[str, float] = field(default_factory=dict)
    fingerprint: str = ""
    tested: str = ""
    sizes: str = ""
    measured_on: dict[str, str] = field(default_factory=dict)


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Read every run below ``folders``, each once, in the order of their names.

    Raises:
        UserError: a folder is not there, or there is no run in any of them.
    """
    runs: dict[str, Run] = {}
    for given in map(Path, folders):
        if not given.is_dir():
            there = [str(p) for p in given.parent.glob("*/")]
            what = "is a file" if given.exists() else "does not exist"
            raise UserError(
                f"{given}: expected a folder with runs, such as outputs/STUDY; it {what}"
                f"{suggest(str(given), there)}."
            )
        prefix = plain(given.resolve().name) if len(folders) > 1 else ""
        for run in _below(given):
            run.name = "/".join(filter(None, (prefix, run.name)))
            runs.setdefault(os.path.realpath(run.path), run)
    if not runs:
        raise UserError(
            f"there is no run below {', '.join(map(str, folders))}: a run's folder has a config.yaml."
        )
    _fill_in_sizes([*runs.values()])
    return [*runs.values()]


def _fill_in_sizes(runs: Sequence[Run]) -> None:
    """Give runs without recorded sizes those of the other runs on the same data, if these agree."""
    same_data: dict[frozenset[tuple[str, str]], list[Run]] = defaultdict(list)
    for run in runs:
        same_data[frozenset(run.measured_on.items())].append(run)
    for members in same_data.values():
        known = {run.sizes for run in members} - {""}
        shared = min(known) if len(known) == 1 else ""
        for run in members:
            run.sizes = run.sizes or shared
            if run.sizes:
                run.measured_on["data.images"] = run.sizes


def _below(top: Path) -> Iterator[Run]:
    # A list, not glob("**"): what cannot be listed is a finding, and a run's own folders hold no runs.
    unlisted: list[OSError] = []
    sweeps: dict[Path, Mapping[str, Any]] = {}
    for where, folders, files in os.walk(top, onerror=unlisted.append):
        path = Path(where)
        name = plain(str(path.relative_to(top)) if path != top else path.resolve().name)
        folders.sort()
        if FILES & {*files}:
            folders.clear()
            run = read_run(path, name)
            if (sweep := sweeps.get(path.parent)) and not sweep.get("search"):
                run.sweep_command = tuple(_words(sweep.get("command")))
            yield run
        elif SWEEP in files:
            sweeps[path] = sweep = _read_sweep(path)
            yield from _skipped(path, sweep, "" if path == top else name)
            places = {job.get("folder"): place for place, job in enumerate(_jobs(sweep))}
            folders.sort(key=lambda folder: places.get(folder, len(places)))
    for error in unlisted:
        path = Path(error.filename)
        yield Run(path, plain(str(path)), BROKEN, f"the folder cannot be read: {error.strerror}")


def _read_sweep(folder: Path) -> Mapping[str, Any]:
    """Return a sweep's record, which for reading runs only adds an order and a word; empty if damaged."""
    with contextlib.suppress(OSError, ValueError):
        if isinstance(content := read_json(folder / SWEEP), dict):
            return content
    return {}


def _jobs(sweep: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    jobs = sweep.get("jobs")
    return [job for job in jobs if isinstance(job, dict)] if isinstance(jobs, list) else []


def _skipped(folder: Path, sweep: Mapping[str, Any], name: str) -> Iterator[Run]:
    """Yield the combinations of a sweep that could not be trained and have no folder."""
    for job in _jobs(sweep):
        if job.get("folder") is None and "label" in job:
            label, reason = plain(str(job["label"])), plain(str(job.get("reason")))
            yield Run(folder / label, "/".join(filter(None, (name, label))), State.SKIPPED, reason)


def read_run(path: Path, name: str) -> Run:
    """Read one run; a missing or damaged file makes it a broken run, and raises nothing."""
    run = Run(path, name, BROKEN)
    file = "config.yaml"
    try:
        _read_config(run)
        file = "summary.json"
        summary = _read_summary(run)
    except (OSError, ValueError) as error:
        run.reason = f"{file}: {_why(error)}"
        return run
    run.state = RunFolder(path).state(summary)
    try:
        _read_curve(run)
    except FileNotFoundError:
        if run.state == State.FINISHED:
            run.reason = "metrics.csv is missing: no curve"
    except (OSError, ValueError, csv.Error) as error:
        run.reason = f"metrics.csv: {_why(error)}"
    if run.state == State.FAILED:
        run.reason = plain(str(summary.get("error") or "no reason on record"))
    elif run.state not in (State.FINISHED, State.WAITING):
        planned = run.config.get("trainer.max_epochs", "?")
        run.reason = f"after epoch {run.epochs} of {planned}"
        if run.curve:
            run.reason += f", best val accuracy so far {100 * max(run.curve.values()):.2f} %"
    return run


def _read_config(run: Run) -> None:
    content = read_yaml(run.path / "config.yaml")
    if not isinstance(content, dict):
        raise ValueError("it is empty or no configuration")
    if lacks := [key for key in SECTIONS if key not in content]:
        raise ValueError(f"it has no {', '.join(lacks)}")
    flat = dict(flatten(content))
    run.seed = flat.get("seed", "")
    chosen = {k: v for k, v in flat.items() if k.startswith("choices.") and v != "null"}
    run.choices = {key.removeprefix("choices."): option for key, option in chosen.items()}
    run.asked = [*_words(content.get("swept"))]
    run.overrides = _words(content.get("overrides"))
    run.asked += [o.partition("=")[0].lstrip("+~") for o in run.overrides]
    run.config = effective(flat)
    keys = MEASURED_ON + (DRAWN if run.config.get("data.kind") == "shapes" else ())
    run.measured_on = {k: v for k, v in run.config.items() if under(k, keys)}
    run.model = run.choices.get("model", "")


def effective(flat: Mapping[str, str]) -> dict[str, str]:
    """Return what can change a result, of a config as `flatten` gives it; of ``data.root`` the last name."""
    found = {key: value for key, value in flat.items() if not under(key, WITHOUT_EFFECT)}
    if found.get("data.kind") in FROM_FILES:
        found["data.root"] = os.path.basename(os.path.normpath(found.get("data.root", "")))
    else:
        found.pop("data.root", None)
    if found.get("trainer.limit_test_batches") in ("0", "null"):  # tested or not: the same training
        del found["trainer.limit_test_batches"]
    return found


def _words(value: Any) -> list[str]:
    return [plain(v) for v in value if isinstance(v, str)] if isinstance(value, list) else []


def _read_summary(run: Run) -> Mapping[str, Any]:
    try:
        content = read_json(run.path / "summary.json")
    except FileNotFoundError:
        return {}  # a job of a sweep whose turn has not come
    if not isinstance(content, dict):
        raise ValueError("it holds no record")
    metrics, model, train, data = (
        node if isinstance(node := content.get(key), dict) else {}
        for key in ("metrics", "model", "train", "data")
    )
    run.metrics = _numbers(metrics)
    cost = _numbers(model | train)
    run.cost = {key: int(n) if (n := cost[key]).is_integer() else n for key in COSTS if key in cost}
    run.epochs = int(cost.get("epochs", 0))
    run.device, run.commit = (plain(str(content.get(k) or "")) for k in ("device", "commit"))
    run.fingerprint = plain(str(data.get("fingerprint") or ""))
    run.tested = plain(str(content.get("tested") or ""))
    sizes = _numbers(data)
    run.images = {part: sizes[part] for part in ("train", "val", "test") if part in sizes}
    run.sizes = " / ".join(f"{number:,.0f}" for number in run.images.values())
    if isinstance(model.get("name"), str):
        run.model = plain(model["name"])
    return content


def _read_curve(run: Run) -> None:
    for row in csv.DictReader(read_whole(run.path / "metrics.csv").decode().splitlines()):
        epoch, value = (_number(row.get(k)) for k in ("epoch", "val/accuracy"))
        if epoch is not None and value is not None and 0 < epoch < MOST_EPOCHS:
            run.curve[int(epoch)] = value


def _numbers(node: Mapping[str, Any]) -> dict[str, float]:
    return {k: n for k, v in node.items() if (n := _number(v)) is not None}


def _number(value: Any) -> float | None:
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        if not isinstance(value, bool) and math.isfinite(number := float(value)):
            return number
    return None


def flatten(node: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted key, value as text) for every leaf; an empty mapping is one too."""
    for key, value in node.items():
        name = f"{prefix}{plain(str(key))}"
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{name}.")
        else:
            yield name, text(value)


def text(value: Any) -> str:
    """Return a value as YAML writes it, the same for 1 and 1.0, for 1e-3 and 0.001."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(text, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{k}: {text(v)}' for k, v in value.items())}}}"
    return plain(str(value))


def _why(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return "is missing"
    if isinstance(error, OSError):
        return f"cannot be read ({error.strerror})"
    return f"cannot be read ({plain(str(error)) or type(error).__name__})"
