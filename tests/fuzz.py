"""Damaged files: `make fuzz` gives every reader 20 cut and 20 flipped copies of a small valid file. Not in CI.

A damaged file must be answered by the same result (what was hit does not matter), or by one line that names the file
and a remedy of FILES. The others are faults: a traceback (or a crash, or no end), a wrong remedy, and another result
where the format holds a checksum. Another result where it holds none is counted. Which copies are made depends on the
seed alone; `python -m tests.fuzz --seed 1 --only png,zip` tries others on some readers. Ends with 1 where there are
faults.
"""

import contextlib
import dataclasses
import hashlib
import io
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parent))  # the files' writers stand in tests, which import each other so

from facepapers.common import cli

CUTS = FLIPS = 20
LIMIT_S = 90  # of a busy machine
GOOD, REFUSED, DIFFERENT = "same result", "one line", "other result"
FAULTS = ("traceback", "wrong remedy", "missed checksum")
COLUMNS = (GOOD, REFUSED, DIFFERENT, *FAULTS)


@dataclasses.dataclass(frozen=True)
class Reader:
    """A reader and a small valid file for it. `write(folder)` returns the file; `read(folder)` what is in it."""

    name: str
    write: Callable[[Path], Path]
    read: Callable[[Path], Any]
    remedies: str  # a pattern: what the message may tell the user to do
    checksum: bool = False  # whether the format holds one: then no other result may come out
    text: bool = False  # UTF-8: a byte that is none must be named by its place
    names: str = ""  # what the message names in place of the file


def damaged(whole: bytes, seed: int, cuts: int = CUTS, flips: int = FLIPS) -> list[tuple[str, bytes]]:
    """[(what was done, bytes)]: `cuts` shortened copies, and `flips` with one byte changed."""
    rng = np.random.default_rng(seed)
    copies = [(f"cut at {at}", whole[:at]) for at in rng.integers(0, len(whole), cuts).tolist()]
    for at, change in zip(rng.integers(0, len(whole), flips).tolist(), rng.integers(1, 256, flips).tolist()):
        copies.append((f"byte {at} ^ {change}", whole[:at] + bytes([whole[at] ^ change]) + whole[at + 1 :]))
    return copies


def digest(value: Any) -> str:
    """A hash of nested dicts, lists, arrays, tensors, text and numbers."""
    found = hashlib.sha256()

    def add(part):
        if hasattr(part, "detach"):
            part = part.detach().float().numpy()
        if isinstance(part, np.ndarray):
            plain = part.astype(str) if part.dtype == object else part  # whose bytes are addresses
            found.update(f"{part.dtype}{part.shape}".encode() + np.ascontiguousarray(plain).tobytes())
        elif isinstance(part, Mapping):
            for key in sorted(part, key=str):
                add(key)
                add(part[key])
        elif isinstance(part, list | tuple):
            found.update(f"[{len(part)}".encode())
            for one in part:
                add(one)
        else:
            found.update(part if isinstance(part, bytes) else repr(part).encode())

    add(value)
    return found.hexdigest()


class TooSlow(BaseException):
    """The reader does not end."""


def answer(reader: Reader, folder: Path) -> tuple[str, str]:
    """("digest", hex), ("line", message) or ("traceback", error): what a reader makes of the file in its folder."""

    def stop(*_):
        raise TooSlow

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT_S)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            return "digest", digest(reader.read(folder))
    except cli.UserError as error:
        return "line", str(error)
    except (Exception, SystemExit, TooSlow) as error:
        return "traceback", f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def verdict(reader: Reader, file: Path, content: bytes, expected: str, given: tuple[str, str]) -> str:
    """The column of COLUMNS that an answer to a damaged file belongs to."""
    kind, said = given
    broken = not_utf8(content) if reader.text else None
    if kind == "traceback":
        return "traceback"
    if kind == "line":
        named = (reader.names or file.name) in said and "\n" not in said
        place = broken is None or f"byte {broken}" in said
        return REFUSED if named and place and re.search(reader.remedies, said) else "wrong remedy"
    if said == expected:
        return GOOD if broken is None else "missed checksum"
    return "missed checksum" if reader.checksum or broken is not None else DIFFERENT


def not_utf8(content: bytes) -> int | None:
    """The place of the first byte that is no UTF-8, or None."""
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return None


def trial(reader: Reader, seed: int, cuts: int = CUTS, flips: int = FLIPS) -> tuple[Counter, list[str]]:
    """(how many answers of each column, a line for each fault) of one reader. ValueError if it fails on a good file."""
    found, faults = Counter(), []
    with tempfile.TemporaryDirectory() as work:
        file = reader.write(Path(work))
        whole, root = file.read_bytes(), Path(work)
        kind, expected = answer(reader, root)
        if kind != "digest" or answer(reader, root) != (kind, expected):
            raise ValueError(f"{reader.name}: its undamaged file: {expected}")
        for what, content in damaged(whole, seed, cuts, flips):
            file.write_bytes(content)
            given = answer(reader, root)
            column = verdict(reader, file, content, expected, given)
            found[column] += 1
            if column in FAULTS:
                faults.append(f"{reader.name}: {what} of {len(whole)}: {column}: {' '.join(given[1].split())[:300]}")
            file.write_bytes(whole)
    return found, faults


def guarded(reader: Reader, seed: int) -> tuple[Counter, list[str]]:
    """As `trial`, in a process of its own: a library may end it."""
    receive, send = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=lambda: send.send(trial(reader, seed)))
    child.start()
    send.close()
    try:
        return receive.recv()
    except EOFError:
        child.join()
        return Counter(traceback=1), [f"{reader.name}: its process ended (code {child.exitcode}) or its file is wrong"]
    finally:
        child.join()


def table(found: dict[str, Counter]) -> str:
    """A line for each reader and their sum."""
    whole = sum(found.values(), Counter())
    width = max(map(len, found))
    lines = [f"{'reader':{width}s}  " + "  ".join(COLUMNS)]
    for name, counts in [*found.items(), (f"{len(found)} readers", whole)]:
        lines.append(f"{name:{width}s}  " + "  ".join(f"{counts[c] or '':>{len(c)}}" for c in COLUMNS))
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Command:
    """Damage files and look at the answers."""

    seed: int = 0  # of the cuts and flips
    only: str = ""  # words, with commas between them, of the readers to try


def main(argv: Sequence[str]) -> None:
    """Print the table and the faults; ends with 1 where there are faults."""
    from tests.fuzz_readers import READERS

    options = cli.command(Command, argv, "python -m tests.fuzz", __doc__)
    chosen = [r for r in READERS if not options.only or any(w in r.name for w in options.only.split(","))]
    if not chosen:
        raise cli.UserError(f"--only {options.only}: no such reader; known: {', '.join(r.name for r in READERS)}")
    warnings.simplefilter("ignore")
    os.environ["DATA_ROOT"] = tempfile.mkdtemp()
    results = {reader.name: guarded(reader, options.seed) for reader in chosen}
    for fault in (line for _, faults in results.values() for line in faults):
        print(fault)
    counts = {name: found for name, (found, _) in results.items()}
    print(table(counts))
    if any(found[kind] for found in counts.values() for kind in FAULTS):
        raise SystemExit(1)


if __name__ == "__main__":
    cli.entry(main)
