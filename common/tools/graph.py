"""Which run needs which: the graph of a plan, for `make settle` and `make sweep`.

A paper's `config.py` may say two things of a run's settings, each by name of a function:

    needs(cfg) -> ((row, seed), ...)   runs of the same settings that must be finished before
    shares(cfg) -> a key, or None      runs of one key make something once (a teacher, a warm-up): the first makes it,
                                       so the others wait for it
"""

import dataclasses
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from facepapers.common import cli


@dataclasses.dataclass(frozen=True)
class Job:
    """One training run, as its command names it."""

    paper: str
    preset: str
    data: str
    row: str
    seed: int
    more: tuple[str, ...] = ()  # words that change further settings, as its training takes them

    @property
    def config(self) -> Any:
        """Its settings: the preset's own, and `more`. UserError for words that its training does not know."""
        preset = settings(self.paper).preset(self.preset, self.row, self.data)
        cfg = dataclasses.replace(preset, seed=self.seed)
        return cli.parse(cfg, self.more, f"python -m facepapers.papers.{self.paper}.train") if self.more else cfg

    @property
    def name(self) -> str:
        """Its folder's name."""
        return self.config.run_name

    def record(self, out: Path) -> Path:
        """Where its record is written, last of all."""
        return Path(out) / self.paper / self.name / "run.json"

    @property
    def words(self) -> list[str]:
        """Its settings as words of a command line."""
        return ["--preset", self.preset, "--data", self.data, "--row", self.row, "--seed", str(self.seed), *self.more]

    def like(self, row: str, seed: int) -> "Job":
        """The run of another row or seed."""
        return dataclasses.replace(self, row=row, seed=seed)


def settings(paper: str) -> Any:
    """The module of a paper's settings."""
    return import_module(f"facepapers.papers.{paper}.config")


def needed(job: Job) -> list[Job]:
    """The runs that must be finished before this one."""
    needs = getattr(settings(job.paper), "needs", None)
    return [job.like(row, seed) for row, seed in needs(job.config)] if needs else []


def with_needed(jobs: Iterable[Job]) -> list[Job]:
    """The jobs and all that they need, each once, needed ones first. UserError where they go in a circle."""
    found: list[Job] = []

    def add(job: Job, above: tuple[Job, ...]) -> None:
        if job in above:
            raise cli.UserError(f"{job.paper}: {job.name} needs itself; mend `needs` in papers/{job.paper}/config.py")
        for before in needed(job) if job not in found else ():
            add(before, (*above, job))
        if job not in found:
            found.append(job)

    for job in jobs:
        add(job, ())
    return found


def predecessors(jobs: Iterable[Job]) -> dict[Job, list[Job]]:
    """{job: those of `jobs` that end before it begins}: what it needs, and the first with whom it shares something."""
    ordered = list(jobs)
    first: dict[tuple[str, Any], Job] = {}
    before: dict[Job, list[Job]] = {}
    for job in ordered:
        shares = getattr(settings(job.paper), "shares", None)
        key = shares(job.config) if shares else None
        maker = first.setdefault((job.paper, key), job) if key is not None else job
        wanted = [*needed(job), *([maker] if maker != job else [])]
        before[job] = [other for other in dict.fromkeys(wanted) if other in ordered]
    return before


def of_plan(
    paper: str, preset: str, data: str, rows: Iterable[str], seeds: Iterable[int], more: Iterable[str] = ()
) -> list[Job]:
    """The jobs of rows and seeds, and what they need."""
    rows, more = list(rows), tuple(more)
    return with_needed(Job(paper, preset, data, row, seed, more) for seed in seeds for row in rows)
