"""cells.csv, cells.json and their README: every cell, its numbers, and a description of every column."""

import csv
import io
import json
import re

import pytest

from facepapers.common.evidence import export
from tests.conftest import REPOSITORY

RESULTS = REPOSITORY / "results"


@pytest.fixture(scope="module")
def cells(committed_cells):
    return [cell for found in committed_cells.values() for cell in found]


def test_the_files_for_machines_hold_every_cell(cells):
    files = export.files(cells)
    found = json.loads(files["cells.json"])
    table = list(csv.DictReader(io.StringIO(files["cells.csv"])))
    assert [line["cell"] for line in table] == [line["cell"] for line in found["cells"]] == [c.name for c in cells]
    for cell, line, row in zip(cells, found["cells"], table, strict=True):
        assert line.keys() == row.keys() == found["fields"].keys() and line["status"] in found["statuses"]
        assert line["runs"] == row["runs"].split() == [record["run"] for record in cell.records]
        assert len(line["than_runs"]) == len(line["than_values"]) == len(cell.others)
        if cell.interval:
            shown = line["ours"], line["low"], line["high"]
            assert shown == pytest.approx((cell.interval.mean, cell.interval.low, cell.interval.high), rel=1e-5)
            assert tuple(map(float, (row["ours"], row["low"], row["high"]))) == shown
        else:
            assert line["ours"] is None and row["ours"] == ""
    named = {f"{line['paper']}/{run}" for line in found["cells"] for run in line["runs"] + line["than_runs"]}
    assert found["runs"].keys() == named
    for run in found["runs"].values():
        assert run.keys() == found["run_fields"].keys()
        assert json.loads((RESULTS / run["record"]).read_text())["predictions_sha256"] == run["predictions_sha256"]


def test_every_column_holds_what_it_says(cells):
    """Read again from the claims and the records themselves."""
    read = lambda run: json.loads((RESULTS / run / "run.json").read_text())
    same = ("what", "data", "preset", "published", "tolerance", "margin", "within", "source", "selection", "n_runs",
            "protocol", "than", "reference", "metric")  # fmt: skip
    checked = 0
    for cell in cells:
        line, claim = export.line(cell), cell.claim
        for column in same:
            key = {"protocol": "boxes"}.get(column, column)
            assert line[column] == claim.get(key), (cell.name, column)
        assert line["row"] == claim["better" if cell.kind == "contrast" else "row"]
        assert line["better"] == ("lower" if cell.metric.lower_is_better else "higher")
        assert line["headline"] is bool(claim.get("headline")) and line["seeds"] == len(line["runs"])
        assert (line["paper"], line["kind"]) == (cell.paper, cell.kind) and line["metric_label"] == cell.metric.label
        if line["ours"] is not None:
            assert line["confidence"] == (0.95 if cell.kind == "contrast" else 0.9)
            assert line["low"] <= line["ours"] <= line["high"] and line["samples"] == cell.interval.n_samples
        for runs, values, row in (("runs", "values", line["row"]), ("than_runs", "than_values", line["than"])):
            for run, value in zip(line[runs], line[values], strict=True):
                record = read(f"{cell.paper}/{run}")
                assert record["config"]["row"] == row, (cell.name, run)
                if claim["metric"] in record["metrics"]:
                    assert value == pytest.approx(record["metrics"][claim["metric"]], rel=1e-5)
                    checked += 1
    assert checked > 100


def test_every_column_is_described(cells):
    readme = export.files(cells)["README.md"]
    assert all(f"| {key} | {meaning} |" in readme for key, meaning in (export.FIELDS | export.RUN).items())
    for target in re.findall(r"\]\(([^)]+)\)", readme):
        assert (RESULTS / target).exists(), target


def test_a_mean_of_the_values_is_the_number(cells):
    """A level's or a measurement's number is the mean of its runs' values; a gain is the mean of their differences."""
    for cell, line in ((cell, export.line(cell)) for cell in cells if cell.interval):
        mean = sum(line["values"]) / len(line["values"])
        if cell.kind == "contrast":
            sign = -1 if cell.metric.lower_is_better else 1
            mean = sign * (mean - sum(line["than_values"]) / len(line["than_values"]))
        assert mean == pytest.approx(line["ours"], abs=2e-3), cell.name
