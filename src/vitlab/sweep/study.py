"""The record of a search: Optuna's study, and what it says to everybody else. Torch-free.

DIR/study.db               Optuna's own; what is done, and what is drawn next, follows from it
DIR/sweep.json             as of any sweep: the command and its jobs, and here the space and what each reached
DIR/trials.png, values.png

TPE: Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization", section 4.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vitlab.config.labels import label
from vitlab.core.errors import UserError
from vitlab.core.files import write_atomic
from vitlab.core.run_folder import RunFolder
from vitlab.core.seeding import derive
from vitlab.sweep.record import OBJECTIVE, RECORD, folder_name
from vitlab.sweep.space import Space

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.pruners import BasePruner
    from optuna.trial import FrozenTrial

STUDY = "study.db"
# What a trial can end as. From these the sampler learns what values are worth; they are what is counted.
TRAINED = ("finished", "pruned", "diverged")
# Of these it learns nothing; an invalid draw, which cannot be trained, counts as the worst.
IGNORED = ("failed", "repeated")
ENOUGH = 8  # finished trials, to say which keys mattered


class Trials:
    """What was drawn, what each draw came to, and what is drawn next.

    A draw follows from ``sweep.seed``, its number and the trials before it, so that a search that was
    killed goes on as if it had not been.
    """

    def __init__(self, folder: Path, space: Space) -> None:
        self.folder = folder
        self.space = space
        self.settings = space.config["sweep"]
        self.study = _open(folder / STUDY, self._pruner())

    def _pruner(self) -> "BasePruner":
        from optuna import pruners

        warmup = self.settings["warmup_epochs"]
        most = self.space.config["trainer"]["max_epochs"]
        if self.settings["pruner"] == "median":
            return pruners.MedianPruner(self.settings["warmup_trials"], warmup)
        if self.settings["pruner"] == "hyperband":
            return pruners.HyperbandPruner(warmup, most if most >= warmup else "auto")
        return pruners.NopPruner()

    @property
    def all(self) -> "list[FrozenTrial]":
        return self.study.get_trials(deepcopy=False)

    def trained(self) -> int:
        return sum(map(_trained, self.all))

    def open(self) -> "list[Trial]":
        """Return the trials that an earlier session of the search has begun and not ended."""
        from optuna import Trial

        return [Trial(self.study, trial._trial_id) for trial in self.all if not trial.state.is_finished()]

    def ask(self, *, random: bool) -> "Trial":
        """Draw the next trial; at random after an idle draw, or the same might be drawn for ever."""
        from optuna.samplers import RandomSampler, TPESampler

        seed = derive(self.settings["seed"], "trial", len(self.all)) % 2**32
        tpe = TPESampler(seed=seed, n_startup_trials=self.settings["random_trials"])
        self.study.sampler = RandomSampler(seed) if random else tpe
        return self.study.ask(self.space.distributions)

    def tell(self, trial: "Trial", state: str, value: float | None = None, reason: str = "") -> None:
        """Take down how a trial ended."""
        from optuna.trial import TrialState

        trial.set_user_attr("state", state)
        trial.set_user_attr("reason", reason)
        other = TrialState.FAIL if state in IGNORED else TrialState.PRUNED
        self.study.tell(trial.number, value, TrialState.COMPLETE if state == "finished" else other)

    # What is known of them

    def same(self, trial: "Trial") -> int | None:
        """Return the number of an earlier trial that was trained with the same values."""
        overrides = self.space.overrides(trial.params)
        for other in self.all[: trial.number]:
            if _trained(other) and self.space.overrides(other.params) == overrides:
                return other.number
        return None

    def run_folder(self, trial: "Trial | FrozenTrial") -> RunFolder:
        lines = self.space.lines(trial.params)
        name = folder_name(label(lines, self.space.swept), lines)
        return RunFolder(self.folder / f"{trial.number:03d}_{name}")

    def name(self, trial: "Trial | FrozenTrial") -> str:
        return label(self.space.lines(trial.params), self.space.swept)

    def states(self, running: Collection[int] = ()) -> list[str]:
        """Return the state of every trial.

        Args:
            running: the numbers of those that train.
        """
        return [
            _end(trial) or ("running" if trial.number in running else "interrupted") for trial in self.all
        ]

    def best(self) -> "FrozenTrial | None":
        """Return the finished trial with the highest objective, the first of equals."""
        finished = [trial for trial in self.all if _end(trial) == "finished"]
        return max(finished, key=lambda trial: trial.value or 0.0, default=None)

    def importance(self) -> Mapping[str, float]:
        """Return the share of each key in what makes a trial good; nothing where too few trials say so.

        PED-ANOVA: Watanabe et al. 2023, arXiv 2304.10255.
        """
        from optuna.importance import get_param_importances

        finished = self.states().count("finished")
        return get_param_importances(self.study) if finished >= ENOUGH and len(self.space.swept) > 1 else {}

    # What is written

    def write(self, running: Collection[int]) -> None:
        """Write sweep.json; ``running`` as of `states`."""
        jobs = [
            {
                "label": self.name(trial),
                "state": state,
                "folder": None if state in ("invalid", "repeated") else self.run_folder(trial).path.name,
                "reason": trial.user_attrs.get("reason") or None,
                "overrides": self.space.overrides(trial.params),
                "number": trial.number,
                "epochs": trial.last_step or 0,
                OBJECTIVE: _reached(trial),
            }
            for trial, state in zip(self.all, self.states(running), strict=True)
        ]
        values = [f"{key}={typed}" for key, typed in self.space.swept.items()]
        whole = {
            "command": ["-m", *self.space.fixed, *values],
            "swept": [*self.space.swept],
            "launcher": self.space.hydra,
            "search": {"fixed": self.space.fixed, "space": self.space.swept},
            "jobs": jobs,
        }
        text = json.dumps(whole, indent=2, ensure_ascii=False)
        write_atomic(self.folder / RECORD, (text + "\n").encode())

    def draw(self) -> None:
        """Write trials.png and values.png."""
        from vitlab.sweep import figures

        trials = [
            {"number": t.number, "state": _end(t), "value": _reached(t), "params": t.params}
            for t in self.all
            if _trained(t) and _reached(t) is not None
        ]
        log = {key: getattr(drawn, "log", False) for key, drawn in self.space.distributions.items()}
        title = f"{len(trials)} trials by TPE, pruner {self.settings['pruner']}"
        for name, figure in (
            ("trials", figures.plot_trials(trials, OBJECTIVE, title)),
            ("values", figures.plot_values(trials, log, OBJECTIVE, title)),
        ):
            figure.savefig(self.folder / f"{name}.png", dpi=120)


def _open(file: Path, pruner: "BasePruner") -> "Study":
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return optuna.create_study(
            storage=f"sqlite:///{file.absolute()}",
            study_name="vitlab",
            direction="maximize",
            pruner=pruner,
            load_if_exists=True,
        )
    except (SQLAlchemyError, RuntimeError, ValueError, AssertionError) as error:
        raise UserError(
            f"{file} cannot be read as Optuna's record of a search ({str(error).splitlines()[0]}); "
            "sweep.new=true starts afresh."
        ) from None


def _end(trial: "FrozenTrial") -> str | None:
    """Return what a trial came to, or None where it is open: its state is set before Optuna is told."""
    return str(trial.user_attrs["state"]) if trial.state.is_finished() else None


def _trained(trial: "FrozenTrial") -> bool:
    return _end(trial) in TRAINED


def _reached(trial: "FrozenTrial") -> float | None:
    """Return the objective of a trial's best epoch so far."""
    return max([*trial.intermediate_values.values(), *(trial.values or [])], default=None)
