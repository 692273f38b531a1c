"""Every network that timm can express gives the same logits there, and of every other it is said why not."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from tests.models.helpers import LIBRARY, SMALL, build, model_node
from vitlab.inference.timm_format import timm_config, timm_logits, to_timm, why_not_timm

CLASSES = [f"class {number}" for number in range(10)]


def disturbed(net: nn.Module) -> nn.Module:
    """Make every number of a network another one, so that none can be mistaken for another."""
    with torch.no_grad():
        for value in net.state_dict().values():
            if value.is_floating_point():
                value += torch.randn_like(value) * 0.02
    return net.eval()


def save(folder: Path, net: nn.Module, config: dict[str, Any], size: list[int]) -> Path:
    form = to_timm(net, config, 10)
    channels = config["channels"]
    record = timm_config(form, CLASSES, [0.4] * channels, [0.2] * channels, size)
    (folder / "config.json").write_text(json.dumps(record))
    weights = {name: value.detach().contiguous() for name, value in form.weights.items()}
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("overrides", "changes"),
    [
        ([], {}),
        ([], {"pool": "mean"}),
        ([], {"position": "sincos"}),
        ([], {"position": "none", "pool": "mean"}),
        ([], {"qkv_bias": False, "mlp_ratio": 2.7}),
        ([], {"attention": {"qk_norm": True}}),
        ([], {"patch_size": [4, 8], "image_size": [16, 24]}),
        ([], {"channels": 1, "dim_head": 16}),
        ([], {"dropout": 0.1, "drop_path": 0.1, "emb_dropout": 0.1, "attn_dropout": 0.1, "drop_key": 0.1}),
        (["model=vit_distilled_tiny"], {}),
        (["model=vit_distilled_tiny"], {"position": "sincos"}),
    ],
    ids=str,
)
def test_a_vit_gives_the_same_logits_in_timm(
    overrides: list[str], changes: dict[str, Any], tmp_path: Path
) -> None:
    overrides = overrides or ["model=vit_tiny"]
    changes = {"num_classes": 10, "channels": 3, **SMALL, **changes}
    if "attention" in changes:
        changes["attention"] = model_node(*overrides)["attention"] | changes["attention"]
    net = disturbed(build(*overrides, **changes))
    assert why_not_timm(net) is None
    size = [*net.image_size]  # type: ignore[misc]
    folder = save(tmp_path, net, model_node(*overrides) | changes, size)
    images = torch.randn(5, changes["channels"], *size)
    with torch.no_grad():
        expected = net(images)
    torch.testing.assert_close(timm_logits(folder, images), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "vit_tiny_patch16_224", "kwargs": {"depth": 2, "patch_size": 8}},
        {"name": "vit_tiny_patch16_224", "image_size": [32, 48], "channels": 1, "kwargs": {"depth": 1}},
        {"name": "resnet18", "kwargs": {"pretrained_cfg_overlay": {"crop_pct": 0.9}}},
    ],
    ids=str,
)
def test_a_network_of_timms_is_opened_by_timm(changes: dict[str, Any], tmp_path: Path) -> None:
    config = {**LIBRARY, **changes}
    net = disturbed(build("model=timm_vit_b16", **config))
    assert why_not_timm(net) is None
    size = [*net.image_size]  # type: ignore[misc]
    images = torch.randn(3, config["channels"], *size)
    with torch.no_grad():
        expected = net(images)
    folder = save(tmp_path, net, config, size)
    torch.testing.assert_close(timm_logits(folder, images), expected, atol=1e-5, rtol=1e-5)


def test_timm_finds_the_preprocessing_and_the_classes(tmp_path: Path) -> None:
    changes = {"num_classes": 10, "channels": 1, **SMALL}
    save(tmp_path, build("model=vit_tiny", **changes), model_node("model=vit_tiny") | changes, [16, 16])
    net: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    found = timm.data.resolve_data_config({}, model=net)
    assert found["input_size"] == (1, 16, 16)
    assert [*found["mean"], *found["std"]] == [0.4, 0.2]
    assert (found["interpolation"], found["crop_pct"], found["crop_mode"]) == ("bilinear", 1.0, "squash")
    assert list(net.pretrained_cfg["label_names"]) == CLASSES
    other: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3)
    assert other.head.out_features == 3  # a new head on what was learned, as of timm's own weights


@pytest.mark.parametrize(
    ("overrides", "changes", "said"),
    [
        (["model/tokenizer=conv_stem"], {}, "one projection of patches, and this one by ConvStem"),
        (["model/tokenizer=cct"], {}, "and this one by ConvPool"),
        (["model/tokenizer=spt"], {}, "and this one by ShiftedPatches"),
        (["model/attention=lsa"], {}, "has no LocalityAttention"),
        (["model/attention=linformer"], {}, "has no LinformerAttention"),
        ([], {"patch_norm": True}, "no LayerNorm before the projection"),
        ([], {"position": "rotary"}, "rotary ones turn queries and keys"),
        ([], {"dim_head": 8}, "divides the 32 numbers of a token among its heads, and here 2 heads have 8"),
        ([], {"pool": "sequence"}, "has no SequencePooling"),
    ],
)
def test_of_every_other_vit_it_is_said_why_not(
    overrides: list[str], changes: dict[str, Any], said: str
) -> None:
    changes = {"num_classes": 10, "channels": 3, **SMALL, **changes}
    if "model/attention=linformer" in overrides:
        changes["attention"] = model_node("model=vit_tiny", *overrides)["attention"] | {
            "projection_length": 4
        }
    reason = why_not_timm(build("model=vit_tiny", *overrides, **changes))
    assert reason is not None
    assert said in reason


def test_of_every_other_network_it_is_said_why_not() -> None:
    nets = {
        "halve the image in their first layer": build("model=resnet18", num_classes=10, width=4),
        "the network is torchvision's": build("model=torchvision_vit_b16", **LIBRARY, name="resnet18"),
        "timm has no Linear": nn.Linear(1, 1),
        "has a class token": build(
            "model=vit_distilled_tiny", **{**SMALL, "num_classes": 10, "pool": "mean"}
        ),
    }
    for said, net in nets.items():
        reason = why_not_timm(net)
        assert reason is not None
        assert said in reason
