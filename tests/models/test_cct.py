"""CCT-7/3x1 and 7/3x2 against vit-pytorch's, with the same weights."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.helpers import build, renamed
from vitlab.models.flops import count_parameters, flops_per_image

cct = pytest.importorskip("vit_pytorch.cct")

# vit-pytorch's name for a parameter, as replacements in ours.
NAMES = {
    "position.table": "classifier.positional_emb",
    "blocks.": "classifier.blocks.",
    "norm1": "pre_norm",
    "norm2": "norm1",
    "attention.qkv": "self_attn.qkv",
    "attention.out": "self_attn.proj",
    "mlp.fc": "linear",
    "pool.norm": "classifier.norm",
    "pool.score": "classifier.attention_pool",
    "head.": "classifier.fc.",
    **{f"tokenizer.layers.{3 * i}": f"tokenizer.conv_layers.{i}.0" for i in range(2)},
}


def pre_norm_block(self: Any, tokens: Tensor) -> Tensor:
    """Their block as their paper draws it; the code also replaces the sum after attention by its norm."""
    tokens = tokens + self.self_attn(self.pre_norm(tokens))
    return tokens + self.linear2(F.gelu(self.linear1(self.norm1(tokens))))


@pytest.mark.parametrize(("layers", "millions"), [(1, 3.760), (2, 3.853)])
def test_logits_and_parameters_are_theirs(
    layers: int, millions: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cct.TransformerEncoderLayer, "forward", pre_norm_block)
    choice = ("model=cct_7_3x1", f"model.tokenizer.num_layers={layers}", f"model.patch_size={2**layers}")
    model = build(*choice).eval()
    reference = cct.cct_7(
        img_size=32, n_conv_layers=layers, kernel_size=3, positional_embedding="learnable", num_classes=10
    ).eval()
    for module in reference.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6
    for parameter in model.parameters():  # weights of a size that shows every difference
        nn.init.normal_(parameter, std=0.1)
    weights = {"classifier.attention_pool.bias": torch.tensor([5.0])}  # to no effect
    reference.load_state_dict(weights | renamed(model.state_dict(), NAMES), strict=True)
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(images), reference(images), atol=1e-5, rtol=1e-5)
    assert count_parameters(model) + 1 == count_parameters(reference)
    assert count_parameters(model) / 1e6 == pytest.approx(millions, abs=5e-4)


def test_the_cost_is_the_published_one() -> None:
    """0.947 G multiply-adds, which leaves out the two products inside attention."""
    inside = 7 * 2 * 256**2 * 256  # blocks, products, tokens squared, dim
    assert flops_per_image(build("model=cct_7_3x1"), 32, 3) / 2 - inside == pytest.approx(0.947e9, abs=5e5)
