"""Readers of face-attribute sets for data.sets: UTKFace, FairFace and CelebA in their official layouts.

They yield samples (image, row) for `data.pack.gather`; the images' bytes are kept. The labels are what annotators
saw in a photo, in fixed bins, not what a person is. Every bad input raises UserError: one line with the file, what is
wrong, and the remedy.
"""

import re
import sys
from collections.abc import Iterator

import numpy as np

from facepapers.common.cli import UserError
from facepapers.common.data.archive import AnyPath, entries
from facepapers.common.data.pack import Sample
from facepapers.common.data.readers.files import check_same_names, find_file, folder_with, table_lines, text_lines

GENDER = ("male", "female")

# ------------------------------------------------------------------------------------------------ UTKFace

UTKFACE_ETHNICITY = ("White", "Black", "Asian", "Indian", "Other")
UTKFACE_AGES = range(117)
# [age]_[gender]_[race]_[date&time].jpg; the aligned and cropped faces end in .jpg.chip.jpg
UTKFACE_NAME = re.compile(r"(\d{1,3})_([01])_([0-4])_\d+\.jpg(?:\.chip\.jpg)?")


def utkface(folder: AnyPath) -> Iterator[Sample]:
    """Samples of UTKFace, rows {name, age in years, gender, ethnicity}, in the order of the names.

    Files whose name does not tell all three labels (five of the official 23,707), or an age outside 0..116, are left
    out and reported on stderr in one line.
    """
    folder = folder_with(folder, "[0-9]*_*_*.jpg")
    files = entries(folder, "*.jpg")
    labels = {path: utkface_labels(path.name) for path in files}
    odd = [path.name for path, found in labels.items() if found is None]
    if len(odd) == len(files):
        raise UserError(f"{folder}: none of {len(odd)} files is named [age]_[gender]_[race]_[time].jpg, e.g. {odd[0]}")
    if odd:
        print(_skipped(folder, odd, len(files)), file=sys.stderr)
    for path, found in labels.items():
        if found is not None:
            age, gender, ethnicity = map(np.uint8, found)
            yield path.read_bytes(), {"name": path.name, "age": age, "gender": gender, "ethnicity": ethnicity}


def utkface_labels(name: str) -> tuple[int, ...] | None:
    """(age in years, gender, ethnicity) that an official file name tells, or None."""
    match = UTKFACE_NAME.fullmatch(name)
    found = tuple(map(int, match.groups())) if match else None
    return found if found and found[0] in UTKFACE_AGES else None


def _skipped(folder: AnyPath, names: list[str], total: int) -> str:
    shown = ", ".join(repr(name) for name in names[:5]) + (", ..." if len(names) > 5 else "")
    return (
        f"{folder.name}: {len(names)} of {total} files left out, their names do not tell age 0..116, gender 0..1 and "
        f"race 0..4: {shown}"
    )


# ----------------------------------------------------------------------------------------------- FairFace

FAIRFACE_AGE = ("0-2", "3-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69", "more than 70")
FAIRFACE_ETHNICITY = (
    "White",
    "Black",
    "Latino_Hispanic",
    "East Asian",
    "Southeast Asian",
    "Indian",
    "Middle Eastern",
)
FAIRFACE_SPLITS = ("train", "val")
_FAIRFACE_CLASSES = {"age": FAIRFACE_AGE, "gender": ("Male", "Female"), "race": FAIRFACE_ETHNICITY}


def fairface(folder: AnyPath) -> Iterator[Sample]:
    """Samples of FairFace, rows {name, split, age (bin), gender, ethnicity}; split 0 train, 1 val.

    fairface_label_train.csv and fairface_label_val.csv (file, age, gender, race, ...) name train/1.jpg, val/1.jpg, ...
    """
    tables = folder_with(folder, *(f"fairface_label_{split}.csv" for split in FAIRFACE_SPLITS))
    images = folder_with(folder, *FAIRFACE_SPLITS)
    for split, part in enumerate(FAIRFACE_SPLITS):
        table = tables / f"fairface_label_{part}.csv"
        rows = _fairface_rows(table)
        files = {f"{part}/{path.name}" for path in entries(images / part, "*.jpg")}
        check_same_names(images, files, table, rows.keys())
        for name, (age, gender, ethnicity) in rows.items():
            labels = {"age": np.int8(age), "gender": np.uint8(gender), "ethnicity": np.uint8(ethnicity)}
            yield (images / name).read_bytes(), {"name": name, "split": np.uint8(split), **labels}


def _fairface_rows(path: AnyPath) -> dict[str, list[int]]:
    """{file: [age bin, gender, ethnicity]}."""
    rows = {}
    for number, line in table_lines(path, ("file", *_FAIRFACE_CLASSES)):
        for column, classes in _FAIRFACE_CLASSES.items():
            if line[column] not in classes:
                where = f"{path}: line {number} has {column} {line[column]!r}"
                raise UserError(f"{where}, not one of {', '.join(classes)}; fetch the table again")
        if line["file"] in rows:
            raise UserError(f"{path}: line {number} names {line['file']} again; fetch the table again")
        rows[line["file"]] = [classes.index(line[column]) for column, classes in _FAIRFACE_CLASSES.items()]
    return rows


# ------------------------------------------------------------------------------------------------- CelebA

CELEBA_ATTRIBUTES = 40
_CELEBA_TYPES = {"split": np.uint8, "identity": np.int32}


def celeba(folder: AnyPath) -> Iterator[Sample]:
    """Samples of CelebA, rows {name, split, attributes (40,), identity}; then `attribute_names` (40,) of the set.

    Needs img_align_celeba/ (178x218 JPEGs), list_attr_celeba.txt and list_eval_partition.txt (0 train, 1 valid,
    2 test). attributes: int8, 1 present, 0 absent. `identity` (the file's number) only with identity_CelebA.txt.
    """
    images = folder_with(folder, "img_align_celeba") / "img_align_celeba"
    table = folder_with(folder, "list_attr_celeba.txt") / "list_attr_celeba.txt"
    names, attributes = _celeba_attributes(table)
    columns = {"split": _celeba_numbers(folder_with(folder, "list_eval_partition.txt") / "list_eval_partition.txt", 3)}
    if identities := find_file(folder, "identity_CelebA.txt"):
        columns["identity"] = _celeba_numbers(identities, np.iinfo(np.int32).max)
    files = {path.name for path in entries(images, "*.jpg")}
    check_same_names(images, files, table, attributes.keys())
    for what, column in columns.items():
        check_same_names(images, files, f"the list of {what}", column.keys())
    for name, present in attributes.items():
        numbers = {what: _CELEBA_TYPES[what](column[name]) for what, column in columns.items()}
        yield (images / name).read_bytes(), {"name": name, "attributes": present, **numbers}
    yield None, {"attribute_names": np.array(names)}


def _celeba_attributes(path: AnyPath) -> tuple[list[str], dict[str, np.ndarray]]:
    """(40 names, {file: int8 (40,)}) of list_attr_celeba.txt: a count, a line of names, lines of a file and -1 or 1."""
    count, header, *body = [*text_lines(path), "", ""]
    names, lines = header.split(), [line.split() for line in body if line.strip()]
    if len(names) != CELEBA_ATTRIBUTES or count.strip() != str(len(lines)):
        said = f"{count[:20]!r} files and {len(names)} attributes announced, {len(lines)} lines found"
        raise UserError(f"{path}: {said}; expected {CELEBA_ATTRIBUTES} attributes and as many lines; fetch it again")
    for number, (file, *values) in enumerate(lines, 3):
        if len(values) != CELEBA_ATTRIBUTES or not set(values) <= {"-1", "1"}:
            raise UserError(f"{path}: line {number} ({file}) does not hold 40 values of -1 or 1; fetch it again")
    return names, {file: np.array([value == "1" for value in values], np.int8) for file, *values in lines}


def _celeba_numbers(path: AnyPath, below: int) -> dict[str, int]:
    """{file: number} of lines `000001.jpg 0`, numbers in 0 .. below - 1."""
    numbers = {}
    for row, line in enumerate(text_lines(path), 1):
        file, _, number = line.strip().partition(" ")
        if not number.isascii() or not number.isdigit() or int(number) >= below or file in numbers:
            raise UserError(f"{path}: line {row} is not a new file and a number below {below}; fetch it again")
        numbers[file] = int(number)
    return numbers
