"""Restorations as files: 8 or 16 bits, or floats without loss. Imports no torch."""

import io
import struct
import zlib
from typing import Literal, get_args

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.numpy import save

from util.settings import Span

SaveFormat = Literal["png", "png16", "tiff", "npy", "safetensors"]
SAVE_FORMATS = get_args(SaveFormat)
SUFFIX = {"png": ".png", "png16": ".png", "tiff": ".tif", "npy": ".npy", "safetensors": ".safetensors"}

_PERCEPTUAL = b"\0"  # the rendering intent in a PNG's chunk that says its colours are sRGB


def encode_png(pixels: np.ndarray) -> bytes:
    """Return 8-bit pixels (H, W, 1 or 3) as a PNG that says it is sRGB."""
    info = PngInfo()
    info.add(b"sRGB", _PERCEPTUAL)
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, format="png", pnginfo=info)
    return buffer.getvalue()


def encode(image: np.ndarray, kind: SaveFormat, span: Span | None = None) -> bytes:
    """Return an image (H, W, C) in [-1, 1], C of 1 or 3, as the content of a file.

    Args:
        kind: ``png`` has 8 bits and ``png16`` 16, cut to the range. The others have float32 values that are not cut:
            ``tiff`` (H, W, C) with black at 0 and white at 1, ``npy`` and ``safetensors`` (its ``image``)
            (C, H, W) in [-1, 1].
        span: the values of black and white in the float formats, instead of these.
    """
    if kind in ("png", "png16"):
        white = 255 if kind == "png" else 65535
        levels = np.rint((image.astype(np.float64).clip(-1, 1) + 1) / 2 * white)
        return encode_png(levels.astype(np.uint8)) if kind == "png" else _encode_png16(levels)
    low, high = span or ((0.0, 1.0) if kind == "tiff" else (-1.0, 1.0))
    values = ((image.astype(np.float64) + 1) / 2 * (high - low) + low).astype(np.float32)
    if kind == "tiff":
        return _encode_tiff(values)
    values = np.ascontiguousarray(np.moveaxis(values, -1, 0))
    if kind == "safetensors":
        return save({"image": values})
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def _encode_tiff(values: np.ndarray) -> bytes:
    import tifffile  # slow to import, and seldom needed

    buffer = io.BytesIO()
    photometric = "rgb" if values.shape[2] == 3 else "minisblack"
    tifffile.imwrite(buffer, values if values.shape[2] == 3 else values[..., 0], photometric=photometric)
    return buffer.getvalue()


def _encode_png16(levels: np.ndarray) -> bytes:
    """Write a PNG of 16 bits, which Pillow does for grey only."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, channels = levels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 3: 2}[channels], 0, 0, 0)
    rows = levels.astype(">u2").reshape(height, -1).view(np.uint8)
    unfiltered = np.zeros((height, 1), np.uint8)  # each row begins with the number of its filter
    pixels = zlib.compress(np.hstack([unfiltered, rows]).tobytes())
    chunks = chunk(b"IHDR", header) + chunk(b"sRGB", _PERCEPTUAL) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks
