"""A class-sharded, sampled margin head for very many identities (Partial FC, An et al. 2021), over torch.distributed.

Each of R ranks owns a contiguous range of the classes. Embeddings are gathered from all ranks, each rank computes
the logits of its own classes, and the softmax denominator is summed over the ranks: no rank ever holds the full
matrix or the full logits. With `rate` < 1 a step uses the batch's own classes and a random part of the others, so
that logits, gradients and updates cost memory in proportion to the sampled classes. With `rate` = 1 loss and
gradients are those of the dense head. Without torch.distributed there is one rank.
"""

import torch
import torch.distributed as dist
from torch import nn

from facepapers.common.cli import UserError
from facepapers.common.seeding import generator
from facepapers.common.training import parallel
from facepapers.common.training.losses import class_numbers
from facepapers.papers.arcface.method import MARGINS, check_batch, check_rules, cosines, target_cosine

INIT_BLOCK = 4096  # classes per seeded draw, so that W does not depend on the number of ranks


def shard(classes: int, world: int, rank: int) -> tuple[int, int]:
    """(first, last + 1) of the contiguous class range of `rank`; the first ranks take the remainder.

    Raises UserError when some rank would own no class.
    """
    if world > classes:
        raise UserError(f"{world} ranks for {classes} classes: each rank needs a class; lower --nproc-per-node")
    share, rest = divmod(classes, world)
    first = rank * share + min(rank, rest)
    return first, first + share + (rank < rest)


class ShardedHead(nn.Module):
    """This rank's rows of W, their momentum, and the loss over all ranks.

    W is no Parameter: its rows are updated by `step`, because a dense gradient of W is what sampling avoids. So
    one training step is `loss = head(x, y); loss.backward(); optimizer.step(); head.step(lr)`. DistributedDataParallel
    around the embedding network stays as it is: the gradient handed to x is that of the mean over *this* rank's
    images, which DDP then averages. Every rank must bring the same number of images.

    `rate` is the share of the classes in a step. `conflict_cosine` (0.4 in Partial FC) sets non-target logits above
    it to zero, for data in which one person carries two labels. Raises UserError for bad settings, labels outside
    0..classes-1, zero embeddings, and more ranks than classes.
    """

    weight: torch.Tensor  # buffers, made below
    momentum: torch.Tensor
    steps: torch.Tensor
    sampled: torch.Tensor | None  # rows of this step (n,), and their values (n, features) with a gradient
    active: torch.Tensor | None

    def __init__(
        self,
        classes: int,
        features: int,
        margins: tuple[float, float, float] = MARGINS["arcface"],
        scale: float = 64.0,
        rate: float = 1.0,
        seed: int = 0,
        past_pi: str = "keep_decreasing",
        gradient: str = "full",
        conflict_cosine: float | None = None,
    ) -> None:
        super().__init__()
        check_rules(past_pi, gradient)
        if not 0 < rate <= 1:
            raise UserError(f"rate {rate}: the share of sampled classes must lie in (0, 1]")
        self.first, self.last = shard(classes, parallel.world(), parallel.rank())
        self.register_buffer("weight", initial_rows(self.first, self.last, features, seed))
        self.register_buffer("momentum", torch.zeros_like(self.weight))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))  # saved: a resumed run draws on
        self.classes, self.rate, self.seed = classes, rate, seed
        self.margins, self.scale, self.past_pi, self.gradient = margins, scale, past_pi, gradient
        self.conflict_cosine = conflict_cosine
        self.sampled = self.active = None

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean loss over the images of all ranks, equal on all ranks. embeddings (b, features), labels (b,)."""
        labels = class_numbers(labels, embeddings.device)
        embeddings, labels = parallel.gather(embeddings), parallel.gather(labels)
        check_batch(embeddings, labels, self.classes)  # on the gathered batch, so that all ranks stop together
        mine = (labels >= self.first) & (labels < self.last)
        sampled = self._sample(labels[mine] - self.first)
        active = self.weight[sampled].requires_grad_()
        self.sampled, self.active = sampled, active
        self.steps += 1
        cosine = cosines(embeddings, active)
        rows = mine.nonzero().squeeze(1)
        columns = torch.searchsorted(sampled, labels[mine] - self.first)
        return _ShardedCrossEntropy.apply(self._logits(cosine, rows, columns), rows, columns)

    def _logits(self, cosine, rows, columns):
        """Scaled logits (B, n): the margin on the true classes that live here, at (rows, columns)."""
        others = cosine
        if self.conflict_cosine is not None:
            others = cosine.masked_fill(cosine > self.conflict_cosine, 0.0)
        target = target_cosine(cosine[rows, columns], self.margins, self.past_pi, self.gradient)
        return self.scale * others.index_put((rows, columns), target)

    @torch.no_grad()
    def _sample(self, positives):
        """Sorted row numbers of this step: all positives, and random others up to rate * rows."""
        rows, device = len(self.weight), self.weight.device
        if self.rate == 1:
            return torch.arange(rows, device=device)
        positives, count = positives.unique(), max(1, int(self.rate * rows))
        if len(positives) >= count:
            return positives
        seed = generator(self.seed, parallel.rank(), int(self.steps)).initial_seed()
        draw = torch.rand(rows, device=device, generator=torch.Generator(device).manual_seed(seed))
        draw.index_fill_(0, positives, 2.0)
        return draw.topk(count).indices.sort().values

    @torch.no_grad()
    def step(self, lr: float, momentum: float = 0.9, weight_decay: float = 5e-4) -> None:
        """SGD on the rows that the last forward pass used; the other rows and their momentum stay as they are."""
        if self.active is None or self.active.grad is None:
            raise RuntimeError("ShardedHead.step needs a forward and a backward pass before it")
        gradient = self.active.grad + weight_decay * self.active
        velocity = momentum * self.momentum[self.sampled] + gradient
        self.momentum[self.sampled] = velocity
        self.weight[self.sampled] = self.active - lr * velocity
        self.active = None

    def logits(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Margin-free scores (b, rows of this rank)."""
        return self.scale * cosines(embeddings, self.weight)


def initial_rows(first: int, last: int, features: int, seed: int) -> torch.Tensor:
    """Rows first..last-1 of W ~ N(0, 0.01), the same for any number of ranks."""
    blocks = range(first // INIT_BLOCK, (last - 1) // INIT_BLOCK + 1)
    rows = torch.cat([torch.randn(INIT_BLOCK, features, generator=generator(seed, block)) for block in blocks])
    offset = first - blocks[0] * INIT_BLOCK
    return rows[offset : offset + last - first] * 0.01


class _ShardedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of logits whose columns are spread over the ranks."""

    @staticmethod
    def forward(ctx, logits, rows, columns):
        """logits (B, n) of the columns here; the true class of image rows[i] is column columns[i]."""
        peak = _reduce(logits.amax(1), "max")
        probability = (logits - peak.unsqueeze(1)).exp_()
        total = _reduce(probability.sum(1), "sum")
        target = _reduce(torch.zeros_like(peak).index_put_((rows,), logits[rows, columns]), "sum")
        ctx.save_for_backward(probability.div_(total.unsqueeze(1)), rows, columns)
        return (total.log() + peak - target).mean()

    @staticmethod
    def backward(ctx, grad):
        probability, rows, columns = ctx.saved_tensors
        difference = probability.clone()
        difference[rows, columns] -= 1
        return difference * (grad / len(difference)), None, None


def _reduce(x, how):
    if parallel.world() > 1:
        dist.all_reduce(x, op=dist.ReduceOp.MAX if how == "max" else dist.ReduceOp.SUM)
    return x
