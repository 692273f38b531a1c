"""``sweep=optuna``: from a command line to a search, a new one or the one that it resumes."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import optuna

from vitlab.config.arguments import Arguments, check_folder
from vitlab.core.console import say
from vitlab.core.errors import UserError
from vitlab.core.run_folder import RunFolder
from vitlab.sweep.record import RECORD, Sweep, find_sweep
from vitlab.sweep.search_loop import Search
from vitlab.sweep.space import FREE, Space, identify, read_space


def run_search(arguments: Arguments) -> None:
    """Run the search that a command line asks for, or resume it; see `vitlab.sweep.run_sweep`."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if arguments.sweep_resume:
        folder = Path(arguments.sweep_resume)
        space = read_space(_continue(folder, arguments.overrides))
    else:
        space = read_space(arguments.overrides)
        folder = _find_or_make(space)
    with RunFolder(folder).lock():
        Search(folder, space).run()


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


def _find_or_make(space: Space) -> Path:
    """Return the folder of the newest search that the same command began, or a new one."""

    def matches(other: Sweep) -> bool:
        return other.search is not None and identify(**other.search) == identify(**space.record)

    fresh = space.config["sweep"]["new"]
    if found := None if fresh else find_sweep(space.folder, space.hydra, matches):
        return found.path
    check_folder(space.hydra)
    space.folder.mkdir(parents=True, exist_ok=True)
    for note in _list_notes(space):
        say(f"note: {note}")
    return space.folder


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
