"""Errors of a trained row on test faces.

`python -m facepapers.papers.coarse_to_fine.evaluate --weights FILE --data lfpw`

Protocol: mean point-to-point error of each face over its normaliser, averaged over faces, in percent. Occluded
points count (RCPR). Boxes are the set's official test boxes where it has them, else the landmarks' own with a
fixed jitter, which is easier and said so in every claim.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from facepapers.common import cli
from facepapers.common.data import markups
from facepapers.common.data.alignment import AlignmentSet
from facepapers.common.data.markups import Markup
from facepapers.common.evidence import runs
from facepapers.common.protocols.metrics import show
from facepapers.common.training import checkpoint, parallel, released
from facepapers.common.vision import images
from facepapers.papers.coarse_to_fine import data
from facepapers.papers.coarse_to_fine.config import PAPER, ROWS, Config, Model, preset
from facepapers.papers.coarse_to_fine.crops import Crops, Feed, Offsets
from facepapers.papers.coarse_to_fine.method import CFTNet
from facepapers.papers.coarse_to_fine.metrics import METRICS, measure


@torch.no_grad()
def predict(
    model: torch.nn.Module, pixels: torch.Tensor, flip: Sequence[int] | None = None, batch: int = 256
) -> torch.Tensor:
    """Points (N, P, 2), in crop pixels, for crops (N, 3, S, S); always in float32.

    With `flip`, the markup's left-right table, the mean over the crop and its mirror image (our addition).
    """
    model.eval()
    points = torch.cat([model(part) for part in pixels.split(batch)])
    return points if flip is None else with_mirror(model, pixels, points, flip, batch)


def with_mirror(
    model: torch.nn.Module, pixels: torch.Tensor, points: torch.Tensor, flip: Sequence[int], batch: int = 256
) -> torch.Tensor:
    """Mean (N, P, 2) of `points`, predicted for crops (N, 3, S, S), and of what their mirror images predict."""
    x, y = predict(model, pixels.flip(-1), batch=batch)[:, flip].unbind(-1)
    return (points + torch.stack([pixels.shape[-1] - 1 - x, y], -1)) / 2


def mean_error_pct(model: torch.nn.Module, crops: Crops) -> float:
    """Validation error: NME in percent, in the crop frame (the same number, since crops are similarities)."""
    distance = (predict(model, crops.images) - crops.points).norm(dim=-1).mean(1)
    return float(100 * (distance / crops.distance).mean())


def errors(
    model: torch.nn.Module,
    crops: Crops,
    faces: AlignmentSet,
    index: torch.Tensor,
    reduction: int,
    mirrored: bool = False,
) -> dict[str, np.ndarray]:
    """Per-point errors and normalisers in the original image's pixels, as arrays for the record.

    `mirrored` adds the errors of the mean over each crop and its mirror image.
    They are computed numbers: neither an image nor an annotated position of the data set can be read from them.
    """
    index = index.cpu()
    scale = (faces.scale[index] * reduction).double().unsqueeze(1)
    truth = images.transform_points(crops.points, crops.to_image).cpu().double()
    distance = markups.inter_pupil(truth, faces.markup) * scale[:, 0]

    def error_px(points):
        predicted = images.transform_points(points, crops.to_image).cpu().double()
        return ((predicted - truth).norm(dim=-1) * scale).float().numpy()

    points = predict(model, crops.images)
    arrays = {
        "error_px": error_px(points),
        "interpupil_px" if faces.markup.n_points == 29 else "eyecentre_px": distance.float().numpy(),
        "interocular_px": (markups.inter_ocular(truth, faces.markup) * scale[:, 0]).float().numpy(),
        "principal": np.isin(np.arange(faces.markup.n_points), faces.markup.principal),
    }
    if mirrored:
        arrays["error_px_mirrored"] = error_px(with_mirror(model, crops.images, points, faces.markup.flip))
    challenge = np.array([faces.subset[i] == "challenge" for i in index.tolist()])
    for name, marks in (("occluded", faces.occluded[index].numpy()), ("challenge", challenge)):
        if marks.any():
            arrays[name] = marks
    return arrays


@dataclass(frozen=True)
class Command:
    """Test a weights file."""

    weights: Path | None = None  # weights file; without it the newest that was trained on this machine
    data: str = "lfpw"  # data set: cofw, lfpw, 300w, embedded
    device: str = "auto"  # auto (a GPU where there is one), cpu or cuda


def main(argv: Sequence[str]) -> None:
    """Print every metric of a weights file on the test faces of a set."""
    options = cli.command(Command, argv, "python -m facepapers.papers.coarse_to_fine.evaluate", __doc__)
    path, device = options.weights or runs.newest_weights(PAPER), parallel.start(options.device)
    model, cfg, markup = load(path, device)
    feed = Feed.of(dataclasses.replace(cfg, data=options.data), device)
    if feed.faces.markup is not markup:
        theirs = feed.faces.markup.n_points
        raise cli.UserError(f"{path}: predicts {markup.n_points} points, {options.data} has {theirs}")
    print(f"{path} on {options.data}: {len(feed.test)} test faces, boxes {data.boxes(feed.faces)}")
    found = errors(model, feed.plain(feed.test), feed.faces, feed.test, feed.crops.reduction, mirrored=True)
    show(METRICS, measure(found))


def load(path: Path | str, device: torch.device) -> tuple[Model, Config, Markup]:
    """(model, configuration, markup) of a weights file. UserError when it holds no weights of this paper."""
    tensors, metadata = checkpoint.read_weights(path)
    if metadata.get("row") not in ROWS:
        raise cli.UserError(f"{path}: no weights of this paper (its metadata names no row); train or fetch one")
    try:
        markup = markups.markup_for(int(metadata["points"]))
        view: dict[str, Any] = {key: float(metadata[key]) for key in ("margin", "test_shift", "test_log_size")}
        view["crop"] = int(metadata["crop"])
    except (KeyError, ValueError) as error:
        raise cli.UserError(f"{path}: its metadata does not describe a model of this paper ({error})") from None
    trained = released.settings(path)  # {} of a file without its record: then as `short` moved the crops
    view |= {key: trained[key] for key in ("rotation_deg", "shift", "log_size") if key in trained}
    cfg = dataclasses.replace(preset("short", metadata["row"]), **view)
    model = Model(cfg, markup)
    if isinstance(model.net, CFTNet) and not any(name.startswith("net.auxiliary.") for name in tensors):
        model.net.auxiliary = torch.nn.ModuleList()  # a released file leaves out what only training reads
    checkpoint.load_weights(path, model)
    return model.to(device).eval(), cfg, markup


def offsets(path: Path | str) -> Offsets:
    """Where the boxes that a weights file was trained in lay relative to the landmarks: zero without official boxes.

    UserError for metadata that tell no such thing.
    """
    try:
        return released.as_config(Offsets, json.loads(checkpoint.read_metadata(path).get("offsets", "{}")))
    except (TypeError, ValueError, AttributeError) as error:
        raise cli.UserError(f"{path}: its metadata does not describe a model of this paper ({error})") from None


if __name__ == "__main__":
    cli.entry(main)
