"""The Vision Transformer (Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words"), from parts.

How an image becomes tokens, how they know their place, how they mix and what the head reads are not flags
here but classes in ``tokenizers.py``, ``positions.py``, ``attention.py`` and ``pooling.py``.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from vitlab.core.errors import UserError
from vitlab.models.attention_weights import TokenLayout
from vitlab.models.initialization import INITS
from vitlab.models.layers import MLP, Block, Size, choose, pair
from vitlab.models.pooling import POOLINGS
from vitlab.models.positions import POSITIONS
from vitlab.models.tokenizers import Tokenizer


def classifier(dim: int, num_classes: int) -> nn.Linear:
    """A head ``(B, dim) -> (B, num_classes)`` with its first weights."""
    head = nn.Linear(dim, num_classes)
    # Small and not zero: from zero the first step would teach the head alone. 0.02 as in DeiT.
    nn.init.normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head


class ViT(nn.Module):
    """Images ``(B, channels, H, W)`` to logits ``(B, num_classes)``.

    Args (``conf/model/vit_tiny.yaml`` explains the others):
        dropout: after every dense layer but the query-key-value one (appendix B.1).
        emb_dropout: after the positions.
        attn_dropout: of the attention weights.
        drop_path: stochastic depth of the last block, growing linearly (Huang et al. 2016, equation 4).
        drop_key: rate at which attention loses keys (`drop_keys`) in the first block; it falls linearly to
            the last, as in DropKey (Li et al. 2023).
        tokenizer: builds the `Tokenizer` from image_size, patch_size, channels, dim and patch_norm.
        attention: builds one block's attention, with the arguments of `Attention`.
    """

    own_tokens = 0  # learnable ones that a subclass puts before the pooling's

    def __init__(
        self,
        *,
        image_size: Size,
        channels: int,
        num_classes: int,
        patch_size: Size,
        dim: int,
        depth: int,
        heads: int,
        dim_head: int | None,
        mlp_ratio: float,
        pool: str,
        position: str,
        patch_norm: bool,
        dropout: float,
        emb_dropout: float,
        attn_dropout: float,
        drop_path: float,
        drop_key: float,
        qkv_bias: bool,
        init: str,
        tokenizer: Callable[..., Tokenizer],
        attention: Callable[..., nn.Module],
    ) -> None:
        super().__init__()
        self.image_size = pair("model.image_size", image_size)
        self.tokenizer = tokenizer(
            image_size=image_size, patch_size=patch_size, channels=channels, dim=dim, patch_norm=patch_norm
        )
        pooling = choose("model.pool", pool, POOLINGS)
        prefix = self.own_tokens + pooling.prefix
        self.class_token = nn.Parameter(torch.randn(1, prefix, dim) * 0.02) if prefix else None
        grid = self.tokenizer.grid
        self.position = choose("model.position", position, POSITIONS)(
            grid=grid, dim=dim, dim_head=dim_head or dim // heads, prefix=prefix
        )
        self.dropout = nn.Dropout(emb_dropout)
        self.blocks = nn.ModuleList(
            Block(
                dim=dim,
                attention=attention(
                    dim=dim,
                    heads=heads,
                    dim_head=dim_head,
                    qkv_bias=qkv_bias,
                    attn_dropout=attn_dropout,
                    drop_key=drop_key * (depth - i) / depth,
                    dropout=dropout,
                    num_tokens=prefix + grid[0] * grid[1],
                    rotate=self.position.rotate,
                ),
                mlp=MLP(dim=dim, hidden=int(dim * mlp_ratio), dropout=dropout),
                drop_path=drop_path * (i + 1) / depth,
            )
            for i in range(depth)
        )
        self.pool = pooling(dim=dim)
        self.head = classifier(dim, num_classes)
        choose("model.init", init, INITS)(self.blocks, self.position)

    def data_dependent_init(self, batches: Iterable[Tensor]) -> None:
        """Set what follows from training images ``(B, C, H, W)``, normalised; drawn only if needed."""
        self.tokenizer.data_dependent_init(batches)

    def encode(self, images: Tensor) -> Tensor:
        """Turn images ``(B, C, H, W)`` into what the last block puts out, ``(B, prefix + N, dim)``."""
        if images.shape[-2:] != self.image_size:
            raise UserError(
                f"The model was built for images of (height, width) {self.image_size}, found "
                f"{tuple(images.shape[-2:])}; set model.image_size or resize the images."
            )
        tokens = self.tokenizer(images)  # (B, N, dim)
        if self.class_token is not None:
            prefix = self.class_token.expand(tokens.shape[0], -1, -1)  # (B, prefix, dim)
            tokens = torch.cat([prefix, tokens], dim=1)  # (B, prefix + N, dim)
        tokens = self.dropout(self.position(tokens))
        for block in self.blocks:
            tokens = block(tokens)  # (B, prefix + N, dim)
        return tokens

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.pool(self.encode(images)))  # (B, num_classes)

    def token_layout(self) -> TokenLayout:
        """Return how the tokens lie."""
        prefix = self.own_tokens + self.pool.prefix
        blocks: list[Any] = list(self.blocks)
        table = getattr(self.position, "table", None)
        return TokenLayout(
            grid=self.tokenizer.grid,
            prefix=prefix,
            read=prefix if self.pool.prefix else 0,
            blocks=blocks,
            attentions=[block.attention for block in blocks],
            norms=[block.norm1 for block in blocks],
            positions=table if isinstance(table, nn.Parameter) else None,
        )

    def layers(self) -> list[tuple[str, list[str]]]:
        """The stem, each block, the head or heads."""
        heads = [f"{name}." for name, _ in self.named_children() if name.endswith("head")]
        return [
            ("stem", ["tokenizer.", "class_token", "position.", "dropout."]),
            *((f"block_{i}", [f"blocks.{i}."]) for i in range(len(self.blocks))),
            ("head", ["pool.", *heads]),
        ]

    def no_weight_decay(self) -> set[str]:
        """Positions and the class token are points, not maps: decay would pull them to zero."""
        return {"class_token", "position.table"} & {name for name, _ in self.named_parameters()}
