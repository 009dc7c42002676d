"""The attribute paper's method: cuts, frozen trunk, folding, masked loss, cost of patterns, choice, invariance."""

import copy
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from facepapers.common.cli import UserError
from facepapers.common.vision import networks
from facepapers.papers.face_attributes import method
from tests.conftest import one_line_error

torch.set_num_threads(1)


def small_net(seed=0):
    """An IResNet of 16 px whose statistics are not the initial ones."""
    torch.manual_seed(seed)
    net = networks.IResNet((1, 2, 1, 1), (8, 16, 24, 24), features=5, input_px=16)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    return net.eval()


def faces(n=6, px=16, seed=1):
    return torch.randn(n, 3, px, px, generator=torch.Generator().manual_seed(seed))


# ---- Cuts


@pytest.mark.parametrize("net", [small_net(), networks.MobileFaceNetReLU().eval()], ids=["iresnet", "mobilefacenet"])
def test_stages_one_after_another_are_the_network(net):
    stages = method.split(net)
    assert len(stages) == 5
    x = faces(2, net.input_px)
    with torch.no_grad():
        assert torch.equal(torch.nn.Sequential(*stages)(x), net(x))
    held = {id(p) for stage in stages for p in stage.parameters()}
    assert held == {id(p) for p in net.parameters()}


@pytest.mark.parametrize(
    ("cuts", "said"),
    [
        (("layer2.1.conv1",), ("inside the residual block layer2.1",)),
        (("layer2.0.downsample.0",), ("inside the residual block layer2.0",)),
        (("layer9.0",), ("no block of this trunk", "layer2.0")),
        (("stem",), ("no block",)),
        (("layer3.0", "layer2.0"), ("from the input to the top",)),
        (("layer3.0", "layer3.0"), ("once",)),
    ],
)
def test_a_bad_cut_is_one_line(cuts, said):
    with pytest.raises(UserError) as error:
        method.split(small_net(), cuts)
    one_line_error(error, "--cuts", *said)


def test_a_cut_inside_the_mobilefacenet_names_its_block():
    with pytest.raises(UserError, match=r"inside the residual block features\.3"):
        method.split(networks.MobileFaceNetReLU(), ("features.3.conv.1",))


def test_other_networks_cannot_be_cut():
    with pytest.raises(UserError, match="no trunk"):
        method.split(torch.nn.Linear(2, 2))


# ---- Branches on a frozen trunk


def learn(net, x, labels, steps=3, **call):
    """A few real updates of whatever requires a gradient."""
    learned = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learned, 0.1)
    for _ in range(steps):
        net.train()
        loss, _ = method.joint_loss(net(x, **call), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return learned


@pytest.mark.parametrize("folded", [False, True])
def test_the_identity_output_is_the_same_to_the_bit_after_training_branches(folded):
    net, x = small_net(), faces()
    with torch.no_grad():
        before = net(x)
    state = copy.deepcopy(net.state_dict())
    stages = method.split(net)
    shared = method.SharedNet(stages, {f"a{k}": method.Branch(stages, k, 3, 5) for k in range(1, 7)})
    if folded:
        for branch in shared.branches.values():
            method.fold(branch)
    own = [p.clone() for p in shared.branches.parameters()]  # a bias below a batch's own mean has no effect
    learn(shared, x, {f"a{k}": torch.arange(6) % 3 for k in range(1, 7)})
    learned = list(shared.branches.parameters())
    assert all(a.dim() == 1 or not torch.equal(a, b) for a, b in zip(own, learned, strict=True)), "must learn"
    shared.train()
    with torch.no_grad():
        assert torch.equal(shared(x, identity=True)["identity"], before)
        assert torch.equal(net(x), before)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items()), "statistics included"


def test_a_moving_trunk_changes_the_identity_output():
    """The control of the test above: the same check sees a change where there is one."""
    net, x = small_net(), faces()
    with torch.no_grad():
        before = net(x)
    stages = method.split(net)
    moving = method.SharedNet(stages, {"a": method.Branch(stages, 6, 3, 5)}, moving=True)
    learn(moving, x, {"a": torch.arange(6) % 3})
    with torch.no_grad():
        assert not torch.allclose(net.eval()(x), before)


@pytest.mark.parametrize("start", range(1, 7))
def test_an_untrained_branch_reads_the_trunks_own_embedding_and_the_prefix_may_be_given(start):
    net, x = small_net(), faces()
    stages = method.split(net)
    shared = method.SharedNet(stages, {"a": method.Branch(stages, start, 3, 5)}).eval()
    with torch.no_grad():
        expected = shared.branches["a"].head(net(x))
        torch.testing.assert_close(shared(x)["a"], expected)
        prefix = x
        for stage in stages[: start - 1]:
            prefix = stage(prefix)
        torch.testing.assert_close(shared(prefix, first=start)["a"], expected)


def test_the_trunk_runs_once_and_no_further_than_needed():
    stages = method.split(small_net())
    starts = {"a": 3, "b": 2, "c": 3}
    shared = method.SharedNet(stages, {n: method.Branch(stages, k, 2, 5) for n, k in starts.items()}).eval()
    ran = []
    for number, stage in enumerate(shared.trunk, 1):
        stage.register_forward_hook(lambda *_, number=number: ran.append(number))
    shared(faces())
    assert ran == [1, 2]
    shared(faces(), identity=True)
    assert ran[2:] == [1, 2, 3, 4, 5]


def test_folding_changes_nothing_but_the_layers():
    net = networks.MobileFaceNetReLU().eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.2)
    stages = method.split(net)
    branch = method.Branch(stages, 3, 4, 128).eval()
    x = torch.randn(2, 64, 28, 28)
    with torch.no_grad():
        before = branch(x)
        folded = method.fold(branch).train()
        torch.testing.assert_close(folded(x), before, rtol=1e-3, atol=1e-4)
    norms = [m for m in folded.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert not norms and all(p.requires_grad for p in folded.parameters())


def test_one_stage_only_relearns_that_stage():
    stages = method.split(small_net())
    shared = method.SharedNet(stages, {"a": method.Branch(stages, 3, 2, 5, only=3)})
    before = copy.deepcopy(shared.branches["a"].state_dict())
    learn(shared, faces(), {"a": torch.arange(6) % 2})
    after = shared.branches["a"].state_dict()
    changed = {k.split(".")[1] if k.startswith("stages") else k.split(".")[0] for k in after
               if not torch.equal(after[k], before[k])}  # fmt: skip
    assert changed == {"0", "head"}, "stage 3 is the copy's first; stages 4 and 5 keep weights and statistics"


def test_scratch_probe_and_hidden_layer():
    stages = method.split(small_net())
    scratch = method.Branch(stages, 1, 2, 5, scratch=True)
    assert not torch.equal(scratch.stages[0][0][0].weight, stages[0][0][0].weight)
    probe = method.Branch(stages, 3, 2, 16, grid=2)
    assert not len(probe.stages) and probe(torch.randn(4, 16, 4, 4)).shape == (4, 2)
    wanted = sum(p.numel() for p in stages[3].parameters())
    hidden = method.Branch(stages, 6, 2, 5, hidden=method.hidden_width(wanted, 5, 2))
    assert abs(sum(p.numel() for p in hidden.parameters()) - wanted) < 10


def test_the_readout_standardises_what_it_sees():
    stages = method.split(small_net())
    branch = method.Branch(stages, 6, 2, 5)
    x = 7 + 3 * torch.randn(200, 5)
    branch.standardise(x)
    seen = []
    branch.head.register_forward_hook(lambda m, given, out: seen.append(given[0]))
    branch(x)
    assert seen[0].mean(0).abs().max() < 1e-4 and (seen[0].std(0) - 1).abs().max() < 1e-4


def test_a_channel_that_never_moved_counts_nothing_when_it_does():
    branch = method.Branch(method.split(small_net()), 6, 2, 5)
    x = 7 + 3 * torch.randn(200, 5)
    x[:, 2] = 0.5
    branch.standardise(x)
    x[:, 2] = 1.5
    x.requires_grad_()
    branch(x).square().sum().backward()
    assert torch.isfinite(x.grad).all() and (x.grad[:, 2] == 0).all() and (x.grad[:, 1] != 0).any()


# ---- Loss


def test_the_joint_loss_by_hand():
    scores = {"a": torch.tensor([[0.0, 0.0], [2.0, 0.0]]), "b": torch.tensor([[1.0, 0.0, 0.0]])}
    targets = {"a": torch.tensor([0, 1]), "b": torch.tensor([2])}
    loss, parts = method.joint_loss(scores, targets)
    a = (np.log(2) + np.log(1 + np.exp(2.0))) / 2
    b = np.log(np.e + 2)
    assert loss.item() == pytest.approx((a + b) / 2) and parts["a"].item() == pytest.approx(a)


def test_a_missing_label_adds_zero_and_no_gradient():
    net = small_net()
    stages = method.split(net)
    shared = method.SharedNet(stages, {n: method.Branch(stages, 4, 3, 5) for n in "ab"}).train()
    rows = {"a": torch.tensor([True, False, True, True, False, True]), "b": torch.zeros(6, dtype=torch.bool)}
    scores = shared(faces(), rows)
    assert scores["a"].shape == (4, 3) and scores["b"].shape == (0, 3)
    loss, parts = method.joint_loss(scores, {"a": torch.tensor([0, 1, 2, 0]), "b": torch.zeros(0, dtype=torch.long)})
    loss.backward()
    assert parts["b"].item() == 0 and torch.isfinite(loss) and loss.item() == pytest.approx(parts["a"].item() / 2)
    gradients = [p.grad for p in shared.branches["b"].parameters() if p.grad is not None]
    assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients)
    assert shared.branches["a"].head.weight.grad.abs().sum() > 0


def test_slices_of_a_batch_average_to_the_whole():
    torch.manual_seed(0)
    score, target = torch.randn(10, 4), torch.randint(4, (10,))
    keep = torch.arange(10) % 4 > 0  # seven labels: uneven over the halves
    whole, _ = method.joint_loss({"a": score[keep]}, {"a": target[keep]})
    halves = []
    for part in (slice(0, 5), slice(5, 10)):
        k = keep[part]
        halves.append(method.joint_loss({"a": score[part][k]}, {"a": target[part][k]}, {"a": int(keep.sum())}, 2)[0])
    assert sum(halves).item() / 2 == pytest.approx(whole.item())
    assert int(keep[:5].sum()) != int(keep[5:].sum())


def test_years_as_soft_labels_and_back():
    years = torch.tensor([0, 30, 100, 116])
    soft = method.soft_years(years, 100, 2.0)
    torch.testing.assert_close(soft.sum(1), torch.ones(4))
    assert soft.argmax(1).tolist() == [0, 30, 100, 100]
    assert method.expected_median(soft)[1].item() == pytest.approx(30, abs=0.01)
    one_hot = method.soft_years(years, 100, 0)
    assert torch.equal(one_hot, F.one_hot(years.clamp(max=100), 101).float())
    halves = torch.zeros(1, 101)
    halves[0, 20], halves[0, 40] = 0.3, 0.7
    median = method.expected_median(halves).item()
    errors = [0.3 * abs(20 - m) + 0.7 * abs(40 - m) for m in (median, 34.0, 20.0)]
    assert errors[0] == min(errors), "the mean, 34, errs more in absolute terms"


# ---- Cost and choice


def test_cost_of_patterns_by_hand():
    """Computed by hand for a 2-2-2-2 residual net of width 64 at 112 px: 18 layers in five steps."""
    stem, first = 3 * 64 * 49 * 56 * 56, 4 * 64 * 64 * 9 * 28 * 28
    later = lambda c, side: (c // 2 * c + 3 * c * c) * 9 * side * side + c // 2 * c * side * side
    stages = [stem + first, later(128, 14), later(256, 7), later(512, 4)]
    total = sum(stages)
    assert total / 1e9 == pytest.approx(0.485, abs=0.004)
    relative = lambda starts: method.pattern_macs(stages, starts, identity=True) / total
    assert relative(dict(age=5, emotion=5, gender=5, ethnicity=5)) == 1
    assert relative(dict(age=4, emotion=4, gender=5, ethnicity=5)) == pytest.approx(1.55, abs=0.01)
    assert relative(dict(emotion=3, age=4, gender=5, ethnicity=5)) == pytest.approx(1.77, abs=0.01)
    assert relative(dict(age=3, emotion=3, gender=4, ethnicity=4)) == pytest.approx(2.53, abs=0.02)
    assert relative(dict(age=1, emotion=1, gender=1, ethnicity=1)) == 5.0, "four copies beside the identity network"


def test_the_formula_is_what_the_flop_counter_sees():
    stages = method.split(small_net())
    per_stage = method.stage_macs(stages, 16)
    heads = {n: 5 * 3 for n in "abc"}
    for starts in ((1, 3, 6), (2, 2, 2), (6, 6, 6), (4, 5, 3)):
        pattern = dict(zip("abc", starts, strict=True))
        shared = method.SharedNet(stages, {n: method.Branch(stages, k, 3, 5) for n, k in pattern.items()}).eval()
        assert method.macs(shared, faces(1)) == method.pattern_macs(per_stage, pattern, heads), pattern


def test_published_cost_of_the_mobilefacenet():
    """0.234 G multiply-adds in all (half of the counter's flops), none lost between the stages."""
    net = networks.MobileFaceNetReLU().eval()
    per_stage = method.stage_macs(method.split(net), 112)
    assert sum(per_stage) == method.macs(net, torch.zeros(1, 3, 112, 112)) == 233_810_432


def test_the_cheapest_pattern_within_the_margin():
    per_stage = [10, 10, 10]
    validation = {
        "age": {4: 50.0, 3: 54.2, 2: 55.0, 1: 54.9},
        "gender": {4: 94.5, 3: 95.0, 2: 95.2, 1: 95.1},
    }
    assert method.choose(validation, per_stage, 1.0, identity=True) == {"age": 3, "gender": 4}
    # Without an identity output the trunk's top need not run: a second start at stage 3 is as cheap, and better.
    assert method.choose(validation, per_stage, 1.0) == {"age": 3, "gender": 3}
    assert method.choose(validation, per_stage, 0.0) == {"age": 2, "gender": 2}
    assert method.choose(validation, per_stage, 9.0) == {"age": 4, "gender": 4}
    tie = {"age": {4: 1.0, 3: 5.0, 2: 5.0}}
    assert method.choose(tie, per_stage, 0.0) == {"age": 3}


def test_the_choice_equals_a_search_over_all_patterns():
    rng = np.random.default_rng(0)
    for _ in range(20):
        per_stage = rng.integers(1, 9, 3).tolist()
        validation = {n: {k: float(rng.integers(0, 5)) for k in (1, 2, 3, 4)} for n in "ab"}
        chosen = method.choose(validation, per_stage, 1.0)
        allowed = [
            dict(zip("ab", p, strict=True))
            for p in itertools.product((1, 2, 3, 4), repeat=2)
            if all(validation[n][k] >= max(validation[n].values()) - 1 for n, k in zip("ab", p, strict=True))
        ]
        cost = lambda p, c=per_stage: method.pattern_macs(c, p)
        assert cost(chosen) == min(map(cost, allowed)) and chosen in allowed


# ---- Invariance


def test_identity_variance_by_hand():
    features = torch.tensor([[0.0, 0], [2, 0], [10, 0], [10, 4], [99, 99]])
    within, between = method.identity_variance(features, torch.tensor([3, 3, 5, 5, 8]))
    assert within.tolist() == [1, 1, 4, 4], "the person with one image is left out"
    assert between.tolist() == pytest.approx([4.5**2 + 1, 4.5**2 + 1, 4.5**2 + 1, 4.5**2 + 1])
