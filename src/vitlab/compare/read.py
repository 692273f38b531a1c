"""Run folders as plain numbers and words, whatever state they are in."""

import csv
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from vitlab.config import ignored_keys
from vitlab.config.keys import under
from vitlab.core.errors import UserError
from vitlab.core.run_folder import RunFolder, State
from vitlab.core.suggest import suggest

FILES = {"config.yaml", "summary.json", "metrics.csv"}  # any of these makes a folder that of a run
SWEEP = "sweep.json"
BROKEN = "broken"  # a file of the run is missing or damaged
STATES = (*State, BROKEN)
COSTS = ("parameters", "flops_per_image", "images_per_second", "wall_seconds")
MOST_EPOCHS = 1e9  # a number beyond is damage
DEEPEST = 40  # nodes inside nodes; a file that refers to itself has no end
# libyaml is seven times as fast, and almost every installation of PyYAML has it.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# What tells no groups apart: the seed, over which they are averaged, and what changes no result.
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
        metrics: such as ``val/accuracy``, as fractions.
        curve: epoch → ``val/accuracy``.
        cost: the known ones of ``COSTS``.
        sizes: images of train, val and test; empty where the run did not record them.
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
    metrics: dict[str, float] = field(default_factory=dict)
    curve: dict[int, float] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    epochs: int = 0
    device: str = ""
    commit: str = ""
    sizes: str = ""

    @cached_property
    def _data(self) -> dict[str, str]:
        keys = MEASURED_ON + (DRAWN if self.config.get("data.kind") == "shapes" else ())
        return {k: v for k, v in self.config.items() if under(k, keys)}

    @property
    def measured_on(self) -> dict[str, str]:
        """What decides on which images its accuracies were measured."""
        return self._data | ({"images": self.sizes} if self.sizes else {})


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Read every run below ``folders``, each once, in the order of their names.

    Raises:
        UserError: a folder is not there, or there is no run in any of them.
    """
    runs: dict[str, Run] = {}
    for given in map(Path, folders):
        if not given.is_dir():
            there = [str(p) for p in given.parent.glob("*/")] if given.parent.is_dir() else []
            what = "is a file" if given.exists() else "does not exist"
            raise UserError(
                f"{given}: expected a folder with runs, such as outputs/STUDY; it {what}"
                f"{suggest(str(given), there)}."
            )
        prefix = plain(given.resolve().name) if len(folders) > 1 else ""
        for run in _below(given):
            if len(folders) > 1:
                run.name = "/".join(filter(None, (prefix, run.name)))
            runs.setdefault(os.path.realpath(run.path), run)
    if not runs:
        raise UserError(
            f"there is no run below {', '.join(map(str, folders))}: a run's folder has a config.yaml."
        )
    _fill_in_sizes([*runs.values()])
    return [*runs.values()]


def _fill_in_sizes(runs: Sequence[Run]) -> None:
    """Of runs from before sizes were recorded, take those of the runs on the same data, if they agree."""
    known: dict[tuple[tuple[str, str], ...], set[str]] = {}
    data = [(*sorted(run.measured_on.items() - {("images", run.sizes)}),) for run in runs]
    for run, key in zip(runs, data, strict=True):
        known.setdefault(key, set()).update({run.sizes} - {""})
    for run, key in zip(runs, data, strict=True):
        if not run.sizes and len(known[key]) == 1:
            (run.sizes,) = known[key]


def _below(top: Path) -> Iterator[Run]:
    # A list, not glob("**"): what cannot be listed is a finding, and a run's own folders hold no runs.
    unlisted: list[OSError] = []
    for where, folders, files in os.walk(top, onerror=unlisted.append):
        path = Path(where)
        name = plain(str(path.relative_to(top))) if path != top else plain(path.resolve().name)
        if FILES & {*files}:
            folders.clear()
            yield read_run(path, name)
        elif SWEEP in files:
            yield from _skipped(path, "" if path == top else name)
        folders.sort()
    for error in unlisted:
        path = Path(error.filename)
        yield Run(path, plain(str(path)), BROKEN, f"the folder cannot be read: {error.strerror}")


def _skipped(folder: Path, name: str) -> Iterator[Run]:
    """Yield the combinations of a sweep that could not be trained and have no folder."""
    try:
        jobs = [j for j in json.loads((folder / SWEEP).read_text()).get("jobs", []) if not j["folder"]]
        for job in jobs:
            label = "/".join(filter(None, (name, plain(str(job["label"])))))
            yield Run(folder / plain(str(job["label"])), label, State.SKIPPED, plain(str(job["reason"])))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return  # for reading runs this file only adds a word


def read_run(path: Path, name: str) -> Run:
    """Read one run; a file that is missing or damaged makes it a broken one, and never an error."""
    run = Run(path, name, BROKEN)
    try:
        _read_config(run)
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        run.reason = f"config.yaml: {_why(error)}"
        return run
    try:
        summary = _read_summary(run)
    except (OSError, ValueError, RecursionError) as error:
        run.reason = f"summary.json: {_why(error)}"
        return run
    run.state = RunFolder(path).state(summary)
    try:
        _read_curve(run)
    except (OSError, ValueError, csv.Error) as error:
        run.reason = run.reason or f"metrics.csv: {_why(error)}"
    if run.state == State.FAILED:
        run.reason = plain(str(summary.get("error") or "no reason on record"))
    elif run.state not in (State.FINISHED, State.WAITING):
        planned = run.config.get("trainer.max_epochs", "?")
        run.reason = f"after epoch {run.epochs} of {planned}"
        if run.curve:
            run.reason += f", best val accuracy so far {100 * max(run.curve.values()):.2f} %"
    return run


def _read_config(run: Run) -> None:
    path = run.path / "config.yaml"
    content = yaml.load(path.read_bytes(), LOADER)
    if not isinstance(content, dict):
        raise ValueError("it is empty or no configuration")
    flat = dict(_flatten(content))
    run.seed = flat.get("seed", "")
    choices = content.get("choices")
    if isinstance(choices, dict):
        run.choices = {plain(str(k)): text(v) for k, v in choices.items() if v is not None}
    run.asked = [*_words(content.get("swept"))]
    run.asked += [o.partition("=")[0].lstrip("+~") for o in _words(content.get("overrides"))]
    kind = flat.get("data.kind")
    if kind in FROM_FILES:
        flat["data.root"] = os.path.basename(os.path.normpath(flat.get("data.root", "")))
    else:
        flat.pop("data.root", None)
    if flat.get("trainer.limit_test_batches") in ("0", "null"):
        # Looked at or not: the same training.
        del flat["trainer.limit_test_batches"]
    run.config = {k: v for k, v in flat.items() if not under(k, WITHOUT_EFFECT)}
    run.model = run.choices.get("model", "")


def _words(value: Any) -> list[str]:
    return [plain(v) for v in value if isinstance(v, str)] if isinstance(value, list) else []


def _read_summary(run: Run) -> Mapping[str, Any]:
    try:
        content = json.loads((run.path / "summary.json").read_bytes())
    except FileNotFoundError:
        return {}  # a job of a sweep whose turn has not come
    if not isinstance(content, dict):
        raise ValueError("it holds no record")
    parts = {key: _node(content.get(key)) for key in ("metrics", "model", "train", "data")}
    run.metrics = _numbers(parts["metrics"])
    cost = _numbers(parts["model"] | parts["train"])
    run.cost = {key: int(n) if (n := cost[key]).is_integer() else n for key in COSTS if key in cost}
    run.epochs = int(cost.get("epochs", 0))
    run.device, run.commit = (plain(str(content.get(k) or "")) for k in ("device", "commit"))
    sizes = _numbers(parts["data"])
    run.sizes = " / ".join(f"{sizes[part]:,.0f}" for part in ("train", "val", "test") if part in sizes)
    if isinstance(parts["model"].get("name"), str):
        run.model = plain(parts["model"]["name"])
    return content


def _node(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _read_curve(run: Run) -> None:
    path = run.path / "metrics.csv"
    if not path.exists():
        if run.state == State.FINISHED:
            run.reason = "metrics.csv is missing: no curve"
        return
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            epoch, value = (_number(row.get(k)) for k in ("epoch", "val/accuracy"))
            if epoch is not None and value is not None and 0 < epoch < MOST_EPOCHS:
                run.curve[int(epoch)] = value


def _numbers(node: Mapping[str, Any]) -> dict[str, float]:
    return {k: n for k, v in node.items() if (n := _number(v)) is not None}


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _flatten(node: Mapping[Any, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    if depth > DEEPEST:
        raise ValueError("it refers to itself")
    for key, value in node.items():
        name = f"{prefix}{plain(str(key))}"
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{name}.", depth + 1)
        else:
            yield name, text(value)


def text(value: Any, depth: int = 0) -> str:
    """Return a value as YAML would have it, the same for 1 and 1.0, for 1e-3 and 0.001."""
    if depth > DEEPEST:
        raise ValueError("it refers to itself")
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return str(value) if isinstance(value, int) else f"{value:.12g}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(text(v, depth + 1) for v in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{k}: {text(v, depth + 1)}' for k, v in value.items())}}}"
    return plain(str(value))


def plain(words: str) -> str:
    """Return text that every file and terminal can take: one line, no control characters."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(words.split()))


def _why(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return "is missing"
    if isinstance(error, OSError):
        return f"cannot be read ({error.strerror})"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"cannot be read (line {error.problem_mark.line + 1}: {plain(str(error.problem))})"
    return f"cannot be read ({plain(str(error)) or type(error).__name__})"
