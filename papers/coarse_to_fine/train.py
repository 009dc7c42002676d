"""Train one row of the coarse-to-fine table.

`python -m facepapers.papers.coarse_to_fine.train --preset demo --row cft`

Reads top to bottom: data, model, loop, evaluation, record. `torchrun --nproc-per-node 2 -m ...` runs the same.
"""

import math
import sys

import torch

from facepapers.common import cli, paths, seeding, storage
from facepapers.common.evidence import runs
from facepapers.common.progress import phase
from facepapers.common.training import checkpoint, loop, parallel, precision
from facepapers.papers.coarse_to_fine import data, evaluate, figures, method
from facepapers.papers.coarse_to_fine.config import PAPER, Model, check, preset
from facepapers.papers.coarse_to_fine.crops import FaceCrops

MEAN_FACES = 2048  # augmented crops that the mean image is taken over (our choice; the authors use all)
WATCHED = 80  # training faces whose error the history keeps when no face is held out for validation


def main(argv):
    device_name, argv = cli.take_option(argv, "device", "auto")
    out, argv = cli.take_option(argv, "out", paths.LOCAL)
    cfg = parse(argv)
    device = parallel.start(device_name)
    try:
        return train(cfg, device, out)
    finally:
        parallel.finish()


def parse(argv):
    """The Config of a command line."""
    return cli.experiment(argv, preset, check, "cft", "python -m facepapers.papers.coarse_to_fine.train")


def train(cfg, device, out=paths.LOCAL):
    """Train and record one run; returns its record. A finished run is read back, an interrupted one continues."""
    run = runs.Run(PAPER, cfg.run_name, cfg, preset(cfg.preset, cfg.row, cfg.data), out)
    if run.finished():
        print(f"{run.name}: already recorded in {run.folder}; delete that folder to run it again", file=sys.stderr)
        return storage.read_json(run.folder / "run.json")
    cfg = run.settle(cfg, device)
    share = parallel.my_slice(cfg.batch)
    faces = data.load(cfg.data)
    fit, val, test = data.split(faces, cfg.val_share)
    crops = FaceCrops(faces, cfg.crop, cfg.margin, device)
    fit, val, test = fit.to(device), val.to(device), test.to(device)
    offsets = crops.offsets(fit)
    pick = seeding.shuffled(len(fit), cfg.batch, cfg.seed)
    faces_of = lambda step: fit[pick(step).to(device)]
    crops_of = lambda step: crops.training(faces_of(step), seeding.generator(cfg.seed, 2, step), cfg, offsets)

    torch.manual_seed(cfg.seed)
    model = Model(cfg, faces.markup).to(device, memory_format=torch.channels_last)
    watched, column = (val, "val_nme_pct") if len(val) else (fit[:WATCHED], "train_nme_pct")
    with phase(f"{run.name}: cutting crops"):
        model.look_at(crops.training(resample(fit, MEAN_FACES), seeding.generator(cfg.seed, 3), cfg, offsets))
        watched_crops, test_crops = crops.testing(watched, cfg, offsets), crops.testing(test, cfg, offsets)
    print(
        f"{run.name}: {len(fit)} training, {len(val)} validation, {len(test)} test faces on {device}", file=sys.stderr
    )
    steps, best = None, loop.Best(model)
    if cfg.row != "mean-shape":
        named = lambda step: ", ".join(faces.names[i] for i in faces_of(step).tolist())
        steps, best = fit_model(model, crops_of, watched_crops, column, cfg, run, share, device, named)
    if not parallel.is_main():
        return None
    with phase(f"{run.name}: testing"):
        return record(run, cfg, faces, model, best, test, test_crops, crops.reduction, steps, device)


def fit_model(model, crops_of, watched_crops, column, cfg, run, share, device, describe=None):
    """The loop. Leaves `model` with its last weights; returns the finished Steps and the best-validation holder.

    The error on `watched_crops` goes to the history's `column`; validation faces' also chooses weights.
    """
    average = loop.averaged(model, cfg.averaging)
    judged = average.module if cfg.averaging else model
    optimizer, best = make_optimizer(cfg, model), loop.Best(judged)
    network = parallel.wrap(model, device)
    parts = {"model": model, "optimizer": optimizer, "best": best, "average": average}
    about = dict(label=run.name, identity=runs.fingerprint(cfg), precision=cfg.precision, describe=describe)
    steps = loop.Steps(run.folder, parts, cfg.steps, cfg.batch, "crops", **about)
    control = cfg.row if cfg.row in ("direct", "principal") else "cft"
    stages = method.schedule(method.stages(cfg.first_stage), cfg.steps, control)
    for step in steps:
        start, weights, stage_lr = next((a, w, r) for a, b, w, r in stages if a <= step < b)
        if step == start > 0 and cfg.optimizer == "sgd":  # each stage starts from the best of the one before
            best.restore()
            best.forget()
            optimizer.state.clear()
        batch = crops_of(step)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(cfg, step, stage_lr) * group["rate"]
        model.train()
        with precision.autocast(device, cfg.precision):
            outputs = network(batch.images[share].contiguous(memory_format=torch.channels_last))
        loss = model.loss(outputs, batch.part(share), weights)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip)
        optimizer.step()
        if cfg.averaging:
            average.update_parameters(model)
        steps.log(loss=loss, gradient=norm)
        if (step + 1) % cfg.evaluate_every == 0 or step + 1 == cfg.steps:
            error = evaluate.mean_error_pct(judged, watched_crops)
            if cfg.val_share:
                best.offer(error, step + 1)
            steps.note(**{column: error}, lr=optimizer.param_groups[0]["lr"], weight_principal=weights[0])
    if cfg.averaging:
        model.load_state_dict(average.module.state_dict())
    return steps, best


def record(run, cfg, faces, model, best, test, test_crops, reduction, steps, device):
    """Test the last and (if any) the validation-chosen weights, save errors and last weights, write the record."""
    predictions = evaluate.errors(model, test_crops, faces, test, reduction, mirrored=True)
    weights = run.folder / "model.safetensors"
    view = dict(crop=cfg.crop, margin=cfg.margin, test_shift=cfg.test_shift, test_log_size=cfg.test_log_size)
    about = dict(row=cfg.row, points=faces.markup.n_points, **view)
    digest = checkpoint.save_weights(weights, model, config=runs.fingerprint(cfg), **about)
    if cfg.data == "embedded":  # synthetic, so its faces may be shown
        shown = slice(0, 12)
        points = evaluate.predict(model, test_crops.images[shown])
        figures.faces(
            test_crops.images[shown].cpu(), test_crops.points[shown].cpu(), points.cpu(), run.folder / "faces.png"
        )
    if best.step == cfg.steps:  # the last weights are the chosen ones, and are tested already
        predictions["error_px_validation_chosen"] = predictions["error_px"]
    elif best.value is not None:
        best.model = model
        best.restore()
        chosen = evaluate.errors(model, test_crops, faces, test, reduction)
        predictions["error_px_validation_chosen"] = chosen["error_px"]
    return run.finish(
        metrics=evaluate.measure(predictions),
        predictions=predictions,
        history=steps.history if steps else [],
        data={"name": cfg.data, "fingerprint": faces.fingerprint, "test_faces": len(test), "boxes": data.boxes(faces)},
        selection="last",
        device=device,
        seconds=steps.seconds if steps else 0.0,
        samples=cfg.steps * cfg.batch if steps else 0,
        weights={"file": weights.name, "sha256": digest},
        best_validation={"step": best.step, "nme_pct": best.value} if best.value is not None else None,
    )


def make_optimizer(cfg, model):
    """SGD as released: biases at twice the rate and without decay, batch-normalisation parameters without decay."""
    norms = [p for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d) for p in m.parameters()]
    weights = [p for p in model.parameters() if p.dim() > 1]
    known = {id(p) for p in norms + weights}
    biases = [p for p in model.parameters() if id(p) not in known]
    groups = [
        {"params": weights, "rate": 1.0, "weight_decay": cfg.weight_decay},
        {"params": norms, "rate": 1.0, "weight_decay": 0.0},
        {"params": biases, "rate": 2.0 if cfg.optimizer == "sgd" else 1.0, "weight_decay": 0.0},
    ]
    if cfg.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=cfg.lr, fused=True)
    return torch.optim.SGD(groups, lr=cfg.lr, momentum=0.9)


def rate_at(cfg, step, stage_lr):
    """Learning rate of a step: the stage's rate (SGD) or one cosine to zero (AdamW), after a linear warm-up."""
    warm = min(1.0, (step + 1) / max(1, cfg.warmup))
    if cfg.optimizer == "sgd":
        return warm * stage_lr * cfg.lr / method.stages()[0].lr
    return warm * cfg.lr * 0.5 * (1 + math.cos(math.pi * step / cfg.steps))


def resample(pool, count):
    """`count` entries of `pool`, repeating it as often as needed."""
    return pool[torch.arange(count, device=pool.device) % len(pool)]


if __name__ == "__main__":
    cli.entry(main)
