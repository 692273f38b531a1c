"""What the tests of hostile files share: ways to damage a run, and verbs that are given it."""

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vitlab.core.checkpoint import checksum_file
from vitlab.core.cli import finish

Damage = Callable[[Path], object]


class Payload:
    """What a pickle runs as it is read."""

    def __init__(self, folder: Path) -> None:
        self.command = f"touch {folder}/owned"

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


class Answers:
    """Runs verbs as a person does, in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, verb: str, *words: object) -> tuple[int, str]:
        """Return exit status and what was printed; an exception that is no plain sentence passes through."""
        self.monkeypatch.setattr(sys, "argv", [f"{verb}.py", *map(str, words)])
        self.capsys.readouterr()
        code = finish(importlib.import_module(verb).main)
        return code, "".join(self.capsys.readouterr())


def edit(**values: Any) -> Damage:
    """Replace what stands at dotted keys, written with __ for a point; an exception's class deletes it."""

    def damage(path: Path) -> None:
        content = torch.load(path, weights_only=True)
        for key, value in values.items():
            *nodes, last = key.split("__")
            node = content
            for part in nodes:
                node = node[part]
            if value is KeyError:
                del node[last.replace("lightning", "pytorch-lightning_version")]
            else:
                node[last.replace("lightning", "pytorch-lightning_version")] = value
        torch.save(content, path)

    return damage


def put(folder: Path, damage: Damage) -> None:
    """Damage the checkpoints of a run, with no record of what they were."""
    for path in (folder / "checkpoints").glob("*.ckpt"):
        damage(path)
        checksum_file(path).unlink()
