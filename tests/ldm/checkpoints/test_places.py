"""Where a model is found, and what is said where there is none."""

import pytest

from ldm.checkpoints.places import available_models, resolve_model
from tests.diffusers_folder import write_folder
from util.errors import UserError


@pytest.fixture
def models(tmp_path):
    """A folder of models: a file, one from the hub in the diffusers layout, and one there that is a single file."""
    root = tmp_path / "models"
    for path in ("ldm/model.ckpt", "first_stage_models/vq-f4/model.ckpt", "hub/someone/single/model.safetensors"):
        (root / path).parent.mkdir(parents=True)
        (root / path).write_bytes(b"")
    write_folder(root / "hub" / "CompVis" / "ldm-celebahq-256", "vq")
    return root


def test_a_file_a_folder_and_an_id_are_found(models):
    assert resolve_model(models / "ldm" / "model.ckpt") == models / "ldm" / "model.ckpt"
    folder = models / "hub" / "CompVis" / "ldm-celebahq-256"
    assert resolve_model(folder) == resolve_model("CompVis/ldm-celebahq-256", models) == folder
    assert resolve_model("someone/single", models).name == "model.safetensors"
    assert resolve_model(models / "ldm").name == "model.ckpt"


def test_what_is_there_is_named_where_nothing_is(models):
    here = ["ldm/model.ckpt", "CompVis/ldm-celebahq-256", "someone/single"]
    assert available_models(models) == here
    with pytest.raises(UserError) as error:
        resolve_model("CompVis/ldm-celebahq", models)
    first, second, third = str(error.value).splitlines()
    assert first == f"no checkpoint at CompVis/ldm-celebahq (in models/: {', '.join(here)})"
    assert second.endswith("bash scripts/download_models.sh hf CompVis/ldm-celebahq")
    assert "models/demo/model.safetensors" in third


def test_a_folder_with_several_checkpoints_or_none_is_refused(models):
    (models / "ldm" / "other.ckpt").write_bytes(b"")
    with pytest.raises(UserError, match=r"holds 2 checkpoints: give one of them \(model.ckpt, other.ckpt\)"):
        resolve_model(models / "ldm")
    (models / "empty").mkdir()
    with pytest.raises(UserError, match="a folder without a checkpoint"):
        resolve_model(models / "empty")
