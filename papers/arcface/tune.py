"""One setting of each loss, judged on held-out people.

`python -m facepapers.papers.arcface.tune --rows "arcface triplet"`

What is tried stands in GRID. Each value is one run of train.py with the row's settings, `--share` of its steps, seed
100 (no seed of a result) and protocol "tune": it trains on four fifths of DevTrain's people and tests on the others'
pairs. The best by `with_best` goes into config.py by hand. Runs stay below results/local/tune, so an interrupted search
continues; `--table FILE` keeps the table (committed: results/arcface/tuning.csv).
"""

import dataclasses
from pathlib import Path

from facepapers.common import cli, paths
from facepapers.common.training import parallel
from facepapers.papers.arcface import method, train
from facepapers.papers.arcface.config import COMPARED, check, preset

SEED = 100
GRID: dict[str, tuple[str, tuple[float, ...]]] = {
    row: ("scale", (8.0, 16.0, 24.0)) for row in COMPARED if row in method.MARGINS
}
GRID |= {row: ("scale", (4.0, 8.0, 16.0, 24.0)) for row in ("norm_softmax", "cosface")}  # which 8 suits best
GRID |= {"softmax": ("lr", (0.001, 0.002, 0.004)), "triplet": ("triplet_margin", (0.1, 0.2, 0.35))}


def main(argv):
    import pandas as pd

    name, argv = cli.take_option(argv, "preset", "short")
    rows, argv = cli.take_option(argv, "rows", " ".join(COMPARED))
    share, argv = cli.take_option(argv, "share", "0.5")
    out, argv = cli.take_option(argv, "out", paths.LOCAL / "tune")
    table, argv = cli.take_option(argv, "table")
    device_name, argv = cli.take_option(argv, "device", "auto")
    unknown = argv or [row for row in rows.split() if row not in GRID]
    if unknown:
        raise cli.UserError(f"{unknown[0]!r}: known are --preset, --share, --out, --table, --rows of {' '.join(GRID)}")
    device = parallel.start(device_name)
    tried = [(row, value) for row in rows.split() for value in GRID[row][1]]
    found = [judged(name, row, value, float(share), device, Path(out)) for row, value in tried]
    frame = with_best(pd.DataFrame(found))
    print(frame.to_string(index=False))
    if table:
        frame.to_csv(table, index=False)


def judged(name, row, value, share, device, out):
    """A line of the table: what a row reaches on the held-out people with one value of its setting."""
    base, setting = preset(name, row), GRID[row][0]
    steps = max(1, round(share * base.steps))
    own = {setting: value, "steps": steps, "warmup": min(base.warmup, max(1, steps // 20))}
    cfg = dataclasses.replace(base, protocol="tune", seed=SEED, **own)
    check(cfg)
    record = train.train(cfg, device, out)
    line = {"row": row, "setting": setting, "value": value, "steps": steps, "seed": SEED}
    line |= {key: round(record["metrics"][key], 3) for key in ("accuracy_pct", "auc_pct")}
    return line | {"commit": (record["source"]["commit"] or "")[:7]}


def with_best(frame):
    """Mark each row's best value: by area in hundredths of a point, then by accuracy, then the first."""
    rounded = frame.assign(auc_pct=frame.auc_pct.round(2))
    ranked = rounded.sort_values(["auc_pct", "accuracy_pct"], ascending=False, kind="stable")
    return frame.assign(best=frame.index.isin(ranked.drop_duplicates("row").index))


if __name__ == "__main__":
    cli.entry(main, about=__doc__)
