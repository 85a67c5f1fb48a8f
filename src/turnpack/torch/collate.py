"""The collator: a list of documents or packed bins → the tensors that a model trains on.

Owns which keys a batch has and how documents lie in it. It puts nothing into bins: what a dict
holds stays together and in order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from .. import _checks
from . import _cells
from .compact import IGNORE, CompactBatch, compact, finished
from .device import Device, require_module
from .masks import MASKS

Item = Mapping[str, Any]
_Int64s = npt.NDArray[np.int64]

LAYOUTS = ("flat", "rows")


class Collator:
    """Makes a batch of a list of dicts; a `collate_fn` or `data_collator` that can be pickled.

    A dict has `input_ids` and `labels` (unshifted, -100 where no loss is) or `loss_mask`, and where
    it is a packed bin `seq_lengths`, the lengths of its documents, or else `position_ids`, which
    start anew in each; `loss_weights` where targets do not all count alike. Lists, arrays and
    tensors are taken, other keys ignored.

    `layout` "flat", padding-free: all documents in one row `[1, T]`, with `input_ids`, `labels`,
    `position_ids` int64, `seq_idx` int32, `cu_seq_lens_q` and `cu_seq_lens_k` int32 `[segments +
    1]`, `max_length_q` and `max_length_k` int. `layout` "rows": one row for each dict, `[B, L]`,
    padded to the longest or to `capacity`, with `input_ids`, `labels`, `position_ids`,
    `segment_ids` (1, 2.. in each row, 0 in padding) int64. There is no attention mask: transformers
    keeps documents apart by `position_ids`, which start anew in each, only where it is given none.

    - `pad_id`, `pad_to_multiple_of`: T or L is raised to a multiple. Padding comes last, as a
      segment of its own.
    - `align`: each document is padded to a multiple of it and stays one segment, as context
      parallelism over n ranks wants with 2 * n (`plan` with the same `align`).
    - `max_segments`: `cu_seq_lens` is always this many + 1 long, its tail filled with T.
    - `mask` "dense" or "flex": `attention_mask` as bool `[B, 1, L, L]` or as FlexAttention's
      `BlockMask`, causal within each document, for models that look at no positions.
    - `shift_labels`: labels (and weights) stand where they are predicted, for loops that do not
      shift; transformers' models do.
    - `normalize` "sequence": every target weighs 1/n in a document of n targets.
    - `use_cache`: what the batch says of it; None says nothing, for models that take no such thing.
    - `device` "cuda": the batch is a `CompactBatch`, whose `to(device)` makes these tensors on the
      GPU. A token travels there as 5 bytes (9 with weights): from a DataLoader's worker, by pinned
      memory where the loader pins. Labels must be their ids or -100.

    `loss_weights` float32, 0 where no target is, are in the batch if a dict has them or `normalize`
    is given. The first label of every document is -100, nothing predicts it.

    Raises TypeError or ValueError that name the item where lengths do not agree or a document is
    empty, ValueError for 2**31 cells or more, a row beyond `capacity`, or too many segments.

    >>> packed = {"input_ids": [5, 6, 7], "labels": [5, -100, 7], "seq_lengths": [1, 2]}
    >>> batch = Collator()([packed])
    >>> batch["labels"].tolist(), batch["position_ids"].tolist(), batch["cu_seq_lens_q"].tolist()
    ([[-100, -100, 7]], [[0, 0, 1]], [0, 1, 3])
    """

    def __init__(
        self,
        layout: Literal["flat", "rows"] = "flat",
        *,
        pad_id: int = 0,
        pad_to_multiple_of: int = 1,
        capacity: int | None = None,
        align: int = 1,
        max_segments: int | None = None,
        mask: Literal["dense", "flex"] | None = None,
        shift_labels: bool = False,
        normalize: Literal["sequence"] | None = None,
        use_cache: bool | None = False,
        device: Device | None = None,
    ) -> None:
        if layout not in LAYOUTS:
            raise ValueError(f"layout is {layout!r}, not one of {', '.join(LAYOUTS)}")
        if mask is not None and mask not in MASKS:
            raise ValueError(f"mask is {mask!r}, not dense, flex or None")
        if normalize not in (None, "sequence"):
            raise ValueError(f"normalize is {normalize!r}, not sequence or None")
        for name, value in (
            ("pad_to_multiple_of", pad_to_multiple_of),
            ("capacity", capacity),
            ("align", align),
            ("max_segments", max_segments),
        ):
            if value is not None and _checks.number(name, value) < 1:
                raise ValueError(f"{name} is {value}, less than 1")
        if layout == "flat" and capacity is not None:
            raise ValueError("capacity is the length of a row, layout flat has none")
        if layout == "rows" and max_segments is not None:
            raise ValueError("max_segments is for cu_seq_lens, layout rows has none")
        self.layout = layout
        self.pad_id = _checks.number("pad_id", pad_id)
        self.pad_to_multiple_of = pad_to_multiple_of
        self.capacity = capacity
        self.align = align
        self.max_segments = max_segments
        self.mask = mask
        self.shift_labels = shift_labels
        self.normalize = normalize
        self.use_cache = use_cache
        self.device = torch.device("cpu" if device is None else device)
        if self.device.type == "cuda":
            require_module()
        elif self.device.type != "cpu":
            raise ValueError(f"device is {self.device}, neither cpu nor cuda")

    def __call__(self, items: Sequence[Item]) -> Any:
        """Make the batch of these dicts: a dict, with `device` "cuda" a `CompactBatch`."""
        sizes, lengths, documents = _lengths(items)
        flat = self.layout == "flat"
        boundaries, numbers, starts, width, longest = _cells.lay(
            lengths,
            documents,
            flat,
            self.align,
            self.pad_to_multiple_of,
            self.capacity or 0,
            self.max_segments or 0,
        )
        if self.device.type == "cuda":
            return self._compact(items, sizes, lengths, documents, width, longest)
        shape = 1 if flat else len(items), width
        size = shape[0] * width
        place = _Places(sizes, lengths, starts, size)
        # One block: the C library keeps it for the next batch, where it would give back several and
        # have the system clear their pages every time, which costs more than all the rest.
        input_ids, labels, position_ids, segment_ids = np.empty((4, size), np.int64)
        place.ids(items, "input_ids", self.pad_id, input_ids)
        place.labels(items, labels)
        ends = boundaries[: len(numbers) + 1]
        labels[ends[:-1]] = IGNORE
        weights = self._weights(items, place, labels, ends)
        _cells.count(ends, position_ids)

        cells: dict[str, npt.NDArray[Any]] = {
            "input_ids": input_ids,
            "labels": labels,
            "position_ids": position_ids,
        }
        if weights is not None:
            cells["loss_weights"] = weights
        if self.shift_labels:
            cells["labels"] = _shifted(labels, IGNORE)
            if weights is not None:
                cells["loss_weights"] = _shifted(weights, 0)
        name = "seq_idx" if flat else "segment_ids"
        cells[name] = segment_ids.view(np.int32)[:size] if flat else segment_ids
        _cells.number(ends, numbers, cells[name])
        batch: dict[str, Any] = {
            name: torch.from_numpy(cell.reshape(shape)) for name, cell in cells.items()
        }
        if flat:
            batch["cu_seq_lens_q"] = batch["cu_seq_lens_k"] = torch.from_numpy(boundaries)
            batch["max_length_q"] = batch["max_length_k"] = longest
        return finished(batch, self.mask, self.use_cache)

    def _compact(
        self,
        items: Sequence[Item],
        sizes: list[int],
        lengths: _Int64s,
        documents: _Int64s,
        width: int,
        longest: int,
    ) -> CompactBatch:
        aligned = -(-lengths // self.align) * self.align
        ends = np.concatenate([[0], np.cumsum(aligned)])
        place = _Places(sizes, lengths, ends[:-1], int(ends[-1]))
        input_ids, labels = np.empty((2, place.cells), np.int64)
        place.ids(items, "input_ids", self.pad_id, input_ids)
        place.labels(items, labels)
        labels[ends[:-1]] = IGNORE
        weights = self._weights(items, place, labels, ends)
        return compact(self, input_ids, labels, weights, aligned, documents, width, longest)

    def _weights(
        self,
        items: Sequence[Item],
        place: _Places,
        labels: _Int64s,
        ends: npt.NDArray[np.signedinteger[Any]],
    ) -> npt.NDArray[np.float32] | None:
        given = any("loss_weights" in item for item in items)
        if not given and self.normalize is None:
            return None
        targets = labels != IGNORE
        weights: npt.NDArray[np.float32] = targets.astype(np.float32)
        if given:
            weights *= place.weights(items)
        if self.normalize == "sequence":
            counts = np.add.reduceat(targets, ends[:-1], dtype=np.int64)
            weights /= np.repeat(np.maximum(counts, 1), np.diff(ends))
        return weights


class _Places:
    """Where the tokens of all items, back to back, go among the cells; it fills the others."""

    def __init__(
        self, sizes: list[int], lengths: _Int64s, starts: _Int64s | None, cells: int
    ) -> None:
        self.sizes = sizes
        self.cells = cells
        self.tokens = sum(sizes)
        self.index: _Int64s | None = None
        if starts is not None:  # each document's; None: they lie back to back
            shifts = starts - (np.cumsum(lengths) - lengths)
            self.index = np.arange(self.tokens) + np.repeat(shifts, lengths)

    def ids(self, items: Sequence[Item], name: str, fill: int, cells: _Int64s) -> None:
        """Write the cells of one key, which may be lists, arrays or tensors of integers."""
        rows = [item[name] for item in items]
        if not _cells.read(rows, self.sizes, name, cells):
            arrays = [np.asarray(row) for row in rows]
            for at, array in enumerate(arrays):
                if array.ndim != 1 or array.dtype.kind not in "iu":
                    raise TypeError(f"item {at}: {name} is no row of integers")
            np.concatenate(arrays, out=cells[: self.tokens], casting="same_kind")
        self._move(cells, fill)

    def labels(self, items: Sequence[Item], cells: _Int64s) -> None:
        """Write the cells of `labels`, or of those that `loss_mask` says."""
        if all("labels" in item for item in items):
            self.ids(items, "labels", IGNORE, cells)
            return
        rows = []
        for at, (item, size) in enumerate(zip(items, self.sizes, strict=True)):
            if "labels" in item:
                rows.append(item["labels"])
                continue
            if "loss_mask" not in item:
                raise ValueError(f"item {at} has neither labels nor loss_mask")
            mask = np.asarray(item["loss_mask"])
            if mask.shape != (size,):
                raise ValueError(f"item {at} has {size} input_ids, but {len(mask)} loss_mask")
            rows.append(np.where(mask != 0, np.asarray(item["input_ids"]), IGNORE))
        self.ids([{"labels": row} for row in rows], "labels", IGNORE, cells)

    def weights(self, items: Sequence[Item]) -> npt.NDArray[np.float32]:
        """The cells float32 of `loss_weights`, 1 where an item has none."""
        cells = np.ones(self.cells, np.float32)
        at = 0
        for number, (item, size) in enumerate(zip(items, self.sizes, strict=True)):
            given = item.get("loss_weights")
            if given is not None:
                if len(given) != size:
                    raise ValueError(
                        f"item {number} has {size} input_ids, but {len(given)} loss_weights"
                    )
                cells[at : at + size] = np.asarray(given)
            at += size
        self._move(cells, 0)
        return cells

    def _move(self, cells: npt.NDArray[Any], fill: int) -> None:
        """Put what the first cells hold where it belongs, and fill the others."""
        if self.index is None:
            if self.tokens < self.cells:
                cells[self.tokens :] = fill
            return
        tokens = cells[: self.tokens].copy()
        cells.fill(fill)
        cells[self.index] = tokens


def _lengths(items: Sequence[Item]) -> tuple[list[int], _Int64s, _Int64s]:
    """Tokens of each item; lengths of all documents; how many documents each item has."""
    if not items:
        raise ValueError("a batch of no items")
    sizes = [len(item["input_ids"]) for item in items]
    for item in items:
        if "seq_lengths" in item or "position_ids" in item:
            break
    else:
        if 0 in sizes:
            raise ValueError(f"item {sizes.index(0)} is empty")
        return sizes, np.array(sizes), np.ones(len(sizes), np.int64)
    parts = [
        documents_of(f"item {number}", item, size)
        for number, (item, size) in enumerate(zip(items, sizes, strict=True))
    ]
    return sizes, np.concatenate(parts), np.array([len(part) for part in parts])


def documents_of(name: str, item: Item, size: int) -> _Int64s:
    """The lengths of the documents in an item of `size` tokens, as far as it says that of several.

    Raises TypeError or ValueError that calls it by `name`.
    """
    lengths = np.array([size])
    if "seq_lengths" in item:
        given = np.asarray(item["seq_lengths"])
        if given.ndim != 1 or (len(given) and given.dtype.kind not in "iu"):
            raise TypeError(f"{name}: seq_lengths is no row of integers")
        lengths = given.astype(np.int64)
    elif "position_ids" in item:
        positions = np.asarray(item["position_ids"])
        starts = np.flatnonzero(positions == 0)
        lengths = np.diff(starts, append=size)
        whole = not size or (len(starts) and not starts[0])
        if not whole or not np.array_equal(positions, np.arange(size) - np.repeat(starts, lengths)):
            raise ValueError(f"{name} has position_ids that do not count from 0 to its end")
    if not len(lengths) or lengths.min() < 1:
        raise ValueError(f"{name} has no document or an empty one: {lengths.tolist()}")
    if lengths.sum() != size:
        raise ValueError(f"{name} has {size} input_ids, but seq_lengths of {lengths.sum()} in all")
    return lengths


def _shifted(cells: npt.NDArray[Any], fill: int) -> npt.NDArray[Any]:
    """Every cell takes the next one's value. The first of each segment is `fill`, so none leaks."""
    return np.append(cells[1:], cells.dtype.type(fill))
