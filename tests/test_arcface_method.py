"""The margin losses against slow transcriptions of the equations, in value and gradient, and every named rule."""

import math

import pytest
import torch
import torch.nn.functional as F

from facepapers.common.cli import UserError
from facepapers.papers.arcface import method
from facepapers.papers.arcface.method import (
    MARGINS,
    PAST_PI,
    MarginHead,
    SoftmaxHead,
    make_head,
    margin_loss,
    target_cosine,
)

torch.set_num_threads(1)


def problem(batch=8, classes=5, features=6, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, features, generator=generator, dtype=dtype, requires_grad=True)
    w = torch.randn(classes, features, generator=generator, dtype=dtype, requires_grad=True)
    return x, w, torch.randint(classes, (batch,), generator=generator)


def slow_target(theta, margins, rule):
    """Equation 4's numerator for one angle, a float, by the rule's definition in the reference's table."""
    m1, m2, m3 = margins
    angle = m1 * theta + m2
    if (m1, m2) == (1, 0) or angle < math.pi:
        value = math.cos(angle)
    else:
        a = math.cos(theta) - m2 * math.sin(m2) if m1 == 1 else -math.cos(angle) - 2
        c = math.cos(angle)
        value = {"keep_decreasing": a, "easy": c, "none": c, "clamp": -1.0, "first_torch": c}[rule]
    if rule == "easy" and (m1, m2) != (1, 0) and math.cos(theta) <= 0:
        value = math.cos(theta)
    return value - m3


def slow_loss(x, w, labels, margins, scale, rule):
    """Equation 4 in loops over images and classes, in floats."""
    total = 0.0
    for xi, y in zip(x.tolist(), labels.tolist()):
        exponentials = []
        for j, wj in enumerate(w.tolist()):
            cosine = sum(a * b for a, b in zip(xi, wj)) / math.hypot(*xi) / math.hypot(*wj)
            value = slow_target(math.acos(cosine), margins, rule) if j == y else cosine
            exponentials.append(math.exp(scale * value))
        total -= math.log(exponentials[y] / sum(exponentials))
    return total / len(labels)


def slow_gradient(function, x, step=1e-6):
    """Central differences of a scalar function, one coordinate at a time."""
    gradient = torch.zeros_like(x)
    for i in range(x.numel()):
        values = []
        for sign in (1, -1):
            moved = x.detach().clone()
            moved.view(-1)[i] += sign * step
            values.append(function(moved))
        gradient.view(-1)[i] = (values[0] - values[1]) / (2 * step)
    return gradient


@pytest.mark.parametrize("name", MARGINS)
@pytest.mark.parametrize("rule", PAST_PI)
def test_value_and_gradient_equal_the_slow_derivation(name, rule):
    x, w, y = problem(batch=4, classes=3, features=3)
    with torch.no_grad():  # one image far past pi - m, so that the rules differ
        x[0] = -w[y[0]] + 0.05 * x[0]
    loss = margin_loss(x, w, y, MARGINS[name], 4.0, rule)
    assert loss.item() == pytest.approx(slow_loss(x, w, y, MARGINS[name], 4.0, rule), rel=1e-12)
    gx, gw = torch.autograd.grad(loss, (x, w))
    slow_gx = slow_gradient(lambda v: slow_loss(v, w, y, MARGINS[name], 4.0, rule), x)
    slow_gw = slow_gradient(lambda v: slow_loss(x, v, y, MARGINS[name], 4.0, rule), w)
    torch.testing.assert_close(gx, slow_gx, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(gw, slow_gw, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("rule", PAST_PI)
@pytest.mark.parametrize("name", ["arcface", "sphereface", "cm1", "cm2"])
def test_target_logit_over_all_angles(name, rule):
    theta = torch.linspace(0.001, math.pi - 0.001, 500, dtype=torch.float64)
    expected = torch.tensor([slow_target(t, MARGINS[name], rule) for t in theta.tolist()], dtype=torch.float64)
    torch.testing.assert_close(target_cosine(theta.cos(), MARGINS[name], rule), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["arcface", "sphereface", "cm1", "cm2"])
def test_keep_decreasing_decreases_everywhere_and_none_does_not(name):
    theta = torch.linspace(0.001, math.pi - 0.001, 2000, dtype=torch.float64)
    assert (target_cosine(theta.cos(), MARGINS[name], "keep_decreasing").diff() < 0).all()
    assert (target_cosine(theta.cos(), MARGINS[name], "none").diff() > 0).any()


def test_the_jump_of_keep_decreasing_is_the_public_codes():
    theta = math.pi - 0.5 + torch.tensor([-1e-9, 1e-9], dtype=torch.float64)
    before, after = target_cosine(theta.cos(), MARGINS["arcface"]).tolist()
    assert before == pytest.approx(-1.0, abs=1e-6)
    assert after == pytest.approx(-math.cos(0.5) - 0.5 * math.sin(0.5), abs=1e-6)
    assert after == pytest.approx(-1.117, abs=1e-3)


@pytest.mark.parametrize(
    ("degrees", "ratio"),
    [(15, 2.67), (20, 2.195), (30, 1.71), (45, 1.357), (60, 1.15), (90, 0.878), (120, 0.601), (150, 0.047)],
)
def test_full_over_detached_gradient(degrees, ratio):
    """The published table: what insightface's gradient since December 2022 leaves out. 3 digits where given."""
    slopes = {}
    for gradient in method.GRADIENTS:
        cosine = torch.tensor(math.cos(math.radians(degrees)), dtype=torch.float64, requires_grad=True)
        target_cosine(cosine, MARGINS["arcface"], "none", gradient).backward()
        slopes[gradient] = cosine.grad.item()
    assert slopes["detached"] == pytest.approx(1.0, rel=1e-12)
    assert slopes["full"] == pytest.approx(math.sin(math.radians(degrees) + 0.5) / math.sin(math.radians(degrees)))
    assert slopes["full"] == pytest.approx(ratio, abs=0.006)


@pytest.mark.parametrize("rule", [r for r in PAST_PI if r != "first_torch"])
def test_detached_keeps_the_value_and_changes_the_gradient(rule):
    x, w, y = problem(batch=8, classes=50, features=64)
    with torch.no_grad():
        x[0] = -w[y[0]] + 0.05 * x[0]
    losses = [margin_loss(x, w, y, past_pi=rule, gradient=g) for g in method.GRADIENTS]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-12, atol=0)
    full, detached = (torch.autograd.grad(loss, x)[0] for loss in losses)
    assert 0.5 < F.cosine_similarity(full.flatten(), detached.flatten(), dim=0) < 0.99999
    assert not torch.allclose(full, detached, rtol=1e-3)


def insightface_since_december_2022(x, w, y, m=0.5, s=64.0):
    """Written from the description in the reference: arccos, + m, cos under no_grad and in place."""
    cosine = F.normalize(x) @ F.normalize(w).T
    rows = torch.arange(len(y))
    with torch.no_grad():
        changed = torch.cos(torch.acos(cosine[rows, y]) + m)
    shifted = cosine.clone()
    shifted.data[rows, y] = changed  # the graph still believes that nothing happened
    return F.cross_entropy(s * shifted, y)


def test_detached_none_is_insightfaces_current_code():
    x, w, y = problem(batch=8, classes=50, features=64)
    theirs = torch.autograd.grad(insightface_since_december_2022(x, w, y), (x, w))
    ours = torch.autograd.grad(margin_loss(x, w, y, past_pi="none", gradient="detached"), (x, w))
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_parity_with_pytorch_metric_learning():
    losses = pytest.importorskip("pytorch_metric_learning.losses", reason="pytorch-metric-learning is dev-only")
    x, w, y = problem(batch=64, classes=10, features=2, dtype=torch.float32)  # in 2-D every rule-A branch occurs
    theirs = losses.ArcFaceLoss(10, 2, margin=math.degrees(0.5), scale=64)  # degrees: 2.8 and 2.9
    theirs.W.data = w.detach().T.clone()
    theirs.W.requires_grad_(True)
    a, b = theirs(x, y), margin_loss(x, w, y)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.autograd.grad(a, x)[0], torch.autograd.grad(b, x)[0], rtol=1e-3, atol=1e-3)


# ---- Numerical safety


def test_the_margin_sits_on_the_true_class_only_and_inside_the_scale():
    x, w, y = problem()
    cosine = method.cosines(x, w)
    changed = method.with_margin(cosine, y, MARGINS["arcface"]) != cosine
    assert torch.equal(changed, F.one_hot(y, 5).bool())
    shift = margin_loss(x, w, y, (1.0, 0.0, 0.35), scale=10.0) - F.cross_entropy(10 * cosine - 3.5 * F.one_hot(y, 5), y)
    assert abs(shift.item()) < 1e-12


@pytest.mark.parametrize("rule", PAST_PI)
@pytest.mark.parametrize("name", MARGINS)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gradients_are_finite_on_and_opposite_the_centre(name, rule, sign):
    _, w, _ = problem(batch=5, dtype=torch.float32)
    x = (sign * w.detach()).requires_grad_()
    loss = margin_loss(x, w, torch.arange(5), MARGINS[name], 64.0, rule)
    for gradient in (loss, *torch.autograd.grad(loss, (x, w))):
        assert torch.isfinite(gradient).all()


def test_gradients_stay_bounded_near_the_centre():
    w = torch.eye(3)
    for angle in (1e-1, 1e-2, 1e-3, 6e-4, 1e-4, 1e-5, 0.0):
        x = torch.tensor([[math.cos(angle), math.sin(angle), 0.0]], requires_grad=True)
        margin_loss(x, w, torch.tensor([0]), scale=4.0).backward()
        assert x.grad.norm() < 10, angle


def test_zero_embeddings_have_zero_gradient_and_the_head_names_them():
    x, w, y = problem(dtype=torch.float32)
    with torch.no_grad():
        x[3] = 0
    gx, gw = torch.autograd.grad(margin_loss(x, w, y), (x, w))
    assert torch.isfinite(gx).all() and torch.isfinite(gw).all() and (gx[3] == 0).all() and gx[2].norm() > 0
    with pytest.raises(UserError, match=r"embeddings\[3\] is all zero"):
        MarginHead(5, 6)(x, y)
    assert torch.isfinite(MarginHead(5, 6, check=False)(x, y))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_computed_in_float32(dtype):
    x, w, y = problem(dtype=torch.float32)
    loss = margin_loss(x.to(dtype), w, y)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, margin_loss(x.to(dtype).float(), w, y), rtol=0, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(margin_loss(x, w, y), margin_loss(x.detach(), w, y), rtol=0, atol=0)
        inside = margin_loss(x, w, y)
    torch.testing.assert_close(inside, margin_loss(x, w, y), rtol=0, atol=0)


def test_lengths_of_x_and_w_do_not_matter():
    x, w, y = problem()
    torch.testing.assert_close(margin_loss(x, w, y), margin_loss(3 * x, 0.01 * w, y), rtol=1e-9, atol=0)


# ---- Heads


@pytest.mark.parametrize("name", ["softmax", *MARGINS])
def test_heads_by_name(name):
    x, w, y = problem(dtype=torch.float32)
    head = make_head(name, 5, 6) if name == "softmax" else make_head(name, 5, 6, scale=16.0)
    with torch.no_grad():
        head.weight.copy_(w)
    expected = F.cross_entropy(x @ w.T, y) if name == "softmax" else margin_loss(x, w, y, MARGINS[name], 16.0)
    torch.testing.assert_close(head(x, y), expected)
    plain = x @ w.T if name == "softmax" else 16 * F.normalize(x) @ F.normalize(w).T
    torch.testing.assert_close(head.logits(x), plain)
    assert any(p is head.weight for p in head.parameters())


def test_softmax_head_has_a_trained_bias():
    x, _, y = problem(dtype=torch.float32)
    head = SoftmaxHead(5, 6)
    head(x, y).backward()
    assert head.bias.grad.abs().sum() > 0


def test_initial_loss_of_the_reference():
    """s sin m + ln(n - 1) + s^2 / (2 d): what a healthy run's first loss is."""
    torch.manual_seed(0)
    classes, features = 10_572, 512
    head = MarginHead(classes, features)
    loss = head(torch.randn(64, features), torch.randint(classes, (64,))).item()
    expected = 64 * math.sin(0.5) + math.log(classes - 1) + 64**2 / (2 * features)
    assert expected == pytest.approx(43.9, abs=0.1)  # the published sanity value for CASIA
    assert loss == pytest.approx(expected, abs=0.8)


def test_options_that_a_head_cannot_have_are_one_line():
    with pytest.raises(UserError, match=r"inter 1\.0 with 3 centers"):
        MarginHead(5, 6, centers=3, inter=1.0)
    with pytest.raises(UserError, match="'softmax' has no margin, scale or centre to set; drop past_pi, scale"):
        method.make_head("softmax", 5, 6, past_pi="easy", scale=3.0)


def test_intra_and_inter_losses():
    x, w, y = problem()
    theta = torch.acos(F.normalize(x) @ F.normalize(w).T)
    intra = sum(theta[i, y[i]].item() for i in range(8)) / 8 / math.pi
    assert method.intra_loss(method.cosines(x, w), y).item() == pytest.approx(intra, rel=1e-12)
    between = torch.acos((F.normalize(w) @ F.normalize(w).T).clamp(-1, 1))
    inter = -sum(between[y[i], j].item() for i in range(8) for j in range(5) if j != y[i]) / (math.pi * 8 * 4)
    assert method.inter_loss(w, y).item() == pytest.approx(inter, rel=1e-12)
    for function, v in (
        (lambda v: method.intra_loss(method.cosines(v, w), y), x),
        (lambda v: method.inter_loss(v, y), w),
    ):
        gradient = torch.autograd.grad(function(v), v)[0]
        torch.testing.assert_close(gradient, slow_gradient(function, v), rtol=1e-5, atol=1e-8)
    head = MarginHead(5, 6, MARGINS["norm_softmax"], scale=20.0, intra=1.0, inter=2.0).double()
    head.weight.data = w.data
    expected = margin_loss(x, w, y, MARGINS["norm_softmax"], 20.0).item() + intra + 2 * inter
    assert head(x, y).item() == pytest.approx(expected, rel=1e-12)


def test_triplet_loss():
    x, _, _ = problem(batch=7, features=3)
    y = torch.tensor([0, 0, 1, 1, 1, 2, 3])
    theta = torch.acos((F.normalize(x) @ F.normalize(x).T).clamp(-1, 1)).tolist()
    excess = [
        theta[a][p] + 0.35 - theta[a][n]
        for a in range(7) for p in range(7) for n in range(7)
        if a != p and y[a] == y[p] and y[a] != y[n] and theta[a][p] + 0.35 > theta[a][n]
    ]  # fmt: skip
    assert len(excess) > 5
    loss = method.triplet_loss(x, y)
    assert loss.item() == pytest.approx(sum(excess) / len(excess), rel=1e-9)
    gradient = torch.autograd.grad(loss, x)[0]
    torch.testing.assert_close(gradient, slow_gradient(lambda v: method.triplet_loss(v, y), x), rtol=1e-5, atol=1e-8)


def test_triplet_loss_without_a_violation_is_zero_with_a_gradient():
    x = torch.eye(4)[[0, 0, 1, 1]].requires_grad_()
    loss = method.triplet_loss(x, torch.tensor([0, 0, 1, 1]))
    loss.backward()
    assert loss == 0 and (x.grad == 0).all()
    assert method.triplet_loss(x, torch.arange(4)) == 0  # no pair at all


# ---- Sub-centers


def test_one_subcenter_is_plain_arcface_and_three_take_the_nearest():
    x, w, y = problem(classes=6, dtype=torch.float32)
    head = MarginHead(2, 6, centers=3, scale=8.0)
    head.weight.data = w.data
    y = y % 2
    nearest = torch.stack([(F.normalize(x) @ F.normalize(w[3 * c : 3 * c + 3]).T).amax(1) for c in range(2)], 1)
    torch.testing.assert_close(method.cosines(x, w, 3), nearest)
    expected = F.cross_entropy(8.0 * method.with_margin(nearest, y, MARGINS["arcface"]), y)
    torch.testing.assert_close(head(x, y), expected)
    torch.testing.assert_close(method.cosines(x, w, 1), method.cosines(x, w))


def test_cleaning_drops_what_is_far_from_the_dominant_centre():
    def at(degrees, length=1.0):
        return [length * math.cos(math.radians(degrees)), length * math.sin(math.radians(degrees))]

    weight = torch.tensor([at(0), at(120), at(90), at(240), at(200), at(300)])  # 3 classes of 2 centres
    embeddings = torch.tensor([
        at(10, 2), at(-20), at(74), at(76), at(120), at(110),  # class 0: dominant 0, drop 76 and up
        at(240), at(250, 3), at(80),  # class 1: dominant 240, drop 80
    ])  # fmt: skip
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1])
    # 74 and 76 lie nearer to the centre at 120, which would so win 4 : 2
    embeddings = torch.cat([embeddings, torch.tensor([at(5), at(6), at(7)])])
    labels = torch.cat([labels, torch.tensor([0, 0, 0])])
    found = method.clean_by_subcenters(embeddings, labels, weight, 2)
    assert found.dominant.tolist() == [0, 1, 0]
    assert found.keep.tolist() == [True, True, True, False, False, False, True, True, False, True, True, True]
    assert found.labels.tolist() == [0, 0, 0, -1, -1, -1, 1, 1, -1, 0, 0, 0]
    torch.testing.assert_close(found.angle_deg[:4], torch.tensor([10.0, 20.0, 74.0, 76.0]), atol=1e-3, rtol=0)
    everything = method.clean_by_subcenters(embeddings, labels, weight, 2, max_angle_deg=180)
    assert everything.keep.all()


def test_cleaning_renumbers_when_a_class_is_left_empty():
    weight = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1], [-1, 0], [-1, 0]])
    embeddings = torch.tensor([[1.0, 0], [0, -1], [-1, 0]])
    found = method.clean_by_subcenters(embeddings, torch.tensor([0, 1, 2]), weight, 2)
    assert found.keep.tolist() == [True, False, True]
    assert found.labels.tolist() == [0, -1, 1]


# ---- Bad input


@pytest.mark.parametrize("label", [-1, 5])
@pytest.mark.parametrize("name", ["softmax", "arcface"])
def test_labels_outside_the_class_range(name, label):
    x, _, y = problem(dtype=torch.float32)
    y[2] = label
    with pytest.raises(UserError, match=rf"labels\[2\] = {label} is outside 0\.\.4"):
        make_head(name, 5, 6)(x, y)


def test_unknown_names():
    for make in (
        lambda: make_head("arcfase", 5, 6),
        lambda: MarginHead(5, 6, past_pi="wrap"),
        lambda: MarginHead(5, 6, gradient="half"),
        lambda: target_cosine(torch.zeros(1), MARGINS["arcface"], "wrap"),
        lambda: MarginHead(5, 6, past_pi="first_torch", gradient="detached"),
    ):
        with pytest.raises(UserError, match=r"arcface|keep_decreasing|detached"):
            make()


def test_an_angular_margin_widens_the_gap():
    """The paper's claim on data with known truth: the same steps with a margin leave images nearer to their centre."""
    angles = {}
    for name in ("norm_softmax", "arcface"):
        torch.manual_seed(1)
        centre = torch.randn(10, 16)
        y = torch.arange(10).repeat(20)
        x = centre[y] + 0.8 * torch.randn(200, 16)
        net, head = torch.nn.Linear(16, 8), make_head(name, 10, 8, scale=16.0)
        optimizer = torch.optim.Adam([*net.parameters(), *head.parameters()], 0.02)
        for _ in range(150):
            optimizer.zero_grad()
            head(net(x), y).backward()
            optimizer.step()
        cosine = method.cosines(net(x), head.weight).detach()
        own = cosine.gather(1, y[:, None])[:, 0]
        other = cosine.scatter(1, y[:, None], -1).amax(1)
        angles[name] = (torch.acos(other) - torch.acos(own)).mean().item()
    assert angles["arcface"] > angles["norm_softmax"] + 0.05
