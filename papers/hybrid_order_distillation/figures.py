"""Pictures of the results, drawn from records alone: accuracy of the rows, ROC curves, accuracy over the resolution."""

from functools import partial

from facepapers.common.evidence import figures
from facepapers.papers.hybrid_order_distillation.config import KINDS, ROWS
from facepapers.papers.hybrid_order_distillation.metrics import METRICS

# What a picture shows, for readers who see it: stem of the file -> one sentence.
CAPTIONS = {
    "embedded-demo": (
        "Drawn faces of few pixels: students that imitate the teacher's similarities beside the teacher, the teacher "
        "on small images and a student that learns from labels alone."
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
    "omniglot-omniglot7": (
        "Handwritten characters of 7 pixels, of alphabets that nobody trained on: how often the nearest drawing is the "
        "same character, for the teacher, the student alone and students that imitate more orders."
    ),
    "omniglot-resolutions": (
        "Recall@1 on Omniglot at 7 and 10 pixels: the teacher fails on enlarged drawings, and the students lie close "
        "together; a small query finds large drawings most often where an assistant stood between."
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
    "omniglot-omniglot7": (
        "Recall@1 of each row as dots with intervals: the teacher far ahead, on enlarged drawings far behind, "
        "the students between them, nearer to each other; hollow dots are small queries against large drawings."
    ),
    "omniglot-resolutions": (
        "Two panels over 7 and 10 pixels, all drawings small and small queries against large drawings: Recall@1 with "
        "intervals of the teacher, the teacher on enlarged drawings, the student alone and distilled students."
    ),
}

MAIN = {"classification": "top1_pct", "retrieval": "recall1_pct", "verification": "accuracy_pct"}
SIDE = {"classification": "top1_other_pct", "retrieval": "recall1_cross_pct", "verification": "accuracy_cross_pct"}
HOLLOW = {"classification": "another degradation", "retrieval": "high against low", "verification": "high against low"}
INK = figures.PALETTE
COLOURS = {
    "teacher": INK["black"], "upsampled": INK["grey"], "alone": INK["orange"], "kd": INK["purple"],
    "fitnet": INK["green"], "direct": INK["blue"], "assistant": INK["vermilion"], "init": INK["sky"],
}  # fmt: skip
# Orders of a row -> marker, line style; rows of one route share the colour.
STYLES = {"1": ("s", "--"), "2": ("v", ":"), "3": ("<", ":"), "12": ("D", "-."), "13": (">", "-."), "23": ("^", "-.")}


def colour(row):
    return COLOURS[row.split("_")[0]]


def style(row):
    """(marker, line style) of a row."""
    return STYLES.get(row.split("_")[1] if "_" in row else "", ("o", "-"))


def draw(records, folder):
    """One PNG per data set and preset, and one per data set seen at several resolutions. Returns the paths."""
    return figures.draw(pictures(records), folder)


def pictures(records):
    """{stem: function of a path}. A preset whose rows all stand in a picture over the resolutions gets none."""
    shown, found, whole = figures.comparable(records), {}, []
    for name in sorted({r["data"]["name"] for r in shown}):
        mine = [r for r in shown if r["data"]["name"] == name]
        if lines := over_resolutions(mine):
            kind = KINDS.get(name, "verification")
            found[f"{name}-resolutions"] = partial(resolutions, lines, kind, name, figures.evidence())
            whole += [some for some in figures.groups(mine).values() if all(line_of(r) in lines for r in some)]
    left_out = [id(r) for some in whole for r in some]
    return figures.overviews([r for r in shown if id(r) not in left_out], overview) | found


def overview(records, evidence, path):
    """Both metrics of each row and, for pairs of faces, ROC curves."""
    rows = figures.by_row(records, ROWS)
    kind = KINDS.get(records[0]["data"]["name"], "verification")
    panels = [["key", "roc"]] if kind == "verification" else [["key"]]
    figure, axes = figures.canvas(title(records), panels, 1.8 + 0.3 * max(6, len(rows)))
    both(axes["key"], rows, kind, evidence)
    if kind == "verification":
        curves(axes["roc"], rows, evidence)
    figures.save(figure, path)


def title(records):
    """What is compared, as a sentence."""
    about = f"{records[0]['config']['resolution']} pixels ({figures.data_name(records[0]['data']['name'])})"
    cost = next((r["cost"] for r in records if "macs" in r["cost"]), None)
    if cost is None:
        return f"What the teacher tells from images of {about}"
    million = {key: cost[key] / 1e6 for key in ("parameters", "macs", "teacher_parameters", "teacher_macs")}
    student = f"{million['parameters']:.2f} M parameters, {million['macs']:.3g} M multiply-adds"
    teacher = f"{million['teacher_parameters']:.2f} M parameters, {million['teacher_macs']:.3g} M multiply-adds"
    return f"Students for images of {about}: {student}; their teacher: {teacher}"


def both(axes, rows, kind, evidence):
    """The main metric of each row (filled) and the second one (hollow), with intervals."""
    main, side = METRICS[MAIN[kind]], METRICS[SIDE[kind]]
    looks = {row: (ROWS[row], colour(row), *style(row)) for row in rows}
    intervals = {row: figures.level(main, found, evidence) for row, found in rows.items()}
    figures.dots(axes, intervals, looks, main.label.replace(", both images low", ""))
    for y, (row, found) in enumerate(rows.items()):
        if all(side.available(evidence.predictions(r)) for r in found):
            second = figures.level(side, found, evidence)
            axes.errorbar(second.mean, y + 0.25, xerr=figures.reach([second]), color=colour(row), marker=style(row)[0],
                          ms=4, mfc="white", elinewidth=0.7, capsize=2)  # fmt: skip
    figures.heading(axes, f"Filled: {'both low' if kind != 'classification' else 'as trained'}; hollow: {HOLLOW[kind]}")


def line_of(record):
    """(row, network) of a record."""
    config = record["config"]
    return config["row"], config["teacher_net"] if config["row"] in ("teacher", "upsampled") else config["net"]


def over_resolutions(records):
    """{(row, network): {resolution: records}} of the rows that were run at two resolutions or more."""
    lines = {}
    for record in records:
        lines.setdefault(line_of(record), {}).setdefault(record["config"]["resolution"], []).append(record)
    order = list(ROWS)
    return {key: lines[key] for key in sorted(lines, key=lambda key: order.index(key[0])) if len(lines[key]) > 1}


def resolutions(lines, kind, name, evidence, path):
    """Both metrics against the resolution, a line per row and network."""
    title = f"What each row makes of fewer and fewer pixels ({figures.data_name(name)}, {figures.LEVELS})"
    figure, axes = figures.canvas(title, [["main", "side"]], 4.4, sharey=True)
    pixels = sorted({px for found in lines.values() for px in found})
    for panel, key in (("main", MAIN[kind]), ("side", SIDE[kind])):
        for k, ((row, network), found) in enumerate(lines.items()):
            points = {
                pixels.index(px): figures.level(METRICS[key], some, evidence)
                for px, some in found.items()
                if all(METRICS[key].available(evidence.predictions(r)) for r in some)
            }
            # A student of the teacher's own architecture gets a star.
            marker = "*" if network == next(iter(found.values()))[0]["config"]["teacher_net"] else style(row)[0]
            figures.line(axes[panel], points, 0.04 * (k - (len(lines) - 1) / 2), color=colour(row), marker=marker,
                         ms=8 if marker == "*" else 5, ls=style(row)[1], label=f"{ROWS[row]}, {network}")  # fmt: skip
        axes[panel].set_xticks(range(len(pixels)), [str(px) for px in pixels])
        axes[panel].set(xlabel="resolution (px)")
        figures.heading(axes[panel], METRICS[key].label)
    figures.key_below(figure, axes["main"], 2)
    figures.save(figure, path)


def curves(axes, rows, evidence):
    """ROC of the pairs, both images low, of the main rows, or of the first six."""
    main = ("teacher", "upsampled", "alone", "kd", "direct_1", "direct_123", "assistant_1", "assistant_123")
    shown = [row for row in main if row in rows]
    for row in shown or list(rows)[:6]:
        seeds = [evidence.predictions(r) for r in rows[row]]
        figures.roc(axes, seeds, color=colour(row), ls=style(row)[1])
    figures.finish_roc(axes)
