"""Near-duplicate pictures, found by a perceptual hash, so that a split can keep each group of them on one side.

The hash is the usual one from the lowest frequencies of the cosine transform (Zauner: Implementation and benchmarking
of perceptual image hash functions, 2010), with 16x16 of them instead of 8x8: on UTKFace's aligned faces 63 bits confuse
people that 255 bits keep apart. It survives resizing, recompression, other light, mirroring and a shift of about one
pixel in 64, no larger one.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

SIDE = 32  # px that the hash sees
FREQUENCIES = 16
BITS = FREQUENCIES**2 - 1  # without the mean
# Our choice, from UTKFace: pairs get rarer up to 40 differing bits (of 255) and then ever more frequent, chance's work.
MAX_BITS = 40
_CELLS = 2**25  # distances held at a time: 128 MiB


def groups(images: torch.Tensor, max_bits: int = MAX_BITS) -> np.ndarray:
    """Group of each image, (N,) int64, numbered in the order of their first images; most hold one image.

    images: (N, C, H, W) uint8 on any device. Two images whose hashes differ in at most `max_bits` of 255 bits, as they
    are or with one mirrored, are in one group, and so is whatever hangs on either. Time and pairs grow with N^2.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(images)
    first, second = near_pairs(images, max_bits).T
    links = coo_array((np.ones(len(first)), (first, second)), shape=(n, n))
    found = connected_components(links, directed=False)[1]
    _, start, member = np.unique(found, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(start))[member]


def near_pairs(images: torch.Tensor, max_bits: int = MAX_BITS) -> np.ndarray:
    """(P, 2) int64 positions i < j of the images whose hashes differ in at most `max_bits` bits; see `groups`."""
    bits, mirrored = perceptual_hash(images), perceptual_hash(images.flip(-1))
    step, pairs = max(1, _CELLS // max(1, len(bits))), []
    for start in range(0, len(bits), step):
        rows = bits[start : start + step]
        near = torch.maximum(rows @ bits.T, rows @ mirrored.T) >= BITS - 2 * max_bits
        first, second = near.triu(start + 1).nonzero(as_tuple=True)
        pairs.append(torch.stack([first + start, second], 1).cpu())
    return torch.cat(pairs or [torch.empty(0, 2, dtype=torch.int64)]).numpy()


def perceptual_hash(images: torch.Tensor) -> torch.Tensor:
    """(N, 255) float32 of -1 and 1, whose inner product is 255 minus twice the number of differing bits.

    A bit tells whether a cosine coefficient of the grey picture at 32x32 px is above the median of the 255.
    """
    small = torch.cat([_small(part) for part in images.split(2048)]) if len(images) else images.new_empty(0, SIDE, SIDE)
    position = torch.arange(SIDE, device=images.device) + 0.5
    basis = torch.cos(math.pi / SIDE * torch.arange(FREQUENCIES, device=images.device)[:, None] * position)
    waves = (basis @ small.float() @ basis.T).flatten(1)[:, 1:]
    return torch.where(waves > waves.median(1, keepdim=True).values, 1.0, -1.0)


def _small(images: torch.Tensor) -> torch.Tensor:
    """Grey (N, 32, 32) float32."""
    grey = images.float().mean(1, keepdim=True)
    return F.interpolate(grey, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)[:, 0]
