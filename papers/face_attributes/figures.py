"""Pictures of the results, drawn from records alone: accuracy against depth, readouts, invariance, cost."""

import numpy as np

from facepapers.common.evidence import figures
from facepapers.papers.face_attributes.config import DEPTHS, STAGES
from facepapers.papers.face_attributes.metrics import METRICS

# What a picture shows, for readers who see it: stem of the file -> one sentence.
CAPTIONS = {
    "embedded-demo": (
        "Drawn faces: the earlier an attribute's own layers start, the more it gains over a linear layer on the "
        "embedding, and the more computation all predictions need."
    ),
    "utkface-ferplus-few": (
        "A tenth of the training faces: expression still gains most from its own layers, and starting before stage 5 "
        "gains little more."
    ),
    "utkface-ferplus-short": (
        "Real faces: where an attribute's own layers should start, what a linear layer reads from each frozen stage, "
        "how much identity each stage has singled out, and what all predictions cost."
    ),
}
# The same for readers who do not: what stands where.
ALTERNATIVES = {
    "embedded-demo": (
        "Two panels: gain of each attribute over the linear layer, with intervals, by the stage at which its own "
        "layers start; and mean accuracy of the attributes against computation."
    ),
    "utkface-ferplus-few": (
        "One panel: gain of age, expression, gender and ethnicity over the linear layer, with intervals, by the stage "
        "at which their own layers start."
    ),
    "utkface-ferplus-short": (
        "Four panels: gain of each attribute by start of its own layers, accuracy of linear layers on frozen stages, "
        "variance within people over variance between people by stage, and mean accuracy against computation."
    ),
}

COLOURS = {"age": "#cc3311", "emotion": "#c9a227", "gender": "#4477aa", "ethnicity": "#228833"}
TICKS = [*(str(k) for k in range(1, STAGES + 1)), "head\nonly"]


def draw(records, folder):
    """One PNG per data set and preset that has at least one start depth. Returns the paths."""
    setting = lambda r: (r["data"]["name"], r["config"]["preset"])
    with_depth = {setting(r) for r in records if r["config"]["row"] in DEPTHS}
    return figures.draw_groups([r for r in records if setting(r) in with_depth], folder, overview)


def overview(records, path):
    panels = {gains: 3, costs: 3}  # with their widths
    if any(r["config"]["row"].startswith("probe") for r in records):
        panels = {gains: 3, readouts: 3, invariance: 2, costs: 3}
    widths = list(panels.values())
    size = dict(figsize=(1.64 * sum(widths), 4.6), width_ratios=widths)
    figure, axes = figures.pyplot().subplots(1, len(panels), layout="constrained", **size)
    for panel, part in zip(panels, axes, strict=True):
        panel(part, records)
    data, preset = records[0]["data"]["name"], records[0]["config"]["preset"]
    figure.suptitle(f"{data}, preset {preset}, test faces; bars: range over seeds", fontsize=11)
    figures.save(figure, path)


def by_row(records, metric):
    """Row -> values over the seeds, of the rows that have the metric."""
    found = {}
    for record in records:
        if metric in record["metrics"]:
            found.setdefault(record["config"]["row"], []).append(record["metrics"][metric])
    return found


def line(axes, points, colour, label, **style):
    """Mean over seeds at each depth, with the range as a bar. `points`: depth -> values."""
    depths = sorted(points)
    mean = np.array([np.mean(points[k]) for k in depths])
    low, high = (np.array([f(points[k]) for k in depths]) for f in (min, max))
    bars = np.maximum([mean - low, high - mean], 0)  # the mean of equal values can lie a rounding below them
    axes.errorbar(depths, mean, bars, color=colour, label=label, capsize=2, **style)


def gains(axes, records):
    """Accuracy of each start less the linear layer's, in points."""
    for name, colour in COLOURS.items():
        values = by_row(records, f"{name}_accuracy_pct")
        if "linear" in values:
            floor = np.mean(values["linear"])
            points = {k: [v - floor for v in values[row]] for row, k in DEPTHS.items() if row in values}
            line(axes, points, colour, f"{name}: head only {floor:.1f} %", marker="o")
    axes.axhline(0, color="#cccccc", lw=0.8, zorder=0)
    axes.set(xlabel="own layers start at stage", ylabel="gain over the head alone (points)", title="Where to branch")
    finish(axes)


def readouts(axes, records):
    """Accuracy of linear layers on frozen stages."""
    for name, colour in COLOURS.items():
        values = by_row(records, f"{name}_accuracy_pct")
        points = {int(row[5:]): v for row, v in values.items() if row.startswith("probe")}
        if points and "linear" in values and STAGES not in points:
            points[STAGES] = values["linear"]  # the last stage's output is the embedding
        if points:
            line(axes, points, colour, name, marker="s", ls="--")
    axes.set(xlabel="output of frozen stage", ylabel="accuracy of a linear layer (%)", title="What frozen stages tell")
    finish(axes, head=False)


def invariance(axes, records):
    """Variance within over between people, by stage."""
    values = by_row(records, "within_over_between_pct")
    points = {int(row[5:]): v for row, v in values.items() if row.startswith("probe")}
    if "linear" in values:
        points[STAGES] = values["linear"]
    if points:
        line(axes, points, "#333333", None, marker="o")
    axes.set(xlabel="output of frozen stage", ylabel="variance within / between people (%)", title="Identity")
    axes.set_ylim(0, None)
    finish(axes, head=False)


def costs(axes, records):
    """Computation of all predictions against their mean accuracy; the chosen pattern and separate networks by name."""
    gflop = by_row(records, "gflop")
    names = [n for n in COLOURS if by_row(records, f"{n}_accuracy_pct")]
    for row in [r for r in (*DEPTHS, "best", "chosen") if r in gflop]:
        accuracy = np.mean([np.mean(by_row(records, f"{n}_accuracy_pct")[row]) for n in names])
        special = row in ("best", "chosen")
        axes.plot(np.mean(gflop[row]), accuracy, "*" if special else "o", ms=12 if special else 6,
                  color="#cc3311" if row == "chosen" else "#333333")  # fmt: skip
        place, side = {"chosen": ((-8, 8), "right"), "best": ((-8, -3), "right")}.get(row, ((6, -12), "left"))
        axes.annotate({"best": "separate"}.get(row, row), (np.mean(gflop[row]), accuracy), xytext=place, ha=side,
                      textcoords="offset points", fontsize=8)  # fmt: skip
    if np.concatenate([*gflop.values(), [0]]).max() > 0.5:
        axes.axvline(1.0, color="#cccccc", lw=0.8, zorder=0)
    axes.set(xlabel=METRICS["gflop"].label.replace("computation of all predictions of a face", "all predictions"),
             ylabel="mean accuracy of the attributes (%)", title="Cost")  # fmt: skip
    axes.margins(x=0.2, y=0.15)


def finish(axes, head=True):
    """Ticks at the stages and a legend where something was drawn."""
    count = STAGES + 1 if head else STAGES
    axes.set_xticks(range(1, count + 1), TICKS[:count])
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=8)


def pattern(axes, starts, per_stage, title=""):
    """A drawing of who shares what: one column per stage, one lane per attribute, the shared trunk at the bottom."""
    length, lanes = len(per_stage), list(starts)
    needed = max(starts.values()) - 1
    box = lambda x, y, colour, text: (
        axes.add_patch(_rectangle(x, y, colour)),
        axes.text(x + 0.44, y + 0.4, text, ha="center", va="center", fontsize=8),
    )
    for k in range(1, length + 1):
        if k <= needed:
            box(k, 0, "#dddddd", f"stage {k}\n{2 * per_stage[k - 1] / 1e6:.3g} MFLOP")
    for lane, name in enumerate(lanes, 1):
        for k in range(starts[name], length + 1):
            box(k, lane, COLOURS.get(name, "#aaaaaa") + "55", f"own {k}")
        axes.text(length + 1.1, lane + 0.4, name, va="center", color=COLOURS.get(name, "black"))
        axes.plot([starts[name] - 0.06] * 2, [0.8 if needed else lane, lane + 0.4], color="#888888", lw=0.8)
    axes.set(xlim=(0.7, length + 2.4), ylim=(-0.2, len(lanes) + 1), title=title)
    axes.axis("off")


def _rectangle(x, y, colour):
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), 0.88, 0.8, facecolor=colour, edgecolor="#666666", lw=0.6)
