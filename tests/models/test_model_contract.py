"""What every file in conf/model promises. A new file is found here without editing anything."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

CONFIGS = sorted((Path(__file__).parents[2] / "conf/model").glob("*.yaml"))
NUM_CLASSES = 5
RECTANGLE = (32, 48)
# Enough of a model to see every kind of its parts; applied where the YAML has the key.
SMALL = {"depth": 2}


def build(path: Path, **changes: Any) -> nn.Module:
    """Build a model from its YAML alone, with the data node that its interpolations point to."""
    node = OmegaConf.load(path)
    root = OmegaConf.create(
        {"data": {"image_size": 32, "channels": 3, "num_classes": NUM_CLASSES}, "model": node}
    )
    for key, value in {**SMALL, **changes}.items():
        if key in node:
            OmegaConf.update(root, f"model.{key}", value)
    return instantiate(root.model)


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture(scope="module")
def model(path: Path) -> nn.Module:
    torch.manual_seed(0)
    return build(path)


@pytest.fixture(scope="module")
def images(model: nn.Module) -> Tensor:
    return torch.randn(2, 3, *model.image_size, generator=torch.Generator().manual_seed(1))


def test_configs_are_found() -> None:
    assert len(CONFIGS) >= 7


def test_a_training_step_gives_finite_logits_and_reaches_every_parameter(
    model: nn.Module, images: Tensor
) -> None:
    model.train()
    logits = model(images)
    assert logits.shape == (2, NUM_CLASSES)
    assert torch.isfinite(logits).all()

    # Not the plain sum: softmax and LayerNorm make some sums constant, and their gradient zero.
    logits.square().sum().backward()
    unreached = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    model.zero_grad(set_to_none=True)
    assert unreached == []


def test_evaluation_is_deterministic(model: nn.Module, images: Tensor) -> None:
    model.eval()
    with torch.no_grad():
        first, second = model(images[:1]), model(images[:1])
    assert first.shape == (1, NUM_CLASSES)
    assert torch.equal(first, second)


def test_layers_claim_every_parameter_once(model: nn.Module) -> None:
    layers = model.layers()
    names = [name for name, _ in layers]
    assert len(set(names)) == len(names)
    assert (names[0], names[-1]) == ("stem", "head")

    parameters = [name for name, _ in model.named_parameters()]
    claims = {
        parameter: [
            layer for layer, prefixes in layers for prefix in prefixes if parameter.startswith(prefix)
        ]
        for parameter in parameters
    }
    assert {name: claim for name, claim in claims.items() if len(claim) != 1} == {}
    # Nothing is named that claims nothing, and the order of the layers is the model's own.
    first_claim = [min(i for i, p in enumerate(parameters) if claims[p] == [n]) for n in names[1:]]
    assert first_claim == sorted(first_claim)


def test_no_weight_decay_names_parameters(model: nn.Module) -> None:
    assert model.no_weight_decay() <= {name for name, _ in model.named_parameters()}


def test_header_says_source_and_measured_parameters(path: Path) -> None:
    with torch.device("meta"):
        root = OmegaConf.create(
            {
                "data": {"image_size": 32, "channels": 3, "num_classes": 10},
                "model": OmegaConf.load(path),
            }
        )
        count = sum(parameter.numel() for parameter in instantiate(root.model).parameters())
    header = path.read_text().partition("_target_")[0]
    assert header.startswith("# ")
    assert "# Source: " in header
    assert f"# Parameters: {count:,} (" in header


def test_rectangular_images(path: Path) -> None:
    if "image_size: 224" in path.read_text():
        pytest.skip("a model for one size of image")
    model = build(path, image_size=list(RECTANGLE)).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 3, *RECTANGLE)).shape == (2, NUM_CLASSES)
