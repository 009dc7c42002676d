"""Peak learning rate of each start depth, judged on validation faces.

`python -m facepapers.papers.face_attributes.tune`

    python -m facepapers.papers.face_attributes.tune --preset short --rows "stage3 stage4" --rates "2e-4 5e-4 1e-3" \
        [--share 0.3]

Each rate is one run of train.py with the row's settings, `share` of its steps and seed 100 (no seed of a result). What
wins goes into config.SCHEDULE by hand. Runs are kept below results/local/tune, so an interrupted search continues;
`--table FILE` keeps the table (committed: results/face_attributes/tuning.csv).
"""

import dataclasses
from pathlib import Path

from facepapers.common import cli, paths
from facepapers.common.training import parallel
from facepapers.papers.face_attributes import train
from facepapers.papers.face_attributes.config import check, preset

SEED = 100


def main(argv):
    import pandas as pd

    name, argv = cli.take_option(argv, "preset", "short")
    rows, argv = cli.take_option(argv, "rows", "linear stage5 stage4 stage3")
    rates, argv = cli.take_option(argv, "rates", "2e-4 5e-4 1e-3")
    share, argv = cli.take_option(argv, "share", "0.3")
    weights, argv = cli.take_option(argv, "weights")
    table, argv = cli.take_option(argv, "table")
    out, argv = cli.take_option(argv, "out", paths.LOCAL / "tune")
    device_name, argv = cli.take_option(argv, "device", "auto")
    if argv:
        raise cli.UserError(
            f"unknown setting {argv[0]!r}: known are --preset, --rows, --rates, --share, --weights, --table"
        )
    device = parallel.start(device_name)
    tried = [(row, rate) for row in rows.split() for rate in rates.split()]
    frame = pd.DataFrame([judged(name, row, rate, float(share), device, Path(out), weights) for row, rate in tried])
    frame["best"] = frame.index.isin(frame.groupby("row")["mean"].idxmax())
    print(frame.to_string(index=False))
    if table:
        frame.to_csv(table, index=False)


def judged(name, row, rate, share, device, out, weights):
    """A line of the table: validation accuracies (%) of one rate and their mean."""
    base = preset(name, row)
    steps = max(1, round(share * base.steps))
    cfg = dataclasses.replace(base, lr=float(rate), steps=steps, warmup=min(base.warmup, steps // 5), seed=SEED)
    check(cfg)
    record = train.train(cfg, device, out, weights)
    found = {name: round(value, 2) for name, value in record["validation"].items()}
    mean = round(sum(record["validation"].values()) / len(found), 2)
    commit = (record["source"]["commit"] or "")[:7]
    return {"row": row, "rate": rate, "steps": steps, "seed": SEED, **found, "mean": mean, "commit": commit}


if __name__ == "__main__":
    cli.entry(main, about=__doc__)
