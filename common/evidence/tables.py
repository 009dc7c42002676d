"""Cells as Markdown tables, and a paper's notes: every cell, its pictures and speeds."""

import csv
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from facepapers.common import cli, paths, storage
from facepapers.common.data.archive import entries
from facepapers.common.evidence import claims, runs

BEGIN, END = "<!-- generated: {name} -->", "<!-- end of {name} -->"


BENCH = ("what", "ours", "ours_ms", "other", "other_ms", "ratio")  # columns of bench.csv that the notes show


# Columns of coverage.csv that name a simulation, and forms of an interval -> their words in the notes.
COVERED = {"metric": "intervals of", "kind": "kind", "preset": "preset", "row": "row", "than": "than",
           "samples": "samples", "seeds": "seeds", "runs": "runs"}  # fmt: skip
FORMS = {"ours": "ours", "quadrature": "in quadrature", "folds_t": "folds, Student's t",
         "folds_normal": "folds, 1.96 std / √10", "folds_bootstrap": "folds, bootstrap"}  # fmt: skip


HEADS = {
    "level": ("published cell", "published", "ours [90 % interval]", "seeds", "test boxes, protocol", "status"),
    "contrast": ("claim", "gain [95 % interval]", "seeds", "verdict"),
    "measured": ("measured by us, no published value", "data", "ours [90 % interval]", "seeds", "status"),
}


def row(cell):
    """A cell as strings, in the order of HEADS."""
    claim, seeds = cell.claim, str(len(cell.records)) if cell.records else "—"
    if cell.kind == "level":
        return claim["what"], claim["published"], value(cell), seeds, claim.get("boxes", "—"), cell.status
    if cell.kind == "contrast":
        return claim["what"], value(cell), seeds, cell.status
    return claim["what"], claim["data"], value(cell), seeds, cell.status


def value(cell):
    """`5.43 [5.20, 5.66]`, or a dash where no run answers the cell."""
    i = cell.interval
    return f"{i.mean:.2f} [{i.low:.2f}, {i.high:.2f}]" if i else "—"


def split(cells, kind):
    """(cells of one kind that runs answer, those without a run)."""
    cells = [c for c in cells if c.kind == kind]
    return [c for c in cells if c.interval], [c for c in cells if not c.interval]


def tables(cells, kind):
    """Markdown of the cells of one kind: a table of those that runs answer, the others folded away below it."""
    answered, waiting = split(cells, kind)
    text = table(answered, kind)
    if waiting:
        text += f"\n<details><summary>{waiting_line(waiting, kind)}</summary>\n\n{table(waiting, kind)}\n</details>\n"
    return text


def waiting_line(cells, kind):
    count = f"{len(cells)} {'cell' if len(cells) == 1 else 'cells'}"
    return f"{HEADS[kind][0]}: {count} without a run"


def table(cells, kind):
    """Markdown table; empty when there are no cells."""
    if not cells:
        return ""
    lines = [HEADS[kind], ["---"] * len(HEADS[kind]), *map(row, cells)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def on_card(cell):
    """Whether a cell stands in its paper's card: what claims.toml marks as `headline` or `card`."""
    return bool(cell.claim.get("headline") or cell.claim.get("card"))


def headlines(paper, cells=None):
    """Markdown of the cells of a paper's card that runs answer, for its notebook; NOTES.md has every cell."""
    shown = [c for c in cells or claims.cells(paper) if on_card(c) and c.interval]
    return "\n".join(filter(None, (table([c for c in shown if c.kind == kind], kind) for kind in HEADS)))


def notes_block(paper, cells):
    """The generated part of a paper's NOTES.md; its tables.py, if any, adds one of its own by `comparison(records)`."""
    blocks = [tables(cells, kind) for kind in HEADS]
    if find_spec(f"facepapers.papers.{paper}.tables"):
        blocks.append(import_module(f"facepapers.papers.{paper}.tables").comparison(runs.recorded(paper)))
    figures = entries(Path(paths.RECORDED, paper, "figures"), "*.png")
    pictures = [f"![{f.stem}](../../results/{paper}/figures/{f.name})\n" for f in figures]
    note = (
        "Intervals cover seeds (Student's t) and test samples, each counted once; with one seed they cover the "
        f"samples alone. A gain is positive when the first-named side is better. `make why CELL={paper}.<claim>` "
        "explains a cell, `make verify` recomputes all of them.\n"
    )
    more = [*pictures, *coverage_block(paper), *speed_block(paper), *outside_block(paper)]
    return "\n".join([*filter(None, blocks), note, *more])


def coverage_block(paper):
    """How often simulated intervals held the truth, from results/coverage.csv, if it has lines of the paper."""
    path = Path(paths.RECORDED, "coverage.csv")
    rows = list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []
    rows = [r for r in rows if r["paper"] == paper]
    if not rows:
        return []
    places = dict.fromkeys(tuple(r[key] for key in COVERED) for r in rows)
    known = {(*(r[key] for key in COVERED), r["form"]): r for r in rows}
    forms = {name: words for name, words in FORMS.items() if any(r["form"] == name for r in rows)}
    lines = [(*COVERED.values(), *forms.values()), ["---"] * (len(COVERED) + len(forms))]
    lines += [(*place, *(covered(known.get((*place, form))) for form in forms)) for place in places]
    text = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    counts = sorted({int(r["repetitions"]) for r in rows})
    note = (
        "**How often intervals hold the truth**, in percent, of those that promise 90 / 95. Simulated "
        f"{' or '.join(map(str, counts))} times each, on samples and runs drawn as like the named rows' records, with "
        "runs that differ by chance on single samples (alike) or also as wholes (apart): "
        "`python -m facepapers.common.tools.coverage`. In quadrature: both halves added so, as this ledger did at "
        "first. Folds: from the ten folds' accuracies alone."
    )
    if any(r["form"] == "ours" and short_of(r) for r in rows):
        note += " † ours misses by more than two points and the simulation's error: read such an interval as too short."
    note += "\n"
    return [f"{note}\n{text}"]


def covered(row):
    """`90.4 / 95.1`, or a dash where that was not simulated; † where ours is too short."""
    if not row:
        return "—"
    mark = " †" if row["form"] == "ours" and short_of(row) else ""
    return f"{float(row['covered_90_pct']):.1f} / {float(row['covered_95_pct']):.1f}{mark}"


def short_of(row):
    """Whether a line's intervals hold the truth less often than promised: by two points and two standard errors."""
    allowed = {p: p - 2 - 2 * (p * (100 - p) / int(row["repetitions"])) ** 0.5 for p in (90, 95)}
    return any(float(row[f"covered_{p}_pct"]) < least for p, least in allowed.items())


def speed_block(paper):
    """The recorded comparisons of `make bench`, if there are any: [Markdown]."""
    rows = recorded_table(Path(paths.RECORDED, paper, "bench.csv"), (*BENCH, "date", "device", "threads", "torch"))
    if not rows:
        return []
    one = rows[0]
    head = ("speed, in one run", "ours", "ms", "other", "ms", "other / ours")
    lines = [head, ["---"] * len(head), *([r[key] for key in BENCH] for r in rows)]
    table = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    return [
        f"{table}\n`make bench` of {one['date']}: {one['device']}, {one['threads']} threads, torch {one['torch']}.\n"
    ]


def outside_block(paper):
    """The comparisons of results/outside.csv with code that `make bench` cannot run, if there are any: [Markdown]."""
    keys = ("what", "peer", "commit", "faster", "smaller", "conditions")
    rows = [r for r in recorded_table(Path(paths.RECORDED, "outside.csv"), ("paper", *keys)) if r["paper"] == paper]
    if not rows:
        return []
    head = ("speed, measured outside", "against", "commit", "times faster", "times smaller", "conditions")
    lines = [head, ["---"] * len(head), *([r[key] or "—" for key in keys] for r in rows)]
    return ["".join("| " + " | ".join(line) + " |\n" for line in lines)]


def recorded_table(path, columns):
    """Rows (list of dicts) of a table beside the records, none where it is not there.

    UserError unless it has these columns, and every row as many values.
    """
    if not path.exists():
        return []
    with storage.open_text(path, storage.GIT) as handle:
        rows = list(csv.DictReader(handle))
    short = [number for number, row in enumerate(rows, 2) if None in row or None in row.values()]
    if not rows or short or not {*columns} <= rows[0].keys():
        what = f"row {short[0]} is" if short else "it is"
        raise cli.UserError(f"{path}: {what} no row of {', '.join(columns)}; {storage.GIT}")
    return rows


def precision_block(papers):
    """One sentence: the contrasts that claims mark to be checked in both precisions, and what the runs give."""
    parts = []
    for paper in papers:
        if cells := claims.in_each_precision(paper):
            what, seeds = cells["bf16"].claim["what"], " / ".join(str(len(c.records)) for c in cells.values())
            gains = " / ".join(f"{value(c)} {c.status}" for c in cells.values())
            parts.append(f"{paper.replace('_', '-')}, {what}: {gains} ({seeds} seeds)")
    return f"One contrast per paper's demo, in bf16 / fp32: {'; '.join(parts)}." if parts else ""


def insert(text, name, block, path):
    """`text` with the part between the markers of `name` replaced. UserError when the markers are missing."""
    begin, end = BEGIN.format(name=name), END.format(name=name)
    if begin not in text or end not in text:
        raise cli.UserError(f"{path}: lacks the lines {begin!r} and {end!r} around the generated table; restore them")
    before, rest = text.split(begin, 1)
    return f"{before}{begin}\n{block}\n{end}{rest.split(end, 1)[1]}"
