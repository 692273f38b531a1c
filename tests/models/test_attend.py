"""Attention written out and by torch's kernel are the same function, with and without a mask."""

import math

import pytest
import torch

from vitlab.models.attention import attend


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("tokens", [16, 65, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attend_is_a_mean_weighted_by_the_softmax_of_the_scores_that_a_query_sees(
    tokens: int, dtype: torch.dtype, masked: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, tokens, 8, generator=generator).to(dtype) for _ in range(3))
    mask = torch.rand(2, 3, tokens, tokens, generator=generator) < (0.5 if masked else 1)
    mask[..., 0] = True
    weights = (q.float() @ k.float().mT / math.sqrt(8)).exp() * mask
    expected = weights / weights.sum(-1, keepdim=True) @ v.float()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = attend(q, k, v, 0.0, mask if masked else None)
    assert found.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found.float(), expected, atol=tolerance, rtol=tolerance)


def test_attention_dropout_drops_weights_and_keeps_their_mean() -> None:
    torch.manual_seed(0)
    q = k = torch.zeros(64, 1, 32, 4, dtype=torch.bfloat16)
    mixed = attend(q, k, torch.ones_like(q), 0.5)
    assert mixed.float().mean().item() == pytest.approx(1.0, abs=0.02)
    assert mixed.float().std() > 0.05
