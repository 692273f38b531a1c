"""The study of a search: what was drawn, what each draw came to, and what is drawn next; kept by Optuna.

TPE: Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization", section 4.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna import Trial
from optuna.importance import get_param_importances
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from vitlab.config.labels import label, own_overrides
from vitlab.core.console import say
from vitlab.core.disk import as_note
from vitlab.core.errors import UserError
from vitlab.core.seeding import derive_seed
from vitlab.sweep.record import OBJECTIVE, STUDY, Job, folder_name
from vitlab.sweep.space import Space

# What a trial can end as. From these the sampler learns what values are worth; they are what is counted.
TRAINED = ("finished", "pruned", "diverged")
# Of these it learns nothing; an invalid draw, which cannot be trained, counts as the worst.
IGNORED = ("failed", "repeated")
ENOUGH = 8  # finished trials, to say which keys mattered


class Study:
    """The trials of a search.

    A draw follows from ``sweep.seed``, its number and the trials before it, so that a search that was
    killed resumes as if it had not been.
    """

    def __init__(self, folder: Path, space: Space) -> None:
        self.folder = folder
        self.space = space
        self.settings = space.config["sweep"]
        self.study = _open(folder / STUDY, _make_pruner(self.settings, space.config["trainer"]["max_epochs"]))

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials so far, in the order of their numbers."""
        return self.study.get_trials(deepcopy=False)

    def get_unfinished(self) -> list[Trial]:
        """Return the trials that were drawn and have not ended."""
        return [Trial(self.study, trial._trial_id) for trial in self.trials if _get_outcome(trial) is None]

    def ask(self, *, random: bool) -> Trial:
        """Draw the next trial; at random after an idle draw, or the same might be drawn for ever."""
        seed = derive_seed(self.settings["seed"], "trial", len(self.trials)) % 2**32
        tpe = TPESampler(seed=seed, n_startup_trials=self.settings["random_trials"])
        # Drawn in memory, entered at once: the record would for a moment hold a trial with half its values.
        scratch = optuna.create_study(
            direction=self.study.direction,
            study_name=self.study.study_name,  # by which Hyperband divides the trials
            pruner=self.study.pruner,
            sampler=RandomSampler(seed) if random else tpe,
        )
        scratch.add_trials(self.trials)
        params = scratch.ask(self.space.distributions).params
        self.study.add_trial(
            create_trial(state=TrialState.RUNNING, params=params, distributions=self.space.distributions)
        )
        return self.get_unfinished()[-1]

    def tell(self, trial: Trial, outcome: str, reason: str = "", value: float | None = None) -> None:
        """Take down how a trial ended."""
        trial.set_user_attr("state", outcome)
        trial.set_user_attr("reason", reason)
        other = TrialState.FAIL if outcome in IGNORED else TrialState.PRUNED
        self.study.tell(trial.number, value, TrialState.COMPLETE if outcome == "finished" else other)

    def best(self) -> FrozenTrial | None:
        """Return the finished trial with the highest objective, the first of equals."""
        finished = [trial for trial in self.trials if _get_outcome(trial) == "finished"]
        return max(finished, key=lambda trial: trial.value or 0.0, default=None)

    def importance(self) -> Mapping[str, float]:
        """Return the share of each key in what makes a trial good; nothing where too few trials say so.

        PED-ANOVA: Watanabe et al. 2023, arXiv 2304.10255.
        """
        finished = sum(_get_outcome(trial) == "finished" for trial in self.trials)
        return get_param_importances(self.study) if finished >= ENOUGH and len(self.space.swept) > 1 else {}

    def list_jobs(self) -> list[Job]:
        """Return the trials as sweep.json lists them, in the order of their numbers."""
        jobs = []
        for trial in self.trials:
            lines, outcome = self.space.lines(trial.params), _get_outcome(trial)
            text = label(lines, self.space.swept)
            folder = f"{trial.number:03d}_{folder_name(text, lines)}"
            jobs.append(
                Job(
                    (*own_overrides(self.space.fixed), *lines),
                    text,
                    None if outcome in ("invalid", "repeated") else folder,
                    trial.user_attrs.get("reason") or None,
                    outcome,
                    {"number": trial.number, "epochs": trial.last_step or 0, OBJECTIVE: _get_reached(trial)},
                )
            )
        return jobs

    def draw(self) -> None:
        """Write trials.png and values.png."""
        from vitlab.core.plotting import save_figure
        from vitlab.sweep import figures

        trials = [
            {"number": t.number, "state": _get_outcome(t), "value": _get_reached(t), "params": t.params}
            for t in self.trials
            if _get_outcome(t) in TRAINED and _get_reached(t) is not None
        ]
        log = {key: getattr(drawn, "log", False) for key, drawn in self.space.distributions.items()}
        title = f"{len(trials)} trials by TPE, pruner {self.settings['pruner']}"
        with as_note(say, "figures"):
            save_figure(figures.plot_trials(trials, title), self.folder / "trials.png")
            save_figure(figures.plot_values(trials, log, title), self.folder / "values.png")


def _make_pruner(settings: Mapping[str, Any], max_epochs: int) -> BasePruner:
    warmup = settings["warmup_epochs"]
    if settings["pruner"] == "median":
        return MedianPruner(settings["warmup_trials"], warmup)
    if settings["pruner"] == "hyperband":
        return HyperbandPruner(warmup, max_epochs if max_epochs >= warmup else "auto")
    return NopPruner()


def _open(file: Path, pruner: BasePruner) -> optuna.Study:
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


def _get_outcome(trial: FrozenTrial) -> str | None:
    """Return what a trial came to, or None where it is open: the word is kept before Optuna is told."""
    return str(trial.user_attrs["state"]) if trial.state.is_finished() else None


def _get_reached(trial: FrozenTrial) -> float | None:
    """Return the objective of a trial's best epoch so far."""
    return max([*trial.intermediate_values.values(), *(trial.values or [])], default=None)
