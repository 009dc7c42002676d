"""Label noise: symmetric flips with known truth, and the real noise of FER2013's labels. Training labels only."""

from collections.abc import Sequence

import numpy as np
import torch

from facepapers.common import seeding
from facepapers.common.cli import UserError

KEY = 5  # keeps the draw apart from other uses of the run's seed


def symmetric(labels: np.ndarray, rate: float, classes: int, seed: int) -> np.ndarray:
    """Labels (N,) of which each is, with probability `rate`, replaced by another class, all others equally likely.

    Independent draws, as in the authors' lists (whose realised rates are 10.0, 20.3, 29.4 and 40.0 %). UserError for a
    rate outside [0, 1), or one class, which has no other.
    """
    check_rate(rate)
    if rate and classes < 2:
        raise UserError(f"--noise {rate}: with {classes} class there is no other label to flip to")
    gen = seeding.generator(seed, KEY)
    flip = torch.rand(len(labels), generator=gen).numpy() < rate
    step = torch.randint(1, max(2, classes), (len(labels),), generator=gen).numpy()
    return np.where(flip, (np.asarray(labels) + step) % classes, labels)


def check_rate(rate: float) -> None:
    """UserError for a rate outside [0, 1)."""
    if not 0 <= rate < 1:
        raise UserError(f"--noise {rate}: a share of flipped labels lies in [0, 1)")


def check_classes(given: np.ndarray, names: Sequence[str], allowed: Sequence[str] = ()) -> list[str]:
    """UserError where a class that trained before the flipping has no training label left; `allowed` ones may."""
    count = np.bincount(given, minlength=len(names))
    gone = [name for name, n in zip(names, count, strict=True) if not n and name not in allowed]
    if gone:
        raise UserError(
            f"no training label {', '.join(gone)} is left after flipping; lower --noise or take another --seed"
        )
    return [name for name, n in zip(names, count, strict=True) if not n]
