"""Files that appear complete or not at all."""

import pytest

from util.errors import UserError
from util.files import whole_file, write_whole


def test_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "sub" / "file.txt"
    write_whole(path, b"first")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(UserError, match="No space left"):
        write_whole(path, b"second")
    assert path.read_bytes() == b"first"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]  # nothing half-written is left


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_whole(tmp_path / "file" / "below.txt", b"")


def test_an_interruption_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "file.txt"
    write_whole(path, b"first")

    def interrupted():
        with whole_file(path) as beside:
            beside.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"first"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]
