"""Random search over settings: what is drawn, what is run, and what is called best."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

import sample_condition
from scripts import tune
from scripts.tuning import search
from scripts.tuning.space import read_axis
from tests.tiny import SIDE, write_model, write_pictures

INPAINTING = {"name": "inpainting", "mask_type": "random", "mask_prob_range": [0.5, 0.6], "image_size": SIDE}
SPACE = ["ddim_steps=1..3", "conditioning.resample.soft_scale=log:0.1..1", "conditioning.resample.final.max_iters=1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, five pictures, a task and a preset that takes a moment."""
    folder = tmp_path_factory.mktemp("place")
    write_model(folder)
    write_pictures(folder / "pictures", [f"{letter}.png" for letter in "abcde"])
    (folder / "tasks").mkdir()
    task = {"measurement": {"operator": INPAINTING, "noise": {"name": "gaussian", "sigma": 0.05}}}
    (folder / "tasks" / "holes.yaml").write_text(yaml.safe_dump(task))
    (folder / "quick.yaml").write_text(yaml.safe_dump({"ddim_steps": 2}))
    return folder


def words(place, out, *own, rest=()):
    model = ("--ldm_config", place / "tiny.yaml", "--diffusion_config", place / "tiny.safetensors")
    common = ("--task_dir", place / "tasks", "--preset", place / "quick.yaml", "--save_dir", out, "--trials", "6")
    command = (*model, "--data", place / "pictures", "--device", "cpu", "--threads", "1", "--quiet", *rest)
    return [*map(str, (*SPACE, *common, "--pictures", "5", *own)), "--", *map(str, command)]


def gain_of(words):
    """The PSNR that the pretended command gives: 10 dB more for each step, and less for each picture."""
    settings = dict(word.split("=", 1) for word in words if "=" in word)
    return 10 * int(settings.get("ddim_steps", 2))


@pytest.fixture
def runs(monkeypatch):
    """Run the command in this process, write PSNRs that follow a rule, and keep what was run on how many pictures."""
    done = []

    def restore(words):
        folder = Path(words[words.index("--save_dir") + 1])
        before = len(list(folder.glob("results/*.json")))
        assert sample_condition.main(words) == 0
        results = sorted(folder.glob("results/*.json"))
        for number, path in enumerate(results):
            path.write_text(json.dumps({**json.loads(path.read_text()), "psnr": gain_of(words) - number}))
        done.append((folder.parent.name, len(results) - before))
        return 0

    monkeypatch.setattr(search, "restore", restore)
    return done


def table(out):
    return list(csv.DictReader((out / "trials.csv").read_text().splitlines()))


def test_the_best_of_all_trials_is_found_by_few_pictures_first(place, tmp_path, runs, capsys):
    out = tmp_path / "out"
    assert tune.main(words(place, out)) == 0
    # Two of five pictures for the preset and the six trials; then the other three for the preset and two trials.
    assert [count for _, count in runs] == [2] * 7 + [3] * 3
    rows = table(out)
    assert [row["images"] for row in rows] == ["5"] * 3 + ["2"] * 4
    by_trial = {int(row["trial"]): row for row in rows}
    for row in rows[:3]:
        steps = dict(word.split("=") for word in row["settings"].split() if "=" in word).get("ddim_steps", "2")
        assert float(row["gain"].lstrip("'")) == 10 * (int(steps) - 2)
    assert by_trial[0]["settings"] == "the preset's own"
    best = yaml.safe_load((out / "best.yaml").read_text())
    assert best["ddim_steps"] == 3
    assert best["conditioning"]["resample"]["final"] == {"max_iters": 1}
    assert 0.1 <= best["conditioning"]["resample"]["soft_scale"] <= 1
    printed = capsys.readouterr().out
    assert re.search(r"^settings +trial +images +gain", printed, re.M)
    assert re.search(r"^the preset's own +0 +\d+ +\+0\.000 ", printed, re.M)
    assert "measure it on others" in printed

    runs.clear()
    assert tune.main(words(place, out)) == 0
    assert runs == []
    assert tune.main(words(place, out, "--trials", "7")) == 0
    assert len({folder for folder, _ in runs}) <= 2  # the new one, and one that is now among the best quarter
    assert {row["settings"] for row in rows} < {row["settings"] for row in table(out)}


def test_trials_above_the_budget_are_drawn_again_and_the_preset_is_no_winner(place, tmp_path, runs):
    out = tmp_path / "out"
    # A step takes a pass each through UNet and decoder; the preset's two steps are above the budget.
    budget = {steps: passes_of(place, steps) for steps in (1, 2)}
    assert budget[1] < budget[2]
    assert tune.main(words(place, out, "--max_passes", str(budget[1]))) == 0
    rows = table(out)
    assert {row["passes"] for row in rows if row["trial"] != "0"} == {str(budget[1])}
    assert yaml.safe_load((out / "best.yaml").read_text())["ddim_steps"] == 1


def test_trials_by_other_settings_are_not_taken_for_these(place, tmp_path, runs, monkeypatch, capsys):
    out = tmp_path / "out"
    line = [*words(place, out, "--trials", "1", "--pictures", "1")]
    assert tune.main(line) == 0
    best = (out / "best.yaml").read_bytes()
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(search, "restore", sample_condition.main)
        assert tune.main([*line, "measurement.noise.sigma=0.3"]) == 2
    assert "error: trial 0: the command refuses" in capsys.readouterr().err
    assert (out / "best.yaml").read_bytes() == best
    runs.clear()
    assert tune.main([*line, "measurement.noise.sigma=0.3", "--overwrite"]) == 0
    assert len(runs) == 2


def test_pictures_that_have_changed_are_restored_again(place, tmp_path, runs):
    pictures = shutil.copytree(place / "pictures", tmp_path / "pictures")
    line = words(place, tmp_path / "out", "--trials", "1", "--pictures", "1")
    line[line.index(str(place / "pictures"))] = str(pictures)
    assert tune.main(line) == 0
    runs.clear()
    shutil.copy(pictures / "b.png", pictures / "a.png")
    assert tune.main(line) == 0
    assert len(runs) == 2


def test_several_restorations_of_a_picture_are_averaged(place, tmp_path, runs):
    line = words(place, tmp_path / "out", "--trials", "1", "--pictures", "2", rest=["--n_samples_per_class", "2"])
    assert tune.main(line) == 0
    rows = {row["trial"]: row for row in table(tmp_path / "out")}
    assert rows["1"]["images"] == "2"
    steps = dict(word.split("=") for word in rows["1"]["settings"].split() if "=" in word).get("ddim_steps", "2")
    assert float(rows["1"]["gain"].lstrip("'")) == 10 * (int(steps) - 2)


def failing(working, *when):
    """The command, with results of these pictures turned into failures where a word of its line begins like this."""

    def restore(words):
        status = working(words)
        folder = Path(words[words.index("--save_dir") + 1])
        for name, word in when:
            path = folder / "results" / f"{name}.json"
            if path.is_file() and any(found.startswith(word) for found in words):
                row = {"image": name, "sample": 0, "step": 1, "reason": "not finite"}
                path.write_text(json.dumps({**row, "inputs": json.loads(path.read_text())["inputs"]}))
        return status

    return restore


def test_a_finalist_that_fails_gives_its_place_to_the_next(place, tmp_path, runs, monkeypatch):
    # A trial of three steps is best on the first picture, and fails on the other.
    monkeypatch.setattr(search, "restore", failing(search.restore, ("b", "ddim_steps=3")))
    assert tune.main(words(place, tmp_path / "out", "--pictures", "2")) == 0
    best = yaml.safe_load((tmp_path / "out" / "best.yaml").read_text())
    assert best["ddim_steps"] == 2
    rows = table(tmp_path / "out")
    assert (rows[0]["images"], float(rows[0]["gain"])) == ("2", 0)
    whole = [row["gain"] for row in rows if row["trial"] != "0" and row["images"] == "2"]
    assert sorted(gain == "-inf" for gain in whole) == [False, False, *[True] * (len(whole) - 2)]
    assert len(whole) > 2


def test_no_trial_that_has_failed_is_called_best(place, tmp_path, runs, monkeypatch, capsys):
    working = search.restore
    monkeypatch.setattr(search, "restore", failing(working, ("b", "ddim_steps=1")))
    budget = str(passes_of(place, 1))  # below the preset's
    out = tmp_path / "out"
    assert tune.main(words(place, out, "--max_passes", budget, "--trials", "2", "--pictures", "2")) == 2
    err = capsys.readouterr().err
    assert f"no trial restored all pictures: see {out / 'trials.csv'}" in err
    assert not (out / "best.yaml").exists()
    assert {row["gain"] for row in table(out) if row["trial"] != "0"} == {"-inf"}


def test_a_preset_that_fails_is_told_with_a_file_that_is_there(place, tmp_path, runs, monkeypatch, capsys):
    monkeypatch.setattr(search, "restore", failing(search.restore, ("a", "")))
    assert tune.main(words(place, tmp_path / "out")) == 2
    path = Path(capsys.readouterr().err.strip().rpartition("see ")[2])
    assert path.exists()


def test_two_trials_never_share_a_folder(place, tmp_path, runs, capsys):
    line = words(place, tmp_path / "out", "--trials", "6", "--pictures", "1")
    for name in ("a/b.npy", "a_b.npy"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        np.save(path, np.ones((SIDE, SIDE), np.float32))
    files = [str(tmp_path / name) for name in ("a/b.npy", "a_b.npy")]
    assert tune.main([f"measurement.operator.mask_file={','.join(files)}", *line[3:]]) == 2
    assert "two points have the folder" in capsys.readouterr().err
    assert not runs


def passes_of(place, steps):
    line = words(place, place / "unused")
    args = tune.parse([f"ddim_steps={steps}", *line[1:]])
    own = search.Search(**{key: value for key, value in vars(args).items() if key != "debug"})
    return search.passes(own.points((f"ddim_steps={steps}", SPACE[2])))


def test_a_dry_run_lists_the_trials_and_writes_nothing(place, tmp_path, runs, capsys):
    assert tune.main(words(place, tmp_path / "out", "--dry_run")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert not runs
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["ddim_eta=2..3"], "ddim_eta"),
        (["ddim_eta=0.5..0.1"], "expected LOW below HIGH"),
        (["ddim_eta=log:0..1"], "both above 0"),
        (["ddim_eta=log:1,2"], "expected ddim_eta=log:LOW..HIGH"),
        (["ddim_eta=a..b"], "expected two numbers"),
        (["ddim_stepz=1..2"], "did you mean 'ddim_steps'"),
        (["--max_passes", "1"], "above --max_passes"),
        (["--tasks", "hole"], "did you mean 'holes'"),
        (["--trials", "0"], "--trials"),
        (["--", "--limit", "2"], "the search itself gives that"),
        (["--", "--shard", "1/2"], "--shard after --: a trial is scored by all of its pictures"),
        (["--", "--measurement", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_line(extra, message, place, tmp_path, runs, capsys):
    line = words(place, tmp_path / "out")
    end = line.index("--")
    assert tune.main([*line[:end], *extra, *line[end:]] if "--" not in extra else [*line, *extra[1:]]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
    assert not runs
    assert not (tmp_path / "out").exists()


def test_nothing_to_search_is_a_mistake(place, tmp_path, capsys):
    assert tune.main(["ddim_steps=1", *words(place, tmp_path / "out")[3:]]) == 2
    assert "nothing to search" in capsys.readouterr().err


def test_ranges_are_drawn_as_they_say():
    rng = np.random.RandomState(0)

    def drawn(word):
        axis = read_axis(word)
        return np.array([float(axis.draw(rng).removeprefix("a=")) for _ in range(4000)])

    whole = drawn("a=2..5")
    assert [np.mean(whole == value) for value in (2, 3, 4, 5)] == pytest.approx([0.25] * 4, abs=0.03)
    even, log = drawn("a=0.01..1"), drawn("a=log:0.01..1")
    assert (np.mean(even < 0.505), np.mean(log < 0.1)) == pytest.approx((0.5, 0.5), abs=0.03)
    assert (min(even.min(), log.min()) >= 0.01, max(even.max(), log.max()) <= 1) == (True, True)
    assert set(drawn("a=1,4,9")) == {1, 4, 9}
    assert read_axis("a={x: 1, y: 2}").fixed


def test_the_best_settings_hold_for_operators_that_the_preset_names(place, tmp_path, runs):
    own = place / "by_operator.yaml"
    own.write_text(yaml.safe_dump({"ddim_steps": 2, "by_operator": {"inpainting": {"ddim_steps": 1}}}))
    line = words(place, tmp_path / "out", "--trials", "2", "--pictures", "1")
    line[line.index("--preset") + 1] = str(own)
    assert tune.main(["ddim_steps=3,4", *line[1:]]) == 0
    best = yaml.safe_load((tmp_path / "out" / "best.yaml").read_text())
    assert best["by_operator"]["inpainting"]["ddim_steps"] == best["ddim_steps"] >= 3
