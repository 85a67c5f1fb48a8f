"""A batch as it travels to a GPU: what `Collator(device="cuda")` makes, and how it becomes tensors.

Owns the halves of the collator that lie in different processes. How tokens travel and which cell
holds which is device.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import pad

from .. import nouns
from .._checks import Int64s
from . import device as _device
from .masks import MASKS

if TYPE_CHECKING:
    from .collate import Collator

IGNORE = -100


@dataclass(frozen=True, slots=True, eq=False)
class CompactBatch:
    """What `Collator(device="cuda")` returns: 5 bytes a token, and `to` makes the batch of them.

    Made in a worker of a DataLoader, without a device; `pin_memory()` is called by
    DataLoader(pin_memory=True), `to(device)` in the training loop: by oneself, or by accelerate and
    transformers' Trainer, which move by `to` whatever has it.

    `staged`: the tokens and where they go; `max_length`: of the longest segment; `collator`: whose
    batch it is.
    """

    staged: _device.Staged
    max_length: int
    collator: Collator

    def pin_memory(self) -> CompactBatch:
        """The same in memory that the device can fetch by itself."""
        return replace(self, staged=self.staged.pin_memory())

    def to(self, device: _device.Device | None = None, non_blocking: bool = True) -> dict[str, Any]:
        """The batch on a GPU, the collator's own if none is named; bit for bit that of the CPU.

        One copy and one kernel on the current stream; nothing waits for them, whatever
        `non_blocking` says. Raises RuntimeError where there is no such device.
        """
        collator = self.collator
        place = collator.device if device is None else device
        packed = _device.expand(self.staged, pad_id=collator.pad_id, device=place)
        labels, weights = packed.labels, packed.loss_weights
        if collator.shift_labels:
            labels = _shifted(labels, IGNORE)
            weights = None if weights is None else _shifted(weights, 0)
        batch: dict[str, Any] = {
            "input_ids": packed.input_ids,
            "labels": labels,
            "position_ids": packed.position_ids,
        }
        if weights is not None:
            batch["loss_weights"] = weights
        segment_ids = packed.segment_ids
        if collator.layout == "rows":
            batch["segment_ids"] = segment_ids
        else:
            boundaries = packed.cu_seqlens.to(torch.int32)
            if collator.max_segments is not None:
                unused = collator.max_segments + 1 - len(boundaries)
                boundaries = pad(boundaries, (0, unused), value=packed.input_ids.numel())
            padding = segment_ids == 0
            numbers = (segment_ids - 1).masked_fill_(padding, len(self.staged.rows))
            batch["seq_idx"] = numbers.to(torch.int32)
            batch["cu_seq_lens_q"] = batch["cu_seq_lens_k"] = boundaries
            batch["max_length_q"] = batch["max_length_k"] = self.max_length
        return finished(batch, collator.mask, collator.use_cache)


def finished(
    batch: dict[str, Any], mask: Literal["dense", "flex"] | None, use_cache: bool | None
) -> dict[str, Any]:
    """The batch with what is made of its other tensors, wherever they are."""
    if mask is not None:
        batch["attention_mask"] = MASKS[mask](_documents(batch))
    if use_cache is not None:
        batch["use_cache"] = use_cache
    return batch


def _documents(batch: dict[str, Any]) -> torch.Tensor:
    """A number for each segment that never falls along a row; in rows padding is 0, but last."""
    found: torch.Tensor | None = batch.get("seq_idx")
    if found is not None:
        return found
    segment_ids: torch.Tensor = batch["segment_ids"]
    return segment_ids.masked_fill(segment_ids == 0, 1 << 31)


def compact(
    collator: Collator,
    ids: Int64s,
    labels: Int64s,
    weights: npt.NDArray[np.float32] | None,
    lengths: Int64s,
    documents: Int64s,
    width: int,
    max_length: int,
) -> CompactBatch:
    """A batch of rows of `width` cells, from tokens back to back.

    `lengths` of the documents, and how many `documents` each dict has; a flat batch is one row.

    Raises ValueError for an id beyond int32 and for a label that is neither -100 nor the id.
    """
    ends = np.cumsum(lengths)
    mask = labels != IGNORE
    bounds = np.iinfo(np.int32)
    for found, what in (
        ((ids < bounds.min) | (ids > bounds.max), "is beyond int32"),
        (mask & (labels != ids), "has another label, which a GPU is not sent: neither it nor -100"),
    ):
        if found.any():
            cell = int(found.argmax())
            document = np.searchsorted(ends, cell, "right")
            item = int(np.searchsorted(np.cumsum(documents), document, "right"))
            raise ValueError(f"item {item}: id {ids[cell]} {what}")
    tokens = nouns.Tokens(
        input_ids=ids.astype(np.int32),
        loss_mask=mask.view(np.uint8),
        offsets=np.concatenate([[0], ends]),
        loss_weights=weights,
    )
    rows: Sequence[int] | Int64s = documents if collator.layout == "rows" else [len(lengths)]
    offsets = np.concatenate([[0], np.cumsum(rows)])
    fill = np.add.reduceat(lengths, offsets[:-1])
    plan = nouns.Plan(np.arange(len(lengths)), offsets, fill, width)
    return CompactBatch(_device.stage(tokens, plan), max_length, collator)


def _shifted(cells: torch.Tensor, fill: int) -> torch.Tensor:
    """Every cell takes the next one's value. The first of each segment is `fill`, so none leaks."""
    return pad(cells.flatten()[1:], (0, 1), value=fill).view_as(cells)
