"""Networks that two papers need, and the strict way to read weights: the given MobileFaceNet with its input rule.

Weights are read as tensors alone: .safetensors, or a .pt/.pth state dict that loads without running code.
"""

import os
import pickle
from pathlib import Path

import torch
from torch import nn

from common.checkpoint import read_weights, sha256
from common.cli import MissingData, UserError

# The weights that the project was given: foamliu's MobileFaceNet, 128-d, ArcFace loss on refined MS-Celeb-1M.
GIVEN_FILE = "mobilefacenet-ms1m-128d.safetensors"
GIVEN_SHA256 = "631c2db53a7de2d9f63564488355d47bea991e64d258a161c655f6eeaf503afe"

# (mean, standard deviation) of 0..255 pixel values. "mxnet" divides by 128, "arcface" (torch) by 127.5: not equal.
PIXELS = {
    "arcface": ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
    "mxnet": ((127.5, 127.5, 127.5), (128.0, 128.0, 128.0)),
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
}


def to_input(images, pixels="arcface"):
    """uint8 RGB images (B, 3, H, W) as network input, float32. `pixels` is a key of PIXELS."""
    mean, std = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in PIXELS[pixels])
    return (images.float() - mean) / std


class MobileFaceNetReLU(nn.Module):
    """The MobileFaceNet of foamliu/MobileFaceNet, 128-d, whose input is scaled by ImageNet's mean and deviation.

    It differs from the paper's: ReLU6 and ReLU for PReLU, a pointwise convolution after the first depthwise one, and
    a bias in the last layer. `width` scales all channels but the embedding's, `input_px` is a multiple of 16; the
    given weights belong to 1 and 112.
    """

    pixels = "imagenet"
    # expansion, width, repeats, stride of the first: Table 1 of the MobileFaceNets paper
    settings = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))

    def __init__(self, features=128, width=1.0, input_px=112):
        super().__init__()
        if input_px % 16:
            raise UserError(f"--input-px {input_px}: MobileFaceNet needs a multiple of 16")
        self.input_px = input_px
        first, last = round(64 * width), round(512 * width)
        self.conv1 = _conv_relu6(3, first, 3, stride=2)
        self.dw_conv = nn.Module()
        self.dw_conv.depthwise = nn.Conv2d(first, first, 3, padding=1, groups=first, bias=False)
        self.dw_conv.bn1 = nn.BatchNorm2d(first)
        self.dw_conv.pointwise = nn.Conv2d(first, first, 1, bias=False)
        self.dw_conv.bn2 = nn.BatchNorm2d(first)
        blocks, width_in = [], first
        for expansion, channels, count, stride in self.settings:
            for i in range(count):
                blocks.append(_InvertedResidual(width_in, round(channels * width), expansion, stride if i == 0 else 1))
                width_in = round(channels * width)
        self.features = nn.Sequential(*blocks)
        self.conv2 = _conv_relu6(width_in, last)
        self.gdconv = nn.Module()
        self.gdconv.depthwise = nn.Conv2d(last, last, input_px // 16, groups=last, bias=False)
        self.gdconv.bn = nn.BatchNorm2d(last)
        self.conv3 = nn.Conv2d(last, features, 1)
        self.bn = nn.BatchNorm1d(features)

    def forward(self, x):
        first = self.dw_conv
        x = torch.relu(first.bn1(first.depthwise(self.conv1(x))))
        x = torch.relu(first.bn2(first.pointwise(x)))
        x = self.conv2(self.features(x))
        x = self.gdconv.bn(self.gdconv.depthwise(x))
        return self.bn(torch.flatten(self.conv3(x), 1).float())


def _conv_relu6(width_in, width, kernel=1, stride=1, groups=1):
    conv = nn.Conv2d(width_in, width, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU6())


class _InvertedResidual(nn.Module):
    def __init__(self, width_in, width, expansion, stride):
        super().__init__()
        hidden = width_in * expansion
        self.residual = stride == 1 and width_in == width
        self.conv = nn.Sequential(
            _conv_relu6(width_in, hidden),
            _conv_relu6(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x):
        return self.conv(x) + x if self.residual else self.conv(x)


def load_mobilefacenet(path):
    """The given MobileFaceNet (128-d, input by PIXELS["imagenet"]) in eval mode. UserError for any other weights."""
    state = read_state(path)
    return load_strictly(MobileFaceNetReLU(len(state["conv3.weight"]) if "conv3.weight" in state else 128), state, path)


def given_weights(path=None, digest=GIVEN_SHA256):
    """Path of the given weights after checking the hash: `path`, or data/raw. MissingData when they are absent."""
    from common import data as sets

    root = Path(os.environ.get("DATA_ROOT") or sets.REPOSITORY_DATA)
    path = Path(path) if path else root / "raw" / GIVEN_FILE
    if not path.is_file():
        raise MissingData(f"{path}: no such weights file; put {GIVEN_FILE} there or name it (see data/README.md)")
    if sha256(path) != digest:
        raise UserError(f"{path}: not the given weights ({digest[:12]}...); obtain {GIVEN_FILE} again")
    return path


def load_strictly(net, state, path):
    """`net` in eval mode with the tensors of `state`. UserError with the first keys that differ, naming `path`."""
    problem = difference(net.state_dict(), state)
    if problem:
        raise UserError(f"{path}: weights of another architecture: {problem}")
    net.load_state_dict(state, strict=True)
    return net.eval()


def read_state(path):
    """State dict of a weights file, without DataParallel's prefix. UserError when it is missing or unreadable."""
    if Path(path).suffix == ".safetensors":
        state = read_weights(path)[0]
    else:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise UserError(f"{path}: no such weights file") from None
        except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{path}: not a state dict that loads without running code ({reason[:80]})") from None
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise UserError(f"{path}: not a flat state dict of tensors; save `model.state_dict()` alone")
    return {name.removeprefix("module."): value for name, value in state.items()}


def difference(wanted, given):
    """One line on how two state dicts differ in names or shapes; empty when they agree."""
    missing, surplus = [k for k in wanted if k not in given], [k for k in given if k not in wanted]
    shapes = [k for k in wanted if k in given and wanted[k].shape != given[k].shape]
    parts = (("keys missing", missing), ("keys unknown", surplus), ("shapes differ", shapes))
    return "; ".join(f"{len(keys)} {what} ({', '.join(keys[:3])})" for what, keys in parts if keys)
