"""What coarse-to-fine's training averages, saves, restores, chooses by and reads from its settings."""

import dataclasses
import functools

import numpy as np
import pytest
import torch

from facepapers.common import storage
from facepapers.common.data.markups import COFW29
from facepapers.common.evidence import runs
from facepapers.common.training import loop, schedules
from facepapers.common.vision import images
from facepapers.papers.coarse_to_fine import config, crops, data, evaluate, figures, method, train, variant
from facepapers.papers.coarse_to_fine.metrics import METRICS, measure
from tests.conftest import tiny_faces
from tests.trainings import equal, settings_without_effect, stopped_at, tensors, watch_averages

CPU = torch.device("cpu")
BASE = dataclasses.replace(
    config.preset("demo", "heatmap"), crop=32, batch=4, steps=4, evaluate_every=2, warmup=2, averaging=0.5,
    val_share=0.1, precision="fp32",
)  # fmt: skip
SGD = dict(optimizer="sgd", averaging=0.0, lr=0.02)


@pytest.fixture(autouse=True)
def small(tiny, monkeypatch):
    """Forty faces, and the heatmap row's network with few channels: its loop is that of every row."""
    net = functools.partial(variant.HeatmapNet, widths=(8, 8), path=8)
    monkeypatch.setattr(variant, "HeatmapNet", net)


def start(out, **changes):
    """Train and record BASE with other settings; returns (record, folder)."""
    cfg = dataclasses.replace(BASE, **changes)
    config.check(cfg)
    record = train.train(cfg, CPU, out)
    return record, out / config.PAPER / cfg.run_name


def trained(monkeypatch, tmp_path):
    """A function of a Config: the tensors of the network that training leaves."""
    monkeypatch.setattr(train, "record", lambda job, model, *rest: tensors(model))
    return lambda cfg: train.train(cfg, CPU, tmp_path / str(len(list(tmp_path.iterdir()))))


def worse_and_worse(monkeypatch):
    """Make every validation worse than the one before; returns the list of weights that were offered."""
    values, offered, offer = iter(range(1, 100)), [], loop.Best.offer
    monkeypatch.setattr(evaluate, "mean_error_pct", lambda model, crops: float(next(values)))

    def offering(self, value, step):
        offered.append(tensors(self.model))
        offer(self, value, step)

    monkeypatch.setattr(loop.Best, "offer", offering)
    return offered


# ---- Settings


def test_every_setting_has_an_effect_on_the_weights(tmp_path, monkeypatch):
    other = dict(
        val_share=0.3, crop=48, batch=8, steps=5, first_stage=(SGD | dict(steps=10, evaluate_every=10), 0.2),
        optimizer=(dict(averaging=0.0), "sgd"), lr=1e-3, weight_decay=5.0, clip=1e-3, warmup=4, averaging=0.0,
        precision="bf16", margin=1.3, rotation_deg=1.0, shift=0.01, log_size=0.01, jpeg=True, colour=True,
        erase=(dict(colour=True), 0.9), seed=1,
    )  # fmt: skip
    elsewhere = dict.fromkeys(("preset", "data", "row"), "names") | {
        "start_at_mean": "test_the_biases_start_at_the_mean_shape_where_asked",
        "test_shift": "test_test_boxes_are_jittered_as_much_as_asked", "test_log_size": "the same",
        "evaluate_every": "test_every_step_has_its_stages_weights_and_rate",
        **dict.fromkeys(("folds", "trunk"), "tests/test_transfer.py"),
    }  # fmt: skip
    run = trained(monkeypatch, tmp_path)
    assert settings_without_effect(config.Config, run, BASE, other, elsewhere) == []


def test_the_biases_start_at_the_mean_shape_where_asked():
    feed = crops.Feed.of(BASE, CPU)
    cut = feed.plain(feed.fit)
    for asked in (False, True):
        model = config.Model(dataclasses.replace(BASE, row="cft", start_at_mean=asked), COFW29)
        model.look_at(cut)
        torch.nn.init.zeros_(model.net.heads[0].weight), torch.nn.init.zeros_(model.net.heads[1].weight)
        expected = cut.points.mean(0) if asked else torch.zeros(29, 2)
        torch.testing.assert_close(evaluate.predict(model, cut.images)[0], expected)
        torch.testing.assert_close(model.net.mean_image, cut.images.mean(0))


def test_test_boxes_are_jittered_as_much_as_asked():
    feed = crops.Feed.of(dataclasses.replace(BASE, test_shift=0.0, test_log_size=0.0), CPU)
    still = feed.plain(feed.test).to_image
    moved = crops.Feed.of(dataclasses.replace(BASE, test_shift=0.05, test_log_size=0.0), CPU).plain(feed.test).to_image
    sized = crops.Feed.of(dataclasses.replace(BASE, test_shift=0.0, test_log_size=0.1), CPU).plain(feed.test).to_image
    sides = lambda maps: 32 * maps[:, 0, 0]
    torch.testing.assert_close(sides(moved), sides(still))
    shift = (moved - still)[:, :, 2].abs() / sides(still).unsqueeze(1)
    assert 0.03 < shift.max() <= 0.0501 and (shift > 0).all()
    ratio = (sides(sized) / sides(still)).log().abs()
    assert 0.05 < ratio.max() <= 0.1001 and (ratio > 0).all()


def test_crops_are_changed_where_asked_alone():
    pixels, gen = 255 * torch.rand(40, 3, 32, 32), torch.Generator().manual_seed(0)
    plain = dataclasses.replace(BASE, jpeg=False, colour=False)
    assert torch.equal(crops.degrade(pixels, gen, plain), pixels)
    pressed = crops.degrade(pixels, gen, dataclasses.replace(plain, jpeg=True))
    kept = [torch.equal(a, b) for a, b in zip(pressed, pixels, strict=True)]
    assert 2 <= sum(kept) <= 20, "one in four stays as it is"
    flat = torch.full((40, 3, 32, 32), 100.0)
    spread = lambda x: (x.amax((2, 3)) - x.amin((2, 3))).amax(1)
    coloured = crops.degrade(flat, gen, dataclasses.replace(plain, colour=True, erase=0.0))
    covered = crops.degrade(flat, gen, dataclasses.replace(plain, colour=True, erase=1.0))
    assert (
        (spread(coloured) < 1).all() and (coloured - 100).abs().max() > 5 and (spread(covered) > 5).float().mean() > 0.8
    )


def test_seed_and_step_decide_faces_augmentation_and_start(tmp_path, monkeypatch):
    feeds = [crops.Feed.of(dataclasses.replace(BASE, seed=seed), CPU) for seed in (0, 0, 1)]
    one, same, other = feeds
    assert torch.equal(one.chosen(0), same.chosen(0)) and not torch.equal(one.chosen(0), other.chosen(0))
    index = one.fit[:4]
    cut = lambda feed, *keys: feed.augmented(index, *keys).to_image
    assert torch.equal(cut(one, 2, 0), cut(same, 2, 0))
    assert not torch.equal(cut(one, 2, 0), cut(other, 2, 0)) and not torch.equal(cut(one, 2, 0), cut(one, 2, 1))
    monkeypatch.setattr(crops.Feed, "chosen", lambda self, step: index)
    assert not torch.equal(one.batch(0).to_image, one.batch(1).to_image), "the same faces in two steps"
    starts = []
    monkeypatch.setattr(
        train, "fit", lambda job, model, *rest: starts.append(tensors(model)) or (None, loop.Best(model))
    )
    monkeypatch.setattr(train, "record", lambda *given: None)
    for number, seed in enumerate((0, 0, 1)):
        train.train(dataclasses.replace(BASE, seed=seed), CPU, tmp_path / str(number))
    assert equal(starts[0], starts[1]) and not equal(starts[0], starts[2])


# ---- Stages


def test_every_step_has_its_stages_weights_and_rate(tmp_path, monkeypatch):
    """Nine steps of stochastic gradient descent go through all stages, in the loss, the optimiser and the history."""
    used, rates = [], []
    loss, set_rate = config.Model.loss, schedules.set_rate
    monkeypatch.setattr(
        config.Model, "loss", lambda self, o, c, weights: used.append(weights) or loss(self, o, c, weights)
    )
    monkeypatch.setattr(schedules, "set_rate", lambda optimizer, rate: rates.append(rate) or set_rate(optimizer, rate))
    changes = SGD | dict(steps=20, warmup=4, evaluate_every=1)
    _, folder = start(tmp_path, **changes)
    rows = method.schedule(method.stages(BASE.first_stage), 20)
    expected = [next((w, r) for a, b, w, r in rows if a <= step < b) for step in range(20)]
    assert used == [w for w, _ in expected] and len(set(used)) == 5
    warm = [min(1.0, (step + 1) / 4) for step in range(20)]
    assert rates == pytest.approx([warm[k] * r for k, (_, r) in enumerate(expected)])
    history = runs.read_history(folder)
    assert history["step"].tolist() == [*range(1, 21)] and history["lr"].tolist() == pytest.approx(rates, rel=1e-5)
    assert history["weight_principal"].tolist() == [w[0] for w in used]


def test_a_stage_restarts_from_the_best_of_the_one_before(tmp_path, monkeypatch):
    """With fresh momentum, and choosing anew: what an earlier stage reached does not count."""
    offered, begun, filled = worse_and_worse(monkeypatch), [], []
    stages = (method.Stage(0.9, 0.1, 0.5, 0.02), method.Stage(0.5, 0.5, 0.5, 0.02))
    monkeypatch.setattr(method, "stages", lambda first=0.7: stages)
    loss, step = config.Model.loss, torch.optim.SGD.step
    monkeypatch.setattr(config.Model, "loss", lambda self, *given: begun.append(tensors(self)) or loss(self, *given))
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: filled.append(len(self.state) > 0) or step(self))
    record, _ = start(tmp_path, **SGD, steps=8)
    names = [name for name in begun[0] if name.endswith("weight")]
    weights = lambda state: {name: state[name] for name in names}
    assert equal(weights(begun[4]), weights(offered[0])), "step 2's, the better of the two validations of stage 1"
    assert not equal(weights(begun[4]), weights(offered[1]))
    assert filled == [False, True, True, True, False, True, True, True]
    assert record["best_validation"] == {"step": 6, "nme_pct": 3.0}


# ---- What is chosen, averaged, saved


def test_last_weights_are_saved_and_tested_beside_the_chosen_ones(tmp_path, monkeypatch):
    """Validation grows worse, so the first weights are the chosen ones; all three are running averages."""
    offered, averages = worse_and_worse(monkeypatch), watch_averages(monkeypatch)
    record, folder = start(tmp_path)
    model = evaluate.load(folder / "model.safetensors", CPU)[0]
    assert averages[0].n_averaged == 4 and len(offered) == 2
    assert equal(tensors(model), offered[-1]) and equal(offered[-1], tensors(averages[0].module))
    assert record["best_validation"] == {"step": 2, "nme_pct": 1.0} and record["selection"] == "last"
    feed = crops.Feed.of(BASE, CPU)
    errors = lambda: evaluate.errors(model, feed.plain(feed.test), feed.faces, feed.test, 1)["error_px"]
    arrays, last = runs.read_predictions(folder / "predictions.npz"), errors()
    model.load_state_dict({name: value.to(model.state_dict()[name]) for name, value in offered[0].items()})
    chosen = errors()
    np.testing.assert_allclose(arrays["error_px"], last, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(arrays["error_px_validation_chosen"], chosen, rtol=1e-4, atol=1e-4)
    assert np.abs(chosen - last).max() > 0.01


def test_without_averaging_the_last_weights_are_the_last_ones(tmp_path, monkeypatch):
    offered = worse_and_worse(monkeypatch)
    _, folder = start(tmp_path, averaging=0.0)
    assert equal(tensors(evaluate.load(folder / "model.safetensors", CPU)[0]), offered[-1])
    assert not equal(offered[0], offered[-1])


@pytest.mark.parametrize("val_share", [0.0, 0.2])
def test_test_faces_are_seen_when_all_is_over(tmp_path, monkeypatch, val_share):
    """Watched and validation faces, the mean image, the offsets and every batch are of training faces."""
    seen, begun = {"plain": [], "augmented": [], "offsets": []}, []
    for kind, name in ((crops.Feed, "plain"), (crops.Feed, "augmented"), (crops.FaceCrops, "offsets")):
        real = getattr(kind, name)
        monkeypatch.setattr(kind, name, lambda self, index, *more, real=real, name=name: (
            seen[name].append(set(index.tolist())) or real(self, index, *more)))  # fmt: skip
    predict_ = evaluate.predict
    monkeypatch.setattr(
        evaluate, "predict", lambda m, pixels, *more, **k: begun.append(len(pixels)) or predict_(m, pixels, *more, **k)
    )
    start(tmp_path, val_share=val_share)
    fit, val, test = (set(part.tolist()) for part in data.split(tiny_faces(), val_share))
    assert not fit & val and not (fit | val) & test and len(val) == round(40 * val_share)
    assert seen["plain"] == [val or fit, test] and seen["offsets"] == [fit]
    assert all(index <= fit for index in seen["augmented"]) and len(seen["augmented"]) == 1 + BASE.steps
    assert set(begun[:2]) == {len(val or fit)}, "the validations"


# ---- Resuming


@pytest.mark.parametrize("changes", [SGD, {}], ids=["sgd", "adamw"])
def test_a_run_that_stopped_amid_a_stage_ends_in_the_same_bits(tmp_path, monkeypatch, changes):
    """Weights, momentum, running average, best validation and history, with validations before and after the stop."""
    stages = (method.Stage(0.9, 0.1, 0.5, 0.02), method.Stage(0.5, 0.5, 0.5, 0.02))
    monkeypatch.setattr(method, "stages", lambda first=0.7: stages)
    offered = worse_and_worse(monkeypatch)
    record, whole = start(tmp_path / "whole", **changes, steps=8)
    with monkeypatch.context() as patch:
        offered = worse_and_worse(patch)
        stopped_at(patch, 2, lambda: start(tmp_path / "cut", **changes, steps=8))
        assert len(offered) == 1
        again, cut = start(tmp_path / "cut", **changes, steps=8)
    assert storage.sha256(whole / "model.safetensors") == storage.sha256(cut / "model.safetensors")
    assert again["metrics"] == record["metrics"] and again["best_validation"] == record["best_validation"]
    notes = [runs.read_history(path).dropna(subset="val_nme_pct") for path in (whole, cut)]
    one, other = (note[["step", "val_nme_pct", "lr", "weight_principal"]].to_numpy() for note in notes)
    assert len(one) == 4 and (one == other).all(), "the rows of validations; the stop closes a row of its own"


# ---- Testing


def test_the_command_finds_what_the_record_says(tmp_path, capsys):
    """A weights file is tested on the crops that its settings made, whatever the presets say."""
    record, folder = start(tmp_path, margin=1.4, test_shift=0.02, test_log_size=0.11)
    capsys.readouterr()
    evaluate.main(["--weights", str(folder / "model.safetensors"), "--data", "embedded", "--device", "cpu"])
    said = capsys.readouterr().out
    for name in ("nme_interpupil_pct", "nme_interpupil_mirrored_pct", "nme_interocular_pct"):
        (line,) = (line for line in said.splitlines() if METRICS[name].label in line)
        assert float(line.split()[-1]) == pytest.approx(record["metrics"][name], abs=6e-3)


def test_errors_name_their_normalisers_and_the_mirror_image(tmp_path):
    feed = crops.Feed.of(BASE, CPU)
    torch.manual_seed(3)
    model, cut = config.Model(BASE, COFW29), feed.plain(feed.test)
    found = evaluate.errors(model, cut, feed.faces, feed.test, 1, mirrored=True)
    points = tiny_faces().points[feed.test]
    between = lambda a, b: (points[:, a] - points[:, b]).norm(dim=1).numpy()
    np.testing.assert_allclose(found["interocular_px"], between(8, 9), rtol=1e-4)
    np.testing.assert_allclose(found["interpupil_px"], between(16, 17), rtol=1e-4)
    for name, flip in (("error_px", None), ("error_px_mirrored", COFW29.flip)):
        there = images.transform_points(evaluate.predict(model, cut.images, flip), cut.to_image)
        np.testing.assert_allclose(found[name], (there - points).norm(dim=2).numpy(), rtol=0, atol=1e-4)
    assert np.abs(found["error_px"] - found["error_px_mirrored"]).max() > 0.01


def test_parts_of_the_faces_and_of_the_points_by_hand():
    error = np.array([[1.0, 2, 3], [4, 4, 4]])
    p = {"error_px": error, "interpupil_px": np.array([10.0, 20]), "occluded": np.array([[1, 0, 0], [0, 0, 1]], bool),
         "principal": np.array([1, 0, 1], bool), "challenge": np.array([0, 1], bool)}  # fmt: skip
    found = measure(p)
    assert found["nme_interpupil_pct"] == pytest.approx(20) and found["nme_interpupil_challenge_pct"] == pytest.approx(
        20
    )
    assert found["nme_interpupil_occluded_pct"] == pytest.approx((10 + 20) / 2)
    assert found["nme_interpupil_visible_pct"] == pytest.approx((20 + 30 + 20 + 20) / 4)
    p["error_px"] = error * [[1], [2]]
    assert measure(p)["nme_interpupil_challenge_pct"] == pytest.approx(40)
    assert measure(p)["nme_interpupil_principal_pct"] == pytest.approx((20 + 40) / 2)
    assert figures.error_of("principal", "interpupil").name == "nme_interpupil_principal_pct"
    assert figures.error_of("cft", "eyecentre").name == "nme_eyecentre_pct"
