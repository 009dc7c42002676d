"""What the distillation's stages start from, learn, average, restore and test; that each of its settings matters."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_hybrid_train import PEOPLE

from facepapers.common import storage
from facepapers.common.evidence import runs
from facepapers.common.protocols import verification
from facepapers.common.training import checkpoint
from facepapers.common.vision import networks
from facepapers.papers.hybrid_order_distillation import config, data, evaluate, method, nets, source, train
from facepapers.papers.hybrid_order_distillation.degrade import degrade
from tests.trainings import equal, settings_without_effect, stopped_at, tensors, watch_averages

CPU = torch.device("cpu")
SMALL = dict(
    precision="fp32", teacher_net="resnet8", net="resnet8", teacher_features=12, features=12, teacher_steps=2,
    teacher_px=32, input_px=16, resolution=8, batch=8, steps=4, warmup=1, views=2,
)  # fmt: skip


@pytest.fixture(autouse=True)
def people(monkeypatch):
    """Make `--data embedded` a dozen tiny people."""
    monkeypatch.setattr(data, "EMBEDDED", PEOPLE)
    data.load.cache_clear()
    yield
    data.load.cache_clear()


def settings(row="assistant_123", **changes):
    cfg = dataclasses.replace(config.preset("demo", row), **SMALL | changes)
    config.check(cfg)
    return cfg


def start(out, row="assistant_123", **changes):
    """Train and record a row with other settings; returns (record, folder)."""
    cfg = settings(row, **changes)
    return train.train(cfg, CPU, out), out / config.PAPER / cfg.run_name


# ---- Settings


def test_every_setting_has_an_effect_on_the_weights(tmp_path, monkeypatch):
    task, whole = dict(task=1.0), dict(steps=5, warmup=0, route="assistant")
    other = dict(
        net="resnet14", features=9, input_px=20, resolution=6, operator="pil_bilinear", stage1=(whole, 0.2),
        orders=(1, 2), task=1.0, scale=(task, 16.0), views=1, augment="pad4", per_class=4, batch=12, steps=5,
        optimizer="adamw", lr=0.01, drops=(whole, (0.4,)), warmup=2, momentum=0.5, nesterov=False, weight_decay=0.05,
        clip=1e-3, averaging=(dict(steps=3), 0.5), precision="bf16",
    )  # fmt: skip
    teachers = ("teacher_net", "teacher_features", "teacher_steps", "teacher_px")
    weights = ("weights", "centre", "normalise_point", "normalise_source")
    elsewhere = dict.fromkeys(("preset", "data", "row"), "names") | {
        "teacher_sha256": "test_the_short_preset_on_a_small_lfw", "pretrained": "needs torchvision's weights",
        "other_operator": "test_each_list_compares_what_its_name_says", "extra": "needs a second set",
        "held_out": "test_held_out_people_are_tested_and_the_test_is_not_touched",
        "seed": "test_seed_and_step_decide_images_views_and_start",
        **dict.fromkeys(teachers, "test_a_teacher_has_the_settings_that_it_depends_on"),
        **dict.fromkeys(weights, "test_each_order_has_its_own_weight"),
        **dict.fromkeys(("kd", "hint", "temperature"), "test_losses_with_logits_and_maps_look_at_the_source"),
        **dict.fromkeys(("route", "start"), "test_each_stage_starts_learns_and_sees_what_its_route_says"),
    }  # fmt: skip
    monkeypatch.setattr(train, "record", lambda job, teacher, student, *rest: tensors(student.net))
    base = settings("direct_123", steps=2, teacher_steps=1)
    run = lambda cfg: train.train(cfg, CPU, tmp_path)
    assert settings_without_effect(config.Config, run, base, other, elsewhere) == []


def test_a_teacher_has_the_settings_that_it_depends_on(tmp_path, monkeypatch):
    """All of them unlike the defaults: what is not handed on would be forgotten."""
    asked = settings(
        "teacher", teacher_net="resnet14", teacher_features=9, teacher_steps=7, teacher_px=24, augment="crop",
        per_class=4, batch=12, optimizer="adamw", lr=0.3, drops=(0.3,), warmup=5, momentum=0.3, nesterov=False,
        weight_decay=0.3, clip=3.0, scale=3.0, held_out=True, seed=4, resolution=6, views=3,
    )  # fmt: skip
    seen = []
    monkeypatch.setattr(train, "train_teacher", lambda job, learner, *rest: (
        seen.append(job.cfg), storage.write_json(rest[-1] / "teacher.json", {"seconds": 0.0, "sha256":
        checkpoint.save_weights(rest[-1] / "model.safetensors", learner)})))  # fmt: skip
    train.train(asked, CPU, tmp_path)
    depends = (
        "data", "held_out", "teacher_net", "teacher_features", "teacher_steps", "teacher_px", "augment", "per_class",
        "batch", "optimizer", "lr", "drops", "warmup", "momentum", "nesterov", "weight_decay", "clip",
        "precision", "scale",
    )  # fmt: skip
    assert {name: getattr(seen[0], name) for name in depends} == {name: getattr(asked, name) for name in depends}
    assert (seen[0].task, seen[0].orders, seen[0].seed, seen[0].resolution) == (1.0, (), 0, 24), "labels, sharp images"


def test_kept_outputs_are_named_by_all_that_they_depend_on():
    cfg = settings()
    training = data.training_of(cfg, data.load("embedded"))
    others = dict(views=3, augment="crop", teacher_px=24, operator="pil_bilinear")
    keys = {source.data_key(dataclasses.replace(cfg, **{name: value}), training) for name, value in others.items()}
    keys |= {source.data_key(cfg, training), source.data_key(cfg, dataclasses.replace(training, fingerprint="other"))}
    assert len(keys) == 6


@pytest.mark.parametrize("views", [0, 3])
def test_seed_and_step_decide_images_views_and_start(views):
    of = lambda seed, **more: settings(seed=seed, views=views, **more)
    training = data.training_of(of(0), data.load("embedded"))
    for more in ({}, dict(per_class=4)):
        feeds = [data.Feed(training, of(seed, **more), 8, 16, 4, CPU) for seed in (0, 0, 1)]
        one, same, other = (feed.batch(0, slice(0, 8)) for feed in feeds)
        assert torch.equal(one.index, same.index) and torch.equal(one.seen, same.seen)
        assert not torch.equal(one.index, other.index)
        for feed in feeds:  # the same images in two steps
            feed.pick = lambda step: torch.arange(8)
        drawn = [
            feed.batch(step, slice(0, 8)).seen
            for feed, step in zip((*feeds[:2], feeds[2], feeds[0]), (0, 0, 0, 1), strict=True)
        ]
        assert torch.equal(drawn[0], drawn[1])
        assert not torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[3])
    teacher = source.Source(nets.Learner(nets.make_net("resnet8", 12)), 32, CPU)
    fresh = [
        train.new_learner(of(0, start="random"), teacher, training, teacher.learner.net, seed) for seed in (0, 0, 1)
    ]
    assert equal(tensors(fresh[0]), tensors(fresh[1])) and not equal(tensors(fresh[0].net), tensors(fresh[2].net))


# ---- Stages


def watched(monkeypatch):
    """A list that grows by (stage, source, network before, network after) of every training."""
    fit, seen = train.fit, []

    def fitting(job, learner, guide, training, stage):
        before = tensors(learner.net)
        steps = fit(job, learner, guide, training, stage)
        seen.append((stage, guide, before, tensors(learner.net)))
        return steps

    monkeypatch.setattr(train, "fit", fitting)
    return seen


@pytest.mark.parametrize("row", ["assistant_123", "init_123", "alone_assistant", "assistant_123_random", "direct_123"])
def test_each_stage_starts_learns_and_sees_what_its_route_says(tmp_path, monkeypatch, row):
    seen = watched(monkeypatch)
    record, folder = start(tmp_path, row, steps=5)
    (_, _, _, teacher), *stages = seen
    assert sum(stage.steps for stage, *_ in stages) == 5 and len(stages) == (1 if row == "direct_123" else 2)
    random = row == "assistant_123_random"
    previous = teacher
    for stage, _, before, after in stages:
        assert equal(before, previous) != random
        assert (stage.resolution, stage.px) == ((8, 16) if stage is stages[-1][0] else (32, 16))
        previous = after
    assert equal(tensors(nets_of(folder)), stages[-1][3])
    guides = [guide.px for _, guide, *_ in stages]
    assert guides == {"direct_123": [32], "assistant_123": [32, 16], "assistant_123_random": [32, 16]}.get(
        row, [32, 32]
    )
    if guides == [32, 16]:
        assert equal(tensors(stages[1][1].learner.net), stages[0][3]), "the student learns from the trained assistant"
    # Seconds are rounded to hundredths, of which five steps of eight samples take few.
    assert record["seconds"] == pytest.approx(5 * 8 / record["samples_per_s"], rel=0.01, abs=0.006)


def nets_of(folder):
    """The network in a run's weights file."""
    net = nets.make_net("resnet8", 12, 16)
    checkpoint.load_weights(folder / "model.safetensors", net)
    return net.eval()


def test_each_order_has_its_own_weight():
    gen = torch.Generator().manual_seed(0)
    student, target, projected = (torch.randn(6, 12, generator=gen) for _ in range(3))
    cfg = settings(weights=(2.0, 3.0, 5.0), centre=7.0, normalise_source=True, normalise_point=False)
    found = train.relations(cfg, nets.Outputs(student, None, projected), nets.Outputs(target))
    unit = F.normalize(target, dim=1)
    expected = {
        "order1": 2 * method.point_loss(projected, target, False), "order2": 3 * method.distance_loss(student, unit),
        "order3": 5 * method.angle_loss(student, unit), "centre": 7 * method.centre_loss(student, target),
    }  # fmt: skip
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_losses_with_logits_and_maps_look_at_the_source():
    """Softened logits at the stated temperature, from the source's own classifier or its class centres; sharp maps."""
    training = data.training_of(settings(), data.load("embedded"))
    torch.manual_seed(0)
    teacher = source.Source(nets.Learner(nets.make_net("resnet8", 12)), 32, CPU)
    cfg = settings("fitnet", kd=0.9, hint=2.0, temperature=3.0, views=0, task=0.5, start="random")
    learner = train.new_learner(cfg, teacher, training, teacher.learner.net, 0)
    batch = data.Feed(training, cfg, 8, 16, 4, CPU).batch(0, slice(0, 8))
    target = teacher.outputs(batch, cfg.operator, hint=True)
    output = learner(networks.to_input(batch.seen, learner.net.pixels))
    sharp: list[torch.Tensor] = []
    teacher.learner.net.get_submodule(nets.hint_layer(teacher.learner.net)).register_forward_hook(
        lambda layer, given, made: sharp.append(made)
    )
    torch.testing.assert_close(target.embedding, teacher(batch.high).embedding)
    output = output._replace(logits=3 * torch.randn(8, PEOPLE["people"]))  # what untrained networks say is all the same
    target = target._replace(embedding=torch.randn(8, 12))
    found = train.losses_of(dataclasses.replace(cfg, task=0.0), learner, output, target, batch)
    logits = cfg.scale * F.normalize(target.embedding, dim=1) @ teacher.class_centres(training, cfg).T
    torch.testing.assert_close(found["kd"], 0.9 * method.kd_loss(output.logits, logits, 3.0))
    torch.testing.assert_close(found["hint"], 2.0 * method.hint_loss(output.maps, sharp[0]))
    assert batch.high.shape[-1] == 32 and found.keys() == {"kd", "hint"} and min(found.values()) > 0.01
    torch.testing.assert_close(learner.centres, teacher.class_centres(training, cfg))


def test_the_source_looks_once_at_a_batch_for_logits_and_hints(tmp_path, monkeypatch):
    """The teacher is most of such a step: a second pass for the maps alone would nearly double it."""
    seen: list[int] = []
    call = source.Source.__call__
    counted = lambda self, pictures, *more, **words: seen.append(len(pictures)) or call(self, pictures, *more, **words)
    monkeypatch.setattr(source.Source, "__call__", counted)
    monkeypatch.setattr(source.Source, "class_centres", lambda self, training, cfg: torch.randn(training.classes, 12))
    start(tmp_path, "fitnet", steps=3, views=0)
    assert seen.count(8) == 3, "one for each step of eight faces"


@pytest.mark.parametrize("hint", [False, True])
def test_a_compiled_source_says_the_same(monkeypatch, hint):
    """Traced as with COMPILE=1: torch 2.11 refuses a NamedTuple that is completed by _replace (findings/)."""
    torch.manual_seed(0)
    learner = nets.Learner(nets.make_net("resnet8", 12), source_width=7, classes=5)
    pictures, none = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8), torch.zeros(3)
    batch = data.Batch(none, none, pictures, pictures, none)
    plain = source.Source(learner, 32, CPU).outputs(batch, "pil_bicubic", hint)
    assert (plain.maps is not None) is hint
    monkeypatch.setattr(source.parallel, "frozen", lambda model, device: torch.compile(model.eval(), backend="eager"))
    torch.testing.assert_close(source.Source(learner, 32, CPU).outputs(batch, "pil_bicubic", hint), plain)


def test_a_network_that_is_trained_keeps_new_statistics(tmp_path, monkeypatch):
    """Also with a hint, whose regressor takes its size from a pass in test mode before the training."""
    for row in ("fitnet", "direct_1"):
        seen = watched(monkeypatch)
        start(tmp_path, row, steps=2, views=0)
        _, _, before, after = seen[-1]
        moved = [name for name in before if name.endswith("running_mean")]
        assert moved and all(not torch.equal(before[name], after[name]) for name in moved), row


# ---- What is averaged, restored, saved, tested


def test_averaged_weights_are_taken_over_by_teacher_assistant_and_student(tmp_path, monkeypatch):
    averages, seen = watch_averages(monkeypatch), watched(monkeypatch)
    record, _ = start(tmp_path, averaging=0.5, steps=6)
    assert [int(average.n_averaged) for average in averages] == [3, 3] and len(seen) == 3, (
        "a teacher is its last weights"
    )
    for average, (_, _, _, after) in zip(averages, seen[1:], strict=True):
        assert equal(tensors(average.module.net), after)
    assert record["selection"] == "last, running average"


def test_a_run_that_stopped_in_each_stage_ends_in_the_same_bits(tmp_path, monkeypatch):
    changes = dict(averaging=0.5, steps=6, teacher_steps=3, optimizer="adamw", lr=2e-3)
    record, whole = start(tmp_path / "whole", **changes)
    done, losses_of = [], train.losses_of
    monkeypatch.setattr(train, "losses_of", lambda *given: done.append(1) or losses_of(*given))
    for _ in ("teacher", "assistant", "student"):
        stopped_at(monkeypatch, 1, lambda: start(tmp_path / "cut", **changes))
    again, cut = start(tmp_path / "cut", **changes)
    assert len(done) == 3 + 6, "no step is done twice"
    assert again["teacher"]["sha256"] == record["teacher"]["sha256"] and again["metrics"] == record["metrics"]
    assert storage.sha256(whole / "model.safetensors") == storage.sha256(cut / "model.safetensors")
    rows = [runs.read_history(folder)[["stage", "step"]].to_numpy().tolist() for folder in (whole, cut)]
    assert rows == [[[1, 3], [2, 3]], [[1, 2], [1, 3], [2, 2], [2, 3]]], "a stop closes a row, which is kept"


def test_each_list_compares_what_its_name_says(tmp_path):
    """Distances of the record, from the weights file by hand: low, high, the teacher's, another operator's."""
    cfg = settings("direct_1", steps=2)
    _, folder = start(tmp_path, "direct_1", steps=2)
    arrays, whole = runs.read_predictions(folder / "predictions.npz"), data.load("embedded")
    (path,) = (tmp_path / config.PAPER).glob("teacher-*/model.safetensors")
    teacher = nets.Learner(nets.make_net("resnet8", 12, 32), classes=PEOPLE["people"], scale=cfg.scale)
    checkpoint.load_weights(path, teacher)

    @torch.no_grad()
    def embed(net, px, resolution, operator):
        x = degrade(whole.images, resolution, px, operator)
        y = sum(net.eval()(networks.to_input(part, net.pixels)) for part in (x, x.flip(3)))
        return verification.unit_rows(y.double().numpy())

    student = nets_of(folder)
    low, high = (embed(student, 16, px, cfg.operator) for px in (8, 32))
    other, gallery = embed(student, 16, 8, cfg.other_operator), embed(teacher.net, 32, 32, cfg.operator)
    pairs = whole.pairs["pairs_devtest"]
    for name, a, b in (("", low, low), ("_cross", high, low), ("_other", other, other), ("_teacher", gallery, low)):
        expected = verification.squared_distances(a[pairs[:, 0]], b[pairs[:, 1]])
        np.testing.assert_allclose(arrays[f"distance{name}"], expected, atol=1e-4, err_msg=name)
    assert np.abs(arrays["distance"] - arrays["distance_other"]).max() > 1e-3


def test_each_accuracy_is_of_its_own_list():
    """Twenty pairs in ten folds, told apart by every list but one in turn."""
    same, fold = np.tile([True, False], 10), np.repeat(np.arange(10), 2)
    right, wrong = np.where(same, 0.5, 2.0), np.where(same, 2.0, 0.5)
    endings = ("", "_cross", "_teacher", "_other", "_pairs", "_pairs_cross")
    for bad in endings:
        p = {f"distance{end}": wrong if end == bad else right for end in endings}
        found = evaluate.measure(p | dict(same=same, fold=fold, same_pairs=same, fold_pairs=fold))
        assert {end for end in endings if found[f"accuracy{end}_pct"] < 60} == {bad}


def test_pairs_with_a_person_of_the_training_part_are_left_out():
    pairs = np.array([[0, 1, 0, 0], [1, 2, 0, 0], [0, 0, 1, 1], [2, 0, 0, 1], [2, 1, 0, 2]])
    whole = data.ImageSet(torch.zeros(3, 3, 2, 2), np.arange(3), np.array([0, 1, 1]), {"pairs": pairs}, "")
    assert data.shared_pairs_excluded(whole).tolist() == [[1, 2, 0, 0], [2, 1, 0, 2]]
