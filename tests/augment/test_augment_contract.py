"""Every option of augment, and every augmentation by itself, keeps the contract; new ones are found."""

import functools

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from vitlab.config import CONF, compose, to_plain

FILES = [f"augment={file.stem}" for file in sorted((CONF / "augment").glob("*.yaml"))]
OPS = [name for name, node in OmegaConf.load(CONF / "augment_ops.yaml").items() if OmegaConf.is_dict(node)]


FILLS = [f"augment.ops=[erase] augment.erase.value={value}" for value in ("zero", "mean")]


@functools.cache
def composed(typed):
    return to_plain(compose(typed.split()))["augment"]


@pytest.fixture(params=[*FILES, *(f"augment.ops=[{name}]" for name in OPS), *FILLS])
def augment(request):
    return instantiate(composed(request.param), _convert_="all")


SHAPES = [(16, 3, 32, 32), (5, 1, 7, 11), (0, 3, 32, 32), (1, 3, 32, 32), (3, 3, 1, 1), (3, 3, 224, 224)]
CASES = [(s, d) for s in SHAPES for d in (torch.uint8, torch.float32)] + [(SHAPES[1], torch.bfloat16)]


@pytest.mark.parametrize(("shape", "dtype"), CASES, ids=str)
def test_the_contract(augment, shape, dtype):
    if min(shape[2:]) == 1 and "crop" in augment.ops and augment.ops["crop"].padding_mode == "reflect":
        pytest.skip("a reflection must fit into the image")
    seed = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, shape, generator=seed, dtype=torch.uint8)
    images = images if dtype == torch.uint8 else (images / 255).to(dtype)
    targets = torch.eye(10)[torch.arange(shape[0]) % 10]
    before = images.clone(), targets.clone()
    state = torch.get_rng_state()

    def call(start):
        return augment(images, targets, torch.Generator().manual_seed(start))

    out, soft = call(0)
    assert out.shape == images.shape
    assert out.dtype == images.dtype
    assert soft.shape == targets.shape
    assert not out.numel() or (out.min() >= 0 and out.max() <= (255 if dtype == torch.uint8 else 1.0001))
    torch.testing.assert_close(soft.sum(1), torch.ones(shape[0]))
    assert (soft >= 0).all()
    again, soft_again = call(0)
    assert torch.equal(out, again)
    assert torch.equal(soft, soft_again)
    assert torch.equal(torch.get_rng_state(), state), "no draw from the global generator"
    assert torch.equal(images, before[0])
    assert torch.equal(targets, before[1])
    assert isinstance(augment, torch.nn.Module)
    strided = images.transpose(2, 3)
    ours, theirs = (
        augment(x, targets, torch.Generator().manual_seed(0))[0] for x in (strided, strided.contiguous())
    )
    torch.testing.assert_close(ours, theirs)  # a mean in another order may differ in its last bit


def test_images_of_one_batch_are_drawn_apart(augment):
    if {*augment.ops} <= {"mix"}:
        pytest.skip("nothing is drawn, or an image is mixed with itself")
    one = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    out, _ = augment(
        one.expand(32, -1, -1, -1).contiguous(),
        torch.eye(10)[torch.zeros(32, dtype=torch.long)],
        torch.Generator().manual_seed(0),
    )
    assert len({image.numpy().tobytes() for image in out}) > (1 if len(augment.ops) == 1 else 8)
