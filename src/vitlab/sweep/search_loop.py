"""The course of a search: trials are begun, followed and ended, and the best is tested. Torch-free.

DIR/000_lr-0.001_depth-6/  a trial: a run folder like any other

Optuna is used through its ask-and-tell interface; every trial is a process of its own, as any job of a sweep.
"""

import contextlib
import shlex
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from vitlab.core.console import duration, say
from vitlab.core.errors import UserError
from vitlab.core.files import write_atomic
from vitlab.core.metrics_csv import read_metrics
from vitlab.core.processes import start, start_and_wait
from vitlab.core.provenance import commit, versions
from vitlab.core.run_folder import RunFolder, Summary
from vitlab.core.signals import STOP_SIGNALS, Interrupted, on_signal
from vitlab.sweep.record import OBJECTIVE
from vitlab.sweep.space import Space, checked
from vitlab.sweep.study import Trials
from vitlab.sweep.worker import Session
from vitlab.training.launch import record

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.trial import FrozenTrial

DIVERGED = "training diverged"  # what such a run's error begins with
POLL = 0.2  # seconds between two looks at the trials
PATIENCE = 60  # seconds for the trial of a search that was killed to end itself
IDLE = 50  # draws in a row that bring nothing new, until the search is given up


@dataclass
class Job:
    """A trial that trains."""

    trial: "Trial"
    folder: RunFolder
    process: subprocess.Popen[bytes]
    max_epochs: int
    reported: int  # the last epoch that Optuna knows of
    share: contextlib.ExitStack  # of this machine, let go when the trial ends
    started: float = field(default_factory=time.monotonic)
    pruned: bool = False


class Search:
    """One session of a search; it goes on from what the folder holds.

    With ``sweep.jobs=1`` one that was killed goes on as if it had not been (see `Trials`).
    """

    def __init__(self, folder: Path, space: Space) -> None:
        self.folder = RunFolder(folder)
        self.space = space
        self.settings = space.config["sweep"]
        self.trials = Trials(folder, space)
        self.session = Session.begin(folder, at_a_time=self.settings["jobs"])
        self.running: list[Job] = []
        self.waiting = self.trials.open()
        self.stop: int | None = None  # the signal that ends this session
        self.exhausted = False
        self.failed = 0  # in this session; those of earlier ones are made up for
        self.seconds: list[float] = []  # of each trial that ended in this session
        self._write()

    def run(self) -> None:
        """Train until there are as many trials as asked for, test the best, and print what was found.

        Raises:
            UserError: trials failed, or there was nothing to choose from.
            Interrupted: Ctrl-C or SIGTERM.
        """
        if self.trials.all:
            say(f"going on with {self.folder}; sweep.new=true starts afresh")
        if (left := self._left()) <= 0:
            say(f"it is finished: all {self.settings['trials']} trials; with sweep.trials=N there are more.")
        else:
            say(f"{left} trials to train in {self.folder}")
        with self.session.open(), on_signal(self._hear):
            while True:
                while len(self.running) < self.settings["jobs"] and self._begin_next():
                    pass
                if not self.running:
                    break
                for job in [*self.running]:
                    self._follow(job)
                time.sleep(POLL)
        self._write()
        if self.stop is not None:
            again = shlex.join(["python", "train.py", f"sweep.resume={self.folder}"])
            say(f"stopped, {self._left()} trials left; go on with: {again}")
            raise Interrupted(self.stop)
        self._conclude()

    # Trials begin, are followed, and end

    def _hear(self, signum: int) -> None:
        """End as Ctrl-C or SIGTERM want it; a second one reaches the trials too, and tears them off."""
        if self.stop is None:
            say("the search stops: its trials keep a checkpoint and end; once more stops at once")
        self._halt(signum)

    def _halt(self, signum: int) -> None:
        """Let the trials under way end, each with a checkpoint, and begin no other."""
        self.stop = signum
        for job in self.running:
            job.process.send_signal(signum)

    def _left(self) -> int:
        """Return how many trials are still to be begun, or to be gone on with."""
        done = self.trials.trained() + self.failed
        return int(self.settings["trials"]) - done - len(self.running)

    def _begin_next(self) -> bool:
        """Start a trial if one is left; draw again where a draw cannot be trained or brings nothing new."""
        for idle in range(IDLE):
            if self.exhausted or self._left() <= 0 or self.stop is not None:
                return False
            if self._begin(self.waiting.pop(0) if self.waiting else self.trials.ask(random=idle > 0)):
                return True
        self.exhausted = True
        say(f"note: {IDLE} draws in a row brought nothing new that can be trained; the search ends early.")
        return False

    def _begin(self, trial: "Trial") -> bool:
        """Start a trial in its folder, or go on with it there; say whether it was worth it."""
        folder = self.trials.run_folder(trial)
        if folder.config.exists():
            deadline = time.monotonic() + PATIENCE
            while folder.is_locked() and time.monotonic() < deadline:
                time.sleep(POLL)
        elif not self._claim(trial, folder):
            return False
        settings = folder.read_config()["trainer"]
        known = self.trials.all[trial.number].intermediate_values
        held = contextlib.ExitStack()
        share = held.enter_context(self.session.share(settings["devices"]))
        process = start(folder, shown=self.session.shown, **share)
        job = Job(trial, folder, process, settings["max_epochs"], max(known, default=0), held)
        self.running.append(job)
        if self.stop is not None:  # it came meanwhile
            process.send_signal(self.stop)
        self._write()
        return True

    def _claim(self, trial: "Trial", folder: RunFolder) -> bool:
        """Make the run folder of a new trial, which is not to test; False if it is not worth training."""
        overrides = self.space.overrides(trial.params)
        if (same := self.trials.same(trial)) is not None:
            self._tell(trial, "repeated", reason=f"the same as trial {same}")
            return False
        try:
            config, choices = checked(overrides)
            config["trainer"]["limit_test_batches"] = 0
            RunFolder.create(folder.path, record(config, choices, overrides, [*self.space.swept]))
        except UserError as error:
            self._tell(trial, "invalid", reason=str(error))
            say(f"left out: {self.trials.name(trial)}: {error}")
            return False
        Summary(folder).begin(config["seed"], overrides, versions(), commit())
        return True

    def _follow(self, job: Job) -> None:
        """Tell Optuna of new epochs, end the trial if it is hopeless, and see whether it has ended."""
        code = job.process.poll()  # before reading, so that the last it wrote is read
        for row in read_metrics(job.folder):
            epoch, value = row["epoch"], row.get(OBJECTIVE)
            if value is not None and epoch > job.reported and not job.pruned:
                job.trial.report(value, epoch)
                job.reported = epoch
                if code is None and epoch != job.max_epochs and job.trial.should_prune():
                    job.pruned = True
                    job.process.terminate()
        if code is not None:
            self.running.remove(job)
            job.share.close()
            self._end(job, code)

    def _end(self, job: Job, code: int) -> None:
        """Take down how a trial ended."""
        summary = Summary(job.folder)
        value = summary.data.get("metrics", {}).get(OBJECTIVE)
        signum = {128 + s: s for s in STOP_SIGNALS}.get(code, -code)
        stopped = signum in STOP_SIGNALS
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
        self.trials.tell(trial, state, value, reason)
        self._write()

    def _running(self) -> list[int]:
        return [job.trial.number for job in self.running]

    def _write(self) -> None:
        self.trials.write(self._running())

    def _progress(self, job: Job) -> None:
        """Say in one line how a trial ended and how the search stands."""
        trial, states = self.trials.all[job.trial.number], self.trials.states(self._running())
        left, begun = self._left(), len(self.running)
        result = f"{OBJECTIVE} {trial.value:.4f}" if trial.value is not None else ""
        if (state := trial.user_attrs["state"]) != "finished":
            result = f"{state}: {trial.user_attrs['reason'].partition('. ')[0]}"
        counts = [f"{s} {states.count(s)}" for s in ("pruned", "diverged", "invalid") if s in states]
        counts += [f"failed {self.failed}", f"left {left + begun}"]
        if begun:
            counts[-1] += f" ({begun} running)"
        if left + begun:
            each = sum(self.seconds) / len(self.seconds)
            counts.append(f"about {duration(each * (left + begun) / self.settings['jobs'])}")
        best, total = self.trials.best(), self.settings["trials"]
        said = f"; best {self.trials.name(best)}: {best.value:.4f}" if best else ""
        line = f"[{total - left - begun}/{total}] {self.trials.name(trial)}  {result}"
        say(f"{line}  {duration(self.seconds[-1])}   {', '.join(counts)}{said}")

    # What was found

    def _conclude(self) -> None:
        """Test the best trial, draw the figures, and print what was found."""
        best = self.trials.best()
        failed = f"{self.failed} of {self.settings['trials']} trials failed; their train.log says why."
        if best is None:
            raise UserError(failed if self.failed else f"no trial of {self.folder} finished.")
        tested = self._test(best) if self.settings["test_best"] else ""
        self.trials.draw()
        states = self.trials.states()
        ended = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        say(f"{self.folder}: {ended}")
        if weights := self.trials.importance():
            shares = ", ".join(f"{key} {share:.0%}" for key, share in weights.items())
            say(f"what mattered (PED-ANOVA over few trials: a hint): {shares}")
        say(
            f"best: trial {best.number}, {OBJECTIVE} {best.value:.4f}{tested}, {self.trials.run_folder(best)}"
        )
        say(f"  {shlex.join(['python', 'train.py', *self.space.overrides(best.params)])}")
        if self.failed:
            raise UserError(failed)

    def _test(self, best: "FrozenTrial") -> str:
        """Test one trial, unless it has been; return what is said of it."""
        folder = self.trials.run_folder(best)
        metrics = Summary(folder).data["metrics"]
        limit = self.space.config["trainer"]["limit_test_batches"]
        if "test/accuracy" not in metrics and limit != 0:
            config = folder.read_config()
            config["trainer"]["limit_test_batches"] = limit
            text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
            write_atomic(folder.config, text.encode())
            # A run whose training is done goes on with its test.
            Summary(folder).update(status="interrupted")
            start_and_wait(folder)
            metrics = Summary(folder).data["metrics"]
        return f", test/accuracy {metrics['test/accuracy']:.4f}" if "test/accuracy" in metrics else ""
