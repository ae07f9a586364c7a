"""Claims: one holder at a time, and none that outlives its process."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from util import claims
from util.claims import Claims
from util.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys, time
from pathlib import Path
from util.claims import Claims
with Claims(Path(sys.argv[1])).take("a") as folder:
    (folder / ".half.part").write_text("")
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds `a` and has a half-written file."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "claims")], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


def is_free(root, name="a", **kwargs):
    with Claims(root, **kwargs).take(name) as folder:
        return folder is not None


def test_one_holder_at_a_time(tmp_path):
    root = tmp_path / "claims"
    with Claims(root).take("a") as folder:
        assert folder == root / "a"
        assert not is_free(root)
        assert is_free(root, "b")
    assert is_free(root)
    assert list(tmp_path.iterdir()) == []  # nothing is left


def test_a_claim_ends_with_an_exception(tmp_path):
    with pytest.raises(KeyboardInterrupt), Claims(tmp_path / "claims").take("a"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_living_process_keeps_its_claim_and_a_dead_one_loses_it_at_once(tmp_path, holder):
    root = tmp_path / "claims"
    assert not is_free(root)
    holder.kill()
    holder.wait()
    with Claims(root).take("a") as folder:
        assert [path.name for path in folder.iterdir()] == ["claim"]  # the half-written file is gone


def test_a_pid_that_came_again_is_not_the_holder(tmp_path):
    root = tmp_path / "claims"
    with Claims(root).take("a"):
        who = json.loads((root / "a" / "claim").read_text())
    (root / "a").mkdir(parents=True)
    (root / "a" / "claim").write_text(json.dumps({**who, "started": "1"}))
    assert who["pid"] == os.getpid()
    assert is_free(root)


@pytest.mark.parametrize("content", [json.dumps({"machine": "another", "pid": 1, "started": "1"}), "", "{"])
def test_elsewhere_a_claim_expires_when_it_is_not_touched(content, tmp_path, monkeypatch):
    root = tmp_path / "claims"
    (root / "a").mkdir(parents=True)
    claim = root / "a" / "claim"
    claim.write_text(content)
    os.utime(claim, (0, 0))  # the clock of another machine tells nothing
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    looker = Claims(root, expiry=4)

    def free():
        with looker.take("a") as folder:
            return folder is not None

    assert not free()
    now[0] += 3
    assert not free()
    os.utime(claim)
    now[0] += 3
    assert not free()
    now[0] += 5
    assert free()


def test_a_holder_touches_its_claims(tmp_path):
    with Claims(tmp_path, expiry=0.2).take("a") as folder:
        os.utime(folder / "claim", (0, 0))
        deadline = time.monotonic() + 20
        while (folder / "claim").stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert (folder / "claim").stat().st_mtime > 0


def test_who_was_taken_for_dead_leaves_the_new_holders_claim(tmp_path):
    with Claims(tmp_path / "claims").take("a") as folder:
        (folder / "claim").write_text("another's")
    assert (tmp_path / "claims" / "a" / "claim").read_text() == "another's"


def test_waiting_ends_when_the_holder_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "POLL", 0.01)
    first = Claims(tmp_path / "claims")
    order = []

    def second():
        with Claims(tmp_path / "claims").wait("a"):
            order.append("second")

    with first.take("a"):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.05)
        order.append("first")
    thread.join(20)
    assert order == ["first", "second"]


def test_sweeping_removes_what_the_dead_left(tmp_path, holder):
    root = tmp_path / "claims"
    Claims(root).sweep()
    assert (root / "a" / "claim").exists()
    holder.kill()
    holder.wait()
    (root / "empty" / "folder").mkdir(parents=True)  # its holder was stopped while it let go
    with Claims(root).take("claim"):  # a picture may be called so
        Claims(root).sweep()
        assert [path.name for path in root.iterdir()] == ["claim"]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"), Claims(tmp_path / "file").take("a"):
        pass
