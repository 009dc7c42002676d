"""Whether networks compute in bfloat16 or in float32: decided by the hardware (`auto`) or forced. float16 never is.

bfloat16 pays where the processor multiplies it natively (AVX-512-bf16, AMX, an NVIDIA GPU since Ampere, an Apple GPU):
then a step is up to twice as fast. Elsewhere it is emulated, and slower than float32 by factors.
"""

import dataclasses
import functools
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from facepapers.common.cli import UserError
from facepapers.common.training import checkpoint, parallel

KNOWN = ("auto", "bf16", "fp32")
# What `slowdown` gave on an AMD Zen 5 core, idle or loaded: 0.6 to 0.7 where bfloat16 is native, 2.2 to 2.8 where
# AVX-512 emulates it, 4 to 5 where AVX2 does.
EMULATED = 1.5
LEAST_CHANNELS = 8  # of a convolution that torch 2.11 trains on AVX2 alone


def check(wanted: str) -> None:
    """UserError for an unknown precision."""
    if wanted not in KNOWN:
        raise UserError(f"--precision {wanted}: known are {', '.join(KNOWN)}")


def check_channels(option: str, channels: Sequence[int]) -> None:
    """UserError for convolutions of fewer than LEAST_CHANNELS channels where this CPU computes with AVX2 alone.

    There torch 2.11's oneDNN writes beyond its memory in their backward pass, which ends the process without a word.
    """
    if avx2_alone() and min(channels, default=LEAST_CHANNELS) < LEAST_CHANNELS:
        given = " ".join(map(str, channels))
        raise UserError(f"{option} {given}: fewer than {LEAST_CHANNELS} channels crash torch's backward pass on a CPU "
                        f"with AVX2 alone; take {LEAST_CHANNELS} or more")  # fmt: skip


def avx2_alone() -> bool:
    """Whether AVX2 is the widest that this CPU has, or that its libraries are told to use (ONEDNN_MAX_CPU_ISA)."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA", "")
    return torch.backends.cpu.get_cpu_capability() == "AVX2" or limit.upper().startswith("AVX2")


def choose(wanted: str, device: torch.device) -> str:
    """What a wanted precision ("auto": what is native) means on a torch.device: "bf16" or "fp32".

    Forcing bf16 where a processor emulates it prints a line with the measured factor. UserError for an unknown word.
    """
    check(wanted)
    if wanted == "fp32":
        return "fp32"
    if native(device):
        return "bf16"
    if wanted == "auto":
        return "fp32"
    if parallel.is_main():
        factor = f", {slowdown():.1f} times as long as fp32 in a short measurement" if device.type == "cpu" else ""
        print(f"warning: --precision bf16: emulated on this {device.type}{factor}; auto takes fp32", file=sys.stderr)
    return "bf16"


def native(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 by itself: as torch says, a CPU only if a measurement agrees.

    A CPU is measured where torch does not know it, and where it has bfloat16, which the libraries can be told not to
    use (ONEDNN_MAX_CPU_ISA). Devices that torch says nothing of count as without.
    """
    said = capability(device)
    if device.type != "cpu" or said is False:
        return bool(said)
    return slowdown() < EMULATED


def capability(device: torch.device) -> bool | None:
    """What torch says of a device's bfloat16: True, False, or None where it does not say."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "mps":
        return torch.backends.mps.is_macos_or_newer(14, 0)  # as autocast asks for
    read = getattr(torch.cpu, "get_capabilities", None)  # since torch 2.11
    known = read() if device.type == "cpu" and read else {}
    if known.get("architecture") != "x86_64" or "avx512_bf16" not in known:
        return None
    return known["avx512_bf16"] or known.get("amx_bf16", False)


@functools.cache
def slowdown(rounds: int = 5) -> float:
    """How many times as long as in float32 a convolution and a matrix product take in bfloat16 on this CPU.

    One thread's own processor time, the shortest of `rounds` taken in turn, so that a loaded machine changes little.
    It takes about 15 ms where bfloat16 is native and 50 where it is emulated.
    """
    generator = torch.Generator().manual_seed(0)  # the global one belongs to the training
    x, kernel, square = (
        torch.randn(shape, generator=generator) for shape in ((4, 64, 16, 16), (64, 64, 3, 3), (128, 128))
    )
    x, threads = x.contiguous(memory_format=torch.channels_last), torch.get_num_threads()

    def seconds(bf16):
        started = time.thread_time()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            torch.nn.functional.conv2d(x, kernel, padding=1), square @ square
        return time.thread_time() - started

    torch.set_num_threads(1)
    try:
        seconds(True), seconds(False)  # the libraries prepare their kernels
        bf16, fp32 = map(min, zip(*((seconds(True), seconds(False)) for _ in range(rounds)), strict=True))
    finally:
        torch.set_num_threads(threads)
    return bf16 / fp32


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Context in which a network computes in a precision: autocast to bfloat16, or nothing."""
    precision = choose("auto", device) if precision == "auto" else precision
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def settle(config: Any, folder: Path, device: torch.device, begun: str | None = None) -> Any:
    """`config` with the precision to compute in, "bf16" or "fp32", the same for all processes.

    What was begun (`begun`, or a checkpoint below `folder`) keeps its precision; where another one would be taken now,
    a line says so.
    """
    chosen = choose(config.precision, device)
    if parallel.any_rank(chosen == "fp32", device):
        chosen = "fp32"
    begun = begun or of_checkpoint(folder) or chosen
    beside = folder.with_name(folder.name.removesuffix(f"-{config.precision}"))
    other = of_checkpoint(beside) if beside != folder else None
    if other not in (None, chosen) and parallel.is_main():
        print(f"{beside}: begun in {other}; it stays as it is, and --precision {chosen} starts a run beside it",
              file=sys.stderr)  # fmt: skip
    if begun != chosen and parallel.is_main():
        print(f"{folder}: begun in {begun}, so it stays in {begun} where this machine would take {chosen}; delete that "
              "folder to start again", file=sys.stderr)  # fmt: skip
    return dataclasses.replace(config, precision=begun)


def of_checkpoint(folder: Path) -> str | None:
    """Precision that a checkpoint below `folder` was written in, or None. UserError for a damaged one."""
    found = (checkpoint.read_scalars(path).get("precision") for path in sorted(folder.rglob("checkpoint.pt")))
    return next(filter(None, found), None)
