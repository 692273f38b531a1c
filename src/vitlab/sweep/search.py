"""``sweep=optuna``: trials are drawn, started, followed and ended, by one process or several.

Optuna is used through its ask-and-tell interface.
"""

import contextlib
import time
from dataclasses import dataclass

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial

from vitlab.config import read_record
from vitlab.config.arguments import Arguments
from vitlab.core.console import duration, say
from vitlab.core.errors import UserError
from vitlab.core.metrics_csv import read_metrics
from vitlab.core.processes import rank_in_environment
from vitlab.core.run_folder import RunFolder, State
from vitlab.core.summary import Summary
from vitlab.sweep.conclusion import Conclusion
from vitlab.sweep.joining import agree_on_trials, find_search, get_command, make_search, open_study
from vitlab.sweep.progress import Progress, list_jobs, raise_if_stopped
from vitlab.sweep.record import OBJECTIVE, Job, Sweep
from vitlab.sweep.space import Space, check_trial
from vitlab.sweep.storage import Storage
from vitlab.sweep.study import TRAINED
from vitlab.sweep.worker import LOOK, POLL, RunningJob, Worker, get_stop_signal

IDLE = 50  # draws in a row that bring nothing new: the search is given up
OUTAGE = 600  # seconds that a storage may be away


def run_search(arguments: Arguments) -> None:
    """Run the search that a command line asks for, resume it or join it; see `vitlab.sweep.run_sweep`."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    while True:
        space, sweep = find_search(arguments)
        if rank_in_environment() is not None and not space.storage:
            raise UserError(f"a search is one process: start a single task. {_SEVERAL}")
        storage = Storage(space.storage)
        storage.connect()
        with contextlib.suppress(FileExistsError):  # made by another process meanwhile
            sweep = sweep or make_search(space)
            break
    with contextlib.ExitStack() as held:
        if not storage.shared:
            try:
                held.enter_context(RunFolder(sweep.path).lock())
            except UserError as error:
                raise UserError(f"{error} {_SEVERAL}") from None
        try:
            Search(sweep, space, storage, arguments).run()
        except storage.errors as error:
            raise UserError(f"{storage.describe_outage(error)}. {_resume(sweep)}") from None


_SEVERAL = (
    "Several processes, here or on other machines, work on one search if it was begun with sweep.storage=…: "
    "see docs/cluster.md."
)


def _resume(sweep: Sweep) -> str:
    return f"Nothing is lost: once it answers again, resume with: {sweep.resume_command}"


@dataclass
class RunningTrial:
    """A trial that trains."""

    trial: optuna.Trial
    job: RunningJob
    max_epochs: int
    reported: int  # the last epoch that Optuna knows of
    pruned: bool = False  # told to end early


class Search:
    """One call of the verb on a search; it resumes from what the folder and the storage hold.

    With ``sweep.jobs=1`` one that was killed resumes as if it had not been (see `Study`).
    """

    def __init__(self, sweep: Sweep, space: Space, storage: Storage, arguments: Arguments) -> None:
        self.sweep, self.space, self.storage = sweep, space, storage
        self.settings = space.config["sweep"]
        self.study = open_study(sweep, space, storage)
        agree_on_trials(self.study, sweep, arguments)
        if not storage.shared:  # otherwise it stays as it was begun: each process has settings of its own
            sweep.command, sweep.search = get_command(space), space.record
        self._save()
        self.progress = Progress(sweep, self.study.total or 0, self.study.count_left())
        self.worker = Worker(sweep.path, at_a_time=self.settings["jobs"])
        self.running: list[RunningTrial] = []
        self._looked = self._failed_since = 0.0  # by time.monotonic
        self._waited = self._used_up = False  # whether it was said

    def run(self) -> None:
        """Train until there are as many trials as asked for, test the best, and print what was found.

        Raises:
            UserError: trials failed, there was nothing to choose from, or the storage has gone.
            Interrupted: Ctrl-C or SIGTERM.
        """
        total = self.study.total
        if self.sweep.jobs:
            say(f"resuming {self.sweep}; sweep.new=true starts afresh")
        if self.progress.left <= 0:
            say(f"it is already finished: all {total} trials; with sweep.trials=N there are more.")
        else:
            say(f"{self.progress.left} trials to train in {self.sweep}")
        with self.worker.open():
            while self._look():
                time.sleep(POLL)
            stopped = self.worker.stop_signal()
        left = f"{self.study.count_left()} of {self.study.total} trials"
        if stopped is not None:
            with contextlib.suppress(*self.storage.errors):
                self._save()
        raise_if_stopped(self.sweep, stopped, left)
        self._save()
        Conclusion(self.sweep, self.study).conclude()

    def _save(self) -> None:
        self.study.refresh()
        self.sweep.jobs = self.study.list_jobs()
        assert self.sweep.search
        self.sweep.search["trials"] = self.study.total or 0
        self.sweep.save()

    def _look(self) -> bool:
        """Follow the trials that train here, start others, and say whether there is anything to wait for.

        A storage that does not answer is no reason to end what trains: it is told later.
        """
        try:
            for running in [*self.running]:
                self._follow(running)
            waits = self._start_trials()
        except self.storage.errors as error:
            return self._wait_for_storage(error)
        if self._failed_since:
            self._failed_since = 0.0
            say(f"sweep.storage={self.storage.address} answers again")
        return bool(self.running) or (waits and not self.worker.stop_signal())

    def _wait_for_storage(self, error: Exception) -> bool:
        """Say that the storage is away, and wait for it; False when the trials here have been stopped.

        Raises:
            UserError: it has been away for too long. The trials here have kept their checkpoints.
        """
        now = time.monotonic()
        if not self._failed_since:
            self._failed_since = now
            say(
                f"note: {self.storage.describe_outage(error)}; trials go on, and it is told what they come to"
                f" when it is back, within {duration(OUTAGE)} minutes"
            )
        away = now - self._failed_since >= OUTAGE
        if away:
            for running in self.running:
                running.job.terminate()
        if any(running.job.poll() is None for running in [*self.running]):
            return True
        if away or self.worker.stop_signal():
            while self.running:
                self.running.pop().job.release()
        if away and not self.worker.stop_signal():
            raise error  # which `run_search` says in a sentence
        return not self.worker.stop_signal()

    def _start_trials(self) -> bool:
        """Start as many trials as may run here at a time; say whether others are left, in other hands.

        Draws where no trial is left, and again where a draw cannot be trained or brings nothing new.
        """
        if len(self.running) >= self.settings["jobs"] or time.monotonic() < self._looked + LOOK:
            return True
        # Those that cannot be started now. Alone, it is what a killed call has left, and draws wait for it.
        passed: set[int] = set()
        while len(self.running) < self.settings["jobs"] and not self.worker.stop_signal():
            self.study.refresh()
            mine = {running.trial.number for running in self.running}
            left = [trial for trial in self.study.list_open() if trial.number not in mine]
            if free := [trial for trial in left if trial.number not in passed]:
                passed.add(free[0].number)
                self._start(free[0])
            elif left and not self.storage.shared:
                break
            elif self.study.count_missing() and (idle := self.study.count_idle()) < IDLE:
                self.study.ask(random=idle > 0)
            else:
                break
        self._say_used_up()
        others = self.study.list_open()
        if others and not self.running and self._looked:
            self._say_waiting(others)
        self._looked = time.monotonic()
        return bool(others)

    def _say_used_up(self) -> None:
        if self.study.count_missing() and self.study.count_idle() >= IDLE and not self._used_up:
            self._used_up = True
            note = f"{IDLE} draws in a row brought nothing new that can be trained"
            say(f"note: {note}; the search ends early.")

    def _say_waiting(self, trials: list[FrozenTrial]) -> None:
        if not self._waited:
            self._waited = True
            listed = list_jobs(self.sweep, [self.study.describe(trial) for trial in trials])
            say(
                "waiting for another process, to take over what it trains if it is killed; Ctrl-C leaves it "
                f"alone:\n{listed}"
            )

    def _start(self, trial: FrozenTrial) -> None:
        """Start a trial in its folder, or resume it there, unless another process has it or it is no use."""
        job = self.study.describe(trial)
        folder = self.sweep.run_folder(job)
        if not folder.config.exists() and not self._make_folder(trial, job):
            return
        live, max_epochs = self.study.get_live(trial), read_record(folder)["trainer"]["max_epochs"]
        pruned = folder.read_summary().get("status") == State.PRUNED
        started = self.worker.start(folder, patience=0, needed=lambda: self.study.is_open(trial.number))
        if started is None:
            return
        self._waited = False
        known = self.study.trials[trial.number].intermediate_values
        running = RunningTrial(live, started, max_epochs, reported=max(known, default=0))
        self.running.append(running)
        if pruned or (0 < running.reported < max_epochs and live.should_prune()):
            self._prune(running)  # as a call was about to that was killed
        self._save()

    def _make_folder(self, trial: FrozenTrial, job: Job) -> bool:
        """Make the run folder of a new trial, which is not to test; False if it is not worth training."""
        for other in map(self.study.describe, self.study.trials[: trial.number]):
            if other.outcome in (None, *TRAINED) and other.overrides == job.overrides:
                self._end(trial, "repeated", f"the same as trial {other.details['number']}")
                return False
        try:
            config = check_trial(job.overrides).record | {"swept": [*self.space.swept]}
        except UserError as error:
            self._end(trial, "invalid", str(error))
            say(f"left out: {job.label}: {error}")
            return False
        config["trainer"]["limit_test_batches"] = 0
        folder = self.sweep.run_folder(job)
        try:
            RunFolder.create(folder.path, config)
        except UserError:
            if not folder.config.exists():  # otherwise another process was faster
                raise
        return True

    def _follow(self, running: RunningTrial) -> None:
        """Tell Optuna of new epochs, end the trial if it is hopeless, and see whether it has ended.

        What a storage has not answered to is done again at the next look.
        """
        trial, job = running.trial, running.job
        code = job.poll()  # before reading, so that the last it wrote is read
        if not job.claim.lost:
            for row in read_metrics(job.folder):
                epoch, value = row["epoch"], row.get(OBJECTIVE)
                if value is not None and epoch > running.reported and not running.pruned:
                    with contextlib.suppress(UpdateFinishedTrialError):
                        trial.report(value, epoch)
                    running.reported = epoch
                    if code is None and epoch != running.max_epochs and trial.should_prune():
                        self._prune(running)
        if code is not None:
            if not job.claim.lost:
                self._conclude_trial(running, code)
            self.running.remove(running)
            job.release()
            self._looked = 0.0

    def _prune(self, running: RunningTrial) -> None:
        """Let a hopeless trial end."""
        running.pruned = True
        running.job.terminate()

    def _conclude_trial(self, running: RunningTrial, code: int) -> None:
        """Find out what became of a trial whose process has ended."""
        trial, folder = running.trial, running.job.folder
        summary = Summary(folder.summary)
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
        else:
            # A rate too high is no fault but an answer, which the sampler should learn from.
            outcome = "diverged" if summary.data.get("error_kind") == "diverged" else "failed"
            error = summary.data.get("error")
            self._end(trial, outcome, str(error or f"ended with status {code}, see {folder.log}"))

    def _end(
        self, trial: optuna.Trial | FrozenTrial, outcome: str, reason: str = "", value: float | None = None
    ) -> None:
        """Take down how a trial ended, and say so where it has a folder."""
        live = self.study.get_live(trial) if isinstance(trial, FrozenTrial) else trial
        self.study.tell(live, outcome, reason, value)
        self._save()
        job = self.study.describe(self.study.trials[trial.number])
        failed = [self.study.describe(other) for other in self.study.list_failed()]
        self.progress.follow(self.study.total or 0, self.study.count_left(), failed)
        if job.folder is not None:
            self.progress.report(job, running=len(self.running) - 1)
