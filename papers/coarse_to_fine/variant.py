"""Our own, later variant ("heatmap"): not CFT, but the same data, boxes and metric at no more arithmetic per face.

A small residual network with a top-down path predicts one 28x28 probability map per landmark; the landmark is the
map's expected position. Everything in this file is our choice. Ideas used: residual blocks (He et al. 2016),
top-down feature pyramid (Lin et al. 2017), expected position of a heatmap trained end to end (Nibali et al. 2018,
"DSNT"; Sun et al. 2018, "integral regression"), averaged weights (Izmailov et al. 2018).
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from facepapers.common.training import losses

STRIDE = 4  # crop pixels per heatmap cell


def conv(channels_in: int, channels_out: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(channels_out)
    )


class Block(nn.Module):
    """Two 3x3 convolutions around an identity (or 1x1, when the shape changes) shortcut."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(channels_in, channels_out, 3, stride), nn.ReLU(True), conv(channels_out, channels_out)
        )
        same = channels_in == channels_out and stride == 1
        self.shortcut = nn.Identity() if same else conv(channels_in, channels_out, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class HeatmapNet(nn.Module):
    """(B, 3, crop, crop) pixels 0..255 -> log-probability maps (B, n, crop/4, crop/4)."""

    def __init__(
        self, n_points: int, crop: int = 112, widths: tuple[int, ...] = (32, 64, 128, 256), path: int = 80
    ) -> None:
        super().__init__()
        self.crop = crop
        self.stem = nn.Sequential(conv(3, widths[0], 3, 2), nn.ReLU(True))
        self.down = nn.ModuleList(nn.Sequential(Block(a, b, 2), Block(b, b)) for a, b in pairwise(widths))
        self.lateral = nn.ModuleList(conv(width, path, 1) for width in widths[1:])
        self.merge = nn.Sequential(nn.ReLU(True), conv(path, path), nn.ReLU(True))
        self.head = nn.Conv2d(path, n_points, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.stem((images - 127.5) / 64)
        levels = []
        for stage, lateral in zip(self.down, self.lateral, strict=True):
            x = stage(x)
            levels.append(lateral(x))
        top = levels.pop()
        while levels:
            top = levels.pop() + F.interpolate(top, scale_factor=2, mode="nearest")
        maps = self.head(self.merge(top)).float()
        return F.log_softmax(maps.flatten(2), 2).view_as(maps)


def cell_centres(size: int, device: torch.device) -> torch.Tensor:
    """Crop pixel of each heatmap cell's centre along one axis, (size,)."""
    return (torch.arange(size, device=device, dtype=torch.float32) + 0.5) * STRIDE - 0.5


def expected_points(log_maps: torch.Tensor) -> torch.Tensor:
    """Expected position of each map, (B, n, 2) in crop pixels."""
    maps = log_maps.exp()
    centres = cell_centres(maps.shape[-1], maps.device)
    return torch.stack([maps.sum(2) @ centres, maps.sum(3) @ centres], -1)


def heatmap_loss(
    log_maps: torch.Tensor,
    truth: torch.Tensor,
    distance_px: torch.Tensor,
    spread: float = 1.0,
    shape_weight: float = 1.0,
) -> torch.Tensor:
    """Mean landmark distance over d, plus the cross-entropy to a Gaussian of `spread` cells around the truth.

    The first term is the metric itself; the second keeps each map in one peak, so that its mean means something.
    """
    distance = (expected_points(log_maps) - truth).norm(dim=-1) / losses.scales(distance_px).unsqueeze(1)
    centres = cell_centres(log_maps.shape[-1], truth.device)
    offsets = (centres.view(1, 1, 1, -1) - truth.unsqueeze(-1)) / (spread * STRIDE)
    x, y = torch.exp(-0.5 * offsets.square()).unbind(2)
    target = y.unsqueeze(-1) * x.unsqueeze(-2)
    target = target / target.sum((2, 3), keepdim=True).clamp(min=1e-6)
    cross_entropy = -(target * log_maps).sum((2, 3))
    return distance.mean() * 10 + shape_weight * 0.1 * cross_entropy.mean()
