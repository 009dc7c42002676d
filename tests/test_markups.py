"""What each landmark is and what errors are divided by: on points whose places are known; landmark sets in memory."""

import numpy as np
import pytest
import torch

from facepapers.common.data import alignment
from facepapers.common.data.markups import COFW29, IBUG68, five_points, inter_ocular, inter_pupil, mirror
from facepapers.common.faces import drawing, sampling


def face68():
    """The 68 points of an upright face, (68, 2): each part where its name says, right of the middle mirrored."""
    jaw = [(50 - 40 * np.cos(np.pi * i / 16), 50 + 45 * np.sin(np.pi * i / 16)) for i in range(17)]
    left_brow = [(15 + 6 * i, 32 - 2 * min(i, 4 - i)) for i in range(5)]
    right_brow = [(100 - x, y) for x, y in left_brow[::-1]]
    bridge = [(50, 42 + 6 * i) for i in range(4)]
    base = [(42 + 4 * i, 66 - abs(2 - i)) for i in range(5)]
    left_eye = [(20, 42), (26, 39), (31, 39), (37, 42), (31, 45), (26, 45)]
    right_eye = [(63, 42), (69, 39), (74, 39), (80, 42), (74, 45), (69, 45)]
    outer = [(38, 78), (42, 75), (46, 74), (50, 75), (54, 74), (58, 75), (62, 78),
             (58, 82), (54, 84), (50, 85), (46, 84), (42, 82)]  # fmt: skip
    inner = [(40, 78), (46, 77), (50, 78), (54, 77), (60, 78), (54, 80), (50, 81), (46, 80)]
    parts = jaw, left_brow, right_brow, bridge, base, left_eye, right_eye, outer, inner
    return np.array([point for part in parts for point in part], float)


def test_the_mirror_image_of_a_symmetric_face_is_the_face():
    """Pixel centres at integers: in 101 pixels x and 100 - x change places, and so do the names."""
    face = face68()
    np.testing.assert_allclose(mirror(face, IBUG68, 101), face, atol=1e-9)
    moved = face + [3, 0]
    np.testing.assert_allclose(mirror(moved, IBUG68, 101), face - [3, 0], atol=1e-9)
    assert mirror(np.zeros((1, 68, 2)), IBUG68, 64)[0, 0].tolist() == [63, 0]


def test_distances_of_68_points():
    face = face68()
    assert inter_ocular(face, IBUG68) == 60, "between the outer corners, 20 and 80"
    assert inter_pupil(face, IBUG68) == 43, "between the means of the outlines, 28.5 and 71.5"
    five = five_points(face, IBUG68)
    np.testing.assert_allclose(five, [[28.5, 42], [71.5, 42], [50, 60], [38, 78], [62, 78]])


def test_distances_of_29_points():
    """On a drawn face that looks straight ahead."""
    plain = sampling.Ranges(occluded_share=0, yaw_deg=0, pitch_deg=0, roll_deg=0)
    points = drawing.generate(4, 1, plain, size=64).points
    place = {name: points[:, i] for i, name in enumerate(COFW29.names)}
    length = lambda a, b: (place[a] - place[b]).norm(dim=-1)
    torch.testing.assert_close(inter_ocular(points, COFW29), length("left eye outer corner", "right eye outer corner"))
    torch.testing.assert_close(inter_pupil(points, COFW29), length("left pupil", "right pupil"))
    assert (inter_ocular(points, COFW29) > inter_pupil(points, COFW29) * 1.2).all()
    names = ("left pupil", "right pupil", "nose tip", "mouth left corner", "mouth right corner")
    torch.testing.assert_close(five_points(points, COFW29), torch.stack([place[name] for name in names], 1))


def test_principal_points_are_corners_of_brows_eyes_and_mouth_nose_tip_and_chin():
    parts = ("brow", "brow", "brow", "brow", "eye", "eye", "eye", "eye", "nose tip", "mouth", "mouth", "chin tip")
    names = [COFW29.names[i] for i in COFW29.principal]
    assert all(part in name for part, name in zip(parts, names, strict=True))
    assert sum("corner" in name for name in names) == 10
    assert [IBUG68.names[i] for i in IBUG68.principal] == [
        "jaw 9", "left brow 1", "left brow 5", "right brow 1", "right brow 5", "nose bridge 4", "left eye 1",
        "left eye 4", "right eye 1", "right eye 4", "outer lip 1", "outer lip 7",
    ]  # fmt: skip


# ---- A landmark set in memory


@pytest.fixture
def faces():
    n = 5
    number = torch.arange(n)
    return alignment.AlignmentSet(
        images=number.byte().view(n, 1, 1, 1).expand(n, 3, 4, 4), points=number.view(n, 1, 1).expand(n, 29, 2).float(),
        box=number.view(n, 1).expand(n, 4).float(), occluded=(number % 2 == 0).view(n, 1).expand(n, 29),
        split=torch.tensor([1, 0, 1, 0, 0], dtype=torch.uint8), scale=number.float(),
        subset=[f"s{i}" for i in range(n)], names=[f"n{i}" for i in range(n)], markup=COFW29, fingerprint="f",
    )  # fmt: skip


@pytest.mark.parametrize(("choose", "chosen"), [
    (lambda faces: faces.part("train"), [1, 3, 4]), (lambda faces: faces.part("test"), [0, 2]),
    (lambda faces: faces.select(torch.tensor([False, True, False, False, True])), [1, 4]),
    (lambda faces: faces.select(np.array([4, 0, 4])), [4, 0, 4]), (lambda faces: faces.select([]), []),
])  # fmt: skip
def test_everything_of_a_face_stays_together(faces, choose, chosen):
    found = choose(faces)
    assert found.names == [f"n{i}" for i in chosen] and found.subset == [f"s{i}" for i in chosen]
    for key in ("images", "points", "box"):
        assert [set(one.flatten().tolist()) for one in getattr(found, key)] == [{i} for i in chosen], key
    assert found.scale.tolist() == chosen and len(found) == len(chosen)
    assert found.occluded.all(1).tolist() == [i % 2 == 0 for i in chosen]
    assert found.split.tolist() == [faces.split[i].item() for i in chosen]
    assert found.markup is COFW29 and found.fingerprint == "f"
