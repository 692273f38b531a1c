"""What is typed after a verb: flags, ``resume=``, and overrides."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vitlab.config.suggest import SYNONYMS
from vitlab.core.errors import UserError
from vitlab.core.processes import rank_in_environment
from vitlab.core.run_folder import RunFolder, taken
from vitlab.core.suggest import join_or, nearest

SWEEP = ("-m", "--multirun")
# Hydra's flags that show the same whatever is typed beside them.
ALONE = ("--help", "--hydra-help", "--version")
# Those that show the config. Each with what may follow it.
SHOW: dict[str, tuple[str, ...]] = {
    "--cfg": ("job", "hydra", "all"),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
    "--shell-completion": (),
}
SHORT = {"-h": "--help", "-c": "--cfg", "-i": "--info", "-sc": "--shell-completion"}
OF_CFG = ("-p", "--package", "--resolve")
FLAGS = (*SWEEP, *ALONE, *SHOW, *SHORT, *OF_CFG)


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
    """

    overrides: list[str]
    multirun: bool
    shows: tuple[str, ...] = ()
    resume: str | None = None
    sweep_resume: str | None = None
    sweep_new: bool = False


def parse_arguments(arguments: Sequence[str]) -> Arguments:
    """Tell flags, ``resume=`` and overrides apart.

    Raises:
        UserError: a flag does not exist or does not go with another, or ``resume=`` is not alone.
    """
    for flag in ALONE:
        if flag in (SHORT.get(argument, argument) for argument in arguments):
            return Arguments([], multirun=False, shows=(flag,))
    flags = [a for a in arguments if a.startswith("-")]
    overrides = [a for a in arguments if not a.startswith("-")]
    for flag in flags:
        if flag.partition("=")[0] not in FLAGS:
            raise UserError(f"there is no flag {flag}{_meant(flag)}. See --help.")
    resume = [o.removeprefix("resume=") for o in overrides if o.startswith("resume=")]
    if resume and len(arguments) > 1:
        others = " ".join(a for a in arguments if not a.startswith("resume="))
        raise UserError(
            "resume= continues a run exactly as it was configured and takes nothing beside it; found: "
            f"{others}. To train with other settings start a new run."
        )
    if resume and not resume[0]:
        raise UserError("resume= needs the folder of a run, such as resume=outputs/runs/NAME.")
    if resume:
        return Arguments([], multirun=False, resume=resume[0])
    multirun = bool({*SWEEP} & {*flags}) or "hydra.mode=MULTIRUN" in overrides
    if _shows_config(arguments, flags, multirun=multirun):
        return Arguments(overrides, multirun=False, shows=tuple(arguments))
    again = [o.removeprefix("sweep.resume=") for o in overrides if o.startswith("sweep.resume=")]
    if again and not again[-1]:
        raise UserError("sweep.resume= needs the folder of a sweep, such as sweep.resume=outputs/runs/NAME.")
    sweep_resume = again[-1] if again and again[-1] != "null" else None
    of_sweep = [o for o in overrides if o.startswith(("sweep.", "sweep="))]
    if of_sweep and not multirun:
        alone = all(o.startswith(("hydra.", "hydra/", "sweep.", "sweep=")) for o in overrides)
        if not (sweep_resume and alone):
            raise UserError(f"{of_sweep[0]} belongs to a sweep: add -m.")
        multirun = True
    new = "sweep.new=true" in [o.lower() for o in overrides]
    return Arguments(overrides, multirun, sweep_resume=sweep_resume, sweep_new=new)


def _meant(flag: str) -> str:
    """Return what to write for a flag that does not exist, or nothing."""
    key, sign, value = flag.lstrip("-").partition("=")
    key = SYNONYMS.get(key.replace("-", "_"), key)
    if flag.startswith("--") and not sign and (matches := nearest(flag, FLAGS, 0.7)):
        return f" (did you mean '{matches[0]}'?)"
    return f": settings are written without dashes, as {key}={value or 'VALUE'}" if len(key) > 1 else ""


def _shows_config(arguments: Sequence[str], flags: Sequence[str], *, multirun: bool) -> bool:
    """Say whether Hydra is to show the config.

    Raises:
        UserError: a flag lacks its value, or two do not go together.
    """
    names = [SHORT.get(name, name) for name in (flag.partition("=")[0] for flag in flags)]
    shown = [name for name in dict.fromkeys(names) if name in SHOW]
    if len(shown) > 1:
        raise UserError(f"{' and '.join(shown)} each show something else: give one of them.")
    if multirun and shown:
        raise UserError(f"{shown[0]} is about one config, and -m asks for several: leave out -m.")
    if shown != ["--cfg"] and (of_cfg := [name for name in names if name in OF_CFG]):
        raise UserError(f"{of_cfg[0]} is for --cfg: add --cfg job.")
    for place, argument in enumerate(arguments):
        flag, sign, value = argument.partition("=")
        flag = SHORT.get(flag, flag)
        follows = value if sign else " ".join(arguments[place + 1 : place + 2])
        if flag == "--cfg" and follows not in SHOW[flag]:
            raise UserError(f"--cfg needs to know which config: --cfg {join_or(SHOW[flag])}.")
        if flag == "--info" and follows and "=" not in follows and follows not in SHOW[flag]:
            raise UserError(f"--info {follows}: expected {join_or(SHOW[flag])}.")
        if flag in ("-p", "--package") and (not follows or follows.startswith("-")):
            raise UserError(f"{flag} needs the name of a part, such as {flag} model.")
    return bool(shown)


def check_folder(overrides: Sequence[str]) -> None:
    """Check that the folder asked for can be used, before anything is written into it.

    Raises:
        UserError: it holds runs already, or cannot be written to.
    """
    for override in overrides:
        key, _, value = override.partition("=")
        if key not in ("hydra.run.dir", "hydra.sweep.dir"):
            continue
        if not value:
            raise UserError(f"{key}= needs the name of a folder.")
        folder = Path(value)
        if rank_in_environment():  # rank 0 makes it
            continue
        if key == "hydra.run.dir" and (folder / "config.yaml").exists():
            raise taken(RunFolder(folder))
        if key == "hydra.sweep.dir" and any(folder.glob("*/config.yaml")):
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
            raise UserError(f"{key}={value}: {above} is not a folder that can be written to.")
