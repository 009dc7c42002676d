"""Pictures of the results, drawn from records alone: levels, ROC curves, angle histograms, training curves."""

from functools import partial

import numpy as np

from facepapers.common.evidence import figures, runs
from facepapers.common.protocols import verification
from facepapers.papers.arcface.config import COMPARED, NOISE_PCT, NOISY, ROWS, Config
from facepapers.papers.arcface.metrics import METRICS

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
    "omniglot-noise": (
        "What wrong training labels cost on Omniglot: Recall@1 of ArcFace over the share of labels replaced by another "
        "character's, and of ArcFace trained again after sub-centers sorted out suspects."
    ),
    "omniglot-omniglot": (
        "Six losses, the same small network, strangers' characters: softmax and the triplet loss fall behind, those on "
        "the unit sphere lie close together."
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
    "omniglot-noise": (
        "Recall@1 on Omniglot with intervals, over 0 to 40 per cent of wrong labels: a line for ArcFace, which falls, "
        "and one for ArcFace after cleaning, which hardly does."
    ),
    "omniglot-omniglot": (
        "Four panels: Recall@1 of each of six losses as a dot with its interval, ROC curves, angles of same and of "
        "different pairs for softmax and ArcFace, and the angle to the own centre over the training."
    ),
}

NOISY_PRESETS = {"lfw": ("short", "noise"), "omniglot": ("omniglot", "omniglot_noise")}  # without noise; with, before %
INK = figures.PALETTE
COLOURS = {
    "softmax": INK["grey"], "norm_softmax": INK["blue"], "sphereface": INK["orange"], "cosface": INK["green"],
    "arcface": INK["vermilion"], "cm1": INK["purple"], "cm2": INK["black"], "triplet": INK["sky"],
    "subcenter": INK["purple"], "cleaned": INK["blue"], "given": INK["black"], "together": INK["black"],
}  # fmt: skip


def draw(records, folder):
    """One PNG per data set and preset, and one over all levels of label noise. Returns the paths."""
    return figures.draw(pictures(records), folder)


def pictures(records):
    """{stem: function of a path}. The levels of label noise are one curve where two or more were run."""
    curves = {name: levels for name in NOISY_PRESETS if (levels := by_noise(records, name))}
    drawn = {f"{NOISY_PRESETS[name][1]}{p}" for name in curves for p in NOISE_PCT}
    found = figures.overviews([r for r in records if r["config"]["preset"] not in drawn], overview)
    return found | {f"{name}-noise": partial(noise, curves[name], figures.evidence()) for name in curves}


def by_noise(records, name):
    """The comparable records of a set's levels of label noise: row -> percent -> records; empty if all have one level.

    NOISY_PRESETS has the level without noise.
    """
    clean, noisy = NOISY_PRESETS[name]
    presets = {clean: 0, **{f"{noisy}{p}": p for p in NOISE_PCT}}
    levels = {}
    for record in figures.comparable(records):
        row, preset = record["config"]["row"], record["config"]["preset"]
        if record["data"]["name"] == name and row in NOISY and preset in presets:
            levels.setdefault(row, {}).setdefault(presets[preset], []).append(record)
    return levels if len({rate for found in levels.values() for rate in found}) > 1 else {}


def headline(record):
    """(Metric, its name on an axis) of a record's set: Recall@1 where each image is searched, else the accuracy."""
    searched = record["data"]["protocol"] == "retrieval"
    return (
        (METRICS["recall1_pct"], "Recall@1 (%)") if searched else (METRICS["accuracy_pct"], "verification accuracy (%)")
    )


def overview(records, evidence, path):
    """Accuracy, ROC curves, angles of the test pairs and angles while training; of given weights the middle two."""
    rows = figures.by_row(records, ROWS)
    trained = [row for row in rows if rows[row][0]["seconds"]]
    panels = [["key", "roc"], ["angles", "training"]] if trained else [["roc", "angles"]]
    figure, axes = figures.canvas(title(records, rows), panels, 6.8 if trained else 3.6)
    named = {row: label(row, found[0]["config"]) for row, found in rows.items()}
    predictions = {row: [evidence.predictions(r) for r in found] for row, found in rows.items()}
    for row, seeds in predictions.items():
        figures.roc(axes["roc"], seeds, color=COLOURS[row])
    drawn = records[0]["data"]["protocol"] == "retrieval"
    figures.finish_roc(axes["roc"], "same-character" if drawn else "same-person")
    histograms(axes["angles"], predictions)
    if trained:
        metric, name = headline(records[0])
        intervals = {row: figures.level(metric, found, evidence) for row, found in rows.items()}
        looks = {row: (named[row], COLOURS[row], "o", "-") for row in rows}
        figures.dots(axes["key"], intervals, looks, name)
        for row in trained:
            learning(axes["training"], row, rows[row], "drawing" if drawn else "face")
    figures.save(figure, path)


def title(records, rows):
    """What is compared, as a sentence."""
    data = records[0]["data"]
    pairs = f"{data['test_pairs']:,} pairs of {figures.data_name(data['name'])}"
    losses = [ROWS[row].split(" (")[0] for row in rows if row not in ("given", "together")]
    who = f"{len(losses)} losses, trained alike,"
    if len(losses) < 2:
        who = f"networks trained with {losses[0]}" if losses else "the given weights, which we did not train,"
    if data["protocol"] == "retrieval":
        return f"How well {who} find strangers' characters of {figures.data_name(data['name'])} again"
    return f"How well {who} tell the people of {pairs} apart"


def verification_picture(predictions, path, title):
    """ROC curve and angles of one network's predictions on one list of pairs, as a PNG."""
    figure, axes = figures.canvas(title, [["roc", "angles"]], 3.6)
    figures.roc(axes["roc"], [predictions], color=COLOURS["given"])
    figures.finish_roc(axes["roc"])
    histograms(axes["angles"], {"given": [predictions]})
    figures.save(figure, path)


def label(row, config):
    """A row's name; with the paper's margin only where the run had it."""
    default = Config()
    as_paper = (config["strength"], config["triplet_margin"]) == (default.strength, default.triplet_margin)
    if as_paper or row not in (*COMPARED, "cm1", "cm2"):
        return ROWS[row]
    return f"{row}, weaker" if row in ("cm1", "cm2") else ROWS[row].split(" (")[0].removesuffix(" on angles")


def histograms(axes, predictions):
    """Angles of same (filled) and different pairs (line); of many rows only softmax and ArcFace."""
    known = [row for row in ("softmax", "norm_softmax", "arcface", "given") if row in predictions]
    shown = known or list(predictions)[:2]
    grid, highest = np.arange(0, 141, 4), 0.0
    for row in shown[:1] + shown[-1:] if len(shown) > 2 else shown:
        angle = np.concatenate([verification.angles_deg(p["distance"]) for p in predictions[row]])
        same = np.concatenate([p["same"].astype(bool) for p in predictions[row]])
        for kind, style in ((same, {"alpha": 0.3}), (~same, {"histtype": "step", "lw": 1.4})):
            density, *_ = axes.hist(angle[kind], grid, density=True, color=COLOURS[row], **style)
            highest = max(highest, density.max())
    axes.set(xlabel="angle between the two embeddings (degrees)", yticks=[], ylim=(0, 1.05 * highest))
    axes.set(ylabel="share of pairs")
    figures.heading(axes, "Angles of same (filled) and different pairs (line)")


def learning(axes, row, records, what="face"):
    """Mean angle between a training face (or `what` trains) and its own centre, one thin line per network."""
    for record in records:
        history = runs.read_history(record["folder"])
        if "theta_deg" not in history or not history["theta_deg"].abs().max() > 0:
            continue  # the triplet loss has no centres
        for _, part in history.groupby("task", dropna=False):
            seen = part["step"] * record["config"]["batch"] / 1000
            axes.plot(seen, part["theta_deg"], color=COLOURS[row], lw=0.9)
    axes.set(xlabel=f"training {what}s (thousands)", ylabel="angle to the own centre (degrees)", ylim=(0, 100))
    figures.heading(axes, f"Training {what}s approach their own centre")


def noise(levels, evidence, path):
    """Accuracy or Recall@1 over the share of wrong training labels, a line per row."""
    rows = [row for row in NOISY if row in levels]
    one = {row: next(iter(levels[row].values()))[0] for row in rows}  # of its records
    (metric, name), data = headline(one[rows[0]]), one[rows[0]]["data"]
    where = figures.data_name(data["name"])
    where = where if data["protocol"] == "retrieval" else f"{data['test_pairs']:,} pairs of {where}"
    figure, axes = figures.canvas(f"What wrong training labels cost on {where}", [["only"]], 3.8, width=6.5)
    for k, row in enumerate(rows):
        found = {rate: figures.level(metric, some, evidence) for rate, some in levels[row].items()}
        beside = 0.6 * (k - (len(rows) - 1) / 2)
        figures.line(axes["only"], found, beside, color=COLOURS[row], label=label(row, one[row]["config"]))
    whose = "character" if data["protocol"] == "retrieval" else "person"
    axes["only"].set(xlabel=f"training labels replaced by another {whose}'s (%)", xticks=[0, *NOISE_PCT])
    axes["only"].set(ylabel=f"{name}, {figures.LEVELS}")
    figures.key_below(figure, axes["only"], len(rows))
    figures.save(figure, path)
