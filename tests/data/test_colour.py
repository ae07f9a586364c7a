"""Embedded profiles and transparency, against the formulas of ICC.1 and of sRGB (IEC 61966-2-1)."""

import io
import logging
import struct

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from data import colour, icc_profile
from data.pictures import read_pixels
from tests.data.test_pictures import write_png

H, W = 12, 16

# Colorants relative to D50 (columns are red, green, blue) in the profiles of Adobe RGB (1998) and of sRGB.
WIDE = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])


def profile(colorants, gamma, space=b"RGB "):
    """An ICC profile (version 2) of three colorants, or of grey, and an exponent (or a whole curve)."""

    def xyz(values):
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))

    curve = gamma
    if not isinstance(gamma, bytes):
        curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    description = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"mine\0" + bytes(78)
    tags = {b"desc": description, b"cprt": b"text\0\0\0\0none\0", b"wtpt": xyz((0.9642, 1, 0.8249))}
    if space == b"GRAY":
        tags[b"kTRC"] = curve
    else:
        tags |= {letter + b"XYZ": xyz(column) for letter, column in zip((b"r", b"g", b"b"), colorants.T, strict=True)}
        tags |= {letter + b"TRC": curve for letter in (b"r", b"g", b"b")}
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content
    size = start + len(body)
    head = struct.pack(">I4sI4s4s4s", size, b"\0" * 4, 0x02100000, b"mntr", space, b"XYZ ") + bytes(12) + b"acsp"
    head += bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + table + body


def encoded(linear):
    """Linear light in [0, 1] as sRGB."""
    linear = linear.clip(0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.fixture
def colours():
    """Colours (H, W, 3) that are within sRGB in either of the two spaces."""
    return np.random.RandomState(0).randint(70, 190, (H, W, 3)).astype(np.uint8)


@pytest.fixture
def said():
    return []


def read(path, said):
    return read_pixels(path, say=lambda level, text: said.append((level, text)))


@pytest.mark.parametrize("ending", ["png", "tif", "jpg", "webp"])
def test_a_wide_gamut_becomes_srgb(ending, colours, said, tmp_path):
    options = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(ending, {})
    smooth = np.asarray(Image.fromarray(colours).resize((64, 48), Image.Resampling.BICUBIC))
    Image.fromarray(smooth).save(tmp_path / f"a.{ending}", icc_profile=profile(WIDE, 2.2), **options)
    expected = 255 * encoded((smooth / 255) ** (563 / 256) @ WIDE.T @ np.linalg.inv(SRGB).T)
    assert np.abs(smooth - expected).mean() > 4, "or ignoring the profile would do"
    got = read(tmp_path / f"a.{ending}", said)
    assert np.abs(got - expected).mean() < (2 if ending == "jpg" else 0.5)
    assert said == [(logging.INFO, f"{tmp_path / f'a.{ending}'}: converted from its colour profile (mine) to sRGB")]


def test_grey_has_profiles_too(colours, said, tmp_path):
    Image.fromarray(colours[..., 0]).save(tmp_path / "a.png", icc_profile=profile(None, 1.0, b"GRAY"))
    expected = 255 * encoded(colours[..., :1] / 255)
    assert np.abs(read(tmp_path / "a.png", said) - expected).max() < 1
    assert "sRGB" in said[0][1]


@pytest.mark.parametrize("opaque", [255, 100])
def test_grey_with_transparency_has_a_profile_too(opaque, colours, said, tmp_path):
    grey = colours[..., 0]
    alpha = np.where(grey > 120, opaque, 255).astype(np.uint8)
    plain, both = tmp_path / "a.png", tmp_path / "b.png"
    Image.fromarray(grey).save(plain, icc_profile=profile(None, 1.8, b"GRAY"))
    Image.fromarray(np.dstack([grey, alpha]), "LA").save(both, icc_profile=profile(None, 1.8, b"GRAY"))
    share = alpha[..., None] / 255
    assert np.abs(read(both, said) - (read(plain, said) * share + 255 * (1 - share))).max() <= 1


def test_dark_greys_of_a_steep_curve_are_right_too(said, tmp_path):
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(grey).save(tmp_path / "a.png", icc_profile=profile(None, 1.0, b"GRAY"))
    assert np.abs(read(tmp_path / "a.png", said)[..., 0] - 255 * encoded(grey / 255)).max() < 0.6


def test_sixteen_bits_are_converted_with_all_of_them(said, tmp_path):
    grey = np.random.RandomState(0).randint(0, 65536, (H, W)).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "a.png", icc_profile=profile(None, 1.5, b"GRAY"))
    got = (read(tmp_path / "a.png", said) + 1) / 2
    assert np.abs(got - encoded((grey / 65535) ** 1.5)[..., None]).max() < 1e-6
    assert [level for level, _ in said] == [logging.INFO]


def write_deep(folder, values, icc):
    """A TIFF of 16 bits with a profile, by tifffile."""
    tifffile.imwrite(folder / "a.tif", values, photometric="rgb", extratags=[(34675, 7, None, icc)])
    return folder / "a.tif"


def test_sixteen_bits_of_a_wide_gamut_too(said, tmp_path):
    colours = np.random.RandomState(0).randint(18000, 48000, (H, W, 3)).astype(np.uint16)
    got = (read(write_deep(tmp_path, colours, profile(WIDE, 2.2)), said) + 1) / 2
    expected = encoded((colours / 65535) ** (563 / 256) @ WIDE.T @ np.linalg.inv(SRGB).T)
    assert np.abs(got - expected).max() < 2e-4  # the profile's numbers have 16 bits
    assert len(np.unique(got)) > 500, "or 8 bits would do"


def parametric(kind, *numbers):
    """A curve of ICC.1, type `para`."""
    return b"para\0\0\0\0" + struct.pack(f">HH{len(numbers)}i", kind, 0, *(round(number * 65536) for number in numbers))


TABLE = b"curv\0\0\0\0" + struct.pack(">I5H", 5, 0, 4000, 16000, 36000, 65535)
CURVES = {
    "table": TABLE,
    "gamma": parametric(0, 1.8),
    "cie 122": parametric(1, 2.4, 1.1, -0.1),
    "iec 61966-3": parametric(2, 2.4, 1.1, -0.1, 0.0001),
    "srgb's": parametric(3, 2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045),
    "with offsets": parametric(4, 2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045, 0.0, 0.0),
    "linear": b"curv\0\0\0\0\0\0\0\0",
}


@pytest.mark.parametrize("name", CURVES)
def test_every_curve_is_littlecms(name):
    """Against littleCMS, which gives levels of 8 bits, and lifts blacks that are not black (these are)."""
    icc = profile(None, CURVES[name], b"GRAY")
    grey = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    source, srgb = ImageCms.ImageCmsProfile(io.BytesIO(icc)), ImageCms.createProfile("sRGB")
    want = np.asarray(ImageCms.profileToProfile(grey, source, srgb, outputMode="RGB", flags=ImageCms.Flags.NOOPTIMIZE))[
        ..., 1
    ]
    found = icc_profile.to_srgb(np.arange(256)[None, :, None] / 255, icc)[..., 0]
    assert np.abs(255 * found - want).max() < 0.6


def test_a_profile_of_tables_is_converted_with_eight_bits_and_that_is_said(said, tmp_path, monkeypatch):
    def refused(values, icc):
        raise ValueError("the profile has tables")

    monkeypatch.setattr(icc_profile, "to_srgb", refused)
    values = np.random.RandomState(0).randint(18000, 48000, (H, W, 3)).astype(np.uint16)
    got = (read(write_deep(tmp_path, values, profile(WIDE, 2.2)), said) + 1) / 2
    expected = encoded((values / 65535) ** (563 / 256) @ WIDE.T @ np.linalg.inv(SRGB).T)
    assert 1e-4 < np.abs(got - expected).mean() < 1 / 255
    assert any(level == logging.WARNING and "8 bits" in text for level, text in said)


@pytest.mark.parametrize("name", ["text", "half", "of grey", "tables"])
def test_sixteen_bits_with_a_broken_profile_keep_their_depth(name, said, tmp_path):
    broken = BROKEN | {"tables": profile(WIDE, 2.2).replace(b"cprt", b"A2B0")}
    values = np.random.RandomState(0).randint(0, 65536, (H, W, 3)).astype(np.uint16)
    got = read(write_deep(tmp_path, values, broken[name]), said)
    assert np.array_equal(got, values / 65535 * 2 - 1)
    ((level, text),) = said
    assert level == logging.WARNING
    assert "read as sRGB" in text


def test_cmyk_with_a_profile_is_converted_by_it(said, tmp_path, monkeypatch):
    """The transform is watched, since a profile of CMYK is a table of half a megabyte."""
    monkeypatch.setattr(colour, "described", lambda icc: ("CMYK", "ink"))
    inverted = np.asarray(Image.new("CMYK", (W, H), (10, 200, 30, 40)))

    def applied(image, transform):
        assert (image.mode, transform) == ("CMYK", "ink to sRGB")
        assert np.array_equal(np.asarray(image), inverted)
        return Image.new("RGB", image.size, (1, 2, 3))

    monkeypatch.setattr(colour, "_transform", lambda icc: "ink to sRGB")
    monkeypatch.setattr(colour.ImageCms, "applyTransform", applied)
    Image.new("CMYK", (W, H), (10, 200, 30, 40)).save(tmp_path / "a.tif", icc_profile=b"ink")
    assert (read(tmp_path / "a.tif", said) == (1, 2, 3)).all()
    assert said == [(logging.INFO, f"{tmp_path / 'a.tif'}: converted from its colour profile (ink) to sRGB")]


def test_the_profile_of_srgb_changes_no_bit(colours, said, tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(colours).save(tmp_path / "a.png", icc_profile=srgb)
    assert np.array_equal(read(tmp_path / "a.png", said), colours)
    assert said == []


BROKEN = {"text": b"a profile, honestly", "half": profile(WIDE, 2.2)[:200], "of grey": profile(None, 2.2, b"GRAY")}


PRIMARIES = (31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000)  # of Adobe RGB, in PNG's hundred-thousandths


def png(path, pixels, *chunks):
    """An RGB PNG with chunks before its pixels."""
    depth = 8 * pixels.dtype.itemsize
    rows = [b"\0" + row.astype(pixels.dtype.newbyteorder(">")).tobytes() for row in pixels]
    return write_png(path, W, H, depth, 2, b"".join(rows), chunks)


GAMMA, WIDE_PRIMARIES = (b"gAMA", struct.pack(">I", 100000)), (b"cHRM", struct.pack(">8I", *PRIMARIES))
OF_SRGB = (b"gAMA", struct.pack(">I", 45455))


def test_gamma_and_primaries_of_a_png_are_heeded(colours, said, tmp_path):
    light = encoded(colours / 255)
    assert np.abs(read(png(tmp_path / "a.png", colours, GAMMA), said) / 255 - light).max() < 0.01
    assert "(PNG of gamma 1) to sRGB" in said[0][1]
    deep = read(png(tmp_path / "a.png", colours.astype(np.uint16) * 257, GAMMA), said)
    assert np.abs((deep + 1) / 2 - light).max() < 1e-3
    wide = encoded((colours / 255) ** (1 / 0.45455) @ (np.linalg.inv(SRGB) @ WIDE).T)
    assert np.abs(read(png(tmp_path / "a.png", colours, OF_SRGB, WIDE_PRIMARIES), said) / 255 - wide).max() < 0.01


@pytest.mark.parametrize(
    "chunks",
    [
        [OF_SRGB],
        [WIDE_PRIMARIES],
        [GAMMA, (b"sRGB", b"\0")],
        [(b"gAMA", struct.pack(">I", 1))],
        [GAMMA, (b"cHRM", struct.pack(">8I", *[0] * 8))],
        [GAMMA, (b"cHRM", struct.pack(">8I", *[30000] * 8))],
    ],
)
def test_a_png_that_is_srgb_or_of_no_colours_stays_as_it_is(chunks, colours, said, tmp_path):
    assert np.array_equal(read(png(tmp_path / "a.png", colours, *chunks), said), colours)
    assert not said


@pytest.mark.parametrize("name", BROKEN)
def test_with_a_broken_profile_it_is_srgb(name, colours, said, tmp_path):
    Image.fromarray(colours).save(tmp_path / "a.png", icc_profile=BROKEN[name])
    assert np.array_equal(read(tmp_path / "a.png", said), colours)
    ((level, text),) = said
    assert level == logging.WARNING
    assert "read as sRGB" in text


def test_transparency_is_laid_over_white_after_the_profile_and_said(said, tmp_path):
    colours = np.full((H, W, 4), (90, 120, 150, 255), np.uint8)
    colours[:, :4, 3] = 0
    colours[:, 4:8, 3] = 51
    Image.fromarray(colours).save(tmp_path / "a.png", icc_profile=profile(WIDE, 2.2))
    opaque = 255 * encoded((colours[0, 0, :3] / 255) ** (563 / 256) @ WIDE.T @ np.linalg.inv(SRGB).T)
    got = read(tmp_path / "a.png", said)
    assert (got[:, :4] == 255).all()
    assert np.abs(got[:, 4:8] - (0.2 * opaque + 0.8 * 255)).max() < 2
    assert np.abs(got[:, 8:] - opaque).max() < 1.5
    assert [level for level, _ in said] == [logging.INFO] * 2
    assert "over white" in said[1][1]
