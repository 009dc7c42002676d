#!/usr/bin/env bash
# safetensors 0.8 saves transposed NumPy arrays with their values in the wrong places.
#
# Versions   safetensors 0.8.0 and 0.7.0 with numpy 2.4.1 (2026-11-29); known upstream as safetensors issue 825, open
# Guess      safetensors.numpy.save_file either stores a transposed, Fortran-ordered or strided array as what it shows,
#            or refuses it, as safetensors.torch refuses tensors that are not contiguous.
# Behaviour  Since 0.8 the array's memory is written as it lies under the shape that the array shows. The file is valid
#            and reads back without a word, with other values at every place. Weights that are converted from another
#            framework are mostly such views: kernel.T, a transpose of axes, what a PCA returns.
# Seen       0.8.0: C order equal; transposed, Fortran order, axes moved, every second column not; 0.7.0: all equal
# Remedy     numpy.ascontiguousarray around everything that is saved, or save from torch.
# Fails (exit 1) when 0.8.0 reads back what 0.7.0 does, or a plain array is changed as well.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy==2.4.1 2>/dev/null
for version in 0.7.0 0.8.0; do
    "$work/venv/bin/pip" install --quiet --no-deps --target "$work/$version" safetensors==$version 2>/dev/null
done
cat > "$work/roundtrip.py" <<'PY'
import sys

import numpy as np
from safetensors import __version__
from safetensors.numpy import load_file, save_file

plain = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
cases = {
    "C order": plain,
    "transposed": plain.T,
    "Fortran order": np.asfortranarray(plain),
    "axes moved": np.moveaxis(plain, -1, 0),
    "every second column": plain[:, :, ::2],
}
save_file(cases, sys.argv[1])
read = load_file(sys.argv[1])
equal = {name: bool(np.array_equal(read[name], value)) for name, value in cases.items()}
print(f"safetensors {__version__} reads back what was saved:", equal)
assert all(read[name].shape == value.shape for name, value in cases.items())
wanted = {name: name == "C order" or sys.argv[2] == "all" for name in cases}
sys.exit(equal != wanted)
PY
for case in "0.7.0 all" "0.8.0 plain"; do
    read -r version wanted <<< "$case"
    PYTHONPATH="$work/$version" "$work/venv/bin/python" "$work/roundtrip.py" "$work/$version.safetensors" "$wanted"
done
