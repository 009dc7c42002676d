"""What ReSup's training averages, saves, restores, shares and chooses by, and that each of its settings matters."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from test_resup_train import CLASSES, FACES

from facepapers.common import storage
from facepapers.common.evidence import jobs, runs
from facepapers.common.training import loop, schedules
from facepapers.papers.resup import config, data, evaluate, fitting, method, train
from tests.trainings import equal, settings_without_effect, stopped_at, tensors, watch_averages

CPU = torch.device("cpu")
SMALL = dict(precision="fp32", width=8, units=(1, 1), input_px=16, batch=24, epochs=3, warmup=1)


@pytest.fixture(autouse=True)
def faces(monkeypatch):
    """Make `--data embedded` a hundred tiny faces."""
    monkeypatch.setattr(data, "EMBEDDED", FACES)
    data.load.cache_clear()
    yield data.load("embedded")
    data.load.cache_clear()


def settings(row="resup", **changes):
    cfg = dataclasses.replace(config.preset("demo", row), **SMALL | changes)
    config.check(cfg)
    return cfg


def start(out, row="resup", **changes):
    """Train and record a row with other settings; returns (record, folder)."""
    cfg = settings(row, **changes)
    return train.train(cfg, CPU, out), out / config.PAPER / cfg.run_name


def fitted(tmp_path, cfg, whole, splits=None, watch=None):
    """(networks, State) that the loop leaves."""
    run = runs.Run(config.PAPER, "test", cfg, cfg, tmp_path / str(len(list(tmp_path.iterdir()))))
    peers = config.build_peers(cfg, len(whole.classes))
    state, _ = train.fit(jobs.begin(run, cfg, CPU), peers, splits or data.splits(whole, cfg), watch=watch)
    return peers, state


def worse_and_worse(monkeypatch):
    """Make every validation worse than the one before; returns the list of weights that were offered."""
    values, offered, offer = iter(range(99, 0, -1)), [], loop.Best.offer
    monkeypatch.setattr(evaluate, "accuracy_pct", lambda p, label: float(next(values)))

    def offering(self, value, step):
        offered.append(tensors(self.model))
        offer(self, value, step)

    monkeypatch.setattr(loop.Best, "offer", offering)
    return offered


# ---- Settings


def test_every_setting_has_an_effect_on_the_weights(tmp_path, faces):
    epoch, plus = dict(weights_from="epoch"), dict(weights_from="epoch", relabel=True)
    coteaching = dict(weighting="coteaching", consistency=0.0)
    bayes = dict(weighting="bayes", epochs=4)
    other = dict(
        nets=(dict(weighting="own"), 1), weighting="own", evidence="loss", consistency=50.0, seed=1, noise=0.2,
        stem="small", width=12, units=(1, 2), dropout=0.5, input_px=24, augment="strong", apart=False, batch=32,
        epochs=3, warmup=2, optimizer="sgd", lr=1e-3, drops=(1,), restart=True, lr_warmup=2,
        momentum=(dict(optimizer="sgd"), 0.5), weight_decay=0.5, clip=1e-3, precision="bf16", judge_view="clean",
        weights_from="epoch", forget_ramp=(coteaching, 1), averaging=0.9, relabel=(epoch, True), smoothing=(plus, 0.2),
        judge_again=(bayes, 1),
    )  # fmt: skip
    elsewhere = dict.fromkeys(("preset", "data", "row"), "names") | {
        "rule": "test_ferplus_votes_become_labels_and_grey_faces_one_channel",
        "noise_kind": "test_only_training_labels_are_ever_flipped",
        "init": "test_starting_weights_are_read_and_recorded",
        "flip_test": "test_a_weights_file_is_tested_as_its_run_was", "test_scales": "the same",
    }  # fmt: skip
    base = settings(epochs=2, lr_warmup=1, batch=48, drops=())
    run = lambda cfg: tensors(fitted(tmp_path, cfg, faces)[0])
    assert settings_without_effect(config.Config, run, base, other, elsewhere) == []


def test_seed_epoch_and_step_decide_labels_order_augmentation_and_start(faces):
    of = lambda seed: settings(seed=seed)
    labels = [data.splits(faces, of(seed)).training.given for seed in (0, 0, 1)]
    assert (labels[0] == labels[1]).all() and (labels[0] != labels[2]).any()
    orders = [data.index(of(seed), 96, step) for seed, step in ((0, 0), (0, 0), (1, 0), (0, 4))]
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0][0], orders[2][0]) and not torch.equal(orders[0][0], orders[3][0]), "another epoch"
    index = torch.arange(24).expand(2, -1)
    seen = [
        data.views(faces.images, of(seed), index, step, slice(0, 24))[0]
        for seed, step in ((0, 0), (0, 0), (1, 0), (0, 1))
    ]
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2]) and not torch.equal(seen[0], seen[3])
    peers = [config.build_peers(of(seed), CLASSES) for seed in (0, 0, 1)]
    assert equal(tensors(peers[0]), tensors(peers[1]))
    weights = [member.fc.weight for one in (peers[0], peers[2]) for member in one.members]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(weights, 2)), (
        "no seed's second is another's first"
    )


def test_every_step_has_its_rate(tmp_path, monkeypatch, faces):
    rates, set_rate = [], schedules.set_rate
    monkeypatch.setattr(schedules, "set_rate", lambda optimizer, rate: rates.append(rate) or set_rate(optimizer, rate))
    cfg = settings(batch=48, drops=(2,), lr_warmup=1)
    fitted(tmp_path, cfg, faces)
    assert rates == pytest.approx([0.01 * cfg.lr, 0.51 * cfg.lr, cfg.lr, cfg.lr, 0.1 * cfg.lr, 0.1 * cfg.lr])


# ---- The loss of a step


def test_a_rows_loss_hands_on_what_its_settings_say():
    """Consistency, relabelling with the networks' mean belief, smoothing; and plain cross-entropy in the warm-up."""
    gen = torch.Generator().manual_seed(0)
    logits, labels, index = torch.randn(2, 4, 5, generator=gen), torch.arange(4), torch.tensor([7, 0, 3, 5])
    models = torch.nn.ModuleList([method.NoiseModel(8, 5) for _ in range(2)])
    for model in models:
        model.weight.copy_(torch.rand(8, generator=gen))
        model.belief.copy_(torch.rand(8, 5, generator=gen).softmax(1))
    cfg = settings("resup_plus", consistency=3.0, smoothing=0.2, warmup=2)
    args = logits, labels.expand(2, -1), index, models
    found = train.row_loss(cfg, *args, 2, torch.zeros(8, dtype=torch.bool))
    weights = torch.stack([models[1].weight[index], models[0].weight[index]])
    belief = (models[0].belief + models[1].belief)[index] / 2
    torch.testing.assert_close(found, method.weighted_loss(logits, labels, weights, 3.0, belief, 0.2))
    plain = train.row_loss(cfg, *args, 1, torch.zeros(8, dtype=torch.bool))
    torch.testing.assert_close(plain, sum(torch.nn.functional.cross_entropy(one, labels) for one in logits))


def test_coteaching_forgets_as_much_as_is_wrong(monkeypatch):
    dropped = []
    monkeypatch.setattr(
        method, "coteaching_weights", lambda losses, share: dropped.append(share) or torch.ones_like(losses)
    )
    cfg = settings("coteaching", forget_ramp=4, batch=4)
    flip = torch.arange(10) < 4
    for epoch in (1, 2, 9):
        train.row_weights(cfg, torch.randn(2, 4, 5), torch.arange(4), torch.arange(4), None, epoch, flip)
    assert dropped == pytest.approx([0.1, 0.2, 0.4])


# ---- What is averaged, chosen, saved


def test_last_weights_are_saved_and_tested_beside_the_chosen_ones(tmp_path, monkeypatch, faces):
    """Validation grows worse, so the first epoch's weights are the chosen ones; the rest are running averages."""
    averages = watch_averages(monkeypatch)
    with monkeypatch.context() as patch:
        offered = worse_and_worse(patch)
        record, folder = start(tmp_path, "ce_plus", averaging=0.5)
    peers, cfg, _ = evaluate.load(folder / "model.safetensors", CPU)
    assert len(offered) == 3 and averages[0].n_averaged == 8, "two epochs of four steps after the warm-up"
    assert equal(tensors(peers), offered[-1]) and equal(offered[-1], tensors(averages[0].module))
    assert record["validation_chosen_step"] == 4 and record["selection"] == "last, running average"
    arrays, test = runs.read_predictions(folder / "predictions.npz"), data.one_split(faces, 2)
    last = evaluate.probabilities(peers, test.images, cfg, CPU)
    peers.load_state_dict({name: value.to(peers.state_dict()[name]) for name, value in offered[0].items()})
    chosen = evaluate.probabilities(peers, test.images, cfg, CPU)
    for p, end in ((last, ""), (chosen, "_validation_chosen")):
        assert (arrays[f"predicted{end}"] == p[0].argmax(1).numpy()).all()
        assert (arrays[f"predicted_second{end}"] == p[1].argmax(1).numpy()).all()
        assert (arrays[f"predicted_mean{end}"] == p.mean(0).argmax(1).numpy()).all()
    assert (arrays["predicted"] != arrays["predicted_validation_chosen"]).any()


def test_the_warm_up_is_no_part_of_the_average(tmp_path, monkeypatch, faces):
    """What is validated in the warm-up are its own weights; the average starts from its end."""
    averages, offered = watch_averages(monkeypatch), worse_and_worse(monkeypatch)
    ends = []
    note = loop.Steps.note
    monkeypatch.setattr(
        loop.Steps, "note", lambda self, **v: ends.append(tensors(self.parts["model"])) or note(self, **v)
    )
    fitted(tmp_path, settings("ce_plus", averaging=0.5, warmup=2), faces)
    assert equal(offered[0], ends[0]) and equal(offered[1], ends[1]) and not equal(offered[2], ends[2])
    assert averages[0].n_averaged == 4


def test_test_faces_are_not_there_while_training(tmp_path, faces):
    """Nothing that trains, validates or fits a noise model can look at them; validation labels are the true ones."""
    for row in ("resup", "ce_plus", "bayes"):
        cfg = settings(row, epochs=2)
        splits = data.splits(faces, cfg)
        fitted(tmp_path, cfg, faces, splits._replace(test=None))


def test_networks_learn_new_statistics_after_a_validation(tmp_path, monkeypatch, faces):
    """Validation and noise models look in test mode, and the training goes on in its own."""
    modes, row_loss = [], train.row_loss
    monkeypatch.setattr(train, "row_loss", lambda *given: modes.append(built[0].training) or row_loss(*given))
    built, build = [], config.build_peers
    monkeypatch.setattr(config, "build_peers", lambda *given: built.append(build(*given)) or built[-1])
    fitted(tmp_path, settings(epochs=2), faces)
    assert modes == [True] * 8


def test_noise_models_are_fitted_from_the_warm_ups_end_on(tmp_path, monkeypatch, faces):
    epochs = []
    fitted(tmp_path, settings(warmup=2, epochs=4), faces, watch=lambda epoch, models: epochs.append(epoch))
    assert epochs == [1, 2, 3]
    seen, judge = [], evaluate.training_logits
    monkeypatch.setattr(
        evaluate, "training_logits", lambda peers, *more: seen.append(tensors(peers)) or judge(peers, *more)
    )
    offered = worse_and_worse(monkeypatch)
    fitted(tmp_path, settings("resup_plus", averaging=0.5), faces)
    assert len(seen) == 3 and all(map(equal, seen, offered)), "by the averaged networks, which are validated too"


# ---- Resuming and sharing


@pytest.mark.parametrize(("row", "optimizer"), [("resup_plus", "adamw"), ("bayes", "sgd")])
def test_a_stopped_run_ends_in_the_same_bits(tmp_path, monkeypatch, row, optimizer):
    """Two steps into the last epoch: momentum, dropout's generators, noise models, averages, best epoch, history."""
    changes = dict(dropout=0.3, optimizer=optimizer)
    with monkeypatch.context() as patch:
        worse_and_worse(patch)
        record, whole = start(tmp_path / "whole", row, **changes)
    with monkeypatch.context() as patch:
        worse_and_worse(patch)
        stopped_at(patch, 9, lambda: start(tmp_path / "cut", row, **changes))
        again, cut = start(tmp_path / "cut", row, **changes)
    assert storage.sha256(whole / "model.safetensors") == storage.sha256(cut / "model.safetensors")
    assert again["validation_chosen_step"] == record["validation_chosen_step"] == 4
    one, other = (runs.read_predictions(folder / "predictions.npz") for folder in (whole, cut))
    assert one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)
    notes = [
        runs.read_history(folder).dropna(subset="val_pct")[["step", "val_pct"]].to_numpy() for folder in (whole, cut)
    ]
    assert len(notes[0]) == 3 and (notes[0] == notes[1]).all()


def test_a_warm_up_is_shared_by_rows_alone(tmp_path, faces):
    """Whatever else differs, the seed, the noise and the data among it, has a warm-up of its own."""
    later = dict(
        row="own", weighting="own", evidence="loss", consistency=0.0, judge_view="clean", weights_from="epoch",
        forget_ramp=3, averaging=0.5, relabel=True, smoothing=0.1, judge_again=2,
    )  # fmt: skip
    other = dict(
        seed=1, noise=0.2, noise_kind="fer2013", init=("scratch", "file"), stem="small", width=12, units=(1, 2),
        dropout=0.5, input_px=24, augment="strong", apart=False, batch=32, epochs=4, warmup=2, optimizer="sgd", lr=1e-3,
        drops=(1,), restart=True, lr_warmup=2, momentum=0.5, weight_decay=0.5, clip=1e-3, precision="bf16",
        rule="other", data="ferplus", flip_test=True, test_scales=(0.9,),
    )  # fmt: skip
    base = settings()

    def file(cfg, fingerprint="x"):
        run = runs.Run(config.PAPER, "test", cfg, cfg, tmp_path)
        return train.warm_up_file(jobs.Job(run, cfg, cfg, CPU, slice(0, 8)), fingerprint, config.NO_FILES)

    assert later.keys() | other.keys() | {"preset", "nets"} == {field.name for field in dataclasses.fields(base)}
    assert {file(dataclasses.replace(base, **{k: v})) for k, v in later.items()} == {file(base)}
    names = [file(dataclasses.replace(base, **{k: v})) for k, v in other.items()]
    assert len({*names, file(base), file(base, "y")}) == len(names) + 2


# ---- Testing


def test_a_weights_file_is_tested_as_its_run_was(tmp_path, capsys):
    for flip, scales in ((True, (1.0,)), (False, (0.8, 1.0))):
        record, folder = start(tmp_path, flip_test=flip, test_scales=scales)
        _, cfg, _ = evaluate.load(folder / "model.safetensors", CPU)
        assert (cfg.flip_test, cfg.test_scales) == (flip, scales)
        capsys.readouterr()
        evaluate.main(["--weights", str(folder / "model.safetensors"), "--device", "cpu"])
        lines = capsys.readouterr().out.splitlines()
        for name in ("accuracy_pct", "accuracy_mean_pct", "balanced_pct"):
            (line,) = (line for line in lines if line.startswith(f"  {evaluate.METRICS[name].label} "))
            assert float(line.split()[-1]) == pytest.approx(record["metrics"][name], abs=6e-3)


def test_a_noise_model_judges_the_views_that_its_row_names(faces, monkeypatch):
    cfg = settings()
    torch.manual_seed(0)
    peers, pictures = config.build_peers(cfg, CLASSES).eval(), data.splits(faces, cfg).training.images
    logits = lambda epoch, **more: evaluate.training_logits(
        peers, pictures, dataclasses.replace(cfg, **more), epoch, CPU
    )
    clean = evaluate.forward(peers, data.plain(pictures, cfg), cfg)
    torch.testing.assert_close(logits(1, judge_view="clean"), clean, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits(1), clean, atol=1e-3) and not torch.equal(logits(1), logits(2))
    models = torch.nn.ModuleList([method.NoiseModel(len(pictures), CLASSES) for _ in range(2)])
    training = data.splits(faces, cfg).training
    fitting.update_noise_models(dataclasses.replace(cfg, judge_view="clean"), models, peers, training, 1, CPU)
    for model, one in zip(models, clean, strict=True):
        torch.testing.assert_close(model.belief, one.softmax(1), rtol=1e-3, atol=1e-4)
    arrays = evaluate.noise_arrays(models, training)
    np.testing.assert_allclose(arrays["weight"], (models[0].weight + models[1].weight).numpy() / 2, atol=1e-3)
    np.testing.assert_allclose(arrays["weight_second"], models[1].weight.numpy(), atol=1e-3)
