"""Runs that are cut short, shared, repeated or fed with bad pictures come out as if nothing had been."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from sample_condition import main
from tests.runs import names, pixels, rows, snapshot, start, words
from tests.tiny import write_pictures

ROOT = Path(__file__).resolve().parents[1]
CURVES = True  # runs in processes of their own draw them
IMAGES = ["a_jpg", "a_png", "b b", "sub_c"]
ONE_THREAD = ["--threads", "1", "--quiet"]
ALWAYS_SAVED = ["--checkpoint_minutes", "0.0000001"]


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory):
    """The folder of an uninterrupted run by one thread, and the time it takes."""
    for name in ("first", "second"):  # the first has to wait for imports
        started = time.monotonic()
        out = tmp_path_factory.mktemp("whole") / name
        process = start(words(place, out, *ONE_THREAD))
        process.join()
        assert process.exitcode == 0
    return snapshot(out), time.monotonic() - started


def test_a_folder_does_not_depend_on_order_or_on_what_was_there(place, whole, tmp_path):
    for extra in (["--limit", "1"], ["--limit", "3"], []):
        assert main(words(place, tmp_path, *ONE_THREAD, *extra)) == 0
    assert snapshot(tmp_path) == whole[0]


def test_images_in_another_order_come_out_the_same(place, whole, tmp_path, monkeypatch):
    from ldm_inverse.runs.folder import RunFolder

    left = RunFolder.left
    monkeypatch.setattr(RunFolder, "left", lambda run, images, *more: left(run, images[::-1], *more))
    assert main(words(place, tmp_path, *ONE_THREAD)) == 0
    assert snapshot(tmp_path) == whole[0]


def test_images_with_another_process_beside_come_out_the_same(place, whole, tmp_path):
    processes = [start(words(place, tmp_path, *ONE_THREAD)) for _ in range(2)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert snapshot(tmp_path) == whole[0]


def killed(place, whole, folder, kills, seed):
    """Kill runs at random moments until there were so many; each folder must end as an uninterrupted run's."""
    moment = random.Random(seed)
    done, attempt = 0, 0
    while done < kills:
        out = folder / f"out{attempt}"
        attempt += 1
        while True:
            process = start(words(place, out, *ONE_THREAD, *moment.choice([[], ALWAYS_SAVED])))
            if done == kills:
                process.join()
            elif moment.random() < 0.7:  # while it works: it then has a log
                logs = list(out.glob("log/*"))
                while process.is_alive() and list(out.glob("log/*")) == logs:
                    time.sleep(0.02)
                process.join(moment.uniform(0, whole[1] / 2))
            else:
                process.join(moment.uniform(0, whole[1]))
            if process.exitcode is not None:
                break
            process.kill()
            process.join()
            done += 1
        assert process.exitcode == 0
        assert snapshot(out) == whole[0], f"seed {seed}, folder {attempt}, after {done} kills"


def test_killed_a_few_times_the_folder_ends_the_same(place, whole, tmp_path):
    killed(place, whole, tmp_path, kills=5, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_killed_thirty_times_the_folder_ends_the_same(seed, place, whole, tmp_path):
    killed(place, whole, tmp_path, kills=30, seed=seed)


def stop_at_call(monkeypatch, number, error):
    """Count the UNet's calls, and raise the error at one of them (None: at none)."""
    from ldm.models.diffusion.ddpm import LatentDiffusion

    calls, apply_model = [], LatentDiffusion.differentiable_apply_model

    def count(*args):
        calls.append(1)
        if len(calls) == number:
            raise error
        return apply_model(*args)

    monkeypatch.setattr(LatentDiffusion, "differentiable_apply_model", count)
    return calls


SAMPLERS = {
    "resample": [],
    "ancestral": ["--ddim_eta", "1"],
    "from the baseline": ["conditioning.resample.start=0.8"],
    "dps": ["conditioning.main_sampler=dps"],
    "psld": ["conditioning.main_sampler=psld"],
    "daps": ["conditioning.main_sampler=daps", "conditioning.daps.iterations=2"],
    "sitcom": ["conditioning.main_sampler=sitcom", "conditioning.sitcom.input.max_iters=2"],
}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("minutes", "error"), [("0.0000001", RuntimeError), ("5", KeyboardInterrupt)])
def test_an_image_that_was_cut_short_goes_on_inside(sampler, minutes, error, place, tmp_path, monkeypatch, capsys):
    def command(out):
        more = ["--limit", "1", "--checkpoint_minutes", minutes]
        return words(place, tmp_path / out, *SAMPLERS[sampler], *more)

    with monkeypatch.context() as patch:
        in_all = stop_at_call(patch, None, None)
        assert main(command("whole")) == 0
    with monkeypatch.context() as patch:
        stop_at_call(patch, len(in_all) - 1, error)
        if error is KeyboardInterrupt:  # saved on leaving, long before the minutes are over
            assert main(command("cut")) == 130
        else:  # saved as it went
            with pytest.raises(error):
                main(command("cut"))
    assert (tmp_path / "cut" / "progress" / "a_jpg" / "state.safetensors").is_file()
    capsys.readouterr()
    with monkeypatch.context() as patch:
        again = stop_at_call(patch, None, None)
        assert main(command("cut")) == 0
    assert "a_jpg: continuing after " in capsys.readouterr().err
    assert len(again) < len(in_all) / 2
    assert snapshot(tmp_path / "cut") == snapshot(tmp_path / "whole")


def test_a_state_that_does_not_fit_is_left_aside(place, finished, tmp_path):
    for content in (b"", b"\xff" * 100):
        state = tmp_path / "progress" / "a_jpg" / "state.safetensors"
        state.parent.mkdir(parents=True, exist_ok=True)
        state.write_bytes(content)
        assert main(words(place, tmp_path, "--limit", "1", "--overwrite")) == 0
        assert (tmp_path / "recon" / "a_jpg.png").read_bytes() == (finished / "recon" / "a_jpg.png").read_bytes()
        assert not state.exists()
        (tmp_path / "results" / "a_jpg.json").unlink()


def test_no_state_is_kept_when_the_minutes_are_zero(place, tmp_path, monkeypatch):
    stop_at_call(monkeypatch, 5, KeyboardInterrupt)
    assert main(words(place, tmp_path, "--limit", "1", "--checkpoint_minutes", "0")) == 130
    assert not list(tmp_path.rglob("state.safetensors"))


def test_the_same_command_goes_on_and_says_so(place, finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "out")
    (tmp_path / "out" / "results" / "b b.json").unlink()
    assert main(words(place, tmp_path / "out")) == 0
    err = capsys.readouterr().err
    assert "continuing; 3 restorations are finished" in err
    assert [line.partition(":")[0] for line in err.splitlines() if "baseline" in line] == ["b b"]
    assert snapshot(tmp_path / "out") == snapshot(finished)


def test_other_settings_are_refused_with_what_differs(place, finished, tmp_path, capsys, monkeypatch):
    shutil.copytree(finished, tmp_path / "out")
    other = words(place, tmp_path / "out", "conditioning.resample.gamma=39", "--seed", "1", "--limit", "1")
    with monkeypatch.context() as patch:
        patch.setattr("model_loader.get_model", lambda *_: pytest.fail("loaded"))
        assert main(other) == 2
    err = capsys.readouterr().err
    assert "--overwrite" in err
    assert "settings.conditioning.resample.gamma: 40.0 there, 39.0 now" in err
    assert "run.seed: 0 there, 1 now" in err
    assert "limit" not in err
    assert snapshot(tmp_path / "out") == snapshot(finished)
    assert main([*other, "--overwrite"]) == 0
    assert main(words(place, tmp_path / "new", "conditioning.resample.gamma=39", "--seed", "1", "--limit", "1")) == 0
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "new")


def test_a_run_is_repeated_from_its_folder_alone(place, whole, tmp_path, capsys):
    first, again = tmp_path / "first", tmp_path / "again"
    preset = tmp_path / "own.yaml"
    preset.write_text("ddim_eta: 0.5\n")
    given = ["--preset", str(preset), "--seed", "3", "--limit", "2", "--n_samples_per_class", "2", "ddim_eta=0.25"]
    assert main(words(place, first, "--data", str(place / "pictures" / "sub"), *given, *ONE_THREAD, steps=3)) == 0
    preset.unlink()  # settings.yaml is enough
    capsys.readouterr()
    assert main(["--from", str(first), "--save_dir", str(again), "--quiet"]) == 0
    assert capsys.readouterr().err.count("\n") == 1  # random weights end far from the noise
    assert snapshot(again) == snapshot(first)


def without_far(err):
    """All that a run said, but for the line that its few steps end far from the noise."""
    return "".join(line for line in err.splitlines(keepends=True) if "have residuals far from the noise" not in line)


def test_a_run_of_an_earlier_version_is_repeated_and_not_gone_on_with(place, finished, tmp_path, capsys):
    """Its label/ has the truths and input/ the measurements, and its results know nothing of their inputs."""
    old, again = tmp_path / "old", tmp_path / "again"
    shutil.copytree(finished, old)
    for kind, other in (("input", "label"), ("label", "input")):
        for path in (finished / kind).glob("*.png"):
            shutil.copy(path, old / other)
    record = yaml.safe_load((old / "settings.yaml").read_text())
    del record["format"]
    (old / "settings.yaml").write_text(yaml.safe_dump(record))
    for path in (old / "results").iterdir():
        path.write_text(
            json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "inputs"})
        )
    before = snapshot(old)
    assert main(["--from", str(old), "--save_dir", str(old), "--quiet"]) == 2
    assert "a run by an earlier version" in capsys.readouterr().err
    assert snapshot(old) == before
    assert main(["--from", str(old), "--save_dir", str(again), "--limit", "1", "--quiet"]) == 0
    (name,) = names(again / "recon")
    for kind in ("input", "label", "recon"):
        assert np.array_equal(pixels(again / kind / f"{name}.png"), pixels(finished / kind / f"{name}.png"))


def test_what_changes_a_repeated_run_is_said(place, finished, tmp_path, capsys):
    command = ["--from", str(finished), "--save_dir", str(tmp_path), "--limit", "1", "--quiet"]
    assert main([*command, "--ddim_steps", "2"]) == 0
    said = f"warning: differs from {finished}: settings.ddim_steps: 6 there, 2 now\n"
    assert without_far(capsys.readouterr().err) == said
    assert main([*command, "--overwrite", "--preset", "demo"]) == 2
    assert "--preset and --from exclude each other" in capsys.readouterr().err
    assert main(["--from", str(place)]) == 2
    assert "no run in" in capsys.readouterr().err


NO_NETWORK = """
import sys
import sample_condition

def refuse(event, details):
    if event.startswith(("socket.", "urllib.", "http.", "ftplib.")):
        sys.stderr.write(f"network: {event} {details}\\n")
        raise SystemExit(99)

sys.addaudithook(refuse)
if sys.argv[1] == "probe":
    import socket
    socket.create_connection(("127.0.0.1", 9))
sys.exit(sample_condition.main(sys.argv[1:]))
"""


def test_a_run_makes_no_socket(place, tmp_path):
    def run(*arguments):
        return subprocess.run([sys.executable, "-c", NO_NETWORK, *arguments], cwd=ROOT, capture_output=True, text=True)

    assert run("probe").returncode == 99  # the hook sees sockets
    done = run(*words(place, tmp_path, "--limit", "1", "--quiet"))
    assert (done.returncode, without_far(done.stderr)) == (0, "")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_soon_and_says_how_to_go_on(number, status, place, whole, tmp_path):
    command = [sys.executable, "-u", "sample_condition.py", *words(place, tmp_path, "--threads", "1")]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("results/*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    err = process.communicate(timeout=10)[1]
    assert process.returncode == status
    assert "the same command continues from there" in err
    assert "Traceback" not in err
    assert "ended by" in next((tmp_path / "log").iterdir()).read_text()
    assert main(words(place, tmp_path, *ONE_THREAD)) == 0
    assert snapshot(tmp_path) == whole[0]


def test_a_picture_that_cannot_be_read_is_named_before_anything_is_loaded(place, tmp_path, capsys):
    pictures = write_pictures(tmp_path / "in", ["good.png", "bad.png", "worse.png"])
    (pictures / "bad.png").write_bytes(b"")
    (pictures / "worse.png").write_text("not a picture")
    command = words(place, tmp_path / "out", "--data", str(pictures), steps=2)
    assert main(command) == 2
    err = capsys.readouterr().err
    assert "bad.png" in err
    assert "worse.png" in err
    assert not (tmp_path / "out").exists()
    assert main([*command, "--skip_bad"]) == 1
    failed = rows(tmp_path / "out" / "failed.csv")
    assert [(row["image"], row["step"]) for row in failed] == [("bad", ""), ("worse", "")]
    assert "an empty file" in failed[0]["reason"]
    assert [row["image"] for row in rows(tmp_path / "out" / "metrics.csv")] == ["good"]
    write_pictures(pictures, ["bad.png", "worse.png"])  # mended, they are restored
    assert main(command) == 0
    assert not (tmp_path / "out" / "failed.csv").exists()
    assert len(rows(tmp_path / "out" / "metrics.csv")) == 3
    pictures.joinpath("good.png").write_bytes(b"")
    assert main([*command, "--limit", "1", "--skip_bad", "--save_dir", str(tmp_path / "none")]) == 0  # bad.png


def test_a_picture_that_is_damaged_inside_ends_that_image_only(place, tmp_path):
    pictures = write_pictures(tmp_path / "in", ["a.png", "b.png"])
    content = bytearray((pictures / "a.png").read_bytes())
    middle, quarter = len(content) // 2, len(content) // 4
    content[middle : middle + quarter] = b"\xff" * quarter  # its header is whole, and so is its end
    (pictures / "a.png").write_bytes(content)
    assert main(words(place, tmp_path / "out", "--data", str(pictures), steps=2)) == 1
    assert [row["image"] for row in rows(tmp_path / "out" / "failed.csv")] == ["a"]
    assert [path.name for path in (tmp_path / "out" / "recon").iterdir()] == ["b.png"]


def test_a_latent_that_is_not_finite_ends_that_image_only(place, tmp_path, monkeypatch, capsys):
    from ldm.models.diffusion.ddpm import LatentDiffusion

    calls, apply_model = [], LatentDiffusion.apply_model

    def break_the_first(*args):
        calls.append(1)
        return apply_model(*args) * (torch.nan if len(calls) == 1 else 1)

    monkeypatch.setattr(LatentDiffusion, "apply_model", break_the_first)
    quick = ["conditioning.resample.soft_step=false", "--limit", "2"]
    assert main(words(place, tmp_path, *quick)) == 1
    failed = rows(tmp_path / "failed.csv")
    assert [(row["image"], row["step"], row["reason"]) for row in failed] == [
        ("a_jpg", "0", "the latent is not finite")
    ]
    assert [path.name for path in (tmp_path / "recon").iterdir()] == ["a_png.png"]
    assert (tmp_path / "progress" / "a_jpg" / "trace.csv").is_file()
    assert "a_jpg: not restored: the latent is not finite" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_ends_that_image_only(place, tmp_path, monkeypatch):
    from ldm_inverse.solvers.problem import InverseProblem

    loss, calls = InverseProblem.loss, []

    def break_the_first(*args):
        calls.append(1)
        return loss(*args) * (torch.nan if len(calls) == 1 else 1)

    monkeypatch.setattr(InverseProblem, "loss", break_the_first)
    assert main(words(place, tmp_path, "--limit", "2")) == 1
    assert [row["reason"] for row in rows(tmp_path / "failed.csv")] == ["the loss of the pixel stage is not finite"]
    assert [row["image"] for row in rows(tmp_path / "metrics.csv")] == ["a_png"]


def test_a_full_disk_is_one_line_and_what_is_finished_stays(place, finished, tmp_path, monkeypatch, capsys):
    write_bytes = Path.write_bytes

    def fill_up(path, content):
        if list(tmp_path.glob("results/*.json")) and len(content) > 1000:
            raise OSError(28, "No space left on device")
        return write_bytes(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", fill_up)
        assert main(words(place, tmp_path, "--quiet")) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: cannot write ")
    assert err.endswith("No space left on device\n")
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.glob("results/*")] == ["a_jpg.json"]
    assert main(words(place, tmp_path)) == 0
    assert snapshot(tmp_path) == snapshot(finished)


def test_the_log_has_times_and_what_was_done(finished):
    lines = next((finished / "log").iterdir()).read_text().splitlines()
    assert "ddim_steps=6" in lines[0]
    assert all(line[:4].isdigit() and line[10] == "T" for line in lines)
    for image in IMAGES:
        assert sum(f"INFO {image}: " in line for line in lines) == 1
    assert lines[-1].endswith("INFO finished")
