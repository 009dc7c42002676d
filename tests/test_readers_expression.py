"""Readers of expression sets and the label rules: small files in the official layouts, bad input, the real table."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_data import MIRROR

from facepapers.common.cli import UserError
from facepapers.common.data import expressions, pack
from facepapers.common.data.expressions import VOTES, labels
from facepapers.common.data.obtain import open_tar
from facepapers.common.data.readers import expression
from tests.conftest import one_line_error

torch.set_num_threads(1)
PARTS = expression.FERPLUS_FOLDERS


# ------------------------------------------------------------------------------------------------- label rules


def row(**votes):
    return [votes.get(column, 0) for column in VOTES]


def test_majority_strikes_single_votes_and_wants_more_than_half():
    cases = [
        (row(happiness=6, sadness=4), 1),
        (row(happiness=5, sadness=5), -1),  # a half is not more than half
        (row(happiness=5, sadness=4, anger=1), 1),  # 5 of the 9 that are left
        (row(happiness=4, sadness=1, anger=1, fear=1, disgust=1, neutral=1, surprise=1), 1),  # 4 of 4
        (row(happiness=4, sadness=2, anger=2, fear=2), -1),
        (row(unknown=6, happiness=4), -1),
        (row(NF=10), -1),
        (row(**dict.fromkeys(VOTES, 1)), -1),  # nothing is left
        (row(contempt=10), 7),
    ]
    votes, expected = np.array([votes for votes, _ in cases], np.uint8), [label for _, label in cases]
    assert labels(votes).tolist() == expected and labels(votes).dtype == np.int64


@pytest.mark.parametrize(
    "rule, expected",
    {
        "majority": [-1, -1, -1, 1, -1, 0],
        "half": [1, -1, 3, 1, -1, 0],
        "plurality": [1, -1, 3, 1, -1, 0],
        "emotions_only": [1, 6, 3, 1, 6, 0],
        "unique": [-1, -1, 3, 1, -1, 0],
        "over_five": [-1, -1, -1, -1, -1, 0],
    }.items(),
)
def test_each_rule_on_the_same_faces(rule, expected):
    faces = [
        row(happiness=5, sadness=5),
        row(unknown=6, fear=4),
        row(sadness=5, anger=3, NF=2),
        row(happiness=5, surprise=4, fear=1),
        row(fear=4, unknown=4, NF=2)[:6] + [4, 0, 6, 0],
        row(neutral=10),
    ]
    assert labels(np.array(faces), rule).tolist() == expected


def test_label_rules_refuse_what_they_do_not_know():
    with pytest.raises(UserError) as error:
        labels(np.zeros((2, 10)), "mode")
    one_line_error(error, "'mode'", "majority, half, plurality")
    for votes in (np.zeros((2, 8)), np.zeros(10), np.full((1, 10), -1)):
        with pytest.raises(UserError, match=r"expected \(N, 10\) counts"):
            labels(votes)


def test_fer2013_codes_have_the_names_of_ferplus():
    codes = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
    assert tuple(expressions.EMOTIONS[i] for i in expressions.FER2013_TO_FERPLUS) == codes
    assert set(expressions.RAFDB) < set(expressions.AFFECTNET) == set(expressions.EMOTIONS)


# ----------------------------------------------------------------------------------------------------- FERPlus

ROWS = [  # usage, name, votes, FER2013's code
    ("Training", "fer0000000.png", row(anger=7, sadness=3), 0),
    ("Training", "fer0006953.png", row(neutral=9, sadness=1), 2),
    ("Training", "", row(NF=10), 4),
    ("Training", "fer0000003.png", row(fear=9), 3),  # nine votes, as one official row has
    ("PublicTest", "fer0028638.png", row(surprise=10), 5),
    ("PrivateTest", "fer0033120.png", row(neutral=5, unknown=3, anger=2), 6),
    ("Training", "fer0006953.png", row(neutral=9, sadness=1), 4),  # repeats another row's name
    ("PrivateTest", "fer0033120.png", row(NF=10), 1),
]
KEPT = [0, 1, 3, 4, 5]


def face(i):
    """48x48 grey, another one for each row."""
    y, x = np.mgrid[:48, :48]
    return ((x * (i + 1) + y * 3 + 11 * i) % 256).astype(np.uint8)


def write_table(path, head, lines):
    with open(path, "w", newline="") as handle:
        csv.writer(handle).writerows([head, *lines])


def write_votes(folder, rows=ROWS, head=("Usage", "Image name", *VOTES)):
    write_table(folder / "fer2013new.csv", head, [[usage, name, *votes] for usage, name, votes, _ in rows])


def write_folders(folder, rows=ROWS, end=".png", **options):
    """The layout that Microsoft's generator writes; with `end=".webp"` the mirror's."""
    write_votes(folder, rows)
    for part in PARTS.values():
        (folder / part).mkdir()
    for i in reversed(range(len(rows))):  # the first row of a name is written last and so stays
        usage, name, _, _ = rows[i]
        if name:
            Image.fromarray(face(i)).save((folder / PARTS[usage] / name).with_suffix(end), **options)
    return folder


def write_labels(folder, rows=ROWS):
    write_table(folder / "fer2013_labels.csv", ("row", "fer2013_label"), [(i, r[3]) for i, r in enumerate(rows)])


def write_pixels(folder, rows=ROWS, name="fer2013.csv", head=("emotion", "pixels", "Usage")):
    folder.mkdir(exist_ok=True)
    write_votes(folder, rows)
    lines = [
        {"emotion": r[3], "pixels": " ".join(map(str, face(i).ravel())), "Usage": r[0]} for i, r in enumerate(rows)
    ]
    write_table(folder / name, head, [[line[column.strip()] for column in head] for line in lines])
    return folder


def read(reader, folder):
    return pack.gather(reader(folder))


def bad(folder, *words, reader=expression.ferplus):
    with pytest.raises(UserError) as error:
        read(reader, folder)
    one_line_error(error, *words)


def check_small_set(encoded, arrays, fer2013):
    assert arrays["name"].tolist() == [ROWS[i][1] for i in KEPT] and len(encoded) == len(KEPT)
    assert arrays["split"].tolist() == [0, 0, 0, 1, 2] and arrays["split"].dtype == np.uint8
    assert arrays["votes"].tolist() == [ROWS[i][2] for i in KEPT] and arrays["votes"].dtype == np.uint8
    assert arrays["fer2013"].tolist() == fer2013 and arrays["fer2013"].dtype == np.int8
    for data, i in zip(encoded, KEPT):
        assert np.array_equal(np.asarray(pack.open_image(data).convert("L")), face(i))


def test_ferplus_from_image_folders(tmp_path):
    encoded, arrays = read(expression.ferplus, write_folders(tmp_path))
    check_small_set(encoded, arrays, [-1] * 5)


def test_ferplus_from_any_layout_is_one_pack(tmp_path):
    """Folders with FER2013's labels as PNG and as WebP, and both spellings of the pixel table: one fingerprint."""
    for name in ("png", "webp"):
        (tmp_path / name).mkdir()
    write_labels(write_folders(tmp_path / "png"))
    write_labels(write_folders(tmp_path / "webp", end=".webp", lossless=True))
    write_pixels(tmp_path / "csv")
    write_pixels(tmp_path / "icml", name="icml_face_data.csv", head=("emotion", " Usage", " pixels"))
    found = []
    for name in ("png", "webp", "csv", "icml"):
        encoded, arrays = read(expression.ferplus, tmp_path / name)
        check_small_set(encoded, arrays, [4, 6, 1, 2, 0])
        found.append(pack.fingerprint(encoded, arrays))
    assert len(set(found)) == 1


def test_ferplus_decodes_to_one_channel(tmp_path):
    stored = pack.write(tmp_path / "ferplus.npz", *read(expression.ferplus, write_folders(tmp_path)), {})
    grey = stored.decode(channels=1)
    assert grey.shape == (5, 1, 48, 48) and torch.equal(grey[2, 0], torch.from_numpy(face(3)))


def test_vote_table_that_is_damaged(tmp_path):
    write_folders(tmp_path)
    head = ["Usage", "Image name", *VOTES]
    for missing in ("Usage", "Image name", "contempt"):
        keep = [i for i, column in enumerate(head) if column != missing]
        lines = [[[usage, name, *votes][i] for i in keep] for usage, name, votes, _ in ROWS]
        write_table(tmp_path / "fer2013new.csv", [head[i] for i in keep], lines)
        bad(tmp_path, "fer2013new.csv", f"no column {missing}", "fetch the table again")
    (tmp_path / "fer2013new.csv").write_text("")
    bad(tmp_path, "no column Usage, Image name, neutral")
    for change, words in (
        (("Training", "fer0000003.png", row(fear=8), 3), ("line 5", "has 8 votes")),
        (("Training", "fer0000003.png", row(fear=11), 3), ("line 5", "has 11 votes")),
        (("Training", "fer0000003.png", row(fear=12, anger=-2), 3), ("line 5",)),
        (("Training", "fer0000003.png", row(fear="x"), 3), ("line 5", "a vote that is no number")),
        (("Training", "fer0000003.png", row(fear=10)[:-1], 3), ("line 5", "cut short")),
        (("Test", "fer0000003.png", row(fear=10), 3), ("line 5", "Usage 'Test'")),
    ):
        write_votes(tmp_path, ROWS[:3] + [change] + ROWS[4:])
        bad(tmp_path, "fer2013new.csv", *words)


def test_only_the_four_known_names_may_repeat(tmp_path):
    rows = [*ROWS, ("Training", "fer0000000.png", row(anger=10), 0)]
    write_folders(tmp_path, rows)
    bad(tmp_path, "rows 0 and 8 both name fer0000000.png", "the official table does not")


def test_rows_and_images_that_do_not_meet(tmp_path):
    write_folders(tmp_path)
    gone = tmp_path / "FER2013Train" / "fer0000003.png"
    data = gone.read_bytes()
    gone.unlink()
    bad(tmp_path, "1 rows without an image in fer2013new.csv", "FER2013Train/fer0000003", "restore")
    (tmp_path / "FER2013Valid" / "fer0000003.png").write_bytes(data)  # in another part it is not that image
    bad(tmp_path, "1 rows without an image", "FER2013Train/fer0000003")
    gone.write_bytes(data)
    bad(tmp_path, "1 images without a row in fer2013new.csv", "FER2013Valid/fer0000003")
    (tmp_path / "FER2013Valid" / "fer0000003.png").unlink()
    gone.with_suffix(".webp").write_bytes(data)
    bad(tmp_path, "fer0000003", "the same name as fer0000003")


def test_ferplus_images_that_are_damaged(tmp_path):
    path = write_folders(tmp_path) / "FER2013Train" / "fer0000003.png"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    bad(tmp_path, "fer0000003.png", "damaged image")
    Image.new("L", (100, 48)).save(path)
    bad(tmp_path, "fer0000003.png: 100x48 px, expected 48x48")


def test_ferplus_without_one_of_its_parts(tmp_path):
    bad(tmp_path, "no fer2013new.csv")
    write_votes(tmp_path)
    bad(tmp_path, "fer2013new.csv: votes without images", "FER2013Train, FER2013Valid, FER2013Test or fer2013.csv")


def test_pixel_table_that_is_damaged(tmp_path):
    path = write_pixels(tmp_path) / "fer2013.csv"
    lines = path.read_text().splitlines()
    third = lines[4]  # table row 3
    pixels = third.split(",")[1]
    for changed, words in (
        (f"3,{pixels[:-4]},Training", ("line 5", "2304 pixels")),
        (f"3,{pixels} 7,Training", ("line 5", "2304 pixels")),
        (f"3,256{pixels[pixels.index(' ') :]},Training", ("line 5", "2304 pixels of 0..255")),
        (f"3,-1{pixels[pixels.index(' ') :]},Training", ("line 5", "2304 pixels of 0..255")),
        (f"3,x{pixels[pixels.index(' ') :]},Training", ("line 5", "a pixel that is no number")),
        ("3,,Training", ("line 5", "2304 pixels")),
        (f"7,{pixels},Training", ("line 5", "emotion '7', not 0..6")),
        (f"3,{pixels},PublicTest", ("line 5 is not row 3 of fer2013new.csv",)),
        (f"3,{pixels}", ("line 5", "cut short")),
    ):
        path.write_text("\n".join([*lines[:4], changed, *lines[5:]]))
        bad(tmp_path, "fer2013.csv", *words)
    path.write_text("\n".join(lines[:-1]))
    bad(tmp_path, "fer2013.csv: 7 rows, but fer2013new.csv has 8")
    path.write_text("\n".join([*lines, lines[-1]]))
    bad(tmp_path, "line 10 is not row 8")
    path.write_text("\n".join(["emotion,Usage", *lines[1:]]))
    bad(tmp_path, "fer2013.csv: no column pixels")


def test_fer2013_labels_that_do_not_fit(tmp_path):
    write_folders(tmp_path)
    for pairs in ([(i, 0) for i in range(7)], [(i, 7) for i in range(8)], [(i + 1, 0) for i in range(8)]):
        write_table(tmp_path / "fer2013_labels.csv", ("row", "fer2013_label"), pairs)
        bad(tmp_path, "fer2013_labels.csv", "expected rows 0..7 in order, labels 0..6")
    write_table(tmp_path / "fer2013_labels.csv", ("row", "fer2013_label"), [("a", 0)])
    bad(tmp_path, "fer2013_labels.csv", "no number")


# --------------------------------------------------------------------------------------- the real FERPlus tables

SIZES_IN_ROWS = {
    "majority": (25060, 3199, 3153),
    "half": (26587, 3353, 3327),
    "plurality": (28389, 3553, 3546),
    "emotions_only": (28559, 3579, 3573),
    "unique": (26940, 3396, 3376),
    "over_five": (21811, 2862, 2729),
}
SIZES_IN_IMAGES = {"majority": (25057, 3199, 3153), "plurality": (28386, 3553, 3546)}  # each name once
CLASSES_IN_ROWS = {
    "majority": (
        (8740, 7287, 3149, 3014, 2100, 119, 532, 119),
        (1182, 865, 415, 351, 287, 24, 62, 13),
        (1090, 893, 396, 384, 273, 18, 83, 16),
    ),
    "plurality": (
        (10309, 7528, 3562, 3515, 2467, 191, 652, 165),
        (1335, 899, 456, 412, 319, 34, 74, 24),
        (1262, 928, 444, 444, 325, 23, 93, 27),
    ),
}


SAMPLES = [f"FER2013Test/fer003222{i}" for i in (0, 2, 3, 4)]  # some that the mirror holds untouched, too


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """(folder with some of the files, names of the images) of the mirror's archive."""
    if not (MIRROR / "ferplus-48.tar").is_file():
        pytest.skip("no ferplus-48.tar in DATA_MIRROR or ../shared/mirror")
    folder, tables = tmp_path_factory.mktemp("ferplus"), ("fer2013new.csv", "fer2013_labels.csv")
    with open_tar(MIRROR / "ferplus-48.tar") as archive:
        names = archive.getnames()
        archive.extractall(folder, [archive.getmember(n) for n in (*tables, *(f"{name}.webp" for name in SAMPLES))])
    return folder, {name for name in names if name.endswith(".webp")}


@pytest.fixture(scope="module")
def real_table(real):
    """(VoteTable, FER2013's labels in FERPlus order, split), by row."""
    table = expression.read_votes(real[0] / "fer2013new.csv")
    codes = expression._fer2013_labels(real[0] / "fer2013_labels.csv", len(table.name))
    return table, expressions.FER2013_TO_FERPLUS[codes], np.array([list(PARTS).index(usage) for usage in table.usage])


def test_real_ferplus_has_the_official_sizes(real, real_table):
    (_, images), (table, _, split) = real, real_table
    named = np.array([bool(name) for name in table.name])
    assert np.bincount(split).tolist() == [28709, 3589, 3589]
    assert np.bincount(split[named]).tolist() == [28561, 3579, 3574]
    assert np.bincount(split[table.images]).tolist() == [28558, 3579, 3573] and len(images) == 35710
    wanted = {f"{PARTS[table.usage[i]]}/{Path(table.name[i]).stem}.webp" for i in table.images}
    assert wanted == images
    assert (table.votes[~named, VOTES.index("NF")] == 10).all() and (table.votes.sum(1) == 9).sum() == 1


@pytest.mark.parametrize("rule", expressions.RULES)
def test_real_ferplus_label_rules_have_the_known_sizes(real_table, rule):
    table, _, split = real_table
    found = labels(table.votes, rule)
    found[[not name for name in table.name]] = -1
    of = lambda part, rows: found[rows][(split[rows] == part) & (found[rows] >= 0)]
    every = np.arange(len(found))
    assert tuple(len(of(part, every)) for part in range(3)) == SIZES_IN_ROWS[rule]
    if rule in CLASSES_IN_ROWS:
        assert tuple(len(of(part, table.images)) for part in range(3)) == SIZES_IN_IMAGES[rule]
        counts = tuple(tuple(np.bincount(of(part, every), minlength=8).tolist()) for part in range(3))
        assert counts == CLASSES_IN_ROWS[rule]


def test_real_ferplus_differs_from_fer2013_as_known(real_table):
    """Joined by row: 63.0 % of 35,488 agree under plurality, 67.6 % of 31,412 under majority."""
    table, fer2013, _ = real_table
    for rule, rows, share in (("plurality", 35488, 0.630), ("majority", 31412, 0.676)):
        found = labels(table.votes, rule)
        keep = (found >= 0) & np.array([bool(name) for name in table.name])
        assert keep.sum() == rows and round((found == fer2013)[keep].mean(), 3) == share
    neutral = np.bincount(fer2013[keep & (found == 0)], minlength=8)
    assert neutral[[0, 3, 6, 4]].tolist() == [5065, 2695, 1398, 1218]


def test_real_official_png_gives_the_mirrors_pixels(tmp_path, real):
    if not (MIRROR / "raw-samples.tar").is_file():
        pytest.skip("no raw-samples.tar in DATA_MIRROR or ../shared/mirror")
    with open_tar(MIRROR / "raw-samples.tar") as archive:
        archive.extractall(tmp_path, [archive.getmember(f"ferplus/{name}.png") for name in SAMPLES])
    for name in SAMPLES:
        png, webp = tmp_path / "ferplus" / f"{name}.png", real[0] / f"{name}.webp"
        pixels = [np.asarray(pack.open_image(expression._grey_webp(path))) for path in (png, webp)]
        assert np.array_equal(*pixels) and np.array_equal(pixels[0][:, :, 0], np.asarray(Image.open(png)))


# ------------------------------------------------------------------------------------------- RAF-DB, AffectNet


def jpeg(path, size=(100, 100), value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 255 - value)).save(path, "JPEG")


def write_rafdb(folder):
    listed = {"train_00001": 5, "train_00002": 7, "test_0001": 1}
    for i, name in enumerate(listed):
        jpeg(folder / "basic" / "Image" / "aligned" / f"{name}_aligned.jpg", value=i)
    (folder / "basic" / "EmoLabel").mkdir()
    table = folder / "basic" / "EmoLabel" / "list_patition_label.txt"
    table.write_text("".join(f"{name}.jpg {code}\n" for name, code in listed.items()))
    return table


def test_rafdb(tmp_path):
    write_rafdb(tmp_path)
    encoded, arrays = read(expression.rafdb, tmp_path)
    assert arrays["name"].tolist() == ["train_00001.jpg", "train_00002.jpg", "test_0001.jpg"]
    assert arrays["split"].tolist() == [0, 0, 1] and arrays["label"].tolist() == [4, 6, 0]
    assert [expressions.RAFDB[i] for i in arrays["label"]] == ["sadness", "neutral", "surprise"]
    aligned = tmp_path / "basic" / "Image" / "aligned"
    assert encoded[2] == (aligned / "test_0001_aligned.jpg").read_bytes()


def test_rafdb_that_is_damaged(tmp_path):
    table = write_rafdb(tmp_path)
    text, fails = table.read_text(), lambda *words: bad(tmp_path, *words, reader=expression.rafdb)
    for change, words in (
        (text.replace(" 7", " 8"), ("line 2", "code 1..7")),
        (text.replace(" 7", ""), ("line 2",)),
        (text + "train_00001.jpg 5\n", ("line 4 names train_00001.jpg again",)),
        (text + "train_00003.jpg 5\n", ("1 rows without an image", "train_00003.jpg")),
        (text.replace("train_00002.jpg 7\n", ""), ("1 images without a row", "train_00002.jpg")),
    ):
        table.write_text(change)
        fails("list_patition_label.txt", *words)
    table.write_text(text)
    jpeg(tmp_path / "basic" / "Image" / "aligned" / "train_00002_aligned.jpg", (90, 100))
    fails("train_00002_aligned.jpg: 90x100 px, expected 100x100")
    table.unlink()
    fails("no list_patition_label.txt")


def write_affectnet(folder):
    for part, codes in (("train_set", (0, 7)), ("val_set", (3,))):
        for i, code in enumerate(codes):
            jpeg(folder / part / "images" / f"{i}.jpg", (224, 224))
            (folder / part / "annotations").mkdir(exist_ok=True)
            np.save(folder / part / "annotations" / f"{i}_exp.npy", np.array(str(code)))
            np.save(folder / part / "annotations" / f"{i}_val.npy", np.array("0.1"))
    return folder / "train_set" / "annotations"


def test_affectnet(tmp_path):
    write_affectnet(tmp_path)
    encoded, arrays = read(expression.affectnet, tmp_path)
    assert len(encoded) == 3 and arrays["name"].tolist() == ["train_set/0.jpg", "train_set/1.jpg", "val_set/0.jpg"]
    assert arrays["split"].tolist() == [0, 0, 1] and arrays["label"].tolist() == [0, 7, 3]
    assert arrays["label"].dtype == np.int8


def test_affectnet_that_is_damaged(tmp_path):
    notes, fails = write_affectnet(tmp_path), lambda *words: bad(tmp_path, *words, reader=expression.affectnet)
    np.save(notes / "1_exp.npy", np.array("8"))
    fails("1_exp.npy: code 8 is none of 0..7")
    (notes / "1_exp.npy").write_bytes(b"junk")
    fails("1_exp.npy: damaged")
    np.save(notes / "1_exp.npy", np.array([{"exp": 1}], object))
    fails("1_exp.npy: damaged", "Object arrays")
    (notes / "1_exp.npy").unlink()
    fails("1 images without a row in annotations, e.g. 1")
    np.save(notes / "1_exp.npy", np.array("1"))
    (tmp_path / "train_set" / "images" / "1.jpg").unlink()
    fails("1 rows without an image in annotations, e.g. 1")
    (tmp_path / "val_set").rename(tmp_path / "test_set")
    fails("no train_set and val_set")


def test_classes_stand_in_the_order_of_the_official_codes():
    """As the papers of RAF-DB (from 1) and AffectNet (from 0) number them."""
    rafdb = {1: "surprise", 2: "fear", 3: "disgust", 4: "happiness", 5: "sadness", 6: "anger", 7: "neutral"}
    affectnet = {0: "neutral", 1: "happiness", 2: "sadness", 3: "surprise", 4: "fear", 5: "disgust", 6: "anger",
                 7: "contempt"}  # fmt: skip
    assert dict(enumerate(expressions.RAFDB, 1)) == rafdb and dict(enumerate(expressions.AFFECTNET)) == affectnet
