"""Speed as ratios measured in one run: `make bench`. Absolute times depend on the machine; nothing asserts them.

A paper's `bench.py` has `comparisons()`, which yields (what, name, run, other name, other run): two functions that
do the same work once. They are timed in turn, so that a drifting machine slows both. Where both do not fit into memory
together, they are the `seconds_alone` of each. Its `trained_networks()` yields (what, network, input): each is trained
for a few steps, and their rate stands beside that of matrix products on the same machine. The paper's released models
follow, in onnxruntime (where it is installed) beside torch.

All of it takes at most three minutes: slow comparisons get fewer rounds, and what no time is left for is named and left
out. With `--record` it takes its time and also writes results/<paper>/bench.csv, which the paper's notes show.
"""

import csv
import datetime
import functools
import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch

from facepapers.common import cli, paths, storage
from facepapers.common.evidence import environment, timing
from facepapers.common.evidence.timing import compare, seconds_alone
from facepapers.common.tools import export
from facepapers.common.training import parallel, precision, probe

COLUMNS = ("what", "ours", "ours_ms", "other", "other_ms", "ratio", "date", "device", "threads", "torch")


def measure(paper: str, rates: dict[str, float], until: float = math.inf) -> list[tuple]:
    """Print and return the rows (what, ours, ours_ms, other, other_ms, ratio) of a paper; a plain time has no other.

    `rates`: name of a precision -> GFLOP/s of its matrix products. After the time `until` (of time.monotonic) the rest
    of the paper's comparisons is left out, which is said.
    """
    module = import_module(f"facepapers.papers.{paper}.bench")
    rows: list[tuple] = []
    for what, net, x in getattr(module, "trained_networks", tuple)():
        rows += shares(what, net, x, rates)
    for what, name, run, other_name, other in itertools.chain(module.comparisons(), export.comparisons(paper)):
        if time.monotonic() > until:
            print(f"  {what}, and what follows it: left out, no time is left (make bench PAPER={paper})")
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


def shares(what: str, net: torch.nn.Module, x: torch.Tensor, rates: dict[str, float]) -> list[tuple]:
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
def matrix_rates(device: str) -> dict[str, float]:
    """Precision -> GFLOP/s of matrix products: float32, and bfloat16 where the device computes it natively."""
    types = {"fp32": torch.float32, "bf16": torch.bfloat16}
    used = ("fp32", "bf16") if precision.choose("auto", torch.device(device)) == "bf16" else ("fp32",)
    return {name: probe.gflops(types[name], device, 0.3) for name in used}


def record(paper: str, rows: list[tuple], device: str) -> None:
    """Write results/<paper>/bench.csv."""
    about = (datetime.date.today().isoformat(), device, torch.get_num_threads(), torch.__version__)
    with storage.atomic(paths.RECORDED / paper / "bench.csv") as temporary, open(temporary, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *(row + about for row in rows)])


@dataclass(frozen=True)
class Command:
    """Measure the speed of papers."""

    papers: tuple[str, ...]  # names of papers; without any all of them
    record: bool = False  # write results/<paper>/bench.csv; then no comparison is shortened or left out


def main(argv: Sequence[str]) -> None:
    """Print, and perhaps record, a table for each paper."""
    options = cli.command(Command, argv, "python -m facepapers.common.tools.bench", __doc__, least=0)
    found = sorted(p.parent.name for p in Path(paths.ROOT, "papers").glob("*/bench.py"))
    wanted = [name.replace("-", "_") for name in options.papers] or found
    if unknown := [paper for paper in wanted if paper not in found]:
        raise cli.UserError(f"no benchmark for {unknown[0]!r}; known are {', '.join(found)}")
    parallel.keep_freed_memory()  # as every training does
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else environment.cpu_name()
    rates = matrix_rates("cuda" if torch.cuda.is_available() else "cpu")
    if options.record:
        timing.LIMITS.update(dict.fromkeys(timing.LIMITS, math.inf))
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}; matrix products: "
          + ", ".join(f"{rate:.0f} GFLOP/s in {name}" for name, rate in rates.items()))  # fmt: skip
    end = time.monotonic() + timing.LIMITS["all_s"]
    for place, paper in enumerate(wanted):
        print(f"\n{paper}")
        now = time.monotonic()
        rows = measure(paper, rates, now + (end - now) / (len(wanted) - place))
        if options.record:
            record(paper, rows, device)


if __name__ == "__main__":
    cli.entry(main)
