"""Pictures of the results, drawn from records alone: accuracy of the rows, ROC curves, accuracy against cost."""

from pathlib import Path

import numpy as np

from facepapers.common.evidence import figures, runs
from facepapers.common.protocols import verification
from facepapers.papers.hybrid_order_distillation.config import KINDS, ROWS
from facepapers.papers.hybrid_order_distillation.metrics import METRICS

MAIN = {"classification": "top1_pct", "retrieval": "recall1_pct", "verification": "accuracy_pct"}
SIDE = {"classification": "top1_other_pct", "retrieval": "recall1_cross_pct", "verification": "accuracy_cross_pct"}
DIAMOND = {"classification": "another degradation", "retrieval": "high against low", "verification": "high against low"}
# What a picture shows, for readers who see it: stem of the file -> one sentence.
CAPTIONS = {
    "embedded-demo": (
        "Drawn faces of 5 pixels: students that imitate the teacher's similarities beside the teacher, the teacher on "
        "small images and a student that learns from labels alone."
    ),
    "lfw-resolutions": (
        "Accuracy on LFW over the resolution of the test images: the teacher falls most steeply as they get smaller, "
        "and students that learned from it less so."
    ),
    "lfw-short": (
        "Faces of 16 pixels on LFW: which orders of similarity a student should imitate, and whether an assistant "
        "between teacher and student helps; filled dots are two small images, hollow ones a large against a small "
        "one."
    ),
}
# The same for readers who do not: what stands where.
ALTERNATIVES = {
    "embedded-demo": (
        "Two panels: accuracy of each row as dots with intervals, for two small images and for a large against a "
        "small one, and ROC curves of two small images."
    ),
    "lfw-resolutions": (
        "Two panels, both images small and one of them small: accuracy with intervals at 8, 16 and 32 pixels of the "
        "teacher, of students alone and of distilled students."
    ),
    "lfw-short": (
        "Two panels: accuracy of fourteen rows as dots with intervals, grouped by colour into ceiling, floors, direct "
        "and assistant routes, and ROC curves of the main rows."
    ),
}

COLOURS = {"teacher": "#333333", "upsampled": "#999999", "alone": "#aa7744", "kd": "#c9a227", "fitnet": "#8866aa",
           "direct": "#4477aa", "assistant": "#cc3311", "init": "#228833"}  # fmt: skip


# Orders of a row -> marker, line style; rows of one route share the colour.
STYLES = {"1": ("s", "--"), "2": ("v", ":"), "3": ("<", ":"), "12": ("D", "-."), "13": (">", "-."), "23": ("^", "-.")}


def colour(row):
    return COLOURS[row.split("_")[0]]


def style(row):
    """(marker, line style) of a row."""
    return STYLES.get(row.split("_")[1] if "_" in row else "", ("o", "-"))


def draw(records, folder):
    """One PNG per data set and preset, and one per data set seen at several resolutions. Returns the paths."""
    paths, shown = figures.draw_groups(records, folder, overview), figures.comparable(records)
    for name in sorted({r["data"]["name"] for r in shown}):
        mine = [r for r in shown if r["data"]["name"] == name]
        lines = over_resolutions(mine)
        if lines:
            paths.append(Path(folder) / f"{name}-resolutions.png")
            resolutions(lines, KINDS.get(name, "verification"), name, paths[-1])
    return paths


def overview(records, path):
    rows = figures.by_row(records, ROWS)
    config, kind = records[0]["config"], KINDS.get(records[0]["data"]["name"], "verification")
    panels = 3 if kind == "verification" else 2
    size = (6 * panels, 3.4 + 0.24 * max(6, len(rows)))
    figure, axes = figures.pyplot().subplots(1, panels, figsize=size, layout="constrained")
    bars(axes[0], rows, kind)
    costs(axes[1], rows, MAIN[kind])
    if kind == "verification":
        curves(axes[2], rows)
    about = records[0]["data"]
    seen = f"{config['resolution']} px seen at {config['input_px']} px, {about['test_samples']} test samples"
    figure.suptitle(f"{about['name']}, preset {config['preset']}: {seen}", fontsize=11)
    figures.save(figure, path)


def bars(axes, rows, kind):
    """Mean over seeds of the main metric (bar), each seed (dot), and the second metric (hollow diamond)."""
    for y, (row, found) in enumerate(rows.items()):
        values = [r["metrics"][MAIN[kind]] for r in found]
        axes.barh(y, np.mean(values), color=colour(row), alpha=0.75)
        axes.plot(values, [y] * len(values), "k.", ms=4)
        side = [r["metrics"][SIDE[kind]] for r in found if SIDE[kind] in r["metrics"]]
        if side:
            axes.plot(np.mean(side), y, "D", mfc="white", mec="black", ms=5)
        right = max(*values, np.mean(side or values)) + 0.4
        axes.text(right, y + 0.02, f"{np.mean(values):.1f}", va="center", fontsize=8)
    every = [r["metrics"][key] for found in rows.values() for r in found for key in (MAIN[kind], SIDE[kind])
             if key in r["metrics"]]  # fmt: skip
    axes.set(xlim=(max(0, min(every) - 5), min(104, max(every) + 4)), yticks=range(len(rows)))
    axes.set_yticklabels([ROWS[row] for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(METRICS[MAIN[kind]].label, fontsize=9)
    axes.set_title(f"mean (bar), seeds (dots), {DIAMOND[kind]} (diamond)", fontsize=9)


def over_resolutions(records):
    """{(row, network): {resolution: records}} of the rows that were run at two resolutions or more."""
    lines = {}
    for record in records:
        config = record["config"]
        network = config["teacher_net"] if config["row"] in ("teacher", "upsampled") else config["net"]
        lines.setdefault((config["row"], network), {}).setdefault(config["resolution"], []).append(record)
    order = list(ROWS)
    return {key: lines[key] for key in sorted(lines, key=lambda key: order.index(key[0])) if len(lines[key]) > 1}


def resolutions(lines, kind, name, path):
    """Both metrics against the resolution, a line per row and network (mean over seeds; dots are seeds)."""
    figure, both = figures.pyplot().subplots(1, 2, figsize=(11, 4), layout="constrained", sharey=True)
    for axes, key in zip(both, (MAIN[kind], SIDE[kind]), strict=True):
        for (row, network), found in lines.items():
            pixels = sorted(found)
            values = {px: [r["metrics"][key] for r in found[px] if key in r["metrics"]] for px in pixels}
            pixels = [px for px in pixels if values[px]]
            marker, line = style(row)
            if network == found[pixels[0]][0]["config"]["teacher_net"]:  # a student of the teacher's size
                marker = "*"
            axes.plot(pixels, [np.mean(values[px]) for px in pixels], marker=marker, ls=line, color=colour(row),
                      label=f"{ROWS[row]} ({network})")  # fmt: skip
            for px in pixels:
                axes.plot([px] * len(values[px]), values[px], "k.", ms=3)
        every = sorted({px for found in lines.values() for px in found})
        axes.set(xscale="log", xlabel="resolution (px)", ylabel=METRICS[key].label)
        axes.set_xticks(every, [str(px) for px in every])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    both[1].legend(loc="lower right", fontsize=8)
    figure.suptitle(name, fontsize=11)
    figures.save(figure, path)


def costs(axes, rows, key):
    """Main metric against multiply-adds of the network that runs at test time."""
    for row, found in rows.items():
        cost = found[0]["cost"]
        x = cost.get("macs", cost["teacher_macs"]) / 1e6
        value = np.mean([r["metrics"][key] for r in found])
        size = cost.get("parameters", cost["teacher_parameters"]) / 1e6
        axes.plot(x, value, style(row)[0], color=colour(row), ms=6, label=f"{ROWS[row]}: {size:.2f} M parameters")
    axes.set(
        xscale="log",
        xlabel="million multiply-adds an image",
        ylabel=METRICS[key].label.replace(", both images low", ""),
        title="Accuracy and cost",
    )
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="x", which="minor", labelsize=7)
    if len(rows) <= 10:
        axes.legend(fontsize=7)


def curves(axes, rows):
    """ROC of the pairs, both images low; the first seed of the main rows, or of the first six."""
    main = ("teacher", "upsampled", "alone", "kd", "direct_1", "direct_123", "assistant_1", "assistant_123")
    shown = [row for row in main if row in rows]
    for row in shown or list(rows)[:6]:
        p = runs.read_predictions(rows[row][0]["folder"] / "predictions.npz")
        far, tar, _ = verification.roc(p["distance"], p["same"])
        least = 1 / max(1, (~p["same"].astype(bool)).sum())
        axes.step(100 * np.maximum(far, least / 2), 100 * tar, where="post", color=colour(row), ls=style(row)[1],
                  label=ROWS[row])  # fmt: skip
    axes.set(xscale="log", xlabel="false accepts (%)", ylabel="true accepts (%)", title="ROC, both images low")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.legend(loc="lower right", fontsize=7)
