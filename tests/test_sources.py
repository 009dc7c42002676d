"""What a record says of the source that it ran, and what has changed since."""

import importlib.util
import subprocess
import sys
from types import SimpleNamespace

from facepapers.common import paths, storage
from facepapers.common.evidence import environment


def test_the_source_hash_changes_with_any_line(tmp_path, monkeypatch):
    for name in ("common/a.py", "papers/x/b.py", "papers/y/c.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1\n")
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    first = environment.source_sha256("x")
    (tmp_path / "papers/y/c.py").write_text("2\n")
    assert environment.source_sha256("x") == first  # another paper's
    (tmp_path / "papers/x/b.py").write_text("2\n")
    assert environment.source_sha256("x") != first


def test_the_source_hash_covers_every_room_and_every_name(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    found = [environment.source_sha256("x")]
    for name in ("common/a.py", "common/room/b.py", "common/room/deep/c.py", "papers/x/d.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1\n")
        found.append(environment.source_sha256("x"))
    (tmp_path / "papers/x/d.py").rename(tmp_path / "papers/x/e.py")
    found.append(environment.source_sha256("x"))
    assert len(set(found)) == len(found)
    (tmp_path / "common/notes.md").write_text("1\n")
    assert environment.source_sha256("x") == found[-1]


def test_a_source_is_dirty_when_its_python_differs_from_the_commit(monkeypatch):
    monkeypatch.setattr(environment, "source_sha256", lambda paper: "")
    for said, dirty in (("", False), (" M common/README.md\n?? papers/x/notes.txt", False), (" M common/a.py", True),
                        (" M README.md\n?? papers/x/new.py", True), (None, None)):  # fmt: skip
        monkeypatch.setattr(environment, "git", lambda *words, said=said: said if words[0] == "status" else "c" * 40)
        assert environment.source_state("x")["dirty"] is dirty


def test_the_module_that_python_runs_is_among_its_imports(monkeypatch):
    """`python -m` calls it __main__; its spec has the name."""
    name = "facepapers.papers.arcface.tune"
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=importlib.util.find_spec(name)))
    assert name in environment.imported_modules("arcface") and name not in environment.imported_modules("resup")


def test_changed_modules_are_named(tmp_path, monkeypatch):
    for name in ("common/a.py", "common/room/__init__.py", "papers/x/b.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    files = {"common.a": "common/a.py", "common.room": "common/room/__init__.py", "papers.x.b": "papers/x/b.py"}
    modules = {f"facepapers.{name}": storage.sha256(tmp_path / file) for name, file in files.items()}
    record = {"paper": "x", "source": {"commit": None, "modules": modules}}
    assert environment.changed_since(record) == []
    (tmp_path / "common/room/__init__.py").write_text("new")
    (tmp_path / "papers/x/b.py").unlink()
    assert environment.changed_since(record) == ["facepapers.papers.x.b", "facepapers.common.room"]


def test_an_older_record_is_compared_with_its_commit(tmp_path, monkeypatch):
    def git(*words):
        names = ("-c", "user.name=A", "-c", "user.email=a@example.org")
        done = subprocess.run(["git", "-C", tmp_path, *names, *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    for name in ("common/a.py", "common/b.py", "papers/x/c.py", "papers/x/README.md", "papers/y/d.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{name}\n" * 9)
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    record = {"paper": "x", "source": {"commit": git("rev-parse", "HEAD")}}
    assert environment.changed_since(record) == []
    for name in ("papers/x/c.py", "papers/x/README.md", "papers/y/d.py"):
        (tmp_path / name).write_text("new")
    (tmp_path / "common/room").mkdir()
    git("mv", "common/a.py", "common/room/a.py")
    assert environment.changed_since(record) == ["papers/x/c.py"], "a file that only moved is the same"
    assert environment.changed_since({"paper": "x", "source": {"commit": "c" * 40}}) is None
    assert environment.changed_since({"paper": "x", "source": {"commit": None}}) is None


def test_without_git_the_commit_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.delenv("REPRO_COMMIT", raising=False)
    assert environment.source_state("x")["commit"] is None and environment.source_state("x")["dirty"] is None
    monkeypatch.setenv("REPRO_COMMIT", "abc")
    assert environment.source_state("x")["commit"] == "abc"
