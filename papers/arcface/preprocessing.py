"""What preprocessing costs: `python -m facepapers.papers.arcface.preprocessing --landmarks FILE --weights FILE`.

LFW's 6,000 pairs, judged by the given MobileFaceNet, with crops made in the ways of VARIANTS. Some are OpenCV's: they
want an environment of its own, with `pip install opencv-python-headless==4.14.0.94` besides what this repository needs.

Other fits start from the 112 px crop, not from the photo: with L the least-squares fit of a photo's five points and V
another, the crop is warped by V L^-1, bilinear, its edge pixels repeated outside. A photo would show what lies beyond
the crop, and is sampled once instead of twice; `again` says what the second sampling alone costs.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from facepapers.common import cli, paths, storage
from facepapers.common.data import sets
from facepapers.common.data.readers.recognition import read_points
from facepapers.common.evidence import environment, runs
from facepapers.common.protocols import verification
from facepapers.common.training import parallel
from facepapers.common.vision import alignment, networks, resampling
from facepapers.papers.arcface import data
from facepapers.papers.arcface.config import PAPER
from facepapers.papers.arcface.tables import PREPROCESSING, VARIANTS

OPENCV = "4.14.0.94"  # the version that the record was made with
SMALL = 16  # pixels of the small faces
BATCH = 32  # faces at once: the fastest on one core


@dataclass(frozen=True)
class Command:
    """Measure every variant that is not measured yet, then write the record."""

    landmarks: Path | None = None  # LFW's landmarks.csv, five points of each photo; needed by ransac and lmeds
    weights: Path | None = None  # the given MobileFaceNet; by default in data/raw
    variants: str = " ".join(VARIANTS)  # separated by spaces
    work: Path = paths.LOCAL / PREPROCESSING  # folder of the distances; delete it to measure anew
    out: Path | None = None  # folder of records, for distances and conditions of all variants
    device: str = "auto"  # auto (a GPU where there is one), cpu or cuda


def main(argv: Sequence[str]) -> None:
    """Print each variant's accuracy."""
    options = cli.command(Command, argv, "python -m facepapers.papers.arcface.preprocessing", __doc__)
    chosen = options.variants.split()
    if unknown := [name for name in chosen if name not in VARIANTS]:
        raise cli.UserError(f"--variants {unknown[0]!r}: known are {' '.join(VARIANTS)}")
    device = parallel.start(options.device)
    path = networks.given_weights(options.weights)
    net = fused(networks.load_mobilefacenet(path), device)
    faces, pairs = tested_faces()
    for name in chosen:
        file = options.work / f"{name}.npy"
        if not file.exists():
            images = variant(name, faces, options.landmarks)
            vectors = verification.embed(net, images, to_input, BATCH, device, flip=name != "no_flip")
            distance = verification.squared_distances(vectors[pairs[:, 0]], vectors[pairs[:, 1]])
            with storage.atomic(file) as temporary, open(temporary, "wb") as handle:
                np.save(handle, distance.astype(np.float32))
        found = verification.verify(np.load(file), pairs[:, 2], pairs[:, 3])
        print(f"{name:20s} {found.accuracy_pct:.2f}  {VARIANTS[name]}", flush=True)
    if options.out:
        record(options, pairs, faces, device)


def fused(net: networks.MobileFaceNetReLU, device: torch.device) -> torch.jit.ScriptModule:
    """The network with batch norms and activations inside its convolutions: 1e-5 apart, and thrice as fast on a CPU."""
    example = torch.zeros(BATCH, 3, net.input_px, net.input_px, device=device)
    traced = torch.jit.trace(networks.channels_last(net, device), example)
    return torch.jit.optimize_for_inference(traced)


def to_input(images: torch.Tensor) -> torch.Tensor:
    return networks.to_input(images, networks.MobileFaceNetReLU.pixels)


@dataclass(frozen=True)
class Faces:
    """The faces of LFW's 6,000 pairs: crops (N, 3, 112, 112) uint8, their names, and the set's fingerprint."""

    images: torch.Tensor
    names: list[str]
    fingerprint: str


def tested_faces() -> tuple[Faces, np.ndarray]:
    """(Faces, pairs (6000, 4) with rows left, right, same, fold). MissingData where LFW is not on this machine."""
    every, names = data.load("lfw"), sets.ensure("lfw").arrays["name"]
    pairs = every.pairs["pairs"]
    used, place = np.unique(pairs[:, :2], return_inverse=True)
    moved = np.column_stack([place.reshape(-1, 2), pairs[:, 2:]])
    return Faces(every.images[torch.from_numpy(used)], names[used].tolist(), every.fingerprint), moved


def record(options: Command, pairs: np.ndarray, faces: Faces, device: torch.device) -> None:
    """Write <out>/arcface/preprocessing.npz, distances of the variants measured, and .json, what they were made with.

    UserError when `ours`, which the others are compared with, has not been measured.
    """
    import PIL

    measured = {name: options.work / f"{name}.npy" for name in VARIANTS if (options.work / f"{name}.npy").exists()}
    if "ours" not in measured:
        raise cli.UserError(
            "--out: ours is not measured yet, and the others are compared with it; add it to --variants"
        )
    if missing := VARIANTS.keys() - measured.keys():
        print(f"not measured yet, so not in the record: {' '.join(sorted(missing))}")
    target = Path(options.out or paths.RECORDED, PAPER, PREPROCESSING)
    truth = {"same": pairs[:, 2].astype(bool), "fold": pairs[:, 3].astype(np.uint8)}
    runs.write_predictions(target.with_suffix(".npz"), {k: np.load(file) for k, file in measured.items()} | truth)
    versions = {"pillow": PIL.__version__, "opencv": opencv().__version__}
    storage.write_json(target.with_suffix(".json"), {
        "data": {"name": "lfw", "fingerprint": faces.fingerprint, "faces": len(faces.names), "pairs": len(pairs)},
        "landmarks_sha256": storage.sha256(needed(options.landmarks)),
        "weights": {"file": networks.GIVEN_FILE, "sha256": networks.GIVEN_SHA256},
        "distances_sha256": storage.sha256(target.with_suffix(".npz")),
        "source": environment.source_state(PAPER),
        "environment": environment.environment(device) | versions,
    })  # fmt: skip


# ---- The variants


def variant(name: str, faces: Faces, landmarks: Path | None = None) -> torch.Tensor:
    """The crops (N, 3, 112, 112) uint8 of one of VARIANTS."""
    if name in ("ransac", "lmeds"):
        return refitted(faces, read_points(needed(landmarks)), name)
    if name.startswith("jpeg"):
        return torch.stack([through_jpeg(face, int(name.removeprefix("jpeg"))) for face in faces.images])
    if name.startswith("small_"):
        return enlarged(faces.images, name.removeprefix("small_"))
    changes: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"bgr": lambda x: x.flip(1), "again": half_a_pixel}
    return changes.get(name, lambda x: x)(faces.images)


def needed(landmarks: Path | None) -> Path:
    if landmarks is None:
        raise cli.UserError("--landmarks FILE: name LFW's landmarks.csv (data/README.md says how it is made)")
    return landmarks


def opencv() -> Any:
    """The module cv2. MissingData where it is not installed."""
    try:
        import cv2
    except ImportError:
        what = f"pip install opencv-python-headless=={OPENCV}"
        raise cli.MissingData(f"this variant is OpenCV's, which is not installed; in a copy of .venv: {what}") from None
    cv2.setNumThreads(1)
    return cv2


def refitted(faces: Faces, points: dict[str, np.ndarray], method: str) -> torch.Tensor:
    """The crops as if their photos had been aligned by OpenCV's estimateAffinePartial2D: `ransac` or `lmeds`."""
    cv2 = opencv()
    target, found = alignment.template(), np.stack([points[name] for name in faces.names])
    ours = square(alignment.similarity_transform(found, target))
    how = {"ransac": cv2.RANSAC, "lmeds": cv2.LMEDS}[method]
    theirs = square(np.stack([cv2.estimateAffinePartial2D(five, target, method=how)[0] for five in found]))
    moves = (theirs @ np.linalg.inv(ours))[:, :2]  # from crop to crop

    def moved(face, move):
        return cv2.warpAffine(face, move, face.shape[1::-1], borderMode=cv2.BORDER_REPLICATE)

    return pixelwise(faces.images, moved, moves)


def square(matrix: np.ndarray) -> np.ndarray:
    """Affine maps (N, 2, 3) as (N, 3, 3)."""
    return np.concatenate([matrix, np.tile([[[0.0, 0, 1]]], (len(matrix), 1, 1))], 1)


def pixelwise(images: torch.Tensor, change: Callable[..., np.ndarray], *each: Iterable) -> torch.Tensor:
    """change(face (H, W, 3) uint8, one of each further sequence) of every image (N, 3, H, W), as images again."""
    rows = images.permute(0, 2, 3, 1).numpy()
    done = np.stack([change(*parts) for parts in zip(np.ascontiguousarray(rows), *each, strict=True)])
    return torch.from_numpy(done).permute(0, 3, 1, 2)


def half_a_pixel(images: torch.Tensor) -> torch.Tensor:
    """Images half a pixel to the right and down, bilinear: the mean of 2 x 2 pixels, which blurs most."""
    x = F.avg_pool2d(F.pad(images.float(), (1, 0, 1, 0), mode="replicate"), 2, stride=1)
    return x.round().to(torch.uint8)


def through_jpeg(face: torch.Tensor, quality: int) -> torch.Tensor:
    """A face (3, H, W) written and read by Pillow, as baseline JPEG with halved colours."""
    from PIL import Image

    file = BytesIO()
    Image.fromarray(face.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)


def enlarged(images: torch.Tensor, how: str) -> torch.Tensor:
    """Images (N, 3, S, S) reduced to SMALL pixels by Pillow's cubic filter, and brought back to S as `how` says."""
    size, small = images.shape[-1], resampling.resize(images, SMALL)
    if how == "pillow":
        return resampling.resize(small, size)
    if how in ("torch", "torch_antialias"):
        options: dict[str, Any] = {"mode": "bicubic", "antialias": how == "torch_antialias"}
        return F.interpolate(small.float(), (size, size), **options).round().clamp(0, 255).to(torch.uint8)
    cv2 = opencv()
    kind = {"opencv_cubic": cv2.INTER_CUBIC, "opencv_area": cv2.INTER_AREA}[how]
    return pixelwise(small, lambda face: cv2.resize(face, (size, size), interpolation=kind))


if __name__ == "__main__":
    cli.entry(main)
