"""Readers of UTKFace, FairFace and CelebA: small files in the official layouts, bad input, the real UTKFace."""

import tarfile

import numpy as np
import pytest
from test_data import MIRROR
from test_readers_expression import bad, jpeg, read, write_table

from facepapers.common.data.readers import attributes

# ----------------------------------------------------------------------------------------------------- UTKFace

MALFORMED = (  # the five of the official 23,707
    "24_0_1_20170116220224657 .jpg.chip.jpg",
    "39_1_20170116174525125.jpg.chip.jpg",
    "55_0_0_20170116232725357jpg.chip.jpg",
    "61_1_20170109142408075.jpg.chip.jpg",
    "61_1_20170109150557335.jpg.chip.jpg",
)


def test_utkface_names():
    for name, expected in {
        "100_1_2_20170105174847679.jpg.chip.jpg": (100, 1, 2),
        "1_0_4_20161219154612988.jpg.chip.jpg": (1, 0, 4),
        "14_0_0_2017011022340900.jpg.chip.jpg": (14, 0, 0),  # sixteen digits, in the official set
        "25_0_2_20170116174525125.jpg": (25, 0, 2),
        "0_0_0_1.jpg": (0, 0, 0),
        "116_1_3_1.jpg": (116, 1, 3),
        "117_1_3_1.jpg": None,  # no such age
        "999_1_3_1.jpg": None,
        "-1_1_3_1.jpg": None,
        "25_2_0_1.jpg": None,
        "25_0_5_1.jpg": None,
        "25_0_0_1.png": None,
        "25_0_0_1.jpg.bak": None,
        "x25_0_0_1.jpg": None,
        "25__0_1.jpg": None,
        **dict.fromkeys(MALFORMED),
    }.items():
        assert attributes.utkface_labels(name) == expected, name


def test_utkface_leaves_malformed_names_out_in_one_line(tmp_path, capsys):
    names = ["9_1_3_20170109150557336.jpg.chip.jpg", "35_0_1_20170109150557335.jpg.chip.jpg"]
    for i, name in enumerate([*names, *MALFORMED, "120_0_0_20170109150557335.jpg.chip.jpg"]):
        jpeg(tmp_path / "UTKFace" / name, (200, 200), i)
    encoded, arrays = read(attributes.utkface, tmp_path)
    assert arrays["name"].tolist() == names[::-1] and len(encoded) == 2
    assert [arrays[key].tolist() for key in ("age", "gender", "ethnicity")] == [[35, 9], [0, 1], [1, 3]]
    assert all(arrays[key].dtype == np.uint8 for key in ("age", "gender", "ethnicity"))
    assert encoded[0] == (tmp_path / "UTKFace" / names[1]).read_bytes()
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "UTKFace: 6 of 8 files left out" in said and "120_0_0" in said and ", ..." in said


def test_utkface_without_a_single_label(tmp_path):
    bad(tmp_path, "no [0-9]*_*_*.jpg", reader=attributes.utkface)
    jpeg(tmp_path / "61_1_20170109150557335.jpg")
    bad(tmp_path, "none of 1 files is named [age]_[gender]_[race]_[time].jpg", reader=attributes.utkface)


def test_real_utkface_names():
    """The names of all 23,707 files; a public count of 23,708 has at most four more in each class."""
    if not (MIRROR / "utkface-80.tar").is_file():
        pytest.skip("no utkface-80.tar in DATA_MIRROR or ../shared/mirror")
    with tarfile.open(MIRROR / "utkface-80.tar") as archive:
        names = [member.name.rpartition("/")[2] for member in archive if member.isfile()]
    found = {name: attributes.utkface_labels(name) for name in names}
    assert len(names) == len(found) == 23707 and {name for name in names if not found[name]} == set(MALFORMED)
    age, gender, ethnicity = np.array([labels for labels in found.values() if labels]).T
    assert len(age) == 23702 and (age.min(), age.max()) == (1, 116)
    assert np.bincount(gender).tolist() == [12388, 11314]
    assert np.bincount(ethnicity).tolist() == [10077, 4524, 3434, 3975, 1692]


# ---------------------------------------------------------------------------------------------------- FairFace

FAIRFACE_HEAD = ("file", "age", "gender", "race", "service_test")
FAIRFACE = {
    "train": [("train/1.jpg", "50-59", "Male", "East Asian", True), ("train/2.jpg", "0-2", "Female", "White", False)],
    "val": [("val/1.jpg", "more than 70", "Female", "Latino_Hispanic", False)],
}


def write_fairface(folder):
    for part, lines in FAIRFACE.items():
        write_table(folder / f"fairface_label_{part}.csv", FAIRFACE_HEAD, lines)
        for i, line in enumerate(lines):
            jpeg(folder / line[0], (224, 224), i)


def test_fairface(tmp_path):
    write_fairface(tmp_path)
    encoded, arrays = read(attributes.fairface, tmp_path)
    assert len(encoded) == 3 and arrays["name"].tolist() == ["train/1.jpg", "train/2.jpg", "val/1.jpg"]
    assert arrays["split"].tolist() == [0, 0, 1] and arrays["age"].tolist() == [6, 0, 8]
    assert arrays["gender"].tolist() == [0, 1, 1] and arrays["ethnicity"].tolist() == [3, 0, 2]


def test_fairface_that_is_damaged(tmp_path):
    fails = lambda *words: bad(tmp_path, *words, reader=attributes.fairface)
    write_fairface(tmp_path)
    good, table = FAIRFACE["train"], tmp_path / "fairface_label_train.csv"
    for column, value in (("age", "50"), ("gender", "male"), ("race", "Asian")):
        line = [value if name == column else old for name, old in zip(FAIRFACE_HEAD, good[1])]
        write_table(table, FAIRFACE_HEAD, [good[0], line])
        fails("fairface_label_train.csv: line 3", f"{column} '{value}'")
    write_table(table, FAIRFACE_HEAD[:3], [line[:3] for line in good])
    fails("no column race")
    write_table(table, FAIRFACE_HEAD, [*good, good[0]])
    fails("line 4 names train/1.jpg again")
    write_table(table, FAIRFACE_HEAD, [*good, ("train/3.jpg", *good[0][1:])])
    fails("1 rows without an image in fairface_label_train.csv, e.g. train/3.jpg")
    write_table(table, FAIRFACE_HEAD, good[:1])
    fails("1 images without a row in fairface_label_train.csv, e.g. train/2.jpg")
    table.unlink()
    fails("no fairface_label_train.csv and fairface_label_val.csv")


# ------------------------------------------------------------------------------------------------------ CelebA

FILES = ("000001.jpg", "000002.jpg", "000003.jpg")


def write_celeba(folder, identities=True):
    for i, name in enumerate(FILES):
        jpeg(folder / "img_align_celeba" / name, (178, 218), i)
    signs = np.where(np.arange(3 * 40).reshape(3, 40) % 7 == 0, 1, -1)
    lines = [f"{name} {' '.join(f'{v:2d}' for v in row)}" for name, row in zip(FILES, signs)]
    head = " ".join(f"Attribute_{i}" for i in range(40)) + " "
    (folder / "list_attr_celeba.txt").write_text("\n".join(["3", head, *lines, ""]))
    (folder / "list_eval_partition.txt").write_text("".join(f"{n} {i}\n" for i, n in enumerate(FILES)))
    if identities:
        (folder / "identity_CelebA.txt").write_text("".join(f"{n} {2880 - i}\n" for i, n in enumerate(FILES)))
    return signs


def test_celeba_with_and_without_identities(tmp_path):
    for known in (True, False):
        folder = tmp_path / str(known)
        signs = write_celeba(folder, known)
        encoded, arrays = read(attributes.celeba, folder)
        assert len(encoded) == 3 and arrays["name"].tolist() == list(FILES) and arrays["split"].tolist() == [0, 1, 2]
        assert arrays["attributes"].dtype == np.int8 and np.array_equal(arrays["attributes"], signs == 1)
        assert arrays["attribute_names"].tolist() == [f"Attribute_{i}" for i in range(40)]
        assert arrays["identity"].tolist() == [2880, 2879, 2878] if known else "identity" not in arrays


def test_celeba_that_is_damaged(tmp_path):
    fails = lambda *words: bad(tmp_path, *words, reader=attributes.celeba)
    write_celeba(tmp_path)
    for file, old, new, words in (
        ("list_attr_celeba.txt", "3\n", "4\n", ("'4' files and 40 attributes announced, 3 lines found",)),
        ("list_attr_celeba.txt", "Attribute_0 ", "", ("39 attributes announced",)),
        ("list_attr_celeba.txt", "000002.jpg -1", "000002.jpg  0", ("line 4 (000002.jpg)", "40 values of -1 or 1")),
        ("list_attr_celeba.txt", "000002.jpg -1", "000002.jpg", ("line 4 (000002.jpg)",)),
        ("list_eval_partition.txt", "jpg 1", "jpg 3", ("line 2", "a number below 3")),
        ("list_eval_partition.txt", "jpg 1", "jpg x", ("line 2",)),
        ("list_eval_partition.txt", "000002", "000001", ("line 2", "not a new file")),
        ("list_eval_partition.txt", "000002.jpg 1\n", "", ("images without a row", "split", "000002.jpg")),
        ("identity_CelebA.txt", "000002.jpg", "000009.jpg", ("rows without an image", "identity", "000009.jpg")),
    ):
        text = (tmp_path / file).read_text()
        assert old in text
        (tmp_path / file).write_text(text.replace(old, new, 1))
        fails(*words)
        (tmp_path / file).write_text(text)
    (tmp_path / "img_align_celeba" / "000002.jpg").unlink()
    fails("1 rows without an image in list_attr_celeba.txt, e.g. 000002.jpg")
    (tmp_path / "list_eval_partition.txt").unlink()
    fails("no list_eval_partition.txt")


def test_age_groups_are_in_the_order_of_their_years():
    """`age` of a pack is a place in this list, and papers compute with it."""
    years = [int(name.replace("more than", "").split("-")[0]) for name in attributes.FAIRFACE_AGE]
    assert years == [0, 3, 10, 20, 30, 40, 50, 60, 70]
