"""Pictures are made here in every format, and read back against what was put in."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from data.mask_values import read_alpha
from data.pictures import check_picture, read_picture, read_size
from data.sources import find_pictures, source_of
from util.errors import UserError

H, W = 12, 16


@pytest.fixture
def rgb():
    """Random 8-bit colours (H, W, 3)."""
    return np.random.RandomState(0).randint(0, 256, (H, W, 3)).astype(np.uint8)


@pytest.fixture
def smooth():
    """A colour gradient, which lossy formats keep to a few levels."""
    y, x = np.mgrid[0:H, 0:W]
    return np.stack([40 + 10 * x, 60 + 10 * y, np.full_like(x, 90)], -1).astype(np.uint8)


def read(path, **kwargs):
    picture = read_picture(path, **kwargs)
    assert picture.mode == "RGB"
    return np.asarray(picture).astype(int)


def write_png(path, width, height, bit_depth, colour_type, rows=b"", chunks=(), behind=()):
    """Write a PNG by hand: what Pillow cannot write (16-bit RGB, lies about the size)."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0))
    before, after = (b"".join(chunk(*extra) for extra in extras) for extras in (chunks, behind))
    body = before + chunk(b"IDAT", zlib.compress(rows)) + after + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + body)
    return path


def sixteen_bit_rows(values):
    """PNG rows of 16-bit values (H, W, channels), without a filter."""
    return b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)


# ---------------------------------------------------------------- formats and modes


@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "tiff", "PNG"])
def test_lossless_formats(tmp_path, rgb, ending):
    path = tmp_path / f"a.{ending}"
    Image.fromarray(rgb).save(path)
    assert np.array_equal(read(path), rgb)


@pytest.mark.parametrize(
    ("ending", "options"), [("jpg", {"quality": 95}), ("jpeg", {"quality": 95}), ("webp", {"quality": 95})]
)
def test_lossy_formats(tmp_path, smooth, ending, options):
    path = tmp_path / f"a.{ending}"
    Image.fromarray(smooth).save(path, **options)
    assert np.abs(read(path) - smooth).max() < 12


def test_lossless_webp(tmp_path, rgb):
    Image.fromarray(rgb).save(tmp_path / "a.webp", lossless=True)
    assert np.array_equal(read(tmp_path / "a.webp"), rgb)


def test_the_content_counts_not_the_suffix(tmp_path, rgb):
    Image.fromarray(rgb).save(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", tmp_path / "a.jpg")
    assert np.array_equal(read(tmp_path / "a.jpg"), rgb)


def test_grey(tmp_path, rgb):
    Image.fromarray(rgb[..., 0]).save(tmp_path / "a.png")
    assert np.array_equal(read(tmp_path / "a.png"), np.repeat(rgb[..., :1], 3, -1))


def test_one_bit(tmp_path, rgb):
    bits = rgb[..., 0] > 127
    Image.fromarray(bits).save(tmp_path / "a.png")
    assert np.array_equal(read(tmp_path / "a.png"), np.repeat(bits[..., None], 3, -1) * 255)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bit_grey(tmp_path, ending):
    values = np.linspace(0, 65535, H * W).round().reshape(H, W)
    Image.fromarray(values.astype(np.uint16)).save(tmp_path / f"a.{ending}")
    got = read(tmp_path / f"a.{ending}")
    assert np.array_equal(got, np.repeat((values / 257).round()[..., None], 3, -1))


def test_sixteen_bit_grey_big_endian(tmp_path):
    values = np.linspace(0, 65535, H * W).round().reshape(H, W)
    Image.frombytes("I;16B", (W, H), values.astype(">u2").tobytes()).save(tmp_path / "a.tif")
    assert np.array_equal(read(tmp_path / "a.tif")[..., 0], (values / 257).round())


def test_sixteen_bit_rgb(tmp_path):
    values = np.random.RandomState(1).randint(0, 65536, (H, W, 3))
    values[0, 0], values[0, 1] = 0, 65535
    got = read(write_png(tmp_path / "a.png", W, H, 16, 2, sixteen_bit_rows(values)))
    assert np.abs(got - values / 257).max() <= 1
    assert got[0, 0].tolist() == [0] * 3
    assert got[0, 1].tolist() == [255] * 3


def test_sixteen_bit_grey_with_alpha(tmp_path):
    values = np.random.RandomState(1).randint(0, 65536, (H, W, 2))
    got = read(write_png(tmp_path / "a.png", W, H, 16, 4, sixteen_bit_rows(values)))
    alpha = values[..., 1:] / 65535
    assert np.abs(got - (values[..., :1] / 257 * alpha + 255 * (1 - alpha))).max() < 3


def test_sixteen_bit_grey_with_a_transparent_value(tmp_path):
    values = np.full((H, W, 1), 257 * 80)
    values[2, 3] = 257 * 80 + 1  # the same 8-bit grey
    chunks = [(b"tRNS", struct.pack(">H", 257 * 80 + 1))]
    got = read(write_png(tmp_path / "a.png", W, H, 16, 0, sixteen_bit_rows(values), chunks))
    assert got[2, 3].tolist() == [255] * 3
    got[2, 3] = 80
    assert (got == 80).all()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_grey_of_few_bits_with_a_transparent_value(bits, tmp_path):
    values = np.random.RandomState(0).randint(0, 2**bits, (H, W))
    key = int(values[2, 3])
    assert 0 < key < 2**bits
    places = values.reshape(H, -1, 8 // bits) << np.arange(8 - bits, -1, -bits)
    rows = b"".join(b"\0" + row.tobytes() for row in places.sum(-1).astype(np.uint8))
    path = write_png(tmp_path / "a.png", W, H, bits, 0, rows, [(b"tRNS", struct.pack(">H", key))])
    is_clear = values == key
    assert np.array_equal(read(path)[..., 0], np.where(is_clear, 255, values * 255 // (2**bits - 1)))
    assert np.array_equal(read_alpha(source_of(path)), np.where(is_clear, 0.0, 255.0))


def test_thirty_two_bits_are_refused(tmp_path):
    for name, dtype in (("a.tif", np.int32), ("b.tif", np.float32)):
        Image.fromarray(np.full((H, W), 2, dtype)).save(tmp_path / name)
        with pytest.raises(UserError, match="no agreed range"):
            read_picture(tmp_path / name)


def test_palette(tmp_path, smooth):
    picture = Image.fromarray(smooth).quantize(32)
    picture.save(tmp_path / "a.png")
    assert np.array_equal(read(tmp_path / "a.png"), np.asarray(picture.convert("RGB")))


def test_palette_with_transparency_is_laid_over_white(tmp_path):
    indices = np.zeros((H, W), np.uint8)
    indices[:, W // 2 :] = 1
    picture = Image.fromarray(indices).convert("P")
    picture.putpalette([200, 0, 0, 0, 0, 200])
    picture.save(tmp_path / "a.png", transparency=bytes([255, 51]))  # the second entry at 20 %
    got = read(tmp_path / "a.png")
    assert got[0, 0].tolist() == [200, 0, 0]
    assert np.abs(got[0, -1] - [204, 204, 244]).max() <= 1


@pytest.mark.parametrize("ending", ["png", "webp", "tif"])
def test_alpha_is_laid_over_white(tmp_path, rgb, ending):
    alpha = np.random.RandomState(2).randint(0, 256, (H, W, 1)).astype(np.uint8)
    options = {"lossless": True, "exact": True} if ending == "webp" else {}
    Image.fromarray(np.concatenate([rgb, alpha], -1)).save(tmp_path / f"a.{ending}", **options)
    a = alpha / 255
    assert np.abs(read(tmp_path / f"a.{ending}") - (rgb * a + 255 * (1 - a))).max() <= 1


def test_grey_alpha_is_laid_over_white(tmp_path):
    Image.merge("LA", [Image.new("L", (W, H), 100), Image.new("L", (W, H), 51)]).save(tmp_path / "a.png")
    assert np.abs(read(tmp_path / "a.png") - 224).max() <= 1


def test_cmyk_jpeg(tmp_path):
    Image.new("CMYK", (W, H), (255, 0, 0, 0)).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read(tmp_path / "a.jpg") - [0, 255, 255]).max() < 8


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "tif"])
def test_first_frame_of_an_animation(tmp_path, ending):
    frames = [Image.new("RGB", (W, H), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if ending == "webp" else {}
    frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:], **options)
    assert (read(tmp_path / f"a.{ending}") == [255, 0, 0]).all()


# What a viewer has to do with the stored pixels, from the EXIF standard: 6 is "row 0 is the right-hand side".
UPRIGHT = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.transpose(1, 0, 2),
           6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).transpose(1, 0, 2), 8: np.rot90}  # fmt: skip


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tif"])
def test_exif_orientation(tmp_path, smooth, ending, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{ending}"
    Image.fromarray(smooth).save(path, exif=exif, **({"lossless": True} if ending == "webp" else {}))
    upright = UPRIGHT[orientation](smooth)
    assert read_size(path) == upright.shape[:2]
    assert np.abs(read(path) - upright).max() < (20 if ending == "jpg" else 1)


def test_orientation_after_the_pixels_of_a_png(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.png"
    Image.new("RGB", (W, H)).save(path)
    data = exif.tobytes().removeprefix(b"Exif\0\0")
    late = struct.pack(">I", len(data)) + b"eXIf" + data + struct.pack(">I", zlib.crc32(b"eXIf" + data))
    whole = path.read_bytes()
    path.write_bytes(whole[:-12] + late + whole[-12:])
    assert read_picture(path).size == (H, W)
    with pytest.raises(UserError, match="upright"):
        read_picture(path, size=(H, W))


def orientations():
    """Every chunk of a PNG that may say that a picture is to be turned by a quarter."""
    exif = Image.Exif()
    exif[0x0112] = 6
    tiff = exif.tobytes().removeprefix(b"Exif\0\0")
    raw = f"\nexif\n{len(tiff) + 6:8}\n{exif.tobytes().hex()}\n".encode()
    xmp = b'<rdf:Description tiff:Orientation="6"/>'
    return {
        "exif": (b"eXIf", tiff),
        "text": (b"tEXt", b"Raw profile type exif\0" + raw),
        "packed": (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw)),
        "xmp": (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
    }


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("kind", orientations())
def test_the_header_tells_the_size_of_a_turned_png(kind, is_late, tmp_path, smooth):
    path, chunk = tmp_path / "a.png", orientations()[kind]
    rows = b"".join(b"\0" + row.tobytes() for row in smooth)
    late = (b"tEXt", b"date:create\0today")
    if is_late:
        write_png(path, W, H, 8, 2, rows, behind=[late, chunk])
    else:
        write_png(path, W, H, 8, 2, rows, [chunk], behind=[late])
    assert read_size(path) == (W, H)
    check_picture(path, (W, H))
    assert np.array_equal(read(path, size=(W, H)), UPRIGHT[6](smooth))


# ---------------------------------------------------------------- what is refused


def test_missing(tmp_path):
    with pytest.raises(UserError, match="nowhere.png': no such file"):
        read_size(tmp_path / "nowhere.png")


@pytest.mark.parametrize("content", [b"", b"this is text, not a picture", b"\x89PNG\r\n\x1a\n", b"<html></html>"])
def test_not_a_picture(tmp_path, content):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    for check in (read_size, check_picture, read_picture):
        with pytest.raises(UserError, match=r"a\.png'") as error:
            check(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "bmp", "tif"])
def test_half_a_picture(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    noise = np.random.RandomState(0).randint(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=rf"a\.{ending}'"):
        read_picture(path)


def test_a_huge_declared_size_is_refused_from_the_header(tmp_path):
    for width, height in ((200_000, 200_000), (10_000, 10_000)):  # above Pillow's error, and above its mere warning
        path = write_png(tmp_path / "a.png", width, height, 8, 2)
        with pytest.raises(UserError, match=r"a\.png'.*pixels"):
            read_size(path)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 7)])
def test_too_small(tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="too few"):
        check_picture(tmp_path / "a.png", (H, W), "resize")


def test_the_header_check_does_not_decode(tmp_path):
    path = write_png(tmp_path / "a.png", W, H, 8, 2, rows=b"no pixels at all")
    assert read_size(path) == (H, W)
    check_picture(path, (H, W))
    with pytest.raises(UserError, match=r"a\.png'"):
        read_picture(path)


def test_a_pipe_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    Image.new("RGB", (W, H)).save(tmp_path / "b.png")
    assert [name for name, _ in find_pictures(tmp_path)] == ["b"]
    with pytest.raises(UserError, match="no such file"):
        read_size(tmp_path / "a.png")


# ---------------------------------------------------------------- sizes


def test_another_size_is_an_error_that_says_which_does(tmp_path, rgb):
    Image.fromarray(rgb).save(tmp_path / "a.png")
    check_picture(tmp_path / "a.png", (H, W))
    for check in (check_picture, read_picture):
        with pytest.raises(UserError, match=r"a\.png' is 16x12 .* 128x64 is needed.*--resize"):
            check(tmp_path / "a.png", (64, 128))


def test_unknown_resize_method(tmp_path, rgb):
    Image.fromarray(rgb).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="did you mean 'center_crop'"):
        check_picture(tmp_path / "a.png", (H, W), "centre_crop")


@pytest.mark.parametrize("method", ["center_crop", "resize", "error"])
def test_the_right_size_is_left_as_it_is(tmp_path, rgb, method):
    Image.fromarray(rgb).save(tmp_path / "a.png")
    assert np.array_equal(read(tmp_path / "a.png", size=(H, W), resize=method), rgb)


def test_center_crop_keeps_the_middle_and_the_shape(tmp_path):
    picture = np.zeros((40, 100, 3), np.uint8)
    picture[:, 30:70] = 255  # the middle 40 columns: all that a square crop leaves
    Image.fromarray(picture).save(tmp_path / "a.png")
    got = read(tmp_path / "a.png", size=(20, 20), resize="center_crop")
    assert got.shape == (20, 20, 3)
    assert (got[:, 1:-1] == 255).all(), "but for the edge, where the filter sees the black next to it"


def test_resize_stretches(tmp_path):
    picture = np.zeros((40, 100, 3), np.uint8)
    picture[:, 50:] = 255
    Image.fromarray(picture).save(tmp_path / "a.png")
    got = read(tmp_path / "a.png", size=(10, 20), resize="resize")
    assert got.shape == (10, 20, 3)
    assert (got[:, :8] == 0).all()
    assert (got[:, 12:] == 255).all()


def test_shrinking_is_antialiased(tmp_path):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "a.png")
    for method in ("center_crop", "resize"):
        assert np.abs(read(tmp_path / "a.png", size=(8, 8), resize=method)[2:-2, 2:-2] - 127.5).max() < 4
