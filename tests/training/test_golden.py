"""Twenty steps of training, held against numbers on record and against a plain loop over timm's network.

The record proves refactors: whatever changes, these losses stay. If they must change, the plain loop, which
shares nothing with vitlab but the initial weights and the seeds, says whether the new ones are right; a
failing test prints them.
"""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer

from tests.conftest import Train
from vitlab.core.run_folder import RunFolder
from vitlab.core.seeding import derive_seed
from vitlab.data import datasets
from vitlab.data.split import stratified_split
from vitlab.tasks.classify import Classify
from vitlab.training.build import build

OVERRIDES = (  # noqa: SIM905
    "data.num_train=112 data.val_size=32 data.batch_size=8 model.dim=32 model.pool=cls model.patch_size=8 "
    "model.dropout=0 augment=none seed=3 trainer.max_steps=20 optimizer.lr=3e-3 data.normalization=half"
).split()

# fmt: off
GOLDEN = [
    2.28986, 2.39254, 2.33805, 2.29575, 2.33720, 2.37529, 2.37040, 2.33699, 2.45116, 2.37484,
    2.29950, 2.21613, 2.29094, 2.29672, 2.30382, 2.27505, 2.22459, 2.24318, 2.29584, 2.27742,
]
# fmt: on


def plain_loop(config: dict[str, Any]) -> list[float]:
    """Train timm's ViT from the same initial weights, with nothing but torch."""
    state = build(config).net.state_dict()
    names = {
        "class_token": "cls_token",
        "position.table": "pos_embed",
        "tokenizer.projection.linear.bias": "patch_embed.proj.bias",
    }
    timm_state = {}
    for name, value in state.items():
        if name == "tokenizer.projection.linear.weight":
            value = value.reshape(32, 3, 8, 8)  # a linear map of flat patches is a convolution
            name = "patch_embed.proj.weight"
        name = names.get(
            name,
            name.replace("attention.qkv", "attn.qkv")
            .replace("attention.out", "attn.proj")
            .replace("pool.norm", "norm"),
        )
        timm_state[name] = value.clone()
    net = VisionTransformer(
        img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2, mlp_ratio=4, num_classes=10
    )
    net.load_state_dict(timm_state)
    images, labels = (torch.from_numpy(a) for a in datasets.build(config["data"]).load("train"))
    rest, _ = stratified_split(labels.numpy(), 32, derive_seed(0, "val"), "data.val_size")
    images, labels = images[rest], labels[rest]
    decay = [p for n, p in net.named_parameters() if p.ndim > 1 and n not in ("cls_token", "pos_embed")]
    others = [p for n, p in net.named_parameters() if p.ndim <= 1 or n in ("cls_token", "pos_embed")]
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-3)
    losses = []
    for step in range(20):  # ten steps an epoch, one of warmup
        epoch, index = divmod(step, 10)
        order = torch.randperm(80, generator=torch.Generator().manual_seed(derive_seed(3, "order", epoch)))
        rows = order[8 * index : 8 * index + 8]
        factor = 0.5 if step == 0 else 0.5 * (1 + math.cos(math.pi * (step - 1) / 19))
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * factor
        logits = net((images[rows].float() / 255 - 0.5) / 0.5)
        loss = F.cross_entropy(logits, labels[rows], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_twenty_losses_are_the_plain_loops_and_the_recorded_ones(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: list[float] = []
    step = Classify.training_step

    def recorded(self: Classify, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = step(self, batch, batch_idx)
        losses.append(loss.item())
        return loss

    monkeypatch.setattr(Classify, "training_step", recorded)
    config = RunFolder(train(*OVERRIDES)).read_config()
    assert len(losses) == 20
    assert losses == pytest.approx(plain_loop(config), rel=1e-4)
    assert losses == pytest.approx(GOLDEN, rel=1e-3), "CPUs differ in the last digits, not in the third"
