#!/usr/bin/env bash
# A module that returns a NamedTuple is traced by torch.export, and its program runs, but cannot be saved.
#
# Versions   torch 2.11.0 with numpy 2.4.1 (2026-11-29)
# Guess      What torch.export.export takes, torch.export.save writes: a NamedTuple of tensors is a tuple with names.
# Behaviour  Tracing and calling work, and the call gives the NamedTuple. Saving raises NotImplementedError and asks for
#            a private function to register the class, which whoever reads the file must then have, too. A test that
#            stops at the program, or whose stand-in returns a dict, sees nothing of it. Tuples and dicts are saved.
# Seen       tuple, dict: saved and read; Found (a NamedTuple): called: Found; saved: NotImplementedError
# Remedy     Export a module around it that returns found._asdict().
# Fails (exit 1) when the program is saved, so when this has been mended.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.11.0 numpy==2.4.1 2>/dev/null
cat > "$work/named.py" <<'PY'
import io
import sys
from typing import NamedTuple

import torch


class Found(NamedTuple):
    points: torch.Tensor
    score: torch.Tensor


class Detector(torch.nn.Module):
    """A network that returns its two outputs in a container of a kind."""

    def __init__(self, kind):
        super().__init__()
        self.layer, self.kind = torch.nn.Linear(4, 3), kind

    def forward(self, x):
        y = self.layer(x)
        outputs = {"points": y[:, :2], "score": y[:, 2]}
        return self.kind(**outputs) if self.kind is not tuple else tuple(outputs.values())


def saved(kind):
    """What becomes of a program whose module returns this kind: traced, called, saved and read again."""
    x = torch.ones(2, 4)
    program = torch.export.export(Detector(kind), (x,))
    called = type(program.module()(x)).__name__
    file = io.BytesIO()
    try:
        torch.export.save(program, file)
    except NotImplementedError as error:
        return f"called: {called}; saved: {type(error).__name__}: {str(error)[:60]}"
    file.seek(0)
    return f"called: {called}; saved and read: {type(torch.export.load(file).module()(x)).__name__}"


found = {kind.__name__: saved(kind) for kind in (tuple, dict, Found)}
for kind, said in found.items():
    print(f"{kind}: {said}")
sys.exit("NotImplementedError" not in found["Found"] or "Error" in found["tuple"] + found["dict"])
PY
"$work/venv/bin/python" -W ignore "$work/named.py"
