"""Colour profiles of curves and colorants (ICC.1, matrix and TRC), at any depth: littleCMS has 8 bits in Pillow."""

import struct

import numpy as np

# The colorants of sRGB relative to D50, as columns: red, green, blue.
_SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
_FIXED = 65536  # of ICC's s15Fixed16Number
_PARAMETERS = (1, 3, 4, 5, 7)  # of the kinds of parametric curve


def to_srgb(values: np.ndarray, profile: bytes) -> np.ndarray:
    """Convert values (H, W, C) in [0, 1], of the profile's one or three channels, to sRGB, clipped to [0, 1].

    Raises:
        ValueError: it is no such profile (one of tables, or damaged), or of another number of channels.
    """
    try:
        tags = _tags(profile)
        if any(name.startswith((b"A2B", b"D2B")) for name in tags):
            raise ValueError("the profile has tables")
        names = [b"k"] if profile[16:20] == b"GRAY" else [b"r", b"g", b"b"]
        if values.shape[2] != len(names):
            raise ValueError(f"the profile is of {len(names)} channels")
        values = values.clip(0, 1)
        light = np.stack([_linear(values[..., i], tags[name + b"TRC"]) for i, name in enumerate(names)], axis=-1)
        if len(names) == 3:
            colorants = np.stack([_xyz(tags[name + b"XYZ"]) for name in names], axis=1)
            light = light @ (np.linalg.inv(_SRGB) @ colorants).T
    except (KeyError, IndexError, struct.error) as error:
        raise ValueError(f"the profile lacks a tag: {error}") from error
    light = light.clip(0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def _tags(profile: bytes) -> dict[bytes, bytes]:
    (count,) = struct.unpack_from(">I", profile, 128)
    entries = [struct.unpack_from(">4sII", profile, 132 + 12 * i) for i in range(min(count, 100))]
    return {name: profile[start : start + size] for name, start, size in entries}


def _xyz(tag: bytes) -> np.ndarray:
    return np.array(struct.unpack_from(">3i", tag, 8)) / _FIXED


def _linear(values: np.ndarray, curve: bytes) -> np.ndarray:
    """Return the light (in [0, 1]) of encoded values, by a tag of type ``curv`` or ``para``."""
    if curve[:4] == b"curv":
        (count,) = struct.unpack_from(">I", curve, 8)
        table = np.frombuffer(curve, ">u2", count, 12).astype(np.float64)
        if count <= 1:
            return values ** (table[0] / 256) if count else values
        return np.interp(values, np.linspace(0, 1, count), table / 65535)
    if curve[:4] != b"para":
        raise ValueError("the profile has a curve of another kind")
    (kind,) = struct.unpack_from(">H", curve, 8)
    numbers = [number / _FIXED for number in struct.unpack_from(f">{_PARAMETERS[kind]}i", curve, 12)]
    g, a, b, c, d, e, f = (float(number) for number in (*numbers, *[0.0] * (7 - len(numbers))))
    if kind == 0:
        a, d = 1.0, -1.0
    elif kind < 3:  # up to -b / a it is constant
        d, e, f, c = -b / a, c, c, 0.0
    power = np.maximum(a * values + b, 0) ** g + e
    return np.where(values >= d, power, c * values + f)
