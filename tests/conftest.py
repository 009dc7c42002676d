"""What every test file shares: one thread, no network, throw-away data and results, and a handful of drawn faces."""

import ipaddress
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]
# A real coarse-to-fine run that lasts seconds: forty faces, 32-pixel crops. Used in this process and in others.
TINY_FACES = dict(train=40, test=12, size=48, seed=2016)
TINY = (
    "--device cpu --preset demo --data embedded --optimizer sgd --lr 0.02 --averaging 0 --crop 32 --batch 4 --warmup 2 "
    "--evaluate-every 3 --precision fp32"
)
TINY_DRIVER = f"""
import torch
torch.set_num_threads(1)
from facepapers.common import cli
from facepapers.common.training import loop
from facepapers.papers.coarse_to_fine import data, train
data.EMBEDDED.update({TINY_FACES})
train.MEAN_FACES = 16
"""
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of child processes too: two tests run side by side


@pytest.fixture(scope="session", autouse=True)
def throw_away_data(tmp_path_factory):
    """No test reads or writes data/ of the checkout unless it says so; child processes inherit this."""
    os.environ["DATA_ROOT"] = str(tmp_path_factory.mktemp("data"))
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"


@pytest.fixture(scope="session", autouse=True)
def no_network():
    """Any connection that leaves this machine is an error."""
    real = socket.socket.connect, socket.socket.connect_ex

    def guarded(connect):
        def checked(self, address):
            if self.family in (socket.AF_INET, socket.AF_INET6) and not is_loopback(address[0]):
                raise OSError(f"a test tried to reach {address}: tests run without a network")
            return connect(self, address)

        return checked

    socket.socket.connect, socket.socket.connect_ex = map(guarded, real)
    yield
    socket.socket.connect, socket.socket.connect_ex = real


def is_loopback(host):
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@pytest.fixture(scope="session")
def committed_cells():
    """Paper -> its cells, computed once from the committed records. Read-only."""
    from facepapers.common.evidence import claims

    return {paper: claims.cells(paper) for paper in claims.papers()}


@pytest.fixture(scope="session")
def drawn_faces():
    """An AlignmentSet of 160 embedded faces of 64 pixels: 120 train, 40 test. Read-only."""
    from facepapers.papers.coarse_to_fine import data

    whole = data.EMBEDDED.copy()
    data.EMBEDDED.update(train=120, test=40, size=64)
    try:
        return data._embedded_set()
    finally:
        data.EMBEDDED.update(whole)


@pytest.fixture
def tiny(monkeypatch):
    """Make `--data embedded` in this process the forty tiny faces of TINY_FACES."""
    from facepapers.papers.coarse_to_fine import data, train

    monkeypatch.setattr(data, "EMBEDDED", TINY_FACES)
    monkeypatch.setattr(train, "MEAN_FACES", 16)
    faces = tiny_faces()
    monkeypatch.setattr(data, "load", lambda name: faces)


_CACHE = {}


def tiny_faces():
    """The AlignmentSet of TINY_FACES, drawn once."""
    from facepapers.papers.coarse_to_fine import data

    if "tiny" not in _CACHE:
        _CACHE["tiny"] = data._embedded_set()
    return _CACHE["tiny"]


def python(*words, **options):
    """Run `python WORDS` in the repository; returns the finished process with its text output."""
    options = {"cwd": REPOSITORY, "capture_output": True, "text": True, "timeout": 240} | options
    return subprocess.run([sys.executable, *map(str, words)], **options)


def one_line_error(error, *words):
    """Check that an exception (or a process's stderr) is one line that contains every word."""
    text = error if isinstance(error, str) else str(getattr(error, "value", error))
    assert len(text.strip().splitlines()) == 1, text
    for word in words:
        assert str(word) in text, f"{word!r} not in {text!r}"


class Harmful:
    """An object whose unpickling writes the file `path`: nothing that we read may do so."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")
