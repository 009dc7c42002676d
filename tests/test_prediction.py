"""The commands that predict: crops, faces found, files taken and written, errors photo by photo, a watched folder."""

import csv
import functools
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from facepapers.common import storage
from facepapers.common.cli import MissingData, UserError
from facepapers.common.data.photos import read_photo
from facepapers.common.faces import drawing as embedded
from facepapers.common.prediction import crops, drawing, files, finding, identity
from facepapers.common.vision import alignment, images, mtcnn
from facepapers.papers.arcface import verify
from facepapers.papers.coarse_to_fine import predict as landmarks
from facepapers.papers.face_attributes import predict as attributes
from facepapers.papers.hybrid_order_distillation import verify as low
from facepapers.papers.resup import predict as expression
from tests import test_released
from tests.conftest import one_line_error

weights = test_released.files  # paper -> a small weights file
COMMANDS = {
    "heatmap": landmarks, "attributes": attributes, "expression": expression, "embedding": verify, "embedding16": low,
}  # fmt: skip
FIVE = torch.tensor(alignment.TEMPLATE_112).float()


@functools.cache
def drawn():
    """Three faces of 96 px."""
    return embedded.generate(3, 7, size=96)


@pytest.fixture(scope="module")
def people():
    return drawn()


@pytest.fixture
def group(tmp_path, people):
    """A photo of 480x200 px with the three faces, the second one on the left."""
    picture = np.full((200, 480, 3), 120, np.uint8)
    for k, x in ((0, 180), (1, 20), (2, 340)):
        picture[50:146, x : x + 96] = people.images[k].permute(1, 2, 0).numpy()
    Image.fromarray(picture).save(tmp_path / "group.png")
    return tmp_path / "group.png"


class Detector:
    """Finds the three faces of `group` where they are, the best first; none in photos that are all of one colour."""

    def __init__(self, *words):
        pass

    def detect(self, photo):
        if float(photo.float().std()) < 1:
            return torch.empty(0, 4), torch.empty(0), torch.empty(0, 5, 2)
        corner = torch.tensor([[180.0, 50], [20, 50], [340, 50]])
        points = drawn().five.float() + corner[:, None]
        return torch.cat([corner + 10, corner + 80], 1), torch.tensor([0.99, 0.98, 0.97]), points


@pytest.fixture
def detector(monkeypatch, tmp_path):
    monkeypatch.setattr(mtcnn, "Mtcnn", Detector)
    monkeypatch.setattr(mtcnn, "folder", lambda: tmp_path / "mtcnn")
    (tmp_path / "mtcnn").mkdir()
    for name in mtcnn.FILES:
        (tmp_path / "mtcnn" / name).touch()


def run(name, weights, *words):
    COMMANDS[name].main([*map(str, words), "--weights", str(weights[name]), "--device", "cpu"])


def fails(name, weights, *words):
    with pytest.raises(UserError) as error:
        run(name, weights, *words)
    one_line_error(error)
    return error.value


def table_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# ---- Crops


def whole_photo(photo, to_photo, size):
    """What `cut` must give: the photo itself is halved, and then cut."""
    pixels, times = photo[None], 1
    scale = float(torch.linalg.det(to_photo[:, :2]).abs().sqrt())
    while scale / times > crops.SHRINK and min(pixels.shape[-2:]) >= 2:
        pixels, times = images.halve(pixels), 2 * times
    moved = to_photo.clone()
    moved[:, 2] -= (times - 1) / 2
    return images.crop(pixels, (moved / times).float()[None], size)[0]


def test_crops_are_those_of_the_whole_photo(monkeypatch):
    """Of photos of any size, turned and mirrored, also far outside; in strips, too."""
    monkeypatch.setattr(crops, "STRIP", 400)
    gen = torch.Generator().manual_seed(3)
    photos = [torch.randint(0, 256, (3, h, w), generator=gen, dtype=torch.uint8)
              for h, w in ((1, 9), (40, 31), (400, 130), (33, 300), (7, 7), (256, 256))]  # fmt: skip
    owner = torch.randint(6, (80,), generator=gen).tolist()
    extent = torch.tensor([photos[k].shape[:0:-1] for k in owner]).double()
    centre = (torch.rand(80, 2, generator=gen) * 1.8 - 0.4) * extent
    side, angle = torch.rand(80, generator=gen).double() * 500 + 1, torch.rand(80, generator=gen).double() * 6
    to_photo = images.similarity(centre, side, angle, angle > 3, 16)
    found = crops.cut(photos, to_photo, 16, owner)
    expected = torch.stack([whole_photo(photos[k], m, 16) for k, m in zip(owner, to_photo, strict=True)])
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)
    assert crops.cut(photos, to_photo[:0], 16, []).shape == (0, 3, 16, 16)


def test_a_box_is_the_square_of_its_area_and_a_whole_photo_keeps_its_pixels(people):
    photo = people.images[0]
    whole = torch.tensor([[-0.5, -0.5, 96.0, 96.0]])
    found = finding.finder(None, whole=True, folder=None)
    assert torch.equal(found(photo, "photo").boxes, whole)
    assert found(photo[:, :50], "photo").boxes.tolist() == [[-0.5, -0.5, 96, 50]]
    torch.testing.assert_close(
        crops.cut(photo[None], crops.box_maps(whole, 96), 96)[0], photo.float(), rtol=0, atol=0.01
    )
    wide = crops.box_maps(torch.tensor([[10.0, 20.0, 8.0, 32.0]]), 16)
    assert crops.sides(wide, 16).tolist() == [16.0]
    middle = images.transform_points(torch.tensor([[[7.5, 7.5]]]).double(), wide)
    assert middle.flatten().tolist() == [14.0, 36.0]


def test_five_points_lie_where_the_frame_says():
    points = FIVE[None] * 1.7 + torch.tensor([30.0, 4.0])
    to_photo = crops.frame_maps(torch.zeros(1, 4), points, alignment.ALIGNED, 56)
    where = (torch.as_tensor(alignment.ALIGNED) * 56 - 0.5)[None]
    torch.testing.assert_close(images.transform_points(where, to_photo), points.double(), rtol=0, atol=1e-4)


# ---- Faces


def test_faces_are_numbered_from_left_to_right_at_any_size(monkeypatch):
    photo = torch.randint(0, 256, (3, 200, 480), dtype=torch.uint8)
    found = finding.detected(Detector(), photo)
    assert found.boxes[:, 0].tolist() == [30, 190, 350] and found.boxes[:, 2:].eq(70).all()
    assert found.probability.tolist() == pytest.approx([0.98, 0.99, 0.97])
    assert torch.equal(found.points, Detector().detect(photo)[2][[1, 0, 2]])
    monkeypatch.setattr(finding, "LOOK_PX", 240)  # the detector now sees half of each photo
    large = finding.detected(Detector(), photo.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, :200, :480])
    torch.testing.assert_close(large.boxes, torch.cat([found.boxes[:, :2] * 2 + 0.5, found.boxes[:, 2:] * 2], 1))
    torch.testing.assert_close(large.points, found.points * 2 + 0.5)


def test_no_detector_and_no_box_name_both_remedies(group, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(mtcnn, "folder", lambda: tmp_path / "none")
    for name in COMMANDS:
        with pytest.raises(MissingData) as error:
            run(name, weights, group, group)
        one_line_error(error, "make data-mtcnn", "--box X,Y,W,H")


@pytest.mark.parametrize("box", ["0,0,0,10", "0,0,-4,9", "1,2,3", "a,b,c,d", "nan,0,9,9", "0,0,inf,9", "480,0,9,9",
                                 "0,9,9,0", "0,9,9,-4"])  # fmt: skip
def test_boxes_that_are_none_or_outside(group, weights, box):
    assert "box" in str(fails("heatmap", weights, group, f"--box={box}"))
    assert "give one of them" in str(fails("heatmap", weights, group, "--box=0,0,9,9", "--whole"))
    run("heatmap", weights, group, "--box=300,20,60,60")  # further right than the photo is high


# ---- Files


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return [folder / name for name in names]


def test_every_photo_has_a_base_of_its_own(tmp_path):
    a, b, twin, _, _, _ = touch(tmp_path, "x/a.jpg", "y/a.jpg", "x/a.png", "x/a.points.png", "x/.b.jpg", "x/notes.txt")
    bases = lambda given, out=None: [str(p.base.relative_to(tmp_path)) for p in files.listed(given, out)[0]]
    assert bases([a, b]) == ["x/a", "y/a"]
    assert bases([a, a, tmp_path / "x" / ".." / "x" / "a.jpg", b], tmp_path / "o") == ["o/x/a.jpg", "o/y/a.jpg"]
    assert bases([a, twin]) == ["x/a.jpg", "x/a.png"]
    assert bases([b], tmp_path / "o") == ["o/a"]
    assert bases([tmp_path]) == ["x/a.jpg", "x/a.png", "y/a.jpg"], "hidden ones and our own pictures are left out"
    photos, errors = files.listed([tmp_path / "x", *touch(tmp_path, "z/text")[0].parents[:1]])
    assert len(photos) == 2 and "no picture in this folder" in str(errors[0])


def test_pictures_of_photos_that_are_given_too_are_left_out(tmp_path):
    """`*.png` in a second run names them; the first photo's would be written over before it is read."""
    given = touch(tmp_path, "a.jpg", "a.points.png", "b.png", "b.png.verify.png", "c.points.png")
    found = [photo.path.name for photo in files.listed(given)[0]]
    assert found == ["a.jpg", "b.png", "c.points.png"]
    assert [photo.path for photo in files.listed(given[1:2])[0]] == given[1:2]
    long = tmp_path / f"{'x' * 300}.jpg"
    assert files.listed([long])[0][0].path == long


def test_a_table_takes_names_of_any_bytes(tmp_path):
    """Names of files need not be UTF-8."""
    name = b"b\xe4d.jpg".decode(errors="surrogateescape")
    for ending in (".csv", ".jsonl"):
        files.Table(tmp_path / f"t{ending}", ["photo", "p"]).add([{"photo": name, "p": 1}])
        assert files.Table(tmp_path / f"t{ending}", ["photo", "p"], more=True).done == {name}


def test_a_table_is_continued_after_a_half_written_line(tmp_path):
    for ending, half in ((".csv", '"b.jpg",0.'), (".jsonl", '{"photo": "b.jpg", "p')):
        path = tmp_path / f"t{ending}"
        files.Table(path, ["photo", "p"]).add([{"photo": "a,1.jpg", "p": 0.5}])
        with open(path, "a") as file:
            file.write(half)
        table = files.Table(path, ["photo", "p"], more=True)
        assert table.done == {"a,1.jpg"}
        table.add([{"photo": "b.jpg", "p": [1, 2]}])
        assert files.Table(path, ["photo", "p"], more=True).done == {"a,1.jpg", "b.jpg"}
    with pytest.raises(UserError, match="of other columns"):
        files.Table(tmp_path / "t.csv", ["photo", "q"], more=True)
    with pytest.raises(UserError, match=r"name a \.csv"):
        files.Table(tmp_path / "t.txt", ["photo"])
    with pytest.raises(UserError, match="cannot be written"):
        files.Table(tmp_path / "t.csv" / "t.csv", ["photo"])


def test_a_watched_folder_gives_finished_photos_once(tmp_path, monkeypatch):
    """One that grows waits, one that changes comes again, and what is `done` comes when it changes."""
    old, growing = touch(tmp_path, "old.png", "sub/growing.png")
    looks = []

    def sleep(seconds):
        looks.append(seconds)
        if len(looks) <= 2:
            growing.write_text("x" * len(looks))
        if len(looks) == 6:
            old.write_text("again")
        assert len(looks) < 20, "nothing came"

    monkeypatch.setattr(files.time, "sleep", sleep)
    stream = files.arriving(tmp_path, tmp_path / "out", {str(old)})
    first = next(stream)
    assert (first.path, first.base, len(looks)) == (growing, tmp_path / "out" / "sub" / "growing.png", 3)
    assert next(stream).path == old and len(looks) == 7
    with pytest.raises(UserError, match="no such folder"):
        next(files.arriving(tmp_path / "none", None, set()))


def test_a_watched_folder_that_is_removed_ends_the_watching(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    monkeypatch.setattr(files.time, "sleep", lambda seconds: (tmp_path / "in").rmdir())
    with pytest.raises(UserError, match="in: the folder was removed") as error:
        next(files.arriving(tmp_path / "in", None, set()))
    one_line_error(error)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_photo_is_in_a_table_with_all_its_faces_or_none(suffix, tmp_path):
    """Wherever the program is ended: started again, it takes a photo that has a row for done."""
    faces = [{"photo": "group.png", "face": k, "q": "long" * 2000} for k in range(5)]
    pieces = []

    class Ending(io.TextIOWrapper):
        def write(self, text):
            pieces.append(super().write(text))
            if len(pieces) == 2:
                raise EOFError
            return pieces[-1]

    table = files.Table(tmp_path / f"t{suffix}", ["photo", "face", "q"])
    table.file = Ending(io.BytesIO(), encoding="utf-8")
    table.add(faces)
    with pytest.raises(EOFError):
        table.add(faces)
    table.file.flush()
    assert table.file.buffer.getvalue().count(b"\n") == 10


# ---- The commands


@pytest.mark.parametrize("name", ["heatmap", "attributes", "expression"])
def test_all_faces_of_a_photo_are_predicted(name, group, weights, detector, tmp_path, capsys):
    run(name, weights, group, "--out", tmp_path / "out")
    kind = {"heatmap": "points", "attributes": "attributes", "expression": "expression"}[name]
    written = json.loads((tmp_path / "out" / f"group.{kind}.json").read_text())
    assert [face["face"] for face in written["faces"]] == [1, 2, 3]
    assert [face["box_xywh"][0] for face in written["faces"]] == [30, 190, 350]
    assert Image.open(tmp_path / "out" / f"group.{kind}.png").size == (480, 200)
    said = capsys.readouterr().out
    assert all(f"face {k} of 3: " in said for k in (1, 2, 3))
    run(name, weights, group, "--table", tmp_path / "t.csv", "--no-picture")
    rows = table_of(tmp_path / "t.csv")
    boxes = [[float(row[f"box_{name}"]) for name in ("x", "y", "width", "height")] for row in rows]
    assert boxes == [face["box_xywh"] for face in written["faces"]]
    assert [row["face"] for row in rows] == ["1", "2", "3"] and not list(tmp_path.glob("group.*.json"))
    assert all(value for row in rows for value in row.values()), "no column is empty"


def library(weights):
    """Command -> its call of photos, boxes, points and owner, whose network is loaded."""
    net = landmarks.released.load(weights["heatmap"])
    calls = {"heatmap": lambda photos, boxes, points=None, owner=None: landmarks.points(net, photos, boxes, owner)}
    for name, function in (("attributes", attributes.attributes), ("expression", expression.expressions),
                           ("embedding", verify.embeddings), ("embedding16", low.embeddings)):  # fmt: skip
        calls[name] = functools.partial(function, COMMANDS[name].released.load(weights[name]))
    return calls


def test_what_a_library_call_cannot_take_is_one_line(weights):
    """No number of numpy's or torch's, and no answer made of nonsense: photos, boxes, five points, their photos."""
    photos, boxes = torch.zeros(2, 3, 60, 80, dtype=torch.uint8), torch.tensor([[5.0, 5, 40, 40]] * 2)
    five, nan, inf = FIVE.expand(2, 5, 2) / 2, float("nan"), float("inf")
    other = lambda *box: (photos, torch.stack([boxes[0], torch.tensor(box)]))
    wrong = [
        *((other(*box), r"box 1 \(.*finite numbers, width and height above 0")
          for box in ((nan, 1.0, 9.0, 9.0), (1.0, inf, 9.0, 9.0), (1.0, 1.0, -9.0, 9.0), (1.0, 1.0, -9.0, -9.0),
                      (1.0, 1.0, 0.0, 9.0))),
        *((other(*box), r"box 1 \(.*: lies outside its 80x60 photo")
          for box in ((80.0, 5.0, 9.0, 9.0), (5.0, 60.0, 9.0, 9.0), (-9.0, 5.0, 9.0, 9.0), (5.0, -9.0, 9.0, 9.0))),
        ((photos, boxes[0]), r"boxes: torch.float32 of shape \(4,\)"),
        ((photos, torch.ones(2, 5)), r"boxes: .*give a tensor \(N, 4\)"),
        ((photos, boxes.numpy()), "boxes: a ndarray"),
        ((photos, boxes[:1]), "boxes of 1 and photos of 2: give one face of each photo"),
        ((photos, boxes, None, [0, 2]), r"owner \[0, 2\]: give 2 numbers"),
        ((photos, boxes, None, [0, -1]), r"owner \[0, -1\]: give 2 numbers"),
        ((photos, boxes, None, [0]), r"owner \[0\]: give 2 numbers"),
        ((photos / 255, boxes), "photos: torch.float32 of shape .*give uint8"),
        ((photos[0], boxes[:1]), r"photos: torch.uint8 of shape \(3, 60, 80\); give"),
        ((photos.permute(0, 2, 3, 1), boxes), r"photos: torch.uint8 of shape \(2, 60, 80, 3\)"),
        ((photos[:, :, :0], boxes), "photos: torch.uint8 of shape"),
        ((photos.numpy(), boxes), "photos: a ndarray; give"),
        ((photos, boxes, five[:, :4]), r"five points: .*give a tensor \(N, 5, 2\)"),
        ((photos, boxes, five[:1]), "five points of 1 and photos of 2"),
        ((photos, boxes, five * nan), "five points 0: not numbers"),
        ((photos, boxes, five * 0), "face 0: its alignment points coincide"),
        ((photos, boxes, five - 500), "five points 0: lie outside their 80x60 photo"),
        ((photos, boxes, five + torch.tensor([0, 500])), "five points 0: lie outside their 80x60 photo"),
    ]  # fmt: skip
    for name, call in library(weights).items():
        for words, said in wrong:
            if name != "heatmap" or len(words) != 3:  # which takes no points
                with pytest.raises(UserError, match=said) as error:
                    call(*words)
                one_line_error(error)
        if name != "heatmap":
            call(photos, boxes[:1] * nan, five)  # with points no box is looked at
        none = call(photos[:0], boxes[:0])
        assert all(len(value) == 0 for value in (none.values() if isinstance(none, dict) else [none])), name


def test_answers_of_a_batch_are_those_of_single_faces(group, weights, people):
    """The library calls, by boxes and by points: five commands, three photos of one size."""
    photos = torch.nn.functional.pad(people.images, (10, 30, 20, 12))
    boxes, points = torch.tensor([[10.0, 20, 96, 96]] * 3), people.five.float() + torch.tensor([10.0, 20.0])
    for name, call in library(weights).items():
        for words in ((boxes,), (boxes, points)):
            together = call(photos, *words)
            for k in range(3):
                alone = call([photos[k]], *(w[k : k + 1] for w in words))
                for a, b in zip(alone.values(), together.values()) if isinstance(alone, dict) else [(alone, together)]:
                    torch.testing.assert_close(a[0], b[k], rtol=1e-3, atol=1e-3, msg=name)


def test_points_follow_the_face(weights, people):
    """A face elsewhere in the photo, twice as large, gets the same points there."""
    net = landmarks.released.load(weights["heatmap"])
    box = torch.tensor([[-0.5, -0.5, 96, 96]])
    here = landmarks.points(net, people.images[:1], box)
    large = torch.nn.functional.pad(people.images[:1].repeat_interleave(2, 2).repeat_interleave(2, 3), (30, 8, 50, 9))
    there = landmarks.points(net, large, torch.tensor([[29.5, 49.5, 192.0, 192.0]]))
    torch.testing.assert_close(there, (here + 0.5) * 2 - 0.5 + torch.tensor([30.0, 50.0]), rtol=0, atol=0.5)


def test_points_turn_with_the_face(weights, people):
    """A photo turned by 90 degrees, found by the detector's box and points there, gets the same points turned."""
    net = landmarks.released.load(weights["heatmap"])
    photo, middle = torch.nn.functional.pad(people.images[0], (30, 20, 10, 40)), torch.tensor([72.5, 72.5])
    box, five = torch.tensor([[50.0, 20.0, 60.0, 90.0]]), people.five[:1].float() + torch.tensor([30.0, 10.0])
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])  # of x, y as a row, clockwise as seen

    def found(photo, five, box):
        boxes, roll = landmarks.around_landmarks(finding.Faces(box, five), net)
        return landmarks.points(net, photo[None], boxes, roll_rad=roll)[0], roll.item()

    upright, roll = found(photo, five, box)
    assert abs(roll) < 0.3
    turned_box = torch.tensor([[145 - 110.0, 50.0, 90.0, 60.0]])
    there, turned = found(photo.rot90(-1, (1, 2)), (five - middle) @ turn + middle, turned_box)
    assert turned - roll == pytest.approx(np.pi / 2, abs=1e-4)
    torch.testing.assert_close(there, (upright - middle) @ turn + middle, rtol=0, atol=0.01)


def test_a_frame_says_where_the_face_lies_in_a_box(weights, people):
    """Boxes read as UTKFace's crops give the answers of those five points."""
    net, box = attributes.released.load(weights["attributes"]), torch.tensor([[3.0, 5.0, 80.0, 80.0]])
    by_box = attributes.attributes(net, people.images[:1], box, frame="utkface")
    points = torch.tensor(alignment.FRAMES["utkface"]).float()[None] * 80 + torch.tensor([3.0, 5.0])
    by_points = attributes.attributes(net, people.images[:1], box, points)
    torch.testing.assert_close(by_box, by_points)
    assert not torch.allclose(by_box["gender"], attributes.attributes(net, people.images[:1], box)["gender"])


def bad_photos(folder):
    """Name -> what is said of it."""
    Image.fromarray(np.full((60, 60, 3), 9, np.uint8)).save(folder / "plain.png")
    (folder / "broken.jpg").write_bytes((folder / "group.png").read_bytes()[:3000])
    (folder / "text.png").write_text("no picture")
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    return {"plain.png": "no face was found; turn the photo", "broken.jpg": "damaged", "text.png": "not an image",
            "dot.png": "too small", "absent.png": "no such file", "empty": "no picture in this folder"}  # fmt: skip


def test_bad_photos_are_one_line_each_and_the_others_are_done(group, weights, detector, tmp_path, capsys):
    bad = bad_photos(tmp_path)
    (tmp_path / "empty").mkdir()
    Image.open(group).convert("L").save(tmp_path / "grey.png")
    Image.fromarray(np.asarray(Image.open(group).convert("L")).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    frames = [Image.open(group).convert("P")] * 2
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    good = ["group.png", "grey.png", "deep.png", "moving.gif"]
    words = [tmp_path / n for pair in zip(bad, [*good, *good]) for n in pair]
    said = str(fails("heatmap", weights, *words, "--out", tmp_path / "out"))
    assert said == "6 of 10 failed, see above; the others are done"
    written = {p.name for p in (tmp_path / "out").iterdir()}
    assert written == {f"{Path(g).stem}.points.{ending}" for g in good for ending in ("json", "png")}
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 6
    for file, reason in bad.items():
        assert any(file in line and reason in line for line in errors), file
    for file, reason in bad.items():  # alone, each is the one error
        assert reason in str(fails("heatmap", weights, tmp_path / file))


def test_a_face_at_the_border_a_narrow_photo_and_a_stretched_crop(group, weights, tmp_path, capsys):
    run("heatmap", weights, group, "--box=-40,-30,90,90")
    Image.new("RGB", (3000, 9)).save(tmp_path / "narrow.png")
    run("heatmap", weights, tmp_path / "narrow.png", "--whole")
    assert Image.open(tmp_path / "narrow.points.png").size == (1500, 4)
    capsys.readouterr()
    for given, said in ((["--whole"], "group.png: 480x200 px are no square"), (["--box=0,0,90,100"], ""),
                        (["--box=0,0,90,120"], "group.png: 90x120 px are no square")):  # fmt: skip
        run("attributes", weights, group, *given)
        heard = capsys.readouterr().err
        assert said in heard and ("no square" in heard) == bool(said)


def test_a_folder_that_vanishes_while_it_is_looked_through_ends_no_watching(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    given = touch(tmp_path, "a.jpg")
    real = os.scandir

    def gone(place):
        if Path(place).name == "gone":
            raise FileNotFoundError(place)
        return real(place)

    monkeypatch.setattr(os, "scandir", gone)
    assert files.pictures_in(tmp_path) == given


def test_what_cannot_be_written_is_one_line_and_the_others_are_done(group, weights, tmp_path):
    (tmp_path / "locked").mkdir()
    for path in (tmp_path / "locked" / "a.png", tmp_path / "b.png"):
        path.write_bytes(group.read_bytes())
    (tmp_path / "locked" / "a.points.png").mkdir()  # a folder stands where the picture goes
    words = [tmp_path / "locked" / "a.png", tmp_path / "b.png", "--whole"]
    assert "1 of 2 failed" in str(fails("heatmap", weights, *words))
    assert (tmp_path / "b.points.json").exists()
    assert "cannot be written" in str(fails("heatmap", weights, group, "--whole", "--out", tmp_path / "b.png"))
    assert "IMAGES" in str(fails("heatmap", weights))
    assert "IMAGES" in str(fails("heatmap", weights, group, "--watch", tmp_path))


def test_weights_of_another_paper_are_one_line(group, weights):
    for name, module in COMMANDS.items():
        for other, path in weights.items():
            if other not in (name, "cft"):  # embedding16 is a network of embedding's kind, of other faces
                with pytest.raises(UserError) as error:
                    module.main([str(group), str(group), "--whole", "--weights", str(path), "--device", "cpu"])
                one_line_error(error, path)


def test_watching_appends_until_it_is_interrupted(group, weights, tmp_path, monkeypatch, capsys):
    """A photo that is there, a broken one and a later one; started again, only what is new is predicted."""
    folder, table = tmp_path / "in", tmp_path / "t.csv"
    folder.mkdir()
    (folder / "a.png").write_bytes(group.read_bytes())
    (folder / "b.png").write_text("broken")
    looks = []

    def sleep(seconds):
        looks.append(seconds)
        if len(looks) == 3:
            (folder / "c.png").write_bytes(group.read_bytes())
        if len(looks) in (6, 9):
            raise KeyboardInterrupt

    monkeypatch.setattr(files.time, "sleep", sleep)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run("heatmap", weights, "--watch", folder, "--table", table, "--whole")
    assert [Path(row["photo"]).name for row in table_of(table)] == ["a.png", "c.png"]
    said = capsys.readouterr()
    assert said.err.count("b.png: not an image") == 2 and said.out.count("a.png: face 1 of 1") == 1


# ---- Who is it


def test_photos_are_compared_pair_by_pair(group, weights, detector, people, tmp_path, capsys):
    for k in (0, 1):
        Image.fromarray(people.images[k].permute(1, 2, 0).numpy()).save(tmp_path / f"{k}.png")
    run("embedding", weights, tmp_path / "0.png", tmp_path / "1.png", tmp_path / "0.png", "--whole", "--threshold", 0.5)
    said = capsys.readouterr().out
    written = json.loads((tmp_path / "0.verify.json").read_text())
    net = verify.released.load(weights["embedding"])
    box = torch.tensor([[-0.5, -0.5, 96.0, 96.0]]).expand(2, -1)
    a, b = verify.embeddings(net, people.images[:2], box)
    assert written["pairs"][0]["distance"] == pytest.approx(float((a - b).square().sum()), abs=1e-3)
    assert written["pairs"][0]["same"] == (written["pairs"][0]["distance"] < 0.5) and len(written["pairs"]) == 1
    run("embedding", weights, tmp_path / "0.png", tmp_path / "1.png", "--whole", "--threshold", 0)
    assert "different people" in capsys.readouterr().out
    assert "error rates are not known" in said and Image.open(tmp_path / "0.verify.png").size[0] >= 400
    run("embedding", weights, group, tmp_path / "1.png", "--mtcnn", "x")
    heard = capsys.readouterr()
    assert "3 faces; number 2 from the left, the main one" in heard.err and "no decision" in heard.out
    for words, reason in (((group,), "name two photos"), ((group, tmp_path / "no.png", "--whole"), "no such file"),
                          ((group, group, "--threshold", 5), "0 to 4")):  # fmt: skip
        assert reason in str(fails("embedding", weights, *words))


def test_the_rates_of_a_threshold_are_those_of_the_record(tmp_path, weights, group, people, capsys):
    """Beside a run's weights lie its pairs: three of one person, four of two, one decision wrong each way."""
    path = tmp_path / "run" / "model.safetensors"
    path.parent.mkdir()
    path.write_bytes(weights["embedding"].read_bytes())
    distance = np.array([0.2, 0.4, 1.8, 0.45, 1.5, 1.6, 1.7])
    np.savez(path.parent / "predictions.npz", distance=distance, same=np.arange(7) < 3)
    options = identity.Options()
    found = identity.threshold_of(path, "arcface", options)
    assert 0.4 < found.value <= 0.45 and (found.false_accepts_pct, found.false_rejects_pct) == (0, 33.33)
    assert "run, 7 pairs" in found.source
    Image.fromarray(people.images[0].permute(1, 2, 0).numpy()).save(tmp_path / "0.png")
    verify.main([str(group), str(tmp_path / "0.png"), "--whole", "--weights", str(path), "--device", "cpu"])
    assert "calls 0.0 % of pairs of different people the same, and 33.3 %" in " ".join(capsys.readouterr().out.split())
    assert identity.threshold_of(weights["embedding"], "arcface", options) is None


def test_the_main_face_is_seen_with_its_own_points(group):
    found, seen = finding.detected(Detector(), read_photo(group)), []

    def embed(photo, faces):
        seen.append(faces)
        return identity.Seen(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), torch.zeros(1, 2))

    person = identity.person(group, lambda photo, name: found, embed)
    assert (person.number, person.faces, person.box) == (2, 3, [190, 60, 70, 70])
    assert torch.equal(seen[0].points, found.points[1:2]) and torch.equal(seen[0].boxes, found.boxes[1:2])


def test_photos_that_cannot_be_compared_are_counted_once(tmp_path, monkeypatch, capsys):
    for name in ("a", "b", "c"):
        Image.new("RGB", (32, 32)).save(tmp_path / f"{name}.png")
    (tmp_path / "d.png").write_bytes(b"no picture")

    def person(path, find, embed):
        if path.stem == "d":
            raise UserError(f"{path}: not an image file; convert it")
        return identity.Person(path, [], 1, 1, torch.empty(0), torch.eye(3)["abc".index(path.stem)])

    monkeypatch.setattr(identity, "person", person)
    options = identity.Options(picture=False, out=tmp_path / "out")
    with pytest.raises(UserError, match="1 of 4 failed, see above; the others are compared"):
        identity.compare(sorted(tmp_path.glob("*.png")), options, None, None, None)
    assert capsys.readouterr().out.count("distance") >= 3


def person_of(path, find, embed):
    """A person without a face; none in files named `bad`."""
    if path.stem.startswith("bad"):
        raise UserError(f"{path}: not an image file; convert it")
    return identity.Person(path, [], 1, 1, torch.zeros(3, 2, 2, dtype=torch.uint8), torch.eye(3)[len(path.stem) - 1])


def test_the_sheet_says_how_many_pairs_it_leaves_out(tmp_path, monkeypatch, capsys):
    lines = []
    monkeypatch.setattr(identity, "person", person_of)
    monkeypatch.setattr(identity, "SHOWN", 2)
    monkeypatch.setattr(drawing, "sheet", lambda crops, names, words, path: lines.append(words))
    for names in (["a", "ab"], ["a", "ab", "abc"]):
        identity.compare(touch(tmp_path, *(f"{name}.png" for name in names)), identity.Options(), None, None, None)
    assert len(lines[0]) == 1 and len(lines[1]) == 3 and lines[1][2] == "1 more in a.verify.json"


def test_of_photos_that_leave_no_pair_each_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(identity, "person", person_of)
    for given in (["bad1.png", "bad2.png"], ["a.png", "bad1.png", "bad2.png"]):
        with pytest.raises(UserError, match=r"two photos are compared: .*bad2\.png: not an image"):
            identity.compare(touch(tmp_path, *given), identity.Options(), None, None, None)
        assert "bad1.png: not an image" in capsys.readouterr().err


def test_distances_are_told_also_where_their_file_cannot_be_written(tmp_path, monkeypatch, capsys):
    """It is named after the first photo that is compared."""
    monkeypatch.setattr(identity, "person", person_of)
    photos = touch(tmp_path, "bad.png", "a.png", "ab.png")
    with pytest.raises(UserError, match="1 of 3 failed"):
        identity.compare(photos, identity.Options(), None, None, None)
    assert {path.name for path in tmp_path.glob("*.verify.*")} == {"a.verify.json", "a.verify.png"}
    (tmp_path / "a.verify.json").unlink()
    (tmp_path / "a.verify.json").mkdir()
    capsys.readouterr()
    with pytest.raises(UserError, match="cannot be written"):
        identity.compare(photos, identity.Options(), None, None, None)
    said = capsys.readouterr()
    assert "ab.png: squared distance 2.000" in said.out and "bad.png: not an image" in said.err


def test_distances_are_squared():
    a, b = (identity.Person(Path(name), [], 1, 1, torch.empty(0), torch.eye(2)[k]) for k, name in enumerate("ab"))
    found = [identity.pair(a, b, identity.Threshold(value)) for value in (1.9, 2.0, 2.1)]
    assert [(p["distance"], p["same"]) for p in found] == [(2, False), (2, False), (2, True)]


def test_a_threshold_is_that_of_the_card_which_was_asked_for(tmp_path, monkeypatch):
    point = lambda *values: dict(zip(("threshold", "false_accepts_pct", "false_rejects_pct"), values, strict=True))
    card = {"thresholds": {"accuracy": point(1.1, 2.0, 3.0), "low_false_accepts": point(0.9, 0.5, 8.0)}}
    monkeypatch.setattr(identity.released, "facts", lambda path: card)
    for name, wanted in (("accuracy", (1.1, 2.0, 3.0)), ("low_false_accepts", (0.9, 0.5, 8.0))):
        assert identity.threshold_of(tmp_path, "arcface", identity.Options(at=name))[:3] == wanted


def test_rates_are_of_the_record_that_names_the_weights(tmp_path, monkeypatch):
    (tmp_path / "w").write_bytes(b"weights")
    digests = {"none": None, "other": {"sha256": "0" * 64}, "own": {"sha256": storage.sha256(tmp_path / "w")}}
    records = [{"folder": Path(name), "weights": weights} for name, weights in digests.items()]
    monkeypatch.setattr(identity.runs, "recorded", lambda paper: records)
    assert identity.recorded_in(tmp_path / "w", "arcface") == Path("own")
    (tmp_path / "w").write_bytes(b"others")
    assert identity.recorded_in(tmp_path / "w", "arcface") is None


def test_all_faces_of_a_folder_are_embedded_with_their_names(group, weights, detector, tmp_path, capsys):
    bad_photos(tmp_path)
    to = tmp_path / "out" / "e.npz"
    with pytest.raises(UserError, match="4 of 5 failed"):
        run("embedding", weights, "embed", tmp_path, "--to", to)
    found = np.load(to)
    assert found["photo"].tolist() == [str(group)] * 3 and found["face"].tolist() == [1, 2, 3]
    assert found["embedding"].shape == (3, 16) and found["box_xywh"].shape == (3, 4)
    np.testing.assert_allclose(np.linalg.norm(found["embedding"], axis=1), 1, rtol=1e-5)
    (tmp_path / "f.npz").mkdir()
    for name in ("", "f.npz", "faces.csv", "group.png"):  # the last one is a photo, which an archive would replace
        said = str(fails("embedding", weights, "embed", group, "--to", tmp_path / name))
        assert f"--to {tmp_path / name}: name an .npz file" in said


def test_low_faces_are_taken_as_they_are_or_reduced_on_request(weights, people, tmp_path, monkeypatch, capsys):
    net = low.released.load(weights["embedding16"])
    small = torch.nn.functional.interpolate(people.images[:2].float(), 16).to(torch.uint8)
    box = torch.tensor([[-0.5, -0.5, 16.0, 16.0]]).expand(2, -1)
    assert torch.equal(low.low(net, small, box, None, None, None), small), "16 pixels stay as they are"
    assert not torch.equal(low.low(net, small, box, None, None, 8), small)
    large = torch.tensor([[-0.5, -0.5, 96.0, 96.0]]).expand(2, -1)
    assert torch.equal(low.low(net, people.images[:2], large, None, None, None), net.preprocess(people.images[:2]))
    for k in (0, 1):
        Image.fromarray(small[k, :, :10, :10].permute(1, 2, 0).numpy()).save(tmp_path / f"{k}.png")
    run("embedding16", weights, tmp_path / "0.png", tmp_path / "1.png", "--whole")
    assert "a face of 10 px" in capsys.readouterr().err
    monkeypatch.setattr(identity, "threshold_of", lambda *_: identity.Threshold(1.5, 2.0, 3.0, "the card"))
    run("embedding16", weights, tmp_path / "0.png", tmp_path / "1.png", "--whole", "--size", 8)
    said = capsys.readouterr().out
    assert "threshold 1.5 (the card; measured on faces of 16 px and not of 8): its error rates are not known" in said
    run("embedding16", weights, tmp_path / "0.png", tmp_path / "1.png", "--whole", "--size", 16)
    assert "calls 2.0 % of pairs" in capsys.readouterr().out
    assert "--size 113" in str(fails("embedding16", weights, tmp_path / "0.png", tmp_path / "1.png", "--whole",
                                     "--size", 113))  # fmt: skip


def test_pictures_show_points_numbers_and_words_inside(tmp_path):
    photo = torch.full((3, 100, 300), 128, dtype=torch.uint8)
    marks = [((10, 10, 40, 40), drawing.Mark([(30, 30)])), ((285, 60, 14, 30), drawing.Mark(text=["happiness 0.93"]))]
    drawn = np.asarray(Image.open(drawing.write(photo, marks, tmp_path / "a.png"))).astype(int)
    assert tuple(drawn[30, 30]) == drawing.POINT and tuple(drawn[10, 30]) == drawing.BOX
    dark = np.argwhere((drawn == 0).all(2) | (drawn > 200).all(2))
    assert len(dark) > 200 and tuple(drawn[80, 10]) == (128, 128, 128)
    assert (drawn[:, 200:284] > 200).all(2).sum() > 30, "the words of a face at the border are moved inside"


def test_boxes_and_points_follow_a_photo_that_is_drawn_reduced(tmp_path):
    photo = torch.full((3, 80, 4000), 128, dtype=torch.uint8)
    marks = [((2000, 20, 400, 40), drawing.Mark([(3000, 40)]))]
    drawn = np.asarray(Image.open(drawing.write(photo, marks, tmp_path / "a.png")))
    assert drawn.shape == (40, 2000, 3)
    assert tuple(drawn[20, 1000]) == drawing.BOX and tuple(drawn[20, 1500]) == drawing.POINT
    drawing.write(photo, [((100, 20, 1.5, 1), drawing.Mark())], tmp_path / "a.png")  # less than a pixel of the drawing
    assert tuple(np.asarray(Image.open(tmp_path / "a.png"))[10, 50]) == drawing.BOX


def test_the_sheet_of_a_verdict_cuts_no_words(tmp_path):
    """`a and b: distance 1.768: diffe` tells nothing; names keep to their own picture."""
    crops, names = [torch.full((3, 4, 4), 255, dtype=torch.uint8)] * 2, ["W" * 60, "."]
    for words in ("short", "W" * 90):
        ink = np.asarray(Image.open(drawing.sheet(crops, names, [words], tmp_path / "a.png"))).min(2) < 128
        assert ink[222:].any(0).nonzero()[0].max() < ink.shape[1] - 2
        assert ink[200:218, 150:200].any() and not ink[200:218, 203:208].any()
    assert ink[222:, 480:].any()
