"""Trees as people have them: copies that begin with a dot, odd names, mirrored twins; the table of five points."""

import os
import shutil
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from facepapers.common.cli import UserError
from facepapers.common.data import archive, obtain
from facepapers.common.data.readers import alignment as landmarks
from facepapers.common.data.readers import attributes, classes, expression, files, recognition
from facepapers.common.evidence import runs
from facepapers.common.tools import align
from facepapers.common.vision.alignment import TEMPLATE_112
from facepapers.papers.arcface import readers
from tests.conftest import REPOSITORY, one_line_error

NAMES = ["Jean Paul", 'O"Neil, Jr.', "Zoë", "李明", "a;b'c", "trailing\ttab"]
if sys.platform == "linux":  # where a name is any bytes
    NAMES.append(os.fsdecode(b"caf\xe9"))


def photo(path, value=200, size=250):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), (value, 10, 10)).save(path)
    return path


def litter(folder):
    """What macOS and notebooks leave in every folder: copies that are no pictures, and folders of old ones."""
    for inside in [folder, *(p for p in folder.rglob("*") if p.is_dir())]:
        names = [p.name for p in inside.iterdir() if p.is_file()]
        for name in names:
            (inside / f"._{name}").write_bytes(b"\x00\x05\x16\x07 no picture")
        hidden = inside / ".ipynb_checkpoints"
        hidden.mkdir()
        for name in names:
            (hidden / name).write_bytes(b"no picture")
        (inside / ".DS_Store").write_bytes(b"\x00")
    (folder / "__MACOSX").mkdir()
    for name in names:
        (folder / "__MACOSX" / name).write_bytes(b"no picture")
    return folder


# ---- Hidden names


def pts(path, shift=0.0):
    points = "\n".join(f"{100 + i + shift} {110 + 0.5 * i}" for i in range(68))
    path.write_text(f"version: 1\nn_points: 68\n{{\n{points}\n}}\n")


def pts_tree(folder):
    for i in range(2):
        photo(folder / "trainset" / f"{i}.png", 50 * i)
        photo(folder / "testset" / f"{i}.png", 50 * i)
        pts(folder / "trainset" / f"{i}.pts")
        pts(folder / "testset" / f"{i}.pts")


def utkface_tree(folder):
    for i in range(3):
        photo(folder / f"{20 + i}_0_1_2017.jpg", size=16)


def fairface_tree(folder):
    for part in ("train", "val"):
        photo(folder / part / "1.jpg", size=16)
        rows = f"file,age,gender,race\n{part}/1.jpg,20-29,Male,White\n"
        (folder / f"fairface_label_{part}.csv").write_text(rows, encoding="utf-8-sig")


def rafdb_tree(folder):
    for name in ("train_00001", "test_0001"):
        photo(folder / "aligned" / f"{name}_aligned.jpg", size=100)
    text = "train_00001.jpg 5\r\ntest_0001.jpg 1\r\n\r\n \r\n"
    (folder / "list_patition_label.txt").write_bytes(text.encode("utf-8-sig"))


def affectnet_tree(folder):
    for part in ("train_set", "val_set"):
        photo(folder / part / "images" / "0.jpg", size=16)
        (folder / part / "annotations").mkdir()
        np.save(folder / part / "annotations" / "0_exp.npy", np.array("3"))


def celeba_tree(folder):
    photo(folder / "img_align_celeba" / "000001.jpg", size=16)
    names, values = " ".join(f"A{i}" for i in range(40)), " ".join(["1", "-1"] * 20)
    text = f"1\r\n{names}\r\n000001.jpg {values}\r\n\r\n"
    (folder / "list_attr_celeba.txt").write_bytes(text.encode("utf-8-sig"))
    (folder / "list_eval_partition.txt").write_bytes("000001.jpg 0\r\n\r\n".encode("utf-8-sig"))


def cub_tree(folder):
    for i in (1, 2):
        photo(folder / "images" / f"{i}.jpg", size=16)
    (folder / "images.txt").write_bytes("1 1.jpg\r\n2 2.jpg\r\n\r\n".encode("utf-8-sig"))
    (folder / "image_class_labels.txt").write_bytes("1 1\r\n2 2\r\n\r\n".encode("utf-8-sig"))


def identity_tree(folder):
    for name in ("A", "B"):
        photo(folder / name / "1.jpg", size=112)


TREES = {
    "lfpw": (pts_tree, landmarks.lfpw),
    "utkface": (utkface_tree, attributes.utkface),
    "fairface": (fairface_tree, attributes.fairface),
    "rafdb": (rafdb_tree, expression.rafdb),
    "affectnet": (affectnet_tree, expression.affectnet),
    "celeba": (celeba_tree, attributes.celeba),
    "cub200": (cub_tree, classes.cub200),
    "identities": (identity_tree, recognition.identity_folder),
}


@pytest.mark.parametrize("name", TREES)
def test_names_that_begin_with_a_dot_are_skipped(name, tmp_path):
    """In each reader's tree; protocols have a byte order mark, CRLF and blank lines at the end."""
    build, reader = TREES[name]
    folder = tmp_path / ".hidden" / "set"  # a dot above the tree hides nothing
    folder.mkdir(parents=True)
    build(folder)
    plain = list(reader(folder))
    assert [row for image, row in plain if image is not None]
    again = list(reader(litter(folder)))
    assert [str(row) for _, row in again] == [str(row) for _, row in plain]
    assert all(np.array_equal(a, b) for (a, _), (b, _) in zip(again, plain, strict=True))


def packed(folder, kind):
    path = folder.parent / f"set.{kind}"
    members = sorted(p for p in folder.rglob("*") if p.is_file())
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as target:
            for member in members:
                target.write(member, member.relative_to(folder))
    else:
        with tarfile.open(path, "w") as target:
            for member in members:
                target.add(member, str(member.relative_to(folder)))
    return path


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_that_begin_with_a_dot_are_skipped_in_archives(kind, tmp_path):
    (tmp_path / "set").mkdir()
    utkface_tree(tmp_path / "set")
    wanted = [row["name"] for _, row in attributes.utkface(tmp_path / "set")]
    work = tmp_path / "work"
    work.mkdir()
    with archive.Pictures() as pictures:
        obtain.unpack(packed(litter(tmp_path / "set"), kind), work, pictures)
        folder = pictures.folder(work)
        assert [row["name"] for _, row in attributes.utkface(folder)] == wanted
        assert [entry.name for entry in archive.entries(folder, "*.jpg")] == wanted


def test_a_relative_folder_hides_nothing(tmp_path, monkeypatch):
    utkface_tree(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert len(archive.entries(archive.place("."), "*.jpg")) == 3
    assert files.find_folder(".", "[0-9]*.jpg") is not None


# ---- Mirrored twins


def test_a_mirrored_copy_of_300w_is_recognised_and_said(tmp_path, capsys):
    pts_tree(tmp_path)
    wanted = [row["name"] for _, row in landmarks.lfpw(tmp_path)]
    assert not capsys.readouterr().err
    for i in range(2):
        photo(tmp_path / "trainset" / f"{i}_mirror.png")
        pts(tmp_path / "trainset" / f"{i}_mirror.pts", 5)
    photo(tmp_path / "testset" / "alone_mirror.png")  # no twin: a face like any other
    pts(tmp_path / "testset" / "alone_mirror.pts")
    found = [row["name"] for _, row in landmarks.lfpw(tmp_path)]
    assert found == [*wanted, "lfpw/testset/alone_mirror"]
    one_line_error(capsys.readouterr().err, tmp_path / "trainset", "a mirrored copy; 2 twins named *_mirror.pts")


# ---- Five points


class Detector:
    """Finds a face, at the template's place, in every bright photo."""

    def __init__(self, folder):
        pass

    def detect(self, image):
        n = int(image.float().max() > 100)
        points = torch.tensor(TEMPLATE_112).float() + torch.tensor([60.0, 40.0])
        return torch.tensor([[60.0, 40, 170, 150]])[:n], torch.tensor([0.99])[:n], points[None][:n]


@pytest.fixture
def detector(monkeypatch):
    monkeypatch.setattr(align, "Mtcnn", Detector)


@pytest.mark.usefixtures("detector")
def test_odd_names_are_written_and_read_back_unharmed(tmp_path):
    for name in NAMES:
        photo(tmp_path / name / f"{name} 1.png")
    photo(tmp_path / NAMES[0] / '2, "b".png')
    litter(tmp_path)
    table = tmp_path / "landmarks.csv"
    align.main([str(tmp_path), "--mtcnn", "x", "--to", str(table)])
    found = readers.FolderSet(tmp_path)
    assert len(found) == len(NAMES) + 1 and sorted(found.points) == sorted(found.names)
    assert {name.split("/")[0] for name in found.names} == set(NAMES)
    face, _ = found[0]
    assert face.shape == (3, 112, 112) and face.float().mean((1, 2)).tolist() == [200, 10, 10]
    text = table.read_bytes()
    table.write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n") + b"\r\n\r\n")  # as a spreadsheet saves it
    again = readers.FolderSet(tmp_path)
    assert again.points.keys() == found.points.keys() and torch.equal(again[0][0], face)


@pytest.mark.usefixtures("detector")
def test_photos_without_a_face_are_named_and_left_out(tmp_path, capsys):
    photo(tmp_path / "A" / "1.png")
    photo(tmp_path / "A" / "2.png", 20)
    photo(tmp_path / "B" / "1.png")
    (tmp_path / "B" / "2.png").write_bytes(b"broken")
    words = [str(tmp_path), "--mtcnn", "x", "--to", str(tmp_path / "landmarks.csv")]
    align.main(words)
    said = capsys.readouterr()
    assert (
        "A/2.png: no face" in said.err and "B/2.png: not an image file" in said.err and "B/2.png: no face" in said.err
    )
    assert "4 photos; 2 without a face are left out" in said.out
    points = recognition.five_points(tmp_path, tmp_path)
    assert sorted(points) == ["A/1.png", "B/1.png"] and np.isfinite(points["A/1.png"]).all()
    with pytest.raises(UserError) as error:
        readers.FolderSet(tmp_path)[1]
    one_line_error(error, "landmarks.csv: has no line for ", "A/2.png (no face was found there?)")
    align.main([*words, "--fill"])
    assert "2 without a face got the median points" in capsys.readouterr().out
    points = recognition.five_points(tmp_path, tmp_path)
    assert np.array_equal(points["A/2.png"], points["A/1.png"]) and len(points) == 4


@pytest.mark.usefixtures("detector")
def test_no_face_in_any_photo_is_an_error_and_writes_no_table(tmp_path):
    photo(tmp_path / "A" / "1.png", 20)
    with pytest.raises(UserError) as error:
        align.main([str(tmp_path), "--mtcnn", "x", "--to", str(tmp_path / "landmarks.csv")])
    one_line_error(error, tmp_path, "no face was found in any of 1 photos", "no table")
    assert error.value.exit_code == 2 and not (tmp_path / "landmarks.csv").exists()


# ---- Records


def test_hidden_copies_of_records_are_no_runs(tmp_path):
    one = min((REPOSITORY / "results" / "resup").glob("*/run.json")).parent
    shutil.copytree(one, tmp_path / "resup" / one.name)
    for name in (".ipynb_checkpoints", "._one"):
        (tmp_path / "resup" / name).mkdir()
        (tmp_path / "resup" / name / "run.json").write_text("no record")
    assert [record["folder"].name for record in runs.recorded("resup", tmp_path)] == [one.name]
