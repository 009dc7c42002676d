"""The results page and its files for machines: what stands in them, where links lead, and a real browser's view."""

import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from PIL import Image

from facepapers.common.evidence import captions, cards, chain, claims, page, plot, statistics, statuses
from facepapers.common.evidence.html import Html, join, tag
from facepapers.common.protocols.metrics import Metric
from tests import browser
from tests.conftest import REPOSITORY

RESULTS = REPOSITORY / "results"
CHANCE = Metric("chance_pct", "chance (%)", lower_is_better=False, per_sample=lambda p: p["right"])


@pytest.fixture(scope="module")
def cells(committed_cells):
    return [cell for found in committed_cells.values() for cell in found]


@pytest.fixture(scope="module")
def text(cells):
    return page.page(cells)


@pytest.fixture(scope="module")
def tree(text):
    return parsed(text)


class Reader(HTMLParser):
    """HTML into an element tree; fails where an end does not fit its start."""

    def __init__(self):
        super().__init__()
        self.tree, self.open = ElementTree.TreeBuilder(), []

    def handle_starttag(self, name, attributes):
        self.tree.start(name, {key: value or "" for key, value in attributes})
        self.open.append(name)
        if name in ("img", "input", "meta"):
            self.handle_endtag(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name, f"</{name}> at {self.getpos()}"
        self.tree.end(name)

    def handle_data(self, data):
        if self.open:
            self.tree.data(data)


def parsed(text):
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert not reader.open
    return reader.tree.close()


def words(element):
    return " ".join("".join(element.itertext()).split())


def rows(tree):
    """{name of a cell: its tbody}."""
    return {body.get("data-name"): body for body in tree.iter("tbody") if body.get("data-name")}


def made_up(status="supported", kind="contrast", what="A beats B", **claim):
    claim = {"id": "x", "what": what, "data": "lfw", "preset": "short", "better": "a", "than": "b", "row": "a"} | claim
    interval = statistics.Interval(2.0, 1.0, 3.0, 3, 100)
    return claims.Cell("arcface", kind, claim, CHANCE, interval=interval, status=status)


@pytest.fixture
def no_findings(monkeypatch):
    """Claims that name no cell, for pages of made-up ones."""
    about = {"title": "A paper", "authors": "A", "venue": "B", "url": "https://example.org"}
    monkeypatch.setattr(claims, "read", lambda paper: {"paper": about})


def test_every_link_leads_somewhere(tree):
    ids = Counter(element.get("id") for element in tree.iter() if element.get("id"))
    assert not [name for name, count in ids.items() if count > 1]
    targets = {link.get("href") for link in tree.iter("a")}
    written = {"cells.csv", "cells.json", "README.md"}
    for target in targets:
        if target.startswith("#"):
            assert target[1:] in ids, target
        elif "://" not in target:
            assert target in written or (RESULTS / target).exists(), target
    assert {t for t in targets if "://" in t} == {claims.read(paper)["paper"]["url"] for paper in claims.papers()}


def test_nothing_is_loaded_from_elsewhere(tree, text):
    addresses = [element.get("src") or element.get("href", "") for element in tree.iter() if element.tag != "a"]
    assert not [address for address in addresses if "://" in address or address.startswith("//")]
    assert "@import" not in text and "url(" not in text


def test_every_number_leads_to_its_chain_its_records_and_its_card(cells, tree):
    found = rows(tree)
    assert found.keys() == {cell.name for cell in cells}
    for cell in cells:
        row, unfolded = found[cell.name]
        assert f"#{cell.name}" in [link.get("href") for link in row.iter("a")] and unfolded.get("id") == cell.name
        targets, said = {link.get("href") for link in unfolded.iter("a")}, words(unfolded)
        assert f"../papers/{cell.paper}/README.md" in targets and cell.metric.label in said
        assert cell.records or "no committed run has data" in said
        for record in [*cell.records, *cell.others]:
            folder = f"{cell.paper}/{record['run']}"
            assert {f"{folder}/run.json", f"{folder}/predictions.npz"} <= targets
            for part in (record["predictions_sha256"][:12], (record["source"]["commit"] or "none")[:10],
                         record["environment"]["device"], f"{chain.measured(record, cell.metric):.4f}"):  # fmt: skip
                assert " ".join(part.split()) in said, (cell.name, part)


def test_a_row_says_what_its_cell_says(cells, tree):
    found = rows(tree)
    for cell in cells:
        row = found[cell.name][0]
        said = words(row)
        assert words(row[-1]) == cell.status and f"{len(cell.records) or '—'}" in said
        (arrow,) = (span.text for span in row[0].iter("span") if span.get("role") == "img")
        assert arrow == ("↓" if cell.metric.lower_is_better else "↑")
        if cell.kind == "level":
            assert words(row[1]) == cell.claim["published"]
        assert " ".join(cell.claim["what"].split()) in said and cell.claim.get("published", "") in said
        if cell.interval:
            assert f"{cell.interval.mean:.2f} [{cell.interval.low:.2f}, {cell.interval.high:.2f}]" in said
        targets = [link.get("href") for link in row.iter("a")]
        assert [t for t in targets if t.endswith("run.json")] == [
            f"{cell.paper}/{record['run']}/run.json" for record in cell.records
        ]


def test_findings_lead_to_the_cells_that_they_name(cells, tree):
    """With the numbers that the cards print."""
    known = {f"#{cell.name}": cell for cell in cells}
    lists = [part for part in tree.iter("div") if part.get("class") == "extra findings"]
    assert len(lists) == len(claims.papers())
    for found, paper in zip(lists, claims.papers(), strict=True):
        card = cards.findings(paper, [cell for cell in cells if cell.paper == paper])
        assert [f"- {words(item)}" for item in found.iter("li")] == card.splitlines()
        for link in found.iter("a"):
            assert words(link) in (known[link.get("href")].status, cards.mean(known[link.get("href")]))


def test_every_status_has_a_shape_and_stands_in_the_legend(cells, tree):
    legend = next(element for element in tree.iter("dl") if element.get("class") == "legend")
    entries = {words(term.find("button")): words(about) for term, about in legend}
    counts = Counter(cell.status for cell in cells)
    assert entries.keys() == counts.keys() and statuses.UNKNOWN[2] not in entries.values()
    shapes = {symbol.get("id") for symbol in tree.iter("symbol")}
    assert {use.get("href")[1:] for use in tree.iter("use")} <= shapes
    for body in rows(tree).values():
        mark = body[0][-1].find("svg/use").get("href")
        assert mark == f"#shape-{statuses.status(body.get('data-status')).shape}"


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_no_verdict_lacks_a_meaning(seeds):
    words = set()
    for low in (-3.0, -0.5, 0.1, 1.0):
        interval = statistics.Interval(low + 0.5, low, low + 1, seeds, 9)
        words |= {statistics.contrast_status(interval, within=within) for within in (None, 2.0, 0.2)}
        for metric in (CHANCE, replace(CHANCE, lower_is_better=True)):
            words |= {statistics.level_status(metric, interval, 0.0, tolerance) for tolerance in (0.6, 2.0)}
    assert len(words) >= 3
    assert not [word for word in words if statuses.status(word).meaning == statuses.UNKNOWN[2]]


def test_a_status_that_is_not_known_yet_is_shown_as_it_is(no_findings):
    tree = parsed(page.page([made_up("a new word")]))
    assert words(rows(tree)["arcface.x"][0][-1]) == "a new word"
    assert statuses.UNKNOWN[2] in words(tree) and "a new word" in [option.text for option in tree.iter("option")]


def test_text_of_a_claim_cannot_become_html(no_findings):
    text = page.page([made_up(what="<script>alert('&amp;')</script>")])
    assert "<script>alert" not in text and "&lt;script&gt;alert(&#x27;&amp;amp;" in text
    assert tag("p", "a<b", Html("<i></i>"), class_="x", data_k='"', hidden=True, title=None) == (
        '<p class="x" data-k="&quot;" hidden>a&lt;b<i></i></p>'
    )
    assert join("<", Html("<b>"), between="|") == "&lt;|<b>"


def test_pictures_say_what_to_see(tree):
    images = list(tree.iter("img"))
    assert {image.get("src") for image in images} == {
        str(path.relative_to(RESULTS)) for path in RESULTS.glob("*/figures/*.png")
    }
    for image in images:
        with Image.open(RESULTS / image.get("src")) as picture:
            assert (image.get("width"), image.get("height")) == tuple(map(str, picture.size))
        assert len(image.get("alt")) > 8
    assert all(words(caption) for caption in tree.iter("figcaption"))


def test_captions_are_read_from_the_papers_figures(tmp_path, monkeypatch):
    path = tmp_path / "papers" / "arcface" / "figures.py"
    path.parent.mkdir(parents=True)
    monkeypatch.setattr(page.paths, "ROOT", tmp_path)
    assert captions.captions("arcface") == {"CAPTIONS": {}, "ALTERNATIVES": {}}
    path.write_text('import torch\nCAPTIONS = {"roc": ("Look at " "this.")}\nOTHER = f(1)\n')
    assert captions.captions("arcface") == {"CAPTIONS": {"roc": "Look at this."}, "ALTERNATIVES": {}}


def test_the_page_is_small_and_the_same_each_time(cells, text):
    assert len(text.encode()) < 3e6
    assert page.page(cells) == text


def test_an_interval_stands_where_its_numbers_say():
    gain, band = made_up(), made_up(within=1.0)
    scales = plot.Scales([gain, band])
    low, mean, high = (scales.x(gain, value) for value in (1.0, 2.0, 3.0))
    assert plot.WIDTH / 2 < low < mean < high <= plot.WIDTH
    drawn = parsed(plot.plot(band, scales, "agrees"))
    assert drawn.find("circle").get("cx") == str(mean)
    assert drawn.find("path[@class='bar']").get("d") == f"M{low} {plot.HEIGHT / 2}H{high}"
    left = float(drawn.find("rect").get("x"))
    assert left == pytest.approx(plot.WIDTH - low, abs=0.2), "the band reaches from -1 to 1"
    level = made_up(kind="level", published="2.5", tolerance=0.25)
    assert plot.compared(level) == pytest.approx((-1.5, -0.5, 0.5, -0.25, 0.25))
    bands = {(): (0, 0), (("margin", 0.5),): (-0.5, 0), (("within", 1.0),): (-1, 1)}
    assert {words: plot.margins(made_up(**dict(words))) for words in bands} == bands
    assert plot.plot(made_up(kind="measured"), scales, "open") == ""


def luminance(colour):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def channels(colour):
    colour = colour if len(colour) == 6 else "".join(2 * digit for digit in colour)
    return [int(colour[k : k + 2], 16) / 255 for k in (0, 2, 4)]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_can_be_read_and_told_apart(scheme):
    """Text has WCAG's contrast of 4.5. Verdicts differ in blue, which red-green blindness leaves alone."""
    style = (RESULTS.parent / "common" / "evidence" / "page.css").read_text()
    colours = dict(re.findall(r"--([a-z]+): #([0-9a-f]+)", style.split("--ground")[scheme + 1].join(["--ground", ""])))
    ground = luminance(colours["ground"])
    for name in ("text", "quiet", "link", *statuses.TONES):
        light, dark = sorted((luminance(colours[name]), ground), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, name
    assert channels(colours["agrees"])[2] - channels(colours["disagrees"])[2] > 0.5


VISIBLE = "[...document.querySelectorAll('tbody.cell')].filter(c => c.offsetParent)"
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.mark.skipif(browser.found() is None, reason="no Chromium on this machine (Debian: apt install chromium)")
def test_in_a_browser(cells, tmp_path):
    seen = browser.Browser(tmp_path)
    try:
        for width, mobile in ((390, True), (1400, False)):
            seen.size(width, mobile=mobile)
            seen.open((RESULTS / "index.html").as_uri())
            assert seen.run("innerWidth") == width and seen.run(OVERFLOW) <= 0
            seen.run("document.querySelectorAll('details').forEach(fold => { fold.open = true })")
            assert seen.run(OVERFLOW) <= 0, "with every fold open"
            assert seen.run(f"{VISIBLE}.length") == len(cells)
        filters_show_what_they_say(seen, cells)
        columns_are_sorted(seen)
        chains_open(seen, next(cell for cell in cells if not cell.interval))
        seen.ask("Emulation.setEmulatedMedia", media="print")
        assert seen.run("getComputedStyle(document.querySelector('aside')).display") == "none"
        assert not seen.errors
    finally:
        seen.close()


def filters_show_what_they_say(seen, cells):
    def shown(**wanted):
        for name in ("paper", "status", "text"):
            seen.run(f"document.forms.filter.elements.{name}.value = {json.dumps(wanted.get(name, ''))}")
        seen.run("document.forms.filter.dispatchEvent(new Event('input', { bubbles: true }))")
        names = seen.run(f"{VISIBLE}.map(c => c.dataset.name)")
        assert seen.run("document.getElementById('shown').textContent") == f"{len(names)} of {len(cells)} rows"
        return set(names)

    status = "data missing"  # folded until one asks for it
    assert shown(status=status) == {cell.name for cell in cells if cell.status == status}
    both = {cell.name for cell in cells if cell.paper == "resup" and cell.status == "supported"}
    assert shown(paper="resup", status="supported") == both != set()
    assert shown(text="arcface.given-lfw ") == {c.name for c in cells if "arcface.given-lfw" in c.name}
    assert shown(text="no such words") == set() and not seen.run("document.getElementById('none').hidden")
    seen.run("document.querySelector('.legend .chip[data-status=refuted]').click()")
    refuted = {cell.name for cell in cells if cell.status == "refuted"}
    assert set(seen.run(f"{VISIBLE}.map(c => c.dataset.name)")) == refuted
    seen.run("document.querySelector('button[type=reset]').click()")
    seen.run("new Promise(done => setTimeout(done, 20))")
    assert seen.run("document.querySelectorAll('tbody.cell[hidden]').length") == 0


def columns_are_sorted(seen):
    table = "document.querySelector('#arcface th[data-name=gain]').closest('table')"
    gains = f"[...{table}.tBodies].map(c => Number(c.rows[0].cells[1].dataset.key))"
    before, press = seen.run(gains), f"{table}.querySelector('th[data-name=gain] button').click()"
    for wanted in (sorted(before), sorted(before, reverse=True), before):
        seen.run(press)
        assert seen.run(gains) == wanted
    assert sorted(before) != before


def chains_open(seen, waiting):
    """Also of a cell that lies in a fold and is filtered away."""
    chain = f"document.getElementById({json.dumps(waiting.name)})"
    seen.run("document.forms.filter.elements.status.value = 'supported'; filter()")
    assert not seen.run(f"{chain}.offsetParent !== null")
    seen.run(f"location.hash = {json.dumps(waiting.name)}; new Promise(done => setTimeout(done, 50))")
    assert seen.run(f"{chain}.offsetParent !== null")
    seen.run(f"{chain}.querySelector('h4 a').click(); new Promise(done => setTimeout(done, 50))")
    assert not seen.run(f"{chain}.offsetParent !== null")
