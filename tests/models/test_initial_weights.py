"""Our own networks started from weights of one another."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed, resample_abs_pos_embed
from torch import nn

from tests.models.helpers import build, save, small_vit
from vitlab.core.errors import UserError
from vitlab.models.initial_weights import load_initial_weights
from vitlab.models.layers import pair
from vitlab.models.pretrained import Loaded


def start(new: nn.Module, old: nn.Module, folder: Path) -> Loaded:
    """Fill ``new`` from a file with the weights of ``old``."""
    return load_initial_weights(new, Path(save(old.state_dict(), folder)))


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("image_size", [32, [16, 32], 8])
def test_learned_positions_are_resized(tmp_path: Path, pool: str, image_size: Any) -> None:
    old = small_vit(pool=pool)  # 4x4 tokens
    new = small_vit(pool=pool, image_size=image_size, num_classes=3)
    loaded = start(new, old, tmp_path)
    prefix = int(pool == "cls")
    expected = resample_abs_pos_embed(old.position.table, list(new.position.grid), [4, 4], prefix)
    torch.testing.assert_close(new.position.table.data, expected.data)
    assert len(loaded.resized) == 1
    assert loaded.resized[0].startswith("position.table (1, ")
    assert loaded.new == ["head.weight (3, 32)", "head.bias (3,)"]
    assert torch.equal(new.blocks[1].mlp.fc1.weight, old.blocks[1].mlp.fc1.weight)


def test_a_run_says_what_its_grid_was(tmp_path: Path) -> None:
    old, new = small_vit(image_size=[8, 32]), small_vit(image_size=[16, 64])  # 2x8 and 4x16 tokens
    state = {f"net.{name}": value for name, value in old.state_dict().items()}
    meta = {"mean": [0.5], "std": [0.2], "input_size": [8, 32]}
    torch.save({"state_dict": state, "vitlab": meta}, tmp_path / "best.ckpt")
    load_initial_weights(new, tmp_path / "best.ckpt")
    expected = resample_abs_pos_embed(old.position.table, [4, 16], [2, 8], 1)
    torch.testing.assert_close(new.position.table.data, expected.data)


@pytest.mark.parametrize("position", ["sincos", "rotary", "none"])
def test_positions_that_are_no_weights_need_no_resizing(tmp_path: Path, position: str) -> None:
    options = {"position": position, "dim": 32, "heads": 2}
    loaded = start(small_vit(image_size=32, **options), small_vit(**options), tmp_path)
    assert (loaded.resized, loaded.new, loaded.left_out) == ([], [], [])


def test_colour_kernels_see_grey(tmp_path: Path) -> None:
    old, new = (build("model=resnet18", blocks=[1, 1], width=8, channels=channels) for channels in (3, 1))
    start(new, old, tmp_path)
    torch.testing.assert_close(new.stem[0].weight, old.stem[0].weight.sum(dim=1, keepdim=True))


@pytest.mark.parametrize("patch_size", [8, [4, 8], 2], ids=str)
def test_patches_are_resized(tmp_path: Path, patch_size: Any) -> None:
    old, new = small_vit(), small_vit(patch_size=patch_size)
    loaded = start(new, old, tmp_path)
    assert [row.split()[0] for row in loaded.resized] == [
        "tokenizer.projection.linear.weight",
        "position.table",
    ]
    kernel = old.tokenizer.projection.linear.weight.detach().unflatten(1, (3, 4, 4))
    expected = PatchEmbed(img_size=16, patch_size=4, embed_dim=32)
    expected.proj.weight.data.copy_(kernel)
    expected.set_input_size(patch_size=pair("", patch_size))
    torch.testing.assert_close(
        new.tokenizer.projection.linear.weight, expected.proj.weight.flatten(1), atol=1e-5, rtol=1e-5
    )


def test_an_enlarged_image_gives_the_tokens_that_it_gave(tmp_path: Path) -> None:
    old, new = small_vit(), small_vit(image_size=32, patch_size=8)
    loaded = start(new, old, tmp_path)
    assert len(loaded.resized) == 1
    patch = torch.rand(1, 3, 4, 4)
    images = patch.repeat(1, 1, 4, 4)
    larger = F.interpolate(patch, scale_factor=2, mode="bicubic", antialias=True).repeat(1, 1, 4, 4)
    torch.testing.assert_close(new.tokenizer(larger), old.tokenizer(images), atol=1e-4, rtol=1e-4)


def test_patches_of_colours_see_grey(tmp_path: Path) -> None:
    old, new = small_vit(), small_vit(channels=1)
    start(new, old, tmp_path)
    grey = torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(new.tokenizer(grey), old.tokenizer(grey.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"depth": 3}, r"blocks\.2\S+ +\(.*\) +-"),
        ({"depth": 1}, r"blocks\.1\S+ +- +\("),
        ({"dim": 64}, r"attention\.out\.bias +\(64,\) +\(32,\)(.|\n)* and \d+ more$"),
        ({"pool": "mean"}, r"class_token +- +\(1, 1, 32\)"),
        ({"patch_norm": True}, r"tokenizer\.projection\.norm_in\S+ +\(48,\) +-"),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path: Path, changes: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        start(small_vit(**changes), small_vit(), tmp_path)
