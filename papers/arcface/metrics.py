"""What is measured, computed from what a record holds: verification, retrieval, angles (Table 3), dropped labels."""

import numpy as np

from facepapers.common.protocols import metrics, retrieval, verification
from facepapers.common.protocols.metrics import Metric, area_metric, sums
from facepapers.common.protocols.verification import accuracy_metric
from facepapers.papers.arcface import overlap

# Keys of this paper alone in its run.json.
RECORDED = {
    "sources": "runs that were put together, with the hashes of their predictions",
}


def pair_keys(name: str) -> tuple[str, ...]:
    """Keys of a test set's arrays in a predictions file: the main set's have no ending."""
    return tuple(f"{key}_{name}" if name else key for key in ("distance", "same", "fold"))


def _tar(keys, far):
    arrays = lambda p: tuple(p[key] for key in keys)
    return {
        "statistic": lambda p: 100 * verification.tar_at_far(*arrays(p), far=far, both=False).tar,
        "resampled": lambda p, counts: 100 * verification.tar_resampled(*arrays(p), counts, far),
        "share_of": lambda p: int(p[keys[1]].astype(bool).sum()),
    }


def _apart(p):
    return overlap.apart(p["same"].astype(bool), p["fold"])


def _gap(p):
    angle, same = verification.angles_deg(p["distance"]), p["same"].astype(bool)
    return angle[~same].mean() - angle[same].mean()


def _gap_resampled(p, counts):
    angle, same = verification.angles_deg(p["distance"]), p["same"].astype(bool)
    of_one, of_two = (sums(angle[kind], counts[kind]) / sums(kind, counts) for kind in (same, ~same))
    return of_two - of_one


def _separation(p):
    """Difference of the two kinds' mean angles over their joint standard deviation (d')."""
    angle, same = verification.angles_deg(p["distance"]), p["same"].astype(bool)
    return _gap(p) / np.sqrt((angle[same].var() + angle[~same].var()) / 2)


def _array(key):
    return lambda p: p[key]


def _drop(what, limit_deg=75.0):
    """Precision or recall, in percent, of the labels dropped by the 75-degree rule against those made wrong."""

    def marks(p):
        dropped, wrong = p["subcenter_angle_deg"] > limit_deg, p["noise_flag"].astype(bool)
        return dropped & wrong, dropped if what == "precision" else wrong

    def statistic(p):
        right, among = marks(p)
        return 100 * right.sum() / max(1, among.sum())

    def resampled(p, counts):
        right, among = marks(p)
        return 100 * sums(right, counts) / np.maximum(1, sums(among, counts))

    return {"statistic": statistic, "resampled": resampled}


def _verification_metrics():
    for name, label in (("", ""), ("cfp_fp", ", CFP-FP"), ("agedb_30", ", AgeDB-30")):
        keys, end = pair_keys(name), f"_{name}" if name else ""
        yield accuracy_metric(f"accuracy{end}_pct", f"verification accuracy, ten folds{label} (%)", keys)
    keys = pair_keys("")
    for far, end, label in ((1e-2, "1pct", "1 %"), (1e-3, "01pct", "0.1 %")):
        yield Metric(f"tar_far{end}_pct", f"true accepts at {label} false accepts (%)", False,
                     needs=keys, **_tar(keys, far))  # fmt: skip
    by_distance, by_bayes = (lambda p, key=key: (-p[key], p["same"]) for key in ("distance", "distance_bayes"))
    yield area_metric("auc_pct", "area under the ROC curve (%)", by_distance, keys)
    bayes = ("distance_bayes", "same", "fold")
    yield accuracy_metric("accuracy_bayes_pct", "verification accuracy by joint Bayes, ten folds (%)", bayes)
    for key, end, by in (("distance", "", ""), ("distance_bayes", "_bayes", " by joint Bayes")):
        label = f"verification accuracy{by} on View 2 without View 1's pairs, ten folds (%)"
        yield accuracy_metric(f"accuracy{end}_apart_pct", label, (key, "same", "fold"), _apart)
    yield area_metric("auc_bayes_pct", "area under the ROC curve by joint Bayes (%)", by_bayes, bayes)
    yield Metric("gap_deg", "mean angle of different pairs less same pairs' (degrees)", False,
                 statistic=_gap, resampled=_gap_resampled, needs=keys)  # fmt: skip
    yield Metric("separation", "the same over the joint standard deviation", False, statistic=_separation, needs=keys)
    yield from retrieval.recall_metrics()
    yield retrieval.r_precision_metric()
    # Table 3. Centres are means of unit embeddings (the paper does not say); people with one image are left out.
    for key, label, lower in (
        ("intra_deg", "test face to its person's centre (degrees)", True),
        ("inter_deg", "test person's centre to the nearest other (degrees)", False),
        ("train_intra_deg", "training face to its person's centre (degrees)", True),
        ("train_inter_deg", "training person's centre to the nearest other (degrees)", False),
        ("w_ec_deg", "row of W to its person's centre (degrees)", True),
        ("w_inter_deg", "row of W to the nearest other row (degrees)", False),
    ):
        yield Metric(key, label, lower, _array(key), needs=(key,))
    both = ("subcenter_angle_deg", "noise_flag")
    for what in ("precision", "recall"):
        yield Metric(f"drop_{what}_pct", f"{what} of the labels dropped at 75 degrees (%)", False,
                     **_drop(what), needs=both)  # fmt: skip


METRICS = {m.name: m for m in _verification_metrics()}


def measure(predictions: dict[str, np.ndarray]) -> dict[str, float]:
    """Every metric that the predictions allow, name -> value."""
    return metrics.measure(METRICS, predictions)
