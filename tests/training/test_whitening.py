"""First weights that follow from the data: of the training images alone, and kept by the checkpoint."""

import torch

from tests.conftest import TINY, Train, checkpoint
from vitlab.config import combinations
from vitlab.training.build import build
from vitlab.training.instantiate import load_net

WHITE = ["model/tokenizer=conv_blocks", "model.tokenizer.width=4", "model.tokenizer.whiten=true"]
KERNELS = "tokenizer.layers.0.weight"


def test_whitening_is_measured_on_training_images_alone() -> None:
    def kernels(*options: str) -> torch.Tensor:
        (job,) = combinations([*TINY, *WHITE, *options])
        return build(job.record).net.get_parameter(KERNELS)

    first = kernels()
    assert torch.equal(kernels("seed=1"), first)
    assert not torch.equal(kernels("data.split_seed=1"), first)  # other images are held out


def test_whitening_is_neither_trained_nor_measured_again(train: Train) -> None:
    folder = train(*WHITE, "optimizer=muon", "optimizer.kernels=true", "callbacks.ema.decay=0.5")
    (job,) = combinations([*TINY, *WHITE])
    measured = build(job.record).net.get_parameter(KERNELS)
    assert torch.equal(checkpoint(folder)["state_dict"][f"net.{KERNELS}"], measured)
    net, _ = load_net(folder / "checkpoints" / "best.ckpt")
    assert torch.equal(net.get_parameter(KERNELS), measured)
    other = [*TINY, *WHITE, "data.split_seed=1", f"model.checkpoint_path={folder}"]
    (job,) = combinations(other)
    assert torch.equal(build(job.record).net.get_parameter(KERNELS), measured)
