"""Class labels and guidance, as keywords for the samplers."""

from types import SimpleNamespace

import pytest
import torch

from ldm.models.diffusion.guidance import guidance
from ldm.modules.encoders.modules import ClassEmbedder
from util.errors import UserError


def model(classes=None):
    stage = ClassEmbedder(embed_dim=4, n_classes=classes) if classes else None
    return SimpleNamespace(cond_stage_model=stage, get_learned_conditioning=stage)


def test_an_unconditional_model_takes_nothing():
    assert guidance(model()) == {}
    with pytest.raises(UserError, match="unconditional"):
        guidance(model(), class_label=3)


def test_guidance_contrasts_the_class_with_the_null_class():
    network = model(1001)
    rows = network.cond_stage_model.embedding.weight
    keywords = guidance(network, class_label=7, scale=3.0)
    assert keywords["unconditional_guidance_scale"] == 3.0
    assert torch.equal(keywords["conditioning"], rows[7][None, None])
    assert torch.equal(keywords["unconditional_conditioning"], rows[1000][None, None])


def test_no_label_is_the_null_class_where_there_is_one():
    network = model(1001)
    keywords = guidance(network, scale=3.0)
    assert keywords.keys() == {"conditioning"}
    assert torch.equal(keywords["conditioning"], network.cond_stage_model.embedding.weight[1000][None, None])
    with pytest.raises(UserError, match="class_label=N, from 0 to 999"):
        guidance(model(1000))


def test_more_classes_than_imagenets_have_no_null_class_among_them():
    with pytest.raises(UserError, match="class_label=N, from 0 to 1999"):
        guidance(model(2000))
    with pytest.raises(UserError, match="no null class"):
        guidance(model(2000), class_label=3, scale=2.0)


def test_what_the_model_cannot_do_is_refused():
    with pytest.raises(UserError, match="from 0 to 999"):
        guidance(model(1000), class_label=1000)
    with pytest.raises(UserError, match="no null class"):
        guidance(model(1000), class_label=3, scale=2.0)
    assert guidance(model(1000), class_label=3).keys() == {"conditioning"}
