"""What a student is asked to match: each embedding (order 1), distances (order 2) and angles (order 3) of a batch.

Of the paper only the abstract and third-party summaries could be read. Three streams, two stages and three orders
follow those; the loss forms of orders 2 and 3 and their weights follow RKD (Park et al., CVPR 2019, as its public code
computes them); everything else is our choice.

Notation: s_i, t_i are the embeddings of sample i by student and source (teacher or assistant), N samples in a batch,
h is the Huber loss with delta 1. All losses see float32 embeddings and return float32 whatever the input, and none
sends a gradient to the source. Their means run over ALL N (order 1), N^2 (order 2) and N^3 (order 3) entries, the
degenerate ones included, as RKD's do.

Orders 2 and 3 are each written twice: `..._by_definition` shows what is meant, and the loss that trains computes the
same from the Gram matrix of the batch, by far less work; see `_squared_distances`.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from facepapers.common.cli import UserError
from facepapers.common.training.losses import LEAST, directions

TRIPLES_AT_ONCE = 2**19  # entries of the N^3 angle tensor that are held at a time: two tensors of 4 MiB
COINCIDE = 1e-3  # samples nearer than this share of the mean distance have no direction: its gradient is 1 / distance
COLLAPSED = 1e-6  # nor has a batch a scale that lies nearer to its mean than this share of its length: what float32
# leaves of equal samples. Above it distances are told from each other however far from the origin the batch lies.
NEAR = 1e-8  # ||a - b||^2 below this share of ||a||^2 + ||b||^2 is taken from a - b: the Gram form loses 8 digits
EVEN = 16  # where the longest distance is less than this times the shortest, float32 keeps what a sum of them pulls
GRAM_ROWS = 64  # rows of a Gram matrix that are computed at a time, right of the diagonal only


# ---- Order 1


def point_loss(student: torch.Tensor, source: torch.Tensor, normalise: bool = True) -> torch.Tensor:
    """Mean over i of ||s_i - t_i||^2, a scalar; with `normalise` both are scaled to unit length first (our choice).

    An embedding of no length, compared with the batch's, has no direction: it becomes 0, without gradient.
    student, source (N, d) of one width: see `project` of nets.Learner for embeddings of different widths.
    Raises UserError for inputs that do not fit each other.
    """
    student, source = _checked(student, source, same_width=True)
    if normalise:
        student, source = directions(student), directions(source)
    return (student - source).square().sum(1).mean()


# ---- Orders 2 and 3 rest on squared distances


def _squared_distances(x):
    """y = x - mean (N, d) and p_ij = ||x_i - x_j||^2 (N, N), both float64; p is 0 on its diagonal.

    p_ij = ||y_i||^2 + ||y_j||^2 - 2 y_i y_j loses what both lengths have in common. The mean is subtracted first, so
    that a batch far from the origin loses nothing, and float64 keeps more digits than float32 embeddings have, unless
    two samples are NEAR: their difference is taken directly, and coinciding samples are at distance 0 exactly. So are
    all samples of a collapsed batch.
    """
    x = x.cpu() if x.device.type == "mps" else x  # Apple's GPUs have no float64
    y = x.double() - x.mean(0)  # a mean in float32 does: any point amid the batch would
    square = torch.linalg.vector_norm(y, dim=1).square_()
    if _collapsed(x):
        return y, y.new_zeros(len(y), len(y))
    p = y.new_empty(len(y), len(y))
    for first in range(0, len(y), GRAM_ROWS):
        rows, below = slice(first, first + GRAM_ROWS), slice(first + GRAM_ROWS, None)
        right = p[rows, first:]
        torch.addmm(square[first:], y[rows], y[first:].T, alpha=-2, out=right).add_(square[rows].unsqueeze(1))
        if first + GRAM_ROWS < len(y):
            p[below, rows] = p[rows, below].T
    p.fill_diagonal_(math.inf)
    if p.min() <= 2 * NEAR * square.max():
        near = (p <= NEAR * (square.unsqueeze(1) + square)).nonzero()
        for pairs in near.split(max(1, TRIPLES_AT_ONCE // y.shape[1])):
            i, j = pairs.T
            p[i, j] = (y[i] - y[j]).square().sum(1)
    return y, p.fill_diagonal_(0)


def _collapsed(x):
    """Whether the samples x (N, d) have no distances from each other, but for what rounding leaves (a tensor)."""
    x = x.detach().double()
    length = x.square().sum(1).mean().sqrt()
    return (x - x.mean(0)).square().sum(1).mean().sqrt() <= (COLLAPSED * length).clamp(min=LEAST)


def _pull(weight, y):
    """Gradient at y (N, d) of sum_ij weight_ij ||y_i - y_j||^2 / 4: row i is sum_j weight_ij (y_i - y_j).

    weight (N, N) is symmetric and is changed.
    """
    weight.diagonal().sub_(weight.sum(1))
    return weight.neg_() @ y


# ---- Order 2


def distance_loss_by_definition(student: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Order 2 as it reads (RKD, distance-wise): mean over i, j of h(d^s_ij - d^t_ij), d of `relative_distances`."""
    return F.huber_loss(relative_distances(student), relative_distances(source))


def relative_distances(x: torch.Tensor) -> torch.Tensor:
    """(N, N) Euclidean distances over the mean of those that are not zero; all zero where the batch is collapsed.

    Differences are taken directly: ||a||^2 + ||b||^2 - 2ab loses small distances even in float32.
    """
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").masked_fill(_collapsed(x), 0)
    mean = distance.sum() / (distance > 0).sum().clamp(min=1)
    return distance / torch.where(mean > 0, mean, 1.0)


def distance_loss(student: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """The value and gradient of `distance_loss_by_definition`, faster.

    student (N, d), source (N, e): widths may differ. Coinciding samples have distance 0 and get no gradient.
    """
    student, source = _checked(student, source)
    return _DistanceLoss.apply(student, source)


class _DistanceLoss(torch.autograd.Function):
    """With a = d / m, m the mean of the n distances that are not zero, and h' = clamp the slope of h at a^s - a^t:

    dL / dd_ij = (h'_ij - sum(h' a) / n) / m / N^2, and dd_ij / dp_ij = 1 / (2 d_ij) leads to the embeddings by `_pull`.
    """

    @staticmethod
    def forward(ctx, student, source):
        (y, p), (_, q) = _squared_distances(student), _squared_distances(source)
        (a, mean, n), (b, _, _) = _over_mean(p), _over_mean(q)
        gap = a - b
        slope = gap.clamp(-1, 1)
        total = _huber_sum(gap, slope)
        slope -= _dot(slope, a) / n
        weight = slope.mul_(a).div_(a.square().clamp_(min=1e-200))  # slope / a, and 0 where a is 0
        shortest, longest = torch.aminmax(a.fill_diagonal_(1))  # the mean is 1
        y = y.to(student.dtype) if longest < EVEN * shortest else y
        ctx.save_for_backward(y, weight, mean)
        ctx.dtype = student.dtype
        return (total / len(y) ** 2).to(student)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        y, weight, mean = ctx.saved_tensors
        scale = 2 * grad.to(mean) / (mean * len(y)).square()
        return _pull((weight * scale).to(y.dtype), y).to(grad.device, ctx.dtype), None


def _over_mean(p):
    """sqrt(p) over the mean of its entries that are not zero, that mean (not 0), and their number (not 0)."""
    d = p.sqrt_()
    n = torch.count_nonzero(d).clamp(min=1)
    mean = (d.sum() / n).clamp(min=1e-100)
    return d.div_(mean), mean, n


def _huber_sum(gap, slope):
    """Sum of h(gap), where slope = h'(gap) = clamp(gap, -1, 1) and h(gap) = slope * (gap - slope / 2)."""
    return _dot(slope, gap) - _dot(slope, slope) / 2


def _dot(x, y):
    return torch.dot(x.view(-1), y.view(-1))


def centre_loss(student: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Mean over i of h on the distance to the batch's mean embedding, over its mean. Ours and off by default.

    Third parties mention a term with a centre; what the paper's is, is unknown.
    """
    student, source = _checked(student, source)
    return F.huber_loss(_to_centre(student), _to_centre(source))


def _to_centre(x):
    offset = (x - x.mean(0)).square().sum(1)
    distance = (torch.where(offset == 0, 1.0, offset).sqrt() * (offset != 0)).masked_fill(_collapsed(x), 0)
    mean = distance.mean()
    return distance / torch.where(mean > 0, mean, 1.0)


# ---- Order 3


def angle_loss_by_definition(student: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Order 3 as it reads (RKD, angle-wise): mean over i, j, k of h(cos^s_ijk - cos^t_ijk), all N^3 cosines at once.

    cos_ijk = <e_ij, e_ik> with e_ij = (x_j - x_i) / ||x_j - x_i||, and e_ij = 0 without gradient where both coincide.
    """
    cosines = []
    for x in (student, source):
        difference = x.unsqueeze(0) - x.unsqueeze(1)
        length = difference.norm(dim=2, keepdim=True)
        e = difference / length.masked_fill((length <= COINCIDE * length.mean()) | _collapsed(x), math.inf)
        cosines.append(e @ e.mT)
    return F.huber_loss(*cosines)


def angle_loss(student: torch.Tensor, source: torch.Tensor, chunk: int | None = None) -> torch.Tensor:
    """The value and gradient of `angle_loss_by_definition`, faster and without its memory.

    student (N, d), source (N, e). `chunk` vertices i are held at a time (None: as many as keep TRIPLES_AT_ONCE), so
    memory grows with N^2 and not with N^3; value and gradient do not depend on it. The work is N^3 whatever the
    widths. Coinciding samples have no direction: e_ij = 0, without gradient.
    """
    student, source = _checked(student, source)
    n = len(student)
    return _AngleLoss.apply(student, source, min(n, chunk or max(1, TRIPLES_AT_ONCE // n**2)))


class _AngleLoss(torch.autograd.Function):
    """`angle_loss_by_definition` from squared distances p = d^2 alone, by the law of cosines. With h' = clamp:

        cos_ijk = (p_ij + p_ik - p_jk) / (2 d_ij d_ik)
        t_ijk = h'(cos^s_ijk - cos^t_ijk) / (d_ij d_ik)                   symmetric in j and k; L = sum h / N^3
        N^3 dL/dp_jk = -1/2 sum_i t_ijk                                   as the side that faces vertex i
        N^3 dL/dp_ik = +1/2 sum_j t_ijk (1 - (p_ij - p_jk) / p_ik)        as a side at vertex i
        dL/dy from dL/dp + its transpose by `_pull`                       as p_jk and p_kj are one distance

    The gradient is computed beside the value, chunk by chunk, so that nothing of size N^3 waits for backward.
    """

    @staticmethod
    def forward(ctx, student, source, chunk):
        (y, p), (_, q) = _squared_distances(student), _squared_distances(source)
        total, weight = _angle_sums(p, q, chunk, ctx.needs_input_grad[0])
        ctx.save_for_backward(y, weight)
        ctx.dtype = student.dtype
        return (total / len(y) ** 3).to(student)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        y, weight = ctx.saved_tensors
        scale = 2 * grad.to(y) / len(y) ** 3
        return _pull((weight + weight.T) * scale, y).to(grad.device, ctx.dtype), None, None


def _angle_sums(p, q, chunk, with_slopes):
    """Sum over i, j, k of h(cos^s_ijk - cos^t_ijk) and its derivative by p (N, N), from squared distances p and q.

    The law of cosines with d = sqrt(p), r = 1 / d: 2 cos_ijk = d_ij r_ik + r_ij d_ik - p_jk r_ij r_ik. The first two
    products of both sides are one matrix product of depth 4 for each vertex i.
    """
    (d, r), (f, u) = _lengths(p), _lengths(q)
    left, right = torch.stack([d, r, -f, -u], 2) / 2, torch.stack([r, d, u, f], 1)
    one_and_p = torch.stack([torch.ones_like(p), p], 1)
    total, slopes = p.new_zeros(()), torch.zeros_like(p)
    gaps, works = p.new_empty(2, chunk, *p.shape)
    for first in range(0, len(p), chunk):
        v = slice(first, first + chunk)
        gap, work = gaps[: len(p) - first], works[: len(p) - first]  # (chunk, N, N), the last ones fewer
        torch.bmm(left[v], right[v], out=gap)
        for squares, inverse, sign in ((p, r[v], -0.5), (q, u[v], 0.5)):
            torch.mul(squares, inverse.unsqueeze(1), out=work)
            gap.addcmul_(work, inverse.unsqueeze(2), value=sign)
        slope = torch.clamp(gap, -1, 1, out=work)
        total += _huber_sum(gap, slope)
        if with_slopes:
            # With t_jk = h'_jk r_ij r_ik, symmetric: p_jk gets -t_jk / 2,
            # p_ik gets sum_j t_jk (1 - r_ik^2 (p_ij - p_jk)) / 2.
            t = slope.mul_(r[v].unsqueeze(1)).mul_(r[v].unsqueeze(2))
            slopes -= t.sum(0)
            t_sum, t_p = torch.bmm(one_and_p[v], t).unbind(1)
            slopes[v] += t_sum - r[v].square() * (t_p - t.mul_(p).sum(1))
    return total, slopes / 2


def _lengths(p):
    """d = sqrt(p) and r = 1 / d, both 0 for samples that coincide: nearer than COINCIDE of the mean distance."""
    d = p.sqrt()
    r = 1 / d.masked_fill(d <= COINCIDE * d.mean(), math.inf)
    return p * r, r


# ---- Baselines


def kd_loss(student_logits: torch.Tensor, source_logits: torch.Tensor, temperature: float = 4.0) -> torch.Tensor:
    """Hinton et al. 2015: T^2 KL(softmax(z_t / T) || softmax(z_s / T)), mean over the batch; logits (N, C)."""
    student, source = _checked(student_logits, source_logits, same_width=True)
    log_s, log_t = (F.log_softmax(z / temperature, dim=1) for z in (student, source))
    return temperature**2 * F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)


def hint_loss(student_map: torch.Tensor, source_map: torch.Tensor) -> torch.Tensor:
    """FitNets (Romero et al. 2015): mean squared difference of feature maps (N, C, H, W) of equal C.

    The larger map is averaged down to the smaller one's size.
    """
    if student_map.shape[:2] != source_map.shape[:2]:
        raise UserError(f"hint maps {tuple(student_map.shape)} and {tuple(source_map.shape)}: batch or channels differ")
    side = min(student_map.shape[-1], source_map.shape[-1])
    student, source = (F.adaptive_avg_pool2d(m.float(), side) for m in (student_map, source_map.detach()))
    return F.mse_loss(student, source)


# ---- Together


ORDERS = {1: point_loss, 2: distance_loss, 3: angle_loss}


def relational_losses(
    student: torch.Tensor,
    source: torch.Tensor,
    orders: Sequence[int],
    projected: torch.Tensor | None = None,
    normalise_source: bool = True,
    normalise_point: bool = True,
) -> dict[int, torch.Tensor]:
    """{order: loss} of a batch. The source is L2-normalised for orders 2 and 3, the student is not (RKD's practice).

    student (N, d), source (N, e). `projected` (N, e) is the student mapped to the source's width, for order 1.
    """
    reference = F.normalize(source.detach().float(), dim=1) if normalise_source else source
    losses = {order: ORDERS[order](student, reference) for order in orders if order > 1}
    if 1 in orders:
        losses[1] = point_loss(student if projected is None else projected, source, normalise_point)
    return losses


def _checked(student, source, same_width=False):
    """Both rounded to float32, the source detached. UserError for shapes that cannot be compared."""
    if student.dim() != 2 or source.dim() != 2 or len(student) != len(source):
        raise UserError(f"student {tuple(student.shape)} and source {tuple(source.shape)}: both must be (N, width)")
    if same_width and student.shape[1] != source.shape[1]:
        raise UserError(
            f"student width {student.shape[1]}, source width {source.shape[1]}: order 1 and logits need equal widths; "
            "project the student, or match relations (orders 2, 3) only"
        )
    if len(student) < 2:
        raise UserError(f"a batch of {len(student)} sample has no relations; use --batch 2 or more per step")
    return student.float(), source.detach().float()
