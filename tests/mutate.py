"""Whether the tests notice bugs: each listed bug is put into a copy of the sources, and the tests that it names run.

    make mutants                              # all of them; ctrl-C loses nothing, the same command continues
    make mutants PAPER=arcface                # one list: tests/mutants/arcface.toml; ROOM=training likewise
    make mutants ID="chunk resume" WORKERS=1  # those with "chunk" or "resume" in their names
    make mutants ARGS=--fresh                 # forget earlier results

A list, tests/mutants/<room or paper>.toml, is made of such tables:

    [[mutant]]
    id = "angle-loss-drops-its-last-chunk"    # unique in its list
    what = "An angle loss leaves out its last, incomplete chunk."
    file = "papers/hybrid_order_distillation/method.py"
    old = '''range(0, n, chunk)'''            # occurs exactly once in the file
    new = '''range(0, n - chunk + 1, chunk)'''
    tests = ["tests/test_hybrid_method.py::test_chunks"]   # files, or tests by name without parameters
    k = "angles"                              # optional: pytest's -k
    equivalent = "why no test can tell"       # optional: such a bug is listed and not run

A bug is caught when its tests fail, end their interpreter or run out of time (TIMEOUT_S), and missed when they pass.
First the same tests run once on the sources as they are: where one is red, nothing can be said, and it is named.
Exit 1 when less than BAR of the decided bugs are caught. Results are kept in build/mutants.json under a hash of the
bug, the file it is in and the tests, so that a change of any of them decides anew; other changes of the sources do not.
"""

import ast
import concurrent.futures
import contextlib
import functools
import hashlib
import json
import os
import queue
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from facepapers.common import cli, storage
from facepapers.common.progress import Meter

ROOT = Path(__file__).resolve().parents[1]
BAR = 0.97  # share of the decided bugs that the tests must catch
TIMEOUT_S = 600  # of one run of pytest: a bug may make a loop endless
PACKAGES = (
    "torch", "torchvision", "pandas", "sklearn.metrics", "scipy.stats", "matplotlib.pyplot", "tyro", "PIL.Image",
    "safetensors.torch", "torch.optim.swa_utils", "torch.utils.flop_counter",
)  # fmt: skip
# Reads lines [words of pytest, file for its output], forks a pytest for each, and prints its exit code.
LOADER = """
import importlib, json, os, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
import pytest
for line in sys.stdin:
    words, log = json.loads(line)
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(1, 2)
        code = 3
        try:
            code = int(pytest.main(words))
        finally:
            sys.stdout.flush()
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass(frozen=True)
class Mutant:
    """A bug: in `file`, `old` becomes `new`; `tests` (of those, the ones that `k` names) should notice."""

    room: str
    id: str
    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    k: str = ""
    equivalent: str = ""

    @property
    def name(self) -> str:
        return f"{self.room}.{self.id}"


@dataclass(frozen=True)
class Command:
    """Which bugs to try."""

    paper: str = ""  # one list alone: a paper ...
    room: str = ""  # ... or a room of common/
    id: tuple[str, ...] = ()  # only bugs with one of these in their names
    workers: int = 2  # bugs tried at a time
    fresh: bool = False  # forget earlier results
    known: bool = False  # try nothing: what earlier runs found
    record: bool = False  # write the counts into results/mutants.json, which the front page quotes


@dataclass
class Results:
    """Key of a bug -> how it was found, or "" where it was missed; kept in a file."""

    path: Path
    found: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def read(cls, path: Path, fresh: bool = False) -> "Results":
        return cls(path, {} if fresh or not path.exists() else storage.read_json(path))

    def add(self, key: str, how: str) -> None:
        with self.lock:
            self.found[key] = how
            storage.write_json(self.path, self.found)


class Pytest:
    """Runs pytest in trees; at the end of a `with` block it stops what still runs, with its children.

    Each tree has a process of its own that has loaded PACKAGES, and a run is forked from it: loading them takes longer
    than most tests. Our own modules are loaded by each run, from its tree.
    """

    def __init__(self) -> None:
        self.loaded: dict[Path, subprocess.Popen] = {}
        self.closed = False

    def __enter__(self) -> "Pytest":
        return self

    def __exit__(self, *error: object) -> None:
        self.closed = True
        for tree in list(self.loaded):
            self.end(tree)

    def __call__(self, tree: Path, tests: Sequence[str], k: str, timeout: float, first: bool = True) -> tuple:
        """(exit code, output) of the tests, until the `first` red one; (None, "") when they ran out of time."""
        scratch, log = f"{tree}-pytest", Path(f"{tree}.log")
        words = ["-n", "0", "-p", "no:cacheprovider", f"--basetemp={scratch}"]
        words += [*(["-x"] if first else []), *(["-k", k] if k else []), *tests]
        loader = self.loader(tree)
        print(json.dumps([words, str(log)]), file=loader.stdin, flush=True)
        try:
            in_time = bool(select.select([loader.stdout], [], [], timeout)[0])
            code = loader.stdout.readline() if in_time else ""
            said = log.read_text(errors="replace") if log.exists() else ""
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            log.unlink(missing_ok=True)
        if self.closed:  # it did not end by itself
            raise cli.Interrupted("stopped")
        if not code:
            self.end(tree)
        return (int(code), said) if code else (-1 if in_time else None, said)

    def loader(self, tree: Path) -> Any:
        """The tree's process, started where it is not there yet."""
        if tree not in self.loaded:
            self.loaded[tree] = subprocess.Popen(
                [sys.executable, "-c", LOADER, *PACKAGES], cwd=tree, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                text=True, env=environment(), start_new_session=True,
            )  # fmt: skip
        return self.loaded[tree]

    def end(self, tree: Path) -> None:
        """Kill a tree's process and its children."""
        process = self.loaded.pop(tree)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def main(argv: Sequence[str]) -> None:
    """Try the listed bugs and print the table. Exit 1 below BAR; UserError for a list that is wrong, or red tests."""
    options = cli.command(Command, argv, "python -m tests.mutate", __doc__)
    listed = chosen(read(ROOT), options)
    for mutant in listed:
        changed(ROOT, mutant)
    results = Results.read(ROOT / "build" / "mutants.json", options.fresh)
    keys = {mutant: key_of(ROOT, mutant) for mutant in listed}  # now: files may change meanwhile
    if not options.known:
        with Pytest() as run:
            decide(ROOT, keys, results, options.workers, run)
    print(table(keys, results))
    if options.record:
        storage.write_json(ROOT / "results" / "mutants.json", counts(keys, results))
    caught, decided = count(keys, results)
    if caught < BAR * decided:
        raise SystemExit(1)


def chosen(listed: Sequence[Mutant], options: Command) -> list[Mutant]:
    """The bugs that the options name. UserError where that is none."""
    rooms = {word.replace("-", "_") for word in (options.paper, options.room) if word}
    named = lambda m: not options.id or any(word in m.id for word in options.id)
    found = [m for m in listed if (not rooms or m.room in rooms) and named(m)]
    if not found:
        raise cli.UserError(f"no such bug; lists: {', '.join(sorted({m.room for m in listed}))}")
    return found


def read(root: Path) -> list[Mutant]:
    """The bugs of all lists below `root`. UserError for an entry that lacks a key or has an unknown one."""
    found, known = [], {f.name: f for f in fields(Mutant)}
    for path in sorted((root / "tests" / "mutants").glob("*.toml")):
        try:
            entries = tomllib.loads(path.read_text())["mutant"]
        except (tomllib.TOMLDecodeError, KeyError) as error:
            raise cli.UserError(f"{path}: not a list of [[mutant]] tables ({error}); see tests/mutate.py") from None
        for entry in entries:
            needed = {"id", "what", "file", "old", "new", "tests"}
            wrong = (needed - entry.keys()) | (entry.keys() - known.keys()) | (entry.keys() & {"room"})
            if wrong:
                said = f"{path}: {entry.get('id', 'an entry')}: missing or unknown: {', '.join(sorted(wrong))}"
                raise cli.UserError(f"{said}; see tests/mutate.py")
            found.append(Mutant(room=path.stem, **entry | {"tests": tuple(entry["tests"])}))
    return found


def changed(root: Path, mutant: Mutant) -> str:
    """The text of the mutant's file with the bug in it. UserError unless its old text stands there exactly once."""
    try:
        text = (root / mutant.file).read_text()
    except OSError as error:
        raise cli.UserError(f"{mutant.name}: {mutant.file}: {error.strerror}; mend its `file`") from None
    if (times := text.count(mutant.old)) != 1:
        raise cli.UserError(f"{mutant.name}: its old text occurs {times} times in {mutant.file}, not once; mend `old`")
    return text.replace(mutant.old, mutant.new)


def missing_tests(root: Path, mutant: Mutant) -> list[str]:
    """What of `tests` and `k` names nothing."""
    lost = []
    for test in mutant.tests:
        path, _, name = test.partition("::")
        text = (root / path).read_text() if (root / path).is_file() else None
        if text is None or (name and not set(name.split("::")) <= names_in(text)):
            lost.append(test)
    text = " ".join((root / test.partition("::")[0]).read_text() for test in mutant.tests) if not lost else ""
    words = set(re.findall(r"[\w-]+", mutant.k)) - {"and", "or", "not"}
    return lost + [word for word in sorted(words) if text and word not in text]


@functools.cache
def names_in(text: str) -> set[str]:
    """Of the functions and classes in a module's text."""
    return {n.name for n in ast.walk(ast.parse(text)) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}


def key_of(root: Path, mutant: Mutant) -> str:
    """A hash of the bug, of the file that it is in and of its tests."""
    digest = hashlib.sha256(json.dumps(asdict(mutant), sort_keys=True).encode())
    for name in (mutant.file, "tests/conftest.py", *sorted({test.partition("::")[0] for test in mutant.tests})):
        path = root / name
        digest.update(path.read_bytes() if path.exists() else b"")
    return digest.hexdigest()


Keys = dict[Mutant, str]  # the bugs that are tried -> `key_of` them


def decide(root: Path, keys: Keys, results: Results, workers: int, run: Pytest) -> None:
    """Run what has no result yet. UserError where tests are red without a bug."""
    pending = [mutant for mutant, key in keys.items() if not mutant.equivalent and key not in results.found]
    if not pending:
        return
    with contextlib.ExitStack() as stack:
        trees: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for _ in range(workers):
            trees.put(stack.enter_context(copy(root)))
        with Meter("unchanged sources", len(selections(pending)), "runs") as meter:
            each(
                selections(pending), workers, lambda chosen: unchanged_passes(root, trees, chosen, results, run), meter
            )
        missed = 0

        def one(mutant):
            nonlocal missed
            how = try_one(trees, mutant, run)
            results.add(keys[mutant], how)
            missed += not how
            meter.remark(f"{missed} missed")
            if not how:
                print(f"missed: {mutant.name}: {mutant.what}", file=sys.stderr)

        with Meter("bugs", len(pending), "bugs") as meter:
            each(pending, workers, one, meter)


def each(work: Sequence, workers: int, do: Callable, meter: Meter) -> None:
    """Call `do` on every element, `workers` at a time; what one raises ends it, as ctrl-C does."""
    pool = concurrent.futures.ThreadPoolExecutor(workers)
    try:
        for job in concurrent.futures.as_completed([pool.submit(do, element) for element in work]):
            job.result()
            meter.add()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def selections(pending: Sequence[Mutant]) -> list[tuple[tuple[str, ...], str]]:
    """(tests, k) of as few runs as hold all tests of these bugs, one per list and k."""
    groups: dict[tuple[str, str], set[str]] = {}
    for mutant in pending:
        groups.setdefault((mutant.room, mutant.k), set()).update(mutant.tests)
    return [(tuple(sorted(tests)), k) for (_, k), tests in sorted(groups.items())]


@contextlib.contextmanager
def copy(root: Path) -> Iterator[Path]:
    """A temporary folder with every file that git holds or would hold."""
    words = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(words, capture_output=True, text=True)
    if listed.returncode:
        raise cli.UserError(f"{root}: not a git checkout, so its files are unknown; clone the repository")
    with tempfile.TemporaryDirectory(prefix="mutants-", ignore_cleanup_errors=True) as folder:
        for name in filter(None, listed.stdout.split("\0")):
            if (root / name).is_file():
                (target := Path(folder, name)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(root / name, target)
        yield Path(folder)


def unchanged_passes(
    root: Path, trees: queue.SimpleQueue, chosen: tuple[tuple[str, ...], str], results: Results, run: Pytest
) -> None:
    """UserError that names the red tests of a selection where no bug is in the sources. Once for these sources."""
    digest = hashlib.sha256(repr(chosen).encode())
    for path in sorted(root.glob("[cpt]*/**/*.py")):
        digest.update(path.read_bytes())
    if (key := f"unchanged {digest.hexdigest()}") in results.found:
        return
    tree, (tests, k) = trees.get(), chosen
    try:
        code, said = run(tree, tests, k, 10 * TIMEOUT_S, first=False)
    finally:
        trees.put(tree)
    if code != 0:
        red = re.findall(r"^(?:FAILED|ERROR) (\S+)", said, re.M) or said.strip().splitlines()[-1:] or ["pytest ended"]
        raise cli.UserError(f"without any bug these tests are red or missing: {', '.join(red)}; mend them first")
    results.add(key, "green")


def try_one(trees: queue.SimpleQueue, mutant: Mutant, run: Pytest) -> str:
    """Run a bug's tests on a copy that has the bug; returns what caught it, "" where nothing did."""
    tree = trees.get()
    file = tree / mutant.file
    before = file.read_bytes()
    try:
        file.write_text(changed(tree, mutant))
        code, said = run(tree, mutant.tests, mutant.k, TIMEOUT_S)
    finally:
        file.write_bytes(before)
        trees.put(tree)
    if code is None:
        return "timeout"
    if code < 0:
        return "the interpreter ended"
    red = re.search(r"^(?:FAILED|ERROR) (\S+)", said, re.M)
    return "" if code == 0 else red[1] if red else f"pytest's exit code {code}"


def environment() -> dict[str, str]:
    """Of the tests: no data sets of this machine, one thread, and no compiled files, which could be another bug's.

    The copy is no git checkout, so its commit is told.
    """
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    own = {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "REPRO_COMMIT": commit}
    return {name: value for name, value in os.environ.items() if name != "DATA_MIRROR"} | own


def count(keys: Keys, results: Results) -> tuple[int, int]:
    """How many bugs were caught, of how many that are not equivalent."""
    decided = [results.found[key] for m, key in keys.items() if not m.equivalent and key in results.found]
    return sum(map(bool, decided)), len(decided)


def counts(keys: Keys, results: Results) -> dict[str, Any]:
    """For the front page: the day, and how many bugs were listed, decided, caught and equivalent."""
    caught, decided = count(keys, results)
    equivalent = sum(bool(m.equivalent) for m in keys)
    return {"date": time.strftime("%Y-%m-%d"), "listed": len(keys), "equivalent": equivalent, "decided": decided,
            "caught": caught}  # fmt: skip


def table(keys: Keys, results: Results) -> str:
    """A line per bug and one per list, as text."""
    lines = []
    for mutant, key in keys.items():
        how = results.found.get(key, "")
        state = "equivalent" if mutant.equivalent else "caught" if how else "MISSED"
        state = state if key in results.found or mutant.equivalent else "not tried"
        lines.append(f"{state:10}  {mutant.name:60}  {mutant.equivalent or how or mutant.what}")
    lines.append("")
    for room in [*sorted({mutant.room for mutant in keys}), "all"]:
        own = {mutant: key for mutant, key in keys.items() if room in ("all", mutant.room)}
        caught, decided = count(own, results)
        late = sum(results.found.get(key, "") == "timeout" for key in own.values())
        equivalent = sum(bool(m.equivalent) for m in own)
        equal = f", {equivalent} equivalent" if equivalent else ""
        equal += f", {len(own) - decided - equivalent} not tried" if len(own) > decided + equivalent else ""
        share = f" ({100 * caught / decided:.0f} %)" if decided else ""
        lines.append(f"{room:28}{caught} of {decided} caught{share}{f', {late} by timeout' if late else ''}{equal}")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.entry(main)
