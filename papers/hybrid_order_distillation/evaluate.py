"""Protocols of the tests at low resolution, and the command that tests a student's weights file.

    python -m facepapers.papers.hybrid_order_distillation.evaluate --preset short --row assistant_123 [--file FILE]

Verification (LFW, embedded): embeddings of image and mirror image are added, ten folds (protocols/verification.py).
Four lists of distances: both images low; high against low, both by the student; high by the teacher against low by the
student; both low by another degradation operator. Retrieval: Recall@K by Euclidean distance on the student's output,
each test image against all others (RKD's protocol). Classification: top-1, training and test images both low.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from facepapers.common import cli, paths
from facepapers.common.protocols import retrieval, verification
from facepapers.common.protocols.metrics import show
from facepapers.common.training import checkpoint, parallel
from facepapers.common.vision import networks
from facepapers.papers.hybrid_order_distillation import data
from facepapers.papers.hybrid_order_distillation.config import PAPER, Config, check, preset
from facepapers.papers.hybrid_order_distillation.degrade import degrade
from facepapers.papers.hybrid_order_distillation.metrics import METRICS, measure
from facepapers.papers.hybrid_order_distillation.nets import Learner, Net, embedding_width, make_net

# ---- From networks to predictions


def predictions(
    cfg: Config,
    teacher: Net,
    net: Net | None,
    learner: Learner | None,
    images: data.ImageSet,
    device: torch.device,
) -> dict[str, np.ndarray]:
    """Arrays of the test part of an ImageSet for the record: computed numbers, neither images nor names.

    `net` is the student's network, or None to test the teacher: row "teacher" at high resolution, "upsampled" at low.
    `learner` carries the classifier of a classification task.
    """
    view = View(cfg, net if net is not None else teacher, cfg.input_px if net is not None else cfg.teacher_px, device)
    if cfg.kind == "classification":
        return _classified(cfg, view, learner, images)
    if cfg.kind == "retrieval":
        return _retrieved(cfg, view, images)
    gallery = View(cfg, teacher, cfg.teacher_px, device)
    found = _verified(cfg, view, gallery, images, images.pairs["pairs_devtest"])
    if "pairs" in images.pairs:
        more = _verified(cfg, view, gallery, images, data.shared_pairs_excluded(images), full=False)
        names = {"distance": "distance_pairs", "distance_cross": "distance_pairs_cross"}
        found |= {names.get(key, f"{key}_pairs"): value for key, value in more.items()}
    return found


class View:
    """A network with its input side: unit embeddings, or raw outputs, of images at a resolution."""

    def __init__(self, cfg: Config, net: Net, px: int, device: torch.device):
        self.cfg, self.net, self.px, self.device = cfg, net.eval().to(device), px, device

    def pictures(self, images: torch.Tensor, resolution: int, operator: str | None = None) -> torch.Tensor:
        """uint8 test images as this network sees them: reduced to `resolution`, enlarged to its input."""
        high = data.plain(images.to(self.device), self.cfg)
        return degrade(high, resolution, self.px, operator or self.cfg.operator)

    def embed(self, images: torch.Tensor, resolution: int, operator: str | None = None) -> np.ndarray:
        """Unit embeddings (N, d), float64; the mirror image's is added."""

        def prepare(part):
            return networks.to_input(self.pictures(part, resolution, operator), self.net.pixels)

        return verification.embed(self.net, images, prepare, 128, self.device)

    @torch.no_grad()
    def outputs(
        self,
        images: torch.Tensor,
        resolution: int,
        operator: str | None = None,
        network: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Raw outputs (N, d) float32 of `network` (default: the network itself), without mirror images."""
        made = []
        for part in images.split(128):
            x = networks.to_input(self.pictures(part, resolution, operator), self.net.pixels)
            made.append((network or self.net)(x).float().cpu())
        return torch.cat(made)


def _verified(cfg, view, gallery, images, pairs, full=True):
    """Distances of the pairs in each of LISTS; the row "teacher" has only the one at high resolution."""
    used, place = np.unique(pairs[:, :2], return_inverse=True)
    pictures = images.images[torch.from_numpy(used)]
    left, right = place.reshape(-1, 2).T

    def between(a, b):
        return verification.squared_distances(a[left], b[right]).astype(np.float32)

    truth = {"same": pairs[:, 2].astype(bool), "fold": pairs[:, 3].astype(np.uint8)}
    high = view.embed(pictures, cfg.teacher_px)
    if cfg.row == "teacher":
        return {"distance": between(high, high), **truth}
    low = view.embed(pictures, cfg.resolution)
    found = {"distance": between(low, low), **truth, "distance_cross": between(high, low)}
    if full:
        other = view.embed(pictures, cfg.resolution, cfg.other_operator)
        found["distance_other"] = between(other, other)
    if full and view.net is not gallery.net and embedding_width(view.net) == embedding_width(gallery.net):
        found["distance_teacher"] = between(gallery.embed(pictures, cfg.teacher_px), low)
    return found


def _classified(cfg, view, learner, images):
    test = images.split == 1
    pictures, label = images.images[torch.from_numpy(test)], images.label[test]
    learner = learner.eval().to(view.device)

    def logits(x):
        return learner(x).logits

    resolution = cfg.teacher_px if cfg.row == "teacher" else cfg.resolution
    found = {"label": label.astype(np.uint16)}
    found["predicted"] = view.outputs(pictures, resolution, None, logits).argmax(1).numpy().astype(np.uint16)
    if resolution < cfg.teacher_px:
        other = view.outputs(pictures, resolution, cfg.other_operator, logits)
        found["predicted_other"] = other.argmax(1).numpy().astype(np.uint16)
    return found


def _retrieved(cfg, view, images):
    test = images.split == 1
    pictures, label = images.images[torch.from_numpy(test)], torch.from_numpy(images.label[test].astype(np.int64))
    resolution = cfg.teacher_px if cfg.row == "teacher" else cfg.resolution
    low = view.outputs(pictures, resolution)
    found = {"first_hit": retrieval.first_hit(low, low, label)}
    found["r_precision"] = retrieval.r_precision(low, low, label)
    if "pairs_devtest" in images.pairs:
        found |= _pairs_of_outputs(low, np.flatnonzero(test), images.pairs["pairs_devtest"])
    if resolution < cfg.teacher_px:
        found["first_hit_cross"] = retrieval.first_hit(low, view.outputs(pictures, cfg.teacher_px), label)
    return found


def _pairs_of_outputs(outputs, rows, pairs):
    """Distances of pairs (P, 4) of images between unit outputs (N, d) of the images `rows` (N,), with truths, folds."""
    place = np.searchsorted(rows, pairs[:, :2])
    unit = verification.unit_rows(outputs.double().numpy())
    distance = verification.squared_distances(unit[place[:, 0]], unit[place[:, 1]])
    truths = {"same": pairs[:, 2].astype(bool), "fold": pairs[:, 3].astype(np.uint8)}
    return {"distance": distance.astype(np.float32), **truths}


# ---- The command


@dataclass(frozen=True)
class Command:
    """Test a student."""

    file: Path | None = None  # weights file; without it that of this machine's run with these settings
    device: str = "auto"  # auto (a GPU where there is one), cpu or cuda


def main(argv: Sequence[str]) -> None:
    """Print every metric of a student on the test images; its row, preset and changed settings say what it is."""
    prog = "python -m facepapers.papers.hybrid_order_distillation.evaluate"
    options, cfg = cli.experiment(argv, preset, check, "assistant_123", Command(), prog=prog, about=__doc__)
    path = options.file or paths.LOCAL / PAPER / cfg.run_name / "model.safetensors"
    device = parallel.start(options.device)
    net = make_net(cfg.net, cfg.features, cfg.input_px)
    images = data.load(cfg.data, cfg.held_out)
    learner = Learner(net, classes=data.training_of(cfg, images).classes) if cfg.kind == "classification" else None
    checkpoint.load_weights(path, learner or net)
    found = measure(predictions(cfg, net, net, learner, images, device))
    print(f"{path} on {cfg.data} at {cfg.resolution} px")
    show(METRICS, found)


if __name__ == "__main__":
    cli.entry(main)
