"""What a student learns from: a frozen network, and the outputs that it gives for a batch.

The source is the teacher, at high resolution, or in the second stage the assistant.
"""

import copy
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from facepapers.common.progress import progress
from facepapers.common.training import parallel
from facepapers.common.vision import networks
from facepapers.papers.hybrid_order_distillation import data
from facepapers.papers.hybrid_order_distillation.config import Config
from facepapers.papers.hybrid_order_distillation.degrade import resize
from facepapers.papers.hybrid_order_distillation.nets import Learner, Outputs, hint_layer


class Hinted(torch.nn.Module):
    """A copy of a learner whose Outputs hold the maps of its network's hint layer, of the same pass."""

    def __init__(self, learner: Learner):
        super().__init__()
        self.learner, self._maps = copy.deepcopy(learner), None
        self.learner.net.get_submodule(hint_layer(learner.net)).register_forward_hook(self._keep)

    def _keep(self, layer, given, made):
        self._maps = made

    def forward(self, x: torch.Tensor) -> Outputs:
        output = self.learner(x)
        maps, self._maps = self._maps, None
        return Outputs(output.embedding, output.logits, output.projected, maps)


class Source:
    """A frozen network that a student learns from. `px`: side of its input; `sha256` names it in records."""

    def __init__(self, learner: Learner, px: int, device: torch.device, sha256: str = "", seconds: float = 0.0):
        self.learner, self.px, self.device = learner.eval().requires_grad_(False).to(device), px, device
        self.sha256, self.seconds = sha256, seconds
        self._live: Callable | None = None  # what `outputs` calls where nothing is kept
        self.targets: torch.Tensor | None = None  # the embeddings of all fixed views, where `prepare` keeps them

    @torch.no_grad()
    def __call__(
        self,
        pictures: torch.Tensor,
        operator: str = "pil_bicubic",
        network: Callable[[torch.Tensor], Any] | None = None,
    ) -> Any:
        """Outputs for uint8 pictures (B, 3, S, S) at high resolution, or what `network` gives in its place."""
        x = networks.to_input(resize(pictures, self.px, operator), self.learner.net.pixels)
        network = self.learner if network is None else network
        return network(x.contiguous(memory_format=torch.channels_last))

    def prepare(self, cfg: Config, training: data.Training, folder: Path) -> None:
        """Compute the embeddings of all fixed views once; one process writes, all read."""
        if cfg.views:
            kept = Path(folder) / f"outputs-{data_key(cfg, training)}"
            if parallel.is_main():
                network = parallel.frozen(self.learner.net, self.device)
                data.view_outputs(lambda p: self(p, cfg.operator, network), training, cfg, kept, self.device)
            parallel.barrier()
            self.targets = data.view_outputs(None, training, cfg, kept, self.device)

    def outputs(self, batch: data.Batch, operator: str, hint: bool = False) -> Outputs:
        """Outputs for a Batch: the kept embeddings, or a forward pass, with the maps of the hint layer if wanted."""
        if self.targets is None:
            assert batch.high is not None  # train.fit asks for it where no targets are kept
            if self._live is None:
                self._live = parallel.frozen(Hinted(self.learner) if hint else self.learner, self.device)
            return self(batch.high, operator, self._live)
        return Outputs(self.targets[batch.view, batch.index].to(self.device))

    def hint_width(self) -> int:
        """Channels of the hint maps."""
        picture = torch.zeros(1, 3, self.px, self.px, dtype=torch.uint8, device=self.device)
        return self(picture, network=Hinted(self.learner)).maps.shape[1]

    def class_centres(self, training: data.Training, cfg: Config) -> torch.Tensor:
        """(C, d) mean unit embedding of each class: ours, for faces, where the teacher has no classifier."""
        parts = progress(training.images.split(128), "class centres", "batches")
        rows = [self(data.plain(part.to(self.device), cfg)).embedding.cpu() for part in parts]
        total = torch.zeros(training.classes, rows[0].shape[1])
        return F.normalize(total.index_add_(0, training.labels, F.normalize(torch.cat(rows), dim=1)), dim=1)


def data_key(cfg: Config, training: data.Training) -> str:
    """Eight hex digits of everything that the views depend on."""
    settings = (training.fingerprint, cfg.views, cfg.augment, cfg.teacher_px, cfg.operator, data.VIEWS_SEED)
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:8]
