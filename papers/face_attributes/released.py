"""The released attribute network as a ready module: `load("attributes")(faces)["gender"]`."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch

from facepapers.common.cli import UserError
from facepapers.common.training import released
from facepapers.common.vision import images, networks
from facepapers.papers.face_attributes import assemble, data, evaluate, method, shared
from facepapers.papers.face_attributes.config import PAPER, ROWS, Config
from facepapers.papers.face_attributes.source import Source

NAMES = ("attributes",)
TESTED_IN_FLOAT32 = False  # by its own run in what that was trained in


class Attributes(torch.nn.Module):
    """Aligned faces (B, 3, S, S), uint8 or float 0..255, S = `input_px`, to a dict of float tensors.

    Attribute -> probabilities (B, classes) in the order of `classes[attribute]`; where years are known, `age` has the
    age groups and `age_years` (B,) the median. `net` gives the scores that the loss reads; see the card.
    """

    expects = "a face aligned to ArcFace's 112 px template by five points (common/vision/alignment.py)"

    def __init__(self, net: method.SharedNet, cfg: Config, attributes: dict[str, data.Attribute], pixels: str) -> None:
        super().__init__()
        self.net, self.input_px, self.pixels, self.attributes = net, cfg.input_px, pixels, attributes
        self.classes = {name: attribute.classes for name, attribute in attributes.items()}

    def preprocess(self, faces: torch.Tensor, frame: str = "aligned") -> torch.Tensor:
        """Square crops (B, 3, H, H) uint8 of any size, or one, as input (B, 3, S, S).

        `frame`: how the face lies in the crop: aligned (to the template), utkface or ferplus (as in that set's crops).
        Raises UserError for another frame and for crops that are not square.
        """
        known = ("aligned", *data.FRAMES)
        if frame not in known:
            raise UserError(f"frame {frame!r}: known are {', '.join(known)}")
        faces = images.reduced(faces, 2 * 112)
        n, still = len(faces), torch.zeros(len(faces))
        where = images.similarity(torch.full((n, 2), 55.5), torch.full((n,), 112.0), still, still > 0, self.input_px)
        return images.crop(faces, data.after(data.frame_of(frame, faces.shape[-1]), where), self.input_px)

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        found = {}
        for name, score in self.net(networks.to_input(pixels, self.pixels)).items():
            probability = score.float().softmax(1)
            if self.attributes[name].years:
                found[f"{name}_years"] = method.expected_median(probability)
                probability = evaluate.groups_of(probability)
            found[name] = probability
        return found


def load(name_or_path: str | Path = NAMES[0], device: torch.device | str = "cpu") -> Attributes:
    """The ready module, in eval mode, of a released model or of the weights file of a `chosen` row.

    Raises MissingData for a model that is not released yet and UserError for any other file.
    """
    path = released.find(PAPER, name_or_path, NAMES, ROWS)
    return Attributes(*shared.load_shared(path, torch.device(device))).to(device).eval()


def kept(tensor: str) -> bool:
    """Whether a released file holds this tensor: all of them."""
    return True


def tested(path: Path, settings: dict[str, Any], device: torch.device) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(arrays of a weights file on the test faces of the run with these settings, accuracy by group)."""
    net, cfg, _, pixels = shared.load_shared(path, device)
    cfg = dataclasses.replace(cfg, precision=settings["precision"])
    datasets = data.load(settings["data"])
    source = Source(cfg, datasets, list(net.trunk), pixels, 1, device)
    arrays, groups = evaluate.results(evaluate.scores(net, source, "test", device), datasets)
    return arrays | assemble.cost_arrays(net, cfg, len(next(iter(arrays.values())))), {"groups": groups}
