# The graph of a sweep for Snakemake: one rule a run, its record the output, the records that it needs the inputs.
# Written for `make sweep`, which passes `config`; see common/tools/sweep.py.
import shlex
import sys
from pathlib import Path

from facepapers.common.tools import graph

OUT = Path(config["out"])
JOBS = graph.of_plan(config["paper"], config["preset"], config["data"], config["rows"].split(),
                     [int(seed) for seed in str(config["seeds"]).split()], shlex.split(config["more"]))
BEFORE = graph.predecessors(JOBS)


rule all:
    input: [str(job.record(OUT)) for job in JOBS]


for job in JOBS:
    rule:
        name: job.name.replace("-", "_").replace("+", "_")
        input: [ancient(str(before.record(OUT))) for before in BEFORE[job]]
        output: str(job.record(OUT))
        threads: int(config["threads"])
        params:
            # A run's checkpoint lies beside its record, so a killed one continues where it was.
            command=shlex.join([sys.executable, "-m", f"facepapers.papers.{job.paper}.train", *job.words,
                                "--out", str(OUT)])
        shell: "OMP_NUM_THREADS={threads} {params.command}"
