"""Optimisers by name over groups of parameters. The order of groups is part of what a checkpoint holds."""

from collections.abc import Iterable

import torch


def group(parameters: Iterable[torch.nn.Parameter], weight_decay: float = 0.0, rate: float = 1.0) -> dict:
    """A group of an optimiser: its parameters, their decay, and the factor that `schedules.set_rate` applies."""
    return {"params": list(parameters), "rate": rate, "weight_decay": weight_decay}


def trained(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The parameters that require a gradient, in the module's order."""
    return [p for p in module.parameters() if p.requires_grad]


def make(
    name: str,
    parameters: Iterable,
    lr: float,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    nesterov: bool = False,
    fused: bool | None = None,
) -> torch.optim.Optimizer:
    """The optimiser "sgd", "adam" or "adamw" over parameters or groups of them.

    `momentum` and `nesterov` are SGD's, `betas` and `fused` (one kernel for all parameters) Adam's. A group's own
    `weight_decay` stands before the argument.
    """
    if name == "sgd":
        return torch.optim.SGD(parameters, lr, momentum, weight_decay=weight_decay, nesterov=nesterov)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    return kind(parameters, lr, betas, weight_decay=weight_decay, fused=fused)
