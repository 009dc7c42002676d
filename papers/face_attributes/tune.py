"""Peak learning rate of each start depth, chosen on validation faces.

`python -m facepapers.papers.face_attributes.tune --preset short --rows stage3 stage4 --rates 2e-4 5e-4 1e-3`

Each rate is one run of train.py with the row's settings, `share` of its steps and seed 100 (no seed of a result). What
wins goes into config.SCHEDULE by hand (committed: results/face_attributes/tuning.csv). An interrupted search continues.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from facepapers.common import cli, paths
from facepapers.common.training import parallel
from facepapers.papers.face_attributes import train
from facepapers.papers.face_attributes.config import check, preset

SEED = 100


@dataclass(frozen=True)
class Command:
    """Try learning rates."""

    preset: str = "short"  # whose rows are tried
    rows: tuple[str, ...] = ("linear", "stage5", "stage4", "stage3")  # rows of the table
    rates: tuple[float, ...] = (2e-4, 5e-4, 1e-3)  # peak learning rates
    share: float = 0.3  # of a row's steps that a trial makes
    weights: Path | None = None  # weights file of the identity network; without it the one in data/raw/
    table: Path | None = None  # CSV file that the table is kept in
    out: Path = paths.LOCAL / "tune"  # folder of the runs
    device: str = "auto"  # auto (a GPU where there is one), cpu or cuda


def main(argv: Sequence[str]) -> None:
    """Print, and keep where asked, a table with a line for each row and rate."""
    import pandas as pd

    options = cli.command(Command, argv, "python -m facepapers.papers.face_attributes.tune", __doc__)
    device = parallel.start(options.device)
    tried = [(row, rate) for row in options.rows for rate in options.rates]
    frame = pd.DataFrame([trial(options, row, rate, device) for row, rate in tried])
    frame["best"] = frame.index.isin(frame.groupby("row")["mean"].idxmax())
    print(frame.to_string(index=False))
    if options.table:
        frame.to_csv(options.table, index=False)


def trial(options: Command, row: str, rate: float, device: torch.device) -> dict[str, object]:
    """A line of the table: validation accuracies (%) of one rate and their mean."""
    base = preset(options.preset, row)
    steps = max(1, round(options.share * base.steps))
    cfg = dataclasses.replace(base, lr=rate, steps=steps, warmup=min(base.warmup, steps // 5), seed=SEED)
    check(cfg)
    record: Any = train.train(cfg, device, options.out, options.weights)
    found = {name: round(value, 2) for name, value in record["validation"].items()}
    mean = round(sum(record["validation"].values()) / len(found), 2)
    commit = (record["source"]["commit"] or "")[:7]
    return {"row": row, "rate": rate, "steps": steps, "seed": SEED, **found, "mean": mean, "commit": commit}


if __name__ == "__main__":
    cli.entry(main)
