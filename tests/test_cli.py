"""The command line: settings from a dataclass, one line for every mistake, the right exit code."""

import ast
import dataclasses
import importlib.util
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from facepapers.common import cli
from facepapers.common.evidence import runs
from facepapers.common.tools import release, reproduce
from facepapers.papers.coarse_to_fine import train
from tests.conftest import REPOSITORY, one_line_error


@dataclass(frozen=True)
class Settings:
    steps: int = 10
    lr: float = 0.1
    jpeg: bool = True
    weight_decay: float = 0.0


def test_options_come_from_the_dataclass():
    parsed = cli.parse(Settings(steps=3), ["--lr", "0.5", "--no-jpeg", "--weight-decay=1e-4"], "prog")
    assert parsed == Settings(steps=3, lr=0.5, jpeg=False, weight_decay=1e-4)


def test_the_last_of_two_equal_options_counts():
    """`make reproduce-x ARGS="--seed 3"` appends to the options that the recipe already gave."""
    assert cli.parse(Settings(), ["--steps", "4", "--steps", "7"], "prog").steps == 7


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--stepz", "3"], ["'--stepz'", "did you mean --steps?"]),
        (["--weight_decai", "3"], ["did you mean --weight-decay?"]),
        (["--qqqq", "3"], ["known:", "--lr"]),
        (["stray"], ["'stray'"]),
        (["--steps", "many"], ["--steps", "many", "prog --help"]),
        (["--lr"], ["--lr"]),
        (["--jpeg", "maybe"], ["maybe"]),
    ],
)
def test_a_wrong_option_is_one_line(words, said):
    with pytest.raises(cli.UserError) as error:
        cli.parse(Settings(), words, "prog")
    one_line_error(error, *said)


@dataclass(frozen=True)
class Photos:
    """Look at photos."""

    images: tuple[Path, ...]  # image files
    size: int | None = None  # side in pixels
    out: Path = Path("here")  # folder of what is written


@dataclass(frozen=True)
class Forget:
    """Forget a photo."""

    image: str  # its name


@dataclass(frozen=True)
class Machine:
    """Where it runs."""

    device: str = "auto"  # a processor


def test_a_command_is_a_dataclass():
    found = cli.command(Photos, ["a.png", "b.png", "--out", "there"], "prog")
    assert found == Photos((Path("a.png"), Path("b.png")), None, Path("there"))
    assert cli.command(Photos | Forget, ["forget", "a"], "prog") == Forget("a")
    assert cli.command(Photos, [], "prog", least=0).images == ()
    found, rest = cli.command_and_rest(Forget, ["a", "--steps", "3"], "prog")
    assert (found, rest) == (Forget("a"), ["--steps", "3"])


@pytest.mark.parametrize(
    ("kind", "words", "said"),
    [
        (Photos, [], "IMAGES: name 1 or more; see `prog --help`"),
        (Photos, ["a", "--siz", "3"], "did you mean --size?"),
        (Photos, ["a", "--size", "many"], "many"),
        (Forget, [], "IMAGE"),
        (Forget, ["a", "b"], "unknown setting 'b': this command takes none"),
        (Photos | Forget, [], "photos, forget"),
        (Photos | Forget, ["photo", "a"], "photos, forget"),
        (Photos | Forget, ["photos", "a", "--ou", "x"], "did you mean --out?"),
    ],
)
def test_a_wrong_word_of_a_command_is_one_line(kind, words, said):
    with pytest.raises(cli.UserError) as error:
        cli.command(kind, words, "prog")
    one_line_error(error, said)


def test_help_of_a_command_says_what_it_does_and_each_option(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.command(Photos, ["--help"], "prog", "What it is about.")
    said = capsys.readouterr().out
    assert not stop.value.code
    for word in ("What it is about.", "IMAGES", "image files", "--size", "side in pixels", "--out", "folder of what"):
        assert word in said


def test_an_experiment_has_its_own_options_beside_its_settings():
    def preset(name, row, data):
        return Settings(steps={"short": 1, "long": 9}[name], lr=float(row))

    checked = []
    words = ["--preset", "long", "--device", "gpu", "--row", "2", "--weight-decay", "3"]
    machine, settings = cli.experiment(words, preset, checked.append, "1", Machine(), prog="prog")
    assert (machine, settings) == (Machine("gpu"), Settings(steps=9, lr=2.0, weight_decay=3.0))
    assert checked == [settings] and cli.experiment([], preset, checked.append, "1", prog="prog") == (Settings(1, 1.0),)
    with pytest.raises(cli.UserError, match="did you mean --device"):
        cli.experiment(["--devise", "x"], preset, checked.append, "1", Machine(), prog="prog")


def test_a_seed_below_0_is_one_line():
    seeded = dataclasses.make_dataclass("Seeded", [("seed", int, 0)], frozen=True)
    with pytest.raises(cli.UserError) as error:
        cli.experiment(["--seed", "-1"], lambda *_: seeded(), lambda settings: None, "a", prog="prog")
    one_line_error(error, "--seed -1: give a whole number from 0 on")


def test_preset_row_and_data_choose_the_defaults():
    asked = []
    preset = lambda *words: (asked.append(words), Settings())[1]
    for words in ([], ["--data", "lfw"], ["--row=b", "--preset", "demo", "--data=a+b"]):
        cli.experiment(words, preset, lambda settings: None, "a", prog="prog")
    assert asked == [("short", "a", None), ("short", "a", "lfw"), ("demo", "b", "a+b")]


def commands():
    """(class, lines of its file) of every dataclass that a command line is made of."""
    for path in sorted([*REPOSITORY.glob("common/**/*.py"), *REPOSITORY.glob("papers/*/*.py")]):
        lines, made = path.read_text().splitlines(), set()
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("cli.command", "cli.command_and_rest"):
                made |= {name.id for name in ast.walk(node.args[0]) if isinstance(name, ast.Name)}
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.ClassDef) and (node.name in made | {"Config", "Files"} or path.stem == "jobs"):
                yield pytest.param(node, lines, id=f"{path.relative_to(REPOSITORY)}:{node.name}")


@pytest.mark.parametrize(("node", "lines"), commands())
def test_every_option_has_a_line_of_help(node, lines):
    assert ast.get_docstring(node)
    bare = [n.target.id for n in node.body if isinstance(n, ast.AnnAssign) and "  # " not in lines[n.end_lineno - 1]]
    assert not bare, f"{node.name}: no comment tells what {', '.join(bare)} is"


def test_take_option():
    assert cli.take_option(["a", "--out", "x", "b"], "out") == ("x", ["a", "b"])
    assert cli.take_option(["--out=y=z", "--outer", "1"], "out") == ("y=z", ["--outer", "1"])
    assert cli.take_option(["a"], "out", "default") == ("default", ["a"])
    assert cli.take_option(["--out", "x", "--out=y", "b", "--out", "z"], "out", "default") == ("z", ["b"])
    with pytest.raises(cli.UserError, match="--out needs a value"):
        cli.take_option(["--out"], "out")


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (cli.UserError("x.png: no image"), 2, "error: x.png: no image"),
        (cli.MissingData("lfpw: run make data-lfpw"), 3, "error: lfpw: run make data-lfpw"),
        (cli.Interrupted("saved at step 3"), 130, "interrupted: saved at step 3"),
        (cli.Interrupted("saved at step 3", signal.SIGTERM), 143, "interrupted: saved at step 3"),
        (KeyboardInterrupt(), 130, "interrupted: "),
        (cli.Terminated(), 143, "interrupted: "),
        (
            ModuleNotFoundError(name="pandas"),
            2,
            "error: pandas: not installed; install it with `pip install 'facepapers[",
        ),
    ],
)
def test_exit_codes(raised, code, line, capsys, monkeypatch):
    def main(argv):
        raise raised

    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as stop:
        cli.entry(main, [])
    said = capsys.readouterr().err
    assert stop.value.code == code and said.startswith(line)
    one_line_error(said)


def test_a_programming_error_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(ZeroDivisionError):
        cli.entry(lambda argv: 1 / 0, [])


def test_a_missing_module_of_our_own_keeps_its_traceback(monkeypatch):
    def main(argv):
        raise ModuleNotFoundError(name="facepapers.papers.none")

    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(ModuleNotFoundError):
        cli.entry(main, [])


def test_a_run_asks_for_its_packages_before_it_trains(monkeypatch, tmp_path):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("scipy", "pandas") else real(name))
    with pytest.raises(cli.UserError) as error:
        runs.Run("resup", "one", Settings(), Settings(), tmp_path)
    one_line_error(error, "pandas, scipy: not installed", "'facepapers[reproduce]'")


@pytest.mark.parametrize(("kind", "code_of_it"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_program_with_128_and_its_number(kind, code_of_it):
    """Ctrl-C, and a supervisor's SIGTERM, outside of any training loop."""
    code = "import time\nfrom facepapers.common import cli\n"
    code += "cli.entry(lambda argv: (print('ready', flush=True), time.sleep(60)), [])"
    default = lambda: signal.signal(kind, signal.SIG_DFL)  # a background shell hands its children an ignored SIGINT
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=default,
    ) as child:  # fmt: skip
        assert child.stdout.readline() == "ready\n"
        time.sleep(0.1)
        os.kill(child.pid, kind)
        said = child.stderr.read()
    assert child.returncode == code_of_it
    one_line_error(said, "interrupted")


def test_a_process_of_torchrun_leaves_without_clean_up():
    program = "import atexit; from facepapers.common import cli; "
    program += "atexit.register(print, 'clean-up'); cli.entry(lambda _: print('done'))"
    run = lambda **words: subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, env={**os.environ, **words}
    )
    assert run().stdout == "done\nclean-up\n"
    left = run(RANK="0")
    assert (left.returncode, left.stdout) == (0, "done\n"), "what was printed is kept"


def test_a_reader_that_leaves_is_no_error():
    """`make help | head -1` must not end in a traceback."""
    code = "from facepapers.common import cli\ncli.entry(lambda argv: [print('x' * 100) for _ in range(100000)], [])"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        child.stdout.readline()
        child.stdout.close()
        said = child.stderr.read()
    assert child.returncode == 0 and "Traceback" not in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--preset", "demi"], ["'demi'", "demo"]),
        (["--row", "cfd"], ["'cfd'", "cft", "heatmap"]),
        (["--row", "cft", "--learning-rate", "1"], ["--learning-rate"]),
        (["--batchh", "1"], ["did you mean --batch?"]),
        (["--steps", "0"], ["--steps 0"]),
        (["--precision", "fp8"], ["--precision fp8"]),
        (["--val-share", "1"], ["--val-share 1"]),
        (["--preset", "paper", "--val-share", "0"], ["--val-share 0"]),  # its stages restart from validated weights
        (["--lr", "nan"], ["--lr nan"]),
        (["--weight-decay", "-1"], ["--weight-decay -1"]),
        (["--row", "heatmap", "--crop", "100"], ["--crop 100"]),
    ],
)
def test_settings_of_a_paper_are_checked_before_anything_is_read(words, said):
    with pytest.raises(cli.UserError) as error:
        train.parse(words)
    one_line_error(error, *said)


def test_reproduce_names_what_exists():
    for words, said in (([], "coarse-to-fine"), (["coarse-to-fin"], "coarse-to-fine")):
        with pytest.raises(cli.UserError) as error:
            reproduce.main(words)
        one_line_error(error, said)
    with pytest.raises(cli.UserError) as error:
        reproduce.main(["coarse-to-fine", "--preset", "tiny"])
    one_line_error(error, "tiny", "auto", "short")
    with pytest.raises(cli.UserError) as error:
        reproduce.main(["coarse-to-fine", "--preset", "demo", "--seeds", "0,1"])
    one_line_error(error, "--seeds", "'0 1 2'")


def test_a_preset_without_its_data_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.delenv("DATA_MIRROR", raising=False)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    for words, name in ((["--data", "lfpw"], "lfpw"), ([], "cofw")):
        with pytest.raises(SystemExit) as stop:
            cli.entry(reproduce.main, ["coarse-to-fine", "--preset", "short", *words])
        assert stop.value.code == 3
        one_line_error(capsys.readouterr().err, name, f"make data-{name}")


def test_auto_takes_the_richest_preset_that_is_possible(monkeypatch, capsys):
    from facepapers.papers.coarse_to_fine.config import PLAN

    monkeypatch.setattr(reproduce, "has_gpu", lambda: False)
    monkeypatch.setattr(reproduce.sets, "available", lambda name: False)
    assert reproduce.choose(PLAN, "auto", None) == ("demo", "embedded")
    said = capsys.readouterr().out
    assert (
        "preset paper needs cofw or 300w" in said and "make data-cofw" in said and "preset demo on embedded\n" in said
    )
    monkeypatch.setattr(reproduce.sets, "available", lambda name: name == "lfpw")
    assert reproduce.choose(PLAN, "auto", None) == ("short", "lfpw")
    monkeypatch.setattr(reproduce.sets, "available", lambda name: True)
    assert reproduce.choose(PLAN, "auto", None) == ("short", "cofw")
    assert "paper is sized for a GPU" in capsys.readouterr().out
    monkeypatch.setattr(reproduce, "has_gpu", lambda: True)
    monkeypatch.setattr(reproduce.sets, "available", lambda name: name == "cofw")
    assert reproduce.choose(PLAN, "auto", None) == ("paper", "cofw")


def test_help_lists_every_setting_with_its_source(capsys):
    with pytest.raises(SystemExit) as stop:
        train.parse(["--help"])
    said = capsys.readouterr().out
    assert not stop.value.code
    for word in ("--batch", "--rotation-deg", "released solver", "our choice"):
        assert word in said


def test_a_folder_that_cannot_be_written_is_found_before_the_work(tmp_path):
    """Also where the user may write everything: a plain file in the way, a file system that refuses."""
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", "/proc/none"):
        with pytest.raises(cli.UserError) as error:
            train.main(["--preset", "demo", "--out", str(place)])
        one_line_error(error, place, "cannot be written", "choose another folder")


def test_a_value_of_the_wrong_kind_is_named_without_the_parsers_words():
    with pytest.raises(cli.UserError) as error:
        train.parse(["--steps", "x"])
    one_line_error(error, "--steps 'x'", "not a value that it takes", "--help")
    with pytest.raises(cli.UserError, match=r"^invalid choice 'float8' for .*--stored.*'float32'\); see `"):
        release.main(["a/b", "c", "--stored", "float8"])  # without the title of the parser's frame, "Invalid choice"
    assert "helptext" not in str(error.value)
