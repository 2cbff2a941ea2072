"""Images as people have them: each decoded as a person sees it, or named as bad."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from pipeline.config.data import DataConfig
from pipeline.data.loading import load_images
from pipeline.data.pixels import BadImageError, fit, grid, is_grey, open_image, to_pil


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(open_image(data))


def ramp(dtype: type, largest: int) -> np.ndarray:
    return np.linspace(0, largest, 12).reshape(3, 4).astype(dtype)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_greys(kind: str) -> None:
    values = ramp(np.uint16, 65535)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(values), kind)), values >> 8)


def test_float_tiff_between_zero_and_one_is_shown_and_another_refused() -> None:
    values = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(values), "TIFF")), (values * 255).round())
    for bad in (values * 300, values - 1, np.full((3, 4), np.nan, np.float32)):
        with pytest.raises(BadImageError, match="float pixels"):
            open_image(encoded(Image.fromarray(bad), "TIFF"))


def test_transparency_shows_white_and_not_the_hidden_colour() -> None:
    rgba = Image.new("RGBA", (2, 1), (200, 0, 0, 0))
    rgba.putpixel((1, 0), (0, 0, 200, 255))
    assert pixels(encoded(rgba)).tolist() == [[[255, 255, 255], [0, 0, 200]]]
    palette = Image.new("P", (1, 1), 0)
    palette.putpalette([200, 0, 0])
    assert pixels(encoded(palette, transparency=0)).tolist() == [[[255, 255, 255]]]
    assert pixels(encoded(Image.new("LA", (1, 1), (10, 0)))).tolist() == [[[255, 255, 255]]]


def test_exif_rotation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    assert open_image(encoded(Image.new("RGB", (30, 20)), "JPEG", exif=exif)).size == (20, 30)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_set_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)), exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(pixels(data), expected)


BROKEN = [b"Exif\x00\x00MM", b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x09", b"Exif\x00\x00rubbish"]


@pytest.mark.parametrize("exif", BROKEN)
def test_a_picture_with_broken_exif_is_shown_as_it_lies(tmp_path: Path, exif: bytes) -> None:
    (tmp_path / "picture.jpg").write_bytes(encoded(Image.new("RGB", (30, 20)), "JPEG", exif=exif))
    assert load_images(DataConfig(data=str(tmp_path))).shape == (1, 20, 30)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV"])
def test_every_mode_becomes_grey_or_rgb(mode: str) -> None:
    kind = {"CMYK": "JPEG", "YCbCr": "JPEG", "HSV": "TIFF"}.get(mode, "PNG")
    image = Image.new("RGB", (4, 4), (250, 250, 250)).convert(mode)
    decoded = open_image(encoded(image.convert("RGB") if mode == "HSV" else image, kind))
    assert decoded.mode in ("L", "RGB")
    assert np.asarray(decoded).mean() > 240


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("L", (4, 4), value) for value in (10, 200)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert abs(float(pixels(data).mean()) - 10) < 2


WHOLE = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"<html>not found</html>", "not an image"),
        (WHOLE[: len(WHOLE) // 2], "truncated|broken|incomplete"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 30, "."),
    ],
)
def test_what_is_no_image_is_named_as_bad(data: bytes, reason: str) -> None:
    with pytest.raises(BadImageError, match=reason):
        open_image(data)


@pytest.mark.parametrize("size", [(1, 1), (5000, 1), (1, 700), (7, 13), (100, 40)])
def test_any_size_is_fitted(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (9, 80, 200))
    assert fit(image, 16, 24, "colour").shape == (3, 16, 24)
    assert fit(image, 16, 24, "grey").shape == (1, 16, 24)
    assert (np.abs(fit(image, 16, 24, "colour") - np.array([9, 80, 200]).reshape(3, 1, 1)) <= 1).all()


def test_the_centre_is_kept_and_nothing_is_squeezed() -> None:
    wide = np.zeros((10, 30), np.uint8)
    wide[:, 10:20] = 200
    assert (fit(Image.fromarray(wide), 10, 10, "grey") == 200).all()


def test_grey_is_distinguished_from_colour() -> None:
    assert is_grey(Image.new("L", (2, 2)))
    assert is_grey(Image.new("RGB", (2, 2), (7, 7, 7)))
    assert not is_grey(Image.new("RGB", (2, 2), (7, 7, 8)))


def test_pictures_and_grids_keep_the_pixels() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 6), dtype=np.uint8)
    for image in images:
        np.testing.assert_array_equal(fit(to_pil(image), 4, 6, "colour"), image)
    laid_out = np.asarray(grid(images, columns=3, padding=1))
    assert laid_out.shape == (2 * 65 + 1, 3 * 97 + 1, 3)
    np.testing.assert_array_equal(laid_out[66:130:16, 98:194:16], images[4].transpose(1, 2, 0))
    assert (laid_out[66:130, 195:] == 255).all()


@pytest.mark.parametrize(("width", "factor"), [(8, 12), (28, 4), (32, 3), (64, 2), (95, 2), (96, 1), (128, 1)])
def test_small_images_are_shown_enlarged_each_pixel_as_a_square(width: int, factor: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 1, 5, width), dtype=np.uint8)
    shown = np.asarray(grid(images, columns=1, padding=2))
    assert shown.shape == (2 * (5 * factor + 2) + 2, factor * width + 4)
    first = shown[2 : 2 + 5 * factor, 2:-2]
    np.testing.assert_array_equal(first, np.kron(images[0, 0], np.ones((factor, factor), np.uint8)))


def test_a_fine_checkerboard_becomes_grey() -> None:
    board = (np.indices((257, 300)).sum(axis=0) % 2 * 255).astype(np.uint8)
    for size in (32, 48):
        assert np.abs(fit(Image.fromarray(board), size, size, "grey").astype(int) - 127.5).max() < 4


def test_a_circle_stays_a_circle_in_a_rectangle() -> None:
    for height, width in ((150, 400), (400, 150), (300, 200)):
        rows, columns = np.indices((height, width))
        circle = np.hypot(rows - height / 2 + 0.5, columns - width / 2 + 0.5) < 40
        seen = fit(Image.fromarray(circle.astype(np.uint8) * 255), 48, 32, "grey")[0] > 127
        tall, wide = seen.any(axis=1).sum(), seen.any(axis=0).sum()
        assert abs(int(tall) - int(wide)) <= 1 and tall == pytest.approx(80 * max(48 / height, 32 / width), abs=1.5)


def waves(height: int, width: int) -> Image.Image:
    """A smooth picture in colour with an edge, so that a shift or a stretch shows."""
    rows, columns = np.indices((height, width)) / 40
    bands = [np.sin(rows + columns), np.sin(rows * 2) * np.cos(columns), (rows > columns) * 1.0]
    return Image.fromarray((127 + 100 * np.stack(bands, axis=-1)).round().astype(np.uint8))


@pytest.mark.parametrize(
    ("side", "scale"), [(None, 1), (76, 8), (75, 8), (74, 8), (77, 4), (152, 4), (153, 2), (304, 2), (305, 1)]
)
def test_a_jpeg_is_decoded_smaller_down_to_a_side(side: int | None, scale: int) -> None:
    data = encoded(waves(608, 800), "JPEG", quality=90)
    assert open_image(data, side).size == (800 // scale, 608 // scale)
    if side is not None:
        whole, drafted = (
            fit(open_image(data, own), side // 2, side // 2, "colour").astype(int) for own in (None, side)
        )
        assert np.abs(whole - drafted).mean() < 1


def test_a_jpeg_is_decoded_smaller_only_where_that_stretches_nothing_and_other_formats_never() -> None:
    assert open_image(encoded(waves(400, 804), "JPEG"), 50).size == (804 // 4, 100)
    assert open_image(encoded(waves(400, 801), "JPEG"), 50).size == (801, 400)
    assert open_image(encoded(waves(400, 800), "PNG"), 50).size == (800, 400)
    turned = Image.Exif()
    turned[0x0112] = 6
    assert open_image(encoded(waves(400, 800), "JPEG", exif=turned), 50).size == (50, 100)
    for mode in ("L", "CMYK"):
        assert open_image(encoded(waves(400, 800).convert(mode), "JPEG"), 50).size == (100, 50)


def test_training_and_its_options_decode_a_jpeg_at_twice_the_size_or_whole(tmp_path: Path) -> None:
    data = encoded(waves(480, 640), "JPEG", quality=90)
    (tmp_path / "picture.jpg").write_bytes(data)
    for size, side in (("30", 60), ("20x30", 60), ("30x8", 60), ("120", 240), ("121", 242)):
        config = DataConfig(data=str(tmp_path), image_size=size)
        assert config.draft_side == side
        expected = fit(open_image(data, side), *config.size(), "colour")
        np.testing.assert_array_equal(load_images(config).images[0], expected)
    assert open_image(data, 60).size == (80, 60)
    assert DataConfig(image_size="32", crop="random").draft_side == 72, "margins count"
    whole = DataConfig(data=str(tmp_path), image_size="30", draft=False)
    np.testing.assert_array_equal(load_images(whole).images[0], fit(open_image(data), 30, 30, "colour"))
    own = load_images(DataConfig(data=str(tmp_path)))
    np.testing.assert_array_equal(own.images[0], np.asarray(open_image(data)).transpose(2, 0, 1))
