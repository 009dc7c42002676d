"""The repository's own promises: rooms and their doors, pinned packages, fresh tables, short functions."""

import ast
import functools
import graphlib
import importlib
import re
import statistics
import subprocess
import sys
import tomllib

import pytest
import torch

from facepapers.common import paths
from facepapers.common.evidence import claims, runs
from facepapers.common.tools import report
from tests.conftest import REPOSITORY, python

SOURCES = sorted([*REPOSITORY.glob("common/**/*.py"), *REPOSITORY.glob("papers/*/*.py")])
PAPERS = sorted({path.parent.name for path in REPOSITORY.glob("papers/*/*.py")})
# What `common` may import at module level; heavier packages are imported inside the function that needs them.
COMMON_MAY = {"numpy", "torch", "tqdm", "facepapers"}
# The rooms of common/, from the ground up: each may import the ones before it and nothing above.
FLOORS = (
    ("cli", "paths", "storage", "seeding", "plan", "progress"),
    ("training", "protocols"),
    ("vision",),
    ("data",),
    ("faces",),
    ("evidence",),
    ("prediction",),
    ("papers",),
    ("tools",),
)
# Rooms whose public functions say the types of their parameters and results.
TYPED = (
    "cli", "paths", "storage", "seeding", "plan", "progress", "training", "protocols", "vision", "data", "faces",
    "prediction", "tools",
)  # fmt: skip
# Functions above 40 lines or with more than eight parameters (`self` aside), and why they are better in one piece.
LONG = {
    "common/evidence/runs.py:Run.finish": "keyword-only: one parameter a key of the record",
    "papers/arcface/bench.py:comparisons": "a list, read from top to bottom",
    "papers/arcface/method.py:MarginHead.__init__": "keywords with defaults: one a term of the loss",
    "papers/arcface/partial.py:ShardedHead.__init__": "keywords with defaults: MarginHead's and the sampling's",
    "papers/arcface/train.py:fit": "the training loop, visible in one piece",
    "papers/coarse_to_fine/train.py:fit": "the training loop, visible in one piece",
}


@functools.cache
def parsed(path):
    return ast.parse(path.read_text())


def relative(path):
    return str(path.relative_to(REPOSITORY))


def imports(tree, nested=True):
    """Top-level package and, for our own, the room (`papers.resup`), of every import in a module."""
    nodes = ast.walk(tree) if nested else tree.body
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def functions(node, prefix=""):
    """(name, definition) of every function in a tree, as `Class.method` and `outer.inner`."""
    for child in ast.iter_child_nodes(node):
        named = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        name = f"{prefix}{child.name}" if named else prefix
        if named and not isinstance(child, ast.ClassDef):
            yield name, child
        yield from functions(child, f"{name}." if named else prefix)


def is_public(path, name):
    """Whether a function stands in the module itself or in a class, and no part of its name is private."""
    classes = {node.name for node in parsed(path).body if isinstance(node, ast.ClassDef)}
    *outer, _ = name.split(".")
    return set(outer) <= classes and not re.search(r"(^|\.)_(?!_)", name)


def parameters(function):
    """A function's parameters without `self` and `cls`."""
    given = function.args
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    return [p for p in every if p is not None and p.arg not in ("self", "cls")]


def lines_of(function):
    return function.end_lineno - function.lineno + 1


def room_of(name):
    """`facepapers.common.data.pack` -> data, `facepapers.papers.resup.nets` -> papers."""
    words = name.split(".")
    return words[1] if words[1] == "papers" else words[2]


def floor(room):
    return next(level for level, rooms in enumerate(FLOORS) if room in rooms)


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_floors(path):
    """An import never goes up: `common` knows no paper, no paper another, a room only those below it."""
    here = "facepapers." + ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
    if path.name == "__init__.py":
        assert not list(imports(parsed(path)))
        return
    for name in imports(parsed(path)):
        words = name.split(".")
        assert words[0] not in ("tests", "common", "papers"), f"{relative(path)}: {name}"
        if words[0] != "facepapers" or len(words) < 3:
            continue
        mine, theirs = room_of(here), room_of(name)
        assert mine == theirs or floor(theirs) < floor(mine) or floor(theirs) == floor(mine) == 0, (
            f"{relative(path)} imports {name}, which lies above"
        )
        if mine == theirs == "papers":
            assert words[2] == here.split(".")[2], f"{relative(path)} imports another paper: {name}"


def test_no_import_goes_in_a_circle():
    """Among all modules, imports inside functions included."""
    modules = {"facepapers." + ".".join(p.relative_to(REPOSITORY).with_suffix("").parts): p for p in SOURCES}
    needs = {name: {n for n in imports(parsed(path)) if n in modules} | {
        n.rpartition(".")[0] for n in imports(parsed(path)) if n.rpartition(".")[0] in modules
    } for name, path in modules.items()}  # fmt: skip
    try:
        tuple(graphlib.TopologicalSorter(needs).static_order())
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("path", [p for p in SOURCES if "common" in p.parts], ids=relative)
def test_common_loads_little(path):
    """Importing `common` needs numpy, torch and tqdm, so that `--help` and error messages come at once."""
    allowed = COMMON_MAY | set(sys.stdlib_module_names)
    found = {name.partition(".")[0] for name in imports(parsed(path), nested=False)}
    assert found <= allowed, found - allowed


@pytest.mark.parametrize("paper", PAPERS)
def test_every_module_of_a_paper_is_short_enough_to_read(paper):
    for path in (REPOSITORY / "papers" / paper).glob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, relative(path)


def test_no_file_is_above_500_lines():
    long = {relative(path): n for path in SOURCES if (n := len(path.read_text().splitlines())) > 500}
    assert not long, f"{long}: open them by what they hold"


def test_functions_are_short():
    """At most 40 lines and eight parameters, but for those in LONG; what has become short leaves the table."""
    found = {f"{relative(path)}:{name}": node for path in SOURCES for name, node in functions(parsed(path))}
    long = {name for name, node in found.items() if lines_of(node) > 40 or len(parameters(node)) > 8}
    assert not (new := long - LONG.keys()), f"{new}: split them, group their parameters, or give the reason in LONG"
    assert not (gone := LONG.keys() - long), f"{gone}: short now, so take them out of LONG"
    assert statistics.median(map(lines_of, found.values())) <= 14


@pytest.mark.parametrize("room", TYPED)
def test_public_functions_say_their_types(room):
    """Those of modules and of their public classes, the special methods included."""
    files = [*REPOSITORY.glob(f"common/{room}.py"), *REPOSITORY.glob(f"common/{room}/**/*.py")]
    seen = [(path, name, node) for path in files for name, node in functions(parsed(path)) if is_public(path, name)]
    assert seen, f"common/{room} has no functions: it has moved"
    for path, name, node in seen:
        bare = [p.arg for p in parameters(node) if p.annotation is None]
        bare += ["what it returns"] if node.returns is None else []
        assert not bare, f"{relative(path)}: {name}: no type for {', '.join(bare)}"


def test_no_class_hierarchies_or_registries():
    """No base class of ours but torch's Module and Dataset, exceptions and the standard library's."""
    ours = {n.name for p in SOURCES for n in ast.walk(parsed(p)) if isinstance(n, ast.ClassDef)}
    for path in SOURCES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef):
                bases = {b.id for b in node.bases if isinstance(b, ast.Name)} & ours
                assert bases <= {"UserError"}, f"{relative(path)}: {node.name} inherits from {bases}"


# Packages


def requirement(text):
    """`torch>=2.9,<3` -> ("torch", {">=2.9", "<3"})."""
    name, ranges = re.fullmatch(r"([A-Za-z0-9_.-]+?)\s*((?:[<>=!~].*)?)", text.strip()).groups()
    return re.sub(r"[-_.]+", "-", name).lower(), frozenset(part.strip() for part in ranges.split(",") if part.strip())


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def needed(project, *extras):
    return [*project["dependencies"], *(text for extra in extras for text in project["optional-dependencies"][extra])]


@pytest.fixture(scope="module")
def locked():
    """Name -> (version, number of hashes) of requirements.lock."""
    text = (REPOSITORY / "requirements.lock").read_text().replace("\\\n", " ")
    entries = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    found = {}
    for entry in entries:
        name, version = re.match(r"([A-Za-z0-9_.\[\]-]+)==([^\s;]+)", entry.strip()).groups()
        found.setdefault(requirement(name)[0], []).append((version, entry.count("--hash=sha256:")))
    return found


def test_environment_yml_and_pyproject_agree(project):
    lines = (REPOSITORY / "environment.yml").read_text().splitlines()
    listed = dict(requirement(line.strip()[2:]) for line in lines if line.startswith("      - "))
    assert listed == dict(map(requirement, needed(project, "reproduce")))
    conda = dict(requirement(line.strip()[2:]) for line in lines if re.match(r"  - python[<>=]", line))
    assert conda == {"python": requirement("python" + project["requires-python"])[1]}


def test_the_fixed_packages_are_there(project):
    wanted = {"torch", "torchvision", "numpy", "scipy", "matplotlib", "pandas", "pytest", "jupyter"}
    assert wanted <= dict(map(requirement, needed(project, "reproduce"))).keys()


def test_every_package_is_locked_inside_its_range_with_hashes(project, locked):
    def key(version):
        return [int(part) for part in re.findall(r"\d+", version.split("+")[0])]

    holds = {">=": lambda a, b: a >= b, "<": lambda a, b: a < b}
    for name, ranges in map(requirement, needed(project, "reproduce", "dev", "export")):
        assert name in locked, f"{name} is not locked: make lock"
        for version, _ in locked[name]:
            for rule in ranges:
                operator, bound = re.match(r"(>=|<)(.*)", rule).groups()
                assert holds[operator](key(version), key(bound)), f"{name} {version} is outside {rule}: make lock"
    assert all(hashes for versions in locked.values() for _, hashes in versions)


def test_what_the_sources_import_is_declared(project):
    """A package that only came along with another one may leave again."""
    packages = {"pil": "pillow", "sklearn": "scikit-learn", "nbformat": "jupyter", "nbclient": "jupyter"}
    needs = needed(project, "reproduce", "export")
    declared = dict(map(requirement, needs)).keys() | {"requests"}  # pooch's own dependency
    for path in SOURCES:
        for name in imports(parsed(path)):
            first = name.partition(".")[0].lower()
            if first not in {m.lower() for m in sys.stdlib_module_names} | {"facepapers"}:
                # peers that are compared with: guarded where they are used
                peers = {"pytorch_metric_learning", "cv2"}
                assert packages.get(first, first) in declared | peers, f"{relative(path)}: {name}"


# Files


def tracked():
    """Files that git holds or would hold."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("no git repository here: the list of tracked files is unknown")
    return [REPOSITORY / name for name in listed.stdout.splitlines() if (REPOSITORY / name).is_file()]


def test_the_top_level_is_the_agreed_one():
    for name in ("papers", "common", "data", "results", "tests", "environment.yml", "Makefile", "README.md"):
        if name in ("results", "README.md") and not (REPOSITORY / "README.md").exists():
            pytest.skip("README.md and results/ are not written yet")
        assert (REPOSITORY / name).exists(), name


def test_no_path_of_a_machine_is_in_a_tracked_file():
    telltale = re.compile(r"/work/(main|shared)|/home/\w|/Users/\w|/root/|\.\./shared|C:\\\\")
    exempt = ("tests/", ".ci/", "requirements.lock")
    for path in tracked():
        if relative(path).startswith(exempt) or path.suffix in (".png", ".npz", ".safetensors"):
            continue
        found = telltale.search(path.read_text(errors="replace"))
        assert not found, f"{relative(path)}: {found.group()}"


def test_nothing_large_and_no_data_set_is_tracked():
    for path in tracked():
        assert path.stat().st_size < 8 * 2**20, relative(path)
        assert not relative(path).startswith(("data/raw", "data/prepared")), relative(path)
        assert path.suffix not in (".pt", ".pth", ".mat", ".rec", ".bin", ".tar", ".zip"), relative(path)


def readme():
    path = REPOSITORY / "README.md"
    if not path.exists():
        pytest.skip("README.md is not written yet")
    return path.read_text()


def test_readme_names_the_two_commands():
    for command in ("make reproduce-coarse-to-fine", "make test"):
        assert command in readme()


def test_links_of_the_readmes_lead_somewhere():
    readme()
    for path in [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("papers/**/*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)", path.read_text()):
            assert "://" in target or (path.parent / target).exists(), f"{relative(path)}: {target}"


def test_the_cards_code_runs():
    """Every Python block of a card, on tensors of the names and sizes that it speaks of."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(8, (25_060,), generator=generator)
    for card in sorted(REPOSITORY.glob("papers/*/README.md")):
        text = card.read_text()
        assert len(re.findall(r"^```", text, re.M)) == text.count("```"), f"{relative(card)}: a fence inside a line"
        for block in re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S):
            names = {
                "embeddings": torch.randn(4, 512, generator=generator), "labels": labels[:4],
                "student_embeddings": torch.randn(6, 16, generator=generator),
                "teacher_embeddings": torch.randn(6, 16, generator=generator), "given_labels": labels,
                "logits_of_training_set": torch.randn(len(labels), 8, generator=generator),
                "logits": torch.randn(4, 8, generator=generator),
            }  # fmt: skip
            exec(compile(block, str(card), "exec"), names)
            result = names.get("loss", names.get("weights"))
            assert torch.isfinite(result).all(), relative(card)


def test_every_make_target_that_is_documented_exists():
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = re.findall(r"^([a-zA-Z%-]+):", makefile, re.M)
    documents = [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("papers/**/*.md")]
    for path in documents:
        for name in re.findall(r"(?:^|`)make ([a-z][a-z0-9-]*)", path.read_text(), re.M):
            fits = any(re.fullmatch(t.replace("%", r"[a-z0-9-]*"), name) for t in targets)
            assert fits, f"{relative(path)}: make {name}"


def test_ci_types_what_the_readme_says():
    script = (REPOSITORY / ".ci" / "run").read_text()
    assert re.search(r"^make test$", script, re.M)
    assert (REPOSITORY / ".ci" / "run").stat().st_mode & 0o111
    workflow = (REPOSITORY / ".github" / "workflows" / "test.yml").read_text()
    assert re.search(r"^ +- run: make test$", workflow, re.M)


def test_make_help_lists_the_targets():
    done = subprocess.run(["make", "help"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0
    for word in ("reproduce-", "test", "verify", "why", "data-", "coarse-to-fine"):
        assert word in done.stdout


def test_the_citation_is_complete(project):
    """What a converter makes BibTeX of: title and year of the repository, and each paper's people and identifier."""
    top, papers = (REPOSITORY / "CITATION.cff").read_text().split("references:\n")
    title = (REPOSITORY / "README.md").read_text().splitlines()[0].removeprefix("# ")
    assert re.search(rf'^title: "{title}"$', top, re.M) and re.search(r"^date-released: \d{4}-\d\d-\d\d$", top, re.M)
    assert f"version: {project['version']}\n" in top and re.search(r"^authors:\n  - name: ", top, re.M)
    papers = papers.split("  - type: ")[1:]
    written = {claims.read(paper)["paper"]["title"] for paper in claims.papers()}
    assert {re.search(r'title: "(.*)"', paper).group(1) for paper in papers} == written and len(papers) == len(written)
    for paper in papers:
        assert paper.count("family-names: ") == paper.count("given-names: ") > 0, paper
        assert re.search(r"^    year: \d{4}$", paper, re.M)
        number = re.search(r"arxiv.org/abs/([\d.]+)", paper).group(1)
        assert f"type: doi, value: 10.48550/arXiv.{number}" in paper


def test_generated_files_are_fresh(committed_cells):
    """`make report` would change nothing."""
    readme()
    for path, text in report.generated(cells=committed_cells).items():
        assert path.exists() and path.read_text() == text, f"{relative(path)} is stale: make report"


def test_every_claim_can_be_computed():
    """Known metric, known row, a preset that exists; nothing marked unverified is called published."""
    for paper in claims.papers():
        config = importlib.import_module(f"facepapers.papers.{paper}.config")
        written, known = claims.read(paper), claims.metrics_of(paper)
        entries = [entry for kind in claims.REQUIRED for entry in written.get(kind, [])]
        assert len({entry["id"] for entry in entries}) == len(entries), "an id is used twice"
        for entry in entries:
            assert entry["metric"] in known and entry["preset"] in config.PRESETS, entry["id"]
            rows = {entry[key] for key in ("row", "better", "than") if key in entry}
            assert rows <= config.ROWS.keys(), entry["id"]
            assert "unverified" not in str(entry) and entry.get("tolerance", 1) > 0
        assert {plan for plan in config.PLAN} == set(config.PRESETS)


def test_recorded_runs_are_the_presets_own_settings():
    """A committed record whose settings are no longer the preset's must say so in its overrides.

    A setting that is younger than the record had its class default then: that is how settings are added. A record from
    before `auto` does not say what it computed in, so its precision was the preset's.
    """
    for paper in claims.papers():
        config = importlib.import_module(f"facepapers.papers.{paper}.config")
        for record in runs.recorded(paper):
            now = runs.as_dict(
                config.preset(record["config"]["preset"], record["config"]["row"], record["data"]["name"])
            )
            then = runs.as_dict(config.Config()) | record["config"]
            changed = {k for k in now if then[k] != now[k] and (k != "precision" or k in record)}
            assert changed == set(record["overrides"]), f"{record['run']}: {changed ^ set(record['overrides'])}"


def test_error_messages_come_without_loading_torch():
    """`cli` alone is light, so a wrong command answers at once."""
    heavy = "import sys, facepapers.common.cli; print([m for m in ('torch', 'tyro', 'matplotlib') if m in sys.modules])"
    assert python("-c", heavy).stdout == "[]\n"
    assert paths.ROOT == REPOSITORY


def test_records_are_verified_without_loading_torch():
    """Of SciPy only scipy.special, for quantiles: scipy.stats takes a good part of the time that a paper does."""
    heavy = {"torch", "torchvision", "scipy.stats", "pandas", "matplotlib", "sklearn", "tqdm"}
    code = "import sys; from facepapers.common.tools import report; report.main(['verify']); "
    code += f"print({heavy} & {{*sys.modules}})"
    done = python("-c", code)
    said = done.stdout.splitlines()
    assert len(said) > 1, done.stderr
    assert "metric values recomputed" in said[-2] and said[-1] == "set()"
