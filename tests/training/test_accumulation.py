"""k batches of n give the same update as one of k·n."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.conftest import Train, checkpoint
from vitlab.core.metrics_csv import read_metrics
from vitlab.core.run_folder import RunFolder
from vitlab.tasks.classify import Classify

# The gradient of the keys' bias is zero, and Adam would divide its rounding error by itself.
QUIET = ("augment=none", "model.qkv_bias=false", "model.dropout=0", "trainer.gradient_clip_val=0.3")


class Seen:
    """What a run has trained on, and how it began."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, soften: bool = False) -> None:
        self.batches: list[tuple[Tensor, Tensor]] = []
        self.norms: list[float] = []
        self.start: dict[str, Tensor] = {}
        self.net: Any = None
        step, clip = Classify.training_step, Classify.configure_gradient_clipping

        def spy(task: Classify, batch: Any, batch_idx: int) -> Any:
            if soften:  # to a mixture with the next class, as mixup would
                batch = batch._replace(targets=0.7 * batch.targets + 0.3 * batch.targets.roll(1, 1))
            if not self.batches:
                self.net = task.net
                self.start = {k: v.clone() for k, v in task.net.state_dict().items()}
            self.batches.append((batch.images, batch.targets))
            return step(task, batch, batch_idx)

        def norm(task: Classify, *args: Any, **options: Any) -> None:
            self.norms.append(float(torch.nn.utils.get_total_norm([p.grad for p in task.net.parameters()])))
            clip(task, *args, **options)

        monkeypatch.setattr(Classify, "training_step", spy)
        monkeypatch.setattr(Classify, "configure_gradient_clipping", norm)


def weights(folder: Path) -> dict[str, Tensor]:
    return checkpoint(folder)["state_dict"]


@pytest.mark.parametrize(("optimizer", "rate", "soften"), [("sgd", 0.1, False), ("adamw", 0.003, True)])
def test_four_batches_of_8_are_one_of_32(train: Train, optimizer: str, rate: float, soften: bool) -> None:
    found = []
    for batch, times in ((32, 1), (8, 4)):
        with pytest.MonkeyPatch.context() as patch:
            seen = Seen(patch, soften)
            options = [f"optimizer={optimizer}", f"optimizer.lr={rate}", "trainer.max_epochs=3"]
            options += [f"data.batch_size={batch}", f"trainer.accumulate_grad_batches={times}"]
            folder = train(*QUIET, *options, name=f"{times}")
        found.append((seen, weights(folder), read_metrics(RunFolder(folder))))
    (one, big, rows), (four, small, same_rows) = found
    for a, b in zip(zip(*one.batches, strict=True), zip(*four.batches, strict=True), strict=True):
        assert torch.equal(torch.cat(a), torch.cat(b)), "the same images and targets in the same order"
    assert len(one.norms) == 6
    assert one.norms == pytest.approx(four.norms, rel=1e-4)
    assert min(one.norms) > 0.3, "clipped"
    for name, value in big.items():
        torch.testing.assert_close(small[name], value, rtol=1e-4, atol=2e-5, msg=name)
    moved = big["net.head.weight"] - one.start["head.weight"]
    assert moved.abs().max() > 2e-3, "a hundred times the tolerance"
    for key in ("step", "learning_rate", "train/loss", "val/loss"):
        assert [row[key] for row in rows] == pytest.approx([row[key] for row in same_rows], rel=1e-4), key
    # Six steps, 5 % of which is no warmup: the last step stands at 5/6 of half a cosine.
    assert rows[-1]["learning_rate"] == pytest.approx(rate * 0.5 * (1 + math.cos(math.pi * 5 / 6)))


@pytest.mark.parametrize("clip", ["0.3", "null"])
def test_the_last_step_of_an_epoch_is_the_mean_of_what_it_has_seen(
    train: Train, monkeypatch: pytest.MonkeyPatch, clip: str
) -> None:
    """Eight batches in threes: the third step of each epoch has two. Against a loop by hand."""
    seen = Seen(monkeypatch)
    options = (
        *("optimizer=sgd", "optimizer.lr=0.1", "optimizer.momentum=0", "optimizer.nesterov=false"),
        *("optimizer.weight_decay=0", "scheduler=constant", "task.label_smoothing=0.1"),
        *("trainer.accumulate_grad_batches=3", f"trainer.gradient_clip_val={clip}"),
    )
    folder = train(*QUIET, *options)
    kept = weights(folder)
    net = seen.net
    net.load_state_dict(seen.start)
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for epoch in (0, 8):
        for first, last in ((0, 3), (3, 6), (6, 8)):
            images, targets = map(torch.cat, zip(*seen.batches[epoch + first : epoch + last], strict=True))
            optimizer.zero_grad()
            F.cross_entropy(net(images), targets, label_smoothing=0.1).backward()
            if clip != "null":
                torch.nn.utils.clip_grad_norm_(net.parameters(), float(clip))
            optimizer.step()
    for name, value in net.state_dict().items():
        torch.testing.assert_close(kept[f"net.{name}"], value, rtol=1e-4, atol=1e-6, msg=name)
    assert read_metrics(RunFolder(folder))[0]["step"] == 3
