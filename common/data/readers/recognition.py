"""Readers of face-recognition sets for data.sets: identity folders and Labeled Faces in the Wild (LFW).

They yield samples (image, row) for `data.pack.gather`. LFW's pack also holds its protocols and so suffices alone:
`split` and `people_set` per image, and three lists of pairs as rows (left image, right image, same, fold).
Every bad input raises UserError: one line with the file, what is wrong, and the remedy.
"""

import csv
import sys
from collections.abc import Callable, Iterator

import numpy as np
import torch

from facepapers.common.cli import UserError
from facepapers.common.data.archive import AnyPath
from facepapers.common.data.pack import Sample
from facepapers.common.data.photos import open_image, read_photo, upright_sample
from facepapers.common.data.readers.alignment import identity_files
from facepapers.common.data.readers.files import folder_with
from facepapers.common.protocols import pair_lists
from facepapers.common.vision import alignment, mtcnn

ALIGNED_PX = 112
SAMPLED = 32  # aligned faces whose fit is looked at
OFF_PX = 1.5  # median distance off the template that is told: right crops have 0.9, see mtcnn.off_template_px


def identity_folder(folder: AnyPath) -> Iterator[Sample]:
    """Samples of a user's tree <identity>/<image>, upright: row {name, identity}."""
    for path, name, identity in identity_files(folder):
        yield upright_sample(path), {"name": name, "identity": identity}


def lfw(folder: AnyPath) -> Iterator[Sample]:
    """Samples of LFW with rows {name, identity, split, people_set}, then its pairs.

    Reads lfw/<person>/<person>_NNNN.jpg (or lfw-deepfunneled/, lfw_funneled/, ...) and the six protocol files. split 0
    is View 1's DevTrain, 1 its DevTest; people_set 0..9 is View 2's. Faces of 112 px are taken as aligned; larger
    photos are aligned by the five points of landmarks.csv. Raises UserError when images and protocol disagree.
    """
    protocols = folder_with(folder, "peopleDevTrain.txt", "peopleDevTest.txt", "people.txt", "pairs.txt")
    people = [pair_lists.read_people(protocols / f"peopleDev{part}.txt")[0] for part in ("Train", "Test")]
    sets = {name: k for k, part in enumerate(pair_lists.read_people(protocols / "people.txt")) for name in part}
    images = folder_with(folder, "Aaron_Peirsol")
    points = five_points(folder, images)
    expected = people[0] | people[1]
    found: dict[str, int] = {}
    names: list[str] = []
    files = list(identity_files(images))
    if points is None:
        say_fit(images, len(files), lambda k: read_photo(files[k][0]))
    for path, name, identity in files:
        person = path.parent.name
        found[person] = found.get(person, 0) + 1
        names.append(name)
        image = path.read_bytes() if points is None else aligned(path, points.get(name))
        split = np.uint8(person in people[1])
        yield image, {"name": name, "identity": identity, "split": split, "people_set": np.uint8(sets.get(person, 255))}
    _check_people(images, protocols, expected, found)
    parts = {"pairs": "pairs", "pairs_devtrain": "pairsDevTrain", "pairs_devtest": "pairsDevTest"}
    yield None, {key: _pairs(protocols / f"{file}.txt", names) for key, file in parts.items()}


def _pairs(path: AnyPath, names: list[str]) -> np.ndarray:
    """(P, 4) int32: positions of the left and right image in `names`, 1 for the same person, fold."""
    pairs = pair_lists.read_pairs(path)
    left, right = pair_lists.index_pairs(pairs, names, path)
    return np.stack([left, right, pairs.same, pairs.fold], 1).astype(np.int32)


def _check_people(images: AnyPath, protocols: AnyPath, expected: dict[str, int], found: dict[str, int]) -> None:
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name, 0) != found.get(name, 0))
    if wrong:
        have, want = found.get(wrong[0], 0), expected.get(wrong[0], 0)
        raise UserError(
            f"{images}: {len(wrong)} people differ from the protocol ({protocols.name}/peopleDev*.txt), e.g. "
            f"{wrong[0]}: {have} images, not {want}; fetch both again"
        )


def five_points(folder: AnyPath, images: AnyPath) -> dict[str, np.ndarray] | None:
    """None for aligned faces; else {name: (5, 2)} of landmarks.csv (file, probability, then x and y five times).

    `images` is the tree <identity>/<image>, whose first image tells. UserError without that file, or for a bad line.
    """
    first = next(path for path, _, _ in identity_files(images))
    size = open_image(first).size
    if size == (ALIGNED_PX, ALIGNED_PX):
        return None
    try:
        path = folder_with(folder, "landmarks.csv") / "landmarks.csv"
    except UserError:
        raise UserError(
            f"{first}: {size[0]}x{size[1]} px, not aligned to {ALIGNED_PX}; put landmarks.csv with five points a photo "
            "beside it (`python -m facepapers.common.tools.align` writes one with MTCNN)"
        ) from None
    return read_points(path)


def read_points(path: AnyPath) -> dict[str, np.ndarray]:
    """{name: (5, 2)} of a landmarks.csv. Raises UserError for a bad line."""
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as handle:
        rows = list(csv.reader(handle))[1:]
    points = {}
    for number, row in enumerate(rows, start=2):
        if not row:
            continue  # a blank line
        try:
            points[row[0]] = np.array(row[2:12], float).reshape(5, 2)
        except (ValueError, IndexError):
            raise UserError(
                f"{path}:{number}: expected file, probability and ten numbers, found {','.join(row)[:60]!r}; "
                "make it again by `python -m facepapers.common.tools.align`"
            ) from None
    return points


def aligned(path: AnyPath, points: np.ndarray | None) -> np.ndarray:
    """A photo as uint8 (112, 112, 3), by its points (5, 2) in the upright picture. UserError where these are None."""
    if points is None:
        raise UserError(
            f"landmarks.csv: has no line for {path} (no face was found there?); add one, align the photos anew, or "
            "remove the photo"
        )
    return alignment.align(read_photo(path)[None], points[None], ALIGNED_PX)[0].permute(1, 2, 0).numpy()


def say_fit(where: AnyPath | str, count: int, face: Callable[[int], torch.Tensor]) -> None:
    """Say in one line on stderr when aligned faces look as if another fit than ours had made them.

    face(k) is one of the `count` faces, uint8 (3, S, S); a few are looked at, spread evenly, and only where MTCNN's
    weights are on this machine. Verification loses by crops that are made otherwise (papers/arcface/NOTES.md).
    """
    detector = mtcnn.installed(min_face_px=60)
    if detector is None or not count:
        return
    chosen = np.linspace(0, count - 1, min(count, SAMPLED)).astype(int)
    off = mtcnn.off_template_px([face(int(k)) for k in chosen], detector)
    if off is not None and off > OFF_PX:
        print(
            f"{where}: {len(chosen)} of its faces lie {off:.1f} px off the template in the median (about 1 is usual): "
            "another fit or template? align the photos anew by `python -m facepapers.common.tools.align`",
            file=sys.stderr,
        )


def read_in_place(folder: AnyPath) -> Iterator[Sample]:
    """The reader of sets too large to prepare: always a UserError that says how they are used."""
    raise UserError(
        f"{folder}: is read where it lies, nothing to prepare; `python -m facepapers.papers.arcface.train --help`"
    )
    yield
