"""State dicts as people have them, loaded strictly: wrapped, with a wrapper's prefix, without counters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from facepapers.common.cli import UserError

if TYPE_CHECKING:
    import torch

HOLDERS = ("state_dict_backbone", "state_dict", "model")  # under these a training checkpoint holds the weights
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel (and its like) and of torch.compile
COUNTER = "num_batches_tracked"  # batch normalisation's, which older files lack; nothing that we run reads it


def unwrapped(state: Any, path: Path | str) -> dict[str, torch.Tensor]:
    """The flat dict of tensors in what a weights file holds, without wrappers' prefixes.

    Raises UserError, with what was found, when there is none.
    """
    import torch

    while isinstance(state, dict) and (holder := next((k for k in HOLDERS if isinstance(state.get(k), dict)), None)):
        state = state[holder]
    if not isinstance(state, dict):
        raise UserError(f"{path}: holds a {type(state).__name__}, not tensors; save `model.state_dict()` alone")
    odd = next((f"{k} is a {type(v).__name__}" for k, v in state.items() if not isinstance(v, torch.Tensor)), None)
    if odd or not state:
        raise UserError(
            f"{path}: not a flat state dict of tensors ({odd or 'it is empty'}); save `model.state_dict()` alone"
        )
    return {_plain(str(name)): value for name, value in state.items()}


def _plain(name: str) -> str:
    while name.startswith(PREFIXES):
        name = name.partition(".")[2]
    return name.replace("._orig_mod.", ".")  # a compiled part of a network


def fill(net: torch.nn.Module, state: dict[str, torch.Tensor], path: Path | str) -> None:
    """Load `state` into `net`, every tensor but BatchNorm's counters, which keep their value where the file lacks them.

    Raises UserError with the first keys that differ, naming `path`; `net` then is as it was.
    """
    own = net.state_dict()
    state = {k: v for k, v in own.items() if k.rpartition(".")[2] == COUNTER} | state
    if problem := difference(own, state):
        raise UserError(f"{path}: weights of another architecture: {problem}")
    net.load_state_dict(state, strict=True)


def difference(wanted: dict[str, torch.Tensor], given: dict[str, torch.Tensor]) -> str:
    """One line on how two state dicts differ in names or shapes, with the first three; empty when they agree."""
    missing, surplus = [k for k in wanted if k not in given], [k for k in given if k not in wanted]
    shapes = [
        f"{k} {tuple(given[k].shape)} instead of {tuple(wanted[k].shape)}"
        for k in wanted
        if k in given and wanted[k].shape != given[k].shape
    ]
    parts = (("keys missing", missing), ("keys unknown", surplus), ("shapes differ", shapes))
    return "; ".join(f"{len(keys)} {what} ({', '.join(keys[:3])})" for what, keys in parts if keys)
