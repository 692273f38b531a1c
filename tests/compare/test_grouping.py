"""What belongs together, what it is called, and what it is held against."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.compare.folders import make_grid, make_run
from vitlab.compare.groups import Comparison, count_states, make_comparison, row
from vitlab.compare.read import read_runs
from vitlab.core.errors import UserError


def compared(folder: Path, *baseline: str) -> Comparison:
    return make_comparison(read_runs([folder]), baseline, "study")


def names(comparison: Comparison) -> Sequence[str]:
    return [group.name for group in comparison.groups]


def test_runs_that_differ_in_the_seed_alone_are_one_group(tmp_path: Path) -> None:
    for seed in (1, 2):
        make_run(
            tmp_path / str(seed),
            f"seed={seed}",
            f"study=s{seed}",
            f"data.root=somewhere/{seed}",
            f"data.num_workers={seed}",
            f"logger.tensorboard={seed == 1}",
            f"trainer.limit_test_batches={'0' if seed == 1 else 'null'}",
            val=0.5 + 0.1 * seed,
        )
    (group,) = compared(tmp_path).groups
    assert group.name == "vit_tiny"
    assert group.by_seed("val") == pytest.approx({"1": 0.6, "2": 0.7})


def test_one_and_one_point_nought_are_the_same_and_a_different_value_is_not(tmp_path: Path) -> None:
    for name, rate in (("a", "1"), ("b", "1.0"), ("c", "1.001")):
        make_run(tmp_path / name, f"optimizer.lr={rate}", f"seed={ord(name)}")
    assert sorted(len(group.runs) for group in compared(tmp_path).groups) == [1, 2]


def test_groups_are_named_by_what_was_swept(tmp_path: Path) -> None:
    make_grid(tmp_path, patches=(2, 4), depths=(4, 6), seeds=(1, 2))
    comparison = compared(tmp_path)
    assert comparison.keys == {"model.patch_size": "patch_size", "model.depth": "depth"}
    assert sorted(names(comparison)) == [f"patch_size={p} depth={d}" for p in (2, 4) for d in (4, 6)]


def test_a_recipe_names_no_more_than_tells_groups_apart(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "model=vit_tiny")
    make_run(tmp_path / "b", "model=resnet18", "model._target_=vitlab.models.resnet.ResNet", "model.dim=7")
    for folder in ("a", "b"):  # as if nobody had typed it
        text = (tmp_path / folder / "config.yaml").read_text()
        (tmp_path / folder / "config.yaml").write_text(text.split("overrides:")[0])
    assert sorted(names(compared(tmp_path))) == ["model=resnet18", "model=vit_tiny"]


def test_of_many_keys_only_what_is_not_usual_is_named(tmp_path: Path) -> None:
    arms = ("", "model.pool=cls", "optimizer.lr=0.01", "model.dropout=0.1", "task.label_smoothing=0.0")
    for number, override in enumerate(arms):
        make_run(tmp_path / str(number), *filter(None, [override]))
    assert sorted(names(compared(tmp_path))) == [
        *("base", "dropout=0.1", "label_smoothing=0", "lr=0.01", "pool=cls"),
    ]


def test_only_finished_runs_count(tmp_path: Path) -> None:
    for seed, val, status in ((1, 0.6, "finished"), (2, 0.1, "failed"), (3, 0.1, "interrupted")):
        make_run(tmp_path / str(seed), f"seed={seed}", val=val, status=status)
    comparison = compared(tmp_path)
    (group,) = comparison.groups
    assert group.by_seed("val") == {"1": 0.6}
    assert count_states(group.runs) == "1 finished, 1 interrupted, 1 failed"
    assert any("the mean is of what finished" in note for note in comparison.notes)


def test_a_seed_that_was_run_twice_counts_once(tmp_path: Path) -> None:
    for name, seed, val in (("a", 1, 0.5), ("b", 1, 0.7), ("c", 2, 0.8)):
        make_run(tmp_path / name, f"seed={seed}", val=val)
    comparison = compared(tmp_path)
    assert comparison.groups[0].by_seed("val") == pytest.approx({"1": 0.6, "2": 0.8})
    assert any("seed 1 was run 2 times" in note for note in comparison.notes)


def test_the_order_is_that_of_the_hold_out_whatever_the_test_says(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "model.depth=1", val=0.5, test=0.9)
    make_run(tmp_path / "b", "model.depth=2", val=0.6, test=0.1)
    make_run(tmp_path / "c", "model.depth=3", val=None, test=0.99)
    assert names(compared(tmp_path)) == ["depth=2", "depth=1", "depth=3"]


def test_differences_are_to_the_baseline_seed_by_seed(tmp_path: Path) -> None:
    for seed, one, other in ((1, 0.5, 0.52), (2, 0.6, 0.63), (3, 0.4, None)):
        make_run(tmp_path / f"a{seed}", "model.depth=4", f"seed={seed}", val=one, test=one)
        if other:
            make_run(tmp_path / f"b{seed}", "model.depth=6", f"seed={seed}", val=other, test=one)
    comparison = compared(tmp_path, "depth=4")
    by_name = {group.name: row(comparison, group) for group in comparison.groups}
    six = by_name["depth=6"]
    assert six["val_difference_mean"] == pytest.approx(0.025)
    assert six["val_difference_pairs"] == 2
    assert six["val_difference_low"] == pytest.approx(0.025 - 12.7062 * 0.005, rel=1e-3)
    assert "test_difference_mean" not in six
    assert by_name["depth=4"]["val_difference_mean"] is None


@pytest.mark.parametrize(
    "said", [["patch_size=4", "depth=6"], ["patch_size=4 depth=6"], ["model.depth=6", "patch_size=4"]]
)
def test_a_baseline_is_named_or_described(tmp_path: Path, said: list[str]) -> None:
    make_grid(tmp_path, patches=(2, 4), depths=(4, 6), seeds=(1,))
    base = compared(tmp_path, *said).baseline
    assert base is not None
    assert base.name == "patch_size=4 depth=6"


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("depth=4", "is 2 groups: "),
        ("depth=5", "is none of "),
        ("dpth=4", r"did you mean 'depth'\?"),
        ("best", "expected key=value or the name of a group"),
    ],
)
def test_a_baseline_that_is_not_one_group_is_refused(tmp_path: Path, said: str, answer: str) -> None:
    make_grid(tmp_path, patches=(2, 4), depths=(4, 6), seeds=(1,))
    with pytest.raises(UserError, match=answer):
        compared(tmp_path, said)


@pytest.mark.parametrize(
    "other",
    [
        ["data.kind=image_folder", "data.root=x/cifar10-jpeg"],
        ["data.split_seed=1"],
        ["data.val_size=1000"],
        ["trainer.limit_val_batches=3"],
    ],
)
def test_other_images_are_labelled_and_not_paired(tmp_path: Path, other: list[str]) -> None:
    make_run(tmp_path / "a", "seed=1", val=0.5)
    make_run(tmp_path / "b", "seed=1", *other, val=0.6)
    (group,) = [g for g in compared(tmp_path).groups if g.runs[0].name == "a"]
    comparison = compared(tmp_path, group.name)
    assert len({g.data for g in comparison.groups}) == 2
    assert not any(g.difference for g in comparison.groups)
    assert any("different images" in note for note in comparison.notes)


def test_the_same_folder_of_images_elsewhere_is_the_same_data_unless_it_holds_others(tmp_path: Path) -> None:
    sizes = {"train": 900, "val": 100, "test": 50}
    recorded = {"data": sizes}
    for name, root, summary in (
        ("a", "here/pets/", recorded),
        ("b", "b/pets", {}),
        ("c", "/c/pets", recorded),
    ):
        seed = f"seed={ord(name)}"
        make_run(tmp_path / name, seed, "data.kind=image_folder", f"data.root={root}", summary=summary)
    assert len(compared(tmp_path).groups) == 1
    more = {"data": sizes | {"train": 1900}}
    make_run(tmp_path / "d", "data.kind=image_folder", "data.root=/y/pets", summary=more)
    assert {group.data for group in compared(tmp_path).groups if group.runs[0].sizes} == {
        "pets images=900 / 100 / 50",
        "pets images=1,900 / 100 / 50",
    }


def test_other_code_and_other_machines_are_noted(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "seed=1", summary={"commit": "a" * 40, "device": "one"})
    make_run(tmp_path / "b", "seed=2", summary={"commit": "b" * 40 + "-dirty", "device": "other"})
    notes = " ".join(compared(tmp_path).notes)
    assert "aaaaaaaa; bbbbbbbb-dirty" in notes
    assert "images/s do not compare: one; other" in notes
