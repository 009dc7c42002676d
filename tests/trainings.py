"""What the tests of the five training loops share: what is averaged, where a run stops, whether a setting matters."""

import dataclasses

import pytest
import torch

from facepapers.common import cli
from facepapers.common.training import loop


def tensors(module):
    """A copy of a module's tensors by name, in float64."""
    return {name: value.detach().double().clone() for name, value in module.state_dict().items()}


def equal(a, b):
    """Whether two results of `tensors` are the same to the bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def watch_averages(monkeypatch):
    """A list that grows by every running average that a training makes from now on."""
    real, made = loop.averaged, []

    def averaged(*given):
        made.append(real(*given))
        return made[-1]

    monkeypatch.setattr(loop, "averaged", averaged)
    return made


def stopped_at(monkeypatch, step, run):
    """Call `run`, which is told to stop while step number `step` (from 0) of each of its loops is at work."""
    log = loop.Steps.log

    def stopping(self, **values):
        self._stop = self._stop or self.step == step
        log(self, **values)

    with monkeypatch.context() as patch, pytest.raises(cli.Interrupted):
        patch.setattr(loop.Steps, "log", stopping)
        run()
    torch.rand(7)  # a new process has other generator states


def settings_without_effect(kind, run, base, other, elsewhere):
    """Names of settings that change nothing: `run(settings)` is equal with and without them.

    `other`: field of the dataclass `kind` -> a value unlike that in `base`, or (further settings of both runs, value);
    `elsewhere`: fields that other tests answer for. Every field is in one of both, so that a new one is not forgotten.
    """
    fields = {field.name for field in dataclasses.fields(kind)}
    assert other.keys() | elsewhere.keys() == fields, fields ^ (other.keys() | elsewhere.keys())
    assert not other.keys() & elsewhere.keys()
    plain, idle = run(base), []
    for name, value in other.items():
        more, value = value if isinstance(value, tuple) and value and isinstance(value[0], dict) else ({}, value)
        start = dataclasses.replace(base, **more)
        assert getattr(start, name) != value, f"{name} is no other value"
        if equal(run(start) if more else plain, run(dataclasses.replace(start, **{name: value}))):
            idle.append(name)
    return idle
