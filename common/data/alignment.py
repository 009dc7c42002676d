"""A landmark set in memory."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch

from facepapers.common.data.markups import Markup, markup_for
from facepapers.common.data.sets import ensure

_TENSORS = ("points", "box", "occluded", "split", "scale")


@dataclasses.dataclass(frozen=True, eq=False)
class AlignmentSet:
    """N faces with P landmarks. Coordinates are pixels of `images`, 0-based, pixel centres at integers."""

    images: torch.Tensor  # (N, 3, 256, 256) uint8 RGB; every stored crop has exactly this size
    points: torch.Tensor  # (N, P, 2) float32
    box: torch.Tensor  # (N, 4) float32 x, y, width, height; NaN when the set ships no boxes
    occluded: torch.Tensor  # (N, P) bool
    split: torch.Tensor  # (N,) uint8: 0 train, 1 test
    scale: torch.Tensor  # (N,) float32, original pixels per pixel of `images`
    subset: list[str]
    names: list[str]
    markup: Markup
    fingerprint: str

    def __len__(self) -> int:
        return len(self.names)

    def select(self, rows: torch.Tensor | np.ndarray | Sequence[int]) -> Self:
        """The same set with only `rows`: a boolean mask (N,) or indices."""
        rows = torch.as_tensor(rows)
        rows = rows.nonzero().flatten() if rows.dtype == torch.bool else rows.long()
        parts: dict[str, Any] = {key: getattr(self, key)[rows] for key in ("images", *_TENSORS)}
        parts |= {key: [getattr(self, key)[i] for i in rows.tolist()] for key in ("subset", "names")}
        return dataclasses.replace(self, **parts)

    def part(self, split: str) -> Self:
        """The faces of "train" or "test"."""
        return self.select(self.split == ("train", "test").index(split))


def load_alignment(name: str, threads: int = 2) -> AlignmentSet:
    """An alignment set, prepared first if its files are here, decoded into memory once.

    Raises MissingData (exit 3) with the remedy when the set is not on this machine.
    """
    prepared = ensure(name)
    arrays = prepared.arrays
    tensors = {key: torch.from_numpy(arrays[key]) for key in _TENSORS}
    return AlignmentSet(
        images=prepared.decode(threads=threads),
        subset=arrays["subset"].tolist(),
        names=arrays["name"].tolist(),
        markup=markup_for(arrays["points"].shape[1]),
        fingerprint=prepared.meta["fingerprint"],
        **tensors,
    )
