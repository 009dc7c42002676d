"""Every loss in the repository: rows of zeros, coinciding samples, collapsed batches, labels of any integer type."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from facepapers.common.cli import UserError
from facepapers.common.training import losses
from facepapers.common.vision import networks
from facepapers.papers.arcface import method as arcface
from facepapers.papers.arcface import partial
from facepapers.papers.coarse_to_fine import method as coarse_to_fine
from facepapers.papers.coarse_to_fine import variant
from facepapers.papers.face_attributes import method as attributes
from facepapers.papers.face_attributes import train as attributes_train
from facepapers.papers.hybrid_order_distillation import method as hybrid
from facepapers.papers.hybrid_order_distillation import nets
from facepapers.papers.resup import method as resup
from tests.conftest import one_line_error

torch.set_num_threads(1)
N, D = 16, 8
GEN = torch.Generator().manual_seed(0)
SOURCE, CENTRES, ORDINARY = (torch.randn(n, D, generator=GEN) for n in (N, 10, N))
LABELS = torch.arange(N) % 10


def learner_logits(x, **options):
    """Distillation's cosine classifier on embeddings x, with a centre for each class."""
    net = torch.nn.Identity()
    net.features_out = D  # the width of its embeddings
    return nets.Learner(net, scale=16.0, **options)(x).logits


class Rows(torch.nn.Module):
    """The weight of a linear layer without a bias, as a plain tensor with a gradient."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight


def learned_logits(x, weight):
    """As `learner_logits`, with a classifier that is learned."""
    net = torch.nn.Identity()
    net.features_out = D
    learner = nets.Learner(net, classes=len(weight), scale=16.0)
    learner.classifier = Rows(weight.float())
    return learner(x).logits


def identity_logits(x, weight):
    """The attributes' trunk: scaled cosines to the rows of a linear layer."""
    return attributes_train.Cosines(torch.nn.ModuleDict({"net": torch.nn.Identity(), "classes": Rows(weight)}))(x)


def sharded(x):
    """A head that refuses rows of zeros; one that is a hair longer must pass."""
    return partial.ShardedHead(10, D)(torch.where((x == 0).all(1, keepdim=True), x + 1e-30, x), LABELS)


OF_EMBEDDINGS = {
    "order 1": lambda x: hybrid.point_loss(x, SOURCE),
    "order 1, plain": lambda x: hybrid.point_loss(x, SOURCE, False),
    "order 2": lambda x: hybrid.distance_loss(x, SOURCE),
    "order 2 by definition": lambda x: hybrid.distance_loss_by_definition(x.float(), SOURCE),
    "order 3": lambda x: hybrid.angle_loss(x, SOURCE),
    "order 3 by definition": lambda x: hybrid.angle_loss_by_definition(x.float(), SOURCE),
    "centre": lambda x: hybrid.centre_loss(x, SOURCE),
    "logits": lambda x: hybrid.kd_loss(x, SOURCE),
    "cosine classifier": lambda x: F.cross_entropy(learner_logits(x, centres=CENTRES), LABELS),
    "learned classifier": lambda x: F.cross_entropy(learned_logits(x, CENTRES), LABELS),
    "its rows": lambda x: F.cross_entropy(learned_logits(SOURCE, x), torch.arange(N)),
    "identity": lambda x: F.cross_entropy(identity_logits(x, CENTRES).float(), LABELS),
    "identity's rows": lambda x: F.cross_entropy(identity_logits(SOURCE, x), torch.arange(N)),
    **{name: lambda x, m=m: arcface.margin_loss(x, CENTRES, LABELS, m) for name, m in arcface.MARGINS.items()},
    "sharded": sharded,
    "of the class centres": lambda x: arcface.margin_loss(SOURCE, x, LABELS),
    "intra": lambda x: arcface.intra_loss(arcface.cosines(x, CENTRES), LABELS),
    "inter": lambda x: arcface.inter_loss(x, torch.arange(N)),
    "triplet": lambda x: arcface.triplet_loss(x, torch.arange(N) // 2),
    "resup": lambda x: resup.weighted_loss(torch.stack([x, x.flip(0)]), LABELS % D, torch.ones(2, N), 5.0),
    "attributes": lambda x: attributes.joint_loss({"a": x}, {"a": LABELS % D})[0],
}


def with_row(scale):
    x = ORDINARY.clone()
    x[3] *= scale
    return x


def with_pair(offset):
    x = ORDINARY.clone()
    x[3] = x[2] + offset * x[5]
    return x


DEGENERATE = {
    **{f"row times {s:g}": with_row(s) for s in (0, 1e-30, 1e-11, 1e-8, 1e-5, 1e-3)},
    **{f"pair {s:g} apart": with_pair(s) for s in (0, 1e-8, 1e-6, 1e-4)},
    **{f"batch within {s:g}": ORDINARY[:1] + s * SOURCE for s in (0, 1e-8, 1e-7)},
    **{f"batch times {s:g}": ORDINARY * s for s in (0, 1e-30, 1e-11, 1e-8)},
    "on the own centre": torch.cat([CENTRES[:4], ORDINARY[4:]]),
    "opposite the own centre": torch.cat([-CENTRES[:4], ORDINARY[4:]]),
}


def row_gradients(loss, x):
    x = x.clone().requires_grad_()
    value = loss(x)
    value.backward()
    return value.detach(), x.grad.float().norm(dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OF_EMBEDDINGS)
def test_nothing_degenerate_sends_more_than_an_ordinary_batch(name, dtype):
    loss = OF_EMBEDDINGS[name]
    _, usual = row_gradients(loss, ORDINARY.to(dtype))
    assert usual.max() > 0
    for case, x in DEGENERATE.items():
        value, found = row_gradients(loss, x.to(dtype))
        assert torch.isfinite(value) and torch.isfinite(found).all(), case
        assert found.max() <= 3 * usual.max(), f"{case}: {found.max() / usual.max():.1e} times the usual"


def test_directions_are_normalize_wherever_a_row_has_one():
    """Value and gradient to the bit; the few rows that are a hundred times shorter than most are 0."""
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(1)) * torch.logspace(-1, 1, 64)[:, None]
    found, wanted = x.clone().requires_grad_(), x.clone().requires_grad_()
    for y, unit in ((found, losses.directions), (wanted, lambda x: F.normalize(x, dim=1))):
        (unit(y) ** 3).sum().backward()
    assert torch.equal(losses.directions(x), F.normalize(x, dim=1)) and torch.equal(found.grad, wanted.grad)
    x[5] *= 1e-3
    assert (losses.directions(x)[5] == 0).all()
    assert losses.directions(x.bfloat16()).dtype == torch.float32


def test_lengths_hide_no_number_that_is_none_and_no_row_beside_a_giant():
    x = ORDINARY.clone()
    x[2] *= 1e9
    assert torch.isfinite(losses.lengths(x)).all()
    x[4, 1] = math.nan
    assert losses.directions(x)[4].isnan().any()


def test_eyes_on_one_spot_count_nothing_in_the_landmark_losses():
    truth = torch.randn(6, 5, 2, generator=torch.Generator().manual_seed(2)) * 10 + 20
    distance = torch.tensor([10.0, 12, 9, 0, 1e-6, 11])
    sound = distance > 1

    def squared(points):
        return coarse_to_fine.squared_error(points, truth, distance, [0, 1, 2])

    def heatmap(points):
        maps = points.repeat(1, 1, 2)[:, :, :1].unsqueeze(-1) * torch.ones(8, 8) + torch.arange(64.0).view(8, 8) / 64
        return variant.heatmap_loss(maps.flatten(2).log_softmax(2).view_as(maps), truth, distance, shape_weight=0)

    for loss in (squared, heatmap):
        points = (truth + 1).requires_grad_()
        value = loss(points)
        value.backward()
        assert torch.isfinite(value) and torch.isfinite(points.grad).all() and (points.grad[~sound] == 0).all()
    halves = torch.full((3,), 0.5)
    usual = coarse_to_fine.squared_error(truth[:3] + halves[0], truth[:3], distance[:3], [0, 1, 2])
    wanted = ((0.5**2 * 6) / (2 * distance[:3] ** 2)).mean()
    assert usual.item() == pytest.approx(wanted.item(), rel=1e-4)


# ---- Labels

INTEGERS = [
    *(lambda y, t=t: y.to(t) for t in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)),
    *(lambda y, t=t: y.numpy().astype(t) for t in ("uint8", "int16", "int32", "int64", "uint16", "uint32")),
]
P = ORDINARY.softmax(1)


def refitted(labels):
    found = []
    for kind in ("similarity", "loss", "bayes"):
        model = resup.NoiseModel(N, D, keep_labels=True)
        model.refit(ORDINARY, labels, kind)
        found += [model.weight, model.weigh(ORDINARY, labels, kind), model.evidence(ORDINARY, labels, "loss")]
    return torch.stack(found)


def head_loss(kind, labels):
    torch.manual_seed(0)
    head = arcface.make_head(kind, D, D, **({} if kind == "softmax" else {"intra": 1.0, "inter": 1.0}))
    return head(ORDINARY, labels)


OF_LABELS = {
    "margin_loss": lambda y: arcface.margin_loss(ORDINARY, CENTRES, y),
    "with_margin": lambda y: arcface.with_margin(arcface.cosines(ORDINARY, CENTRES), y, (1.0, 0.5, 0.0)),
    "margin head": lambda y: head_loss("arcface", y),
    "softmax head": lambda y: head_loss("softmax", y),
    "sharded head": lambda y: partial.ShardedHead(D, D)(ORDINARY, y),
    "intra": lambda y: arcface.intra_loss(arcface.cosines(ORDINARY, CENTRES), y),
    "inter": lambda y: arcface.inter_loss(CENTRES, y),
    "triplet": lambda y: arcface.triplet_loss(ORDINARY, y),
    "cleaning": lambda y: arcface.clean_by_subcenters(ORDINARY, y, torch.cat([CENTRES, SOURCE[:6]]), 2).angle_deg,
    "resup's similarity": lambda y: resup.similarity(ORDINARY, y),
    "resup's loss": lambda y: resup.weighted_loss(ORDINARY[None], y, torch.ones(1, N), smoothing=0.1),
    "resup's noise model": refitted,
    "resup's posterior": lambda y: resup.posterior_labels(P, y, torch.tensor(0.2)),
    "attributes": lambda y: attributes.joint_loss({"a": ORDINARY}, {"a": y})[0],
}


@pytest.mark.parametrize("name", OF_LABELS)
def test_labels_of_any_integer_type_give_the_same(name):
    labels = torch.arange(N) % D
    wanted = OF_LABELS[name](labels)
    for cast in INTEGERS:
        torch.testing.assert_close(OF_LABELS[name](cast(labels)), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("name", sorted(OF_LABELS.keys() - {"attributes"}))  # whose targets may be probabilities
def test_labels_that_are_no_whole_numbers_are_refused(name):
    for labels, word in ((torch.zeros(N), "float32"), (torch.zeros(N) > 1, "bool"), (np.full(N, "a"), "no numbers")):
        with pytest.raises(UserError) as error:
            OF_LABELS[name](labels)
        one_line_error(error, "labels are", word)


def test_networks_do_not_collapse_at_the_start():
    """What orders 2 and 3 call a collapsed batch is far from what an untrained student gives."""
    x = torch.randn(8, 3, 32, 32, generator=GEN)
    for net in (nets.make_net("resnet8x4"), networks.IResNet((1, 1, 1, 1), (8, 8, 8, 8), 32, input_px=32)):
        assert not hybrid._collapsed(net(x)) and torch.isfinite(losses.lengths(net(x))).all()
