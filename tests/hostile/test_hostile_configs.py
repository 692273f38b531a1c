"""A config.yaml that a person is handed."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.hostile.helpers import Answers, Damage
from vitlab.core.untrusted import LARGEST_YAML


def append(text: str) -> Damage:
    return lambda path: path.write_text(path.read_text() + text)


def change(key: str, value: Any) -> Damage:
    def edit(path: Path) -> None:
        config = yaml.safe_load(path.read_text())
        *nodes, last = key.split(".")
        node = config
        for part in nodes:
            node = node[part]
        node[last] = value
        path.write_text(yaml.safe_dump(config))

    return edit


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def to_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def to_zeros(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def bomb(line: str) -> str:
    """Return anchors of which each stands for nine of the one before."""
    lines = (f"b{place}: &b{place} {line.format(','.join([f'*b{place - 1}'] * 9))}" for place in range(1, 12))
    return "\n".join(["\nb0: &b0 {x: [y]}", *lines])


CONFIGS: dict[str, tuple[Damage, str]] = {
    "a tag that calls os.system": (
        append("\na: !!python/object/apply:os.system [touch owned]"),
        "constructor",
    ),
    "a billion laughs": (append(bomb("[{}]")), "refers to an anchor"),
    "a billion merged keys": (append(bomb("{{<<: [{}]}}")), "refers to an anchor"),
    "a mapping within itself": (append("\na: &a {b: *a}"), "refers to an anchor"),
    "a hundred thousand brackets": (append("\na: " + "[" * 100_000), "nested too deeply"),
    "dashes that overflow libyaml's stack": (lambda p: p.write_text("- " * 50_000), "nested too deeply"),
    "more than any config": (append("\na: " + "x" * LARGEST_YAML), "larger than"),
    "cut in half": (cut, "config.yaml "),
    "emptied": (lambda path: path.write_text(""), "empty"),
    "not UTF-8": (lambda path: path.write_bytes(b"\xff\x00"), "config.yaml"),
    "an end in the middle of a list": (append("\na: [1,"), "line "),
}


@pytest.mark.parametrize(("damage", "said"), CONFIGS.values(), ids=CONFIGS)
def test_a_hostile_config_is_one_sentence_to_resume_and_a_note_to_compare(
    answer: Answers, unfinished: Path, tmp_path: Path, damage: Damage, said: str
) -> None:
    sound = shutil.copytree(unfinished, tmp_path / "study" / "sound")
    damage(unfinished / "config.yaml")
    for verb in ("train", "evaluate"):
        code, text = answer(verb, f"resume={unfinished}" if verb == "train" else unfinished)
        assert (code, text.count("\n")) == (1, 1)
        assert said in text
        assert not (unfinished / "evaluation").exists()
    shutil.move(unfinished, tmp_path / "study")
    code, text = answer("compare", tmp_path / "study")
    assert code == 0
    assert "broken: 1 of 2 runs" in text
    assert sound.name in text


REFUSED: dict[str, tuple[Damage, str]] = {
    "code that is not ours": (change("model._target_", "os.system"), "model._target_=os.system"),
    "a part of code that is not ours": (
        change("model.tokenizer._target_", "torch.hub.load"),
        "torch.hub.load",
    ),
    "a section that is a list": (change("trainer", [1]), "trainer: expected keys below it"),
    "a number that is a word": (change("trainer.devices", {"a": 1}), "trainer.devices="),
    "what was typed as a number": (change("overrides", 7), "overrides: expected a list of texts"),
    "a network for no machine": (change("model.depth", 10**9), "model.depth=1000000000"),
    "infinity": (change("data.normalization", {"mean": [float("inf")], "std": [1.0]}), "data.normalization="),
    "a folder": (to_folder, "config.yaml"),
    "a pipe, which has no end": (to_pipe, "config.yaml"),
    "a device, which has no end": (to_zeros, "config.yaml"),
}


@pytest.mark.parametrize(("damage", "said"), REFUSED.values(), ids=REFUSED)
def test_a_config_of_another_form_is_one_sentence(
    answer: Answers, unfinished: Path, damage: Damage, said: str
) -> None:
    damage(unfinished / "config.yaml")
    code, text = answer("train", f"resume={unfinished}")
    assert code == 1
    assert said in text
    assert "Traceback" not in text
    assert answer("compare", unfinished)[0] in (0, 1)  # and it comes to an end


def test_a_value_of_the_config_looks_nothing_up(answer: Answers, unfinished: Path) -> None:
    shutil.rmtree(unfinished / "checkpoints")
    (unfinished / "metrics.csv").unlink()
    change("model.init", "${oc.env:HOME}")(unfinished / "config.yaml")
    code, text = answer("train", f"resume={unfinished}")
    assert code == 1
    assert os.environ["HOME"] not in text.replace(str(unfinished), "")
