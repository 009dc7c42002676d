"""Files written whole or not at all, read whole or not at all: text, JSON, arrays; their hashes."""

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from facepapers.common.cli import UserError

if TYPE_CHECKING:
    import numpy as np

AnyPath = os.PathLike[str] | str
# What the system says when a disk is full, and where a file cannot be written whatever the space.
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FULL_WORDS = ("No space left", "file write failed", "unexpected pos")  # of torch and safetensors
UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EIO,
              errno.ENAMETOOLONG, errno.ELOOP, errno.ESTALE}  # fmt: skip
FOLDER = 0x10  # the MS-DOS attribute of folders in a zip file
GIT = "restore it from git or delete it"  # the remedy of files of the repository


@contextlib.contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """A temporary path beside `path`, renamed onto it when the block ends without an error.

    Raises UserError when the disk is full or the folder cannot be written; the old file then still stands and no
    half-written one is left. What a killed process left is removed by `clear` of the folder.
    """
    from safetensors import SafetensorError

    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch.save and safetensors report a failed write as errors of their own; the cause is still a full disk.
        number = getattr(error, "errno", None)
        if number in FULL or any(words in str(error) for words in FULL_WORDS):
            raise UserError(f"{path}: the disk is full; free some space and run the same command again") from None
        gone = number == errno.ENOENT and not path.parent.is_dir()  # the folder was removed meanwhile
        if isinstance(error, OSError) and (gone or number in UNWRITABLE):
            raise UserError(f"{path}: cannot be written ({error.strerror}); choose another folder") from None
        raise
    finally:
        with contextlib.suppress(OSError):  # the folder may be gone
            temporary.unlink(missing_ok=True)


def writable(folder: Path | str, make: bool = True) -> None:
    """UserError where a folder cannot be written: found before the work and not after it. It is made unless told not
    to; then the nearest folder above it that exists must be writable.
    """
    folder = Path(folder)
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        place = next(above for above in (folder, *folder.absolute().parents) if os.path.lexists(above))
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from None


def clear(folder: Path | str) -> None:
    """Remove the temporary files of `atomic` that processes which are gone have left in a folder and below it."""
    for left in Path(folder).rglob(".*.tmp"):
        number = left.name.split(".")[-2]
        if number.isdecimal() and not _alive(int(number)):
            left.unlink(missing_ok=True)


def _alive(number):
    """Whether there is a process of this number."""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # another user's
        return True
    return True


_claimed: dict[str, int] = {}  # folders that this process works in: open, and with it locked, until it ends


def claim(folder: Path | str) -> None:
    """Keep other processes out of a folder until this one ends, however it ends. UserError where another has it."""
    import fcntl  # POSIX only

    place = os.path.realpath(folder)
    if place in _claimed and os.path.samestat(os.fstat(_claimed[place]), os.stat(place)):
        return
    handle = os.open(place, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UserError(f"{folder}: another process is at work in it; wait until it has ended, or stop it") from None
    except OSError:  # a file system without locks
        pass
    _claimed[place] = handle


def sha256(path: Path | str) -> str:
    """Hex sha256 of a file."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def dump(value: Any) -> str:
    """`value` as JSON in one line, keys in order: equal values give equal text. ValueError for NaN and infinities."""
    return json.dumps(value, sort_keys=True, allow_nan=False)


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` whole or not at all. NaN and infinities are refused (ValueError): JSON has none."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: AnyPath, keys: Iterable[str] = ()) -> Any:
    """The value in a JSON file. UserError naming the file when it is missing, is no JSON, or lacks one of `keys`."""
    try:
        value = json.loads(read_text(path, GIT))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); {GIT}") from None
    if keys and (not isinstance(value, dict) or set(keys) - value.keys()):
        raise UserError(f"{path}: lacks {', '.join(sorted(set(keys) - set(value)))}; {GIT}")
    return value


def read_text(path: AnyPath, remedy: str) -> str:
    """The text of a UTF-8 file with plain line ends, without a byte order mark.

    Raises UserError, with the place of the first byte that is no UTF-8 and `remedy`.
    """
    with _readable(path, remedy):
        content = Path(path).read_bytes()
        return content.decode("utf-8").removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


@contextlib.contextmanager
def open_text(path: AnyPath, remedy: str) -> Iterator[TextIO]:
    """As `read_text` for files that are read line by line, as the csv module wants them: line ends as they are."""
    with _readable(path, remedy), open(path, newline="", encoding="utf-8-sig") as handle:
        yield handle


@contextlib.contextmanager
def _readable(path, remedy):
    """What goes wrong while a file is read as text becomes a UserError."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {remedy}") from None
    except UnicodeDecodeError:
        place = _not_utf8(Path(path).read_bytes())  # of the whole file; the error knows a part of it
        raise UserError(f"{path}: not a text file, byte {place} is no UTF-8; {remedy}") from None
    except csv.Error as error:  # a quote that never ends
        raise UserError(f"{path}: not a table of values with commas between them ({error}); {remedy}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); {remedy}") from None


def _not_utf8(content):
    """Place of the first byte that is no UTF-8."""
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start


def read_arrays(path: AnyPath, remedy: str = GIT) -> dict[str, "np.ndarray"]:
    """The arrays of an .npz file. Raises UserError when it is missing, damaged, or holds Python objects.

    Each part is read to its end, where its checksum is compared: `numpy.load` stops where an array is complete.
    """
    import numpy as np  # here and below: the environment is set up by hashes before there is a numpy

    try:
        with zipfile.ZipFile(path) as archive:
            parts = {name.removesuffix(".npy"): io.BytesIO(archive.read(name)) for name in archive.namelist()}
            return {name: np.lib.format.read_array(part, allow_pickle=False) for name, part in parts.items()}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {remedy}") from None
    except Exception as error:  # zipfile, zlib, and whatever a damaged header makes numpy's parser raise
        raise UserError(f"{path}: damaged file of arrays ({one_line(error)}); {remedy}") from None


def read_array(path: AnyPath, remedy: str, mapped: bool = False) -> "np.ndarray":
    """The array of an .npy file, memory-mapped if asked for. Raises UserError as `read_arrays` does."""
    import numpy as np

    try:
        if mapped:
            return np.lib.format.open_memmap(path, mode="r")
        with open(path, "rb") as handle:
            return np.lib.format.read_array(handle, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {remedy}") from None
    except Exception as error:  # as above
        raise UserError(f"{path}: damaged file of an array ({one_line(error)}); {remedy}") from None


def check_zip(path: AnyPath, remedy: str, end: str = "") -> None:
    """Compare the checksums of a zip file's parts whose names end with `end`; UserError where one differs.

    For files that are read without their checksums, as torch.load does. A file that is no zip passes.
    """
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if info.external_attr & FOLDER and info.file_size:  # torch.load would leave its tensor unread
                    raise ValueError(f"{info.filename} has content and is marked as a folder")
                with archive.open(info) if info.filename.endswith(end) else io.BytesIO() as part:
                    while part.read(1 << 20):
                        pass
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError) as error:
        raise UserError(f"{path}: damaged ({one_line(error)}); {remedy}") from None


def one_line(error: BaseException, most: int = 160) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())[:most] or type(error).__name__
