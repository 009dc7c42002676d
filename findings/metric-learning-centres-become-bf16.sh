#!/usr/bin/env bash
# pytorch-metric-learning's losses turn their class centres into bfloat16 for good, and then hardly learn them.
#
# Versions   pytorch-metric-learning 2.9.0 with torch 2.11.0 and numpy 2.4.1 (2026-11-29)
# Guess      A loss with weights of its own, called on embeddings that were computed under bf16 autocast, keeps float32
#            weights, as a layer under autocast does, and at most casts what it computes with.
# Behaviour  The centre matrix itself is replaced by one of the embeddings' type (W.data). Gradient and momentum follow,
#            for good. A step that is below half of an entry's last bit is lost, which at a rate of 0.001 nearly all
#            are. Nothing is printed. An embedding on its centre has a gradient of NaN, in float32 as well.
# Seen       entries of W that move in 20 steps at a rate of 0.001: float32 embeddings 99.7 %, bfloat16 embeddings
#            1.0 %, where W, its gradient and its momentum are bfloat16
# Remedy     Give the loss embeddings.float(), outside of autocast.
# Fails (exit 1) when W keeps float32, so when this has been mended.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet pytorch-metric-learning==2.9.0 torch==2.11.0 numpy==2.4.1 2>/dev/null
cat > "$work/centres.py" <<'PY'
import sys

import torch
from pytorch_metric_learning.losses import ArcFaceLoss

CLASSES, FEATURES = 500, 64


def trained(dtype):
    """(types of W, gradient and momentum; share of W's entries that 20 steps move), embeddings of type `dtype`."""
    torch.manual_seed(0)
    net, loss = torch.nn.Linear(32, FEATURES), ArcFaceLoss(CLASSES, FEATURES)
    optimizer = torch.optim.SGD([*net.parameters(), *loss.parameters()], 1e-3, momentum=0.9)
    before = loss.W.detach().clone().to(dtype).float()  # rounding to the type is no movement
    for _ in range(20):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            embeddings = net(torch.randn(32, 32))
        optimizer.zero_grad()
        loss(embeddings, torch.randint(CLASSES, (32,))).backward()
        optimizer.step()
    kept = (loss.W, loss.W.grad, optimizer.state[loss.W]["momentum_buffer"])
    return {str(value.dtype) for value in kept}, float((loss.W.detach().float() != before).float().mean())


def on_a_centre(dtype):
    """Gradient of embeddings that lie on their centres."""
    torch.manual_seed(0)
    loss = ArcFaceLoss(8, FEATURES)
    x = loss.W.detach().T.to(dtype).clone().requires_grad_()
    loss(x, torch.arange(8)).backward()
    return x.grad


(types, share), (half_types, half_share) = trained(torch.float32), trained(torch.bfloat16)
print(f"float32 embeddings: {types}, {100 * share:.1f} % of W's entries move")
print(f"bfloat16 embeddings: {half_types}, {100 * half_share:.1f} %")
for dtype in (torch.float32, torch.bfloat16):
    print(f"gradient on a centre finite, {dtype}: {bool(torch.isfinite(on_a_centre(dtype)).all())}")
sys.exit(not (types == {"torch.float32"} and half_types == {"torch.bfloat16"} and share > 0.9 and half_share < 0.1))
PY
"$work/venv/bin/python" "$work/centres.py"
