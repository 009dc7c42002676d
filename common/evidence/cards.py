"""The front page and the papers' cards as Markdown: the score, the headline rows, the findings, the picture."""

import re
from collections import Counter
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from facepapers.common import cli, paths, storage
from facepapers.common.evidence import claims, tables
from facepapers.common.evidence.captions import captions

VERDICTS = ("replicated", "better", "worse")  # of a published number; a contrast's are supported and refuted
FRONT = ("paper", "what", "published", "ours", "unit", "seeds", "status", "finding")
PER_PAPER = 3  # headline rows on the front page


def score(cells):
    """One line: how many published numbers and claims there are, and what became of them."""
    levels, contrasts = ([c for c in cells if c.kind == kind] for kind in ("level", "contrast"))
    beside = sum(c.status == "reference" for c in levels)
    compared = sum(bool(c.interval) for c in levels) - beside
    found = Counter(c.status for c in [*levels, *contrasts])
    verdicts = ", ".join(f"{found[v]} {v}" for v in VERDICTS if found[v] or v == "replicated")
    drawn = sum(c.status in ("supported", "refuted") and c.claim["data"] == "embedded" for c in contrasts)
    of_contrasts = Counter(c.status for c in contrasts)
    equal = f", {of_contrasts['no difference']} without a difference" if of_contrasts["no difference"] else ""
    opened = len(contrasts) - sum(of_contrasts[status] for status in ("supported", "refuted", "no difference"))
    return (
        f"**{len(levels)} published numbers**: {compared} compared ({verdicts}), {beside} beside something unlike "
        f"(`reference`), {len(levels) - compared - beside} waiting for data or not run. "
        f"**{len(contrasts)} claims** of a difference: {found['supported']} supported, "
        f"{found['refuted']} refuted ({drawn} of both on drawn faces){equal}, {opened} open."
    )


def mutants(root):
    """One line: how many listed bugs the tests caught when they were last tried; empty where that was not recorded."""
    path = Path(root, "results", "mutants.json")
    if not path.exists():
        return ""
    found = storage.read_json(path)
    untried = found["listed"] - found["equivalent"] - found["decided"]
    rest = f"; {untried} not tried" if untried else ""
    return (
        f"- Of {found['decided']} realistic bugs, put in one at a time, the tests caught {found['caught']} "
        f"(`make mutants`, {found['date']}{rest})."
    )


def front_table(cells):
    """The front page's table: the headline cells, at most PER_PAPER of a paper. UserError where claims mark more."""
    lines = [FRONT, ["---"] * len(FRONT)]
    for paper in dict.fromkeys(cell.paper for cell in cells):
        shown = [c for c in cells if c.paper == paper and c.claim.get("headline")]
        if len(shown) > PER_PAPER:
            raise cli.UserError(f"papers/{paper}/claims.toml: {len(shown)} headlines; mark {PER_PAPER} at most")
        for cell in shown:
            link, seeds = f"[{paper.replace('_', '-')}](papers/{paper}/README.md)", str(len(cell.records) or "—")
            published = cell.claim.get("published", "—")
            lines.append((link, cell.claim["what"], published, tables.value(cell), unit(cell), seeds, cell.status,
                          finding(cell)))  # fmt: skip
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def unit(cell):
    """`% ↓` where lower is better, `points ↑` for a gain: from the last parentheses of the metric's label."""
    written = re.search(r"\(([^(),]+)[^()]*\)$", cell.metric.label)
    name = written.group(1) if written else ""
    if cell.kind == "contrast":  # a gain is positive when the first side is better, whatever the metric
        return f"{'points' if name == '%' else name} ↑".strip()
    return f"{name} {'↓' if cell.metric.lower_is_better else '↑'}".strip()


def finding(cell):
    """The sentence that claims.toml holds for the cell's present status; nothing once the status is another."""
    return cell.claim.get("finding", {}).get(cell.status, "")


def findings(paper, cells):
    """A card's bullets, from `findings` of claims.toml.

    {id} becomes the cell's value and {id.status} its status, so that no number is typed; other names are those of the
    paper's tables.facts(), if it has one. UserError for an unknown name.
    """
    known = {cell.claim["id"]: cell for cell in cells}
    facts = facts_of(paper)

    def filled(match):
        name, status = match.groups()
        if name in facts and not status:
            return facts[name]
        if name not in known:
            raise cli.UserError(f"papers/{paper}/claims.toml: findings name {name!r}, which is no claim's id")
        cell = known[name]
        return cell.status if status else mean(cell)

    bullets = claims.read(paper)["paper"].get("findings", [])
    return "".join(f"- {re.sub(r'{([a-z0-9-]+)([.]status)?}', filled, bullet)}\n" for bullet in bullets)


def facts_of(paper):
    """{name: text} of the paper's tables.facts(), empty where it has none."""
    if not (paper and find_spec(f"facepapers.papers.{paper}.tables")):
        return {}
    of = getattr(import_module(f"facepapers.papers.{paper}.tables"), "facts", dict)
    return of()


def mean(cell):
    """`5.43`, or a dash where no run answers the cell."""
    return f"{cell.interval.mean:.2f}" if cell.interval else "—"


def card_block(paper, cells):
    """A card's headline tables and one picture, and how much more NOTES.md holds."""
    shown = [c for c in cells if tables.on_card(c)]
    blocks = [tables.tables(shown, kind) for kind in tables.HEADS]
    rest = [c for c in cells if c not in shown]
    answered = sum(bool(c.interval) for c in rest)
    note = (
        f"Intervals cover seeds and test samples; a gain is positive when the first-named side is better. {answered} "
        f"more cells with a run and {len(rest) - answered} without stand in [NOTES.md](NOTES.md), with all pictures "
        f"and speeds; `make why CELL={paper}.<claim>` explains a number.\n"
    )
    return "\n".join([*filter(None, blocks), note, *picture(paper, shown)])


def picture(paper, cells):
    """[Markdown] of the picture of the data and preset that the first answered headline is about, if there is one.

    Contrasts come first: they are about networks that were trained here.
    """
    for cell in sorted(
        (c for c in cells if c.interval), key=lambda c: (not c.claim.get("headline"), c.kind == "level")
    ):
        data, preset = cell.claim["data"], cell.claim["preset"]
        stem = f"{data.replace('+', '-')}-{preset}"
        if Path(paths.RECORDED, paper, "figures", f"{stem}.png").exists():
            words = captions(paper)["ALTERNATIVES"].get(stem, f"Recorded runs on {data}, preset {preset}")
            return [f"![{words}](../../results/{paper}/figures/{stem}.png)\n"]
    return []
