"""Many runs of one preset, in the order that they need, on this machine or on a cluster: `make sweep PAPER=arcface`.

Snakemake does the work (the extra `sweep`, or `.venv/bin/pip install 'snakemake>=9.20,<10'`): each run is a rule whose
output is its record. What is finished is not run again, a killed sweep continues, and Snakemake's own options follow
`--`:

    make sweep PAPER=resup PRESET=short SEEDS="0 1 2"
    make sweep PAPER=resup PRESET=short SEEDS="0 1 2" ARGS="--threads 8 -- --executor slurm --jobs 20"
"""

import dataclasses
import functools
import importlib.util
import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from facepapers.common import cli, paths, storage
from facepapers.common.tools import graph
from facepapers.common.tools.reproduce import choose, numbers
from facepapers.common.tools.settle import chosen_papers
from facepapers.common.tools.shares import alone, runs_at_once, threads_of

ELSEWHERE = {"--executor", "-e", "--profile", "--workflow-profile"}  # other machines: --cores would cap their threads
AT_ONCE = ("--cores", "-c", "--jobs", "-j")  # with 0 of them Snakemake waits for ever
GRACE_S = 5  # in which Snakemake, told to stop by the terminal, usually has


@dataclasses.dataclass(frozen=True)
class Command:
    """Hand the runs of a preset to Snakemake. Further options go to every training, words behind `--` to Snakemake."""

    paper: str  # its folder's name, with - or _
    preset: str = "auto"  # auto (the richest that data and hardware allow) or a name of the paper's PRESETS
    rows: str = ""  # rows of the table, separated by spaces; without any the preset's
    seeds: str = ""  # whole numbers, separated by spaces; without any the preset's
    data: str | None = None  # data set; without it the first of the preset's that is here
    out: Path = paths.LOCAL  # folder of records
    jobs: int = 0  # runs at a time on this machine, each with its share of the cores; 0: two where there are two cores
    threads: int = 0  # of each run, for a cluster whose machines are others; 0: its share of this machine's cores


def main(argv: Sequence[str]) -> None:
    """Run a sweep. UserError where Snakemake is not installed or a run failed."""
    argv, own = split(list(argv))
    options, more = cli.command_and_rest(Command, argv, "python -m facepapers.common.tools.sweep", __doc__)
    if importlib.util.find_spec("snakemake") is None:
        raise cli.UserError("snakemake: not installed; install it with `pip install 'snakemake>=9.20,<10'`")
    check(options, own)
    paper = chosen_papers(options.paper)[0]
    plans = graph.settings(paper).PLAN
    preset, data = choose(plans, options.preset, options.data)
    rows, seeds = options.rows.split() or plans[preset].rows, numbers(options.seeds) or plans[preset].seeds
    jobs = graph.of_plan(paper, preset, data, rows, seeds, more)
    left = [job for job in jobs if not job.record(options.out).exists()]
    print(f"{len(jobs)} runs, {len(jobs) - len(left)} of them finished: {options.out}", flush=True)
    at_once = runs_at_once(options.jobs)
    threads = options.threads or threads_of(at_once)
    config = {
        "paper": paper, "preset": preset, "data": data, "rows": " ".join(rows), "seeds": " ".join(map(str, seeds)),
        "out": str(options.out.resolve()), "more": shlex.join(more),
        "threads": threads,
    }  # fmt: skip
    with alone(options.out) as lock:
        run(config, at_once * threads, options.out, own, lock)
    left = [job for job in jobs if not job.record(options.out).exists()]  # all of them after Snakemake's --dry-run
    print(f"{len(jobs) - len(left)} of {len(jobs)} runs finished: {options.out}")


def check(options: Command, own: Sequence[str]) -> None:
    """UserError, before anything is read or run, for what cannot work."""
    storage.writable(options.out, make=False)
    if set("{}") & set(str(options.out)):
        raise cli.UserError(f"{options.out}: Snakemake reads {{ }} as a pattern; name another --out")
    if options.threads < 0:
        raise cli.UserError(f"--threads {options.threads}: give 1 or more, or 0 for a share of this machine's cores")
    for name, value in settings(own):
        if name in AT_ONCE and value == "0":
            raise cli.UserError(f"{name} 0: nothing would ever run; give 1 or more")
    slurm = {("--executor", "slurm"), ("-e", "slurm")} & set(settings(own))
    if slurm and importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
        wanted = "pip install 'snakemake-executor-plugin-slurm>=2,<3'"
        raise cli.UserError(f"--executor slurm: its plugin is not installed; install it with `{wanted}`")


def settings(own: Sequence[str]) -> list[tuple[str, str]]:
    """[(name, value)] of Snakemake's words: `--name value`, `--name=value`, `-n5`."""
    joined = [match for word in own if (match := re.fullmatch(r"(--[\w-]+)=(.*)|(-\w)(\d+)", word))]
    found = [(match[1] or match[3], match[2] or match[4] or "") for match in joined]
    return [*found, *itertools.pairwise(own)]


def split(argv: list[str]) -> tuple[list[str], list[str]]:
    """(our words, Snakemake's: those behind `--`)."""
    place = argv.index("--") if "--" in argv else len(argv)
    return argv[:place], argv[place + 1 :]


def run(config: dict, cores: int, out: Path, own: list[str], lock: int) -> None:
    """One call of Snakemake, which ends when every run has. UserError where one failed.

    `cores`: of all runs at a time on this machine. It inherits `lock`, so the folder stays taken while it lives. A
    record is written last and whole, so what Snakemake had not yet seen finished when it was killed is finished.
    """
    elsewhere = any(word.split("=")[0] in ELSEWHERE for word in own)
    command = [
        sys.executable, "-m", "snakemake", "--snakefile", str(Path(__file__).with_name("sweep.smk")),
        "--directory", str(out.resolve()), *([] if elsewhere else ["--cores", str(cores)]),
        "--rerun-triggers", "mtime", "--ignore-incomplete",
        "--keep-going", "--quiet", "host", "rules", "reason", "--nolock", *own,
        "--config", *(f"{name}={value}" for name, value in config.items()),
    ]  # fmt: skip
    where = os.pathsep.join(filter(None, [str(paths.ROOT), os.environ.get("PYTHONPATH", "")]))
    # A shell starts what stands in the background with SIGINT ignored, which would be inherited: Snakemake and its runs
    # are told to stop by it, and get a group of their own, so that a terminal's Ctrl-C still passes them by.
    deaf = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    hear = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": where}, pass_fds=(lock,),
                               process_group=0 if deaf else None, preexec_fn=hear if deaf else None)  # fmt: skip
    try:
        failed = process.wait()
    except KeyboardInterrupt as stop:
        leave(process, deaf)
        raise cli.saved(stop, f"finished runs are kept in {out}; the same command continues") from None
    if failed:
        raise cli.UserError(f"{out}: not every run finished, see above; the same command continues")


def leave(process: subprocess.Popen, group: bool = False) -> None:
    """Wait until Snakemake has stopped its runs. A terminal's Ctrl-C reaches it too; any other signal does not.

    `group`: it leads a group of its own, which no terminal reaches, so the whole of it is told.
    """
    if group:
        os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.wait()


if __name__ == "__main__":
    cli.entry(main)
