"""Five points for a tree of photos: `python -m facepapers.common.tools.align PHOTOS --mtcnn FOLDER --to FILE.csv`."""

import numpy as np
import torch

from facepapers.common.cli import UserError
from facepapers.common.vision.mtcnn import Mtcnn, main_face


def main(argv):
    """Write the five points of the main face of every photo of a tree <identity>/<image> as landmarks.csv."""
    from facepapers.common import cli
    from facepapers.common.data.pack import open_image
    from facepapers.common.data.readers.alignment import identity_files
    from facepapers.common.storage import atomic

    weights, argv = cli.take_option(argv, "mtcnn")
    target, argv = cli.take_option(argv, "to", "landmarks.csv")
    if weights is None or len(argv) != 1:
        raise UserError("usage: python -m facepapers.common.tools.align PHOTOS --mtcnn FOLDER --to landmarks.csv")
    detector, found = Mtcnn(weights), {}
    for path, name, _ in identity_files(argv[0]):
        photo = torch.from_numpy(np.array(open_image(path).convert("RGB"))).permute(2, 0, 1)
        boxes, probability, points = detector.detect(photo)
        if len(boxes):
            found[name] = (float(probability.max()), main_face(boxes, points, *photo.shape[:0:-1]).numpy())
        else:
            found[name] = (0.0, None)
    middle = np.median([p for _, p in found.values() if p is not None], axis=0)  # a face that was not found
    parts = ("leye", "reye", "nose", "lmouth", "rmouth")
    head = ",".join(["file", "prob", *(f"{part}_{axis}" for part in parts for axis in "xy")])
    with atomic(target) as temporary, open(temporary, "w") as handle:
        handle.write(head + "\n")
        for name, (probability, points) in found.items():
            points = middle if points is None else points
            handle.write(f"{name},{probability:.4f}," + ",".join(f"{v:.2f}" for v in points.ravel()) + "\n")
    missed = sum(points is None for _, points in found.values())
    print(f"{target}: {len(found)} photos; {missed} without a face got the median points")


if __name__ == "__main__":
    from facepapers.common import cli

    cli.entry(main, about=__doc__)
