"""What the papers' losses share: rows scaled to unit length, and labels of any integer type."""

from __future__ import annotations

import math
from typing import Any

import torch

from facepapers.common.cli import UserError

# A row no longer than this share of the median length has no direction. The gradient of x / ||x|| is 1 / ||x||: without
# a limit a row of zeros, or what rounding leaves of one, would send 1e11 times what its neighbours do.
SHORT = 1e-2
LEAST = 1e-6  # nor has one that is no longer than this, about float32's rounding of 1, whatever the others' length


def lengths(x: torch.Tensor) -> torch.Tensor:
    """Euclidean lengths (N, 1) of the rows of x (N, d), infinite where a row has no direction: divide by them.

    Such a row then is 0 and gets no gradient. A row that is not finite stays so.
    """
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    known = length.detach()
    return length.masked_fill(known <= (SHORT * known.median()).clamp(min=LEAST), math.inf)


def directions(x: torch.Tensor) -> torch.Tensor:
    """Rows of x (N, d) at unit length, at least float32; 0 and without gradient where a row has no direction.

    F.normalize sends a gradient of 1e12 to a row of zeros.
    """
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return x / lengths(x)


def scales(distance: torch.Tensor) -> torch.Tensor:
    """Distances or deviations (B,) to divide by; infinite, so that an entry counts nothing, where one is no scale.

    Two eyes on one spot (a damaged annotation) would otherwise send more than all other faces together.
    """
    return distance.masked_fill(distance <= SHORT * distance.median(), math.inf)


def class_numbers(labels: Any, device: torch.device | None = None) -> torch.Tensor:
    """Labels (...) as int64, of any integer type of torch or numpy. Raises UserError for other types.

    Torch's own functions differ: uint8 indexes as a mask, and cross-entropy and one_hot refuse what gather takes.
    """
    try:
        found = torch.as_tensor(labels, device=device)
    except (TypeError, ValueError) as error:
        raise UserError(f"labels are no numbers ({' '.join(str(error).split())[:80]}); number classes from 0") from None
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise UserError(f"labels are {str(found.dtype).removeprefix('torch.')}; give whole numbers, such as int64")
    return found.long()
