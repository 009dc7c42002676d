"""Speed as ratios measured in one run: `make bench`. Absolute times depend on the machine; nothing asserts them.

A paper's `bench.py` has `comparisons()`, which yields (what, name, run, other name, other run): two functions that
do the same work once. They are timed in turn, so that a drifting machine slows both.
"""

import statistics
import sys
import time
from importlib import import_module
from pathlib import Path

import torch

from common import cli, parallel, runs


def timed(run):
    started = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def compare(run, other, rounds=5):
    """Median seconds of both, and the median of the pairwise ratios other/run, after one warm-up each."""
    timed(run), timed(other)
    pairs = [(timed(run), timed(other)) for _ in range(rounds)]
    ratio = statistics.median(b / a for a, b in pairs)
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs), ratio


def main(argv):
    found = sorted(p.parent.name for p in Path(runs.ROOT, "papers").glob("*/bench.py"))
    wanted = [a.replace("-", "_") for a in argv] or found
    if unknown := [paper for paper in wanted if paper not in found]:
        raise cli.UserError(f"no benchmark for {unknown[0]!r}; known are {', '.join(found)}")
    parallel.keep_freed_memory()  # as every training does
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else runs.cpu_name()
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for paper in wanted:
        print(f"\n{paper}")
        for what, name, run, other_name, other in import_module(f"papers.{paper}.bench").comparisons():
            if other is None:
                timed(run)
                seconds = statistics.median(timed(run) for _ in range(9))
                print(f"  {what:44s} {name} {1000 * seconds:.1f} ms")
                continue
            ours, theirs, ratio = compare(run, other)
            print(f"  {what:44s} {name} {1000 * ours:.1f} ms, {other_name} {1000 * theirs:.1f} ms: {ratio:.1f} x")


if __name__ == "__main__":
    sys.path.insert(0, str(runs.ROOT))
    cli.entry(main)
