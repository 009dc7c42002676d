#!/usr/bin/env bash
# The same seed draws another dropout mask, and another initialisation, for a channels-last tensor.
#
# Versions   torch 2.11.0 with numpy 2.4.1 (2026-11-29)
# Guess      channels-last is a matter of speed: with one seed a network in either layout is initialised and dropped
#            out alike, so that runs differ by rounding alone.
# Behaviour  Random numbers are dealt out in the order of memory, not of the index. dropout, randn_like, nn.init and
#            Tensor.normal_ give the same values at other places of a channels-last tensor (3 channels and more, more
#            than one pixel). A run that is repeated in the other layout is another run. dropout2d draws a number a
#            channel and stays. Nothing is printed.
# Seen       equal in both layouts: dropout no, randn_like no, nn.init no, dropout2d yes, dropout of 1 channel yes
# Remedy     Initialise before the conversion; compare layouts without dropout; draw noise in one layout and convert.
# Fails (exit 1) when dropout drops the same entries in both layouts, so when this has been changed.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.11.0 numpy==2.4.1 2>/dev/null
cat > "$work/draws.py" <<'PY'
import sys

import torch
import torch.nn.functional as F


def same(draw, channels=3):
    """Whether `draw`, seeded, gives equal values for equal pictures in both layouts."""
    pictures, found = torch.ones(2, channels, 8, 8), []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        found.append(draw(pictures.clone(memory_format=layout)))
    return torch.equal(*found)


found = {
    "dropout": same(F.dropout),
    "randn_like": same(torch.randn_like),
    "nn.init": same(torch.nn.init.normal_),
    "dropout2d": same(F.dropout2d),
    "dropout of 1 channel": same(F.dropout, channels=1),
}
print("equal in both layouts:", ", ".join(f"{name} {'yes' if equal else 'no'}" for name, equal in found.items()))
sys.exit(list(found.values()) != [False, False, False, True, True])
PY
"$work/venv/bin/python" "$work/draws.py"
