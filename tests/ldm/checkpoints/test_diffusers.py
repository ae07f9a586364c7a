"""Folders in the diffusers layout, against what diffusers itself makes of the same weights."""

import importlib
import json
import re
import sys
from collections import OrderedDict
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from ldm.checkpoints.diffusers_config import TEXT_DEFAULTS, read_config
from ldm.modules.encoders.text_settings import TextModelSettings
from model_loader import get_model, model_config
from tests.diffusers_folder import recorded, write_folder
from tests.reference.recorded import relative_error
from util.errors import UserError
from util.settings import read

FILE = "diffusion_pytorch_model"
# Of the largest value. The plain networks are as close; fast convolutions are no farther.
TOLERANCE = 1e-5
WITH_TRANSFORMERS = pytest.mark.skipif(find_spec("transformers") is None, reason="needs transformers")


def assert_as_recorded(model, name):
    """The model's UNet and first stage do what diffusers recorded."""
    want = recorded(name)
    scale, shift = float(model.scale_factor), float(model.shift_factor)
    a = want["alphas_cumprod"][want["t"]][:, None, None, None]
    noise = want["prediction"]
    if model.parameterization == "v":
        noise = a.sqrt() * noise + (1 - a).sqrt() * want["z"]
    cond = want.get("text")
    latent = scale * (want["encoded"] - shift)
    assert relative_error(model.alphas_cumprod, want["alphas_cumprod"]) < 1e-6
    assert relative_error(model.apply_model(want["z"], want["t"], cond), noise) < TOLERANCE
    assert relative_error(model.encode_mode(want["image"]), latent) < TOLERANCE
    assert relative_error(model.decode_first_stage(latent), want["decoded"]) < TOLERANCE


@pytest.mark.parametrize("name", ["vq", "options"])
def test_outputs_are_those_of_diffusers(name, tmp_path):
    assert_as_recorded(get_model(None, write_folder(tmp_path / name, name), device="cpu"), name)


@WITH_TRANSFORMERS
def test_stable_diffusion_is_as_diffusers_and_transformers_have_it(tmp_path):
    model = get_model(None, write_folder(tmp_path / "text", "text"), device="cpu")
    assert float(model.scale_factor) == 0.18215
    assert_as_recorded(model, "text")
    with torch.no_grad():
        text = model.get_learned_conditioning(["a face", ""])
    assert relative_error(text, recorded("text")["text"]) < TOLERANCE


def test_a_text_model_without_transformers_asks_for_it_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"^a model that takes texts needs transformers: pip install -r requirements-t"):
        get_model(None, write_folder(tmp_path / "text", "text"), device="cpu")


@WITH_TRANSFORMERS
def test_a_tokenizer_that_is_not_there_is_said(tmp_path):
    folder = write_folder(tmp_path / "text", "text")
    for path in (folder / "tokenizer").iterdir():
        path.unlink()
    model = get_model(None, folder, device="cpu")
    with pytest.raises(UserError, match="tokenizer holds no tokenizer: neither tokenizer.json nor vocab.json"):
        model.get_learned_conditioning([""])


@WITH_TRANSFORMERS
def test_a_broken_tokenizer_is_said(tmp_path):
    folder = write_folder(tmp_path / "text", "text")
    (folder / "tokenizer" / "tokenizer.json").unlink()
    (folder / "tokenizer" / "vocab.json").write_text('{"a": 0}')
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n\n")
    model = get_model(None, folder, device="cpu")
    with pytest.raises(UserError, match="tokenizer: no tokenizer can be read: "):
        model.get_learned_conditioning([""])


def test_the_scale_that_the_hubs_first_stages_leave_out_is_one(tmp_path):
    folder = write_folder(tmp_path / "vq", "vq")
    assert "scaling_factor" in json.loads((folder / "vqvae" / "config.json").read_text())
    config = json.loads((folder / "vqvae" / "config.json").read_text())
    config.pop("scaling_factor")
    (folder / "vqvae" / "config.json").write_text(json.dumps(config))
    assert read_config(folder)["model"]["params"]["scale_factor"] == 1.0


FORMER = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def former(name):
    """The name that older files have for a tensor of an attention."""
    for today, then in FORMER.items():
        name = re.sub(rf"(attentions\.\d+)\.{re.escape(today)}\.", rf"\1.{then}.", name)
    return name


def rewrite(folder, write):
    """Give the weights of every part to a function of (the part's folder, tensors), in place of their files."""
    for part in ("unet", "vqvae"):
        path = folder / part / f"{FILE}.safetensors"
        tensors = load_file(path)
        path.unlink()
        write(folder / part, tensors)


def as_bin(folder, tensors):
    torch.save(OrderedDict((former(name), tensor) for name, tensor in tensors.items()), folder / f"{FILE}.bin")


def as_shards(folder, tensors):
    names = sorted(tensors)
    table = {name: f"{FILE}-0000{1 + i % 3}-of-00003.safetensors" for i, name in enumerate(names)}
    for file in set(table.values()):
        save_file({name: tensors[name] for name in names if table[name] == file}, folder / file)
    (folder / f"{FILE}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))


def as_shards_of_a_variant(folder, tensors):
    as_shards(folder, tensors)
    index = folder / f"{FILE}.safetensors.index.json"
    table = json.loads(index.read_text().replace(f"{FILE}-", f"{FILE}.fp32-"))
    for file in folder.glob(f"{FILE}-*"):
        file.rename(folder / file.name.replace("-", ".fp32-", 1))
    index.unlink()
    (folder / f"{FILE}.safetensors.index.fp32.json").write_text(json.dumps(table))


def as_variant(folder, tensors):
    save_file({name: tensor.double() for name, tensor in tensors.items()}, folder / f"{FILE}.fp32.safetensors")


def with_sides(count):
    """Write the matrices of attentions as kernels of convolutions of size one, as some older files have them."""

    def write(folder, tensors):
        kernels = {
            name: tensor.reshape(*tensor.shape, *[1] * count) if "attentions" in name and tensor.ndim == 2 else tensor
            for name, tensor in tensors.items()
        }
        save_file({former(name): tensor for name, tensor in kernels.items()}, folder / f"{FILE}.safetensors")

    return write


@pytest.mark.parametrize(
    "write", [as_bin, as_shards, as_shards_of_a_variant, as_variant, with_sides(0), with_sides(1), with_sides(2)]
)
def test_older_names_and_other_files_hold_the_same(write, tmp_path):
    folder = write_folder(tmp_path / "vq", "vq")
    rewrite(folder, write)
    assert_as_recorded(get_model(None, folder, device="cpu"), "vq")


def test_half_precision_is_taken_where_there_is_nothing_else(tmp_path):
    folder = write_folder(tmp_path / "vq", "vq")
    rewrite(folder, lambda part, tensors: save_file({k: v.half() for k, v in tensors.items()},
                                                    part / f"{FILE}.fp16.safetensors"))  # fmt: skip
    model = get_model(None, folder, device="cpu")
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    want = recorded("vq")
    assert 1e-5 < relative_error(model.apply_model(want["z"], want["t"]), want["prediction"]) < 1e-2


def test_averaged_weights_and_those_before(tmp_path):
    folder = write_folder(tmp_path / "vq", "vq")
    with pytest.raises(UserError, match="has no weights that are marked as averaged"):
        get_model(None, folder, device="cpu", use_ema=True)
    tensors = load_file(folder / "unet" / f"{FILE}.safetensors")
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, folder / "unet" / f"{FILE}.non_ema.safetensors")

    def bias(**options):
        model = get_model(None, folder, device="cpu", **options)
        return model.model.diffusion_model.out[2].bias

    assert torch.equal(bias(), tensors["conv_out.bias"])
    assert torch.equal(bias(use_ema=True), tensors["conv_out.bias"])
    assert torch.equal(bias(use_ema=False), 2 * tensors["conv_out.bias"])


def test_names_may_have_the_prefixes_of_training(tmp_path):
    folder = write_folder(tmp_path / "vq", "vq")
    for part, prefix in (("unet", "module.model."), ("vqvae", "_orig_mod.module.")):
        path = folder / part / f"{FILE}.safetensors"
        save_file({prefix + name: tensor for name, tensor in load_file(path).items()}, path)
    assert_as_recorded(get_model(None, folder, device="cpu"), "vq")


def test_the_scheduler_may_be_in_another_file(tmp_path):
    folder = write_folder(tmp_path / "vq", "vq")
    want = read_config(folder)
    path = folder / "scheduler" / "scheduler_config.json"
    path.rename(path.with_name("config.json"))
    assert read_config(folder) == want


@pytest.mark.parametrize(
    ("name", "left_out", "betas"),
    [
        ("DDIMScheduler", ("beta_start", "beta_end"), (1e-4, 0.02)),
        ("HeunDiscreteScheduler", ("beta_start", "beta_end"), (0.00085, 0.012)),
        ("LCMScheduler", ("beta_schedule", "beta_start"), (0.00085, 0.0195)),
    ],
)
def test_what_a_scheduler_leaves_out_is_as_its_class_has_it(name, left_out, betas, tmp_path):
    folder = write_folder(tmp_path / "vq", "vq", scheduler={"_class_name": name})
    path = folder / "scheduler" / "scheduler_config.json"
    fields = json.loads(path.read_text()) | {"beta_end": 0.0195}
    path.write_text(json.dumps({field: value for field, value in fields.items() if field not in left_out}))
    params = read_config(folder)["model"]["params"]
    assert (params["linear_start"], params["linear_end"]) == betas
    assert params["beta_schedule"] == "linear"  # diffusers' scaled_linear


REFUSED = {
    "flow matching's scheduler": (
        {"scheduler": {"_class_name": "FlowMatchEulerDiscreteScheduler"}},
        "with noise that betas do not describe",
    ),
    "flow matching by a sampler of others": ({"scheduler": {"use_flow_sigmas": True}}, "use_flow_sigmas: expected"),
    "a shifted schedule": ({"scheduler": {"snr_shift_scale": 3.0}}, "snr_shift_scale: expected"),
    "tokens": ({"scheduler": {"_class_name": "VQDiffusionScheduler"}}, "with noise that betas do not describe"),
    "sigmas": ({"scheduler": {"_class_name": "EDMEulerScheduler"}}, "with noise that betas do not describe"),
    "another activation": ({"unet": {"act_fn": "mish"}}, 'act_fn: expected "silu" or "swish"'),
    "sine first": ({"unet": {"flip_sin_to_cos": False}}, "flip_sin_to_cos: expected true"),
    "centred input": ({"unet": {"center_input_sample": True}}, "center_input_sample: expected false"),
    "classes": ({"unet": {"num_class_embeds": 10}}, "num_class_embeds: expected null"),
    "a field of the future": ({"unet": {"norm_kind": "rms"}}, "unknown setting 'norm_kind'"),
    "another downsampling": ({"unet": {"downsample_type": "resnet"}}, 'downsample_type: expected "conv"'),
    "another block": ({"unet": {"down_block_types": ["DownBlock2D", "SkipDownBlock2D"]}}, "SkipDownBlock2D"),
    "halves unlike": ({"unet": {"up_block_types": ["UpBlock2D", "AttnUpBlock2D"]}}, "up_block_types"),
    "heads that do not fit": ({"unet": {"attention_head_dim": 7}}, "attention_head_dim is 7, which does not divide"),
    "a wider embedding": ({"unet": {"time_embedding_dim": 99}}, "time_embedding_dim is 99"),
    "a learned variance": ({"unet": {"out_channels": 6}}, "out_channels is 6"),
    "another latent": ({"unet": {"in_channels": 5, "out_channels": 5}}, "the first stage's latents have 3"),
    "another network": ({"unet": {"_class_name": "UNet1DModel"}}, "_class_name is 'UNet1DModel'"),
    "spatial norms": ({"vqvae": {"norm_type": "spatial"}}, 'norm_type: expected "group"'),
    "means of latents": ({"vqvae": {"latents_mean": [1, 2]}}, "unknown setting 'latents_mean'"),
    "a trained schedule": ({"scheduler": {"trained_betas": [0.1]}}, "trained_betas: expected null"),
    "another schedule": ({"scheduler": {"beta_schedule": "sigmoid"}}, "beta_schedule: expected"),
    "no signal at the end": ({"scheduler": {"rescale_betas_zero_snr": True}}, "rescale_betas_zero_snr"),
    "flow matching": ({"scheduler": {"prediction_type": "flow_prediction"}}, "prediction_type: expected"),
    "Stable Diffusion XL": ({"index": {"text_encoder_2": ["transformers", "CLIPTextModel"]}}, "Stable Diffusion XL"),
    "a further condition": (
        {"unet": {"_class_name": "UNet2DConditionModel", "addition_embed_type": "text_image"}},
        "a UNet that takes a further condition (addition_embed_type is 'text_image')",
    ),
    "a transformer": (
        {"index": {"_class_name": "FluxPipeline", "transformer": []}},
        "FluxPipeline: its network is",
    ),
    "inpainting": (
        {"unet": {"_class_name": "UNet2DConditionModel", "in_channels": 9}},
        "an inpainting UNet of Stable Diffusion",
    ),
    "Stable Diffusion 2": (
        {"unet": {"_class_name": "UNet2DConditionModel", "in_channels": 4, "cross_attention_dim": 1024}},
        "Stable Diffusion 2",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_field_that_cannot_be_honoured_is_refused_by_its_name(name, tmp_path):
    changes, told = REFUSED[name]
    with pytest.raises(UserError, match=re.escape(told)) as error:
        read_config(write_folder(tmp_path / "vq", "vq", **changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda folder: (folder / "unet" / f"{FILE}.safetensors").unlink(), f"has no {FILE}.safetensors"),
        (lambda folder: (folder / "unet" / "config.json").unlink(), "holds no diffusion model"),
        (lambda folder: (folder / "vqvae" / "config.json").unlink(), "a diffusion model of pixels"),
        (lambda folder: (folder / "scheduler" / "scheduler_config.json").unlink(), "cannot read"),
        (
            lambda folder: (folder / "scheduler" / "scheduler_config.json").write_text("{}"),
            "has no beta_schedule, beta_start and beta_end",
        ),
        (lambda folder: (folder / "unet" / "config.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "unet" / "config.json").write_text("[]"), "expected a JSON object"),
        (
            lambda folder: save_file({"extra.weight": torch.ones(2)}, folder / "unet" / f"{FILE}.safetensors"),
            "holds extra.weight, which its configuration has no place for",
        ),
        (
            lambda folder: save_file({"conv_in.weight": torch.ones(2)}, folder / "unet" / f"{FILE}.safetensors"),
            "does not fit the configuration",
        ),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(spoil, told, tmp_path):
    folder = write_folder(tmp_path / "vq", "vq")
    spoil(folder)
    with pytest.raises(UserError, match=re.escape(told)):
        get_model(None, folder, device="cpu")


def test_an_index_leads_nowhere_else(tmp_path):
    folder = write_folder(tmp_path / "vq", "vq")
    rewrite(folder, as_shards)
    index = folder / "unet" / f"{FILE}.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
    with pytest.raises(UserError, match="names a file outside its folder"):
        get_model(None, folder, device="cpu")
    index.write_text(json.dumps({"weight_map": {"a": f"{FILE}-00009-of-00009.safetensors"}}))
    with pytest.raises(UserError, match="is missing"):
        get_model(None, folder, device="cpu")


def test_a_folder_brings_its_configuration(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "vq", "vq")
    with pytest.raises(UserError, match="has its own configuration: leave out --ldm_config"):
        get_model(tmp_path / "own.yaml", folder, device="cpu")
    # A model of the hub, by its id.
    monkeypatch.setattr("model_loader.place_of", {"some/one": folder, Path("some/one"): folder}.get)
    for given in ("some/one", Path("some/one")):
        with pytest.raises(UserError, match="some/one has its own configuration: leave out --ldm_config"):
            model_config(tmp_path / "own.yaml", given)


def test_attention_that_the_configuration_says_is_not_there_is_refused(tmp_path):
    folder = write_folder(tmp_path / "vq", "vq", vqvae={"mid_block_add_attention": False})
    with pytest.raises(UserError, match=r"that the model does not have .*\.attn_1\."):
        get_model(None, folder, device="cpu")


def text_params(folder):
    """Return the settings of a text encoder that a model of a folder is built from."""
    config = OmegaConf.to_container(OmegaConf.create(read_config(folder)), resolve=True)
    return config["model"]["params"]["cond_stage_config"]["params"]


def test_texts_of_a_file_stay_texts(tmp_path):
    """A configuration resolves `${}`, which can read the environment."""
    texts = {"_name_or_path": "${oc.env:HOME}", "note": "${nothing}", "list": ["${oc.env:HOME}"]}
    name = "${oc.env:HOME}"
    params = text_params(write_folder(tmp_path / name, "text", text_encoder=texts))
    assert params["tokenizer"] == str(tmp_path / name / "tokenizer")
    assert set(params["config"]) == set(TextModelSettings.model_fields)
    folder = write_folder(tmp_path / "other", "text", text_encoder={"hidden_act": "${oc.env:HOME}"})
    with pytest.raises(
        UserError, match=r"config.json: hidden_act: expected quick_gelu or gelu, got '\$\{oc.env:HOME\}'"
    ):
        read_config(folder)


@WITH_TRANSFORMERS
def test_a_folder_may_have_any_name(tmp_path):
    model = get_model(None, write_folder(tmp_path / "${x}", "text"), device="cpu")
    assert model.get_learned_conditioning([""]).shape[0] == 1


def test_settings_that_a_text_model_leaves_out_are_as_transformers_has_it(tmp_path):
    folder = write_folder(tmp_path / "text", "text")
    path = folder / "text_encoder" / "config.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({key: fields[key] for key in fields if key != "num_attention_heads"}))
    assert text_params(folder)["config"] == text_params(folder)["config"] | {"num_attention_heads": 8}


@WITH_TRANSFORMERS
def test_those_defaults_are_those_of_transformers():
    own = importlib.import_module("transformers").CLIPTextConfig()
    told = read(TextModelSettings, TEXT_DEFAULTS)
    assert told.to_plain() == {name: getattr(own, name) for name in TextModelSettings.model_fields}
