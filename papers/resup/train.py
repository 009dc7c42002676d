"""Train one row of the ReSup table: `python -m facepapers.papers.resup.train --preset demo --row resup`.

Reads top to bottom: data and noise, networks, loop, noise model, record. `torchrun --nproc-per-node 2 -m ...` runs the
same. `--weights0 FILE --weights1 FILE` are starting weights of the two networks.
"""

import hashlib
import json
import math
import sys

import numpy as np
import torch

from facepapers.common import cli, paths, storage
from facepapers.common.evidence import environment, runs
from facepapers.common.progress import phase
from facepapers.common.protocols.metrics import area_under_roc
from facepapers.common.training import checkpoint, loop, parallel, precision
from facepapers.papers.resup import data, evaluate, method
from facepapers.papers.resup.config import PAPER, build_twins, check, preset


def main(argv):
    device_name, argv = cli.take_option(argv, "device", "auto")
    out, argv = cli.take_option(argv, "out", paths.LOCAL)
    first, argv = cli.take_option(argv, "weights0", "")
    second, argv = cli.take_option(argv, "weights1", "")
    cfg = parse(argv)
    device = parallel.start(device_name)
    try:
        return train(cfg, device, out, (first, second))
    finally:
        parallel.finish()


def parse(argv):
    """The Config of a command line."""
    (cfg,) = cli.experiment(argv, preset, check, "resup", prog="python -m facepapers.papers.resup.train")
    return cfg


def train(cfg, device, out=paths.LOCAL, files=("", "")):
    """Train and record one run; returns its record. A finished run is read back, an interrupted one continues."""
    run = runs.Run(PAPER, cfg.run_name, cfg, preset(cfg.preset, cfg.row, cfg.data), out)
    if run.finished():
        print(f"{run.name}: already recorded in {run.folder}; delete that folder to run it again", file=sys.stderr)
        return storage.read_json(run.folder / "run.json")
    asked, cfg = cfg, run.settle(cfg, device)
    share = parallel.my_slice(cfg.batch)
    faces = data.load(cfg.data, cfg.rule)
    training, valid, test = data.parts(faces, cfg)
    print(
        f"{run.name}: {len(training)} training faces, {100 * training.flip.mean():.1f} % of their labels wrong, "
        f"{len(valid)} validation, {len(test)} test faces on {device}",
        file=sys.stderr,
    )
    twins = build_twins(cfg, len(faces.classes), files).to(device, memory_format=torch.channels_last)
    warm = warm_up_file(asked, run, faces.fingerprint, files)
    judges, steps, best = fit(cfg, twins, training, valid, run, share, device, warm)
    if not parallel.is_main():
        return None
    with phase(f"{run.name}: testing"):
        if not cfg.judged:  # what the noise model would have said of the row's last networks
            judge(cfg, judges, twins.eval(), training, cfg.epochs, device)
        return record(run, cfg, faces, twins, judges, best, (training, valid, test), files, steps, device, warm)


AFTER_WARMUP = (
    "row", "weighting", "evidence", "consistency", "judge_view", "weights_from", "forget_ramp", "averaging", "relabel",
    "smoothing", "judge_again",
)  # fmt: skip


def warm_up_file(cfg, run, fingerprint, files):
    """Where the state at the warm-up's end lies: rows of two networks differ only later, so a seed needs it once.

    Its name changes with every other setting, the data, the starting weights and the source. None: nothing to share.
    `cfg` as asked for: with precision "auto" a seed's rows share it on any machine, a forced one has its own.
    """
    if cfg.nets < 2 or cfg.warmup >= cfg.epochs:
        return None
    shared = {k: v for k, v in runs.as_dict(cfg).items() if k not in AFTER_WARMUP}
    given = [storage.sha256(f) if f else "" for f in files]
    words = json.dumps([shared, fingerprint, given, environment.source_sha256(PAPER)])
    return run.folder.parent / f"warmup-{hashlib.sha256(words.encode()).hexdigest()[:8]}" / "state.pt"


def fit(cfg, twins, training, valid, run, share, device, warm=None):
    """The loop. Leaves `twins` with their last (or averaged) weights; returns judges, Steps, best-validation holder.

    `warm`: the `warm_up_file`, written at the warm-up's end, or continued from where it exists.
    """
    n, classes = len(training), twins.members[0].fc.out_features
    per_epoch = data.steps_per_epoch(cfg, n)
    average = loop.averaged(twins, cfg.averaging) if cfg.averaging else None
    judged = average.module if average else twins
    keep = cfg.weighting == "bayes"
    judges = torch.nn.ModuleList([method.Judge(n, classes, keep) for _ in twins.members]).to(device)
    optimizer, best = make_optimizer(cfg, twins), loop.Best(judged, lower_is_better=False)
    network = parallel.wrap(twins, device)
    # What looks at faces between the epochs: one process compiles it where it compiles the training.
    seen = judged if parallel.world() > 1 else parallel.wrap(judged, device) if average else network
    shared = {"model": twins, "optimizer": optimizer, "best": best}  # what the warm-up's end consists of
    parts = shared | {"judges": judges} | ({"average": average} if average else {})
    named = lambda step: ", ".join(str(i) for i in data.index(cfg, n, step).unique().tolist())
    origin = loop.Origin(run.name, runs.fingerprint(cfg), cfg.precision)
    total, batch = cfg.epochs * per_epoch, cfg.batch * cfg.nets
    steps = loop.Steps(run.folder, parts, total, batch, "faces", origin, describe=named)
    pictures, given = training.images.to(device), torch.from_numpy(training.given).to(device)
    flip = torch.from_numpy(training.flip).to(device)
    if not steps.first and warm and parallel.any_rank(warm.exists(), device):
        steps.resume(warm, shared)
        if average:
            judged.load_state_dict(twins.state_dict())
        if cfg.judged:
            with phase(f"{run.name}: fitting the noise model"):
                steps.note(**judge(cfg, judges, seen.eval(), training, cfg.warmup - 1, device))
    for step in steps:
        epoch, index = step // per_epoch, data.index(cfg, n, step).to(device)
        views = data.views(pictures, cfg, index, step, share)
        labels = given[index[:, share]]
        set_rate(cfg, optimizer, step / per_epoch)
        twins.train()
        with precision.autocast(device, cfg.precision):
            logits = network(views)
        loss = row_loss(cfg, logits, labels, index[0, share], judges, epoch, flip)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norms = [torch.nn.utils.clip_grad_norm_(net.parameters(), cfg.clip) for net in twins.members]
        optimizer.step()
        if average and epoch >= cfg.warmup:
            average.update_parameters(twins)
        steps.log(loss=parallel.mean_over_ranks(loss) / cfg.nets, gradient=torch.stack(norms).mean())
        if (step + 1) % per_epoch == 0:
            if average and epoch < cfg.warmup:  # the average starts at the warm-up's end
                judged.load_state_dict(twins.state_dict())
            validate(cfg, steps, epoch, seen.eval(), best, valid, device)
            if warm and epoch + 1 == cfg.warmup:
                steps.save(step + 1, warm, shared)
            if cfg.judged and epoch + 1 >= cfg.warmup:
                steps.note(**judge(cfg, judges, seen.eval(), training, epoch, device))
    if average:
        twins.load_state_dict(judged.state_dict())
    return judges, steps, best


def row_loss(cfg, logits, labels, index, judges, epoch, flip):
    """The loss of a step: plain cross-entropy while warming up, then the row's weights.

    logits (M, b, K) of this process's share, labels (M, b), index (b,) of the samples (one order after the warm-up),
    flip (N,) the true flips, for the rows that are told of them.
    """
    if epoch < cfg.warmup:
        return method.weighted_loss(logits, labels, torch.ones_like(labels, dtype=torch.float32))
    if cfg.weighting == "bayes":
        return method.distribution_loss(logits, judges[0].labels[index], cfg.consistency)
    weights = row_weights(cfg, logits, labels[0], index, judges, epoch, flip)
    targets = torch.stack([judge.belief[index] for judge in judges]).mean(0) if cfg.relabel else None
    return method.weighted_loss(logits, labels, weights, cfg.consistency, targets, cfg.smoothing)


def row_weights(cfg, logits, labels, index, judges, epoch, flip):
    """Weights (M, b) of a row after the warm-up; ones for plain cross-entropy."""
    if cfg.weighting == "none":
        return torch.ones(logits.shape[:2], device=logits.device)
    if cfg.weighting == "oracle":
        return (~flip[index]).float().expand(logits.shape[:2])
    if cfg.weighting == "coteaching":
        dropped = method.forget_share(float(flip.double().mean()), epoch, cfg.forget_ramp)
        return method.coteaching_weights(losses_of_batch(cfg, logits, labels), dropped)[:, parallel.my_slice(cfg.batch)]
    if cfg.weights_from == "epoch":
        weights = torch.stack([judge.weight[index] for judge in judges])
    else:
        weights = torch.stack([j.weigh(one, labels, cfg.evidence) for j, one in zip(judges, logits, strict=True)])
    return method.swap(weights) if cfg.weighting == "swapped" else weights


def losses_of_batch(cfg, logits, labels):
    """Cross-entropies (M, batch) of the whole batch, gathered over the processes."""
    own = [torch.nn.functional.cross_entropy(one.detach().float(), labels, reduction="none") for one in logits]
    whole = torch.zeros(len(logits), cfg.batch, device=logits.device)
    whole[:, parallel.my_slice(cfg.batch)] = torch.stack(own)
    return parallel.mean_over_ranks(whole) * parallel.world()


def validate(cfg, steps, epoch, judged, best, valid, device):
    """Note the accuracies on the validation faces and offer the weights as the best."""
    p = evaluate.probabilities(judged, valid.images, cfg, device)
    single, mean = (evaluate.accuracy_pct(q, valid.label) for q in (p[0], p.mean(0)))
    best.offer(mean, steps.step + 1)
    steps.note(epoch=epoch + 1, val_pct=single, val_mean_pct=mean)


@torch.no_grad()
def judge(cfg, judges, twins, training, epoch, device):
    """One pass over the training set in eval mode, then a new fit for each network. Returns numbers for the history."""
    given = torch.from_numpy(training.given).to(device)
    logits = evaluate.training_logits(twins, training.images, cfg, epoch, device)
    if cfg.weighting == "bayes":
        noted = judge_by_bayes(cfg, judges, logits, given, epoch)
    else:
        fitted = [one.refit(found, given, cfg.evidence) for one, found in zip(judges, logits, strict=True)]
        noted = {"fitted": sum(fitted), "rate": sum(one.rate for one in judges) / len(judges)}
    weight = torch.stack([one.weight for one in judges]).mean(0).cpu().numpy()
    noted |= {"weight_mean": weight.mean()}
    if training.flip.any():
        flip = training.flip
        noted |= {"weight_clean": weight[~flip].mean(), "weight_flipped": weight[flip].mean()}
        noted |= {"weight_auc": area_under_roc(weight, ~flip)}
    for m, one in enumerate(judges):
        (low, high), share = one.shape.cpu().T, one.share.cpu()
        noted |= {
            f"net{m}_alpha0": low[0],
            f"net{m}_beta0": low[1],
            f"net{m}_alpha1": high[0],
            f"net{m}_beta1": high[1],
        }
        noted |= {f"net{m}_clean_share": share[1]}
    return {key: float(value) for key, value in noted.items() if math.isfinite(value)}


def judge_by_bayes(cfg, judges, logits, given, epoch):
    """Row "bayes" (ours): P(true label) of each sample from the networks' mean output. Returns numbers for the history.

    The warm-up's networks imitate the given labels, so the flips are taken out of what they say. Later ones imitate the
    true labels, but have first to catch up with their teachers: for cfg.judge_again epochs these are believed.
    """
    outputs, late = logits.float().softmax(-1), epoch + 1 - cfg.warmup
    p = outputs.mean(0)
    rate = method.flip_rate(p) if late == 0 else judges[0].rate
    q = method.without_flips(p, rate) if late == 0 else p
    for one, output in zip(judges, outputs, strict=True):
        one.belief.copy_(output)
        if late == 0 or late >= cfg.judge_again:
            one.believe(given, method.posterior_labels(q, given, rate), rate)
    return {"rate": rate}


# ---- Optimiser


def make_optimizer(cfg, twins):
    learned = list(twins.parameters())
    if cfg.optimizer == "sgd":
        return torch.optim.SGD(learned, cfg.lr, cfg.momentum, weight_decay=cfg.weight_decay, nesterov=True)
    made = torch.optim.Adam if cfg.optimizer == "adam" else torch.optim.AdamW
    return made(learned, cfg.lr, weight_decay=cfg.weight_decay)


def set_rate(cfg, optimizer, epoch):
    for group in optimizer.param_groups:
        group["lr"] = rate_at(cfg, epoch)


def rate_at(cfg, epoch):
    """Learning rate at `epoch` (or a fraction): linear warm-up, then a tenth after each of cfg.drops, or cosines."""
    warm = min(1.0, (epoch + 0.01) / cfg.lr_warmup) if cfg.lr_warmup else 1.0
    if cfg.drops:
        return warm * cfg.lr * 0.1 ** sum(epoch >= drop for drop in cfg.drops)
    start, end = 0, cfg.epochs
    if cfg.restart:
        start, end = (0, cfg.warmup) if epoch < cfg.warmup else (cfg.warmup, cfg.epochs)
    return warm * cfg.lr * 0.5 * (1 + math.cos(math.pi * (epoch - start) / (end - start)))


# ---- Record


def record(run, cfg, faces, twins, judges, best, parts, files, steps, device, warm):
    """Test the last and the validation-chosen weights, save predictions and the last weights, write the record."""
    training, valid, test = parts
    arrays = evaluate.predictions(twins, test, cfg, device) | evaluate.judgements(judges, training)
    copies = data.repeated(test, training)
    arrays |= {"repeated": copies} if copies.any() else {}
    path = run.folder / "model.safetensors"
    words = dict(
        row=cfg.row, preset=cfg.preset, trained_on=cfg.data, classes=" ".join(faces.classes), nets=cfg.nets,
        stem=cfg.stem, width=cfg.width, units=" ".join(map(str, cfg.units)), input_px=cfg.input_px, rule=cfg.rule,
        precision=cfg.precision, flip_test=cfg.flip_test, test_scales=" ".join(map(str, cfg.test_scales)),
    )  # fmt: skip
    digest = checkpoint.save_weights(path, twins, config=runs.fingerprint(cfg), **words)
    if best.weights is not None:
        twins.load_state_dict(best.weights)
        arrays |= evaluate.predictions(twins, test, cfg, device, "_validation_chosen")
    absent = [
        name for name, n in zip(faces.classes, np.bincount(training.given, minlength=len(faces.classes))) if not n
    ]
    return run.finish(
        metrics=evaluate.measure(arrays),
        predictions=arrays,
        history=steps.history,
        data={
            "name": cfg.data, "fingerprint": faces.fingerprint, "rule": cfg.rule,
            "classes": " ".join(faces.classes), "noise": cfg.noise_kind,
            "flipped_pct": round(100 * float(training.flip.mean()), 3), "without_label": " ".join(absent),
            "training_faces": len(training), "validation_faces": len(valid), "test_faces": len(test),
            "init": ", ".join(f"{kind} {storage.sha256(f)[:12] if f else ''}".strip()
                              for kind, f in list(zip(cfg.init, files))[: cfg.nets]),
        },
        selection="last" + (", running average" if cfg.averaging else ""),
        device=device,
        seconds=steps.seconds,
        samples=steps.total * cfg.batch * cfg.nets,
        weights={"file": path.name, "sha256": digest},
        validation_chosen_step=best.step,
        warmup=warm.parent.name if warm else None,
    )  # fmt: skip


if __name__ == "__main__":
    cli.entry(main)
