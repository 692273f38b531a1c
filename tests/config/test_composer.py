"""Configs are composed from conf/ and a recipe, quickly, and Hydra is left as it was."""

import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from tests.config.helpers import recipe, refused
from vitlab.config import compose, preflight
from vitlab.config import composer as composition
from vitlab.config.show import show


def test_the_plain_command_line_is_one_checked_config() -> None:
    (cfg,) = preflight([])
    assert cfg.model.patch_size == 4
    assert "hydra" not in cfg


def test_hydra_keys_are_left_to_hydra() -> None:
    overrides = ["hydra.run.dir=/somewhere", "hydra.sweep.dir=/elsewhere", "hydra/launcher=basic"]
    preflight(overrides)
    assert compose(overrides, with_hydra=True).hydra.run.dir == "/somewhere"


def test_run_folders_are_named_by_study_and_time_once_a_composition() -> None:
    cfg = compose(["study=patch"], with_hydra=True)
    place = cfg.hydra.run.dir
    assert place.startswith("outputs/patch/2")
    assert place == cfg.hydra.run.dir == cfg.hydra.sweep.dir
    assert len(place.rpartition("-")[2]) == 3  # milliseconds


# Recipes


def test_a_recipe_wins_over_the_groups_and_the_command_line_over_the_recipe(own_conf: Path) -> None:
    recipe(
        own_conf,
        "mine",
        "defaults:\n  - override /model: vit_tiny\nmodel: {patch_size: 8, depth: 3}\nseed: 5",
    )
    (cfg,) = preflight(["experiment=mine", "model.depth=2"])
    assert (cfg.model.dim, cfg.model.patch_size, cfg.model.depth, cfg.seed) == (192, 8, 2, 5)


def test_a_recipe_is_held_against_the_files_that_it_changes(own_conf: Path) -> None:
    recipe(own_conf, "bad", "model: {patchsize: 8, qkv_bias: 3}\ntrainer: {max_epochs: abc}")
    said = refused("experiment=bad")
    assert "model.patchsize: no such key; did you mean model.patch_size?" in said
    assert "model.qkv_bias=3: expected true or false" in said
    assert said.count("(set by experiment=bad)") == 3
    typed = refused("experiment=bad", "trainer.max_epochs=xyz")
    assert "trainer.max_epochs=xyz: expected" in typed
    assert typed.count("(set by experiment=bad)") == 2


def test_a_recipe_for_one_model_does_not_go_with_another(own_conf: Path) -> None:
    recipe(own_conf, "mine", "model: {patch_size: 8}")
    said = refused("experiment=mine", "model=resnet18")
    assert "model.patch_size: no such key" in said
    assert "experiment=mine" in said


def test_a_recipe_that_names_nothing_is_refused(own_conf: Path) -> None:
    recipe(own_conf, "lost", "defaults:\n  - override /model: vit_smal")
    assert "did you mean vit_small?" in refused("experiment=lost")


def test_a_recipe_that_is_no_yaml_is_named(own_conf: Path) -> None:
    recipe(own_conf, "torn", "model: {depth: [}")
    said = refused("experiment=torn")
    assert "torn.yaml" in said
    assert "line 2" in said


def test_numbers_in_scientific_notation_are_numbers_in_files_too(own_conf: Path) -> None:
    recipe(own_conf, "rate", "optimizer: {lr: 3e-4}")
    (cfg,) = preflight(["experiment=rate"])
    assert cfg.optimizer.lr == 0.0003


def test_a_value_that_must_be_given_is_asked_for(own_conf: Path) -> None:
    text = (own_conf / "optimizer" / "sgd.yaml").read_text()
    (own_conf / "optimizer" / "asks.yaml").write_text(text.replace("lr: 0.1", "lr: ???"))
    assert "optimizer.lr has no value yet: add optimizer.lr=" in refused("optimizer=asks")
    preflight(["optimizer=asks", "optimizer.lr=1e-3"])


# The place in the process


def test_hydra_is_left_as_it_was() -> None:
    preflight([])
    refused("model=vit_smal")
    assert not GlobalHydra.instance().is_initialized()


def test_resolvers_may_be_registered_twice() -> None:
    composition.register_resolvers()
    composition.register_resolvers()


def test_without_conf_the_way_to_install_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composition, "CONF", tmp_path)
    assert "pip install -e ." in refused()


TYPO = """
import resource, sys
from vitlab.config import preflight
from vitlab.core.errors import UserError
try:
    preflight(sys.argv[1:], False)
except UserError as error:
    print(error)
heavy = {"torch", "lightning", "timm", "numpy", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
usage = resource.getrusage(resource.RUSAGE_SELF)
assert usage.ru_utime + usage.ru_stime < 1.0, usage
"""


@pytest.mark.parametrize("typed", ["model=vit_smal", "patch=8", "model.patch_size=5", "seed=0"])
def test_the_answer_takes_less_than_a_second_and_no_torch(typed: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", TYPO, typed], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_fits_a_screen_and_names_every_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit):
        show(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 40
    for group in ("model", "optimizer", "scheduler", "augment", "data", "trainer", "experiment"):
        assert any(line.strip().startswith(f"{group}:") for line in lines)
    assert not list(tmp_path.iterdir())
