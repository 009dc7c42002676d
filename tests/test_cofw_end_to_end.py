"""`make data-cofw`, then `make reproduce-coarse-to-fine`: from official .mat files to the verdict against 6.33 %.

The files are small, written in the official layout with drawn faces, so that only their number differs.
"""

import dataclasses

import pytest
import torch
from test_readers import write_cofw

from facepapers.common.data import __main__ as command
from facepapers.common.data import registry
from facepapers.common.evidence import claims, runs
from facepapers.common.faces import drawing
from facepapers.common.tools import reproduce
from facepapers.papers.coarse_to_fine import config, train
from facepapers.papers.coarse_to_fine import data as sets
from facepapers.papers.coarse_to_fine.crops import FaceCrops


def drawn(n, seed):
    """Synthetic faces as COFW rows: every third one grey, boxes a little beside the landmarks."""
    made = drawing.generate(n, seed, size=128)
    rows = []
    for i in range(n):
        image, points = made.images[i].permute(1, 2, 0).numpy(), made.points[i].numpy().astype(float)
        low, size = points.min(0), points.max(0) - points.min(0)
        box = (*(low - 0.1 * size).clip(0), *(1.15 * size))
        occluded = (torch.arange(29) % 7 == i % 7).numpy().astype(float)
        rows.append((image[:, :, 0] if i % 3 == 0 else image, points, occluded, box))
    return rows


@pytest.fixture
def cofw(tmp_path, monkeypatch):
    """A data root with a small COFW, and short presets small enough for a test."""
    folder = tmp_path / "data" / "cofw"
    folder.mkdir(parents=True)
    write_cofw(folder / "COFW_train_color.mat", "train", drawn(24, 1))
    write_cofw(folder / "COFW_test_color.mat", "test", drawn(9, 2))
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
    monkeypatch.delenv("DATA_MIRROR", raising=False)
    described = registry.REGISTRY.read_text().replace("train = 1345, test = 507", "train = 24, test = 9")
    (tmp_path / "registry.toml").write_text(described)
    monkeypatch.setattr(registry, "REGISTRY", tmp_path / "registry.toml")
    quick = dataclasses.replace(config.PRESETS["short"], steps=4, batch=4, evaluate_every=2, precision="fp32")
    monkeypatch.setitem(config.PRESETS, "short", quick)
    monkeypatch.setattr(train, "MEAN_FACES", 8)
    sets.load.cache_clear()
    yield tmp_path
    sets.load.cache_clear()


def test_from_official_files_to_the_verdict(cofw, capsys):
    command.main(["get", "cofw"])
    reproduce.main(["coarse-to-fine", "--preset", "short", "--rows", "mean-shape cft", "--out", str(cofw / "out")])
    said = capsys.readouterr().out
    assert "preset short on cofw" in said
    assert "6.33" in said and "one seed: higher" in said, "four steps cannot reach the published number"

    records = {r["config"]["row"]: r for r in runs.recorded("coarse_to_fine", cofw / "out")}
    metrics = records["cft"]["metrics"]
    wanted = ("nme_interpupil_pct", "fr10_interpupil_pct", "auc10_interpupil", "nme_interpupil_occluded_pct")
    assert set(wanted) <= metrics.keys() and not any("eyecentre" in name for name in metrics)
    assert records["cft"]["data"]["boxes"] == "official"
    cell = next(c for c in claims.cells("coarse_to_fine", list(records.values())) if c.claim["id"] == "cofw-nme-short")
    assert cell.status == "one seed: higher" and cell.interval.n_samples == 9
    paper = next(c for c in claims.cells("coarse_to_fine", list(records.values())) if c.claim["id"] == "cofw-nme")
    assert paper.status == "not run", "a short run must not answer for the paper's schedule"


def test_training_jitter_covers_the_official_boxes(cofw):
    """The boxes above are shifted and larger in the same way for every face: the mean offset must say so."""
    found = sets.load("cofw")
    crops = FaceCrops(found, 50, 1.25, torch.device("cpu"))
    train_faces = (found.split == 0).nonzero().flatten()
    offsets = crops.offsets(train_faces)
    given = found.box[train_faces]
    assert offsets.mean_log_size < 0, "these boxes are smaller than the landmarks' larger extent times 1.25"
    assert crops.official and not torch.isnan(given).any()
    other = crops.offsets(train_faces[:12])
    assert other != offsets, "offsets are measured on the faces asked for"
