"""What `make reproduce-<paper>` trains, and what its table shows: with a made-up plan and made-up records."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from facepapers.common import cli, paths, plan
from facepapers.common.evidence import claims, statistics, tables
from facepapers.common.plan import Plan
from facepapers.common.protocols.metrics import Metric
from facepapers.common.tools import reproduce

PAPER = "coarse_to_fine"
PLAN = {
    "demo": Plan(("embedded",), ("a", "b"), (0,), takes="a minute"),
    "short": Plan(("one", "two+three"), ("a", "b", "c"), (0, 1), takes="an hour", reference_s=3600.0),
    "paper": Plan(("one",), ("a",), (0,), needs_gpu=True),
}


@dataclass
class Called:
    """What was trained and shown, and which data sets are here."""

    trained: list
    shown: list
    here: set


@pytest.fixture
def called(monkeypatch):
    found = Called([], [], set())
    settings = SimpleNamespace(PLAN=PLAN, PRESETS={name: SimpleNamespace(precision="fp32") for name in PLAN})
    modules = {
        f"facepapers.papers.{PAPER}.config": settings,
        f"facepapers.papers.{PAPER}.train": SimpleNamespace(main=found.trained.append),
    }
    monkeypatch.setattr(reproduce, "import_module", modules.__getitem__)
    monkeypatch.setattr(reproduce, "show", lambda *words: found.shown.append(words))
    monkeypatch.setattr(reproduce, "has_gpu", lambda: False)
    monkeypatch.setattr(reproduce, "expected", lambda plan, precision: f"expected in {precision}")
    monkeypatch.setattr(reproduce.sets, "available", lambda name: name in found.here)
    return found


def trainings(called):
    """(preset, row, data, seed, out, the other words) of each training."""
    found = []
    for words in called.trained:
        *values, rest = *(words[i + 1] for i in (0, 2, 4, 6, 8)), words[10:]
        assert words[:10:2] == ["--preset", "--row", "--data", "--seed", "--out"]
        found.append((*values, rest))
    return found


def test_every_row_and_seed_of_the_plan_is_trained(called, capsys):
    called.here = {"one"}
    reproduce.main(["coarse-to-fine", "--preset", "short"])
    wanted = [(row, seed) for seed in "01" for row in "abc"]
    assert trainings(called) == [("short", row, "one", seed, str(paths.LOCAL), []) for row, seed in wanted]
    assert called.shown == [(PAPER, "short", "one", paths.LOCAL)]
    assert "expected in fp32" in capsys.readouterr().out


def test_rows_seeds_data_out_and_further_settings_are_the_users(called, tmp_path, capsys):
    called.here = {"one", "two", "three"}
    words = ["--rows", "c  a", "--seeds", "7 5", "--data", "two+three", "--out", str(tmp_path), "--steps", "3", "--x=1"]
    reproduce.main([PAPER, "--preset", "short", *words])
    rest = ["--steps", "3", "--x=1"]
    wanted = [(row, seed) for seed in "75" for row in "ca"]
    assert trainings(called) == [("short", row, "two+three", seed, str(tmp_path), rest) for row, seed in wanted]
    assert called.shown == [(PAPER, "short", "two+three", tmp_path)]
    assert "expected" not in capsys.readouterr().out, "the plan's time is not that of other rows and seeds"


def test_what_auto_has_chosen_is_trained(called):
    called.here = {"two", "three"}
    reproduce.main([PAPER])
    assert trainings(called)[0][:3] == ("short", "a", "two+three") and called.shown[0][1:3] == ("short", "two+three")
    called.here = {"two"}  # half of a pair of sets is none
    called.trained.clear()
    reproduce.main([PAPER])
    assert {words[:3] for words in trainings(called)} == {("demo", "a", "embedded"), ("demo", "b", "embedded")}


@pytest.mark.parametrize("preset", ["short", "paper"])
def test_a_preset_that_was_asked_for_is_never_replaced(called, preset):
    with pytest.raises(cli.MissingData, match="not on this machine"):
        reproduce.main([PAPER, "--preset", preset])
    assert not called.trained
    called.here = {"one"}
    reproduce.main([PAPER, "--preset", preset, "--rows", "a", "--seeds", "0"])
    assert trainings(called)[0][:3] == (preset, "a", "one"), "also on a CPU where a GPU is meant"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(3, "10 seconds"), (47, "50 seconds"), (91, "2 minutes"), (5340, "89 minutes"), (5400, "1.5 hours")],
)
def test_durations_in_words(seconds, words):
    assert plan.duration(seconds) == words


# ---- The table

ERROR = Metric("error", "error (%)", True, lambda p: p["error"], needs=("error",))


def cell(low, high, kind="measured", records=(1,), status="other data"):
    interval = statistics.Interval((low + high) / 2, low, high, 3, 9)
    claim = {"id": "x", "what": "a number", "data": "one", "preset": "short", "row": "a"}
    return claims.Cell(PAPER, kind, claim, ERROR, list(records), [], interval, status)


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (4.0, 5.0, "agrees with the record"),
        (5.0, 6.0, "agrees with the record"),
        (4.4, 4.6, "agrees with the record"),
        (3.0, 4.1, "differs from the record"),
        (5.9, 7.0, "differs from the record"),
    ],
)
def test_a_rerun_is_held_against_the_record(low, high, words):
    assert reproduce.against(cell(low, high), cell(4.2, 5.8)) == words
    assert reproduce.against(cell(low, high, "level", status="worse"), cell(4.2, 5.8)) == "worse"


def test_the_table_shows_published_recorded_and_yours_of_this_preset(monkeypatch, tmp_path, capsys):
    of = lambda preset, data, row="a", **over: {
        "config": {"preset": preset}, "data": {"name": data}, "run": f"{data}-{preset}-{row}", "overrides": over,
        "metrics": {"error": 3.0}, "row": row,
    }  # fmt: skip
    mine = [of("short", "one"), of("demo", "one"), of("short", "two"), of("short", "one", "b", seed=1, lr=0.5)]
    drawn, known = [], cell(4.0, 6.0, "level", status="replicated")
    known.claim["published"] = "5.5"
    yours = cell(6.0, 8.0, "level", status="worse")
    yours.claim["published"] = "5.5"

    def cells(paper, records=None):
        if records is None:
            return [known]
        assert [r["run"] for r in records] == ["one-short-a", "one-short-b"]
        return [yours, cell(0.0, 1.0, records=())]

    monkeypatch.setattr(reproduce.runs, "recorded", lambda paper, out: mine)
    monkeypatch.setattr(reproduce.claims, "cells", cells)
    draw = lambda records, folder: (drawn.append((len(records), folder)), [])[1]
    monkeypatch.setattr(reproduce, "import_module", lambda name: SimpleNamespace(draw=draw))
    reproduce.show(PAPER, "short", "one", tmp_path)
    said = capsys.readouterr().out.splitlines()
    columns = [word.strip() for line in said[1:3] for word in line.split("  ") if word.strip()]
    assert columns == ["cell", "published", "recorded here", "yours", "status of yours",
                       "a number", "5.5", tables.value(known), tables.value(yours), "worse"]  # fmt: skip
    assert said[3] == "own settings, answers no cell: one-short-b: error 3.00"
    assert drawn == [(2, tmp_path / PAPER / "figures")]
