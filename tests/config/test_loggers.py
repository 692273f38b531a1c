"""Which trackers a command line asks for: one, several, and none that is not there."""

import importlib.util
from pathlib import Path

import pytest

from tests.config.helpers import recipe, refused
from vitlab.config import combinations
from vitlab.core.errors import UserError


def test_several_are_chosen_as_a_list() -> None:
    (job,) = combinations(["logger=[tensorboard,mlflow]", "experiment=quickstart"])
    assert job.plain["logger"]["tensorboard"] is True
    assert job.plain["logger"]["mlflow"]["tracking_uri"] == "sqlite:///outputs/mlflow.db"
    assert job.record["choices"]["logger"] == "[tensorboard,mlflow]"


def test_one_replaces_the_default() -> None:
    (job,) = combinations(["logger=wandb", "logger.wandb.checkpoints=true"])
    assert job.plain["logger"] == {"wandb": {"mode": "offline", "checkpoints": True}}
    assert job.choices["logger"] == "wandb"


def test_lists_are_swept() -> None:
    jobs = combinations(["logger=[csv,mlflow],[csv]", "seed=1,2"], True)
    assert [[*job.plain["logger"]] for job in jobs] == [["csv", "mlflow"]] * 2 + [["csv"]] * 2


def test_a_recipe_may_choose_several(own_conf: Path) -> None:
    recipe(own_conf, "watched", "defaults:\n  - override /logger: [csv, wandb]")
    (job,) = combinations(["experiment=watched"])
    assert job.choices["logger"] == "[csv,wandb]"
    assert not job.problems


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("logger=[tensorbord,csv]", "logger=tensorbord: did you mean tensorboard?"),
        ("logger=[csv,none]", "logger=[csv,none]: none and another one are chosen"),
        ("logger=[]", "logger=[]: expected one option; the options of logger are csv, mlflow, none"),
        ("logger=tensorboard,mlflow", "or write 'logger=[tensorboard,mlflow]' to have them at once"),
        ("logger.mlflow.tracking_uri=http://a", "did you mean logger=mlflow?"),
        ("logger.mlflow.chekpoint=true", "did you mean logger=mlflow?"),
        ("logger=mlflow logger.mlflow.chekpoint=true", "did you mean logger.mlflow.checkpoints?"),
        ("logger=mlflow logger.mlflow.checkpoint=true", "did you mean logger.mlflow.checkpoints?"),
    ],
)
def test_what_cannot_be_chosen_is_answered(typed: str, said: str) -> None:
    assert said in refused(*typed.split())


def test_one_that_is_not_installed_is_answered_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else real(name))
    assert refused("logger=[csv,wandb]") == (
        "logger=wandb needs wandb, which is not installed: .venv/bin/pip install -e '.[wandb]'"
    )


def test_a_benchmark_tells_no_tracker_of_its_runs() -> None:
    with pytest.raises(UserError, match="throws its runs away: leave mlflow out of logger"):
        combinations(["logger=mlflow"], root="benchmark")
