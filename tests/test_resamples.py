"""Metrics on many resamples at once against their definition on each resample, index by index."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from facepapers.common.evidence import claims, runs, statistics
from facepapers.common.protocols import metrics, verification
from facepapers.common.protocols.metrics import Metric
from tests.conftest import REPOSITORY

PAPERS = claims.papers(REPOSITORY)


def pairs(rng, n, *endings):
    """Lists of n verification pairs with ties, distances at both ends of the grid, and folds of three pairs."""
    found = {}
    for ending in endings:
        distance = np.round(rng.uniform(0.5, 3, n) / 0.05) * 0.05
        distance[:4] = 0, 3.985, 3.99, 4
        found |= {f"distance{ending}": distance.astype(np.float32), f"same{ending}": rng.random(n) < 0.5,
                  f"fold{ending}": np.arange(n) % (n // 3)}  # fmt: skip
    return found


def made_up(paper, n=30):
    """Predictions with everything that a paper's metrics need, of so few samples that groups vanish in a resample."""
    rng = np.random.default_rng(0)
    flags = lambda size=n: rng.random(size) < 0.5
    if paper == "arcface":
        found = pairs(rng, n, "", "_bayes", "_cfp_fp", "_agedb_30")
        return found | {"subcenter_angle_deg": rng.uniform(70, 80, n), "noise_flag": flags()}
    if paper == "coarse_to_fine":
        distances = {f"{name}_px": rng.uniform(20, 30, n) for name in ("interpupil", "eyecentre", "interocular")}
        return distances | {"error_px": rng.gamma(2, 1, (n, 5)), "occluded": rng.random((n, 5)) < 0.1,
                            "challenge": rng.random(n) < 0.1, "principal": np.arange(5) < 2,
                            "detected": rng.random(n) < 0.9, "error_px_detected": rng.gamma(2, 1, (n, 5))}  # fmt: skip
    if paper == "face_attributes":
        from facepapers.papers.face_attributes.metrics import NAMES

        found = {f"{name}_correct": flags() for name in NAMES} | {f"{name}_recall": rng.random(7) for name in NAMES}
        identity = {f"identity_{key}": value for key, value in pairs(rng, n, "").items()}
        return found | identity | {f"identity_{key}": rng.gamma(2, 1, 9) for key in ("within", "between")}
    if paper == "hybrid_order_distillation":
        return pairs(rng, n, "", "_cross", "_teacher", "_other", "_pairs", "_pairs_cross")
    train = 10 * n  # so many that a class has sometimes more, sometimes fewer than thirty clean labels
    classes = {key: rng.integers(0, 3, n).astype(np.uint8) for key in ("label", "predicted", "predicted_second")}
    weights = {key: rng.random(train).round(2).astype(np.float16) for key in ("weight", "weight_second", "similarity")}
    chosen = {f"{key}_validation_chosen": classes[key] for key in ("predicted", "predicted_second")}
    classes["label"] = np.repeat(np.array([0, 1, 2], np.uint8), (n - 9, 8, 1))  # the last one is often not drawn
    mean = {"predicted_mean": classes["predicted"], "predicted_mean_validation_chosen": classes["predicted_second"]}
    return classes | weights | chosen | mean | {
        "repeated": flags(), "flip": rng.random(train) < 0.3, "train_label": np.repeat([0, 1, 2], (250, 45, 5)),
    }  # fmt: skip


def drawn(metric, predictions, draws):
    """(counts (N, R), the same resamples as predictions taken index by index)."""
    n, rng = len(predictions[metric.needs[0]]), np.random.default_rng(1)
    index = [rng.integers(0, n, n) for _ in range(draws)]
    taken = [predictions | {key: predictions[key][i] for key in metric.needs} for i in index]
    return np.stack([np.bincount(i, minlength=n) for i in index], 1).astype(np.uint8), taken


def agree(metric, predictions, draws, rtol=1e-10):
    """Check a metric's values on resamples against its value on each; returns them."""
    counts, taken = drawn(metric, predictions, draws)
    with np.errstate(invalid="ignore"):  # where a resample holds no sample of a kind, both are NaN
        found, expected = metric.on_resamples(predictions, counts), [metric.value(one) for one in taken]
    np.testing.assert_allclose(found, expected, rtol=rtol, err_msg=metric.name)
    return found


@pytest.mark.parametrize("paper", PAPERS)
@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:invalid value", "ignore:All-NaN")
def test_resamples_of_few_samples(paper):
    """Ties, folds and classes that vanish in a resample, distances beyond the last threshold."""
    predictions, seen = made_up(paper), 0
    for metric in claims.metrics_of(paper).values():
        if metric.among is not None:
            assert not metric.available(predictions)  # of one known list; see test_arcface_overlap.py
        elif metric.per_sample is None:
            assert len(np.unique(agree(metric, predictions, 60))) > 5, metric.name
            seen += 1
        elif metric.available(predictions):
            assert np.ndim(metric.per_sample(predictions)) == 1, metric.name
    assert seen > 5


@pytest.mark.parametrize("paper", PAPERS)
def test_resamples_of_a_committed_record(paper):
    record = max(runs.recorded(paper, REPOSITORY / "results"), key=lambda r: len(r["metrics"]))
    predictions = runs.read_predictions(record["folder"] / "predictions.npz")
    for metric in claims.metrics_of(paper).values():
        if metric.per_sample is None and metric.among is None and metric.available(predictions):
            agree(metric, predictions, 4, rtol=1e-6)  # some sums of records are float32 and vary with the order


def test_some_made_up_resamples_lack_a_fold_and_a_class():
    """Else the tests above would miss the cases that they are for."""
    accuracy = claims.metrics_of("arcface")["accuracy_pct"]
    _, taken = drawn(accuracy, made_up("arcface"), 60)
    assert any(len(np.unique(one["fold"])) < 10 for one in taken)
    lowest = claims.metrics_of("resup")["weight_lowest_class_pct"]
    _, taken = drawn(lowest, made_up("resup"), 60)
    enough = {(np.bincount(one["train_label"][~one["flip"]], minlength=3) >= 30).sum() for one in taken}
    assert enough == {1, 2}


def test_accuracy_without_any_other_fold():
    """All draws in one fold: nothing is learned, the threshold is 0 and accepts no pair."""
    distance, same, fold = np.array([0.5, 1.5, 1.0]), np.array([True, False, True]), np.array([0, 0, 1])
    counts = np.array([[2, 0], [1, 0], [0, 3]])
    np.testing.assert_allclose(verification.accuracy_resampled(distance, same, fold, counts), [1 / 3, 0])


def test_area_under_roc_is_scikit_learns():
    rng = np.random.default_rng(0)
    score, positive = rng.integers(0, 20, 300) / 4, rng.random(300) < 0.3
    assert metrics.area_under_roc(score, positive) == pytest.approx(roc_auc_score(positive, score), abs=1e-12)
    assert metrics.area_under_roc(score.astype(np.float16), positive) == metrics.area_under_roc(score, positive)
    assert np.isnan(metrics.area_under_roc(score, np.ones(300)))
    assert np.isnan(metrics.area_under_roc([1, np.nan], [0, 1]))


def test_area_of_a_resample_without_negatives_is_unknown():
    found = metrics.area_under_roc_resampled([1.0, 2.0], [False, True], np.array([[1, 0], [1, 2]]))
    np.testing.assert_array_equal(found, [1, np.nan])


# ---- The bootstrap


def literal_variance(metric, runs_a, runs_b=()):
    """The bootstrap variance as a loop over 400 resamples drawn with replacement."""
    rng, n, results = np.random.default_rng(0), len(runs_a[0][metric.needs[0]]), []
    for _ in range(400):
        index = rng.integers(0, n, n)
        a, b = ([value_on(metric, run, index) for run in side] for side in (runs_a, runs_b))
        results.append(np.mean(a) - (np.mean(b) if b else 0))
    return np.var(results, ddof=1)


def value_on(metric, run, index):
    """A metric on a resample; of what the resample's own thresholds change, the part that statistics.py keeps."""
    value = metric.value({key: run[key][index] for key in metric.needs})
    if metric.held is None:
        return value
    held = metric.held(run)[index].mean()
    return held + (value - held) / np.sqrt(2)


@pytest.mark.parametrize("name", ["accuracy_pct", "auc_pct", "gap_deg", "separation"])
def test_the_variance_is_that_of_a_loop_over_the_same_draws(name):
    metric, rng = claims.metrics_of("arcface")[name], np.random.default_rng(5)
    whole = pairs(rng, 60, "")
    a, b = ([whole | {"distance": whole["distance"] + rng.random(60)} for _ in range(3)] for _ in range(2))
    shared = lambda *sides: statistics._sampling_covariance(metric, *sides, statistics.Bootstrap())
    assert shared(a[:1], ()) == pytest.approx(literal_variance(metric, a[:1]), rel=1e-10)
    assert shared(a[:1], b[:1]) == pytest.approx(literal_variance(metric, a[:1], b[:1]), rel=1e-10)
    of_one = np.mean([literal_variance(metric, [one]) for one in a])
    assert shared(a, ()) == pytest.approx((3 * literal_variance(metric, a) - of_one) / 2, rel=1e-8)


def test_thresholds_held_give_the_accuracy_itself():
    for paper, name in (("arcface", "accuracy_pct"), ("face_attributes", "identity_accuracy_pct")):
        metric, predictions = claims.metrics_of(paper)[name], made_up(paper)
        assert metric.held(predictions).mean() == pytest.approx(metric.value(predictions), rel=1e-12)


def test_of_how_many_pairs_a_share_is():
    of_arcface, predictions = claims.metrics_of("arcface"), made_up("arcface")
    same = predictions["same"].sum()
    assert [of_arcface[f"{name}_pct"].share_of(predictions) for name in ("accuracy", "tar_far1pct")] == [30, same]
    assert same < 30 and of_arcface["auc_pct"].share_of is None


@pytest.mark.parametrize("block", [1, 1000, 2**22])
def test_the_draws_do_not_depend_on_the_size_of_a_block(monkeypatch, block):
    monkeypatch.setattr(statistics, "BLOCK", block)
    statistics._small_resamples.cache_clear()
    blocks = list(statistics._resamples(50))
    assert max(part.size for part in blocks) <= max(block, 50)
    rng = np.random.default_rng(0)
    expected = [np.bincount(rng.integers(0, 50, 50), minlength=50) for _ in range(400)]
    np.testing.assert_array_equal(np.concatenate(blocks, 1), np.transpose(expected))
    statistics._small_resamples.cache_clear()


def test_intervals_that_share_a_bootstrap_take_each_resample_once():
    calls = []

    def resampled(p, counts):
        calls.append(counts.shape[1])
        return metrics.sums(p["x"], counts)

    metric = Metric("total", "total", False, statistic=lambda p: p["x"].sum(), needs=("x",), resampled=resampled)
    a, b = ({"x": np.random.default_rng(k).random(40)} for k in range(2))
    shared = statistics.Bootstrap()
    found = statistics.level(metric, [a], bootstrap=shared), statistics.contrast(metric, [a], [b], bootstrap=shared)
    assert sum(calls) == 2 * statistics.DRAWS, "one run stands in both intervals"
    assert found == (statistics.level(metric, [a]), statistics.contrast(metric, [a], [b]))
