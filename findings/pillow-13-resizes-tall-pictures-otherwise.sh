#!/usr/bin/env bash
# Pillow 13 resizes pictures that are reduced in height to other pixels than Pillow 12 did.
#
# Versions   pillow 13.0.0 and 12.3.0 with numpy 2.4.1 (2026-11-29)
# Guess      resize(size, BICUBIC) gives the same bytes in every Pillow since 3.4, rows first and columns after, with a
#            rounding between: hashes of resized pictures and stored fingerprints stay.
# Behaviour  Since 13.0 columns are filtered first where the height shrinks and the width does so less or grows. The
#            rounding and clipping between the two passes then falls elsewhere. Squares to squares are unchanged.
# Seen       30 high, 20 wide to 24 x 24: apart by up to 14 of 255; 20 high, 30 wide and 30 x 30: the same bytes
# Remedy     Cut squares before resizing, resize in two calls (each one axis), or fix the version with the hashes.
# Fails (exit 1) when the two versions agree on the tall picture, or differ on the others.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy==2.4.1 2>/dev/null
for version in 12.3.0 13.0.0; do
    "$work/venv/bin/pip" install --quiet --target "$work/$version" pillow==$version 2>/dev/null
done
cat > "$work/resize.py" <<'PY'
import sys

import numpy as np
from PIL import Image

found = {}
for height, width in ((30, 20), (20, 30), (30, 30)):
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    found[f"{height}x{width}"] = np.asarray(Image.fromarray(noise).resize((24, 24), Image.Resampling.BICUBIC))
np.savez(sys.argv[1], **found)
PY
for version in 12.3.0 13.0.0; do
    PYTHONPATH="$work/$version" "$work/venv/bin/python" "$work/resize.py" "$work/$version.npz"
done
"$work/venv/bin/python" - "$work/12.3.0.npz" "$work/13.0.0.npz" <<'PY'
import sys

import numpy as np

old, new = map(np.load, sys.argv[1:])
apart = {name: int(np.abs(old[name].astype(int) - new[name]).max()) for name in old.files}
print("height x width to 24 x 24, largest difference of the versions:", apart)
sys.exit(not (apart["30x20"] > 0 and apart["20x30"] == apart["30x30"] == 0))
PY
