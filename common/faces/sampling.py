"""Factors of a batch of faces: drawn independently, each with a stated distribution."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from facepapers.common.faces.factors import Factors
from facepapers.common.faces.shape import ACTION_NAMES, IDENTITY_DIMS

NOISE_STARTS = 1 << 18
Columns = Callable[[int], torch.Tensor]  # k -> the next k columns of uniforms, (N, k)


@dataclass(frozen=True)
class Ranges:
    """From what the factors are drawn: pairs are uniform from low to high, `*_deg` and `shift` symmetric about 0."""

    expressions: tuple[int, ...] = tuple(range(8))  # equally often; indices into EXPRESSIONS
    intensity: tuple[float, float] = (0.5, 1.0)
    ages: tuple[float, float] = (6.0, 80.0)  # years
    yaw_deg: float = 30.0
    pitch_deg: float = 15.0
    roll_deg: float = 15.0
    scale: tuple[float, float] = (0.245, 0.285)  # image widths per model unit
    shift: float = 0.04  # image widths
    light_strength: tuple[float, float] = (0.1, 0.65)
    occluder: int | None = None  # the kind of all faces, an index into OCCLUDERS; None: see `occluded_share`
    occluded_share: float = 0.2  # of the faces, with any of the four kinds
    blur: tuple[float, float] = (0.1, 0.7)  # standard deviation, 1/64 image widths
    noise: tuple[float, float] = (0.005, 0.03)  # standard deviation, 1 = white


USUAL = Ranges()


def sample_factors(
    n: int, seed: int, ranges: Ranges = USUAL, *, identities: int | None = None, people_seed: int | None = None
) -> Factors:
    """Draw n sets of factors on the CPU. The first m of them are the same for every n >= m.

    `identities`: number of distinct people (None: everybody differs). `people_seed` (default: `seed`) draws
    the people, so two calls with equal people and different seeds give training and test pictures of the
    same persons.
    """
    # Each line takes the next columns of one matrix, so the order of the lines decides what is drawn.
    uniform = _columns(n, seed, 128)
    person, label = _people(n, uniform, identities, seed if people_seed is None else people_seed, ranges.ages)
    occluder = _occluders(uniform, ranges)
    expression = _expressions(uniform, ranges)
    hair_jitter = 0.25 * _normal(uniform(3))
    pose = _poses(uniform, ranges)
    light = _lights(uniform, ranges)
    return Factors(
        **person,
        identity_label=label,
        **expression,
        hair_jitter=hair_jitter,
        **pose,
        **light,
        background=uniform(24),
        cloth=uniform(3) * uniform(1),
        occluder=occluder,
        occluder_shape=uniform(6),
        blur=_between(uniform(1)[:, 0], *ranges.blur),
        noise=_between(uniform(1)[:, 0], *ranges.noise),
        noise_seed=(uniform(1)[:, 0].double() * NOISE_STARTS).long(),
    )


def _columns(n: int, seed: int, width: int) -> Columns:
    """A function that hands out the next k columns of one (n, width) matrix of uniforms."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.rand(n, width, generator=generator)
    used = [0]

    def take(k: int) -> torch.Tensor:
        used[0] += k
        assert used[0] <= width
        return matrix[:, used[0] - k : used[0]]

    return take


def _people(
    n: int, uniform: Columns, identities: int | None, people_seed: int, ages: tuple[float, float]
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Identity, gender, group and age of each sample, and the label of the person."""
    own, pick = uniform(IDENTITY_DIMS + 3), uniform(2)
    if identities is None:
        label = torch.arange(n)
    else:
        label = (pick[:, 0].double() * identities).long()
        own = _columns(identities, people_seed + 2**32, IDENTITY_DIMS + 3)(IDENTITY_DIMS + 3)[label]
    person = {
        "identity": _normal(own[:, :IDENTITY_DIMS]).clamp(-2.5, 2.5),
        "gender": (own[:, -3] * 2).long(),
        "group": (own[:, -2] * 5).long(),
        "age_years": (_between(own[:, -1], *ages) + _between(pick[:, 1], -1.5, 1.5)).clamp(*ages),
    }
    return person, label


def _occluders(uniform: Columns, ranges: Ranges) -> torch.Tensor:
    """Kind of each sample's occluder, 0 for none."""
    kind = 1 + (uniform(1)[:, 0] * 4).long()
    kind = torch.where(uniform(1)[:, 0] < ranges.occluded_share, kind, 0)
    return kind if ranges.occluder is None else torch.full_like(kind, ranges.occluder)


def _expressions(uniform: Columns, ranges: Ranges) -> dict[str, torch.Tensor]:
    """Expression, its strength, and what makes no two of them alike."""
    known = torch.tensor(ranges.expressions)
    return {
        "expression": known[(uniform(1)[:, 0] * len(known)).long()],
        "intensity": _between(uniform(1)[:, 0], *ranges.intensity),
        "action_jitter": 0.08 * _normal(uniform(len(ACTION_NAMES))),
        "smirk_side": torch.where(uniform(1)[:, 0] < 0.5, -1.0, 1.0),
    }


def _poses(uniform: Columns, ranges: Ranges) -> dict[str, torch.Tensor]:
    """How the head is turned and placed, and where the eyes look."""
    return {
        "yaw_deg": _between(uniform(1)[:, 0], -ranges.yaw_deg, ranges.yaw_deg),
        "pitch_deg": _between(uniform(1)[:, 0], -ranges.pitch_deg, ranges.pitch_deg),
        "roll_deg": _between(uniform(1)[:, 0], -ranges.roll_deg, ranges.roll_deg),
        "gaze": torch.tensor([0.025, 0.008]) * _normal(uniform(2)),
        "scale": _between(uniform(1)[:, 0], *ranges.scale),
        "shift": _between(uniform(2), -ranges.shift, ranges.shift),
    }


def _lights(uniform: Columns, ranges: Ranges) -> dict[str, torch.Tensor]:
    """Direction, strength and colour of the light."""
    return {
        "light_azimuth_deg": _between(uniform(1)[:, 0], -70, 70),
        "light_elevation_deg": _between(uniform(1)[:, 0], -10, 60),
        "light_strength": _between(uniform(1)[:, 0], *ranges.light_strength),
        "light_colour": _between(uniform(1), 0.8, 1.15) * (1 + 0.05 * torch.tensor([1.0, 0, -1]) * _normal(uniform(1))),
    }


def _between(u: torch.Tensor, low: float, high: float) -> torch.Tensor:
    return low + (high - low) * u


def _normal(u: torch.Tensor) -> torch.Tensor:
    return torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6))
