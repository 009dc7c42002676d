"""The lists of bugs cannot rot, and the harness that tries them says caught, missed, late or red as it is."""

import dataclasses
import subprocess

import pytest

from facepapers.common import cli
from tests import mutate
from tests.conftest import REPOSITORY, one_line_error

LISTED = mutate.read(REPOSITORY)


@pytest.mark.parametrize("mutant", LISTED, ids=lambda m: m.name)
def test_every_listed_bug_fits_the_sources_and_its_tests_exist(mutant):
    text = mutate.changed(REPOSITORY, mutant)
    assert mutant.old != mutant.new and mutant.what.endswith(".") and len(mutant.what) > 10
    compile(text, mutant.file, "exec")
    assert mutant.tests or mutant.equivalent
    assert not (lost := mutate.missing_tests(REPOSITORY, mutant)), lost


def test_names_of_bugs_are_unique():
    names = [mutant.name for mutant in LISTED]
    assert len(set(names)) == len(names)


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A repository of one module, its tests and five bugs."""
    write = {
        "add.py": "def add(a, b):\n    return a + b\n\n\nUNUSED = 1\n",
        "tests/conftest.py": "",
        "tests/test_add.py": "import add\n\ndef test_add():\n    assert add.add(2, 3) == 5\n",
        "tests/mutants/room.toml": "".join(
            f'[[mutant]]\nid = "{name}"\nwhat = "A bug: {name}."\nfile = "add.py"\nold = "{old}"\nnew = "{new}"\n'
            f'tests = ["tests/test_add.py::test_add"]\n{more}\n'
            for name, old, new, more in (
                ("sign", "a + b", "a - b", ""),
                ("crash", "a + b", "__import__('os').abort()", ""),
                ("import", "UNUSED = 1", "UNUSED = 1 / 0", ""),
                ("unseen", "UNUSED = 1", "UNUSED = 2", ""),
                ("same", "a + b", "b + a", 'equivalent = "numbers commute"'),
            )
        ),
    }
    for name, text in write.items():
        (path := tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    monkeypatch.setattr(mutate, "PACKAGES", ())
    return tmp_path


def decided(tree, listed):
    results = mutate.Results.read(tree / "build" / "mutants.json")
    keys = {mutant: mutate.key_of(tree, mutant) for mutant in listed}
    with mutate.Pytest() as run:
        mutate.decide(tree, keys, results, 2, run)
    return keys, results


def test_bugs_are_caught_or_missed_once_and_for_all(tree, monkeypatch):
    listed = mutate.read(tree)
    keys, results = decided(tree, listed)
    said = mutate.table(keys, results).splitlines()
    assert [line.split()[0] for line in said[:5]] == ["caught", "caught", "caught", "MISSED", "equivalent"]
    assert "tests/test_add.py::test_add" in said[0] and "interpreter" in said[1] and "numbers commute" in said[4]
    assert said[-1].split()[:5] == ["all", "3", "of", "4", "caught"] and "1 equivalent" in said[-1]
    assert mutate.count(keys, results) == (3, 4)
    assert (tree / "add.py").read_text().count("a + b") == 1
    monkeypatch.setattr(mutate, "copy", None)  # nothing is left to run ...
    decided(tree, listed)
    (tree / "tests" / "test_add.py").write_text("")
    with pytest.raises(TypeError):  # ... until a test changes
        decided(tree, listed)


def test_a_bug_without_end_counts_as_caught(tree, monkeypatch):
    monkeypatch.setattr(mutate, "TIMEOUT_S", 2.5)
    slow = dataclasses.replace(mutate.read(tree)[0], new="a + b if not b else add(a, b)")
    slow = dataclasses.replace(slow, old="    return a + b", new="    while True: pass")
    keys, results = decided(tree, [slow])
    assert [*results.found.values()] == ["green", "timeout"] and "1 by timeout" in mutate.table(keys, results)


def test_red_tests_and_wrong_lists_are_named(tree):
    listed = mutate.read(tree)
    with pytest.raises(cli.UserError) as error:
        mutate.changed(tree, dataclasses.replace(listed[0], old="a"))
    one_line_error(error, "room.sign", "3 times", "add.py")
    gone = dataclasses.replace(listed[0], tests=("tests/test_add.py::test_gone", "tests/test_no.py"))
    assert mutate.missing_tests(tree, gone) == [*gone.tests]
    assert mutate.missing_tests(tree, dataclasses.replace(listed[0], k="add and not nothing")) == ["nothing"]
    (tree / "tests" / "test_add.py").write_text("def test_add():\n    assert False\n")
    with pytest.raises(cli.UserError) as error:
        decided(tree, listed)
    one_line_error(error, "tests/test_add.py::test_add", "red")
    (tree / "tests" / "mutants" / "room.toml").write_text('[[mutant]]\nid = "x"\nreason = "none"\n')
    with pytest.raises(cli.UserError) as error:
        mutate.read(tree)
    one_line_error(error, "room.toml", "reason", "what")
