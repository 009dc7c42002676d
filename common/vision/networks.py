"""Networks that two papers need (IResNet, the given MobileFaceNet), their input rules, a strict way to read weights.

Weights are read as tensors alone: .safetensors, or a .pt/.pth state dict that loads without running code.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from facepapers.common import paths
from facepapers.common.cli import MissingData, UserError
from facepapers.common.storage import check_zip, sha256
from facepapers.common.training.checkpoint import read_weights
from facepapers.common.training.state_dicts import fill, unwrapped

Network = TypeVar("Network", bound=nn.Module)

# The weights that the project was given: foamliu's MobileFaceNet, 128-d, ArcFace loss on refined MS-Celeb-1M.
GIVEN_FILE = "mobilefacenet-ms1m-128d.safetensors"
GIVEN_SHA256 = "631c2db53a7de2d9f63564488355d47bea991e64d258a161c655f6eeaf503afe"

# (mean, standard deviation) of 0..255 pixel values. "mxnet" divides by 128, "arcface" (torch) by 127.5: not equal.
PIXELS = {
    "arcface": ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
    "mxnet": ((127.5, 127.5, 127.5), (128.0, 128.0, 128.0)),
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
}


def to_input(images: torch.Tensor, pixels: str = "arcface") -> torch.Tensor:
    """uint8 RGB images (B, 3, H, W) as network input, float32. `pixels` is a key of PIXELS."""
    mean, std = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in PIXELS[pixels])
    return (images.float() - mean) / std


def with_mirror(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Raw embeddings (B, d) of inputs (B, C, H, W) plus those of their mirror images, in one pass, float32."""
    return net(torch.cat([x, x.flip(3)])).float().unflatten(0, (2, -1)).sum(0)


def channels_last(net: Network, device: torch.device | None = None) -> Network:
    """`net`, in place, with its convolutions in the layout that they are fastest in, and on `device` if given."""
    return net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stub


class MobileFaceNetReLU(nn.Module):
    """The MobileFaceNet of foamliu/MobileFaceNet, 128-d, whose input is scaled by ImageNet's mean and deviation.

    It differs from the paper's: ReLU6 and ReLU for PReLU, a pointwise convolution after the first depthwise one, and
    a bias in the last layer. `input_px` is a multiple of 16; the given weights belong to 112.
    """

    pixels = "imagenet"
    # expansion, width, repeats, stride of the first: Table 1 of the MobileFaceNets paper
    settings = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))

    def __init__(self, features: int = 128, input_px: int = 112) -> None:
        super().__init__()
        if input_px % 16:
            raise UserError(f"--input-px {input_px}: MobileFaceNet needs a multiple of 16")
        self.input_px = input_px
        self.conv1 = _conv_relu6(3, 64, 3, stride=2)
        self.dw_conv = nn.ModuleDict(
            {
                "depthwise": nn.Conv2d(64, 64, 3, padding=1, groups=64, bias=False),
                "bn1": nn.BatchNorm2d(64),
                "pointwise": nn.Conv2d(64, 64, 1, bias=False),
                "bn2": nn.BatchNorm2d(64),
            }
        )
        blocks, width_in = [], 64
        for expansion, channels, count, stride in self.settings:
            for i in range(count):
                blocks.append(_InvertedResidual(width_in, channels, expansion, stride if i == 0 else 1))
                width_in = channels
        self.features = nn.Sequential(*blocks)
        self.conv2 = _conv_relu6(width_in, 512)
        depthwise = nn.Conv2d(512, 512, input_px // 16, groups=512, bias=False)
        self.gdconv = nn.ModuleDict({"depthwise": depthwise, "bn": nn.BatchNorm2d(512)})
        self.conv3 = nn.Conv2d(512, features, 1)
        self.bn = nn.BatchNorm1d(features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, last = self.dw_conv, self.gdconv
        x = torch.relu(first["bn1"](first["depthwise"](self.conv1(x))))
        x = torch.relu(first["bn2"](first["pointwise"](x)))
        x = self.conv2(self.features(x))
        x = last["bn"](last["depthwise"](x))
        return self.bn(torch.flatten(self.conv3(x), 1).float())


def _conv_relu6(width_in: int, width: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(width_in, width, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU6())


class _InvertedResidual(nn.Module):
    def __init__(self, width_in: int, width: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = width_in * expansion
        self.residual = stride == 1 and width_in == width
        self.conv = nn.Sequential(
            _conv_relu6(width_in, hidden),
            _conv_relu6(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) + x if self.residual else self.conv(x)


class IRUnit(nn.Module):
    """BN, 3x3, BN, PReLU, 3x3 (with the stride), BN, plus the input; nothing after the sum."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.prelu = nn.PReLU(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.downsample = None
        if stride != 1 or width_in != width:
            shortcut = nn.Conv2d(width_in, width, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.conv1(self.bn1(x))
        out = self.conv2(self.prelu(self.bn2(out)))
        return self.bn3(out) + (x if self.downsample is None else self.downsample(x))


class IResNet(nn.Module):
    """Stem at full resolution, four stages that halve it each, then output 'E': BN, dropout, FC, BN.

    The last BN's scale is fixed at 1, which settles the mean embedding length near sqrt(features). `dropout` is 0.4 in
    the paper's code (mxnet) and 0 in the torch script. `input_px` must be a multiple of 16. Other sizes and widths than
    the defaults are ours, and so is `strided_stem`: a 5x5 stem of stride 2, for twice the `input_px` (a multiple of 32)
    at the same cost.
    """

    pixels = "arcface"

    def __init__(
        self,
        units: Sequence[int],
        widths: Sequence[int] = (64, 128, 256, 512),
        features: int = 512,
        dropout: float = 0.0,
        input_px: int = 112,
        strided_stem: bool = False,
    ) -> None:
        super().__init__()
        self.input_px, shrink = input_px, 32 if strided_stem else 16
        if input_px % shrink:
            raise UserError(f"input_px {input_px}: this network makes maps of 1/{shrink}; take a multiple of {shrink}")
        kernel, stride = (5, 2) if strided_stem else (3, 1)
        self.conv1 = nn.Conv2d(3, widths[0], kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.prelu = nn.PReLU(widths[0])
        width_in = widths[0]
        for stage, (count, width) in enumerate(zip(units, widths, strict=True), start=1):
            strides = [2] + [1] * (count - 1)
            blocks = [IRUnit(width_in if i == 0 else width, width, stride) for i, stride in enumerate(strides)]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
            width_in = width
        self.bn2 = nn.BatchNorm2d(width_in)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(width_in * (input_px // shrink) ** 2, features)
        self.features = nn.BatchNorm1d(features)
        self.features.weight.requires_grad_(False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.prelu(self.bn1(self.conv1(x)))
        for stage in (1, 2, 3, 4):
            x = getattr(self, f"layer{stage}")(x)
        x = self.dropout(torch.flatten(self.bn2(x), 1))
        # The last BN in float32 under autocast: bfloat16 keeps three digits, and cosines are made of these numbers.
        return self.features(self.fc(x).float())


def load_mobilefacenet(path: Path | str) -> MobileFaceNetReLU:
    """The given MobileFaceNet (128-d, input by PIXELS["imagenet"]) in eval mode. UserError for any other weights."""
    state = read_state(path)
    return load_strictly(MobileFaceNetReLU(len(state["conv3.weight"]) if "conv3.weight" in state else 128), state, path)


def iresnet_like(state: dict[str, torch.Tensor]) -> IResNet:
    """An untrained IResNet with the sizes that a state dict's names and shapes tell. KeyError if it tells none."""
    units = tuple(count_blocks(state, rf"layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4))
    widths = tuple(len(state[f"layer{stage}.0.conv2.weight"]) for stage in (1, 2, 3, 4))
    features, inputs = state["fc.weight"].shape
    strided = state["conv1.weight"].shape[-1] == 5
    side = (32 if strided else 16) * round((inputs / widths[-1]) ** 0.5)
    return IResNet(units, widths, features, input_px=side, strided_stem=strided)


def count_blocks(state: Iterable[str], pattern: str) -> int:
    """1 + the largest block number that `pattern` finds in the names; 0 when it finds none."""
    found = [re.match(pattern, name) for name in state]
    return max((int(match[1]) + 1 for match in found if match), default=0)


def load_identity_net(path: Path | str) -> IResNet | MobileFaceNetReLU:
    """The identity network in a weights file, in eval mode: an IResNet or the given MobileFaceNet, as its names tell.

    Raises UserError, with the first keys that differ, for any other weights.
    """
    state = read_state(path)
    if "fc.weight" not in state:
        return load_mobilefacenet(path)
    try:
        net = iresnet_like(state)
    except (KeyError, ValueError):
        raise UserError(f"{path}: weights of another architecture than IResNet or the given MobileFaceNet") from None
    return load_strictly(net, state, path)


def given_weights(path: Path | str | None = None, digest: str = GIVEN_SHA256, option: str = "--weights") -> Path:
    """Path of the weights with this sha256: `path`, or the given file in data/raw. MissingData when it is absent.

    `option` is the one by which the command names a file, for the remedy.
    """
    path = Path(path) if path else paths.data_root() / "raw" / GIVEN_FILE
    if not path.is_file():
        raise MissingData(f"{path}: no such weights file; put {GIVEN_FILE} there or name it by {option} FILE")
    if sha256(path) != digest:
        raise UserError(
            f"{path}: not the weights that these settings name (sha256 {digest[:12]}...); name those by {option}"
        )
    return path


def load_strictly(net: Network, state: dict[str, torch.Tensor], path: Path | str) -> Network:
    """`net` in eval mode with the tensors of `state`. UserError with the first keys that differ, naming `path`."""
    fill(net, state, path)
    return net.eval()


def read_state(path: Path | str) -> dict[str, torch.Tensor]:
    """State dict of a weights file; one inside a training checkpoint, as in many public files, is `unwrapped`.

    Raises UserError when the file is missing, unreadable or holds something else.
    """
    state: Any  # checked below
    if Path(path).suffix == ".safetensors":
        state = read_weights(path)[0]
    else:
        check_zip(path, "fetch it again")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise UserError(f"{path}: no such weights file") from None
        except (RuntimeError, EOFError, OSError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{path}: unreadable as torch.save's file ({reason[:80]}); fetch it again") from None
        except Exception:  # an unpickler meets anything in bytes that are not its own
            what = "not tensors alone, but a pickled model or another file"
            raise UserError(f"{path}: {what}; save `model.state_dict()` alone by torch.save") from None
    return unwrapped(state, path)
