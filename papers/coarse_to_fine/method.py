"""Coarse-to-fine training for face alignment (CFT): the network, the weighted loss, the stages.

Shao, Ding, Zhao, Zhang, Ma: "Learning Deep Representation from Coarse to Fine for Face Alignment", ICME 2016
(arXiv 1608.00207). Sources cited below: [paper] its abstract and introduction, [code] the authors' released Caffe
files (ZhiwenShao/CFT), [figure] their network drawing. What none of them says is marked "our choice".

One network learns in stages. The first stage weighs a few *principal* landmarks (brow and eye corners, nose tip,
mouth corners, chin) far above the *elaborate* rest; each later stage starts from the one before with weights
closer together, until both are equal.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from facepapers.common.training import losses


@dataclass(frozen=True)
class Stage:
    """One stage: weights of the two subsets, its share of all updates, and its learning rate."""

    weight_principal: float
    weight_elaborate: float
    share: float
    lr: float


def conv_pair(channels_in: int, channels_out: int) -> nn.Sequential:
    """Two 3x3 convolutions, each with batch normalisation and ReLU, then 2x2 max pooling that rounds up [figure].

    Batch normalisation keeps running statistics for testing; the authors' Caffe fork reused those of the last
    training batch. eps = 1e-9 is theirs.
    """
    layers = []
    for c_in, c_out in ((channels_in, channels_out), (channels_out, channels_out)):
        layers += [nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out, eps=1e-9), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.MaxPool2d(2, 2, ceil_mode=True))


class CFTNet(nn.Module):
    """The CFT network [code, figure]: a 50x50 colour crop in, landmark coordinates in crop pixels out.

    Feature sides 50 -> 25 -> 13 -> 7 -> 4. fc5 has no activation, so fc5 -> fc6 is a linear bottleneck of rank 256.
    While training, a pair of linear heads also reads each of the three first pooled maps (deep supervision), unless
    they were taken out, as in the released file.
    """

    order: torch.Tensor  # buffers, made below
    mean_image: torch.Tensor
    heads: Any  # nn.ModuleList of nn.Linear, and of such pairs: torch types their entries as nn.Module only
    auxiliary: Any

    def __init__(self, n_points: int, principal: Sequence[int], crop: int = 50) -> None:
        super().__init__()
        elaborate = [i for i in range(n_points) if i not in set(principal)]
        self.register_buffer("order", torch.argsort(torch.tensor([*principal, *elaborate])), persistent=False)
        self.register_buffer("mean_image", torch.zeros(3, crop, crop))
        outputs = (2 * len(principal), 2 * len(elaborate))  # 24 and n - 24 for both markups [code]
        self.stages = nn.ModuleList([conv_pair(3, 64), conv_pair(64, 128), conv_pair(128, 192), conv_pair(192, 256)])
        sides = [crop := (crop + 1) // 2 for _ in range(4)]
        self.fc5 = nn.Linear(256 * sides[3] ** 2, 256)
        self.heads = nn.ModuleList([nn.Linear(256, n) for n in outputs])
        flat = [c * s**2 for c, s in zip((64, 128, 192), sides, strict=False)]
        self.auxiliary = nn.ModuleList([nn.ModuleList([nn.Linear(f, n) for n in outputs]) for f in flat])
        self.apply(_initialise)

    def forward(self, images: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """(B, 3, 50, 50) pixels 0..255 -> points (B, n, 2); while training a list of four, the final pair last."""
        x = images - self.mean_image
        pooled = []
        for stage in self.stages:
            x = stage(x)
            pooled.append(x.flatten(1))
        pairs = [(self.heads, self.fc5(pooled[3]))]
        if self.training:
            pairs = [*zip(self.auxiliary, pooled[: len(self.auxiliary)], strict=True), *pairs]
        points = [self._points(heads, features) for heads, features in pairs]
        return points if self.training else points[-1]

    @torch.no_grad()
    def start_at(self, points: torch.Tensor) -> None:
        """Let every pair of heads predict `points` (n, 2) at first, by its biases (our choice for short schedules)."""
        ordered = points[torch.argsort(self.order)].flatten()
        for pair in (self.heads, *self.auxiliary):
            for head, part in zip(pair, ordered.split([h.out_features for h in pair]), strict=True):
                head.bias.copy_(part)

    def _points(self, heads, features):
        """Concatenate principal and elaborate outputs and undo the re-ordering.

        The biases, which come to hold the mean shape, are added in float32: coordinates of 32 px and more would round
        to quarter pixels in bfloat16.
        """
        both = torch.cat([F.linear(features, head.weight).float() + head.bias for head in heads], 1)
        return both.view(both.shape[0], -1, 2)[:, self.order]


def _initialise(module):
    """Gaussian weights with sigma 0.01, zero biases [code]; batch normalisation starts at scale 1, shift 0."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)


def squared_error(
    points: torch.Tensor, truth: torch.Tensor, distance_px: torch.Tensor, subset: Sequence[int]
) -> torch.Tensor:
    """The loss of one head [code]: sum of squared coordinate errors over 2 d^2, averaged over the batch.

    `points`, `truth` (B, n, 2) and `distance_px` (B,), the distance between pupils or eye centres, are in the crop
    frame. It is a sum over coordinates, not a mean. d is each face's own; the authors' layer divides the whole
    batch by the first face's, which the formula does not mean.
    """
    error = (points[:, subset] - truth[:, subset]).square().sum((1, 2))
    return (error / (2 * losses.scales(distance_px).square())).mean()


def coarse_to_fine_loss(
    outputs: list[torch.Tensor],
    truth: torch.Tensor,
    distance_px: torch.Tensor,
    principal: Sequence[int],
    elaborate: Sequence[int],
    weights: tuple[float, float],
) -> torch.Tensor:
    """lambda_P L_P + lambda_E L_E summed over the final pair and the three auxiliary ones (eight losses) [code].

    `outputs` is the list that the training network returns, `weights` = (lambda_P, lambda_E) of the present stage.
    The auxiliary pairs follow the same weights (inferred: the released file has one value everywhere).
    """
    return sum(
        (
            weights[0] * squared_error(points, truth, distance_px, principal)
            + weights[1] * squared_error(points, truth, distance_px, elaborate)
            for points in outputs
        ),
        start=truth.new_zeros(()),
    )


def stages(first: float = 0.7) -> tuple[Stage, ...]:
    """The stages, the first of them (principal weight 0.9) with the share `first` of all updates.

    The authors tell only that the principal weight falls step by step until both are equal, that the last pair is
    0.5/0.5 and that later stages use a small learning rate such as 0.001 [paper, code]. The values between, the number
    of stages and their lengths are our choice. The long first stage drops its rate by 0.3 at equal intervals, as the
    released solver does.
    """
    return (
        *(Stage(0.9, 0.1, first / 5, 0.02 * 0.3**k) for k in range(5)),
        *(Stage(w, 1 - w, (1 - first) / 4, 0.001) for w in (0.8, 0.7, 0.6, 0.5)),
    )


def schedule(
    stages: Sequence[Stage], total_steps: int, control: str = "cft"
) -> list[tuple[int, int, tuple[float, float], float]]:
    """Per stage: (first step, end step, (lambda_P, lambda_E), learning rate).

    `control` keeps steps and rates and changes the weights alone: "direct" makes both 0.5 throughout, "principal"
    trains the principal subset alone (1, 0).
    """
    fixed = {"cft": None, "direct": (0.5, 0.5), "principal": (1.0, 0.0)}[control]
    shares = torch.tensor([stage.share for stage in stages], dtype=torch.float64).cumsum(0)
    ends = [round(float(share / shares[-1]) * total_steps) for share in shares]
    rows = []
    for stage, start, end in zip(stages, [0, *ends[:-1]], ends, strict=True):
        weights = fixed or (stage.weight_principal, stage.weight_elaborate)
        rows.append((start, end, weights, stage.lr))
    return rows
