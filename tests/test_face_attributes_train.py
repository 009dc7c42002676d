"""The attribute experiment end to end: rows, stored activations, resuming, processes, assembly, prediction, sets."""

import dataclasses
import json
import os
import signal
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from facepapers.common import cli, storage
from facepapers.common.data import expressions
from facepapers.common.data import sets as registry
from facepapers.common.evidence import claims, runs, statistics
from facepapers.common.training import checkpoint, precision
from facepapers.common.vision import networks
from facepapers.papers.face_attributes import config, evaluate, figures, method, predict, shared, source, train, tune
from facepapers.papers.face_attributes import data as sets
from tests.conftest import REPOSITORY, one_line_error, python

torch.set_num_threads(1)
FACES = dict(train=48, val=16, test=24, size=24, people=6, trunk_train=48, identity_test=24, seed=5)
OPTIONS = """--device cpu --input-px 16 --widths 8 8 16 24 --features 8 --batch 8 --warmup 1 --views 2
--cache-from 3"""
TINY = OPTIONS.split()


@pytest.fixture
def faces(monkeypatch):
    """Make `--data embedded` a few tiny faces, and the trunk's images as small."""
    monkeypatch.setattr(sets, "EMBEDDED", FACES)
    clear()
    yield
    clear()


def clear():
    sets.load.cache_clear()
    sets.embedded_dataset.cache_clear()


def start(out, row, *words, steps=4, preset="demo"):
    words = ["--preset", preset, "--row", row, *TINY, "--steps", str(steps), "--out", str(out), *words]
    if row == "trunk":
        words = [*words, "--views", "0", "--cache-from", "99"]
    return train.main(words)


def folder(out, row):
    (path,) = (p for p in (out / "face_attributes").iterdir() if f"-{row}-" in p.name)
    return path


def result(out, row):
    path = folder(out, row)
    return storage.sha256(path / "model.safetensors"), runs.read_predictions(path / "predictions.npz")


def same_bits(a, b):
    return a[0] == b[0] and a[1].keys() == b[1].keys() and all(np.array_equal(a[1][k], b[1][k]) for k in a[1])


@pytest.fixture(scope="module")
def trunk_weights(tmp_path_factory):
    """Weights of an untrained tiny IResNet as a user would name them."""
    torch.manual_seed(0)
    net = networks.IResNet((1, 1, 1, 1), (8, 8, 16, 24), features=8, input_px=16)
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, mode="fan_out")
    path = tmp_path_factory.mktemp("weights") / "trunk.safetensors"
    checkpoint.save_weights(path, net)
    return path


def with_weights(path):
    return ["--trunk", storage.sha256(path), "--weights", str(path)]


# ---- Rows, records, resuming, processes


@pytest.mark.parametrize("name", ["fp32", "bf16", "auto"])
def test_the_demo_from_trunk_to_prediction(faces, tmp_path, capsys, name):
    """Every kind of row in small: trunk, readout, starts, separate networks, the chosen pattern, one face predicted."""
    words = TINY[1:]  # the settings must be the same for all rows, so that they find each other
    base = dataclasses.replace(
        config.PRESETS["demo"], input_px=16, widths=(8, 8, 16, 24), features=8, batch=8, warmup=1, steps=4,
        candidates=("linear", "stage3", "stage1"),
    )  # fmt: skip
    assert base.name_of("trunk") != base.name_of("linear") and len(words) > 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(config.PRESETS, "demo", base)
        patch.setattr(config, "TRUNK", dict(steps=5, views=0, cache_from=99))
        patch.setattr(precision, "native", lambda device: True)
        words = ["--device", "cpu", "--preset", "demo", "--precision", name, "--out", str(tmp_path)]
        run = lambda row: train.main([*words, "--row", row])
        rows = ("trunk", "probe2", "linear", "stage3", "stage1", "joint", "best", "chosen")
        found = {row: run(row) for row in rows}
        assert {r["precision"] for r in found.values()} == {"fp32" if name == "fp32" else "bf16"}
        finish_the_demo(found, tmp_path, capsys)


def finish_the_demo(found, tmp_path, capsys):
    frozen = [found[row] for row in ("probe2", "linear", "stage3", "stage1")]
    assert len({r["trunk"]["before"] for r in frozen} | {r["trunk"]["after"] for r in frozen}) == 1
    accuracies = {f"{a}_accuracy_pct" for a in ("age", "gender", "ethnicity", "emotion")}
    assert all(accuracies <= r["metrics"].keys() for row, r in found.items() if row != "trunk")
    assert {"within_over_between_pct", "identity_accuracy_pct"} <= found["joint"]["metrics"].keys()
    assert found["linear"]["metrics"]["identity_accuracy_pct"] == found["trunk"]["metrics"]["identity_accuracy_pct"]
    ratio = {row: found[row]["metrics"]["within_over_between_pct"] for row in ("trunk", "linear", "joint")}
    assert ratio["linear"] == ratio["trunk"] != ratio["joint"], "only a moving trunk changes the identity output"
    for row in ("linear", "stage3", "stage1"):
        arrays = runs.read_predictions(folder(tmp_path, row) / "predictions.npz")
        assert found[row]["metrics"] == pytest.approx(evaluate.measure(arrays), rel=1e-9)
    best, chosen = found["best"], found["chosen"]
    for name, row in best["sources"].items():
        value = {r: found[r]["validation"][name] for r in ("linear", "stage3", "stage1")}
        assert value[row] == max(value.values()), "the validation faces choose"
        assert best["metrics"][f"{name}_accuracy_pct"] == found[row]["metrics"][f"{name}_accuracy_pct"]
    assert chosen["metrics"]["gflop"] <= best["metrics"]["gflop"]
    cells = claims.cells("face_attributes", [{**r, "folder": folder(tmp_path, row)} for row, r in found.items()])
    assert {c.status for c in cells if c.claim["preset"] == "demo" and c.records} >= {"demo only"}
    seeds = [{**r, "folder": folder(tmp_path, row)} for row, r in found.items() for _ in range(3)]  # of equal values
    pictures = figures.draw(seeds, tmp_path / "figures")
    assert pictures and all(p.stat().st_size > 10_000 for p in pictures)
    look_at_one_face(tmp_path, chosen, capsys)


def look_at_one_face(tmp_path, chosen, capsys):
    weights = folder(tmp_path, "chosen") / "model.safetensors"
    dataset = sets.load("embedded")[0]
    index = dataset.index("test")
    net, cfg, attributes, pixels = shared.load_shared(weights, torch.device("cpu"))
    reader = source.Source(
        dataclasses.replace(cfg, views=0), [dataset], list(net.trunk), pixels, 1, torch.device("cpu")
    )
    arrays, _ = evaluate.results(evaluate.scores(net, reader, "test", torch.device("cpu")), [dataset])
    for name in attributes:
        assert 100 * arrays[f"{name}_correct"].mean() == pytest.approx(chosen["metrics"][f"{name}_accuracy_pct"], abs=5)
    Image.fromarray(dataset.images[index[0]].permute(1, 2, 0).numpy()).save(tmp_path / "face.png")
    Image.fromarray(dataset.images[index[0]].permute(1, 2, 0).numpy()).resize((131, 131)).save(tmp_path / "large.png")
    capsys.readouterr()
    words = ["--weights", str(weights), "--device", "cpu", "--whole", "--frame", "aligned"]
    predict.main([str(tmp_path / "face.png"), str(tmp_path / "large.png"), *words])
    said = capsys.readouterr().out
    assert "perceptions, not facts" in said and "emotion" in said
    small, large = (
        json.loads((tmp_path / f"{n}.attributes.json").read_text())["faces"][0]["attributes"] for n in ("face", "large")
    )
    assert sum(small["emotion"]["probabilities"].values()) == pytest.approx(1, abs=1e-3)
    assert small["gender"]["probability"] == pytest.approx(large["gender"]["probability"], abs=0.2), (
        "images of other sizes are brought to the trunk's"
    )
    evaluate.main(["--weights", str(weights), "--data", "embedded", "--device", "cpu"])
    assert "emotion, accuracy" in capsys.readouterr().out


def test_records_hold_no_label_and_no_image(faces, tmp_path, trunk_weights):
    start(tmp_path, "stage4", *with_weights(trunk_weights))
    arrays = result(tmp_path, "stage4")[1]
    assert {p.name for p in folder(tmp_path, "stage4").iterdir()} == {
        "run.json", "history.csv", "predictions.npz", "model.safetensors",
    }  # fmt: skip
    assert all(a.ndim == 1 and a.dtype.kind in "fb" for a in arrays.values())
    assert {k.split("_", 1)[-1] for k in arrays} == {"correct", "recall", "error_years", "gflop"}


@pytest.mark.parametrize("words", [["--statistics", "batch"], ["--statistics", "frozen", "--averaging", "0.9"]])
def test_an_interrupted_run_resumes_to_the_same_bits(faces, tmp_path, trunk_weights, monkeypatch, words):
    words = [*words, *with_weights(trunk_weights)]
    start(tmp_path / "whole", "stage3", *words, steps=6)
    real, calls = method.joint_loss, []

    def interrupting(*args):
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*args)

    monkeypatch.setattr(method, "joint_loss", interrupting)
    with pytest.raises(cli.Interrupted, match="saved at step 4 of 6"):
        start(tmp_path / "cut", "stage3", *words, steps=6)
    start(tmp_path / "cut", "stage3", *words, steps=6)
    assert len(calls) == 6, "two steps were left to do"
    assert same_bits(result(tmp_path / "whole", "stage3"), result(tmp_path / "cut", "stage3"))
    start(tmp_path / "other", "stage3", *words, "--seed", "1", steps=6)
    assert not same_bits(result(tmp_path / "whole", "stage3"), result(tmp_path / "other", "stage3"))


DRIVER = f"""
import sys, torch
torch.set_num_threads(1)
from facepapers.papers.face_attributes import data, train
from facepapers.common import cli
data.EMBEDDED.update({FACES})
cli.entry(train.main, sys.argv[1:])
"""


@pytest.mark.parametrize(("row", "statistics"), [("stage3", "batch"), ("stage1", "frozen")])
def test_two_processes_compute_what_one_does(faces, tmp_path, trunk_weights, row, statistics):
    words = ["--statistics", statistics, *with_weights(trunk_weights)]
    start(tmp_path / "one", row, *words)
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", driver, "--preset", "demo"]
    options = ["--row", row, *TINY, "--steps", "4", "--out", tmp_path / "two", *words]
    done = python(*command, *options, env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    # Weights are not compared: a bias below a batch's own mean has no gradient but rounding, which AdamW blows up.
    one, two = (pd.read_csv(folder(tmp_path / k, row) / "history.csv") for k in ("one", "two"))
    assert set(one) >= {"loss", "gradient", "age", "emotion"}
    np.testing.assert_allclose(one, two, rtol=2e-4)
    years = [result(tmp_path / k, row)[1]["age_error_years"] for k in ("one", "two")]
    np.testing.assert_allclose(*years, atol=0.3)


# ---- Inputs of a step


def make_source(cfg, path, first, **options):
    net = networks.load_identity_net(path)
    stages = method.split(net)
    return source.Source(cfg, sets.load("embedded"), stages, net.pixels, first, torch.device("cpu"), **options)


TINY_CONFIG = dataclasses.replace(config.PRESETS["demo"], input_px=16, batch=8, views=2, cache_from=3)


@pytest.mark.parametrize(("first", "pooled"), [(3, False), (6, False), (3, True), (6, True)])
def test_stored_activations_are_the_computed_ones(faces, trunk_weights, first, pooled):
    kept = make_source(TINY_CONFIG, trunk_weights, first, pooled=pooled)
    plain = make_source(dataclasses.replace(TINY_CONFIG, cache_from=99), trunk_weights, first, pooled=pooled)
    plain.stored = False
    assert kept.stored
    for step in (0, 5, 7, 13):
        a, b = kept.batch(step, slice(0, 8)), plain.batch(step, slice(0, 8))
        assert a[0].shape == b[0].shape and torch.allclose(a[0], b[0], rtol=2e-3, atol=2e-3)
        assert not torch.allclose(a[0][0], a[0][1], atol=1e-2)
        assert all(torch.equal(a[1][name], b[1][name]) for name in a[1])
    rows = torch.arange(5)
    assert torch.allclose(kept.inputs(0, rows, split="val"), plain.inputs(0, rows, split="val"), rtol=2e-3, atol=2e-3)


def test_activations_are_stored_in_pieces_of_one_size(faces, trunk_weights, monkeypatch):
    """Each size is compiled anew with COMPILE=1; the last piece therefore begins before its predecessor ends."""
    monkeypatch.setattr(source, "CHUNK", 7)
    sizes = []
    forward = source.Outputs.forward
    monkeypatch.setattr(source.Outputs, "forward", lambda self, x: sizes.append(len(x)) or forward(self, x))
    cfg = dataclasses.replace(TINY_CONFIG, rotation_deg=7.0)  # stored by no other test
    kept = make_source(cfg, trunk_weights, 3)
    kept.prepare()
    assert set(sizes) == {7} and all(len(pool) % 7 for pool in kept.pools)
    for split in ("train", "val", "test"):
        rows = torch.arange(len(kept.datasets[0].index(split)))
        x = kept._pictures(0, kept.datasets[0].index(split), 1 if split == "train" else None)
        found = kept.inputs(0, rows, 1 if split == "train" else None, split)
        assert torch.allclose(found, kept._frozen(x, 2)[-1], rtol=2e-3, atol=2e-3), split


def test_the_untrained_trunk_stores_no_maps(faces, trunk_weights):
    own = dict(cache_from=config.preset("short", "random").cache_from)
    reader = make_source(dataclasses.replace(TINY_CONFIG, **own), trunk_weights, 6)
    assert reader.stored and reader._kinds() == ["averages"]


def test_another_trunk_or_view_is_another_file(faces, trunk_weights):
    one = make_source(TINY_CONFIG, trunk_weights, 3)
    stages = method.split(networks.IResNet((1, 1, 1, 1), (8, 8, 16, 24), 8, input_px=16).eval())
    other = source.Source(TINY_CONFIG, one.datasets, stages, one.pixels, 3, torch.device("cpu"))
    turned = make_source(dataclasses.replace(TINY_CONFIG, rotation_deg=9.0), trunk_weights, 3)
    known = [(s, split, view) for s in (one, other, turned) for split in ("train", "val") for view in (0, None)]
    assert len({s._path(0, split, view, "stage2") for s, split, view in known}) == 12


def test_batches_pass_over_every_face_in_an_order_that_depends_on_the_step_alone(faces, trunk_weights):
    reader = make_source(TINY_CONFIG, trunk_weights, 6)
    seen = [reader._rows(0, step) for step in range(12)]
    for turn in (0, 1):
        rows = torch.cat([r for r, _ in seen[6 * turn : 6 * turn + 6]])
        assert sorted(rows.tolist()) == list(range(48)) and {v for _, v in seen[6 * turn : 6 * turn + 6]} == {turn}
    assert torch.equal(seen[3][0], make_source(TINY_CONFIG, trunk_weights, 6)._rows(0, 3)[0])
    few = make_source(dataclasses.replace(TINY_CONFIG, labels=0.5), trunk_weights, 6)
    assert len({i for step in range(9) for i in few._rows(0, step)[0].tolist()}) == 24


def test_a_view_is_a_function_of_its_number(faces):
    (dataset,) = sets.load("embedded")
    index, cfg = torch.arange(5), TINY_CONFIG
    views = [sets.view_parameters(cfg, 88, view, 0) for view in (0, 0, 1)]
    a, b, c = (sets.pictures(dataset, index, cfg, torch.device("cpu"), v) for v in views)
    assert a.shape == (5, 3, 16, 16) and a.min() >= 0 and a.max() <= 255
    assert torch.equal(a, b) and not torch.allclose(a, c, atol=5)
    alone = sets.pictures(dataset, index[2:3], cfg, torch.device("cpu"), views[0])
    assert torch.allclose(alone[0], a[2], atol=1e-3), "a face's view does not depend on the batch it comes in"


def test_a_full_disk_is_told_before_it_happens(tmp_path):
    with pytest.raises(cli.UserError) as error:
        source.refuse_full_disk(tmp_path / "x.npy", 2**60)
    one_line_error(error, "GiB", "--cache-from 99")


def test_a_full_disk_leaves_no_activations_behind(faces, trunk_weights, monkeypatch):
    monkeypatch.setattr(source.shutil, "disk_usage", lambda folder: SimpleNamespace(free=2**10))
    kept = make_source(dataclasses.replace(TINY_CONFIG, rotation_deg=6.0), trunk_weights, 3)
    folder = kept._path(0, "train", 0, "stage2").parent
    before = set(folder.glob("*")) if folder.exists() else set()
    with pytest.raises(cli.UserError) as error:
        kept.prepare()
    one_line_error(error, "GiB", "--cache-from 99")
    assert set(folder.glob("*")) == before


def test_frames_bring_the_median_points_onto_the_template():
    from facepapers.common.vision.alignment import TEMPLATE_112

    for name in sets.FRAMES:
        frame = sets.frame_of(name, 80)
        points = torch.tensor(sets.FRAMES[name]) * 80 - 0.5
        found = torch.tensor(TEMPLATE_112, dtype=torch.float32) @ frame[:, :2].T + frame[:, 2]
        assert (found - points).norm(dim=1).max() < 4, "a similarity meets five points in the least squares"
    whole = sets.frame_of("rafdb", 100)
    corner = torch.tensor([[-0.5, -0.5], [111.5, 111.5]]) @ whole[:, :2].T + whole[:, 2]
    assert corner.flatten().tolist() == pytest.approx([-0.5, -0.5, 99.5, 99.5])


# ---- Sets and splits


class FakePack:
    """A prepared set of made-up faces."""

    def __init__(self, n, side, **arrays):
        self.arrays = {"name": np.array([f"face_{i}.png" for i in range(n)]), **arrays}
        self.meta, self.n, self.side = {"fingerprint": "00"}, n, side

    def decode(self, size=None, channels=3, **_):
        gen = torch.Generator().manual_seed(self.n)
        side = size or self.side
        return torch.randint(256, (self.n, channels, side, side), generator=gen, dtype=torch.uint8)


@pytest.fixture
def two_sets(tmp_path, monkeypatch):
    """UTKFace of 60 and FERPlus of 40 made-up faces."""
    rng = np.random.default_rng(0)
    votes = np.zeros((40, len(expressions.VOTES)), np.uint8)
    votes[np.arange(40), np.arange(40) % 8] = 10
    votes[7] = 1  # no majority: left out
    packs = {
        "utkface": FakePack(60, 20, age=rng.integers(1, 100, 60).astype(np.uint8), gender=np.arange(60) % 2,
                            ethnicity=np.arange(60) % 5),
        "ferplus": FakePack(40, 12, split=np.repeat([0, 1, 2], [24, 8, 8]), votes=votes),
    }  # fmt: skip
    monkeypatch.setattr(registry, "ensure", packs.__getitem__)
    monkeypatch.setattr(sets, "SPLITS", tmp_path)
    np.savez(tmp_path / "utkface.npz", **sets.new_split(packs["utkface"].arrays["name"], np.arange(60)))
    np.savez(tmp_path / "ferplus.npz", left_out=sets.hashes(packs["ferplus"].arrays["name"][:2]))
    clear()
    yield packs
    clear()


def test_two_sets_join_and_missing_labels_stay_missing(two_sets):
    datasets = sets.load("utkface+ferplus")
    assert list(sets.attributes_of(datasets)) == ["age", "gender", "ethnicity", "emotion"]
    utk, fer = datasets
    assert [len(utk.index(s)) for s in ("train", "val", "test")] == [41, 7, 12], "0.1 + 0.2 is a little over 0.3"
    assert fer.images.shape[1] == 1 and [len(fer.index(s)) for s in ("train", "val", "test")] == [21, 8, 8]
    assert 7 not in fer.index("train") and not {0, 1} & set(fer.index("train").tolist()), "no label; near-duplicates"
    assert source.label_of(fer, "age", torch.arange(3)).tolist() == [-1, -1, -1]


def test_a_batch_of_two_sets_trains_each_attribute_on_its_own_faces(two_sets, tmp_path, trunk_weights):
    words = ["--data", "utkface+ferplus", *with_weights(trunk_weights)]
    written = start(tmp_path, "stage4", *words)
    arrays = result(tmp_path, "stage4")[1]
    assert len(arrays["age_correct"]) == 12 and len(arrays["emotion_correct"]) == 8
    assert np.isfinite(list(written["metrics"].values())).all()
    assert written["metrics"]["emotion_less_gender_pct"] == pytest.approx(
        written["metrics"]["emotion_accuracy_pct"] - written["metrics"]["gender_accuracy_pct"]
    )
    assert sum(cell["n"] for cell in written["groups"]["age"]["ethnicity"].values()) == 12
    assert "age" not in written["groups"]["emotion"]


@pytest.mark.parametrize(
    ("name", "arrays", "attributes"),
    [
        ("fairface", dict(split=np.repeat([0, 1], [40, 20]), age=np.arange(60) % 9, gender=np.arange(60) % 2,
                          ethnicity=np.arange(60) % 7), ["age", "gender", "ethnicity"]),
        ("rafdb", dict(split=np.repeat([0, 1], [40, 20]), label=np.arange(60) % 7), ["emotion"]),
        ("celeba", dict(split=np.repeat([0, 1, 2], 20), attributes=np.arange(60 * 40).reshape(60, 40) // 3 % 2),
         ["gender", "smiling", "hat", "young"]),
    ],
)  # fmt: skip
def test_the_other_sets(monkeypatch, name, arrays, attributes):
    monkeypatch.setattr(registry, "ensure", lambda _: FakePack(60, 64, **arrays))
    clear()
    (dataset,) = sets.load(name)
    assert list(dataset.attributes) == attributes
    train_, val, test = (set(dataset.index(s).tolist()) for s in ("train", "val", "test"))
    assert train_ and val and test and not (train_ & val or train_ & test or val & test)
    assert len(train_ | val | test) == 60 and len(test) == 20
    clear()


def test_a_split_depends_on_names_alone_and_keeps_near_duplicates_together():
    names = np.array([f"{i}.jpg" for i in range(500)])
    groups = np.arange(500)
    groups[100:120] = 100
    first = sets.new_split(names, groups)
    order = np.random.default_rng(0).permutation(500)
    again = sets.new_split(names[order], np.unique(groups[order], return_inverse=True)[1])
    assert all(np.array_equal(first[k], again[k]) for k in first)
    own = sets.hashes(names)
    where = np.where(np.isin(own, first["test"]), 2, np.where(np.isin(own, first["val"]), 1, 0))
    assert len(set(where[100:120])) == 1
    assert abs((where == 2).mean() - 0.2) < 0.05 and abs((where == 1).mean() - 0.1) < 0.05


def test_the_committed_splits_are_disjoint_hashes():
    with np.load(sets.SPLITS / "utkface.npz") as stored:
        test, val = stored["test"], stored["val"]
    assert test.dtype == np.uint64 and not set(test.tolist()) & set(val.tolist())
    assert abs(len(test) / 23_702 - 0.2) < 0.005 and abs(len(val) / 23_702 - 0.1) < 0.005


# ---- Bad input: one line each


def test_an_attribute_with_one_class_is_one_line(two_sets):
    two_sets["utkface"].arrays["gender"] = np.zeros(60, int)
    with pytest.raises(cli.UserError) as error:
        sets.load("utkface+ferplus")
    one_line_error(error, "gender", "one class only")


def test_two_sets_with_other_classes_are_one_line(two_sets, monkeypatch):
    other = FakePack(60, 64, split=np.repeat([0, 1], [40, 20]), age=np.arange(60) % 9, gender=np.arange(60) % 2,
                     ethnicity=np.arange(60) % 7)  # fmt: skip
    monkeypatch.setattr(registry, "ensure", {**two_sets, "fairface": other}.__getitem__)
    with pytest.raises(cli.UserError) as error:
        sets.load("utkface+fairface")
    one_line_error(error, "--data", "age")


def test_a_set_with_other_names_is_one_line(two_sets):
    with pytest.raises(cli.UserError) as error:
        sets.stored_split("utkface", [f"other_{i}" for i in range(60)])
    one_line_error(error, "file names are not in this set")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--row", "stage9"], "unknown row 'stage9'"),
        (["--row", "stage2", "--cuts", "layer2.0.conv1"], "inside the residual block layer2.0"),
        (["--row", "stage5", "--cuts", "layer2.0", "layer3.0"], "cut into 3 stages"),
        (["--row", "stage2", "--batch", "999"], "only 48 training faces"),
        (["--row", "stage2", "--steps", "0"], "--steps 0"),
        (["--row", "stage2", "--statistics", "none"], "--statistics none"),
        (["--row", "stage2", "--trunk", "mine"], "--trunk mine"),
        (["--row", "stage2", "--views", "0"], "only fixed views can be cached"),
        (["--row", "stage2", "--input-px", "32"], "takes faces of 16 px"),
        (["--row", "stage2", "--data", "embeded"], "no set with attributes"),
        (["--row", "stage2", "--stepps", "3"], "unknown setting"),
        (["--row", "chosen"], "first run --row linear"),
        (["--row", "chosen", "--candidates", "stage3"], "--candidates"),
        (["--row", "trunk", "--data", "utkface"], "only the demo trains"),
    ],
)
def test_bad_settings_are_one_line(faces, tmp_path, trunk_weights, words, said):
    with pytest.raises(cli.UserError) as error:
        start(tmp_path, words[1], *with_weights(trunk_weights), *words[2:])
    one_line_error(error, said)


def test_missing_or_other_weights_are_one_line(faces, tmp_path, trunk_weights):
    with pytest.raises(cli.MissingData) as error:
        start(tmp_path, "stage2", "--trunk", "0" * 64)
    one_line_error(error, "--weights")
    with pytest.raises(cli.MissingData) as error:
        start(tmp_path, "stage2")
    one_line_error(error, "--row trunk")
    with pytest.raises(cli.UserError) as error:
        predict.main([str(tmp_path / "x.png"), "--whole", "--weights", str(trunk_weights)])
    one_line_error(error, "no shared attribute network")


def test_an_unknown_frame_is_one_line(tmp_path):
    with pytest.raises(cli.UserError) as error:
        predict.main([str(tmp_path / "x.png"), "--whole", "--frame", "lfpw"])
    one_line_error(error, "--frame lfpw", "utkface")


# ---- Metrics, tuning, claims


def test_metrics_by_hand():
    p = {"age_correct": np.array([1, 0, 1, 0], bool), "gender_correct": np.array([1, 1, 1, 0], bool),
         "age_error_years": np.array([1.0, 3, 2, 6]), "emotion_correct": np.array([1, 0], bool),
         "gender_recall": np.array([1.0, 0.5]), "gflop": np.full(4, 0.7)}  # fmt: skip
    found = evaluate.measure(p)
    assert (found["age_accuracy_pct"], found["age_mae_years"], found["gender_balanced_pct"]) == (50, 3, 75)
    assert found["age_less_gender_pct"] == -25 and found["emotion_less_gender_pct"] == pytest.approx(-25)
    assert found["age_less_gender_logit"] == pytest.approx(np.log(2.5 / 2.5) - np.log(3.5 / 1.5))
    assert found["gflop"] == pytest.approx(0.7)


def test_faces_of_two_sets_vary_about_their_own_accuracy():
    """Sets of 300 and 500 faces, accuracies of 90 and 40 %: the squares of the two standard errors add."""
    one, other = np.arange(300) < 270, np.arange(500) < 200
    p = {"emotion_correct": one, "gender_correct": other}
    found = statistics.level(evaluate.METRICS["emotion_less_gender_pct"], [p])
    expected = 1.645 * 100 * np.hypot(np.sqrt(0.9 * 0.1 / 300), np.sqrt(0.4 * 0.6 / 500))
    assert found.mean == pytest.approx(50) and found.half == pytest.approx(expected, rel=0.005)


def test_ages_are_counted_in_groups_and_years():
    years = torch.tensor([2, 3, 35, 80])
    attribute = sets.Attribute("age", sets.AGE_CLASSES, True)
    hit, own, error = evaluate.hits_and_errors(
        attribute, method.soft_years(torch.tensor([2, 11, 38, 75]), 100, 0), years
    )
    assert hit.tolist() == [True, False, True, True] and own.tolist() == [0, 1, 4, 8]
    assert error.tolist() == pytest.approx([0, 8, 3, 5])


def test_tuning_runs_each_rate_and_names_the_best(faces, tmp_path, capsys, monkeypatch, trunk_weights):
    small = dataclasses.replace(
        config.PRESETS["demo"], input_px=16, batch=8, steps=6, trunk=storage.sha256(trunk_weights)
    )
    monkeypatch.setitem(config.PRESETS, "demo", small)
    words = ["--preset", "demo", "--rows", "linear", "--rates", "1e-3", "1e-2", "--weights", str(trunk_weights)]
    tune.main([*words, "--share", "0.5", "--out", str(tmp_path), "--device", "cpu", "--table", str(tmp_path / "t.csv")])
    table = pd.read_csv(tmp_path / "t.csv")
    assert table.rate.tolist() == [1e-3, 1e-2] and set(table.steps) == {3} and table.best.sum() == 1
    assert table["mean"][table.best].item() == table["mean"].max() and "0.001" in capsys.readouterr().out
    assert len(list((tmp_path / "face_attributes").iterdir())) == 2


def test_claims_can_all_be_computed_from_nothing():
    cells = claims.cells("face_attributes", [])
    assert {c.status for c in cells} == {"data missing"} and not [c for c in cells if c.kind == "level"]
    shapes = {c.claim["what"][:2] for c in cells if c.kind == "contrast"}
    assert {f"S{k}" for k in range(1, 8)} <= shapes


def test_a_preset_on_two_sets_needs_both(monkeypatch, capsys):
    from facepapers.common.tools import reproduce

    monkeypatch.setattr(registry, "available", lambda name: name != "ferplus")
    with pytest.raises(cli.MissingData) as error:
        reproduce.choose(config.PLAN, "short", None)
    one_line_error(error, "make data-utkface` and `make data-ferplus")
    assert reproduce.choose(config.PLAN, "auto", None) == ("demo", "embedded")
    monkeypatch.setattr(registry, "available", lambda name: True)
    assert reproduce.choose(config.PLAN, "short", None) == ("short", "utkface+ferplus")


def test_other_weights_are_no_trunk(tmp_path):
    checkpoint.save_weights(tmp_path / "w.safetensors", torch.nn.Linear(3, 3))
    with pytest.raises(cli.UserError) as error:
        networks.load_identity_net(tmp_path / "w.safetensors")
    one_line_error(error, "w.safetensors", "another architecture")
