"""A sign of life from whatever takes long: a bar on a terminal, lines on stderr elsewhere.

for part in progress(parts, "embeddings", "batches"):  # one after another
    ...
with phase("testing"):                                 # what cannot be counted
    ...

A line comes when nothing was said for FIRST_S seconds, then with every tenth of the work and every THEN_S seconds; work
that ends sooner says nothing. A thread of its own speaks, so one long step does not silence it, and it reads a counter
alone: nothing waits for a device.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Self, TypeVar

Element = TypeVar("Element")

FIRST_S, THEN_S, LEAST_S = 5, 30, 1  # seconds of silence before a first line, a later one, and between any two
LOOK_S = 1.0  # how often the thread looks
clock = time.monotonic
_open: list["Meter"] = []  # meters at work, outermost first; the innermost speaks
_said = clock()  # when anything was said last: several short phases in a row are a long silence too


def progress(iterable: Iterable[Element], label: str, unit: str = "", total: int | None = None) -> Iterator[Element]:
    """The elements of `iterable`, counted; `total` is their number where `len` does not tell."""
    total = len(iterable) if total is None and isinstance(iterable, Sized) else total
    with Meter(label, total, unit) as meter:
        for element in iterable:
            yield element
            meter.add()


@contextlib.contextmanager
def phase(label: str) -> Iterator[None]:
    """Say now and then that `label` is still at work."""
    with Meter(label, bar=False):
        yield


class Meter:
    """Counts steps of `batch` units each, from `done` to `total` (None: unknown). To be used in a `with` statement.

    `note` is shown beside the count. Only the main process speaks.
    """

    def __init__(
        self,
        label: str,
        total: int | None = None,
        unit: str = "",
        done: int = 0,
        batch: int = 1,
        bar: bool = True,
        keep: bool = False,
    ) -> None:
        from tqdm import tqdm  # here, so that what reads records alone does without

        self.label, self.total, self.unit, self.done, self.batch = label, total, unit, done, batch
        self.note, self.first = "", done
        self._tenth: int | None = None  # tenths of the work done when it last spoke
        main = os.environ.get("RANK", "0") == "0"
        terminal = sys.stderr.isatty()
        self.speaks = main and not (terminal and bar)
        self._bar = tqdm(
            total=total and total * batch, initial=done * batch, unit=unit or "it", desc=label, unit_scale=True,
            disable=not (main and terminal and bar), dynamic_ncols=True, leave=keep,
        )  # fmt: skip

    def __enter__(self) -> Self:
        self._start, self._over = clock(), threading.Event()
        _open.append(self)
        if self.speaks:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        _open.remove(self)
        self._bar.close()

    def add(self, steps: int = 1) -> None:
        """Count finished steps."""
        self.done += steps
        self._bar.update(steps * self.batch)

    def remark(self, text: str) -> None:
        """Show `text` beside the count from now on."""
        self.note = text
        self._bar.set_postfix_str(text, refresh=False)

    def look(self) -> None:
        """Say a line if one is due and no inner meter is at work."""
        if self.speaks and _open[-1:] == [self] and self.due():
            self.say()

    def due(self) -> bool:
        """Whether a line is due now."""
        quiet = clock() - _said
        if self._tenth is None:
            return quiet >= FIRST_S
        return quiet >= THEN_S or (quiet >= LEAST_S and self._tenths() > self._tenth)

    def say(self) -> None:
        """Print how far the work is, its rate and the time left."""
        global _said
        _said, self._tenth = clock(), self._tenths()
        spent, steps = _said - self._start, self.done - self.first
        count = "" if self.total is None and not self.done else str(self.done)
        words = [f"{self.label} {count}{f'/{self.total}' if self.total else ''}".rstrip(), self.note]
        if steps:
            rate = steps * self.batch / max(spent, 1e-9)
            words.append(f"{rate:.{0 if rate >= 10 else 2}f} {self.unit}/s")
            words.append(f"{minutes((self.total - self.done) * spent / steps)} left" if self.total else "")
        else:
            words.append(f"{minutes(spent)} so far")
        self._bar.write("  ".join(filter(None, words)), file=sys.stderr)

    def _watch(self) -> None:
        while not self._over.wait(LOOK_S):
            self.look()

    def _tenths(self) -> int:
        return 10 * self.done // self.total if self.total else 0


def minutes(seconds: float) -> str:
    """m:ss."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
