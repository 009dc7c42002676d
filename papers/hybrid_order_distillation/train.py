"""Distil one row of the tables.

`python -m facepapers.papers.hybrid_order_distillation.train --preset demo --row assistant_123`

Reads top to bottom: teacher, stages, loop, record. `torchrun --nproc-per-node 2 -m ...` runs the same.
"""

import dataclasses
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from facepapers.common import cli, paths, storage
from facepapers.common.evidence import jobs, runs
from facepapers.common.progress import phase
from facepapers.common.training import checkpoint, loop, optimizers, parallel, precision, schedules, state_dicts
from facepapers.common.vision import networks
from facepapers.papers.hybrid_order_distillation import data, evaluate, method
from facepapers.papers.hybrid_order_distillation.config import PAPER, UNTRAINED, Config, Files, check, preset
from facepapers.papers.hybrid_order_distillation.nets import (
    ImageNetResNet,
    Learner,
    Net,
    Outputs,
    embedding_width,
    macs,
    make_net,
    parameters,
)
from facepapers.papers.hybrid_order_distillation.source import Source


def main(argv: Sequence[str]) -> dict | None:
    """Train a row; returns its record (None on all processes but the first)."""
    place, files, cfg = parse(argv)
    with parallel.processes(place.device) as device:
        return train(cfg, device, place.out, files.teacher)


def parse(argv: Sequence[str]) -> tuple[jobs.Place, Files, Config]:
    """Where to run, the teacher's file, and the settings, of a command line."""
    prog = "python -m facepapers.papers.hybrid_order_distillation.train"
    return cli.experiment(argv, preset, check, "assistant_123", jobs.Place(), Files(), prog=prog, about=__doc__)


def train(cfg: Config, device: torch.device, out: Path = paths.LOCAL, teacher_file: Path | None = None) -> dict | None:
    """Train and record one run; returns its record. A finished run is read back, an interrupted one continues."""
    run = runs.Run(PAPER, cfg.run_name, cfg, preset(cfg.preset, cfg.row, cfg.data), out)
    if finished := run.finished_record():
        return finished
    job = jobs.begin(run, cfg, device)
    parallel.barrier()  # every process has looked before the first one writes
    images = data.load(cfg.data, cfg.held_out)
    training = data.training_of(cfg, images)
    teacher = teacher_of(job, training, teacher_file)
    student, logs = (None, []) if cfg.row in UNTRAINED else distil(job, teacher, training)
    if not parallel.is_main():
        return None
    with phase(f"{run.name}: testing"):
        return record(job, teacher, student, logs, training, images)


# ---- The teacher


TEACHER_FIELDS = (
    "data", "held_out", "teacher_net", "teacher_features", "teacher_steps", "teacher_px", "pretrained", "augment",
    "per_class", "batch", "optimizer", "lr", "drops", "warmup", "momentum", "nesterov", "weight_decay", "clip",
    "precision", "scale",
)  # fmt: skip


def teacher_of(job: jobs.Job, training: data.Training, path: Path | None = None) -> Source:
    """The Source at high resolution: the given weights, or a network trained here once and kept beside the runs.

    The settings are those asked for: with precision "auto" any machine takes the kept one, a forced precision has its
    own.
    """
    cfg = job.asked
    net: Net
    if cfg.teacher_sha256:
        net = networks.load_mobilefacenet(networks.given_weights(path, cfg.teacher_sha256, "--teacher"))
        return Source(Learner(net), cfg.teacher_px, job.device, cfg.teacher_sha256)
    own = dataclasses.replace(Config(), **{name: getattr(cfg, name) for name in TEACHER_FIELDS})
    own = dataclasses.replace(own, row="teacher", orders=(), task=1.0, views=0, resolution=cfg.teacher_px)
    folder = job.run.folder.parent / f"teacher-{runs.fingerprint(own)}"
    own = precision.settle(own, folder, job.device)
    torch.manual_seed(own.seed)
    net = student_net(own, own.teacher_net, own.teacher_features, own.teacher_px)
    learner = Learner(net, classes=training.classes, scale=own.scale)
    if not (folder / "teacher.json").exists():
        train_teacher(dataclasses.replace(job, cfg=own), learner, training, folder)
    checkpoint.load_weights(folder / "model.safetensors", learner)
    written = storage.read_json(folder / "teacher.json", ("sha256", "seconds"))
    if written.get("precision", own.precision) != own.precision and parallel.is_main():
        print(f"{folder}: this teacher was trained in {written['precision']}", file=sys.stderr)
    return Source(learner, own.teacher_px, job.device, written["sha256"], written["seconds"])


def train_teacher(job: jobs.Job, learner: Learner, training: data.Training, folder: Path) -> None:
    """Train a teacher with labels at high resolution; weights, history and teacher.json, written last, to `folder`."""
    cfg = job.cfg
    label = f"{cfg.data} teacher {cfg.teacher_net}"
    steps = fit(job, learner, None, training, Stage(label, folder, cfg.teacher_steps, cfg.teacher_px, cfg.teacher_px))
    if parallel.is_main():
        digest = checkpoint.save_weights(folder / "model.safetensors", learner, trained_on=cfg.data)
        runs.write_history(folder / "history.csv", steps.history)
        written = {"seconds": steps.seconds, "sha256": digest, "precision": cfg.precision}
        storage.write_json(folder / "teacher.json", written)
        steps.path.unlink(missing_ok=True)
    parallel.barrier()


def student_net(cfg: Config, name: str, features: int, px: int) -> Net:
    """A network, with the ImageNet weights of cfg.pretrained under it where it is one of torchvision's."""
    net = make_net(name, features, px)
    if cfg.pretrained and isinstance(net, ImageNetResNet):
        path = cfg.pretrained.replace("{net}", name.removeprefix("imagenet_"))
        state = {k: v for k, v in networks.read_state(path).items() if not k.startswith("fc.")}
        head = {k: v for k, v in net.body.state_dict().items() if k.startswith("fc.")}
        state_dicts.fill(net.body, head | state, path)
    return net


# ---- Stages


@dataclasses.dataclass(frozen=True)
class Stage:
    """One of the trainings of a run."""

    label: str  # for people
    folder: Path  # of its checkpoint
    steps: int
    resolution: int  # pixels a side that the learner's images really have
    px: int  # side of the learner's input


def distil(job: jobs.Job, teacher: Source, training: data.Training) -> tuple[Learner, list[loop.Steps]]:
    """One or two stages; returns (Learner with the last weights, list of their Steps).

    Stage 1 (cross-structure): an assistant of the student's architecture learns from the teacher, both at high
    resolution. Stage 2 (cross-resolution): the student, which starts as the assistant, learns at low resolution from
    the frozen assistant; by route "init" from the teacher. The updates of both stages add up to cfg.steps.
    """
    cfg, run, source, start, logs = job.cfg, job.run, teacher, teacher.learner.net, []
    if cfg.views and cfg.has_source:
        teacher.prepare(cfg, training, run.folder.parent / f"teacher-{teacher.sha256[:8]}")
    if cfg.route != "direct":
        steps = max(1, round(cfg.stage1 * cfg.steps))
        first = Stage(f"{run.name} stage1", run.folder / "stage1", steps, cfg.teacher_px, cfg.input_px)
        assistant = new_learner(cfg, teacher, training, start, cfg.seed)
        logs.append(train_stage(job, assistant, teacher, training, first))
        start = assistant.net
        if cfg.route == "assistant" and cfg.has_source:
            source = Source(assistant, cfg.input_px, job.device)
            source.prepare(cfg, training, run.folder / "assistant")
    steps = cfg.steps - sum(done.total for done in logs)
    last = Stage(f"{run.name} stage2", run.folder / "stage2", steps, cfg.resolution, cfg.input_px)
    student = new_learner(cfg, source, training, start, cfg.seed + 10_000)
    logs.append(train_stage(job, student, source, training, last))
    return student, logs


def train_stage(job: jobs.Job, learner: Learner, source: Source, training: data.Training, stage: Stage) -> loop.Steps:
    """Train one network, which ends in eval mode; returns its Steps."""
    steps = fit(job, learner, source, training, stage)
    if steps.seconds and parallel.is_main():  # its checkpoint stays until the run is recorded: a resumed run needs it
        steps.save(steps.total)
    learner.eval()
    return steps


def new_learner(cfg: Config, source: Source, training: data.Training, start: torch.nn.Module, seed: int) -> Learner:
    """The student (or assistant) with all that its losses need around it; weights as cfg.start says."""
    torch.manual_seed(seed)
    net = student_net(cfg, cfg.net, cfg.features, cfg.input_px)
    if cfg.start == "source" and not state_dicts.difference(net.state_dict(), start.state_dict()):
        net.load_state_dict(start.state_dict())
    width = embedding_width(source.learner.net)
    options: dict[str, Any] = dict(source_width=width if 1 in cfg.orders or cfg.kd else 0)
    if cfg.hint:
        options["hint_width"] = source.hint_width()
    if cfg.kd and cfg.kind != "classification":
        options |= dict(centres=source.class_centres(training, cfg), scale=cfg.scale)
    elif cfg.task or cfg.kd:
        options |= dict(classes=training.classes, scale=cfg.scale)
    learner = Learner(net, **options)
    if cfg.hint:  # the lazy regressor takes its size, before anything is copied to a device or a checkpoint
        with torch.no_grad():
            learner.eval()(torch.zeros(2, 3, cfg.input_px, cfg.input_px))
    return learner


# ---- The loop


def fit(job: jobs.Job, learner: Learner, source: Source | None, training: data.Training, stage: Stage) -> loop.Steps:
    """Train `learner` as a Stage says; it ends with its last (or averaged) weights. Returns the finished Steps."""
    cfg, device, total = job.cfg, job.device, stage.steps
    networks.channels_last(learner, device)
    average = loop.averaged(learner, cfg.averaging) if cfg.averaging else None
    optimizer = make_optimizer(cfg, learner)
    parts = {"model": learner, "optimizer": optimizer} | ({"average": average} if average else {})
    steps = job.steps(parts, total, cfg.batch, "images", folder=stage.folder, label=stage.label)
    guide = source if cfg.has_source else None
    unfinished = steps.first < total
    feed = data.Feed(training, cfg, stage.resolution, stage.px, total, device) if unfinished else None
    network = parallel.wrap(learner, device)
    for step in steps:
        assert feed is not None  # made where a step is left
        batch = feed.batch(step, job.share, high=guide is not None and guide.targets is None)
        target = guide.outputs(batch, cfg.operator, bool(cfg.hint)) if guide is not None else None
        schedules.set_rate(optimizer, rate_at(cfg, step, total))
        learner.train()
        x = networks.to_input(batch.seen, learner.net.pixels).contiguous(memory_format=torch.channels_last)
        with precision.autocast(device, cfg.precision):
            output = network(x)
        losses = losses_of(cfg, learner, output, target, batch)
        loss = sum(losses.values(), start=torch.zeros(()))
        norms = gradient_norms(losses, output.embedding)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), cfg.clip)
        optimizer.step()
        if average:
            average.update_parameters(learner)
        logged = {"loss": loss} | losses | norms
        steps.log(**{name: parallel.mean_over_ranks(value) for name, value in logged.items()})
    if average:
        learner.load_state_dict(average.module.state_dict())
    return steps


def losses_of(
    cfg: Config,
    learner: Learner,
    output: Outputs,
    target: Outputs | None,
    batch: data.Batch,
) -> dict[str, torch.Tensor]:
    """{name: weighted loss} of this process's share."""
    losses = relations(cfg, output, target) if target is not None and (cfg.orders or cfg.centre) else {}
    if cfg.kd:
        assert target is not None  # config.has_source
        logits = target.logits
        if learner.centres is not None:
            logits = cfg.scale * F.linear(F.normalize(target.embedding, dim=1), learner.centres)
        losses["kd"] = cfg.kd * method.kd_loss(output.logits, logits, cfg.temperature)
    if cfg.hint:
        assert target is not None  # config.has_source
        losses["hint"] = cfg.hint * method.hint_loss(output.maps, target.maps)
    if cfg.task:
        losses["task"] = cfg.task * F.cross_entropy(output.logits, batch.labels)
    return losses


def relations(cfg: Config, output: Outputs, target: Outputs) -> dict[str, torch.Tensor]:
    """{name: weighted loss} of the orders and the centre, which reach over the samples of all processes."""
    student, reference = parallel.gather(output.embedding.float(), True), parallel.gather(target.embedding)
    projected = parallel.gather(output.projected, True) if 1 in cfg.orders else None
    found = method.relational_losses(
        student, reference, cfg.orders, projected, cfg.normalise_source, cfg.normalise_point
    )
    losses = {f"order{order}": cfg.weights[order - 1] * value for order, value in sorted(found.items())}
    if cfg.centre:
        losses["centre"] = cfg.centre * method.centre_loss(student, reference)
    return losses


def gradient_norms(losses: dict[str, torch.Tensor], embedding: torch.Tensor) -> dict[str, torch.Tensor]:
    """{"grad_" + name: norm of a weighted loss's gradient at the embeddings}: which term drives the training.

    Over all processes: each sees the gradient of its own samples, times their number (see parallel.gather). Left out
    where a loss does not act through the embeddings: hints, and the logits of a compiled network.
    """
    norms = {}
    for name, loss in losses.items():
        (gradient,) = torch.autograd.grad(loss, embedding, retain_graph=True, allow_unused=True)
        if gradient is not None:
            square = parallel.mean_over_ranks(gradient.square().sum())
            norms[f"grad_{name}"] = (square / parallel.world()).sqrt()
    return norms


def make_optimizer(cfg: Config, learner: Learner) -> torch.optim.Optimizer:
    """SGD or AdamW over everything that is trained."""
    learned = optimizers.trained(learner)
    options: dict[str, Any] = dict(nesterov=cfg.nesterov, fused=True)
    return optimizers.make(cfg.optimizer, learned, cfg.lr, cfg.weight_decay, cfg.momentum, **options)


def rate_at(cfg: Config, step: int, total: int) -> float:
    """Learning rate: linear warm-up, then a tenth after each share of cfg.drops, or (none) one cosine to zero."""
    return schedules.rate(cfg.lr, step, total, cfg.warmup, [share * total for share in cfg.drops])


# ---- Record


def record(
    job: jobs.Job,
    teacher: Source,
    student: Learner | None,
    logs: list[loop.Steps],
    training: data.Training,
    images: data.ImageSet,
) -> dict:
    """Test, save the student's network, write the record; returns it. `student` None: the teacher is tested."""
    cfg, run = job.cfg, job.run
    net = student.net if student is not None else None
    found = evaluate.predictions(cfg, teacher.learner.net, net, student or teacher.learner, images, job.device)
    weights = None
    if student is not None:
        path = run.folder / "model.safetensors"
        kept = student if cfg.kind == "classification" else student.net
        metadata = dict(row=cfg.row, net=cfg.net, trained_on=cfg.data, config=runs.fingerprint(cfg))
        weights = {"file": path.name, "sha256": checkpoint.save_weights(path, kept, **metadata)}
    history = [{"stage": k, **row} for k, steps in enumerate(logs, start=3 - len(logs)) for row in steps.history]
    written = run.finish(
        metrics=evaluate.measure(found),
        predictions=found,
        history=history or [{"step": 0}],
        data={
            "name": cfg.data, "fingerprint": training.fingerprint, "training_images": len(training),
            "test_samples": len(next(iter(found.values()))), "extra": cfg.extra,
        },
        selection="last" + (", running average" if cfg.averaging else "") if student else "given",
        device=job.device,
        seconds=sum(steps.seconds for steps in logs),
        samples=cfg.steps * cfg.batch if student else 0,
        weights=weights,
        teacher={"sha256": teacher.sha256, "seconds": round(teacher.seconds, 2)},
        cost=cost(cfg, teacher.learner.net, net),
    )  # fmt: skip
    for left in ("stage1", "stage2", "assistant"):
        shutil.rmtree(run.folder / left, ignore_errors=True)
    return written


def cost(cfg: Config, teacher: torch.nn.Module, student: torch.nn.Module | None) -> dict[str, int]:
    """Parameters and multiply-adds of teacher and student."""
    found = {"teacher_parameters": parameters(teacher), "teacher_macs": macs(teacher.cpu(), cfg.teacher_px)}
    if student is not None:
        found |= {"parameters": parameters(student), "macs": macs(student.cpu(), cfg.input_px)}
    return found


if __name__ == "__main__":
    cli.entry(main)
