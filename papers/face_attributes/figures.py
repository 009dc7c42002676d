"""Pictures of the results, drawn from records alone: accuracy against depth, readouts, invariance, cost."""

import numpy as np

from facepapers.common.evidence import claims, figures, statistics
from facepapers.common.protocols.metrics import Metric
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

INK = figures.PALETTE
COLOURS = {"age": INK["vermilion"], "emotion": INK["orange"], "gender": INK["blue"], "ethnicity": INK["green"]}
LEAST = 4  # depths of a panel: three points are read sooner in the table


def draw(records, folder):
    """One PNG per data set and preset with linear layers and another start. Returns the paths."""
    return figures.draw(pictures(records), folder)


def pictures(records):
    """{stem: function of a path}."""
    shown = []
    for some in figures.groups(records).values():
        starts = {r["config"]["row"] for r in some} & DEPTHS.keys()
        shown += some if "linear" in starts and len(starts) > 1 else []
    return figures.overviews(shown, overview)


def overview(records, evidence, path):
    """What own layers gain by where they start, what frozen stages tell, how they know people, and what it costs."""
    rows = figures.by_row(records, dict.fromkeys(r["config"]["row"] for r in records))
    names = [n for n in COLOURS if any(f"{n}_accuracy_pct" in r["metrics"] for r in records)]
    chosen, read = [gains], len(readout_depths(rows)) >= LEAST
    chosen += [readouts, invariance] * read + [costs] * ("chosen" in rows)
    lines = [chosen[:2], chosen[2:]] if len(chosen) > 2 else [chosen]
    size = (3.8 * len(lines) + 0.4, figures.WIDTH_IN if len(chosen) > 1 else 6)
    mosaic = [[panel.__name__ for panel in line] for line in lines]
    figure, axes = figures.canvas(title(records), mosaic, *size)
    for panel in chosen:
        panel(axes[panel.__name__], rows, names, evidence)
    figures.key_below(figure, axes["gains"], len(names) if len(chosen) > 1 else 2)
    figures.save(figure, path)


def title(records):
    """What is compared, as a sentence."""
    config = records[0]["config"]
    share = f", with {config['labels']:.0%} of the training faces" if config.get("labels", 1) < 1 else ""
    return f"Where the own layers of an attribute should start: {figures.data_name(records[0]['data']['name'])}{share}"


def gains(axes, rows, names, evidence):
    """Accuracy of each start less the linear layer's, in points, on the same seeds."""
    for k, name in enumerate(names):
        metric, points = METRICS[f"{name}_accuracy_pct"], {}
        for row in [r for r in DEPTHS if r in rows and r != "linear"]:
            sides = [[evidence.predictions(r) for r in side] for side in claims.pair(rows[row], rows["linear"])]
            if sides[0]:
                points[DEPTHS[row]] = statistics.contrast(metric, *sides, bootstrap=evidence.bootstrap)
        if points:
            floor = np.mean([metric.value(evidence.predictions(r)) for r in rows["linear"]])
            words = f"{name} (linear layer: {floor:.1f} %)"
            figures.line(axes, points, shift(k, names), color=COLOURS[name], label=words)
    axes.axhline(0, color=figures.PALE, zorder=0)
    axes.set(xlabel="stage at which own layers start", ylabel=f"gain (points), {figures.CONTRASTS}")
    stages(axes)
    figures.heading(axes, "Gain over a linear layer on the embedding")


def readouts(axes, rows, names, evidence):
    """Accuracy of linear layers on frozen stages."""
    for k, name in enumerate(names):
        metric = METRICS[f"{name}_accuracy_pct"]
        points = {depth: figures.level(metric, rows[row], evidence) for row, depth in readout_depths(rows).items()}
        figures.line(axes, points, shift(k, names), color=COLOURS[name])
    axes.set(xlabel="output of frozen stage", ylabel=f"accuracy (%), {figures.LEVELS}")
    stages(axes)
    figures.heading(axes, "What a linear layer reads from frozen stages")


def invariance(axes, rows, names, evidence):
    """Variance within over between people, by stage."""
    metric, depths = METRICS["within_over_between_pct"], readout_depths(rows)
    points = {
        depth: figures.level(metric, rows[row], evidence)
        for row, depth in depths.items()
        if metric.available(evidence.predictions(rows[row][0]))
    }
    figures.line(axes, points, color=INK["black"])
    axes.set(xlabel="output of frozen stage", ylabel=f"ratio (%), {figures.LEVELS}", ylim=(0, None))
    stages(axes)
    figures.heading(axes, "Variance within people over that between them")


def costs(axes, rows, names, evidence):
    """Mean accuracy of the attributes beside the computation of all predictions, the cheapest on top."""
    accuracy = mean_accuracy(names)
    compared = [row for row in (*DEPTHS, "best", "chosen") if row in rows]
    gflop = {row: np.mean([r["metrics"]["gflop"] for r in rows[row]]) for row in compared}
    ordered = sorted(gflop, key=gflop.get)
    colours = {"chosen": INK["purple"], "best": INK["black"]}
    words = {"best": "separate networks", "chosen": "chosen pattern", "linear": "linear layers alone"}
    name = lambda row: words.get(row, row.replace("stage", "own layers from stage "))
    looks = {row: (name(row), colours.get(row, INK["grey"]), "o", "-") for row in ordered}
    intervals = {row: figures.level(accuracy, rows[row], evidence) for row in ordered}
    notes = {row: f"{gflop[row]:.2g} GFLOP" for row in ordered}
    figures.dots(axes, intervals, looks, "mean accuracy (%)", notes)
    figures.heading(axes, "Mean accuracy, the least computation on top")


def mean_accuracy(names):
    """Metric: the mean of the attributes' accuracies. Attributes with equally many faces are known of the same ones."""

    def per_sample(p):
        sums = {}
        for name in names:
            hits = 100.0 * p[f"{name}_correct"] / len(names)
            sums[len(hits)] = sums.get(len(hits), 0) + hits
        mean, n = sum(hits.mean() for hits in sums.values()), sum(sums)
        # Deviations from each set's own mean, weighted so that the errors of the sets add as independent ones do.
        return mean + np.concatenate([(hits - hits.mean()) * n / len(hits) for hits in sums.values()])

    return Metric("mean_accuracy_pct", "mean accuracy of the attributes (%)", False, per_sample)


def readout_depths(rows):
    """Row -> stage whose output it reads, of the linear layers on frozen stages; the last stage's is the embedding."""
    depths = {row: int(row[5:]) for row in rows if row.startswith("probe")}
    if depths and "linear" in rows and STAGES not in depths.values():
        depths["linear"] = STAGES
    return depths


def shift(k, names):
    """How far the k-th attribute's dots stand beside their stage, so that intervals do not cover each other."""
    return 0.07 * (k - (len(names) - 1) / 2)


def stages(axes):
    """Ticks at the stages that were run."""
    axes.set_xticks(range(1, STAGES + 1))
    if np.isfinite(axes.dataLim.x0):  # something was drawn
        axes.set_xlim(axes.dataLim.x0 - 0.3, STAGES + 0.3)


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
