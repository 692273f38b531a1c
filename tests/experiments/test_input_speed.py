"""What vitlab's input is measured against does what it is said to do."""

import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torchvision.transforms import v2

from experiments.input_speed import study
from experiments.input_speed.references import (
    Pool,
    load,
    load_whole_batches,
    transform,
    tutorial_net,
    worker_counts,
)
from tests.benchmark.test_checks import config
from tests.benchmark.test_measure import TINY
from vitlab.core.errors import UserError
from vitlab.models.flops import count_parameters
from vitlab.training.build import build_net

CPU = torch.device("cpu")
BOTH = pytest.mark.parametrize("library", [torchvision.transforms, v2], ids=["pil", "v2"])


def build(library: Any, *overrides: str, mean: float = 0.0, std: float = 1.0, **sizes: Any) -> Any:
    sizes = {"image_size": (8, 8), "input_size": (8, 8)} | sizes
    return transform(library, config(*overrides), mean=[mean] * 3, std=[std] * 3, **sizes)


@BOTH
def test_the_counterpart_has_the_configured_values(library: Any) -> None:
    crop, flip, rand, _, _ = build(
        library,
        "augment=randaugment",
        "augment.crop.padding=2",
        "augment.crop.padding_mode=reflect",
        "augment.flip.p=0.25",
        "augment.randaugment.num_ops=3",
        "augment.randaugment.magnitude=7",
        "augment.randaugment.interpolation=bilinear",
        "augment.randaugment.fill=128",
    ).transforms
    assert isinstance(crop, library.RandomCrop)
    assert (crop.size, crop.padding_mode) == ((8, 8), "reflect")
    assert crop.padding in (2, [2, 2, 2, 2])
    assert flip.p == 0.25
    assert isinstance(rand, library.RandAugment)
    assert (rand.num_ops, rand.magnitude, rand.num_magnitude_bins) == (3, 7, 31)
    assert rand.interpolation.value == "bilinear"
    assert rand.fill == [128.0] * 3 or 128.0 in rand.fill.values() or [128.0] * 3 in rand.fill.values()


@BOTH
@pytest.mark.parametrize(
    ("choice", "kind"), [("autoaugment", "AutoAugment"), ("trivialaugment", "TrivialAugmentWide")]
)
def test_each_policy_has_its_own(library: Any, choice: str, kind: str) -> None:
    found = build(library, f"augment={choice}").transforms[2]
    assert isinstance(found, getattr(library, kind))
    assert getattr(found, "policy", torchvision.transforms.AutoAugmentPolicy.CIFAR10).value == "cifar10"
    assert getattr(found, "num_magnitude_bins", 31) == 31


@BOTH
def test_without_augmentation_it_is_preprocessing(library: Any) -> None:
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    steps = build(library, "augment=none", mean=0.5, std=0.25)
    pool = Pool(images, torch.arange(6), steps, pil=library is not v2)
    image, label = pool[4]
    assert label == 4
    torch.testing.assert_close(image, (images[4] / 255 - 0.5) / 0.25)


@BOTH
def test_images_come_at_the_size_of_the_model(library: Any) -> None:
    steps = build(library, "augment=basic", image_size=(8, 6), input_size=(12, 10))
    pool = Pool(torch.zeros(2, 3, 8, 6, dtype=torch.uint8), torch.arange(2), steps, pil=library is not v2)
    assert pool[0][0].shape == (3, 12, 10)


def test_gray_images_become_pil_too() -> None:
    images = torch.arange(2 * 16, dtype=torch.uint8).view(2, 1, 4, 4)
    pool = Pool(images, torch.arange(2), torchvision.transforms.ToTensor(), pil=True)
    np.testing.assert_allclose(pool[1][0].numpy() * 255, images[1].numpy(), atol=1e-4)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_goes_on_after_an_epoch_and_shuffles(workers: int) -> None:
    images = torch.zeros(12, 3, 4, 4, dtype=torch.uint8)
    pool = Pool(images, torch.arange(12), v2.ToDtype(torch.float32, scale=True), pil=False)
    batches = load(pool, 4, workers, seed=0, device=CPU)
    labels = torch.cat([labels for _, labels in islice(batches, 6)])  # two epochs
    batches.close()  # type: ignore[attr-defined]
    assert Counter(labels.tolist()) == dict.fromkeys(range(12), 2)
    assert labels[:12].tolist() != labels[12:].tolist()


def test_whole_batches_are_drawn_once_and_go_on() -> None:
    images = torch.arange(9, dtype=torch.uint8)[:, None, None, None].expand(9, 3, 2, 2)
    calls = []

    def once(batch: torch.Tensor) -> torch.Tensor:
        calls.append(batch.shape)
        return batch

    found = list(islice(load_whole_batches(images, torch.arange(9), once, 4, seed=0), 5))
    assert calls == [(4, 3, 2, 2)] * 5
    assert all(batch[:, 0, 0, 0].tolist() == labels.tolist() for batch, labels in found)
    assert len(set(torch.cat([labels for _, labels in found[:2]]).tolist())) == 8


def test_the_numbers_of_workers_to_try(monkeypatch: pytest.MonkeyPatch) -> None:
    for most, expected in (
        (1, [0, 1]),
        (2, [0, 1, 2]),
        (6, [0, 1, 2, 3, 4, 6]),
        (16, [0, 1, 2, 3, 4, 8, 16]),
    ):
        monkeypatch.setenv("VITLAB_CORES", str(most))
        assert worker_counts(None) == expected
    assert worker_counts([5, 0, 5]) == [5, 0]


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_the_tutorials_network_has_our_shape(pool: str) -> None:
    model = config()["model"] | {"num_classes": 10, "channels": 3, "image_size": 32, "pool": pool, "depth": 2}
    ours = build_net({"model": model})
    theirs = tutorial_net(model)
    assert theirs(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    dim, patch = 192, 3 * 4 * 4
    around_the_projection = 2 * patch + 2 * dim  # norms before and after it
    no_bias = 2 * 3 * dim  # queries, keys and values of two blocks
    assert count_parameters(theirs) - count_parameters(ours) == around_the_projection - no_bias


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("augment=three_augment", r"augment.three \(ThreeAugment\) has no counterpart"),
        ("augment=randaugment augment.randaugment.space=timm", "RandAugment with space=timm"),
        ("augment=randaugment augment.randaugment.magnitude=9.5", "RandAugment with magnitude=9.5"),
        ("model=resnet18", "ResNet as configured"),
        ("model=vit_convstem_tiny", "as configured has no counterpart"),
        ("model.pool=sequence", "with pool=sequence has no counterpart"),
        ("model.attention.qk_norm=true", "with attention.qk_norm=true has no counterpart"),
    ],
)
def test_what_has_no_counterpart_is_refused(overrides: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        study.main([*overrides.split(), f"--out={tmp_path / 'no'}"])
    assert not (tmp_path / "no").exists()


def test_the_study_measures_every_candidate(tmp_path: Path) -> None:
    study.main([*TINY, f"--out={tmp_path}", "--worker-counts", "0", "1", "--pool=16"])
    layers = json.loads((tmp_path / "results.json").read_text())["layers"]
    assert {layer: list(rows) for layer, rows in layers.items()} == {
        "step": ["vitlab", "plain", "tutorial"],
        "input": ["vitlab", "pil", "torchvision", "torchvision_batch"],
        "input_one_core": ["vitlab", "pil", "torchvision", "torchvision_batch"],
        "both": ["vitlab", "plain", "tutorial"],
    }
    for row in (layers["input"]["pil"], layers["input"]["torchvision"], layers["both"]["tutorial"]):
        rates = row["images_per_second_by_workers"]
        assert {*rates} == {"0", "1"}
        assert row["workers"] == int(max(rates, key=lambda workers: rates[workers]))
    assert layers["input_one_core"]["pil"]["workers"] == 0
