"""Copies in a set: counted on a hand-made one, the best accuracy that labels allow by simulation, the words."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from facepapers.common.cli import UserError
from facepapers.common.data import __main__ as command
from facepapers.common.data import copies, duplicates

torch.set_num_threads(1)


@pytest.fixture
def prepared(monkeypatch, tmp_path):
    """Twelve pictures: three of one photo (two in train), two of another, one mirrored, the rest alone."""
    torch.manual_seed(0)
    images = (torch.rand(12, 3, 32, 32) * 255).byte()
    images[1], images[11] = images[0], images[0]
    images[5] = images[4]
    images[7] = images[6].flip(-1)
    arrays = {"gender": np.zeros(12, np.uint8), "age": np.full(12, 25), "split": np.repeat([0, 1], 6),
              "votes": np.zeros((12, 10))}  # fmt: skip
    arrays["gender"][[0, 7]] = 1
    arrays["age"][5] = 29
    arrays["votes"][5, 3] = 2
    meta = {"counts": {"train": 6, "test": 6}, "fingerprint": "f", "decoder": "d"}
    pack = SimpleNamespace(arrays=arrays, meta=meta, decode=lambda: images)
    monkeypatch.setattr(copies, "RECORD", tmp_path / "copies.json")
    monkeypatch.setattr(command, "ensure", lambda name: pack)
    return pack


def test_counts_by_hand(prepared):
    found = copies.count(prepared, prepared.decode())
    same, near = found["identical"], found["near"]
    assert (found["images"], found["fingerprint"]) == (12, "f")
    assert same["sizes"] == [[2, 1], [3, 1]] and near["sizes"] == [[2, 2], [3, 1]]
    assert same["labels"]["gender"] == [[1, 0, 1], [3, 2, 1]]  # one of three differs from two others
    assert near["labels"]["gender"] == [[1, 0, 1], [1, 1, 1], [3, 2, 1]]
    assert same["labels"]["age"] == [[1, 1, 1], [3, 0, 1]]
    assert same["labels"]["age_group"] == [[1, 0, 1], [3, 0, 1]]  # 25 and 29 years are one group
    assert same["labels"]["votes"] == [[1, 1, 1], [3, 0, 1]]
    assert same["parts"] == {"test in train": [1, 6]}


def test_the_command_keeps_what_it_counted(prepared, capsys):
    command.main(["copies", "utkface"])
    command.main(["copies", "another"])
    assert copies.read().keys() == {"utkface", "another"}
    assert copies.read()["utkface"] == json.loads(json.dumps(copies.count(prepared, prepared.decode())))
    assert "2 groups of copies (3 extra); labelled differently in age 50 %, gender 50 %" in capsys.readouterr().out


def test_the_record_in_words(prepared, capsys):
    command.main(["copies", "utkface"])
    assert copies.table(copies.read()).splitlines()[2:] == [
        "| `utkface` | identical | 2 | 3 | age 50 %, gender 50 %, votes 50 %, age group 0 % | 1 of 6 test in train |",
        "| `utkface` | near | 3 | 4 | age 33 %, gender 67 %, votes 33 %, age group 0 % | 1 of 6 test in train |",
    ]
    capsys.readouterr()
    command.main(["list"])
    assert "\nutkface " in (said := capsys.readouterr().out) and "1 of 6 test in train" in said.splitlines()[-1]


def test_a_set_without_copies_or_labels():
    entry = {kind: {"sizes": [], "labels": {"identity": []}, "parts": {}} for kind in copies.KINDS}
    assert copies.line(entry) == "0 groups of copies (0 extra)"
    assert copies.table({"lfw": entry}).splitlines()[2] == "| `lfw` | identical | 0 | 0 | — | — |"


def test_a_damaged_record_is_one_line(prepared):
    assert copies.read() == {}
    copies.RECORD.write_text("{")
    with pytest.raises(UserError, match=r"copies.json: damaged .*restore it from git"):
        copies.read()


@pytest.mark.parametrize("classes", [2, 5, 9])
def test_the_best_accuracy_is_that_of_labels_with_simulated_errors(classes):
    """Copies of faces whose labels are wrong in 8 %: found again, and in its interval as often as it says."""
    rng, hits, found = np.random.default_rng(classes), 0, []
    for _ in range(80):
        true = rng.integers(0, classes, (300, 1))
        wrong = (true + rng.integers(1, classes, (300, 2))) % classes
        labels = np.where(rng.random((300, 2)) < 0.08, wrong, true)
        rows = copies.disagreement(np.repeat(np.arange(300), 2), labels.ravel())
        best, low, high = copies.ceiling(rows, classes)
        hits += low <= 92 <= high
        found.append(best)
    assert np.mean(found) == pytest.approx(92, abs=0.5) and 0.82 <= hits / 80 <= 0.98


def test_equal_labels_allow_everything_and_chance_allows_chance():
    assert copies.ceiling([[1, 0, 50]], 5) == (100, 100, 100)
    assert copies.right_share(np.array([0.2, 0.1]), 5) == pytest.approx([0.2, 0.2])
    share = np.array([0.6, 0.9, 1.0])
    assert copies.right_share(share**2 + (1 - share) ** 2 / 8, 9) == pytest.approx(share)


def test_near_copies_hold_the_identical_ones(prepared):
    same, near = copies.identical(prepared.decode()), duplicates.groups(prepared.decode())
    assert all(len(np.unique(near[members])) == 1 for members in copies.members_of(same))
