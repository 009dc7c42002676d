#!/usr/bin/env bash
# A network whose forward asks torch.set_grad_enabled(flag) for its frozen part is exported and saved, and never loaded.
#
# Versions   torch 2.11.0 with numpy 2.4.1 (2026-11-30)
# Guess      What torch.export.save wrote without a word, torch.export.load reads; set_grad_enabled(False) is no_grad().
# Behaviour  Tracing, calling and saving work. Loading raises SpecViolationError about the block's own node, so the file
#            is lost; whoever saves and stops there sees nothing. With no_grad() in its place, or exported while
#            gradients are off, the same network loads.
# Seen       set_grad_enabled: saved; loaded: SpecViolationError: Node.meta wrap_with_set_grad_enabled is missing val field
#            no_grad: saved; loaded; detach: saved; loaded; set_grad_enabled, exported under no_grad: saved; loaded
# Remedy     no_grad(), or no block at all: where all parameters are frozen no graph is built.
# Fails (exit 1) when the program loads, so when this has been mended.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.11.0 numpy==2.4.1 2>/dev/null
cat > "$work/frozen.py" <<'PY'
import contextlib
import io
import sys

import torch

BLOCKS = {
    "set_grad_enabled": lambda: torch.set_grad_enabled(False),  # in the wild: (self.tune_backbone)
    "no_grad": torch.no_grad,
    "detach": contextlib.nullcontext,
}


class Classifier(torch.nn.Module):
    """A head on a frozen backbone."""

    def __init__(self, block):
        super().__init__()
        self.backbone, self.head = torch.nn.Linear(4, 4).requires_grad_(False), torch.nn.Linear(4, 2)
        self.block = block

    def forward(self, x):
        with BLOCKS[self.block]():
            features = self.backbone(x)
        return self.head(features.detach())


def outcome(block, around):
    """Whether a program is saved, and whether what was saved is loaded and gives the same."""
    net, x, file = Classifier(block).eval(), torch.ones(2, 4), io.BytesIO()
    with around:
        program = torch.export.export(net, (x,))
    torch.testing.assert_close(program.module()(x), net(x))
    torch.export.save(program, file)
    file.seek(0)
    try:
        loaded = torch.export.load(file).module()
    except Exception as error:
        return f"saved; loaded: {type(error).__name__}: {str(error)[:70]}"
    torch.testing.assert_close(loaded(x), net(x))
    return "saved; loaded"


found = {block: outcome(block, contextlib.nullcontext()) for block in BLOCKS}
found["set_grad_enabled, exported under no_grad"] = outcome("set_grad_enabled", torch.no_grad())
for name, said in found.items():
    print(f"{name}: {said}")
fine = found["no_grad"] == found["detach"] == "saved; loaded"
sys.exit(not (fine and "SpecViolationError" in found["set_grad_enabled"]))
PY
"$work/venv/bin/python" -W ignore "$work/frozen.py"
