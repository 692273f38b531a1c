"""What may have changed when a run resumes, so that it ends as one that never stopped, and what not."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vitlab.config import keys, lacking
from vitlab.config.ignored_keys import WITHOUT_EFFECT
from vitlab.config.teacher import teacher_file
from vitlab.config.types import show
from vitlab.core.checkpoint import CheckpointMeta, read_checkpoint
from vitlab.core.errors import UserError
from vitlab.core.run_folder import RunFolder
from vitlab.training.build import Components

FREE = (
    *WITHOUT_EFFECT,
    *("data.root", "task.teacher", "task.teacher_checkpoint"),  # may move; a teacher is known by its hash
    *("model.pretrained", "model.checkpoint_path"),  # the start has been
    "model.num_classes",  # the data's, whatever is written there
    "trainer.limit_test_batches",  # the test is still to come; a search sets it for its best trial
)
# How and where it computes: a run must outlive its machine, if not bit for bit.
COMPUTING = ("compile", "trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy")
MISSING: Any = object()


class SavedRun(NamedTuple):
    """What a run's own checkpoint says of it: the file, the optimizer steps done, and what it carries."""

    path: Path
    step: int
    meta: CheckpointMeta

    @classmethod
    def read(cls, path: Path) -> "SavedRun":
        """Read a run's checkpoint.

        Raises:
            UserError: the file is damaged or no checkpoint of a run.
        """
        checkpoint = read_checkpoint(path)
        return cls(path, checkpoint["global_step"], checkpoint["vitlab"])

    def check_config(self, folder: RunFolder, config: Mapping[str, Any]) -> list[str]:
        """Compare the folder's ``config`` with what the run began with; return what is worth a note.

        Raises:
            UserError: a value was changed that decides what is learned, or the teacher is not where it was.
        """
        changed = {k: t for k, t in changes(self.meta["config"], config).items() if not keys.under(k, FREE)}
        fixed = [f"{key}: {text}" for key, text in changed.items() if not keys.under(key, COMPUTING)]
        if fixed:
            raise UserError(
                f"{folder.config} was changed after {self.path} was written ({', '.join(fixed)}), and a run "
                "continues exactly as it began. Undo that, or start a new run (model.checkpoint_path="
                f"{folder}, to start it from these weights)."
            )
        if "teacher" in config["task"]:
            try:
                teacher_file(config["task"])
            except UserError as error:
                raise UserError(
                    f"{error} This run learns from it and cannot resume without it: put it back, or write "
                    f"its new place as task.teacher into {folder.config}. (Relative paths start at "
                    f"{Path.cwd()}.)"
                ) from None
        if not changed:
            return []
        said = ", ".join(f"{key}: {text}" for key, text in changed.items())
        return [
            f"this run continues on other terms than it began ({said}): rounding and the processes' random "
            "draws differ, so it will not end bit for bit as one that never stopped."
        ]

    def check_parts(self, parts: Components) -> None:
        """Compare the classes of the images, and the teacher's weights, with what the run has learned from.

        Raises:
            UserError: they differ.
        """
        classes, found = self.meta["classes"], parts.dataset.classes
        if classes != [*found]:
            raise UserError(
                f"the images have other classes than when {self.path} was written (expected "
                f"{', '.join(classes)}; found {', '.join(found)}), and a run continues exactly as it "
                "began. Undo that, or start a new run."
            )
        if parts.teacher and parts.teacher.record["sha256"] != self.meta["teacher"]["sha256"]:
            raise UserError(
                f"task.teacher={parts.teacher.record['path']} is no longer the teacher that {self.path} "
                "learned from: its weights were trained further or replaced (their SHA-256 differs). Put the "
                "old file back, or start a new run."
            )


def changes(old: Mapping[str, Any], new: Mapping[str, Any], at: str = "") -> dict[str, str]:
    """Return, for each dotted key in which two configs differ, ``old → new`` as YAML writes the values."""
    found: dict[str, str] = {}
    for part in dict.fromkeys((*old, *new)):
        key = keys.join(at, part)
        was, now = old.get(part, MISSING), new.get(part, MISSING)
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            found |= changes(was, now, key)
        elif was != now:
            found[key] = " → ".join("missing" if value is MISSING else show(value) for value in (was, now))
    return found


@contextlib.contextmanager
def name_deleted_keys(folder: RunFolder, config: Mapping[str, Any]) -> Iterator[None]:
    """Name the keys where a run cannot be built because somebody has deleted them from config.yaml.

    Asked when it fails and not before: a run from before there was some key is built where it can be.
    """
    try:
        yield
    except (KeyError, TypeError, UserError) as error:
        gone = [key for key in lacking(config) if _is_about(error, key.rpartition(".")[2])]
        if not gone:
            raise
        raise UserError(
            f"{folder.config} has no {', '.join(gone)}, and the run cannot be built without it. Write it "
            "back, or start a new run."
        ) from error


def _is_about(error: BaseException | None, name: str) -> bool:
    """Say whether an error, or what caused it, is that something called ``name`` was not there."""
    if error is None:
        return False
    if isinstance(error, KeyError):
        return error.args[:1] == (name,)
    # A constructor that lacks an argument has only words for it.
    return (isinstance(error, TypeError) and f"'{name}'" in str(error)) or _is_about(error.__cause__, name)
