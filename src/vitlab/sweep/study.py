"""The study of a search: what was drawn, what each draw came to, and what is drawn next; kept by Optuna.

DIR/study.db               Optuna's own; everything follows from it
DIR/trials.png, values.png

TPE: Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization", section 4.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vitlab.config.labels import label
from vitlab.core.errors import UserError
from vitlab.core.run_folder import RunFolder
from vitlab.core.seeding import derive_seed
from vitlab.sweep.record import OBJECTIVE, Job, folder_name
from vitlab.sweep.space import Space

if TYPE_CHECKING:
    import optuna
    from optuna import Trial
    from optuna.pruners import BasePruner
    from optuna.trial import FrozenTrial

STUDY = "study.db"
# What a trial can end as. From these the sampler learns what values are worth; they are what is counted.
TRAINED = ("finished", "pruned", "diverged")
# Of these it learns nothing; an invalid draw, which cannot be trained, counts as the worst.
IGNORED = ("failed", "repeated")
ENOUGH = 8  # finished trials, to say which keys mattered


class Study:
    """The trials of a search.

    A draw follows from ``sweep.seed``, its number and the trials before it, so that a search that was
    killed resumes as if it had not been.

    Args:
        folder: of the search.
        space: what is searched.
    """

    def __init__(self, folder: Path, space: Space) -> None:
        self.folder = folder
        self.space = space
        self.settings = space.config["sweep"]
        self.study = _open(folder / STUDY, self._make_pruner())

    def _make_pruner(self) -> "BasePruner":
        from optuna import pruners

        warmup = self.settings["warmup_epochs"]
        most = self.space.config["trainer"]["max_epochs"]
        if self.settings["pruner"] == "median":
            return pruners.MedianPruner(self.settings["warmup_trials"], warmup)
        if self.settings["pruner"] == "hyperband":
            return pruners.HyperbandPruner(warmup, most if most >= warmup else "auto")
        return pruners.NopPruner()

    @property
    def trials(self) -> "list[FrozenTrial]":
        """All trials so far, in the order of their numbers."""
        return self.study.get_trials(deepcopy=False)

    def count_trained(self) -> int:
        """Return how many trials count towards ``sweep.trials``."""
        return sum(map(_is_trained, self.trials))

    def get_unfinished(self) -> "list[Trial]":
        """Return the trials that were drawn and have not ended."""
        from optuna import Trial

        return [Trial(self.study, trial._trial_id) for trial in self.trials if _get_outcome(trial) is None]

    def ask(self, *, random: bool) -> "Trial":
        """Draw the next trial; at random after an idle draw, or the same might be drawn for ever."""
        from optuna.samplers import RandomSampler, TPESampler

        seed = derive_seed(self.settings["seed"], "trial", len(self.trials)) % 2**32
        tpe = TPESampler(seed=seed, n_startup_trials=self.settings["random_trials"])
        self.study.sampler = RandomSampler(seed) if random else tpe
        return self.study.ask(self.space.distributions)

    def tell(self, trial: "Trial", outcome: str, value: float | None = None, reason: str = "") -> None:
        """Take down how a trial ended."""
        from optuna.trial import TrialState

        trial.set_user_attr("state", outcome)
        trial.set_user_attr("reason", reason)
        other = TrialState.FAIL if outcome in IGNORED else TrialState.PRUNED
        self.study.tell(trial.number, value, TrialState.COMPLETE if outcome == "finished" else other)

    def find_same(self, trial: "Trial") -> int | None:
        """Return the number of an earlier trial that was trained with the same values."""
        overrides = self.space.overrides(trial.params)
        for other in self.trials[: trial.number]:
            if _is_trained(other) and self.space.overrides(other.params) == overrides:
                return other.number
        return None

    def run_folder(self, trial: "Trial | FrozenTrial") -> RunFolder:
        """Return the run folder of a trial."""
        lines = self.space.lines(trial.params)
        return RunFolder(self.folder / f"{trial.number:03d}_{folder_name(self.label(trial), lines)}")

    def label(self, trial: "Trial | FrozenTrial") -> str:
        """Return what sets a trial apart, such as ``lr=0.001 depth=6``."""
        return label(self.space.lines(trial.params), self.space.swept)

    def best(self) -> "FrozenTrial | None":
        """Return the finished trial with the highest objective, the first of equals."""
        finished = [trial for trial in self.trials if _get_outcome(trial) == "finished"]
        return max(finished, key=lambda trial: trial.value or 0.0, default=None)

    def importance(self) -> Mapping[str, float]:
        """Return the share of each key in what makes a trial good; nothing where too few trials say so.

        PED-ANOVA: Watanabe et al. 2023, arXiv 2304.10255.
        """
        from optuna.importance import get_param_importances

        finished = sum(_get_outcome(trial) == "finished" for trial in self.trials)
        return get_param_importances(self.study) if finished >= ENOUGH and len(self.space.swept) > 1 else {}

    def list_jobs(self) -> list[Job]:
        """Return the trials as sweep.json lists them."""
        return [
            Job(
                tuple(self.space.overrides(trial.params)),
                self.label(trial),
                None if outcome in ("invalid", "repeated") else self.run_folder(trial).path.name,
                trial.user_attrs.get("reason") or None,
                outcome,
                {"number": trial.number, "epochs": trial.last_step or 0, OBJECTIVE: _get_reached(trial)},
            )
            for trial, outcome in ((trial, _get_outcome(trial)) for trial in self.trials)
        ]

    def draw(self) -> None:
        """Write trials.png and values.png."""
        from vitlab.sweep import figures

        trials = [
            {"number": t.number, "state": _get_outcome(t), "value": _get_reached(t), "params": t.params}
            for t in self.trials
            if _is_trained(t) and _get_reached(t) is not None
        ]
        log = {key: getattr(drawn, "log", False) for key, drawn in self.space.distributions.items()}
        title = f"{len(trials)} trials by TPE, pruner {self.settings['pruner']}"
        for name, figure in (
            ("trials", figures.plot_trials(trials, OBJECTIVE, title)),
            ("values", figures.plot_values(trials, log, OBJECTIVE, title)),
        ):
            figure.savefig(self.folder / f"{name}.png", dpi=120)


def _open(file: Path, pruner: "BasePruner") -> "optuna.Study":
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


def _get_outcome(trial: "FrozenTrial") -> str | None:
    """Return what a trial came to, or None where it is open: the word is kept before Optuna is told."""
    return str(trial.user_attrs["state"]) if trial.state.is_finished() else None


def _is_trained(trial: "FrozenTrial") -> bool:
    return _get_outcome(trial) in TRAINED


def _get_reached(trial: "FrozenTrial") -> float | None:
    """Return the objective of a trial's best epoch so far."""
    return max([*trial.intermediate_values.values(), *(trial.values or [])], default=None)
