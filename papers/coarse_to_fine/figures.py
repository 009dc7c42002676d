"""Pictures of the results, drawn from records alone (and, for embedded faces, from a model just trained)."""

import numpy as np

from facepapers.common.evidence import figures, runs
from facepapers.common.protocols import metrics
from facepapers.papers.coarse_to_fine.config import ROWS
from facepapers.papers.coarse_to_fine.metrics import METRICS

# What a picture shows, for readers who see it: stem of the file -> one sentence.
CAPTIONS = {
    "embedded-demo": (
        "Drawn faces with 29 points, a few minutes of training: coarse-to-fine training beside the same network with "
        "equal weights and our heatmap variant; the curve further left is better."
    ),
    "lfpw-short": (
        "LFPW with 68 points: look for a gap between CFT and the control with equal weights in all four panels, and "
        "at the heatmap variant, which has the smallest error nearly everywhere."
    ),
    "lfpw29-points29": (
        "COFW's 29 points on faces of LFPW, by networks for 68 points that learned them in five folds: look for the "
        "gap between CFT and the heatmap variant at every landmark; both find brows and chin worst, eyes best."
    ),
}
# The same for readers who do not: what stands where.
ALTERNATIVES = {
    "embedded-demo": (
        "Four panels: mean error of each method as a dot with its interval, share of faces below each error, mean "
        "error of each landmark, and error of validation faces over the training."
    ),
    "lfpw-short": (
        "Four panels: mean error of each method as a dot with its interval, share of faces below each error, mean "
        "error of each of 68 landmarks by region, and error of training faces over the training."
    ),
    "lfpw29-points29": (
        "Four panels: mean error as a dot with its interval, share of faces below each error, mean error of each of 29 "
        "landmarks by region, and error of training faces over the training of each fold."
    ),
}

INK = figures.PALETTE
COLOURS = {
    "mean-shape": INK["grey"], "principal": INK["purple"], "direct": INK["blue"], "cft": INK["vermilion"],
    "heatmap": INK["green"],
}  # fmt: skip
REGIONS = {
    68: [("jaw", 0, 17), ("brows", 17, 27), ("nose", 27, 36), ("eyes", 36, 48), ("lips", 48, 68)],
    29: [("brows", 0, 8), ("eyes", 8, 18), ("nose", 18, 22), ("lips", 22, 28), ("chin", 28, 29)],
}


def draw(records, folder):
    """One PNG per data set and preset: error, its distribution, error per point, training curves. Returns the paths."""
    return figures.draw(pictures(records), folder)


def pictures(records):
    """{stem: function of a path}."""
    return figures.overviews(records, overview)


def overview(records, evidence, path):
    rows, data = figures.by_row(records, ROWS), records[0]["data"]
    distance = "interpupil" if "interpupil_px" in evidence.predictions(records[0]) else "eyecentre"
    where = f"{data['test_faces']} test faces ({figures.data_name(data['name'])}; boxes: {data['boxes']})"
    title = f"How far predicted points lie from the truth on {where}"
    figure, axes = figures.canvas(title, [["key", "faces"], ["points", "training"]], 6.8)
    predictions = {row: [evidence.predictions(r) for r in found] for row, found in rows.items()}
    intervals = {row: figures.level(error_of(row, distance), found, evidence) for row, found in rows.items()}
    for row, found in rows.items():
        cumulative(axes["faces"], row, predictions[row], distance)
        if row not in ("mean-shape", "principal"):
            per_point(axes["points"], row, predictions[row], distance)
        learning(axes["training"], row, found)
    axes["points"].set_ylim(0, None)
    if len(intervals) > 1 and "mean-shape" in intervals:  # its dot, far from the others, would press them together
        floor = intervals.pop("mean-shape")
        end = axes["faces"].lines[list(rows).index("mean-shape")].get_ydata()[-1]
        words = f"mean shape: {floor.mean:.1f} %"
        axes["faces"].text(15, end + 0.03, words, color=COLOURS["mean-shape"], ha="right", fontsize=8)
    named = ROWS | {"principal": f"{ROWS['principal']}, its 12 points"}
    looks = {row: (named[row], COLOURS[row], "o", "-") for row in rows}
    figures.dots(axes["key"], intervals, looks, "mean error (%)")
    figures.save(figure, path)


def error_of(row, distance):
    """The metric of a row: its error over the main normaliser, of the points that it learns."""
    return METRICS[f"nme_{distance}{'_principal' if row == 'principal' else ''}_pct"]


def cumulative(axes, row, predictions, distance):
    """Cumulative error curve over the faces of all seeds."""
    grid = np.linspace(0, 15, 301)
    nme = np.concatenate([error_of(row, distance).per_sample(p) for p in predictions])
    axes.plot(grid, metrics.cumulative_error(nme, grid), color=COLOURS[row])
    name = {"interpupil": "inter-pupil", "eyecentre": "eye-centre"}[distance]
    axes.set(xlabel=f"error over the {name} distance (%)", ylabel="share of faces", xlim=(0, 15), ylim=(0, 1))
    figures.heading(axes, "Faces with at most this error")


def per_point(axes, row, predictions, distance):
    """Mean error of each landmark, grouped by region."""
    error = np.mean([100 * (p["error_px"] / p[f"{distance}_px"][:, None]).mean(0) for p in predictions], axis=0)
    axes.plot(np.arange(len(error)), error, ".-", color=COLOURS[row], lw=0.8, ms=4)
    regions = REGIONS[len(error)]
    for _, start, _ in regions[1:]:
        axes.axvline(start - 0.5, color=figures.PALE, lw=0.8, zorder=0)
    axes.grid(False, axis="x")
    axes.set_xticks([(a + b - 1) / 2 for _, a, b in regions], [name for name, _, _ in regions])
    axes.set_ylabel("mean error (%)")
    figures.heading(axes, "Error of each landmark")


def learning(axes, row, records):
    """Error while training, one thin line per seed: of validation faces, or of training faces where all train."""
    if row == "principal":
        return  # its 17 or 56 other points are never trained, so this curve means nothing
    for record in records:
        history = runs.read_history(record["folder"]) if record["seconds"] else ()
        for column, of in (("val_nme_pct", "validation faces"), ("train_nme_pct", "training faces")):
            if column in history:
                points = history.dropna(subset=[column])
                for _, one in points.groupby("fold" if "fold" in points else lambda _: 0):  # each is a training
                    crops = one["step"] * record["config"]["batch"] / 1000
                    axes.plot(crops, one[column], color=COLOURS[row], lw=0.9)
                axes.set_ylabel(f"error of {of} (%)")
    axes.set(xlabel="training crops (thousands)")
    figures.log_ticks(axes, "y")
    figures.heading(axes, "Error while training")


def faces(pixels, truth, predicted, path, columns=6):
    """Crops (N, 3, S, S) with true and predicted points (N, P, 2): for synthetic faces only."""
    lines = -(-len(pixels) // columns)
    names = [[columns * line + k for k in range(columns)] for line in range(lines)]
    title = "Test faces: white rings are the true points, blue dots the predicted ones"
    figure, grid = figures.canvas(title, names, figures.WIDTH_IN / columns * lines + 0.3)
    for k, axes in grid.items():
        axes.axis("off")
        if k < len(pixels):
            axes.imshow(pixels[k].permute(1, 2, 0).clamp(0, 255).byte().numpy())
            axes.autoscale(False)  # a point outside the crop must not change its scale
            axes.plot(*truth[k].T, "o", ms=4, mfc="none", mec="white", mew=0.8)
            axes.plot(*predicted[k].T, ".", ms=5, color=INK["sky"])
    figures.save(figure, path)
