"""Finished runs on a tiny model, and the command that evaluates them."""

import pytest
import yaml

from sample_condition import main as restore
from scripts.evaluate import main
from tests.tiny import SIDE, write_model, write_pictures

MEASUREMENTS = {
    "inpainting": {
        "operator": {"name": "inpainting"},
        "mask_opt": {"mask_type": "random", "mask_prob_range": [0.5, 0.6], "image_size": SIDE},
    },
    "enlarging": {"operator": {"name": "super_resolution", "scale_factor": 4}},
}
RUNS = {
    "inpainting/one": ["--ddim_steps", "1"],
    "inpainting/two": ["--ddim_steps", "2"],
    "inpainting/one_again": ["--ddim_steps", "1", "--seed", "1"],
    "enlarging/one": ["--ddim_steps", "1"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of finished runs of three pictures."""
    place = tmp_path_factory.mktemp("runs")
    config, checkpoint = write_model(place)
    pictures = write_pictures(place / "pictures", ["a.png", "b b.png", "c.png"])
    for name, extra in RUNS.items():
        task = place / f"{name.partition('/')[0]}.yaml"
        measurement = MEASUREMENTS[task.stem] | {"noise": {"name": "gaussian", "sigma": 0.05}}
        task.write_text(yaml.safe_dump({"measurement": measurement}))
        words = ["--ldm_config", config, "--diffusion_config", checkpoint, "--task_config", task, "--data", pictures]
        words += ["--save_dir", place / name, "--device", "cpu", "--quiet", *extra]
        assert restore([*map(str, words), "conditioning.resample.latent.max_iters=1"]) == 0
    return place


@pytest.fixture
def without_networks(tmp_path, monkeypatch):
    """An empty folder for torch.hub's, so that what lies on the machine is not measured with."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))


@pytest.fixture
def evaluate(tmp_path, without_networks, capsys):
    """Evaluate runs; gives what was printed, and what was written by its name."""

    def evaluate(*words):
        assert main([*map(str, words), "--device", "cpu", "--save_dir", str(tmp_path / "tables")]) == 0
        return capsys.readouterr().out, {path.name: path.read_text() for path in (tmp_path / "tables").iterdir()}

    return evaluate


@pytest.fixture
def refused(tmp_path, without_networks, capsys):
    """Evaluate what must be refused; gives the message."""

    def refused(*words):
        assert main([*map(str, words), "--device", "cpu", "--save_dir", str(tmp_path / "tables")]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") <= 3
        assert not (tmp_path / "tables").exists()
        return err

    return refused
