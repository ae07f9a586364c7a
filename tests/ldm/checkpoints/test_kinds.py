"""The kind of a file is told by the names and shapes of its tensors."""

import json
from importlib.util import find_spec

import pytest

from ldm.checkpoints.kinds import kind_of
from ldm.checkpoints.reading import StoredTensor
from model_loader import build_model, fitting_configurations, load_yaml
from tests.reference.recorded import HERE

UNET = "model.diffusion_model."
PUBLISHED = sorted(path.stem for path in (HERE / "checkpoints").glob("*.json"))


def file_of(shapes):
    """The tensors of a file, which nobody reads."""
    return {name: StoredTensor(tuple(shape), lambda: None, lambda: None) for name, shape in shapes.items()}


@pytest.fixture(scope="module", autouse=True)
def _built_once():
    """The model of each configuration is built once for all files that may be of it."""
    built = {}

    def build_once(config):
        key = json.dumps(config, sort_keys=True)
        if key not in built:
            built[key] = build_model(config)
        return built[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model_loader.build_model", build_once)
        yield


# Names as published files have them.
KINDS = {
    "a LoRA": {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": [4, 320, 1, 1]},
    "a ControlNet": {"control_model.input_blocks.0.0.weight": [320, 4, 3, 3]},
    "a text encoder": {"text_model.embeddings.token_embedding.weight": [49408, 768]},
    "a first stage alone": {"encoder.conv_in.weight": [128, 3, 3, 3], "decoder.conv_in.weight": [512, 4, 3, 3]},
    "a pixel-space model of guided-diffusion": {"time_embed.0.weight": [1024, 256], "input_blocks.0.0.weight": [256]},
    "one part of a folder in the diffusers layout": {"conv_in.weight": [320, 4, 3, 3], "down_blocks.0.resnets.0": [1]},
    "a quantised model": {f"{UNET}out.2.weight_scale": [1], f"{UNET}out.2.weight": [4, 320, 3, 3]},
    "Stable Diffusion XL": {"conditioner.embedders.0.transformer.text_model.final_layer_norm.bias": [768]},
    "Stable Diffusion 3": {f"{UNET}joint_blocks.0.x_block.attn.qkv.weight": [4608, 1536]},
    "a Flux transformer": {"double_blocks.0.img_attn.qkv.weight": [1], "single_blocks.0.linear1.weight": [1]},
    "Stable Diffusion 2": {
        f"{UNET}input_blocks.0.0.weight": [320, 4, 3, 3],
        f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": [320, 1024],
    },
    "an inpainting UNet": {
        f"{UNET}input_blocks.0.0.weight": [320, 9, 3, 3],
        f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": [320, 768],
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_usable_latent_diffusion_model_is_called_what_it_is(kind):
    assert kind_of(file_of(KINDS[kind])).startswith(kind)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_tell_their_configuration(name):
    stored = file_of(json.loads((HERE / "checkpoints" / f"{name}.json").read_text())["state_dict"])
    assert kind_of(stored) is None
    found = [path.stem for path in fitting_configurations(stored)]
    faces = ["celebahq-ldm-vq-4", "ffhq-ldm-vq-4"]  # of one architecture
    assert found == (faces if name in faces else [name])


@pytest.mark.skipif(find_spec("transformers") is None, reason="needs transformers")
def test_stable_diffusion_has_its_published_size_and_tells_its_configuration():
    config = next(path for path in fitting_configurations_of_stable_diffusion())
    model = build_model(load_yaml(config))
    parts = (model.model, model.first_stage_model, model.cond_stage_model)
    sizes = [sum(parameter.numel() for parameter in part.parameters()) for part in parts]
    assert sizes == [859_520_964, 83_653_863, 123_060_480]
    assert (model.resolution, model.multiple, model.channels) == (512, 64, 4)


def fitting_configurations_of_stable_diffusion():
    """The configurations that fit a file with Stable Diffusion's UNet, of the published files' names and shapes."""
    config = load_yaml(HERE.parents[1] / "configs" / "latent-diffusion" / "stable-diffusion-v1.yaml")
    unet = {name: tensor.shape for name, tensor in build_model(config).state_dict().items() if name.startswith(UNET)}
    assert len(unet) == 686
    assert tuple(unet[f"{UNET}output_blocks.11.1.transformer_blocks.0.attn2.to_k.weight"]) == (320, 768)
    assert kind_of(file_of(unet)) is None
    return fitting_configurations(file_of(unet))
