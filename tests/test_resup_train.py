"""The ReSup experiment end to end: flips found, truth untouched, equal starts, resuming, two processes, bad input."""

import dataclasses
import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from facepapers.common import cli, storage
from facepapers.common.data import sets as data_sets
from facepapers.common.evidence import claims, jobs, runs
from facepapers.common.training import checkpoint, precision
from facepapers.papers.resup import config, evaluate, figures, fitting, method, nets, noise, tables, train
from facepapers.papers.resup import data as sets
from tests.conftest import REPOSITORY, one_line_error, python

torch.set_num_threads(1)
CLASSES = len(sets.SHOWN)
FACES = dict(train=96, valid=24, test=40, size=24, seed=7)
OPTIONS = "--device cpu --precision fp32 --width 8 --units 1 1 --input-px 16 --batch 24 --epochs 3 --warmup 1"
TINY = OPTIONS.split()
SMALL = "--device cpu --precision fp32 --width 16 --input-px 24 --epochs 5 --warmup 4"


@pytest.fixture
def faces(monkeypatch):
    """Make `--data embedded` a hundred tiny faces."""
    monkeypatch.setattr(sets, "EMBEDDED", FACES)
    sets.load.cache_clear()
    yield sets.load("embedded")
    sets.load.cache_clear()


def start(out, row="resup", *words):
    return train.main(["--preset", "demo", "--row", row, *TINY, "--out", str(out), *words])


def result(out):
    folder = only_run(out)
    return storage.sha256(folder / "model.safetensors"), runs.read_predictions(folder / "predictions.npz")


def only_run(out):
    (path,) = (out / "resup").glob("*/run.json")
    return path.parent


def same_bits(a, b):
    return a[0] == b[0] and a[1].keys() == b[1].keys() and all(np.array_equal(a[1][k], b[1][k]) for k in a[1])


# ---- The claim


def test_the_weights_find_the_flipped_labels(tmp_path):
    """The demo in small, in the arithmetic that every processor has: most flipped labels are told from clean ones."""
    found = train.main(["--preset", "demo", *SMALL.split(), "--out", str(tmp_path)])["metrics"]
    assert found["weight_auc_pct"] > 90 and found["weight_clean_pct"] > found["weight_flipped_pct"] + 40
    assert found["accuracy_mean_pct"] > 80, "chance is 20"


def test_a_last_batch_that_is_filled_up_gives_the_same_probabilities(faces, monkeypatch):
    cfg = dataclasses.replace(config.preset("demo"), width=8, units=(1, 1), input_px=16, precision="fp32")
    torch.manual_seed(0)
    peers, pictures = config.build_peers(cfg, CLASSES), sets.one_split(faces, 2).images
    sizes = []
    peers.register_forward_hook(lambda m, i, o: sizes.append(o.shape[1]))
    alone = evaluate.probabilities(peers, pictures, cfg, torch.device("cpu"))
    monkeypatch.setenv("COMPILE", "1")
    torch.testing.assert_close(evaluate.probabilities(peers, pictures, cfg, torch.device("cpu")), alone)
    assert sizes == [FACES["test"], evaluate.CHUNK]


def test_probabilities_are_means_over_crops_and_mirror_images(faces):
    cfg = dataclasses.replace(config.preset("demo"), width=8, units=(1,), input_px=24, precision="fp32")
    torch.manual_seed(0)
    peers, pictures = config.build_peers(cfg, CLASSES).eval(), sets.one_split(faces, 2).images
    of = lambda **more: evaluate.probabilities(peers, pictures, dataclasses.replace(cfg, **more), torch.device("cpu"))
    whole, part = of(), of(test_scales=(0.5,))
    assert not torch.allclose(whole, part, atol=1e-3)
    middle = pictures[:, :, 6:18, 6:18].float()
    enlarged = torch.nn.functional.interpolate(middle, size=24, mode="bilinear")
    assert (sets.plain(pictures, cfg, 0.5) - enlarged)[:, :, 2:-2, 2:-2].abs().max() < 1, "the central half"
    mirrored = evaluate.forward(peers, pictures.float().flip(3), cfg).softmax(-1)
    torch.testing.assert_close(of(flip_test=True), (whole + mirrored) / 2)
    torch.testing.assert_close(of(test_scales=(0.5, 1.0)), (whole + part) / 2)


# ---- Records, resuming, processes


@pytest.mark.parametrize("row", list(config.ROWS))
def test_a_record_gives_its_metrics_again_and_holds_no_picture(faces, tmp_path, row):
    written = start(tmp_path, row)
    folder = only_run(tmp_path)
    arrays = runs.read_predictions(folder / "predictions.npz")
    assert written["metrics"] == pytest.approx(evaluate.measure(arrays), rel=1e-9)
    assert {"accuracy_pct", "accuracy_validation_chosen_pct", "weight_auc_pct", "balanced_pct"} <= written[
        "metrics"
    ].keys()
    assert ("accuracy_mean_pct" in written["metrics"]) == (row != "ce")
    assert all(a.ndim == 1 and a.dtype.kind in "fbu" for a in arrays.values())
    assert (np.diff(arrays["label"].astype(int)) >= 0).all(), "ordered by class, so no list of the set's labels"
    assert {p.name for p in folder.iterdir()} == {"run.json", "history.csv", "predictions.npz", "model.safetensors"}
    assert start(tmp_path, row) == storage.read_json(folder / "run.json"), "a finished run is read back"


def test_the_flip_list_is_saved_and_is_the_draw(faces, tmp_path):
    start(tmp_path)
    arrays = result(tmp_path)[1]
    given = noise.symmetric(arrays["train_label"], config.preset("demo").noise, CLASSES, 0)
    assert (arrays["given"] == given).all() and (arrays["flip"] == (given != arrays["train_label"])).all()
    assert 0.25 < arrays["flip"].mean() < 0.55


@pytest.mark.parametrize("row", ["resup", "resup_plus", "resup_bayes", "bayes"])
def test_an_interrupted_run_resumes_to_the_same_bits(faces, tmp_path, monkeypatch, row):
    """Stopped in the middle of an epoch whose weights come from the last one's noise model."""
    start(tmp_path / "whole", row)
    real, calls = train.row_loss, []

    def interrupting(*args):
        calls.append(1)
        if len(calls) == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*args)

    monkeypatch.setattr(train, "row_loss", interrupting)
    with pytest.raises(cli.Interrupted, match="saved at step 6 of 12"):
        start(tmp_path / "cut", row)
    start(tmp_path / "cut", row)
    assert len(calls) == 12, "six steps were left to do"
    assert same_bits(result(tmp_path / "whole"), result(tmp_path / "cut"))
    start(tmp_path / "other", row, "--seed", "1")
    assert not same_bits(result(tmp_path / "whole"), result(tmp_path / "other"))


@pytest.mark.parametrize("row", ["resup", "resup_plus", "resup_bayes", "bayes", "ce_plus", "coteaching", "ce_two"])
def test_a_row_continues_from_the_warm_up_of_another_to_the_same_bits(faces, tmp_path, monkeypatch, row):
    start(tmp_path / "alone", row)
    start(tmp_path / "shared", "own")
    (only_run(tmp_path / "shared") / "run.json").unlink()
    real, calls = train.row_loss, []
    monkeypatch.setattr(train, "row_loss", lambda *args: calls.append(1) or real(*args))
    start(tmp_path / "shared", row)
    assert len(calls) == 8, "one epoch of three is shared"
    assert same_bits(result(tmp_path / "alone"), result(tmp_path / "shared"))
    one, other = ((only_run(tmp_path / k) / "history.csv").read_text() for k in ("alone", "shared"))
    assert one == other
    start(tmp_path / "shared", row, "--lr", "0.01")
    assert len(calls) == 8 + 12, "another learning rate is another warm-up"


def test_a_warm_up_in_another_precision_is_used_and_said(faces, tmp_path, monkeypatch, capsys):
    """With precision auto; one that is forced trains its own."""
    monkeypatch.setattr(precision, "native", lambda device: True)
    start(tmp_path, "ce_two", "--precision", "auto")
    monkeypatch.setattr(precision, "native", lambda device: False)
    real, calls = train.row_loss, []
    monkeypatch.setattr(train, "row_loss", lambda *args: calls.append(1) or real(*args))
    capsys.readouterr()
    assert start(tmp_path, "resup", "--precision", "auto")["precision"] == "fp32"
    said = [line for line in capsys.readouterr().err.splitlines() if "resuming" in line]
    one_line_error("\n".join(said), "warmup-", "computed in bf16 so far", "in fp32")
    assert len(calls) == 8, "one epoch of three is shared"
    start(tmp_path, "resup")
    assert len(calls) == 8 + 12 and "computed in" not in capsys.readouterr().err


def test_weights_are_judged_in_the_precision_of_their_run(faces, tmp_path, monkeypatch):
    for native, used in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(precision, "native", lambda device, native=native: native)
        start(tmp_path / used, "ce", "--precision", "auto")
        _, cfg, _ = evaluate.load(only_run(tmp_path / used) / "model.safetensors", torch.device("cpu"))
        assert cfg.precision == used


def test_a_damaged_warm_up_is_one_line(faces, tmp_path):
    start(tmp_path, "ce_two")
    (kept,) = (tmp_path / "resup").glob("warmup-*/state.pt")
    kept.write_bytes(kept.read_bytes()[:1000])
    with pytest.raises(cli.UserError, match=f"{kept.parent.name}/state.pt: cannot resume .* delete it"):
        start(tmp_path, "resup")


DRIVER = f"""
import sys, torch
torch.set_num_threads(1)
from facepapers.papers.resup import data, train
from facepapers.common import cli
data.EMBEDDED.update({FACES})
cli.entry(train.main, sys.argv[1:])
"""


@pytest.mark.parametrize("row", ["resup", "coteaching"])
def test_two_processes_compute_what_one_does(faces, tmp_path, row):
    """Little learning, so that rounding is not magnified; the networks' beliefs are compared, not their verdicts."""
    words = ["--lr", "0.005", "--forget-ramp", "1"]
    start(tmp_path / "one", row, *words)
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", driver]
    options = ["--preset", "demo", "--row", row, *TINY, *words, "--out", tmp_path / "two"]
    done = python(*command, *options, env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = (result(tmp_path / k)[1] for k in ("one", "two"))
    np.testing.assert_allclose(one["similarity"], two["similarity"], atol=2e-3)
    np.testing.assert_allclose(one["weight"], two["weight"], atol=2e-2)
    assert one["similarity"].std() > 0.02


# ---- Equal conditions


def fitted(row, faces, tmp_path, **changes):
    """Networks and steps of a row after a few epochs, without a record."""
    cfg = dataclasses.replace(config.preset("demo", row), **TINY_SETTINGS | changes)
    splits = sets.splits(faces, cfg)
    peers = config.build_peers(cfg, CLASSES)
    run = runs.Run("resup", row, cfg, cfg, tmp_path)
    job = jobs.begin(run, cfg, torch.device("cpu"))
    state, steps = train.fit(job, peers, splits)
    return peers.members, state.noise_models, steps


TINY_SETTINGS = dict(precision="fp32", width=8, units=(1, 1), input_px=16, batch=24, epochs=2, warmup=1)


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_one_network_alone_is_the_first_of_two(faces, tmp_path):
    (alone,), _, _ = fitted("ce", faces, tmp_path)
    (first, second), _, _ = fitted("ce_two", faces, tmp_path)
    assert equal(alone, first) and not equal(first, second)


def test_rows_differ_in_nothing_until_the_warm_up_is_over(faces, tmp_path):
    same = dict(epochs=1, warmup=1)
    base = fitted("ce_two", faces, tmp_path, **same)[0]
    for row in config.ROWS.keys() - {"ce", "ce_two"}:
        assert all(map(equal, base, fitted(row, faces, tmp_path, **same)[0])), row
    later = fitted("ce_two", faces, tmp_path, epochs=2)[0]
    for row in ("own", "swapped", "resup", "coteaching", "oracle", "resup_bayes", "bayes"):
        assert not equal(later[0], fitted(row, faces, tmp_path / "later", epochs=2, forget_ramp=1)[0][0]), row


@pytest.mark.parametrize(("row", "kept"), [("resup", False), ("resup_bayes", False), ("bayes", True)])
def test_only_the_row_that_trains_on_distributions_keeps_them(faces, tmp_path, row, kept):
    noise_models = fitted(row, faces, tmp_path)[1]
    assert [noise_model.labels is not None for noise_model in noise_models] == [kept, kept]
    assert ("0.labels" in noise_models.state_dict()) == kept


def test_own_and_swapped_weights_reach_the_right_network(faces):
    """The weights that a step uses, from noise_models that disagree by construction."""
    cfg = dataclasses.replace(config.preset("demo", "swapped"), **TINY_SETTINGS)
    noise_models = torch.nn.ModuleList([method.NoiseModel(10, 8) for _ in range(2)])
    for noise_model, level in zip(noise_models, (0.2, 0.7), strict=True):
        noise_model.table.fill_(level)
        noise_model.weight.fill_(level / 2)
    logits, labels, index = torch.randn(2, 4, 8), torch.arange(4), torch.tensor([0, 1, 2, 9])
    flip = torch.arange(10) > 7
    step = logits, labels, index, noise_models, 5, flip
    weights = lambda **more: train.row_weights(dataclasses.replace(cfg, **more), *step)
    assert weights()[:, 0].tolist() == pytest.approx([0.7, 0.2])
    assert weights(weighting="own")[:, 0].tolist() == pytest.approx([0.2, 0.7])
    assert weights(weights_from="epoch")[:, 0].tolist() == pytest.approx([0.35, 0.1])
    assert (weights(weighting="none") == 1).all()
    assert weights(weighting="oracle").tolist() == [[1, 1, 1, 0]] * 2


def test_labels_by_bayes_rule_stay_until_the_networks_have_caught_up():
    """What is believed of four samples, epoch by epoch: the warm-up's outputs without their flips, then later ones."""
    cfg = dataclasses.replace(config.preset("demo", "bayes"), warmup=2, judge_again=3)
    noise_models = torch.nn.ModuleList([method.NoiseModel(4, 3, keep_labels=True) for _ in range(2)])
    given, logits = torch.tensor([0, 1, 2, 0]), [torch.randn(2, 4, 3) for _ in range(6)]
    labels = []
    for epoch in range(1, 5):
        rate = fitting.update_by_bayes(cfg, noise_models, logits[epoch], given, epoch)["rate"]
        labels.append(noise_models[0].labels.clone())
        assert torch.equal(noise_models[0].labels, noise_models[1].labels), "one judgement by both"
        assert torch.equal(noise_models[1].belief, logits[epoch][1].softmax(-1))
    p = logits[1].softmax(-1).mean(0)
    assert rate == method.flip_rate(p), "the rate is the warm-up's"
    torch.testing.assert_close(labels[0], method.posterior_labels(method.without_flips(p, rate), given, rate))
    assert torch.equal(labels[1], labels[0]) and torch.equal(labels[2], labels[0])
    torch.testing.assert_close(labels[3], method.posterior_labels(logits[4].softmax(-1).mean(0), given, rate))
    torch.testing.assert_close(noise_models[0].weight, labels[3].gather(1, given[:, None])[:, 0])


def test_the_networks_see_their_own_order_only_while_warming_up():
    cfg = dataclasses.replace(config.preset("demo"), batch=10, warmup=1)
    early, late = sets.index(cfg, 50, 2), sets.index(cfg, 50, 7)
    assert not torch.equal(early[0], early[1]) and torch.equal(late[0], late[1])
    together = dataclasses.replace(cfg, apart=False)
    assert torch.equal(sets.index(together, 50, 2)[0], sets.index(together, 50, 2)[1])
    for epoch in (0, 1):
        seen = torch.cat([sets.index(cfg, 50, 5 * epoch + k) for k in range(5)], 1)
        assert all(sorted(one.tolist()) == list(range(50)) for one in seen)


@pytest.mark.parametrize("kind", ["paper", "strong", "flip"])
def test_augmentation_is_a_function_of_seed_step_and_network(kind):
    cfg = dataclasses.replace(config.preset("demo"), augment=kind, batch=6, input_px=24)
    pictures = torch.randint(0, 256, (9, 1, 32, 32), dtype=torch.uint8)
    index = torch.arange(6).expand(2, 6)
    one, two = sets.views(pictures, cfg, index, 3, slice(None))
    assert one.shape == (6, 1, 24, 24) and one.min() >= 0 and one.max() <= 255 and not torch.equal(one, two)
    again = sets.views(pictures, cfg, index, 3, slice(2, 4))
    assert torch.equal(again[0], one[2:4]) and torch.equal(again[1], two[2:4])
    assert not torch.equal(one, sets.views(pictures, cfg, index, 4, slice(None))[0])
    shared = sets.views(pictures, dataclasses.replace(cfg, apart=False), index, 3, slice(None))
    assert shared[0] is shared[1]


# ---- Truth is never touched


def many(n=3000, with_other=False, seed=0):
    """A FaceSet without content: labels of eight classes, splits, and for real noise a second label."""
    rng = np.random.default_rng(seed)
    label, split = rng.integers(0, 8, n), rng.integers(0, 3, n)
    other = np.where(rng.random(n) < 0.3, rng.integers(0, 7, n), np.where(label == 7, 0, label))
    other[:20] = -1
    pictures = torch.arange(n).view(n, 1, 1, 1).expand(n, 1, 1, 2).to(torch.int32)
    return sets.FaceSet(
        pictures, label, split, ("a", "b", "c", "d", "e", "f", "g", "contempt"), "x", other if with_other else None
    )


@pytest.mark.parametrize("kind", ["symmetric", "fer2013"])
def test_only_training_labels_are_ever_flipped(kind):
    """Validation and test labels are the set's own at every rate and seed; the training truth is kept as well."""
    whole = many(with_other=True)
    for seed, rate in ((0, 0.0), (1, 0.4), (2, 0.9)):
        cfg = dataclasses.replace(config.preset("short"), noise=rate, noise_kind=kind, seed=seed)
        training, valid, test = sets.splits(whole, cfg)
        for split, one in ((1, valid), (2, test)):
            place = one.images[:, 0, 0, 0].numpy()
            assert sorted(place) == np.flatnonzero(whole.split == split).tolist()
            assert (one.label == whole.label[place]).all() and (one.given == one.label).all() and not one.flip.any()
        place = training.images[:, 0, 0, 0].numpy()
        assert (training.label == whole.label[place]).all() and (whole.split[place] == 0).all()
        if kind == "fer2013":
            assert (training.given == whole.other[place]).all() and (whole.other[place] >= 0).all()
        else:
            assert training.flip.mean() == pytest.approx(rate, abs=0.04) and len(training) == (whole.split == 0).sum()


def test_a_class_without_labels_left_is_one_line():
    rare = many(200)
    rare = dataclasses.replace(
        rare, label=np.where(np.arange(200) < 3, 0, 1 + np.arange(200) % 7), split=np.arange(200) % 3
    )
    cfg = dataclasses.replace(config.preset("short"), noise=0.0)
    sets.splits(rare, cfg)
    gone = dataclasses.replace(rare, label=np.where(rare.label == 0, 1, rare.label))
    with pytest.raises(cli.UserError) as error:
        sets.splits(gone, cfg)
    one_line_error(error, "no training label a", "--noise")


def test_contempt_may_be_absent_from_real_noise_and_nothing_else():
    whole = many(with_other=True)
    cfg = dataclasses.replace(config.preset("real"))
    training, _, _ = sets.splits(whole, cfg)
    assert 7 not in training.given and 7 in training.label
    without = dataclasses.replace(whole, other=np.where(whole.other == 2, 3, whole.other))
    with pytest.raises(cli.UserError) as error:
        sets.splits(without, cfg)
    one_line_error(error, "no training label c")
    unknown = dataclasses.replace(whole, other=np.full(len(whole), -1))
    with pytest.raises(cli.UserError) as error:
        sets.splits(unknown, cfg)
    one_line_error(error, "without fer2013_labels.csv")
    with pytest.raises(cli.UserError) as error:
        sets.splits(many(), cfg)
    one_line_error(error, "--noise-kind fer2013", "FERPlus")


def test_test_faces_that_repeat_a_training_face_are_found_and_left_out_of_a_metric(faces, tmp_path, monkeypatch):
    training, _, test = sets.splits(many(90), config.preset("demo"))
    assert not sets.repeated(test, training).any()
    pictures = test.images.clone()
    pictures[[2, 5]] = training.images[[7, 1]]
    assert np.flatnonzero(sets.repeated(dataclasses.replace(test, images=pictures), training)).tolist() == [2, 5]
    monkeypatch.setattr(sets, "repeated", lambda test, training: np.arange(len(test)) < 10)
    start(tmp_path)
    arrays, metrics = result(tmp_path)[1], storage.read_json(only_run(tmp_path) / "run.json")["metrics"]
    right = (arrays["predicted_mean"] == arrays["label"])[10:]
    assert metrics["accuracy_mean_unseen_pct"] == pytest.approx(100 * right.mean())


def test_the_record_says_how_alike_the_networks_are(faces, tmp_path):
    start(tmp_path)
    arrays, metrics = result(tmp_path)[1], storage.read_json(only_run(tmp_path) / "run.json")["metrics"]
    mean, second = (arrays[k].astype(float)[arrays["flip"].astype(bool)] for k in ("weight", "weight_second"))
    expected = 100 * np.corrcoef(2 * mean - second, second)[0, 1]
    assert metrics["weight_correlation_pct"] == pytest.approx(expected)
    assert metrics["disagreement_pct"] == pytest.approx(
        100 * (arrays["predicted"] != arrays["predicted_second"]).mean()
    )


# ---- Sets on disk, through the pack's interface


def pack_of(arrays, channels=3):
    n = len(next(iter(arrays.values())))
    grey = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, channels, 4, 4).clone()
    return SimpleNamespace(arrays=arrays, meta={"fingerprint": "f"}, decode=lambda: grey)


@pytest.fixture
def packs(monkeypatch):
    """A function that makes sets.load read given arrays instead of a prepared set."""

    def use(arrays, **more):
        sets.load.cache_clear()
        monkeypatch.setattr(data_sets, "ensure", lambda name: pack_of(arrays, **more))

    yield use
    sets.load.cache_clear()


def test_ferplus_votes_become_labels_and_grey_faces_one_channel(packs):
    votes = np.zeros((5, 10), np.uint8)
    for row, column in enumerate((1, 0, 8, 7, 3)):
        votes[row, column] = 8
    packs(
        {"votes": votes, "split": np.array([0, 1, 0, 2, 0], np.uint8), "fer2013": np.array([1, 0, 3, 4, -1], np.int8)}
    )
    found = sets.load("ferplus", "majority")
    assert found.label.tolist() == [1, 0, 7, 3] and found.split.tolist() == [0, 1, 2, 0], "an unknown face is left out"
    assert found.other.tolist() == [1, 0, 4, -1] and found.images.shape == (4, 1, 4, 4)
    assert found.images[:, 0, 0, 0].tolist() == [0, 1, 3, 4] and found.classes[7] == "contempt"


def test_sets_without_a_validation_part_hold_one_out(packs):
    label, split = np.arange(400) % 7, np.repeat(np.array([0, 1], np.uint8), (300, 100))
    packs({"label": label.astype(np.int8), "split": split})
    found = sets.load("rafdb", "majority")
    assert np.bincount(found.split).tolist() == [270, 30, 100] and (found.split[300:] == 2).all()
    assert found.classes[0] == "surprise" and len(found.classes) == 7
    packs({"label": (label + 1).astype(np.int8), "split": split})
    with pytest.raises(cli.UserError) as error:
        sets.load("rafdb", "majority")
    one_line_error(error, "rafdb", "expected 0 to 6")


def test_affectnet_comes_with_seven_or_eight_classes(packs):
    split = np.repeat(np.array([0, 1], np.uint8), (300, 100))
    for k in (7, 8):
        packs({"label": (np.arange(400) % k).astype(np.int8), "split": split})
        found = sets.load("affectnet", "majority")
        assert len(found.classes) == k and ("contempt" in found.classes) == (k == 8)
        training, _, _ = sets.splits(found, config.preset("short"))
        assert training.given.max() == k - 1, "flips stay among the classes that exist"


# ---- Bad input: one line each


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--row", "dividemix"], "unknown row 'dividemix'"),
        (["--preset", "demo", "--noise", "1.0"], "--noise 1.0: a share of flipped labels lies in [0, 1)"),
        (["--preset", "demo", "--noise", "nan"], "--noise nan: a share of flipped labels lies in [0, 1)"),
        (["--preset", "demo", "--noise", "-0.1"], "--noise -0.1"),
        (["--preset", "demo", "--warmup", "0"], "--warmup 0"),
        (["--preset", "demo", "--row", "ce", "--weighting", "swapped"], "--weighting swapped"),
        (["--preset", "demo", "--relabel"], "--relabel"),
        (["--preset", "demo", "--stem", "tiny"], "--stem tiny"),
        (["--preset", "short", "--restart"], "--restart True"),
        (["--preset", "demo", "--nose", "0.2"], "did you mean"),
        (["--preset", "demo", "--batch", "5000"], "--batch 5000"),
        (["--preset", "demo", "--noise-kind", "fer2013"], "--noise-kind fer2013"),
        (["--preset", "paper", "--data", "embedded"], "--weights0 FILE"),
        (["--preset", "paper", "--data", "embedded", "--weights0", "no/file"], "no/file"),
        (["--preset", "demo", "--weights0", "no/file"], "--weights0 no/file: --init scratch scratch does not read it"),
        (["--preset", "demo", "--row", "ce", "--weights1", "no/file"], "row ce has one network"),
        (["--preset", "short", "--data", "cifar"], "unknown data set 'cifar'"),
        (["--preset", "short"], "make data-ferplus"),
    ],
)
def test_bad_settings_are_one_line(faces, tmp_path, monkeypatch, words, said):
    monkeypatch.delenv("DATA_MIRROR", raising=False)
    with pytest.raises(cli.UserError) as error:
        train.main([*words, "--out", str(tmp_path), "--device", "cpu"])
    one_line_error(error, said)


def test_a_diverging_run_names_its_samples(faces, tmp_path):
    with pytest.raises(cli.UserError) as error:
        start(tmp_path, "ce", "--lr", "1e30", "--clip", "1e30", "--lr-warmup", "0")
    one_line_error(error, "not finite", "samples ")


def test_weights_are_evaluated_on_the_set_they_know(faces, tmp_path, capsys, packs):
    written = start(tmp_path)
    (path,) = (tmp_path / "resup").glob("*/model.safetensors")
    capsys.readouterr()
    evaluate.main(["--weights", str(path), "--device", "cpu"])
    assert f"{written['metrics']['accuracy_pct']:8.2f}" in capsys.readouterr().out
    packs({"label": np.arange(30, dtype=np.int8) % 7, "split": np.arange(30, dtype=np.uint8) % 2})
    with pytest.raises(cli.UserError) as error:
        evaluate.main(["--weights", str(path), "--data", "rafdb", "--device", "cpu"])
    one_line_error(error, path, "knows the classes")
    checkpoint.save_weights(tmp_path / "x.safetensors", nets.ResNet(3, width=8, units=(1,)))
    with pytest.raises(cli.UserError) as error:
        evaluate.main(["--weights", str(tmp_path / "x.safetensors"), "--device", "cpu"])
    one_line_error(error, "describes no networks of this paper")


@pytest.mark.parametrize("wrapped", [False, True])
def test_starting_weights_are_read_and_recorded(faces, tmp_path, wrapped):
    """As a state dict, or inside a training checkpoint as public files of MS-Celeb weights are."""
    cfg = dataclasses.replace(config.preset("demo"), width=8, units=(1, 1))
    torch.manual_seed(99)
    state = config.build_net(cfg, 5).state_dict()
    torch.save({"epoch": 3, "state_dict": state} if wrapped else state, tmp_path / "w.pth")
    words = ["--init", "file", "scratch", "--weights0", str(tmp_path / "w.pth")]
    written = start(tmp_path / "out", "resup", *words)
    assert written["data"]["init"].startswith("file ") and written["data"]["init"].endswith(", scratch")
    first, second = config.build_peers(
        dataclasses.replace(cfg, init=("file", "scratch")), CLASSES, config.Files(tmp_path / "w.pth")
    ).members
    plain = config.build_peers(cfg, CLASSES).members
    assert not torch.equal(first.layer2[0].conv1.weight, plain[0].layer2[0].conv1.weight)
    assert torch.equal(first.fc.weight, plain[0].fc.weight) and equal(second, plain[1])


# ---- Metrics, claims, figures


def test_metrics_of_a_case_made_by_hand():
    p = {
        "label": np.array([0, 0, 0, 1], np.uint8), "predicted": np.array([0, 0, 1, 1], np.uint8),
        "weight": np.array([0.9, 0.8, 0.8, 0.1], np.float16), "flip": np.array([0, 0, 1, 1], bool),
        "train_label": np.array([0, 0, 1, 1], np.uint8),
    }  # fmt: skip
    found = evaluate.measure(p)
    assert found["accuracy_pct"] == 75 and found["balanced_pct"] == pytest.approx(100 * (2 / 3 + 1) / 2)
    assert found["weight_auc_pct"] == pytest.approx(87.5), "three pairs won, one tied"
    assert found["weight_clean_pct"] == pytest.approx(85, abs=0.1) and found["weight_flipped_pct"] == pytest.approx(
        45, abs=0.1
    )
    assert "weight_lowest_class_pct" not in found, "too few faces"
    told = (1 * abs(0.9 - 1) + 2 * abs(0.8 - 0.5) + 1 * abs(0.1 - 0)) / 4
    assert found["weight_error_pct"] == pytest.approx(100 * told, abs=0.1)


def test_the_lowest_class_is_found_among_clean_labels():
    label = np.repeat(np.array([0, 1, 2], np.uint8), (60, 60, 5))
    weight = np.where(label == 1, 0.4, 0.9).astype(np.float16)
    weight[:30], weight[-5:] = 0.0, 0.1
    flip = np.arange(125) < 30
    p = {"train_label": label, "weight": weight, "flip": flip}
    assert evaluate.measure(p)["weight_lowest_class_pct"] == pytest.approx(40, abs=0.1), (
        "flipped and rare ones are left out"
    )


def test_schedules():
    paper, demo, twice = (config.preset(name) for name in ("paper", "demo", "strong"))
    assert [round(train.rate_at(paper, e), 9) for e in (0, 9.9, 10, 20, 29)] == [2e-4, 2e-4, 2e-5, 2e-6, 2e-6]
    assert train.rate_at(demo, 0.5) < 0.6 * demo.lr and train.rate_at(demo, demo.epochs - 0.01) < 1e-3 * demo.lr
    end = twice.warmup
    assert train.rate_at(twice, end - 0.01) < 1e-3 * twice.lr and train.rate_at(twice, end) == twice.lr
    assert train.rate_at(twice, twice.epochs - 0.01) < 1e-3 * twice.lr
    with pytest.raises(cli.UserError, match="smaller batch"):
        sets.steps_per_epoch(demo, demo.batch - 1)


def test_claims_can_all_be_computed_from_nothing():
    cells = claims.cells("resup", [])
    assert {c.status for c in cells} == {"data missing"}
    assert all("init" in c.claim["boxes"] for c in cells if c.kind == "level"), "each published cell names its start"


def test_figures_are_drawn_from_records_alone(faces, tmp_path):
    for row in ("ce", "resup"):
        start(tmp_path, row)
    records = [r | {"overrides": {}} for r in runs.recorded("resup", tmp_path)]
    drawn = figures.draw(records, tmp_path / "figures")
    assert drawn and all(path.stat().st_size > 10_000 for path in drawn)
    ferplus = [
        r | {"data": r["data"] | {"name": "ferplus"}, "config": r["config"] | {"preset": preset}}
        for r, preset in zip(records, ("short", "strong"), strict=True)
    ]
    assert "published-30.png" in [path.name for path in figures.draw(ferplus, tmp_path / "ferplus")]
    assert not figures.by_level(ferplus), "one level is no curve"
    levels = (("noise20", 0.2), ("short", 0.3), ("strong", 0.3))
    for record in ferplus:  # of one network, which has no mean, and of two
        three = [record | {"config": record["config"] | dict(preset=p, noise=n)} for p, n in levels]
        (found,) = figures.by_level(three).values()
        assert {rate: len(some) for rate, some in found.items()} == {20: 1, 30: 1}
        assert "noise-levels.png" in [path.name for path in figures.draw(three, tmp_path / record["config"]["row"])]
    lines = tables.comparison(ferplus).splitlines()
    assert any(line.startswith("| EAC") and "| 85.44 | MS-Celeb-1M" in line for line in lines)
    ours = [line for line in lines if "| ours: from scratch" in line]
    assert len(ours) == 1 and f"{records[0]['metrics']['accuracy_pct']:.2f} [" in ours[0]
