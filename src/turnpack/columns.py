"""An encoder for `datasets.Dataset.map`: columns of conversations in, columns of tokens out.

Owns that form and its stable fingerprint; what a row becomes is the Encoder's.
"""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import kernels
from .encode import Encoder
from .nouns import Reject

IGNORE = -100


class Columns:
    """`dataset.map(Columns(encoder), batched=True, remove_columns=dataset.column_names)`.

    The rows are of any format that the encoder reads; out come `input_ids` and `labels` (unshifted,
    -100 where no loss is), with `weights` also `loss_weights`. A conversation that cannot become a
    row raises RowError; with `skip` it is left out. Weights raise ValueError without `weights`: the
    columns must be the same in every batch.

    What is pickled is the encoder as it was given, so `datasets` finds its cache again however much
    has been encoded since.
    """

    def __init__(self, encoder: Encoder, *, skip: bool = False, weights: bool = False) -> None:
        self.__setstate__({"encoder": pickle.dumps(encoder), "skip": skip, "weights": weights})

    def __getstate__(self) -> dict[str, Any]:
        return {"encoder": self._pickled, "skip": self.skip, "weights": self.weights}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._pickled: bytes = state["encoder"]
        self.encoder: Encoder = pickle.loads(self._pickled)
        self.skip: bool = state["skip"]
        self.weights: bool = state["weights"]

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Encode the rows of a batch."""
        names = list(batch)
        rows = [
            dict(zip(names, values, strict=True)) for values in zip(*batch.values(), strict=True)
        ]
        rejects: list[Reject] | None = [] if self.skip else None
        tokens = self.encoder(rows, rejects)
        made: dict[str, list[Any]] = {
            "input_ids": kernels.unflatten(tokens.input_ids, tokens.offsets)
        }
        labels = tokens.input_ids.copy()
        labels[tokens.loss_mask == 0] = IGNORE
        made["labels"] = kernels.unflatten(labels, tokens.offsets)
        weights = tokens.loss_weights
        if self.weights:
            if weights is None:
                weights = np.ones(len(labels), np.float32)
            ends = tokens.offsets.tolist()
            made["loss_weights"] = [
                weights[start:end].tolist() for start, end in itertools.pairwise(ends)
            ]
        elif weights is not None:
            raise ValueError("messages have weights: Columns(weights=True) makes a column of them")
        return made
