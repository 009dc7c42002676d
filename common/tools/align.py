"""Five points for a tree of photos: `python -m facepapers.common.tools.align PHOTOS --to FILE.csv`."""

import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from facepapers.common import cli
from facepapers.common.data.photos import read_photo
from facepapers.common.data.readers.alignment import identity_files
from facepapers.common.progress import progress
from facepapers.common.storage import atomic
from facepapers.common.vision.mtcnn import Mtcnn, folder, main_face

PARTS = ("leye", "reye", "nose", "lmouth", "rmouth")
HEAD = ("file", "prob", *(f"{part}_{axis}" for part in PARTS for axis in "xy"))
Found = dict[str, tuple[float, np.ndarray | None]]  # name: (probability, points (5, 2) or None without a face)


@dataclass(frozen=True)
class Command:
    """Write the five points of the main face of every photo."""

    photos: Path  # folder of photos, as <identity>/<image>
    mtcnn: Path | None = None  # folder of the detector's networks, if not that of `make data-mtcnn`
    to: Path = Path("landmarks.csv")  # file that is written
    fill: bool = False  # give photos without a face the median of the others' points, for photos of one framing


def main(argv: Sequence[str]) -> None:
    """Find the faces and write their points. UserError, and no table, where no photo shows a face."""
    options = cli.command(Command, argv, "python -m facepapers.common.tools.align", __doc__)
    found = points_of(options.photos, Mtcnn(options.mtcnn or folder()))
    missing = [name for name, (_, points) in found.items() if points is None]
    if len(missing) == len(found):
        raise cli.UserError(f"{options.photos}: no face was found in any of {len(found)} photos; no table was written")
    write(options.to, found, options.fill)
    for name in missing:
        print(f"{name}: no face", file=sys.stderr)
    what = "got the median points" if options.fill else "are left out"
    print(f"{options.to}: {len(found)} photos; {len(missing)} without a face {what}")


def points_of(photos: Path, detector: Mtcnn) -> Found:
    """What the detector finds in a tree of photos. One that cannot be read is said on stderr, and has no face."""
    found: Found = {}
    for path, name, _ in progress(list(identity_files(photos)), "faces", "photos"):
        found[name] = (0.0, None)
        try:
            photo = read_photo(path)
        except cli.UserError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        boxes, probability, points = detector.detect(photo)
        if len(boxes):
            found[name] = (float(probability.max()), main_face(boxes, points, *photo.shape[:0:-1]).numpy())
    return found


def write(target: Path, found: Found, fill: bool = False) -> None:
    """Write the photos with points as a table, or with `fill` all of them, those without by the others' median."""
    middle = np.median([points for _, points in found.values() if points is not None], axis=0) if fill else None
    with (
        atomic(target) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as handle,
    ):
        table = csv.writer(handle, lineterminator="\n")
        table.writerow(HEAD)
        for name, (probability, points) in found.items():
            points = middle if points is None else points
            if points is not None:
                table.writerow([name, f"{probability:.4f}", *(f"{v:.2f}" for v in points.ravel())])


if __name__ == "__main__":
    cli.entry(main)
