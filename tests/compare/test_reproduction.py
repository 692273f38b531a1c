"""reproduce.py: what it trains, and what it says of a claim."""

import json
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import reproduce
from tests.compare.folders import make_run
from tests.compare.test_claims import RECORD
from tests.conftest import ROOT, TINY, answer_without_torch, summary, wait_for
from vitlab.compare.claims import read_claim
from vitlab.compare.read import Run
from vitlab.compare.reproduction import Arm, find_deviations, judge, plan, sum_up
from vitlab.config.arguments import Arguments
from vitlab.core.cli import finish
from vitlab.core.errors import UserError
from vitlab.core.files import write_json
from vitlab.core.untrusted import to_yaml
from vitlab.sweep.record import Sweep

Reproduce = Callable[..., int]
PROTOCOL = {"train": 64, "val": 16, "test": 41, "selection": "hold-out"}


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a claim about TINY, and go to the folder above it."""
    monkeypatch.chdir(tmp_path)

    def write(*figures: dict[str, Any], **changes: Any) -> Path:
        record = RECORD | {
            "command": shlex.join(["python", "train.py", *TINY]),
            "protocol": PROTOCOL,
            "figures": [{"name": f"figure {n}", "tolerance": 1.0} | one for n, one in enumerate(figures)],
        }
        folder = Path("toy")
        folder.mkdir(exist_ok=True)
        (folder / "claim.yaml").write_bytes(to_yaml(record | changes))
        return folder

    return write


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Reproduce:
    """Run reproduce.py in this process and return its exit status."""

    def run(*typed: str) -> int:
        monkeypatch.setattr(sys, "argv", ["reproduce.py", *typed])
        try:
            return finish(reproduce.main)
        except SystemExit as stop:
            return int(str(stop.code))

    return run


def get_arm(folder: Path, *typed: str) -> Arm:
    (arm,) = plan(read_claim(folder), typed, [0])
    return arm


def put(run: Path, arm: Arm, seed: int = 0, **changes: Any) -> None:
    """Leave a finished run of TINY as one of a claim's."""
    copy = shutil.copytree(run, arm.folder / f"seed-{seed}")
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace("seed: 0\nstudy", f"seed: {seed}\nstudy"))
    write_json(copy / "summary.json", summary(copy) | {"seed": seed} | changes)


def accuracy(run: Path) -> float:
    return 100 * float(summary(run)["metrics"]["test/accuracy"])


def test_what_was_trained_is_compared_and_not_trained_again(
    study: Any, call: Reproduce, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    mean = accuracy(finished)
    figure = {"mean": mean - 0.6, "sd": 0.5, "n": 3}
    folder = study(figure, seeds=[0])
    put(finished, get_arm(folder))
    monkeypatch.setattr(reproduce, "run_sweep", lambda *given: pytest.fail("it trains"))
    assert call("toy") == 0
    said = capsys.readouterr().out
    assert "+0.60 [-1.88, +3.08]" in said  # 0.5 x sqrt(1/1 + 1/3) x 4.303, which is t of 2 degrees
    assert said.endswith("reproduced\n")
    study(figure | {"mean": mean + 6}, seeds=[0])
    assert call("toy", "--format", "json") == 1
    told = json.loads(capsys.readouterr().out)
    assert told["verdict"] == "not reproduced"
    assert told["figures"][0]["difference"] == pytest.approx(-0.06)
    assert told["figures"][0]["reason"] == "by -6.00 points, beyond ±1; more than chance explains"


def test_other_data_are_not_comparable_and_said_before_training(
    study: Any, call: Reproduce, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    folder = study({"mean": accuracy(finished), "n": 1}, seeds=[0])

    def train(arguments: Arguments, show: Any) -> None:
        other = get_arm(folder, "data.seed=3")
        put(finished, other)
        file = other.folder / "seed-0/config.yaml"
        changed = file.read_text().replace("num_test: 41\n  seed: 0", "num_test: 41\n  seed: 3")
        file.write_text(changed)

    monkeypatch.setattr(reproduce, "run_sweep", train)
    assert call("toy", "data.seed=3") == 1
    said = capsys.readouterr().out
    reason = "other data: data.seed is 3, in the claim 0"
    assert said.startswith(f"note: what is trained now will not be comparable with the claim ({reason})")
    assert f"not comparable, {reason}" in said
    assert said.endswith("not comparable\n")


def test_what_a_run_says_of_itself_decides_whether_it_compares(study: Any, finished: Path) -> None:
    folder = study({"mean": 10.0, "n": 1}, data={"label": "photos", "fingerprint": "abc"})
    claim, arm = read_claim(folder), get_arm(folder)

    def deviations(**changes: Any) -> str:
        run = arm.planned()
        for key, value in changes.items():
            setattr(run, key, value)
        return find_deviations(claim, arm.figures[0], arm, run)

    config = arm.planned().config
    assert deviations() == deviations(fingerprint="abc", tested="best checkpoint", images={"train": 64}) == ""
    assert deviations(fingerprint="def") == "other data: the image files have other names or classes"
    assert deviations(images={"test": 40}) == "other protocol: tested on 40 images, in the claim 41"
    by_last = "other protocol: selection is last epoch, in the claim hold-out"
    assert deviations(tested="last checkpoint, EMA weights") == by_last
    lasting = config | {"trainer.max_epochs": "9"}
    assert deviations(config=lasting) == "other protocol: trainer.max_epochs is 9, in the claim 2"
    other = config | {"data.kind": "cifar10", "data.val_size": "5000"}
    assert deviations(config=other) == "other data: data.kind is cifar10, in the claim shapes"
    assert deviations(config=config | {"data.root": "elsewhere"}) == ""


def test_a_published_figure_is_compared_by_the_protocol_of_its_source(
    study: Any, call: Reproduce, finished: Path, capsys: Any
) -> None:
    figure = {"mean": None, "published": accuracy(finished)}
    for selection, word, status in (("test images", "not comparable", 1), (None, "reproduced", 0)):
        source = {"by": "a paper", "protocol": PROTOCOL | {"selection": selection}}
        folder = study(figure, seeds=[0], source=source)
        if selection:
            put(finished, get_arm(folder))
        assert call("toy") == status
        said = capsys.readouterr().out
        assert said.endswith(f"{word}\n")
        assert f"mean: {accuracy(finished):.2f}\nsd: null\nn: 1" in said  # as a figure of ours


def test_where_nothing_is_claimed_the_new_figure_is_told(
    study: Any, call: Reproduce, finished: Path, capsys: Any
) -> None:
    put(finished, get_arm(study({"mean": None}, seeds=[0])))
    assert call("toy") == 1
    assert capsys.readouterr().out.endswith("not yet measured\n")


def test_each_figure_has_its_own_runs_and_the_worst_decides(
    study: Any, finished: Path, tmp_path: Path
) -> None:
    mean = accuracy(finished)
    folder = study(
        {"mean": mean, "n": 1},
        {"mean": mean + 5, "n": 1, "overrides": ["model.depth=2"], "metric": "val/accuracy"},
        {"mean": 50.0, "n": 1, "command": "python study.py"},
    )
    claim = read_claim(folder)
    arms = plan(claim, [], [0])
    assert [[figure["name"] for figure in arm.figures] for arm in arms] == [["figure 0"], ["figure 1"]]
    for arm, metric in zip(arms, ("test/accuracy", "val/accuracy"), strict=True):
        put(finished, arm, metrics={metric: mean / 100})
    outcomes = judge(claim, arms, [0])
    assert [outcome.verdict for outcome in outcomes] == ["reproduced", "not reproduced", "not checked"]
    assert outcomes[1].reason.startswith("by -5.00 points")
    assert "neither side has a spread" in outcomes[0].reason
    assert sum_up(outcomes) == "not reproduced"
    assert sum_up([outcomes[0], outcomes[2]]) == "reproduced"
    put_without = claim.record["figures"][1] | {"metric": "test/accuracy"}
    arms[1].figures[0] = put_without
    with pytest.raises(UserError, match="has no test/accuracy"):
        judge(claim, arms, [0])


@pytest.mark.parametrize(
    ("values", "claimed", "verdict", "why"),
    [
        ([60.0, 60.1, 59.9, 60.0, 60.1], (60.0, 0.1, 5), "reproduced", "a difference beyond it is excluded"),
        ([60.0, 62.0, 58.5], (60.0, 1.5, 3), "reproduced", "which more seeds could exclude"),
        ([61.0, 63.0, 59.5], (60.0, 1.5, 3), "not reproduced", "chance may do"),
        ([63.0, 63.2, 62.9], (60.0, 0.2, 3), "not reproduced", "more than chance explains"),
        ([60.9], (60.0, None, 1), "reproduced", "neither side has a spread"),
        ([61.1], (60.0, None, 1), "not reproduced", "neither side has a spread"),
    ],
)
def test_the_verdict_says_how_sure_it_is(
    study: Any, finished: Path, values: list[float], claimed: Any, verdict: str, why: str
) -> None:
    mean, sd, n = claimed
    folder = study({"mean": mean, "sd": sd, "n": n})
    claim, arm = read_claim(folder), get_arm(folder)
    for seed, value in enumerate(values):
        put(finished, arm, seed, metrics={"test/accuracy": value / 100})
    (outcome,) = judge(claim, [arm], range(len(values)))
    assert (outcome.verdict, outcome.measured and outcome.measured.n) == (verdict, len(values))
    assert why in outcome.reason


def test_only_what_is_missing_is_trained(study: Any, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arm = get_arm(study({"mean": 10.0, "n": 1}))
    asked: list[Arguments] = []
    monkeypatch.setattr(reproduce, "run_sweep", lambda arguments, show: asked.append(arguments))

    def train(*seeds: int) -> list[str]:
        asked.clear()
        with pytest.raises(UserError, match="another process trains"):  # since nothing does here
            reproduce.train(arm, seeds, ["hydra/launcher=joblib"])
        (given,) = asked
        return given.overrides

    whole = [*TINY, "seed=0,1", "hydra/launcher=joblib", f"hydra.sweep.dir={arm.folder}"]
    assert train(0, 1) == whole
    put(finished, arm, 0)
    put(finished, arm, 1, status="interrupted")
    Sweep(arm.folder, [], [], []).save()
    assert train(0, 1) == ["hydra/launcher=joblib", f"sweep.resume={arm.folder}"]
    assert train(0, 1, 2) == [*TINY, "seed=2", "hydra/launcher=joblib", f"sweep.resume={arm.folder}"]
    asked.clear()
    reproduce.train(arm, [0], [])
    assert not asked


def test_runs_of_other_settings_or_other_folders_of_images_are_kept_apart(study: Any) -> None:
    folder = study({"mean": 10.0, "n": 1})
    assert get_arm(folder).folder == get_arm(folder, "data.root=anywhere").folder  # shapes are in no folder
    assert get_arm(folder).folder != get_arm(folder, "data.seed=3").folder
    assert get_arm(folder).folder == get_arm(folder, "data.in_memory=true").folder
    folder = study({"mean": 10.0, "n": 1}, command="python train.py data=image_folder data.root=DIR")
    places = [get_arm(folder, f"data.root={root}").folder for root in ("photos", "./photos", "other/photos")]
    assert places[0] == places[1] != places[2]
    assert get_arm(folder, "data=shapes").config["data"]["root"] is None  # DIR went with its kind
    with pytest.raises(UserError, match=r"data.root is needed, the folder of shapes: .* toy data.root=…"):
        get_arm(folder)


def test_a_setting_that_is_no_key_of_the_runs_is_refused(study: Any) -> None:
    folder = study({"mean": 10.0, "n": 1}, settings={"trainer.max_epoch": 2})
    with pytest.raises(UserError, match=r"no such key \(did you mean 'trainer.max_epochs'\?\)"):
        get_arm(folder)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ([], "expected one STUDY, found 0"),
        (["toy", "toy"], "expected one STUDY, found 2"),
        (["toy", "trainer.max_epochs=3"], "only its data can be given"),
        (["toy", "dta.root=x"], "did you mean 'data'?"),
        (["toy", "data.rot=x"], "did you mean data.root"),
        (["toy", "--seeds", "0,0"], "--seeds 0,0: expected different whole numbers"),
        (["toy", "--seeds", "-1"], "--seeds"),
        (["toy", "--sedes", "0"], "did you mean '--seeds'?"),
        (["nowhere"], "expected a folder with a claim.yaml"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(
    study: Any, call: Reproduce, typed: list[str], said: str, capsys: Any
) -> None:
    study({"mean": 10.0, "n": 1})
    assert call(*typed) == 1
    assert said in capsys.readouterr().err


def test_help_and_refusals_come_without_torch() -> None:
    assert "not comparable" in answer_without_torch("reproduce.py", "--help").stdout
    assert answer_without_torch("reproduce.py", "experiments/frontier").returncode == 1


def test_runs_that_were_made_before_there_were_fingerprints_are_read(tmp_path: Path) -> None:
    from vitlab.compare.read import read_run

    run: Run = read_run(make_run(tmp_path / "run", summary={"data": {"name": "x", "train": 3}}), "run")
    assert (run.fingerprint, run.tested, run.images) == ("", "", {"train": 3})


@pytest.mark.slow
def test_a_claim_is_trained_interrupted_and_finished_by_the_same_command(study: Any) -> None:
    study({"mean": 50.0, "n": 1, "tolerance": 50.0}, seeds=[0, 1])
    command = [sys.executable, str(ROOT / "reproduce.py"), "toy", "--format", "json"]
    first = Path("outputs/claims/toy")

    def done() -> list[Path]:
        return [path.parent for path in first.glob("*/*/summary.json") if '"finished"' in path.read_text()]

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: done() or process.poll() is not None)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 128 + signal.SIGTERM
    (kept,) = done()
    before = (kept / "summary.json").stat().st_mtime_ns
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert (told["verdict"], told["figures"][0]["measured"]["n"]) == ("reproduced", 2)
    assert len(done()) == 2
    assert (kept / "summary.json").stat().st_mtime_ns == before
    assert "resuming" in ended.stderr
