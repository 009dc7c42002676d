"""Pictures of the results, drawn from records alone: ROC curves, angle histograms, training curves."""

import numpy as np

from facepapers.common.evidence import figures, runs
from facepapers.common.protocols import verification
from facepapers.papers.arcface.config import COMPARED, ROWS, Config

# What a picture shows, for readers who see it: stem of the file -> one sentence.
CAPTIONS = {
    "embedded-demo": (
        "Three losses trained for a few minutes on drawn people: the margin of ArcFace draws the faces of one person "
        "together, and more of them are accepted before the first false accept."
    ),
    "lfw-noise": (
        "What wrong training labels cost: accuracy of ArcFace over the share of labels replaced by another person's, "
        "and of ArcFace trained again after sub-centers sorted out suspects."
    ),
    "lfw-pairs": (
        "The given MobileFaceNet weights on LFW's 6,000 pairs, as a check of the protocol: the ROC curve is zoomed to "
        "the few per cent that are missing."
    ),
    "lfw-short": (
        "Six losses, the same small network and people of LFW: the intervals overlap widely, so read the order of the "
        "dots with care."
    ),
    "lfw-view1": ("Our best recipe on LFW's View 1: three networks one by one, and their mean distance."),
    "lfw-view2": (
        "The same recipe trained anew for each of View 2's ten folds: three seeds one by one, and their mean distance."
    ),
}
# The same for readers who do not: what stands where.
ALTERNATIVES = {
    "embedded-demo": (
        "Four panels: accuracy of each loss as a dot with its interval, ROC curves, angles of same and of different "
        "pairs, and the angle of training faces to their own centre over the training."
    ),
    "lfw-noise": (
        "Accuracy on LFW's View 1 with intervals, over 0 to 40 per cent of wrong labels: one line for ArcFace and one "
        "for ArcFace after cleaning."
    ),
    "lfw-pairs": (
        "Two panels: the ROC curve of the given weights from the first false accept on, and two well separated "
        "histograms of the angles of same and of different pairs."
    ),
    "lfw-short": (
        "Four panels: accuracy of each of six losses as a dot with its interval, ROC curves, angles of same and of "
        "different pairs for softmax and ArcFace, and the angle to the own centre over the training."
    ),
    "lfw-view1": (
        "Four panels: accuracy of single networks and of three together as dots with intervals, ROC curves, angles of "
        "same and of different pairs, and the angle to the own centre over the training."
    ),
    "lfw-view2": (
        "Four panels: accuracy of single networks and of three together as dots with intervals, ROC curves, angles of "
        "same and of different pairs, and the angle to the own centre over ten trainings a seed."
    ),
}

COLOURS = {
    "softmax": "#999999", "norm_softmax": "#4477aa", "sphereface": "#aa7744", "cosface": "#228833",
    "arcface": "#cc3311", "cm1": "#c9a227", "cm2": "#8866aa", "triplet": "#33aabb", "subcenter": "#663399",
    "cleaned": "#117733", "given": "#333333", "together": "#771111",
}  # fmt: skip


def draw(records, folder):
    """One PNG per data set and preset. Returns the paths."""
    return figures.draw_groups(records, folder, overview)


def overview(records, path):
    rows = figures.by_row(records, ROWS)
    trained = [row for row in rows if rows[row][0]["seconds"]]
    count = 3 if trained else 2
    figure, axes = figures.pyplot().subplots(1, count, figsize=(5.4 * count, 4.6), layout="constrained")
    predictions = {
        row: [runs.read_predictions(r["folder"] / "predictions.npz") for r in found] for row, found in rows.items()
    }
    named = {row: label(row, found[0]["config"]) for row, found in rows.items()}
    for row, seeds in predictions.items():
        curve(axes[0], row, seeds, named[row])
    histograms(axes[1], predictions, named)
    for row in trained:
        learning(axes[2], row, rows[row])
    finish(axes, bool(trained))
    data, config = records[0]["data"], records[0]["config"]
    figure.suptitle(f"{data['name']}, preset {config['preset']}, {data['test_pairs']} test pairs", fontsize=11)
    figures.save(figure, path)


def verification_picture(predictions, path, title):
    """ROC curve and angles of one network's predictions on one list of pairs, as a PNG."""
    figure, axes = figures.pyplot().subplots(1, 2, figsize=(10.8, 4.6), layout="constrained")
    curve(axes[0], "given", [predictions], "these weights")
    histograms(axes[1], {"given": [predictions]}, {"given": "these weights"})
    finish(axes, trained=False)
    figure.suptitle(title, fontsize=11)
    figures.save(figure, path)


def label(row, config):
    """A row's name; with the paper's margin only where the run had it."""
    default = Config()
    as_paper = (config["strength"], config["triplet_margin"]) == (default.strength, default.triplet_margin)
    if as_paper or row not in (*COMPARED, "cm1", "cm2"):
        return ROWS[row]
    return f"{row}, weaker" if row in ("cm1", "cm2") else ROWS[row].split(" (")[0].removesuffix(" on angles")


def curve(axes, row, seeds, name):
    """ROC of the pairs, one line per seed; false accepts on a logarithmic axis from one pair on."""
    for k, p in enumerate(seeds):
        far, tar, _ = verification.roc(p["distance"], p["same"])
        accuracy = np.mean([verification.verify(q["distance"], q["same"], q["fold"]).accuracy_pct for q in seeds])
        text = f"{name}: {accuracy:.2f} %" if k == 0 else None
        least = 1 / max(1, (~p["same"].astype(bool)).sum())
        axes.step(100 * np.maximum(far, least / 2), 100 * tar, where="post", color=COLOURS[row], lw=1.2, label=text)


def histograms(axes, predictions, named):
    """Angles of same (filled) and different pairs (line); of many rows only softmax and ArcFace."""
    shown = [row for row in ("softmax", "norm_softmax", "arcface", "given") if row in predictions] or list(predictions)[
        :2
    ]
    grid = np.arange(0, 141, 4)
    for row in shown[:1] + shown[-1:] if len(shown) > 2 else shown:
        angle = np.concatenate([verification.angles_deg(p["distance"]) for p in predictions[row]])
        same = np.concatenate([p["same"].astype(bool) for p in predictions[row]])
        axes.hist(angle[same], grid, density=True, color=COLOURS[row], alpha=0.35, label=f"{named[row]}: same")
        axes.hist(angle[~same], grid, density=True, color=COLOURS[row], histtype="step", lw=1.4, label="different")


def learning(axes, row, records):
    """Mean angle between a training face and its own centre, one thin line per network."""
    for record in records:
        history = runs.read_history(record["folder"])
        if "theta_deg" not in history or not history["theta_deg"].abs().max() > 0:
            continue  # the triplet loss has no centres
        for _, part in history.groupby("task", dropna=False):
            faces = part["step"] * record["config"]["batch"] / 1000
            axes.plot(faces, part["theta_deg"], color=COLOURS[row], lw=0.9)


def finish(axes, trained):
    """Titles, labels and legends."""
    axes[0].set(xscale="log", xlabel="false accepts (%)", ylabel="true accepts (%)", title="ROC")
    axes[0].xaxis.set_major_formatter("{x:g}")
    axes[0].legend(loc="lower right", fontsize=8)
    axes[1].set(xlabel="angle between the two embeddings (degrees)", ylabel="density", title="Test pairs", yticks=[])
    axes[1].set_ylim(0, 1.25 * axes[1].get_ylim()[1])  # room for the legend
    axes[1].legend(fontsize=8)
    if trained:
        axes[2].set(xlabel="training faces (thousands)", ylabel="angle to the own centre (degrees)", ylim=(0, 100))
        axes[2].set_title("While training")
