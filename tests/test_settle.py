"""Which run settles most, and sweeps: the graph of runs, estimates, budgets, faults; a sweep killed and finished."""

import dataclasses
import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from facepapers.common import cli, storage
from facepapers.common.evidence import plans, schema, statistics
from facepapers.common.tools import graph, settle, shares, sweep
from facepapers.common.training import precision, probe
from tests.conftest import REPOSITORY, one_line_error
from tests.test_report import PAPER, put, root  # noqa: F401 - a fixture

CLAIM = "lfpw-coarse-to-fine"


@pytest.fixture
def state(root, monkeypatch):  # noqa: F811
    """A State over a temporary repository of one paper, all of whose data are here, as are the records' processors."""
    monkeypatch.setattr(precision, "native", lambda device: True)  # wherever this runs
    monkeypatch.setattr(settle, "here", lambda data: data in ("lfpw", "embedded"))
    monkeypatch.setattr(settle.paths, "RECORDED", root / "results")
    return settle.State([PAPER], root / "results")


def opened(state, claim=CLAIM):
    return next(o for o in state.opened() if o.cell.claim["id"] == claim)


# ---- The graph


def job(paper, preset, data, row, seed=0):
    return graph.Job(paper, preset, data, row, seed)


def test_a_run_of_several_seeds_needs_each():
    together = job("arcface", "view1", "lfw", "together")
    assert [j.name for j in graph.with_needed([together])] == [
        "lfw-view1-arcface-s0", "lfw-view1-arcface-s1", "lfw-view1-arcface-s2", "lfw-view1-together-s0",
    ]  # fmt: skip


def test_a_chosen_pattern_needs_its_candidates_and_they_the_trunk():
    jobs = graph.of_plan("face_attributes", "demo", "embedded", ["chosen"], [4])
    before = {j.row: [b.row for b in found] for j, found in graph.predecessors(jobs).items()}
    assert before["trunk"] == [] and before["stage5"] == ["trunk"]
    assert before["chosen"] == ["trunk", "linear", "stage5", "stage3", "stage2"]
    assert {j.seed for j in jobs} == {4}


@pytest.mark.parametrize(("paper", "rows", "waiting"), [
    ("resup", ["ce", "ce_two", "resup"], {("resup", 0): [("ce_two", 0)], ("resup", 1): [("ce_two", 1)]}),
    ("hybrid_order_distillation", ["alone", "direct_1"],
     {("direct_1", 0): [("alone", 0)], ("alone", 1): [("alone", 0)], ("direct_1", 1): [("alone", 0)]}),
])  # fmt: skip
def test_what_runs_share_is_made_by_the_first(paper, rows, waiting):
    jobs = graph.of_plan(paper, "demo", "embedded", rows, [0, 1])
    before = {(j.row, j.seed): [(b.row, b.seed) for b in found] for j, found in graph.predecessors(jobs).items()}
    assert {key: found for key, found in before.items() if found} == waiting


def test_a_run_begins_once_and_after_those_that_it_needs():
    jobs = graph.of_plan("face_attributes", "demo", "embedded", ["chosen"], [4])
    claim = settle.Open(None, runs=jobs)
    rows = lambda working: [j.row for _, j in settle.startable([claim, claim], working)]
    assert jobs[0].row == "trunk" and rows([]) == ["trunk"] and rows(jobs[:1]) == []


def test_runs_that_need_each_other_are_one_line(monkeypatch):
    monkeypatch.setattr(graph, "needed", lambda j: [j.like({"cft": "direct", "direct": "cft"}[j.row], j.seed)])
    with pytest.raises(cli.UserError, match="needs itself"):
        graph.with_needed([job(PAPER, "demo", "embedded", "cft")])


def test_a_changed_setting_changes_the_records_place(tmp_path):
    plain, changed = (graph.Job(PAPER, "demo", "embedded", "cft", 3, more) for more in ((), ("--steps", "4")))
    assert plain.record(tmp_path) == tmp_path / PAPER / "embedded-demo-cft-s3" / "run.json"
    assert changed.config.steps == 4 and changed.name.startswith("embedded-demo-cft-s3-")
    assert changed.words[-2:] == ["--steps", "4"]


# ---- What a claim would take


def seeds_of(root, gains, **more):  # noqa: F811
    for seed, gain in enumerate(gains):
        put(root, "cft", 5 - gain, seed, "lfpw", **more)
        put(root, "direct", 5, seed, "lfpw", **more)


@pytest.mark.parametrize(("gains", "seeds"), [
    ((0.6, 0.5), 1),  # one more makes the three that a verdict takes
    ((0.30, 0.10, 0.22), 5),  # four would do, by hand: 3.18 * 0.101 / 2 = 0.160 < 0.207; but eight are the least
    ((0.1735, -0.0135) * 4, 1),  # by hand: 2.31 * 0.1 / 3 = 0.077 < 0.08, with eight 0.084
    ((0.5, -0.5, 0.02), 0),  # neither side, nor within 0.2, with twenty seeds
    ((0.02, -0.03, 0.01, 0.0, 0.01, -0.02, 0.03), 3),  # no difference takes three that began under the margin
])  # fmt: skip
def test_how_many_seeds_would_settle_a_claim(root, state, gains, seeds):  # noqa: F811
    seeds_of(root, gains)
    found = opened(state)
    assert found.seeds == seeds and bool(found.why) == (seeds == 0)
    if seeds:
        first = len(gains)
        names = [f"lfpw-short-{row}-s{first + k}" for k in range(seeds) for row in ("cft", "direct")]
        assert [j.name for j in found.runs] == names
        assert found.seconds == pytest.approx(24 * seeds)  # 12 s a run, as recorded


def test_runs_of_a_processor_with_bf16_take_longer_without(root, state, monkeypatch):  # noqa: F811
    seeds_of(root, (0.6, 0.5))
    with_it = opened(state).seconds
    monkeypatch.setattr(precision, "native", lambda device: False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert opened(state).seconds == pytest.approx(settle.BF16_GAIN * with_it)


def test_runs_of_a_faster_machine_take_longer_here(root, state, monkeypatch):  # noqa: F811
    """By the records that tell their machine's speed: those that do not say nothing of this one."""
    seeds_of(root, (0.6, 0.5))
    for row in ("cft", "direct"):
        path = root / "results" / PAPER / f"lfpw-short-{row}-s1" / "run.json"
        record = storage.read_json(path)
        record["environment"] |= {"gflops": 120.0, "device_type": "cpu"}
        storage.write_json(path, schema.sealed(record | {"seconds": 20.0}))
    monkeypatch.setattr(settle, "speed", lambda at_once: 40.0)
    monkeypatch.setattr(settle, "kind", lambda: "cpu")
    assert opened(state).seconds == pytest.approx(2 * 20 * 3)
    monkeypatch.setattr(settle, "kind", lambda: "cuda")  # of which a processor's rate says nothing
    assert opened(state).seconds == pytest.approx(2 * (12 + 20) / 2)


def test_the_speed_is_that_of_a_runs_share_of_the_cores(monkeypatch):
    asked = []
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(settle, "kind", lambda: "cpu")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(probe, "speed", lambda device, threads: asked.append((device, threads)) or 40.0)
    assert settle.speed(2) == settle.speed(1) == 40.0
    assert asked == [("cpu", 1), ("cpu", 2)]
    for given, threads in (("1", 1), ("8", 2), ("0", 2), ("two", 2)):  # never more than its share
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        assert shares.threads_of(1) == threads


def test_runs_that_are_there_are_not_counted_again(root, state):  # noqa: F811
    seeds_of(root, (0.6, 0.5))
    put(root, "direct", 5, 2, "lfpw")
    assert [j.name for j in opened(state).runs] == ["lfpw-short-cft-s2"]


def test_a_claim_without_a_run_takes_three_seeds(root, state):  # noqa: F811
    put(root, "cft", 5, 0, "lfpw")
    found = opened(state, "lfpw-principal")
    assert [j.name for j in found.runs] == [
        "lfpw-short-principal-s0", "lfpw-short-cft-s1", "lfpw-short-principal-s1", "lfpw-short-cft-s2",
        "lfpw-short-principal-s2",
    ]  # fmt: skip
    assert found.seconds == 60 and found.guessed  # an unknown row costs as much as the dearest known
    assert re.search(r"lfpw-principal +not run +3 +5 +60 seconds\?", settle.table([found]))


def test_claims_that_need_the_same_run_share_its_cost(root, state):  # noqa: F811
    """A run costs 12 s: one that n claims need is 12 / n of each, and a claim that needs it, too, takes its part."""
    seeds_of(root, (0.6, 0.5))
    first = opened(state)
    users = [sum(job in o.runs for o in state.opened()) for job in first.runs]
    assert first.seconds == 24 and not first.guessed
    assert first.share == pytest.approx(sum(12 / n for n in users)) and first.share < 24
    path = root / "papers" / PAPER / "claims.toml"
    text = path.read_text()
    whole = next(part for part in text.split("\n\n") if f'id = "{CLAIM}"\n' in part)
    path.write_text(f"{text}\n{whole.replace(CLAIM, 'again').replace('headline = true', '')}\n")
    assert opened(state).seconds == 24
    assert opened(state).share == opened(state, "again").share == pytest.approx(sum(12 / (n + 1) for n in users))


def test_what_seeds_cannot_settle_says_why(root, state):  # noqa: F811
    assert opened(state, "cofw-nme").why == "cofw is not on this machine"
    assert "no record tells" in opened(state).why  # nothing was ever run
    seeds_of(root, (0.5, -0.5, 0.02))
    path = root / "papers" / PAPER / "claims.toml"
    path.write_text(re.sub(r"equivalence_\w+ = .*\n", "", path.read_text()))
    assert "without an equivalence_margin" in opened(state).why


def test_a_side_without_training_needs_no_further_seed(root, state):  # noqa: F811
    put(root, "cft", 5, 0, "embedded", "demo")
    put(root, "mean-shape", 20, 0, "embedded", "demo", trained=False)
    assert [j.name for j in opened(state, "embedded-learns").runs] == ["embedded-demo-cft-s1", "embedded-demo-cft-s2"]


def test_a_claim_about_a_frozen_network_is_left(root, state):  # noqa: F811
    path = root / "papers" / PAPER / "claims.toml"
    path.write_text(path.read_text().replace(f'id = "{CLAIM}"\n', f'id = "{CLAIM}"\none_network = true\n'))
    seeds_of(root, (0.5,))
    assert "one frozen network" in opened(state).why


def test_the_spread_of_one_seed_is_that_of_other_claims_or_of_its_faces(root, state, monkeypatch):  # noqa: F811
    """By hand, for faces of 0.2 and twenty seeds: 1.966 * sqrt(0.04 / 20 + 0.04) = 0.403, without a spread 0.392."""
    seeds_of(root, (0.5,))
    cell = opened(state).cell
    for gain, usual, seeds in ((0.397, None, 0), (0.397, 0.01, 2), (0.41, None, 2), (0.41, 3.0, 0)):
        monkeypatch.setattr(settle, "parts", lambda cell, evidence, gain=gain: (np.array([gain]), 0.04))
        assert settle.further_seeds(cell, None, usual) == seeds


def test_a_settled_claim_is_not_opened(root, state):  # noqa: F811
    seeds_of(root, (0.6, 0.5, 0.55))
    assert CLAIM not in [o.cell.claim["id"] for o in state.opened()]


# ---- Running


class Fake:
    """Stands for a run's process: writes a record at once, or fails."""

    gain, failing, begun = 0.55, (), []

    def __init__(self, made, out, seconds, at_once, lock=None):
        self.job, self.out, self.began = made, out, time.monotonic()
        self.expected, self.told = seconds
        self.process = dataclasses.make_dataclass("P", ["returncode"])(0)
        self.process.poll = lambda: self.process.returncode
        Fake.begun.append(made.name)
        assert Fake.begun.count(made.name) < 3, "tried again and again"
        if made.row in self.failing:
            self.process.returncode = 2
        else:
            error = 5 - (self.gain if made.row == "cft" else 0) + 0.001 * made.seed
            put(out.parent, made.row, error, made.seed, made.data)

    def last_line(self):
        return "error: out of luck"

    def stop(self):
        raise AssertionError("nothing is left at work")


@pytest.fixture
def faked(monkeypatch):
    monkeypatch.setattr(settle, "Working", Fake)
    monkeypatch.setattr(Fake, "begun", [])
    monkeypatch.setattr(Fake, "failing", ())
    return Fake


def test_settle_runs_the_cheapest_claim_until_it_is_settled(root, state, faked, capsys):  # noqa: F811
    seeds_of(root, (0.6, 0.5))
    before = state.statuses()
    settle.run_all(state, time.monotonic() + 1000, 1)
    assert faked.begun[:2] == ["lfpw-short-cft-s2", "lfpw-short-direct-s2"]
    assert state.statuses()[f"{PAPER}.{CLAIM}"] == "supported" and before[f"{PAPER}.{CLAIM}"] != "supported"
    assert f"{PAPER}.{CLAIM}: two seeds: no difference seen -> supported" in settle.closing(before, state)
    assert "for lfpw-coarse-to-fine" in capsys.readouterr().out


@pytest.mark.parametrize(("budget", "first"), [(30, "direct"), (1000, "cft")])
def test_what_the_budget_would_leave_half_done_comes_last(root, state, faked, monkeypatch, budget, first):  # noqa: F811
    """A claim of 100 s that shares most of it stands first, but not where a budget of half a minute is all there is."""
    runs_of = lambda row, n: [graph.Job(PAPER, "short", "lfpw", row, seed) for seed in range(7, 7 + n)]
    cell = opened(state).cell
    claims = [settle.Open(cell, 10, runs_of("cft", 10), [10.0] * 10, share=5.0),
              settle.Open(cell, 2, runs_of("direct", 2), [10.0] * 2, share=20.0)]  # fmt: skip
    monkeypatch.setattr(state, "opened", lambda: [] if faked.begun else claims)
    monkeypatch.setattr(state, "cost", lambda job, records: 10.0)
    settle.run_all(state, time.monotonic() + budget, 1)
    assert faked.begun == [f"lfpw-short-{first}-s7"]


def test_planned_seeds_are_all_run_whatever_the_first_say(root, state, faked):  # noqa: F811
    """Who stops at the first verdict finds too many."""
    seeds_of(root, (0.30, 0.10, 0.22))
    claim = opened(state)
    assert claim.seeds == 5 and state.statuses()[claim.cell.name] == "inconclusive"
    state.keep_to(claim)
    for row, error in (("cft", 4.7), ("direct", 5)):  # and then it was interrupted
        put(root, row, error, 3, "lfpw")
    again = settle.State([PAPER], root / "results")
    assert again.statuses()[claim.cell.name] == "supported" and opened(again).seeds == 4
    settle.run_all(again, time.monotonic() + 1000, 1)
    assert {f"lfpw-short-{row}-s{k}" for row in ("cft", "direct") for k in (4, 5, 6, 7)} <= set(faked.begun)
    assert CLAIM not in [o.cell.claim["id"] for o in again.opened()]
    assert storage.read_json(root / "results" / plans.NAME)[claim.cell.name] == 8


def test_a_plan_without_a_verdict_is_not_stretched(root, state):  # noqa: F811
    seeds_of(root, (0.30, -0.10, 0.22, -0.05, 0.30, -0.10, 0.22, -0.05))
    assert opened(state).seeds > 0
    storage.write_json(root / "results" / plans.NAME, {f"{PAPER}.{CLAIM}": 8})
    found = opened(settle.State([PAPER], root / "results"))
    assert not found.reachable and found.why == "all planned seeds are run and gave no verdict"
    found = opened(settle.State([PAPER], root / "elsewhere"))
    assert not found.reachable, "what was planned and committed holds for records of any folder"
    known = f'"{PAPER}.{CLAIM}"'
    for damaged in ("[8]", "{", '{"a.b": 8}', *(f"{{{known}: {n}}}" for n in ('"8"', 0, 3, 21))):
        (root / "results" / plans.NAME).write_text(damaged)
        with pytest.raises(cli.UserError) as error:
            settle.State([PAPER], root / "results")
        one_line_error(error, plans.NAME, "git")


def test_a_plan_finds_few_differences_where_there_is_none(monkeypatch):
    """The shares that the module's docstring names, for seeds that differ by chance alone."""
    drawn = np.random.default_rng(0).normal(size=(1500, plans.MOST))
    monkeypatch.setattr(settle.margins, "judged", lambda *_: [])
    verdicts = {"each": 0, "planned": 0}
    for values in drawn:

        def seeds(n, values=values):
            """(further seeds, whether n give a verdict)"""
            monkeypatch.setattr(settle, "parts", lambda *_: (values[:n], 0.0))
            cell = SimpleNamespace(kind="contrast", records=[{}] * n, others=[], claim={})
            interval = statistics.forecast(values[:n].mean(), values[:n].std(ddof=1), 0.0, n, 0.95)
            return settle.further_seeds(cell, None, None), statistics.contrast_status(interval) in settle.SETTLED

        more, found = seeds(3)
        verdicts["planned"] += found or (more and seeds(3 + more)[1])
        n = 3
        while not found and more and n < plans.MOST:
            n += 1
            more, found = seeds(n)
        verdicts["each"] += found
    assert 0.06 < verdicts["planned"] / len(drawn) < 0.09 < 0.13 < verdicts["each"] / len(drawn)


def test_claims_about_the_same_rows_get_the_same_seeds(root, state, monkeypatch):  # noqa: F811
    """One that asks for fewer would be looked at once more when the other's are there."""
    path = root / "papers" / PAPER / "claims.toml"
    text = path.read_text()
    whole = next(part for part in text.split("\n\n") if f'id = "{CLAIM}"\n' in part)
    again = whole.replace(CLAIM, "again").replace("headline = true", "").replace("= 0.2\n", "= 0.1\n")
    path.write_text(f"{text}\n{again}\n")
    seeds_of(root, (0.30, 0.10, 0.22))
    wanted = {CLAIM: 5, "again": 9}
    by_id = lambda cell, *_: wanted.get(cell.claim["id"], 0)
    monkeypatch.setattr(settle, "further_seeds", by_id)
    assert opened(state).seeds == opened(state, "again").seeds == 9
    state.keep_to(opened(state, "again"))
    later = settle.State([PAPER], root / "results")
    for seed in range(3, 12):
        put(root, "cft", 5 - (-1) ** seed, seed, "lfpw")
        put(root, "direct", 5, seed, "lfpw")
    assert opened(later).why == opened(later, "again").why == "all planned seeds are run and gave no verdict"


def test_what_a_run_took_corrects_the_next_estimate_once(root, state, monkeypatch):  # noqa: F811
    """By hand: told 12 s, trained 24 s on this machine, 30 s on the clock: 2 * 12 + 6, however many run at once."""
    seeds_of(root, (0.6, 0.5))
    first = opened(state).runs[0]
    monkeypatch.setattr(precision, "native", lambda device: False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    records = state.records(PAPER)
    assert state.told(first, records) == 12 and state.cost(first, records) == 12 * settle.BF16_GAIN
    trained = put(root, "cft", 4.4, 2, "lfpw") / "run.json"
    storage.write_json(trained, schema.sealed(storage.read_json(trained) | {"seconds": 24.0}))
    for seed in (2, 2):  # two that ran at once were told the same
        made = job(PAPER, "short", "lfpw", "cft", seed)
        ended = SimpleNamespace(poll=lambda: 0, returncode=0)
        began = time.monotonic() - 30
        done = SimpleNamespace(job=made, out=state.out, expected=36.0, told=12.0, began=began, process=ended)
        settle.finish_one(state, [done])
    assert state.cost(first, records) == pytest.approx(2 * 12 + 6, abs=0.5)


def test_seeds_that_are_run_and_no_pair_are_not_run_again(root, state, monkeypatch):  # noqa: F811
    seeds_of(root, (0.6, 0.5, 0.4))
    monkeypatch.setattr(settle.claims, "alike_of", lambda paper: lambda record: record["run"].endswith("s1") or record)
    assert [j.name for j in opened(state).runs][:2] == ["lfpw-short-cft-s3", "lfpw-short-direct-s3"]


def test_of_two_records_with_one_name_the_committed_counts(root, state, tmp_path):  # noqa: F811
    put(root, "cft", 5, 0, "lfpw")
    other = tmp_path / "elsewhere"
    put(other, "cft", 3, 0, "lfpw")
    found = settle.State([PAPER], other / "results").records(PAPER)
    assert [r["folder"] for r in found] == [root / "results" / PAPER / "lfpw-short-cft-s0"]


def test_what_a_run_needs_must_be_where_it_is_written(root, state, monkeypatch):  # noqa: F811
    """The committed one is in another folder, where the run would not find it."""
    seeds_of(root, (0.6, 0.5))
    put(root, "heatmap", 5, 2, "lfpw")
    needs = lambda j: [j.like("heatmap", j.seed)] if j.row == "cft" else []
    monkeypatch.setattr(graph, "needed", needs)
    assert "lfpw-short-heatmap-s2" not in [j.name for j in opened(state).runs]
    elsewhere = settle.State([PAPER], root / "elsewhere")
    assert [j.name for j in opened(elsewhere).runs] == [f"lfpw-short-{r}-s2" for r in ("heatmap", "cft", "direct")]


def test_a_failed_run_is_named_and_not_tried_again(root, state, faked, capsys):  # noqa: F811
    seeds_of(root, (0.6, 0.5))
    faked.failing = ("direct",)
    settle.run_all(state, time.monotonic() + 1000, 2)
    assert faked.begun.count("lfpw-short-direct-s2") == 1
    assert "error: out of luck" in opened(state).why and "failed: error: out of luck" in capsys.readouterr().out


def test_who_settles_is_told_that_runs_failed(root, state, faked, capsys):  # noqa: F811
    seeds_of(root, (0.6, 0.5))
    faked.failing = ("direct",)
    with pytest.raises(cli.UserError) as error:
        settle.main(["--paper", PAPER, "--budget", "10m", "--out", str(root / "results"), "--jobs", "1"])
    one_line_error(error, "1 of the runs failed; the first was lfpw-short-direct-s2: error: out of luck")
    assert "\nsettled: " in capsys.readouterr().out, "what came of the others is told all the same"


@pytest.mark.parametrize(("stop", "number"), [(KeyboardInterrupt, signal.SIGINT), (cli.Terminated, signal.SIGTERM)])
def test_a_stopped_settle_says_that_it_continues(root, state, monkeypatch, stop, number):  # noqa: F811
    seeds_of(root, (0.6, 0.5))

    def stopped(*_):
        raise stop

    monkeypatch.setattr(settle, "run_all", stopped)
    with pytest.raises(cli.Interrupted, match="the same command continues") as found:
        settle.main(["--paper", PAPER, "--out", str(root / "results")])
    assert found.value.number == number


@pytest.mark.parametrize("heard", [True, False])
def test_a_stopped_sweep_lets_its_engine_end_the_runs(tmp_path, monkeypatch, heard):
    """Ctrl-C of a terminal reaches Snakemake by itself; a signal to the sweep alone is passed on."""
    engine = "import signal, sys, time\nsignal.signal(signal.SIGINT, lambda *_: sys.exit(1))\n"
    engine += "print('ready', flush=True)\ntime.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", engine], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    monkeypatch.setattr(sweep, "GRACE_S", 30 if heard else 0.1)
    if heard:
        process.send_signal(signal.SIGINT)
    began = time.monotonic()
    sweep.leave(process)
    assert process.returncode == 1 and time.monotonic() - began < 20


def test_a_sweep_in_the_background_is_stopped_too(tmp_path):
    """A shell starts it with SIGINT ignored, which its engine and the runs would inherit."""
    engine = tmp_path / "snakemake.py"
    engine.write_text("import signal, sys, time\nassert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN\n"
                      "print('ready', flush=True)\ntime.sleep(60)")  # fmt: skip
    script = "\n".join([
        "import os, signal, sys", f"sys.path[:0] = [{str(REPOSITORY)!r}]", "from pathlib import Path",
        "from facepapers.common import cli", "from facepapers.common.tools import sweep",
        "signal.signal(signal.SIGINT, signal.SIG_IGN)", "sweep.GRACE_S = 20",
        f"os.environ['PYTHONPATH'] = {str(tmp_path)!r}", f"sweep.paths.ROOT = Path({str(tmp_path)!r})",
        "read, write = os.pipe()",
        f"cli.entry(lambda argv: sweep.run({{}}, 2, Path({str(tmp_path)!r}), [], write))",
    ])  # fmt: skip
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        began = time.monotonic()
        process.terminate()
        process.wait(30)
    assert process.returncode == 128 + signal.SIGTERM and time.monotonic() - began < 15


def test_a_budget_too_small_for_one_run_is_one_line(root, state, faked):  # noqa: F811
    seeds_of(root, (0.6, 0.5))
    with pytest.raises(cli.UserError, match=r"too little for one run; the cheapest, lfpw-short-\S+, takes"):
        settle.run_all(state, time.monotonic() + 5, 1)
    assert not faked.begun


def test_a_dry_run_prints_the_plan_and_runs_nothing(root, state, faked, monkeypatch, capsys):  # noqa: F811
    seeds_of(root, (0.6, 0.5))
    settle.main(["--dry-run", "--out", str(root / "results")])
    said = capsys.readouterr().out
    assert f"{PAPER}.{CLAIM}" in said and "cofw is not on this machine (2)" in said and not faked.begun


def test_budgets_are_in_seconds_minutes_or_hours():
    assert [settle.seconds_of(text) for text in ("90s", "1.5m", "2h")] == [90, 90, 7200]


@pytest.mark.parametrize(("words", "said"), [
    (["--budget", "soon"], "--budget 'soon': a number and s, m or h"), (["--budget", "0h"], "--budget '0h'"),
    (["--budget", "\N{ARABIC-INDIC DIGIT TWO}h"], "a number and s, m or h"),
    (["--paper", "nope"], "no paper 'nope'"), (["--jobs", "-3"], "--jobs -3: give 1 or more"),
    (["--dry-run", "--out", __file__], f"{__file__}: cannot be written"), (["--out", __file__], f"{__file__}: cannot"),
])  # fmt: skip
def test_wrong_words_are_one_line(words, said):
    with pytest.raises(cli.UserError) as error:
        settle.main(words)
    one_line_error(error, said)


@pytest.mark.parametrize(("words", "said"), [
    (["--jobs", "-2"], "--jobs -2: give 1"), (["--threads", "-4"], "--threads -4: give 1"),
    (["--out", "a{b}"], "a{b}: Snakemake reads { } as a pattern"),
    (["--seeds", "-1"], "--seeds '-1': whole numbers from 0 on"), (["--out", __file__], f"{__file__}: cannot"),
    *((["--", *own], "0: nothing would ever run") for own in (["--cores", "0"], ["--cores=0"], ["-c0"], ["-j", "0"])),
    (["--", "--executor", "slurm"], "pip install 'snakemake-executor-plugin-slurm>=2,<3'"),
    (["--", "--executor=slurm"], "pip install 'snakemake-executor-plugin-slurm>=2,<3'"),
])  # fmt: skip
def test_wrong_words_of_a_sweep_are_one_line(words, said, monkeypatch):
    monkeypatch.setattr(sweep, "run", lambda *_: pytest.fail("they reached Snakemake"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "slurm" in name else 1)
    with pytest.raises(cli.UserError) as error:
        sweep.main(["coarse-to-fine", "--preset", "demo", *words])
    one_line_error(error, said)


def test_two_at_once_on_one_folder_are_one_line(tmp_path):
    other = shares.alone(tmp_path)
    with shares.alone(tmp_path), pytest.raises(cli.UserError, match="another settle or sweep is at work"):
        other.__enter__()
    with shares.alone(tmp_path):  # free again
        pass
    assert not list(tmp_path.iterdir())


def test_what_a_killed_one_left_at_work_keeps_the_folder(tmp_path):
    """The lock is the work's, not only its master's: he may be killed, and what he began goes on."""
    master = "\n".join([
        "import subprocess, sys", "from pathlib import Path", "from facepapers.common.tools import shares",
        f"with shares.alone(Path({str(tmp_path)!r})) as lock:",
        "    run = subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL, pass_fds=(lock,))",
        "    print(run.pid, flush=True)", "    run.wait()",
    ])  # fmt: skip
    with subprocess.Popen([sys.executable, "-c", master], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        run = int(process.stdout.readline())
        process.kill()
    with pytest.raises(cli.UserError, match="runs of one that was killed"), shares.alone(tmp_path):
        pass
    os.kill(run, signal.SIGKILL)
    for _ in range(100):
        try:
            with shares.alone(tmp_path):
                return
        except cli.UserError:
            time.sleep(0.05)
    pytest.fail("the folder stays taken although nothing works there")


# ---- Sweeps


def test_a_sweep_without_its_engine_is_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(cli.UserError) as error:
        sweep.main(["coarse-to-fine"])
    one_line_error(error, "pip install 'snakemake>=9.20,<10'")


def test_words_behind_two_dashes_are_the_engines():
    assert sweep.split(["arcface", "--", "--jobs", "3"]) == (["arcface"], ["--jobs", "3"])
    assert sweep.split(["arcface"]) == (["arcface"], [])


ROWS = ["softmax", "norm_softmax", "arcface"]
with_snakemake = pytest.mark.skipif(importlib.util.find_spec("snakemake") is None, reason="needs the extra `sweep`")
SWEEP = ["arcface", "--preset", "demo", "--rows", " ".join(ROWS), "--seeds", "0", "--steps", "3"]


@with_snakemake
def test_a_cluster_is_asked_for_what_the_caller_names(tmp_path):
    """GPUs, memory and threads of a run are the cluster's, not those of the machine that hands it the runs."""
    own = ["--dry-run", "--quiet", "host", "--printshellcmds", "--default-resources", "gpu=3", "mem_mb=9000"]
    own += ["--cores", "500"]
    words = [*SWEEP, "--out", str(tmp_path), "--threads", "500", "--", *own]
    done = subprocess.run([sys.executable, "-m", "facepapers.common.tools.sweep", *words], cwd=REPOSITORY,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = done.stdout + done.stderr
    assert told.count("gpu=3") == told.count("mem_mb=9000") >= len(ROWS)
    assert told.count("OMP_NUM_THREADS=500") == len(ROWS)


@pytest.mark.parametrize(
    ("own", "capped"), [([], True), (["--executor", "slurm"], False), (["--executor=slurm"], False), (["-k"], True)]
)
def test_only_runs_on_this_machine_share_its_cores(tmp_path, monkeypatch, own, capped):
    commands = []
    ended = SimpleNamespace(wait=lambda: 0)
    monkeypatch.setattr(sweep.subprocess, "Popen", lambda command, **more: commands.append(command) or ended)
    sweep.run({"threads": 8}, 2, tmp_path, own, 0)
    assert ("--cores" in commands[0]) == capped


@pytest.mark.parametrize(("words", "told", "cores"), [
    (["--jobs", "1"], 1, 1), (["--jobs", "3"], 2, 6), (["--jobs", "3", "--threads", "5"], 5, 15),
])  # fmt: skip
def test_as_many_runs_at_a_time_as_asked_for(tmp_path, monkeypatch, words, told, cores):
    """Snakemake counts cores: on eight, of which three runs get two each, six."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", str(told))
    called = []
    monkeypatch.setattr(sweep, "run", lambda config, cores, *_: called.append((config["threads"], cores)))
    sweep.main([*SWEEP, "--out", str(tmp_path), *words])
    assert called == [(told, cores)]


@with_snakemake
def test_a_killed_sweep_is_finished_by_the_same_command(tmp_path):
    command = [sys.executable, "-m", "facepapers.common.tools.sweep", *SWEEP, "--out", str(tmp_path), "--jobs", "2"]
    jobs = graph.of_plan("arcface", "demo", "embedded", ROWS, [0], ["--steps", "3"])
    first = subprocess.Popen(command, cwd=REPOSITORY, start_new_session=True, stdout=subprocess.DEVNULL)
    while not any(j.record(tmp_path).exists() for j in jobs):
        assert first.poll() is None, "it ended before a run did"
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    finished = [j.record(tmp_path) for j in jobs if j.record(tmp_path).exists()]
    assert 0 < len(finished) < len(jobs)
    times = {path: path.stat().st_mtime_ns for path in finished}
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{len(jobs)} runs, {len(finished)} of them finished" in done.stdout
    assert all(storage.read_json(j.record(tmp_path))["run"] == j.name for j in jobs)
    assert times == {path: path.stat().st_mtime_ns for path in finished}  # what was finished is not run again
