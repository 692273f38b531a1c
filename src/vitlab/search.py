"""``sweep=optuna``: values drawn where earlier trials were good, and hopeless trials ended early. Torch-free.

DIR/study.db               Optuna's own record; what is done, and what is drawn next, follows from it
DIR/sweep.json             as of any sweep: the command and its jobs, and here the space and what each reached
DIR/000_lr-0.001_depth-6/  a trial: a run folder like any other
DIR/trials.png, values.png

Optuna is used through its ask-and-tell interface, and every trial is a process of its own, as any job of a
sweep. TPE: Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization", section 4.
"""

import contextlib
import csv
import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import yaml

from vitlab.config import compose
from vitlab.cores import SHARE
from vitlab.errors import UserError
from vitlab.folder import RunFolder, Summary, write_atomic
from vitlab.launch import check_folder, record
from vitlab.processes import Interrupted, rank_in_environment, run_job, start
from vitlab.provenance import commit, versions
from vitlab.seeding import derive
from vitlab.space import FREE, Space, checked, identity, read_space
from vitlab.sweep import OBJECTIVE, RECORD, duration, folder_name, label

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.pruners import BasePruner
    from optuna.trial import FrozenTrial

STUDY = "study.db"
# What a trial can end as. From these the sampler learns what values are worth; they are what is counted.
TRAINED = ("finished", "pruned", "diverged")
# Of these it learns nothing; an invalid draw, which cannot be trained, counts as the worst.
IGNORED = ("failed", "repeated")
DIVERGED = "training diverged"  # what such a run's error begins with
POLL = 0.2  # seconds between two looks at the trials
PATIENCE = 60  # seconds for the trial of a search that was killed to end itself
IDLE = 50  # draws in a row that bring nothing new, until the search is given up
ENOUGH = 8  # finished trials, to say which keys mattered


def is_search(overrides: Sequence[str]) -> bool:
    """Whether a command line asks for a search rather than for every combination."""
    if folder := _typed(overrides, "sweep.resume"):
        return (Path(folder) / STUDY).is_file()
    if chosen := _typed(overrides, "sweep"):
        return chosen == "optuna"
    recipe = [o for o in overrides if o.startswith("experiment=")]
    with contextlib.suppress(UserError):  # said by the check of the whole command line
        return bool(recipe) and compose(recipe, with_hydra=True).hydra.runtime.choices["sweep"] == "optuna"
    return False


def search(overrides: Sequence[str]) -> None:
    """Run the search that a command line asks for, or go on with it; print what it found.

    Raises:
        UserError: it cannot be searched as asked for, or trials failed.
        Interrupted: Ctrl-C or SIGTERM; the trials under way have kept a checkpoint.
    """
    if rank_in_environment() is not None:
        raise UserError("a search starts the processes of its trials itself: call it without torchrun.")
    _need_optuna()
    given = _typed(overrides, "sweep.resume")
    space = read_space(_continued(Path(given), overrides) if given else overrides)
    folder = Path(given) if given else _earlier(space)
    if folder is None:
        check_folder(space.hydra)
        folder = space.folder
        folder.mkdir(parents=True, exist_ok=True)
        for note in _notes(space):
            _say(f"note: {note}")
    with RunFolder(folder).lock():
        Search(folder, space).run()


def _need_optuna() -> None:
    try:
        import optuna
    except ImportError as error:
        raise UserError(f"sweep=optuna needs Optuna: pip install -e .[optuna] ({error})") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def _typed(overrides: Sequence[str], key: str) -> str | None:
    """Return what was typed for ``key``, or None."""
    return next((o.partition("=")[2] for o in reversed(overrides) if o.startswith(f"{key}=")), None)


def _continued(folder: Path, overrides: Sequence[str]) -> list[str]:
    """Return the overrides that a search began with, but for those that may change.

    Raises:
        UserError: others stand beside ``sweep.resume``, or the folder's record cannot be read.
    """
    beside = [o for o in overrides if not o.startswith("sweep.resume=")]
    typed = {o.partition("=")[0] for o in beside}
    if others := typed - {*FREE}:
        raise UserError(
            "sweep.resume= goes on with a search as it was configured; "
            f"{', '.join(FREE[:3])} alone may change, found {', '.join(sorted(others))}."
        )
    before = _read_record(folder)
    if before is None:
        raise UserError(f"{folder / RECORD} is damaged: repeat the command that began the search.")
    kept = [o for o in before["fixed"] if o.partition("=")[0] not in {*typed, "sweep.resume", "sweep.new"}]
    return [*kept, *(f"{key}={values}" for key, values in before["space"].items()), *beside]


def _earlier(space: Space) -> Path | None:
    """Return the folder of the newest search that the same command began, or None."""
    if space.config["sweep"]["new"]:
        return None
    place = space.folder.name if _typed(space.hydra, "hydra.sweep.dir") else "*"
    found = sorted(space.folder.parent.glob(f"{place}/{RECORD}"), key=lambda file: file.stat().st_mtime)
    for file in reversed(found):
        known = _read_record(file.parent)
        if known and identity(known["fixed"], known["space"]) == space.identity:
            return file.parent
    return None


def _read_record(folder: Path) -> dict[str, Any] | None:
    """Return what a search was asked for: its fixed overrides and its space; None where it is no search."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))["search"]
        return {"fixed": list(found["fixed"]), "space": dict(found["space"])}
    return None


def _notes(space: Space) -> Iterator[str]:
    """Yield what of the settings is without effect."""
    sweep, epochs = space.config["sweep"], space.config["trainer"]["max_epochs"]
    pruner, typed = sweep["pruner"], {o.partition("=")[0] for o in space.fixed}
    if sweep["trials"] <= sweep["random_trials"]:
        yield f"sweep.random_trials={sweep['random_trials']}: all {sweep['trials']} are drawn at random."
    for key, of in (("warmup_trials", ("median",)), ("warmup_epochs", ("median", "hyperband"))):
        if f"sweep.{key}" in typed and pruner not in of:
            yield f"sweep.{key} has no effect with sweep.pruner={pruner}."
    late = 0 < epochs <= sweep["warmup_epochs"] or (
        pruner == "median" and sweep["trials"] <= sweep["warmup_trials"]
    )
    if pruner != "none" and late:
        yield "no trial is ended early: sweep.warmup_epochs or sweep.warmup_trials is all there is."


@dataclass
class Job:
    """A trial that trains."""

    trial: "Trial"
    folder: RunFolder
    process: subprocess.Popen[bytes]
    max_epochs: int
    reported: int  # the last epoch that Optuna knows of
    started: float = field(default_factory=time.monotonic)
    pruned: bool = False


class Search:
    """One session of a search; it goes on from what the folder holds.

    What a trial draws follows from ``sweep.seed``, its number and the trials before it, so that a search
    that was killed goes on as if it had not been (with ``sweep.jobs=1``).
    """

    def __init__(self, folder: Path, space: Space) -> None:
        import optuna

        self.folder = folder
        self.space = space
        self.settings = space.config["sweep"]
        self.running: list[Job] = []
        self.stop: int | None = None  # the signal that ends this session
        self.exhausted = False
        self.failed = 0  # in this session; those of earlier ones are made up for
        self.seconds: list[float] = []  # of each trial that ended in this session
        self.study = _open(folder / STUDY, self._pruner())
        open_trials = [trial for trial in self.trials if not trial.state.is_finished()]
        self.waiting = [optuna.Trial(self.study, trial._trial_id) for trial in open_trials]
        self._record()

    @property
    def trials(self) -> "list[FrozenTrial]":
        return self.study.get_trials(deepcopy=False)

    def run(self) -> None:
        """Train until there are as many trials as asked for, test the best, and print what was found.

        Raises:
            UserError: trials failed, or there was nothing to choose from.
            Interrupted: Ctrl-C or SIGTERM.
        """
        if self.trials:
            _say(f"going on with {RunFolder(self.folder)}; sweep.new=true starts afresh")
        if (left := self._left()) <= 0:
            _say(f"it is finished: all {self.settings['trials']} trials; with sweep.trials=N there are more.")
        else:
            _say(f"{left} trials to train in {RunFolder(self.folder)}")
        with self._signals():
            while True:
                while len(self.running) < self.settings["jobs"] and self._begin_next():
                    pass
                if not self.running:
                    break
                for job in [*self.running]:
                    self._follow(job)
                time.sleep(POLL)
        self._record()
        if self.stop is not None:
            again = shlex.join(["python", "train.py", f"sweep.resume={RunFolder(self.folder)}"])
            _say(f"stopped, {self._left()} trials left; go on with: {again}")
            raise Interrupted(self.stop)
        self._conclude()

    # Trials begin, are followed, and end

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Let Ctrl-C and SIGTERM end the search."""

        def handle(signum: int, frame: FrameType | None) -> None:
            self._halt(signum)

        before = {signum: signal.signal(signum, handle) for signum in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def _halt(self, signum: int) -> None:
        """Let the trials under way end, each with a checkpoint, and begin no other."""
        self.stop = signum
        for job in self.running:
            job.process.send_signal(signum)

    def _pruner(self) -> "BasePruner":
        from optuna import pruners

        warmup = self.settings["warmup_epochs"]
        most = self.space.config["trainer"]["max_epochs"]
        if self.settings["pruner"] == "median":
            return pruners.MedianPruner(self.settings["warmup_trials"], warmup)
        if self.settings["pruner"] == "hyperband":
            return pruners.HyperbandPruner(warmup, most if most >= warmup else "auto")
        return pruners.NopPruner()

    def _left(self) -> int:
        """Return how many trials are still to be begun, or to be gone on with."""
        done = sum(map(_trained, self.trials)) + self.failed
        return int(self.settings["trials"]) - done - len(self.running)

    def _begin_next(self) -> bool:
        """Start a trial if one is left; draw again where a draw cannot be trained or brings nothing new."""
        for idle in range(IDLE):
            if self.exhausted or self._left() <= 0 or self.stop is not None:
                return False
            if self._begin(self.waiting.pop(0) if self.waiting else self._ask(random=idle > 0)):
                return True
        self.exhausted = True
        _say(f"note: {IDLE} draws in a row brought nothing new that can be trained; the search ends early.")
        return False

    def _ask(self, *, random: bool) -> "Trial":
        """Draw the next trial; at random after an idle draw, or the same might be drawn for ever."""
        from optuna.samplers import RandomSampler, TPESampler

        seed = derive(self.settings["seed"], "trial", len(self.trials)) % 2**32
        tpe = TPESampler(seed=seed, n_startup_trials=self.settings["random_trials"])
        self.study.sampler = RandomSampler(seed) if random else tpe
        return self.study.ask(self.space.distributions)

    def _begin(self, trial: "Trial") -> bool:
        """Start a trial in its folder, or go on with it there; say whether it was worth it."""
        folder, known = self._folder(trial), self.trials[trial.number]
        if folder.config.exists():
            deadline = time.monotonic() + PATIENCE
            while folder.is_locked() and time.monotonic() < deadline:
                time.sleep(POLL)
        elif not self._claim(trial, folder):
            return False
        jobs, share = self.settings["jobs"], {}
        if jobs > 1:
            cores = str(max(1, (os.cpu_count() or 1) // jobs))
            share = {SHARE: cores, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", cores)}
        process = start(folder, shown=jobs == 1, **share)
        most = folder.read_config()["trainer"]["max_epochs"]
        self.running.append(Job(trial, folder, process, most, max(known.intermediate_values, default=0)))
        if self.stop is not None:  # it came meanwhile
            process.send_signal(self.stop)
        self._record()
        return True

    def _claim(self, trial: "Trial", folder: RunFolder) -> bool:
        """Make the run folder of a new trial, which is not to test; False if it is not worth training."""
        overrides = self.space.overrides(trial.params)
        for other in self.trials[: trial.number]:
            if _trained(other) and self.space.overrides(other.params) == overrides:
                self._tell(trial, "repeated", reason=f"the same as trial {other.number}")
                return False
        try:
            config, choices = checked(overrides)
            config["trainer"]["limit_test_batches"] = 0
            RunFolder.create(folder.path, record(config, choices, overrides, [*self.space.swept]))
        except UserError as error:
            self._tell(trial, "invalid", reason=str(error))
            _say(f"left out: {self._name(trial)}: {error}")
            return False
        Summary(folder).begin(config["seed"], overrides, versions(), commit())
        return True

    def _follow(self, job: Job) -> None:
        """Tell Optuna of new epochs, end the trial if it is hopeless, and see whether it has ended."""
        code = job.process.poll()  # before reading, so that the last it wrote is read
        for epoch, value in read_objective(job.folder):
            if epoch > job.reported and not job.pruned:
                job.trial.report(value, epoch)
                job.reported = epoch
                if code is None and epoch != job.max_epochs and job.trial.should_prune():
                    job.pruned = True
                    job.process.terminate()
        if code is not None:
            self.running.remove(job)
            self._end(job, code)

    def _end(self, job: Job, code: int) -> None:
        """Take down how a trial ended."""
        summary = Summary(job.folder)
        value = summary.data.get("metrics", {}).get(OBJECTIVE)
        signum = {128 + s: s for s in (signal.SIGINT, signal.SIGTERM)}.get(code, -code)
        stopped = signum in (signal.SIGINT, signal.SIGTERM)
        if stopped and not job.pruned:
            # The search ends as a whole, whether it or this trial alone was told to.
            if self.stop is None:
                self._halt(signum)
            return
        self.seconds.append(time.monotonic() - job.started)
        if stopped:
            summary.update(status="pruned")
            reason = f"{self.settings['pruner']}, after epoch {job.reported}"
            self._tell(job.trial, "pruned", reason=reason)
        elif code == 0 and value is not None:
            self._tell(job.trial, "finished", value)
        else:
            reason = str(summary.data.get("error") or f"ended with status {code}, see {job.folder.log}")
            # A rate too high is no fault but an answer, which the sampler should learn from.
            state = "diverged" if reason.startswith(DIVERGED) else "failed"
            self.failed += state == "failed"
            self._tell(job.trial, state, reason=reason)
        self._progress(job)

    def _tell(self, trial: "Trial", state: str, value: float | None = None, reason: str = "") -> None:
        from optuna.trial import TrialState

        trial.set_user_attr("state", state)
        trial.set_user_attr("reason", reason)
        other = TrialState.FAIL if state in IGNORED else TrialState.PRUNED
        self.study.tell(trial.number, value, TrialState.COMPLETE if state == "finished" else other)
        self._record()

    # What is known of them

    def _folder(self, trial: "Trial | FrozenTrial") -> RunFolder:
        lines = self.space.lines(trial.params)
        name = folder_name(label(lines, self.space.swept), lines)
        return RunFolder(self.folder / f"{trial.number:03d}_{name}")

    def _state(self, trial: "FrozenTrial") -> str:
        if not trial.state.is_finished():
            return "running" if any(j.trial.number == trial.number for j in self.running) else "interrupted"
        return str(trial.user_attrs["state"])

    def _record(self) -> None:
        """Write sweep.json."""
        jobs = [
            {
                "label": self._name(trial),
                "state": (state := self._state(trial)),
                "folder": None if state in ("invalid", "repeated") else self._folder(trial).path.name,
                "reason": trial.user_attrs.get("reason") or None,
                "overrides": self.space.overrides(trial.params),
                "number": trial.number,
                "epochs": trial.last_step or 0,
                OBJECTIVE: _reached(trial),
            }
            for trial in self.trials
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

    def _best(self) -> "FrozenTrial | None":
        """Return the finished trial with the highest objective, the first of equals."""
        finished = [trial for trial in self.trials if trial.user_attrs.get("state") == "finished"]
        return max(finished, key=lambda trial: trial.value or 0.0, default=None)

    def _name(self, trial: "Trial | FrozenTrial") -> str:
        return label(self.space.lines(trial.params), self.space.swept)

    def _progress(self, job: Job) -> None:
        """Say in one line how a trial ended and how the search stands."""
        trial, states = self.trials[job.trial.number], [self._state(trial) for trial in self.trials]
        left, begun = self._left(), len(self.running)
        result = f"{OBJECTIVE} {trial.value:.4f}" if trial.value is not None else ""
        if (state := trial.user_attrs["state"]) != "finished":
            result = f"{state}: {trial.user_attrs['reason']}"
        counts = [f"{s} {states.count(s)}" for s in ("pruned", "diverged", "invalid") if s in states]
        counts += [f"failed {self.failed}", f"left {left + begun}"]
        if begun:
            counts[-1] += f" ({begun} running)"
        if left + begun:
            each = sum(self.seconds) / len(self.seconds)
            counts.append(f"about {duration(each * (left + begun) / self.settings['jobs'])}")
        best = self._best()
        said = f"; best {self._name(best)}: {best.value:.4f}" if best else ""
        total = self.settings["trials"]
        _say(
            f"[{total - left - begun}/{total}] {self._name(trial)}  {result}  {duration(self.seconds[-1])}   "
            f"{', '.join(counts)}{said}"
        )

    # What was found

    def _conclude(self) -> None:
        """Test the best trial, draw the figures, and print what was found."""
        best = self._best()
        failed = f"{self.failed} of {self.settings['trials']} trials failed; their train.log says why."
        if best is None:
            raise UserError(failed if self.failed else f"no trial of {RunFolder(self.folder)} finished.")
        tested = self._test(best) if self.settings["test_best"] else ""
        self._draw()
        states = [self._state(trial) for trial in self.trials]
        ended = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        _say(f"{RunFolder(self.folder)}: {ended}")
        if weights := self._importance():
            shares = ", ".join(f"{key} {share:.0%}" for key, share in weights.items())
            _say(f"what mattered (PED-ANOVA over few trials: a hint): {shares}")
        _say(f"best: trial {best.number}, {OBJECTIVE} {best.value:.4f}{tested}, {self._folder(best)}")
        _say(f"  {shlex.join(['python', 'train.py', *self.space.overrides(best.params)])}")
        if self.failed:
            raise UserError(failed)

    def _test(self, best: "FrozenTrial") -> str:
        """Test one trial, unless it has been; return what is said of it."""
        folder = self._folder(best)
        metrics = Summary(folder).data["metrics"]
        limit = self.space.config["trainer"]["limit_test_batches"]
        if "test/accuracy" not in metrics and limit != 0:
            config = folder.read_config()
            config["trainer"]["limit_test_batches"] = limit
            text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
            write_atomic(folder.config, text.encode())
            # A run whose training is done goes on with its test.
            Summary(folder).update(status="interrupted")
            run_job(folder)
            metrics = Summary(folder).data["metrics"]
        return f", test/accuracy {metrics['test/accuracy']:.4f}" if "test/accuracy" in metrics else ""

    def _importance(self) -> Mapping[str, float]:
        """Return the share of each key in what makes a trial good; nothing where too few trials say so.

        PED-ANOVA: Watanabe et al. 2023, arXiv 2304.10255.
        """
        from optuna.importance import get_param_importances

        finished = sum(trial.user_attrs["state"] == "finished" for trial in self.trials)
        return get_param_importances(self.study) if finished >= ENOUGH and len(self.space.swept) > 1 else {}

    def _draw(self) -> None:
        """Write trials.png and values.png."""
        from vitlab import plots

        trials = [
            {"number": t.number, "state": t.user_attrs["state"], "value": _reached(t), "params": t.params}
            for t in self.trials
            if _trained(t) and _reached(t) is not None
        ]
        log = {key: getattr(drawn, "log", False) for key, drawn in self.space.distributions.items()}
        title = f"{len(trials)} trials by TPE, pruner {self.settings['pruner']}"
        for name, figure in (
            ("trials", plots.search_trials(trials, OBJECTIVE, title)),
            ("values", plots.search_values(trials, log, OBJECTIVE, title)),
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


def _trained(trial: "FrozenTrial") -> bool:
    return trial.user_attrs.get("state") in TRAINED


def _reached(trial: "FrozenTrial") -> float | None:
    """Return the objective of a trial's best epoch so far."""
    return max([*trial.intermediate_values.values(), *(trial.values or [])], default=None)


def read_objective(folder: RunFolder) -> list[tuple[int, float]]:
    """Return (epoch, objective) of each validated epoch of a run."""
    if not folder.metrics.exists():
        return []
    with open(folder.metrics, newline="") as file:
        rows = [(row["epoch"], row.get(OBJECTIVE)) for row in csv.DictReader(file)]
    return [(int(epoch), float(value)) for epoch, value in rows if value]


def _say(text: str) -> None:
    print(text, flush=True)  # the trials write to the same screen
