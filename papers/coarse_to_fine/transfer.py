"""From 68 points to 29: a network for COFW's markup that starts from one for iBUG's.

The trunk is taken as it is. A new point starts as the mean of the nearest old ones: CFT's last layers are linear, so
the mean of their rows predicts the mean of the points; the mean of the heatmap variant's logits is the product of the
old maps, whose peak lies between theirs. CFT's auxiliary heads stay behind, as in the released file.
"""

import torch

from facepapers.common import storage
from facepapers.common.cli import UserError
from facepapers.common.data import markups
from facepapers.common.training import released
from facepapers.papers.coarse_to_fine import evaluate, method
from facepapers.papers.coarse_to_fine.config import PAPER, TRUNKS, Config, Model


def started(cfg: Config) -> tuple[Model, str]:
    """(network for 29 points before its first step, sha256 of the trunk's file).

    Raises MissingData where the trunk is not released yet, UserError where it is another network.
    """
    path = released.find(PAPER, cfg.trunk, tuple(TRUNKS.values()))
    old, theirs, markup = evaluate.load(path, torch.device("cpu"))
    if (theirs.row, theirs.crop, markup.n_points) != (cfg.row, cfg.crop, 68):
        raise UserError(
            f"{path}: {theirs.row} for {markup.n_points} points of {theirs.crop} px; --row {cfg.row} --crop {cfg.crop} "
            "starts from its own kind for 68"
        )
    model = Model(cfg, markups.COFW29)
    if isinstance(model.net, method.CFTNet):
        model.net.auxiliary = torch.nn.ModuleList()
    left = ("net.head.", "net.heads.", "net.auxiliary.")
    state = {name: value for name, value in old.state_dict().items() if not name.startswith(left)}
    model.load_state_dict(state | new_heads(old.net, model.net), strict=True)
    return model, storage.sha256(path)


def new_heads(old: torch.nn.Module, new: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Name -> tensor of the last layers for 29 points, as means of those for 68."""
    twins = markups.COFW29_FROM_IBUG68
    mean = lambda rows: torch.stack([rows[group].mean(0) for group in twins])
    if not isinstance(old, method.CFTNet):
        head: torch.nn.Conv2d = old.head  # type: ignore[assignment]
        return {f"net.head.{name}": mean(value) for name, value in head.state_dict().items()}
    assert isinstance(new, method.CFTNet)
    found: dict[str, torch.Tensor] = {}
    for name in ("weight", "bias"):
        both = torch.cat([getattr(head, name).detach() for head in old.heads])
        by_point = mean(both.view(68, 2, -1)[old.order])  # in markup order
        parts = by_point[torch.argsort(new.order)].flatten(0, 1).squeeze(-1).split([h.out_features for h in new.heads])
        found |= {f"net.heads.{k}.{name}": part for k, part in enumerate(parts)}
    return found
