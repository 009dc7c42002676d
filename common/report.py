"""Tables, verification and provenance: `python -m common.report write | verify | why <paper>.<claim>`.

Everything is drawn from `claims.toml` and the committed records; the text between the markers of a README is
written here and nowhere else. `verify` and `why` load neither PyTorch nor a paper's networks: `metrics.py` of a paper,
and `tables.py` if it has one, import NumPy alone.
"""

import csv
import difflib
import heapq
import sys
import time
from collections import Counter
from html import escape
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from common import checkpoint, claims, cli, runs, stats

BEGIN, END = "<!-- generated: {name} -->", "<!-- end of {name} -->"
USAGE = "usage: python -m common.report write | verify [-v] [--paper <paper>] | why <paper>.<claim>"
BENCH = ("what", "ours", "ours_ms", "other", "other_ms", "ratio")  # columns of bench.csv that a card shows
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


def headlines(paper, cells=None):
    """Markdown of a paper's headline cells that runs answer, for its notebook; the card has every cell."""
    shown = [c for c in cells or claims.cells(paper) if c.claim.get("headline") and c.interval]
    return "\n".join(filter(None, (table([c for c in shown if c.kind == kind], kind) for kind in HEADS)))


def paper_block(paper, cells):
    """The generated part of a paper's card; its tables.py, if any, adds one of its own by `comparison(records)`."""
    blocks = [tables(cells, kind) for kind in HEADS]
    if find_spec(f"papers.{paper}.tables"):
        blocks.append(import_module(f"papers.{paper}.tables").comparison(runs.recorded(paper)))
    figures = sorted(Path(runs.RECORDED, paper, "figures").glob("*.png"))
    pictures = [f"![{f.stem}](../../results/{paper}/figures/{f.name})\n" for f in figures]
    note = (
        "Intervals cover seeds (Student's t) and test samples, added in quadrature; with one seed they cover the "
        f"samples alone. A gain is positive when the first-named side is better. `make why CELL={paper}.<claim>` "
        "explains a cell, `make verify` recomputes all of them.\n"
    )
    return "\n".join([*filter(None, blocks), note, *pictures, *speed_block(paper), *outside_block(paper)])


def speed_block(paper):
    """The recorded comparisons of `make bench`, if there are any: [Markdown]."""
    path = Path(runs.RECORDED, paper, "bench.csv")
    if not path.exists():
        return []
    rows = list(csv.DictReader(path.read_text().splitlines()))
    one = rows[0]
    head = ("speed, in one run", "ours", "ms", "other", "ms", "other / ours")
    lines = [head, ["---"] * len(head), *([r[key] for key in BENCH] for r in rows)]
    table = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    return [
        f"{table}\n`make bench` of {one['date']}: {one['device']}, {one['threads']} threads, torch {one['torch']}.\n"
    ]


def outside_block(paper):
    """The comparisons of results/outside.csv with code that `make bench` cannot run, if there are any: [Markdown]."""
    path = Path(runs.RECORDED, "outside.csv")
    rows = list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []
    rows = [r for r in rows if r["paper"] == paper]
    if not rows:
        return []
    head = ("speed, measured outside", "against", "commit", "times faster", "times smaller", "conditions")
    keys = ("what", "peer", "commit", "faster", "smaller", "conditions")
    lines = [head, ["---"] * len(head), *([r[key] or "—" for key in keys] for r in rows)]
    return ["".join("| " + " | ".join(line) + " |\n" for line in lines)]


def summary_block(all_cells):
    """The generated table of the top-level README: each paper's headline cells, and published ones that were run."""
    head = ("paper", "cell", "published", "ours", "status")
    lines, notes = [head, ["---"] * len(head)], []
    for paper in dict.fromkeys(cell.paper for cell in all_cells):
        cells = [c for c in all_cells if c.paper == paper]
        link = f"[{paper.replace('_', '-')}](papers/{paper}/README.md)"
        shown = [c for c in cells if c.claim.get("headline") or (c.records and c.kind == "level")]
        for cell in shown:
            published = cell.claim.get("published", "claim" if cell.kind == "contrast" else "—")
            lines.append((link, cell.claim["what"], published, value(cell), cell.status))
        rest = [c for c in cells if c not in shown and c.claim["preset"] != "demo"]
        answered = sum(bool(c.interval) for c in rest)
        if rest:
            notes.append(f"{link}: {answered} with a run, {len(rest) - answered} without")
    table = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    return table + (f"\nFurther cells on real data in the cards: {'; '.join(notes)}.\n" if notes else "")


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


def generated(root=runs.ROOT, *, cells=None):
    """Every generated text file, path -> content, from the papers' `cells` (paper -> list; by default computed)."""
    cells = {paper: claims.cells(paper) for paper in claims.papers()} if cells is None else cells
    files, every = cards(cells, root), [cell for found in cells.values() for cell in found]
    path = Path(root, "README.md")
    text = insert(path.read_text(), "results", summary_block(every), path)
    files[path] = insert(text, "precision", precision_block(cells), path)
    files[Path(root, "results", "index.html")] = page(every)
    return files


def cards(cells, root):
    """The papers' cards, path -> content, from their `cells` (paper -> list)."""
    files = {}
    for paper, found in cells.items():
        path = Path(root, "papers", paper, "README.md")
        files[path] = insert(path.read_text(), "results", paper_block(paper, found), path)
    return files


def write():
    """Draw the figures, then write every table and the page."""
    for paper in claims.papers():
        records = runs.recorded(paper)
        import_module(f"papers.{paper}.figures").draw(records, runs.RECORDED / paper / "figures")
    for path, text in generated().items():
        with checkpoint.atomic(path) as temporary:
            temporary.write_text(text)
        print(f"wrote {path.relative_to(runs.ROOT)}")


def verify(paper=None, verbose=False):
    """Recompute every metric of every committed record and every cell; raise UserError at the first difference.

    `paper`: that one and its card alone, not the files that all papers share. `verbose` prints each cell.
    """
    started, values, cells = time.perf_counter(), {}, {}
    for name in [paper] if paper else claims.papers():
        records, evidence = runs.recorded(name), claims.Evidence()
        values[name] = sum(check_record(name, record, evidence) for record in records)
        cells[name] = claims.cells(name, records, evidence)
        for cell in cells[name] if verbose else ():
            print(f"{cell.status:14s} {cell.name:44s} {published(cell):>12s}  ours {value(cell)}")
    fresh = cards(cells, runs.ROOT) if paper else generated(cells=cells)
    stale = [str(p.relative_to(runs.ROOT)) for p, text in fresh.items() if not p.exists() or p.read_text() != text]
    if stale:
        raise cli.UserError(f"stale: {', '.join(stale)}; run `make report` and commit the result")
    tables = f"{paper}'s tables fresh (those of all papers not compared)" if paper else "all tables fresh"
    print(f"{summary(cells, values)}\nverified: {sum(values.values())} metric values recomputed from predictions, "
          f"{tables}, {time.perf_counter() - started:.1f} s")  # fmt: skip


def summary(cells, values):
    """Text: how many cells of each paper have each status, and how many of its metric values were recomputed.

    `cells`: paper -> Cells, `values`: paper -> number.
    """
    counts = {paper: Counter(cell.status for cell in found) for paper, found in cells.items()}
    every = sorted((c for found in cells.values() for c in found), key=lambda c: list(HEADS).index(c.kind))
    lines = [("cells", *(paper.replace("_", "-") for paper in cells), "all")]
    for status in dict.fromkeys(cell.status for cell in every):
        numbers = [counts[paper][status] for paper in cells]
        lines.append((status, *numbers, sum(numbers)))
    lines.append(("together", *map(len, cells.values()), len(every)))
    lines.append(("metric values", *values.values(), sum(values.values())))
    widths = [max(len(str(line[k])) for line in lines) for k in range(len(lines[0]))]
    first, *others = widths
    aligned = lambda line: "  ".join(f"{text!s:>{width}s}" for text, width in zip(line[1:], others, strict=True))
    return "\n".join(f"{line[0]:{first}s}  {aligned(line)}" for line in lines)


def published(cell):
    return f"published {cell.claim['published']}" if cell.kind == "level" else ""


def check_record(paper, record, evidence):
    """Recompute a record's metrics from its predictions; returns how many. UserError when anything differs."""
    path = record["folder"] / "predictions.npz"
    if not path.exists() or checkpoint.sha256(path) != record["predictions_sha256"]:
        raise cli.UserError(f"{path}: missing or not the file that run.json names; restore it from git")
    predictions, known = evidence.predictions(record), claims.metrics_of(paper)
    for name, recorded in record["metrics"].items():
        if name not in known or not known[name].available(predictions):
            raise cli.UserError(f"{record['folder'] / 'run.json'}: {name} cannot be computed from its predictions")
        again = known[name].value(predictions)
        if not abs(again - recorded) <= 1e-6 * max(1.0, abs(recorded)):
            raise cli.UserError(f"{record['folder'] / 'run.json'}: {name} is {recorded}, its predictions give {again}")
    return len(record["metrics"])


def named(name):
    """(paper, claim's id) of a cell's name. UserError with the nearest names where no claim has it."""
    known = claims.names()
    if not name.strip():
        raise cli.UserError(f"usage: make why CELL=<paper>.<claim>, for example CELL={known[0]}")
    paper, dot, claim_id = name.partition(".")
    name = f"{paper.replace('-', '_')}{dot}{claim_id}"
    if name not in known:
        raise cli.UserError(f"no cell {name!r}; the nearest names are {', '.join(nearest(name, known))}")
    return name.split(".", 1)


def nearest(name, known, count=3):
    """The `count` names of `known` that are most like `name`, which may also be a claim's id without its paper."""
    likeness = lambda text: difflib.SequenceMatcher(None, name, text).ratio()
    return heapq.nlargest(count, known, key=lambda full: max(likeness(full), likeness(full.partition(".")[2])))


def why(name):
    """Print the chain cell -> claim -> runs -> settings, source, environment, data, predictions."""
    cell = claims.cell(*named(name))
    print(f"{cell.name}: {cell.claim['what']}\n  kind      {cell.kind}\n  metric    {cell.metric.label}")
    for key in ("published", "source", "selection", "n_runs", "tolerance", "tolerance_reason", "boxes"):
        if key in cell.claim:
            print(f"  {key:9s} {cell.claim[key]}")
    print(f"  ours      {value(cell)}\n  status    {cell.status}")
    if not cell.records:
        print(f"  no committed run has data {cell.claim['data']!r} and preset {cell.claim['preset']!r} for this cell")
    sides = [(cell.claim.get("better", ""), cell.records), (cell.claim.get("than", ""), cell.others)]
    for side, records in sides:
        for record in records:
            explain(record, cell.metric, side)


def explain(record, metric, side):
    """Print where one run's number comes from."""
    source, env = record["source"], record["environment"]
    same = (
        "this checkout's" if source["sha256"] == runs.source_sha256(record["paper"]) else "other than this checkout's"
    )
    predictions = runs.read_predictions(record["folder"] / "predictions.npz")
    print(f"\n  run {record['run']} {f'({side})' if side else ''}")
    lines = {
        metric.name: f"{metric.value(predictions):.4f} ({record['selection']} weights)",
        "changed": record["overrides"] or "nothing: the preset's own settings",
        "precision": runs.precision_of(record) + (", forced" if "precision" in record["overrides"] else ""),
        "commit": f"{source['commit']}{' with uncommitted changes' if source['dirty'] else ''}; sources {same}",
        "machine": f"{env['device']}, {env['threads']} threads, torch {env['torch']}, Python {env['python']}"
        f"{', compiled' if env.get('compiled') else ''}",
        "time": f"{record['started']}, {record['seconds']:.0f} s training, {record['samples_per_s']} samples/s",
        "data": ", ".join(f"{k} {v}" for k, v in record["data"].items()),
        "weights": (record["weights"] or {}).get("sha256"),
        "predictions": f"{record['folder'].name}/predictions.npz, sha256 {record['predictions_sha256']}",
        "settings": ", ".join(f"{k}={v}" for k, v in record["config"].items()),
    }
    for key, text in lines.items():
        print(f"    {key:12s} {text}")


STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0;width:100%}
th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #ddd}
td.replicated,td.supported{color:#0a6b2d}td.refuted,td.worse{color:#a11}td{vertical-align:top}
img{max-width:100%;margin:1rem 0}small{color:#666}
"""


def page(all_cells):
    """results/index.html: one static page, readable offline."""
    parts = []
    for paper in dict.fromkeys(c.paper for c in all_cells):
        about, cells = claims.read(paper)["paper"], [c for c in all_cells if c.paper == paper]
        parts.append(f"<h2>{escape(about['title'])}</h2><p>{escape(about['authors'])}, {escape(about['venue'])}, "
                     f"<a href='{about['url']}'>{about['url']}</a></p>")  # fmt: skip
        for kind in HEADS:
            answered, waiting = split(cells, kind)
            parts.append(html_table(answered, kind))
            if waiting:
                folded = f"<summary>{escape(waiting_line(waiting, kind))}</summary>{html_table(waiting, kind)}"
                parts.append(f"<details>{folded}</details>")
        figures = sorted(Path(runs.RECORDED, paper, "figures").glob("*.png"))
        parts += [f"<img src='{paper}/figures/{f.name}' alt='{f.stem}'>" for f in figures]
        parts.append("<h3>Records</h3><ul>" + "".join(record_item(r) for r in runs.recorded(paper)) + "</ul>")
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>Results</title><style>{STYLE}</style>"
        f"<h1>Published and ours</h1><p><small>Generated by make report from claims and records. "
        f"Level intervals {stats.LEVEL_CONFIDENCE:.0%}, contrasts {stats.CONTRAST_CONFIDENCE:.0%}.</small></p>"
        + "\n".join(parts)
        + "</html>\n"
    )


def html_table(cells, kind):
    if not cells:
        return ""
    rows = [row(c) for c in cells]
    head = "".join(f"<th>{escape(h)}</th>" for h in HEADS[kind])
    body = "".join(
        "<tr>" + "".join(f"<td class='{escape(t) if t == r[-1] else ''}'>{escape(t)}</td>" for t in r) + "</tr>"
        for r in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def record_item(record):
    folder = f"{record['paper']}/{record['run']}"
    return (
        f"<li><a href='{folder}/run.json'>{record['run']}</a>, <a href='{folder}/history.csv'>history</a>, "
        f"<a href='{folder}/predictions.npz'>predictions</a>: {record['seconds'] / 60:.0f} min on "
        f"{escape(record['environment']['device'])}</li>"
    )


def main(argv):
    command, rest = (argv[0], argv[1:]) if argv else ("", [])
    if command == "write" and not rest:
        write()
    elif command == "verify":
        verify(*verify_options(rest))
    elif command == "why" and len(rest) == 1:
        why(rest[0])
    else:
        raise cli.UserError(USAGE)


def verify_options(argv):
    """(paper or None, whether to print each cell) of the words after `verify`."""
    paper, rest = cli.take_option(argv, "paper")
    if set(rest) - {"-v"}:
        raise cli.UserError(USAGE)
    if paper is not None and paper.replace("-", "_") not in claims.papers():
        raise cli.UserError(f"no paper {paper!r}; known are {', '.join(claims.papers())}")
    return paper and paper.replace("-", "_"), bool(rest)


if __name__ == "__main__":
    sys.path.insert(0, str(runs.ROOT))
    cli.entry(main, about=__doc__)
