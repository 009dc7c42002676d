"""How runs that `make settle` and `make sweep` begin share a machine: how many at once, their cores, their folder."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from facepapers.common import cli, storage


def runs_at_once(jobs: int) -> int:
    """Runs at a time as asked for, or two where there are two cores. UserError below 0."""
    if jobs < 0:
        raise cli.UserError(f"--jobs {jobs}: give 1 or more, or 0 for two where there are two cores")
    return jobs or min(2, os.cpu_count() or 1)


def threads_of(at_once: int) -> int:
    """Threads of each of so many runs: its share of the cores, or fewer where OMP_NUM_THREADS says so."""
    share, given = max(1, (os.cpu_count() or 1) // at_once), os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(given)) if given.isdecimal() and int(given) else share


@contextlib.contextmanager
def alone(out: Path) -> Iterator[int]:
    """Hold a folder of records for this process, and for those that inherit the file descriptor that it yields.

    They may outlive this one, where it is killed. UserError where another holds it, or it cannot be written.
    """
    import fcntl  # POSIX only

    storage.writable(out)
    with open(out / ".settle.lock", "a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise cli.UserError(
                f"{out}: another settle or sweep is at work here, or runs of one that was killed; wait for it, or name "
                "another --out"
            ) from None
        try:
            yield handle.fileno()
        finally:
            Path(handle.name).unlink(missing_ok=True)
