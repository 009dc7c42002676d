"""What preprocessing costs: the ways of making crops, the record, the notes' table."""

import io
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from facepapers.common import cli, paths, storage
from facepapers.common.evidence import runs
from facepapers.common.vision import alignment
from facepapers.papers.arcface import preprocessing, tables
from tests.conftest import REPOSITORY

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def faces():
    coarse = 255 * torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(coarse, (112, 112), mode="bicubic").clamp(0, 255).byte()
    return preprocessing.Faces(smooth, ["A/A_0001.jpg", "B/B_0001.jpg"], "")


def by_opencv(name):
    return "opencv" in name or name in ("ransac", "lmeds")


def pillow(face):
    return Image.fromarray(face.permute(1, 2, 0).numpy())


def tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def test_variants_without_opencv(faces):
    images = faces.images
    made = {name: preprocessing.variant(name, faces) for name in tables.VARIANTS if not by_opencv(name)}
    assert all(x.shape == images.shape and x.dtype == torch.uint8 for x in made.values()) and len(made) == 10
    assert torch.equal(made["ours"], images) and torch.equal(made["no_flip"], images)
    assert torch.equal(made["bgr"], images[:, [2, 1, 0]])
    ramp = preprocessing.Faces(torch.arange(0, 224, 2).expand(1, 3, 112, 112).byte(), ["A"], "")
    assert torch.equal(preprocessing.variant("again", ramp)[0, 0, 0, 1:], torch.arange(1, 223, 2).byte())
    for quality in (50, 95):
        file = io.BytesIO()
        pillow(images[0]).save(file, "JPEG", quality=quality, subsampling=2)
        assert torch.equal(made[f"jpeg{quality}"][0], tensor(Image.open(file)))
    small = pillow(images[0]).resize((16, 16), Image.Resampling.BICUBIC)
    assert torch.equal(made["small_pillow"][0], tensor(small.resize((112, 112), Image.Resampling.BICUBIC)))
    apart = {name: (made[name].float() - made["small_pillow"]).abs().mean() for name in made if name[:5] == "small"}
    assert apart["small_torch_antialias"] < 0.5 < apart["small_torch"]


def test_what_is_missing_is_said_in_one_line(faces, monkeypatch, tmp_path):
    with pytest.raises(cli.UserError, match="--landmarks FILE"):
        preprocessing.variant("ransac", faces)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(cli.MissingData, match="pip install opencv-python-headless=="):
        preprocessing.variant("small_opencv_cubic", faces)
    with pytest.raises(cli.UserError, match="'cubic': known are ours again"):
        preprocessing.main(["--variants", "cubic"])
    options = preprocessing.Command(work=tmp_path, out=tmp_path)
    with pytest.raises(cli.UserError, match="ours is not measured yet"):
        preprocessing.record(options, np.zeros((0, 4)), faces, torch.device("cpu"))


def landmarks(path, five):
    head = "file,prob," + ",".join("abcdefghij")
    path.write_text("\n".join([head, *(f"{n},1," + ",".join(map(str, p.ravel())) for n, p in five.items())]))
    return path


def test_opencvs_fits_move_the_crops_of_faces_that_are_unlike_the_template(faces, tmp_path):
    pytest.importorskip("cv2")
    like = 1.5 * alignment.TEMPLATE_112 + 20  # the template in a photo: every fit is the same
    unlike = like + np.array([[0, 0], [0, 0], [30, 0], [0, 0], [0, 0]])  # a head that is turned: 20 px at the nose
    file = landmarks(tmp_path / "landmarks.csv", dict(zip(faces.names, (like, unlike))))
    for name in ("ransac", "lmeds"):
        same, moved = preprocessing.variant(name, faces, file)
        assert (same.int() - faces.images[0].int()).abs().max() <= 1
        # Without the nose the four others fit exactly, so they end on the template: our crop by those.
        ours = alignment.similarity_transform(unlike[None], alignment.TEMPLATE_112)[0]
        in_crop = like @ ours[:, :2].T + ours[:, 2]
        expected = alignment.align(faces.images[1:], in_crop[None])[0].int()
        assert (moved.int() - expected)[:, 10:-10, 10:-10].abs().max() <= 2  # the rim: repeated here, black there
        assert (moved.int() - faces.images[1].int()).abs().float().mean() > 2


def test_opencvs_enlargements(faces):
    pytest.importorskip("cv2")
    area = preprocessing.variant("small_opencv_area", faces)
    assert torch.equal(area, area[..., ::7, ::7].repeat_interleave(7, 2).repeat_interleave(7, 3))  # pixels are copied
    cubic, torchs = (preprocessing.variant(f"small_{name}", faces).int() for name in ("opencv_cubic", "torch"))
    assert (cubic - torchs).abs().max() <= 1


def test_the_table_has_ours_first_and_changes_against_it(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "RECORDED", tmp_path)
    assert tables.comparison([]) == ""
    rng, same = np.random.default_rng(0), np.arange(400) % 2 == 0
    ours = np.where(same, 0.8, 1.6) + rng.normal(0, 0.25, 400)
    worse = ours + rng.normal(0, 0.4, 400)
    (tmp_path / "arcface").mkdir()
    arrays = {"ransac": worse, "ours": ours, "same": same, "fold": np.arange(400) % 10}
    runs.write_predictions(tmp_path / "arcface" / "preprocessing.npz", arrays)
    made = {"data": {"pairs": 6000, "faces": 7701}, "environment": {"opencv": "5", "pillow": "13", "torch": "2"}}
    (tmp_path / "arcface" / "preprocessing.json").write_text(json.dumps(made))
    _, _, first, second, _, note, *_ = tables.comparison([]).splitlines()
    assert first.startswith("| ours: five-point fit") and first.count("—") == 2
    assert "RANSAC" in second and second.split(" | ")[2].startswith("-") and "7,701 faces" in note


def test_the_committed_record_is_whole_and_ours_is_the_ledgers():
    path = REPOSITORY / "results" / "arcface" / "preprocessing.json"
    if not path.exists():
        pytest.skip("no record yet")
    made, arrays = storage.read_json(path), runs.read_predictions(path.with_suffix(".npz"))
    assert storage.sha256(path.with_suffix(".npz")) == made["distances_sha256"]
    known = storage.read_json(path.parent / "lfw-pairs-given-s0" / "run.json")
    assert made["data"]["fingerprint"] == known["data"]["fingerprint"] and made["weights"] == known["weights"]
    kept = runs.read_predictions(path.parent / "lfw-pairs-given-s0" / "predictions.npz")
    np.testing.assert_allclose(arrays["ours"], kept["distance"], atol=1e-3)
    assert np.array_equal(arrays["same"], kept["same"]) and np.array_equal(arrays["fold"], kept["fold"])
