"""Faults of machines and people: kills, full disks, two processes at once, files and folders that come and go.

SCENARIOS lists every one with the tests that show how it is answered, here or beside what they are about. The run is a
toy, so that a kill costs milliseconds: it goes through the record, the checkpoint and the loop that all papers share.
"""

import dataclasses
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch
from test_data import toy, toy_tree  # noqa: F401  (a fixture)
from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

from facepapers.common import cli, storage
from facepapers.common.cli import MissingData, UserError
from facepapers.common.data import obtain, sets
from facepapers.common.evidence import environment, figures, jobs, runs, schema
from facepapers.common.tools import report
from facepapers.common.training import checkpoint, loop
from tests.conftest import REPOSITORY, one_line_error

SCENARIOS = {
    "SIGKILL during training": "test_killed_and_started_again_it_ends_in_the_same_bits",
    "SIGKILL while a checkpoint is written": "test_killed_and_started_again_it_ends_in_the_same_bits",
    "SIGKILL while a record is written": "test_killed_and_started_again_it_ends_in_the_same_bits",
    "SIGKILL while a pack is prepared": "test_a_killed_preparation_leaves_nothing_that_counts",
    "SIGKILL during a download": "test_a_killed_download_is_cleared_at_the_next_start",
    "two processes prepare one pack": "test_two_processes_prepare_a_set_one_after_the_other",
    "two processes write one run": "test_a_second_process_is_kept_out_of_a_run",
    "Ctrl-C during training": "test_a_signal_saves_and_the_same_command_ends_in_the_same_bits",
    "Ctrl-C twice": "test_a_second_interrupt_stops_at_once",
    "Ctrl-C elsewhere": "test_a_signal_ends_a_program_with_128_and_its_number",
    "Ctrl-C while a file is written": "test_an_exception_leaves_the_old_file_and_no_other",
    "Ctrl-C while a pack is prepared": "test_interruption_and_a_full_disk_leave_nothing_behind",
    "SIGTERM": "test_a_signal_saves_and_the_same_command_ends_in_the_same_bits",
    "disk full at a checkpoint, predictions, the history, the record": "test_a_full_disk_at_any_write_loses_nothing",
    "disk full at weights": "test_a_full_disk_is_one_line_and_the_old_file_stands",
    "disk full at a pack": "test_full_disk_leaves_the_old_pack",
    "disk full at a figure or a report": "test_a_full_disk_leaves_the_old_report_and_picture",
    "results folder that cannot be written": "test_a_place_that_cannot_be_written_is_told_before_anything_is_read",
    "folder removed during a run": "test_a_folder_that_is_removed_during_a_run_is_one_line",
    "checkpoint missing": "test_without_its_checkpoint_a_run_starts_again",
    "checkpoint damaged": "test_a_changed_byte_of_a_checkpoint_is_refused",
    "checkpoint cut short": "test_a_damaged_checkpoint_is_one_line",
    "checkpoint of other settings": "test_a_checkpoint_of_other_settings_is_refused",
    "clock that goes back": "test_a_clock_that_goes_back_changes_nothing",
    "loss that is not a number": "test_nan_stops_with_the_step_and_records_nothing",
    "data set removed in between": "test_data_that_are_gone_when_a_run_goes_on_are_told",
    "pack that changed": "test_a_pack_that_changed_is_compared_at_its_first_opening",
    "cache that cannot be written": "test_a_data_folder_that_cannot_be_written_is_one_line",
    "reader of the output that leaves": "test_a_reader_that_leaves_is_no_error",
    "output closed": "test_a_program_without_its_streams_still_ends_rightly",
    "no terminal": "test_a_first_line_comes_within_ten_seconds_before_any_step_is_done",
    "locale without UTF-8": "test_a_locale_without_utf8_changes_no_file_and_prints_what_it_can",
    "weights of another network": "test_weights_of_another_architecture_name_the_keys",
    "weights that changed": "test_a_changed_byte_of_recorded_weights_is_refused",
    "damaged record beside good ones": "test_one_damaged_record_is_named",
    "lock that was left": "test_a_lock_file_that_was_left_locks_nothing_and_goes",
    "links in data that lead nowhere": "test_links_of_a_data_set_lead_somewhere_or_are_named",
    "worker killed for lack of memory": "test_a_killed_worker_is_one_line",
    "memory that does not suffice": "test_what_the_machine_lacks_is_one_line",
    "current folder removed": "test_a_current_folder_that_is_gone",
}


def test_every_scenario_has_its_test():
    written = "\n".join(path.read_text() for path in (REPOSITORY / "tests").glob("test_*.py"))
    for scenario, name in SCENARIOS.items():
        assert f"def {name}(" in written, scenario


# ---- A toy run


@dataclasses.dataclass(frozen=True)
class Config:
    preset: str = "demo"
    data: str = "embedded"
    row: str = "toy"
    seed: int = 0
    precision: str = "fp32"
    batch: int = 4
    steps: int = 8


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A checkpoint after each step; of the origin of a record only what costs nothing."""
    monkeypatch.setattr(loop, "SAVE_S", -1.0)
    monkeypatch.setattr(
        runs, "source_state", lambda paper: {"commit": None, "dirty": None, "sha256": "x", "modules": {}}
    )
    monkeypatch.setattr(environment, "cpu_name", lambda: "a processor")


def start(out, at=lambda step: None, steps=Config.steps):
    """Train a line by SGD on random points; `at(step)` happens in each step. Returns the record."""
    cfg = dataclasses.replace(Config(), steps=steps)
    run = runs.Run("toy", "toy-s0", cfg, cfg, out)
    if found := run.finished_record():
        return found
    job = jobs.begin(run, cfg, torch.device("cpu"))
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    count = job.steps({"model": net, "optimizer": optimizer}, cfg.steps, cfg.batch, "points")
    for step in count:
        x = torch.randn(cfg.batch, 3)
        loss = (net(x) - x.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        count.log(loss=loss)
        at(step)
    return run.finish(
        metrics={"weight": float(net.weight.sum())}, predictions={"weight": net.weight.detach().numpy()},
        history=count.history, data={"name": "embedded"}, selection="last", device=torch.device("cpu"),
        seconds=count.seconds, samples=cfg.steps * cfg.batch,
        weights={"file": "model.safetensors",
                 "sha256": checkpoint.save_weights(run.folder / "model.safetensors", net)},
    )  # fmt: skip


def bits(record):
    return record["predictions_sha256"], record["weights"]["sha256"], record["metrics"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "source_state", lambda paper: {"commit": None, "dirty": None, "sha256": "x", "modules": {}})
        return bits(start(tmp_path_factory.mktemp("undisturbed")))


def left_in(out):
    return sorted(path.name for path in (out / "toy" / "toy-s0").iterdir())


WHOLE = ["history.csv", "model.safetensors", "predictions.npz", "run.json"]


def elsewhere(work):
    """Run `work()` in a process of its own; returns (its exit code, minus the signal that ended it)."""
    child = os.fork()
    if child == 0:
        storage._claimed.clear()  # a process that was not forked has claimed nothing
        code = 1
        try:
            work()
            code = 0
        except UserError as error:
            print(error, flush=True)
            code = 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


# ---- Kills


def at_write(monkeypatch, number, what):
    """Let `what` happen at the `number`-th write of a file, when half of it is there. Returns the files in order."""
    real, seen = os.fsync, []

    def fsync(handle):
        seen.append(re.sub(r"\.\d+\.tmp", "", Path(os.readlink(f"/proc/self/fd/{handle}")).name[1:]))
        if len(seen) == number:
            os.truncate(handle, os.fstat(handle).st_size // 2)
            what()
        real(handle)

    monkeypatch.setattr(storage.os, "fsync", fsync)
    return seen


@pytest.mark.parametrize("place", ["step 4", "checkpoint.pt", "predictions.npz", "history.csv", "run.json"])
def test_killed_and_started_again_it_ends_in_the_same_bits(tmp_path, monkeypatch, undisturbed, place):
    with monkeypatch.context() as patch:
        seen = at_write(patch, 0, None)
        start(tmp_path / "whole")
    number = len(seen) - seen[::-1].index(place) if place in seen else 0
    with monkeypatch.context() as patch:
        at_write(patch, number, kill)
        at = (lambda step: step == 4 and kill()) if not number else lambda step: None
        assert elsewhere(lambda: start(tmp_path, at)) == -signal.SIGKILL
    assert not (tmp_path / "toy" / "toy-s0" / "run.json").exists()
    assert bool(list((tmp_path / "toy" / "toy-s0").glob(".*.tmp"))) == bool(number)
    assert bits(start(tmp_path)) == undisturbed
    assert left_in(tmp_path) == WHOLE, "what the killed process left is cleared"


def test_a_temporary_file_of_a_living_process_stays(tmp_path):
    for number in (os.getpid(), os.getppid(), 2**22 + 1):
        (tmp_path / f".x.{number}.tmp").touch()
    (tmp_path / ".of-somebody-else.tmp").touch()
    storage.clear(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3 and not (tmp_path / f".x.{2**22 + 1}.tmp").exists()


def test_a_killed_preparation_leaves_nothing_that_counts(toy, tmp_path, monkeypatch):  # noqa: F811
    with monkeypatch.context() as patch:
        at_write(patch, 1, kill)
        assert elsewhere(lambda: sets.get("toy", str(toy.parent))) == -signal.SIGKILL
    root = tmp_path / "root"
    assert not (root / "prepared" / "toy.npz").exists() and list((root / "prepared").glob(".*.tmp"))
    assert len(sets.get("toy", str(toy.parent))) == 4
    assert sorted(p.name for p in root.rglob("*") if p.is_file()) == ["toy.npz", "toy.verified"]


def test_a_killed_download_is_cleared_at_the_next_start(toy, tmp_path, monkeypatch):  # noqa: F811
    def half(url, known, name, folder, **_):
        Path(folder).mkdir(parents=True)
        (Path(folder) / "tmpabc").write_text("half")
        kill()

    with monkeypatch.context() as patch:
        patch.setattr("pooch.retrieve", half)
        assert elsewhere(lambda: sets.get("toy", "http://127.0.0.1:9")) == -signal.SIGKILL
    left = [path.name for path in (tmp_path / "root").rglob("*") if path.is_file()]
    assert "tmpabc" in left
    sets.get("toy", str(toy.parent))
    assert sorted(p.name for p in (tmp_path / "root").rglob("*") if p.is_file()) == ["toy.npz", "toy.verified"]


# ---- Two at once


def test_two_processes_prepare_a_set_one_after_the_other(toy, tmp_path, monkeypatch, capfd):  # noqa: F811
    begun, prepare = tmp_path / "begun", sets._prepare

    def slowly(*words, **more):
        begun.touch()
        time.sleep(0.3)
        return prepare(*words, **more)

    monkeypatch.setattr(sets, "_prepare", slowly)
    child = os.fork()
    if child == 0:
        try:
            sets.get("toy", str(toy.parent))
        finally:
            os._exit(0)
    while not begun.exists() and not os.waitpid(child, os.WNOHANG)[0]:
        time.sleep(0.01)
    monkeypatch.setattr(sets, "_prepare", lambda *_, **__: pytest.fail("prepared twice"))
    assert len(sets.get("toy", str(toy.parent))) == 4
    os.waitpid(child, 0)
    assert "waiting for another process that prepares toy" in capfd.readouterr().err


def test_a_second_process_is_kept_out_of_a_run(tmp_path, undisturbed, capfd):
    def second(step):
        if step == 3:
            assert elsewhere(lambda: start(tmp_path)) == 2

    assert bits(start(tmp_path, second)) == undisturbed
    one_line_error(capfd.readouterr().out, tmp_path / "toy" / "toy-s0", "another process", "wait")
    shutil.rmtree(tmp_path / "toy")
    assert bits(start(tmp_path)) == undisturbed, "the same process may come back, even to a new folder"


def test_a_lock_file_that_was_left_locks_nothing_and_goes(toy, tmp_path):  # noqa: F811
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / ".toy.lock").write_text("12345")
    assert len(sets.get("toy", str(toy.parent))) == 4
    assert not (tmp_path / "root" / ".toy.lock").exists()


def test_a_set_that_cannot_be_had_leaves_no_folder(toy, tmp_path):  # noqa: F811
    with pytest.raises(MissingData):
        sets.get("toy")
    assert not (tmp_path / "root").exists()


# ---- Full disks, places that cannot be written


def full():
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_at_any_write_loses_nothing(tmp_path, monkeypatch, undisturbed):
    with monkeypatch.context() as patch:
        seen = at_write(patch, 0, None)
        start(tmp_path / "whole")
    assert set(seen) == {"checkpoint.pt", *WHOLE}
    for number in {1, *(seen.index(name) + 1 for name in seen), len(seen)}:
        out = tmp_path / str(number)
        with monkeypatch.context() as patch:
            at_write(patch, number, full)
            with pytest.raises(UserError) as error:
                start(out)
        one_line_error(error, seen[number - 1], "disk is full", "run the same command again")
        assert not (out / "toy" / "toy-s0" / "run.json").exists() and not list(out.rglob("*.tmp"))
        assert bits(start(out)) == undisturbed and left_in(out) == WHOLE


def test_the_end_of_a_long_training_is_kept_until_it_is_recorded(tmp_path, monkeypatch, undisturbed):
    """Where the tests or the record fail, nothing is trained again."""
    with monkeypatch.context() as patch:
        patch.setattr(runs, "write_predictions", lambda *_: full())
        with pytest.raises(OSError, match="No space"):
            start(tmp_path)
    steps = []
    assert bits(start(tmp_path, steps.append)) == undisturbed and not steps


def test_a_full_disk_leaves_the_old_report_and_picture(tmp_path, monkeypatch):
    import matplotlib.pyplot as plt

    picture, text = tmp_path / "a.png", tmp_path / "README.md"
    for path in (picture, text):
        path.write_text("old")
    monkeypatch.setattr(report, "generated", lambda: {text: "new"})
    monkeypatch.setattr(report.claims, "papers", lambda: [])
    for write in (lambda: figures.save(plt.figure(), picture), report.write):
        with monkeypatch.context() as patch:
            at_write(patch, 1, full)
            with pytest.raises(UserError, match="disk is full"):
                write()
    assert picture.read_text() == text.read_text() == "old" and len(list(tmp_path.iterdir())) == 2


def test_a_place_that_cannot_be_written_is_told_before_anything_is_read(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as error:
        start(tmp_path / "file" / "out")
    one_line_error(error, tmp_path / "file", "cannot be written", "another folder")

    def read_only(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(storage.tempfile, "TemporaryFile", read_only)
    monkeypatch.setattr(jobs, "begin", lambda *_: pytest.fail("began"))
    with pytest.raises(UserError) as error:
        start(tmp_path / "new" / "out")
    one_line_error(error, tmp_path / "new" / "out", "Read-only", "another folder")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EIO, errno.EDQUOT])
def test_whatever_the_system_says_of_a_write_is_one_line(tmp_path, monkeypatch, number):
    (tmp_path / "x").write_text("old")

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(storage.os, "replace", refuse)
    with pytest.raises(UserError) as error:
        storage.write_json(tmp_path / "x", 1)
    one_line_error(error, tmp_path / "x", "disk is full" if number == errno.EDQUOT else "cannot be written")
    assert (tmp_path / "x").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_is_removed_during_a_run_is_one_line(tmp_path):
    def remove(step):
        if step == 3:
            shutil.rmtree(tmp_path / "toy")
            (tmp_path / "toy").touch()

    with pytest.raises(UserError) as error:
        start(tmp_path, remove)
    one_line_error(error, "checkpoint.pt", "cannot be written")


@pytest.mark.parametrize("kind", ["file", "read-only"])
def test_a_data_folder_that_cannot_be_written_is_one_line(toy, tmp_path, monkeypatch, kind):  # noqa: F811
    if kind == "file":
        (tmp_path / "root").touch()
    else:

        def read_only(*_, **__):
            raise OSError(errno.EROFS, "Read-only file system", str(tmp_path / "root"))

        monkeypatch.setattr(sets.tempfile, "TemporaryDirectory", read_only)
    with pytest.raises(UserError) as error:
        sets.get("toy", str(toy.parent))
    one_line_error(error, tmp_path / "root", "move the file" if kind == "file" else "DATA_ROOT")


# ---- Checkpoints, weights and records


def interrupted(out):
    """A run that was stopped after half of its steps."""

    def stop(step):
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start(out, stop)
    return out / "toy" / "toy-s0" / "checkpoint.pt"


def test_without_its_checkpoint_a_run_starts_again(tmp_path, undisturbed):
    interrupted(tmp_path).unlink()
    assert bits(start(tmp_path)) == undisturbed


def test_a_changed_byte_of_a_checkpoint_is_refused(tmp_path):
    path = interrupted(tmp_path)
    whole = path.read_bytes()
    weight = torch.load(path, weights_only=True)["parts"]["model"]["weight"].numpy().tobytes()
    at = whole.index(weight)
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(UserError) as error:
        start(tmp_path)
    one_line_error(error, path, "damaged", "delete it to start again")


def test_a_checkpoint_from_before_there_were_hashes_is_taken(tmp_path, undisturbed):
    path = interrupted(tmp_path)
    old = torch.load(path, weights_only=True)
    del old["sha256"]
    torch.save(old, path)
    assert bits(start(tmp_path)) == undisturbed


def test_a_changed_byte_of_recorded_weights_is_refused(tmp_path):
    start(tmp_path)
    path = tmp_path / "toy" / "toy-s0" / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError) as error:
        checkpoint.load_weights(path, torch.nn.Linear(3, 1))
    one_line_error(error, path, "run.json names", "again")
    (path.parent / "run.json").unlink()
    checkpoint.load_weights(path, torch.nn.Linear(3, 1))  # nothing tells


def test_one_damaged_record_is_named(tmp_path):
    start(tmp_path)
    good = tmp_path / "toy" / "toy-s0"
    assert [record["run"] for record in runs.recorded("toy", tmp_path)] == ["toy-s0"]
    shutil.copytree(good, tmp_path / "toy" / "toy-s1")
    with pytest.raises(UserError) as error:
        runs.recorded("toy", tmp_path)
    one_line_error(error, tmp_path / "toy" / "toy-s1" / "run.json", "toy/toy-s0", "another run")
    (tmp_path / "toy" / "toy-s1" / "run.json").write_text('{"schema": 2')
    with pytest.raises(UserError) as error:
        runs.recorded("toy", tmp_path)
    one_line_error(error, tmp_path / "toy" / "toy-s1" / "run.json", "not valid JSON", "delete")
    start(tmp_path)  # a run of its own does not look at its neighbours


def test_a_clock_that_goes_back_changes_nothing(tmp_path, monkeypatch, undisturbed):
    clock = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(runs, "time", types.SimpleNamespace(**{k: getattr(time, k) for k in ("strftime", "gmtime")},
                                                            time=lambda: next(clock)))  # fmt: skip
    path = interrupted(tmp_path)
    os.utime(path, (2**33, 2**33))  # a checkpoint from the future
    record = start(tmp_path)
    assert bits(record) == undisturbed and record["seconds"] >= 0
    schema.check_record(storage.read_json(tmp_path / "toy" / "toy-s0" / "run.json"), path.with_name("run.json"))


# ---- Data


def test_data_that_are_gone_when_a_run_goes_on_are_told(toy, tmp_path, capsys):  # noqa: F811
    sets.get("toy", str(toy.parent))
    path = interrupted(tmp_path / "out")
    shutil.rmtree(tmp_path / "root" / "prepared")

    def again(argv):
        sets.ensure("toy")
        start(tmp_path / "out")

    with pytest.raises(SystemExit) as stop:
        cli.entry(again, [])
    assert stop.value.code == 3
    one_line_error(capsys.readouterr().err, "toy", "make data-toy")
    assert path.exists(), "the checkpoint waits"


def test_links_of_a_data_set_lead_somewhere_or_are_named(toy, tmp_path):  # noqa: F811
    toy_tree(tmp_path / "elsewhere")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "toy").symlink_to(tmp_path / "elsewhere")
    assert len(sets.ensure("toy")) == 4
    shutil.rmtree(tmp_path / "root" / "prepared")
    photo = tmp_path / "elsewhere" / "a" / "a0.png"
    photo.unlink()
    photo.symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(UserError) as error:
        sets.ensure("toy")
    one_line_error(error, "a0.png", "restore it")
    (tmp_path / "root" / "toy").unlink()
    (tmp_path / "root" / "toy").symlink_to(tmp_path / "nowhere")
    with pytest.raises(MissingData):
        sets.ensure("toy")


def test_a_read_error_is_not_called_a_full_disk(toy, tmp_path, monkeypatch):  # noqa: F811
    def broken(*_):
        raise OSError(errno.EIO, "Input/output error", "x.png")

    monkeypatch.setattr(obtain, "unpack", broken)
    with pytest.raises(UserError) as error:
        sets.get("toy", str(toy.parent))
    one_line_error(error, "x.png", "damaged", "restore")


# ---- The machine, its locale and its streams


class Dies(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        kill()


def test_a_killed_worker_is_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.entry(lambda argv: list(torch.utils.data.DataLoader(Dies(), num_workers=1)), [])
    assert stop.value.code == 2
    one_line_error(capsys.readouterr().err.splitlines()[-1], "was ended", "memory", "--workers", "again")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "out of memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"), "--batch"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "--batch"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk is full"),
        (OSError(errno.EMFILE, "Too many open files"), "ulimit"),
        (CppCompileError(["g++", "a.cpp"], "a.cpp:1:10: fatal error: Python.h: No such file\n"), "Python.h: No such"),
        (InvalidCxxCompiler(), "the C++ compiler failed"),
        (CppCompileError(["g++", "a.cpp"], ""), "was stopped; mend it, or leave COMPILE=1 out"),
    ],
)
def test_what_the_machine_lacks_is_one_line(capsys, error, said):
    def fail(argv):
        raise error

    with pytest.raises(SystemExit) as stop:
        cli.entry(fail, [])
    assert stop.value.code == 2
    one_line_error(capsys.readouterr().err, said, "same command again")


def test_an_error_of_ours_keeps_its_traceback():
    def fail(argv):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        cli.entry(fail, [])


def shell(script, **options):
    """A shell's script, where $PY is this interpreter."""
    env = {**os.environ, "PY": sys.executable, "PYTHONPATH": str(REPOSITORY), **options.pop("env", {})}
    return subprocess.run(["bash", "-c", script], capture_output=True, timeout=100, env=env, **options)


PRINTS = "from facepapers.common import cli; cli.entry(lambda argv: print('one line'), [])"


def test_a_program_without_its_streams_still_ends_rightly():
    done = shell(f'"$PY" -c "{PRINTS}" >&-; echo $?; "$PY" -c "{PRINTS}" 2>&- <&-; echo $?')
    assert done.stdout.split(b"\n")[-2] == b"0" and b"Traceback" not in done.stderr
    done = shell(f'set -o pipefail; "$PY" -c "{PRINTS}" | true; echo $?; sleep 0.1')
    assert done.stdout == b"0\n" and done.stderr == b"", "also where all of it fits the pipe"


def test_a_locale_without_utf8_changes_no_file_and_prints_what_it_can(tmp_path):
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code = (
        "from facepapers.common import cli, storage; from facepapers.common.evidence import claims\n"
        f"def main(argv): storage.write_json({str(tmp_path / 'x.json')!r}, claims.read('resup')); "
        "print('M\\u00fcller \\u2014 x')\n"
        "cli.entry(main, [])"
    )
    done = shell(f'"$PY" -c "{code}"', env=plain)
    assert done.returncode == 0 and done.stdout == b"M?ller ? x\n", done.stderr
    from facepapers.common.evidence import claims

    assert storage.read_json(tmp_path / "x.json") == claims.read("resup")


def test_a_current_folder_that_is_gone(tmp_path):
    done = shell(f'mkdir gone && cd gone && rmdir ../gone && "$PY" -c "{PRINTS}"', cwd=tmp_path)
    assert done.returncode == 0 and done.stdout == b"one line\n"
    code = "import os, shutil; from facepapers.common import cli, storage; "
    code += "cli.entry(lambda argv: (shutil.rmtree(os.getcwd()), storage.writable('out')), [])"
    done = shell(f'mkdir gone && cd gone && "$PY" -c "{code}"', cwd=tmp_path)
    assert done.returncode == 2
    one_line_error(done.stderr.decode(), "out", "cannot be written")
