"""From 68 points to 29: where the new heads start, folds that share no face, a cross-validation that resumes."""

import dataclasses
import io

import numpy as np
import pandas as pd
import pytest
import torch

from facepapers.common import storage
from facepapers.common.cli import MissingData, UserError
from facepapers.common.data import markups
from facepapers.common.evidence import runs
from facepapers.common.training import checkpoint, released
from facepapers.papers.coarse_to_fine import config, data, figures, train, transfer
from tests.conftest import one_line_error, tiny_faces

WORDS = "--device cpu --preset points29 --data embedded --crop 32 --batch 4 --steps 2 --folds 2 --precision fp32"


@pytest.fixture(scope="module")
def trunks(tmp_path_factory):
    """Row -> weights file of an untrained network for 68 points of 32 px crops."""
    place, found = tmp_path_factory.mktemp("trunks"), {}
    for row in ("cft", "heatmap"):
        torch.manual_seed(1)
        cfg = dataclasses.replace(config.preset("short", row), crop=32)
        model = config.Model(cfg, markups.IBUG68)
        if row == "cft":
            for head in model.net.heads:
                torch.nn.init.normal_(head.bias, 16, 4)
        found[row] = place / f"{row}.safetensors"
        view = dict(crop=32, margin=1.1, test_shift=0.05, test_log_size=0.05, points=68)
        checkpoint.save_weights(found[row], model, row=row, **view)
    return found


def settings(row, trunk):
    return dataclasses.replace(config.preset("points29", row, "embedded"), crop=32, trunk=str(trunk))


def test_a_new_point_starts_as_the_mean_of_the_nearest_old_ones(trunks):
    from facepapers.papers.coarse_to_fine import evaluate

    x = 255 * torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for row in ("cft", "heatmap"):
        model, digest = transfer.started(settings(row, trunks[row]))
        old = evaluate.load(trunks[row], torch.device("cpu"))[0]
        assert digest == storage.sha256(trunks[row])
        with torch.no_grad():
            if row == "cft":
                new, known = model.eval()(x), old(x)
            else:  # maps are logarithms up to a constant of their own
                centred = lambda maps: (maps - maps.mean((2, 3), keepdim=True)).flatten(2)
                new, known = centred(model.net.eval()(x)), centred(old.net(x))
        expected = torch.stack([known[:, group].mean(1) for group in markups.COFW29_FROM_IBUG68], 1)
        torch.testing.assert_close(new, expected, atol=1e-3, rtol=1e-4)
    assert model.net.head.out_channels == 29


def test_the_nearest_points_of_the_other_markup_mirror_like_the_points():
    """The mirror image of a point's old points are the old points of its mirror image."""
    near = markups.COFW29_FROM_IBUG68
    for point, mirrored in enumerate(markups.COFW29.flip):
        assert sorted(markups.IBUG68.flip[k] for k in near[point]) == sorted(near[mirrored]), markups.COFW29.names[
            point
        ]


def test_every_face_is_tested_once_by_a_network_that_has_not_seen_it(tiny):
    faces = tiny_faces()
    parts = [data.fold(faces, 5, k) for k in range(5)]
    assert sorted(torch.cat([test for _, _, test in parts]).tolist()) == list(range(len(faces)))
    for fit, val, test in parts:
        assert not set(fit.tolist()) & set(test.tolist()) and len(fit) + len(test) == len(faces) and not len(val)


@pytest.mark.parametrize("row", ["cft", "heatmap"])
def test_a_cross_validation_is_recorded_and_resumes(tiny, trunks, tmp_path, monkeypatch, row):
    words = [*WORDS.split(), "--row", row, "--trunk", str(trunks[row])]
    record = train.main([*words, "--out", str(tmp_path / "whole")])
    folder = tmp_path / "whole" / "coarse_to_fine" / record["run"]
    found = runs.read_predictions(folder / "predictions.npz")
    assert found["error_px"].shape == (52, 29) and found["occluded"].shape == (52, 29)
    assert found["principal"].shape == (29,) and record["data"]["trunk_sha256"] == storage.sha256(trunks[row])
    assert {"nme_interpupil_pct", "nme_interpupil_occluded_pct", "nme_interpupil_visible_pct"} <= record[
        "metrics"
    ].keys()
    assert sorted(path.name for path in folder.iterdir()) == ["history.csv", "predictions.npz", "run.json"]

    real = train.one_fold

    def stopped(job, number):
        if number == 1:
            raise KeyboardInterrupt
        return real(job, number)

    monkeypatch.setattr(train, "one_fold", stopped)
    with pytest.raises(KeyboardInterrupt):
        train.main([*words, "--out", str(tmp_path / "halves")])
    asked = []
    monkeypatch.setattr(train, "one_fold", real)
    monkeypatch.setattr(train, "fit", lambda *words, fit=train.fit: asked.append(words) or fit(*words))
    train.main([*words, "--out", str(tmp_path / "halves")])
    again = runs.read_predictions(tmp_path / "halves" / "coarse_to_fine" / record["run"] / "predictions.npz")
    assert len(asked) == 1 and all(np.array_equal(again[key], found[key]) for key in found)


def test_a_trunk_that_does_not_fit_is_one_line(trunks):
    with pytest.raises(UserError) as error:
        transfer.started(settings("cft", trunks["heatmap"]))
    one_line_error(error, "heatmap for 68 points of 32 px", "--row cft")
    with pytest.raises(UserError) as error:
        transfer.started(settings("cft", "nowhere.safetensors"))
    one_line_error(error, "nowhere.safetensors", "landmarks68_cft")
    with pytest.raises((MissingData, UserError)) as error:
        config.check(dataclasses.replace(config.preset("points29", "direct")))
    one_line_error(error, "--trunk")


def test_the_plan_holds_the_rows_whose_trunks_are_released():
    """Asked for without words, a row without a trunk would end the command before the others."""
    there = [row for row, name in config.TRUNKS.items() if released.folder_of(config.PAPER, name).is_dir()]
    assert set(config.PLAN["points29"].rows) == set(there)


def test_each_fold_is_a_curve_of_its_own(monkeypatch):
    """One line through all would run back to the start between two folds."""
    from matplotlib.figure import Figure

    text = "fold,step,train_nme_pct\n0,1,3\n0,2,2\n1,1,4\n1,2,3\n"
    axes = Figure().subplots()
    record = {"folder": None, "seconds": 9, "config": {"batch": 4}}
    for words, lines in ((text, 2), (text.replace("fold", "seed"), 1)):
        monkeypatch.setattr(figures.runs, "read_history", lambda folder, words=words: pd.read_csv(io.StringIO(words)))
        figures.learning(axes, "heatmap", [record])
        assert len(axes.lines) == lines
        axes.clear()
