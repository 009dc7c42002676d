"""The shared network of the chosen pattern as one weights file: put together from trained rows, and read back."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from facepapers.common.cli import UserError
from facepapers.common.evidence import runs
from facepapers.common.training import checkpoint
from facepapers.common.vision import networks
from facepapers.papers.face_attributes import data, method
from facepapers.papers.face_attributes.config import Config


def save(
    cfg: Config,
    run: runs.Run,
    rows: dict[str, dict],
    identity_net: networks.IResNet | networks.MobileFaceNetReLU,
    stages: Sequence[torch.nn.Module],
    datasets: list[data.Dataset],
    device: torch.device,
) -> dict[str, str]:
    """Put trunk and chosen branches into one network, check it against the rows' own branches, write its weights.

    `rows`: attribute -> record of the row that its branch comes from.
    """
    attributes = data.attributes_of(datasets)
    branches = {name: one_branch(row, name, stages, attributes[name]) for name, row in rows.items()}
    net = method.SharedNet(stages, branches).to(device).eval()
    x = networks.to_input(data.pictures(datasets[0], datasets[0].index("test")[:8], cfg, device), identity_net.pixels)
    together = net(x)
    for name, branch in branches.items():
        alone = method.SharedNet(stages, {name: branch}).eval()(x)[name]
        torch.testing.assert_close(together[name], alone)
    path = run.folder / "model.safetensors"
    metadata = dict(
        row=cfg.row, starts=json.dumps(net.starts),
        config=json.dumps(runs.as_dict(cfg) | {"precision": run.precision}),
        attributes=json.dumps({n: dataclasses.asdict(a) for n, a in attributes.items()}),
        trunk=json.dumps(sizes_of(identity_net)),
        frozen=json.dumps({n: b.keep_statistics for n, b in branches.items()}),
    )  # fmt: skip
    return {"file": path.name, "sha256": checkpoint.save_weights(path, net, **metadata)}


def sizes_of(net: networks.IResNet | networks.MobileFaceNetReLU) -> dict[str, object]:
    """The options that make a network of this architecture again; empty for the given MobileFaceNet."""
    if isinstance(net, networks.MobileFaceNetReLU):
        return {}
    layers = [getattr(net, f"layer{k}") for k in (1, 2, 3, 4)]
    return {"units": [len(layer) for layer in layers], "widths": [layer[0].conv2.out_channels for layer in layers],
            "features": net.fc.out_features, "input_px": net.input_px}  # fmt: skip


def one_branch(row: dict, name: str, stages: Sequence[torch.nn.Module], attribute: data.Attribute) -> method.Branch:
    """The trained branch of one attribute from a row's weights."""
    tensors, metadata = checkpoint.read_weights(row["folder"] / "model.safetensors")
    mine = {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
    start = json.loads(metadata["starts"])[name]
    branch = method.Branch(stages, start, attribute.scores, len(mine["mean"]))
    if row["config"]["statistics"] == "frozen":
        method.fold(branch)
    branch.load_state_dict(mine)
    return branch


def load_shared(
    path: Path | str, device: torch.device
) -> tuple[method.SharedNet, Config, dict[str, data.Attribute], str]:
    """(SharedNet, its Config, name -> Attribute, pixel rule) of a `chosen` row's weights. UserError for other files."""
    tensors, metadata = checkpoint.read_weights(path)
    if metadata.get("row") != "chosen":
        raise UserError(f"{path}: no shared attribute network (its metadata names no chosen pattern); train one")
    settings: dict[str, Any] = json.loads(metadata["config"])
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    cfg = Config(**settings)
    attributes = {
        n: data.Attribute(a["name"], tuple(a["classes"]), a["years"])
        for n, a in json.loads(metadata["attributes"]).items()
    }
    sizes = json.loads(metadata["trunk"])
    net = networks.IResNet(**sizes) if sizes else networks.MobileFaceNetReLU()
    stages = method.split(net.eval(), cfg.cuts)
    frozen, branches = json.loads(metadata["frozen"]), {}
    for name, start in json.loads(metadata["starts"]).items():
        width = len(tensors[f"branches.{name}.mean"])
        branches[name] = method.Branch(stages, start, attributes[name].scores, width)
        if frozen[name]:
            method.fold(branches[name])
    shared = method.SharedNet(stages, branches)
    checkpoint.load_weights(path, shared)
    return shared.to(device).eval(), cfg, attributes, net.pixels
