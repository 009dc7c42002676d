"""Released models as ONNX files and torch.export programs: `python -m facepapers.common.tools.export [NAME ...]`.

Writes `<name>.onnx` (opset 20, any number of faces) and `<name>.pt2`, in float32. Both take uint8 faces (B, 3, S, S):
what the network does to pixels, mirror images and other views included, is in the graph; the model's card says which
crop it expects. A program returns a dict, name -> tensor. Where onnxruntime is installed, each ONNX file is compared
with torch on random pixels before it is kept.
"""

import io
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from facepapers.common import cli, paths, storage
from facepapers.common.cli import UserError
from facepapers.common.evidence import claims
from facepapers.common.tools import weights
from facepapers.common.training import released

OPSET = 20  # the first with uint8 in everything that the graphs do, and bilinear GridSample under its present name
APART = 1e-4  # largest difference between onnxruntime and torch, in float32
BATCHES = (1, 32)  # of the benchmark


@dataclass(frozen=True)
class Command:
    """Export released models."""

    names: tuple[str, ...]  # of models or of papers; without any every released model
    out: Path = Path("build/export")  # folder of what is written


def main(argv: Sequence[str]) -> None:
    """Write both files of each model and say how far they are from torch."""
    options = cli.command(Command, argv, "python -m facepapers.common.tools.export", __doc__, least=0)
    cli.require("onnx", "onnxscript", extra="export")
    storage.writable(options.out)
    for paper, name in chosen(options.names):
        model = import_module(f"facepapers.papers.{paper}.released").load(name)
        program, onnx = exported(model), options.out / f"{name}.onnx"
        with storage.atomic(options.out / f"{name}.pt2") as temporary:
            temporary.write_bytes(as_bytes(program))
        with storage.atomic(onnx) as temporary:
            temporary.write_bytes(to_onnx(model, program, about(paper, name, model)))
            apart = difference(model, temporary)
        said = f"largest difference from torch {apart:.1g}" if apart is not None else "not compared: no onnxruntime"
        print(f"{onnx} and .pt2: {onnx.stat().st_size / 2**20:.1f} MiB, opset {OPSET}, {said}")


def chosen(names: Sequence[str]) -> list[tuple[str, str]]:
    """[(paper, name)] of released models: the named, those of named papers, or all. UserError where one is absent."""
    known = {(folder.parent.parent.name, folder.name) for folder in released.folders()}
    wanted = {name.replace("-", "_") for name in names}
    every = {name for paper in claims.papers() for name in (paper, *weights.names(paper))}
    if unknown := sorted(wanted - every):
        raise UserError(f"{unknown[0]}: no model and no paper; known are {', '.join(sorted(every))}")
    found = sorted((paper, name) for paper, name in known if not wanted or wanted & {paper, name})
    absent = sorted(wanted.difference(*found))
    if absent or not found:
        raise UserError(f"{', '.join(absent) or paths.ROOT}: nothing is released yet; see `make weights`")
    return found


def pixels_for(model: torch.nn.Module, count: int) -> torch.Tensor:
    """uint8 faces (count, 3, S, S) of smooth random pixels, as a model takes them."""
    size: Any = model.input_px
    small = 255 * torch.rand(count, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(small, size=size, mode="bilinear").to(torch.uint8)


class _Named(torch.nn.Module):
    """A ready module with a dict of outputs: torch saves no program that returns a NamedTuple of ours."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, faces: torch.Tensor) -> dict[str, torch.Tensor]:
        found = self.model(faces)
        return found if isinstance(found, dict) else found._asdict()


def exported(model: torch.nn.Module) -> torch.export.ExportedProgram:
    """The program of a ready module, for any number of faces; it returns a dict, name -> tensor."""
    example, named = pixels_for(model, 2), _Named(model).train(model.training)
    return torch.export.export(named, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))


def as_bytes(program: torch.export.ExportedProgram) -> bytes:
    """The contents of a .pt2 file, which torch.export.load reads."""
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


@torch.no_grad()
def outputs(model: torch.nn.Module, faces: torch.Tensor) -> dict[str, torch.Tensor]:
    """Name -> tensor of what a ready module returns."""
    return _Named(model)(faces)


def to_onnx(model: torch.nn.Module, program: torch.export.ExportedProgram, facts: dict[str, str]) -> bytes:
    """The contents of an ONNX file of a ready module: input `faces`, outputs named as the module's."""
    names = list(outputs(model, pixels_for(model, 1)))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)  # torch 2.11's, of its own copy of a program
        made: Any = torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, input_names=["faces"], output_names=names, verbose=False
        )
    proto = made.model_proto
    for key, value in facts.items():
        proto.metadata_props.add(key=key, value=value)
    return proto.SerializeToString()


def about(paper: str, name: str, model: Any) -> dict[str, str]:
    """What an ONNX file says of itself."""
    facts = released.facts(released.folder_of(paper, name) / released.FILE)
    return {
        "name": name, "paper": paper, "weights_sha256": facts.get("sha256", ""), "expects": model.expects,
        "classes": json.dumps(getattr(model, "classes", {})), "terms": "for research only; see the model's card",
    }  # fmt: skip


def session(path: Path) -> Any:
    """An onnxruntime session on the CPU with as many threads as torch uses; None where it is not installed."""
    try:
        import onnxruntime
    except ModuleNotFoundError:
        return None
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path.read_bytes(), settings, providers=["CPUExecutionProvider"])


def difference(model: torch.nn.Module, path: Path, count: int = 3) -> float | None:
    """Largest difference between an ONNX file in onnxruntime and its module, over its outputs on `count` faces.

    None without onnxruntime. Raises UserError above APART (of outputs beyond 1, of their size).
    """
    running = session(path)
    if running is None:
        return None
    faces = pixels_for(model, count)
    expected = outputs(model, faces)
    found = dict(
        zip(expected, map(torch.from_numpy, running.run(list(expected), {"faces": faces.numpy()})), strict=True)
    )
    apart = max(float(((found[k] - v).abs() / v.abs().clamp_min(1)).max()) for k, v in expected.items())
    if not apart <= APART:
        raise UserError(f"{path}: onnxruntime and torch differ by {apart:.2g}, more than {APART:g}; use the .pt2 file")
    return apart


def comparisons(paper: str) -> Iterator[tuple]:
    """(what, name, run, other name, other run) for tools.bench: each released model in onnxruntime beside torch."""
    import importlib.util
    import tempfile

    if not all(importlib.util.find_spec(name) for name in ("onnxruntime", "onnxscript")):
        return
    for folder in released.folders(paper):
        model = import_module(f"facepapers.papers.{paper}.released").load(folder.name)
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / "model.onnx"
            path.write_bytes(to_onnx(model, exported(model), {}))
            running = session(path)
        for count in BATCHES:
            faces = pixels_for(model, count)
            given = {"faces": faces.numpy()}
            yield (
                f"{folder.name}, batch {count}", "onnxruntime", lambda given=given, r=running: r.run(None, given),
                "torch", lambda faces=faces, model=model: outputs(model, faces),
            )  # fmt: skip


if __name__ == "__main__":
    cli.entry(main)
