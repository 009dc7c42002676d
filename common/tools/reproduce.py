"""`make reproduce-<paper>`: choose a preset, train and evaluate its rows, print published beside recorded and yours.

A paper describes its plan in `papers/<paper>/config.py`: PLAN, preset -> common.plan.Plan.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from facepapers.common import cli, paths
from facepapers.common.data import sets
from facepapers.common.evidence import claims, runs, tables
from facepapers.common.plan import Plan, duration
from facepapers.common.progress import phase


@dataclass(frozen=True)
class Command:
    """Run a preset of a paper. Any further option goes to its training: facepapers.papers.<paper>.train --help."""

    paper: str  # its folder's name, with - or _
    preset: str = "auto"  # auto (the richest that data and hardware allow) or a name of the paper's PRESETS
    rows: str = ""  # rows of the table, separated by spaces; without any the preset's
    seeds: str = ""  # whole numbers, separated by spaces; without any the preset's
    data: str | None = None  # data set; without it the first of the preset's that is here
    out: Path = paths.LOCAL  # folder of records


def main(argv: Sequence[str]) -> None:
    """Train and test every row and seed, then show the table."""
    if not argv:
        raise cli.UserError(f"usage: make reproduce-<paper>; papers: {', '.join(known_papers())}")
    options, rest = cli.command_and_rest(Command, argv, "python -m facepapers.common.tools.reproduce", __doc__)
    paper = options.paper.replace("-", "_")
    if paper not in claims.papers():
        raise cli.UserError(f"no paper {options.paper!r}; known are {', '.join(known_papers())}")
    settings = import_module(f"facepapers.papers.{paper}.config")
    preset, name = choose(settings.PLAN, options.preset, options.data)
    plan, started = settings.PLAN[preset], time.time()
    if plan.reference_s and not (options.rows or options.seeds or rest or has_gpu()):
        print(f"  {expected(plan, settings.PRESETS[preset].precision)}")
    train = import_module(f"facepapers.papers.{paper}.train")
    for seed in numbers(options.seeds) or plan.seeds:
        for row in options.rows.split() or plan.rows:
            given = ["--preset", preset, "--row", row, "--data", name, "--seed", str(seed), "--out", str(options.out)]
            train.main([*given, *rest])
    with phase("table and pictures"):
        show(paper, preset, name, options.out)
    print(f"\ndone in {time.time() - started:.0f} s")


def expected(plan: Plan, wanted: str) -> str:
    """How long a plan takes on this machine, from a probe of a quarter of a second, in the `wanted` precision."""
    import torch

    from facepapers.common.training import precision
    from facepapers.common.training.probe import gflops

    fp32, native = gflops(torch.float32), precision.choose(wanted, torch.device("cpu")) == "bf16"
    bf16 = gflops(torch.bfloat16) if native else 0.0
    rate = f"{fp32:.0f} GFLOP/s" + (f", {bf16:.0f} in bf16" if native else "")
    return f"about {duration(plan.seconds(fp32, bf16))} on this machine ({torch.get_num_threads()} threads, {rate})"


def against(mine: claims.Cell, recorded: claims.Cell) -> str:
    """The status of a cell; where nothing is published, whether the two intervals of record and rerun meet."""
    if mine.kind != "measured" or mine.interval is None or recorded.interval is None:
        return mine.status
    meet = mine.interval.low <= recorded.interval.high and recorded.interval.low <= mine.interval.high
    return "agrees with the record" if meet else "differs from the record"


def known_papers() -> list[str]:
    return [paper.replace("_", "-") for paper in claims.papers()]


def numbers(text: str) -> list[int]:
    """The seeds of `0 1 2`. UserError for anything but whole numbers from 0 on."""
    if not all(word.isascii() and word.isdecimal() for word in text.split()):
        raise cli.UserError(f"--seeds {text!r}: whole numbers from 0 on, separated by spaces, such as --seeds '0 1 2'")
    return [int(word) for word in text.split()]


def choose(plans: dict[str, Plan], wanted: str, name: str | None) -> tuple[str, str]:
    """(preset, data set): the wanted one, or with "auto" the richest that data and hardware allow; says which."""
    if wanted not in ("auto", *plans):
        raise cli.UserError(f"unknown preset {wanted!r}: known are auto, {', '.join(plans)}")
    options = [wanted]
    if wanted == "auto":  # a data set that was asked for by name decides which presets make sense
        options = [p for p in ("paper", "short", "demo") if p in plans and (not name or name in plans[p].data)]
        options = options or ["short"]
    passed_over = []
    for preset in options:
        names = (name,) if name else plans[preset].data
        here = [s for s in names if s == "embedded" or all(map(sets.available, s.split("+")))]
        gets = " or ".join(" and ".join(f"`make data-{part}`" for part in s.split("+")) for s in names)
        if not here:
            passed_over.append(
                f"preset {preset} needs {' or '.join(names)}, not on this machine: {gets} says how to get it, "
                "DATA_MIRROR=<folder or URL> names one that holds the archives"
            )
        elif wanted == "auto" and plans[preset].needs_gpu and not has_gpu():
            passed_over.append(f"preset {preset} is sized for a GPU; PRESET={preset} runs it on the CPU all the same")
        else:
            print(f"preset {preset} on {here[0]}" + (f": {plans[preset].takes}" if plans[preset].takes else ""))
            print("".join(f"  richer, but not chosen: {line}\n" for line in passed_over), end="")
            return preset, here[0]
    raise cli.MissingData(passed_over[-1])


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available() or "RANK" in os.environ


def show(paper: str, preset: str, name: str, out: Path) -> None:
    """Print the table of a preset and data set (published, recorded here, yours), other runs, pictures."""
    mine = [r for r in runs.recorded(paper, out) if (r["data"]["name"], r["config"]["preset"]) == (name, preset)]
    recorded = {c.name: c for c in claims.cells(paper)}
    lines = [("cell", "published", "recorded here", "yours", "status of yours")]
    for cell in claims.cells(paper, mine):
        if cell.records:
            known = recorded[cell.name]
            published = cell.claim.get("published", "—")
            lines.append((cell.claim["what"], published, tables.value(known), tables.value(cell), against(cell, known)))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    print()
    for line in lines if len(lines) > 1 else []:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
    for record in mine:
        if set(record["overrides"]) - runs.FREE:
            values = ", ".join(f"{k} {v:.2f}" for k, v in list(record["metrics"].items())[:3])
            print(f"own settings, answers no cell: {record['run']}: {values}")
    figures = import_module(f"facepapers.papers.{paper}.figures").draw(mine, Path(out) / paper / "figures")
    print("\n" + "".join(f"picture: {os.path.relpath(f)}\n" for f in figures), end="")


if __name__ == "__main__":
    cli.entry(main)
