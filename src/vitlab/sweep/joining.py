"""Which search a command line means: a new one, or one that is there, to be resumed or joined."""

import secrets
from collections.abc import Iterator, Sequence

from vitlab.config.arguments import Arguments, check_folder
from vitlab.core.claim import is_held
from vitlab.core.console import say
from vitlab.core.errors import UserError
from vitlab.core.files import add_folder
from vitlab.sweep.record import RECORD, SearchRecord, Sweep, find_sweep
from vitlab.sweep.space import FREE, OTHERS, Space, identify, read_space
from vitlab.sweep.storage import NAME, Storage
from vitlab.sweep.study import Study, make_pruner


def find_search(arguments: Arguments) -> tuple[Space, Sweep | None]:
    """Return what a command line searches, and the search that is there, if it means one.

    Raises:
        UserError: it is refused as it stands, or does not fit the search that is there.
    """
    if arguments.sweep_resume:
        sweep = Sweep.load(arguments.sweep_resume)
        space = read_space(_continue(sweep, arguments.overrides))
        if space.storage and not _is_shared(sweep):
            raise UserError(
                f"{sweep} keeps its trials in its own folder, for one process: sweep.storage= cannot be "
                "given to it later. sweep.new=true with the whole command starts one that several work on."
            )
        return space, sweep
    space = read_space(arguments.overrides)
    return space, None if space.config["sweep"]["new"] else _find(space)


def make_search(space: Space) -> Sweep:
    """Make the folder of a new search.

    Raises:
        UserError: it cannot have that folder.
        FileExistsError: another process has made this search a moment ago.
    """
    try:
        check_folder(space.folder, "sweep")
    except UserError:
        if space.storage and not space.config["sweep"]["new"] and _find(space):
            raise FileExistsError(space.folder) from None  # and it has a trial already
        raise
    add_folder(space.folder)
    sweep = Sweep(
        space.folder.absolute(), get_command(space), [*space.swept], space.hydra, search=space.record
    )
    if space.storage:
        assert sweep.search
        sweep.search["study"] = f"{space.folder.name}-{secrets.token_hex(4)}"
        sweep.save(new=True)
    for note in _list_notes(space):
        say(f"note: {note}")
    return sweep


def get_command(space: Space) -> list[str]:
    """Return what is typed to begin a search."""
    return ["-m", *space.fixed, *(f"{key}={values}" for key, values in space.swept.items())]


def open_study(sweep: Sweep, space: Space, storage: Storage) -> Study:
    """Return the study of a search.

    Raises:
        UserError: the storage knows nothing of the trials that are there, or cannot be read.
    """
    assert sweep.search
    name = sweep.search.get("study", NAME)
    study = Study(
        sweep.path, space, storage.open(sweep.path, name, make_pruner(space)), alone=not storage.shared
    )
    if storage.shared and not study.trials and any(sweep.path.glob("*/config.yaml")):
        raise UserError(
            f"{sweep} has trials, and sweep.storage={storage.address} knows none of them: expected the study "
            f"{name} there. Give the storage that it was begun with; sweep.new=true starts afresh."
        )
    return study


def agree_on_trials(study: Study, sweep: Sweep, arguments: Arguments) -> None:
    """Find out how many trials all processes on the search go for, or decide it.

    Raises:
        UserError: others are at work on another number of trials.
    """
    asked: int | None = study.settings["trials"]
    if arguments.sweep_resume and not any(o.startswith("sweep.trials=") for o in arguments.overrides):
        asked = study.total
    total = asked or study.settings["trials"]
    if _is_shared(sweep) and study.total not in (None, total):
        folders = (sweep.run_folder(study.describe(trial)).path for trial in study.list_open())
        if any(is_held(folder) for folder in folders):
            raise UserError(
                f"sweep.trials={total}: others work on {sweep}, on {study.total} trials in all. Join them by "
                f"sweep.trials={study.total}, or change the number when they have ended."
            )
    study.agree(total)


def _is_shared(sweep: Sweep) -> bool:
    return sweep.search is not None and "study" in sweep.search


def _continue(sweep: Sweep, overrides: Sequence[str]) -> list[str]:
    """Return the overrides that a search began with, but for those that may change.

    Raises:
        UserError: others stand beside ``sweep.resume``.
    """
    assert sweep.search
    beside = [o for o in overrides if not o.startswith("sweep.resume=")]
    typed = {o.partition("=")[0] for o in beside}
    if others := typed - {*FREE, *OTHERS}:
        raise UserError(
            f"sweep.resume= resumes a search as it was configured; only {', '.join(FREE)} can change, "
            f"found {', '.join(sorted(others))}."
        )
    kept = [o for o in sweep.search["fixed"] if o.partition("=")[0] not in {*typed, *OTHERS}]
    return [*kept, *(f"{key}={values}" for key, values in sweep.search["space"].items()), *beside]


def _find(space: Space) -> Sweep | None:
    """Return the newest search that the same command began, or None.

    Raises:
        UserError: the folder that was asked for has another one.
    """
    wanted = identify(space.record)

    def matches(other: Sweep) -> bool:
        same = other.search is not None and identify(other.search) == wanted
        return same and _is_shared(other) == bool(space.storage)

    if found := find_sweep(space.folder, space.hydra, matches):
        return found
    if (space.folder / RECORD).is_file() and (there := Sweep.load(space.folder)).search:
        raise UserError(
            f"{there} is a search with other settings: {_describe_difference(there.search, space)}. "
            f"sweep.resume={there} goes on with its own; hydra.sweep.dir=… chooses another folder."
        )
    return None


def _describe_difference(there: SearchRecord, here: Space) -> str:
    """Return what two searches do not share, such as ``model.depth=4,6 there, model.depth=4 here``."""
    one, other = identify(there), identify(here.record)
    one["sweep.storage"] = "…" if "study" in there else "null"
    other["sweep.storage"] = "…" if here.storage else "null"
    keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    sides = ((one, "there"), (other, "here"))
    return "; ".join(
        ", ".join(f"{key}={values[key]} {side}" for values, side in sides if key in values) for key in keys
    )


def _list_notes(space: Space) -> Iterator[str]:
    """Yield what of the settings has no effect."""
    sweep, epochs = space.config["sweep"], space.config["trainer"]["max_epochs"]
    pruner, typed = sweep["pruner"], {o.partition("=")[0] for o in space.fixed}
    if sweep["trials"] <= sweep["random_trials"]:
        yield f"sweep.random_trials={sweep['random_trials']}: all {sweep['trials']} are drawn at random."
    for key, pruners in (("warmup_trials", ("median",)), ("warmup_epochs", ("median", "hyperband"))):
        if f"sweep.{key}" in typed and pruner not in pruners:
            yield f"sweep.{key} has no effect with sweep.pruner={pruner}."
    few = pruner == "median" and sweep["trials"] <= sweep["warmup_trials"]
    if pruner != "none" and (few or 0 < epochs <= sweep["warmup_epochs"]):
        yield "no trial is ended early: sweep.warmup_epochs or sweep.warmup_trials is all there is."
