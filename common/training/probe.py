"""How fast this machine multiplies matrices, measured in a fraction of a second."""

import functools
import time

import torch

LARGEST = {"cpu": 1024, "cuda": 8192}  # side of the largest product tried


@functools.cache
def speed(device: str | torch.device = "cpu", threads: int | None = None) -> float:
    """`gflops` in float32, measured once in a process: what a record says of its machine."""
    return gflops(torch.float32, device, threads=threads)


def gflops(
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    seconds: float = 0.1,
    threads: int | None = None,
) -> float:
    """Best rate of square matrix products in GFLOP/s (2 per multiply-add), with so many threads, or those in use.

    On a CPU one thread alone is tried too: where others use the machine, several may wait for each other so long that
    their rate says nothing.
    """
    device, before = torch.device(device), torch.get_num_threads()
    if device.type != "cpu":
        return best_rate(dtype, device, seconds)
    try:
        found = []
        for count in {1, threads or before}:
            torch.set_num_threads(count)
            found.append(best_rate(dtype, device, seconds / 2))
        return max(found)
    finally:
        torch.set_num_threads(before)


def best_rate(dtype: torch.dtype, device: torch.device, seconds: float) -> float:
    """The best of all products that fit into `seconds`: other processes only ever make a rate lower.

    Sides grow from 128 while the next one fits, so a slow type (emulated bfloat16) takes no longer than a fast one.
    """
    side, best, end = 128, 0.0, time.perf_counter() + seconds
    while True:
        spent = product_seconds(side, dtype, device)
        best = max(best, 2e-9 * side**3 / spent)
        left = end - time.perf_counter()
        if left <= 0:
            return best
        if 3 * 8 * spent < left and side < LARGEST.get(device.type, 1024):  # the next takes eight times as long
            side *= 2


def product_seconds(side: int, dtype: torch.dtype, device: torch.device) -> float:
    """Seconds of one product of two (side, side) matrices: the faster of two after a warm-up."""
    a, b = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))
    times = []
    for _ in range(3):
        started = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times[1:])
