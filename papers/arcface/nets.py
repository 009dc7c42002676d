"""Embedding networks: IResNet (section 3.1 of the paper), the MobileFaceNets, and the weights files they come in.

Module names equal those of insightface's arcface_torch and of foamliu/MobileFaceNet, so published state dicts load
strictly. All take (B, 3, H, W) float images, RGB, aligned to the 112x112 template (vision/alignment.py), scaled by
`networks.to_input` with the network's `pixels` rule; all return raw embeddings (B, d): lengths are normalised by the
loss and by the evaluation. Published parameter and multiply-add counts are held by tests/test_arcface_nets.py.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from facepapers.common.cli import UserError
from facepapers.common.vision.networks import (
    IResNet,
    MobileFaceNetReLU,
    count_blocks,
    iresnet_like,
    load_strictly,
    read_state,
)

UNITS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3)}


class _Conv(nn.Module):
    """Convolution, BN and, unless `linear`, PReLU."""

    def __init__(self, width_in, width, kernel=1, stride=1, groups=1, padding=None, linear=False):
        super().__init__()
        padding = kernel // 2 if padding is None else padding
        conv = nn.Conv2d(width_in, width, kernel, stride, padding, groups=groups, bias=False)
        tail = [] if linear else [nn.PReLU(width)]
        self.layers = nn.Sequential(conv, nn.BatchNorm2d(width), *tail)

    def forward(self, x):
        return self.layers(x)


class _Bottleneck(nn.Module):
    """1x1 up to `hidden`, depthwise 3x3, linear 1x1 down; plus the input if `residual`."""

    def __init__(self, width_in, width, hidden, stride=1, residual=False):
        super().__init__()
        self.residual = residual
        self.layers = nn.Sequential(
            _Conv(width_in, hidden),
            _Conv(hidden, hidden, 3, stride, groups=hidden),
            _Conv(hidden, width, linear=True),
        )

    def forward(self, x):
        return self.layers(x) + x if self.residual else self.layers(x)


class _Repeat(nn.Module):
    """`count` residual bottlenecks (wrapped, to keep insightface's names)."""

    def __init__(self, width, count, hidden):
        super().__init__()
        self.layers = nn.Sequential(*[_Bottleneck(width, width, hidden, residual=True) for _ in range(count)])

    def forward(self, x):
        return self.layers(x)


class MobileFaceNet(nn.Module):
    """MobileFaceNet (arXiv 1804.07573, Table 1): global depthwise convolution instead of average pooling, PReLU.

    `scale=1` with the default features is the paper's network, 0.99 M parameters and 128-d. insightface's 'mbf' is
    `scale=2, features=512`, 'mbf_large' `blocks=(2, 8, 12, 4), scale=4, features=512`: twice as wide with the same
    hidden widths, and its last layer is a BN over an FC where the paper has a linear 1x1 convolution with BN (equal).
    """

    pixels = "arcface"
    input_px = 112
    features: Any  # a bare nn.Module with `layers`, as insightface names them

    def __init__(self, features: int = 128, blocks: Sequence[int] = (1, 4, 6, 2), scale: int = 1) -> None:
        super().__init__()
        narrow, wide = 64 * scale, 128 * scale
        second: nn.Module
        if blocks[0] == 1:
            second = _Conv(narrow, narrow, 3, groups=64)  # depthwise for scale 1, grouped in insightface's nets
        else:
            second = _Repeat(narrow, blocks[0], 128)
        self.layers = nn.ModuleList([
            _Conv(3, narrow, 3, 2),
            second,
            _Bottleneck(narrow, narrow, 128, 2),
            _Repeat(narrow, blocks[1], 128),
            _Bottleneck(narrow, wide, 256, 2),
            _Repeat(wide, blocks[2], 256),
            _Bottleneck(wide, wide, 512, 2),
            _Repeat(wide, blocks[3], 256),
        ])  # fmt: skip
        self.conv_sep = _Conv(wide, 512)
        self.features = nn.Module()
        self.features.layers = nn.Sequential(
            _Conv(512, 512, 7, groups=512, padding=0, linear=True),
            nn.Flatten(),
            nn.Linear(512, features, bias=False),
            nn.BatchNorm1d(features),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        x = self.features.layers[:3](self.conv_sep(x))
        return self.features.layers[3](x.float())


Net = IResNet | MobileFaceNet | MobileFaceNetReLU
MBF_LARGE: dict[str, Any] = {"features": 512, "scale": 4, "blocks": (2, 8, 12, 4)}
NETS: dict[str, Callable[..., Net]] = {
    "iresnet18": lambda **options: IResNet(UNITS[18], **options),
    "iresnet34": lambda **options: IResNet(UNITS[34], **options),
    "iresnet50": lambda **options: IResNet(UNITS[50], **options),
    "iresnet100": lambda **options: IResNet(UNITS[100], **options),
    "mobilefacenet": MobileFaceNet,
    "mbf": lambda **options: MobileFaceNet(**{"features": 512, "scale": 2} | options),
    "mbf_large": lambda **options: MobileFaceNet(**MBF_LARGE | options),
    "mobilefacenet_relu": MobileFaceNetReLU,
}


def make_net(name: str, **options: Any) -> Net:
    """The network of a key of NETS. UserError for an unknown name."""
    if name not in NETS:
        raise UserError(f"network {name!r} is unknown; choose from {', '.join(NETS)}")
    return NETS[name](**options)


def load_net(path: Path | str) -> Net:
    """The network in a weights file, in eval mode: .safetensors, or a .pt/.pth state dict without pickled code.

    The architecture (family, depth, widths, embedding size, input size) is read off the names and shapes. Raises
    UserError, with the first keys that differ, for weights of any other architecture.
    """
    state = read_state(path)
    try:
        net = net_like(state)
    except (KeyError, AttributeError, TypeError, UserError):
        known = ", ".join(NETS)
        raise UserError(
            f"{path}: weights of another architecture: its keys ({', '.join(list(state)[:3])}, ...) fit none of {known}"
        ) from None
    return load_strictly(net, state, path)


def net_like(state: dict[str, torch.Tensor]) -> Net:
    """An untrained network with the sizes that a state dict's names and shapes tell. KeyError if it tells none."""
    if "fc.weight" in state:
        return iresnet_like(state)
    if "conv_sep.layers.0.weight" in state:
        blocks = tuple(count_blocks(state, rf"layers\.{i}\.layers\.(\d+)\.layers") for i in (1, 3, 5, 7))
        scale = len(state["layers.0.layers.0.weight"]) // 64
        return MobileFaceNet(len(state["features.layers.2.weight"]), (blocks[0] or 1,) + blocks[1:], scale)
    return MobileFaceNetReLU(len(state["conv3.weight"]))
