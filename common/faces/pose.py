"""The head's turn and its projection (step 2 of drawing.py)."""

from dataclasses import dataclass

import torch

from facepapers.common.faces.factors import Factors

PIVOT = (0.0, 0.40, -0.60)  # the head turns about this point, which lands at the image centre plus `shift`


@dataclass(frozen=True)
class Pose:
    """Rotation and placement. `flat` maps model points to the image plane, in image widths."""

    rotation: torch.Tensor  # (N, 3, 3), model -> camera
    scale: torch.Tensor  # (N,)
    shift: torch.Tensor  # (N, 2)

    def camera(self, points: torch.Tensor) -> torch.Tensor:
        """(N, K, 3) model points -> camera coordinates relative to the pivot, model units."""
        return (points - torch.tensor(PIVOT).to(points)) @ self.rotation.mT

    def flat(self, points: torch.Tensor) -> torch.Tensor:
        """(N, K, 3) model points -> (N, K, 2) in the image plane, image widths from the centre."""
        return self.camera(points)[..., :2] * self.scale[:, None, None] + self.shift[:, None]

    def axis(self, vectors: torch.Tensor) -> torch.Tensor:
        """(N, K, 3) model directions -> (N, K, 2) in the image plane."""
        return (vectors @ self.rotation.mT)[..., :2] * self.scale[:, None, None]

    def __getitem__(self, index: slice | torch.Tensor) -> "Pose":
        return Pose(self.rotation[index], self.scale[index], self.shift[index])


def pose_of(f: Factors) -> Pose:
    """Pitch first, then yaw, then roll, about the pivot."""
    yaw, pitch, roll = (torch.deg2rad(a) for a in (f.yaw_deg, f.pitch_deg, f.roll_deg))
    one, zero = torch.ones_like(yaw), torch.zeros_like(yaw)
    turn = _matrix(yaw.cos(), zero, yaw.sin(), zero, one, zero, -yaw.sin(), zero, yaw.cos())
    nod = _matrix(one, zero, zero, zero, pitch.cos(), -pitch.sin(), zero, pitch.sin(), pitch.cos())
    tilt = _matrix(roll.cos(), -roll.sin(), zero, roll.sin(), roll.cos(), zero, zero, zero, one)
    return Pose(tilt @ turn @ nod, f.scale, f.shift)


def _matrix(*entries: torch.Tensor) -> torch.Tensor:
    return torch.stack(entries, -1).unflatten(-1, (3, 3))
