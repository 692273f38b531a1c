"""Batches: every image once, an order by (seed, epoch), the ranks a split of one batch."""

import pytest
import torch

from vitlab.data.loader import EvalLoader, TrainLoader


def tensors(number: int):
    labels = torch.arange(number)
    return labels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).contiguous(), labels


def train_loader(number=50, batch_size=8, seed=0, rank=0, world_size=1, at=(0, 0), **options):
    return TrainLoader(
        *tensors(number),
        batch_size=batch_size,
        seed=seed,
        rank=rank,
        world_size=world_size,
        position=at if callable(at) else lambda: at,
        **options,
    )


def seen(loader) -> list[int]:
    return torch.cat([batch.targets[: batch.valid] for batch in loader]).tolist()


def test_an_epoch_shows_every_image_at_most_once_and_drops_the_rest():
    loader = train_loader()
    assert len(loader) == 6
    assert len(set(seen(loader))) == 48
    for batch in loader:
        assert batch.images.dtype == torch.uint8
        assert batch.targets.dtype == torch.int64
        assert batch.images[:, 0, 0, 0].tolist() == batch.targets.tolist()


def test_the_order_is_a_function_of_seed_and_epoch_alone():
    first = seen(train_loader())
    torch.manual_seed(7)
    state = torch.get_rng_state()
    assert seen(train_loader()) == first
    assert torch.equal(torch.get_rng_state(), state), "no draw from the global generator"
    assert seen(train_loader(at=(1, 0))) != first
    assert seen(train_loader(seed=1)) != first
    assert seen(train_loader(at=(1, 0), reshuffle=False)) == first


def test_it_continues_in_the_middle_of_an_epoch():
    whole, rest = list(train_loader(at=(3, 0))), list(train_loader(at=(3, 4)))
    assert [batch.index for batch in rest] == [4, 5]
    assert {batch.epoch for batch in rest} == {3}
    for a, b in zip(whole[4:], rest, strict=True):
        assert torch.equal(a.images, b.images)
    assert len(train_loader(at=(3, 4))) == 6, "the length stays that of an epoch"
    assert list(train_loader(at=(3, 6))) == []


def test_the_position_is_asked_when_the_first_batch_is_drawn():
    at = [(0, 0)]
    batches = iter(train_loader(at=lambda: at[0]))
    at[0] = (2, 3)
    first = next(batches)
    assert (first.epoch, first.index) == (2, 3)


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_ranks_share_each_global_batch(world_size):
    alone = list(train_loader())
    ranks = [list(train_loader(rank=r, world_size=world_size)) for r in range(world_size)]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert torch.equal(whole.images, torch.cat([part.images for part in parts]))


@pytest.mark.parametrize("loader", [train_loader, lambda **o: EvalLoader(*tensors(9), **o)])
def test_an_uneven_split_is_refused(loader):
    with pytest.raises(ValueError, match="multiple of 3"):
        loader(batch_size=8, rank=0, world_size=3)


@pytest.mark.parametrize("number", [1, 7, 8, 9, 16, 17, 23])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_evaluation_counts_every_image_once_in_batches_of_one_shape(number, world_size):
    loaders = [
        EvalLoader(*tensors(number), batch_size=8, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    rows = []
    for loader in loaders:
        batches = list(loader)
        assert len(batches) == len(loader) == -(-number // 8)
        for batch in batches:
            assert batch.images.shape == (8 // world_size, 3, 2, 2)
            assert batch.targets.shape == (8 // world_size,)
            assert batch.targets[batch.valid :].eq(0).all()
        rows += seen(loader)
    assert sorted(rows) == list(range(number))


def test_evaluation_keeps_the_order():
    assert seen(EvalLoader(*tensors(20), batch_size=8, rank=0, world_size=1)) == list(range(20))
