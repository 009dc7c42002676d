"""Comparisons of this paper for `make bench`, on embedded faces."""

import dataclasses
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from facepapers.common import seeding, storage
from facepapers.common.data import markups
from facepapers.common.data.alignment import AlignmentSet
from facepapers.common.data.markups import Markup
from facepapers.common.data.photos import read_photo
from facepapers.common.evidence.timing import cold_start
from facepapers.common.faces import drawing as embedded
from facepapers.common.prediction import drawing
from facepapers.common.protocols import metrics
from facepapers.common.training import precision
from facepapers.common.training.released import find
from facepapers.common.vision import networks
from facepapers.papers.coarse_to_fine import data, method, predict, released, train
from facepapers.papers.coarse_to_fine.config import PAPER, Config, Model, preset
from facepapers.papers.coarse_to_fine.crops import Crops, FaceCrops, Offsets, landmark_boxes

BATCH, ROUND, PHOTOS = 64, 20, 32


def trained_networks() -> Iterator[tuple]:
    """(what, network, input) for the step's share of the machine's rate."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cfg = preset("short", "cft", "embedded")
    net = networks.channels_last(method.CFTNet(29, markups.COFW29.principal, cfg.crop), device)
    x = 255 * torch.rand(BATCH, 3, cfg.crop, cfg.crop, device=device)
    yield f"CFT, {BATCH} crops", net, x.contiguous(memory_format=torch.channels_last)


def comparisons() -> Iterator[tuple]:
    """(what, name, run, other name, other run) for tools.bench; a None other is a plain time."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    faces, cfg = data.load("embedded"), preset("short", "cft", "embedded")
    crops = FaceCrops(faces, cfg.crop, cfg.margin, device)
    index = torch.arange(BATCH, device=device)
    batched = lambda: crops.training(index, seeding.generator(0), cfg, Offsets())
    many = lambda: [batched() for _ in range(ROUND)]
    loader = torch.utils.data.DataLoader(
        PilCrops(faces, cfg), BATCH, num_workers=2, sampler=range(ROUND * BATCH), persistent_workers=True
    )  # a whole round each, because workers go on filling their queue while the other side is timed
    yield f"augmenting {ROUND * BATCH} crops", "batched tensors", many, "PIL, 2 workers", lambda: list(loader)
    what = f"CFT training step, {BATCH} crops"
    if precision.choose("auto", device) == "bf16":
        fast, slow = (
            stepper(dataclasses.replace(cfg, precision=p), faces.markup, batched(), device) for p in ("bf16", "fp32")
        )
        yield what, "bf16, channels last", fast, "fp32", slow
    else:
        print(f"  {what}, bf16 against fp32: left out, this processor emulates bf16")
    error, d = np.random.default_rng(0).random((20_000, 29)), np.full(20_000, 40.0)
    looped = lambda: [100 * sum(row) / len(row) / n for row, n in zip(error, d, strict=True)]
    yield "drawing 256 embedded faces, 64 px", "all", lambda: embedded.generate(256, 1, size=64), "", None
    yield "NME of 20,000 faces", "vectorised", lambda: metrics.nme_pct(error, d), "loop", looped
    for row in ("cft", "heatmap"):
        model, one = predictor(preset("short", row), faces.markup, device)
        yield f"{row}: one face, batch 1", "prediction", lambda model=model, one=one: model(one), "", None
    for row in ("cft", "heatmap"):
        cfg = preset("short", row)
        yield from streams(row, released.Landmarks(predictor(cfg, faces.markup, device)[0], cfg, faces.markup), faces)
    yield from first_photo(faces)


def streams(row: str, net: released.Landmarks, faces: AlignmentSet) -> Iterator[tuple]:
    """Points of a face in each of PHOTOS photos, as one batch of tensors against photo after photo.

    Once without files, and once as the command does it, which reads the photo and writes its points and a picture.
    """
    large = torch.nn.functional.interpolate(faces.images[:PHOTOS].float(), scale_factor=2).to(torch.uint8)
    photos = torch.nn.functional.pad(large, (224, 224, 144, 144))  # 192 px in 640x480 photos
    centre, side = landmark_boxes(faces.points[:PHOTOS], net.margin)
    boxes = 2 * torch.cat([centre - side[:, None] / 2 + torch.tensor([112.0, 72.0]), side[:, None].expand(-1, 2)], 1)
    batch = lambda: predict.points(net, photos, boxes, looks=1)
    singly = lambda: [predict.points(net, photos[k : k + 1], boxes[k : k + 1], looks=1) for k in range(PHOTOS)]
    torch.testing.assert_close(batch(), torch.cat(singly()), rtol=1e-3, atol=0.05)
    what = f"{row}: points in {PHOTOS} photos"
    yield what, "one batch", batch, "one at a time", singly
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{k}.png") for k in range(PHOTOS)]
        for path, photo in zip(paths, photos, strict=True):
            drawing.write(photo, [], path)

        def files() -> None:
            for path, box in zip(paths, boxes, strict=True):
                photo = read_photo(path)
                found = predict.points(net, photo[None], box[None], looks=1)[0].tolist()
                storage.write_json(path.with_suffix(".json"), {"points_xy": found})
                drawing.write(photo, [(box.tolist(), drawing.Mark(found))], path.with_suffix(".points.png"))

        yield what, "one batch", batch, "one at a time, files read and written", files


def first_photo(faces: AlignmentSet) -> Iterator[tuple]:
    """CPU seconds of the command on one photo, from its start to its files, beside what no such command can save.

    By the released network: one that knows no faces would look again and again for the face it was told of.
    """
    name = released.NAMES[0]
    (centre,), (side,) = landmark_boxes(faces.points[:1], released.load(name).margin)
    box = ",".join(f"{v:.1f}" for v in (*(centre - side / 2).tolist(), side, side))
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder, "face.png")
        drawing.write(faces.images[0], [], photo)
        command = "-m", "facepapers.papers.coarse_to_fine.predict", photo, f"--box={box}", "--weights", name
        least, command_s = cold_start(command, find(PAPER, name, released.NAMES))
    yield f"{name}: CPU of a first photo, cold", "importing torch, reading weights", least, "the command", command_s


def stepper(cfg: Config, markup: Markup, batch: Crops, device: torch.device) -> Callable[[], None]:
    """One training step as train.py does it, on a fixed batch."""
    model = networks.channels_last(Model(cfg, markup), device).train()
    optimizer = train.make_optimizer(cfg, model)

    def step():
        with precision.autocast(device, cfg.precision):
            outputs = model(batch.images.contiguous(memory_format=torch.channels_last))
        optimizer.zero_grad(set_to_none=True)
        model.loss(outputs, batch, (0.5, 0.5)).backward()
        optimizer.step()

    return step


def predictor(cfg: Config, markup: Markup, device: torch.device) -> tuple[Model, torch.Tensor]:
    model = Model(cfg, markup).to(device).eval().requires_grad_(False)
    return model, torch.rand(1, 3, cfg.crop, cfg.crop, device=device) * 255


class PilCrops(torch.utils.data.Dataset):
    """The obvious data path: rotate, crop, flip and compress one PIL image at a time."""

    def __init__(self, faces: AlignmentSet, cfg: Config) -> None:
        self.faces, self.cfg = faces, cfg
        self.centre, self.side = landmark_boxes(faces.points, cfg.margin)

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        import io

        from PIL import Image

        rng, cfg = np.random.default_rng(), self.cfg
        photo = Image.fromarray(self.faces.images[i].permute(1, 2, 0).numpy())
        angle = math.radians(rng.uniform(-cfg.rotation_deg, cfg.rotation_deg))
        side = float(self.side[i]) * math.exp(rng.uniform(-cfg.log_size, cfg.log_size))
        centre = self.centre[i].numpy() + rng.uniform(-cfg.shift, cfg.shift, 2) * side
        scale, half = side / cfg.crop, (cfg.crop - 1) / 2
        cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
        offset = centre - np.array([[cos, -sin], [sin, cos]]).sum(1) * half
        crop = photo.transform((cfg.crop, cfg.crop), Image.Transform.AFFINE,
                               (cos, -sin, offset[0], sin, cos, offset[1]), Image.Resampling.BILINEAR)  # fmt: skip
        points = (self.faces.points[i].numpy() - offset) @ np.linalg.inv([[cos, -sin], [sin, cos]]).T
        if rng.random() < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            points = points[self.faces.markup.flip] * [-1, 1] + [cfg.crop - 1, 0]
        if quality := int(rng.choice([0, 15, 45, 75])):
            buffer = io.BytesIO()
            crop.save(buffer, "JPEG", quality=quality)
            crop = Image.open(buffer)
        return torch.from_numpy(np.array(crop)).permute(2, 0, 1).float(), torch.from_numpy(points).float()
