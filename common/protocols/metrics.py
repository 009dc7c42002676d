"""What a metric is, and those of alignment: computed from arrays that can be recomputed from a committed record.

A metric is described once (name with unit and normaliser, direction, how to get one number per sample) and used
by evaluation, report and verification alike. NumPy alone: to recompute a table takes no PyTorch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from facepapers.common.cli import UserError


@dataclass(frozen=True)
class Metric:
    """A metric that is the mean over test samples of `per_sample(predictions)`, an (N,) array.

    Where a metric is no mean, its interval comes from resampling the samples, and one of two replaces `per_sample`:
    `ratio(predictions)`, two (N,) arrays whose sums are divided, or `statistic(predictions)`, the value itself. Beside
    `statistic`, `resampled(predictions, counts)` may give the values (R,) of R resamples at once, in which sample i
    stands counts[i, r] times, (N, R): the numbers that `statistic` gives on each of them, sooner. `held(predictions)`,
    (N,), is for a statistic that learns thresholds from the samples: its mean is the value with those thresholds held.
    `share_of(predictions)` is for a statistic in percent that is a share: of how many samples.
    `among(predictions)`, (N,) places or None, is for a metric of some samples of one known list: these alone count, and
    None says that the predictions are of another list.
    `lower_is_better` belongs to the metric, not to the claim.
    """

    name: str
    label: str
    lower_is_better: bool
    per_sample: Callable[[dict], np.ndarray] | None = None
    statistic: Callable[[dict], float] | None = None
    needs: tuple[str, ...] = ()
    ratio: Callable[[dict], tuple[np.ndarray, np.ndarray]] | None = None
    resampled: Callable[[dict, np.ndarray], np.ndarray] | None = None
    held: Callable[[dict], np.ndarray] | None = None
    share_of: Callable[[dict], int] | None = None
    among: Callable[[Mapping[str, np.ndarray]], np.ndarray | None] | None = None

    def available(self, predictions: Mapping[str, np.ndarray]) -> bool:
        """Whether a run's predictions hold the arrays that it needs, of the list that it is about."""
        known = all(key in predictions for key in self.needs)
        return known and (self.among is None or self.among(predictions) is not None)

    def value(self, predictions: dict[str, np.ndarray]) -> float:
        """The metric of one run, a float."""
        if self.statistic is not None:
            return float(self.statistic(predictions))
        if self.ratio is not None:
            above, below = (np.sum(part, dtype=np.float64) for part in self.ratio(predictions))
            return float(above / below)
        assert self.per_sample is not None, self.name
        return float(np.mean(self.per_sample(predictions), dtype=np.float64))

    def on_resamples(self, predictions: dict[str, np.ndarray], counts: np.ndarray) -> np.ndarray:
        """The metric (R,) on R resamples, in which sample i stands counts[i, r] times, (N, R). Not for plain means."""
        if self.resampled is not None:
            return self.resampled(predictions, counts)
        if self.ratio is not None:
            above, below = self.ratio(predictions)
            return sums(above, counts) / sums(below, counts)
        assert self.statistic is not None, self.name
        samples = np.arange(len(counts))
        return np.array([self.statistic(self._drawn(predictions, np.repeat(samples, c))) for c in counts.T])

    def _drawn(self, predictions: dict[str, np.ndarray], index: np.ndarray) -> dict[str, np.ndarray]:
        return {**predictions, **{key: predictions[key][index] for key in self.needs}}


def measure(metrics: dict[str, Metric], predictions: dict) -> dict[str, float]:
    """Every one of a paper's `metrics` that the predictions allow, name -> value.

    Not those of a part of one known list: claims ask for them, and name the data set.
    """
    return {name: m.value(predictions) for name, m in metrics.items() if not m.among and m.available(predictions)}


def show(metrics: dict[str, Metric], values: dict[str, float]) -> None:
    """Print a line for each of the `values` (name -> value) of a paper's `metrics`."""
    width = max((len(metrics[name].label) for name in values), default=0)
    for name, value in values.items():
        print(f"  {metrics[name].label:{width}s} {value:8.3f}")


# ---- Sums and ranks, of one set of samples or of many resamples


def sums(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Sums (R,), float64, of values (N,) over R resamples in which sample i stands counts[i, r] times, (N, R)."""
    # einsum rather than @: it needs no float copy of the counts, and no threads of BLAS that wait for each other.
    return np.einsum("n,nr->r", np.asarray(values, np.float64), counts)


def sums_by(group: np.ndarray, counts: np.ndarray, values: np.ndarray | None = None) -> np.ndarray:
    """Sums (K, R) of values (N,), by default ones, over the samples of each group (N,) of 0..K-1; else as `sums`."""
    values = np.ones(len(group)) if values is None else values
    return np.stack([sums(values[group == k], counts[group == k]) for k in range(int(group.max(initial=0)) + 1)])


def running_sums(rows: np.ndarray) -> np.ndarray:
    """Sums (N + 1, R), int32, of the first 0, 1, ..., N rows of small integers (N, R)."""
    totals = np.zeros((len(rows) + 1, rows.shape[1]), np.int32)
    np.cumsum(rows, axis=0, out=totals[1:])
    return totals


def area_under_roc(score: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve, 0..1: the chance that a positive has the higher score; ties count half.

    score (N,), positive (N,) bool. NaN without positives or without negatives, and when a score is NaN.
    """
    score, positive = np.asarray(score, np.float64), np.asarray(positive, bool)
    n, m = int(positive.sum()), int((~positive).sum())
    if not (n and m) or np.isnan(score).any():
        return np.nan
    _, place, count = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]  # from 1; equal scores share the mean of their ranks
    return float((rank[positive].sum() - n * (n + 1) / 2) / (n * m))


def area_under_roc_resampled(score: np.ndarray, positive: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`area_under_roc` (R,) of R resamples in which sample i stands counts[i, r] times, (N, R), by ranking once.

    No score may be NaN.
    """
    score, positive = np.asarray(score, np.float64), np.asarray(positive, bool)  # float16 sorts slowly

    def ordered(kind):
        index = np.flatnonzero(kind)
        index = index[np.argsort(score[index], kind="stable")]
        return score[index], counts[index]

    (values, ours), (ranked, others) = ordered(positive), ordered(~positive)
    first = np.flatnonzero(np.diff(values, prepend=-np.inf))  # of each value, with all positives that have it
    ours, others = np.add.reduceat(ours, first, axis=0, dtype=np.int32), running_sums(others)
    below, up_to = (others[np.searchsorted(ranked, values[first], side)] for side in ("left", "right"))
    won = np.einsum("vr,vr->r", ours, below + up_to, dtype=np.int64) / 2
    pairs = ours.sum(0, dtype=np.int64) * others[-1]
    return np.divide(won, pairs, out=np.full(len(won), np.nan), where=pairs > 0)


def area_metric(
    name: str, label: str, of: Callable[[dict], tuple[np.ndarray, np.ndarray]], needs: tuple[str, ...]
) -> Metric:
    """Metric in percent: the area under the ROC curve of of(predictions), (score (N,), positive (N,) bool)."""
    return Metric(
        name, label, False, needs=needs,
        statistic=lambda p: 100 * area_under_roc(*of(p)),
        resampled=lambda p, counts: 100 * area_under_roc_resampled(*of(p), counts),
    )  # fmt: skip


# ---- Alignment


def point_errors_px(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Euclidean distances (N, P), in pixels, between points (N, P, 2)."""
    return np.linalg.norm(np.asarray(predicted, np.float64) - np.asarray(truth, np.float64), axis=-1)


def group_distance_px(points: np.ndarray, first: Sequence[int], second: Sequence[int]) -> np.ndarray:
    """Distance (N,) between the centroids of two groups of points of (N, P, 2)."""
    points = np.asarray(points, np.float64)
    return np.linalg.norm(points[:, list(first)].mean(1) - points[:, list(second)].mean(1), axis=-1)


def nme_pct(errors_px: np.ndarray, normaliser_px: np.ndarray) -> np.ndarray:
    """Per-face normalised mean error (N,), in percent: mean over points over the face's normaliser.

    Raises UserError for a face whose normaliser is no length: its two points coincide or are no numbers.
    """
    length = np.asarray(normaliser_px, np.float64)
    bad = np.flatnonzero(~(length > 0))
    if len(bad):
        raise UserError(f"face {bad[0]}: is normalised by {length[bad[0]]:g} px; mend its annotation or leave it out")
    return 100 * np.asarray(errors_px, np.float64).mean(1) / length


def failure_pct(nme: np.ndarray, threshold_pct: float = 10.0) -> np.ndarray:
    """100 for each face whose error exceeds the threshold, else 0; the mean is the failure rate in percent."""
    return 100.0 * (np.asarray(nme) > threshold_pct)


def ced_area(nme: np.ndarray, cutoff_pct: float = 10.0) -> np.ndarray:
    """Per-face share (N,) of the area under the cumulative error distribution up to the cut-off.

    Their mean is that area divided by the cut-off, so 1 is perfect: a face with error e is counted by the curve
    from e to the cut-off.
    """
    return np.clip(1 - np.asarray(nme, np.float64) / cutoff_pct, 0, None)


def cumulative_error(nme: np.ndarray, grid_pct: np.ndarray) -> np.ndarray:
    """Share of faces with an error at or below each grid value."""
    return np.searchsorted(np.sort(nme), grid_pct, side="right") / len(nme)
