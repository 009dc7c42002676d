"""Speed as ratios measured in one run: `make bench`. Absolute times depend on the machine; nothing asserts them.

A paper's `bench.py` has `comparisons()`, which yields (what, name, run, other name, other run): two functions that
do the same work once. They are timed in turn, so that a drifting machine slows both. Where both do not fit into memory
together, they are the `seconds_alone` of each. Its `networks()` yields (what, network, input): each is trained for a
few steps, and their rate stands beside that of matrix products on the same machine.

All of it takes at most three minutes: slow comparisons get fewer rounds, and what no time is left for is named and left
out. `make bench ARGS=--record` takes its time and also writes results/<paper>/bench.csv, which the paper's card shows.
"""

import contextlib
import csv
import ctypes
import datetime
import functools
import gc
import math
import os
import statistics
import sys
import threading
import time
from importlib import import_module
from pathlib import Path

import torch

from common import checkpoint, cli, parallel, precision, probe, runs

COLUMNS = ("what", "ours", "ours_ms", "other", "other_ms", "ratio", "date", "device", "threads", "torch")


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


def measure(paper, rates, until=math.inf):
    """Print and return the rows (what, ours, ours_ms, other, other_ms, ratio) of a paper; a plain time has no other.

    `rates`: name of a precision -> GFLOP/s of its matrix products. After the time `until` (of time.monotonic) the rest
    of the paper's comparisons is left out, which is said.
    """
    module = import_module(f"papers.{paper}.bench")
    rows = [row for network in getattr(module, "networks", tuple)() for row in shares(*network, rates)]
    for what, name, run, other_name, other in module.comparisons():
        if time.monotonic() > until:
            print(f"  {what}, and what follows it: left out, no time is left (make bench ARGS={paper})")
            break
        if other is None:
            seconds = seconds_alone(lambda run=run: run) if callable(run) else run
            print(f"  {what:44s} {name} {1000 * seconds:.1f} ms")
            rows.append((what, name, f"{1000 * seconds:.1f}", "", "", ""))
            continue
        ours, theirs, ratio = compare(run, other)
        print(f"  {what:44s} {name} {1000 * ours:.1f} ms, {other_name} {1000 * theirs:.1f} ms: {ratio:.3g} x")
        rows.append((what, name, f"{1000 * ours:.1f}", other_name, f"{1000 * theirs:.1f}", f"{ratio:.3g}"))
    return rows


def shares(what, net, x, rates):
    """Rows of a network's training step in each precision of `rates`, beside the same work as matrix products.

    The work is three times the forward pass's multiply-adds: torch 2.11's counter takes the weight gradients of grouped
    convolutions `groups` times too often.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.eval()(x)
    gflop, optimizer = 3e-9 * counter.get_total_flops(), torch.optim.AdamW(net.train().parameters(), 1e-6, fused=True)
    rows = []
    for name, rate in rates.items():

        def step(name=name):
            with precision.autocast(x.device, name):
                y = net(x)
            optimizer.zero_grad(set_to_none=True)
            sum(part.float().square().mean() for part in (y if isinstance(y, tuple | list) else (y,))).backward()
            optimizer.step()

        ours, ideal = seconds_alone(lambda step=step: step), gflop / rate
        print(f"  step of {what}, {name}: {1000 * ours:.1f} ms, {100 * ideal / ours:.0f} % of {rate:.0f} GFLOP/s")
        row = (f"{1000 * ours:.1f}", "as matrix products", f"{1000 * ideal:.1f}", f"{ideal / ours:.3g}")
        rows.append((f"training step of {what}, {gflop:.0f} GFLOP", name, *row))
    return rows


@functools.cache
def matrix_rates(device):
    """Precision -> GFLOP/s of matrix products: float32, and bfloat16 where the device computes it natively."""
    types = {"fp32": torch.float32, "bf16": torch.bfloat16}
    used = ("fp32", "bf16") if precision.choose("auto", torch.device(device)) == "bf16" else ("fp32",)
    return {name: probe.gflops(types[name], device, 0.3) for name in used}


def record(paper, rows, device):
    """Write results/<paper>/bench.csv."""
    about = (datetime.date.today().isoformat(), device, torch.get_num_threads(), torch.__version__)
    with checkpoint.atomic(runs.RECORDED / paper / "bench.csv") as temporary, open(temporary, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *(row + about for row in rows)])


def main(argv):
    recording, argv = "--record" in argv, [a for a in argv if a != "--record"]
    found = sorted(p.parent.name for p in Path(runs.ROOT, "papers").glob("*/bench.py"))
    wanted = [a.replace("-", "_") for a in argv] or found
    if unknown := [paper for paper in wanted if paper not in found]:
        raise cli.UserError(f"no benchmark for {unknown[0]!r}; known are {', '.join(found)}")
    parallel.keep_freed_memory()  # as every training does
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else runs.cpu_name()
    rates = matrix_rates("cuda" if torch.cuda.is_available() else "cpu")
    if recording:
        LIMITS.update(dict.fromkeys(LIMITS, math.inf))
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}; matrix products: "
          + ", ".join(f"{rate:.0f} GFLOP/s in {name}" for name, rate in rates.items()))  # fmt: skip
    end = time.monotonic() + LIMITS["all_s"]
    for place, paper in enumerate(wanted):
        print(f"\n{paper}")
        now = time.monotonic()
        rows = measure(paper, rates, now + (end - now) / (len(wanted) - place))
        if recording:
            record(paper, rows, device)


if __name__ == "__main__":
    sys.path.insert(0, str(runs.ROOT))
    cli.entry(main, about=__doc__)
