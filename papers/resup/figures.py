"""Pictures of the results, drawn from records and claims.toml alone: curves, weights, noise levels, published rows."""

from functools import partial

import numpy as np

from facepapers.common.evidence import figures, runs
from facepapers.common.protocols.metrics import Metric
from facepapers.papers.resup.config import LEVELS, ROWS
from facepapers.papers.resup.metrics import METRICS, class_weights, reliability
from facepapers.papers.resup.tables import accuracy_of, beside_published, ours_at_30

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
    "ferplus-strong0": (
        "The same recipe on clean labels, without a method: cross-entropy with one network, which is released, and "
        "with two, whose mean is tested."
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
    "ferplus-strong0": (
        "Three panels: test accuracy of one network and of the mean of two with intervals, validation accuracy by "
        "epoch, and accuracy by class."
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

INK = figures.PALETTE
COLOURS = {
    "ce": INK["black"], "ce_two": INK["grey"], "own": INK["orange"], "swapped": INK["green"],
    "resup": INK["vermilion"], "loss_mixture": INK["blue"], "coteaching": INK["sky"], "ce_plus": INK["blue"],
    "resup_plus": INK["purple"], "resup_bayes": INK["orange"], "bayes": INK["green"], "oracle": INK["black"],
}  # fmt: skip
JUDGED = ("own", "swapped", "resup", "loss_mixture", "resup_plus", "resup_bayes", "bayes")


def draw(records, folder):
    """One PNG per data set and preset; for FERPlus also by noise level and beside the published rows. Returns paths."""
    return figures.draw(pictures(records), folder)


def pictures(records):
    """{stem: function of a path}. A preset whose rows all stand in the picture over the noise gets none of its own.

    Nor does a preset with one row, which compares nothing.
    """
    levels, shown, evidence = by_level(records), [], figures.evidence()
    inside = lambda r: r["config"]["preset"].startswith("noise") and r["config"]["row"] in levels
    for some in figures.groups(records).values():
        if len({r["config"]["row"] for r in some}) > 1 and not all(inside(r) for r in some):
            shown += some
    found = figures.overviews(shown, overview)
    if levels:
        found["noise-levels"] = partial(noise_levels, levels, evidence)
    if ours := ours_at_30(records):
        found["published-30"] = partial(published, beside_published(ours))
    return found


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


def overview(records, evidence, path):
    """Accuracy, also by class and epoch; with wrong labels also what the weights make of them."""
    rows = figures.by_row(records, ROWS)
    names, flips = records[0]["data"]["classes"].split(), records[0]["data"]["flipped_pct"] > 0
    judged = {row: found for row, found in rows.items() if row in JUDGED}
    panels = [["key", "learning"], ["accuracies", "accuracies"]]
    panels += [["trusted", "similarities"], ["weights", "reliability"]] if flips and judged else []
    figure, axes = figures.canvas(title(records[0]), panels, 3.3 * len(panels) + 0.3)
    accuracy = {row: figures.level(METRICS[accuracy_of(row)], found, evidence) for row, found in rows.items()}
    looks = {row: (ROWS[row].split(":")[0], COLOURS[row], "o", "-") for row in rows}
    figures.dots(axes["key"], accuracy, looks, "test accuracy (%)")
    for row, found in rows.items():
        learning(axes["learning"], row, found)
    figures.heading(axes["learning"], "Accuracy while training, judged by true labels")
    by_class(axes["accuracies"], rows, names, evidence)
    if len(panels) > 2:
        trusted(axes["trusted"], judged, names, evidence)
        row = "resup" if "resup" in judged else next(iter(judged))
        humps(axes["similarities"], row, judged[row], evidence)
        weights(axes["weights"], judged)
        calibration(axes["reliability"], judged, evidence)
    figures.save(figure, path)


def title(record):
    """What is compared, as a sentence."""
    data, config = record["data"], record["config"]
    wrong = f"{data['flipped_pct']:.0f} % of"
    kinds = {"fer2013": f"FER2013's labels, {wrong} them wrong", "symmetric": f"{wrong} the labels flipped at random"}
    labels = kinds[data["noise"]] if data["flipped_pct"] else "clean labels"
    how = {"flip": "mirroring alone", "strong": "strong augmentation"}.get(
        config["augment"], "the paper's augmentation"
    )
    name = figures.data_name(data["name"])
    return f"Training on {name} with {labels}; {how}, {config['epochs']} epochs, {data['test_faces']:,} test faces"


def learning(axes, row, records):
    """Validation accuracy of the networks' mean by epoch, a line per seed."""
    for record in records:
        table = history(record)
        axes.plot(table["epoch"], table["val_mean_pct"], color=COLOURS[row], lw=1.1)
    axes.set_ylabel("validation accuracy (%)")
    epochs(axes)


def epochs(axes):
    """Whole numbers below a panel over the epochs."""
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)


def history(record):
    """The epochs' rows of a run's history."""
    table = runs.read_history(record["folder"])
    return table.dropna(subset=["epoch"])


def by_class(axes, rows, names, evidence):
    """Test accuracy of each class, of the networks' mean where there are two, with intervals."""
    for k, (row, found) in enumerate(rows.items()):
        present = np.unique(evidence.predictions(found[0])["label"])
        points = {c: figures.level(accuracy_in(c), found, evidence) for c in present}
        figures.line(axes, points, shift(k, rows), color=COLOURS[row], ls="", elinewidth=0.8, capsize=0)
    classes(axes, names)
    axes.set(ylabel=f"accuracy (%), {figures.LEVELS}", ylim=(-2, 102))
    figures.heading(axes, "Test accuracy of each class")


def accuracy_in(number):
    """Metric: the accuracy on the test faces of a class."""

    def per_sample(p):
        mine = p["label"] == number
        return 100.0 * (p.get("predicted_mean", p["predicted"])[mine] == number)

    return Metric(f"accuracy_{number}", f"accuracy on class {number} (%)", False, per_sample)


def trusted(axes, rows, names, evidence):
    """Mean weight of the clean training labels of each class, over the seeds."""
    for k, (row, found) in enumerate(rows.items()):
        values = np.mean([class_weights(evidence.predictions(r)) for r in found], axis=0)
        axes.plot(np.arange(len(values)) + shift(k, rows), values, "o", ms=4, color=COLOURS[row])
    classes(axes, names, rotation=35)
    axes.set(ylabel="mean weight", ylim=(-0.03, 1.03))
    figures.heading(axes, "Trust in clean labels of each class")


def shift(k, rows):
    """How far the k-th row's dots stand beside their class."""
    return min(0.1, 0.7 / len(rows)) * (k - (len(rows) - 1) / 2)


def classes(axes, names, rotation=0):
    """Ticks at the classes, with lines between them."""
    axes.set_xticks(range(len(names)), names, rotation=rotation)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.grid(False, axis="x")
    for place in range(1, len(names)):
        axes.axvline(place - 0.5, color=figures.PALE, lw=0.8, zorder=0)


def humps(axes, row, records, evidence):
    """Similarities of clean and of flipped training labels after the last epoch, seeds pooled."""
    arrays = [evidence.predictions(r) for r in records]
    similarity = np.concatenate([p["similarity"].astype(float) for p in arrays])
    flip = np.concatenate([p["flip"].astype(bool) for p in arrays])
    bins = np.linspace(0, 1, 41)
    axes.hist(similarity[~flip], bins, color=INK["sky"], alpha=0.6)
    axes.hist(similarity[flip], bins, color=INK["black"], histtype="step", lw=1.2)
    axes.set(xlabel=f"similarity of prediction and label, {ROWS[row].split(':')[0]}")
    axes.set(ylabel="training faces", yscale="log")
    figures.heading(axes, "Clean (filled) and wrong labels (line)")


def weights(axes, rows):
    """Mean weight of clean (line) and flipped (dashes) training labels by epoch, a line per seed."""
    for row, found in rows.items():
        for record in found:
            table = history(record).dropna(subset=["weight_clean"])
            axes.plot(table["epoch"], table["weight_clean"], color=COLOURS[row], lw=1.2)
            axes.plot(table["epoch"], table["weight_flipped"], color=COLOURS[row], lw=1.2, ls="--")
    axes.set(ylabel="mean weight", ylim=(0, 1.03))
    epochs(axes)
    figures.heading(axes, "Weights of clean (line) and wrong labels (dashed)")


def calibration(axes, rows, evidence):
    """P(clean) by the weights against the share of clean labels, all seeds pooled; small bins are left out."""
    for row, records in rows.items():
        arrays = [evidence.predictions(r) for r in records]
        weight = np.concatenate([p["weight"].astype(float) for p in arrays])
        said, true, count = reliability(weight, np.concatenate([p["flip"].astype(bool) for p in arrays]))
        enough = count >= 20
        axes.plot(said[enough], true[enough], "o-", color=COLOURS[row], ms=4, lw=1.1, clip_on=False)
    axes.plot([0, 1], [0, 1], color=figures.PALE, lw=0.8, zorder=0)
    axes.set(xlabel="P(clean) of the noise model", ylabel="share of clean labels", xlim=(0, 1), ylim=(0, 1))
    figures.heading(axes, "On the diagonal, P(clean) tells the truth")


def noise_levels(levels, evidence, path):
    """Accuracy by share of flipped labels, after the last epoch and at the one that validation faces choose."""
    figure, axes = figures.canvas("What wrong training labels cost on FERPlus", [["only"]], 4.2, width=6.5)
    last = ("", "last epoch", {})
    chosen = ("_validation_chosen", "chosen epoch", {"mfc": "white", "ls": ":"})
    for k, (row, found) in enumerate(levels.items()):
        for end, when, style in (last, chosen):
            metric = METRICS[accuracy_of(row, end)]
            points = {rate: figures.level(metric, some, evidence) for rate, some in found.items()}
            beside = 0.5 * (2 * k + bool(end) - len(levels) + 0.5)
            figures.line(axes["only"], points, beside, color=COLOURS[row], label=f"{ROWS[row].split(':')[0]}, {when}",
                         **style)  # fmt: skip
    axes["only"].set(xlabel="flipped training labels (%)", ylabel=f"test accuracy (%), {figures.LEVELS}")
    axes["only"].set_xticks(sorted({rate for found in levels.values() for rate in found}))
    figures.key_below(figure, axes["only"], 2)
    figures.save(figure, path)


def published(blocks, path):
    """Accuracy at 30 % flips in blocks by initialisation (see beside_published): compare within a block alone."""
    height = sum(len(block) + 1.2 for block in blocks.values())
    title = "Accuracies with 30 % of FERPlus' training labels flipped: compare within a block alone"
    figure, canvas = figures.canvas(title, [["only"]], 0.27 * height + 1)
    axes, y, ticks = canvas["only"], 0.0, []
    for name, block in blocks.items():
        axes.text(0.01, -y, name, fontsize=8.5, fontweight="bold", transform=axes.get_yaxis_transform(), va="center")
        for what, value, half, row, _ in block:
            y, colour = y + 1, COLOURS.get(row, INK["black"])
            axes.errorbar(value, -y, xerr=half, fmt="o", ms=5, color=colour, capsize=3)
            axes.text(1.01, -y, f"{value:.2f}", transform=axes.get_yaxis_transform(), va="center", fontsize=8)
            ticks.append((-y, what))
        y += 1.3
    axes.set_yticks(*zip(*ticks, strict=True))
    axes.set(xlabel=f"accuracy (%); ours with {figures.LEVELS}", ylim=(-y + 0.6, 0.8))
    axes.margins(x=0.05)
    axes.grid(False, axis="y")
    figures.save(figure, path)
