#!/usr/bin/env bash
# ONNX's cubic Resize with Pillow's a = -0.5 is not Pillow's near the border.
#
# Versions   onnx 1.23.2, onnxruntime 1.32.0, pillow 13.0.0, numpy 2.4.1 (2026-11-29)
# Guess      Resize with mode cubic, half_pixel and cubic_coeff_a = -0.5 enlarges as Pillow's BICUBIC does, up to
#            Pillow's rounding: kernel and pixel centres are the same.
# Behaviour  ONNX repeats the edge pixel where the kernel leaves the image, Pillow leaves it out and lets the other
#            weights sum to one. From 16 to 112 px that is ten grey levels on the noise below, in the outer quarter.
#            With exclude_outside = 1 the two agree.
# Seen       noise of 60 to 190: a -0.75: 10.3 apart; a -0.5: 10.5, of which inside 0.0; with exclude_outside 0.000
# Remedy     exclude_outside = 1, or resize by two matrix products with the weights written into the graph.
# Fails (exit 1) when the border agrees without exclude_outside, or does not agree with it.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet onnx==1.23.2 onnxruntime==1.32.0 pillow==13.0.0 numpy==2.4.1 2>/dev/null
cat > "$work/border.py" <<'PY'
import sys

import numpy as np
import onnxruntime
from onnx import TensorProto, helper
from PIL import Image


def resized(picture, size, **options):
    """`picture` (H, W) float32 through one Resize node."""
    shapes = helper.make_tensor("sizes", TensorProto.INT64, [4], [1, 1, size, size])
    node = helper.make_node(
        "Resize", ["x", "", "", "sizes"], ["y"], mode="cubic", coordinate_transformation_mode="half_pixel", **options
    )
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, None, None]) for name in "xy")
    model = helper.make_model(
        helper.make_graph([node], "g", [x], [y], [shapes]), opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": picture[None, None]})[0][0, 0]


picture = np.random.default_rng(0).uniform(60, 190, (16, 16)).astype(np.float32)
expected = np.asarray(Image.fromarray(picture).resize((112, 112), Image.Resampling.BICUBIC))  # float: no rounding
other = np.abs(resized(picture, 112, cubic_coeff_a=-0.75) - expected).max()
apart = np.abs(resized(picture, 112, cubic_coeff_a=-0.5) - expected)
agreed = np.abs(resized(picture, 112, cubic_coeff_a=-0.5, exclude_outside=1) - expected).max()
inside = apart[14:-14, 14:-14].max()
print(f"a -0.75: {other:.1f} apart; a -0.5: {apart.max():.1f}, of which inside {inside:.1f}; "
      f"a -0.5 and exclude_outside: {agreed:.3f}")
sys.exit(not bool(apart.max() > 5 and inside < 0.01 and agreed < 0.01))
PY
"$work/venv/bin/python" "$work/border.py"
