"""Released models: which there are, where their files lie, and what is known of them.

`papers/<paper>/weights/<name>/` holds `model.safetensors`, its card `README.md`, and `released.json`: the hashes of the
file and of the run's weights that it was made from, and its metrics. A paper's `released.load` makes the ready module.
"""

import json
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from facepapers.common import paths, storage
from facepapers.common.cli import MissingData, UserError
from facepapers.common.plan import duration
from facepapers.common.training import checkpoint

FILE, CARD, FACTS = "model.safetensors", "README.md", "released.json"
FILE_BYTES, ALL_BYTES = 8 * 2**20, 30 * 2**20  # largest file; all of them together


def folder_of(paper: str, name: str) -> Path:
    """Folder of a released model, which need not exist."""
    return paths.ROOT / "papers" / paper / "weights" / name


def folders(paper: str = "*") -> list[Path]:
    """Folders of the released models of a paper (by default of all), sorted."""
    return sorted(path.parent for path in (paths.ROOT / "papers").glob(f"{paper}/weights/*/{FILE}"))


def find(paper: str, name_or_path: str | Path, names: tuple[str, ...], rows: Collection[str] = ()) -> Path:
    """The weights file of one of the paper's `names`, or the path itself.

    Raises MissingData for a name without a released file, UserError for a path where no file is and for weights that
    say that they were trained by none of the paper's `rows`; files of other origin say nothing and are not refused.
    """
    if str(name_or_path) in names:
        path = folder_of(paper, str(name_or_path)) / FILE
        if not path.is_file():
            raise MissingData(missing(paper, str(name_or_path)))
        return path
    path = Path(name_or_path)
    if not path.is_file():
        raise UserError(f"{path}: no such weights file; released models of this paper are {', '.join(names)}")
    row = checkpoint.read_metadata(path).get("row") if rows and path.suffix == ".safetensors" else None
    if row is not None and row not in rows:  # other networks of the same shape would answer, and wrongly
        raise UserError(
            f"{path}: weights of another paper: {paper.replace('_', '-')} has no row {row!r}; name weights of its own "
            f"runs, or a released model ({', '.join(names)})"
        )
    return path


def tables(paper: str) -> dict[str, dict[str, Any]]:
    """Name -> table of papers/<paper>/weights/cards.toml; {} for a paper that releases nothing."""
    path = folder_of(paper, "cards.toml")
    return tomllib.loads(path.read_text()) if path.is_file() else {}


def missing(paper: str, name: str) -> str:
    """One line for a model that is not released yet: the remedies, and which models are."""
    what = "not released yet" if folders(paper) else f"no model of {paper.replace('_', '-')} is released yet"
    here = ", ".join(f"{folder.name} ({folder.parent.parent.name.replace('_', '-')})" for folder in folders())
    return (
        f"{name}: {what}; train it by {training(paper, name)}, or on drawn faces with PRESET=demo "
        f"alone (minutes), or name a weights file with --weights FILE; released so far: {here or 'none'}"
    )


def training(paper: str, name: str) -> str:
    """The command that trains a model, with the time that its runs took when they were recorded, where that is known.

    Both are told by `command` and `runs` of its table in papers/<paper>/weights/cards.toml.
    """
    table = tables(paper).get(name, {})
    command = f"make reproduce-{paper.replace('_', '-')} {table.get('command', '')}".strip()
    records = [paths.RECORDED / paper / run / "run.json" for run in table.get("runs", [])]
    known = bool(records) and all(record.is_file() for record in records)  # an installed package has none
    took = sum(storage.read_json(record)["seconds"] for record in records) if known else 0
    where = " in a clone of the repository" if paths.INSTALLED else ""
    return f"`{command}`{where}" + (f" ({duration(took)} when recorded)" if known else "")


def settings(path: Path | str) -> dict[str, Any]:
    """The settings of the run that made a weights file: from the file, or from the run's record beside it; else {}."""
    metadata = checkpoint.read_metadata(path)
    if "settings" in metadata:
        return json.loads(metadata["settings"])
    record = Path(path).with_name("run.json")
    return storage.read_json(record)["config"] if record.exists() else {}


def as_config(kind: type, found: dict[str, Any]) -> Any:
    """The settings of a record, as an instance of a paper's Config; lists become tuples."""
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in found.items()})


def facts(path: Path | str) -> dict[str, Any]:
    """What `released.json` beside a released weights file says; {} for any other file."""
    beside = Path(path).with_name(FACTS)
    return storage.read_json(beside) if beside.exists() else {}
