"""Readers of alignment sets: small files in the official layouts, and every kind of bad input."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from facepapers.common.cli import UserError
from facepapers.common.data import markups, pack
from facepapers.common.data.obtain import unpack
from facepapers.common.data.pack import gather
from facepapers.common.data.readers import alignment

MIRROR = Path(os.environ.get("DATA_MIRROR") or Path(__file__).parents[2] / "shared" / "mirror")


# ------------------------------------------------------------------------- small sets in the official layouts


def photo(width=300, height=280):
    """A picture that tells where each pixel is: red x, green y, in units of two pixels."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x // 2, y // 2, (x + y) % 7], -1).astype(np.uint8)


def face_points(n, centre=(150, 140), spread=50, seed=0):
    rng = np.random.default_rng(seed)
    return np.asarray(centre) + rng.uniform(-spread, spread, (n, 2))


def write_cofw(path, split, faces, python_order=False, row=False):
    """A COFW .mat as MATLAB writes v7.3, or as Python does.

    faces: list of (image (H, W, 3) or (H, W), points (29, 2) 0-based, occluded, box 0-based); an image of None is an
    empty cell. The cells are a column, or with `row` a row.
    """
    import h5py

    names = {"train": ("IsTr", "phisTr", "bboxesTr"), "test": ("IsT", "phisT", "bboxesT")}[split]
    turn = (lambda a: a) if python_order else np.transpose  # MATLAB's arrays arrive in HDF5 with axes reversed
    with h5py.File(path, "w", userblock_size=512) as file:

        def put(name, value, kind, **options):
            file.create_dataset(name, data=value, **options).attrs["MATLAB_class"] = np.bytes_(kind)
            return file[name]

        cells = []
        for i, (image, *_) in enumerate(faces):
            if image is None:  # its sizes stand in the place of its values
                cell = put(f"#refs#/{i}", np.zeros(2, np.uint64), "double")
                cell.attrs["MATLAB_empty"] = np.uint8(1)
            else:
                cell = put(f"#refs#/{i}", turn(image), "uint8")
            cells.append(cell.ref)
        cells = np.array(cells, dtype=object)[None, :] if row else np.array(cells, dtype=object)[:, None]
        put(names[0], turn(cells), "cell", dtype=h5py.ref_dtype)
        labels = [np.concatenate([p[:, 0] + 1, p[:, 1] + 1, occluded]) for _, p, occluded, _ in faces]
        put(names[1], turn(np.array(labels, float)), "double")
        put(names[2], turn(np.array([box for *_, box in faces], float) + (1, 1, 0, 0)), "double")
    with open(path, "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")


def cofw_faces(n):
    """Odd faces are grey; sizes differ, and width differs from height."""
    faces = []
    for i in range(n):
        image = photo(300 + 10 * i, 280)
        points = face_points(29, seed=i)
        occluded = (np.arange(29) % (i + 2) == 0).astype(float)
        faces.append((image[:, :, 0] if i % 2 else image, points, occluded, (90, 80, 120, 130)))
    return faces


def write_pts(path, points, n_points=None):
    lines = [" ".join(f"{value:.6f}" for value in point) for point in points + 1]
    Path(path).write_text(f"version: 1\nn_points:  {n_points or len(points)}\n{{\n" + "\n".join(lines) + "\n}\n")


def write_pts_folder(folder, n, end=".png", **kw):
    folder.mkdir(parents=True)
    for i in range(n):
        Image.fromarray(photo()).save(folder / f"image_{i + 1:04d}{end}", quality=95)
        write_pts(folder / f"image_{i + 1:04d}.pts", face_points(68, seed=i, **kw))
    return folder


def write_crops(folder, n_train=3, n_test=2):
    """The layout of lfpw68-256.tar."""
    header = ["file", "orig_w", "orig_h", "crop_side_px", *(f"{a}{i}" for i in range(68) for a in "xy")]
    lines = [",".join(header)]
    for split, n in (("train", n_train), ("test", n_test)):
        (folder / f"{split}set").mkdir(parents=True)
        for i in range(n):
            name = f"{split}set/image_{i + 1:04d}.jpg"
            Image.fromarray(photo(256, 256)).save(folder / name, quality=95)
            numbers = face_points(68, centre=(128, 128), seed=i).ravel()
            lines.append(",".join([name, "600", "500", "128.00", *(f"{v:.2f}" for v in numbers)]))
    (folder / "landmarks68.csv").write_text("\n".join(lines) + "\n")
    return folder


def write_crops29(folder):
    """`write_crops` with 29 points of its two test faces: point i at (8 i, 100 + i), every third one hidden."""
    write_crops(folder)
    header = ["file", *(f"{a}{i}" for i in range(29) for a in "xyt")]
    numbers = [v for i in range(29) for v in (8.0 * i, 100.0 + i, float(i % 3 == 2) * 2)]
    rows = [",".join([f"testset/image_{k:04d}.jpg", *map(str, numbers)]) for k in (1, 2)]
    (folder / "lfpw29-test.csv").write_text("\n".join([",".join(header), *rows]) + "\n")
    return folder


def rows_of(samples):
    encoded, arrays = gather(samples)
    return [np.asarray(Image.open(io.BytesIO(e)).convert("RGB")) for e in encoded], arrays


def one_line(error, *words):
    """The message is one line and holds every word."""
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message, f"{word!r} not in {message!r}"


# ------------------------------------------------------------------------------------------------- good input


@pytest.mark.parametrize("python_order", [False, True])
def test_cofw_layout(tmp_path, python_order):
    faces = cofw_faces(3)
    write_cofw(tmp_path / "COFW_train_color.mat", "train", faces, python_order)
    write_cofw(tmp_path / "COFW_test_color.mat", "test", faces[:2], python_order)
    assert_read(tmp_path / "COFW_train_color.mat", faces, "train", "IsTr", "phisTr", "bboxesTr")
    images, arrays = rows_of(alignment.cofw(tmp_path))
    assert arrays["split"].tolist() == [0, 0, 0, 1, 1] and arrays["name"][-1] == "test/0002"
    assert arrays["points"].shape == (5, 29, 2) and arrays["points"].dtype == np.float32
    assert images[0].shape == (256, 256, 3) and arrays["occluded"].dtype == bool


@pytest.mark.parametrize("kinds", ["colour", "grey", "colour grey colour"])
@pytest.mark.parametrize("row", [False, True])
def test_cofw_of_any_number_of_faces_and_either_way_of_cells(tmp_path, kinds, row):
    """MATLAB readers for Python give other containers for one face than for three, and for a row than for a column."""
    faces = [cofw_faces(2)[kind == "grey"] for kind in kinds.split()]
    write_cofw(tmp_path / "COFW_test_color.mat", "test", faces, row=row)
    assert_read(tmp_path / "COFW_test_color.mat", faces)


def assert_read(path, faces, *names):
    """Check that the reader finds these faces of `write_cofw`."""
    found = list(alignment.cofw_mat(path, *(names or ("test", "IsT", "phisT", "bboxesT"))))
    for (image, points, occluded, box), face in zip(faces, found, strict=True):
        np.testing.assert_array_equal(face.image, image if image.ndim == 3 else np.stack([image] * 3, -1))
        np.testing.assert_allclose(face.points, points)
        np.testing.assert_allclose(face.box, box)
        assert face.occluded.tolist() == occluded.astype(bool).tolist()


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("row", [False, True])
def test_cofw_is_what_mat73_reads(tmp_path, n, row):
    mat73 = pytest.importorskip("mat73", reason="mat73 is no dependency; the test compares with it where it is there")
    path = tmp_path / "COFW_test_color.mat"
    write_cofw(path, "test", cofw_faces(n), row=row)
    theirs = mat73.loadmat(path)
    for i, face in enumerate(alignment.cofw_mat(path, "test", "IsT", "phisT", "bboxesT")):
        image = theirs["IsT"][i]
        image = image[0] if isinstance(image, list) else image  # a column of several is a list of lists
        np.testing.assert_array_equal(face.image, image if image.ndim == 3 else np.stack([image] * 3, -1))
        labels, box = theirs["phisT"].reshape(n, 87)[i], theirs["bboxesT"].reshape(n, 4)[i]
        np.testing.assert_array_equal(face.points, np.stack([labels[:29], labels[29:58]], 1) - 1)
        np.testing.assert_array_equal(face.occluded, labels[58:] == 1)
        np.testing.assert_array_equal(face.box, box - (1, 1, 0, 0))
    assert i + 1 == n


@pytest.mark.parametrize("n", [1, 3])
def test_an_empty_cell_of_cofw_is_one_line(tmp_path, n):
    path, faces = tmp_path / "COFW_test.mat", cofw_faces(n)
    faces[-1] = (None, *faces[-1][1:])
    write_cofw(path, "test", faces)
    with pytest.raises(UserError) as error:
        list(alignment.cofw_mat(path, "test", "IsT", "phisT", "bboxesT"))
    one_line(error, f"{path}: image {n}", "an empty cell")


def test_cofw_of_87_faces_is_read_in_matlab_order(tmp_path):
    faces = cofw_faces(1) * 87
    write_cofw(tmp_path / "COFW_test.mat", "test", faces)
    found = next(alignment.cofw_mat(tmp_path / "COFW_test.mat", "test", "IsT", "phisT", "bboxesT"))
    np.testing.assert_allclose(found.points, faces[0][1])


def test_lfpw_in_cofws_markup(tmp_path):
    images, arrays = rows_of(alignment.lfpw29(write_crops29(tmp_path / "wrapped")))
    assert arrays["name"].tolist() == ["lfpw/testset/image_0001", "lfpw/testset/image_0002"] and len(images) == 2
    assert arrays["split"].tolist() == [1, 1] and np.isnan(arrays["box"]).all()
    assert arrays["occluded"][0].tolist() == [i % 3 == 2 for i in range(29)]
    k = 256 / 128.0  # the crop shows 128 pixels of the photo: its centres lie half a photo's pixel further
    expected = np.stack([8.0 * np.arange(29), 100.0 + np.arange(29)], 1) + (k - 1) / 2
    np.testing.assert_allclose(arrays["points"][1], expected, atol=1e-4)
    np.testing.assert_allclose(arrays["scale"], 0.5)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("file,x0", "name,x0", "not a table of file, x0, y0, t0"),
        ("testset/image_0002.jpg", "testset/image_0009.jpg", "testset/image_0009.jpg is not in landmarks68.csv"),
        ("testset/image_0002.jpg", "trainset/image_0002.jpg", "line 3: 'trainset/image_0002.jpg' is no test face"),
        (",128.0,2.0\n", ",128.0\n", "line 2 does not hold 29 points"),
        ("100.0", "nan", "a point is not a number"),
    ],
)
def test_a_bad_table_of_29_points_is_one_line(tmp_path, old, new, words):
    path = write_crops29(tmp_path / "wrapped") / "lfpw29-test.csv"
    text = path.read_text().replace("224.0,128.0,0.0", "224.0,128.0,2.0")
    path.write_text(text.replace(old, new))
    assert path.read_text() != text
    with pytest.raises(UserError) as error:
        list(alignment.lfpw29(tmp_path))
    one_line(error, words)


def test_pts_folders(tmp_path):
    write_pts_folder(tmp_path / "wrapped" / "trainset", 2)
    write_pts_folder(tmp_path / "wrapped" / "testset", 1, ".jpg")
    images, arrays = rows_of(alignment.lfpw(tmp_path))
    assert arrays["name"].tolist() == [
        f"lfpw/{n}" for n in ("trainset/image_0001", "trainset/image_0002", "testset/image_0001")
    ]
    assert np.isnan(arrays["box"]).all() and not arrays["occluded"].any() and (arrays["scale"] == 1).all()
    first = face_points(68, seed=0)
    corner = np.round((first - arrays["points"][0]).mean(0))  # the crop's corner, in whole pixels
    np.testing.assert_allclose(arrays["points"][0] + corner, first, atol=1e-3)
    np.testing.assert_array_equal(images[0], photo()[int(corner[1]) :, int(corner[0]) :][:256, :256])


def test_300w_is_composed_of_four_sets(tmp_path):
    for name in ("lfpw", "helen"):
        write_pts_folder(tmp_path / name / "trainset", 2)
        write_pts_folder(tmp_path / name / "testset", 1)
    write_pts_folder(tmp_path / "afw", 1, ".jpg")
    write_pts_folder(tmp_path / "ibug", 1, ".jpg")
    _, arrays = rows_of(alignment.w300(tmp_path))
    assert arrays["subset"].tolist() == ["train"] * 5 + ["common"] * 2 + ["challenge"]
    assert arrays["split"].tolist() == [0] * 5 + [1] * 3
    assert len(set(arrays["name"])) == 8 and arrays["name"][-1] == "ibug/image_0001"


def test_crop_archive_keeps_the_jpeg_bytes(tmp_path):
    write_crops(tmp_path)
    encoded, arrays = gather(alignment.lfpw(tmp_path))
    assert encoded[0] == (tmp_path / "trainset/image_0001.jpg").read_bytes()
    assert arrays["split"].tolist() == [0, 0, 0, 1, 1] and arrays["scale"].tolist() == [0.5] * 5
    np.testing.assert_allclose(arrays["points"][0], face_points(68, centre=(128, 128)) + 0.5, atol=0.006)  # (k - 1) / 2


# -------------------------------------------------------------------------------------------------- the crop


def crop_of(points, box=None, size=(300, 280)):
    face = alignment.Face(photo(*size), points, "train", "x", "x", "x.pts", box=box)
    return alignment.sample(face)


def test_crop_of_a_small_face_keeps_pixels_and_points():
    points = np.round(face_points(68, centre=(260, 60), spread=30))  # near the photo's corner
    crop, row = crop_of(points, size=(500, 400))
    assert row["scale"] == 1 and crop.shape == (256, 256, 3)
    for (x, y), (u, v) in zip(points, row["points"], strict=True):
        assert (crop[int(v), int(u), :2] == (x // 2, y // 2)).all()


def test_crop_is_shifted_into_the_photo_rather_than_padded():
    crop, row = crop_of(face_points(68, centre=(40, 140), spread=30), size=(400, 400))
    assert (crop[:, 0, 0] == 0).all() and (crop[:, -1, 0] == 127).all()
    assert row["points"][:, 0].max() < 75


def test_crop_repeats_the_edge_of_a_photo_that_is_too_small():
    points = face_points(29, centre=(60, 50), spread=30)
    crop, row = crop_of(points, size=(120, 100))
    left, top = np.round(row["points"][0] - points[0]).astype(int)
    np.testing.assert_array_equal(crop[top : top + 100, left : left + 120], photo(120, 100))
    assert (crop[:top] == crop[top]).all() and (crop[:, :left] == crop[:, left : left + 1]).all()


def test_crop_of_a_large_face_is_reduced_with_its_points_and_box():
    points = face_points(68, centre=(255, 255), spread=200)
    box = np.array([100.0, 90.0, 300.0, 310.0])
    crop, row = crop_of(points, box, size=(510, 510))
    side = np.ceil(1.6 * (np.maximum(points.max(0), box[:2] + box[2:]) - np.minimum(points.min(0), box[:2])).max())
    assert row["scale"] == pytest.approx(side / 256)
    inside = (row["points"] > 4).all(1) & (row["points"] < 251).all(1)
    u, v = np.round(row["points"][inside]).astype(int).T
    where = crop[v, u, :2] * 2.0 + 0.5  # read the photo's coordinates off the crop
    assert np.abs(where - points[inside]).max() < 0.5 * row["scale"] + 2
    assert np.abs((where - points[inside]).mean(0)).max() < 0.4  # no systematic shift
    np.testing.assert_allclose(row["box"][2:] * row["scale"], box[2:], rtol=1e-5)
    np.testing.assert_allclose((row["box"][:2] - row["points"][0]) * row["scale"], box[:2] - points[0], atol=1e-3)


def test_crop_includes_a_box_that_leaves_the_photo():
    _, row = crop_of(face_points(29, centre=(40, 40), spread=20), np.array([-30.0, -20, 120, 120]), (400, 400))
    assert (row["box"][:2] >= -0.5).all() and (row["box"][:2] + row["box"][2:] <= 256).all()


# ------------------------------------------------------------------------------------------------- bad input


def test_pts_errors(tmp_path):
    path = tmp_path / "a.pts"
    good = face_points(68)
    cases = [
        (lambda: write_pts(path, good[:67]), "67"),
        (lambda: write_pts(path, good[:67], n_points=68), "list has 67"),
        (lambda: write_pts(path, good, n_points=66), "header says 66"),
        (lambda: write_pts(path, np.pad(good, ((0, 0), (0, 1)))), "3 numbers a line, expected x y"),
        (lambda: write_pts(path, np.where(good == good[3], np.nan, good)), "not a number"),
        (lambda: path.write_text("version: 1\nn_points: 68\n1 2\n"), "braces"),
        (lambda: path.write_text("version: 1\nn_points: 68\n{\n1 2\n"), "braces"),
        (lambda: path.write_text("version: 1\nn_points: 68\n{\n1 two\n}\n"), "not a .pts file"),
        (lambda: path.write_text("{\n1 2\n}\n"), "not a .pts file"),
        (lambda: path.write_bytes(b"1 \x89PNG\xff\xfe"), "not a text file, byte 2 is no UTF-8"),
    ]
    for write, word in cases:
        write()
        with pytest.raises(UserError) as error:
            alignment.read_pts(path)
        one_line(error, path, word)


def test_photos_that_are_missing_truncated_or_no_images(tmp_path):
    folder = write_pts_folder(tmp_path / "set", 1)
    image = folder / "image_0001.png"
    whole = image.read_bytes()
    for content, word in ((whole[: len(whole) // 2], "damaged"), (b"hello", "not an image"), (b"", "not an image")):
        image.write_bytes(content)
        with pytest.raises(UserError) as error:
            list(alignment.afw(folder))
        one_line(error, image, word)
    image.unlink()
    with pytest.raises(UserError) as error:
        list(alignment.afw(folder))
    one_line(error, "image_0001.pts", "no photo")
    (folder / "image_0001.pts").unlink()
    with pytest.raises(UserError) as error:
        list(alignment.afw(folder))
    one_line(error, folder, "no *.pts")


@pytest.mark.parametrize("centre", [(900, 100), (100, -900)])
def test_points_outside_the_photo(tmp_path, centre):
    folder = write_pts_folder(tmp_path / "set", 1, centre=centre)
    with pytest.raises(UserError) as error:
        list(alignment.afw(folder))
    one_line(error, "image_0001.pts", "outside the 300x280 image")


def test_points_on_one_spot_are_no_face(tmp_path):
    folder = write_pts_folder(tmp_path / "set", 1)
    write_pts(next(folder.rglob("*.pts")), np.full((68, 2), 100.0))
    with pytest.raises(UserError) as error:
        list(alignment.afw(folder))
    one_line(error, "image_0001.pts", "all points coincide")


@pytest.mark.parametrize(
    ("box", "word"),
    [
        ((310, 10, 50, 50), "outside"),
        ((10, -90, 50, 50), "outside"),
        ((10, 10, 0, 50), "area"),
        ((10, np.nan, 9, 9), "area"),
    ],
)
def test_cofw_boxes(tmp_path, box, word):
    path = tmp_path / "COFW_test.mat"
    faces = cofw_faces(2)
    faces[0] = (*faces[0][:3], box)
    write_cofw(path, "test", faces)
    with pytest.raises(UserError) as error:
        list(map(alignment.sample, alignment.cofw_mat(path, "test", "IsT", "phisT", "bboxesT")))
    one_line(error, f"{path}: face 1", word)


def test_cofw_files_that_are_not_cofw(tmp_path):
    import h5py
    import scipy.io

    path = tmp_path / "COFW_test.mat"
    read = lambda: list(alignment.cofw_mat(path, "test", "IsT", "phisT", "bboxesT"))

    def fails(*words):
        with pytest.raises(UserError) as error:
            read()
        one_line(error, path, *words)

    fails("no such file")
    scipy.io.savemat(path, {"phisT": np.zeros((2, 87))})
    fails("v5", "v7.3")
    path.write_text("<html>not found</html>")
    fails("not a readable v7.3")
    write_cofw(path, "train", cofw_faces(2))
    fails("no variable IsT, phisT, bboxesT")
    write_cofw(path, "test", cofw_faces(2))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    fails("not a readable v7.3")
    for key, value in (("phisT", np.zeros((58, 2))), ("phisT", np.zeros((87, 3))), ("bboxesT", np.zeros((4, 1)))):
        write_cofw(path, "test", cofw_faces(2))
        with h5py.File(path, "r+") as file:
            del file[key]
            file[key] = value
        fails("expected (2, 87) and (2, 4)")
    write_cofw(path, "test", cofw_faces(2))
    with h5py.File(path, "r+") as file:
        del file["#refs#/1"]
        file["#refs#/1"] = np.zeros((4, 30, 30), np.uint8)
        file["IsT"][0, 1] = file["#refs#/1"].ref
    fails("image 2", "no 8-bit image")


def test_cofw_folder_without_the_files(tmp_path):
    with pytest.raises(UserError) as error:
        list(alignment.cofw(tmp_path))
    one_line(error, tmp_path, "COFW_train_color.mat")


def test_crop_archive_errors(tmp_path):
    write_crops(tmp_path)
    table, image = tmp_path / "landmarks68.csv", tmp_path / "trainset/image_0002.jpg"
    lines, jpeg = table.read_text().splitlines(), image.read_bytes()

    def fails(*words):
        with pytest.raises(UserError) as error:
            list(alignment.lfpw(tmp_path))
        one_line(error, *words)
        table.write_text("\n".join(lines) + "\n")
        image.write_bytes(jpeg)

    image.unlink()
    fails(image, "listed but missing")
    table.write_text("\n".join(lines[:2] + lines[3:]))
    fails(image, "not listed")
    image.write_bytes(jpeg[: len(jpeg) // 2])
    with pytest.raises(UserError) as error:  # found where it is decoded, when the pack is written
        pack.write(tmp_path / "lfpw.npz", *pack.gather(alignment.lfpw(tmp_path)), {})
    one_line(error, "lfpw/trainset/image_0002: damaged")
    image.write_bytes(jpeg[:2])
    fails(image, "not an image")
    Image.fromarray(photo(200, 256)).save(image)
    fails(image, "200x256")
    table.write_text("\n".join([lines[0], lines[1].rsplit(",", 1)[0], *lines[2:]]))
    fails(table, "line 2", "68 points")
    table.write_text("\n".join([lines[0], lines[1].replace("128.00", "0"), *lines[2:]]))
    fails(table, "line 2", "crop side")
    table.write_text("\n".join([lines[0], lines[1].rsplit(",", 1)[0] + ",nan", *lines[2:]]))
    fails(table, "image_0001.jpg", "not a number")
    table.write_text("a,b\n")
    fails(table, "not a table")


def test_300w_refuses_the_crops_of_lfpw(tmp_path):
    write_crops(tmp_path / "lfpw")
    with pytest.raises(UserError) as error:
        list(alignment.w300(tmp_path))
    one_line(error, tmp_path / "lfpw", "official LFPW")


# ------------------------------------------------------------------------------ real samples, where present


@pytest.fixture(scope="module")
def raw_samples(tmp_path_factory):
    archive = MIRROR / "raw-samples.tar"
    if not archive.is_file():
        pytest.skip("no raw-samples.tar in DATA_MIRROR or ../shared/mirror")
    folder = tmp_path_factory.mktemp("raw")
    unpack(archive, folder)
    return folder


@pytest.mark.parametrize("python_order", [False, True])
def test_real_cofw_samples_survive_the_mat_file(raw_samples, tmp_path, python_order):
    table = json.loads((raw_samples / "alignment/cofw/test_cofw.json").read_text())
    files = {entry["id"]: raw_samples / "alignment/cofw" / entry["file_name"] for entry in table["images"]}
    faces = []
    for note in table["annotations"]:
        keypoints = np.array(note["keypoints"]).reshape(29, 3)
        image = np.asarray(Image.open(files[note["image_id"]]))
        faces.append((image, keypoints[:, :2], keypoints[:, 2] < 2, note["bbox"]))
    write_cofw(tmp_path / "COFW_test_color.mat", "test", faces, python_order)
    found = list(alignment.cofw_mat(tmp_path / "COFW_test_color.mat", "test", "IsT", "phisT", "bboxesT"))
    for (image, points, occluded, box), face in zip(faces, found, strict=True):
        np.testing.assert_array_equal(face.image, image if image.ndim == 3 else np.stack([image] * 3, -1))
        np.testing.assert_allclose(face.points, points)
        np.testing.assert_allclose(face.box, box)
        crop, row = alignment.sample(face)
        for (u, v), hidden in zip(np.round(row["points"][16:18]).astype(int), face.occluded[16:18], strict=True):
            assert hidden or crop[v - 3 : v + 4, u - 3 : u + 4].min() < 60, "a visible pupil is dark"
        assert face.occluded.tolist() == occluded.tolist()


def test_real_lfpw_in_cofws_markup_agrees_with_the_68_points(tmp_path):
    """Order, mirror table, pupils and flags of COFW's path, on real faces that another group marked with 68 points."""
    if not (MIRROR / "lfpw29-test.csv").is_file():
        pytest.skip("no lfpw29-test.csv in DATA_MIRROR or ../shared/mirror")
    for file in ("lfpw68-256.tar", "lfpw29-test.csv"):
        unpack(MIRROR / file, tmp_path)
    _, arrays = gather(alignment.lfpw29(tmp_path))
    points, flags, markup = arrays["points"].astype(float), arrays["occluded"], markups.COFW29
    assert points.shape == (221, 29, 2) and flags.sum() == 130 and (arrays["split"] == 1).all()
    pupils = markups.inter_pupil(points, markup)
    other = {row["name"]: row["points"] for _, row in alignment.lfpw_crops(tmp_path)}
    sixty_eight = np.stack([other[name] for name in arrays["name"]]).astype(float)
    twins = {8: 36, 9: 45, 10: 39, 11: 42, 20: 30, 22: 48, 23: 54, 28: 8, 0: 17, 1: 26, 2: 21, 3: 22}
    for mine, theirs in twins.items():  # the same part of the face within a tenth of the pupils' distance
        apart = np.linalg.norm(points[:, mine] - sixty_eight[:, theirs], axis=1) / pupils
        assert apart.mean() < 0.08, markup.names[mine]
    eyes = np.stack([sixty_eight[:, 36:42].mean(1), sixty_eight[:, 42:48].mean(1)], 1)
    assert (np.linalg.norm(points[:, 16:18] - eyes, axis=2) / pupils[:, None]).mean() < 0.06
    mirrored = markups.mirror(points, markup, 256)  # the mean face is nearly its own mirror image, point by point
    shape = lambda p: ((p - p.mean(1, keepdims=True)) / pupils[:, None, None]).mean(0)
    apart = lambda p: np.linalg.norm(shape(p) - shape(points), axis=1)
    paired = np.array(markup.flip) != np.arange(29)
    assert apart(mirrored).max() < 0.15 and apart(mirrored[:, np.argsort(markup.flip)])[paired].min() > 0.25


def test_real_lfpw_crops_and_photos_put_the_points_on_the_same_pixels(raw_samples, tmp_path):
    """Around each landmark the crop looks like the photo around .pts - 1, and not as if shifted by a quarter pixel."""
    archive = MIRROR / "lfpw68-256.tar"
    if not archive.is_file():
        pytest.skip("no lfpw68-256.tar in DATA_MIRROR or ../shared/mirror")
    unpack(archive, tmp_path)
    crops = {row["name"]: (encoded, row) for encoded, row in alignment.lfpw_crops(tmp_path)}
    faces = [face for split in alignment.SPLITS for face in
             alignment.pts_folder(raw_samples / f"lfpw/{split}set", split, "lfpw", f"lfpw/{split}set")]  # fmt: skip
    compared = 0
    for face in faces:
        encoded, row = crops[face.name]
        if row["scale"] < 1:  # enlarged crops: a plain bilinear look-up in the photo predicts them
            crop = np.asarray(Image.open(io.BytesIO(encoded)).convert("L"), np.float32)
            photo_grey = np.asarray(Image.fromarray(face.image).convert("L"), np.float32)
            error = {
                shift: difference(crop, row, photo_grey, face.points, shift) for shift in (-0.5, -0.25, 0.0, 0.25, 0.5)
            }
            assert min(error, key=error.get) == 0.0, (face.name, error)
            compared += 1
    assert compared >= 4


def difference(crop, row, photo_grey, points, shift):
    """RMS grey difference of 9x9 crop pixels around each inner landmark and the photo, the photo moved by `shift`."""
    grid = np.stack(np.meshgrid(np.arange(-4, 5), np.arange(-4, 5)), -1).reshape(1, -1, 2)
    inner = slice(17, 68)
    here = bilinear(crop, row["points"][inner, None] + grid)
    there = bilinear(photo_grey, points[inner, None] + (grid + shift) * float(row["scale"]))
    return float(((here - there) ** 2).mean().sqrt())


def bilinear(grey, where):
    image = torch.from_numpy(grey)[None, None]
    size = torch.tensor([grey.shape[1], grey.shape[0]], dtype=torch.float32)
    grid = (torch.as_tensor(np.asarray(where, np.float32)) + 0.5) / size * 2 - 1
    return torch.nn.functional.grid_sample(image, grid[None], align_corners=False)[0, 0]


def test_the_first_845_training_faces_of_cofw_are_lfpws(tmp_path):
    image, points = np.zeros((4, 3, 3), np.uint8), np.ones((29, 2))
    write_cofw(tmp_path / "c.mat", "train", [(image, points, np.zeros(29), (0, 0, 2, 2))] * 847)
    faces = list(alignment.cofw_mat(tmp_path / "c.mat", "train", "IsTr", "phisTr", "bboxesTr"))
    assert [face.subset for face in faces] == ["lfpw"] * 845 + ["cofw"] * 2


def test_the_grey_set_is_read_from_its_own_files(tmp_path):
    for name, split in (("COFW_train.mat", "train"), ("COFW_test.mat", "test")):
        write_cofw(tmp_path / name, split, cofw_faces(2))
    assert len(list(alignment.cofw_grey(tmp_path))) == 4


def test_a_box_has_a_size_and_no_second_corner():
    """A face far from the photo's corner, whose box holds its points: the crop need not reach back to the corner."""
    points = np.random.default_rng(0).uniform(720, 780, (68, 2))
    face = alignment.Face(photo(900, 1000), points, "train", "s", "n", "x", box=np.array([700.0, 700, 100, 100]))
    _, row = alignment.sample(face)
    assert row["scale"] == 1 and row["box"][2:].tolist() == [100, 100]
    assert ((row["points"] > row["box"][:2]) & (row["points"] < row["box"][:2] + 100)).all()
