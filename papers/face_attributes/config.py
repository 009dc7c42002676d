"""Settings of a run and the rows of the table. What the paper says is marked; nearly all of it is our choice.

Only the abstract is known: no layer, data-set size, class list, learning rate or accuracy. The defaults below are
therefore ours throughout.
"""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facepapers.common.cli import UserError
from facepapers.common.plan import Plan
from facepapers.common.training import precision
from facepapers.common.vision.networks import GIVEN_SHA256

PAPER = "face_attributes"
STAGES = 5  # of a trunk with the cuts of method.CUTS
# Where an attribute's own layers start. The paper compares such depths; which and how many is not known.
DEPTHS = {"linear": STAGES + 1, **{f"stage{k}": k for k in range(STAGES, 0, -1)}}
ROWS = {
    "trunk": "identity network trained in the demo",
    **{f"probe{k}": f"linear readout of frozen stage {k}" for k in range(1, STAGES + 1)},
    "linear": "one linear layer on the embedding (usual baseline)",
    **{f"stage{k}": f"relearned from stage {k}" for k in range(STAGES, 0, -1)},
    "mlp": "fresh hidden layer on the embedding, as many parameters as stage 4 to the top (control)",
    **{f"only{k}": f"only stage {k} relearned (control)" for k in range(STAGES, 0, -1)},
    "scratch": "all stages from random weights (control)",
    "random": "linear layer on an untrained trunk (control)",
    "joint": "one moving trunk for all attributes",
    "best": "separate networks, each attribute's best start on validation",
    "chosen": "cheapest shared pattern within the margin on validation",
}


@dataclass(frozen=True)
class Files:
    """Files of this machine."""

    weights: Path | None = None  # of the identity network; without it the file in data/raw/ that --trunk names


@dataclass(frozen=True)
class Config:
    """Everything that decides a run's outcome."""

    preset: str = "paper"  # the settings that stand for it; see PRESETS
    data: str = "utkface+ferplus"  # sets joined by +; the paper's own set was never released
    row: str = "stage3"  # see ROWS
    seed: int = 0  # of the weights and the order of the faces
    trunk: str = GIVEN_SHA256  # sha256 of the identity network's weights, "random", or "demo" (that of row "trunk")
    cuts: tuple[str, ...] = ()  # blocks that begin stage 2, 3, ...; none: method.CUTS
    input_px: int = 112  # the given trunk's
    batch: int = 64  # faces of each set in a step, over all processes
    steps: int = 5_000  # updates; per depth in SCHEDULE
    lr: float = 5e-4  # peak, AdamW; per depth in SCHEDULE
    head_rate: float = 4.0  # the linear layer's rate over the stages'
    weight_decay: float = 0.05  # of weights, not of biases and normalisation
    clip: float = 5.0  # largest norm of the gradient
    warmup: int = 100  # steps of linear warm-up
    averaging: float = 0.99  # decay of a running average of the weights, 0 is off
    statistics: str = "batch"  # of a branch's BatchNorm: its own batches', or the trunk's "frozen" ones (then folded)
    precision: str = "fp32"  # or bf16 (autocast), or auto: see common/precision.py
    views: int = 0  # fixed augmented versions of each face; 0: a new one each pass
    cache_from: int = 99  # starts from this stage on read cached activations of the views (fp16, on disk)
    rotation_deg: float = 8.0  # +-
    log_size: float = 0.08  # +-
    shift: float = 0.04  # +-, share of the input side
    colour: float = 0.2  # +-, brightness, contrast, saturation
    age_sigma: float = 2.0  # years; spread of a label over neighbouring years
    labels: float = 1.0  # share of the training faces that is used (shape S6)
    grid: int = 2  # raster of a probe's averages
    candidates: tuple[str, ...] = (*DEPTHS, "scratch")  # rows that "best" and "chosen" choose among
    margin: float = 1.0  # points below its best start that an attribute may lose to save computation
    units: tuple[int, ...] = (1, 1, 1, 1)  # the demo's identity network: blocks of its stages
    widths: tuple[int, ...] = (16, 32, 64, 128)  # the demo's identity network: channels of its stages
    features: int = 64  # the demo's identity network: width of its embedding

    @property
    def run_name(self) -> str:
        """Folder of the run: the row, or the row with a hash of what was changed."""
        return self.name_of(self.row)

    def name_of(self, row: str) -> str:
        """Folder of another row of the same run: same data, preset, seed and changed settings of training."""
        from facepapers.common.evidence.runs import run_name

        base = dataclasses.replace(preset(self.preset, self.row, self.data), seed=self.seed)
        choice = () if row == self.row else ("margin", "candidates")  # these choose among rows and train none
        changes = {k: v for k, v in self.changes(base).items() if k not in choice}
        mine = dataclasses.replace(preset(self.preset, row, self.data), seed=self.seed, **changes)
        return run_name(mine, preset(self.preset, row, self.data))

    def changes(self, base: "Config") -> dict[str, object]:
        """Settings that differ from those of `base`, name -> value."""
        return {k: v for k, v in dataclasses.asdict(self).items() if v != getattr(base, k)}


MAIN = ("linear", "stage5", "stage4", "stage3")
# Two CPU cores: branches keep the trunk's statistics (folded into their convolutions, which is faster), each face
# has four fixed views, and what is frozen below the branch is computed once. Stages 2 and 1 are run beside.
SHORT = dict(statistics="frozen", views=4, cache_from=3, batch=48, candidates=MAIN)
# Peak rates and steps of the short preset. Rates: the best of three in `tune` (stages 5 to 3 and linear;
# results/face_attributes/tuning.csv), the others by analogy. Steps: what two cores can do.
READOUT, FULL = dict(lr=4e-3, steps=4_000), dict(lr=5e-4, steps=600)
SCHEDULE: dict[str, dict[str, Any]] = {
    **{f"probe{k}": READOUT for k in range(1, STAGES + 1)}, "linear": READOUT, "random": READOUT,
    "mlp": dict(lr=1e-3, steps=4_000), "joint": FULL, "scratch": FULL,
    **{f"{kind}{k}": schedule for kind in ("stage", "only") for k, schedule in {
        5: dict(lr=1e-3, steps=3_000), 4: dict(lr=5e-4, steps=2_500), 3: dict(lr=3e-4, steps=1_500), 2: FULL, 1: FULL,
    }.items()},
}  # fmt: skip
DEMO = dict(
    data="embedded", trunk="demo", input_px=32, batch=64, steps=90, lr=2e-3, head_rate=4.0, warmup=10, averaging=0.95,
    statistics="frozen", views=2, cache_from=3, age_sigma=4.0, candidates=("linear", "stage5", "stage3", "stage2"),
)  # fmt: skip
PRESETS = {
    "paper": Config(batch=128, steps=6_000),
    "short": Config(preset="short", **SHORT),
    "few": Config(preset="few", labels=0.1, **SHORT),
    "demo": Config(preset="demo", **DEMO),
}
TRUNK = dict(steps=260, lr=3e-3, averaging=0.0, views=0, cache_from=99)  # the demo's identity network
BY_ROW: dict[str, dict[str, Any]] = {
    "random": dict(trunk="random", cache_from=STAGES + 1),  # only this row reads what its trunk computes: store no maps
    "scratch": dict(statistics="batch"),
}

PLAN = {
    "demo": Plan(
        ("embedded",), ("trunk", "probe2", "probe4", "linear", "stage5", "stage3", "stage2", "best", "chosen"), (0,),
        reference_s=84.0,
    ),
    "short": Plan(
        ("utkface+ferplus",),
        (*(f"probe{k}" for k in range(1, STAGES + 1)), *MAIN, "best", "chosen"), (0,),
        "hours on two CPU cores; see NOTES.md",
    ),
    "few": Plan(("utkface+ferplus",), MAIN, (0,), "half an hour on two CPU cores"),
    "paper": Plan(
        ("utkface+ferplus", "fairface+ferplus"), (*DEPTHS, "scratch", "joint", "best", "chosen"), (0, 1, 2),
        "six depths, three seeds: sized for a GPU", needs_gpu=True,
    ),
}  # fmt: skip


def preset(name: str, row: str = "stage3", data: str | None = None) -> Config:
    """The configuration of a preset's row on a data set (None: the preset's own). UserError for an unknown name."""
    for value, known, what in ((name, PRESETS, "preset"), (row, ROWS, "row")):
        if value not in known:
            raise UserError(f"unknown {what} {value!r}: known are {', '.join(known)}")
    own: dict[str, Any] = dict(BY_ROW.get(row, {}))
    if name in ("short", "few"):
        own |= SCHEDULE.get(row, {})
    if name == "few" and "steps" in own:
        own["steps"] //= 4  # still more passes over its few faces than the short preset makes
    if row == "trunk":
        own |= TRUNK
    return dataclasses.replace(PRESETS[name], row=row, data=data or PRESETS[name].data, **own)


def needs(cfg: Config) -> tuple[tuple[str, int], ...]:
    """((row, seed), ...) of the runs that must be finished before this one."""
    rows = cfg.candidates if cfg.row in ("best", "chosen") else ()
    trunk = ("trunk",) if cfg.trunk == "demo" and cfg.row != "trunk" else ()
    return tuple((row, cfg.seed) for row in (*trunk, *rows))


def check(cfg: Config) -> None:
    """UserError for a setting that cannot work, before any data is read."""
    precision.check(cfg.precision)
    limits = {
        "row": cfg.row in ROWS, "steps": cfg.steps >= 1, "batch": cfg.batch >= 2, "lr": cfg.lr > 0,
        "statistics": cfg.statistics in ("batch", "frozen"),
        "averaging": 0 <= cfg.averaging < 1, "views": cfg.views >= 0, "labels": 0 < cfg.labels <= 1,
        "margin": cfg.margin >= 0, "grid": cfg.grid >= 1, "clip": cfg.clip > 0, "head_rate": cfg.head_rate > 0,
        "age_sigma": cfg.age_sigma >= 0, "weight_decay": cfg.weight_decay >= 0, "input_px": cfg.input_px >= 16,
        "trunk": cfg.trunk in ("random", "demo") or re.fullmatch(r"[0-9a-f]{64}", cfg.trunk) is not None,
    }  # fmt: skip
    limits["candidates"] = len(cfg.candidates) > 1 and "linear" in cfg.candidates and set(cfg.candidates) <= set(ROWS)
    for name, fine in limits.items():
        if not fine:
            raise UserError(f"--{name.replace('_', '-')} {getattr(cfg, name)}: not a usable value; see --help")
    if cfg.data == "embedded":  # the demo alone makes its own trunk
        precision.check_channels("--widths", cfg.widths)
    if cfg.row == "trunk" and cfg.data != "embedded":
        raise UserError("--row trunk: only the demo trains its identity network; name one by --weights FILE")
    if cfg.cache_from <= STAGES and not cfg.views:
        raise UserError("--cache-from: only fixed views can be cached; give --views 4, or --cache-from 99")


def start_of(row: str, stages: int = STAGES) -> int:
    """Stage where a row's own layers start; stages + 1 for a layer on the embedding."""
    if row in ("linear", "random", "mlp", "joint"):
        return stages + 1
    if row == "scratch":
        return 1
    number = int(row[-1])
    if number > stages:
        raise UserError(f"--row {row}: this trunk is cut into {stages} stages")
    return number + 1 if row.startswith("probe") else number
