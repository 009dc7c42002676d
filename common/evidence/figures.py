"""What every paper's figures.py shares: one palette, dots with intervals, ROC curves, files written whole.

A paper's figures.py has `draw(records, folder)`, which returns the paths, `pictures(records)`, which names what `draw`
would draw, and CAPTIONS and ALTERNATIVES, which say of each committed picture what to see and what stands where.
"""

import textwrap
from functools import partial
from pathlib import Path

import numpy as np

from facepapers.common import storage
from facepapers.common.evidence import runs
from facepapers.common.protocols import verification

# Okabe and Ito's colours, chosen for colour-blind readers (https://jfly.uni-koeln.de/color/), without their yellow,
# which is faint on white, and with a grey that stays apart from the others: tests/test_figures.py looks at all pairs.
PALETTE = {
    "black": "#000000", "grey": "#505050", "orange": "#e69f00", "sky": "#56b4e9", "green": "#009e73",
    "blue": "#0072b2", "vermilion": "#d55e00", "purple": "#cc79a7",
}  # fmt: skip
PALE = "#cccccc"  # lines to compare with, behind the data
WIDTH_IN, DPI = 9.0, 120  # 1,080 pixels, of which a card shows about 900: letters of 8 points stay readable
STYLE = {
    "font.size": 8.5, "legend.fontsize": 8.5, "legend.frameon": False, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#eeeeee",
}  # fmt: skip
LEVELS, CONTRASTS = "90 % intervals", "95 % intervals"  # the confidences of statistics.py
DATA = {
    "embedded": "drawn faces", "cofw": "COFW", "cofw-grey": "COFW in grey", "lfpw": "LFPW", "helen": "Helen",
    "afw": "AFW", "ibug": "iBUG", "300w": "300-W", "lfw": "LFW", "casia": "CASIA-WebFace", "ms1mv2": "MS1MV2",
    "utkface": "UTKFace", "fairface": "FairFace", "celeba": "CelebA", "ferplus": "FERPlus", "rafdb": "RAF-DB",
    "affectnet": "AffectNet", "cifar100": "CIFAR-100", "cub200": "CUB-200", "cars196": "Cars196",
    "omniglot": "Omniglot",
}  # fmt: skip


# ---- Which records make a picture


def comparable(records):
    """The records with a preset's own settings: those with a user's answer no cell and stand in no picture."""
    return runs.of_presets(records)


def groups(records):
    """{stem of a file: its records}: one for each data set and preset of the comparable records."""
    found = {}
    for record in comparable(records):
        found.setdefault((record["data"]["name"], record["config"]["preset"]), []).append(record)
    return {"-".join(key).replace("+", "-"): found[key] for key in sorted(found)}


def overviews(records, overview):
    """{stem: function of a path} of `overview(records, evidence, path)` for each group; they share one evidence."""
    shared = evidence()
    return {stem: partial(overview, some, shared) for stem, some in groups(records).items()}


def evidence():
    """A claims.Evidence, which keeps predictions and their resamples: of it, pictures of the same records share one."""
    from facepapers.common.evidence import claims  # training draws its faces without it

    return claims.Evidence()


def draw(pictures, folder):
    """Draw `pictures`, stem -> function of a path, as PNG files into `folder`. Returns their paths."""
    paths = {stem: Path(folder) / f"{stem}.png" for stem in pictures}
    for stem, path in paths.items():
        pictures[stem](path)
    return list(paths.values())


def by_row(records, rows):
    """{row: its records} in the order of `rows`, without rows that were not run."""
    found = {row: [r for r in records if r["config"]["row"] == row] for row in rows}
    return {row: some for row, some in found.items() if some}


# ---- Figures


def pyplot():
    """matplotlib.pyplot that needs no display; imported late, because it is slow to load."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def canvas(title, panels, height, width=WIDTH_IN, **more):
    """(figure, name -> axes) for `panels`, lines of names as matplotlib's subplot_mosaic takes them; sizes in inches.

    `title`: a sentence on top, broken where the figure ends.
    """
    with pyplot().rc_context(STYLE):
        figure, axes = pyplot().subplot_mosaic(panels, figsize=(width, height), layout="constrained", **more)
    figure.suptitle(textwrap.fill(title, int(13 * width)), x=0.01, ha="left", fontsize=11)
    return figure, axes


def heading(axes, text):
    """A panel's title, flush with its left edge."""
    axes.set_title(text, loc="left", fontsize=9.5)


def save(figure, path):
    """Write a figure as PNG, the same bytes for the same picture, and close it."""
    with storage.atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})
    pyplot().close(figure)


def key_below(figure, axes, columns):
    """The legend of `axes` below all panels of the figure, where it hides no data."""
    with pyplot().rc_context(STYLE):
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns)


def log_ticks(axes, direction):
    """A logarithmic axis, "x" or "y", whose ticks are plain numbers, also between the powers of ten."""
    axes.set(**{f"{direction}scale": "log"})
    axis = axes.xaxis if direction == "x" else axes.yaxis
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("{x:g}")


def data_name(name):
    """A data set's name as its authors write it; of several joined by +, all of them."""
    return " and ".join(DATA.get(part, part) for part in name.split("+"))


# ---- Dots with intervals


def level(metric, records, evidence):
    """Interval of a metric over records, as in the tables."""
    from facepapers.common.evidence import statistics

    return statistics.level(metric, [evidence.predictions(r) for r in records], bootstrap=evidence.bootstrap)


def reach(intervals):
    """How far intervals reach below and above their means, (2, N), as matplotlib's error bars want it."""
    below, above = ([i.mean - i.low for i in intervals], [i.high - i.mean for i in intervals])
    return np.maximum([below, above], 0)


def line(axes, intervals, shift=0.0, **style):
    """Means joined by a line, with intervals. `intervals`: place -> Interval, all moved right by `shift`."""
    places = sorted(intervals)
    found = [intervals[place] for place in places]
    style = {"marker": "o", "ms": 4, "lw": 1.2, "elinewidth": 1, "capsize": 2} | style
    axes.errorbar(np.add(places, shift), [i.mean for i in found], reach(found), **style)


def dots(axes, intervals, looks, label, notes=None):
    """A dot with its interval for each row, the first on top: what it is, its mean, over how many runs or its note.

    `intervals`: row -> Interval; `looks`: row -> (name, colour, marker, line); `notes`: row -> text. The names carry
    the rows' colours, so that this panel is the key of the others.
    """
    for y, (row, interval) in enumerate(intervals.items()):
        _, colour, marker, style = looks[row]
        _, _, (bar,) = axes.errorbar(interval.mean, y, xerr=reach([interval]), color=colour, marker=marker, ms=5,
                                     capsize=3)  # fmt: skip
        bar.set_linestyle(style)
        note = notes[row] if notes else f"{interval.n_seeds} run{'s' * (interval.n_seeds > 1)}"
        text = f"{interval.mean:.1f}  ({note})"
        axes.text(1.02, y, text, transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    names = [textwrap.fill(looks[row][0], 26) for row in intervals]
    axes.set_yticks(range(len(names)), names)
    for tick, row in zip(axes.get_yticklabels(), intervals, strict=True):
        tick.set_color(looks[row][1])
    axes.set(ylim=(len(names) - 0.5, -0.5), xlabel=f"{label}, {LEVELS}")
    axes.grid(False, axis="y")
    axes.margins(x=0.1)
    heading(axes, "Names in the colours of all panels")


# ---- ROC curves


def roc(axes, seeds, **style):
    """Mean ROC curve over seeds, from the first false accept on. `seeds`: dicts with `distance` and `same` (P,)."""
    curves = []
    for p in seeds:
        far, tar, _ = verification.roc(p["distance"], p["same"])
        others = int((~p["same"].astype(bool)).sum())
        accepted = np.arange(1, others + 1) / others  # one different pair, two, ...
        curves.append(tar[np.searchsorted(far, accepted * (1 + 1e-9), side="right") - 1])
    axes.step(100 * accepted, 100 * np.mean(curves, axis=0), where="post", **{"lw": 1.3} | style)


def finish_roc(axes, same="same-person"):
    """Labels of a panel of ROC curves, and an upright axis that begins where the lowest curve does."""
    lowest = min(curve.get_ydata().min() for curve in axes.lines)
    step = 1 if lowest > 90 else 10
    axes.set(xscale="log", ylim=(np.floor(lowest / step) * step, 100 + step / 10))
    axes.set(xlabel="different pairs accepted (%)", ylabel=f"{same} pairs accepted (%)")
    heading(axes, "ROC curves from the first false accept on")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
