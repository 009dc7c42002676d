"""Files written whole or not at all, their hashes, JSON."""

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from facepapers.common.cli import UserError


@contextlib.contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """A temporary path beside `path`, renamed onto it when the block ends without an error.

    Raises UserError when the disk is full or the folder cannot be written; the old file then still stands and no
    half-written one is left.
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
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        if full or "file write failed" in str(error) or "unexpected pos" in str(error):
            raise UserError(f"{path}: the disk is full; free some space and run the same command again") from None
        kinds = PermissionError | FileExistsError | NotADirectoryError | IsADirectoryError
        unfit = errno.EROFS, errno.ENAMETOOLONG  # read-only, or a name that this disk does not take
        if isinstance(error, OSError) and (isinstance(error, kinds) or error.errno in unfit):
            raise UserError(f"{path}: cannot be written ({error.strerror}); choose another folder") from None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def writable(folder: Path | str) -> None:
    """Make a folder, so that one which cannot be written is found before the work and not after it. UserError then."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from None


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
        temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path | str) -> Any:
    """The value in a JSON file. Raises UserError naming the file when it is missing or is no JSON."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); restore it from git or delete it") from None
