"""A YAML builds only listed targets, with their keywords."""

import sys

import pytest
import torch
from omegaconf import OmegaConf

from ldm.models.autoencoder import IdentityFirstStage, VQModelInterface
from ldm.util import TARGETS, instantiate_from_config
from util.errors import UserError

VQ = {
    "target": "ldm.models.autoencoder.VQModelInterface",
    "params": {
        "embed_dim": 3,
        "n_embed": 8,
        "ddconfig": {
            **{"double_z": False, "z_channels": 3, "resolution": 8, "in_channels": 3, "out_ch": 3, "ch": 32},
            **{"ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0},
        },
    },
}


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_of_the_list_exists(target):
    module, _, name = target.rpartition(".")
    assert isinstance(getattr(__import__(module, fromlist=[name]), name), type)


@pytest.mark.parametrize("wrap", [dict, OmegaConf.create])
def test_plain_and_omegaconf_mappings_build_the_same(wrap):
    model = instantiate_from_config(wrap(VQ))
    assert isinstance(model, VQModelInterface)
    assert model.quantize.embedding.weight.shape == (8, 3)


def test_interpolations_are_resolved():
    config = OmegaConf.create({"size": 16, "stage": {**VQ, "params": {**VQ["params"], "n_embed": "${size}"}}})
    assert instantiate_from_config(config.stage).quantize.embedding.weight.shape == (16, 3)


@pytest.mark.parametrize("word", ["__is_first_stage__", "__is_unconditional__"])
def test_words_for_no_network_of_its_own(word):
    assert instantiate_from_config(word) is None


def test_params_may_be_left_out():
    for config in ({}, {"params": None}, {"params": {}}):
        target = {"target": "ldm.models.autoencoder.IdentityFirstStage"}
        assert isinstance(instantiate_from_config({**target, **config}), IdentityFirstStage)


def test_an_identity_takes_whatever_a_loss_was_given():
    config = {"target": "torch.nn.Identity", "params": {"disc_start": 1}}
    assert isinstance(instantiate_from_config(config), torch.nn.Identity)


@pytest.mark.parametrize("target", ["os.system", "torch.nn.Linear", "ldm.util.instantiate_from_config", 3, None, ["a"]])
def test_a_target_outside_the_list_is_refused_and_the_list_named(target):
    with pytest.raises(UserError) as error:
        instantiate_from_config({"target": target, "params": {}})
    assert all(known in str(error.value) for known in TARGETS)


ENCODERS = "ldm.modules.encoders.modules."
# As CompVis, Stability AI and taming-transformers publish them.
PUBLISHED = {
    "ldm.models.diffusion.ddpm.LatentInpaintDiffusion": "an inpainting model",
    "ldm.models.diffusion.ddpm.Layout2ImgDiffusion": "a model of layouts",
    "ldm.models.diffusion.ddpm.LatentUpscaleDiffusion": "a super-resolution model",
    "ldm.models.diffusion.ddpm.MinimalRETRODiffusion": "retrieved pictures",
    "ldm.models.diffusion.ddpm.DDPM": "a diffusion model of pixels",
    "sgm.models.diffusion.DiffusionEngine": "Stable Diffusion XL",
    f"{ENCODERS}BERTEmbedder": "texts or layouts",
    f"{ENCODERS}SpatialRescaler": "is given a picture",
    f"{ENCODERS}FrozenCLIPImageEmbedder": "is given pictures",
    f"{ENCODERS}FrozenOpenCLIPEmbedder": "Stable Diffusion 2",
}


@pytest.mark.parametrize("target", PUBLISHED)
def test_a_published_kind_that_cannot_be_used_is_called_what_it_is(target):
    with pytest.raises(UserError, match=PUBLISHED[target]) as error:
        instantiate_from_config({"target": target, "params": {}})
    assert target in str(error.value)
    assert "\n" not in str(error.value)


def test_nothing_is_imported_because_a_yaml_says_so(tmp_path, monkeypatch):
    (tmp_path / "imported_by_yaml.py").write_text("class Model: pass")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError):
        instantiate_from_config({"target": "imported_by_yaml.Model"})
    assert "imported_by_yaml" not in sys.modules


@pytest.mark.parametrize("config", ["__is_something_else__", {"params": {}}, None, 3, ["target"]])
def test_what_is_no_mapping_with_a_target_is_refused(config):
    with pytest.raises(UserError, match="target"):
        instantiate_from_config(config)


def test_an_unknown_keyword_is_named_with_the_nearest():
    config = {**VQ, "params": {**VQ["params"], "n_embeds": 8}}
    with pytest.raises(UserError, match="'n_embeds'.*'n_embed'"):
        instantiate_from_config(config)


def test_an_unknown_keyword_further_inside_is_named():
    ddconfig = {**VQ["params"]["ddconfig"], "channels_last": True}
    with pytest.raises(UserError, match="channels_last"):
        instantiate_from_config({**VQ, "params": {**VQ["params"], "ddconfig": ddconfig}})


def test_a_missing_keyword_is_named():
    params = {key: value for key, value in VQ["params"].items() if key != "n_embed"}
    with pytest.raises(UserError, match="n_embed"):
        instantiate_from_config({**VQ, "params": params})


def test_params_that_are_no_mapping_are_refused():
    with pytest.raises(UserError, match="must be a mapping"):
        instantiate_from_config({**VQ, "params": [1]})


def test_what_only_training_read_is_ignored_and_its_targets_never_looked_at():
    training = {
        "lossconfig": {"target": "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator", "params": {}},
        "monitor": "val/rec_loss",
        "ckpt_path": "nowhere.ckpt",
        "ignore_keys": ["loss"],
        "scheduler_config": {"target": "os.system"},
        "image_key": "image",
    }
    assert isinstance(instantiate_from_config({**VQ, "params": {**VQ["params"], **training}}), VQModelInterface)
