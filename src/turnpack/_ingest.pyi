from collections.abc import Iterable
from typing import Any

from turnpack._arguments import Ids
from turnpack._checks import Int64s

def flatten(rows: Iterable[Any]) -> tuple[Ids, Int64s]: ...
def unflatten(values: Ids, offsets: Int64s) -> list[list[int]]: ...
