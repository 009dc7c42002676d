"""Archives as folders: tables are extracted, the many pictures of a set are read where they lie in the archive.

Writing tens of thousands of small files and deleting them again costs more than decoding them. A `Place` has the
reading methods of a `pathlib.Path`; what insists on a real file or folder (`open`, `Path`, h5py, torchvision) still
gets one, because os.fspath extracts what lies at the place.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeVar

Handle = TypeVar("Handle", BinaryIO, zipfile.ZipFile)
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


def is_picture(name: str) -> bool:
    """Whether a file's name says that it is a picture."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def visible(folder: AnyPath, pattern: str = "*") -> Iterator[AnyPath]:
    """What matches a glob pattern in a folder, but for what lies at or below a name that begins with a dot.

    Copies that macOS makes (._face.jpg, __MACOSX/), notebooks' checkpoints and the like lie beside what people have;
    no set needs them.
    """
    above = len(folder.parts)
    for found in folder.glob(pattern):
        if not any(part.startswith(".") or part == "__MACOSX" for part in found.parts[above:]):
            yield found


def entries(folder: AnyPath, pattern: str = "*") -> list[AnyPath]:
    """As `visible`, sorted."""
    return sorted(visible(folder, pattern))


class Pictures:
    """Pictures that stay in their archives, by the path that each would have when extracted. A context manager."""

    def __init__(self) -> None:
        self._read: dict[str, Callable[[], bytes]] = {}  # path: function that returns its bytes
        self._children: dict[str, dict[str, None]] = {}  # path of a folder: names in it, in order
        self._open: list[BinaryIO | zipfile.ZipFile] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._open:
            handle.close()

    def folder(self, path: Path | str) -> AnyPath:
        """The folder with these pictures and its real files: a Place, or `path` itself when no picture is here."""
        return Place(Path(path), self) if self._read else Path(path)

    def close_later(self, handle: Handle) -> Handle:
        """Returns `handle`, an open archive, and closes it with this object."""
        self._open.append(handle)
        return handle

    def add(self, path: Path | str, read: Callable[[], bytes]) -> None:
        """Enter a picture; a later one of the same path replaces it, as extraction does."""
        path = str(path)
        self._read[path] = read
        while True:
            above, name = os.path.split(path)
            known = self._children.setdefault(above, {})
            if not name or name in known:
                return
            known[name] = None
            path = above

    def extract(self, path: str) -> None:
        """Write the pictures at or below `path` as files."""
        for name in list(self._children.get(path, ())):
            self.extract(f"{path}/{name}")
        if path in self._read and not os.path.exists(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            Path(path).write_bytes(self._read[path]())


@dataclasses.dataclass(frozen=True, order=True, slots=True)
class Place:
    """A path at which a file or folder lies on disk, or a picture in an archive, or both kinds below a folder."""

    path: Path
    pictures: Pictures = dataclasses.field(compare=False, repr=False)

    def __str__(self) -> str:
        return str(self.path)

    def __fspath__(self) -> str:
        self.pictures.extract(str(self.path))
        return str(self.path)

    def __truediv__(self, name: str) -> Place:
        return Place(self.path / name, self.pictures)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def parts(self) -> tuple[str, ...]:
        return self.path.parts

    @property
    def stem(self) -> str:
        return self.path.stem

    @property
    def suffix(self) -> str:
        return self.path.suffix

    @property
    def parent(self) -> Place:
        return Place(self.path.parent, self.pictures)

    def with_suffix(self, suffix: str) -> Place:
        return Place(self.path.with_suffix(suffix), self.pictures)

    def is_dir(self) -> bool:
        return str(self.path) in self.pictures._children or self.path.is_dir()

    def is_file(self) -> bool:
        return str(self.path) in self.pictures._read or self.path.is_file()

    def exists(self) -> bool:
        return self.is_dir() or self.is_file()

    def read_bytes(self) -> bytes:
        read = self.pictures._read.get(str(self.path))
        return read() if read else self.path.read_bytes()

    def read_text(self, *args: Any, **kwargs: Any) -> str:
        return self.path.read_text(*args, **kwargs)

    def iterdir(self) -> Iterator[Place]:
        """The places in this folder, each once."""
        names = dict.fromkeys(os.listdir(self.path) if self.path.is_dir() else ())
        for name in names | self.pictures._children.get(str(self.path), {}):
            yield self / name

    def glob(self, pattern: str) -> Iterator[Place]:
        """The places that match, as pathlib has it; `**` is not known (see rglob)."""
        first, _, rest = pattern.partition("/")
        if not any(mark in first for mark in "*?["):
            found = iter([self / first] if (self / first).exists() else [])
        else:
            found = (place for place in self.iterdir() if fnmatch.fnmatchcase(place.name, first))
        for place in found:
            if not rest:
                yield place
            elif place.is_dir():
                yield from place.glob(rest)

    def rglob(self, pattern: str) -> Iterator[Place]:
        """The places that match here or in any folder below."""
        yield from self.glob(pattern)
        for place in self.iterdir():
            if place.is_dir():
                yield from place.rglob(pattern)


AnyPath = Path | Place


def place(folder: AnyPath | str) -> AnyPath:
    """`folder` as a Path, or as it is when it is a Place."""
    return folder if isinstance(folder, Place) else Path(folder)
