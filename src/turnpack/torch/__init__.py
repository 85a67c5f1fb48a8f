"""turnpack in a PyTorch training loop; nothing else of turnpack imports torch."""

from .collate import Collator
from .compact import CompactBatch
from .dataset import PackedDataset
from .device import Packed, Staged, Tokens, concat, expand, mask_markers, pack, stage, unpack
from .isolation import Isolation, isolation
from .loss import weighted_loss
from .sampler import PackingBatchSampler
from .stream import PackingIterableDataset

__all__ = [
    "Collator",
    "CompactBatch",
    "Isolation",
    "Packed",
    "PackedDataset",
    "PackingBatchSampler",
    "PackingIterableDataset",
    "Staged",
    "Tokens",
    "concat",
    "expand",
    "isolation",
    "mask_markers",
    "pack",
    "stage",
    "unpack",
    "weighted_loss",
]
