"""Claims: what their files may say, and the figures that README has of them."""

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from vitlab.compare.claims import (
    BEGIN,
    END,
    Claim,
    describe_time,
    find_claims,
    make_table,
    read_claim,
    write_table,
)
from vitlab.compare.reproduction import find_deviations, plan
from vitlab.core.errors import UserError
from vitlab.core.untrusted import to_yaml

CLAIMS = find_claims(ROOT / "experiments")
FIGURE: dict[str, Any] = {"name": "toy", "mean": 60.0, "sd": 0.5, "n": 3, "tolerance": 1.0}
RECORD: dict[str, Any] = {
    "claim": "A toy learns shapes.",
    "command": "python train.py data=shapes trainer.max_epochs=2",
    "seeds": [0, 1],
    "data": {"label": "shapes"},
    "protocol": {"train": 9000, "val": 1000, "test": 2000, "selection": "hold-out"},
    "settings": {"trainer.max_epochs": 2},
    "hardware": None,
    "commit": None,
    "source": {"by": "ours"},
    "figures": [FIGURE],
}


def write(folder: Path, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "claim.yaml").write_bytes(to_yaml(RECORD | changes))
    return folder


def refuse(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        read_claim(folder)
    return str(error.value)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.folder.name)
def test_the_runs_of_a_claim_compose_with_the_settings_it_was_measured_with(claim: Claim) -> None:
    typed = ["data.root=photos"] if "data.root=DIR" in claim.overrides else []
    arms = plan(claim, typed, claim.record["seeds"])  # refuses a recipe or a key that does not exist
    changed = [find_deviations(claim, arm.figures[0], arm, arm.planned()) for arm in arms]
    assert not any(changed), "the recipe is another than the one that was measured: measure it anew"
    assert len({arm.folder for arm in arms}) == len(arms)


def test_every_measured_recipe_and_every_published_one_has_a_claim() -> None:
    studies = {claim.folder.name for claim in CLAIMS}
    assert studies >= {"cpu_quick", "patch_depth", "techniques", "ten_minutes", "quickstart"}
    published = {claim.folder.name for claim in CLAIMS if "protocol" in claim.record["source"]}
    scored = {
        file.stem
        for file in (ROOT / "conf/experiment").glob("*.yaml")
        for line in file.read_text().splitlines()
        if line.startswith("# Score:") and "ours not yet measured" in line
    }
    assert published >= scored


def test_the_readme_has_the_figures_of_the_claims(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text()
    written = readme.partition(BEGIN)[2].partition(END)[0]
    assert written.strip("\n") == make_table(CLAIMS, ROOT)
    assert len(readme.splitlines()) < 200


def test_the_table_has_what_asks_for_a_place_and_was_measured(tmp_path: Path) -> None:
    study = write(
        tmp_path / "toy",
        hardware="2 cores",
        figures=[
            FIGURE | {"result": True, "seconds": 61.4},
            FIGURE | {"name": "one", "sd": None, "n": 1, "result": True},
            FIGURE | {"name": "hidden"},
            {"name": "open", "mean": None, "result": True},
        ],
    )
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert write_table(page, [read_claim(study)])
    assert page.read_text() == (
        f"before\n{BEGIN}\n| recipe | data | hardware | time | test accuracy |\n|---|---|---|---|---|\n"
        "| [`toy`](toy) | shapes | 2 cores | 1 min 1 s | 60.00 ± 0.50 % (n = 3) |\n"
        f"| [`one`](toy) | shapes | 2 cores | not recorded | 60.00 % (n = 1) |\n{END}\nafter\n"
    )
    assert not write_table(page, [read_claim(study)])
    page.write_text("no markers")
    with pytest.raises(UserError, match="expected the lines"):
        write_table(page, [])


def test_times_are_told_in_the_units_that_matter() -> None:
    assert describe_time(9.4) == "9 s"
    assert describe_time(1541) == "25 min 41 s"
    assert describe_time(8040) == "2 h 14 min"
    assert describe_time(3600) == "1 h"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"figurs": []}, "figurs: no such key (did you mean 'figures'?)"),
        (
            {"figures": [FIGURE | {"tolerence": 1}]},
            "figures.0.tolerence: no such key (did you mean 'tolerance'?)",
        ),
        ({"seeds": "0,1"}, "seeds: missing, or not of its type"),
        ({"seeds": [1, 1]}, "seeds: expected different whole numbers"),
        ({"command": "python study.py"}, "command: expected python train.py"),
        ({"command": "python train.py 'data=shapes"}, "command: expected python train.py"),
        ({"command": "python train.py seed=3"}, "without seeds"),
        ({"protocol": RECORD["protocol"] | {"selection": "best"}}, "selection: expected hold-out"),
        ({"figures": []}, "figures: expected one or more"),
        ({"figures": [FIGURE, FIGURE]}, "different names"),
        ({"figures": [FIGURE | {"mean": 0.6, "n": None, "sd": None}]}, "n: expected the number of seeds"),
        ({"figures": [FIGURE | {"mean": 601}]}, "mean: expected percent"),
        ({"figures": [FIGURE | {"sd": None}]}, "sd: expected a deviation where n is 2 or more"),
        ({"figures": [FIGURE | {"tolerance": None}]}, "tolerance: expected points"),
        ({"figures": [FIGURE | {"metric": "test/loss"}]}, "metric: expected val/accuracy or test/accuracy"),
        ({"figures": [FIGURE | {"published": 61.0}]}, "source: a published figure needs the protocol"),
    ],
)
def test_a_mistake_in_a_claim_is_one_sentence(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    assert said in refuse(write(tmp_path / "toy", **changes))


def test_a_claim_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    write(tmp_path / "one")
    assert f"name one of {tmp_path / 'one'}" in refuse(tmp_path)
    assert f"did you mean '{tmp_path / 'one'}'?" in refuse(tmp_path / "onee")


def test_what_somebody_else_wrote_into_a_claim_is_text_within_bounds(tmp_path: Path) -> None:
    study = write(tmp_path / "toy", claim="clear\x1b[2J\nthe screen")
    assert read_claim(study).record["claim"] == "clear\N{REPLACEMENT CHARACTER}[2J the screen"
    (study / "claim.yaml").write_text("a: &a [1]\nb: *a\n")
    assert "refers to an anchor" in refuse(study)
    (study / "claim.yaml").write_text("a word")
    assert "the file: missing, or not of its type" in refuse(study)
