"""Train one loss of the ArcFace tables: `python -m facepapers.papers.arcface.train --preset demo --row arcface`.

Reads top to bottom: data, network and head, loop, verification, record. `torchrun --nproc-per-node 2 -m ...` runs the
same. `--source FOLDER` names where casia or ms1mv2 lies.
"""

import dataclasses
import math
import shutil
import sys

import numpy as np
import torch

from facepapers.common import cli, paths, storage
from facepapers.common.evidence import runs
from facepapers.common.progress import phase
from facepapers.common.training import checkpoint, loop, parallel, precision
from facepapers.common.vision import networks
from facepapers.papers.arcface import data, evaluate, method
from facepapers.papers.arcface.config import PAPER, build_head, build_net, check, margins_at, preset
from facepapers.papers.arcface.partial import ShardedHead

SAVE_EVERY = 500  # steps between checkpoints of a sharded head, which all processes must save together


def main(argv):
    device_name, argv = cli.take_option(argv, "device", "auto")
    out, argv = cli.take_option(argv, "out", paths.LOCAL)
    source, argv = cli.take_option(argv, "source")
    cfg = parse(argv)
    device = parallel.start(device_name)
    try:
        if cfg.row == "given":
            return evaluate.record_given(cfg, source, device, out)
        if cfg.row == "together":
            return evaluate.record_together(cfg, device, out)
        return train(cfg, device, out, source)
    finally:
        parallel.finish()


def parse(argv):
    """The Config of a command line."""
    return cli.experiment(argv, preset, check, "arcface", "python -m facepapers.papers.arcface.train")


def train(cfg, device, out=paths.LOCAL, source=None):
    """Train and record one run; returns its record. A finished run is read back, an interrupted one continues."""
    run = runs.Run(PAPER, cfg.run_name, cfg, preset(cfg.preset, cfg.row, cfg.data), out)
    if run.finished():
        print(f"{run.name}: already recorded in {run.folder}; delete that folder to run it again", file=sys.stderr)
        return storage.read_json(run.folder / "run.json")
    share = parallel.my_slice(cfg.batch)
    tasks, about = data.tasks(cfg, source)
    ready = {task.name for task in tasks if task.name and (run.folder / f"{task.name}.npz").exists()}
    begun = next((storage.read_json(run.folder / f"{name}.json").get("precision") for name in ready), None)
    cfg = run.settle(cfg, device, begun)
    parallel.barrier()  # every process has looked before the first one writes
    net = None
    for task in tasks:
        if task.name not in ready:
            net = one_task(cfg, task, run, share, device)
    if not parallel.is_main():
        return None
    with phase(f"{run.name}: computing results"):
        return record(run, cfg, net, tasks, about, device)


def one_task(cfg, task, run, share, device):
    """Train one network and write its predictions and history into the run's folder; returns the network."""
    folder, extra, seconds = run.folder / task.name, {}, 0.0
    print(f"{run.name} {task.name}: {len(task.training)} faces of {task.training.classes} people", file=sys.stderr)
    training = task.training
    if cfg.row == "cleaned":
        training, extra, seconds = cleaned(cfg, training, run, folder, share, device)
    elif cfg.noise:
        extra = {"noise_flag": training.wrong}
    label = f"{run.name} {task.name}".strip()
    net, head, steps = fit(cfg, training, folder, label, share, device)
    if parallel.is_main():
        with phase(f"{label}: testing"):
            found = evaluate.angles_of_training(net, head, training, device)
            if cfg.row == "subcenter":
                cleaning = subcenter_cleaning(cfg, net, head, training, device)
                extra["subcenter_angle_deg"] = cleaning.angle_deg.cpu().numpy()
            bayes = evaluate.joint_bayes(net, training, cfg.joint_bayes, device) if cfg.joint_bayes else None
            arrays = [evaluate.predictions(net, test, device, bayes) for test in task.tests]
        runs.write_predictions(run.folder / f"{task.name or 'only'}.npz", {**found, **extra, **merged(arrays)})
        done = {"seconds": seconds + steps.seconds, "history": [{"task": task.name, **row} for row in steps.history]}
        storage.write_json(run.folder / f"{task.name or 'only'}.json", done | {"precision": cfg.precision})
        for left in (steps.path, *folder.glob("shard*of*.pt")):
            left.unlink(missing_ok=True)
    return net


def fit(cfg, training, folder, label, share, device):
    """The loop. Returns the network with its last (or averaged) weights, the head, and the finished Steps."""
    torch.manual_seed(cfg.seed)
    net = build_net(cfg).to(device, memory_format=torch.channels_last)
    head = build_head(cfg, training.classes).to(device)
    sharded = isinstance(head, ShardedHead)
    both = torch.nn.ModuleList([net] if sharded else [net, head])
    average = loop.averaged(both, cfg.averaging) if cfg.averaging else None
    optimizer = make_optimizer(cfg, both)
    network = parallel.wrap(net, device)
    parts = {"model": both, "optimizer": optimizer} | ({"average": average} if average else {})
    named = dict(label=label, identity=runs.fingerprint(cfg), precision=cfg.precision)
    steps = loop.Steps(folder, parts, cfg.steps, cfg.batch, "faces", save_s=math.inf if sharded else 120, **named)
    if sharded:
        keep_shards(steps, head)
    batches = data.batches(training, cfg, steps.first, share, device)
    for step in steps:
        pictures, labels = next(batches)
        x = networks.to_input(data.augment(pictures, cfg, step, share), net.pixels)
        y = labels if cfg.augment == "flip" else labels[share]
        set_rate(cfg, optimizer, step)
        if hasattr(head, "margins"):
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
        if sharded:
            head.step(rate_at(cfg, step), cfg.momentum, cfg.weight_decay)
        if average:
            average.update_parameters(both)
        steps.log(loss=parallel.mean_over_ranks(loss), gradient=norm, theta_deg=own_angle(head, embeddings, y))
        if sharded and (step + 1) % SAVE_EVERY == 0:
            steps.save(step + 1)
    if average:
        both.load_state_dict(average.module.state_dict())
    return net.eval(), head.eval(), steps


def make_optimizer(cfg, both):
    """SGD (or AdamW) over the network and, unless it is sharded, W; weight decay on everything, as in insightface."""
    learned = [p for p in both.parameters() if p.requires_grad]
    if cfg.optimizer == "adamw":
        return torch.optim.AdamW(learned, cfg.lr, (cfg.momentum, 0.999), weight_decay=cfg.weight_decay, fused=True)
    return torch.optim.SGD(learned, cfg.lr, cfg.momentum, weight_decay=cfg.weight_decay, nesterov=cfg.nesterov)


def set_rate(cfg, optimizer, step):
    for group in optimizer.param_groups:
        group["lr"] = rate_at(cfg, step)


def rate_at(cfg, step):
    """Learning rate: linear warm-up, then a tenth after each of cfg.drops, or one cosine to zero without drops."""
    warm = min(1.0, (step + 1) / max(1, cfg.warmup))
    if cfg.drops:
        return warm * cfg.lr * 0.1 ** sum(step >= drop for drop in cfg.drops)
    return warm * cfg.lr * 0.5 * (1 + math.cos(math.pi * step / cfg.steps))


def keep_shards(steps, head):
    """Make `steps.save` also write this process's rows of W, and read them back now when a checkpoint was read."""
    path = steps.path.with_name(f"shard{parallel.rank()}of{parallel.world()}.pt")
    save_rest = steps.save

    def save(done):
        checkpoint.save_state(path, {"head": head}, step=done)
        save_rest(done)

    steps.save = save
    if steps.first and (not path.exists() or checkpoint.load_state(path, {"head": head})["step"] != steps.first):
        raise cli.UserError(f"{path}: missing or of another step; resume with as many processes as before")


def share_gradients(head):
    """Average the head's gradients over the processes; the network's are averaged by DistributedDataParallel."""
    for parameter in head.parameters() if parallel.world() > 1 else ():
        parameter.grad = parallel.mean_over_ranks(parameter.grad)


@torch.no_grad()
def own_angle(head, embeddings, labels):
    """Mean angle in degrees between this batch's embeddings and their own centres (NaN-free 0 where there is no W)."""
    if not isinstance(head, method.MarginHead | method.SoftmaxHead):
        return torch.zeros(())
    centers = getattr(head, "centers", 1)
    own = method.unit(head.weight).view(-1, centers, head.weight.shape[1])[labels]
    cosine = torch.einsum("bd,bkd->bk", method.unit(embeddings.detach()), own).amax(1)
    return torch.rad2deg(method.arccos(cosine)).mean()


# ---- Sub-center cleaning (journal version, section 3.2)


def cleaned(cfg, training, run, folder, share, device):
    """Train with three centres per person, drop what lies far from its dominant one; (Training, arrays, seconds)."""
    first = dataclasses.replace(cfg, row="subcenter")
    net, head, steps = fit(first, training, folder / "subcenters", f"{run.name} K = 3", share, device)
    found = subcenter_cleaning(cfg, net, head, training, device)
    if steps.first < cfg.steps and parallel.is_main():  # until the run is recorded: a resumed run needs it
        steps.save(cfg.steps)
    keep = found.keep.cpu().numpy()
    arrays = {"subcenter_angle_deg": found.angle_deg.cpu().numpy()}
    if training.wrong is not None:
        arrays["noise_flag"] = training.wrong
    return training.only(keep), arrays, steps.seconds


def subcenter_cleaning(cfg, net, head, training, device):
    """The Cleaning of the training faces by a head with three centres."""
    embeddings = evaluate.embed_training(net, training, device, cfg.workers)
    labels = torch.from_numpy(training.labels)
    with phase("cleaning by sub-centres"):
        return method.clean_by_subcenters(embeddings, labels, head.weight.detach().cpu().float(), head.centers)


# ---- Record


def merged(arrays):
    """One dict from several; no key occurs twice."""
    return {key: value for part in arrays for key, value in part.items()}


def record(run, cfg, net, tasks, about, device):
    """Pool the tasks' predictions, save the weights of a single network, write the record."""
    stems = [task.name or "only" for task in tasks]
    parts = [runs.read_predictions(run.folder / f"{stem}.npz") for stem in stems]
    logs = [storage.read_json(run.folder / f"{stem}.json") for stem in stems]
    pooled = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    weights = None
    if len(tasks) == 1:
        path = run.folder / "model.safetensors"
        words = dict(row=cfg.row, trained_on=cfg.data, protocol=cfg.protocol, config=runs.fingerprint(cfg))
        weights = {"file": path.name, "sha256": checkpoint.save_weights(path, net, **words)}
    written = run.finish(
        metrics=evaluate.measure(pooled),
        predictions=pooled,
        history=[row for log in logs for row in log["history"]],
        data={
            "name": cfg.data, "protocol": cfg.protocol, **about, "networks": len(tasks),
            "training_faces": len(tasks[0].training), "people": tasks[0].training.classes,
            "test_pairs": len(pooled["same"]),
        },
        selection="last" + (", running average" if cfg.averaging else ""),
        device=device,
        seconds=sum(log["seconds"] for log in logs),
        samples=cfg.steps * cfg.batch * len(tasks) * (2 if cfg.row == "cleaned" else 1),
        weights=weights,
    )  # fmt: skip
    for stem in stems:  # the record holds all of it now
        (run.folder / f"{stem}.npz").unlink()
        (run.folder / f"{stem}.json").unlink()
    for folder in [run.folder / "subcenters", *(run.folder / task.name for task in tasks if task.name)]:
        shutil.rmtree(folder, ignore_errors=True)
    return written


if __name__ == "__main__":
    cli.entry(main)
