"""What waits for a GPU works here at toy size, and keeps what it found whatever ends a measurement."""

import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from experiments.gpu import study
from experiments.gpu.figures import first_reached
from experiments.gpu.study import Measurement, measure_all, plan
from tests.conftest import ROOT, wait_for
from vitlab.config import combinations
from vitlab.config.plan import make_plan
from vitlab.core.errors import UserError
from vitlab.core.hardware import has_compiler
from vitlab.core.run_folder import RunFolder

SCRIPT = ROOT / "experiments/gpu/run.sh"
NAMES = ["convstem_fast", "layers", "vit_conv_blocks", "randaugment", "float16", "resume", "memory"]


def python(code: str, name: str, limit: float = 60) -> Measurement:
    """A measurement that runs ``code`` in its folder; its figure is what that writes into `figure`."""

    def read(folder: Path, begun: float) -> dict[str, Any]:
        return {"said": (folder / "figure").read_text()}

    return Measurement(name, limit, lambda at: ["-c", f"import os; os.chdir({str(at)!r})\n{code}"], read)


def results(out: Path) -> dict[str, Any]:
    return {
        record["name"]: record for record in json.loads((out / "results.json").read_text())["measurements"]
    }


def test_a_failing_and_a_hanging_measurement_are_recorded_and_the_others_go_on(tmp_path: Path) -> None:
    hanging = (
        "open('pid', 'w').write(str(os.getpid())); open('figure', 'w').write('half'); import time, signal\n"
    )
    hanging += "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    # What is measured after the others finds on the disk what they have found.
    last = f"open('figure', 'w').write(open({str(tmp_path / 'results.json')!r}).read())"
    groups = [
        [python("raise SystemExit('broken on purpose')", "failing")],
        [
            Measurement(
                "refused", 60, lambda at: study.make_run(at / "run", "model=vit_tny") and [], lambda *_: {}
            )
        ],
        [python(hanging, "hanging", 5), python("open('figure', 'w').write('beside it')", "beside")],
        [python(last, "last")],
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "LEAST", 0.5)
        patch.setattr(study, "GRACE", 0.2)
        records = measure_all(groups, tmp_path, tmp_path / "work", 60)
    assert [record["name"] for record in records] == ["failing", "refused", "hanging", "beside", "last"]
    found = results(tmp_path)
    assert [*found.values()] == records
    assert [found[name]["status"] for name in found] == [
        *("failed", "failed", "timed out", "finished", "finished")
    ]
    assert found["failing"]["error"] == "ended with status 1: broken on purpose"
    assert "did you mean vit_tiny" in found["refused"]["error"]
    assert found["hanging"]["error"] == "ended after 5 s"
    assert found["hanging"]["figures"] == {"said": "half"}, "what it had left"
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "work/hanging/pid").read_text()), 0)
    before = json.loads(found["last"]["figures"]["said"])["measurements"]
    assert {record["name"] for record in before} == {"failing", "refused", "hanging", "beside"}
    page = (tmp_path / "results.md").read_text()
    assert "| failing | error | ended with status 1: broken on purpose |" in page
    assert "| beside | said | beside it |" in page


STUDY = """
import sys
from pathlib import Path
from experiments.gpu import study
from vitlab.core.signals import on_signal

here = Path(sys.argv[1])
hanging = "import os, time; open(f'{os.getpid()}.pid', 'w'); time.sleep(600)"
chdir = f"import os; os.chdir({str(here)!r}); "
one = study.Measurement("one", 60, lambda at: ["-c", chdir + hanging], lambda *_: {})
with on_signal(study.end_all):
    study.measure_all([[one]], here, here / "work", 60)
"""


def test_ctrl_c_ends_what_runs_and_leaves_no_process_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STUDY, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True) as process:
        wait_for(lambda: [*tmp_path.glob("*.pid")])
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    (named,) = tmp_path.glob("*.pid")
    line = Path("/proc") / named.stem / "cmdline"
    wait_for(lambda: not line.exists() or not line.read_bytes())  # a zombie has an empty one


def test_nothing_is_begun_when_the_time_is_up_and_the_same_again_does_what_is_left(tmp_path: Path) -> None:
    counting = "open('../runs', 'a').write('x'); open('figure', 'w').write('y')"
    groups = [[python(counting, "one")], [python("open('figure', 'w').write('z')", "two")]]
    work = tmp_path / "work"
    records = measure_all(groups, tmp_path, work, 60, named=["one"])
    assert [record["status"] for record in records] == ["finished"]
    one, two = measure_all(groups, tmp_path, work, 1)
    assert (one["status"], two["status"]) == ("finished", "not begun")
    assert two["error"] == "the time of all measurements was up"
    assert [record["status"] for record in measure_all(groups, tmp_path, work, 60)] == ["finished"] * 2
    assert (work / "runs").read_text() == "x", "once"
    measure_all(groups, tmp_path, work, 60, named=["one"])
    assert (work / "runs").read_text() == "xx", "anew where it is named"
    kept = measure_all(groups, tmp_path, work, 1, named=["two"])
    assert kept[1]["figures"] == {"said": "z"}, "what was found is not given up for nothing"
    with pytest.raises(UserError, match=r"no measurement 'tow' \(did you mean 'two'"):
        measure_all(groups, tmp_path, work, 60, named=["tow"])


def test_a_target_is_reached_when_the_hold_out_first_has_it() -> None:
    moments = [
        {"val_accuracy": value, "epoch": epoch} for epoch, value in enumerate([0.5, 0.9, 0.89, 0.93], 1)
    ]
    assert [first_reached(moments, target) for target in (0.9, 0.91, 0.95)] == [moments[1], moments[3], None]


def test_what_a_gpu_would_run_composes_and_has_room_for_its_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = plan(toy=False, data=["data=cifar10"])
    measurements = [measurement for group in groups for measurement in group]
    assert [measurement.name for measurement in measurements] == NAMES
    for measurement in measurements:
        command = measurement.command(tmp_path / measurement.name)
        if "benchmark" in command:
            (composed,) = combinations(command[command.index("benchmark") + 2 :], root="benchmark")
            assert composed.plain["trainer"]["accelerator"] == "gpu"
    folders = {
        path.parent.relative_to(tmp_path).as_posix(): path.parent for path in tmp_path.rglob("config.yaml")
    }
    assert {*folders} == {
        *("convstem_fast/run", "vit_conv_blocks/run", "float16/run"),
        *(f"memory/{recipe}" for recipe in study.RECIPES),
    }
    for folder in folders.values():
        config = RunFolder(folder).read_config()
        assert config["trainer"]["accelerator"] == "gpu"
        assert make_plan(config, 45_000).total_steps > 0
    blocks = make_plan(RunFolder(folders["vit_conv_blocks/run"]).read_config(), 45_000)
    assert (blocks.total_steps, blocks.warmup_steps) == (50 * 351, round(0.2688 * 50 * 351))


def test_the_script_unpacks_installs_and_starts_the_study(tmp_path: Path) -> None:
    fake, calls = tmp_path / "python", tmp_path / "calls"
    fake.write_text(f'#!/bin/sh\necho "$PYTHONPATH $@" >> {calls}\n')
    fake.chmod(0o755)
    image = tmp_path / "cifar10-jpeg/train/cat/1.jpg"
    image.parent.mkdir(parents=True)
    image.write_text("")
    with tarfile.open(tmp_path / "images.tar.xz", "w:xz") as archive:
        archive.add(tmp_path / "cifar10-jpeg", "cifar10-jpeg")
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels/some.whl").write_text("")
    given = {"PYTHON": str(fake), "WHEELS": "wheels", "DATA": "images.tar.xz", "WORK": "w"}
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [str(SCRIPT), "here", "layers"]
    subprocess.run(command, cwd=tmp_path, env=environment | given, check=True, timeout=60)
    pip, start = calls.read_text().splitlines()
    site = f"{tmp_path}/w/site"
    assert pip.split()[1:4] == ["-m", "pip", "install"]
    assert pip.endswith(f"--target {site} wheels/some.whl")
    path, *words = start.split()
    assert path == f"{ROOT}/src:{site}"
    assert words[:4] == ["-m", "experiments.gpu.study", f"{tmp_path}/here", "layers"]
    assert words[4:-1] == [
        "--data",
        f"{tmp_path}/w/images/cifar10-jpeg",
        "--work",
        f"{tmp_path}/w",
        "--seconds",
    ]
    assert 500 < int(words[-1]) <= 540
    assert image.relative_to(tmp_path).as_posix() in {
        found.relative_to(tmp_path / "w/images").as_posix()
        for found in (tmp_path / "w/images").rglob("*.jpg")
    }
    ended = subprocess.run(
        command, cwd=tmp_path, env=environment | given | {"DATA": "wheels"}, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stderr) == (
        1,
        "error: DATA=wheels holds no folder train/ with a folder a class.\n",
    )


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler("cpu"), reason="no compiler")
def test_the_one_command_measures_everything_at_toy_size(tmp_path: Path) -> None:
    def start(**more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(SCRIPT), "--toy", str(tmp_path / "out")],
            cwd=tmp_path,
            env=os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"} | more,
            capture_output=True,
            text=True,
            timeout=900,
        )

    ended = start()
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = results(tmp_path / "out")
    assert {name: record["status"] for name, record in found.items()} == dict.fromkeys(NAMES, "finished")
    figures = {name: record["figures"] for name, record in found.items()}
    for name in ("convstem_fast", "vit_conv_blocks"):
        own = figures[name]
        assert {*own["reached"]} == {"90%", "93%", "95%"}
        assert own["last"]["epoch"] == 2
        assert 0 < own["last"]["training_seconds"] < own["last"]["seconds"] < found[name]["seconds"]
        assert 0 <= own["test_accuracy"] <= 1
        assert own["peak_memory_bytes"]["host"] > 0
    layers = figures["layers"]
    assert layers["compiled"] is True
    assert {layer: [*rows] for layer, rows in layers["layers"].items()} == {
        "step": ["vitlab", "plain", "eager"],
        "input": ["vitlab"],
        "input_one_core": ["vitlab"],
        "both": ["vitlab", "plain"],
    }
    for row in (*layers["layers"]["step"].values(), *layers["layers"]["both"].values()):
        assert row["images_per_second"]["median"] > 0
        assert 0 < row["mfu"] < 1
    assert layers["peak_flops"] > 1e8
    assert layers["compiled_over_eager"]["min"] > 0
    assert figures["randaugment"]["layers"]["input"]["vitlab"]["images_per_second"]["median"] > 0
    float16 = figures["float16"]
    assert float16["precision"] == "16-mixed"
    assert float16["finite"]
    assert 0 < float16["overflowed_steps"] < float16["optimizer_steps"] == 36
    resume = figures["resume"]
    assert (resume["bitwise_equal"], resume["kills"], resume["differs"]) == (True, 1, "")
    assert 0 < int(resume["resumed_at"]) < 24
    assert figures["memory"]["convstem_fast"]["peak_memory_bytes"]["host"] > 0
    page = (tmp_path / "out/results.md").read_text()
    assert all(f"| {name} | finished | " in page for name in NAMES)

    made = {path: path.stat().st_mtime for path in (tmp_path / "out/work").glob("*/result.json")}
    assert start().returncode == 0
    assert {path: path.stat().st_mtime for path in made} == made, "finished is finished"
