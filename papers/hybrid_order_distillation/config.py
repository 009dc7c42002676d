"""Settings of a run and the rows of the table. The paper's own are unknown: each default says whose it is."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from facepapers.common.cli import UserError
from facepapers.common.evidence import runs
from facepapers.common.plan import Plan
from facepapers.common.training import precision
from facepapers.common.vision.networks import GIVEN_SHA256
from facepapers.papers.hybrid_order_distillation.degrade import OPERATORS
from facepapers.papers.hybrid_order_distillation.nets import NETS

PAPER = "hybrid_order_distillation"
SUBSETS = ((1,), (2,), (3,), (1, 2), (1, 3), (2, 3), (1, 2, 3))
ROUTES = ("direct", "assistant", "init")


def name_of(orders: Sequence[int]) -> str:
    """A subset of the orders in the name of a row, such as 12."""
    return "".join(map(str, orders))


def title_of(orders: Sequence[int]) -> str:
    """A subset of the orders in the title of a row, such as orders 1+2."""
    return f"order{'s' * (len(orders) > 1)} {'+'.join(map(str, orders))}"


ROWS = {
    "teacher": "teacher at high resolution (ceiling)",
    "upsampled": "teacher fed low resolution (floor)",
    "alone": "student alone, with labels (floor)",
    "alone_assistant": "student alone, first at high resolution",
    "kd": "KD",
    "fitnet": "FitNet",
    **{f"direct_{name_of(o)}": f"{title_of(o)}, direct" for o in SUBSETS},
    **{f"assistant_{name_of(o)}": f"{title_of(o)}, assistant" for o in SUBSETS},
    "init_123": "orders 1+2+3, direct, started from the assistant",
    "direct_123_random": "orders 1+2+3, direct, random start",
    "assistant_123_random": "orders 1+2+3, assistant, random start",
}
KINDS = {"cifar100": "classification", "cub200": "retrieval", "cars196": "retrieval", "omniglot": "retrieval"}
UNTRAINED = ("teacher", "upsampled")  # rows that test the teacher


@dataclass(frozen=True)
class Files:
    """Files of this machine."""

    teacher: Path | None = None  # the given teacher's weights, where they are not in data/raw/


@dataclass(frozen=True)
class Config:
    """Everything that decides a run's outcome. Defaults: RepDistiller's CIFAR-100 recipe, for its published pairs."""

    preset: str = "paper"  # the settings that stand for it; see PRESETS
    data: str = "cifar100"  # cifar100 (classification), cub200, cars196, omniglot (retrieval), lfw, embedded
    row: str = "assistant_123"  # what the student learns from; see ROWS
    seed: int = 0  # of the weights, the order of the images and their views
    held_out: bool = False  # faces, for tuning: the test is a fifth of the training people
    teacher_sha256: str = ""  # of the given teacher's weights; empty: a teacher is trained first, at high resolution
    teacher_net: str = "resnet110"  # see nets.NETS
    teacher_features: int = 0  # width of its embedding; 0: the pooled features
    teacher_steps: int = 187_680  # a self-trained teacher's: 240 passes of 782 batches
    net: str = "resnet20"  # student's and assistant's
    features: int = 0  # width of the student's embedding; 0: the pooled features
    pretrained: str = ""  # safetensors of ImageNet weights (torchvision's keys) under teacher and student, or empty
    teacher_px: int = 32  # side of the teacher's input
    input_px: int = 32  # side of the student's and assistant's input
    resolution: int = 32  # pixels a side that the low-resolution image really has
    operator: str = "pil_bicubic"  # see degrade.py; the paper's is unknown, our choice
    other_operator: str = "plain_bicubic"  # robustness: tested, never trained on
    route: str = "assistant"  # direct; assistant (two stages); init (stage 1 gives only the start, the teacher stays)
    stage1: float = 0.5  # share of `steps` for stage 1, so that every route has the same updates (our choice)
    orders: tuple[int, ...] = (1, 2, 3)  # what is matched: embeddings, distances, angles
    weights: tuple[float, float, float] = (1.0, 25.0, 50.0)  # of the orders; 25 : 50 with cross-entropy (RepDistiller)
    centre: float = 0.0  # weight of the optional centre term (ours)
    normalise_point: bool = True  # order 1 on unit embeddings, our choice
    normalise_source: bool = False  # orders 2, 3: RKD's code normalises the source; RepDistiller's CIFAR code does not
    start: str = "source"  # source: the source's weights where the architectures match (section 1.3 of ours); or random
    task: float = 1.0  # weight of cross-entropy with the labels; 0: labels are not used
    kd: float = 0.0  # weight of softened logits (rows kd, fitnet)
    hint: float = 0.0  # weight of the hint (row fitnet)
    temperature: float = 4.0  # RepDistiller
    scale: float = 0.0  # of classifiers on angles; 0: linear classifier
    views: int = 0  # fixed augmented views whose source outputs are computed once; 0: fresh views, source run each step
    extra: str = ""  # further unlabelled images: a data set's name (a variant, shown apart)
    augment: str = "pad4"  # pad4 (32 px sets), crop (retrieval), face, glyph
    per_class: int = 0  # images of one class in a batch; 0: drawn one by one. Retrieval: 5 (RKD)
    batch: int = 64  # over all processes
    steps: int = 187_680  # student updates in all, both stages together: 240 passes
    optimizer: str = "sgd"  # or adamw
    lr: float = 0.05  # learning rate at its peak (RepDistiller)
    drops: tuple[float, ...] = (0.625, 0.75, 0.875)  # lr / 10 at these shares of a stage; none: cosine to zero
    warmup: int = 0  # steps of linear warm-up
    momentum: float = 0.9  # of sgd (RepDistiller)
    nesterov: bool = False  # Nesterov's momentum, of sgd
    weight_decay: float = 5e-4  # of all parameters (RepDistiller)
    clip: float = 1e9  # largest norm of the gradient
    averaging: float = 0.0  # decay of a running average of the weights, 0 is off
    precision: str = "fp32"  # of the networks (losses are float32 always); bf16, auto: see common/precision.py

    @property
    def run_name(self) -> str:
        """Folder of the run."""
        return runs.run_name(self, preset(self.preset, self.row, self.data))

    @property
    def has_source(self) -> bool:
        """Whether a source is asked for what to match; else labels alone teach."""
        return bool(self.orders or self.kd or self.hint or self.centre)

    @property
    def kind(self) -> str:
        """classification, retrieval or verification."""
        return KINDS.get(self.data, "verification")


# Faces: labels serve the floor `alone` and the classifier of `kd` alone. Orders 2 and 3 weigh 40 x (1 : 2), as in
# F-SKD's code for low-resolution faces: their gradients then are about as long as order 1's. The rest is our choice.
FACES = dict(
    weights=(1.0, 40.0, 80.0), normalise_source=True, task=0.0, scale=32.0, augment="face", drops=(), nesterov=True,
    clip=5.0, averaging=0.999, batch=128,
)  # fmt: skip
# On held-out people of LFW (--held-out) 40 : 80 was two points worse than order 1 alone, a tenth of it level.
LFW = FACES | dict(
    data="lfw", weights=(1.0, 4.0, 8.0), teacher_sha256=GIVEN_SHA256, teacher_net="mobilefacenet",
    teacher_features=128, teacher_px=112, resolution=16, features=128, views=8, optimizer="adamw", lr=2e-3,
    precision="auto", weight_decay=1e-2,
)  # fmt: skip
QUARTER = LFW | dict(net="iresnet_quarter", input_px=64, steps=2_000, warmup=100)
SAME = LFW | dict(net="mobilefacenet", input_px=112, steps=400, warmup=20, lr=5e-4, averaging=0.99, precision="fp32")
# Students see the 5 px enlarged to 16, not to the teacher's 32 (our choice): no detail less at a quarter of the
# arithmetic, so that the demo fits two AVX2 cores.
DEMO = FACES | dict(
    data="embedded", teacher_net="resnet14", teacher_features=64, teacher_steps=250, net="resnet8", features=64,
    input_px=16, resolution=5, views=4, batch=64, steps=250, lr=0.1, warmup=15, averaging=0.0, scale=8.0,
)  # fmt: skip
RETRIEVAL = dict(
    teacher_net="imagenet_resnet50", teacher_features=512, teacher_steps=4_000, net="imagenet_resnet18", features=128,
    teacher_px=224, input_px=224, resolution=224, weights=(1.0, 1.0, 2.0), normalise_source=True, task=0.0, scale=16.0,
    augment="crop", per_class=5, batch=125, steps=8_000, optimizer="adamw", lr=1e-4, drops=(0.5, 0.75),
    weight_decay=1e-5, precision="auto",
)  # fmt: skip
# Omniglot: strangers' characters at 7 or 10 of 28 px; students see them enlarged to 14, as in the demo. All our choice.
OMNIGLOT = FACES | dict(
    data="omniglot", teacher_net="resnet14", teacher_features=64, teacher_steps=2_000, net="resnet8", features=64,
    teacher_px=28, input_px=14, resolution=7, views=4, augment="glyph", steps=1_500, lr=0.1, warmup=100, scale=16.0,
    averaging=0.99, precision="auto",
)  # fmt: skip
PRESETS = {
    "paper": Config(),
    "resnet8x4": Config(preset="resnet8x4", teacher_net="resnet32x4", net="resnet8x4"),
    "vgg8": Config(preset="vgg8", teacher_net="vgg13", net="vgg8"),
    "cifar8": Config(preset="cifar8", teacher_net="resnet110", net="resnet20", resolution=8),
    "retrieval": Config(preset="retrieval", data="cub200", **RETRIEVAL),
    "retrieval56": Config(preset="retrieval56", data="cub200", **RETRIEVAL | dict(resolution=56)),
    "short": Config(preset="short", **QUARTER),
    "low8": Config(preset="low8", **QUARTER | dict(resolution=8)),
    "low32": Config(preset="low32", **QUARTER | dict(resolution=32)),
    "same": Config(preset="same", **SAME),
    "same8": Config(preset="same8", **SAME | dict(resolution=8)),
    "same32": Config(preset="same32", **SAME | dict(resolution=32)),
    "extra": Config(preset="extra", extra="utkface", **QUARTER),
    "omniglot7": Config(preset="omniglot7", **OMNIGLOT),
    "omniglot10": Config(preset="omniglot10", **OMNIGLOT | dict(resolution=10)),
    "demo": Config(preset="demo", **DEMO),
}
GRID = tuple(row for row in ROWS if row.startswith(("direct", "assistant")))
PAIR = ("teacher", "alone", "kd", "fitnet", "direct_23", "direct_123", "assistant_123")
FLOORS = ("teacher", "upsampled", "alone")
# What `make reproduce-hybrid-order-distillation` runs of a preset when nothing else is asked for.
PLAN = {
    "demo": Plan(("embedded",), (*FLOORS, "direct_123", "assistant_123"), (0,), reference_s=112.0),
    "short": Plan(("lfw",), (*FLOORS, "direct_1", "assistant_123"), (0,), "five to ten minutes a row on a CPU core"),
    "low8": Plan(("lfw",), (*FLOORS, "direct_1", "assistant_123"), (0,), "five to ten minutes a row on a CPU core"),
    "low32": Plan(("lfw",), (*FLOORS, "direct_1", "assistant_123"), (0,), "five to ten minutes a row on a CPU core"),
    "same": Plan(("lfw",), (*FLOORS, "direct_123"), (0,), "45 minutes on a CPU core, minutes on a GPU"),
    "same8": Plan(("lfw",), (*FLOORS, "direct_123"), (0,), "45 minutes on a CPU core, minutes on a GPU"),
    "same32": Plan(("lfw",), (*FLOORS, "direct_123"), (0,), "45 minutes on a CPU core, minutes on a GPU"),
    "extra": Plan(("lfw",), ("assistant_123",), (0,), "about an hour on a CPU core (estimate); needs utkface too"),
    "cifar8": Plan(("cifar100",), ("teacher", "upsampled", *PAIR[1:]), (0,), "hours a row on a GPU", needs_gpu=True),
    "retrieval": Plan(("cub200", "cars196"), (*FLOORS, "direct_123"), (0,), "hours on a GPU", needs_gpu=True),
    "retrieval56": Plan(("cub200", "cars196"), (*FLOORS, "direct_123"), (0,), "hours on a GPU", needs_gpu=True),
    **{
        p: Plan(
            ("omniglot",), (*FLOORS, "direct_1", "direct_123", "assistant_123"), (0,), "a minute a row on a CPU core"
        )
        for p in ("omniglot7", "omniglot10")
    },
    **{
        p: Plan(("cifar100",), PAIR, (0,), "hours a row on a GPU", needs_gpu=True)
        for p in ("paper", "resnet8x4", "vgg8")
    },
}


def preset(name: str, row: str = "assistant_123", data: str | None = None) -> Config:
    """The configuration of a preset's row on a data set (None: the preset's own). UserError for an unknown name."""
    for value, known, what in ((name, PRESETS, "preset"), (row, ROWS, "row")):
        if value not in known:
            raise UserError(f"unknown {what} {value!r}: known are {', '.join(known)}")
    base = PRESETS[name]
    return dataclasses.replace(base, row=row, data=data or base.data, **row_settings(row, base))


def row_settings(row: str, base: Config) -> dict[str, object]:
    """What a row changes: orders, route, start, and the weights of the losses with labels or logits."""
    kind, _, orders = row.removesuffix("_random").partition("_")
    own = {"start": "random"} if row.endswith("_random") else {}
    if kind in ROUTES:
        return own | dict(route=kind, orders=tuple(map(int, orders)))
    if row in ("alone", "alone_assistant"):
        return dict(
            route="assistant" if orders else "direct", orders=(), task=1.0, start="random" if not orders else "source"
        )
    if row == "kd":  # RepDistiller weighs labels 0.1 and logits 0.9; faces have no labels
        return dict(route="direct", orders=(), kd=0.9, task=0.1 if base.task else 0.0)
    if row == "fitnet":  # RepDistiller: 100 x hint beside cross-entropy; with faces the logits train the last layers
        return dict(route="direct", orders=(), hint=100.0 if base.task else 1.0, kd=0.0 if base.task else 0.9, views=0)
    return dict(route="direct", orders=())


def shares(cfg: Config) -> tuple | None:
    """What runs share that train their teacher once, whatever their seed; None where it is given."""
    return None if cfg.teacher_sha256 else (cfg.preset, cfg.data)


def check(cfg: Config) -> None:
    """UserError for a setting that cannot work, before any data is read."""
    precision.check(cfg.precision)
    limits = {
        "row": cfg.row in ROWS, "route": cfg.route in ROUTES, "start": cfg.start in ("source", "random"),
        "held_out": not cfg.held_out or cfg.kind == "verification" or cfg.data == "omniglot",
        "orders": set(cfg.orders) <= {1, 2, 3} and len(set(cfg.orders)) == len(cfg.orders),
        "weights": len(cfg.weights) == 3 and min(cfg.weights) >= 0, "stage1": 0 < cfg.stage1 < 1,
        "net": cfg.net in NETS, "teacher_net": cfg.teacher_net in NETS, "operator": cfg.operator in OPERATORS,
        "other_operator": cfg.other_operator in OPERATORS, "augment": cfg.augment in ("pad4", "crop", "face", "glyph"),
        "batch": cfg.batch >= 1, "steps": cfg.steps >= 2, "lr": cfg.lr > 0,
        "optimizer": cfg.optimizer in ("sgd", "adamw"),
        "averaging": 0 <= cfg.averaging < 1, "views": cfg.views >= 0,
        "temperature": cfg.temperature > 0, "teacher_steps": cfg.teacher_steps >= 1, "resolution": cfg.resolution >= 1,
        "input_px": cfg.input_px >= 8, "teacher_px": cfg.teacher_px >= 8, "clip": cfg.clip > 0, "scale": cfg.scale >= 0,
        "per_class": cfg.per_class >= 0 and cfg.batch % max(1, cfg.per_class) == 0, "centre": cfg.centre >= 0,
    }  # fmt: skip
    for name, fine in limits.items():
        if not fine:
            raise UserError(f"--{name.replace('_', '-')} {getattr(cfg, name)}: not a usable value; see --help")
    if cfg.resolution > cfg.teacher_px:
        raise UserError(
            f"--resolution {cfg.resolution}: above the {cfg.teacher_px} px of the images that the teacher sees; "
            "low resolution must not exceed high resolution"
        )
    if cfg.batch < 2 and (cfg.orders or cfg.row not in UNTRAINED):
        raise UserError(f"--batch {cfg.batch}: relations and batch normalisation need at least 2 samples")
    if cfg.hint and cfg.views:
        raise UserError("--hint: feature maps are not kept for fixed views; use --views 0")
    if cfg.kd and cfg.views and cfg.kind == "classification":
        raise UserError("--kd: logits are not kept for fixed views; use --views 0")
    if cfg.row not in UNTRAINED and not (cfg.orders or cfg.task or cfg.kd or cfg.hint or cfg.centre):
        raise UserError("--orders: nothing to learn from; give orders, --task, --kd or --hint a weight")
