"""The idea: one identity network, and per attribute a copy of its upper stages that leaves the trunk where it pays.

Baumgartner and Culpepper 2016, known to us through the abstract. Stages are numbered 1 (input) to L (embedding). An
attribute a that *starts at stage k_a* relearns stages k_a to L on the frozen output of stage k_a - 1; k_a = L + 1 is
the usual baseline, one extra layer on the embedding. At inference the common prefix runs once.

    s_0 = x,  s_k = stage_k(s_{k-1})                                       the trunk, frozen: s_L is the embedding
    z_a = head_a( stage^a_L( ... stage^a_{k_a}( s_{k_a - 1} ) ) )          the branch; stage^a starts as a copy of stage
    loss = mean_a CE(z_a, y_a)                                             `joint_loss`: no weights between attributes
    k = argmin_k cost(k)  s.t.  accuracy_a(k_a) >= max - margin            `choose`, on validation faces

The trunk never changes: its parameters take no gradient and its BatchNorm layers always use their stored statistics, so
the identity output is the same to the bit before and after any branch is trained. How a network is cut into stages, and
how copies are prepared, stands at the end.
"""

import copy
import itertools
import math
from collections.abc import Sequence
from typing import Any, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from facepapers.common.cli import UserError
from facepapers.common.training.losses import class_numbers, scales
from facepapers.common.vision.networks import IResNet, MobileFaceNetReLU

# ---- Branches


class Branch(nn.Module):
    """One attribute's own layers: copies of the stages from `start` on, and a linear layer to `classes` scores.

    `start` = L + 1 copies nothing. `only` (control) relearns that one stage and keeps the others of the copy as they
    were. `hidden` (control) puts one hidden layer of that width below the scores. `grid` > 0 is a probe: the input, an
    activation map (B, C, H, W), is averaged over a grid x grid raster and read out linearly. `scratch` starts all
    copied stages from random weights.
    """

    mean: torch.Tensor  # buffers, made below
    deviation: torch.Tensor

    def __init__(
        self,
        stages: Sequence[nn.Module],
        start: int,
        classes: int,
        features: int,
        only: int = 0,
        hidden: int = 0,
        grid: int = 0,
        scratch: bool = False,
    ):
        super().__init__()
        self.start, self.only, self.keep_statistics = start, only, False
        self.stages = nn.ModuleList(copy.deepcopy(stage) for stage in ([] if grid else stages[start - 1 :]))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(grid), nn.Flatten()) if grid else nn.Identity()
        width = features * grid * grid if grid else features
        # Frozen features come in any scale; the readout standardises them by `standardise`.
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))
        layers = [nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, classes)] if hidden else []
        self.head = nn.Sequential(*layers) if hidden else nn.Linear(width, classes)
        for stage in self.stages if scratch else ():
            reinitialise(stage)
        for number, stage in enumerate(self.stages, start):
            stage.requires_grad_(only in (0, number))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage in self.stages:
            x = stage(x)
        x = self.pool(x) if x.dim() == 4 else x
        return self.head((x.float() - self.mean) / self.deviation)

    @torch.no_grad()
    def standardise(self, x: torch.Tensor) -> None:
        """Take mean and deviation of what the readout will see from activations (n, ...) of the trunk.

        A feature that hardly varies (a dead channel) counts nothing: divided by its deviation, its first move would
        send more than all others.
        """
        x = self.pool(x).float() if x.dim() == 4 else x.float()
        self.mean.copy_(x.mean(0))
        deviation = x.std(0)
        known = deviation.clamp_min(1e-3)
        self.deviation.copy_(torch.where(deviation < known, scales(known), known))

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for number, stage in enumerate(self.stages, self.start):
            if self.only not in (0, number):
                stage.eval()
            elif self.keep_statistics:
                for module in stage.modules():
                    if isinstance(module, nn.modules.batchnorm._BatchNorm):
                        module.eval()
        return self


class SharedNet(nn.Module):
    """A frozen trunk with branches: the prefix runs once, each branch leaves where it starts.

    `moving` (joint training) lets the trunk learn as well; the identity output then changes.
    """

    branches: Any  # nn.ModuleDict of Branch: torch types its entries as nn.Module only

    def __init__(self, stages: Sequence[nn.Module], branches: dict[str, Branch], moving: bool = False):
        super().__init__()
        self.trunk = nn.ModuleList(stages).requires_grad_(moving)
        self.branches = nn.ModuleDict(branches)
        self.starts = {name: branch.start for name, branch in branches.items()}
        self.moving, self.keep_statistics = moving, False

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if not self.moving or self.keep_statistics:
            self.trunk.eval()  # stored statistics, whatever the branches do
        return self

    def forward(
        self, x: torch.Tensor, rows: dict[str, torch.Tensor] | None = None, first: int = 1, identity: bool = False
    ) -> dict[str, torch.Tensor]:
        """Name -> scores (b, classes). `x` (B, ...) is the input of stage `first` (1: an image, scaled for the trunk).

        `rows`: name -> (B,) bool, the images that a branch is asked for (default: all). `identity` adds the embedding.
        """
        last = len(self.trunk) + 1 if identity else max(self.starts.values())
        found = {}
        for number in range(first, last + 1):
            for name, branch in self.branches.items():
                if self.starts[name] == number:
                    found[name] = branch(x if rows is None else x[rows[name]])
            if number < last:
                x = self.trunk[number - 1](x)
        if identity:
            found["identity"] = x
        return {name: found[name] for name in [*self.branches, *(["identity"] if identity else [])]}


# ---- Loss


def joint_loss(
    scores: dict[str, torch.Tensor],
    targets: dict[str, torch.Tensor],
    counts: dict[str, int] | None = None,
    processes: int = 1,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(loss, name -> loss): cross-entropy over the labelled images of each attribute, averaged over the attributes.

    `scores`: name -> (n, classes) of the n labelled images of this process. `targets`: (n,) class numbers or (n,
    classes) probabilities. An attribute without a label in the batch adds 0. `counts` (labelled images of all
    `processes`) makes the gradients' average over processes that of the whole batch.
    """
    each = {}
    for name, score in scores.items():
        count = max(1, len(score) if counts is None else counts[name])
        target = torch.as_tensor(targets[name], device=score.device)
        target = target if target.is_floating_point() else class_numbers(target)
        total = F.cross_entropy(score, target, reduction="sum")  # 0 of no images
        each[name] = processes * total / count
    return sum(each.values(), start=torch.zeros(())) / len(each), each


def soft_years(years: torch.Tensor, oldest: int, sigma: float) -> torch.Tensor:
    """(n, oldest + 1) probabilities of whole years: a normal bump around `years` (n,), or one-hot with sigma = 0.

    One class per year with neighbours sharing the mass: our choice; the paper's age classes are not known.
    """
    years = years.long().clamp(0, oldest)
    if sigma == 0:
        return F.one_hot(years, oldest + 1).float()
    distance = torch.arange(oldest + 1, device=years.device) - years.unsqueeze(1)
    return torch.softmax(-0.5 * (distance / sigma).square(), 1)


def expected_median(probability: torch.Tensor) -> torch.Tensor:
    """Median (n,) of a distribution over whole years (n, years): it minimises the expected absolute error."""
    mass = probability.cumsum(1)
    upper = (mass < 0.5).sum(1).clamp(max=probability.shape[1] - 1)
    own = probability.gather(1, upper.unsqueeze(1)).squeeze(1).clamp_min(1e-12)
    below = mass.gather(1, upper.unsqueeze(1)).squeeze(1) - own
    return upper - 0.5 + ((0.5 - below) / own).clamp(0, 1)


# ---- Cost and choice of the pattern


@torch.no_grad()
def macs(module: nn.Module, *inputs: torch.Tensor) -> int:
    """Multiply-adds of convolutions and matrix products for `inputs`: half of torch's flop counter's flops."""
    from torch.utils.flop_counter import FlopCounterMode  # imported late: it loads the compiler triton

    with FlopCounterMode(display=False) as counter:
        module(*inputs)
    return counter.get_total_flops() // 2


@torch.no_grad()
def stage_macs(stages: Sequence[nn.Module], input_px: int) -> list[int]:
    """Multiply-adds of each stage for one image of input_px x input_px."""
    x, found = torch.zeros(1, 3, input_px, input_px), []
    for stage in stages:
        stage.eval()
        found.append(macs(stage, x))
        x = stage(x)
    return found


def pattern_macs(
    per_stage: Sequence[int], starts: dict[str, int], heads: dict[str, int] | None = None, identity: bool = False
) -> int:
    """Multiply-adds of one image through a sharing pattern (our accounting; the paper does not give its own).

    `per_stage`: cost of stages 1..L; `starts`: attribute -> stage where its own copy starts (L + 1: only a layer on
    the embedding); `heads`: attribute -> cost of its scores. Trunk stages that nothing needs do not run and are not
    counted; `identity` counts the embedding as an output. Two attributes that start at one stage pay twice.
    """
    length = len(per_stage)
    needed = length if identity or not starts else max(starts.values()) - 1
    own = sum(sum(per_stage[start - 1 :]) for start in starts.values())
    return sum(per_stage[:needed]) + own + sum((heads or {}).values())


def choose(
    validation: dict[str, dict[int, float]],
    per_stage: Sequence[int],
    margin: float,
    heads: dict[str, int] | None = None,
    identity: bool = False,
) -> dict[str, int]:
    """The cheapest pattern (attribute -> start) in which each attribute is within `margin` of its best start.

    `validation`: attribute -> {start: accuracy on the validation faces}. Ties go to the more accurate pattern.
    """
    fits = {
        name: [k for k, value in found.items() if value >= max(found.values()) - margin]
        for name, found in validation.items()
    }
    patterns = (dict(zip(fits, starts, strict=True)) for starts in itertools.product(*fits.values()))

    def cost_then_error(starts):
        accuracy = sum(validation[name][k] for name, k in starts.items())
        return pattern_macs(per_stage, starts, heads, identity), -accuracy

    return min(patterns, key=cost_then_error)


# ---- Invariance


def identity_variance(features: torch.Tensor, identity: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(within (n,), between (n,)) squared distances of the n features of identities with two or more images.

    within: to the mean of the image's own identity; between: from that mean to the mean of all. The ratio of their
    sums is the share that the authors presume to fall with depth.
    """
    _, place, count = identity.unique(return_inverse=True, return_counts=True)
    several = count[place] > 1
    features, place = features[several].double(), place[several].unique(return_inverse=True)[1]
    people = int(place.max()) + 1 if len(place) else 0
    mean = torch.zeros(people, features.shape[1], dtype=features.dtype)
    mean.index_add_(0, place, features)
    mean /= torch.bincount(place, minlength=people).unsqueeze(1)
    own = mean[place]
    return (features - own).square().sum(1), (own - features.mean(0)).square().sum(1)


# ---- Surgery: a trunk in stages, and what is done to copies of them

# Where our stages begin: at each halving of the resolution, and before the layers that make the embedding (our choice;
# the paper's depths are not known).
CUTS = {
    MobileFaceNetReLU: ("features.0", "features.5", "features.12", "conv2"),
    IResNet: ("layer2.0", "layer3.0", "layer4.0", "embedding"),
}


class Float(nn.Module):
    """To float32, which ends autocast's bfloat16 before the last normalisation."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float()


def blocks(net: nn.Module) -> dict[str, nn.Module]:
    """Name -> module, in order, whose composition is `net`. A residual block is one entry. UserError for other nets."""
    if isinstance(net, MobileFaceNetReLU):
        first = net.dw_conv
        opening = [first["depthwise"], first["bn1"], nn.ReLU(), first["pointwise"], first["bn2"], nn.ReLU()]
        return {
            "conv1": net.conv1,
            "dw_conv": nn.Sequential(*opening),
            **{f"features.{i}": block for i, block in enumerate(net.features)},
            "conv2": net.conv2,
            "gdconv": nn.Sequential(net.gdconv["depthwise"], net.gdconv["bn"]),
            "embedding": nn.Sequential(net.conv3, nn.Flatten(), Float(), net.bn),
        }
    if isinstance(net, IResNet):
        layers = {f"layer{s}.{i}": b for s in (1, 2, 3, 4) for i, b in enumerate(getattr(net, f"layer{s}"))}
        top = nn.Sequential(net.bn2, nn.Flatten(), net.dropout, net.fc, Float(), net.features)
        return {"stem": nn.Sequential(net.conv1, net.bn1, net.prelu), **layers, "embedding": top}
    raise UserError(f"{type(net).__name__}: no trunk that can be cut; use a MobileFaceNet or an IResNet")


def split(net: nn.Module, cuts: Sequence[str] = ()) -> list[nn.Sequential]:
    """The stages of `net`, a list of nn.Sequential that share its modules. `cuts`: blocks that begin stage 2, 3, ...

    Raises UserError for a cut that names no block, lies inside a residual block (its skip would cross the cut), or is
    out of order.
    """
    known = blocks(net)
    names, cuts = list(known), tuple(cuts) or CUTS[type(net)]
    for cut in cuts:
        inside = next((n for n in names if cut.startswith(n + ".")), None)
        if inside:
            raise UserError(f"--cuts {cut}: lies inside the residual block {inside}; cut before {inside} or after it")
        if cut not in names[1:]:
            raise UserError(f"--cuts {cut}: no block of this trunk; known are {', '.join(names[1:])}")
    places = [0, *(names.index(cut) for cut in cuts), len(names)]
    if places != sorted(set(places)):
        raise UserError(f"--cuts {' '.join(cuts)}: give each block once, from the input to the top")
    return [nn.Sequential(*(known[n] for n in names[a:b])) for a, b in itertools.pairwise(places)]


def reinitialise(module: nn.Module) -> None:
    """New random weights (torch's defaults, convolutions by Kaiming's rule) and fresh statistics, in place."""
    for layer in module.modules():
        reset: Any = getattr(layer, "reset_parameters", None)
        if reset is not None:
            reset()
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


Learner = TypeVar("Learner", bound=nn.Module)


def fold(learner: Learner) -> Learner:
    """Merge each BatchNorm that follows a convolution in an nn.Sequential into it, and keep the others' statistics.

    `learner`: a Branch, a SharedNet whose trunk moves, or a stage of a frozen trunk. It computes the same up to
    rounding and relearns faster: a quarter to a half less time a step on a CPU. In place; returns it.
    """
    if isinstance(learner, Branch | SharedNet):
        learner.keep_statistics = True
    for block in list(learner.modules()):
        if isinstance(block, nn.Sequential):
            for (name, conv), (after, norm) in itertools.pairwise(list(block.named_children())):
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    learns = conv.weight.requires_grad
                    merged = fuse_conv_bn_eval(conv.eval(), norm.eval()).requires_grad_(learns)
                    setattr(block, name, merged)
                    setattr(block, after, nn.Identity())
    return learner


def hidden_width(parameters: int, features: int, classes: int) -> int:
    """Width of one hidden layer that gives a head on the embedding about as many parameters as a branch has."""
    return max(1, math.floor((parameters - classes) / (features + 1 + classes)))
