"""Checkpoint files: published atomically, verified by their checksum, read as plain types only."""

import itertools
import os
import shutil
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor, nn

from vitlab.core.errors import UserError
from vitlab.core.files import sha256, sync, write_atomic
from vitlab.core.provenance import find_versions
from vitlab.core.run_folder import PREVIOUS
from vitlab.core.summary import TeacherRecord
from vitlab.core.untrusted import fits, misfits

# In a checkpoint: the weights as the optimizer left them, where `state_dict` has the average of them.
RAW = "raw_state_dict"
MOST_DIFFERENCES = 10  # rows of a table


class ImageMeta(TypedDict):
    """What a checkpoint carries of the images that its network takes."""

    mean: list[float]  # of the normalisation, a value a channel, on the 0..1 scale
    std: list[float]
    input_size: list[int]  # height and width of the images that the network takes


class CheckpointMeta(ImageMeta):
    """What a checkpoint carries as ``vitlab``, beside the weights and the state of training."""

    config: dict[str, Any]  # of the run, resolved
    classes: list[str]  # K names, in the order of the logits
    # How the run computes where it trains and tests; absent from checkpoints that are older than these keys.
    precision: NotRequired[str]
    compiled: NotRequired[bool]
    images: NotRequired[str]  # of image files: a hash of which they are, see `FileDataset.fingerprint`
    teacher: NotRequired[TeacherRecord]  # that the network learned from, under ``task=distill``
    versions: NotRequired[dict[str, str]]  # that wrote it, see `find_versions`


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


def read_plain(path: Path, allowed: Sequence[type] = ()) -> Any:
    """Return what `torch.save` has written, of plain types, onto the CPU; raises whatever torch raises.

    Args:
        allowed: classes that may be in it too.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            if any(part.compress_type != zipfile.ZIP_STORED for part in file.infolist()):
                raise ValueError("it is compressed, which torch.save never does: it may fill the memory")
    with torch.serialization.safe_globals([*allowed]), warnings.catch_warnings(action="ignore"):
        return torch.load(path, map_location="cpu", weights_only=True)


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
        checkpoint = read_plain(path)
    except Exception as error:  # torch raises RuntimeError, EOFError, UnpicklingError, UnicodeDecodeError …
        raise UserError(
            f"{path} cannot be read as a checkpoint: it is damaged, not one, or names code to run "
            f"({type(error).__name__})."
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(f"{path} is not a checkpoint: it has no state_dict.")
    for key in ("state_dict", RAW):
        if not fits(checkpoint.get(key, {}), dict[str, Tensor]):
            raise UserError(f"{path} is not a checkpoint: what it holds as {key} are not tensors by name.")
    return checkpoint


def check_meta(meta: Any, path: Path, kind: type = CheckpointMeta) -> None:
    """Check what a checkpoint says of its network, but for the config.

    Raises:
        UserError: something is missing, or not what it should be.
    """
    wrong = [key or "vitlab" for key in misfits(meta, kind)]
    if not wrong:
        wrong += ["input_size"] * (
            len(meta["input_size"]) != 2 or not all(0 < s <= 8192 for s in meta["input_size"])
        )
        wrong += ["mean, std"] * (len(meta["mean"]) != len(meta["std"]) or min(meta["std"], default=0) <= 0)
    if wrong:
        versions = meta.get("versions") if isinstance(meta, dict) else None
        theirs = versions.get("vitlab") if isinstance(versions, dict) else None
        raise UserError(
            f"{path} cannot be used: what it says of itself is missing or not as expected "
            f"({', '.join(wrong[:5])}{', …' if wrong[5:] else ''}). It was changed, or another version of "
            f"vitlab wrote it ({theirs or 'unknown'}; this is {find_versions()['vitlab']})."
        )


def differences(names: Iterable[str], expected: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Return a table of tensors that are missing, left over or of another shape; of many the first.

    Args:
        names: of those.
        expected, found: shapes by name, of the network and of the file.
    """
    names = sorted(names)
    rows = [["", "the network", "the file"]]
    rows += [
        [name, *(str(tuple(own[name])) if name in own else "-" for own in (expected, found))]
        for name in names[:MOST_DIFFERENCES]
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    more = [f"and {len(names) - MOST_DIFFERENCES} more"] * (len(names) > MOST_DIFFERENCES)
    return "\n  ".join(["", *lines, *more])


def check_fits(net: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Check that weights are those of a network, before they are loaded.

    Raises:
        UserError: they are of another; with a table of what differs.
    """
    expected, found = ({k: v.shape for k, v in own.items()} for own in (net.state_dict(), weights))
    if names := [k for k in expected | found if expected.get(k) != found.get(k)]:
        raise UserError(
            f"the weights in {path} are of another network than its config describes:"
            f"{differences(names, expected, found)}"
        )
