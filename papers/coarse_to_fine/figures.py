"""Pictures of the results, drawn from records alone (and, for embedded faces, from a model just trained)."""

import numpy as np

from facepapers.common.evidence import figures, runs
from facepapers.common.protocols import metrics
from facepapers.papers.coarse_to_fine.config import ROWS

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
}

COLOURS = {"mean-shape": "#999999", "principal": "#c9a227", "direct": "#4477aa", "cft": "#cc3311", "heatmap": "#228833"}
REGIONS = {
    68: [("jaw", 0, 17), ("brows", 17, 27), ("nose", 27, 36), ("eyes", 36, 48), ("lips", 48, 68)],
    29: [("brows", 0, 8), ("eyes", 8, 18), ("nose", 18, 22), ("lips", 22, 28), ("chin", 28, 29)],
}


def draw(records, folder):
    """One PNG per data set and preset: error distribution, error per point, training curves. Returns the paths."""
    return figures.draw_groups(records, folder, overview)


def overview(records, path):
    rows = figures.by_row(records, ROWS)
    figure, (left, middle, right) = figures.pyplot().subplots(1, 3, figsize=(16, 4.6), layout="constrained")
    for row, found in rows.items():
        predictions = [runs.read_predictions(r["folder"] / "predictions.npz") for r in found]
        cumulative(left, row, predictions)
        if row not in ("mean-shape", "principal"):
            per_point(middle, row, predictions)
        learning(right, row, found)
    about = records[0]
    middle.set_ylim(0, None)
    left.legend(loc="lower right", fontsize=9)
    data, preset = about["data"], about["config"]["preset"]
    title = f"{data['name']}, preset {preset}, {data['test_faces']} test faces, boxes: {data['boxes']}"
    figure.suptitle(title, fontsize=11)
    figures.save(figure, path)


def normaliser(predictions):
    """The main normaliser's array and its name."""
    pupils = "interpupil_px" in predictions
    return predictions["interpupil_px" if pupils else "eyecentre_px"], "inter-pupil" if pupils else "eye-centre"


def cumulative(axes, row, predictions):
    """Cumulative error curve over the faces of all seeds."""
    grid = np.linspace(0, 15, 301)
    d, name = normaliser(predictions[0])
    nme = np.concatenate([metrics.nme_pct(p["error_px"], d) for p in predictions])
    if row == "principal":  # this row learns 12 points; its curve is over those
        chosen = predictions[0]["principal"].astype(bool)
        nme = np.concatenate([metrics.nme_pct(p["error_px"][:, chosen], d) for p in predictions])
    label = ROWS[row] + (", its 12 points" if row == "principal" else "")
    axes.plot(grid, metrics.cumulative_error(nme, grid), color=COLOURS[row], label=f"{label}: {nme.mean():.2f} %")
    axes.set(xlabel=f"error over the {name} distance (%)", ylabel="share of faces", xlim=(0, 15), ylim=(0, 1))
    axes.axvline(10, color="#cccccc", lw=0.8, zorder=0)
    axes.set_title("Cumulative error")


def per_point(axes, row, predictions):
    """Mean error of each landmark, grouped by region."""
    d, _ = normaliser(predictions[0])
    error = np.mean([100 * (p["error_px"] / d[:, None]).mean(0) for p in predictions], axis=0)
    axes.plot(np.arange(len(error)), error, ".-", color=COLOURS[row], lw=0.8, ms=4)
    regions = REGIONS[len(error)]
    for _, start, _ in regions[1:]:
        axes.axvline(start - 0.5, color="#cccccc", lw=0.8, zorder=0)
    axes.set_xticks([(a + b - 1) / 2 for _, a, b in regions], [name for name, _, _ in regions])
    axes.set_ylabel("mean error (%)")
    axes.set_title("Error per landmark")


def learning(axes, row, records):
    """Error while training, one thin line per seed: of validation faces, or of training faces where all train."""
    if row == "principal":
        return  # its 17 or 56 other points are never trained, so this curve means nothing
    for record in records:
        history = runs.read_history(record["folder"]) if record["seconds"] else ()
        for column, of in (("val_nme_pct", "validation faces"), ("train_nme_pct", "training faces")):
            if column in history:
                points = history.dropna(subset=[column])
                crops = points["step"] * record["config"]["batch"] / 1000
                axes.plot(crops, points[column], color=COLOURS[row], lw=0.9)
                axes.set_ylabel(f"error of {of} (%)")
    axes.set(xlabel="training crops (thousands)", yscale="log")
    axes.yaxis.set_major_formatter("{x:.0f}")
    axes.yaxis.set_minor_formatter("{x:.0f}")
    axes.set_title("While training")


def faces(pixels, truth, predicted, path, columns=6):
    """Crops (N, 3, S, S) with true (white) and predicted (red) points (N, P, 2): for synthetic faces only."""
    lines = -(-len(pixels) // columns)
    figure, grid = figures.pyplot().subplots(lines, columns, figsize=(2.2 * columns, 2.2 * lines), layout="constrained")
    for axes in grid.flat:
        axes.axis("off")
    for axes, image, true, ours in zip(grid.flat, pixels, truth, predicted, strict=False):
        axes.imshow(image.permute(1, 2, 0).clamp(0, 255).byte().numpy())
        axes.autoscale(False)  # a point outside the crop must not change its scale
        axes.plot(*true.T, "o", ms=4, mfc="none", mec="white", mew=0.8)
        axes.plot(*ours.T, ".", ms=3, color="#ee3311")
    figure.suptitle("white: truth, red: predicted", fontsize=9)
    figures.save(figure, path)
