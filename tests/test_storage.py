"""Files written whole or not at all, where they lie, and the record of a run that is written last."""

import dataclasses
import errno
import hashlib
import json
import os
import runpy
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from facepapers.common import cli, paths, storage
from facepapers.common.evidence import jobs, runs
from tests.conftest import Harmful, one_line_error


@dataclasses.dataclass(frozen=True)
class Settings:
    data: str = "embedded"
    preset: str = "demo"
    row: str = "ours"
    seed: int = 0
    lr: float = 0.1
    batch: int = 4
    precision: str = "fp32"


# ---- Files


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "new" / "deep" / "file"
    for text in ("old", "new"):
        with storage.atomic(path) as temporary:
            temporary.write_text(text)
            assert temporary != path and temporary.parent == path.parent and temporary.name.startswith(".")
            assert str(os.getpid()) in temporary.name, "two processes do not meet in one temporary file"
            assert not path.exists() or path.read_text() == "old"
        assert path.read_text() == text and list(path.parent.iterdir()) == [path]


def test_content_is_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    """Else a power cut leaves an empty file under the name of a good one."""
    said = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (said.append("content"), sync(handle)))
    monkeypatch.setattr(os, "replace", lambda *names: (said.append("name"), replace(*names)))
    storage.write_json(tmp_path / "x.json", [1])
    assert said == ["content", "name"]


@pytest.mark.parametrize("error", [ValueError("x"), RuntimeError("a shape"), OSError(errno.ECHILD, "No child")])
def test_other_errors_of_a_write_stay_what_they_are(tmp_path, error):
    with (
        pytest.raises(type(error), match=str(error).split("]")[-1].strip()),
        storage.atomic(tmp_path / "f") as temporary,
    ):
        temporary.write_text("half")
        raise error
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_known_by_its_number(tmp_path):
    """Its words are the system's language."""
    with pytest.raises(cli.UserError) as error, storage.atomic(tmp_path / "f"):
        raise OSError(errno.ENOSPC, "Kein Platz mehr")
    one_line_error(error, tmp_path / "f", "disk is full")


def test_hashes_are_sha256_of_the_whole_file(tmp_path):
    content = np.random.default_rng(0).bytes(100_000)
    for some in (content, content[:-1], b""):
        (tmp_path / "f").write_bytes(some)
        assert storage.sha256(tmp_path / "f") == hashlib.sha256(some).hexdigest()


def test_a_folder_that_takes_no_file_is_found(tmp_path, monkeypatch):
    def refuse(dir=None):
        raise PermissionError(errno.EACCES, "Permission denied")

    storage.writable(tmp_path / "new" / "deep")
    assert (tmp_path / "new" / "deep").is_dir() and not list((tmp_path / "new" / "deep").iterdir())
    monkeypatch.setattr(storage.tempfile, "TemporaryFile", refuse)  # root may write into folders of any mode
    with pytest.raises(cli.UserError) as error:
        storage.writable(tmp_path)
    one_line_error(error, tmp_path, "cannot be written", "another folder")


def test_a_users_runs_lie_apart_from_the_records():
    assert paths.ROOT / "results" == paths.RECORDED and paths.RECORDED / "local" == paths.LOCAL
    ignored = (paths.ROOT / ".gitignore").read_text().splitlines()
    assert f"{paths.LOCAL.relative_to(paths.ROOT)}/" in ignored
    assert runs.Run("p", "r", Settings(), Settings()).folder == paths.LOCAL / "p" / "r"


@pytest.mark.parametrize("checkout", [True, False])
def test_an_installed_package_writes_where_its_user_is(tmp_path, monkeypatch, checkout):
    """Of a checkout the Makefile tells."""
    place, here = tmp_path / "place", tmp_path / "here"
    for folder in (place / "common", here):
        folder.mkdir(parents=True)
    shutil.copy(paths.__file__, place / "common" / "paths.py")
    if checkout:
        (place / "Makefile").touch()
    monkeypatch.chdir(here)
    found = runpy.run_path(str(place / "common" / "paths.py"))
    assert found["INSTALLED"] is not checkout and found["ROOT"] == place
    assert found["LOCAL"] == (place if checkout else here) / "results" / "local"


def test_the_data_folder_can_be_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    assert paths.data_root() == tmp_path.resolve()
    monkeypatch.setenv("DATA_ROOT", "")
    assert paths.data_root() == paths.DATA.resolve() == Path(paths.WORK, "data").resolve()


# ---- A run's record


def finished(run, **words):
    given = dict(
        metrics={"error": np.float32(0.5)}, predictions={"error": np.arange(3.0)},
        history=[{"step": 10, "loss": 1.23456789}], data={"name": "embedded"}, selection="last",
        device=torch.device("cpu"), seconds=4.0, samples=1000,
    )  # fmt: skip
    return run.finish(**given | words)


def test_a_record_holds_what_was_run(tmp_path):
    run = runs.Run("p", "r", Settings(seed=2, lr=0.5), Settings(), tmp_path)
    run.folder.mkdir(parents=True)
    (run.folder / "checkpoint.pt").touch()
    record = finished(run, best={"step": 7})
    assert record == storage.read_json(run.folder / "run.json")
    assert (record["paper"], record["run"], record["selection"], record["best"]) == ("p", "r", "last", {"step": 7})
    assert record["config"] == dataclasses.asdict(Settings(seed=2, lr=0.5))
    assert record["overrides"] == {"seed": 2, "lr": 0.5}
    assert (record["seconds"], record["samples_per_s"], record["metrics"]) == (4.0, 250.0, {"error": 0.5})
    assert record["predictions_sha256"] == storage.sha256(run.folder / "predictions.npz")
    np.testing.assert_array_equal(runs.read_predictions(run.folder / "predictions.npz")["error"], np.arange(3.0))
    assert runs.read_history(run.folder)["loss"].item() == pytest.approx(1.23456789, rel=1e-5)
    assert sorted(p.name for p in run.folder.iterdir()) == ["history.csv", "predictions.npz", "run.json"]
    assert run.finished() and run.finished_record() == record


@pytest.mark.parametrize("part", ["write_predictions", "write_history"])
def test_a_folder_with_a_record_is_complete(tmp_path, monkeypatch, part):
    run = runs.Run("p", "r", Settings(), Settings(), tmp_path)

    def stop(*words):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, part, stop)
    with pytest.raises(KeyboardInterrupt):
        finished(run)
    assert not (run.folder / "run.json").exists() and not run.finished() and run.finished_record() is None


@pytest.mark.parametrize("change", [
    lambda config: config.update(lr=0.2), lambda config: config.update(seed=1), lambda config: config.pop("batch"),
    lambda config: config.update(another=1),
], ids=["value", "seed", "setting of today", "setting of then"])  # fmt: skip
def test_a_record_of_other_settings_does_not_count(tmp_path, change):
    run = runs.Run("p", "r", Settings(), Settings(), tmp_path)
    finished(run)
    record = json.loads((run.folder / "run.json").read_text())
    record["config"]["precision"] = "auto"  # how it is said has changed
    storage.write_json(run.folder / "run.json", record)
    assert run.finished()
    change(record["config"])
    storage.write_json(run.folder / "run.json", record)
    with pytest.raises(cli.UserError) as error:
        run.finished()
    one_line_error(error, run.folder / "run.json", "another configuration")


def test_names_and_fingerprints_change_with_every_setting():
    names = {runs.run_name(Settings(), Settings()): Settings()}
    for field in dataclasses.fields(Settings):
        other = dataclasses.replace(Settings(), **{field.name: "bf16" if isinstance(field.default, str) else 7})
        names[runs.run_name(other, Settings())] = other
    assert len(names) == len(dataclasses.fields(Settings)) + 1
    assert len({runs.fingerprint(found) for found in names.values()}) == len(names)
    assert {"embedded-demo-ours-s0", "embedded-demo-ours-s7", "embedded-demo-ours-s0-bf16"} <= names.keys()


def test_no_code_is_run_from_predictions(tmp_path):
    np.savez(tmp_path / "p.npz", a=np.array([Harmful(tmp_path / "written")], dtype=object))
    with pytest.raises(cli.UserError) as error:
        runs.read_predictions(tmp_path / "p.npz")
    one_line_error(error, "p.npz", "damaged")
    assert not (tmp_path / "written").exists()


def test_a_checkpoint_belongs_to_settings_and_not_to_a_name(tmp_path, monkeypatch):
    """The precision that is computed in is among them: "auto" may mean another one tomorrow."""
    from facepapers.common.training import precision

    asked = Settings(precision="auto")
    for native, used in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(precision, "native", lambda device, native=native: native)
        run = runs.Run("p", "r", asked, Settings(), tmp_path / used)
        job = jobs.begin(run, asked, torch.device("cpu"))
        assert (job.cfg.precision, run.precision, job.asked.precision) == (used, used, "auto")
        assert job.share == slice(0, 4) and run.folder.is_dir()
        steps = job.steps({"model": torch.nn.Linear(1, 1)}, 3, 4, "faces")
        assert steps.path == run.folder / "checkpoint.pt" and (steps.origin.label, steps.origin.precision) == (
            "r",
            used,
        )
        assert steps.origin.identity == runs.fingerprint(dataclasses.replace(asked, precision=used))
    other = SimpleNamespace(**{**vars(job), "cfg": dataclasses.replace(job.cfg, lr=9.0)})
    assert jobs.Job.steps(other, {}, 3, 4, "faces").origin.identity != steps.origin.identity


def test_a_part_marked_as_a_folder_is_damage(tmp_path):
    """torch.load takes the word of such a mark and leaves the tensor's memory as it was."""
    path = tmp_path / "w.pt"
    for attributes in (0, storage.FOLDER):
        with zipfile.ZipFile(path, "w") as archive:
            info = zipfile.ZipInfo("w/data/0")
            info.external_attr = attributes
            archive.writestr(info, b"content")
            archive.writestr("w/data/", b"")
        if not attributes:
            storage.check_zip(path, "fetch it again")
    with pytest.raises(cli.UserError) as error:
        storage.check_zip(path, "fetch it again")
    one_line_error(error, path, "damaged", "w/data/0", "marked as a folder", "fetch it again")
