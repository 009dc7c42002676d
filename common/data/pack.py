"""A data set as one file: the encoded images one after another, named arrays beside them, and a fingerprint.

The file is an .npz with a `meta.json` (numpy.load opens it). The images' bytes are not compressed but memory-mapped:
opening costs nothing and processes share the pages. Decoding happens once, into one tensor.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
import os
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from facepapers.common.cli import UserError
from facepapers.common.data.photos import open_image, shown
from facepapers.common.progress import progress
from facepapers.common.storage import atomic, one_line

if TYPE_CHECKING:
    import torch
    from PIL import Image

# What readers yield: an encoded or a plain image with its labels, or None with arrays of the whole set (see `gather`).
Sample = tuple[bytes | np.ndarray | None, dict[str, Any]]
Result = TypeVar("Result")
FORMAT = 1  # raised when the file's layout changes; older packs are then rebuilt
BATCH = 64  # images that a thread decodes before it takes the next ones
# What zipfile and numpy raise on a damaged file. NotImplementedError: a flipped bit in a member's flags.
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, KeyError, ValueError, EOFError, OSError, NotImplementedError)


@dataclasses.dataclass(frozen=True, eq=False)
class Pack:
    """A prepared set of N images. `arrays` holds named arrays, by custom (N, ...); `meta` is plain JSON."""

    path: Path
    meta: dict[str, Any]
    arrays: dict[str, np.ndarray]
    offsets: np.ndarray  # (N + 1,) int64: image i is blob[offsets[i]:offsets[i + 1]]
    blob: np.ndarray  # uint8, memory-mapped

    @classmethod
    def read(cls, path: Path | str) -> Pack:
        """Open a pack. Raises UserError when the file is missing, truncated or no pack."""
        path = Path(path)
        try:
            with zipfile.ZipFile(path) as archive:
                meta = json.loads(archive.read("meta.json"))
                arrays = {
                    name.removesuffix(".npy"): np.lib.format.read_array(io.BytesIO(archive.read(name)))
                    for name in archive.namelist()
                    if name.endswith(".npy") and name != "blob.npy"
                }
                blob = _map_member(path, archive.getinfo("blob.npy"))
            offsets = arrays.pop("offsets")
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; prepare it (`python -m facepapers.common.data get NAME`)") from None
        except _DAMAGE as error:
            raise UserError(f"{path}: truncated or corrupt pack ({one_line(error)}); {_remedy(path)}") from None
        if meta.get("format") != FORMAT:
            raise UserError(f"{path}: made by another version of this code; {_remedy(path)}")
        if (np.diff(offsets) <= 0).any() or offsets[0] != 0 or offsets[-1] != len(blob):
            raise UserError(f"{path}: truncated or corrupt pack (image offsets do not fit); {_remedy(path)}")
        return cls(path, meta, arrays, offsets, blob)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def encoded(self, i: int) -> bytes:
        """The stored bytes of image i: JPEG, PNG or WebP."""
        return self.blob[self.offsets[i] : self.offsets[i + 1]].tobytes()

    def image(self, i: int) -> Image.Image:
        """Image i as a PIL image. Raises UserError when its bytes are damaged."""
        return open_image(self.encoded(i), f"{self.path}: image {i}")

    def decode(
        self, size: int | None = None, indices: Iterable[int] | None = None, threads: int = 2, channels: int = 3
    ) -> torch.Tensor:
        """Images as one uint8 tensor (N, channels, H, W), RGB or, with channels=1, grey.

        size: side of the squares to resize to (antialiased); without it all images must have one size. Of images that
        are not square Pillow 13 makes other pixels than 12 (findings/), by up to some 14 grey levels.
        Raises UserError when sizes differ or an image is damaged.
        """
        import torch

        indices = range(len(self)) if indices is None else [int(i) for i in indices]
        if not len(indices):
            return torch.empty(0, channels, size or 0, size or 0, dtype=torch.uint8)
        height, width = (size, size) if size else self.image(indices[0]).size[::-1]
        out = torch.empty(len(indices), channels, height, width, dtype=torch.uint8)
        rows = out.numpy()

        def one(row):
            i = indices[row]
            image = shown(self.image(i), f"{self.path}: image {i}", "RGB" if channels == 3 else "L")
            if image.size != (width, height):
                if size is None:
                    raise UserError(f"{self.path}: images differ in size; decode(size=...) makes them equal")
                image = image.resize((width, height), resample=3)  # bicubic
            rows[row] = np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)

        _in_threads(one, range(len(indices)), threads, f"decoding {self.path.stem}")
        return out

    def check(self) -> None:
        """`verify` when the file, or the decoder, is not the one that was verified last. Raises UserError as it does.

        A stamp beside the file tells: its size and time of change then. Where none can be written, each call verifies.
        """
        try:
            known = json.loads(stamp_path(self.path).read_text())
        except (OSError, ValueError):
            known = None
        if known != self._stamp():
            print(f"{self.path}: new or changed since it was last verified; comparing its content", file=sys.stderr)
            self.verify()

    def verify(self, threads: int = 2) -> None:
        """Decode everything and compare with the stored fingerprint. Raises UserError when they differ."""
        stamp = self._stamp()  # of the time before: what changes meanwhile is verified again
        with contextlib.suppress(OSError):
            stamp_path(self.path).unlink()
        self._compare(threads)
        self._write_stamp(stamp)

    def _stamp(self) -> dict[str, Any]:
        """What `check` compares: the file's size and time, the fingerprint and the decoder."""
        about = self.path.stat()
        said = {"fingerprint": self.meta["fingerprint"], "decoder": decoder()}
        return {"size": about.st_size, "mtime_ns": about.st_mtime_ns, **said}

    def _write_stamp(self, stamp: dict[str, Any]) -> None:
        path = stamp_path(self.path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with contextlib.suppress(OSError):  # a folder that cannot be written: then the next opening verifies again
            temporary.write_text(json.dumps(stamp, indent=1) + "\n")
            os.replace(temporary, path)

    def _compare(self, threads: int) -> None:
        try:
            found = fingerprint([self.encoded(i) for i in range(len(self))], self.arrays, threads)
        except UserError as error:
            raise UserError(f"{self.path}: corrupt pack ({str(error).split(';')[0]}); {_remedy(self.path)}") from None
        if found != self.meta["fingerprint"]:
            now, then, said = decoder(), self.meta["decoder"], self.meta["fingerprint"]
            cause = "the file is damaged" if now == then else f"decoder now {now}, then {then}"
            raise UserError(f"{self.path}: content {found[:12]}, recorded {said[:12]} ({cause}); {_remedy(self.path)}")


def gather(
    samples: Iterable[Sample], title: str = "", total: int | None = None
) -> tuple[list[bytes], dict[str, np.ndarray]]:
    """Encode samples in memory, ready for `write`: returns (list of image bytes, dict of stacked arrays).

    samples: iterable of (image, row). An image is encoded bytes, kept as they are, or a uint8 array (H, W, 3)
    or (H, W), stored as lossless WebP. A row is a dict of scalars, strings or arrays, the same keys each time.
    A sample (None, arrays) adds arrays of the whole set, such as a list of pairs.
    """
    encoded, rows, whole = [], [], {}
    for image, row in progress(samples, title, "images", total):
        if image is None:
            whole.update(row)
            continue
        encoded.append(image if isinstance(image, bytes) else encode(image))
        rows.append(row)
    arrays = {key: np.array([row[key] for row in rows]) for key in (rows[0] if rows else {})}
    return encoded, arrays | whole


def write(
    path: Path | str, encoded: Sequence[bytes], arrays: dict[str, np.ndarray], meta: dict[str, Any], threads: int = 2
) -> Pack:
    """Write a pack in one atomic step and return it opened. The fingerprint and the decoder enter `meta`.

    Raises UserError when there is nothing to write, an image is damaged, or the disk is full or read-only.
    """
    path = Path(path)
    if not encoded:
        raise UserError(f"{path}: no images to store")
    meta = {
        **meta,
        "format": FORMAT,
        "fingerprint": fingerprint(encoded, arrays, threads),
        "decoder": decoder(),
        "images": len(encoded),
    }
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    try:
        with atomic(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            archive.writestr(zipfile.ZipInfo("meta.json"), json.dumps(meta, indent=1))
            for name, array in {"offsets": offsets, **arrays}.items():
                info = zipfile.ZipInfo(f"{name}.npy")
                info.compress_type = zipfile.ZIP_DEFLATED  # file names take four bytes a letter
                with archive.open(info, "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
            with archive.open(zipfile.ZipInfo("blob.npy"), "w", force_zip64=True) as member:
                header = {"descr": "|u1", "fortran_order": False, "shape": (int(offsets[-1]),)}
                np.lib.format.write_array_header_1_0(member, header)
                for image in encoded:
                    member.write(image)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None
    written = Pack.read(path)
    written._write_stamp(written._stamp())
    return written


def stamp_path(path: Path | str) -> Path:
    """Where the stamp of a verified pack lies: NAME.verified beside NAME.npz."""
    return Path(path).with_suffix(".verified")


def fingerprint(encoded: Sequence[bytes], arrays: dict[str, np.ndarray], threads: int = 2) -> str:
    """Hex sha256 over every decoded image (mode, size, pixels) and every array (name, type, shape, values).

    It names the content and not the file: re-encoding without loss keeps it, another JPEG decoder may not.
    """

    names = arrays.get("name", range(len(encoded)))

    def digest(i):
        image = open_image(encoded[i], f"image {names[i]}")
        return hashlib.sha256(f"{image.mode}{image.size}".encode() + image.tobytes()).digest()

    total = hashlib.sha256()
    for part in _in_threads(digest, range(len(encoded)), threads, "hashing"):
        total.update(part)
    for name, array in sorted(arrays.items()):
        total.update(f"{name} {array.dtype.str} {array.shape}".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def decoder() -> str:
    """Which decoders made the pixels: one string for records."""
    import PIL
    from PIL import features

    jpeg = features.version("libjpeg_turbo") or features.version("jpg")
    return f"Pillow {PIL.__version__}, libjpeg {jpeg}, libwebp {features.version('webp')}"


def encode(image: np.ndarray, effort: int = 0) -> bytes:
    """uint8 (H, W, 3) or (H, W) to lossless WebP. At 256x256 effort 0 takes 10 ms; 4 takes 65 to save 11 %.

    Small pictures gain more: grey 48x48 faces shrink by a quarter from effort 0 (1.5 ms) to 2 (3 ms).
    """
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="WEBP", lossless=True, quality=0, method=effort)
    return buffer.getvalue()


def _map_member(path: Path, info: zipfile.ZipInfo) -> np.ndarray:
    """Memory-map the array of an uncompressed member of a zip file."""
    with open(path, "rb") as handle:
        handle.seek(info.header_offset + 26)
        handle.seek(sum(struct.unpack("<HH", handle.read(4))), io.SEEK_CUR)  # past its name and extra field
        np.lib.format.read_magic(handle)
        shape, _, dtype = np.lib.format.read_array_header_1_0(handle)
        return np.memmap(path, dtype, "r", offset=handle.tell(), shape=shape)


def _in_threads(work: Callable[[int], Result], jobs: Sequence[int], threads: int, title: str) -> list[Result]:
    """[work(job) for job in jobs] in `threads` threads, with a sign of life.

    A thread takes BATCH jobs at a time: handing over one costs as much as decoding a small image.
    """
    batches = (jobs[i : i + BATCH] for i in range(0, len(jobs), BATCH))
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        done = pool.map(lambda batch: [work(job) for job in batch], batches)
        return list(progress(itertools.chain.from_iterable(done), title, "images", len(jobs)))


def _remedy(path: Path) -> str:
    return f"delete it and prepare the set again (`python -m facepapers.common.data get {Path(path).stem}`)"
