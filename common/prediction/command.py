"""The loop of the commands that predict: read a photo, find its faces, ask the network, write, go on after errors."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from facepapers.common import storage
from facepapers.common.cli import MissingData, UserError
from facepapers.common.data.photos import read_photo
from facepapers.common.evidence import runs
from facepapers.common.prediction import drawing, files
from facepapers.common.prediction.finding import Faces, Finder, finder
from facepapers.common.progress import Meter
from facepapers.common.training import parallel, released

COLUMNS = ("photo", "face", "box_x", "box_y", "box_width", "box_height", "detected")  # of every table, first


@dataclass(frozen=True)
class Options:
    """Where the faces are and what is written. Without --box and --whole a detector finds them: `make data-mtcnn`."""

    box: str | None = None  # X,Y,W,H of the face in pixels, the same in every photo
    whole: bool = False  # each photo is a face crop
    mtcnn: Path | None = None  # folder of the detector's networks, if not that of `make data-mtcnn`
    out: Path | None = None  # folder of what is written; without it each photo's own
    table: Path | None = None  # one .csv or .jsonl of all faces, in place of a .json for each photo
    picture: bool = True  # draw the faces found into a copy of each photo
    watch: Path | None = None  # folder whose photos are predicted as they come, until Ctrl-C; a --table is continued
    device: str = "auto"  # auto (a GPU where there is one), cpu or cuda


@dataclass(frozen=True)
class Task:
    """What a paper says of faces: an answer is a dict of JSON values.

    `kind` names the files: NAME.<kind>.json. `answers(photo, faces)` gives an answer for each face of a (3, H, W) uint8
    photo; `line(answer)` is printed, `mark(answer)` drawn, `row(answer)` fills the `columns` of a .csv. `about` is
    written once into each JSON file, and its `statement` printed at the end.
    """

    kind: str
    answers: Callable[[torch.Tensor, Faces], list[dict[str, Any]]]
    line: Callable[[dict[str, Any]], str]
    mark: Callable[[dict[str, Any]], drawing.Mark]
    columns: Sequence[str]
    row: Callable[[dict[str, Any]], dict[str, Any]]
    about: dict[str, Any]


def weights(given: str | None, paper: str, name: str, pattern: str = "*", but: str | None = None) -> str | Path:
    """What `--weights` names, else the released model `name`, else the newest of this machine (runs.newest_weights).

    Raises MissingData where there is none, with the command that trains the model.
    """
    if given:
        return given
    if (released.folder_of(paper, name) / released.FILE).is_file():
        return name
    try:
        return runs.newest_weights(paper, pattern, but)
    except MissingData:
        raise MissingData(released.missing(paper, name)) from None


def begin(given: Sequence[Path], options: Options) -> tuple[torch.device, Finder]:
    """(device, what finds the faces). UserError for options that do not go together, MissingData without a detector."""
    if bool(given) == bool(options.watch):
        raise UserError("IMAGES: name photos or folders, or one folder to --watch; see --help")
    device = parallel.start(options.device)
    return device, finder(options.box, options.whole, options.mtcnn, device)


def run(task: Task, given: Sequence[Path], options: Options, find: Finder) -> None:
    """Predict the photos of the files and folders `given`, or those of `options.watch` as they come.

    UserError at once where nothing can be written, else as `each`.
    """
    if options.out:
        storage.writable(options.out)
    table = None
    if options.table:
        table = files.Table(options.table, (*COLUMNS, *task.columns), more=options.watch is not None)
    work = lambda photo: one(task, options, find, table, photo)
    try:
        if options.watch:
            print(f"watching {options.watch}; end by Ctrl-C", file=sys.stderr)
            for photo in files.arriving(options.watch, options.out, table.done if table else set()):
                done(work, photo)
        else:
            each(*files.listed(given, options.out), work)
    finally:
        if "statement" in task.about:
            print(task.about["statement"])


def each(photos: Sequence[files.Photo], errors: Sequence[UserError], work: Callable[[files.Photo], object]) -> None:
    """`work` on each photo. An error, also those of `errors`, is one line on stderr, and the next photo follows.

    UserError at the end that tells how many failed; the only error of a single photo or folder is raised itself.
    """
    total = len(photos) + len(errors)
    if total == 1:
        for error in errors:
            raise error
        work(photos[0])
        return
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    failed = len(errors)
    with Meter("photos", len(photos), "photos", bar=False) as meter:
        for photo in photos:
            failed += not done(work, photo)
            meter.add()
    if failed:
        raise UserError(f"{failed} of {total} failed, see above; the others are done")


def done(work: Callable[[files.Photo], object], photo: files.Photo) -> bool:
    """Whether `work` could be done; else its UserError is one line on stderr."""
    try:
        work(photo)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return False
    return True


def one(task: Task, options: Options, find: Finder, table: files.Table | None, photo: files.Photo) -> None:
    """Predict one photo: print, draw and write what is said of its faces. UserError where that is not possible."""
    pixels = read_photo(photo.path)
    faces = find(pixels, photo.path)
    try:
        found = task.answers(pixels, faces)
    except UserError as error:
        raise UserError(f"{photo.path}: {error}") from None
    answers = [place | answer for place, answer in zip(places(faces), found, strict=True)]
    target = lambda ending: photo.base.with_name(f"{photo.base.name}.{task.kind}.{ending}")
    if options.picture:
        drawing.write(pixels, [(answer["box_xywh"], task.mark(answer)) for answer in answers], target("png"))
    if table:
        table.add([row(task, photo.path, answer, table.path.suffix == ".csv") for answer in answers])
    else:
        storage.write_json(target("json"), {"photo": str(photo.path), **task.about, "faces": answers})
    for answer in answers:
        print(f"{photo.path}: face {answer['face']} of {len(answers)}: {task.line(answer)}", flush=True)


def places(faces: Faces) -> list[dict[str, Any]]:
    """Number (from 1, left to right), box and, of a detected face, probability."""
    found = [{"face": n, "box_xywh": rounded(box)} for n, box in enumerate(faces.boxes, start=1)]
    if faces.probability is not None:
        for place, probability in zip(found, faces.probability.tolist(), strict=True):
            place["detected"] = round(probability, 4)
    return found


def row(task: Task, path: Path, answer: dict[str, Any], flat: bool) -> dict[str, Any]:
    """A table's row: the answer as it is, or for a .csv in columns."""
    if not flat:
        return {"photo": str(path), **answer}
    box = dict(zip(COLUMNS[2:6], answer["box_xywh"], strict=True))
    own = {"photo": str(path), "face": answer["face"], **box, "detected": answer.get("detected", "")}
    return own | task.row(answer)


def rounded(values: torch.Tensor, digits: int = 2) -> list:
    """A tensor as (nested) lists of short numbers."""
    return [rounded(v, digits) if v.dim() else round(v.item(), digits) for v in values]
