"""The end of a search: the best trial is tested once, whoever works on it, and what was found is said."""

import shlex
import time
from dataclasses import dataclass

from vitlab.config import read_record
from vitlab.core.console import say
from vitlab.core.errors import UserError
from vitlab.core.files import write_atomic
from vitlab.core.run_folder import RunFolder
from vitlab.core.summary import Summary
from vitlab.core.untrusted import to_yaml
from vitlab.sweep.progress import raise_if_stopped
from vitlab.sweep.record import OBJECTIVE, Sweep
from vitlab.sweep.study import Study
from vitlab.sweep.worker import LOOK, Worker, get_failure

FIGURES = ("trials.png", "values.png")


@dataclass
class Conclusion:
    """What is done when all trials have ended.

    Every process on a search comes to it. One of them, which has a claim on the search's folder meanwhile,
    tests and draws; the others wait, and one of these takes over if it is killed.
    """

    sweep: Sweep
    study: Study

    def conclude(self) -> None:
        """Test the best trial, draw the figures, and print what was found.

        Raises:
            UserError: trials failed, or there was nothing to choose from.
            Interrupted: Ctrl-C or SIGTERM.
        """
        sweep, study = self.sweep, self.study
        best, num_failed = study.best(), len(study.list_failed())
        failed = (
            f"{num_failed} of {study.total} trials failed; their train.log says why. To replace them: "
            f"{sweep.resume_command}"
        )
        if best is None:
            raise UserError(failed if num_failed else f"no trial of {sweep} finished.")
        job = study.describe(best)
        folder = sweep.run_folder(job)
        self._do_once(folder)
        counts = ", ".join(f"{number} {state}" for state, number in sweep.count_states().items())
        say(f"{sweep}: {counts}")
        if weights := study.importance():
            shares = ", ".join(f"{key} {share:.0%}" for key, share in weights.items())
            say(f"what mattered (PED-ANOVA over few trials: a hint): {shares}")
        metrics = folder.read_summary().get("metrics", {})
        tested = f", test/accuracy {metrics['test/accuracy']:.4f}" if "test/accuracy" in metrics else ""
        say(f"best: trial {best.number}, {OBJECTIVE} {best.value:.4f}{tested}, {folder}")
        say(f"  {shlex.join(['python', 'train.py', *job.overrides])}")
        if num_failed:
            raise UserError(failed)

    def _do_once(self, folder: RunFolder) -> None:
        """Return once the best trial, which has this folder, is tested and the figures are drawn."""
        worker, told, failed_before = Worker(self.sweep.path, at_a_time=1), False, get_failure(folder)
        with worker.open():
            while not worker.stop_signal() and not self._is_done(folder):
                if get_failure(folder) not in (None, failed_before):  # another process has tried
                    raise _test_failed(folder)
                if claim := worker.take(self.sweep.path):
                    try:
                        if not self._is_done(folder):
                            self._test(folder, worker)
                    finally:
                        claim.release()
                    break
                if not told:
                    told = True
                    say(f"waiting for another process that tests the best trial, {folder}")
                time.sleep(LOOK)
            stopped = worker.stop_signal()
        raise_if_stopped(self.sweep, stopped, "the test of the best trial")

    def _is_done(self, folder: RunFolder) -> bool:
        self.study.refresh()
        drawn = all((self.sweep.path / name).exists() for name in FIGURES)
        return drawn and self.study.concluded and not self._is_untested(folder)

    def _is_untested(self, folder: RunFolder) -> bool:
        wanted = (
            self.study.settings["test_best"] and self.study.space.config["trainer"]["limit_test_batches"] != 0
        )
        return wanted and "test/accuracy" not in folder.read_summary().get("metrics", {})

    def _test(self, folder: RunFolder, worker: Worker) -> None:
        if self._is_untested(folder):
            config = read_record(folder)
            config["trainer"]["limit_test_batches"] = self.study.space.config["trainer"]["limit_test_batches"]
            write_atomic(folder.config, to_yaml(config))
            # A run whose training is done resumes with its test.
            Summary(folder.summary).update(status="interrupted")
            worker.run_jobs(folder)
            if worker.stop_signal():
                return
            if folder.state() != "finished":
                raise _test_failed(folder)
        self.study.draw()
        self.study.conclude()


def _test_failed(folder: RunFolder) -> UserError:
    return UserError(f"the test of the best trial failed, see {folder.log}")
