"""The opening that every training shares, and the object in which a run in progress travels.

def main(argv):
    place, cfg = parse(argv)
    with parallel.processes(place.device) as device:
        return train(cfg, device, place.out)

def train(cfg, device, out=paths.LOCAL):
    run = runs.Run(PAPER, cfg.run_name, cfg, preset(cfg.preset, cfg.row, cfg.data), out)
    if record := run.finished_record():
        return record
    job = jobs.begin(run, cfg, device)
    ...
    for step in job.steps(parts, cfg.steps, cfg.batch, "faces"):
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from facepapers.common import paths, storage
from facepapers.common.evidence import runs
from facepapers.common.training import loop, parallel


@dataclass(frozen=True)
class Place:
    """Where a run computes, and where it leaves its record."""

    device: str = "auto"  # auto (a GPU where there is one), cpu or cuda
    out: Path = paths.LOCAL  # folder of records; the run's own is OUT/<paper>/<run>


@dataclass(frozen=True)
class Job:
    """A run in progress: what its functions hand to each other."""

    run: runs.Run  # its name, its folder, and `finish`, which writes its record
    cfg: Any  # the paper's settings, with the precision that is computed in
    asked: Any  # the settings as asked for: their precision may be "auto"
    device: torch.device  # that it computes on
    share: slice  # of every global batch: the samples of this process

    def steps(
        self,
        parts: dict[str, Any],
        total: int,
        batch: int,
        unit: str,
        *,
        folder: Path | None = None,
        label: str = "",
        own: dict[str, Any] | None = None,
        describe: Callable[[int], str] | None = None,
    ) -> loop.Steps:
        """The loop.Steps of this run: its checkpoint in `folder` (default: the run's), under its name and settings."""
        origin = loop.Origin(label or self.run.name, runs.fingerprint(self.cfg), self.cfg.precision)
        return loop.Steps(folder or self.run.folder, parts, total, batch, unit, origin, own=own, describe=describe)


def begin(run: runs.Run, cfg: Any, device: torch.device, begun: str | None = None) -> Job:
    """The Job of a run that is not finished, in the precision that it was begun in (`begun`, or its checkpoint's).

    Raises UserError for an unknown precision, a batch that cannot be split evenly over the processes, and a folder that
    cannot be written or in which another process is at work. What a killed process left there is removed.
    """
    storage.writable(run.folder)
    if parallel.is_main():
        storage.claim(run.folder)
        storage.clear(run.folder)
    return Job(run, run.settle(cfg, device, begun), cfg, device, parallel.my_slice(cfg.batch))
