"""A run that starts from weights in a file: what it says, trains and resumes; and a run as such a file."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision import models

import vitlab
from tests.conftest import TINY, Train, checkpoint, same_weights, summary
from vitlab.core.errors import UserError
from vitlab.core.run_folder import RunFolder
from vitlab.training.run import run

# timm's smallest ViT
TIMM: dict[str, Any] = {
    "base": [
        *(o for o in TINY if not o.startswith("model")),
        *("model=timm_vit_b16", "model.name=test_vit", "model.image_size=32", "trainer.max_epochs=1"),
    ]
}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A folder as the hub gives it, for 64 pixels and seven classes."""
    torch.manual_seed(5)
    folder = tmp_path / "snapshot"
    folder.mkdir()
    net = timm.create_model("test_vit", img_size=64, num_classes=7)
    save_file(net.state_dict(), folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("freeze", ["head_only", "first_3"])
def test_a_linear_probe_and_a_partly_frozen_network(train: Train, weights: Path, freeze: str) -> None:
    options = (f"model.checkpoint_path={weights}", f"task.freeze={freeze}", "optimizer.layer_decay=0.7")
    folder = train(*options, **TIMM)
    log = (folder / "train.log").read_text()
    assert f"{weights}/model.safetensors" in log
    assert "pos_embed (1, 17, 64) → (1, 5, 64)" in log
    assert "head.weight (10, 64)" in log
    assert (
        "note: the published weights of this network were trained on images normalised by mean [0.5," in log
    )
    assert "160x160 pixels, and model.image_size is 32x32" in log

    given = timm.create_model("test_vit", img_size=64, num_classes=7)
    timm.models.load_checkpoint(given, str(weights / "model.safetensors"))
    trained = checkpoint(folder)["state_dict"]
    same = {n for n, value in given.state_dict().items() if torch.equal(trained[f"net.net.{n}"], value)} - {
        "pos_embed",
        *("head.weight", "head.bias"),
    }
    assert "patch_embed.proj.weight" in same
    assert ("blocks.5.mlp.fc1.weight" in same) == (freeze == "head_only")
    assert summary(folder)["model"]["trainable_parameters"] < summary(folder)["model"]["parameters"]


def test_a_run_goes_on_without_the_file_and_is_a_file_itself(
    train: Train, stopped: Train, weights: Path
) -> None:
    options = (f"model.checkpoint_path={weights}", "optimizer.layer_decay=0.7")
    whole, cut = train(*options, **TIMM, name="whole"), stopped(1, *options, **TIMM)
    assert (cut / "train.log").read_text().count("resized") == 1
    (weights / "model.safetensors").unlink()
    run(RunFolder(cut))
    assert (cut / "train.log").read_text().count("resized") == 1  # no table: its own checkpoint counts
    assert same_weights(whole, cut)
    assert vitlab.load(cut)(torch.zeros(1, 3, 16, 16, dtype=torch.uint8)).shape == (1, 10)

    # The run's folder stands for its best checkpoint, with the head, since the classes are as many.
    next_run = train(f"model.checkpoint_path={whole}", "optimizer.lr=1e-12", **TIMM, name="next")
    log = (next_run / "train.log").read_text()
    assert f"{whole}/checkpoints/best.ckpt" in log
    assert "  new " not in log
    assert "were trained on images" not in log  # the same images
    best = checkpoint(whole, "best")["state_dict"]
    for name, value in checkpoint(next_run)["state_dict"].items():
        if name.startswith("net."):
            torch.testing.assert_close(value, best[name])


def test_torchvisions_network_starts_from_a_file_and_is_loaded_without_it(
    train: Train, tmp_path: Path
) -> None:
    given = models.shufflenet_v2_x0_5(num_classes=10).state_dict()
    torch.save(given, tmp_path / "w.pth")
    network = ("model=torchvision_vit_b16", "model.name=shufflenet_v2_x0_5", "data.channels=1")
    folder = train(*network, f"model.checkpoint_path={tmp_path}/w.pth", "task.freeze=head_only", **TIMM)
    assert "conv1.0.weight (24, 3, 3, 3) → (24, 1, 3, 3)" in (folder / "train.log").read_text()
    (tmp_path / "w.pth").unlink()
    net = vitlab.load(folder).net
    assert torch.equal(net.net.stage2[0].branch1[0].weight, given["stage2.0.branch1.0.weight"])


def test_what_is_not_there_is_said_before_anything_else(train: Train, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"checkpoint_path=nothing.pth: .*looked for /.*/nothing.pth"):
        train("model.checkpoint_path=nothing.pth", "data.num_train=100000000", **TIMM)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("pool", ["mean", "sequence"])
def test_our_own_network_is_pretrained_and_fine_tuned(
    train: Train, copied: Path, stopped: Train, pool: str
) -> None:
    first = copied if pool == "mean" else train(f"model.pool={pool}", "trainer.max_epochs=1", name="first")
    options = (f"model.pool={pool}", f"model.checkpoint_path={first}", "data.image_size=32")
    options += ("data.val_size=20", "optimizer.lr=1e-12", "trainer.max_epochs=1")
    whole, cut = train(*options, name="whole"), stopped(1, *options)
    log = (whole / "train.log").read_text()
    assert f"{first}/checkpoints/best.ckpt" in log
    assert "position.table (1, 1" in log
    assert "model.image_size is 32x32" in log
    best, last = checkpoint(first, "best")["state_dict"], checkpoint(whole)["state_dict"]
    for name in ("blocks.1.attention.qkv.weight", "head.weight"):  # the classes are the same
        torch.testing.assert_close(last[f"net.{name}"], best[f"net.{name}"])

    shutil.rmtree(first)
    run(RunFolder(cut))
    assert same_weights(whole, cut)
    assert vitlab.load(cut)(torch.zeros(1, 3, 16, 16, dtype=torch.uint8)).shape == (1, 10)
