"""results/cells.csv and cells.json: every cell of the results page for machines, and a README of their columns."""

import csv
import io
import json

from facepapers.common.evidence import chain, runs, statuses
from facepapers.common.evidence.claims import Cell

FIELDS = {
    "cell": "its name, <paper>.<claim>: `make why CELL=<cell>` explains it, and so does index.html#<cell>",
    "paper": "folder of the paper in papers/",
    "kind": "level: a published number; contrast: a claim that one side is better; measured: nothing to compare with",
    "what": "the cell in words",
    "headline": "whether it is one of the paper's main cells, true or false",
    "metric": "name of the metric in papers/<paper>/metrics.py; its unit ends the name",
    "metric_label": "the metric in words, with its unit",
    "better": "which numbers are better, higher or lower; a contrast is signed so that positive means better",
    "data": "data set of the test samples",
    "preset": "preset that answers the cell",
    "row": "setting that was run; of a contrast, the side that is claimed to be better",
    "than": "of a contrast, the other side",
    "published": "the published number, as printed",
    "tolerance": "how far from `published` still counts as replicated, in the metric's unit",
    "margin": "of a contrast: supported from a gain of -margin on; its default is 0",
    "within": "of a contrast that claims no difference: supported inside +-within",
    "equivalence_margin": "of a contrast: a gain that nobody would care about, fixed before the runs that it judges",
    "source": "where the number or the claim was published",
    "selection": "which epoch the publication reports",
    "n_runs": "how many runs stand behind the published number",
    "protocol": "test boxes or protocol of the published number",
    "reference": "why no verdict is drawn where unlike things stand side by side",
    "ours": "our mean over the runs; of a contrast, the gain",
    "low": "lower end of its interval",
    "high": "upper end of its interval",
    "confidence": "confidence of the interval",
    "equivalence_low": "of an undecided contrast: lower end of the 90 % interval of the pairs that the margin judges",
    "equivalence_high": "its upper end; `no difference` where both lie within the margin",
    "equivalence_pairs": "number of these pairs",
    "seeds": "number of seeds",
    "samples": "number of test samples, or of what the metric counts",
    "status": "computed status; `statuses` of cells.json says what each means",
    "runs": "runs behind the cell: results/<paper>/<run>/run.json; in the .csv separated by spaces",
    "values": "the metric of each of these runs, in their order",
    "than_runs": "of a contrast, runs of the other side, paired with `runs` in their order",
    "than_values": "the metric of each of these",
}
OF_CLAIM = ("data", "preset", "than", "published", "tolerance", "margin", "within", "equivalence_margin", "source",
            "selection", "n_runs", "reference")  # fmt: skip
RUN = {
    "record": "its record, a path in results/",
    "seed": "seed of the run",
    "overrides": "settings other than the preset's own",
    "precision": "bf16 or fp32",
    "commit": "commit that it was started from; null where it was not known",
    "uncommitted_changes": "whether sources differed from that commit",
    "device": "processor or GPU",
    "environment": "threads, versions, and how fast the machine multiplies (gflops, float32) in records that tell",
    "started": "start, UTC",
    "seconds": "training time",
    "data": "what the record says of its data, fingerprint included",
    "predictions_sha256": "hash of predictions.npz beside the record",
    "weights_sha256": "hash of the weights, if any",
}


def files(all_cells: list[Cell]) -> dict[str, str]:
    """{name in results/: text} of cells.csv, cells.json and their README."""
    lines = [line(cell) for cell in all_cells]
    return {"cells.csv": as_csv(lines), "cells.json": as_json(all_cells, lines), "README.md": readme()}


def line(cell: Cell) -> dict:
    """A cell as a dict with the keys of FIELDS, None where one does not apply."""
    (row, runs), (_, others) = (*chain.sides(cell), (None, []))[:2]
    values = lambda records: [digits(chain.measured(record, cell.metric)) for record in records]
    found = {
        **{key: cell.claim.get(key) for key in OF_CLAIM},
        "cell": cell.name, "paper": cell.paper, "kind": cell.kind, "what": cell.claim["what"],
        "headline": bool(cell.claim.get("headline")), "metric": cell.metric.name, "metric_label": cell.metric.label,
        "better": "lower" if cell.metric.lower_is_better else "higher", "row": row,
        "protocol": cell.claim.get("boxes"), "status": cell.status, "seeds": len(runs),
        "runs": [r["run"] for r in runs], "values": values(runs),
        "than_runs": [r["run"] for r in others], "than_values": values(others), **interval(cell),
    }  # fmt: skip
    return {key: found[key] for key in FIELDS}


def interval(cell: Cell) -> dict[str, float | None]:
    """What FIELDS has of a cell's interval, and of that which its margin of equivalence judges."""
    i, judged = cell.interval, cell.equivalence
    found = dict.fromkeys(("ours", "low", "high", "confidence", "samples"))
    if i:
        found = {"ours": digits(i.mean), "low": digits(i.low), "high": digits(i.high), "samples": i.n_samples,
                 "confidence": chain.confidence(cell)}  # fmt: skip
    ends = (digits(judged.low), digits(judged.high), judged.n_seeds) if judged else (None,) * 3
    return found | dict(zip(("equivalence_low", "equivalence_high", "equivalence_pairs"), ends, strict=True))


def digits(value: float) -> float:
    """Six digits: what differs between processors lies far behind them."""
    return float(f"{value:.6g}")


def as_csv(lines: list[dict]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: plain(found) for key, found in each.items()} for each in lines)
    return text.getvalue()


def plain(found: object) -> object:
    """A value as a field of the .csv: lists are separated by spaces, None is empty, truth is written as in JSON."""
    if isinstance(found, list):
        return " ".join(map(str, found))
    return str(found).lower() if isinstance(found, bool) else found


def as_json(all_cells: list[Cell], lines: list[dict]) -> str:
    """An object of fields, run_fields, statuses, runs and cells; a run and a cell have a line each."""
    records = {f"{r['paper']}/{r['run']}": r for cell in all_cells for _, found in chain.sides(cell) for r in found}
    meanings = {status.word: status.meaning for status in statuses.present(all_cells)}
    one = lambda found: json.dumps(found, ensure_ascii=False)
    head = ",\n".join(
        f'"{name}": {json.dumps(found, ensure_ascii=False, indent=1)}'
        for name, found in (("fields", FIELDS), ("run_fields", RUN), ("statuses", meanings))
    )
    known = ",\n".join(f"{one(name)}: {one(run(records[name]))}" for name in sorted(records))
    return f'{{\n{head},\n"runs": {{\n{known}\n}},\n"cells": [\n' + ",\n".join(map(one, lines)) + "\n]\n}\n"


def run(record: dict) -> dict:
    """A run as a dict with the keys of RUN."""
    source, env = record["source"], record["environment"]
    return {
        "record": f"{record['paper']}/{record['run']}/run.json", "seed": record["config"]["seed"],
        "overrides": record["overrides"], "precision": runs.precision_of(record),
        "commit": source["commit"], "uncommitted_changes": source["dirty"], "device": env["device"],
        "environment": {key: env[key] for key in env if key not in ("device", "device_type")},
        "started": record["started"], "seconds": record["seconds"], "data": record["data"],
        "predictions_sha256": record["predictions_sha256"],
        "weights_sha256": (record["weights"] or {}).get("sha256"),
    }  # fmt: skip


def readme() -> str:
    """What lies in results/, and the columns of the two files."""
    rows = "".join(f"| {key} | {text} |\n" for key, text in FIELDS.items())
    of_run = "".join(f"| {key} | {text} |\n" for key, text in RUN.items())
    return f"""# Results

Everything here is written by code: runs write their folders, `make report` the rest;
`make verify` recomputes all of it.

- [index.html](index.html): every number with its interval, status and origin; open it in a browser, no network needed
- [cells.csv](cells.csv), [cells.json](cells.json): the same for machines
- [coverage.csv](coverage.csv): how often simulated intervals held the truth (`make coverage`)
- `<paper>/<run>/`: `run.json` (the record), `history.csv`, `predictions.npz` (each test sample's, from which every
  metric is recomputed); `<paper>/figures/`: the pictures

## Columns of cells.csv, keys of `cells` in cells.json

Empty, or null, where one does not apply.

| column | meaning |
| --- | --- |
{rows}
## Keys of `runs` in cells.json

By `<paper>/<run>`; the runs that stand behind a cell.

| key | meaning |
| --- | --- |
{of_run}"""
