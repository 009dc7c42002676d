"""Five points for a tree of photos: `python -m facepapers.common.tools.align PHOTOS --mtcnn FOLDER --to FILE.csv`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from facepapers.common import cli
from facepapers.common.data.photos import read_photo
from facepapers.common.data.readers.alignment import identity_files
from facepapers.common.storage import atomic
from facepapers.common.vision.mtcnn import Mtcnn, main_face


@dataclass(frozen=True)
class Command:
    """Write the five points of the main face of every photo."""

    photos: Path  # folder of photos, as <identity>/<image>
    mtcnn: Path | None = None  # folder of the detector's weights (pnet.pt, rnet.pt, onet.pt); needed
    to: Path = Path("landmarks.csv")  # file that is written


def main(argv: Sequence[str]) -> None:
    """Find the faces and write their points."""
    options = cli.command(Command, argv, "python -m facepapers.common.tools.align", __doc__)
    if options.mtcnn is None:
        raise cli.UserError("--mtcnn FOLDER: name the folder of the detector's weights")
    detector = Mtcnn(options.mtcnn)
    found: dict[str, tuple[float, np.ndarray | None]] = {}
    for path, name, _ in identity_files(options.photos):
        photo = read_photo(path)
        boxes, probability, points = detector.detect(photo)
        if len(boxes):
            found[name] = (float(probability.max()), main_face(boxes, points, *photo.shape[:0:-1]).numpy())
        else:
            found[name] = (0.0, None)
    write(options.to, found)
    missed = sum(points is None for _, points in found.values())
    print(f"{options.to}: {len(found)} photos; {missed} without a face got the median points")


def write(target: Path, found: dict[str, tuple[float, np.ndarray | None]]) -> None:
    """Write name -> (probability, five points (5, 2) or None where there is no face) as a table."""
    middle = np.median([p for _, p in found.values() if p is not None], axis=0)  # a face that was not found
    parts = ("leye", "reye", "nose", "lmouth", "rmouth")
    head = ",".join(["file", "prob", *(f"{part}_{axis}" for part in parts for axis in "xy")])
    with atomic(target) as temporary, open(temporary, "w") as handle:
        handle.write(head + "\n")
        for name, (probability, points) in found.items():
            points = middle if points is None else points
            handle.write(f"{name},{probability:.4f}," + ",".join(f"{v:.2f}" for v in points.ravel()) + "\n")


if __name__ == "__main__":
    cli.entry(main)
