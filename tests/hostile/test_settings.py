"""Task files, presets, model configurations and words that are no YAML, or say what cannot be."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from sample_condition import main
from tests.runs import words
from tests.tiny import CONFIG

ROOT = Path(__file__).resolve().parents[2]

NOT_A_TASK = {
    "empty": (b"", "expected settings"),
    "a list": (b"- a\n- b", "expected settings"),
    "text": (b"a task", "expected settings"),
    "not YAML": (b"measurement: [1,", "line 1"),
    "a quote without an end": (b"data: 'x", "line 1"),
    "tabs": (b"data:\n\tname: ffhq", "line 2"),
    "binary": (bytes(range(256)), "not valid YAML"),
    "not UTF-8": (b"data: \xff\xfe", "not valid YAML"),
    "a Python object": (b"data: !!python/object/apply:os.system ['touch sentinel']", "!!python/object/apply:os.system"),
    "a Python name": (b"data: !!python/name:os.system", "!!python/name:os.system"),
    "a tag of one's own": (b"data: !own x", "!own"),
    "a key twice": (b"data: {}\ndata: {}", "twice"),
    "contains itself": (b"data: &x {name: *x}", "contains itself"),
    "a tuple that contains itself": (b"data: &x !!python/tuple [*x]", "recursive"),
    "ten thousand laughs": (
        b"a: &a [0,0,0,0,0,0,0,0,0]\n"
        + b"".join(b"%c: &%c [%s]\n" % (n, n, b",".join([b"*%c" % (n - 1)] * 9)) for n in b"bcdefgh"),
        "more than",
    ),
    "a tower of brackets": (b"[" * 9_000, "recursion"),
    "more than a person writes": (b"# " + b"x" * 8_000_000, "too large"),
    "an interpolation of nothing": (b"data: {name: '${nothing}'}", "nothing"),
    "an interpolation of itself": (b"data: {name: '${data.name}'}", "data.name"),
    "no measurement": (b"data: {name: ffhq}", "measurement needs operator"),
    "an unknown block": (b"measurment: {}", "did you mean 'measurement'"),
    "a block that is text": (b"measurement: blur", "measurement: expected a mapping"),
    "a block that is nothing": (b"measurement:\n", "measurement"),
    "an operator that is a list": (b"measurement: {operator: [blur]}", "measurement.operator: expected a mapping"),
    "a name that is a number": (b"measurement: {operator: {name: 5}}", "operator"),
    "a key that is a number": (b"measurement: {operator: {name: inpainting, 5: 6}}", "operator.5"),
}


@pytest.mark.parametrize("name", NOT_A_TASK)
def test_a_file_that_is_no_task_is_refused(name, refused, tmp_path):
    content, told = NOT_A_TASK[name]
    (tmp_path / "own.yaml").write_bytes(content)
    assert told in refused("--task_config", str(tmp_path / "own.yaml"))


@pytest.mark.parametrize("argument", ["--preset", "--ldm_config"])
@pytest.mark.parametrize("name", ["not YAML", "a Python object", "contains itself", "a list"])
def test_a_file_that_is_no_preset_or_configuration_is_refused(argument, name, refused, tmp_path):
    content, told = NOT_A_TASK[name]
    (tmp_path / "own.yaml").write_bytes(content)
    assert told in refused(argument, str(tmp_path / "own.yaml"))


def test_a_file_that_is_a_folder_or_has_no_name_that_can_be_is_refused(refused, tmp_path):
    assert "Is a directory" in refused("--task_config", str(tmp_path))
    assert "embedded null byte" in refused("--task_config", f"{tmp_path}/a\0b.yaml")


# The words, and what is said. Those of tests/test_mistakes.py are not here again.
CANNOT_BE = [
    (["measurement.operator.name=gaussianblur", "measurement.mask_opt={}"], "did you mean 'gaussian_blur'"),
    (["measurement.operator.name=[inpainting]"], "operator"),
    (["data.name=5"], "data.name: expected text, got 5"),
    (["data.root=[a, b]"], "data.root"),
    (["data.root="], "data.root"),
    (["measurement.noise.sigma=.nan"], "sigma"),
    (["measurement.noise.sigma=.inf"], "sigma"),
    (["measurement.noise.sigma=1e300"], "sigma"),
    (["measurement.noise.sigma=true"], "sigma"),
    (["measurement.noise={name: poisson, rate: 0}"], "rate"),
    (["measurement.noise={name: poisson}"], "rate"),
    (["measurement.mask_opt.mask_prob_range=[0.5]"], "mask_prob_range"),
    (["measurement.mask_opt.mask_prob_range=[-0.5, 0.5]"], "mask_prob_range"),
    (["measurement.mask_opt.mask_prob_range=[a, b]"], "mask_prob_range"),
    (["measurement.mask_opt={mask_type: boxx, mask_len_range: [4, 8]}"], "did you mean 'box'"),
    (["measurement.mask_opt={mask_type: box}"], "mask_len_range"),
    (["measurement.mask_opt={mask_type: box, mask_len_range: [20, 30]}"], "mask_len_range"),
    (["measurement.mask_opt={mask_type: box, mask_len_range: [4, 8], margin: -1}"], "margin"),
    (["conditioning.main_sampler=5"], "sampler"),
    (["conditioning.params.scale=[1]"], "scale"),
    (["conditioning.resample.pixel.eps=0"], "conditioning.resample.pixel.eps"),
    (["conditioning.resample.pixel.eps=.nan"], "conditioning.resample.pixel.eps"),
    (["conditioning.resample.stages={plain: 0.7, latent: 0.7}"], "conditioning.resample.stages"),
    (["conditioning.resample.interval=2.5"], "conditioning.resample.interval"),
    (["conditioning.resample.interval=1e400"], "conditioning.resample.interval"),
    (["conditioning.resample.pixel=5"], "conditioning.resample.pixel"),
    (["conditioning.resample.final=perhaps"], "conditioning.resample.final"),
    (["conditioning.resample=5"], "resample"),
    (["ddim_steps=many"], "ddim_steps"),
    (["ddim_eta=.nan"], "ddim_eta"),
    (["ddim_scale=.inf"], "ddim_scale"),
    (["precision=fp8"], "fp8"),
    (["low_memory=perhaps"], "low_memory"),
    (["data.name.deeper=1"], "data.name"),
    (["..=1"], "unknown setting ''"),
    (["a[=1"], "unknown setting 'a'"),
    (["measurement.mask_opt=null"], "measurement.mask_opt: expected a mapping"),
    (["measurement.mask_opt=[1]"], "measurement.mask_opt: expected a mapping of settings, got [1]"),
    (["measurement=[1]"], "measurement: expected a mapping of settings, got [1]"),
    (["measurement.mask_opt.mask_prob_range={a: 1}"], "mask_prob_range: expected two numbers"),
    (["measurement.noise.sigma=-.inf"], "got -inf"),
    (["measurement.range=0.5"], "measurement.range: expected a list, got 0.5"),
    (["measurement.range=[1, 2, 3]"], "measurement.range: expected a list of at most 2, got"),
    (["a"], "key=value"),
    (["data.name=[1,"], "not plain YAML"),
    (["data.name=!!python/name:os.system"], "not plain YAML"),
    (["data.name=\x1b[2J"], "\\x1b[2J"),
    (["--seed", "-1"], "--seed"),
    (["--seed", "1e400"], "--seed"),
    (["--limit", "0"], "--limit"),
    (["--gpu", "many"], "--gpu"),
    (["--ddim_eta", "nan"], "ddim_eta"),
    (["--resise", "error"], "did you mean '--resize'"),
]


@pytest.mark.parametrize(("wrong", "told"), CANNOT_BE, ids=[ascii(" ".join(wrong))[1:-1] for wrong, _ in CANNOT_BE])
def test_what_cannot_be_is_refused(wrong, told, refused):
    assert told in refused(*wrong)


BLUR = {"name": "gaussian_blur", "kernel_size": 5, "intensity": 1}
MOTION = {"name": "motion_blur", "kernel_size": 5, "intensity": 0.5}
SUPER = {"name": "super_resolution", "scale_factor": 2}
OPERATORS = [
    ({}, "measurement.operator needs name"),
    ({**BLUR, "kernel_size": 4}, "kernel_size"),
    ({**MOTION, "kernel": float("nan")}, "kernel: expected"),
    ({**BLUR, "kernel_size": 1}, "kernel_size"),
    ({**BLUR, "kernel_size": 5.5}, "kernel_size"),
    ({**BLUR, "kernel_size": 1_000_001}, "kernel_size"),
    ({**BLUR, "kernel_size": 201}, "too small for a kernel"),
    ({**BLUR, "intensity": 0}, "intensity"),
    ({**MOTION, "intensity": 2}, "intensity"),
    ({**MOTION, "kernel": [[0, 0, 0]] * 3}, "kernel"),
    ({**MOTION, "kernel": [[1, 2], [3]]}, "kernel"),
    ({**MOTION, "kernel": "nowhere.npy"}, "nowhere.npy"),
    ({**MOTION, "kernel": "/dev/null"}, "kernel"),
    ({**MOTION, "kernel": "a\0b"}, "kernel"),
    ({**SUPER, "scale_factor": 0}, "scale_factor"),
    ({**SUPER, "scale_factor": 4000}, "scale_factor"),
    ({**SUPER, "in_shape": 3}, "in_shape"),
    ({"name": "noise", "scale_factor": 4}, "scale_factor"),
    ({"name": "inpainting"}, "inpainting has no mask_type"),
    ({"name": "phase_retrieval", "oversample": 1e9}, "oversample"),
    ({"name": "nonlinear_blur", "opt_yml_path": "nowhere.yml"}, "nowhere.yml"),
    ({"name": "nonlinear_blur", "opt_yml_path": 5}, "opt_yml_path"),
    ({"name": "nonlinear_blur", "opt_yml_path": "/dev"}, "opt_yml_path"),
]


@pytest.mark.parametrize(("operator", "told"), OPERATORS, ids=[ascii(operator) for operator, _ in OPERATORS])
def test_an_operator_that_cannot_be_is_refused(operator, told, refused, place, tmp_path):
    task = {"data": {"root": str(place / "pictures")}, "measurement": {"operator": operator}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(task))
    assert told in refused("--task_config", str(tmp_path / "own.yaml"), "--limit", "1")


CODER = "params.first_stage_config.params.ddconfig"
MODELS = {
    "a target outside the list": ("target", "os.system", "LatentDiffusion"),
    "a target that is no name": ("target", 5, "target"),
    "a UNet outside the list": ("params.unet_config.target", "subprocess.Popen", "UNetModel"),
    "a first stage outside the list": ("params.first_stage_config.target", "builtins.eval", "VQModelInterface"),
    "a condition outside the list": ("params.cond_stage_config", {"target": "os.system"}, "target"),
    "no UNet": ("params.unet_config", None, "target"),
    "an unknown setting": ("params.unet_config.params.model_chanels", 3, "did you mean 'model_channels'"),
    "no channels": ("params.unet_config.params.model_channels", 0, "model_channels: expected a whole"),
    "text for channels": ("params.unet_config.params.model_channels", "many", "model_channels: expected a whole"),
    "channels without end": ("params.unet_config.params.model_channels", 2**60, "model_channels: expected a whole"),
    "blocks without end": ("params.unet_config.params.num_res_blocks", 10**12, "num_res_blocks"),
    "first stage's blocks without end": (
        "params.first_stage_config.params.ddconfig.num_res_blocks",
        10**12,
        "num_res_blocks",
    ),
    "timesteps without end": ("params.timesteps", 10**13, "timesteps"),
    "no timesteps": ("params.timesteps", 0, "timesteps"),
    "a first stage of no sides": (f"{CODER}.ch_mult", [], "ch_mult: expected a list of 1 to 12"),
    "levels without end": (f"{CODER}.ch_mult", [1] * 10_000, "ch_mult: expected a list of 1 to 12"),
    "a level without end": (f"{CODER}.ch_mult", [1, 10**9], "ch_mult.1: expected a number above 0"),
    "a level of less than nothing": (f"{CODER}.ch_mult", [1, -1], "ch_mult.1: expected a number above 0"),
    "levels that are a number": (f"{CODER}.ch_mult", 3, "ch_mult"),
    "levels of the UNet without end": ("params.unet_config.params.channel_mult", [1] * 10_000, "channel_mult"),
    "a level of the UNet without end": (
        "params.unet_config.params.channel_mult",
        [1, 10**9],
        "channel_mult.1: expected a number above 0",
    ),
    "the coder's channels without end": (f"{CODER}.ch", 10**9, "ch: expected"),
    "features without end": (f"{CODER}.z_channels", 10**9, "z_channels"),
    "colours without end": (f"{CODER}.out_ch", 10**9, "out_ch"),
    "a nominal side without end": (f"{CODER}.resolution", 10**9, "resolution"),
    "a codebook without end": ("params.first_stage_config.params.n_embed", 10**12, "n_embed"),
    "entries without end": ("params.first_stage_config.params.embed_dim", 10**9, "embed_dim"),
    "a latent's channels without end": ("params.channels", 10**12, "channels: expected"),
    "a latent's side without end": ("params.image_size", 10**12, "image_size"),
    "heads without end": ("params.unet_config.params.num_head_channels", 10**9, "num_head_channels"),
    "context without end": ("params.unet_config.params.context_dim", 10**9, "context_dim"),
    "classes without end": ("params.unet_config.params.num_classes", 10**12, "num_classes"),
    "conditions without end": (
        "params.cond_stage_config",
        {"target": "ldm.modules.encoders.modules.ClassEmbedder", "params": {"embed_dim": 8, "n_classes": 10**12}},
        "n_classes",
    ),
    "an unknown schedule": ("params.beta_schedule", "steep", "steep"),
    "a schedule that is none": ("params.linear_end", 5, "linear"),
    "a scale of nothing": ("params.scale_factor", 0, "scale_factor"),
    "an interpolation of nothing": ("params.timesteps", "${nothing}", "nothing"),
}


def with_setting(path, value):
    config = copy.deepcopy(CONFIG)
    *parents, last = path.split(".")
    entry = config["model"]
    for parent in parents:
        entry = entry[parent]
    entry[last] = value
    return yaml.safe_dump(config)


@pytest.mark.parametrize("name", MODELS)
def test_a_configuration_of_what_is_no_model_is_refused(name, refused, tmp_path):
    path, value, told = MODELS[name]
    (tmp_path / "own.yaml").write_text(with_setting(path, value))
    assert told in refused("--ldm_config", str(tmp_path / "own.yaml"))


@pytest.fixture(scope="module")
def measured(place, tmp_path_factory):
    """A folder with a measurement of the first picture, as a run writes it."""
    out = tmp_path_factory.mktemp("measured")
    assert main(words(place, out, "--limit", "1", steps=1)) == 0
    return out / "label" / "a_jpg.safetensors"


MEASUREMENTS = {
    "empty": (lambda content, _: b"", "not a readable measurement"),
    "half": (lambda content, _: content[: len(content) // 2], "not a readable measurement"),
    "text": (lambda content, _: b"pixels, honestly", "not a readable measurement"),
    "header of terabytes": (lambda content, _: (2**40).to_bytes(8, "little") + content[8:], "not a readable measur"),
    "NaN": (lambda content, y: y.clone().fill_(float("nan")), "NaN"),
    "whole numbers": (lambda content, y: y.long(), "int64"),
}


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_a_broken_measurement_is_refused(name, refused, measured, tmp_path):
    from safetensors import safe_open

    spoil, told = MEASUREMENTS[name]
    tensors = load_file(measured)
    wrong, target = spoil(measured.read_bytes(), tensors["y"]), tmp_path / "label" / measured.name
    target.parent.mkdir()
    if isinstance(wrong, torch.Tensor):
        with safe_open(measured, framework="pt") as file:
            save_file({**tensors, "y": wrong}, target, metadata=file.metadata())
    else:
        target.write_bytes(wrong)
    assert told in refused("--measurement", str(target.parent), "--limit", "1")


def test_a_mistyped_word_as_a_process_of_its_own(place, tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "sample_condition.py", *words(place, tmp_path / "out"), "ddim_stps=3", "--debug"],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" in done.stderr
    assert "error: command line: unknown setting 'ddim_stps': did you mean 'ddim_steps'" in done.stderr
    assert not list(tmp_path.iterdir())
