"""Alignment metrics on cases that can be worked out by hand."""

import numpy as np
import pytest

from facepapers.common.cli import UserError
from facepapers.common.protocols import metrics
from facepapers.papers.coarse_to_fine import evaluate
from tests.conftest import one_line_error


def test_point_errors_and_distances():
    truth = np.zeros((2, 3, 2))
    predicted = truth + [3, 4]
    np.testing.assert_allclose(metrics.point_errors_px(predicted, truth), np.full((2, 3), 5))
    points = np.array([[[0, 0], [2, 0], [10, 0], [12, 6]]])
    assert metrics.group_distance_px(points, [0, 1], [2, 3]) == pytest.approx(np.hypot(10, 3))


def test_nme_averages_points_first_then_faces():
    skew = metrics.nme_pct(np.array([[0.0, 0.0, 6.0]]), np.array([10.0]))
    assert skew.tolist() == [20]  # a mean over the points, no median
    errors, normaliser = np.array([[1.0, 3.0], [4.0, 4.0]]), np.array([20.0, 80.0])
    np.testing.assert_allclose(metrics.nme_pct(errors, normaliser), [10, 5])
    for length in (0, np.nan):
        with pytest.raises(UserError) as error:
            metrics.nme_pct(errors, [normaliser[0], length])
        one_line_error(error, "face 1: is normalised by", "mend its annotation")
    mean = evaluate.METRICS["nme_interpupil_pct"].value({"error_px": errors, "interpupil_px": normaliser})
    assert mean == pytest.approx(7.5)  # not 100 * mean(error) / mean(normaliser) = 6


def test_exactly_ten_percent_is_no_failure():
    nme = np.array([9.99, 10.0, 10.0 + 1e-9, 30.0])
    np.testing.assert_array_equal(metrics.failure_pct(nme), [0, 0, 100, 100])


def test_ced_area_is_the_area_under_the_cumulative_curve():
    nme = np.random.default_rng(0).gamma(4, 1.7, 500)  # some above the cut-off
    grid = np.linspace(0, 10, 200_001)
    area = np.trapezoid(metrics.cumulative_error(nme, grid), grid) / 10
    assert metrics.ced_area(nme).mean() == pytest.approx(area, abs=1e-5)
    np.testing.assert_allclose(metrics.ced_area(np.array([0, 2.5, 10, 40])), [1, 0.75, 0, 0])


def test_cumulative_error_counts_equal_values():
    np.testing.assert_allclose(metrics.cumulative_error(np.array([1, 2, 2, 5]), [0.5, 1, 2, 9]), [0, 0.25, 0.75, 1])


PREDICTIONS = {
    "error_px": np.array([[1.0, 2.0, 3.0], [4.0, 0.0, 2.0]]),
    "error_px_validation_chosen": np.array([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]),
    "error_px_mirrored": np.array([[1.0, 2.0, 0.0], [4.0, 4.0, 4.0]]),
    "interpupil_px": np.array([20.0, 40.0]),
    "interocular_px": np.array([30.0, 60.0]),
    "principal": np.array([True, False, True]),
    "occluded": np.array([[False, True, True], [False, False, True]]),
    "challenge": np.array([False, True]),
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("nme_interpupil_pct", (10 + 5) / 2),
        ("nme_interocular_pct", (10 + 5) / 3),
        ("fr10_interpupil_pct", 0),
        ("auc10_interpupil", (0 + 0.5) / 2),
        ("nme_interpupil_principal_pct", (10 + 7.5) / 2),
        ("nme_interpupil_validation_chosen_pct", (5 + 2.5) / 2),
        ("nme_interpupil_mirrored_pct", (5 + 10) / 2),
        ("nme_interpupil_challenge_pct", 5),
        ("nme_interpupil_occluded_pct", (10 + 15 + 5) / 3),
        ("nme_interpupil_visible_pct", (5 + 10 + 0) / 3),
    ],
)
def test_the_papers_metrics(name, value):
    metric = evaluate.METRICS[name]
    assert metric.available(PREDICTIONS)
    assert metric.value(PREDICTIONS) == pytest.approx(value)


def test_only_what_the_predictions_allow_is_measured():
    found = evaluate.measure(PREDICTIONS)
    assert "nme_interpupil_pct" in found and "nme_interocular_pct" in found
    assert not any("eyecentre" in name for name in found)  # a 68-point normaliser
    plain = {k: v for k, v in PREDICTIONS.items() if k not in ("occluded", "challenge")}
    assert not any("occluded" in name or "challenge" in name for name in evaluate.measure(plain))


def test_direction_belongs_to_the_metric():
    assert all(m.lower_is_better != m.name.startswith("auc") for m in evaluate.METRICS.values())
    assert all(m.name == name for name, m in evaluate.METRICS.items())
