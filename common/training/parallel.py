"""The same training command under `torchrun`: rank, device, gradient averaging, synchronised statistics.

Every rank computes the same global batch description and works on its own slice, so the number of processes
changes the speed and nothing else (up to the order of floating-point sums).
"""

import contextlib
import ctypes
import datetime
import getpass
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import nn

from facepapers.common.cli import UserError

has_compiled = False  # whether this process has compiled a network, for its records


def start(device: str = "auto") -> torch.device:
    """Join the process group that torchrun describes, if any; returns this rank's torch.device.

    `device` is "auto" (a GPU when there is one), "cpu" or "cuda". Raises UserError for a device that is absent.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {device}: known are auto, cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine shows no CUDA device; use --device cpu")
    local = int(os.environ.get("LOCAL_RANK", 0))
    use_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if use_cuda and local >= torch.cuda.device_count():
        raise UserError(
            f"rank {local} has no GPU of its own ({torch.cuda.device_count()} here); lower --nproc-per-node"
        )
    if "RANK" in os.environ and not dist.is_initialized():
        # Long, because the other ranks wait at the end while the first one tests and writes the record.
        dist.init_process_group("nccl" if use_cuda else "gloo", timeout=datetime.timedelta(hours=2))
    if use_cuda:
        torch.cuda.set_device(local)
        return torch.device("cuda", local)
    keep_freed_memory()
    return torch.device("cpu")


def rounding(device: torch.device) -> dict[str, str]:
    """What the last bits of a training depend on beside its settings, by name: sums are cut and ordered by it."""
    if device.type == "cuda":
        by = {"GPU": torch.cuda.get_device_name(device)}
    else:
        by = {"threads": str(torch.get_num_threads()), "vectors": torch.backends.cpu.get_cpu_capability()}
    word = "yes" if compiling() else "no"
    return {"torch": str(torch.__version__), "device": device.type, **by, "processes": str(world()), "compiled": word}


def keep_freed_memory() -> None:
    """Ask glibc to keep freed tensors for the next ones; elsewhere nothing happens.

    By default it returns large blocks to the system at once, and the next step pays a page fault for each 4 KiB of its
    activations: in a coarse-to-fine step 53,000 faults and 124 ms in the kernel, against 1,900 and 5 ms when kept.
    """
    most, mmap_threshold, trim_threshold, top_pad = 2**31 - 1, -3, -1, -2  # M_... of malloc.h
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no glibc, no mallopt, Windows
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((mmap_threshold, most), (trim_threshold, most), (top_pad, 2**28)):
            mallopt(option, value)


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """True on the one process that writes files and prints."""
    return rank() == 0


@contextlib.contextmanager
def processes(device: str = "auto") -> Iterator[torch.device]:
    """This rank's torch.device within its process group, which it leaves at the end: `start` and `finish`."""
    chosen = start(device)
    try:
        yield chosen
    finally:
        finish()


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def finish() -> None:
    """Leave the process group, all ranks together: one that goes while another still works has aborted at times."""
    if not dist.is_initialized():
        return
    if sys.exc_info()[0] is None:  # after an error the others may never come
        dist.barrier()
    dist.destroy_process_group()


def my_slice(batch_size: int) -> slice:
    """The slice of a global batch that this rank works on. UserError unless it divides evenly."""
    if batch_size % world():
        raise UserError(f"batch size {batch_size} cannot be split evenly over {world()} processes")
    share = batch_size // world()
    return slice(rank() * share, (rank() + 1) * share)


def any_rank(flag: bool, device: torch.device | str) -> bool:
    """True on every rank when `flag` is true on at least one (so that all stop at the same step)."""
    if world() == 1:
        return bool(flag)
    value = torch.tensor(int(flag), device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value)


def mean_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """Average of a tensor over the ranks (for logging)."""
    if world() > 1:
        value = value.detach().clone()
        dist.all_reduce(value)
        value /= world()
    return value


def gather(x: torch.Tensor, replicated: bool = False) -> torch.Tensor:
    """Concatenation of all ranks' x (b, ...) in rank order, (R * b, ...), differentiable. Equal b on all ranks.

    `replicated`: every rank computes the whole loss from the result. Otherwise each holds a part of it, and their
    gradients are summed.
    """
    return x if world() == 1 else _Gather.apply(x, replicated)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, replicated):
        ctx.replicated = replicated
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.contiguous()
        if not ctx.replicated:
            dist.all_reduce(grad)
        # The loss is the mean over all R * b samples; times R it is the mean over ours, as DDP expects.
        return world() * grad.chunk(world())[rank()], None


def wrap(model: nn.Module, device: torch.device) -> Callable:
    """What to call in training: DistributedDataParallel over synchronised batch normalisation with several processes.

    With one process the model itself, or, where the environment has COMPILE=1, what torch.compile makes of it: the
    same layers with their element-wise parts fused, equal up to rounding (on a CPU 1.1 to 1.6 times as fast). UserError
    where that cannot work.
    """
    if world() == 1:
        return compiled(model, device) if compiling() else model
    if compiling():
        raise UserError("COMPILE=1 works with one process; leave it out under torchrun")
    ids = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(sync_batch_norm(model), device_ids=ids)


def compiling() -> bool:
    """Whether the environment asks for compiled networks."""
    return os.environ.get("COMPILE", "") not in ("", "0")


def frozen(model: nn.Module, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """What to call where a network only gives outputs, under no_grad and with weights that stay as they are.

    The model itself in eval mode or, with COMPILE=1, its compiled version with normalisation folded into the
    convolutions, equal up to rounding (the given MobileFaceNet on a CPU: 1.5 to 2 times as fast).
    """
    if not compiling():
        return model.eval()
    network = compiled(model.eval(), device)

    def call(x):
        with torch._inductor.config.patch(freezing=True):  # as an option of torch.compile it has half of its effect
            return network(x)

    return call


def compiled(model: nn.Module, device: torch.device) -> Callable:
    """torch.compile's version of a model, with the same weights. UserError where a CPU has no C++ compiler."""
    global has_compiled
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and not shutil.which(compiler):
        raise UserError(f"COMPILE=1 needs a C++ compiler and there is no {compiler} here; install it or unset COMPILE")
    has_compiled = True
    # torch 2.11 takes kernels of another vector width from its cache, with wrong numbers (findings/): a cache for each.
    own = f"torchinductor_{getpass.getuser()}_{torch.backends.cpu.get_cpu_capability().lower()}"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.join(tempfile.gettempdir(), own))
    return torch.compile(model)


def sync_batch_norm(module: nn.Module) -> nn.Module:
    """`module` with SyncedBatchNorm, over the same parameters and statistics, in the place of every BatchNorm."""
    if isinstance(module, SyncedBatchNorm):
        return module
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return SyncedBatchNorm(module)
    for name, child in module.named_children():
        setattr(module, name, sync_batch_norm(child))
    return module


class SyncedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation whose mean and variance come from the global batch, differentiably.

    torch's own SyncBatchNorm works on GPUs only; this one also runs over gloo on CPUs, where the tests prove that two
    processes compute what one process does. It takes the parameters and buffers of `norm`.
    """

    num_batches_tracked: torch.Tensor  # torch's stub allows None for all four, which we never train with
    running_mean: torch.Tensor
    running_var: torch.Tensor
    momentum: float

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, affine=False, track_running_stats=False)
        self.affine, self.track_running_stats = norm.affine, norm.track_running_stats
        for name, value in (*norm.named_parameters(recurse=False), *norm.named_buffers(recurse=False)):
            setattr(self, name, value)
        self.train(norm.training)

    def _check_input_dim(self, input):
        """Any number of dimensions."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(B, C, ...) -> the same shape, in the input's type."""
        if not self.training:
            return super().forward(input)
        mean, variance, count = _global_moments(input.double() if input.dtype == torch.float64 else input.float())
        if self.track_running_stats:
            self.num_batches_tracked += 1
            unbiased = variance.detach() * (count / (count - 1))
            self.running_mean.lerp_(mean.detach().to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        shape = [1, -1] + [1] * (input.dim() - 2)
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            scale, shift = scale * self.weight, self.bias - mean * scale * self.weight
        else:
            shift = -mean * scale
        return (input * scale.view(shape) + shift.view(shape)).to(input.dtype)


def _global_moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Per-channel mean and biased variance over the batches of all ranks (equal slices), and the count."""
    from torch.distributed.nn.functional import all_reduce

    dims = [0] + list(range(2, x.dim()))
    count = world() * x.numel() // x.shape[1]
    mean = all_reduce(x.sum(dims)) / count
    shape = [1, -1] + [1] * (x.dim() - 2)
    variance = all_reduce((x - mean.view(shape)).square().sum(dims)) / count
    return mean, variance, count
