"""Models with prompts: CLIP's text model, and guidance from one prompt away from another."""

import copy
import logging
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ldm.models.diffusion.guidance import guidance
from ldm.models.diffusion.prior import LatentPrior
from ldm.modules.encoders.modules import FrozenCLIPEmbedder
from ldm.util import instantiate_from_config
from model_loader import build_model, load_model_from_config
from tests.text_model import LENGTH, SHAPE, embedder_config
from tests.tiny import family
from util.errors import UserError

UNET = {"use_spatial_transformer": True, "context_dim": SHAPE["hidden_size"]}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    pytest.importorskip("transformers")
    return family(unet=UNET, cond_stage_config=embedder_config(tmp_path_factory.mktemp("text")))


@pytest.fixture(scope="module")
def model(config):
    torch.manual_seed(0)
    model = instantiate_from_config(config["model"]).eval().requires_grad_(False)
    for parameter in model.parameters():
        if not parameter.any():  # as residual branches start
            parameter.normal_(std=0.1)
    return model


def attention(x, weights, prefix, heads):
    """Causal self-attention by its formula."""
    q, k, v = (x @ weights[f"{prefix}{n}_proj.weight"].T + weights[f"{prefix}{n}_proj.bias"] for n in "qkv")
    q, k, v = (part.reshape(len(x), heads, -1).transpose(1, 0, 2) for part in (q, k, v))
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1]) + np.triu(np.full((len(x), len(x)), -np.inf), 1)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    out = (shares / shares.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(x.shape)
    return out @ weights[f"{prefix}out_proj.weight"].T + weights[f"{prefix}out_proj.bias"]


def text_model(tokens, weights):
    """CLIP's text model, written from the paper and the description of its weights."""

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    x = weights["embeddings.token_embedding.weight"][tokens] + weights["embeddings.position_embedding.weight"]
    for layer in range(SHAPE["num_hidden_layers"]):
        own = f"encoder.layers.{layer}."
        x = x + attention(norm(x, f"{own}layer_norm1"), weights, f"{own}self_attn.", SHAPE["num_attention_heads"])
        h = norm(x, f"{own}layer_norm2") @ weights[f"{own}mlp.fc1.weight"].T + weights[f"{own}mlp.fc1.bias"]
        h = h / (1 + np.exp(-1.702 * h))
        x = x + h @ weights[f"{own}mlp.fc2.weight"].T + weights[f"{own}mlp.fc2.bias"]
    return norm(x, "final_layer_norm")


def test_prompts_are_embedded_as_the_text_model_says(model):
    context = model.get_learned_conditioning(["a cat", ""])
    assert context.shape == (2, LENGTH, SHAPE["hidden_size"])
    prefix = "cond_stage_model.transformer."
    weights = {
        k.removeprefix(prefix): v.double().numpy() for k, v in model.state_dict().items() if k.startswith(prefix)
    }
    start, end = 188, 189  # behind 94 letters twice, of which "a", "c" and "t" are numbers 64, 66 and 83
    rows = [[start, 64 + 94, 66, 64, 83 + 94, *[end] * 7], [start, *[end] * 11]]
    for row, found in zip(rows, context, strict=True):
        assert np.abs(found.numpy() - text_model(np.array(row), weights)).max() < 1e-5


def test_the_default_is_the_text_model_of_stable_diffusion():
    pytest.importorskip("transformers")
    with torch.device("meta"):
        stage = FrozenCLIPEmbedder()
    assert sum(parameter.numel() for parameter in stage.parameters()) == 123_060_480


def test_guidance_leads_from_one_prompt_to_the_other(model):
    model = copy.deepcopy(model).double()  # the two sides differ in rounding, which the scale multiplies
    context = {text: model.get_learned_conditioning([text]) for text in ("a cat", "a dog", "")}
    wanted = guidance(model, scale=3.0, batch=2, prompt="a cat", negative_prompt="a dog")
    prior = LatentPrior(model, (), *wanted.values())
    z, t = torch.randn(2, 3, 16, 16, dtype=torch.float64), torch.full((2,), 400)
    cat, dog, empty = (model.apply_model(z, t, each.repeat(2, 1, 1)) for each in context.values())
    assert (cat - dog).abs().max() > 1e-3
    assert torch.allclose(prior.predict_noise(z, 400), dog + 3 * (cat - dog), rtol=0, atol=1e-12)
    prior = LatentPrior(model, (), *guidance(model, scale=3.0, batch=2, prompt="a cat").values())
    assert torch.allclose(prior.predict_noise(z, 400), empty + 3 * (cat - empty), rtol=0, atol=1e-12)
    (alone,) = guidance(model, prompt="a cat").values()
    assert torch.equal(alone, context["a cat"])
    (none,) = guidance(model).values()
    assert torch.equal(none, context[""])


def test_a_prompt_that_is_too_long_is_told(model, caplog):
    with caplog.at_level(logging.WARNING, "resample"):
        context = model.get_learned_conditioning(["abcdefghijklm"])
    assert context.shape[1] == LENGTH
    assert "a text has 15 tokens: those after the first 12 are cut off" in caplog.text


def test_the_tokenizer_may_say_a_shorter_length(tmp_path, caplog):
    pytest.importorskip("transformers")
    stage = embedder_config(tmp_path)
    told = tmp_path / "tokenizer" / "tokenizer_config.json"
    told.write_text('{"model_max_length": 5}')
    assert instantiate_from_config(stage).tokens(["abcdef"]).shape == (1, LENGTH)  # the length that was given
    stage["params"].pop("max_length")
    assert instantiate_from_config(stage).tokens(["abcdef"]).shape == (1, 5)
    assert "a text has 8 tokens: those after the first 5 are cut off" in caplog.text
    told.write_text('{"model_max_length": 1000}')
    assert instantiate_from_config(stage).tokens(["a"]).shape == (1, LENGTH)
    told.write_text('{"model_max_length": 1}')
    with pytest.raises(UserError, match="model_max_length is 1: expected a number, 2 or more"):
        instantiate_from_config(stage).tokens(["a"])


@pytest.mark.parametrize("wrapper", ["", "text_model."])
def test_more_layers_than_the_configuration_has_are_refused(wrapper, config, model, tmp_path):
    before = "cond_stage_model.transformer."
    stored = {name.replace(before, before + wrapper): tensor for name, tensor in model.state_dict().items()} | {
        f"{before}{wrapper}embeddings.position_ids": torch.arange(LENGTH)
    }
    save_file(stored, tmp_path / "a.safetensors")
    load_model_from_config(config, tmp_path / "a.safetensors")
    save_file(stored | {f"{before}{wrapper}encoder.layers.2.mlp.fc1.bias": torch.ones(2)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"that the model does not have \(cond_stage_model\..*layers\.2\.mlp"):
        load_model_from_config(config, tmp_path / "a.safetensors")


def test_another_layers_output_is_refused():
    stage = {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder", "params": {"layer": "pooled"}}
    with pytest.raises(UserError, match=r"layer: expected 'last', got 'pooled'"):
        instantiate_from_config(stage)


def test_what_a_model_does_not_take_is_refused(model):
    with pytest.raises(UserError, match="no classes: it takes a prompt"):
        guidance(model, class_label=1)
    with pytest.raises(UserError, match="no prompt: it is unconditional"):
        guidance(instantiate_from_config(family()["model"]), prompt="a cat")


def test_a_model_without_weights_tells_whether_it_would_do(config):
    meta = build_model(config)
    assert guidance(meta, prompt="a cat")["conditioning"].is_meta
    without = copy.deepcopy(config)
    without["model"]["params"]["cond_stage_config"]["params"]["tokenizer"] = "/nowhere"
    with pytest.raises(UserError, match="/nowhere holds no tokenizer"):
        guidance(build_model(without), prompt="a cat")


def test_without_transformers_a_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="pip install -r requirements-text.txt"):
        FrozenCLIPEmbedder()
