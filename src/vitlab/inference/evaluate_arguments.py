"""What is typed after evaluate.py: runs, and keys of the data; read and checked before torch is imported."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vitlab.config import keys, read_record
from vitlab.config.checks import find_problems, unresolved
from vitlab.config.composer import Composer, reason
from vitlab.config.ignored_keys import WITHOUT_EFFECT
from vitlab.config.overrides import OverrideReader
from vitlab.config.suggest import suggest_key
from vitlab.core.errors import UserError
from vitlab.core.run_folder import RunFolder
from vitlab.core.suggest import did_you_mean
from vitlab.inference.inputs import find_weights

OVERRIDE = re.compile(r"[+~]*\w[\w.]*=")  # no slash: a run folder may be called runs/lr=0.1
# Where the images are and how they are held; none of it is what they are.
PLACE = ("root", *(key.removeprefix("data.") for key in WITHOUT_EFFECT if key.startswith("data.")))
# What other data take over from the run.
KEPT = ("image_size", "channels", "batch_size")


@dataclass(frozen=True)
class Run:
    """A trained network that is to be evaluated.

    Attributes:
        name: short, and unlike those of the other runs.
        checkpoint: its weights.
        home: the run folder, or that of a checkpoint without one.
        out: where its results go.
    """

    name: str
    checkpoint: Path
    home: Path
    out: Path


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the runs and the overrides of the data among the words; what exists as a path is a run.

    Raises:
        UserError: there is no run, or something else than the data is to be changed.
    """
    overrides = [word for word in words if OVERRIDE.match(word) and not Path(word).exists()]
    for word in overrides:
        key = word.partition("=")[0].lstrip("+~")
        if key.split(".")[0] != "data":
            with Composer("train") as composer:
                options = {"data": composer.options["data"]}
                known = {"data": unresolved(composer.compose(()))["data"]}
            meant = did_you_mean(suggest_key(key, keys.walk(known), options))
            raise UserError(
                f"{word}: a trained network is evaluated as it is, and only its data can be others (data=…, "
                f"data.KEY=…).{meant[:1]}{meant[1:].capitalize()}"
            )
    runs = [word for word in words if word not in overrides]
    if not runs:
        raise UserError("no RUN is given. See python evaluate.py --help.")
    return runs, overrides


def find_runs(given: Sequence[str], out: str | None) -> tuple[list[Run], Path]:
    """Return the runs, each once, and the folder of what compares them.

    Without ``--out`` each run's results go into its own folder, and the comparison into the folder that holds
    all of them; with it, everything goes there.

    Raises:
        UserError: one of them is no run, or still training.
    """
    found = dict(find_weights(run) for run in given)
    if len(found) == 1:
        ((checkpoint, home),) = found.items()
        folder = Path(out) if out else home / "evaluation"
        return [Run(home.name, checkpoint, home, folder)], folder
    homes = list(found.values())
    # A run is told from others by its folder; two checkpoints in one folder by their own names.
    alone = {checkpoint: homes.count(home) == 1 for checkpoint, home in found.items()}
    places = {c: (home if alone[c] else home / c.stem).absolute() for c, home in found.items()}
    common = Path(os.path.commonpath([place.parent for place in places.values()]))
    runs = []
    for checkpoint, home in found.items():
        name = str(places[checkpoint].relative_to(common))
        own = home / "evaluation" / ("" if alone[checkpoint] else checkpoint.stem)
        runs.append(Run(name, checkpoint, home, Path(out) / name if out else own))
    return runs, Path(out) if out else common / "evaluation"


def check_overrides(runs: Sequence[Run], overrides: Sequence[str]) -> None:
    """Check what was typed against the runs that have a folder, whose config is there without torch.

    Raises:
        UserError: as `compose_data`.
    """
    for run in runs:
        folder = RunFolder(run.home)
        if folder.config.is_file():
            compose_data(read_record(folder), overrides)


def compose_data(config: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return the ``data`` section that overrides make of a run's.

    Another data set (``data=``) begins with the values of its YAML file, but for the size of the images,
    their channels, and the batch size, which are the run's. The other keys change the run's own section.

    Args:
        config: of the run, resolved.
        overrides: as typed, all of ``data`` and ``data.KEY``.

    Raises:
        UserError: one cannot be read, does not exist, has no effect or a wrong value.
    """
    own = config["data"]
    if not overrides:
        return dict(own)
    with Composer("train") as composer:
        typed = {item.key_or_group: item for item in OverrideReader(composer, False).read(overrides)}
        option = typed.pop("data").value() if "data" in typed else None
        recorded = config["choices"]["data"]
        known = recorded if recorded in composer.options["data"] else own["kind"]
        base = unresolved(composer.compose((f"data={option or known}",)))["data"]
    if "data.normalization" in typed:
        raise UserError(
            "data.normalization has no effect here: images are normalised as they were in training."
        )
    taken = KEPT if option else own
    node = OmegaConf.create(base | {key: own[key] for key in taken if key in base})
    for key, item in typed.items():
        try:
            OmegaConf.update(node, key.removeprefix("data."), item.value(), merge=True, force_add=True)
        except OmegaConfBaseException as error:
            raise UserError(f"{item.input_line}: {reason(error)}") from error
    section = OmegaConf.to_container(node)
    assert isinstance(section, dict)
    if problems := find_problems({"data": section}, {"data": base}):
        raise UserError("\n".join(problems.values()))
    if section["channels"] != own["channels"]:
        raise UserError(
            f"data.channels={section['channels']}: this network takes images of {own['channels']} channels, "
            "and all are converted to that; leave it out."
        )
    return {str(key): value for key, value in section.items()}


def is_other_data(config: Mapping[str, Any], section: Mapping[str, Any]) -> bool:
    """Say whether a section names other images than the run's own, wherever those may be now."""
    own = config["data"]
    return any(own.get(key, value) != value for key, value in section.items() if key not in PLACE)


def own_data(config: Mapping[str, Any], section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section of the data that the run was trained on, at the size at which it is evaluated.

    They are looked for where they were; if that is gone, where the same kind of data is now (``data.root=``).
    """
    own = config["data"] | {"image_size": section["image_size"]}
    moved = own["kind"] == section["kind"] and own["root"] and not Path(own["root"]).expanduser().exists()
    return own | {key: section[key] for key in PLACE if key in section} if moved else own
