"""Noise schedules, step selection and the timestep embedding, against recorded values and for every number of steps."""

import numpy as np
import pytest
import torch

from ldm.models.diffusion.prior import DDIMSchedule
from ldm.modules.diffusionmodules.util import (
    make_beta_schedule,
    make_ddim_sampling_parameters,
    make_ddim_timesteps,
    timestep_embedding,
)
from tests.reference.recorded import recorded, relative_error
from util.errors import UserError

RECORDED, _ = recorded("schedules")
GRIDS = sorted(key.split("/", 1)[1] for key in RECORDED if key.startswith("timesteps/"))


@pytest.mark.parametrize("name", ["linear", "cosine", "sqrt_linear", "sqrt"])
def test_betas(name):
    betas = torch.from_numpy(make_beta_schedule(name, 1000, linear_start=0.0015, linear_end=0.0195))
    assert relative_error(betas, RECORDED[f"betas/{name}"]) < 1e-12


@pytest.mark.parametrize("grid", GRIDS)
def test_recorded_timesteps_and_their_coefficients(grid):
    method, steps = grid.split("/")
    timesteps = RECORDED[f"timesteps/{grid}"].numpy()
    assert np.array_equal(make_ddim_timesteps(method, int(steps), 1000), timesteps)
    for eta in (0.0, 0.5, 1.0):
        got = make_ddim_sampling_parameters(RECORDED["alphas_cumprod/linear_float32"], timesteps, eta)
        for part, values in zip(("sigmas", "alphas", "alphas_prev"), got, strict=True):
            assert np.allclose(values, RECORDED[f"ddim/{grid}/eta{eta}/{part}"], rtol=1e-6, atol=0)


def test_every_number_of_steps_gives_exactly_so_many_valid_ones():
    for steps in range(1, 1001):
        timesteps = make_ddim_timesteps("uniform", steps, 1000)
        assert len(timesteps) == steps
        assert timesteps[0] >= 0
        assert timesteps[-1] < 1000
        assert (np.diff(timesteps) > 0).all()
        if 1000 % steps == 0 and steps < 1000:  # where the published grid is right
            assert np.array_equal(timesteps, 1 + np.arange(0, 1000, 1000 // steps))


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_a_number_of_steps_outside_the_range_is_refused(steps):
    with pytest.raises(UserError, match="from 1 to 1000"):
        DDIMSchedule.of(RECORDED["alphas_cumprod/linear_float32"], steps)


def test_schedule_counts_from_the_last_step_of_a_run():
    abar = RECORDED["alphas_cumprod/linear_float32"]
    schedule = DDIMSchedule.of(abar, 40)
    assert schedule.timesteps[:3] == (1, 26, 51)
    assert schedule.alphas[1] == abar[26].item()
    assert schedule.alphas_prev[1] == abar[1].item()
    assert schedule.alphas_prev[0] == abar[0].item()
    assert len(schedule) == 40


@pytest.mark.parametrize("dim", [32, 33])
def test_timestep_embedding(dim):
    got = timestep_embedding(torch.tensor([0, 1, 10, 999]), dim)
    assert relative_error(got, RECORDED[f"timestep_embedding/dim{dim}"]) < 1e-6
