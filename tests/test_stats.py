"""Intervals and verdicts on hand-made cases, against scipy, and by simulation."""

import math

import numpy as np
import pytest
from scipy import stats as reference

from facepapers.common.evidence import statistics
from facepapers.common.protocols.metrics import Metric, sums

ERROR = Metric("error", "error", True, lambda p: p["error"], needs=("error",))
SCORE = Metric("score", "score", False, lambda p: p["error"], needs=("error",))
MEAN_AGAIN = Metric("median", "of the same name", True, statistic=lambda p: 2 * np.mean(p["error"]), needs=("error",))
MEDIAN = Metric("median", "median", True, statistic=lambda p: np.median(p["error"]), needs=("error",))


def run(*values):
    return {"error": np.array(values, float)}


def test_one_seed_gives_the_interval_over_samples():
    values = np.random.default_rng(0).normal(5, 2, 60)
    interval = statistics.level(ERROR, [run(*values)])
    expected = reference.norm.interval(0.90, values.mean(), reference.sem(values))
    np.testing.assert_allclose((interval.low, interval.high), expected)
    assert (interval.n_seeds, interval.n_samples, interval.mean) == (1, 60, pytest.approx(values.mean()))


def test_seeds_alone_give_students_interval():
    """Without spread between samples only the seeds count."""
    interval = statistics.level(ERROR, [run(5, 5, 5), run(5.4, 5.4, 5.4), run(4.9, 4.9, 4.9)])
    values = [5, 5.4, 4.9]
    expected = reference.t.interval(0.90, 2, np.mean(values), reference.sem(values))
    np.testing.assert_allclose((interval.low, interval.high), expected)


def test_what_seeds_and_samples_add_is_counted_once():
    """The slow way: the spread of the runs, and the covariance of each two runs over the samples."""
    rng = np.random.default_rng(1)
    faces = rng.normal(0, 2, 40)
    runs = [run(*(5 + seed / 9 + faces + rng.normal(0, 1, 40))) for seed in range(4)]
    between = reference.sem([r["error"].mean() for r in runs]) ** 2
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    shared = np.mean([np.cov(runs[i]["error"], runs[j]["error"])[0, 1] for i, j in pairs]) / 40
    assert shared > between / 4 > 0
    degrees = 3 / (between / (between + shared))
    expected = reference.t.ppf(0.95, degrees) * math.sqrt(between + shared)
    assert statistics.level(ERROR, runs).half == pytest.approx(expected)


def test_a_covariance_below_zero_is_chance_and_narrows_nothing():
    assert statistics.forecast(0, 1, -0.1, 4, 0.9) == statistics.forecast(0, 1, 0.0, 4, 0.9)


def test_a_level_ends_at_zero_unless_it_is_a_difference():
    assert statistics.level(ERROR, [run(0, 0, 1, 9)]).low == 0
    below = statistics.level(ERROR, [run(-1, -1, -2, -10)])
    assert below.low < below.mean < below.high and below.mean == -3.5


def test_runs_without_any_spread():
    """Equal runs are one run; without spread between samples either, the interval is a point."""
    values = np.random.default_rng(1).normal(5, 2, 40)
    one, three = (statistics.level(ERROR, [run(*values)] * count) for count in (1, 3))
    assert (three.low, three.high) == pytest.approx((one.low, one.high))
    assert statistics.level(ERROR, [run(2, 2)] * 3).half == 0


def test_a_statistic_that_is_no_mean_is_resampled():
    values = np.random.default_rng(2).normal(5, 2, 400)
    interval = statistics.level(MEDIAN, [run(*values)])
    assert interval.mean == np.median(values) and interval.n_samples == 400
    expected = 1.645 * 1.2533 * 2 / math.sqrt(400)  # the median's standard error under a normal distribution
    assert interval.half == pytest.approx(expected, rel=0.35)
    assert statistics.level(MEDIAN, [run(*values)]) == interval  # the same draws each time


HITS = Metric(
    "hits", "hits (%)", False, needs=("hit",), share_of=lambda p: len(p["hit"]),
    statistic=lambda p: 100 * p["hit"].mean(), resampled=lambda p, counts: 100 * sums(p["hit"], counts) / counts.sum(0),
)  # fmt: skip


def hits(right, n=200):
    return {"hit": np.arange(n) < right}


def log_odds(right, n=200):
    return np.log((right + 0.5) / (n - right + 0.5))


def test_a_share_has_its_interval_on_its_log_odds():
    """The slow way; the ends' log odds lie as far from the value's on both sides."""
    found, rng = statistics.level(HITS, [hits(196)]), np.random.default_rng(0)
    drawn = [(rng.integers(0, 200, 200) < 196).sum() for _ in range(400)]
    half = reference.norm.ppf(0.95) * np.std([log_odds(k) for k in drawn], ddof=1)
    ends = log_odds(2 * np.array([found.low, found.high])) - log_odds(196)
    assert ends == pytest.approx([-half, half]) and found.mean == 98
    assert found.mean - found.low > 1.5 * (found.high - found.mean)
    assert (found.n_seeds, found.n_samples) == (1, 200)


def test_a_share_over_runs():
    """Student's t over the runs' log odds, the samples' part counted once."""
    runs = [hits(k) for k in (190, 194, 198)]
    found = statistics.level(HITS, runs)
    rng, rows = np.random.default_rng(0), []
    for _ in range(400):
        drawn = rng.integers(0, 200, 200)
        rows.append([log_odds((drawn < k).sum()) for k in (190, 194, 198)])
    covariance = np.cov(np.transpose(rows))
    shared = (covariance.sum() - np.trace(covariance)) / 6
    spread = np.std([log_odds(k) for k in (190, 194, 198)], ddof=1)
    half = statistics._half(spread, shared, 3, 0.9)
    ends = log_odds(2 * np.array([found.low, found.high])) - log_odds(194)
    assert ends == pytest.approx([-half, half]) and found.mean == pytest.approx(97)


@pytest.mark.parametrize(("right", "mean"), [(0, 0), (200, 100)])
def test_a_share_without_errors_or_without_hits(right, mean):
    found = statistics.level(HITS, [hits(right)])
    assert (found.mean, found.low, found.high) == pytest.approx((mean, mean, mean))
    beside = statistics.level(HITS, [hits(right), hits(abs(right - 1)), hits(right)])
    assert 0 <= beside.low < beside.mean < beside.high <= 100


def test_gains_of_a_share_stay_on_its_own_scale():
    gain = statistics.contrast(HITS, [hits(199)], [hits(180)])
    assert gain.mean == pytest.approx(9.5) and gain.mean - gain.low == pytest.approx(gain.high - gain.mean)


def test_errors_and_rates_have_no_interval_below_zero_but_gains_do():
    wide = [run(0, 0, 9), run(0, 0, 1), run(0, 0, 0)]
    assert statistics.level(ERROR, wide).low == 0 < statistics.level(ERROR, wide).high
    assert statistics.contrast(ERROR, wide, [run(0, 0, 1)] * 3).low < 0


def test_a_bootstrap_gives_every_run_its_own_values():
    """Also where Python hands the place, and so the id, of a run that is gone to the next one."""
    shared = statistics.Bootstrap()
    for size in range(5, 25):
        values = np.full(9, float(size))
        np.testing.assert_array_equal(shared.values(MEDIAN, {"error": values}), size)
        np.testing.assert_array_equal(shared.values(MEAN_AGAIN, {"error": values}), 2 * size)


def interval(low, high, seeds=3):
    return statistics.Interval((low + high) / 2, low, high, seeds, 100)


@pytest.mark.parametrize(
    ("low", "high", "lower_is_better", "higher_is_better"),
    [
        (6.2, 6.4, "replicated", "replicated"),
        (6.0, 6.5, "replicated", "replicated"),  # on the edge is inside
        (5.0, 5.9, "better", "worse"),
        (6.6, 7.0, "worse", "better"),
        (5.9, 6.1, "inconclusive", "inconclusive"),
        (6.4, 6.6, "inconclusive", "inconclusive"),
        (5.0, 8.0, "inconclusive", "inconclusive"),
    ],
)
def test_level_status(low, high, lower_is_better, higher_is_better):
    assert statistics.level_status(ERROR, interval(low, high), 6.25, 0.25) == lower_is_better
    assert statistics.level_status(SCORE, interval(low, high), 6.25, 0.25) == higher_is_better


@pytest.mark.parametrize("metric", [ERROR, SCORE])
@pytest.mark.parametrize(
    ("low", "high", "side"),
    [
        (6.2, 6.4, "no difference seen"),
        (5.9, 6.1, "no difference seen"),  # reaches into the band
        (5.0, 5.9, "lower"),
        (6.6, 7.0, "higher"),
    ],
)
def test_a_level_of_one_or_two_seeds_gets_no_verdict(metric, low, high, side):
    assert statistics.level_status(metric, interval(low, high, 1), 6.25, 0.25) == f"one seed: {side}"
    assert statistics.level_status(metric, interval(low, high, 2), 6.25, 0.25) == f"two seeds: {side}"


@pytest.mark.parametrize(
    ("low", "high", "seeds", "status"),
    [
        (0.1, 0.5, 3, "supported"),
        (-0.5, -0.1, 3, "refuted"),
        (-0.1, 0.5, 3, "inconclusive"),
        (0.0, 0.5, 3, "inconclusive"),
        (0.1, 0.5, 2, "two seeds: higher"),  # two seeds say little about their spread
        (-0.5, -0.1, 1, "one seed: lower"),
        (-0.1, 0.5, 1, "one seed: no difference seen"),
    ],
)
def test_contrast_status(low, high, seeds, status):
    assert statistics.contrast_status(interval(low, high, seeds)) == status


@pytest.mark.parametrize(
    ("low", "high", "rule", "status"),
    [
        (-0.9, 0.2, dict(margin=1.0), "supported"),
        (-1.1, 0.2, dict(margin=1.0), "inconclusive"),
        (-3.0, -1.1, dict(margin=1.0), "refuted"),
        (-1.5, -0.5, dict(margin=1.0), "inconclusive"),  # a loss within the margin
        (-1.0, 0.2, dict(margin=1.0), "inconclusive"),  # on the edge says nothing
        (-0.9, 0.9, dict(within=1.0), "supported"),
        (0.1, 0.9, dict(within=1.0), "supported"),
        (0.5, 1.1, dict(within=1.0), "inconclusive"),
        (1.1, 2.0, dict(within=1.0), "refuted"),
        (-2.0, -1.1, dict(within=1.0), "refuted"),
    ],
)
def test_claims_of_not_worse_and_of_no_difference(low, high, rule, status):
    assert statistics.contrast_status(interval(low, high, 3), **rule) == status
    assert statistics.contrast_status(interval(low, high, 2), **rule).startswith("two seeds: ")


@pytest.mark.parametrize(("low", "high", "seeds", "same"), [
    (-0.9, 0.9, 3, True), (-0.9, 0.9, 2, False), (-1.0, 0.9, 3, False), (-0.9, 1.0, 3, False), (1.1, 1.2, 3, False),
    (0.1, 0.9, 3, True),
])  # fmt: skip
def test_equivalent_is_an_interval_within_the_margin(low, high, seeds, same):
    assert statistics.equivalent(interval(low, high, seeds), 1.0) is same


def test_a_gain_is_positive_when_the_first_side_is_better():
    low, high = [run(4, 4), run(5, 5), run(4.5, 4.5)], [run(6, 6), run(7, 7), run(6.5, 6.5)]
    assert statistics.contrast(ERROR, low, high).mean == pytest.approx(2)
    assert statistics.contrast(ERROR, high, low).mean == pytest.approx(-2)
    assert statistics.contrast(SCORE, low, high).mean == pytest.approx(-2)


def test_a_contrast_is_paired_by_seed_and_by_sample():
    """Large spreads that both sides share vanish from the difference; the order of the runs matters."""
    rng = np.random.default_rng(3)
    hard = rng.normal(0, 5, 50)  # hard faces are hard for both
    ours = [run(*(5 + seed + hard)) for seed in (0, 3, 6)]
    theirs = [run(*(5.2 + seed + hard)) for seed in (0, 3, 6)]
    gain = statistics.contrast(ERROR, ours, theirs)
    assert gain.mean == pytest.approx(0.2) and gain.half < 1e-9
    assert statistics.contrast_status(gain) == "supported"
    assert statistics.contrast_status(statistics.contrast(ERROR, ours, theirs[::-1])) == "inconclusive"


def test_a_contrast_against_scipys_paired_test():
    """One sample a run: what is left is the paired t interval at 95 %."""
    rng = np.random.default_rng(4)
    a, b = rng.normal(5, 1, 6), rng.normal(5.5, 1, 6)
    gain = statistics.contrast(ERROR, [run(v, v) for v in a], [run(v, v) for v in b])
    expected = reference.ttest_rel(b, a).confidence_interval(0.95)
    np.testing.assert_allclose((gain.low, gain.high), (expected.low, expected.high))


def test_a_contrast_needs_as_many_runs_on_each_side():
    with pytest.raises(ValueError, match="as many runs"):
        statistics.contrast(ERROR, [run(1, 2)], [run(1, 2), run(1, 2)])


@pytest.mark.parametrize(("seed_effect", "own"), [(0, 0.5), (0.2, 0.5), (0.2, 2), (0, 2), (1, 0.5)])
def test_the_interval_covers_the_truth_as_often_as_it_says(seed_effect, own):
    """Simulated replications: seeds and test faces both drawn anew; 90 % promised."""
    rng, hits, trials = np.random.default_rng(5), 0, 1500
    for _ in range(trials):
        faces = rng.normal(0, 2, 50)
        runs = [run(*(5 + rng.normal(0, seed_effect) + faces + rng.normal(0, own, 50))) for _ in range(3)]
        found = statistics.level(ERROR, runs)
        hits += found.low <= 5 <= found.high
    assert 0.87 <= hits / trials <= 0.93  # two standard errors of the simulation are 0.015
