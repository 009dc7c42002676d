"""Distil one row of the tables.

`python -m facepapers.papers.hybrid_order_distillation.train --preset demo --row assistant_123`

Reads top to bottom: teacher, stages, loop, record. `torchrun --nproc-per-node 2 -m ...` runs the same. `--teacher FILE`
names the given MobileFaceNet where it is not in data/raw/.
"""

import dataclasses
import hashlib
import math
import shutil
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from facepapers.common import cli, paths, storage
from facepapers.common.evidence import runs
from facepapers.common.progress import phase, progress
from facepapers.common.training import checkpoint, loop, parallel, precision
from facepapers.common.vision import networks
from facepapers.papers.hybrid_order_distillation import data, evaluate, method
from facepapers.papers.hybrid_order_distillation.config import PAPER, UNTRAINED, Config, check, preset
from facepapers.papers.hybrid_order_distillation.degrade import resize
from facepapers.papers.hybrid_order_distillation.nets import Learner, Outputs, macs, make_net, parameters


def main(argv):
    device_name, argv = cli.take_option(argv, "device", "auto")
    out, argv = cli.take_option(argv, "out", paths.LOCAL)
    teacher, argv = cli.take_option(argv, "teacher")
    cfg = parse(argv)
    device = parallel.start(device_name)
    try:
        return train(cfg, device, out, teacher)
    finally:
        parallel.finish()


def parse(argv):
    """The Config of a command line."""
    prog = "python -m facepapers.papers.hybrid_order_distillation.train"
    (cfg,) = cli.experiment(argv, preset, check, "assistant_123", prog=prog)
    return cfg


def train(cfg, device, out=paths.LOCAL, teacher_file=None):
    """Train and record one run; returns its record. A finished run is read back, an interrupted one continues."""
    run = runs.Run(PAPER, cfg.run_name, cfg, preset(cfg.preset, cfg.row, cfg.data), out)
    if run.finished():
        print(f"{run.name}: already recorded in {run.folder}; delete that folder to run it again", file=sys.stderr)
        return storage.read_json(run.folder / "run.json")
    asked, cfg = cfg, run.settle(cfg, device)
    share = parallel.my_slice(cfg.batch)
    parallel.barrier()  # every process has looked before the first one writes
    whole = data.load(cfg.data, cfg.held_out)
    training = data.training_of(cfg, whole)
    teacher = teacher_of(asked, training, Path(out) / PAPER, share, device, teacher_file)
    if cfg.row in UNTRAINED:
        student, logs = None, []
    else:
        student, logs = distil(cfg, teacher, training, run, share, device)
    with phase(f"{run.name}: testing"):
        return record(run, cfg, teacher, student, logs, training, whole, device) if parallel.is_main() else None


# ---- The teacher, and what any source says about a batch


class Source:
    """A frozen network that a student learns from. `px`: side of its input; `sha256` names it in records."""

    def __init__(self, learner, px, device, sha256="", seconds=0.0):
        self.learner, self.px, self.device = learner.eval().requires_grad_(False).to(device), px, device
        self.sha256, self.seconds, self.targets = sha256, seconds, None

    @torch.no_grad()
    def __call__(self, pictures, operator="pil_bicubic", network=None):
        """Outputs for uint8 pictures (B, 3, S, S) at high resolution; `network`: another form of the learner."""
        x = networks.to_input(resize(pictures, self.px, operator), self.learner.net.pixels)
        return (network or self.learner)(x.contiguous(memory_format=torch.channels_last))

    def prepare(self, cfg, training, folder):
        """Compute the embeddings of all fixed views once; one process writes, all read."""
        if cfg.views:
            kept = Path(folder) / f"outputs-{data_key(cfg, training)}"
            if parallel.is_main():
                network = parallel.frozen(self.learner.net, self.device)
                data.view_outputs(lambda p: self(p, cfg.operator, network), training, cfg, kept, self.device)
            parallel.barrier()
            self.targets = data.view_outputs(None, training, cfg, kept, self.device)

    def about(self, batch, operator):
        """Outputs for a Batch: the kept embeddings, or a forward pass."""
        if self.targets is None:
            return self(batch.high, operator)
        return Outputs(self.targets[batch.view, batch.index].to(self.device))


def data_key(cfg, training):
    """Eight hex digits of everything that the views depend on."""
    words = (training.fingerprint, cfg.views, cfg.augment, cfg.teacher_px, cfg.operator, data.VIEWS_SEED)
    return hashlib.sha256(repr(words).encode()).hexdigest()[:8]


TEACHER_FIELDS = (
    "data", "teacher_net", "teacher_features", "teacher_steps", "teacher_px", "pretrained", "augment", "per_class",
    "batch", "optimizer", "lr", "drops", "warmup", "momentum", "nesterov", "weight_decay", "clip", "precision", "scale",
)  # fmt: skip


def teacher_of(cfg, training, folder, share, device, path=None):
    """The Source at high resolution: the given weights, or a network trained here once and kept under `folder`.

    `cfg` as asked for: with precision "auto" any machine takes the kept one, a forced precision has its own.
    """
    if cfg.teacher_sha256:
        path = networks.given_weights(path, cfg.teacher_sha256, "--teacher")
        net = networks.load_mobilefacenet(path)
        net.features_out, net.hint = cfg.teacher_features, "features.5"
        return Source(Learner(net), cfg.teacher_px, device, cfg.teacher_sha256)
    own = dataclasses.replace(Config(), **{name: getattr(cfg, name) for name in TEACHER_FIELDS})
    own = dataclasses.replace(own, row="teacher", orders=(), task=1.0, views=0, resolution=cfg.teacher_px)
    home = folder / f"teacher-{runs.fingerprint(own)}"
    own = precision.settle(own, home, device)
    torch.manual_seed(own.seed)
    learner = Learner(student_net(own, own.teacher_net, own.teacher_features, own.teacher_px), classes=training.classes,
                      scale=own.scale)  # fmt: skip
    kept, about = home / "model.safetensors", home / "teacher.json"
    if not about.exists():
        label = f"{cfg.data} teacher {cfg.teacher_net}"
        steps = fit(own, learner, None, training, home, own.teacher_steps, own.teacher_px, own.teacher_px, label, share,
                    device)  # fmt: skip
        if parallel.is_main():
            checkpoint.save_weights(kept, learner, trained_on=cfg.data)
            runs.write_history(home / "history.csv", steps.history)
            words = {"seconds": steps.seconds, "sha256": storage.sha256(kept), "precision": own.precision}
            storage.write_json(about, words)
            steps.path.unlink(missing_ok=True)
        parallel.barrier()
    checkpoint.load_weights(kept, learner)
    words = storage.read_json(about)
    if words.get("precision", own.precision) != own.precision and parallel.is_main():
        print(f"{home}: this teacher was trained in {words['precision']}", file=sys.stderr)
    return Source(learner, own.teacher_px, device, words["sha256"], words["seconds"])


def student_net(cfg, name, features, px):
    """A network, with the ImageNet weights of cfg.pretrained under it where it is one of torchvision's."""
    net = make_net(name, features, px)
    if cfg.pretrained and name.startswith("imagenet"):
        path = cfg.pretrained.replace("{net}", name.removeprefix("imagenet_"))
        state = {k: v for k, v in networks.read_state(path).items() if not k.startswith("fc.")}
        missing = net.body.load_state_dict(state, strict=False)
        if missing.unexpected_keys or any(not k.startswith("fc.") for k in missing.missing_keys):
            raise cli.UserError(f"{path}: not the weights of torchvision's {name.removeprefix('imagenet_')}")
    return net


# ---- Stages


def distil(cfg, teacher, training, run, share, device):
    """One or two stages; returns (Learner with the last weights, list of their Steps).

    Stage 1 (cross-structure): an assistant of the student's architecture learns from the teacher, both at high
    resolution. Stage 2 (cross-resolution): the student, which starts as the assistant, learns at low resolution from
    the frozen assistant; by route "init" from the teacher. The updates of both stages add up to cfg.steps.
    """
    source, logs, start = teacher, [], teacher.learner.net
    needed = bool(cfg.orders or cfg.kd or cfg.hint or cfg.centre)
    home = run.folder.parent / f"teacher-{teacher.sha256[:8]}"
    if cfg.views and needed:
        teacher.prepare(cfg, training, home)
    if cfg.route != "direct":
        first = max(1, round(cfg.stage1 * cfg.steps))
        assistant, steps = stage(cfg, teacher, training, run, "stage1", first, cfg.teacher_px, start, share, device)
        logs.append(steps)
        start = assistant.net
        if cfg.route == "assistant" and needed:
            source = Source(assistant, cfg.input_px, device, "")
            source.prepare(cfg, training, run.folder / "assistant")
    left = cfg.steps - sum(steps.total for steps in logs)
    student, steps = stage(cfg, source, training, run, "stage2", left, cfg.resolution, start, share, device)
    return student, [*logs, steps]


def stage(cfg, source, training, run, name, steps, resolution, start, share, device):
    """Train one network at `resolution`; returns it in eval mode, and its Steps."""
    learner = new_learner(cfg, source, training, start, stage2=name == "stage2")
    label = f"{run.name} {name}"
    done = fit(cfg, learner, source, training, run.folder / name, steps, resolution, cfg.input_px, label, share, device)
    if done.seconds and parallel.is_main():  # its checkpoint stays until the run is recorded: a resumed run needs it
        done.save(done.total)
    return learner.eval(), done


def new_learner(cfg, source, training, start, stage2):
    """The student (or assistant) with all that its losses need around it; weights as cfg.start says."""
    torch.manual_seed(cfg.seed + 10_000 * stage2)
    net = student_net(cfg, cfg.net, cfg.features, cfg.input_px)
    if cfg.start == "source" and not networks.difference(net.state_dict(), start.state_dict()):
        net.load_state_dict(start.state_dict())
    width = source.learner.net.features_out
    options = dict(source_width=width if 1 in cfg.orders or cfg.kd else 0)
    if cfg.hint:
        options["hint_width"] = hint_width(source, cfg.teacher_px)
    if cfg.kd and cfg.kind != "classification":
        options |= dict(centres=class_centres(source, training, cfg), scale=cfg.scale)
    elif cfg.task or cfg.kd:
        options |= dict(classes=training.classes, scale=cfg.scale)
    learner = Learner(net, **options)
    if cfg.hint:  # the lazy regressor takes its size, before anything is copied to a device or a checkpoint
        with torch.no_grad():
            learner.eval()(torch.zeros(2, 3, cfg.input_px, cfg.input_px))
    return learner


def hint_width(source, px):
    """Channels of the source's hint maps."""
    return hint_maps(source, torch.zeros(1, 3, px, px, dtype=torch.uint8)).shape[1]


def hint_maps(source, pictures):
    """(B, K, H, W): the source's maps at its hint layer."""
    kept = []
    net = source.learner.net
    handle = net.get_submodule(net.hint).register_forward_hook(lambda layer, given, made: kept.append(made))
    try:
        source(pictures.to(source.device))
    finally:
        handle.remove()
    return kept[0]


def class_centres(source, training, cfg):
    """(C, d) mean unit embedding of each class: for faces the teacher's own classifier is not known (our stand-in)."""
    parts = progress(training.images.split(128), "class centres", "batches")
    rows = [source(data.plain(part.to(source.device), cfg)).embedding.cpu() for part in parts]
    total = torch.zeros(training.classes, rows[0].shape[1])
    return F.normalize(total.index_add_(0, training.labels, F.normalize(torch.cat(rows), dim=1)), dim=1)


# ---- The loop


def fit(cfg, learner, source, training, folder, total, resolution, px, label, share, device):
    """Train `learner` for `total` steps; it ends with its last (or averaged) weights. Returns the finished Steps."""
    learner.to(device, memory_format=torch.channels_last)
    average = loop.averaged(learner, cfg.averaging) if cfg.averaging else None
    optimizer = make_optimizer(cfg, learner)
    parts = {"model": learner, "optimizer": optimizer} | ({"average": average} if average else {})
    origin = loop.Origin(label, runs.fingerprint(cfg), cfg.precision)
    steps = loop.Steps(folder, parts, total, cfg.batch, "images", origin)
    feed = data.Feed(training, cfg, resolution, px, total, device) if steps.first < total else None
    network = parallel.wrap(learner, device)
    taught = source is not None and bool(cfg.orders or cfg.kd or cfg.hint or cfg.centre)
    for step in steps:
        batch = feed.batch(step, share, high=taught and source.targets is None)
        target = source.about(batch, cfg.operator) if taught else None
        set_rate(cfg, optimizer, step, total)
        learner.train()
        x = networks.to_input(batch.seen, learner.net.pixels).contiguous(memory_format=torch.channels_last)
        with precision.autocast(device, cfg.precision):
            said = network(x)
        losses = losses_of(cfg, learner, said, target, source, batch)
        loss = sum(losses.values())
        norms = gradient_norms(losses, said.embedding)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), cfg.clip)
        optimizer.step()
        if average:
            average.update_parameters(learner)
        steps.log(
            **{name: parallel.mean_over_ranks(value) for name, value in ({"loss": loss} | losses | norms).items()}
        )
    if average:
        learner.load_state_dict(average.module.state_dict())
    return steps


def losses_of(cfg, learner, said, target, source, batch):
    """{name: weighted loss} of this process's share; relations reach over the samples of all processes."""
    losses = {}
    if target is not None and (cfg.orders or cfg.centre):
        student, reference = parallel.gather(said.embedding.float(), True), parallel.gather(target.embedding)
        projected = parallel.gather(said.projected, True) if 1 in cfg.orders else None
        found = method.relational_losses(
            student, reference, cfg.orders, projected, cfg.normalise_source, cfg.normalise_point
        )
        losses = {f"order{order}": cfg.weights[order - 1] * value for order, value in sorted(found.items())}
        if cfg.centre:
            losses["centre"] = cfg.centre * method.centre_loss(student, reference)
    if cfg.kd:
        logits = target.logits
        if learner.centres is not None:
            logits = cfg.scale * F.linear(F.normalize(target.embedding, dim=1), learner.centres)
        losses["kd"] = cfg.kd * method.kd_loss(said.logits, logits, cfg.temperature)
    if cfg.hint:
        losses["hint"] = cfg.hint * method.hint_loss(said.maps, hint_maps(source, batch.high))
    if cfg.task:
        losses["task"] = cfg.task * F.cross_entropy(said.logits, batch.labels)
    return losses


def gradient_norms(losses, embedding):
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


def make_optimizer(cfg, learner):
    """SGD or AdamW over everything that is trained."""
    learned = [p for p in learner.parameters() if p.requires_grad]
    if cfg.optimizer == "adamw":
        return torch.optim.AdamW(learned, cfg.lr, weight_decay=cfg.weight_decay, fused=True)
    return torch.optim.SGD(learned, cfg.lr, cfg.momentum, weight_decay=cfg.weight_decay, nesterov=cfg.nesterov)


def set_rate(cfg, optimizer, step, total):
    for group in optimizer.param_groups:
        group["lr"] = rate_at(cfg, step, total)


def rate_at(cfg, step, total):
    """Learning rate: linear warm-up, then a tenth after each share of cfg.drops, or (none) one cosine to zero."""
    warm = min(1.0, (step + 1) / max(1, cfg.warmup))
    if cfg.drops:
        return warm * cfg.lr * 0.1 ** sum(step >= share * total for share in cfg.drops)
    return warm * cfg.lr * 0.5 * (1 + math.cos(math.pi * step / total))


# ---- Record


def record(run, cfg, teacher, student, logs, training, whole, device):
    """Test, save the student's network, write the record; returns it."""
    found = evaluate.predictions(
        cfg, teacher.learner.net, student and student.net, student or teacher.learner, whole, device
    )
    weights = None
    if student is not None:
        path = run.folder / "model.safetensors"
        keep = student if cfg.kind == "classification" else student.net
        words = dict(row=cfg.row, net=cfg.net, trained_on=cfg.data, config=runs.fingerprint(cfg))
        weights = {"file": path.name, "sha256": checkpoint.save_weights(path, keep, **words)}
    seconds = sum(steps.seconds for steps in logs)
    history = [{"stage": k, **row} for k, steps in enumerate(logs, start=3 - len(logs)) for row in steps.history]
    written = run.finish(
        metrics=evaluate.measure(found),
        predictions=found,
        history=history or [{"step": 0}],
        data={
            "name": cfg.data, "fingerprint": training.fingerprint, "training_images": len(training),
            "test_samples": len(next(iter(found.values()))), "extra": cfg.extra,
        },
        selection="last" + (", running average" if cfg.averaging and student else "") if student else "given",
        device=device,
        seconds=seconds,
        samples=cfg.steps * cfg.batch if student else 0,
        weights=weights,
        teacher={"sha256": teacher.sha256, "seconds": round(teacher.seconds, 2)},
        cost=cost(cfg, teacher.learner.net, student and student.net),
    )  # fmt: skip
    for left in ("stage1", "stage2", "assistant"):
        shutil.rmtree(run.folder / left, ignore_errors=True)
    return written


def cost(cfg, teacher, student):
    """Parameters and multiply-adds of teacher and student."""
    found = {"teacher_parameters": parameters(teacher), "teacher_macs": macs(teacher.cpu(), cfg.teacher_px)}
    if student is not None:
        found |= {"parameters": parameters(student), "macs": macs(student.cpu(), cfg.input_px)}
    return found


if __name__ == "__main__":
    cli.entry(main)
