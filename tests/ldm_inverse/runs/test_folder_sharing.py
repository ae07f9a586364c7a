"""A run's folder when other settings come, other processes work there, and processes die."""

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from ldm_inverse.runs.folder import RunFolder
from ldm_inverse.runs.manifest import FORMAT
from tests.run_folders import begin, finish, record
from tests.runs import rows
from util.errors import UserError

ROOT = Path(__file__).resolve().parents[3]


def test_other_settings_are_refused_with_what_differs_unless_overwritten(tmp_path):
    begin(RunFolder(tmp_path), record())
    run = RunFolder(tmp_path, ["a"])
    finish(run, "a")
    other = record(settings={"steps": 4})
    for refuse in (run.check, lambda other: begin(run, other)):
        with pytest.raises(UserError, match=r"--overwrite[^\n]*\n  settings.steps: 3 there, 4 now$"):
            refuse(other)
    begin(run, record(), overwrite=True)
    assert run.samples_left("a") == []  # by the same settings: nothing is deleted
    begin(run, other, overwrite=True)
    assert run.samples_left("a") == [0]
    run.check(other)


def test_a_folder_is_not_overwritten_while_another_process_works_there(tmp_path):
    at_work, other = RunFolder(tmp_path, ["a"]), RunFolder(tmp_path, ["a"])
    with at_work.at_work(record()):
        finish(at_work, "a")
        with pytest.raises(UserError, match=rf"process {os.getpid()} works there; stop it before --overwrite"):
            begin(other, record(settings={"steps": 4}), overwrite=True)
        begin(other, record())  # by the same settings any number may work there
        assert not other.was_left_last
    assert at_work.was_left_last
    assert at_work.rows()
    begin(other, record(settings={"steps": 4}), overwrite=True)
    assert other.rows() == []


def full_folder(root):
    """A folder with two finished restorations by `record`."""
    run = RunFolder(root, ["a", "b"])
    with run.at_work(record()):
        for image in ("a", "b"):
            for folder in ("input", "label", "recon"):
                run.write_picture(folder, image, np.zeros((4, 4, 3), np.uint8))
            run.write_measurement(image, {"y": torch.zeros(1)}, {})
            finish(run, image)
        run.tables.write()
    return root


def overwrite_until(root, unlinks):
    """Overwrite a folder with other settings in a process that dies at so many deletions; tell whether it did."""
    child = os.fork()
    if child == 0:
        left = [unlinks]

        def die_at_last(event, arguments):
            if event in ("os.remove", "os.rmdir"):
                left[0] -= 1
                if left[0] == 0:
                    os._exit(9)

        sys.addaudithook(die_at_last)
        begin(RunFolder(root, ["a", "b"]), record(settings={"steps": 4}), overwrite=True)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_killed_at_any_deletion_the_old_results_never_become_the_new_runs(tmp_path):
    other, died = record(settings={"steps": 4}), True
    for unlinks in range(1, 100):
        root = full_folder(tmp_path / str(unlinks))
        died = overwrite_until(root, unlinks)
        copy = tmp_path / f"{unlinks} again"
        shutil.copytree(root, copy)
        for row in RunFolder(copy, ["a", "b"]).rows() if (copy / "settings.yaml").exists() else ():
            assert (copy / "recon" / f"{row['image']}.png").exists()  # the old run goes on from what is whole
        new = RunFolder(root, ["a", "b"])
        with contextlib.suppress(UserError):
            begin(new, other)
            assert new.rows() == []
        begin(new, other, overwrite=True)
        assert new.rows() == []
        assert not (root / "metrics.csv").exists()
        if not died:
            break
    assert not died
    assert unlinks > 10


def test_results_without_settings_and_those_of_an_earlier_version_are_refused(tmp_path):
    root = full_folder(tmp_path / "a")
    found = yaml.safe_load((root / "settings.yaml").read_text())
    assert found.pop("format") == FORMAT
    (root / "settings.yaml").write_text(yaml.safe_dump(found))
    with pytest.raises(UserError, match="holds a run by an earlier version"):
        begin(RunFolder(root, ["a", "b"]), record())
    (root / "settings.yaml").unlink()
    run = RunFolder(root, ["a", "b"])
    with pytest.raises(UserError, match=r"holds results, and no settings\.yaml"):
        begin(run, record())
    begin(run, record(), overwrite=True)
    assert run.rows() == []
    (root / "settings.yaml").write_text(yaml.safe_dump({**found, "format": FORMAT + 1}))
    with pytest.raises(UserError, match="not the record of a run: format: expected a whole number from 1 to"):
        begin(run, record(), overwrite=True)


WORK = """
import sys
from pathlib import Path
from ldm_inverse.runs.folder import RunFolder
from tests.run_folders import record
with RunFolder(Path(sys.argv[1]), ["a"]).at_work(record()):
    (Path(sys.argv[1]) / ".unfinished").mkdir(exist_ok=True)
    (Path(sys.argv[1]) / ".unfinished" / "half.part").write_text("")
    print("at work", flush=True)
    sys.stdin.read()
"""


def test_a_killed_process_is_in_nobodys_way_and_what_it_left_unfinished_goes(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", WORK, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"at work\n"
    other = record(settings={"steps": 4})
    with pytest.raises(UserError, match=f"process {process.pid} works there"):
        begin(RunFolder(tmp_path), other, overwrite=True)
    assert (tmp_path / ".unfinished" / "half.part").exists()
    process.kill()
    process.communicate()
    begin(RunFolder(tmp_path), other, overwrite=True)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".locks", "folder.lock", "settings.yaml"]


def test_nobody_begins_while_another_overwrites(tmp_path, monkeypatch):
    """Between the look for others and the end of the deletion, a process that begins must wait."""
    begin(RunFolder(tmp_path, ["a"]), record())
    order, clear = [], RunFolder._clear

    def slow_clear(run):
        def join():
            with RunFolder(tmp_path, ["a"]).at_work(record(settings={"steps": 4})):
                order.append("joined")

        beside.append(threading.Thread(target=join))
        beside[0].start()
        time.sleep(0.3)
        clear(run)
        order.append("cleared")

    beside = []
    monkeypatch.setattr(RunFolder, "_clear", slow_clear)
    begin(RunFolder(tmp_path, ["a"]), record(settings={"steps": 4}), overwrite=True)
    beside[0].join(20)
    assert order == ["cleared", "joined"]


def test_of_two_that_leave_at_once_one_is_the_last(tmp_path):
    runs = [RunFolder(tmp_path) for _ in range(2)]
    barrier = threading.Barrier(2)

    def work(run):
        with run.at_work(record()):
            barrier.wait(20)

    threads = [threading.Thread(target=work, args=[run]) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(run.was_left_last for run in runs) == [False, True]


def test_a_folder_without_locks_is_one_line(tmp_path):
    (tmp_path / ".locks").write_text("")
    with pytest.raises(UserError, match="cannot lock files in .*: "):
        begin(RunFolder(tmp_path), record())


def test_processes_at_one_folder_write_tables_of_all(tmp_path):
    images = list("abcdefgh")

    def work(own):
        run = RunFolder(tmp_path, images)
        with run.at_work(record()):
            for (image,) in run.left(own):
                finish(run, image)
                run.tables.write()

    workers = [threading.Thread(target=work, args=[images[number::3]]) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [row["image"] for row in rows(tmp_path / "metrics.csv")] == images
    assert {path.name for path in tmp_path.iterdir()} == {".locks", "results", "metrics.csv", "settings.yaml"}
