"""Run records: what was run, on what, with which result. `results/<paper>/<run>/run.json` and its neighbours.

Committed evidence lives in `results/<paper>/`; what a user runs goes to `results/local/<paper>/` (ignored by git),
so that a reproduction never overwrites the record it is compared with.
"""

import dataclasses
import hashlib
import io
import json
import sys
import time
from pathlib import Path

import numpy as np

from facepapers.common import cli, paths, storage
from facepapers.common.cli import MissingData, UserError
from facepapers.common.data.archive import entries
from facepapers.common.evidence import margins, schema
from facepapers.common.evidence.environment import environment, imported_modules, peak_memory_mib, source_state

SCHEMA = schema.SEALED


FREE = {"seed", "precision"}  # settings that may be changed in a run that stands for its preset


class Run:
    """One training run's folder. `identity` (a dict of scalars) is everything that decides its outcome."""

    def __init__(self, paper, name, config, preset_config, root=paths.LOCAL):
        cli.require("pandas", "scipy", "sklearn")  # its history, intervals and metrics need them at the end
        self.paper, self.name, self.config = paper, name, as_dict(config)
        preset = as_dict(preset_config)
        self.overrides = {k: v for k, v in self.config.items() if v != preset[k]}
        self.folder = Path(root) / paper / name
        self.started = time.time()
        self.source = source_state(paper)  # as it is now: a checkout may change while a run goes on
        self.precision = "fp32"
        self.margins = {}

    def settle(self, config, device, begun=None):
        """`config` with the precision that this run computes in; see precision.settle."""
        from facepapers.common.training import precision  # loads PyTorch, which records are read without

        settled = precision.settle(config, self.folder, device, begun)
        self.precision, self.margins = settled.precision, margins.committed(self.paper, self.config)
        return settled

    def finished(self):
        """True when this folder holds a complete record of the same configuration, in whatever precision.

        UserError when it holds one of another configuration, so that nothing recorded is overwritten unasked.
        """
        path = self.folder / "run.json"
        if not path.exists():
            return False
        old = storage.read_json(path, ("config",))["config"]
        changed = {k for k in old.keys() | self.config.keys() if old.get(k) != self.config.get(k)}
        if keys := sorted(changed - {"precision"}):  # its words have changed: see precision_of
            raise UserError(f"{path}: records another configuration ({', '.join(keys)}); move or delete that folder")
        return True

    def finished_record(self) -> dict | None:
        """The record in this folder, said on stderr, or None where the run is not `finished`; else as `finished`.

        Every run begins with it, so a place that cannot be written is told here (UserError), before data are read.
        """
        if not self.finished():
            storage.writable(self.folder, make=False)
            return None
        print(f"{self.name}: already recorded in {self.folder}; delete that folder to run it again", file=sys.stderr)
        return storage.read_json(self.folder / "run.json")

    def finish(self, *, metrics, predictions, history, data, selection, device, seconds, samples, weights=None, **more):
        """Write predictions, history and, last, run.json: a folder with run.json is complete."""
        write_predictions(self.folder / "predictions.npz", predictions)
        write_history(self.folder / "history.csv", history)
        record = {
            "schema": SCHEMA,
            "paper": self.paper,
            "run": self.name,
            "config": self.config,
            "overrides": self.overrides,
            "precision": self.precision,
            "margins": self.margins,
            "data": data,
            "selection": selection,
            "metrics": {name: float(value) for name, value in metrics.items()},
            "predictions_sha256": storage.sha256(self.folder / "predictions.npz"),
            "history_sha256": storage.sha256(self.folder / "history.csv"),
            "weights": weights,
            "seconds": round(seconds, 2),
            "samples_per_s": round(samples / seconds, 1) if seconds > 0 else None,
            "peak_memory_mib": peak_memory_mib(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.started)),
            "source": self.source | {"modules": imported_modules(self.paper) | self.source["modules"]},
            "environment": environment(device),
            **more,
        }
        record["seal_sha256"] = schema.seal(record)
        storage.write_json(self.folder / "run.json", record)
        (self.folder / "checkpoint.pt").unlink(missing_ok=True)
        return record


def as_dict(config):
    """A frozen dataclass of scalars and tuples as JSON-ready values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def fingerprint(config):
    """Eight hex digits that change with any setting."""
    return hashlib.sha256(json.dumps(as_dict(config), sort_keys=True).encode()).hexdigest()[:8]


def run_name(config, base):
    """Folder of a run: data, preset, row and seed.

    Where settings are not those of `base`, with a hash of them, or with the precision if only that was changed.
    """
    base, changed = dataclasses.replace(base, seed=config.seed), ""
    if config != base:
        forced = config == dataclasses.replace(base, precision=config.precision)
        changed = "-" + (config.precision if forced else fingerprint(config))
    return f"{config.data}-{config.preset}-{config.row}-s{config.seed}{changed}"


def precision_of(*records):
    """What runs computed in: "bf16", "fp32", or "bf16+fp32" where they differ. Before `auto` their settings said it."""
    return "+".join(sorted({r.get("precision", r["config"]["precision"]) for r in records}))


def of_presets(records):
    """The records with a preset's own settings, in their order: one for each data set, preset, row and seed.

    A run in a forced precision stands where there is none without; of several, the newest.
    """
    best, rank = {}, lambda r: ("precision" not in r["overrides"], r["started"])
    for record in (r for r in records if set(r["overrides"]) <= FREE):
        config = record["config"]
        key = record["data"]["name"], config["preset"], config["row"], config["seed"]
        best[key] = max(best.get(key, record), record, key=rank)
    chosen = {id(record) for record in best.values()}
    return [r for r in records if id(r) in chosen]


def newest_weights(paper, pattern="*", but=None):
    """Path of the weights trained last on this machine, those of real data before those of embedded faces.

    `pattern` is one of run names and `but` a word that leaves runs out. MissingData when there are none.
    """
    files = [
        p for root in (paths.LOCAL, paths.RECORDED) for p in entries(Path(root, paper), f"{pattern}/model.safetensors")
    ]
    files = [p for p in files if not but or but not in p.parent.name]
    if not files:
        raise MissingData(
            f"no trained weights on this machine: run `make reproduce-{paper.replace('_', '-')}` first "
            "(PRESET=short for real faces), or name a file with --weights"
        )
    chosen = max(files, key=lambda p: ("embedded" not in p.parent.name, p.stat().st_mtime))
    print(f"weights: {chosen}")
    return chosen


def write_predictions(path, arrays):
    with storage.atomic(path) as temporary, open(temporary, "wb") as handle:
        np.savez_compressed(handle, **arrays)


def read_predictions(path):
    """Arrays of a predictions file; UserError when it is missing or damaged."""
    return storage.read_arrays(path)


def write_history(path, rows):
    import pandas as pd

    with storage.atomic(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False, float_format="%.6g")


def read_history(folder):
    """A run's history as a data frame, one row per logged step. UserError when it is missing or damaged."""
    import pandas as pd

    path = Path(folder) / "history.csv"
    try:
        return pd.read_csv(io.StringIO(storage.read_text(path, storage.GIT)))
    except ValueError as error:  # pandas' errors of parsing are of this kind
        raise UserError(f"{path}: damaged history ({storage.one_line(error)}); {storage.GIT}") from None


def recorded(paper, root=paths.RECORDED):
    """All complete records of a paper under `root`, sorted by name, each with its `folder`.

    UserError for a record that is not as `schema` has it.
    """
    found = []
    for path in entries(Path(root, paper), "*/run.json"):
        record = storage.read_json(path)
        schema.check_record(record, path)
        found.append({**record, "folder": path.parent})
    return found
