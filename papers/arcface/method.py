"""ArcFace: Additive Angular Margin Loss for Deep Face Recognition (Deng et al., arXiv 1801.07698).

A face network maps an image to an embedding x in R^d. During training each identity j owns a row W_j of a matrix;
both are scaled to unit length, so that their product is the cosine of the angle theta_j between them. The true
identity y gets a handicap, a margin, before the ordinary softmax cross-entropy (equation 4 of the paper):

    L = -log  e^t / (e^t + sum over j != y of e^(s cos theta_j)),   t = s (cos(m1 theta_y + m2) - m3)

To win, the angle to one's own centre must be smaller than to any other *by the margin*. W is thrown away after
training; faces are then compared by the cosine of their embeddings, without any margin.

Everything is computed in float32 (float64 stays float64) whatever the type of the input: half-precision cosines
near 1 have no angle left (nor have TensorFloat32's: leave torch's matmul precision at "highest" where the head runs).
Read `margin_loss` first; the rest of the file is what it calls, and its relatives.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from facepapers.common.cli import UserError
from facepapers.common.training import losses

# (m1, m2, m3) of equation 4; m2 in radians. Values of Table 2.
MARGINS = {
    "norm_softmax": (1.0, 0.0, 0.0),  # equation 2
    "sphereface": (1.35, 0.0, 0.0),  # the paper's re-implementation; the original had m1 = 4 and annealing
    "arcface": (1.0, 0.5, 0.0),  # equation 3
    "cosface": (1.0, 0.0, 0.35),
    "cm1": (1.0, 0.3, 0.2),
    "cm2": (0.9, 0.4, 0.15),
}

# What the true class's logit does when m1 theta + m2 exceeds pi ("easy": already when theta exceeds pi / 2). Five rules
# circulate, dated by insightface's history.
PAST_PI = (
    "keep_decreasing",  # A: mxnet 2018, torch of 2022, most re-implementations. cos(theta) - m2 sin(m2)
    "easy",  # B: the margin only where cos(theta) > 0
    "none",  # C: cos(theta + m) everywhere, so it rises again; mxnet later, torch since December 2022
    "clamp",  # D: the angle stops at pi (opensphere)
    "first_torch",  # E: as C, but always with autograd's gradient; torch of 2021
)

# "full" is the derivative of the loss (the paper, and the published logs). "detached" treats the margin as a
# constant shift of the logit, as insightface does since December 2022: the value is equal, and the gradient lacks
# the factor sin(theta + m) / sin(theta), which is 2.7 at 15 degrees, 0.9 at 90 and 0.05 at 150 for m = 0.5.
GRADIENTS = ("full", "detached")


def margin_loss(
    embeddings: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    margins: tuple[float, float, float] = MARGINS["arcface"],
    scale: float = 64.0,
    past_pi: str = "keep_decreasing",
    gradient: str = "full",
) -> torch.Tensor:
    """Equation 4, averaged over the batch: a scalar.

    embeddings (B, d) and weight (C, d) of any length per row; labels (B,), integers of any type, in 0..C-1; margins
    (m1, m2, m3).
    """
    labels = losses.class_numbers(labels, embeddings.device)
    cosine = cosines(embeddings, weight)  # (B, C): cos theta_j = W_j . x
    logits = scale * with_margin(cosine, labels, margins, past_pi, gradient)
    return F.cross_entropy(logits, labels)


def cosines(embeddings: torch.Tensor, weight: torch.Tensor, centers: int = 1) -> torch.Tensor:
    """Cosines (B, C) between embeddings (B, d) and class centres (C * centers, d).

    With several centres per class (sub-center ArcFace; rows class by class) a class is as near as its nearest one.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        cosine = unit(embeddings) @ unit(weight).T
    return cosine if centers == 1 else cosine.view(len(cosine), -1, centers).max(2).values


def with_margin(
    cosine: torch.Tensor,
    labels: torch.Tensor,
    margins: tuple[float, float, float],
    past_pi: str = "keep_decreasing",
    gradient: str = "full",
) -> torch.Tensor:
    """`cosine` (B, C) with the entry of each row's true class replaced by `target_cosine` of it."""
    own = losses.class_numbers(labels, cosine.device).unsqueeze(1)
    return cosine.scatter(1, own, target_cosine(cosine.gather(1, own), margins, past_pi, gradient))


def target_cosine(
    cosine: torch.Tensor, margins: tuple[float, float, float], past_pi: str = "keep_decreasing", gradient: str = "full"
) -> torch.Tensor:
    """cos(m1 theta + m2) - m3 for cosines of any shape, by the named rules of PAST_PI and GRADIENTS."""
    check_rules(past_pi, gradient)
    m1, m2, m3 = margins
    if (m1, m2) == (1.0, 0.0):  # CosFace, norm-softmax: no angle is needed, and none can pass pi
        return cosine - m3
    angle = m1 * arccos(cosine) + m2
    target = torch.cos(angle)
    if past_pi == "keep_decreasing":
        # m1 = 1: the public code, which at pi drops from -1 to -cos(m2) - m2 sin(m2), -1.117 for ArcFace. Other m1
        # have no rule in public code; this one would jump up there, so we continue the cosine as SphereFace did.
        beyond = cosine - m2 * math.sin(m2) if m1 == 1 else -2 - target
        target = torch.where(angle < math.pi, target, beyond)
    elif past_pi == "easy":
        target = torch.where(cosine > 0, target, cosine)
    elif past_pi == "clamp":
        target = torch.cos(angle.clamp(max=math.pi))
    if gradient == "detached":
        target = cosine + (target - cosine).detach()
    return target - m3


def arccos(cosine: torch.Tensor) -> torch.Tensor:
    """Angle in radians, with a finite derivative: |cosine| stops one rounding step short of 1.

    d theta / d cosine is infinite at 0 and pi. Beyond the stop (0.03 degrees in float32) the derivative is zero,
    the only choice that favours no direction when x lies on its centre.
    """
    stop = 1 - torch.finfo(cosine.dtype).eps
    return torch.acos(cosine.clamp(-stop, stop))


def unit(x: torch.Tensor) -> torch.Tensor:
    """Rows of x (N, d) at length 1, at least float32; 0, without gradient, where one is far shorter than most."""
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return x * (1 / losses.lengths(x))


def check_batch(embeddings: torch.Tensor, labels: torch.Tensor, classes: int) -> None:
    """UserError for labels outside 0..classes-1 and for embeddings without a direction. Costs one device sync."""
    bad_label = (labels < 0) | (labels >= classes)
    no_direction = (embeddings.detach() == 0).all(1)
    if not (bad_label.any() | no_direction.any()):
        return
    if bad_label.any():
        row = int(bad_label.nonzero()[0])
        raise UserError(f"labels[{row}] = {int(labels[row])} is outside 0..{classes - 1}; number identities from 0")
    row = int(no_direction.nonzero()[0])
    raise UserError(f"embeddings[{row}] is all zero and has no angle; check the network's input and last layer")


class MarginHead(nn.Module):
    """The class centres W (classes * centers, features) and the loss upon them.

    `margins` may be changed between steps (a warm-up). `intra` and `inter` weigh the auxiliary losses of section
    2.3. `check=False` skips `check_batch` and the device sync that it costs. W must be given to the optimiser. It stays
    float32 whatever the embeddings' type (pytorch-metric-learning 2.9 casts it to theirs). To compute in bfloat16 cast
    the network and not the head, or most small steps are lost in rounding.
    Raises UserError for an unknown rule, and for `inter` with several centers: a class's own must not be pushed apart.
    """

    def __init__(
        self,
        classes: int,
        features: int,
        margins: tuple[float, float, float] = MARGINS["arcface"],
        scale: float = 64.0,
        past_pi: str = "keep_decreasing",
        gradient: str = "full",
        centers: int = 1,
        intra: float = 0.0,
        inter: float = 0.0,
        check: bool = True,
    ) -> None:
        super().__init__()
        check_rules(past_pi, gradient)
        if inter and centers > 1:
            raise UserError(f"inter {inter} with {centers} centers: that loss is defined for one centre a class")
        self.weight = nn.Parameter(torch.randn(classes * centers, features) * 0.01)  # insightface's init
        self.margins, self.scale, self.past_pi, self.gradient = margins, scale, past_pi, gradient
        self.classes, self.centers, self.intra, self.inter, self.check = classes, centers, intra, inter, check

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Loss of embeddings (B, features) with labels (B,): a scalar."""
        labels = losses.class_numbers(labels, embeddings.device)
        if self.check:
            check_batch(embeddings, labels, self.classes)
        cosine = cosines(embeddings, self.weight, self.centers)
        logits = self.scale * with_margin(cosine, labels, self.margins, self.past_pi, self.gradient)
        loss = F.cross_entropy(logits, labels)
        if self.intra:
            loss = loss + self.intra * intra_loss(cosine, labels)
        if self.inter:
            loss = loss + self.inter * inter_loss(self.weight, labels)
        return loss

    def logits(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Margin-free scores (B, classes), for classification at test time."""
        return self.scale * cosines(embeddings, self.weight, self.centers)

    def extra_repr(self) -> str:
        return f"margins={self.margins}, scale={self.scale}, past_pi={self.past_pi}, gradient={self.gradient}"


class SoftmaxHead(nn.Module):
    """Equation 1, the plain softmax baseline: nothing is normalised, and each class has a bias."""

    def __init__(self, classes: int, features: int, check: bool = True) -> None:
        super().__init__()
        self.classes, self.check = classes, check
        self.weight = nn.Parameter(torch.randn(classes, features) * 0.01)
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Loss of embeddings (B, features) with labels (B,): a scalar."""
        labels = losses.class_numbers(labels, embeddings.device)
        if self.check:
            check_batch(embeddings, labels, self.classes)
        return F.cross_entropy(self.logits(embeddings), labels)

    def logits(self, embeddings: torch.Tensor) -> torch.Tensor:
        with torch.autocast(embeddings.device.type, enabled=False):
            return F.linear(embeddings.to(self.weight.dtype), self.weight, self.bias)


def make_head(loss: str, classes: int, features: int, **options: Any) -> nn.Module:
    """The head of a named loss: "softmax" or a key of MARGINS. UserError for any other name or an unfit option."""
    if loss == "softmax":
        if unfit := options.keys() - {"check"}:
            raise UserError(f"loss 'softmax' has no margin, scale or centre to set; drop {', '.join(sorted(unfit))}")
        return SoftmaxHead(classes, features, check=options.get("check", True))
    if loss not in MARGINS:
        raise UserError(f"loss {loss!r} is unknown; choose from softmax, {', '.join(MARGINS)}")
    return MarginHead(classes, features, MARGINS[loss], **options)


def check_rules(past_pi: str, gradient: str) -> None:
    """UserError unless both names are known and fit together."""
    if past_pi not in PAST_PI:
        raise UserError(f"past_pi {past_pi!r} is unknown; choose from {', '.join(PAST_PI)}")
    if gradient not in GRADIENTS:
        raise UserError(f"gradient {gradient!r} is unknown; choose from {', '.join(GRADIENTS)}")
    if past_pi == "first_torch" and gradient == "detached":
        raise UserError("past_pi 'first_torch' stands for autograd's gradient; with 'detached' take past_pi 'none'")


# ---- The losses that the paper compares with (section 2.3); they are added to norm-softmax or to ArcFace.


def intra_loss(cosine: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean angle to the own centre over pi, from cosines (B, C): pulls x to its centre."""
    own = losses.class_numbers(labels, cosine.device).unsqueeze(1)
    return arccos(cosine.gather(1, own)).mean() / math.pi


def inter_loss(weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Minus the mean angle between the batch's centres W_y and all others, over pi: pushes centres apart.

    weight (C, d), labels (B,). By angles, as in the paper; insightface's code of 2018 took the mean cosine.
    """
    labels = losses.class_numbers(labels, weight.device)
    angles = arccos(cosines(weight[labels], weight)).scatter(1, labels.unsqueeze(1), 0.0)
    return -angles.sum() / (math.pi * len(labels) * (len(weight) - 1))


def triplet_loss(embeddings: torch.Tensor, labels: torch.Tensor, margin: float = 0.35) -> torch.Tensor:
    """arccos(x . x_pos) + margin <= arccos(x . x_neg), margin in radians: the mean excess of violating triplets.

    All triplets of the batch are looked at: embeddings (B, d), labels (B,) with several images per identity. The
    paper draws one random violating negative per pair, of which this mean is the expectation up to weighting (our
    choice). A batch without a violation gives 0.
    """
    labels = losses.class_numbers(labels, embeddings.device)
    theta = arccos(cosines(embeddings, embeddings))
    same = labels.unsqueeze(1) == labels
    anchor, positive = (same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)).nonzero(as_tuple=True)
    excess = theta[anchor, positive].unsqueeze(1) + margin - theta[anchor]  # (pairs, B)
    violates = (excess > 0) & ~same[anchor]
    return (excess * violates).sum() / violates.sum().clamp(min=1)


# ---- Sub-center ArcFace (journal version, section 3.2): find wrong labels with K centres, drop them, train again.


class Cleaning(NamedTuple):
    """What sub-center cleaning found. N images, C classes."""

    keep: torch.Tensor  # (N,) bool
    angle_deg: torch.Tensor  # (N,) angle to the dominant centre of the labelled class
    dominant: torch.Tensor  # (C,) index of the dominant centre, 0..K-1
    labels: torch.Tensor  # (N,) labels renumbered over the classes that keep an image; -1 for a dropped image


@torch.no_grad()
def clean_by_subcenters(
    embeddings: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor, centers: int, max_angle_deg: float = 75.0
) -> Cleaning:
    """Drop images farther than `max_angle_deg` from their class's dominant centre.

    embeddings (N, d); labels (N,) in 0..C-1; weight (C * centers, d) of a head trained with `centers` > 1. The
    dominant centre is the one that most of the class's images lie nearest to (the first one on ties).
    """
    classes, labels = len(weight) // centers, losses.class_numbers(labels, embeddings.device)
    check_batch(embeddings, labels, classes)
    own = unit(weight).view(classes, centers, -1)
    parts = zip(unit(embeddings).split(4096), labels.split(4096), strict=True)  # bounds the (n, K, d) gather
    cosine = torch.cat([torch.einsum("nd,nkd->nk", x, own[y]) for x, y in parts])  # (N, K)
    votes = torch.bincount(labels * centers + cosine.argmax(1), minlength=classes * centers)
    dominant = votes.view(classes, centers).argmax(1)
    angle_deg = torch.rad2deg(torch.acos(cosine.gather(1, dominant[labels].unsqueeze(1)).squeeze(1).clamp(-1, 1)))
    keep = angle_deg <= max_angle_deg
    renumbered = torch.full_like(labels, -1)
    renumbered[keep] = labels[keep].unique(return_inverse=True)[1]
    return Cleaning(keep, angle_deg, dominant, renumbered)
