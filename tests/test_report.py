"""Cells, tables and their verification, in a temporary repository with made-up records."""

import json
import math
import os
import re
import shutil
import subprocess
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from facepapers.common import cli, paths, storage
from facepapers.common.evidence import cards, claims, export, margins, runs, schema, tables, timing
from facepapers.common.tools import bench, report
from facepapers.papers.coarse_to_fine import config, evaluate
from tests.conftest import REPOSITORY, one_line_error

PAPER = "coarse_to_fine"
CARDS = (f"papers/{PAPER}/README.md", f"papers/{PAPER}/NOTES.md")
NOTES = "# A card\n\n<!-- generated: results -->\n<!-- end of results -->\n\nThe end.\n"
CARD = NOTES.replace("The end.", "<!-- generated: findings -->\n<!-- end of findings -->\n\nThe end.")
FRONT = NOTES.replace("The end.", "<!-- generated: precision -->\n<!-- end of precision -->\n\n"
                      "<!-- generated: score -->\n<!-- end of score -->\n\n<!-- generated: mutants -->\n"
                      "<!-- end of mutants -->\n\nThe end.")  # fmt: skip


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository with this paper's claims, empty cards and no record."""
    folder = tmp_path / "papers" / PAPER
    folder.mkdir(parents=True)
    shutil.copy(REPOSITORY / "papers" / PAPER / "claims.toml", folder)
    (folder / "README.md").write_text(CARD)
    (folder / "NOTES.md").write_text(NOTES)
    (tmp_path / "README.md").write_text(FRONT)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "README.md").write_text("<!-- generated: copies -->\n<!-- end of copies -->\n")
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "RECORDED", tmp_path / "results")
    for function in (claims.papers, claims.read, report.generated):
        monkeypatch.setattr(function, "__defaults__", (tmp_path,))
    monkeypatch.setattr(runs.recorded, "__defaults__", (tmp_path / "results",))
    return tmp_path


def put(root, row, error_px, seed=0, data="cofw", preset="short", trained=True, margins=None, **overrides):
    """Write a complete record whose faces all have about this mean error over a distance of 100 pixels."""
    settings = runs.as_dict(config.preset(preset, row, data)) | {"seed": seed} | overrides
    used = "bf16" if settings["precision"] == "auto" else settings["precision"]
    rng = np.random.default_rng(0)  # the same faces for every run
    noise = rng.uniform(0.9, 1.1, (60, 29)) * error_px
    name = f"{data}-{preset}-{row}-s{seed}" + "".join(f"-{k}" for k in overrides)
    folder = root / "results" / PAPER / name
    distance = "interpupil_px" if data != "lfpw" else "eyecentre_px"
    predictions = {
        "error_px": noise.astype(np.float32), "error_px_validation_chosen": noise.astype(np.float32),
        distance: np.full(60, 100.0), "interocular_px": np.full(60, 140.0),
        "principal": np.arange(29) < 12,
    }  # fmt: skip
    runs.write_predictions(folder / "predictions.npz", predictions)
    runs.write_history(folder / "history.csv", [{"step": 1, "loss": 2.0}])
    record = {
        "schema": schema.SEALED, "paper": PAPER, "run": name, "config": settings,
        "overrides": overrides | ({"seed": seed} if seed else {}),
        "precision": used, "margins": margins or {},
        "data": {"name": data, "fingerprint": "f" * 64, "test_faces": 60, "boxes": "official"}, "selection": "last",
        "metrics": evaluate.measure(predictions), "weights": {"file": "model.safetensors", "sha256": "a" * 64},
        "predictions_sha256": storage.sha256(folder / "predictions.npz"), "started": "2026-01-01T00:00:00Z",
        "history_sha256": storage.sha256(folder / "history.csv"), "peak_memory_mib": {"host": 100},
        "seconds": 12.0 * trained, "samples_per_s": 300.0, "source": {"commit": "c" * 40, "dirty": True, "sha256": "x"},
        "environment": {"device": "a processor", "threads": 2, "torch": "2", "python": "3.12"},
    }  # fmt: skip
    storage.write_json(folder / "run.json", schema.sealed(record))
    return folder


def fresh(root):
    """`make report` without its figures."""
    for path, text in report.generated().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def cell(name):
    return next(c for c in claims.cells(PAPER) if c.claim["id"] == name)


def test_a_run_from_before_a_metric_does_not_answer_its_claim(root):
    put(root, "cft", 5, data="lfpw")
    assert cell("lfpw-cft").records and not cell("lfpw-cft-mirrored").records
    assert cell("lfpw-cft-mirrored").status == "not run"


def test_a_run_from_before_a_metric_answers_where_its_predictions_hold_it(root):
    folder = put(root, "cft", 5, data="lfpw")
    before = cell("lfpw-cft")
    edit(folder / "run.json", lambda record: record["metrics"].pop(before.metric.name))
    assert cell("lfpw-cft").records and cell("lfpw-cft").interval == before.interval


def test_without_records_nothing_is_claimed(root):
    assert {c.status for c in claims.cells(PAPER)} == {"data missing"}
    assert all(tables.value(c) == "—" for c in claims.cells(PAPER))
    fresh(root)
    report.verify()


@pytest.mark.parametrize(
    ("error", "status"), [(6.3, "replicated"), (5.2, "better"), (7.5, "worse"), (6.08, "inconclusive")]
)
def test_a_level_gets_its_computed_status(root, error, status):
    for seed in range(3):
        put(root, "cft", error, seed)
    found = cell("cofw-nme-short")
    assert found.status == status and len(found.records) == 3
    assert cell("cofw-nme").status == "not run"  # the data is here, that preset was not run
    assert cell("lfpw-cft").status == "data missing"


def test_unlike_things_side_by_side_get_no_verdict(root):
    path = root / "papers" / PAPER / "claims.toml"
    line = 'id = "cofw-nme-short"\n'
    path.write_text(path.read_text().replace(line, f'{line}reference = "another network"\n'))
    assert cell("cofw-nme-short").status == "data missing"
    for seed in range(3):
        put(root, "cft", 6.3, seed)
    assert cell("cofw-nme-short").status == "reference" and cell("cofw-nme-short").interval


def test_a_contrast_needs_three_seeds_a_side(root):
    for seed in range(3):
        put(root, "cft", 5 + 0.01 * seed, seed, "lfpw")
    put(root, "direct", 6, 0, "lfpw")
    assert cell("lfpw-coarse-to-fine").status == "one seed: higher"
    assert len(cell("lfpw-coarse-to-fine").records) == 1  # only the seed that both sides have
    for seed in (1, 2):
        put(root, "direct", 6 + 0.01 * seed, seed, "lfpw")
    found = cell("lfpw-coarse-to-fine")
    assert found.status == "supported" and found.interval.mean == pytest.approx(1, abs=0.05)
    for seed in range(3):
        put(root, "direct", 4, seed, "lfpw")
    assert cell("lfpw-coarse-to-fine").status == "refuted"


def test_no_difference_is_a_verdict_of_runs_that_began_under_its_margin(root):
    claim, margin = "lfpw-coarse-to-fine", 0.2
    for seed, gain in enumerate((0.05, -0.05, 0.03, -0.04, 0.02, -0.01)):
        held = {claim: margin} if seed >= 3 else {}
        put(root, "cft", 5 - gain, seed, "lfpw", margins=held)
        put(root, "direct", 5, seed, "lfpw", margins=held)
        if seed < 5:
            assert cell(claim).status != "no difference"  # older runs do not count, and two are no verdict
    assert cell(claim).status == "no difference"
    run = root / "results" / PAPER / "lfpw-short-cft-s5" / "run.json"
    edit(run, lambda record: record["margins"].update({claim: 0.3}))
    assert cell(claim).status == "inconclusive"  # it began under another margin


def test_older_runs_neither_help_nor_hinder_no_difference(root):
    """Its interval holds 90 %: of three gains 0.1 apart 2.92 * 0.1 / sqrt(3) = 0.17, where 95 % would take 0.25."""
    claim = "lfpw-coarse-to-fine"
    for seed, gain in enumerate((2.0, -2.0, 0.5, 0.1, -0.1, 0.0)):
        held = {claim: 0.2} if seed >= 3 else {}
        put(root, "cft", 5 - gain, seed, "lfpw", margins=held)
        put(root, "direct", 5, seed, "lfpw", margins=held)
    assert cell(claim).status == "no difference"


def test_a_side_without_training_counts_for_every_margin():
    ours, others = [{"seconds": 5, "margins": {"c": m}} for m in (0.2, 0.3)], [{"seconds": 0}] * 2
    assert margins.judged({"id": "c", "equivalence_margin": 0.2}, ours, others) == [0]
    assert margins.judged({"id": "c"}, ours, others) == []


def test_a_gain_that_may_pass_the_margin_stays_inconclusive(root):
    for seed, gain in enumerate((0.2, -0.2, 0.1)):
        put(root, "cft", 5 - gain, seed, "lfpw", margins={"lfpw-coarse-to-fine": 0.2})
        put(root, "direct", 5, seed, "lfpw", margins={"lfpw-coarse-to-fine": 0.2})
    assert cell("lfpw-coarse-to-fine").status == "inconclusive"


def test_margins_are_those_of_the_last_commit(monkeypatch):
    text = (
        (REPOSITORY / "papers" / PAPER / "claims.toml")
        .read_text()
        .replace("equivalence_margin = 0.2", "equivalence_margin = 7.0")
    )
    monkeypatch.setattr(margins.environment, "git", lambda *words: text if words[0] == "show" else None)
    settings = {"data": "lfpw", "preset": "short", "row": "direct"}
    assert margins.committed(PAPER, settings) == {"lfpw-coarse-to-fine": 7.0, "lfpw-coarse-to-fine-principal": 7.0}
    assert margins.committed(PAPER, settings | {"row": "heatmap"}) == {"lfpw-variant": 7.0}
    assert margins.committed(PAPER, settings | {"preset": "demo"}) == {}
    monkeypatch.setattr(margins.environment, "git", lambda *words: None)
    assert margins.committed(PAPER, settings) == {}


@pytest.mark.parametrize("held", ["", "equivalence_margin = 0.3\nequivalence_reason = 'larger'\n"])
def test_a_margin_that_was_not_committed_before_the_run_is_noticed(root, monkeypatch, held):
    """Whoever writes one into an old record would get a verdict of no difference from runs that were looked at."""
    folder = put(root, "cft", 5, 0, "lfpw", margins={"lfpw-coarse-to-fine": 0.2})
    fresh(root)
    report.verify()  # git does not know the record's commit
    text = (root / "papers" / PAPER / "claims.toml").read_text()
    then = re.sub(r"equivalence_margin = 0.2\nequivalence_reason = .*\n", held, text)
    monkeypatch.setattr(margins.environment, "git", lambda *words: then if words[0] == "show" else None)
    with pytest.raises(cli.UserError) as error:
        report.verify()
    one_line_error(error, folder / "run.json", "notes margins that its commit")


def test_why_tells_the_interval_that_a_margin_judges_and_the_plan(root, capsys):
    claim = "lfpw-coarse-to-fine"
    for seed, gain in enumerate((0.1, -0.1, 0.0)):  # 2.92 * 0.1 / sqrt(3) = 0.17
        put(root, "cft", 5 - gain, seed, "lfpw", margins={claim: 0.2})
        put(root, "direct", 5, seed, "lfpw", margins={claim: 0.2})
    storage.write_json(root / "results" / "settle.json", {f"{PAPER}.{claim}": 8})
    report.why(f"{PAPER}.{claim}")
    said = " ".join(capsys.readouterr().out.split())
    assert "judged [-0.17, 0.17], their 90 % interval" in said and "planned 8 seeds a side" in said
    assert "confidence 95 %" in said
    line = export.line(cell(claim))
    assert line["equivalence_margin"] == 0.2 and line["equivalence_pairs"] == 3
    assert line["equivalence_high"] == -line["equivalence_low"] == pytest.approx(0.17, abs=0.01)


def test_a_row_without_training_stands_for_every_seed(root):
    for seed in range(3):
        put(root, "cft", 5 + 0.01 * seed, seed, "embedded", "demo")
    put(root, "mean-shape", 20, 0, "embedded", "demo", trained=False)
    found = cell("embedded-learns")
    assert found.status == "supported" and len(found.others) == 3


def test_other_seeds_on_a_frozen_network_are_no_repeats(root):
    path = root / "papers" / PAPER / "claims.toml"
    path.write_text(path.read_text().replace('id = "lfpw-cft"\n', 'id = "lfpw-cft"\none_network = true\n'))
    for seed in range(3):
        put(root, "cft", 5, seed, "lfpw")
    assert [r["config"]["seed"] for r in cell("lfpw-cft").records] == [0]
    assert len(matching_seeds("cft")) == 3


def matching_seeds(row):
    claim = next(c.claim for c in claims.cells(PAPER) if c.claim["id"] == "lfpw-coarse-to-fine")
    return claims.matching(runs.recorded(PAPER), claim, row, claims.metrics_of(PAPER)[claim["metric"]])


def test_a_changed_setting_keeps_a_run_out_of_the_claim(root):
    put(root, "cft", 6.3, 0)
    put(root, "cft", 3.0, 0, batch=128)
    put(root, "cft", 6.3, 1)
    assert [r["config"]["seed"] for r in cell("cofw-nme-short").records] == [0, 1]


def test_a_run_in_a_forced_precision_answers_where_there_is_no_other(root, capsys):
    put(root, "cft", 6.3, 0, precision="fp32")
    put(root, "cft", 3.0, 1, precision="fp32")
    put(root, "cft", 6.4, 1)
    found = cell("cofw-nme-short")
    assert [r["run"] for r in found.records] == ["cofw-short-cft-s0-precision", "cofw-short-cft-s1"]
    assert found.interval.mean == pytest.approx(6.35, abs=0.1)
    fresh(root)
    report.verify()
    report.main(["why", f"{PAPER}.cofw-nme-short"])
    said = [line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines() if "  precision " in line]
    assert said == ["fp32, forced", "bf16"]


def test_the_front_page_holds_a_contrast_in_either_precision(root):
    for seed in range(3):
        put(root, "cft", 5 + 0.01 * seed, seed, "embedded", "demo")
    put(root, "mean-shape", 20, 0, "embedded", "demo", trained=False)
    block = lambda: report.generated()[root / "README.md"].split("generated: precision -->")[1].split("<!--")[0].strip()
    assert block() == "", "nothing was run in fp32"
    put(root, "cft", 8, 1, "embedded", "demo", precision="fp32")
    put(root, "mean-shape", 20, 0, "embedded", "demo", trained=False, precision="fp32")
    assert block().startswith("One contrast per paper's demo, in bf16 / fp32: coarse-to-fine, CFT beats the mean shape")
    assert ": 15.01 [" in block() and " supported / 12.01 [" in block()
    assert " one seed: higher (3 / 1 seeds)." in block()
    assert len(cell("embedded-learns").records) == 3 and cell("embedded-learns").interval.mean > 14, "as before"


def test_tables_hold_what_the_cells_say(root):
    for seed in range(3):
        put(root, "cft", 6.3, seed)
        put(root, "cft", 6.3, seed, preset="paper")
    fresh(root)
    front, card, notes = ((root / p).read_text() for p in ("README.md", *CARDS))
    assert "| CFT on COFW, mean error, shortened training | 6.33 | 6.3" in notes and "shortened training" not in card
    assert "| CFT on COFW, mean error | 6.33 | 6.3" in card and "| replicated |" in card
    assert "| % ↓ | 3 | replicated |" in front and front.endswith("The end.\n") and front.startswith("# A card")
    page = (root / "results" / "index.html").read_text()
    assert "6.33" in page and 'data-status="replicated"' in page and "Zhiwen Shao" in page
    fresh(root)
    assert (root / "README.md").read_text() == front  # writing twice changes nothing


@pytest.mark.skipif(math.isnan(timing.resident()), reason="this system does not tell what a process holds")
@pytest.mark.parametrize("mib", [20, 200])
@pytest.mark.parametrize("kernel", [True, False])
def test_peak_memory_is_what_a_run_needs(monkeypatch, mib, kernel):
    """Also for a small block, which the C library would keep after the first run and hand out again unseen."""
    if not kernel:  # a system that tells no peak is looked at again and again, so the block stays for a moment
        monkeypatch.setattr(timing, "forget_peak", lambda: False)
    elif not timing.forget_peak():
        pytest.skip("this system tells no peak")

    def need():
        block = torch.ones(mib << 18)
        if not kernel:
            time.sleep(0.3)
        return block.sum()

    assert timing.peak_mib(need, torch.device("cpu")) == pytest.approx(mib, rel=0.2, abs=3)
    assert timing.peak_mib(lambda: None, torch.device("cpu")) < 2
    assert 0 < timing.available() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_a_recorded_benchmark_stands_in_the_card(root, monkeypatch, capsys):
    (root / "papers" / PAPER / "bench.py").touch()
    calls = []
    found = [("cropping", "batched", lambda: calls.append(1), "one by one", lambda: calls.append(2)),
             ("a step", "ours", lambda: None, "", None)]  # fmt: skip
    monkeypatch.setattr(bench, "import_module", lambda name: SimpleNamespace(comparisons=lambda: found))
    monkeypatch.setattr(timing, "LIMITS", dict(timing.LIMITS))
    monkeypatch.setattr(bench.probe, "gflops", lambda dtype, device, seconds: 50.0)
    bench.main([PAPER])
    assert not (root / "results" / PAPER / "bench.csv").exists() and calls.count(1) == calls.count(2) > 1
    bench.main([PAPER, "--record"])
    fresh(root)
    card = (root / "papers" / PAPER / "NOTES.md").read_text()
    lines = [line for line in card.splitlines() if line.startswith(("| cropping | batched | ", "| a step | ours | "))]
    assert len(lines) == 2 and lines[0].count(" | one by one | ") == 1 and lines[1].endswith("|  |  |  |")
    assert "ratio" not in card and f"torch {torch.__version__}" in card
    printed = capsys.readouterr().out
    assert f"batched {float(lines[0].split(' | ')[2]):.1f} ms" in printed


def test_verify_passes_on_fresh_files_and_counts(root, capsys):
    folder = put(root, "cft", 6.3)
    fresh(root)
    count = len(storage.read_json(folder / "run.json")["metrics"])
    report.main(["verify"])
    said = capsys.readouterr().out.splitlines()
    assert said[0].split() == ["cells", "coarse-to-fine", "all"] and len({len(line) for line in said[:-1]}) == 1
    rows = {line.rsplit(maxsplit=2)[0]: line.split()[-2:] for line in said[1:-1]}
    together = sum(len(claims.read(PAPER).get(kind, [])) for kind in claims.REQUIRED)
    assert rows == {
        "one seed: no difference seen": ["1", "1"], "not run": ["1", "1"], "data missing": [str(together - 2)] * 2,
        "together": [str(together)] * 2, "metric values": [str(count), str(count)],
    }  # fmt: skip
    assert f"verified: {count} metric values recomputed" in said[-1] and "all tables fresh" in said[-1]
    report.main(["verify", "-v"])
    assert "published 6.33  ours 6.3" in capsys.readouterr().out


def test_the_front_page_says_what_the_tests_caught(root):
    put(root, "cft", 6.3)
    storage.write_json(root / "results" / "mutants.json", {"date": "2026-01-02", "listed": 20, "equivalent": 1,
                                                           "decided": 15, "caught": 14})  # fmt: skip
    fresh(root)
    assert (
        "Of 15 realistic bugs, put in one at a time, the tests caught 14 (`make mutants`, 2026-01-02; 4 not tried)."
        in (root / "README.md").read_text()
    )


def test_no_difference_counts_as_settled():
    cell = lambda status: SimpleNamespace(kind="contrast", status=status, interval=None, claim={"data": "lfw"})
    text = cards.score([cell(status) for status in ("supported", "no difference", "no difference", "inconclusive")])
    assert (
        "**4 claims** of a difference: 1 supported, 0 refuted (0 of both on drawn faces), 2 without a difference, "
        in text
    )
    assert text.endswith("1 open.")


def test_the_summary_adds_up():
    one, two = (SimpleNamespace(status=status, kind="level") for status in ("better", "worse"))
    text = report.summary({"a_paper": [one, two], "b": [one, one, one]}, {"a_paper": 10, "b": 4})
    assert [line.split()[-3:] for line in text.splitlines()] == [
        ["a-paper", "b", "all"], ["1", "3", "4"], ["1", "0", "1"], ["2", "3", "5"], ["10", "4", "14"],
    ]  # fmt: skip


def test_verify_of_one_paper_leaves_the_shared_files_alone(root, capsys):
    put(root, "cft", 6.3)
    fresh(root)
    for name in ("README.md", "results/index.html"):
        (root / name).write_text((root / name).read_text().replace("6.33", "6.30"))
    for name in (PAPER, "coarse-to-fine"):
        report.main(["verify", "--paper", name])
        assert f"{PAPER}'s tables fresh" in capsys.readouterr().out
    with pytest.raises(cli.UserError, match="stale"):
        report.main(["verify"])
    card = root / "papers" / PAPER / "README.md"
    card.write_text(card.read_text().replace("6.33", "6.30"))
    with pytest.raises(cli.UserError) as error:
        report.main(["verify", "--paper", PAPER])
    one_line_error(error, "stale", card.relative_to(root))
    with pytest.raises(cli.UserError) as error:
        report.main(["verify", "--paper", "coarse"])
    one_line_error(error, "'coarse'", PAPER)


def test_verify_of_one_paper_reads_no_other(root, monkeypatch, capsys):
    put(root, "cft", 6.3)
    fresh(root)
    monkeypatch.setattr(claims, "papers", lambda: [PAPER, "another"])
    read, recorded = [], runs.recorded
    monkeypatch.setattr(runs, "recorded", lambda name: (read.append(name), recorded(name))[1])
    storage.write_json(root / "results" / "settle.json", {"another.claim": 8})
    report.verify(PAPER)
    assert set(read) == {PAPER}


def tampered(root, change):
    """A verified repository, then `change(folder)`; returns verify's error."""
    folder = put(root, "cft", 6.3)
    fresh(root)
    report.verify()
    change(folder)
    with pytest.raises(cli.UserError) as error:
        report.verify()
    return error, folder


def edit(path, change):
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(schema.sealed(record)))


def test_changed_predictions_are_noticed(root):
    def change(folder):
        arrays = runs.read_predictions(folder / "predictions.npz")
        arrays["error_px"][0, 0] += 0.01
        runs.write_predictions(folder / "predictions.npz", arrays)

    error, folder = tampered(root, change)
    one_line_error(error, folder / "predictions.npz", "git")


def test_missing_predictions_are_noticed(root):
    error, folder = tampered(root, lambda folder: (folder / "predictions.npz").unlink())
    one_line_error(error, folder / "predictions.npz", "missing")


def test_a_changed_metric_is_noticed(root):
    change = lambda folder: edit(folder / "run.json", lambda r: r["metrics"].update(nme_interpupil_pct=6.31))
    error, folder = tampered(root, change)
    one_line_error(error, folder / "run.json", "nme_interpupil_pct", "6.31")


def test_an_unknown_metric_is_noticed(root):
    change = lambda folder: edit(folder / "run.json", lambda r: r["metrics"].update(nme_best_pct=1.0))
    error, folder = tampered(root, change)
    one_line_error(error, folder / "run.json", "nme_best_pct")


@pytest.mark.parametrize("factor", [0.9, 1.00001, math.nan])
def test_predictions_changed_together_with_their_hash_are_noticed(root, factor):
    def change(folder):
        arrays = runs.read_predictions(folder / "predictions.npz")
        runs.write_predictions(folder / "predictions.npz", arrays | {"error_px": arrays["error_px"] * factor})
        digest = storage.sha256(folder / "predictions.npz")
        edit(folder / "run.json", lambda r: r.update(predictions_sha256=digest))

    error, folder = tampered(root, change)
    one_line_error(error, folder / "run.json", "its predictions give")


@pytest.mark.parametrize("name", ["README.md", *CARDS, "results/index.html"])
def test_a_number_typed_by_hand_is_stale(root, name):
    error, _ = tampered(
        root, lambda folder: (root / name).write_text((root / name).read_text().replace("6.33", "6.30"))
    )
    one_line_error(error, "stale", name, "make report")


def test_a_generated_file_that_is_gone_is_stale(root):
    error, _ = tampered(root, lambda folder: (root / "results" / "cells.csv").unlink())
    one_line_error(error, "stale", "results/cells.csv", "make report")


def test_a_new_record_makes_the_tables_stale(root):
    error, _ = tampered(root, lambda folder: put(root, "cft", 6.4, 1))
    one_line_error(error, "stale", "NOTES.md")


def test_prose_around_the_table_is_free(root):
    put(root, "cft", 6.3)
    fresh(root)
    path = root / "README.md"
    path.write_text(path.read_text().replace("The end.", "Another end."))
    report.verify()


def test_lost_markers_are_one_line(root):
    (root / "README.md").write_text("# no markers\n")
    with pytest.raises(cli.UserError) as error:
        report.generated()
    one_line_error(error, root / "README.md", "generated: score", "restore")


def test_a_paper_without_notes_is_one_line(root):
    (root / "papers" / PAPER / "NOTES.md").unlink()
    with pytest.raises(cli.UserError) as error:
        report.generated()
    one_line_error(error, root / "papers" / PAPER / "NOTES.md", "no such file", "markers of results")


def test_why_prints_the_chain(root, capsys):
    put(root, "cft", 6.3)
    put(root, "cft", 6.4, 1)
    for name in (f"{PAPER}.cofw-nme-short", "coarse-to-fine.cofw-nme-short"):
        report.main(["why", name])
        said = capsys.readouterr().out
        for word in ("6.33", "abstract", "0.25", "official test boxes", "inter-pupil",
                     "status             two seeds: no difference seen", "cofw-short-cft-s0", "cofw-short-cft-s1",
                     "c" * 40, "uncommitted changes", "a processor", "f" * 64, "a" * 64, "lr=",
                     "predictions.npz, sha256", "changed since unknown"):  # fmt: skip
            assert word in said, word


def test_why_shows_the_metric_of_its_cell(root, capsys):
    """Whatever else the record holds; of a contrast the runs of both sides, each under its row."""
    for row, error in (("cft", 6.3), ("direct", 7.0)):
        put(root, row, error, data="lfpw")
    shown = set()
    for found in (c for c in claims.cells(PAPER) if c.records):
        report.why(found.name)
        said = capsys.readouterr().out
        for record in (*found.records, *found.others):
            value = f"{found.metric.value(runs.read_predictions(record['folder'] / 'predictions.npz')):.4f}"
            assert f"{found.metric.name} {value} (last weights)" in " ".join(said.split()), found.name
            side = f" ({record['config']['row']})" if found.kind == "contrast" else ""
            assert f"run {record['run']}{side}\n" in said
            shown.add((found.metric.name, value))
    assert len({name for name, _ in shown}) > 1 and len(shown) > 3


def test_why_names_what_has_changed_since():
    assert report.since([]) == "nothing that the run imported"
    assert report.since([*"abcdefgh"]) == "a, b, c, d, e, f, g, h"
    assert report.since(["a", "b"]) == "a, b" and report.since(["a", "b", "c"], 2) == "a, b and 1 more"


def test_why_without_a_run(root, capsys):
    report.main(["why", f"{PAPER}.cofw-nme"])
    assert "no committed run has data 'cofw' and preset 'paper'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("coarse-to-fine.lfpw-ctf", "lfpw-cft"),
        ("cofw_nme", "cofw-nme"),
        ("lfpw-heatmap", "lfpw-heatmap"),
        ("coarse_to_fin.ibug-nme", "ibug-nme"),
    ],
)
def test_why_of_a_wrong_name_offers_the_nearest_at_once(root, monkeypatch, name, near):
    nothing(monkeypatch)
    with pytest.raises(cli.UserError) as error:
        report.main(["why", name])
    one_line_error(error, "no cell", name)
    offered = str(error.value).split("nearest names are ")[1].split(", ")
    assert offered[0] == f"{PAPER}.{near}" and len(offered) == 3


def test_a_claims_id_is_found_without_its_paper():
    known = ["ab.demo-cf", "a_paper_with_a_long_name.demo-cft", "ab.lfw"]
    assert report.nearest("demo-cft", known, 2) == ["a_paper_with_a_long_name.demo-cft", "ab.demo-cf"]


@pytest.mark.parametrize("name", ["", " "])
def test_why_of_no_name_shows_how(root, monkeypatch, name):
    nothing(monkeypatch)
    with pytest.raises(cli.UserError) as error:
        report.main(["why", name])
    one_line_error(error, "usage: make why CELL=<paper>.<claim>", f"CELL={PAPER}.cofw-nme")


def nothing(monkeypatch):
    """Fail if a cell is computed or a record read."""
    for module, name in ((claims, "cells"), (claims, "cell"), (runs, "recorded"), (runs, "read_predictions")):
        monkeypatch.setattr(module, name, lambda *words, name=name: pytest.fail(f"{name} was called"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "write, verify, why"), (["wright"], "write, verify, why"), (["why"], "CELL"), (["verify", "x"], "'x'"),
        (["verify", "--v"], "--verbose"), (["write", "-v"], "'--verbose'"),
    ],
)  # fmt: skip
def test_wrong_words_are_one_line(root, words, said):
    with pytest.raises(cli.UserError) as error:
        report.main(words)
    one_line_error(error, said)


@pytest.mark.parametrize("key", ["tolerance_reason", "source", "published", "metric"])
def test_an_incomplete_claim_is_named(root, key):
    path = root / "papers" / PAPER / "claims.toml"
    lines = path.read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith(f"{key} ="))
    path.write_text("\n".join(lines[:first] + lines[first + 1 :]))
    with pytest.raises(cli.UserError) as error:
        claims.read(PAPER)
    one_line_error(error, path, "'cofw-nme'", f"lacks {key}")


def test_claims_that_cannot_be_read_are_one_line(root):
    path = root / "papers" / PAPER / "claims.toml"
    text = path.read_text()
    path.write_text(text + "\n[[level\n")
    with pytest.raises(cli.UserError) as error:
        claims.read(PAPER)
    one_line_error(error, path, "TOML")
    path.write_text(text.replace('metric = "nme_interpupil_pct"', 'metric = "nme"', 1))
    with pytest.raises(cli.UserError) as error:
        claims.cells(PAPER)
    one_line_error(error, "cofw-nme", "unknown metric 'nme'")
    with pytest.raises(cli.UserError) as error:
        claims.read("no_paper")
    one_line_error(error, "no such paper", PAPER)


def test_speed_measured_outside_stands_in_the_card(root):
    rows = f"{PAPER},a head,a peer,release,1.5,,one thread\nanother,a step,somebody,release,2,3,two threads\n"
    (root / "results").mkdir(exist_ok=True)
    (root / "results" / "outside.csv").write_text("paper,what,peer,commit,faster,smaller,conditions\n" + rows)
    fresh(root)
    card = (root / "papers" / PAPER / "NOTES.md").read_text()
    assert "| a head | a peer | release | 1.5 | — | one thread |\n" in card and "somebody" not in card


# The benchmark's limits


def test_slow_comparisons_get_fewer_rounds(monkeypatch):
    monkeypatch.setattr(timing, "LIMITS", {"comparison_s": 3.0, "all_s": 170.0})
    assert [timing.affordable(9, seconds) for seconds in (0.0, 0.1, 0.5, 1.4, 60.0)] == [9, 9, 6, 2, 1]
    calls = []
    monkeypatch.setattr(timing, "timed", lambda run: (run(), 1.0)[1])
    assert timing.compare(lambda: calls.append(1), lambda: calls.append(2)) == (1.0, 1.0, 1.0)
    assert calls == [1, 2] * 2, "a warm-up and the one round that fits"
    seconds = {"ours": [9.0, 1.0, 2.0, 1.5], "theirs": [9.0, 6.0, 5.0, 4.0]}  # the first are the warm-up
    monkeypatch.setattr(timing, "timed", lambda run: seconds[run()].pop(0))
    assert timing.compare(lambda: "ours", lambda: "theirs", rounds=3) == (1.0, 6.0, 6.0), "one round"
    assert timing.compare(2.0, 5.0) == (2.0, 5.0, 2.5)
    timing.LIMITS["comparison_s"] = math.inf
    seconds.update(ours=[9.0, 1.0, 2.0, 1.5], theirs=[9.0, 6.0, 5.0, 4.0])
    assert timing.compare(lambda: "ours", lambda: "theirs", rounds=3) == (1.5, 5.0, pytest.approx(10 / 3))
    assert timing.affordable(9, 60.0) == 9


def test_a_cold_start_is_counted_in_cpu_seconds_of_fresh_processes(monkeypatch, tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    work = "sum(range(3_000_000))"
    idle, busy = (timing.cpu_seconds(["-c", code]) for code in ("import time; time.sleep(0.5)", f"{work}; {work}"))
    assert 0 < idle < busy, "waiting is no work"
    with pytest.raises(subprocess.CalledProcessError):
        timing.cpu_seconds(["-c", "raise SystemExit(2)"])
    seconds = {"torch": [9.0, 2.0, 1.0, 3.0], "command": [9.0, 4.0, 6.0, 5.0]}
    asked = []
    measured = lambda words: (asked.append(words), seconds["torch" if "-c" in words else "command"].pop(0))[1]
    monkeypatch.setattr(timing, "cpu_seconds", measured)
    monkeypatch.setattr(timing, "LIMITS", {"comparison_s": math.inf, "all_s": 170.0})
    assert timing.cold_start(("-m", "command"), tmp_path / "file", rounds=3) == (2.0, 5.0)
    assert str(tmp_path / "file") in asked[0] and "import sys, torch" in asked[0][1] and asked[1] == ("-m", "command")


def test_comparisons_without_time_are_named(monkeypatch, capsys):
    found = [(f"work {k}", "ours", lambda: None, "", None) for k in range(3)]
    monkeypatch.setattr(bench, "import_module", lambda name: SimpleNamespace(comparisons=lambda: found))
    monkeypatch.setattr(bench.export, "comparisons", lambda paper: [])  # of the released models
    assert len(bench.measure(PAPER, {"fp32": 50.0})) == 3
    capsys.readouterr()
    assert bench.measure(PAPER, {"fp32": 50.0}, until=0.0) == []
    assert "work 0, and what follows it: left out" in capsys.readouterr().out


def test_a_step_is_a_share_of_the_matrix_products_rate(monkeypatch, capsys):
    net = torch.nn.Conv2d(4, 6, 3, groups=2, bias=False)
    monkeypatch.setattr(bench, "seconds_alone", lambda make: (make()(), 0.004)[1])
    x = torch.zeros(2, 4, 5, 5)
    gflop = (
        3 * 2e-9 * 2 * 6 * 2 * 3 * 3 * 3 * 3
    )  # three passes: 2 images, 6 channels of 2 inputs, 3x3 taps at 3x3 places
    (row,) = bench.shares("a layer", net, x, {"fp32": gflop / 0.001})
    assert row[1:] == ("fp32", "4.0", "as matrix products", "1.0", "0.25") and row[0].startswith(
        "training step of a layer"
    )
    assert "25 % of" in capsys.readouterr().out


def test_a_step_of_a_depthwise_network_costs_three_forward_passes(monkeypatch):
    """torch 2.11 counts 34 of a depthwise layer of 32 channels: its weight's gradient `groups` times (findings/)."""
    point, wide = {"kernel_size": 1, "bias": False}, {"kernel_size": 3, "padding": 1, "groups": 32, "bias": False}
    net = torch.nn.Sequential(
        torch.nn.Conv2d(4, 32, **point), torch.nn.Conv2d(32, 32, **wide), torch.nn.Conv2d(32, 8, **point)
    )
    monkeypatch.setattr(bench, "seconds_alone", lambda make: (make()(), 0.01)[1])
    forward = 2e-9 * 2 * 6 * 6 * (4 * 32 + 32 * 3 * 3 + 32 * 8)  # two pictures of 6x6 places
    (row,) = bench.shares("a network", net, torch.zeros(2, 4, 6, 6), {"fp32": 3 * forward / 0.001})
    assert row[1:] == ("fp32", "10.0", "as matrix products", "1.0", "0.1")


@pytest.mark.parametrize(
    "paper", ["arcface", "coarse_to_fine", "face_attributes", "hybrid_order_distillation", "resup"]
)
def test_every_paper_names_the_network_of_its_step(paper, monkeypatch):
    from importlib import import_module

    module = import_module(f"facepapers.papers.{paper}.bench")
    monkeypatch.setattr(module, "BATCH", 2)
    for what, net, x in module.trained_networks():
        assert "2 " in what and len(x) == 2
        with torch.no_grad():
            net.eval()(x)
