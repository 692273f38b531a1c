"""What a run is called in MLflow and W&B, what is said of it there, and how it is found again."""

import re
import secrets
from collections.abc import Mapping
from typing import Any

from vitlab.config import keys
from vitlab.config.labels import label
from vitlab.config.types import show
from vitlab.core.files import write_json
from vitlab.core.run_folder import RunFolder
from vitlab.core.untrusted import fits, read_json

LONGEST = 80  # characters of a folder in an id


def swept_keys(config: Mapping[str, Any]) -> list[str]:
    """Return the keys that a sweep varies."""
    return [key.lstrip("+") for key in config.get("swept", [])]


def run_name(folder: RunFolder, config: Mapping[str, Any]) -> str:
    """Return what was swept, such as ``"patch_size=2 depth=4"``, or of a single run its folder's name."""
    return label(config.get("overrides", []), swept_keys(config)) or folder.path.name


def sweep_name(folder: RunFolder, config: Mapping[str, Any]) -> str | None:
    """Return the name of the sweep's folder, which its jobs have in common; None for a single run."""
    return folder.path.parent.name if swept_keys(config) else None


def hyperparameters(config: Mapping[str, Any]) -> dict[str, str]:
    """Return every value of a run's config as YAML writes it, by its dotted key, after the options chosen."""
    flat = {group: option for group, option in config["choices"].items() if option}
    for key in keys.walk({k: v for k, v in config.items() if k not in ("choices", "overrides", "swept")}):
        if not isinstance(value := keys.get(config, key), Mapping):
            flat[key] = value if isinstance(value, str) else show(value)
    return flat


def read_id(folder: RunFolder, tracker: str) -> str | None:
    """Return the id under which a tracker knows the run, if it has met it before."""
    return _read_ids(folder).get(tracker)


def keep_id(folder: RunFolder, tracker: str, run_id: str) -> None:
    """Keep the id of a run in its folder, so that it is the same run wherever the folder is moved."""
    ids = _read_ids(folder)
    if ids.get(tracker) != run_id:
        write_json(folder.trackers, ids | {tracker: run_id})


def _read_ids(folder: RunFolder) -> dict[str, str]:
    """Return the ids by their trackers; a file that is damaged has none."""
    try:
        ids = read_json(folder.trackers)
    except (OSError, ValueError):
        return {}
    return ids if fits(ids, dict[str, str]) else {}


def new_id(folder: RunFolder) -> str:
    """Return an id that names the run's folder; its end tells apart what lies in folders of one name."""
    parts = re.sub(r"[^\w.-]+", "-", "-".join(folder.path.parts[-2:]), flags=re.ASCII)
    return f"{parts[-LONGEST:].strip('-.')}-{secrets.token_hex(3)}"
