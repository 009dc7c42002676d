"""Records and checkpoints: atomic files, resuming to the same bits, NaN, signals, full disks, changed settings."""

import dataclasses
import errno
import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from facepapers.common import cli, storage
from facepapers.common.evidence import environment, runs
from facepapers.common.training import checkpoint, loop
from facepapers.papers.coarse_to_fine import method, train
from facepapers.papers.coarse_to_fine.config import Config
from tests.conftest import REPOSITORY, TINY, TINY_DRIVER, one_line_error

STEPS = 9
WORDS = [*TINY.split(), "--steps", str(STEPS)]


def start(out, *words):
    """One tiny coarse-to-fine run in this process; returns its record."""
    return train.main([*WORDS, "--out", str(out), *words])


def folder_of(out):
    (path,) = (out / "coarse_to_fine").iterdir()
    return path


def bits(out):
    """The hash of the last weights, and the predictions."""
    path = folder_of(out)
    return storage.sha256(path / "model.safetensors"), runs.read_predictions(path / "predictions.npz")


def same_bits(a, b):
    return a[0] == b[0] and a[1].keys() == b[1].keys() and all(np.array_equal(a[1][k], b[1][k]) for k in a[1])


# Atomic files


class Stop(Exception):
    pass


def test_an_exception_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "x.json"
    storage.write_json(path, {"old": 1})
    with pytest.raises(Stop), storage.atomic(path) as temporary:
        temporary.write_text("half")
        raise Stop
    with pytest.raises(KeyboardInterrupt), storage.atomic(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert json.loads(path.read_text()) == {"old": 1} and list(tmp_path.iterdir()) == [path]


def fail(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def fail_as_safetensors(*_, **__):
    from safetensors import SafetensorError

    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def fail_as_torch(*_, **__):
    raise RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 64 vs 0")


@pytest.mark.parametrize(
    ("place", "failure"),
    [
        ("os.replace", fail),
        ("os.fsync", fail),
        ("torch.save", fail),
        ("torch.save", fail_as_torch),
        ("safetensors.torch.save_file", fail_as_safetensors),
        ("numpy.savez_compressed", fail),
    ],
)
def test_a_full_disk_is_one_line_and_the_old_file_stands(tmp_path, monkeypatch, place, failure):
    """What torch, safetensors and the system were seen to raise on a full file system."""
    import safetensors.torch  # noqa: F401  (so that the name can be replaced)

    model, path = torch.nn.Linear(2, 2), tmp_path / "file"
    write = {
        "safetensors.torch.save_file": lambda: checkpoint.save_weights(path, model),
        "numpy.savez_compressed": lambda: runs.write_predictions(path, {"a": np.zeros(3)}),
    }.get(place, lambda: checkpoint.save_state(path, {"model": model}, step=1))
    path.write_text("old")
    monkeypatch.setattr(place, failure)
    with pytest.raises(cli.UserError) as error:
        write()
    one_line_error(error, path, "disk is full", "run the same command again")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_no_json_holds_nan(tmp_path):
    with pytest.raises(ValueError, match=r"not JSON compliant|Out of range"):
        storage.write_json(tmp_path / "x.json", {"a": float("nan")})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00"])
def test_damaged_json_is_one_line(tmp_path, content):
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(cli.UserError) as error:
        storage.read_json(path)
    one_line_error(error, path, "byte 0 is no UTF-8" if content.startswith(b"\xff") else "not valid JSON")


def test_damaged_predictions_and_weights_are_one_line(tmp_path):
    runs.write_predictions(tmp_path / "p.npz", {"error_px": np.random.rand(50, 29)})
    checkpoint.save_weights(tmp_path / "w.safetensors", torch.nn.Linear(50, 50))
    for name, read in (("p.npz", runs.read_predictions), ("w.safetensors", checkpoint.read_weights)):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(cli.UserError) as error:
            read(path)
        one_line_error(error, path)
        with pytest.raises(cli.UserError) as error:
            read(tmp_path / "absent")
        one_line_error(error, "absent")


def test_equal_weights_give_equal_files(tmp_path):
    """safetensors writes several metadata entries in random order; the hash in a record must not depend on it."""
    model, about = torch.nn.Linear(3, 3), dict(row="cft", points=29, crop=50, margin=1.25, config="x")
    assert len({checkpoint.save_weights(tmp_path / f"{i}", model, **about) for i in range(5)}) == 1
    assert checkpoint.read_weights(tmp_path / "0")[1] == {k: str(v) for k, v in about.items()}


def test_weights_of_another_architecture_name_the_keys(tmp_path):
    path = tmp_path / "w.safetensors"
    checkpoint.save_weights(path, torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2)), row="cft")
    with pytest.raises(cli.UserError) as error:
        checkpoint.load_weights(
            path, torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2))
        )
    said = (
        "2 keys missing (2.weight, 2.bias)",
        "2 keys unknown (1.bias, 1.weight)",
        "0.weight (2, 3) instead of (2, 4)",
    )
    one_line_error(error, path, "another architecture", *said)
    same = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2))
    assert checkpoint.load_weights(path, same) == {"row": "cft"}


# Resuming


def test_generators_resume():
    state = checkpoint.rng_state()
    draw = lambda: (torch.rand(2).tolist(), np.random.rand(), __import__("random").random())
    first = draw()
    assert draw() != first
    checkpoint.set_rng_state(state)
    assert draw() == first


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Weights hash, predictions and record of the uninterrupted tiny run."""
    from facepapers.papers.coarse_to_fine import data
    from tests.conftest import TINY_FACES, tiny_faces

    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "EMBEDDED", TINY_FACES)
        patch.setattr(train, "MEAN_FACES", 16)
        faces = tiny_faces()
        patch.setattr(data, "load", lambda name: faces)
        record = start(out)
    return (*bits(out), record, out)


def interrupt_at(monkeypatch, step):
    """Ask for a stop while `step` is running, as the signal handler does."""
    log = loop.Steps.log

    def stopping(self, **values):
        self._stop = self._stop or self.step == step
        log(self, **values)

    monkeypatch.setattr(loop.Steps, "log", stopping)
    return lambda: monkeypatch.setattr(loop.Steps, "log", log)


@pytest.mark.parametrize("step", [4, STEPS - 1], ids=lambda s: f"step{s}")
def test_an_interrupted_run_ends_in_the_same_bits(tiny, tmp_path, monkeypatch, whole, step):
    """Before further stage changes with their optimiser resets, and after the very last step."""
    undo = interrupt_at(monkeypatch, step)
    with pytest.raises(cli.Interrupted) as note:
        start(tmp_path)
    one_line_error(note, f"saved at step {step + 1} of {STEPS}", "continues")
    assert [p.name for p in folder_of(tmp_path).iterdir()] == ["checkpoint.pt"]
    undo()
    torch.rand(3)  # a new process has other generator states
    record = start(tmp_path)
    assert same_bits(bits(tmp_path), whole[:2])
    assert record["metrics"] == whole[2]["metrics"] and record["best_validation"] == whole[2]["best_validation"]
    assert not (folder_of(tmp_path) / "checkpoint.pt").exists()


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name)
def test_a_signal_saves_and_the_same_command_ends_in_the_same_bits(tmp_path, whole, kind):
    """In another process. Both signals arrive in the middle of step 4, the second one in a process that resumed."""
    code = (
        TINY_DRIVER
        + f"""
import os
log = loop.Steps.log
def kill_at_step_4(self, **values):
    log(self, **values)
    if self.step == 4: os.kill(os.getpid(), {int(kind)})
loop.Steps.log = kill_at_step_4
cli.entry(train.main)
"""
    )
    words = [sys.executable, "-c", code, *WORDS, "--out", str(tmp_path)]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=200)
    assert done.returncode == 128 + kind, done.stderr
    assert f"interrupted: saved at step 5 of {STEPS}" in done.stderr and "Traceback" not in done.stderr
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert f"at step 5 of {STEPS}" in done.stderr
    assert same_bits(bits(tmp_path), whole[:2])


def test_same_seed_same_bits_other_seed_other_bits(tiny, tmp_path, whole):
    start(tmp_path / "again")
    assert same_bits(bits(tmp_path / "again"), whole[:2])
    start(tmp_path / "other", "--seed", "1")
    assert bits(tmp_path / "other")[0] != whole[0]


def test_a_finished_run_is_not_repeated(tiny, whole, monkeypatch, capsys):
    monkeypatch.setattr(train, "fit", fail)
    assert start(whole[3])["predictions_sha256"] == whole[2]["predictions_sha256"]
    assert "already recorded" in capsys.readouterr().err


def test_a_folder_of_another_configuration_is_refused(tiny, tmp_path, whole):
    path = folder_of(tmp_path_copy(whole[3], tmp_path)) / "run.json"
    record = json.loads(path.read_text())
    record["config"]["lr"] = 0.5
    path.write_text(json.dumps(record))
    with pytest.raises(cli.UserError) as error:
        start(tmp_path)
    one_line_error(error, path, "another configuration (lr)", "delete")


def tmp_path_copy(source, target):
    import shutil

    return shutil.copytree(source, target, dirs_exist_ok=True)


def test_a_checkpoint_of_other_settings_is_refused(tiny, tmp_path, monkeypatch):
    undo = interrupt_at(monkeypatch, 1)
    with pytest.raises(cli.Interrupted):
        start(tmp_path)
    undo()
    monkeypatch.setattr(runs, "fingerprint", lambda config: "another")  # the preset changed since
    name = folder_of(tmp_path).name
    monkeypatch.setattr(Config, "run_name", property(lambda self: name))
    with pytest.raises(cli.UserError) as error:
        start(tmp_path)
    one_line_error(error, "checkpoint.pt", "other settings", "delete it")


@pytest.mark.parametrize("keep", [0, 100, -100])
def test_a_damaged_checkpoint_is_one_line(tmp_path, keep):
    parts = {"model": torch.nn.Linear(8, 8)}
    path = tmp_path / "checkpoint.pt"
    checkpoint.save_state(path, parts, step=3)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(cli.UserError) as error:
        loop.Steps(tmp_path, parts, 5, 1)
    one_line_error(error, path, "cannot resume", "delete it to start again")


def test_a_checkpoint_that_does_not_fit_is_one_line(tmp_path):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save_state(path, {"model": torch.nn.Linear(8, 8)}, step=3)
    for parts in ({"model": torch.nn.Linear(9, 8)}, {"other": torch.nn.Linear(8, 8)}):
        with pytest.raises(cli.UserError) as error:
            checkpoint.load_state(path, parts)
        one_line_error(error, path, "cannot resume")


# The loop


def test_steps_collects_means_and_notes(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 2)
    steps = loop.Steps(tmp_path, {}, total=5, batch=2)
    for step in steps:
        steps.log(loss=torch.tensor(float(step)))
        if step == 3:
            steps.note(error=7)
    assert steps.history == [
        {"step": 2, "loss": 0.5},
        {"step": 4, "loss": 2.5, "error": 7.0},
        {"step": 5, "loss": 4.0},
    ]
    assert steps.seconds > 0


def test_a_save_after_the_last_step_adds_no_time(tmp_path):
    steps = loop.Steps(tmp_path, {}, total=2, batch=1)
    for _ in steps:
        pass
    counted = steps.seconds
    steps.save(2)
    assert steps.seconds == counted == checkpoint.read_scalars(steps.path)["seconds"] > 0


def test_handlers_are_given_back(tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    for _ in loop.Steps(tmp_path, {}, total=2, batch=1):
        assert signal.getsignal(signal.SIGINT) is not before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_second_interrupt_stops_at_once(tmp_path):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores Ctrl-C
    try:
        with pytest.raises(KeyboardInterrupt):
            for _ in loop.Steps(tmp_path, {}, total=2, batch=1):
                signal.raise_signal(signal.SIGINT)  # os.kill's may reach another thread, and two become one
                signal.raise_signal(signal.SIGINT)
                raise AssertionError("still running")
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_checkpoint_is_written_now_and_then(tmp_path, monkeypatch):
    model = torch.nn.Linear(2, 2)
    monkeypatch.setattr(loop, "SAVE_S", -1)
    for _ in loop.Steps(tmp_path, {"model": model}, total=3, batch=1):
        pass
    steps = loop.Steps(tmp_path, {"model": model}, total=5, batch=1)
    assert steps.step == 2 and list(steps) == [3, 4]


def test_parts_of_each_process_are_saved_by_steps_and_belong_to_the_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_EVERY", 2)
    monkeypatch.setattr(loop, "SAVE_S", -1)  # by time every process would save at another step
    own = torch.nn.Linear(2, 2)

    def steps():
        return loop.Steps(tmp_path, {"model": torch.nn.Linear(2, 2)}, total=5, batch=1, own={"head": own})

    for step in steps():
        torch.nn.init.constant_(own.weight, step)
    assert list(steps()) == [4] and own.weight.eq(3).all()
    shard = tmp_path / "shard0of1.pt"
    checkpoint.save_state(shard, {"head": own}, step=2)
    for _ in range(2):
        with pytest.raises(cli.UserError) as error:
            steps()
        one_line_error(error, shard, "as many processes")
        shard.unlink(missing_ok=True)


def test_nan_stops_with_the_step_and_records_nothing(tiny, tmp_path, monkeypatch):
    real = method.coarse_to_fine_loss
    calls = []

    def broken(*args):
        calls.append(1)
        return real(*args) * (float("nan") if len(calls) == 5 else 1)

    monkeypatch.setattr(method, "coarse_to_fine_loss", broken)
    with pytest.raises(cli.UserError) as error:
        start(tmp_path)
    one_line_error(error, "loss is not finite at step 4", "learning rate")
    assert not list(tmp_path.rglob("run.json")) and not list(tmp_path.rglob("*.safetensors"))


def test_nan_names_the_samples_when_asked(tmp_path):
    steps = loop.Steps(tmp_path, {}, total=3, batch=1, describe=lambda step: f"faces {step}, {step + 1}")
    with pytest.raises(cli.UserError) as error:
        for step in steps:
            steps.log(loss=torch.tensor(1.0 if step != 1 else float("inf")))
    one_line_error(error, "at step 1", "faces 1, 2")


def test_best_keeps_the_lowest_and_never_nan():
    model = torch.nn.Linear(1, 1)
    best = loop.Best(model)
    for step, value in enumerate([float("nan"), 3.0, 2.0, float("nan"), 2.5]):
        torch.nn.init.constant_(model.weight, step)
        best.offer(value, step)
    best.restore()
    assert (best.value, best.step, model.weight.item()) == (2.0, 2, 2.0)
    again = loop.Best(model, lower_is_better=False)
    again.load_state_dict(best.state_dict())
    again.offer(9.0, 7)
    assert again.value == 9.0


# Records


def test_a_record_names_the_sources_that_it_began_from(tmp_path, monkeypatch):
    now = ["a"]
    monkeypatch.setattr(environment, "git", lambda *words: now[0])
    monkeypatch.setattr(environment, "imported_modules", lambda paper: {"facepapers.common.cli": now[0]})
    run = runs.Run("coarse_to_fine", "x", Config(), Config(), tmp_path)
    began, now[0] = run.source, "b"  # a pull while it trains
    found = run.finish(
        metrics={}, predictions={"error": np.zeros(1)}, history=[{"step": 0}], data={}, selection="last",
        device=torch.device("cpu"), seconds=1.0, samples=1,
    )["source"]  # fmt: skip
    assert found["commit"] == began["commit"] == found["modules"]["facepapers.common.cli"] == "a"


def test_a_record_says_everything(whole):
    record = json.loads((folder_of(whole[3]) / "run.json").read_text())
    for key in ("config", "overrides", "data", "selection", "metrics", "predictions_sha256", "weights", "seconds",
                "samples_per_s", "peak_memory_mib", "started", "source", "environment"):  # fmt: skip
        assert record[key] not in (None, {}, ""), key
    assert record["data"].keys() >= {"name", "fingerprint", "test_faces", "boxes"}
    assert record["source"].keys() == {"commit", "dirty", "sha256", "modules"}
    wanted = {"python", "torch", "torchvision", "numpy", "device", "device_type", "threads", "processes", "platform"}
    assert record["environment"]["gflops"] > 0
    assert record["environment"].keys() >= wanted
    assert record["overrides"].keys() >= {"crop", "batch", "steps"} and "seed" not in record["overrides"]
    assert record["data"]["test_faces"] == 12 and record["selection"] == "last"
    assert record["weights"]["sha256"] == whole[0]
    history = (folder_of(whole[3]) / "history.csv").read_text().splitlines()
    assert "loss" in history[0] and "val_nme_pct" in history[0] and history[-1].startswith(f"{STEPS},")


def test_with_no_face_held_out_all_of_them_train_and_nothing_is_chosen(tiny, tmp_path, capsys):
    record = start(tmp_path, "--optimizer", "adamw", "--val-share", "0")
    assert "40 training, 0 validation, 12 test faces" in capsys.readouterr().err
    assert record["best_validation"] is None and not any("validation_chosen" in name for name in record["metrics"])
    history = (folder_of(tmp_path) / "history.csv").read_text()
    assert "train_nme_pct" in history and "val_nme_pct" not in history


def test_the_predictions_give_the_metrics_again(whole):
    from facepapers.papers.coarse_to_fine import evaluate

    assert evaluate.measure(whole[1]) == pytest.approx(whole[2]["metrics"])


def test_the_weights_on_the_same_boxes_give_the_metrics_again(tiny, tmp_path, capsys):
    from facepapers.papers.coarse_to_fine import evaluate

    record = start(tmp_path)  # boxes of the demo; those of `short` are seen closer
    capsys.readouterr()
    evaluate.main(
        ["--weights", str(folder_of(tmp_path) / "model.safetensors"), "--data", "embedded", "--device", "cpu"]
    )
    said = capsys.readouterr().out
    for name in ("nme_interpupil_pct", "nme_interpupil_mirrored_pct", "fr10_interpupil_pct"):
        (line,) = (line for line in said.splitlines() if line.strip().startswith(evaluate.METRICS[name].label))
        assert line.endswith(f" {record['metrics'][name]:8.3f}")


def test_a_changed_setting_gets_a_folder_of_its_own(whole):
    _, cfg = train.parse([*WORDS[2:], "--steps", "10"])
    assert cfg.run_name != folder_of(whole[3]).name and cfg.run_name.startswith("embedded-demo-cft-s0-")
    _, plain = train.parse(["--preset", "demo", "--seed", "5"])
    assert plain.run_name == "embedded-demo-cft-s5"
    assert runs.fingerprint(plain) != runs.fingerprint(dataclasses.replace(plain, lr=plain.lr * 2))


def test_a_record_names_what_its_run_imported(whole):
    modules = json.loads((folder_of(whole[3]) / "run.json").read_text())["source"]["modules"]
    assert {"facepapers.common.training.loop", "facepapers.papers.coarse_to_fine.method"} <= modules.keys()
    assert not [name for name in modules if name.startswith("facepapers.papers.") and "coarse_to_fine" not in name]
    method_file = REPOSITORY / "papers" / "coarse_to_fine" / "method.py"
    assert modules["facepapers.papers.coarse_to_fine.method"] == storage.sha256(method_file)


def test_a_record_that_lacks_something_is_named(tmp_path):
    path = tmp_path / "p" / "r" / "run.json"
    storage.write_json(path, {"config": {}, "metrics": {}})
    with pytest.raises(cli.UserError) as error:
        runs.recorded("p", tmp_path)
    one_line_error(error, path, "lacks data", "predictions_sha256")


def test_the_running_average_forgets_its_start_and_copies_counters():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2, bias=False), torch.nn.BatchNorm1d(2))
    average, expected = loop.averaged(model, 0.5), None
    for count in range(4):
        with torch.no_grad():
            model[0].weight.fill_(float(count))
            model[1].num_batches_tracked.fill_(10 + count)
        average.update_parameters(model)
        memory = min(0.5, (1 + count) / (10 + count))  # the first update copies
        expected = float(count) if count == 0 else memory * expected + (1 - memory) * count
        torch.testing.assert_close(average.module[0].weight, torch.full((2, 3), expected))
        assert average.module[1].num_batches_tracked == 10 + count
