"""Intervals and verdicts. A status is computed here and typed nowhere.

Two things vary: the trained model (seeds) and the faces that happen to be in the test set. Both half-widths are
added in quadrature. With one seed only the second is known, so fewer than SEEDS seeds get no verdict: their status says
how many there are and on which side they fell.
"""

import functools
from dataclasses import dataclass, replace

import numpy as np

LEVEL_CONFIDENCE = 0.90  # two one-sided 5 % tests: the usual level for showing equivalence
CONTRAST_CONFIDENCE = 0.95
EQUIVALENCE_CONFIDENCE = 0.90  # as levels: both one-sided tests at 5 %
SEEDS = 3  # with fewer, the spread between seeds is not known well enough for a verdict
DRAWS = 400  # resamples of the test samples
BLOCK = 2**22  # numbers of resamples handled at once


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


class Bootstrap:
    """Metrics of runs on resamples of their test samples, each computed once.

    Sets of as many samples get the same draws, whatever the metric: runs over the same samples are compared in pairs.
    """

    def __init__(self):
        self._known = {}

    def values(self, metric, run):
        """The metric (DRAWS,) of a run's predictions on every resample."""
        key = metric, id(run)
        if key not in self._known:
            blocks = _resamples(_count(metric, run))
            values = np.concatenate([metric.on_resamples(run, counts) for counts in blocks])
            self._known[key] = values, run  # the run is kept, so that no other gets its id
        return self._known[key][0]


def level(metric, runs, confidence=LEVEL_CONFIDENCE, bootstrap=None):
    """Interval of a metric over runs; `runs` is a list of predictions (dicts of arrays over the same samples).

    A Bootstrap that several intervals share spares them the resamples of runs that they have in common.
    """
    values, error = parts(metric, runs, (), bootstrap)
    found = _interval(values, error, _count(metric, runs[0]), confidence)
    return replace(found, low=max(0.0, found.low))  # errors, rates and areas cannot be negative


def contrast(metric, runs_a, runs_b, confidence=CONTRAST_CONFIDENCE, bootstrap=None):
    """Interval of the gain of `a` over `b` (positive means a is better), runs and samples paired in order.

    `bootstrap` as in `level`. Raises ValueError unless both sides have the same number of runs.
    """
    if len(runs_a) != len(runs_b):
        raise ValueError("a paired contrast needs as many runs on each side")
    values, error = parts(metric, runs_a, runs_b, bootstrap)
    return _interval(values, error, _count(metric, runs_a[0]), confidence)


def parts(metric, runs_a, runs_b=(), bootstrap=None):
    """What an interval is made of: the values (or, with `runs_b`, gains) of the runs, their error over test samples."""
    error = _sampling_error(metric, runs_a, runs_b, bootstrap or Bootstrap())
    values = np.array([metric.value(run) for run in runs_a])
    if runs_b:
        sign = -1.0 if metric.lower_is_better else 1.0
        values = sign * (values - [metric.value(run) for run in runs_b])
    return values, error


def forecast(mean, spread, error, n, confidence):
    """The Interval that n runs would give if mean, spread between seeds and error over samples stayed as they are."""
    half = _half(spread, error, n, confidence)
    return Interval(mean, mean - half, mean + half, n, 0)


def level_status(metric, interval, published, tolerance):
    """`replicated`, `better`, `worse` or `inconclusive`, from the interval and the band published +- tolerance.

    With fewer than SEEDS seeds there is no verdict: `one seed: higher`, `lower` or `no difference seen`, where higher
    means a larger number than published, better or not.
    """
    low, high = published - tolerance, published + tolerance
    if interval.n_seeds < SEEDS:
        return _too_few(interval, low, high)
    if low <= interval.low and interval.high <= high:
        return "replicated"
    if interval.high < low:
        return "better" if metric.lower_is_better else "worse"
    if interval.low > high:
        return "worse" if metric.lower_is_better else "better"
    return "inconclusive"


def contrast_status(interval, margin=0.0, within=None):
    """`supported`, `refuted` or `inconclusive`: on which side of zero the whole interval of the gain lies.

    With `margin` the claim is "at most `margin` worse": the side of -margin decides. With `within` it is "no different
    by more than that": supported inside the band, refuted outside. With fewer than SEEDS seeds there is no verdict:
    `one seed: higher`, `lower` or `no difference seen` says on which side of zero the gain lies.
    """
    if interval.n_seeds < SEEDS:
        return _too_few(interval, 0.0, 0.0)
    if within is not None:
        outside = interval.low > within or interval.high < -within
        inside = -within < interval.low and interval.high < within
        return "supported" if inside else "refuted" if outside else "inconclusive"
    if interval.low > -margin:
        return "supported"
    return "refuted" if interval.high < -margin else "inconclusive"


def equivalent(interval, margin):
    """Whether the interval of a gain, of EQUIVALENCE_CONFIDENCE, lies within `margin` on either side of none.

    With fewer than SEEDS seeds it never does.
    """
    return interval.n_seeds >= SEEDS and -margin < interval.low and interval.high < margin


def _too_few(interval, low, high):
    side = "higher" if interval.low > high else "lower" if interval.high < low else "no difference seen"
    return f"{'one seed' if interval.n_seeds == 1 else 'two seeds'}: {side}"


def _interval(values, sampling_error, n_samples, confidence):
    n, mean = len(values), float(values.mean())
    half = _half(values.std(ddof=1) if n > 1 else 0.0, sampling_error, n, confidence)
    return Interval(mean, mean - half, mean + half, n, n_samples)


def _half(spread, sampling_error, n, confidence):
    """Half-width of an interval of n runs: what seeds and samples add, in quadrature."""
    from scipy.special import ndtri, stdtrit  # quantiles; scipy.stats calls these two and takes a second to load

    tail = 0.5 + confidence / 2
    between = stdtrit(n - 1, tail) * spread / np.sqrt(n) if n > 1 else 0.0
    return float(np.hypot(between, ndtri(tail) * sampling_error))


def _sampling_error(metric, runs_a, runs_b, bootstrap):
    """Standard error, over test samples, of the metric averaged over runs, or of the paired difference if runs_b."""
    if metric.per_sample is None:
        values = _difference(lambda run: bootstrap.values(metric, run), runs_a, runs_b)
        return float(np.std(values, ddof=1))
    samples = _difference(metric.per_sample, runs_a, runs_b)
    return float(samples.std(ddof=1) / np.sqrt(len(samples)))


def _difference(of, runs_a, runs_b):
    """Mean of of(run), an array, over runs_a, less that over runs_b if there are any."""
    mean = np.mean([of(run) for run in runs_a], axis=0)
    return mean - np.mean([of(run) for run in runs_b], axis=0) if runs_b else mean


def _resamples(n):
    """DRAWS resamples of n samples in blocks: how often sample i stands in resample r, (n, R) uint8."""
    return _small_resamples(n) if n * DRAWS <= 4 * BLOCK else _drawn(n)


@functools.lru_cache(maxsize=8)  # of 16 MiB at most; larger sets are drawn anew each time
def _small_resamples(n):
    return tuple(_drawn(n))


def _drawn(n):
    rng = np.random.default_rng(0)
    width = max(1, BLOCK // n)
    for start in range(0, DRAWS, width):
        columns = range(start, min(start + width, DRAWS))
        counts = [np.bincount(rng.integers(0, n, n), minlength=n) for _ in columns]
        yield np.stack(counts, axis=1, dtype=np.uint8, casting="unsafe")  # nothing is drawn 256 times


def _count(metric, run):
    return len(run[metric.needs[0]]) if metric.needs else len(metric.per_sample(run))
