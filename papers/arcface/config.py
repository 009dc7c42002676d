"""Settings of a run and the rows of the table. Each default is the paper's value or marked as our choice."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from facepapers.common.cli import UserError
from facepapers.common.evidence import runs
from facepapers.common.plan import Plan
from facepapers.common.training import parallel, precision
from facepapers.common.vision.networks import GIVEN_SHA256
from facepapers.papers.arcface import method
from facepapers.papers.arcface.nets import NETS, IResNet, Net, make_net
from facepapers.papers.arcface.partial import ShardedHead

PAPER = "arcface"
ROWS = {
    "softmax": "softmax",
    "norm_softmax": "norm-softmax",
    "sphereface": "SphereFace (m1 = 1.35)",
    "cosface": "CosFace (m3 = 0.35)",
    "arcface": "ArcFace (m2 = 0.5)",
    "cm1": "combined (1, 0.3, 0.2)",
    "cm2": "combined (0.9, 0.4, 0.15)",
    "triplet": "triplet on angles (0.35)",
    "subcenter": "sub-center ArcFace (K = 3)",
    "cleaned": "ArcFace after sub-center cleaning",
    "together": "ArcFace, mean distance of three seeds (ours)",
    "given": "given MobileFaceNet weights (not trained by us)",
}
PROTOCOLS = ("view1", "view2", "tune", "pairs", "bins", "retrieval")


@dataclass(frozen=True)
class Config:
    """Everything that decides a run's outcome.

    The `paper` preset has the values of the CASIA column of Table 2 (CVPR text, section 3.1), which the comments name.
    """

    preset: str = "paper"  # a name of PRESETS: the settings that stand for it
    data: str = "casia"  # casia | ms1mv2 (RecordIO or image folders), lfw, omniglot, embedded
    protocol: str = "bins"  # tested: bins, LFW's view1, view2, pairs, Omniglot's retrieval; tune stays in what trains
    row: str = "arcface"  # the loss; see ROWS
    seed: int = 0  # of the weights, the order of faces and their augmentation
    weights: str = ""  # sha256 of weights that are tested without training (row "given")
    net: str = "iresnet50"  # Table 2; iresnet100 for MS1MV2
    units: tuple[int, ...] = ()  # with net "iresnet": units of the four stages
    widths: tuple[int, ...] = ()  # with net "iresnet": channels of the four stages
    strided_stem: bool = False  # with net "iresnet": see common/vision/networks.py
    kaiming: bool = False  # convolutions start by Kaiming's rule; insightface: N(0, 0.1)
    features: int = 512  # section 3.1
    dropout: float = 0.4  # the paper's code (mxnet); 0 in the torch script
    members: int = 1  # seeds that row "together" tests as one (ours)
    joint_bayes: float = 0.0  # share of variance between people in a second test of the pairs (ours); see bayes.py
    input_px: int = 112  # section 3.1
    batch: int = 512  # section 3.1, over all processes
    steps: int = 32_000  # section 3.1, CASIA
    optimizer: str = "sgd"  # section 3.1; "adamw" is ours, for short runs
    lr: float = 0.1  # section 3.1
    drops: tuple[int, ...] = (20_000, 28_000)  # lr / 10 at these steps; none: one cosine to zero (our choice)
    warmup: int = 0  # steps of linear warm-up
    momentum: float = 0.9  # section 3.1
    nesterov: bool = False  # SGD with Nesterov's momentum (ours, for short runs)
    weight_decay: float = 5e-4  # section 3.1; on everything, W included
    clip: float = 5.0  # largest norm of the network's gradient (insightface's torch script)
    averaging: float = 0.0  # decay of a running average of the weights, 0 is off (the paper has none)
    precision: str = "fp32"  # of the network (the head is float32 always); bf16, auto: see common/training/precision.py
    scale: float = 64.0  # s, of the cosines (section 3.1)
    strength: float = 1.0  # share of the row's margin: m2 = 0.5 * strength and so on (our way to shrink all alike)
    margin_warmup: float = 0.0  # share of the steps in which the margin grows linearly from zero
    past_pi: str = "keep_decreasing"  # see method.PAST_PI
    gradient: str = "full"  # see method.GRADIENTS
    intra: float = 0.0  # weight of the intra loss (section 2.3), added to a loss on the sphere; the paper's is 1
    inter: float = 0.0  # weight of the inter loss (section 2.3); it needs one centre a person
    triplet_margin: float = 0.35  # Table 2, radians
    images_per_person: int = 0  # of a batch; 0: images are drawn one by one. Triplet: 5 (insightface's settings)
    sharded: bool = False  # W spread over the processes, sampled at `sample_rate` (Partial FC)
    sample_rate: float = 1.0  # share of the classes in a step, with sharded
    augment: str = "flip"  # the paper's; "light", "strong" and, for characters, "glyph" are ours
    min_images: int = 1  # people with fewer images do not train
    noise: float = 0.0  # share of training labels replaced by another person's, for the sub-center rows
    workers: int = 2  # loader processes of sets that do not fit memory

    @property
    def run_name(self) -> str:
        """Folder of the run."""
        return runs.run_name(self, preset(self.preset, self.row, self.data))


# Of LFW's 4,038 people to train on 1,184 have two or more images, and these train: everything is smaller than in the
# paper, for every row alike and all our choice: by time, or by trials on held-out people of DevTrain (protocol "tune").
LFW = dict(
    data="lfw", net="iresnet", units=(2, 2, 2, 2), widths=(32, 64, 128, 256), kaiming=True, features=256, dropout=0.4,
    input_px=48, optimizer="adamw", lr=2e-3, weight_decay=0.05, drops=(), averaging=0.99, precision="auto", scale=16.0,
    strength=0.6, margin_warmup=0.3, augment="light", min_images=2, protocol="view1",
)  # fmt: skip
SHORT = LFW | dict(batch=128, steps=600, warmup=30)
LONG = LFW | dict(input_px=64, batch=128, steps=900, warmup=45, joint_bayes=0.4)  # our best recipe on held-out people
DEMO = dict(
    data="embedded", protocol="view1", net="iresnet", units=(1, 1, 1, 1), widths=(16, 32, 64, 128), kaiming=True,
    features=64, dropout=0.0, input_px=32, batch=64, steps=200, lr=0.1, drops=(), warmup=15, nesterov=True,
    precision="auto", scale=8.0, margin_warmup=0.3,
)  # fmt: skip
# Omniglot, a second real task: strangers' characters. Small enough for many seeds; as of LFW, all our choice.
OMNIGLOT = dict(
    data="omniglot", protocol="retrieval", net="iresnet", units=(1, 1, 1, 1), widths=(16, 32, 64, 128),
    strided_stem=True, kaiming=True, features=64, dropout=0.0, input_px=32, batch=128, steps=400, optimizer="adamw",
    lr=2e-3, weight_decay=0.05, drops=(), warmup=20, averaging=0.99, precision="auto", scale=16.0, strength=0.6,
    margin_warmup=0.3, augment="glyph",
)  # fmt: skip
NOISE_PCT = (10, 20, 30, 40)
PRESETS = {
    "paper": Config(),
    "short": Config(preset="short", **SHORT),
    "demo": Config(preset="demo", **DEMO),
    "view1": Config(preset="view1", **LONG),
    "view2": Config(preset="view2", **LONG | dict(protocol="view2")),
    "pairs": Config(preset="pairs", data="lfw", protocol="pairs", row="given", weights=GIVEN_SHA256),
    **{f"noise{p}": Config(preset=f"noise{p}", noise=p / 100, **SHORT) for p in NOISE_PCT},
    "omniglot": Config(preset="omniglot", **OMNIGLOT),
    **{f"omniglot_noise{p}": Config(preset=f"omniglot_noise{p}", noise=p / 100, **OMNIGLOT) for p in NOISE_PCT},
}
# Section 3.1: the longer schedule and the deeper network of MS1MV2, and what the loss of a row needs.
BY_DATA = {"ms1mv2": dict(net="iresnet100", steps=180_000, drops=(100_000, 160_000))}
BY_ROW = {
    "triplet": dict(images_per_person=4, min_images=2),  # our batches divide by 4, insightface took 5
    "together": dict(members=3),
}
# Where tune.py found a loss to be best, if not at the settings above; results/arcface/tuning*.csv.
TUNED: dict[str, dict[str, dict[str, Any]]] = {
    "lfw": {"norm_softmax": dict(scale=8.0), "cosface": dict(scale=8.0), "triplet": dict(triplet_margin=0.2)},
    "omniglot": {"softmax": dict(lr=4e-3), "norm_softmax": dict(scale=8.0), "triplet": dict(triplet_margin=0.1)},
}

COMPARED = ("softmax", "norm_softmax", "sphereface", "cosface", "arcface", "triplet")
NOISY = ("arcface", "subcenter", "cleaned")
# Of one network of preset short on the machine of common/plan.py, estimated: 56,000 GFLOP (three times the forward
# pass's) at 70 % of its matrix products' rate, a share that coarse-to-fine's network was measured to reach.
LFW_SECONDS = 1_075.0
# What `make reproduce-arcface` runs of a preset when nothing else is asked for.
PLAN = {
    "demo": Plan(("embedded",), ("softmax", "norm_softmax", "arcface"), (0,), reference_s=92.0),
    "short": Plan(("lfw",), COMPARED, (0,), reference_s=6 * LFW_SECONDS),
    "view1": Plan(("lfw",), ("arcface",), (0, 1, 2), "20 minutes a seed on a CPU core", needs_gpu=True),
    "view2": Plan(("lfw",), ("arcface",), (0,), "ten trainings, three hours on a CPU core", needs_gpu=True),
    "pairs": Plan(("lfw",), ("given",), (0,), "about 5 minutes on two CPU cores"),
    "paper": Plan(("casia", "ms1mv2"), ("arcface",), (0,), "16 million faces a run: sized for a GPU", needs_gpu=True),
    **{f"noise{p}": Plan(("lfw",), NOISY, (0,), reference_s=4 * LFW_SECONDS) for p in NOISE_PCT},
    "omniglot": Plan(("omniglot",), COMPARED, (0,), "two minutes a row on a CPU core"),
    **{
        f"omniglot_noise{p}": Plan(
            ("omniglot",), ("arcface", "cleaned"), (0,), "two to four minutes a row on a CPU core"
        )
        for p in NOISE_PCT
    },
}


def preset(name: str, row: str = "arcface", data: str | None = None) -> Config:
    """The configuration of a preset's row on a data set (None: the preset's own). UserError for an unknown name."""
    for value, known, what in ((name, PRESETS, "preset"), (row, ROWS, "row")):
        if value not in known:
            raise UserError(f"unknown {what} {value!r}: known are {', '.join(known)}")
    data = data or PRESETS[name].data
    own = BY_ROW.get(row, {}) | (BY_DATA.get(data, {}) if name == "paper" else {})
    own |= TUNED.get(data, {}).get(row, {})
    return dataclasses.replace(PRESETS[name], row=row, data=data, **own)


def needs(cfg: Config) -> tuple[tuple[str, int], ...]:
    """((row, seed), ...) of the runs that must be finished before this one."""
    return tuple(("arcface", cfg.seed + k) for k in range(cfg.members)) if cfg.row == "together" else ()


def check(cfg: Config) -> None:
    """UserError for a setting that cannot work, before any data is read."""
    precision.check(cfg.precision)
    iresnet = len(cfg.units) == len(cfg.widths) == 4 if cfg.net == "iresnet" else cfg.net in NETS
    limits = {
        "steps": cfg.steps >= 1, "batch": cfg.batch >= 2, "lr": cfg.lr > 0, "scale": cfg.scale > 0, "net": iresnet,
        "row": cfg.row in ROWS, "protocol": cfg.protocol in PROTOCOLS, "features": cfg.features >= 2,
        "optimizer": cfg.optimizer in ("sgd", "adamw"),
        "augment": cfg.augment in ("flip", "light", "strong", "glyph"),
        "averaging": 0 <= cfg.averaging < 1, "clip": cfg.clip > 0,
        "margin_warmup": 0 <= cfg.margin_warmup <= 1, "sample_rate": 0 < cfg.sample_rate <= 1,
        "noise": 0 <= cfg.noise < 1, "weight_decay": cfg.weight_decay >= 0, "min_images": cfg.min_images >= 1,
        "images_per_person": cfg.images_per_person >= 0 and cfg.batch % max(1, cfg.images_per_person) == 0,
        "joint_bayes": cfg.joint_bayes == 0 or (0 < cfg.joint_bayes < 1 and cfg.data in ("lfw", "embedded")),
        "intra": cfg.intra >= 0, "inter": cfg.inter >= 0,
        "members": cfg.members > 1 if cfg.row == "together" else cfg.members == 1,
    }  # fmt: skip
    for name, fine in limits.items():
        if not fine:
            raise UserError(f"--{name.replace('_', '-')} {getattr(cfg, name)}: not a usable value; see --help")
    drawn = cfg.data == "omniglot"
    if cfg.protocol not in ("retrieval", "tune") if drawn else cfg.protocol == "retrieval":
        raise UserError(f"--protocol {cfg.protocol}: omniglot goes with retrieval or tune, and retrieval with omniglot")
    if cfg.net == "iresnet":
        precision.check_channels("--widths", cfg.widths)
    if cfg.sharded:
        needs = {
            "--optimizer sgd": cfg.optimizer == "sgd", "--averaging 0": not cfg.averaging,
            f"--row one of {', '.join(method.MARGINS)}": cfg.row in method.MARGINS,
        }  # fmt: skip
        if lacking := [setting for setting, given in needs.items() if not given]:
            raise UserError(f"--sharded: the head takes its own steps, so it needs {' and '.join(lacking)}")
    elif cfg.sample_rate < 1:
        raise UserError(f"--sample-rate {cfg.sample_rate}: classes are sampled by the sharded head; add --sharded")
    for name, rows in (("intra", (*method.MARGINS, "subcenter", "cleaned")), ("inter", tuple(method.MARGINS))):
        if getattr(cfg, name) and (cfg.row not in rows or cfg.sharded):
            raise UserError(f"--{name} {getattr(cfg, name)}: goes with --row {', '.join(rows)}, without --sharded")
    if cfg.row == "triplet" and cfg.images_per_person < 2:
        raise UserError("--images-per-person: the triplet loss needs at least 2 images of a person in a batch")


def build_net(cfg: Config) -> Net:
    """The embedding network of a configuration."""
    net: Net
    if cfg.net == "iresnet":
        net = IResNet(cfg.units, cfg.widths, cfg.features, cfg.dropout, cfg.input_px, cfg.strided_stem)
    elif cfg.net.startswith("iresnet"):
        net = make_net(cfg.net, features=cfg.features, dropout=cfg.dropout, input_px=cfg.input_px)
    else:
        net = make_net(cfg.net, features=cfg.features)
    for module in net.modules() if cfg.kaiming else ():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, mode="fan_out")
    return net


def margins_at(cfg: Config, step: int) -> tuple[float, float, float]:
    """(m1, m2, m3) of a step: the row's margin times its strength, growing linearly in the margin's warm-up."""
    m1, m2, m3 = method.MARGINS[cfg.row if cfg.row in method.MARGINS else "arcface"]
    warm = min(1.0, (step + 1) / (cfg.margin_warmup * cfg.steps)) if cfg.margin_warmup else 1.0
    share = cfg.strength * warm
    return 1 + (m1 - 1) * share, m2 * share, m3 * share


def build_head(cfg: Config, classes: int) -> torch.nn.Module:
    """The loss of a row as a module: forward(embeddings, labels) of this process's images is a scalar."""
    if cfg.row == "triplet":
        return TripletHead(cfg.triplet_margin)
    if cfg.row == "softmax":
        return method.make_head("softmax", classes, cfg.features, check=False)
    rules = dict(margins=margins_at(cfg, 0), scale=cfg.scale, past_pi=cfg.past_pi, gradient=cfg.gradient)
    if cfg.sharded:
        return ShardedHead(classes, cfg.features, rate=cfg.sample_rate, seed=cfg.seed, **rules)
    centers = 3 if cfg.row == "subcenter" else 1  # K of section 3.2 (journal version)
    rules |= dict(centers=centers, intra=cfg.intra, inter=cfg.inter)
    return method.MarginHead(classes, cfg.features, check=False, **rules)


class TripletHead(torch.nn.Module):
    """The triplet loss over the images of all processes; it has no centres."""

    def __init__(self, margin: float) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return method.triplet_loss(parallel.gather(embeddings, True), parallel.gather(labels), self.margin)
