"""Data sets: what is known of each, where it is, and the one prepared file that experiments read.

    python -m common.data list
    python -m common.data get NAME [--mirror FOLDER_OR_URL]
    python -m common.data verify NAME

`data/registry.toml` describes the sets. `get` looks for a set in data/NAME/, then for its archives in
data/raw/, data/NAME/, the mirror (--mirror, else DATA_MIRROR) and at their official address; it checks hashes,
structure and counts, and writes data/prepared/NAME.npz (common.pack). DATA_ROOT moves data/ elsewhere.
"""

import contextlib
import dataclasses
import difflib
import functools
import hashlib
import importlib
import io
import itertools
import lzma
import os
import shutil
import stat
import sys
import tarfile
import tempfile
import tomllib
import typing
import zipfile
import zlib
from pathlib import Path

import numpy as np

from common import archive, cli, pack
from common.cli import MissingData, UserError

if typing.TYPE_CHECKING:  # PyTorch takes longer to import than a look at a prepared set
    import torch

    from common.points import Markup

REPOSITORY_DATA = Path(__file__).resolve().parent.parent / "data"
REGISTRY = REPOSITORY_DATA / "registry.toml"
LEVELS = ("", "*/", "*/*/", "*/*/*/")  # archives often wrap their content in folders of their own
_TENSORS = ("points", "box", "occluded", "split", "scale")


@dataclasses.dataclass(frozen=True)
class DataSet:
    """One entry of the registry; data/README.md explains the fields."""

    name: str
    title: str
    homepage: str
    terms: str
    citation: str
    reader: str  # "module:function", called with the folder, yields samples for common.pack.gather
    counts: list[dict[str, int]]  # accepted numbers of images per split, the official ones first
    tree: str  # what the folder must look like
    steps: str  # how to obtain it by hand
    marker: list[str] = ()  # globs that all match in a folder that holds the set
    archives: list[list[dict]] = ()  # alternatives; each a list of {file, hash, url}, all needed
    parts: list[str] = ()  # sets that this one is composed of
    splits: list[str] = ("train", "test")  # names of the values of the array `split`
    version: int = 1  # raised when the reader's output changes: older packs are rebuilt


@dataclasses.dataclass(frozen=True, eq=False)
class AlignmentSet:
    """N faces with P landmarks. Coordinates are pixels of `images`, 0-based, pixel centres at integers."""

    images: "torch.Tensor"  # (N, 3, 256, 256) uint8 RGB; every stored crop has exactly this size
    points: "torch.Tensor"  # (N, P, 2) float32
    box: "torch.Tensor"  # (N, 4) float32 x, y, width, height; NaN when the set ships no boxes
    occluded: "torch.Tensor"  # (N, P) bool
    split: "torch.Tensor"  # (N,) uint8: 0 train, 1 test
    scale: "torch.Tensor"  # (N,) float32, original pixels per pixel of `images`
    subset: list[str]
    names: list[str]
    markup: "Markup"
    fingerprint: str

    def __len__(self):
        return len(self.names)

    def select(self, rows):
        """The same set with only `rows`: a boolean mask (N,) or indices."""
        import torch

        rows = torch.as_tensor(rows)
        rows = rows.nonzero().flatten() if rows.dtype == torch.bool else rows.long()
        tensors = {key: getattr(self, key)[rows] for key in ("images", *_TENSORS)}
        lists = {key: [getattr(self, key)[i] for i in rows.tolist()] for key in ("subset", "names")}
        return dataclasses.replace(self, **tensors, **lists)

    def part(self, split):
        """The faces of "train" or "test"."""
        return self.select(self.split == ("train", "test").index(split))


# ------------------------------------------------------------------------------------- for experiments


def load_alignment(name, threads=2):
    """An alignment set, prepared first if its files are here, decoded into memory once.

    Raises MissingData (exit 3) with the remedy when the set is not on this machine.
    """
    import torch

    from common.points import markup_for

    prepared = ensure(name)
    arrays = prepared.arrays
    tensors = {key: torch.from_numpy(arrays[key]) for key in _TENSORS}
    return AlignmentSet(
        images=prepared.decode(threads=threads),
        subset=arrays["subset"].tolist(),
        names=arrays["name"].tolist(),
        markup=markup_for(arrays["points"].shape[1]),
        fingerprint=prepared.meta["fingerprint"],
        **tensors,
    )


def available(name):
    """Whether `ensure(name)` should succeed. Looks only at the disk: a mirror at a URL counts as not here."""
    entry = _entry(name)
    return _prepared_path(entry).exists() or _on_disk(entry, _mirror())


def ensure(name):
    """The set's pack, prepared now when its files are on this machine or in DATA_MIRROR.

    Never downloads from an official address: that is `get`, on the user's word. Raises MissingData otherwise.
    """
    entry = _entry(name)
    prepared = _current_pack(entry)
    if prepared is None:
        with _errors_in_one_line(), _lock(entry):
            prepared = _current_pack(entry) or _prepare(entry, _mirror(), official=False)
    return prepared


def get(name, mirror=None):
    """Obtain, check and prepare a set, or open it when it is prepared already. Returns the pack."""
    entry = _entry(name)
    with _errors_in_one_line(), _lock(entry):
        try:
            prepared = _current_pack(entry)
            if prepared is not None:
                return prepared
        except UserError as error:
            print(f"rebuilding: {error}", file=sys.stderr)
        return _prepare(entry, _mirror(mirror), official=True)


def verify(name):
    """Decode the prepared set and compare its fingerprint. Raises MissingData or UserError."""
    entry = _entry(name)
    prepared = _current_pack(entry, check=False)
    if prepared is None:
        raise MissingData(_missing_line(entry))
    prepared.verify()
    return prepared


# -------------------------------------------------------------------------------------------- preparing


def _prepare(entry, mirror, official):
    """Read the set's files, check the counts, write the pack."""
    module, function = entry.reader.split(":")
    reader = getattr(importlib.import_module(module), function)
    with tempfile.TemporaryDirectory(prefix=f".{entry.name}~", dir=_root()) as work, archive.Pictures() as pictures:
        folder, origin = _collect(entry, Path(work), mirror, official, pictures)
        encoded, arrays = pack.gather(reader(pictures.folder(folder)), f"preparing {entry.name}")
        where = folder if origin[0]["sha256"] is None else ", ".join(item["file"] for item in origin)
        counts = _check_counts(entry, arrays, len(encoded), where)
    meta = {"name": entry.name, "version": entry.version, "counts": counts, "origin": origin}
    return pack.write(_prepared_path(entry), encoded, arrays, meta)


def _check_counts(entry, arrays, n, where):
    """Images per split, or a UserError when they are none of the accepted counts."""
    split = arrays.get("split", np.zeros(n, np.uint8))
    found = {name: int((split == i).sum()) for i, name in enumerate(entry.splits)}
    found = {name: count for name, count in found.items() if count}
    if found not in entry.counts:
        expected = " or ".join(map(_counts_text, entry.counts))
        raise UserError(
            f"{entry.name}: {where} holds {_counts_text(found)} images, expected {expected}; "
            "restore the complete set from its archive"
        )
    return found


def _collect(entry, work, mirror, official, pictures):
    """(folder with the set's files, list of {file, sha256}). Archives are checked and unpacked into `work`.

    What may stay in an archive is entered in `pictures`, under its path in `work`.
    """
    folder = _find_folder(entry, mirror)
    if folder is not None:
        return folder, [{"file": f"{folder.name}/", "sha256": None}]
    origin = []
    work.mkdir(exist_ok=True)
    for part in map(_entry, entry.parts):
        found, more = _collect(part, work / part.name, mirror, official, pictures)
        origin += more
        if found != work / part.name:
            (work / part.name).symlink_to(found.resolve())
    for path, known in [] if entry.parts else _archives(entry, mirror, official):
        origin.append({"file": path.name, "sha256": check_hash(path, known)})
        unpack(path, work, pictures)
    return work, origin


def _find_folder(entry, mirror):
    """data/NAME or MIRROR/NAME when it holds a match for every marker, at most three levels deep; else None."""
    bases = [_root()] + ([mirror] if isinstance(mirror, Path) else [])
    for folder in (base / entry.name for base in bases):
        firsts = [folder.glob(level + entry.marker[0]) for level in LEVELS] if entry.marker else []
        for first in itertools.chain(*firsts):
            if all(any(first.parent.glob(marker)) for marker in entry.marker):
                return folder
    return None


def _archives(entry, mirror, official):
    """[(path, known hash)] of the first alternative that can be had. Raises MissingData when there is none."""
    for alternative in entry.archives:
        paths = [_find_file(entry, item["file"], mirror) for item in alternative]
        if all(paths):
            return [(path, item["hash"]) for path, item in zip(paths, alternative, strict=True)]
    for alternative in entry.archives:
        if isinstance(mirror, str):
            urls = [f"{mirror.rstrip('/')}/{item['file']}" for item in alternative]
            with contextlib.suppress(MissingData):  # a mirror need not hold this set, or this alternative
                return [(_download(*pair), pair[1]["hash"]) for pair in zip(urls, alternative, strict=True)]
        if official and all("url" in item for item in alternative):
            return [(_download(item["url"], item), item["hash"]) for item in alternative]
    raise MissingData(_missing_line(entry))


def _find_file(entry, file, mirror):
    """The path of an archive on disk, or None."""
    places = [_root() / "raw", _root() / entry.name]
    if isinstance(mirror, Path):
        places += [mirror, mirror / entry.name]
    return next((place / file for place in places if (place / file).is_file()), None)


def _on_disk(entry, mirror):
    """Whether the set's folder, all its parts, or one full alternative of its archives is on disk."""
    if _find_folder(entry, mirror) is not None:
        return True
    if entry.parts:
        return all(_on_disk(_entry(part), mirror) for part in entry.parts)
    return any(all(_find_file(entry, item["file"], mirror) for item in files) for files in entry.archives)


def _download(url, item):
    """Fetch `url` into data/raw and return the path. Raises MissingData when the server does not have it."""
    import pooch
    import requests

    known = None if item["hash"] == "unknown" else item["hash"]
    by_hand = f"fetch {item['file']} by hand into {_root() / 'raw'}"
    pooch.get_logger().setLevel("WARNING")
    try:
        path = pooch.retrieve(url, known, item["file"], _root() / "raw", progressbar=sys.stderr.isatty())
    except ValueError as error:  # pooch's word for a wrong hash; it has removed the file
        raise UserError(f"{url}: wrong hash ({_line(error)}); try again or use another mirror") from None
    except requests.HTTPError as error:
        raise MissingData(f"{url}: {_line(error)}; {by_hand}") from None
    except requests.RequestException as error:
        raise UserError(f"{url}: no connection ({_line(error)}); {by_hand}") from None
    return Path(path)


def check_hash(path, known):
    """sha256 of the file. `known` is "sha256:...", "md5:..." or "unknown". Raises UserError when it differs."""
    algorithm, _, expected = known.partition(":")
    digests = {kind: hashlib.new(kind) for kind in {"sha256", algorithm} - {"unknown"}}
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            for digest in digests.values():
                digest.update(block)
    if known != "unknown" and digests[algorithm].hexdigest() != expected:
        found = digests[algorithm].hexdigest()
        raise UserError(
            f"{path}: {algorithm} is {found[:12]}..., expected {expected[:12]}...: damaged or another file; "
            "delete it and obtain it again"
        )
    return digests["sha256"].hexdigest()


def unpack(path, folder, pictures=None):
    """Extract a .zip or .tar(.gz, .xz, .bz2) into `folder`; any other file is linked there.

    With `pictures` (archive.Pictures), the pictures of a .zip or an uncompressed .tar are entered there and stay where
    they are. Raises UserError when the archive is damaged, or holds anything but files and folders below its root:
    absolute paths, `..`, links and devices are refused, not skipped.
    """
    path, folder = Path(path), Path(folder)
    with _damage_in_one_line(path):
        if zipfile.is_zipfile(path):
            _unpack_zip(path, folder, pictures)
        elif ".tar" in path.suffixes or path.suffix in (".tgz", ".zip"):
            _unpack_tar(path, folder, pictures)
        else:
            (folder / path.name).symlink_to(path.resolve())


@contextlib.contextmanager
def _damage_in_one_line(path):
    """What tarfile and zipfile raise on a damaged archive becomes a UserError."""
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError) as error:
        raise UserError(f"{path}: damaged archive ({_line(error)}); delete it and obtain it again") from None


def _unpack_zip(path, folder, pictures):
    opened = zipfile.ZipFile(path)
    with contextlib.nullcontext(opened) if pictures else opened as source:
        if pictures:
            pictures.close_later(source)
        for info in source.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)  # 0: packed on a system without such modes
            _refuse_escape(path, info.filename, kind in (0, stat.S_IFREG, stat.S_IFDIR))
            if pictures and archive.is_picture(info.filename):
                pictures.add(folder / info.filename, functools.partial(_read_zipped, path, source, info))
        rest = [info for info in source.infolist() if not (pictures and archive.is_picture(info.filename))]
        source.extractall(folder, rest)


def _read_zipped(path, source, info):
    with _damage_in_one_line(path):
        return source.read(info)


def _unpack_tar(path, folder, pictures):
    with tarfile.open(path) as source:
        plain = isinstance(source.fileobj, io.BufferedReader)  # a compressed one cannot be read from the middle
        stay = pictures if plain else None
        handle = stay and stay.close_later(open(path, "rb"))  # noqa: SIM115
        for info in source:
            _refuse_escape(path, info.name, info.isfile() or info.isdir())
            if stay and info.isfile() and not info.issparse() and archive.is_picture(info.name):
                stay.add(folder / info.name, functools.partial(_read_tarred, path, handle, info.offset_data, info.size))
            else:
                _extract(source, info, folder)


def _read_tarred(path, handle, offset, size):
    content = os.pread(handle.fileno(), size, offset)
    if len(content) < size:
        raise UserError(f"{path}: damaged archive (unexpected end of data); delete it and obtain it again")
    return content


def _extract(source, info, folder):
    """Write a file or folder of a tar, without its owner, times and modes, which take most of TarFile.extract's time.

    The name has been checked; a link that stands in its place is not followed.
    """
    target = f"{folder}/{info.name}"
    if info.isdir():
        os.makedirs(target, exist_ok=True)
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    no_link = lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o666)
    with source.extractfile(info) as member, open(target, "wb", opener=no_link) as file:
        shutil.copyfileobj(member, file)


@contextlib.contextmanager
def open_tar(path):
    """A TarFile that extracts plain data alone; Python before 3.11.4 lacks that filter."""
    with tarfile.open(path) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        yield archive


def _refuse_escape(path, member, plain):
    parts = member.replace("\\", "/").split("/")
    if parts[0] == "" or ":" in parts[0] or ".." in parts or not plain:
        raise UserError(f"{path}: refused: {member!r} is a link or device, or leaves the folder; use the official one")


# ------------------------------------------------------------------------------------ places and entries


def registry():
    """{name: DataSet} from data/registry.toml. Raises UserError when it cannot be read."""
    try:
        tables = tomllib.loads(REGISTRY.read_text())
        return {name: DataSet(name=name, **table) for name, table in tables.items()}
    except (OSError, tomllib.TOMLDecodeError, TypeError) as error:
        raise UserError(f"{REGISTRY}: {_line(error)}; restore it from git") from None


def _entry(name):
    sets = registry()
    if name not in sets:
        near = difflib.get_close_matches(name, sets, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sets)}"
        raise UserError(f"no data set {name!r}: {hint}")
    return sets[name]


def _root():
    """The data folder: data/ of this repository, or DATA_ROOT."""
    return Path(os.environ.get("DATA_ROOT") or REPOSITORY_DATA).resolve()


def _mirror(given=None):
    """The mirror as a Path (folder), a str (URL) or None. Raises UserError for a folder that does not exist."""
    place = given or os.environ.get("DATA_MIRROR")
    if not place or place.startswith(("http://", "https://")):
        return place or None
    folder = Path(place.removeprefix("file://")).expanduser()
    if not folder.is_dir():
        raise UserError(f"{place}: the mirror (--mirror or DATA_MIRROR) is no folder and no http(s) address")
    return folder.resolve()


def _prepared_path(entry):
    return _root() / "prepared" / f"{entry.name}.npz"


def _current_pack(entry, check=True):
    """The prepared pack, or None when there is none or an older version of the reader made it.

    With `check`, a file that changed since it was last verified is verified. Raises UserError for a damaged one.
    """
    path = _prepared_path(entry)
    prepared = pack.Pack.read(path) if path.exists() else None
    if prepared is None or prepared.meta.get("version") != entry.version:
        return None
    if check:
        prepared.check()
    return prepared


@contextlib.contextmanager
def _lock(entry):
    """One process prepares a set at a time. Whoever holds the lock may clear what a killed one left behind."""
    import fcntl  # POSIX only

    _root().mkdir(parents=True, exist_ok=True)
    with open(_root() / f".{entry.name}.lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        for stale in _root().glob(f".{entry.name}~*"):
            shutil.rmtree(stale, ignore_errors=True)
        for kind in ("npz", "verified"):
            for stale in _root().glob(f"prepared/.{entry.name}.{kind}.*.tmp"):
                stale.unlink(missing_ok=True)
        yield


@contextlib.contextmanager
def _errors_in_one_line():
    """A full disk, a missing permission and the like become a UserError that names the file."""
    try:
        yield
    except OSError as error:
        where, why = error.filename or _root(), error.strerror or _line(error)
        raise UserError(f"{where}: {why}; make room or give access, then run the same command again") from None


def _line(error):
    return " ".join(str(error).split())[:160] or type(error).__name__


# ---------------------------------------------------------------------------------------- command line


def _counts_text(counts):
    return " + ".join(f"{count} {name}" for name, count in counts.items())


def _missing_line(entry):
    """One line: what is missing and what to do."""
    if entry.parts:
        return f"{entry.name}: needs all of {', '.join(entry.parts)}; `make data-{entry.name}` prints the steps"
    if any(all("url" in item for item in files) for files in entry.archives):
        return f"{entry.name}: not on this machine; `make data-{entry.name}` downloads it ({entry.homepage})"
    return f"{entry.name}: not on this machine, no free download; `make data-{entry.name}` prints the steps"


def _state(entry):
    """One line of the table: name, state, counts, fingerprint."""
    try:
        prepared = _current_pack(entry)
    except UserError:
        return entry.name, "damaged", _counts_text(entry.counts[0]), "-"
    if prepared is not None:
        return (
            entry.name,
            "prepared",
            _counts_text(prepared.meta["counts"]),
            prepared.meta["fingerprint"][:12],
        )
    state = "files present" if _on_disk(entry, _mirror()) else "absent"
    return entry.name, state, _counts_text(entry.counts[0]), "-"


def _print_table():
    rows = [("set", "state", "images", "fingerprint", "title")]
    rows += [(*_state(entry), entry.title) for entry in registry().values()]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]))


def _print_pack(prepared):
    entry, meta = _entry(prepared.meta["name"]), prepared.meta
    print(f"{entry.name}: {entry.title}")
    print(f"  images       {_counts_text(meta['counts'])}")
    print(f"  fingerprint  {meta['fingerprint']}")
    print(f"  decoded by   {meta['decoder']}")
    for item in meta["origin"]:
        print(f"  from         {item['file']} (sha256 {item['sha256'] or 'of a folder is not taken'})")
    print(f"  file         {prepared.path} ({prepared.path.stat().st_size / 1e6:.1f} MB)")
    print(f"  terms        {entry.terms}")
    print(f"  cite         {entry.citation}")


def _print_steps(entry):
    for part in [*map(_entry, entry.parts), entry]:
        if part.parts or not _on_disk(part, _mirror()):
            print(f"{part.name}: {part.title}\n{part.homepage}\n{part.terms}\n")
            print(f"{part.steps}\nExpected:\n{part.tree}")


def main(argv):
    """`list`, `get NAME [--mirror PLACE]`, `verify NAME`."""
    mirror, words = cli.take_option(argv, "mirror")
    if words == ["list"] and mirror is None:
        _print_table()
    elif len(words) == 2 and words[0] == "get" and not words[1].startswith("-"):
        try:
            _print_pack(get(words[1], mirror))
        except MissingData:
            _print_steps(_entry(words[1]))
            raise
    elif len(words) == 2 and words[0] == "verify" and mirror is None:
        _print_pack(verify(words[1]))
        print("  verified     the decoded content has the recorded fingerprint")
    else:
        raise UserError("usage: python -m common.data list | get NAME [--mirror FOLDER_OR_URL] | verify NAME")


if __name__ == "__main__":
    cli.entry(main, about=__doc__)
