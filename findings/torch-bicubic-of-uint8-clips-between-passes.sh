#!/usr/bin/env bash
# PyTorch's antialiased bicubic resize of a uint8 picture and of the same picture as float differ by far more than 1.
#
# Versions   torch 2.11.0 with numpy 2.4.1, on the CPU (2026-11-30)
# Guess      interpolate(x.float()), rounded and clamped to 0..255, is interpolate(x) up to one grey level, so a network
#            may be trained on one and served with the other.
# Behaviour  A uint8 tensor is filtered along one axis, rounded and clipped to 0..255, and then along the other, as
#            Pillow does. A float tensor keeps what lies beyond 0..255 in between, and that comes back in the second pass.
# Seen       48 x 48 noise to 112 x 112: apart by up to 16 of 255; a checkerboard of 3 px squares: 7; bilinear: at most 1;
#            float in two calls with round and clamp between, columns last: at most 1 from uint8
# Remedy     Resize in the same type everywhere (the float one is exact), or clamp between two calls.
# Fails (exit 1) when the types agree to one level, or clamping between two calls does not bring them together.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.11.0 numpy==2.4.1 2>/dev/null
"$work/venv/bin/python" - <<'PY'
import sys

import torch
from torch.nn.functional import interpolate

SIZE = 112
noise = torch.randint(0, 256, (1, 3, 48, 48), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
squares = torch.arange(48) // 3 % 2
board = (255 * (squares[:, None] ^ squares)).to(torch.uint8).expand(1, 3, 48, 48).contiguous()


def resized(x, size, mode="bicubic"):
    return interpolate(x, size, mode=mode, antialias=True, align_corners=False)


def levels(x):
    return x.round().clamp(0, 255)


def apart(a, b):
    return int((a.float() - b.float()).abs().max())


far, near, soft = [], [], []
for picture in (noise, board):
    integer, real = resized(picture, (SIZE, SIZE)), levels(resized(picture.float(), (SIZE, SIZE)))
    rows_first = levels(resized(levels(resized(picture.float(), (48, SIZE))), (SIZE, SIZE)))
    far.append(apart(integer, real))
    near.append(apart(integer, rows_first))
    linear = [resized(x, (SIZE, SIZE), "bilinear") for x in (picture, picture.float())]
    soft.append(apart(linear[0], levels(linear[1])))
print(f"bicubic, uint8 against float: {far}; with a clamp between two calls: {near}; bilinear: {soft}")
sys.exit(0 if min(far) > 5 and max(near) <= 1 and max(soft) <= 1 else 1)
PY
