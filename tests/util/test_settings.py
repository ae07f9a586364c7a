"""Laying task file, preset and command line over the defaults."""

import pytest

from util.errors import UserError
from util.settings import find_preset, from_words, resolve

TASK = {"measurement": {"operator": {"name": "gaussian_blur", "kernel_size": 61}, "noise": {"name": "clean"}}}


def resolved(*layers):
    return resolve([("task", TASK), *(("layer", layer) for layer in layers)])


def test_defaults_are_the_published_ones():
    settings = resolved()
    assert (settings.ddim_steps, settings.ddim_eta, settings.ddim_scale) == (500, 0.0, 1.0)
    assert (settings.conditioning.main_sampler, settings.conditioning.method) == ("resample", "ps")
    assert settings.conditioning.resample == {}


def test_later_layers_win_key_by_key():
    settings = resolved(
        {"ddim_steps": 50, "conditioning": {"resample": {"gamma": 10, "interval": 5}}},
        {"ddim_steps": 7, "conditioning": {"resample": {"interval": 3}}, "measurement": {"noise": {"sigma": 0.1}}},
    )
    assert settings.ddim_steps == 7
    assert settings.conditioning.resample == {"gamma": 10, "interval": 3}
    assert settings.measurement.noise == {"name": "clean", "sigma": 0.1}
    assert settings.measurement.operator["kernel_size"] == 61


def test_another_operator_or_noise_does_not_inherit_keywords():
    task = {"operator": {"name": "gaussian_blur", "intensity": 3.0}, "noise": {"name": "gaussian", "sigma": 0.01}}
    layers = [("task", {"measurement": task})]
    same = resolve(
        [*layers, ("words", {"measurement": {"noise": {"name": "gaussian"}, "operator": {"kernel_size": 9}}})]
    )
    assert same.measurement.noise == task["noise"]
    assert same.measurement.operator == {**task["operator"], "kernel_size": 9}
    words = {"measurement": {"noise": {"name": "poisson", "rate": 1}, "operator": {"name": "motion_blur"}}}
    other = resolve([*layers, ("words", words)])
    assert other.measurement.noise == {"name": "poisson", "rate": 1}
    assert other.measurement.operator == {"name": "motion_blur"}


def test_tuples_of_published_files_stay_sequences():
    settings = resolved({"measurement": {"mask_opt": {"mask_prob_range": (0.7, 0.71)}}})
    assert list(settings.measurement.mask_opt["mask_prob_range"]) == [0.7, 0.71]


@pytest.mark.parametrize(
    ("layer", "told"),
    [
        ({"ddim_step": 3}, "layer: unknown setting 'ddim_step': did you mean 'ddim_steps'"),
        ({"measurement": {"operatr": {}}}, "unknown setting of measurement 'operatr': did you mean 'operator'"),
        ({"ddim_steps": "many"}, "ddim_steps"),
        ({"ddim_steps": 2.5}, "ddim_steps"),
        ({"ddim_steps": 0}, "ddim_steps"),
        ({"ddim_steps": None}, "ddim_steps"),
        ({"ddim_eta": 1.5}, "ddim_eta"),
        ({"ddim_eta": float("nan")}, "ddim_eta"),
        ({"ddim_scale": float("inf")}, "ddim_scale"),
        ({"class_label": "cat"}, "class_label"),
        ({"conditioning": 3}, "layer: "),
        ({"conditioning": {"params": 3}}, "conditioning.params"),
        ({"data": {"root": ["a"]}}, "data.root"),
        ({"data": {"root": "${nowhere}"}}, "nowhere"),
        ({"measurement": {"noise": {"name": 3}}}, "measurement.noise.name"),
        (["ddim_steps"], "layer: expected a mapping"),
    ],
)
def test_a_wrong_setting_is_told_in_one_line(layer, told):
    with pytest.raises(UserError) as error:
        resolved(layer)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_task_needs_an_operator():
    with pytest.raises(UserError, match=r"measurement\.operator\.name"):
        resolve([])


def test_words_become_a_nested_mapping_with_yaml_values():
    words = [("a.b", "1e-3"), ("a.c", "[1, 2]"), ("d", "true"), ("e", "text"), ("a.b", "2")]
    assert from_words(words) == {"a": {"b": 2, "c": [1, 2]}, "d": True, "e": "text"}


def test_a_word_is_plain_yaml():
    for text in ("[1", "!!python/object/apply:os.system [true]"):
        with pytest.raises(UserError, match="plain YAML"):
            from_words([("a", text)])


def test_presets_by_name_and_by_file(tmp_path):
    assert find_preset("demo").name == "demo.yaml"
    own = tmp_path / "own.yaml"
    assert find_preset(str(own)) == own
    with pytest.raises(UserError, match="did you mean 'demo'"):
        find_preset("demmo")
