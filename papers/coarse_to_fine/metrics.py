"""What is measured, computed from what a record holds: errors over a normaliser, failures, the cumulative error."""

import numpy as np

from facepapers.common.protocols import metrics
from facepapers.common.protocols.metrics import Metric

# Keys of this paper alone in its run.json.
RECORDED = {
    "best_validation": "step and error of the weights that validation chose; null without validation",
}


def _nme(normaliser, errors="error_px", subset=None):
    def per_sample(p):
        chosen = p[errors] if subset is None else p[errors][:, p[subset].astype(bool)]
        return metrics.nme_pct(chosen, p[normaliser])

    return per_sample


def _occluded(normaliser, wanted):
    """NME over the occluded (or visible) points alone, pooled over the test set as point errors over d."""

    def statistic(p):
        relative = 100 * p["error_px"] / p[normaliser][:, None]
        return relative[p["occluded"].astype(bool) == wanted].mean()

    return statistic


def _metrics_for(normaliser, name, label):
    """All metrics under one normaliser. `normaliser` is the array's key, `name` the metric's."""
    needs = ("error_px", normaliser)
    nme = _nme(normaliser)
    return [
        Metric(f"nme_{name}_pct", f"NME, {label} (%)", True, nme, needs=needs),
        Metric(f"fr10_{name}_pct", f"failures above 10 %, {label} (%)", True,
               lambda p: metrics.failure_pct(nme(p)), needs=needs),
        Metric(f"auc10_{name}", f"area under the cumulative error up to 10 %, {label}", False,
               lambda p: metrics.ced_area(nme(p)), needs=needs),
        Metric(f"nme_{name}_principal_pct", f"NME of the principal points, {label} (%)", True,
               _nme(normaliser, subset="principal"), needs=needs),
        Metric(f"nme_{name}_validation_chosen_pct", f"NME, {label}, validation-chosen weights (%)", True,
               _nme(normaliser, "error_px_validation_chosen"), needs=("error_px_validation_chosen", normaliser)),
        Metric(f"nme_{name}_mirrored_pct", f"NME, {label}, mean of a face's and its mirror image's points (%)", True,
               _nme(normaliser, "error_px_mirrored"), needs=("error_px_mirrored", normaliser)),
        Metric(f"nme_{name}_detected_pct", f"NME, {label}, boxes of the detector, faces that it finds (%)", True,
               ratio=lambda p: (_nme(normaliser, "error_px_detected")(p) * p["detected"], p["detected"]),
               needs=("error_px_detected", normaliser, "detected")),
        Metric(f"nme_{name}_challenge_pct", f"NME of the challenging subset, {label} (%)", True,
               ratio=lambda p: (nme(p) * p["challenge"], p["challenge"]), needs=(*needs, "challenge")),
        Metric(f"nme_{name}_occluded_pct", f"NME of occluded points, {label} (%)", True,
               statistic=_occluded(normaliser, True), needs=("error_px", normaliser, "occluded")),
        Metric(f"nme_{name}_visible_pct", f"NME of visible points, {label} (%)", True,
               statistic=_occluded(normaliser, False), needs=("error_px", normaliser, "occluded")),
    ]  # fmt: skip


# Divide by the pupils' distance (29 points) or the eye centres' (68): never call either "inter-ocular", which is
# the outer eye corners' and about 1.4 times as long.
METRICS = {
    m.name: m
    for m in [
        *_metrics_for("interpupil_px", "interpupil", "inter-pupil"),
        *_metrics_for("eyecentre_px", "eyecentre", "eye centres"),
        *_metrics_for("interocular_px", "interocular", "outer eye corners"),
        Metric("missed_pct", "faces that the detector misses (%)", True,
               lambda p: 100.0 * ~p["detected"].astype(bool), needs=("detected",)),
    ]
}  # fmt: skip


def measure(predictions: dict[str, np.ndarray]) -> dict[str, float]:
    """Every metric that the predictions allow, name -> value."""
    return metrics.measure(METRICS, predictions)
