"""Pairs that LFW's two views share, and the accuracy without them."""

import csv
import dataclasses
import os
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from facepapers.common.evidence import statistics
from facepapers.common.protocols import pair_lists, verification
from facepapers.papers.arcface import metrics, overlap
from tests.conftest import REPOSITORY

MIRROR = Path(os.environ.get("DATA_MIRROR") or REPOSITORY.parent / "shared" / "mirror")
SAME, FOLD = np.tile(np.repeat([True, False], 300), 10), np.repeat(np.arange(10), 600)


def places(name):
    with open(overlap.TABLE, newline="") as lines:
        return np.array([int(line["pair"]) for line in csv.DictReader(lines) if line["list"] == name])


def view2(seed=0):
    """Predictions of the 6,000 pairs; those of View 1 are all judged rightly."""
    rng = np.random.default_rng(seed)
    distance = rng.normal(np.where(SAME, 1.0, 1.6), 0.3).clip(0, 3.9)
    distance[np.concatenate([places("devtrain"), places("devtest")])] = 0.1
    return {"distance": distance, "same": SAME, "fold": FOLD.astype(np.uint8)}


def test_shared_pairs_are_found_in_either_order():
    row = lambda a, b, same: [a, b, same, 0]
    found = overlap.overlap({
        "pairs": np.array([row(1, 2, 1), row(3, 4, 1), row(5, 6, 0), row(7, 8, 1)]),
        "pairs_devtrain": np.array([row(4, 3, 1), row(5, 7, 0)]),
        "pairs_devtest": np.array([row(6, 5, 0), row(7, 8, 1), row(1, 3, 1)]),
    })  # fmt: skip
    assert {name: where.tolist() for name, where in found.items()} == {"devtrain": [1], "devtest": [2, 3]}


def test_the_table_names_pairs_of_one_person():
    found = {name: places(name) for name in ("devtrain", "devtest")}
    assert {name: len(where) for name, where in found.items()} == {"devtrain": 525, "devtest": 233}
    every = np.concatenate(list(found.values()))
    assert len(np.unique(every)) == 758 and SAME[every].all()


@pytest.mark.skipif(not (MIRROR / "lfw-112.tar").is_file(), reason="no lfw-112.tar in DATA_MIRROR or ../shared/mirror")
def test_the_table_is_what_the_protocol_files_say(tmp_path):
    lists = {"pairs": "pairs.txt", "pairs_devtrain": "pairsDevTrain.txt", "pairs_devtest": "pairsDevTest.txt"}
    with tarfile.open(MIRROR / "lfw-112.tar") as archive:
        for member in (m for m in archive if Path(m.name).name in lists.values()):
            (tmp_path / Path(member.name).name).write_bytes(archive.extractfile(member).read())
    read = {key: pair_lists.read_pairs(tmp_path / name) for key, name in lists.items()}
    names = np.concatenate([side for pairs in read.values() for side in (pairs.left, pairs.right)])
    number = {name: k for k, name in enumerate(np.unique(names))}
    rows = {
        key: np.array([[number[a], number[b], same, fold] for a, b, same, fold in zip(*pairs, strict=True)])
        for key, pairs in read.items()
    }
    found = overlap.overlap(rows)
    assert {name: where.tolist() for name, where in found.items()} == {n: places(n).tolist() for n in found}
    assert (read["pairs"].same == SAME).all() and (read["pairs"].fold == FOLD).all()


def test_what_is_left_holds_as_many_pairs_of_each_kind():
    kept = overlap.apart(SAME, FOLD)
    assert not set(kept) & {*places("devtrain"), *places("devtest")}
    counts = [np.bincount(FOLD[kept[SAME[kept] == kind]], minlength=10) for kind in (True, False)]
    assert (counts[0] == counts[1]).all() and counts[0].sum() == 3000 - 758


def test_other_lists_have_no_such_part():
    assert overlap.apart(SAME[:1000], FOLD[:1000]) is None
    assert overlap.apart(~SAME, FOLD) is None and overlap.apart(SAME, FOLD[::-1]) is None
    metric, whole = metrics.METRICS["accuracy_apart_pct"], view2()
    assert metric.available(whole)
    assert not metric.available({key: value[:1000] for key, value in whole.items()})
    assert "accuracy_apart_pct" not in metrics.measure(whole)  # whose 6,000 pairs these are, a claim knows


def test_the_accuracy_without_the_shared_pairs():
    """Against the protocol on what is left, in value and on a resample."""
    whole, metric = view2(), metrics.METRICS["accuracy_apart_pct"]
    kept = overlap.apart(SAME, FOLD)
    part = [whole[key][kept] for key in ("distance", "same", "fold")]
    expected = 100 * verification.verify(*part).correct.mean()
    assert metric.value(whole) == pytest.approx(expected, rel=1e-12)
    assert metric.value(whole) < metrics.METRICS["accuracy_pct"].value(whole) - 1
    drawn = np.random.default_rng(1).integers(0, len(kept), len(kept))
    counts = np.bincount(drawn, minlength=len(kept))[:, None]
    again = 100 * verification.verify(*(array[drawn] for array in part), both=False).correct.mean()
    assert metric.on_resamples(whole, counts) == pytest.approx([again], rel=1e-12)
    found = statistics.level(metric, [whole])
    plain = dataclasses.replace(metrics.METRICS["accuracy_pct"], among=None)
    alone = statistics.level(plain, [dict(zip(("distance", "same", "fold"), part, strict=True))])
    assert found == alone and found.n_samples == 4484


def test_the_command_writes_the_table(tmp_path, monkeypatch, capsys):
    rows = np.array([[1, 2, 1, 0], [3, 4, 1, 0], [5, 6, 0, 0]])
    arrays = {"pairs": rows, "pairs_devtrain": rows[1:], "pairs_devtest": rows[:1, [1, 0, 2, 3]]}
    monkeypatch.setattr("facepapers.common.data.sets.ensure", lambda name: SimpleNamespace(arrays=arrays))
    overlap.main(["--table", str(tmp_path / "found.csv")])
    assert (tmp_path / "found.csv").read_text() == "pair,list\n0,devtest\n1,devtrain\n2,devtrain\n"
    said = capsys.readouterr().out
    assert "devtrain: 1 of 1 pairs of one person and 1 of 1 of two people" in said
    assert "devtest: 1 of 1 pairs of one person and 0 of 0 of two people" in said
