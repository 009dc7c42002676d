"""Teachers and students: MobileFaceNets for faces, CIFAR networks, torchvision's ResNets; what is trained around them.

A network maps float input (B, 3, P, P) to an embedding (B, `embedding_width`); `pixels` is its input rule and
`hint_layer` the layer whose maps FitNets compare.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from facepapers.common.cli import UserError
from facepapers.common.training.losses import directions
from facepapers.common.vision import networks

CIFAR_DEPTHS = (8, 14, 20, 32, 56, 110)
CIFAR_VGG = {"vgg8": (1, 1, 1, 1, 1), "vgg13": (2, 2, 2, 2, 2)}
IMAGENET = ("imagenet_resnet18", "imagenet_resnet50")
NETS = (
    "mobilefacenet",
    "iresnet_quarter",
    *(f"resnet{d}" for d in CIFAR_DEPTHS),
    "resnet8x4",
    "resnet32x4",
    *CIFAR_VGG,
    *IMAGENET,
)


def make_net(name: str, features: int = 0, input_px: int = 112) -> "Net":
    """The network `name` with embeddings of `features`; 0 keeps the pooled ones. UserError for an unknown name."""
    if name == "mobilefacenet":
        return networks.MobileFaceNetReLU(features or 128, input_px)
    if name == "iresnet_quarter":
        # The quarter-size student: 238,544 parameters against the MobileFaceNet's 999,936.
        net = networks.IResNet((1, 1, 1, 1), (32, 48, 64, 64), features or 128, input_px=input_px, strided_stem=True)
        _kaiming(net)
        return net
    if name in CIFAR_VGG:
        return VGG(CIFAR_VGG[name], features)
    if name in IMAGENET:
        return ImageNetResNet(name.removeprefix("imagenet_"), features)
    if name not in NETS:
        raise UserError(f"unknown network {name!r}: known are {', '.join(NETS)}")
    depth, _, wide = name.removeprefix("resnet").partition("x")
    return ResNet(int(depth), (32, 64, 128, 256) if wide else (16, 16, 32, 64), features)


def embedding_width(net: "Net") -> int:
    """Width d of a network's embeddings."""
    if isinstance(net, networks.MobileFaceNetReLU):
        return net.conv3.out_channels
    return net.fc.out_features if isinstance(net, networks.IResNet) else net.features_out


def hint_layer(net: "Net") -> str:
    """Name of the layer whose maps FitNets compare; of networks for faces the first at 1/8 of the input's side."""
    if isinstance(net, networks.MobileFaceNetReLU):
        return "features.5"
    return "layer2" if isinstance(net, networks.IResNet) else net.hint


class ResNet(nn.Module):
    """CIFAR ResNet of 6n + 2 layers (He et al. 2016) with 1x1 shortcuts, as the distillation benchmarks use it."""

    pixels, hint = "imagenet", "stages.1"

    def __init__(self, depth: int, widths: Sequence[int], features: int = 0):
        super().__init__()
        self.stem = _conv_bn(3, widths[0])
        stages, width_in = [], widths[0]
        for k, width in enumerate(widths[1:]):
            blocks = []
            for i in range((depth - 2) // 6):
                blocks.append(_BasicBlock(width_in, width, stride=2 if k and i == 0 else 1))
                width_in = width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.embed = nn.Linear(width_in, features) if features else nn.Identity()
        self.features_out = features or width_in
        _kaiming(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stages(torch.relu(self.stem(x)))
        return self.embed(x.mean((2, 3)).float())


class _BasicBlock(nn.Module):
    def __init__(self, width_in: int, width: int, stride: int):
        super().__init__()
        self.first, self.second = _conv_bn(width_in, width, stride=stride), _conv_bn(width, width)
        same = stride == 1 and width_in == width
        self.shortcut = nn.Identity() if same else _conv_bn(width_in, width, kernel=1, stride=stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))


class VGG(nn.Module):
    """VGG for 32 px with batch normalisation: five groups of convolutions, pooled to 4x4 and averaged."""

    pixels, hint = "imagenet", "groups.1"

    def __init__(self, repeats: Sequence[int], features: int = 0):
        super().__init__()
        groups, width_in = [], 3
        for count, width in zip(repeats, (64, 128, 256, 512, 512), strict=True):
            layers = []
            for _ in range(count):
                conv = nn.Conv2d(width_in, width, 3, padding=1)
                layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
                width_in = width
            groups.append(nn.Sequential(*layers))
        self.groups = nn.Sequential(*groups)
        self.embed = nn.Linear(width_in, features) if features else nn.Identity()
        self.features_out = features or width_in
        _kaiming(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for k, group in enumerate(self.groups):
            x = group(x)
            if k < 3 and min(x.shape[2:]) > 1:  # an 8 px input is down to one pixel before the last pooling
                x = F.max_pool2d(x, 2)
        return self.embed(x.mean((2, 3)).float())


class ImageNetResNet(nn.Module):
    """torchvision's ResNet, average pool, linear embedding (RKD's metric-learning networks)."""

    pixels, hint = "imagenet", "body.layer2"

    def __init__(self, name: str, features: int = 0):
        super().__init__()
        import torchvision

        self.body = getattr(torchvision.models, name)()
        width = self.body.fc.in_features
        self.body.fc = nn.Linear(width, features) if features else nn.Identity()
        self.features_out = features or width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x).float()


Net = networks.MobileFaceNetReLU | networks.IResNet | ResNet | VGG | ImageNetResNet


def _conv_bn(width_in, width, kernel=3, stride=1):
    conv = nn.Conv2d(width_in, width, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width))


def _kaiming(net):
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def macs(net: nn.Module, input_px: int) -> int:
    """Multiply-adds of one image (half the flops that torch counts)."""
    from torch.utils.flop_counter import FlopCounterMode

    was = net.training
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.eval()(torch.zeros(1, 3, input_px, input_px))
    net.train(was)
    return counter.get_total_flops() // 2


def parameters(net: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in net.parameters())


# ---- What is trained around a network, and what a source gives


class Outputs(NamedTuple):
    """What a network says about B images; None where nobody asked."""

    embedding: torch.Tensor  # (B, d)
    logits: Any = None  # (B, C); these three are tensors for whoever asked
    projected: Any = None  # (B, e): the embedding mapped to the source's width
    maps: Any = None  # (B, K, H, W) of the hint layer


class Learner(nn.Module):
    """A network with what training adds and deployment drops: projection, classifier, hint regressor.

    `source_width` e: width of the source's embeddings; a linear map is trained when it differs from the network's
    (order 1 needs equal widths, orders 2 and 3 do not). `classes` C: labels to learn, by a linear classifier, or by one
    on angles with `scale`. `centres` (C, e): a fixed classifier on angles that stands for the source's own.
    `hint_width`: channels of the source's hint maps.
    """

    centres: torch.Tensor | None  # a buffer

    def __init__(
        self,
        net: Net,
        source_width: int = 0,
        classes: int = 0,
        scale: float = 0.0,
        centres: torch.Tensor | None = None,
        hint_width: int = 0,
    ):
        super().__init__()
        self.net, self.scale = net, scale
        width = embedding_width(net)
        self.project = nn.Linear(width, source_width, bias=False) if source_width not in (0, width) else nn.Identity()
        self.classifier = nn.Linear(width, classes, bias=not scale) if classes else None
        self.register_buffer("centres", None if centres is None else F.normalize(centres.float(), dim=1))
        self.regressor, self._maps = None, None
        if hint_width:
            layer = net.get_submodule(hint_layer(net))
            layer.register_forward_hook(self._keep)
            self.regressor = nn.LazyConv2d(hint_width, 1)

    def _keep(self, layer, given, made):
        self._maps = made

    def forward(self, x: torch.Tensor) -> Outputs:
        y = self.net(x)
        with torch.autocast(y.device.type, enabled=False):
            wide = y.float()
            projected = self.project(wide)
            logits = None
            if self.centres is not None:
                logits = self.scale * F.linear(directions(projected), self.centres)
            elif self.classifier is not None and self.scale:
                logits = self.scale * F.linear(directions(wide), directions(self.classifier.weight))
            elif self.classifier is not None:
                logits = self.classifier(wide)
        maps, self._maps = self._maps, None
        return Outputs(y, logits, projected, None if self.regressor is None else self.regressor(maps))
