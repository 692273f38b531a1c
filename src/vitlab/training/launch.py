"""From a composed config to a claimed run folder, and from there to a process. Torch-free."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from vitlab.config.plan import make_plan
from vitlab.core.errors import UserError
from vitlab.core.processes import rank_in_environment
from vitlab.core.provenance import find_commit, find_versions
from vitlab.core.run_folder import RunFolder, Summary, claimed, teacher_file
from vitlab.core.suggest import suggest


def check_data(configs: Sequence[Mapping[str, Any]]) -> None:
    """Find, and where necessary download, the data of every job, and hold the rest of its config against it.

    Before any run folder exists: what is refused here leaves nothing behind.

    Raises:
        UserError: the data, or a teacher, is not there, or a count does not fit.
    """
    for sentence in data_problems(configs).values():
        raise UserError(sentence)


def data_problems(configs: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """Return, for the places of those configs that `check_data` would refuse, why."""
    from vitlab.data import datasets

    found: dict[str, datasets.DatasetInfo | UserError] = {}
    problems: dict[int, str] = {}
    for place, config in enumerate(configs):
        data = config["data"]
        # Jobs that differ in the batch size only share a dataset, but each is checked.
        key = repr(sorted((k, repr(v)) for k, v in data.items()))
        try:
            if key not in found:
                try:
                    # Without the data set itself: many of them, each with its images, fill the memory.
                    found[key] = datasets.describe(datasets.build(data), data["val_size"])
                except UserError as error:  # asked for once: a download that fails takes its time
                    found[key] = error
            info = found[key]
            if isinstance(info, UserError):
                raise info
            asked = config["model"]["num_classes"]
            if asked is not None and asked != len(info.classes):
                raise UserError(
                    f"model.num_classes={asked}, but {info.name} has {len(info.classes)} classes. "
                    "Leave it out: it is found from the data."
                )
            make_plan(config, info.num_train)
            if "teacher" in config["task"]:
                teacher_file(config["task"])
        except UserError as error:
            problems[place] = str(error)
    return problems


# Hydra's flags that make sense here; there is one config tree.
FLAGS = (
    *("-m", "--multirun", "-h", "--help", "--hydra-help", "--version"),
    *("-c", "--cfg", "-p", "--package", "-r", "--resolve", "-i", "--info"),
)


@dataclass(frozen=True)
class Arguments:
    """What was typed after the verb."""

    overrides: list[str]
    multirun: bool
    resume: str | None
    checked: bool  # False where Hydra only shows something (--help, --cfg …)
    sweep_resume: str | None = None
    sweep_new: bool = False


def parse_arguments(arguments: Sequence[str]) -> Arguments:
    """Tell flags, ``resume=`` and overrides apart.

    Raises:
        UserError: ``resume=`` beside other overrides: the run goes on as it was configured.
    """
    flags = [a for a in arguments if a.startswith("-")]
    overrides = [a for a in arguments if not a.startswith("-")]
    multirun = bool({"-m", "--multirun"} & set(flags)) or "hydra.mode=MULTIRUN" in overrides
    for flag in flags:
        if flag.split("=")[0] not in FLAGS:
            key = flag.lstrip("-")
            hint = f"write {key}, without dashes" if "=" in key else suggest(flag, FLAGS).strip(" ()")
            raise UserError(f"there is no flag {flag}{f': {hint}' if hint else ''}. See --help.")
    resume = [o.removeprefix("resume=") for o in overrides if o.startswith("resume=")]
    if resume and len(arguments) > 1:
        others = " ".join(a for a in arguments if not a.startswith("resume="))
        raise UserError(
            "resume= continues a run exactly as it was configured and takes nothing beside it; found: "
            f"{others}. To train with other settings start a new run."
        )
    if resume and not resume[0]:
        raise UserError("resume= needs the folder of a run, such as resume=outputs/runs/NAME.")
    shows = any(flag not in ("-m", "--multirun") for flag in flags)
    again = [o.removeprefix("sweep.resume=") for o in overrides if o.startswith("sweep.resume=")]
    if again and not again[-1]:
        raise UserError("sweep.resume= needs the folder of a sweep, such as sweep.resume=outputs/runs/NAME.")
    sweep_resume = again[-1] if again and again[-1] != "null" else None
    alone = not any(_trains(o) for o in overrides)
    of_sweep = [o for o in overrides if o.startswith(("sweep.", "sweep="))]
    if of_sweep and not multirun and not shows:
        if not (sweep_resume and alone):
            raise UserError(f"{of_sweep[0]} is of a sweep: add -m.")
        multirun = True
    return Arguments(
        overrides,
        multirun,
        resume[0] if resume else None,
        not shows and not resume,
        sweep_resume,
        "sweep.new=true" in [o.lower() for o in overrides],
    )


def _trains(override: str) -> bool:
    """Whether an override is about what is trained, and not about where and how a sweep runs."""
    return not override.startswith(("hydra.", "hydra/", "sweep.", "sweep="))


def check_folder(overrides: Sequence[str]) -> None:
    """Refuse a folder that was asked for and cannot be had, before Hydra writes into it.

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
            raise claimed(RunFolder(folder))
        if key == "hydra.sweep.dir" and any(folder.glob("*/config.yaml")):
            way = (
                f"go on with it by sweep.resume={folder}"
                if (folder / "sweep.json").is_file()
                else f"finish single jobs of it by resume={folder}/NAME"
            )
            raise UserError(
                f"{folder} holds a sweep already; choose another folder (hydra.sweep.dir=…), or {way}."
            )
        above = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise UserError(f"{key}={value}: {above} is not a folder that can be written to.")


def execute(folder: RunFolder, *, new: bool = False) -> None:
    """Run ``folder`` in this process. Imports torch, so only what has been checked gets here.

    Args:
        new: the folder was made for this: if the run is refused before it has trained, it goes again.
    """
    from vitlab.training.run import run

    try:
        run(folder)
    except UserError:
        if new and Summary(folder).data["train"]["optimizer_steps"] == 0:
            folder.discard()
        raise


def as_typed() -> dict[str, Any]:
    """Return, inside Hydra's main, what a record keeps beside the config.

    Returns:
        ``choices``, the option of each config group, such as ``{"model": "vit_small"}``; ``overrides``, as
        they were typed; and ``swept``, the keys that a sweep varies.
    """
    state = HydraConfig.get()
    choices = {k: v for k, v in state.runtime.choices.items() if not k.startswith("hydra/")}
    return {"choices": choices, "overrides": list(state.overrides.task), "swept": []}


def record(
    config: Mapping[str, Any],
    choices: Mapping[str, str],
    overrides: Sequence[str],
    swept: Sequence[str] = (),
) -> dict[str, Any]:
    """Return what config.yaml of a run folder holds, see `as_typed`; how a sweep was run is no part of it."""
    config = {key: value for key, value in config.items() if key not in ("resume", "sweep")}
    chosen = {group: option for group, option in choices.items() if group != "sweep"}
    return config | {"choices": chosen, "overrides": list(overrides), "swept": list(swept)}


def claim(config: dict[str, Any]) -> RunFolder:
    """Claim, inside Hydra's main, the folder that Hydra made, and write the two files a run starts from.

    Args:
        config: resolved, plain values.

    Raises:
        UserError: the folder holds a run already.
    """
    path = HydraConfig.get().runtime.output_dir
    if rank_in_environment():
        return _await_run(RunFolder(path))
    typed = as_typed()
    folder = RunFolder.create(path, record(config, **typed))
    Summary(folder).begin(config["seed"], typed["overrides"], find_versions(), find_commit())
    return folder


def _await_run(folder: RunFolder, seconds: float = 60) -> RunFolder:
    """Wait, on a rank that torchrun started, until rank 0 has claimed the folder."""
    deadline = time.monotonic() + seconds
    while not folder.config.exists():
        if time.monotonic() > deadline:
            raise UserError(
                f"rank 0 made no run folder at {folder}. Under torchrun all ranks need one folder: give "
                "hydra.run.dir=DIR."
            )
        time.sleep(0.1)
    return folder
