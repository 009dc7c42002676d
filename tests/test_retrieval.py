"""Retrieval by hand: Recall@K and R-precision; Omniglot's protocol is in test_hybrid_train.py."""

import numpy as np
import pytest
import torch

from facepapers.common import cli
from facepapers.common.protocols import metrics, retrieval


def test_recall_of_a_case_made_by_hand():
    place = torch.tensor([[0.0], [1.0], [2.5], [3.0], [10.0], [10.5]])
    label = torch.tensor([0, 0, 1, 0, 1, 2])
    with pytest.raises(cli.UserError, match="single image"):
        retrieval.first_hit(place, place, label)
    label[5] = 1
    ranks = retrieval.first_hit(place, place, label)
    assert ranks.tolist() == [1, 1, 4, 2, 1, 1]
    found = metrics.measure({m.name: m for m in retrieval.recall_metrics()}, {"first_hit": ranks})
    assert found["recall1_pct"] == pytest.approx(400 / 6) and found["recall2_pct"] == pytest.approx(500 / 6)
    assert found["recall4_pct"] == 100
    assert (retrieval.first_hit(place, place, label, chunk=2) == ranks).all()
    moved = retrieval.first_hit(place + 0.9, place, label)
    assert moved.tolist() != ranks.tolist(), "queries and gallery are told apart"


def test_recalls_of_another_list_have_their_own_names():
    (first, *_) = retrieval.recall_metrics("_cross", ", low query against high gallery")
    assert first.name == "recall1_cross_pct" and first.needs == ("first_hit_cross",)
    assert first.value({"first_hit_cross": np.array([1, 2, 1, 9])}) == 50


def test_r_precision_by_hand():
    """Classes of three and two: R is 2 and 1; points on a line."""
    place, label = torch.tensor([[0.0], [1.0], [5.0], [1.4], [5.1]]), torch.tensor([0, 0, 0, 1, 1])
    found = retrieval.r_precision(place, place, label)
    np.testing.assert_allclose(found, [0.5, 0.5, 0.0, 0.0, 0.0])  # nearest two, two, two, one, one others
    assert (retrieval.r_precision(place, place, label, chunk=2) == found).all()
    assert retrieval.r_precision_metric().value({"r_precision": found}) == pytest.approx(20.0)
