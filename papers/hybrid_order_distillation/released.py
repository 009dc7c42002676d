"""The released low-resolution student as a ready module: `load("embedding16")(faces).embedding`."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from facepapers.common.cli import UserError
from facepapers.common.protocols import verification
from facepapers.common.training import released
from facepapers.common.vision import images, networks, resampling
from facepapers.papers.hybrid_order_distillation.config import PAPER, ROWS, Config, preset
from facepapers.papers.hybrid_order_distillation.degrade import resize

NAMES = ("embedding16",)
TESTED_IN_FLOAT32 = True  # by its own run too, whatever that was trained in


class Embedding(NamedTuple):
    """Embeddings of B faces."""

    embedding: torch.Tensor  # (B, d) of unit length; the squared distance of two is 2 - 2 cos


class LowEmbedder(torch.nn.Module):
    """Faces of few pixels (B, 3, r, r) uint8, r = `input_px`, to Embeddings: image and mirror image, as when tested.

    The pixels are enlarged inside, exactly as Pillow's bicubic resize would. `net` alone maps `network_input` to raw
    embeddings, which the loss reads; see the card.
    """

    def __init__(self, net: networks.IResNet | networks.MobileFaceNetReLU, cfg: Config) -> None:
        super().__init__()
        self.net, self.input_px, self.aligned_px, self.operator = net, cfg.resolution, cfg.teacher_px, cfg.operator
        self.expects = (
            f"a face aligned to ArcFace's template (common/vision/alignment.py) that has {cfg.resolution} pixels a side"
        )
        self.enlarge = resampling.PillowResize(cfg.resolution, net.input_px, cfg.operator.split("_")[1])

    def preprocess(self, faces: torch.Tensor) -> torch.Tensor:
        """Aligned uint8 faces (B, 3, H, H), or one, reduced to (B, 3, r, r); faces of r pixels stay as they are.

        Larger ones are brought to 112 px first, as when tested. Raises UserError for crops that are not square, or
        smaller than r: enlarging brings back no detail that the network was trained to find.
        """
        faces = images.batch(faces)
        side = faces.shape[-1]
        if faces.shape[-2] != side or side < self.input_px:
            raise UserError(f"faces of {side}x{faces.shape[-2]} px: give square ones of {self.input_px} px or more")
        faces = faces.expand(-1, 3, -1, -1)
        if side > self.aligned_px:
            faces = resize(faces, self.aligned_px, self.operator)
        return resize(faces, self.input_px, self.operator)

    def network_input(self, faces: torch.Tensor) -> torch.Tensor:
        """What `net` takes of faces (B, 3, r, r) uint8."""
        return networks.to_input(self.enlarge(faces), self.net.pixels)

    def forward(self, faces: torch.Tensor) -> Embedding:
        x = self.network_input(faces)
        return Embedding(F.normalize(networks.with_mirror(self.net, x)))


def load(name_or_path: str | Path = NAMES[0], device: torch.device | str = "cpu") -> LowEmbedder:
    """The ready module, in eval mode, of a released model or of a run's weights file with its record beside it.

    Raises MissingData for a model that is not released yet and UserError for any other file.
    """
    path = released.find(PAPER, name_or_path, NAMES, ROWS)
    found = released.settings(path)
    if "resolution" not in found:
        raise UserError(f"{path}: nothing says how many pixels its faces have; keep the run's run.json beside it")
    if not found["operator"].startswith("pil_"):
        raise UserError(f"{path}: its images were made by {found['operator']}; only Pillow's filters are rebuilt here")
    cfg = dataclasses.replace(preset("short"), **{k: found[k] for k in ("resolution", "teacher_px", "operator")})
    return LowEmbedder(networks.load_identity_net(path), cfg).to(device).eval()


def kept(tensor: str) -> bool:
    """Whether a released file holds this tensor: all of them."""
    return True


def tested(path: Path, settings: dict[str, Any], device: torch.device) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(arrays of a weights file on the test pairs of the run with these settings, thresholds for the card).

    Without the teacher: its distances to the student's embeddings are left out.
    """
    from facepapers.papers.hybrid_order_distillation import data, evaluate  # a prediction needs no data set

    cfg = released.as_config(Config, settings)
    net = networks.load_identity_net(path)
    found = evaluate.predictions(cfg, net, net, None, data.load(cfg.data, cfg.held_out), device)
    return found, {"thresholds": verification.operating_points(found["distance"], found["same"])}
