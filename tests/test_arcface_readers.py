"""Readers on small files written here in the official byte layouts, and every bad input's one line."""

import io
import pickle
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from facepapers.common.cli import UserError
from facepapers.common.data.readers import recognition
from facepapers.common.protocols import verification
from facepapers.common.vision import alignment
from facepapers.papers.arcface import data as arcface_data
from facepapers.papers.arcface import readers
from tests.conftest import one_line_error

torch.set_num_threads(1)
MAGIC = struct.pack("<I", 0xCED7230A)


def jpeg(value, size=16, height=None):
    buffer = io.BytesIO()
    Image.new("RGB", (size, height or size), (value, 0, 255 - value)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def colour(image):
    return image.float().mean((-2, -1)).round().int().tolist()


# ---- .bin


def write_bin(path, encoded, same, protocol=4):
    path.write_bytes(pickle.dumps((encoded, same), protocol))
    return path


def python2_pickle(encoded, same):
    """The bytes that Python 2's pickle, protocol 2, writes: byte strings as BINSTRING, which is str there."""
    out = b"\x80\x02]q\x01("
    for data in encoded:
        out += b"T" + struct.pack("<i", len(data)) + data
    out += b"e]q\x02(" + b"".join(b"\x88" if s else b"\x89" for s in same) + b"e\x86q\x03."
    return out


def test_bin_of_both_pythons(tmp_path):
    encoded, same = [jpeg(v) for v in (10, 20, 200, 100)], [True, False]
    path = write_bin(tmp_path / "a.bin", encoded, same)
    old = tmp_path / "old.bin"
    old.write_bytes(python2_pickle(encoded, same))
    for file in (path, old):
        images, truth = readers.read_bin(file, size=16)
        assert images.shape == (4, 3, 16, 16) and images.dtype == torch.uint8
        assert truth.tolist() == same and truth.dtype == bool
        for image, value in zip(images, (10, 20, 200, 100)):  # RGB, in the file's order
            assert np.abs(np.array(colour(image)) - [value, 0, 255 - value]).max() <= 2


class Evil:
    def __reduce__(self):
        return print, ("code ran",)


def test_bin_that_tries_anything_else(tmp_path, capsys):
    good = [jpeg(1)] * 4
    cases = {
        "it wants to run builtins.print": ([Evil()], [True]),
        "holds numpy arrays .numpy.*write it again as pickle.dump": ([np.zeros(3, np.uint8)] * 2, [True]),
        "holds numpy arrays .numpy[a-z._]*scalar": (good[:2], [np.bool_(True)]),
        "it wants to run __builtin__.set": pickle.dumps(([], {True}), 2),
        "expected .list of images, list of bools.": (good, {True}),
        "it wants to run _codecs.encode on more": b"c_codecs\nencode\n(Va\nVrot13\ntR.",
        "it wants to run _codecs.decode": b"c_codecs\ndecode\n(S'61'\nS'hex'\ntR.",
        "image 1 is a str, not bytes": ([good[0], "a"], [True]),
        "truth 1 is '2', not True or False": (good, [True, 2]),
        "truth 0 is '1.0', not True or False": (good, [1.0, 0]),
        "expected .list of images, list of bools., found dict": {"a": good},
        "found tuple": (good, (True, False)),
        "4 images for 1 pairs": (good, [True]),
        "0 images for 0 pairs": ([], []),
    }
    path = tmp_path / "x.bin"
    for message, content in cases.items():
        path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, 4))
        with pytest.raises(UserError, match=message) as caught:
            readers.read_bin(path, 16)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("protocol", range(5))
def test_bin_of_any_protocol_with_truths_as_numbers(tmp_path, protocol):
    """Protocols 0 to 2 write bytes as text, and the name of the function that makes bytes of it again."""
    path = tmp_path / "x.bin"
    path.write_bytes(pickle.dumps(([jpeg(i) for i in range(4)], [1, 0]), protocol))
    images, same = readers.read_bin(path, 16)
    assert len(images) == 4 and same.dtype == bool and same.tolist() == [True, False]


def test_bin_pairs_in_blocks_are_judged_as_in_any_order(tmp_path, capsys):
    """All same, then all different: contiguous folds would hold one kind each and halve the true-accept rate."""
    rng = np.random.default_rng(0)
    distance = np.r_[rng.normal(1.0, 0.3, 40), rng.normal(1.6, 0.3, 40)].clip(0, 4)
    same = np.arange(80) < 40
    by_turns = np.arange(80).reshape(2, 40).T.ravel()
    found = []
    for order in (np.arange(80), by_turns, np.arange(80)[::-1]):
        path = tmp_path / "x.bin"
        write_bin(path, [jpeg(0, 112)] * 160, same[order].tolist())
        pairs = arcface_data.bin_test(path).pairs
        said = capsys.readouterr().err
        if order is by_turns:
            assert not said
        else:
            one_line_error(said, path, "blocks of one kind")
        result = verification.verify(distance[order], pairs[:, 2], pairs[:, 3])
        tar = verification.tar_at_far(distance[order], pairs[:, 2].astype(bool), pairs[:, 3], far=0.1)
        found.append((result.accuracy_pct, tar.tar))
    assert found[0] == found[1] and 0.2 < found[0][1] < 0.95
    write_bin(path, [jpeg(0, 112)] * 40, [True] * 15 + [False] * 5)
    with pytest.raises(UserError, match=r"5 pairs cannot be cut into 10 folds"):
        arcface_data.bin_test(path)


def test_bin_with_persistent_ids_extensions_or_damage(tmp_path):
    path = tmp_path / "x.bin"
    whole = pickle.dumps(([jpeg(1)] * 2, [True]), 4)
    shell = b"cos\nsystem\n(S'echo code ran'\ntR."
    for content in (b"Pabc\n.", b"\x80\x04\x82\x01.", shell, whole[:-40], b"", b"\x80\x04}"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"x.bin: not a plain pickle"):
            readers.read_bin(path, 16)
    with pytest.raises(UserError, match="no such file"):
        readers.read_bin(tmp_path / "absent.bin")
    write_bin(path, [jpeg(1), b"no jpeg"], [True])
    with pytest.raises(UserError, match=r"x.bin: image 1: not an image"):
        readers.read_bin(path, 16)
    write_bin(path, [jpeg(1), jpeg(1, 20)], [True])
    with pytest.raises(UserError, match=r"x.bin: image 1: 20x20 px, not 16x16; align it first"):
        readers.read_bin(path, 16)


# ---- RecordIO


def part(kind, data):
    return MAGIC + struct.pack("<I", kind << 29 | len(data)) + data + b"\0" * (-len(data) % 4)


def record(label, image=b"", index=0):
    labels = np.atleast_1d(np.asarray(label, "<f4"))
    if np.ndim(label) == 0:
        return struct.pack("<IfQQ", 0, label, index, 0) + image
    return struct.pack("<IfQQ", len(labels), 0.0, index, 0) + labels.tobytes() + image


def write_set(folder, records, classes=2, size=16):
    """records: {key: payload, or list of ready-made parts}"""
    data, index = b"", ""
    for key, payload in records.items():
        index += f"{key}\t{len(data)}\n"
        data += payload if payload.startswith(MAGIC) else part(0, payload)
    (folder / "train.rec").write_bytes(data)
    (folder / "train.idx").write_text(index)
    (folder / "property").write_text(f"{classes},{size},{size}")
    return folder


def small_set(folder, **changes):
    """Insightface's layout: record 0 says that images are 1..3 and identities 4..5."""
    records = {0: record([4, 6])}
    records |= {1: record([0, 0], jpeg(10)), 2: record([0, 0], jpeg(60)), 3: record(1.0, jpeg(200))}
    records |= {4: record([1, 3]), 5: record([3, 4])}
    return write_set(folder, records | changes.pop("records", {}), **changes)


def test_recordio_with_identities(tmp_path):
    data = readers.RecordIO(small_set(tmp_path))
    assert len(data) == 3 and data.classes == 2
    labels, reds = [], []
    for image, label in torch.utils.data.DataLoader(data, batch_size=None):
        assert image.shape == (3, 16, 16) and image.dtype == torch.uint8
        labels.append(int(label))
        reds.append(colour(image)[0])
    assert labels == [0, 0, 1] and np.abs(np.array(reds) - [10, 60, 200]).max() <= 2


def test_recordio_without_header_takes_every_record(tmp_path):
    write_set(tmp_path, {7: record(1.0, jpeg(5)), 3: record(0.0, jpeg(250))})
    data = readers.RecordIO(tmp_path)
    assert [data[i][1] for i in range(2)] == [0, 1] and abs(colour(data[0][0])[0] - 250) <= 2


def test_recordio_in_loader_workers(tmp_path):
    loader = torch.utils.data.DataLoader(readers.RecordIO(small_set(tmp_path)), batch_size=3, num_workers=1)
    images, labels = next(iter(loader))
    assert images.shape == (3, 3, 16, 16) and labels.tolist() == [0, 0, 1]


def test_keys_beyond_float32_are_those_of_the_index(tmp_path, capsys):
    """Record 0 of a set of 2**24 images says first identity 16777217, which float32 holds as 16777216."""
    last = 2**24
    images = {1: record(0.0, jpeg(5)), last - 1: record(1.0, jpeg(90)), last: record(2.0, jpeg(250))}
    people = {last + 1: record([1, last - 1]), last + 2: record([last - 1, last]), last + 3: record([last, last + 1])}
    write_set(tmp_path, {0: record([last + 1, last + 4])} | images | people, classes=3)
    data = readers.RecordIO(tmp_path)
    assert len(data) == last and data[last - 1][1] == 2 and abs(colour(data[last - 1][0])[0] - 250) <= 2
    (tmp_path / "property").unlink()
    assert readers.RecordIO(tmp_path).classes == 3 and "3,16,16" in capsys.readouterr().err
    write_set(tmp_path, {0: record([last + 1, last + 4])} | images | people | {last + 2: record([9, 9])}, classes=3)
    with pytest.raises(UserError, match=r"identity 1 \(record 16777218\) has no image"):
        readers.RecordIO(tmp_path)


def test_a_spawned_worker_maps_the_file_anew(tmp_path):
    data = readers.RecordIO(small_set(tmp_path, records={3: record(1.0, jpeg(200) + bytes(2**20))}))
    sent = pickle.dumps(data)
    assert len(sent) < 2**16, "the file itself is sent"
    again = pickle.loads(sent)
    assert len(again) == 3 and torch.equal(again[2][0], data[2][0]) and again.labels().tolist() == [0, 0, 1]


def test_a_record_that_holds_the_magic_number(tmp_path):
    """The writer cuts a record at an aligned magic number and drops it; the reader must put it back."""
    payload = record(1.0, jpeg(90))
    pad = b"\0" * (-len(payload) % 4)
    first, second = payload + pad, b"tail"
    ready = part(1, first) + part(2, b"") + part(3, second)
    write_set(tmp_path, {0: ready, 1: record(0.0, jpeg(1))})
    data = readers.RecordIO(tmp_path)
    assert data._record(0) == first + MAGIC + MAGIC + second
    assert data[0][1] == 1 and abs(colour(data[0][0])[0] - 90) <= 2


def odd_set(folder):
    """Records of every kind: plain, a vector of labels, a fraction, several parts, and out of order in the file."""
    payload = record(1.0, jpeg(90))
    parts = part(1, payload + b"\0" * (-len(payload) % 4)) + part(3, b"tail")
    cut = struct.pack("<IfQ", 0, 1.0, 5)  # the magic number as id2: the first part is shorter than a header
    records = {9: record(0.0, jpeg(1)), 2: record([1, 0, 7], jpeg(2)), 5: record(1.7, jpeg(3)), 4: parts}
    records |= {3: part(1, cut) + part(3, b"rest"), 7: record([0], jpeg(4)), 8: record(1.0)}
    return write_set(folder, records)


def test_labels_from_headers_are_those_of_the_records(tmp_path, monkeypatch):
    data = readers.RecordIO(odd_set(tmp_path))
    expected = [int(data._label(int(key))[0]) for key in data.keys]
    assert data.keys.tolist() == [2, 3, 4, 5, 7, 8, 9] and expected == [1, 1, 1, 1, 0, 1, 0]
    assert data.labels().tolist() == expected and data.labels().dtype == np.int64
    read = []
    whole = data._record
    monkeypatch.setattr(data, "_record", lambda key: read.append(key) or whole(key))
    assert data.labels().tolist() == expected
    assert read == [3, 4, 8]  # the two of several parts and the last of the file; the others' images stay unread


def test_labels_of_a_file_of_many_windows(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "WINDOW", 2 * readers.mmap.ALLOCATIONGRANULARITY)
    image = bytes(readers.mmap.ALLOCATIONGRANULARITY // 3)
    records = {key: record(float(key % 5), image[: -key or None]) for key in range(1, 60)}
    records[30] = record(0.0, 10 * image)  # longer than a window
    data = readers.RecordIO(write_set(tmp_path, records, classes=5))
    assert data.labels().tolist() == [key % 5 for key in range(1, 60)]


def test_labels_of_damaged_records(tmp_path):
    for bad, message in {
        b"short": "record 2 is shorter than its header",
        struct.pack("<IfQQ", 9, 0, 0, 0): "record 2 is shorter than its 9 labels",
        record(2.0): r"record 2 has label 2, outside 0\.\.1",
        record(float("nan")): r"record 2 has label nan, outside 0\.\.1",
        MAGIC + struct.pack("<I", 1 << 28) + bytes(64): "truncated inside record 2",
    }.items():
        data = readers.RecordIO(small_set(tmp_path, records={2: bad}))
        with pytest.raises(UserError, match=message) as error:
            data.labels()
        assert "\n" not in str(error.value)
    data = readers.RecordIO(small_set(tmp_path))
    with open(tmp_path / "train.rec", "r+b") as file:
        file.seek(data.offsets[2])
        file.write(b"JUNK")
    with pytest.raises(UserError, match="no record 2 at byte"):
        data.labels()


def test_index_files_as_people_have_them(tmp_path):
    plain = readers.RecordIO(small_set(tmp_path)).labels().tolist()
    index = (tmp_path / "train.idx").read_text()
    twice = index.splitlines()[0].replace("0\t", "1\t") + "\n" + index  # key 1 again, where record 0 lies
    for text in (index.replace("\n", "\r\n"), index + "\n\n", index.rstrip(), index.replace("\t", " "), twice):
        (tmp_path / "train.idx").write_bytes(text.encode())
        assert readers.RecordIO(tmp_path).labels().tolist() == plain
    for text, message in (
        ("\n \n", "empty"),
        ("0\t0\n1\n", "expected lines"),
        ("0\n1\n", "expected lines"),
        ("0\t1.5\n", "expected lines"),
        ("0\t-4\n", "expected lines"),
        ("0\t99999999999999999999\n", "expected lines"),
        ("0\t0\n\xff\xfe0", "not a text file, byte 4 is no UTF-8"),
    ):
        (tmp_path / "train.idx").write_bytes(text.encode("latin-1"))
        with pytest.raises(UserError, match=message) as error:
            readers.RecordIO(tmp_path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("with_identities", [True, False])
def test_property_is_derived_from_the_records(tmp_path, with_identities, capsys):
    small_set(tmp_path)
    if not with_identities:
        records = {k: record(float(k % 3), jpeg(k)) for k in range(1, 6)}
        write_set(tmp_path, records)
    wanted = 2 if with_identities else 3
    (tmp_path / "property").write_text(f"\ufeff{wanted},16,16\r\n\n")
    whole = readers.RecordIO(tmp_path)
    assert capsys.readouterr().err == ""
    (tmp_path / "property").unlink()
    found = readers.RecordIO(tmp_path)
    assert (found.classes, found.height, found.width) == (whole.classes, 16, 16) == (wanted, 16, 16)
    assert found.labels().tolist() == whole.labels().tolist()
    one_line_error(capsys.readouterr().err, tmp_path, f"no property file; the records say {wanted},16,16")


def test_truncated_record_files(tmp_path):
    small_set(tmp_path)
    path = tmp_path / "train.rec"
    whole = path.read_bytes()
    for cut in (len(whole) - 4, len(whole) - 37, len(whole) // 2, 0):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"train.rec: (truncated|missing or empty).*fetch (the file|both) again"):
            readers.RecordIO(tmp_path)


def test_records_that_contradict_each_other(tmp_path):
    cases = {
        r"identity 1 \(record 5\) has no image": {"records": {5: record([3, 3])}},
        "3 identities where property says 2": {"records": {0: record([3, 6])}},
        "2 identities where property says 5": {"classes": 5},
    }
    for message, changes in cases.items():
        with pytest.raises(UserError, match=message):
            readers.RecordIO(small_set(tmp_path, **changes))
    for label in (2.0, -1.0):
        data = readers.RecordIO(small_set(tmp_path, records={2: record(label, jpeg(3))}))
        with pytest.raises(UserError, match=rf"record 2 has label {label:g}, outside 0\.\.1"):
            data[1]
    data = readers.RecordIO(small_set(tmp_path, records={2: record(0.0, jpeg(3, 20, 16))}))
    with pytest.raises(UserError, match="record 2 is 20x16 px"):
        data[1]
    data = readers.RecordIO(small_set(tmp_path, records={2: record(0.0, b"junk")}))
    with pytest.raises(UserError, match="record 2: not an image"):
        data[1]
    data = readers.RecordIO(small_set(tmp_path, records={2: b"short"}))
    with pytest.raises(UserError, match="record 2 is shorter than its header"):
        data[1]
    data = readers.RecordIO(small_set(tmp_path, records={2: struct.pack("<IfQQ", 9, 0, 0, 0)}))
    with pytest.raises(UserError, match="record 2 is shorter than its 9 labels"):
        data[1]


def test_index_and_property_files(tmp_path):
    with pytest.raises(UserError, match=r"train.idx: no such file; a RecordIO set is train.rec, train.idx and"):
        readers.RecordIO(tmp_path)
    small_set(tmp_path)
    index = (tmp_path / "train.idx").read_text()
    for name, text, message in (
        ("train.idx", "0 1 2\n", "expected lines 'key<TAB>offset'"),
        ("train.idx", "", "empty"),
        ("train.idx", index.replace("1\t", "9\t", 1), "the index has no record 1|rec and idx do not belong"),
        ("train.idx", index.replace("\n", "4\n"), "train.rec: (truncated|no record)"),
        ("property", "2,16", "expected one line .*; write it, or remove the file"),
    ):
        small_set(tmp_path)
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=message):
            readers.RecordIO(tmp_path)[0]


# ---- Folders


def tree(folder, people, size=16):
    for person, count in people.items():
        (folder / person).mkdir(parents=True)
        for i in range(count):
            (folder / person / f"{person}_{i + 1:04d}.jpg").write_bytes(jpeg(i, size))
    return folder


def test_identity_folder(tmp_path):
    tree(tmp_path, {"B": 1, "A": 2})
    (tmp_path / "A" / "notes.txt").write_text("x")
    rows = [row for _, row in recognition.identity_folder(tmp_path)]
    assert [(r["name"], r["identity"]) for r in rows] == [("A/A_0001.jpg", 0), ("A/A_0002.jpg", 0), ("B/B_0001.jpg", 1)]
    images = readers.decode([data for data, _ in recognition.identity_folder(tmp_path)])
    assert images.shape == (3, 3, 16, 16)
    (tmp_path / "C").mkdir()
    with pytest.raises(UserError, match=r"C: an identity with no image"):
        list(recognition.identity_folder(tmp_path))
    with pytest.raises(UserError, match="no identity folders"):
        list(recognition.identity_folder(tmp_path / "absent"))


def test_image_folders_one_by_one(tmp_path):
    tree(tmp_path, {"B": 1, "A": 2}, 112)
    found = readers.FolderSet(tmp_path)
    assert len(found) == 3 and found.classes == 2 and [found[i][1] for i in range(3)] == [0, 0, 1]
    assert found[1][0].shape == (3, 112, 112) and colour(found[1][0]) == [1, 0, 254]
    (tmp_path / "B" / "B_0002.jpg").write_bytes(jpeg(0, 18))
    with pytest.raises(UserError, match=r"B_0002.jpg: 18x18 px, unlike the first"):
        readers.FolderSet(tmp_path)[3]


def points_file(path, folder, points):
    """landmarks.csv with the same five points for every photo of a tree."""
    head = "file,prob," + ",".join(f"c{i}" for i in range(10))
    names = [name for _, name, _ in recognition.identity_files(folder)]
    path.write_text("\n".join([head, *(f"{n},1.0," + ",".join(f"{v:.4f}" for v in points.ravel()) for n in names)]))


def test_photos_in_folders_are_aligned_or_refused(tmp_path):
    tree(tmp_path, {"A": 2, "B": 1}, 250)
    with pytest.raises(UserError, match=r"A_0001.jpg: 250x250 px, not aligned to 112; put landmarks.csv"):
        readers.FolderSet(tmp_path)
    photo = np.random.default_rng(0).integers(0, 256, (250, 250, 3), np.uint8)
    Image.fromarray(photo).save(tmp_path / "B" / "B_0001.png")
    (tmp_path / "B" / "B_0001.jpg").unlink()
    points_file(tmp_path / "landmarks.csv", tmp_path, alignment.TEMPLATE_112 + [60, 40])
    face, label = readers.FolderSet(tmp_path)[2]
    assert label == 1 and face.shape == (3, 112, 112)
    assert np.abs(face.permute(1, 2, 0).numpy().astype(int) - photo[40:152, 60:172].astype(int)).max() <= 2
    path = tmp_path / "landmarks.csv"
    whole = path.read_text()
    for broken in (whole.rsplit(",", 1)[0], whole.replace("1.0,", "1.0,x", 1)):
        path.write_text(broken)
        with pytest.raises(UserError, match=r"landmarks.csv:\d: expected file, probability and ten numbers"):
            readers.FolderSet(tmp_path)


# ---- LFW


def lfw_tree(folder, size=112):
    tree(folder / "lfw", {"Aaron_Peirsol": 2, "Zico": 1, "Al_Gore": 3}, size)
    (folder / "protocols").mkdir()
    write = lambda name, text: (folder / "protocols" / name).write_text(text)
    write("peopleDevTrain.txt", "2\nAaron_Peirsol\t2\nZico\t1\n")
    write("peopleDevTest.txt", "1\nAl_Gore\t3\n")
    write("people.txt", "2\n1\nAl_Gore\t3\n2\nAaron_Peirsol\t2\nZico\t1\n")
    for name in ("pairs.txt", "pairsDevTrain.txt", "pairsDevTest.txt"):
        lines = ["Al_Gore\t1\t3", *["Aaron_Peirsol\t1\t2"] * 9, *["Zico\t1\tAl_Gore\t2"] * 10]
        write(name, "10\n" + "\n".join(lines) + "\n")
    return folder


def test_lfw_folder(tmp_path):
    *samples, (none, pairs) = recognition.lfw(lfw_tree(tmp_path))
    assert [row["name"] for _, row in samples][1] == "Aaron_Peirsol/Aaron_Peirsol_0002.jpg"
    assert [row["identity"] for _, row in samples] == [0, 0, 1, 1, 1, 2]
    assert [int(row["split"]) for _, row in samples] == [0, 0, 1, 1, 1, 0]
    assert [int(row["people_set"]) for _, row in samples] == [1, 1, 0, 0, 0, 1]
    assert none is None and pairs.keys() == {"pairs", "pairs_devtrain", "pairs_devtest"}
    assert pairs["pairs"][[0, -1]].tolist() == [[2, 4, 1, 0], [5, 3, 0, 9]]


def test_lfw_that_is_incomplete(tmp_path):
    lfw_tree(tmp_path)
    (tmp_path / "lfw" / "Al_Gore" / "Al_Gore_0002.jpg").unlink()
    with pytest.raises(UserError, match=r"1 people differ from the protocol .*, e.g. Al_Gore: 2 images, not 3"):
        list(recognition.lfw(tmp_path))
    (tmp_path / "protocols" / "peopleDevTest.txt").unlink()
    with pytest.raises(UserError, match=r"no peopleDevTrain\.txt and peopleDevTest\.txt"):
        list(recognition.lfw(tmp_path))


def test_pairs_that_name_an_absent_image(tmp_path):
    lfw_tree(tmp_path)
    path = tmp_path / "protocols" / "pairsDevTest.txt"
    path.write_text(path.read_text().replace("Zico\t1", "Zico\t7"))
    with pytest.raises(UserError, match=r"pairsDevTest.txt: names 1 images that are absent, e.g. Zico/Zico_0007.jpg"):
        list(recognition.lfw(tmp_path))


def test_lfw_photos_are_aligned_by_their_points(tmp_path):
    lfw_tree(tmp_path, size=250)
    with pytest.raises(UserError, match=r"250x250 px, not aligned to 112; put landmarks.csv"):
        list(recognition.lfw(tmp_path))
    points = alignment.TEMPLATE_112 + [60, 40]  # the crop is then the photo's part from (60, 40) on
    head = "file,prob," + ",".join(f"c{i}" for i in range(10))
    names = [name for _, name, _ in recognition.identity_files(tmp_path / "lfw")]
    line = lambda name: f"{name},1.0," + ",".join(f"{v:.4f}" for v in points.ravel())
    (tmp_path / "landmarks.csv").write_text("\n".join([head, *map(line, names)]))
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (250, 250, 3), np.uint8)
    Image.fromarray(photo).save(tmp_path / "lfw" / "Zico" / "Zico_0001.png")
    (tmp_path / "lfw" / "Zico" / "Zico_0001.jpg").unlink()
    with pytest.raises(UserError, match=r"landmarks.csv: has no line for \S*Zico_0001.png"):
        list(recognition.lfw(tmp_path))
    (tmp_path / "landmarks.csv").write_text("\n".join([head, *map(line, [*names, "Zico/Zico_0001.png"])]))
    samples = recognition.lfw(tmp_path)
    crop = [image for _, (image, _) in zip(range(6), samples, strict=False)][-1]
    assert crop.shape == (112, 112, 3)
    assert np.abs(crop.astype(int) - photo[40:152, 60:172].astype(int)).max() <= 2
