"""What a record says of its origin: sources, versions, hardware, memory."""

import contextlib
import hashlib
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np

from facepapers.common import paths, storage
from facepapers.common.data.archive import visible


def source_state(paper):
    """Commit, dirty flag, a hash over the Python files that the run could have used, and one of each module it did."""
    return {
        "commit": git("rev-parse", "HEAD"),
        "dirty": _dirty(),
        "sha256": source_sha256(paper),
        "modules": imported_modules(paper),
    }


def imported_modules(paper):
    """{module: sha256 of its file}: what this process has imported of the paper and of common, in order."""
    ours = ("facepapers.common.", f"facepapers.papers.{paper}.")
    specs = [getattr(module, "__spec__", None) for module in list(sys.modules.values())]  # __main__ has one with -m
    files = {spec.name: spec.origin for spec in specs if spec and spec.origin and spec.name.startswith(ours)}
    return {name: storage.sha256(file) for name, file in sorted(files.items())}


def changed_since(record):
    """What of a record's source is no longer as it was when it ran, the paper's own first; None where nothing tells.

    Names of modules, where the record holds its modules' hashes; of files of the paper and of common that differ from
    its commit, where it is older than that and git knows the commit.
    """
    source = record["source"]
    if "modules" in source:
        changed = [name for name, digest in source["modules"].items() if _module_sha256(name) != digest]
        return sorted(changed, reverse=True)  # papers before common
    folders = ("common", f"papers/{record['paper']}")
    listed = git("diff", "--name-status", source["commit"], "--", *folders) if source["commit"] else None
    if listed is None:
        return None
    lines = [line.split("\t") for line in listed.splitlines()]
    changed = [words[-1] for words in lines if words[-1].endswith(".py") and words[0] != "R100"]  # R100: only moved
    return sorted(changed, reverse=True)


def _module_sha256(name):
    """The hash of a module's file in this checkout, or None where it is gone."""
    path = paths.ROOT.joinpath(*name.split(".")[1:])
    found = [file for file in (path.with_suffix(".py"), path / "__init__.py") if file.exists()]
    return storage.sha256(found[0]) if found else None


def source_sha256(paper):
    digest = hashlib.sha256()
    for path in sorted([*visible(paths.ROOT / "common", "**/*.py"), *visible(paths.ROOT / "papers" / paper, "*.py")]):
        digest.update(f"{path.relative_to(paths.ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def git(*words):
    """Output of a git command in the repository, or None where there is no git or no repository.

    REPRO_COMMIT stands in for the commit where only the files were copied (a container, a rented machine).
    """
    done = None
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        if not paths.INSTALLED:  # a repository around an installed package is the user's, not this one
            done = subprocess.run(["git", "-C", paths.ROOT, *words], capture_output=True, text=True, timeout=20)
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

    from facepapers.common.training import parallel, probe

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
        "gflops": round(probe.speed(device), 1),
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
