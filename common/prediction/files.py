"""Which photos a command takes, where its results go, and the table of many faces."""

import csv
import io
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from facepapers.common.cli import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
OURS = re.compile(r"\.(points|attributes|expression|verify)\.png$")  # pictures that these commands wrote
POLL_S = 0.5  # how often a watched folder is looked at
TEXT: Any = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}  # names of photos may be any bytes


@dataclass(frozen=True)
class Photo:
    """A photo and the path of what is written about it, which lacks its ending (`face` for face.points.json)."""

    path: Path
    base: Path


def listed(given: Sequence[Path], out: Path | None = None) -> tuple[list[Photo], list[UserError]]:
    """(photos, errors): the files given and those in the folders given, each once, with a base of its own.

    A base is the photo's name without suffix, in the photo's folder or in `out`. Where two of these are equal, names
    keep their suffix; where that is not enough, `out` repeats the photos' folders. Pictures that these commands drew of
    another one are left out, also when `*.png` named them. A folder without a picture is an error, which does not keep
    the others from being done.
    """
    paths: dict[str, Path] = {}
    errors = []
    for one in given:
        found = pictures_in(one) if os.path.isdir(one) else [one]
        if not found:
            errors.append(UserError(f"{one}: no picture in this folder ({' '.join(sorted(SUFFIXES))})"))
        for path in found:
            paths.setdefault(os.path.abspath(path), path)
    sources = {
        os.path.join(os.path.dirname(full), word) for full, path in paths.items() for word in (path.name, path.stem)
    }
    paths = {full: path for full, path in paths.items() if not (OURS.search(full) and OURS.sub("", full) in sources)}
    top = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
    places = [
        [(out or path.parent) / path.stem for path in paths.values()],
        [(out or path.parent) / path.name for path in paths.values()],
        [Path(out or top) / os.path.relpath(path, top) for path in paths],
    ]
    bases = next(bases for bases in places if len(set(bases)) == len(bases))
    return [Photo(path, base) for path, base in zip(paths.values(), bases, strict=True)], errors


def pictures_in(folder: Path) -> list[Path]:
    """The pictures in a folder and in those below it, by name; hidden ones and results of ours are left out."""
    found: list[Path] = []
    for place, below, names in os.walk(folder):  # which leaves out a folder that is gone again, as rglob does not
        below[:] = [name for name in below if not name.startswith(".")]
        found += [Path(place, name) for name in names if not (name.startswith(".") or OURS.search(name))]
    return sorted(path for path in found if path.suffix.lower() in SUFFIXES and path.is_file())


def arriving(folder: Path, out: Path | None, done: set[str], poll_s: float = POLL_S) -> Iterator[Photo]:
    """The photos of a folder as they come, without end; those whose paths are in `done` are left out.

    A photo is taken when it did not change between two looks, and again when it is changed later. UserError when the
    folder is not there, or no more.
    """
    if not folder.is_dir():
        raise UserError(f"--watch {folder}: no such folder")
    taken: dict[Path, tuple] = {}
    before: dict[Path, tuple] = {}
    while True:
        now = {path: state for path in pictures_in(folder) if (state := _state(path))}
        for path, state in now.items():
            if before.get(path) == state and taken.get(path) != state:
                taken[path] = state
                if str(path) in done:
                    done.discard(str(path))  # until it changes
                else:
                    yield Photo(path, (out / path.relative_to(folder)) if out else path)
        before = now
        time.sleep(poll_s)
        if not folder.is_dir():  # of which os.walk says nothing
            raise UserError(f"--watch {folder}: the folder was removed; make it, then watch it again")


def _state(path):
    """What changes while a file is being written; None for one that is gone again."""
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_size, about.st_mtime_ns


class Table:
    """One row or line per face in a .csv or .jsonl file, written at once; `more` continues a file that is there.

    `done` holds the photos that the continued file names. Raises UserError for another kind of file, one that cannot
    be written, and a table of other columns.
    """

    def __init__(self, path: Path, columns: Sequence[str], more: bool = False) -> None:
        if path.suffix not in (".csv", ".jsonl"):
            raise UserError(f"--table {path}: name a .csv or a .jsonl file")
        self.path, self.columns = path, list(columns)
        more = more and path.exists() and path.stat().st_size > 0
        self.done = self._photos_of() if more else set()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file: IO[str] = open(path, "a" if more else "w", **TEXT)  # noqa: SIM115
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); choose another file") from None
        if not more and path.suffix == ".csv":
            self._write(self._lines([self.columns]))

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write the rows of a photo; what is no number or string becomes JSON in a .csv file.

        All or, where the program is ended meanwhile, none: a photo with a row counts as done.
        """
        if self.path.suffix == ".jsonl":
            self._write("".join(f"{json.dumps(row, allow_nan=False)}\n" for row in rows))
        else:
            plain = lambda value: value if isinstance(value, str | int | float) else json.dumps(value)
            self._write(self._lines([[plain(row.get(column, "")) for column in self.columns] for row in rows]))

    def _lines(self, rows):
        """Rows as text of a .csv file."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        return text.getvalue()

    def _write(self, text):
        """In one piece, which the system takes at once."""
        try:
            self.file.write(text)
            self.file.flush()
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror}); make room") from None

    def _photos_of(self):
        """Paths of the photos in the file."""
        try:
            whole = self.path.read_bytes().rfind(b"\n") + 1  # a killed process may have left half a line
            os.truncate(self.path, whole)
            with open(self.path, **TEXT) as file:
                if self.path.suffix == ".jsonl":
                    return {json.loads(line)["photo"] for line in file}
                rows = csv.DictReader(file)
                if rows.fieldnames != self.columns:
                    raise UserError(f"{self.path}: a table of other columns; name another file by --table")
                return {row["photo"] for row in rows}
        except (OSError, ValueError, KeyError, UnicodeDecodeError) as error:
            raise UserError(f"{self.path}: cannot be continued ({error}); name another file by --table") from None
