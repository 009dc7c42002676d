"""Export of released models: ONNX in onnxruntime and the torch.export program give what torch gives, pixels in."""

import io
import json
from importlib import import_module
from typing import NamedTuple

import pytest
import torch

from facepapers.common.cli import UserError
from facepapers.common.tools import bench, export
from facepapers.common.training import released
from tests.conftest import REPOSITORY, one_line_error, python

RELEASED = [(folder.parent.parent.name, folder.name) for folder in released.folders()]


def needed():
    pytest.importorskip("onnxscript", reason="ONNX files are made with onnxscript: pip install 'facepapers[export]'")
    return pytest.importorskip("onnxruntime", reason="ONNX files are run in onnxruntime")


class Tiny(torch.nn.Module):
    """A model with one output, or another one each time, in the released ones' form."""

    input_px, expects, classes = 8, "anything", ("a", "b")

    def __init__(self, apart=0.0):
        super().__init__()
        self.layer, self.apart = torch.nn.Linear(3, 2), apart

    def forward(self, faces):
        return {"probabilities": self.layer(faces.float().mean((2, 3)) / 255).softmax(-1) + self.apart}


class Told(NamedTuple):
    probabilities: torch.Tensor


class TinyTold(Tiny):
    """A Tiny that names its output as most of the released models do."""

    def forward(self, faces):
        return Told(**super().forward(faces))


@pytest.fixture
def one_model(monkeypatch):
    """The released models are one, a Tiny."""
    from facepapers.papers.arcface import released as module

    model = Tiny()
    monkeypatch.setattr(module, "load", lambda name: model)
    monkeypatch.setattr(released, "folders", lambda paper="*": [released.folder_of("arcface", "embedding")])
    return model


def test_both_files_are_written_with_what_they_expect(one_model, tmp_path, capsys):
    onnxruntime = needed()
    export.main(["arcface", "--out", str(tmp_path)])
    assert "opset 20, largest difference from torch" in capsys.readouterr().out
    running = onnxruntime.InferenceSession(tmp_path / "embedding.onnx")
    (given,), (made,) = running.get_inputs(), running.get_outputs()
    assert given.type == "tensor(uint8)" and given.shape[1:] == [3, 8, 8] and isinstance(given.shape[0], str)
    assert made.name == "probabilities"
    said = running.get_modelmeta().custom_metadata_map
    assert said["expects"] == "anything" and json.loads(said["classes"]) == ["a", "b"] and "research" in said["terms"]
    program = torch.export.load(tmp_path / "embedding.pt2").module()
    for count in (1, 5):
        faces = export.pixels_for(one_model, count)
        torch.testing.assert_close(program(faces), export.outputs(one_model, faces))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["embedding.onnx", "embedding.pt2"]


def test_a_program_is_read_without_the_class_of_its_outputs():
    model = TinyTold()
    program = torch.export.load(io.BytesIO(export.as_bytes(export.exported(model)))).module()
    faces = export.pixels_for(model, 3)
    for given in (faces, faces.contiguous(memory_format=torch.channels_last), faces.flip(3).flip(3)[:1]):
        found = program(given)
        assert list(found) == ["probabilities"]
        torch.testing.assert_close(found["probabilities"], model(given).probabilities)


def test_a_file_that_differs_is_not_kept(one_model, tmp_path, monkeypatch):
    needed()
    real = export.outputs
    monkeypatch.setattr(export, "outputs", lambda m, faces: {k: v + 1e-3 for k, v in real(m, faces).items()})
    with pytest.raises(UserError) as error:
        export.main(["--out", str(tmp_path)])
    one_line_error(error, "differ by 0.001", "0.0001", ".pt2")
    assert not list(tmp_path.glob("*.onnx"))


def test_an_unknown_name_and_a_paper_without_models_are_one_line(one_model):
    with pytest.raises(UserError) as error:
        export.chosen(["landmarks69"])
    one_line_error(error, "landmarks69", "landmarks68", "arcface")
    with pytest.raises(UserError) as error:
        export.chosen(["resup"])
    one_line_error(error, "resup", "nothing is released yet")
    with pytest.raises(UserError) as error:
        export.chosen(["embedding", "landmarks68_cft"])
    one_line_error(error, "landmarks68_cft", "nothing is released yet")
    assert export.chosen(["embedding"]) == export.chosen(["arcface"]) == export.chosen([]) == [("arcface", "embedding")]


def test_the_missing_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError) as error:
        export.main(["--out", str(tmp_path)])
    one_line_error(error, "onnx, onnxscript: not installed", "facepapers[export]")
    assert list(export.comparisons("arcface")) == []


def test_onnxruntime_is_timed_beside_torch(one_model):
    needed()
    found = list(export.comparisons("arcface"))
    assert [what for what, *_ in found] == ["embedding, batch 1", "embedding, batch 32"]
    for (_, name, run, other, torch_run), count in zip(found, (1, 32), strict=True):
        assert (name, other) == ("onnxruntime", "torch")
        torch.testing.assert_close(torch.from_numpy(run()[0]), torch_run()["probabilities"])
        assert len(run()[0]) == count
    assert bench.export is export


@pytest.mark.parametrize(("paper", "name"), RELEASED)
def test_released_models_are_the_same_in_onnxruntime(paper, name, tmp_path):
    needed()
    model = import_module(f"facepapers.papers.{paper}.released").load(name)
    path = tmp_path / "model.onnx"
    path.write_bytes(export.to_onnx(model, export.exported(model), {}))
    assert export.difference(model, path, count=3) <= 1e-4
    found = export.outputs(model, export.pixels_for(model, 3))
    assert all(value.isfinite().all() and float(value.std(0).max()) > 0 for value in found.values())


@pytest.mark.parametrize(("paper", "name"), RELEASED)
def test_saved_programs_of_released_models_are_the_same_in_any_memory_order(paper, name):
    model = import_module(f"facepapers.papers.{paper}.released").load(name)
    program = torch.export.load(io.BytesIO(export.as_bytes(export.exported(model)))).module()
    faces = export.pixels_for(model, 3)
    for given in (faces, faces.contiguous(memory_format=torch.channels_last), faces[:1]):
        torch.testing.assert_close(program(given), export.outputs(model, given), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not RELEASED, reason="nothing is released yet")
def test_the_hub_loads_every_released_model_from_another_folder(tmp_path):
    code = f"""
import sys, torch
for name in sys.argv[1:]:
    model = torch.hub.load({str(REPOSITORY)!r}, name, source="local")
    found = model(model.preprocess(torch.randint(256, (2, 3, 130, 130), dtype=torch.uint8)))
    print(name, *(found if isinstance(found, dict) else found._fields))
"""
    done = python("-c", code, *(name for _, name in RELEASED), cwd=tmp_path)
    assert [line.split()[0] for line in done.stdout.splitlines()] == [name for _, name in RELEASED], done.stderr
