#!/usr/bin/env bash
# Snakemake's --cores beside a cluster's executor limits no sum: it silently cuts the threads of every job.
#
# Versions   snakemake 9.27.1 with snakemake-executor-plugin-cluster-generic 1.0.9 (2026-11-30)
# Guess      As its help says, --cores is the largest number of cores that a cluster is asked for in all: with 2 cores
#            and rules of 2 threads one job at a time. Or it tells of the submitting machine alone and is ignored.
# Behaviour  Neither. As many jobs run at once as --jobs allows, and each rule's threads are cut to --cores: what a login
#            node with two cores passes as its own makes jobs of two threads on machines with many. Nothing is printed.
# Seen       rules of 2 threads, --jobs 4: without --cores 4 jobs at once of 2 threads, with --cores 1 again 4 at once,
#            of 1 thread each (a machine with two cores or more, as the jobs run on it)
# Remedy     Leave --cores out where jobs run elsewhere.
# Fails (exit 1) when --cores 1 no longer gives several jobs of one thread at once.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet snakemake==9.27.1 snakemake-executor-plugin-cluster-generic==1.0.9 2>/dev/null
cd "$work"
cat > Snakefile <<'RULES'
rule all:
    input: expand("{k}.txt", k=range(4))

rule one:
    output: "{k}.txt"
    threads: 2
    shell: "python3 -c 'import time; print({threads}, time.time()); time.sleep(15); print(time.time())' > {output}"
RULES
cat > submit.sh <<'CLUSTER'
#!/usr/bin/env bash
# Stands for a cluster: it begins every job at once and answers with a number.
nohup bash "$1" >/dev/null 2>&1 &
echo $!
CLUSTER
chmod +x submit.sh
for cores in "" "--cores 1"; do
    rm -f ./*.txt
    "$work/venv/bin/python" -m snakemake $cores --jobs 4 --executor cluster-generic \
        --cluster-generic-submit-cmd ./submit.sh --quiet all >log 2>&1 || { cat log; exit 1; }
    "$work/venv/bin/python" - "${cores:-no --cores}" <<'PY'
import sys
from pathlib import Path

files = [path.read_text().split() for path in Path().glob("*.txt")]
threads = {int(words[0]) for words in files}
begun, ended = [float(words[1]) for words in files], [float(words[2]) for words in files]
at_once = max(sum(b <= moment < e for b, e in zip(begun, ended, strict=True)) for moment in begun)
print(f"{sys.argv[1]}: {at_once} of {len(files)} jobs at once, threads of each: {threads}")
sys.exit(not (at_once > 1 and threads == ({1} if "1" in sys.argv[1] else {2})))
PY
done
