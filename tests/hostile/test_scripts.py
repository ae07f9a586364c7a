"""The other programs, given what they cannot use: each says so in a line, with status 2."""

import copy
import os
import shutil

import pytest
import torch
import yaml
from safetensors.torch import save_file

from scripts import (
    benchmark,
    check_model,
    compare_samplers,
    convert_checkpoint,
    evaluate,
    overview,
    report,
    sample,
    sweep,
    train,
    tune,
    verify,
)
from tests.checkpoints import Call, dumps, write_zip
from tests.tiny import training_config, write_pictures

PROGRAMS = {
    "train": train,
    "convert_checkpoint": convert_checkpoint,
    "benchmark": benchmark,
    "check_model": check_model,
    "compare_samplers": compare_samplers,
    "evaluate": evaluate,
    "overview": overview,
    "report": report,
    "sample": sample,
    "sweep": sweep,
    "tune": tune,
    "verify": verify,
}


@pytest.fixture
def told(capsys):
    """Run a program on words that it must refuse; gives its message."""

    def told(program, *words):
        assert PROGRAMS[program].main([str(word) for word in words]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert "Traceback" not in err
        assert err.count("\n") <= 3
        return err

    return told


WORDS = [
    ("train", [], "--stage"),
    ("train", ["--stage", "autoencoderr"], "autoencoderr"),
    ("convert_checkpoint", [], "source"),
    ("convert_checkpoint", ["a.ckpt", "b.safetensors"], "a.ckpt"),
    ("convert_checkpoint", ["a.ckpt", "b.ckpt"], "must end in .safetensors"),
    ("benchmark", ["--repeats", "0"], "--repeats"),
    ("benchmark", ["--config", "nowhere.yaml"], "nowhere.yaml"),
    ("benchmark", ["--checkpoint", "nowhere.ckpt"], "nowhere.ckpt"),
    ("sample", [], "--model"),
    ("compare_samplers", [], "--reference"),
    ("evaluate", [], "give either runs"),
    ("evaluate", ["nowhere"], "no run in nowhere"),
    ("overview", [], "RUN"),
    ("overview", ["nowhere", "--save", "o.png"], "nowhere"),
    ("report", [], "RUN"),
    ("report", ["nowhere"], "nowhere holds no run"),
]


@pytest.mark.parametrize(("program", "words", "message"), WORDS)
def test_words_that_a_program_cannot_use(program, words, message, told, elsewhere):
    assert message in told(program, *words)


@pytest.mark.parametrize("program", PROGRAMS)
def test_debug_shows_the_traceback(program, elsewhere, capsys):
    assert PROGRAMS[program].main(["--debug", "--nothing_of_the_kind"]) == 2
    assert "Traceback" in capsys.readouterr().err


WORK = {
    "train": ("train", ["--stage", "autoencoder", "--config", "c", "--data", "d", "--out", "o"]),
    "compare_samplers": ("compare", ["--model", "m", "--reference", "r", "--out", "o", "ddim:5"]),
    "sweep": ("sweep", []),
    "tune": ("tune", ["--tasks", "t", "--preset", "p", "--save_dir", "o", "ddim_steps=3..9"]),
    "verify": ("verify", ["--model", "m", "--task", "t", "--data", "d"]),
    "convert_checkpoint": ("run", ["a.ckpt", "b.safetensors"]),
}


@pytest.mark.parametrize("program", WORK)
def test_an_interrupted_program_says_how_to_go_on_where_that_is_possible(program, monkeypatch, capsys):
    def interrupt(_):
        raise KeyboardInterrupt

    work, words = WORK[program]
    goes_on = program != "convert_checkpoint"
    monkeypatch.setattr(PROGRAMS[program], work, interrupt)
    assert PROGRAMS[program].main(words) == 130
    err = capsys.readouterr().err
    assert err.startswith("interrupted")
    assert ("the same command continues" in err) == goes_on


@pytest.fixture
def config(tmp_path):
    return yaml.safe_load(training_config(tmp_path).read_text())


def spoil(config, path, value=None):
    """Change an entry, or leave it out where no value is given."""
    config = copy.deepcopy(config)
    *parents, last = path.split(".")
    entry = config
    for parent in parents:
        entry = entry[int(parent) if isinstance(entry, list) else parent]
    if value is None:
        del entry[last]
    else:
        entry[last] = value
    return config


@pytest.mark.parametrize(
    ("metrics", "message"),
    [("", "empty"), ("image,sample\n", "empty"), ("psnr\n1\n", "ssim"), ("psnr,ssim\nhigh,1\n", "high")],
)
def test_a_folder_that_is_no_run_is_not_shown(metrics, message, told, tmp_path):
    (tmp_path / "metrics.csv").write_text(metrics)
    err = told("overview", tmp_path, "--save", tmp_path / "o.png")
    assert "is not a finished run" in err
    assert message in err
    assert not (tmp_path / "o.png").exists()


@pytest.mark.parametrize("program", ["evaluate", "overview", "report"])
@pytest.mark.parametrize("content", ["", "[]", '{"image": "b", "sample": 0}', "[" * 100_000])
def test_a_damaged_result_is_told_and_not_passed_over(program, content, finished, told, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    result = next((folder / "results").iterdir())
    result.write_text(content)
    page = ["--save", tmp_path / "page"] if program != "evaluate" else []
    assert f"error: {result} is damaged: delete it" in told(program, folder, *page)
    assert not (tmp_path / "page").exists()


KEYS = ["init", "whitening", "trainable", "learning_rate", "averages", "stages"]
IN_THE_BLOCK = [
    ("training", None, "training.autoencoder"),
    ("training", 5, "training.autoencoder"),
    ("training.autoencoder", None, "training.autoencoder"),
    *((f"training.autoencoder.{key}", None, f"needs {key}") for key in KEYS),
    ("training.autoencoder.learning_rat", 1, "did you mean 'learning_rate'"),
    ("training.autoencoder.init", "liner", "expected 'linear' or 'random'"),
    ("training.autoencoder.trainable", "encoder", "expected 'all' or 'decoder'"),
    ("training.autoencoder.learning_rate", -1, "learning_rate"),
    ("training.autoencoder.averages", [1], "averages.0"),
    ("training.autoencoder.stages", [], "stages"),
    ("training.autoencoder.stages", "all", "stages"),
    ("training.autoencoder.stages.0.share", None, "needs share"),
    ("training.autoencoder.stages.0.share", 0.5, "add up to 1"),
    ("training.autoencoder.stages.0.batch_size", None, "needs batch_size"),
    ("training.autoencoder.stages.0.batch_size", 0, "batch_size"),
    ("training.autoencoder.stages.0.crop", None, "crop"),
    ("training.autoencoder.stages.0.crop", 15, "multiple of 2"),
    ("training.autoencoder.stages.0.crop", 64, "at most 32"),
    ("model", None, "model"),
    ("model.target", "os.system", "LatentDiffusion"),
    ("model.params.first_stage_config", {"target": "ldm.models.autoencoder.IdentityFirstStage"}, "has no first stage"),
    ("model.params.unet_config.params.model_channels", "many", "model_channels: expected a whole number"),
]


@pytest.mark.parametrize(("path", "value", "message"), IN_THE_BLOCK)
def test_a_configuration_that_cannot_be_trained(path, value, message, config, told, tmp_path):
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(spoil(config, path, value)))
    data = write_pictures(tmp_path / "in", ["a.png"])
    words = ["--stage", "autoencoder", "--config", tmp_path / "own.yaml", "--data", data, "--out", tmp_path / "out"]
    assert message in told("train", *words)
    assert not (tmp_path / "out").exists()


FIRST_STAGES = {
    "missing": (lambda path, sentinel: None, "No such file"),
    "text": (lambda path, sentinel: path.write_text("weights, honestly"), "not a readable checkpoint"),
    "another's": (
        lambda path, sentinel: save_file({"encoder.conv_in.weight": torch.ones(3)}, path),
        "is not the first",
    ),
    "NaN": (lambda path, sentinel: save_file({"a": torch.tensor([float("nan")])}, path), "a holds NaN"),
    "hostile": (lambda path, sentinel: write_zip(path, dumps(Call(os.system, f"touch {sentinel}")), {}), "is refused"),
}


@pytest.mark.parametrize("name", FIRST_STAGES)
def test_a_first_stage_that_cannot_be_used(name, config, told, tmp_path):
    write, message = FIRST_STAGES[name]
    write(tmp_path / "first.safetensors", tmp_path / "sentinel")
    data = write_pictures(tmp_path / "in", ["a.png"])
    words = ["--stage", "diffusion", "--config", tmp_path / "model.yaml", "--data", data, "--out", tmp_path / "out"]
    assert message in told("train", *words, "--first_stage", tmp_path / "first.safetensors")
    assert not (tmp_path / "sentinel").exists()


def test_what_lies_in_the_way_of_a_training(config, told, tmp_path):
    data = write_pictures(tmp_path / "in", ["a.png"])
    words = ["--stage", "autoencoder", "--config", tmp_path / "model.yaml", "--data", data]
    (tmp_path / "file").write_text("")
    assert "cannot write to" in told("train", *words, "--out", tmp_path / "file")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "state.pt").write_bytes(b"PK\x03\x04 half a state")
    assert "not a state of this training" in told("train", *words, "--out", tmp_path / "out")
    for wrong in (["--seed", "-1"], ["--seed", 2**40], ["--max_minutes", "nan"], ["--threads", "0"]):
        assert wrong[0] in told("train", *words, "--out", tmp_path / "new", *wrong)
    assert not (tmp_path / "new").exists()
