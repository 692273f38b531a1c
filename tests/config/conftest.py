"""Compositions of conf/, and copies of it to put files of one's own into."""

import shutil
from pathlib import Path
from typing import Any

import hydra
import pytest
from omegaconf import DictConfig

from tests.config.helpers import Refuse, changed
from vitlab.config import check, compose, to_plain
from vitlab.config import composer as composition
from vitlab.core.errors import UserError


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
def refused_values(default: dict[str, Any]) -> Refuse:
    """Put values into the default config without the cost of a composition, and check it."""

    def refuse(values: dict[str, Any]) -> str:
        with pytest.raises(UserError) as caught:
            check(changed(default, values))
        return str(caught.value)

    return refuse


@pytest.fixture
def own_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of conf/ to put files of one's own into."""
    folder = tmp_path / "conf"
    shutil.copytree(composition.CONF, folder)
    monkeypatch.setattr(composition, "CONF", folder)
    return folder
