"""What may have changed when a run resumes, so that it ends as one that never stopped, and what not."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from torch import Tensor

from vitlab.config import keys, lacking, read_record
from vitlab.config.ignored_keys import WITHOUT_EFFECT
from vitlab.config.teacher import teacher_file
from vitlab.config.types import show
from vitlab.core.checkpoint import CheckpointMeta, check_fits, set_aside
from vitlab.core.errors import UserError
from vitlab.core.metrics_csv import read_metrics
from vitlab.core.processes import rank_in_environment
from vitlab.core.provenance import find_versions
from vitlab.core.run_folder import RunFolder
from vitlab.core.untrusted import misfits
from vitlab.training.build import Components
from vitlab.training.instantiate import read_own

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


SavedState = TypedDict(  # what Lightning goes on from
    "SavedState",
    {
        "pytorch-lightning_version": str,
        "epoch": int,
        "global_step": int,
        "loops": dict[str, Any],
        "callbacks": dict[str, dict[str, Any]],
        "optimizer_states": list[dict[str, Any]],
        "lr_schedulers": list[dict[str, Any]],
    },
)


class SavedRun(NamedTuple):
    """What a run's own checkpoint says of it.

    Attributes:
        step: optimizer steps done.
        meta: what the file carries.
        restartable: whether training can go on from it, see `Checkpointing`.
        weights: by name, without their values, which would fill memory as long as the run lasts.
    """

    path: Path
    step: int
    meta: CheckpointMeta
    restartable: bool
    weights: Mapping[str, Tensor]

    @classmethod
    def read(cls, path: Path) -> "SavedRun":
        """Read a run's checkpoint.

        Raises:
            UserError: the file is damaged or no checkpoint of a run.
        """
        checkpoint = read_own(path)
        lacks = [*misfits(checkpoint, SavedState)]
        if lacks or len(checkpoint["optimizer_states"]) != 1:
            lacks = lacks or ["optimizer_states"]
            raise UserError(
                f"{path} cannot be resumed from: {', '.join(lacks)} is missing or not as expected."
            )
        state = checkpoint["callbacks"].get("Checkpointing", {})
        restartable = state.get("restartable", path.name != "best.ckpt")  # absent from older ones
        weights = {name: value.to("meta") for name, value in checkpoint["state_dict"].items()}
        return cls(path, checkpoint["global_step"], checkpoint["vitlab"], restartable, weights)

    @classmethod
    def find(cls, folder: RunFolder, say: Callable[[str], None]) -> "SavedRun | None":
        """Return the newest checkpoint of a run that can be read, or None for a run that has none yet.

        Damaged ones are renamed, and what is resumed from instead of ``last.ckpt`` is said aloud: the steps
        in between are then done again, as they were.

        Raises:
            UserError: it had checkpoints, and none is left that can be read.
        """
        problems: dict[Path, str] = {}
        found: list[SavedRun] = []
        for path in (folder.last, folder.previous, folder.best):
            if os.path.lexists(path):
                try:
                    saved = cls.read(path)
                    found += [saved] * saved.restartable
                except UserError as error:
                    problems[path] = str(error)
            if found and found[0].path == folder.last:
                return found[0]
        if not found:
            cls._check_lost(folder, problems)
            return None
        newest = max(found, key=lambda saved: saved.step)
        for path, problem in problems.items():
            say(f"warning: {problem}")
            if path != folder.best and not rank_in_environment():
                set_aside(path)
        if folder.last not in problems:
            say(f"warning: {folder.last} is missing.")
        say(f"going on from {newest.path}, at optimizer step {newest.step:,}")
        return newest

    @classmethod
    def _check_lost(cls, folder: RunFolder, problems: Mapping[Path, str]) -> None:
        if problems:
            raise UserError(
                "no checkpoint of this run can be read, so it cannot resume.\n  "
                + "\n  ".join(problems.values())
                + f"\nPut a copy of one back; to start again from step 0, delete {folder.checkpoints}."
            )
        epochs = len(read_metrics(folder))
        # After the first a run may have been killed before its checkpoint was written.
        if epochs > 1 and read_record(folder)["trainer"]["enable_checkpointing"] is not False:
            raise UserError(
                f"{folder.checkpoints} has no checkpoint to go on from, and metrics.csv tells of {epochs} "
                f"epochs. Put last.ckpt back; to start again from step 0, delete {folder.metrics}."
            )

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
        theirs, ours = self.meta.get("versions", {}), find_versions()  # absent from older checkpoints
        changed |= {
            name: f"{old} → {ours.get(name, 'missing')}"
            for name, old in theirs.items()
            if old != ours.get(name)
        }
        if not changed:
            return []
        said = ", ".join(f"{key}: {text}" for key, text in changed.items())
        return [
            f"this run continues on other terms than it began ({said}): rounding and the processes' random "
            "draws differ, so it will not end bit for bit as one that never stopped."
        ]

    def check_parts(self, parts: Components) -> None:
        """Compare network, images, classes and teacher with what the run has learned from.

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
        images = parts.task.meta.get("images")
        if self.meta.get("images", images) != images:  # absent from older ones
            raise UserError(
                f"the images of {parts.dataset.name} are not those of when {self.path} was written: files "
                "were added, removed or renamed, or (data.on_error=skip) broken or mended since, and a run "
                "continues exactly as it began. Undo that, or start a new run."
            )
        check_fits(parts.task, self.weights, self.path)
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
