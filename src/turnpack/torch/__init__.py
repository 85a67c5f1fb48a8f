"""turnpack in a PyTorch training loop; nothing else of turnpack imports torch."""

from .device import Packed, Staged, Tokens, concat, expand, mask_markers, pack, stage, unpack

__all__ = [
    "Packed",
    "Staged",
    "Tokens",
    "concat",
    "expand",
    "mask_markers",
    "pack",
    "stage",
    "unpack",
]
