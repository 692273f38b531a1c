"""``--plan`` and ``--status``: what is to be trained, at which cost, and how far it is, for programs."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, TINY, Train, answer_without_torch, summary, train_in, verb
from vitlab.config.arguments import parse_arguments
from vitlab.core.errors import UserError
from vitlab.core.run_folder import RunFolder
from vitlab.sweep.preview import Preview
from vitlab.sweep.status import find_status
from vitlab.training.cost import measure_forward


def plan(*words: str) -> Any:
    return Preview(measure_forward).of(parse_arguments([*words, "--plan"]))


def run(command: str) -> None:
    """Train in this process what a plan says."""
    python, program, *words = shlex.split(command)
    assert (python, program) == ("python", "train.py")
    folder = words.pop().removeprefix("hydra.run.dir=")
    train_in(Path(folder), *words)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_plan_writes_nothing_and_its_command_trains_what_it_says(tmp_path: Path) -> None:
    found = plan(*TINY)
    assert not list(tmp_path.iterdir())
    (job,) = found["jobs"]
    assert (job["state"], job["steps_left"], job["seconds"]) == ("new", 16, None)
    assert found["command"] == job["command"]
    run(job["command"])
    done = summary(Path(job["folder"]))
    assert done["train"]["optimizer_steps"] == job["optimizer_steps"]
    assert job["flops"] == 3 * done["model"]["flops_per_image"] * 16 * 8
    again = plan(f"resume={job['folder']}")
    assert again["command"] is None
    assert again["left"] == {"jobs": 0, "flops": 0, "seconds": 0}


def test_a_plan_reckons_time_from_the_finished_run_whose_network_costs_nearly_the_same(train: Train) -> None:
    sweep = ["-m", *TINY, "model.depth=1,4", "study=one"]
    assert {job["seconds"] for job in plan(*sweep)["jobs"]} == {None}
    for depth in (1, 3):
        train_in(Path(f"outputs/one/{depth}"), f"model.depth={depth}")
    one, four = plan(*sweep)["jobs"]
    assert [job["seconds_from"] for job in (one, four)] == ["outputs/one/1", "outputs/one/3"]
    assert one["seconds"] == pytest.approx(summary(Path("outputs/one/1"))["train"]["wall_seconds"], abs=0.06)
    assert plan(*TINY, "study=other")["jobs"][0]["seconds"] is None  # another study's runs say little


def test_a_plan_of_a_sweep_names_what_is_left_what_is_skipped_and_one_command_for_all(tmp_path: Path) -> None:
    words = ["-m", *TINY, "model.depth=1,2", "model.patch_size=4,5", f"hydra.sweep.dir={tmp_path}/study/s"]
    jobs = {job["label"]: job for job in plan(*words)["jobs"]}
    assert not (tmp_path / "study").exists()
    skipped = jobs["depth=1 patch_size=5"]
    assert (skipped["state"], skipped["command"]) == ("skipped", None)
    assert "does not divide" in skipped["problem"]
    ended = verb(*words, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    found = plan(*words)
    assert found["command"] is None
    states = [job["state"] for job in found["jobs"]]
    assert states == ["finished", "skipped", "finished", "skipped"]
    status = find_status(str(tmp_path / "study"))["runs"][0]
    assert (status["kind"], status["states"]) == ("sweep", {"finished": 2, "skipped": 2})
    more = plan("-m", *TINY, "model.depth=1,3", "model.patch_size=4", f"sweep.resume={tmp_path}/study/s")
    assert [job["label"] for job in more["jobs"] if job["command"]] == ["depth=3"]
    assert more["jobs"][-1]["folder"] == "study/s/depth-3"


def test_a_plan_is_json_alone_on_standard_output_and_a_mistake_ends_in_one_sentence() -> None:
    ended = verb(*TINY, "--plan", cwd=ROOT)
    assert json.loads(ended.stdout)["left"]["jobs"] == 1
    ended = verb(*TINY, "model.depht=2", "--plan", cwd=ROOT)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "did you mean model.depth?" in ended.stderr


def test_the_status_of_a_run_says_how_far_it_is_and_how_to_go_on(stopped: Train, finished: Path) -> None:
    folder = stopped(11)
    found = find_status(str(folder))
    assert (found["state"], found["epoch"], found["max_epochs"]) == ("interrupted", 1, 2)
    assert found["command"] == f"python train.py resume={found['folder']}"
    (job,) = plan(f"resume={folder}")["jobs"]
    assert (job["steps_left"], job["optimizer_steps"], job["command"]) == (8, 16, found["command"])
    with RunFolder(folder).lock():
        assert plan(f"resume={folder}")["left"]["jobs"] == 0, "another process is at it"
    found = find_status(str(finished))
    assert (found["state"], found["command"]) == ("finished", None)
    assert found["metrics"] == summary(finished)["metrics"]
    ended = answer_without_torch("train.py", "--status", str(finished))
    assert json.loads(ended.stdout) == found | {"folder": str(finished)}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--status", "outputs", "seed=1"], "nothing beside it"),
        (["--status", ""], "the folder of a run"),
        (["--plan", "--cfg", "job"], "without -m or --plan"),
        (["--plan", "resume=a", "seed=1"], "takes nothing beside it; found: seed=1"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_arguments(words)


def test_a_search_has_no_plan_and_a_folder_without_runs_no_status(tmp_path: Path, finished: Path) -> None:
    with pytest.raises(UserError, match="draws its trials one by one"):
        plan("-m", *TINY, "sweep=optuna", "model.depth=1,2")
    with pytest.raises(UserError, match="does not exist"):
        find_status("nowhere")
