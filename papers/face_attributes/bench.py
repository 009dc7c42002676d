"""Comparisons of this paper for `make bench`: one shared pass against separate networks, and stored activations."""

import tempfile

import torch

from facepapers.common.vision import networks
from facepapers.papers.face_attributes import method

BATCH = 32
# An example of the claimed kind: age and emotion leave early, gender and ethnicity are linear layers.
PATTERN = {"age": (4, 101), "gender": (6, 2), "ethnicity": (6, 5), "emotion": (3, 8)}


def trained_networks():
    """(what, network, input) for the step's share of the machine's rate: a branch on given activations."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    branch = method.fold(method.Branch(method.split(networks.MobileFaceNetReLU().eval()), 3, 8, 128))
    x = torch.randn(BATCH, 64, 28, 28, device=device).contiguous(memory_format=torch.channels_last)
    yield f"a branch from stage 3, {BATCH} faces", networks.channels_last(branch, device), x


def comparisons():
    """(what, name, run, other name, other run) for tools.bench; a None other is a plain time."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = networks.channels_last(networks.MobileFaceNetReLU(), device).eval()
    stages = method.split(net)
    branches = {n: method.Branch(stages, k, classes, 128) for n, (k, classes) in PATTERN.items()}
    shared = networks.channels_last(method.SharedNet(stages, branches), device).eval()
    whole = {n: torch.nn.Sequential(*stages[: b.start - 1], b) for n, b in branches.items()}
    x = torch.randn(BATCH, 3, 112, 112, device=device).contiguous(memory_format=torch.channels_last)
    together, apart = no_grad(lambda: shared(x)), no_grad(lambda: {n: w(x) for n, w in whole.items()})
    for name, score in together().items():
        torch.testing.assert_close(score, apart()[name], rtol=1e-3, atol=1e-3)
    yield f"four attributes of {BATCH} faces", "shared pass", together, "four networks", apart
    kept, own = (stepper(stages, folded, device) for folded in (True, False))
    yield f"relearning from stage 3, {BATCH} faces", "folded normalisation", kept, "batch statistics", own
    with tempfile.TemporaryFile() as handle:
        yield from stored(stages, x, handle, device)


def no_grad(function):
    def run():
        with torch.no_grad():
            return function()

    return run


def stepper(stages, folded, device):
    """Forward and backward of one branch from stage 3 on given activations."""
    branch = networks.channels_last(method.Branch(stages, 3, 8, 128), device)
    branch = (method.fold(branch) if folded else branch).train()
    x = torch.randn(BATCH, 64, 28, 28, device=device).contiguous(memory_format=torch.channels_last)
    return lambda: branch(x).square().mean().backward()


def stored(stages, x, handle, device):
    """Reading a batch's activations from a file against computing them, for starts at stages 3 and 4."""
    import numpy as np

    for start in (3, 4):
        prefix = torch.nn.Sequential(*stages[: start - 1])
        compute = no_grad(lambda prefix=prefix: prefix(x))
        shape = (8 * BATCH, *compute().shape[1:])
        file = np.memmap(handle, np.float16, "w+", shape=shape)
        rows = np.sort(np.random.default_rng(0).permutation(shape[0])[:BATCH])
        read = lambda file=file, rows=rows: torch.from_numpy(file[rows]).to(device).float()
        size = 2 * np.prod(shape[1:]) / 1024
        yield f"input of stage {start}, {BATCH} faces", f"stored, {size:.0f} KiB a face", read, "computed", compute
