"""Settings of a run and the rows of the table. Each default is the released code's value or marked as our choice."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch

from facepapers.common.cli import MissingData, UserError
from facepapers.common.evidence import runs
from facepapers.common.plan import Plan
from facepapers.common.training import precision
from facepapers.papers.resup import nets, noise
from facepapers.papers.resup.rows import ROWS

PAPER = "resup"
DATA = ("ferplus", "rafdb", "affectnet", "embedded")
WEIGHTING = ("none", "own", "swapped", "coteaching", "oracle", "bayes")


@dataclass(frozen=True)
class Files:
    """Starting weights of the networks."""

    weights0: Path | None = None  # weights file of the first network (a torchvision ResNet-18): see --init
    weights1: Path | None = None  # weights file of the second network

    @property
    def both(self) -> tuple[Path | None, Path | None]:
        """The files in the networks' order."""
        return self.weights0, self.weights1


NO_FILES = Files()


@dataclass(frozen=True)
class Config:
    """Everything that decides a run's outcome. Defaults: the released code's run on RAF-DB."""

    preset: str = "paper"  # the settings that stand for it; see PRESETS
    data: str = "rafdb"  # the one set that the released code reads; see DATA
    rule: str = "majority"  # how FERPlus votes become labels; see common/data/expressions.py
    row: str = "resup"  # see ROWS; the four settings below are a row's
    nets: int = 2  # networks that are trained together; 1 has no other to weigh for
    weighting: str = "swapped"  # see WEIGHTING
    evidence: str = "similarity"  # or "loss", or ours: "bayes"
    consistency: float = 5.0  # weight of the difference between the networks' outputs (released code)
    seed: int = 0  # the noise draw, the initialisation and the order of the samples
    noise: float = 0.3  # share of flipped training labels, [0, 1)
    noise_kind: str = "symmetric"  # or "fer2013": its labels, checked by FERPlus, whatever `noise` says
    init: tuple[str, ...] = ("msceleb", "imagenet")  # of the two networks (released code); or "scratch"
    stem: str = "imagenet"  # first layers: imagenet, small, small2; see nets.ResNet
    width: int = 64  # channels of the first stage (ResNet-18)
    units: tuple[int, ...] = (2, 2, 2, 2)  # blocks of each stage (ResNet-18)
    dropout: float = 0.0  # share of the features that are dropped before the classifier
    input_px: int = 224  # side of the networks' input (released code)
    augment: str = "paper"  # or ours: "strong", and "flip" alone
    apart: bool = False  # each network has its own augmentation and, while warming up, its own order (ours)
    batch: int = 96  # over all processes; the last incomplete batch of an epoch is left out (our choice)
    epochs: int = 30  # passes over the training faces (released code)
    warmup: int = 1  # epochs of plain cross-entropy
    optimizer: str = "adam"  # or adamw, sgd
    lr: float = 2e-4  # learning rate at its peak (released code)
    drops: tuple[int, ...] = (10, 20)  # lr / 10 after these epochs; none: one cosine to zero (our choice)
    restart: bool = False  # a cosine to zero over the warm-up and another one over the rest, in place of drops (ours)
    lr_warmup: int = 0  # epochs of linear warm-up of lr
    momentum: float = 0.9  # sgd
    weight_decay: float = 0.0  # of all parameters (released code)
    clip: float = 10.0  # largest norm of each network's gradient (our guard, rarely reached)
    precision: str = "fp32"  # or bf16 (autocast of the networks), or auto: see common/precision.py
    judge_view: str = "augmented"  # images that a noise model is fitted on (released code); "clean" is ours
    weights_from: str = "step"  # of the training pass (released code); "epoch": as in the noise models' last pass
    forget_ramp: int = 10  # Co-teaching: epochs until it drops the noise rate (Han et al., T_k)
    flip_test: bool = False  # ours: predictions are the mean of image and mirror image
    test_scales: tuple[float, ...] = (1.0,)  # ours: and of central crops of these sizes
    # Our variants, from the warm-up's end on; all off in the paper's rows.
    averaging: float = 0.0  # decay of running averages of the weights, which then feed the noise models and are tested
    relabel: bool = False  # the rest 1 - w of a label goes to the networks' mean prediction
    smoothing: float = 0.0  # of the labels
    judge_again: int = 5  # row "bayes": epochs for which the noise model keeps what the warm-up's networks said

    @property
    def run_name(self) -> str:
        """Folder of the run."""
        return runs.run_name(self, preset(self.preset, self.row, self.data))

    @property
    def has_noise_model(self) -> bool:
        """Whether the row uses a noise model."""
        return self.weighting in ("own", "swapped", "bayes")


BY_ROW = {
    "ce": dict(nets=1, weighting="none", consistency=0.0),
    "ce_two": dict(weighting="none", consistency=0.0),
    "own": dict(weighting="own", consistency=0.0),
    "swapped": dict(consistency=0.0),
    "resup": dict(),
    "loss_mixture": dict(evidence="loss"),
    "coteaching": dict(weighting="coteaching", consistency=0.0),
    "oracle": dict(weighting="oracle", consistency=0.0),
    "ce_plus": dict(weighting="none", averaging=0.998),
    "resup_plus": dict(averaging=0.998, smoothing=0.1, judge_view="clean", weights_from="epoch", relabel=True),
    "resup_bayes": dict(evidence="bayes", judge_view="clean"),
    "bayes": dict(weighting="bayes", averaging=0.998, judge_view="clean"),
}  # fmt: skip
# From scratch; all of it is our choice. Similarities tell little until the learning rate has fallen once, and a noise
# model that starts earlier confirms its own errors, so the warm-up ends an epoch after that. Stem and epochs are what a
# CPU core can do in under an hour a row; in so short a training wrong labels were learned by heart under mirroring
# alone.
SHORT = dict(
    data="ferplus", init=("scratch", "scratch"), stem="small2", width=32, input_px=48, augment="flip", apart=True,
    batch=64, epochs=24, warmup=11, optimizer="sgd", lr=0.05, drops=(10, 18), lr_warmup=1, weight_decay=5e-4,
    precision="auto",
)  # fmt: skip
# Our recipe for accuracy: augmentation that leaves little to learn by heart, and a second half started anew.
STRONG = SHORT | dict(augment="strong", drops=(), restart=True, warmup=12, epochs=26, flip_test=True)
LONG = STRONG | dict(epochs=44, test_scales=(0.93, 1.0))
DEMO = SHORT | dict(
    data="embedded", units=(1, 1, 1), input_px=32, drops=(), batch=50, epochs=12, warmup=4,
    noise=0.4, optimizer="adamw", lr=3e-3, weight_decay=0.01,
)  # fmt: skip
LEVELS = (0, 10, 20, 40)  # percent, beside the 30 of `short`
PRESETS = {
    "paper": Config(),
    "short": Config(preset="short", **SHORT),
    "demo": Config(preset="demo", **DEMO),
    **{f"noise{p}": Config(preset=f"noise{p}", **SHORT | dict(noise=p / 100)) for p in LEVELS},
    "real": Config(preset="real", **SHORT | dict(noise=0.0, noise_kind="fer2013")),
    "strong": Config(preset="strong", **STRONG),
    "strong0": Config(preset="strong0", **STRONG | dict(noise=0.0)),
    "long": Config(preset="long", **LONG),
    "long0": Config(preset="long0", **LONG | dict(noise=0.0)),
}
HOURS = "about 45 minutes for the first row of a seed on a CPU core with COMPILE=1, half an hour for the next"
LONG_HOURS = "over an hour for a row on a CPU core with COMPILE=1"
# What `make reproduce-resup` runs of a preset when nothing else is asked for.
PLAN = {
    "demo": Plan(("embedded",), ("ce", "resup"), (0,), reference_s=150.0),
    "short": Plan(("ferplus",), ("ce_two", "resup"), (0,), HOURS),
    **{f"noise{p}": Plan(("ferplus",), ("ce_two", "resup"), (0,), HOURS) for p in LEVELS},
    "real": Plan(("ferplus",), ("ce_two", "resup"), (0,), HOURS),
    "strong": Plan(("ferplus",), ("ce_two", "bayes"), (0,), HOURS),
    "strong0": Plan(("ferplus",), ("ce_two",), (0,), HOURS),
    "long": Plan(("ferplus",), ("ce_two", "bayes"), (0,), LONG_HOURS),
    "long0": Plan(("ferplus",), ("ce_two",), (0,), LONG_HOURS),
    "paper": Plan(("rafdb", "affectnet"), ("ce", "resup"), (0,), "hours on one GPU", needs_gpu=True),
}


def preset(name: str, row: str = "resup", data: str | None = None) -> Config:
    """The configuration of a preset's row on a data set (None: the preset's own). UserError for an unknown name."""
    data = data or (PRESETS[name].data if name in PRESETS else DATA[0])
    for value, known, what in ((name, PRESETS, "preset"), (row, ROWS, "row"), (data, DATA, "data set")):
        if value not in known:
            raise UserError(f"unknown {what} {value!r}: known are {', '.join(known)}")
    return dataclasses.replace(PRESETS[name], row=row, data=data, **BY_ROW[row])


def shares(cfg: Config) -> tuple | None:
    """What runs share that make their warm-up once, None for a run without one; see train.warm_up_file."""
    return (cfg.preset, cfg.data, cfg.seed) if cfg.nets > 1 and cfg.warmup < cfg.epochs else None


def check(cfg: Config) -> None:
    """UserError for a setting that cannot work, before any data is read."""
    noise.check_rate(cfg.noise)
    precision.check(cfg.precision)
    limits = {
        "row": cfg.row in ROWS, "data": cfg.data in DATA, "nets": cfg.nets in (1, 2), "batch": cfg.batch >= 2,
        "weighting": cfg.weighting in WEIGHTING and (cfg.nets == 2 or cfg.weighting in ("none", "own")),
        "evidence": cfg.evidence in ("similarity", "loss", "bayes"), "consistency": cfg.consistency >= 0,
        "noise_kind": cfg.noise_kind in ("symmetric", "fer2013"),
        "init": len(cfg.init) == 2 and set(cfg.init) <= {"scratch", "msceleb", "imagenet", "file"},
        "stem": cfg.stem in nets.STEMS, "width": cfg.width >= 4, "units": len(cfg.units) >= 1 and min(cfg.units) >= 1,
        "dropout": 0 <= cfg.dropout < 1, "input_px": cfg.input_px >= 8,
        "augment": cfg.augment in ("paper", "strong", "flip"),
        "epochs": cfg.epochs >= 1, "warmup": cfg.warmup >= 1, "optimizer": cfg.optimizer in ("adam", "adamw", "sgd"),
        "lr": cfg.lr > 0, "weight_decay": cfg.weight_decay >= 0, "clip": cfg.clip > 0, "lr_warmup": cfg.lr_warmup >= 0,
        "judge_view": cfg.judge_view in ("augmented", "clean"),
        "restart": not (cfg.restart and cfg.drops),
        "test_scales": len(cfg.test_scales) >= 1 and all(0 < s <= 2 for s in cfg.test_scales),
        "weights_from": cfg.weights_from in ("step", "epoch"), "averaging": 0 <= cfg.averaging < 1,
        "relabel": not cfg.relabel or (cfg.weighting in ("own", "swapped") and cfg.weights_from == "epoch"),
        "smoothing": 0 <= cfg.smoothing < 1, "judge_again": cfg.judge_again >= 1,
    }  # fmt: skip
    for name, fine in limits.items():
        if not fine:
            raise UserError(f"--{name.replace('_', '-')} {getattr(cfg, name)}: not a usable value here; see --help")
    precision.check_channels("--width", (cfg.width,))


def build_net(cfg: Config, classes: int) -> nets.ResNet:
    """One network of the row with random weights."""
    return nets.ResNet(classes, cfg.stem, cfg.width, cfg.units, cfg.dropout)


def build_peers(cfg: Config, classes: int, given: Files = NO_FILES) -> nets.PeerNetworks:
    """The row's networks with their starting weights: network m of a seed is the same in every row.

    Init "msceleb" and "file" need a `given` file, "imagenet" may have one; else MissingData.
    """
    files = given.both
    if cfg.nets == 1 and files[1]:
        raise UserError(f"--weights1 {files[1]}: row {cfg.row} has one network, which takes --weights0")
    members = []
    for m in range(cfg.nets):
        torch.manual_seed(2 * cfg.seed + m)
        net, kind = build_net(cfg, classes), cfg.init[m]
        if kind == "scratch" and files[m]:
            raise UserError(f"--weights{m} {files[m]}: --init {' '.join(cfg.init)} does not read it; take `file` there")
        if files[m]:
            nets.load_body(net, files[m])
        elif kind == "imagenet":
            nets.load_imagenet(net)
        elif kind != "scratch":
            raise MissingData(
                f"--init {' '.join(cfg.init)}: network {m} starts from a weights file: name it by --weights{m} FILE "
                "(a torchvision ResNet-18), or take --init scratch scratch"
            )
        members.append(net)
    return nets.PeerNetworks(members)
