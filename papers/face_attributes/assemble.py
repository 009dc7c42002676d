"""Trunks from weights files, and networks put together from trained rows: the chosen pattern and separate networks."""

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from facepapers.common import storage
from facepapers.common.cli import MissingData, UserError
from facepapers.common.evidence import runs
from facepapers.common.vision import networks
from facepapers.papers.face_attributes import data, evaluate, method, shared
from facepapers.papers.face_attributes.config import DEPTHS, PAPER, Config

# ---- Trunks


def trunk(
    cfg: Config, datasets: list[data.Dataset], out: Path | str, weights: Path | None = None
) -> tuple[networks.IResNet | networks.MobileFaceNetReLU, list[torch.nn.Sequential]]:
    """(identity network that cfg.trunk names, in eval mode; its stages, which share its modules)."""
    net: networks.IResNet | networks.MobileFaceNetReLU
    if cfg.trunk == "random":
        net = untrained(cfg, datasets)
    elif cfg.trunk == "demo":
        net = networks.load_identity_net(sibling(cfg, "trunk", out) / "model.safetensors")
    else:
        net = networks.load_identity_net(networks.given_weights(weights, cfg.trunk))
    if net.input_px != cfg.input_px:
        raise UserError(f"--input-px {cfg.input_px}: this trunk takes faces of {net.input_px} px")
    return net, method.split(net.eval(), cfg.cuts)


def digest_of(path: Path | str) -> str:
    """sha256 of a weights file. MissingData when it is absent."""
    if not Path(path).is_file():
        raise MissingData(f"{path}: no such weights file")
    return storage.sha256(path)


@torch.no_grad()
def untrained(cfg: Config, datasets: list[data.Dataset]) -> networks.IResNet | networks.MobileFaceNetReLU:
    """A trunk of random weights (control) whose statistics fit the training faces, so that activations keep a scale."""
    torch.manual_seed(cfg.seed + 7)
    net: networks.IResNet | networks.MobileFaceNetReLU
    if cfg.data == "embedded":
        net = networks.IResNet(cfg.units, cfg.widths, cfg.features, input_px=cfg.input_px)
    else:
        net = networks.MobileFaceNetReLU()
    method.reinitialise(net)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            module.momentum = None  # the plain average of the batches below
    net.train()
    for dataset in datasets:
        for rows in dataset.index("train")[:256].split(64):
            net(networks.to_input(data.pictures(dataset, rows, cfg, torch.device("cpu")), net.pixels))
    return net


def copies(stages: Sequence[torch.nn.Module]) -> list[torch.nn.Module]:
    return [copy.deepcopy(stage) for stage in stages]


# ---- Cost


def cost_arrays(net: method.SharedNet, cfg: Config, n: int) -> dict[str, np.ndarray]:
    """`gflop`: what all predictions of one face cost, the same for each of the n test faces."""
    per_stage, heads = costs(net, cfg)
    flop = 2 * method.pattern_macs(per_stage, net.starts, heads)
    return {"gflop": np.full(n, flop / 1e9, np.float32)}


def costs(net: method.SharedNet, cfg: Config) -> tuple[list[int], dict[str, int]]:
    """(multiply-adds of each stage, attribute -> multiply-adds of its readout) of a SharedNet."""
    device = next(net.parameters()).device
    per_stage = method.stage_macs([copy.deepcopy(s).cpu() for s in net.trunk], cfg.input_px)
    heads = {
        name: method.macs(branch.head, torch.zeros(1, len(branch.mean), device=device))
        for name, branch in net.branches.items()
    }
    return per_stage, heads


# ---- Rows put together from others


def sibling(cfg: Config, row: str, out: Path | str) -> Path:
    """Folder of another row of the same run. MissingData when it is not finished."""
    folder = Path(out) / PAPER / cfg.name_of(row)
    if not (folder / "run.json").exists():
        raise MissingData(f"{folder}: not run yet; first run --row {row} with the same settings")
    return folder


def finished(cfg: Config, out: Path | str) -> dict[str, dict]:
    """Row -> its record, of cfg.candidates. MissingData naming the first that is not run."""
    folders = {row: sibling(cfg, row, out) for row in cfg.candidates}
    return {row: {**storage.read_json(f / "run.json"), "folder": f} for row, f in folders.items()}


def record(cfg: Config, run: runs.Run, device: torch.device, out: Path | str, weights: Path | None = None) -> dict:
    """Write the record of `best` (separate networks) or `chosen` (the cheapest shared pattern within the margin)."""
    rows = finished(cfg, out)
    run.precision = runs.precision_of(*rows.values())
    datasets = data.load(cfg.data)
    net, stages = trunk(cfg, datasets, out, weights)
    accuracy = {a: {row: r["validation"][a] for row, r in rows.items()} for a in data.attributes_of(datasets)}
    chosen, flop = choose_rows(cfg, accuracy, *costs_of(stages, cfg, datasets))
    arrays: dict[str, np.ndarray] = {}
    for name, row in chosen.items():
        found = runs.read_predictions(rows[row]["folder"] / "predictions.npz")
        arrays |= {k: v for k, v in found.items() if k.startswith(f"{name}_")}
    arrays["gflop"] = np.full(len(next(iter(arrays.values()))), flop / 1e9, np.float32)
    used = {name: rows[row] for name, row in chosen.items()}
    made = shared.save(cfg, run, used, net, stages, datasets, device) if cfg.row == "chosen" else None
    trained = [rows[row] for row in set(chosen.values())]
    return run.finish(
        metrics=evaluate.measure(arrays), predictions=arrays, history=[{"step": 0}], data=rows["linear"]["data"],
        selection="depth chosen on validation faces; last weights", device=device,
        seconds=sum(r["seconds"] for r in trained), samples=sum(r["samples_per_s"] * r["seconds"] for r in trained),
        weights=made, sources=chosen, groups={name: r["groups"][name] for name, r in used.items()},
        validation={name: accuracy[name][row] for name, row in chosen.items()},
    )  # fmt: skip


def choose_rows(
    cfg: Config, accuracy: dict[str, dict[str, float]], per_stage: list[int], heads: dict[str, int]
) -> tuple[dict[str, str], int]:
    """(attribute -> row that gives its branch, FLOP of one face) from attribute -> {row: accuracy on validation faces}.

    `per_stage` and `heads` are the costs of `costs_of`.
    """
    if cfg.row == "best":
        chosen = {name: max(found, key=found.__getitem__) for name, found in accuracy.items()}
        return chosen, 2 * (len(chosen) * sum(per_stage) + sum(heads.values()))
    by_start = {name: {DEPTHS[row]: v for row, v in found.items() if row in DEPTHS} for name, found in accuracy.items()}
    starts, row_of = method.choose(by_start, per_stage, cfg.margin, heads), {k: row for row, k in DEPTHS.items()}
    chosen = {name: row_of[start] for name, start in starts.items()}
    return chosen, 2 * method.pattern_macs(per_stage, starts, heads)


def costs_of(
    stages: Sequence[torch.nn.Module], cfg: Config, datasets: list[data.Dataset]
) -> tuple[list[int], dict[str, int]]:
    """(per_stage, attribute -> cost of its readout) of the trunk with a linear readout per attribute."""
    per_stage = method.stage_macs(copies(stages), cfg.input_px)
    with torch.no_grad():
        width = torch.nn.Sequential(*copies(stages))(torch.zeros(1, 3, cfg.input_px, cfg.input_px)).shape[1]
    return per_stage, {name: width * attribute.scores for name, attribute in data.attributes_of(datasets).items()}
