"""Comparisons of this paper for `make bench`: what ReSup adds to two plain networks, and the look-up of weights."""

import dataclasses

import torch

from common.bench import matrix_rates
from papers.resup import data, method, train
from papers.resup.config import build_twins, preset

CLASSES, FACES, BATCH, STEPS = 8, 4096, 64, 4


def networks():
    """(what, network, input) for the step's share of the machine's rate."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cfg = preset("strong", "ce_two")
    net = build_twins(cfg, CLASSES).members[0].to(device, memory_format=torch.channels_last)
    x = torch.randn(BATCH, 3, cfg.input_px, cfg.input_px, device=device)
    yield f"one of two networks, {BATCH} faces", net, x.contiguous(memory_format=torch.channels_last)


def comparisons():
    """(what, name, run, other name, other run) for common.bench."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    plain, full = training("ce_two", device), training("resup", device)
    yield f"a step of two networks, {BATCH} faces, 48 px", "plain", plain[0], "full ReSup", full[0]
    yield f"an epoch of {STEPS} such steps, with the fit", "plain", plain[1], "full ReSup", full[1]
    logits, labels = torch.randn(FACES, CLASSES, device=device), torch.randint(CLASSES, (FACES,), device=device)
    judge = method.Judge(FACES, CLASSES).to(device)
    judge.refit(2 * logits, labels, "similarity")
    together = lambda: judge.weigh(logits, labels, "similarity")
    apart = lambda: one_by_one(judge.table, logits, labels)
    torch.testing.assert_close(together(), apart().to(device))  # they agree before timing
    yield f"weights of {FACES} faces", "table, batched", together, "one by one", apart
    yield f"fit to {FACES} faces, ten EM steps", "ours", lambda: judge.refit(logits, labels, "similarity"), "", None


def training(row, device):
    """Two functions: one step of a row after its warm-up, data path included; an epoch, with the noise model's pass."""
    cfg = dataclasses.replace(preset("strong", row), batch=BATCH, warmup=1)
    twins = build_twins(cfg, CLASSES).to(device, memory_format=torch.channels_last).train()
    pictures = torch.randint(0, 256, (STEPS * cfg.batch, 1, 48, 48), dtype=torch.uint8, device=device)
    given = torch.randint(CLASSES, (len(pictures),), device=device)
    labels = given.cpu().numpy()
    part = data.Part(pictures, labels, labels)
    judges = torch.nn.ModuleList([method.Judge(len(pictures), CLASSES) for _ in twins.members]).to(device)
    flip = torch.rand(len(pictures), device=device) < 0.3
    optimizer, fast = train.make_optimizer(cfg, twins), "bf16" in matrix_rates(device.type)

    def step(step=STEPS):  # the first one of the second epoch
        index = data.index(cfg, len(pictures), step)
        views = data.views(pictures, cfg, index, step, slice(None))
        with torch.autocast(device.type, torch.bfloat16, enabled=fast):
            logits = twins(views)
        loss = train.row_loss(cfg, logits, given[index], index[0], judges, 1, flip)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def epoch():
        for k in range(STEPS):
            step(STEPS + k)
        if cfg.judged:
            train.judge(cfg, judges, twins.eval(), part, 1, device)
            twins.train()

    return step, epoch


def one_by_one(table, logits, labels):
    """The released code's way: a Python loop over the samples."""
    weights = torch.zeros(len(labels))
    for i in range(len(labels)):
        p = logits[i].softmax(0)
        similarity = p[labels[i]] / p.norm()
        weights[i] = table[min(99, int(100 * float(similarity)))].clamp(method.CLIP, 1 - method.CLIP)
    return weights
