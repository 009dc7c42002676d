"""The notes' own table, from counts of copies (data/copies.json) and records: how well these labels can be read."""

from facepapers.common.data import copies
from facepapers.common.evidence import runs, statistics
from facepapers.papers.face_attributes.metrics import METRICS

# Attribute -> its label in the counts of copies, and its classes.
LABELS = {"gender": ("gender", 2), "ethnicity": ("ethnicity", 5), "age": ("age_group", 9)}
OURS = "utkface+ferplus", "short", "chosen"  # data, preset, row


def comparison(records):
    """Markdown: the best accuracy that UTKFace's labels allow, beside ours. For NOTES.md; empty without counts."""
    entry = copies.read().get("utkface")
    if not entry:
        return ""
    head = (
        "UTKFace",
        "copies",
        "groups",
        "labelled differently",
        "best accuracy that the labels allow (%)",
        "ours (%)",
    )
    lines = [head, ["---"] * len(head)]
    for name, (label, _) in LABELS.items():
        for kind in copies.KINDS:
            differ, groups = copies.shares(entry[kind]["labels"][label])
            share = f"{differ:,} ({100 * differ / groups:.0f} %)"
            lines.append((name, kind, f"{groups:,}", share, allowed(entry, kind, name), ours(records, name)))
    table = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    note = (
        "Best accuracy: of who always knows the true class, if each copy's label is wrong with one chance, whatever "
        "the other copy's, and each wrong class is as likely; 90 % intervals from resampling the groups. If some faces "
        "are harder than others it is lower. Copies are no random sample: if they are labelled worse than the rest, it "
        "is higher. Near-copies may be other pictures of one person, or none. Ours: the chosen pattern.\n"
    )
    return f"{table}\n{note}"


def facts():
    """{name: text} that the card's findings may name: the best accuracy by identical copies."""
    entry = copies.read().get("utkface")
    return {f"ceiling-{name}": allowed(entry, "identical", name) if entry else "—" for name in LABELS}


def allowed(entry, kind, name):
    """`94.5 [92.6, 96.2]`: the best accuracy of an attribute by one kind of copies."""
    label, classes = LABELS[name]
    best, low, high = copies.ceiling(entry[kind]["labels"][label], classes)
    return f"{best:.1f} [{low:.1f}, {high:.1f}]"


def ours(records, name):
    """`93.69 [93.0, 94.4]`: our accuracy, as in the tables above; a dash without a record."""
    place = lambda r: (r["data"]["name"], r["config"]["preset"], r["config"]["row"])
    found = [r for r in runs.of_presets(records) if place(r) == OURS]
    if not found:
        return "—"
    predictions = [runs.read_predictions(r["folder"] / "predictions.npz") for r in found]
    interval = statistics.level(METRICS[f"{name}_accuracy_pct"], predictions)
    return f"{interval.mean:.2f} [{interval.low:.2f}, {interval.high:.2f}]"
