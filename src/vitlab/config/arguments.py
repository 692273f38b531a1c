"""What is typed after a verb: flags, ``resume=``, and overrides."""

import os
from argparse import ArgumentError, ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from vitlab.config.labels import own_overrides
from vitlab.config.suggest import SYNONYMS
from vitlab.core.errors import UserError
from vitlab.core.processes import rank_in_environment
from vitlab.core.run_folder import RunFolder, taken
from vitlab.core.suggest import nearest

# Hydra's flags that show the same whatever is typed beside them.
ALONE = ("-h", "--help", "--hydra-help", "--version")
# Its other flags that have a meaning here, and how argparse reads them.
FLAGS: dict[tuple[str, ...], dict[str, Any]] = {
    ("--multirun", "-m"): {"action": "store_true"},
    ("--cfg", "-c"): {"choices": ("job", "hydra", "all")},
    ("--package", "-p"): {},
    ("--resolve",): {"action": "store_true"},
    ("--info", "-i"): {
        "choices": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
        "nargs": "?",
        "const": "all",
    },
    ("--shell-completion", "-sc"): {"action": "store_true"},
    # Ours, for programs.
    ("--plan",): {"action": "store_true"},
    ("--status",): {"metavar": "DIR"},
}


@dataclass(frozen=True)
class Arguments:
    """What was typed after the verb.

    Attributes:
        overrides: everything that is no flag.
        multirun: a sweep is asked for.
        shows: what Hydra is to show, such as ``("--help",)``; empty where something is to be run.
        resume: the run folder to finish, if one is given.
        sweep_resume: the sweep to continue, if one is given.
        sweep_new: start a sweep afresh, though the same was begun before.
        plan: say what would be trained, and train nothing.
        status: the folder whose runs' states are asked for, if one is.
    """

    overrides: list[str]
    multirun: bool
    shows: tuple[str, ...] = ()
    resume: str | None = None
    sweep_resume: str | None = None
    sweep_new: bool = False
    plan: bool = False
    status: str | None = None


def parse_arguments(arguments: Sequence[str]) -> Arguments:
    """Tell flags, ``resume=`` and overrides apart.

    Raises:
        UserError: a flag does not exist or does not go with another, or ``resume=`` is not alone.
    """
    for flag in ALONE:
        if flag in arguments:
            return Arguments([], multirun=False, shows=(flag,))
    flags, rest = _parse_flags(arguments)
    overrides = [a for a in rest if not a.startswith("-")]
    for flag in rest:
        if flag not in overrides:
            raise UserError(f"there is no flag {flag}{_meant(flag)}. See --help.")
    for key in ("resume", "sweep.resume", "hydra.run.dir", "hydra.sweep.dir"):
        if f"{key}=" in overrides:
            raise UserError(f"{key}= needs the name of a folder, such as {key}=outputs/runs/NAME.")
    if flags.status is not None:
        if len(arguments) > 2 or not flags.status:
            raise UserError("--status takes the folder of a run, a sweep or a study, and nothing beside it.")
        return Arguments([], multirun=False, status=flags.status)
    if resume := [o.removeprefix("resume=") for o in overrides if o.startswith("resume=")]:
        if len(rest) > 1 or len(arguments) > 1 + flags.plan:
            others = " ".join(a for a in arguments if not a.startswith("resume=") and a != "--plan")
            raise UserError(
                "resume= continues a run exactly as it was configured and takes nothing beside it; found: "
                f"{others}. To train with other settings start a new run."
            )
        return Arguments([], multirun=False, resume=resume[0], plan=flags.plan)
    multirun = flags.multirun or "hydra.mode=MULTIRUN" in overrides
    if (flags.package or flags.resolve) and not flags.cfg:
        raise UserError("--package and --resolve are for --cfg: add --cfg job.")
    if shown := [flag for flag in (flags.cfg, flags.info, flags.shell_completion) if flag]:
        if len(shown) > 1 or multirun or flags.plan:
            raise UserError(
                "--cfg, --info and --shell-completion each show one config: give one of them, without -m or "
                "--plan."
            )
        words = list(arguments)
        for override in overrides:
            words.remove(override)
        # Hydra's own parser takes no settings after a flag that it has read some before.
        return Arguments(overrides, multirun=False, shows=(*overrides, *words))
    again = [o.removeprefix("sweep.resume=") for o in overrides if o.startswith("sweep.resume=")]
    sweep_resume = again[-1] if again and again[-1] != "null" else None
    of_sweep = [o for o in overrides if o.startswith(("sweep.", "sweep="))]
    if of_sweep and not multirun:
        alone = not own_overrides(overrides)
        if not (sweep_resume and alone):
            raise UserError(f"{of_sweep[0]} belongs to a sweep: add -m.")
        multirun = True
    new = "sweep.new=true" in [o.lower() for o in overrides]
    return Arguments(overrides, multirun, sweep_resume=sweep_resume, sweep_new=new, plan=flags.plan)


def _parse_flags(arguments: Sequence[str]) -> tuple[Namespace, list[str]]:
    """Return the flags by their names, and what else was typed."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for names, options in FLAGS.items():
        parser.add_argument(*names, **options)
    try:
        return parser.parse_known_args(arguments)
    except ArgumentError as error:
        raise UserError(f"{error}. See --help.") from error


def _meant(flag: str) -> str:
    """Return what to write for a flag that does not exist, or nothing."""
    key, sign, value = flag.lstrip("-").partition("=")
    key = SYNONYMS.get(key.replace("-", "_"), key)
    if flag.startswith("--") and not sign and (matches := nearest(flag, chain(*FLAGS), 0.7)):
        return f" (did you mean '{matches[0]}'?)"
    return f": settings are written without dashes, as {key}={value or 'VALUE'}" if len(key) > 1 else ""


def check_folder(folder: Path, kind: Literal["run", "sweep"] = "run") -> None:
    """Check that a new run or sweep can have its folder, before anything is written into it.

    Raises:
        UserError: it holds runs already, or cannot be written to.
    """
    if rank_in_environment():  # rank 0 makes it
        return
    if kind == "run" and (folder / "config.yaml").exists():
        raise taken(RunFolder(folder))
    if kind == "sweep" and any(folder.glob("*/config.yaml")):
        way = (
            f"continue it by sweep.resume={folder}"
            if (folder / "sweep.json").is_file()
            else f"finish single jobs of it by resume={folder}/NAME"
        )
        raise UserError(
            f"{folder} holds a sweep already; choose another folder (hydra.sweep.dir=…), or {way}."
        )
    above = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"hydra.{kind}.dir={folder}: {above} is not a folder that can be written to.")
