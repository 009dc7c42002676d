"""Near-duplicates: altered copies of embedded faces are found, other faces of the same people are not."""

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from facepapers.common.data import duplicates
from facepapers.common.faces import drawing

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def drawn():
    """(300, 3, 64, 64) uint8: three pictures each of a hundred people."""
    return drawing.generate(300, 5, size=64, identities=100).images


def jpeg(image, quality):
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1)


def resized(image, size):
    small = F.interpolate(image[None].float(), (size, size), mode="bilinear", antialias=True)
    return F.interpolate(small, (64, 64), mode="bilinear").round().byte()[0]


ALTERATIONS = {
    "same": lambda image: image,
    "recompressed": lambda image: jpeg(image, 40),
    "resized": lambda image: resized(image, 40),
    "brighter": lambda image: (image.float() * 0.7 + 60).byte(),
    "grey": lambda image: image.float().mean(0).byte().expand(3, -1, -1),
    "mirrored": lambda image: image.flip(-1),
    "mirrored and recompressed": lambda image: jpeg(image.flip(-1), 60),
}


@pytest.mark.parametrize("alter", ALTERATIONS.values(), ids=ALTERATIONS)
def test_altered_copies_are_found(drawn, alter):
    copies = torch.stack([alter(image) for image in drawn[:20]])
    found = duplicates.groups(torch.cat([drawn, copies]))
    assert found[300:].tolist() == found[:20].tolist()


def test_other_pictures_stay_apart(drawn):
    """Also those of one person; a handful in 44,850 pairs may fall together by chance."""
    assert len(duplicates.near_pairs(drawn)) <= 5
    assert len(duplicates.near_pairs(drawn, max_bits=duplicates.BITS)) == 300 * 299 // 2


def test_groups_are_chains_in_the_order_of_their_first_images():
    """One image changed step by step: the ends differ by more than the limit, the group holds all of them."""
    generator = torch.Generator().manual_seed(0)
    first, last = torch.rand(2, 1, 32, 32, generator=generator) * 255
    steps = torch.stack([first * (1 - t) + last * t for t in torch.linspace(0, 1, 20)]).byte()
    other = (torch.rand(1, 1, 32, 32, generator=generator) * 255).byte()
    found = duplicates.groups(torch.cat([other, steps[::2], other, steps[1::2]]))
    assert found.tolist() == [0, *[1] * 10, 0, *[1] * 10]
    ends = torch.stack([steps[0], steps[-1]])
    assert duplicates.groups(ends).tolist() == [0, 1]


def test_distances_are_counts_of_bits_in_blocks_of_any_size(drawn, monkeypatch):
    """Against the slow way, one pair at a time."""
    few = drawn[:40]
    bits, mirrored = (duplicates.perceptual_hash(images) > 0 for images in (few, few.flip(-1)))
    slow = [
        (i, j)
        for i in range(40)
        for j in range(i + 1, 40)
        if min((bits[i] != bits[j]).sum(), (bits[i] != mirrored[j]).sum()) <= 100
    ]
    assert len(slow) > 10
    for cells in (2**25, 40 * 7, 1):
        monkeypatch.setattr(duplicates, "_CELLS", cells)
        assert duplicates.near_pairs(few, 100).tolist() == [list(pair) for pair in slow]


def test_the_hash_is_the_cosine_transforms(drawn):
    """Bit by bit against SciPy's transform of the picture as Pillow reduces it."""
    from scipy.fft import dctn

    for image in drawn[:5]:
        grey = Image.fromarray(image.float().mean(0).numpy())
        small = np.asarray(grey.resize((32, 32), Image.Resampling.BILINEAR))
        waves = dctn(small, norm=None)[:16, :16].flatten()[1:]  # the first is the mean
        expected = waves > np.sort(waves)[127]
        found = duplicates.perceptual_hash(image[None])[0].numpy() > 0
        assert (found != expected).sum() <= 2 and found.sum() == 127


def test_no_images_have_no_groups():
    assert duplicates.groups(torch.empty(0, 3, 64, 64, dtype=torch.uint8)).tolist() == []
