"""results/index.html: every number of ours on one page that needs no network, each with the chain behind it."""

import re
import zlib
from pathlib import Path
from string import Template

from facepapers.common import paths
from facepapers.common.cli import UserError
from facepapers.common.data.archive import entries
from facepapers.common.evidence import cards, chain, claims, runs, statistics, statuses
from facepapers.common.evidence.captions import captions
from facepapers.common.evidence.claims import Cell
from facepapers.common.evidence.html import Html, join, link, tag
from facepapers.common.evidence.page_tables import TITLES, of_kind, record_path, scrolls, shown
from facepapers.common.evidence.plot import SHAPES, mark
from facepapers.common.evidence.statuses import Status

HERE = Path(__file__).parent
PNG = b"\x89PNG\r\n\x1a\n"  # how such a file begins


def page(all_cells: list[Cell]) -> str:
    """The page as text; the same cells and records give the same bytes."""
    papers = list(dict.fromkeys(cell.paper for cell in all_cells))
    about = {paper: claims.read(paper)["paper"] for paper in papers}
    found = statuses.present(all_cells)
    read = lambda name: (HERE / name).read_text(encoding="utf-8")
    return Template(read("page.html")).substitute(
        style=read("page.css"),
        script=read("page.js"),
        shapes=SHAPES,
        score=score(all_cells),
        sections=join(*(tag("li", link(f"#{paper}", shown(paper))) for paper in papers), between="\n"),
        papers=join(*(tag("option", shown(paper), value=paper) for paper in papers)),
        statuses=join(*(tag("option", status.word) for status in found)),
        overview=overview(all_cells, papers, found),
        legend=legend(all_cells, found),
        level=f"{statistics.LEVEL_CONFIDENCE:.0%}".rstrip("%"),
        contrast=f"{statistics.CONTRAST_CONFIDENCE:.0%}".rstrip("%"),
        content=join(*(section(paper, about[paper], [c for c in all_cells if c.paper == paper]) for paper in papers)),
    )


def score(cells: list[Cell]) -> Html:
    """The front page's line, from Markdown."""
    bold = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", cards.score(cells))
    return Html(re.sub(r"`(.+?)`", r"<code>\1</code>", bold))


def overview(cells: list[Cell], papers: list[str], found: list[Status]) -> Html:
    """A table of papers: how many cells of each kind have which status."""
    lines = []
    for paper in papers:
        counts = [chips([c for c in cells if c.paper == paper and c.kind == kind], found, paper) for kind in TITLES]
        named = zip(TITLES.values(), counts, strict=True)
        lines.append(tag("tr", tag("th", link(f"#{paper}", shown(paper)), scope="row"),
                         *(tag("td", each, data_kind=title) for title, each in named)))  # fmt: skip
    head = tag("tr", *(tag("th", text, scope="col") for text in ("paper", *TITLES.values())))
    return scrolls(tag("table", tag("thead", head), tag("tbody", *lines), class_="overview"), "Overview")


def chips(cells: list[Cell], found: list[Status], paper: str) -> str:
    """`3 supported  7 refuted`: each a button that shows these rows alone."""
    counts = {status: sum(c.status == status.word for c in cells) for status in found}
    some = [chip(status, [tag("b", n), f" {status.word}"], paper) for status, n in counts.items() if n]
    return join(*some, between=" ") or "—"


def chip(status: Status, words: list, paper: str | None = None) -> Html:
    """A status that shows its rows alone when pressed."""
    return tag("button", mark(status), *words, type="button", class_=f"chip {status.tone}", data_status=status.word,
               data_paper=paper)  # fmt: skip


def legend(cells: list[Cell], found: list[Status]) -> Html:
    """Every status of the page with its shape, word, number of cells and meaning."""
    entries = []
    for status in found:
        count = sum(c.status == status.word for c in cells)
        entries.append(tag("div", tag("dt", chip(status, [status.word]), tag("small", count)),
                           tag("dd", status.meaning, class_="quiet")))  # fmt: skip
    return tag("dl", *entries, class_="legend")


def section(paper: str, about: dict, cells: list[Cell]) -> Html:
    """One paper: what it is, its tables, pictures and records."""
    head = tag("h2", about["title"])
    files = {"card": "README.md", "notes": "NOTES.md", "claims": "claims.toml"}
    ours = [link(f"../papers/{paper}/{name}", word) for word, name in files.items()]
    by = tag("p", f"{about['authors']}, {about['venue']}, ", link(about["url"], about["url"]), ". Ours: ",
             join(*ours, between=", "), ".")  # fmt: skip
    tables = [part for kind in TITLES for part in of_kind(paper, kind, cells)]
    parts = [head, by, findings(about, cells), *tables, pictures(paper), records(paper)]
    return tag("section", *parts, id=paper, class_="paper group")


def findings(about: dict, cells: list[Cell]) -> Html:
    """The card's findings; a cell's number or status in them leads to its chain."""
    known, bullets = {cell.claim["id"]: cell for cell in cells}, []
    facts = cards.facts_of(cells[0].paper) if cells else {}
    for bullet in about.get("findings", []):
        texts = re.split(r"{([a-z0-9-]+(?:[.]status)?)}", bullet)  # text and name in turn
        for k in range(1, len(texts), 2):
            if texts[k] in facts:
                texts[k] = facts[texts[k]]
                continue
            cell = known[texts[k].removesuffix(".status")]
            word = cell.status if texts[k].endswith(".status") else cards.mean(cell)
            texts[k] = link(f"#{cell.name}", word)
        bullets.append(tag("li", *texts))
    return tag("div", tag("h3", "Findings"), tag("ul", *bullets), class_="extra findings") if bullets else Html()


def pictures(paper: str) -> Html:
    """The paper's figures with what to see in them, and in words what stands where."""
    files = list(map(Path, entries(Path(paths.RECORDED, paper, "figures"), "*.png")))
    words, parts = captions(paper), []
    for file in files:
        plain = f"{shown(paper)}: {file.stem.replace('-', ' ')}"
        width, height = size(file)
        image = tag("img", src=f"{paper}/figures/{file.name}", alt=words["ALTERNATIVES"].get(file.stem, plain),
                    width=width, height=height, loading="lazy")  # fmt: skip
        caption = tag("figcaption", words["CAPTIONS"].get(file.stem, plain))
        parts.append(tag("figure", link(f"{paper}/figures/{file.name}", image), caption))
    return tag("div", tag("h3", "Pictures"), *parts, class_="extra") if parts else Html()


def size(path: Path) -> tuple[int, int]:
    """(width, height) of a PNG file in pixels. UserError where one of its checksums does not fit."""
    content, at, kind = path.read_bytes(), 8, b""
    while kind != b"IEND":  # parts: length, kind, data, checksum of kind and data
        kind, end = content[at + 4 : at + 8], at + 12 + int.from_bytes(content[at : at + 4], "big")
        check = zlib.crc32(content[at + 4 : end - 4]).to_bytes(4, "big")
        if len(kind) < 4 or check != content[end - 4 : end] or not content.startswith(PNG):
            raise UserError(f"{path}: damaged picture (at byte {at}); restore it from git, or draw it by `make report`")
        at = end
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")


def records(paper: str) -> Html:
    """All of the paper's records, folded: files, time, machine, full hashes."""
    found, lines = runs.recorded(paper), []
    for record in found:
        files = [link(record_path(record, name), name) for name in ("history.csv", "predictions.npz")]
        facts = chain.of_run(record)
        lines.append(tag("tr", *(tag("td", text, class_=style) for text, style in (
            (link(record_path(record), record["run"]), "long"), (join(*files, between=", "), None),
            (facts["data"], "long"), (facts["machine"], "long"), (f"{record['seconds'] / 60:.0f} min", "number"),
            (facts["commit"], "long"), (record["predictions_sha256"], "long"),
        ))))  # fmt: skip
    names = ("run", "files", "data", "machine", "time", "commit", "predictions, sha256")
    head = tag("thead", tag("tr", *(tag("th", text, scope="col") for text in names)))
    inside = scrolls(tag("table", head, tag("tbody", *lines), class_="records"), f"Records of {shown(paper)}")
    text = tag("summary", f"{len(found)} records: every run with its files, data, machine and hashes")
    return tag("details", text, inside, class_="extra records-of") if found else Html()
