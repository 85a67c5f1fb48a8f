"""Does a model keep the documents of a packed batch apart? Answered by running it.

Owns the comparison and the search for the cause. It trusts nothing that a model says of itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch.nn.functional import cross_entropy

IGNORE = -100
# What arithmetic alone may make of logits of about 1, and what no leak stays under.
TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 0.2}


class Isolation(NamedTuple):
    """What `isolation` found; true where documents are kept apart.

    `isolated`; `difference`: the largest of a document's logits, between packed and alone;
    `document`: which one has it; `tolerance`: what was allowed; `packed_losses` and `alone_losses`:
    the mean loss of each document's targets (nan without any); `cause`: what is wrong with the
    batch or the model, None where nothing is.
    """

    isolated: bool
    difference: float
    document: int
    tolerance: float
    packed_losses: list[float]
    alone_losses: list[float]
    cause: str | None

    def __bool__(self) -> bool:
        return self.isolated

    def __str__(self) -> str:
        found = f"logits differ by up to {self.difference:.2g} (document {self.document})"
        if self.isolated:
            return f"documents are kept apart: {found}, within {self.tolerance:.2g}"
        return f"documents see each other: {found}; {self.cause}"


def isolation(
    model: Callable[..., Any],
    batch: Mapping[str, Any],
    *,
    seq_lengths: Sequence[int] | Sequence[Sequence[int]] | None = None,
    tolerance: float | None = None,
) -> Isolation:
    """Run a packed batch and each of its documents alone, and compare the logits.

    `model`: called with the batch as keywords, returns logits `[B, L, vocabulary]` or what has
    them as `.logits`. `batch`: as the collator at hand makes it, Collator or any other. Where a
    document ends, the batch says by `cu_seq_lens_q`, `segment_ids`, `seq_idx` or `position_ids`;
    otherwise give `seq_lengths`, for one row or for each. `tolerance`: how far logits may differ,
    by default by their dtype and size.

    Where documents are not kept apart, the usual causes are tried one after the other, and the
    first whose remedy helps is named. Runs without gradients, in eval mode, and changes nothing.
    """
    shape = batch["input_ids"].shape
    documents = _documents(batch, seq_lengths)
    with _evaluating(model):
        device = _device(model, batch)
        given = {
            name: value.to(device) if isinstance(value, torch.Tensor) else value
            for name, value in batch.items()
            if name not in ("labels", "loss_weights", "shift_labels")
        }
        packed = _logits(model, given)
        alone = [
            _logits(model, _only(given, row, start, stop))[0] for row, start, stop in documents
        ]
        together = [packed[row, start:stop] for row, start, stop in documents]
        differences = [
            float((a.float() - b.float()).abs().max()) for a, b in zip(together, alone, strict=True)
        ]
        worst = max(range(len(documents)), key=differences.__getitem__)
        if tolerance is None:
            size = max(1.0, float(packed.abs().max()))
            tolerance = TOLERANCES.get(packed.dtype, 0.2) * size
        isolated = differences[worst] <= tolerance
        cause = None
        if not isolated:
            cause = _cause(model, given, documents, alone, tolerance, shape)
        labels = batch.get("labels", batch["input_ids"])
        wanted = [labels[row, start:stop].to(device) for row, start, stop in documents]
    return Isolation(
        isolated,
        differences[worst],
        worst,
        tolerance,
        [_loss(logits, label) for logits, label in zip(together, wanted, strict=True)],
        [_loss(logits, label) for logits, label in zip(alone, wanted, strict=True)],
        cause,
    )


_Place = tuple[int, int, int]


def _documents(batch: Mapping[str, Any], seq_lengths: Sequence[Any] | None) -> list[_Place]:
    """Each document's row, start and stop."""
    rows, length = batch["input_ids"].shape
    if seq_lengths is not None:
        each = seq_lengths if rows > 1 or isinstance(seq_lengths[0], Sequence) else [seq_lengths]
        starts = [[sum(part[:n]) for n in range(len(part) + 1)] for part in each]
    elif "cu_seq_lens_q" in batch:
        starts = [sorted(set(batch["cu_seq_lens_q"].tolist()))]
    else:
        for name in ("segment_ids", "seq_idx", "position_ids"):
            if name in batch:
                break
        else:
            raise ValueError("the batch does not say where documents end: give seq_lengths")
        steps = torch.diff(batch[name].expand(rows, -1).cpu(), dim=1)
        new = steps != (1 if name == "position_ids" else 0)
        starts = [[0, *(new[row].nonzero()[:, 0] + 1).tolist(), length] for row in range(rows)]
    if len(starts) != rows or any(ends[-1] > length for ends in starts):
        raise ValueError(f"documents {starts} are not those of {rows} rows of {length}")
    segments = batch.get("segment_ids")
    return [
        (row, start, stop)
        for row, ends in enumerate(starts)
        for start, stop in pairwise(ends)
        if segments is None or segments[row, start] != 0  # padding
    ]


def _only(batch: Mapping[str, Any], row: int, start: int, stop: int) -> dict[str, Any]:
    """The batch of one document alone, without anything that speaks of others."""
    made = {"input_ids": batch["input_ids"][row : row + 1, start:stop]}
    if "position_ids" in batch:
        made["position_ids"] = torch.arange(stop - start, device=made["input_ids"].device)[None]
    if "use_cache" in batch:
        made["use_cache"] = batch["use_cache"]
    return made


def _cause(
    model: Callable[..., Any],
    batch: dict[str, Any],
    documents: list[_Place],
    alone: list[torch.Tensor],
    tolerance: float,
    shape: torch.Size,
) -> str:
    positions = torch.zeros(shape, dtype=torch.int64, device=batch["input_ids"].device)
    for row, start, stop in documents:
        positions[row, start:stop] = torch.arange(stop - start, device=positions.device)
    given = batch.get("position_ids")
    restart = given is not None and all(
        bool((given.expand(shape)[row, start:stop] == positions[row, start:stop]).all())
        for row, start, stop in documents
    )
    faults: list[tuple[str, dict[str, Any], tuple[str, ...]]] = []
    if not restart:
        said = "there are no position_ids" if given is None else "position_ids do not start anew"
        faults.append((f"{said}: they must count from 0 in every document", {}, ()))
        batch = {**batch, "position_ids": positions}
    if batch.get("attention_mask") is not None:
        faults.append(
            (
                "attention_mask is given: leave it out, the model then goes by position_ids",
                {},
                ("attention_mask",),
            )
        )
    if batch.get("use_cache") is not False:
        faults.append(
            (
                "use_cache is not False: with a cache the model does not look for documents",
                {"use_cache": False},
                (),
            )
        )
    # The remedies add up: the one that helps may need those before it.
    tried = dict(batch)
    for number, (_, changed, dropped) in enumerate(faults):
        tried = {**{k: v for k, v in tried.items() if k not in dropped}, **changed}
        try:
            logits = _logits(model, tried)
        except TypeError:  # it takes no such argument
            break
        if all(
            float((logits[row, start:stop].float() - one.float()).abs().max()) <= tolerance
            for (row, start, stop), one in zip(documents, alone, strict=True)
        ):
            return "; ".join(text for text, _, _ in faults[: number + 1])
    config = getattr(model, "config", None)
    used = getattr(config, "_attn_implementation", None)
    return (
        f"the model ({type(model).__name__}{f', attention {used}' if used else ''}) does not go by "
        "position_ids: give it a mask (Collator(mask=...)) or another attention"
    )


def _logits(model: Callable[..., Any], batch: Mapping[str, Any]) -> torch.Tensor:
    made = model(**batch)
    logits = getattr(made, "logits", made)
    if not isinstance(logits, torch.Tensor):
        raise TypeError(f"the model returns {type(made).__name__}, which has no logits")
    return logits


def _loss(logits: torch.Tensor, labels: torch.Tensor) -> float:
    return float(cross_entropy(logits[:-1].float(), labels[1:], ignore_index=IGNORE))


def _device(model: Any, batch: Mapping[str, Any]) -> torch.device:
    if isinstance(model, torch.nn.Module):
        for parameter in model.parameters():
            return parameter.device
    device: torch.device = batch["input_ids"].device
    return device


@contextmanager
def _evaluating(model: Any) -> Any:
    """No gradients and no dropout, for as long as it takes."""
    training = isinstance(model, torch.nn.Module) and model.training
    if training:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        if training:
            model.train()
