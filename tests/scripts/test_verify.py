"""The protocol for somebody's own weights: what it restores, what it shows beside, and fingerprints compared."""

import contextlib
import io
import json

import numpy as np
import pytest

import sample_condition
from scripts import verify
from scripts.verification import protocol
from scripts.verification.fingerprint import compare
from scripts.verification.published import explanations, read_published, reported
from tests.diffusers_folder import write_folder
from tests.runs import QUICK, pixels, rows


@pytest.fixture(scope="module")
def words(place, tmp_path_factory):
    """The words of a quick run of the command in this process."""

    def words(out, *own, rest=()):
        model = ["--ldm_config", place / "tiny.yaml", "--diffusion_config", place / "tiny.safetensors"]
        run = ["--task", place / "task.yaml", "--data", place / "pictures", "--device", "cpu", "--save_dir", out]
        return [*map(str, (*model, *run, "--quick", *own)), "--", "--quiet", *QUICK, *rest]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "restore", sample_condition.main)
        patch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("hub")))  # no networks of the machine
        yield words


@pytest.fixture(scope="module")
def done(words, tmp_path_factory):
    """The folder of a quick run, and what it has printed."""
    out, printed = tmp_path_factory.mktemp("done") / "out", io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert verify.main(words(out)) == 0
    return out, printed.getvalue()


def test_the_protocol_is_run_and_shown_beside_published_figures(done):
    folder, out = done
    assert "ddim_steps: 20" in (folder / "run" / "settings.yaml").read_text()
    table = rows(folder / "run" / "metrics.csv")
    assert len(table) == 2
    (line,) = (line.split() for line in out.splitlines() if line.startswith("here "))
    assert line[1] == "2"
    assert float(line[2]) == pytest.approx(np.mean([float(row["psnr"]) for row in table]), abs=0.006)
    assert any("random inpainting *" in line and "29.61" in line and "0.140" in line for line in out.splitlines())
    assert "Not checked" in out
    assert "noise of sigma 0.05 in [-1, 1] there, gaussian of sigma 0.01 here" in out
    assert "S = 20 here; 500 is the published setting" in out
    assert "100 images there, 2 here" in out


def test_a_folder_in_the_diffusers_layout_is_verified(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(protocol, "restore", sample_condition.main)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    folder = write_folder(tmp_path / "model", "vq")
    given = ["--model", folder, "--task", place / "task.yaml", "--data", place / "pictures", "--device", "cpu"]
    words = [str(word) for word in (*given, "--quick", "--save_dir", tmp_path / "out")]
    assert verify.main([*words, "--", "--quiet", *QUICK]) == 0
    found = json.loads((tmp_path / "out" / "fingerprint.json").read_text())
    assert len(found["images"]) == 2
    assert len(found["checkpoint"]["sha256"]) == 64
    assert verify.main([*words, "--compare", str(tmp_path / "out" / "fingerprint.json"), "--", "--quiet", *QUICK]) == 0
    assert "no difference" in capsys.readouterr().out


def test_a_fingerprint_holds_the_figures_of_what_is_written(done):
    folder, _ = done
    found = json.loads((folder / "fingerprint.json").read_text())
    assert found["settings"]["ddim_steps"] == 20
    assert set(found["versions"]) >= {"python", "torch", "numpy"}
    run = folder / "run"
    for row in rows(run / "metrics.csv"):
        image = found["images"][row["image"]]
        values = pixels(run / "recon" / f"{row['image']}.png") / 127.5 - 1
        assert image["restoration"] == pytest.approx([values.mean(), values.std()], abs=1e-5)
        trace = rows(run / "progress" / row["image"] / "trace.csv")
        assert [event[1] for event in image["events"]] == [event["stage"] for event in trace]
        assert image["passes"]["unet"] == sum(int(event["unet"]) for event in trace)
        assert image["psnr"] == pytest.approx(float(row["psnr"]), abs=1e-3)
        assert image["estimates"]


def test_two_runs_are_compared_to_where_they_part(words, done, tmp_path, capsys):
    mine, theirs = tmp_path / "mine", done[0]
    assert verify.main(words(mine, "--compare", theirs / "fingerprint.json")) == 0
    assert "no difference" in capsys.readouterr().out
    other = tmp_path / "other"
    rest = ["conditioning.resample.latent.lr=0.03"]
    assert verify.main(words(other, rest=rest)) == 0
    capsys.readouterr()
    assert verify.main(["--compare", str(other / "fingerprint.json"), str(theirs / "fingerprint.json")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "conditioning.resample.latent.lr: 0.03 here, 0.005 there" in lines
    first = next(row for row in rows(other / "run" / "progress" / "a_jpg" / "trace.csv") if row["stage"] == "latent")
    assert any(line.startswith(f"a_jpg: alike until step {first['step']}, latent") for line in lines)


def test_other_measurements_are_told_from_other_arithmetic(done):
    mine = json.loads((done[0] / "fingerprint.json").read_text())
    theirs = json.loads(json.dumps(mine))
    theirs["device"] = "another card"
    theirs["images"]["a_png"]["events"][-1][-1] = str(1 + float(mine["images"]["a_png"]["events"][-1][-1]))
    lines, same = compare(mine, theirs)
    assert same
    assert lines[0] == "device: cpu here, another card there"
    assert lines[1].startswith("a_png: alike until step")
    theirs["images"]["a_png"]["measurement"][0] += 0.01
    lines, same = compare(mine, theirs)
    assert not same
    assert lines[0].startswith("a_png: other pictures or draws")


def test_published_rows_are_of_the_task_and_say_their_conditions():
    published = read_published()
    found = reported(published, {"operator": {"name": "super_resolution", "scale_factor": 4}, "noise": {}})
    assert {row.figures.psnr for row in found} == {23.29, 30.45, 22.98, 28.56}
    assert not reported(published, {"operator": {"name": "super_resolution", "scale_factor": 2}})
    assert not reported(published, {"operator": {"name": "inpainting"}, "mask_opt": {"mask_type": "box"}})
    settings = {"measurement": {"noise": {"name": "gaussian", "sigma": 0.05}}, "data": {"root": "faces"}}
    settings |= {"conditioning": {"main_sampler": "resample"}, "ddim_steps": 500}
    record = {"settings": settings, "run": {"preset": "reference", "diffusion_config": "ffhq.ckpt"}}
    told = " ".join(explanations(found[0].source, record, 100))
    assert "sigma" not in told
    assert "S =" not in told
    for source in published.sources:
        assert source.known


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "give --task and --data"),
        (["--task", "super_resolution", "--data", "."], "give --model"),
        (["--compare", "a", "b", "c"], "one fingerprint or two"),
        (["--compare", "nowhere.json", "nowhere.json"], "cannot read nowhere.json"),
        (["--images", "0"], "--images"),
    ],
)
def test_what_cannot_be_run_is_refused(given, told, capsys, monkeypatch):
    monkeypatch.setattr(protocol, "restore", lambda _: pytest.fail("it was run"))
    assert verify.main(given) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", ["", "[]", '{"settings": {}}', '{"settings": {}, "images": {"a": 3}, "checkpoint": {}, "versions": {}}']
)
def test_what_is_no_fingerprint_is_refused(content, tmp_path, capsys):
    path = tmp_path / "f.json"
    path.write_text(content)
    assert verify.main(["--compare", str(path), str(path)]) == 2
    assert "is not a fingerprint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("estimates", None),
        ("estimates", {"0001": [0.5]}),
        ("estimates", {"0001": ["a", "b"]}),
        ("measurement", [0.1, 0.2, 0.3]),
        ("psnr", None),
    ],
)
def test_a_fingerprint_that_lacks_a_part_is_refused(key, value, done, tmp_path, capsys):
    whole = done[0] / "fingerprint.json"
    found = json.loads(whole.read_text())
    image = found["images"]["a_png"]
    image[key] = value
    if value is None and key == "estimates":
        del image[key]
    (tmp_path / "f.json").write_text(json.dumps(found))
    assert verify.main(["--compare", str(whole), str(tmp_path / "f.json")]) == 2
    assert "is not a fingerprint" in capsys.readouterr().err
