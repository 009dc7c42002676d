"""`make reproduce-<paper>`: choose a preset, train and evaluate its rows, print published beside recorded and yours.

A paper describes its plan in `papers/<paper>/config.py`: PLAN, preset -> Plan.
"""

import os
import sys
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from common import claims, cli, data, report, runs


@dataclass(frozen=True)
class Plan:
    """What a preset runs by default: the first data set of `data` that is here, its rows, its seeds."""

    data: tuple[str, ...]
    rows: tuple[str, ...]
    seeds: tuple[int, ...]
    takes: str  # expected time, for the user
    needs_gpu: bool = False


def main(argv):
    if not argv:
        raise cli.UserError(f"usage: make reproduce-<paper>; papers: {', '.join(known_papers())}")
    paper = argv[0].replace("-", "_")
    if paper not in claims.papers():
        raise cli.UserError(f"no paper {argv[0]!r}; known are {', '.join(known_papers())}")
    wanted, rest = cli.take_option(argv[1:], "preset", "auto")
    rows, rest = cli.take_option(rest, "rows", "")
    seeds, rest = cli.take_option(rest, "seeds", "")
    chosen, rest = cli.take_option(rest, "data")
    out, rest = cli.take_option(rest, "out", runs.LOCAL)
    plans = import_module(f"papers.{paper}.config").PLAN
    preset, name = choose(plans, wanted, chosen)
    plan, started = plans[preset], time.time()
    train = import_module(f"papers.{paper}.train")
    for seed in numbers(seeds) or plan.seeds:
        for row in rows.split() or plan.rows:
            options = ["--preset", preset, "--row", row, "--data", name, "--seed", str(seed), "--out", str(out)]
            train.main([*options, *rest])
    show(paper, preset, name, out)
    print(f"\ndone in {time.time() - started:.0f} s")


def against(mine, recorded):
    """The status of a cell; where nothing is published, whether the two intervals of record and rerun meet."""
    if mine.kind != "measured" or recorded.interval is None:
        return mine.status
    meet = mine.interval.low <= recorded.interval.high and recorded.interval.low <= mine.interval.high
    return "agrees with the record" if meet else "differs from the record"


def known_papers():
    return [paper.replace("_", "-") for paper in claims.papers()]


def numbers(text):
    try:
        return [int(word) for word in text.split()]
    except ValueError:
        raise cli.UserError(f"--seeds {text!r}: whole numbers separated by spaces, such as --seeds '0 1 2'") from None


def choose(plans, wanted, name):
    """(preset, data set): the wanted one, or with "auto" the richest that data and hardware allow; says which."""
    if wanted not in ("auto", *plans):
        raise cli.UserError(f"unknown preset {wanted!r}: known are auto, {', '.join(plans)}")
    options = [p for p in ("paper", "short", "demo") if p in plans] if wanted == "auto" else [wanted]
    missing = []
    for preset in options:
        plan = plans[preset]
        sets = (name,) if name else plan.data
        here = [s for s in sets if s == "embedded" or data.available(s)]
        if wanted == "auto" and plan.needs_gpu and not has_gpu():
            missing.append(f"{preset} needs a GPU (PRESET={preset} runs it on the CPU all the same)")
        elif here:
            print(f"preset {preset} on {here[0]}: {plan.takes}")
            for line in missing:
                print(f"  not chosen: {line}")
            return preset, here[0]
        else:
            missing.append(f"{preset} needs one of the data sets {', '.join(sets)} (make data-{sets[0]})")
    for s in sets:
        data.ensure(s)  # raises MissingData with the exact steps
    raise cli.MissingData("; ".join(missing))


def has_gpu():
    import torch

    return torch.cuda.is_available() or "RANK" in os.environ


def show(paper, preset, name, out):
    """The table of this preset and data set: published, recorded in the repository, yours; then the pictures."""
    mine = runs.recorded(paper, out)
    recorded = {c.name: c for c in claims.cells(paper)}
    print()
    head = ("cell", "published", "recorded here", "yours", "status of yours")
    lines = [head]
    for cell in claims.cells(paper, mine):
        if cell.records and (cell.claim["data"], cell.claim["preset"]) == (name, preset):
            published = cell.claim.get("published", "—")
            status = against(cell, recorded[cell.name])
            lines.append((cell.claim["what"], published, report.value(recorded[cell.name]), report.value(cell), status))
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)))
    figures = import_module(f"papers.{paper}.figures").draw(mine, Path(out) / paper / "figures")
    print("\n" + "\n".join(f"picture: {os.path.relpath(f)}" for f in figures))


if __name__ == "__main__":
    sys.path.insert(0, str(runs.ROOT))
    cli.entry(main)
