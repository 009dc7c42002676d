"""The released embedding network as a ready module: `load("embedding")(faces).embedding`."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from facepapers.common.protocols import verification
from facepapers.common.training import released
from facepapers.common.vision import images, networks
from facepapers.papers.arcface.config import PAPER, ROWS, Config
from facepapers.papers.arcface.nets import Net, load_net

NAMES = ("embedding",)
TESTED_IN_FLOAT32 = True  # by its own run too, whatever that was trained in


class Embedding(NamedTuple):
    """Embeddings of B faces."""

    embedding: torch.Tensor  # (B, d) of unit length; the squared distance of two is 2 - 2 cos


class Embedder(torch.nn.Module):
    """Aligned faces (B, 3, 112, 112), uint8 or float 0..255, to Embeddings: image and mirror image, as when tested.

    `net` alone maps `network_input` to raw embeddings, which the loss reads; see the card.
    """

    expects = "a face aligned to ArcFace's 112 px template by five points (common/vision/alignment.py)"
    input_px = 112

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def preprocess(self, faces: torch.Tensor) -> torch.Tensor:
        """Aligned crops (B, 3, H, H) uint8 of any size, or one (3, H, H), as input (B, 3, 112, 112).

        Raises UserError for crops that are not square.
        """
        return images.squares(faces, self.input_px)

    def network_input(self, faces: torch.Tensor) -> torch.Tensor:
        """What `net` takes of faces (B, 3, 112, 112)."""
        return networks.to_input(images.resize(faces, self.net.input_px), self.net.pixels)

    def forward(self, faces: torch.Tensor) -> Embedding:
        x = self.network_input(faces)
        return Embedding(F.normalize(networks.with_mirror(self.net, x)))


def load(name_or_path: str | Path = NAMES[0], device: torch.device | str = "cpu") -> Embedder:
    """The ready module, in eval mode, of a released model or of any weights file that `nets.load_net` reads.

    Raises MissingData for a model that is not released yet and UserError for weights of another paper or
    architecture.
    """
    return Embedder(load_net(released.find(PAPER, name_or_path, NAMES, ROWS))).to(device).eval()


def kept(tensor: str) -> bool:
    """Whether a released file holds this tensor: all of them."""
    return True


def tested(path: Path, settings: dict[str, Any], device: torch.device) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(arrays of a weights file on the test pairs of the run with these settings, thresholds for the card)."""
    from facepapers.papers.arcface import data, evaluate  # a prediction needs no data set

    tasks, _ = data.tasks(released.as_config(Config, settings))
    found = evaluate.predictions(load_net(path).to(device), tasks[0].tests[0], device)
    return found, {"thresholds": verification.operating_points(found["distance"], found["same"])}
