"""Colours of skin, hair, lips and eyes, and where the light comes from."""

import torch

from facepapers.common.faces.factors import Factors


def _blend(dark: tuple[float, ...], light: tuple[float, ...], share: torch.Tensor) -> torch.Tensor:
    """Geometric mixture of two colours, (N,) -> (N, 3): saturated middle tones, as pigments have."""
    low, high = (torch.tensor(c).to(share).log() for c in (dark, light))
    return (low + (high - low) * share[:, None]).exp()


def palette(f: Factors, look: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Colours in 0..1, (N, 3) each, from the appearance coordinates and age."""
    tint = torch.tensor([0.04, 0.0, -0.05]).to(f.scale)
    skin = _blend((0.36, 0.22, 0.16), (0.95, 0.79, 0.69), torch.sigmoid(1.1 * look["skin_tone"] + 0.7))
    skin = skin * (1 + tint * look["skin_hue"][:, None])
    hair = _blend((0.06, 0.045, 0.04), (0.82, 0.65, 0.38), torch.sigmoid(1.3 * look["hair_tone"] - 0.9))
    hair = hair * (1 + 3 * tint * look["hair_hue"][:, None])
    grey = torch.sigmoid((f.age_years - 56) / 7 + 0.5 * look["hair_hue"])[:, None] * 0.9
    hair = hair + (0.78 - hair) * grey
    rosy = torch.tensor([1.0, 0.56, 0.56]).to(skin)
    lip = skin * (rosy + 0.10 * (look["lip_colour"].clamp(-2.5, 2)[:, None] * torch.tensor([0.5, -1, -0.8]).to(skin)))
    blush = torch.tensor([0.03, -0.035, -0.03]).to(skin) * (1 + 0.5 * look["lip_colour"].clamp(-2, 2))[:, None]
    iris = _blend((0.15, 0.08, 0.05), (0.45, 0.62, 0.72), torch.sigmoid(1.5 * look["iris_tone"] - 0.7))
    iris = iris * (1 + 3 * tint * look["iris_hue"][:, None])
    colours = {"skin": skin, "hair": hair, "lip": lip, "blush": blush, "iris": iris, "brow": 0.75 * hair}
    return {name: c if name == "blush" else c.clamp(0.01, 1) for name, c in colours.items()}


def light_direction(f: Factors) -> torch.Tensor:
    """Unit vector towards the light in camera coordinates, (N, 3)."""
    side, up = torch.deg2rad(f.light_azimuth_deg), torch.deg2rad(f.light_elevation_deg)
    return torch.stack([side.sin() * up.cos(), -up.sin(), side.cos() * up.cos()], 1)
