"""Face verification: are two images the same person? Embedding, the ten-fold protocol, ROC, and angle statistics.

The accuracy is that of insightface's evaluator (recognition/arcface_torch/eval/verification.py), which follows LFW's:
the embeddings of an image and of its mirror image are added and scaled to unit length; two images are accepted as the
same person when their squared distance d = 2 - 2 cos lies strictly below a threshold; the threshold of each tenth of
the pairs is the one of 0, 0.01, ..., 3.99 that is best on the other nine tenths (the first one on ties).

Everything returns per-pair values, so that intervals and paired tests can be computed from a committed record.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.cli import MissingData, UserError
from common.metrics import Metric, running_sums
from common.progress import progress

ACCURACY_THRESHOLDS = np.arange(0, 4, 0.01)  # of squared distance; a step is 0.005 in cosine
FAR_THRESHOLDS = np.arange(0, 4, 0.001)


class Pairs(NamedTuple):
    """P pairs of images given by their names (people's files: Name/Name_0001.jpg)."""

    left: np.ndarray  # (P,) str
    right: np.ndarray  # (P,) str
    same: np.ndarray  # (P,) bool
    fold: np.ndarray  # (P,) int, 0..9


class Verification(NamedTuple):
    """Result of `verify`. P pairs, F folds."""

    accuracy_pct: float  # mean over the folds
    std_pct: float  # population standard deviation over the folds
    fold_accuracy_pct: np.ndarray  # (F,)
    threshold: np.ndarray  # (F,) squared distance, learned on the other folds
    correct: np.ndarray  # (P,) bool, each pair judged by its own fold's threshold


# ---- Embedding and distances


def embed(network, images, to_input, batch=256, device="cpu", flip=True, unit=True):
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


def unit_rows(embeddings):
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


def squared_distances(left, right):
    """Squared Euclidean distances (P,), 0..4, between rows of unit embeddings (P, d)."""
    return np.square(left - right).sum(1)


# ---- Verification


def angles_deg(distance):
    """Angles of pairs in degrees from squared distances 2 - 2 cos."""
    return np.degrees(np.arccos(np.clip(1 - np.asarray(distance, np.float64) / 2, -1, 1)))


def contiguous_folds(n_pairs, folds=10):
    """Fold (P,) of each pair when the list is cut into equal runs: scikit-learn's KFold without shuffling."""
    if n_pairs < folds:
        raise UserError(f"{n_pairs} pairs cannot be cut into {folds} folds")
    return np.repeat(np.arange(folds), [len(part) for part in np.array_split(np.arange(n_pairs), folds)])


def sample_pairs(index, identity, count, seed):
    """(2 count, 4) pairs among the images `index`: `count` (or as many as there are) same, as many different."""
    rng = np.random.default_rng(seed)
    left, right = np.triu_indices(len(index), 1)
    same = identity[index[left]] == identity[index[right]]
    count = min(count, int(same.sum()), int((~same).sum()))
    chosen = np.concatenate([rng.choice(np.flatnonzero(same == kind), count, replace=False) for kind in (True, False)])
    fold = balanced_folds(same[chosen])
    return np.stack([index[left[chosen]], index[right[chosen]], same[chosen], fold], 1).astype(np.int32)


def hold_out(identity, train, count=3000, seed=2007):
    """(test (N,) bool, pairs (P, 4)): a fifth of the people in `train` (N,), and pairs of theirs (see sample_pairs).

    For tuning, which must not see the people of the test: train on `train & ~test`.
    """
    import torch

    from common.images import generator

    people = np.unique(identity[train])
    order = torch.randperm(len(people), generator=generator(seed)).numpy()
    test = train & np.isin(identity, people[order[: len(people) // 5]])
    return test, sample_pairs(np.flatnonzero(test), identity, count, seed)


def balanced_folds(same, folds=10):
    """Fold (P,) of each pair when the same-person pairs and the others are each cut into runs, in their order.

    For lists that are not in blocks, such as LFW's pairsDevTest (all same-person pairs come first): contiguous folds
    would hold one kind only. On pairs.txt both give LFW's official ten.
    """
    fold = np.empty(len(same), int)
    for kind in (True, False):
        where = np.flatnonzero(np.asarray(same, bool) == kind)
        fold[where] = contiguous_folds(len(where), folds)
    return fold


def verify(distance, same, fold=None, both=True):
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


def accuracy_resampled(distance, same, fold, counts):
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


def accuracy_metric(name, label, keys):
    """Metric in percent: the share of pairs that `verify` judges rightly, of the arrays `keys` (distance, same, fold).

    It is the mean over the folds when these are of one size, as in every list here.
    """
    arrays = lambda p: (p[key] for key in keys)
    return Metric(
        name, label, False, needs=keys,
        statistic=lambda p: 100 * verify(*arrays(p), both=False).correct.mean(),
        resampled=lambda p, counts: 100 * accuracy_resampled(*arrays(p), counts),
    )  # fmt: skip


class TarAtFar(NamedTuple):
    """True-accept rate at a false-accept rate; means over the folds, as shares."""

    tar: float
    tar_std: float
    far: float  # reached on the held-out folds; near the target, not equal to it


def tar_at_far(distance, same, fold=None, far=1e-3, both=True):
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


def roc(distance, same):
    """(false-accept rate, true-accept rate, squared distance) arrays of the whole list, from strict to lenient."""
    from sklearn.metrics import roc_curve

    fpr, tpr, score = roc_curve(same, -np.asarray(distance, np.float64), drop_intermediate=False)
    return fpr, tpr, -score


def _checked(distance, same, fold, both):
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


def _accepted(distance, same, fold, thresholds):
    """How many pairs each threshold accepts: same-person (F, T), others (F, T), and both totals (F,)."""
    folds = fold.max() + 1
    # A pair is accepted by thresholds[t] iff distance < thresholds[t] iff t >= rank.
    rank = np.searchsorted(thresholds, distance, side="right")
    shape = 2, folds, len(thresholds) + 1
    accepted = np.bincount((same * folds + fold) * shape[2] + rank, minlength=np.prod(shape)).reshape(shape)
    accepted.cumsum(2, out=accepted)  # in place: fresh memory costs more than the sum
    return accepted[1, :, :-1], accepted[0, :, :-1], accepted[1, :, -1], accepted[0, :, -1]


# ---- LFW's protocol files: pairs.txt, pairsDevTrain.txt, pairsDevTest.txt, people*.txt


def lfw_name(person, number):
    """Name/Name_0001.jpg"""
    return f"{person}/{person}_{int(number):04d}.jpg"


def read_pairs(path):
    """Pairs of an LFW pairs file. Fold: the file's own sets (View 2), or ten balanced ones (View 1).

    The first line holds the number of sets (View 2 only) and the number of pairs of each kind per set. Raises
    UserError, with the line, for a malformed file.
    """
    lines = _protocol_lines(path)
    try:
        header = [int(word) for word in lines[0]]
        sets, each = header if len(header) == 2 else (1, *header)
    except (ValueError, IndexError, TypeError):
        raise UserError(f"{path}:1: expected '[sets] pairs-per-kind'; fetch the protocol file again") from None
    if len(lines) != 1 + 2 * sets * each:
        wanted = 2 * sets * each
        raise UserError(f"{path}: {len(lines) - 1} pairs where its first line promises {wanted}; fetch it again")
    left, right, same = [], [], []
    for number, words in enumerate(lines[1:], start=2):
        if len(words) not in (3, 4) or not (words[1] + words[-1]).isdigit():
            raise UserError(f"{path}:{number}: expected 'name n n' or 'name n name n', found {' '.join(words)!r}")
        left.append(lfw_name(words[0], words[1]))
        right.append(lfw_name(words[-2] if len(words) == 4 else words[0], words[-1]))
        same.append(len(words) == 3)
    same = np.array(same)
    fold = contiguous_folds(len(same), sets) if sets > 1 else balanced_folds(same)
    return Pairs(np.array(left), np.array(right), same, fold)


def read_people(path):
    """Sets of {person: number of images} of an LFW people file: a list of ten (View 2) or of one (View 1)."""
    lines = _protocol_lines(path)
    view2 = len(lines) > 1 and len(lines[0]) == len(lines[1]) == 1  # "10" and then "601": sets, people in the first
    at, sets = int(view2), []
    try:
        for _ in range(int(lines[0][0]) if view2 else 1):
            count = int(lines[at][0])
            people = lines[at + 1 : at + 1 + count]
            sets.append({name: int(images) for name, images in people})
            at += 1 + count
            if len(people) != count:
                raise IndexError
    except (ValueError, IndexError):
        raise UserError(f"{path}: set {len(sets) + 1} does not hold the people it promises; fetch it again") from None
    return sets


def index_pairs(pairs, names, path):
    """Positions (P,), (P,) of the pairs' images in the list `names`. UserError, with the pairs' file `path`, when an
    image is absent.
    """
    place = {name: i for i, name in enumerate(names)}
    absent = [name for name in (*pairs.left, *pairs.right) if name not in place]
    if absent:
        raise UserError(
            f"{path}: names {len(set(absent))} images that are absent, e.g. {absent[0]}; "
            "obtain the whole data set, or the protocol file that belongs to it"
        )
    return np.array([place[n] for n in pairs.left]), np.array([place[n] for n in pairs.right])


def _protocol_lines(path):
    """The words of each non-empty line."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingData(f"{path}: no such protocol file; `make data-lfw` obtains it") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file; fetch the protocol file again") from None
    return [line.split() for line in text.splitlines() if line.strip()]


# ---- Angles between embeddings and centres (Table 3 of the ArcFace paper)


def angle_statistics(embeddings, labels, weight=None, normalise_first=True, min_images=1):
    """Mean angles in degrees, a dict: `intra_deg`, `inter_deg`, and with W also `w_ec_deg`, `w_inter_deg`.

    embeddings (N, d), labels (N,), weight (C, d) with the row of a class at its label. intra: image to the centre of
    its class, mean over images. inter: centre to its nearest other centre, mean over classes. w_ec: row of W to the
    centre of its class. w_inter: row of W to its nearest other row.
    A centre is the mean of unit embeddings, or of raw ones with `normalise_first=False`: the paper does not say which.
    Nor does it say whether people with one image count, whose intra angle is 0; `min_images=2` leaves them out.
    """
    raw = np.asarray(embeddings, np.float64)
    classes, place, count = np.unique(labels, return_inverse=True, return_counts=True)
    centre = np.zeros((len(classes), raw.shape[1]))
    np.add.at(centre, place, unit_rows(raw) if normalise_first else raw)
    centre = unit_rows(centre)
    used = count[place] >= min_images
    cosine = (unit_rows(raw)[used] * centre[place[used]]).sum(1)
    result = {"intra_deg": _mean_deg(cosine), "inter_deg": _mean_deg(nearest_cosine(centre[count >= min_images]))}
    if weight is not None:
        rows = unit_rows(weight)
        result["w_ec_deg"] = _mean_deg((rows[classes] * centre).sum(1))
        result["w_inter_deg"] = _mean_deg(nearest_cosine(rows))
    return result


def nearest_cosine(rows, chunk=1024):
    """For each unit row of (C, d) the cosine to its nearest other row, (C,). Chunked: C x C may not fit."""
    best = np.empty(len(rows))
    for start in range(0, len(rows), chunk):
        cosine = rows[start : start + chunk] @ rows.T
        cosine[np.arange(len(cosine)), np.arange(start, start + len(cosine))] = -np.inf
        best[start : start + chunk] = cosine.max(1)
    return best


def _mean_deg(cosine):
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))).mean())
