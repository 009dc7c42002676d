"""What is measured, computed from what a record holds: accuracies, differences between attributes, identity."""

import numpy as np

from facepapers.common.protocols.metrics import Metric, sums
from facepapers.common.protocols.verification import accuracy_metric

NAMES = ("age", "gender", "ethnicity", "emotion", "smiling", "hat", "young")
PAIRS = [(a, b) for a in ("age", "emotion") for b in ("gender", "ethnicity")]  # shape S3

# Keys of this paper alone in its run.json.
RECORDED = {
    "validation": "accuracies on validation faces",
    "groups": "how many test faces each group has",
    "trunk": "hash of the trunk's weights before and after training",
    "sources": "attribute -> row that its branch was taken from",
}


def _hits(name):
    return lambda p: 100.0 * p[f"{name}_correct"]


def _difference(a, b):
    """Per face, accuracy of `a` less that of `b` in points.

    Faces of two different sets are lined up one after another and weighted so that the spread of each set about its own
    accuracy counts, not that between the sets: they share no face, and the squares of both standard errors add.
    """

    def per_sample(p):
        x, y = 100.0 * p[f"{a}_correct"], 100.0 * p[f"{b}_correct"]
        if len(x) == len(y):
            return x - y
        n, gain = len(x) + len(y), x.mean() - y.mean()
        return gain + np.concatenate([(x - x.mean()) * n / len(x), (y.mean() - y) * n / len(y)])

    return per_sample


def _logit(name):
    """Log odds of the hits of an attribute's faces."""

    def odds(hits, n):
        share = (hits + 0.5) / (n + 1)  # half a face each way, so that 100 % stays finite
        return np.log(share / (1 - share))

    key = f"{name}_correct"
    return (lambda p: odds(p[key].sum(), len(p[key])),
            lambda p, counts: odds(sums(p[key], counts), counts.sum(0, dtype=np.int64)))  # fmt: skip


def _logit_difference(a, b):
    (one, one_resampled), (other, other_resampled) = _logit(a), _logit(b)
    return (lambda p: one(p) - other(p),
            lambda p, counts: one_resampled(p, counts) - other_resampled(p, counts))  # fmt: skip


def _metrics():
    for name in NAMES:
        hits, recall = f"{name}_correct", f"{name}_recall"
        yield Metric(f"{name}_accuracy_pct", f"{name}, accuracy (%)", False, _hits(name), needs=(hits,))
        yield Metric(f"{name}_balanced_pct", f"{name}, mean of the classes' accuracies (%)", False,
                     ratio=lambda p, key=recall: (100 * p[key], np.ones(len(p[key]))), needs=(recall,))  # fmt: skip
        logit, resampled = _logit(name)
        yield Metric(f"{name}_logit", f"{name}, logit of the accuracy", False, statistic=logit, needs=(hits,),
                     resampled=resampled)  # fmt: skip
    yield Metric("age_mae_years", "age, mean absolute error (years)", True, lambda p: p["age_error_years"],
                 needs=("age_error_years",))  # fmt: skip
    for a, b in PAIRS:
        needs = f"{a}_correct", f"{b}_correct"
        yield Metric(f"{a}_less_{b}_pct", f"accuracy of {a} less that of {b} (points)", False, _difference(a, b),
                     needs=needs)  # fmt: skip
        if a == "age":  # the bootstrap needs both on the same faces
            logit, resampled = _logit_difference(a, b)
            yield Metric(f"{a}_less_{b}_logit", f"logit of {a}'s accuracy less that of {b}'s", False, statistic=logit,
                         resampled=resampled, needs=needs)  # fmt: skip
    yield Metric("gflop", "computation of all predictions of a face (GFLOP, 2 per multiply-add)", True,
                 lambda p: p["gflop"], needs=("gflop",))  # fmt: skip
    yield Metric("within_over_between_pct", "variance within over between identities (%)", True,
                 ratio=lambda p: (100 * p["identity_within"].astype(np.float64), p["identity_between"]),
                 needs=("identity_within", "identity_between"))  # fmt: skip
    pairs = "identity_distance", "identity_same", "identity_fold"
    yield accuracy_metric("identity_accuracy_pct", "identity verification (%)", pairs)


METRICS = {m.name: m for m in _metrics()}


def measure(predictions: dict[str, np.ndarray]) -> dict[str, float]:
    """Every metric that the predictions allow, name -> value."""
    return {name: m.value(predictions) for name, m in METRICS.items() if m.available(predictions)}
