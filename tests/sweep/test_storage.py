"""sweep.storage: one search by several processes. tests/cluster has it with PostgreSQL and the proxy."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from tests.conftest import summary
from tests.core.claims import kill, take
from tests.sweep.helpers import PLAIN, RATE, Searched, list_jobs, run_search
from vitlab.config.arguments import parse_arguments
from vitlab.config.storage_address import find_address_problem
from vitlab.core.claim import Watch
from vitlab.core.errors import UserError
from vitlab.core.run_folder import RunFolder
from vitlab.core.summary import Summary
from vitlab.sweep import conclusion, is_search, joining, search, storage, worker
from vitlab.sweep.record import Sweep
from vitlab.sweep.space import check_trial
from vitlab.sweep.status import find_status
from vitlab.sweep.study import Study, get_outcome

SHARED = (RATE, "sweep.storage=journal", "sweep.pruner=none")
pytestmark = pytest.mark.usefixtures("started")


class AwayError(Exception):
    pass


@pytest.fixture
def join(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Study]:
    """Begin a search in tmp_path/s or join it, as a process does before it trains."""

    def call(*typed: str) -> Study:
        monkeypatch.chdir(tmp_path)
        line = ["sweep.resume=s"] if Path("s/sweep.json").exists() else [*PLAIN, *SHARED, "hydra.sweep.dir=s"]
        arguments = parse_arguments(["-m", *line, *typed])
        space, sweep = joining.find_search(arguments)
        sweep = sweep or joining.make_search(space)
        study = joining.open_study(sweep, space, storage.Storage(space.storage))
        joining.agree_on_trials(study, sweep, arguments)
        return study

    return call


def test_a_search_that_another_process_has_begun_meanwhile_is_joined(
    join: Callable[..., Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = parse_arguments(["-m", *PLAIN, *SHARED, "hydra.sweep.dir=s"])
    space, sweep = joining.find_search(arguments)
    assert sweep is None
    join()
    (tmp_path / "s" / "000_lr").mkdir()
    (tmp_path / "s" / "000_lr" / "config.yaml").touch()
    with pytest.raises(FileExistsError):  # and whoever asked looks again
        joining.make_search(space)
    assert joining.find_search(arguments)[1]


def end(study: Study, number: int, outcome: str) -> None:
    study.refresh()
    study.tell(study.get_live(study.trials[number]), outcome, value=0.5 if outcome == "finished" else None)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("postgresql://me@host/trials", ""),
        ("postgresql+psycopg://me@host:5432/trials?sslmode=require", ""),
        ("mysql+pymysql://me@host/trials", ""),
        ("grpc://host:13000", ""),
        ("grpc://[::1]:13000", ""),
        ("journal", ""),
        ("postgres://me@host/trials", "found 'postgres' (did you mean 'postgresql'?)"),
        ("grcp://host:13000", "found 'grcp' (did you mean 'grpc'?)"),
        ("grpc://host", "expected grpc://HOST:PORT"),
        ("grpc://host:port", "cannot be read"),
        ("postgresql://me@host", "expected postgresql://USER@HOST/DATABASE"),
        ("journal:///shared/trials.journal", "write sweep.storage=journal"),
        ("sqlite:///trials.db", "leave it out, or give postgresql://"),
        (
            "postgresql://me:p@s/sw0rd@host/trials",
            "postgresql://me:***@host/trials: a password",
        ),
        ("postgresql://me@host/trials?password=word", "~/.pgpass"),
    ],
)
def test_an_address_is_read_or_refused_in_a_sentence(address: str, said: str) -> None:
    problem = find_address_problem(address)
    assert said in problem
    assert bool(problem) == bool(said)
    assert "sw0rd" not in problem


def test_a_password_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="a password on a command line") as caught:
        run_search(*PLAIN, RATE, "hydra.sweep.dir=s", "sweep.storage=postgresql://me:secret@host/trials")
    assert "secret" not in str(caught.value)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("grpc://127.0.0.1:9", "expected Optuna's proxy there, found: GRPC connection timeout"),
        ("postgresql://me@127.0.0.1:9/trials", "expected a data base there, found: .*refused"),
        ("mysql+nothing://me@127.0.0.1:9/trials", "nothing"),
    ],
)
def test_a_server_that_is_not_there_is_said_before_anything_is_written(
    address: str, said: str, searched: Searched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "CONNECT", 1)
    with pytest.raises(UserError, match=said) as caught:
        searched(RATE, f"sweep.storage={address}")
    assert f"sweep.storage={address}" in str(caught.value)
    assert not (tmp_path / "s").exists()


def test_processes_that_draw_at_the_same_moment_train_as_many_as_asked_for(
    join: Callable[..., Study],
) -> None:
    one = join("sweep.trials=3")
    two = join()
    assert two.total == 3
    for _ in range(2):
        for study in (one, two):
            study.refresh()
        one.ask(random=False)
        two.ask(random=False)
    for study in (one, two):
        study.refresh()
        assert len(study.trials) == 4
        assert [trial.number for trial in study.list_wanted()] == [0, 1, 2]
        assert len(study.list_jobs()) == 3
    assert len({trial.params["optimizer.lr"] for trial in one.trials}) == 4
    end(one, 0, "finished")
    end(two, 1, "repeated")
    one.refresh()
    assert [trial.number for trial in one.list_open()] == [2, 3], "the one too many replaces it"
    assert one.count_left() == 2


def test_what_a_trial_came_to_is_what_was_told_first(join: Callable[..., Study]) -> None:
    one, two = join("sweep.trials=1"), join()
    one.ask(random=True)
    end(one, 0, "finished")
    end(two, 0, "diverged")
    assert [get_outcome(trial) for trial in two.study.trials] == ["finished"]


def test_failures_are_made_up_for_by_whoever_comes_later(join: Callable[..., Study]) -> None:
    one = join("sweep.trials=2")
    for _ in range(2):
        one.ask(random=True)
    end(one, 0, "failed")
    one.refresh()
    assert (one.count_missing(), len(one.list_failed())) == (0, 1)
    two = join()
    one.refresh()
    for study in (one, two):
        assert (study.count_missing(), study.list_failed()) == (1, [])


def test_other_settings_are_refused_with_the_difference(
    searched: Searched, tmp_path: Path, join: Callable[..., Study]
) -> None:
    study = join("sweep.trials=3")
    different = r"model\.depth=2 there, model\.depth=1,2 here.* sweep\.resume=s goes on with its own"
    with pytest.raises(UserError, match=different):
        searched(*SHARED, "model.depth=1,2")
    with pytest.raises(UserError, match=r"sweep\.storage=… there, sweep\.storage=null here"):
        searched(RATE, "sweep.pruner=none")
    study.ask(random=True)
    study.refresh()
    folder = tmp_path / "s" / str(study.list_jobs()[0].folder)
    folder.mkdir()
    held = take(folder)
    with pytest.raises(UserError, match=r"sweep\.trials=4: others work on s, on 3 trials in all"):
        run_search("sweep.resume=s", "sweep.trials=4")
    held.release()
    assert join("sweep.trials=4").total == 4
    study.refresh()
    assert study.total == 4, "also of those that are there"


def test_a_search_of_its_own_folder_is_one_process(searched: Searched, tmp_path: Path) -> None:
    searched(RATE, "sweep.trials=1", "sweep.test_best=false")
    with (
        RunFolder(tmp_path / "s").lock(),
        pytest.raises(UserError, match=r"process.*begun with sweep\.storage"),
    ):
        run_search("sweep.resume=s")
    with pytest.raises(UserError, match=r"cannot be given to it later"):
        run_search("sweep.resume=s", "sweep.storage=journal")


def test_a_storage_that_knows_nothing_of_the_trials_is_refused(searched: Searched, tmp_path: Path) -> None:
    searched(*SHARED, "sweep.trials=1")
    (tmp_path / "s" / storage.JOURNAL_FILE).unlink()
    before = sorted(path.name for path in (tmp_path / "s").iterdir())
    with pytest.raises(UserError, match=r"has trials, and sweep\.storage=journal knows none of them"):
        run_search("sweep.resume=s")
    assert sorted(path.name for path in (tmp_path / "s").iterdir() if path.suffix != ".journal") == before


@pytest.fixture
def when_waiting(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Call something as soon as a search says that it waits for another process."""

    def call(work: Callable[[], object]) -> None:
        def hear(text: str) -> None:
            say(text)
            if "waiting for another process" in text:
                work()

        say = search.say
        for module in (search, conclusion):
            monkeypatch.setattr(module, "say", hear)

    return call


def test_a_trial_of_a_process_that_is_gone_is_taken_up(
    tmp_path: Path, join: Callable[..., Study], when_waiting: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    study = join("sweep.trials=2")
    study.ask(random=True)
    study.refresh()
    (job,) = study.list_jobs()
    config = check_trial(job.overrides).record | {"swept": ["optimizer.lr"]}
    config["trainer"]["limit_test_batches"] = 0
    folder = tmp_path / "s" / str(job.folder)
    RunFolder.create(folder, config)
    held = take(folder)
    when_waiting(lambda: kill(held))
    run_search("sweep.resume=s")
    assert [job["state"] for job in list_jobs(tmp_path / "s")] == ["finished"] * 2
    out = capsys.readouterr().out
    assert out.index("[1/2]") < out.index("waiting for another process") < out.index("[2/2]")
    metrics = [summary(path.parent)["metrics"] for path in tmp_path.glob("s/*/summary.json")]
    assert sum("test/accuracy" in found for found in metrics) == 1


def test_a_trial_is_held_until_it_is_told_and_then_not_started_again(
    searched: Searched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[dict[str, Any]]
) -> None:
    conclude, held = search.Search._conclude_trial, []

    def look(self: search.Search, running: search.RunningTrial, code: int) -> None:
        held.append(Watch().look(running.job.folder.path).held)
        conclude(self, running, code)

    monkeypatch.setattr(search.Search, "_conclude_trial", look)
    searched(*SHARED, "sweep.trials=1", "sweep.test_best=false")
    assert held == [True]
    (folder,) = (RunFolder(path.parent) for path in tmp_path.glob("s/*/config.yaml"))
    late = worker.Worker(tmp_path / "s", at_a_time=1)
    with late.open():
        assert late.start(folder, needed=lambda: False) is None, "seen open, and told before it was claimed"
    assert len(started) == 1
    assert Watch().look(folder.path).free


def test_the_best_is_tested_by_one_and_the_others_wait(
    searched: Searched,
    tmp_path: Path,
    when_waiting: Any,
    capsys: pytest.CaptureFixture[str],
    started: list[dict[str, Any]],
) -> None:
    searched(*SHARED, "sweep.trials=1", "sweep.test_best=false")
    (folder,) = (RunFolder(path.parent) for path in tmp_path.glob("s/*/config.yaml"))
    held, begun = take(tmp_path / "s"), len(started)

    def test() -> None:
        Summary(folder.summary).update(metrics=summary(folder.path)["metrics"] | {"test/accuracy": 0.75})
        held.release()

    when_waiting(test)
    run_search("sweep.resume=s", "sweep.test_best=true")
    assert "test/accuracy 0.7500" in capsys.readouterr().out
    assert len(started) == begun

    def fail() -> None:
        Summary(folder.summary).update(status="failed")
        again.release()

    again = take(tmp_path / "s")
    when_waiting(fail)
    data = json.loads(folder.summary.read_text())
    del data["metrics"]["test/accuracy"]
    folder.summary.write_text(json.dumps(data))
    with pytest.raises(UserError, match="the test of the best trial failed"):
        run_search("sweep.resume=s", "sweep.test_best=true")
    assert len(started) == begun, "another has tried"


def test_a_storage_that_goes_away_for_a_while_ends_nothing(
    searched: Searched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(storage.Storage, "errors", (AwayError,), raising=False)
    init = storage.Storage.__init__

    def make(self: storage.Storage, address: str | None) -> None:
        init(self, address)
        self.errors = (AwayError,)

    monkeypatch.setattr(storage.Storage, "__init__", make)
    report, calls = optuna.Trial.report, []

    def fail(self: optuna.Trial, value: float, step: int) -> None:
        calls.append(step)
        if 3 <= len(calls) < 9:
            raise AwayError("connection refused")
        report(self, value, step)

    monkeypatch.setattr(optuna.Trial, "report", fail)
    found = searched(*SHARED, "sweep.trials=2", epochs=5, seconds=0.02)
    assert [(job["state"], job["epochs"]) for job in found] == [("finished", 5)] * 2
    out = capsys.readouterr().out
    assert out.count("does not answer (connection refused); trials go on") == 1
    assert out.count("sweep.storage=journal answers again") == 1

    calls.clear()
    monkeypatch.setattr(search, "OUTAGE", 0.3)
    monkeypatch.setattr(optuna.Trial, "report", lambda *given: (_ for _ in ()).throw(AwayError("gone")))
    with pytest.raises(UserError, match=r"does not answer \(gone\)\. Nothing is lost: .*sweep\.resume=s"):
        searched(*SHARED, "sweep.trials=3", epochs=5, seconds=0.5)
    assert summary(next(tmp_path.glob("s/002*")))["status"] == "interrupted"
    monkeypatch.setattr(optuna.Trial, "report", report)
    assert [job["state"] for job in searched(*SHARED, "sweep.trials=3", epochs=5)] == ["finished"] * 3


def test_the_status_of_a_search_says_what_is_left(tmp_path: Path, join: Callable[..., Study]) -> None:
    join("sweep.trials=2").ask(random=True)
    assert is_search(parse_arguments(["sweep.resume=s"])), "which has no plan"
    run_search("sweep.resume=s", "sweep.test_best=false")
    status = find_status("s")
    assert (status["kind"], status["states"], status["command"]) == ("search", {"finished": 2}, None)
    Summary(next(tmp_path.glob("s/000*/summary.json"))).update(status="pruned")
    status = find_status("s")
    assert (status["states"], status["command"]) == ({"finished": 1, "pruned": 1}, None)
    sweep = Sweep.load("s")
    assert sweep.search
    sweep.search["trials"] = 3
    sweep.save()
    assert find_status("s")["command"] == "python train.py sweep.resume=s"
