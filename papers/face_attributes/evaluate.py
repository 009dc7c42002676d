"""Accuracy of attribute predictions: `python -m facepapers.papers.face_attributes.evaluate --weights FILE`.

Single crop, no mirror image. Age is counted in FairFace's nine groups and, where the years are known, by the mean
absolute error of the predicted distribution's median. Records hold per-face hits and errors, no label and no image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from facepapers.common import cli
from facepapers.common.data import sets
from facepapers.common.evidence import runs
from facepapers.common.protocols import pair_lists, verification
from facepapers.common.protocols.metrics import show
from facepapers.common.training import parallel, precision
from facepapers.common.vision import networks
from facepapers.papers.face_attributes import data, method, shared
from facepapers.papers.face_attributes.config import PAPER, Config
from facepapers.papers.face_attributes.metrics import METRICS, measure
from facepapers.papers.face_attributes.source import Source, label_of

Groups = dict[str, dict[str, dict[str, float]]]  # group -> value -> {n, accuracy_pct}
# ---- From a network to predictions


class Scores(NamedTuple):
    """What a network says of the n faces that carry an attribute's label."""

    probability: torch.Tensor  # (n, classes)
    label: torch.Tensor  # (n,)
    dataset: torch.Tensor  # (n,) number of a face's set
    place: torch.Tensor  # (n,) where it is in that set


@torch.no_grad()
def scores(net: method.SharedNet, source: Source, split: str, device: torch.device) -> dict[str, Scores]:
    """Attribute -> Scores of the "val" or "test" faces."""
    found: dict[str, list[Scores]] = {}
    net.eval()
    for number, dataset in enumerate(source.datasets):
        whole = dataset.index(split)
        for rows in torch.arange(len(whole)).split(128):
            index, x = whole[rows], source.inputs(number, rows, split=split)
            labels = {name: label_of(dataset, name, index) for name in net.branches}
            with precision.autocast(device, source.cfg.precision):
                out = net(x, {name: (label >= 0).to(device) for name, label in labels.items()}, first=source.first)
            for name, score in out.items():
                keep = labels[name] >= 0
                numbers = torch.full((int(keep.sum()),), number)
                chunk = Scores(score.float().softmax(1).cpu(), labels[name][keep], numbers, index[keep])
                found.setdefault(name, []).append(chunk)
    return {name: Scores(*map(torch.cat, zip(*chunks, strict=True))) for name, chunks in found.items()}


def hits_and_errors(
    attribute: data.Attribute, probability: torch.Tensor, label: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """(hit (n,) bool, true class (n,), absolute error in years (n,) or None) of one attribute's probabilities."""
    if not attribute.years:
        return probability.argmax(1) == label, label, None
    edges = torch.tensor(data.AGE_EDGES[1:])
    own = torch.bucketize(label, edges, right=True)
    error = (method.expected_median(probability) - label).abs()
    return groups_of(probability).argmax(1) == own, own, error


def groups_of(probability: torch.Tensor) -> torch.Tensor:
    """Probability (n, 9) of the age groups from that of the years (n, OLDEST + 1)."""
    group = torch.bucketize(torch.arange(probability.shape[1]), torch.tensor(data.AGE_EDGES[1:]), right=True)
    return torch.zeros(probability.shape[0], len(data.AGE_CLASSES)).index_add_(1, group, probability)


def results(found: dict[str, Scores], datasets: list[data.Dataset]) -> tuple[dict[str, np.ndarray], dict[str, Groups]]:
    """(arrays for the record, attribute -> group -> value -> {n, accuracy_pct}) of what `scores` returned."""
    arrays, tables, attributes = {}, {}, data.attributes_of(datasets)
    for name, scored in found.items():
        hit, own, error = hits_and_errors(attributes[name], scored.probability, scored.label)
        arrays[f"{name}_correct"] = hit.numpy()
        arrays[f"{name}_recall"] = np.array([hit[own == c].double().mean() for c in own.unique()])
        if error is not None:
            arrays["age_error_years"] = error.numpy().astype(np.float32)
        tables[name] = group_table(datasets, scored, hit)
    return arrays, tables


def group_table(datasets: list[data.Dataset], scored: Scores, hit: torch.Tensor) -> Groups:
    """Accuracy by every attribute that the tested faces carry: group -> value -> {n, accuracy_pct}."""
    table: Groups = {}
    for k, dataset in enumerate(datasets):
        here = scored.dataset == k
        for name, attribute in dataset.attributes.items() if here.any() else ():
            label = dataset.labels[name][scored.place[here]]
            if attribute.years:
                label = torch.where(
                    label < 0, label, torch.bucketize(label, torch.tensor(data.AGE_EDGES[1:]), right=True)
                )
            for c in label[label >= 0].unique().tolist():
                chosen = hit[here][label == c]
                cell = {"n": len(chosen), "accuracy_pct": round(100 * chosen.double().mean().item(), 2)}
                table.setdefault(name, {})[attribute.classes[c]] = cell
    return table


def validation(found: dict[str, Scores], datasets: list[data.Dataset]) -> dict[str, float]:
    """Attribute -> accuracy (%) on the validation faces; these choose rates and depths, never the test faces."""
    attributes, accuracy = data.attributes_of(datasets), {}
    for name, scored in found.items():
        hit, _, _ = hits_and_errors(attributes[name], scored.probability, scored.label)
        accuracy[name] = 100 * hit.double().mean().item()
    return accuracy


# ---- Identity: verification and variance, on faces that no attribute was learned from


def identity_faces(name: str) -> tuple[torch.Tensor, torch.Tensor, np.ndarray] | None:
    """(uint8 faces (N, 3, S, S), identity (N,), pairs (P, 4)) or None: LFW's DevTest people, or embedded ones."""
    if name == "embedded":
        faces, identity = data.embedded_people("test")
        return faces, identity, verification_pairs(identity)
    if not sets.available("lfw"):
        return None
    pack = sets.ensure("lfw")
    chosen = np.flatnonzero(pack.arrays["split"] == 1)
    place = np.full(len(pack), -1)
    place[chosen] = np.arange(len(chosen))
    pairs = pack.arrays["pairs_devtest"]
    pairs = np.column_stack([place[pairs[:, 0]], place[pairs[:, 1]], pairs[:, 2:]])
    return pack.decode(indices=chosen), torch.from_numpy(pack.arrays["identity"][chosen]), pairs


def verification_pairs(identity: torch.Tensor, count: int = 400) -> np.ndarray:
    """(2 count, 4) left, right, same, fold among embedded people."""
    rng = np.random.default_rng(0)
    left, right = np.triu_indices(len(identity), 1)
    same = (identity[left] == identity[right]).numpy()
    chosen = np.concatenate([rng.choice(np.flatnonzero(same == k), min(count, (same == k).sum()), False)
                             for k in (True, False)])  # fmt: skip
    return np.column_stack([left[chosen], right[chosen], same[chosen], pair_lists.balanced_folds(same[chosen])])


@torch.no_grad()
def identity_arrays(
    cfg: Config,
    stages: Sequence[torch.nn.Module],
    pixels: str,
    device: torch.device,
    depth: int,
    name: str,
    verify: bool,
) -> dict[str, np.ndarray]:
    """Arrays for the record: variances of the output of stage `depth`; with `verify` also pair distances at the top."""
    people = identity_faces(name)
    if people is None:
        return {}
    faces, identity, pairs = people
    parts = []
    for some in faces.split(64):
        x = networks.to_input(resized(some, cfg.input_px).to(device), pixels)
        for stage in stages[:depth]:
            x = stage(x)
        x = torch.nn.functional.adaptive_avg_pool2d(x, cfg.grid).flatten(1) if x.dim() == 4 else x
        parts.append(x.float().cpu())
    features = torch.cat(parts)
    within, between = method.identity_variance(features, identity)
    arrays = {"identity_within": within.numpy(), "identity_between": between.numpy()}
    if verify:
        unit = verification.unit_rows(features.double().numpy())
        distance = verification.squared_distances(unit[pairs[:, 0]], unit[pairs[:, 1]])
        arrays |= {"identity_distance": distance.astype(np.float32), "identity_same": pairs[:, 2].astype(bool),
                   "identity_fold": pairs[:, 3].astype(np.uint8)}  # fmt: skip
    return arrays


def resized(faces: torch.Tensor, px: int) -> torch.Tensor:
    """Aligned uint8 faces as float pixels of px x px."""
    if faces.shape[-1] == px:
        return faces.float()
    return torch.nn.functional.interpolate(faces.float(), size=px, mode="bilinear", antialias=True)


# ---- The command


@dataclass(frozen=True)
class Command:
    """Test the shared network of a chosen pattern."""

    weights: Path | None = None  # weights file of a `chosen` row; without it the newest of this machine
    data: str | None = None  # data sets joined by +; without it those that it was trained on
    device: str = "auto"  # auto (a GPU where there is one), cpu or cuda


def main(argv: Sequence[str]) -> None:
    """Print every metric of a weights file on the test faces of its sets, and accuracy by group."""
    options = cli.command(Command, argv, "python -m facepapers.papers.face_attributes.evaluate", __doc__)
    path, device = options.weights or runs.newest_weights(PAPER, "*-chosen-*"), parallel.start(options.device)
    net, cfg, attributes, pixels = shared.load_shared(path, device)
    name = options.data or cfg.data
    datasets = data.load(name)
    given = data.attributes_of(datasets)
    differ = [a for a in given if attributes.get(a) != given[a]]
    if differ:
        raise cli.UserError(f"{path}: predicts no {differ[0]} with the classes of {name}; use the data it was made for")
    source = Source(cfg, datasets, list(net.trunk), pixels, 1, device)
    arrays, tables = results(scores(net, source, "test", device), datasets)
    show(METRICS, measure(arrays))
    show_groups(tables)


def show_groups(tables: dict[str, Groups]) -> None:
    """Print accuracy by group."""
    for attribute, groups in tables.items():
        for group, values in groups.items():
            cells = ", ".join(f"{value} {cell['accuracy_pct']:.1f} ({cell['n']})" for value, cell in values.items())
            print(f"  {attribute} by {group}: {cells}")


if __name__ == "__main__":
    cli.entry(main)
