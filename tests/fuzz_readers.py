"""Every reader of files in the repository, with a small valid file of the kind it reads: see fuzz.py."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import shutil
import tarfile
import tomllib
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from PIL import Image

from facepapers.common import storage
from facepapers.common.data import archive, obtain, pack, registry
from facepapers.common.data.readers import alignment, attributes, classes, expression, recognition
from facepapers.common.evidence import claims, page, runs, schema, tables
from facepapers.common.protocols import pair_lists
from facepapers.common.tools import notebooks, report
from facepapers.common.training import checkpoint, loop
from facepapers.common.vision import mtcnn, networks
from facepapers.papers.arcface import readers as face_files
from facepapers.papers.face_attributes import data as attribute_splits
from facepapers.papers.face_attributes import source as activations
from facepapers.papers.hybrid_order_distillation import data as views
from tests import test_align, test_arcface_readers, test_hybrid_train, test_readers, test_verification
from tests import test_readers_attributes as attribute_files
from tests import test_readers_expression as expression_files
from tests.conftest import REPOSITORY
from tests.fuzz import Reader

# What a message may tell the user to do, by what the file is.
AGAIN = r"again|restore|official|obtain"  # of data sets: the owner's file is the remedy
ALIGN = r"make it again|align|fetch the archive again|make that file"
GIT = r"restore (it|them) from git|delete"
RUN_AGAIN = r"delete (it|that file|that folder|the folder)|train it again"


def whole(reader):
    """A function folder -> fingerprint of all that a data set's reader gives, the pictures decoded."""
    return lambda folder: pack.fingerprint(*pack.gather(reader(folder)), threads=1)


def data_set(name, reader, write, file, **more):
    """A Reader of a set whose tree `write(folder)` makes; `file` is the one that is damaged."""

    def tree(folder):
        write(folder)
        return next(folder.rglob(file))

    return Reader(name, tree, whole(reader), **{"remedies": AGAIN, **more})


def pts(folder):
    test_readers.write_pts_folder(folder / "afw", 1)


def cofw(folder):
    faces = [(image[:60, :50], points * 0.2, *rest, (8, 8, 30, 30)) for image, points, *rest, _ in
             test_readers.cofw_faces(2)]  # fmt: skip
    test_readers.write_cofw(folder / "COFW_train_color.mat", "train", faces)
    test_readers.write_cofw(folder / "COFW_test_color.mat", "test", faces[:1])


def aligned_photos(folder):
    test_arcface_readers.tree(folder, {"A": 1}, 120)
    test_arcface_readers.points_file(folder / "landmarks.csv", folder, np.full((5, 2), 40.0) + np.eye(5, 2) * 30)


def picture(folder, name, mode="RGB", **options):
    """A picture of soft noise, which no encoder can leave out."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    path = folder / name
    Image.fromarray(pixels).resize((24, 24)).convert(mode).save(path, **options)
    return path


def decoded(name):
    return lambda folder: np.asarray(pack.open_image(folder / name))


def image(kind, name, checksum=False, **options):
    return Reader(
        f"picture {kind}", lambda folder: picture(folder, name, **options), decoded(name), AGAIN, checksum=checksum
    )


def packed(folder):
    """Archives hold two pictures and a table."""
    tree = folder / "tree"
    (tree / "a").mkdir(parents=True)
    for i in range(2):
        picture(tree / "a", f"{i}.png")
    (tree / "a" / "table.txt").write_text("some words\n" * 20)
    return tree


def archived(end, checksum, write):
    def make(folder):
        made = Path(write(packed(folder), folder))
        shutil.rmtree(folder / "tree")
        return made.rename(folder / f"x{end}")

    def read(folder):
        work = folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        with archive.Pictures() as pictures:
            obtain.unpack(folder / f"x{end}", work, pictures)
            root = pictures.folder(work)
            files = sorted(path for path in root.rglob("*") if path.is_file())
            return {str(path)[len(str(work)) :]: path.read_bytes() for path in files}

    return Reader(f"archive {end}", make, read, AGAIN, checksum=checksum)


def tar_as(kind):
    def write(tree, folder):
        with tarfile.open(folder / "made", f"w:{kind}") as made:
            made.add(tree, "tree")
        return folder / "made"

    return write


def zipped(tree, folder):
    return shutil.make_archive(str(folder / "made"), "zip", tree)


def prepared(folder):
    samples = [(np.full((8, 8, 3), i, np.uint8), {"name": f"n{i}", "label": np.uint8(i)}) for i in range(2)]
    return pack.write(folder / "toy.npz", *pack.gather(samples), {"name": "toy"}, threads=1).path


def read_pack(folder):
    found = pack.Pack.read(folder / "toy.npz")
    found.verify(threads=1)
    return found.meta["fingerprint"]


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))


def weights(folder, path="w.safetensors"):
    checkpoint.save_weights(folder / path, model(), row="cft")
    return folder / path


def recorded_weights(folder):
    path = weights(folder, "model.safetensors")
    record = {"weights": {"file": path.name, "sha256": storage.sha256(path)}}
    storage.write_json(folder / "run.json", record)
    return path


def torch_file(folder, wrap=lambda state: state, **options):
    torch.save(wrap(model().state_dict()), folder / "w.pt", **options)
    return folder / "w.pt"


def saved_state(folder):
    checkpoint.save_state(folder / "checkpoint.pt", parts(), step=3, history=[{"step": 3, "loss": 0.5}], seconds=1.0)
    return folder / "checkpoint.pt"


def parts():
    net = model()
    return {"model": net, "optimizer": torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)}


def resumed(folder):
    mine = parts()
    steps = loop.Steps(folder, mine, total=5, batch=1)
    return mine["model"].state_dict(), steps.first, steps.history, checkpoint.rng_state()


RECORD = REPOSITORY / "results" / "coarse_to_fine" / "embedded-demo-cft-s0"


def run_folder(folder, name="run.json"):
    """A record of the newest kind, small: what `Run.finish` writes of it."""
    place = folder / "coarse_to_fine" / RECORD.name
    shutil.copytree(RECORD, place)
    record = storage.read_json(place / "run.json")
    for left in ("seal_sha256", "history_sha256"):
        record.pop(left, None)
    record |= {"schema": schema.SEALED, "margins": {}, "history_sha256": storage.sha256(place / "history.csv")}
    storage.write_json(place / "run.json", schema.sealed(record))
    return place / name


def records(folder):
    found = runs.recorded("coarse_to_fine", folder)
    evidence = claims.Evidence()
    return [{k: v for k, v in one.items() if k != "folder"} for one in found], [
        report.check_record("coarse_to_fine", one, evidence) for one in found
    ]


def claims_file(folder):
    place = folder / "papers" / "coarse_to_fine"
    place.mkdir(parents=True)
    text = (REPOSITORY / "papers" / "coarse_to_fine" / "claims.toml").read_text().split("[[level]]")
    (place / "claims.toml").write_text("[[level]]".join(text[:2]))
    for name in ("config.py", "metrics.py"):
        shutil.copy(REPOSITORY / "papers" / "coarse_to_fine" / name, place)
    return place / "claims.toml"


def registry_file(folder):
    text = (REPOSITORY / "data" / "registry.toml").read_text()
    head = next(iter(tomllib.loads(text)))
    (folder / "registry.toml").write_text(text[: text.index("\n[", text.index(f"[{head}]"))])
    return folder / "registry.toml"


def read_registry(folder):
    with mock.patch.object(registry, "REGISTRY", folder / "registry.toml"):
        return [dataclasses.astuple(entry) for entry in registry.registry().values()]


def arrays_file(folder, name="predictions.npz"):
    runs.write_predictions(folder / name, {"error_px": np.random.default_rng(0).random((6, 5)), "same": np.eye(2) > 0})
    return folder / name


def split_file(folder):
    np.savez(folder / "utkface.npz", val=np.arange(9, dtype=np.uint64), test=np.arange(9, 20, dtype=np.uint64))
    return folder / "utkface.npz"


def read_split(folder):
    with mock.patch.object(attribute_splits, "SPLITS", folder):
        return attribute_splits._stored("utkface")


def one_array(name, shape, kind=np.float16):
    def write(folder):
        np.save(folder / name, np.random.default_rng(0).random(shape).astype(kind))
        return folder / name

    return write


def history_file(folder):
    runs.write_history(folder / "history.csv", [{"step": s, "loss": 1 / s} for s in range(1, 20)])
    return folder / "history.csv"


def table_file(name, read):
    """A table beside the records of a paper."""

    def write(folder):
        lines = (REPOSITORY / "results" / name).read_text().splitlines()[:4]
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("\n".join(lines) + "\n")
        return folder / name

    def found(folder):
        with mock.patch("facepapers.common.paths.RECORDED", folder):
            return read()

    return Reader(f"table {Path(name).name}", write, found, GIT, text=True)


def notebook(folder):
    text = (REPOSITORY / "papers" / "resup" / "explain.ipynb").read_text()
    short = json.loads(text)
    short["cells"] = [{k: v for k, v in c.items() if k != "outputs"} for c in short["cells"][:2]]
    for one in short["cells"]:
        one |= {"outputs": [], "execution_count": None} if one["cell_type"] == "code" else {}
    (folder / "explain.ipynb").write_text(json.dumps(short, indent=1))
    return folder / "explain.ipynb"


def card(folder):
    text = "# A card\n\nSome words.\n\n<!-- generated: results -->\n|a|b|\n<!-- end of results -->\n\nThe end.\n"
    (folder / "README.md").write_text(text)
    return folder / "README.md"


def figure(folder):
    return picture(folder, "demo.png")


CHECKSUMS = []  # (owner, name, value): what a small CIFAR-100 puts in the place of torchvision's


def cifar(folder):
    CHECKSUMS.clear()
    patch = SimpleNamespace(setattr=lambda *words: CHECKSUMS.append(words))
    test_hybrid_train.cifar_files(folder / "cifar100", patch, 4, 2)


def read_cifar(folder):
    with contextlib.ExitStack() as stack:
        for words in CHECKSUMS:
            stack.enter_context(mock.patch.object(*words))
        yield from classes.cifar100(folder)


def record_set(name):
    def write(folder):
        test_arcface_readers.small_set(folder)
        return folder / name

    def read(folder):
        found = face_files.RecordIO(folder)
        return [found[i] for i in range(len(found))], found.labels()

    return Reader(f"RecordIO {name}", write, read, AGAIN + "|belong together|property", text=name != "train.rec")


def bin_file(folder):
    encoded = [test_arcface_readers.jpeg(v) for v in (10, 20)]
    return test_arcface_readers.write_bin(folder / "lfw.bin", encoded, [True])


def detector(name):
    def write(folder):
        test_align.made_up_weights(folder)
        return folder / name

    return Reader(f"detector {name}", write, detector_states, AGAIN, checksum=True)


def detector_states(folder):
    nets = mtcnn.Mtcnn(folder)
    return [net.state_dict() for net in (nets.pnet, nets.rnet, nets.onet)]


def people_file(folder):
    (folder / "people.txt").write_text("2\n2\nAnna\t3\nBert\t1\n1\nCarl\t2")
    return folder / "people.txt"


def json_file(folder):
    storage.write_json(folder / "teacher.json", {"seconds": 1.5, "sha256": "ab" * 32, "precision": "fp32"})
    return folder / "teacher.json"


def hash_file(folder):
    path = picture(folder, "archive.tar", format="PNG")
    (folder / "known").write_text(hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def identities(folder):
    test_arcface_readers.tree(folder, {"A": 1, "B": 1}, 16)


READERS = (
    # Data sets' tables
    data_set("points .pts", alignment.afw, pts, "*.pts", text=True),
    data_set("photo beside .pts", alignment.afw, pts, "*.png", checksum=True),
    data_set("COFW .mat (HDF5)", alignment.cofw, cofw, "COFW_train_color.mat"),
    data_set("landmarks68.csv", alignment.lfpw, lambda f: test_readers.write_crops(f, 1, 1), "*.csv", text=True),
    data_set("crop of LFPW", alignment.lfpw, lambda f: test_readers.write_crops(f, 1, 1), "image_0001.jpg",
             names="image_0001"),
    data_set("landmarks.csv", lambda f: [(face_files.FolderSet(f)[0][0].permute(1, 2, 0).numpy(), {})], aligned_photos,
             "landmarks.csv", remedies=ALIGN),
    data_set("FERPlus votes", expression.ferplus, expression_files.write_folders, "fer2013new.csv", text=True),
    data_set("FERPlus pixels", expression.ferplus,
             lambda f: expression_files.write_pixels(f, expression_files.ROWS), "fer2013.csv", text=True),
    data_set("FERPlus labels", expression.ferplus,
             lambda f: expression_files.write_labels(expression_files.write_folders(f)), "fer2013_labels.csv",
             text=True),
    data_set("FERPlus .webp", expression.ferplus,
             lambda f: expression_files.write_folders(f, end=".webp", lossless=True), "fer0000000.webp",
             names="fer0000000"),
    data_set("RAF-DB labels", expression.rafdb, expression_files.write_rafdb, "list_patition_label.txt", text=True),
    data_set("AffectNet .npy", expression.affectnet, expression_files.write_affectnet, "0_exp.npy"),
    data_set("FairFace table", attributes.fairface, attribute_files.write_fairface, "fairface_label_train.csv",
             text=True),
    data_set("CelebA attributes", attributes.celeba, attribute_files.write_celeba, "list_attr_celeba.txt", text=True),
    data_set("CelebA partition", attributes.celeba, attribute_files.write_celeba, "list_eval_partition.txt", text=True,
             names="list"),
    data_set("CelebA identities", attributes.celeba, attribute_files.write_celeba, "identity_CelebA.txt", text=True,
             names="identity"),
    data_set("UTKFace .jpg", attributes.utkface, lambda f: expression_files.jpeg(f / "20_0_1_2017.jpg"), "*.jpg"),
    data_set("CIFAR-100", read_cifar, cifar, "train", checksum=True, names="cifar100"),
    data_set("CUB images.txt", classes.cub200, lambda f: test_hybrid_train.bird_tree(f, 2, 1), "images.txt", text=True),
    data_set("CUB labels", classes.cub200, lambda f: test_hybrid_train.bird_tree(f, 2, 1), "image_class_labels.txt",
             text=True),
    data_set("Cars .mat (v5)", classes.cars196, lambda f: test_hybrid_train.car_tree(f, 2, 1), "cars_annos.mat"),
    data_set("LFW pairs", recognition.lfw, test_arcface_readers.lfw_tree, "pairs.txt", text=True),
    data_set("LFW people", recognition.lfw, test_arcface_readers.lfw_tree, "people.txt", text=True),
    data_set("LFW people of a view", recognition.lfw, test_arcface_readers.lfw_tree, "peopleDevTest.txt", text=True,
             names="Dev"),
    data_set("identity folders", recognition.identity_folder, identities, "A_0001.jpg", remedies=AGAIN + "|save it as"),
    # Protocols and lists by themselves
    Reader("pairs list", test_verification.view2, lambda f: pair_lists.read_pairs(f / "pairs.txt"), AGAIN, text=True),
    Reader("people list", people_file, lambda f: pair_lists.read_people(f / "people.txt"), AGAIN, text=True),
    # Pictures
    image("png", "x.png", checksum=True),
    image("png, palette", "x.png", checksum=True, mode="P"),
    image("jpeg", "x.jpg", quality=95),
    image("jpeg, progressive", "x.jpg", progressive=True),
    image("webp", "x.webp", lossless=True),
    image("bmp", "x.bmp"),
    # Archives and downloads
    archived(".tar", False, tar_as("")),
    archived(".tar.gz", True, tar_as("gz")),
    archived(".tar.xz", True, tar_as("xz")),
    archived(".tar.bz2", True, tar_as("bz2")),
    archived(".zip", True, zipped),
    Reader("archive of known hash", hash_file,
           lambda f: obtain.check_hash(f / "archive.tar", f"sha256:{(f / 'known').read_text()}"), AGAIN, checksum=True),
    Reader("prepared pack", prepared, read_pack, r"delete it and prepare", checksum=True),
    Reader("registry.toml", registry_file, read_registry, GIT, text=True),
    # Face recognition's files
    Reader("verification .bin", bin_file, lambda f: face_files.read_bin(f / "lfw.bin", 16, 1),
           r"trust|again|align|restore"),
    record_set("train.rec"),
    record_set("train.idx"),
    record_set("property"),
    # Weights and checkpoints
    Reader("weights .safetensors", weights, lambda f: checkpoint.read_weights(f / "w.safetensors"), r"again"),
    Reader("weights of a record", recorded_weights, lambda f: checkpoint.read_weights(f / "model.safetensors"),
           r"again", checksum=True),
    Reader("weights .pt", torch_file, lambda f: networks.read_state(f / "w.pt"), r"again|save", checksum=True),
    Reader("weights .pt, wrapped", lambda f: torch_file(f, lambda s: {"state_dict": s, "epoch": 3}),
           lambda f: networks.read_state(f / "w.pt"), r"again|save", checksum=True),
    Reader("weights .pt, old format", lambda f: torch_file(f, _use_new_zipfile_serialization=False),
           lambda f: networks.read_state(f / "w.pt"), r"again|save"),
    Reader("checkpoint", saved_state, resumed, RUN_AGAIN, checksum=True),
    Reader("checkpoint's scalars", saved_state, lambda f: checkpoint.read_scalars(f / "checkpoint.pt"), RUN_AGAIN,
           checksum=True),
    detector("pnet.pt"),
    detector("onet.pt"),
    # Records and reports
    Reader("run.json", run_folder, records, GIT, checksum=True, text=True),
    Reader("a record's predictions", functools.partial(run_folder, name="predictions.npz"), records, GIT,
           checksum=True),
    Reader("a record's history", functools.partial(run_folder, name="history.csv"), records, GIT, checksum=True),
    Reader("predictions.npz", arrays_file, lambda f: runs.read_predictions(f / "predictions.npz"), GIT, checksum=True),
    Reader("history.csv", history_file, lambda f: runs.read_history(f).to_dict(), GIT, text=True),
    Reader("claims.toml", claims_file, lambda f: claims.read("coarse_to_fine", f), GIT + "|must|correct it", text=True),
    Reader("teacher.json", json_file, lambda f: storage.read_json(f / "teacher.json"), GIT, text=True),
    Reader("committed split", split_file, read_split, GIT, checksum=True),
    Reader("stored activations", one_array("a.npy", (6, 5)), lambda f: activations.stored_array(f / "a.npy"),
           RUN_AGAIN),
    Reader("stored views", one_array("view0.npy", (6, 5), np.float32),
           lambda f: views.stored_view(f / "view0.npy"), RUN_AGAIN),
    table_file("arcface/bench.csv", lambda: tables.speed_block("arcface")),
    table_file("outside.csv", lambda: tables.outside_block("arcface")),
    Reader("notebook", notebook, lambda f: notebooks.read(f / "explain.ipynb"), GIT, text=True),
    Reader("card", card, lambda f: report.filled(f / "README.md", {"results": "x"}), GIT + "|restore them", text=True),
    Reader("figure's size", figure, lambda f: page.size(f / "demo.png"), GIT),
)  # fmt: skip
