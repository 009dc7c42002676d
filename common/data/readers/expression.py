"""Readers of expression sets for data.sets: FERPlus, RAF-DB and AffectNet in their official layouts.

They yield samples (image, row) for `data.pack.gather`. Classes are numbered as in data.expressions.
Every bad input raises UserError: one line with the file, what is wrong, and the remedy.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from facepapers.common import storage
from facepapers.common.cli import UserError
from facepapers.common.data.archive import AnyPath, entries
from facepapers.common.data.expressions import AFFECTNET, FER2013_TO_FERPLUS, VOTES
from facepapers.common.data.pack import Sample, encode
from facepapers.common.data.photos import image_header, open_image, shown
from facepapers.common.data.readers.files import (
    check_same_names,
    find_file,
    find_folder,
    folder_with,
    table_lines,
    text_lines,
)

IMAGES = {".jpg", ".jpeg", ".png", ".webp"}

# ------------------------------------------------------------------------------------------------ FERPlus

FERPLUS_PX = 48
FERPLUS_FOLDERS = {"Training": "FER2013Train", "PublicTest": "FER2013Valid", "PrivateTest": "FER2013Test"}
# Two rows of fer2013new.csv bear each of these names (0-based rows 5274 and 6968, 8423 and 15835, 5348 and 11817,
# 33200 and 34334). The first row counts: its votes, its FER2013 label and, from fer2013.csv, its pixels.
FERPLUS_REPEATED = {"fer0006953.png", "fer0008403.png", "fer0011785.png", "fer0033120.png"}
VOTERS = (9, 10)  # ten annotators a row; one row of the official table has nine votes


@dataclasses.dataclass(frozen=True, eq=False)
class VoteTable:
    """fer2013new.csv with R rows, which are those of fer2013.csv in its order."""

    path: AnyPath
    usage: list[str]  # a key of FERPLUS_FOLDERS
    name: list[str]  # "" for a picture that all annotators found to be no face
    votes: np.ndarray  # (R, 10) uint8, columns VOTES
    images: np.ndarray  # (N,) rows that stand for an image: named, and the first of that name

    def row(self, i: int, fer2013: int) -> dict[str, Any]:
        """The pack's row of table row i; `fer2013` is FER2013's code of its label, -1 where unknown."""
        split = np.uint8(list(FERPLUS_FOLDERS).index(self.usage[i]))
        label = FER2013_TO_FERPLUS[fer2013] if fer2013 >= 0 else np.int8(-1)
        return {"name": self.name[i], "split": split, "votes": self.votes[i], "fer2013": label}


def ferplus(folder: AnyPath) -> Iterator[Sample]:
    """Samples of FERPlus: 48x48 grey faces, rows {name, split, votes, fer2013}, in the order of the vote table.

    fer2013new.csv holds the votes. The pictures come from FER2013Train/, FER2013Valid/ and FER2013Test/ (then the
    FER2013 labels from fer2013_labels.csv, -1 without it) or from fer2013.csv (or icml_face_data.csv); `fer2013` is in
    the order of EMOTIONS. Equal pixels give equal packs: whatever is no WebP is stored anew as lossless WebP.
    """
    table = read_votes(folder_with(folder, "fer2013new.csv") / "fer2013new.csv")
    folders = FERPLUS_FOLDERS.values()
    if images := find_folder(folder, *folders):
        yield from _ferplus_folders(images, table, find_file(folder, "fer2013_labels.csv"))
    elif pixels := find_file(folder, "fer2013.csv", "icml_face_data.csv"):
        yield from _ferplus_pixels(pixels, table)
    else:
        raise UserError(f"{table.path}: votes without images; put {', '.join(folders)} or fer2013.csv beside it")


def read_votes(path: AnyPath) -> VoteTable:
    """The VoteTable of fer2013new.csv. Raises UserError for missing columns, wrong votes and repeated names."""
    usage, names, votes = [], [], []
    for number, line in table_lines(path, ("Usage", "Image name", *VOTES)):
        try:
            cast = [int(line[column]) for column in VOTES]
        except ValueError:
            raise UserError(f"{path}: line {number} has a vote that is no number; fetch the table again") from None
        if min(cast) < 0 or sum(cast) not in VOTERS:
            raise UserError(f"{path}: line {number} has {sum(cast)} votes, expected ten; fetch the table again")
        if line["Usage"] not in FERPLUS_FOLDERS:
            known = ", ".join(FERPLUS_FOLDERS)
            raise UserError(f"{path}: line {number} has Usage {line['Usage']!r}, not one of {known}; fetch it again")
        usage.append(line["Usage"])
        names.append(line["Image name"].strip())
        votes.append(cast)
    return VoteTable(path, usage, names, np.array(votes, np.uint8), _first_rows(path, names))


def _first_rows(path: AnyPath, names: list[str]) -> np.ndarray:
    """(N,) the rows with a name, without those that repeat one of the four known names."""
    first: dict[str, int] = {}
    for row, name in enumerate(names):
        if name and first.setdefault(name, row) != row and name not in FERPLUS_REPEATED:
            raise UserError(
                f"{path}: rows {first[name]} and {row} both name {name}, which the official table does not; "
                "fetch the table again"
            )
    return np.array(list(first.values()), np.int64)


def _ferplus_folders(images: AnyPath, table: VoteTable, labels: AnyPath | None) -> Iterator[Sample]:
    """Samples from the three image folders; every named row has its file and every file its row."""
    wanted = {f"{FERPLUS_FOLDERS[table.usage[i]]}/{Path(table.name[i]).stem}": i for i in table.images}
    files: dict[str, AnyPath] = {}
    for part in FERPLUS_FOLDERS.values():
        for path in entries(images / part):
            name = f"{part}/{path.stem}"
            if path.suffix.lower() in IMAGES and files.setdefault(name, path) != path:
                raise UserError(f"{path}: the same name as {files[name].name}; remove one of them")
    check_same_names(images, files.keys(), table.path, wanted.keys())
    known = np.full(len(table.name), -1) if labels is None else _fer2013_labels(labels, len(table.name))
    for name, i in wanted.items():
        yield _grey_webp(files[name]), table.row(i, known[i])


def _fer2013_labels(path: AnyPath, n: int) -> np.ndarray:
    """(n,) FER2013's codes by row of the vote table, from fer2013_labels.csv."""
    try:
        lines = table_lines(path, ("row", "fer2013_label"))
        pairs = [(int(line["row"]), int(line["fer2013_label"])) for _, line in lines]
    except ValueError:
        raise UserError(f"{path}: a value is no number; restore it from its archive") from None
    if [row for row, _ in pairs] != list(range(n)) or not all(0 <= code <= 6 for _, code in pairs):
        raise UserError(f"{path}: expected rows 0..{n - 1} in order, labels 0..6; restore it from its archive")
    return np.array([code for _, code in pairs])


def _grey_webp(path: AnyPath) -> bytes:
    """The bytes of a WebP as they are, any other image as lossless WebP of its grey pixels."""
    data = path.read_bytes()
    size, kind = image_header(data, path)
    if size != (FERPLUS_PX, FERPLUS_PX):
        raise UserError(f"{path}: {size[0]}x{size[1]} px, expected 48x48; restore it from its archive")
    return data if kind == "WEBP" else encode(np.asarray(shown(open_image(data, path), path, "L")), effort=2)


def _ferplus_pixels(path: AnyPath, table: VoteTable) -> Iterator[Sample]:
    """Samples from fer2013.csv: the FER2013 code, 2,304 grey values and the part of each row."""
    images, rows = set(table.images.tolist()), 0
    for i, (number, line) in enumerate(table_lines(path, ("emotion", "pixels", "Usage"))):
        if i >= len(table.name) or line["Usage"] != table.usage[i]:
            raise UserError(f"{path}: line {number} is not row {i} of {table.path.name}; both tables must be complete")
        if i in images:
            yield encode(_pixels(path, number, line["pixels"]), effort=2), table.row(i, _code(path, number, line))
        rows += 1
    if rows != len(table.name):
        raise UserError(f"{path}: {rows} rows, but {table.path.name} has {len(table.name)}; obtain it again")


def _code(path: AnyPath, number: int, line: dict[str, str]) -> int:
    if line["emotion"] not in set("0123456"):
        raise UserError(f"{path}: line {number} has emotion {line['emotion']!r}, not 0..6; obtain the table again")
    return int(line["emotion"])


def _pixels(path: AnyPath, number: int, text: str) -> np.ndarray:
    """uint8 (48, 48) of a string of 2,304 values."""
    try:
        values = np.array(text.split(), np.int64)
    except (ValueError, OverflowError):
        raise UserError(f"{path}: line {number} has a pixel that is no number; obtain the table again") from None
    if len(values) != FERPLUS_PX**2 or values.min() < 0 or values.max() > 255:
        raise UserError(f"{path}: line {number} does not hold 2304 pixels of 0..255; obtain the table again")
    return values.astype(np.uint8).reshape(FERPLUS_PX, FERPLUS_PX)


# ------------------------------------------------------------------------------------------------- RAF-DB

RAFDB_PX = 100


def rafdb(folder: AnyPath) -> Iterator[Sample]:
    """Samples of RAF-DB's basic part, rows {name, split, label}: aligned 100x100 faces; split 0 train, 1 test.

    list_patition_label.txt (its official spelling) has lines `train_00001.jpg 5`; the picture is then
    train_00001_aligned.jpg. `label` is the file's code minus 1, the order of expressions.RAFDB.
    """
    table = folder_with(folder, "list_patition_label.txt") / "list_patition_label.txt"
    images = folder_with(folder, "train_*_aligned.jpg")
    listed = _rafdb_labels(table)
    files = {path.name.replace("_aligned", "") for path in entries(images, "*_aligned.jpg")}
    check_same_names(images, files, table, listed.keys())
    for name, label in listed.items():
        path = images / name.replace(".jpg", "_aligned.jpg")
        data = path.read_bytes()
        size, _ = image_header(data, path)
        if size != (RAFDB_PX, RAFDB_PX):
            raise UserError(f"{path}: {size[0]}x{size[1]} px, expected 100x100; restore it from aligned.zip")
        yield data, {"name": name, "split": np.uint8(name.startswith("test")), "label": np.int8(label)}


def _rafdb_labels(path: AnyPath) -> dict[str, int]:
    """{file name: label 0..6} from lines `train_00001.jpg 5`."""
    labels: dict[str, int] = {}
    for number, line in enumerate(text_lines(path), 1):
        name, _, code = line.strip().partition(" ")
        if not name.startswith(("train_", "test_")) or code not in set("1234567"):
            raise UserError(f"{path}: line {number} is not `train_00001.jpg 5` with a code 1..7; restore the file")
        if labels.setdefault(name, int(code) - 1) != int(code) - 1 or len(labels) < number:
            raise UserError(f"{path}: line {number} names {name} again; restore the file")
    return labels


# ---------------------------------------------------------------------------------------------- AffectNet


def affectnet(folder: AnyPath) -> Iterator[Sample]:
    """Samples of AffectNet's release of cropped faces, rows {name, split, label}; split 0 train, 1 valid.

    train_set/ and val_set/ hold images/0.jpg, ... (224x224) and annotations/0_exp.npy, ... `label` is the code of the
    file, the order of expressions.AFFECTNET; the release of seven classes has none above 6.
    """
    folder = folder_with(folder, "train_set", "val_set")
    for split, part in enumerate(("train_set", "val_set")):
        images, notes = folder / part / "images", folder / part / "annotations"
        files = {path.stem for path in entries(images, "*.jpg")}
        check_same_names(images, files, notes, {path.stem.removesuffix("_exp") for path in entries(notes, "*_exp.npy")})
        for stem in sorted(files):
            row = {"name": f"{part}/{stem}.jpg", "split": np.uint8(split), "label": _exp(notes / f"{stem}_exp.npy")}
            yield (images / f"{stem}.jpg").read_bytes(), row


def _exp(path: AnyPath) -> np.int8:
    """The class in an _exp.npy file, a text or a number, as int8."""
    try:
        code = int(storage.read_array(path, "restore it from its archive").item())
    except ValueError as error:
        raise UserError(f"{path}: no expression code ({str(error)[:60]}); restore it from its archive") from None
    if code not in range(len(AFFECTNET)):
        raise UserError(f"{path}: code {code} is none of 0..{len(AFFECTNET) - 1}; restore it from its archive")
    return np.int8(code)
