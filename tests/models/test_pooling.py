"""Pooling: which tokens the head reads, with what weights."""

import torch

from vitlab.models.pooling import ClassTokenPooling, MeanPooling, SequencePooling

TOKENS = 3 * torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)) + 1


def norm(vectors: torch.Tensor) -> torch.Tensor:
    return (vectors - vectors.mean(-1, keepdim=True)) / vectors.std(-1, keepdim=True, correction=0)


def test_the_class_token_is_read_alone_and_the_mean_of_all() -> None:
    torch.testing.assert_close(ClassTokenPooling(dim=8)(TOKENS), norm(TOKENS[:, 0]))
    torch.testing.assert_close(MeanPooling(dim=8)(TOKENS), norm(TOKENS.mean(1)))


def test_sequence_pooling_weighs_normalised_tokens_by_the_softmax_of_a_score() -> None:
    pool = SequencePooling(dim=8)
    with torch.no_grad():
        pool.score.weight.copy_(torch.arange(8.0) / 4)
        expected = torch.zeros(2, 8)
        for image in range(2):
            tokens = norm(TOKENS[image])
            powers = [torch.exp(sum(i / 4 * token[i] for i in range(8))) for token in tokens]
            for power, token in zip(powers, tokens, strict=True):
                expected[image] += power / sum(powers) * token
        torch.testing.assert_close(pool(TOKENS), expected)
        pool.score.weight.zero_()
        torch.testing.assert_close(pool(TOKENS), norm(TOKENS).mean(1))
