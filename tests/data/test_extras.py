"""Formats that take a package which may not be installed."""

import base64
import logging
import struct
import sys

import numpy as np
import pytest
from PIL import Image, features

from data.picture_files import opened
from data.pictures import check_picture, read_pixels, read_size
from data.sources import find_pictures
from util.errors import UserError

H, W = 16, 24


@pytest.fixture
def smooth():
    y, x = np.mgrid[0:H, 0:W]
    return np.stack([40 + 5 * x, 60 + 5 * y, np.full_like(x, 90)], -1).astype(np.uint8)


def read(path, said=None, **options):
    return read_pixels(path, say=lambda *words: None if said is None else said.append(words), **options)


def test_an_avif_whose_first_brand_is_the_containers(smooth, tmp_path):
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    Image.fromarray(smooth).save(tmp_path / "own.avif", quality=90)
    content = (tmp_path / "own.avif").read_bytes()
    (tmp_path / "a.avif").write_bytes(content.replace(b"ftypavif", b"ftypmif1", 1))
    assert np.array_equal(read_pixels(tmp_path / "a.avif"), read_pixels(tmp_path / "own.avif"))


@pytest.mark.parametrize(("ending", "package"), [("heic", "pillow_heif"), ("avif", None)])
def test_heic_and_avif(ending, package, smooth, tmp_path):
    if package is None and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    if package is not None:
        pytest.importorskip(package).register_heif_opener()
    Image.fromarray(smooth).save(tmp_path / f"a.{ending}", quality=95)
    ((name, source),) = find_pictures(tmp_path)
    assert name == "a"
    assert read_size(source) == (H, W)
    assert np.abs(read(source).astype(int) - smooth).mean() < 3


def test_of_a_deep_heic_eight_bits_are_read_with_a_word(smooth, tmp_path):
    heif = pytest.importorskip("pillow_heif")
    heif.encode("RGB;16", (W, H), (257 * smooth.astype(np.uint16)).tobytes(), str(tmp_path / "a.heic"))
    said = []
    assert np.abs(read(tmp_path / "a.heic", said).astype(int) - smooth).mean() < 4
    assert any("only 8 of its 10 bits are read" in text for _, text in said)


# The same colours with 10 bits, which Pillow does not write; by imagecodecs.
DEEP_AVIF = base64.b64decode(
    "AAAAIGZ0eXBhdmlmAAAAAGF2aWZtaWYxbWlhZk1BMUEAAADrbWV0YQAAAAAAAAAhaGRscgAAAAAAAAAAcGljdAAAAAAAAAAAAAAAAAAAAAAOcG"
    "l0bQAAAAAAAQAAAB5pbG9jAAAAAEQAAAEAAQAAAAEAAAETAAAANgAAAChpaW5mAAAAAAABAAAAGmluZmUCAAAAAAEAAGF2MDFDb2xvcgAAAABq"
    "aXBycAAAAEtpcGNvAAAAFGlzcGUAAAAAAAAAGAAAABAAAAAQcGl4aQAAAAADCgoKAAAADGF2MUOBIEAAAAAAE2NvbHJuY2x4AAIAAgAGgAAAAB"
    "dpcG1hAAAAAAAAAAEAAQQBAoMEAAAAPm1kYXQSAAoIOBDv7eBAQNIyKBeCYwTAAPIYAACuuJTFb+puI5TTBv5VmS+EIkru3nQRxw++//8eadY="
)


def test_of_a_deep_avif_eight_bits_are_read_with_a_word(smooth, tmp_path):
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    (tmp_path / "deep.avif").write_bytes(DEEP_AVIF)
    Image.fromarray(smooth).save(tmp_path / "flat.avif")
    said = []
    assert np.abs(read(tmp_path / "deep.avif", said).astype(int) - smooth).mean() < 4
    assert any(level == logging.WARNING and "only 8 of its 10 bits are read" in text for level, text in said)
    read(tmp_path / "flat.avif", said)
    assert len(said) == 1


@pytest.mark.parametrize(
    ("brand", "module", "told"),
    [
        (b"heic", "pillow_heif", "reading HEIC needs pillow-heif: pip install pillow-heif"),
        (b"avif", "pillow_avif", "reading AVIF needs pillow-avif-plugin: pip install pillow-avif-plugin"),
    ],
)
def test_what_is_not_installed_is_asked_for_in_a_line(brand, module, told, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(features, "check", lambda name: False)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(200))
    with pytest.raises(UserError) as caught, opened(tmp_path / "a.heic"):
        pass
    assert str(caught.value) == f"{str(tmp_path / 'a.heic')!r}: {told}"


# ---------------------------------------------------------------- DICOM


def write_dicom(path, pixels, bits, **elements):
    """A DICOM file of grey or RGB pixels (frames, H, W[, 3]), explicit VR, little endian, byte by byte."""

    def element(group, number, kind, value):
        value += b" " * (len(value) % 2) if kind not in (b"OW", b"UI") else b"\0" * (len(value) % 2)
        size = struct.pack("<HI", 0, len(value)) if kind == b"OW" else struct.pack("<H", len(value))
        return struct.pack("<HH", group, number) + kind + size + value

    def short(value):
        return struct.pack("<H", value)

    image_class, syntax = b"1.2.840.10008.5.1.4.1.1.2", b"1.2.840.10008.1.2.1"
    meta = element(2, 0x2, b"UI", image_class) + element(2, 0x3, b"UI", b"1.2.3") + element(2, 0x10, b"UI", syntax)
    is_colour, signed = pixels.ndim == 4, pixels.dtype.kind == "i"
    kind = elements.get("photometric", b"RGB" if is_colour else b"MONOCHROME2")
    data = [
        element(0x28, 0x2, b"US", short(3 if is_colour else 1)),
        element(0x28, 0x4, b"CS", kind),
        *([element(0x28, 0x6, b"US", short(0))] if is_colour else []),
        element(0x28, 0x8, b"IS", str(len(pixels)).encode()),
        element(0x28, 0x10, b"US", short(pixels.shape[1])),
        element(0x28, 0x11, b"US", short(pixels.shape[2])),
        element(0x28, 0x100, b"US", short(8 * pixels.dtype.itemsize)),
        element(0x28, 0x101, b"US", short(bits)),
        element(0x28, 0x102, b"US", short(bits - 1)),
        element(0x28, 0x103, b"US", short(int(signed))),
        element(0x28, 0x1050, b"DS", b"40"),  # a window, which cuts no value
        element(0x28, 0x1051, b"DS", b"400"),
        *([element(0x28, 0x1052, b"DS", elements["intercept"])] if "intercept" in elements else []),
        *([element(0x28, 0x1053, b"DS", elements["slope"])] if "slope" in elements else []),
        *(element(0x28, 0x1101 + i, b"US", table) for i, table in enumerate(elements.get("descriptors", ()))),
        *(element(0x28, 0x1201 + i, b"OW", table) for i, table in enumerate(elements.get("palettes", ()))),
        element(0x7FE0, 0x10, b"OW", pixels.tobytes()),
    ]
    length = element(2, 0, b"UL", struct.pack("<I", len(meta)))
    path.write_bytes(bytes(128) + b"DICM" + length + meta + b"".join(data))
    return path


@pytest.fixture
def pydicom():
    return pytest.importorskip("pydicom")


GREY = np.random.RandomState(0).randint(0, 4096, (2, H, W)).astype(np.uint16)


def test_dicom_spans_its_bits(pydicom, tmp_path):
    path = write_dicom(tmp_path / "a.dcm", GREY[:1], 12)
    assert read_size(path) == (H, W)
    check_picture(path)
    assert np.abs(read(path)[..., 0] - (GREY[0] / 4095 * 2 - 1)).max() < 1e-9


def test_dicom_is_rescaled_and_its_units_can_be_chosen(pydicom, tmp_path):
    path = write_dicom(tmp_path / "a.dcm", GREY[:1], 12, slope=b"2", intercept=b"-1024")
    assert np.abs(read(path)[..., 0] - (GREY[0] / 4095 * 2 - 1)).max() < 1e-9
    hounsfield = GREY[0] * 2.0 - 1024
    assert np.abs(read(path, span=(-1000.0, 3000.0))[..., 0] - ((hounsfield + 1000) / 2000 - 1)).max() < 1e-9


def test_dicom_with_signs_and_with_white_for_the_least(pydicom, tmp_path):
    signed = GREY[:1].astype(np.int16) - 2048
    path = write_dicom(tmp_path / "a.dcm", signed, 12, photometric=b"MONOCHROME1")
    assert np.abs(read(path)[..., 0] + (GREY[0] / 4095 * 2 - 1)).max() < 1e-9


def test_frames_of_dicom(pydicom, tmp_path):
    write_dicom(tmp_path / "a.dcm", GREY, 12)
    found = find_pictures(tmp_path / "a.dcm", frames="all")
    assert [name for name, _ in found] == ["a_000", "a_001"]
    for values, (_, source) in zip(GREY, found, strict=True):
        assert np.abs(read(source)[..., 0] - (values / 4095 * 2 - 1)).max() < 1e-9
    said = []
    read(tmp_path / "a.dcm", said)
    assert (said[0][0], "first of its 2 frames" in said[0][1]) == (logging.INFO, True)


def test_colours_of_dicom(pydicom, smooth, tmp_path):
    path = write_dicom(tmp_path / "a.dcm", smooth[None], 8)
    assert np.abs(read(path) - (smooth / 127.5 - 1)).max() < 1e-9


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_palette_of_dicom_is_heeded(dtype, pydicom, tmp_path):
    rng, white = np.random.RandomState(0), np.iinfo(dtype).max
    indices = rng.randint(0, 256, (1, H, W)).astype(np.uint8)
    palette = rng.randint(0, white + 1, (3, 256)).astype(dtype)
    described = [struct.pack("<HHH", 256, 0, 8 * palette.itemsize)] * 3
    tables = [table.tobytes() for table in palette]
    path = write_dicom(
        tmp_path / "a.dcm", indices, 8, photometric=b"PALETTE COLOR", descriptors=described, palettes=tables
    )
    assert np.abs(read(path) - (np.moveaxis(palette[:, indices[0]], 0, -1) / white * 2 - 1)).max() < 1e-9
    write_dicom(path, indices, 8, photometric=b"PALETTE COLOR")
    with pytest.raises(UserError, match=r"a\.dcm'.*No suitable Palette"):
        read(path)


def test_half_a_dicom_file_is_refused(pydicom, tmp_path):
    path = write_dicom(tmp_path / "a.dcm", GREY[:1], 12)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(UserError, match=r"a\.dcm'.*DICOM"):
        check_picture(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"a\.dcm'"):
        read_size(path)


def test_pydicom_is_asked_for_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM" + bytes(100))
    with pytest.raises(UserError, match="reading DICOM needs pydicom: pip install pydicom$"):
        read_size(tmp_path / "a.dcm")
