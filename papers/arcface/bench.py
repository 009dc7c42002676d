"""Comparisons of this paper for `make bench`: heads, alignment and augmentation on synthetic input."""

import dataclasses
import functools
import importlib.util
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from facepapers.common.evidence import statistics
from facepapers.common.evidence.timing import LIMITS, available, cold_start, peak_mib, seconds_alone
from facepapers.common.faces import drawing
from facepapers.common.prediction.drawing import write as write_picture
from facepapers.common.protocols import pair_lists
from facepapers.common.training import released
from facepapers.common.vision import alignment, networks
from facepapers.papers.arcface import data, readers
from facepapers.papers.arcface.config import PAPER, build_net, preset
from facepapers.papers.arcface.method import MARGINS, MarginHead
from facepapers.papers.arcface.metrics import METRICS
from facepapers.papers.arcface.partial import ShardedHead
from facepapers.papers.arcface.readers import MAGIC
from facepapers.papers.arcface.released import NAMES

BATCH, FEATURES = 64, 512
CLASSES = (10_000, 100_000, 1_000_000)
RATE = 0.1
RECORDS = 30_000
PAIRS = 1_000


def intervals() -> tuple[str, Callable, str, Callable]:
    """Both 400 resamples' values of accuracy and area: counted in pairs ranked once, and each resample anew."""
    rng = np.random.default_rng(0)
    same = np.arange(PAIRS) % 2 == 0
    distance = np.where(same, 0.9, 1.6) + 0.3 * rng.standard_normal(PAIRS)
    fold = pair_lists.balanced_folds(same)
    run = {"distance": distance.clip(0, 3.99), "same": same, "fold": fold}
    both = [METRICS["accuracy_pct"], METRICS["auc_pct"]]

    def counted() -> list[np.ndarray]:
        return [statistics.Bootstrap().drawn(metric, run) for metric in both]

    def anew() -> list[np.ndarray]:
        draws = np.random.default_rng(0)
        picks = [draws.integers(0, PAIRS, PAIRS) for _ in range(statistics.DRAWS)]
        return [np.array([m.value({k: v[i] for k, v in run.items()}) for i in picks]) for m in both]

    np.testing.assert_allclose(counted(), anew(), rtol=1e-9)
    return "ranked once", counted, "each resample anew", anew


def trained_networks() -> Iterator[tuple]:
    """(what, network, input) for the step's share of the machine's rate."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cfg = preset("short")
    x = torch.randn(BATCH, 3, cfg.input_px, cfg.input_px, device=device).contiguous(memory_format=torch.channels_last)
    yield f"the short preset's network, {BATCH} faces", networks.channels_last(build_net(cfg), device), x


def comparisons() -> Iterator[tuple]:
    """(what, name, run, other name, other run) for tools.bench; a None other is a plain time."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    x = torch.randn(BATCH, FEATURES, device=device)
    spent = 0.0
    for classes in CLASSES:
        y = torch.randint(classes, (BATCH,), device=device)
        what = f"head, {classes:,} people, {BATCH} faces"
        sampled, dense = bytes_of(classes, RATE), bytes_of(classes, 1)
        if 10 * spent > LIMITS["comparison_s"]:
            print(f"  {what}: left out, it would take {10 * spent:.0f} s or more (--record takes it)")
            continue
        if not fits(sampled, device):
            print(f"  {what}: left out, not enough free memory")
            continue
        kinds = {f"sampled {RATE:g}": sharded_step}
        if fits(dense, device):
            kinds["dense"] = dense_step
        named, started = [], time.perf_counter()
        for name, make in kinds.items():
            used = peak_mib(functools.partial(once, make, classes, x, y, device), device, classes == CLASSES[0])
            named.append(f"{name}, {used:.0f} MiB")
        spent = time.perf_counter() - started  # ten times the people need ten times as long
        together = fits(sampled + dense, device)
        made = (functools.partial(make, classes, x, y, device) for make in kinds.values())
        steps = [make() if together else seconds_alone(make) for make in made]
        yield what, named[0], steps[0], *((named[1], steps[1]) if len(steps) > 1 else ("", None))
    y = torch.randint(10_000, (BATCH,), device=device)
    if importlib.util.find_spec("pytorch_metric_learning"):
        ours, theirs = ours_and_theirs(10_000, x, y, device)
        yield "ArcFace loss and gradient, 10,000 people", "ours", ours, "pytorch-metric-learning", theirs
    yield f"intervals of accuracy and area, {PAIRS} pairs", *intervals()
    drawn = drawing.generate(BATCH, 1, size=112)
    one = lambda: [alignment.align(drawn.images[i : i + 1], drawn.five[i : i + 1].numpy()) for i in range(BATCH)]
    yield (
        f"aligning {BATCH} faces",
        "batched",
        lambda: alignment.align(drawn.images, drawn.five.numpy()),
        "one by one",
        one,
    )
    cfg = dataclasses.replace(preset("short"), batch=BATCH)
    batched = lambda: data.augment(drawn.images, cfg, 0, slice(None))
    single = dataclasses.replace(cfg, batch=1)
    apart = lambda: [data.augment(one, single, 0, slice(None)) for one in drawn.images.split(1)]
    yield f"augmenting {BATCH} faces", "batched", batched, "one by one", apart
    yield from recordio_comparisons()
    yield from first_pair(drawn.images[:2])


def first_pair(pictures: torch.Tensor) -> Iterator[tuple]:
    """CPU seconds of the command on two photos, from its start to its files, beside what no such command can save."""
    weights = released.find(PAPER, NAMES[0], NAMES)
    with tempfile.TemporaryDirectory() as folder:
        photos = [write_picture(picture, [], Path(folder, f"{k}.png")) for k, picture in enumerate(pictures)]
        least, command = cold_start(("-m", "facepapers.papers.arcface.verify", *photos, "--whole"), weights)
    yield "CPU of a first pair, cold", "importing torch, reading weights", least, "the command", command


def recordio_comparisons() -> Iterator[tuple]:
    """Reading the index and the labels of a RecordIO set, against one line and one record at a time."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_recordio(Path(folder))
        lines = lambda: [line.split() for line in path.read_text().splitlines() if line.strip()]
        plain = lambda: {int(key): int(offset) for key, offset in lines()}
        yield f"index of {RECORDS:,} records", "array", lambda: readers.read_index(path), "line by line", plain
        records = readers.RecordIO(folder)
        one = lambda: np.array([int(records._label(int(key))[0]) for key in records.keys])
        yield f"labels of {RECORDS:,} records", "headers alone", records.labels, "record by record", one


def write_recordio(folder: Path) -> Path:
    """A RecordIO set of RECORDS records with 300 bytes each in place of an image; returns the path of its index."""
    record = struct.pack("<II", MAGIC, 24 + 300), bytes(16 + 300)  # around flag and label
    with open(folder / "train.rec", "wb") as file:
        file.writelines(record[0] + struct.pack("<If", 0, i % 1000) + record[1] for i in range(RECORDS))
    size = sum(map(len, record)) + 8
    (folder / "train.idx").write_text("".join(f"{i + 1}\t{i * size}\n" for i in range(RECORDS)))
    (folder / "property").write_text("1000,112,112")
    return folder / "train.idx"


def once(make: Callable, *given: Any) -> None:
    """Build a head and its optimiser and take one step; nothing of them is kept."""
    make(*given)()


def bytes_of(classes: int, rate: float) -> int:
    """Roughly what a head's step needs at most, in bytes of float32.

    W, its momentum and a copy are whole; what a step touches (unit rows, gradients and parts, logits and theirs)
    is in proportion to the sampled classes.
    """
    rows = classes * FEATURES * 4
    return 3 * rows + int(rate * (4 * rows + 6 * BATCH * classes * 4))


def fits(size: float, device: torch.device) -> bool:
    """Whether `size` bytes are free, and a fifth more."""
    return 1.2 * size < (torch.cuda.mem_get_info()[0] if device.type == "cuda" else available())


def dense_step(classes: int, x: torch.Tensor, y: torch.Tensor, device: torch.device) -> Callable[[], object]:
    """Forward, backward and SGD with momentum on all of W."""
    head = MarginHead(classes, FEATURES, check=False).to(device)
    optimizer = torch.optim.SGD(head.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)

    def step():
        optimizer.zero_grad(set_to_none=True)
        head(x, y).backward()
        optimizer.step()

    return step


def sharded_step(classes: int, x: torch.Tensor, y: torch.Tensor, device: torch.device) -> Callable[[], object]:
    """The same on a tenth of the classes."""
    head = ShardedHead(classes, FEATURES, rate=RATE).to(device)

    def step():
        head(x, y).backward()
        head.step(0.1)

    return step


def ours_and_theirs(classes: int, x: torch.Tensor, y: torch.Tensor, device: torch.device) -> tuple[Callable, Callable]:
    """Value and gradient of ArcFace by us and by pytorch-metric-learning, on the same W; they agree before timing."""
    from pytorch_metric_learning.losses import ArcFaceLoss

    weight = torch.randn(classes, FEATURES, device=device)
    head = MarginHead(classes, FEATURES, MARGINS["arcface"], check=False).to(device)
    other = ArcFaceLoss(classes, FEATURES, margin=28.6478898, scale=64).to(device)  # degrees
    with torch.no_grad():
        head.weight.copy_(weight)
        other.W.copy_(weight.T)

    def step(module, weight):
        def run():
            given, weight.grad = x.clone().requires_grad_(), None
            loss = module(given, y)
            loss.backward()
            return loss.detach(), given.grad, weight.grad

        return run

    mine, theirs = step(head, head.weight), step(other, other.W)
    (*ours, ours_w), (*others, others_w) = mine(), theirs()
    for a, b in zip((*ours, ours_w), (*others, others_w.T), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    return mine, theirs
