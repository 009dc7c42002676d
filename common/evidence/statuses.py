"""What each status means, and the shape that stands for it beside its word."""

from dataclasses import dataclass

from facepapers.common.evidence.claims import Cell
from facepapers.common.evidence.statistics import SEEDS

# Tones: `agrees` and `disagrees` are verdicts, `open` has runs but no verdict, `absent` has no run.
TONES = ("agrees", "disagrees", "open", "absent")


@dataclass(frozen=True)
class Status:
    """A status as a reader sees it: its word, one of the shapes that the page draws, a tone, a sentence."""

    word: str
    shape: str
    tone: str
    meaning: str


MEANINGS = {
    "replicated": ("check", "agrees", "the whole interval lies within the tolerance around the published number"),
    "better": ("up", "agrees", "the whole interval lies beyond the tolerance, on the better side"),
    "worse": ("down", "disagrees", "the whole interval lies beyond the tolerance, on the worse side"),
    "supported": ("check", "agrees", "the whole interval of the gain says what the claim says"),
    "refuted": ("cross", "disagrees", "the whole interval of the gain says the opposite of the claim"),
    "no difference": ("equal", "agrees", "the whole 90 % interval lies within a margin fixed before the runs"),
    "inconclusive": ("half", "open", f"{SEEDS} seeds or more, and the interval still holds both answers"),
    "reference": ("diamond", "open", "unlike things side by side (another network or protocol): no verdict is drawn"),
    "other data": ("square", "open", "measured on real data for which nothing comparable is published"),
    "demo only": ("ring", "open", "measured on drawn faces: it shows that the method runs, nothing else"),
    "not run": ("dash", "absent", "the data set is there, this experiment was not run"),
    "data missing": ("dots", "absent", "no committed run has this data set"),
}
SIDES = {"higher": "hollow-up", "lower": "hollow-down", "no difference seen": "hollow-equal"}
UNKNOWN = ("square", "open", "no description of this status yet")


def status(word: str) -> Status:
    """The Status of a word. One that is not known here is shown as it is, and says that it lacks a description."""
    seeds, _, side = word.partition(": ")
    if side in SIDES:
        return Status(word, SIDES[side], "open", f"{seeds} gives no verdict, only a side{of_what(side)}")
    return Status(word, *MEANINGS.get(word, UNKNOWN))


def of_what(side: str) -> str:
    return ": the interval holds both answers" if side == "no difference seen" else f": the number is {side}"


def present(cells: list[Cell]) -> list[Status]:
    """[Status] of all cells, each once, verdicts first and cells without a run last."""
    words = {cell.status for cell in cells}
    order = [*MEANINGS]
    rank = lambda s: (TONES.index(s.tone), order.index(s.word) if s.word in order else len(order), s.word)
    return sorted(map(status, words), key=rank)
