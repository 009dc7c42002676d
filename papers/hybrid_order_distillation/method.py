"""What a student is asked to match: each embedding (order 1), distances (order 2) and angles (order 3) of a batch.

Of the paper only the abstract and third-party summaries could be read. Three streams, two stages and three orders
follow those; the loss forms of orders 2 and 3 and their weights follow RKD (Park et al., CVPR 2019, as its public code
computes them); everything else is our choice.

Notation: s_i, t_i are the embeddings of sample i by student and source (teacher or assistant), N samples in a batch,
h is the Huber loss with delta 1. All losses are computed in float32 whatever the input, and none sends a gradient to
the source. Their means run over ALL N (order 1), N^2 (order 2) and N^3 (order 3) entries, the degenerate ones included,
as RKD's do.
"""

import torch
import torch.nn.functional as F

from common.cli import UserError

TRIPLES_AT_ONCE = 2**22  # entries of the N^3 angle tensor that are held at a time, 16 MiB of float32
COINCIDE = 1e-5  # two samples nearer than this share of the mean distance have no direction to each other in float32


# ---- Order 1


def point_loss(student, source, normalise=True):
    """Mean over i of ||s_i - t_i||^2, a scalar; with `normalise` both are scaled to unit length first (our choice).

    student, source (N, d) of one width: see `project` of nets.Learner for embeddings of different widths.
    Raises UserError for inputs that do not fit each other.
    """
    student, source = _checked(student, source, same_width=True)
    if normalise:
        student, source = F.normalize(student, dim=1), F.normalize(source, dim=1)
    return (student - source).square().sum(1).mean()


# ---- Order 2


def distance_loss(student, source):
    """Mean over i, j of h(d^s_ij - d^t_ij), where d_ij = ||x_i - x_j|| over its batch mean (RKD, distance-wise).

    student (N, d), source (N, e): widths may differ. Coinciding samples have distance 0 and get no gradient.
    """
    student, source = _checked(student, source)
    return F.huber_loss(relative_distances(student), relative_distances(source))


def relative_distances(x):
    """(N, N) Euclidean distances over the mean of those that are not zero; all zero when all samples coincide.

    Differences are taken directly: ||a||^2 + ||b||^2 - 2ab loses small distances even in float32.
    """
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    mean = distance.sum() / (distance > 0).sum().clamp(min=1)
    return distance / torch.where(mean > 0, mean, 1.0)


def centre_loss(student, source):
    """Mean over i of h on the distance to the batch's mean embedding, over its mean. Ours and off by default.

    Third parties mention a term with a centre; what the paper's is, is unknown.
    """
    student, source = _checked(student, source)
    return F.huber_loss(_to_centre(student), _to_centre(source))


def _to_centre(x):
    offset = (x - x.mean(0)).square().sum(1)
    distance = torch.where(offset > 0, offset, 1.0).sqrt() * (offset > 0)
    mean = distance.mean()
    return distance / torch.where(mean > 0, mean, 1.0)


# ---- Order 3


def angle_loss(student, source, chunk=None):
    """Mean over i, j, k of h(cos^s_ijk - cos^t_ijk), cos_ijk = <e_ij, e_ik>, e_ij = (x_j - x_i) / ||x_j - x_i|| (RKD).

    student (N, d), source (N, e). `chunk` vertices i are held at a time (None: as many as keep TRIPLES_AT_ONCE), so
    memory grows with N^2 and not with N^3; value and gradient do not depend on it. Coinciding samples have no
    direction: e_ij = 0, without gradient.
    """
    student, source = _checked(student, source)
    n = len(student)
    with torch.autocast(student.device.type, enabled=False):
        return _AngleLoss.apply(student, source, min(n, chunk or max(1, TRIPLES_AT_ONCE // n**2)))


class _AngleLoss(torch.autograd.Function):
    """The gradient is computed beside the value, chunk by chunk, so that nothing of size N^3 waits for backward."""

    @staticmethod
    def forward(ctx, student, source, chunk):
        total, gradient = student.new_zeros(()), torch.zeros_like(student)
        least = [COINCIDE * _mean_distance(x) for x in (student, source)]
        for first in range(0, len(student), chunk):
            vertex = slice(first, first + chunk)
            e, length = _directions(student, vertex, least[0])
            f, _ = _directions(source, vertex, least[1])
            gap = torch.baddbmm(e @ e.mT, f, f.mT, alpha=-1)  # (c, N, N)
            slope = gap.clamp(-1, 1)  # h' = clamp, and h(gap) = slope * (gap - slope / 2)
            total += torch.addcmul(slope * gap, slope, slope, value=-0.5).sum()
            if ctx.needs_input_grad[0]:
                de = 2 * (slope @ e)  # cos_ijk holds e_ij and e_ik: the slope is symmetric in j and k
                dx = (de - e * (e * de).sum(2, keepdim=True)) / length.unsqueeze(2)
                gradient += dx.sum(0)
                gradient[vertex] -= dx.sum(1)
        count = float(len(student)) ** 3
        ctx.save_for_backward(gradient / count)
        return total / count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (gradient,) = ctx.saved_tensors
        return grad * gradient, None, None


def _directions(x, vertex, least):
    """e (c, N, d) from the vertices to all samples, 0 where nearer than `least`, and lengths (c, N), 1 there."""
    difference = x.unsqueeze(0) - x[vertex].unsqueeze(1)
    length = difference.square().sum(2).sqrt()
    apart = length > least
    length = torch.where(apart, length, 1.0)
    return difference / length.unsqueeze(2) * apart.unsqueeze(2), length


def _mean_distance(x):
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").mean()


# ---- Baselines


def kd_loss(student_logits, source_logits, temperature=4.0):
    """Hinton et al. 2015: T^2 KL(softmax(z_t / T) || softmax(z_s / T)), mean over the batch; logits (N, C)."""
    student, source = _checked(student_logits, source_logits, same_width=True)
    log_s, log_t = (F.log_softmax(z / temperature, dim=1) for z in (student, source))
    return temperature**2 * F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)


def hint_loss(student_map, source_map):
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


def relational_losses(student, source, orders, projected=None, normalise_source=True, normalise_point=True):
    """{order: loss} of a batch. The source is L2-normalised for orders 2 and 3, the student is not (RKD's practice).

    student (N, d), source (N, e). `projected` (N, e) is the student mapped to the source's width, for order 1.
    """
    reference = F.normalize(source.detach().float(), dim=1) if normalise_source else source
    losses = {order: ORDERS[order](student, reference) for order in orders if order > 1}
    if 1 in orders:
        losses[1] = point_loss(student if projected is None else projected, source, normalise_point)
    return losses


def _checked(student, source, same_width=False):
    """Both in float32, the source detached. UserError for shapes that cannot be compared."""
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
