"""What ArcFace's training averages, restores, cleans and tests, and that each of its settings matters."""

import dataclasses

import numpy as np
import pytest
import torch
from test_arcface_train import PEOPLE

from facepapers.common import cli, storage
from facepapers.common.evidence import jobs, runs
from facepapers.common.protocols import verification
from facepapers.common.training import schedules
from facepapers.papers.arcface import bayes, config, data, evaluate, method, nets, partial, train
from tests.trainings import equal, settings_without_effect, stopped_at, tensors, watch_averages

CPU = torch.device("cpu")
BASE = dataclasses.replace(
    config.preset("demo"), precision="fp32", widths=(8, 8, 8, 8), features=16, input_px=16, batch=8, steps=4, warmup=2
)
ADAMW = dict(optimizer="adamw", lr=2e-3, averaging=0.5)


@pytest.fixture(autouse=True)
def people(monkeypatch):
    """Make `--data embedded` a dozen tiny people."""
    monkeypatch.setattr(data, "EMBEDDED", PEOPLE)
    data.load.cache_clear()
    yield
    data.load.cache_clear()


def fitted(tmp_path, **changes):
    """(network, head) that the loop leaves with BASE and other settings."""
    cfg = dataclasses.replace(BASE, **changes)
    config.check(cfg)
    (task,), _ = data.tasks(cfg)
    run = runs.Run(
        config.PAPER, str(len(list(tmp_path.iterdir()))), cfg, cfg, tmp_path / str(len(list(tmp_path.iterdir())))
    )
    net, head, _ = train.fit(jobs.begin(run, cfg, CPU), task.training, run.folder, "test")
    return net, head


def start(out, **changes):
    """Train and record BASE with other settings; returns (record, folder)."""
    cfg = dataclasses.replace(BASE, **changes)
    config.check(cfg)
    return train.train(cfg, CPU, out), out / config.PAPER / cfg.run_name


# ---- Settings


def test_every_setting_has_an_effect_on_the_weights(tmp_path):
    triplet, sharded = dict(row="triplet", images_per_person=4), dict(sharded=True)
    other = dict(
        seed=1, units=(2, 1, 1, 1), widths=(8, 8, 8, 16), strided_stem=(dict(input_px=32), True), kaiming=False,
        features=8, dropout=0.3, input_px=32, batch=16, steps=3, optimizer="adamw", lr=0.01, drops=(2,), warmup=4,
        momentum=0.5, nesterov=False, weight_decay=0.1, clip=1e-3, averaging=0.5, precision="bf16", scale=16.0,
        strength=0.5, margin_warmup=0.9, past_pi="easy", gradient="detached", intra=1.0, inter=1.0,
        triplet_margin=(triplet, 0.2), images_per_person=4, sharded=True, sample_rate=(sharded, 0.4), augment="light",
        min_images=9, noise=0.3,
    )  # fmt: skip
    elsewhere = dict.fromkeys(("preset", "data", "row", "weights"), "names") | {
        "protocol": "test_nobody_is_trained_on_and_tested", "net": "tests/test_arcface_nets.py",
        "members": "test_several_seeds_are_tested_as_one", "joint_bayes": "test_joint_bayes_has_the_share_asked_for",
        "workers": "a number of processes",
    }  # fmt: skip

    run = lambda cfg: tensors(fitted(tmp_path, **vars(cfg))[0])

    assert settings_without_effect(config.Config, run, BASE, other, elsewhere) == []


def test_everything_decays_and_w_too(tmp_path, monkeypatch):
    cfg = dataclasses.replace(BASE, weight_decay=0.3, momentum=0.7)
    both = torch.nn.ModuleList([config.build_net(cfg), config.build_head(cfg, 5)])
    groups = train.make_optimizer(cfg, both).param_groups
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in both.parameters() if p.requires_grad}
    assert {(group["weight_decay"], group["momentum"]) for group in groups} == {(0.3, 0.7)}
    given, step = [], partial.ShardedHead.step
    monkeypatch.setattr(partial.ShardedHead, "step", lambda self, *how: given.append(how) or step(self, *how))
    fitted(tmp_path, sharded=True, weight_decay=0.3, momentum=0.7, warmup=0, drops=(2,))
    assert given == [(pytest.approx(rate), 0.7, 0.3) for rate in (0.1, 0.1, 0.01, 0.01)]


@pytest.mark.parametrize("augment", ["flip", "light"])
def test_seed_and_step_decide_faces_augmentation_and_start(tmp_path, augment):
    (task,), _ = data.tasks(BASE)
    of = lambda seed, **more: dataclasses.replace(BASE, seed=seed, augment=augment, **more)
    for more in ({}, dict(images_per_person=4)):
        picked = [data.picker(task.training, of(seed, **more))(0) for seed in (0, 0, 1)]
        assert torch.equal(picked[0], picked[1]) and not torch.equal(picked[0], picked[2])
    pictures = task.training.images[:8]
    views = [data.augment(pictures, of(seed), step, slice(0, 8)) for seed, step in ((0, 0), (0, 0), (1, 0), (0, 1))]
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2]) and not torch.equal(views[0], views[3])
    still = dict(steps=1, warmup=0, lr=1e-9, weight_decay=0.0)
    first = [fitted(tmp_path, seed=seed, **still) for seed in (0, 0, 1)]
    weights = [net.conv1.weight for net, _ in first]
    assert torch.equal(weights[0], weights[1]) and (weights[0] - weights[2]).abs().max() > 0.01
    sharded = [fitted(tmp_path, seed=seed, sharded=True, **still)[1].weight for seed in (0, 1)]
    assert (sharded[0] - sharded[1]).abs().max() > 1e-3


def test_every_step_has_its_margin_and_its_rate(tmp_path, monkeypatch):
    margins, rates = [], []
    forward, set_rate = method.MarginHead.forward, schedules.set_rate
    monkeypatch.setattr(
        method.MarginHead, "forward", lambda self, *x: margins.append(self.margins) or forward(self, *x)
    )
    monkeypatch.setattr(schedules, "set_rate", lambda optimizer, rate: rates.append(rate) or set_rate(optimizer, rate))
    changes = dict(steps=6, warmup=2, margin_warmup=0.5, strength=0.5, drops=(4,))
    fitted(tmp_path, **changes)
    assert [m2 for _, m2, _ in margins] == pytest.approx([0.25 / 3, 0.5 / 3, 0.25, 0.25, 0.25, 0.25])
    assert rates == pytest.approx([0.05, 0.1, 0.1, 0.1, 0.01, 0.01])


# ---- What is averaged, saved, restored


def test_averaged_weights_are_tested_and_saved(tmp_path, monkeypatch):
    averages = watch_averages(monkeypatch)
    record, folder = start(tmp_path, **ADAMW)
    net = nets.load_net(folder / "model.safetensors")
    assert averages[0].n_averaged == BASE.steps and record["selection"] == "last, running average"
    assert equal(tensors(net), tensors(averages[0].module[0]))
    (task,), _ = data.tasks(BASE)
    arrays = runs.read_predictions(folder / "predictions.npz")
    np.testing.assert_allclose(arrays["distance"], evaluate.predictions(net, task.tests[0], CPU)["distance"], atol=1e-5)
    weight = averages[0].module[1].weight.detach().numpy()
    people = evaluate.person_angles(
        evaluate.embed_training(net, task.training, CPU).double().numpy(), task.training.labels, "", weight
    )
    np.testing.assert_allclose(arrays["w_ec_deg"], people["w_ec_deg"], atol=1e-3)
    _, other = start(tmp_path / "last", **ADAMW | dict(averaging=0.0))
    assert not equal(tensors(net), tensors(nets.load_net(other / "model.safetensors")))


@pytest.mark.parametrize(
    "changes", [ADAMW | dict(dropout=0.3), dict(dropout=0.3), dict(row="cleaned")], ids=["adamw", "sgd", "cleaned"]
)
def test_a_stopped_run_ends_in_the_same_bits(tmp_path, monkeypatch, changes):
    """Stopped once in each training: the cleaned row has two, whose first is not trained again."""
    keep = lambda embeddings, labels, weight, centers: method.Cleaning(
        torch.arange(len(labels)) % 4 > 0, embeddings[:, 0], labels[:1], labels)  # fmt: skip
    monkeypatch.setattr(method, "clean_by_subcenters", keep)
    whole = start(tmp_path / "whole", **changes)[1]
    done, own_angle = [], train.own_angle
    monkeypatch.setattr(train, "own_angle", lambda *given: done.append(1) or own_angle(*given))
    for _ in range(2 if changes.get("row") else 1):
        stopped_at(monkeypatch, 2, lambda: start(tmp_path / "cut", **changes))
    cut = start(tmp_path / "cut", **changes)[1]
    assert len(done) == 4 * (2 if changes.get("row") else 1), "no step is done twice"
    assert storage.sha256(whole / "model.safetensors") == storage.sha256(cut / "model.safetensors")
    one, other = (runs.read_predictions(folder / "predictions.npz") for folder in (whole, cut))
    assert all(np.array_equal(one[key], other[key]) for key in one)
    rows = [runs.read_history(folder)["step"].tolist() for folder in (whole, cut)]
    assert rows == [[4], [3, 4]], "the stop closes a row of its own, which is kept"


def test_a_set_read_from_disk_goes_on_with_the_batch_of_its_step():
    (task,), _ = data.tasks(BASE)
    memory = task.training
    dataset = torch.utils.data.TensorDataset(memory.images, torch.from_numpy(memory.labels))
    disk, cfg = dataclasses.replace(memory, images=None, dataset=dataset), dataclasses.replace(BASE, workers=0)
    for first in (0, 3):
        parts = [list(data.batches(training, cfg, first, slice(0, 8), CPU)) for training in (memory, disk)]
        assert len(parts[0]) == BASE.steps - first
        for (a, x), (b, y) in zip(*parts, strict=True):
            assert torch.equal(a, b) and torch.equal(x, y)


def test_cleaning_trains_three_centres_and_then_on_what_is_kept(tmp_path, monkeypatch):
    seen, fit = [], train.fit
    monkeypatch.setattr(
        train, "fit", lambda job, training, *rest: seen.append((job.cfg.row, training)) or fit(job, training, *rest)
    )
    clean, given = method.clean_by_subcenters, []

    def cleaning(embeddings, labels, weight, centers):
        given.append((labels, weight, centers))
        found = clean(embeddings, labels, weight, centers)
        return found._replace(keep=torch.arange(len(labels)) % 3 > 0)

    monkeypatch.setattr(method, "clean_by_subcenters", cleaning)
    written, folder = start(tmp_path, row="cleaned", noise=0.25)
    (first, everybody), (second, kept) = seen
    assert (first, second) == ("subcenter", "cleaned") and len(everybody) == 96 and len(kept) == 64
    keep = np.arange(96) % 3 > 0
    assert torch.equal(kept.images, everybody.images[torch.from_numpy(keep)])
    labels, weight, centers = given[0]
    assert (
        centers == 3
        and len(weight) == 3 * everybody.classes
        and torch.equal(labels, torch.from_numpy(everybody.labels))
    )
    arrays = runs.read_predictions(folder / "predictions.npz")
    assert (arrays["noise_flag"] == everybody.wrong).all() and everybody.wrong.sum() == 24
    assert len(arrays["subcenter_angle_deg"]) == 96
    # Seconds are rounded to hundredths, of which eight steps of eight faces take few.
    assert written["seconds"] == pytest.approx(2 * 4 * 8 / written["samples_per_s"], rel=0.01, abs=0.006)


# ---- What is tested


def test_a_face_and_its_mirror_image_are_one_face():
    torch.manual_seed(0)
    net = config.build_net(BASE)
    face = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    test = data.Test("", torch.cat([face, face.flip(3)]), np.array([[0, 2, 1, 0], [0, 1, 0, 1]]))
    same, different = evaluate.predictions(net, test, CPU)["distance"]
    assert same < 1e-5 < different


def test_joint_bayes_has_the_share_asked_for(tmp_path):
    plain = lambda net, pictures: evaluate.embed(net, pictures, CPU, unit=False)
    for share in (0.2, 0.6):
        _, folder = start(tmp_path, joint_bayes=share)
        net, (task,) = nets.load_net(folder / "model.safetensors"), data.tasks(BASE)[0]
        judge = bayes.JointBayes(plain(net, task.training.images), task.training.labels, share)
        tested, pairs = plain(net, task.tests[0].images), task.tests[0].pairs
        expected = judge.distance(tested[pairs[:, 0]], tested[pairs[:, 1]])
        found = runs.read_predictions(folder / "predictions.npz")["distance_bayes"]
        np.testing.assert_allclose(found, expected, atol=1e-3)


def test_people_with_one_image_have_no_angle_of_their_own():
    vectors, labels = verification.unit_rows(np.random.default_rng(0).normal(size=(5, 4))), np.array([0, 0, 1, 1, 2])
    found = evaluate.person_angles(vectors, labels)
    assert len(found["intra_deg"]) == 4 and len(found["inter_deg"]) == 2


def test_runs_that_are_tested_together_begin_with_the_seed_asked_for(tmp_path):
    cfg = dataclasses.replace(BASE, row="together", members=2, seed=5)
    with pytest.raises(cli.MissingData, match="--seed 5 "):
        evaluate.record_together(cfg, CPU, tmp_path)
