"""Readers of class-labelled sets for data.sets: CIFAR-100 (through torchvision), CUB-200-2011, Cars196, Omniglot.

They yield samples (image, row) for `data.pack.gather`; row: name, split (0 train, 1 test), label (0-based class).
CUB and Cars are split for retrieval, as in metric learning: the first half of the classes trains, the others test.
Every bad input raises UserError: one line with the file, what is wrong, and the remedy.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from facepapers.common.cli import UserError
from facepapers.common.data import archive
from facepapers.common.data.archive import AnyPath
from facepapers.common.data.pack import Sample
from facepapers.common.data.readers.files import folder_with, text_lines


def cifar100(folder: AnyPath) -> Iterator[Sample]:
    """Samples of CIFAR-100's Python version: cifar-100-python/{train,test,meta}, read and checked by torchvision."""
    from torchvision.datasets import CIFAR100

    place = folder_with(folder, "cifar-100-python") if not (Path(folder) / "train").exists() else Path(folder).parent
    for split, train in enumerate((True, False)):
        try:
            part = CIFAR100(place, train=train, download=False)
        except (RuntimeError, EOFError, KeyError, ValueError) as error:
            reason = " ".join(str(error).split())[:80]
            raise UserError(f"{place}: not CIFAR-100's Python files ({reason}); fetch the archive again") from None
        for i, (image, label) in enumerate(zip(part.data, part.targets, strict=True)):
            yield (
                image,
                {"name": f"{'train' if train else 'test'}{i}", "split": np.uint8(split), "label": np.int16(label)},
            )


def cub200(folder: AnyPath) -> Iterator[Sample]:
    """Samples of CUB_200_2011: images.txt, image_class_labels.txt, images/. Classes 1-100 train, 101-200 test."""
    root = folder_with(folder, "images.txt", "image_class_labels.txt")
    names = _table(root / "images.txt")
    labels = {key: _class(root, key, word) for key, word in _table(root / "image_class_labels.txt").items()}
    if names.keys() != labels.keys():
        raise UserError(f"{root}: images.txt and image_class_labels.txt list different images; fetch the archive again")
    half = max(labels.values()) // 2
    for key, name in names.items():
        yield _bytes(root / "images" / name, root / "images.txt"), _row(name, labels[key] - 1, half)


def cars196(folder: AnyPath) -> Iterator[Sample]:
    """Samples of Cars196: cars_annos.mat and car_ims/. Classes 1-98 train, 99-196 test."""
    root = folder_with(folder, "cars_annos.mat")
    entries = _car_annotations(root / "cars_annos.mat")
    half = (max((label for _, label in entries), default=0) + 1) // 2
    for name, label in entries:
        yield _bytes(root / name, root / "cars_annos.mat"), _row(name, label, half)


# In a process of its own: on some damaged files scipy's parser does not raise an error but ends the process.
_READ_CARS = """
import json, sys
from scipy.io import loadmat
rows = loadmat(sys.argv[1], squeeze_me=True)["annotations"]
print(json.dumps([(str(row["relative_im_path"]), int(row["class"]) - 1) for row in rows]))
"""


def _car_annotations(path: AnyPath) -> list[tuple[str, int]]:
    """[(picture, 0-based class)] of cars_annos.mat."""
    done = subprocess.run([sys.executable, "-c", _READ_CARS, os.fspath(path)], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"scipy ended with code {done.returncode}"])[-1][:80]
        raise UserError(f"{path}: not Cars196's annotations, or damaged ({reason}); fetch it again")
    listed = [(name, label) for name, label in json.loads(done.stdout)]
    if not all(0 <= label <= np.iinfo(np.int16).max for _, label in listed):
        raise UserError(f"{path}: a class is no number from 1 on; fetch it again")
    return listed


def _class(root: AnyPath, key: str, word: str) -> int:
    """The class, from 1 on, of image `key` in image_class_labels.txt."""
    if not (word.isascii() and word.isdigit() and int(word)):
        raise UserError(
            f"{root / 'image_class_labels.txt'}: image {key} has class {word!r}, no number above 0; fetch it again"
        )
    return int(word)


def omniglot(folder: AnyPath) -> Iterator[Sample]:
    """Samples of Omniglot: images_background/ (train) and images_evaluation/ (test), alphabet/character/NNNN_DD.png.

    Rows also have `alphabet` (0-based, over both parts) and `drawer` (1 to 20). A label is a character of an alphabet;
    no alphabet is in both parts.
    """
    root = folder_with(folder, "images_background", "images_evaluation")
    alphabets = label = 0
    for split, part in enumerate(("images_background", "images_evaluation")):
        for alphabet in _folders(root / part):
            for character in _folders(alphabet):
                for path in archive.entries(character, "*.png"):
                    drawer = path.stem.rpartition("_")[2]
                    if not drawer.isdigit():
                        raise UserError(f"{path}: not named as Omniglot's images, NNNN_DD.png; fetch the archive again")
                    name = f"{part}/{alphabet.name}/{character.name}/{path.name}"
                    yield path.read_bytes(), {
                        "name": name, "split": np.uint8(split), "label": np.int16(label),
                        "alphabet": np.uint8(alphabets), "drawer": np.uint8(drawer),
                    }  # fmt: skip
                label += 1
            alphabets += 1


def _folders(folder: AnyPath) -> list[AnyPath]:
    return [path for path in archive.entries(folder) if path.is_dir()]


def _row(name: str, label: int, half: int) -> dict[str, Any]:
    return {"name": name, "split": np.uint8(label >= half), "label": np.int16(label)}


def _bytes(path: AnyPath, listed: AnyPath) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError):  # ValueError: a name with a zero byte
        raise UserError(f"{path}: is absent, but {listed} names it; fetch the archive again") from None


def _table(path: AnyPath) -> dict[str, str]:
    """{first word: second word} of each line."""
    lines = [line.split() for line in text_lines(path) if line.strip()]
    bad = next((number for number, words in enumerate(lines, start=1) if len(words) != 2), None)
    if bad:
        raise UserError(f"{path}:{bad}: expected two words; fetch the archive again")
    return dict(lines)
