"""Losses against slow re-derivations in value and gradient, bad input, the degradation against Pillow, networks."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from facepapers.common.cli import UserError
from facepapers.papers.hybrid_order_distillation import method, nets
from facepapers.papers.hybrid_order_distillation.degrade import degrade, resize
from tests.conftest import one_line_error

torch.set_num_threads(1)


def batch(n=12, d=6, e=6, seed=0, dtype=torch.float64):
    gen = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=gen, dtype=dtype), torch.randn(n, e, generator=gen, dtype=dtype)


def huber(x):
    return 0.5 * x * x if abs(x) <= 1 else abs(x) - 0.5


def slow_distance(s, t):
    """Order 2 sample by sample, from the dossier's words."""
    n = len(s)

    def relative(x):
        d = [[math.dist(x[i], x[j]) for j in range(n)] for i in range(n)]
        apart = [v for row in d for v in row if v > 0]
        mean = sum(apart) / len(apart)
        return [[v / mean for v in row] for row in d]

    a, b = relative(s.tolist()), relative(t.tolist())
    return sum(huber(a[i][j] - b[i][j]) for i in range(n) for j in range(n)) / n**2


def slow_angle(s, t):
    """Order 3 triple by triple."""
    n, total = len(s), 0.0

    def cosine(x, i, j, k):
        a, b = x[j] - x[i], x[k] - x[i]
        lengths = np.linalg.norm(a), np.linalg.norm(b)
        return float(a @ b) / lengths[0] / lengths[1] if min(lengths) > 0 else 0.0

    s, t = s.numpy(), t.numpy()
    for i in range(n):
        for j in range(n):
            for k in range(n):
                total += huber(cosine(s, i, j, k) - cosine(t, i, j, k))
    return total / n**3


def numeric_gradient(loss, s, t, h=1e-5):
    """Central differences of a slow float64 loss."""
    gradient = torch.zeros_like(s)
    for i in range(s.shape[0]):
        for j in range(s.shape[1]):
            values = []
            for sign in (1, -1):
                moved = s.clone()
                moved[i, j] += sign * h
                values.append(loss(moved, t))
            gradient[i, j] = (values[0] - values[1]) / (2 * h)
    return gradient


@pytest.mark.parametrize(("fast", "slow"), [(method.distance_loss, slow_distance), (method.angle_loss, slow_angle)])
@pytest.mark.parametrize("widths", [(4, 4), (3, 5)])
def test_orders_2_and_3_against_slow_forms(fast, slow, widths):
    s, t = batch(7, *widths)
    s.requires_grad_()
    value = fast(s, t)
    assert value.item() == pytest.approx(slow(s.detach(), t), rel=1e-5)
    (gradient,) = torch.autograd.grad(value, s)
    torch.testing.assert_close(gradient, numeric_gradient(slow, s.detach(), t), rtol=2e-3, atol=2e-6)


def test_order_1_and_its_normalisation():
    s, t = batch(5, 3, 3)
    unit = lambda x: x.numpy() / np.linalg.norm(x.numpy(), axis=1, keepdims=True)
    wanted = np.mean(np.sum((unit(s) - unit(t)) ** 2, axis=1))
    assert method.point_loss(s, t).item() == pytest.approx(float(wanted), rel=1e-6)
    assert method.point_loss(s, t, normalise=False).item() == pytest.approx(
        (s - t).square().sum(1).mean().item(), rel=1e-6
    )
    assert method.point_loss(3 * t, t).item() == pytest.approx(0, abs=1e-6)


BY_DEFINITION = {
    method.distance_loss: method.distance_loss_by_definition,
    method.angle_loss: method.angle_loss_by_definition,
}


def hard_batches(n=70, d=24):
    """{name: (student, source)} in float32, where a Gram matrix or a length in float32 loses digits."""
    gen = torch.Generator().manual_seed(1)
    random = lambda *shape: torch.randn(*shape, generator=gen)
    clusters, direction = random(5, d)[torch.arange(n) % 5], random(1, d)
    twice, others = random(n, d), random(n, d)
    twice[1], twice[5], others[3], others[5] = twice[0], twice[4], others[2], others[4]
    nearly = random(n, d)
    nearly[1], nearly[3] = nearly[0] + 1e-4 * random(d), nearly[2] + 3e-3 * random(d)
    outlier = random(n, d)
    outlier[0] *= 1e4
    return {
        "ordinary": (random(n, d), random(n, 2 * d)),
        "another width": (random(n, d), random(n, 3)),
        "clusters": (clusters + 0.01 * random(n, d), random(n, d)),
        "tight clusters": (clusters + 1e-4 * random(n, d), random(n, d)),
        "far": (1000 + 0.01 * random(n, d), random(n, d)),
        "both collapsed": (F.normalize(direction + 1e-4 * random(n, d)), F.normalize(direction + 1e-3 * random(n, d))),
        "pairs twice": (twice, others),
        "near pairs": (nearly, random(n, d)),
        "outlier": (outlier, random(n, d)),
    }


def value_and_gradient(loss, s, t, *more):
    s = s.clone().requires_grad_()
    value = loss(s, t, *more)
    return value.detach(), torch.autograd.grad(value, s)[0]


@pytest.mark.parametrize("loss", BY_DEFINITION)
@pytest.mark.parametrize("name", hard_batches())
def test_orders_2_and_3_keep_the_digits_of_float64(loss, name):
    """Against the definition in float64; direct differences in float32 are off by up to 3e-7 and 5e-6 a row."""
    s, t = hard_batches()[name]
    value, gradient = value_and_gradient(loss, s, t)
    wanted, wanted_gradient = value_and_gradient(BY_DEFINITION[loss], s.double(), t.double())
    assert value.dtype == gradient.dtype == torch.float32
    assert value.item() == pytest.approx(wanted.item(), rel=1e-7)
    rows = (gradient - wanted_gradient).norm(dim=1) / wanted_gradient.norm(dim=1)
    assert rows.max() < 1e-6


@pytest.mark.parametrize("n", [63, 64, 65, 130])
def test_squared_distances_of_any_number_of_rows(n):
    x = batch(n, 5, dtype=torch.float32)[0]
    given = x.double().clone()
    y, p = method._squared_distances(given)
    assert torch.equal(given, x.double()), "the input is not to be changed"
    direct = (x.double().unsqueeze(0) - x.double().unsqueeze(1)).square().sum(2)
    torch.testing.assert_close(p, direct, rtol=1e-12, atol=0)
    torch.testing.assert_close(y, x.double() - x.double().mean(0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", ["ordinary", "source twice", "near pair"])
def test_gradients_numerically(case):
    s, t = batch(8, 4, 5)
    if case == "source twice":
        t[1] = t[0]
    elif case == "near pair":
        s[1] = s[0] + 1e-2
    s.requires_grad_()
    assert torch.autograd.gradcheck(method._DistanceLoss.apply, (s, t))
    for chunk in (3, 8):
        assert torch.autograd.gradcheck(method._AngleLoss.apply, (s, t, chunk))


@pytest.mark.parametrize("chunk", [1, 7, 29, 30, 99])
def test_chunks_change_neither_value_nor_gradient(chunk):
    """7 leaves a last chunk of two vertices, 29 of one."""
    s, t = batch(30, 8, 16, dtype=torch.float32)
    s[1] *= 50  # the vertices differ in what they add
    s[28:] *= 20
    value, gradient = value_and_gradient(method.angle_loss, s, t, chunk)
    wanted, wanted_gradient = value_and_gradient(method.angle_loss_by_definition, s.double(), t.double())
    assert value.item() == pytest.approx(wanted.item(), rel=1e-6)
    torch.testing.assert_close(gradient, wanted_gradient.float(), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("loss", BY_DEFINITION)
def test_a_gradient_can_be_taken_twice(loss):
    """As gradient_norms of train.py does before the step."""
    s, t = batch(dtype=torch.float32)
    value = loss(s.requires_grad_(), t)
    first, second = (torch.autograd.grad(value, s, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("loss", [method.distance_loss, method.angle_loss])
def test_a_weighted_loss_has_a_weighted_gradient(loss):
    s, t = batch(dtype=torch.float32)
    (plain,), (weighted,) = (
        torch.autograd.grad(w * loss(x, t), x) for w in (1, 50) for x in [s.clone().requires_grad_()]
    )
    torch.testing.assert_close(weighted, 50 * plain)


def test_the_centre_term_against_a_slow_form():
    s, t = batch(dtype=torch.float32)
    a, b = (np.linalg.norm(x - x.mean(0), axis=1) for x in (s.numpy().astype(float), t.numpy().astype(float)))
    expected = np.mean([huber(x - y) for x, y in zip(a / a.mean(), b / b.mean(), strict=True)])
    assert method.centre_loss(s, t).item() == pytest.approx(expected, rel=1e-5)


class Sizes(TorchDispatchMode):
    """Keeps the number of entries of the largest tensor that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for x in made if isinstance(made, tuple | list) else [made]:
            self.largest = max(self.largest, x.numel() if isinstance(x, torch.Tensor) else 0)
        return made


def test_order_3_never_holds_all_triples():
    """At N = 256 nothing is larger than the two tensors of a chunk; the whole has 17 million entries."""
    s, t = batch(256, 4, 4, dtype=torch.float32)
    with Sizes() as sizes:
        method.angle_loss(s.requires_grad_(), t).backward()
    assert sizes.largest == 2 * method.TRIPLES_AT_ONCE
    with Sizes() as sizes:
        method.angle_loss(s, t, 2).backward()
    assert sizes.largest <= 4 * 256**2  # what grows with N^2


@pytest.mark.parametrize("loss", [method.distance_loss, method.angle_loss])
def test_relations_ignore_what_they_should(loss):
    """Shift, turn and scale of either side leave orders 2 and 3 alone; order 3's source gets no gradient."""
    s, t = batch(9, 4, 4, dtype=torch.float32)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)))[0]
    assert loss(t @ turn * 7 + 2, t).item() == pytest.approx(0, abs=1e-6)
    assert loss(s, t).item() > 0.01
    t.requires_grad_()
    loss(s.requires_grad_(), t).backward()
    assert t.grad is None and s.grad.abs().max() > 0


@pytest.mark.parametrize("loss", [method.point_loss, method.distance_loss, method.angle_loss, method.centre_loss])
@pytest.mark.parametrize("case", ["pair twice", "all equal", "nearly equal", "source twice"])
def test_duplicates_give_neither_nan_nor_explosion(loss, case):
    s, t = batch(8, 5, 5, dtype=torch.float32)
    if case == "pair twice":
        s[1], t[1] = s[0], t[0]
    elif case == "all equal":
        s[:], t[:] = s[0].clone(), t[0].clone()
    elif case == "nearly equal":
        s[1] = s[0] + 1e-7
    else:
        t[1] = t[0]
    s.requires_grad_()
    value = loss(s, t)
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(s.grad).all()
    assert s.grad.abs().max() < 10, "a direction without a length must not blow up"


@pytest.mark.parametrize("loss", [method.point_loss, method.distance_loss, method.angle_loss, method.centre_loss])
@pytest.mark.parametrize("case", ["zero row", "same row", "same rows, other source"])
def test_no_degenerate_row_gets_more_than_its_neighbours(loss, case):
    s, t = batch(16, 6, 6, dtype=torch.float32)
    degenerate = [3]
    if case == "zero row":
        s[3] = 0
    else:
        s[3], degenerate = s[2], [2, 3]
        t[3] = t[2] if case == "same row" else t[3]
    _, gradient = value_and_gradient(loss, s, t)
    sizes = gradient.norm(dim=1)
    others = [i for i in range(len(s)) if i not in degenerate]
    assert sizes[degenerate].max() <= 2 * sizes[others].max()


def test_rows_without_length_have_no_direction():
    s, t = batch(6, 4, 4, dtype=torch.float32)
    s[2], s[4] = 0, s[4] * 1e-7
    value, gradient = value_and_gradient(method.point_loss, s, t)
    unit = [F.normalize(x.double(), dim=1) for x in (s, t)]
    unit[0][[2, 4]] = 0
    assert value.item() == pytest.approx((unit[0] - unit[1]).square().sum(1).mean().item(), rel=1e-6)
    assert gradient[[2, 4]].abs().max() == 0 and gradient[[0, 1, 3, 5]].norm(dim=1).min() > 0
    none, gradient = value_and_gradient(method.point_loss, torch.zeros(6, 4), t)
    assert none.item() == pytest.approx(1) and gradient.abs().max() == 0


@pytest.mark.parametrize("loss", [method.point_loss, method.distance_loss, method.angle_loss, method.centre_loss])
def test_a_value_that_is_no_number_is_not_hidden(loss):
    for place in (0, 1):
        pair = batch(6, 4, 4, dtype=torch.float32)
        pair[place][1, 2] = math.nan
        assert loss(*pair).isnan()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", [method.point_loss, method.distance_loss, method.angle_loss])
def test_half_precision_is_computed_in_float32(loss, dtype):
    s, t = (x.to(dtype) for x in batch(10, 6, 6, dtype=torch.float32))
    close = s.clone()
    close[1] = close[0] * 1.01  # a small distance that half precision would lose
    with torch.autocast("cpu", torch.bfloat16):
        value, gradient = value_and_gradient(loss, close, t)
    wanted, wanted_gradient = value_and_gradient(loss, close.float(), t.float())
    assert value.dtype == torch.float32 and gradient.dtype == dtype
    assert value.item() == pytest.approx(wanted.item(), rel=1e-6)
    torch.testing.assert_close(gradient, wanted_gradient.to(dtype))


def test_a_small_distance_keeps_its_length():
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    x[1] = x[0] + 1e-3 / 8
    x = torch.cat([x, torch.zeros(1, 64)])
    found = method.relative_distances(x)
    assert (found[0, 1] / found[0, 2]).item() == pytest.approx(1e-3 / x[0].norm().item(), rel=1e-3)


def test_bad_batches_are_one_line():
    s, t = batch(4, 6, 9)
    with pytest.raises(UserError) as error:
        method.point_loss(s, t)
    one_line_error(error, "6", "9", "project")
    with pytest.raises(UserError) as error:
        method.distance_loss(s[:1], t[:1])
    one_line_error(error, "batch of 1", "--batch 2")
    with pytest.raises(UserError) as error:
        method.angle_loss(s, t[:3])
    one_line_error(error, "(4, 6)", "(3, 9)")


def test_kd_and_hint_against_their_definitions():
    s, t = batch(5, 7, 7)
    p, q = F.softmax(t / 4, 1), F.softmax(s / 4, 1)
    wanted = 16 * (p * (p / q).log()).sum(1).mean()
    assert method.kd_loss(s, t, 4.0).item() == pytest.approx(wanted.item(), rel=1e-5)
    maps = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 2, 2)
    small = maps[0].view(2, 3, 2, 2, 2, 2).mean((3, 5))
    assert method.hint_loss(*maps).item() == pytest.approx((small - maps[1]).square().mean().item(), rel=1e-5)
    with pytest.raises(UserError, match="channels differ"):
        method.hint_loss(maps[0], torch.rand(2, 4, 4, 4))


def test_any_subset_of_orders_and_the_normalised_source():
    s, t = batch(6, 4, 4, dtype=torch.float32)
    both = method.relational_losses(s, t, (1, 3))
    assert set(both) == {1, 3} and both[3] == method.angle_loss(s, F.normalize(t, dim=1))
    projected = torch.randn_like(t)
    assert method.relational_losses(s, t, (1,), projected)[1] == method.point_loss(projected, t) != both[1]
    raw = method.relational_losses(s, t, (2,), normalise_source=False)
    assert raw[2] == method.distance_loss(s, t) and raw[2] != method.relational_losses(s, t, (2,))[2]


# ---- Degradation


@pytest.mark.parametrize(
    ("side", "low", "out"), [(112, 16, 112), (112, 8, 64), (48, 7, 48), (33, 32, 33), (32, 32, 64)]
)
@pytest.mark.parametrize(("name", "code"), [("bicubic", 3), ("bilinear", 2)])
def test_the_default_operator_is_pillows_to_the_last_bit(side, low, out, name, code):
    gen = torch.Generator().manual_seed(side)
    images = torch.randint(0, 256, (3, 3, side, side), generator=gen, dtype=torch.uint8)
    images[0] = 255 * (images[0] > 127)  # overshoot must be clipped between the passes
    found = degrade(images, low, out, f"pil_{name}")
    for image, ours in zip(images, found, strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((low, low), code).resize((out, out), code)
        assert np.array_equal(np.asarray(picture), ours.permute(1, 2, 0).numpy())


def test_operators_differ_and_nothing_is_done_at_full_size():
    images = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    assert torch.equal(degrade(images, 40), images)
    made = [degrade(images, 10, 40, name).float() for name in ("pil_bicubic", "pil_bilinear", "plain_bicubic")]
    assert all((a - b).abs().mean() > 1 for a, b in itertools.pairwise(made))


def test_bad_resolutions_are_one_line():
    images = torch.zeros(1, 3, 20, 20, dtype=torch.uint8)
    for low, operator, said in ((21, "pil_bicubic", "the images have 20 px"), (4, "bicubic", "--operator bicubic")):
        with pytest.raises(UserError) as error:
            degrade(images, low, 20, operator)
        one_line_error(error, said)
    with pytest.raises(UserError, match="uint8"):
        resize(images.float(), 4)


# ---- Networks


@pytest.mark.parametrize(
    ("name", "params", "gmac"),
    [
        ("resnet110", 1.737, 0.253), ("resnet32", 0.473, 0.069), ("resnet20", 0.278, 0.041),
        ("resnet32x4", 7.434, 1.083), ("resnet8x4", 1.234, 0.177), ("vgg13", 9.462, 0.285), ("vgg8", 3.965, 0.096),
    ],
)  # fmt: skip
def test_cifar_networks_have_the_benchmarks_size(name, params, gmac):
    learner = nets.Learner(nets.make_net(name), classes=100)
    assert nets.parameters(learner) / 1e6 == pytest.approx(params, abs=5e-4)
    assert nets.macs(learner, 32) / 1e9 == pytest.approx(gmac, abs=6e-4)


def test_the_students_size():
    teacher = nets.make_net("mobilefacenet", 128, 112)
    assert nets.parameters(teacher) == 999_936
    quarter = nets.make_net("iresnet_quarter", 128, 64)
    assert nets.parameters(quarter) <= 999_936 / 4
    assert nets.macs(quarter, 64) < nets.macs(teacher, 112) / 10


@pytest.mark.parametrize("name", ["resnet8", "vgg8", "imagenet_resnet18", "mobilefacenet", "iresnet_quarter"])
def test_every_kind_of_network_embeds_and_has_its_hint_layer(name):
    net = nets.make_net(name, 24, 32)
    learner = nets.Learner(net, source_width=40, classes=5, hint_width=7).train()
    said = learner(torch.randn(2, 3, 32, 32))
    assert said.embedding.shape == (2, 24) and said.projected.shape == (2, 40) and said.logits.shape == (2, 5)
    assert said.maps.shape[:2] == (2, 7) and said.maps.dim() == 4


def test_unknown_networks_are_one_line():
    with pytest.raises(UserError) as error:
        nets.make_net("resnet51")
    one_line_error(error, "resnet51", "resnet110")
