"""Claims and the runs that answer them: from `claims.toml` and the records to cells with a computed status."""

import math
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from facepapers.common import paths, storage
from facepapers.common.cli import UserError
from facepapers.common.data.archive import entries
from facepapers.common.data.registry import registry
from facepapers.common.evidence import margins, runs, schema, statistics
from facepapers.common.protocols.metrics import Metric

REQUIRED = {kind: set(needed) for kind, needed in schema.NEEDED.items()}


@dataclass
class Cell:
    """A claim with what the records say about it.

    A level's `reference` says in words why the published number stands beside ours without a verdict: another network,
    another protocol.
    """

    paper: str
    kind: str  # level | contrast | measured
    claim: dict
    metric: Metric
    records: list = field(default_factory=list)  # for a contrast: those of `better`
    others: list = field(default_factory=list)  # for a contrast: those of `than`
    interval: statistics.Interval | None = None
    status: str = "not run"
    equivalence: statistics.Interval | None = None  # of the pairs that a margin of equivalence judges
    alike: Callable | None = None  # of the paper's metrics.py, see `pair`

    @property
    def name(self):
        return f"{self.paper}.{self.claim['id']}"


class Evidence:
    """Predictions of records and their metrics on resamples: each file is read once, each resample taken once."""

    def __init__(self):
        self.bootstrap, self._arrays = statistics.Bootstrap(), {}

    def predictions(self, record):
        """The arrays of a record's predictions file; UserError when it is missing or damaged."""
        path = record["folder"] / "predictions.npz"
        if path not in self._arrays:
            self._arrays[path] = runs.read_predictions(path)
        return self._arrays[path]


def papers(root=paths.ROOT):
    """Directories of `papers/` that hold claims, in alphabetical order."""
    return sorted(path.parent.name for path in entries(Path(root, "papers"), "*/claims.toml"))


def read(paper, root=paths.ROOT):
    """The parsed claims of a paper. UserError naming the entry that is not as `schema` has it."""
    path = Path(root, "papers", paper, "claims.toml")
    if not path.exists():
        raise UserError(f"{path}: no such paper; known are {', '.join(papers(root))}")
    try:
        parsed = tomllib.loads(storage.read_text(path, "correct it or restore it from git"))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML ({error}); correct it or restore it from git") from None
    schema.check_claims(parsed, path)
    return parsed


def metrics_of(paper):
    """The paper's METRICS, name -> Metric."""
    return import_module(f"facepapers.papers.{paper}.metrics").METRICS


def alike_of(paper):
    """The paper's function of a record that both runs of a pair agree in, None where it has none."""
    return getattr(import_module(f"facepapers.papers.{paper}.metrics"), "alike", None)


def names(kinds=REQUIRED):
    """`<paper>.<claim>` of every claim of every paper, or those of some kinds; no record is read."""
    found = []
    for paper in papers():
        written = read(paper)
        found += [f"{paper}.{claim['id']}" for kind in kinds for claim in written.get(kind, [])]
    return found


def cells(paper, records=None, evidence=None):
    """Every claim of a paper as a Cell, computed from `records` (default: the committed ones)."""
    records = runs.recorded(paper) if records is None else records
    evidence = evidence or Evidence()
    return [_fill(cell, records, evidence) for cell in _unanswered(paper)]


def cell(paper, claim_id):
    """One claim of a paper as a Cell, computed from the committed records; KeyError when there is no such claim."""
    unanswered = {found.claim["id"]: found for found in _unanswered(paper)}
    return _fill(unanswered[claim_id], runs.recorded(paper), Evidence())


def _unanswered(paper):
    """Every claim of a paper as a Cell without records. UserError for an unknown metric, row or preset."""
    known, found, written = metrics_of(paper), [], read(paper)
    schema.check_claimed(paper, written, Path("papers", paper, "claims.toml"))
    sets, alike = ["embedded", *registry()], alike_of(paper)
    for kind in REQUIRED:
        for claim in written.get(kind, []):
            where = f"papers/{paper}/claims.toml: {claim['id']}"
            schema.unknown([claim["metric"]], known, f"{where}: unknown metric", "known are those of metrics.py")
            schema.unknown(claim["data"].split("+"), sets, f"{where}: no data set", "data/registry.toml has them")
            found.append(Cell(paper, kind, claim, known[claim["metric"]], alike=alike))
    return found


def in_each_precision(paper):
    """{"bf16": Cell, "fp32": Cell} of the paper's contrast marked `precision_check`, each from runs in that one alone.

    Empty unless runs answer it in both.
    """
    records, known, evidence = runs.recorded(paper), metrics_of(paper), Evidence()
    found = {}
    for claim in (c for c in read(paper).get("contrast", []) if c.get("precision_check")):
        for name in ("bf16", "fp32"):
            same = [r for r in records if runs.precision_of(r) == name]
            cell = Cell(paper, "contrast", claim, known[claim["metric"]], alike=alike_of(paper))
            found[name] = _fill(cell, same, evidence)
    return found if all(cell.records for cell in found.values()) else {}


def matching(records, claim, row, metric, evidence=None):
    """Records of a claim's data, preset and row, one per seed, with nothing but seed and precision changed.

    A run that was recorded before the claim's metric existed answers if its predictions give it. A claim with
    `one_network` is about a frozen network: other seeds measure it again without repeating the experiment, so the first
    one answers.
    """
    evidence = evidence or Evidence()
    fits = [
        r for r in records
        if r["data"]["name"] == claim["data"] and r["config"]["preset"] == claim["preset"]
        and r["config"]["row"] == row and set(r["overrides"]) <= runs.FREE and _answers(r, metric, evidence)
    ]  # fmt: skip
    fits = sorted(runs.of_presets(fits), key=lambda r: r["config"]["seed"])
    return fits[:1] if claim.get("one_network") else fits  # measured on what no seed changes


def _answers(record, metric, evidence):
    if metric.name in record["metrics"]:
        return True
    predictions = evidence.predictions(record)
    return metric.available(predictions) and math.isfinite(metric.value(predictions))


def _fill(cell, records, evidence):
    claim, metric = cell.claim, cell.metric
    of = lambda found: [evidence.predictions(record) for record in found]
    if cell.kind == "contrast":
        ours, others = (matching(records, claim, claim[side], metric, evidence) for side in ("better", "than"))
        cell.records, cell.others = pair(ours, others, cell.alike)
        if cell.records:
            cell.interval = statistics.contrast(metric, of(cell.records), of(cell.others), bootstrap=evidence.bootstrap)
            cell.status = statistics.contrast_status(cell.interval, claim.get("margin", 0.0), claim.get("within"))
        if cell.status == "inconclusive":
            cell.equivalence = _equivalence(cell, evidence)
        if cell.equivalence and statistics.equivalent(cell.equivalence, claim["equivalence_margin"]):
            cell.status = "no difference"
        return _absent(cell, records)
    cell.records = matching(records, claim, claim["row"], metric, evidence)
    if not cell.records:
        return _absent(cell, records)
    cell.interval = statistics.level(metric, of(cell.records), bootstrap=evidence.bootstrap)
    if "reference" in claim:
        cell.status = "reference"  # unlike things side by side: whichever is higher says nothing of the method
    elif cell.kind == "level":
        cell.status = statistics.level_status(metric, cell.interval, float(claim["published"]), claim["tolerance"])
    else:
        cell.status = "demo only" if claim["preset"] == "demo" else "other data"
    return cell


def _equivalence(cell, evidence):
    """The interval of the runs that began under the claim's margin, None where they are too few; see margins.py."""
    chosen = margins.judged(cell.claim, cell.records, cell.others)
    if len(chosen) < statistics.SEEDS:
        return None
    ours, others = ([evidence.predictions(side[k]) for k in chosen] for side in (cell.records, cell.others))
    level = statistics.EQUIVALENCE_CONFIDENCE
    return statistics.contrast(cell.metric, ours, others, level, evidence.bootstrap)


def pair(ours, others, alike=None):
    """The runs of both sides with the same seeds; an untrained side (one run) meets every run of the other.

    `alike`: a paper's function of a record, equal for both runs of a pair, or they are none.
    """
    if len(others) == 1 and not others[0]["seconds"]:
        return ours, others * len(ours)
    of_seed = {r["config"]["seed"]: r for r in others}
    pairs = [(r, of_seed[r["config"]["seed"]]) for r in ours if r["config"]["seed"] in of_seed]
    pairs = [(r, other) for r, other in pairs if not alike or alike(r) == alike(other)]
    return [r for r, _ in pairs], [other for _, other in pairs]


def _absent(cell, records):
    if not cell.records:
        any_data = any(r["data"]["name"] == cell.claim["data"] for r in records)
        cell.status = "not run" if any_data else "data missing"
    return cell
