"""Small pictures inside the results page: the shapes of statuses, and a number's interval beside its comparison."""

from facepapers.common.evidence.claims import Cell
from facepapers.common.evidence.html import Html, tag
from facepapers.common.evidence.statuses import Status

WIDTH, HEIGHT = 130, 16  # of an interval's picture
DRAWN = {  # each in a square of 16
    "check": '<path d="M1.5 8.5 6 13 14.5 3" fill="none" stroke="currentColor" stroke-width="3"/>',
    "cross": '<path d="M2.5 2.5l11 11M13.5 2.5l-11 11" stroke="currentColor" stroke-width="3"/>',
    "up": '<path d="M8 1 15.5 14.5H.5z" fill="currentColor"/>',
    "down": '<path d="M8 15 .5 1.5h15z" fill="currentColor"/>',
    "equal": '<path d="M1 5h14M1 11h14" stroke="currentColor" stroke-width="3"/>',
    "half": '<circle cx="8" cy="8" r="6.5" fill="none" stroke="currentColor" stroke-width="2"/>'
    '<path d="M8 1.5a6.5 6.5 0 0 1 0 13z" fill="currentColor"/>',
    "hollow-up": '<path d="M8 2.5 14 13.5H2z" fill="none" stroke="currentColor" stroke-width="2"/>',
    "hollow-down": '<path d="M8 13.5 2 2.5h12z" fill="none" stroke="currentColor" stroke-width="2"/>',
    "hollow-equal": '<path d="M1 5.5h14M1 10.5h14" stroke="currentColor" stroke-width="1.5" stroke-dasharray="3 2"/>',
    "diamond": '<path d="M8 1 15 8 8 15 1 8z" fill="none" stroke="currentColor" stroke-width="2"/>',
    "square": '<path d="M2.5 2.5h11v11h-11z" fill="none" stroke="currentColor" stroke-width="2"/>',
    "ring": '<circle cx="8" cy="8" r="6" fill="none" stroke="currentColor" stroke-width="2"/>',
    "dash": '<path d="M2 8h12" stroke="currentColor" stroke-width="2"/>',
    "dots": '<path d="M2 8h2.5M7 8h2.5M12 8h2.5" stroke="currentColor" stroke-width="2.5"/>',
}
SHAPES = Html("".join(f'<symbol id="shape-{name}" viewBox="0 0 16 16">{path}</symbol>' for name, path in DRAWN.items()))


def mark(status: Status) -> Html:
    """The shape of a status; its word stands beside it, so it says nothing to a screen reader."""
    return tag("svg", tag("use", href=f"#shape-{status.shape}"), class_="mark", aria_hidden="true")


class Scales:
    """How far the intervals of each metric reach from what they are compared with, so that its rows share a scale."""

    def __init__(self, cells: list[Cell]) -> None:
        self._reach: dict[tuple[str, str], float] = {}
        for cell in cells:
            key = cell.kind, cell.metric.name
            ends = compared(cell)
            self._reach[key] = max(self._reach.get(key, 0.0), *map(abs, ends)) if ends else 0.0

    def x(self, cell: Cell, value: float) -> float:
        """Where a difference stands in a picture, in 0..WIDTH; no difference is the middle."""
        reach = self._reach[cell.kind, cell.metric.name] or 1.0
        return round(WIDTH * (0.5 + 0.46 * value / reach), 1)


def compared(cell: Cell) -> tuple[float, ...]:
    """(low, mean, high, -margin, margin) of a cell less the published number, or of its gain; else ()."""
    i = cell.interval
    if i is None or cell.kind == "measured":
        return ()
    base = float(cell.claim["published"]) if cell.kind == "level" else 0.0
    return (*(end - base for end in (i.low, i.mean, i.high)), *margins(cell))


def margins(cell: Cell) -> tuple[float, float]:
    """The band around no difference: a level's tolerance, a contrast's margin on either side."""
    if cell.kind == "level":
        return -cell.claim["tolerance"], cell.claim["tolerance"]
    within = cell.claim.get("within", cell.claim.get("equivalence_margin", 0.0))
    return -max(within, cell.claim.get("margin", 0.0)), within


def plot(cell: Cell, scales: Scales, tone: str) -> Html:
    """A line at no difference, the band, and the interval with its mean; empty without one."""
    ends = compared(cell)
    if not ends:
        return Html()
    low, mean, high, left, right = (scales.x(cell, end) for end in ends)
    middle, level = WIDTH / 2, HEIGHT / 2
    band = tag("rect", x=left, y=0, width=round(right - left, 1), height=HEIGHT, class_="band") if right > left else ""
    return tag(
        "svg",
        band,
        tag("path", d=f"M{middle} 0V{HEIGHT}", class_="axis"),
        tag("path", d=f"M{low} {level}H{high}", class_="bar"),
        tag("circle", cx=mean, cy=level, r=3.5, class_="dot"),
        class_=f"plot {tone}", viewBox=f"0 0 {WIDTH} {HEIGHT}", aria_hidden="true",
    )  # fmt: skip
