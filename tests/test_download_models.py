"""scripts/download_models.sh against a local server that behaves well, badly, or not at all."""

import io
import os
import stat
import time
import zipfile

import pytest

from tests.download import LocalServer, download, files

CHECKPOINT = bytes(range(256)) * 800


def archive(*members):
    """Bytes of a zip file of (name or ZipInfo, content) members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in members:
            file.writestr(name, content)
    return buffer.getvalue()


GOOD = archive(("model.ckpt", CHECKPOINT), ("config.yaml", "model: {}"))


class Server(LocalServer):
    """Serves `content` for every path. Its attributes are how it behaves; `requests` lists what was asked for."""

    def __init__(self):
        super().__init__()
        self.content, self.status, self.type = GOOD, 200, "application/zip"
        self.ranges = True  # whether it can begin in the middle
        self.cut_after = []  # bytes after which each of the next answers breaks off
        self.stall = False  # instead of breaking off, it says nothing more
        self.requests = []

    def answer(self, request):
        asked = request.headers.get("Range")
        self.requests.append((request.path, asked))
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.ranges else 0
        if start >= len(self.content):
            request.send_error(416)
            return
        request.send_response(206 if start and self.status == 200 else self.status)
        request.send_header("Content-Type", self.type)
        request.send_header("Content-Length", str(len(self.content) - start))
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        request.end_headers()
        cut = self.cut_after.pop(0) if self.cut_after else len(self.content)
        request.wfile.write(self.content[start : start + cut])
        if self.stall and start + cut < len(self.content):
            request.wfile.flush()
            time.sleep(5)


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def run(server, tmp_path):
    """Run the script with the server and a models folder of the test's own; returns (status, messages)."""

    def run(*names, **environment):
        return download([*names], tmp_path, {**os.environ, "BASE_URL": server.url, **environment})

    return run


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("ffhq", "ldm/model.ckpt"),
        ("celeba", "ldm/celeba/model.ckpt"),
        ("lsun_churches", "ldm/lsun_churches/model.ckpt"),
        ("vq-f8", "first_stage_models/vq-f8/model.ckpt"),
    ],
)
def test_the_checkpoint_comes_to_its_place_and_nothing_else_stays(run, server, tmp_path, name, place):
    assert run(name)[0] == 0
    assert files(tmp_path) == {place: CHECKPOINT}
    assert server.requests == [(f"/{name}.zip", None)]


def test_several_names_and_what_is_there_is_not_fetched_again(run, server):
    assert run("kl-f8", "cin")[0] == 0
    status, messages = run("cin", "kl-f8")
    assert (status, len(server.requests)) == (0, 2)
    assert "there already" in messages


def test_a_broken_connection_is_taken_up_where_it_stopped(run, server, tmp_path):
    server.cut_after = [70_000, 30_000]
    assert run("ffhq")[0] == 0
    assert files(tmp_path) == {"ldm/model.ckpt": CHECKPOINT}
    assert [asked for _, asked in server.requests] == [None, "bytes=70000-", "bytes=100000-"]


def test_a_later_run_goes_on_where_an_interrupted_one_stopped(run, server, tmp_path):
    part = tmp_path / "models/.downloads/ffhq.zip.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(GOOD[:123_456])
    assert run("ffhq")[0] == 0
    assert files(tmp_path) == {"ldm/model.ckpt": CHECKPOINT}
    assert server.requests == [("/ffhq.zip", "bytes=123456-")]


def test_a_download_that_was_complete_is_only_unpacked(run, server, tmp_path):
    part = tmp_path / "models/.downloads/ffhq.zip.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(GOOD)
    assert run("ffhq")[0] == 0
    assert files(tmp_path) == {"ldm/model.ckpt": CHECKPOINT}


def test_a_part_that_is_not_of_this_archive_is_begun_again(run, server, tmp_path):
    part = tmp_path / "models/.downloads/ffhq.zip.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(GOOD + b"more than there is")
    assert run("ffhq")[0] == 0
    assert files(tmp_path) == {"ldm/model.ckpt": CHECKPOINT}


def test_a_server_that_cannot_continue_is_asked_from_the_start(run, server, tmp_path):
    server.ranges = False
    part = tmp_path / "models/.downloads/ffhq.zip.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(GOOD[:1000])
    assert run("ffhq")[0] == 0
    assert files(tmp_path) == {"ldm/model.ckpt": CHECKPOINT}


def test_a_server_that_falls_silent_ends_it_and_the_part_is_kept(run, server, tmp_path):
    server.stall, server.cut_after = True, [50_000, 0]
    status, messages = run("ffhq", STALL_SECONDS="1")
    assert status == 1
    assert "broke off" in messages
    assert files(tmp_path) == {".downloads/ffhq.zip.part": GOOD[:50_000]}


def test_a_web_page_is_recognised_and_an_earlier_part_survives_it(run, server, tmp_path):
    server.content, server.type = b"<!DOCTYPE html><html>We have moved</html>", "text/html; charset=utf-8"
    status, messages = run("ffhq")
    assert (status, files(tmp_path)) == (1, {})
    assert "web page" in messages
    assert "BASE_URL" in messages
    part = tmp_path / "models/.downloads/ffhq.zip.part"
    part.write_bytes(GOOD[:10])
    server.ranges = False
    assert run("ffhq")[0] == 1
    assert files(tmp_path) == {".downloads/ffhq.zip.part": GOOD[:10]}


def test_a_web_page_that_claims_to_be_an_archive_is_recognised(run, server, tmp_path):
    server.content = b"\n<html>Please log in</html>"
    status, messages = run("ffhq")
    assert (status, files(tmp_path)) == (1, {})
    assert "web page" in messages


@pytest.mark.parametrize("status", [404, 403])
def test_a_dead_link_is_said_clearly(run, server, tmp_path, status):
    server.status = status
    code, messages = run("vq-f4")
    assert (code, files(tmp_path)) == (1, {})
    assert f"answers {status}" in messages
    assert "links have been down" in messages


def test_a_server_that_is_not_there_is_said_clearly(run, server, tmp_path):
    server.close()
    status, messages = run("ffhq")
    assert (status, files(tmp_path)) == (1, {})
    assert "cannot reach" in messages


def link(name, target):
    member = zipfile.ZipInfo(name)
    member.create_system, member.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return member, target


def damaged(content):
    return content[:50_000] + bytes(reversed(content[50_000:50_100])) + content[50_100:]


def torn(method):
    """An archive whose member is compressed and cannot be unpacked."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        file.writestr("model.ckpt", CHECKPOINT)
        start, size = 30 + len("model.ckpt"), file.getinfo("model.ckpt").compress_size
    content = bytearray(buffer.getvalue())
    content[start + 20 : start + size] = b"\xff" * (size - 20)
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (archive(("../model.ckpt", b"x")), "leads out"),
        (archive(("model.ckpt", b"x"), ("a/../../evil", b"x")), "leads out"),
        (archive(("model.ckpt", b"x"), ("/etc/evil", b"x")), "leads out"),
        (archive(("model.ckpt", b"x"), ("..\\evil", b"x")), "leads out"),
        (archive(link("model.ckpt", "/etc/passwd")), "link"),
        (archive(("model.ckpt", b"x"), link("elsewhere", "..")), "link"),
        (archive(("readme", b"x")), "0 files named model.ckpt"),
        (archive(("a/model.ckpt", b"x"), ("b/model.ckpt", b"x")), "2 files named model.ckpt"),
        (damaged(GOOD), "checksum"),
        *(
            (torn(method), "refused: it is damaged")
            for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
        ),
        (GOOD[:-100], "not a zip"),
        (b"nothing of the kind", "not a zip"),
    ],
)
def test_a_bad_archive_is_thrown_away_and_nothing_of_it_is_written(run, server, tmp_path, content, why):
    server.content = content
    status, messages = run("ffhq")
    assert status == 1
    assert why in messages
    assert files(tmp_path) == {}
    assert not list(tmp_path.rglob("*evil*"))


def test_other_protocols_are_refused(run):
    status, messages = run("ffhq", BASE_URL="ftp://127.0.0.1/ldm")
    assert status == 1
    assert "cannot reach" in messages


def test_a_name_that_is_not_known_is_refused_before_anything_is_fetched(run, server):
    status, messages = run("ffhq", "imagenet")
    assert (status, server.requests) == (2, [])
    assert "lsun_churches" in messages


def test_without_a_name_and_with_help_the_names_are_listed(run):
    assert run()[0] == 2
    status, messages = run("--help")
    assert status == 0
    assert "vq-f8" in messages
    assert "set -e" not in messages
