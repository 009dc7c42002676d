"""Train one row of the attribute table: `python -m facepapers.papers.face_attributes.train --preset demo --row stage3`.

One run learns one branch per attribute, all from the same start, on one frozen trunk: data, branches, loop, record.
`--weights FILE` names the identity network. `torchrun --nproc-per-node 2 -m ...` runs the same.
"""

import dataclasses
import json
import math
import sys

import torch
import torch.nn.functional as F

from facepapers.common import cli, paths, seeding, storage
from facepapers.common.evidence import runs
from facepapers.common.progress import phase
from facepapers.common.training import checkpoint, loop, parallel, precision
from facepapers.common.vision import networks
from facepapers.papers.face_attributes import assemble, data, evaluate, method
from facepapers.papers.face_attributes.config import PAPER, check, preset, start_of
from facepapers.papers.face_attributes.source import Source, fingerprint

STANDARDISE_FACES = 512  # faces that the readout's mean and deviation come from (our choice)
IDENTITY_SCALE = 16.0  # of the demo's identity network: softmax on cosines


@dataclasses.dataclass(frozen=True)
class Job:
    cfg: object
    run: object
    device: object
    share: object


def main(argv):
    device_name, argv = cli.take_option(argv, "device", "auto")
    out, argv = cli.take_option(argv, "out", paths.LOCAL)
    weights, argv = cli.take_option(argv, "weights")
    cfg = parse(argv, weights)
    device = parallel.start(device_name)
    try:
        return train(cfg, device, out, weights)
    finally:
        parallel.finish()


def parse(argv, weights=None):
    """The Config of a command line; `weights` name the trunk."""
    cfg = cli.experiment(argv, preset, check, "stage3", "python -m facepapers.papers.face_attributes.train")
    named = weights is not None and cfg.trunk not in ("random", "demo")
    return dataclasses.replace(cfg, trunk=assemble.digest_of(weights)) if named else cfg


def train(cfg, device, out=paths.LOCAL, weights=None):
    """Train and record one run; returns its record. A finished run is read back, an interrupted one continues."""
    run = runs.Run(PAPER, cfg.run_name, cfg, preset(cfg.preset, cfg.row, cfg.data), out)
    if run.finished():
        print(f"{run.name}: already recorded in {run.folder}; delete that folder to run it again", file=sys.stderr)
        return storage.read_json(run.folder / "run.json")
    if cfg.row in ("best", "chosen"):
        with phase(f"{run.name}: putting rows together"):
            return assemble.record(cfg, run, device, out, weights) if parallel.is_main() else None
    asked, cfg = cfg, run.settle(cfg, device)
    job = Job(cfg, run, device, parallel.my_slice(cfg.batch))
    if cfg.row == "trunk":
        return train_trunk(job)
    datasets = data.load(cfg.data)
    identity_net, stages = assemble.trunk(asked, datasets, out, weights)
    before = fingerprint(stages)
    with phase(f"{run.name}: preparing branches"):
        net, source = build(cfg, datasets, stages, identity_net.pixels, device)
    print(f"{run.name}: " + ", ".join(f"{len(p.index('train'))} faces of {p.name}" for p in datasets), file=sys.stderr)
    steps = fit(job, net, source)
    if not parallel.is_main():
        return None
    with phase(f"{run.name}: testing"):
        return record(job, net, source, stages, before, steps)


# ---- Branches


def build(cfg, datasets, stages, pixels, device):
    """(SharedNet with a branch per attribute as the row says, the Source of its inputs)."""
    torch.manual_seed(cfg.seed)
    start, probe = start_of(cfg.row, len(stages)), cfg.row.startswith("probe")
    joint = cfg.row == "joint"
    source = Source(cfg, datasets, stages, pixels, 1 if joint else start, device, pooled=probe)
    source.prepare()
    known = data.attributes_of(datasets)
    sizes = sizes_of(stages, cfg, probe, start)
    hidden = 0
    if cfg.row == "mlp":
        like = sum(p.numel() for stage in stages[3:] for p in stage.parameters())
        hidden = method.hidden_width(like, sizes["features"], 2)
    control = dict(only=start if cfg.row.startswith("only") else 0, hidden=hidden, scratch=cfg.row == "scratch")
    branches = {n: method.Branch(stages, start, a.scores, **sizes, **control) for n, a in known.items()}
    net = method.SharedNet(assemble.copies(stages) if joint else stages, branches, moving=joint).to(device)
    if cfg.row != "scratch":
        standardise(net, source)
    if cfg.statistics == "frozen":
        for learner in [net] if joint else net.branches.values():
            method.fold(learner)
    return net.to(memory_format=torch.channels_last), source


@torch.no_grad()
def sizes_of(stages, cfg, probe, start):
    """Channels below the readout, and the raster of a probe."""
    x, device = torch.zeros(1, 3, cfg.input_px, cfg.input_px), next(stages[0].parameters()).device
    x = x.to(device)
    for stage in stages[: start - 1] if probe else stages:
        x = stage.eval()(x)
    return {"features": x.shape[1], "grid": cfg.grid if x.dim() == 4 else 0}


@torch.no_grad()
def standardise(net, source):
    """Give every readout the mean and deviation of what it sees before training: the trunk's own output there."""
    above = torch.nn.Sequential(*([] if source.pooled else source.fast[source.first - 1 :]))
    for number, dataset in enumerate(source.datasets):
        rows = torch.arange(min(STANDARDISE_FACES, len(source.pools[number])))
        seen = torch.cat([above(source.inputs(number, some, view=0)) for some in rows.split(64)])
        for name, branch in net.branches.items():
            if name in dataset.labels:
                branch.standardise(seen)


# ---- The loop


def fit(job, net, source):
    """Train the branches (and a moving trunk). Leaves the last or averaged weights in `net`; returns the Steps."""
    cfg, device = job.cfg, job.device
    learned = net if net.moving else net.branches
    average = loop.averaged(learned, cfg.averaging) if cfg.averaging else None
    optimizer = make_optimizer(cfg, net)
    # Branches with folded normalisation have nothing left to fuse: compiled, a step took 1.9 times as long on a CPU.
    plain = cfg.statistics == "frozen" and parallel.world() == 1
    network = net if plain else parallel.wrap(net, device)
    kept = {"model": learned, "optimizer": optimizer} | ({"average": average} if average else {})
    steps = loop.Steps(job.run.folder, kept, cfg.steps, cfg.batch * len(source.datasets), "faces", label=job.run.name,
                       identity=runs.fingerprint(cfg), precision=cfg.precision)  # fmt: skip
    known = data.attributes_of(source.datasets)
    for step in steps:
        x, labels, counts = source.batch(step, job.share)
        rows = {name: label >= 0 for name, label in labels.items()}
        targets = {name: target_of(known[name], labels[name][rows[name]], cfg) for name in known}
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * rate_at(cfg, step)
        net.train()
        with precision.autocast(device, cfg.precision):
            scores = network(x, rows, first=source.first)
        scores = {name: score.float() for name, score in scores.items()}
        loss, each = method.joint_loss(scores, targets, counts, parallel.world())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], cfg.clip)
        optimizer.step()
        if average:
            average.update_parameters(learned)
        each = {name: parallel.mean_over_ranks(value) for name, value in each.items()}
        steps.log(loss=parallel.mean_over_ranks(loss), gradient=norm, **each)
    if average:
        learned.load_state_dict(average.module.state_dict())
    return steps


def target_of(attribute, label, cfg):
    """Class numbers (n,), or probabilities (n, years) for an attribute in years."""
    return method.soft_years(label, data.OLDEST, cfg.age_sigma) if attribute.years else label


def make_optimizer(cfg, net):
    """AdamW; no decay on biases and normalisation, the readout `head_rate` times faster."""
    heads = {id(p) for branch in net.branches.values() for p in branch.head.parameters()}
    learned = [p for p in net.parameters() if p.requires_grad]
    groups = []
    for is_head in (False, True):
        for decay in (False, True):
            chosen = [p for p in learned if (id(p) in heads) == is_head and (p.dim() > 1) == decay]
            if chosen:
                groups.append({"params": chosen, "rate": cfg.head_rate if is_head else 1.0,
                               "weight_decay": cfg.weight_decay if decay else 0.0})  # fmt: skip
    return torch.optim.AdamW(groups, lr=cfg.lr, fused=True)


def rate_at(cfg, step):
    """Learning rate: linear warm-up, then one cosine to zero."""
    warm = min(1.0, (step + 1) / max(1, cfg.warmup))
    return warm * cfg.lr * 0.5 * (1 + math.cos(math.pi * step / cfg.steps))


# ---- Record


def record(job, net, source, stages, before, steps):
    """Test the branches on validation and test faces, save their weights, write the record.

    `before`: the trunk's fingerprint before the training; the record holds it beside that of the `stages` now.
    """
    cfg, run, device = job.cfg, job.run, job.device
    datasets, depth = source.datasets, source.first - 1 if source.pooled else len(stages)
    found = evaluate.scores(net, source, "test", device)
    arrays, groups = evaluate.results(found, datasets)
    starts = {name: branch.start for name, branch in net.branches.items()}
    if not source.pooled:
        arrays |= assemble.cost_arrays(net, cfg, starts, len(next(iter(arrays.values()))))
    if cfg.row in ("linear", "joint") or source.pooled:
        trunk = list(net.trunk)
        arrays |= evaluate.identity_arrays(cfg, trunk, source.pixels, device, depth, cfg.data, verify=not source.pooled)
    weights = run.folder / "model.safetensors"
    metadata = dict(row=cfg.row, data=cfg.data, config=runs.fingerprint(cfg), starts=json.dumps(starts))
    digest = checkpoint.save_weights(weights, net if net.moving else net.branches, **metadata)
    return run.finish(
        metrics=evaluate.measure(arrays),
        predictions=arrays,
        history=steps.history,
        data=describe(cfg, datasets),
        selection="last" + (", running average" if cfg.averaging else ""),
        device=device,
        seconds=steps.seconds,
        samples=cfg.steps * cfg.batch * len(datasets),
        weights={"file": weights.name, "sha256": digest},
        validation=evaluate.validation(evaluate.scores(net, source, "val", device), datasets),
        groups=groups,
        trunk={"before": before, "after": fingerprint(stages)},
    )


def describe(cfg, datasets):
    """The record's entry on its data."""
    counts = {f"{p.name}_{split}": len(p.index(split)) for p in datasets for split in ("train", "val", "test")}
    return {"name": cfg.data, "fingerprint": " ".join(p.fingerprint for p in datasets), **counts}


# ---- The demo's identity network


def train_trunk(job):
    """Train an IResNet on embedded people by a softmax on cosines, test it on others, write the record."""
    cfg, run = job.cfg, job.run
    faces, identity = data.embedded_people("train")
    net = new_trunk(cfg)
    steps = fit_trunk(job, net, faces, identity)
    if not parallel.is_main():
        return None
    stages = method.split(net.eval(), cfg.cuts)
    with phase(f"{run.name}: testing"):
        arrays = evaluate.identity_arrays(cfg, stages, net.pixels, job.device, len(stages), cfg.data, verify=True)
    path = run.folder / "model.safetensors"
    digest = checkpoint.save_weights(path, net, row=cfg.row, trained_on=cfg.data, config=runs.fingerprint(cfg))
    used = {"name": cfg.data, "people": int(identity.max()) + 1, "training_faces": len(faces)}
    return run.finish(
        metrics=evaluate.measure(arrays), predictions=arrays, history=steps.history, data=used, selection="last",
        device=job.device, seconds=steps.seconds, samples=cfg.steps * cfg.batch,
        weights={"file": path.name, "sha256": digest},
    )  # fmt: skip


def new_trunk(cfg):
    """The demo's identity network with random weights."""
    torch.manual_seed(cfg.seed)
    net = networks.IResNet(cfg.units, cfg.widths, cfg.features, input_px=cfg.input_px)
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, mode="fan_out")
    return net


def fit_trunk(job, net, faces, identity):
    """Train `net` and a centre per person on aligned uint8 faces (N, 3, S, S) of people (N,); returns the Steps."""
    cfg, device = job.cfg, job.device
    both = torch.nn.ModuleDict({"net": net, "classes": torch.nn.Linear(cfg.features, int(identity.max()) + 1, False)})
    both = both.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(both.parameters(), cfg.lr, weight_decay=cfg.weight_decay, fused=True)
    network = parallel.wrap(Cosines(both), device)
    steps = loop.Steps(job.run.folder, {"model": both, "optimizer": optimizer}, cfg.steps, cfg.batch, "faces",
                       label=job.run.name, identity=runs.fingerprint(cfg), precision=cfg.precision)  # fmt: skip
    for step in steps:
        index = torch.randint(len(faces), (cfg.batch,), generator=seeding.generator(cfg.seed, 3, step))
        flip = torch.rand(cfg.batch, generator=seeding.generator(cfg.seed, 4, step)) < 0.5
        x = evaluate.resized(faces[index], cfg.input_px)
        x = torch.where(flip.view(-1, 1, 1, 1), x.flip(3), x)[job.share].to(device)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(cfg, step)
        both.train()
        with precision.autocast(device, cfg.precision):
            cosines = network(networks.to_input(x, net.pixels))
        loss = F.cross_entropy(cosines.float(), identity[index][job.share].to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), cfg.clip)
        optimizer.step()
        steps.log(loss=parallel.mean_over_ranks(loss))
    return steps


class Cosines(torch.nn.Module):
    """Scaled cosines between embeddings and one centre per person."""

    def __init__(self, both):
        super().__init__()
        self.both = both

    def forward(self, x):
        embedding = F.normalize(self.both["net"](x), dim=1)
        return IDENTITY_SCALE * F.linear(embedding, F.normalize(self.both["classes"].weight, dim=1))


if __name__ == "__main__":
    cli.entry(main)
