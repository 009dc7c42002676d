#!/usr/bin/env bash
# One autocast region around a training loop computes every step with the weights of the first.
#
# Versions   torch 2.11.0 with numpy 2.4.1 (2026-11-29)
# Guess      `with torch.autocast(...)` around a whole loop trains as one around each forward pass does, up to rounding;
#            the backward pass within it is merely unnecessary.
# Behaviour  Casts of weights are cached until the outermost region ends, and a step of the optimiser does not clear the
#            cache. The weights change, but the network goes on answering with the bfloat16 copies of before the first
#            step: the loss stands still to the last bit, all steps follow one gradient, and a validation within the
#            region tests the untrained network. Nothing is printed.
# Seen       loss over 30 steps: a region each step 1.416 to 0.319; one region 1.416 to 1.416, and 2.344 once outside
#            of it; one region without cache 1.416 to 0.319
# Remedy     A region around each forward pass, or cache_enabled=False.
# Fails (exit 1) when the loss falls within one region, so when this has been mended.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.11.0 numpy==2.4.1 2>/dev/null
cat > "$work/loop.py" <<'PY'
import contextlib
import sys

import torch
import torch.nn.functional as F


def losses(around_loop, around_step):
    """Losses of 30 steps, and the loss of the trained weights outside of all regions."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    optimizer, seen = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9), []
    x, y = torch.randn(64, 16), torch.randint(4, (64,))
    with around_loop():
        for _ in range(30):
            with around_step():
                loss = F.cross_entropy(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen.append(loss.item())
    return seen, F.cross_entropy(net(x), y).item()


def region(cache=True):
    return torch.autocast("cpu", torch.bfloat16, cache_enabled=cache)


cases = {
    "a region each step": losses(contextlib.nullcontext, region),
    "one region": losses(region, contextlib.nullcontext),
    "one region without cache": losses(lambda: region(False), contextlib.nullcontext),
}
for name, (seen, after) in cases.items():
    print(f"{name}: loss {seen[0]:.4f} to {seen[-1]:.4f}, afterwards {after:.4f}")
fell = {name: seen[-1] < seen[0] - 0.1 for name, (seen, _) in cases.items()}
sys.exit(fell != {"a region each step": True, "one region": False, "one region without cache": True})
PY
"$work/venv/bin/python" "$work/loop.py"
