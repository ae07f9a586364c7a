"""Pictures one after the other as one that moves."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

FRAME, LAST_FRAME = 300, 1500  # milliseconds
OPTIONS: dict[str, Any] = {"format": "webp", "save_all": True, "loop": 0, "quality": 85, "method": 2}


def animation(pictures: Sequence[Path]) -> bytes:
    """Return picture files of one size as an animated WebP that repeats for ever; the last one stays longest."""
    frames = []
    for path in pictures:
        with Image.open(path) as picture:
            frames.append(picture.convert("RGB"))
    durations = [FRAME] * (len(frames) - 1) + [LAST_FRAME]
    content = io.BytesIO()
    frames[0].save(content, append_images=frames[1:], duration=durations, **OPTIONS)
    return content.getvalue()
