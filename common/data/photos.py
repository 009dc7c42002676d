"""Pictures from files, as the 8-bit RGB that a viewer shows. Two readers, and which one is right where:

    read_photo     a user's photo (predict, align, a folder of photos <identity>/<image>): turned upright as its EXIF
                   orientation says, so that faces stand, and points found in it refer to the upright picture
    stored_pixels  a picture of a data set: never turned, because annotations refer to the pixels as stored

Both go through `shown`, which makes 8-bit RGB of every kind of pixel, or refuses it in one line.
"""

from __future__ import annotations

import io
import re
import struct
import sys
import warnings
import zlib
from typing import TYPE_CHECKING

import numpy as np

from facepapers.common.cli import UserError
from facepapers.common.data.archive import AnyPath, place

if TYPE_CHECKING:
    import torch
    from PIL import Image

MAGIC = ((b"\xff\xd8\xff", "JPEG"), (b"\x89PNG\r\n\x1a\n", "PNG"), (b"RIFF", "WEBP"))  # how these formats begin
SMALLEST_PX = 8  # side of a photo below which no method here tells a face; our choice, half of their lowest resolution
AGAIN = "restore it from its archive"
ANOTHER = "save it as JPEG or PNG, or leave it out"
# What Pillow's plugins raise on damaged files.
_DAMAGE = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, EOFError, OverflowError, MemoryError,
    struct.error, zlib.error,
)  # fmt: skip
# EXIF orientation: names of Pillow's transpositions that turn the stored picture upright. 1, or anything else: none.
_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE",
    8: "ROTATE_90",
}  # fmt: skip
_ORIENTATION = 0x0112  # EXIF's tag


def read_photo(path: AnyPath | str) -> torch.Tensor:
    """A user's photo, upright, as a (3, H, W) uint8 RGB tensor.

    Of a file with several pictures (an animation) the first is read, which stderr says. Raises UserError for a file
    that is absent or no sound image, for pixels that `shown` refuses, and for a photo too large or too small to use.
    """
    import torch

    with warnings.catch_warnings():
        # Pillow's, of large files (from twice that size on it refuses them) and of damaged EXIF blocks.
        warnings.simplefilter("ignore")
        photo = open_image(path, remedy=ANOTHER)
        pixels = np.array(upright(shown(photo, path, remedy=ANOTHER), photo))
    if min(photo.size) < SMALLEST_PX:
        raise UserError(f"{path}: {photo.width}x{photo.height} px, too small to hold a face; name a larger photo")
    frames = getattr(photo, "n_frames", 1)
    if frames > 1 and photo.format != "MPO":  # which holds one photo, and its preview or its other eye
        print(f"{path}: holds {frames} pictures; the first is read", file=sys.stderr)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def stored_pixels(source: AnyPath | str | bytes, name: object = None) -> np.ndarray:
    """A data set's picture as uint8 RGB (H, W, 3), not turned. UserError as in `open_image` and `shown`."""
    name = source if name is None else name
    return np.asarray(shown(open_image(source, name), name))


def upright_sample(path: AnyPath) -> bytes | np.ndarray:
    """A user's photo for a pack: its bytes, or its pixels (H, W, 3) where it has to be turned. UserError as above."""
    encoded = path.read_bytes()
    if orientation(open_image(encoded, path, load=False, remedy=ANOTHER)) in _UPRIGHT:
        return read_photo(path).permute(1, 2, 0).numpy()
    return encoded


def _check_png(content: bytes) -> None:
    """Compare the checksums of a PNG's parts, of which Pillow passes over the last; ValueError where one differs."""
    at = 8 if content.startswith(MAGIC[1][0]) else len(content)
    while at < len(content):  # length, kind, data, checksum of kind and data
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        if zlib.crc32(content[at + 4 : end - 4]).to_bytes(4, "big") != content[end - 4 : end]:
            raise ValueError(f"checksum at byte {at}")
        at = len(content) if content[at + 4 : at + 8] == b"IEND" else end


def open_image(
    source: AnyPath | str | bytes, name: object = None, load: bool = True, remedy: str = AGAIN
) -> Image.Image:
    """A decoded PIL image, as stored, from a path or bytes. Raises UserError with `name` when it is no sound image.

    It has the file's own kind of pixels: see `shown`. `load` says whether to decode, `remedy` ends the messages.
    """
    from PIL import Image

    name = source if name is None else name
    try:
        content = source if isinstance(source, bytes) else place(source).read_bytes()
    except FileNotFoundError:
        if address := re.match(r"(https?|ftp|s3|gs):/+", str(name)):  # a Path keeps one slash of two
            raise UserError(f"{name}: an address ({address[1]}), not a file; download it, then name the file") from None
        raise UserError(f"{name}: no such file; {remedy if remedy is AGAIN else 'name an image file'}") from None
    except IsADirectoryError:
        raise UserError(f"{name}: is a folder; name an image file") from None
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror or error}); {remedy}") from None
    try:
        # Without `formats` Pillow asks the plugins one by one, which takes longer than decoding a small WebP.
        known = [kind for start, kind in MAGIC if content.startswith(start)]
        image = Image.open(io.BytesIO(content), formats=known or None)
        if load:
            image.load()
            _check_png(content)
    except Image.UnidentifiedImageError:
        raise UserError(f"{name}: not an image file; {remedy}") from None
    except Image.DecompressionBombError as error:
        raise UserError(f"{name}: too large ({_short(error)}); reduce it first") from None
    except _DAMAGE as error:
        raise UserError(f"{name}: damaged image ({_short(error)}); {remedy}") from None
    return image


def image_header(encoded: bytes, name: object) -> tuple[tuple[int, int], str | None]:
    """((width, height), format such as "JPEG") of encoded bytes, undecoded: packing decodes, and finds damage below."""
    image = open_image(encoded, name, load=False)
    return image.size, image.format


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8: 1, upright, where there is none or the block is damaged, as viewers have it."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except _DAMAGE:
        return 1


def upright(image: Image.Image, source: Image.Image) -> Image.Image:
    """`image` turned as the EXIF block of `source`, the opened file, says."""
    from PIL import Image

    turn = _UPRIGHT.get(orientation(source))
    return image.transpose(Image.Transpose[turn]) if turn else image


def shown(image: Image.Image, name: object, mode: str = "RGB", remedy: str = AGAIN) -> Image.Image:
    """A decoded image as a viewer shows it, in 8 bits: mode "RGB" or "L" (grey).

    Transparent pixels lie on white; 16 bits are scaled to 8; floating-point values are taken as 0 (black) to 1
    (white). CMYK without regard to its profile. Raises UserError for values whose black and white the file does not
    tell (other floats, 32-bit integers) and for colours that Pillow cannot convert.
    """
    try:
        if image.mode in ("RGB", "L") and "transparency" not in image.info:
            return image.convert(mode)
        if image.mode.startswith("I"):
            image = _from_integers(image, name, remedy)
        elif image.mode == "F":
            image = _from_floats(image, name, remedy)
        elif image.mode.upper().endswith("A") or "transparency" in image.info:
            image = _on_white(image)
        return image.convert(mode)
    except ValueError as error:
        raise UserError(f"{name}: {image.mode} pixels that cannot be shown ({_short(error)}); {remedy}") from None


def _on_white(image):
    """What alpha or a transparent colour hides is white."""
    from PIL import Image

    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def _from_integers(image, name, remedy):
    """16-bit grey as L. Pillow reads 16-bit PNG and PGM as "I;16" or "I" in 0..65535; other "I" may hold anything."""
    from PIL import Image

    if image.mode == "I" and image.format not in ("PNG", "PPM"):
        raise UserError(f"{name}: 32-bit integers, whose white is unknown; {remedy}")
    values = np.asarray(image).astype(np.float64)
    return Image.fromarray(np.rint(values / 257).clip(0, 255).astype(np.uint8))


def _from_floats(image, name, remedy):
    """Values 0..1 as L."""
    from PIL import Image

    values = np.asarray(image)
    if not (values.min() >= 0 and values.max() <= 1):  # also NaN
        raise UserError(f"{name}: floating-point pixels {values.min():g} to {values.max():g}, not 0 to 1; {remedy}")
    return Image.fromarray(np.rint(values.astype(np.float64) * 255).astype(np.uint8))


def _short(error: Exception) -> str:
    """An error's text on one line."""
    return " ".join(str(error).split())[:120] or type(error).__name__
