"""What the readers share: finding folders and files, reading tables."""

import csv
from collections.abc import Iterable, Iterator, Set
from pathlib import Path

from facepapers.common import storage
from facepapers.common.cli import UserError
from facepapers.common.data.archive import AnyPath, entries, place, visible


def folder_with(folder: AnyPath | str, *patterns: str) -> AnyPath:
    """`folder`, or the first folder at most three levels below it, that holds a match for every glob pattern.

    Archives often wrap their content in a folder of their own. Raises UserError when no folder fits.
    """
    found = find_folder(folder, *patterns)
    if found is None:
        raise UserError(f"{folder}: no {' and '.join(patterns)} in it; see data/README.md for the expected tree")
    return found


def find_folder(folder: AnyPath | str, *patterns: str) -> AnyPath | None:
    """Like `folder_with`, but None when no folder fits."""
    folder = place(folder)
    for level in ("", "*/", "*/*/", "*/*/*/"):
        for first in entries(folder, f"{level}{patterns[0]}"):
            if all(any(visible(first.parent, pattern)) for pattern in patterns):
                return first.parent
    return None


def find_file(folder: AnyPath | str, *names: str) -> AnyPath | None:
    """Path of the first of the files `names` that is in `folder` or at most three levels below it, else None."""
    found = ((find_folder(folder, name), name) for name in names)
    return next((place / name for place, name in found if place), None)


def table_lines(path: AnyPath, columns: Iterable[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields (line number, {column: text}) of a CSV; blanks around a column's name do not matter.

    Raises UserError when the file is not there or no UTF-8 text, or lacks one of `columns`, or a line ends before the
    last of them.
    """
    with storage.open_text(path, "fetch the table again") as handle:
        reader = csv.DictReader(handle)
        reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        missing = [column for column in columns if column not in reader.fieldnames]
        if missing:
            raise UserError(f"{path}: no column {', '.join(missing)} in its first line; fetch the table again")
        for line in reader:
            if any(line[column] is None for column in columns):
                raise UserError(f"{path}: line {reader.line_num} is cut short; fetch the table again")
            yield reader.line_num, line


def text_lines(path: AnyPath) -> list[str]:
    """The lines of a text, without a byte order mark, any system's line ends and blank lines at the end."""
    return storage.read_text(path, "fetch it again").rstrip().split("\n")


def check_same_names(folder: AnyPath, files: Set[str], table: AnyPath | str, rows: Set[str]) -> None:
    """Raise UserError unless `files` (sets of names, in `folder`) and `rows` (in the file `table`) are the same."""
    for names, what in ((rows - files, "rows without an image"), (files - rows, "images without a row")):
        if names:
            raise UserError(
                f"{folder}: {len(names)} {what} in {Path(table).name}, e.g. {min(names)}; "
                "restore images and table from one release"
            )
