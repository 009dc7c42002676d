"""Factors of a batch of faces: drawn independently, each with a stated distribution."""

import dataclasses
from dataclasses import dataclass

import torch

from facepapers.common.faces.shape import ACTION_NAMES, IDENTITY_DIMS


@dataclass(frozen=True)
class Factors:
    """What a batch of pictures is made from. All tensors have the leading dimension N and share a device."""

    identity: torch.Tensor  # (N, 32) appearance coordinates, standard normal; IDENTITY_NAMES
    identity_label: torch.Tensor  # (N,) long, which person
    gender: torch.Tensor  # (N,) long 0..1, shifts the appearance
    group: torch.Tensor  # (N,) long 0..4, shifts the appearance
    age_years: torch.Tensor  # (N,)
    expression: torch.Tensor  # (N,) long, index into EXPRESSIONS
    intensity: torch.Tensor  # (N,) 0..1
    action_jitter: torch.Tensor  # (N, 16) added to the action units; ACTION_NAMES
    smirk_side: torch.Tensor  # (N,) -1 or 1: where contempt lifts the mouth
    hair_jitter: torch.Tensor  # (N, 3) added to hair length, line and volume, so that a person's hair varies
    yaw_deg: torch.Tensor  # (N,) positive: the nose moves to the viewer's right
    pitch_deg: torch.Tensor  # (N,) positive: the nose moves up
    roll_deg: torch.Tensor  # (N,) positive: clockwise on the screen
    gaze: torch.Tensor  # (N, 2) displacement of the pupils, in model units
    scale: torch.Tensor  # (N,) image widths per model unit (= mean inter-pupil distance)
    shift: torch.Tensor  # (N, 2) of the head's pivot from the image centre, in image widths
    light_azimuth_deg: torch.Tensor  # (N,) positive: from the viewer's right
    light_elevation_deg: torch.Tensor  # (N,) positive: from above
    light_strength: torch.Tensor  # (N,) 0 (flat light) .. 1 (all light from one direction)
    light_colour: torch.Tensor  # (N, 3) factor on the channels
    background: torch.Tensor  # (N, 24) uniforms: colours, blobs, stripes
    cloth: torch.Tensor  # (N, 3) colour of the clothes
    occluder: torch.Tensor  # (N,) long, index into OCCLUDERS
    occluder_shape: torch.Tensor  # (N, 6) uniforms: side, place, size, kind, colour
    blur: torch.Tensor  # (N,) standard deviation in 1/64 image widths
    noise: torch.Tensor  # (N,) standard deviation, 1 = white
    noise_seed: torch.Tensor  # (N,) long, start in the noise table

    def __len__(self):
        return len(self.identity)

    def __getitem__(self, index):
        return _map(self, lambda t: t[index])

    def to(self, device):
        return _map(self, lambda t: t.to(device))


@dataclass(frozen=True)
class Faces:
    """Pictures and their truth. Points are x, y in pixels: pixel centres at integers, origin top left."""

    images: torch.Tensor  # (N, C, S, S) uint8
    points: torch.Tensor  # (N, 29, 2) float32, COFW order
    occluded: torch.Tensor  # (N, 29) bool: covered by the occluder, or turned away from the viewer
    five: torch.Tensor  # (N, 5, 2): left and right pupil, nose tip, left and right mouth corner
    box: torch.Tensor  # (N, 4) x, y, w, h: the 29 points' extent, grown by 12 % on each side
    identity_label: torch.Tensor  # (N,) long
    expression: torch.Tensor  # (N,) long
    age_years: torch.Tensor  # (N,) float
    gender: torch.Tensor  # (N,) long
    group: torch.Tensor  # (N,) long
    yaw_deg: torch.Tensor
    pitch_deg: torch.Tensor
    roll_deg: torch.Tensor
    occluder: torch.Tensor  # (N,) long

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return _map(self, lambda t: t[index])

    def to(self, device):
        return _map(self, lambda t: t.to(device))


def _map(record, function):
    return type(record)(**{f.name: function(getattr(record, f.name)) for f in dataclasses.fields(record)})


def sample_factors(
    n,
    seed,
    *,
    identities=None,
    people_seed=None,
    expressions=tuple(range(8)),
    intensity=(0.5, 1.0),
    ages=(6.0, 80.0),
    yaw_deg=30.0,
    pitch_deg=15.0,
    roll_deg=15.0,
    scale=(0.245, 0.285),
    shift=0.04,
    light_strength=(0.1, 0.65),
    occluder=None,
    occluded_share=0.2,
    blur=(0.1, 0.7),
    noise=(0.005, 0.03),
):
    """Draw n sets of factors on the CPU. The first m of them are the same for every n >= m.

    `identities`: number of distinct people (None: everybody differs). `people_seed` (default: `seed`) draws
    the people, so two calls with equal people and different seeds give training and test pictures of the
    same persons. Ranges are uniform, `*_deg` and `shift` symmetric; `occluder` fixes its kind for all.
    """
    uniform = _columns(n, seed, 128)
    person, label = _people(n, uniform, identities, seed if people_seed is None else people_seed, ages)
    kind = 1 + (uniform(1)[:, 0] * 4).long()
    kind = torch.where(uniform(1)[:, 0] < occluded_share, kind, 0)
    expression = torch.tensor(expressions)[(uniform(1)[:, 0] * len(expressions)).long()]
    return Factors(
        **person,
        identity_label=label,
        expression=expression,
        intensity=_between(uniform(1)[:, 0], *intensity),
        action_jitter=0.08 * _normal(uniform(len(ACTION_NAMES))),
        smirk_side=torch.where(uniform(1)[:, 0] < 0.5, -1.0, 1.0),
        hair_jitter=0.25 * _normal(uniform(3)),
        yaw_deg=_between(uniform(1)[:, 0], -yaw_deg, yaw_deg),
        pitch_deg=_between(uniform(1)[:, 0], -pitch_deg, pitch_deg),
        roll_deg=_between(uniform(1)[:, 0], -roll_deg, roll_deg),
        gaze=torch.tensor([0.025, 0.008]) * _normal(uniform(2)),
        scale=_between(uniform(1)[:, 0], *scale),
        shift=_between(uniform(2), -shift, shift),
        light_azimuth_deg=_between(uniform(1)[:, 0], -70, 70),
        light_elevation_deg=_between(uniform(1)[:, 0], -10, 60),
        light_strength=_between(uniform(1)[:, 0], *light_strength),
        light_colour=_between(uniform(1), 0.8, 1.15) * (1 + 0.05 * torch.tensor([1.0, 0, -1]) * _normal(uniform(1))),
        background=uniform(24),
        cloth=uniform(3) * uniform(1),
        occluder=kind if occluder is None else torch.full_like(kind, occluder),
        occluder_shape=uniform(6),
        blur=_between(uniform(1)[:, 0], *blur),
        noise=_between(uniform(1)[:, 0], *noise),
        noise_seed=(uniform(1)[:, 0].double() * NOISE_STARTS).long(),
    )


def _columns(n, seed, width):
    """A function that hands out the next k columns of one (n, width) matrix of uniforms."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.rand(n, width, generator=generator)
    used = [0]

    def take(k):
        used[0] += k
        assert used[0] <= width
        return matrix[:, used[0] - k : used[0]]

    return take


def _people(n, uniform, identities, people_seed, ages):
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


def _between(u, low, high):
    return low + (high - low) * u


def _normal(u):
    return torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6))


NOISE_STARTS = 1 << 18
