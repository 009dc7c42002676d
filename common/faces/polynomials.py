"""Polynomials of degree two in the pixel position, and products of them."""

import torch


def pixel_basis(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Monomials at positions in image widths: (...,) -> (..., 6)."""
    return torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y], -1)


def evaluate(polynomials: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """(N, K, 6) at shared positions (P, 6) or at positions of each sample (N, P, 6) -> (N, K, P)."""
    if basis.dim() == 3:
        return polynomials @ basis.mT
    return (polynomials.flatten(0, 1) @ basis.T).unflatten(0, polynomials.shape[:2])


def product(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Product of two affine functions."""
    a, b, c = p.unbind(-1)
    d, e, f = q.unbind(-1)
    return torch.stack([a * d, a * e + b * d, a * f + c * d, b * e, b * f + c * e, c * f], -1)


def lift(p: torch.Tensor) -> torch.Tensor:
    """An affine function (..., 3) as a polynomial (..., 6)."""
    return torch.cat([p, torch.zeros_like(p)], -1)


def constant(value: float | torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The constant polynomial `value`, shaped like the batch of polynomials `like`."""
    out = torch.zeros_like(like)
    out[..., 0] = value
    return out


def frame_of(origin: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Affine coordinates u, v of the frame origin + u a + v b; all (..., 2)."""
    det = a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
    det = torch.where(det.abs() < 1e-6, torch.full_like(det, 1e-6), det)  # an edge-on frame shrinks to nothing
    u_x, u_y = b[..., 1] / det, -b[..., 0] / det
    v_x, v_y = -a[..., 1] / det, a[..., 0] / det
    u = torch.stack([-(u_x * origin[..., 0] + u_y * origin[..., 1]), u_x, u_y], -1)
    v = torch.stack([-(v_x * origin[..., 0] + v_y * origin[..., 1]), v_x, v_y], -1)
    return u, v


def affine_at(affine: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """Value of an affine function (N, 3) at positions (N, 2)."""
    return affine[..., 0] + (affine[..., 1:] * position).sum(-1)


def disc(origin: torch.Tensor, a: torch.Tensor, b: torch.Tensor, radius: float | torch.Tensor) -> torch.Tensor:
    """Signed distance-like polynomial of an ellipse, in model units near the edge; positive inside."""
    u, v = frame_of(origin, a, b)
    q = product(u, u) + product(v, v)
    return (constant(1.0, q) - q) * (torch.as_tensor(radius).to(q) / 2)[..., None]


def below(
    u: torch.Tensor, v: torch.Tensor, at_minus: torch.Tensor, at_plus: torch.Tensor, through: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """v - g(u), g the parabola with g(-1), g(1) as given, through the position (N, 2): positive below it."""
    u0, v0 = affine_at(u, through), affine_at(v, through)

    def line(t: torch.Tensor) -> torch.Tensor:
        return (at_plus + at_minus) / 2 + t * (at_plus - at_minus) / 2

    bend = (v0 - line(u0)) / (1 - u0 * u0).clamp_min(0.2)
    q = lift(v) + bend[:, None] * product(u, u) - lift(u) * ((at_plus - at_minus) / 2)[:, None]
    return q - constant(bend + line(torch.zeros_like(bend)), q), bend


def soft_edge(distance_px: torch.Tensor, softness: float = 1.0) -> torch.Tensor:
    """Coverage from a signed distance in pixels: a box-filtered edge `softness` pixels wide."""
    return (distance_px / softness + 0.5).clamp(0, 1)


def bell(exponent: torch.Tensor) -> torch.Tensor:
    """exp in place, flat below e^-16: denormal numbers would make it ten times slower."""
    return exponent.clamp_min_(-16).exp_()
