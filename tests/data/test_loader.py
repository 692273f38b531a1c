"""Batches: every image once, an order by (seed, epoch), the ranks a split of one batch."""

import pytest
import torch

from tests.data.helpers import assert_same
from vitlab.data.loader import EvalLoader, Share, TrainLoader
from vitlab.data.reader import MemoryReader, StreamReader

ALONE = Share(batch_size=8, rank=0, world_size=1)


def gather(number: int) -> MemoryReader:
    """Return images that hold their own number, which lie among others."""
    labels = torch.cat((torch.full((7,), -1), torch.arange(number)))
    images = labels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).contiguous()
    return MemoryReader(images, labels, torch.arange(number) + 7)


def stream(number: int, num_workers: int = 0) -> StreamReader:
    """Return the same, streamed."""
    whole = gather(number)
    arrays = whole.images.numpy(), whole.labels, whole.rows
    return StreamReader(*arrays, num_workers=num_workers, pin_memory=False)


def train_loader(at=(0, 0), reader=gather, share=ALONE, seed=0, reshuffle=True):
    position = at if callable(at) or at is None else lambda: at
    return TrainLoader(reader(50), share, seed=seed, position=position, reshuffle=reshuffle)


@pytest.fixture(params=[gather, stream])
def reader(request):
    return request.param


def seen(loader) -> list[int]:
    return torch.cat([batch.targets[: batch.valid] for batch in loader]).tolist()


def test_an_epoch_shows_every_image_at_most_once_and_drops_the_rest(reader):
    loader = train_loader(reader=reader)
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


def test_it_continues_in_the_middle_of_an_epoch(reader):
    whole, rest = list(train_loader(at=(3, 0))), list(train_loader(at=(3, 4), reader=reader))
    assert [batch.index for batch in rest] == [4, 5]
    assert {batch.epoch for batch in rest} == {3}
    assert_same(whole[4:], rest)
    assert len(train_loader(at=(3, 4))) == 6, "the length stays that of an epoch"
    assert list(train_loader(at=(3, 6))) == []


def test_the_position_is_asked_when_the_first_batch_is_drawn(reader):
    at = [(0, 0)]
    batches = iter(train_loader(at=lambda: at[0], reader=reader))
    at[0] = (2, 3)
    first = next(batches)
    assert (first.epoch, first.index) == (2, 3)


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_ranks_share_each_global_batch(world_size, reader):
    alone = list(train_loader())
    shares = [Share(8, rank, world_size) for rank in range(world_size)]
    ranks = [list(train_loader(share=share, reader=reader)) for share in shares]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert torch.equal(whole.images, torch.cat([part.images for part in parts]))


def test_an_uneven_split_is_refused():
    with pytest.raises(ValueError, match="multiple of 3"):
        Share(8, rank=0, world_size=3)


@pytest.mark.parametrize("number", [1, 7, 8, 9, 16, 17, 23])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_evaluation_counts_every_image_once_in_batches_of_one_shape(number, world_size, reader):
    loaders = [
        EvalLoader(reader(number), Share(8, rank, world_size), torch.arange(number))
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


def test_evaluation_goes_by_the_order():
    order = torch.arange(19, -1, -1)
    assert seen(EvalLoader(gather(20), ALONE, order)) == order.tolist()


def test_it_says_where_it_stands_and_goes_on_from_there(reader):
    whole = [list(train_loader(at=(epoch, 0))) for epoch in range(3)]
    loader = train_loader(at=None, reader=reader)
    assert loader.state_dict() == {"epoch": 0, "batch": 0}
    batches = iter(loader)
    for index in range(4):
        assert next(batches).index == index
        assert loader.state_dict() == {"epoch": 0, "batch": index + 1}
    later = train_loader(at=None, reader=reader)
    later.load_state_dict(loader.state_dict())
    rest = [*later, *later, *later]
    assert later.state_dict() == {"epoch": 3, "batch": 0}
    assert [(b.epoch, b.index) for b in rest[:3]] == [(0, 4), (0, 5), (1, 0)]
    assert_same([*whole[0][4:], *whole[1], *whole[2]], rest)


@pytest.mark.parametrize(
    ("state", "at"),
    [((1, 3), (1, 3)), ((2, 0), (2, 0)), ((1, 3), (2, 0)), (None, (1, 3))],
    ids=["in an epoch", "at its end", "an epoch cut short", "an old checkpoint"],
)
def test_a_state_that_agrees_with_the_trainer(state, at):
    loader = train_loader(at=at)
    loader.load_state_dict({} if state is None else {"epoch": state[0], "batch": state[1]})
    first = next(iter(loader))
    assert (first.epoch, first.index) == at, "the trainer decides"


@pytest.mark.parametrize("at", [(1, 2), (1, 4), (2, 1), (0, 0), (3, 0)])
def test_a_state_that_does_not_is_no_small_matter(at):
    loader = train_loader(at=at)
    loader.load_state_dict({"epoch": 1, "batch": 3})
    with pytest.raises(RuntimeError, match="loader was at epoch 1, batch 3"):
        next(iter(loader))


def test_workers_read_ahead_and_nothing_is_lost_or_repeated():
    streamed = stream(50, num_workers=2)
    loader = train_loader(at=None, reader=lambda number: streamed)
    expected = [b.targets.tolist() for epoch in range(3) for b in train_loader(at=(epoch, 0))]
    state = torch.get_rng_state()
    batches = iter(loader)
    found = [next(batches).targets.tolist() for _ in range(2)]
    del batches  # with batches that workers have read and nobody has seen
    for _ in range(3):
        found += [b.targets.tolist() for b in loader]
    assert found == expected
    assert torch.equal(torch.get_rng_state(), state), "no draw from the global generator"
    streamed.close()
    whole = EvalLoader(streamed, Share(50, 0, 1), torch.arange(50))
    assert [b.targets.tolist() for b in whole] == [list(range(50))]
    streamed.close()
