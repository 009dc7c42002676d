"""Tables, verification and provenance: `python -m facepapers.common.tools.report write | verify | why <paper>.<claim>`.

Everything is drawn from `claims.toml` and the committed records; the text between the markers of a README is
written here and nowhere else. `verify` and `why` load neither PyTorch nor a paper's networks: `metrics.py` of a paper,
and `tables.py` if it has one, import NumPy alone.
"""

import difflib
import heapq
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from facepapers.common import cli, paths, storage
from facepapers.common.data import copies
from facepapers.common.evidence import (
    cards,
    chain,
    claims,
    environment,
    export,
    integrity,
    margins,
    model_cards,
    plans,
    runs,
    schema,
)
from facepapers.common.evidence.page import page
from facepapers.common.evidence.tables import HEADS, insert, notes_block, precision_block, value
from facepapers.common.protocols.metrics import Metric
from facepapers.common.training import released


def generated(root: Path = paths.ROOT, *, cells: dict[str, list[claims.Cell]] | None = None) -> dict[Path, str]:
    """Every generated text file, path -> content, from the papers' `cells` (paper -> list; by default computed)."""
    cells = {paper: claims.cells(paper) for paper in claims.papers()} if cells is None else cells
    files, every = papers_files(cells, root), [cell for found in cells.values() for cell in found]
    blocks = {"score": cards.score(every), "results": cards.front_table(every), "precision": precision_block(cells)}
    blocks["mutants"] = cards.mutants(root)
    path = Path(root, "README.md")
    files[path] = filled(path, blocks)
    path = Path(root, "data", "README.md")
    files[path] = filled(path, {"copies": copies.table(copies.read())})
    files |= {Path(root, "results", name): text for name, text in export.files(every).items()}
    files[Path(root, "results", "index.html")] = page(every)
    return files


def papers_files(cells: dict[str, list[claims.Cell]], root: Path) -> dict[Path, str]:
    """The papers' cards and notes, path -> content, from their `cells` (paper -> list)."""
    files = {}
    for paper, found in cells.items():
        folder = Path(root, "papers", paper)
        blocks = {"findings": cards.findings(paper, found), "results": cards.card_block(paper, found)}
        files[folder / "README.md"] = filled(folder / "README.md", blocks)
        files[folder / "NOTES.md"] = filled(folder / "NOTES.md", {"results": notes_block(paper, found)})
    return files


def filled(path: Path, blocks: dict[str, str]) -> str:
    """A file's text with `blocks`, name -> Markdown, between its markers. UserError where it or they are missing."""
    if not path.exists():
        raise cli.UserError(f"{path}: no such file; write it with markers of {', '.join(blocks)}, as other papers do")
    text = storage.read_text(path, "restore it from git")
    for name, block in blocks.items():
        text = insert(text, name, block, path)
    return text


def write() -> None:
    """Draw the figures, then write every table and the page."""
    for paper in claims.papers():
        drawn = import_module(f"facepapers.papers.{paper}.figures").draw(runs.recorded(paper), figures_folder(paper))
        for path in remove_stale(figures_folder(paper), drawn):
            print(f"removed {path.relative_to(paths.ROOT)}, which is no longer drawn")
    for path, text in generated().items():
        with storage.atomic(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        print(f"wrote {path.relative_to(paths.ROOT)}")


def figures_folder(paper: str) -> Path:
    return paths.RECORDED / paper / "figures"


def remove_stale(folder: Path, drawn: Iterable[Path]) -> list[Path]:
    """Delete the PNG files of a folder that are not among `drawn`, so that no old picture is shown. Returns them."""
    stale = sorted(set(Path(folder).glob("*.png")) - set(drawn))
    for path in stale:
        path.unlink()
    return stale


def verify(paper: str | None = None, verbose: bool = False) -> None:
    """Recompute every metric of every committed record and every cell; raise UserError at the first difference.

    `paper`: that one and its card and notes alone, not the files that all papers share. `verbose` prints each cell.
    """
    started, values, cells = time.perf_counter(), {}, {}
    for name in [paper] if paper else claims.papers():
        records, evidence = runs.recorded(name), claims.Evidence()
        values[name] = sum(check_record(name, record, evidence) for record in records) + check_released(name, evidence)
        integrity.check(name, records)
        margins.check(records)
        cells[name] = claims.cells(name, records, evidence)
        for cell in cells[name] if verbose else ():
            print(f"{cell.status:28s} {cell.name:44s} {published(cell):>12s}  ours {value(cell)}")
    judged = [cell.name for found in cells.values() for cell in found if cell.kind != "measured"]
    plans.check_kept(plans.read(known=judged, paper=paper), judged)
    fresh = papers_files(cells, paths.ROOT) if paper else generated(cells=cells)
    stale = [
        str(p.relative_to(paths.ROOT)) for p, text in fresh.items() if not p.exists() or p.read_bytes() != text.encode()
    ]
    if stale:
        raise cli.UserError(f"stale: {', '.join(stale)}; run `make report` and commit the result")
    tables = f"{paper}'s tables fresh (those of all papers not compared)" if paper else "all tables fresh"
    print(f"{summary(cells, values)}\nverified: {sum(values.values())} metric values recomputed from predictions, "
          f"{tables}, {time.perf_counter() - started:.1f} s")  # fmt: skip


def summary(cells: dict[str, list[claims.Cell]], values: dict[str, int]) -> str:
    """Text: how many cells of each paper have each status, and how many of its metric values were recomputed.

    `cells`: paper -> Cells, `values`: paper -> number.
    """
    counts = {paper: Counter(cell.status for cell in found) for paper, found in cells.items()}
    every = sorted((c for found in cells.values() for c in found), key=lambda c: list(HEADS).index(c.kind))
    lines: list[tuple] = [("cells", *(paper.replace("_", "-") for paper in cells), "all")]
    for status in dict.fromkeys(cell.status for cell in every):
        numbers = [counts[paper][status] for paper in cells]
        lines.append((status, *numbers, sum(numbers)))
    lines.append(("together", *map(len, cells.values()), len(every)))
    lines.append(("metric values", *values.values(), sum(values.values())))
    widths = [max(len(str(line[k])) for line in lines) for k in range(len(lines[0]))]
    first, *others = widths
    aligned = lambda line: "  ".join(f"{text!s:>{width}s}" for text, width in zip(line[1:], others, strict=True))
    return "\n".join(f"{line[0]:{first}s}  {aligned(line)}" for line in lines)


def published(cell: claims.Cell) -> str:
    return f"published {cell.claim['published']}" if cell.kind == "level" else ""


def check_record(paper: str, record: dict, evidence: claims.Evidence) -> int:
    """Recompute a record's metrics from its predictions; returns how many. UserError when anything differs.

    The hash of the history, and the seal that binds both to the settings, are in records of version 2 on.
    """
    schema.check_names(paper, record, record["folder"] / "run.json")
    for name, key in (("predictions.npz", "predictions_sha256"), ("history.csv", "history_sha256")):
        path = record["folder"] / name
        if not path.exists() or (key in record and storage.sha256(path) != record[key]):
            raise cli.UserError(f"{path}: missing or not the file that run.json names; restore it from git")
    predictions, known = evidence.predictions(record), claims.metrics_of(paper)
    for name, recorded in record["metrics"].items():
        if name not in known or not known[name].available(predictions):
            raise cli.UserError(f"{record['folder'] / 'run.json'}: {name} cannot be computed from its predictions")
        again = known[name].value(predictions)
        if not abs(again - recorded) <= 1e-6 * max(1.0, abs(recorded)):
            raise cli.UserError(f"{record['folder'] / 'run.json'}: {name} is {recorded}, its predictions give {again}")
    return len(record["metrics"])


def check_released(paper: str, evidence: claims.Evidence) -> int:
    """Check a paper's released models and the records of their runs; returns how many metrics were recomputed.

    UserError at the first model whose file, numbers or card do not belong together.
    """
    count = 0
    for folder in released.folders(paper):
        if found := model_cards.problems(folder):
            raise cli.UserError(f"{folder}: {found[0]}; restore it from git, or release it again")
        facts = storage.read_json(folder / released.FACTS)
        record = model_cards.source_record(folder, facts)
        count += len(facts["metrics"])
        count += check_record(paper, record, evidence) if record["folder"].name == "run" else 0
    return count


def named(name: str) -> list[str]:
    """(paper, claim's id) of a cell's name. UserError with the nearest names where no claim has it."""
    known = claims.names()
    if not name.strip():
        raise cli.UserError(f"usage: make why CELL=<paper>.<claim>, for example CELL={known[0]}")
    paper, dot, claim_id = name.partition(".")
    cell = f"{paper.replace('-', '_')}{dot}{claim_id}"
    if cell not in known:
        raise cli.UserError(f"no cell {name!r}; the nearest names are {', '.join(nearest(cell, known))}")
    return cell.split(".", 1)


def nearest(name: str, known: Sequence[str], count: int = 3) -> list[str]:
    """The `count` names of `known` that are most like `name`, which may also be a claim's id without its paper."""

    def likeness(text):
        return difflib.SequenceMatcher(None, name, text).ratio()

    return heapq.nlargest(count, known, key=lambda full: max(likeness(full), likeness(full.partition(".")[2])))


def why(name: str) -> None:
    """Print the chain cell -> claim -> runs -> settings, source, environment, data, predictions."""
    cell = claims.cell(*named(name))
    print(f"{cell.name}: {cell.claim['what']}")
    for key, text in chain.of_cell(cell).items():
        print(f"  {key:18s} {text}")
    if not cell.records:
        print(f"  {chain.unanswered(cell)}")
    for side, records in chain.sides(cell):
        for record in records:
            explain(record, cell.metric, side if cell.kind == "contrast" else "")


def explain(record: dict, metric: Metric, side: str) -> None:
    """Print where one run's number comes from."""
    predictions = runs.read_predictions(record["folder"] / "predictions.npz")
    print(f"\n  run {record['run']}{f' ({side})' if side else ''}")
    value = f"{metric.value(predictions):.4f} ({record['selection']} weights)"
    for key, text in {metric.name: value, **chain.of_run(record)}.items():
        print(f"    {key:13s} {text}")
        if key == "commit":
            print(f"    changed since {since(environment.changed_since(record))}")


def since(names: Sequence[str] | None, most: int = 8) -> str:
    """What a record's source has changed, as words: at most so many names."""
    if names is None:
        return "unknown: the record names no modules, and git does not have its commit here"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "nothing that the run imported"


@dataclass(frozen=True)
class Write:
    """Rewrite every table, figure and page from claims and records."""


@dataclass(frozen=True)
class Verify:
    """Recompute every number from the committed predictions."""

    paper: str | None = None  # one paper and its card alone
    verbose: bool = False  # print each cell; -v for short


@dataclass(frozen=True)
class Why:
    """Tell where a number comes from."""

    cell: str  # <paper>.<claim>


def main(argv: Sequence[str]) -> None:
    """Do what the subcommand says."""
    argv = ["--verbose" if word == "-v" else word for word in argv]
    options = cli.command(Write | Verify | Why, argv, "python -m facepapers.common.tools.report", __doc__)
    if paths.INSTALLED:
        raise cli.UserError(f"{paths.ROOT}: no records in an installed package; run this in a clone of the repository")
    if isinstance(options, Write):
        write()
    elif isinstance(options, Verify):
        verify(known_paper(options.paper), options.verbose)
    else:
        why(options.cell)


def known_paper(name: str | None) -> str | None:
    """The paper of a name with - or _, None for None. UserError for an unknown one."""
    if name is not None and name.replace("-", "_") not in claims.papers():
        raise cli.UserError(f"no paper {name!r}; known are {', '.join(claims.papers())}")
    return name and name.replace("-", "_")


if __name__ == "__main__":
    cli.entry(main)
