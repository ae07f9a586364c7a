"""Laying task file, preset and command line over the defaults."""

import pytest

from ldm_inverse.runs.command_line import parse_args
from ldm_inverse.runs.presets import find_preset
from ldm_inverse.runs.request import read_request
from ldm_inverse.runs.settings import from_words, resolve
from util.errors import UserError

TASK = {"measurement": {"operator": {"name": "gaussian_blur", "kernel_size": 61}, "noise": {"name": "clean"}}}


def resolved(*layers):
    return resolve([("task", TASK), *(("layer", layer) for layer in layers)])


def test_defaults_are_the_published_ones():
    settings = resolved()
    assert (settings.ddim_steps, settings.ddim_eta, settings.ddim_scale) == (500, 0.0, 1.0)
    assert (settings.conditioning.main_sampler, settings.conditioning.method) == ("resample", "ps")
    assert settings.conditioning.chosen.interval == 10


def test_later_layers_win_key_by_key():
    settings = resolved(
        {"ddim_steps": 50, "conditioning": {"resample": {"gamma": 10, "interval": 5}}},
        {"ddim_steps": 7, "conditioning": {"resample": {"interval": 3}}, "measurement": {"noise": {"sigma": 0.1}}},
    )
    assert settings.ddim_steps == 7
    assert (settings.conditioning.chosen.gamma, settings.conditioning.chosen.interval) == (10, 3)
    assert settings.measurement.noise.to_plain() == {"name": "clean", "sigma": 0.1}
    assert settings.measurement.operator.to_plain()["kernel_size"] == 61


def test_another_operator_or_noise_does_not_inherit_keywords():
    task = {"operator": {"name": "gaussian_blur", "intensity": 3.0}, "noise": {"name": "gaussian", "sigma": 0.01}}
    layers = [("task", {"measurement": task})]
    same = resolve(
        [*layers, ("words", {"measurement": {"noise": {"name": "gaussian"}, "operator": {"kernel_size": 9}}})]
    )
    assert same.measurement.noise.to_plain() == task["noise"]
    assert same.measurement.operator.to_plain() == {**task["operator"], "kernel_size": 9}
    words = {"measurement": {"noise": {"name": "poisson", "rate": 1}, "operator": {"name": "motion_blur"}}}
    other = resolve([*layers, ("words", words)])
    assert other.measurement.noise.to_plain() == {"name": "poisson", "rate": 1}
    assert other.measurement.operator.to_plain() == {"name": "motion_blur"}


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
    for task in ({}, {"measurement": {}}):
        with pytest.raises(UserError, match=r"^task\.yaml: (settings needs measurement|measurement needs operator)$"):
            resolve([("task.yaml", task), ("command line", {"ddim_steps": 3})])


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


BY_OPERATOR = """
ddim_steps: 5
conditioning: {dps: &own {scale: 0.1}, main_sampler: dps}
by_operator:
  gaussian_blur: &blur {ddim_steps: 7, conditioning: {dps: {scale: 0.2}}}
  motion_blur: *blur
"""


@pytest.mark.parametrize(
    ("words", "steps", "scale"),
    [
        ([], 5, 0.1),
        (["measurement.operator.name=gaussian_blur"], 7, 0.2),
        (["measurement.operator={name: motion_blur, kernel_size: 5}"], 7, 0.2),
        (["measurement.operator.name=gaussian_blur", "conditioning.dps.scale=0.3"], 7, 0.3),
    ],
)
def test_a_preset_has_settings_of_its_own_for_an_operator(words, steps, scale, tmp_path):
    (tmp_path / "own.yaml").write_text(BY_OPERATOR)
    line = ["--task_config", "configs/tasks/inpainting_config.yaml", "--preset", str(tmp_path / "own.yaml"), *words]
    settings = read_request(parse_args(line)).settings
    assert (settings.ddim_steps, settings.conditioning.chosen.scale) == (steps, scale)
    assert "by_operator" not in settings.recorded()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("by_operator: {gaussian_blurr: {ddim_steps: 3}}", "did you mean 'gaussian_blur'"),
        ("by_operator: [gaussian_blur]", "expected a mapping of operators' names to settings"),
        ("by_operator: {inpainting: 3}", "expected a mapping of operators' names to settings"),
        ("by_operator: {inpainting: {ddim_step: 3}}", r"by_operator\.inpainting: .*did you mean 'ddim_steps'"),
    ],
)
def test_mistakes_in_a_preset_for_an_operator_are_told(text, message, tmp_path):
    (tmp_path / "own.yaml").write_text(text)
    line = ["--task_config", "configs/tasks/inpainting_config.yaml", "--preset", str(tmp_path / "own.yaml")]
    with pytest.raises(UserError, match=message):
        read_request(parse_args(line))
