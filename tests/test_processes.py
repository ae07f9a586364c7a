"""Several processes at one run: job arrays, and torch's own launcher. The folder is the same whatever the split."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sample_condition import main
from tests.runs import snapshot, words
from tests.tiny import write_pictures
from util.processes import share

ROOT = Path(__file__).resolve().parents[1]
CURVES = True  # runs in processes of their own draw them
ONE_THREAD = ["--threads", "1", "--quiet"]


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory):
    """The folder that one process leaves."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert main(words(place, out, *ONE_THREAD)) == 0
    return snapshot(out)


def launch(place, out, processes, *launcher):
    """Start the command in so many processes by torch's launcher."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={processes}",
        *launcher,
    ]
    command += ["sample_condition.py", *words(place, out, *ONE_THREAD)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_the_parts_of_a_job_array_make_the_whole(order, place, whole, tmp_path):
    for part in order:
        assert snapshot(tmp_path) != whole
        assert main(words(place, tmp_path, *ONE_THREAD, "--shard", f"{part}/3")) == 0
    assert snapshot(tmp_path) == whole


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_the_parts_of_a_job_array_keep_each_others_failures(order, place, tmp_path):
    pictures = write_pictures(tmp_path / "in", ["a.png", "b.png", "c.png"])
    (pictures / "a.png").write_bytes(b"junk")
    command = ["--data", str(pictures), "--skip_bad", *ONE_THREAD]
    assert main(words(place, tmp_path / "whole", *command, steps=2)) == 1
    for part in order:
        status = main(words(place, tmp_path / "parts", *command, "--shard", f"{part}/2", steps=2))
        assert status == (part == 1)
    assert snapshot(tmp_path / "parts") == snapshot(tmp_path / "whole")


@pytest.mark.parametrize(
    "processes", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)]
)
def test_launched_processes_make_the_same_folder(processes, place, whole, tmp_path):
    run = launch(place, tmp_path, processes)
    out, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    assert out.count("4 restorations") == 1
    assert snapshot(tmp_path) == whole
    assert len(list((tmp_path / "log").iterdir())) == processes


def kill_one_at_work(folder):
    """Kill a process that works in a folder."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        for lock in folder.glob(".locks/* process *.lock"):
            os.kill(int(lock.name.partition(" process ")[2].split()[0]), signal.SIGKILL)
            return
        time.sleep(0.02)
    raise AssertionError("no process began")


@pytest.mark.slow
def test_one_of_three_killed_and_launched_again_with_two(place, whole, tmp_path):
    run = launch(place, tmp_path, 3)
    kill_one_at_work(tmp_path)
    run.communicate(timeout=300)
    assert run.returncode != 0
    assert snapshot(tmp_path) != whole
    run = launch(place, tmp_path, 2)
    _, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    assert snapshot(tmp_path) == whole


@pytest.mark.slow
def test_the_launchers_own_restart_does_what_is_left(place, whole, tmp_path):
    run = launch(place, tmp_path, 2, "--max-restarts=2")
    kill_one_at_work(tmp_path)
    _, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    assert snapshot(tmp_path) == whole


def test_ranks_take_images_by_their_position_in_the_whole_list(monkeypatch):
    def ranks(world, shard=None):
        monkeypatch.setenv("WORLD_SIZE", str(world))
        for rank in range(world):
            monkeypatch.setenv("RANK", str(rank))
            yield share("abcdefg", shard)

    assert list(ranks(1)) == [list("abcdefg")]
    assert list(ranks(3)) == [["a", "d", "g"], ["b", "e"], ["c", "f"]]
    assert list(ranks(2, (2, 3))) == [["b"], ["e"]]
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("RANK")
    assert share("abcdefg", (2, 3)) == ["b", "e"]
