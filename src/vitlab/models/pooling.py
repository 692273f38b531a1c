"""Pooling: what the head reads. A kind is a class of this signature and an entry in POOLINGS."""

from torch import Tensor, nn

from vitlab.models.layers import layer_norm


class Pooling(nn.Module):
    """Reads one vector ``(B, dim)`` off the last block's tokens ``(B, prefix + N, dim)``, normalised.

    Attributes:
        prefix: how many learnable tokens the model puts before those of the image for this.
        norm: the LayerNorm that ends a transformer of pre-normalised blocks.
    """

    prefix: int = 0

    def __init__(self, *, dim: int) -> None:
        super().__init__()
        self.norm = layer_norm(dim)


class ClassTokenPooling(Pooling):
    """The class token (Dosovitskiy et al. 2021, section 3.1)."""

    prefix = 1

    def forward(self, tokens: Tensor) -> Tensor:
        return self.norm(tokens[:, 0])


class MeanPooling(Pooling):
    """The mean of the patch tokens (Beyer et al. 2022, "Better plain ViT baselines for ImageNet-1k")."""

    def forward(self, tokens: Tensor) -> Tensor:
        return self.norm(tokens.mean(dim=1))  # norm last: it keeps the head's input at unit scale


class SequencePooling(Pooling):
    """A mean whose weights a linear score of each token decides.

    Source: CCT, "Escaping the Big Data Paradigm with Compact Transformers" (Hassani et al. 2021, section
    3, "SeqPool"); the norm comes first, as in their code. Their score has a bias, which the softmax ignores.
    """

    def __init__(self, *, dim: int) -> None:
        super().__init__(dim=dim)
        self.score = nn.Linear(dim, 1, bias=False)
        nn.init.normal_(self.score.weight, std=0.02)  # near the mean at first

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.norm(tokens)  # (B, N, dim)
        weights = self.score(tokens).softmax(dim=1)  # (B, N, 1)
        return (weights.transpose(1, 2) @ tokens).squeeze(1)  # (B, dim)


POOLINGS: dict[str, type[Pooling]] = {
    "cls": ClassTokenPooling,
    "mean": MeanPooling,
    "sequence": SequencePooling,
}
