"""What the commands share that compare people: one face of each photo, distances, a threshold with its error rates."""

import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from facepapers.common import storage
from facepapers.common.cli import UserError
from facepapers.common.data.photos import read_photo
from facepapers.common.evidence import runs
from facepapers.common.prediction import command, drawing, files
from facepapers.common.prediction.finding import Faces, Finder
from facepapers.common.protocols import verification
from facepapers.common.training import released
from facepapers.common.vision import mtcnn

STATEMENT = (
    "A distance says how alike a network finds two pictures, not who is on them. The error rates were measured on the "
    "pairs named and are higher on other photos and for some groups of people; decide nothing about anybody by them."
)
SHOWN = 8  # faces in a picture at most


class Seen(NamedTuple):
    """What a network made of F faces of a photo."""

    crops: torch.Tensor  # (F, 3, S, S) uint8, as the network saw them
    embeddings: torch.Tensor  # (F, d) of unit length


Embed = Callable[[torch.Tensor, Faces], Seen]  # of a photo (3, H, W) uint8 and some of its faces


@dataclass(frozen=True)
class Options:
    """Where the faces are and what is written. Without --box and --whole a detector finds them: `make data-mtcnn`."""

    at: Literal["accuracy", "low_false_accepts"] = "accuracy"  # fewest errors, or 1 % false accepts at most
    threshold: float | None = None  # squared distance, 0 to 4, in place of a recorded one
    box: str | None = None  # X,Y,W,H of the face in pixels, the same in every photo
    whole: bool = False  # each photo is an aligned face crop
    mtcnn: Path | None = None  # folder of the detector's networks, if not that of `make data-mtcnn`
    out: Path | None = None  # folder of what is written; without it the first photo's
    picture: bool = True  # also write a picture of the faces as the network saw them
    device: str = "auto"  # auto (a GPU where there is one), cpu or cuda


class Threshold(NamedTuple):
    """Pairs below it are called the same person; error rates in percent, where known, and where they come from."""

    value: float
    false_accepts_pct: float | None = None
    false_rejects_pct: float | None = None
    source: str = "--threshold"


class Person(NamedTuple):
    """The face of a photo that is compared."""

    photo: Path
    box: list[float]
    number: int  # from the left, from 1
    faces: int  # in the photo
    crop: torch.Tensor  # (3, S, S) uint8
    embedding: torch.Tensor  # (d,)


def threshold_of(path: Path, paper: str, options: Options) -> Threshold | None:
    """The threshold that the options ask for; None for weights without a record on this machine.

    Rates come from the card's facts beside released weights, else from the pairs of the record beside a run's weights
    or of the committed one that names their sha256.
    """
    if options.threshold is not None:
        if not 0 <= options.threshold <= 4:
            raise UserError(f"--threshold {options.threshold:g}: a squared distance of unit vectors lies in 0 to 4")
        return Threshold(options.threshold)
    points = released.facts(path).get("thresholds")
    source = "the card of these weights"
    if not points:
        folder = path.parent if (path.parent / "predictions.npz").is_file() else recorded_in(path, paper)
        if folder is None:
            return None
        found, source = runs.read_predictions(folder / "predictions.npz"), f"record {folder.name}"
        points = verification.operating_points(found["distance"], found["same"])
        source += f", {len(found['same']):,} pairs"
    point = points[options.at]
    return Threshold(point["threshold"], point["false_accepts_pct"], point["false_rejects_pct"], source)


def recorded_in(path: Path, paper: str) -> Path | None:
    """Folder of the record that names this weights file by its sha256."""
    digest = storage.sha256(path)
    named = (record for record in runs.recorded(paper) if (record.get("weights") or {}).get("sha256") == digest)
    return next((record["folder"] for record in named), None)


def compare(given: Sequence[Path], options: Options, find: Finder, embed: Embed, threshold: Threshold | None) -> None:
    """Print and write the distance of each pair of photos and, with a threshold, whether they show one person.

    UserError where fewer than two photos have a face; where others have none, after the rest is done.
    """
    if options.out:
        storage.writable(options.out)
    photos, errors = files.listed(given, options.out)
    total, people = len(photos) + len(errors), []
    for photo in photos:
        try:
            people.append(person(photo.path, find, embed))
        except UserError as failure:
            errors.append(failure)
    if len(people) < 2:
        if not errors:
            raise UserError("name two photos or more, each counts once; see --help")
        for error in errors[:-1]:
            print(f"error: {error}", file=sys.stderr)
        raise UserError(f"two photos are compared: {errors[-1]}")
    pairs = [pair(a, b, threshold) for a, b in itertools.combinations(people, 2)]
    for found in pairs:
        print(said(found))
    print(rates(threshold))
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    # Written last: where that is not possible, the answers have been given.
    base = next(photo.base for photo in photos if photo.path == people[0].photo)
    target = base.with_name(f"{base.name}.verify.json")
    storage.write_json(target, report(people, pairs, threshold))
    if options.picture:
        words = [said(p, short=True) for p in pairs[:SHOWN]]
        words += [f"{len(pairs) - SHOWN} more in {target.name}"] * (len(pairs) > SHOWN)
        drawing.sheet([p.crop for p in people[:SHOWN]], [p.photo.name for p in people[:SHOWN]], words,
                      target.with_suffix(".png"))  # fmt: skip
    if errors:
        raise UserError(f"{len(errors)} of {total} failed, see above; the others are compared")


def person(path: Path, find: Finder, embed: Embed) -> Person:
    """The main face of a photo. UserError when there is none."""
    photo = read_photo(path)
    faces = find(photo, path)
    corners = torch.cat([faces.boxes[:, :2], faces.boxes[:, :2] + faces.boxes[:, 2:]], 1)
    k = mtcnn.main_number(corners, *photo.shape[:0:-1])
    if len(faces) > 1:
        print(f"{path}: {len(faces)} faces; number {k + 1} from the left, the main one, is compared", file=sys.stderr)
    main = Faces(faces.boxes[k : k + 1], None if faces.points is None else faces.points[k : k + 1])
    try:
        seen = embed(photo, main)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return Person(path, command.rounded(faces.boxes[k]), k + 1, len(faces), seen.crops[0], seen.embeddings[0])


def pair(a: Person, b: Person, threshold: Threshold | None) -> dict[str, Any]:
    """Squared distance of two faces and, with a threshold, the decision."""
    distance = float((a.embedding.double() - b.embedding.double()).square().sum())
    found: dict[str, Any] = {"first": str(a.photo), "second": str(b.photo), "distance": round(distance, 4)}
    return found | ({} if threshold is None else {"same": distance < threshold.value})


def report(people: Sequence[Person], pairs: list[dict[str, Any]], threshold: Threshold | None) -> dict[str, Any]:
    """What is written as JSON."""
    shown = [{"photo": str(p.photo), "face": p.number, "of": p.faces, "box_xywh": p.box} for p in people]
    return {"threshold": threshold and threshold._asdict(), "pairs": pairs, "faces": shown, "statement": STATEMENT}


def said(pair: dict[str, Any], short: bool = False) -> str:
    """A pair in words."""
    first, second = (Path(pair[k]).name if short else pair[k] for k in ("first", "second"))
    decision = (": the same person" if pair["same"] else ": different people") if "same" in pair else ""
    return f"{first} and {second}: squared distance {pair['distance']:.3f}{decision}"


def rates(threshold: Threshold | None) -> str:
    """What is known of the threshold's errors."""
    if threshold is None:
        return "no decision: no record of these weights is on this machine; choose a --threshold of your own"
    if threshold.false_accepts_pct is None:
        return f"threshold {threshold.value:g} ({threshold.source}): its error rates are not known"
    return (
        f"threshold {threshold.value:g}: calls {threshold.false_accepts_pct:.1f} % of pairs of different people the "
        f"same, and {threshold.false_rejects_pct:.1f} % of pairs of one person different ({threshold.source})\n"
        f"{STATEMENT}"
    )


def embed_all(given: Sequence[Path], to: Path, find: Finder, embed: Embed) -> None:
    """Write an .npz with a row for every face of all photos: `embedding`, `photo`, `face` (from the left), `box_xywh`.

    Errors as command.each. UserError when no face was found at all.
    """
    rows: list[tuple[str, int, np.ndarray, np.ndarray]] = []

    def work(photo: files.Photo) -> None:
        pixels = read_photo(photo.path)
        faces = find(pixels, photo.path)
        vectors = embed(pixels, faces).embeddings.numpy()
        rows.extend((str(photo.path), k + 1, faces.boxes[k].numpy(), v) for k, v in enumerate(vectors))
        print(f"{photo.path}: {len(faces)} face{'s' * (len(faces) > 1)}")

    if to.suffix != ".npz" or to.is_dir():
        raise UserError(f"--to {to}: name an .npz file")
    storage.writable(to.parent)
    try:
        command.each(*files.listed(given), work)
    finally:
        if rows:
            names, numbers, boxes, vectors = zip(*rows, strict=True)
            with storage.atomic(to) as temporary, open(temporary, "wb") as file:
                np.savez(file, photo=np.array(names), face=np.array(numbers), box_xywh=np.stack(boxes),
                         embedding=np.stack(vectors).astype(np.float32))  # fmt: skip
            print(f"{to}: {len(rows)} faces of {len(set(names))} photos")
