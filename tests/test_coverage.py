"""The simulation of intervals: its populations, its other forms of an interval, its table."""

import csv
import math

import numpy as np
import pytest
from scipy import stats as reference

from facepapers.common.cli import UserError
from facepapers.common.evidence import statistics, tables
from facepapers.common.protocols.metrics import Metric
from facepapers.common.tools import coverage

ERROR = Metric("error", "error", True, lambda p: p["error"], needs=("error",))
NME = next(case for case in coverage.CASES if case.paper == "coarse_to_fine")
PAIRS = next(case for case in coverage.CASES if case.metric == "auc_pct")


def lines(path):
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.mark.parametrize("case", coverage.CASES, ids=lambda c: f"{c.paper}-{c.metric}-{c.row}")
def test_populations_are_like_their_records(case):
    """The metric of drawn runs is, on the average, that of the committed ones."""
    drawn_from = coverage.population(case)
    assert 0 <= drawn_from.across <= drawn_from.within <= 1
    rng, metric = np.random.default_rng(0), drawn_from.metric
    for side, row in enumerate(filter(None, (case.row, case.than))):
        recorded = np.mean([metric.value(p) for p in coverage.recorded(case, row)])
        found = [metric.value(drawn_from.draw(rng, 1, False)[side][0]) for _ in range(8)]
        assert np.mean(found) == pytest.approx(recorded, abs=5 * np.std(found) / math.sqrt(8) + 0.1)


def test_runs_and_rows_are_correlated_as_in_the_records():
    drawn_from = coverage.population(NME)
    rng, pairs = np.random.default_rng(0), []
    for _ in range(30):
        ours, theirs = ([np.log(p["error_px"][:, 0]) for p in row] for row in drawn_from.draw(rng, 2, False))
        pairs.append([np.corrcoef(*ours)[0, 1], np.corrcoef(ours[0], theirs[1])[0, 1]])
    assert np.mean(pairs, 0) == pytest.approx([drawn_from.within, drawn_from.across], abs=0.06)
    assert drawn_from.across < drawn_from.within


def test_runs_apart_differ_as_wholes():
    drawn_from, rng = coverage.population(NME), np.random.default_rng(0)
    spread = lambda apart: np.mean([
        np.var([drawn_from.metric.value(p) for p in drawn_from.draw(rng, 5, apart)[0]]) for _ in range(20)
    ])  # fmt: skip
    assert spread(True) > 3 * spread(False)


def test_both_halves_are_added_in_quadrature():
    rng = np.random.default_rng(1)
    runs = [{"error": rng.normal(5 + seed, 2, 40)} for seed in range(4)]
    between = reference.t.ppf(0.95, 3) * reference.sem([r["error"].mean() for r in runs])
    within = reference.norm.ppf(0.95) * reference.sem(np.mean([r["error"] for r in runs], axis=0))
    mean, low, high = coverage.quadrature(ERROR, [runs], 0.9, statistics.Bootstrap())
    assert (high - mean, mean - low) == pytest.approx([math.hypot(between, within)] * 2)


def test_intervals_over_folds():
    folds = np.random.default_rng(2).normal(90, 2, 10)
    found = coverage.over_folds(folds, folds.mean(), 0.95)
    expected = reference.t.interval(0.95, 9, folds.mean(), reference.sem(folds))
    assert found["folds_t"][1:] == pytest.approx(expected)
    assert found["folds_normal"][2] == pytest.approx(folds.mean() + 1.96 * folds.std() / math.sqrt(10), rel=1e-4)
    ends = reference.bootstrap((folds,), np.mean, method="percentile", rng=0).confidence_interval
    assert found["folds_bootstrap"][1:] == pytest.approx(ends, abs=0.15)


def test_the_forms_of_one_run_and_of_several():
    drawn_from, rng = coverage.population(PAIRS), np.random.default_rng(0)
    accuracy = coverage.claims.metrics_of("arcface")["accuracy_pct"]
    one, three = drawn_from.draw(rng, 1, False), drawn_from.draw(rng, 3, False)
    found = coverage.forms(accuracy, one, 0.9, statistics.Bootstrap())
    assert found.keys() == {"ours", "quadrature", "folds_t", "folds_normal", "folds_bootstrap"}
    assert found["ours"] == pytest.approx(
        [getattr(statistics.contrast(accuracy, *one, 0.9), name) for name in ("mean", "low", "high")]
    )
    assert coverage.forms(accuracy, three[:1], 0.9, statistics.Bootstrap()).keys() == {"ours", "quadrature"}


def test_how_often_the_truth_was_held():
    """Estimates 1, 2, 3, 4, so the truth is 2.5; at 90 % one in four intervals holds it, at 95 % half of them."""
    form = lambda estimate, half: (estimate, estimate - half, estimate + half)
    found = np.array([[form(k, 0.4 + 0.2 * (k == 2)), form(k, 0.5 * (k in (2, 3)))] for k in (1, 2, 3, 4)])
    result = coverage.held(found)
    assert (result["covered_90_pct"], result["covered_95_pct"]) == (25, 50)
    assert result["width"] == pytest.approx(math.sqrt(0.125) / (1.96 * np.std([1, 2, 3, 4], ddof=1)), abs=0.001)


def test_the_table_is_continued(tmp_path, monkeypatch):
    table, words = tmp_path / "coverage.csv", ["--papers", "coarse_to_fine", "--repetitions", "4"]
    monkeypatch.setattr(coverage, "CASES", (coverage.Case(**{**vars(NME), "seeds": (1, 3)}),))
    coverage.main([*words, "--table", str(table)])
    first = lines(table)
    assert [(r["seeds"], r["runs"], r["kind"], r["form"]) for r in first[:4]] == [
        ("1", "one", "level", "ours"), ("1", "one", "level", "quadrature"),
        ("1", "one", "contrast", "ours"), ("1", "one", "contrast", "quadrature"),
    ]  # fmt: skip
    assert len(first) == 12 and {r["runs"] for r in first} == {"one", "alike", "apart"}
    real = coverage.simulate
    monkeypatch.setattr(coverage, "simulate", None)
    coverage.main([*words, "--table", str(table)])
    assert lines(table) == first, "nothing is simulated twice"
    monkeypatch.setattr(coverage, "simulate", real)
    kept = [r for r in first if r["seeds"] == "3"]
    coverage.write(table, kept)
    coverage.main([*words, "--table", str(table)])
    assert lines(table) == first, "what was lost comes out as before"


def test_an_unknown_paper_is_one_line(tmp_path):
    with pytest.raises(UserError, match="--papers poetry: no such paper; known are arcface"):
        coverage.main(["--papers", "poetry", "--table", str(tmp_path / "coverage.csv")])


def test_committed_intervals_of_ours_hold_the_truth_as_often_as_they_say():
    """Within two points, and two standard errors of the simulation."""
    found = [r for r in lines(coverage.TABLE) if r["form"] == "ours"]
    assert found and {(r["paper"], r["metric"]) for r in found} <= {(c.paper, c.metric) for c in coverage.CASES}
    for row in found:
        assert " †" not in tables.covered(row)
        for promised in (90, 95):
            error = 100 * math.sqrt(promised / 100 * (1 - promised / 100) / int(row["repetitions"]))
            assert float(row[f"covered_{promised}_pct"]) == pytest.approx(promised, abs=2 + 2 * error), row


def test_an_interval_of_ours_that_is_too_short_is_marked():
    row = {"form": "ours", "repetitions": "1000", "covered_90_pct": "86.2", "covered_95_pct": "93"}
    assert tables.covered(row) == "86.2 / 93.0"  # within two points and two standard errors
    assert tables.covered(row | {"covered_95_pct": "91.7"}) == "86.2 / 91.7"
    assert tables.covered(row | {"covered_90_pct": "86.1"}) == "86.1 / 93.0 †"
    assert tables.covered(row | {"covered_95_pct": "91.6"}) == "86.2 / 91.6 †"
    assert tables.covered(row | {"covered_90_pct": "80", "form": "folds_t"}) == "80.0 / 93.0"


def test_the_notes_show_the_table():
    (text,) = tables.coverage_block("arcface")
    row = next(r for r in lines(coverage.TABLE) if r["paper"] == "arcface" and r["form"] == "folds_t")
    assert f"{float(row['covered_90_pct']):.1f} / {float(row['covered_95_pct']):.1f}" in text
    assert tables.coverage_block("no_paper") == []
