"""``sweep=optuna``: values drawn where earlier trials were good, and hopeless trials ended early.

From a command line to a search: a new one, or the one that it resumes.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from vitlab.config import compose
from vitlab.config.arguments import check_folder
from vitlab.core.console import say
from vitlab.core.errors import UserError
from vitlab.core.run_folder import RunFolder
from vitlab.sweep.record import RECORD, Sweep, find_sweep
from vitlab.sweep.search_loop import Search
from vitlab.sweep.space import FREE, Space, identify, read_space
from vitlab.sweep.study import STUDY


def is_search(overrides: Sequence[str]) -> bool:
    """Whether a command line asks for a search rather than for every combination."""
    if folder := _get_typed(overrides, "sweep.resume"):
        return (Path(folder) / STUDY).is_file()
    if chosen := _get_typed(overrides, "sweep"):
        return chosen == "optuna"
    recipe = [o for o in overrides if o.startswith("experiment=")]
    with contextlib.suppress(UserError):  # said by the check of the whole command line
        return bool(recipe) and compose(recipe, with_hydra=True).hydra.runtime.choices["sweep"] == "optuna"
    return False


def run_search(overrides: Sequence[str]) -> None:
    """Run the search that a command line asks for, or resume it; print what it found.

    Raises:
        UserError: it cannot be searched as asked for, or trials failed.
        Interrupted: Ctrl-C or SIGTERM; the trials under way have kept a checkpoint.
    """
    _require_optuna()
    resumed = _get_typed(overrides, "sweep.resume")
    space = read_space(_continue(Path(resumed), overrides) if resumed else overrides)
    folder = Path(resumed) if resumed else _find_folder(space)
    if folder is None:
        check_folder(space.hydra)
        folder = space.folder
        folder.mkdir(parents=True, exist_ok=True)
        for note in _list_notes(space):
            say(f"note: {note}")
    with RunFolder(folder).lock():
        Search(folder, space).run()


def _require_optuna() -> None:
    try:
        import optuna
    except ImportError as error:
        raise UserError(f"sweep=optuna needs Optuna: pip install -e .[optuna] ({error})") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def _get_typed(overrides: Sequence[str], key: str) -> str | None:
    """Return what was typed for ``key``, or None."""
    return next((o.partition("=")[2] for o in reversed(overrides) if o.startswith(f"{key}=")), None)


def _continue(folder: Path, overrides: Sequence[str]) -> list[str]:
    """Return the overrides that a search began with, but for those that may change.

    Raises:
        UserError: others stand beside ``sweep.resume``, or the folder's record cannot be read.
    """
    beside = [o for o in overrides if not o.startswith("sweep.resume=")]
    typed = {o.partition("=")[0] for o in beside}
    if others := typed - {*FREE}:
        raise UserError(
            f"sweep.resume= resumes a search as it was configured; only {', '.join(FREE[:3])} can change, "
            f"found {', '.join(sorted(others))}."
        )
    before = Sweep.load(folder).search
    if before is None:
        raise UserError(f"{folder / RECORD} is not of a search; sweep.new=true starts afresh.")
    kept = [o for o in before["fixed"] if o.partition("=")[0] not in {*typed, "sweep.resume", "sweep.new"}]
    return [*kept, *(f"{key}={values}" for key, values in before["space"].items()), *beside]


def _find_folder(space: Space) -> Path | None:
    """Return the folder of the newest search that the same command began, or None."""
    if space.config["sweep"]["new"]:
        return None

    def matches(other: Sweep) -> bool:
        return other.search is not None and identify(**other.search) == space.identity

    found = find_sweep(space.folder, _get_typed(space.hydra, "hydra.sweep.dir") is not None, matches)
    return found.path if found else None


def _list_notes(space: Space) -> Iterator[str]:
    """Yield what of the settings has no effect."""
    sweep, epochs = space.config["sweep"], space.config["trainer"]["max_epochs"]
    pruner, typed = sweep["pruner"], {o.partition("=")[0] for o in space.fixed}
    if sweep["trials"] <= sweep["random_trials"]:
        yield f"sweep.random_trials={sweep['random_trials']}: all {sweep['trials']} are drawn at random."
    for key, pruners in (("warmup_trials", ("median",)), ("warmup_epochs", ("median", "hyperband"))):
        if f"sweep.{key}" in typed and pruner not in pruners:
            yield f"sweep.{key} has no effect with sweep.pruner={pruner}."
    late = 0 < epochs <= sweep["warmup_epochs"] or (
        pruner == "median" and sweep["trials"] <= sweep["warmup_trials"]
    )
    if pruner != "none" and late:
        yield "no trial is ended early: sweep.warmup_epochs or sweep.warmup_trials is all there is."
