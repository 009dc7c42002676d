"""Train one loss of the ArcFace tables: `python -m facepapers.papers.arcface.train --preset demo --row arcface`.

Reads top to bottom: data, network and head, loop, verification, record. `torchrun --nproc-per-node 2 -m ...` runs the
same.
"""

import dataclasses
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from facepapers.common import cli, paths, storage
from facepapers.common.evidence import jobs, runs
from facepapers.common.progress import phase
from facepapers.common.training import checkpoint, loop, losses, optimizers, parallel, precision, schedules
from facepapers.common.vision import networks
from facepapers.papers.arcface import data, evaluate, method
from facepapers.papers.arcface.config import PAPER, Config, build_head, build_net, check, margins_at, preset
from facepapers.papers.arcface.partial import ShardedHead


@dataclass(frozen=True)
class Files:
    """Files of this machine."""

    source: Path | None = None  # folder of casia or ms1mv2, or (row given) the weights file, where data/ has none


def main(argv: Sequence[str]) -> dict | None:
    """Train a row; returns its record (None on all processes but the first)."""
    place, files, cfg = parse(argv)
    with parallel.processes(place.device) as device:
        if cfg.row == "given":
            return evaluate.record_given(cfg, files.source, device, place.out)
        if cfg.row == "together":
            return evaluate.record_together(cfg, device, place.out)
        return train(cfg, device, place.out, files.source)


def parse(argv: Sequence[str]) -> tuple[jobs.Place, Files, Config]:
    """Where to run, what on, and the settings, of a command line."""
    prog = "python -m facepapers.papers.arcface.train"
    return cli.experiment(argv, preset, check, "arcface", jobs.Place(), Files(), prog=prog, about=__doc__)


def train(cfg: Config, device: torch.device, out: Path = paths.LOCAL, source: Path | None = None) -> dict | None:
    """Train and record one run; returns its record. A finished run is read back, an interrupted one continues."""
    run = runs.Run(PAPER, cfg.run_name, cfg, preset(cfg.preset, cfg.row, cfg.data), out)
    if finished := run.finished_record():
        return finished
    tasks, origin = data.tasks(cfg, source)
    ready = {task.name for task in tasks if task.name and (run.folder / f"{task.name}.npz").exists()}
    begun = next((storage.read_json(run.folder / f"{name}.json").get("precision") for name in ready), None)
    job = jobs.begin(run, cfg, device, begun)
    parallel.barrier()  # every process has looked before the first one writes
    net = None
    for task in tasks:
        if task.name not in ready:
            net = one_task(job, task)
    if not parallel.is_main():
        return None
    with phase(f"{run.name}: computing results"):
        return record(job, net, tasks, origin)


def one_task(job: jobs.Job, task: data.Task) -> torch.nn.Module:
    """Train one network and write its predictions and history into the run's folder; returns the network."""
    cfg, run, training = job.cfg, job.run, task.training
    folder, seconds = run.folder / task.name, 0.0
    extra: dict[str, np.ndarray] = {}
    print(f"{f'{run.name} {task.name}'.strip()}: {len(training)} faces of {training.classes} people", file=sys.stderr)
    if cfg.row == "cleaned":
        training, extra, seconds = cleaned(job, training, folder)
    elif training.wrong is not None:
        extra = {"noise_flag": training.wrong}
    label = f"{run.name} {task.name}".strip()
    net, head, steps = fit(job, training, folder, label)
    if parallel.is_main():
        with phase(f"{label}: testing"):
            arrays = predicted(job, net, head, training, task.tests, extra)
        stem = task.name or "only"
        runs.write_predictions(run.folder / f"{stem}.npz", arrays)
        history = [{"task": task.name, **row} for row in steps.history]
        done = {"seconds": seconds + steps.seconds, "history": history, "precision": cfg.precision}
        storage.write_json(run.folder / f"{stem}.json", done)
        for left in (steps.path, *folder.glob("shard*of*.pt")):
            left.unlink(missing_ok=True)
    return net


def predicted(
    job: jobs.Job,
    net: torch.nn.Module,
    head: torch.nn.Module,
    training: data.Training,
    tests: Sequence[data.Test],
    extra: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """The record's arrays of a trained network: angles of training faces, `extra`, distances of test pairs."""
    cfg, device = job.cfg, job.device
    arrays = evaluate.angles_of_training(net, head, training, device) | extra
    if cfg.row == "subcenter":
        arrays["subcenter_angle_deg"] = subcenter_cleaning(job, net, head, training).angle_deg.cpu().numpy()
    bayes = evaluate.joint_bayes(net, training, cfg.joint_bayes, device) if cfg.joint_bayes else None
    for test in tests:
        arrays |= evaluate.predictions(net, test, device, bayes)
    return arrays


def fit(
    job: jobs.Job, training: data.Training, folder: Path, label: str
) -> tuple[torch.nn.Module, torch.nn.Module, loop.Steps]:
    """The loop. Returns the network with its last (or averaged) weights, the head, and the finished Steps."""
    cfg, device = job.cfg, job.device
    torch.manual_seed(cfg.seed)
    net = networks.channels_last(build_net(cfg), device)
    head = build_head(cfg, training.classes).to(device)
    sharded = isinstance(head, ShardedHead)
    both = torch.nn.ModuleList([net] if sharded else [net, head])
    average = loop.averaged(both, cfg.averaging) if cfg.averaging else None
    optimizer = make_optimizer(cfg, both)
    network = parallel.wrap(net, device)
    parts = {"model": both, "optimizer": optimizer} | ({"average": average} if average else {})
    own = {"head": head} if sharded else None  # each process holds, and saves, its own rows of W
    steps = job.steps(parts, cfg.steps, cfg.batch, "faces", folder=folder, label=label, own=own)
    batches = data.batches(training, cfg, steps.first, job.share, device)
    for step in steps:
        pictures, labels = next(batches)
        x = networks.to_input(data.augment(pictures, cfg, step, job.share), net.pixels)
        y = labels if cfg.augment == "flip" else labels[job.share]
        rate = rate_at(cfg, step)
        schedules.set_rate(optimizer, rate)
        if isinstance(head, method.MarginHead | ShardedHead):
            head.margins = margins_at(cfg, step)
        both.train()
        with precision.autocast(device, cfg.precision):
            embeddings = network(x.contiguous(memory_format=torch.channels_last))
        loss = head(embeddings, y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        share_gradients(head)
        norm = torch.nn.utils.clip_grad_norm_(net.parameters(), cfg.clip)
        optimizer.step()
        if isinstance(head, ShardedHead):
            head.step(rate, cfg.momentum, cfg.weight_decay)
        if average:
            average.update_parameters(both)
        steps.log(loss=parallel.mean_over_ranks(loss), gradient=norm, theta_deg=own_angle(head, embeddings, y))
    if average:
        both.load_state_dict(average.module.state_dict())
    return net.eval(), head.eval(), steps


def make_optimizer(cfg: Config, both: torch.nn.Module) -> torch.optim.Optimizer:
    """SGD (or AdamW) over the network and, unless it is sharded, W; weight decay on everything, as in insightface."""
    options: dict[str, Any] = dict(betas=(cfg.momentum, 0.999), nesterov=cfg.nesterov, fused=True)
    learned = optimizers.trained(both)
    return optimizers.make(cfg.optimizer, learned, cfg.lr, cfg.weight_decay, cfg.momentum, **options)


def rate_at(cfg: Config, step: int) -> float:
    """Learning rate: linear warm-up, then a tenth after each of cfg.drops, or one cosine to zero without drops."""
    return schedules.rate(cfg.lr, step, cfg.steps, cfg.warmup, cfg.drops)


def share_gradients(head: torch.nn.Module) -> None:
    """Average the head's gradients over the processes; the network's are averaged by DistributedDataParallel."""
    for parameter in head.parameters() if parallel.world() > 1 else ():
        if parameter.grad is not None:
            parameter.grad = parallel.mean_over_ranks(parameter.grad)


@torch.no_grad()
def own_angle(head: torch.nn.Module, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean angle in degrees between this batch's embeddings and their own centres (NaN-free 0 where there is no W)."""
    if not isinstance(head, method.MarginHead | method.SoftmaxHead):
        return torch.zeros(())
    centers = getattr(head, "centers", 1)
    own = method.unit(head.weight).view(-1, centers, head.weight.shape[1])[losses.class_numbers(labels)]
    cosine = torch.einsum("bd,bkd->bk", method.unit(embeddings.detach()), own).amax(1)
    return torch.rad2deg(method.arccos(cosine)).mean()


# ---- Sub-center cleaning (journal version, section 3.2)


def cleaned(job: jobs.Job, training: data.Training, folder: Path) -> tuple[data.Training, dict[str, np.ndarray], float]:
    """Train with three centres per person, drop what lies far from its dominant one; (Training, arrays, seconds)."""
    first = dataclasses.replace(job, cfg=dataclasses.replace(job.cfg, row="subcenter"))
    net, head, steps = fit(first, training, folder / "subcenters", f"{job.run.name} K = 3")
    found = subcenter_cleaning(job, net, head, training)
    if steps.first < steps.total and parallel.is_main():  # until the run is recorded: a resumed run needs it
        steps.save(steps.total)
    keep = found.keep.cpu().numpy()
    arrays = {"subcenter_angle_deg": found.angle_deg.cpu().numpy()}
    if training.wrong is not None:
        arrays["noise_flag"] = training.wrong
    return training.only(keep), arrays, steps.seconds


def subcenter_cleaning(job: jobs.Job, net: torch.nn.Module, head: Any, training: data.Training) -> method.Cleaning:
    """The Cleaning of the training faces by a head with three centres, a method.MarginHead."""
    embeddings = evaluate.embed_training(net, training, job.device, job.cfg.workers)
    labels = torch.from_numpy(training.labels)
    with phase("cleaning by sub-centres"):
        return method.clean_by_subcenters(embeddings, labels, head.weight.detach().cpu().float(), head.centers)


# ---- Record


def record(job: jobs.Job, net: torch.nn.Module | None, tasks: Sequence[data.Task], origin: dict) -> dict:
    """Pool the tasks' predictions, save the weights of a single network, write the record.

    `origin`: what the record tells of where the faces are from.
    """
    run, cfg = job.run, job.cfg
    stems = [task.name or "only" for task in tasks]
    parts = [runs.read_predictions(run.folder / f"{stem}.npz") for stem in stems]
    logs = [storage.read_json(run.folder / f"{stem}.json", ("seconds", "history")) for stem in stems]
    pooled = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    written = run.finish(
        metrics=evaluate.measure(pooled),
        predictions=pooled,
        history=[row for log in logs for row in log["history"]],
        data={
            "name": cfg.data, "protocol": cfg.protocol, **origin, "networks": len(tasks),
            "training_faces": len(tasks[0].training), "people": tasks[0].training.classes,
            "test_pairs": len(pooled["same"]),
        },
        selection="last" + (", running average" if cfg.averaging else ""),
        device=job.device,
        seconds=sum(log["seconds"] for log in logs),
        samples=cfg.steps * cfg.batch * len(tasks) * (2 if cfg.row == "cleaned" else 1),
        weights=save(job, net) if net is not None and len(tasks) == 1 else None,
    )  # fmt: skip
    for stem in stems:  # the record holds all of it now
        (run.folder / f"{stem}.npz").unlink()
        (run.folder / f"{stem}.json").unlink()
    for folder in [run.folder / "subcenters", *(run.folder / task.name for task in tasks if task.name)]:
        shutil.rmtree(folder, ignore_errors=True)
    return written


def save(job: jobs.Job, net: torch.nn.Module) -> dict[str, str]:
    """Write a network's weights; returns the record's words on the file."""
    cfg, path = job.cfg, job.run.folder / "model.safetensors"
    metadata = dict(row=cfg.row, trained_on=cfg.data, protocol=cfg.protocol, config=runs.fingerprint(cfg))
    return {"file": path.name, "sha256": checkpoint.save_weights(path, net, **metadata)}


if __name__ == "__main__":
    cli.entry(main)
