"""Pictures become frames: in their order, each for its time, for ever."""

import io

import numpy as np
import pytest
from PIL import Image

from ldm_inverse.runs.report.animation import FRAME, LAST_FRAME, animation

COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]


def test_pictures_follow_one_another_and_the_last_stays_longest(tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, colour in zip(paths, COLOURS, strict=True):
        Image.new("RGB", (24, 16), colour).save(path)
    with Image.open(io.BytesIO(animation(paths))) as moving:
        assert (moving.size, moving.n_frames, moving.info["loop"]) == ((24, 16), 3, 0)
        for number, colour in enumerate(COLOURS):
            moving.seek(number)
            assert np.asarray(moving.convert("RGB")).mean((0, 1)) == pytest.approx(colour, abs=6)
            assert moving.info["duration"] == (LAST_FRAME if number == 2 else FRAME)
