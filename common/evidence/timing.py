"""Seconds and memory in one process: two sides timed in turn, medians, peaks, and what the machine has left."""

import contextlib
import ctypes
import gc
import math
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch

from facepapers.common import paths

LIMITS = {"comparison_s": 3.0, "all_s": 170.0}  # of timed rounds; of everything


def timed(run):
    started = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def seconds_alone(make, rounds=9):
    """Median seconds of what `make` returns, after one warm-up; its memory is given back afterwards."""
    run = make()
    seconds = statistics.median(timed(run) for _ in range(affordable(rounds, timed(run))))
    del run
    give_back()
    return seconds


def compare(run, other, rounds=9):
    """Median seconds of both, timed in turn after one warm-up each, and the ratio other/run of these.

    Numbers are seconds that were measured before.
    """
    if not callable(run):
        return run, other, other / run
    rounds = affordable(rounds, timed(run) + timed(other))
    ours, theirs = map(statistics.median, zip(*((timed(run), timed(other)) for _ in range(rounds)), strict=True))
    return ours, theirs, theirs / ours


def cold_start(command, file, rounds=5):
    """CPU seconds of fresh interpreters, started in turn: (`import torch` and the bytes of `file`, `python COMMAND`).

    Medians over all threads of a process, after one warm-up each. CalledProcessError where one fails.
    """
    least = ["-c", "import sys, torch; open(sys.argv[1], 'rb').read()", str(file)]
    first = cpu_seconds(least) + cpu_seconds(command)
    pairs = [(cpu_seconds(least), cpu_seconds(command)) for _ in range(affordable(rounds, first))]
    return tuple(map(statistics.median, zip(*pairs, strict=True)))


def cpu_seconds(words):
    """CPU seconds, user's and system's, of `python WORDS` in a process of its own, in the repository."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *map(str, words)], check=True, capture_output=True, cwd=paths.ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def affordable(rounds, seconds):
    """How many rounds of `seconds` each a comparison may take: at least one."""
    return max(1, min(rounds, int(min(LIMITS["comparison_s"] / max(seconds, 1e-9), rounds))))


def peak_mib(run, device, warm=True):
    """Memory that `run` needs beyond what was held before, MiB: the allocator's on a GPU, the resident set on a CPU.

    `warm` runs it once before, so that what libraries load for good is not counted.
    """
    if warm:
        run()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    give_back()
    before, stop = resident(), threading.Event()
    if forget_peak():
        run()
        needed = (peak_resident() - before) / 2**20
        give_back()
        return needed
    seen = [before]

    def watch():
        while not stop.wait(0.001):
            seen[0] = max(seen[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        stop.set()
        watcher.join()
        give_back()
    return (seen[0] - before) / 2**20


def forget_peak():
    """Let the kernel begin anew with this process's largest resident set; False where it does not.

    A thread that looks each millisecond misses a short peak on a busy machine.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return not math.isnan(peak_resident())


def peak_resident():
    """Bytes of the largest resident set since `forget_peak` (NaN where the system does not tell)."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    except (OSError, KeyError):
        return math.nan


def give_back():
    """Return memory that is not used to the system: glibc keeps it, and what is reused would not be seen as needed."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def resident():
    """Bytes of this process in memory now (NaN where the system does not tell)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return math.nan


def available():
    """Bytes of main memory that can be had without swapping (caches count; where unknown: what is free)."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
