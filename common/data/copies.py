"""What a set's copies say: how many pictures it holds more than once, and how often copies are labelled differently.

`python -m facepapers.common.data copies NAME` counts them in a prepared set and keeps the counts in data/copies.json,
from which `make data`, data/README.md and a paper's notes take every number. Copies are equal in every decoded pixel
(`identical`) or near by a perceptual hash (`near`, see duplicates.py, which also finds mirrored and resized ones).
"""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from facepapers.common import paths, storage
from facepapers.common.cli import UserError

RECORD = paths.ROOT / "data" / "copies.json"
LABELS = ("age", "gender", "ethnicity", "votes", "fer2013", "identity")  # arrays of packs whose values are compared
KINDS = ("identical", "near")
DRAWS = 2000  # resamples of the groups


# ---- Counting


def count(pack: Any, images: Any) -> dict[str, Any]:
    """The entry of a set in the record. `pack`: a data.pack.Pack; images: its pixels (N, C, H, W), a uint8 tensor."""
    from facepapers.common.data import duplicates

    groups = {"identical": identical(images), "near": duplicates.groups(images)}
    labels = {name: pack.arrays[name] for name in LABELS if name in pack.arrays}
    if "age" in labels:
        labels["age_group"] = np.digitize(labels["age"], AGE_EDGES)
    split, names = pack.arrays.get("split"), list(pack.meta["counts"])
    found = {"fingerprint": pack.meta["fingerprint"], "decoder": pack.meta["decoder"], "images": len(images)}
    for kind in KINDS:
        found[kind] = {
            "sizes": sizes(groups[kind]),
            "labels": {name: disagreement(groups[kind], values) for name, values in labels.items()},
            "parts": {} if split is None else across(groups[kind], split, names),
        }
    return found


AGE_EDGES = (3, 10, 20, 30, 40, 50, 60, 70)  # years at which a next of FairFace's nine groups begins


def identical(images: Any) -> np.ndarray:
    """Group (N,) of each image of (N, C, H, W): equal numbers for equal pixels."""
    digests = [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in images]
    return np.unique(digests, return_inverse=True)[1]


def sizes(group: np.ndarray) -> list[list[int]]:
    """[[images, groups]]: how many groups (N,) hold so many images, from two on."""
    found = Counter(np.bincount(group).tolist())
    return sorted([size, number] for size, number in found.items() if size > 1)


def disagreement(group: np.ndarray, values: np.ndarray) -> list[list[int]]:
    """[[pairs, differing, groups]]: how many groups of so many pairs have so many with different `values` (N, ...)."""
    found: Counter[tuple[int, int]] = Counter()
    for members in members_of(group):
        pairs = list(itertools.combinations(members, 2))
        found[len(pairs), sum(not np.array_equal(values[a], values[b]) for a, b in pairs)] += 1
    return sorted([pairs, differ, number] for (pairs, differ), number in found.items())


def across(group: np.ndarray, split: np.ndarray, names: Sequence[str]) -> dict[str, list[int]]:
    """{"test in train": [images, of]}: how many images of a later part have a copy in the first one."""
    first = np.unique(group[split == 0])
    return {
        f"{name} in {names[0]}": [int(np.isin(group[split == k], first).sum()), int((split == k).sum())]
        for k, name in enumerate(names) if k
    }  # fmt: skip


def members_of(group: np.ndarray) -> list[np.ndarray]:
    """Places of the images of each group (N,) of two or more."""
    order = np.argsort(group, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
    return [part for part in parts if len(part) > 1]


# ---- Reading the record


def read() -> dict[str, dict[str, Any]]:
    """The record, set -> entry; empty in an installed package. UserError when it is damaged."""
    if not RECORD.exists():
        return {}
    try:
        return json.loads(RECORD.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{RECORD}: damaged ({error}); restore it from git") from None


def write(record: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the record, a line for each set."""
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(record[name])}" for name in sorted(record))
    with storage.atomic(RECORD) as temporary:
        temporary.write_text(f"{{\n{lines}\n}}\n")


def line(entry: Mapping[str, Any]) -> str:
    """A set's identical copies in words: `375 groups of copies (390 extra), labelled differently in age 55 %, ...`."""
    groups, extra = totals(entry["identical"])
    words = [f"{groups:,} groups of copies ({extra:,} extra)"]
    if groups and (found := labels_text(entry["identical"])):
        words.append(f"labelled differently in {found}")
    return "; ".join([*words, *parts_text(entry["identical"])])


def table(record: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown of the record: a line for each set and kind of copy."""
    head = "| set | copies | groups | extra images | groups with different labels | in two parts |\n"
    lines = [head, "| --- | --- | --- | --- | --- | --- |\n"]
    for name, entry in record.items():
        for kind in KINDS:
            groups, extra = totals(entry[kind])
            cells = [f"`{name}`", kind, f"{groups:,}", f"{extra:,}", labels_text(entry[kind]) or "—"]
            lines.append(f"| {' | '.join([*cells, ', '.join(parts_text(entry[kind])) or '—'])} |\n")
    return "".join(lines)


def totals(found: Mapping[str, Any]) -> tuple[int, int]:
    """(groups, images beyond the first of each) of one kind of copies."""
    return sum(number for _, number in found["sizes"]), sum((size - 1) * number for size, number in found["sizes"])


def labels_text(found: Mapping[str, Any]) -> str:
    """`age 55 %, gender 11 %`: the share of groups with different labels; empty without labels or groups."""
    words = {name: shares(rows) for name, rows in found["labels"].items() if rows}
    return ", ".join(f"{name.replace('_', ' ')} {100 * differ / of:.0f} %" for name, (differ, of) in words.items())


def parts_text(found: Mapping[str, Any]) -> list[str]:
    """[`288 of 3,573 test in train`]."""
    return [f"{number:,} of {of:,} {name}" for name, (number, of) in found["parts"].items()]


def shares(rows: Sequence[Sequence[int]]) -> tuple[int, int]:
    """(groups that differ, all groups) of rows of `disagreement`."""
    return sum(number for _, differ, number in rows if differ), sum(number for *_, number in rows)


# ---- The best accuracy that labels allow


def ceiling(rows: Sequence[Sequence[int]], classes: int, confidence: float = 0.9) -> tuple[float, float, float]:
    """(best accuracy, low, high) in percent that labels allow, from rows of `disagreement`.

    Each label is wrong with the same chance e, whatever the other copy's, and each wrong class is as likely. Then two
    copies agree with (1 - e)^2 + e^2 / (classes - 1), and who always knows the true class is right in 1 - e. Where some
    faces are harder than others the best accuracy is lower than this (the root is concave). The interval comes from
    resampling the groups.
    """
    table = np.array(rows, float)
    pairs, differ, number = table.T
    drawn = np.random.default_rng(0).multinomial(int(number.sum()), number / number.sum(), DRAWS)
    at = lambda weight: 100 * right_share(1 - (weight @ differ) / (weight @ pairs), classes)
    low, high = np.quantile(at(drawn), [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(at(number)), float(low), float(high)


def right_share(agreement: np.ndarray, classes: int) -> np.ndarray:
    """1 - e of `ceiling`: the larger root; agreement below chance counts as chance."""
    others = classes - 1
    root = np.sqrt(np.maximum(0, 1 - (1 + 1 / others) * (1 - agreement)))
    return (1 + others * root) / (others + 1)
