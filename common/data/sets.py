"""Data sets: what is known of each, where it is, and the one prepared file that experiments read.

    python -m facepapers.common.data list
    python -m facepapers.common.data get NAME [--mirror FOLDER_OR_URL]
    python -m facepapers.common.data verify NAME

`data/registry.toml` describes the sets. `get` looks for a set in data/NAME/, then for its archives in
data/raw/, data/NAME/, the mirror (--mirror, else DATA_MIRROR) and at their official address; it checks hashes,
structure and counts, and writes data/prepared/NAME.npz (data.pack). DATA_ROOT moves data/ elsewhere.
"""

import contextlib
import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from facepapers.common import paths
from facepapers.common.cli import MissingData, UserError
from facepapers.common.data import archive, pack
from facepapers.common.data.obtain import check_hash, collect, on_disk, take_out
from facepapers.common.data.registry import (
    DataSet,
    Mirror,
    counts_text,
    errors_in_one_line,
    find,
    mirror_place,
    missing_line,
    prepared_path,
)


def available(name: str) -> bool:
    """Whether `ensure(name)` should succeed. Looks only at the disk: a mirror at a URL counts as not here."""
    entry = find(name)
    return prepared_path(entry).exists() or on_disk(entry, mirror_place())


def ensure(name: str) -> pack.Pack:
    """The set's pack, prepared now when its files are on this machine or in DATA_MIRROR.

    Never downloads from an official address: that is `get`, on the user's word. Raises MissingData otherwise.
    """
    entry = find(name)
    prepared = current_pack(entry)
    if prepared is None:
        with errors_in_one_line(), _lock(entry):
            prepared = current_pack(entry) or _prepare(entry, mirror_place(), official=False)
    return prepared


def get(name: str, mirror: str | None = None) -> pack.Pack:
    """Obtain, check and prepare a set, or open it when it is prepared already. Returns the pack."""
    entry = find(name)
    with errors_in_one_line(), _lock(entry):
        try:
            prepared = current_pack(entry)
            if prepared is not None:
                return prepared
        except UserError as error:
            print(f"rebuilding: {error}", file=sys.stderr)
        return _prepare(entry, mirror_place(mirror), official=True)


def files(name: str, mirror: str | None = None, obtain: bool = True) -> list[dict[str, str | None]]:
    """Obtain, unless they are there, and check the `files` of an entry that has no pictures; [{file, sha256}].

    Raises MissingData where they are not on this machine and cannot be had, UserError for files that are not the
    registry's.
    """
    entry = find(name)
    folder = paths.data_root() / name
    there = all((folder / item["file"]).is_file() for item in entry.files)
    if not there and not obtain:
        raise MissingData(missing_line(entry))
    if not there:
        with (
            errors_in_one_line(), _lock(entry),
            tempfile.TemporaryDirectory(prefix=f".{name}~", dir=paths.data_root()) as work,
        ):  # fmt: skip
            take_out(entry, Path(work), mirror_place(mirror))
    return [{"file": item["file"], "sha256": check_hash(folder / item["file"], item["hash"])} for item in entry.files]


def verify(name: str) -> pack.Pack:
    """Decode the prepared set and compare its fingerprint. Raises MissingData or UserError."""
    entry = find(name)
    prepared = current_pack(entry, check=False)
    if prepared is None:
        raise MissingData(missing_line(entry))
    prepared.verify()
    return prepared


def _prepare(entry: DataSet, mirror: Mirror, official: bool) -> pack.Pack:
    """Read the set's files, check the counts, write the pack."""
    module, function = entry.reader.split(":")
    reader = getattr(importlib.import_module(module), function)
    with (
        tempfile.TemporaryDirectory(prefix=f".{entry.name}~", dir=paths.data_root()) as work,
        archive.Pictures() as pictures,
    ):
        folder, origin = collect(entry, Path(work), mirror, official, pictures)
        encoded, arrays = pack.gather(reader(pictures.folder(folder)), f"preparing {entry.name}")
        where = folder if origin[0]["sha256"] is None else ", ".join(str(item["file"]) for item in origin)
        counts = _check_counts(entry, arrays, len(encoded), where)
    meta = {"name": entry.name, "version": entry.version, "counts": counts, "origin": origin}
    return pack.write(prepared_path(entry), encoded, arrays, meta)


def _check_counts(entry: DataSet, arrays: dict[str, np.ndarray], n: int, where: Path | str) -> dict[str, int]:
    """Images per split, or a UserError when they are none of the accepted counts."""
    split = arrays.get("split", np.zeros(n, np.uint8))
    found = {name: int((split == i).sum()) for i, name in enumerate(entry.splits)}
    found = {name: count for name, count in found.items() if count}
    if not any(found == {name: count for name, count in counts.items() if count} for counts in entry.counts):
        expected = " or ".join(map(counts_text, entry.counts))
        raise UserError(
            f"{entry.name}: {where} holds {counts_text(found)} images, expected {expected}; "
            "restore the complete set from its archive"
        )
    return found


def current_pack(entry: DataSet, check: bool = True) -> pack.Pack | None:
    """The prepared pack, or None when there is none or an older version of the reader made it.

    With `check`, a file that changed since it was last verified is verified. Raises UserError for a damaged one.
    """
    path = prepared_path(entry)
    prepared = pack.Pack.read(path) if path.exists() else None
    if prepared is None or prepared.meta.get("version") != entry.version:
        return None
    if check:
        prepared.check()
    return prepared


@contextlib.contextmanager
def _lock(entry: DataSet) -> Iterator[None]:
    """One process prepares a set at a time. Whoever holds the lock may clear what a killed one left behind.

    Nothing of the lock stays, nor a data root that was made for it and is empty.
    """
    root = paths.data_root()
    new = not root.exists()
    root.mkdir(parents=True, exist_ok=True)
    path = root / f".{entry.name}.lock"
    with _locked(path, entry.name):
        for stale in root.glob(f".{entry.name}~*"):
            shutil.rmtree(stale, ignore_errors=True)
        for kind in ("npz", "verified"):
            for stale in root.glob(f"prepared/.{entry.name}.{kind}.*.tmp"):
                stale.unlink(missing_ok=True)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            if new:
                with contextlib.suppress(OSError):  # not empty
                    root.rmdir()


@contextlib.contextmanager
def _locked(path: Path, name: str) -> Iterator[None]:
    """Hold the lock of a file, which whoever holds it may remove."""
    import fcntl  # POSIX only

    while True:
        with open(path, "w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting for another process that prepares {name}", file=sys.stderr)
                fcntl.flock(handle, fcntl.LOCK_EX)
            if path.exists() and os.path.samestat(os.fstat(handle.fileno()), path.stat()):  # else it was removed
                yield
                return
