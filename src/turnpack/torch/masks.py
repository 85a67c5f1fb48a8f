"""Attention masks that keep documents apart, for models that cannot tell from positions.

Owns both forms: dense, and FlexAttention's blocks. Document ids never fall along a row.
"""

from __future__ import annotations

import torch
from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128


def dense_mask(documents: torch.Tensor) -> torch.Tensor:
    """Bool `[B, 1, L, L]`, True where a query may see a key: same document, not after it.

    `documents` int `[B, L]`: which document of its row a cell belongs to.
    """
    same = documents[:, :, None] == documents[:, None, :]
    return same.tril_()[:, None]


class SameDocument:
    """FlexAttention's `mask_mod` for packed rows; unlike a closure it can be pickled."""

    def __init__(self, documents: torch.Tensor) -> None:
        self.documents = documents

    def __call__(
        self, b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor
    ) -> torch.Tensor:
        """Whether query q of row b may see key k."""
        return (q >= k) & (self.documents[b, q] == self.documents[b, k])


def block_mask(documents: torch.Tensor) -> BlockMask:
    """FlexAttention's mask of the same rule, without ever making `[L, L]` of it.

    As ids never fall, the first and last of a block say which it holds.
    """
    length = documents.shape[1]
    first = documents[:, ::BLOCK]
    ends = torch.arange(BLOCK, length + BLOCK, BLOCK, device=documents.device).clamp(max=length)
    last = documents[:, ends - 1]
    blocks = torch.arange(len(ends), device=documents.device)
    below = blocks[:, None] > blocks[None, :]
    touched = (below | torch.eye(len(ends), dtype=torch.bool, device=documents.device)) & (
        last[:, None, :] >= first[:, :, None]
    )
    # A block needs no look at its cells where it is of one document, and the same on both sides.
    whole = (ends % BLOCK == 0)[:, None] & below
    whole = whole & (first[:, None, :] == last[:, :, None])
    partial = touched & ~whole
    return BlockMask.from_kv_blocks(
        *_ordered(partial),
        *_ordered(whole),
        BLOCK_SIZE=BLOCK,
        mask_mod=SameDocument(documents),
        seq_lengths=(length, length),
    )


MASKS = {"dense": dense_mask, "flex": block_mask}


def _ordered(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How many blocks of keys each block of queries has, and their indices before all others."""
    order = torch.argsort((~blocks).to(torch.int8), dim=-1, stable=True)
    return blocks.sum(-1, dtype=torch.int32)[:, None], order.to(torch.int32)[:, None]
