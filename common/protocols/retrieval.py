"""Retrieval: is the nearest other image of the same class? Recall@K, R-precision, and their metrics.

Each test image is a query against all others (Song et al. 2016; RKD's protocol). Everything returns per-query values,
so that intervals and paired tests can be computed from a committed record.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from facepapers.common.cli import UserError
from facepapers.common.protocols.metrics import Metric

if TYPE_CHECKING:
    import torch

RECALLS = (1, 2, 4, 8)


def first_hit(queries: torch.Tensor, gallery: torch.Tensor, label: torch.Tensor, chunk: int = 512) -> np.ndarray:
    """Rank (N,), from 1, of the nearest other image of the query's class; Recall@K is the share of ranks up to K.

    queries, gallery (N, d) show the same images in one order; an image never finds itself. Images that are as near as
    the hit count as behind it. Raises UserError when a class has one image only.
    """
    import torch  # recomputing a record's recalls does without

    if (torch.bincount(label)[label] < 2).any():
        raise UserError("Recall@K: a class of the test part has a single image, which can find nothing")
    ranks = []
    for rows in torch.arange(len(label)).split(chunk):
        distance = torch.cdist(queries[rows], gallery)
        distance[torch.arange(len(rows)), rows] = torch.inf
        same = label[rows].unsqueeze(1) == label
        nearest = distance.masked_fill(~same, torch.inf).amin(1, keepdim=True)
        ranks.append(1 + ((distance < nearest) & ~same).sum(1))
    return torch.cat(ranks).numpy().astype(np.uint32)


def r_precision(queries: torch.Tensor, gallery: torch.Tensor, label: torch.Tensor, chunk: int = 512) -> np.ndarray:
    """Share (N,) of a query's class among its R nearest other images, R the number of those of its class.

    queries, gallery (N, d) as in `first_hit`; Musgrave et al. 2020, section 4.1.
    """
    import torch

    others = torch.bincount(label)[label] - 1
    shares = []
    for rows in torch.arange(len(label)).split(chunk):
        distance = torch.cdist(queries[rows], gallery)
        distance[torch.arange(len(rows)), rows] = torch.inf
        near = distance.topk(int(others.max()), largest=False).indices
        hit = (label[near] == label[rows].unsqueeze(1)) & (torch.arange(near.shape[1]) < others[rows].unsqueeze(1))
        shares.append(hit.sum(1) / others[rows])
    return torch.cat(shares).numpy().astype(np.float32)


def recall_metrics(ending: str = "", what: str = "") -> Iterator[Metric]:
    """Recall@K, in percent, of the ranks `first_hit` + ending; `what` they are of ends the label."""
    key = f"first_hit{ending}"
    for k in RECALLS:
        yield Metric(f"recall{k}{ending}_pct", f"Recall@{k}{what} (%)", False, _within(key, k), needs=(key,))


def r_precision_metric() -> Metric:
    """R-precision, in percent, of the shares `r_precision`."""
    share = lambda p: 100.0 * p["r_precision"]
    return Metric("r_precision_pct", "R-precision (%)", False, share, needs=("r_precision",))


def _within(key, rank):
    return lambda p: 100.0 * (p[key] <= rank)
