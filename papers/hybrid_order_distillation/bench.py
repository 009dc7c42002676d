"""Comparisons of this paper for `make bench`: relations against RKD's form and by definition, student and teacher.

And two seeds at once, each on a core of its own, as `make settle` runs them, against one after the other.
"""

import contextlib
import dataclasses
import io
import itertools
import multiprocessing
import os
import statistics
import tempfile
import types
from pathlib import Path

import torch
import torch.nn.functional as F

from facepapers.common.evidence.timing import LIMITS, affordable, peak_mib
from facepapers.common.training import loop, parallel, precision
from facepapers.common.vision import networks
from facepapers.papers.hybrid_order_distillation import data, method, train
from facepapers.papers.hybrid_order_distillation.config import preset
from facepapers.papers.hybrid_order_distillation.degrade import degrade
from facepapers.papers.hybrid_order_distillation.nets import Learner, embedding_width, macs, make_net, parameters
from facepapers.papers.hybrid_order_distillation.source import Source

BATCH = 32
SEED_STEPS = {"omniglot7": 20, "short": 4}  # preset -> steps of a seed: a second or two on a core


def trained_networks():
    """(what, network, input) for the step's share of the machine's rate."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cfg = preset("short")
    net = networks.channels_last(make_net(cfg.net, cfg.features, cfg.input_px), device)
    x = torch.randn(BATCH, 3, cfg.input_px, cfg.input_px, device=device)
    yield f"the short preset's student, {BATCH} faces", net, x.contiguous(memory_format=torch.channels_last)


def comparisons():
    """(what, name, run, other name, other run) for tools.bench; a None other is a plain time."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for width, n in itertools.product((128, 512), (64, 128, 256, 512)):
        what, ours = f"order 2 and gradient, N = {n}, width {width}", relation(method.distance_loss, n, width, device)
        yield what, "Gram, float64", ours, "RKD's form", relation(rkd_distance_loss, n, width, device)
    what, other = "order 2 and gradient, N = 512, width 512", method.distance_loss_by_definition
    yield what, "Gram, float64", ours, "by definition", relation(other, n, width, device)
    for width, n in ((128, 64), (128, 128), (128, 256), (128, 512), (512, 64), (512, 128), (512, 256)):
        yield order_3(n, width, "RKD's form", rkd_angle_loss, device)
    yield order_3(128, 128, "by definition", method.angle_loss_by_definition, device)
    for name in ("short", "same"):
        cfg = preset(name)
        student = make_net(cfg.net, cfg.features, cfg.input_px).eval().to(device)
        teacher = make_net(cfg.teacher_net, cfg.teacher_features, cfg.teacher_px).eval().to(device)
        what = f"embedding {BATCH} faces, student of preset {name}"
        yield what, size_of(student, cfg.input_px), forward(student, cfg.input_px, device), *(
            size_of(teacher, cfg.teacher_px), forward(teacher, cfg.teacher_px, device))  # fmt: skip
    pictures = torch.randint(0, 256, (BATCH, 3, 112, 112), dtype=torch.uint8)
    batched, one = lambda: degrade(pictures, 16), lambda: by_pillow(pictures)
    yield f"112 to 16 to 112 px, {BATCH} faces", "batched", batched, "Pillow, one by one", one
    if device.type == "cpu" and (os.cpu_count() or 1) > 1:
        for name, steps in SEED_STEPS.items():
            what = f"{steps} steps of each of two seeds, student of preset {name}"
            if seconds := two_seeds(name, steps):
                yield what, "two processes, a thread each", seconds[0], "in turn, two threads", seconds[1]
            else:
                print(f"  {what}: left out, too slow now; are the cores busy? (--record takes it)")


def two_seeds(name, steps, rounds=5):
    """Seconds of `steps` training steps of each of two seeds: (both at once, a thread each; in turn on two threads).

    Medians of rounds in turn, in processes that live as long. Trainings as `train` has them, on drawn numbers in place
    of pictures and of the teacher's embeddings. None where a round would take ten times as long as a comparison may:
    two threads of one training wait for each other, and with a third program on two cores nearly always.
    """
    spawn, made = multiprocessing.get_context("spawn"), []
    for threads in (1, 1, 2):
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=seed_worker, args=(theirs, name, threads), daemon=True)
        process.start()
        theirs.close()
        made.append((process, ours))
    pipes = [pipe for _, pipe in made]
    at_once = lambda steps: max(seconds_of(pipes[:2], steps))
    in_turn = lambda steps: sum(seconds_of(pipes[2:], steps)[0] for _ in range(2))
    try:
        at_once(1), in_turn(1)  # also waits until all three are ready
        first = steps * (at_once(1) + in_turn(1))
        if first > 10 * LIMITS["comparison_s"]:
            return None
        pairs = [(at_once(steps), in_turn(steps)) for _ in range(affordable(rounds, first))]
    finally:
        for process, pipe in made:
            with contextlib.suppress(OSError):  # it has ended by an error, which it has said
                pipe.send(0)
            process.join()
    return tuple(map(statistics.median, zip(*pairs, strict=True)))


def seconds_of(pipes, steps):
    """Seconds that each of these workers needs for so many steps, all begun at once."""
    for pipe in pipes:
        pipe.send(steps)
    return [pipe.recv() for pipe in pipes]


def seed_worker(pipe, name, threads):
    """Train the student of a preset for as many steps as `pipe` says, and tell the seconds, until it says 0."""
    torch.set_num_threads(threads)
    parallel.keep_freed_memory()
    cfg = dataclasses.replace(preset(name, "direct_123"), views=2)
    cfg = dataclasses.replace(cfg, precision=precision.choose(cfg.precision, torch.device("cpu")))
    pictures = torch.randint(0, 256, (2 * cfg.batch, 3, cfg.teacher_px, cfg.teacher_px), dtype=torch.uint8)
    training = data.Training(pictures, torch.arange(len(pictures)) // 4, len(pictures) // 4, "")
    teacher = Learner(make_net(cfg.teacher_net, cfg.teacher_features, cfg.teacher_px))
    source = Source(teacher, cfg.teacher_px, torch.device("cpu"))
    source.targets = torch.randn(cfg.views, len(pictures), embedding_width(teacher.net))
    learner = train.new_learner(cfg, source, training, teacher.net, 0)
    quiet = contextlib.redirect_stderr(io.StringIO())  # of signs of life
    job = types.SimpleNamespace(cfg=cfg, device=torch.device("cpu"), share=slice(None), steps=plain_steps)
    with contextlib.suppress(EOFError), quiet:
        while steps := pipe.recv():
            with tempfile.TemporaryDirectory() as folder:  # on a slow machine of a checkpoint, which nobody continues
                stage = train.Stage("", Path(folder), steps, cfg.resolution, cfg.input_px)
                pipe.send(train.fit(job, learner, source, training, stage).seconds)


def plain_steps(parts, total, batch, unit, *, folder, label):
    """The loop of a training that keeps no record."""
    return loop.Steps(folder, parts, total, batch, unit)


def order_3(n, width, name, other, device):
    """A comparison of order 3 with another form of it, and of the memory that both need."""
    runs = [relation(loss, n, width, device) for loss in (method.angle_loss, other)]
    names = [f"{form}, peak {peak_mib(run, device):.0f} MiB" for form, run in zip(("chunked", name), runs, strict=True)]
    return f"order 3 and gradient, N = {n}, width {width}", names[0], runs[0], names[1], runs[1]


def rkd_distance_loss(student, source):
    """Order 2 as RKD computes it: distances from a Gram matrix in float32, the mean of those above zero by a mask."""

    def distances(x):
        square = x.square().sum(1)
        distance = (square.unsqueeze(1) + square.unsqueeze(0) - 2 * x @ x.T).clamp(min=1e-12).sqrt()
        distance = distance * (1 - torch.eye(len(x), device=x.device))
        return distance / distance[distance > 0].mean()

    with torch.no_grad():
        wanted = distances(source)
    return F.smooth_l1_loss(distances(student), wanted)


def rkd_angle_loss(student, source):
    """Order 3 as RKD computes it: all N^3 cosines of normalised differences at once."""

    def cosines(x):
        e = F.normalize(x.unsqueeze(0) - x.unsqueeze(1), dim=2)
        return torch.bmm(e, e.transpose(1, 2))

    with torch.no_grad():
        wanted = cosines(source)
    return F.smooth_l1_loss(cosines(student), wanted)


def relation(loss, n, width, device):
    """A function that computes value and gradient for n embeddings."""
    gen = torch.Generator().manual_seed(n)
    source, given = (torch.randn(n, width, generator=gen).to(device) for _ in range(2))

    def run():
        student = given.clone().requires_grad_()
        loss(student, source).backward()
        return student.grad

    return run


def size_of(net, px):
    """Parameters and multiply-adds, as text."""
    return f"{parameters(net) / 1e6:.2f} M, {macs(net.cpu(), px) / 1e6:.0f} M multiply-adds"


def forward(net, px, device):
    x = torch.randn(BATCH, 3, px, px, device=device)
    net = net.to(device)

    @torch.no_grad()
    def run():
        net(x)

    return run


def by_pillow(pictures):
    """The obvious form of the same degradation; bit for bit the same pictures."""
    from PIL import Image

    small = [Image.fromarray(p.permute(1, 2, 0).numpy()).resize((16, 16), Image.Resampling.BICUBIC) for p in pictures]
    return [image.resize((112, 112), Image.Resampling.BICUBIC) for image in small]
