#!/usr/bin/env bash
# A ROC of cosines by torchmetrics depends on how the pairs are cut into batches.
#
# Versions   torchmetrics 1.9.0 with torch 2.11.0 and numpy 2.4.1 (2026-11-29)
# Guess      BinaryAUROC over all updates is the area of the whole list; its sigmoid for scores outside 0..1 keeps the
#            order of scores and so does no harm.
# Behaviour  Whether a sigmoid is applied is decided in each update by the range of that batch. Verification lists hold
#            runs of same pairs, whose cosines all lie in 0..1, and runs of different ones, some of whose cosines are
#            negative: only the latter are squashed to 0.27 .. 0.73, above many of the former. LFW's list of 6,000
#            pairs has 300 of one kind after 300 of the other. Nothing is printed.
# Seen       area of 6,000 pairs in LFW's order: one update 0.9991, updates of 600 0.9991, of 300 0.6337, of 64 0.6961
# Remedy     (cosine + 1) / 2 before the update, so that every batch lies in 0..1; or one update.
# Fails (exit 1) when the area no longer depends on the updates, so when this has been mended.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torchmetrics==1.9.0 torch==2.11.0 numpy==2.4.1 2>/dev/null
cat > "$work/area.py" <<'PY'
import sys

import torch
from torchmetrics.classification import BinaryAUROC

generator = torch.Generator().manual_seed(0)
same = torch.tensor(([1] * 300 + [0] * 300) * 10)
noise = torch.randn(len(same), generator=generator)
cosine = torch.where(same == 1, 0.55 + 0.15 * noise, 0.1 * noise).clamp(-1, 1)


def area(score, batch):
    metric = BinaryAUROC()
    for part, truth in zip(score.split(batch), same.split(batch)):
        metric.update(part, truth)
    return float(metric.compute())


found = {batch: area(cosine, batch) for batch in (6000, 600, 300, 64)}
mended = area((cosine + 1) / 2, 300)
print("area of 6,000 pairs in LFW's order by size of update:", {k: round(v, 4) for k, v in found.items()},
      f"; of (cosine + 1) / 2 by 300: {mended:.4f}")
sys.exit(not (found[6000] > 0.99 and abs(mended - found[6000]) < 1e-4 and found[300] < 0.9))
PY
"$work/venv/bin/python" "$work/area.py"
