"""Readers of insightface's `.bin` verification sets and RecordIO training sets (without mxnet), and image folders.

`read_bin` returns tensors; `RecordIO` and `FolderSet` are map-style data sets for a DataLoader. LFW's reader lies in
common/readers_recognition.py. Every bad input raises UserError: one line with the file, what is wrong, and the remedy.
"""

import concurrent.futures
import pickle
import struct
from pathlib import Path

import numpy as np
import torch

from common.cli import UserError
from common.pack import open_image
from common.readers import identity_files
from common.readers_recognition import ALIGNED_PX, aligned, five_points

MAGIC = 0xCED7230A  # starts every RecordIO part
FETCH = "fetch the file again"


def decode(encoded, names=None, size=None, threads=2):
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
        out[i] = np.asarray(image.convert("RGB")).transpose(2, 0, 1)

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, range(len(encoded))))
    return torch.from_numpy(out)


# ---- insightface's verification sets (lfw.bin, cfp_fp.bin, agedb_30.bin, ...)


class _PlainUnpickler(pickle.Unpickler):
    """Unpickles built-in containers and values; any reference to a class or function is refused unseen."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"it wants to run {module}.{name}")


def read_bin(path, size=112, threads=2):
    """(images uint8 (2P, 3, size, size), same (P,) bool) of a `.bin`; images 2i and 2i + 1 are pair i.

    The file is a pickle of (list of encoded images as bytes, list of bool). Files of Python 2 load too. Raises
    UserError for a pickle that holds or tries anything else, and for damaged images.
    """
    try:
        with open(path, "rb") as handle:
            content = _PlainUnpickler(handle, encoding="bytes").load()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; see data/README.md for where verification sets come from") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name a .bin file") from None
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
    for kind, items, name in ((bytes, encoded, "image"), (bool, same, "truth")):
        strange = [i for i, item in enumerate(items) if type(item) is not kind]
        if strange:
            found = type(items[strange[0]]).__name__
            raise UserError(f"{path}: {name} {strange[0]} is a {found}, not {kind.__name__}; do not trust this file")
    if len(encoded) != 2 * len(same) or not same:
        raise UserError(f"{path}: {len(encoded)} images for {len(same)} pairs; expected two per pair; {FETCH}")
    return encoded, same


# ---- RecordIO train sets (train.rec, train.idx, property): CASIA, MS1M*, Glint360K as insightface ships them


class RecordIO(torch.utils.data.Dataset):
    """Item i is (uint8 image (3, H, W) RGB, label). Files are memory-mapped: opening reads the index only.

    `folder` holds train.rec, train.idx ("key<TAB>offset" lines) and property ("classes,height,width"). If record 0 has
    the two-number label (a, b), images are keys 1..a-1 and keys a..b-1 are identities, whose labels give their key
    ranges; else every record is an image. Raises UserError for missing, truncated or inconsistent files, labels
    outside the class range, and identities without an image.
    """

    def __init__(self, folder):
        folder = Path(folder)
        self.path = folder / "train.rec"
        self.classes, self.height, self.width = read_property(folder / "property")
        self.offsets = read_index(folder / "train.idx")
        if not self.path.is_file() or self.path.stat().st_size == 0:
            raise UserError(f"{self.path}: missing or empty; {FETCH}")
        self.bytes = np.memmap(self.path, np.uint8, "r")
        last = max(self.offsets, key=self.offsets.get)
        self._record(last)  # a truncated file shows here, not hours later
        header = self._label(0) if 0 in self.offsets else np.zeros(1)
        if len(header) > 1:
            first_identity, end = (int(v) for v in header[:2])
            self.keys = np.arange(1, first_identity)
            self._check_identities(first_identity, end)
        else:
            self.keys = np.array(sorted(self.offsets))

    def __len__(self):
        return len(self.keys)

    def __getitem__(self, index):
        key = int(self.keys[index])
        label, image = self._unpack(key)
        if not 0 <= label[0] < self.classes:
            raise UserError(f"{self.path}: record {key} has label {label[0]:g}, outside 0..{self.classes - 1}; {FETCH}")
        image = open_image(image, f"{self.path}: record {key}").convert("RGB")
        if image.size != (self.width, self.height):
            raise UserError(f"{self.path}: record {key} is {image.width}x{image.height} px, unlike property; {FETCH}")
        return torch.from_numpy(np.array(image).transpose(2, 0, 1)), int(label[0])

    def labels(self):
        """The label of every image (N,): reads each record's header once."""
        return np.array([int(self._label(int(key))[0]) for key in self.keys])

    def _check_identities(self, first, end):
        if end - first != self.classes:
            raise UserError(f"{self.path}: {end - first} identities where property says {self.classes}; {FETCH}")
        for key in range(first, end):
            start, stop = self._label(key)[:2]
            if stop <= start:
                raise UserError(f"{self.path}: identity {key - first} (record {key}) has no image; {FETCH}")

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
        if key not in self.offsets:
            raise UserError(f"{self.path}: the index has no record {key}; {FETCH}")
        at, parts = self.offsets[key], []
        while True:
            head = self.bytes[at : at + 8].tobytes()
            if len(head) < 8:
                raise UserError(f"{self.path}: truncated: record {key} would start at byte {at}; {FETCH}")
            magic, word = struct.unpack("<II", head)
            if magic != MAGIC:
                raise UserError(f"{self.path}: no record {key} at byte {at}; rec and idx do not belong together")
            part, length = word >> 29, word & (1 << 29) - 1
            if at + 8 + length > len(self.bytes):
                raise UserError(f"{self.path}: truncated inside record {key}; {FETCH}")
            parts.append(self.bytes[at + 8 : at + 8 + length].tobytes())
            if part in (0, 3):  # whole, or the last part; 1 is the first, 2 a middle one
                return struct.pack("<I", MAGIC).join(parts)
            at += 8 + length  # whole words: the cut was at an aligned place


def read_property(path):
    """(classes, height, width) of a `property` file, one line of three numbers."""
    try:
        classes, height, width = (int(word) for word in Path(path).read_text().split(","))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; a RecordIO set is train.rec, train.idx and property") from None
    except ValueError:
        raise UserError(f"{path}: expected one line 'classes,height,width'; {FETCH}") from None
    return classes, height, width


def read_index(path):
    """{key: byte offset} of an `.idx` file."""
    try:
        lines = [line.split() for line in Path(path).read_text().splitlines() if line.strip()]
        offsets = {int(key): int(offset) for key, offset in lines}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; a RecordIO set is train.rec, train.idx and property") from None
    except ValueError:
        raise UserError(f"{path}: expected lines 'key<TAB>offset'; {FETCH}") from None
    if not offsets:
        raise UserError(f"{path}: empty; {FETCH}")
    return offsets


# ---- Image folders


class FolderSet(torch.utils.data.Dataset):
    """A tree <identity>/<image>, decoded one by one: (uint8 (3, 112, 112), label).

    Faces of 112 px are taken as aligned; larger photos are aligned by the five points of a landmarks.csv in the folder
    (`python -m common.align` writes it). `names` are <identity>/<file>. UserError for photos without points.
    """

    def __init__(self, folder):
        self.files, self.names, labels = zip(*identity_files(folder), strict=True)
        self.labels = np.array(labels)
        self.classes = int(self.labels.max()) + 1
        self.points = five_points(folder, folder)

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        path = self.files[index]
        if self.points is not None:
            face = aligned(path, self.points.get(self.names[index]))
        else:
            face = np.array(open_image(path).convert("RGB"))
            if face.shape[:2] != (ALIGNED_PX, ALIGNED_PX):
                raise UserError(f"{path}: {face.shape[1]}x{face.shape[0]} px, unlike the first; align all faces")
        return torch.from_numpy(face.transpose(2, 0, 1)), int(self.labels[index])
