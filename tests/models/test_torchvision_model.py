"""torchvision's networks behind the contract, and their weights."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision import models
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings
from torchvision.ops import StochasticDepth

from tests.models.helpers import LIBRARY, check_layers, renamed, save
from vitlab.core.errors import UserError
from vitlab.models import torchvision_model
from vitlab.models.torchvision_model import TorchvisionModel


def build(**changes: Any) -> TorchvisionModel:
    return TorchvisionModel(**{**LIBRARY, "name": "squeezenet1_1", **changes})


@pytest.fixture
def small_vit(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """``vit_b_16`` of two narrow blocks: torchvision's function takes neither number."""

    def make(name: str, *, weights: None, **options: Any) -> VisionTransformer:
        return VisionTransformer(
            patch_size=16, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, **options
        )

    monkeypatch.setattr(torchvision_model.models, "get_model", make)
    return {"name": "vit_b_16"}


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        *(("vit_b_16", 3), ("vit_b_16", 1), ("swin_t", 1), ("convnext_tiny", 3), ("maxvit_t", 1)),
        *(("resnet18", 3), ("vgg11", 1), ("densenet121", 1), ("efficientnet_b0", 3)),
        *(("mobilenet_v3_small", 1), ("squeezenet1_1", 3), ("shufflenet_v2_x0_5", 1)),
    ],
)
def test_any_classifier_of_torchvision_keeps_the_contract(name: str, channels: int) -> None:
    with torch.device("meta"):
        model = build(name=name, image_size=224, channels=channels)
        assert model(torch.zeros(2, channels, 224, 224)).shape == (2, 10)
    check_layers(model)
    assert len(model.layers()) >= 6
    last = model.layers()[-1][1]
    assert all(re.match(r"net\.(head|classifier|fc|encoder\.ln)", prefix) for prefix in last)


def test_the_layers_of_a_vit_are_its_blocks(small_vit: dict[str, Any]) -> None:
    model = build(**small_vit)
    layers = dict(model.layers())
    assert [*layers] == ["stem", "layer_1", "layer_2", "head"]
    assert layers["stem"] == [
        f"net.{name}"
        for name in ("class_token", "conv_proj.weight", "conv_proj.bias", "encoder.pos_embedding")
    ]
    assert all("encoder_layer_1." in name for name in layers["layer_2"])
    assert model.no_weight_decay() == {"net.class_token", "net.encoder.pos_embedding"}
    assert model.net.heads.head.weight.detach().std().item() == pytest.approx(
        0.02, rel=0.3
    )  # torchvision's is zero


def test_drop_path_scales_the_architectures_own() -> None:
    with torch.device("meta"):
        model = build(name="swin_t", drop_path=0.4)
    rates = [module.p for module in model.modules() if isinstance(module, StochasticDepth)]
    assert (rates[0], max(rates)) == (0, pytest.approx(0.4))
    assert rates == sorted(rates)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "vit_b_61"}, r"did you mean 'vit_b_\d\d'\?"),
        ({"name": "inception_v3"}, "no model called 'inception_v3'"),
        ({"name": "vit_b_16.IMAGENET1K_SWAG_V1"}, "did you mean 'IMAGENET1K_"),
        ({"kwargs": {"weights": "DEFAULT"}}, "model.kwargs.weights has a key of its own, model.pretrained"),
        ({"kwargs": {"wings": 2}}, "does not take model.kwargs.wings"),
        ({"name": "vit_b_16", "drop_path": 0.1}, "does not take model.drop_path"),
        ({"name": "vit_b_16", "image_size": [32, 64]}, "takes square images alone"),
        ({"name": "maxvit_t", "image_size": 256}, "torchvision cannot build maxvit_t "),
        ({"name": "vit_b_16", "image_size": 40}, "torchvision cannot build vit_b_16 .*divisible"),
        ({"checkpoint_path": "nowhere.pth"}, "there is no file nowhere.pth"),
    ],
    ids=str,
)
def test_what_cannot_be_built_is_refused_in_words(changes: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(UserError, match=message):
        build(**changes)


def test_other_weights_of_an_architecture_are_named_after_a_point() -> None:
    find = torchvision_model.TorchvisionModel.find
    assert find("vit_b_16", {}) is models.ViT_B_16_Weights.DEFAULT
    name = "vit_b_16.IMAGENET1K_SWAG_E2E_V1"
    assert find(name, {}) is models.ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1


def test_weights_of_a_vit_are_resized_and_its_head_replaced(
    small_vit: dict[str, Any], tmp_path: Path
) -> None:
    state = build(**small_vit, image_size=64, num_classes=7).net.state_dict()
    # The published files are from before torchvision renamed the two layers of the MLP.
    old = renamed(state, {"mlp.0.": "mlp.linear_1.", "mlp.3.": "mlp.linear_2."})
    model = build(**small_vit, checkpoint_path=save(old, tmp_path), channels=1)
    assert model.loaded is not None
    assert model.loaded.resized == [
        "conv_proj.weight (16, 3, 16, 16) → (16, 1, 16, 16)",
        "encoder.pos_embedding (1, 17, 16) → (1, 5, 16)",
    ]
    assert model.loaded.new == ["heads.head.weight (10, 16)", "heads.head.bias (10,)"]
    assert model.loaded.tensors == len(state) - 2
    assert model.loaded.images is not None
    assert model.loaded.images.size == (224, 224)
    loaded = model.net.state_dict()
    assert model.net.conv_proj.in_channels == 1
    mlp = "encoder.layers.encoder_layer_1.mlp.3.weight"
    assert torch.equal(loaded[mlp], state[mlp])
    torch.testing.assert_close(loaded["conv_proj.weight"], state["conv_proj.weight"].sum(1, keepdim=True))
    positions = interpolate_embeddings(32, 16, dict(state))["encoder.pos_embedding"]
    assert torch.equal(loaded["encoder.pos_embedding"], positions)

    same = build(**small_vit, image_size=64, num_classes=7, checkpoint_path=save(state, tmp_path))
    assert same.loaded is not None
    assert (same.loaded.new, same.loaded.resized) == ([], [])
    assert torch.equal(same.net.heads.head.weight, state["heads.head.weight"])


def test_densenets_files_have_points_in_their_names(tmp_path: Path) -> None:
    state = build(name="densenet121").net.state_dict()
    old = {
        re.sub(r"(denselayer\d+\.(norm|conv))(\d)", r"\1.\3", name): value for name, value in state.items()
    }
    assert old.keys() != state.keys()
    loaded = build(name="densenet121", checkpoint_path=save(old, tmp_path)).net.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


def test_weights_of_another_network_are_refused(small_vit: dict[str, Any], tmp_path: Path) -> None:
    state = build(**small_vit).net.state_dict()
    surplus = save(state | {"x": torch.zeros(1)}, tmp_path)
    with pytest.raises(UserError, match=r"do not fit the model(.|\n)*\n  x +- +\(1,\)$"):
        build(**small_vit, checkpoint_path=surplus)
    with pytest.raises(UserError, match="no weights of this architecture"):
        build(**small_vit, checkpoint_path=save({"weight": torch.zeros(1)}, tmp_path))
    del state["encoder.ln.bias"]
    with pytest.raises(UserError, match=r"encoder\.ln\.bias +\(\d+,\) +-$"):
        build(**small_vit, checkpoint_path=save(state, tmp_path))
