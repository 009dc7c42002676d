"""The verification protocol against a literal loop and hand-made cases; LFW's protocol files; angle statistics."""

import math
import tracemalloc
import unicodedata

import numpy as np
import pytest
import torch
from sklearn.model_selection import KFold

from facepapers.common.cli import MissingData, UserError
from facepapers.common.protocols import angles, metrics, pair_lists, verification
from tests.conftest import one_line_error

torch.set_num_threads(1)


def literal_accuracy(distance, same):
    """The evaluator in words: thresholds 0..3.99, ten unshuffled folds, best on the other nine, strictly below."""
    accuracies, thresholds = [], []
    for train, test in KFold(10, shuffle=False).split(distance):
        best, chosen = -1.0, None
        for step in range(400):
            threshold = np.arange(0, 4, 0.01)[step]
            accuracy = np.mean([(distance[i] < threshold) == same[i] for i in train])
            if accuracy > best:
                best, chosen = accuracy, threshold
        accuracies.append(np.mean([(distance[i] < chosen) == same[i] for i in test]))
        thresholds.append(chosen)
    return np.array(accuracies), np.array(thresholds)


def literal_tar(distance, same, target):
    """calculate_val of the evaluator, fold by fold. Interpolates on the grid step that passes the target."""
    tars, fars, grid = [], [], np.arange(0, 4, 0.001)
    for train, test in KFold(10, shuffle=False).split(distance):
        rates = [np.mean(distance[train][~same[train]] < threshold) for threshold in grid]
        threshold = 0.0
        if max(rates) >= target:
            i = next(i for i, rate in enumerate(rates) if rate > target)
            threshold = grid[i - 1] + (target - rates[i - 1]) / (rates[i] - rates[i - 1]) * 0.001
        tars.append(np.mean(distance[test][same[test]] < threshold))
        fars.append(np.mean(distance[test][~same[test]] < threshold))
    return np.mean(tars), np.std(tars), np.mean(fars)


def scores(n=203, seed=0, quantum=None):
    rng = np.random.default_rng(seed)
    same = rng.random(n) < 0.5
    distance = np.clip(np.where(same, 1.0, 1.7) + 0.35 * rng.standard_normal(n), 0, 4)
    if quantum:  # exactly on the grid: strictness decides
        distance = np.arange(0, 4, 0.01)[np.round(distance / 0.01).astype(int).clip(0, 399)]
    return distance, same


@pytest.mark.parametrize("quantum", [None, 0.01])
@pytest.mark.parametrize("n", [90, 93])
def test_accuracy_equals_the_literal_loop(n, quantum):
    distance, same = scores(n, quantum=quantum)
    accuracy, thresholds = literal_accuracy(distance, same)
    result = verification.verify(distance, same)
    np.testing.assert_allclose(result.fold_accuracy_pct, 100 * accuracy, rtol=1e-12)
    np.testing.assert_array_equal(result.threshold, thresholds)
    assert result.accuracy_pct == pytest.approx(100 * accuracy.mean())
    assert result.std_pct == pytest.approx(100 * accuracy.std(ddof=0))
    folds = pair_lists.contiguous_folds(n)
    assert [result.correct[folds == f].mean() for f in range(10)] == pytest.approx(list(accuracy))
    assert accuracy.min() < 1 and thresholds.std() > 0  # a case without errors could not fail


@pytest.mark.parametrize("target", [0.0123, 0.05, 0.101])
def test_tar_at_far_equals_the_literal_loop(target):
    distance, same = scores(400, seed=1)
    found = verification.tar_at_far(distance, same, far=target)
    assert tuple(found) == pytest.approx(literal_tar(distance, same, target))
    assert 0 < found.tar < 1


def test_thresholds_go_from_equal_to_opposite_embeddings():
    """Pairs at obtuse angles are told apart too: squared distances go up to 4."""
    distance, same = np.tile([2.5, 3.5], 10), np.tile([True, False], 10)
    assert verification.verify(distance, same).accuracy_pct == 100
    assert verification.tar_at_far(distance, same, far=0.5)[:1] == (1.0,)


def test_a_rate_that_is_reached_by_the_whole_grid_alone_is_reached():
    """Every ninth-tenths' curve ends at exactly the rate that is asked for."""
    same = np.arange(40) % 2 == 0
    distance = np.where(same, 0.5, np.where(np.arange(40) % 4 == 1, 1.0, 3.9999))  # half of the others are accepted
    assert verification.tar_at_far(distance, same, far=0.5) == (1.0, 0.0, 0.5)


def test_angles_of_pairs():
    np.testing.assert_allclose(verification.angles_deg([0, 1, 2, 4, 4 + 1e-9, -1e-9]), [0, 60, 90, 180, 180, 0])


def test_tar_is_zero_when_the_far_cannot_be_reached():
    same = np.arange(40) % 2 == 0
    distance = np.where(same, 0.5, 3.9999)  # no threshold of the grid accepts a different pair
    assert verification.tar_at_far(distance, same, far=0.1) == (0.0, 0.0, 0.0)


def test_tar_of_resamples_is_that_of_each():
    """Few pairs with distances in common, resamples without the last folds, rates passed, met and not reached."""
    rng = np.random.default_rng(0)
    distance, same = verification.FAR_THRESHOLDS[100 * rng.integers(0, 40, 60)], rng.random(60) < 0.6
    distance[~same & (np.arange(60) % 3 == 0)] = 3.9999  # beyond the grid
    fold = np.arange(60) % 10
    counts = np.stack([np.bincount(rng.integers(0, 60, 60), minlength=60) for _ in range(80)], 1)
    counts[fold > 7, :20] = 0
    for far in (1e-3, 0.05, 0.2, 0.5, 0.7, 0.9):
        found = verification.tar_resampled(distance, same, fold, counts, far)
        drawn = [np.repeat(np.arange(60), c) for c in counts.T]
        each = [verification.tar_at_far(distance[i], same[i], fold[i], far, both=False).tar for i in drawn]
        np.testing.assert_allclose(found, each, rtol=1e-12)
    assert 0 in found and 0 < found.max() < 1
    everything = verification.tar_resampled(distance, np.ones(60, bool), fold, counts)
    np.testing.assert_array_equal(everything, 0)  # no other pair: no rate is reached


def test_hand_made_case():
    """Ten folds of one same and one different pair: any threshold in (0.5, 1.5] is right, the first wins."""
    distance, same = np.tile([0.5, 1.5], 10), np.tile([True, False], 10)
    result = verification.verify(distance, same)
    assert result.accuracy_pct == 100 and result.std_pct == 0
    np.testing.assert_allclose(result.threshold, 0.51)
    distance[1] = 0.3  # fold 0's different pair looks the same: wrong there, and the others still learn 0.51
    result = verification.verify(distance, same)
    assert result.fold_accuracy_pct.tolist() == [50] + [100] * 9
    assert result.correct.tolist() == [True, False] + [True] * 18
    assert result.std_pct == pytest.approx(15)


def test_the_held_out_fold_does_not_choose_its_threshold():
    """The pitfall of published code: the best threshold over all pairs. Fold 9 disagrees with all others."""
    distance = np.r_[np.tile([0.5, 1.5], 9), [1.6, 0.4]]
    result = verification.verify(distance, np.tile([True, False], 10))
    assert result.fold_accuracy_pct.tolist() == [100] * 9 + [0]


def test_a_distance_on_the_threshold_is_rejected():
    grid = np.arange(0, 4, 0.01)
    distance, same = np.tile([grid[50], grid[51]], 10), np.tile([True, False], 10)
    np.testing.assert_array_equal(verification.verify(distance, same).threshold, grid[51])
    assert verification.verify(distance, same).accuracy_pct == 100


def test_folds():
    for n in (10, 6000, 7003):
        folds = pair_lists.contiguous_folds(n)
        for number, (_, test) in enumerate(KFold(10).split(np.zeros(n))):
            assert (folds[test] == number).all()
    same = np.r_[np.ones(500, bool), np.zeros(500, bool)]
    balanced = pair_lists.balanced_folds(same)
    assert np.bincount(balanced[same]).tolist() == np.bincount(balanced[~same]).tolist() == [50] * 10
    assert (np.diff(balanced[same]) >= 0).all()
    blocks = np.tile(np.repeat([True, False], 300), 10)  # pairs.txt
    np.testing.assert_array_equal(pair_lists.balanced_folds(blocks), pair_lists.contiguous_folds(6000))


def lists(people=12, images=6):
    """(identity (N,) of people in a shuffled order, positions (N,) of all images)."""
    identity = np.random.default_rng(3).permutation(np.repeat(np.arange(people), images))
    return identity, np.arange(len(identity))


def test_drawn_pairs_are_of_the_given_images_and_none_comes_twice():
    identity, everything = lists()
    index = everything[1::2]  # positions in the whole set, not in this list
    pairs = pair_lists.sample_pairs(index, identity, 40, seed=1)
    assert pairs.shape == (80, 4) and pairs.dtype == np.int32 and np.isin(pairs[:, :2], index).all()
    assert (pairs[:, 0] != pairs[:, 1]).all() and len({frozenset(pair) for pair in pairs[:, :2].tolist()}) == 80
    np.testing.assert_array_equal(identity[pairs[:, 0]] == identity[pairs[:, 1]], pairs[:, 2])
    assert pairs[:, 2].sum() == 40
    np.testing.assert_array_equal(np.bincount(pairs[:, 3]), [8] * 10)
    np.testing.assert_array_equal(np.bincount(pairs[:, 3], pairs[:, 2]), [4] * 10)
    assert (pairs == pair_lists.sample_pairs(index, identity, 40, seed=1)).all()
    assert (pairs[:, :2] != pair_lists.sample_pairs(index, identity, 40, seed=2)[:, :2]).any()
    few = pair_lists.sample_pairs(everything[:20], identity, 1000, seed=1)  # as many as the rarer kind has
    same = identity[:20, None] == identity[:20]
    assert len(few) == 2 * (same.sum() - 20) // 2 and few[:, 2].sum() == len(few) / 2


def test_people_held_out_are_of_the_training_part_and_wholly():
    identity, everything = lists(people=40)
    train = identity % 4 > 0  # 30 people
    test, pairs = pair_lists.hold_out(identity, train, count=30, seed=1)
    held = np.unique(identity[test])
    assert len(held) == 6 and (held % 4 > 0).all() and (test == np.isin(identity, held)).all()
    assert test[pairs[:, :2]].all() and pairs[:, 2].sum() == 30
    mixed = train & (everything % 3 > 0)  # people with images outside the training part, too
    assert not (pair_lists.hold_out(identity, mixed, count=10)[0] & ~mixed).any()
    again, other = (pair_lists.hold_out(identity, train, count=30, seed=seed)[0] for seed in (1, 2))
    assert (again == test).all() and (other != test).any()


def test_roc():
    fpr, tpr, threshold = verification.roc([0.1, 0.2, 0.3, 0.4], [True, False, True, False])
    for f, t, d in zip(fpr[1:], tpr[1:], threshold[1:]):
        assert f == np.mean(np.array([0.2, 0.4]) <= d) and t == np.mean(np.array([0.1, 0.3]) <= d)
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)


@pytest.mark.parametrize("batch", [64, 300, 6000])
def test_area_and_accuracy_do_not_depend_on_batches_in_lfws_order(batch):
    """LFW lists 300 same pairs, then 300 different ones, ten times, so that a batch often holds one kind alone.

    An evaluator that looks at each batch's range goes wrong here: torchmetrics 1.9, see findings/.
    """
    rng = np.random.default_rng(1)
    same = np.tile(np.repeat([True, False], 300), 10)
    angle = np.clip(np.where(same, rng.normal(60, 12, 6000), rng.normal(95, 8, 6000)), 1, 179)
    pictures = torch.from_numpy(np.stack([np.zeros(6000), angle], 1)).reshape(-1, 1, 1, 1)  # left and right in turn

    def network(x):  # a unit vector at the angle that a picture holds
        turn = torch.deg2rad(x.flatten())
        return torch.stack([turn.cos(), turn.sin()], 1)

    rows = verification.embed(network, pictures, lambda x: x.double(), batch=batch, flip=False)
    distance = verification.squared_distances(rows[::2], rows[1::2])
    np.testing.assert_allclose(verification.angles_deg(distance), angle, atol=1e-3)
    literal = np.mean([(angle[same] < other).mean() for other in angle[~same]])
    area = metrics.area_under_roc(-distance, same)
    assert 0.98 < area < 1 and area == pytest.approx(literal, abs=1e-6)
    mixed = rng.permutation(6000)
    assert metrics.area_under_roc(-distance[mixed], same[mixed]) == pytest.approx(area, abs=1e-12)
    exact = verification.verify(2 - 2 * np.cos(np.radians(angle)), same)
    assert verification.verify(distance, same).accuracy_pct == pytest.approx(exact.accuracy_pct, abs=0.05)


def test_embed_adds_the_mirror_image_before_normalising():
    images = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    weight = torch.randn(48, 7)
    network = lambda x: torch.tanh(x.flatten(1) @ weight / 100)
    found = verification.embed(network, images, lambda x: x.float() - 127, batch=2)
    x = images.float() - 127
    raw = network(x) + network(x.flip(3))
    np.testing.assert_allclose(found, torch.nn.functional.normalize(raw).numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-12)
    plain = verification.embed(network, images, lambda x: x.float() - 127, flip=False)
    assert np.abs(plain - found).max() > 0.01
    long = verification.embed(network, images, lambda x: x.float() - 127, unit=False)
    np.testing.assert_allclose(long, raw.numpy(), rtol=1e-5, atol=1e-7)
    distance = verification.squared_distances(found[:2], found[2:4])
    np.testing.assert_allclose(distance, 2 - 2 * (found[:2] * found[2:4]).sum(1))


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_embeddings_without_a_direction(value):
    embeddings = np.ones((3, 2))
    embeddings[1] = value
    with pytest.raises(UserError, match=r"embedding 1 is zero or not finite \(1 of 3\)"):
        verification.unit_rows(embeddings)


def test_bad_verification_input():
    with pytest.raises(UserError, match="3 distances, 2 truths"):
        verification.verify([1, 2, 3], [True, False], np.zeros(2, int))
    with pytest.raises(UserError, match="5 pairs cannot be cut into 10"):
        verification.verify(np.ones(5), np.ones(5, bool))
    with pytest.raises(UserError, match=r"pair 3.*not a number"):
        verification.verify(np.r_[1, 1, 1, np.nan, np.ones(16)], np.tile([True, False], 10))
    with pytest.raises(UserError, match=r"fold 5 has no same-person pair.*balanced_folds"):
        verification.verify(np.ones(20), np.r_[np.ones(10, bool), np.zeros(10, bool)])


# ---- LFW's files


def view2(folder, sets=10, each=2):
    lines = [f"{sets}\t{each}"]
    for s in range(sets):
        lines += [f"P{s}\t{i + 1}\t{i + 2}" for i in range(each)]
        lines += [f"P{s}\t1\tQ{s}\t{i + 1}" for i in range(each)]
    path = folder / "pairs.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_pairs_of_view_2(tmp_path):
    pairs = pair_lists.read_pairs(view2(tmp_path))
    assert len(pairs.same) == 40 and pairs.same[:4].tolist() == [True, True, False, False]
    assert pairs.left[5] == "P1/P1_0002.jpg" and pairs.right[5] == "P1/P1_0003.jpg"
    assert pairs.right[7] == "Q1/Q1_0002.jpg"
    assert pairs.fold.tolist() == np.repeat(np.arange(10), 4).tolist()


def test_one_long_name_does_not_widen_all_others(tmp_path):
    lines = ["10\t50", f"{'N' * 9000}\t1\t2", *["A\t1\t2"] * 499, *["A\t1\tB\t2"] * 500]
    path = tmp_path / "pairs.txt"
    path.write_text("\n".join(lines))
    tracemalloc.start()
    pairs = pair_lists.read_pairs(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * 2**20 and len(pairs.left[0]) > 18_000  # as NumPy's strings 137 MiB


def test_pairs_of_view_1(tmp_path):
    path = tmp_path / "pairsDevTest.txt"
    lines = [f"P\t{i}\t{i + 1}" for i in range(1, 21)] + [f"P\t{i}\tQ\t{i}" for i in range(1, 21)]
    path.write_text("20\n" + "\n".join(lines))
    pairs = pair_lists.read_pairs(path)
    assert pairs.same.sum() == 20 and (np.bincount(pairs.fold) == 4).all()
    assert all(pairs.same[pairs.fold == f].sum() == 2 for f in range(10))
    names = sorted(set(pairs.left) | set(pairs.right))
    left, right = pair_lists.index_pairs(pairs, names, "pairs.txt")
    assert [names[i] for i in left] == pairs.left.tolist() and [names[i] for i in right] == pairs.right.tolist()
    with pytest.raises(UserError, match=r"pairs.txt: names 1 images that are absent, e.g. P/P_0003.jpg"):
        pair_lists.index_pairs(pairs, [n for n in names if n != "P/P_0003.jpg"], "pairs.txt")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_protocols_as_editors_leave_them(tmp_path, encoding, end):
    """A byte order mark, CRLF, blank lines at the end; names with blanks, quotes, commas and accents between tabs."""
    people = ["Jean Paul", 'O"Neil, Jr.', "Zoë\u2028X", "李 明"]
    lines = ["12\t1", *[f"{p}\t1\t2" if k % 2 else f"{p}\t1\t{people[0]}\t2" for p in people for k in range(6)]]
    path = tmp_path / "pairs.txt"
    path.write_bytes(end.join([*lines, "", "  ", ""]).encode(encoding))
    pairs = pair_lists.read_pairs(path)
    names = [f"{p}/{p}_000{i}.jpg" for p in people for i in (1, 2)]
    left, right = pair_lists.index_pairs(pairs, [unicodedata.normalize("NFD", name) for name in names], path)
    assert [names[i] for i in left] == pairs.left.tolist() and [names[i] for i in right] == pairs.right.tolist()
    assert names[left[-1]] == "李 明/李 明_0001.jpg" and names[right[-2]] == "Jean Paul/Jean Paul_0002.jpg"
    path.write_bytes(end.join(["2", f"{people[0]}\t3", f"{people[2]}\t1", ""]).encode(encoding))
    assert pair_lists.read_people(path) == [{people[0]: 3, people[2]: 1}]
    path.write_text("10 1\n" + "A 1 2\nA 1 B 2\n" * 10)  # blanks alone
    assert pair_lists.read_pairs(path).right[:2].tolist() == ["A/A_0002.jpg", "B/B_0002.jpg"]


def test_a_list_in_blocks_has_both_kinds_in_each_fold(tmp_path, capsys):
    path = tmp_path / "pairs.txt"
    path.write_text("10 2\n" + "A 1 2\n" * 20 + "A 1 B 2\n" * 20)
    pairs = pair_lists.read_pairs(path)
    assert all((pairs.same[pairs.fold == f] == [True, True, False, False]).all() for f in range(10))
    one_line_error(capsys.readouterr().err, path, "blocks of one kind")
    nearly = np.r_[np.tile(np.arange(20) > 0, 5), np.tile(np.arange(20) == 0, 5)]  # one pair of the other kind a fold
    assert (np.bincount(pair_lists.folds_of(nearly, path)[nearly]) == 10).all()
    one_line_error(capsys.readouterr().err, path, "blocks of one kind")
    same = np.tile([True, False], 20)
    assert (pair_lists.folds_of(same, "x") == pair_lists.contiguous_folds(40)).all() and not capsys.readouterr().err


def test_people(tmp_path):
    path = tmp_path / "people.txt"
    path.write_text("2\n2\nA\t3\nB\t1\n1\nC\t2")
    assert pair_lists.read_people(path) == [{"A": 3, "B": 1}, {"C": 2}]
    path.write_text("2\nA\t3\nB\t1\n")
    assert pair_lists.read_people(path) == [{"A": 3, "B": 1}]
    for text in ("3\nA\t3\nB\t1\n", "2\n2\nA\t3\nB\t1\n2\nC\t2", "x\n", "2\nA 1\nB b\n", ""):
        path.write_text(text)
        with pytest.raises(UserError, match=r"people.txt: set \d does not hold"):
            pair_lists.read_people(path)


def test_bad_pairs_files(tmp_path):
    with pytest.raises(MissingData, match=r"pairs.txt: no such protocol file; .*make data-lfw"):
        pair_lists.read_pairs(tmp_path / "pairs.txt")
    path = view2(tmp_path)
    good = path.read_text().splitlines()
    cases = {
        "39 pairs where its first line promises 40": good[:-1],
        "41 pairs where its first line promises 40": [*good, good[-1]],
        "pairs.txt:1: expected": ["ten", *good[1:]],
        "pairs.txt:3: expected 'name n n'": good[:2] + ["P0\tone\t2"] + good[3:],
        "pairs.txt:4: expected": good[:3] + ["P0 1"] + good[4:],
        "pairs.txt:5: expected": good[:4] + ["P0\t²\tQ0\t1"] + good[5:],
    }
    for message, lines in cases.items():
        path.write_text("\n".join(lines))
        with pytest.raises(UserError, match=message):
            pair_lists.read_pairs(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a text file"):
        pair_lists.read_pairs(path)


# ---- Angles


def at(degrees, length=1.0):
    return [length * math.cos(math.radians(degrees)), length * math.sin(math.radians(degrees))]


def test_angle_statistics_by_hand():
    embeddings = np.array([at(0, 3), at(20), at(90), at(130), at(200)])
    labels = np.array([0, 0, 1, 1, 2])
    weight = np.array([at(15), at(110), at(180), at(60)])  # the last class has no image
    found = angles.angle_statistics(embeddings, labels, weight)
    assert found["intra_deg"] == pytest.approx((10 + 10 + 20 + 20 + 0) / 5)
    assert found["inter_deg"] == pytest.approx((100 + 90 + 90) / 3)
    assert found["w_ec_deg"] == pytest.approx((5 + 0 + 20) / 3)
    assert found["w_inter_deg"] == pytest.approx((45 + 50 + 70 + 45) / 4)
    known = angles.angle_statistics(embeddings, np.array([3, 3, 1, 1, 0]), weight[[2, 1, 3, 0]])  # other numbers
    assert known == pytest.approx(found)
    several = angles.angle_statistics(embeddings, labels, min_images=2)
    assert several == pytest.approx({"intra_deg": 15, "inter_deg": 100}), "of the two people with two images"
    raw = angles.angle_statistics(embeddings, labels, normalise_first=False)  # the long embedding pulls its centre
    assert raw["intra_deg"] == pytest.approx((20 + 20 + 20 + 0) / 5, abs=1e-9) and "w_ec_deg" not in raw


def test_nearest_centre_is_the_same_in_chunks():
    rows = verification.unit_rows(np.random.default_rng(0).standard_normal((57, 5)))
    expected = [max(a @ b for j, b in enumerate(rows) if j != i) for i, a in enumerate(rows)]
    np.testing.assert_allclose(angles.nearest_cosine(rows, chunk=10), expected)
    np.testing.assert_allclose(angles.nearest_cosine(rows), expected)


def test_the_memory_of_nearest_centres_does_not_grow_with_their_number():
    rows = verification.unit_rows(np.random.default_rng(0).standard_normal((16_000, 2)))
    tracemalloc.start()
    nearest = angles.nearest_cosine(rows)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 160 * 2**20 and nearest.min() > 0.999  # 1024 rows at a time would be 125 MiB, twice
