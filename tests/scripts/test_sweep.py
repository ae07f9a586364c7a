"""Grids of settings over tasks and seeds: what is run, what is skipped, and what is made of it."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import sample_condition
from scripts import sweep
from scripts.sweeps import run as running
from scripts.sweeps.points import Point
from tests.scripts.grids import read_grid
from tests.tiny import SIDE, write_model, write_pictures

ROOT = Path(__file__).resolve().parents[2]
SIGMA = {"name": "gaussian", "sigma": 0.05}
TASKS = {
    "inpainting_config": {
        "operator": {"name": "inpainting", "mask_type": "random", "mask_prob_range": [0.5, 0.6], "image_size": SIDE},
        "noise": SIGMA,
    },
    "enlarging": {"operator": {"name": "super_resolution", "scale_factor": 4}, "noise": SIGMA},
}
GRID = ["ddim_steps=1,2", "conditioning.resample.latent.max_iters=1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, two pictures, two tasks and a preset that takes a moment."""
    folder = tmp_path_factory.mktemp("place")
    write_model(folder)
    write_pictures(folder / "pictures", ["a.png", "b.png"])
    (folder / "tasks").mkdir()
    for name, measurement in TASKS.items():
        (folder / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump({"measurement": measurement}))
    (folder / "quick.yaml").write_text(yaml.safe_dump({"conditioning": {"resample": {"final": {"max_iters": 1}}}}))
    return folder


def command(place, *extra):
    """The words for the tiny model."""
    model = ("--ldm_config", place / "tiny.yaml", "--diffusion_config", place / "tiny.safetensors")
    return [*map(str, (*model, "--data", place / "pictures", "--device", "cpu", "--threads", "1", "--quiet", *extra))]


def words(place, out, *own, rest=()):
    common = ("--task_dir", place / "tasks", "--presets", place / "quick.yaml", "--save_dir", out)
    return [*map(str, (*GRID, *common, *own)), "--", *command(place, *rest)]


@pytest.fixture
def runs(monkeypatch):
    """Run the command in this process, and keep the folders it was run for."""
    folders = []

    def restore(words: list[str]) -> int:
        folder = Path(words[words.index("--save_dir") + 1])
        folders.append("/".join(folder.parts[-4 if "=" in folder.parts[-2] else -3 :]))
        return sample_condition.main(words)

    monkeypatch.setattr(running, "restore", restore)
    return folders


def table(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_each_point_is_run_once_in_a_folder_of_its_own(place, tmp_path, runs, capsys):
    out = tmp_path / "out"
    assert sweep.main(words(place, out, "--seeds", "0", "1")) == 0
    # Values vary before tasks, seeds before values.
    assert runs == [
        f"{task}/quick/ddim_steps={steps},latent.max_iters=1/seed_{seed}"
        for task in ("enlarging", "inpainting")
        for steps in (1, 2)
        for seed in (0, 1)
    ]
    for folder in runs:
        record = yaml.safe_load((out / folder / "settings.yaml").read_text())
        assert f"ddim_steps={record['settings']['ddim_steps']}," in folder
        assert folder.endswith(f"seed_{record['run']['seed']}")
        assert record["settings"]["conditioning"]["resample"]["final"]["max_iters"] == 1
    assert (out / "tasks.md").read_text() in capsys.readouterr().out
    rows = {row["run"]: row for row in table(out / "summary.csv") if row["metric"] == "psnr" and not row["less"]}
    assert len(rows) == 2 * (2 + 1)
    psnrs = []
    for seed in (0, 1):
        metrics = table(out / f"inpainting/quick/ddim_steps=2,latent.max_iters=1/seed_{seed}" / "metrics.csv")
        psnrs += [float(row["psnr"]) for row in metrics]
    assert float(rows["inpainting/quick/ddim_steps=2,latent.max_iters=1"]["mean"]) == pytest.approx(
        np.mean(psnrs), abs=1e-3
    )
    assert min(Image.open(out / "sweep.png").size) > 500
    baseline = "baseline of inpainting/quick/ddim_steps=1,latent.max_iters=1"
    titles = [baseline, *(f"inpainting/quick/ddim_steps={steps},latent.max_iters=1" for steps in (1, 2))]
    cells = read_grid(out / "tasks.md")["inpainting"]
    assert [cell.split(" / ")[0].strip("*") for cell in cells.values()] == [
        "2",
        *(f"{float(rows[title]['mean']):.2f}" for title in titles),
    ]

    runs.clear()
    assert sweep.main(words(place, out, "--seeds", "0", "1")) == 0
    assert runs == []
    (out / "enlarging/quick/ddim_steps=1,latent.max_iters=1/seed_1/results/b.json").unlink()
    (place / "tasks" / "enlarging.yaml").touch()
    assert sweep.main(words(place, out, "--seeds", "0", "1", "2", "--tasks", "enlarging")) == 0
    assert runs == [
        "enlarging/quick/ddim_steps=1,latent.max_iters=1/seed_1",
        "enlarging/quick/ddim_steps=1,latent.max_iters=1/seed_2",
        "enlarging/quick/ddim_steps=2,latent.max_iters=1/seed_2",
    ]


def test_pictures_that_have_changed_are_restored_again(place, tmp_path, runs):
    pictures = shutil.copytree(place / "pictures", tmp_path / "pictures")
    line = ["ddim_steps=1", *words(place, tmp_path / "out", "--tasks", "enlarging")[1:]]
    line[line.index(str(place / "pictures"))] = str(pictures)
    assert sweep.main(line) == 0
    first = (tmp_path / "out" / "images.csv").read_text()
    shutil.copy(pictures / "b.png", pictures / "a.png")
    assert sweep.main(line) == 0
    assert len(runs) == 2
    assert (tmp_path / "out" / "images.csv").read_text() != first
    assert sweep.main(line) == 0
    assert len(runs) == 2


def test_only_the_pictures_that_are_asked_for_are_tabulated(place, tmp_path, runs):
    line = words(place, tmp_path / "out", "--tasks", "enlarging")
    assert sweep.main(["ddim_steps=1", *line[1:]]) == 0
    assert sweep.main([*line, "--limit", "1"]) == 0  # the first run has two pictures, the second one
    assert len(runs) == 2
    assert {row["image"] for row in table(tmp_path / "out" / "images.csv")} == {"a"}


def test_points_without_a_common_measurement_are_tabulated_and_not_compared(place, tmp_path, runs, capsys):
    line = words(place, tmp_path / "out", "--tasks", "enlarging", "--seeds", "0", "1", "--shard", "1/3")
    assert sweep.main(line) == 0
    assert [folder.split("/")[-2:] for folder in runs] == [
        ["ddim_steps=1,latent.max_iters=1", "seed_0"],
        ["ddim_steps=2,latent.max_iters=1", "seed_1"],
    ]
    assert "have no measurement in common" in capsys.readouterr().out
    rows = table(tmp_path / "out" / "summary.csv")
    assert not any(row["less"] and not row["run"].startswith("baseline") for row in rows)


def test_tasks_that_differ_in_their_pictures_alone_are_tasks(place, tmp_path, runs):
    write_pictures(tmp_path / "other", ["a.png"], SIDE)
    shutil.copy(place / "pictures" / "b.png", tmp_path / "other" / "a.png")
    for name, root in (("one", place / "pictures"), ("two", tmp_path / "other")):
        content = {"data": {"name": "ffhq", "root": str(root)}, "measurement": TASKS["enlarging"]}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    line = [
        "ddim_steps=1",
        *words(place, tmp_path / "out", "--tasks", tmp_path / "one.yaml", tmp_path / "two.yaml")[1:],
    ]
    place_of_data = line.index("--data")
    del line[place_of_data : place_of_data + 2]
    assert sweep.main([*line, "--limit", "1"]) == 0
    titles = {row["run"] for row in table(tmp_path / "out" / "summary.csv")}
    assert {f"baseline of {name}/quick/ddim_steps=1,latent.max_iters=1" for name in ("one", "two")} < titles
    assert all(cells["baseline"] for cells in list(read_grid(tmp_path / "out" / "tasks.md").values())[:2])


def test_the_plan_counts_what_the_command_would(place):
    words = (*command(place), "measurement.operator={name: motion_blur, kernel_size: 9, boundary: valid}")
    refine = "conditioning.resample.refine={max_iters: 2}"
    point = Point(place / "tasks" / "enlarging.yaml", str(place / "quick.yaml"), 0, (refine,), Path("out"), words)
    table = point.job.solver.cost(unknown_border=True).table()
    assert point.passes() == table
    assert table != point.job.solver.cost().table()


def test_shards_share_the_points_out(place, tmp_path, runs, capsys):
    whole = [*words(place, tmp_path / "out", "--tasks", "enlarging")]
    first, second = ([*whole[:1], "--shard", f"{part}/2", *whole[1:]] for part in (1, 2))
    assert sweep.main(first) == 0
    assert [folder.split("/")[2] for folder in runs] == ["ddim_steps=1,latent.max_iters=1"]
    assert "ddim_steps=2" not in capsys.readouterr().out
    assert sweep.main(second) == 0
    assert [folder.split("/")[2] for folder in runs][1:] == ["ddim_steps=2,latent.max_iters=1"]
    out = capsys.readouterr().out
    assert "ddim_steps=1" in out
    assert "ddim_steps=2" in out


def test_the_command_can_share_the_pictures_out(place, tmp_path, runs):
    for part in (1, 2):
        rest = ["--shard", f"{part}/2"]
        assert sweep.main(words(place, tmp_path / "out", "--tasks", "enlarging", rest=rest)) == 0
    assert len(runs) == 4
    titles = ["baseline", *(f"enlarging/quick/ddim_steps={n},latent.max_iters=1" for n in (1, 2))]
    found = {(row["run"], row["image"]) for row in table(tmp_path / "out" / "images.csv")}
    assert found == {(title, image) for title in titles for image in ("a", "b")}


def test_a_dry_run_lists_points_and_cost(place, tmp_path, runs, capsys):
    (tmp_path / "tiny.yaml").write_bytes((place / "tiny.yaml").read_bytes())  # no weights are needed
    line = words(place, tmp_path / "out", "--dry_run", "--tasks", "inpainting")
    line[line.index(str(place / "tiny.safetensors"))] = str(tmp_path / "nowhere.safetensors")
    assert sweep.main(line) == 0
    out = capsys.readouterr().out.splitlines()
    assert [row.split()[1:4] for row in out[1:3]] == [["2", "2", "2"], ["2", "2", "4"]]  # all, left, UNet passes
    assert out[-1].split() == ["2", "combinations", "4", "4", "6", *out[-1].split()[5:]]
    assert not runs
    assert not (tmp_path / "out").exists()


def test_one_that_fails_does_not_stop_the_others(place, tmp_path, runs, monkeypatch, capsys):
    working = running.restore
    monkeypatch.setattr(running, "restore", lambda words: 2 if "ddim_steps=1" in words else working(words))
    assert sweep.main(words(place, tmp_path / "out", "--tasks", "inpainting")) == 1
    out, err = capsys.readouterr()
    assert "not all restored" in err
    assert "ddim_steps=1" not in out
    assert "ddim_steps=2" in out


def test_an_interruption_ends_it(place, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(running, "restore", lambda words: started.append(words) or 130)
    assert sweep.main(words(place, tmp_path / "out")) == 130
    assert len(started) == 1


def test_results_by_other_settings_are_not_shown(place, tmp_path, runs, capsys):
    out = tmp_path / "out"
    assert sweep.main(words(place, out, "--tasks", "inpainting")) == 0
    runs.clear()
    rest = ["conditioning.resample.final.lr=0.1"]
    assert sweep.main(words(place, out, "--tasks", "inpainting", rest=rest)) == 2  # the command refuses the folders
    assert len(runs) == 2
    assert "nothing is finished" in capsys.readouterr().err


WRONG = [
    (["nothing"], "nothing"),
    (["=1"], "'=1' is not a setting"),
    (["ddim_step=3"], "did you mean 'ddim_steps'"),
    (["ddim_eta=0,2"], "ddim_eta=2"),
    (["ddim_eta=0,"], "expected different values"),
    (["ddim_eta=0,0"], "expected different values"),
    (["--tasks", "enlargin"], "did you mean 'enlarging'"),
    (["--tasks", "enlarging", "enlarging"], "two points have the folder"),
    (["--task_dir", "nowhere"], "no tasks in nowhere"),
    (["--presets", "dem"], "did you mean 'demo'"),
    (["--seeds", "-1"], "--seeds"),
    (["--seeds", "x"], "--seeds"),
    (["--shard", "3/2"], "--shard"),
    (["--limit", "3"], "--limit"),
    (["--", "--seed", "3"], "the sweep sets that itself"),
    (["--", "--diffusion_config", "nowhere.ckpt"], "no checkpoint at nowhere.ckpt"),
    (["--", "--limt", "3"], "did you mean '--limit'"),
]


@pytest.mark.parametrize(("extra", "message"), WRONG)
def test_what_cannot_be_run_is_refused_before_anything_is(extra, message, place, tmp_path, runs, capsys):
    line = words(place, tmp_path / "out")
    end = line.index("--")
    assert sweep.main([*line[:end], *extra] if "--" not in extra else [*line, *extra[1:]]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") <= 3
    assert not runs
    assert not (tmp_path / "out").exists()


def test_the_word_behind_an_option_is_its_value_even_with_an_equals_sign():
    args = sweep.parse(["a.b=1,2", "--save_dir", "results/lr=0.1", "--dry_run", "c=3", "--presets", "p=1.yaml", "d=4"])
    assert args.settings == ["a.b=1,2", "c=3", "d=4"]
    assert (str(args.save_dir), args.presets, args.dry_run) == ("results/lr=0.1", ["p=1.yaml"], True)


def test_where_no_model_is_one_of_the_samplers_the_baseline_is_not_shown_twice(place, tmp_path, runs, capsys):
    line = ["conditioning.main_sampler=none,resample", *words(place, tmp_path, rest=(GRID[1],))[len(GRID) :]]
    assert sweep.main(["ddim_steps=1", *line]) == 0
    cells = read_grid(tmp_path / "tasks.md")
    assert list(cells["inpainting"]) == ["images", "none", "resample"]
    assert cells["encoder passes"]["none"] == "0 + 0"


def run_all(place, out, *extra):
    """Start scripts/run_all_tasks.sh with the tiny model."""
    own = ["--task_dir", place / "tasks", "--presets", place / "quick.yaml", "--save_dir", out, *extra]
    line = ["bash", ROOT / "scripts" / "run_all_tasks.sh", *own, *command(place), "ddim_steps=1"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.Popen(
        [*map(str, line)], env={**os.environ, "PATH": path}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_all_tasks_from_the_shell(place, tmp_path):
    words = ["--seeds", "0 1", "--samplers", "resample none", "--dry_run"]
    out, err = run_all(place, tmp_path / "out", *words).communicate()
    assert err == ""
    points = [line.split()[0] for line in out.splitlines()[1:-1]]
    assert points == [
        f"{task}/quick/main_sampler={sampler}/seed_{seed}"
        for task in ("enlarging", "inpainting")
        for sampler in ("resample", "none")
        for seed in (0, 1)
    ]


def test_the_shell_script_explains_itself_and_its_mistakes():
    script = str(ROOT / "scripts" / "run_all_tasks.sh")
    told = subprocess.run(["bash", script, "--help"], capture_output=True, text=True, check=True).stdout
    assert told.startswith("Runs every task")
    assert "set -euo" not in told
    for words in (["--tasks"], ["--seeds", ""]):
        failed = subprocess.run(["bash", script, *words], capture_output=True, text=True, check=False)
        assert failed.returncode == 2
        assert failed.stderr.startswith(f"error: {words[0]}: expected a value")


@pytest.mark.slow
def test_all_tasks_stopped_and_gone_on_with(place, tmp_path):
    out = tmp_path / "out"
    process = run_all(place, out, "--seeds", "0 1")
    while not list(out.glob("*/*/*/results/*.json")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 143
    assert "the same command continues" in err
    assert not list(out.rglob("claim"))
    process = run_all(place, out, "--seeds", "0 1")
    printed, err = process.communicate()
    assert process.returncode == 0
    assert (out / "tasks.md").read_text() in printed
    content = json.loads((out / "evaluation.json").read_text())
    assert [len(entry["restorations"]) for entry in content["entries"]] == [4, 4, 4, 4]
