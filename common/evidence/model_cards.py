"""Cards of released models, in Hugging Face's form, and whether file, card and numbers belong together.

The words stand in `papers/<paper>/weights/cards.toml`, one table a model; the numbers come from `released.json` and the
predictions of the released file, which lie in `results/<paper>/released/<name>/`.
"""

import json
import tomllib
from pathlib import Path

from facepapers.common import paths, storage
from facepapers.common.cli import UserError
from facepapers.common.data import registry
from facepapers.common.evidence import claims, runs, statistics
from facepapers.common.training import released

WORDS = (
    "command", "runs", "title", "does", "task", "tags", "metrics", "expects", "data", "chosen", "limits", "not_for",
    "use",
)  # fmt: skip
STORED = {"int8": "int8, one scale an output channel", "int16": "int16, one scale an output channel"}  # else the name


def words(paper: str, name: str) -> dict:
    """The table of a model in its paper's cards.toml. UserError where it is missing or incomplete."""
    path = released.folder_of(paper, name).with_name("cards.toml")
    try:
        tables = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read ({str(error).splitlines()[0]}); write a table [{name}] in it"
        ) from None
    if name not in tables:
        raise UserError(f"{path}: no table [{name}]; known are {', '.join(tables)}")
    if missing := [key for key in WORDS if key not in tables[name]]:
        raise UserError(f"{path}: [{name}] lacks {', '.join(missing)}")
    return tables[name]


def evidence(folder: Path) -> Path:
    """Where the predictions of a released file lie, and the record of its run unless results/<paper>/ holds it."""
    return paths.RECORDED / folder.parent.parent.name / "released" / folder.name


def source_record(folder: Path, facts: dict) -> dict:
    """The record of the run that a released file was made from, with its `folder`. UserError where it is missing."""
    for place in (evidence(folder) / "run", paths.RECORDED / facts["paper"] / facts["run"]):
        if (place / "run.json").exists():
            return {**storage.read_json(place / "run.json"), "folder": place}
    raise UserError(f"{folder}: the record of its run {facts['run']} is missing; restore it from git")


def predictions(folder: Path) -> dict:
    """The arrays of a released file on its test set."""
    return runs.read_predictions(evidence(folder) / "predictions.npz")


def problems(folder: Path) -> list[str]:
    """What is wrong with a released model, one line each: sizes, hashes, numbers, the card."""
    facts, paper = storage.read_json(folder / released.FACTS), folder.parent.parent.name
    found = [] if facts.get("paper") == paper and facts.get("name") == folder.name else ["released.json names another"]
    size = (folder / released.FILE).stat().st_size
    if size > released.FILE_BYTES:
        found.append(f"{size / 2**20:.1f} MiB, more than {released.FILE_BYTES / 2**20:.0f}")
    if storage.sha256(folder / released.FILE) != facts["sha256"]:
        found.append("the file is not the one that released.json names")
    if found:
        return found
    arrays = evidence(folder) / "predictions.npz"
    if not arrays.exists() or storage.sha256(arrays) != facts["predictions_sha256"]:
        return [f"{arrays.relative_to(paths.ROOT)} is not the file that released.json names"]
    if (source_record(folder, facts)["weights"] or {}).get("sha256") != facts["weights_sha256"]:
        found.append(f"the record of {facts['run']} names other weights")
    known, values = claims.metrics_of(paper), predictions(folder)
    for name, value in facts["metrics"].items():
        again = known[name].value(values) if name in known and known[name].available(values) else float("nan")
        if not abs(again - value) <= 1e-6 * max(1.0, abs(value)):
            found.append(f"{name} is {value}, its predictions give {again}")
    path = folder / released.CARD
    if not found and (not path.exists() or path.read_text() != card(folder)):
        found.append("its card is stale: make weights ARGS=--write")
    return found


def card(folder: Path) -> str:
    """The text of a model's README.md."""
    facts = storage.read_json(folder / released.FACTS)
    text, record = words(facts["paper"], facts["name"]), source_record(folder, facts)
    known, arrays = claims.metrics_of(facts["paper"]), predictions(folder)
    shown = [(known[m], statistics.level(known[m], [arrays])) for m in text["metrics"] if known[m].available(arrays)]
    return "\n".join(
        [metadata(facts, text, record, shown), f"# {facts['name']}: {text['title']}\n", f"{text['does']}\n",
         metrics_table(record, shown), use(facts, text), "## Data and terms\n", f"{text['data']}\n",
         terms(record), "## How it was chosen\n", f"{text['chosen']}\n", "## Limits\n", f"{text['limits']}\n",
         *thresholds(facts), *groups(facts), "## Not for\n", f"{text['not_for']}\n", origin(facts, record)]
    )  # fmt: skip


def metadata(facts: dict, text: dict, record: dict, shown: list) -> str:
    """The card's YAML block: licence, task and the model index."""
    quoted = lambda value: json.dumps(value, ensure_ascii=False)  # JSON's strings are YAML's too
    lines = ["---", "license: other", "license_name: research-only", "license_link: ../LICENSE",
             "library_name: facepapers", f"pipeline_tag: {text['task']}", f"tags: {quoted(text['tags'])}",
             "model-index:", f"- name: {facts['name']}", "  results:", "  - task:", f"      type: {text['task']}",
             f"      name: {quoted(text['title'])}", "    dataset:",
             f"      name: {quoted(', '.join(one.title for one in sets(record)))}",
             f"      type: {quoted(record['data']['name'])}",
             "      split: test", "    metrics:"]  # fmt: skip
    for metric, interval in shown:
        lines += [f"    - type: {metric.name}", f"      name: {quoted(metric.label)}",
                  f"      value: {interval.mean:.4g}"]  # fmt: skip
    return "\n".join([*lines, "---", ""])


def metrics_table(record: dict, shown: list) -> str:
    """Markdown of the metrics of the released file beside those of the run's own weights."""
    number = lambda value: "–" if value is None else f"{value:.2f}"
    rows = [
        f"| {metric.label} | {interval.mean:.2f} [{interval.low:.2f}, {interval.high:.2f}] | "
        f"{number(record['metrics'].get(metric.name))} | {interval.n_samples:,} |\n"
        for metric, interval in shown
    ]
    head = "| metric | this file [90 % interval] | the run | samples |\n| --- | --- | --- | --- |\n"
    return f"{head}{''.join(rows)}\nOne training; the interval covers the test samples alone.\n"


def use(facts: dict, text: dict) -> str:
    """Markdown of how the model is loaded and its loss is used."""
    hub = f'`torch.hub.load(<this repository>, "{facts["name"]}", source="local")` returns the same module.'
    return f"## Use\n\nInput: {text['expects']}\n\n```python\n{text['use'].strip()}\n```\n\n{hub}\n"


def sets(record: dict) -> list[registry.DataSet]:
    """The data sets of a run, as the registry has them; drawn faces are in none."""
    return [registry.find(name) for name in record["data"]["name"].split("+") if name != "embedded"]


def terms(record: dict) -> str:
    """Markdown: what the owners of the training sets ask for."""
    lines = [f"- [{one.title}]({one.homepage}): {one.terms}. {one.citation}\n" for one in sets(record)]
    return "".join(lines) + "\nFor research alone; see [LICENSE](../LICENSE).\n"


def thresholds(facts: dict) -> list[str]:
    """Markdown of the operating points of a verifier."""
    if "thresholds" not in facts:
        return []
    head = "| threshold on the squared distance | chosen for | false accepts (%) | false rejects (%) |\n"
    rows = [
        f"| {point['threshold']:.3f} | {name.replace('_', ' ')} | {point['false_accepts_pct']:.2f} | "
        f"{point['false_rejects_pct']:.2f} |\n"
        for name, point in facts["thresholds"].items()
    ]
    note = "On the test pairs, on which they were chosen; other photos need thresholds of their own.\n"
    return [f"{head}| --- | --- | --- | --- |\n{''.join(rows)}\n{note}"]


def groups(facts: dict) -> list[str]:
    """Markdown: accuracy by group, of each attribute."""
    found = []
    for attribute, tables in facts.get("groups", {}).items():
        rows = [f"| {group} | {', '.join(map(cell, values, values.values()))} |\n" for group, values in tables.items()]
        found.append(f"| {attribute}, by | accuracy in % (faces) |\n| --- | --- |\n{''.join(rows)}")
    return found


def cell(value: str, found: dict) -> str:
    """`male 93.1 (2471)`."""
    return f"{value} {found['accuracy_pct']:.1f} ({found['n']})"


def origin(facts: dict, record: dict) -> str:
    """Markdown: which run the file was made from."""
    config, stored = record["config"], STORED.get(facts["stored"], facts["stored"])
    changed = " with uncommitted changes" if record["source"]["dirty"] else ""
    return (
        "## Where it is from\n\n"
        f"Run `{record['run']}` of `{facts['paper']}`: row `{config['row']}`, preset `{config['preset']}`, seed "
        f"{config['seed']}, source commit `{record['source']['commit']}`{changed}; its weights have sha256 "
        f"`{facts['weights_sha256']}`. This file holds what prediction reads of them, matrices in {stored}: sha256 "
        f"`{facts['sha256']}`, {facts['bytes'] / 2**20:.1f} MiB. `make verify` recomputes its numbers, `make weights` "
        "checks its hash and this card.\n"
    )
