"""Angles between embeddings and centres (Table 3 of the ArcFace paper)."""

import numpy as np

from facepapers.common.protocols.verification import unit_rows

AT_ONCE = 2**23  # cosines at a time: 64 MiB


def angle_statistics(
    embeddings: np.ndarray,
    labels: np.ndarray,
    weight: np.ndarray | None = None,
    normalise_first: bool = True,
    min_images: int = 1,
) -> dict[str, float]:
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


def nearest_cosine(rows: np.ndarray, chunk: int | None = None) -> np.ndarray:
    """For each unit row of (C, d) the cosine to its nearest other row, (C,).

    `chunk` rows at a time, by default as many as have AT_ONCE cosines: C x C may not fit.
    """
    best = np.empty(len(rows))
    chunk = chunk or max(1, AT_ONCE // len(rows))
    for start in range(0, len(rows), chunk):
        cosine = rows[start : start + chunk] @ rows.T
        cosine[np.arange(len(cosine)), np.arange(start, start + len(cosine))] = -np.inf
        best[start : start + chunk] = cosine.max(1)
    return best


def _mean_deg(cosine: np.ndarray) -> float:
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))).mean())
