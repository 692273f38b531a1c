"""DropKey: which keys are lost, when, and what attention makes of the others."""

import importlib

import pytest
import torch

from tests.models.helpers import make_attention, some_tokens
from vitlab.core.hardware import has_compiler
from vitlab.models.attention import Attention, LinformerAttention, LocalityAttention, attend, drop_keys


def test_every_query_of_every_head_loses_keys_of_its_own() -> None:
    torch.manual_seed(0)
    queries = torch.zeros(32, 4, 20, 8)
    keep = drop_keys(queries, torch.zeros(32, 4, 30, 8), 0.3)
    assert keep.shape == (32, 4, 20, 30)
    assert keep.dtype == torch.bool
    lost = (~keep).float()
    assert lost.mean().item() == pytest.approx(0.3, abs=0.01)
    for axis in range(4):  # what is drawn is drawn along each of them: no two slices are the same
        a, b = lost.unbind(axis)[:2]
        assert (a * b).mean().item() == pytest.approx(0.09, abs=0.03)


@pytest.mark.parametrize("masked", [False, True])
def test_a_query_that_would_lose_all_keys_loses_none(masked: bool) -> None:
    torch.manual_seed(0)
    queries = torch.zeros(64, 2, 5, 8)
    mask = ~torch.eye(5, dtype=torch.bool) if masked else None
    keep = drop_keys(queries, queries, 0.9, mask)
    everything = torch.ones(5, 5, dtype=torch.bool) if mask is None else mask
    assert not (keep & ~everything).any()
    assert keep.any(-1).all()
    # With 4 or 5 keys a query loses all of them more often than it keeps one or two.
    assert (keep == everything).all(-1).float().mean() > 0.5
    assert (keep.sum(-1) == 1).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_query_attends_to_the_keys_that_are_left(dtype: torch.dtype) -> None:
    """On both paths of `attend`, whose own test has the formula."""
    attention, tokens = make_attention(Attention, drop_key=0.4).train(), some_tokens()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        torch.manual_seed(3)
        found = attention(tokens)
        queries, keys, values = attention.queries_keys_values(tokens)
        torch.manual_seed(3)
        mask = drop_keys(queries, keys, 0.4)
        expected = attention.out(attend(queries, keys, values, 0.0, mask).transpose(1, 2).flatten(2))
        assert torch.equal(found, expected)
        assert not torch.allclose(attention.eval()(tokens), found, atol=2e-2)


@pytest.mark.parametrize("kind", [Attention, LocalityAttention, LinformerAttention])
def test_drop_key_acts_in_training_only(kind: type[Attention]) -> None:
    attention, plain, tokens = make_attention(kind, drop_key=0.5), make_attention(kind), some_tokens()
    torch.testing.assert_close(attention.eval()(tokens), plain.eval()(tokens))
    first, second = attention.train()(tokens), attention(tokens)
    assert not torch.allclose(first, second)
    torch.testing.assert_close(plain.train()(tokens), plain(tokens))


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler("cpu"), reason="no C++ compiler")
def test_drop_key_compiles_to_the_same_distribution() -> None:
    importlib.import_module("torch._dynamo").reset()
    attention, tokens = make_attention(Attention, drop_key=0.5).train(), some_tokens(1).expand(8192, -1, -1)
    torch.manual_seed(0)
    with torch.no_grad():
        eager = attention(tokens)
        attention.compile(dynamic=False)
        compiled = attention(tokens)
    assert not torch.equal(eager, compiled)
    torch.testing.assert_close(compiled.mean(0), eager.mean(0), atol=0.05, rtol=0)
    torch.testing.assert_close(compiled.std(0), eager.std(0), atol=0.05, rtol=0)
