"""Which files count as pictures, in which order, and what they are called."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.picture_names import MAX_NAME_BYTES, picture_names
from data.pictures import read_size
from data.sources import Source, find_pictures
from util.errors import UserError


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def names_in(root):
    return [name for name, _ in find_pictures(root)]


def test_sorted_with_subfolders_in_the_name(tmp_path):
    touch(tmp_path, "b.png", "a.jpg", "sub/c.webp", "sub/deep/a.bmp", "notes.txt", "README.md", "z.TIF")
    found = find_pictures(tmp_path)
    assert [name for name, _ in found] == ["a", "b", "sub_c", "sub_deep_a", "z"]
    assert found[3].source.path == tmp_path / "sub" / "deep" / "a.bmp"


def test_clashing_stems_keep_their_extension(tmp_path):
    touch(tmp_path, "a.png", "a.jpg", "b.png", "sub/a.png")
    assert names_in(tmp_path) == ["a_jpg", "a_png", "b", "sub_a"]


def test_a_name_does_not_depend_on_the_order_of_files():
    paths = [Path(p) for p in ("a.png", "a.jpg", "a_jpg.png", "s/a.png", "s_a.png", "c.d.png")]
    forward = dict(zip(paths, picture_names(paths), strict=True))
    backward = dict(zip(paths[::-1], picture_names(paths[::-1]), strict=True))
    assert forward == backward
    assert len(set(forward.values())) == len(paths)
    assert forward[Path("a.png")] == "a_png"
    assert forward[Path("c.d.png")] == "c.d"


def test_the_name_that_a_picture_would_have_alone(tmp_path):
    paths = ["c.png", "sub/c.png", "sub/deep/d.webp", f"{150 * 'x'}/{100 * 'y'}.png"]
    for path in paths:
        touch(tmp_path / "alone" / path[:20], path)
        touch(tmp_path / "all", path, str(Path(path).with_suffix(".gif")))
        (only,) = find_pictures(tmp_path / "alone" / path[:20])
        both = [found for found in find_pictures(tmp_path / "all") if found.source.path == tmp_path / "all" / path]
        assert only.name == both[0].source.stream_name
        assert only.name == only.source.stream_name
    assert {found.name for found in find_pictures(tmp_path / "all")} >= {
        "c_png",
        "c_gif",
        "sub_c_png",
        "sub_deep_d_webp",
    }
    (tmp_path / "list.txt").write_text("all/c.png\nall/c.gif\n../" + tmp_path.name + "/all/sub/c.png")
    listed = find_pictures(tmp_path / "list.txt")
    assert [found.name for found in listed[:2]] == ["all_c_png", "all_c_gif"]
    assert [found.source.stream_name for found in listed[:2]] == ["all_c", "all_c"]
    assert listed[2].source.stream_name == listed[2].name


PART = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=90).filter(
    lambda part: part not in (".", "..")
)


@settings(deadline=None, derandomize=True)
@given(st.lists(st.lists(PART, min_size=1, max_size=4).map("/".join), min_size=1, max_size=8, unique=True))
def test_names_are_one_each_and_fit_a_file_system(paths):
    paths = list({Path(path + ".png") for path in paths})
    names = picture_names(paths)
    assert len(set(names)) == len(paths)
    for name in names:
        assert name
        assert len(name.encode()) <= MAX_NAME_BYTES
        assert not set("/\0\n\r") & set(name)
        assert not name.startswith(".")


def test_odd_names(tmp_path):
    touch(tmp_path, "-rf.png", "two words.png", "né 猫 🙂.png", "line\nbreak.png")
    os.close(os.open(os.fsencode(tmp_path) + b"/bad\xff.png", os.O_CREAT | os.O_WRONLY))
    assert sorted(names_in(tmp_path)) == sorted(["-rf", "two words", "né 猫 🙂", "line_break", "bad_"])


def test_no_name_is_hidden_or_leads_out_of_its_folder(tmp_path):
    touch(tmp_path, "..png", "...png", "..a.png", "sub/..png", ".hidden.png", "._a.png", "=1+1.png", "-x.png")
    assert sorted(names_in(tmp_path)) == sorted(["_", "__", "__a", "sub_.", "=1+1", "-x"])
    ((name, _),) = find_pictures(tmp_path / "..png")
    assert name == "_"


def test_an_error_stays_on_one_line_whatever_the_name(tmp_path):
    touch(tmp_path, "line\nbreak.png")
    with pytest.raises(UserError) as error:
        read_size(tmp_path / "line\nbreak.png")
    assert "\n" not in str(error.value)


def test_hidden_files_are_left_out(tmp_path):
    touch(tmp_path, "a.png", "._a.png", ".cache/b.png")
    assert names_in(tmp_path) == ["a"]


def test_loops_of_links_do_not_hang(tmp_path):
    touch(tmp_path, "a/p.png", "b/q.png")
    for link, target in (("a/loop", "."), ("a/to_b", "../b"), ("b/to_a", "../a"), ("b/up", "..")):
        (tmp_path / link).symlink_to(target, target_is_directory=True)
    (tmp_path / "self.png").symlink_to("self.png")
    found = find_pictures(tmp_path)
    real = sorted(source.path.name for _, source in found)
    assert real == ["p.png", "q.png", "self.png"], "each file once"
    with pytest.raises(UserError, match="self.png"):
        read_size(tmp_path / "self.png")
    with pytest.raises(UserError, match="self.png"):
        find_pictures(tmp_path / "self.png")


def test_a_link_to_a_folder_is_followed(tmp_path):
    touch(tmp_path, "elsewhere/p.png")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "set").symlink_to(tmp_path / "elsewhere")
    assert names_in(tmp_path / "here") == ["set_p"]


def test_a_single_file(tmp_path):
    touch(tmp_path, "sub/a.png", "sub/b.png")
    path = tmp_path / "sub" / "a.png"
    assert find_pictures(path) == [("a", Source(path, Path("a.png")))]


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match=r"nowhere'.*no such"):
        find_pictures(tmp_path / "nowhere")
    touch(tmp_path, "notes.txt")
    with pytest.raises(UserError, match=r"no pictures.*\.png"):
        find_pictures(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_closed_subfolder_is_named(tmp_path):
    touch(tmp_path, "a.png", "closed/b.png")
    (tmp_path / "closed").chmod(0)
    try:
        with pytest.raises(UserError, match="closed"):
            find_pictures(tmp_path)
    finally:
        (tmp_path / "closed").chmod(0o700)


def listed(folder, *lines):
    (folder / "list.txt").write_text("\n".join(lines))
    return find_pictures(folder / "list.txt")


def test_a_list_names_pictures_relative_to_its_folder_in_its_order(tmp_path):
    touch(tmp_path, "in/z.png", "in/sub/a.png", "other.jpg")
    (tmp_path / "in" / "list.txt").write_bytes(b"\xef\xbb\xbfz.png\r\n\r\nsub/a.png\n../other.jpg\n")
    found = find_pictures(tmp_path / "in" / "list.txt")
    assert [name for name, _ in found] == ["z", "sub_a", "other"]
    assert [source.path.resolve() for _, source in found] == [
        tmp_path / p for p in ("in/z.png", "in/sub/a.png", "other.jpg")
    ]


def test_a_lists_names_are_those_of_the_folder_and_kept_apart(tmp_path):
    touch(tmp_path, "a.png", "a.jpg", "sub/a.png")
    assert [name for name, _ in listed(tmp_path, "sub/a.png", "a.png", "a.jpg")] == ["sub_a", "a_png", "a_jpg"]
    absolute = listed(tmp_path, str(tmp_path / "a.png"))[0]
    assert absolute.source.path == tmp_path / "a.png"
    assert absolute.name == "a"
    with pytest.raises(UserError, match=r"'a.png' is listed twice"):
        listed(tmp_path, "a.png", str(tmp_path / "a.png"))
    first, second = (name for name, _ in listed(tmp_path, "a.png", "../a.png"))
    assert first.startswith("a_png_")
    assert second.startswith("a_png_")
    assert first != second


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "no pictures in this list"),
        (b"\n \n", "no pictures in this list"),
        (b"a.png\nb.png\na.png", "line 3: 'a.png' is listed already, in line 1"),
        (b"a.png\n..", "line 2: '..' is not the path of a file"),
        (b"/", "not the path of a file"),
        (b"\xff\xfe", "not UTF-8"),
        (b"a\0b", "not a list of pictures"),
    ],
)
def test_a_list_that_is_none_is_refused(content, told, tmp_path):
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(UserError, match=told) as caught:
        find_pictures(tmp_path / "list.txt")
    assert "list.txt" in str(caught.value)
