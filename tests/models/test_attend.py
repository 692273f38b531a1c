"""Attention written out and by torch's kernel are the same function."""

import pytest
import torch
import torch.nn.functional as F

from vitlab.models.attention import attend


@pytest.mark.parametrize("tokens", [16, 65, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attend_is_scaled_dot_product_attention(tokens: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, tokens, 8, generator=generator).to(dtype) for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = attend(q, k, v, 0.0)
    expected = F.scaled_dot_product_attention(q.float(), k.float(), v.float())
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, atol=tolerance, rtol=tolerance)


def test_attention_dropout_drops_weights_and_keeps_their_mean() -> None:
    torch.manual_seed(0)
    q = k = torch.zeros(64, 1, 32, 4, dtype=torch.bfloat16)
    v = torch.ones(64, 1, 32, 4, dtype=torch.bfloat16)
    mixed = attend(q, k, v, 0.5)
    assert mixed.float().mean().item() == pytest.approx(1.0, abs=0.02)
    assert mixed.float().std() > 0.05
