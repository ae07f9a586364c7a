"""Frames, lists and archives: which pictures there are in them, and what they are called."""

import logging
import os
import warnings
import zipfile

import numpy as np
import pytest
from PIL import Image

from data.dataloader import get_dataset
from data.measured import MeasuredFolder
from data.pictures import check_picture, read_pixels
from data.sources import find_pictures
from util.errors import UserError

SIDE = 16
COLOURS = ("red", "blue", "lime")


def picture(colour="red"):
    return Image.new("RGB", (SIDE, SIDE), colour)


def write_frames(path):
    options = {"lossless": True} if path.suffix == ".webp" else {}
    picture().save(path, save_all=True, append_images=[picture(colour) for colour in COLOURS[1:]], **options)


def colour_of(source):
    pixels = read_pixels(source)
    assert (pixels == pixels[0, 0]).all()
    return tuple(int(value) for value in pixels[0, 0])


RGB = [(255, 0, 0), (0, 0, 255), (0, 255, 0)]


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "tif"])
def test_each_frame_is_a_picture(ending, tmp_path):
    write_frames(tmp_path / f"a.{ending}")
    picture("white").save(tmp_path / "b.png")
    found = find_pictures(tmp_path, frames="all")
    assert [name for name, _ in found] == ["a_000", "a_001", "a_002", "b"]
    assert [colour_of(source) for _, source in found[:3]] == RGB
    assert [source.stream_name for _, source in found] == [name for name, _ in found]
    assert str(found[1].source).endswith(f"a.{ending}, frame 1")


def test_the_first_frame_is_taken_and_that_is_said(tmp_path):
    write_frames(tmp_path / "a.gif")
    ((name, source),) = find_pictures(tmp_path)
    said = []
    assert (read_pixels(source, say=lambda *words: said.append(words))[0, 0] == RGB[0]).all()
    assert name == "a"
    ((level, text),) = said
    assert level == logging.INFO
    assert "the first of its 3 frames" in text
    assert "--frames all" in text


def test_names_of_frames_are_kept_apart_from_files(tmp_path):
    write_frames(tmp_path / "a.gif")
    picture().save(tmp_path / "a_001.png")
    names = [name for name, _ in find_pictures(tmp_path, frames="all")]
    assert sorted(names) == ["a_000", "a_001_gif", "a_001_png", "a_002"]


def test_a_frame_and_a_file_that_is_called_like_it_have_two_names(tmp_path):
    write_frames(tmp_path / "a.gif")
    alone = [name for name, _ in find_pictures(tmp_path, frames="all")]
    picture().save(tmp_path / "a_001.gif")
    found = find_pictures(tmp_path, frames="all")
    names = [name for name, _ in found]
    assert len(set(names)) == 4
    assert set(names) >= {alone[0], alone[2]}
    assert names == [name for name, _ in find_pictures(tmp_path, frames="all")]
    dataset = get_dataset("ffhq", root=tmp_path, frames="all")
    assert {str(dataset.source(name)) for name, _ in dataset.pictures} == {str(source) for _, source in found}


def test_two_pictures_that_would_have_one_name_are_refused(tmp_path):
    write_frames(tmp_path / "a.gif")
    picture().save(tmp_path / "a_001.gif")
    named = [name for name, source in find_pictures(tmp_path, frames="all") if "a_001" in name and not source.frame]
    picture().save(tmp_path / f"{named[0]}.png")
    with pytest.raises(UserError, match=rf"would both have results called '{named[0]}': rename one of them"):
        find_pictures(tmp_path, frames="all")


def test_frames_of_a_data_set_and_of_measurements(tmp_path):
    write_frames(tmp_path / "a.tif")
    dataset = get_dataset("ffhq", root=tmp_path, frames="all")
    assert [item.name for item in dataset] == ["a_000", "a_001", "a_002"]
    assert dataset.picture("a_002").image[:, 0, 0].tolist() == [-1, 1, -1]
    measured = MeasuredFolder(tmp_path, frames="all")
    assert measured.tensors("a_001")["y"][0, :, 0, 0].tolist() == [-1, -1, 1]


def test_pages_of_deep_tiffs(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    pages = np.arange(3 * SIDE * SIDE * 3, dtype=np.uint16).reshape(3, SIDE, SIDE, 3) * 28
    tifffile.imwrite(tmp_path / "a.tif", pages, photometric="rgb")
    found = find_pictures(tmp_path, frames="all")
    for page, (_, source) in zip(pages, found, strict=True):
        assert np.abs(read_pixels(source) - (page / 32767.5 - 1)).max() < 1e-9


@pytest.mark.parametrize("ending", ["tif", "gif"])
def test_the_frames_of_a_file_are_gone_through_once_to_be_checked(ending, tmp_path, monkeypatch):
    frames = [Image.new("L", (SIDE, SIDE), level) for level in range(0, 240, 5)]
    frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:])
    dataset = get_dataset("ffhq", root=tmp_path, frames="all")
    opens, image_open = [], Image.open
    monkeypatch.setattr(Image, "open", lambda *args, **more: opens.append(1) or image_open(*args, **more))
    dataset.check(lambda *_: None)
    assert len(opens) == 3  # for the first frame, which is read on its own, and for all others
    frames[0].resize((2 * SIDE, SIDE)).save(
        tmp_path / f"a.{ending}", save_all=True, append_images=[frame.resize((2 * SIDE, SIDE)) for frame in frames[1:]]
    )
    assert dataset.size_of("a_047") == (SIDE, 2 * SIDE)


def test_a_page_that_is_not_there_is_told_and_the_others_are_read(tmp_path):
    write_frames(tmp_path / "a.tif")
    found = find_pictures(tmp_path, frames="all")
    content = (tmp_path / "a.tif").read_bytes()
    picture().save(tmp_path / "a.tif", save_all=True, append_images=[picture()])
    check_picture(found[1].source)
    with pytest.raises(UserError, match=r"a\.tif'"):
        check_picture(found[2].source)
    (tmp_path / "a.tif").write_bytes(content)
    check_picture(found[2].source)


def test_a_broken_file_with_frames_is_left_for_the_check(tmp_path):
    (tmp_path / "a.gif").write_bytes(b"GIF89a")
    ((name, source),) = find_pictures(tmp_path, frames="all")
    assert name == "a"
    with pytest.raises(UserError, match=r"a\.gif'"):
        check_picture(source)


@pytest.mark.parametrize("ending", ["mp4", "MOV", "webm"])
def test_a_video_is_refused_with_what_to_do(ending, tmp_path):
    (tmp_path / f"a.{ending}").write_bytes(b"\0\0\0\x20ftypisom")
    with pytest.raises(UserError, match="video.*ffmpeg") as caught:
        find_pictures(tmp_path / f"a.{ending}")
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- lists


@pytest.fixture
def listed(tmp_path):
    """Read a list that lies beside a folder with three pictures."""
    (tmp_path / "set" / "sub").mkdir(parents=True)
    for name in ("x.png", "y y.png", "sub/z 1.png"):
        picture().save(tmp_path / "set" / name)

    def listed(*lines, data_root=tmp_path / "set"):
        (tmp_path / "list.txt").write_text("\n".join(lines))
        return find_pictures(tmp_path / "list.txt", data_root=data_root)

    return listed


@pytest.mark.parametrize(
    ("lines", "labels"),
    [
        (["# three", "", "x.png", "y y.png", "  # and one more", "sub/z 1.png"], [None] * 3),
        (["x.png (480,480,3)", "y y.png (480,480,3)", "sub/z 1.png (128, 128, 3)"], [None] * 3),
        (["x.png 65", "y y.png 970", "sub/z 1.png 0"], [65, 970, 0]),
        (["x.png\t65", "y y.png,970", "sub/z 1.png ; 0"], [65, 970, 0]),
        (["x.png 65 1", "y y.png n02123", "sub/z 1.png -1"], [None] * 3),
    ],
)
def test_lists_with_comments_and_columns(lines, labels, listed):
    found = listed(*lines)
    assert [name for name, _ in found] == ["x", "y y", "sub_z 1"]
    assert [source.label for _, source in found] == labels
    for _, source in found:
        check_picture(source)


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("path", ["caf\u00e9.png", "cafe\u0301.png"])
def test_lists_of_other_systems(line_end, path, tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("x.png", "sub/y.png", path):
        picture().save(tmp_path / name)
    for listed_as in ("caf\u00e9.png", "cafe\u0301.png"):
        lines = ["\ufeffx.png 1", "  sub\\y.png 2", f"{listed_as}\t3", ""]
        (tmp_path / "list.txt").write_bytes(line_end.join(lines).encode())
        found = find_pictures(tmp_path / "list.txt")
        assert [source.label for _, source in found] == [1, 2, 3]
        for _, source in found:
            check_picture(source)


def test_a_name_that_looks_like_columns_is_a_name_where_it_is_there(listed, tmp_path):
    picture().save(tmp_path / "set" / "x.png 65.png")
    assert [(name, source.label) for name, source in listed("x.png 65.png", "x.png 65")] == [
        ("x.png 65", None),
        ("x", 65),
    ]


def test_the_lists_own_folder_is_where_paths_begin(listed):
    assert [name for name, _ in listed("set/x.png", data_root=None)] == ["set_x"]


def test_a_picture_that_is_not_there_is_named_without_its_columns(listed):
    (_, source), _ = listed("absent one.png 7", "x.png 8")
    assert source.label == 7
    with pytest.raises(UserError, match=r"absent one\.png': no such file"):
        check_picture(source)


def test_labels_reach_the_data_set(listed, tmp_path):
    listed("x.png 65", "y y.png 970")
    dataset = get_dataset("ffhq", root=tmp_path / "list.txt", data_root=tmp_path / "set")
    assert [item.label for item in dataset] == [65, 970]
    assert dataset.label("y y") == 970


def test_data_root_is_for_lists_and_is_a_folder(listed, tmp_path):
    with pytest.raises(UserError, match=r"data_root.*no \.txt file"):
        find_pictures(tmp_path / "set", data_root=tmp_path)
    with pytest.raises(UserError, match="data_root.*it is no folder"):
        listed("x.png", data_root=tmp_path / "nowhere")


# ---------------------------------------------------------------- archives


@pytest.fixture
def archive(tmp_path):
    picture().save(tmp_path / "a.png")
    write_frames(tmp_path / "b.gif")
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for member in ("z/a.png", "a.png", "../up.png", "__MACOSX/a.png", ".hidden/a.png", "z/._a.png"):
            archive.write(tmp_path / "a.png", member)
        archive.write(tmp_path / "b.gif", "b.gif")
        archive.writestr("notes.txt", "not one")
    return tmp_path / "set.zip"


def test_an_archive_is_as_its_folder_would_be(archive):
    found = find_pictures(archive, frames="all")
    assert [name for name, _ in found] == ["up", "a", "b_000", "b_001", "b_002", "z_a"]
    assert [colour_of(source) for _, source in found] == [RGB[0], RGB[0], *RGB, RGB[0]]
    assert str(found[1].source) == f"{archive}:a.png"
    dataset = get_dataset("ffhq", root=archive)
    dataset.check()
    assert dataset.size_of("z_a") == (SIDE, SIDE)
    assert dataset[0].image.shape == (3, SIDE, SIDE)


def test_an_archive_that_is_read_in_another_process_is_opened_there(archive):
    ((_, source), *_) = find_pictures(archive)
    colour_of(source)
    child = os.fork()
    if child == 0:
        os._exit(0 if colour_of(source) == RGB[0] else 1)
    assert colour_of(source) == RGB[0]
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("other", ["a.png", "./a.png"])
def test_an_archive_with_a_name_twice_is_refused(other, archive, tmp_path):
    with zipfile.ZipFile(archive, "a") as open_archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        open_archive.writestr(other, b"another")
    with pytest.raises(UserError, match="a.png' is in this archive twice"):
        find_pictures(archive)


def test_broken_archives_are_refused_in_a_line(archive, tmp_path):
    (tmp_path / "text.zip").write_text("an archive, honestly")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as empty:
        empty.writestr("notes.txt", "no picture")
    for name, told in (("text", "cannot read this archive"), ("empty", "no pictures in this archive")):
        with pytest.raises(UserError, match=rf"{name}\.zip'.*{told}"):
            find_pictures(tmp_path / f"{name}.zip")
    content = bytearray(archive.read_bytes())
    content[60] ^= 255  # within the first member
    (tmp_path / "torn.zip").write_bytes(content)
    sources = {str(source): source for _, source in find_pictures(tmp_path / "torn.zip")}
    with pytest.raises(UserError, match=r"torn\.zip.*z/a\.png.*cannot be read"):
        check_picture(sources[f"{tmp_path / 'torn.zip'}:z/a.png"])


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compressed_member_that_cannot_be_unpacked_is_refused_in_a_line(method, tmp_path):
    picture = np.random.RandomState(0).bytes(500)
    with zipfile.ZipFile(tmp_path / "set.zip", "w", method) as archive:
        archive.writestr("a.png", picture)
        size = archive.getinfo("a.png").compress_size
    content = bytearray((tmp_path / "set.zip").read_bytes())
    start = 30 + len("a.png")
    content[start + 20 : start + size] = b"\xff" * (size - 20)
    (tmp_path / "set.zip").write_bytes(content)
    with pytest.raises(UserError, match=r"set\.zip.*a\.png.*cannot be read"):
        check_picture(find_pictures(tmp_path / "set.zip")[0].source)


def test_a_member_that_declares_too_much_is_not_unpacked(archive, monkeypatch):
    monkeypatch.setattr("data.sources.MAX_BYTES", 10)
    with pytest.raises(UserError, match="larger than a picture may be"):
        check_picture(find_pictures(archive)[0].source)


def test_arrays_in_an_archive_are_to_be_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY")
    with pytest.raises(UserError, match="unpack it"):
        MeasuredFolder(tmp_path / "set.zip").tensors("a")
