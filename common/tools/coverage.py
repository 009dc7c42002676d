"""How often the ledger's intervals hold the truth: `python -m facepapers.common.tools.coverage`, or `make coverage`.

Test sets and runs are drawn anew many times from populations like committed records, and each time the interval of
evidence/statistics.py is formed, beside other forms. A record gives a population its values (a smoothed quantile
function for each kind of sample and row) and the correlation between runs and between rows on the same samples. Drawn
are, in normal scores, what a sample does to every run, to the runs of one row, and to one run; with "runs apart" each
run also moves as a whole, by about as much as the choice of samples moves it. The truth is the mean of all estimates.
A line of results/coverage.csv is written when its simulation ends, and is not computed again.
"""

import csv
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from facepapers.common import cli, paths, storage
from facepapers.common.cli import UserError
from facepapers.common.evidence import claims, runs, statistics
from facepapers.common.progress import progress
from facepapers.common.protocols import verification
from facepapers.common.protocols.metrics import Metric

APART = 1.5  # standard deviation of a run's shift, in normal scores times the root of the number of samples
CONFIDENCES = 0.90, 0.95
TABLE = paths.RECORDED / "coverage.csv"
Predictions = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """Intervals of a metric, of `row` alone and over `than`, drawn as like the committed runs of both."""

    paper: str
    metric: str
    data: str
    preset: str
    row: str
    than: str = ""  # empty: levels alone
    seeds: tuple[int, ...] = (1, 3, 10)


CASES = (
    Case("arcface", "accuracy_pct", "lfw", "pairs", "given", seeds=(1,)),
    Case("face_attributes", "identity_accuracy_pct", "utkface+ferplus", "short", "linear", seeds=(1,)),
    Case("coarse_to_fine", "nme_eyecentre_pct", "lfpw", "short", "heatmap", "cft"),
    Case("face_attributes", "age_accuracy_pct", "utkface+ferplus", "short", "best", "linear"),
    Case("face_attributes", "emotion_less_gender_pct", "utkface+ferplus", "short", "best", "linear"),
    Case("resup", "accuracy_mean_pct", "ferplus", "short", "resup", "ce_two"),
    Case("arcface", "accuracy_pct", "lfw", "short", "arcface", "softmax"),
    Case("arcface", "auc_pct", "lfw", "short", "arcface", "triplet"),
    Case("hybrid_order_distillation", "accuracy_pct", "lfw", "short", "assistant_123", "direct_123", (1, 3)),
    Case("arcface", "accuracy_pct", "lfw", "view2", "arcface", seeds=(1, 3)),
    Case("resup", "weight_auc_pct", "ferplus", "short", "resup", seeds=(1, 3)),
    Case("arcface", "tar_far01pct_pct", "lfw", "pairs", "given", seeds=(1,)),
)


# ---- Populations


@dataclass(frozen=True, eq=False)
class Population:
    """What one case is drawn from. N samples; a row's quantiles are sorted values of each group of samples."""

    metric: Metric
    example: Predictions  # arrays that all draws share: truths, folds
    group: np.ndarray  # (N,) 0 or 1; a run's shift moves the two apart
    quantiles: list[list[np.ndarray]]  # of each row: of each group
    within: float  # correlation of two runs of a row on the same samples, in normal scores
    across: float  # of two runs of different rows

    def draw(self, rng: np.random.Generator, seeds: int, apart: bool) -> list[list[Predictions]]:
        """For each row the predictions of `seeds` runs on one drawn test set."""
        n = len(self.group)
        normal = lambda share, *shape: np.sqrt(max(share, 0.0)) * rng.standard_normal((*shape, n))
        everywhere, rows = normal(self.across), []
        for quantiles in self.quantiles:
            scores = everywhere + normal(self.within - self.across) + normal(1 - self.within, seeds)
            if apart:
                scores += APART / np.sqrt(n) * rng.standard_normal((seeds, 1)) * (2 * self.group - 1)
            rows.append([self._predictions(quantiles, score) for score in scores])
        return rows

    def _predictions(self, quantiles: list[np.ndarray], score: np.ndarray) -> Predictions:
        from scipy.special import ndtr

        values, share = np.empty(len(score)), ndtr(score)
        for number, known in enumerate(quantiles):
            own = self.group == number
            values[own] = np.interp(share[own], (np.arange(len(known)) + 0.5) / len(known), known)
        return {**self.example, **written(self.metric, values, self.group)}


Run = tuple[np.ndarray, np.ndarray]  # of a recorded run: the values (N,) of its samples and their groups (N,)


def population(case: Case) -> Population:
    """The Population like the committed runs of a case. UserError where there are none."""
    metric, example = claims.metrics_of(case.paper)[case.metric], recorded(case, case.row)[0]
    rows = [
        [(read(metric, p), grouped(metric, p)) for p in recorded(case, row)] for row in (case.row, case.than) if row
    ]
    group = rows[0][0][1]
    quantiles = [[pooled(row, number) for number in np.unique(group)] for row in rows]
    pairs = [(a, b) for row in rows for i, a in enumerate(row) for b in row[:i]]
    within = correlation(pairs) if pairs else 1.0
    across = correlation([(a, b) for a in rows[0] for b in rows[-1]]) if case.than else within
    return Population(metric, example, group, quantiles, max(within, across), across)


def pooled(row: list[Run], number: int) -> np.ndarray:
    """The sorted values of a group's samples in all runs of a row."""
    return np.sort(np.concatenate([values[group == number] for values, group in row]))


def recorded(case: Case, row: str) -> list[Predictions]:
    """Predictions of the committed runs of a row. UserError where there are none."""
    known = runs.of_presets(runs.recorded(case.paper))
    found = [r for r in known if (r["data"]["name"], r["config"]["preset"], r["config"]["row"])
             == (case.data, case.preset, row)]  # fmt: skip
    found = [runs.read_predictions(r["folder"] / "predictions.npz") for r in found]
    if not (found := [p for p in found if claims.metrics_of(case.paper)[case.metric].available(p)]):
        raise UserError(f"results/{case.paper}: no record of {case.data}, {case.preset}, {row}; restore it from git")
    return found


def read(metric: Metric, predictions: Predictions) -> np.ndarray:
    """The values (N,) of samples that a metric is computed from: distances, weights, hits or errors."""
    if _scored(metric):
        return np.asarray(predictions[metric.needs[0]], np.float64)
    if _hits(metric):
        return np.concatenate([predictions[key] for key in _hits(metric)]).astype(np.float64)
    assert metric.per_sample is not None, metric.name
    return np.asarray(metric.per_sample(predictions), np.float64)


def grouped(metric: Metric, predictions: Predictions) -> np.ndarray:
    """The group (N,) of each of these values: same-person pairs, clean labels, the second of two sets."""
    if _scored(metric):
        return np.asarray(predictions[metric.needs[1]], int)
    if _hits(metric):
        return np.repeat(np.arange(len(_hits(metric))), [len(predictions[key]) for key in _hits(metric)])
    return np.zeros(len(read(metric, predictions)), int)


def written(metric: Metric, values: np.ndarray, group: np.ndarray) -> Predictions:
    """Arrays from which the metric is computed as if `values` (N,) had been measured."""
    if _scored(metric):
        return {metric.needs[0]: values}
    if _hits(metric):
        return {key: values[group == number] > 0.5 for number, key in enumerate(_hits(metric))}
    first, second = metric.needs
    if first == "label":
        return {first: np.zeros(len(values), int), second: (values < 50).astype(int)}
    return {first: values[:, None], second: np.full(len(values), 100.0)}  # errors in hundredths of the normaliser


def _scored(metric: Metric) -> bool:
    return metric.needs[1:2] in (("same",), ("flip",), ("identity_same",))


def _hits(metric: Metric) -> list[str]:
    return [key for key in metric.needs if key.endswith("_correct")]


def correlation(pairs: list[tuple[Run, Run]]) -> float:
    """Mean correlation, as of normal scores, of two runs' values on the same samples of a group (hits: tetrachoric)."""
    found = []
    for (a, one), (b, other) in pairs:
        for own in ((one == k) & (other == k) for k in np.unique(one)):  # labels that a seed flips differ between runs
            value = float(np.corrcoef(a[own], b[own])[0, 1])
            found.append(np.sin(np.pi / 2 * value) if len(np.unique(a[own])) == 2 else value)
    return float(np.clip(np.nanmean(found), 0, 1))


# ---- Forms of an interval: (estimate, low, high)

Form = tuple[float, float, float]


def forms(
    metric: Metric, sides: list[list[Predictions]], confidence: float, boot: statistics.Bootstrap
) -> dict[str, Form]:
    """{name: interval} of a level (one side) or a contrast (two): ours, the former one and, of one run, over folds."""
    interval: Callable[..., statistics.Interval] = statistics.contrast if len(sides) == 2 else statistics.level
    ours = interval(metric, *sides, confidence, boot)
    found = {"ours": (ours.mean, ours.low, ours.high), "quadrature": quadrature(metric, sides, confidence, boot)}
    if metric.held is not None and len(sides[0]) == 1:
        lists = [tuple(side[0][key] for key in metric.needs) for side in sides]
        folds = [verification.verify(distance, same, fold, both=False) for distance, same, fold in lists]
        of_fold = folds[0].fold_accuracy_pct - (folds[1].fold_accuracy_pct if len(folds) == 2 else 0)
        found |= over_folds(of_fold, ours.mean, confidence)
    return found


def quadrature(metric: Metric, sides: list[list[Predictions]], confidence: float, boot: statistics.Bootstrap) -> Form:
    """Student's half-width over runs and the normal one over samples, added in quadrature; the ledger's until 0.1."""
    from scipy.special import ndtri, stdtrit

    of = metric.per_sample or (lambda run: boot.drawn(metric, run))
    rows, values = (np.array([[f(run) for run in side] for side in sides], np.float64) for f in (of, metric.value))
    rows, values = (x[0] - x[1] if len(sides) == 2 else x[0] for x in (rows, values))
    n, tail, mean = len(values), 0.5 + confidence / 2, float(values.mean())
    scale = rows.shape[1] if metric.per_sample else 1
    within = ndtri(tail) * np.sqrt(rows.mean(0).var(ddof=1) / scale)
    between = stdtrit(n - 1, tail) * values.std(ddof=1) / np.sqrt(n) if n > 1 else 0.0
    half = float(np.hypot(within, between))
    return mean, mean - half, mean + half


def over_folds(of_fold: np.ndarray, mean: float, confidence: float, draws: int = 1000) -> dict[str, Form]:
    """{name: interval} from the accuracies (F,) of folds, as papers form them."""
    from scipy.special import ndtri, stdtrit

    tail, error = 0.5 + confidence / 2, of_fold.std(ddof=1) / np.sqrt(len(of_fold))
    student, normal = stdtrit(len(of_fold) - 1, tail) * error, ndtri(tail) * of_fold.std() / np.sqrt(len(of_fold))
    drawn = np.random.default_rng(0).choice(of_fold, (draws, len(of_fold))).mean(1)
    low, high = np.quantile(drawn, [1 - tail, tail])
    return {"folds_t": (mean, mean - student, mean + student), "folds_normal": (mean, mean - normal, mean + normal),
            "folds_bootstrap": (mean, float(low), float(high))}  # fmt: skip


# ---- Simulations


def simulate(
    drawn_from: Population, seeds: int, apart: bool, repetitions: int, rng: np.random.Generator
) -> list[dict[str, object]]:
    """A line for each kind and form: how often (%) the interval held the truth, and its width over the right one."""
    seen: dict[tuple[str, str], list[list[Form]]] = {}
    for _ in progress(range(repetitions), f"{drawn_from.metric.name}, {seeds} seeds", "test sets"):
        rows, boot = drawn_from.draw(rng, seeds, apart), statistics.Bootstrap()
        for kind, sides in (("level", rows[:1]), ("contrast", rows))[: len(rows)]:
            at = [forms(drawn_from.metric, sides, confidence, boot) for confidence in CONFIDENCES]
            for form in at[0]:
                seen.setdefault((kind, form), []).append([one[form] for one in at])
    return [{"kind": kind, "form": form, **held(np.array(found))} for (kind, form), found in seen.items()]


def held(found: np.ndarray) -> dict[str, float]:
    """Coverage in percent at both confidences and relative width, of intervals (R, 2, 3)."""
    from scipy.special import ndtri

    estimate, low, high = np.moveaxis(found, 2, 0)
    inside = 100 * np.mean((low <= estimate.mean()) & (estimate.mean() <= high), axis=0)
    half = np.sqrt(np.mean(((high - low)[:, 1] / 2) ** 2))
    width = half / (ndtri(0.975) * estimate[:, 1].std(ddof=1))
    return {"covered_90_pct": round(inside[0], 2), "covered_95_pct": round(inside[1], 2), "width": round(width, 3)}


FIELDS = ("paper", "metric", "data", "preset", "row", "than", "samples", "seeds", "runs", "kind", "form",
          "covered_90_pct", "covered_95_pct", "width", "repetitions", "seed", "numpy", "scipy")  # fmt: skip


@dataclass(frozen=True)
class Command:
    """Simulate intervals and write how often they hold the truth."""

    repetitions: int = 0  # test sets of each simulation; 0: 1000 where they are cheap, else 200
    seed: int = 0  # of the random numbers
    papers: tuple[str, ...] = ()  # these alone; all when empty
    table: Path = TABLE  # CSV file that the lines are kept in


def main(argv: Sequence[str]) -> None:
    """Complete the table: what it lacks is simulated, one line after another."""
    options = cli.command(Command, argv, "python -m facepapers.common.tools.coverage", __doc__)
    if unknown := set(options.papers) - set(claims.papers()):
        raise UserError(f"--papers {' '.join(unknown)}: no such paper; known are {', '.join(claims.papers())}")
    lines = list(csv.DictReader(options.table.read_text().splitlines())) if options.table.exists() else []
    for case in (c for c in CASES if not options.papers or c.paper in options.papers):
        drawn_from = population(case)
        for seeds, apart in [(s, a) for s in case.seeds for a in (False, True) if s > 1 or not a]:
            key = described(case, drawn_from, seeds, apart, options)
            if any(all(line[name] == value for name, value in key.items()) for line in lines):
                continue
            rng = np.random.default_rng([options.seed, zlib.crc32(" ".join(key.values()).encode())])
            found = simulate(drawn_from, seeds, apart, int(key["repetitions"]), rng)
            lines = [line for line in lines if not same_place(line, key)]
            lines += [{**key, **{name: str(value) for name, value in one.items()}} for one in found]
            write(options.table, lines)


def described(case: Case, drawn_from: Population, seeds: int, apart: bool, options: Command) -> dict[str, str]:
    """What decides a simulation, as strings under the names of FIELDS."""
    mean, at_once = drawn_from.metric.per_sample is not None, drawn_from.metric.resampled is not None
    repetitions = options.repetitions or (1000 if mean or (at_once and seeds == 1) else 200)
    together = "one" if seeds == 1 else "apart" if apart else "alike"
    found = {
        "paper": case.paper,
        "metric": case.metric,
        "data": case.data,
        "preset": case.preset,
        "row": case.row,
        "than": case.than,
        "samples": len(drawn_from.group),
        "seeds": seeds,
        "runs": together,
        "repetitions": repetitions,
        "seed": options.seed,
        "numpy": version("numpy"),
        "scipy": version("scipy"),
    }
    return {name: str(value) for name, value in found.items()}


def same_place(line: dict[str, str], key: dict[str, str]) -> bool:
    """Whether a line is of this simulation, be it with other repetitions, seed or versions."""
    return all(line[name] == key[name] for name in FIELDS[:9])


def write(table: Path, lines: list[dict[str, str]]) -> None:
    """The table in the order of CASES."""
    order = {(c.paper, c.metric, c.preset, c.row): k for k, c in enumerate(CASES)}
    place = lambda line: order.get((line["paper"], line["metric"], line["preset"], line["row"]), len(order))
    with storage.atomic(table) as temporary, open(temporary, "w", newline="") as handle:
        writer = csv.DictWriter(handle, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(lines, key=lambda line: (place(line), int(line["seeds"]), line["runs"])))


if __name__ == "__main__":
    cli.entry(main)
