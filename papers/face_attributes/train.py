"""Train one row of the attribute table: `python -m facepapers.papers.face_attributes.train --preset demo --row stage3`.

One run learns one branch per attribute, all from the same start, on one frozen trunk: data, branches, loop, record.
`torchrun --nproc-per-node 2 -m ...` runs the same.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from facepapers.common import cli, paths, seeding
from facepapers.common.evidence import jobs, runs
from facepapers.common.progress import phase
from facepapers.common.training import checkpoint, loop, losses, optimizers, parallel, precision, schedules
from facepapers.common.vision import networks
from facepapers.papers.face_attributes import assemble, data, evaluate, method
from facepapers.papers.face_attributes.config import PAPER, Config, Files, check, preset, start_of
from facepapers.papers.face_attributes.source import Source, fingerprint

STANDARDISE_FACES = 512  # faces that the readout's mean and deviation come from (our choice)
IDENTITY_SCALE = 16.0  # of the demo's identity network: softmax on cosines


def main(argv: Sequence[str]) -> dict | None:
    """Train a row; returns its record (None on all processes but the first)."""
    place, files, cfg = parse(argv)
    with parallel.processes(place.device) as device:
        return train(cfg, device, place.out, files.weights)


def parse(argv: Sequence[str]) -> tuple[jobs.Place, Files, Config]:
    """Where to run, the trunk's file, and the settings, which name its content, of a command line."""
    prog = "python -m facepapers.papers.face_attributes.train"
    place, files, cfg = cli.experiment(argv, preset, check, "stage3", jobs.Place(), Files(), prog=prog, about=__doc__)
    if files.weights is not None and cfg.trunk not in ("random", "demo"):
        cfg = dataclasses.replace(cfg, trunk=assemble.digest_of(files.weights))
    return place, files, cfg


def train(cfg: Config, device: torch.device, out: Path = paths.LOCAL, weights: Path | None = None) -> dict | None:
    """Train and record one run; returns its record. A finished run is read back, an interrupted one continues."""
    run = runs.Run(PAPER, cfg.run_name, cfg, preset(cfg.preset, cfg.row, cfg.data), out)
    if finished := run.finished_record():
        return finished
    if cfg.row in ("best", "chosen"):
        with phase(f"{run.name}: putting rows together"):
            return assemble.record(cfg, run, device, out, weights) if parallel.is_main() else None
    job = jobs.begin(run, cfg, device)
    if cfg.row == "trunk":
        return train_trunk(job)
    datasets = data.load(cfg.data)
    identity_net, stages = assemble.trunk(cfg, datasets, out, weights)
    before = fingerprint(stages)
    with phase(f"{run.name}: preparing branches"):
        net, source = build(job.cfg, datasets, stages, identity_net.pixels, device)
    print(f"{run.name}: " + ", ".join(f"{len(d.index('train'))} faces of {d.name}" for d in datasets), file=sys.stderr)
    steps = fit(job, net, source)
    if not parallel.is_main():
        return None
    with phase(f"{run.name}: testing"):
        return record(job, net, source, stages, before, steps)


# ---- Branches


def build(
    cfg: Config, datasets: list[data.Dataset], stages: Sequence[torch.nn.Module], pixels: str, device: torch.device
) -> tuple[method.SharedNet, Source]:
    """(SharedNet with a branch per attribute as the row says, the Source of its inputs)."""
    torch.manual_seed(cfg.seed)
    start, probe = start_of(cfg.row, len(stages)), cfg.row.startswith("probe")
    joint = cfg.row == "joint"
    source = Source(cfg, datasets, stages, pixels, 1 if joint else start, device, pooled=probe)
    source.prepare()
    known = data.attributes_of(datasets)
    sizes: dict[str, Any] = sizes_of(stages, cfg, probe, start)
    hidden = 0
    if cfg.row == "mlp":
        like = sum(p.numel() for stage in stages[3:] for p in stage.parameters())
        hidden = method.hidden_width(like, sizes["features"], 2)
    control: dict[str, Any] = dict(
        only=start if cfg.row.startswith("only") else 0, hidden=hidden, scratch=cfg.row == "scratch"
    )
    branches = {n: method.Branch(stages, start, a.scores, **sizes, **control) for n, a in known.items()}
    net = method.SharedNet(assemble.copies(stages) if joint else stages, branches, moving=joint).to(device)
    if cfg.row != "scratch":
        standardise(net, source)
    if cfg.statistics == "frozen":
        for learner in [net] if joint else net.branches.values():
            method.fold(learner)
    return networks.channels_last(net), source


@torch.no_grad()
def sizes_of(stages: Sequence[torch.nn.Module], cfg: Config, probe: bool, start: int) -> dict[str, int]:
    """Channels below the readout, and the raster of a probe."""
    x, device = torch.zeros(1, 3, cfg.input_px, cfg.input_px), next(stages[0].parameters()).device
    x = x.to(device)
    for stage in stages[: start - 1] if probe else stages:
        x = stage.eval()(x)
    return {"features": x.shape[1], "grid": cfg.grid if x.dim() == 4 else 0}


@torch.no_grad()
def standardise(net: method.SharedNet, source: Source) -> None:
    """Give every readout the mean and deviation of what it sees before training: the trunk's own output there."""
    above = torch.nn.Sequential(*([] if source.pooled else source.fast[source.first - 1 :]))
    for number, dataset in enumerate(source.datasets):
        rows = torch.arange(min(STANDARDISE_FACES, len(source.pools[number])))
        seen = torch.cat([above(source.inputs(number, some, view=0)) for some in rows.split(64)])
        for name, branch in net.branches.items():
            if name in dataset.labels:
                branch.standardise(seen)


# ---- The loop


def fit(job: jobs.Job, net: method.SharedNet, source: Source) -> loop.Steps:
    """Train the branches (and a moving trunk). Leaves the last or averaged weights in `net`; returns the Steps."""
    cfg, device = job.cfg, job.device
    learned = net if net.moving else net.branches
    average = loop.averaged(learned, cfg.averaging) if cfg.averaging else None
    optimizer = make_optimizer(cfg, net)
    # Branches with folded normalisation have nothing left to fuse: compiled, a step took 1.9 times as long on a CPU.
    plain = cfg.statistics == "frozen" and parallel.world() == 1
    network = net if plain else parallel.wrap(net, device)
    kept = {"model": learned, "optimizer": optimizer} | ({"average": average} if average else {})
    steps = job.steps(kept, cfg.steps, cfg.batch * len(source.datasets), "faces")
    known = data.attributes_of(source.datasets)
    for step in steps:
        x, labels, counts = source.batch(step, job.share)
        rows = {name: label >= 0 for name, label in labels.items()}
        targets = {name: target_of(known[name], labels[name][rows[name]], cfg) for name in known}
        schedules.set_rate(optimizer, schedules.rate(cfg.lr, step, cfg.steps, cfg.warmup))
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


def target_of(attribute: data.Attribute, label: torch.Tensor, cfg: Config) -> torch.Tensor:
    """Class numbers (n,), or probabilities (n, years) for an attribute in years."""
    return method.soft_years(label, data.OLDEST, cfg.age_sigma) if attribute.years else label


def make_optimizer(cfg: Config, net: method.SharedNet) -> torch.optim.Optimizer:
    """AdamW; no decay on biases and normalisation, the readout `head_rate` times faster."""
    heads = {id(p) for branch in net.branches.values() for p in branch.head.parameters()}
    learned, groups = optimizers.trained(net), []
    for is_head in (False, True):
        for decay in (False, True):
            chosen = [p for p in learned if (id(p) in heads) == is_head and (p.dim() > 1) == decay]
            rate = cfg.head_rate if is_head else 1.0
            groups.append(optimizers.group(chosen, cfg.weight_decay if decay else 0.0, rate))
    return optimizers.make("adamw", [group for group in groups if group["params"]], cfg.lr, fused=True)


# ---- Record


def record(
    job: jobs.Job,
    net: method.SharedNet,
    source: Source,
    stages: Sequence[torch.nn.Module],
    before: str,
    steps: loop.Steps,
) -> dict:
    """Test the branches on validation and test faces, save their weights, write the record.

    `before`: the trunk's fingerprint before the training; the record holds it beside that of the `stages` now.
    """
    cfg, run, device = job.cfg, job.run, job.device
    datasets, depth = source.datasets, source.first - 1 if source.pooled else len(stages)
    found = evaluate.scores(net, source, "test", device)
    arrays, groups = evaluate.results(found, datasets)
    if not source.pooled:
        arrays |= assemble.cost_arrays(net, cfg, len(next(iter(arrays.values()))))
    if cfg.row in ("linear", "joint") or source.pooled:
        trunk = list(net.trunk)
        arrays |= evaluate.identity_arrays(cfg, trunk, source.pixels, device, depth, cfg.data, verify=not source.pooled)
    weights = run.folder / "model.safetensors"
    metadata = dict(row=cfg.row, data=cfg.data, config=runs.fingerprint(cfg), starts=json.dumps(net.starts))
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


def describe(cfg: Config, datasets: list[data.Dataset]) -> dict[str, object]:
    """The record's entry on its data."""
    counts = {f"{d.name}_{split}": len(d.index(split)) for d in datasets for split in ("train", "val", "test")}
    return {"name": cfg.data, "fingerprint": " ".join(d.fingerprint for d in datasets), **counts}


# ---- The demo's identity network


def train_trunk(job: jobs.Job) -> dict | None:
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


def new_trunk(cfg: Config) -> networks.IResNet:
    """The demo's identity network with random weights."""
    torch.manual_seed(cfg.seed)
    net = networks.IResNet(cfg.units, cfg.widths, cfg.features, input_px=cfg.input_px)
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, mode="fan_out")
    return net


def fit_trunk(job: jobs.Job, net: networks.IResNet, faces: torch.Tensor, identity: torch.Tensor) -> loop.Steps:
    """Train `net` and a centre per person on aligned uint8 faces (N, 3, S, S) of people (N,); returns the Steps."""
    cfg, device = job.cfg, job.device
    both = torch.nn.ModuleDict({"net": net, "classes": torch.nn.Linear(cfg.features, int(identity.max()) + 1, False)})
    networks.channels_last(both, device)
    optimizer = optimizers.make("adamw", both.parameters(), cfg.lr, cfg.weight_decay, fused=True)
    network = parallel.wrap(Cosines(both), device)
    steps = job.steps({"model": both, "optimizer": optimizer}, cfg.steps, cfg.batch, "faces")
    for step in steps:
        index = torch.randint(len(faces), (cfg.batch,), generator=seeding.generator(cfg.seed, 3, step))
        flip = torch.rand(cfg.batch, generator=seeding.generator(cfg.seed, 4, step)) < 0.5
        x = evaluate.resized(faces[index], cfg.input_px)
        x = torch.where(flip.view(-1, 1, 1, 1), x.flip(3), x)[job.share].to(device)
        schedules.set_rate(optimizer, schedules.rate(cfg.lr, step, cfg.steps, cfg.warmup))
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

    def __init__(self, both: torch.nn.ModuleDict):
        super().__init__()
        self.both: Any = both  # torch types its entries as nn.Module only

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        embedding = losses.directions(self.both["net"](x))
        return IDENTITY_SCALE * F.linear(embedding, losses.directions(self.both["classes"].weight))


if __name__ == "__main__":
    cli.entry(main)
