"""The solver's settings: defaults, stages, what is refused and how it is told."""

from fractions import Fraction
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from ldm_inverse.solvers.resample_settings import (
    LatentSettings,
    PixelSettings,
    ResampleSettings,
    StageShares,
)
from ldm_inverse.solvers.settings import RefineSettings
from util.errors import UserError
from util.settings import read

PRESETS = Path(__file__).resolve().parents[3] / "configs" / "presets"


def preset(name):
    return read(ResampleSettings, yaml.safe_load((PRESETS / name).read_text())["conditioning"]["resample"])


def leaves(config):
    return {key: leaves(value) if isinstance(value, dict) else None for key, value in config.items()}


# Defaults and presets.


def test_the_reference_preset_names_every_setting_with_its_default():
    assert preset("reference.yaml") == ResampleSettings()
    written = yaml.safe_load((PRESETS / "reference.yaml").read_text())["conditioning"]["resample"]
    assert leaves(written) == leaves(ResampleSettings().to_plain())


def test_the_paper_preset_mends_the_formulas_and_leaves_out_the_soft_step():
    assert preset("paper.yaml") == ResampleSettings(
        soft_step=False, tweedie="exact", travel_index="exact", resample_variance="paper"
    )


def test_defaults_are_the_references_constants():
    settings = ResampleSettings()
    assert (settings.interval, settings.travel_length, settings.gamma, settings.soft_scale) == (10, 5, 40.0, 0.5)
    assert settings.pixel == PixelSettings(lr=1e-2, weight_decay=1e-2, max_iters=2000, eps=1e-3, window=None)
    assert settings.latent == LatentSettings(lr=5e-3, weight_decay=1e-2, max_iters=500, eps=1e-3, window=200)
    assert settings.final_stage == settings.latent


# Stages.


def test_stages_are_the_references_for_every_number_of_steps():
    settings = ResampleSettings()
    for steps in range(1, 1001):
        for k in range(steps):
            expected = None
            if 0 < k <= steps - steps // 3 and k % 10 == 0:
                expected = "pixel" if k >= steps // 3 else "latent"
            assert settings.stage_at(k, steps) == expected


def test_five_hundred_steps_have_33_events():
    stages = [ResampleSettings().stage_at(k, 500) for k in range(500)]
    assert (stages.count("pixel"), stages.count("latent")) == (17, 16)


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ({"plain": 0, "latent": 0}, ["pixel"] * 9),
        ({"plain": 0, "latent": 1}, ["latent"] * 9),
        ({"plain": 1, "latent": 0}, [None] * 9),
        ({"plain": 0.5, "latent": "1/4"}, ["latent"] + ["pixel"] * 4 + [None] * 4),
    ],
)
def test_stages_by_share(shares, expected):
    settings = read(ResampleSettings, {"interval": 1, "stages": shares})
    assert [settings.stage_at(k, 10) for k in range(10)] == [None, *expected]


# Stopping.


def test_eps_is_a_root_mean_square():
    assert PixelSettings(eps=0.05).threshold(None) == 0.05**2
    assert PixelSettings(eps="noise").threshold(0.05) == 0.05**2


def test_eps_noise_of_a_clean_measurement_is_the_references():
    assert PixelSettings(eps="noise").threshold(0.0) == PixelSettings().threshold(None) == 1e-6


@pytest.mark.parametrize(
    "config",
    [{"pixel": {"eps": "noise"}}, {"latent": {"eps": "noise"}}, {"final": {"eps": "noise"}}, {"refine": {}}],
)
def test_an_unknown_noise_level_is_refused_wherever_it_is_asked_for(config):
    settings = read(ResampleSettings, config)
    settings.check_noise_level(0.01)
    with pytest.raises(UserError, match="not known"):
        settings.check_noise_level(None)


# Reading.


def test_a_mapping_names_only_what_differs_and_comes_back():
    config = {"interval": 20, "stages": {"plain": 0.25}, "latent": {"eps": "noise"}, "pixel": {"lr": "1e-2"}}
    settings = read(ResampleSettings, OmegaConf.create(config))
    assert settings == ResampleSettings(
        interval=20, stages=StageShares(plain=Fraction(1, 4)), latent=LatentSettings(eps="noise")
    )
    assert read(ResampleSettings, yaml.safe_load(yaml.safe_dump(settings.to_plain()))) == settings
    assert read(ResampleSettings, None) == ResampleSettings()


def test_refining_is_off_and_a_mapping_names_what_differs():
    assert ResampleSettings().refine is None
    settings = read(ResampleSettings, {"refine": {"deviation": 0.1}})
    assert settings.refine == RefineSettings(deviation=0.1)
    assert read(ResampleSettings, settings.to_plain()) == settings
    assert read(ResampleSettings, {"refine": {}}).refine == RefineSettings()


def test_the_result_is_decoded_as_the_last_optimisation_saw_it():
    assert ResampleSettings().decodes_quantised
    assert not read(ResampleSettings, {"final": {"quantise": False}}).decodes_quantised
    assert not read(ResampleSettings, {"final": False, "latent": {"quantise": False}}).decodes_quantised


def test_the_final_stage_follows_the_latent_one_but_where_it_differs():
    latent = {"latent": {"lr": 0.1, "max_iters": 7}}
    assert read(ResampleSettings, latent).final_stage == LatentSettings(lr=0.1, max_iters=7)
    assert read(ResampleSettings, {**latent, "final": False}).final_stage is None
    changed = read(ResampleSettings, {**latent, "final": {"max_iters": 9}})
    assert changed.final_stage == LatentSettings(lr=0.1, max_iters=9)
    assert read(ResampleSettings, changed.to_plain()) == changed


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"gama": 1}, r"unknown setting of conditioning.resample 'gama': did you mean 'gamma'\?"),
        ({"latent": {"widow": 1}}, r"conditioning.resample.latent 'widow': did you mean 'window'\?"),
        ({"final": {"lrs": 1}}, r"conditioning.resample.final 'lrs': did you mean 'lr'\?"),
        ({"pixel": {"quantise": False}}, r"unknown setting of conditioning.resample.pixel 'quantise'"),
        ({"interval": 0}, "conditioning.resample.interval: expected a whole number, 1 or more, got 0"),
        ({"interval": 2.5}, "interval: expected a whole number, 1 or more, got 2.5"),
        ({"interval": True}, "interval: expected a whole number, 1 or more, got True"),
        ({"interval": None}, "interval: expected a whole number, 1 or more, got None"),
        ({"travel_length": "five"}, "travel_length: expected .*, got 'five'"),
        ({"gamma": 0}, "gamma: expected a number above 0, got 0"),
        ({"gamma": float("nan")}, "gamma: expected .*, got nan"),
        ({"gamma": "inf"}, "gamma: expected .*, got 'inf'"),
        ({"soft_scale": -1}, "soft_scale: expected a number, 0 or more, got -1"),
        ({"soft_step": "yes"}, "soft_step: expected true or false, got 'yes'"),
        ({"soft_step": 1}, "soft_step: expected true or false, got 1"),
        ({"tweedie": "paper"}, "tweedie: expected 'reference' or 'exact', got 'paper'"),
        ({"resample_variance": ["paper"]}, "resample_variance: expected 'reference' or 'paper', got .*"),
        ({"pixel": {"lr": -1}}, "conditioning.resample.pixel.lr: expected a number above 0, got -1"),
        ({"pixel": {"eps": 0}}, "pixel.eps: expected 'noise', or a number above 0, got 0"),
        ({"pixel": {"window": 0}}, "pixel.window: expected a whole number, 1 or more, got 0"),
        ({"pixel": {"max_iters": 1e400}}, "pixel.max_iters: expected .*, got inf"),
        ({"pixel": {"max_iters": 1e300}}, "pixel.max_iters: expected a whole number from 1 to 1e\\+09, got 1e\\+300"),
        ({"latent": {"lr": 1e300}}, "latent.lr: expected a number above 0, up to 1e\\+15, got 1e\\+300"),
        ({"latent": 3}, "conditioning.resample.latent: expected a mapping of settings, got 3"),
        ({"latent": {"lr": 0}, "final": {}}, "conditioning.resample.latent.lr: expected .*, got 0"),
        ({"refine": {"deviation": 0}}, "conditioning.resample.refine.deviation: expected a number above 0, got 0"),
        ({"refine": {"devition": 1}}, r"resample.refine 'devition': did you mean 'deviation'\?"),
        ({"refine": True}, "refine: expected a mapping of settings, got True"),
        ({"final": 3}, "final: expected true or false, or a mapping of settings, got 3"),
        ({"stages": {"plain": 1.5}}, "stages.plain: expected a share from 0 to 1.*, got 1.5"),
        ({"stages": {"plain": "1/0"}}, "stages.plain: expected .*, got '1/0'"),
        ({"stages": {"plain": True}}, "stages.plain: expected .*, got True"),
        (
            {"stages": {"plain": 0.7, "latent": 0.4}},
            "resample.stages: expected plain and latent together at most 1",
        ),
        ([1], "conditioning.resample: expected a mapping of settings, got .*"),
    ],
)
def test_mistakes_are_told_with_their_place(config, told):
    with pytest.raises(UserError, match=told) as caught:
        read(ResampleSettings, config, "conditioning.resample")
    assert "\n" not in str(caught.value)


def test_settings_made_in_code_are_checked_too():
    with pytest.raises(ValueError, match="expected a number above 0"):
        ResampleSettings(gamma=-1)
    with pytest.raises(ValueError, match="LatentSettings"):
        ResampleSettings(latent=PixelSettings())
