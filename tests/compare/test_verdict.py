"""What a study says of its groups, what it could have told, and the commands that train what is lacking."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.compare.folders import make_run
from tests.conftest import ROOT
from vitlab.compare.groups import Comparison, make_comparison
from vitlab.compare.read import read_runs
from vitlab.compare.verdict import Finding, find, tell

SIZES = {"data": {"train": 45000, "val": 5000, "test": 10000}}


def make_study(
    folder: Path, effects: dict[int, float], seeds: range = range(6), *, noise: float = 0.002
) -> None:
    """Write a sweep over depth and seed; an effect is what a depth adds to the accuracy."""
    lot = random.Random(1)
    jobs = []
    for depth, effect in effects.items():
        for seed in seeds:
            name, overrides = f"depth-{depth}_seed-{seed}", [f"model.depth={depth}", f"seed={seed}"]
            val = 0.8 + effect + lot.gauss(0, noise)
            make_run(folder / name, *overrides, val=val, test=val - 0.01, summary=SIZES)
            jobs.append({"folder": name, "overrides": overrides})
    command = ["-m", f"model.depth={','.join(map(str, effects))}", f"seed={','.join(map(str, seeds))}"]
    (folder / "sweep.json").write_text(json.dumps({"command": command, "jobs": jobs}))


def judged(folder: Path, *, detect: float = 0.005, **options: Any) -> tuple[Comparison, Finding]:
    comparison = make_comparison(read_runs([folder]), [], "study", **options)
    return comparison, find(comparison, 0.005, detect)


def test_groups_are_held_against_the_first_of_the_sweep(tmp_path: Path) -> None:
    make_study(tmp_path / "s", {8: 0, 4: 0.015, 12: -0.015, 6: 0.0}, noise=0.001)
    comparison, finding = judged(tmp_path / "s")
    assert {found.baseline for found in finding.comparisons} == {"depth=8"}, "of names depth=12 is the first"
    words = {found.group: found.verdict for found in finding.comparisons}
    assert words == {"depth=4": "better", "depth=12": "worse", "depth=6": "equal"}
    said = [*tell(comparison, finding)]
    assert said[0] == "By val accuracy, against depth=8, the first of the study (--baseline chooses another):"
    assert said[1].startswith("  better: depth=4 (+1.")
    assert said[3].startswith("  equal within ±0.5 points: depth=6 (")


def test_where_nothing_was_held_out_the_test_accuracy_decides(tmp_path: Path) -> None:
    for depth in (4, 6):
        for seed in range(5):
            test = 0.8 + 0.01 * (depth == 6) + seed / 1000
            make_run(
                tmp_path / "s" / f"{depth}{seed}", f"model.depth={depth}", f"seed={seed}", val=None, test=test
            )
    _, finding = judged(tmp_path / "s")
    assert finding.split == "test"
    assert [found.verdict for found in finding.comparisons] == ["better"]


def test_what_is_lacking_is_trained_by_one_command_that_resumes_the_sweep(tmp_path: Path) -> None:
    make_study(tmp_path / "s", {4: 0, 6: 0.001}, range(3))
    _, finding = judged(tmp_path / "s")
    assert [found.verdict for found in finding.comparisons] == ["too few seeds"]
    assert finding.noise
    assert finding.noise.seeds_needed == 5, (
        "the fewest: what three seeds say of noise is no ground for a plan"
    )
    folder = tmp_path / "s"
    command = f"python train.py -m model.depth=4,6 seed=3,4 sweep.resume={folder}"
    assert finding.noise.commands == [command]


def test_only_the_seeds_that_are_lacking_of_what_is_open_are_asked_for(tmp_path: Path) -> None:
    make_study(tmp_path / "s", {4: 0, 6: 0.001, 8: 0.05})
    for file in (tmp_path / "s" / "depth-6_seed-2").iterdir():
        file.unlink()
    comparison, finding = judged(tmp_path / "s")
    noise = finding.noise
    assert noise
    assert noise.seeds_needed
    assert noise.seeds_needed > 6
    more = ",".join(map(str, range(6, noise.seeds_needed)))
    assert sorted(noise.commands) == [
        f"python train.py -m model.depth=4 seed={more} sweep.resume={tmp_path / 's'}",
        f"python train.py -m model.depth=6 seed=2,{more} sweep.resume={tmp_path / 's'}",
    ]
    assert noise.seed_std == pytest.approx(comparison.baseline.spread("val").std)  # type: ignore[union-attr]
    assert noise.image_std == pytest.approx((0.8 * 0.2 / 5000) ** 0.5, rel=0.02)
    _, finer = judged(tmp_path / "s", detect=0.0001)
    assert finer.noise
    assert finer.noise.seeds_needed is None, "more than a hundred"


def test_the_test_accuracy_of_the_chosen_group_alone_is_shown(tmp_path: Path) -> None:
    make_study(tmp_path / "s", {4: 0, 6: 0.02, 8: 0.01})
    comparison, _ = judged(tmp_path / "s")
    assert [group.name for group in comparison.groups if comparison.shows_test(group)] == ["depth=6"]
    comparison, _ = judged(tmp_path / "s", all_tests=True)
    assert all(map(comparison.shows_test, comparison.groups))


def test_programs_get_one_object(tmp_path: Path) -> None:
    make_study(tmp_path / "s", {4: 0, 6: 0.02})
    command = [sys.executable, str(ROOT / "compare.py"), str(tmp_path / "s"), "--format", "json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120)
    (found,) = json.loads(done.stdout)["comparisons"]
    assert (found["group"], found["baseline"], found["n"], found["verdict"]) == (
        "depth=6",
        "depth=4",
        6,
        "better",
    )
    assert found["low"] < found["difference"] < found["high"]
    assert found["p"] == found["p_adjusted"] == 1 / 64
    wrong = subprocess.run(
        [*command, "--margin", "0"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr.startswith("error: --margin 0: expected points")
