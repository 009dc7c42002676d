"""Archives as folders: tables are extracted, the many pictures of a set are read where they lie in the archive.

Writing tens of thousands of small files and deleting them again costs more than decoding them. A `Place` has the
reading methods of a `pathlib.Path`; what insists on a real file or folder (`open`, `Path`, h5py, torchvision) still
gets one, because os.fspath extracts what lies at the place.
"""

import dataclasses
import fnmatch
import os
from pathlib import Path

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


def is_picture(name):
    """Whether a file's name says that it is a picture."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


class Pictures:
    """Pictures that stay in their archives, by the path that each would have when extracted. A context manager."""

    def __init__(self):
        self._read = {}  # path: function that returns its bytes
        self._children = {}  # path of a folder: names in it
        self._open = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for handle in self._open:
            handle.close()

    def folder(self, path):
        """The folder with these pictures and its real files: a Place, or `path` itself when no picture is here."""
        return Place(Path(path), self) if self._read else Path(path)

    def close_later(self, handle):
        """Returns `handle`, an open archive, and closes it with this object."""
        self._open.append(handle)
        return handle

    def add(self, path, read):
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

    def extract(self, path):
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

    def __str__(self):
        return str(self.path)

    def __fspath__(self):
        self.pictures.extract(str(self.path))
        return str(self.path)

    def __truediv__(self, name):
        return Place(self.path / name, self.pictures)

    name = property(lambda self: self.path.name)
    stem = property(lambda self: self.path.stem)
    suffix = property(lambda self: self.path.suffix)
    parent = property(lambda self: Place(self.path.parent, self.pictures))

    def with_suffix(self, suffix):
        return Place(self.path.with_suffix(suffix), self.pictures)

    def is_dir(self):
        return str(self.path) in self.pictures._children or self.path.is_dir()

    def is_file(self):
        return str(self.path) in self.pictures._read or self.path.is_file()

    def exists(self):
        return self.is_dir() or self.is_file()

    def read_bytes(self):
        read = self.pictures._read.get(str(self.path))
        return read() if read else self.path.read_bytes()

    def read_text(self, *args, **kwargs):
        return self.path.read_text(*args, **kwargs)

    def iterdir(self):
        """The places in this folder, each once."""
        names = dict.fromkeys(os.listdir(self.path) if self.path.is_dir() else ())
        for name in names | self.pictures._children.get(str(self.path), {}):
            yield self / name

    def glob(self, pattern):
        """The places that match, as pathlib has it; `**` is not known (see rglob)."""
        first, _, rest = pattern.partition("/")
        if not any(mark in first for mark in "*?["):
            found = (self / first,) if (self / first).exists() else ()
        else:
            found = (place for place in self.iterdir() if fnmatch.fnmatchcase(place.name, first))
        for place in found:
            if not rest:
                yield place
            elif place.is_dir():
                yield from place.glob(rest)

    def rglob(self, pattern):
        """The places that match here or in any folder below."""
        yield from self.glob(pattern)
        for place in self.iterdir():
            if place.is_dir():
                yield from place.rglob(pattern)


def place(folder):
    """`folder` as a Path, or as it is when it is a Place."""
    return folder if isinstance(folder, Place) else Path(folder)
