"""The two landmark markups: what each point is, how a face is mirrored, and what its errors are divided by.

"Left" and "right" are the viewer's. Points are (..., P, 2) arrays or tensors of x, y in pixels, 0-based: the
centre of the top left pixel is (0, 0). Index lists are lists, so that `points[..., markup.flip, :]` indexes.
"""

import dataclasses
from typing import TypeVar

import numpy as np
import torch

Array = TypeVar("Array", np.ndarray, torch.Tensor)  # what comes in as an array or a tensor goes out as one


@dataclasses.dataclass(frozen=True, eq=False)
class Markup:
    """One landmark markup. All indices are 0-based; a group of several indices stands for its mean."""

    name: str
    names: list[str]
    principal: list[int]  # the 12 landmarks that coarse-to-fine training stresses first
    flip: list[int]  # after mirroring, point i is the old point flip[i]
    left_eye: list[int]  # the inter-pupil distance runs between the means of these two groups
    right_eye: list[int]
    outer_corners: list[int]  # the inter-ocular distance runs between these two points
    five: list[list[int]]  # left eye, right eye, nose tip, left and right mouth corner

    @property
    def n_points(self) -> int:
        return len(self.names)

    @property
    def elaborate(self) -> list[int]:
        """The points that are not principal, in markup order."""
        return [i for i in range(self.n_points) if i not in self.principal]


def _flip_table(n_points: int, pairs: list[tuple[int, int]]) -> list[int]:
    """Permutation that swaps each pair, given 1-based as the sources print them, and keeps the other points."""
    table = list(range(n_points))
    for a, b in pairs:
        table[a - 1], table[b - 1] = b - 1, a - 1
    return table


# LFPW's point list without its six ear points.
# fmt: off
_NAMES_29 = [
    "left brow outer corner", "right brow outer corner", "left brow inner corner", "right brow inner corner",
    "left brow centre top", "left brow centre bottom", "right brow centre top", "right brow centre bottom",
    "left eye outer corner", "right eye outer corner", "left eye inner corner", "right eye inner corner",
    "left eye top", "left eye bottom", "right eye top", "right eye bottom", "left pupil", "right pupil",
    "nose left wing", "nose right wing", "nose tip", "nose base", "mouth left corner", "mouth right corner",
    "upper lip top", "upper lip bottom", "lower lip top", "lower lip bottom", "chin tip",
]
# fmt: on

# Flip pairs: HRNet's transforms.py, equal in STAR. Pupils: RCPR's shapeGt.m. Outer corners: HRNet's evaluation.py.
COFW29 = Markup(
    name="COFW-29",
    names=_NAMES_29,
    # [inferred], our reading: the paper prints 12 principal points but the list is not known to us. Brow corners,
    # eye corners, nose tip, mouth corners and chin tip are exactly 12 and exist in both markups.
    principal=[0, 1, 2, 3, 8, 9, 10, 11, 20, 22, 23, 28],
    flip=_flip_table(
        29,
        [(1, 2), (3, 4), (5, 7), (6, 8), (9, 10), (11, 12), (13, 15), (14, 16), (17, 18), (19, 20), (23, 24)],
    ),
    left_eye=[16],
    right_eye=[17],
    outer_corners=[8, 9],
    five=[[16], [17], [20], [22], [23]],
)

# Flip pairs: HRNet's transforms.py. Eye centres: MCNet's compute_err_fail.m. Outer corners: HRNet's evaluation.py.
IBUG68 = Markup(
    name="iBUG-68",
    names=[
        f"{part} {i + 1}"
        for part, count in [
            ("jaw", 17),
            ("left brow", 5),
            ("right brow", 5),
            ("nose bridge", 4),
            ("nose base", 5),
            ("left eye", 6),
            ("right eye", 6),
            ("outer lip", 12),
            ("inner lip", 8),
        ]
        for i in range(count)
    ],
    # [inferred], our reading: the counterparts of the 12 points above, in the order of this markup.
    principal=[8, 17, 21, 22, 26, 30, 36, 39, 42, 45, 48, 54],
    flip=_flip_table(
        68,
        [(i, 18 - i) for i in range(1, 9)]  # jaw
        + [(i, 45 - i) for i in range(18, 23)]  # brows
        + [(32, 36), (33, 35)]
        + [(37, 46), (38, 45), (39, 44), (40, 43), (41, 48), (42, 47)]
        + [(49, 55), (50, 54), (51, 53), (56, 60), (57, 59), (61, 65), (62, 64), (66, 68)],
    ),
    left_eye=[36, 37, 38, 39, 40, 41],
    right_eye=[42, 43, 44, 45, 46, 47],
    outer_corners=[36, 45],
    five=[[36, 37, 38, 39, 40, 41], [42, 43, 44, 45, 46, 47], [30], [48], [54]],
)


# For each of COFW's points the points of iBUG whose mean lies nearest to it (our reading): where a network for 29
# points starts that was trained on 68. Lids and pupils are means of the eye's outline, both brow centres the brow's
# middle point.
COFW29_FROM_IBUG68 = [
    [17], [26], [21], [22], [19], [19], [24], [24], [36], [45], [39], [42], [37, 38], [40, 41], [43, 44], [46, 47],
    [36, 37, 38, 39, 40, 41], [42, 43, 44, 45, 46, 47], [31], [35], [30], [33], [48], [54], [51], [62], [66], [57], [8],
]  # fmt: skip


def markup_for(n_points: int) -> Markup:
    """The markup with this many points. Raises ValueError for any other number than 29 and 68."""
    for markup in (COFW29, IBUG68):
        if markup.n_points == n_points:
            return markup
    raise ValueError(f"no markup with {n_points} points is known: 29 (COFW) or 68 (300-W)")


def inter_pupil(points: Array, markup: Markup) -> Array:
    """Distance between the pupils, or the means of the two eyes' outlines: (..., P, 2) -> (...), same unit."""
    return _distance(points[..., markup.left_eye, :].mean(-2), points[..., markup.right_eye, :].mean(-2))


def inter_ocular(points: Array, markup: Markup) -> Array:
    """Distance between the outer eye corners: (..., P, 2) -> (...), same unit."""
    left, right = markup.outer_corners
    return _distance(points[..., left, :], points[..., right, :])


def _distance(a: Array, b: Array) -> Array:
    return ((a - b) ** 2).sum(-1) ** 0.5


def five_points(points: Array, markup: Markup) -> Array:
    """Left eye, right eye, nose tip, mouth corners: (..., P, 2) -> (..., 5, 2), as face recognition aligns by."""
    reduced = [points[..., group, :].mean(-2) for group in markup.five]
    return torch.stack(reduced, -2) if isinstance(points, torch.Tensor) else np.stack(reduced, -2)


def mirror(points: Array, markup: Markup, width: int) -> Array:
    """Points of the horizontally mirrored image of `width` pixels: x -> width - 1 - x, then left and right swap."""
    mirrored = points[..., markup.flip, :]  # a list index copies, so the caller's points stay
    mirrored[..., 0] = width - 1 - mirrored[..., 0]
    return mirrored
