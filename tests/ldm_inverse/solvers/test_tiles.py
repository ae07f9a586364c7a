"""Large pictures in tiles, against the networks on each tile alone."""

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ldm.util import instantiate_from_config
from ldm_inverse.solvers.dps import DPSSettings
from ldm_inverse.solvers.problem import InverseProblem
from ldm_inverse.solvers.restore import restore
from ldm_inverse.solvers.solver import Solver
from ldm_inverse.solvers.tiles import TiledModel, ramp, windows
from sample_condition import main
from tests.ldm.gaussian import soft_step_of
from tests.runs import words
from tests.tiny import CONFIG
from util.errors import UserError


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return instantiate_from_config(CONFIG["model"]).double().eval().requires_grad_(False)


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


T = torch.tensor([300])
NETWORKS = {
    "denoise": (3, 1, 1, lambda model, x: model.apply_model(x, T)),
    "decode": (3, 1, 2, lambda model, x: model.decode_first_stage(x)),
    "encode": (3, 2, 1, lambda model, x: model.encode_mode(x)),
}


@pytest.mark.parametrize(
    ("length", "side", "overlap"), [(16, 16, 4), (40, 16, 4), (41, 16, 0), (8, 16, 4), (33, 16, 15)]
)
def test_tiles_cover_a_side_and_their_weights_are_positive(length, side, overlap):
    covered = torch.zeros(length, dtype=torch.float64)
    found = list(windows(length, side, overlap))
    for window in found:
        assert window[1] - window[0] == min(side, length)
        weight = ramp(window, length, overlap, 1)
        assert (weight > 0).all()
        covered[slice(*window)] += weight
    assert (covered > 0).all()
    assert (found[0][0], found[-1][1]) == (0, length)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_picture_of_one_tile_is_the_models(name, model):
    channels, scale, _, network = NETWORKS[name]
    x = randn(1, channels, 16 * scale, 16 * scale)
    assert torch.equal(network(TiledModel(model, 32, 8), x), network(model, x))


@pytest.mark.parametrize("name", NETWORKS)
def test_where_one_tile_lies_alone_it_is_as_alone_and_between_two_it_is_between(name, model):
    channels, scale, out_of, network = NETWORKS[name]
    x = randn(2, channels, 16 * scale, 28 * scale)
    found = network(TiledModel(model, 32, 8), x)  # in latents: tiles of 16 that overlap by 4
    left, right = network(model, x[..., : 16 * scale]), network(model, x[..., 12 * scale :])
    a, b = 12 * out_of, 16 * out_of
    assert torch.allclose(found[..., :a], left[..., :a])
    assert torch.allclose(found[..., b:], right[..., b - a :])
    share = (torch.arange(b - a, dtype=torch.float64) + 0.5) / (b - a)
    between = (1 - share) * left[..., a:b] + share * right[..., : b - a]
    assert torch.allclose(found[..., a:b], between)


@pytest.mark.parametrize("name", ["decode", "encode"])
def test_seams_are_not_seen(name, model):
    """Of a smooth input: no jump at a tile's border is larger than those elsewhere, as one is without overlap."""
    channels, scale, out_of, network = NETWORKS[name]
    z = randn(1, channels, 5, 10)
    x = torch.nn.functional.interpolate(z, (20 * scale, 40 * scale), mode="bicubic", align_corners=True)

    def jumps(overlap):
        """The largest at the borders of tiles, and elsewhere."""
        steps = network(TiledModel(model, 32, overlap), x).diff(dim=-1).abs().mean((0, 1, 2))
        borders = {edge * out_of - 1 for window in windows(40, 16, overlap // 2) for edge in window} - {
            -1,
            40 * out_of - 1,
        }
        others = [step for i, step in enumerate(steps.tolist()) if i not in borders]
        return max(steps[sorted(borders)].tolist()), max(others)

    at_seams, elsewhere = jumps(16)
    assert at_seams <= elsewhere
    assert jumps(0)[0] > at_seams


def test_the_gradient_is_that_of_the_blend_and_keeps_no_tiles_activations(model):
    z, probe = randn(1, 3, 16, 28).requires_grad_(), randn(1, 3, 32, 56, seed=1)
    tiled, kept = TiledModel(model, 32, 8), []

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        image = tiled.differentiable_decode_first_stage(z)
    of_tiles = sum(kept)
    (found,) = torch.autograd.grad((image * probe).sum(), z)
    kept.clear()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        left, right = (model.differentiable_decode_first_stage(part) for part in (z[..., :16], z[..., 12:]))
    assert of_tiles < 0.2 * sum(kept)
    share = (torch.arange(8, dtype=torch.float64) + 0.5) / 8
    between = (1 - share) * left[..., 24:] + share * right[..., :8]
    blend = torch.cat([left[..., :24], between, right[..., 8:]], dim=-1)
    (want,) = torch.autograd.grad((blend * probe).sum(), z)
    assert torch.allclose(found, want)


def test_a_pass_over_all_tiles_counts_as_one(model):
    tiled, z = TiledModel(model, 32, 8), randn(1, 3, 16, 40).requires_grad_()
    before = tiled.evaluations.of(0)
    tiled.apply_model(z.detach(), T)
    tiled.differentiable_decode_first_stage(z).sum().backward()
    counted = tiled.evaluations.of(0).since(before)
    assert (counted.unet, counted.decoder_forward, counted.decoder_backward) == (1, 1, 1)


def test_a_large_picture_is_restored_from_one_measurement(model):
    """A mean over the whole width sees both tiles, and both move."""
    tiled = TiledModel(model, 32, 8)

    def operator_fn(x):
        return x.mean(-1)

    problem = InverseProblem(
        torch.full((1, 3, 32), 0.5, dtype=torch.float64), operator_fn, soft_step_of(tiled, operator_fn), size=(32, 56)
    )
    images = []
    for scale in (0.0, 20.0):
        solver = Solver("dps", 3, settings=DPSSettings(scale=scale, weight="constant"))
        images.append(restore(tiled, problem, solver, generator=torch.Generator().manual_seed(0)))
    assert images[0].shape == (1, 3, 32, 56)
    moved = (images[1] - images[0]).abs().mean((0, 1, 2))
    assert (moved > 0.01).all()
    assert problem.loss(images[1]) < problem.loss(images[0])


@pytest.mark.parametrize(("side", "overlap"), [(33, 8), (32, 32), (32, 7), (32, -2)])
def test_tiles_that_do_not_fit_are_refused(side, overlap, model):
    with pytest.raises(UserError, match="do not fit the model"):
        TiledModel(model, side, overlap)


def test_the_command_restores_a_large_picture_in_tiles(place, tmp_path):
    pictures = tmp_path / "large"
    pictures.mkdir()
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (48, 72, 3), np.uint8)).save(pictures / "large.png")
    given = ["--data", str(pictures), "measurement.mask_opt.image_size=null"]
    for out, more in (("whole", []), ("tiles", ["--tiles", "32,8"])):
        assert main(words(place, tmp_path / out, *given, *more, steps=3)) == 0
    whole, tiles = (np.asarray(Image.open(tmp_path / out / "recon" / "large.png")) for out in ("whole", "tiles"))
    assert whole.shape == tiles.shape == (48, 72, 3)
    assert not np.array_equal(whole, tiles)
    assert yaml.safe_load((tmp_path / "tiles" / "settings.yaml").read_text())["settings"]["tiles"] == [32, 8]
    assert main(words(place, tmp_path / "again", "--from", str(tmp_path / "tiles"), steps=3)) == 0
    assert np.array_equal(tiles, np.asarray(Image.open(tmp_path / "again" / "recon" / "large.png")))
