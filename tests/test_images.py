"""Batched image operations: geometry, flips, JPEG against Pillow's encoder, random streams."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from facepapers.common import seeding
from facepapers.common.data.markups import COFW29, IBUG68
from facepapers.common.vision import images


def dot(points, size=64, sigma=1.5):
    """Images (B, 3, size, size) with one bright blob at each point (B, 2)."""
    steps = torch.arange(size, dtype=torch.float32)
    x = torch.exp(-0.5 * ((steps - points[:, :1]) / sigma) ** 2)
    y = torch.exp(-0.5 * ((steps - points[:, 1:]) / sigma) ** 2)
    return 255 * (y.unsqueeze(2) * x.unsqueeze(1)).unsqueeze(1).expand(-1, 3, -1, -1)


def centroid(pictures):
    """Brightness-weighted mean position (B, 2)."""
    grey = pictures.mean(1)
    steps = torch.arange(grey.shape[-1], dtype=torch.float32)
    total = grey.sum((1, 2))
    return torch.stack([grey.sum(1) @ steps / total, grey.sum(2) @ steps / total], 1)


def test_a_dot_is_found_where_its_point_goes():
    """Rotation, scale, shift and flip at once: pixels and points take the same way."""
    gen = seeding.generator(1)
    n = 24
    where = 24 + 16 * torch.rand(n, 2, generator=gen)
    centre = 28 + 8 * torch.rand(n, 2, generator=gen)
    side, angle = 34 + 20 * torch.rand(n, generator=gen), math.pi * (torch.rand(n, generator=gen) - 0.5)
    flip = torch.arange(n) % 2 == 0
    to_image = images.similarity(centre, side, angle, flip, 40)
    expected = images.transform_points(where.unsqueeze(1), images.invert(to_image))[:, 0]
    inside = ((expected > 6) & (expected < 33)).all(1)
    assert inside.sum() > 12 and flip[inside].any() and not flip[inside].all()
    found = centroid(images.crop(dot(where), to_image, 40))
    assert (found - expected)[inside].norm(dim=1).max() < 0.1


def test_similarity_by_hand():
    """Side 20 shown in 10 pixels around (30, 40): the first pixel's centre is 4.5 pixels of 2 away."""
    still, none = torch.zeros(1), torch.zeros(1, dtype=torch.bool)
    centre, side = torch.tensor([[30.0, 40.0]]), torch.tensor([20.0])
    corner = torch.zeros(1, 1, 2)
    upright = images.similarity(centre, side, still, none, 10)
    torch.testing.assert_close(images.transform_points(corner, upright), torch.tensor([[[21.0, 31.0]]]))
    mirrored = images.similarity(centre, side, still, ~none, 10)
    torch.testing.assert_close(images.transform_points(corner, mirrored), torch.tensor([[[39.0, 31.0]]]))
    quarter = images.similarity(centre, side, still + math.pi / 2, none, 10)  # crop x runs along image y
    torch.testing.assert_close(images.transform_points(corner, quarter), torch.tensor([[[39.0, 31.0]]]))
    step = images.transform_points(torch.tensor([[[1.0, 0.0]]]), quarter) - torch.tensor([[[39.0, 31.0]]])
    torch.testing.assert_close(step, torch.tensor([[[0.0, 2.0]]]), atol=1e-5, rtol=0)


def test_the_identity_crop_changes_no_pixel():
    picture = (255 * torch.rand(2, 3, 20, 20, generator=seeding.generator(2))).round()
    whole = images.similarity(
        torch.full((2, 2), 9.5), torch.full((2,), 20.0), torch.zeros(2), torch.zeros(2).bool(), 20
    )
    torch.testing.assert_close(images.crop(picture, whole, 20), picture, atol=1e-3, rtol=0)


def test_pictures_need_not_be_square():
    wide = photo(2, 48)[:, :, :30]
    identity = torch.eye(2, 3).expand(2, 2, 3)
    torch.testing.assert_close(images.crop(wide, identity, 30), wide[..., :30], atol=1e-3, rtol=0)
    shifted = identity + torch.tensor([[0.0, 0, 18], [0, 0, 0]])
    torch.testing.assert_close(images.crop(wide, shifted, 30), wide[..., 18:], atol=1e-3, rtol=0)


def test_a_flipped_crop_is_the_mirrored_crop():
    picture = 255 * torch.rand(1, 3, 20, 20, generator=seeding.generator(3))
    centre, side, still = torch.full((1, 2), 9.5), torch.full((1,), 20.0), torch.zeros(1)
    plain, mirrored = (
        images.crop(picture, images.similarity(centre, side, still, torch.tensor([f]), 20), 20) for f in (False, True)
    )
    torch.testing.assert_close(mirrored, plain.flip(3), atol=1e-3, rtol=0)


def test_outside_the_image_the_edge_is_repeated():
    picture = torch.full((1, 3, 8, 8), 200.0)
    far = images.similarity(torch.full((1, 2), 3.5), torch.tensor([40.0]), torch.zeros(1), torch.zeros(1).bool(), 8)
    torch.testing.assert_close(images.crop(picture, far, 8), picture)


def test_invert():
    gen = seeding.generator(4)
    matrix = images.similarity(
        50 * torch.rand(9, 2, generator=gen), 20 + 30 * torch.rand(9, generator=gen),
        6 * torch.rand(9, generator=gen), torch.arange(9) % 2 == 0, 50,
    )  # fmt: skip
    points = 50 * torch.rand(9, 5, 2, generator=gen)
    back = images.transform_points(images.transform_points(points, matrix), images.invert(matrix))
    torch.testing.assert_close(back, points, atol=1e-3, rtol=0)


@pytest.mark.parametrize("markup", [COFW29, IBUG68], ids=lambda m: m.name)
def test_flipped_points_take_the_names_of_their_new_side(markup):
    points = torch.arange(2 * markup.n_points * 2, dtype=torch.float32).view(2, -1, 2)
    flipped = images.flip_points(points, torch.tensor(markup.flip), torch.tensor([False, True]))
    assert torch.equal(flipped[0], points[0])
    left, right = markup.outer_corners
    assert torch.equal(flipped[1, left], points[1, right]) and torch.equal(flipped[1, right], points[1, left])
    assert torch.equal(images.flip_points(flipped, torch.tensor(markup.flip), torch.tensor([False, True])), points)


def test_halving_moves_points_as_documented():
    where = torch.tensor([[20.0, 30.5], [33.25, 21.0]])
    halved = images.halve(dot(where, sigma=3).round().to(torch.uint8))
    assert halved.dtype == torch.uint8 and halved.shape == (2, 3, 32, 32)
    torch.testing.assert_close(centroid(halved.float()), (where - 0.5) / 2, atol=0.05, rtol=0)


# Random streams


def test_a_stream_depends_on_all_its_keys_and_on_nothing_else():
    draw = lambda *keys: torch.rand(4, generator=seeding.generator(*keys)).tolist()
    torch.rand(3)
    assert draw(7, 2, 5) == draw(7, 2, 5)
    keys = [(7, 2, 5), (7, 2, 6), (7, 3, 5), (8, 2, 5), (2, 7, 5), (5, 2, 7), (7, 2), (7,), (0, 0, 0), (0, 0), (-1, 0)]
    assert len({tuple(draw(*k)) for k in keys}) == len(keys)


def test_neighbouring_steps_are_unrelated():
    table = np.array([torch.rand(200, generator=seeding.generator(0, 2, step)).tolist() for step in range(60)])
    between = np.corrcoef(table)[np.triu_indices(60, 1)]
    assert abs(between).max() < 0.35 and abs(between.mean()) < 0.01  # 0.07 is one standard deviation
    assert 0.35 < table[:, 0].mean() < 0.65 and table[:, 0].std() > 0.2  # first draws are spread, too


def test_drawing_does_not_touch_the_global_generator():
    before = torch.get_rng_state()
    images.uniform(0, 1, (5,), seeding.generator(1))
    assert torch.equal(before, torch.get_rng_state())


# Changes of colour, blur, covered rectangles


def photo(n=1, size=48):
    """Smooth pictures with some texture, (n, 3, size, size)."""
    gen = seeding.generator(11)
    coarse = 255 * torch.rand(n, 3, 5, 5, generator=gen)
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic", align_corners=True)
    return (smooth + 12 * torch.randn(n, 3, size, size, generator=gen)).clamp(0, 255).round()


def test_colour_jitter_stays_in_range_and_makes_some_grey():
    pictures = photo(200, 16)
    changed = images.colour_jitter(pictures, seeding.generator(1), grey=0.25)
    assert changed.min() >= 0 and changed.max() <= 255
    grey = (changed.std(1) < 0.5).all(2).all(1)
    assert 0.12 < grey.float().mean() < 0.4
    assert (changed.mean((1, 2, 3)) - pictures.mean((1, 2, 3))).std() > 15  # brightness differs from picture to picture


def test_colour_jitter_of_zero_changes_nothing():
    still = images.colour_jitter(photo(4), seeding.generator(1), 0, 0, 0, 0)
    torch.testing.assert_close(still, photo(4), atol=1e-3, rtol=0)


def test_erase_covers_rectangles_of_the_stated_sizes_with_one_colour():
    pictures = photo(300, 40)
    changed = images.erase(pictures, seeding.generator(2), probability=0.5, smallest=0.1, largest=0.45)
    touched = (changed != pictures).any(1)
    share = touched.any(2).any(1).float().mean()
    assert 0.35 < share < 0.6
    for mask, picture in zip(touched, changed, strict=True):
        if mask.any():
            rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
            block = picture[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            assert block.flatten(1).std(1).max() < 1e-3  # one colour: the rectangle is filled
            assert max(block.shape[1:]) <= 0.45 * 40 + 1
    assert torch.equal(images.erase(pictures, seeding.generator(2), probability=0.0), pictures)


def test_blur_smooths_the_chosen_and_keeps_the_mean():
    pictures = photo(100, 24)
    roughness = lambda x: (x[..., 1:] - x[..., :-1]).abs().mean((1, 2, 3))
    changed = images.blur(pictures, seeding.generator(3), probability=0.5)
    smoother = roughness(changed) < 0.97 * roughness(pictures)
    assert 0.25 < smoother.float().mean() < 0.6
    same = (changed - pictures).abs().amax((1, 2, 3)) < 1e-3
    assert (same | (roughness(changed) <= roughness(pictures))).all() and same.float().mean() > 0.35
    torch.testing.assert_close(changed.mean((1, 2, 3)), pictures.mean((1, 2, 3)), atol=1.5, rtol=0)


def test_blur_of_a_dot_is_a_gaussian():
    picture = torch.zeros(1, 3, 21, 21)
    picture[:, :, 10, 10] = 100
    changed = images.blur(picture, seeding.generator(5), probability=1.0, largest_sigma=1.2)[0, 0]
    near, far = changed[10, 11] / changed[10, 10], changed[10, 12] / changed[10, 10]
    assert changed.sum() == pytest.approx(100, rel=1e-4)
    assert 0 < near < math.exp(-0.5 / 1.2**2) and far == pytest.approx(float(near**4), rel=1e-3)
    torch.testing.assert_close(changed, changed.T)


def test_colour_jitter_is_that_of_each_picture_alone():
    """Against the words of the docstring, one picture at a time, with the same draws."""
    pictures, n = photo(12, 10), 12
    changed = images.colour_jitter(pictures, seeding.generator(9), 0.1, 0.3, 0.5, grey=0.3)
    gen = seeding.generator(9)
    gain, offset, keep, grey = (torch.rand(n, 1, 1, 1, generator=gen).flatten().tolist() for _ in range(4))
    assert 0 < sum(g < 0.3 for g in grey) < n
    for k in range(n):
        luma = (0.299 * pictures[k, 0] + 0.587 * pictures[k, 1] + 0.114 * pictures[k, 2]).expand(3, -1, -1)
        share = 0.0 if grey[k] < 0.3 else 0.5 + keep[k]
        coloured = luma + share * (pictures[k] - luma)
        expected = luma.mean() + (0.7 + 0.6 * gain[k]) * (coloured - luma.mean()) + 255 * 0.1 * (2 * offset[k] - 1)
        torch.testing.assert_close(changed[k], expected.clamp(0, 255), atol=1e-2, rtol=0)


def test_blur_is_a_gaussian_of_each_pictures_own_width():
    """Against SciPy's filter, which also repeats the edge and ends four pixels from the middle."""
    from scipy.ndimage import gaussian_filter

    pictures, n = photo(10, 20), 10
    changed = images.blur(pictures, seeding.generator(8), probability=0.6, largest_sigma=1.4)
    gen = seeding.generator(8)
    sigma, on = (torch.rand(n, 1, generator=gen).flatten().tolist() for _ in range(2))
    assert 2 < sum(draw < 0.6 for draw in on) < n
    for k in range(n):
        wide = 0.2 + 1.2 * sigma[k] if on[k] < 0.6 else 0.0
        expected = gaussian_filter(pictures[k].numpy(), (0, wide, wide), mode="nearest", radius=4)
        np.testing.assert_allclose(changed[k], expected, atol=0.02)


def test_erased_rectangles_lie_where_they_were_drawn():
    pictures, n, size = photo(20, 30), 20, 30
    changed = images.erase(pictures, seeding.generator(6), probability=0.6, smallest=0.2, largest=0.5)
    gen = seeding.generator(6)
    side, centre, on, colour = (torch.rand(n, k, generator=gen) for k in (2, 2, 1, 3))
    for k in range(n):
        expected, (wide, high) = pictures[k].clone(), (0.2 + 0.3 * side[k]).tolist()
        if on[k] < 0.6:
            for y in range(size):
                for x in range(size):
                    if abs(x / size - centre[k, 0]) < wide / 2 and abs(y / size - centre[k, 1]) < high / 2:
                        expected[:, y, x] = 255 * colour[k]
        torch.testing.assert_close(changed[k], expected)


def test_halving_is_the_rounded_mean_of_four():
    pictures = (torch.arange(2 * 3 * 8 * 6) * 37 % 256).view(2, 3, 8, 6).byte()
    blocks = pictures.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4).float()
    assert torch.equal(images.halve(pictures), blocks.mean(-1).round().byte())


# JPEG


def pillow(picture, quality):
    """A (3, H, W) picture through Pillow's encoder and decoder."""
    file = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).byte().numpy()).save(file, "JPEG", quality=quality, subsampling=2)
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).float()


@pytest.mark.parametrize("size", [48, 50])
@pytest.mark.parametrize("texture", [0.0, 12.0, 40.0])
def test_jpeg_is_what_pillow_makes(texture, size):
    gen = seeding.generator(21)
    coarse = 255 * torch.rand(4, 3, 4, 4, generator=gen)
    pictures = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic", align_corners=True)
    pictures = (pictures + texture * torch.randn(4, 3, size, size, generator=gen)).clamp(0, 255).round()
    qualities = torch.tensor([15, 45, 75, 95])
    ours = images.jpeg(pictures, qualities)
    for picture, mine, quality in zip(pictures, ours, qualities.tolist(), strict=True):
        theirs = pillow(picture, quality)
        damage = (theirs - picture).abs().mean()
        difference = (mine - theirs).abs().mean()  # from rounding alone; with wrong tables it is 0.9 of the damage
        assert difference < 0.45 * damage or (quality == 95 and difference < 1.6), (quality, damage)


def test_quality_zero_leaves_the_picture_alone_and_quality_matters():
    pictures = photo(4)
    ours = images.jpeg(pictures, torch.tensor([0, 15, 45, 95]))
    damage = (ours - pictures).abs().mean((1, 2, 3))
    assert torch.equal(ours[0], pictures[0])
    assert damage[1] > damage[2] > damage[3] > 0


def test_the_augmentation_is_a_function_of_its_generator():
    pictures = photo(6)
    for change in (images.colour_jitter, images.erase, images.blur):
        first, again, other = (change(pictures, seeding.generator(seed)) for seed in (1, 1, 2))
        assert torch.equal(first, again) and not torch.equal(first, other), change.__name__


def test_each_pass_shows_every_sample_once():
    pick = seeding.shuffled(10, 4, seed=3)
    seen = torch.cat([pick(step) for step in range(10)]).view(4, 10)
    assert all(sorted(row.tolist()) == list(range(10)) for row in seen)
    assert len({tuple(row.tolist()) for row in seen}) == 4
    assert torch.equal(seeding.shuffled(10, 4, seed=3)(7), pick(7)), "a step's samples depend on nothing before it"
    assert not torch.equal(seeding.shuffled(10, 4, seed=4)(0), pick(0))
    large = seeding.shuffled(10, 32, seed=3)(1)  # a batch over several passes
    assert large.bincount().max() == 4 and len(large) == 32
