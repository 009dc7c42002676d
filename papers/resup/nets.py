"""ResNet-18 for 224 pixels and, with a small stem and narrower, for 48; strict reading of starting weights.

Names of the layers are torchvision's, so its files and those derived from it (MS-Celeb-1M) load.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from facepapers.common.cli import MissingData, UserError
from facepapers.common.vision import networks

STEMS = ("imagenet", "small", "small2")


class Block(nn.Module):
    """Two 3x3 convolutions and the identity (He et al. 2016); a 1x1 convolution where shapes change."""

    def __init__(self, width_in: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = None
        if stride != 1 or width_in != width:
            self.downsample = nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        short = x if self.downsample is None else self.downsample(x)
        x = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(x)) + short)


class ResNet(nn.Module):
    """float pixels 0..255 (B, 1 or 3, S, S) to logits (B, classes).

    stem "imagenet": 7x7 of stride 2 and max-pooling, ImageNet's pixel statistics (torchvision's ResNet-18 with width 64
    and units 2 2 2 2); "small": 3x3, nothing lost, for 48 pixels; "small2": 3x3 of stride 2.
    """

    def __init__(
        self,
        classes: int,
        stem: str = "imagenet",
        width: int = 64,
        units: Sequence[int] = (2, 2, 2, 2),
        dropout: float = 0.0,
    ):
        super().__init__()
        self.stem, self.pixels = stem, "imagenet" if stem == "imagenet" else "arcface"
        size, stride = {"imagenet": (7, 2), "small": (3, 1), "small2": (3, 2)}[stem]
        self.conv1 = nn.Conv2d(3, width, size, stride, size // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        width_in = width
        for k, count in enumerate(units):
            blocks = [
                Block(width_in if i == 0 else width << k, width << k, 2 if k and not i else 1) for i in range(count)
            ]
            setattr(self, f"layer{k + 1}", nn.Sequential(*blocks))
            width_in = width << k
        self.stages, self.drop = len(units), nn.Dropout(dropout)
        self.fc = nn.Linear(width_in, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = networks.to_input(x.expand(-1, 3, -1, -1), self.pixels).contiguous(memory_format=torch.channels_last)
        x = torch.relu(self.bn1(self.conv1(x)))
        if self.stem == "imagenet":
            x = nn.functional.max_pool2d(x, 3, 2, 1)
        for k in range(self.stages):
            x = getattr(self, f"layer{k + 1}")(x)
        return self.fc(self.drop(x.mean((2, 3))))


class PeerNetworks(nn.Module):
    """M networks of one shape without shared weights, trained side by side; each may weigh the other's samples.

    Forward: M inputs (B, C, S, S) to logits (M, B, K). "Peer" is Co-teaching's word (Han et al. 2018).
    """

    members: Any  # nn.ModuleList of ResNet: torch types its entries as nn.Module only

    def __init__(self, members: Sequence[ResNet]):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, views: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.stack([net(view) for net, view in zip(self.members, views, strict=True)])


def load_body(net: ResNet, path: Path | str) -> ResNet:
    """Read every layer but the classifier from a weights file of a torchvision ResNet-18.

    Strict: UserError with the first keys that differ, or when nothing changed.
    """
    own = net.state_dict()
    given = {k: v for k, v in networks.read_state(path).items() if not k.startswith("fc.")}
    kept = {k: v for k, v in own.items() if k.startswith("fc.")}
    before = {k: v.clone() for k, v in own.items()}
    networks.load_strictly(net, {**kept, **given}, path)
    same = [k for k, v in net.state_dict().items() if k.endswith("conv1.weight") and torch.equal(v, before[k])]
    if same:
        raise UserError(f"{path}: left {', '.join(same[:3])} as they were; it holds these very random weights")
    return net


def imagenet_state() -> dict[str, torch.Tensor]:
    """torchvision's ImageNet weights of ResNet-18, from its cache or its server. MissingData where neither has them."""
    from torchvision.models import ResNet18_Weights

    try:
        return ResNet18_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        raise MissingData(
            f"torchvision's ImageNet weights cannot be had ({reason}); name a file by --weights1"
        ) from None


def load_imagenet(net: ResNet) -> ResNet:
    """Every layer but the classifier from torchvision's ImageNet weights."""
    own, given = net.state_dict(), imagenet_state()
    body = {k: v for k, v in given.items() if not k.startswith("fc.")}
    head = {k: v for k, v in own.items() if k.startswith("fc.")}
    return networks.load_strictly(net, {**head, **body}, "torchvision's ImageNet weights")
