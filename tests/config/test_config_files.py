"""Every file in conf/ composes and passes, found by globbing: a new one needs no edit here."""

import inspect
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, get_args

import pytest
from omegaconf import OmegaConf

from vitlab.config import CONF, OPEN_NODES, check_targets, compose, keys, preflight, to_plain
from vitlab.config.schema import RULES, rule
from vitlab.core.data_protocol import DEFAULT_VAL_SIZE, NUM_CLASSES

ROOTS = sorted(CONF.glob("*.yaml"))  # one a verb, and the augmentations
FILES = sorted(CONF.glob("*/**/*.yaml"))
NAMES = [file.relative_to(CONF).with_suffix("").as_posix() for file in FILES]
# What a data set on the user's own disk cannot know.
GIVEN = {
    "data/image_folder": ["data.root=photos"],
    "data/image_list": ["data.root=list.csv"],
    "task/distill": ["task.teacher=outputs/runs/one"],
    "experiment/deit_distilled": ["task.teacher=outputs/runs/one"],
}


def file_leaves(file: Path) -> Iterator[tuple[str, Any]]:
    text = file.read_text()
    at = "" if "@package _global_" in text else ".".join(file.parent.relative_to(CONF).parts)
    at = "augment" if file.stem == "augment_ops" else at
    node = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    yield from keys.leaves({key: value for key, value in node.items() if key != "defaults"}, at)


ALL_LEAVES = {
    key: value
    for file in [*ROOTS, *FILES]
    for key, value in file_leaves(file)
    if not key.startswith("hydra.")
}


@pytest.mark.parametrize("name", NAMES)
def test_every_file_composes_and_passes(name: str) -> None:
    group, _, option = name.rpartition("/")
    (cfg,) = preflight([f"{group}={option}", *GIVEN.get(name, [])])
    check_targets(to_plain(cfg))


def test_every_group_of_the_design_has_a_choice() -> None:
    groups = {name.rpartition("/")[0] for name in NAMES}
    assert groups == {
        *("model", "model/tokenizer", "model/attention", "optimizer", "scheduler", "augment", "data"),
        *("trainer", "task", "callbacks", "logger", "experiment", "sweep", "hydra/launcher"),
    }


def test_every_null_has_a_rule() -> None:
    nulls = {
        key
        for file in [*ROOTS, *FILES]
        for key, value in file_leaves(file)
        if value is None and not key.startswith(("hydra.", *OPEN_NODES))
    }
    assert nulls
    assert [key for key in sorted(nulls) if rule(key) is None] == []


def test_every_rule_is_for_a_key_that_is_there() -> None:
    # A list and a node such as {mean: …, std: …} are one value to their rule.
    there = {*ALL_LEAVES, *(key.rpartition(".")[0] for key in ALL_LEAVES)}
    assert [name for name in RULES if not any(fnmatchcase(key, name) for key in there)] == []


def test_the_trainer_has_all_of_lightnings_arguments() -> None:
    from lightning.pytorch import Trainer

    signature = inspect.signature(Trainer.__init__).parameters
    expected = {*signature} - {"self", "logger", "callbacks", "plugins", "model_registry"}
    ours = to_plain(compose())["trainer"]
    assert {*ours} == expected
    # What is not chosen here for a reason is Lightning's own.
    assert {key for key, value in ours.items() if value != signature[key].default} == {
        *("devices", "precision", "max_epochs", "gradient_clip_val", "gradient_clip_algorithm"),
        *("num_sanity_val_steps", "log_every_n_steps", "enable_model_summary"),
        "use_distributed_sampler",
    }
    Trainer(**{**ours, "precision": "32-true", "accelerator": "cpu"}, logger=False)


def test_every_precision_of_lightning_is_known() -> None:
    from lightning.fabric.plugins.precision import precision

    kind = RULES["trainer.precision"]
    for alias in get_args(precision._PRECISION_INPUT):
        for name in get_args(alias):
            assert kind.accepts(name)


def test_the_words_of_the_rules_are_those_of_the_code() -> None:
    from vitlab.augment.policies import POLICIES, SPACES
    from vitlab.models.initialization import INITS
    from vitlab.models.pooling import POOLINGS
    from vitlab.models.positions import POSITIONS
    from vitlab.optim.schedulers import SHAPES

    for key, words in (
        ("model.pool", POOLINGS),
        ("model.position", POSITIONS),
        ("model.init", INITS),
        ("scheduler.shape", SHAPES),
        ("augment.*.policy", POLICIES),
        ("augment.*.space", SPACES),
    ):
        assert RULES[key].says == " or ".join(words)


def test_what_is_known_of_the_data_is_so() -> None:

    for name, number in NUM_CLASSES.items():
        assert to_plain(compose([f"data={name}"]))["data"]["num_classes"] == number
    from vitlab.data import datasets

    shapes = datasets.build(to_plain(compose(["data=shapes"]))["data"])
    assert len(shapes.classes) == NUM_CLASSES["shapes"]
    assert datasets.describe(shapes, None).num_val == DEFAULT_VAL_SIZE * shapes.sizes["train"]
