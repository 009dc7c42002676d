"""Pictures of the results, drawn from records (and claims.toml) alone: curves, weights, reliability, published rows."""

import tomllib
from pathlib import Path

import numpy as np
import pandas as pd

from common import checkpoint, runs, stats
from papers.resup.config import ROWS
from papers.resup.evaluate import METRICS, class_weights, reliability

COLOURS = {
    "ce": "#999999", "ce_two": "#555555", "own": "#c9a227", "swapped": "#228833", "resup": "#cc3311",
    "loss_mixture": "#4477aa", "coteaching": "#33aabb", "ce_plus": "#aa7744", "resup_plus": "#663399",
}  # fmt: skip
NAMES = {
    "ferplus": ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt"),
    "rafdb": ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral"),
}
NAMES["embedded"] = NAMES["ferplus"]
JUDGED = ("own", "swapped", "resup", "loss_mixture", "resup_plus")


def draw(records, folder):
    """One PNG per data set and preset; for FERPlus at 30 % flips also ours beside the published rows. Returns paths."""
    groups = {}
    for record in records:
        if set(record["overrides"]) <= {"seed"}:
            groups.setdefault((record["data"]["name"], record["config"]["preset"]), []).append(record)
    paths = [overview(g, Path(folder) / f"{data}-{preset}.png") for (data, preset), g in sorted(groups.items())]
    if ("ferplus", "short") in groups:
        paths.append(published(groups["ferplus", "short"], Path(folder) / "published-30.png"))
    return paths


def overview(records, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = {row: [r for r in records if r["config"]["row"] == row] for row in ROWS}
    rows = {row: found for row, found in rows.items() if found}
    flips = records[0]["data"]["flipped_pct"] > 0
    figure, axes = plt.subplots(1, 4 if flips else 2, figsize=(19 if flips else 11, 4.6), layout="constrained")
    for row, found in rows.items():
        learning(axes[0], row, found)
    per_class(axes[1], rows, records[0]["data"]["name"])
    if flips:
        for row in (r for r in rows if r in JUDGED):
            trust(axes[2], row, rows[row])
            calibration(axes[3], row, rows[row])
    finish(axes)
    data, config = records[0]["data"], records[0]["config"]
    what = f"{data['flipped_pct']:.1f} % of the training labels wrong ({data['noise']})" if flips else "clean labels"
    figure.suptitle(f"{data['name']}, preset {config['preset']}: {what}, {data['test_faces']} test faces", fontsize=11)
    return save(figure, path)


def save(figure, path):
    import matplotlib.pyplot as plt

    with checkpoint.atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=90, metadata={"Software": None})
    plt.close(figure)
    return path


def history(record):
    """The epochs' rows of a run's history."""
    table = pd.read_csv(record["folder"] / "history.csv")
    return table.dropna(subset=["epoch"])


def headline(record):
    """The run's test accuracy: of the mean of its networks where it has two."""
    return record["metrics"].get("accuracy_mean_pct", record["metrics"]["accuracy_pct"])


def learning(axes, row, records):
    """Validation accuracy of the networks' mean by epoch, a line per seed; the test accuracy in the key."""
    accuracy = np.mean([headline(r) for r in records])
    for k, record in enumerate(records):
        table = history(record)
        label = f"{ROWS[row].split(':')[0]}: test {accuracy:.1f} %" if k == 0 else None
        axes.plot(table["epoch"], table["val_mean_pct"], color=COLOURS[row], lw=1.1, label=label)


def per_class(axes, rows, data):
    """Test accuracy of each class, mean of the networks and seeds."""
    width = 0.8 / len(rows)
    for k, (row, found) in enumerate(rows.items()):
        shares = []
        for record in found:
            p = runs.read_predictions(record["folder"] / "predictions.npz")
            right = p.get("predicted_mean", p["predicted"]) == p["label"]
            shares.append(np.bincount(p["label"], weights=right) / np.maximum(np.bincount(p["label"]), 1))
        shares = 100 * np.mean(shares, axis=0)
        axes.bar(np.arange(len(shares)) + (k - (len(rows) - 1) / 2) * width, shares, width, color=COLOURS[row])
    count = np.bincount(p["label"])
    names = NAMES.get(data, tuple(map(str, range(len(count)))))
    axes.set_xticks(
        range(len(count)), [f"{n}\n{c}" for n, c in zip(names, count, strict=False)], rotation=40, fontsize=8
    )


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
    low = np.nanmin([class_weights(p) for p in arrays], axis=0) if len(arrays) else ()
    if np.isfinite(low).any():
        axes.axhline(np.nanmin(low), color=COLOURS[row], lw=0.7, ls=":")


def finish(axes):
    """Titles, labels and legends."""
    axes[0].set(xlabel="epoch", ylabel="validation accuracy (%)", title="While training (true labels)")
    axes[0].legend(fontsize=8, loc="lower right")
    axes[1].set(ylabel="accuracy (%)", ylim=(0, 100), title="Test accuracy by class (number of faces)")
    if len(axes) > 2:
        axes[2].set(xlabel="epoch", ylabel="mean weight", ylim=(0, 1), title="Clean labels (line), flipped (dashed)")
        if axes[2].lines:
            axes[2].legend(fontsize=8, loc="center right")
        axes[3].plot([0, 1], [0, 1], color="#cccccc", lw=0.8, zorder=0)
        axes[3].set(xlabel="P(clean) of the noise model", ylabel="share of clean labels", xlim=(0, 1), ylim=(0, 1))
        axes[3].set_title("Reliability (dotted: mean weight of the worst class)")


def published(records, path):
    """Accuracy at 30 % flips, printed elsewhere and ours, in blocks by initialisation: compare within a block alone."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    claimed = tomllib.loads((Path(__file__).parent / "claims.toml").read_text())
    blocks = {}
    for a in [*(c for c in claimed["level"] if "initialisation" in c), *claimed["anchor"]]:
        name = a["what"].split(",")[0]
        blocks.setdefault(a["initialisation"], []).append((name, float(a["published"]), None, "#333333"))
    ours = blocks.setdefault("ours: from scratch, 48 px, half-width ResNet-18, 3,153 test faces", [])
    for row in ROWS:
        found = [r for r in records if r["config"]["row"] == row]
        if found:
            metric = METRICS["accuracy_pct" if row == "ce" else "accuracy_mean_pct"]
            arrays = [runs.read_predictions(r["folder"] / "predictions.npz") for r in found]
            interval = stats.level(metric, arrays)
            ours.append((ROWS[row], interval.mean, interval.half, COLOURS[row]))
    height = sum(len(block) + 1.2 for block in blocks.values())
    figure, axes = plt.subplots(figsize=(9.5, 0.27 * height + 0.9), layout="constrained")
    y, ticks = 0.0, []
    for name, block in blocks.items():
        axes.text(0.0, -y, name, fontsize=9, fontweight="bold", transform=axes.get_yaxis_transform(), va="center")
        for what, value, half, colour in block:
            y += 1
            axes.errorbar(value, -y, xerr=half, fmt="o", ms=5, color=colour, capsize=3)
            axes.annotate(
                f"{value:.2f}", (value, -y), (9 if not half else 26, -3), textcoords="offset points", fontsize=8
            )
            ticks.append((-y, what))
        y += 1.3
    axes.set_yticks(*zip(*ticks, strict=True), fontsize=8)
    axes.set(xlabel="accuracy on FERPlus with 30 % symmetric label noise (%)")
    axes.margins(x=0.15)
    axes.grid(axis="x", color="#eeeeee")
    return save(figure, path)
