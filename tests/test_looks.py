"""Landmarks of faces in boxes of other conventions: looked at again until the crop is as in training."""

import math
from types import SimpleNamespace

import pytest
import torch

from facepapers.common import storage
from facepapers.common.cli import UserError
from facepapers.common.data.markups import IBUG68
from facepapers.common.prediction import finding
from facepapers.common.training import checkpoint
from facepapers.papers.coarse_to_fine import evaluate, looking, released, train
from facepapers.papers.coarse_to_fine.config import Model, preset
from facepapers.papers.coarse_to_fine.crops import ALIKE, Offsets
from tests.test_markups import face68

MIDDLE = 128.0  # of the photo
FACE = torch.tensor(face68() - 50).float()  # 80 px wide
OFFICIAL = Offsets(mean_shift=(0.02, 0.06), mean_log_size=0.25, shift_range=(0.04, 0.05), log_size_range=0.1)


class Knowing(torch.nn.Module):
    """A stand-in for the network: it reads from a crop's colours where that lies, and knows the points in the photo.

    As a network it puts what lies outside its crop at the edge, and there what lies left of the photo, `left`, too.
    """

    def __init__(self, truth, offsets=ALIKE, left=0):
        super().__init__()
        self.left, self.sides = left, []  # of the crops, in pixels of the photo
        self.markup, self.input_px, self.margin, self.seen = IBUG68, 64, 1.1, preset("short", "heatmap")
        self.offsets = offsets
        self.truth, self.looks = torch.nn.Buffer(torch.cat([truth, torch.ones(68, 1)], 1).double()), []

    def forward(self, pixels):
        self.looks.append(len(pixels))
        v, u = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
        found = []
        for crop in pixels:
            inside = ((crop[:2] > 0.5) & (crop[:2] < 254)).all(0) & (crop[0] > self.left + 0.5)  # else the edge repeats
            where = torch.stack([crop[0][inside], crop[1][inside], torch.ones(int(inside.sum()))], 1)
            onto_crop = torch.linalg.lstsq(where.double(), torch.stack([u[inside], v[inside]], 1).double()).solution
            self.sides.append(64 / float(torch.linalg.det(onto_crop[:2]).abs().sqrt()))
            found.append((self.truth @ onto_crop).float().clamp(0, 63))
            found[-1][self.truth[:, 0] < self.left, 0] = 0
        return released.Points(torch.stack(found))


def turned(points, roll_deg):
    """Points (P, 2) around the origin, turned clockwise as seen, in the photo."""
    cos, sin = math.cos(math.radians(roll_deg)), math.sin(math.radians(roll_deg))
    return points @ torch.tensor([[cos, sin], [-sin, cos]]) + MIDDLE


def square(shift, scale, roll_deg, offsets=ALIKE):
    """The square that the network expects (4,), moved and scaled by shares of its side."""
    low, high = FACE.amin(0), FACE.amax(0)
    side = (high - low).max() * 1.1
    middle = (low + high) / 2 + torch.tensor(offsets.mean_shift) * side
    side = side * math.exp(offsets.mean_log_size)
    corner = turned(middle[None], roll_deg)[0] + shift * side - scale * side / 2
    return torch.cat([corner, (scale * side).expand(2)])


@pytest.fixture(scope="module")
def photo():
    """(3, 256, 256): its red says x, its green y."""
    x = torch.arange(256, dtype=torch.uint8).expand(256, 256)
    return torch.stack([x, x.T, x])


@pytest.mark.parametrize(
    ("shift", "scale", "roll_deg", "looks"),
    [
        (0, 1, 0, 1),
        (0.02, 1.05, 8, 1),
        (0.05, 1, 0, 2),  # cut off, but a second look within what training saw suffices
        (0.15, 1, 0, 3),
        (0.1, 0.8, 0, 4),
        (0, 1.8, 0, 2),
        (0, 1, 40, 3),
        (0.1, 1.4, 30, 3),
    ],
)
def test_a_face_is_looked_at_again_until_it_lies_as_in_training(photo, shift, scale, roll_deg, looks):
    truth, box = turned(FACE, roll_deg), square(shift, scale, roll_deg)[None]
    net = Knowing(truth)
    found = looking.points(net, photo[None], box)
    torch.testing.assert_close(found[0], truth, rtol=0, atol=0.3)
    assert min(looks, 2) <= len(net.looks) <= looks
    net.looks.clear()
    looking.points(net, photo[None], box, looks=1)
    assert len(net.looks) == 1


def test_only_faces_that_need_it_are_looked_at_again(photo):
    """And each in its own photo: in the second one the face lies 30 px to the right."""
    net, right = Knowing(turned(FACE, 0)), torch.tensor([30.0, 0])
    other = torch.cat([photo[..., :1].expand(-1, -1, 30), photo[..., :-30]], 2)
    boxes = torch.stack([square(0, 1, 0), square(0.15, 1, 0), square(0.01, 1, 0)])
    boxes[1, :2] += right
    found = looking.points(net, [photo, other], boxes, owner=[0, 1, 0])
    truth = turned(FACE, 0)
    torch.testing.assert_close(found, torch.stack([truth, truth + right, truth]), rtol=0, atol=0.3)
    assert net.looks[:2] == [3, 1]


def test_what_lies_beyond_the_photo_makes_no_look_wider(photo):
    """A face whose left third the photo cuts off: each look at the guessed points would show more of nothing."""
    left, truth = 115, turned(FACE, 0)
    seen, cut = truth[:, 0] >= left, torch.tensor([left, 0])
    for shift in (0, -0.15):  # in a box as in training, and in one to its left
        net, box = Knowing(truth, left=left), square(shift, 1, 0) - torch.tensor([left, 0, 0, 0])
        found = looking.points(net, photo[None, ..., left:], box[None])[0]
        assert max(net.sides) < 1.01 * float(box[2])
        if shift == 0:
            torch.testing.assert_close(found[seen], truth[seen] - cut, rtol=0, atol=0.3)
            assert net.looks == [1] and 10 < int((~seen).sum()) < 34


@pytest.mark.parametrize("offsets", [ALIKE, OFFICIAL])
def test_a_detected_face_is_looked_at_upright(photo, offsets):
    """The detector's box moved as it lies in training's median; a face that is turned needs one look."""
    roll, side = 35, 100.0
    net = Knowing(turned(FACE, roll), offsets)
    low, high = FACE.amin(0), FACE.amax(0)
    side = (high - low).max() / math.exp(looking.DETECTED.mean_log_size)
    middle = turned(((low + high) / 2 - side * torch.tensor(looking.DETECTED.mean_shift))[None], roll)[0]
    five = turned(torch.stack([FACE[group].mean(0) for group in IBUG68.five]), roll)
    faces = finding.Faces(torch.cat([middle - side / 2, side.expand(2)])[None], five[None])
    boxes, found = looking.around_landmarks(faces, net)
    assert found.item() == pytest.approx(math.radians(roll), abs=0.02)
    torch.testing.assert_close(boxes[0].float(), square(0, 1, roll, offsets), rtol=0, atol=0.5)
    looking.points(net, photo[None], boxes, roll_rad=found)
    assert net.looks == [1]


@pytest.mark.parametrize(("shift", "scale", "roll_deg"), [(0, 1, 0), (0.3, 1, 0), (0.2, 1.5, 30)])
def test_weights_of_official_boxes_are_looked_at_in_such_boxes(photo, shift, scale, roll_deg):
    """Which lie aside of the landmarks and are larger: a right one suffices, and any other ends in a right one."""
    truth, box = turned(FACE, roll_deg), square(shift, scale, roll_deg, OFFICIAL)[None]
    net = Knowing(truth, OFFICIAL)
    torch.testing.assert_close(looking.points(net, photo[None], box)[0], truth, rtol=0, atol=0.4)
    assert net.looks == [1] if (shift, scale, roll_deg) == (0, 1, 0) else len(net.looks) > 1
    inside = torch.full((1, 68, 2), 32.0) + FACE / 80 * 64 / 1.1 / math.exp(OFFICIAL.mean_log_size)
    assert looking.next_look(inside.double(), Knowing(truth), torch.zeros(1, 68, dtype=torch.bool))[
        3
    ].item()  # where nothing tells of the boxes


def test_numbers_that_are_none_end_the_looking(photo):
    net = Knowing(torch.full((68, 2), math.nan))
    assert looking.points(net, photo[None], square(0, 1, 0)[None]).isnan().all() and net.looks == [1]


def test_what_training_saw_is_told_by_the_weights_record(tmp_path):
    """Other presets than `short` turned, moved and scaled faces otherwise; a bare file says nothing of it."""
    path, cfg = tmp_path / "model.safetensors", preset("demo", "heatmap")
    about = dict(points=68, crop=cfg.crop, margin=cfg.margin, test_shift=0.0, test_log_size=0.0)
    digest = checkpoint.save_weights(path, Model(cfg, IBUG68), row="heatmap", **about)
    moved = lambda: [getattr(released.load(path).seen, key) for key in ("rotation_deg", "shift", "log_size")]
    assert moved() == [30, 0.1, 0.15]
    storage.write_json(tmp_path / "run.json", {"config": vars(cfg), "weights": {"file": path.name, "sha256": digest}})
    assert moved() == [10, 0.06, 0.06]


@pytest.mark.parametrize("offsets", [ALIKE, OFFICIAL])
def test_weights_keep_where_official_boxes_lay(tmp_path, offsets):
    cfg = preset("demo", "heatmap")
    job = SimpleNamespace(cfg=cfg, run=SimpleNamespace(folder=tmp_path))
    train.save(job, Model(cfg, IBUG68), 68, offsets)
    net = released.load(tmp_path / "model.safetensors")
    assert net.offsets == offsets
    assert ("official boxes" in net.expects) == (offsets != ALIKE)


@pytest.mark.parametrize("words", ["{", "[1]", '{"mean": 1}'])
def test_offsets_that_are_none_are_one_line(tmp_path, words):
    path = tmp_path / "model.safetensors"
    checkpoint.save_weights(path, torch.nn.Linear(1, 1), offsets=words)
    with pytest.raises(UserError, match="does not describe a model of this paper"):
        evaluate.offsets(path)
