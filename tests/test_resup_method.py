"""ReSup's parts against slow, obvious re-derivations: similarity, mixture, table, weights, loss, noise, networks."""

import math

import numpy as np
import pytest
import torch
from scipy import stats as distributions

from facepapers.common import cli
from facepapers.common.training import checkpoint
from facepapers.papers.resup import method, nets, noise
from tests.conftest import one_line_error

torch.set_num_threads(1)


def humps(n=4000, flipped=0.3, seed=0, clean=(9.0, 1.5), noisy=(1.2, 6.0)):
    """Similarities of n samples, and which are flipped: two overlapping Betas."""
    rng = np.random.default_rng(seed)
    flip = rng.random(n) < flipped
    return torch.from_numpy(np.where(flip, rng.beta(*noisy, n), rng.beta(*clean, n))), flip


# ---- Similarity


def test_similarity_is_the_cosine_with_the_one_hot_label():
    logits, labels = torch.randn(6, 5), torch.tensor([0, 4, 2, 2, 1, 3])
    found = method.similarity(logits, labels)
    for row, label, value in zip(logits, labels, found, strict=True):
        e = torch.nn.functional.one_hot(label, 5).float()
        assert value == pytest.approx(float(torch.cosine_similarity(row.softmax(0), e, dim=0)), abs=1e-6)


@pytest.mark.parametrize("k", [7, 8])
def test_similarity_of_a_uniform_prediction_and_of_a_tie(k):
    assert float(method.similarity(torch.zeros(1, k), torch.tensor([0]))) == pytest.approx(1 / math.sqrt(k))
    tie = torch.full((1, k), -50.0)
    tie[0, :2] = 0
    assert float(method.similarity(tie, torch.tensor([1]))) == pytest.approx(math.sqrt(0.5), abs=1e-4)


# ---- The mixture


def slow_fit(values):
    """EM by the released code's recipe with scipy's Beta density, one component at a time."""
    x = np.clip(np.where(values <= 0, 1e-3, np.where(values >= 1, 1 - 1e-3, values)), 1e-4, 1 - 1e-4)
    ab, share = [(1.0, 2.0), (2.0, 1.0)], [0.5, 0.5]
    for _ in range(10):
        joint = np.array([np.maximum(w * distributions.beta.pdf(x, *p), 1e-12) for w, p in zip(share, ab, strict=True)])
        r = joint / joint.sum(0)
        ab = []
        for k in range(2):
            m = np.average(x, weights=r[k])
            v = np.average((x - m) ** 2, weights=r[k])
            t = m * (1 - m) / v - 1
            ab.append((m * t, (1 - m) * t))
        share = r.mean(1)
    return np.array(ab), share


APART = dict(clean=(400.0, 8.0), noisy=(8.0, 400.0))  # where one density lies, the other one is at its floor


@pytest.mark.parametrize("how", [{}, APART, dict(n=25_060, flipped=0.05), dict(n=40, clean=(3.0, 2.0))])
def test_the_fit_is_the_slow_one(how):
    values, _ = humps(**how)
    values[:3] = torch.tensor([0.0, 1.0, 1.0])
    mixture, (ab, share) = method.fit(values), slow_fit(values.numpy())
    np.testing.assert_allclose(torch.stack([mixture.alpha, mixture.beta], 1), ab, rtol=1e-9)
    np.testing.assert_allclose(mixture.share, share, rtol=1e-9)


def test_the_posterior_is_the_slow_one():
    values, _ = humps()
    mixture, (ab, share) = method.fit(values), slow_fit(values.numpy())
    p = method.posterior(mixture, values)
    joint = [
        w * distributions.beta.pdf(np.clip(values.numpy(), 1e-4, 1 - 1e-4), *q) for w, q in zip(share, ab, strict=True)
    ]
    inner = (values > 0.01) & (values < 0.99)
    np.testing.assert_allclose(p[inner], (joint[1] / (joint[0] + joint[1]))[inner.numpy()], rtol=1e-5, atol=1e-9)


def test_the_fit_finds_the_humps_and_the_weights_the_flips():
    """Mean weights of about 0.9 and 0.02 when the humps lie apart."""
    values, flip = humps()
    mixture = method.fit(values)
    weight = method.look_up(method.table(mixture), values).numpy()
    assert mixture.share[0] == pytest.approx(0.3, abs=0.07) and mixture.mean[1] > 0.8 > 0.3 > mixture.mean[0]
    assert weight[~flip].mean() > 0.9 and weight[flip].mean() < 0.1


def test_table_and_look_up_follow_the_posterior_by_its_rule():
    values, _ = humps()
    mixture = method.fit(values)
    table = method.table(mixture)
    grid = np.linspace(1e-12, 1 - 1e-12, 100)
    slow = method.posterior(mixture, torch.from_numpy(grid)).numpy()
    top = slow.argmax()
    slow[top:] = slow[top]
    np.testing.assert_allclose(table, slow, atol=1e-6)
    for value in (0.0, 0.004, 0.5, 0.995, 1.0):
        expected = np.clip(slow[min(99, math.floor(100 * value))], 1e-4, 1 - 1e-4)
        assert float(method.look_up(table, torch.tensor([value]))) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "shape",
    [
        ((2.0, 6.0), (1.5, 1.1)),
        ((1.5, 1.1), (6.0, 2.0)),
        ((0.5, 2.0), (0.4, 0.3)),
        ((30.0, 60.0), (60.0, 20.0)),  # both densities lie at their floor on the left
        ((6.0, 9.0), (25.0, 2.0)),
    ],
)
def test_the_table_never_falls(shape):
    """Also with an extremum inside: alpha_1 < alpha_0 lifts the left end, beta_1 > beta_0 drops the right one."""
    low, high = (torch.tensor(v, dtype=torch.float64) for v in zip(*shape, strict=True))
    mixture = method.Mixture(low, high, torch.tensor([0.5, 0.5], dtype=torch.float64))
    raw = method.posterior(mixture, torch.linspace(1e-3, 1 - 1e-3, 99, dtype=torch.float64))
    table = method.table(mixture)
    assert (raw.diff() < 0).any(), "the case tests nothing"
    assert (table.diff() >= 0).all() and table.max() > table.min()


def test_the_tables_ends_are_the_posterior_where_the_fit_clips_its_values():
    """Not at 1e-12 and 1 - 1e-12: densities grow without bound there."""
    alpha, beta, share = (torch.tensor(v, dtype=torch.float64) for v in ((0.3, 0.5), (2.0, 0.6), (0.4, 0.6)))
    table = method.table(method.Mixture(alpha, beta, share))

    def posterior(x):
        joint = share.numpy() * distributions.beta.pdf(x, alpha, beta)
        return joint[1] / joint.sum()

    assert float(table[0]) == pytest.approx(posterior(1e-4), rel=1e-6) != pytest.approx(posterior(1e-12), abs=0.05)
    assert float(table[-1]) == pytest.approx(posterior(1 - 1e-4), rel=1e-6)
    assert float(table[-1]) != pytest.approx(posterior(1 - 1e-12), abs=1e-6)


def test_components_are_named_by_their_means():
    turned = method.in_order(
        method.Mixture(torch.tensor([8.0, 1.0]), torch.tensor([1.0, 8.0]), torch.tensor([0.7, 0.3]))
    )
    assert turned.mean[1] > turned.mean[0] and turned.share[1] == pytest.approx(0.7)
    same = torch.tensor([2.0, 2.0])
    assert method.in_order(method.Mixture(same, same, torch.tensor([0.5, 0.5]))) is None


@pytest.mark.parametrize(
    "values",
    [
        torch.full((500,), 0.35),  # an untrained network: everything at 1 / sqrt(K)
        torch.full((500,), 1.0),
        torch.rand(5),  # too few
        torch.cat([torch.rand(500), torch.tensor([torch.nan])]),
    ],
)
def test_a_mixture_that_collapses_leaves_the_last_good_fit(values):
    assert method.fit(values) is None
    model = method.NoiseModel(500, 2)
    logits, labels = separable(500)
    assert model.refit(logits, labels, "similarity")
    before, shape = model.table.clone(), model.shape.clone()
    assert not model.refit(torch.zeros(500, 2), labels, "similarity")
    assert torch.equal(model.table, before) and torch.equal(model.shape, shape)
    assert torch.isfinite(model.weight).all()


def test_before_any_fit_every_weight_is_one():
    model = method.NoiseModel(50, 3)
    labels = torch.zeros(50, dtype=torch.long)
    assert not model.refit(torch.zeros(50, 3), labels, "similarity")
    assert model.weight.min() > 0.999 and model.weigh(torch.randn(50, 3), labels, "similarity").min() > 0.999


def test_no_spread_of_two_values_breaks_the_fit():
    """Two points of mass: variances are floored, so nothing is infinite."""
    mixture = method.fit(torch.cat([torch.zeros(300), torch.ones(700)]))
    assert mixture is not None and torch.isfinite(torch.stack([mixture.alpha, mixture.beta])).all()
    table = method.table(mixture)
    assert table[0] < 0.01 and table[-1] > 0.99


def test_losses_are_normalised_by_their_percentiles_and_turned_round():
    losses = torch.linspace(0, 10, 1001)
    low, high = method.loss_range(losses)
    assert (float(low), float(high)) == pytest.approx((0.5, 9.5))
    found = method.small_loss(torch.tensor([0.0, 0.5, 5.0, 9.5, 50.0]), low, high)
    assert found.tolist() == pytest.approx([1, 1, 0.5, 0, 0])


def separable(n, k=2, flipped=0.3, seed=0):
    """Logits that know the true class of n samples fairly well, and given labels of which a share is flipped."""
    gen = torch.Generator().manual_seed(seed)
    truth = torch.randint(k, (n,), generator=gen)
    logits = 4 * torch.nn.functional.one_hot(truth, k) + torch.randn(n, k, generator=gen)
    given = torch.from_numpy(noise.symmetric(truth.numpy(), flipped, k, seed))
    return logits, given


def test_a_fit_that_fails_keeps_the_losses_range_too():
    logits, given = separable(500, 4)
    model = method.NoiseModel(500, 4)
    assert model.refit(logits, given, "loss")
    before = model.range.clone(), model.weight.clone()
    assert not model.refit(torch.zeros(500, 4), given, "loss")
    assert torch.equal(model.range, before[0])
    assert model.refit(logits, given, "loss") and torch.equal(model.weight, before[1])


@pytest.mark.parametrize("kind", ["similarity", "loss"])
def test_a_noise_model_weighs_flipped_labels_down(kind):
    logits, given = separable(2000, 4)
    flip = given != logits.argmax(1)
    model = method.NoiseModel(2000, 4)
    assert model.refit(logits, given, kind)
    assert model.weight[~flip].mean() > 0.8 and model.weight[flip].mean() < 0.3
    assert torch.equal(model.weigh(logits, given, kind), model.weight)
    assert torch.allclose(model.belief, logits.softmax(1))


@pytest.mark.parametrize("kind", ["similarity", "loss"])
def test_a_refit_keeps_what_its_parts_give(kind):
    """To the bit, by the plain definition: values, the mixture's table, weights and beliefs."""
    logits, given = separable(2000, 4)
    model = method.NoiseModel(2000, 4)
    assert model.refit(logits, given, kind)
    values = method.similarity(logits, given)
    inside = torch.ones(2000, dtype=torch.bool)
    if kind == "loss":
        losses = torch.nn.functional.cross_entropy(logits, given, reduction="none")
        low, high = torch.quantile(losses, 0.05), torch.quantile(losses, 0.95)
        values, inside = 1 - ((losses - low) / (high - low)).clamp(0, 1), (losses >= low) & (losses <= high)
    mixture = method.fit(values[inside])
    table = method.table(mixture)
    assert torch.equal(model.table, table) and torch.equal(
        model.shape, torch.stack([mixture.alpha, mixture.beta]).float()
    )
    assert torch.equal(model.weight, method.look_up(table, values))
    assert torch.equal(model.belief, logits.softmax(1))


def test_only_the_mixture_over_losses_computes_losses(monkeypatch):
    logits, given = separable(500, 4)
    calls, real = [], torch.nn.functional.cross_entropy
    monkeypatch.setattr(method.F, "cross_entropy", lambda *a, **k: calls.append(1) or real(*a, **k))
    for kind, count in (("similarity", 0), ("bayes", 0), ("loss", 1)):
        model = method.NoiseModel(500, 4)
        assert model.refit(logits, given, kind) and len(calls) == count, kind


# ---- Loss


def slow_loss(logits, labels, weights, consistency):
    total = 0.0
    m, b, k = logits.shape
    for i in range(b):
        p = [logits[j, i].softmax(0) for j in range(m)]
        total += sum(-weights[j, i] * p[j][labels[i]].log() for j in range(m))
        if m == 2:
            total += consistency * sum((p[0][c] - p[1][c]) ** 2 for c in range(k)) / k
    return total / b


def test_the_loss_in_value_and_gradient():
    logits = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    labels, weights = torch.tensor([0, 3, 1, 1, 2]), torch.rand(2, 5, dtype=torch.float64)
    ours, slow = method.weighted_loss(logits, labels, weights, 5.0), slow_loss(logits, labels, weights, 5.0)
    assert float(ours.detach()) == pytest.approx(float(slow.detach()), rel=1e-5)
    gradients = [torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (ours, slow)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_plain_weights_give_two_cross_entropies_and_smoothing_is_torchs():
    logits, labels = torch.randn(2, 7, 3), torch.randint(3, (2, 7))
    ones = torch.ones(2, 7)
    expected = sum(torch.nn.functional.cross_entropy(x, y) for x, y in zip(logits, labels, strict=True))
    torch.testing.assert_close(method.weighted_loss(logits, labels, ones), expected)
    smooth = sum(
        torch.nn.functional.cross_entropy(x, y, label_smoothing=0.1) for x, y in zip(logits, labels, strict=True)
    )
    torch.testing.assert_close(method.weighted_loss(logits, labels, ones, smoothing=0.1), smooth)


def test_the_rest_of_a_label_goes_to_the_targets():
    logits, labels, targets = torch.randn(1, 4, 3), torch.tensor([0, 1, 2, 0]), torch.rand(4, 3).softmax(1)
    soft = method.weighted_loss(logits, labels, torch.zeros(1, 4), targets=targets)
    torch.testing.assert_close(soft, torch.nn.functional.cross_entropy(logits[0], targets))
    hard = method.weighted_loss(logits, labels, torch.ones(1, 4), targets=targets)
    torch.testing.assert_close(hard, torch.nn.functional.cross_entropy(logits[0], labels))


def test_swapping_hands_each_network_the_others_weights():
    weights = torch.tensor([[0.1, 0.2], [0.8, 0.9]])
    assert method.swap(weights).tolist() == weights.tolist()[::-1]


def test_coteaching_trains_on_the_others_small_losses():
    losses = torch.tensor([[1.0, 2, 3, 4], [4.0, 1, 3, 2]])
    weights = method.coteaching_weights(losses, 0.5)
    assert weights.tolist() == [[0, 2, 0, 2], [2, 2, 0, 0]], "a mean over the kept half"
    assert method.coteaching_weights(losses, 0.0).tolist() == [[1] * 4] * 2
    assert [method.forget_share(0.3, e, 10) for e in (0, 5, 10, 30)] == pytest.approx([0, 0.15, 0.3, 0.3])


# ---- Bayes' rule


def imitated(n=20_000, k=6, rate=0.3, seed=0):
    """P(true label | face) of n made faces, truth and given labels drawn from it, and the exact P(given | face)."""
    gen = torch.Generator().manual_seed(seed)
    q = (6 * torch.randn(n, k, generator=gen)).softmax(1)
    truth = torch.multinomial(q, 1, generator=gen).squeeze(1)
    given = torch.from_numpy(noise.symmetric(truth.numpy(), rate, k, seed))
    e = rate / (k - 1)
    return q, truth, given, (1 - rate - e) * q + e


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3, 0.6])
def test_the_rate_of_flips_is_seen_in_networks_that_imitate_them(rate):
    q, _, _, p = imitated(rate=rate)
    assert float(method.flip_rate(p)) == pytest.approx(rate, abs=0.01)
    torch.testing.assert_close(method.without_flips(p, torch.tensor(rate)), q, atol=2e-3, rtol=0)
    unsure = torch.full((50, 4), 0.25)
    assert torch.isfinite(method.without_flips(unsure, method.flip_rate(unsure))).all()


def test_labels_by_bayes_rule_are_the_slow_ones_and_calibrated():
    q, truth, given, _ = imitated()
    found = method.posterior_labels(q, given, 0.3)
    for row, label, p in list(zip(q, given, found, strict=True))[:20]:
        joint = [float(x) * (0.7 if c == label else 0.3 / 5) for c, x in enumerate(row)]
        np.testing.assert_allclose(p, np.array(joint) / sum(joint), rtol=1e-4, atol=1e-9)
    known = method.posterior_labels(q.clamp(min=1e-6), given, 0.0)
    assert torch.equal(known.argmax(1), given), "without flips the label is true"
    weight = found.gather(1, given.unsqueeze(1)).squeeze(1)
    for low in (0.0, 0.25, 0.5, 0.75):
        inside = (weight >= low) & (weight < low + 0.25)
        assert float((given == truth)[inside].float().mean()) == pytest.approx(float(weight[inside].mean()), abs=0.06)
    right = lambda labels: float((labels == truth).float().mean())
    assert right(found.argmax(1)) > max(right(given), right(q.argmax(1))) + 0.02, "both together know more"


def test_a_noise_model_by_bayes_rule_keeps_its_first_rate_and_weighs_each_batch():
    """Kind "bayes": the rate is seen in networks that imitate the given labels; later ones are only asked for p."""
    q, truth, given, p = imitated()
    model = method.NoiseModel(len(q), q.shape[1])
    assert model.refit(p.log(), given, "bayes") and float(model.rate) == pytest.approx(0.3, abs=0.01)
    assert model.refit(q.clamp(min=1e-9).log(), given, "bayes") and torch.equal(model.rate, method.flip_rate(p))
    e = model.rate / (q.shape[1] - 1)
    own = q.gather(1, given.unsqueeze(1)).squeeze(1)
    expected = (1 - model.rate) * own / ((1 - model.rate) * own + e * (1 - own))
    torch.testing.assert_close(model.weight, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(model.belief, q, atol=1e-4, rtol=0)
    torch.testing.assert_close(model.weigh(q[:7].clamp(min=1e-9).log(), given[:7], "bayes"), model.weight[:7])
    assert model.weight[given == truth].mean() > 0.85 and model.weight[given != truth].mean() < 0.4


def test_a_loss_to_distributions_is_torchs():
    logits, goal = torch.randn(2, 4, 3), torch.rand(4, 3).softmax(1)
    expected = sum(torch.nn.functional.cross_entropy(one, goal) for one in logits)
    torch.testing.assert_close(method.distribution_loss(logits, goal), expected)


# ---- Noise


def test_symmetric_noise_flips_the_stated_share_to_the_other_classes_alike():
    labels = np.repeat(np.arange(5), 4000)
    given = noise.symmetric(labels, 0.3, 5, seed=1)
    assert (given != labels).mean() == pytest.approx(0.3, abs=0.01)
    to = np.bincount((given - labels)[given != labels] % 5, minlength=5)
    assert to[0] == 0 and distributions.chisquare(to[1:]).pvalue > 1e-3
    assert (noise.symmetric(labels, 0.3, 5, seed=1) == given).all() and (
        noise.symmetric(labels, 0.3, 5, 2) != given
    ).any()
    assert (noise.symmetric(labels, 0.0, 5, seed=1) == labels).all()


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan")])
def test_rates_outside_the_range_are_one_line(rate):
    with pytest.raises(cli.UserError) as error:
        noise.symmetric(np.zeros(4, int), rate, 3, 0)
    one_line_error(error, "--noise", "[0, 1)")


def test_a_class_that_vanishes_is_one_line():
    with pytest.raises(cli.UserError) as error:
        noise.check_classes(np.array([0, 0, 2]), ("a", "b", "c"))
    one_line_error(error, "b", "lower --noise")
    assert noise.check_classes(np.array([0, 0, 2]), ("a", "b", "c"), allowed=("b",)) == ["b"]


# ---- Networks


def test_the_224_pixel_network_is_torchvisions():
    from torchvision.models import resnet18

    theirs, ours = resnet18(num_classes=7).eval(), nets.ResNet(7).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.rand(1, 3, 64, 64) * 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in nets.networks.PIXELS["imagenet"])
    torch.testing.assert_close(ours(x), theirs((x - mean) / std), rtol=1e-4, atol=1e-4)


def test_small_networks_keep_the_resolution_they_promise():
    for stem, side in (("small", 24), ("small2", 12), ("imagenet", 6)):
        net = nets.ResNet(8, stem, width=8, units=(1,)).eval()
        seen = []
        net.layer1.register_forward_hook(lambda m, i, o, seen=seen: seen.append(o.shape[-1]))
        assert net(torch.rand(2, 1, 24, 24)).shape == (2, 8) and seen == [side]


def saved(net, path, drop=(), **changes):
    state = {k: v for k, v in net.state_dict().items() if not k.endswith(tuple(drop) or ("\0",))}
    torch.save(state | changes, path)
    return path


def test_weights_of_a_file_replace_every_layer_but_the_classifier(tmp_path):
    torch.manual_seed(0)
    source, net = nets.ResNet(5, width=8), nets.ResNet(8, width=8)
    head = net.fc.weight.clone()
    for drop in ((), ("num_batches_tracked",), ("fc.weight", "fc.bias")):
        fresh = nets.ResNet(8, width=8)
        fresh.fc.load_state_dict(net.fc.state_dict())
        nets.load_body(fresh, saved(source, tmp_path / "w.pth", drop))
        assert all(
            torch.equal(v, source.state_dict()[k]) for k, v in fresh.state_dict().items() if not k.startswith("fc.")
        )
        assert torch.equal(fresh.fc.weight, head)


def test_weights_that_would_be_ignored_are_refused(tmp_path):
    """The silent failures of public code: other names, missing layers, the same random numbers."""
    torch.manual_seed(0)
    net = nets.ResNet(8, width=8)
    renamed = {f"features.{k}": v for k, v in net.state_dict().items()}
    torch.save(renamed, tmp_path / "features.pth")
    cases = {
        tmp_path / "features.pth": "keys missing",
        saved(nets.ResNet(8, width=8), tmp_path / "less.pth", ("layer4.0.conv1.weight",)): "layer4.0.conv1.weight",
        saved(nets.ResNet(8, width=16), tmp_path / "wide.pth"): "shapes differ",
        saved(net, tmp_path / "same.pth"): "left conv1.weight",
        tmp_path / "none.pth": "no such weights file",
    }
    for path, said in cases.items():
        with pytest.raises(cli.UserError) as error:
            nets.load_body(net, path)
        one_line_error(error, path, said)


def test_imagenet_weights_that_cannot_be_had_are_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(cli.MissingData) as error:
        nets.load_imagenet(nets.ResNet(8))
    one_line_error(error, "ImageNet", "--weights1")


def test_saved_peers_come_back_bit_by_bit(tmp_path):
    peers, other = (nets.PeerNetworks([nets.ResNet(3, "small", 8, (1,)) for _ in range(2)]) for _ in range(2))
    checkpoint.save_weights(tmp_path / "w.safetensors", peers)
    checkpoint.load_weights(tmp_path / "w.safetensors", other)
    assert all(torch.equal(a, b) for a, b in zip(peers.state_dict().values(), other.state_dict().values(), strict=True))
