"""Peak learning rate of each start depth, judged on validation faces: `python -m papers.face_attributes.tune`.

    python -m papers.face_attributes.tune --preset short --rows "stage3 stage4" --rates "2e-4 5e-4 1e-3" [--share 0.3]

Each rate is one run of train.py with the row's settings, `share` of its steps and seed 100 (no seed of a result). What
wins goes into config.SCHEDULE by hand. Runs are kept below results/local/tune, so an interrupted search continues.
"""

import dataclasses
from pathlib import Path

from common import cli, parallel, runs
from papers.face_attributes import train
from papers.face_attributes.config import check, preset

SEED = 100


def main(argv):
    name, argv = cli.take_option(argv, "preset", "short")
    rows, argv = cli.take_option(argv, "rows", "linear stage5 stage4 stage3")
    rates, argv = cli.take_option(argv, "rates", "2e-4 5e-4 1e-3")
    share, argv = cli.take_option(argv, "share", "0.3")
    weights, argv = cli.take_option(argv, "weights")
    out, argv = cli.take_option(argv, "out", runs.LOCAL / "tune")
    device_name, argv = cli.take_option(argv, "device", "auto")
    if argv:
        raise cli.UserError(f"unknown setting {argv[0]!r}: known are --preset, --rows, --rates, --share, --weights")
    device = parallel.start(device_name)
    for row in rows.split():
        found = {rate: judged(name, row, rate, float(share), device, Path(out), weights) for rate in rates.split()}
        best = max(found, key=lambda rate: sum(found[rate].values()))
        for rate, accuracy in found.items():
            values = ", ".join(f"{a} {v:.2f}" for a, v in accuracy.items())
            print(f"{row} rate {rate}: {values}, mean {sum(accuracy.values()) / len(accuracy):.2f}"
                  + ("  <- best" if rate == best else ""))  # fmt: skip


def judged(name, row, rate, share, device, out, weights):
    """Attribute -> validation accuracy of one rate."""
    base = preset(name, row)
    steps = max(1, round(share * base.steps))
    cfg = dataclasses.replace(base, lr=float(rate), steps=steps, warmup=min(base.warmup, steps // 5), seed=SEED)
    check(cfg)
    return train.train(cfg, device, out, weights)["validation"]


if __name__ == "__main__":
    cli.entry(main)
