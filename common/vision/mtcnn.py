"""MTCNN (Zhang et al. 2016): three small networks propose, refine and place the five points of a face."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from facepapers.common import paths
from facepapers.common.cli import MissingData, UserError
from facepapers.common.storage import check_zip, one_line
from facepapers.common.vision import alignment

FILES = ("pnet.pt", "rnet.pt", "onet.pt")


def folder() -> Path:
    """Where `make data-mtcnn` puts the networks."""
    return paths.data_root() / "mtcnn"


class PNet(nn.Module):
    """Fully convolutional proposals: (B, 3, H, W) to face probability (B, h, w) and box regression (B, 4, h, w)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 10, 3), nn.PReLU(10)
        self.conv2, self.prelu2 = nn.Conv2d(10, 16, 3), nn.PReLU(16)
        self.conv3, self.prelu3 = nn.Conv2d(16, 32, 3), nn.PReLU(32)
        self.conv4_1, self.conv4_2 = nn.Conv2d(32, 2, 1), nn.Conv2d(32, 4, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = F.max_pool2d(self.prelu1(self.conv1(x)), 2, 2, ceil_mode=True)
        x = self.prelu3(self.conv3(self.prelu2(self.conv2(x))))
        return self.conv4_1(x).softmax(1)[:, 1], self.conv4_2(x)


class RNet(nn.Module):
    """Refinement of 24x24 crops: face probability (B,) and box regression (B, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 28, 3), nn.PReLU(28)
        self.conv2, self.prelu2 = nn.Conv2d(28, 48, 3), nn.PReLU(48)
        self.conv3, self.prelu3 = nn.Conv2d(48, 64, 2), nn.PReLU(64)
        self.dense4, self.prelu4 = nn.Linear(576, 128), nn.PReLU(128)
        self.dense5_1, self.dense5_2 = nn.Linear(128, 2), nn.Linear(128, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = F.max_pool2d(self.prelu1(self.conv1(x)), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self.prelu2(self.conv2(x)), 3, 2, ceil_mode=True)
        x = _flat(self.prelu3(self.conv3(x)))
        x = self.prelu4(self.dense4(x))
        return self.dense5_1(x).softmax(1)[:, 1], self.dense5_2(x)


class ONet(nn.Module):
    """Output on 48x48 crops: face probability (B,), box regression (B, 4), points (B, 10) as five x, then five y."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 32, 3), nn.PReLU(32)
        self.conv2, self.prelu2 = nn.Conv2d(32, 64, 3), nn.PReLU(64)
        self.conv3, self.prelu3 = nn.Conv2d(64, 64, 3), nn.PReLU(64)
        self.conv4, self.prelu4 = nn.Conv2d(64, 128, 2), nn.PReLU(128)
        self.dense5, self.prelu5 = nn.Linear(1152, 256), nn.PReLU(256)
        self.dense6_1, self.dense6_2, self.dense6_3 = nn.Linear(256, 2), nn.Linear(256, 4), nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x = F.max_pool2d(self.prelu1(self.conv1(x)), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self.prelu2(self.conv2(x)), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self.prelu3(self.conv3(x)), 2, 2, ceil_mode=True)
        x = _flat(self.prelu4(self.conv4(x)))
        x = self.prelu5(self.dense5(x))
        return self.dense6_1(x).softmax(1)[:, 1], self.dense6_2(x), self.dense6_3(x)


def _flat(x: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) to (B, W * H * C): the weights come from column-major code."""
    return x.permute(0, 3, 2, 1).flatten(1)


class Mtcnn:
    """Detector from a folder with FILES (facenet-pytorch's state dicts).

    Raises MissingData when a file is absent and UserError when it is not that network's state dict.
    """

    thresholds = (0.6, 0.7, 0.7)  # facenet-pytorch's defaults, as the pyramid factor
    factor = 0.709

    def __init__(self, folder: Path | str, device: torch.device | str = "cpu", min_face_px: float = 20) -> None:
        self.device, self.min_face_px = device, min_face_px
        self.pnet, self.rnet, self.onet = (
            _load(net, Path(folder) / name).to(device)
            for net, name in zip((PNet(), RNet(), ONet()), FILES, strict=True)
        )

    @torch.no_grad()
    def detect(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(boxes (F, 4) x0, y0, x1, y1, probability (F,), points (F, 5, 2)) of an RGB uint8 image (3, H, W), in px."""
        x = image.to(self.device).float()[None]
        boxes = self._propose(x)
        if len(boxes):
            probability, shift = self.rnet(_crops(x, boxes, 24))
            good = probability > self.thresholds[1]
            boxes, probability, shift = boxes[good], probability[good], shift[good]
            pick = _nms(boxes, probability, 0.7)
            boxes = _square(_shift(boxes[pick], shift[pick]))
        if not len(boxes):
            return torch.empty(0, 4), torch.empty(0), torch.empty(0, 5, 2)
        probability, shift, points = self.onet(_crops(x, boxes, 48))
        good = probability > self.thresholds[2]
        boxes, probability, shift, points = boxes[good], probability[good], shift[good], points[good]
        size = boxes[:, 2:] - boxes[:, :2] + 1
        points = points.view(-1, 2, 5).transpose(1, 2) * size[:, None] + boxes[:, None, :2] - 1
        boxes = _shift(boxes, shift)
        pick = _nms(boxes, probability, 0.7, of_smaller=True)
        return boxes[pick].cpu(), probability[pick].cpu(), points[pick].cpu()

    def _propose(self, x: torch.Tensor) -> torch.Tensor:
        """Square boxes (F, 4) from PNet on an image pyramid."""
        height, width = x.shape[2:]
        scale, found = 12 / self.min_face_px, []
        while min(height, width) * scale >= 12:
            size = (int(height * scale + 1), int(width * scale + 1))
            probability, shift = self.pnet(_scaled(F.interpolate(x, size, mode="area")))
            y, column = (probability[0] > self.thresholds[0]).nonzero(as_tuple=True)
            corner = torch.stack([column, y], 1).float() * 2 + 1  # a cell sees 12 px, the next one starts 2 px on
            boxes = torch.cat([(corner / scale).floor(), ((corner + 11) / scale).floor()], 1)
            score, shift = probability[0, y, column], shift[0, :, y, column].T
            pick = _nms(boxes, score, 0.5)
            found.append(torch.cat([boxes[pick], score[pick, None], shift[pick]], 1))
            scale *= self.factor
        if not found:
            return torch.empty(0, 4)
        boxes, score, shift = torch.cat(found).split([4, 1, 4], 1)
        pick = _nms(boxes, score[:, 0], 0.7)
        return _square(_shift(boxes[pick], shift[pick], extra=0))


def main_face(boxes: torch.Tensor, points: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Five points (5, 2) of the face that `main_number` takes; UserError when there is none."""
    if not len(boxes):
        raise UserError("no face was found; give its five points, or lower min_face_px")
    return points[main_number(boxes, width, height)]


def main_number(boxes: torch.Tensor, width: int, height: int) -> int:
    """Number of the box, of (F, 4) x0, y0, x1, y1, that is large and near the middle of the photo.

    Size counts by area, the distance of the box's centre from the photo's by twice its square (facenet's rule).
    """
    size = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 - torch.tensor([width / 2, height / 2])
    return int((size - 2 * centre.square().sum(1)).argmax())


def installed(min_face_px: float = 20) -> Mtcnn | None:
    """The detector of `make data-mtcnn`, or None where it is not on this machine."""
    there = all((folder() / name).is_file() for name in FILES)
    return Mtcnn(folder(), min_face_px=min_face_px) if there else None


def off_template_px(crops: Sequence[torch.Tensor], detector: Mtcnn) -> float | None:
    """How far aligned crops (3, S, S) uint8 are off the template, in px of 112: a median; None if no face is found.

    Each crop's points are found anew and fitted to the template by least squares, and the fit's move of the template's
    points is taken. A face's own shape does not count, since that fit leaves nothing to move in crops that it made. On
    100 LFW faces the median was 0.9 px for least squares (the detector's own spread, on crops whose edges are repeated
    half a side further) and 2.3 px for OpenCV's estimateAffinePartial2D, which drops points.
    """
    moves = []
    for crop in crops:
        side = crop.shape[-1]
        margin = side // 2
        wide = F.pad(crop[None].float(), (margin,) * 4, mode="replicate")[0]
        boxes, _, points = detector.detect(wide)
        if len(boxes):
            five = main_face(boxes, points, side + 2 * margin, side + 2 * margin).numpy() - margin
            target = alignment.template(side)
            matrix = alignment.similarity_transform(five[None], target)[0]
            moved = target @ matrix[:, :2].T + matrix[:, 2]
            moves.append(np.linalg.norm(moved - target, axis=1).mean() * 112 / side)
    return float(np.median(moves)) if moves else None


def _load(net: nn.Module, path: Path) -> nn.Module:
    check_zip(path, "fetch it again")
    try:
        net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except FileNotFoundError:
        raise MissingData(
            f"{path}: no such file; obtain it by `make data-mtcnn`, or name its folder by --mtcnn"
        ) from None
    except Exception as error:  # torch.load raises many kinds for a damaged file
        reason = one_line(error, 80)
        raise UserError(f"{path}: not {type(net).__name__}'s state dict ({reason}); fetch it again") from None
    return net.eval()


def _scaled(x: torch.Tensor) -> torch.Tensor:
    return (x - 127.5) * 0.0078125


def _nms(boxes: torch.Tensor, score: torch.Tensor, overlap: float, of_smaller: bool = False) -> torch.Tensor:
    """Indices of boxes that no better one overlaps by more than `overlap` (intersection over union), best first.

    torchvision.ops.nms without torchvision, whose import takes as long as torch's own. `of_smaller` counts the overlap
    as a share of the smaller box, as MTCNN does at its end: a box inside another one is the same face.
    """
    order = score.argsort(descending=True, stable=True)
    x0, y0, x1, y1 = boxes[order].cpu().double().numpy().T
    area, kept, left = (x1 - x0) * (y1 - y0), [], np.arange(len(boxes))
    while len(left):
        best, left = left[0], left[1:]
        kept.append(int(best))
        width = np.minimum(x1[best], x1[left]) - np.maximum(x0[best], x0[left])
        height = np.minimum(y1[best], y1[left]) - np.maximum(y0[best], y0[left])
        both = width.clip(0) * height.clip(0)
        whole = np.minimum(area[best], area[left]) if of_smaller else area[best] + area[left] - both
        left = left[both <= overlap * whole]
    return order[kept]


def _shift(boxes: torch.Tensor, shift: torch.Tensor, extra: int = 1) -> torch.Tensor:
    """Boxes moved by the network's relative corrections. `extra`: whether a box of n px spans n or n - 1."""
    size = boxes[:, 2:] - boxes[:, :2] + extra
    return boxes + shift * size.repeat(1, 2)


def _square(boxes: torch.Tensor) -> torch.Tensor:
    """Boxes of the larger side around the same centres."""
    side = (boxes[:, 2:] - boxes[:, :2]).amax(1, keepdim=True)
    first = (boxes[:, :2] + boxes[:, 2:]) / 2 - side / 2
    return torch.cat([first, first + side], 1)


def _crops(x: torch.Tensor, boxes: torch.Tensor, size: int) -> torch.Tensor:
    """(F, 3, size, size) network input: the part of each box inside the image (1, 3, H, W), stretched to the size."""
    height, width = x.shape[2:]
    corners, limit = boxes.int(), torch.tensor([width, height], dtype=torch.int32, device=boxes.device)
    low = torch.minimum(corners[:, :2].clamp(min=1) - 1, limit - 1)
    high = torch.maximum(torch.minimum(corners[:, 2:], limit), low + 1)  # a box outside sees the border
    parts = [x[:, :, y0:y1, x0:x1] for (x0, y0), (x1, y1) in zip(low.tolist(), high.tolist(), strict=True)]
    return _scaled(torch.cat([F.interpolate(part, (size, size), mode="area") for part in parts]))
