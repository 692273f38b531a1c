"""Checkpoint files: published atomically, verified by their checksum, read as plain types only."""

import os
import shutil
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch

from vitlab.core.errors import UserError
from vitlab.core.files import sha256, sync_folder, write_atomic
from vitlab.core.run_folder import TeacherRecord

# In a checkpoint: the weights as the optimizer left them, where `state_dict` has the average of them.
RAW = "raw_state_dict"


class CheckpointMeta(TypedDict):
    """What a checkpoint carries as ``vitlab``, beside the weights and the state of training."""

    config: dict[str, Any]  # of the run, resolved
    classes: list[str]  # K names, in the order of the logits
    mean: list[float]  # of the normalisation, a value a channel, on the 0..1 scale
    std: list[float]
    input_size: list[int]  # height and width of the images that the network takes
    # How the run computes where it trains and tests; absent from checkpoints that are older than these keys.
    precision: NotRequired[str]
    compiled: NotRequired[bool]
    teacher: NotRequired[TeacherRecord]  # that the network learned from, under ``task=distill``


def checksum_file(checkpoint: Path) -> Path:
    """Return the file that holds a checkpoint's SHA-256."""
    return checkpoint.with_name(checkpoint.name + ".sha256")


def publish(temporary: Path, checkpoint: Path) -> None:
    """Give a completely written checkpoint its name.

    The checksums of the old and the new file are both on record while the name passes from one to the
    other, so that at no moment a sound checkpoint looks damaged.
    """
    record = checksum_file(checkpoint)
    new = sha256(temporary)
    old = record.read_text().split()[-1:] if record.exists() and checkpoint.exists() else []
    write_atomic(record, "\n".join([*old, new]).encode())
    os.replace(temporary, checkpoint)
    sync_folder(checkpoint.parent)


def copy_checkpoint(source: Path, target: Path) -> None:
    """Publish ``source`` under a second name, without a second copy on disk where links exist."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    publish(temporary, target)


def verify(checkpoint: Path, digest: str | None = None) -> None:
    """Check ``checkpoint`` against its recorded checksum, if it has one.

    Args:
        digest: its SHA-256, where that is known already.

    Raises:
        UserError: the file changed since it was written.
    """
    record = checksum_file(checkpoint)
    if record.exists() and (digest or sha256(checkpoint)) not in record.read_text().split():
        way, best = "", checkpoint.with_name("best.ckpt")
        if checkpoint != best and best.exists():
            way = "To resume from the best epoch instead, copy best.ckpt and best.ckpt.sha256 over it; "
        raise UserError(
            f"{checkpoint} is damaged: its SHA-256 is not the one recorded when it was written. {way}"
            "to start this run again from step 0, delete the file."
        )


def read_checkpoint(path: Path, digest: str | None = None) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; nothing in it can name code to run.

    Args:
        digest: its SHA-256, where that is known already.

    Raises:
        UserError: the file is missing, damaged or not a checkpoint.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint at {path}.")
    verify(path, digest)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises RuntimeError, EOFError, UnpicklingError, UnicodeDecodeError …
        raise UserError(
            f"{path} cannot be read as a checkpoint: it is damaged, not one, or names code to run "
            f"({type(error).__name__})."
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(f"{path} is not a checkpoint: it has no state_dict.")
    return checkpoint
