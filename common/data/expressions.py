"""The expression classes of FERPlus, and the rules that turn its ten votes for a face into one label.

Barsoum et al., Training deep networks for facial expression recognition with crowd-sourced label distribution, ICMI
2016; the majority rule is that of the authors' code (microsoft/FERPlus, src/ferplus.py). Other papers use other rules
and seldom say which: a test set under one rule is not comparable with one under another. data/README.md counts them.
"""

import numpy as np

from facepapers.common.cli import UserError

EMOTIONS = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
VOTES = (*EMOTIONS, "unknown", "NF")  # the columns of fer2013new.csv; NF: not a face
RULES = ("majority", "half", "plurality", "emotions_only", "unique", "over_five")
# FER2013's own codes: 0 angry, 1 disgust, 2 fear, 3 happy, 4 sad, 5 surprise, 6 neutral. It knows no contempt.
FER2013_TO_FERPLUS = np.array([4, 5, 6, 1, 3, 2, 0], np.int8)
RAFDB = (
    "surprise",
    "fear",
    "disgust",
    "happiness",
    "sadness",
    "anger",
    "neutral",
)  # label 0..6; its files count from 1
AFFECTNET = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt")


def labels(votes: np.ndarray, rule: str = "majority") -> np.ndarray:
    """Class of each face, (N,) int64 in the order of EMOTIONS, -1 where the rule leaves the face out.

    votes: (N, 10) counts in the order of VOTES. An unknown or NF winner leaves the face out under every rule.
      majority       single votes are struck; the winner has more than half of the remaining votes (Microsoft's rule)
      half           the same with at least half of them; the first column wins a tie
      plurality      the column with most votes; the first wins a tie
      emotions_only  the same among the eight emotions: votes for unknown and NF are ignored
      unique         plurality where no other column has as many votes
      over_five      more than five votes as cast
    Raises UserError for an unknown rule, and for votes of another shape or below 0.
    """
    votes = np.asarray(votes).astype(np.int64)
    if votes.ndim != 2 or votes.shape[1] != len(VOTES) or (votes < 0).any():
        raise UserError(f"votes: expected (N, {len(VOTES)}) counts in the order {' '.join(VOTES)}, got {votes.shape}")
    if rule in ("majority", "half"):
        votes = np.where(votes > 1, votes, 0)
    elif rule == "emotions_only":
        votes = votes[:, : len(EMOTIONS)]
    winner, most = votes.argmax(1), votes.max(1)
    keep = (winner < len(EMOTIONS)) & (most > 0) & _accepted(votes, most, rule)
    return np.where(keep, winner, -1)


def _accepted(votes: np.ndarray, most: np.ndarray, rule: str) -> np.ndarray:
    """(N,) bool: whether `most`, the votes of the winner, suffice under the rule."""
    match rule:
        case "majority":
            return 2 * most > votes.sum(1)
        case "half":
            return 2 * most >= votes.sum(1)
        case "plurality" | "emotions_only":
            return np.ones(len(votes), bool)
        case "unique":
            return (votes == most[:, None]).sum(1) == 1
        case "over_five":
            return most > 5
    raise UserError(f"unknown label rule {rule!r}; known: {', '.join(RULES)}")
