"""Values are held against their kind and range, augmentations against their list."""

import re
from typing import Any

import pytest

from tests.config.helpers import Check, refused
from vitlab.config import preflight, to_plain


def test_augmentations_are_listed_and_only_those_are_kept() -> None:
    (cfg,) = preflight(["augment.ops=[flip,cutout,crop]", "augment.cutout.size=8", "augment.crop.padding=2"])
    augment = to_plain(cfg)["augment"]
    assert augment["ops"] == ["flip", "cutout", "crop"]
    assert {*augment} == {"_target_", "ops", "flip", "cutout", "crop"}
    assert (augment["cutout"]["size"], augment["crop"]["padding"]) == (8, 2)
    assert "augment.flip.p=1.5: expected a number" in refused("augment.flip.p=1.5")
    assert "did you mean flip?" in refused("augment.ops=[crop,fli]")
    assert "crop is listed twice" in refused("augment.ops=[crop,crop]")
    assert "augment.ops=null" in refused("augment.ops=null")


# Kinds and ranges


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("model.patch_size=abc", "expected a whole number from 1"),
        ("model.heads=3.0", "write it as a whole number: model.heads=3"),
        ("model.heads=true", "expected a whole number from 1 to 1024, found true"),
        ("model.depth='6'", "write it without quotes: model.depth=6"),
        ("optimizer.lr='1e-3'", "write it without quotes: optimizer.lr=0.001"),
        ("model.qkv_bias=1", "expected true or false, found 1"),
        ("model.qkv_bias='true'", "without quotes: model.qkv_bias=true"),
        ("model.pool=map", "expected cls or mean or sequence, found the text 'map'"),
        ("optimizer.betas=[0.9]", "expected a list of two"),
        ("optimizer.betas=0.9", "expected a list of two"),
        ("data.url=3", "in quotes it is text: 'data.url=\"3\"'"),
        ("augment.ops=3", "augment.ops=3: expected a list"),
        ("augment.ops=crop", "a list is written in brackets: augment.ops=[crop]"),
        ("data.val_size=20%", "write a fraction: data.val_size=0.2"),
        ("model.patch_size=4x8", "a height and a width are a list: model.patch_size=[4,8]"),
        ("trainer.max_time=2h", "found the text '2h'"),
        ("augment.crop.padding=1.5", "augment.crop.padding=1.5: expected a whole number from 0"),
        ("augment.crop.padding_mode=reflekt", "expected zero or reflect"),
        ("augment=mixup_cutmix augment.mix.cutmix_alpha='1'", "without quotes"),
        ("augment=mixup_cutmix augment.mix.mixup_alpha=-1", "expected null, or a number from 0"),
        ("augment=mixup_cutmix augment.mix.off_after_epoch=0", "expected null, or a whole number from 1"),
        ("augment=randaugment augment.randaugment.space=papr", "expected paper or timm"),
        ("augment=randaugment augment.randaugment.num_ops=0", "expected a whole number from 1"),
        ("augment=randaugment augment.randaugment.interpolation=bicubic", "expected nearest or bilinear"),
        ("augment=randaugment augment.randaugment.fill=256", "expected a whole number from 0 to 255"),
        ("augment=autoaugment augment.autoaugment.policy=cifar", "expected cifar10 or imagenet"),
        ("augment=trivialaugment augment.trivialaugment.num_levels=1", "expected a whole number from 2"),
        ("augment=three_augment augment.jitter.contrast=1.5", "expected a number from 0 to 1"),
        ("augment.ops=[cutout] augment.cutout.size=2.5", "expected a whole number from 1"),
        ("augment.ops=[erase] augment.erase.max_area=1.1", "expected a number from 0 to 1"),
        ("augment.ops=[erase] augment.erase.min_ratio=0", "expected a number from 0.001"),
        ("augment.ops=[resized_crop] augment.resized_crop.min_area=0", "expected a number from 0.0001"),
        ("augment.ops=[three] augment.three.max_sigma=3", "expected a number from 0.01 to 2"),
        ("augment.ops=[erase] augment.erase.value=maen", "expected zero or mean or random"),
        ("model.kwargs=3", "model=vit_small has no key 'kwargs'"),
    ],
)
def test_a_value_of_a_wrong_kind_is_refused(typed: str, said: str) -> None:
    assert said in refused(*typed.split())


OUT_OF_RANGE: dict[str, list[Any]] = {
    "seed": [-1, 2**32],
    "study": ["../elsewhere", "/elsewhere", "a//b", "", ".hidden"],
    "compile": ["yes"],
    "resume": [3],
    "optimizer.lr": [0, -1e-3, 1000, float("nan"), float("inf"), None],
    "optimizer.weight_decay": [-0.1],
    "optimizer.betas": [[0.9, 1.0]],
    "optimizer.eps": [0],
    "optimizer.fused": [1],
    "scheduler.final_ratio": [1.5],
    "scheduler.warmup_epochs": [-1],
    "scheduler.warmup_fraction": [1.0],
    "task.label_smoothing": [1.0, -0.1],
    "model.dropout": [1.0],
    "model.attn_dropout": [-0.1],
    "model.drop_path": [1, None],
    "model.depth": [0, 10**6],
    "model.dim": [10**7],
    "model.patch_size": [[4, 4, 4]],
    "model.mlp_ratio": [0],
    "model.position": ["above"],
    "data.batch_size": [0, 10**9],
    "data.val_size": [-5, 1.5],
    "data.normalization": ["imagenet", {"mean": [0.5, 0.5, 0.5]}, {"mean": [0.5] * 3, "std": [0.0] * 3}],
    "data.num_workers": [-1],
    "trainer.accelerator": ["npu"],
    "trainer.devices": [0, []],
    "trainer.precision": ["half", None],
    "trainer.max_epochs": [0, None],
    "trainer.max_steps": [0],
    "trainer.max_time": ["12:00", {"fortnights": 1}],
    "trainer.limit_val_batches": [1.5],
    "trainer.accumulate_grad_batches": [0],
    "trainer.gradient_clip_val": [-1],
    "trainer.gradient_clip_algorithm": ["max"],
    "trainer.log_every_n_steps": [0],
    "trainer.profiler": ["fast"],
    "callbacks.checkpoint.every_minutes": [0],
}


@pytest.mark.parametrize(("key", "value"), [(key, v) for key, values in OUT_OF_RANGE.items() for v in values])
def test_a_value_out_of_range_is_refused_by_name(problems_with: Check, key: str, value: Any) -> None:
    (said,) = problems_with({key: value}).values()
    assert re.fullmatch(rf"{key}=.*expected .* found .*", said)


def test_nan_is_refused_where_no_rule_looks(problems_with: Check) -> None:
    (said,) = problems_with({"model.kwargs": {"deep": [{"value": float("nan")}]}}).values()
    assert "model.kwargs.deep.0.value=nan: expected a finite number" in said
