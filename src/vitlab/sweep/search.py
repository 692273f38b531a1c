"""``sweep=optuna``: trials are drawn, started, followed and ended, and the best is tested.

Optuna is used through its ask-and-tell interface.
"""

import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna

from vitlab.config import read_record
from vitlab.config.arguments import Arguments, check_folder
from vitlab.core.console import say
from vitlab.core.errors import UserError
from vitlab.core.files import add_folder, write_atomic
from vitlab.core.metrics_csv import read_metrics
from vitlab.core.run_folder import RunFolder, State, Summary
from vitlab.core.untrusted import to_yaml
from vitlab.sweep.progress import Progress, raise_if_stopped
from vitlab.sweep.record import OBJECTIVE, RECORD, Job, Sweep, find_sweep
from vitlab.sweep.space import FREE, Space, check_trial, identify, read_space
from vitlab.sweep.study import TRAINED, Study
from vitlab.sweep.worker import POLL, RunningJob, Worker, get_stop_signal

IDLE = 50  # draws in a row that bring nothing new: the search is given up


def run_search(arguments: Arguments) -> None:
    """Run the search that a command line asks for, or resume it; see `vitlab.sweep.run_sweep`."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if arguments.sweep_resume:
        folder = Path(arguments.sweep_resume)
        space = read_space(_continue(folder, arguments.overrides))
    else:
        space = read_space(arguments.overrides)
        folder = _find_or_make(space)
    with RunFolder(folder).lock():
        Search(folder, space).run()


def _continue(folder: Path, overrides: Sequence[str]) -> list[str]:
    """Return the overrides that a search began with, but for those that may change.

    Raises:
        UserError: others stand beside ``sweep.resume``, or the folder's record cannot be read.
    """
    beside = [o for o in overrides if not o.startswith("sweep.resume=")]
    typed = {o.partition("=")[0] for o in beside}
    if others := typed - {*FREE}:
        raise UserError(
            f"sweep.resume= resumes a search as it was configured; only {', '.join(FREE[:3])} can change, "
            f"found {', '.join(sorted(others))}."
        )
    before = Sweep.load(folder).search
    if before is None:
        raise UserError(f"{folder / RECORD} is not of a search; sweep.new=true starts afresh.")
    kept = [o for o in before["fixed"] if o.partition("=")[0] not in {*typed, "sweep.resume", "sweep.new"}]
    return [*kept, *(f"{key}={values}" for key, values in before["space"].items()), *beside]


def _find_or_make(space: Space) -> Path:
    """Return the folder of the newest search that the same command began, or a new one."""

    def matches(other: Sweep) -> bool:
        return other.search is not None and identify(**other.search) == identify(**space.record)

    fresh = space.config["sweep"]["new"]
    if found := None if fresh else find_sweep(space.folder, space.hydra, matches):
        return found.path
    check_folder(space.folder, "sweep")
    add_folder(space.folder)
    for note in _list_notes(space):
        say(f"note: {note}")
    return space.folder


def _list_notes(space: Space) -> Iterator[str]:
    """Yield what of the settings has no effect."""
    sweep, epochs = space.config["sweep"], space.config["trainer"]["max_epochs"]
    pruner, typed = sweep["pruner"], {o.partition("=")[0] for o in space.fixed}
    if sweep["trials"] <= sweep["random_trials"]:
        yield f"sweep.random_trials={sweep['random_trials']}: all {sweep['trials']} are drawn at random."
    for key, pruners in (("warmup_trials", ("median",)), ("warmup_epochs", ("median", "hyperband"))):
        if f"sweep.{key}" in typed and pruner not in pruners:
            yield f"sweep.{key} has no effect with sweep.pruner={pruner}."
    few = pruner == "median" and sweep["trials"] <= sweep["warmup_trials"]
    if pruner != "none" and (few or 0 < epochs <= sweep["warmup_epochs"]):
        yield "no trial is ended early: sweep.warmup_epochs or sweep.warmup_trials is all there is."


@dataclass
class RunningTrial:
    """A trial that trains."""

    trial: optuna.Trial
    job: RunningJob
    max_epochs: int
    reported: int  # the last epoch that Optuna knows of
    pruned: bool = False  # told to end early


class Search:
    """One call of the verb on the search in a folder; it resumes from what the folder holds.

    With ``sweep.jobs=1`` one that was killed resumes as if it had not been (see `Study`).
    """

    def __init__(self, folder: Path, space: Space) -> None:
        self.space = space
        self.settings = space.config["sweep"]
        self.study = Study(folder, space)
        self.interrupted = self.study.get_unfinished()
        command = ["-m", *space.fixed, *(f"{key}={values}" for key, values in space.swept.items())]
        self.sweep = Sweep(folder.absolute(), command, [*space.swept], space.hydra, search=space.record)
        self._save()
        trials = self.settings["trials"]
        # Those that failed in earlier calls are made up for.
        left = trials - sum(job.outcome in TRAINED for job in self.sweep.jobs)
        self.progress = Progress(self.sweep, trials, left)
        self.worker = Worker(folder, at_a_time=self.settings["jobs"])
        self.running: list[RunningTrial] = []
        self.idle = 0  # draws in a row that brought nothing new

    def run(self) -> None:
        """Train until there are as many trials as asked for, test the best, and print what was found.

        Raises:
            UserError: trials failed, or there was nothing to choose from.
            Interrupted: Ctrl-C or SIGTERM.
        """
        total = self.settings["trials"]
        if self.sweep.jobs:
            say(f"resuming {self.sweep}; sweep.new=true starts afresh")
        if self.progress.left <= 0:
            say(f"it is already finished: all {total} trials; with sweep.trials=N there are more.")
        else:
            say(f"{self.progress.left} trials to train in {self.sweep}")
        with self.worker.open():
            while self._start_trials():
                for running in [*self.running]:
                    self._follow(running)
                time.sleep(POLL)
            stopped = self.worker.stop_signal()
        self._save()
        raise_if_stopped(self.sweep, stopped, f"{self.progress.left} of {total} trials")
        self._conclude()

    def _save(self) -> None:
        self.sweep.jobs = self.study.list_jobs()
        self.sweep.save()

    def _start_trials(self) -> bool:
        """Start as many trials as may run at a time, and say whether any runs.

        Draws again where a draw cannot be trained or brings nothing new.
        """
        while (
            len(self.running) < min(self.settings["jobs"], self.progress.left)
            and self.idle < IDLE
            and not self.worker.stop_signal()
        ):
            trial = self.interrupted.pop(0) if self.interrupted else self.study.ask(random=self.idle > 0)
            self.idle = 0 if self._start(trial) else self.idle + 1
            if self.idle == IDLE:
                note = f"{IDLE} draws in a row brought nothing new that can be trained"
                say(f"note: {note}; the search ends early.")
        return bool(self.running)

    def _start(self, trial: optuna.Trial) -> bool:
        """Start a trial in its folder, or resume it there; False if it is not worth it or not possible.

        One that another process trains, such as what a killed call has left, is the next to be started.
        """
        self.sweep.jobs = self.study.list_jobs()
        job = self.sweep.jobs[trial.number]
        folder = self.sweep.run_folder(job)
        if not folder.config.exists() and not self._make_folder(trial, job):
            return False
        pruned = Summary(folder, writable=False).data.get("status") == State.PRUNED
        started = self.worker.start(folder)
        if started is None:
            if not self.worker.stop_signal():
                say(f"waiting for another process that trains {folder}")
            self.interrupted.insert(0, trial)
            return True
        known = self.study.trials[trial.number].intermediate_values
        max_epochs = read_record(folder)["trainer"]["max_epochs"]
        running = RunningTrial(trial, started, max_epochs, reported=max(known, default=0))
        self.running.append(running)
        if pruned or (0 < running.reported < max_epochs and trial.should_prune()):
            self._prune(running)  # as a call was about to that was killed
        self._save()
        return True

    def _make_folder(self, trial: optuna.Trial, job: Job) -> bool:
        """Make the run folder of a new trial, which is not to test; False if it is not worth training."""
        for number, other in enumerate(self.sweep.jobs[: trial.number]):
            if other.outcome in TRAINED and other.overrides == job.overrides:
                self._end(trial, "repeated", f"the same as trial {number}")
                return False
        try:
            config = check_trial(job.overrides).record | {"swept": [*self.space.swept]}
        except UserError as error:
            self._end(trial, "invalid", str(error))
            say(f"left out: {job.label}: {error}")
            return False
        config["trainer"]["limit_test_batches"] = 0
        RunFolder.create(self.sweep.run_folder(job).path, config)
        return True

    def _follow(self, running: RunningTrial) -> None:
        """Tell Optuna of new epochs, end the trial if it is hopeless, and see whether it has ended."""
        trial, job = running.trial, running.job
        code = job.poll()  # before reading, so that the last it wrote is read
        for row in read_metrics(job.folder):
            epoch, value = row["epoch"], row.get(OBJECTIVE)
            if value is not None and epoch > running.reported and not running.pruned:
                trial.report(value, epoch)
                running.reported = epoch
                if code is None and epoch != running.max_epochs and trial.should_prune():
                    self._prune(running)
        if code is not None:
            self.running.remove(running)
            self._conclude_trial(running, code)

    def _prune(self, running: RunningTrial) -> None:
        """Let a hopeless trial end."""
        running.pruned = True
        running.job.terminate()

    def _conclude_trial(self, running: RunningTrial, code: int) -> None:
        """Find out what became of a trial whose process has ended."""
        trial, folder = running.trial, running.job.folder
        summary = Summary(folder)
        value = summary.data.get("metrics", {}).get(OBJECTIVE)
        if get_stop_signal(code):
            if running.pruned:  # otherwise the whole search stops, and the trial is resumed with it
                summary.update(status="pruned")
                self._end(trial, "pruned", f"{self.settings['pruner']}, after epoch {running.reported}")
        elif code == 0 and value is not None:
            self._end(trial, "finished", value=value)
        elif code < 0 and running.reported > trial.user_attrs.get("killed_at", -1):
            # From outside, or for want of memory: once at each epoch it is resumed.
            trial.set_user_attr("killed_at", running.reported)
            say(f"{folder} was killed by signal {-code}: resuming it from its last checkpoint")
            self.interrupted.insert(0, trial)
        else:
            # A rate too high is no fault but an answer, which the sampler should learn from.
            outcome = "diverged" if summary.data.get("error_kind") == "diverged" else "failed"
            error = summary.data.get("error")
            self._end(trial, outcome, str(error or f"ended with status {code}, see {folder.log}"))

    def _end(self, trial: optuna.Trial, outcome: str, reason: str = "", value: float | None = None) -> None:
        """Take down how a trial ended, and say so where it has a folder."""
        self.study.tell(trial, outcome, reason, value)
        self._save()
        job = self.sweep.jobs[trial.number]
        if job.folder is not None:
            self.progress.report(job, running=len(self.running))

    def _conclude(self) -> None:
        """Test the best trial, draw the figures, and print what was found."""
        best, num_failed = self.study.best(), len(self.progress.failed)
        failed = (
            f"{num_failed} of {self.settings['trials']} trials failed; their train.log says why. To replace "
            f"them: {self.sweep.resume_command}"
        )
        if best is None:
            raise UserError(failed if num_failed else f"no trial of {self.sweep} finished.")
        job = self.sweep.jobs[best.number]
        folder = self.sweep.run_folder(job)
        tested = self._test(folder) if self.settings["test_best"] else ""
        self.study.draw()
        counts = ", ".join(f"{number} {state}" for state, number in self.sweep.count_states().items())
        say(f"{self.sweep}: {counts}")
        if weights := self.study.importance():
            shares = ", ".join(f"{key} {share:.0%}" for key, share in weights.items())
            say(f"what mattered (PED-ANOVA over few trials: a hint): {shares}")
        say(f"best: trial {best.number}, {OBJECTIVE} {best.value:.4f}{tested}, {folder}")
        say(f"  {shlex.join(['python', 'train.py', *job.overrides])}")
        if num_failed:
            raise UserError(failed)

    def _test(self, folder: RunFolder) -> str:
        """Test the best trial, unless it has been; return what is said of it."""
        limit = self.space.config["trainer"]["limit_test_batches"]
        if "test/accuracy" not in Summary(folder).data["metrics"] and limit != 0:
            config = read_record(folder)
            config["trainer"]["limit_test_batches"] = limit
            write_atomic(folder.config, to_yaml(config))
            Summary(folder).update(status="interrupted")  # a run whose training is done resumes with its test
            worker = Worker(self.sweep.path, at_a_time=1)
            with worker.open():
                worker.run_jobs(folder)
                stopped = worker.stop_signal()
            raise_if_stopped(self.sweep, stopped, "the test of the best trial")
            if folder.state() != "finished":
                raise UserError(f"the test of the best trial failed, see {folder.log}")
        metrics = Summary(folder).data["metrics"]
        return f", test/accuracy {metrics['test/accuracy']:.4f}" if "test/accuracy" in metrics else ""
