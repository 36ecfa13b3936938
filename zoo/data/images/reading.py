"""One picture, from wherever it comes, as upright 8-bit RGB: files, bytes, Pillow's pictures, uint8
arrays and tensors.

What can't be read is refused with an InputError that names the picture. Files are decoded by Pillow,
in the `FORMATS` below and no others: its EPS reader would start a program.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy
import torch
from torch import Tensor

from zoo.errors import InputError, ZooError, missing_extra

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"),
    *(".jp2", ".avif"),
)
"""How the names of files in these formats end."""
MAX_PIXELS = 89_478_485
"""The largest picture that is decoded unless more are allowed: a quarter of a gigabyte as RGB, from
which on Pillow warns of a decompression bomb.
"""
WHITE = (255, 255, 255)


@runtime_checkable
class Readable(Protocol):
    """A file that lies in another, such as a `zoo.data.images.shards.ShardFile`; its text names it."""

    def read(self) -> bytes:
        """Its bytes."""
        ...


def is_picture(value: Any) -> bool:
    """Whether a value is one of the kinds that `read_picture` takes."""
    kinds = str | os.PathLike | bytes | bytearray | memoryview | numpy.ndarray | Tensor | Readable
    return isinstance(value, kinds) or type(value).__module__.startswith("PIL.")


def read_picture(
    source: Any, *, max_pixels: int = MAX_PIXELS, background: tuple[int, int, int] | None = WHITE
) -> Picture:
    """A picture as Pillow's RGB, turned as its EXIF data say.

    source: a path, the bytes of a file, a `Readable` one, a picture of Pillow, or a uint8 array or tensor
    (height, width, 3), (3, height, width) or (height, width). Of an animation the first frame. ``background`` shows
    through transparent pixels; None: their hidden color is taken, as Pillow's ``convert("RGB")`` does.
    """
    image_module = pillow()
    if isinstance(source, numpy.ndarray | Tensor):
        return image_module.fromarray(checked_array(source))
    if isinstance(source, image_module.Image):
        with _telling(f"a picture of mode {source.mode}"):
            return _upright(source, max_pixels, background, f"a picture of mode {source.mode}")
    if isinstance(source, bytes | bytearray | memoryview):
        name, content = f"a picture of {len(source):,} bytes", bytes(source)
    elif isinstance(source, str | os.PathLike):
        name, content = os.fspath(source), _content(Path(source))
    elif isinstance(source, Readable):
        name, content = str(source), source.read()
    else:
        raise InputError(
            "a picture is a path, the bytes of a file, a picture of Pillow, or a uint8 array or tensor, got "
            f"{with_type(source)}"
        )
    if not content:
        raise InputError(f"{name} is empty")
    with _telling(name):
        try:
            image_module.init()
            here = [format for format in FORMATS if format in image_module.OPEN]  # a build may lack some
            opened = image_module.open(io.BytesIO(content), formats=here)
        except image_module.DecompressionBombError as error:
            raise _beyond_pillow(str(error), max_pixels, name) from None
        except image_module.UnidentifiedImageError:
            raise InputError(f"{name} is no picture in a format that is read here: {', '.join(FORMATS)}") from None
        with opened:
            return _upright(opened, max_pixels, background, name)


def pillow() -> Any:
    """The module ``PIL.Image``."""
    try:
        from PIL import Image
    except ImportError:
        raise missing_extra("reading pictures", "pillow", "vision") from None
    return Image


def as_list(pictures: Any) -> list[Any]:
    """One picture, several, or a batch as an array (batch, ...), as a list of pictures."""
    if isinstance(pictures, numpy.ndarray | Tensor):
        return list(pictures) if pictures.ndim == 4 else [pictures]
    return [pictures] if is_picture(pictures) or not isinstance(pictures, Iterable) else list(pictures)


def checked_array(array: Any) -> numpy.ndarray[Any, Any]:
    """A picture's array (height, width, 3) or (height, width), contiguous; what could be read in two
    ways is refused.
    """
    shape, dtype = tuple(array.shape), array.dtype
    if dtype not in (numpy.uint8, torch.uint8):
        raise InputError(
            f"a picture's array must be uint8, 0..255, got {dtype}; floats in 0..1 become that by "
            "(x * 255).round() and a cast"
        )
    if 0 in shape:
        raise InputError(f"a picture has at least one pixel, got an array {shape}")
    plain = array.cpu().numpy() if isinstance(array, Tensor) else array
    if plain.ndim == 3 and plain.shape[0] == plain.shape[2] == 3:
        raise InputError(
            f"an array {shape} may be (height, width, 3) or (3, height, width); pass such a picture as a Pillow "
            "picture, or as the bytes of its file"
        )
    if plain.ndim == 3 and plain.shape[0] == 3:
        plain = plain.transpose(1, 2, 0)
    elif plain.ndim == 2:
        plain = numpy.repeat(plain[:, :, None], 3, axis=2)
    elif plain.ndim != 3 or plain.shape[2] != 3:
        raise InputError(f"a picture's array is (height, width, 3), (3, height, width) or (height, width), got {shape}")
    return numpy.ascontiguousarray(plain)


def with_type(value: Any) -> str:
    """A value's type, for a message."""
    kind = type(value).__name__
    return f"{kind} {value!r:.60}" if isinstance(value, int | float | bool | type(None)) else kind


def _content(path: Path) -> bytes:
    if "://" in str(path) or str(path).startswith(("http:/", "https:/")):
        raise InputError(f"{path} is an address; pictures are read from files, so fetch it first")
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the pictures in it")
    if not path.is_file():
        raise InputError(f"there is no picture {path}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror or error}") from error


@contextmanager
def _telling(name: str) -> Iterator[None]:
    """Whatever goes wrong in a decoder, which damaged files make raise almost anything, as an
    InputError.
    """
    try:
        yield
    except ZooError:
        raise
    except Exception as error:
        raise InputError(f"{name} is damaged or can't be decoded: {error or type(error).__name__}") from error


def _beyond_pillow(said: str, max_pixels: int, name: str) -> InputError:
    """Pillow's own refusal of a large picture, which it makes before its sizes can be asked for."""
    found = re.search(r"\((\d+) pixels\)", said)
    pixels = int(found[1]) if found else 0
    many = f"{pixels:,} pixels" if found else "too many pixels"
    if found and pixels <= max_pixels:
        return InputError(
            f"{name} has {many}, more than Pillow opens; make it smaller, or allow more by "
            "PIL.Image.MAX_IMAGE_PIXELS = None"
        )
    return InputError(
        f"{name} has {many}, more than the {max_pixels:,} of max_pixels; make it smaller, or allow more by max_pixels= "
        "and PIL.Image.MAX_IMAGE_PIXELS = None"
    )


def _upright(picture: Picture, max_pixels: int, background: tuple[int, int, int] | None, name: str) -> Picture:
    from PIL import ImageOps

    width, height = picture.size
    if not width or not height:
        raise InputError(f"{name} is {width} x {height} pixels; a picture has at least one")
    if width * height > max_pixels:
        raise InputError(
            f"{name} is {width:,} x {height:,} pixels, more than the {max_pixels:,} that are decoded; make it smaller, "
            "or allow more by max_pixels"
        )
    picture.load()
    return _rgb(ImageOps.exif_transpose(picture), background, name)


def _rgb(picture: Picture, background: tuple[int, int, int] | None, name: str) -> Picture:
    if picture.mode == "F":
        raise InputError(f"{name} holds floats, whose range isn't known; save it with 8 or 16 bits")
    if picture.mode.startswith("I"):  # 16 bits, of which convert() would clip all but the darkest
        values = numpy.asarray(picture).astype(numpy.int64)
        if values.min() < 0 or values.max() > 65_535:
            raise InputError(
                f"{name} holds {values.min():,}..{values.max():,}, more than 16 bits; save it with 8 or 16"
            )
        return pillow().fromarray(((values + 128) // 257).astype(numpy.uint8)).convert("RGB")  # type: ignore[no-any-return]
    transparent = "transparency" in picture.info or any(band in "Aa" for band in picture.getbands())
    if background is None or not transparent or picture.mode in ("LAB", "RGBX"):
        return picture.convert("RGB")
    whole = picture.convert("RGBA")
    behind = pillow().new("RGBA", whole.size, (*background, 255))
    return pillow().alpha_composite(behind, whole).convert("RGB")  # type: ignore[no-any-return]
