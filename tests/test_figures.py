"""Pictures of the results: colours, intervals, ROC curves, and that the committed ones are what is drawn today."""

from importlib import import_module
from itertools import combinations

import numpy as np
import pytest

from facepapers.common import paths
from facepapers.common.evidence import claims, figures, runs, statistics
from facepapers.common.tools import report

PAPERS = claims.papers()
SIZE_KIB = 300  # of a committed picture, at most
# Linear RGB as seen without the long or the middle cones (Machado, Oliveira and Fernandes 2009, severity 1).
SEEN = {
    "all cones": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}


def of(paper):
    return import_module(f"facepapers.papers.{paper}.figures")


def lab(colour, seen):
    """CIE L*a*b* (D65) of "#rrggbb" as seen."""
    share = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    t = to_xyz @ np.clip(np.array(seen) @ linear, 0, 1) / (0.9505, 1, 1.089)
    f = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("eyes", SEEN)
def test_colour_blind_readers_tell_the_colours_apart(eyes):
    for one, other in combinations(figures.PALETTE, 2):
        apart = np.linalg.norm(lab(figures.PALETTE[one], SEEN[eyes]) - lab(figures.PALETTE[other], SEEN[eyes]))
        assert apart > 15, f"{one} and {other} are {apart:.1f} apart; 2 can just be seen"


@pytest.mark.parametrize("paper", PAPERS)
def test_a_paper_draws_in_the_palette(paper):
    assert set(of(paper).COLOURS.values()) <= set(figures.PALETTE.values())


@pytest.mark.parametrize(
    "paper", [paper for paper in PAPERS if paper != "face_attributes"]
)  # that one's are attributes
def test_rows_of_a_picture_differ(paper):
    drawn = of(paper)
    style = getattr(drawn, "style", lambda row: ())
    for stem, records in figures.groups(runs.recorded(paper)).items():
        rows = dict.fromkeys(r["config"]["row"] for r in records)
        looks = [(drawn.COLOURS.get(row) or drawn.colour(row), *style(row)) for row in rows]
        assert len(set(looks)) == len(looks), stem


@pytest.mark.parametrize("paper", PAPERS)
def test_committed_pictures_are_those_that_are_drawn(paper):
    committed = {path.stem: path for path in report.figures_folder(paper).glob("*.png")}
    assert committed.keys() == of(paper).pictures(runs.recorded(paper)).keys(), "run make report and commit"
    for path in committed.values():
        header = path.read_bytes()[16:20]
        assert path.stat().st_size < SIZE_KIB * 1024, path.name
        assert int.from_bytes(header, "big") <= figures.DPI * figures.WIDTH_IN, f"{path.name}: wider than a card"


@pytest.mark.parametrize("paper", PAPERS)
def test_each_committed_picture_has_its_words(paper):
    stems = {path.stem for path in report.figures_folder(paper).glob("*.png")}
    for words in (of(paper).CAPTIONS, of(paper).ALTERNATIVES):
        assert words.keys() == stems or not stems, "a new paper has none yet"
        assert all(text.endswith(".") and len(text) > 40 for text in words.values())


def test_levels_of_label_noise_are_one_curve():
    records = runs.recorded("arcface")
    of_preset = lambda *names: [r for r in records if r["data"]["name"] == "lfw" and r["config"]["preset"] in names]
    levels = of("arcface").by_noise(records, "lfw")
    assert {0, 10, 20, 30, 40} == levels["arcface"].keys() and set(levels) <= {"arcface", "subcenter", "cleaned"}
    assert of("arcface").pictures(of_preset("noise10", "noise20")).keys() == {"lfw-noise"}
    assert of("arcface").pictures(of_preset("noise20")).keys() == {"lfw-noise20"}, "one level is no curve"


def test_noise_on_characters_is_a_curve_of_its_own():
    as_characters = lambda r, preset: {
        **r,
        "data": {**r["data"], "name": "omniglot", "protocol": "retrieval"},
        "config": {**r["config"], "preset": preset},
    }
    records = [r for r in runs.recorded("arcface") if r["config"]["preset"] in ("short", "noise20")]
    presets = {"short": "omniglot", "noise20": "omniglot_noise20"}
    moved = [as_characters(r, presets[r["config"]["preset"]]) for r in records if r["config"]["row"] == "arcface"]
    assert of("arcface").by_noise(moved, "omniglot")["arcface"].keys() == {0, 20}
    assert "omniglot-noise" in of("arcface").pictures(moved) and not of("arcface").by_noise(moved, "lfw")
    assert of("arcface").headline(moved[0])[1] == "Recall@1 (%)"
    assert of("arcface").headline(records[0])[1] == "verification accuracy (%)"


def test_one_row_alone_is_compared_with_nothing():
    records = [r for r in runs.recorded("resup") if r["config"]["preset"] in ("long", "long0")]
    assert "ferplus-long" in of("resup").pictures(records) and "ferplus-long0" not in of("resup").pictures(records)


def test_pictures_that_are_no_longer_drawn_are_removed(tmp_path):
    for name in ("kept.png", "old.png", "notes.txt"):
        (tmp_path / name).touch()
    assert report.remove_stale(tmp_path, [tmp_path / "kept.png"]) == [tmp_path / "old.png"]
    assert {path.name for path in tmp_path.iterdir()} == {"kept.png", "notes.txt"}


def test_make_report_removes_them(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RECORDED", tmp_path)
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(report.claims, "papers", lambda: ["arcface"])
    monkeypatch.setattr(report, "generated", dict)
    monkeypatch.setattr(of("arcface"), "draw", lambda records, folder: [])
    report.figures_folder("arcface").mkdir(parents=True)
    (report.figures_folder("arcface") / "old.png").touch()
    report.write()
    assert not list(report.figures_folder("arcface").iterdir())


def test_the_same_picture_gives_the_same_bytes(tmp_path):
    for name in ("one.png", "two.png"):
        figure, axes = figures.canvas("A sentence", [["only"]], 2)
        axes["only"].plot([0, 1])
        figures.save(figure, tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


# ---- Metrics that only a picture has


def test_mean_accuracy_of_attributes_and_its_error():
    """Age and gender are known of the same 200 faces, emotion of 50 others: their errors add as independent ones do."""
    rng = np.random.default_rng(0)
    p = {f"{name}_correct": rng.random(n) < 0.7 for name, n in (("age", 200), ("gender", 200), ("emotion", 50))}
    found = of("face_attributes").mean_accuracy(["age", "gender", "emotion"])
    assert found.value(p) == pytest.approx(100 * np.mean([hits.mean() for hits in p.values()]))
    sums = [100 / 3 * (p["age_correct"] * 1.0 + p["gender_correct"]), 100 / 3 * p["emotion_correct"]]
    samples = found.per_sample(p)
    expected = np.sqrt(sum(hits.var() / len(hits) for hits in sums))
    assert samples.std(ddof=1) / np.sqrt(len(samples)) == pytest.approx(expected, rel=0.01)


def test_accuracy_on_a_class_is_that_of_both_networks_mean():
    p = {"label": np.array([0, 0, 1]), "predicted": np.array([1, 1, 1]), "predicted_mean": np.array([0, 1, 1])}
    assert [of("resup").accuracy_in(k).value(p) for k in (0, 1)] == [50, 100]
    assert of("resup").accuracy_in(0).value({"label": p["label"], "predicted": p["predicted"]}) == 0


# ---- Dots and curves


def drawn_on(panel, *arguments, **more):
    _, axes = figures.canvas("A sentence", [["only"]], 2)
    panel(axes["only"], *arguments, **more)
    return axes["only"]


def test_dots_reach_as_far_as_their_intervals():
    intervals = {"a": statistics.Interval(5, 4, 7, 3, 100), "b": statistics.Interval(9, 9, 9, 1, 100)}
    looks = {"a": ("first", "#000000", "o", "-"), "b": ("second", "#d55e00", "s", "--")}
    axes = drawn_on(figures.dots, intervals, looks, "accuracy (%)")
    (segment,) = axes.containers[0][2][0].get_segments()
    assert segment.tolist() == [[4, 0], [7, 0]] and axes.yaxis_inverted()
    assert [text.get_text() for text in axes.texts] == ["5.0  (3 runs)", "9.0  (1 run)"]
    assert [(tick.get_text(), tick.get_color()) for tick in axes.get_yticklabels()] == [
        ("first", "#000000"), ("second", "#d55e00"),
    ]  # fmt: skip
    assert not axes.patches, "no bars"


def test_axis_labels_name_the_confidence_of_the_intervals():
    shares = statistics.LEVEL_CONFIDENCE, statistics.CONTRAST_CONFIDENCE
    assert [f"{100 * share:.0f} % intervals" for share in shares] == [figures.LEVELS, figures.CONTRASTS]


def test_a_roc_curve_begins_at_the_first_false_accept():
    """Distances same 1 3 5, different 2 4: at one of two false accepts two of three are accepted, at two all are."""
    one = {"distance": np.array([1.0, 3, 5, 2, 4]), "same": np.array([1, 1, 1, 0, 0])}
    (curve,) = drawn_on(figures.roc, [one]).lines
    assert curve.get_xdata().tolist() == [50, 100]
    assert curve.get_ydata() == pytest.approx([200 / 3, 100])


def test_roc_curves_of_seeds_are_averaged():
    good = {"distance": np.array([1.0, 2, 3, 4]), "same": np.array([1, 1, 0, 0])}
    bad = {"distance": np.array([1.0, 4, 2, 3]), "same": np.array([1, 1, 0, 0])}
    (curve,) = drawn_on(figures.roc, [good, bad]).lines
    assert curve.get_ydata().tolist() == [75, 100]


@pytest.mark.parametrize(("lowest", "bottom"), [(98.2, 98), (42.0, 40)])
def test_a_roc_panel_begins_where_its_curves_do(lowest, bottom):
    axes = drawn_on(lambda axes: axes.plot([1, 100], [lowest, 100]))
    figures.finish_roc(axes)
    assert axes.get_ylim()[0] == bottom


def test_pictures_are_of_a_data_set_and_a_preset_with_its_own_settings():
    """Of what was read, not of what was asked for ("auto"); a user's settings stand in no picture."""

    def record(seed, data="lfw", preset="short", row="a", **over):
        config = {"data": "auto", "preset": preset, "row": row, "seed": seed, "precision": "auto"} | over
        return {"config": config, "data": {"name": data}, "overrides": over, "started": "2026", "run": f"{data}{seed}"}

    records = [record(1), record(0), record(0, "lfpw+helen"), record(0, preset="demo"), record(2, lr=0.5)]
    found = figures.groups(records)
    assert {stem: [r["run"] for r in some] for stem, some in found.items()} == {
        "lfpw-helen-short": ["lfpw+helen0"], "lfw-demo": ["lfw0"], "lfw-short": ["lfw1", "lfw0"],
    }  # fmt: skip
    rows = figures.by_row([record(0, row="b"), record(0), record(1, row="b")], ("c", "b", "a"))
    assert {row: len(some) for row, some in rows.items()} == {"b": 2, "a": 1} and list(rows) == ["b", "a"]
