"""New noise models after an epoch, from one pass over the training set."""

import math
from typing import Any

import torch

from facepapers.common.protocols.metrics import area_under_roc
from facepapers.papers.resup import data, evaluate, method
from facepapers.papers.resup.config import Config
from facepapers.papers.resup.nets import PeerNetworks


@torch.no_grad()
def update_noise_models(
    cfg: Config,
    noise_models: method.NoiseModels,
    peers: PeerNetworks,
    training: data.Split,
    epoch: int,
    device: torch.device,
) -> dict[str, float]:
    """One pass over the training set in eval mode, then a new fit for each network. Returns numbers for the history."""
    given = torch.from_numpy(training.given).to(device)
    logits = evaluate.training_logits(peers, training.images, cfg, epoch, device)
    noted: dict[str, Any]
    if cfg.weighting == "bayes":
        noted = update_by_bayes(cfg, noise_models, logits, given, epoch)
    else:
        fitted = [one.refit(found, given, cfg.evidence) for one, found in zip(noise_models, logits, strict=True)]
        noted = {"fitted": sum(fitted), "rate": sum(one.rate for one in noise_models) / len(noise_models)}
    weight = torch.stack([one.weight for one in noise_models]).mean(0).cpu().numpy()
    noted |= {"weight_mean": weight.mean()}
    if training.flip.any():
        flip = training.flip
        noted |= {"weight_clean": weight[~flip].mean(), "weight_flipped": weight[flip].mean()}
        noted |= {"weight_auc": area_under_roc(weight, ~flip)}
    for m, one in enumerate(noise_models):
        (low, high), share = one.shape.cpu().T, one.share.cpu()
        noted |= {f"net{m}_alpha0": low[0], f"net{m}_beta0": low[1]}
        noted |= {f"net{m}_alpha1": high[0], f"net{m}_beta1": high[1], f"net{m}_clean_share": share[1]}
    return {key: float(value) for key, value in noted.items() if math.isfinite(value)}


def update_by_bayes(
    cfg: Config, noise_models: method.NoiseModels, logits: torch.Tensor, given: torch.Tensor, epoch: int
) -> dict[str, torch.Tensor]:
    """Row "bayes" (ours): P(true label) of each sample from the networks' mean output; numbers for the history.

    The warm-up's networks imitate the given labels, so the flips are taken out of what they say. Later ones imitate the
    true labels, but have first to catch up with their teachers: for cfg.judge_again epochs these keep the last word.
    """
    outputs, late = logits.float().softmax(-1), epoch + 1 - cfg.warmup
    p = outputs.mean(0)
    rate = method.flip_rate(p) if late == 0 else noise_models[0].rate
    q = method.without_flips(p, rate) if late == 0 else p
    for one, output in zip(noise_models, outputs, strict=True):
        one.belief.copy_(output)
        if late == 0 or late >= cfg.judge_again:
            one.believe(given, method.posterior_labels(q, given, rate), rate)
    return {"rate": rate}
