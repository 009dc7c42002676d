"""Checkpoints and the loop by themselves: nothing of a run is lost at a stop, and no code is run from a file.

`test_runs.py` interrupts a whole training; here each thing that must come back is looked at alone, on a training with
dropout, momentum, data drawn by three generators, a history and validation-chosen weights.
"""

import pickle
import random

import numpy as np
import pytest
import torch

from facepapers.common import cli
from facepapers.common.training import checkpoint, loop, optimizers
from tests.conftest import Harmful, one_line_error

STEPS, STOP = 8, 4


class Training:
    """Some steps of a small training, all parts of which a checkpoint must hold."""

    def __init__(self, folder, kind="adamw"):
        torch.manual_seed(5)
        random.seed(6)
        np.random.seed(7)
        self.model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5))
        self.optimizer = optimizers.make(kind, self.model.parameters(), 0.1, 0.05)
        self.average, self.best = loop.averaged(self.model, 0.9), loop.Best(self.model)
        parts = {"model": self.model, "optimizer": self.optimizer, "average": self.average, "best": self.best}
        self.steps = loop.Steps(folder, parts, STEPS, batch=4)

    def run(self, stop=None):
        """Everything that decides or tells the outcome, after the last step or `stop`."""
        for step in self.steps:
            scale = random.random() + np.random.rand() + np.random.normal()  # one of two normals is kept for later
            loss = (self.model(torch.randn(4, 8)) * scale).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.average.update_parameters(self.model)
            self.steps.log(loss=loss)
            self.steps.note(error=float(abs(step - 2)))  # the best step lies before the stop
            self.best.offer(abs(step - 2), step)
            self.steps._stop = step == stop
        return {
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict(), "best": self.best.state_dict(), "history": self.steps.history,
            "drawn": (torch.rand(1).item(), np.random.rand(), random.random()),
        }  # fmt: skip


def flat(value):
    """Nested values as {path: bytes or number}."""
    if isinstance(value, dict):
        return {(key, *path): leaf for key, inner in value.items() for path, leaf in flat(inner).items()}
    if isinstance(value, list | tuple):
        return flat(dict(enumerate(value)))
    return {(): value.numpy().tobytes() if torch.is_tensor(value) else value}


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("again", [1, 2], ids=["one stop", "two stops"])
def test_every_part_of_a_stopped_training_comes_back(tmp_path, kind, again):
    whole = flat(Training(tmp_path / "whole", kind).run())
    for stop in (STOP, STOP + 2)[:again]:
        with pytest.raises(cli.Interrupted, match=f"saved at step {stop + 1} of {STEPS}"):
            Training(tmp_path / "stopped", kind).run(stop)
    resumed = Training(tmp_path / "stopped", kind)
    assert resumed.steps.first == stop + 1 and resumed.best.value == 0 and resumed.best.step == 2
    assert flat(resumed.run()) == whole


def test_what_rounds_otherwise_than_before_the_stop_is_said(tmp_path, capsys, monkeypatch):
    """Sums are cut by the threads and ordered by the vectors: there the bits are not those of an unbroken run."""
    with pytest.raises(cli.Interrupted):
        Training(tmp_path).run(STOP)
    Training(tmp_path)
    assert "begun with" not in capsys.readouterr().err
    real = loop.parallel.rounding(torch.device("cpu"))
    assert {"torch", "threads", "vectors", "processes", "compiled"} < real.keys()
    monkeypatch.setattr(loop.parallel, "rounding", lambda device: real | {"threads": "64", "new": "x"})
    Training(tmp_path)
    one_line_error(capsys.readouterr().err, "resuming", f"begun with threads {real['threads']}, now 64: last bits")


def test_the_time_of_before_is_counted(tmp_path):
    steps = loop.Steps(tmp_path, {"model": torch.nn.Linear(1, 1)}, 3, 1)
    steps.seconds = 1000.0
    list(steps)
    steps.save(2)
    again = loop.Steps(tmp_path, {"model": torch.nn.Linear(1, 1)}, 3, 1)
    assert list(again) == [2] and again.seconds > 1000


def test_a_file_of_some_parts_leaves_the_checkpoint_alone(tmp_path):
    """What a row hands to another (the first part of a training that several share)."""
    model, optimizer = torch.nn.Linear(2, 2), optimizers.make("sgd", [torch.nn.Parameter(torch.ones(1))], 0.1)
    steps = loop.Steps(tmp_path, {"model": model, "optimizer": optimizer}, 4, 1, origin=loop.Origin(identity="a"))
    list(steps)
    steps.save(4, tmp_path / "shared.pt", {"model": model})
    assert not (tmp_path / "checkpoint.pt").exists()
    other, weight = torch.nn.Linear(2, 2), model.weight.clone()
    fresh = loop.Steps(tmp_path / "other", {"model": other}, 6, 1, origin=loop.Origin(identity="b"))
    assert fresh.resume(tmp_path / "shared.pt", {"model": other}) == "a" and fresh.first == 4
    assert torch.equal(other.weight, weight)


@pytest.mark.parametrize("identity", ["", "other"])
def test_a_checkpoint_of_another_origin_is_refused(tmp_path, identity):
    steps = loop.Steps(tmp_path, {"model": torch.nn.Linear(1, 1)}, 2, 1, origin=loop.Origin(identity="this"))
    list(steps)
    steps.save(2)
    with pytest.raises(cli.UserError) as error:
        loop.Steps(tmp_path, {"model": torch.nn.Linear(1, 1)}, 2, 1, origin=loop.Origin(identity=identity))
    one_line_error(error, "checkpoint.pt", "other settings")


def test_a_part_that_the_run_lacks_is_refused(tmp_path):
    model = torch.nn.Linear(1, 1)
    checkpoint.save_state(tmp_path / "c.pt", {"model": model, "best": loop.Best(model)}, step=1)
    with pytest.raises(cli.UserError) as error:
        checkpoint.load_state(tmp_path / "c.pt", {"model": model})
    one_line_error(error, "holds ['best', 'model'], this run needs ['model']")


@pytest.mark.parametrize("read", [checkpoint.read_scalars, lambda path: checkpoint.load_state(path, {})])
def test_no_code_is_run_from_a_checkpoint(tmp_path, read):
    content = {"parts": {}, "scalars": Harmful(tmp_path / "written"), "rng": checkpoint.rng_state()}
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises(cli.UserError) as error:
        read(tmp_path / "c.pt")
    one_line_error(error, "c.pt", "cannot resume")
    assert not (tmp_path / "written").exists()
    pickle.loads(pickle.dumps(Harmful(tmp_path / "written"))).close()
    assert (tmp_path / "written").exists()  # so it would have been written


def test_weights_hold_the_statistics_and_any_difference_is_named(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    model(torch.randn(8, 3))
    checkpoint.save_weights(tmp_path / "w.safetensors", model)
    again = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    checkpoint.load_weights(tmp_path / "w.safetensors", again)
    assert flat(again.state_dict()) == flat(model.state_dict())
    renamed = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 3), "1": torch.nn.BatchNorm1d(3)})  # equal shapes in order
    larger = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 3))
    smaller = torch.nn.Sequential(torch.nn.Linear(3, 3))
    for other, words in (
        (renamed, ["2 keys missing (a.weight, a.bias)", "2 keys unknown (0.", "0.weight"]),
        (larger, ["2 keys missing (2.weight, 2.bias)"]),
        (smaller, ["5 keys unknown (1."]),
    ):
        before = flat(other.state_dict())
        with pytest.raises(cli.UserError) as error:
            checkpoint.load_weights(tmp_path / "w.safetensors", other)
        one_line_error(error, "another architecture", *words)
        assert flat(other.state_dict()) == before


def test_a_failed_write_of_weights_leaves_the_old_ones(tmp_path, monkeypatch):
    """Not even a part of the new file may stand in the place of the old one."""
    path, model = tmp_path / "w.safetensors", torch.nn.Linear(3, 3)
    checkpoint.save_weights(path, model)
    old = path.read_bytes()
    torch.nn.init.zeros_(model.weight)
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save_weights(path, model)
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


# ---- The best weights


def offered(values, lower_is_better=True):
    model = torch.nn.Linear(1, 1, bias=False)
    best = loop.Best(model, lower_is_better)
    for step, value in enumerate(values):
        torch.nn.init.constant_(model.weight, step)
        best.offer(value, step)
    torch.nn.init.constant_(model.weight, -1)  # the kept ones are no view of these
    best.restore()
    return best, model.weight.item()


@pytest.mark.parametrize(
    ("values", "lower_is_better", "value", "step"),
    [
        ([3, 1, 2], True, 1, 1),
        ([3, 1, 2], False, 3, 0),
        ([2, 1, 1], True, 1, 1),  # the first of equally good ones
        ([float("nan"), 2, float("-inf"), float("nan")], True, 2, 1),
        ([float("inf"), 2, 1], False, 2, 1),
    ],
)
def test_the_best_weights_are_kept(values, lower_is_better, value, step):
    best, weight = offered(values, lower_is_better)
    assert (best.value, best.step, weight) == (value, step, step)


def test_nothing_offered_restores_nothing_and_a_new_stage_begins_anew():
    best, weight = offered([float("nan")])
    assert (best.value, best.step, weight) == (None, -1, -1)
    best, _ = offered([1.0, 2.0])
    best.forget()
    assert (best.value, best.step, best.weights) == (None, -1, None)
    best.offer(5.0, 9)
    assert (best.value, best.step) == (5.0, 9)


def test_the_running_average_mixes_statistics_and_grows_old():
    model = torch.nn.BatchNorm1d(1)
    average, expected = loop.averaged(model, 0.9), 0.0
    for count in range(30):
        model.running_mean.fill_(float(count))
        average.update_parameters(model)
        memory = min(0.9, (1 + count) / (10 + count)) if count else 0.0
        expected = memory * expected + (1 - memory) * count
    assert average.module.running_mean.item() == pytest.approx(expected, rel=1e-5)


# ---- History


def test_rows_hold_means_and_the_last_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 4)
    steps = loop.Steps(tmp_path, {}, total=6, batch=1)
    for step in steps:
        steps.log(loss=torch.tensor(float(step**2)), rate=0.5)
    assert steps.history == [{"step": 4, "loss": 3.5, "rate": 0.5}, {"step": 6, "loss": 20.5, "rate": 0.5}]


def test_notes_of_one_step_share_a_row(tmp_path):
    steps = loop.Steps(tmp_path, {}, total=2, batch=1)
    for step in steps:
        steps.log(loss=1.0)
        if step == 0:
            steps.note(error=2)
            steps.note(other=3)
    assert steps.history == [{"step": 1, "loss": 1.0, "error": 2.0, "other": 3.0}, {"step": 2, "loss": 1.0}]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_the_first_bad_step_is_named(tmp_path, bad):
    steps = loop.Steps(tmp_path, {}, total=5, batch=1)
    with pytest.raises(cli.UserError) as error:
        for step in steps:
            steps.log(other=1.0, loss=torch.tensor(bad if step in (1, 3) else 1.0))
    one_line_error(error, "loss is not finite at step 1;")


def test_a_stop_keeps_values_that_have_no_row_yet(tmp_path):
    parts = {"model": torch.nn.Linear(1, 1)}
    steps = loop.Steps(tmp_path, parts, total=5, batch=1)
    with pytest.raises(cli.Interrupted):
        for step in steps:
            steps.log(loss=float(step))
            steps._stop = step == 2
    assert loop.Steps(tmp_path, parts, total=5, batch=1).history == [{"step": 3, "loss": 1.0}]
