"""Chat data in, packed training rows out: exact loss masks, sequence packing, a compiled core.

Owns what `import turnpack` offers; imports neither torch nor transformers nor tokenizers.
"""

# isort: off
from . import _compiled  # noqa: F401
# isort: on

from . import kernels, reference
from ._version import __version__
from .columns import Columns
from .cuda import cuda_available
from .encode import Encoder
from .kernels import Planner, pack, plan, unpack
from .nouns import (
    Conversation,
    Packed,
    Plan,
    Reject,
    Rendered,
    Role,
    RowError,
    Segment,
    Source,
    Tokens,
)
from .templates import ChatTemplate, Template, Tools, get_template, templates

__all__ = [
    "ChatTemplate",
    "Columns",
    "Conversation",
    "Encoder",
    "Packed",
    "Plan",
    "Planner",
    "Reject",
    "Rendered",
    "Role",
    "RowError",
    "Segment",
    "Source",
    "Template",
    "Tokens",
    "Tools",
    "__version__",
    "cuda_available",
    "get_template",
    "kernels",
    "pack",
    "plan",
    "reference",
    "templates",
    "unpack",
]
