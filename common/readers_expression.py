"""Readers of expression sets for common.data: FERPlus, RAF-DB and AffectNet in their official layouts.

They yield samples (image, row) for `common.pack.gather`. Classes are numbered as in common.emotions.
Every bad input raises UserError: one line with the file, what is wrong, and the remedy.
"""

import csv
import dataclasses
from pathlib import Path

import numpy as np

from common.cli import UserError
from common.emotions import AFFECTNET, FER2013_TO_FERPLUS, RAFDB, VOTES
from common.pack import encode, open_image
from common.readers import folder_with

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

    path: Path
    usage: list[str]  # a key of FERPLUS_FOLDERS
    name: list[str]  # "" for a picture that all annotators found to be no face
    votes: np.ndarray  # (R, 10) uint8, columns VOTES
    images: np.ndarray  # (N,) rows that stand for an image: named, and the first of that name

    def row(self, i, fer2013):
        """The pack's row of table row i; `fer2013` is FER2013's code of its label, -1 where unknown."""
        split = np.uint8(list(FERPLUS_FOLDERS).index(self.usage[i]))
        label = FER2013_TO_FERPLUS[fer2013] if fer2013 >= 0 else np.int8(-1)
        return {"name": self.name[i], "split": split, "votes": self.votes[i], "fer2013": label}


def ferplus(folder):
    """Samples of FERPlus: 48x48 grey faces, rows {name, split, votes, fer2013}, in the order of the vote table.

    fer2013new.csv holds the votes. The pictures come from FER2013Train/, FER2013Valid/ and FER2013Test/ (then the
    FER2013 labels from fer2013_labels.csv, else -1) or from fer2013.csv (or icml_face_data.csv). `fer2013` is in the
    order of EMOTIONS. Equal pixels give an equal pack from either: all but lossless WebP is stored anew as that.
    """
    table = read_votes(folder_with(folder, "fer2013new.csv") / "fer2013new.csv")
    pixels = next((file for file in ("fer2013.csv", "icml_face_data.csv") if _holds(folder, file)), None)
    if _holds(folder, *FERPLUS_FOLDERS.values()):
        yield from _ferplus_folders(folder_with(folder, *FERPLUS_FOLDERS.values()), table, folder)
    elif pixels:
        yield from _ferplus_pixels(folder_with(folder, pixels) / pixels, table)
    else:
        needs = f"{', '.join(FERPLUS_FOLDERS.values())} or fer2013.csv"
        raise UserError(f"{table.path}: votes without images; put {needs} beside it")


def _holds(folder, *patterns):
    try:
        folder_with(folder, *patterns)
    except UserError:
        return False
    return True


def read_votes(path):
    """The VoteTable of fer2013new.csv. Raises UserError for missing columns, wrong votes and repeated names."""
    usage, names, votes = [], [], []
    for number, line in _lines(path, ("Usage", "Image name", *VOTES)):
        try:
            cast = [int(line[column]) for column in VOTES]
        except (TypeError, ValueError):
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


def _lines(path, columns):
    """(line number, {column: text}) of a CSV that must have `columns`; blanks around a column's name do not matter."""
    with open(path, newline="", errors="replace") as handle:
        reader = csv.DictReader(handle)
        reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        missing = [column for column in columns if column not in reader.fieldnames]
        if missing:
            raise UserError(f"{path}: no column {', '.join(missing)} in its first line; fetch the table again")
        for line in reader:
            yield reader.line_num, line


def _first_rows(path, names):
    """(N,) the rows with a name, without those that repeat one of the four known names."""
    first = {}
    for row, name in enumerate(names):
        if name and first.setdefault(name, row) != row and name not in FERPLUS_REPEATED:
            raise UserError(
                f"{path}: rows {first[name]} and {row} both name {name}, which the official table does not; "
                "fetch the table again"
            )
    return np.array(list(first.values()), np.int64)


def _ferplus_folders(images, table, folder):
    """Samples from the three image folders; every named row has its file and every file its row."""
    wanted = {(FERPLUS_FOLDERS[table.usage[i]], Path(table.name[i]).stem): i for i in table.images}
    files = {}
    for part in FERPLUS_FOLDERS.values():
        for path in (images / part).iterdir():
            if path.suffix.lower() in IMAGES and files.setdefault((part, path.stem), path) != path:
                raise UserError(f"{path}: {files[part, path.stem].name} has the same name; remove one of them")
    _same_names(images, table.path, files.keys(), wanted.keys())
    known = _fer2013_labels(folder, len(table.name))
    for key, i in wanted.items():
        yield _grey_webp(files[key]), table.row(i, known[i])


def _same_names(images, table, files, rows):
    for names, what in ((rows - files, "rows without an image"), (files - rows, "images without a row")):
        if names:
            raise UserError(
                f"{images}: {len(names)} {what} in {table.name}, e.g. {'/'.join(min(names))}; "
                "restore images and table from one release"
            )


def _fer2013_labels(folder, n):
    """(n,) FER2013's codes by row of the vote table, from fer2013_labels.csv; -1 everywhere without that file."""
    if not _holds(folder, "fer2013_labels.csv"):
        return np.full(n, -1)
    path = folder_with(folder, "fer2013_labels.csv") / "fer2013_labels.csv"
    try:
        pairs = [(int(line["row"]), int(line["fer2013_label"])) for _, line in _lines(path, ("row", "fer2013_label"))]
    except (TypeError, ValueError):
        raise UserError(f"{path}: a value is no number; restore it from its archive") from None
    if [row for row, _ in pairs] != list(range(n)) or not all(0 <= code <= 6 for _, code in pairs):
        raise UserError(f"{path}: expected rows 0..{n - 1} in order, labels 0..6; restore it from its archive")
    return np.array([code for _, code in pairs])


def _grey_webp(path):
    """The bytes of a WebP as they are, any other image as lossless WebP of its grey pixels."""
    data = path.read_bytes()
    image = open_image(data, path)
    if image.size != (FERPLUS_PX, FERPLUS_PX):
        raise UserError(f"{path}: {image.size[0]}x{image.size[1]} px, expected 48x48; restore it from its archive")
    return data if image.format == "WEBP" else encode(np.asarray(image.convert("L")), effort=2)


def _ferplus_pixels(path, table):
    """Samples from fer2013.csv: the FER2013 code, 2,304 grey values and the part of each row."""
    images, rows = set(table.images.tolist()), 0
    for i, (number, line) in enumerate(_lines(path, ("emotion", "pixels", "Usage"))):
        if i >= len(table.name) or line["Usage"] != table.usage[i]:
            raise UserError(f"{path}: line {number} is not row {i} of {table.path.name}; both tables must be complete")
        if i in images:
            yield encode(_pixels(path, number, line["pixels"]), effort=2), table.row(i, _code(path, number, line))
        rows += 1
    if rows != len(table.name):
        raise UserError(f"{path}: {rows} rows, but {table.path.name} has {len(table.name)}; obtain it again")


def _code(path, number, line):
    if line["emotion"] not in set("0123456"):
        raise UserError(f"{path}: line {number} has emotion {line['emotion']!r}, not 0..6; obtain the table again")
    return int(line["emotion"])


def _pixels(path, number, text):
    """uint8 (48, 48) of a string of 2,304 values."""
    try:
        values = np.array((text or "").split(), np.int64)
    except (ValueError, OverflowError):
        raise UserError(f"{path}: line {number} has a pixel that is no number; obtain the table again") from None
    if len(values) != FERPLUS_PX**2 or values.min() < 0 or values.max() > 255:
        raise UserError(f"{path}: line {number} does not hold 2304 pixels of 0..255; obtain the table again")
    return values.astype(np.uint8).reshape(FERPLUS_PX, FERPLUS_PX)
