"""Random numbers that depend on named keys alone, never on what was drawn before."""

import functools
from collections.abc import Callable

import torch


def generator(*keys: int) -> torch.Generator:
    """A CPU generator that depends on the integers `keys` alone, e.g. (seed, step).

    A step's randomness is a function of its number, so a resumed or distributed run needs no saved state.
    """
    state = 0x9E3779B97F4A7C15
    for key in keys:  # splitmix64 over the keys: neighbouring steps get unrelated streams
        state = (state + (int(key) & 0xFFFFFFFFFFFFFFFF) * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**64
        state ^= state >> 31
        state = state * 0xD6E8FEB86659FD93 % 2**64
        state ^= state >> 32
    return torch.Generator().manual_seed(state % 2**63)


def shuffled(n: int, batch: int, seed: int) -> Callable[[int], torch.Tensor]:
    """A function step -> indices (batch,) of n samples: pieces of one shuffled pass after another, none left out."""

    @functools.lru_cache(maxsize=2)
    def order(number: int) -> torch.Tensor:
        return torch.randperm(n, generator=generator(seed, 1, number))

    def index(step: int) -> torch.Tensor:
        first = step * batch
        passes = range(first // n, (first + batch - 1) // n + 1)
        return torch.cat([order(p) for p in passes])[first - passes[0] * n :][:batch]

    return index
