"""The training loop: its settings, averages and timesteps in closed form, and going on where it stopped."""

import csv

import numpy as np
import pytest
import torch

from ldm.training.average import PowerAverage, exponent
from ldm.training.diffusion import draw_timesteps, timestep_probabilities
from ldm.training.loop import Budget, Training, learning_rate, stage_at
from ldm.training.settings import (
    AutoencoderSettings,
    NoiseLevels,
    PriorSettings,
    TrainingSettings,
    read_training,
)
from util.errors import UserError


@pytest.mark.parametrize("width", [0.05, 0.1, 0.2, 0.28])
def test_moving_average_in_closed_form(width):
    """After n steps step k weighs as ``k^(g + 1) - (k - 1)^(g + 1)``-like products of Karras et al., equation 2.

    Its deviation in time is the width, and the initial weights do not count.
    """
    weight, steps = torch.nn.Linear(1, 1, bias=False).double(), 2000
    average = PowerAverage(weight, width)
    for value in range(1, steps + 1):
        torch.nn.init.constant_(weight.weight, value)
        average.update(weight)
    keep = (1 - 1 / np.arange(1, steps + 1)) ** (exponent(width) + 1)
    weights = (1 - keep) * np.append(np.cumprod(keep[:0:-1])[::-1], 1)
    times = np.arange(1, steps + 1)
    with average.applied(weight):
        assert weight.weight.item() == pytest.approx((weights * times).sum())
    assert weight.weight.item() == steps
    deviation = np.sqrt((weights * (times - (weights * times).sum()) ** 2).sum())
    assert deviation / steps == pytest.approx(width, rel=0.02)


def settings(**changes):
    given = {"learning_rate": 0.1, "averages": [0.1], "stages": [{"share": 1, "batch_size": 1}], **changes}
    return TrainingSettings.model_validate(given)


def test_learning_rate_warms_up_and_falls_to_nothing():
    rates = [learning_rate(settings(), step, 0.0) for step in (0, 99, 199, 5000)]
    assert rates == pytest.approx([0.0005, 0.05, 0.1, 0.1], abs=1e-5)
    assert learning_rate(settings(), 5000, 0.5) == pytest.approx(0.05, abs=1e-5)
    assert learning_rate(settings(), 5000, 1.0) == pytest.approx(0, abs=1e-5)


def test_learning_rate_without_an_end_falls_as_one_over_the_root():
    rates = [learning_rate(settings(flat_steps=400), step, 0.9) for step in (99, 300, 400, 1600, 40_000)]
    assert rates == pytest.approx([0.05, 0.1, 0.1, 0.05, 0.01], abs=1e-5)


def test_stages_share_the_training():
    stages = settings(stages=[{"share": "1/4", "batch_size": 1}, {"share": 0.75, "batch_size": 2}]).stages
    assert [stage_at(stages, p).batch_size for p in (0, 0.24, 0.26, 0.99, 1.0)] == [1, 1, 2, 2, 2]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"stages": [{"share": 0.5, "batch_size": 1}]}, "stages: expected shares that add up to 1"),
        ({"stages": []}, "stages: "),
        ({"averages": [0.3]}, "averages.0: expected a number above 0, up to 0.288, got 0.3"),
        ({"ema_decay": 0.9}, "unknown setting of training.diffusion 'ema_decay'"),
        ({"timesteps": {"mean": 0}}, "training.diffusion.timesteps needs deviation"),
        ({"timesteps": "cosine"}, "timesteps: expected 'uniform'"),
    ],
)
def test_wrong_settings_are_told_in_a_line(change, told):
    block = {"learning_rate": 0.1, "averages": [0.1], "stages": [{"share": 1, "batch_size": 1}], "weight_cap": 20}
    with pytest.raises(UserError) as error:
        read_training(PriorSettings, {"training": {"diffusion": {**block, **change}}}, "diffusion")
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_crops_must_fit_the_first_stage():
    given = {"learning_rate": 0.1, "averages": [0.1], "init": "random", "whitening": 0, "trainable": "all"}
    for crop in (None, 30, 64):
        stages = [{"share": 1, "batch_size": 1, "crop": crop}]
        with pytest.raises(UserError, match=r"stages\.0\.crop: expected a multiple of 4, at most 32"):
            AutoencoderSettings.model_validate({**given, "stages": stages}).check_crops(32, 4)


def test_timesteps_drawn_by_noise_level_are_normal_but_for_a_uniform_tenth():
    abar = np.cumprod(1 - np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2)
    chosen = timestep_probabilities(abar, NoiseLevels(mean=-0.5, deviation=0.6))
    log_sigma = np.log(np.sqrt((1 - abar) / abar))
    assert chosen.sum() == pytest.approx(1)
    normal = (chosen - 0.1 / 1000) / 0.9
    mean = (normal * log_sigma).sum()
    assert mean == pytest.approx(-0.5, abs=0.01)
    assert np.sqrt((normal * (log_sigma - mean) ** 2).sum()) == pytest.approx(0.6, abs=0.01)
    assert chosen.min() > 0.099 / 1000
    assert timestep_probabilities(abar, "uniform").tolist() == [1 / 1000] * 1000
    with pytest.raises(UserError, match=r"mean is 1000: the logarithm of sigma goes from -3\.\d+ to 4\.\d+"):
        timestep_probabilities(abar, NoiseLevels(mean=1000, deviation=0.6))


def test_a_batch_takes_one_timestep_of_each_equal_slice():
    probabilities = np.array([0.5, 0.25, 0.125, 0.125])
    rng = np.random.RandomState(0)
    drawn = np.array([draw_timesteps(probabilities, 8, rng) for _ in range(50)])
    assert (np.sort(drawn) == [0, 0, 0, 0, 1, 1, 2, 3]).all()
    assert len({tuple(row) for row in drawn}) > 40


class Steps(Training):
    """A training of a linear map whose loss is its value at one, squared."""

    def __init__(self, folder, steps, **changes):
        torch.manual_seed(0)
        super().__init__(torch.nn.Linear(2, 1), settings(**changes), Budget(steps=steps), folder, 0, lambda width: {})

    def loss(self, stage, rng):
        return self.network(torch.full((1, 2), rng.uniform())).square().mean()


def test_training_minimises_logs_and_resumes(tmp_path):
    first = Steps(tmp_path, 150)
    before = first.network(torch.ones(1, 2)).square().item()
    first.report = lambda width: {"seen": 1.0}
    first.run(first.loss)
    assert first.step == 150
    assert first.network(torch.ones(1, 2)).square().item() < 0.5 * before

    second = Steps(tmp_path, 150)
    assert (second.step, second.seconds) == (first.step, first.seconds)
    assert torch.equal(second.network.weight, first.network.weight)
    assert torch.equal(second.averages[0.1].average["weight"], first.averages[0.1].average["weight"])
    assert second.optimiser.state_dict()["state"][0]["step"] == first.step
    assert second.rng.uniform() == first.rng.uniform()
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert int(rows[-1]["step"]) == first.step
    assert rows[-1]["seen"] == "1.0"


def test_a_training_that_was_stopped_ends_as_one_that_was_not(tmp_path):
    whole = Steps(tmp_path / "a", 90, flat_steps=50)
    whole.run(whole.loss)
    for steps in (40, 90):
        parts = Steps(tmp_path / "b", steps, flat_steps=50)
        parts.run(parts.loss)
    assert torch.equal(parts.network.weight, whole.network.weight)
    assert torch.equal(parts.averages[0.1].average["weight"], whole.averages[0.1].average["weight"])


def test_what_a_loss_has_counted_goes_on_too(tmp_path):
    class Counted:
        calls = 0

        def __init__(self, training):
            self.training = training

        def __call__(self, stage, rng):
            self.calls += 1
            return self.calls * self.training.loss(stage, rng)

        def state_dict(self):
            return {"calls": self.calls}

        def load_state_dict(self, state):
            self.calls = state["calls"]

    whole = Steps(tmp_path / "a", 60, flat_steps=50)
    whole.run(Counted(whole))
    for steps in (25, 60):
        parts = Steps(tmp_path / "b", steps, flat_steps=50)
        parts.run(Counted(parts))
    assert torch.equal(parts.network.weight, whole.network.weight)


def test_every_average_is_reported_under_a_name_of_its_own(tmp_path):
    training, seen = Steps(tmp_path, 30, averages=[0.05, 0.2]), {}

    def report(width):
        seen[width] = training.network.weight.detach().clone()
        return {"x": width}

    training.report = report
    assert training.run(training.loss) == {"x-0.05": 0.05, "x-0.2": 0.2}
    for width, average in training.averages.items():
        assert torch.equal(seen[width], average.average["weight"])
    assert not torch.equal(seen[0.05], seen[0.2])


def test_a_training_of_minutes_ends(tmp_path):
    training = Training(torch.nn.Linear(2, 1), settings(), Budget(minutes=0.005), tmp_path, 0, lambda width: {})
    training.run(lambda stage, rng: training.network(torch.ones(1, 2)).square().mean())
    assert training.step > 0
    assert 0.3 <= training.seconds < 5


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path):
    training = Steps(tmp_path, 5)
    with pytest.raises(UserError, match="nan at step 1"):
        training.run(lambda stage, rng: training.network(torch.full((1, 2), float("nan"))).mean())
    assert not (tmp_path / "state.pt").exists()
