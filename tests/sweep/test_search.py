"""sweep=optuna: what is drawn, what is ended early, what is kept, and that no trial sees the test images.

The trials here are small programs that write what a run writes; test_crashes.py has some that train for real.
"""

import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import optuna
import pytest

from tests.conftest import summary, wait_for
from tests.core.claims import kill
from tests.sweep.helpers import PLAIN, RATE, Searched, list_jobs, run_search
from vitlab.core.errors import UserError
from vitlab.core.run_folder import RunFolder
from vitlab.core.signals import Interrupted
from vitlab.sweep import figures, search, study, worker

draw = study.Study.draw
pytestmark = pytest.mark.usefixtures("started")


def test_a_search_learns_prunes_and_tests_the_best_alone(
    searched: Searched, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study.Study, "draw", draw)
    settings = ("sweep.trials=10", "sweep.random_trials=4", "sweep.warmup_trials=2", "sweep.warmup_epochs=3")
    found = searched(RATE, "model.depth=1,2", *settings, epochs=15, seconds=0.05)
    states = [job["state"] for job in found]
    assert len(states) == 10
    assert set(states) == {"finished", "pruned"}
    folders = {job["number"]: tmp_path / "s" / job["folder"] for job in found}
    for job in found:
        assert summary(folders[job["number"]])["status"] == job["state"]
        assert (job["epochs"] == 15) == (job["state"] == "finished")
        if job["state"] == "pruned":
            assert job["epochs"] >= 3
            assert job["reason"] == f"median, after epoch {job['epochs']}"
    best = max((job for job in found if job["epochs"] == 15), key=lambda job: job["val/accuracy"])
    tested = [n for n, folder in folders.items() if "test/accuracy" in summary(folder)["metrics"]]
    assert tested == [best["number"]]
    limits = {n: RunFolder(f).read_config()["trainer"]["limit_test_batches"] for n, f in folders.items()}
    assert limits == {n: None if n in tested else 0 for n in folders}
    out = capsys.readouterr().out
    assert out.splitlines()[-1].split() == ["python", "train.py", *best["overrides"]]
    assert "sweep" not in out.splitlines()[-1]
    for said in (f"best {best['label']}", "[10/10]", "left 0"):
        assert said in out
    assert {path.name for path in (tmp_path / "s").glob("*.png")} == {"trials.png", "values.png"}
    config = RunFolder(folders[0]).read_config()
    assert config["swept"] == ["optimizer.lr", "model.depth"]
    assert not {"sweep", "resume"} & config.keys()


def test_hyperband_ends_trials_too(searched: Searched) -> None:
    settings = ("sweep.trials=6", "sweep.pruner=hyperband", "sweep.warmup_epochs=2")
    found = searched(RATE, *settings, epochs=12, seconds=0.05)
    pruned = [job for job in found if job["state"] == "pruned"]
    assert pruned
    assert all(job["epochs"] >= 2 and job["reason"].startswith("hyperband") for job in pruned)


def test_what_cannot_be_trained_is_left_out_and_does_not_count(
    searched: Searched, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = searched(RATE, "model.patch_size=4,5", "sweep.trials=4", "sweep.random_trials=20")
    states = [job["state"] for job in found]
    assert states.count("finished") == 4
    assert states.count("invalid") == len(states) - 4 > 0
    for job in found:
        assert (job["state"] == "invalid") == ("patch_size=5" in job["label"])
        if job["state"] == "invalid":
            assert job["folder"] is None
            assert "patch_size=5" in job["reason"]
    assert len(list((tmp_path / "s").glob("*/config.yaml"))) == 4
    # As pruned, not as failed: the sampler keeps away from the one and forgets the other.
    told = optuna.load_study(study_name="vitlab", storage=f"sqlite:///{tmp_path}/s/study.db").trials
    assert [t.state.name for t in told] == [{"finished": "COMPLETE", "invalid": "PRUNED"}[s] for s in states]
    assert "left out: lr=" in capsys.readouterr().out


def test_a_space_that_is_used_up_ends_the_search(
    searched: Searched, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "IDLE", 12)
    found = searched("model.depth=interval(1,3)", "sweep.trials=9")
    trained = [job["label"] for job in found if job["state"] == "finished"]
    assert sorted(trained) == ["depth=1", "depth=2", "depth=3"], "each once"
    assert {job["state"] for job in found} == {"finished", "repeated"}
    assert "brought nothing new" in capsys.readouterr().out


def test_divergence_is_an_answer_and_a_failure_is_not(searched: Searched, tmp_path: Path) -> None:
    typed = ("optimizer.lr=tag(log,interval(1e-4,1))", "model.heads=2,4", "sweep.trials=6")
    with pytest.raises(UserError, match=r"^(\d+) of 6 trials failed") as caught:
        searched(*typed)
    found = list_jobs(tmp_path / "s")
    states = [job["state"] for job in found]
    failed = states.count("failed")
    assert int(str(caught.value).split()[0]) == failed > 0
    assert failed + states.count("finished") + states.count("diverged") == 6
    assert "diverged" in states
    for job in found:
        assert (job["state"] == "failed") == ("heads=4" in job["label"]) == (job["reason"] == "out of luck")
    # The number of trials is the total: those that failed are made up for.
    with pytest.raises(UserError, match="of 6 trials failed"):
        searched(*typed)
    assert len(list_jobs(tmp_path / "s")) == 6 + failed


# Ended and gone on with


class Killed(BaseException):
    pass


def test_a_killed_search_goes_on_as_if_it_had_not_been(
    searched: Searched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[dict[str, Any]]
) -> None:
    settings = (RATE, "model.depth=1,2", "sweep.trials=5", "sweep.random_trials=2", "sweep.pruner=none")
    whole = searched(*settings)
    (tmp_path / "s").rename(tmp_path / "whole")
    end = search.Search._conclude_trial

    def die(self: Any, running: Any, code: int) -> None:
        if running.trial.number == 3:
            kill(running.job.claim)
            raise Killed  # the trial is over, and nobody has told Optuna
        end(self, running, code)

    with monkeypatch.context() as patch:
        patch.setattr(search.Search, "_conclude_trial", die)
        with pytest.raises(Killed):
            searched(*settings)
    assert [job["state"] for job in list_jobs(tmp_path / "s")] == ["finished"] * 3 + ["running"]
    begun = len(started)
    left_behind = RunFolder(next(tmp_path.glob("s/003*"))).lock()
    left_behind.__enter__()
    monkeypatch.setattr(worker, "PATIENCE", 0)
    say = search.say

    def hear(text: str) -> None:
        if "waiting for another process" in text:
            left_behind.__exit__(None, None, None)
        say(text)

    monkeypatch.setattr(search, "say", hear)
    run_search(f"sweep.resume={tmp_path}/s")
    again = list_jobs(tmp_path / "s")
    for key in ("label", "val/accuracy"):
        assert [job[key] for job in again] == [job[key] for job in whole]
    # Trial 3 is resumed in its folder, 4 is new, and the best is tested.
    assert [s["name"][:3] for s in started[begun:-1]] == ["003", "004"]


def test_a_trial_that_was_killed_is_resumed_at_once(
    searched: Searched, tmp_path: Path, started: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    def kill_it() -> None:
        wait_for(lambda: list(tmp_path.glob("s/000*/metrics.csv")))
        started[0]["process"].kill()

    threading.Thread(target=kill_it).start()
    found = searched(RATE, "sweep.trials=2", "sweep.pruner=none", epochs=20, seconds=0.03)
    assert [(job["state"], job["epochs"]) for job in found] == [("finished", 20)] * 2
    assert [other["name"][:3] for other in started[:-1]] == ["000", "000", "001"]
    assert "was killed by signal 9: resuming it" in capsys.readouterr().out


def test_a_trial_that_is_killed_twice_at_one_epoch_is_replaced(
    searched: Searched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = (RATE, "sweep.trials=1", "sweep.pruner=none")
    with monkeypatch.context() as patch:
        patch.setattr(worker, "start", lambda *given, **options: subprocess.Popen(["sh", "-c", "kill -9 $$"]))
        with pytest.raises(UserError, match=r"1 of 1 trials failed.*replace"):
            searched(*typed)
    assert [job["state"] for job in searched(*typed)] == ["failed", "finished"]


def test_a_trial_that_was_about_to_be_ended_is_not_trained_on(
    searched: Searched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optuna.pruners.MedianPruner, "prune", lambda self, study, trial: trial.last_step == 2)
    typed = (RATE, "sweep.trials=1", "sweep.test_best=false")

    def die(self: Any, *given: Any) -> None:
        kill(self.running[0].job.claim)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(search.Search, "_end", die)  # it has ended, and nobody has told Optuna
        with pytest.raises(Killed):
            searched(*typed, epochs=40, seconds=0.1)
    (metrics,) = tmp_path.glob("s/000*/metrics.csv")
    before = metrics.read_text()
    with pytest.raises(UserError, match="no trial of s finished"):
        searched(*typed, epochs=40, seconds=0.1)
    assert [job["state"] for job in list_jobs(tmp_path / "s")] == ["pruned"]
    assert metrics.read_text() == before


def test_the_same_command_goes_on_and_more_trials_are_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[dict[str, Any]]
) -> None:
    monkeypatch.chdir(tmp_path)
    base = [*PLAIN, "study=s", "trainer.max_epochs=1", "sweep.pruner=none", RATE]
    run_search(*base, "sweep.trials=2")
    (folder,) = (tmp_path / "outputs" / "s").iterdir()
    begun = len(started)
    run_search(base[0], RATE, *base[1:-1], "sweep.trials=2")  # in another order
    assert len(started) == begun, "it is finished: nothing trains, and nothing is tested once more"
    run_search(*base, "sweep.trials=3", "sweep.jobs=2")
    assert [job["state"] for job in list_jobs(folder)] == ["finished"] * 3
    run_search(f"sweep.resume={folder}", "sweep.trials=4")
    assert len(list_jobs(folder)) == 4
    with pytest.raises(UserError, match=r"can change, found model\.depth"):
        run_search(f"sweep.resume={folder}", "model.depth=1")
    run_search(*base, "sweep.trials=1", "sweep.seed=3", f"hydra.sweep.dir={tmp_path}/other")
    assert len(list_jobs(folder)) == 4
    assert len(list_jobs(tmp_path / "other")) == 1


def test_ctrl_c_keeps_what_there_is_and_says_how_to_go_on(
    searched: Searched, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def press() -> None:
        wait_for(lambda: list(tmp_path.glob("s/001*/metrics.csv")))
        os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    threading.Thread(target=press).start()
    with pytest.raises(Interrupted) as caught:
        searched(RATE, "sweep.trials=3", "sweep.pruner=none", epochs=20, seconds=0.03)
    assert caught.value.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is handler
    assert [job["state"] for job in list_jobs(tmp_path / "s")] == ["finished", "interrupted"]
    out = capsys.readouterr().out
    assert "stopped with 2 of 3 trials left" in out
    assert "resume with: python train.py sweep.resume=s" in out
    (metrics,) = tmp_path.glob("s/001*/metrics.csv")
    before = metrics.read_text()
    run_search(f"sweep.resume={tmp_path}/s")
    assert [job["state"] for job in list_jobs(tmp_path / "s")] == ["finished"] * 3
    assert metrics.read_text().startswith(before)


def test_several_trials_at_a_time_share_the_cores_and_have_a_gpu_each(
    searched: Searched, tmp_path: Path, started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "count_cores", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7,9")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found = searched(RATE, "sweep.trials=4", "sweep.jobs=3", "sweep.test_best=false", epochs=8, seconds=0.25)
    assert len({job["label"] for job in found}) == len(started) == 4
    assert max(len(other["beside"]) for other in started) == 2
    for other in started:
        assert other["env"].items() >= {"VITLAB_CORES": "2", "OMP_NUM_THREADS": "2"}.items()
        free = {"4", "7", "9"} - {env["CUDA_VISIBLE_DEVICES"] for env in other["beside"]}
        assert other["env"]["CUDA_VISIBLE_DEVICES"] in free
    assert not list((tmp_path / "s").glob(".session*"))


def test_figures_say_what_the_star_is() -> None:
    trials = [
        {"number": n, "state": state, "value": 0.1 * n, "params": {"optimizer.lr": 10.0**-n}}
        for n, state in enumerate(("finished", "pruned", "finished"))
    ]
    plots = figures.plot_trials(trials, "title"), figures.plot_values(trials, {"optimizer.lr": True}, "title")
    for figure in plots:
        assert "best" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_one_search_at_a_time_in_a_folder(searched: Searched, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    with RunFolder(tmp_path / "s").lock(), pytest.raises(UserError, match="process"):
        searched(RATE, "sweep.trials=1")


def test_a_damaged_record_is_one_sentence(searched: Searched, tmp_path: Path) -> None:
    searched(RATE, "sweep.trials=1")
    (tmp_path / "s" / "study.db").write_bytes(b"no data base" * 100)
    with pytest.raises(UserError, match=r"study\.db cannot be read"):
        searched(RATE, "sweep.trials=2")


def test_what_has_no_effect_is_said(searched: Searched, capsys: pytest.CaptureFixture[str]) -> None:
    searched(RATE, "sweep.trials=1", "sweep.pruner=none", "sweep.warmup_trials=2")
    out = capsys.readouterr().out
    assert "sweep.warmup_trials has no effect with sweep.pruner=none" in out
    assert "sweep.random_trials=10: all 1 are drawn at random" in out
    assert "no trial is ended early" not in out
