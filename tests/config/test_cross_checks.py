"""Values that are right alone and wrong together."""

from typing import Any

import pytest
import yaml

from tests.config.helpers import Check, refused


def read(values: str) -> dict[str, Any]:
    """Read ``key=value key=value`` as YAML does."""
    return {key: yaml.safe_load(value) for key, _, value in (v.partition("=") for v in values.split())}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ("model.patch_size=5", "model.patch_size=5 32 x 32 choose 1, 2, 4, 8, 16 or 32"),
        ("model.image_size=[32,48] model.patch_size=[8,9]", "32 x 48 1, 2, 4, 8 or 16"),
        ("model.heads=7", "model.heads=7 model.dim=384 1, 2, 3, 4, 6, 8 model.dim_head"),
        ("model.dim=6 model.heads=3 model.position=sincos", "sincos model.dim=8"),
        ("model.mlp_ratio=0.001", "model.mlp_ratio=0.001"),
        ("data.val_size=50000", "data.val_size=50000 50,000 training images fraction"),
        ("data.batch_size=45001", "data.batch_size=45001 45,000 training images"),
        ("data.num_classes=12 model.num_classes=12", "data.num_classes=12 cifar10 data.num_classes=10"),
        ("model.num_classes=12", "model.num_classes=12 data.num_classes=10 labels"),
        ("model.channels=1", "model.channels=1 data.channels=3 images"),
        (
            'data.normalization={"mean":[0.5],"std":[0.5,0.5,0.5]}',
            "data.normalization.mean=[0.5] data.channels=3",
        ),
        ("data.kind=image_folder data.root=null", "data=image_folder data.root=FOLDER"),
        ("trainer.max_epochs=-1", "never end trainer.max_steps trainer.max_time"),
        (
            "trainer.max_epochs=-1 trainer.max_time=00:01:00:00",
            "scheduler=warmup_cosine trainer.max_time scheduler=constant",
        ),
        ("trainer.min_epochs=99", "trainer.min_epochs=99 trainer.max_epochs=20"),
        ("trainer.max_steps=5 trainer.min_steps=9", "trainer.min_steps=9 trainer.max_steps=5"),
        (
            "scheduler.warmup_epochs=5 scheduler.warmup_steps=5",
            "scheduler.warmup_epochs=5 scheduler.warmup_steps=5 both",
        ),
        ("scheduler.warmup_epochs=21", "scheduler.warmup_epochs=21 scheduler.warmup_fraction"),
        ("scheduler.warmup_steps=99999", "scheduler.warmup_steps=99999 trainer.max_epochs"),
        (
            "data.kind=image_folder data.root=x scheduler.warmup_epochs=20.5",
            "scheduler.warmup_epochs=20.5 20 epochs",
        ),
        ("trainer.limit_train_batches=0", "no training batch"),
        ("trainer.devices=3", "data.batch_size=128 3 devices 126 or 129"),
        ("trainer.devices=[0,1,2]", "data.batch_size=128 3 devices"),
        ("trainer.devices=2 trainer.num_nodes=3", "6 devices"),
        ("trainer.accelerator=cpu trainer.precision=16-mixed", "trainer.precision=16-mixed CPU bf16-mixed"),
        ("trainer.accelerator=cpu trainer.precision=16", "trainer.precision=16 CPU"),
        ("trainer.strategy=fsdp trainer.precision=16-mixed", "trainer.precision=16-mixed fsdp bf16-mixed"),
        ("trainer.strategy=fsdp callbacks.ema.decay=0.9", "callbacks.ema.decay=0.9 null strategy=ddp"),
        (
            "trainer.strategy=fsdp callbacks.diagnostics.every_epochs=1",
            "callbacks.diagnostics.every_epochs=1 null strategy=ddp",
        ),
    ],
)
def test_values_that_do_not_fit_are_refused_with_what_to_write(
    problems_with: Check, values: str, words: str
) -> None:
    (said,) = problems_with(read(values)).values()
    for word in (words,) if words in said else words.split(" "):
        assert word in said


@pytest.mark.parametrize(
    "values",
    [
        "scheduler.warmup_epochs=20",
        "scheduler.warmup_fraction=0.5",
        "trainer.max_epochs=-1 trainer.max_steps=100",
        "trainer.devices=auto data.batch_size=129",
        "trainer.accelerator=auto trainer.precision=16-mixed",
        "model.heads=7 model.dim_head=16",
        "data.val_size=0 data.batch_size=50000",
        "data.num_classes=null",
    ],
)
def test_values_that_fit_pass(problems_with: Check, values: str) -> None:
    assert not problems_with(read(values))


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (
            "model=timm_vit_b16 model.pretrained=true model.checkpoint_path=a.pth",
            "model.pretrained=true and model.checkpoint_path both give the weights",
        ),
        ("model=vit_convstem_tiny model.patch_size=6 data.image_size=36", "power of two"),
        ("model=vit_convstem_tiny model.patch_size=16", "set model.tokenizer.num_convs=4"),
        (
            "model=vit_convstem_tiny model.dim=198 model.heads=3 model.tokenizer.num_convs=4",
            "a multiple of 8",
        ),
        ("model/tokenizer=cct model.patch_size=8", "set model.patch_size=4, or model.tokenizer.num_layers=3"),
        ("model/tokenizer=cct model.patch_size=[4,2]", "set model.patch_size=4"),
        (
            "model/tokenizer=cct model.tokenizer.num_layers=1",
            "set model.patch_size=2, or model.tokenizer.num_layers=2",
        ),
        ("model/tokenizer=cct model.patch_norm=true", "model/tokenizer=cct has none: set it to false"),
        ("model/tokenizer=conv_blocks model.patch_size=[4,1] model.patch_norm=true", "set it to false"),
        (
            "model/tokenizer=conv_blocks data.image_size=36 model.patch_size=6",
            "conv blocks only halve: choose 2, 4, 8 or 16",
        ),
        ("model/tokenizer=spt model.patch_size=1", "no half to shift by"),
        ("augment=strong augment.randaugment.magnitude=11", "magnitude=11 is more than 10"),
        (
            "data=shapes augment.crop.padding_mode=reflect augment.crop.padding=32",
            "less than the image's side of 32",
        ),
        (
            "augment=strong augment.erase.min_area=0.5",
            "augment.erase.min_area=0.5 is more than augment.erase.max_area",
        ),
        ("augment=mixup_cutmix augment.mix.mixup_alpha=0 augment.mix.cutmix_alpha=null", "are both off"),
        (
            "callbacks.early_stopping.patience=3 data.val_size=0",
            "callbacks.early_stopping.patience=3 needs validation, which data.val_size=0 turns off",
        ),
        (
            "callbacks.checkpoint.requeue=true trainer.enable_checkpointing=false",
            "needs a checkpoint to go on from, and trainer.enable_checkpointing=false keeps none",
        ),
        ("callbacks.checkpoint.requeue=true trainer.fast_dev_run=3", "trainer.fast_dev_run=3 keeps none"),
        ("augment=randaugment augment.randaugment.fill=[1,2]", "has 2 levels for data.channels=3"),
    ],
)
def test_parts_of_a_model_and_augmentations_that_cannot_be_are_refused(typed: str, said: str) -> None:
    assert said in refused(*typed.split())
