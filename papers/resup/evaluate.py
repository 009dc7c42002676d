"""Accuracy, and whether the weights find the flipped labels.

`python -m facepapers.papers.resup.evaluate --weights FILE`

Protocol: share of test faces whose most probable class is the label, in percent. Without a suffix a metric belongs to
the first network alone, as the released code reports it; "mean" to the mean of both networks' probabilities. Last-epoch
weights are the headline, those of the best validation epoch stand beside them; no test result chooses anything.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from facepapers.common import cli, seeding
from facepapers.common.evidence import runs
from facepapers.common.protocols.metrics import show
from facepapers.common.training import checkpoint, parallel, precision
from facepapers.papers.resup import data, method
from facepapers.papers.resup.config import PAPER, ROWS, Config, build_net, preset
from facepapers.papers.resup.metrics import METRICS, measure
from facepapers.papers.resup.nets import PeerNetworks

CHUNK = 256
# ---- From networks to arrays


def accuracy_pct(probabilities: torch.Tensor, label: np.ndarray) -> float:
    """Percent of rows of (N, K) whose largest entry is at `label` (N,)."""
    return 100 * float((probabilities.argmax(-1).cpu().numpy() == label).mean())


@torch.no_grad()
def forward(peers: PeerNetworks, pixels: torch.Tensor, cfg: Config) -> torch.Tensor:
    """Logits (M, B, K) float32 in eval mode."""
    peers.eval()
    n = len(pixels)
    if parallel.compiling() and n < CHUNK:  # another size would be compiled anew
        pixels = torch.cat([pixels, pixels[-1:].expand(CHUNK - n, -1, -1, -1)])
    with precision.autocast(pixels.device, cfg.precision):
        return peers([pixels] * len(peers.members)).float()[:, :n]


def probabilities(peers: PeerNetworks, pictures: torch.Tensor, cfg: Config, device: torch.device) -> torch.Tensor:
    """Softmax outputs (M, N, K) for uint8 faces without augmentation, means over cfg's test views."""
    found = []
    for part in pictures.split(CHUNK):
        views = [data.plain(part.to(device), cfg, scale) for scale in cfg.test_scales]
        views += [x.flip(3) for x in views] if cfg.flip_test else []
        found.append(torch.stack([forward(peers, x, cfg).softmax(-1) for x in views]).mean(0))
    return torch.cat(found, 1)


def training_logits(
    peers: PeerNetworks, pictures: torch.Tensor, cfg: Config, epoch: int, device: torch.device
) -> torch.Tensor:
    """Logits (M, N, K) of the training faces for the noise model: augmented or clean views, one for all networks."""
    found = []
    for start in range(0, len(pictures), CHUNK):
        part = pictures[start : start + CHUNK].to(device)
        gen = seeding.generator(cfg.seed, 3, epoch, start)
        x = data.augment(part, cfg, gen) if cfg.judge_view == "augmented" else data.plain(part, cfg)
        found.append(forward(peers, x, cfg))
    return torch.cat(found, 1)


def predictions(
    peers: PeerNetworks, test: data.Split, cfg: Config, device: torch.device, end: str = ""
) -> dict[str, np.ndarray]:
    """Arrays of the test faces, ordered by class (see data.py): computed numbers and no image. `end`s their names."""
    p = probabilities(peers, test.images, cfg, device)
    arrays = {"label": test.label.astype(np.uint8), f"predicted{end}": most_probable(p[0])}
    if len(p) == 2:
        arrays |= {f"predicted_second{end}": most_probable(p[1]), f"predicted_mean{end}": most_probable(p.mean(0))}
    return arrays


def most_probable(probabilities: torch.Tensor) -> np.ndarray:
    """Class number (N,), uint8, with the largest probability of (N, K)."""
    return probabilities.argmax(-1).cpu().numpy().astype(np.uint8)


def noise_arrays(noise_models: method.NoiseModels, training: data.Split) -> dict[str, np.ndarray]:
    """Arrays of the training faces, ordered by true class: flip list, weights and similarity.

    Means over the networks, and for two of them the second one's weight.
    """
    given = torch.from_numpy(training.given).unsqueeze(1)
    belief = torch.stack([one.belief.cpu() for one in noise_models])
    own = torch.stack([b.gather(1, given).squeeze(1) / b.norm(dim=1) for b in belief])
    weight = torch.stack([one.weight.cpu() for one in noise_models])
    arrays: dict[str, np.ndarray] = {
        "train_label": training.label.astype(np.uint8),
        "weight": weight.mean(0).numpy().astype(np.float16),
        "similarity": own.mean(0).numpy().astype(np.float16),
    }
    if len(noise_models) == 2:
        arrays["weight_second"] = weight[1].numpy().astype(np.float16)
    if training.flip.any():
        arrays |= {"given": training.given.astype(np.uint8), "flip": training.flip}
    return arrays


# ---- The command


@dataclass(frozen=True)
class Command:
    """Test a weights file."""

    weights: Path | None = None  # weights file; without it the newest that was trained on this machine
    data: str | None = None  # data set: ferplus, rafdb, affectnet, embedded; without it the one it was trained on
    device: str = "auto"  # auto (a GPU where there is one), cpu or cuda


def main(argv: Sequence[str]) -> None:
    """Print every metric of a weights file on the test faces of a set."""
    options = cli.command(Command, argv, "python -m facepapers.papers.resup.evaluate", __doc__)
    path, device = options.weights or runs.newest_weights(PAPER), parallel.start(options.device)
    peers, cfg, classes = load(path, device)
    name = options.data or cfg.data
    faces = data.load(name, cfg.rule)
    if faces.classes != classes:
        raise cli.UserError(f"{path}: knows the classes {', '.join(classes)}; {name} has {', '.join(faces.classes)}")
    test = data.one_split(faces, 2)
    print(f"{path} on {name}: {len(test)} test faces")
    show(METRICS, measure(predictions(peers, test, cfg, device)))


def load(path: Path | str, device: torch.device) -> tuple[PeerNetworks, Config, tuple[str, ...]]:
    """(networks, configuration, classes) of a weights file. UserError when it holds no weights of this paper."""
    metadata = checkpoint.read_metadata(path)
    try:
        sizes: dict[str, Any] = {key: int(metadata[key]) for key in ("nets", "width", "input_px")}
        words: dict[str, Any] = {key: metadata[key] for key in ("stem", "rule", "precision")}
        scales = tuple(map(float, metadata["test_scales"].split()))
        cfg = dataclasses.replace(
            preset(metadata["preset"], metadata["row"], metadata["trained_on"]),
            units=tuple(map(int, metadata["units"].split())), flip_test=metadata["flip_test"] == "True",
            test_scales=scales, **words, **sizes,
        )  # fmt: skip
    except (KeyError, ValueError, cli.UserError) as error:
        raise cli.UserError(
            f"{path}: its metadata describes no networks of this paper ({error}); rows {', '.join(ROWS)}"
        ) from None
    classes = tuple(metadata["classes"].split())
    peers = PeerNetworks([build_net(cfg, len(classes)) for _ in range(cfg.nets)])
    checkpoint.load_weights(path, peers)
    return peers.to(device).eval(), cfg, classes


if __name__ == "__main__":
    cli.entry(main)
