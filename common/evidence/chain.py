"""Where a number comes from: cell -> claim -> runs -> settings, source, machine, data, predictions.

The same facts stand in `report why`, on the results page and in cells.json.
"""

from facepapers.common.evidence import margins, plans, runs, statistics
from facepapers.common.evidence.claims import Cell
from facepapers.common.evidence.tables import value
from facepapers.common.protocols.metrics import Metric

CLAIM = ("published", "source", "selection", "n_runs", "tolerance", "tolerance_reason", "reference", "boxes",
         "equivalence_margin", "equivalence_reason")  # fmt: skip


def of_cell(cell: Cell) -> dict[str, str]:
    """{name: text} of what a cell is compared with and what came out."""
    facts = {"kind": cell.kind, "metric": cell.metric.label}
    facts |= {key: str(cell.claim[key]) for key in CLAIM if key in cell.claim}
    if "equivalence_margin" in cell.claim and cell.records:
        judged, every = len(margins.judged(cell.claim, cell.records, cell.others)), len(cell.records)
        facts["fixed before"] = f"{judged} of {every} pairs of runs; `no difference` takes {statistics.SEEDS} such"
    if i := cell.equivalence:
        facts["judged"] = f"[{i.low:.2f}, {i.high:.2f}], their {percent(statistics.EQUIVALENCE_CONFIDENCE)} interval"
    if planned := plans.read().get(cell.name):
        facts["planned"] = f"{planned} seeds a side"
    return facts | {"ours": value(cell), "confidence": percent(confidence(cell)), "status": cell.status}


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def confidence(cell: Cell) -> float:
    """That of a cell's interval."""
    return statistics.CONTRAST_CONFIDENCE if cell.kind == "contrast" else statistics.LEVEL_CONFIDENCE


def of_run(record: dict) -> dict[str, str | None]:
    """{name: text} of one run: what was changed, commit, machine, time, data, weights, predictions, settings."""
    source, env = record["source"], record["environment"]
    compiled = ", compiled" if env.get("compiled") else ""
    return {
        "overrides": pairs(record["overrides"]) or "nothing: the preset's own settings",
        "precision": runs.precision_of(record) + (", forced" if "precision" in record["overrides"] else ""),
        "commit": f"{source['commit']}{' with uncommitted changes' if source['dirty'] else ''}",
        "machine": f"{env['device']}, {env['threads']} threads, torch {env['torch']}, Python {env['python']}{compiled}",
        "time": f"{record['started']}, {record['seconds']:.0f} s training, {record['samples_per_s']} samples/s",
        "data": ", ".join(f"{name} {text}" for name, text in record["data"].items()),
        "weights": (record["weights"] or {}).get("sha256"),
        "predictions": f"{record['folder'].name}/predictions.npz, sha256 {record['predictions_sha256']}",
        "settings": pairs(record["config"]),
    }


def pairs(settings: dict) -> str:
    """`lr=0.1, seed=2`."""
    return ", ".join(f"{name}={setting}" for name, setting in settings.items())


def sides(cell: Cell) -> list[tuple[str, list[dict]]]:
    """[(row, records)]: of a contrast both sides, of another cell its own row; without runs the records are empty."""
    if cell.kind == "contrast":
        return [(cell.claim["better"], cell.records), (cell.claim["than"], cell.others)]
    return [(cell.claim["row"], cell.records)]


def measured(record: dict, metric: Metric) -> float:
    """The metric of one run, from its record, or from its predictions where the run is older than the metric."""
    if metric.name in record["metrics"]:
        return record["metrics"][metric.name]
    return metric.value(runs.read_predictions(record["folder"] / "predictions.npz"))


def unanswered(cell: Cell) -> str:
    """Why a cell has no number, in one sentence."""
    return f"no committed run has data {cell.claim['data']!r} and preset {cell.claim['preset']!r} for this cell"
