"""What a preset runs by default. A leaf: settings describe their plans without loading reports or statistics."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """What a preset runs by default: the first data set of `data` that is here, its rows, its seeds.

    "a+b" needs both sets.
    """

    data: tuple[str, ...]
    rows: tuple[str, ...]
    seeds: tuple[int, ...]
    takes: str  # expected time, for the user
    needs_gpu: bool = False
