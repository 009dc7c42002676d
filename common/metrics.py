"""Alignment metrics, computed from per-point errors so that they can be recomputed from a committed record.

A metric is described once (name with unit and normaliser, direction, how to get one number per sample) and used
by evaluation, report and verification alike.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Metric:
    """A metric that is the mean over test samples of `per_sample(predictions)`, an (N,) array.

    `statistic(predictions)` replaces the mean where a metric is none (its interval then comes from resampling
    the samples). `lower_is_better` belongs to the metric, not to the claim.
    """

    name: str
    label: str
    lower_is_better: bool
    per_sample: Callable[[dict], np.ndarray] | None = None
    statistic: Callable[[dict], float] | None = None
    needs: tuple[str, ...] = ()

    def available(self, predictions):
        return all(key in predictions for key in self.needs)

    def value(self, predictions):
        """The metric of one run, a float."""
        if self.statistic is not None:
            return float(self.statistic(predictions))
        return float(np.mean(self.per_sample(predictions), dtype=np.float64))


def point_errors_px(predicted, truth):
    """Euclidean distances (N, P), in pixels, between points (N, P, 2)."""
    return np.linalg.norm(np.asarray(predicted, np.float64) - np.asarray(truth, np.float64), axis=-1)


def group_distance_px(points, first, second):
    """Distance (N,) between the centroids of two groups of points of (N, P, 2)."""
    points = np.asarray(points, np.float64)
    return np.linalg.norm(points[:, list(first)].mean(1) - points[:, list(second)].mean(1), axis=-1)


def nme_pct(errors_px, normaliser_px):
    """Per-face normalised mean error (N,), in percent: mean over points over the face's normaliser."""
    return 100 * np.asarray(errors_px, np.float64).mean(1) / np.asarray(normaliser_px, np.float64)


def failure_pct(nme, threshold_pct=10.0):
    """100 for each face whose error exceeds the threshold, else 0; the mean is the failure rate in percent."""
    return 100.0 * (np.asarray(nme) > threshold_pct)


def ced_area(nme, cutoff_pct=10.0):
    """Per-face share (N,) of the area under the cumulative error distribution up to the cut-off.

    Their mean is that area divided by the cut-off, so 1 is perfect: a face with error e is counted by the curve
    from e to the cut-off.
    """
    return np.clip(1 - np.asarray(nme, np.float64) / cutoff_pct, 0, None)


def cumulative_error(nme, grid_pct):
    """Share of faces with an error at or below each grid value."""
    return np.searchsorted(np.sort(nme), grid_pct, side="right") / len(nme)
