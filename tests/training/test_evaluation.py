"""A test can be repeated from the checkpoint alone, to the last bit."""

from pathlib import Path

import pytest
import torch

from tests.conftest import Train, slow, summary
from vitlab.core.checkpoint import CheckpointMeta
from vitlab.core.hardware import has_compiler
from vitlab.core.run_folder import find_checkpoint
from vitlab.data import datasets
from vitlab.data.datamodule import ImageData
from vitlab.training.evaluation import evaluate, restore_data
from vitlab.training.instantiate import load_net


def restore(folder: Path) -> tuple[torch.nn.Module, CheckpointMeta, ImageData]:
    net, meta = load_net(find_checkpoint(folder, ""))
    return net, meta, restore_data(meta, datasets.build(meta["config"]["data"]))


def own_test(folder: Path) -> dict[str, float]:
    metrics = summary(folder)["metrics"]
    return {key.removeprefix("test/"): value for key, value in metrics.items() if key.startswith("test/")}


def test_a_test_is_repeated_to_the_last_bit(finished: Path) -> None:
    assert evaluate(*restore(finished)).metrics == own_test(finished)


@pytest.mark.parametrize(
    "overrides",
    [
        ["callbacks.ema.decay=0.5", "data.channels=1"],
        ["trainer.precision=bf16-mixed", "trainer.limit_test_batches=3"],
        slow(["trainer.precision=bf16-true"]),
        slow(["trainer.precision=64-true", "data.num_test=40"]),
        slow(["data.val_size=0", "trainer.limit_test_batches=0.5"]),
        slow(["compile=true"]),
        slow(["augment=randaugment", "data.in_memory=false"]),
    ],
    ids=" ".join,
)
def test_whatever_a_run_computes_with_its_test_is_repeated(train: Train, overrides: list[str]) -> None:
    if "compile=true" in overrides and not has_compiler("cpu"):
        pytest.skip("no compiler")
    folder = train(*overrides)
    net, meta, data = restore(folder)
    assert evaluate(net, meta, data).metrics == own_test(folder)
    assert evaluate(net, meta, data).metrics == own_test(folder)  # the network can be used again


def test_what_is_said_of_each_image_stands_in_the_order_of_the_data(finished: Path) -> None:
    net, meta, data = restore(finished)
    found = evaluate(net, meta, data)
    images, labels = data.read("test", found.rows)
    assert found.rows.tolist() == list(range(data.num_test))
    assert torch.equal(found.labels, labels)
    with torch.no_grad():
        expected = net(data.preprocess(images))
    torch.testing.assert_close(found.logits, expected, atol=1e-5, rtol=1e-5)


def test_the_hold_out_and_the_training_images_are_evaluated_too(finished: Path) -> None:
    net, meta, data = restore(finished)
    best = summary(finished)["metrics"]
    assert evaluate(net, meta, data, "val").metrics["accuracy"] == best["val/accuracy"]
    assert len(evaluate(net, meta, data, "train").rows) == data.num_train


def test_a_change_sees_the_pixels_and_their_rows(finished: Path) -> None:
    net, meta, data = restore(finished)
    originals, _ = data.read("test", torch.arange(data.num_test))

    def blacken(images: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        assert torch.equal(images, originals[rows])
        return images * (rows % 2)[:, None, None, None].to(images.dtype)

    plain, changed = evaluate(net, meta, data), evaluate(net, meta, data, change=blacken)
    assert torch.equal(changed.logits[1::2], plain.logits[1::2])
    assert torch.equal(changed.logits[0], changed.logits[2])  # two black images
    assert torch.equal(evaluate(net, meta, data).logits, plain.logits)  # the data are as they were


def test_flipping_averages_the_probabilities_of_both(finished: Path) -> None:
    net, meta, data = restore(finished)
    plain = evaluate(net, meta, data)
    mirrored = evaluate(net, meta, data, change=lambda images, rows: images.flip(-1))
    both = evaluate(net, meta, data, flip=True)
    expected = (plain.logits.softmax(-1) + mirrored.logits.softmax(-1)) / 2
    torch.testing.assert_close(both.logits.exp(), expected)
