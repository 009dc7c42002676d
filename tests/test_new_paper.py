"""`make new-paper`: its skeleton trains, has its table and tests. papers/README.md names all that the code asks for."""

import ast
import collections
import contextlib
import importlib.util
import inspect
import json
import os
import re
import shutil

import pytest

from facepapers.common import paths, storage
from facepapers.common.cli import UserError
from facepapers.common.evidence import claims, runs
from facepapers.common.tools import new_paper
from tests.conftest import REPOSITORY, one_line_error, python

LONGEST = "nearest-neighbours-of-the-face"  # as long as a name may be: lines that hold it are the longest too
PAPER = LONGEST.replace("-", "_")
COPIED = ("README.md", "pyproject.toml", "data/registry.toml", "data/README.md", "data/copies.json",
          "tests/conftest.py",
          "tests/test_repo.py", "tests/test_front.py", "tests/test_figures.py")  # fmt: skip
SMALLER = {
    "config.py": ("steps: int = 300", "steps: int = 20"),
    "data.py": ("train=2000, test=600", "train=200, test=80"),
}
# Promises of the repository that can be kept where there is no other paper, no git and no Makefile.
PROMISES = (
    "floors or circle or short_enough or hierarchies or declared or every_claim or presets_own or generated or without "
    "or one_screen or typed_by_hand or in_the_palette or are_those or has_its_words"
)


@pytest.fixture
def checkout(tmp_path):
    """A copy of this checkout that holds one paper, the skeleton with a shorter training."""
    root = tmp_path / "checkout"
    for folder in ("common", "facepapers"):
        shutil.copytree(REPOSITORY / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in COPIED:
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, root / name)
    (root / "Makefile").touch()  # it marks a checkout
    done = python("-m", "facepapers.common.tools.new_paper", LONGEST, cwd=root)
    assert done.returncode == 0, done.stderr
    for name, (old, new) in SMALLER.items():
        path = root / "papers" / PAPER / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
    return root


def in_copy(checkout, *words):
    """Run `python WORDS` there, without what this test run says to its own processes. Returns its output."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST") and k != "PYTHONPATH"}
    done = python(*words, cwd=checkout, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# ---- The skeleton


def test_it_trains_has_its_table_and_keeps_every_papers_promises(checkout):
    """One after another, as a user would: two processes of a test run would train it twice."""
    said = in_copy(checkout, "-m", "facepapers.common.tools.reproduce", LONGEST, "--out", "results")
    check_what_training_printed(checkout, said)
    in_copy(checkout, "-m", "facepapers.common.tools.report", "write")
    assert "3 metric values recomputed" in in_copy(checkout, "-m", "facepapers.common.tools.report", "verify")
    check_what_the_report_wrote(checkout)
    tests = [f"tests/test_{PAPER}.py", "tests/test_repo.py", "tests/test_front.py", "tests/test_figures.py"]
    said = in_copy(checkout, "-m", "pytest", "-p", "no:cacheprovider", *tests, "-k", f"test_{PAPER} or {PROMISES}")
    assert re.search(r"^\d+ passed(, \d+ deselected)? in", said, re.M), said


def check_what_training_printed(checkout, said):
    assert "The network beats the most frequent class" in said and "agrees with the record" in said
    (picture,) = re.findall(r"^picture: (\S+)$", said, re.M)
    assert (checkout / picture).stat().st_size > 1000


def check_what_the_report_wrote(checkout):
    card, notes = ((checkout / "papers" / PAPER / name).read_text() for name in ("README.md", "NOTES.md"))
    entries = [e for kind in claims.REQUIRED for e in claims.read(PAPER, checkout).get(kind, [])]
    assert len(entries) == 5
    for entry in entries:
        (line,) = (line for line in notes.splitlines() if line.startswith(f"| {entry['what']} |"))
        assert re.search(r"\d\.\d\d \[", line), "no run answers it"
        assert (line in card) == ("headline" in entry or "card" in entry)
    assert re.search(r"^- On embedded faces .* by -?\d+\.\d\d points \(one seed: ", card, re.M)
    for text in (card, notes):
        (picture,) = re.findall(r"!\[.*\]\((.*)\)", text)
        assert (checkout / "papers" / PAPER / picture).exists()
    assert "The network beats the most frequent class" in (checkout / "README.md").read_text()
    assert "Nearest Neighbours Of The Face" in (checkout / "results" / "index.html").read_text()


def test_its_notebook_runs(checkout):
    cells = json.loads((checkout / "papers" / PAPER / "explain.ipynb").read_text())["cells"]
    code = [line for cell in cells if cell["cell_type"] == "code" for line in ["\n", *cell["source"], "\n"]]
    (checkout / "cells.py").write_text("import matplotlib\n\nmatplotlib.use('Agg')\n" + "".join(code))
    assert "200 training and 80 test faces" in in_copy(checkout, "cells.py")
    assert code[-2].startswith("Markdown(tables.headlines(")


def test_it_has_the_style_of_the_repository(checkout):
    if not importlib.util.find_spec("ruff"):
        pytest.skip("ruff is not installed (a package for development)")
    new_paper.write("a1", checkout)  # what breaks a long line must not break a short one
    for words in (("check",), ("format", "--check")):
        in_copy(checkout, "-m", "ruff", *words, "--no-cache", "papers", f"tests/test_{PAPER}.py", "tests/test_a1.py")


def test_nothing_that_exists_is_overwritten(checkout):
    before = {path: path.read_bytes() for path in (checkout / "papers" / PAPER).iterdir() if path.is_file()}
    done = python("-m", "facepapers.common.tools.new_paper", PAPER, cwd=checkout)
    one_line_error(done.stderr, PAPER, "exists already")
    assert done.returncode == 2
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.parametrize("taken", ["papers/data", "tests/test_data.py", "results/data"])
def test_a_name_in_use_is_refused(tmp_path, taken):
    is_file = taken.endswith(".py")
    (tmp_path / taken).parent.mkdir(parents=True)
    (tmp_path / taken).write_text("mine") if is_file else (tmp_path / taken).mkdir()
    with pytest.raises(UserError, match=f"{taken}: exists already") as error:
        new_paper.write("data", tmp_path)
    one_line_error(error)
    assert [path.read_text() for path in tmp_path.rglob("*") if path.is_file()] == ["mine"] * is_file


@pytest.mark.parametrize(
    "name", ["Center-Loss", "2d", "a b", "../up", "a--b", "-a", "a-", "class", "all", "local", LONGEST + "s", "é"]
)
def test_a_bad_name_is_one_line(name):
    with pytest.raises(UserError) as error:
        new_paper.named(name)
    one_line_error(error, f"NAME={name}:")


def test_both_spellings_of_a_name_are_one():
    assert new_paper.named("center-loss") == new_paper.named("center_loss") == "center-loss"


def test_an_installed_package_takes_no_paper(monkeypatch):
    monkeypatch.setattr(paths, "INSTALLED", True)
    monkeypatch.setattr(new_paper, "write", lambda *words: pytest.fail("it wrote"))
    with pytest.raises(UserError) as error:
        new_paper.main(["center-loss"])
    one_line_error(error, "checkout", "clone it")


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    real, calls = storage.atomic, []

    @contextlib.contextmanager
    def failing(path):
        calls.append(path)
        if len(calls) == 4:
            raise UserError(f"{path}: the disk is full")
        with real(path) as temporary:
            yield temporary

    monkeypatch.setattr(storage, "atomic", failing)
    with pytest.raises(UserError, match="the disk is full"):
        new_paper.write("center-loss", tmp_path)
    assert not (tmp_path / "papers" / "center_loss").exists()
    monkeypatch.setattr(storage, "atomic", real)
    assert len(new_paper.write("center-loss", tmp_path)) == len(list(new_paper.SKELETON.iterdir()))


# ---- The contract


@pytest.fixture(scope="module")
def contract():
    """Every word that the tables of papers/README.md put in code's type."""
    lines = [line for line in (REPOSITORY / "papers" / "README.md").read_text().splitlines() if line.startswith("|")]
    return {word for code in re.findall(r"`([^`]+)`", "\n".join(lines)) for word in re.findall(r"\w+", code)}


def shared_code():
    return [*sorted(REPOSITORY.glob("common/**/*.py")), REPOSITORY / "tests" / "test_repo.py"]


def module_of(node):
    """`config` for a call import_module(f"facepapers.papers.{paper}.config"), else None."""
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.JoinedStr):
        first, *_, last = (getattr(part, "value", None) for part in node.args[0].values)
        if first == "facepapers.papers." and isinstance(last, str):
            return last.strip(".")
    return None


def names_taken(function):
    """(module, name) of what a function takes from modules of a paper that it imports by name."""
    imported = {node.targets[0].id: module_of(node.value) for node in ast.walk(function)
                if isinstance(node, ast.Assign) and module_of(node.value)}  # fmt: skip
    for node in ast.walk(function):
        if isinstance(node, ast.Attribute):
            module = module_of(node.value) or imported.get(getattr(node.value, "id", None))
            if module:
                yield module, node.attr
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "getattr":
            module = imported.get(getattr(node.args[0], "id", None))
            if module:
                yield module, node.args[1].value


def test_the_contract_names_all_that_is_taken_from_a_papers_modules(contract):
    found = collections.defaultdict(set)
    for path in shared_code():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                for module, name in names_taken(node):
                    found[module].add(name)
    drawn = (REPOSITORY / "tests" / "test_figures.py").read_text()
    found["figures"] |= set(re.findall(r"\bof\(paper\)\.(\w+)", drawn))
    assert {"metrics", "config", "train", "figures", "tables", "bench"} <= found.keys()
    assert {"draw", "CAPTIONS", "COLOURS"} <= found["figures"]
    assert {"PLAN", "PRESETS", "ROWS", "Config", "preset"} <= found["config"]
    assert found.keys() | set().union(*found.values()) <= contract


def test_the_contract_names_the_keys_of_claims(contract):
    read = r"""\b(?:claim|c)(?:\.get\(|\[)["'](\w+)|["'](\w+)["'] in claim\b"""
    evidence = "\n".join(path.read_text() for path in REPOSITORY.glob("common/evidence/*.py"))
    optional = {word for words in re.findall(read, evidence) for word in words if word}
    optional |= set(re.findall(r"""\["paper"\](?:\.get\(|\[)["'](\w+)""", evidence))
    assert {"headline", "boxes", "margin", "within", "one_network", "precision_check", "findings"} <= optional
    assert optional | claims.REQUIRED.keys() | set().union(*claims.REQUIRED.values()) <= contract


def test_the_contract_names_the_keys_of_records_and_options(contract):
    written = inspect.getsource(runs.Run.finish)
    keys = set(re.findall(r'^            "(\w+)": ', written, re.M))
    given = inspect.signature(runs.Run.finish).parameters.keys() - {"self", "more"}
    assert {"schema", "metrics", "environment"} <= keys and {"history", "samples"} <= given
    code = "\n".join(path.read_text() for path in shared_code())
    answering = set(re.findall(r"""\["config"\]\["(\w+)"\]""", code))
    assert {"preset", "row", "seed"} <= answering
    passed = set(re.findall(r'"--(\w+)", ', (REPOSITORY / "common" / "tools" / "reproduce.py").read_text()))
    assert {"preset", "row", "data", "seed", "out"} <= passed
    assert keys | given | answering | passed <= contract


def test_the_contract_names_tests_that_exist(contract):
    tests = "\n".join(path.read_text() for path in REPOSITORY.glob("tests/*.py"))
    named = {word for word in contract if word.startswith("test_") and word != "test_"}
    missing = {w for w in named if f"def {w}(" not in tests and not (REPOSITORY / "tests" / f"{w}.py").exists()}
    assert len(named) > 8 and not missing
