"""Pictures of every kind of pixel become what a viewer shows, or one line; users' photos are turned upright."""

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from facepapers.common.cli import UserError
from facepapers.common.data import pack, photos
from facepapers.common.data.readers import recognition
from facepapers.common.vision import alignment
from tests.conftest import one_line_error

RAMP = np.tile(np.linspace(0, 255, 16).round().astype(np.uint8), (12, 1))  # (12, 16): black to white
COLOURS = np.stack([RAMP, RAMP[::-1, ::-1], np.full_like(RAMP, 60)], -1)
# EXIF orientation: the picture as it was stored, made from the upright one (EXIF 2.3, table 6).
STORED = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a), 7: lambda a: np.rot90(a.swapaxes(0, 1), 2),
    8: lambda a: np.rot90(a, -1),
}  # fmt: skip


def saved(path, image, **options):
    """An array or a PIL image as a file; returns its path."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(np.ascontiguousarray(image))
    image.save(path, **options)
    return path


def turned(path, pixels, orientation, **options):
    """A file whose EXIF block says that it has to be turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(path, pixels, exif=exif, **options)


def read(path):
    return photos.read_photo(path).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("orientation", STORED)
def test_a_users_photo_stands_upright_and_a_sets_picture_stays_as_stored(tmp_path, orientation):
    path = turned(tmp_path / "face.png", STORED[orientation](COLOURS), orientation)
    assert np.array_equal(read(path), COLOURS)
    assert np.array_equal(photos.stored_pixels(path), STORED[orientation](COLOURS))


def test_an_orientation_that_is_no_orientation_turns_nothing(tmp_path):
    assert np.array_equal(read(turned(tmp_path / "nine.png", COLOURS, 9)), COLOURS)
    damaged = saved(tmp_path / "damaged.png", COLOURS, exif=b"Exif\x00\x00MM\x00*\x00\x00\xff\xff")
    assert np.array_equal(read(damaged), COLOURS)


def test_folders_of_photos_are_turned_too(tmp_path):
    large = np.kron(COLOURS, np.ones((20, 20, 1), np.uint8))[:112, :112]  # 112x112: taken as aligned
    (tmp_path / "A").mkdir()
    plain = saved(tmp_path / "A" / "1.png", large)
    turned(tmp_path / "A" / "2.png", STORED[6](large), 6)
    stored = [image for image, _ in recognition.identity_folder(tmp_path)]
    assert stored[0] == plain.read_bytes()  # nothing to turn: the file's own bytes
    assert np.array_equal(stored[1], large)
    made = pack.write(tmp_path / "set.npz", *pack.gather(recognition.identity_folder(tmp_path)), {})
    assert torch.equal(*made.decode())
    saved(tmp_path / "A" / "1.png", np.zeros((200, 300, 3), np.uint8))
    photo = turned(tmp_path / "A" / "2.png", STORED[8](np.kron(COLOURS, np.ones((20, 20, 1), np.uint8))), 8)
    corners = np.array([[0, 0], [111, 0], [0, 111], [111, 111], [55, 55]]) + [20, 30]
    upright = recognition.aligned(photo, corners), photos.read_photo(photo)
    assert np.array_equal(upright[0], alignment.align(upright[1][None], corners[None])[0].permute(1, 2, 0).numpy())


def float_tiff(values):
    return Image.fromarray(values.astype(np.float32))


def grey_alpha(mode):
    alpha = np.full_like(RAMP, 255)
    alpha[:6] = 0  # the upper half cannot be seen
    pixels = Image.fromarray(np.stack([RAMP, alpha], -1), "LA")
    return pixels.convert("RGBA") if mode == "RGBA" else pixels


def upper_half_white():
    expected = RAMP.copy()
    expected[:6] = 255
    return expected


KINDS = {  # name: (picture, options of saving, grey values that a viewer shows, tolerance)
    "grey16.png": (Image.fromarray(RAMP.astype(np.uint16) * 257), {}, RAMP, 0),
    "grey16.tif": (Image.fromarray(RAMP.astype(np.uint16) * 257), {}, RAMP, 0),
    "grey16.pgm": (Image.fromarray(RAMP.astype(np.uint16) * 257), {}, RAMP, 1),
    "bits.png": (Image.fromarray(RAMP > 127), {}, 255 * (RAMP > 127), 0),
    "palette.png": (Image.fromarray(RAMP).convert("P"), {}, RAMP, 0),
    "palette-hole.png": (Image.fromarray(RAMP).convert("P"), {"transparency": 0}, np.where(RAMP, RAMP, 255), 0),
    "hole.png": (Image.fromarray(RAMP), {"transparency": 0}, np.where(RAMP, RAMP, 255), 0),
    "grey-alpha.png": (grey_alpha("LA"), {}, upper_half_white(), 0),
    "alpha.webp": (grey_alpha("RGBA"), {"lossless": True}, upper_half_white(), 0),
    "cmyk.jpg": (Image.fromarray(RAMP).convert("RGB").convert("CMYK"), {"quality": 100, "subsampling": 0}, RAMP, 4),
    "float.tif": (float_tiff(RAMP / 255), {}, RAMP, 0),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_pixel_is_what_a_viewer_shows(tmp_path, name):
    image, options, grey, tolerance = KINDS[name]
    path = saved(tmp_path / name, image, **options)
    for found in (read(path), photos.stored_pixels(path)):
        assert found.dtype == np.uint8 and found.shape == (12, 16, 3)
        assert np.abs(found.astype(int) - grey[:, :, None]).max() <= tolerance
    made = pack.write(tmp_path / "set.npz", [path.read_bytes()], {}, {})
    assert np.abs(made.decode(channels=1)[0, 0].numpy().astype(int) - grey).max() <= tolerance


REFUSED = {
    "range.tif": (float_tiff(RAMP), "floating-point pixels 0 to 255, not 0 to 1"),
    "nan.tif": (float_tiff(np.where(RAMP == 0, np.nan, 1)), "floating-point pixels nan to nan"),
    "integers.tif": (Image.fromarray(RAMP.astype(np.int32) * 1000), "32-bit integers, whose white is unknown"),
    "dot.png": (Image.new("RGB", (1, 1)), "1x1 px, too small to hold a face"),
    "line.png": (Image.new("RGB", (300, 1)), "300x1 px, too small to hold a face"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_pictures_that_are_no_photo_are_one_line(tmp_path, name):
    image, words = REFUSED[name]
    with pytest.raises(UserError) as error:
        photos.read_photo(saved(tmp_path / name, image))
    one_line_error(error, name, words)


def test_colours_that_pillow_cannot_convert_are_one_line():
    with pytest.raises(UserError) as error:
        photos.shown(Image.new("La", (16, 12)), "some.tif")
    one_line_error(error, "some.tif: La pixels that cannot be shown")


def large_png(side):
    """A PNG that announces side x side pixels and holds none."""
    small = io.BytesIO()
    Image.new("L", (16, 16)).save(small, format="PNG")
    content = bytearray(small.getvalue())
    content[16:24] = side.to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


def cut_jpeg():
    whole = io.BytesIO()
    Image.fromarray(COLOURS).save(whole, format="JPEG")
    return whole.getvalue()[: -len(whole.getvalue()) // 20]


@pytest.mark.parametrize(
    "content, words",
    [
        (large_png(20_000), "too large (Image size (400000000 pixels)"),
        (b"", "not an image file; save it as JPEG or PNG"),
        (b"hello", "not an image file; save it as JPEG or PNG"),
        (cut_jpeg(), "damaged image"),
        (None, "is a folder; name an image file"),
    ],
)
def test_broken_and_enormous_files_are_one_line(tmp_path, content, words):
    path = tmp_path / "photo.png"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(UserError) as error:
        photos.read_photo(path)
    one_line_error(error, path, words)


def test_an_address_is_no_file():
    with pytest.raises(UserError) as error:
        photos.read_photo(Path("https://example.org/face.jpg"))
    one_line_error(error, "an address (https), not a file; download it")


def test_a_wide_photo_of_20_000_pixels_is_read_without_a_warning(tmp_path, recwarn, monkeypatch):
    assert photos.read_photo(saved(tmp_path / "wide.png", np.zeros((8, 20_000), np.uint8))).shape == (3, 8, 20_000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150)  # Pillow warns from here on and refuses twice as many
    assert read(saved(tmp_path / "warned.png", COLOURS)).shape == COLOURS.shape
    assert not recwarn.list


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_of_an_animation_the_first_picture_is_read_and_said(tmp_path, kind, capsys):
    first, second = Image.fromarray(RAMP), Image.new("L", (16, 12), 200)
    options = {"lossless": True} if kind == "webp" else {}
    path = saved(tmp_path / f"moving.{kind}", first, save_all=True, append_images=[second], **options)
    assert np.abs(read(path).astype(int) - RAMP[:, :, None]).max() <= 1
    one_line_error(capsys.readouterr().err, path, "holds 2 pictures; the first is read")


def test_a_telephones_photo_with_its_preview_is_no_animation(tmp_path, capsys):
    first, second = Image.fromarray(COLOURS), Image.new("RGB", (16, 12))
    path = saved(tmp_path / "phone.jpg", first, format="MPO", save_all=True, append_images=[second])
    assert photos.open_image(path).format == "MPO" and read(path).shape == COLOURS.shape
    assert not capsys.readouterr().err
