"""Comparisons of this paper for `make bench`: order 3 in chunks against the plain N^3 form, student against teacher."""

import torch
import torch.nn.functional as F

from common.bench import peak_mib
from papers.hybrid_order_distillation import method
from papers.hybrid_order_distillation.config import preset
from papers.hybrid_order_distillation.degrade import degrade
from papers.hybrid_order_distillation.nets import macs, make_net, parameters

WIDTH, BATCH = 128, 32


def networks():
    """(what, network, input) for the step's share of the machine's rate."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cfg = preset("short")
    net = make_net(cfg.net, cfg.features, cfg.input_px).to(device, memory_format=torch.channels_last)
    x = torch.randn(BATCH, 3, cfg.input_px, cfg.input_px, device=device)
    yield f"the short preset's student, {BATCH} faces", net, x.contiguous(memory_format=torch.channels_last)


def comparisons():
    """(what, name, run, other name, other run) for common.bench; a None other is a plain time."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for n in (128, 256, 512):
        ours, theirs = (order3(loss, n, device) for loss in (method.angle_loss, plain_angle_loss))
        peaks = [
            f"{name}, peak {peak_mib(run, device):.0f} MiB" for name, run in (("chunked", ours), ("plain", theirs))
        ]
        yield f"order 3 and gradient, N = {n}", peaks[0], ours, peaks[1], theirs
    for name in ("short", "same"):
        cfg = preset(name)
        student = make_net(cfg.net, cfg.features, cfg.input_px).eval().to(device)
        teacher = make_net(cfg.teacher_net, cfg.teacher_features, cfg.teacher_px).eval().to(device)
        what = f"embedding {BATCH} faces, student of preset {name}"
        yield what, words(student, cfg.input_px), forward(student, cfg.input_px, device), *(
            words(teacher, cfg.teacher_px), forward(teacher, cfg.teacher_px, device))  # fmt: skip
    pictures = torch.randint(0, 256, (BATCH, 3, 112, 112), dtype=torch.uint8)
    batched, one = lambda: degrade(pictures, 16), lambda: by_pillow(pictures)
    yield f"112 to 16 to 112 px, {BATCH} faces", "batched", batched, "Pillow, one by one", one


def plain_angle_loss(student, source):
    """Order 3 by its definition: both N x N x N tensors at once, and autograd."""
    cosines = []
    for x in (student, source):
        e = F.normalize(x.unsqueeze(0) - x.unsqueeze(1), dim=2)
        cosines.append(torch.bmm(e, e.transpose(1, 2)))
    return F.huber_loss(*cosines)


def order3(loss, n, device):
    """A function that computes value and gradient for n embeddings."""
    gen = torch.Generator().manual_seed(n)
    source, given = (torch.randn(n, WIDTH, generator=gen).to(device) for _ in range(2))

    def run():
        student = given.clone().requires_grad_()
        loss(student, source).backward()
        return student.grad

    return run


def words(net, px):
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
