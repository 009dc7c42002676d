"""Readers of face-alignment sets in their official layouts, and the one crop that is stored of each face.

A reader takes a folder and yields samples (image, row) for `data.pack.gather`. `row` holds
  points    (P, 2) float32, pixels of the stored crop, 0-based (pixel centres at integers)
  box       (4,)   float32, x, y, width, height in the same pixels; NaN when the set ships no boxes
  occluded  (P,)   bool
  split     uint8, 0 train, 1 test
  scale     float32, original pixels per stored pixel
  subset, name  str
Every bad input raises UserError: one line with the file, what is wrong, and the remedy.
"""

import csv
import dataclasses
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from facepapers.common import storage
from facepapers.common.cli import UserError
from facepapers.common.data.archive import AnyPath, entries, place
from facepapers.common.data.pack import Sample
from facepapers.common.data.photos import image_header, stored_pixels
from facepapers.common.data.readers.files import find_file, folder_with

CROP = 256  # side of a stored crop, px
MARGIN = 1.6  # the crop's side over the larger side of the face: room for rotation, shift and scale
SPLITS = ("train", "test")
MIRROR = "_mirror"  # ending of the names of mirrored twins
IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}


@dataclasses.dataclass(frozen=True, eq=False)
class Face:
    """One annotated face in a photo. Coordinates are 0-based pixels of the photo."""

    image: np.ndarray  # (H, W, 3) uint8
    points: np.ndarray  # (P, 2)
    split: str
    subset: str
    name: str
    source: str  # for error messages: the file, and which face of it
    box: np.ndarray | None = None  # (4,) x, y, width, height
    occluded: np.ndarray | None = None  # (P,) bool


def cofw(folder: AnyPath) -> Iterator[Sample]:
    """COFW in colour: COFW_train_color.mat (1345 faces), COFW_test_color.mat (507), 29 points, official boxes."""
    yield from _cofw(folder, "COFW_train_color.mat", "COFW_test_color.mat")


def cofw_grey(folder: AnyPath) -> Iterator[Sample]:
    """COFW in grey: COFW_train.mat and COFW_test.mat, else like `cofw`."""
    yield from _cofw(folder, "COFW_train.mat", "COFW_test.mat")


def lfpw(folder: AnyPath) -> Iterator[Sample]:
    """LFPW with 68 points: the crop archive (landmarks68.csv, trainset/, testset/) or the official folders."""
    folder = place(folder)
    if entries(folder, "landmarks68.csv") or entries(folder, "*/landmarks68.csv"):
        yield from lfpw_crops(folder_with(folder, "landmarks68.csv"))
    else:
        yield from train_and_test(folder, "lfpw")


def helen(folder: AnyPath) -> Iterator[Sample]:
    """Helen with 68 points: trainset/ (2000) and testset/ (330) of .jpg and .pts."""
    yield from train_and_test(folder, "helen")


def afw(folder: AnyPath) -> Iterator[Sample]:
    """AFW with 68 points: one folder of 337 .jpg and .pts, all training faces in 300-W."""
    yield from map(sample, pts_folder(folder_with(folder, "*.pts"), "train", "afw", "afw"))


def ibug(folder: AnyPath) -> Iterator[Sample]:
    """iBUG with 68 points: one folder of 135 .jpg and .pts, 300-W's challenging test faces."""
    yield from map(sample, pts_folder(folder_with(folder, "*.pts"), "test", "ibug", "ibug"))


def w300(folder: AnyPath) -> Iterator[Sample]:
    """300-W from lfpw/, helen/, afw/, ibug/: 3148 training faces, 554 common and 135 challenging test faces.

    `subset` is train, common or challenge; `name` starts with the set that the face came from.
    """
    parts = {name: place(folder) / name for name in ("lfpw", "helen", "afw", "ibug")}
    if find_file(parts["lfpw"], "landmarks68.csv"):
        raise UserError(f"{parts['lfpw']}: 300w needs the official LFPW (photos, .pts), not its 256-pixel crops")
    pair = {name: folder_with(parts[name], "trainset", "testset") for name in ("lfpw", "helen")}
    plan = [(pair[name] / "trainset", "train", "train", f"{name}/trainset") for name in pair]
    plan += [(folder_with(parts["afw"], "*.pts"), "train", "train", "afw")]
    plan += [(pair[name] / "testset", "test", "common", f"{name}/testset") for name in pair]
    plan += [(folder_with(parts["ibug"], "*.pts"), "test", "challenge", "ibug")]
    for where, split, subset, prefix in plan:
        yield from map(sample, pts_folder(where, split, subset, prefix))


def _cofw(folder: AnyPath, train: str, test: str) -> Iterator[Sample]:
    first, second = folder_with(folder, train) / train, folder_with(folder, test) / test
    yield from map(sample, cofw_mat(first, "train", "IsTr", "phisTr", "bboxesTr"))
    yield from map(sample, cofw_mat(second, "test", "IsT", "phisT", "bboxesT"))


def cofw_mat(path: AnyPath, split: str, images: str, phis: str, boxes: str) -> Iterator[Face]:
    """Faces of one COFW .mat (v7.3, that is HDF5), given its variables' names.

    `phis` is N x 87 in MATLAB: 29 x, 29 y, 29 occlusion flags; `boxes` N x 4; `images` N cells of (H, W, 3)
    or (H, W). HDF5 stores MATLAB's arrays with the axes reversed (87 x N, 4 x N, images (3, W, H) or (W, H));
    files re-exported by Python keep MATLAB's order. The axis of length 87 tells which. The cells may be a row or a
    column, of one image too (mat73 0.65 nests a column of several, pymatreader 1.3 drops the list around a single
    image). Coordinates count from 1 there. The first 845 training faces are LFPW's, unoccluded; the other 500 are
    COFW's own: `subset` says.
    """
    import h5py

    with _open_mat(path) as file:
        missing = [name for name in (images, phis, boxes) if name not in file]
        if missing:
            raise UserError(f"{path}: no variable {', '.join(missing)}; not the official {split} file")
        labels, corners, cells = (_read(file, name, path) for name in (phis, boxes, images))
        cells = cells.ravel()
        reversed_axes = labels.ndim == 2 and labels.shape[0] == 87
        if reversed_axes:
            labels, corners = labels.T, corners.T
        n = len(cells)
        if labels.shape != (n, 87) or corners.shape != (n, 4):
            found = f"{n} images, {phis} {labels.shape}, {boxes} {corners.shape}"
            raise _bad(path, f"{found}: expected ({n}, 87) and ({n}, 4)")
        if h5py.check_ref_dtype(file[images].dtype) is not h5py.Reference:
            raise UserError(f"{path}: {images} is no cell array of images; not the official file")
        for i, cell in enumerate(cells):
            yield Face(
                image=_cell_image(file, cell, reversed_axes, f"{path}: image {i + 1}"),
                points=labels[i, :58].reshape(2, 29).T - 1,
                box=corners[i] - (1, 1, 0, 0),
                occluded=labels[i, 58:] > 0.5,
                split=split,
                subset="lfpw" if split == "train" and i < 845 else "cofw",
                name=f"{split}/{i + 1:04d}",
                source=f"{path}: face {i + 1}",
            )


def _open_mat(path):
    """The HDF5 file, or a UserError that tells an old-format .mat from a damaged or foreign file."""
    import h5py

    try:
        return h5py.File(path, "r")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        with open(path, "rb") as handle:
            old = handle.read(19) == b"MATLAB 5.0 MAT-file"
        if old:
            why = "an old .mat file (v5), but COFW is v7.3"
        else:
            why = f"not a readable v7.3 .mat file ({str(error).splitlines()[0][:80]})"
        raise _bad(path, why) from None


def _read(file, key, source):
    try:
        return file[key][()]
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise _bad(source, f"damaged ({str(error).splitlines()[0][:80]})") from None


def _cell_image(file, cell, reversed_axes, source):
    """One cell as (H, W, 3) uint8. COFW's colour files hold some 2-D grey images too."""
    array = _read(file, cell, source)
    if file[cell].attrs.get("MATLAB_empty"):  # then the values are the sizes
        raise _bad(source, "an empty cell")
    if (array.ndim == 2 and reversed_axes) or (array.ndim == 3 and array.shape[0] == 3):
        array = array.T
    if array.ndim == 2:
        array = np.repeat(array[:, :, None], 3, axis=2)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise _bad(source, f"{array.dtype} of shape {array.shape} is no 8-bit image")
    return np.ascontiguousarray(array)


def train_and_test(folder: AnyPath, name: str) -> Iterator[Sample]:
    """Samples of trainset/ and testset/."""
    folder = folder_with(folder, "trainset", "testset")
    for split in SPLITS:
        yield from map(sample, pts_folder(folder / f"{split}set", split, name, f"{name}/{split}set"))


def pts_folder(folder: AnyPath, split: str, subset: str, prefix: str) -> Iterator[Face]:
    """Faces of a folder that holds `x.pts` beside `x.png`, `x.jpg` or `x.jpeg`, in the order of the names."""
    marks = without_twins(folder, entries(place(folder), "*.pts"))
    if not marks:
        raise UserError(f"{folder}: no .pts files; each photo needs its points beside it")
    for mark in marks:
        beside = [mark.with_suffix(kind) for kind in (".png", ".jpg", ".jpeg")]
        photo = next((path for path in beside if path.exists()), None)
        if photo is None:
            raise _bad(mark, f"no photo {mark.stem}.png or .jpg beside it")
        yield Face(
            image=stored_pixels(photo),
            points=read_pts(mark),
            split=split,
            subset=subset,
            name=f"{prefix}/{mark.stem}",
            source=str(mark),
        )


def without_twins(folder: AnyPath, marks: list[AnyPath]) -> list[AnyPath]:
    """The .pts files without those of mirrored copies, `x_mirror.pts` beside `x.pts`; stderr says how many.

    Some copies of 300-W hold each face twice for training. Our training mirrors faces itself.
    """
    stems = {mark.stem for mark in marks}
    twins = {mark for mark in marks if mark.stem.endswith(MIRROR) and mark.stem.removesuffix(MIRROR) in stems}
    if twins:
        print(f"{folder}: a mirrored copy; {len(twins)} twins named *{MIRROR}.pts are left out", file=sys.stderr)
    return [mark for mark in marks if mark not in twins]


def read_pts(path: AnyPath, n_points: int = 68) -> np.ndarray:
    """Points of a .pts file as (n_points, 2) float64, 0-based.

    The file counts pixels from 1, as the 300-W page says (the top left pixel is x=1, y=1); we subtract 1.
    """
    text = storage.read_text(path, "restore it from its archive")
    head, brace, body = text.partition("{")
    body, end, _ = body.partition("}")
    if not brace or not end:
        raise _bad(path, "no point list between braces")
    try:
        said = int(head.split("n_points:")[1].split()[0])
        points = np.array([line.split() for line in body.split("\n") if line.strip()], dtype=float)
    except (IndexError, ValueError):
        raise _bad(path, f"not a .pts file (`n_points: {n_points}`, then lines of x y)") from None
    if points.ndim == 2 and points.shape[1] != 2:  # such as points in space
        raise _bad(path, f"{points.shape[1]} numbers a line, expected x y")
    if said != n_points or points.shape != (n_points, 2):
        raise _bad(path, f"header says {said} points, list has {len(points)}, expected {n_points}")
    if not np.isfinite(points).all():
        raise _bad(path, "a point is not a number")
    return points - 1


def lfpw_crops(folder: AnyPath) -> Iterator[Sample]:
    """Samples of the crop archive: 256x256 JPEGs and landmarks68.csv (file, size, crop side, x0, y0 .. y67).

    The JPEG bytes are kept. Measured against the raw photos, the points are (.pts - 1 - corner) * k with
    k = 256 / side, which forgets that a pixel's centre lies half a pixel inside it. In the resized crop the
    centre lands (k - 1) / 2 further (up to 0.3 px); with that added, points and pixels agree.
    """
    folder = place(folder)
    table = folder / "landmarks68.csv"
    listed = crop_table(table)
    for split in SPLITS:
        found = {f"{split}set/{p.name}" for p in entries(folder / f"{split}set", "*.jpg")}
        odd = found ^ {file for file in listed if file.startswith(f"{split}set/")}
        if odd:
            raise _bad(
                folder / min(odd), "listed but missing" if min(odd) in listed else "not listed in landmarks68.csv"
            )
    for file, (side, points) in listed.items():
        yield _lfpw_crop(folder, file, side, points, None, table)


def lfpw29(folder: AnyPath) -> Iterator[Sample]:
    """221 test faces of the crop archive in COFW's markup: lfpw29-test.csv beside landmarks68.csv and testset/.

    LFPW's own 35 points, the mean of three annotators, without those of the ears; in COFW's order, and with a flag that
    is above 0 where a point is hidden or unclear (file, then x, y and flag of each point, in the crop's pixels and by
    the convention of `lfpw_crops`). Corners of eyes and mouth lie a little up and left of iBUG's. No boxes.
    """
    folder = folder_with(place(folder), "landmarks68.csv", "lfpw29-test.csv")
    table = folder / "lfpw29-test.csv"
    sides = {file: side for file, (side, _) in crop_table(folder / "landmarks68.csv").items()}
    for file, values in points_table(table).items():
        if file not in sides:
            raise _bad(table, f"{file} is not in landmarks68.csv")
        yield _lfpw_crop(folder, file, sides[file], values[:, :2], values[:, 2] > 0, table)


def _lfpw_crop(folder, file, side, points, occluded, table):
    """The sample of a stored crop with points as its table has them."""
    path, k = folder / file, CROP / side
    encoded = path.read_bytes()
    size, _ = image_header(encoded, path)
    if size != (CROP, CROP):
        raise _bad(path, f"{size[0]}x{size[1]} pixels, expected {CROP}x{CROP}")
    points = points + (k - 1) / 2
    _check(points, None, CROP, CROP, f"{table}: {file}")
    split, name = file.split("set/")[0], f"lfpw/{Path(file).with_suffix('')}"
    return encoded, _row(points, None, occluded, split, "lfpw", name, side / CROP)


def points_table(path: AnyPath, n_points: int = 29) -> dict[str, np.ndarray]:
    """{file: (n_points, 3) x, y, flag} from lfpw29-test.csv."""
    listed = {}
    with storage.open_text(path, "restore it from its archive") as handle:
        rows = csv.reader(handle)
        if next(rows, []) != ["file", *(f"{a}{i}" for i in range(n_points) for a in "xyt")]:
            raise _bad(path, f"not a table of file, x0, y0, t0 .. t{n_points - 1}")
        for number, row in enumerate(rows, 2):
            try:
                listed[row[0]] = np.array(row[1:], dtype=float).reshape(n_points, 3)
            except (ValueError, IndexError):
                raise _bad(path, f"line {number} does not hold {n_points} points with flags") from None
            if not row[0].startswith("testset/"):
                raise _bad(path, f"line {number}: {row[0]!r} is no test face")
    return listed


def crop_table(path: AnyPath) -> dict[str, tuple[float, np.ndarray]]:
    """{file: (crop side in photo px, points (68, 2))} from landmarks68.csv."""
    listed = {}
    with storage.open_text(path, "restore it from its archive") as handle:
        rows = csv.reader(handle)
        header = next(rows, [])
        if header[:4] != ["file", "orig_w", "orig_h", "crop_side_px"] or len(header) != 140:
            raise _bad(path, "not a table of file, orig_w, orig_h, crop_side_px, x0 .. y67")
        for number, row in enumerate(rows, 2):
            try:
                side, points = float(row[3]), np.array(row[4:], dtype=float).reshape(68, 2)
            except (ValueError, IndexError):
                raise _bad(path, f"line {number} does not hold 68 points") from None
            if not side > 0 or row[0].split("/")[0] not in ("trainset", "testset"):
                raise _bad(path, f"line {number} has a bad file or crop side")
            listed[row[0]] = side, points
    return listed


def sample(face: Face) -> Sample:
    """(image, row) of a face: its square crop of 256x256 pixels and the labels in the crop's pixels.

    The square surrounds the landmarks and the official box, with side MARGIN times the larger side of their
    union and at least 256 px, so that nothing is ever enlarged. It is shifted, not shrunk, to stay inside the
    photo as long as it keeps the face; what still lies outside repeats the photo's edge. A square of 256 px
    keeps the photo's pixels, a larger one is reduced (antialiased bicubic). Pixel centres map to pixel centres.
    """
    height, width = face.image.shape[:2]
    _check(face.points, face.box, width, height, face.source)
    left, top, side = _square(face.points, face.box, width, height)
    k = CROP / side
    points, box = _to_crop(face.points, left, top, k), None
    if face.box is not None:
        box = np.append(_to_crop(face.box[:2], left, top, k), face.box[2:] * k)
    row = _row(points, box, face.occluded, face.split, face.subset, face.name, side / CROP)
    return _cut(face.image, left, top, side), row


def _to_crop(points: np.ndarray, left: int, top: int, k: float) -> np.ndarray:
    return (points + 0.5 - (left, top)) * k - 0.5


def _square(points: np.ndarray, box: np.ndarray | None, width: int, height: int) -> tuple[int, int, int]:
    """(left, top, side) in whole photo pixels."""
    corners = points if box is None else np.concatenate([points, [box[:2], box[:2] + box[2:]]])
    low, high = corners.min(0), corners.max(0)
    side = max(CROP, math.ceil(MARGIN * (high - low).max()))
    starts = []
    for lo, hi, extent in zip(low, high, (width, height), strict=True):
        start = round((lo + hi + 1 - side) / 2)
        start = np.clip(start, min(0, extent - side), max(0, extent - side))  # into the photo, if it fits,
        starts.append(int(np.clip(start, math.ceil(hi) + 1 - side, math.floor(lo))))  # with the whole face
    return starts[0], starts[1], side


def _cut(image: np.ndarray, left: int, top: int, side: int) -> np.ndarray:
    """The square as uint8 (256, 256, 3), the photo's edge repeated where the square leaves it."""
    from PIL import Image

    rows = np.clip(np.arange(top, top + side), 0, image.shape[0] - 1)
    columns = np.clip(np.arange(left, left + side), 0, image.shape[1] - 1)
    cut = image[rows[:, None], columns]
    if side > CROP:
        cut = np.asarray(Image.fromarray(cut).resize((CROP, CROP), Image.Resampling.BICUBIC))
    return cut


def _check(points: np.ndarray, box: np.ndarray | None, width: int, height: int, source: str) -> None:
    """Raise UserError unless the labels are numbers, the box has an area, and both meet the photo."""
    size = f"the {width}x{height} image"
    if not np.isfinite(points).all():
        raise _bad(source, "a point is not a number")
    if (points == points[0]).all():
        raise _bad(source, "all points coincide")
    if (points.max(0) < 0).any() or (points.min(0) > (width - 1, height - 1)).any():
        raise _bad(source, f"all points lie outside {size}")
    if box is None:
        return
    if not np.isfinite(box).all() or (box[2:] <= 0).any():
        raise _bad(source, f"box {np.round(box, 1).tolist()} has no area")
    if (box[:2] + box[2:] <= 0).any() or (box[:2] >= (width, height)).any():
        raise _bad(source, f"box {np.round(box, 1).tolist()} lies outside {size}")


def _row(
    points: np.ndarray,
    box: np.ndarray | None,
    occluded: np.ndarray | None,
    split: str,
    subset: str,
    name: str,
    scale: float,
) -> dict[str, Any]:
    """The labels of a stored crop."""
    return {
        "points": np.asarray(points, np.float32),
        "box": np.full(4, np.nan, np.float32) if box is None else np.asarray(box, np.float32),
        "occluded": np.zeros(len(points), bool) if occluded is None else np.asarray(occluded, bool),
        "split": np.uint8(SPLITS.index(split)),
        "scale": np.float32(scale),
        "subset": subset,
        "name": name,
    }


def _bad(source: AnyPath | str, what: str) -> UserError:
    return UserError(f"{source}: {what}; restore it from its archive")


def identity_files(folder: AnyPath) -> Iterator[tuple[AnyPath, str, int]]:
    """(path, name, identity) of a tree <identity>/<image>, identities numbered in sorted order.

    Raises UserError for a folder without identities and for an identity without an image.
    """
    folder = place(folder)
    people = [entry for entry in entries(folder) if entry.is_dir()] if folder.is_dir() else []
    if not people:
        raise UserError(f"{folder}: holds no identity folders; expected <identity>/<image>.jpg")
    for identity, person in enumerate(people):
        files = [file for file in entries(person) if file.suffix.lower() in IMAGES]
        if not files:
            raise UserError(f"{person}: an identity with no image; add its images or remove the folder")
        for file in files:
            yield file, f"{person.name}/{file.name}", identity
