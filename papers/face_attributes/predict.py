"""All attributes of a face in one pass.

`python -m facepapers.papers.face_attributes.predict IMAGE ...`

IMAGE is a face crop as of the set that the weights were trained on, or with `--mtcnn` any photo. Writes
IMAGE.attributes.json beside each image.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from facepapers.common import cli, storage
from facepapers.common.data import photos
from facepapers.common.evidence import runs
from facepapers.common.training import parallel
from facepapers.common.vision import alignment, images, mtcnn, networks
from facepapers.papers.face_attributes import assemble, data, evaluate, method, shared
from facepapers.papers.face_attributes.config import PAPER, Config

STATEMENT = (
    "These are guesses of how annotators would label the picture, in fixed categories: perceptions, not facts about "
    "the person, and wrong more often for some groups than for others (see the card). They are for research on the "
    "method; decide nothing about anybody by them."
)


@dataclass(frozen=True)
class Command:
    """Guess the attributes of faces."""

    images: tuple[Path, ...]  # image files
    weights: Path | None = None  # weights file of a `chosen` row; without it the newest of this machine
    frame: str | None = None  # position of the face in a crop: aligned (ArcFace's template), or as in a set named here
    mtcnn: Path | None = None  # folder of MTCNN's weights: finds and aligns the main face of any photo
    out: Path | None = None  # folder of what is written; without it the image's own
    device: str = "auto"  # auto (a GPU where there is one), cpu or cuda


def main(argv: Sequence[str]) -> None:
    """Write and print the attributes of each image."""
    options = cli.command(Command, argv, "python -m facepapers.papers.face_attributes.predict", __doc__)
    weights = options.weights or runs.newest_weights(PAPER, "*-chosen-*")
    net, cfg, attributes, pixels = shared.load_shared(weights, parallel.start(options.device))
    frame = options.frame or cfg.data.split("+")[0]
    detector = mtcnn.Mtcnn(options.mtcnn) if options.mtcnn else None
    cost = computation(net, cfg)
    for path in options.images:
        face = aligned(photos.read_photo(path), cfg.input_px, frame, detector, path)
        started = time.perf_counter()
        found = predict(net, attributes, networks.to_input(face, pixels))
        spent = 1000 * (time.perf_counter() - started)
        value = {"image": path.name, "attributes": found, "gflop": cost, "statement": STATEMENT}
        storage.write_json((options.out or path.parent) / f"{path.stem}.attributes.json", value)
        print(f"{path}: {spent:.1f} ms, {cost:.3f} GFLOP (2 per multiply-add)")
        for name, answer in found.items():
            years = f", {answer['years']:.0f} years" if "years" in answer else ""
            print(f"  {name:10s} {answer['label']} ({answer['probability']:.2f}{years})")
    print(STATEMENT)


def frames() -> tuple[str, ...]:
    """Positions of a face in a crop that `--frame` knows by name."""
    return ("aligned", *data.FRAMES)


def aligned(photo: torch.Tensor, px: int, frame: str, detector: mtcnn.Mtcnn | None, path: Path | str) -> torch.Tensor:
    """The trunk's input pixels (1, 3, px, px) 0..255 of a photo (3, H, W) of any size.

    Raises UserError when a crop is expected and the image is far from square, or no face is found.
    """
    height, width = photo.shape[1:]
    if detector is not None:
        boxes, _, points = detector.detect(photo)
        try:
            five = mtcnn.main_face(boxes, points, width, height)
        except cli.UserError:
            raise cli.UserError(f"{path}: no face was found; give a face crop without --mtcnn") from None
        return resampled(alignment.align(photo[None], five[None].numpy(), 2 * px), px)
    if frame not in ("embedded", *frames(), *data.READERS):
        raise cli.UserError(f"--frame {frame}: known are {', '.join(frames())}")
    if max(height, width) > 1.2 * min(height, width):
        raise cli.UserError(
            f"{path}: {width}x{height} is no square face crop; cut it, or find the face by --mtcnn FOLDER"
        )
    side = min(height, width)
    square = photo[:, (height - side) // 2 :, (width - side) // 2 :][None, :, :side, :side]
    while square.shape[-1] > 2 * 112:
        square = images.halve(square)
    where = images.similarity(torch.full((1, 2), 55.5), torch.full((1,), 112.0), torch.zeros(1), torch.zeros(1) > 0, px)
    return images.crop(square, data.after(data.frame_of(frame, square.shape[-1]), where), px)


def resampled(faces: torch.Tensor, px: int) -> torch.Tensor:
    """uint8 faces as float pixels of px x px."""
    return evaluate.resized(faces, px)


@torch.no_grad()
def predict(
    net: method.SharedNet, attributes: dict[str, data.Attribute], x: torch.Tensor
) -> dict[str, dict[str, object]]:
    """Attribute -> {label, probability, probabilities} (and years) for one face (1, 3, px, px), all in one pass."""
    found = {}
    for name, score in net.eval()(x.to(next(net.parameters()).device)).items():
        attribute, probability = attributes[name], score.float().softmax(1).cpu()
        groups = evaluate.groups_of(probability) if attribute.years else probability
        best = int(groups.argmax())
        found[name] = {
            "label": attribute.classes[best], "probability": round(float(groups[0, best]), 4),
            "probabilities": {c: round(float(p), 4) for c, p in zip(attribute.classes, groups[0], strict=True)},
        }  # fmt: skip
        if attribute.years:
            found[name]["years"] = round(float(method.expected_median(probability)[0]), 1)
    return found


def computation(net: method.SharedNet, cfg: Config) -> float:
    """GFLOP (2 per multiply-add) of all predictions of one face."""
    per_stage, heads = assemble.costs(net, cfg)
    return 2 * method.pattern_macs(per_stage, net.starts, heads) / 1e9


if __name__ == "__main__":
    cli.entry(main)
