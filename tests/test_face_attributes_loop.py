"""What the attributes' training averages, restores, masks and chooses by, and that each of its settings matters."""

import dataclasses

import numpy as np
import pytest
import torch
from test_face_attributes_train import FACES

from facepapers.common import storage
from facepapers.common.evidence import jobs, runs
from facepapers.common.training import checkpoint
from facepapers.common.vision import networks
from facepapers.papers.face_attributes import assemble, config, data, evaluate, method, source, train
from tests.trainings import equal, settings_without_effect, stopped_at, tensors, watch_averages

CPU = torch.device("cpu")
SMALL = dict(input_px=16, widths=(8, 8, 16, 24), features=8, batch=8, warmup=1, steps=4, views=2, cache_from=3)


@pytest.fixture(autouse=True)
def faces(monkeypatch):
    """Make `--data embedded` a few tiny faces, and the trunk's images as small."""
    monkeypatch.setattr(data, "EMBEDDED", FACES)
    data.load.cache_clear(), data.embedded_dataset.cache_clear()
    yield
    data.load.cache_clear(), data.embedded_dataset.cache_clear()


@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
    """Weights of an untrained tiny IResNet."""
    torch.manual_seed(0)
    net = train.new_trunk(dataclasses.replace(config.preset("demo", "trunk"), **SMALL))
    path = tmp_path_factory.mktemp("weights") / "trunk.safetensors"
    checkpoint.save_weights(path, net)
    return path


def settings(trunk, row="stage3", **changes):
    cfg = dataclasses.replace(config.preset("demo", row), **SMALL | dict(trunk=storage.sha256(trunk)) | changes)
    config.check(cfg)
    return cfg


def start(out, trunk, row="stage3", **changes):
    """Train and record a row with other settings; returns (record, folder)."""
    cfg = settings(trunk, row, **changes)
    return train.train(cfg, CPU, out, trunk), out / config.PAPER / cfg.run_name


def built(cfg, trunk, datasets=None):
    """(SharedNet, Source) as before the training."""
    net = networks.load_identity_net(trunk)
    return train.build(cfg, datasets or data.load("embedded"), method.split(net, cfg.cuts), net.pixels, CPU)


# ---- Settings


def test_every_setting_has_an_effect_on_the_weights(tmp_path, trunk, monkeypatch):
    other = dict(
        seed=1, trunk="random", cuts=("layer1.0", "layer2.0", "layer3.0", "embedding"), batch=12, steps=3, lr=0.01,
        head_rate=1.0, weight_decay=5.0, clip=1e-3, warmup=3, averaging=0.0, statistics="batch", precision="bf16",
        views=(dict(cache_from=99, seed=1), 0), rotation_deg=2.0, log_size=0.01, shift=0.01, colour=0.05, age_sigma=1.0,
        labels=0.4, grid=(dict(row="probe2"), 1),
    )  # fmt: skip
    elsewhere = dict.fromkeys(("preset", "data", "row"), "names") | {
        "input_px": "test_bad_settings_are_one_line", "cache_from": "test_stored_activations_are_the_computed_ones",
        "candidates": "test_the_demo_from_trunk_to_prediction", "margin": "test_the_margin_and_validation_choose",
        **dict.fromkeys(("units", "widths", "features"), "test_the_identity_network_has_the_settings_asked_for"),
    }  # fmt: skip
    monkeypatch.setattr(train, "record", lambda job, net, *rest: tensors(net.branches))
    run = lambda cfg: train.train(cfg, CPU, tmp_path, trunk)
    assert settings_without_effect(config.Config, run, settings(trunk, steps=2), other, elsewhere) == []


def test_the_identity_network_has_the_settings_asked_for(tmp_path):
    people, identity = data.embedded_people("train")
    base = dataclasses.replace(config.preset("demo", "trunk"), **SMALL | dict(views=0, cache_from=99, steps=2))

    def fitted(**changes):
        cfg = dataclasses.replace(base, **changes)
        number = str(len(list(tmp_path.iterdir())))
        job = jobs.begin(runs.Run(config.PAPER, number, cfg, cfg, tmp_path / number), cfg, CPU)
        net = train.new_trunk(cfg)
        train.fit_trunk(job, net, people, identity)
        return tensors(net)

    plain = fitted()
    other = dict(
        seed=1, units=(1, 2, 1, 1), widths=(8, 16, 16, 24), features=9, batch=12, steps=3, lr=0.1, weight_decay=5.0,
        clip=1e-3, warmup=2, precision="bf16",
    )  # fmt: skip
    assert equal(plain, fitted())
    assert [name for name, value in other.items() if equal(plain, fitted(**{name: value}))] == []


def test_stored_activations_are_named_by_all_that_a_view_shows(trunk):
    others = dict(rotation_deg=1.0, log_size=0.5, shift=0.5, colour=0.5, grid=1, views=3)
    paths = []
    for changes in ({}, *({name: value} for name, value in others.items())):
        _, reader = built(settings(trunk, **changes), trunk)
        paths += [reader._path(0, split, view, "stage2") for split in ("train", "val") for view in (0, 1, None)]
    assert len(set(paths)) == 6 * 7


def test_seed_and_turn_decide_faces_views_and_start(trunk):
    nets = [built(settings(trunk, seed=seed), trunk) for seed in (0, 0, 1)]
    heads = [net.branches["age"].head.weight for net, _ in nets]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    rows = [reader._rows(0, 0)[0] for _, reader in nets]
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])
    assert not torch.equal(nets[0][1]._rows(0, 0)[0], nets[0][1]._rows(0, 6)[0]), "another pass, another order"
    drawn = lambda seed, view, views: data.view_parameters(
        settings(trunk, seed=seed, views=views, cache_from=99), 9, view, 0
    )["angle"]
    assert not torch.equal(drawn(0, 0, 0), drawn(1, 0, 0)) and not torch.equal(drawn(0, 0, 0), drawn(0, 1, 0))
    assert torch.equal(drawn(0, 0, 2), drawn(1, 0, 2)), "fixed views are every seed's"


def test_readouts_learn_faster_and_weights_alone_decay(trunk):
    cfg = settings(trunk, weight_decay=0.3, head_rate=7.0)
    net, _ = built(cfg, trunk)
    groups = {id(p): group for group in train.make_optimizer(cfg, net).param_groups for p in group["params"]}
    learned = {name: p for name, p in net.named_parameters() if p.requires_grad}
    assert groups.keys() == set(map(id, learned.values())) and all(name.startswith("branches.") for name in learned)
    for name, p in learned.items():
        group = groups[id(p)]
        assert group["rate"] == (7.0 if ".head." in name else 1.0), name
        assert group["weight_decay"] == (0.3 if p.dim() > 1 else 0.0), name


@pytest.mark.parametrize(
    ("row", "first"),
    [("linear", 6), ("stage3", 3), ("only4", 4), ("scratch", 1), ("joint", 6), ("probe2", 3), ("mlp", 6)],
)
def test_a_row_relearns_what_its_name_says(trunk, row, first):
    cfg = settings(trunk, row, statistics="batch", cache_from=99, views=0)
    net, reader = built(cfg, trunk)
    branch = net.branches["emotion"]
    assert set(net.starts.values()) == {first} and reader.first == (1 if row == "joint" else first)
    taught = [
        number for number, stage in enumerate(branch.stages, first) if all(p.requires_grad for p in stage.parameters())
    ]
    assert taught == {"only4": [4], "stage3": [3, 4, 5], "scratch": [1, 2, 3, 4, 5]}.get(row, [])
    assert net.moving == (row == "joint") == all(p.requires_grad for p in net.trunk.parameters())
    stages = method.split(networks.load_identity_net(trunk))
    copied = [torch.equal(a, b) for mine, stage in zip(branch.stages, stages[first - 1 :], strict=False)
              for a, b in zip(mine.parameters(), stage.parameters(), strict=True) if a.dim() > 1]  # fmt: skip
    assert all(copied) if row != "scratch" else not any(copied)
    assert isinstance(branch.head, torch.nn.Sequential) == (row == "mlp")
    with torch.no_grad():
        seen = reader.inputs(0, torch.arange(48), view=0)
        for stage in stages[reader.first - 1 :] if not reader.pooled else ():
            seen = stage(seen)
    mean = torch.zeros_like(branch.mean) if row == "scratch" else seen.mean(0)
    torch.testing.assert_close(branch.mean, mean, rtol=1e-3, atol=1e-3)


# ---- What is masked, averaged, restored


def test_a_loss_is_averaged_over_labelled_faces(tmp_path, trunk, monkeypatch):
    """Half of the ages and all but a few emotions are missing; each mean is over the labels that are there."""
    (whole,) = data.load("embedded")
    missing = {"age": torch.arange(88) % 2 == 0, "emotion": torch.arange(88) % 5 > 0}
    labels = {
        name: torch.where(missing.get(name, torch.zeros(88) > 0), -1, label) for name, label in whole.labels.items()
    }
    cfg, dataset = settings(trunk, batch=16), dataclasses.replace(whole, labels=labels)
    net, reader = built(cfg, trunk, [dataset])
    given, joint_loss = [], method.joint_loss
    monkeypatch.setattr(method, "joint_loss", lambda *args: given.append((args, joint_loss(*args))) or given[-1][1])
    job = jobs.begin(runs.Run(config.PAPER, "test", cfg, cfg, tmp_path), cfg, CPU)
    train.fit(job, net, reader)
    for step, ((scores, targets, counts, _), (loss, each)) in enumerate(given):
        index = dataset.index("train")[reader._rows(0, step)[0]]
        for name, label in labels.items():
            there = label[index] >= 0
            assert counts[name] == int(there.sum()) == len(scores[name])
            if name != "age":
                assert torch.equal(targets[name], label[index][there])
            torch.testing.assert_close(each[name], torch.nn.functional.cross_entropy(scores[name], targets[name]))
        torch.testing.assert_close(loss, sum(each.values()) / 4)
    assert given[0][0][2]["emotion"] < given[0][0][2]["age"] < 16 == given[0][0][2]["gender"]


@pytest.mark.parametrize("row", ["stage3", "joint"])
def test_averaged_weights_are_tested_and_saved(tmp_path, trunk, monkeypatch, row):
    averages, made = watch_averages(monkeypatch), []
    build = train.build
    monkeypatch.setattr(train, "build", lambda *given: made.append(build(*given)) or made[-1])
    record, folder = start(tmp_path, trunk, row, averaging=0.5)
    net, reader = made[0]
    learned = net if row == "joint" else net.branches
    assert averages[0].n_averaged == 4 and equal(tensors(learned), tensors(averages[0].module))
    stored, _ = checkpoint.read_weights(folder / "model.safetensors")
    assert all(torch.equal(stored[name], value) for name, value in learned.state_dict().items())
    arrays, _ = evaluate.results(evaluate.scores(net, reader, "test", CPU), reader.datasets)
    found = runs.read_predictions(folder / "predictions.npz")
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
    assert record["selection"] == "last, running average"
    _, other = start(tmp_path / "last", trunk, row, averaging=0.0)
    assert storage.sha256(folder / "model.safetensors") != storage.sha256(other / "model.safetensors")


@pytest.mark.parametrize(("row", "changes"), [("joint", dict(averaging=0.5)), ("trunk", dict(views=0, cache_from=99))])
def test_a_stopped_run_ends_in_the_same_bits(tmp_path, trunk, monkeypatch, row, changes):
    record, whole = start(tmp_path / "whole", trunk, row, **changes)
    stopped_at(monkeypatch, 1, lambda: start(tmp_path / "cut", trunk, row, **changes))
    again, cut = start(tmp_path / "cut", trunk, row, **changes)
    assert storage.sha256(whole / "model.safetensors") == storage.sha256(cut / "model.safetensors")
    assert again["metrics"] == record["metrics"]
    assert runs.read_history(whole)["step"].tolist() == [4] and runs.read_history(cut)["step"].tolist() == [2, 4]


# ---- What is chosen by, and tested on, which faces


def test_training_sees_training_faces_and_validation_faces_choose(tmp_path, trunk, monkeypatch):
    asked, given, inputs = [], [], source.Source.inputs
    monkeypatch.setattr(source.Source, "inputs", lambda self, *args, split="train", **more: (
        asked.append(split) or inputs(self, *args, split=split, **more)))  # fmt: skip
    for name in ("results", "validation"):
        real = getattr(evaluate, name)
        monkeypatch.setattr(evaluate, name, lambda found, sets, name=name, real=real: (
            given.append((name, found["age"].place)) or real(found, sets)))  # fmt: skip
    fit = train.fit
    monkeypatch.setattr(train, "fit", lambda *args: (fit(*args), asked.append("over"))[0])
    record, _ = start(tmp_path, trunk)
    assert set(asked[: asked.index("over")]) == {"train"}
    (dataset,) = data.load("embedded")
    (first, tested), (second, held_out) = given
    assert (first, second) == ("results", "validation") and set(record["validation"]) == set(dataset.labels)
    assert torch.equal(tested, dataset.index("test")) and torch.equal(held_out, dataset.index("val"))


def test_the_identity_network_learns_people_that_are_not_tested(tmp_path, trunk, monkeypatch):
    seen, fit = [], train.fit_trunk
    monkeypatch.setattr(
        train, "fit_trunk", lambda job, net, people, identity: seen.append(people) or fit(job, net, people, identity)
    )
    start(tmp_path, trunk, "trunk", views=0, cache_from=99)
    assert torch.equal(seen[0], data.embedded_people("train")[0])
    assert torch.equal(evaluate.identity_faces("embedded")[0], data.embedded_people("test")[0])
    assert len(seen[0]) != len(data.embedded_people("test")[0])


def test_the_margin_and_validation_choose(trunk):
    accuracy = {
        "age": {"linear": 50.0, "stage3": 53.0, "stage1": 54.0},
        "emotion": {"linear": 80.0, "stage3": 79.0, "stage1": 70.0},
    }
    chosen = lambda row, margin: assemble.choose_rows(
        settings(trunk, row, margin=margin), accuracy, [10, 10, 10, 10, 10], {"age": 1, "emotion": 1}
    )
    assert chosen("chosen", 0.0)[0] == {"age": "stage1", "emotion": "linear"}
    assert chosen("chosen", 1.5)[0] == {"age": "stage3", "emotion": "linear"}
    assert chosen("chosen", 5.0)[0] == {"age": "linear", "emotion": "linear"}
    assert chosen("best", 5.0) == ({"age": "stage1", "emotion": "linear"}, 2 * (2 * 50 + 2))


def test_borders_of_age_groups_belong_to_the_older_group():
    years = torch.tensor([2, 3, 9, 10, 39, 40, 69, 70])
    attribute = data.Attribute("age", data.AGE_CLASSES, True)
    certain = torch.nn.functional.one_hot(years, data.OLDEST + 1).float()
    hit, own, error = evaluate.hits_and_errors(attribute, certain, years)
    assert hit.all() and own.tolist() == [0, 1, 1, 2, 4, 5, 7, 8] and error.abs().max() < 0.01
    assert evaluate.groups_of(certain).argmax(1).tolist() == own.tolist()
    n = len(years)
    dataset = data.Dataset(
        "x", torch.zeros(n, 3, 2, 2), {"age": years}, np.full(n, 2), {"age": attribute}, torch.zeros(2, 3), ""
    )
    scored = evaluate.Scores(certain, years, torch.zeros(n, dtype=torch.long), torch.arange(n))
    table = evaluate.group_table([dataset], scored, hit)["age"]
    assert {name: cell["n"] for name, cell in table.items()} == {
        "0-2": 1, "3-9": 2, "10-19": 1, "30-39": 1, "40-49": 1, "60-69": 1, "70+": 1,
    }  # fmt: skip
