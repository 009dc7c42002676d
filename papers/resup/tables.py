"""The notes' own table, from records and claims.toml alone: accuracies at 30 % flips, printed elsewhere and ours."""

from facepapers.common.evidence import claims, figures, runs, statistics
from facepapers.papers.resup.metrics import METRICS
from facepapers.papers.resup.rows import ROWS

OURS = {  # presets at 30 % flips as blocks of the picture beside published rows
    "short": "ours: from scratch, half-width ResNet-18, 48 px, 3,153 test faces; mirroring alone",
    "strong": "ours: the same with our recipe",
    "long": "ours: the same with our recipe, 44 epochs",
}


def comparison(records):
    """Markdown: accuracies at 30 % flips, printed elsewhere and ours, initialisation in a column. For NOTES.md."""
    head = ("FERPlus, 30 % symmetric flips", "accuracy (%)", "initialisation and network", "source")
    lines = [head, ["---"] * len(head)]
    for start, block in beside_published(ours_at_30(records)).items():
        for what, value, half, _, source in block:
            interval = f" [{value - half:.2f}, {value + half:.2f}]" if half is not None else ""
            lines.append((what, f"{value:.2f}{interval}", start, source))
    table = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    note = "Compare within one initialisation alone. Ours: means of two networks and over seeds, 90 % intervals.\n"
    return f"{table}\n{note}"


def ours_at_30(records):
    """The comparable FERPlus records at 30 % flips: words of a preset (OURS) -> records."""
    recorded = [r for r in figures.comparable(records) if r["data"]["name"] == "ferplus"]
    ours = {words: [r for r in recorded if r["config"]["preset"] == name] for name, words in OURS.items()}
    return {words: found for words, found in ours.items() if found}


def beside_published(ours):
    """Initialisation -> [(what, accuracy, half of its interval or None, row or None, source)], printed ones first.

    `ours`: words of a preset -> its records.
    """
    claimed = claims.read("resup")
    blocks = {}
    for a in [*(c for c in claimed["level"] if "initialisation" in c), *claimed["anchor"]]:
        line = (a["what"].split(",")[0], float(a["published"]), None, None, a["source"])
        blocks.setdefault(a["initialisation"], []).append(line)
    for words, records in ours.items():
        for row, found in figures.by_row(records, ROWS).items():
            interval = interval_of(accuracy_of(row), found)
            source = f"{len(found)} recorded run{'s' * (len(found) > 1)}"
            blocks.setdefault(words, []).append((ROWS[row], interval.mean, interval.half, row, source))
    return blocks


def accuracy_of(row, epoch=""):
    """Name of a row's accuracy: of the mean of its networks where it has two."""
    return f"accuracy{'' if row == 'ce' else '_mean'}{epoch}_pct"


def interval_of(metric, records):
    """Mean over the records with its 90 % interval, as in the tables."""
    return statistics.level(METRICS[metric], [runs.read_predictions(r["folder"] / "predictions.npz") for r in records])
