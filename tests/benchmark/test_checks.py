"""What cannot be compared is refused at once, in one sentence, before torch is imported."""

from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.conftest import answer_without_torch
from vitlab.benchmark.checks import check_benchmark
from vitlab.config import CONF, preflight, to_plain
from vitlab.core.errors import UserError


def config(*overrides: str) -> dict[str, Any]:
    (cfg,) = preflight(overrides, root="benchmark")
    return to_plain(cfg) | {"overrides": list(overrides)}


def test_the_default_is_the_setting_that_tutorials_share() -> None:
    plain = config()
    check_benchmark(plain)
    assert [plain["model"][key] for key in ("patch_size", "dim", "depth")] == [4, 192, 6]
    assert plain["data"]["batch_size"] == 128


def test_the_groups_and_keys_are_those_of_train() -> None:
    train, benchmark = (OmegaConf.load(CONF / f"{name}.yaml") for name in ("train", "benchmark"))
    groups = [
        [key for entry in root.defaults if entry != "_self_" for key in entry if key != "sweep"]
        for root in (train, benchmark)
    ]
    assert groups[0] == groups[1]
    assert {*train} - {"resume"} == {*benchmark} - {"benchmark"}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("trainer.accumulate_grad_batches=2", "accumulate_grad_batches=2: .* Leave it at 1"),
        ("trainer.max_time=00:00:10:00", "Leave it at null"),
        ("trainer=ddp", "strategy=ddp"),
        ("task=distill task.teacher=x", "has no teacher"),
        ("trainer.precision=64-true", "precision=64-true"),
        ("benchmark.layers=[stp]", "each step or input or both"),
        ("benchmark.layer=[step]", "did you mean benchmark.layers"),
        ("benchmark.seconds=0", "above 0"),
    ],
)
def test_refused(overrides: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_benchmark(config(*overrides.split()))


@pytest.mark.parametrize("overrides", ["model=resnet18", "augment=three_augment", "model.drop_key=0.1"])
def test_any_model_and_augmentation_can_be_measured(overrides: str) -> None:
    check_benchmark(config(overrides))


def test_mistakes_and_help_answer_without_torch() -> None:
    for arguments, said in (
        (["--help"], "Parts"),
        (["trainer=ddp"], "strategy=ddp"),
        (["-m", "seed=0,1"], "leave out -m"),
        (["resume=outputs/runs/x"], "leave out -m and resume="),
    ):
        ended = answer_without_torch("benchmark.py", *arguments)
        assert said in ended.stdout + ended.stderr
        assert ended.stderr.count("error: ") <= 1
        assert "Traceback" not in ended.stderr
