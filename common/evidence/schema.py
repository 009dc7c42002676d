"""What run.json and claims.toml hold: every key, its type, whether it is needed; and the hash that binds a record.

Checked whenever either is read; what only a paper's own modules tell (rows, presets, keys of its own) by `make
verify`. papers/README.md says what the keys mean.
"""

import ast
import difflib
import hashlib
import json
import math
import re
from collections.abc import Collection, Iterable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from facepapers.common import storage
from facepapers.common.cli import UserError
from facepapers.common.storage import GIT

Keys = dict[str, tuple[type, ...]]  # key of a table: types of its value
TEXT, NUMBER, WHOLE, TRUTH, TABLE, LIST, NONE = (str,), (int, float), (int,), (bool,), (dict,), (list,), (type(None),)
SEALED = 2  # the first version of records that are bound by a hash; version 1 lacks it, and `precision` at first

RECORD: Keys = {  # key of run.json: types of its value
    "schema": WHOLE, "paper": TEXT, "run": TEXT, "config": TABLE, "overrides": TABLE, "data": TABLE, "selection": TEXT,
    "metrics": TABLE, "predictions_sha256": TEXT, "weights": (*TABLE, *NONE), "seconds": NUMBER,
    "samples_per_s": (*NUMBER, *NONE), "peak_memory_mib": TABLE, "started": TEXT, "source": TABLE, "environment": TABLE,
}  # fmt: skip
NEWER: Keys = {
    "precision": TEXT,
    "margins": TABLE,
    "history_sha256": TEXT,
    "seal_sha256": TEXT,
}  # needed from version SEALED on
PARTS: dict[str, Keys] = {  # the same of tables in a record; they may hold more
    "config": {"preset": TEXT, "data": TEXT, "row": TEXT, "seed": WHOLE, "precision": TEXT},
    "data": {"name": TEXT},
    "weights": {"file": TEXT, "sha256": TEXT},
    "source": {"commit": (*TEXT, *NONE), "dirty": (*TRUTH, *NONE), "sha256": TEXT},
    "environment": {"python": TEXT, "torch": TEXT, "device": TEXT, "threads": WHOLE},
}

_CLAIM: Keys = {"id": TEXT, "what": TEXT, "metric": TEXT, "data": TEXT, "preset": TEXT}
_LEVEL: Keys = {"row": TEXT, "published": TEXT, "source": TEXT, "selection": TEXT, "n_runs": TEXT, "tolerance": NUMBER,
          "tolerance_reason": TEXT}  # fmt: skip
NEEDED: dict[str, Keys] = {  # array of claims.toml: keys that each entry needs
    "level": _CLAIM | _LEVEL,
    "contrast": _CLAIM | {"better": TEXT, "than": TEXT, "source": TEXT},
    "measured": _CLAIM | {"row": TEXT},
}
_ANY: Keys = {"headline": TRUTH, "finding": TABLE, "card": TRUTH, "one_network": TRUTH}
MAY: dict[str, Keys] = {  # keys that it may have besides
    "level": _ANY | {"boxes": TEXT, "reference": TEXT, "initialisation": TEXT},
    "contrast": _ANY | {"margin": NUMBER, "within": NUMBER, "precision_check": TRUTH, "equivalence_margin": NUMBER,
                        "equivalence_reason": TEXT},
    "measured": _ANY,
}  # fmt: skip
PAPER: Keys = {"title": TEXT, "authors": TEXT, "venue": TEXT, "url": TEXT}
PRINTED: Keys = {"what": TEXT, "published": TEXT, "source": TEXT, "initialisation": TEXT}  # entries of `anchor`

_WORDS = {str: "a text", float: "a number", int: "a whole number", bool: "true or false", dict: "a table",
          list: "a list", type(None): "nothing"}  # fmt: skip


def keys(given: Any, needed: Keys, may: Keys | None, where: str, remedy: str = GIT) -> None:
    """Check a table's keys and the types of their values; `may` None: further keys are free.

    The UserError begins with `where` and ends with `remedy`.
    """
    if not isinstance(given, dict):
        raise UserError(f"{where.rstrip(':')}: not a table of keys and values; {remedy}")
    if lacking := sorted(needed.keys() - given.keys()):
        raise UserError(f"{where} lacks {', '.join(lacking)}; {remedy}")
    known = {**needed, **(may or {})}
    if may is not None:
        unknown(given, known, f"{where}: unknown key", remedy)
    for key, value in given.items():
        if key in known and not _fits(value, known[key]):
            wanted = " or ".join(word for kind, word in _WORDS.items() if kind in known[key])
            raise UserError(f"{where}: {key} is {value!r:.60}, not {wanted}; {remedy}")


def _fits(value, kinds):
    """Whether a value is of one of the types; true and false are no numbers."""
    return isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds)


def unknown(given: Iterable[str], known: Collection[str], what: str, remedy: str = GIT) -> None:
    """UserError, with the nearest known name, at the first of `given` that is not among `known`."""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(f"{what} {name!r}: {hint}{remedy}")


# ---- Records


def check_record(record: Any, path: Path) -> None:
    """Check what one record says alone. UserError naming its file, the key and what is wrong."""
    newer = isinstance(record, dict) and record.get("schema") not in (None, 1)
    keys(record, RECORD | (NEWER if newer else {}), None, f"{path}:")
    for part, wanted in PARTS.items():
        if record[part] is not None:
            keys(record[part], wanted, None, f"{path}: {part}")
    if not 1 <= record["schema"] <= SEALED:
        raise UserError(f"{path}: version {record['schema']} of a record, this code knows {SEALED}; update the code")
    if (record["paper"], record["run"]) != (path.parent.parent.name, path.parent.name):
        raise UserError(f"{path}: records {record['paper']}/{record['run']}, another run than its folder's; {GIT}")
    if f"-s{record['config'].get('seed')}" not in record["run"]:
        raise UserError(f"{path}: seed {record['config'].get('seed')} is not that of {record['run']}; {GIT}")
    for name, value in record["metrics"].items():
        if not _fits(value, NUMBER):
            raise UserError(f"{path}: metric {name} is {value!r:.60}, not a number; {GIT}")
    changed = [name for name, value in record["overrides"].items() if record["config"].get(name, ...) != value]
    if changed:
        raise UserError(f"{path}: {changed[0]} is not the same in config and overrides; {GIT}")
    if "seal_sha256" in record and record["seal_sha256"] != seal(record):
        raise UserError(f"{path}: differs from what was recorded (its seal); {GIT}")


def check_names(paper: str, record: dict, path: Path) -> None:
    """Check a record against its paper: row, preset, keys of its own. UserError as `check_record`."""
    config, own = declared(paper), getattr(import_module(f"facepapers.papers.{paper}.metrics"), "RECORDED", {})
    for key in ("row", "preset"):
        config.check(key, record["config"][key], str(path))
    unknown(record, {*RECORD, *NEWER, *own, "folder"}, f"{path}: unknown key")


def sealed(record: dict) -> dict:
    """A record with the hash over all of it: settings, metrics, and the hashes of its predictions and history."""
    return {**record, "seal_sha256": seal(record)}


def seal(record: dict) -> str:
    """Hex sha256 of a record's values as JSON, without the seal itself and the folder that it was read from."""
    plain = {key: value for key, value in record.items() if key not in ("seal_sha256", "folder")}
    text = json.dumps(json.loads(json.dumps(plain)), sort_keys=True)  # once more: then every key is a text
    return hashlib.sha256(text.encode()).hexdigest()


# ---- Claims


def check_claims(written: dict, path: Path) -> None:
    """Check what claims.toml says alone. UserError naming its file, the entry and what is wrong."""
    remedy = "correct it; papers/README.md lists the keys"
    keys(written, {"paper": TABLE}, dict.fromkeys((*NEEDED, "anchor"), LIST), f"{path}:", remedy)
    keys(written["paper"], PAPER, {"findings": LIST}, f"{path}: paper", remedy)
    _texts(enumerate(written["paper"].get("findings", []), 1), f"{path}: paper: finding", remedy)
    seen: set[str] = set()
    for kind, needed in NEEDED.items():
        for entry in written.get(kind, []):
            where = f"{path}: {kind} {_named(entry, 'id')}"
            keys(entry, needed, MAY[kind], where, remedy)
            _texts(((key, value) for key, value in entry.items() if isinstance(value, str)), f"{where}:", remedy)
            _texts(entry.get("finding", {}).items(), f"{where}: finding", remedy)
            if entry["id"] in seen or not re.fullmatch(r"[a-z0-9-]+", entry["id"]):
                why = "this id is used twice" if entry["id"] in seen else "an id has small letters, digits and -"
                raise UserError(f"{where}: {why}; {remedy}")
            seen.add(entry["id"])
            if kind == "level":
                _check_level(entry, where)
            if kind == "contrast":
                _check_contrast(entry, where)
    for entry in written.get("anchor", []):
        keys(entry, PRINTED, {}, f"{path}: anchor {_named(entry, 'what')}", remedy)


def _named(entry: Any, key: str) -> str:
    """What a message calls an entry by, whatever it is."""
    return repr(entry.get(key, "?")) if isinstance(entry, dict) else f"{entry!r:.60}"


def _texts(values: Iterable[tuple[Any, Any]], where: str, remedy: str) -> None:
    """UserError at the first value that is no text, or a blank one."""
    for key, value in values:
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{where} {key} is {value!r:.60}, not a text that says something; {remedy}")


def _check_level(entry: dict, where: str) -> None:
    try:
        number = float(entry["published"])
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{where}: published is {entry['published']!r}, no number; write it as printed")
    if not 0 < entry["tolerance"] < math.inf:
        raise UserError(f"{where}: tolerance is {entry['tolerance']}; it must be above 0, and finite")


def _check_contrast(entry: dict, where: str) -> None:
    if entry["better"] == entry["than"]:
        raise UserError(f"{where}: better and than are both {entry['than']!r}; name two rows")
    bounds = [key for key in ("margin", "within", "equivalence_margin") if key in entry]
    for key in bounds:
        if not 0 < entry[key] < math.inf:
            raise UserError(f"{where}: {key} is {entry[key]}; it must be above 0 and finite, or be left out")
    if len(bounds) > 1:
        raise UserError(f"{where}: {' and '.join(bounds)} ask different questions; keep one of them")
    if len({"equivalence_margin", "equivalence_reason"} & entry.keys()) == 1:
        raise UserError(f"{where}: equivalence_margin and equivalence_reason belong together; give both or neither")


def check_claimed(paper: str, written: dict, path: Path) -> None:
    """Check the claims of a paper against its rows and presets. UserError as `check_claims`."""
    config = declared(paper)
    for kind in NEEDED:
        for entry in written.get(kind, []):
            for key in ("row", "better", "than", "preset"):
                if key in entry:
                    config.check(key, entry[key], f"{path}: {kind} {entry['id']!r}")


# ---- What a paper's settings declare


class Declared:
    """The rows and presets of a config.py as it is written, read without importing it (and with it PyTorch).

    A name that is put together, as f"probe{k}", is known by its pattern alone.
    """

    def __init__(self, trees: Iterable[ast.Module]) -> None:
        self.names: dict[str, list[str]] = {"ROWS": [], "PRESETS": []}
        for node in (node for tree in trees for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign)):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and target.id in self.names and isinstance(node.value, ast.Dict):
                self.names[target.id] += _patterns(node.value)

    def check(self, key: str, name: str, where: str) -> None:
        """UserError where `name`, under `key` of a claim or a record, is no row (or preset) of the paper."""
        kind = "PRESETS" if key == "preset" else "ROWS"
        known = self.names[kind]
        if known and not any(re.fullmatch(pattern, name) for pattern in known):
            plain = sorted(re.sub(r"\\(.)", r"\1", pattern) for pattern in known if ".+" not in pattern)
            unknown([name], plain, f"{where}: {key}", f"known are those of {kind} in config.py")


def _patterns(table: ast.Dict) -> list[str]:
    """A regular expression for each key of a dict as it is written, those of comprehensions inside it included."""
    keys = [node for node in table.keys if node is not None]
    keys += [node.key for node in table.values if isinstance(node, ast.DictComp)]
    found = []
    for node in keys:
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        found.append("".join(re.escape(str(p.value)) if isinstance(p, ast.Constant) else ".+" for p in parts))
    return found


def declared(paper: str) -> Declared:
    """What the paper's config.py (and rows.py, where the rows have a file of their own) declares, if there is one."""
    specs = [find_spec(f"facepapers.papers.{paper}.{name}") for name in ("config", "rows")]
    files = [Path(spec.origin) for spec in specs if spec and spec.origin]
    return Declared(ast.parse(storage.read_text(file, GIT)) for file in files)
