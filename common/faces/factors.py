"""What pictures of faces are made from (Factors), and pictures with their truth (Faces)."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch


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

    def __len__(self) -> int:
        return len(self.identity)

    def __getitem__(self, index: slice | torch.Tensor) -> "Factors":
        return _map(self, lambda t: t[index])

    def to(self, device: torch.device | str) -> "Factors":
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

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: slice | torch.Tensor) -> "Faces":
        return _map(self, lambda t: t[index])

    def to(self, device: torch.device | str) -> "Faces":
        return _map(self, lambda t: t.to(device))


Record = TypeVar("Record", Factors, Faces)


def _map(record: Record, function: Callable[[torch.Tensor], torch.Tensor]) -> Record:
    return type(record)(**{f.name: function(getattr(record, f.name)) for f in dataclasses.fields(record)})
