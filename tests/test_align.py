"""Five-point alignment against Umeyama's formula and known motions; MTCNN on made-up and, if given, real weights."""

import csv
import io
import math
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from facepapers.common.cli import MissingData, UserError
from facepapers.common.data.readers import recognition
from facepapers.common.tools import align
from facepapers.common.vision import alignment, mtcnn
from tests.conftest import Harmful

torch.set_num_threads(1)
SHARED = Path(__file__).resolve().parents[2] / "shared"


def umeyama(source, target):
    """Umeyama (1991), equations 40-43, by the singular value decomposition."""
    mean_s, mean_t = source.mean(0), target.mean(0)
    s, t = source - mean_s, target - mean_t
    u, d, vt = np.linalg.svd(t.T @ s / len(s))
    sign = np.diag([1, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = u @ sign @ vt
    scale = np.trace(np.diag(d) @ sign) / s.var(0).sum()
    return np.c_[scale * rotation, mean_t - scale * rotation @ mean_s]


def motion(points, degrees, scale, shift):
    angle = math.radians(degrees)
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return scale * points @ rotation.T + shift


def test_the_template_is_insightfaces():
    assert alignment.template(112).tolist() == alignment.TEMPLATE_112.tolist()
    np.testing.assert_allclose(alignment.template(112) - [8, 0], [  # the older 112x96 one
        [30.2946, 51.6963], [65.5318, 51.5014], [48.0252, 71.7366], [33.5493, 92.3655], [62.7299, 92.2041]
    ])  # fmt: skip
    np.testing.assert_allclose(alignment.template(224), 2 * alignment.TEMPLATE_112)
    np.testing.assert_allclose(alignment.template(128)[:, 0], alignment.TEMPLATE_112[:, 0] * 128 / 128 + 8)
    np.testing.assert_allclose(alignment.template(256)[0], [2 * 38.2946 + 16, 2 * 51.6963])


def test_similarity_transform_equals_umeyama():
    rng = np.random.default_rng(0)
    source = rng.normal(size=(20, 5, 2)) * 30 + 100
    source[10:] = alignment.TEMPLATE_112 + rng.normal(size=(10, 5, 2))
    found = alignment.similarity_transform(source, alignment.TEMPLATE_112)
    for one, matrix in zip(source, found):
        np.testing.assert_allclose(matrix, umeyama(one, alignment.TEMPLATE_112), rtol=1e-7, atol=1e-7)


def test_a_known_motion_is_undone_and_a_mirror_image_is_not():
    points = motion(alignment.TEMPLATE_112, 25, 1.7, [40, -3])
    matrix = alignment.similarity_transform(points[None], alignment.TEMPLATE_112)[0]
    np.testing.assert_allclose(points @ matrix[:, :2].T + matrix[:, 2], alignment.TEMPLATE_112, atol=1e-9)
    mirrored = points * [-1, 1]
    matrix = alignment.similarity_transform(mirrored[None], alignment.TEMPLATE_112)[0]
    assert np.linalg.det(matrix[:, :2]) > 0  # never a reflection
    assert np.abs(mirrored @ matrix[:, :2].T + matrix[:, 2] - alignment.TEMPLATE_112).max() > 3


def test_points_that_coincide():
    points = np.stack([alignment.TEMPLATE_112, np.full((5, 2), 3.0)])
    with pytest.raises(UserError, match="face 1: its alignment points coincide"):
        alignment.similarity_transform(points, alignment.TEMPLATE_112)
    with pytest.raises(UserError, match=r"face 0: .* not numbers"):
        alignment.similarity_transform(points * np.nan, alignment.TEMPLATE_112)


def picture(height=200, width=180):
    """A smooth image, whose value anywhere is known: red = x, green = y, blue = 100."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y, torch.full_like(x, 100)]).to(torch.uint8)


def test_identity_keeps_the_pixels():
    image = picture()
    crop = alignment.align(image[None], alignment.TEMPLATE_112[None])[0]
    assert torch.equal(crop, image[:, :112, :112])
    shifted = alignment.align(image[None], alignment.TEMPLATE_112[None] + [7, 3])[0]
    assert torch.equal(shifted, image[:, 3:115, 7:119])


@pytest.mark.parametrize("size", [112, 64])
def test_every_pixel_comes_from_where_the_similarity_says(size):
    points = motion(alignment.template(112), 20, 0.9, [30, 10])
    crop = alignment.align(picture()[None].expand(2, -1, -1, -1), np.stack([points, points + 2]), size).int()
    matrix = np.linalg.inv(
        np.r_[alignment.similarity_transform(points[None], alignment.template(size))[0], [[0, 0, 1]]]
    )
    y, x = np.mgrid[:size, :size]
    where = np.stack([x, y, np.ones_like(x)], -1) @ matrix.T
    inside = (where[..., :2] >= 0).all(-1) & (where[..., 0] <= 179) & (where[..., 1] <= 199)
    assert inside.mean() > 0.9
    assert np.abs(crop[0, 0].numpy() - where[..., 0])[inside].max() <= 0.51
    assert np.abs(crop[0, 1].numpy() - where[..., 1])[inside].max() <= 0.51
    both = inside & (where[..., 0] + 2 <= 179) & (where[..., 1] + 2 <= 199)
    assert np.abs(crop[1, 0].numpy() - where[..., 0] - 2)[both].max() <= 0.51


def test_between_two_pixels_both_count():
    image = torch.randint(0, 256, (3, 120, 120), generator=torch.Generator().manual_seed(0)).byte()
    crop = alignment.align(image[None], alignment.TEMPLATE_112[None] + [0.5, 0])[0].float()
    mean = (image[:, :112, :112].float() + image[:, :112, 1:113].float()) / 2
    assert (crop - mean).abs().max() <= 0.51


def test_outside_the_image_is_black():
    crop = alignment.align(picture()[None], alignment.TEMPLATE_112[None] - [50, 0])[0]
    assert (crop[:, :, :49] == 0).all() and (crop[2, :, 51:] == 100).all()


# ---- MTCNN


def made_up_weights(folder, bias=4.0):
    """State dicts by which every window is a face, with the template's points."""
    torch.manual_seed(0)
    for name, kind, face in (
        ("pnet", mtcnn.PNet, "conv4_1"),
        ("rnet", mtcnn.RNet, "dense5_1"),
        ("onet", mtcnn.ONet, "dense6_1"),
    ):
        state = {k: torch.zeros_like(v) for k, v in kind().state_dict().items()}
        state[f"{face}.bias"] = torch.tensor([0.0, bias])
        if name == "onet":
            state["dense6_3.bias"] = torch.tensor(alignment.TEMPLATE_112.T.reshape(-1) / 112).float()
        torch.save(state, folder / f"{name}.pt")


def test_mtcnn_puts_points_into_its_boxes(tmp_path):
    made_up_weights(tmp_path)
    boxes, probability, points = mtcnn.Mtcnn(tmp_path, min_face_px=40).detect(picture(120, 100))
    assert len(boxes) > 1 and points.shape == (len(boxes), 5, 2)
    assert probability[0].item() == pytest.approx(1 / (1 + math.exp(-4)))
    size = boxes[:, None, 2:] - boxes[:, None, :2] + 1
    expected = boxes[:, None, :2] - 1 + torch.tensor(alignment.TEMPLATE_112 / 112).float() * size
    torch.testing.assert_close(points, expected)
    assert (size[..., 0] == size[..., 1]).all()
    chosen = mtcnn.main_face(boxes, points, 100, 120)
    assert any(torch.equal(chosen, p) for p in points)


def test_overlapping_boxes_are_suppressed_as_torchvision_does():
    from torchvision.ops import nms

    for seed in range(20):
        gen = torch.Generator().manual_seed(seed)
        low, size = torch.rand(2, 40, 2, generator=gen) * 60
        boxes, score = torch.cat([low, low + size], 1), torch.rand(40, generator=gen)
        assert torch.equal(mtcnn._nms(boxes, score, 0.3), nms(boxes, score, 0.3))
    assert len(mtcnn._nms(boxes[:0], score[:0], 0.3)) == 0


def test_a_box_within_another_is_the_same_face(tmp_path):
    """At its end MTCNN counts the overlap as a share of the smaller box: one face gave two answers without that."""
    boxes = torch.tensor([[0.0, 0, 100, 100], [20, 20, 80, 80], [60, 0, 160, 100], [25, 0, 125, 100]])
    score = torch.tensor([0.9, 0.95, 0.8, 0.7])
    assert mtcnn._nms(boxes, score, 0.7).tolist() == [1, 0, 2, 3]
    assert mtcnn._nms(boxes, score, 0.7, of_smaller=True).tolist() == [1, 2]
    made_up_weights(tmp_path)
    found = mtcnn.Mtcnn(tmp_path, min_face_px=20).detect(picture(120, 100))[0]
    both = (torch.minimum(found[:, None, 2:], found[:, 2:]) - torch.maximum(found[:, None, :2], found[:, :2])).clip(0)
    area = (found[:, 2:] - found[:, :2]).prod(1)
    share = both.prod(2) / torch.minimum(area[:, None], area)
    assert len(found) > 1 and share.fill_diagonal_(0).max() <= 0.7


def spot_weights(folder, level):
    """As `made_up_weights`, but PNet answers where the middle of its window is brighter than `level` (-1 .. 1)."""
    made_up_weights(folder)
    state = torch.load(folder / "pnet.pt")
    for name in ("conv1", "conv2", "conv3"):
        state[f"{name}.weight"][0, 0, 1, 1] = 1
    for name in ("prelu1", "prelu2", "prelu3"):
        state[f"{name}.weight"].fill_(1)
    state["conv4_1.weight"][1, 0] = 100
    state["conv4_1.bias"] = torch.tensor([0.0, -100 * level])
    torch.save(state, folder / "pnet.pt")


def test_mtcnn_proposes_boxes_around_what_its_first_network_sees(tmp_path):
    """One bright spot on grey, far from the diagonal: 255 is 0.996 to the network, 200 is 0.566."""
    image = torch.full((3, 100, 160), 200, dtype=torch.uint8)
    image[:, 22:34, 108:120] = 255
    spot_weights(tmp_path, level=0.85)
    boxes = mtcnn.Mtcnn(tmp_path, min_face_px=24).detect(image)[0]
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    assert len(boxes) and (middle - torch.tensor([113.5, 27.5])).abs().max() < 12
    assert (boxes[:, 2] - boxes[:, 0]).min() > 18
    assert not len(mtcnn.Mtcnn(tmp_path, min_face_px=90).detect(image)[0]), "no face may be that small"
    spot_weights(tmp_path, level=0.5)  # now the background is bright enough
    assert len(mtcnn.Mtcnn(tmp_path, min_face_px=24).detect(image)[0]) > 4


@pytest.mark.parametrize(("network", "probability", "found"), [
    ("rnet", 0.69, False), ("rnet", 0.71, True), ("onet", 0.69, False), ("onet", 0.71, True),
    ("pnet", 0.59, False), ("pnet", 0.61, True),
])  # fmt: skip
def test_each_network_of_mtcnn_may_refuse(tmp_path, network, probability, found):
    made_up_weights(tmp_path)
    state = torch.load(tmp_path / f"{network}.pt")
    key = {"pnet": "conv4_1.bias", "rnet": "dense5_1.bias", "onet": "dense6_1.bias"}[network]
    state[key] = torch.tensor([0.0, math.log(probability / (1 - probability))])
    torch.save(state, tmp_path / f"{network}.pt")
    assert bool(len(mtcnn.Mtcnn(tmp_path, min_face_px=40).detect(picture(60, 50))[0])) == found


def test_points_are_placed_in_the_boxes_that_the_last_network_saw(tmp_path):
    made_up_weights(tmp_path)
    state = torch.load(tmp_path / "onet.pt")
    state["dense6_2.bias"] = torch.full((4,), 0.1)  # corrects every box by a tenth of its size
    torch.save(state, tmp_path / "onet.pt")
    boxes, _, points = mtcnn.Mtcnn(tmp_path, min_face_px=40).detect(picture(120, 100))
    size = boxes[:, None, 2:] - boxes[:, None, :2] + 1
    seen = boxes[:, None, :2] - 0.1 * size
    torch.testing.assert_close(points, seen - 1 + torch.tensor(alignment.TEMPLATE_112 / 112).float() * size)


def test_boxes_become_squares_and_crops_show_them():
    square = mtcnn._square(torch.tensor([[10.0, 20, 20, 50]]))
    assert square.tolist() == [[0, 20, 30, 50]]
    shifted = mtcnn._shift(torch.tensor([[10.0, 20, 19, 39]]), torch.tensor([[0.1, 0.1, -0.1, 0.2]]))
    torch.testing.assert_close(shifted, torch.tensor([[11.0, 22, 18, 43]]))
    x = picture(60, 50)[None].float()
    (crop,) = mtcnn._crops(x, torch.tensor([[11.0, 21, 30, 40]]), 20)  # counted from 1, both ends included: 20 px
    torch.testing.assert_close(crop * 128 + 127.5, x[0, :, 20:40, 10:30])
    (beside,) = mtcnn._crops(x, torch.tensor([[-9.0, 51, 10, 70]]), 10)  # the part inside: 10 x 10 px
    torch.testing.assert_close(beside * 128 + 127.5, x[0, :, 50:60, :10])


def test_mtcnns_last_layers_read_columns_first():
    """The published weights come from code that stores the width before the height before the channels."""
    x = torch.arange(24.0).view(1, 2, 3, 4)
    expected = [x[0, c, h, w].item() for w in range(4) for h in range(3) for c in range(2)]
    assert mtcnn._flat(x).tolist() == [expected]


def test_no_code_is_run_from_mtcnns_weights(tmp_path):
    made_up_weights(tmp_path)
    torch.save({"conv1.weight": Harmful(tmp_path / "written")}, tmp_path / "onet.pt")
    with pytest.raises(UserError, match=r"onet.pt: not ONet's state dict"):
        mtcnn.Mtcnn(tmp_path)
    assert not (tmp_path / "written").exists()


def test_a_table_of_points_for_a_tree_of_photos(tmp_path, monkeypatch, capsys):
    """Of several faces the main one, x and y of each point in turn; a photo without a face gets the median points."""
    from PIL import Image

    for name, size in (("A/1.png", (60, 40)), ("A/2.png", (60, 40)), ("B/1.png", (80, 40))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", size).save(tmp_path / name)
    points = torch.arange(20.0).view(2, 5, 2)

    class Detector:
        """Two faces in every photo but A/2: a small one first, and one in the middle of an 80 px wide photo."""

        def __init__(self, folder, *words):
            self.photos = 0

        def detect(self, photo):
            self.photos += 1
            assert photo.shape[:2] == (3, 40)
            if self.photos == 2:
                return torch.empty(0, 4), torch.empty(0), torch.empty(0, 5, 2)
            boxes = torch.tensor([[0.0, 0, 30, 30], [25, 5, 55, 35]])
            return boxes, torch.tensor([0.75, 0.99]), points + 100 * (self.photos - 1)

    monkeypatch.setattr(align, "Mtcnn", Detector)
    target = tmp_path / "points.csv"
    align.main([str(tmp_path), "--mtcnn", str(tmp_path / "weights"), "--to", str(target), "--fill"])
    assert "A/2.png" in "".join(capsys.readouterr())
    rows = list(csv.reader(target.open()))
    assert rows[0] == ["file", "prob", "leye_x", "leye_y", "reye_x", "reye_y", "nose_x", "nose_y", "lmouth_x",
                       "lmouth_y", "rmouth_x", "rmouth_y"]  # fmt: skip
    assert [row[0] for row in rows[1:]] == ["A/1.png", "A/2.png", "B/1.png"]
    assert [float(row[1]) for row in rows[1:]] == [0.99, 0, 0.99]
    wanted = [points[1], points[1] + 100, points[1] + 200]
    for row, expected in zip(rows[1:], wanted, strict=True):
        assert [float(word) for word in row[2:]] == expected.flatten().tolist()


def test_mtcnn_without_a_face(tmp_path):
    made_up_weights(tmp_path, bias=-4.0)
    boxes, probability, points = mtcnn.Mtcnn(tmp_path).detect(picture(60, 50))
    assert boxes.shape == (0, 4) and probability.shape == (0,) and points.shape == (0, 5, 2)
    with pytest.raises(UserError, match="no face was found"):
        mtcnn.main_face(boxes, points, 50, 60)
    assert len(mtcnn.Mtcnn(tmp_path).detect(picture(8, 8))[0]) == 0  # smaller than any window


def test_the_main_face_is_large_and_central():
    boxes = torch.tensor([[0.0, 0, 40, 40], [40, 40, 70, 70], [45, 45, 55, 55]])
    points = torch.arange(3.0).view(3, 1, 1).expand(3, 5, 2)
    assert mtcnn.main_face(boxes, points, 100, 100)[0, 0] == 1
    sides = torch.tensor([[130.0, 30, 170, 70], [25, 25, 75, 75]])  # the smaller one is in the middle
    assert mtcnn.main_face(sides, points, 300, 100)[0, 0] == 0


def test_bad_mtcnn_weights(tmp_path):
    with pytest.raises(MissingData, match=r"pnet.pt: no such file"):
        mtcnn.Mtcnn(tmp_path)
    made_up_weights(tmp_path)
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "rnet.pt")
    with pytest.raises(UserError, match=r"rnet.pt: not RNet's state dict"):
        mtcnn.Mtcnn(tmp_path)
    (tmp_path / "pnet.pt").write_text("no weights")
    with pytest.raises(UserError, match=r"pnet.pt: not PNet's state dict"):
        mtcnn.Mtcnn(tmp_path)


# ---- Crops that another fit has made


class Points:
    """A detector that finds a face with the next of the given points (5, 2) of a crop, or none where that is None."""

    def __init__(self, found, margin):
        self.found, self.margin = iter(found), margin

    def detect(self, image):
        five = next(self.found)
        if five is None:
            return torch.empty(0, 4), torch.empty(0), torch.empty(0, 5, 2)
        box = torch.tensor([[0.0, 0, image.shape[2], image.shape[1]]])
        return box, torch.ones(1), torch.tensor(five + self.margin)[None]


@pytest.mark.parametrize("size", [112, 224])
def test_crops_by_another_fit_are_off_the_template(size):
    crops, target = [torch.zeros(3, size, size, dtype=torch.uint8)] * 4, alignment.template(size)
    distance = lambda found: mtcnn.off_template_px(crops, Points(found, size // 2))
    rng = np.random.default_rng(0)
    shapes = [target + rng.normal(size=(5, 2)) * size / 30 for _ in range(4)]  # four faces' own shapes, then aligned
    fits = alignment.similarity_transform(np.stack(shapes), target)
    shapes = [five @ fit[:, :2].T + fit[:, 2] for five, fit in zip(shapes, fits)]
    assert distance(shapes) == pytest.approx(0, abs=1e-4)
    assert distance([five + [3 * size / 112, 0] for five in shapes]) == pytest.approx(3, abs=1e-3)
    assert distance([shapes[0] + size, None, shapes[1], shapes[2]]) == pytest.approx(0, abs=1e-4)  # a median
    assert distance([None] * 4) is None


def test_readers_say_in_one_line_that_crops_look_otherwise(monkeypatch, capsys):
    faces = torch.zeros(100, 3, 112, 112, dtype=torch.uint8)
    for shift, said in ((1.4, 0), (1.6, 1)):
        found = [alignment.TEMPLATE_112 + [0, shift]] * recognition.SAMPLED
        monkeypatch.setattr(mtcnn, "installed", lambda found=found, **_: Points(found, 56))
        recognition.say_fit("faces", len(faces), lambda k: faces[k])
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == said, lines
    assert "faces: 32 of its faces lie 1.6 px off the template" in lines[0] and "tools.align" in lines[0]


def test_the_fit_is_looked_at_only_where_the_detector_is_installed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    folder = tmp_path / "mtcnn"
    folder.mkdir(parents=True)
    assert mtcnn.installed() is None
    recognition.say_fit("faces", 5, lambda k: pytest.fail("no face is read"))
    made_up_weights(folder)
    assert mtcnn.installed(40).min_face_px == 40


@pytest.mark.skipif(not (SHARED / "mirror" / "lfw-112.tar").is_file(), reason="no ../shared beside the checkout")
def test_mtcnn_and_alignment_on_real_faces():
    """Against points and crops that an independent implementation made of the same photos."""
    from PIL import Image

    decode = lambda tar, name: torch.from_numpy(
        np.array(Image.open(io.BytesIO(tar.extractfile(name).read())).convert("RGB"))
    ).permute(2, 0, 1)
    detector = mtcnn.Mtcnn(SHARED / "weights" / "mtcnn", min_face_px=40)
    names = ["Abel_Pacheco/Abel_Pacheco_0001.jpg", "Serena_Williams/Serena_Williams_0004.jpg"]
    mirror = SHARED / "mirror"
    with tarfile.open(mirror / "raw-samples.tar") as raw, tarfile.open(mirror / "lfw-112.tar") as lfw:
        rows = csv.reader(io.StringIO(lfw.extractfile("landmarks.csv").read().decode()))
        table = {row[0]: row[2:] for row in rows}
        for name in names:
            image = decode(raw, f"lfw-deepfunneled/{name}")
            expected = np.array(table[name], float).reshape(5, 2)
            boxes, _, points = detector.detect(image)
            assert np.abs(mtcnn.main_face(boxes, points, 250, 250).numpy() - expected).max() < 0.05
            crop = alignment.align(image[None], expected[None])[0].float()
            assert (crop - decode(lfw, f"lfw/{name}").float()).abs().mean() < 4  # JPEG's error


@pytest.mark.skipif(not (SHARED / "mirror" / "lfw-112.tar").is_file(), reason="no ../shared beside the checkout")
def test_real_crops_lie_on_the_template_and_those_of_another_fit_do_not():
    from PIL import Image

    detector = mtcnn.Mtcnn(SHARED / "weights" / "mtcnn", min_face_px=60)
    with tarfile.open(SHARED / "mirror" / "lfw-112.tar") as lfw:
        names = [name for name in lfw.getnames() if name.endswith(".jpg")][::400][:24]
        faces = [np.array(Image.open(io.BytesIO(lfw.extractfile(name).read())).convert("RGB")) for name in names]
    crops = torch.from_numpy(np.stack(faces)).permute(0, 3, 1, 2)
    assert mtcnn.off_template_px(crops, detector) < recognition.OFF_PX
    moved = alignment.TEMPLATE_112 * 0.95 + 2.8  # the whole face 5 % larger in the crop
    larger = alignment.align(crops, np.broadcast_to(moved, (24, 5, 2)))
    assert mtcnn.off_template_px(larger, detector) > recognition.OFF_PX


# ---- insightface's own crop, where it is installed (its package is large and no dependency)


@pytest.mark.parametrize("size", [112, 224, 128, 256])
def test_our_crop_is_insightfaces(size):
    """norm_crop of insightface 2.1: the same matrix, and pixels up to rounding (OpenCV 4 warps in steps of 1/32 px)."""
    face_align = pytest.importorskip("insightface.utils.face_align")
    rng = np.random.default_rng(size)
    coarse = torch.from_numpy(rng.uniform(0, 255, (1, 3, 12, 12)))
    photo = torch.nn.functional.interpolate(coarse, (250, 250), mode="bicubic").clamp(0, 255).round().byte()
    for _ in range(5):
        five = motion(alignment.TEMPLATE_112, rng.uniform(-40, 40), rng.uniform(0.6, 1.5), rng.uniform(20, 60, 2))
        five += rng.normal(size=(5, 2)) * 3
        ours = alignment.similarity_transform(five[None], alignment.template(size))[0]
        np.testing.assert_allclose(ours, face_align.estimate_norm(five, size), atol=1e-4)
        theirs = face_align.norm_crop(photo[0].permute(1, 2, 0).numpy(), five, size)
        apart = alignment.align(photo, five[None], size)[0].permute(1, 2, 0).int().numpy() - theirs.astype(int)
        assert np.abs(apart).mean() < 0.1 and (np.abs(apart) > 1).mean() < 0.005
