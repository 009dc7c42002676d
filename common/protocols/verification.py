"""Face verification: are two images the same person? Embedding, the ten-fold protocol and ROC.

The accuracy is that of insightface's evaluator (recognition/arcface_torch/eval/verification.py), which follows LFW's:
the embeddings of an image and of its mirror image are added and scaled to unit length; two images are accepted as the
same person when their squared distance d = 2 - 2 cos lies strictly below a threshold; the threshold of each tenth of
the pairs is the one of 0, 0.01, ..., 3.99 that is best on the other nine tenths (the first one on ties).

Everything returns per-pair values, so that intervals and paired tests can be computed from a committed record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from facepapers.common.cli import UserError
from facepapers.common.progress import progress
from facepapers.common.protocols.metrics import Metric, running_sums
from facepapers.common.protocols.pair_lists import contiguous_folds

if TYPE_CHECKING:
    import torch

ACCURACY_THRESHOLDS = np.arange(0, 4, 0.01)  # of squared distance; a step is 0.005 in cosine
FAR_THRESHOLDS = np.arange(0, 4, 0.001)


class Verification(NamedTuple):
    """Result of `verify`. P pairs, F folds."""

    accuracy_pct: float  # mean over the folds
    std_pct: float  # population standard deviation over the folds
    fold_accuracy_pct: np.ndarray  # (F,)
    threshold: np.ndarray  # (F,) squared distance, learned on the other folds
    correct: np.ndarray  # (P,) bool, each pair judged by its own fold's threshold


def embed(
    network: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor | np.ndarray,
    to_input: Callable[[torch.Tensor], torch.Tensor],
    batch: int = 256,
    device: torch.device | str = "cpu",
    flip: bool = True,
    unit: bool = True,
) -> np.ndarray:
    """Unit embeddings (N, d), float64 numpy, of uint8 images (N, 3, H, W).

    `network` maps float input to (B, d) and must be in eval mode; `to_input` maps a uint8 batch to its input. With
    `flip` the embedding of the mirror image is added before normalising; without `unit` nothing is normalised. Raises
    UserError as `unit_rows` does.
    """
    import torch  # recomputing a record's accuracy does without

    rows = []
    with torch.no_grad():
        for start in progress(range(0, len(images), batch), "embeddings", "batches"):
            x = to_input(torch.as_tensor(images[start : start + batch]).to(device))
            y = network(x).float()
            rows.append((y + network(x.flip(3)).float() if flip else y).cpu())
    found = torch.cat(rows).numpy().astype(np.float64)
    directions = unit_rows(found)
    return directions if unit else found


def unit_rows(embeddings: np.ndarray) -> np.ndarray:
    """Rows of (N, d) scaled to length 1, float64. UserError for a zero or non-finite row, which has no direction."""
    embeddings = np.asarray(embeddings, np.float64)
    length = np.linalg.norm(embeddings, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(length) & (length > 0)))
    if len(bad):
        raise UserError(
            f"embedding {bad[0]} is zero or not finite ({len(bad)} of {len(embeddings)}): it has no angle to another; "
            "check the weights and the input scaling"
        )
    return embeddings / length


def squared_distances(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances (P,), 0..4, between rows of unit embeddings (P, d)."""
    return np.square(left - right).sum(1)


def angles_deg(distance: np.ndarray) -> np.ndarray:
    """Angles of pairs in degrees from squared distances 2 - 2 cos."""
    return np.degrees(np.arccos(np.clip(1 - np.asarray(distance, np.float64) / 2, -1, 1)))


def verify(distance: np.ndarray, same: np.ndarray, fold: np.ndarray | None = None, both: bool = True) -> Verification:
    """Ten-fold verification accuracy of squared distances (P,) with truth `same` (P,): a Verification.

    `fold` (P,) numbers the folds from 0; by default ten contiguous ones. Raises UserError for inputs of unequal length
    and, unless `both` is false (resampled lists), for folds without a pair of either kind.
    """
    distance, same, fold = _checked(distance, same, fold, both)
    accepted_same, accepted_other, n_same, n_other = _accepted(distance, same, fold, ACCURACY_THRESHOLDS)
    right = accepted_same + (n_other[:, None] - accepted_other)  # (F, T) correct decisions
    threshold = ACCURACY_THRESHOLDS[np.argmax(right.sum(0) - right, axis=1)]  # argmax takes the first on ties
    correct = (distance < threshold[fold]) == same
    accuracy = 100 * np.bincount(fold, correct) / np.maximum(1, n_same + n_other)
    return Verification(float(accuracy.mean()), float(accuracy.std()), accuracy, threshold, correct)


def accuracy_resampled(distance: np.ndarray, same: np.ndarray, fold: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Share of pairs that `verify` judges rightly in R resamples, (R,), each with thresholds learned anew.

    counts (P, R): how often each pair stands in a resample. A fold may be empty there.
    """
    distance, same, fold = _checked(distance, same, fold, both=False)
    rank = np.searchsorted(ACCURACY_THRESHOLDS, distance, side="right")  # accepted by thresholds[t] iff t >= rank
    steps = np.union1d(0, rank[rank < len(ACCURACY_THRESHOLDS)])  # between them no decision changes
    change = counts * np.where(same, 1, -1).astype(np.int32)[:, None]  # to the right decisions, once a pair is accepted
    gains = []  # of each fold, over accepting nothing: (steps, R)
    for number in range(fold.max() + 1):
        own = np.flatnonzero(fold == number)
        own = own[np.argsort(rank[own], kind="stable")]
        gains.append(running_sums(change[own])[np.searchsorted(rank[own], steps, side="right")])
    total, draw = sum(gains), np.arange(counts.shape[1])
    right = counts[~same].sum(0, dtype=np.int64) + sum(gain[(total - gain).argmax(0), draw] for gain in gains)
    return right / counts.sum(0, dtype=np.int64)


def accuracy_metric(
    name: str,
    label: str,
    keys: tuple[str, str, str],
    among: Callable[[Mapping[str, np.ndarray]], np.ndarray | None] | None = None,
) -> Metric:
    """Metric in percent: the share of pairs that `verify` judges rightly, of the arrays `keys` (distance, same, fold).

    It is the mean over the folds when these are of one size, as in every whole list here. `among` as in Metric.
    """

    def arrays(predictions: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        distance, same, fold = (predictions[key] for key in keys)
        places = slice(None) if among is None else among(predictions)
        return distance[places], same[places], fold[places]

    return Metric(
        name, label, False, needs=keys, among=among,
        statistic=lambda p: 100 * verify(*arrays(p), both=False).correct.mean(),
        held=lambda p: 100 * verify(*arrays(p), both=False).correct,
        share_of=lambda p: len(arrays(p)[0]),
        resampled=lambda p, counts: 100 * accuracy_resampled(*arrays(p), counts),
    )  # fmt: skip


def operating_points(distance: np.ndarray, same: np.ndarray, far_pct: float = 1.0) -> dict[str, dict[str, float]]:
    """Two thresholds for use, chosen on the whole list of squared distances (P,) with truth `same` (P,).

    "accuracy" judges most pairs rightly, "low_false_accepts" is the largest with at most `far_pct` % false accepts.
    Each has its `threshold` (same person below it), and its `false_accepts_pct` and `false_rejects_pct` on the list.
    """
    distance, same, _ = _checked(distance, same, np.zeros(len(same), int), both=True)
    accepted_same, accepted_other, n_same, n_other = _accepted(distance, same, np.zeros(len(same), int), FAR_THRESHOLDS)
    false_accepts = 100 * accepted_other[0] / n_other[0]
    right = accepted_same[0] + n_other[0] - accepted_other[0]
    chosen = {"accuracy": right.argmax(), "low_false_accepts": np.flatnonzero(false_accepts <= far_pct)[-1]}
    return {
        name: {
            "threshold": round(float(FAR_THRESHOLDS[k]), 3),
            "false_accepts_pct": round(float(false_accepts[k]), 2),
            "false_rejects_pct": round(100 * float(1 - accepted_same[0, k] / n_same[0]), 2),
        }
        for name, k in chosen.items()
    }


class TarAtFar(NamedTuple):
    """True-accept rate at a false-accept rate; means over the folds, as shares."""

    tar: float
    tar_std: float
    far: float  # reached on the held-out folds; near the target, not equal to it


def tar_at_far(
    distance: np.ndarray, same: np.ndarray, fold: np.ndarray | None = None, far: float = 1e-3, both: bool = True
) -> TarAtFar:
    """Ten-fold TAR at the threshold where the other nine folds' FAR is `far`, interpolated linearly: a TarAtFar.

    As insightface's calculate_val: grid 0, 0.001, ..., 3.999, and threshold 0 if the training FAR never reaches `far`.
    Its interpolation is not defined where FAR is flat at exactly `far`; there we take the end of the flat stretch.
    """
    distance, same, fold = _checked(distance, same, fold, both)
    _, accepted_other, n_same, n_other = _accepted(distance, same, fold, FAR_THRESHOLDS)
    train_far = (accepted_other.sum(0) - accepted_other) / (n_other.sum() - n_other)[:, None]  # (F, T)
    reached = [np.interp(far, curve, FAR_THRESHOLDS) if curve.max() >= far else 0.0 for curve in train_far]
    accepted = distance < np.array(reached)[fold]
    tar = np.bincount(fold, accepted & same) / np.maximum(1, n_same)
    test_far = np.bincount(fold, accepted & ~same) / np.maximum(1, n_other)
    return TarAtFar(float(tar.mean()), float(tar.std()), float(test_far.mean()))


def tar_resampled(
    distance: np.ndarray, same: np.ndarray, fold: np.ndarray, counts: np.ndarray, far: float = 1e-3
) -> np.ndarray:
    """`tar_at_far`'s true-accept rate (R,) in R resamples, each with thresholds learned anew.

    counts (P, R): how often each pair stands in a resample. A fold may be empty there. Where fewer than about three
    false accepts are allowed, resamples vary less than lists do (most hold the list's own nearest pair of different
    people): then no interval should rest on them.
    """
    distance, same, fold = _checked(distance, same, fold, both=False)
    rank = np.searchsorted(FAR_THRESHOLDS, distance, side="right")  # accepted by thresholds[t] iff t >= rank
    steps = np.unique(rank[~same & (rank < len(FAR_THRESHOLDS))])  # between them no curve rises
    falsely, of_fold, rates, draw = [], [], [], np.arange(counts.shape[1])
    for number in range(fold.max() + 1):
        own = np.flatnonzero(~same & (fold == number))
        own = own[np.argsort(rank[own], kind="stable")]
        accepted = running_sums(counts[own])
        falsely.append(accepted[np.searchsorted(rank[own], steps, side="right")])  # (steps, R)
        of_fold.append(accepted[-1])
    everywhere, of_all = sum(falsely), sum(of_fold)
    for number in range(fold.max() + 1):
        with np.errstate(invalid="ignore"):  # where there is no pair nothing is reached
            threshold = _reached(far, (everywhere - falsely[number]) / (of_all - of_fold[number]), steps)
        own = np.flatnonzero(same & (fold == number))
        own = own[np.argsort(distance[own])]
        accepted = running_sums(counts[own])
        rates.append(accepted[np.searchsorted(distance[own], threshold), draw] / np.maximum(1, accepted[-1]))
    present = [counts[fold == number].any(0) for number in range(fold.max() + 1)]
    folds = (np.arange(1, len(present) + 1)[:, None] * present).max(0)  # up to the last that has a pair
    return np.sum(rates, 0) / folds


def _reached(far: float, curve: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Thresholds (R,) where curves (S, R), which rise at `steps` (S,) of the grid alone, are `far`; else 0."""
    if not len(steps):
        return np.zeros(curve.shape[1])
    draw, beyond = np.arange(curve.shape[1]), (curve <= far).sum(0)  # the first step that is higher
    step = np.minimum(beyond, len(steps) - 1)
    low = np.where(step > 0, curve[step - 1, draw], 0.0)
    grid = FAR_THRESHOLDS[steps[step]]
    before = FAR_THRESHOLDS[np.maximum(steps[step] - 1, 0)]
    with np.errstate(invalid="ignore", divide="ignore"):
        between = (grid - before) / (curve[step, draw] - low) * (far - low) + before
    between = np.where(far == low, before, between)
    between = np.where(beyond == len(steps), FAR_THRESHOLDS[-1], between)
    return np.where(curve[-1] >= far, between, 0.0)


def roc(distance: np.ndarray, same: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(false-accept rate, true-accept rate, squared distance) arrays of the whole list, from strict to lenient."""
    from sklearn.metrics import roc_curve

    fpr, tpr, score = roc_curve(same, -np.asarray(distance, np.float64), drop_intermediate=False)
    return fpr, tpr, -score


def _checked(
    distance: np.ndarray, same: np.ndarray, fold: np.ndarray | None, both: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    distance, same = np.asarray(distance, np.float64), np.asarray(same, bool)
    fold = contiguous_folds(len(same)) if fold is None else np.asarray(fold, int)
    if not len(distance) == len(same) == len(fold):
        raise UserError(f"{len(distance)} distances, {len(same)} truths, {len(fold)} folds: each pair needs one")
    if not np.isfinite(distance).all():
        raise UserError(f"pair {int(np.flatnonzero(~np.isfinite(distance))[0])}: its distance is not a number")
    for kind, name in ((True, "same-person"), (False, "different-person")) if both else ():
        empty = np.flatnonzero(np.bincount(fold[same == kind], minlength=fold.max() + 1) == 0)
        if len(empty):
            raise UserError(f"fold {empty[0]} has no {name} pair; number folds from 0, or use balanced_folds")
    return distance, same, fold


def _accepted(
    distance: np.ndarray, same: np.ndarray, fold: np.ndarray, thresholds: np.ndarray
) -> tuple[np.ndarray, ...]:
    """How many pairs each threshold accepts: same-person (F, T), others (F, T), and both totals (F,)."""
    folds = fold.max() + 1
    # A pair is accepted by thresholds[t] iff distance < thresholds[t] iff t >= rank.
    rank = np.searchsorted(thresholds, distance, side="right")
    shape = 2, folds, len(thresholds) + 1
    accepted = np.bincount((same * folds + fold) * shape[2] + rank, minlength=np.prod(shape)).reshape(shape)
    accepted.cumsum(2, out=accepted)  # in place: fresh memory costs more than the sum
    return accepted[1, :, :-1], accepted[0, :, :-1], accepted[1, :, -1], accepted[0, :, -1]
