"""Two gloo processes compute what one process does: batch normalisation in float64, training in float32."""

import copy
import os
import platform
import shutil
import subprocess
import sys

import pytest
import torch

from facepapers.common import cli, storage
from facepapers.common.training import checkpoint, parallel
from facepapers.papers.coarse_to_fine import train
from tests.conftest import REPOSITORY, TINY, TINY_DRIVER, one_line_error, python

# Three steps: rounding, which depends on the CPU's kernels, grows a hundredfold from there to the sixth.
WORDS = [*TINY.split(), "--steps", "3", "--evaluate-every", "3"]
SCRIPT = (
    TINY_DRIVER
    + """
import sys
from facepapers.common.training import parallel
from tests.test_parallel import collectives, normalise
out = sys.argv.pop(1)
parallel.start("cpu")
part = parallel.my_slice(6)
torch.save(normalise(part, parallel.sync_batch_norm), f"{out}/norm{parallel.rank()}.pt")
torch.save(collectives(parallel.rank()), f"{out}/collectives{parallel.rank()}.pt")
cli.entry(train.main)
"""
)


def normalise(part, convert=lambda module: module):
    """One training step of batch normalisation in float64 over the rows `part` of a fixed batch."""
    gen = torch.Generator().manual_seed(1)
    x = (3 + 2 * torch.randn(6, 4, 5, 5, generator=gen, dtype=torch.float64))[part].requires_grad_()
    norm = convert(torch.nn.Sequential(torch.nn.BatchNorm2d(4, eps=1e-9).double()))
    torch.nn.init.constant_(norm[0].weight, 1.7)
    weight = torch.randn(6, 4, 5, 5, generator=gen, dtype=torch.float64)[part]
    y = norm(x)
    (y * y * weight).sum().backward()
    found = {"y": y.detach(), "x": x.grad, "scale": norm[0].weight.grad, "shift": norm[0].bias.grad}
    found |= {"mean": norm[0].running_mean, "var": norm[0].running_var}
    norm.eval()
    return found | {"eval": norm(x).detach()}


def collectives(rank):
    """What this process of two gets from the others."""
    logged = torch.tensor([1.0 + rank])
    found = {
        "any": [parallel.any_rank(flag, "cpu") for flag in (rank == 0, rank == 1, False)],
        "mean": parallel.mean_over_ranks(logged), "logged": logged,
    }  # fmt: skip
    for name in ("parts", "replicated"):
        x = torch.tensor([[10.0 * rank], [10.0 * rank + 1]], requires_grad=True)
        found[name] = parallel.gather(x, name == "replicated")
        weight = torch.arange(4.0)[:, None] + (100 * rank if name == "parts" else 0)
        (found[name] * weight).sum().backward()
        found[name], found[f"{name} gradient"] = found[name].detach().flatten().tolist(), x.grad.flatten().tolist()
    return found


def test_synchronised_normalisation_takes_the_place_of_the_layers_and_keeps_their_tensors():
    norm = torch.nn.BatchNorm2d(4)
    model = torch.nn.Sequential(torch.nn.Sequential(norm), torch.nn.BatchNorm1d(4, affine=False))
    names, optimized = list(model.state_dict()), list(model.parameters())
    synced = parallel.sync_batch_norm(model)
    assert synced is model and all(isinstance(m, parallel.SyncedBatchNorm) for m in (model[0][0], model[1]))
    assert type(norm).forward is torch.nn.BatchNorm2d.forward and "forward" not in vars(norm)
    assert list(model.state_dict()) == names and all(a is b for a, b in zip(optimized, model.parameters(), strict=True))
    assert model[0][0].running_mean is norm.running_mean and parallel.sync_batch_norm(model)[1] is model[1]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Folder of what two processes under torchrun wrote."""
    out = tmp_path_factory.mktemp("two")
    (out / "script.py").write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [*launch, out / "script.py", out, *WORDS, "--out", out / "runs"]
    environment = {**__import__("os").environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def test_normalisation_sees_the_whole_batch(two):
    whole = normalise(slice(0, 6))
    parts = [torch.load(two / f"norm{rank}.pt") for rank in range(2)]
    close = lambda a, b: torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    for key in ("y", "x", "eval"):
        close(torch.cat([p[key] for p in parts]), whole[key])
    for key in ("scale", "shift"):
        close(parts[0][key] + parts[1][key], whole[key])
    for key in ("mean", "var"):
        close(parts[0][key], whole[key])
        close(parts[1][key], whole[key])


def test_two_processes_hear_of_each_other(two):
    for rank, found in enumerate(torch.load(two / f"collectives{rank}.pt") for rank in range(2)):
        assert found["any"] == [True, True, False]
        assert found["mean"].tolist() == [1.5] and found["logged"].tolist() == [1.0 + rank], "the loss itself stays"
        assert found["parts"] == found["replicated"] == [0, 1, 10, 11]
        own = slice(2 * rank, 2 * rank + 2)
        # The loss is a mean over the samples of both processes, and each must hold its own mean's gradient: times two.
        assert found["parts gradient"] == [2 * (2 * i + 100) for i in range(4)][own]
        assert found["replicated gradient"] == [2 * i for i in range(4)][own]


def test_two_processes_train_to_the_weights_of_one(two, tiny, tmp_path):
    record = train.main([*WORDS, "--out", str(tmp_path)])
    (one,) = tmp_path.rglob("model.safetensors")
    (other,) = two.rglob("model.safetensors")
    ours, theirs = checkpoint.read_weights(one)[0], checkpoint.read_weights(other)[0]
    assert ours.keys() == theirs.keys() and any("running_var" in key for key in ours)
    for key, value in ours.items():
        if value.is_floating_point():
            gap = (theirs[key] - value).norm() / value.norm().clamp(min=1e-3)
            assert gap < 1e-5, f"{key}: {gap:.1e}"  # a batch of half the size: 1e-3 in convolutions, 1e-1 in means
        else:
            assert torch.equal(value, theirs[key]), key
    assert record["environment"]["processes"] == 1
    (theirs_record,) = two.rglob("run.json")
    theirs_record = storage.read_json(theirs_record)
    assert theirs_record["environment"]["processes"] == 2
    assert theirs_record["metrics"]["nme_interpupil_pct"] == pytest.approx(
        record["metrics"]["nme_interpupil_pct"], rel=1e-3
    )


def test_a_batch_that_does_not_split_is_one_line(monkeypatch):
    monkeypatch.setattr(parallel, "world", lambda: 2)
    monkeypatch.setattr(parallel, "rank", lambda: 1)
    assert parallel.my_slice(6) == slice(3, 6)
    with pytest.raises(cli.UserError) as error:
        parallel.my_slice(5)
    one_line_error(error, "batch size 5", "2 processes")


def test_devices_that_are_not_here_are_one_line(monkeypatch):
    for name, word in (("tpu", "auto, cpu, cuda"), ("cuda", "--device cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(cli.UserError) as error:
            parallel.start(name)
        one_line_error(error, f"--device {name}", word)


def test_one_process_is_left_alone():
    model = torch.nn.BatchNorm1d(2)
    assert parallel.wrap(model, torch.device("cpu")) is model
    assert (parallel.world(), parallel.rank(), parallel.is_main()) == (1, 0, True)
    assert parallel.any_rank(True, "cpu") is True and parallel.my_slice(5) == slice(0, 5)


def test_each_vector_width_has_a_compilers_cache_of_its_own(monkeypatch):
    monkeypatch.setattr(parallel, "has_compiled", False)  # put back afterwards
    monkeypatch.setattr(torch, "compile", lambda model: model)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    seen = []
    for width in ("AVX2", "AVX512"):
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "a word to put back")
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda width=width: width)
        parallel.compiled(torch.nn.Identity(), torch.device("cpu"))
        seen.append(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert seen[0].endswith("avx2") and seen[1].endswith("avx512")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "chosen")
    parallel.compiled(torch.nn.Identity(), torch.device("cpu"))
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "chosen", "a user's own choice stays"


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
@pytest.mark.parametrize("word", ["1", "0"])
def test_a_compiled_network_trains_like_the_network(monkeypatch, word):
    monkeypatch.setenv("COMPILE", word)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.PReLU(4)).train()
    twin, x = copy.deepcopy(model), torch.randn(5, 3, 8, 8)
    network = parallel.wrap(model, torch.device("cpu"))
    assert (network is model) is (word == "0")
    for call in (network, twin):
        call(x).square().sum().backward()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dict(model.named_buffers()), dict(twin.named_buffers()))


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
@pytest.mark.parametrize("word", ["1", "0"])
def test_a_frozen_network_says_what_the_network_says_and_leaves_it_as_it_is(monkeypatch, word):
    monkeypatch.setenv("COMPILE", word)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.PReLU(4))
    model[1].running_mean.normal_(), model[1].running_var.uniform_(0.5, 2)
    before, x = copy.deepcopy(model.state_dict()), torch.randn(5, 3, 8, 8)
    network = parallel.frozen(model, torch.device("cpu"))
    assert (network is model) is (word == "0")
    with torch.no_grad():
        torch.testing.assert_close(network(x), model.eval()(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_where_a_network_cannot_be_compiled_is_one_line(monkeypatch):
    monkeypatch.setenv("COMPILE", "1")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(cli.UserError) as error:
        parallel.wrap(torch.nn.ReLU(), torch.device("cpu"))
    one_line_error(error, "COMPILE=1", "no-such-compiler")
    monkeypatch.setattr(parallel, "world", lambda: 2)
    with pytest.raises(cli.UserError) as error:
        parallel.wrap(torch.nn.ReLU(), torch.device("cpu"))
    one_line_error(error, "COMPILE=1", "torchrun")


FAULTS = """
import resource, sys, torch
from facepapers.common.training import parallel
if sys.argv[1] == "kept":
    parallel.keep_freed_memory()
def use():
    for _ in range(10):
        torch.ones(16, 2**20)  # 64 MiB, twice what glibc ever keeps by default
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_used_again():
    given_back, kept = (int(python("-c", FAULTS, how).stdout) for how in ("default", "kept"))
    assert kept < given_back / 10, "page faults of ten tensors"
