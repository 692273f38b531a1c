"""The loop of a search: trials are drawn, started, followed and ended, and the best is tested.

DIR/000_lr-0.001_depth-6/  a trial: a job of a sweep like any other

Optuna is used through its ask-and-tell interface.
"""

import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from vitlab.config import make_record
from vitlab.core.console import say
from vitlab.core.errors import UserError
from vitlab.core.files import write_atomic
from vitlab.core.metrics_csv import read_metrics
from vitlab.core.run_folder import RunFolder, Summary
from vitlab.sweep.progress import Progress, raise_if_stopped
from vitlab.sweep.record import OBJECTIVE, Sweep
from vitlab.sweep.space import Space, check_trial
from vitlab.sweep.study import Study
from vitlab.sweep.worker import POLL, RunningJob, Worker, get_stop_signal

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.trial import FrozenTrial

IDLE = 50  # draws in a row that bring nothing new, until the search is given up


@dataclass
class RunningTrial:
    """A trial that trains.

    Attributes:
        reported: the last epoch that Optuna knows of.
        pruned: whether it was told to end early.
    """

    trial: "Trial"
    job: RunningJob
    max_epochs: int
    reported: int
    pruned: bool = False


class Search:
    """One call of the verb on a search; it resumes from what the folder holds.

    With ``sweep.jobs=1`` one that was killed resumes as if it had not been (see `Study`).

    Args:
        folder: of the search.
        space: what is searched.
    """

    def __init__(self, folder: Path, space: Space) -> None:
        self.space = space
        self.settings = space.config["sweep"]
        self.study = Study(folder, space)
        self.interrupted = self.study.get_unfinished()
        typed = [f"{key}={values}" for key, values in space.swept.items()]
        self.sweep = Sweep(
            folder.absolute(),
            command=["-m", *space.fixed, *typed],
            swept=[*space.swept],
            launcher=space.hydra,
            search={"fixed": space.fixed, "space": space.swept},
        )
        self._save()
        self.progress = Progress(self.sweep, planned=self.settings["trials"])
        self.worker = Worker.create(folder, at_a_time=self.settings["jobs"])
        self.running: list[RunningTrial] = []
        self.num_failed = 0  # in this call; those of earlier ones are made up for
        self.exhausted = False

    def run(self) -> None:
        """Train until there are as many trials as asked for, test the best, and print what was found.

        Raises:
            UserError: trials failed, or there was nothing to choose from.
            Interrupted: Ctrl-C or SIGTERM.
        """
        total = self.settings["trials"]
        if self.sweep.jobs:
            say(f"resuming {self.sweep}; sweep.new=true starts afresh")
        if (left := self._count_left()) <= 0:
            say(f"it is already finished: all {total} trials; with sweep.trials=N there are more.")
        else:
            say(f"{left} trials to train in {self.sweep}")
        with self.worker.open():
            while self._start_trials():
                for running in [*self.running]:
                    self._follow(running)
                time.sleep(POLL)
            stopped = self.worker.stop_signal()
        self._save()
        raise_if_stopped(self.sweep, stopped, f"{self._count_left()} of {total} trials")
        self._conclude()

    def _save(self) -> None:
        self.sweep.jobs = self.study.list_jobs()
        self.sweep.save()

    def _count_left(self) -> int:
        """Return how many trials have not ended; those that run among them."""
        return int(self.settings["trials"]) - self.study.count_trained() - self.num_failed

    def _start_trials(self) -> bool:
        """Start as many trials as may run at a time; say whether any runs."""
        while len(self.running) < self.settings["jobs"] and self._start_next():
            pass
        return bool(self.running)

    def _start_next(self) -> bool:
        """Start a trial if one is left; draw again where a draw cannot be trained or brings nothing new."""
        for idle in range(IDLE):
            if self.exhausted or self._count_left() <= len(self.running) or self.worker.stop_signal():
                return False
            if self._start(self.interrupted.pop(0) if self.interrupted else self.study.ask(random=idle > 0)):
                return True
        self.exhausted = True
        say(f"note: {IDLE} draws in a row brought nothing new that can be trained; the search ends early.")
        return False

    def _start(self, trial: "Trial") -> bool:
        """Start a trial in its folder, or resume it there; False if it is not worth it or not possible."""
        folder = self.study.run_folder(trial)
        if not folder.config.exists() and not self._make_folder(trial, folder):
            return False
        job = self.worker.start(folder)
        if job is None:
            if not self.worker.stop_signal():
                self._end(trial, "failed", reason=f"{folder} is being trained by another process")
            return False
        known = self.study.trials[trial.number].intermediate_values
        max_epochs = folder.read_config()["trainer"]["max_epochs"]
        self.running.append(RunningTrial(trial, job, max_epochs, reported=max(known, default=0)))
        self._save()
        return True

    def _make_folder(self, trial: "Trial", folder: RunFolder) -> bool:
        """Make the run folder of a new trial, which is not to test; False if it is not worth training."""
        overrides = self.space.overrides(trial.params)
        if (same := self.study.find_same(trial)) is not None:
            self._tell(trial, "repeated", reason=f"the same as trial {same}")
            return False
        try:
            checked = check_trial(overrides)
        except UserError as error:
            self._tell(trial, "invalid", reason=str(error))
            say(f"left out: {self.study.label(trial)}: {error}")
            return False
        config = make_record(checked.plain, checked.choices, overrides, [*self.space.swept])
        config["trainer"]["limit_test_batches"] = 0
        RunFolder.create(folder.path, config)
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
                    running.pruned = True
                    job.terminate()
        if code is not None:
            self.running.remove(running)
            self._conclude_trial(running, code)

    def _conclude_trial(self, running: RunningTrial, code: int) -> None:
        """Find out what became of a trial whose process has ended."""
        trial, folder = running.trial, running.job.folder
        summary = Summary(folder)
        value = summary.data.get("metrics", {}).get(OBJECTIVE)
        if get_stop_signal(code):
            if running.pruned:  # otherwise the whole search stops, and the trial is resumed with it
                summary.update(status="pruned")
                reason = f"{self.settings['pruner']}, after epoch {running.reported}"
                self._end(trial, "pruned", reason=reason)
        elif code == 0 and value is not None:
            self._end(trial, "finished", value)
        else:
            reason = str(summary.data.get("error") or f"ended with status {code}, see {folder.log}")
            # A rate too high is no fault but an answer, which the sampler should learn from.
            diverged = summary.data.get("error_kind") == "diverged"
            self._end(trial, "diverged" if diverged else "failed", reason=reason)

    def _end(self, trial: "Trial", outcome: str, value: float | None = None, reason: str = "") -> None:
        self.num_failed += outcome == "failed"
        self._tell(trial, outcome, value, reason)
        job = self.sweep.jobs[trial.number]
        self.progress.report(job, left=self._count_left(), running=len(self.running))

    def _tell(self, trial: "Trial", outcome: str, value: float | None = None, reason: str = "") -> None:
        self.study.tell(trial, outcome, value, reason)
        self._save()

    def _conclude(self) -> None:
        """Test the best trial, draw the figures, and print what was found."""
        best = self.study.best()
        failed = f"{self.num_failed} of {self.settings['trials']} trials failed; their train.log says why."
        if best is None:
            raise UserError(failed if self.num_failed else f"no trial of {self.sweep} finished.")
        tested = self._test(best) if self.settings["test_best"] else ""
        self.study.draw()
        counts = ", ".join(f"{number} {state}" for state, number in self.sweep.count_states().items())
        say(f"{self.sweep}: {counts}")
        if weights := self.study.importance():
            shares = ", ".join(f"{key} {share:.0%}" for key, share in weights.items())
            say(f"what mattered (PED-ANOVA over few trials: a hint): {shares}")
        folder = self.study.run_folder(best)
        say(f"best: trial {best.number}, {OBJECTIVE} {best.value:.4f}{tested}, {folder}")
        say(f"  {shlex.join(['python', 'train.py', *self.space.overrides(best.params)])}")
        if self.num_failed:
            raise UserError(failed)

    def _test(self, best: "FrozenTrial") -> str:
        """Test one trial, unless it has been; return what is said of it."""
        folder = self.study.run_folder(best)
        limit = self.space.config["trainer"]["limit_test_batches"]
        if "test/accuracy" not in Summary(folder).data["metrics"] and limit != 0:
            config = folder.read_config()
            config["trainer"]["limit_test_batches"] = limit
            text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
            write_atomic(folder.config, text.encode())
            Summary(folder).update(status="interrupted")  # a run whose training is done resumes with its test
            worker = Worker.create(self.sweep.path, at_a_time=1)
            with worker.open():
                worker.run_job(folder)
                stopped = worker.stop_signal()
            raise_if_stopped(self.sweep, stopped, "the test of the best trial")
            if folder.state() != "finished":
                raise UserError(f"the test of the best trial failed, see {folder.log}")
        metrics = Summary(folder).data["metrics"]
        return f", test/accuracy {metrics['test/accuracy']:.4f}" if "test/accuracy" in metrics else ""
