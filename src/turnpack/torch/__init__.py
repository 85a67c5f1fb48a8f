"""turnpack in a PyTorch training loop; nothing else of turnpack imports torch."""

from .collate import Collator
from .dataset import PackedDataset
from .isolation import Isolation, isolation
from .loss import weighted_loss
from .sampler import PackingBatchSampler
from .stream import PackingIterableDataset

__all__ = [
    "Collator",
    "Isolation",
    "PackedDataset",
    "PackingBatchSampler",
    "PackingIterableDataset",
    "isolation",
    "weighted_loss",
]
