"""The released landmark networks as ready modules: `load("landmarks68").preprocess(crops)`, and the module itself."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from facepapers.common.data.markups import Markup
from facepapers.common.prediction import finding
from facepapers.common.training import released
from facepapers.common.vision import images
from facepapers.papers.coarse_to_fine import evaluate
from facepapers.papers.coarse_to_fine.config import PAPER, ROWS, Config, Model
from facepapers.papers.coarse_to_fine.crops import ALIKE, Feed, Offsets
from facepapers.papers.coarse_to_fine.looking import detected_errors

NAMES = ("landmarks68", "landmarks68_cft")  # the first is our heatmap variant, the more exact one
TESTED_IN_FLOAT32 = True  # by its own run too, whatever that was trained in


class Points(NamedTuple):
    """Landmarks of B faces."""

    points: torch.Tensor  # (B, P, 2) x, y in pixels of the input, pixel centres at integers


class Landmarks(torch.nn.Module):
    """Square face crops (B, 3, S, S), uint8 or float 0..255, S = `input_px`, to Points.

    A crop shows the square around all landmarks, `margin` times their larger extent; see `expects`. `markup` names the
    points and their mirror images. In training mode `model` returns what its loss reads; see the card.
    """

    def __init__(self, model: Model, cfg: Config, markup: Markup, offsets: Offsets = ALIKE) -> None:
        super().__init__()
        self.model, self.markup, self.input_px, self.margin = model, markup, cfg.crop, cfg.margin
        self.seen = cfg  # by how much training moved, scaled and turned the crop
        self.offsets = offsets  # and on average, where it took a set's official boxes
        moved = "" if offsets == ALIKE else ", moved and scaled as the official boxes of its training set"
        self.expects = (
            f"the square around the face's landmarks (brows to chin, ear to ear), {cfg.margin:g} times their larger "
            f"extent{moved}; upright within some 15 degrees"
        )

    def preprocess(self, faces: torch.Tensor) -> torch.Tensor:
        """Square crops (B, 3, H, H) uint8 of any size, or one (3, H, H), as input (B, 3, S, S). UserError otherwise."""
        return images.squares(faces, self.input_px)

    def forward(self, pixels: torch.Tensor) -> Points:
        return Points(self.model(pixels.float()))


def load(name_or_path: str | Path = NAMES[0], device: torch.device | str = "cpu") -> Landmarks:
    """The ready module, in eval mode, of a released model or of a weights file of this paper.

    Raises MissingData for a model that is not released yet and UserError for a file of another paper.
    """
    path = released.find(PAPER, name_or_path, NAMES, ROWS)
    return Landmarks(*evaluate.load(path, torch.device(device)), evaluate.offsets(path)).to(device).eval()


def kept(tensor: str) -> bool:
    """Whether a released file holds this tensor: all but the heads that only CFT's training reads."""
    return not tensor.startswith("net.auxiliary.")


def tested(path: Path, settings: dict[str, Any], device: torch.device) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(arrays of a weights file on the test faces of the run with these settings, further facts for the card).

    The arrays tell also what `predict` answers for the whole images. Raises MissingData without the detector.
    """
    find = finding.finder(None, whole=False, folder=None, device=device)
    model, cfg, _ = evaluate.load(path, device)
    feed = Feed.of(dataclasses.replace(cfg, data=settings["data"]), device)
    found = evaluate.errors(model, feed.plain(feed.test), feed.faces, feed.test, feed.crops.reduction, mirrored=True)
    return found | detected_errors(load(path, device), feed.faces, feed.test.cpu(), find), {}
