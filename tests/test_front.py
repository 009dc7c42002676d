"""The front page and the cards: short, on one template, and no number of ours typed by hand."""

import re
from pathlib import Path

import pytest

from facepapers.common.cli import UserError
from facepapers.common.evidence import cards, claims, tables
from facepapers.common.evidence.statistics import Interval
from facepapers.common.protocols.metrics import Metric

ROOT = Path(__file__).resolve().parents[1]
CARDS = sorted(ROOT.glob("papers/*/README.md"))
SECTIONS = ["Findings", "Run", "Results", "Deviations", "Read on"]
WORDS = 900  # one screen of prose
ERROR, SCORE = Metric("error_pct", "error (%)", True), Metric("accuracy_pct", "accuracy (%)", False)

every_card = pytest.mark.parametrize("path", CARDS, ids=lambda path: path.parent.name)


def prose(text):
    """A Markdown text without code, tables, pictures, comments and what is folded away."""
    text = re.sub(r"^```.*?^```$|<details>.*?</details>|<!--.*?-->", "", text, flags=re.M | re.S)
    return "\n".join(line for line in text.splitlines() if not line.startswith(("|", "!["))).strip()


def typed(text):
    """The prose that no program writes, without code and addresses."""
    text = prose(re.sub(r"<!-- generated: (\w+) -->.*?<!-- end of \1 -->", "", text, flags=re.S))
    return re.sub(r"`[^`]*`|\]\([^)]*\)|arXiv\s[\d.]+", "", text)


def test_prose_leaves_out_what_is_no_prose():
    text = "one\n```\ncode\n```\n| a table |\n<details>folded</details>\n![alt](x.png)\ntwo <!-- no --> `word` 3.5"
    assert prose(text).split() == ["one", "two", "`word`", "3.5"]
    assert typed(f"{text} arXiv 1608.00207\n<!-- generated: a -->4.5<!-- end of a -->").split() == ["one", "two", "3.5"]


@every_card
def test_a_card_is_one_screen_on_the_template(path):
    text = path.read_text()
    assert len(prose(text).split()) <= WORDS
    assert re.findall(r"^## (.*)$", text, re.M) == SECTIONS
    assert "**Idea.**" in text.split("## ")[0] and "](NOTES.md)" in text
    assert len(re.findall(r"^- ", text.split("## Findings")[1].split("##")[0], re.M)) == 5


@pytest.mark.parametrize("path", [ROOT / "README.md", *CARDS], ids=lambda path: path.parent.name)
def test_no_result_is_typed_by_hand(path):
    """A number with decimals outside the generated parts would be one that no record keeps true."""
    assert not re.findall(r"(?<!Python )\b\d+\.\d+", typed(path.read_text()))


def test_the_front_page_is_short():
    assert len(prose((ROOT / "README.md").read_text()).split()) <= WORDS


def test_headlines_are_few_and_their_findings_speak_of_the_present_status(committed_cells):
    for paper, cells in committed_cells.items():
        shown = [cell for cell in cells if cell.claim.get("headline")]
        assert 1 <= len(shown) <= cards.PER_PAPER, paper
        for cell in shown:
            assert cards.finding(cell), f"{cell.name} is {cell.status}; its finding in claims.toml speaks of another"


def test_the_published_column_holds_numbers_alone(committed_cells):
    lines = cards.front_table([cell for cells in committed_cells.values() for cell in cells]).splitlines()[2:]
    assert lines and all(re.fullmatch(r"—|[\d.]+", line.split(" | ")[2]) for line in lines)


def test_the_score_counts_every_published_number_and_claim(committed_cells):
    cells = [cell for found in committed_cells.values() for cell in found]
    levels, contrasts = cards.score(cells).split(". ")
    numbers = lambda text: list(map(int, re.findall(r"\d+", text)))
    within = lambda text: re.sub(r"\(.*?\)", "", text)  # without what some of a number are
    for kind, text in (("level", levels), ("contrast", contrasts)):
        whole, *each = numbers(within(text))
        assert whole == sum(each) == sum(cell.kind == kind for cell in cells)
    (verdicts, *_), (drawn, *_) = (list(map(numbers, re.findall(r"\(.*?\)", text))) for text in (levels, contrasts))
    supported, refuted = numbers(within(contrasts))[1:3]
    assert sum(verdicts) <= numbers(levels)[1] and drawn[0] < supported + refuted


def a_cell(kind, metric, mean=None, **claim):
    found = mean if mean is None else Interval(mean, mean - 1, mean + 1, 3, 100)
    return claims.Cell("coarse_to_fine", kind, {"id": "a", **claim}, metric, interval=found, status="supported")


def test_units_carry_their_direction():
    assert cards.unit(a_cell("level", ERROR)) == "% ↓" and cards.unit(a_cell("level", SCORE)) == "% ↑"
    assert cards.unit(a_cell("contrast", ERROR)) == "points ↑"
    cost = Metric("gflop", "computation of a face (GFLOP, 2 per multiply-add)", True)
    assert cards.unit(a_cell("contrast", cost)) == "GFLOP ↑"
    assert cards.unit(a_cell("level", Metric("area", "area under a curve", False))) == "↑"


def test_a_finding_goes_with_its_status():
    cell = a_cell("contrast", SCORE, finding={"supported": "It helps."})
    assert cards.finding(cell) == "It helps."
    cell.status = "inconclusive"
    assert cards.finding(cell) == ""


def test_findings_take_their_numbers_from_cells(monkeypatch):
    bullets = ["{a} points ({a.status}), a set {of} things"]
    monkeypatch.setattr(claims, "read", lambda paper: {"paper": {"findings": bullets}})
    with pytest.raises(UserError, match="findings name 'of', which is no claim's id"):
        cards.findings("coarse_to_fine", [a_cell("contrast", SCORE, 2.345)])
    bullets[0] = bullets[0].replace("{of}", "of")
    assert cards.findings("", [a_cell("contrast", SCORE, 2.345)]) == "- 2.35 points (supported), a set of things\n"
    assert cards.findings("", [a_cell("contrast", SCORE)]) == "- — points (supported), a set of things\n"


def test_four_headlines_of_a_paper_are_too_many():
    cells = [a_cell("contrast", SCORE, headline=True, what="It helps") for _ in range(4)]
    with pytest.raises(UserError, match="4 headlines; mark 3 at most"):
        cards.front_table(cells)
    assert cards.front_table(cells[:3]).count("It helps") == 3


# ---- Lines of tables, made up


def answered(kind, status, mean=5.0, seeds=3, data="lfw", **claim):
    """A cell whose runs are so many empty records."""
    found = a_cell(kind, ERROR, mean, what="a number", data=data, preset="short", **claim)
    found.status, found.records = status, [{}] * seeds * (mean is not None)
    return found


def test_a_line_of_each_table_has_its_columns_in_order():
    level = answered("level", "better", published="6.33", boxes="official", headline=True, finding={"better": "Yes."})
    contrast = answered("contrast", "supported", headline=True, seeds=2)
    measured = answered("measured", "demo only", None)
    said = {kind: tables.table([cell], kind).splitlines()[-1]
            for kind, cell in (("level", level), ("contrast", contrast), ("measured", measured))}  # fmt: skip
    assert said == {
        "level": "| a number | 6.33 | 5.00 [4.00, 6.00] | 3 | official | better |",
        "contrast": "| a number | 5.00 [4.00, 6.00] | 2 | supported |",
        "measured": "| a number | lfw | — | — | demo only |",
    }
    lines = cards.front_table([level, measured, contrast]).splitlines()
    assert lines[0] == "| paper | what | published | ours | unit | seeds | status | finding |"
    link = "[coarse-to-fine](papers/coarse_to_fine/README.md)"
    assert lines[2:] == [
        f"| {link} | a number | 6.33 | 5.00 [4.00, 6.00] | % ↓ | 3 | better | Yes. |",
        f"| {link} | a number | — | 5.00 [4.00, 6.00] | points ↑ | 2 | supported |  |",
    ]


def test_cells_without_a_run_are_folded_away_and_none_is_lost():
    waiting = [answered("level", "not run", None, published=str(k), boxes="b") for k in range(2)]
    text = tables.tables(waiting, "level")
    assert text.startswith("\n<details><summary>published cell: 2 cells without a run</summary>")
    assert text.count("| a number |") == 2
    both = tables.tables([*waiting, answered("level", "worse", published="9")], "level")
    assert both.index("worse") < both.index("<details>") < both.index("not run")
    assert tables.tables(waiting, "contrast") == ""


def test_the_score_counts_each_kind_once():
    cells = [
        *(answered("level", status, published="1") for status in ("replicated", "replicated", "better", "worse")),
        answered("level", "reference", published="1"), answered("level", "one seed: higher", published="1", seeds=1),
        *(answered("level", status, None, published="1") for status in ("not run", "data missing")),
        answered("contrast", "supported", data="embedded"), answered("contrast", "supported"),
        answered("contrast", "refuted", data="embedded"), answered("contrast", "inconclusive", data="embedded"),
        answered("contrast", "data missing", None), answered("measured", "other data"),
    ]  # fmt: skip
    assert cards.score(cells) == (
        "**8 published numbers**: 5 compared (2 replicated, 1 better, 1 worse), 1 beside something unlike "
        "(`reference`), 2 waiting for data or not run. **5 claims** of a difference: 2 supported, 1 refuted "
        "(2 of both on drawn faces), 2 open."
    )


def test_what_stands_around_a_generated_table_stays():
    text = "before\n<!-- generated: a -->\nold\n<!-- end of a -->\nbetween\n"
    text += "<!-- generated: b -->\nx\n<!-- end of b -->\nafter\n"
    found = tables.insert(text, "a", "new", "README.md")
    assert found == text.replace("old", "new")
    assert tables.insert(found, "a", "new", "README.md") == found
