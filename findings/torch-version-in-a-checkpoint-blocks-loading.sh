#!/usr/bin/env bash
# A checkpoint that notes torch.__version__ can be saved, and not loaded again.
#
# Versions   torch 2.11.0 with numpy 2.4.1 (2026-11-29)
# Guess      torch.__version__ is a string: it prints as one, compares as one and is an instance of str. So it may stand
#            beside the weights in a checkpoint, which torch.load reads with weights_only=True, its default.
# Behaviour  It is a TorchVersion, a class of its own. torch.save pickles a reference to that class without a word, and
#            torch.load refuses the whole file, weights included, because of it. It shows only when a run is resumed.
# Seen       weights alone: dict; with torch.__version__: UnpicklingError; with str(torch.__version__): dict
# Remedy     Save str(torch.__version__), which is a plain string.
# Fails (exit 1) when such a file is read, so when this has been mended.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.11.0 numpy==2.4.1 2>/dev/null
cat > "$work/version.py" <<'PY'
import io
import sys

import torch


def read(content):
    """What torch.load says of a saved `content`: its type, or the first sentence of the error."""
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    try:
        return type(torch.load(file)).__name__
    except Exception as error:
        return f"{type(error).__name__}: {str(error).split('.')[0]}"


weights = {"weight": torch.ones(2)}
found = {
    "weights alone": read(weights),
    "with torch.__version__": read(weights | {"torch": torch.__version__}),
    "with str(torch.__version__)": read(weights | {"torch": str(torch.__version__)}),
}
for what, said in found.items():
    print(f"{what}: {said}")
print(f"isinstance(torch.__version__, str): {isinstance(torch.__version__, str)}")
sys.exit("Error" not in found["with torch.__version__"] or "Error" in found["with str(torch.__version__)"])
PY
"$work/venv/bin/python" "$work/version.py"
