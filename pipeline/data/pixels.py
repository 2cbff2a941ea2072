"""One image file as a person sees it: orientation, transparency, depth and colour made plain, then cut to size."""

import ctypes
import io
import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import MappingProxyType
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, _imaging

Colour = Literal["grey", "colour"]

NEAREST = Image.Resampling.NEAREST
_SHOWN_WIDTH = 96  # pixels that an image in a picture of several has at least

_UPRIGHT = MappingProxyType(
    {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
)
_SIXTEEN_BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")


def channels(colour: Colour) -> int:
    """Of an image, in its array."""
    return 1 if colour == "grey" else 3


class BadImageError(ValueError):
    """A file that is no image, or one that cannot be shown."""


_SETTINGS = threading.Lock()


@contextmanager
def decoders(max_pixels: int) -> Iterator[None]:
    """Pillow, while it decodes files that may be damaged: images of more pixels are bad, and what is wrong with a file
    is said by BadImageError alone, not by warnings, by lines that libtiff prints, or by logging that nobody set up.

    All of these are settings of the process. One thread has them at a time, and sets them back.
    """
    with _SETTINGS, warnings.catch_warnings(), _silent_libtiff():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
        logging.getLogger("PIL").addHandler(nowhere := logging.NullHandler())
        try:
            yield
        finally:
            logging.getLogger("PIL").removeHandler(nowhere)
            Image.MAX_IMAGE_PIXELS = before


@contextmanager
def _silent_libtiff() -> Iterator[None]:
    """Take away the functions by which libtiff prints errors and warnings, where Pillow is linked to it so that they
    can be reached."""
    library = ctypes.CDLL(_imaging.__file__)
    names = [name for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler") if hasattr(library, name)]
    setters = [ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)((name, library)) for name in names]
    before = [setter(None) for setter in setters]
    try:
        yield
    finally:
        for setter, handler in zip(setters, before, strict=True):
            setter(handler)


def open_image(data: bytes, draft_side: int | None = None) -> Image.Image:
    """Decode a file to mode L or RGB: first frame, EXIF rotation applied, transparency over white.

    A JPEG is decoded at a half, a quarter or an eighth of its size where that leaves no side fewer pixels than
    `draft_side`.

    Raises BadImageError with a reason in a few words. Call it within `decoders`.
    """
    if not data:
        raise BadImageError("empty file")
    try:
        with Image.open(io.BytesIO(data)) as file:
            if draft_side is not None:
                _draft(file, draft_side)
            file.load()
            return _as_seen(_upright(file))
    except UnidentifiedImageError as error:
        raise BadImageError("not an image that Pillow can read") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = f"{Image.MAX_IMAGE_PIXELS:,} at most; a training takes more with --max-pixels"
        raise BadImageError(f"too many pixels ({limit})") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever damaged bytes lead them to
        raise BadImageError(" ".join(str(error).split()) or type(error).__name__) from error


def _draft(file: Image.Image, side: int) -> None:
    """Let a JPEG be decoded smaller, by fewer terms of its cosine transform: each pixel is then about the mean of those
    that it stands for. Other formats know of no such thing.

    Only where it divides both sides: libjpeg rounds them up, and the picture would be stretched by up to a pixel.
    """
    for scale in (8, 4, 2):
        if file.width % scale == file.height % scale == 0 and min(file.size) >= scale * side:
            file.draft(None, (file.width // scale, file.height // scale))
            return


def _upright(image: Image.Image) -> Image.Image:
    """Turned as EXIF says. Cameras write EXIF that is not well formed: such a picture is shown as it lies."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # whatever Pillow's parser runs into
        return image
    method = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _as_seen(image: Image.Image) -> Image.Image:
    if image.mode in _SIXTEEN_BIT:
        return _from_sixteen_bits(np.asarray(image))
    if image.mode == "F":
        return _from_floats(np.asarray(image))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _from_sixteen_bits(values: np.ndarray) -> Image.Image:
    if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise BadImageError(f"integer pixels from {values.min()} to {values.max()}; 0 to 65535 can be shown")
    return Image.fromarray((values.astype(np.int64) >> 8).astype(np.uint8), "L")


def _from_floats(values: np.ndarray) -> Image.Image:
    if not (values.min(initial=0) >= 0 and values.max(initial=0) <= 1):  # also true for NaN
        raise BadImageError(f"float pixels from {values.min()} to {values.max()}; 0 to 1 can be shown")
    return Image.fromarray((values * 255).round().astype(np.uint8), "L")


def is_grey(image: Image.Image) -> bool:
    """Whether a decoded image has no colour."""
    if image.mode == "L":
        return True
    red, green, blue = (np.asarray(band) for band in image.split())
    return bool((red == green).all() and (green == blue).all())


def fit(image: Image.Image, height: int, width: int, colour: Colour) -> UInt8[np.ndarray, "c height width"]:
    """Resize until the shorter side fits, cut the centre, and lay out as (channels, height, width)."""
    image = image.convert("L" if colour == "grey" else "RGB")
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    return pixels[None] if colour == "grey" else pixels.transpose(2, 0, 1)


def fit_with_margin(
    image: Image.Image, window: tuple[int, int], size: tuple[int, int], colour: Colour
) -> UInt8[np.ndarray, "c height width"]:
    """As `fit` to `size` (height, width), out of which windows are cut.

    An image that has a window's size already is not enlarged, but its border is repeated all around: the centre window
    is then the image itself.
    """
    if image.size != window[::-1]:
        return fit(image, *size, colour)
    missing = [total - side for side, total in zip(window, size, strict=True)]
    return np.pad(fit(image, *window, colour), [(0, 0), *((m // 2, m - m // 2) for m in missing)], mode="edge")


def to_pil(pixels: UInt8[np.ndarray, "c h w"]) -> Image.Image:
    """The inverse of `fit`: (1 or 3, height, width) to a PIL image."""
    return Image.fromarray(pixels[0] if pixels.shape[0] == 1 else pixels.transpose(1, 2, 0))


def grid(images: UInt8[np.ndarray, "n c h w"], columns: int, padding: int = 2) -> Image.Image:
    """Lay images out in rows on white, small ones enlarged by a whole number, each pixel to a square of its own."""
    factor = -(-_SHOWN_WIDTH // images.shape[-1])
    images = images.repeat(factor, axis=2).repeat(factor, axis=3)
    n, channels, height, width = images.shape
    rows = -(-n // columns)
    canvas = np.full(
        (channels, rows * (height + padding) + padding, columns * (width + padding) + padding), 255, np.uint8
    )
    for index, image in enumerate(images):
        top = padding + index // columns * (height + padding)
        left = padding + index % columns * (width + padding)
        canvas[:, top : top + height, left : left + width] = image
    return to_pil(canvas)
