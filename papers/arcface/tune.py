"""One setting of each loss, judged on held-out people.

`python -m facepapers.papers.arcface.tune --rows "arcface triplet"`

What is tried stands in GRID. Each value is one run of train.py with the row's settings, `--share` of its steps, seed
100 (no seed of a result) and protocol "tune": it trains on four fifths of DevTrain's people and tests on the others'
pairs; with `--preset omniglot` on four fifths of the training alphabets, and searches the others. The best by
`with_best` goes into config.py by hand. Runs stay below `--out`, so an interrupted search continues; the committed
tables are results/arcface/tuning.csv and tuning_omniglot.csv.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from facepapers.common import cli, paths
from facepapers.common.training import parallel
from facepapers.papers.arcface import method, train
from facepapers.papers.arcface.config import COMPARED, check, preset

if TYPE_CHECKING:
    import pandas as pd

SEED = 100
JUDGED = ("recall1_pct", "auc_pct", "accuracy_pct")
GRID: dict[str, tuple[str, tuple[float, ...]]] = {
    row: ("scale", (8.0, 16.0, 24.0)) for row in COMPARED if row in method.MARGINS
}
GRID |= {row: ("scale", (4.0, 8.0, 16.0, 24.0)) for row in ("norm_softmax", "cosface")}  # which 8 suits best
GRID |= {"softmax": ("lr", (0.001, 0.002, 0.004)), "triplet": ("triplet_margin", (0.1, 0.2, 0.35))}
# Where the best value on a set was the largest or the smallest of GRID, others beyond it follow.
FURTHER: dict[tuple[str, str], tuple[float, ...]] = {
    ("omniglot", "softmax"): (0.008, 0.016),
    ("omniglot", "triplet"): (0.05,),
}


@dataclass(frozen=True)
class Command:
    """Try each setting of GRID."""

    preset: str = "short"  # the settings that are changed
    rows: str = " ".join(COMPARED)  # losses, separated by spaces
    share: float = 0.5  # of the preset's steps
    out: Path = paths.LOCAL / "tune"  # folder of the runs
    table: Path | None = None  # file (.csv) for the table
    device: str = "auto"  # auto (a GPU where there is one), cpu or cuda


def main(argv: Sequence[str]) -> None:
    """Print a line for each row and value."""
    import pandas as pd

    options = cli.command(Command, argv, "python -m facepapers.papers.arcface.tune", __doc__)
    rows = options.rows.split()
    if unknown := [row for row in rows if row not in GRID]:
        raise cli.UserError(f"--rows {unknown[0]!r}: known are {' '.join(GRID)}")
    device = parallel.start(options.device)
    data = preset(options.preset).data
    tried = [(row, value) for row in rows for value in (*GRID[row][1], *FURTHER.get((data, row), ()))]
    frame = with_best(pd.DataFrame([line(options, row, value, device) for row, value in tried]))
    print(frame.to_string(index=False))
    if options.table:
        frame.to_csv(options.table, index=False)


def line(options: Command, row: str, value: float, device: torch.device) -> dict:
    """A line of the table: what a row reaches on the held-out people with one value of its setting."""
    base, setting = preset(options.preset, row), GRID[row][0]
    steps = max(1, round(options.share * base.steps))
    own: dict[str, Any] = {setting: value, "steps": steps, "warmup": min(base.warmup, max(1, steps // 20))}
    cfg = dataclasses.replace(base, protocol="tune", seed=SEED, **own)
    check(cfg)
    record: Any = train.train(cfg, device, options.out)
    found = {key: round(record["metrics"][key], 3) for key in JUDGED if key in record["metrics"]}
    commit = (record["source"]["commit"] or "")[:7]
    return {"row": row, "setting": setting, "value": value, "steps": steps, "seed": SEED, **found, "commit": commit}


def with_best(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Mark each row's best value by the first of JUDGED in hundredths of a point, then by the next, then the first."""
    keys = [key for key in JUDGED if key in frame]
    rounded = frame.assign(**{keys[0]: frame[keys[0]].round(2)})
    ranked = rounded.sort_values(keys, ascending=False, kind="stable")
    return frame.assign(best=frame.index.isin(ranked.drop_duplicates("row").index))


if __name__ == "__main__":
    cli.entry(main)
