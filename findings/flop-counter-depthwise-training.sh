#!/usr/bin/env bash
# torch's flop counter takes a grouped convolution's weight gradient `groups` times too often.
#
# Versions   torch 2.11.0 with numpy 2.4.1 (2026-11-29)
# Guess      A training step of convolutions costs three forward passes (the output, the gradient of the input, that of
#            the weight), and FlopCounterMode around forward and backward says so, for depthwise layers too.
# Behaviour  Forward pass and input gradient are right for any groups. The weight gradient is counted as if every input
#            channel met every output channel: groups times its multiply-adds. A depthwise layer of 32 channels seems to
#            cost 34 forward passes a step, a MobileNet-like block 9.8, so shares of a machine's peak come out far too
#            high for mobile networks.
# Seen       forward passes a step: dense 3.0, 4 groups 6.0, depthwise (32) 34.0, inverted residual block 9.8
# Remedy     Count the forward pass alone and take it three times.
# Fails (exit 1) when the depthwise step counts as three forward passes, so when this has been mended.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.11.0 numpy==2.4.1 2>/dev/null
cat > "$work/passes.py" <<'PY'
import sys

import torch
from torch.utils.flop_counter import FlopCounterMode


def conv(inputs, outputs, size, groups=1):
    return torch.nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups, bias=False)


def passes(net, channels):
    """Counted flops of forward and backward over those of the forward pass."""
    x = torch.randn(2, channels, 8, 8, requires_grad=True)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        net(x)
    with FlopCounterMode(display=False) as step:
        net(x).sum().backward()
    return step.get_total_flops() / forward.get_total_flops()


block = torch.nn.Sequential(conv(16, 32, 1), conv(32, 32, 3, groups=32), conv(32, 16, 1))
found = {
    "dense": passes(conv(32, 32, 3), 32),
    "4 groups": passes(conv(32, 32, 3, groups=4), 32),
    "depthwise (32)": passes(conv(32, 32, 3, groups=32), 32),
    "inverted residual block": passes(block, 16),
}
print("forward passes that a step is counted as:", ", ".join(f"{name} {n:.1f}" for name, n in found.items()))
sys.exit(not (abs(found["dense"] - 3) < 0.01 and found["depthwise (32)"] > 30))
PY
"$work/venv/bin/python" "$work/passes.py"
