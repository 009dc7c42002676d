"""Run what settles most: `make settle BUDGET=2h [PAPER=...]`, `make settle ARGS=--dry-run`.

Looks at every claim that is open and whose data are here, estimates from the records how many further seeds would give
it a verdict and what they cost, and runs those of the claim that is cheapest to settle; claims that a run serves
together share its cost, and a claim that the budget would leave half done comes last. It ends when nothing is left that
seeds can settle, or when the next run would not fit into the budget. The same command continues.

The estimate takes mean, spread and error of the test samples as they are; with one seed, the spread of the paper's
other claims on that metric. It decides what to run next, never a verdict.

Seeds are never added one by one until a verdict comes: who looks each time finds a difference where there is none, in
up to 15 of 100 contrasts (where the test samples add little to what seeds do). A claim gets three seeds first and then,
once, as many as the estimate says, at least LEAST in all; that number is written to OUT/settle.json before they begin,
and all of them are run. It holds for all claims about the same rows: their seeds are the same. So 6 to 8 in 100
contrasts without a difference get a verdict, by simulation (tests/test_settle.py); a number fixed from the start would
give 5.
"""

import collections
import dataclasses
import math
import os
import re
import statistics as plain
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from facepapers.common import cli, paths, storage
from facepapers.common.data import sets
from facepapers.common.evidence import claims, margins, plans, runs, statistics
from facepapers.common.plan import BF16_GAIN, duration
from facepapers.common.tools import graph
from facepapers.common.tools.reproduce import known_papers
from facepapers.common.tools.shares import alone, runs_at_once, threads_of

LOOK_S = 0.5  # how often runs are looked at
LEAST = 8  # seeds a side that are planned where three gave no verdict
SETTLED = ("supported", "refuted", "no difference", "replicated", "better", "worse")
UNITS = {"s": 1, "m": 60, "h": 3600}


@dataclasses.dataclass(frozen=True)
class Command:
    """Choose runs by what they settle, and run them. Records go where the claims are computed from."""

    budget: str = "1h"  # no run begins that is not expected to end within it; such as 30m or 2h
    paper: str | None = None  # one paper alone, with - or _
    jobs: int = 0  # runs at a time, each on its own cores; 0: two where there are two cores
    out: Path = paths.RECORDED  # folder of records; committed ones count with those of any other folder
    dry_run: bool = False  # print the plan, run nothing


@dataclasses.dataclass
class Open:
    """A claim without a verdict, and what it would take."""

    cell: claims.Cell
    seeds: int = 0  # further seeds a side; 0: out of reach
    runs: list[graph.Job] = dataclasses.field(default_factory=list)  # that are missing for them, in order
    costs: list[float] = dataclasses.field(default_factory=list)  # seconds of each run
    guessed: bool = False  # no record of a run's own row tells its cost
    share: float = 0.0  # seconds, where claims that need the same run each bear a part of it
    why: str = ""  # it is not run

    @property
    def seconds(self) -> float:
        """Seconds of all its runs."""
        return sum(self.costs)

    @property
    def reachable(self) -> bool:
        """Whether seeds are expected to settle it."""
        return bool(self.runs) and not self.why


def main(argv: Sequence[str]) -> None:
    """Run until nothing is left to settle or the budget is spent, then say what was settled and what was not."""
    options = cli.command(Command, argv, "python -m facepapers.common.tools.settle", __doc__)
    papers = chosen_papers(options.paper)
    budget = seconds_of(options.budget)
    at_once = runs_at_once(options.jobs)
    storage.writable(options.out, make=False)
    state = State(papers, options.out, at_once)
    if options.dry_run:
        print(table(state.opened()))
        return
    with alone(options.out) as lock:
        before = state.statuses()
        try:
            run_all(state, time.monotonic() + budget, at_once, lock)
        except KeyboardInterrupt as stop:
            said = f"what had begun to train has saved in {options.out}; the same command continues"
            raise cli.saved(stop, said) from None
        print(closing(before, state))
    if state.failed:
        job, said = next(iter(state.failed.items()))
        raise cli.UserError(f"{len(state.failed)} of the runs failed; the first was {job.name}: {said}")


def chosen_papers(name: str | None) -> list[str]:
    """Papers to look at. UserError for an unknown name."""
    if name is not None and name.replace("-", "_") not in claims.papers():
        raise cli.UserError(f"no paper {name!r}; known are {', '.join(known_papers())}")
    return [name.replace("-", "_")] if name else claims.papers()


def seconds_of(text: str) -> float:
    """Seconds of `90s`, `30m`, `1.5h`. UserError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text, re.ASCII)
    if not found or not float(found[1]):
        raise cli.UserError(f"--budget {text!r}: a number and s, m or h, such as 30m or 2h")
    return float(found[1]) * UNITS[found[2]]


# ---- What is open, and what it would take


class State:
    """The claims of some papers, with committed records and those of `out`."""

    def __init__(self, papers: list[str], out: Path, at_once: int = 1) -> None:
        self.papers, self.out, self.at_once = papers, out, at_once
        self.failed: dict[graph.Job, str] = {}  # run -> its last line
        self.slower: dict[str, list[float]] = {}  # paper -> seconds of training over those that records tell
        self.around: dict[str, list[float]] = {}  # paper -> seconds besides: starting, a shared teacher, testing
        known = claims.names(("level", "contrast"))
        self.plans = plans.read(out, known) | plans.read(known=known)  # what was committed holds for any folder

    def records(self, paper: str) -> list[dict]:
        """Committed records, and those of the folder; of two with one name the committed one."""
        roots = dict.fromkeys((self.out, paths.RECORDED))
        return list({r["run"]: r for root in roots for r in runs.recorded(paper, root)}.values())

    def statuses(self) -> dict[str, str]:
        """{cell: status}."""
        return {c.name: c.status for paper in self.papers for c in claims.cells(paper, self.records(paper))}

    def opened(self) -> list[Open]:
        """What is open, cheapest first by its share of the runs' cost; what seeds cannot settle comes last."""
        found = [claim for paper in self.papers for claim in self.opened_of(paper)]
        within = [claim for claim in found if claim.reachable]
        serves = collections.Counter(job for claim in within for job in claim.runs)
        for claim in within:
            claim.share = sum(cost / serves[job] for job, cost in zip(claim.runs, claim.costs, strict=True))
        return sorted(found, key=lambda o: (not o.reachable, o.share or math.inf, o.cell.name))

    def opened_of(self, paper: str) -> list[Open]:
        """What is open of a paper: lacks a verdict, or seeds that were planned, whatever the others say so far."""
        records, evidence = self.records(paper), claims.Evidence()
        cells = claims.cells(paper, records, evidence)
        planned = self.planned(cells)
        cells = [c for c in cells if is_open(c) or len(c.records) < planned.get(about(c), 0)]
        spreads = spread_by_metric(cells, evidence)
        judge = lambda cell: self.judged(cell, records, evidence, spreads, planned)
        found = [judge(cell) for cell in cells]
        for claim in (claim for claim in found if claim.reachable):  # claims about the same rows get the same seeds
            total, rows = len(claim.cell.records) + claim.seeds, about(claim.cell)
            planned[rows] = max(total, planned.get(rows, 0))
        return [judge(claim.cell) if claim.reachable else claim for claim in found]

    def planned(self, cells: Iterable[claims.Cell]) -> dict[tuple, int]:
        """{what `about` says: seeds a side} that were planned for any claim about the same rows."""
        found: dict[tuple, int] = {}
        for cell in cells:
            if seeds := self.plans.get(cell.name):
                found[about(cell)] = max(seeds, found.get(about(cell), 0))
        return found

    def keep_to(self, claim: Open) -> None:
        """Write down how many seeds a side a claim gets, before the first of them begins."""
        total = len(claim.cell.records) + claim.seeds
        if total > statistics.SEEDS and claim.cell.name not in self.plans:
            self.plans[claim.cell.name] = total
            storage.write_json(self.out / plans.NAME, dict(sorted(self.plans.items())))

    def judged(
        self, cell: claims.Cell, records: list[dict], evidence: claims.Evidence, spreads: dict, plan: dict[tuple, int]
    ) -> Open:
        """A claim with the seeds that it lacks, and their cost on this machine. `plan`: see `planned`."""
        data = cell.claim["data"]
        if not here(data):
            return Open(cell, why=f"{data} is not on this machine")
        if cell.claim.get("one_network"):
            return Open(cell, why="about one frozen network: no seed changes it")
        planned = plan.get(about(cell), 0)
        if planned and len(cell.records) >= planned:
            return Open(cell, why="all planned seeds are run and gave no verdict")
        usual = spreads.get(cell.metric.name)
        seeds = planned - len(cell.records) if planned else further_seeds(cell, evidence, usual)
        if not seeds:
            return Open(cell, why=f"more than {plans.MOST} seeds a side" + lacks_margin(cell))
        missing = missing_runs(cell, records, seeds, self.out)
        if failed := [job for job in missing if job in self.failed]:
            return Open(cell, seeds, why=f"{failed[0].name}: {self.failed[failed[0]]}")
        costs = [cost for job in missing if (cost := self.cost(job, records)) is not None]
        if len(costs) < len(missing):
            return Open(cell, seeds, missing, why="no record tells what such a run costs; start it by hand")
        guessed = any(not any(r["config"]["row"] == job.row for r in like(job, records)) for job in missing)
        return Open(cell, seeds, missing, costs, guessed)

    def cost(self, job: graph.Job, records: list[dict]) -> float | None:
        """Expected seconds of a run: what runs of its row took, else of its preset's dearest row; None without any.

        Corrected by a probe of this machine where a record says how fast its own was, for a processor without bfloat16,
        and then, instead, by how long this command's runs of the paper have taken.
        """
        told = self.told(job, records)
        if told is None:
            return None
        slower = self.slower.get(job.paper) or [BF16_GAIN if needs_bf16(like(job, records)) else 1.0]
        return told * plain.median(slower) + plain.median(self.around.get(job.paper, [0.0]))

    def told(self, job: graph.Job, records: list[dict]) -> float | None:
        """Seconds of a run's training by the records alone."""
        same = like(job, records)
        rows: dict[str, list[dict]] = {}
        for record in same:
            rows.setdefault(record["config"]["row"], []).append(record)
        chosen = [rows[job.row]] if job.row in rows else list(rows.values())
        if not chosen:
            return None
        return max(plain.median(map(self.here, telling(row))) for row in chosen)

    def here(self, record: dict) -> float:
        """The seconds of a record, on this machine if it says how fast its own was."""
        known = recorded_speed(record)
        return record["seconds"] * (known / speed(self.at_once) if known else 1.0)


def about(cell: claims.Cell) -> tuple:
    """What claims whose seeds are the same have in common: data, preset and rows."""
    claim = cell.claim
    rows = {claim[key] for key in ("row", "better", "than") if key in claim}
    return cell.paper, claim["data"], claim["preset"], *sorted(rows)


def like(job: graph.Job, records: list[dict]) -> list[dict]:
    """The records of a run's preset and data, whatever their row."""
    return [r for r in records if (r["config"]["preset"], r["data"]["name"]) == (job.preset, job.data)]


def telling(records: list[dict]) -> list[dict]:
    """The records that say how fast a machine like this one was; all of them where none does."""
    return [r for r in records if recorded_speed(r)] or records


def recorded_speed(record: dict) -> float | None:
    """GFLOP/s of a record's machine, where it says so and is of this one's kind: a GPU's tells nothing of a CPU."""
    found = record["environment"]
    return found.get("gflops") if found.get("device_type") == kind() else None


def kind() -> str:
    """What runs compute on here: cuda or cpu."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def speed(at_once: int) -> float:
    """GFLOP/s of a run's share of this machine."""
    from facepapers.common.training import probe

    return probe.speed(kind(), threads_of(at_once))


def is_open(cell: claims.Cell) -> bool:
    """Whether a cell asks for a verdict and has none."""
    return cell.kind in ("level", "contrast") and "reference" not in cell.claim and cell.status not in SETTLED


def here(data: str) -> bool:
    """Whether a claim's data are on this machine."""
    return data == "embedded" or all(map(sets.available, data.split("+")))


def lacks_margin(cell: claims.Cell) -> str:
    """What a contrast without any margin misses."""
    has = {"equivalence_margin", "margin", "within"} & cell.claim.keys()
    return "" if has or cell.kind == "level" else "; without an equivalence_margin it cannot end as `no difference`"


def needs_bf16(records: list[dict]) -> bool:
    """Whether these runs had a bfloat16 that this machine computes slowly."""
    import torch

    from facepapers.common.training import precision

    slow = precision.choose("auto", torch.device("cpu")) == "fp32" and not torch.cuda.is_available()
    return slow and runs.precision_of(*records) == "bf16"


def parts(cell: claims.Cell, evidence: claims.Evidence) -> tuple:
    """(values of the cell's runs, sampling covariance of two of them; of a single run its sampling variance)."""
    ours, others = ([evidence.predictions(r) for r in side] for side in (cell.records, cell.others))
    return statistics.parts(cell.metric, ours, others, evidence.bootstrap)


def spread_by_metric(cells: Iterable[claims.Cell], evidence: claims.Evidence) -> dict[str, float]:
    """{metric: median spread between seeds} of the cells with several seeds."""
    found: dict[str, list[float]] = {}
    for cell in cells:
        if len(cell.records) > 1:
            found.setdefault(cell.metric.name, []).append(parts(cell, evidence)[0].std(ddof=1))
    return {name: plain.median(values) for name, values in found.items()}


def further_seeds(cell: claims.Cell, evidence: claims.Evidence, usual: float | None) -> int:
    """How many further seeds a side to run: up to three, or as many as should give a verdict and LEAST in all.

    0: more than plans.MOST in all.
    """
    done = len(cell.records)
    if not done:
        return statistics.SEEDS  # nothing is known: begin
    values, covariance = parts(cell, evidence)
    spread = values.std(ddof=1) if done > 1 else covariance**0.5 if usual is None else usual
    judged = len(margins.judged(cell.claim, cell.records, cell.others)) if cell.kind == "contrast" else 0
    for more in range(1, plans.MOST - done + 1):
        if done + more >= statistics.SEEDS and verdict(
            cell, values.mean(), spread, covariance, done + more, judged + more
        ):
            return max(more, LEAST - done) if done >= statistics.SEEDS else statistics.SEEDS - done
    return 0


def verdict(cell: claims.Cell, mean: float, spread: float, covariance: float, n: int, judged: int) -> bool:
    """Whether n runs like those known, `judged` of them under today's margin, would settle a cell."""
    expected = lambda count, level: statistics.forecast(mean, spread, covariance, count, level)
    if cell.kind == "level":
        interval = expected(n, statistics.LEVEL_CONFIDENCE)
        published, tolerance = float(cell.claim["published"]), cell.claim["tolerance"]
        return statistics.level_status(cell.metric, interval, published, tolerance) in SETTLED
    interval = expected(n, statistics.CONTRAST_CONFIDENCE)
    if statistics.contrast_status(interval, cell.claim.get("margin", 0.0), cell.claim.get("within")) in SETTLED:
        return True
    margin = cell.claim.get("equivalence_margin", 0.0)
    return statistics.equivalent(expected(judged, statistics.EQUIVALENCE_CONFIDENCE), margin) if judged > 1 else False


def missing_runs(cell: claims.Cell, records: list[dict], seeds: int, out: Path) -> list[graph.Job]:
    """The runs that give a cell so many further seeds a side, and those that they need and `out` lacks."""
    claim = cell.claim
    rows = (claim["better"], claim["than"]) if cell.kind == "contrast" else (claim["row"],)
    finished = {r["run"] for r in records}
    of = {row: claims.matching(records, claim, row, cell.metric) for row in rows}
    fixed = {row for row in rows if any(not r["seconds"] for r in of[row])}  # not trained: it stands for every seed
    trained = [row for row in rows if row not in fixed]
    # Seeds of which each row has a run, even where those are no pair: nothing is left to run for them.
    seeds_of = [{r["config"]["seed"] for r in of[row]} for row in trained]
    new = [seed for seed in range(2 * plans.MOST + seeds) if not all(seed in found for found in seeds_of)][:seeds]
    wanted = [graph.Job(cell.paper, claim["preset"], claim["data"], row, seed) for seed in new for row in trained]
    left = [job for job in wanted if job.name not in finished]
    return [job for job in graph.with_needed(left) if job in left or not job.record(out).exists()]


# ---- Running


def run_all(state: State, end: float, at_once: int, lock: int | None = None) -> None:
    """Run the next run of the claim that is nearest to a verdict, `at_once` at a time, until nothing fits.

    `lock`: file descriptor that the runs inherit; see `alone`.
    """
    working: list[Working] = []
    begun = False
    try:
        while True:
            left = (end - time.monotonic()) * at_once
            waiting = [claim for claim in state.opened() if claim.reachable]
            waiting.sort(key=lambda claim: claim.seconds > left)  # what the budget would leave half done comes last
            for claim, job in startable(waiting, [one.job for one in working]):
                records = state.records(job.paper)
                cost = state.cost(job, records) or 0.0
                if len(working) < at_once and time.monotonic() + cost <= end:
                    state.keep_to(claim)
                    say(claim, job, cost)
                    working.append(Working(job, state.out, (cost, state.told(job, records) or 0.0), at_once, lock))
                    begun = True
            if not working:
                break
            finish_one(state, working)
    finally:
        for one in working:  # interrupted: each saves its state and ends
            one.stop()
    if waiting and not begun:
        cheapest, name = min((state.cost(job, state.records(job.paper)) or math.inf, job.name)
                            for claim in waiting for job in claim.runs)  # fmt: skip
        raise cli.UserError(f"--budget: too little for one run; the cheapest, {name}, takes about {duration(cheapest)}")


def say(claim: Open, job: graph.Job, cost: float) -> None:
    print(f"{clock()} {job.paper.replace('_', '-')} {job.name}, about {duration(cost)}: for {claim.cell.claim['id']} "
          f"({claim.cell.status}), which gets {claim.seeds} more a side", flush=True)  # fmt: skip


def startable(waiting: list[Open], working: list[graph.Job]) -> Iterator[tuple[Open, graph.Job]]:
    """(claim, run) that could begin now, in the order of the claims: nothing that it waits for is missing."""
    met = set(working)
    for claim in waiting:
        before = graph.predecessors([*working, *(job for job in claim.runs if job not in working)])
        for job in claim.runs:
            if job not in met and not before[job]:
                met.add(job)
                yield claim, job


class Working:
    """A run in a process of its own, with its share of the cores."""

    def __init__(
        self, job: graph.Job, out: Path, seconds: tuple[float, float], at_once: int, lock: int | None = None
    ) -> None:
        """`seconds`: expected on the clock, and of training by the records alone."""
        self.job, self.out, self.began = job, out, time.monotonic()
        self.expected, self.told = seconds
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open as long as the process
        threads = {"OMP_NUM_THREADS": str(threads_of(at_once))}
        command = [sys.executable, "-m", f"facepapers.papers.{job.paper}.train", *job.words, "--out", str(out)]
        kept = () if lock is None else (lock,)
        self.process = subprocess.Popen(command, env={**os.environ, **threads}, cwd=paths.ROOT, stdout=self.log,
                                        stderr=subprocess.STDOUT, pass_fds=kept)  # fmt: skip

    def stop(self) -> None:
        """Let it save its state and end."""
        self.process.terminate()
        self.process.wait()

    def last_line(self) -> str:
        """The last line that it wrote."""
        self.log.seek(0)
        lines = self.log.read().splitlines()
        return lines[-1] if lines else "no word"


def finish_one(state: State, working: list[Working]) -> None:
    """Wait until one of the runs ends, and note how."""
    while not (ended := [one for one in working if one.process.poll() is not None]):
        time.sleep(LOOK_S)
    for one in ended:
        working.remove(one)
        took = time.monotonic() - one.began
        if one.process.returncode == 0 and one.job.record(one.out).exists():
            seconds = storage.read_json(one.job.record(one.out))["seconds"]
            state.around.setdefault(one.job.paper, []).append(max(0.0, took - seconds))  # less: it was continued
            if one.told > 0:
                state.slower.setdefault(one.job.paper, []).append(seconds / one.told)
            expected = f", {duration(one.expected)} were expected" if one.expected > 0 else ""
            print(f"{clock()} {one.job.name}: done in {duration(took)}{expected}", flush=True)
        else:
            state.failed[one.job] = one.last_line()
            print(f"{clock()} {one.job.name}: failed: {one.last_line()}", flush=True)


def clock() -> str:
    return time.strftime("%H:%M:%S")


# ---- What it prints


def table(opened: list[Open]) -> str:
    """Open claims in the order of settling: status, further seeds, runs, time and its share; then the others."""
    within = [claim for claim in opened if claim.reachable]
    lines = [("claim", "status", "seeds", "runs", "time", "share")]
    for claim in within:
        costs = duration(claim.seconds) + "?" * claim.guessed, duration(claim.share)
        numbers = str(claim.seeds), str(len(claim.runs)), *costs
        lines.append((claim.cell.name, claim.cell.status, *numbers))
    lines = lines if within else []  # no head without a row
    widths = [max(len(line[k]) for line in lines) for k in range(6)] if lines else []
    text = ["  ".join(f"{word:{n}s}" for word, n in zip(line, widths, strict=True)).rstrip() for line in lines]
    beyond: dict[str, list[str]] = {}
    for claim in opened:
        if not claim.reachable:
            beyond.setdefault(claim.why, []).append(claim.cell.name)
    text += [f"not by seeds here, {why} ({len(names)}): {', '.join(names)}" for why, names in beyond.items()]
    if within:
        text.append("time: of its runs one after another; two at once take about half of it on the clock")
        text.append("share: of the time, if claims that need the same run each bear a part of it; the order goes by it")
    if any(claim.guessed for claim in within):
        text.append("?: no run of one of its rows is recorded; it is taken to cost what the preset's dearest row costs")
    every = {job for claim in within for job in claim.runs}
    return "\n".join([*text, f"{len(opened)} open claims; {len(within)} within reach of {len(every)} runs in all"])


def closing(before: dict[str, str], state: State) -> str:
    """What is settled now, and what the rest would take."""
    after = state.statuses()
    changed = [f"  {name}: {before[name]} -> {now}" for name, now in after.items() if now != before[name]]
    settled = sum(before[name] not in SETTLED and now in SETTLED for name, now in after.items())
    return "\n".join([f"\nsettled: {settled}", *changed, "", "left:", table(state.opened())])


if __name__ == "__main__":
    cli.entry(main)
