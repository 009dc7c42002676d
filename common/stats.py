"""Intervals and verdicts. A status is computed here and typed nowhere.

Two things vary: the trained model (seeds) and the faces that happen to be in the test set. Both half-widths are
added in quadrature. With one seed only the second is known, and the tables say so.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy import stats as distributions

LEVEL_CONFIDENCE = 0.90  # two one-sided 5 % tests: the usual level for showing equivalence
CONTRAST_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean with its two-sided interval, over `n_seeds` runs of `n_samples` test samples each."""

    mean: float
    low: float
    high: float
    n_seeds: int
    n_samples: int

    @property
    def half(self):
        return (self.high - self.low) / 2


def level(metric, runs, confidence=LEVEL_CONFIDENCE):
    """Interval of a metric over runs; `runs` is a list of predictions (dicts of arrays over the same samples)."""
    values = np.array([metric.value(run) for run in runs])
    found = _interval(values, _sampling_error(metric, runs), _count(metric, runs[0]), confidence)
    return replace(found, low=max(0.0, found.low))  # errors, rates and areas cannot be negative


def contrast(metric, runs_a, runs_b, confidence=CONTRAST_CONFIDENCE):
    """Interval of the gain of `a` over `b` (positive means a is better), runs and samples paired in order.

    Raises ValueError unless both sides have the same number of runs.
    """
    if len(runs_a) != len(runs_b):
        raise ValueError("a paired contrast needs as many runs on each side")
    sign = -1.0 if metric.lower_is_better else 1.0
    gains = np.array([sign * (metric.value(a) - metric.value(b)) for a, b in zip(runs_a, runs_b, strict=True)])
    error = _sampling_error(metric, runs_a, runs_b)
    return _interval(gains, error, _count(metric, runs_a[0]), confidence)


def level_status(metric, interval, published, tolerance):
    """`replicated`, `better`, `worse` or `inconclusive`, from the interval and the band published +- tolerance."""
    if published - tolerance <= interval.low and interval.high <= published + tolerance:
        return "replicated"
    if interval.high < published - tolerance:
        return "better" if metric.lower_is_better else "worse"
    if interval.low > published + tolerance:
        return "worse" if metric.lower_is_better else "better"
    return "inconclusive"


def contrast_status(interval, margin=0.0, within=None):
    """`supported`, `refuted` or `inconclusive`: on which side of zero the whole interval of the gain lies.

    With `margin` the claim is "at most `margin` worse": the side of -margin decides. With `within` it is "no different
    by more than that": supported inside the band, refuted outside.
    """
    if interval.n_seeds < 3:
        return "inconclusive"  # two seeds say nothing about the spread between seeds
    if within is not None:
        outside = interval.low > within or interval.high < -within
        inside = -within < interval.low and interval.high < within
        return "supported" if inside else "refuted" if outside else "inconclusive"
    if interval.low > -margin:
        return "supported"
    return "refuted" if interval.high < -margin else "inconclusive"


def _interval(values, sampling_error, n_samples, confidence):
    n, tail = len(values), 0.5 + confidence / 2
    between = distributions.t.ppf(tail, n - 1) * values.std(ddof=1) / np.sqrt(n) if n > 1 else 0.0
    within = distributions.norm.ppf(tail) * sampling_error
    half, mean = float(np.hypot(between, within)), float(values.mean())
    return Interval(mean, mean - half, mean + half, n, n_samples)


def _sampling_error(metric, runs_a, runs_b=None):
    """Standard error, over test samples, of the metric (or of the paired difference) averaged over runs."""
    if metric.statistic is not None:
        return _bootstrap_error(metric, runs_a, runs_b)
    samples = np.mean([metric.per_sample(run) for run in runs_a], axis=0)
    if runs_b is not None:
        samples = samples - np.mean([metric.per_sample(run) for run in runs_b], axis=0)
    return float(samples.std(ddof=1) / np.sqrt(len(samples)))


def _bootstrap_error(metric, runs_a, runs_b, draws=400):
    rng = np.random.default_rng(0)
    n = _count(metric, runs_a[0])
    results = []
    for _ in range(draws):
        index = rng.integers(0, n, n)
        value = np.mean([metric.statistic(_take(run, index, metric)) for run in runs_a])
        if runs_b is not None:
            value -= np.mean([metric.statistic(_take(run, index, metric)) for run in runs_b])
        results.append(value)
    return float(np.std(results, ddof=1))


def _take(run, index, metric):
    return {**run, **{key: run[key][index] for key in metric.needs}}


def _count(metric, run):
    return len(run[metric.needs[0]]) if metric.needs else len(metric.per_sample(run))
