"""Command lines and their errors: one frozen dataclass becomes the options, one line tells what went wrong.

Exit codes: 0 done, 2 bad input or setting, 3 data that must first be obtained, 130 interrupted (resumable),
143 the same by SIGTERM.
"""

import contextlib
import dataclasses
import difflib
import importlib.util
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any


class UserError(Exception):
    """Bad input. The message is one line: the file or setting, what is wrong, and the remedy."""

    exit_code = 2


class MissingData(UserError):
    """A data set (or weights file) that the user must first obtain; the message says how."""

    exit_code = 3


class Interrupted(Exception):
    """Ctrl-C or SIGTERM, raised after the state was saved; the same command continues."""

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.number = number  # of the signal


class Terminated(KeyboardInterrupt):
    """SIGTERM, where nothing is to be saved."""


def saved(stop: KeyboardInterrupt, message: str) -> Interrupted:
    """What a stop becomes once all is saved: the exception that says what the same command does."""
    return Interrupted(message, signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


def terminate(number: int, frame: object) -> None:
    """The handler of SIGTERM."""
    raise Terminated


def entry(main: Callable[[list[str]], object], argv: list[str] | None = None) -> None:
    """Run `main(argv)` as a program: errors become one line on stderr and the right exit code."""
    argv = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a letter shows another one
    try:
        # A supervisor's SIGTERM (a batch system's time limit) gets the same care as Ctrl-C.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminate)
        main(argv)
        if "RANK" in os.environ:
            _leave()
        if sys.stdout is not None:  # it was closed before we began
            sys.stdout.flush()  # here, where a reader that has left is no error
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except Interrupted as note:
        print(f"interrupted: {note}", file=sys.stderr)
        raise SystemExit(128 + note.number) from None
    except KeyboardInterrupt as stop:
        print("interrupted: nothing was left half-written; the same command starts again", file=sys.stderr)
        raise SystemExit(128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)) from None
    except ModuleNotFoundError as error:
        if (error.name or "facepapers").startswith("facepapers"):
            raise
        print(f"error: {_not_installed([str(error.name)])}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:  # `... | head` closed our output: not an error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left goes nowhere
        raise SystemExit(0) from None
    except (OSError, RuntimeError, MemoryError) as error:
        if not (line := _of_the_machine(error)):
            raise
        print(f"error: {line}", file=sys.stderr)
        raise SystemExit(2) from None


# What torch, its loaders, the system and the compiler say when the machine lacks something, and what helps.
MACHINE = (
    (r"DataLoader worker .*(killed|exited unexpectedly)",
     "a process that reads pictures was ended, likely for lack of memory; try fewer --workers or a smaller --batch"),
    (r"out of memory|can't allocate memory|Cannot allocate memory|Unable to allocate",
     "out of memory; try a smaller --batch, or end other programs"),
    (r"No space left on device|Disk quota exceeded", "the disk is full; free some space"),
    (r"Too many open files", "too many open files; raise the limit (`ulimit -n`)"),
    (r"C\+\+ compile error|No working C\+\+ compiler",
     "COMPILE=1: the C++ compiler failed or was stopped{why}; mend it, or leave COMPILE=1 out"),
)  # fmt: skip


def _of_the_machine(error: BaseException) -> str:
    """One line for an error that only says what the machine lacks; else nothing."""
    said = "out of memory" if isinstance(error, MemoryError) else str(error)
    found = next((line for pattern, line in MACHINE if re.search(pattern, said)), "")
    why = re.search(r"\berror: (.+)", said)  # of all that a compiler says, its first complaint
    found = found.format(why=f" ({why[1]})" if why else "")
    return f"{found}; then run the same command again, it goes on from its last checkpoint" if found else ""


def require(*packages: str, extra: str = "reproduce") -> None:
    """Raises UserError where one of these packages, by import name, is not there: now, not after hours of training.

    `extra`: the one of pyproject.toml that brings them.
    """
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise UserError(_not_installed(missing, extra))


def _not_installed(packages: list[str], extra: str = "reproduce") -> str:
    return f"{', '.join(packages)}: not installed; install it with `pip install 'facepapers[{extra}]'`"


def _leave() -> None:
    """End a process of torchrun without the interpreter's clean-up.

    There, gloo's threads aborted 2 of 50 exits, and torchrun calls such a finished run a failure.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def experiment(
    argv: Sequence[str],
    preset: Callable[[str, str, str | None], Any],
    check: Callable[[Any], object],
    row: str,
    *groups: Any,
    prog: str,
    about: str | None = None,
) -> tuple:
    """The command line of a paper's experiment: (one instance of each of `groups`, ..., its settings).

    --preset, --row and --data choose the settings' defaults, `preset(name, row, data)`; every further option overrides
    one. `groups` are frozen dataclass instances, the defaults of options that are no settings (a device, files of this
    machine). `check(settings)` raises UserError for settings that do not go together; else as `command`.
    """
    name, rest = take_option(argv, "preset", "short")
    row, rest = take_option(rest, "row", row)
    data, rest = take_option(rest, "data")
    defaults = (*groups, preset(name, row, data))
    names = [type(default).__name__.lower() for default in defaults]
    fields = [(n, type(d), dataclasses.field(default=d)) for n, d in zip(names, defaults, strict=True)]
    together = command(dataclasses.make_dataclass("Options", fields, frozen=True), rest, prog, about)
    found = tuple(getattr(together, n) for n in names)
    if (seed := getattr(found[-1], "seed", 0)) < 0:
        raise UserError(f"--seed {seed}: give a whole number from 0 on")
    check(found[-1])
    return found


def parse(default: Any, argv: Sequence[str], prog: str, about: str | None = None) -> Any:
    """`default`, a dataclass instance, with what `argv` says of its fields; else as `command`."""
    return _known(type(default), argv, prog, about, default=default)


def command(kind: Any, argv: Sequence[str], prog: str, about: str | None = None, least: int = 1) -> Any:
    """An instance of a command's dataclass `kind`, or of one of `A | B` (subcommands named as classes), from `argv`.

    A field without a default stands on the command line without a name (a tuple takes `least` or more words), each
    other one is an option. The comment behind a field is its line in --help, which begins with `about`. Raises
    UserError (one line, with the nearest known option) for an unknown option, a bad value or a missing word.
    """
    found = _known(kind, argv, prog, about)
    for field in dataclasses.fields(found):
        value = getattr(found, field.name)
        if field.default is dataclasses.MISSING and isinstance(value, tuple) and len(value) < least:
            raise UserError(f"{field.name.upper()}: name {least} or more; see `{prog} --help`")
    return found


def command_and_rest(kind: Any, argv: Sequence[str], prog: str, about: str | None = None) -> tuple[Any, list[str]]:
    """As `command`, and the list of the words that are none of its options."""
    return _parsed(kind, argv, prog, about)


def _known(kind, argv, prog, about, **more):
    """As _parsed, without leaving a word over."""
    found, unknown = _parsed(kind, argv, prog, about, **more)
    if unknown:
        known = sorted(_options(type(found)))
        near = difflib.get_close_matches(unknown[0].replace("_", "-"), known, n=1)
        hint = (
            f"did you mean {near[0]}?" if near else f"known: {' '.join(known)}" if known else "this command takes none"
        )
        raise UserError(f"unknown setting {unknown[0]!r}: {hint}")
    return found


def _parsed(kind, argv, prog, about, **more):
    """(instance, list of unknown words) from tyro. Its complaints become a UserError, its --help ends the program."""
    import tyro

    rules = (
        tyro.conf.OmitArgPrefixes, tyro.conf.PositionalRequiredArgs, tyro.conf.PositionalMetavarFromFieldName,
        tyro.conf.DisallowNone,
    )  # fmt: skip
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            found, unknown = tyro.cli(
                kind, args=list(argv), prog=prog, description=about, config=rules, return_unknown_args=True, **more
            )
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        raise UserError(f"{_flatten(said.getvalue())}; see `{prog} --help`") from None
    return found, unknown


def _options(kind):
    """The options of a dataclass and of those in its fields."""
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.type):
            yield from _options(field.type)
        elif field.default is not dataclasses.MISSING:
            yield "--" + field.name.replace("_", "-")


def _flatten(panel: str) -> str:
    """tyro's framed message as one line, without the frame's title, which the message repeats."""
    words = " ".join(line.strip("│╰╯─ \n") for line in panel.splitlines() if not line.startswith("╭"))
    said = " ".join(words.partition("For full helptext")[0].split()).rstrip(".")
    found = re.search(r"Error parsing (--[\w-]+): .*?('[^']*')", said)
    return f"{found[1]} {found[2]}: not a value that it takes" if found else said


def take_option(argv: Sequence[str], name: str, default: Any = None) -> tuple[Any, list[str]]:
    """Remove `--name VALUE` or `--name=VALUE` from `argv`; returns (value, the other arguments)."""
    rest, value, flag, i = [], default, f"--{name}", 0
    while i < len(argv):
        if argv[i] == flag:
            if i + 1 == len(argv):
                raise UserError(f"{flag} needs a value")
            value, i = argv[i + 1], i + 2
        elif argv[i].startswith(flag + "="):
            value, i = argv[i].split("=", 1)[1], i + 1
        else:
            rest.append(argv[i])
            i += 1
    return value, rest
