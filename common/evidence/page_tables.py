"""The results page's tables: a row for each cell, and behind its number the chain that leads to it."""

from facepapers.common.evidence import cards, chain, statuses
from facepapers.common.evidence.claims import Cell
from facepapers.common.evidence.html import Html, join, link, tag
from facepapers.common.evidence.plot import Scales, mark, plot
from facepapers.common.evidence.tables import on_card, split
from facepapers.common.protocols.metrics import Metric

TITLES = {"level": "Published numbers", "contrast": "Claims", "measured": "Measured by us"}
HINTS = {
    "level": "The line is the published number, the grey band its tolerance, the dot ours with its interval; further "
    "right is a larger number. All rows of one metric have one scale.",
    "contrast": "The dot is the gain of the first-named side with its interval, the line is no gain, the grey band "
    "the margin that was fixed beforehand, if any. An interval that crosses the line or the band decides nothing. "
    "All rows of one metric have one scale.",
    "measured": "Nothing comparable is published for these. Compare rows of the same data and metric alone.",
}
COLUMNS = {
    "level": ("cell", "published", "ours", "ours beside published", "seeds", "status"),
    "contrast": ("claim", "gain", "gain beside none", "seeds", "verdict"),
    "measured": ("cell", "data", "ours", "seeds", "status"),
}
FACTS = {  # of the chain, in the page's order and words
    "ours": "ours", "confidence": "confidence of its interval", "status": "status", "metric": "metric",
    "published": "published", "source": "source",
    "selection": "their selection", "n_runs": "their runs", "tolerance": "tolerance",
    "tolerance_reason": "its reason", "reference": "unlike", "boxes": "protocol",
    "equivalence_margin": "margin of equivalence", "equivalence_reason": "its reason",
    "fixed before": "margin fixed before",
    "judged": "judged by it", "planned": "planned",
}  # fmt: skip
SORTLESS = ("ours beside published", "gain beside none")  # pictures of the column before


def shown(paper: str) -> str:
    return paper.replace("_", "-")


def of_kind(paper: str, kind: str, cells: list[Cell]) -> list[Html]:
    """The tables of one kind: those with runs (of measurements those of the card), then folded the others."""
    answered, waiting = split(cells, kind)
    first, rest = sorted(answered, key=lambda c: not c.claim.get("headline")), []
    if kind == "measured" and any(map(on_card, answered)):
        first, rest = [c for c in answered if on_card(c)], [c for c in answered if not on_card(c)]
    scales = Scales(answered)
    parts = [tag("h3", TITLES[kind]), tag("p", HINTS[kind], class_="hint")] if answered or waiting else []
    parts += [table(first, kind, scales, f"{TITLES[kind]}, {shown(paper)}")] if first else []
    for some, text in ((rest, f"{len(rest)} further measurements"), (waiting, f"{len(waiting)} without a run")):
        if some:
            inside = table(some, kind, scales, f"{text}, {shown(paper)}")
            parts.append(tag("details", tag("summary", text), inside, class_="group"))
    return [tag("div", *parts, class_="group")] if parts else []


def table(cells: list[Cell], kind: str, scales: Scales, label: str) -> Html:
    head = [
        tag("th", text, scope="col")
        if text in SORTLESS
        else tag("th", tag("button", text, type="button"), scope="col", data_name=text)
        for text in COLUMNS[kind]
    ]
    bodies = [body(cell, scales, order) for order, cell in enumerate(cells)]
    return scrolls(tag("table", tag("thead", tag("tr", *head)), *bodies), label)


def scrolls(inside: Html, label: str) -> Html:
    """A box that scrolls sideways by itself, also by keyboard."""
    return tag("div", inside, class_="scrolls", tabindex="0", role="region", aria_label=label)


def body(cell: Cell, scales: Scales, order: int) -> Html:
    """A cell's row, and below it the row with its chain, as one tbody: sorting keeps them together."""
    status = statuses.status(cell.status)
    word = tag("td", mark(status), tag("span", cell.status, class_="word"), class_=f"status {status.tone}",
               data_key=f"{statuses.TONES.index(status.tone)} {cell.status}")  # fmt: skip
    about = [tag("small", cell.metric.label, " ", direction(cell.metric))]
    about += [tag("small", cell.claim["boxes"])] if "boxes" in cell.claim else []
    about += [tag("small", cards.finding(cell), class_="finding")] if cards.finding(cell) else []
    head = tag("th", cell.claim["what"], *about, scope="row")
    picture = tag("td", plot(cell, scales, status.tone))
    if cell.kind == "level":
        published = tag("td", cell.claim["published"], class_="number")
        columns = [published, number(cell), picture, seeds(cell), word]
    elif cell.kind == "contrast":
        columns = [number(cell), picture, seeds(cell), word]
    else:
        columns = [tag("td", cell.claim["data"]), number(cell), seeds(cell), word]
    row = tag("tr", head, *columns, id=f"row.{cell.name}")
    chosen = "cell headline" if cell.claim.get("headline") else "cell"
    return tag("tbody", row, unfolded(cell, 1 + len(columns), status), class_=chosen, data_name=cell.name,
               data_paper=cell.paper, data_status=cell.status, data_order=order)  # fmt: skip


def direction(metric: Metric) -> Html:
    """An arrow to the better numbers."""
    better, arrow = ("lower", "↓") if metric.lower_is_better else ("higher", "↑")
    return tag("span", arrow, title=f"{better} is better", role="img", aria_label=f"{better} is better")


def number(cell: Cell) -> Html:
    """The number with its interval, a link to its chain."""
    i, target = cell.interval, f"#{cell.name}"
    if i is None:
        return tag("td", link(target, "—", aria_label=f"no run: {cell.name}"), class_="number", data_key="")
    inside = tag("b", f"{i.mean:.2f}"), " ", tag("span", f"[{i.low:.2f}, {i.high:.2f}]")
    return tag("td", link(target, *inside), class_="number", data_key=f"{i.mean:.6g}")


def seeds(cell: Cell) -> Html:
    """How many seeds, each a link to its record; of a contrast, to the first-named side's."""
    links = [link(record_path(r), r["config"]["seed"], title=r["run"]) for r in cell.records]
    inside = [tag("b", len(links)), " ", tag("small", "(", join(*links, between=" "), ")")] if links else ["—"]
    return tag("td", *inside, class_="number", data_key=len(links) or "")


def record_path(record: dict, name: str = "run.json") -> str:
    return f"{record['paper']}/{record['run']}/{name}"


def unfolded(cell: Cell, width: int, status: statuses.Status) -> Html:
    """The row that a number's link opens: what it is compared with, and each run behind it."""
    facts = chain.of_cell(cell) | {"status": f"{status.word}: {status.meaning}"}
    items = [(name, facts[key]) for key, name in FACTS.items() if key in facts]
    items.append(("card", link(f"../papers/{cell.paper}/README.md", f"papers/{cell.paper}/README.md")))
    if not cell.records:
        items.append(("runs", chain.unanswered(cell)))
    close = link(f"#row.{cell.name}", "close", aria_label=f"close {cell.name}")
    title = tag("h4", tag("code", cell.name), close)
    listed = tag("dl", *(join(tag("dt", name), tag("dd", text)) for name, text in items), class_="facts")
    inside = tag("div", title, listed, *behind(cell), class_="inside")
    return tag("tr", tag("td", inside, colspan=width), class_="chain", id=cell.name)


def behind(cell: Cell) -> list[Html]:
    """[Table of a cell's runs], empty without any."""
    lines = []
    for side, found in chain.sides(cell):
        for record in found:
            facts = chain.of_run(record)
            lines.append(tag("tr", *(tag("td", text) for text in (
                link(record_path(record), record["run"]), f"{chain.measured(record, cell.metric):.4f}", side,
                facts["overrides"], facts["precision"], short(record["source"]), record["environment"]["device"],
                f"{record['data']['name']} {record['data'].get('fingerprint', '')[:12]}",
                link(record_path(record, "predictions.npz"), record["predictions_sha256"][:12]),
            ))))  # fmt: skip
    names = ("run", "value", "row", "overrides", "precision", "commit", "machine", "data", "predictions, sha256")
    head = tag("thead", tag("tr", *(tag("th", text, scope="col") for text in names)))
    label = f"Runs of {cell.name}"
    return [scrolls(tag("table", head, tag("tbody", *lines), class_="runs"), label)] if lines else []


def short(source: dict) -> str:
    return f"{(source['commit'] or 'none')[:10]}{', changed' if source['dirty'] else ''}"
