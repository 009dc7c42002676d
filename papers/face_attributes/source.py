"""What the branches read in each step: faces in the trunk's frame, or stored activations of the frozen stages below.

Frozen stages give the same activations for the same face each time, so a fixed number of augmented views per face can
be computed once and read by every row, seed and pass (fp16, memory-mapped, under data/activations/). One pass of the
trunk over a set's view writes all that any row may read.
"""

import contextlib
import copy
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from facepapers.common import seeding, storage
from facepapers.common.cli import UserError
from facepapers.common.data import registry as sets
from facepapers.common.progress import progress
from facepapers.common.training import parallel
from facepapers.common.vision import networks
from facepapers.papers.face_attributes import data, method
from facepapers.papers.face_attributes.config import Config

CHUNK = 64
# Settings that decide what a stored view shows; with the trunk, the set and the stage they name its file.
VIEW_SETTINGS = ("views", "input_px", "rotation_deg", "log_size", "shift", "colour", "grid")


class Outputs(nn.Sequential):
    """Stages of a trunk, called for what each of them gives: [output of stage 1, ..., of the last]."""

    def forward(self, x):
        found = []
        for stage in self:
            x = stage(x)
            found.append(x)
        return found


class Source:
    """Training batches and test inputs for branches that start at stage `first` of a trunk in `stages`.

    `pooled` (a probe of stage first - 1) reads averages over a raster instead of activation maps. The trunk is not
    changed: what is frozen runs on a copy with folded normalisation, equal up to rounding and faster.
    """

    def __init__(
        self,
        cfg: Config,
        datasets: list[data.Dataset],
        stages: Sequence[nn.Module],
        pixels: str,
        first: int,
        device: torch.device,
        pooled: bool = False,
    ):
        self.cfg, self.datasets, self.first, self.device, self.pooled = cfg, datasets, first, device, pooled
        self.stages, self.pixels = [s.to(device).eval() for s in stages], pixels
        self.fast = [networks.channels_last(method.fold(copy.deepcopy(s))).eval() for s in self.stages]
        top = first > len(stages)
        self.stored = cfg.views > 0 and (pooled or top or first >= cfg.cache_from)
        self.pools = [dataset.index("train") for dataset in datasets]
        for dataset, pool in zip(datasets, self.pools, strict=True):
            if len(pool) < cfg.batch:
                raise UserError(f"--batch {cfg.batch}: {dataset.name} has only {len(pool)} training faces; use fewer")
        self.digest = fingerprint(stages)
        self._outputs: Callable | None = None  # of all stages, as fast as this machine can
        self._views: dict[tuple, Any] = {}  # drawn views of a set, and stored activations

    def prepare(self) -> None:
        """Store what training and tests will read; the other processes wait for the first one."""
        views = [("train", view) for view in range(self.cfg.views)] + [("val", None), ("test", None)]
        for number in range(len(self.datasets)) if self.stored and parallel.is_main() else ():
            for split, view in views:
                self._stored(number, split, view)
        parallel.barrier()

    def batch(self, step: int, share: slice) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, int]]:
        """(x (b, ...), name -> labels (b,) of this process, name -> labelled faces over all processes) of a step.

        `batch` faces of every set; `x` is what stage `first` takes. A set is passed over in a new order each time.
        """
        chosen = [self._rows(number, step) for number in range(len(self.datasets))]
        x = [self.inputs(number, rows[share], view) for number, (rows, view) in enumerate(chosen)]
        labels, counts = {}, {}
        for name in data.attributes_of(self.datasets):
            whole = [label_of(d, name, self.pools[i][chosen[i][0]]) for i, d in enumerate(self.datasets)]
            labels[name] = torch.cat([label[share] for label in whole]).to(self.device)
            counts[name] = int(sum((label >= 0).sum() for label in whole))
        return torch.cat(x), labels, counts

    def _rows(self, number, step):
        """Places (batch,) in the set's training pool and the view of a step."""
        cfg, n = self.cfg, round(self.cfg.labels * len(self.pools[number]))
        n = max(n, cfg.batch)
        fixed = torch.randperm(len(self.pools[number]), generator=seeding.generator(1609, number))[:n]
        turn, place = divmod(step, n // cfg.batch)
        order = torch.randperm(n, generator=seeding.generator(cfg.seed, 1, number, turn))
        view = turn % cfg.views if cfg.views else turn
        return fixed[order[place * cfg.batch : (place + 1) * cfg.batch]], view

    def inputs(self, number: int, rows: torch.Tensor, view: int | None = None, split: str = "train") -> torch.Tensor:
        """Input of stage `first` (b, ...), float32, of faces at places `rows` of a set's split; view None is plain."""
        if self.stored:
            stored = self._stored(number, split, view)
            return channels_last(torch.from_numpy(np.asarray(stored[rows.numpy()])).to(self.device).float())
        index = self.datasets[number].index(split)[rows]
        x = self._pictures(number, index, view)
        return self._wanted([x, *self._frozen(x, self.first - 1)])

    def _pictures(self, number, index, view):
        parameters = None
        if view is not None:
            if (number, view) not in self._views:
                drawn = data.view_parameters(self.cfg, len(self.datasets[number].images), view, number)
                self._views = {**{k: v for k, v in self._views.items() if k[0] != number}, (number, view): drawn}
            parameters = self._views[number, view]
        x = data.pictures(self.datasets[number], index, self.cfg, self.device, parameters)
        return channels_last(networks.to_input(x, self.pixels))

    @torch.no_grad()
    def _frozen(self, x, depth):
        """[output of stage 1, ..., of stage `depth`]."""
        return Outputs(*self.fast[:depth])(x)

    def _wanted(self, outputs):
        """What stage `first` reads: the last output, or its averages for a probe."""
        return self._averages(outputs[-1]) if self.pooled else outputs[-1]

    def _averages(self, x):
        """(b, C * grid * grid) of a map, an embedding as it is."""
        return nn.functional.adaptive_avg_pool2d(x, self.cfg.grid).flatten(1) if x.dim() == 4 else x

    # ---- Stored activations

    def _stored(self, number, split, view):
        """Memory-mapped (n, ...) float16 for a set's split and view, computed now if this is the first reader."""
        if (number, split, view) not in self._views:
            path = self._path(number, split, view, self._kind())
            if not path.exists():
                self._fill(number, split, view)
            stored = stored_array(path)
            self._views[number, split, view] = stored[:, self._columns()] if self._kind() == "averages" else stored
        return self._views[number, split, view]

    def _kind(self):
        return "averages" if self.pooled or self.first > len(self.stages) else f"stage{self.first - 1}"

    def _kinds(self):
        """Averages of all stages' outputs, and the maps that starts from `cache_from` on read."""
        return ["averages", *(f"stage{k}" for k in range(max(2, self.cfg.cache_from) - 1, len(self.stages)))]

    def _path(self, number, split, view, kind):
        dataset, cfg = self.datasets[number], self.cfg
        keys = {k: getattr(cfg, k) for k in VIEW_SETTINGS}
        keys |= {"frame": dataset.frame.tolist(), "set": dataset.fingerprint}
        keys |= {"trunk": self.digest, "stages": [len(s) for s in self.stages], "number": number}
        keys |= {"split": hashlib.sha256(dataset.index(split).numpy().tobytes()).hexdigest()}
        digest = hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()[:12]
        root = Path(os.environ.get("DATA_ROOT") or sets.REPOSITORY_DATA) / "activations"
        return root / f"{dataset.name}-{split}-{'plain' if view is None else view}-{kind}-{digest}.npy"

    def _columns(self):
        """Columns of the averages that hold the output of stage first - 1."""
        x = torch.zeros(1, 3, self.cfg.input_px, self.cfg.input_px, device=self.device)
        widths = [self._averages(y).shape[1] for y in self._frozen(x, len(self.stages))]
        ends = np.cumsum([0, *widths])
        return slice(int(ends[self.first - 2]), int(ends[self.first - 1]))

    def _fill(self, number, split, view):
        """Write all kinds of one set's split and view that are not there yet, in one pass of the trunk."""
        index = self.datasets[number].index(split)
        paths = {kind: self._path(number, split, view, kind) for kind in self._kinds()}
        paths = {kind: path for kind, path in paths.items() if not path.exists()}
        if self._outputs is None:
            self._outputs = parallel.frozen(Outputs(*self.fast), self.device)

        @torch.no_grad()
        def work(rows):
            outputs = self._outputs(self._pictures(number, index[rows], view))
            averages = torch.cat([self._averages(y) for y in outputs], 1)
            made = {"averages": averages, **{f"stage{k}": y for k, y in enumerate(outputs, start=1)}}
            return {kind: made[kind].clamp(-6e4, 6e4).half().cpu().numpy() for kind in paths}

        # All of one size, which a compiled network is made for: the last rows begin before the others end.
        ends = [*range(CHUNK, len(index), CHUNK), len(index)]
        chunks = [torch.arange(max(0, end - CHUNK), end) for end in ends]
        title = f"storing {self.datasets[number].name} {split} {'plain' if view is None else f'view {view}'}"
        with contextlib.ExitStack() as stack:
            names = {kind: stack.enter_context(storage.atomic(path)) for kind, path in paths.items()}
            out = {}
            for rows in progress(chunks, title, "batches"):
                made = work(rows)
                if not out:
                    shapes = {kind: (len(index), *array.shape[1:]) for kind, array in made.items()}
                    refuse_full_disk(next(iter(paths.values())), sum(2 * math.prod(s) for s in shapes.values()))
                    out = {k: np.lib.format.open_memmap(n, "w+", np.float16, shapes[k]) for k, n in names.items()}
                for kind, array in made.items():
                    out[kind][rows.numpy()] = array
            for array in out.values():
                array.flush()


def stored_array(path: Path) -> np.ndarray:
    """Stored activations, memory-mapped. UserError where the file is damaged."""
    return storage.read_array(path, "delete it, and it is computed again", mapped=True)


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """The layout that convolutions are fastest in."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def refuse_full_disk(path: Path, size: int) -> None:
    """UserError when `size` bytes, with a tenth to spare, do not fit the disk of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if 1.1 * size > free:
        raise UserError(
            f"{path}: needs {size / 2**30:.1f} GiB, {free / 2**30:.1f} are free; free some space, set DATA_ROOT, or "
            "recompute instead: --cache-from 99"
        )


def label_of(dataset: data.Dataset, name: str, index: torch.Tensor) -> torch.Tensor:
    """Labels (b,) of an attribute for faces of a dataset; -1 where the dataset does not have it."""
    return dataset.labels[name][index] if name in dataset.labels else torch.full((len(index),), -1)


def fingerprint(stages: Sequence[nn.Module]) -> str:
    """Hex digest over the tensors of a trunk."""
    digest = hashlib.sha256()
    for stage in stages:
        for name, value in stage.state_dict().items():
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
