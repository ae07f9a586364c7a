"""Files of more than 8 bits a value, written here byte by byte, or by another library than the one that reads them."""

import logging
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from data.array_files import read_grey
from data.mask_values import read_alpha
from data.pictures import check_picture, read_pixels, read_size
from data.sources import source_of
from tests.data.test_colour import WIDE, profile
from tests.data.test_pictures import sixteen_bit_rows, write_png
from util.errors import UserError

H, W = 12, 16
DEEP = np.random.RandomState(0).randint(0, 65536, (H, W, 3)).astype(np.uint16)
RANGE = DEEP / 65535 * 2 - 1


def write_tiff(path, values, order="<", packed=None, tags=(), compression=1):
    """A TIFF of one strip. `tags` are (number, type, values) of shorts (3) or longs (4) besides the usual ones."""
    height, width, channels = values.shape
    data = values.astype(values.dtype.newbyteorder(order)).tobytes() if packed is None else packed
    data = zlib.compress(data) if compression == 8 else data
    bits = values.dtype.itemsize * 8 if packed is None else 12
    entries = {
        256: (4, [width]), 257: (4, [height]), 258: (3, [bits] * channels), 259: (3, [compression]),
        262: (3, [2 if channels >= 3 else 1]), 273: (4, [8]), 277: (3, [channels]), 278: (4, [height]),
        279: (4, [len(data)]), 339: (3, [3 if values.dtype.kind == "f" else 1] * channels),
    } | {number: (kind, content) for number, kind, content in tags}  # fmt: skip
    offset = 8 + len(data) + len(data) % 2
    extra, start, table = b"", offset + 2 + 12 * len(entries) + 4, b""
    for number, (kind, content) in sorted(entries.items()):
        stored = struct.pack(order + {3: "H", 4: "I"}[kind] * len(content), *content)
        if len(stored) > 4:
            place, extra = struct.pack(order + "I", start + len(extra)), extra + stored
        else:
            place = stored.ljust(4, b"\0")
        table += struct.pack(order + "HHI", number, kind, len(content)) + place
    magic = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HI", 42, offset)
    count = struct.pack(order + "H", len(entries))
    path.write_bytes(magic + data + bytes(len(data) % 2) + count + table + bytes(4) + extra)
    return path


@pytest.fixture
def said():
    return []


def read(path, said=None, **options):
    return read_pixels(path, say=lambda *words: None if said is None else said.append(words), **options)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_keeps_sixteen_bits(channels, tmp_path):
    values = np.random.RandomState(1).randint(0, 65536, (H, W, channels)).astype(np.uint16)
    colour_type = {1: 0, 3: 2, 4: 6}[channels]
    path = write_png(tmp_path / "a.png", W, H, 16, colour_type, sixteen_bit_rows(values))
    expected = values[..., :3] / 65535
    if channels == 4:
        alpha = values[..., 3:] / 65535
        expected = expected * alpha + 1 - alpha
    assert np.abs(read(path) - (2 * expected - 1)).max() < 1e-9


def test_png_of_grey_and_alpha_is_read_with_a_word(tmp_path, said):
    values = np.full((H, W, 2), 65535, np.uint16)
    read(write_png(tmp_path / "a.png", W, H, 16, 4, sixteen_bit_rows(values)), said)
    assert any(level == logging.WARNING and "16 bits" in text for level, text in said)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("channels", [1, 3])
def test_tiff_keeps_sixteen_bits(order, compression, channels, tmp_path, said):
    path = write_tiff(tmp_path / "a.tif", DEEP[..., :channels], order, compression=compression)
    assert np.abs(read(path, said) - RANGE[..., :channels]).max() < 1e-9
    assert said == []
    assert read_size(path) == (H, W)


UNKNOWN = [
    ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package"),
    ImportError("No module named 'compression'"),  # Zstandard's, before Python 3.14
]


@pytest.fixture(params=UNKNOWN, ids=["package", "module"])
def without_codec(request, monkeypatch):
    """As if tifffile could not decode what Pillow can."""

    def refuse(*_, **__):
        raise request.param

    monkeypatch.setattr(tifffile.TiffPage, "asarray", refuse)


def test_tiff_whose_compression_tifffile_does_not_know_keeps_sixteen_bits(without_codec, tmp_path, said):
    path = write_tiff(tmp_path / "a.tif", DEEP, compression=8)
    assert np.abs(read(path, said) - RANGE).max() < 1e-9
    assert any("imagecodecs" in text for _, text in said)


def test_black_may_be_the_largest_value_there_too(without_codec, tmp_path):
    path = write_tiff(tmp_path / "a.tif", DEEP[..., :1], tags=[(262, 3, [0])], compression=8)
    assert np.abs(read(path) + RANGE[..., :1]).max() < 1e-9
    assert np.array_equal(read_grey(path), 65535.0 - DEEP[..., 0])


def test_alpha_is_there_too(without_codec, tmp_path):
    values = np.dstack([DEEP, DEEP[..., 0]])
    for kind in (1, 2):
        path = write_tiff(tmp_path / "a.tif", values, tags=[(338, 3, [kind])], compression=8)
        alpha = read_alpha(source_of(path))
        assert alpha is not None
        assert np.abs(alpha - values[..., 3] / 257).max() < 1


def test_where_pillow_does_not_know_it_either_the_package_is_asked_for(without_codec, tmp_path, said):
    path = write_tiff(tmp_path / "a.tif", np.zeros((H, W, 3), np.float32), compression=8)
    with pytest.raises(UserError, match=r"a\.tif': its compression needs imagecodecs: pip install imagecodecs$"):
        read(path, said)
    assert not said


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_pictures_are_upright(orientation, tmp_path):
    deep = write_tiff(tmp_path / "deep.tif", DEEP, tags=[(274, 3, [orientation])])
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray((DEEP // 257).astype(np.uint8)).save(tmp_path / "flat.png", exif=exif)
    flat = read(tmp_path / "flat.png") / 127.5 - 1
    assert read_size(deep) == flat.shape[:2]
    assert np.abs(read(deep) - flat).max() < 0.01


def test_floats_from_zero_to_one_are_kept_and_said(tmp_path, said):
    values = np.random.RandomState(2).rand(H, W, 3).astype(np.float32)
    path = write_tiff(tmp_path / "a.tif", values)
    assert np.abs(read(path, said) - (2.0 * values - 1)).max() < 1e-7
    assert said[0][0] == logging.INFO
    assert "0 is read as black and 1 as white" in said[0][1]


@pytest.mark.parametrize("channels", [1, 3])
def test_other_floats_need_a_range_and_keep_what_is_outside_it(channels, tmp_path):
    values = np.linspace(-1000, 3000, H * W * channels, dtype=np.float32).reshape(H, W, channels)
    path = write_tiff(tmp_path / "a.tif", values)
    with pytest.raises(UserError, match=r"a\.tif'.*float32 from -1000 to 3000.*no agreed range.*data.range"):
        read(path)
    assert np.abs(read(path, span=(-1000.0, 1000.0)) - values / 1000).max() < 1e-6


def test_what_is_not_finite_is_refused(tmp_path):
    values = np.full((H, W, 1), np.nan, np.float32)
    with pytest.raises(UserError, match="NaN"):
        read(write_tiff(tmp_path / "a.tif", values), span=(0.0, 1.0))


def test_twelve_bits_by_the_files_own_tag(tmp_path, said):
    values = DEEP // 16
    path = write_tiff(tmp_path / "a.tif", values, tags=[(281, 3, [4095] * 3)])
    assert np.abs(read(path, said) - (values / 4095 * 2 - 1)).max() < 1e-9
    assert said == []


def test_twelve_bits_without_a_tag_are_said_and_can_be_told(tmp_path, said):
    values = DEEP // 16
    path = write_tiff(tmp_path / "a.tif", values)
    assert np.abs(read(path, said) - (values / 65535 * 2 - 1)).max() < 1e-9
    ((level, text),) = said
    assert level == logging.WARNING
    assert "data.range=[0, 4095]" in text
    assert np.abs(read(path, said, span=(0.0, 4095.0)) - (values / 4095 * 2 - 1)).max() < 1e-9
    assert len(said) == 1


def test_black_may_be_the_largest_value(tmp_path):
    path = write_tiff(tmp_path / "a.tif", DEEP[..., :1], tags=[(262, 3, [0])])
    assert np.abs(read(path) + RANGE[..., :1]).max() < 1e-9


def test_alpha_of_a_deep_tiff(tmp_path):
    values = np.dstack([DEEP, DEEP[..., 0]])
    alpha = values[..., 3:] / 65535
    straight = write_tiff(tmp_path / "a.tif", values, tags=[(338, 3, [2])])
    assert np.abs((read(straight) + 1) / 2 - (values[..., :3] / 65535 * alpha + 1 - alpha)).max() < 1e-9
    multiplied = write_tiff(tmp_path / "b.tif", values, tags=[(338, 3, [1])])
    assert np.abs((read(multiplied) + 1) / 2 - (values[..., :3] / 65535 + 1 - alpha)).max() < 1e-9


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_a_profile_is_for_colours_that_alpha_has_not_multiplied(dtype, tmp_path, said):
    scale = 65535 if dtype == np.uint16 else 1
    colours = np.random.RandomState(3).uniform(0.2, 0.8, (H, W, 3))
    alpha = np.random.RandomState(4).uniform(0.05, 1, (H, W, 1))
    alpha[0, :3] = 0
    paths = []
    for kind, shown in (("unassalpha", colours), ("assocalpha", colours * alpha)):
        values = np.dstack([shown, alpha]) * scale
        values = (values.round() if scale > 1 else values).astype(dtype)
        icc = (34675, 7, None, profile(WIDE, 2.2))
        paths.append(tmp_path / f"{kind}.tif")
        tifffile.imwrite(paths[-1], values, photometric="rgb", extrasamples=[kind], extratags=[icc])
    straight, multiplied = (read(path, said) for path in paths)
    assert sum("converted from its colour profile" in text for _, text in said) == 2
    assert np.abs(straight - multiplied).max() < 2e-3  # 16 bits, divided by an alpha of 0.05
    assert (multiplied[0, :3] == 1).all()


def test_half_a_deep_tiff_is_refused(tmp_path):
    path = write_tiff(tmp_path / "a.tif", DEEP)
    header = path.read_bytes()
    path.write_bytes(header[:200])
    with pytest.raises(UserError, match=r"a\.tif'"):
        check_picture(path)
    late = bytearray(header)
    late[4:8] = struct.pack("<I", 10**6)  # where the directory would be
    path.write_bytes(bytes(late))
    with pytest.raises(UserError, match=r"a\.tif'"):
        check_picture(path)


@pytest.mark.parametrize("method", ["resize", "center_crop"])
def test_resizing_keeps_bits(method, tmp_path):
    ramp = np.broadcast_to(np.linspace(20000, 21000, 64)[None, :, None], (64, 64, 3)).astype(np.uint16)
    path = write_tiff(tmp_path / "a.tif", np.ascontiguousarray(ramp))
    got = read(path, size=(32, 32), resize=method)
    assert got.shape == (32, 32, 3)
    assert len(np.unique(got[16, :, 0])) == 32, "8 bits have five steps in this ramp"


def test_a_tiff_of_an_array_has_its_colours_and_what_is_left_out_is_said(tmp_path, said):
    tifffile.imwrite(tmp_path / "array.tif", DEEP, photometric="minisblack", planarconfig="contig")
    assert np.abs(read(tmp_path / "array.tif", said) - RANGE).max() < 1e-6
    assert not said
    values = np.dstack([DEEP, DEEP[..., :2]])
    tifffile.imwrite(tmp_path / "five.tif", values, photometric="rgb", extrasamples=["unspecified", "unspecified"])
    assert np.abs(read(tmp_path / "five.tif", said) - RANGE).max() < 1e-6
    (level, text), *_ = said
    assert level == logging.WARNING
    assert text.endswith("only 3 of the 5 values of each pixel are read")


@pytest.mark.parametrize(
    ("values", "kind", "told"),
    [
        (DEEP, "cielab", "this TIFF is CIELAB, which is not read: save it as grey or RGB"),
        (DEEP[..., 0], "cfa", "this TIFF is CFA, which is not read"),
        (DEEP[..., 0].astype(np.complex64), "minisblack", "it holds complex numbers"),
        ((DEEP[..., 0] // 256).astype(np.int8), "minisblack", "int8 from -125 to 125, have no agreed range"),
    ],
)
def test_a_tiff_of_other_numbers_is_refused(values, kind, told, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", values, photometric=kind)
    with pytest.raises(UserError, match=told):
        read(tmp_path / "a.tif")
