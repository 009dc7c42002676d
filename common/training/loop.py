"""Resumable steps: progress, logging, a stop at NaN, a checkpoint at Ctrl-C. The loop body stays in train.py.

steps = Steps(folder, {"model": model, "optimizer": optimizer}, total=cfg.steps, batch=cfg.batch, unit="faces")
for step in steps:
    ...                       # forward, backward, optimizer.step()
    steps.log(loss=loss)
"""

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from facepapers.common.cli import Interrupted, UserError
from facepapers.common.progress import Meter
from facepapers.common.training import checkpoint, parallel

LOG_EVERY = 50  # steps whose mean is a row of the history
SAVE_S = 120.0  # seconds between checkpoints
SAVE_EVERY = 500  # steps between checkpoints to which every process adds parts of its own: all must save together


class Best:
    """The weights with the lowest (or highest) validation value so far: validation-chosen selection."""

    value: float | None  # None before the first offer, and -1 and None below
    step: int
    weights: dict[str, Any] | None

    def __init__(self, model: torch.nn.Module, lower_is_better: bool = True) -> None:
        self.model, self.sign = model, 1 if lower_is_better else -1
        self.value, self.step, self.weights = None, -1, None

    def offer(self, value: float, step: int) -> None:
        """Keep the model's present weights if `value` beats the best so far."""
        if math.isfinite(value) and (self.value is None or self.sign * value < self.sign * self.value):
            self.value, self.step = float(value), int(step)
            self.weights = {k: v.detach().clone() for k, v in self.model.state_dict().items()}

    def forget(self) -> None:
        self.value, self.step, self.weights = None, -1, None

    def restore(self) -> None:
        """Put the best weights back into the model."""
        if self.weights is not None:
            self.model.load_state_dict(self.weights)

    def state_dict(self) -> dict:
        return {"value": self.value, "step": self.step, "weights": self.weights}

    def load_state_dict(self, state: dict) -> None:
        self.value, self.step, self.weights = state["value"], state["step"], state["weights"]


def averaged(model: torch.nn.Module, decay: float) -> torch.optim.swa_utils.AveragedModel:
    """A running average of `model`'s weights and statistics, with a shorter memory at first.

    Call `.update_parameters(model)` after each step. The memory grows to 1 / (1 - decay) steps, so that the random
    start is soon forgotten.
    """

    def mix(old, new, count):
        if old[0].is_floating_point():
            torch._foreach_lerp_(old, new, 1 - min(decay, (1 + int(count)) / (10 + int(count))))
        else:  # counters
            torch._foreach_copy_(old, new)

    return torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=mix, use_buffers=True)


@dataclass(frozen=True)
class Origin:
    """Whose checkpoint a file is."""

    label: str = ""  # of the run, for people
    identity: str = ""  # a fingerprint of its settings: other settings do not continue it
    precision: str = ""  # "bf16" or "fp32", kept for whoever continues it


class Steps:
    """Iterate step numbers from the last checkpoint to `total`.

    `parts` (name -> object with state_dict) is what a checkpoint holds, `own` what each process adds in a file of its
    own (shard<rank>of<world>.pt). A checkpoint is written every SAVE_S seconds (with `own` every SAVE_EVERY steps) and
    when the process is told to stop. `batch` is the samples of a step, counted in `unit`; `describe(step)` names them
    for the NaN report. Raises Interrupted after the save, UserError when a logged value stops being finite or the
    checkpoint is of another origin.
    """

    history: list[dict[str, Any]]  # rows of logged means and notes

    def __init__(
        self,
        folder: Path,
        parts: dict[str, Any],
        total: int,
        batch: int,
        unit: str = "samples",
        origin: Origin = Origin(),
        own: dict[str, Any] | None = None,
        describe: Callable[[int], str] | None = None,
    ) -> None:
        self.path, self.parts, self.total = Path(folder) / "checkpoint.pt", parts, total
        self.batch, self.unit, self.origin, self.own, self.describe = batch, unit, origin, own, describe
        self.history, self.seconds, self.first, self.step = [], 0.0, 0, -1
        self._pending: list[Any] = []
        self._saved = False
        self._since: float | None = None  # when the part of `seconds` that is not yet counted began
        self._stop = 0  # number of the signal that asks for it
        if self.path.exists():
            if self.resume(self.path, parts) != origin.identity:
                raise UserError(f"{self.path}: was written under other settings; delete it to start again")
            self._resume_own()

    @property
    def own_path(self) -> Path:
        """File of this process's own parts."""
        return self.path.with_name(f"shard{parallel.rank()}of{parallel.world()}.pt")

    def resume(self, path: Path, parts: dict[str, Any]) -> str:
        """Continue from a file of `save`, which holds `parts`; returns the identity of the run that wrote it."""
        saved, now = checkpoint.load_state(path, parts), self.origin.precision
        self.first, self.history, self.seconds = saved["step"], saved["history"], saved["seconds"]
        self.step = self.first - 1
        if parallel.is_main():
            other = saved.get("precision", now)
            note = f"; computed in {other} so far, from here on in {now}" if other != now else ""
            note += self._otherwise(saved.get("rounding", {}))
            print(f"resuming {path.parent.name} at step {self.first} of {self.total}{note}", file=sys.stderr)
        return saved.get("identity", "")

    def _otherwise(self, before):
        """Words on what of `parallel.rounding` was otherwise when a checkpoint was written."""
        now = parallel.rounding(self._device())
        other = [f"{name} {before[name]}, now {now[name]}" for name in now if before.get(name, now[name]) != now[name]]
        return f"; begun with {'; '.join(other)}: last bits may be others than without the stop" if other else ""

    def _device(self):
        models = (part for part in self.parts.values() if isinstance(part, torch.nn.Module))
        return next((p.device for model in models for p in model.parameters()), torch.device("cpu"))

    def _resume_own(self):
        if not self.own or not self.first:
            return
        path = self.own_path
        if not path.exists() or checkpoint.load_state(path, self.own)["step"] != self.first:
            raise UserError(f"{path}: missing or of another step; resume with as many processes as before")

    def __iter__(self) -> Iterator[int]:
        restore = self._catch_signals()
        self._since, self._last_save = time.perf_counter(), time.monotonic()
        try:
            label = f"{self.origin.label} step".lstrip()
            with Meter(label, self.total, self.unit, self.first, self.batch, keep=True) as self._meter:
                yield from self._count()
                if self._meter.speaks and self.total > self.first:
                    self._meter.say()
        finally:
            self._count_time()
            self._since = None
            restore()

    def _count(self):
        for step in range(self.first, self.total):
            self.step = step
            yield step
            self._meter.add()
            if (step + 1) % LOG_EVERY == 0 or step + 1 == self.total:
                self.flush()
            self._save_if_due(step + 1)

    def log(self, **values: torch.Tensor | float) -> None:
        """Keep this step's values (tensors stay on the device until the next flush)."""
        self._pending.append((self.step, {k: v.detach() if torch.is_tensor(v) else v for k, v in values.items()}))

    def note(self, **values: float) -> None:
        """Add values (e.g. a validation error) to the history's newest row."""
        self.flush()
        if not self.history or self.history[-1]["step"] != self.step + 1:
            self.history.append({"step": self.step + 1})
        self.history[-1].update({k: float(v) for k, v in values.items()})

    def flush(self) -> None:
        """Move pending values into one history row, their mean; stop the run if one is not finite."""
        if not self._pending:
            return
        names = self._pending[0][1]
        table = {n: torch.stack([torch.as_tensor(row[n]) for _, row in self._pending]).float().cpu() for n in names}
        for name, values in table.items():
            bad = (~torch.isfinite(values)).nonzero()
            if len(bad):
                self._report_nan(name, self._pending[int(bad[0])][0])
        row = {"step": self.step + 1, **{n: float(v.mean()) for n, v in table.items()}}
        self._pending = []
        self.history.append(row)
        self._meter.remark("  ".join(f"{k} {v:.4g}" for k, v in row.items() if k != "step"))

    def save(self, done: int, path: Path | None = None, parts: dict[str, Any] | None = None) -> None:
        """Write the checkpoint (or such a file of some parts) from which step number `done` is the next."""
        if self.own:
            checkpoint.save_state(self.own_path, self.own, step=done)
        self.flush()
        self._count_time()
        if parallel.is_main():
            scalars = dict(step=done, history=self.history, seconds=self.seconds)
            scalars["rounding"] = parallel.rounding(self._device())
            origin = dict(identity=self.origin.identity, precision=self.origin.precision)
            checkpoint.save_state(path or self.path, parts or self.parts, **origin, **scalars)
        self._last_save, self._saved = time.monotonic(), True

    def _count_time(self):
        """Add what has passed since the last time to `seconds`: no time after the last step."""
        if self._since is not None:
            now = time.perf_counter()
            self.seconds, self._since = self.seconds + now - self._since, now

    def _save_if_due(self, done):
        stop = bool(self._stop)
        if parallel.world() > 1 and done % 10 == 0:  # all ranks must leave at the same step
            stop = parallel.any_rank(bool(self._stop), next(iter(self.parts["model"].parameters())).device)
        elif parallel.world() > 1:
            stop = False
        if stop:
            self.save(done)
            line = f"saved at step {done} of {self.total}; the same command continues from there"
            raise Interrupted(line, self._stop or signal.SIGINT)  # another process may have got it
        due = done % SAVE_EVERY == 0 if self.own else time.monotonic() - self._last_save > SAVE_S
        at_end = done == self.total and self._saved and not self.own  # worth keeping where tests or the record fail
        if due or at_end:
            self.save(done)

    def _report_nan(self, name, step):
        samples = f" (samples {self.describe(step)})" if self.describe else ""
        raise UserError(
            f"{name} is not finite at step {step}{samples}; lower the learning rate or look at these samples"
        )

    def _catch_signals(self):
        """First Ctrl-C or SIGTERM: finish the step and save. A second one stops at once."""
        if threading.current_thread() is not threading.main_thread():
            return lambda: None
        old = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

        def restore():
            for number, handler in old.items():
                signal.signal(number, handler)

        def request(number, frame):
            self._stop = number
            restore()

        for number in old:
            signal.signal(number, request)
        return restore
