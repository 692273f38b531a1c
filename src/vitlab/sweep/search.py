"""``sweep=optuna``: values drawn where earlier trials were good, and hopeless trials ended early. Torch-free.

From a command line to a search: a new one, or the one that it goes on with.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vitlab.config import compose
from vitlab.core.console import say
from vitlab.core.errors import UserError
from vitlab.core.processes import rank_in_environment
from vitlab.core.run_folder import RunFolder
from vitlab.sweep.record import RECORD
from vitlab.sweep.search_loop import Search
from vitlab.sweep.space import FREE, Space, identity, read_space
from vitlab.sweep.study import STUDY
from vitlab.training.launch import check_folder


def is_search(overrides: Sequence[str]) -> bool:
    """Whether a command line asks for a search rather than for every combination."""
    if folder := _typed(overrides, "sweep.resume"):
        return (Path(folder) / STUDY).is_file()
    if chosen := _typed(overrides, "sweep"):
        return chosen == "optuna"
    recipe = [o for o in overrides if o.startswith("experiment=")]
    with contextlib.suppress(UserError):  # said by the check of the whole command line
        return bool(recipe) and compose(recipe, with_hydra=True).hydra.runtime.choices["sweep"] == "optuna"
    return False


def search(overrides: Sequence[str]) -> None:
    """Run the search that a command line asks for, or go on with it; print what it found.

    Raises:
        UserError: it cannot be searched as asked for, or trials failed.
        Interrupted: Ctrl-C or SIGTERM; the trials under way have kept a checkpoint.
    """
    if rank_in_environment() is not None:
        raise UserError("a search starts the processes of its trials itself: call it without torchrun.")
    _need_optuna()
    given = _typed(overrides, "sweep.resume")
    space = read_space(_continued(Path(given), overrides) if given else overrides)
    folder = Path(given) if given else _earlier(space)
    if folder is None:
        check_folder(space.hydra)
        folder = space.folder
        folder.mkdir(parents=True, exist_ok=True)
        for note in _notes(space):
            say(f"note: {note}")
    with RunFolder(folder).lock():
        Search(folder, space).run()


def _need_optuna() -> None:
    try:
        import optuna
    except ImportError as error:
        raise UserError(f"sweep=optuna needs Optuna: pip install -e .[optuna] ({error})") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def _typed(overrides: Sequence[str], key: str) -> str | None:
    """Return what was typed for ``key``, or None."""
    return next((o.partition("=")[2] for o in reversed(overrides) if o.startswith(f"{key}=")), None)


def _continued(folder: Path, overrides: Sequence[str]) -> list[str]:
    """Return the overrides that a search began with, but for those that may change.

    Raises:
        UserError: others stand beside ``sweep.resume``, or the folder's record cannot be read.
    """
    beside = [o for o in overrides if not o.startswith("sweep.resume=")]
    typed = {o.partition("=")[0] for o in beside}
    if others := typed - {*FREE}:
        raise UserError(
            "sweep.resume= goes on with a search as it was configured; "
            f"{', '.join(FREE[:3])} alone may change, found {', '.join(sorted(others))}."
        )
    before = _read_record(folder)
    if before is None:
        raise UserError(f"{folder / RECORD} is damaged: repeat the command that began the search.")
    kept = [o for o in before["fixed"] if o.partition("=")[0] not in {*typed, "sweep.resume", "sweep.new"}]
    return [*kept, *(f"{key}={values}" for key, values in before["space"].items()), *beside]


def _earlier(space: Space) -> Path | None:
    """Return the folder of the newest search that the same command began, or None."""
    if space.config["sweep"]["new"]:
        return None
    place = space.folder.name if _typed(space.hydra, "hydra.sweep.dir") else "*"
    found = sorted(space.folder.parent.glob(f"{place}/{RECORD}"), key=lambda file: file.stat().st_mtime)
    for file in reversed(found):
        known = _read_record(file.parent)
        if known and identity(known["fixed"], known["space"]) == space.identity:
            return file.parent
    return None


def _read_record(folder: Path) -> dict[str, Any] | None:
    """Return what a search was asked for: its fixed overrides and its space; None where it is no search."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))["search"]
        return {"fixed": list(found["fixed"]), "space": dict(found["space"])}
    return None


def _notes(space: Space) -> Iterator[str]:
    """Yield what of the settings is without effect."""
    sweep, epochs = space.config["sweep"], space.config["trainer"]["max_epochs"]
    pruner, typed = sweep["pruner"], {o.partition("=")[0] for o in space.fixed}
    if sweep["trials"] <= sweep["random_trials"]:
        yield f"sweep.random_trials={sweep['random_trials']}: all {sweep['trials']} are drawn at random."
    for key, of in (("warmup_trials", ("median",)), ("warmup_epochs", ("median", "hyperband"))):
        if f"sweep.{key}" in typed and pruner not in of:
            yield f"sweep.{key} has no effect with sweep.pruner={pruner}."
    late = 0 < epochs <= sweep["warmup_epochs"] or (
        pruner == "median" and sweep["trials"] <= sweep["warmup_trials"]
    )
    if pruner != "none" and late:
        yield "no trial is ended early: sweep.warmup_epochs or sweep.warmup_trials is all there is."
