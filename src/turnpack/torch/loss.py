"""The loss that `loss_weights` are for."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy


def weighted_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    loss_weights: torch.Tensor,
    denominator: torch.Tensor | float | None = None,
) -> torch.Tensor:
    """Cross entropy in which each target counts by its weight: their weighted mean.

    `logits` `[B, L, vocabulary]`; `labels` and `loss_weights` `[B, L]`, unshifted, as the collator
    makes them. `denominator`: divide by it instead of the sum of the weights; under gradient
    accumulation or over several ranks, the sum over all of them. A batch without targets has a loss
    of 0.
    """
    weights = loss_weights[:, 1:].flatten()
    losses = cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), reduction="none"
    )
    if denominator is None:
        denominator = weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)
    return (losses * weights).sum() / denominator
