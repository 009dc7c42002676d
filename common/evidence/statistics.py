"""Intervals and verdicts. A status is computed here and typed nowhere.

Two things vary: the trained model (seeds) and the faces that happen to be in the test set. An interval covers both
(see `_half`, and `_level_of_share` for shares of pairs). With one seed only the second is known, so fewer than SEEDS
seeds get no verdict: their status says how many there are and on which side they fell.
`python -m facepapers.common.tools.coverage` measures how often intervals hold the truth (results/coverage.csv).
"""

import functools
from dataclasses import dataclass, replace

import numpy as np

from facepapers.common.protocols.metrics import sums

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
        self._drawn, self._known = {}, {}

    def drawn(self, metric, run):
        """The metric (DRAWS,) of a run's predictions on every resample."""
        key = metric, id(run)
        if key not in self._drawn:
            values = [metric.on_resamples(run, counts) for counts in _resamples(_count(metric, run))]
            self._drawn[key] = np.concatenate(values), run  # the run is kept, so that no other gets its id
        return self._drawn[key][0]

    def values(self, metric, run):
        """Values (DRAWS,) whose spread is the metric's: as drawn, but with half the variance that thresholds add.

        A resampled list is noisy twice, by the draw of the list and by that of the resample, and a threshold, the best
        place of a step function, follows both: the spread of accuracies with thresholds learned anew is too wide
        (Abrevaya and Huang: On the bootstrap of the maximum score estimator, Econometrica 2005).
        """
        if metric.held is None:
            return self.drawn(metric, run)
        key = metric, id(run)
        if key not in self._known:
            samples = metric.held(run)
            held = [sums(samples, counts) / counts.sum(0, dtype=np.int64) for counts in _resamples(len(samples))]
            held = np.concatenate(held)
            self._known[key] = held + (self.drawn(metric, run) - held) / np.sqrt(2)
        return self._known[key]


def level(metric, runs, confidence=LEVEL_CONFIDENCE, bootstrap=None):
    """Interval of a metric over runs; `runs` is a list of predictions (dicts of arrays over the same samples).

    A Bootstrap that several intervals share spares them the resamples of runs that they have in common.
    """
    if metric.share_of is not None:
        return _level_of_share(metric, runs, confidence, bootstrap or Bootstrap())
    values, covariance = parts(metric, runs, (), bootstrap)
    found = _interval(values, covariance, _count(metric, runs[0]), confidence)
    if values.min() < 0:  # a difference
        return found
    return replace(found, low=max(0.0, found.low))  # errors, rates and areas cannot be negative


def contrast(metric, runs_a, runs_b, confidence=CONTRAST_CONFIDENCE, bootstrap=None):
    """Interval of the gain of `a` over `b` (positive means a is better), runs and samples paired in order.

    `bootstrap` as in `level`. Raises ValueError unless both sides have the same number of runs.
    """
    if len(runs_a) != len(runs_b):
        raise ValueError("a paired contrast needs as many runs on each side")
    values, covariance = parts(metric, runs_a, runs_b, bootstrap)
    return _interval(values, covariance, _count(metric, runs_a[0]), confidence)


def parts(metric, runs_a, runs_b=(), bootstrap=None):
    """What an interval is made of: the values (or, with `runs_b`, gains) of the runs, their `_sampling_covariance`."""
    covariance = _sampling_covariance(metric, runs_a, runs_b, bootstrap or Bootstrap())
    values = np.array([metric.value(run) for run in runs_a])
    if runs_b:
        sign = -1.0 if metric.lower_is_better else 1.0
        values = sign * (values - [metric.value(run) for run in runs_b])
    return values, covariance


def forecast(mean, spread, covariance, n, confidence):
    """The Interval that n runs would give if mean, spread between seeds and sampling covariance stayed as they are.

    It lies evenly around the mean, that of a share too.
    """
    half = _half(spread, covariance, n, confidence)
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


def _interval(values, covariance, n_samples, confidence):
    n, mean = len(values), float(values.mean())
    half = _half(values.std(ddof=1) if n > 1 else 0.0, covariance, n, confidence)
    return Interval(mean, mean - half, mean + half, n, n_samples)


def _level_of_share(metric, runs, confidence, bootstrap):
    """`level` of a share in percent, formed on its log odds.

    Near 100 % an interval around the share itself was seen to be too short: a list that happens to hold few errors also
    varies little from one resample to the next, and where a few pairs set a threshold the share is drawn out downwards.
    Log odds vary by much the same wherever they lie.
    """
    odds, share = _log_odds(metric.share_of(runs[0]))
    values = np.array([metric.value(run) for run in runs])
    covariance = _sampling_covariance(metric, runs, (), bootstrap, odds)
    found = _interval(odds(values), covariance, _count(metric, runs[0]), confidence)
    mean = float(values.mean())
    low, high = (float(share(odds(mean) + side)) for side in (-found.half, found.half))
    return replace(found, mean=mean, low=low, high=high)


def _log_odds(n):
    """(log odds of a share of n samples in percent, its inverse); half a sample is added to either side.

    So 0 and 100 % stay finite (Haldane and Anscombe's correction). The inverse ends there.
    """

    def odds(share_pct):
        hits = np.asarray(share_pct) * n / 100
        return np.log((hits + 0.5) / (n - hits + 0.5))

    def share_pct(odds):
        return np.clip(100 * ((n + 1) / (1 + np.exp(-odds)) - 0.5) / n, 0, 100)

    return odds, share_pct


def _half(spread, covariance, n, confidence):
    """Half-width of an interval around the mean of n runs, by Student's t.

    `spread`: standard deviation of their values. `covariance`: the sampling covariance of two runs' values, which
    averaging over runs does not reduce (of one run: its variance). The spread holds what is left: the runs themselves,
    and what faces do to one run alone. So the mean's variance is spread^2 / n + covariance. The spread is known from n
    runs only, the covariance well: t has n - 1 degrees of freedom over the spread's share of the variance.
    (Satterthwaite's divides by the share's square; with three runs its intervals of 95 % were seen to cover 92.)
    """
    from scipy.special import stdtrit  # quantiles of t; scipy.stats calls it and takes a second to load

    between = spread**2 / n if n > 1 else 0.0
    variance = between + max(0.0, covariance)
    degrees = (n - 1) * variance / between if between > 0 else np.inf
    return float(stdtrit(degrees, 0.5 + confidence / 2) * np.sqrt(variance))


def _sampling_covariance(metric, runs_a, runs_b, bootstrap, scale_of=lambda values: values):
    """Covariance, over test samples, of two runs' values (or paired differences, if runs_b); of one run its variance.

    The mean over all pairs of runs; chance can make it negative. `scale_of`: what resampled values are turned into.
    """
    of = metric.per_sample or (lambda run: scale_of(bootstrap.values(metric, run)))
    rows = np.array([of(run) for run in runs_a], np.float64)
    if runs_b:
        rows -= np.array([of(run) for run in runs_b], np.float64)
    n, scale = len(rows), rows.shape[1] if metric.per_sample else 1
    of_mean, of_one = rows.mean(0).var(ddof=1) / scale, rows.var(1, ddof=1).mean() / scale
    return of_one if n == 1 else (n * of_mean - of_one) / (n - 1)


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
    if metric.among is not None:
        return len(metric.among(run))
    return len(run[metric.needs[0]]) if metric.needs else len(metric.per_sample(run))
