"""Readers of insightface's `.bin` verification sets and RecordIO training sets (without mxnet), and image folders.

`read_bin` returns tensors; `RecordIO` and `FolderSet` are map-style data sets for a DataLoader. LFW's reader lies in
data/readers/recognition.py. Every bad input raises UserError: one line with the file, what is wrong, and the remedy.
"""

import concurrent.futures
import mmap
import pickle
import struct
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from facepapers.common import storage
from facepapers.common.cli import UserError
from facepapers.common.data.photos import open_image, read_photo, shown
from facepapers.common.data.readers.alignment import identity_files
from facepapers.common.data.readers.recognition import ALIGNED_PX, aligned, five_points

MAGIC = 0xCED7230A  # starts every RecordIO part
HEADER_WORDS = 10  # magic, length, flag, label, id (2), id2 (2) and the first two labels of a vector: 4 bytes each
EXACT = 2**24  # whole numbers from here on are rounded in float32, a record's type of labels
WINDOW = 16 << 20  # bytes of a record file that are mapped at a time
FETCH = "fetch the file again"
SET = "a RecordIO set is train.rec, train.idx and property: fetch them again"


def decode(
    encoded: Sequence[bytes], names: Sequence[str] | None = None, size: int | None = None, threads: int = 2
) -> torch.Tensor:
    """uint8 RGB tensor (N, 3, H, W) of encoded images of one size. `size` is demanded when given.

    Raises UserError, with the name, for a damaged image and for one of another size.
    """
    names = names or [f"image {i}" for i in range(len(encoded))]
    size = size or open_image(encoded[0], names[0]).size[0]
    out = np.empty((len(encoded), 3, size, size), np.uint8)

    def one(i):
        image = open_image(encoded[i], names[i])
        if image.size != (size, size):
            raise UserError(f"{names[i]}: {image.width}x{image.height} px, not {size}x{size}; align it first")
        out[i] = np.asarray(shown(image, names[i])).transpose(2, 0, 1)

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, range(len(encoded))))
    return torch.from_numpy(out)


# ---- insightface's verification sets (lfw.bin, cfp_fp.bin, agedb_30.bin, ...)


def _latin1(text, coding):
    """What Python 3 writes of bytes for readers of Python 2: text, and `_codecs.encode` to make bytes of it again."""
    if not isinstance(text, str) or coding != "latin1":
        raise pickle.UnpicklingError("it wants to run _codecs.encode on more than bytes")
    return text.encode("latin1")


HARMLESS = {("_codecs", "encode"): _latin1, ("builtins", "bytes"): bytes, ("__builtin__", "bytes"): bytes}


class _PlainUnpickler(pickle.Unpickler):
    """Unpickles built-in containers and values; any other reference to a class or function is refused unseen."""

    def find_class(self, module, name):
        if (module, name) in HARMLESS:
            return HARMLESS[module, name]
        if module.partition(".")[0] == "numpy":
            raise _Arrays(f"{module}.{name}")
        raise pickle.UnpicklingError(f"it wants to run {module}.{name}")


class _Arrays(Exception):
    """A pickle names numpy's functions, which are not run."""


def read_bin(path: Path | str, size: int = 112, threads: int = 2) -> tuple[torch.Tensor, np.ndarray]:
    """(images uint8 (2P, 3, size, size), same (P,) bool) of a `.bin`; images 2i and 2i + 1 are pair i.

    The file is a pickle of (list of encoded images as bytes, list of bool or of 0 and 1). Files of Python 2 load too.
    Raises UserError for a pickle that holds or tries anything else, and for damaged images.
    """
    try:
        with open(path, "rb") as handle:
            content = _PlainUnpickler(handle, encoding="bytes").load()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; see data/README.md for where verification sets come from") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name a .bin file") from None
    except _Arrays as error:
        raise UserError(
            f"{path}: holds numpy arrays ({error}), which reading would run code for; where you trust it, write it "
            "again as pickle.dump((list of bytes, list of bool), file)"
        ) from None
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        KeyError,
        IndexError,
        AttributeError,
        TypeError,
        UnicodeDecodeError,
        OverflowError,
        MemoryError,
    ) as error:
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise UserError(f"{path}: not a plain pickle of bytes, lists and bools ({reason}); do not trust it") from None
    encoded, same = _pairs_of(path, content)
    images = decode(encoded, [f"{path}: image {i}" for i in range(len(encoded))], size, threads)
    return images, np.array(same, bool)


def _pairs_of(path, content):
    """The two lists of a `.bin`, after checking every type."""
    if not (isinstance(content, tuple | list) and len(content) == 2 and all(isinstance(c, list) for c in content)):
        raise UserError(f"{path}: expected (list of images, list of bools), found {type(content).__name__}; {FETCH}")
    encoded, same = content
    for i, image in enumerate(encoded):
        if type(image) is not bytes:
            raise UserError(f"{path}: image {i} is a {type(image).__name__}, not bytes; do not trust this file")
    for i, truth in enumerate(same):
        if type(truth) not in (bool, int) or truth not in (0, 1):
            raise UserError(f"{path}: truth {i} is {str(truth)[:20]!r}, not True or False; do not trust this file")
    if len(encoded) != 2 * len(same) or not same:
        raise UserError(f"{path}: {len(encoded)} images for {len(same)} pairs; expected two per pair; {FETCH}")
    return encoded, same


# ---- RecordIO train sets (train.rec, train.idx, property): CASIA, MS1M*, Glint360K as insightface ships them


class RecordIO(torch.utils.data.Dataset):
    """Item i is (uint8 image (3, H, W) RGB, label). Files are memory-mapped: opening reads the index only.

    `folder` holds train.rec, train.idx ("key<TAB>offset" lines) and property ("classes,height,width"), which is derived
    from the records where it is absent. If record 0 has the two-number label (a, b), images are keys 1..a-1 and keys
    a..b-1 are identities, whose labels give their key ranges; else every record is an image. Raises UserError for
    missing, truncated or inconsistent files, labels outside the class range, and identities without an image.
    """

    classes: int
    height: int  # of every image, px
    width: int

    def __init__(self, folder: Path | str) -> None:
        folder = Path(folder)
        self.path = folder / "train.rec"
        self.index_keys, self.offsets = read_index(folder / "train.idx")
        if not self.path.is_file() or self.path.stat().st_size == 0:
            raise UserError(f"{self.path}: missing or empty; {FETCH}")
        self.bytes = np.memmap(self.path, np.uint8, "r")
        self._record(int(self.index_keys[self.offsets.argmax()]))  # a truncated file shows here, not hours later
        header = self._label(0) if self.index_keys[0] == 0 else np.zeros(1)
        first, end = self._exact(*map(int, header[:2])) if len(header) > 1 else (0, 0)
        self.keys = np.arange(1, first) if first else self.index_keys
        found = read_property(folder / "property") if (folder / "property").exists() else self._derived(end - first)
        self.classes, self.height, self.width = found
        if first:
            self._check_identities(first, end)

    def _exact(self, first, end):
        """The numbers of record 0 as they were before float32 rounded them, as it does from 2**24 on.

        Identities are the last records, and the only ones without an image.
        """
        if end >= EXACT:
            last, off = int(self.index_keys[-1]) + 1, int(np.spacing(np.float32(end)))
            end = last if abs(last - end) <= off else end
            near = self.index_keys[np.abs(self.index_keys - first) <= off].tolist()
            first = next((key for key in near if not self._unpack(key)[1]), first)
        return first, end

    def _derived(self, identities):
        """What `property` would say: the identities (where 0, the labels tell) and the size of the first image."""
        classes = identities or int(np.nanmax(self._first_labels(self.keys)[:, 0])) + 1
        image = open_image(self._unpack(int(self.keys[0]))[1], f"{self.path}: record {self.keys[0]}")
        line = f"{classes},{image.height},{image.width}"
        print(f"{self.path.parent}: no property file; the records say {line}", file=sys.stderr)
        return classes, image.height, image.width

    def __len__(self) -> int:
        return len(self.keys)

    def __getstate__(self) -> dict[str, Any]:
        """Without the mapped file, which pickle would copy whole into each spawned worker of a DataLoader."""
        return {name: value for name, value in vars(self).items() if name != "bytes"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.bytes = np.memmap(self.path, np.uint8, "r")

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        key = int(self.keys[index])
        label, image = self._unpack(key)
        self._check_range(key, label[0])
        name = f"{self.path}: record {key}"
        image = shown(open_image(image, name), name)
        if image.size != (self.width, self.height):
            raise UserError(f"{self.path}: record {key} is {image.width}x{image.height} px, unlike property; {FETCH}")
        return torch.from_numpy(np.array(image).transpose(2, 0, 1)), int(label[0])

    def labels(self) -> np.ndarray:
        """The label of every image (N,): reads each record's header once, no image."""
        found = self._first_labels(self.keys)[:, 0]
        wrong = ~((found >= 0) & (found < self.classes))
        if wrong.any():
            self._check_range(self.keys[wrong.argmax()], found[wrong.argmax()])
        return found.astype(np.int64)

    def _check_range(self, key, label):
        if not 0 <= label < self.classes:
            raise UserError(f"{self.path}: record {key} has label {label:g}, outside 0..{self.classes - 1}; {FETCH}")

    def _check_identities(self, first, end):
        if end - first != self.classes:
            raise UserError(f"{self.path}: {end - first} identities where property says {self.classes}; {FETCH}")
        start, stop = self._first_labels(np.arange(first, end)).T
        rounded = (stop == start) & (start >= EXACT)  # the range of a single image may be
        if empty := np.flatnonzero(~((stop > start) | rounded)).tolist():
            raise UserError(f"{self.path}: identity {empty[0]} (record {first + empty[0]}) has no image; {FETCH}")

    def _first_labels(self, keys):
        """(n, 2) float32: the first two labels of the records `keys`, NaN where a record has one.

        Headers are taken from the file as arrays. A record in several parts, at the file's end, or of which anything
        looks wrong is read alone, which joins its parts or says what is wrong.
        """
        at = self._offsets(keys)
        labels = np.full((len(keys), 2), np.nan, np.float32)
        alone = (at < 0) | (at % 4 != 0) | (at + 4 * HEADER_WORDS > len(self.bytes))
        rows = np.flatnonzero(~alone)
        rows = rows[at[rows].argsort(kind="stable")]
        words = self._headers(at[rows])
        length, flag = (words[:, 1] & (1 << 29) - 1).astype(np.int64), words[:, 2].astype(np.int64)
        whole = (words[:, 0] == MAGIC) & (words[:, 1] >> 29 == 0) & (length >= 24 + 4 * flag)
        alone[rows] = ~(whole & (at[rows] + 8 + length <= len(self.bytes)))
        values = words.view(np.float32)
        labels[rows, 0] = np.where(flag == 0, values[:, 3], values[:, 8])
        labels[rows, 1] = np.where(flag < 2, np.nan, values[:, 9])
        for row in np.flatnonzero(alone):
            found = self._label(int(keys[row]))[:2]
            labels[row] = np.nan
            labels[row, : len(found)] = found
        return labels

    def _headers(self, at):
        """The first HEADER_WORDS words (n, .) uint32 of the records at the ascending byte offsets `at`.

        The file is mapped one window after another, so that its pages do not add up in this process's memory.
        """
        words, done = np.empty((len(at), HEADER_WORDS), np.uint32), 0
        with open(self.path, "rb") as file:
            while done < len(at):
                start = int(at[done]) // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
                stop = np.searchsorted(at, start + WINDOW - 4 * HEADER_WORDS, "right")
                size = min(WINDOW, len(self.bytes) - start)
                with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ, offset=start) as window:
                    window.madvise(mmap.MADV_RANDOM)  # headers lie apart: reading ahead would read the images
                    inside = np.frombuffer(window, "<u4", size // 4)
                    words[done:stop] = inside[(at[done:stop, None] - start) // 4 + np.arange(HEADER_WORDS)]
                    del inside  # a window with a view of it cannot be closed
                done = stop
        return words

    def _offsets(self, keys):
        """(n,) byte offsets of the records `keys`. Raises UserError for a key that the index does not hold."""
        place = np.searchsorted(self.index_keys, keys).clip(max=len(self.index_keys) - 1)
        missing = self.index_keys[place] != keys
        if missing.any():
            index = self.path.with_suffix(".idx")
            raise UserError(f"{index}: the index has no record {keys[missing.argmax()]}; {FETCH}")
        return self.offsets[place]

    def _label(self, key):
        return self._unpack(key)[0]

    def _unpack(self, key):
        """(label (n,) float, encoded image) of a record: header flag, label, id, id2; then `flag` more labels."""
        record = self._record(key)
        if len(record) < 24:
            raise UserError(f"{self.path}: record {key} is shorter than its header; {FETCH}")
        flag, label = struct.unpack_from("<If", record)
        if flag == 0:
            return np.array([label]), record[24:]
        if len(record) < 24 + 4 * flag:
            raise UserError(f"{self.path}: record {key} is shorter than its {flag} labels; {FETCH}")
        return np.frombuffer(record, "<f4", flag, 24), record[24 + 4 * flag :]

    def _record(self, key):
        """Bytes of a record. The writer splits one at every aligned magic number inside it and drops that number."""
        at, parts = int(self._offsets(np.array([key]))[0]), []
        while True:
            head = self.bytes[at : at + 8].tobytes()
            if len(head) < 8:
                raise UserError(f"{self.path}: truncated: train.idx has record {key} at byte {at}; fetch both again")
            magic, word = struct.unpack("<II", head)
            if magic != MAGIC:
                raise UserError(f"{self.path}: no record {key} at byte {at}, where train.idx has it; fetch both again")
            part, length = word >> 29, word & (1 << 29) - 1
            if at + 8 + length > len(self.bytes):
                raise UserError(f"{self.path}: truncated inside record {key}; {FETCH}")
            parts.append(self.bytes[at + 8 : at + 8 + length].tobytes())
            if part in (0, 3):  # whole, or the last part; 1 is the first, 2 a middle one
                return struct.pack("<I", MAGIC).join(parts)
            at += 8 + length  # whole words: the cut was at an aligned place


def read_property(path: Path | str) -> tuple[int, int, int]:
    """(classes, height, width) of a `property` file, one line of three numbers."""
    try:
        classes, height, width = (int(word) for word in storage.read_text(path, SET).split(","))
    except ValueError:
        raise UserError(
            f"{path}: expected one line 'classes,height,width', such as '10572,112,112'; write it, or remove the file "
            "and the records tell"
        ) from None
    return classes, height, width


def read_index(path: Path | str) -> tuple[np.ndarray, np.ndarray]:
    """(keys, byte offsets) of an `.idx` file, (R,) int64 each, keys ascending. The last line of a key counts.

    Blank lines and the line ends of any system are fine. Raises UserError for anything but two whole numbers a line.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of an empty file; that is an error below
            lines = np.loadtxt(path, np.int64, comments=None, ndmin=2, encoding="utf-8-sig")
    except (FileNotFoundError, UnicodeDecodeError):
        storage.read_text(path, SET)  # says which of both
        raise
    except ValueError:
        raise UserError(f"{path}: expected lines 'key<TAB>offset'; {FETCH}") from None
    if not lines.size:
        raise UserError(f"{path}: empty; {FETCH}")
    if lines.shape[1] != 2 or lines.min() < 0:
        raise UserError(f"{path}: expected lines 'key<TAB>offset'; {FETCH}")
    keys, last = np.unique(lines[::-1, 0], return_index=True)
    return keys, lines[len(lines) - 1 - last, 1]


# ---- Image folders


class FolderSet(torch.utils.data.Dataset):
    """A tree <identity>/<image>, decoded one by one: (uint8 (3, 112, 112), label).

    Faces of 112 px are taken as aligned; larger photos are aligned by the five points of a landmarks.csv in the folder
    (`facepapers.common.tools.align` writes it). `names` are <identity>/<file>. UserError for photos without points.
    """

    def __init__(self, folder: Path | str) -> None:
        folder = Path(folder)
        self.files, self.names, labels = zip(*identity_files(folder), strict=True)
        self.labels = np.array(labels)
        self.classes = int(self.labels.max()) + 1
        self.points = five_points(folder, folder)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path = self.files[index]
        if self.points is not None:
            face = aligned(path, self.points.get(self.names[index]))
        else:
            face = read_photo(path).permute(1, 2, 0).numpy()
            if face.shape[:2] != (ALIGNED_PX, ALIGNED_PX):
                raise UserError(f"{path}: {face.shape[1]}x{face.shape[0]} px, unlike the first; align all faces")
        return torch.from_numpy(face.transpose(2, 0, 1)), int(self.labels[index])
