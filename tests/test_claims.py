"""Which runs answer a claim, how they are paired, and which weights are taken: on records of a few words."""

import dataclasses
import math
import os

import numpy as np
import pytest

from facepapers.common import cli, paths
from facepapers.common.evidence import claims, runs
from facepapers.common.protocols.metrics import Metric
from tests.conftest import one_line_error

ERROR = Metric("error", "error (%)", True, lambda p: p["error"], needs=("error",))
CLAIM = {"id": "x", "what": "x", "metric": "error", "data": "lfw", "preset": "short"}


class Made(claims.Evidence):
    """Evidence whose predictions come with the records."""

    def predictions(self, record):
        return record["predictions"]


def record(
    seed=0, row="ours", error=5.0, *, data="lfw", preset="short", seconds=9.0, started="2026", used="fp32", **over
):
    """A record whose test samples all have about this error; `over` are settings other than the preset's."""
    config = {"data": "auto", "preset": preset, "row": row, "seed": seed, "precision": "auto"} | over
    return {
        "run": f"{data}-{preset}-{row}-s{seed}", "config": config, "overrides": over | ({"seed": seed} if seed else {}),
        "data": {"name": data}, "metrics": {"error": error}, "seconds": seconds, "started": started, "precision": used,
        "predictions": {"error": error + np.linspace(-1, 1, 50)},
    }  # fmt: skip


def seeds(records):
    return [r["config"]["seed"] for r in records]


def filled(kind, records, **words):
    return claims._fill(claims.Cell("p", kind, CLAIM | words, ERROR), records, Made())


# ---- Pairs


def test_a_contrast_pairs_runs_of_equal_seeds_alone():
    """Whatever seeds the sides have, and in whatever order their folders are: s10 comes before s2."""
    ours = [record(seed, "ours", 5 + seed) for seed in (0, 10, 2, 3)]
    others = [record(seed, "theirs", 6 + seed) for seed in (10, 3, 4, 2)]
    found = filled("contrast", ours + others, better="ours", than="theirs")
    assert seeds(found.records) == seeds(found.others) == [2, 3, 10]
    assert found.interval.mean == pytest.approx(1) and found.interval.n_seeds == 3
    assert found.interval.half < 1e-6, "pairs of other seeds differ by whole points"
    assert found.status == "supported"
    turned = filled("contrast", ours + others, better="theirs", than="ours")
    assert turned.interval.mean == pytest.approx(-1) and turned.status == "refuted"
    assert {r["config"]["row"] for r in turned.records} == {"theirs"}


def test_sides_without_a_common_seed_give_no_gain():
    found = filled("contrast", [record(0, "ours"), record(1, "theirs")], better="ours", than="theirs")
    assert found.interval is None and found.status == "not run"


@pytest.mark.parametrize(("seconds", "count"), [(0.0, 3), (9.0, 1)])
def test_only_a_side_that_was_not_trained_meets_every_seed(seconds, count):
    ours, others = [record(seed) for seed in range(3)], [record(0, "theirs", 9.0, seconds=seconds)]
    found = claims.pair(ours, others)
    assert [len(side) for side in found] == [count, count]


def test_runs_that_differ_by_more_than_their_row_are_no_pair():
    """Students of two teachers differ by these, too; one record of each seed and row is all there is."""
    of = lambda seed, row, teacher: record(seed, row) | {"teacher": {"sha256": teacher}}
    ours = [of(0, "ours", "a"), of(1, "ours", "b"), of(2, "ours", "b")]
    others = [of(0, "theirs", "a"), of(1, "theirs", "a"), of(2, "theirs", "b")]
    alike = claims.alike_of("hybrid_order_distillation")
    for side, row in zip(claims.pair(ours, others, alike), ("ours", "theirs"), strict=True):
        assert [(r["config"]["seed"], r["config"]["row"]) for r in side] == [(0, row), (2, row)]
    assert len(claims.pair(ours, others)[0]) == 3 and claims.alike_of("arcface") is None
    untrained = [of(0, "theirs", "z") | {"seconds": 0.0}]
    assert len(claims.pair(ours, untrained, alike)[0]) == 3, "a side that is not trained stands for every seed"


def test_margins_of_a_contrast_are_those_of_its_claim():
    records = [record(seed, row, error) for seed in range(3) for row, error in (("ours", 5.3), ("theirs", 5.0))]
    status = lambda **words: filled("contrast", records, better="ours", than="theirs", **words).status
    assert status() == "refuted" and status(margin=0.2) == "refuted" and status(margin=0.4) == "supported"
    assert status(within=0.2) == "refuted" and status(within=0.4) == "supported"


# ---- Runs that answer


@pytest.mark.parametrize("other", [
    record(0, data="cofw"), record(0, preset="demo"), record(0, row="theirs"), record(0, lr=0.5),
    record(0) | {"metrics": {}, "predictions": {"other": np.ones(3)}},
    record(0) | {"metrics": {}, "predictions": {"error": np.array([1.0, math.nan])}},
], ids=["data", "preset", "row", "setting", "metric", "not a number"])  # fmt: skip
def test_other_runs_do_not_answer(other):
    plain = record(0)
    assert claims.matching([other], CLAIM, "ours", ERROR, Made()) == []
    (found,) = claims.matching([other, plain], CLAIM, "ours", ERROR, Made())
    assert found is plain


def test_runs_answer_in_the_order_of_their_seeds_and_a_frozen_network_once():
    records = [record(seed) for seed in (10, 2, 0)]
    assert seeds(claims.matching(records, CLAIM, "ours", ERROR, Made())) == [0, 2, 10]
    assert seeds(claims.matching(records, CLAIM | {"one_network": True}, "ours", ERROR, Made())) == [0]


def test_of_one_seed_the_newest_run_answers_and_a_forced_precision_last():
    old, new = record(0, started="2026-01"), record(0, started="2026-02")
    forced = record(0, started="2026-03", precision="fp32")
    for some in ([old, new, forced], [forced, new, old]):
        (found,) = runs.of_presets([*some, record(0, lr=1.0, started="2027")])
        assert found is new
    assert runs.of_presets([record(0, lr=1.0)]) == []
    (found,) = runs.of_presets([forced])
    assert found is forced
    assert seeds(runs.of_presets([record(2), record(1), record(3)])) == [2, 1, 3], "in their order"


@pytest.mark.parametrize(("preset", "status"), [("demo", "demo only"), ("short", "other data")])
def test_measurements_get_no_verdict(preset, status):
    found = filled("measured", [record(seed, preset=preset) for seed in range(3)], preset=preset, row="ours")
    assert found.status == status and found.interval.n_seeds == 3


def test_what_is_absent_is_named():
    level = {"row": "ours", "published": "5", "tolerance": 0.1}
    assert filled("level", [], **level).status == "data missing"
    assert filled("level", [record(0, "theirs")], **level).status == "not run"


@pytest.mark.parametrize(("published", "tolerance", "status"), [
    ("5.0", 0.5, "replicated"), ("50", 40, "better"), ("50", 46, "replicated"), ("4", 0.5, "worse"),
])  # fmt: skip
def test_a_tolerance_is_in_the_metrics_unit(published, tolerance, status):
    records = [record(seed) for seed in range(3)]
    found = filled("level", records, row="ours", published=published, tolerance=tolerance)
    assert found.status == status
    assert (
        filled("level", records, row="ours", published=published, tolerance=tolerance, reference="r").status
        == "reference"
    )


def test_an_incomplete_contrast_is_named(tmp_path):
    path = tmp_path / "papers" / "p" / "claims.toml"
    path.parent.mkdir(parents=True)
    paper = '[paper]\ntitle = "t"\nauthors = "a"\nvenue = "v"\nurl = "u"\n'
    path.write_text(
        paper + '[[contrast]]\nid = "c"\nwhat = "w"\nmetric = "m"\ndata = "d"\npreset = "p"\nbetter = "b"\n'
    )
    with pytest.raises(cli.UserError) as error:
        claims.read("p", tmp_path)
    one_line_error(error, path, "contrast 'c' lacks source, than")


# ---- Weights


def test_the_newest_weights_of_real_faces_are_taken(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(paths, "LOCAL", tmp_path / "local")
    monkeypatch.setattr(paths, "RECORDED", tmp_path / "results")
    with pytest.raises(cli.MissingData) as error:
        runs.newest_weights("some_paper")
    one_line_error(error, "make reproduce-some-paper", "--weights")
    for age, name in enumerate(["local/p/embedded-b", "results/p/lfw-new", "local/p/lfw-old", "results/p/embedded-a"]):
        path = tmp_path / name / "model.safetensors"
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (1000 - age, 1000 - age))
    assert runs.newest_weights("p") == tmp_path / "results/p/lfw-new/model.safetensors"
    assert "lfw-new" in capsys.readouterr().out
    assert runs.newest_weights("p", but="new") == tmp_path / "local/p/lfw-old/model.safetensors"
    assert runs.newest_weights("p", "embedded-*") == tmp_path / "local/p/embedded-b/model.safetensors"


@pytest.mark.parametrize("paper", ["arcface", "hybrid_order_distillation"])
def test_no_verdict_on_omniglot_hangs_on_queries_of_one_character_being_independent(paper):
    """Twenty drawings a character: with whole characters as the test's samples every verdict is the same."""
    records, evidence, compared = runs.recorded(paper), claims.Evidence(), 0
    for cell in claims.cells(paper, records, evidence):
        metric = cell.metric
        asked = cell.kind == "contrast" and cell.claim["data"] == "omniglot" and metric.per_sample
        if not asked or not cell.records or len(metric.per_sample(evidence.predictions(cell.records[0]))) != 13_180:
            continue
        of_character = lambda p, metric=metric: metric.per_sample(p).reshape(-1, 20).mean(1)
        blank = claims.Cell(paper, "contrast", cell.claim, dataclasses.replace(metric, per_sample=of_character))
        assert claims._fill(blank, records, evidence).status == cell.status, cell.name
        compared += 1
    assert compared > 9
