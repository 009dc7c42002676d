"""Accuracy, and whether the weights find the flipped labels: `python -m papers.resup.evaluate --weights FILE`.

Protocol: share of test faces whose most probable class is the label, in percent. Without a suffix a metric belongs to
the first network alone, as the released code reports it; "mean" to the mean of both networks' probabilities. Last-epoch
weights are the headline, those of the best validation epoch stand beside them; no test result chooses anything.
"""

import dataclasses

import numpy as np
import torch

from common import checkpoint, cli, images, parallel, precision
from common.metrics import Metric
from papers.resup import data
from papers.resup.config import ROWS, build_net, preset
from papers.resup.nets import Twins

CHUNK = 256
BINS = 10  # of the reliability diagram
FEW = 30  # classes with fewer clean training faces are left out of the lowest class weight


# ---- Metrics, all computed from what a record holds


def auc(score, positive):
    """Area under the ROC curve, 0..1: the chance that a positive has the higher score; ties count half."""
    from scipy.stats import rankdata

    positive = np.asarray(positive, bool)
    n, m = positive.sum(), (~positive).sum()
    return float((rankdata(score)[positive].sum() - n * (n + 1) / 2) / (n * m)) if n and m else np.nan


def _correct(key):
    return lambda p: 100.0 * (p[key] == p["label"])


def _balanced(key):
    """Mean over the classes of the test faces of each class's accuracy."""

    def statistic(p):
        count = np.bincount(p["label"])
        right = np.bincount(p["label"], weights=p[key] == p["label"])
        return 100 * (right[count > 0] / count[count > 0]).mean()

    return statistic


def _unseen(key):
    return lambda p: 100 * (p[key] == p["label"])[~p["repeated"].astype(bool)].mean()


def _alike(p):
    """Correlation of the two networks' weights over the flipped labels."""
    mean, second = (p[k].astype(np.float64)[p["flip"].astype(bool)] for k in ("weight", "weight_second"))
    first = 2 * mean - second
    return 100 * np.corrcoef(first, second)[0, 1] if first.std() and second.std() else np.nan


def _weight_of(flipped):
    return lambda p: 100 * p["weight"].astype(np.float64)[p["flip"].astype(bool) == flipped].mean()


def _auc_of(key):
    return lambda p: 100 * auc(p[key], ~p["flip"].astype(bool))


def reliability(weight, flip):
    """(mean weight, share of clean labels, count) of BINS equal bins of the weight; empty bins have count 0."""
    place = np.clip((weight * BINS).astype(int), 0, BINS - 1)
    count = np.bincount(place, minlength=BINS)
    safe = np.maximum(count, 1)
    return (np.bincount(place, weights=weight, minlength=BINS) / safe,
            np.bincount(place, weights=~flip, minlength=BINS) / safe, count)  # fmt: skip


def _calibration_error(p):
    """Mean difference between P(clean) and the share of clean labels, over the bins, weighted by their faces."""
    said, true, count = reliability(p["weight"].astype(np.float64), p["flip"].astype(bool))
    return 100 * (count * np.abs(said - true)).sum() / count.sum()


def class_weights(p):
    """Mean weight of the clean labels of each true class, NaN where a class has fewer than FEW of them."""
    clean = ~p["flip"].astype(bool)
    label, weight = p["train_label"][clean], p["weight"].astype(np.float64)[clean]
    count = np.bincount(label)
    return np.where(count >= FEW, np.bincount(label, weights=weight) / np.maximum(count, 1), np.nan)


def _lowest_class(p):
    found = class_weights(p)
    return 100 * np.nanmin(found) if np.isfinite(found).any() else np.nan


def _metrics():
    for end, when in (("", ""), ("_validation_chosen", ", validation-chosen epoch")):
        for key, who in (("predicted", ""), ("predicted_second", "second network"), ("predicted_mean", "mean of both")):
            keys, short = ("label", key + end), key.removeprefix("predicted")
            label = f"{', ' + who if who else ''}{when} (%)"
            yield Metric(f"accuracy{short}{end}_pct", f"accuracy{label}", False, _correct(key + end), needs=keys)
            balanced = _balanced(key + end)
            yield Metric(
                f"balanced{short}{end}_pct", f"balanced accuracy{label}", False, statistic=balanced, needs=keys
            )
    for key, who in (("predicted", ""), ("predicted_mean", ", mean of both")):
        name, label = key.replace("predicted", "accuracy"), f"accuracy without copies of training faces{who} (%)"
        yield Metric(f"{name}_unseen_pct", label, False, statistic=_unseen(key), needs=("label", key, "repeated"))
    yield Metric("disagreement_pct", "test faces on which the two networks differ (%)", False,
                 lambda p: 100.0 * (p["predicted"] != p["predicted_second"]),
                 needs=("predicted", "predicted_second"))  # fmt: skip
    pair = ("weight", "flip")
    found = "clean labels told from flipped ones by the"
    yield Metric(
        "weight_auc_pct", f"{found} weight, area under ROC (%)", False, statistic=_auc_of("weight"), needs=pair
    )
    yield Metric("similarity_auc_pct", f"{found} similarity, area under ROC (%)", False,
                 statistic=_auc_of("similarity"), needs=("similarity", "flip"))  # fmt: skip
    yield Metric("weight_clean_pct", "mean weight of clean labels (%)", False, statistic=_weight_of(False), needs=pair)
    yield Metric(
        "weight_flipped_pct", "mean weight of flipped labels (%)", True, statistic=_weight_of(True), needs=pair
    )
    yield Metric("weight_error_pct", "P(clean) against the truth, calibration error (%)", True,
                 statistic=_calibration_error, needs=pair)  # fmt: skip
    yield Metric("weight_lowest_class_pct", "lowest mean weight of a class's clean labels (%)", False,
                 statistic=_lowest_class, needs=(*pair, "train_label"))  # fmt: skip
    yield Metric("weight_correlation_pct", "correlation of the networks' weights over flipped labels (%)", True,
                 statistic=_alike, needs=(*pair, "weight_second"))  # fmt: skip


METRICS = {m.name: m for m in _metrics()}


def measure(predictions):
    """Every metric that the predictions allow, name -> value."""
    found = {name: m.value(predictions) for name, m in METRICS.items() if m.available(predictions)}
    return {name: value for name, value in found.items() if np.isfinite(value)}


# ---- From networks to arrays


def accuracy_pct(probabilities, label):
    """Percent of rows of (N, K) whose largest entry is at `label` (N,)."""
    return 100 * float((probabilities.argmax(-1).cpu().numpy() == label).mean())


@torch.no_grad()
def forward(twins, pixels, cfg):
    """Logits (M, B, K) float32 in eval mode."""
    twins.eval()
    n = len(pixels)
    if parallel.compiling() and n < CHUNK:  # another size would be compiled anew
        pixels = torch.cat([pixels, pixels[-1:].expand(CHUNK - n, -1, -1, -1)])
    with precision.autocast(pixels.device, cfg.precision):
        return twins([pixels] * len(twins.members)).float()[:, :n]


def probabilities(twins, pictures, cfg, device):
    """Softmax outputs (M, N, K) for uint8 faces without augmentation, means over cfg's test views."""
    found = []
    for part in pictures.split(CHUNK):
        views = [data.plain(part.to(device), cfg, scale) for scale in cfg.test_scales]
        views += [x.flip(3) for x in views] if cfg.flip_test else []
        found.append(torch.stack([forward(twins, x, cfg).softmax(-1) for x in views]).mean(0))
    return torch.cat(found, 1)


def training_logits(twins, pictures, cfg, epoch, device):
    """Logits (M, N, K) of the training faces for the noise model: augmented or clean views, one for all networks."""
    found = []
    for start in range(0, len(pictures), CHUNK):
        part = pictures[start : start + CHUNK].to(device)
        gen = images.generator(cfg.seed, 3, epoch, start)
        x = data.augment(part, cfg, gen) if cfg.judge_view == "augmented" else data.plain(part, cfg)
        found.append(forward(twins, x, cfg))
    return torch.cat(found, 1)


def predictions(twins, test, cfg, device, end=""):
    """Arrays of the test faces, ordered by class (see data.py): computed numbers and no image."""
    p = probabilities(twins, test.images, cfg, device)
    best = lambda q: q.argmax(-1).cpu().numpy().astype(np.uint8)
    arrays = {"label": test.label.astype(np.uint8), f"predicted{end}": best(p[0])}
    if len(p) == 2:
        arrays |= {f"predicted_second{end}": best(p[1]), f"predicted_mean{end}": best(p.mean(0))}
    return arrays


def judgements(judges, training):
    """Arrays of the training faces, ordered by true class: flip list, weights and similarity.

    Means over the networks, and for two of them the second one's weight.
    """
    given = torch.from_numpy(training.given).unsqueeze(1)
    belief = torch.stack([one.belief.cpu() for one in judges])
    own = torch.stack([b.gather(1, given).squeeze(1) / b.norm(dim=1) for b in belief])
    weight = torch.stack([one.weight.cpu() for one in judges])
    arrays = {
        "train_label": training.label.astype(np.uint8),
        "weight": weight.mean(0).numpy().astype(np.float16),
        "similarity": own.mean(0).numpy().astype(np.float16),
    }
    if len(judges) == 2:
        arrays["weight_second"] = weight[1].numpy().astype(np.float16)
    return arrays | ({"given": training.given.astype(np.uint8), "flip": training.flip} if training.flip.any() else {})


# ---- The command


def main(argv):
    device_name, argv = cli.take_option(argv, "device", "auto")
    path, argv = cli.take_option(argv, "weights")
    name, argv = cli.take_option(argv, "data")
    if path is None or argv:
        raise cli.UserError("usage: python -m papers.resup.evaluate --weights FILE.safetensors [--data NAME]")
    device = parallel.start(device_name)
    twins, cfg, classes = load(path, device)
    faces = data.load(name or cfg.data, cfg.rule)
    if faces.classes != classes:
        raise cli.UserError(f"{path}: knows the classes {', '.join(classes)}; {name} has {', '.join(faces.classes)}")
    test = data.part(faces, 2)
    print(f"{path} on {name or cfg.data}: {len(test)} test faces")
    for key, value in measure(predictions(twins, test, cfg, device)).items():
        print(f"  {METRICS[key].label:50s} {value:8.2f}")


def load(path, device):
    """(networks, configuration, classes) of a weights file. UserError when it holds no weights of this paper."""
    _, words = checkpoint.read_weights(path)
    try:
        sizes = {key: int(words[key]) for key in ("nets", "width", "input_px")}
        cfg = dataclasses.replace(
            preset(words["preset"], words["row"], words["trained_on"]), stem=words["stem"], rule=words["rule"],
            units=tuple(map(int, words["units"].split())), precision=words["precision"],
            flip_test=words["flip_test"] == "True", test_scales=tuple(map(float, words["test_scales"].split())),
            **sizes,
        )  # fmt: skip
    except (KeyError, ValueError, cli.UserError) as error:
        raise cli.UserError(
            f"{path}: its metadata describes no networks of this paper ({error}); rows {', '.join(ROWS)}"
        ) from None
    classes = tuple(words["classes"].split())
    twins = Twins([build_net(cfg, len(classes)) for _ in range(cfg.nets)])
    checkpoint.load_weights(path, twins)
    return twins.to(device).eval(), cfg, classes


if __name__ == "__main__":
    cli.entry(main, about=__doc__)
