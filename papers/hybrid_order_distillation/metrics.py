"""What is measured, computed from what a record holds: verification, retrieval, classification (see evaluate.py)."""

import numpy as np

from facepapers.common.protocols import retrieval
from facepapers.common.protocols.metrics import Metric, area_metric
from facepapers.common.protocols.verification import accuracy_metric

LISTS = {  # ending of the arrays -> what is compared with what
    "": "both images low",
    "cross": "high against low",
    "teacher": "high by the teacher against low by the student",
    "other": "both low, another degradation operator",
    "pairs": "LFW's 6,000 pairs without people of DevTrain, both low",
    "pairs_cross": "the same, high against low",
}

# Keys of this paper alone in its run.json.
RECORDED = {
    "teacher": "hash and training time of the teacher",
    "cost": "parameters and multiply-adds of teacher and student",
}


def alike(record: dict) -> str:
    """What both runs of a pair share: the teacher. Students of two teachers differ by these, too."""
    return record["teacher"]["sha256"]


def _keys(ending):
    """Distances, truths and folds of a list; those of one set of pairs share truths and folds."""
    own = "_pairs" if ending.startswith("pairs") else ""
    return f"distance_{ending}".rstrip("_"), f"same{own}", f"fold{own}"


def _correct(key):
    return lambda p: 100.0 * (p[key] == p["label"])


def _closeness(p):
    """Scores and truths of the pairs at low resolution."""
    return -p["distance"], p["same"]


def _metrics():
    for ending, what in LISTS.items():
        keys, end = _keys(ending), f"_{ending}" if ending else ""
        yield accuracy_metric(f"accuracy{end}_pct", f"verification accuracy, {what} (%)", keys)
    yield area_metric("auc_pct", "area under the ROC curve, both images low (%)", _closeness, _keys(""))
    for end, what in (("", ""), ("_other", ", another degradation operator")):
        key = f"predicted{end}"
        yield Metric(f"top1{end}_pct", f"top-1 accuracy{what} (%)", False, _correct(key), needs=(key, "label"))
    for end, what in (("", ""), ("_cross", ", low query against high gallery")):
        yield from retrieval.recall_metrics(end, what)
    yield retrieval.r_precision_metric()


METRICS = {m.name: m for m in _metrics()}


def measure(predictions: dict[str, np.ndarray]) -> dict[str, float]:
    """Every metric that the predictions allow, name -> value."""
    return {name: m.value(predictions) for name, m in METRICS.items() if m.available(predictions)}
