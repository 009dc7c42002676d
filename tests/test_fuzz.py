"""A sample of tests/fuzz.py, and the fuzzer itself on readers that are wrong."""

import json
import os

import pytest
from fuzz_readers import READERS

from facepapers.common.cli import UserError
from tests import fuzz

SLOW = {"Cars .mat (v5)", "COFW .mat (HDF5)", "landmarks.csv", "notebook"}  # a process, much decoding, large packages


@pytest.mark.parametrize("reader", [r for r in READERS if r.name not in SLOW], ids=lambda r: r.name)
def test_every_reader_answers_a_damaged_file(reader):
    """Two copies cut short, three with a changed byte."""
    _, faults = fuzz.trial(reader, seed=7, cuts=2, flips=3)
    assert not faults


def write(folder):
    (folder / "x.json").write_text('{"a": "word"}')
    return folder / "x.json"


def reader(read, **more):
    return fuzz.Reader("x", write, read, "restore", **more)


def careful(folder):
    try:
        return json.loads((folder / "x.json").read_bytes())
    except ValueError:
        raise UserError(f"{folder / 'x.json'}: no JSON; restore it") from None


def shrug(folder):
    try:
        return careful(folder)
    except UserError:
        raise UserError("x.json: make room") from None


@pytest.mark.parametrize(
    ("read", "more", "column"),
    [
        (lambda folder: json.loads((folder / "x.json").read_text()), {}, "traceback"),
        (shrug, {}, "wrong remedy"),
        (careful, {"text": True}, "wrong remedy"),  # it does not say which byte is no text
        (lambda folder: (folder / "x.json").read_bytes(), {"checksum": True}, "missed checksum"),
        (lambda folder: (folder / "x.json").read_bytes(), {"text": True}, "missed checksum"),
    ],
)
def test_the_fuzzer_finds_faults(read, more, column):
    counts, faults = fuzz.trial(reader(read, **more), seed=0)
    assert counts[column] and faults and set(counts) & set(fuzz.FAULTS) == {column}


def test_what_is_no_fault_is_counted():
    counts, faults = fuzz.trial(reader(careful), seed=0)
    assert not faults and counts[fuzz.REFUSED] >= fuzz.CUTS - 1 and counts[fuzz.DIFFERENT]
    counts, faults = fuzz.trial(reader(lambda folder: 1), seed=0)
    assert not faults and counts == {fuzz.GOOD: 40}


def test_a_reader_that_ends_the_process_is_a_traceback():
    counts, faults = fuzz.guarded(reader(lambda folder: os._exit(9)), 0)
    assert counts == {"traceback": 1} and "code 9" in faults[0]


def test_the_table_has_a_line_for_each_reader():
    text = fuzz.table({"a": fuzz.Counter(traceback=2), "b": fuzz.Counter({"same result": 40})})
    assert text.splitlines()[-1].split() == ["2", "readers", "40", "2"]


def test_names_are_different():
    assert len({r.name for r in READERS}) == len(READERS) >= 47
