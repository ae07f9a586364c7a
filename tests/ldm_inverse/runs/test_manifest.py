"""The record of a run, and how two runs are told apart."""

import pytest
import torch
import yaml

from ldm_inverse.runs.command_line import parse_args
from ldm_inverse.runs.manifest import (
    CIRCUMSTANCES,
    FORMAT,
    RecordedArguments,
    differences,
    picture_folders,
    read_record,
    record,
    recorded_arguments,
)
from ldm_inverse.runs.settings import resolve
from util.errors import UserError

TASK = {"measurement": {"operator": {"name": "noise"}}}


def made(folder, *words, **layer):
    (folder / "model.ckpt").write_bytes(b"abc")
    (folder / "model.yaml").write_bytes(b"model: {}")
    files = ["--diffusion_config", str(folder / "model.ckpt"), "--ldm_config", str(folder / "model.yaml")]
    settings = resolve([("task", TASK), ("words", layer)])
    args = parse_args([*files, *words])
    arguments = {name: value for name, value in vars(args).items() if name in RecordedArguments.model_fields}
    return record(RecordedArguments(**arguments), settings, torch.device("cpu"), args.threads)


def test_a_record_names_what_a_result_depends_on(tmp_path):
    found = made(tmp_path, "--threads", "3", "--seed", "5", ddim_steps=7)
    assert found["checkpoint"]["sha256"] == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert found["versions"]["torch"]
    assert found["device"] == "cpu"
    assert found["threads"] == 3
    assert (found["run"]["seed"], found["settings"]["ddim_steps"]) == (5, 7)


def test_only_what_decides_a_result_is_a_difference(tmp_path):
    before = made(tmp_path, "--threads", "1")
    same = ["--save_dir", "elsewhere", "--limit", "3", "--quiet", "--overwrite", "--skip_bad", "--verbose"]
    same.remove("--verbose")
    assert differences(before, made(tmp_path, *same)) == []
    told = differences(before, made(tmp_path, "--threads", "2", "--seed", "1", ddim_steps=9))
    assert told == ["settings.ddim_steps: 500 there, 9 now", "run.seed: 0 there, 1 now", "threads: 1 there, 2 now"]
    (tmp_path / "other.ckpt").write_bytes(b"abd")
    told = differences(before, made(tmp_path, "--diffusion_config", str(tmp_path / "other.ckpt")))
    assert len(told) == 1
    assert "checkpoint.sha256" in told[0]


def test_an_earlier_versions_folders_are_known_by_the_format():
    assert picture_folders({"format": FORMAT}) == {"truth": "input", "measurement": "label", "restoration": "recon"}
    assert picture_folders({}) == {"truth": "label", "measurement": "input", "restoration": "recon"}


def test_another_version_is_a_circumstance(tmp_path):
    before = made(tmp_path, "--threads", "1")
    before["versions"]["torch"] = "1.0"
    now = made(tmp_path)
    assert differences(before, now) == []
    assert differences(before, now, CIRCUMSTANCES) == [f"versions.torch: 1.0 there, {now['versions']['torch']} now"]


def test_a_record_read_back_differs_in_nothing(tmp_path):
    now = made(
        tmp_path,
        "--threads",
        "1",
        conditioning={"resample": {"pixel": {"lr": 1e-5}}},
        measurement={"mask_opt": {"mask_prob_range": (0.1, 0.2)}},
    )
    path = tmp_path / "settings.yaml"
    assert read_record(path) is None
    path.write_text(yaml.safe_dump(now))
    assert differences(read_record(path), now) == []
    assert recorded_arguments(tmp_path)["seed"] == 0


def test_what_is_no_record_is_refused(tmp_path):
    with pytest.raises(UserError, match="no run in"):
        recorded_arguments(tmp_path)
    (tmp_path / "settings.yaml").write_text("settings: 3")
    with pytest.raises(UserError, match="not the record of a run"):
        recorded_arguments(tmp_path)
