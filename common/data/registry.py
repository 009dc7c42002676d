"""What data/registry.toml says of each set, and where its files lie."""

import contextlib
import dataclasses
import difflib
import errno
import os
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

from facepapers.common import paths, storage
from facepapers.common.cli import UserError

REPOSITORY_DATA = paths.DATA
REGISTRY = paths.REGISTRY
Mirror = Path | str | None  # a folder, an http(s) address, none
REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "give access or set DATA_ROOT to another folder"),
    **dict.fromkeys((errno.EEXIST, errno.ENOTDIR), "move the file that stands where a folder belongs"),
    **dict.fromkeys((errno.ENOENT, errno.ELOOP), "restore it, or remove the link that leads there"),
}


@dataclasses.dataclass(frozen=True)
class DataSet:
    """One entry of the registry; data/README.md explains the fields."""

    name: str
    title: str
    homepage: str
    terms: str
    citation: str
    reader: str  # "module:function", called with the folder, yields samples for data.pack.gather; see also `files`
    counts: list[dict[str, int]]  # accepted numbers of images per split, the official ones first
    tree: str  # what the folder must look like
    steps: str  # how to obtain it by hand
    marker: Sequence[str] = ()  # globs that all match in a folder that holds the set
    archives: Sequence[
        Sequence[dict[str, str]]
    ] = ()  # alternatives; each a list of {file, hash, url or pip}, all needed
    files: Sequence[dict[str, str]] = ()  # {file, member, hash}: no pictures but these files, taken out of the archive
    parts: Sequence[str] = ()  # sets that this one is composed of
    splits: Sequence[str] = ("train", "test")  # names of the values of the array `split`
    version: int = 1  # raised when the reader's output changes: older packs are rebuilt


def registry() -> dict[str, DataSet]:
    """{name: DataSet} from data/registry.toml. Raises UserError when it cannot be read."""
    try:
        tables = tomllib.loads(storage.read_text(REGISTRY, "restore it from git"))
        return {name: DataSet(name=name, **table) for name, table in tables.items()}
    except (tomllib.TOMLDecodeError, TypeError) as error:
        raise UserError(f"{REGISTRY}: {storage.one_line(error)}; restore it from git") from None


def find(name: str) -> DataSet:
    """The registry's entry of a set. Raises UserError, with the nearest name, when there is none."""
    sets = registry()
    if name not in sets:
        near = difflib.get_close_matches(name, sets, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sets)}"
        raise UserError(f"no data set {name!r}: {hint}")
    return sets[name]


def mirror_place(given: str | None = None) -> Mirror:
    """The mirror as a Path (folder), a str (URL) or None. Raises UserError for a folder that does not exist."""
    place = given or os.environ.get("DATA_MIRROR")
    if not place or place.startswith(("http://", "https://")):
        return place or None
    folder = Path(place.removeprefix("file://")).expanduser()
    if not folder.is_dir():
        raise UserError(f"{place}: the mirror (--mirror or DATA_MIRROR) is no folder and no http(s) address")
    return folder.resolve()


def prepared_path(entry: DataSet) -> Path:
    """Where a set's pack lies once it is prepared."""
    return paths.data_root() / "prepared" / f"{entry.name}.npz"


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
    """A full disk, a missing permission, a file that cannot be read become a UserError that names the file."""
    try:
        yield
    except OSError as error:
        where, why = error.filename or paths.data_root(), error.strerror or storage.one_line(error)
        remedy = REMEDIES.get(error.errno or 0, "the file or its disk is damaged; restore it from its archive")
        raise UserError(f"{where}: {why}; {remedy}, then run the same command again") from None


def counts_text(counts: dict[str, int]) -> str:
    """`1345 train + 507 test`."""
    return " + ".join(f"{count} {name}" for name, count in counts.items())


def is_free(archives: Sequence[dict[str, str]]) -> bool:
    """Whether anybody may download these archives: each has an address, or a package index has it."""
    return all("url" in item or "pip" in item for item in archives)


def missing_line(entry: DataSet) -> str:
    """One line: what is missing and what to do."""
    if entry.parts:
        return f"{entry.name}: needs all of {', '.join(entry.parts)}; `make data-{entry.name}` prints the steps"
    if any(map(is_free, entry.archives)):
        return f"{entry.name}: not on this machine; `make data-{entry.name}` downloads it ({entry.homepage})"
    return f"{entry.name}: not on this machine, no free download; `make data-{entry.name}` prints the steps"
