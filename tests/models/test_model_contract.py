"""What every file below conf/model promises. A new file is found here without editing anything.

A whole network is built as its own file says, a part (model/tokenizer=…) or a variant inside a small ViT.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models.helpers import SMALL, build, check_layers, model_node
from vitlab.config import CONF
from vitlab.core.hardware import has_compiler

WHOLE = sorted(f"model={file.stem}" for file in (CONF / "model").glob("*.yaml"))
PARTS = sorted(f"{file.parent.relative_to(CONF)}={file.stem}" for file in (CONF / "model").glob("*/*.yaml"))
VARIANTS = [
    "model.attention.qk_norm=true",
    "model/attention=lsa model.position=rotary",
    "model/attention=linformer model.attention.projection_length=8 model.init=mimetic",
    "model/tokenizer=conv_stem model.tokenizer.norm=layer",
]
NUM_CLASSES = 5
RECTANGLE = (32, 48)


def make(choice: str, **changes: Any) -> nn.Module:
    """Build with enough blocks to see every kind of its parts, where the node has the key."""
    overrides = (choice,) if choice in WHOLE else ("model=vit_tiny", *choice.split())
    small = {"depth": 2} if choice in WHOLE else {**SMALL, "image_size": 32, "pool": "mean"}
    wanted = {**small, "num_classes": NUM_CLASSES, **changes}
    node = model_node(*overrides)
    return build(*overrides, **{key: value for key, value in wanted.items() if key in node})


@pytest.fixture(scope="module", params=[*WHOLE, *PARTS, *VARIANTS])
def choice(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(choice: str) -> nn.Module:
    return make(choice)


@pytest.fixture(scope="module")
def images(model: nn.Module) -> Tensor:
    return torch.randn(2, 3, *model.image_size, generator=torch.Generator().manual_seed(1))


def test_configs_are_found() -> None:
    assert len(WHOLE) >= 7
    assert {"model/tokenizer=patch", "model/attention=softmax"} < {*PARTS}


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


def test_reduced_precision_stays_finite_and_near(model: nn.Module, images: Tensor) -> None:
    model.eval()
    with torch.no_grad():
        plain = model(images)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(images)
    assert torch.isfinite(rough).all()
    assert (rough.float() - plain).norm() < 0.1 * plain.norm()


def test_layers_claim_every_parameter_once(model: nn.Module) -> None:
    check_layers(model)


@pytest.mark.parametrize("choice", WHOLE)
def test_every_model_can_start_from_a_file(choice: str, tmp_path: Path) -> None:
    node = model_node(choice)
    assert node["checkpoint_path"] is None
    if "pretrained" in node:
        pytest.skip("a library's own loading: see its tests")
    learned = make(choice)
    torch.save(learned.state_dict(), tmp_path / "w.pth")
    net = make(choice, num_classes=NUM_CLASSES + 2, checkpoint_path=str(tmp_path / "w.pth"))
    assert all("head" in name for name in net.loaded.new)
    assert net.loaded.new
    own = net.state_dict()
    fitted = {name for name, value in learned.state_dict().items() if value.shape == own[name].shape}
    assert len(fitted) == len(own) - len(net.loaded.new)
    assert all(torch.equal(own[name], learned.state_dict()[name]) for name in fitted)


@pytest.mark.parametrize("choice", WHOLE)
def test_header_says_source_and_measured_parameters(choice: str) -> None:
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in build(choice).parameters())
    header = (CONF / f"{choice.replace('=', '/')}.yaml").read_text().partition("_target_")[0]
    assert header.startswith("# ")
    assert "# Source: " in header
    assert f"# Parameters: {count:,} (" in header


def test_rectangular_images(choice: str) -> None:
    if model_node(*([choice] if choice in WHOLE else []))["image_size"] == 224:
        pytest.skip("a model for one size of image")
    model = make(choice, image_size=list(RECTANGLE)).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 3, *RECTANGLE)).shape == (2, NUM_CLASSES)


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler("cpu"), reason="no C++ compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("choice", [*PARTS, *VARIANTS])
def test_compiled_training_is_eager_training(choice: str, dtype: torch.dtype) -> None:
    """A convolutional stem has trained to NaN, compiled under bfloat16 on a CPU, in one memory layout."""

    def losses(compiled: bool) -> list[float]:
        torch._dynamo.reset()  # many networks in one process reach dynamo's limit and turn eager
        model = make(choice, depth=1).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        if compiled:
            model.compile(dynamic=False)
        images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        values = []
        for _ in range(4):
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                loss = nn.functional.cross_entropy(model(images), torch.arange(8) % NUM_CLASSES)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            values.append(loss.item())
        return values

    tolerance = 1e-4 if dtype == torch.float32 else 0.02
    assert losses(compiled=True) == pytest.approx(losses(compiled=False), abs=tolerance)
