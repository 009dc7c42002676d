"""What the branches read in each step: faces in the trunk's frame, or stored activations of the frozen stages below.

Frozen stages give the same activations for the same face each time, so a fixed number of augmented views per face can
be computed once and read by every row, seed and pass (fp16, memory-mapped, under data/activations/).
"""

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from common import checkpoint, images, nets, parallel
from common import data as sets
from common.cli import UserError
from papers.face_attributes import data

CHUNK = 64
# Settings that decide what a stored view shows; with the trunk, the set and the stage they name its file.
VIEW_SETTINGS = ("views", "input_px", "rotation_deg", "log_size", "shift", "colour", "grid")


class Source:
    """Training batches and test inputs for branches that start at stage `first` of a trunk in `stages`.

    `pooled` (a probe of stage first - 1) reads averages over a raster instead of activation maps. The trunk's stages
    are not changed.
    """

    def __init__(self, cfg, parts, stages, pixels, first, device, pooled=False):
        self.cfg, self.parts, self.first, self.device, self.pooled = cfg, parts, first, device, pooled
        self.stages, self.pixels = [s.to(device).eval() for s in stages], pixels
        top = first > len(stages)
        self.stored = cfg.views > 0 and (pooled or top or first >= cfg.cache_from)
        self.pools = [part.index("train") for part in parts]
        for part, pool in zip(parts, self.pools, strict=True):
            if len(pool) < cfg.batch:
                raise UserError(f"--batch {cfg.batch}: {part.name} has only {len(pool)} training faces; use fewer")
        self._views = {}

    def batch(self, step, share):
        """(x (b, ...), name -> labels (b,) of this process, name -> labelled faces over all processes) of a step.

        `batch` faces of every set; `x` is what stage `first` takes. A set is passed over in a new order each time.
        """
        chosen = [self._rows(number, step) for number in range(len(self.parts))]
        x = [self.inputs(number, rows[share], view) for number, (rows, view) in enumerate(chosen)]
        labels, counts = {}, {}
        for name in data.attributes_of(self.parts):
            whole = [label_of(p, name, self.pools[i][chosen[i][0]]) for i, p in enumerate(self.parts)]
            labels[name] = torch.cat([part[share] for part in whole]).to(self.device)
            counts[name] = int(sum((part >= 0).sum() for part in whole))
        return torch.cat(x), labels, counts

    def _rows(self, number, step):
        """Places (batch,) in the set's training pool and the view of a step."""
        cfg, n = self.cfg, round(self.cfg.labels * len(self.pools[number]))
        n = max(n, cfg.batch)
        fixed = torch.randperm(len(self.pools[number]), generator=images.generator(1609, number))[:n]
        turn, place = divmod(step, n // cfg.batch)
        order = torch.randperm(n, generator=images.generator(cfg.seed, 1, number, turn))
        view = turn % cfg.views if cfg.views else turn
        return fixed[order[place * cfg.batch : (place + 1) * cfg.batch]], view

    def inputs(self, number, rows, view=None, split="train"):
        """Input of stage `first` (b, ...), float32, of faces at places `rows` of a set's split; view None is plain."""
        if self.stored:
            stored = self._stored(number, split, view)
            return torch.from_numpy(np.asarray(stored[rows.numpy()])).to(self.device).float()
        index = self.parts[number].index(split)[rows]
        return self.through(self._pictures(number, index, view), self.first)

    def _pictures(self, number, index, view):
        parameters = None
        if view is not None:
            if (number, view) not in self._views:
                drawn = data.view_parameters(self.cfg, len(self.parts[number].images), view, number)
                self._views = {**{k: v for k, v in self._views.items() if k[0] != number}, (number, view): drawn}
            parameters = self._views[number, view]
        x = data.pictures(self.parts[number], index, self.cfg, self.device, parameters)
        return nets.to_input(x, self.pixels)

    @torch.no_grad()
    def through(self, x, first):
        """Input of stage `first` (b, ...) from network input (b, 3, px, px)."""
        for stage in self.stages[: first - 1]:
            x = stage(x)
        return nn.functional.adaptive_avg_pool2d(x, self.cfg.grid).flatten(1) if self.pooled and x.dim() == 4 else x

    # ---- Stored activations

    def _stored(self, number, split, view):
        """Memory-mapped (n, ...) float16 for a set's split and view, computed now if this is the first reader."""
        path = self._path(number, split, view)
        if (number, split, view) not in self._views:
            if not path.exists() and parallel.is_main():
                self._fill(number, split, view)
            parallel.barrier()
            stored = np.load(path, mmap_mode="r")
            self._views[number, split, view] = stored[:, self._columns()] if self._kind() == "pooled" else stored
        return self._views[number, split, view]

    def _kind(self):
        return "pooled" if self.pooled or self.first > len(self.stages) else f"stage{self.first - 1}"

    def _path(self, number, split, view):
        part, cfg = self.parts[number], self.cfg
        keys = {k: getattr(cfg, k) for k in VIEW_SETTINGS} | {"frame": part.frame.tolist(), "set": part.fingerprint}
        keys |= {"trunk": fingerprint(self.stages), "stages": [len(s) for s in self.stages], "number": number}
        keys |= {"split": hashlib.sha256(part.index(split).numpy().tobytes()).hexdigest()}
        digest = hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()[:12]
        root = Path(os.environ.get("DATA_ROOT") or sets.REPOSITORY_DATA) / "activations"
        return root / f"{part.name}-{split}-{'plain' if view is None else view}-{self._kind()}-{digest}.npy"

    def _columns(self):
        """Columns of the `pooled` file that hold the output of stage first - 1."""
        ends = np.cumsum([0, *self._widths()])
        return slice(int(ends[self.first - 2]), int(ends[self.first - 1]))

    def _widths(self):
        """Numbers that the `pooled` file keeps of each stage: C x grid x grid of a map, the embedding as it is."""
        x = torch.zeros(1, 3, self.cfg.input_px, self.cfg.input_px, device=self.device)
        return [raster.shape[1] for raster in self._rasters(x)]

    @torch.no_grad()
    def _rasters(self, x):
        found = []
        for stage in self.stages:
            x = stage(x)
            some = nn.functional.adaptive_avg_pool2d(x, self.cfg.grid).flatten(1) if x.dim() == 4 else x
            found.append(some)
        return found

    def _fill(self, number, split, view):
        """Compute one file: all stages' averages in one pass of the trunk, or the maps below stage `first`."""
        path, index = self._path(number, split, view), self.parts[number].index(split)
        read = lambda rows: self._pictures(number, index[rows], view)
        if self._kind() == "pooled":
            work = lambda rows: torch.cat(self._rasters(read(rows)), 1)
        else:
            work = lambda rows: self.through(read(rows), self.first)
        shape = tuple(work(torch.zeros(1, dtype=torch.long)).shape[1:])
        refuse_full_disk(path, 2 * len(index) * int(np.prod(shape)))
        rows = torch.arange(len(index)).split(CHUNK)
        with checkpoint.atomic(path) as temporary:
            out = np.lib.format.open_memmap(temporary, "w+", np.float16, (len(index), *shape))
            for chunk in tqdm(rows, desc=path.stem, disable=None, leave=False, unit_scale=CHUNK, unit="faces"):
                out[chunk.numpy()] = work(chunk).clamp(-6e4, 6e4).half().cpu().numpy()
            out.flush()


def refuse_full_disk(path, size):
    """UserError when `size` bytes, with a tenth to spare, do not fit the disk of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if 1.1 * size > free:
        raise UserError(
            f"{path}: needs {size / 2**30:.1f} GiB, {free / 2**30:.1f} are free; free some space, set DATA_ROOT, or "
            "recompute instead: --cache-from 99"
        )


def label_of(part, name, index):
    """Labels (b,) of an attribute for faces of a part; -1 where the part does not have it."""
    return part.labels[name][index] if name in part.labels else torch.full((len(index),), -1)


def fingerprint(stages):
    """Hex digest over the tensors of a trunk."""
    digest = hashlib.sha256()
    for stage in stages:
        for name, value in stage.state_dict().items():
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def bfloat(cfg, device):
    """Autocast where the settings ask for it."""
    with torch.autocast(device.type, torch.bfloat16, enabled=cfg.precision == "bf16"):
        yield
