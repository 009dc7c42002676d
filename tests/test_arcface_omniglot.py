"""ArcFace on Omniglot, small: strangers' characters are searched, never mirrored; tuning holds out alphabets."""

import numpy as np
import pandas as pd
import pytest
import torch
from test_hybrid_train import omniglot_tree, root  # noqa: F401 - a fixture

from facepapers.common import cli
from facepapers.common.protocols import retrieval
from facepapers.papers.arcface import config, data, evaluate, train, tune

SMALL = "--preset omniglot --widths 8 8 8 8 --features 16 --batch 8 --steps 4 --warmup 1 --device cpu --precision fp32"


@pytest.fixture(autouse=True)
def forgotten():
    """Sets of other tests are not taken for these."""
    data.load.cache_clear()
    yield
    data.load.cache_clear()


def test_strangers_characters_are_searched_and_verified(root):  # noqa: F811
    folder, accept = root
    omniglot_tree(folder / "data" / "omniglot")
    accept("omniglot", train=16, test=80)
    written = train.main([*SMALL.split(), "--row", "arcface", "--out", str(folder / "out")])
    found = written["metrics"]
    assert {"recall1_pct", "recall8_pct", "r_precision_pct", "accuracy_pct", "intra_deg", "w_ec_deg"} <= found.keys()
    assert written["data"]["people"] == 4 and written["data"]["training_faces"] == 16
    (task,), _ = data.tasks(config.preset("omniglot"))
    (test,) = task.tests
    assert test.characters and len(test.images) == 80 and set(test.identity) == set(range(4, 24))


def test_noise_and_cleaning_on_characters(root):  # noqa: F811
    folder, accept = root
    omniglot_tree(folder / "data" / "omniglot")
    accept("omniglot", train=16, test=80)
    words = SMALL.replace("--preset omniglot", "--preset omniglot_noise40").split()
    written = train.main([*words, "--row", "cleaned", "--out", str(folder / "out")])
    assert {"drop_precision_pct", "drop_recall_pct", "recall1_pct"} <= written["metrics"].keys()


def test_tuning_holds_out_alphabets_and_ranks_by_recall(root, monkeypatch, capsys):  # noqa: F811
    folder, accept = root
    omniglot_tree(folder / "data" / "omniglot", alphabets=(50, 1))
    accept("omniglot", train=400, test=8)
    monkeypatch.setitem(tune.GRID, "arcface", ("scale", (8.0,)))
    monkeypatch.setitem(tune.FURTHER, ("omniglot", "arcface"), (16.0,))
    small = {"widths": (8, 8, 8, 8), "features": 16, "batch": 8, "steps": 4, "warmup": 1, "precision": "fp32"}
    monkeypatch.setitem(config.PRESETS, "omniglot", config.dataclasses.replace(config.PRESETS["omniglot"], **small))
    table = folder / "table.csv"
    words = f"--preset omniglot --rows arcface --device cpu --out {folder / 'tune'} --table {table}"
    tune.main(words.split())
    lines = table.read_text().splitlines()
    assert lines[0].startswith("row,setting,value,steps,seed,recall1_pct")
    assert [line.split(",")[2] for line in lines[1:]] == ["8.0", "16.0"]
    (task,), _ = data.tasks(config.dataclasses.replace(config.preset("omniglot"), protocol="tune"))
    tested = set(task.tests[0].identity)
    assert len(tested) == 20 and all(character // 2 % 5 == 4 for character in tested), "every fifth alphabet"
    assert task.training.classes == 80


def test_recall_decides_where_characters_are_searched():
    tried = {
        "row": ["a"] * 3,
        "recall1_pct": [70.0, 72.0, 71.0],
        "auc_pct": [99.0, 95.0, 96.0],
        "accuracy_pct": [1.0] * 3,
    }
    assert tune.with_best(pd.DataFrame(tried)).best.tolist() == [False, True, False]


def test_a_mirrored_character_is_another_one():
    """The embedding of a character is its own; a face's has the mirror image's added."""
    drawn = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    drawn[0, :, :, 4:8], drawn[1, :, :, 24:28] = 255, 255  # mirror images of each other

    class Columns(torch.nn.Module):
        input_px, pixels = 32, "arcface"

        def forward(self, x):
            return x.mean((1, 2)) + 2

    pairs, people = np.array([[0, 1, 1, 0]]), np.array([0, 0])
    of = lambda **more: evaluate.predictions(
        Columns(), data.Test("", drawn, pairs, people, **more), torch.device("cpu")
    )
    assert of()["distance"][0] == pytest.approx(0, abs=1e-6)
    apart = of(characters=True)
    assert apart["distance"][0] > 0.01 and apart["first_hit"].tolist() == [1, 1]


def test_a_search_is_by_angle():
    """Unit embeddings: a longer one is no farther."""
    vectors = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
    found = evaluate.searched(vectors, np.array([0, 1, 0, 1]))
    places, label = torch.from_numpy(vectors).float(), torch.tensor([0, 1, 0, 1])
    np.testing.assert_array_equal(found["first_hit"], retrieval.first_hit(places, places, label))
    assert found["first_hit"].tolist() == [2, 3, 3, 2] and found["r_precision"].tolist() == [0, 0, 0, 0]


def test_glyphs_are_moved_and_never_mirrored():
    cfg = config.preset("omniglot")
    left = torch.zeros(cfg.batch, 3, 28, 28, dtype=torch.uint8)
    left[..., 8:20, 4:8] = 255
    seen = data.augment(left, cfg, 3, slice(None))
    column = (seen.mean((1, 2)) * torch.arange(32)).sum(1) / seen.mean((1, 2)).sum(1)
    assert seen.shape[-1] == 32 and (column < 14).all() and column.std() > 0.5
    assert torch.equal(seen[:5], data.augment(left, cfg, 3, slice(5)))


@pytest.mark.parametrize("words", ["--preset omniglot --protocol view1", "--preset demo --protocol retrieval"])
def test_a_protocol_of_another_set_is_one_line(words):
    with pytest.raises(cli.UserError, match="omniglot goes with retrieval or tune"):
        train.parse(words.split())
