"""Archives as folders: a Place answers like the Path of the extracted archive; pictures stay where they are."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_arcface_readers import lfw_tree
from test_data import REPOSITORY, noise, tar_of
from test_hybrid_train import bird_tree, car_tree, omniglot_tree
from test_readers import write_crops, write_pts_folder
from test_readers_attributes import write_celeba, write_fairface
from test_readers_expression import write_affectnet, write_folders, write_rafdb

from facepapers.common.cli import UserError
from facepapers.common.data import archive, obtain, pack
from facepapers.common.data.readers import alignment, attributes, classes, expression, recognition


def write_tree(folder):
    """Tables and pictures, some side by side, some deep."""
    for name in ("table.csv", "a b/1.png", "a/10.jpg", "a/2.PNG", "a/notes.txt", "a/deep/er/x[1].webp", "zoo/y.bmp"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def zip_of(folder, path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for child in sorted(folder.rglob("*")):
            file.write(child, child.relative_to(folder))
    return path


def tar_gz_of(folder, path):
    return Path(shutil.make_archive(path.with_name(path.name.split(".")[0]), "gztar", folder))


KINDS = {"x.tar": tar_of, "x.zip": zip_of, "x.tar.gz": tar_gz_of}


def opened(path, work, pictures):
    """The folder that a reader gets of one archive."""
    work.mkdir()
    obtain.unpack(path, work, pictures)
    return pictures.folder(work)


def pictures_on_disk(folder):
    return [path.name for path in Path(folder).rglob("*") if path.suffix.lower() in archive.SUFFIXES]


@pytest.mark.parametrize("kind", KINDS)
def test_a_place_answers_like_a_path(tmp_path, kind):
    plain = write_tree(tmp_path / "plain")
    names = lambda paths, root: sorted(str(path)[len(str(root)) :] for path in paths)
    with archive.Pictures() as pictures:
        place = opened(KINDS[kind](plain, tmp_path / kind), tmp_path / "work", pictures)
        left = pictures_on_disk(tmp_path / "work")
        assert isinstance(place, Path) and left if kind == "x.tar.gz" else isinstance(place, archive.Place) and not left
        for pattern in ("*", "*.csv", "*/*", "a/*.jpg", "a/10.jpg", "*/*/*/*.webp", "*/none", "[az]*", "*/*.png"):
            assert names(place.glob(pattern), place) == names(plain.glob(pattern), plain), pattern
        for pattern in ("*.webp", "*", "er/*"):
            assert names(place.rglob(pattern), place) == names(plain.rglob(pattern), plain), pattern
        assert names((place / "a").iterdir(), place) == names((plain / "a").iterdir(), plain)
        order = lambda root: [path.name for path in sorted([*root.glob("a*/*"), *root.glob("a*")])]
        assert order(place) == order(plain)
        for name in ("a", "a/10.jpg", "a/notes.txt", "a/none.jpg", "a/deep/er", "zoo"):
            for ask in ("is_dir", "is_file", "exists"):
                assert getattr(place / name, ask)() == getattr(plain / name, ask)(), (name, ask)
        one = place / "a" / "10.jpg"
        assert (one.name, one.stem, one.suffix) == ("10.jpg", "10", ".jpg") and one.parent == place / "a"
        assert one.read_bytes() == b"a/10.jpg" and one.with_suffix(".txt") == place / "a/10.txt"
        assert {one: 1}[place / "a/10.jpg"] == 1 and str(one) == f"{tmp_path}/work/a/10.jpg"
        assert (place / "table.csv").read_text() == Path(place / "table.csv").read_text() == "table.csv"
        assert kind == "x.tar.gz" or not pictures_on_disk(tmp_path / "work")  # all of that touched none


@pytest.mark.parametrize("kind", ["x.tar", "x.zip"])
def test_what_insists_on_files_gets_them(tmp_path, kind):
    with archive.Pictures() as pictures:
        place = opened(KINDS[kind](write_tree(tmp_path / "plain"), tmp_path / kind), tmp_path / "work", pictures)
        with open(place / "a" / "10.jpg", "rb") as file:
            assert file.read() == b"a/10.jpg"
        assert pictures_on_disk(tmp_path / "work") == ["10.jpg"]
        assert sorted(os.listdir(place / "a")) == ["10.jpg", "2.PNG", "deep", "notes.txt"]
        assert (Path(place) / "zoo" / "y.bmp").read_bytes() == b"zoo/y.bmp"
        assert len(pictures_on_disk(tmp_path / "work")) == 5
    with pytest.raises(ValueError):
        (place / "a" / "10.jpg").read_bytes()  # the archive is closed


def utkface_tree(folder):
    folder.mkdir()
    for i, name in enumerate(("20_0_1_2017.jpg", "3_1_0_2018.jpg")):
        Image.fromarray(noise(1, seed=i)[0]).save(folder / name)
    return folder


def made(folder, write):
    folder.mkdir()
    write(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "reader, write",
    [
        (alignment.lfpw, lambda folder: made(folder, write_crops)),
        (alignment.afw, lambda folder: write_pts_folder(folder, 2)),
        (attributes.utkface, utkface_tree),
        (expression.ferplus, lambda folder: made(folder, write_folders)),
        (expression.ferplus, lambda folder: made(folder, lambda at: write_folders(at, end=".webp"))),
        (expression.rafdb, lambda folder: made(folder, write_rafdb)),
        (expression.affectnet, lambda folder: made(folder, write_affectnet)),
        (attributes.fairface, lambda folder: made(folder, write_fairface)),
        (attributes.celeba, lambda folder: made(folder, write_celeba)),
        (recognition.lfw, lambda folder: made(folder, lfw_tree)),
        (classes.cub200, lambda folder: made(folder, bird_tree)),
        (classes.cars196, lambda folder: made(folder, car_tree)),
        (classes.omniglot, lambda folder: made(folder, omniglot_tree)),
    ],
    ids=[
        "lfpw",
        "afw",
        "utkface",
        "ferplus",
        "ferplus-webp",
        "rafdb",
        "affectnet",
        "fairface",
        "celeba",
        "lfw",
        "cub200",
        "cars196",
        "omniglot",
    ],
)
def test_readers_give_the_same_from_folder_and_archive(tmp_path, reader, write, kind):
    plain = write(tmp_path / "plain")
    encoded, arrays = pack.gather(reader(plain))
    with archive.Pictures() as pictures:
        place = opened(KINDS[kind](plain, tmp_path / kind), tmp_path / "work", pictures)
        found, rows = pack.gather(reader(place))
        assert kind == "x.tar.gz" or not pictures_on_disk(tmp_path / "work")
    assert found == encoded and rows.keys() == arrays.keys()
    assert all(np.array_equal(rows[key], arrays[key]) for key in arrays if key != "box")


@pytest.mark.parametrize("kind", ["x.tar", "x.zip"])
def test_a_damaged_picture_in_an_archive(tmp_path, kind):
    path = KINDS[kind](write_tree(tmp_path / "plain"), tmp_path / kind)
    if kind == "x.zip":
        info, whole = zipfile.ZipFile(path).getinfo("zoo/y.bmp"), bytearray(path.read_bytes())
        whole[info.header_offset + 30 + len(info.filename)] ^= 255  # its first byte of data
        path.write_bytes(whole)
    with archive.Pictures() as pictures:
        place = opened(path, tmp_path / "work", pictures)
        assert (place / "a" / "10.jpg").read_bytes() == b"a/10.jpg"
        if kind == "x.tar":
            os.truncate(path, 600)  # meanwhile
        with pytest.raises(UserError) as error:
            (place / "zoo" / "y.bmp").read_bytes()
    assert str(error.value).startswith(f"{path}: damaged archive (") and "\n" not in str(error.value)


def test_an_archive_that_writes_through_a_link_is_stopped(tmp_path):
    """A file that is no archive is linked into the folder; a tar must not write into what it links to."""
    table, work = tmp_path / "labels.csv", tmp_path / "work"
    table.write_text("official")
    other = tmp_path / "other"
    other.mkdir()
    (other / "labels.csv").write_text("overwritten")
    work.mkdir()
    obtain.unpack(table, work)
    with pytest.raises((OSError, UserError)):
        obtain.unpack(tar_of(other, tmp_path / "x.tar"), work)
    assert table.read_text() == "official"


def test_a_look_at_the_sets_does_not_import_torch():
    program = "import sys; from facepapers.common.data import __main__ as data; data.main(['list']); "
    program += "sys.exit('torch' in sys.modules)"
    env = {key: value for key, value in os.environ.items() if key != "DATA_MIRROR"}
    subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, env=env, check=True, capture_output=True)


def test_a_picture_that_is_cut_off_is_not_handed_out(tmp_path):
    """A tar may end within a picture: no part of it is one."""
    path = tmp_path / "x.tar"
    path.write_bytes(b"0123456789")
    with open(path, "rb") as handle:
        assert obtain._read_tarred(path, handle, 2, 8) == b"23456789"
        for offset, size in ((2, 9), (10, 1)):
            with pytest.raises(UserError, match=r"x.tar: damaged archive"):
                obtain._read_tarred(path, handle, offset, size)


def test_a_later_picture_of_a_path_replaces_an_earlier_one(tmp_path):
    """As extraction does, where an archive holds a name twice."""
    with archive.Pictures() as pictures:
        pictures.add(tmp_path / "a" / "1.jpg", lambda: b"first")
        pictures.add(tmp_path / "a" / "1.jpg", lambda: b"second")
        folder = pictures.folder(tmp_path)
        assert (folder / "a" / "1.jpg").read_bytes() == b"second"
        assert [place.name for place in (folder / "a").iterdir()] == ["1.jpg"]


@pytest.mark.parametrize(("read", "tree"), [(classes.cub200, bird_tree), (classes.cars196, car_tree)])
def test_the_first_half_of_the_classes_trains(tmp_path, read, tree):
    """Labels count from 0; the other half is searched, as in metric learning."""
    tree(tmp_path, classes=6, images=4)
    rows = [row for _, row in read(tmp_path)]
    assert [row["label"] for row in rows] == [label for label in range(6) for _ in range(4)]
    assert [row["split"] for row in rows] == [0] * 12 + [1] * 12


def test_cifars_two_parts_are_read_each_once(tmp_path, monkeypatch):
    import torchvision.datasets

    class Made:
        def __init__(self, place, train, download):
            assert place == tmp_path and not download
            self.data, self.targets = [noise(1, seed=train)[0]] * (3 - train), [7 + train] * (3 - train)

    monkeypatch.setattr(torchvision.datasets, "CIFAR100", Made)
    (tmp_path / "cifar-100-python").mkdir()
    samples = list(classes.cifar100(tmp_path))
    wanted = [("train0", 0, 8), ("train1", 0, 8), ("test0", 1, 7), ("test1", 1, 7), ("test2", 1, 7)]
    assert [(row["name"], row["split"], row["label"]) for _, row in samples] == wanted
    assert (samples[0][0] == noise(1, seed=1)[0]).all() and (samples[-1][0] == noise(1, seed=0)[0]).all()
