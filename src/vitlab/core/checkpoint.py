"""Checkpoint files: published atomically, verified by their checksum, read as plain types only."""

import itertools
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch

from vitlab.core.errors import UserError
from vitlab.core.files import sha256, sync, write_atomic
from vitlab.core.run_folder import PREVIOUS, TeacherRecord

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
    images: NotRequired[str]  # of image files: a hash of which they are, see `FileDataset.fingerprint`
    teacher: NotRequired[TeacherRecord]  # that the network learned from, under ``task=distill``


def checksum_file(checkpoint: Path) -> Path:
    """Return the file that holds a checkpoint's SHA-256."""
    return checkpoint.with_name(checkpoint.name + ".sha256")


def publish(temporary: Path, checkpoint: Path, digests: Sequence[str] = ()) -> None:
    """Give a completely written checkpoint its name.

    The checksums of the old and the new file are both on record while the name passes from one to the
    other, so that at no moment a sound checkpoint looks damaged.

    Args:
        digests: of which one is its SHA-256, where that is known already.
    """
    old = recorded(checkpoint)[-1:] if checkpoint.exists() else []
    write_atomic(checksum_file(checkpoint), "\n".join([*old, *(digests or [sha256(temporary)])]).encode())
    os.replace(temporary, checkpoint)
    sync(checkpoint.parent)


def recorded(checkpoint: Path) -> list[str]:
    """Return the SHA-256s on record for a checkpoint, of which one is the file's; empty without a record."""
    record = checksum_file(checkpoint)
    return record.read_text().split() if record.exists() else []


def copy_checkpoint(source: Path, target: Path, digests: Sequence[str] = ()) -> None:
    """Publish ``source`` under a second name, without a second copy on disk where links exist."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
            sync(temporary)
        publish(temporary, target, digests)
    finally:
        temporary.unlink(missing_ok=True)


def publish_last(temporary: Path, last: Path) -> None:
    """Publish a run's newest checkpoint; the one before it stays as a file of its own, ``previous.ckpt``."""
    if last.exists():
        copy_checkpoint(last, last.with_name(PREVIOUS), recorded(last))
    publish(temporary, last)


def set_aside(checkpoint: Path) -> None:
    """Rename a damaged checkpoint to ``NAME.damaged``: nothing then overwrites it or takes it for sound."""
    names = (f"{checkpoint.name}.damaged{number or ''}" for number in itertools.count())
    free = next(name for name in names if not os.path.lexists(checkpoint.with_name(name)))
    os.rename(checkpoint, checkpoint.with_name(free))
    checksum_file(checkpoint).unlink(missing_ok=True)


def verify(checkpoint: Path, digest: str | None = None) -> None:
    """Check ``checkpoint`` against its recorded checksum, if it has one.

    Args:
        digest: its SHA-256, where that is known already.

    Raises:
        UserError: the file changed since it was written.
    """
    digests = recorded(checkpoint)
    if digests and (digest or sha256(checkpoint)) not in digests:
        raise UserError(f"{checkpoint} is damaged: its SHA-256 is not the one recorded when it was written.")


def read_checkpoint(path: Path, digest: str | None = None) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; nothing in it can name code to run.

    Args:
        digest: its SHA-256, where that is known already.

    Raises:
        UserError: the file is missing, damaged or not a checkpoint.
    """
    if not os.path.lexists(path):
        raise UserError(f"there is no checkpoint at {path}.")
    if not path.is_file():
        raise UserError(f"{path} is not a file but a folder, a link to nowhere or the like.")
    try:
        verify(path, digest)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
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
