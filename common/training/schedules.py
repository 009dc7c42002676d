"""Learning rates over the steps of a training. All functions are exact in the order of their products: equal settings
give equal bits."""

import math
from collections.abc import Sequence

import torch


def warm_up(step: int, steps: int) -> float:
    """Share of the rate in a linear warm-up: 1 / steps at step 0, 1 from step `steps` - 1 on (0 steps: always 1)."""
    return min(1.0, (step + 1) / max(1, steps))


def cosine(peak: float, done: float, total: float) -> float:
    """`peak` at 0 that falls to zero at `total` along half a cosine; `done` and `total` in one unit (steps, epochs)."""
    return peak * 0.5 * (1 + math.cos(math.pi * done / total))


def drops(peak: float, done: float, at: Sequence[float]) -> float:
    """`peak`, a tenth of it after each point of `at` that `done` has reached."""
    return peak * 0.1 ** sum(done >= point for point in at)


def rate(peak: float, step: int, total: int, warmup: int = 0, at: Sequence[float] = ()) -> float:
    """Learning rate of a step: linear warm-up, then a tenth after each step of `at`, or without any one cosine to 0."""
    warm = warm_up(step, warmup) * peak
    return drops(warm, step, at) if at else cosine(warm, step, total)


def set_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Give every group of an optimiser the rate `value`, times the group's own factor "rate" where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = value * group.get("rate", 1.0)
