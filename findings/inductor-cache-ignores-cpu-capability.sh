#!/usr/bin/env bash
# A compiled network's cache serves kernels of another vector width, and its numbers are silently wrong.
#
# Versions   torch 2.11.0 with numpy 2.4.1, Python 3.11, g++ 12, a processor with AVX-512 (2026-11-29)
# Guess      ATEN_CPU_CAPABILITY=avx2 is part of what TorchInductor's cache is keyed by (or makes no difference to it):
#            a network compiled by an earlier process gives the eager numbers, or is compiled anew.
# Behaviour  The second process, told to keep to AVX2, is handed what the first one compiled for AVX-512. Nothing is
#            printed; outputs of a small convolutional network in training mode are off by more than 1, gradients more.
#            With a cache of its own (TORCHINDUCTOR_CACHE_DIR) it is right to 1e-5.
# Seen       default 1.7e-06, avx2 on the same cache 3.1e+00, avx2 on its own cache 1.7e-06
# Remedy     One cache folder for each torch.backends.cpu.get_cpu_capability(), on shared disks above all.
# Fails (exit 1) when the second difference is small, so when this has been mended.
set -euo pipefail
grep -qw avx512f /proc/cpuinfo || { echo "not applicable: this processor has no AVX-512"; exit 0; }
command -v g++ >/dev/null || { echo "not applicable: no g++"; exit 0; }
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.11.0 numpy==2.4.1 2>/dev/null
cat > "$work/difference.py" <<'PY'
import torch

torch.manual_seed(0)
torch.set_num_threads(1)
layers = []
for width in (3, 12):
    layers += [torch.nn.Conv2d(width, 12, 3, padding=1), torch.nn.BatchNorm2d(12), torch.nn.ReLU()]
net = torch.nn.Sequential(*layers).to(memory_format=torch.channels_last).train()
x = torch.randn(4, 3, 9, 9).contiguous(memory_format=torch.channels_last)
net(x).square().mean().backward()  # a training's eager step, so that both have run forward and backward
eager = net(x)
compiled = torch.compile(net)(x)
compiled.square().mean().backward()
print(f"{float((eager - compiled).detach().abs().max()):.1e}")
PY
run() { env "$@" "$work/venv/bin/python" "$work/difference.py" 2>/dev/null; }
default=$(run TORCHINDUCTOR_CACHE_DIR="$work/shared")
shared=$(run TORCHINDUCTOR_CACHE_DIR="$work/shared" ATEN_CPU_CAPABILITY=avx2)
own=$(run TORCHINDUCTOR_CACHE_DIR="$work/own" ATEN_CPU_CAPABILITY=avx2)
echo "largest difference from the eager outputs: default $default, avx2 on the same cache $shared, on its own $own"
python3 - "$default" "$shared" "$own" <<'PY'
import sys

default, shared, own = map(float, sys.argv[1:])
sys.exit(not (default < 1e-4 and own < 1e-4 and shared > 1e-2))
PY
