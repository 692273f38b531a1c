"""The study of a search: what was drawn, what each draw came to, and what is drawn next; kept by Optuna.

TPE: Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization", section 4.
"""

import contextlib
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna import Trial
from optuna.exceptions import UpdateFinishedTrialError
from optuna.importance import get_param_importances
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from vitlab.config.labels import label, own_overrides
from vitlab.core.console import say
from vitlab.core.disk import as_note
from vitlab.core.seeding import derive_seed
from vitlab.sweep.record import OBJECTIVE, Job, folder_name
from vitlab.sweep.space import Space

# What a trial can end as. From these the sampler learns what values are worth; they are what is counted.
TRAINED = ("finished", "pruned", "diverged")
# Of these it learns nothing; an invalid draw, which cannot be trained, counts as the worst.
IGNORED = ("failed", "repeated")
FRUITLESS = ("invalid", "repeated")  # draws that brought nothing to train
ENOUGH = 8  # finished trials, to say which keys mattered


class Study:
    """The trials of a search, as they were when `refresh` was called last.

    What all processes on a search agree on stands in Optuna's storage alone. It numbers the trials. A trial
    that has not ended is for any process: who has it is known by the claim in its folder. Wanted are as
    many trials as were asked for, by their numbers; so where two processes draw the last one at the same
    moment, the second stays untouched, unless an earlier one fails.

    Alone, a draw follows from ``sweep.seed``, its number and the trials before it, so that a search that was
    killed resumes as if it had not been. Of several processes each draws by a lot of its own, or those that
    do so at the same moment would draw the same.

    Args:
        folder: of the search.
        space: what is drawn.
        study: Optuna's.
        alone: whether one process works on it.

    Attributes:
        trials: all so far, in the order of their numbers.
    """

    def __init__(self, folder: Path, space: Space, study: optuna.Study, *, alone: bool) -> None:
        self.folder = folder
        self.space = space
        self.settings = space.config["sweep"]
        self.study = study
        self._lot = "" if alone else secrets.token_hex(4)
        self.refresh()
        self._begun = len(self.trials)

    def refresh(self) -> None:
        """Ask the storage how it stands."""
        self.trials: list[FrozenTrial] = self.study.get_trials(deepcopy=False)
        self._agreed: dict[str, Any] = self.study.user_attrs

    @property
    def total(self) -> int | None:
        """The number of trials that all processes go for; None of a search that has not begun."""
        return self._agreed.get("trials")

    def agree(self, total: int) -> None:
        """Have all processes go for so many trials, and make up for those that have failed so far."""
        self.study.set_user_attr("trials", total)
        self.study.set_user_attr("made up for", len(self.trials))
        self.refresh()

    def list_failed(self) -> list[FrozenTrial]:
        """Return the trials that failed since a process began or joined last; others made up for the rest."""
        since = self._agreed.get("made up for", 0)
        return [trial for trial in self.trials[since:] if get_outcome(trial) == "failed"]

    def list_wanted(self) -> list[FrozenTrial]:
        """Return the trials that are counted, as many as were asked for at most."""
        failed = self.list_failed()
        counted = [t for t in self.trials if get_outcome(t) in (None, *TRAINED) or t in failed]
        return counted[: self.total]

    def list_open(self) -> list[FrozenTrial]:
        """Return the wanted trials that have not ended."""
        return [trial for trial in self.list_wanted() if get_outcome(trial) is None]

    def is_open(self, number: int) -> bool:
        """Ask the storage whether a trial has not ended."""
        self.refresh()
        return get_outcome(self.trials[number]) is None

    def count_left(self) -> int:
        """Return how many trials have to end yet, those that are not drawn among them."""
        return (self.total or 0) - sum(get_outcome(trial) is not None for trial in self.list_wanted())

    def count_missing(self) -> int:
        """Return how many trials are to be drawn yet."""
        return max(0, (self.total or 0) - len(self.list_wanted()))

    def count_idle(self) -> int:
        """Return how many draws in a row have brought nothing to train lately, since this process began."""
        outcomes = [get_outcome(trial) in FRUITLESS for trial in reversed(self.trials[self._begun :])]
        return outcomes.index(False) if False in outcomes else len(outcomes)

    def get_live(self, trial: FrozenTrial) -> Trial:
        """Return a trial to tell of its epochs, and to ask whether it is hopeless."""
        return Trial(self.study, trial._trial_id)

    def ask(self, *, random: bool) -> None:
        """Draw one more trial; at random after an idle draw, or the same might be drawn for ever."""
        seed = derive_seed(self.settings["seed"], f"trial{self._lot}", len(self.trials)) % 2**32
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

    def tell(self, trial: Trial, outcome: str, reason: str = "", value: float | None = None) -> None:
        """Take down how a trial ended; nothing changes where that is known."""
        with contextlib.suppress(UpdateFinishedTrialError):  # told before, and the answer was lost on its way
            trial.set_user_attr("state", outcome)
            trial.set_user_attr("reason", reason)
        other = TrialState.FAIL if outcome in IGNORED else TrialState.PRUNED
        state = TrialState.COMPLETE if outcome == "finished" else other
        self.study.tell(trial.number, value, state, skip_if_finished=True)

    def best(self) -> FrozenTrial | None:
        """Return the finished trial with the highest objective, the first of equals."""
        finished = [trial for trial in self.trials if get_outcome(trial) == "finished"]
        return max(finished, key=lambda trial: trial.value or 0.0, default=None)

    def importance(self) -> Mapping[str, float]:
        """Return the share of each key in what makes a trial good; nothing where too few trials say so.

        PED-ANOVA: Watanabe et al. 2023, arXiv 2304.10255.
        """
        finished = sum(get_outcome(trial) == "finished" for trial in self.trials)
        return get_param_importances(self.study) if finished >= ENOUGH and len(self.space.swept) > 1 else {}

    def list_jobs(self) -> list[Job]:
        """Return the trials as sweep.json lists them, but for those that nobody wants or has begun."""
        wanted = {trial.number for trial in self.list_wanted()}
        jobs = [(trial.number, self.describe(trial)) for trial in self.trials]
        return [
            job
            for number, job in jobs
            if number in wanted or job.outcome or (self.folder / str(job.folder)).exists()
        ]

    def describe(self, trial: FrozenTrial) -> Job:
        """Return a trial as a job of the sweep."""
        lines, outcome = self.space.lines(trial.params), get_outcome(trial)
        text = label(lines, self.space.swept)
        folder = f"{trial.number:03d}_{folder_name(text, lines)}"
        return Job(
            (*own_overrides(self.space.fixed), *lines),
            text,
            None if outcome in FRUITLESS else folder,
            trial.user_attrs.get("reason") or None,
            outcome,
            {"number": trial.number, "epochs": trial.last_step or 0, OBJECTIVE: _get_reached(trial)},
        )

    @property
    def concluded(self) -> bool:
        """Whether a process has done what is done once, after the last of the trials that there are."""
        return self._agreed.get("concluded") == len(self.trials)

    def conclude(self) -> None:
        """Take down that what is done once is done."""
        self.study.set_user_attr("concluded", len(self.trials))
        self.refresh()

    def draw(self) -> None:
        """Write trials.png and values.png."""
        from vitlab.core.plotting import save_figure
        from vitlab.sweep import figures

        trials = [
            {"number": t.number, "state": get_outcome(t), "value": _get_reached(t), "params": t.params}
            for t in self.trials
            if get_outcome(t) in TRAINED and _get_reached(t) is not None
        ]
        log = {key: getattr(drawn, "log", False) for key, drawn in self.space.distributions.items()}
        title = f"{len(trials)} trials by TPE, pruner {self.settings['pruner']}"
        with as_note(say, "figures"):
            save_figure(figures.plot_trials(trials, title), self.folder / "trials.png")
            save_figure(figures.plot_values(trials, log, title), self.folder / "values.png")


def make_pruner(space: Space) -> BasePruner:
    """Return what ends the trials of a search early."""
    settings, max_epochs = space.config["sweep"], space.config["trainer"]["max_epochs"]
    warmup = settings["warmup_epochs"]
    if settings["pruner"] == "median":
        return MedianPruner(settings["warmup_trials"], warmup)
    if settings["pruner"] == "hyperband":
        return HyperbandPruner(warmup, max_epochs if max_epochs >= warmup else "auto")
    return NopPruner()


def get_outcome(trial: FrozenTrial) -> str | None:
    """Return what a trial came to, or None where it is open: the word is kept before Optuna is told."""
    return str(trial.user_attrs["state"]) if trial.state.is_finished() else None


def _get_reached(trial: FrozenTrial) -> float | None:
    """Return the objective of a trial's best epoch so far."""
    return max([*trial.intermediate_values.values(), *(trial.values or [])], default=None)
