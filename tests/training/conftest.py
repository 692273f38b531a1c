"""Teachers for ``task=distill``."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from tests.conftest import TINY, train_in


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A convolutional network, trained for two epochs, which no test changes."""
    base = [*(o for o in TINY if not o.startswith("model")), "data.normalization=half"]
    options = ["model=resnet18", "model.width=4", "model.blocks=[1]"]
    return train_in(tmp_path_factory.mktemp("teacher") / "run", *options, base=base)


@pytest.fixture(scope="session")
def timm_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of timm's smallest ResNet, for ten classes."""
    torch.manual_seed(0)
    net = timm.create_model("test_resnet", num_classes=10)
    save_file(net.state_dict(), path := tmp_path_factory.mktemp("timm") / "ten.safetensors")
    return path
