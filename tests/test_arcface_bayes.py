"""Joint Bayesian verification: the ratio against Gaussian densities, what it finds, and its way into a record."""

import dataclasses

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.metrics import roc_auc_score
from test_arcface_train import people, result, start  # noqa: F401 (people is a fixture)

from facepapers.common.cli import UserError
from facepapers.papers.arcface import config
from facepapers.papers.arcface.bayes import JointBayes
from tests.conftest import one_line_error


def draw(rng, count, images, within):
    """(embeddings (count * images, 6), labels) of `count` people, who differ in all directions alike."""
    centre = rng.normal(size=(count, 6))
    x = np.repeat(centre, images, 0) + rng.normal(size=(count * images, 6)) * within
    return x, np.repeat(np.arange(count), images)


def test_the_ratio_is_that_of_the_two_gaussians():
    rng = np.random.default_rng(0)
    x, labels = draw(rng, 40, 3, 0.5)
    judge = JointBayes(x, labels, 0.3, shrinkage=0.2)
    left, right = x[:5], x[5:10]
    both = judge.between + judge.within
    one = multivariate_normal(np.tile(judge.mean, 2), np.block([[both, judge.between], [judge.between, both]]))
    two = multivariate_normal(judge.mean, both)
    wanted = one.logpdf(np.hstack([left, right])) - two.logpdf(left) - two.logpdf(right)
    np.testing.assert_allclose(judge.log_ratio(left, right), wanted, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(judge.log_ratio(right, left), wanted, rtol=1e-8, atol=1e-8)
    assert np.trace(judge.between) / np.trace(both) == pytest.approx(0.3)
    assert np.trace(both) == pytest.approx(np.trace(np.cov(x.T)))


def test_labels_of_any_integer_type_give_the_same():
    """A uint8 label of 255 must not make a table of no people."""
    x, labels = draw(np.random.default_rng(0), 256, 2, 0.5)
    wanted = JointBayes(x, labels, 0.3).own
    for kind in ("uint8", "int16", "int32"):
        assert np.array_equal(JointBayes(x, labels.astype(kind), 0.3).own, wanted)


def test_the_spread_is_the_ratios_deviation_over_two_people():
    rng = np.random.default_rng(1)
    judge = JointBayes(*draw(rng, 200, 4, 0.7), 0.5)
    pairs = rng.multivariate_normal(judge.mean, judge.between + judge.within, size=(2, 100_000))
    assert judge.log_ratio(*pairs).std() == pytest.approx(judge.spread, rel=0.02)


def test_it_ranks_unseen_people_better_than_the_cosine():
    rng = np.random.default_rng(2)
    noisy = np.array([2.0, 2.0, 2.0, 0.2, 0.2, 0.2])
    judge = JointBayes(*draw(rng, 300, 4, noisy), 0.4)
    x, _ = draw(rng, 200, 2, noisy)
    left, right = np.concatenate([x[::2], x[::2]]), np.concatenate([x[1::2], np.roll(x[1::2], 2, 0)])
    same = np.repeat([True, False], 200)
    distance = judge.distance(left, right)
    assert (distance > 0).all() and (distance < 4).all()
    cosine = (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
    assert roc_auc_score(same, -distance) > roc_auc_score(same, cosine) + 0.1


def test_what_it_cannot_be_estimated_on_is_one_line():
    with pytest.raises(UserError) as error:
        JointBayes(np.eye(4), np.arange(4), 0.3)
    one_line_error(error, "--joint-bayes", "two images")
    for wrong in (dict(joint_bayes=0.3), dict(data="lfw", joint_bayes=1.0)):  # CASIA is not in memory; B has it all
        with pytest.raises(UserError, match="joint-bayes"):
            config.check(dataclasses.replace(config.preset("paper"), **wrong))


def test_a_run_holds_both_tests_of_the_pairs(people, tmp_path):  # noqa: F811
    written = start(tmp_path, "arcface", "--joint-bayes", "0.3")
    arrays = result(tmp_path)[1]
    assert arrays["distance_bayes"].shape == arrays["distance"].shape
    assert {"accuracy_pct", "accuracy_bayes_pct", "auc_bayes_pct"} <= set(written["metrics"])
    assert written["metrics"]["auc_bayes_pct"] != written["metrics"]["auc_pct"]
