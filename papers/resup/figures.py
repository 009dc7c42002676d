"""Pictures of the results, drawn from records and claims.toml alone: curves, weights, noise levels, published rows."""

from pathlib import Path

import numpy as np

from facepapers.common.evidence import figures, runs
from facepapers.papers.resup.config import LEVELS, ROWS
from facepapers.papers.resup.metrics import class_weights, reliability
from facepapers.papers.resup.tables import accuracy_of, beside_published, interval_of, ours_at_30

# What a picture shows, for readers who see it: stem of the file -> one sentence.
CAPTIONS = {
    "embedded-demo": (
        "Drawn faces with two fifths of the training labels flipped: cross-entropy learns the flips and falls, ReSup "
        "gives them little weight and does not."
    ),
    "ferplus-long": (
        "The same recipe for 44 epochs: cross-entropy beside our second variant, which judges labels by Bayes' rule."
    ),
    "ferplus-real": (
        "FER2013's own labels, judged by FERPlus: these errors follow a pattern that the networks learn, so the "
        "weights of right and of wrong labels end up nearly alike."
    ),
    "ferplus-short": (
        "FERPlus with 30 % of the labels flipped, mirroring as the only augmentation: all methods hold on to what "
        "cross-entropy loses after the learning rate falls, and their weights distrust the rare classes."
    ),
    "ferplus-strong": (
        "The same flips under our recipe of strong augmentation: cross-entropy learns few of them by heart, and the "
        "paper's weights now hurt."
    ),
    "noise-levels": (
        "Accuracy over the share of flipped labels: after the last epoch ReSup keeps a lead over cross-entropy that "
        "grows with the noise, at the epoch that validation faces choose hardly any."
    ),
    "published-30": (
        "Accuracy with 30 % of the labels flipped, published and ours, in blocks by initialisation and network: "
        "compare within a block alone."
    ),
}
# The same for readers who do not: what stands where.
ALTERNATIVES = {
    "embedded-demo": (
        "Seven panels: test accuracy with intervals, validation accuracy by epoch, accuracy and mean weight by class, "
        "similarities of clean and flipped labels, mean weights by epoch, and reliability of the noise model."
    ),
    "ferplus-long": (
        "Seven panels: test accuracy of two methods with intervals, validation accuracy by epoch, accuracy and mean "
        "weight by class, similarities of clean and flipped labels, mean weights by epoch, and reliability of the "
        "noise model."
    ),
    "ferplus-real": (
        "Seven panels: test accuracy of two methods with intervals, validation accuracy by epoch, accuracy and mean "
        "weight by class, similarities of right and wrong labels, mean weights by epoch, and reliability of the noise "
        "model."
    ),
    "ferplus-short": (
        "Seven panels: test accuracy of seven methods with intervals, validation accuracy by epoch, accuracy and mean "
        "weight by class, similarities of clean and flipped labels, mean weights by epoch, and reliability of the "
        "noise models."
    ),
    "ferplus-strong": (
        "Seven panels: test accuracy of seven methods with intervals, validation accuracy by epoch, accuracy and mean "
        "weight by class, similarities of clean and flipped labels, mean weights by epoch, and reliability of the "
        "noise models."
    ),
    "noise-levels": (
        "Test accuracy with intervals at 0, 20, 30 and 40 per cent of flipped labels: cross-entropy and ReSup, each "
        "after the last epoch and at the chosen epoch."
    ),
    "published-30": (
        "Dots in five blocks: two published tables that start from MS-Celeb-1M, and three of our settings that start "
        "from scratch, ours with intervals."
    ),
}

COLOURS = {
    "ce": "#999999", "ce_two": "#555555", "own": "#c9a227", "swapped": "#228833", "resup": "#cc3311",
    "loss_mixture": "#4477aa", "coteaching": "#33aabb", "ce_plus": "#aa7744", "resup_plus": "#663399",
    "resup_bayes": "#ee7733", "bayes": "#ee3377", "oracle": "#000000",
}  # fmt: skip
JUDGED = ("own", "swapped", "resup", "loss_mixture", "resup_plus", "resup_bayes", "bayes")


def draw(records, folder):
    """One PNG per data set and preset; for FERPlus also by noise level and beside the published rows. Returns paths."""
    paths = figures.draw_groups(records, folder, overview)
    if levels := by_level(records):
        paths.append(Path(folder) / "noise-levels.png")
        noise_levels(levels, paths[-1])
    if ours := ours_at_30(records):
        paths.append(Path(folder) / "published-30.png")
        published(beside_published(ours), paths[-1])
    return paths


def by_level(records):
    """The comparable FERPlus records of `short` and its other noise levels: row -> percent of flips -> records.

    Rows with fewer than two levels are left out.
    """
    recorded = [
        r
        for r in figures.comparable(records)
        if r["data"]["name"] == "ferplus" and r["config"]["preset"] in ("short", *(f"noise{p}" for p in LEVELS))
    ]
    levels = {}
    for row, found in figures.by_row(recorded, ROWS).items():
        for record in sorted(found, key=lambda r: r["config"]["noise"]):
            levels.setdefault(row, {}).setdefault(round(100 * record["config"]["noise"]), []).append(record)
    return {row: some for row, some in levels.items() if len(some) > 1}


def overview(records, path):
    rows = figures.by_row(records, ROWS)
    data, config = records[0]["data"], records[0]["config"]
    names, flips = data["classes"].split(), data["flipped_pct"] > 0
    judged = {row: found for row, found in rows.items() if row in JUDGED}
    shape = (2, 3) if flips and judged else (1, 3) if judged else (1, 2)
    figure, grid = figures.pyplot().subplots(
        *shape, figsize=(5.6 * shape[1], 4.3 * shape[0]), layout="constrained", squeeze=False
    )
    axes = grid.flatten()
    for row, found in rows.items():
        learning(axes[0], row, found)
    bars(axes[1], rows, names, accuracies)
    if judged:
        bars(axes[2], judged, names, trusted)
    if len(axes) > 3:
        row = "resup" if "resup" in judged else next(iter(judged))
        humps(axes[3], row, judged[row])
        for row, found in judged.items():
            trust(axes[4], row, found)
            calibration(axes[5], row, found)
    finish(axes)
    what = f"{data['flipped_pct']:.1f} % of the training labels wrong ({data['noise']})" if flips else "clean labels"
    figure.suptitle(f"{data['name']}, preset {config['preset']}: {what}, {data['test_faces']} test faces", fontsize=11)
    figures.save(figure, path)


def history(record):
    """The epochs' rows of a run's history."""
    table = runs.read_history(record["folder"])
    return table.dropna(subset=["epoch"])


def headline(record):
    """The run's test accuracy at the last epoch."""
    return record["metrics"][accuracy_of(record["config"]["row"])]


def learning(axes, row, records):
    """Validation accuracy of the networks' mean by epoch, a line per seed; the test accuracy in the key."""
    accuracy = np.mean([headline(r) for r in records])
    for k, record in enumerate(records):
        table = history(record)
        label = f"{ROWS[row].split(':')[0]}: test {accuracy:.1f} %" if k == 0 else None
        axes.plot(table["epoch"], table["val_mean_pct"], color=COLOURS[row], lw=1.1, label=label)


def bars(axes, rows, names, of):
    """A group of bars for each class: of(predictions) (K,), mean over the seeds, by row."""
    width = 0.8 / len(rows)
    for k, (row, found) in enumerate(rows.items()):
        values = np.mean([of(runs.read_predictions(r["folder"] / "predictions.npz")) for r in found], axis=0)
        axes.bar(np.arange(len(values)) + (k - (len(rows) - 1) / 2) * width, values, width, color=COLOURS[row])
    axes.set_xticks(range(len(names)), names, rotation=35, fontsize=8)


def accuracies(p):
    """Test accuracy of each class in percent, of the networks' mean where there are two."""
    right = p.get("predicted_mean", p["predicted"]) == p["label"]
    return 100 * np.bincount(p["label"], weights=right) / np.maximum(np.bincount(p["label"]), 1)


def trusted(p):
    """Mean weight of the clean training labels of each class."""
    return class_weights(p if "flip" in p else p | {"flip": np.zeros(len(p["weight"]), bool)})


def humps(axes, row, records):
    """Similarities of clean and of flipped training labels after the last epoch, seeds pooled."""
    arrays = [runs.read_predictions(r["folder"] / "predictions.npz") for r in records]
    similarity = np.concatenate([p["similarity"].astype(float) for p in arrays])
    flip = np.concatenate([p["flip"].astype(bool) for p in arrays])
    bins = np.linspace(0, 1, 41)
    for chosen, name, colour in ((~flip, "clean", "#228833"), (flip, "flipped", "#cc3311")):
        axes.hist(similarity[chosen], bins, color=colour, alpha=0.5, label=f"{name}: {chosen.mean():.0%} of the labels")
    axes.set(xlabel="similarity of prediction and given label", ylabel="training faces", yscale="log")
    axes.set_title(f"Similarities, {ROWS[row].split(':')[0]}")
    axes.legend(fontsize=8, loc="upper center")


def trust(axes, row, records):
    """Mean weight of clean (line) and flipped (dashes) training labels by epoch; the area under ROC in the key."""
    area = np.mean([r["metrics"]["weight_auc_pct"] for r in records]) / 100
    for k, record in enumerate(records):
        table = history(record).dropna(subset=["weight_clean"])
        label = f"{ROWS[row].split(':')[0]}: AUC {area:.3f}" if k == 0 else None
        axes.plot(table["epoch"], table["weight_clean"], color=COLOURS[row], lw=1.2, label=label)
        axes.plot(table["epoch"], table["weight_flipped"], color=COLOURS[row], lw=1.2, ls="--")


def calibration(axes, row, records):
    """P(clean) by the weights against the share of clean labels, all seeds pooled; small bins are left out."""
    arrays = [runs.read_predictions(r["folder"] / "predictions.npz") for r in records]
    weight = np.concatenate([p["weight"].astype(float) for p in arrays])
    said, true, count = reliability(weight, np.concatenate([p["flip"].astype(bool) for p in arrays]))
    enough = count >= 20
    axes.plot(said[enough], true[enough], "o-", color=COLOURS[row], ms=4, lw=1.1)


def finish(axes):
    """Titles, labels and legends."""
    axes[0].set(xlabel="epoch", ylabel="validation accuracy (%)", title="While training (true labels)")
    axes[0].legend(fontsize=8, loc="lower right")
    axes[1].set(ylabel="accuracy (%)", ylim=(0, 100), title="Test accuracy by class")
    if len(axes) > 2:
        axes[2].set(ylabel="mean weight", ylim=(0, 1.05), title="Trust in clean labels by true class")
    if len(axes) > 3:
        rows = {line.get_label() for line in axes[4].lines if not line.get_label().startswith("_")}
        axes[4].set(xlabel="epoch", ylabel="mean weight", title="Clean labels (line), flipped (dashed)")
        axes[4].set(ylim=(0, 1.08 + 0.075 * len(rows)), yticks=np.linspace(0, 1, 6))  # room for the legend above 1
        if rows:
            axes[4].legend(fontsize=8, loc="upper right")
        axes[5].plot([0, 1], [0, 1], color="#cccccc", lw=0.8, zorder=0)
        axes[5].set(xlabel="P(clean) of the noise model", ylabel="share of clean labels", xlim=(0, 1), ylim=(0, 1))
        axes[5].set_title("Reliability of P(clean)")


def noise_levels(levels, path):
    """By share of flipped labels: the row's accuracy, and how well its weights find the flips."""
    panels = 2 if set(levels) & set(JUDGED) else 1
    figure, grid = figures.pyplot().subplots(
        1, panels, figsize=(5.6 * panels, 4.3), layout="constrained", squeeze=False
    )
    axes = grid[0]
    for row, found in levels.items():
        name, line = ROWS[row].split(":")[0], dict(color=COLOURS[row], marker="o")
        chosen = line | dict(mfc="white", ls=":")
        curve(axes[0], found, accuracy_of(row), **line, label=f"{name}, last epoch")
        curve(axes[0], found, accuracy_of(row, "_validation_chosen"), **chosen, label=f"{name}, chosen epoch")
        if row in JUDGED:
            flipped = {rate: some for rate, some in found.items() if rate}
            curve(axes[1], flipped, "weight_auc_pct", **line, label=f"{name}: area under ROC")
            curve(axes[1], flipped, "weight_flipped_pct", **chosen, label=f"{name}: mean weight of flipped labels")
    rates = sorted({rate for found in levels.values() for rate in found})
    axes[0].set(ylabel="test accuracy (%)", title="Last epoch, and the epoch that validation faces choose")
    if panels > 1:
        axes[1].set(ylabel="%", ylim=(0, 100), title="The weights at the last epoch")
    for one in axes:
        one.set(xlabel="flipped training labels (%)", xticks=rates)
        one.grid(axis="y", color="#eeeeee")
        one.legend(fontsize=8)
    figure.suptitle("ferplus, presets short and noise*: 90 % intervals", fontsize=11)
    figures.save(figure, path)


def curve(axes, found, metric, **style):
    """A metric with its intervals over the rates of `found`: rate -> records."""
    intervals = [interval_of(metric, records) for records in found.values()]
    axes.errorbar(list(found), [i.mean for i in intervals], [i.half for i in intervals], capsize=3, ms=5, **style)


def published(blocks, path):
    """Accuracy at 30 % flips in blocks by initialisation (see beside_published): compare within a block alone."""
    height = sum(len(block) + 1.2 for block in blocks.values())
    figure, axes = figures.pyplot().subplots(figsize=(9.5, 0.31 * height + 0.9), layout="constrained")
    y, ticks = 0.0, []
    for name, block in blocks.items():
        axes.text(0.0, -y, name, fontsize=9, fontweight="bold", transform=axes.get_yaxis_transform(), va="center")
        for what, value, half, row, _ in block:
            y, colour = y + 1, COLOURS.get(row, "#333333")
            axes.errorbar(value, -y, xerr=half, fmt="o", ms=5, color=colour, capsize=3)
            axes.annotate(f"{value:.2f}", (value, -y), (0, 6), textcoords="offset points", fontsize=8, ha="center")
            ticks.append((-y, what))
        y += 1.3
    axes.set_yticks(*zip(*ticks, strict=True), fontsize=8)
    axes.set(xlabel="accuracy on FERPlus with 30 % symmetric label noise (%)")
    axes.margins(x=0.15)
    axes.set_ylim(-y + 0.6, 0.8)
    axes.grid(axis="x", color="#eeeeee")
    figures.save(figure, path)
