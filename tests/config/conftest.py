"""Compositions of conf/, and copies of it to put files of one's own into."""

import shutil
from pathlib import Path
from typing import Any

import hydra
import pytest
from omegaconf import DictConfig

from tests.config.helpers import Check, changed
from vitlab.config import compose, to_plain
from vitlab.config import composer as composition
from vitlab.config.checks import find_problems


@pytest.fixture(autouse=True)
def _compose_each_once(monkeypatch: pytest.MonkeyPatch, _known: dict[tuple[str, ...], DictConfig]) -> None:
    """Share compositions of conf/ between the tests of one file: each takes 0.1 s."""
    conf, compose_by_hydra = composition.CONF, hydra.compose

    def remembered(root: str, overrides: list[str], **options: Any) -> DictConfig:
        if conf != composition.CONF:
            return compose_by_hydra(root, overrides, **options)
        if (key := (root, *overrides)) not in _known:
            _known[key] = compose_by_hydra(root, overrides, **options)
        return _known[key]

    monkeypatch.setattr(hydra, "compose", remembered)


@pytest.fixture(scope="module")
def _known() -> dict[tuple[str, ...], DictConfig]:
    return {}


@pytest.fixture(scope="module")
def default() -> dict[str, Any]:
    return to_plain(compose())


@pytest.fixture
def problems_with(default: dict[str, Any]) -> Check:
    """Put values into the default config without the cost of a composition, and check it."""
    return lambda values: find_problems(changed(default, values), default)


@pytest.fixture
def own_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of conf/ to put files of one's own into."""
    folder = tmp_path / "conf"
    shutil.copytree(composition.CONF, folder)
    monkeypatch.setattr(composition, "CONF", folder)
    return folder
