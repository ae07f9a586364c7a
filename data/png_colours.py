"""The colours of a PNG without a profile: its gamma and primaries, as an equivalent profile."""

import struct
from typing import Any

import numpy as np

_SRGB_GAMMA = 0.45455
_SRGB_PRIMARIES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)  # x and y of white, red, green and blue
_NEARLY = 0.01  # of a gamma or a coordinate
_D50 = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def embedded_profile(info: dict[Any, Any]) -> bytes | None:
    """Return the colour profile in what Pillow tells of a picture, or one that its chunks gAMA and cHRM stand for.

    None where there is neither, or a PNG says that it is sRGB, or describes nearly that.
    """
    profile, gamma = info.get("icc_profile"), info.get("gamma")
    if profile or not gamma or "srgb" in info:
        return profile or None
    primaries = info.get("chromaticity", _SRGB_PRIMARIES)
    differences = np.subtract([gamma, *primaries], [_SRGB_GAMMA, *_SRGB_PRIMARIES])
    return None if np.abs(differences).max() < _NEARLY else _profile(1 / gamma, primaries)


def _profile(exponent: float, primaries: tuple[float, ...]) -> bytes | None:
    """Return an ICC profile of a power and three colorants; None where there are no such colours."""
    x, y = np.array(primaries[::2]), np.array(primaries[1::2])
    if (y <= 0).any() or not 0.05 < exponent < 100:
        return None
    white, *colours = np.stack([x / y, np.ones(4), (1 - x - y) / y], axis=1)
    matrix = np.stack(colours, axis=1)
    if abs(np.linalg.det(matrix)) < 1e-6:
        return None
    adapted = np.linalg.inv(_BRADFORD) @ np.diag((_BRADFORD @ _D50) / (_BRADFORD @ white)) @ _BRADFORD
    colorants = adapted @ (matrix * np.linalg.solve(matrix, white))
    name = f"PNG of gamma {1 / exponent:.5g}".encode()
    tags = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(name) + 1) + name + b"\0" * 80, b"wtpt": _xyz(_D50)}
    for channel, colorant in zip((b"r", b"g", b"b"), colorants.T, strict=True):
        tags[channel + b"XYZ"] = _xyz(colorant)
        tags[channel + b"TRC"] = b"curv" + struct.pack(">IIHH", 0, 1, round(256 * exponent), 0)
    return _file(tags)


def _xyz(values: np.ndarray) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(65536 * float(value)) for value in values))


def _file(tags: dict[bytes, bytes]) -> bytes:
    table, content, start = b"", b"", 132 + 12 * len(tags)
    for name, tag in tags.items():
        table += struct.pack(">4sII", name, start + len(content), len(tag))
        content += tag + b"\0" * (-len(tag) % 4)
    head = struct.pack(">I4xI4s4s4s12x4s28x", start + len(content), 0x02100000, b"mntr", b"RGB ", b"XYZ ", b"acsp")
    head += _xyz(_D50)[8:] + bytes(48)
    return head + struct.pack(">I", len(tags)) + table + content
