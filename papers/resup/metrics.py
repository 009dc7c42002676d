"""What is measured, computed from what a record holds: accuracy, and whether the weights find the flipped labels."""

import numpy as np

from facepapers.common.protocols.metrics import Metric, area_metric, sums_by

BINS = 10  # of the reliability diagram
FEW = 30  # classes with fewer clean training faces are left out of the lowest class weight

# Keys of this paper alone in its run.json.
RECORDED = {
    "validation_chosen_step": "step of the weights that validation chose",
    "warmup": "run whose warm-up was taken over; null where it was its own",
}


def _correct(key):
    return lambda p: 100.0 * (p[key] == p["label"])


def _balanced(key):
    """Mean over the classes of the test faces of each class's accuracy."""

    def statistic(p):
        count = np.bincount(p["label"])
        right = np.bincount(p["label"], weights=p[key] == p["label"])
        return 100 * (right[count > 0] / count[count > 0]).mean()

    def resampled(p, counts):
        count, right = sums_by(p["label"], counts), sums_by(p["label"], counts, p[key] == p["label"])
        return 100 * (right / np.maximum(count, 1)).sum(0) / (count > 0).sum(0)

    return {"statistic": statistic, "resampled": resampled}


def _unseen(key):
    def ratio(p):
        new = ~p["repeated"].astype(bool)
        return 100 * (new & (p[key] == p["label"])), new

    return ratio


def _alike(p):
    """Correlation of the two networks' weights over the flipped labels."""
    mean, second = (p[k].astype(np.float64)[p["flip"].astype(bool)] for k in ("weight", "weight_second"))
    first = 2 * mean - second
    return 100 * np.corrcoef(first, second)[0, 1] if first.std() and second.std() else np.nan


def _clean_by(key):
    """Scores, and which labels are clean."""
    return lambda p: (p[key], ~p["flip"].astype(bool))


def _weight_of(flipped):
    def ratio(p):
        chosen = p["flip"].astype(bool) == flipped
        return 100 * p["weight"].astype(np.float64) * chosen, chosen

    return ratio


def reliability(weight: np.ndarray, flip: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mean weight, share of clean labels, count) of BINS equal bins of the weight; empty bins have count 0."""
    place = _bin(weight)
    count = np.bincount(place, minlength=BINS)
    safe = np.maximum(count, 1)
    return (np.bincount(place, weights=weight, minlength=BINS) / safe,
            np.bincount(place, weights=~flip, minlength=BINS) / safe, count)  # fmt: skip


def _bin(weight):
    return np.clip((weight * BINS).astype(int), 0, BINS - 1)


def _calibration_error(p):
    """Mean difference between P(clean) and the share of clean labels, over the bins, weighted by their faces."""
    said, true, count = reliability(p["weight"].astype(np.float64), p["flip"].astype(bool))
    return 100 * (count * np.abs(said - true)).sum() / count.sum()


def _calibration_error_resampled(p, counts):
    weight = p["weight"].astype(np.float64)
    surplus = sums_by(_bin(weight), counts, weight - ~p["flip"].astype(bool))  # a bin's faces times its difference
    return 100 * np.abs(surplus).sum(0) / counts.sum(0, dtype=np.int64)


def class_weights(p: dict[str, np.ndarray]) -> np.ndarray:
    """Mean weight of the clean labels of each true class, NaN where a class has fewer than FEW of them."""
    clean = ~p["flip"].astype(bool)
    label, weight = p["train_label"][clean], p["weight"].astype(np.float64)[clean]
    count = np.bincount(label)
    return np.where(count >= FEW, np.bincount(label, weights=weight) / np.maximum(count, 1), np.nan)


def _lowest_class(p):
    found = class_weights(p)
    return 100 * np.nanmin(found) if np.isfinite(found).any() else np.nan


def _lowest_class_resampled(p, counts):
    clean = ~p["flip"].astype(bool)
    label, weight, counts = p["train_label"][clean], p["weight"].astype(np.float64)[clean], counts[clean]
    count = sums_by(label, counts)
    mean = sums_by(label, counts, weight) / np.maximum(count, 1)
    lowest = np.where(count >= FEW, mean, np.inf).min(0)
    return np.where(np.isfinite(lowest), 100 * lowest, np.nan)


def _metrics():
    for end, when in (("", ""), ("_validation_chosen", ", validation-chosen epoch")):
        for key, who in (("predicted", ""), ("predicted_second", "second network"), ("predicted_mean", "mean of both")):
            keys, short = ("label", key + end), key.removeprefix("predicted")
            label = f"{', ' + who if who else ''}{when} (%)"
            yield Metric(f"accuracy{short}{end}_pct", f"accuracy{label}", False, _correct(key + end), needs=keys)
            balanced = _balanced(key + end)
            yield Metric(f"balanced{short}{end}_pct", f"balanced accuracy{label}", False, needs=keys, **balanced)
    for key, who in (("predicted", ""), ("predicted_mean", ", mean of both")):
        name, label = key.replace("predicted", "accuracy"), f"accuracy without copies of training faces{who} (%)"
        yield Metric(f"{name}_unseen_pct", label, False, ratio=_unseen(key), needs=("label", key, "repeated"))
    yield Metric("disagreement_pct", "test faces on which the two networks differ (%)", False,
                 lambda p: 100.0 * (p["predicted"] != p["predicted_second"]),
                 needs=("predicted", "predicted_second"))  # fmt: skip
    pair = ("weight", "flip")
    found = "clean labels told from flipped ones by the"
    for key in ("weight", "similarity"):
        yield area_metric(f"{key}_auc_pct", f"{found} {key}, area under ROC (%)", _clean_by(key), (key, "flip"))
    yield Metric("weight_clean_pct", "mean weight of clean labels (%)", False, ratio=_weight_of(False), needs=pair)
    yield Metric("weight_flipped_pct", "mean weight of flipped labels (%)", True, ratio=_weight_of(True), needs=pair)
    yield Metric("weight_error_pct", "P(clean) against the truth, calibration error (%)", True,
                 statistic=_calibration_error, resampled=_calibration_error_resampled, needs=pair)  # fmt: skip
    yield Metric("weight_lowest_class_pct", "lowest mean weight of a class's clean labels (%)", False,
                 statistic=_lowest_class, resampled=_lowest_class_resampled,
                 needs=(*pair, "train_label"))  # fmt: skip
    yield Metric("weight_correlation_pct", "correlation of the networks' weights over flipped labels (%)", True,
                 statistic=_alike, needs=(*pair, "weight_second"))  # fmt: skip


METRICS = {m.name: m for m in _metrics()}


def measure(predictions: dict[str, np.ndarray]) -> dict[str, float]:
    """Every metric that the predictions allow, name -> value."""
    found = {name: m.value(predictions) for name, m in METRICS.items() if m.available(predictions)}
    return {name: value for name, value in found.items() if np.isfinite(value)}
