"""Synthetic faces with known truth: a batched renderer in plain tensor operations.

A test bed, never data about people. Every label is an input of the drawing: expression, age, the 29 COFW
points and their occlusion are exact because the picture is made from them. `gender` (0, 1) and `group`
(0..4) are abstract appearance factors: two fixed tables of shifts in the appearance vector, with overlapping
distributions, that stand for no population.

How a face is made (N samples, K primitives, P pixels):

1. A linear model gives 3-D points: mean + identity blend shapes + action units (expression) + age. The 29
   landmarks are 29 of its points, so lids, brows and lips are curves *through* the landmarks.
2. Yaw, pitch and roll turn the points about a pivot inside the head; projection is orthographic.
3. Each primitive (ellipsoid outline, lid curve, wrinkle, ...) is a polynomial of degree two in the pixel
   position, so one matrix product (N*K, 6) @ (6, P) evaluates all primitives of a chunk at all pixels.
4. Edges are those polynomials scaled to pixels and clamped (analytic anti-aliasing); shading strokes are
   their exponentials. Layers are composited front to back, and a second matrix product applies the colours.

Model space: unit = mean distance between the pupils, origin midway between them, x to the viewer's right,
y down, z towards the viewer. "Left" and "right" always mean the viewer's side.

Same factors, device, thread count and chunk give the same bits. `sample_factors` draws on the CPU, and its
first m samples do not depend on n (the same seed with a larger n only appends).
"""

import dataclasses
import functools
import math
from dataclasses import dataclass
from types import SimpleNamespace

import torch

from common.points import COFW29, five_points
from common.progress import progress

EXPRESSIONS = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
OCCLUDERS = ("none", "hand", "glasses", "mask", "hair")
COFW_NAMES = tuple(COFW29.names)

# ---------------------------------------------------------------------------------------------------------
# The linear face model. Tables give the viewer's right side and the middle; the left side is mirrored.
# ---------------------------------------------------------------------------------------------------------

MEAN_POINTS = {
    1: (0.86, -0.27, -0.20), 3: (0.23, -0.29, 0.06), 6: (0.57, -0.43, 0.02), 7: (0.57, -0.325, 0.02),
    9: (0.725, -0.005, -0.12), 11: (0.275, 0.025, -0.04), 14: (0.5, -0.105, 0.01), 15: (0.5, 0.085, 0.0),
    17: (0.5, -0.005, 0.0), 19: (0.28, 0.72, 0.10), 20: (0, 0.60, 0.40), 21: (0, 0.79, 0.20),
    23: (0.40, 1.13, 0.0), 24: (0, 1.02, 0.19), 25: (0, 1.115, 0.19), 26: (0, 1.130, 0.19),
    27: (0, 1.265, 0.16), 28: (0, 1.80, -0.05),
}  # fmt: skip

BROW, EYE, MOUTH = (1, 3, 6, 7), (9, 11, 14, 15, 17), (23, 24, 25, 26, 27)


def _all(points, *step):
    return {point: step for point in points}


# Displacement of the named points per standard deviation of each appearance coordinate; coordinates without
# points act on the head, the colours or the hair.
IDENTITY_SHAPES = {
    "face_width": {1: (0.02, 0, 0)},
    "face_length": {28: (0, 0.06, 0)} | _all(MOUTH, 0, 0.035, 0) | _all((19, 20, 21), 0, 0.015, 0),
    "jaw_width": {},
    "chin_length": {28: (0, 0.06, 0)},
    "eye_spacing": _all(EYE, 0.03, 0, 0) | _all(BROW, 0.02, 0, 0),
    "eye_width": {9: (0.025, 0, 0), 11: (-0.02, 0, 0), 14: (0, -0.006, 0)},
    "eye_opening": {14: (0, -0.018, 0), 15: (0, 0.012, 0)},
    "eye_tilt": {9: (0, -0.03, 0), 11: (0, 0.015, 0)},
    "nose_length": _all((19, 20, 21), 0, 0.045, 0),
    "nose_width": {19: (0.035, 0, 0)},
    "nose_depth": {20: (0, -0.012, 0.06), 21: (0, 0, 0.02)},
    "mouth_width": {23: (0.04, 0, 0)},
    "upper_lip": {24: (0, -0.024, 0.01)},
    "lower_lip": {27: (0, 0.028, 0.01)},
    "mouth_height": _all(MOUTH, 0, 0.035, 0),
    "brow_height": _all(BROW, 0, -0.035, 0),
    "brow_thickness": {6: (0, -0.02, 0), 7: (0, 0.014, 0)},
    "brow_arch": {6: (0, -0.025, 0), 7: (0, -0.025, 0)},
    "brow_tilt": {1: (0, -0.03, 0), 3: (0, 0.015, 0)},
    "brow_length": {1: (0.03, 0, 0), 3: (-0.03, 0, 0)},
    "skin_tone": {}, "skin_hue": {}, "lip_colour": {}, "iris_tone": {}, "iris_hue": {}, "freckles": {},
    "hair_tone": {}, "hair_hue": {}, "hair_length": {}, "hairline": {}, "hair_volume": {}, "beard": {},
}  # fmt: skip
IDENTITY_NAMES = tuple(IDENTITY_SHAPES)
IDENTITY_DIMS = len(IDENTITY_NAMES)

# Action units: what the muscles do to the points. `smirk` is one-sided and handled apart.
ACTION_SHAPES = {
    "inner_brow_raise": {3: (0, -0.15, 0), 6: (0, -0.06, 0), 7: (0, -0.06, 0)},
    "outer_brow_raise": {1: (0, -0.10, 0), 6: (0, -0.09, 0), 7: (0, -0.09, 0)},
    "brow_lower": {3: (-0.06, 0.11, 0), 6: (-0.03, 0.08, 0), 7: (-0.03, 0.08, 0), 1: (0, 0.02, 0)},
    "upper_lid_raise": {14: (0, -0.06, 0)},
    "lid_tighten": {14: (0, 0.04, 0), 15: (0, -0.035, 0)},
    "cheek_raise": {15: (0, -0.035, 0), 14: (0, 0.015, 0)},
    "nose_wrinkle": _all((20, 21), 0, -0.04, 0) | {19: (0.03, -0.06, 0), 3: (-0.02, 0.06, 0)},
    "upper_lip_raise": {24: (0, -0.09, 0.01), 25: (0, -0.075, 0), 23: (0, -0.01, 0)},
    "corner_pull": {23: (0.13, -0.10, -0.06), 24: (0, 0.01, -0.02), 27: (0, -0.01, -0.02)},
    "corner_drop": {23: (0.0, 0.10, -0.02)},
    "chin_raise": {
        27: (0, -0.05, 0),
        26: (0, -0.04, 0),
        25: (0, -0.03, 0),
        24: (0, -0.02, 0),
        28: (0, -0.04, 0),
    },
    "lip_stretch": {23: (0.13, 0.04, -0.06)},
    "lip_press": {24: (0, 0.04, 0), 27: (0, -0.055, 0), 23: (-0.03, 0, 0)},
    "lips_part": {25: (0, -0.03, 0), 26: (0, 0.07, 0), 27: (0, 0.06, 0)},
    "jaw_drop": {
        26: (0, 0.27, 0),
        27: (0, 0.29, 0),
        28: (0, 0.27, 0),
        23: (-0.07, 0.11, 0),
        25: (0, -0.01, 0),
    },
    "smirk": {},
}
ACTION_NAMES = tuple(ACTION_SHAPES)
EXPRESSION_ACTIONS = {
    "neutral": {},
    "happiness": {"cheek_raise": 0.9, "corner_pull": 1.0, "lips_part": 0.6},
    "surprise": {"inner_brow_raise": 1.0, "outer_brow_raise": 1.0, "upper_lid_raise": 0.8, "jaw_drop": 0.8},
    "sadness": {"inner_brow_raise": 0.9, "brow_lower": 0.35, "corner_drop": 0.9, "chin_raise": 0.6,
                "lid_tighten": 0.3},
    "anger": {"brow_lower": 1.0, "lid_tighten": 0.6, "upper_lid_raise": 0.2, "lip_press": 0.8},
    "disgust": {"nose_wrinkle": 1.0, "upper_lip_raise": 0.8, "brow_lower": 0.4, "lid_tighten": 0.5,
                "corner_drop": 0.4},
    "fear": {"inner_brow_raise": 0.9, "outer_brow_raise": 0.4, "brow_lower": 0.4, "upper_lid_raise": 0.9,
             "lip_stretch": 0.9, "lips_part": 0.7, "jaw_drop": 0.2},
    "contempt": {"smirk": 1.0, "lip_press": 0.2},
}  # fmt: skip

AGE_SHAPES = {14: (0, 0.02, 0), 20: (0, 0.02, 0), 21: (0, 0.02, 0), 24: (0, 0.02, 0), 27: (0, -0.02, 0)}
CHILD_SHAPES = (
    {28: (0, -0.36, 0), 14: (0, -0.045, 0), 15: (0, 0.035, 0), 9: (0.04, 0, 0), 6: (0, 0.02, 0)}
    | _all(MOUTH, 0, -0.22, 0)
    | {23: (-0.08, -0.22, 0)}
    | _all((20, 21), 0, -0.16, -0.10)
    | {19: (-0.06, -0.16, 0)}
)

# Mean shifts of the appearance coordinates, in standard deviations: gender 1 minus gender 0, and a fixed
# arbitrary table for the five groups (drawn once from a generator, so nothing is modelled on anybody).
GENDER_SHIFT = {
    "jaw_width": 1.3, "chin_length": 0.8, "brow_thickness": 1.4, "brow_height": -1.0, "brow_arch": -0.8,
    "upper_lip": -0.9, "lower_lip": -0.9, "lip_colour": -1.4, "hair_length": -2.2, "beard": 2.0,
    "nose_width": 0.7, "eye_opening": -0.8, "face_width": 0.5,
}  # fmt: skip
GROUP_SHIFT_STD = 1.0

# The head is a smooth union of ellipsoids: centre and radii. The chin and the nose follow their landmarks.
HEAD = {
    "cranium": ((0, -0.33, -1.10), (1.10, 1.30, 1.35)),
    "cheeks": ((0, 0.45, -0.75), (0.96, 1.05, 0.95)),
    "jaw": ((0, 0.98, -0.70), (0.80, 0.70, 0.75)),
    "chin": ((0, 0.0, -0.42), (0.50, 0.42, 0.42)),
    "nose": ((0, -0.17, -0.31), (0.17, 0.31, 0.30)),
}
PIVOT = (0.0, 0.40, -0.60)  # the head turns about this point, which lands at the image centre plus `shift`
UNION_SHARPNESS = 9.0  # of the smooth union, per unit

# Soft strokes on the skin: (anchor landmarks, offset, long axis, short axis, luminance, luminance per unit
# of sideways light, driver). Axes are the 1/e radii. A driver multiplies the luminance (see `_drivers`). The
# names that end in _r are mirrored.
STROKES = {
    "bridge": ((20, 20, 16, 17), (0, 0.02, 0), (0, 0.26, 0.1), (0.07, 0, 0), 0.07, 0, None),
    "bridge_side_r": ((20, 20, 16, 17), (0.14, 0, -0.1), (0.03, 0.24, 0.1), (0.075, 0, 0), -0.05, 0.11, None),
    "tip": ((20,), (0, -0.03, 0), (0.08, 0, 0), (0, 0.08, 0), 0.09, 0, None),
    "tip_side_r": ((20,), (0.13, 0.04, -0.1), (0.05, 0, 0), (0, 0.08, 0), -0.05, 0.06, None),
    "wing_r": ((19,), (0.01, -0.03, 0), (0.01, 0.085, 0), (0.028, 0.0, 0), -0.30, 0, None),
    "wing_ball_r": ((19,), (-0.07, -0.04, 0.05), (0.055, 0, 0), (0, 0.06, 0), 0.08, 0.05, None),
    "nostril_r": ((19, 21), (-0.01, 0.015, 0.08), (0.07, -0.015, 0), (0.0, 0.028, 0), -0.36, 0, None),
    "nose_shadow": ((21,), (0, 0.05, 0), (0.20, 0, 0), (0, 0.05, 0), -0.11, 0, None),
    "socket_r": ((11, 3), (0.02, 0.06, 0), (0.13, -0.03, 0), (0.0, 0.10, 0), -0.10, 0.03, None),
    "crease_r": ((14,), (0.01, -0.065, 0), (0.20, 0.0, 0), (0.0, 0.025, 0), -0.13, 0, None),
    "lid_r": ((14, 7), (0.05, 0.0, 0), (0.22, 0.0, 0), (0.0, 0.05, 0), 0.04, 0, None),
    "under_eye_r": ((15,), (0, 0.09, 0), (0.20, 0, 0), (0, 0.05, 0), -0.045, 0, None),
    "bag_r": ((15,), (0.0, 0.15, 0), (0.19, 0.01, 0), (0, 0.022, 0), -0.16, 0, "age"),
    "cheek_r": ((15, 19), (0.30, 0.12, 0), (0.24, 0, 0), (0, 0.20, 0), 0.05, 0.05, None),
    "hollow_r": ((23,), (0.38, -0.02, -0.3), (0.15, 0.1, 0), (-0.1, 0.28, 0), -0.06, 0.03, None),
    "apple_r": ((15, 19), (0.27, 0.10, 0.1), (0.17, 0, 0), (0, 0.13, 0), 0.10, 0.05, "smile"),
    "fold_r": ((19, 23), (0.10, -0.05, 0), (0.09, 0.22, 0), (0.035, -0.015, 0), -0.22, 0, "fold"),
    "crow_upper_r": ((9,), (0.13, -0.03, -0.05), (0.09, -0.03, 0), (0.004, 0.014, 0), -0.20, 0, "crow"),
    "crow_lower_r": ((9,), (0.12, 0.06, -0.05), (0.08, 0.045, 0), (-0.006, 0.014, 0), -0.20, 0, "crow"),
    "furrow_r": ((3,), (-0.13, 0.03, 0), (0.01, 0.11, 0), (0.022, 0, 0), -0.24, 0, "furrow"),
    "forehead_1": ((4, 6), (0, -0.16, 0.05), (0.46, 0, 0), (0, 0.020, 0), -0.15, 0, "forehead"),
    "forehead_2": ((4, 6), (0, -0.30, 0.05), (0.50, 0, 0), (0, 0.020, 0), -0.15, 0, "forehead"),
    "forehead_3": ((4, 6), (0, -0.44, 0.02), (0.44, 0, 0), (0, 0.020, 0), -0.12, 0, "forehead"),
    "forehead_shine": ((4, 6), (0, -0.33, 0), (0.45, 0, 0), (0, 0.22, 0), 0.06, 0, None),
    "nose_wrinkle": ((16, 17), (0, 0.14, 0.1), (0.14, 0, 0), (0, 0.03, 0), -0.25, 0, "sneer"),
    "sneer_r": ((20, 16, 17), (0.17, 0.05, -0.1), (0.05, 0.11, 0), (0.025, -0.01, 0), -0.25, 0, "sneer"),
    "philtrum": ((21, 24), (0, 0.0, 0), (0, 0.10, 0), (0.04, 0, 0), -0.06, 0, None),
    "below_lip": ((27,), (0, 0.09, 0), (0.20, 0, 0), (0, 0.06, 0), -0.13, 0, None),
    "chin_shine": ((27, 28), (0, 0.06, 0.1), (0.20, 0, 0), (0, 0.14, 0), 0.06, 0, None),
    "corner_r": ((23,), (0.015, 0.01, 0), (0.045, 0.0, 0), (0, 0.035, 0), -0.22, 0, None),
    "marionette_r": ((23,), (0.04, 0.20, 0), (0.03, 0.14, 0), (0.025, -0.005, 0), -0.20, 0, "age"),
    "dimple": ((23,), (0.12, -0.05, -0.05), (0.03, 0.09, 0), (0.03, -0.01, 0), -0.30, 0, "smirk_right"),
    "dimple_left": ((22,), (-0.12, -0.05, -0.05), (-0.03, 0.09, 0), (0.03, 0.01, 0), -0.30, 0, "smirk_left"),
    "blush_r": ((15, 19), (0.30, 0.15, 0), (0.26, 0, 0), (0, 0.20, 0), 0, 0, "blush"),
    "moustache": ((21, 24), (0, 0.02, 0), (0.30, 0, 0), (0, 0.085, 0), 0, 0, "beard"),
    "beard_chin": ((27, 28), (0, 0.10, 0), (0.42, 0, 0), (0, 0.30, 0), 0, 0, "beard"),
    "beard_jaw_r": ((23,), (0.42, 0.22, -0.3), (0.18, -0.10, 0), (0.08, 0.40, 0), 0, 0, "beard"),
}  # fmt: skip


# ---------------------------------------------------------------------------------------------------------
# Factors and faces
# ---------------------------------------------------------------------------------------------------------


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


def generate(n, seed, size=64, grey=False, device=None, chunk=None, **options):
    """n faces of one seed: `sample_factors` (which takes the options), then `render`."""
    return render(sample_factors(n, seed, **options), size, grey=grey, device=device, chunk=chunk)


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


# ---------------------------------------------------------------------------------------------------------
# Geometry: factors -> 3-D points -> pose -> image plane (in image widths, origin at the image centre)
# ---------------------------------------------------------------------------------------------------------


def _displacements(table):
    """(29, 3) from one entry of the tables: the right side is mirrored to the left."""
    out = torch.zeros(29, 3)
    for point, step in table.items():
        out[point] = torch.tensor(step, dtype=torch.float32)
        if COFW29.flip[point] != point:
            out[COFW29.flip[point]] = out[point] * torch.tensor([-1.0, 1, 1])
    return out


def appearance(f):
    """Appearance coordinates with the shifts of gender and group: a dict of (N,), IDENTITY_NAMES."""
    gender = torch.tensor([GENDER_SHIFT.get(name, 0.0) for name in IDENTITY_NAMES])
    group = GROUP_SHIFT_STD * torch.randn(5, IDENTITY_DIMS, generator=torch.Generator().manual_seed(5))
    # No group grows a beard or keeps its hair short more than another: those belong to gender.
    group[:, [IDENTITY_NAMES.index(name) for name in ("beard", "hair_length")]] = 0
    gender, group = gender.to(f.identity), group.to(f.identity)
    z = f.identity + (f.gender[:, None] - 0.5) * gender + group[f.group]
    z[:, [IDENTITY_NAMES.index(name) for name in ("hair_length", "hairline", "hair_volume")]] += f.hair_jitter
    return dict(zip(IDENTITY_NAMES, z.unbind(1), strict=True))


def actions(f):
    """Action units from expression, intensity and jitter: a dict of (N,), ACTION_NAMES; all >= 0."""
    table = torch.tensor([[row.get(a, 0.0) for a in ACTION_NAMES] for row in EXPRESSION_ACTIONS.values()])
    level = 1.4 * f.intensity[:, None] * table.to(f.intensity)[f.expression] + f.action_jitter
    return dict(zip(ACTION_NAMES, level.clamp(0, 1.6).unbind(1), strict=True))


def oldness(f):
    """0 up to about 25 years, 1 at 75."""
    return ((f.age_years - 25) / 50).clamp(0, 1.2)


def childness(f):
    """1 at 4 years, 0 from 17 on."""
    return ((17 - f.age_years) / 13).clamp(0, 1)


def model_points(f, look, act):
    """The 29 landmarks in model space before posing, (N, 29, 3)."""
    weights = [*look.values(), *act.values(), oldness(f), childness(f)]
    tables = [*IDENTITY_SHAPES.values(), *ACTION_SHAPES.values(), AGE_SHAPES, CHILD_SHAPES]
    basis = torch.stack([_displacements(t) for t in tables]).to(f.identity)
    points = _displacements(MEAN_POINTS).to(f.identity) + torch.einsum("nk,kpd->npd", torch.stack(weights, 1), basis)
    points[:, 16:18, :2] += f.gaze[:, None]
    smirk, right = act["smirk"][:, None], (f.smirk_side > 0)[:, None]
    lift = torch.tensor([0.08, -0.13, -0.04]).to(points)
    points[:, 23] += smirk * lift * right
    points[:, 22] += smirk * lift * torch.tensor([-1.0, 1, 1]).to(points) * ~right
    return _in_order(points)


def _in_order(points):
    """Keep lids, lips and brows from crossing, whatever the sum of blend shapes says."""
    y = points[:, :, 1]
    for upper, lower, gap in ((12, 13, 0.05), (14, 15, 0.05), (24, 25, 0.03), (25, 26, 0.012), (26, 27, 0.04),
                              (4, 5, 0.05), (6, 7, 0.05)):  # fmt: skip
        y[:, lower] = torch.maximum(y[:, lower], y[:, upper] + gap)
    # The lid cuts the eyeball, not the pupil's position: keep the pupil between the lids.
    for pupil, top, bottom in ((16, 12, 13), (17, 14, 15)):
        y[:, pupil] = y[:, pupil].clamp(y[:, top] + 0.02, y[:, bottom] - 0.02)
    return points


@dataclass(frozen=True)
class Pose:
    """Rotation and placement. `flat` maps model points to the image plane, in image widths."""

    rotation: torch.Tensor  # (N, 3, 3), model -> camera
    scale: torch.Tensor  # (N,)
    shift: torch.Tensor  # (N, 2)

    def camera(self, points):
        """(N, K, 3) model points -> camera coordinates relative to the pivot, model units."""
        return (points - torch.tensor(PIVOT).to(points)) @ self.rotation.mT

    def flat(self, points):
        return self.camera(points)[..., :2] * self.scale[:, None, None] + self.shift[:, None]

    def axis(self, vectors):
        """(N, K, 3) model directions -> (N, K, 2) in the image plane."""
        return (vectors @ self.rotation.mT)[..., :2] * self.scale[:, None, None]

    def __getitem__(self, index):
        return Pose(self.rotation[index], self.scale[index], self.shift[index])


def pose_of(f):
    """Pitch first, then yaw, then roll, about the pivot."""
    yaw, pitch, roll = (torch.deg2rad(a) for a in (f.yaw_deg, f.pitch_deg, f.roll_deg))
    one, zero = torch.ones_like(yaw), torch.zeros_like(yaw)
    turn = _matrix(yaw.cos(), zero, yaw.sin(), zero, one, zero, -yaw.sin(), zero, yaw.cos())
    nod = _matrix(one, zero, zero, zero, pitch.cos(), -pitch.sin(), zero, pitch.sin(), pitch.cos())
    tilt = _matrix(roll.cos(), -roll.sin(), zero, roll.sin(), roll.cos(), zero, zero, zero, one)
    return Pose(tilt @ turn @ nod, f.scale, f.shift)


def _matrix(*entries):
    return torch.stack(entries, -1).unflatten(-1, (3, 3))


# ---------------------------------------------------------------------------------------------------------
# Polynomials of the image position: (..., 3) for 1, X, Y and (..., 6) for 1, X, Y, X^2, XY, Y^2
# ---------------------------------------------------------------------------------------------------------


def _basis(x, y):
    """Monomials at positions in image widths: (...,) -> (..., 6)."""
    return torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y], -1)


def _evaluate(polynomials, basis):
    """(N, K, 6) at shared positions (P, 6) or at positions of each sample (N, P, 6) -> (N, K, P)."""
    if basis.dim() == 3:
        return polynomials @ basis.mT
    return (polynomials.flatten(0, 1) @ basis.T).unflatten(0, polynomials.shape[:2])


def _product(p, q):
    """Product of two affine functions."""
    a, b, c = p.unbind(-1)
    d, e, f = q.unbind(-1)
    return torch.stack([a * d, a * e + b * d, a * f + c * d, b * e, b * f + c * e, c * f], -1)


def _lift(p):
    return torch.cat([p, torch.zeros_like(p)], -1)


def _constant(value, like):
    """The constant polynomial `value`, shaped like the batch of polynomials `like`."""
    out = torch.zeros_like(like)
    out[..., 0] = value
    return out


def _frame(origin, a, b):
    """Affine coordinates u, v of the frame origin + u a + v b; all (..., 2)."""
    det = a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
    det = torch.where(det.abs() < 1e-6, torch.full_like(det, 1e-6), det)  # an edge-on frame shrinks to nothing
    u_x, u_y = b[..., 1] / det, -b[..., 0] / det
    v_x, v_y = -a[..., 1] / det, a[..., 0] / det
    u = torch.stack([-(u_x * origin[..., 0] + u_y * origin[..., 1]), u_x, u_y], -1)
    v = torch.stack([-(v_x * origin[..., 0] + v_y * origin[..., 1]), v_x, v_y], -1)
    return u, v


def _at(affine, position):
    """Value of an affine function (N, 3) at positions (N, 2)."""
    return affine[..., 0] + (affine[..., 1:] * position).sum(-1)


def _disc(origin, a, b, radius):
    """Signed distance-like polynomial of an ellipse, in model units near the edge; positive inside."""
    u, v = _frame(origin, a, b)
    q = _product(u, u) + _product(v, v)
    return (_constant(1.0, q) - q) * (torch.as_tensor(radius).to(q) / 2)[..., None]


def _below(u, v, at_minus, at_plus, through):
    """v - g(u), g the parabola with g(-1), g(1) as given, through the position (N, 2): positive below it."""
    u0, v0 = _at(u, through), _at(v, through)
    line = lambda t: (at_plus + at_minus) / 2 + t * (at_plus - at_minus) / 2
    bend = (v0 - line(u0)) / (1 - u0 * u0).clamp_min(0.2)
    q = _lift(v) + bend[:, None] * _product(u, u) - _lift(u) * ((at_plus - at_minus) / 2)[:, None]
    return q - _constant(bend + line(torch.zeros_like(bend)), q), bend


# ---------------------------------------------------------------------------------------------------------
# Primitives: each function returns {name: (N, 6) polynomial}, in model units
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Surface:
    """An ellipsoid seen from the front: outline 1 - r^2; depth = slope + bulge * sqrt(outline)."""

    outline: torch.Tensor  # (N, K, 6)
    slope: torch.Tensor  # (N, K, 3) affine, camera depth of the middle sheet, model units
    bulge: torch.Tensor  # (N, K)
    size: torch.Tensor  # (N, K) mean radius of the outline, model units


def _ellipsoids(pose, centres, radii):
    """Exact orthographic outlines and depths of ellipsoids with (N, K, 3) centres and radii."""
    spread = torch.einsum("nij,nkj,nlj->nkil", pose.rotation, radii**2, pose.rotation)  # R diag(r^2) R^T
    plane = spread[..., :2, :2]
    inverse = torch.linalg.inv(plane)
    centre, scale = pose.camera(centres), pose.scale[:, None, None]
    dx, dy = _frame(centre[..., :2] * scale + pose.shift[:, None], *_unit_axes(scale, centre))
    q = inverse[..., 0, 0, None] * _product(dx, dx) + inverse[..., 1, 1, None] * _product(dy, dy)
    q = q + 2 * inverse[..., 0, 1, None] * _product(dx, dy)
    lean = torch.einsum("nki,nkij->nkj", spread[..., 2, :2], inverse)
    slope = lean[..., :1] * dx + lean[..., 1:] * dy
    slope[..., 0] += centre[..., 2]
    bulge = (spread[..., 2, 2] - (lean * spread[..., 2, :2]).sum(-1)).clamp_min(0).sqrt()
    return Surface(_constant(1.0, q) - q, slope, bulge, torch.linalg.det(plane) ** 0.25)


def _unit_axes(scale, like):
    """The image axes, one model unit long, as (N, K, 2) each."""
    zero = torch.zeros_like(like[..., 0])
    unit = zero + scale[..., 0]
    return torch.stack([unit, zero], -1), torch.stack([zero, unit], -1)


def head_ellipsoids(f, look, points):
    """Centres and radii (N, 5, 3) in the order of HEAD."""
    n = len(points)
    centres = torch.tensor([c for c, _ in HEAD.values()]).to(points).repeat(n, 1, 1)
    radii = torch.tensor([r for _, r in HEAD.values()]).to(points).repeat(n, 1, 1)
    wide, jaw, child = look["face_width"] * 0.045, look["jaw_width"] * 0.055, childness(f)
    old = oldness(f)
    radii[:, :4, 0] *= 1 + wide[:, None]
    radii[:, 1, 0] *= 1 + 0.03 * child
    radii[:, 2, 0] *= 1 + jaw - 0.03 * child + 0.05 * old
    radii[:, 3, 0] *= (1 + 1.6 * jaw).clamp(0.6, 1.5)
    drop = points[:, 28, 1] - 1.80
    centres[:, 3, 1] = points[:, 28, 1] - radii[:, 3, 1]
    centres[:, 2, 1] += 0.55 * drop
    centres[:, 1, 1] += 0.20 * drop
    centres[:, 4] += points[:, 20]
    radii[:, 4, 0] *= 0.5 + 0.5 * (points[:, 19, 0] - points[:, 18, 0]) / 0.56
    return centres, radii


def _union(polynomials_or_planes, dim):
    """Smooth maximum of signed distances."""
    return (polynomials_or_planes * UNION_SHARPNESS).clamp_min(-40).exp().sum(dim).log() / UNION_SHARPNESS


def chin_tip(pose, outline, points):
    """Where the head's outline ends below the chin, (N, 2): bisection along the face's down axis."""
    down = pose.axis(torch.tensor([0.0, 1, 0]).to(points).expand(len(points), 1, 3))[:, 0]
    down = down / down.norm(dim=-1, keepdim=True) * pose.scale[:, None]
    start = pose.flat(points[:, 28:] - torch.tensor([0.0, 0.3, 0.3]).to(points))[:, 0]
    low, high = torch.zeros_like(pose.scale), torch.full_like(pose.scale, 1.2)
    for _ in range(14):
        middle = (low + high) / 2
        position = start + middle[:, None] * down
        inside = _union(_evaluate(outline, _basis(*position.unbind(-1))[:, None]), 1)[:, 0] > 0
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    return start + low[:, None] * down


def eye_curves(pose, flat, side):
    """Lids, iris and catch light of one eye; `side` is 'l' or 'r'."""
    outer, inner, top, bottom, pupil = (8, 10, 12, 13, 16) if side == "l" else (9, 11, 14, 15, 17)
    across, down = _axes(pose, flat)
    u, v = _frame((flat[:, outer] + flat[:, inner]) / 2, (flat[:, outer] - flat[:, inner]) / 2, down)
    zero = torch.zeros_like(pose.scale)
    half = (flat[:, outer] - flat[:, inner]).norm(dim=-1) / pose.scale / 2
    square = _product(u, u)
    return {
        f"lid_top_{side}": _below(u, v, zero, zero, flat[:, top])[0],
        f"lid_bottom_{side}": -_below(u, v, zero, zero, flat[:, bottom])[0],
        f"eye_window_{side}": (_constant(1.05, square) - square) * half[:, None] / 2,
        f"iris_{side}": _disc(flat[:, pupil], across * IRIS_RADIUS, down * IRIS_RADIUS, IRIS_RADIUS),
        f"glint_{side}": _disc(flat[:, pupil] + 0.035 * (across - down), across * 0.03, down * 0.03, 0.03),
    }


IRIS_RADIUS = 0.108
PUPIL_SHARE = 0.42  # of the iris radius


def _axes(pose, points):
    """The model's x and y axes in the image plane, (N, 2) each."""
    axes = pose.axis(torch.eye(3)[:2].to(points).expand(len(points), 2, 3))
    return axes[:, 0], axes[:, 1]


def brow_curves(pose, flat, side):
    """Upper edge, lower edge and ends of one brow; blunt at the inner end, thin at the outer one."""
    outer, inner, top, bottom = (0, 2, 4, 5) if side == "l" else (1, 3, 6, 7)
    down = _axes(pose, flat)[1]
    u, v = _frame((flat[:, outer] + flat[:, inner]) / 2, (flat[:, outer] - flat[:, inner]) / 2, down)
    thick = (_at(v, flat[:, bottom]) - _at(v, flat[:, top])).clamp_min(0.02)
    half = (flat[:, outer] - flat[:, inner]).norm(dim=-1) / pose.scale / 2
    square = _product(u, u)
    return {
        f"brow_top_{side}": _below(u, v, -0.42 * thick, -0.12 * thick, flat[:, top])[0],
        f"brow_bottom_{side}": -_below(u, v, 0.42 * thick, 0.12 * thick, flat[:, bottom])[0],
        f"brow_ends_{side}": (_constant(1.0, square) - square) * half[:, None] / 2,
    }


def mouth_curves(pose, flat):
    """The four lip curves through both corners, and the window between the corners."""
    left, right = flat[:, 22], flat[:, 23]
    u, v = _frame((left + right) / 2, (right - left) / 2, _axes(pose, flat)[1])
    zero = torch.zeros_like(pose.scale)
    names = {"lip_1": 24, "lip_2": 25, "lip_3": 26, "lip_4": 27}
    square = _product(u, u)
    curves = {name: _below(u, v, zero, zero, flat[:, point])[0] for name, point in names.items()}
    half = (right - left).norm(dim=-1) / pose.scale / 2
    return curves | {"mouth_window": (_constant(1.0, square) - square) * half[:, None] / 2}


@functools.cache
def stroke_tables():
    """Anchor weights (K, 29), offsets and axes (K, 3), luminances and sideways light (K,), K drivers."""
    rows = []
    for name, (anchors, offset, long, short, lum, side, driver) in STROKES.items():
        rows.append((anchors, offset, long, short, lum, side, driver))
        if name.endswith("_r"):
            mirror = [(-x, y, z) for x, y, z in (offset, long, short)]
            rows.append((tuple(COFW29.flip[a] for a in anchors), *mirror, lum, -side, driver))
    weights = torch.zeros(len(rows), 29)
    for k, row in enumerate(rows):
        for anchor in row[0]:
            weights[k, anchor] += 1 / len(row[0])
    columns = [torch.tensor([row[i] for row in rows], dtype=torch.float32) for i in range(1, 6)]
    return weights, *columns, [row[6] for row in rows]


def stroke_polynomials(pose, points):
    """-(u^2 + v^2) of every stroke, (N, K, 6): the exponential is the stroke."""
    weights, offset, long, short, _, _, _ = stroke_tables()
    centre = pose.flat(weights.to(points) @ points + offset.to(points))
    n = len(points)
    u, v = _frame(centre, pose.axis(long.to(points).expand(n, -1, 3)), pose.axis(short.to(points).expand(n, -1, 3)))
    return -_product(u, u) - _product(v, v)


def stroke_colours(f, look, act, light, colours):
    """Colour change (N, K, 3) of every stroke under this light, age and expression."""
    _, _, _, _, lum, side, drivers = stroke_tables()
    amount = lum.to(light) + side.to(light) * light[:, :1] * f.light_strength[:, None] * 2  # (N, K)
    level = _drivers(f, look, act)
    one = torch.ones_like(f.scale)
    amount = amount * torch.stack([level.get(d, one) if d else one for d in drivers], 1)
    colour = amount[..., None] * (0.25 + 0.75 * colours["skin"])[:, None]
    special = {"beard": colours["hair"] * 0.8 - colours["skin"] * 0.85, "blush": colours["blush"]}
    for name, delta in special.items():
        rows = [k for k, d in enumerate(drivers) if d == name]
        colour[:, rows] = (level[name][:, None] * delta)[:, None]
    return colour


def _drivers(f, look, act):
    """How strongly wrinkles, dimples, beard and blush show, (N,) each."""
    old, grown = oldness(f), 1 - childness(f)
    return {
        "age": old,
        "smile": act["corner_pull"],
        "fold": 0.15 + 0.6 * old + 0.6 * act["corner_pull"] + 0.6 * act["upper_lip_raise"] + 0.3 * act["smirk"],
        "crow": 0.8 * old + 0.5 * act["cheek_raise"],
        "furrow": 0.35 * old + act["brow_lower"],
        "forehead": 0.8 * old + 0.6 * (act["inner_brow_raise"] + act["outer_brow_raise"]) * (0.4 + 0.6 * old),
        "sneer": act["nose_wrinkle"],
        "smirk_right": act["smirk"] * (f.smirk_side > 0),
        "smirk_left": act["smirk"] * (f.smirk_side < 0),
        "blush": torch.ones_like(old),
        "beard": (0.35 * (look["beard"] - 1.3)).clamp(0, 0.9) * (grown > 0.95),
    }


# ---------------------------------------------------------------------------------------------------------
# Colours
# ---------------------------------------------------------------------------------------------------------


def _blend(dark, light, share):
    """Geometric mixture of two colours, (N,) -> (N, 3): saturated middle tones, as pigments have."""
    dark, light = (torch.tensor(c).to(share).log() for c in (dark, light))
    return (dark + (light - dark) * share[:, None]).exp()


def palette(f, look):
    """Colours in 0..1, (N, 3) each, from the appearance coordinates and age."""
    tint = torch.tensor([0.04, 0.0, -0.05]).to(f.scale)
    skin = _blend((0.36, 0.22, 0.16), (0.95, 0.79, 0.69), torch.sigmoid(1.1 * look["skin_tone"] + 0.7))
    skin = skin * (1 + tint * look["skin_hue"][:, None])
    hair = _blend((0.06, 0.045, 0.04), (0.82, 0.65, 0.38), torch.sigmoid(1.3 * look["hair_tone"] - 0.9))
    hair = hair * (1 + 3 * tint * look["hair_hue"][:, None])
    grey = torch.sigmoid((f.age_years - 56) / 7 + 0.5 * look["hair_hue"])[:, None] * 0.9
    hair = hair + (0.78 - hair) * grey
    rosy = torch.tensor([1.0, 0.56, 0.56]).to(skin)
    lip = skin * (rosy + 0.10 * (look["lip_colour"].clamp(-2.5, 2)[:, None] * torch.tensor([0.5, -1, -0.8]).to(skin)))
    blush = torch.tensor([0.03, -0.035, -0.03]).to(skin) * (1 + 0.5 * look["lip_colour"].clamp(-2, 2))[:, None]
    iris = _blend((0.15, 0.08, 0.05), (0.45, 0.62, 0.72), torch.sigmoid(1.5 * look["iris_tone"] - 0.7))
    iris = iris * (1 + 3 * tint * look["iris_hue"][:, None])
    colours = {"skin": skin, "hair": hair, "lip": lip, "blush": blush, "iris": iris, "brow": 0.75 * hair}
    return {name: c if name == "blush" else c.clamp(0.01, 1) for name, c in colours.items()}


def light_direction(f):
    """Unit vector towards the light in camera coordinates, (N, 3)."""
    side, up = torch.deg2rad(f.light_azimuth_deg), torch.deg2rad(f.light_elevation_deg)
    return torch.stack([side.sin() * up.cos(), -up.sin(), side.cos() * up.cos()], 1)


# ---------------------------------------------------------------------------------------------------------
# A scene: everything about one chunk that does not depend on the pixel grid
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    f: Factors
    pose: Pose
    look: dict
    act: dict
    colours: dict
    light: torch.Tensor  # (N, 3)
    model: torch.Tensor  # (N, 29, 3) landmarks in model space
    flat: torch.Tensor  # (N, 29, 2) landmarks in the image plane
    outline: torch.Tensor  # (N, 5, 6) ellipsoids of the head, HEAD, as distances in model units


def build_scene(f):
    look, act, pose = appearance(f), actions(f), pose_of(f)
    model = model_points(f, look, act)
    surfaces = _ellipsoids(pose, *head_ellipsoids(f, look, model))
    outline = surfaces.outline * (surfaces.size / 2)[..., None]
    flat = pose.flat(model)
    flat[:, 28] = chin_tip(pose, outline, model)
    return Scene(f, pose, look, act, palette(f, look), light_direction(f), model, flat, outline)


def hidden_by_pose(scene):
    """Landmarks that face away from the viewer or lie behind the nose, (N, 29) bool."""
    normal = (scene.model - torch.tensor([0, 0.4, -0.9]).to(scene.model)) / torch.tensor([1.0, 2.2, 1.0]).to(
        scene.model
    )
    normal = normal / normal.norm(dim=-1, keepdim=True) @ scene.pose.rotation.mT
    away = normal[..., 2] < 0.1
    centres, radii = head_ellipsoids(scene.f, scene.look, scene.model)
    nose = _ellipsoids(scene.pose, centres[:, 4:], radii[:, 4:])
    at = _evaluate(nose.outline, _basis(*scene.flat.unbind(-1)))[:, 0]
    depth = scene.pose.camera(scene.model)[..., 2]
    behind = (at > 0) & (depth < scene.pose.camera(centres[:, 4:])[..., 2] - 0.05)
    hidden = away | behind
    hidden[:, 28] = False  # the chin tip is a point of the visible outline
    return hidden


def body_shapes(scene):
    """Hair, ears, neck and shoulders: {name: (N, 6)} distances; the cranium's Surface for the hairline."""
    pose, look, like = scene.pose, scene.look, scene.model
    n = len(like)
    volume = 0.10 + 0.05 * look["hair_volume"].clamp(-1.5, 2.5)
    length = torch.sigmoid(1.6 * look["hair_length"])
    wide = 1 + 0.045 * look["face_width"]
    zero = torch.zeros_like(volume)
    rows = [  # centre x, y, z and radii x, y, z
        (zero, zero - 0.33, zero - 1.10, 1.10 * wide, zero + 1.30, zero + 1.35),
        (zero, zero - 0.36 - 0.4 * volume, zero - 1.12, 1.08 * wide + volume, 1.27 + volume, 1.35 + volume),
        (
            zero,
            -0.30 + 0.85 * length,
            zero - 1.30,
            1.06 * wide + volume + 0.12 * length,
            1.2 + 1.05 * length,
            zero + 1.2,
        ),
        (zero, zero + 1.0, zero - 0.5, 0.92 * wide, zero + 2.3, zero + 0.8),
        (-1.05 * wide, zero + 0.22, zero - 0.80, zero + 0.13, zero + 0.30, zero + 0.20),
        (1.05 * wide, zero + 0.22, zero - 0.80, zero + 0.13, zero + 0.30, zero + 0.20),
    ]
    table = torch.stack([torch.stack(row, -1) for row in rows], 1)
    surfaces = _ellipsoids(pose, table[..., :3], table[..., 3:])
    names = ("cranium", "hair_cap", "hair_back", "curtain", "ear_l", "ear_r")
    shapes = surfaces.outline * (surfaces.size / 2)[..., None]
    out = dict(zip(names, shapes.unbind(1), strict=True))
    throat = pose.flat(torch.tensor([0, 1.15, -0.9]).to(like).expand(n, 1, 3))[:, 0]
    body = pose.shift + torch.tensor([0.0, 2.3]).to(like) * pose.scale[:, None]
    across, down = pose.scale[:, None] * torch.tensor([1.0, 0]).to(like), (body - throat) / 2
    width = 0.66 + 0.05 * look["jaw_width"] - 0.1 * childness(scene.f)
    out["neck"] = _disc((throat + body) / 2, across * width[:, None], down * 1.5, width)
    upright = torch.tensor([0.0, 1.0]).to(like) * pose.scale[:, None]
    out["cloth"] = _disc(pose.shift + 3.55 * upright, across * 2.2, upright * 1.6, 1.6)
    cranium = Surface(surfaces.outline[:, :1], surfaces.slope[:, :1], surfaces.bulge[:, :1], surfaces.size[:, :1])
    return out, cranium


def surface_coordinates(pose, surface):
    """Model x, y, z of the visible surface: affine part (N, 3, 3) and factor of sqrt(outline) (N, 3)."""
    unit = torch.eye(3).to(pose.scale)[1:].expand(len(pose.scale), 2, 3) / pose.scale[:, None, None]
    xy = unit.clone()
    xy[..., 0] = -pose.shift / pose.scale[:, None]
    camera = torch.cat([xy, surface.slope], 1)  # (N, xyz, affine)
    affine = pose.rotation.mT @ camera
    affine[..., 0] += torch.tensor(PIVOT).to(affine)
    return affine, pose.rotation[:, 2] * surface.bulge


def lambert(pose, centre, radii, light):
    """Light on an ellipsoid's sphere normals: polynomial (N, 6), bulge factor (N,) and outline (N, 6).

    The brightness at a pixel is polynomial + factor * sqrt(outline).
    """
    surface = _ellipsoids(pose, centre[:, None], radii[:, None])
    middle = pose.camera(centre[:, None])[:, 0]
    weight = (((light[:, None] @ pose.rotation)[:, 0] / radii)[:, None] @ pose.rotation.mT)[:, 0]  # R (R^T l / r)
    scale = pose.scale[:, None]
    xy = weight[:, :2] / scale
    shifted = -(xy * (middle[:, :2] * scale + pose.shift)).sum(-1, keepdim=True)
    slope = surface.slope[:, 0].clone()
    slope[:, 0] -= middle[:, 2]
    affine = torch.cat([shifted, xy], 1) + weight[:, 2:] * slope
    return _lift(affine), weight[:, 2] * surface.bulge[:, 0], surface.outline[:, 0]


# ---------------------------------------------------------------------------------------------------------
# Pixels
# ---------------------------------------------------------------------------------------------------------


def _soft(distance_px, softness=1.0):
    """Coverage from a signed distance in pixels: a box-filtered edge `softness` pixels wide."""
    return (distance_px / softness + 0.5).clamp(0, 1)


def _bell(exponent):
    """exp in place, flat below e^-16: denormal numbers would make it ten times slower."""
    return exponent.clamp_min_(-16).exp_()


@functools.cache
def _textures(device):
    """Two noise tables (1, 1, 128, 128), mean 0, standard deviation 1, constant."""
    noise = torch.randn(2, 128, 128, generator=torch.Generator().manual_seed(11))
    kernel = torch.tensor([1.0, 4, 6, 4, 1]) / 16
    smooth = torch.nn.functional.pad(noise[:, None], (2, 2, 2, 2), mode="circular")
    smooth = torch.nn.functional.conv2d(smooth, (kernel[:, None] * kernel)[None, None])[:, 0]
    return (smooth / smooth.std((1, 2), keepdim=True))[:, None, None].to(device).unbind(0)


def _sample(texture, u, v):
    """Bilinear look-up of a (1, 1, H, W) table at coordinates in -1..1: (N, P) -> (N, P)."""
    grid = torch.stack([u, v], -1)[None]
    return torch.nn.functional.grid_sample(texture, grid, padding_mode="reflection", align_corners=False)[0, 0]


def background_plan(f):
    """Gradient, stripes, three blobs: polynomials (N, 5, 6), colours (N, 3, 5), base colour (N, 3)."""
    u = f.background
    base, dark = u[:, :3], u[:, 3:4]
    base = base + 0.6 * (base.mean(1, keepdim=True) - base)  # mostly muted colours
    centre = (u[:, 4:10].unflatten(1, (3, 2)) - 0.5) * 1.2
    radius = 0.12 + 0.35 * u[:, 10:13, None]
    axes = torch.eye(2).to(u)
    p, q = _frame(centre, radius * axes[0], radius * axes[1])
    angle = u[:, 13] * math.pi
    wave = 8 + 50 * u[:, 14] ** 2
    stripes = torch.stack([6 * u[:, 15], wave * angle.cos(), wave * angle.sin()], 1)
    gradient = torch.stack([0 * angle, u[:, 16] - 0.5, u[:, 17] - 0.5], 1)
    affine = _lift(torch.stack([gradient, stripes], 1))
    blobs = -_product(p, p) - _product(q, q)
    flat = torch.ones(len(u), 3, 1).to(u)
    contrast = 0.5 * (u[:, 18, None, None] - 0.4).clamp_min(0)
    tints = torch.cat([flat, flat * contrast, (u[:, 3:12].unflatten(1, (3, 3)).mT - 0.5) * 0.6], 2)
    return torch.cat([affine, blobs], 1), tints, (base * 0.75 + 0.15) * (0.4 + 0.6 * dark)


def _draw_background(d, basis):
    planes = _evaluate(d.background, basis)
    planes[:, 1].sin_()
    _bell(planes[:, 2:])
    return torch.baddbmm(d.background_base[..., None], d.background_tints, planes)


def hair_plan(scene, cranium):
    """The hairline on the skull's surface: see `_hair_mask` for what each number does."""
    look, f = scene.look, scene.f
    affine, factor = surface_coordinates(scene.pose, cranium)
    old, gender = oldness(f), f.gender.to(f.scale)
    line = -0.98 + 0.09 * look["hairline"] + 0.34 * torch.sigmoid(5 * (look["hairline"] - 1.2))
    line = line - 0.45 * (old * (0.25 + 0.75 * gender) * (0.9 - 0.4 * look["hairline"]).clamp(0, 1.6))
    return {
        "surface": _lift(affine),
        "surface_bulge": factor,
        "hair_line": line,
        "hair_part": 0.06 * look["hair_hue"],
        "hair_side": 0.15 + 0.25 * torch.sigmoid(4 * (look["hair_length"] - 0.3)),
        "hair_long": torch.sigmoid(12 * (look["hair_length"] - 0.5)),
        "bulge_unit": 2 / cranium.size[:, 0],
    }


def _hair_mask(d, planes, px, basis):
    """Coverage of the hair in front of the head (N, P); model x, y, z of the skull's surface (N, 3, P)."""
    bulge = (planes["cranium"].clamp_min(0) * (d.bulge_unit[:, None] / px)).sqrt_()
    xyz = torch.addcmul(_evaluate(d.surface, basis), d.surface_bulge[..., None], bulge[:, None])
    x, y, z = xyz.unbind(1)
    top = d.hair_line[:, None] + (d.hair_part[:, None] + 0.30 * x) * x - y
    flank = torch.minimum(-0.58 - z - 0.1 * y, d.hair_side[:, None] - y)
    distance = torch.minimum(torch.maximum(top, flank) * px, planes["hair_cap"])
    sides = d.hair_long[:, None] * _soft(torch.minimum(planes["hair_back"], -planes["curtain"]), 1.5)
    return torch.maximum(_soft(distance, 1.5), sides), xyz


def _eye_layers(planes, px, clip):
    """Lash line, glint, pupil, iris, white: [(coverage (N, P), name)], front first."""
    parts = []
    for side in "lr":
        inside = torch.minimum(planes[f"lid_top_{side}"], planes[f"lid_bottom_{side}"])
        white = _soft(inside) * _soft(planes[f"eye_window_{side}"])
        iris = planes[f"iris_{side}"]
        pupil = _soft((iris - px * (IRIS_RADIUS / 2 * (1 - PUPIL_SHARE**2))) * 2)
        upper = _soft(0.022 * px - planes[f"lid_top_{side}"].abs())
        lower = _soft(0.010 * px - planes[f"lid_bottom_{side}"].abs()) * 0.45
        lash = torch.maximum(upper, lower) * _soft(planes[f"eye_window_{side}"])
        parts.append((lash, white * _soft(planes[f"glint_{side}"]), white * pupil, white * _soft(iris), white))
    both = [torch.maximum(left, right) * clip for left, right in zip(*parts, strict=True)]
    return list(zip(both, ("lash", "glint", "pupil", "iris", "white"), strict=True))


def _mouth_layers(d, planes, px, clip):
    """Lip line, teeth, open mouth, lower and upper lip, front first."""
    one, two, three, four = (planes[f"lip_{k}"] for k in (1, 2, 3, 4))
    line = _soft(0.014 * px - (two + three).abs() / 2) * _soft(planes["mouth_window"])
    gap = _soft(torch.minimum(two, -three))
    row = gap * _soft(d.teeth[:, None] * px - two)
    lower, upper = _soft(torch.minimum(three, -four)), _soft(torch.minimum(one, -two))
    names = ("line", "teeth", "gap", "lower_lip", "upper_lip")
    return [(a * clip, name) for a, name in zip((line, row, gap, lower, upper), names, strict=True)]


def _brow_layer(d, planes, clip):
    edges = [torch.minimum(planes[f"brow_top_{s}"], planes[f"brow_bottom_{s}"]) for s in "lr"]
    edges = [torch.minimum(e, planes[f"brow_ends_{s}"]) for e, s in zip(edges, "lr", strict=True)]
    return [(_soft(torch.maximum(*edges), 1.6) * clip * d.brow_density[:, None], "brow")]


def _ear_layer(d, planes):
    """An ear shows when its side is turned to the viewer."""
    left, right = d.ear_facing[:, :1], d.ear_facing[:, 1:]
    return [(torch.maximum(_soft(planes["ear_l"]) * left, _soft(planes["ear_r"]) * right), "ear")]


LAYERS = (  # front first
    "hair", "brow", "lash", "glint", "pupil", "iris", "white", "line", "teeth", "gap", "lower_lip",
    "upper_lip", "ear", "skin", "neck", "cloth", "hair_back",
)  # fmt: skip


def layer_colours(scene):
    """Flat colours of LAYERS, (N, 3, L)."""
    c, f = scene.colours, scene.f
    like = c["skin"]
    black, white = (
        torch.zeros_like(like),
        torch.tensor([0.93, 0.91, 0.89]).to(like) * (0.75 + 0.25 * like.mean(1, True)),
    )
    table = {
        "hair": c["hair"], "brow": c["brow"], "lash": 0.25 * c["brow"] + 0.02, "glint": black + 0.95,
        "pupil": black + 0.03, "iris": c["iris"], "white": white, "line": 0.35 * c["lip"],
        "teeth": 0.95 * white, "gap": black + torch.tensor([0.25, 0.06, 0.06]).to(like),
        "lower_lip": 1.05 * c["lip"],
        "upper_lip": 0.85 * c["lip"], "ear": 0.92 * c["skin"], "skin": c["skin"], "neck": 0.85 * c["skin"],
        "cloth": 0.1 + 0.8 * f.cloth, "hair_back": 0.70 * c["hair"],
    }  # fmt: skip
    return torch.stack([table[name] for name in LAYERS], 2)


def _over(layers):
    """Weights of the layers (front first) after hiding one another (N, K, P); what shines through (N, P)."""
    through, weights = torch.ones_like(layers[0]), []
    for coverage in layers:
        weights.append(through * coverage)
        through = through - weights[-1]
    return torch.stack(weights, 1), through


def lighting(scene):
    """Lambert terms of the head and the nose: {name: (N, 6)} and the factors of their bulges, (N, 1) each."""
    f, like = scene.f, scene.model
    strength = f.light_strength[:, None]
    frontal = torch.tensor([0.0, 0.0, 1.0]).to(like)
    light = 1.5 * strength * scene.light + 0.42 * (1 - strength) * frontal
    centre = torch.tensor([0, 0.30, -0.95]).to(like).expand(len(like), 3)
    radii = torch.tensor([1.12, 1.62, 1.20]).to(like).expand(len(like), 3)
    head = lambert(scene.pose, centre, radii, light)
    centres, sizes = head_ellipsoids(f, scene.look, scene.model)
    nose = lambert(scene.pose, centres[:, 4], sizes[:, 4], light)
    polynomials = {"light": head[0], "light_outline": head[2], "nose_light": nose[0], "nose_outline": nose[2]}
    return polynomials, head[1][:, None], nose[1][:, None]


def _shading(d, planes):
    """Factor on the colours (N, P): ambient plus Lambert on the head and, as its own surface, the nose."""
    head = planes["light"] + d.bulge[:, :1] * planes["light_outline"].clamp_min(0).sqrt_()
    outline = planes["nose_outline"].clamp_min(0)
    nose = planes["nose_light"] + d.bulge[:, 1:] * outline.sqrt()
    lit = torch.lerp(head, nose, (1.1 * outline).clamp_(0, 0.45))
    return lit.clamp_(0, 1.4).add_(d.ambient[:, None])


def _body_shade(d, head):
    """Factor on the colours of neck and shoulders (N, P): front light, less under the chin."""
    return d.body_light[:, None] * (0.62 + 0.9 * (-head).clamp(0, 0.42))


SHAPES = (
    "cranium", "hair_cap", "hair_back", "curtain", "ear_l", "ear_r", "neck", "cloth",
    *(f"{name}_{side}" for side in "lr" for name in ("lid_top", "lid_bottom", "eye_window", "iris", "glint",
                                                     "brow_top", "brow_bottom", "brow_ends")),
    "lip_1", "lip_2", "lip_3", "lip_4", "mouth_window",
)  # fmt: skip
LIGHTS = ("light", "light_outline", "nose_light", "nose_outline")


def plan(scene):
    """All that the pixel stage needs, as a namespace of tensors with leading dimension N."""
    f, look, act = scene.f, scene.look, scene.act
    shapes, cranium = body_shapes(scene)
    for side in "lr":
        shapes |= eye_curves(scene.pose, scene.flat, side) | brow_curves(scene.pose, scene.flat, side)
    shapes |= mouth_curves(scene.pose, scene.flat)
    light, head_bulge, nose_bulge = lighting(scene)
    ears = torch.tensor([[-1.0, 0, 0.3], [1.0, 0, 0.3]]).to(scene.model) @ scene.pose.rotation.mT
    teeth = 0.015 + 0.13 * act["corner_pull"] + 0.10 * act["lip_stretch"] + 0.05 * act["upper_lip_raise"]
    background, tints, base = background_plan(f)
    return SimpleNamespace(
        scale=f.scale,
        shapes=torch.stack([shapes[name] for name in SHAPES], 1),
        lights=torch.stack([light[name] for name in LIGHTS], 1),
        outline=scene.outline,
        bulge=torch.cat([head_bulge, nose_bulge], 1),
        ambient=0.66 * (1 - f.light_strength),
        body_light=1.05 * (1 - f.light_strength) + 1.3 * f.light_strength * scene.light[:, 2].clamp_min(0.2),
        strokes=stroke_polynomials(scene.pose, scene.model),
        stroke_colours=stroke_colours(f, look, act, scene.light, scene.colours).mT.contiguous(),
        layer_colours=layer_colours(scene),
        brow_density=(0.75 + 0.1 * look["brow_thickness"]).clamp(0.45, 0.95),
        teeth=teeth + 0.05 * act["jaw_drop"],
        ear_facing=(4 * ears[..., 2] + 0.1).clamp(0, 1),
        texture_offset=0.2 * f.identity[:, :2],
        rough=0.012 + 0.012 * oldness(f),
        freckles=0.08 * (look["freckles"] - 0.8).clamp(0, 1.5),
        background=background,
        background_tints=tints,
        background_base=base,
        **hair_plan(scene, cranium),
    )


def _all_planes(d, px, basis):
    """Every polynomial of the head at every pixel, {name: (N, P)}, distances in pixels."""
    values = _evaluate(torch.cat([d.shapes * px[:, :, None], d.lights, d.outline], 1), basis)
    planes = dict(zip([*SHAPES, *LIGHTS], values.unbind(1)))
    planes["head"] = _union(values[:, -len(HEAD) :], 1) * px
    planes["nose_cover"] = _soft(values[:, -1] * px)
    return planes


def _compose(d, size, basis):
    """The picture without occluder: (N, 3, P), about 0..1."""
    px = d.scale[:, None] * size
    planes = _all_planes(d, px, basis)
    skin = _soft(planes["head"])
    clip = skin * (1 - planes["nose_cover"])
    hair, xyz = _hair_mask(d, planes, px, basis)
    layers = [(hair, "hair"), *_brow_layer(d, planes, clip), *_eye_layers(planes, px, clip)]
    layers += [*_mouth_layers(d, planes, px, skin), *_ear_layer(d, planes), (skin, "skin")]
    layers += [(_soft(planes[name], soft), name) for name, soft in (("neck", 1), ("cloth", 1), ("hair_back", 1.5))]
    assert tuple(name for _, name in layers) == LAYERS
    weights, behind = _over([coverage for coverage, _ in layers])
    weight = dict(zip(LAYERS, weights.unbind(1), strict=True))
    relief = d.stroke_colours @ _bell(_evaluate(d.strokes, basis))
    flat = torch.baddbmm(relief.mul_(weight["skin"][:, None]), d.layer_colours, weights)
    body = weight["neck"] + weight["cloth"]
    shade = torch.lerp(_shading(d, planes), _body_shade(d, planes["head"] / px), body)
    shade = shade.mul_(_texture(d, xyz, weight))
    return flat.mul_(shade[:, None]).addcmul_(_draw_background(d, basis), behind[:, None])


def _texture(d, xyz, weight):
    """Factor (N, P): strands in the hair, mottling, freckles and rough old skin on the face."""
    x, y, z = xyz.unbind(1)
    smooth, fine = _textures(x.device)
    strands = _sample(smooth, 0.9 * x + d.texture_offset[:, :1], 0.12 * y + 0.3 * z)
    grain = _sample(fine, 0.8 * x + d.texture_offset[:, 1:], 0.8 * y)
    hair = 0.14 * strands * (weight["hair"] + weight["hair_back"])
    spots = d.freckles[:, None] * (grain - 0.8).clamp_min_(0)
    return 1 + hair + (d.rough[:, None] * grain - spots) * weight["skin"]


# ---------------------------------------------------------------------------------------------------------
# Occluders: coverage and colour from the same polynomials, at pixels or at the landmarks
# ---------------------------------------------------------------------------------------------------------


def _ellipse_planes(pose, centre, long, short, width, px, basis):
    """Distances in pixels to ellipses given by model-space centres and axes (N, K, 3); width (N, K)."""
    shape = _disc(pose.flat(centre), pose.axis(long), pose.axis(short), width)
    return _evaluate(shape * px[..., None], basis)


def _hand(scene, px, basis):
    """A palm and four fingers from one side: coverage (N, P) and colour (N, 3, P)."""
    u, like = scene.f.occluder_shape, scene.model
    side = torch.where(u[:, 0] < 0.5, -1.0, 1.0)
    one = torch.ones_like(side)
    palm = torch.stack([side * (0.75 + 0.3 * u[:, 1]), 0.55 + 1.1 * u[:, 2], 0.35 * one], -1)
    lean = side * (-0.9 + 1.1 * u[:, 3])
    angle = lean[:, None] + torch.tensor([-0.36, -0.13, 0.11, 0.34]).to(like)
    along = torch.stack([angle.sin(), -angle.cos(), 0 * angle], -1)  # 0 points up the face
    cross = torch.stack([angle.cos(), angle.sin(), 0 * angle], -1)
    reach = torch.tensor([0.70, 0.80, 0.78, 0.66]).to(like)[:, None]
    middle = torch.stack([lean.sin(), -lean.cos(), 0 * lean], -1)[:, None]
    turn = torch.stack([lean.cos(), lean.sin(), 0 * lean], -1)[:, None]
    centre = torch.cat([palm[:, None], palm[:, None] - 0.75 * middle, palm[:, None] + reach * along], 1)
    long = torch.cat([0.50 * middle, 0.62 * middle, 0.46 * along], 1)
    short = torch.cat([0.40 * turn, 0.29 * turn, 0.115 * cross], 1)
    width = torch.tensor([0.40, 0.29, 0.115, 0.115, 0.115, 0.115]).to(like).expand(len(like), 6)
    planes = _ellipse_planes(scene.pose, centre, long, short, width, px, basis)
    distance = planes.amax(1)
    shade = 0.62 + 0.42 * (distance / (0.06 * px)).clamp(0, 1)  # darker rims tell the fingers apart
    gaps = 1 - 0.35 * _soft(0.02 * px - planes[:, 2:].abs().amin(1))
    return _soft(distance), (0.95 * scene.colours["skin"])[..., None] * (shade * gaps)[:, None]


def _glasses(scene, px, basis):
    """Two lenses (clear, or dark for kind > 0.45), bridge and temples."""
    u, flat = scene.f.occluder_shape, scene.flat
    left, right = scene.model[:, 8:12:2].mean(1), scene.model[:, 9:12:2].mean(1)
    drop = torch.tensor([0, 0.04, 0.15]).to(left)
    far = torch.tensor([1.12, -0.08, -0.9]).to(left).expand_as(left)
    near = torch.tensor([0.42, -0.06, 0.0]).to(left)
    flip = torch.tensor([-1.0, 1, 1]).to(left)
    ends = [(left + near * flip, far * flip), (right + near, far)]
    centre = torch.stack([left + drop, right + drop, (left + right) / 2 + drop] + [(a + b) / 2 for a, b in ends], 1)
    w, h = 0.34 + 0.06 * u[:, 1], 0.24 + 0.10 * u[:, 2]
    unit = torch.eye(3).to(left)
    lens_a, lens_b = w[:, None] * unit[0], h[:, None] * unit[1]
    thin = 0.03 * unit[1] + 0 * left
    long = torch.stack([lens_a, lens_a, 0.2 * unit[0] + 0 * left] + [(b - a) / 2 for a, b in ends], 1)
    short = torch.stack([lens_b, lens_b, thin, thin, thin], 1)
    width = torch.stack([h, h, 0 * h + 0.03, 0 * h + 0.03, 0 * h + 0.03], 1)
    planes = _ellipse_planes(scene.pose, centre, long, short, width, px, basis)
    lens = planes[:, :2].amax(1)
    dark = (u[:, 3] > 0.45)[:, None]
    rim = _soft((0.022 + 0.03 * u[:, 4:5]) * px - lens.abs())
    frame = torch.maximum(rim, _soft(planes[:, 2:].amax(1)))
    glass = _soft(lens) * torch.where(dark, 0.94, 0.10)
    tint = torch.where(dark, 0.08 + 0.1 * u[:, 5:], torch.full_like(lens, 0.9))
    coverage = torch.maximum(frame, glass)
    metal = (0.05 + 0.5 * u[:, 4:5] * u[:, 5:]).expand_as(lens)
    tone = metal + (tint - metal) * (1 - frame)
    return coverage, tone[:, None] * torch.tensor([1.0, 0.95, 0.9]).to(flat)[:, None]


def _mask(scene, px, basis):
    """A cloth mask from the bridge of the nose to under the chin, with two folds."""
    u, pose = scene.f.occluder_shape, scene.pose
    n = len(u)
    ends = torch.tensor([[-0.98, 0.50, -0.45], [0.98, 0.50, -0.45], [0, 0, 0]]).to(scene.model).repeat(n, 1, 1)
    ends[:, 2] = scene.model[:, 20] + torch.tensor([0.0, -0.32, -0.02]).to(scene.model)
    ends[:, :2, 1] += 0.25 * u[:, 1:2]
    flat = pose.flat(ends)
    down = _axes(pose, scene.flat)[1]
    zero = torch.zeros_like(pose.scale)
    p, q = _frame((flat[:, 0] + flat[:, 1]) / 2, (flat[:, 1] - flat[:, 0]) / 2, down)
    top, _ = _below(p, q, zero, zero, flat[:, 2])
    planes = _evaluate(torch.cat([top[:, None], scene.outline], 1), basis)
    head = _union(planes[:, 1:], 1) + 0.03
    folds = 1 + 0.10 * torch.sin(planes[:, 0] * 16) * (u[:, 2:3] > 0.3)
    side = 0.8 + 0.2 * (head / 0.35).clamp(0, 1)
    colour = torch.where(u[:, 3:4] < 0.5, torch.tensor([0.72, 0.85, 0.92]).to(u), 0.08 + 0.85 * u[:, 3:6])
    return _soft(torch.minimum(planes[:, 0], head) * px), colour[..., None] * (folds * side)[:, None]


def _hair_lock(scene, px, basis):
    """Three strands that fall from the hairline over one eye."""
    u, like = scene.f.occluder_shape, scene.model
    side = torch.where(u[:, 0] < 0.5, -1.0, 1.0)[:, None]
    step = torch.tensor([-0.16, 0.0, 0.16]).to(like) * (0.8 + 0.5 * u[:, 4:5])
    top = torch.stack([side * (0.15 + 0.2 * u[:, 1:2]) + step, -1.25 + 0 * step, -0.05 + 0 * step], -1)
    end = torch.stack(
        [side * (0.50 + 0.25 * u[:, 2:3]) + 1.3 * step, 0.15 + 0.5 * u[:, 3:4] - step.abs(), 0 * step], -1
    )
    along = (end - top) / 2
    cross = torch.stack([along[..., 1].abs(), -along[..., 0] * along[..., 1].sign(), 0 * step], -1)
    cross = 0.16 * cross / cross.norm(dim=-1, keepdim=True)
    width = torch.full_like(step, 0.16)
    planes = _ellipse_planes(scene.pose, (top + end) / 2, along, cross, width, px, basis)
    distance = planes.amax(1)
    gloss = 0.75 + 0.45 * (distance / (0.07 * px)).clamp(0, 1)
    return _soft(distance, 1.3), scene.colours["hair"][..., None] * gloss[:, None]


PAINTERS = {1: _hand, 2: _glasses, 3: _mask, 4: _hair_lock}  # by index into OCCLUDERS


def _take(scene, index):
    """The samples `index` of a scene."""
    pick = lambda d: {k: v[index] for k, v in d.items()}
    tensors = {name: getattr(scene, name)[index] for name in ("f", "pose", "light", "model", "flat", "outline")}
    return Scene(look=pick(scene.look), act=pick(scene.act), colours=pick(scene.colours), **tensors)


def _occlude(scene, size, basis, image):
    """Draw each sample's occluder into `image` (N, 3, P)."""
    for part, index in _by_occluder(scene):
        coverage, colour = PAINTERS[int(part.f.occluder[0])](part, part.pose.scale[:, None] * size, basis)
        light = 0.45 + 0.55 * (1 - part.f.light_strength * (1 - part.light[:, 2]))
        image[index] = torch.lerp(image[index], colour * light[:, None, None], coverage[:, None])


def covered_points(scene, size):
    """Landmarks under the occluder, (N, 29) bool: its coverage there, by the same polynomials."""
    covered = torch.zeros(scene.flat.shape[:2], dtype=torch.bool, device=scene.flat.device)
    for part, index in _by_occluder(scene):
        paint, px = PAINTERS[int(part.f.occluder[0])], part.pose.scale[:, None] * size
        covered[index] = paint(part, px, _basis(*part.flat.unbind(-1)))[0] > 0.5
    return covered


def _by_occluder(scene):
    """The part of a scene with each kind of occluder, and its sample numbers."""
    for kind in PAINTERS:
        index = (scene.f.occluder == kind).nonzero()[:, 0]
        if len(index):
            yield _take(scene, index), index


# ---------------------------------------------------------------------------------------------------------
# Camera and rendering
# ---------------------------------------------------------------------------------------------------------


NOISE_STARTS = 1 << 18


def _blurred(image, sigma_px):
    """Gaussian blur by one matrix per axis, (N, C, S, S) with sigma (N,). Rows sum to 1 at the borders."""
    place = torch.arange(image.shape[-1], device=image.device, dtype=image.dtype)
    distance = (place[:, None] - place) ** 2
    kernel = _bell(-distance / (2 * sigma_px.clamp_min(1e-2) ** 2)[:, None, None])
    kernel = (kernel / kernel.sum(-1, keepdim=True))[:, None]
    return kernel @ image @ kernel.mT


@functools.cache
def _noise_table(device):
    generator = torch.Generator().manual_seed(7)
    return torch.randn(NOISE_STARTS + 3 * 256 * 256, generator=generator).to(device)


def _noise(f, channels, size):
    """Normal noise (N, C, S, S): each sample reads a stretch of one table, so chunks cannot change it."""
    length = channels * size * size
    windows = _noise_table(f.scale.device).unfold(0, length, 1)
    return windows[f.noise_seed].view(-1, channels, size, size)


def _expose(f, image, grey):
    """Light colour, blur, noise: (N, 3, S, S) in 0..1 -> uint8 (N, C, S, S)."""
    size = image.shape[-1]
    image = (image * f.light_colour[:, :, None, None]).clamp(0, 1)
    if grey:
        image = (image * torch.tensor([0.299, 0.587, 0.114]).to(image)[:, None, None]).sum(1, keepdim=True)
    image = _blurred(image, f.blur * size / 64)
    image = image + f.noise[:, None, None, None] * _noise(f, image.shape[1], size)
    return (image * 255 + 0.5).clamp(0, 255).to(torch.uint8)


def _draw(scene, d, size, grey):
    """Pixels of one chunk: images (N, C, S, S)."""
    place = (torch.arange(size, device=d.scale.device) - (size - 1) / 2) / size
    y, x = torch.meshgrid(place, place, indexing="ij")
    basis = _basis(x.flatten(), y.flatten())
    image = _compose(d, size, basis)
    _occlude(scene, size, basis, image)
    return _expose(scene.f, image.unflatten(2, (size, size)), grey)


BLOCK = 1024  # samples whose geometry is computed together; the pixels go in smaller chunks


def _render_block(f, size, grey, chunk):
    """Images, points and occlusion flags of up to BLOCK samples."""
    scene = build_scene(f)
    everything = plan(scene)
    drawn = []
    for start in range(0, len(f), chunk):
        part = slice(start, start + chunk)
        d = SimpleNamespace(**{name: tensor[part] for name, tensor in vars(everything).items()})
        drawn.append(_draw(_take(scene, part), d, size, grey))
    return (
        torch.cat(drawn),
        scene.flat * size + (size - 1) / 2,
        covered_points(scene, size) | hidden_by_pose(scene),
    )


@torch.no_grad()
def render(factors, size=64, grey=False, device=None, chunk=None):
    """Draw the factors at size x size pixels (16..256), `chunk` samples at a time (it bounds the memory)."""
    f = factors if device is None else factors.to(device)
    order = f.occluder.argsort(stable=True)  # chunks of one occluder each: fewer, larger operations
    f, back = f[order], order.argsort()
    on_cpu = f.scale.device.type == "cpu"
    chunk = chunk or max(1, (1 << 16 if on_cpu else 1 << 22) // size**2)  # the CPU's chunk should fit its cache
    starts = progress(range(0, len(f), BLOCK), "drawing faces", "blocks")
    parts = [_render_block(f[i : i + BLOCK], size, grey, chunk) for i in starts]
    images, points, occluded = (torch.cat(column)[back] for column in zip(*parts, strict=True))
    low, high = points.amin(1), points.amax(1)
    extent = high - low
    box = torch.cat([low - 0.12 * extent, 1.24 * extent], 1)
    drawn = {
        "images": images,
        "points": points,
        "occluded": occluded,
        "five": five_points(points, COFW29),
        "box": box,
    }
    labels = {field.name for field in dataclasses.fields(Faces)} - drawn.keys()
    return Faces(**drawn, **{name: getattr(f, name)[back] for name in labels})


# ---------------------------------------------------------------------------------------------------------
# Contact sheet
# ---------------------------------------------------------------------------------------------------------


def contact_sheet(path=None, size=128, columns=8):
    """One row per swept factor, then random faces with their points (red: occluded): (H, W, 3) uint8 array.

    Writes a PNG when `path` is given.
    """
    base = dataclasses.replace(sample_factors(1, 4, occluded_share=0, yaw_deg=0, pitch_deg=0, roll_deg=0, shift=0))
    base = dataclasses.replace(
        base[torch.zeros(columns, dtype=torch.long)],
        expression=torch.zeros(columns, dtype=torch.long),
        age_years=torch.full((columns,), 30.0),
        blur=torch.full((columns,), 0.15),
        noise=torch.full((columns,), 0.01),
    )
    rows = [render(dataclasses.replace(base, **change), size).images for change in _sweeps(columns)]
    faces = generate(4 * columns, 6, size, occluded_share=0.4)
    marked = _mark(faces.images.clone(), faces.points, faces.occluded)
    pictures = torch.cat([*rows, faces.images[: 2 * columns], marked[2 * columns :]])
    sheet = pictures.unflatten(0, (-1, columns)).permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2).numpy()
    if path is not None:
        from PIL import Image

        Image.fromarray(sheet).save(path)
    return sheet


def _sweeps(k):
    """Changes of the base factors, one dict per row of the contact sheet."""
    step, index = torch.linspace(-1, 1, k), torch.arange(k)
    people = sample_factors(k, 9)
    happy = torch.full((k,), EXPRESSIONS.index("happiness"))
    return [
        {"identity": people.identity, "gender": people.gender, "group": people.group},
        {"expression": index % 8, "intensity": torch.ones(k)},
        {"expression": happy, "intensity": (step + 1) / 2},
        {"age_years": 4 + 40 * (step + 1)},
        {"gender": index * 2 // k, "group": index % 4 + index * 2 // k},
        {"yaw_deg": 50 * step},
        {"pitch_deg": 30 * step},
        {"roll_deg": 40 * step},
        {"light_azimuth_deg": 80 * step, "light_strength": torch.full((k,), 0.7)},
        {"background": people.background, "cloth": people.cloth, "light_colour": people.light_colour},
        {"occluder": index % 5, "occluder_shape": people.occluder_shape},
        {"blur": 1 + step, "noise": 0.06 * (1 + step)},
    ]


def _mark(images, points, occluded):
    """Set the pixels nearest to the points: green where visible, red where not. Changes `images`."""
    size = images.shape[-1]
    x, y = points.round().long().clamp(0, size - 1).unbind(-1)
    sample = torch.arange(len(images))[:, None].expand_as(x)
    images[sample, :, y, x] = torch.where(
        occluded[..., None], torch.tensor([255, 40, 40]), torch.tensor([0, 255, 0])
    ).to(torch.uint8)
    return images
