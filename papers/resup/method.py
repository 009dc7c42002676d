"""ReSup: how likely is a label right? Similarity of prediction and label, a Beta mixture over it, swapped decisions.

Zhang et al., arXiv 2305.17895. The abstract names the parts; formulas and constants are those of the authors' released
code (there is no other public source), guards and the settings marked "ours" are not.

    s = cos(softmax(f(x)), one-hot(y))                     how far a network agrees with the given label
    s ~ share_0 Beta(alpha_0, beta_0) + share_1 Beta(alpha_1, beta_1)   0: flipped labels, 1: clean ones
    w = P(clean | s), from a table                         the weight of the sample
    L = mean( w^1 CE(p^0, y) + w^0 CE(p^1, y) + 5 mean_k (p^0_k - p^1_k)^2 )      each network weighs for the other

Shapes: B samples of a batch, N of the training set, K classes, M networks (1 or 2).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from facepapers.common.training.losses import class_numbers

POINTS = 100  # resolution of the posterior's table
EM_STEPS = 10
EDGE = 1e-3  # similarities of 0 and 1 become EDGE and 1 - EDGE before the fit
CLIP = 1e-4  # inside the fit values, and weights always, lie in [CLIP, 1 - CLIP]
TINY = 1e-12  # floor of joint likelihoods
ANCHOR = 0.9  # quantile of the largest outputs that stands for a face without doubt (ours)
PERCENTILES = (0.05, 0.95)  # the loss-based ancestor's range (Arazo et al., ICML 2019)
# Guards, ours: with less variance or a smaller share a component is no distribution any more.
LEAST_VARIANCE, LEAST_SHARE, LEAST_SAMPLES = 1e-6, 1e-3, 10


# ---- Agreement of prediction and label


def similarity(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cosine (B,) in [0, 1] between softmax(logits (B, K)) and the one-hot labels (B,)."""
    return agreement(logits.float().softmax(-1), labels)


def agreement(p: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cosine (B,) between outputs p (B, K), which sum to one, and the one-hot labels (B,): p_y / ||p||."""
    return p.gather(-1, class_numbers(labels, p.device).unsqueeze(-1)).squeeze(-1) / p.norm(dim=-1)


def loss_range(losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(low, high), the 5th and 95th percentile of the losses (N,): the range by which the ancestor normalises."""
    low, high = torch.quantile(losses.float(), torch.tensor(PERCENTILES, device=losses.device))
    return low, high


def small_loss(losses: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Losses as evidence for a clean label: 1 at `low` and below, 0 at `high` and above, linear between."""
    return 1 - ((losses - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)


# ---- Two-component Beta mixture


@dataclass(frozen=True)
class Mixture:
    """Component 1 is the one with the higher mean: clean labels."""

    alpha: torch.Tensor  # (2,)
    beta: torch.Tensor  # (2,)
    share: torch.Tensor  # (2,), sums to one

    @property
    def mean(self) -> torch.Tensor:
        return self.alpha / (self.alpha + self.beta)


def start() -> Mixture:
    """The mixture before the first EM step: Beta(1, 2) and Beta(2, 1), equal shares."""
    alpha, beta, share = torch.tensor([[1, 2], [2, 1], [0.5, 0.5]], dtype=torch.float64)
    return Mixture(alpha, beta, share)


def logs(values: torch.Tensor) -> torch.Tensor:
    """log x and log(1 - x), (2, N) float64, of values (N,) clipped as in the fit: all that a Beta's density needs."""
    x = values.double().clamp(CLIP, 1 - CLIP)
    return torch.stack([x.log(), (1 - x).log()])


def log_joint(mixture: Mixture, known: torch.Tensor) -> torch.Tensor:
    """log(share_k Beta(x; alpha_k, beta_k)) (2, N) of the values with `logs` known (2, N), floored at log(TINY)."""
    powers = torch.stack([mixture.alpha, mixture.beta], 1)
    scale = powers.sum(1).lgamma() - powers.lgamma().sum(1)  # -log of the Beta function
    return torch.addmm((mixture.share.log() + scale).unsqueeze(1), powers - 1, known).clamp(min=math.log(TINY))


def posterior(mixture: Mixture, values: torch.Tensor) -> torch.Tensor:
    """P(clean | value) (N,)."""
    likelihood = log_joint(mixture, logs(values)).exp()
    return likelihood[1] / (likelihood.sum(0) + TINY)


def moments(mean: torch.Tensor, variance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(alpha, beta) of the components from their means (2,) and variances (2,) (method of moments)."""
    most = mean * (1 - mean)  # a Beta's variance lies below this
    t = most / torch.minimum(variance.clamp(min=LEAST_VARIANCE), 0.999 * most) - 1
    return mean * t, (1 - mean) * t


def fit(values: torch.Tensor) -> Mixture | None:
    """The Mixture of values (N,) in [0, 1] by EM, or None where no two components can be told apart.

    None (the caller keeps its last good fit) stands for: too few or constant values, values that are not finite, a
    component that died, or one that does not lie above the other.

    Logarithms and powers of the values are taken once. A step then is two products with them and a sigmoid: the second
    component's responsibility, of which the first one's is the rest. Powers are of distances to the overall mean, so
    that little cancels in the variances.
    """
    x = values.detach().cpu().double()
    if len(x) < LEAST_SAMPLES or not torch.isfinite(x).all() or x.var() < LEAST_VARIANCE:
        return None
    x = torch.where(x <= 0, EDGE, torch.where(x >= 1, 1 - EDGE, x)).clamp(CLIP, 1 - CLIP)
    known, centre = logs(x), x.mean()
    powers = torch.stack([torch.ones_like(x), x - centre, (x - centre).square()])
    total = powers.sum(1)
    mixture = start()
    for _ in range(EM_STEPS):
        low, high = log_joint(mixture, known)
        clean = powers @ torch.sigmoid(high - low)
        count, first, second = torch.stack([total - clean, clean], 1)
        share = count / len(x)
        if share.min() < LEAST_SHARE:
            return None
        shift = first / count
        mixture = Mixture(*moments(centre + shift, second / count - shift.square()), share)
    return in_order(mixture)


def in_order(mixture: Mixture) -> Mixture | None:
    """The mixture with component 1 above component 0; None where its means are equal or a number is not finite."""
    if mixture.mean[1] < mixture.mean[0]:
        mixture = Mixture(mixture.alpha.flip(0), mixture.beta.flip(0), mixture.share.flip(0))
    finite = all(torch.isfinite(part).all() for part in (mixture.alpha, mixture.beta, mixture.share))
    return mixture if finite and mixture.mean[1] > mixture.mean[0] else None


def table(mixture: Mixture) -> torch.Tensor:
    """P(clean | value) at POINTS equally spaced values, (POINTS,) float32, monotone.

    The ratio of two Betas has at most one extremum. Right of a maximum the table stays at it, as in the released code;
    left of a minimum too (ours), for otherwise the least plausible labels would gain weight: by the ratio itself, or
    where both densities lie at their floor. The two ends count as CLIP and 1 - CLIP, as in the fit;
    the released code has them at 1e-12 and 1 - 1e-12 (NOTES.md: what this changes).
    """
    p = posterior(mixture, torch.linspace(TINY, 1 - TINY, POINTS, dtype=torch.float64))
    place = torch.arange(POINTS)
    high = p.argmax()
    p = torch.where(place > high, p[high], p)
    low = p.argmin()
    return torch.where(place < low, p[low], p).float()


def look_up(table: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Weights (B,) of values (B,) from a `table` (POINTS,): the point floor(100 value), clipped."""
    return table[(values * POINTS).long().clamp(0, POINTS - 1)].clamp(CLIP, 1 - CLIP)


# ---- What a network believes about the training set, kept from one epoch's end to the next


class NoiseModel(nn.Module):
    """One network's noise model: its mixture as a table, and its belief and weight (1 before a fit) for each sample.

    `keep_labels`: hold the (samples, classes) table of distributions over the true labels, for a row that trains on it.
    """

    table: torch.Tensor  # buffers, made below
    range: torch.Tensor
    shape: torch.Tensor
    share: torch.Tensor
    weight: torch.Tensor
    belief: torch.Tensor
    rate: torch.Tensor
    labels: torch.Tensor | None

    def __init__(self, samples: int, classes: int, keep_labels: bool = False):
        super().__init__()
        self.register_buffer("table", torch.ones(POINTS))
        self.register_buffer("range", torch.tensor([0.0, 1.0]))  # of losses, for the loss-based mixture
        self.register_buffer("shape", torch.full((2, 2), torch.nan))  # alpha and beta, for records
        self.register_buffer("share", torch.full((2,), torch.nan))
        self.register_buffer("weight", torch.ones(samples))
        self.register_buffer("belief", torch.full((samples, classes), 1 / classes))  # softmax of its last pass
        # By Bayes' rule (ours): the rate of flips, and each sample's distribution over the true labels.
        self.register_buffer("rate", torch.tensor(torch.nan))
        self.register_buffer("labels", torch.full((samples, classes), 1 / classes) if keep_labels else None)

    def evidence(self, logits: torch.Tensor, labels: torch.Tensor, kind: str) -> torch.Tensor:
        """(B,) in [0, 1]: similarity, or for kind "loss" the normalised loss turned round."""
        if kind == "similarity":
            return similarity(logits, labels)
        labels = class_numbers(labels, logits.device)
        return small_loss(F.cross_entropy(logits.float(), labels, reduction="none"), *self.range)

    def refit(self, logits: torch.Tensor, labels: torch.Tensor, kind: str) -> bool:
        """Fit to the whole training set's logits (N, K); True when it worked, else the last good fit stays.

        Kind "bayes" has nothing to fit but the rate of flips, once. Cross-entropies are computed for kind "loss" alone.
        """
        p, labels = logits.float().softmax(-1), class_numbers(labels, logits.device)
        self.belief.copy_(p)
        if kind == "bayes":
            rate = flip_rate(p) if self.rate.isnan() else self.rate  # later networks imitate the true labels
            self.believe(labels, posterior_labels(p, labels, rate), rate)
            return True
        if kind == "loss":
            mixture, values = self.fit_losses(F.cross_entropy(logits.float(), labels, reduction="none"))
        else:
            values = agreement(p, labels)
            mixture = fit(values)
        if mixture is not None:
            self.table.copy_(table(mixture))
            self.shape.copy_(torch.stack([mixture.alpha, mixture.beta]))
            self.share.copy_(mixture.share)
        self.weight.copy_(look_up(self.table, values))
        return mixture is not None

    def fit_losses(self, losses: torch.Tensor) -> tuple[Mixture | None, torch.Tensor]:
        """(mixture or None, values (N,)) of losses (N,): fitted within their range, which is kept where that works."""
        low, high = loss_range(losses)
        mixture = fit(small_loss(losses, low, high)[(losses >= low) & (losses <= high)])
        if mixture is not None:  # else the last good fit belongs to the losses' range at its time
            self.range.copy_(torch.stack([low, high]))
        return mixture, small_loss(losses, *self.range)

    def believe(self, labels: torch.Tensor, distributions: torch.Tensor, rate: torch.Tensor) -> None:
        """Keep the flips' rate and, where asked for, distributions (N, K) of the true labels.

        The weight of a given label (N,) is its part.
        """
        self.rate.copy_(rate)
        if self.labels is not None:
            self.labels.copy_(distributions)
        self.weight.copy_(distributions.gather(1, labels.unsqueeze(1)).squeeze(1))

    def weigh(self, logits: torch.Tensor, labels: torch.Tensor, kind: str) -> torch.Tensor:
        """Weights (B,) of a batch from its present logits."""
        labels = class_numbers(labels, logits.device)
        if kind == "bayes":
            p = logits.detach().float().softmax(-1)
            return posterior_labels(p, labels, self.rate).gather(1, labels.unsqueeze(1)).squeeze(1)
        return look_up(self.table, self.evidence(logits.detach(), labels, kind))


NoiseModels = Any  # an nn.ModuleList of NoiseModel: torch types its entries as nn.Module only


# ---- The loss


def weighted_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor,
    consistency: float = 0.0,
    targets: torch.Tensor | None = None,
    smoothing: float = 0.0,
) -> torch.Tensor:
    """The loss of one batch, a scalar: sum over the networks, mean over the batch (never divided by the weights' sum).

    logits (M, B, K), labels (B,); `weights` (M, B) is what network m's cross-entropy is multiplied with. `consistency`
    times the mean squared difference of the two softmaxes is added. Ours: `targets` (B, K) are distributions that take
    the rest 1 - w of a sample's mass; `smoothing` moves that share of each label to all classes.
    """
    k = logits.shape[-1]
    one_hot = F.one_hot(class_numbers(labels, logits.device), k) * (1 - smoothing) + smoothing / k
    goal = weights.unsqueeze(-1) * one_hot
    if targets is not None:
        goal = goal + (1 - weights).unsqueeze(-1) * targets
    return distribution_loss(logits, goal, consistency)


def distribution_loss(logits: torch.Tensor, goal: torch.Tensor, consistency: float = 0.0) -> torch.Tensor:
    """Cross-entropy of logits (M, B, K) to a mass (M, B, K) or (B, K) on the classes, and the consistency; a scalar."""
    log_p = logits.float().log_softmax(-1)
    loss = -(goal * log_p).sum(-1).mean(1).sum()
    if consistency and len(logits) == 2:
        loss = loss + consistency * (log_p[0].exp() - log_p[1].exp()).square().mean()
    return loss


def swap(weights: torch.Tensor) -> torch.Tensor:
    """Each network's weights (M, B) handed to the other one."""
    return weights.flip(0)


# ---- Bayes' rule in place of the mixture, ours: each label as a distribution over the true classes


def flip_rate(p: torch.Tensor) -> torch.Tensor:
    """Estimate (a scalar) of the rate r of symmetric flips, from outputs p (N, K) that imitate the given labels.

    A face that cannot be mistaken keeps its label with probability 1 - r, the highest output that such a network should
    have (the anchor points of Patrini et al., CVPR 2017, with the 90 % quantile for the largest, which is an outlier).
    """
    k = p.shape[1]
    return (1 - torch.quantile(p.max(1).values.float(), ANCHOR)).clamp(max=0.99 * (k - 1) / k)


def without_flips(p: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
    """P(true label | face) (N, K) from P(given label | face): undoes p = (1 - r - e) q + e, with e = r / (K - 1)."""
    e = rate / (p.shape[1] - 1)
    q = ((p - e) / (1 - rate - e)).clamp(min=CLIP)
    return q / q.sum(1, keepdim=True)


def posterior_labels(q: torch.Tensor, labels: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
    """P(true label | face, given label) (N, K) by Bayes' rule, from q (N, K) = P(true label | face) and labels (N,).

    The likelihood of the given label is 1 - r if it is true, and r / (K - 1) under every other true label.
    """
    k = q.shape[1]
    likelihood = torch.where(F.one_hot(class_numbers(labels, q.device), k).bool(), 1 - rate, rate / (k - 1))
    joint = (q * likelihood).clamp(min=TINY)
    return joint / joint.sum(1, keepdim=True)


# ---- Co-teaching (Han et al., NeurIPS 2018), for comparison


def forget_share(rate: float, epoch: int, ramp: int) -> float:
    """Share of a batch that is dropped: grows linearly to the noise rate over `ramp` epochs."""
    return rate * min(1.0, epoch / max(1, ramp))


def coteaching_weights(losses: torch.Tensor, dropped: float) -> torch.Tensor:
    """Weights (M, B) that leave each network the mean over the (1 - dropped) B samples of the other's smallest loss.

    `losses` (M, B) are of the whole batch.
    """
    batch = losses.shape[1]
    keep = max(1, round((1 - dropped) * batch))
    chosen = losses.argsort(dim=1, stable=True)[:, :keep]
    return swap(torch.zeros_like(losses).scatter_(1, chosen, batch / keep))
