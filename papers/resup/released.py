"""The released expression networks as ready modules: `load("expression")(faces).probabilities`."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from facepapers.common.training import released
from facepapers.common.vision import images
from facepapers.papers.resup import data, evaluate
from facepapers.papers.resup.config import PAPER, Config
from facepapers.papers.resup.nets import PeerNetworks
from facepapers.papers.resup.rows import ROWS

NAMES = ("expression", "expression_noisy")  # trained on clean labels; with 30 % of them flipped
TESTED_IN_FLOAT32 = False  # by its own run in what that was trained in
LUMA = (0.299, 0.587, 0.114)  # of grey, as Pillow makes it


class Expression(NamedTuple):
    """What expression B faces show."""

    probabilities: torch.Tensor  # (B, K), in the order of the module's `classes`


class Classifier(torch.nn.Module):
    """Face crops (B, 3, S, S), uint8 or float 0..255, S = `input_px`, to Expression: the mean over all test views.

    Crops are made grey, as FERPlus is. `peers.members` are the networks, from pixels 0..255 to logits; see the card.
    """

    luma: torch.Tensor  # a buffer
    expects = "a square crop from the brows' top to the chin, as of FERPlus: the eyes at 39 % of its height"

    def __init__(self, peers: PeerNetworks, cfg: Config, classes: tuple[str, ...]) -> None:
        super().__init__()
        self.peers, self.cfg, self.classes, self.input_px = peers, cfg, classes, cfg.input_px
        self.register_buffer("luma", torch.tensor(LUMA).view(1, 3, 1, 1), persistent=False)

    def preprocess(self, faces: torch.Tensor) -> torch.Tensor:
        """Square crops (B, 3 or 1, H, H) uint8 of any size, or one, as input (B, 3, S, S). UserError otherwise."""
        return images.squares(faces, self.input_px)

    def forward(self, pixels: torch.Tensor) -> Expression:
        grey = (pixels.float() * self.luma).sum(1, keepdim=True)
        views = [data.plain(grey, self.cfg, scale) for scale in self.cfg.test_scales]
        views += [x.flip(3) for x in views] if self.cfg.flip_test else []
        logits = [self.peers([x] * len(self.peers.members)).float() for x in views]
        return Expression(torch.stack(logits).softmax(-1).mean((0, 1)))


def load(name_or_path: str | Path = NAMES[0], device: torch.device | str = "cpu") -> Classifier:
    """The ready module, in eval mode, of a released model or of a weights file of this paper.

    Raises MissingData for a model that is not released yet and UserError for a file of another paper.
    """
    path = released.find(PAPER, name_or_path, NAMES, ROWS)
    return Classifier(*evaluate.load(path, torch.device(device))).to(device).eval()


def kept(tensor: str) -> bool:
    """Whether a released file holds this tensor: the first network's alone, which the paper's accuracy is of."""
    return tensor.startswith("members.0.")


def tested(path: Path, settings: dict[str, Any], device: torch.device) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(arrays of a weights file on the test faces of the run with these settings, accuracy by expression)."""
    peers, cfg, classes = evaluate.load(path, device)
    faces = data.load(settings["data"], settings["rule"])
    training, test = (data.one_split(faces, k) for k in (0, 2))
    cfg = dataclasses.replace(cfg, precision=settings["precision"])
    found = evaluate.predictions(peers, test, cfg, device) | {"repeated": data.repeated(test, training)}
    right = found["predicted"] == found["label"]
    table = {
        name: {"n": int((test.label == k).sum()), "accuracy_pct": round(100 * float(right[test.label == k].mean()), 2)}
        for k, name in enumerate(classes)
        if (test.label == k).any()
    }
    return found, {"groups": {"expression": {"true expression": table}}}
