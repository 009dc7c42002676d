"""Train one row of the ReSup table: `python -m facepapers.papers.resup.train --preset demo --row resup`.

Reads top to bottom: data and noise, networks, loop, noise model, record. `torchrun --nproc-per-node 2 -m ...` runs the
same.
"""

import functools
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from facepapers.common import cli, paths, storage
from facepapers.common.evidence import environment, jobs, runs
from facepapers.common.progress import phase
from facepapers.common.training import checkpoint, loop, optimizers, parallel, precision, schedules
from facepapers.common.vision import networks
from facepapers.papers.resup import data, evaluate, fitting, method
from facepapers.papers.resup.config import NO_FILES, PAPER, Config, Files, build_peers, check, preset
from facepapers.papers.resup.nets import PeerNetworks


def main(argv: Sequence[str]) -> dict | None:
    """Train a row; returns its record (None on all processes but the first)."""
    place, files, cfg = parse(argv)
    with parallel.processes(place.device) as device:
        return train(cfg, device, place.out, files)


def parse(argv: Sequence[str]) -> tuple[jobs.Place, Files, Config]:
    """Where to run, what to start from, and the settings, of a command line."""
    prog = "python -m facepapers.papers.resup.train"
    return cli.experiment(argv, preset, check, "resup", jobs.Place(), Files(), prog=prog, about=__doc__)


def train(cfg: Config, device: torch.device, out: Path = paths.LOCAL, files: Files = NO_FILES) -> dict | None:
    """Train and record one run; returns its record. A finished run is read back, an interrupted one continues."""
    run = runs.Run(PAPER, cfg.run_name, cfg, preset(cfg.preset, cfg.row, cfg.data), out)
    if finished := run.finished_record():
        return finished
    job = jobs.begin(run, cfg, device)
    faces = data.load(cfg.data, cfg.rule)
    splits = data.splits(faces, cfg)
    training, valid, test = splits
    print(
        f"{run.name}: {len(training)} training faces, {100 * training.flip.mean():.1f} % of their labels wrong, "
        f"{len(valid)} validation, {len(test)} test faces on {device}",
        file=sys.stderr,
    )
    peers = networks.channels_last(build_peers(cfg, len(faces.classes), files), device)
    warm_up = warm_up_file(job, faces.fingerprint, files)
    state, steps = fit(job, peers, splits, warm_up)
    if not parallel.is_main():
        return None
    with phase(f"{run.name}: testing"):
        if not cfg.has_noise_model:  # what a noise model would have said of the row's last networks
            fitting.update_noise_models(job.cfg, state.noise_models, peers.eval(), training, cfg.epochs, device)
        return record(job, faces, splits, state, steps, files, warm_up)


# ---- The warm-up that rows of two networks share


AFTER_WARMUP = (
    "row", "weighting", "evidence", "consistency", "judge_view", "weights_from", "forget_ramp", "averaging", "relabel",
    "smoothing", "judge_again",
)  # fmt: skip


def warm_up_file(job: jobs.Job, fingerprint: str, files: Files) -> Path | None:
    """Where the state at the warm-up's end lies: rows of two networks differ only later, so a seed needs it once.

    Its name changes with every other setting, the data, the starting weights and the source. None: nothing to share.
    The settings are those asked for: with precision "auto" a seed's rows share it on any machine, a forced one has its
    own.
    """
    cfg = job.asked
    if cfg.nets < 2 or cfg.warmup >= cfg.epochs:
        return None
    shared = {k: v for k, v in runs.as_dict(cfg).items() if k not in AFTER_WARMUP}
    given = [storage.sha256(file) if file else "" for file in files.both]
    named = json.dumps([shared, fingerprint, given, environment.source_sha256(PAPER)])
    return job.run.folder.parent / f"warmup-{hashlib.sha256(named.encode()).hexdigest()[:8]}" / "state.pt"


# ---- The loop

Watch = Callable[[int, method.NoiseModels], None]  # looks at an epoch's noise models


@dataclass(frozen=True, eq=False)
class State:
    """What a run learns, and how its networks are called."""

    peers: PeerNetworks
    noise_models: method.NoiseModels  # one for each network
    optimizer: torch.optim.Optimizer
    best: loop.Best  # weights of the best validation epoch
    average: Any  # AveragedModel of the networks (ours), or None
    network: Callable  # `peers` as the training calls them: over all processes, or compiled
    evaluator: Any  # what looks at faces between the epochs: the averaged networks where there are any

    @property
    def evaluated(self) -> PeerNetworks:
        """The networks whose weights are validated and tested, and fit the noise models."""
        return self.average.module if self.average else self.peers

    @property
    def warm_up(self) -> dict:
        """Name -> part of what a warm-up's end consists of."""
        return {"model": self.peers, "optimizer": self.optimizer, "best": self.best}

    @property
    def checkpoint(self) -> dict:
        """Name -> part of what a checkpoint consists of."""
        average = {"average": self.average} if self.average else {}
        return self.warm_up | {"noise_models": self.noise_models} | average


def new_state(cfg: Config, peers: PeerNetworks, samples: int, device: torch.device) -> State:
    """The State before the first step, for `samples` training faces."""
    average = loop.averaged(peers, cfg.averaging) if cfg.averaging else None
    evaluated, network = average.module if average else peers, parallel.wrap(peers, device)
    # One process compiles what looks at faces between the epochs where it compiles the training.
    evaluator = evaluated if parallel.world() > 1 else parallel.wrap(evaluated, device) if average else network
    classes, keep_labels = peers.members[0].fc.out_features, cfg.weighting == "bayes"
    noise_models = torch.nn.ModuleList([method.NoiseModel(samples, classes, keep_labels) for _ in peers.members])
    best = loop.Best(evaluated, lower_is_better=False)
    return State(peers, noise_models.to(device), make_optimizer(cfg, peers), best, average, network, evaluator)


def fit(
    job: jobs.Job, peers: PeerNetworks, splits: data.Splits, warm_up: Path | None = None, watch: Watch | None = None
) -> tuple[State, loop.Steps]:
    """The loop; returns (State, Steps) and leaves `peers` with their last (or averaged) weights.

    `warm_up`: the `warm_up_file`, written at the warm-up's end, or continued from where it exists. `watch` is called
    after each fit of the noise models (explain.ipynb does).
    """
    cfg, device, training, n = job.cfg, job.device, splits.training, len(splits.training)
    state, per_epoch = new_state(cfg, peers, n, device), data.steps_per_epoch(cfg, n)
    total, names = cfg.epochs * per_epoch, functools.partial(samples_of, cfg, n)
    steps = job.steps(state.checkpoint, total, cfg.batch * cfg.nets, "faces", describe=names)
    given, flip = (torch.from_numpy(x).to(device) for x in (training.given, training.flip))
    pictures = training.images.to(device)
    if not steps.first and warm_up and parallel.any_rank(warm_up.exists(), device):
        continue_from(warm_up, state, steps)
        refit(job, state, steps, training, cfg.warmup - 1, watch)
    for step in steps:
        epoch, index = step // per_epoch, data.index(cfg, n, step).to(device)
        views = data.views(pictures, cfg, index, step, job.share)
        schedules.set_rate(state.optimizer, rate_at(cfg, step / per_epoch))
        peers.train()
        with precision.autocast(device, cfg.precision):
            logits = state.network(views)
        own = index[:, job.share]
        loss = row_loss(cfg, logits, given[own], own[0], state.noise_models, epoch, flip)
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norms = [torch.nn.utils.clip_grad_norm_(net.parameters(), cfg.clip) for net in peers.members]
        state.optimizer.step()
        if state.average and epoch >= cfg.warmup:
            state.average.update_parameters(peers)
        steps.log(loss=parallel.mean_over_ranks(loss) / cfg.nets, gradient=torch.stack(norms).mean())
        if (step + 1) % per_epoch == 0:
            validate(job, state, steps, epoch, splits.valid)
            keep_warm_up(warm_up, cfg, state, steps, epoch)
            refit(job, state, steps, training, epoch, watch)
    if state.average:
        peers.load_state_dict(state.evaluated.state_dict())
    return state, steps


def samples_of(cfg: Config, n: int, step: int) -> str:
    """Places among the n training faces that a step sees, as text for the report of a loss that is not finite."""
    return ", ".join(str(i) for i in data.index(cfg, n, step).unique().tolist())


def keep_warm_up(warm_up: Path | None, cfg: Config, state: State, steps: loop.Steps, epoch: int) -> None:
    """Write the warm-up's end, after its last epoch, for other rows of the seed."""
    if warm_up and epoch + 1 == cfg.warmup:
        steps.save(steps.step + 1, warm_up, state.warm_up)


def continue_from(warm_up: Path, state: State, steps: loop.Steps) -> None:
    """Take up the warm-up's end from a file that another row of the seed wrote."""
    steps.resume(warm_up, state.warm_up)
    if state.average:
        state.evaluated.load_state_dict(state.peers.state_dict())


def validate(job: jobs.Job, state: State, steps: loop.Steps, epoch: int, valid: data.Split) -> None:
    """Note the accuracies on the validation faces and offer the weights as the best."""
    if state.average and epoch < job.cfg.warmup:  # the average starts at the warm-up's end
        state.evaluated.load_state_dict(state.peers.state_dict())
    p = evaluate.probabilities(state.evaluator.eval(), valid.images, job.cfg, job.device)
    single, mean = (evaluate.accuracy_pct(q, valid.label) for q in (p[0], p.mean(0)))
    state.best.offer(mean, steps.step + 1)
    steps.note(epoch=epoch + 1, val_pct=single, val_mean_pct=mean)


def refit(
    job: jobs.Job,
    state: State,
    steps: loop.Steps,
    training: data.Split,
    epoch: int,
    watch: Watch | None = None,
) -> None:
    """New noise models after an epoch from the warm-up's last one on, in a row that has them; noted in the history."""
    cfg = job.cfg
    if not cfg.has_noise_model or epoch + 1 < cfg.warmup:
        return
    evaluator = state.evaluator.eval()
    steps.note(**fitting.update_noise_models(cfg, state.noise_models, evaluator, training, epoch, job.device))
    if watch:
        watch(epoch, state.noise_models)


# ---- The loss of a row


def row_loss(
    cfg: Config,
    logits: torch.Tensor,
    labels: torch.Tensor,
    index: torch.Tensor,
    noise_models: method.NoiseModels,
    epoch: int,
    flip: torch.Tensor,
) -> torch.Tensor:
    """The loss of a step: plain cross-entropy while warming up, then the row's weights.

    logits (M, b, K) of this process's share, labels (M, b), index (b,) of the samples (one order after the warm-up),
    flip (N,) the true flips, for the rows that are told of them.
    """
    if epoch < cfg.warmup:
        return method.weighted_loss(logits, labels, torch.ones_like(labels, dtype=torch.float32))
    if cfg.weighting == "bayes":
        return method.distribution_loss(logits, noise_models[0].labels[index], cfg.consistency)
    weights = row_weights(cfg, logits, labels[0], index, noise_models, epoch, flip)
    targets = torch.stack([noise_model.belief[index] for noise_model in noise_models]).mean(0) if cfg.relabel else None
    return method.weighted_loss(logits, labels, weights, cfg.consistency, targets, cfg.smoothing)


def row_weights(
    cfg: Config,
    logits: torch.Tensor,
    labels: torch.Tensor,
    index: torch.Tensor,
    noise_models: method.NoiseModels,
    epoch: int,
    flip: torch.Tensor,
) -> torch.Tensor:
    """Weights (M, b) of a row after the warm-up; ones for plain cross-entropy. Else as `row_loss`, labels (b,)."""
    if cfg.weighting == "none":
        return torch.ones(logits.shape[:2], device=logits.device)
    if cfg.weighting == "oracle":
        return (~flip[index]).float().expand(logits.shape[:2])
    if cfg.weighting == "coteaching":
        dropped = method.forget_share(float(flip.double().mean()), epoch, cfg.forget_ramp)
        return method.coteaching_weights(losses_of_batch(cfg, logits, labels), dropped)[:, parallel.my_slice(cfg.batch)]
    if cfg.weights_from == "epoch":
        weights = torch.stack([noise_model.weight[index] for noise_model in noise_models])
    else:
        weights = torch.stack([j.weigh(one, labels, cfg.evidence) for j, one in zip(noise_models, logits, strict=True)])
    return method.swap(weights) if cfg.weighting == "swapped" else weights


def losses_of_batch(cfg: Config, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropies (M, batch) of the whole batch, gathered over the processes."""
    own = [torch.nn.functional.cross_entropy(one.detach().float(), labels, reduction="none") for one in logits]
    whole = torch.zeros(len(logits), cfg.batch, device=logits.device)
    whole[:, parallel.my_slice(cfg.batch)] = torch.stack(own)
    return parallel.mean_over_ranks(whole) * parallel.world()


# ---- Optimiser


def make_optimizer(cfg: Config, peers: PeerNetworks) -> torch.optim.Optimizer:
    """The optimiser of all networks; SGD with Nesterov's momentum."""
    return optimizers.make(cfg.optimizer, peers.parameters(), cfg.lr, cfg.weight_decay, cfg.momentum, nesterov=True)


def rate_at(cfg: Config, epoch: float) -> float:
    """Learning rate at `epoch` (or a fraction): linear warm-up, then a tenth after each of cfg.drops, or cosines."""
    warm = min(1.0, (epoch + 0.01) / cfg.lr_warmup) if cfg.lr_warmup else 1.0
    if cfg.drops:
        return schedules.drops(warm * cfg.lr, epoch, cfg.drops)
    start, end = 0, cfg.epochs
    if cfg.restart:
        start, end = (0, cfg.warmup) if epoch < cfg.warmup else (cfg.warmup, cfg.epochs)
    return schedules.cosine(warm * cfg.lr, epoch - start, end - start)


# ---- Record


def record(
    job: jobs.Job,
    faces: data.FaceSet,
    splits: data.Splits,
    state: State,
    steps: loop.Steps,
    files: Files,
    warm_up: Path | None,
) -> dict:
    """Test the last and the validation-chosen weights, save predictions and the last weights, write the record."""
    cfg, run, device = job.cfg, job.run, job.device
    (training, _, test), peers = splits, state.peers
    arrays = evaluate.predictions(peers, test, cfg, device) | evaluate.noise_arrays(state.noise_models, training)
    copies = data.repeated(test, training)
    arrays |= {"repeated": copies} if copies.any() else {}
    path = run.folder / "model.safetensors"
    digest = checkpoint.save_weights(path, peers, config=runs.fingerprint(cfg), **metadata(cfg, faces))
    if state.best.weights is not None:
        peers.load_state_dict(state.best.weights)
        arrays |= evaluate.predictions(peers, test, cfg, device, "_validation_chosen")
    return run.finish(
        metrics=evaluate.measure(arrays),
        predictions=arrays,
        history=steps.history,
        data=describe(cfg, faces, splits, files),
        selection="last" + (", running average" if cfg.averaging else ""),
        device=device,
        seconds=steps.seconds,
        samples=steps.total * cfg.batch * cfg.nets,
        weights={"file": path.name, "sha256": digest},
        validation_chosen_step=state.best.step,
        warmup=warm_up.parent.name if warm_up else None,
    )


def metadata(cfg: Config, faces: data.FaceSet) -> dict[str, object]:
    """What a weights file says of its networks; evaluate.load builds them again from it."""
    return dict(
        row=cfg.row, preset=cfg.preset, trained_on=cfg.data, classes=" ".join(faces.classes), nets=cfg.nets,
        stem=cfg.stem, width=cfg.width, units=" ".join(map(str, cfg.units)), input_px=cfg.input_px, rule=cfg.rule,
        precision=cfg.precision, flip_test=cfg.flip_test, test_scales=" ".join(map(str, cfg.test_scales)),
    )  # fmt: skip


def describe(cfg: Config, faces: data.FaceSet, splits: data.Splits, files: Files) -> dict[str, object]:
    """The record's entry on its data and on the weights that the networks started from."""
    training, valid, test = splits
    count = np.bincount(training.given, minlength=len(faces.classes))
    hashes = [storage.sha256(file)[:12] if file else "" for file in files.both]
    starts = [f"{kind} {digest}".strip() for kind, digest in zip(cfg.init, hashes, strict=True)]
    return {
        "name": cfg.data, "fingerprint": faces.fingerprint, "rule": cfg.rule, "classes": " ".join(faces.classes),
        "noise": cfg.noise_kind, "flipped_pct": round(100 * float(training.flip.mean()), 3),
        "without_label": " ".join(name for name, n in zip(faces.classes, count, strict=True) if not n),
        "training_faces": len(training), "validation_faces": len(valid), "test_faces": len(test),
        "init": ", ".join(starts[: cfg.nets]),
    }  # fmt: skip


if __name__ == "__main__":
    cli.entry(main)
