"""Points of the faces in photos, by a landmark network: which crop it looks at, and whether to look again.

All of it is our addition: the paper takes boxes as given.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from facepapers.common import cli
from facepapers.common.data.alignment import AlignmentSet
from facepapers.common.prediction import crops, finding
from facepapers.common.vision import images
from facepapers.papers.coarse_to_fine.crops import Offsets, shifted, square

# The square around all 68 landmarks relative to the square of the area of MTCNN's box: medians over LFPW's training
# faces, 803 of whose 805 the detector finds. Networks for 29 points, which go from brows to chin as these do, get the
# same square.
DETECTED = Offsets(mean_shift=(0.006, 0.161), mean_log_size=math.log(0.902))

LOOKS = 4  # at a face, at most (our choice); the first suffices in a box as in training
EDGE = 0.03  # share of the crop's side in which points count as cut off; then the next look is wider
WIDER = 1.3  # by this, where the face does not lie in the crop as in training or fills it


def around_landmarks(faces: finding.Faces, net: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The squares that the network was trained on, of the detector's faces: boxes (N, 4) and their rolls (N,).

    Their side is `net.margin` times the landmarks', moved and scaled by `net.offsets`, and they are turned with the
    face, whose points stand upright in them: training turned faces by no more than `net.seen.rotation_deg`.
    """
    assert faces.points is not None, "the detector tells five points of every face"
    roll = crops.rolls(faces.points)
    centre, side = square(faces.boxes.double())
    centre, side = shifted(centre, side, roll, DETECTED)
    centre, side = shifted(centre, side * net.margin, roll, net.offsets)
    return torch.cat([centre - side[:, None] / 2, side[:, None].expand(-1, 2)], 1), roll


@torch.inference_mode()
def points(
    net: Any,
    photos: torch.Tensor | Sequence[torch.Tensor],
    boxes: torch.Tensor,
    owner: Sequence[int] | None = None,
    roll_rad: torch.Tensor | None = None,
    looks: int = LOOKS,
) -> torch.Tensor:
    """Landmarks (N, P, 2), in pixels of the photo, of the faces in boxes (N, 4) x, y, width, height.

    photos: uint8 (B, 3, H, W), or (3, H, W) of any sizes; `owner` (N,) numbers each box's photo, by default the n-th.
    `roll_rad` (N,): by how much each face is turned, clockwise as seen; by default not at all. `net` is one of
    released.Landmarks.

    Boxes differ by convention. Where the landmarks that were found do not lie in the crop as in training, the face is
    looked at again, in the square around them, at most `looks` times; 1 is the network's answer in the given boxes.
    Points beyond the photo's border are the network's guess.

    UserError as crops.owners; turned boxes, which the detector's faces come in, may lie beyond the photo.
    """
    device = next(iter(net.state_dict().values())).device
    owner = crops.owners(photos, boxes, None, owner, beyond=roll_rad is not None)
    boxes, roll = boxes.double(), torch.zeros(len(boxes)).double() if roll_rad is None else roll_rad.double()
    found, left = torch.empty(len(boxes), net.markup.n_points, 2), torch.arange(len(boxes))
    for _ in range(looks):
        to_photo = crops.box_maps(boxes, net.input_px, roll)
        whose = [owner[k] for k in left.tolist()]
        pixels = crops.cut(photos, to_photo, net.input_px, whose, device)
        inside = net(pixels).points.cpu().double()
        there = images.transform_points(inside, to_photo)
        found[left] = there.float()
        centre, side, turn, again = next_look(inside, net, outside(there, photos, whose))
        if not again.any():
            break
        middle = images.transform_points(centre[:, None], to_photo)[:, 0]
        side = (side * crops.sides(to_photo, net.input_px) / net.input_px)[:, None]
        boxes, roll = torch.cat([middle - side / 2, side, side], 1)[again], (roll + turn)[again]
        left = left[again]
    return found


def outside(points: torch.Tensor, photos: torch.Tensor | Sequence[torch.Tensor], owner: Sequence[int]) -> torch.Tensor:
    """Which of the points (N, P, 2) lie beyond the borders of their photos: (N, P)."""
    sizes = torch.tensor([photos[k].shape[:-3:-1] for k in owner]).view(-1, 1, 2)
    return ((points < -0.5) | (points > sizes - 0.5)).any(2)


def next_look(points: torch.Tensor, net: Any, unseen: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Where to look for faces whose points (N, P, 2) were found in a crop, all in the crop's pixels.

    Returns the centre (N, 2), side (N,) and turn (N,) in radians of the square around the points, upright in the face
    and moved by `net.offsets`, and whether (N,) it differs from the crop by more than training moved it. Points at the
    crop's edge count as cut off, and the next look is wider: within what training saw, if the face lies as there but
    for the edge.

    Not so points `unseen` (N, P), beyond the photo. They are guesses, made of the photo's repeated edge, and a wider
    look would show more of that: a face with such points is never looked at more widely.
    """
    eyes = [points[:, eye].mean(1) for eye in (net.markup.left_eye, net.markup.right_eye)]
    right, down = (eyes[1] - eyes[0]).unbind(1)
    turn = torch.atan2(down, right)
    cos, sin = turn.cos(), turn.sin()
    onto_crop = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1)  # of x, y as a row
    upright = points @ onto_crop.mT
    low, high = upright.amin(1), upright.amax(1)
    centre, side = ((low + high)[:, None] / 2 @ onto_crop)[:, 0], (high - low).amax(1) * net.margin
    centre, side = shifted(centre, side, turn, net.offsets)
    size, reach = net.input_px, max(net.seen.shift, *net.offsets.shift_range)
    scales = max(net.seen.log_size, net.offsets.log_size_range)
    edges = torch.stack([points + 0.5 < EDGE * size, points + 0.5 > (1 - EDGE) * size])  # (2, N, P, 2)
    edges = (edges & ~unseen[:, :, None]).any(2)  # (2, N, 2)
    cut_off, filled = edges.any(2).any(0), edges.all(0).any(1)
    moved = (centre - (size - 1) / 2).abs().amax(1) / size
    differs = (moved > reach) | ((side / size).log().abs() > scales)
    differs |= turn.abs() > math.radians(net.seen.rotation_deg)
    wider = torch.where(differs | filled, WIDER, math.exp(scales / 2))
    side = torch.where(cut_off, wider * side, side)
    return centre, torch.where(unseen.any(1), side.clamp(max=size), side), turn, differs | cut_off


def detected_errors(net: Any, faces: AlignmentSet, index: torch.Tensor, find: finding.Finder) -> dict[str, np.ndarray]:
    """What this command answers for whole images of a set: arrays for a record, beside those of `evaluate.errors`.

    `detected` (N,) says whether the detector finds a face, `error_px_detected` (N, P) holds the distances in the
    original image's pixels of the face nearest to the true points; 0 without any.
    """
    truth = faces.points[index].float()
    errors, seen = torch.zeros(truth.shape[:2]), torch.zeros(len(truth), dtype=torch.bool)
    for n, k in enumerate(index.tolist()):
        try:
            found = find(faces.images[k], faces.names[k])
        except cli.UserError:
            continue
        away = (found.boxes[:, :2] + found.boxes[:, 2:] / 2 - truth[n].mean(0)).norm(dim=1)
        boxes, roll = around_landmarks(found, net)
        answers = points(net, [faces.images[k]], boxes, [0] * len(boxes), roll)
        errors[n], seen[n] = (answers[away.argmin()] - truth[n]).norm(dim=1), True
    return {"error_px_detected": (errors * faces.scale[index][:, None]).numpy(), "detected": seen.numpy()}
