"""What a record says of its origin: sources, versions, hardware, memory."""

import hashlib
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np

from facepapers.common import paths


def source_state(paper):
    """Commit, dirty flag, and a hash over the Python files that the run could have used."""
    return {"commit": git("rev-parse", "HEAD"), "dirty": _dirty(), "sha256": source_sha256(paper)}


def source_sha256(paper):
    digest = hashlib.sha256()
    for path in sorted([*(paths.ROOT / "common").rglob("*.py"), *(paths.ROOT / "papers" / paper).glob("*.py")]):
        digest.update(f"{path.relative_to(paths.ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def git(*words):
    """Output of a git command in the repository, or None where there is no git or no repository.

    REPRO_COMMIT stands in for the commit where only the files were copied (a container, a rented machine).
    """
    try:
        done = subprocess.run(["git", "-C", paths.ROOT, *words], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        done = None
    if done is None or done.returncode:
        return os.environ.get("REPRO_COMMIT") if words[0] == "rev-parse" else None
    return done.stdout.strip()


def _dirty():
    """Whether Python sources differ from the commit; None where git cannot tell."""
    changed = git("status", "--porcelain", "--", "common", "papers")
    return None if changed is None else any(line.endswith(".py") for line in changed.splitlines())


def environment(device):
    """Versions and hardware."""
    import torch
    import torchvision

    from facepapers.common.training import parallel

    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "device": gpu or cpu_name(),
        "device_type": device.type,
        "threads": torch.get_num_threads(),
        "processes": parallel.world(),
        "compiled": parallel.has_compiled,
        "platform": f"{platform.system()} {platform.machine()}",
    }


def cpu_name():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def peak_memory_mib():
    """Largest resident set of this process so far, and of the GPU when one was used."""
    import torch

    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux kibibytes
    peak = {"host": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        peak["gpu"] = round(torch.cuda.max_memory_allocated() / 2**20)
    return peak
