"""Release the network of a recorded run: `python -m facepapers.common.tools.release <paper>/<run> <name>`.

Takes the run's weights, whose hash the record names; keeps what prediction reads, in fewer bits; tests that file on the
run's own test set; and writes it, with its card, to `papers/<paper>/weights/<name>/`. It refuses when a metric of the
card moves by more than 0.05 points. Nothing is written before all of that is known.
"""

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch

from facepapers.common import cli, paths, storage
from facepapers.common.cli import MissingData, UserError
from facepapers.common.evidence import claims, model_cards, runs
from facepapers.common.tools import report
from facepapers.common.training import checkpoint, parallel, released

MOVED = 0.05  # points that a metric of the card may move by
SHOWN = 4  # runs of a paper that a message names


@dataclass(frozen=True)
class Command:
    """Release a recorded run's network."""

    run: str  # <paper>/<run> of results/local (or results), or the run's folder
    name: str  # of the model, a table of papers/<paper>/weights/cards.toml
    stored: Literal["float16", "int16", "int8", "float32"] = "float16"  # a weight; integers have a scale a channel
    device: str = "auto"  # auto (a GPU where there is one), cpu or cuda


def main(argv: Sequence[str]) -> None:
    """Release the run and print its metrics."""
    options = cli.command(Command, argv, "python -m facepapers.common.tools.release", __doc__)
    if paths.INSTALLED:
        raise UserError(f"{paths.ROOT}: an installed package releases nothing; run this in a clone of the repository")
    if not (options.run and options.name):
        raise UserError(f"RUN and NAME: name a run and a model, RUN=<paper>/<run> NAME=<model>; {candidates()}")
    record = located(options.run, options.name)
    folder = release(record, options.name, options.stored, parallel.start(options.device))
    print(f"{folder}: {(folder / released.FILE).stat().st_size / 2**20:.2f} MiB")
    for name, value in storage.read_json(folder / released.FACTS)["metrics"].items():
        known = f" (the run: {record['metrics'][name]:.4f})" if name in record["metrics"] else ""
        print(f"  {name} {value:.4f}{known}")


def candidates() -> str:
    """The runs whose weights are on this machine, those of real data first, and the models of their papers."""
    found: dict[str, set[str]] = {}
    for root in (paths.LOCAL, paths.RECORDED):
        for path in root.glob("*/*/model.safetensors"):
            if path.with_name("run.json").is_file() and released.tables(path.parts[-3]):
                found.setdefault(path.parts[-3], set()).add(path.parts[-2])
    if not found:
        return "no run here has its weights; `make weights` tells the commands that train them"
    real_first = lambda run: ("embedded" in run, run)
    lists = (
        f"of {paper} {shortened(sorted(found[paper], key=real_first))} (model: {' or '.join(released.tables(paper))})"
        for paper in sorted(found)
    )
    return f"weights are here {'; '.join(lists)}"


def shortened(words: Sequence[str]) -> str:
    """The first SHOWN of some words, and how many follow."""
    more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return f"{', '.join(words[:SHOWN])}{more}"


def model_module(paper: str, name: str) -> Any:
    """The `released` module of a paper that has a model of this name; UserError for another name."""
    module = import_module(f"facepapers.papers.{paper}.released")
    if name not in module.NAMES:
        raise UserError(f"{name}: no model of {paper}; known are {', '.join(module.NAMES)}")
    return module


def located(run: str, name: str) -> dict:
    """The record of a run with its `folder`, which holds the weights that the record names, for the model `name`.

    Raises MissingData where there is no such run or no weights, UserError for another paper's model and another file.
    """
    places = [Path(run), paths.LOCAL / run, paths.RECORDED / run]
    folder = next((place for place in places if (place / "run.json").is_file()), None)
    if folder is None:
        raise MissingData(f"{run}: no record of that name; give <paper>/<run> of results/local, or a run's folder")
    record = {**storage.read_json(folder / "run.json"), "folder": folder}
    model_module(record["paper"], name)  # before an hour of training for a name that nothing has
    path = folder / "model.safetensors"
    if not path.is_file():
        raise MissingData(f"{path}: the run's weights are not here; train it again, or name the folder that has them")
    if not record["weights"] or storage.sha256(path) != record["weights"]["sha256"]:
        raise UserError(f"{path}: not the weights that the record names; restore them, or train the run again")
    return record


def release(record: dict, name: str, stored: str, device: torch.device) -> Path:
    """Write a released model and what it rests on; returns its folder. Raises UserError, and leaves nothing, else."""
    paper = record["paper"]
    module = model_module(paper, name)
    text = model_cards.words(paper, name)
    report.check_record(paper, record, claims.Evidence())
    folder = released.folder_of(paper, name)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / released.FILE
        digest = store(record, path, module.kept, stored)
        arrays, more = tested_twice(module, path, record, text["metrics"], device)
        check_size(path, folder)
        facts = {
            "schema": 1, "paper": paper, "name": name, "run": record["run"], "sha256": digest, "stored": stored,
            "bytes": path.stat().st_size, "weights_sha256": record["weights"]["sha256"],
            "metrics": {m: v.value(arrays) for m, v in claims.metrics_of(paper).items() if v.available(arrays)},
        } | more  # fmt: skip
        write(folder, path, facts, arrays, record)
    return folder


def store(record: dict, path: Path, kept: Any, stored: str) -> str:
    """Write the tensors of a run's weights that are `kept`, as `stored`, with its settings; returns the sha256."""
    tensors, about = checkpoint.read_weights(record["folder"] / "model.safetensors")
    chosen = {name: value for name, value in tensors.items() if kept(name)}
    settings = record["config"] | {"precision": precision(record)}
    about |= {"nets": "1"} if "nets" in about else {}  # of several networks the first is kept
    return checkpoint.save_tensors(path, checkpoint.compact(chosen, stored), **about, settings=storage.dump(settings))


def precision(record: dict) -> str:
    """What a run's networks computed in when they were tested."""
    return "bf16" if runs.precision_of(record) == "bf16" else "fp32"


def tested_twice(
    module: Any, path: Path, record: dict, metrics: Sequence[str], device: torch.device
) -> tuple[dict, dict[str, Any]]:
    """(arrays of a file on its run's test set in float32, facts for the card).

    Raises UserError where, in the run's own precision, one of `metrics` is not what the record says.
    """
    used, known = precision(record), claims.metrics_of(record["paper"])
    arrays, more = module.tested(path, record["config"] | {"precision": used}, device)
    compared = [m for m in metrics if m in record["metrics"] and known[m].available(arrays)]
    if not compared:
        raise UserError(f"{record['folder']}: has none of the card's metrics, {', '.join(metrics)}; take another run")
    for name in compared:
        value, recorded = known[name].value(arrays), record["metrics"][name]
        if not abs(value - recorded) <= MOVED:
            raise UserError(
                f"{record['folder']}: {name} is {recorded:.3f} by the run's weights and {value:.3f} by the file to be "
                f"released, more than {MOVED} away; take --stored int16, or float32 (keeps all), or release another run"
            )
    return (
        (arrays, more)
        if used == "fp32" or module.TESTED_IN_FLOAT32
        else module.tested(path, record["config"] | {"precision": "fp32"}, device)
    )


def check_size(path: Path, folder: Path) -> None:
    """UserError where the file, or all released files together, would be too large."""
    size, others = path.stat().st_size, [f for f in released.folders() if f != folder]
    together = size + sum((f / released.FILE).stat().st_size for f in others)
    for what, found, limit in (("the file", size, released.FILE_BYTES), ("all files", together, released.ALL_BYTES)):
        if found > limit:
            too_much = f"{what} would have {found / 2**20:.1f} MiB, limit {limit / 2**20:.0f}"
            raise UserError(f"{folder}: {too_much}; take --stored int8")


def write(folder: Path, path: Path, facts: dict, arrays: dict, record: dict) -> None:
    """Put file, facts and card into `folder`, predictions (and the record, if it is not committed) into results/."""
    place = model_cards.evidence(folder)
    runs.write_predictions(place / "predictions.npz", arrays)
    committed = paths.RECORDED / record["paper"] / record["run"] / "run.json"
    same = committed.exists() and storage.read_json(committed)["weights"] == record["weights"]
    if same:
        shutil.rmtree(place / "run", ignore_errors=True)
    for name in () if same else ("run.json", "predictions.npz", "history.csv"):
        (place / "run").mkdir(parents=True, exist_ok=True)
        if os.path.abspath(record["folder"]) != os.path.abspath(place / "run"):
            shutil.copy(record["folder"] / name, place / "run" / name)
    folder.mkdir(parents=True, exist_ok=True)
    with storage.atomic(folder / released.FILE) as temporary:
        shutil.copyfile(path, temporary)
    facts |= {"predictions_sha256": storage.sha256(place / "predictions.npz")}
    storage.write_json(folder / released.FACTS, facts)
    write_card(folder)


def write_card(folder: Path) -> None:
    """Write a released model's card."""
    text = model_cards.card(folder)
    with storage.atomic(folder / released.CARD) as temporary:
        temporary.write_text(text)


if __name__ == "__main__":
    cli.entry(main)
