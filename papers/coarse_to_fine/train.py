"""Train one row of the coarse-to-fine table.

`python -m facepapers.papers.coarse_to_fine.train --preset demo --row cft`

Reads top to bottom: data, model, loop, evaluation, record. `torchrun --nproc-per-node 2 -m ...` runs the same.
"""

import dataclasses
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from facepapers.common import cli, paths, storage
from facepapers.common.evidence import jobs, runs
from facepapers.common.progress import phase
from facepapers.common.training import checkpoint, loop, optimizers, parallel, precision, schedules
from facepapers.common.vision import networks
from facepapers.papers.coarse_to_fine import data, evaluate, figures, method, transfer
from facepapers.papers.coarse_to_fine.config import PAPER, Config, Model, check, preset
from facepapers.papers.coarse_to_fine.crops import ALIKE, Crops, Feed, Offsets

MEAN_FACES = 2048  # augmented crops that the mean image is taken over (our choice; the authors use all)
WATCHED = 80  # training faces whose error the history keeps when no face is held out for validation


def main(argv: Sequence[str]) -> dict | None:
    """Train a row; returns its record (None on all processes but the first)."""
    place, cfg = parse(argv)
    with parallel.processes(place.device) as device:
        return train(cfg, device, place.out)


def parse(argv: Sequence[str]) -> tuple[jobs.Place, Config]:
    """Where to run, and the settings, of a command line."""
    prog = "python -m facepapers.papers.coarse_to_fine.train"
    return cli.experiment(argv, preset, check, "cft", jobs.Place(), prog=prog, about=__doc__)


def train(cfg: Config, device: torch.device, out: Path = paths.LOCAL) -> dict | None:
    """Train and record one run; returns its record. A finished run is read back, an interrupted one continues."""
    run = runs.Run(PAPER, cfg.run_name, cfg, preset(cfg.preset, cfg.row, cfg.data), out)
    if finished := run.finished_record():
        return finished
    if cfg.folds:
        return cross_validated(jobs.begin(run, cfg, device, begun(run.folder)))
    job = jobs.begin(run, cfg, device)
    feed = Feed.of(job.cfg, device)
    torch.manual_seed(cfg.seed)
    model = networks.channels_last(Model(job.cfg, feed.faces.markup), device)
    index = feed.val if len(feed.val) else feed.fit[:WATCHED]
    with phase(f"{run.name}: cutting crops"):
        model.look_at(feed.augmented(resample(feed.fit, MEAN_FACES), 3))
        watched, test = feed.plain(index), feed.plain(feed.test)
    counts = f"{len(feed.fit)} training, {len(feed.val)} validation, {len(feed.test)} test faces"
    print(f"{run.name}: {counts} on {device}", file=sys.stderr)
    steps, best = None, loop.Best(model)
    if cfg.row != "mean-shape":
        steps, best = fit(job, model, feed, watched)
    if not parallel.is_main():
        return None
    with phase(f"{run.name}: testing"):
        return record(job, model, feed, test, steps, best)


def fit(
    job: jobs.Job, model: Model, feed: Feed, watched: Crops, folder: Path | None = None
) -> tuple[loop.Steps, loop.Best]:
    """The loop. Leaves `model` with its last weights; returns the finished Steps and the best-validation holder.

    The error on the `watched` crops goes to the history; validation faces' also chooses weights. `folder`: of the
    checkpoint, where it is not the run's.
    """
    cfg, average = job.cfg, loop.averaged(model, job.cfg.averaging)
    tested = average.module if cfg.averaging else model
    optimizer, best = make_optimizer(cfg, model), loop.Best(tested)
    network = parallel.wrap(model, job.device)
    parts = {"model": model, "optimizer": optimizer, "best": best, "average": average}
    control = cfg.row if cfg.row in ("direct", "principal") else "cft"
    stages = method.schedule(method.stages(cfg.first_stage), cfg.steps, control)
    column = "val_nme_pct" if len(feed.val) else "train_nme_pct"
    steps = job.steps(parts, cfg.steps, cfg.batch, "crops", folder=folder, describe=feed.names)
    for step in steps:
        start, weights, stage_lr = next((a, w, r) for a, b, w, r in stages if a <= step < b)
        if step == start > 0 and cfg.optimizer == "sgd":  # each stage starts from the best of the one before
            best.restore()
            best.forget()
            optimizer.state.clear()
        batch = feed.batch(step)
        rate = rate_at(cfg, step, stage_lr)
        schedules.set_rate(optimizer, rate)
        model.train()
        with precision.autocast(job.device, cfg.precision):
            outputs = network(batch.images[job.share].contiguous(memory_format=torch.channels_last))
        loss = model.loss(outputs, batch.part(job.share), weights)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip)
        optimizer.step()
        if cfg.averaging:
            average.update_parameters(model)
        steps.log(loss=loss, gradient=norm)
        if (step + 1) % cfg.evaluate_every == 0 or step + 1 == cfg.steps:
            error = evaluate.mean_error_pct(tested, watched)
            if cfg.val_share:
                best.offer(error, step + 1)
            steps.note(**{column: error}, lr=rate, weight_principal=weights[0])
    if cfg.averaging:
        model.load_state_dict(average.module.state_dict())
    return steps, best


def record(job: jobs.Job, model: Model, feed: Feed, test: Crops, steps: loop.Steps | None, best: loop.Best) -> dict:
    """Test the last and (if any) the validation-chosen weights, save errors and last weights, write the record."""
    cfg, run, faces = job.cfg, job.run, feed.faces
    errors = evaluate.errors(model, test, faces, feed.test, feed.crops.reduction, mirrored=True)
    weights = save(job, model, faces.markup.n_points, feed.offsets)
    if cfg.data == "embedded":  # synthetic, so its faces may be shown
        points = evaluate.predict(model, test.images[:12])
        figures.faces(test.images[:12].cpu(), test.points[:12].cpu(), points.cpu(), run.folder / "faces.png")
    if best.step == cfg.steps:  # the last weights are the chosen ones, and are tested already
        errors["error_px_validation_chosen"] = errors["error_px"]
    elif best.weights is not None:
        model.load_state_dict(best.weights)
        chosen = evaluate.errors(model, test, faces, feed.test, feed.crops.reduction)
        errors["error_px_validation_chosen"] = chosen["error_px"]
    return run.finish(
        metrics=evaluate.measure(errors),
        predictions=errors,
        history=steps.history if steps else [],
        data={
            "name": cfg.data, "fingerprint": faces.fingerprint, "test_faces": len(feed.test),
            "boxes": data.boxes(faces),
        },
        selection="last",
        device=job.device,
        seconds=steps.seconds if steps else 0.0,
        samples=cfg.steps * cfg.batch if steps else 0,
        weights=weights,
        best_validation={"step": best.step, "nme_pct": best.value} if best.value is not None else None,
    )  # fmt: skip


# ---- Cross-validation of a network that starts from one for other points (transfer.py)


def begun(folder: Path) -> str | None:
    """The precision that an interrupted cross-validation's finished folds computed in; None before the first."""
    done = sorted(folder.glob("fold*.json"))
    return storage.read_json(done[0])["precision"] if done else None


def cross_validated(job: jobs.Job) -> dict | None:
    """Train and test a network for each fold, pool what they say of their test faces, write the record."""
    cfg, run = job.cfg, job.run
    logs = [one_fold(job, number) for number in range(cfg.folds)]
    if not parallel.is_main():
        return None
    feed = Feed.of(cfg, job.device, 0)
    parts = [runs.read_predictions(run.folder / f"fold{k}.npz") for k in range(cfg.folds)]
    pooled = {key: value if key == "principal" else np.concatenate([p[key] for p in parts])
              for key, value in parts[0].items()}  # fmt: skip
    written = run.finish(
        metrics=evaluate.measure(pooled), predictions=pooled,
        history=[{"fold": k, **row} for k, log in enumerate(logs) for row in log["history"]],
        data={
            "name": cfg.data, "fingerprint": feed.faces.fingerprint, "test_faces": len(pooled["error_px"]),
            "boxes": data.boxes(feed.faces), "folds": cfg.folds, "trunk_sha256": logs[0]["trunk"],
        },
        selection="last, running average", device=job.device, seconds=sum(log["seconds"] for log in logs),
        samples=cfg.steps * cfg.batch * cfg.folds,
    )  # fmt: skip
    for path in run.folder.glob("fold*.*"):  # the record holds all of it now
        path.unlink()
    return written


def one_fold(job: jobs.Job, number: int) -> dict:
    """Train and test one fold, unless it is done; returns its history, seconds and trunk."""
    cfg, folder = job.cfg, job.run.folder
    path = folder / f"fold{number}.json"
    if path.exists():
        return storage.read_json(path)
    feed = Feed.of(cfg, job.device, number)
    torch.manual_seed(cfg.seed)
    model, trunk = transfer.started(cfg)
    networks.channels_last(model, job.device)
    watched = feed.plain(feed.fit[:WATCHED])
    print(f"{job.run.name} fold {number}: {len(feed.fit)} training, {len(feed.test)} test faces", file=sys.stderr)
    steps, _ = fit(job, model, feed, watched, folder / f"fold{number}")
    done = {"history": steps.history, "seconds": steps.seconds, "trunk": trunk, "precision": cfg.precision}
    if parallel.is_main():
        errors = evaluate.errors(
            model, feed.plain(feed.test), feed.faces, feed.test, feed.crops.reduction, mirrored=True
        )
        errors.setdefault("occluded", np.zeros(errors["error_px"].shape, bool))
        runs.write_predictions(folder / f"fold{number}.npz", errors)
        storage.write_json(path, done)
        shutil.rmtree(folder / f"fold{number}", ignore_errors=True)
    return done


def save(job: jobs.Job, model: Model, points: int, offsets: Offsets) -> dict[str, str]:
    """Write the weights with what evaluate.load needs to know of them; returns the record's words on the file."""
    cfg, path = job.cfg, job.run.folder / "model.safetensors"
    view: dict[str, Any] = dict(
        crop=cfg.crop, margin=cfg.margin, test_shift=cfg.test_shift, test_log_size=cfg.test_log_size
    )
    if offsets != ALIKE:  # only a set with official boxes has any
        view["offsets"] = json.dumps(dataclasses.asdict(offsets))
    digest = checkpoint.save_weights(path, model, config=runs.fingerprint(cfg), row=cfg.row, points=points, **view)
    return {"file": path.name, "sha256": digest}


def make_optimizer(cfg: Config, model: torch.nn.Module) -> torch.optim.Optimizer:
    """SGD as released: biases at twice the rate and without decay, batch-normalisation parameters without decay."""
    norms = [p for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d) for p in m.parameters()]
    weights = [p for p in model.parameters() if p.dim() > 1]
    known = {id(p) for p in norms + weights}
    biases = [p for p in model.parameters() if id(p) not in known]
    groups = [
        optimizers.group(weights, cfg.weight_decay),
        optimizers.group(norms),
        optimizers.group(biases, rate=2.0 if cfg.optimizer == "sgd" else 1.0),
    ]
    return optimizers.make(cfg.optimizer, groups, cfg.lr, fused=True)


def rate_at(cfg: Config, step: int, stage_lr: float) -> float:
    """Learning rate of a step: the stage's rate (SGD) or one cosine to zero (AdamW), after a linear warm-up."""
    if cfg.optimizer == "sgd":
        return schedules.warm_up(step, cfg.warmup) * stage_lr * cfg.lr / method.stages()[0].lr
    return schedules.rate(cfg.lr, step, cfg.steps, cfg.warmup)


def resample(pool: torch.Tensor, count: int) -> torch.Tensor:
    """`count` entries of `pool`, repeating it as often as needed."""
    return pool[torch.arange(count, device=pool.device) % len(pool)]


if __name__ == "__main__":
    cli.entry(main)
