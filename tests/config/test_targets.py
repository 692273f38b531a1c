"""Code that a config may name."""

from pathlib import Path
from typing import Any

import pytest

from vitlab.config import check_targets, targets
from vitlab.core.errors import UserError


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "torch.load",
        "torch.hub.load",
        "torch.optim.lr_scheduler.os.system",
        "torch.optim.SGD.zero_grad",
        "vitlab.training.run.run",
        "vitlab.models.vit.torch.hub.load",
        "vitlab.models.vit.torch",
        "vitlab.models.vit._secret",
        "vitlab.models.../../x",
        "vitlab.models.",
        "vitlab.data.datasets.Path",
        "vitlabx.models.vit.ViT",
        3,
        None,
    ],
)
def test_a_config_names_no_code_but_ours(target: Any) -> None:
    with pytest.raises(UserError, match=r"model\.0\._target_="):
        check_targets({"model": [{"_target_": target}]})


@pytest.mark.parametrize(
    "target",
    [
        "vitlab.models.vit.ViT",
        "vitlab.optim.adamw",
        "vitlab.optim.schedulers.cosine",
        "vitlab.tasks.losses.soft_cross_entropy",
        "torch.optim.AdamW",
    ],
)
def test_our_own_code_and_torchs_optimizers_pass(target: str) -> None:
    check_targets({"part": {"_target_": target}})


def test_a_mistyped_target_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"did you mean vitlab\.models\.vit\.ViT\?"):
        check_targets({"model": {"_target_": "vitlab.models.vit.Vit"}})


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the models in a package of the test's own."""
    monkeypatch.setattr(targets, "_PACKAGE", tmp_path)
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def test_what_a_module_imports_is_not_its_own(models: Path) -> None:
    package = "from os import system\nfrom vitlab.models.mine import Mine as Ours\n"
    (models / "__init__.py").write_text(package)
    module = "from vitlab.training.run import run\nclass Mine: ...\ndef _secret(): ...\n"
    (models / "mine.py").write_text(module)
    for name in ("Ours", "mine.Mine"):
        check_targets({"_target_": f"vitlab.models.{name}"})
    for name in ("system", "mine.run", "mine._secret", "mine"):
        with pytest.raises(UserError, match="does not define"):
            check_targets({"_target_": f"vitlab.models.{name}"})


def test_a_source_file_that_python_cannot_read_is_named(models: Path) -> None:
    (models / "mine.py").write_text("\nclass Mine(:\n")
    with pytest.raises(UserError, match=r"vitlab\.models\.mine is no Python, see its line 2"):
        check_targets({"_target_": "vitlab.models.mine.Mine"})
