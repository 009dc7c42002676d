"""Coarse-to-fine alignment: network, loss, stages, crops, errors, prediction, and the claim that it learns."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from facepapers.common import cli, paths, seeding
from facepapers.common.data.markups import COFW29, IBUG68
from facepapers.common.training import checkpoint
from facepapers.common.vision import images
from facepapers.papers.coarse_to_fine import config, crops, data, evaluate, method, predict, train, variant
from tests.conftest import TINY, one_line_error

CPU = torch.device("cpu")
PLAIN = dict(rotation_deg=0.0, shift=0.0, log_size=0.0, jpeg=False)


def settings(row="cft", **changes):
    return dataclasses.replace(config.preset("demo", row), **dict(precision="fp32") | changes)


def macs(model, side):
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, side, side))
    return counter.get_total_flops() / 2


def count(module):
    return sum(p.numel() for p in module.parameters())


# Network


def test_parameters_and_multiply_adds():
    net = method.CFTNet(29, COFW29.principal)
    assert count(net) - count(net.auxiliary) == pytest.approx(2.91e6, abs=5e3)
    assert count(net.auxiliary) == pytest.approx(4.12e6, abs=5e3)
    assert macs(net, 50) == pytest.approx(0.38e9, rel=0.02)


@pytest.mark.parametrize("markup", [COFW29, IBUG68], ids=lambda m: m.name)
def test_layers(markup):
    net, seen = method.CFTNet(markup.n_points, markup.principal), []
    for stage in net.stages:
        stage.register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape[1:])))
    outputs = net.train()(torch.zeros(2, 3, 50, 50))
    assert seen == [(64, 25, 25), (128, 13, 13), (192, 7, 7), (256, 4, 4)]
    assert [h.out_features for h in net.heads] == [24, 2 * markup.n_points - 24]
    assert len(outputs) == 4 and all(o.shape == (2, markup.n_points, 2) for o in outputs)
    assert net.eval()(torch.zeros(2, 3, 50, 50)).shape == (2, markup.n_points, 2)
    assert not [m for m in net.modules() if isinstance(m, torch.nn.Dropout)]


def test_fc5_has_no_activation():
    """From the last pooled map on the network is affine: f(a) + f(b) = f(a + b) + f(0)."""
    net = method.CFTNet(29, COFW29.principal).eval()
    for layer in (net.fc5, *net.heads):
        torch.nn.init.normal_(layer.weight)
        torch.nn.init.normal_(layer.bias)
    net.stages = torch.nn.ModuleList([torch.nn.Identity()] * 3 + [torch.nn.Flatten()])
    net.mean_image = torch.zeros(1)
    a, b = torch.randn(2, 1, 4096)
    torch.testing.assert_close(net(a) + net(b), net(a + b) + net(torch.zeros(1, 4096)), rtol=1e-3, atol=1e-2)


def test_initial_weights():
    torch.manual_seed(0)
    net = method.CFTNet(29, COFW29.principal)
    for module in net.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            assert module.weight.std().item() == pytest.approx(0.01, rel=0.1) and not module.bias.any()
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.eps == 1e-9 and (module.weight == 1).all() and not module.bias.any()


@pytest.mark.parametrize("markup", [COFW29, IBUG68], ids=lambda m: m.name)
def test_outputs_return_to_the_markups_order(markup):
    net = method.CFTNet(markup.n_points, markup.principal)
    for head, points in zip(net.heads, (markup.principal, markup.elaborate), strict=True):
        torch.nn.init.zeros_(head.weight)
        head.bias.data = torch.tensor([[i, 100.0 + i] for i in points]).flatten()
    expected = torch.tensor([[i, 100.0 + i] for i in range(markup.n_points)])
    assert torch.equal(net.eval()(torch.rand(1, 3, 50, 50))[0], expected)


def test_the_mean_image_is_subtracted():
    net = method.CFTNet(29, COFW29.principal).eval()
    picture = 255 * torch.rand(1, 3, 50, 50)
    plain = net(picture)
    net.mean_image.fill_(30)
    torch.testing.assert_close(net(picture + 30), plain, rtol=1e-4, atol=1e-5)


# Loss and stages


def slow_loss(outputs, truth, distance, principal, weights):
    total = 0.0
    for points in outputs:
        for i in range(len(truth)):
            for k in range(truth.shape[1]):
                weight = weights[0] if k in principal else weights[1]
                for c in range(2):
                    gap = points[i, k, c] - truth[i, k, c]
                    total = total + weight * gap**2 / (2 * distance[i] ** 2) / len(truth)
    return total


def test_loss_and_gradient_against_a_slow_derivation():
    gen = torch.Generator().manual_seed(3)
    outputs = [torch.randn(3, 29, 2, generator=gen, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    truth = torch.randn(3, 29, 2, generator=gen, dtype=torch.float64)
    distance = torch.tensor([3.0, 5.0, 11.0], dtype=torch.float64)
    args = outputs, truth, distance
    fast = method.coarse_to_fine_loss(*args, COFW29.principal, COFW29.elaborate, (0.8, 0.2))
    slow = slow_loss(*args, COFW29.principal, (0.8, 0.2))
    torch.testing.assert_close(fast, slow)
    for a, b in zip(torch.autograd.grad(fast, outputs), torch.autograd.grad(slow, outputs), strict=True):
        torch.testing.assert_close(a, b)


def test_loss_is_a_sum_over_points_divided_by_each_faces_own_distance():
    truth = torch.zeros(2, 29, 2)
    off = torch.ones(2, 29, 2)
    loss = method.squared_error(off, truth, torch.tensor([1.0, 2.0]), list(range(17)))
    assert loss.item() == pytest.approx((34 / 2 + 34 / 8) / 2)  # neither a mean over points nor the first face's d


@pytest.mark.parametrize("first", [0.7, 0.4])
@pytest.mark.parametrize("steps", [1, 7, 400, 7_800, 160_000])
def test_stages_cover_every_step_and_end_equal(steps, first):
    rows = method.schedule(method.stages(first), steps)
    assert rows[0][0] == 0 and rows[-1][1] == steps
    assert all(a[1] == b[0] for a, b in itertools.pairwise(rows))
    weights = [w for _, _, w, _ in rows]
    assert weights[0] == (0.9, 0.1) and weights[-1] == (0.5, 0.5)
    assert all(a[0] >= b[0] for a, b in itertools.pairwise(weights))
    assert all(sum(w) == pytest.approx(1) for w in weights)
    if steps >= 400:
        assert sum(b - a for a, b, w, _ in rows if w == (0.9, 0.1)) == pytest.approx(first * steps, abs=1)


@pytest.mark.parametrize(("control", "fixed"), [("direct", (0.5, 0.5)), ("principal", (1.0, 0.0))])
def test_controls_share_steps_and_rates(control, fixed):
    ours, theirs = method.schedule(method.stages(), 999), method.schedule(method.stages(), 999, control)
    assert [(a, b, lr) for a, b, _, lr in ours] == [(a, b, lr) for a, b, _, lr in theirs]
    assert {w for _, _, w, _ in theirs} == {fixed}


def test_biases_learn_twice_as_fast_and_do_not_decay():
    cfg = settings(optimizer="sgd", weight_decay=5e-4)
    model = config.Model(cfg, COFW29)
    groups = train.make_optimizer(cfg, model).param_groups
    of = {id(p): g for g in groups for p in g["params"]}
    assert len(of) == len(list(model.parameters()))
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            rate = 2.0 if name == "bias" and not isinstance(module, torch.nn.BatchNorm2d) else 1.0
            decay = 0.0 if isinstance(module, torch.nn.BatchNorm2d) or name == "bias" else 5e-4
            assert (of[id(parameter)]["rate"], of[id(parameter)]["weight_decay"]) == (rate, decay)


def test_rates():
    cfg = settings(optimizer="sgd", lr=0.02, warmup=10)
    assert train.rate_at(cfg, 0, 0.02) == pytest.approx(0.002) and train.rate_at(cfg, 500, 0.001) == 0.001
    cosine = settings(optimizer="adamw", lr=1.0, warmup=1, steps=100)
    assert train.rate_at(cosine, 50, 0.001) == pytest.approx(0.5) and train.rate_at(cosine, 99, 0.02) < 1e-3


# Crops


def test_boxes_hold_the_rotated_landmarks(drawn_faces):
    faces = crops.FaceCrops(drawn_faces, 32, 1.0, CPU)
    cfg = settings(crop=32, **PLAIN | dict(rotation_deg=45.0))
    cut = faces.training(torch.arange(60), seeding.generator(0), cfg, crops.Offsets())
    low, high = cut.points.amin((1, 2)), cut.points.amax((1, 2))
    assert (low > -0.51).all() and (high < 31.51).all()
    torch.testing.assert_close((cut.points.amax(1) - cut.points.amin(1)).amax(1), torch.full((60,), 32.0))
    slope = cut.to_image[:, 1, 0] / cut.to_image[:, 0, 0]
    assert slope.abs().max() > 0.3  # the boxes are turned


def test_the_jitter_stays_in_its_range(drawn_faces):
    faces = crops.FaceCrops(drawn_faces, 32, 1.25, CPU)
    still = faces.training(torch.arange(60), seeding.generator(0), settings(crop=32, **PLAIN), crops.Offsets())
    cfg = settings(crop=32, **PLAIN | dict(shift=0.1, log_size=0.2))
    moved = faces.training(torch.arange(60), seeding.generator(0), cfg, crops.Offsets())
    ratio = (moved.to_image[:, :, :2].det().abs() / still.to_image[:, :, :2].det().abs()).sqrt().log()
    assert 0.15 < ratio.abs().max() <= 0.2001
    middle = torch.full((60, 1, 2), 15.5)
    step = images.transform_points(images.transform_points(middle, moved.to_image), images.invert(still.to_image))
    assert 2.5 < (step - middle).abs().max() <= 3.21


def test_pixels_and_points_of_a_crop_agree(drawn_faces):
    """Bright pixels painted at a pupil are found where the crop says the (flipped) pupil is."""
    painted = dataclasses.replace(drawn_faces, images=torch.zeros_like(drawn_faces.images))
    x, y = painted.points[:, 16].round().long().unbind(1)
    for dx in (-1, 0, 1):
        for dy in (-1, 0, 1):
            painted.images[torch.arange(len(x)), :, y + dy, x + dx] = 255
    painted.points[:, 16] = torch.stack([x, y], 1).float()
    cut = crops.FaceCrops(painted, 48, 1.25, CPU).training(
        torch.arange(60), seeding.generator(1), settings(crop=48, jpeg=False), crops.Offsets()
    )
    flipped = torch.linalg.det(cut.to_image[:, :, :2]) < 0
    assert flipped.any() and not flipped.all()
    expected = torch.where(flipped.unsqueeze(1), cut.points[:, 17], cut.points[:, 16])
    grey, steps = cut.images.mean(1), torch.arange(48.0)
    found = torch.stack([grey.sum(1) @ steps, grey.sum(2) @ steps], 1) / grey.sum((1, 2)).unsqueeze(1)
    inside = ((expected > 4) & (expected < 43)).all(1)
    assert inside.sum() > 40 and (found - expected)[inside].norm(dim=1).max() < 0.3


def test_test_crops_are_the_same_for_every_seed(drawn_faces):
    faces, rows = crops.FaceCrops(drawn_faces, 32, 1.25, CPU), torch.tensor([3, 50, 7])
    first, other = (faces.testing(rows, settings(crop=32, seed=s), crops.Offsets()) for s in (0, 1))
    assert torch.equal(first.images, other.images)
    alone = faces.testing(rows[1:2], settings(crop=32), crops.Offsets())
    torch.testing.assert_close(alone.to_image, first.to_image[1:2])  # nor does a face's box depend on the others
    assert data.boxes(drawn_faces) == "landmarks with a fixed jitter"


@pytest.fixture
def boxed(drawn_faces):
    """The faces with official boxes: 0.1 of the side to the right, 1.2 times as large, some spread."""
    centre, side = crops.landmark_boxes(drawn_faces.points, 1.25)
    gen = seeding.generator(9)
    centre = (
        centre
        + torch.stack([0.1 * side, 0 * side], 1)
        + 0.05 * side.unsqueeze(1) * images.uniform(-1, 1, (160, 2), gen)
    )
    side = side * 1.2 * images.uniform(-0.1, 0.1, (160,), gen).exp()
    return dataclasses.replace(
        drawn_faces, box=torch.cat([centre - side.unsqueeze(1) / 2, side.view(-1, 1).expand(-1, 2)], 1)
    )


def test_official_boxes_are_used_as_they_are(boxed):
    faces = crops.FaceCrops(boxed, 32, 1.25, CPU)
    cut = faces.testing(torch.arange(5), settings(crop=32), faces.offsets(torch.arange(100)))
    corner = images.transform_points(torch.full((5, 1, 2), -0.5), cut.to_image)[:, 0]
    torch.testing.assert_close(corner, boxed.box[:5, :2], rtol=1e-4, atol=1e-3)
    assert data.boxes(boxed) == "official"


def test_the_gap_to_official_boxes_is_measured_on_training_faces(boxed):
    faces = crops.FaceCrops(boxed, 32, 1.25, CPU)
    found = faces.offsets(torch.arange(120))
    assert found.mean_shift == pytest.approx((0.1, 0.0), abs=0.02)
    assert found.mean_log_size == pytest.approx(np.log(1.2), abs=0.03)
    assert found.shift_range == pytest.approx((0.05, 0.05), rel=0.2)
    assert found.log_size_range == pytest.approx(0.1, rel=0.2)
    assert (
        crops.FaceCrops(dataclasses.replace(boxed, box=boxed.box * torch.nan), 32, 1.25, CPU).offsets(torch.arange(9))
        == crops.Offsets()
    )
    cut = faces.training(torch.arange(120), seeding.generator(0), settings(crop=32, **PLAIN), found)
    side = cut.to_image[:, :, :2].det().abs().sqrt() * 32
    ratio = (side / crops.landmark_boxes(boxed.points[:120], 1.25)[1]).log()
    assert ratio.mean().item() == pytest.approx(np.log(1.2), abs=0.04)


def test_large_pictures_are_halved_without_moving_the_points(drawn_faces):
    wide = dataclasses.replace(
        drawn_faces, images=drawn_faces.images.repeat_interleave(4, 2).repeat_interleave(4, 3),
        points=drawn_faces.points * 4 + 1.5,
    )  # fmt: skip
    small, large = crops.FaceCrops(drawn_faces, 32, 1.25, CPU), crops.FaceCrops(wide, 32, 1.25, CPU)
    assert (small.reduction, large.reduction) == (1, 4)
    a, b = (f.testing(torch.arange(6), settings(crop=32), crops.Offsets()) for f in (small, large))
    torch.testing.assert_close(a.points, b.points, atol=1e-3, rtol=0)
    assert (a.images - b.images).abs().mean() < 1


# Our variant, and the floor


def test_expected_points_of_a_map_made_by_hand():
    maps = torch.full((1, 2, 8, 8), -1e9)
    maps[0, 0, 2, 5] = 0.0  # all mass in row 2, column 5
    maps[0, 1, 0, 0] = maps[0, 1, 0, 4] = float(np.log(0.5))
    points = variant.expected_points(maps)
    torch.testing.assert_close(points[0], torch.tensor([[5.5 * 4 - 0.5, 2.5 * 4 - 0.5], [2.5 * 4 - 0.5, 1.5]]))


def test_the_variants_loss_is_least_at_the_truth():
    truth, cells = torch.full((1, 1, 2), 13.5), variant.cell_centres(8, CPU)

    def loss(at):
        one_axis = -0.5 * ((cells - at) / 4) ** 2
        maps = torch.log_softmax((one_axis.view(1, -1) + one_axis.view(-1, 1)).flatten(), 0)
        return variant.heatmap_loss(maps.view(1, 1, 8, 8), truth, torch.tensor([10.0]))

    assert loss(13.5) < loss(15.5) < loss(19.5)


def test_the_variant_costs_no_more_than_cft():
    for n in (29, 68):
        markup = COFW29 if n == 29 else IBUG68
        assert macs(variant.HeatmapNet(n, 112), 112) <= macs(method.CFTNet(n, markup.principal), 50)


def test_the_floor_is_the_mean_of_the_training_crops(drawn_faces):
    cfg = settings("mean-shape", crop=32)
    faces = crops.FaceCrops(drawn_faces, 32, 1.25, CPU)
    cut = faces.training(torch.arange(60), seeding.generator(0), cfg, crops.Offsets())
    model = config.Model(cfg, COFW29)
    model.look_at(cut)
    torch.testing.assert_close(evaluate.predict(model, cut.images)[7], cut.points.mean(0))


def test_mirror_averaging_undoes_mirror_and_names():
    """A model that is wrong by 3 px to the right on a face and on its mirror image alike is right on average."""
    truth = torch.rand(1, 29, 2) * 20
    mirrored = torch.stack([31 - truth[..., 0], truth[..., 1]], -1)[:, COFW29.flip]
    pixels = torch.zeros(2, 3, 32, 32)
    pixels[:, :, 0, 0] = 255  # this corner tells the two images apart

    class Biased(torch.nn.Module):
        def forward(self, x):
            return torch.where(x[:, 0, 0, :1, None] > 0, truth, mirrored) + torch.tensor([3.0, 0.0])

    torch.testing.assert_close(evaluate.predict(Biased(), pixels)[1], truth[0] + torch.tensor([3.0, 0.0]))
    torch.testing.assert_close(evaluate.predict(Biased(), pixels, COFW29.flip)[1], truth[0])


# Errors


def test_errors_are_in_pixels_of_the_original_image(drawn_faces):
    """Reduction, crop and the set's own scale are all undone; compared with distances taken directly."""
    scale = torch.linspace(0.5, 3, len(drawn_faces))
    wide = dataclasses.replace(
        drawn_faces, images=drawn_faces.images.repeat_interleave(4, 2).repeat_interleave(4, 3),
        points=drawn_faces.points * 4 + 1.5, scale=scale,
    )  # fmt: skip
    cfg, index = settings("mean-shape", crop=32), torch.arange(100, 110)
    faces = crops.FaceCrops(wide, 32, 1.25, CPU)
    model = config.Model(cfg, COFW29)
    model.look_at(faces.training(torch.arange(60), seeding.generator(0), cfg, crops.Offsets()))
    cut = faces.testing(index, cfg, crops.Offsets())
    found = evaluate.errors(model, cut, wide, index, faces.reduction)
    in_reduced = images.transform_points(model.net.mean_points.expand(10, -1, -1), cut.to_image)
    in_wide = in_reduced * 4 + 1.5
    direct = (in_wide - wide.points[index]).norm(dim=-1) * scale[index].unsqueeze(1)
    np.testing.assert_allclose(found["error_px"], direct.numpy(), atol=2e-3)
    pupils = (wide.points[index, 16] - wide.points[index, 17]).norm(dim=-1) * scale[index]
    np.testing.assert_allclose(found["interpupil_px"], pupils.numpy(), rtol=1e-4)
    assert evaluate.mean_error_pct(model, cut) == pytest.approx(
        evaluate.METRICS["nme_interpupil_pct"].value(found), rel=1e-3
    )


def test_each_crop_and_its_mirror_image_are_predicted_once(drawn_faces):
    cfg, index = settings("mean-shape", crop=32), torch.arange(100, 110)
    faces = crops.FaceCrops(drawn_faces, 32, 1.25, CPU)
    model, cut, seen = config.Model(cfg, COFW29), faces.testing(index, cfg, crops.Offsets()), []
    model.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    found = evaluate.errors(model, cut, drawn_faces, index, faces.reduction, mirrored=True)
    assert found.keys() >= {"error_px", "error_px_mirrored"}
    assert torch.equal(torch.cat(seen), torch.cat([cut.images, cut.images.flip(-1)]))


# Prediction


@pytest.fixture(scope="module")
def trained(tmp_path_factory, drawn_faces):
    """Folder with the result of a CFT run of a few steps: enough for its weights to be used."""
    out = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", lambda name: drawn_faces)
        patch.setattr(train, "MEAN_FACES", 64)
        train.main([*f"{TINY} --steps 4 --start-at-mean".split(), "--out", str(out)])
    return out


def test_training_fits_the_faces_it_sees(drawn_faces):
    """Twelve faces, shown fifty times: in test mode the error falls far below the mean shape's (21 %)."""
    cfg = settings(crop=32, optimizer="adamw", lr=1e-3, **PLAIN)
    torch.manual_seed(0)
    model = config.Model(cfg, COFW29)
    cut = crops.FaceCrops(drawn_faces, 32, 1.25, CPU).training(
        torch.arange(12), seeding.generator(0), cfg, crops.Offsets()
    )
    model.look_at(cut)
    floor = config.Model(settings("mean-shape", crop=32), COFW29)
    floor.look_at(cut)
    optimizer = train.make_optimizer(cfg, model)
    for _ in range(50):
        model.train()
        loss = model.loss(model(cut.images), cut, (0.5, 0.5))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip)
        optimizer.step()
    assert evaluate.mean_error_pct(model, cut) < 0.5 * evaluate.mean_error_pct(floor, cut)


def test_it_generalises_to_unseen_faces(tmp_path, monkeypatch):
    """The paper's network at 32 px on 700 embedded faces, 120 updates of 8: test faces, far below the mean shape's."""
    monkeypatch.setattr(data, "EMBEDDED", dict(train=600, test=100, size=64, seed=2016))
    monkeypatch.setattr(train, "MEAN_FACES", 128)
    data.load.cache_clear()
    words = ["--preset", "demo", "--device", "cpu", "--steps", "120", "--crop", "32", "--evaluate-every", "60"]
    error = {}
    for row in ("mean-shape", "cft"):
        train.main([*words, "--row", row, "--out", str(tmp_path)])
        record = next(tmp_path.glob(f"coarse_to_fine/*-{row}-*/run.json"))
        error[row] = json.loads(record.read_text())["metrics"]["nme_interpupil_pct"]
    data.load.cache_clear()
    assert error["cft"] < 0.85 * error["mean-shape"], error


def weights_of(trained):
    return next(p for p in trained.rglob("model.safetensors") if "-cft-" in p.parent.name)


@pytest.fixture
def photo(tmp_path, drawn_faces):
    path = tmp_path / "face.png"
    Image.fromarray(drawn_faces.images[130].permute(1, 2, 0).numpy()).save(path)
    return path


def test_a_photo_gets_the_points_of_the_evaluation(trained, photo, drawn_faces, capsys):
    model, cfg, _ = evaluate.load(weights_of(trained), CPU)
    assert cfg.crop == 32  # from the file, not from a preset
    faces = crops.FaceCrops(drawn_faces, 32, cfg.margin, CPU)
    cut = faces.testing(
        torch.tensor([130]), dataclasses.replace(cfg, test_shift=0.0, test_log_size=0.0), crops.Offsets()
    )
    expected = images.transform_points(evaluate.predict(model, cut.images), cut.to_image)[0]
    centre, side = crops.landmark_boxes(drawn_faces.points[130:131], cfg.margin)
    x, y = (centre[0] - side / 2).tolist()  # the same frame as the data sets' boxes
    predict.main(
        [
            "--weights",
            str(weights_of(trained)),
            "--device",
            "cpu",
            f"--box={x},{y},{side.item()},{side.item()}",
            str(photo),
        ]
    )
    written = json.loads((photo.parent / "face.points.json").read_text())
    assert written["markup"] == "COFW-29" and len(written["faces"]) == 1
    np.testing.assert_allclose(written["faces"][0]["points_xy"], expected.numpy(), atol=0.02)
    assert Image.open(photo.parent / "face.points.png").size == (64, 64) and "29 points" in capsys.readouterr().out


def fails(words, *said):
    with pytest.raises(cli.UserError) as error:
        predict.main(["--device", "cpu", *map(str, words)])
    one_line_error(error, *said)
    return error.value


def test_missing_weights_end_with_3(photo, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "LOCAL", tmp_path / "a")
    monkeypatch.setattr(paths, "RECORDED", tmp_path / "b")
    monkeypatch.setattr(predict.released, "NAMES", ("none",))
    assert fails([photo, "--whole"], "none: not released yet", "make reproduce-coarse-to-fine").exit_code == 3
    fails(["--weights", tmp_path / "no.safetensors", photo, "--whole"], "no.safetensors", "no such")
    fails([], "IMAGES", "--help")
    fails(["--wieghts=x", photo], "did you mean --weights?")


def test_weights_of_another_row_name_the_keys(trained, photo, tmp_path):
    path = tmp_path / "w.safetensors"
    about = dict(points=29, crop=32, margin=1.25, test_shift=0.05, test_log_size=0.05)
    checkpoint.save_weights(path, config.Model(settings("heatmap"), COFW29), row="cft", **about)
    fails(
        ["--weights", path, photo, "--whole"], path, "another architecture", "keys missing (net.", "keys unknown (net."
    )
    checkpoint.save_weights(path, torch.nn.Linear(2, 2))
    fails(["--weights", path, photo, "--whole"], path, "no weights of this paper")
    checkpoint.save_weights(path, torch.nn.Linear(2, 2), row="cft", points=30, crop=32, margin=1)
    fails(["--weights", path, photo, "--whole"], path, "30")


# Control


def test_the_principal_control_never_touches_the_other_points():
    cfg = settings("principal", crop=32)
    torch.manual_seed(0)
    model = config.Model(cfg, COFW29).train()
    cut = crops.Crops(
        255 * torch.rand(4, 3, 32, 32), 32 * torch.rand(4, 29, 2), torch.full((4,), 9.0), torch.zeros(4, 2, 3)
    )
    weights = method.schedule(method.stages(), 10, "principal")[0][2]
    model.loss(model(cut.images), cut, weights).backward()
    for pair in (*model.net.auxiliary, model.net.heads):
        assert pair[0].weight.grad.any() and not pair[1].weight.grad.any()


def test_the_heatmap_row_learns_something_in_a_few_steps(drawn_faces):
    cfg = settings("heatmap", crop=32)
    torch.manual_seed(0)
    model = config.Model(cfg, COFW29).train()
    faces = crops.FaceCrops(drawn_faces, 32, 1.25, CPU)
    cut = faces.training(torch.arange(8), seeding.generator(0), dataclasses.replace(cfg, colour=False), crops.Offsets())
    optimizer, losses = torch.optim.AdamW(model.parameters(), 2e-3), []
    for _ in range(8):
        loss = model.loss(model(cut.images), cut, (0.5, 0.5))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
