"""Checkpoints that are broken, of something else, or mean to run a command."""

import os
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from tests.checkpoints import Call, PersistentId, dumps, write_legacy, write_zip
from tests.runs import words
from tests.tiny import CONFIG

ROOT = Path(__file__).resolve().parents[2]
LEGACY = {"_use_new_zipfile_serialization": False}
WEIGHT = "model.diffusion_model.out.2.weight"


def torch_file(path, state, **options):
    torch.save({"state_dict": state}, path, **options)
    return path


def bare(path, content):
    torch.save(content, path)
    return path


def cut(path, keep):
    """Leave the first part of a file, or all but its last bytes."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)] if keep > 0 else content[:keep])
    return path


def written(path, content):
    path.write_bytes(content)
    return path


def claims(shape, end):
    """A safetensors file whose header speaks of more numbers than there are."""
    header = f'{{"{WEIGHT}":{{"dtype":"F32","shape":{shape},"data_offsets":[0,{end}]}}}}'.encode()
    return len(header).to_bytes(8, "little") + header + bytes(64)


def archive(path, *members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name in members:
            file.writestr(name, b"\x80\x02}.")
    return path


def changed(path, state, name, change):
    save_file({**state, name: change(state[name].clone())}, path)
    return path


def spoil(value):
    def change(tensor):
        tensor.view(-1)[-1] = value
        return tensor

    return change


def folder(path):
    path.mkdir()
    return path


def link(path, target):
    path.symlink_to(target)
    return path


def pipe(path):
    os.mkfifo(path)
    return path


def under(prefix, state):
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


# What the file is: how it is made of (path, the model's tensors), and what is said of it.
BROKEN = {
    "empty": (lambda path, state: written(path, b""), "it is empty"),
    "one byte": (lambda path, state: written(path, b"\x80"), "not a readable checkpoint"),
    "text": (lambda path, state: written(path, b"weights, honestly\n" * 9), "not a readable checkpoint"),
    "web page": (lambda path, state: written(path, b"<!DOCTYPE html><html></html>"), "a web page"),
    "Git LFS pointer": (
        lambda path, state: written(path, b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"),
        "git lfs pull",
    ),
    "GGUF": (lambda path, state: written(path, b"GGUF" + bytes(99)), "quantised model in GGUF"),
    "archive to unpack": (lambda path, state: archive(path, "ldm/model.ckpt"), "unpack it first"),
    "state of an optimiser": (
        lambda path, state: bare(path, torch.optim.AdamW([torch.ones(2)]).state_dict()),
        "state of an optimiser",
    ),
    "keys without tensors": (
        lambda path, state: bare(path, {"epoch": 3, "metrics": {}}),
        "no named tensors (its keys: epoch, metrics)",
    ),
    "half a zip": (lambda path, state: cut(torch_file(path, state), 0.5), "not a readable checkpoint"),
    "zip without its end": (lambda path, state: cut(torch_file(path, state), -1), "not a readable checkpoint"),
    "half a legacy file": (lambda path, state: cut(torch_file(path, state, **LEGACY), 0.5), "not a readable check"),
    "legacy file's head": (lambda path, state: cut(torch_file(path, state, **LEGACY), 0.01), "not a readable check"),
    "half a safetensors file": (lambda path, state: cut(changed(path, state, WEIGHT, abs), 0.5), "not a readable"),
    "safetensors without its end": (lambda path, state: cut(changed(path, state, WEIGHT, abs), -1), "not a readable"),
    "header of exabytes": (lambda path, state: written(path, (2**62).to_bytes(8, "little") + b"{"), "not a readable"),
    "header of terabytes": (lambda path, state: written(path, (2**40).to_bytes(8, "little") + b"{}"), "not a readabl"),
    "tensor of terabytes": (lambda path, state: written(path, claims([2**38], 2**40)), "not a readable checkpoint"),
    "tensor of 2^80 numbers": (lambda path, state: written(path, claims([2**40, 2**40], 2**62)), "not a readable che"),
    "zip of something else": (lambda path, state: archive(path, "readme"), "torch.save did not write"),
    "zip without tensors": (lambda path, state: torch_file(path, {}), "no named tensors"),
    "zip of numbers": (lambda path, state: torch_file(path, {"epoch": 3}), "no named tensors"),
    "compressed zip": (
        lambda path, state: archive(path, "archive/data.pkl", compression=zipfile.ZIP_DEFLATED),
        "compressed",
    ),
    "two checkpoints in one": (lambda path, state: archive(path, "a/data.pkl", "b/data.pkl"), "did not write"),
    "folder": (lambda path, state: folder(path), "is a folder without a checkpoint"),
    "pipe": (lambda path, state: pipe(path), "is not a file"),
    "link to nothing": (lambda path, state: link(path, "nothing"), "no checkpoint at"),
    "link to itself": (lambda path, state: link(path, path), "no checkpoint at"),
    "of another shape": (lambda path, state: changed(path, state, WEIGHT, lambda t: t[:2]), "of another shape"),
    "transposed": (lambda path, state: changed(path, state, WEIGHT, lambda t: t.mT.flatten()), "of another shape"),
    "whole numbers for weights": (lambda path, state: changed(path, state, WEIGHT, torch.Tensor.long), "torch.int64"),
    "complex numbers for weights": (
        lambda path, state: torch_file(path, {**state, WEIGHT: state[WEIGHT] * 1j}),
        f"{WEIGHT} holds torch.complex64 numbers",
    ),
    "NaN": (lambda path, state: changed(path, state, WEIGHT, spoil(float("nan"))), f"{WEIGHT} holds NaN"),
    "infinity": (lambda path, state: changed(path, state, WEIGHT, spoil(float("inf"))), f"{WEIGHT} holds NaN"),
    "NaN in the schedule": (lambda path, state: changed(path, state, "betas", spoil(float("nan"))), "betas holds NaN"),
    "impossible schedule": (lambda path, state: changed(path, state, "alphas_cumprod", spoil(-1.0)), "alphas_cumprod"),
    "a tensor missing": (
        lambda path, state: torch_file(path, {k: v for k, v in state.items() if k != WEIGHT}),
        f"1 tensors missing ({WEIGHT})",
    ),
    "first stage alone": (
        lambda path, state: torch_file(path, under("first_stage_model.", state)),
        "a first stage alone",
    ),
    "another kind of network": (lambda path, state: torch_file(path, {"generator.w": torch.ones(2)}), "generator.w"),
}


@pytest.fixture(scope="module")
def state(place):
    return load_file(place / "tiny.safetensors")


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_checkpoint_is_refused(name, refused, state, tmp_path):
    make, told = BROKEN[name]
    assert told in refused("--diffusion_config", str(make(tmp_path / "model.ckpt", state)))


def hostile(sentinel):
    """The file's content, and the pickle: each would make the sentinel if pickle itself read it."""
    run = Call(os.system, f"touch {sentinel}")
    tensor = Call(torch._utils._rebuild_tensor_v2, run, 0, (1,), (1,), False, OrderedDict())
    word = f"(S'touch {sentinel}'\n"
    return {
        "REDUCE": dumps(run),
        "STACK_GLOBAL": dumps(run, protocol=4),
        "INST": f"{word}ios\nsystem\n.".encode(),
        "OBJ": f"(cos\nsystem\nS'touch {sentinel}'\no.".encode(),
        "nested": dumps({"state_dict": {"a": [({"b": (1, [run])},)]}}),
        "a tensor's storage": dumps({"state_dict": {WEIGHT: tensor}}),
        "a persistent id": dumps({"state_dict": {WEIGHT: PersistentId(run)}}),
        "builtins": dumps(Call(eval, f"open({str(sentinel)!r}, 'w')")),
    }


@pytest.mark.parametrize("write", [write_zip, write_legacy])
@pytest.mark.parametrize("name", hostile("sentinel"))
def test_a_checkpoint_that_would_run_a_command_is_refused(name, write, refused, tmp_path):
    sentinel = tmp_path / "sentinel"
    path = write(tmp_path / "model.ckpt", hostile(sentinel)[name], {"0": bytes(4)})
    assert "is refused: it names" in refused("--diffusion_config", str(path))
    assert not sentinel.exists()


def test_a_hostile_first_stage_is_refused(refused, state, tmp_path):
    """The model's own file is sound and lacks the first stage, whose file the configuration names."""
    sentinel, first = tmp_path / "sentinel", tmp_path / "first.ckpt"
    write_zip(first, dumps(Call(os.system, f"touch {sentinel}")), {})
    without = {name: tensor for name, tensor in state.items() if not name.startswith("first_stage_model.")}
    config = yaml.safe_load(yaml.safe_dump(CONFIG))
    config["model"]["params"]["first_stage_config"]["params"]["ckpt_path"] = str(first)
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(config))
    path = torch_file(tmp_path / "model.ckpt", without)
    told = refused("--ldm_config", str(tmp_path / "own.yaml"), "--diffusion_config", str(path))
    assert "first.ckpt is refused" in told
    assert not sentinel.exists()


@pytest.mark.parametrize("config", ["demo-ldm-vq-4", "lsun_churches-ldm-kl-8"])
def test_another_models_configuration_is_refused(config, refused):
    path = ROOT / "configs" / "latent-diffusion" / f"{config}.yaml"
    told = refused("--ldm_config", str(path), "--resize", "resize", "measurement.mask_opt.image_size=null")
    assert "--ldm_config and --diffusion_config must belong together" in told


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_as_a_process_of_its_own(debug, place, tmp_path):
    path = write_zip(tmp_path / "model.ckpt", dumps(Call(os.system, f"touch {tmp_path / 'sentinel'}")), {})
    weights = ["--diffusion_config", str(path)]
    done = subprocess.run(
        [sys.executable, ROOT / "sample_condition.py", *words(place, tmp_path / "out"), *debug, *weights],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert ("Traceback" in done.stderr) == bool(debug)
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.ckpt"]
