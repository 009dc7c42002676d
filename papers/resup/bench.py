"""Comparisons of this paper for `make bench`: what ReSup adds to two networks, the fit, and the look-up of weights."""

import dataclasses

import torch

from facepapers.common.training import precision
from facepapers.common.vision import networks
from facepapers.papers.resup import data, fitting, method, train
from facepapers.papers.resup.config import build_peers, preset

CLASSES, FACES, BATCH, STEPS = 8, 4096, 64, 4
SAMPLES = 25_060  # training faces of FERPlus


def trained_networks():
    """(what, network, input) for the step's share of the machine's rate."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cfg = preset("strong", "ce_two")
    net = networks.channels_last(build_peers(cfg, CLASSES).members[0], device)
    x = torch.randn(BATCH, 3, cfg.input_px, cfg.input_px, device=device)
    yield f"one of two networks, {BATCH} faces", net, x.contiguous(memory_format=torch.channels_last)


def comparisons():
    """(what, name, run, other name, other run) for tools.bench."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    plain, full = training("ce_two", device), training("resup", device)
    yield f"a step of two networks, {BATCH} faces, 48 px", "plain", plain[0], "full ReSup", full[0]
    yield f"an epoch of {STEPS} such steps, with the fit", "plain", plain[1], "full ReSup", full[1]
    logits, labels = torch.randn(FACES, CLASSES, device=device), torch.randint(CLASSES, (FACES,), device=device)
    noise_model = method.NoiseModel(FACES, CLASSES).to(device)
    noise_model.refit(2 * logits, labels, "similarity")
    together = lambda: noise_model.weigh(logits, labels, "similarity")
    apart = lambda: one_by_one(noise_model.table, logits, labels)
    torch.testing.assert_close(together(), apart().to(device))  # they agree before timing
    yield f"weights of {FACES} faces", "table, batched", together, "one by one", apart
    values = two_humps(SAMPLES)
    once, anew = lambda: method.fit(values), lambda: plain_fit(values)
    for part in ("alpha", "beta", "share"):
        torch.testing.assert_close(getattr(once(), part), getattr(anew(), part), rtol=1e-9, atol=0)
    yield f"fit to {SAMPLES} similarities, ten EM steps", "logarithms once", once, "densities anew", anew


def training(row, device):
    """Two functions: one step of a row after its warm-up, data path included; an epoch, with the noise model's pass."""
    cfg = dataclasses.replace(preset("strong", row), batch=BATCH, warmup=1)
    peers = networks.channels_last(build_peers(cfg, CLASSES), device).train()
    pictures = torch.randint(0, 256, (STEPS * cfg.batch, 1, 48, 48), dtype=torch.uint8, device=device)
    given = torch.randint(CLASSES, (len(pictures),), device=device)
    labels = given.cpu().numpy()
    split = data.Split(pictures, labels, labels)
    noise_models = torch.nn.ModuleList([method.NoiseModel(len(pictures), CLASSES) for _ in peers.members]).to(device)
    flip = torch.rand(len(pictures), device=device) < 0.3
    optimizer, chosen = train.make_optimizer(cfg, peers), precision.choose("auto", device)

    def step(step=STEPS):  # the first one of the second epoch
        index = data.index(cfg, len(pictures), step)
        views = data.views(pictures, cfg, index, step, slice(None))
        with precision.autocast(device, chosen):
            logits = peers(views)
        loss = train.row_loss(cfg, logits, given[index], index[0], noise_models, 1, flip)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def epoch():
        for k in range(STEPS):
            step(STEPS + k)
        if cfg.has_noise_model:
            fitting.update_noise_models(cfg, noise_models, peers.eval(), split, 1, device)
            peers.train()

    return step, epoch


def two_humps(n):
    """n similarities, (n,) float32: three tenths of them of flipped labels, the others clean."""
    gen = torch.Generator().manual_seed(0)
    middle = torch.where(torch.rand(n, generator=gen) < 0.3, 0.2, 0.85)
    return (middle + 0.1 * torch.randn(n, generator=gen)).clamp(0.001, 0.999)


def plain_fit(values):
    """method.fit by its definition: at every EM step the densities of torch's Beta, their shares, weighted moments."""
    x, mixture = values.double().clamp(method.CLIP, 1 - method.CLIP).unsqueeze(1), method.start()
    for _ in range(method.EM_STEPS):
        density = torch.distributions.Beta(mixture.alpha, mixture.beta).log_prob(x).exp()
        likelihood = (mixture.share * density).clamp(min=method.TINY)
        responsibility = likelihood / likelihood.sum(1, keepdim=True)
        total = responsibility.sum(0)
        mean = (responsibility * x).sum(0) / total
        variance = (responsibility * (x - mean).square()).sum(0) / total
        mixture = method.Mixture(*method.moments(mean, variance), total / len(x))
    return mixture


def one_by_one(table, logits, labels):
    """The released code's way: a Python loop over the samples."""
    weights = torch.zeros(len(labels))
    for i in range(len(labels)):
        p = logits[i].softmax(0)
        similarity = p[labels[i]] / p.norm()
        weights[i] = table[min(99, int(100 * float(similarity)))].clamp(method.CLIP, 1 - method.CLIP)
    return weights
