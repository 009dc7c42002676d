"""Verification accuracy of a weights file: `python -m facepapers.papers.arcface.evaluate --weights FILE --data lfw`.

Protocol: embeddings of image and mirror image are added; ten folds, thresholds learned on the other nine
(protocols/verification.py). Weights that were trained on LFW's DevTrain are not tested on the 6,000 pairs: 2,985 of the
4,281 people there are in DevTrain.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from facepapers.common import cli, storage
from facepapers.common.cli import MissingData, UserError
from facepapers.common.evidence import runs
from facepapers.common.protocols import angles, retrieval, verification
from facepapers.common.protocols.metrics import show
from facepapers.common.training import checkpoint, parallel
from facepapers.common.vision import images, networks
from facepapers.common.vision.networks import GIVEN_FILE, GIVEN_SHA256
from facepapers.papers.arcface import data, figures
from facepapers.papers.arcface.bayes import JointBayes
from facepapers.papers.arcface.config import PAPER, Config, preset
from facepapers.papers.arcface.metrics import METRICS, measure, pair_keys
from facepapers.papers.arcface.nets import load_net

# ---- From a network to predictions


def embed(
    net: torch.nn.Module,
    pictures: torch.Tensor,
    device: torch.device,
    flip: bool = True,
    batch: int = 128,
    unit: bool = True,
) -> np.ndarray:
    """Unit (or plain) embeddings (N, d), float64, of uint8 faces (N, 3, S, S) of any size, the mirror image's added."""

    def prepare(part):
        return networks.to_input(images.resize(part, net.input_px), net.pixels)

    return verification.embed(net.eval(), pictures, prepare, batch, device, flip, unit)


def joint_bayes(net: torch.nn.Module, training: data.Training, share: float, device: torch.device) -> JointBayes:
    """The JointBayes of the training people's embeddings."""
    assert training.images is not None  # config.check allows this for sets in memory only
    return JointBayes(embed(net, training.images, device, unit=False), training.labels, share)


def predictions(
    net: torch.nn.Module, test: data.Test, device: torch.device, bayes: JointBayes | None = None
) -> dict[str, np.ndarray]:
    """Arrays of a data.Test for the record: computed numbers, neither images nor names.

    `bayes`: a JointBayes, whose distances are added as `distance_bayes`.
    """
    used = np.unique(test.pairs[:, :2]) if test.identity is None else np.arange(len(test.images))
    place = np.zeros(len(test.images), int)
    place[used] = np.arange(len(used))
    plain = embed(net, test.images[torch.from_numpy(used)], device, flip=not test.characters, unit=False)
    vectors = verification.unit_rows(plain)
    first, second = (place[test.pairs[:, k]] for k in (0, 1))
    left, right = vectors[first], vectors[second]
    arrays: dict[str, np.ndarray] = dict(zip(pair_keys(test.name), (
        verification.squared_distances(left, right).astype(np.float32),
        test.pairs[:, 2].astype(bool), test.pairs[:, 3].astype(np.uint8),
    ), strict=True))  # fmt: skip
    if bayes:
        arrays["distance_bayes"] = bayes.distance(plain[first], plain[second]).astype(np.float32)
    if test.identity is not None:
        arrays |= person_angles(vectors, test.identity)
        if test.characters:
            arrays |= searched(vectors, test.identity)
    return arrays


def searched(vectors: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """`first_hit` and `r_precision` of each of N unit embeddings (N, d) as a query against all others."""
    places, classes = torch.from_numpy(vectors).float(), torch.from_numpy(labels)
    return {
        "first_hit": retrieval.first_hit(places, places, classes),
        "r_precision": retrieval.r_precision(places, places, classes),
    }


def person_angles(
    vectors: np.ndarray, labels: np.ndarray, prefix: str = "", weight: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """`intra_deg` per face and `inter_deg` per person with two or more faces; with W also `w_ec_deg`, `w_inter_deg`.

    As verification.angle_statistics, one value per face, person or row, so that intervals can be computed.
    """
    people, place, count = np.unique(labels, return_inverse=True, return_counts=True)
    centre = np.zeros((len(people), vectors.shape[1]))
    np.add.at(centre, place, vectors)
    centre = verification.unit_rows(centre)
    several = count >= 2
    arrays = {}
    if several.sum() >= 2:
        own = (vectors * centre[place]).sum(1)[several[place]]
        nearest = angles.nearest_cosine(centre[several])
        arrays = {f"{prefix}intra_deg": degrees(own), f"{prefix}inter_deg": degrees(nearest)}
    if weight is not None:
        rows = verification.unit_rows(weight)
        arrays["w_ec_deg"] = degrees((rows[people] * centre).sum(1))
        arrays["w_inter_deg"] = degrees(angles.nearest_cosine(rows))
    return arrays


def degrees(cosine: np.ndarray) -> np.ndarray:
    """Angles, float32, of cosines that rounding may have taken beyond 1."""
    return np.degrees(np.arccos(np.clip(cosine, -1, 1))).astype(np.float32)


def embed_training(
    net: torch.nn.Module, training: data.Training, device: torch.device, workers: int = 0
) -> torch.Tensor:
    """Unit embeddings (N, d) float32 tensor of the training faces, without mirror images; `workers` read a dataset."""
    if training.images is not None:
        return torch.from_numpy(embed(net, training.images, device, flip=False)).float()
    assert training.dataset is not None  # one of the two is there
    parts = torch.utils.data.DataLoader(training.dataset, 1024, num_workers=workers)
    return torch.cat([torch.from_numpy(embed(net, pictures, device, flip=False)).float() for pictures, _ in parts])


def angles_of_training(
    net: torch.nn.Module, head: torch.nn.Module, training: data.Training, device: torch.device
) -> dict[str, np.ndarray]:
    """Table 3's angles on the training faces; nothing for sets that do not fit memory."""
    if training.images is None:
        return {}
    weight = getattr(head, "weight", None)
    if weight is not None and (len(weight) != training.classes):
        weight = None  # several centres per person, or only this process's share
    rows = None if weight is None else weight.detach().cpu().numpy()
    return person_angles(embed_training(net, training, device).double().numpy(), training.labels, "train_", rows)


# ---- The command


@dataclass(frozen=True)
class Command:
    """Test a weights file."""

    weights: Path | None = None  # weights file; without it the newest that was trained on this machine
    data: str = "lfw"  # lfw, omniglot, embedded, a .bin of insightface, or with --pairs a folder <identity>/<image>
    protocol: str | None = None  # of lfw: pairs (6,000 in ten folds; the default) or view1 (its 1,000 pairsDevTest)
    pairs: Path | None = None  # list of a folder's pairs, in LFW's format
    pixels: Literal["arcface", "mxnet", "imagenet"] | None = None  # scaling, where not the architecture's usual one
    channels: Literal["rgb", "bgr"] = "rgb"  # order of colours that the weights expect
    picture: Path | None = None  # file (.png) for the ROC curve and the angles
    out: Path | None = None  # folder of records: test the given MobileFaceNet on lfw's pairs and record it
    device: str = "auto"  # auto (a GPU where there is one), cpu or cuda


def main(argv: Sequence[str]) -> None:
    """Print every metric of a weights file on a set's pairs."""
    options = cli.command(Command, argv, "python -m facepapers.papers.arcface.evaluate", __doc__)
    device = parallel.start(options.device)
    if options.out is not None:
        record = record_given(preset("pairs", "given"), options.weights, device, options.out)
        print(f"{options.weights or GIVEN_FILE} on lfw, pairs")
        show(METRICS, record["metrics"])
        return
    path = options.weights or runs.newest_weights(PAPER)
    net = load_net(path).to(device)
    net.pixels = options.pixels or net.pixels
    protocol = options.protocol or ("pairs" if options.data == "lfw" and not options.pairs else None)
    test, described = test_set(options.data, protocol, path, options.pairs)
    if options.channels == "bgr":
        test = dataclasses.replace(test, images=test.images.flip(1))
    found = predictions(net, test, device)
    result = verification.verify(found["distance"], found["same"], found["fold"])  # refuses folds before a number shows
    print(f"{path} on {described}: {len(test.pairs)} pairs")
    show(METRICS, measure(found))
    print(f"  folds {' '.join(f'{v:.2f}' for v in result.fold_accuracy_pct)}, standard deviation {result.std_pct:.2f}")
    if options.picture:
        figures.verification_picture(found, options.picture, f"{Path(path).name} on {described}")
        print(f"  {options.picture}: ROC curve and angles")


def test_set(name: str, protocol: str | None, weights: Path | str, listed: Path | None = None) -> tuple[data.Test, str]:
    """(data.Test, description) of a set's name, a .bin file, or a folder with its list of pairs `listed`."""
    if protocol and (listed or name.endswith(".bin")):
        raise UserError(f"--protocol {protocol}: this set has one list of pairs; leave --protocol out")
    if listed:
        return data.folder_test(Path(name), listed), f"{name}, {Path(listed).name}"
    if name.endswith(".bin"):
        return data.bin_test(Path(name)), name
    faces = data.load(name)
    key = {"pairs": "pairs", "view1": "pairs_devtest", None: "pairs_devtest"}.get(protocol)
    if key not in faces.pairs:
        raise UserError(f"--protocol {protocol}: {name} has {', '.join(faces.pairs)}; known are pairs, view1")
    if key == "pairs":
        refuse_leak(weights)
        chosen = np.zeros(len(faces.identity), bool)
        chosen[faces.pairs[key][:, :2]] = True
    else:
        chosen = faces.split == 1
    return data.test_of(faces, faces.pairs[key], chosen), f"{name}, {protocol or 'its pairs'}"


def refuse_leak(path: Path | str) -> None:
    """UserError when a weights file says that it was trained on LFW."""
    metadata = checkpoint.read_metadata(path) if str(path).endswith(".safetensors") else {}
    if metadata.get("trained_on") == "lfw":
        raise UserError(f"{path}: was trained on LFW's people, so the 6,000 pairs are no test; use --protocol view1")


def record_given(cfg: Config, path: Path | None, device: torch.device, out: Path) -> dict:
    """Test the given weights on LFW's 6,000 pairs and write the record; returns it."""
    run = runs.Run(PAPER, cfg.run_name, cfg, preset(cfg.preset, cfg.row, cfg.data), out)
    if finished := run.finished_record():
        return finished
    path = networks.given_weights(path, GIVEN_SHA256, "--source")
    net = load_net(path).to(device)
    test, _ = test_set(cfg.data, cfg.protocol, path)
    found = predictions(net, test, device)
    fingerprint = data.load(cfg.data).fingerprint
    return run.finish(
        metrics=measure(found),
        predictions=found,
        history=[{"step": 0}],
        data={"name": cfg.data, "protocol": cfg.protocol, "fingerprint": fingerprint, "test_pairs": len(test.pairs)},
        selection="given",
        device=device,
        seconds=0.0,
        samples=0,
        weights={"file": GIVEN_FILE, "sha256": GIVEN_SHA256},
    )


# ---- Networks of several seeds as one


def record_together(cfg: Config, device: torch.device, out: Path) -> dict:
    """Test the finished runs of seeds cfg.seed, cfg.seed + 1, ... as one verifier and write the record; returns it.

    Its distance of a pair is the mean of theirs. MissingData naming the first run that is not finished.
    """
    run = runs.Run(PAPER, cfg.run_name, cfg, preset(cfg.preset, cfg.row, cfg.data), out)
    if finished := run.finished_record():
        return finished
    alone = dataclasses.replace(cfg, row="arcface", members=1)
    seeds = range(cfg.seed, cfg.seed + cfg.members)
    folders = [Path(out) / PAPER / dataclasses.replace(alone, seed=seed).run_name for seed in seeds]
    for seed, folder in zip(seeds, folders, strict=True):
        if not (folder / "run.json").exists():
            raise MissingData(f"{folder}: not run yet; first run --row arcface --seed {seed} with these settings")
    records = [storage.read_json(folder / "run.json") for folder in folders]
    run.precision = runs.precision_of(*records)
    found = mean_distances([runs.read_predictions(folder / "predictions.npz") for folder in folders])
    return run.finish(
        metrics=measure(found),
        predictions=found,
        history=[{"step": 0}],
        data=records[0]["data"] | {"networks": sum(r["data"]["networks"] for r in records)},
        selection=records[0]["selection"],
        device=device,
        seconds=sum(r["seconds"] for r in records),
        samples=sum(r["samples_per_s"] * r["seconds"] for r in records),
        sources={r["run"]: r["predictions_sha256"] for r in records},
    )


def mean_distances(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Predictions whose distances are the mean of several runs' on the same pairs; the runs' angles are left out."""
    same = [key for key in parts[0] if key.startswith(("same", "fold"))]  # of each test set of the runs
    if not all(np.array_equal(part[key], parts[0][key]) for part in parts for key in same):
        raise UserError("--row together: these runs were tested on different pairs")
    means = {
        key: np.array([part[key] for part in parts]).mean(0, np.float64).astype(np.float32)
        for key in parts[0]
        if key.startswith("distance")
    }
    return {key: parts[0][key] for key in same} | means


if __name__ == "__main__":
    cli.entry(main)
