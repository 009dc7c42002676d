"""Synthetic faces with known truth: a batched renderer in plain tensor operations.

A test bed, never data about people. Every label is an input of the drawing: expression, age, the 29 COFW
points and their occlusion are exact because the picture is made from them. `gender` (0, 1) and `group`
(0..4) are abstract appearance factors: two fixed tables of shifts in the appearance vector, with overlapping
distributions, that stand for no population.

How a face is made (N samples, K primitives, P pixels), with the modules that hold each step; this one draws the
samples of `sampling` by them, block by block, and adds blur and noise:

1. `shape`: a linear model gives 3-D points: mean + identity blend shapes + action units (expression) + age. The 29
   landmarks are 29 of its points, so lids, brows and lips are curves *through* the landmarks.
2. `pose`: yaw, pitch and roll turn the points about a pivot inside the head; projection is orthographic.
3. `polynomials`, `head`, `curves`: each primitive (ellipsoid outline, lid curve, wrinkle, ...) is a polynomial of
   degree two in the pixel position, so one matrix product (N*K, 6) @ (6, P) evaluates all primitives of a chunk at
   all pixels. `scene` holds them for a batch.
4. `layers`, `light`, `shading`, `occluders`: edges are those polynomials scaled to pixels and clamped (analytic
   anti-aliasing); shading strokes are their exponentials. Layers are composited front to back, and a second matrix
   product applies the colours.

Model space: unit = mean distance between the pupils, origin midway between them, x to the viewer's right,
y down, z towards the viewer. "Left" and "right" always mean the viewer's side.

Same factors, device, thread count and chunk give the same bits. `sample_factors` draws on the CPU, and its
first m samples do not depend on n (the same seed with a larger n only appends).
"""

import dataclasses
import functools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from facepapers.common.data.markups import COFW29, five_points
from facepapers.common.faces.factors import Faces, Factors
from facepapers.common.faces.layers import compose_layers, plan
from facepapers.common.faces.occluders import covered_points, occlude, take_faces
from facepapers.common.faces.polynomials import bell, pixel_basis
from facepapers.common.faces.sampling import NOISE_STARTS, USUAL, Ranges, sample_factors
from facepapers.common.faces.scene import Scene, build_scene, hidden_by_pose
from facepapers.common.faces.shape import EXPRESSIONS
from facepapers.common.progress import progress


def generate(
    n: int,
    seed: int,
    ranges: Ranges = USUAL,
    *,
    size: int = 64,
    grey: bool = False,
    identities: int | None = None,
    people_seed: int | None = None,
) -> Faces:
    """n faces of one seed at size x size pixels: `sample_factors`, then `render`."""
    return render(sample_factors(n, seed, ranges, identities=identities, people_seed=people_seed), size, grey=grey)


def _blurred(image: torch.Tensor, sigma_px: torch.Tensor) -> torch.Tensor:
    """Gaussian blur by one matrix per axis, (N, C, S, S) with sigma (N,). Rows sum to 1 at the borders."""
    place = torch.arange(image.shape[-1], device=image.device, dtype=image.dtype)
    distance = (place[:, None] - place) ** 2
    kernel = bell(-distance / (2 * sigma_px.clamp_min(1e-2) ** 2)[:, None, None])
    kernel = (kernel / kernel.sum(-1, keepdim=True))[:, None]
    return kernel @ image @ kernel.mT


@functools.cache
def _noise_table(device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(NOISE_STARTS + 3 * 256 * 256, generator=generator).to(device)


def _noise(f: Factors, channels: int, size: int) -> torch.Tensor:
    """Normal noise (N, C, S, S): each sample reads a stretch of one table, so chunks cannot change it."""
    length = channels * size * size
    windows = _noise_table(f.scale.device).unfold(0, length, 1)
    return windows[f.noise_seed].view(-1, channels, size, size)


def _expose(f: Factors, image: torch.Tensor, grey: bool) -> torch.Tensor:
    """Light colour, blur, noise: (N, 3, S, S) in 0..1 -> uint8 (N, C, S, S)."""
    size = image.shape[-1]
    image = (image * f.light_colour[:, :, None, None]).clamp(0, 1)
    if grey:
        image = (image * torch.tensor([0.299, 0.587, 0.114]).to(image)[:, None, None]).sum(1, keepdim=True)
    image = _blurred(image, f.blur * size / 64)
    image = image + f.noise[:, None, None, None] * _noise(f, image.shape[1], size)
    return (image * 255 + 0.5).clamp(0, 255).to(torch.uint8)


def _draw(scene: Scene, d: SimpleNamespace, size: int, grey: bool) -> torch.Tensor:
    """Pixels of one chunk: images (N, C, S, S)."""
    place = (torch.arange(size, device=d.scale.device) - (size - 1) / 2) / size
    y, x = torch.meshgrid(place, place, indexing="ij")
    basis = pixel_basis(x.flatten(), y.flatten())
    image = compose_layers(d, size, basis)
    occlude(scene, size, basis, image)
    return _expose(scene.f, image.unflatten(2, (size, size)), grey)


BLOCK = 1024  # samples whose geometry is computed together; the pixels go in smaller chunks


def _render_block(f: Factors, size: int, grey: bool, chunk: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, points and occlusion flags of up to BLOCK samples."""
    scene = build_scene(f)
    everything = plan(scene)
    drawn = []
    for start in range(0, len(f), chunk):
        part = slice(start, start + chunk)
        d = SimpleNamespace(**{name: tensor[part] for name, tensor in vars(everything).items()})
        drawn.append(_draw(take_faces(scene, part), d, size, grey))
    return (
        torch.cat(drawn),
        scene.flat * size + (size - 1) / 2,
        covered_points(scene, size) | hidden_by_pose(scene),
    )


@torch.no_grad()
def render(
    factors: Factors,
    size: int = 64,
    grey: bool = False,
    device: torch.device | str | None = None,
    chunk: int | None = None,
) -> Faces:
    """Draw the factors at size x size pixels (16..256), `chunk` samples at a time (it bounds the memory)."""
    f = factors if device is None else factors.to(device)
    order = f.occluder.argsort(stable=True)  # chunks of one occluder each: fewer, larger operations
    f, back = f[order], order.argsort()
    on_cpu = f.scale.device.type == "cpu"
    chunk = chunk or max(1, (1 << 16 if on_cpu else 1 << 22) // size**2)  # the CPU's chunk should fit its cache
    starts = progress(range(0, len(f), BLOCK), "drawing faces", "blocks")
    parts = [_render_block(f[i : i + BLOCK], size, grey, chunk) for i in starts]
    images, points, occluded = (torch.cat(column)[back] for column in zip(*parts, strict=True))
    low, high = points.amin(1), points.amax(1)
    extent = high - low
    box = torch.cat([low - 0.12 * extent, 1.24 * extent], 1)
    drawn = {
        "images": images,
        "points": points,
        "occluded": occluded,
        "five": five_points(points, COFW29),
        "box": box,
    }
    labels = {field.name for field in dataclasses.fields(Faces)} - drawn.keys()
    return Faces(**drawn, **{name: getattr(f, name)[back] for name in labels})


def contact_sheet(path: Path | str | None = None, size: int = 128, columns: int = 8) -> np.ndarray:
    """One row per swept factor, then random faces with their points (red: occluded): (H, W, 3) uint8 array.

    Writes a PNG when `path` is given.
    """
    base = sample_factors(1, 4, Ranges(occluded_share=0, yaw_deg=0, pitch_deg=0, roll_deg=0, shift=0))
    base = dataclasses.replace(
        base[torch.zeros(columns, dtype=torch.long)],
        expression=torch.zeros(columns, dtype=torch.long),
        age_years=torch.full((columns,), 30.0),
        blur=torch.full((columns,), 0.15),
        noise=torch.full((columns,), 0.01),
    )
    rows = [render(dataclasses.replace(base, **change), size).images for change in _sweeps(columns)]
    faces = generate(4 * columns, 6, Ranges(occluded_share=0.4), size=size)
    marked = _mark(faces.images.clone(), faces.points, faces.occluded)
    pictures = torch.cat([*rows, faces.images[: 2 * columns], marked[2 * columns :]])
    sheet = pictures.unflatten(0, (-1, columns)).permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2).numpy()
    if path is not None:
        from PIL import Image

        Image.fromarray(sheet).save(path)
    return sheet


def _sweeps(k: int) -> list[dict[str, torch.Tensor]]:
    """Changes of the base factors, one dict per row of the contact sheet."""
    step, index = torch.linspace(-1, 1, k), torch.arange(k)
    people = sample_factors(k, 9)
    happy = torch.full((k,), EXPRESSIONS.index("happiness"))
    return [
        {"identity": people.identity, "gender": people.gender, "group": people.group},
        {"expression": index % 8, "intensity": torch.ones(k)},
        {"expression": happy, "intensity": (step + 1) / 2},
        {"age_years": 4 + 40 * (step + 1)},
        {"gender": index * 2 // k, "group": index % 4 + index * 2 // k},
        {"yaw_deg": 50 * step},
        {"pitch_deg": 30 * step},
        {"roll_deg": 40 * step},
        {"light_azimuth_deg": 80 * step, "light_strength": torch.full((k,), 0.7)},
        {"background": people.background, "cloth": people.cloth, "light_colour": people.light_colour},
        {"occluder": index % 5, "occluder_shape": people.occluder_shape},
        {"blur": 1 + step, "noise": 0.06 * (1 + step)},
    ]


def _mark(images: torch.Tensor, points: torch.Tensor, occluded: torch.Tensor) -> torch.Tensor:
    """Set the pixels nearest to the points: green where visible, red where not. Changes `images`."""
    size = images.shape[-1]
    x, y = points.round().long().clamp(0, size - 1).unbind(-1)
    sample = torch.arange(len(images))[:, None].expand_as(x)
    images[sample, :, y, x] = torch.where(
        occluded[..., None], torch.tensor([255, 40, 40]), torch.tensor([0, 255, 0])
    ).to(torch.uint8)
    return images
