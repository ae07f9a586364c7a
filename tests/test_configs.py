"""The presets and task files that come with the project."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ldm_inverse.runs.presets import PRESETS, shipped_presets
from ldm_inverse.solvers.resample_settings import ResampleSettings
from ldm_inverse.task import Task
from model_loader import load_yaml
from sample_condition import main
from scripts.sweeps.points import Point
from scripts.tuning.search import network_passes
from tests.runs import words
from util.errors import UserError
from util.settings import read

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("preset", shipped_presets())
def test_every_shipped_preset_is_accepted(preset, place, tmp_path):
    assert main(words(place, tmp_path, "--dry_run", "--preset", preset)) == 0


@pytest.mark.parametrize(
    ("preset", "passes"),
    [
        ("light", (6, 4, 5)),
        ("fast", (33, 22, 23)),
        ("demo", (21, 10, 11)),
        ("fastest", (21, 10, 11)),
        ("best", (117, 78, 78)),
    ],
)
def test_no_preset_for_quick_runs_sends_a_gradient_through_a_network(preset, passes):
    settings = load_yaml(PRESETS / f"{preset}.yaml")
    cost = read(ResampleSettings, settings["conditioning"]["resample"]).cost(settings["ddim_steps"])
    assert (cost.decoder, cost.unet_backward, cost.encoder_backward) == (0, 0, 0)
    assert (cost.unet, cost.decoder_forward, cost.encoder) == passes  # the decoding of the result is not among them


@pytest.mark.parametrize(("suffix", "budget"), [("", (20, 50)), ("-200", (100, 200))])
@pytest.mark.parametrize("solver", ["dps", "psld", "daps", "sitcom"])
def test_the_presets_of_the_other_solvers_keep_their_budget(solver, suffix, budget):
    words = ("--model", str(ROOT / "models/demo"), "--data", str(ROOT / "data/demo"))
    for task in sorted((ROOT / "configs/tasks/demo").glob("*.yaml")):
        point = Point(task, solver + suffix, 0, (), Path("nowhere"), words)
        conditioning = point.job.request.settings.conditioning
        assert conditioning.main_sampler == solver
        assert budget[0] <= network_passes(point.passes()) / conditioning.restarts <= budget[1]


TASKS = {
    "super_resolution": ("resample", 0.1, "ffhq", {"in_shape": (1, 3, 256, 256), "scale_factor": 4}, None),
    "gaussian_deblur": ("resample", 0.5, "celeb", {"kernel_size": 61, "intensity": 3.0}, None),
    "motion_deblur": ("resample", 1.0, "celeb", {"kernel_size": 61, "intensity": 0.5}, None),
    "inpainting": (
        *("resample", 0.5, "celeb", {}),
        {"mask_type": "random", "mask_prob_range": (0.7, 0.71)},
    ),
    "nonlinear_deblur": (*("dps", 0.3, "celeb", {"opt_yml_path": "./bkse/options/generate_blur/default.yml"}, None),),
}
OPERATORS = {"gaussian_deblur": "gaussian_blur", "motion_deblur": "motion_blur", "nonlinear_deblur": "nonlinear_blur"}


@pytest.mark.parametrize("name", TASKS)
def test_the_published_task_files_are_as_published(name):
    sampler, scale, data, operator, mask_opt = TASKS[name]
    assert load_yaml(ROOT / "configs" / "tasks" / f"{name}_config.yaml") == {
        "conditioning": {"main_sampler": sampler, "method": "ps", "params": {"scale": scale}},
        "data": {"name": data, "root": "./data/samples/"},
        "measurement": {
            "operator": {"name": OPERATORS.get(name, name), **operator},
            "noise": {"name": "gaussian", "sigma": 0.01},
            **({"mask_opt": mask_opt} if mask_opt else {}),
        },
    }


SHIPPED = sorted((ROOT / "configs" / "tasks").rglob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=[str(path.relative_to(ROOT / "configs" / "tasks")) for path in SHIPPED])
def test_every_shipped_task_can_be_measured(path, tmp_path, monkeypatch):
    content = load_yaml(path)
    assert "resample" not in content["conditioning"]  # the solver's settings are left to presets
    if content["measurement"]["operator"]["name"] == "nonlinear_blur":
        monkeypatch.chdir(tmp_path)  # where its downloaded weights are not
        with pytest.raises(UserError, match="blur-kernel-space-exploring"):
            Task(**content["measurement"])
        return
    side = 128 if path.parent.name == "demo" else 256
    task = Task(**content["measurement"])
    task.operator.check_size(side, side)
    image = torch.rand(1, 3, side, side) * 2 - 1
    measurement = task.measure(image, np.random.RandomState(0), np.random.RandomState(1))
    assert measurement.y.isfinite().all()
    assert json.dumps(task.settings)
