"""The notes' own table, from a committed record alone: what preprocessing costs. See preprocessing.py."""

from pathlib import Path

from facepapers.common import paths, storage
from facepapers.common.evidence import runs, statistics
from facepapers.papers.arcface.metrics import METRICS

PAPER = Path(__file__).parent.name  # config.py, which also says it, loads PyTorch
PREPROCESSING = "preprocessing"  # stem of the record's files
VARIANTS = {
    "ours": "ours: five-point fit by least squares, RGB, mirror image added",
    "again": "ours, sampled once more (half a pixel to the right and down)",
    "lmeds": "fit by OpenCV's `estimateAffinePartial2D`, LMEDS",
    "ransac": "fit by OpenCV's `estimateAffinePartial2D` as it comes (RANSAC, 3 px)",
    "jpeg95": "JPEG once more, quality 95",
    "jpeg75": "JPEG once more, quality 75",
    "jpeg50": "JPEG once more, quality 50",
    "bgr": "BGR in place of RGB",
    "no_flip": "no mirror image",
    "small_pillow": "16 px, enlarged by Pillow's cubic (ours; a = -0.5)",
    "small_torch_antialias": "16 px, enlarged by torch's cubic, antialiased (a = -0.5)",
    "small_torch": "16 px, enlarged by torch's cubic (a = -0.75)",
    "small_opencv_cubic": "16 px, enlarged by OpenCV's cubic (a = -0.75)",
    "small_opencv_area": "16 px, enlarged by OpenCV's area (copies pixels)",
}


def comparison(records):
    """Markdown: accuracy and area of the ROC by each way of making LFW's crops, and their change. For NOTES.md.

    From results/arcface/preprocessing.npz, whose conditions stand in the .json beside it; `records` are not asked.
    """
    path = Path(paths.RECORDED, PAPER, PREPROCESSING)
    if not path.with_suffix(".json").exists():
        return ""
    made, arrays = storage.read_json(path.with_suffix(".json")), runs.read_predictions(path.with_suffix(".npz"))
    head = ("what the crops went through", "accuracy (%)", "change", "area under the ROC (%)", "change")
    lines = [head, ["---"] * len(head), *rows(arrays)]
    table = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    return f"{table}\n{conditions(made)}"


def rows(arrays):
    """A list of cells for each variant that `arrays` hold the distances of, `ours` first."""
    of = lambda name: {"distance": arrays[name], "same": arrays["same"], "fold": arrays["fold"]}
    measured, bootstrap = {name: of(name) for name in VARIANTS if name in arrays}, statistics.Bootstrap()
    for name, predictions in measured.items():
        line = [VARIANTS[name]]
        for metric, digits in ((METRICS["accuracy_pct"], 2), (METRICS["auc_pct"], 3)):
            level = statistics.level(metric, [predictions], bootstrap=bootstrap)
            gain = statistics.contrast(metric, [predictions], [measured["ours"]], bootstrap=bootstrap)
            line += [shown(level, digits), "—" if name == "ours" else shown(gain, digits)]
        yield line


def shown(interval, digits):
    """`99.30 [99.09, 99.51]`."""
    return f"{interval.mean:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def conditions(made):
    """What the table rests on, in two sentences, from the record's .json."""
    versions = made["environment"]
    return (
        f"The given MobileFaceNet on LFW's {made['data']['pairs']:,} pairs ({made['data']['faces']:,} faces); levels "
        "with 90 %, changes against the first row with 95 % intervals over the pairs, which are the same in all rows. "
        f"OpenCV {versions['opencv']}, Pillow {versions['pillow']}, torch {versions['torch']}; "
        "[preprocessing.py](preprocessing.py) says how each row is made.\n"
    )
