"""Picture files and folders that are broken, odd, or hard to name."""

import csv
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from data.pictures import check_picture, read_picture
from ldm_inverse.runs.results import text_of
from sample_condition import main
from tests.runs import words
from tests.tiny import SIDE


def colours(seed=0):
    """Smooth colours, 8 bits, (SIDE, SIDE, 3)."""
    small = Image.fromarray(np.random.RandomState(seed).randint(0, 256, (4, 4, 3)).astype(np.uint8))
    return np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def png_that_declares(width, height):
    """A PNG of a few bytes whose header speaks of these sides."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def save(path, picture, **options):
    picture.save(path, **options)


REFUSED = {
    "empty file": (lambda path: path.write_bytes(b""), "an empty file"),
    "text": (lambda path: path.write_bytes(b"a picture, honestly"), "not a picture"),
    "web page": (lambda path: path.write_bytes(b"<!DOCTYPE html>"), "not a picture"),
    "declares a huge size": (lambda path: path.write_bytes(png_that_declares(60_000, 60_000)), "declares more than"),
    "declares no size": (lambda path: path.write_bytes(png_that_declares(0, 0)), "'"),
    "1x1": (lambda path: save(path, Image.new("RGB", (1, 1))), "1x1 pixels are too few"),
    "another size": (lambda path: save(path, Image.new("RGB", (45, 45))), "multiples of 4"),
    "32 bits": (lambda path: save(path, Image.new("F", (2, 2)), format="tiff"), "too few"),
    "vector graphics": (lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n"), "not a picture"),
    "link to nothing": (lambda path: path.symlink_to("nothing"), "no such file"),
    "link to itself": (lambda path: path.symlink_to(path), "no such file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_broken_picture_is_refused_by_name(name, refused, tmp_path):
    make, told = REFUSED[name]
    (tmp_path / "in").mkdir()
    make(tmp_path / "in" / "bad one.png")
    save(tmp_path / "in" / "good.png", Image.fromarray(colours()))
    err = refused("--data", str(tmp_path / "in"))
    assert told in err
    assert "bad one.png" in err
    assert "good.png" not in err


def test_all_broken_pictures_are_named_at_once(place, tmp_path, elsewhere, capsys):
    (tmp_path / "in").mkdir()
    for name, (make, _) in REFUSED.items():
        make(tmp_path / "in" / f"{name}.png")
    assert main(words(place, tmp_path / "out", "--data", str(tmp_path / "in"))) == 2
    err = capsys.readouterr().err
    assert sum(f"{name}.png" in err for name in REFUSED) == 10
    assert "and 1 more pictures" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif", "gif", "bmp"])
@pytest.mark.parametrize("part", [0.5, 0.95])
def test_half_a_picture_is_refused_though_its_header_is_sound(ending, part, refused, tmp_path):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / f"half.{ending}"
    noise = np.random.RandomState(0).randint(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
    save(path, Image.fromarray(noise))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    assert f"half.{ending}" in refused("--data", str(tmp_path / "in"))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize(
    ("tag", "value", "told"),
    [
        ("ImageLength", 16 * SIDE, "4 of its 64 strips or tiles are there"),
        ("BitsPerSample", 2048, "not a picture of a known format"),
    ],
)
def test_a_tiff_whose_header_asks_for_more_than_there_is_is_refused(kind, tag, value, told, refused, tmp_path):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "more.tif"
    tifffile.imwrite(path, np.zeros((SIDE, SIDE), kind), rowsperstrip=SIDE // 4)
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags[tag].overwrite(value)
    err = refused("--data", str(tmp_path / "in"))
    assert "more.tif" in err
    assert told in err


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif", "gif", "bmp"])
def test_what_a_program_has_appended_to_a_picture_does_no_harm(ending, tmp_path):
    path = tmp_path / f"more.{ending}"
    save(path, Image.fromarray(colours()))
    with path.open("ab") as file:
        file.write(b"made by a camera" * 10)
    check_picture(path)
    assert read_picture(path).size == (SIDE, SIDE)


def test_folders_without_pictures_are_refused(refused, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    (tmp_path / "in" / "up").symlink_to("..")
    (tmp_path / "in" / "self").symlink_to("self")
    assert "no pictures in this folder" in refused("--data", str(tmp_path / "in"))
    assert "no such file or folder" in refused("--data", str(tmp_path / "nowhere"))
    assert "no such file or folder" in refused("--data", str(tmp_path / "in" / "self"))
    assert "no such file or folder" in refused("--data", "a\0b")
    os.mkfifo(tmp_path / "pipe.png")
    assert "no such file or folder" in refused("--data", str(tmp_path / "pipe.png"))


def kinds():
    """Pictures of every kind by file name: how each is saved, and the colours that it should be read as."""
    rgb = colours()
    grey = np.repeat(rgb[..., :1], 3, -1)
    picture = Image.fromarray(rgb)
    bits = rgb[..., 0] > 127
    palette = picture.quantize(8)
    deep = rgb[..., 0].astype(np.uint16) * 257
    rotated = Image.Exif()
    rotated[0x0112] = 6  # to be turned a quarter clockwise
    clear = Image.fromarray(np.dstack([rgb, np.where(bits, 255, 0).astype(np.uint8)]))
    indices = np.asarray(palette)
    over_white = np.where((indices == 0)[..., None], 255, np.asarray(palette.convert("RGB")))
    frames = [Image.fromarray(colours(seed)) for seed in (1, 2)]
    return {
        "cmyk.tif": (lambda p: picture.convert("CMYK").save(p), rgb),
        "bits.png": (lambda p: Image.fromarray(bits).save(p), np.repeat(bits[..., None], 3, -1) * 255),
        "deep.png": (lambda p: Image.fromarray(deep).save(p), grey),
        "grey.png": (lambda p: Image.fromarray(rgb[..., 0]).save(p), grey),
        "palette.png": (lambda p: palette.save(p, transparency=0), over_white),
        "alpha.png": (lambda p: clear.save(p), np.where(bits[..., None], rgb, 255)),
        "turned.png": (lambda p: picture.save(p, exif=rotated), np.rot90(rgb, -1)),
        "moving.png": (lambda p: picture.save(p, save_all=True, append_images=frames), rgb),
    }


@pytest.fixture(scope="module")
def restored(place, tmp_path_factory):
    """The folder of a run on `kinds` and on names that are hard to keep."""
    folder = tmp_path_factory.mktemp("kinds")
    (folder / "in").mkdir()
    for name, (write, _) in kinds().items():
        write(folder / "in" / name)
    for name in HARD_NAMES:
        save(folder / "in" / f"{name}.png", Image.fromarray(colours()))
    assert main(words(place, folder / "out", "--data", str(folder / "in"), steps=1)) == 0
    return folder / "out"


# File name (without its ending) and the name of what comes of it.
HARD_NAMES = {
    "two  words": "two  words",
    "-rf": "-rf",
    "--help": "--help",
    "line\nbreak": "line_break",
    "\x1b[2Jescape": "_[2Jescape",
    "né 猫 🙂": "né 猫 🙂",
    "a,b;'\"": "a,b;'\"",
    "$(touch sentinel)": "$(touch sentinel)",
    "%s{0}": "%s{0}",
    "back\\slash": "back\\slash",
}


@pytest.mark.parametrize("name", kinds())
def test_pictures_of_every_kind_are_read_as_they_look(name, restored):
    truth = np.asarray(Image.open(restored / "input" / f"{Path(name).stem}.png"))
    assert np.abs(truth.astype(int) - kinds()[name][1]).max() <= 1


def test_hard_names_are_kept_and_kept_safe(restored):
    expected = set(HARD_NAMES.values()) | {Path(name).stem for name in kinds()}
    for folder in ("input", "label", "recon"):
        assert {path.stem for path in (restored / folder).glob("*.png")} >= expected
    rows = list(csv.DictReader((restored / "metrics.csv").open(newline="")))
    assert {text_of(row["image"]) for row in rows} >= expected
    outside = [path.name for path in restored.parent.iterdir()]
    assert sorted(outside) == ["in", "out"]


def test_the_plan_shows_names_on_one_line_each(place, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for name in ("line\nbreak", "\x1b[2J"):
        save(tmp_path / "in" / f"{name}.png", Image.fromarray(colours()))
    assert main(words(place, tmp_path / "out", "--data", str(tmp_path / "in"), "--dry_run")) == 0
    out = capsys.readouterr().out
    assert out.replace("\n", "").isprintable()
    assert "2 pictures:\n  " in out
    assert "line\\nbreak.png" in out
