"""Run folders as runs leave them, made without a run."""

import itertools
import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

CONFIG: dict[str, Any] = {
    "seed": 0,
    "study": "made",
    "compile": False,
    "model": {
        "tokenizer": {"_target_": "vitlab.models.tokenizers.PatchEmbedding", "_partial_": True},
        "_target_": "vitlab.models.vit.ViT",
        "image_size": 32,
        "channels": 3,
        "num_classes": 10,
        "patch_size": 4,
        "dim": 192,
        "depth": 6,
        "heads": 3,
        "mlp_ratio": 2.0,
        "pool": "mean",
        "dropout": 0.0,
    },
    "optimizer": {"_target_": "vitlab.optim.adamw", "lr": 1e-3, "weight_decay": 0.05, "betas": [0.9, 0.999]},
    "scheduler": {"_target_": "vitlab.optim.schedulers.warmup_cosine", "warmup_fraction": 0.05},
    "augment": {"_target_": "vitlab.augment.Compose", "ops": ["crop", "flip"]},
    "data": {
        "kind": "cifar10",
        "root": "data",
        "image_size": 32,
        "batch_size": 128,
        "val_size": 5000,
        "split_seed": 0,
        "num_workers": None,
    },
    "trainer": {"accelerator": "cpu", "devices": 1, "max_epochs": 10, "limit_test_batches": None},
    "task": {"_target_": "vitlab.tasks.classify.Classify", "label_smoothing": 0.1},
    "callbacks": {"figures": False, "ema": {"decay": None}},
    "logger": {"tensorboard": True},
    "choices": {"experiment": None, "model": "vit_tiny", "model/tokenizer": "patch", "optimizer": "adamw"},
}


def make_run(
    folder: Path,
    *overrides: str,
    val: float | None = 0.6,
    test: float | None = 0.59,
    status: str = "finished",
    epochs: int = 10,
    swept: tuple[str, ...] = (),
    summary: Mapping[str, Any] | None = None,
) -> Path:
    """Write the folder of a run.

    Args:
        overrides: ``dotted.key=value`` in YAML, a group's ``model=NAME`` among them.
        val, test: accuracies; None where they were not measured.
        summary: what else stands in summary.json, or in place of the usual.
    """
    config = json.loads(json.dumps(CONFIG))
    for override in overrides:
        key, _, value = override.partition("=")
        if key in config["choices"]:
            config["choices"][key] = value
            continue
        *path, last = key.split(".")
        node = config
        for part in path:
            node = node.setdefault(part, {})
        node[last] = yaml.safe_load(value)
    config |= {"overrides": [*overrides], "swept": [*swept]}
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    metrics = {f"{s}/accuracy": v for s, v in (("val", val), ("test", test)) if v is not None}
    model = config["model"]
    depth, patch = model["depth"], model.get("patch_size", 1)
    tokens = (32 / patch) ** 2
    record = {
        "status": status,
        "metrics": metrics,
        "model": {
            "name": config["choices"]["model"],
            "parameters": int(depth * 8 * model["dim"] ** 2 + 3 * patch**2 * model["dim"]),
            "flops_per_image": int(2 * tokens * depth * 8 * model["dim"] ** 2),
        },
        "train": {
            "epochs": epochs,
            "images_per_second": 4e7 / (tokens * depth * model["dim"]),
            "wall_seconds": 60.0 * depth,
        },
        "seed": config["seed"],
        "device": "a machine",
        "commit": "0123456789abcdef",
    }
    (folder / "summary.json").write_text(json.dumps(record | dict(summary or {})))
    lines = ["epoch,step,train/loss,val/accuracy"]
    for epoch in range(1, epochs + 1):
        reached = (val or 0.0) * (1 - math.exp(-3 * epoch / epochs)) / (1 - math.exp(-3))
        lines.append(f"{epoch},{100 * epoch},1.5,{reached if val is not None else ''}")
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return folder


def make_grid(
    study: Path, *, patches: tuple[int, ...], depths: tuple[int, ...], seeds: tuple[int, ...]
) -> None:
    """Write a sweep over patch size, depth and seed."""
    noise = random.Random(0)
    keys = ("model.patch_size", "model.depth", "seed")
    for patch, depth, seed in itertools.product(patches, depths, seeds):
        val = 0.5 + 0.03 * math.log(depth) - 0.04 * math.log2(patch) + noise.gauss(0, 0.006)
        test = val - 0.01 + noise.gauss(0, 0.003)
        folder = study / f"patch_size-{patch}_depth-{depth}_seed-{seed}"
        overrides = (f"{key}={value}" for key, value in zip(keys, (patch, depth, seed), strict=True))
        make_run(folder, *overrides, val=val, test=test, swept=keys)
