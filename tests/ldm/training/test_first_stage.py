"""Training of a first stage: initialisation against principal components, losses in closed form."""

import numpy as np
import pytest
import torch
from scipy.cluster.vq import kmeans2, vq

from ldm.modules.quantize import VectorQuantizer
from ldm.training.autoencoder import AutoencoderLoss, DecoderLoss, round_trip_psnr
from ldm.training.initialise import codebook_from_data, fit_codebook, linear_encoder, patch_components
from ldm.training.latents import encode_pictures
from ldm.training.pictures import cut, random_crops, to_model_range
from ldm.training.settings import CodebookFit, Stage
from tests.ldm.training.first_stage import first_stage, some_pictures
from util.errors import UserError


@pytest.mark.parametrize("mult", [(1, 4), (4, 4), (1, 2, 4), (1, 4, 4)])
@pytest.mark.parametrize("whitening", [0.0, 0.25])
def test_linear_encoder_gives_principal_components(mult, whitening):
    """Against NumPy's singular value decomposition of the patches; signs are free."""
    pictures, model = some_pictures(), first_stage(*mult)
    linear_encoder(model, pictures, whitening)
    images = to_model_range(pictures)
    with torch.no_grad():
        latents = model.encode(images)
    f = model.downsampling
    patches = torch.nn.functional.unfold(images, f, stride=f).transpose(1, 2).flatten(0, 1).double().numpy()
    _, singular, vectors = np.linalg.svd(patches - patches.mean(0), full_matrices=False)
    deviations = singular[:5] / np.sqrt(len(patches) - 1)
    want = (patches - patches.mean(0)) @ vectors[:5].T * deviations**-whitening
    want /= np.sqrt(np.mean(deviations ** (2 - 2 * whitening)))
    got = latents.permute(0, 2, 3, 1).reshape(-1, 5).double().numpy()
    signs = np.sign((got * want).sum(0))
    assert np.abs(got * signs - want).max() < 2e-3 * np.abs(want).max()


def test_linear_encoder_can_be_trained_further():
    pictures, model = some_pictures(), first_stage(1, 4)
    linear_encoder(model, pictures, 0.0)
    model.encode(to_model_range(pictures[:2])).square().mean().backward()
    for name in ("down.0.block.0.conv2.weight", "mid.block_1.conv2.weight", "conv_in.weight"):
        assert model.encoder.get_parameter(name).grad.abs().max() > 0


def test_linear_encoder_says_what_it_needs():
    with pytest.raises(UserError, match="128 channels"):
        linear_encoder(first_stage(1, 2), some_pictures(), 0.0)


def test_components_are_orthonormal_and_sorted():
    components, mean, deviations = patch_components(some_pictures(), 4, 6)
    flat = components.flatten(1)
    assert torch.allclose(flat @ flat.T, torch.eye(6, dtype=torch.float64), atol=1e-12)
    assert mean.shape == (3, 4, 4)
    assert (deviations.diff() <= 0).all()


def test_codebook_is_in_use_and_better_than_random_entries():
    pictures, model = some_pictures(), first_stage(1, 4, entries=64)
    linear_encoder(model, pictures, 0.0)
    codebook_from_data(model, pictures, np.random.RandomState(0), CodebookFit())
    with torch.no_grad():
        latents = model.encode(to_model_range(pictures))
        quantised, _, (_, _, indices) = model.quantize(latents)
        error = (quantised - latents).square().mean()
        flat = latents.permute(0, 2, 3, 1).reshape(-1, 5)
        model.quantize.embedding.weight.copy_(flat[torch.randperm(len(flat))[:64]])
        random_error = (model.quantize(latents)[0] - latents).square().mean()
    assert len(indices.unique()) == 64
    assert error < random_error


@pytest.mark.filterwarnings("ignore:One of the clusters is empty")
def test_the_fit_of_a_codebook_ends_below_lloyds_iterations_and_continues():
    """SciPy's k-means, from the same start, cannot bring entries from the dense cluster to the wide one."""
    rng = np.random.RandomState(0)
    codes = np.concatenate([0.05 * rng.standard_normal((4000, 3)), 3 + rng.standard_normal((4000, 3))]).astype("f4")
    start = codes[:320]
    want = vq(codes, kmeans2(codes, start, iter=30, minit="matrix")[0])[1]
    quantizer, found = VectorQuantizer(320, 3), []
    quantizer.embedding.weight.data = torch.from_numpy(start.copy())
    for _ in range(2):
        fit_codebook(quantizer, torch.from_numpy(codes), 30, rng)
        found.append(np.square(vq(codes, quantizer.embedding.weight.detach().numpy())[1]).mean())
    assert found[0] < 0.8 * np.square(want).mean()
    assert found[1] < found[0]


def test_decoder_loss_is_the_loss_of_the_whole_pictures_round_trip(tmp_path):
    pictures, model = some_pictures(4), first_stage(1, 4)
    linear_encoder(model, pictures, 0.0)
    codebook_from_data(model, pictures, np.random.RandomState(0), CodebookFit())
    latents = encode_pictures(model.encode, pictures, tmp_path / "latents.f16", torch.device("cpu"))
    stage = Stage(share=1, batch_size=3, crop=32)
    loss = DecoderLoss(model, pictures, latents, 1 / 3)(stage, np.random.RandomState(5))
    array = torch.from_numpy(pictures)
    images = cut(array, random_crops(array, 3, 32, np.random.RandomState(5), 2), 32)
    with torch.no_grad():
        codes = model.encode(images)
        decoded = [model.decode(codes[:1]), model.decode(codes[1:], force_not_quantize=True)]
        want = (torch.cat(decoded) - images).square().mean()
    assert abs(loss.item() - want) < 2e-3 * want
    consistent = DecoderLoss(model, pictures, latents, 1 / 3, 0.5)(stage, np.random.RandomState(5))
    with torch.no_grad():
        given = torch.cat([model.quantize(codes[:1])[0], codes[1:]])
        want = (model.encode(torch.cat(decoded)) - given).square().mean() / 2
    assert abs((consistent - loss).item() - want) < 2e-3 * want
    loss.backward()
    assert model.decoder.conv_in.weight.grad is not None
    assert model.encoder.conv_in.weight.grad is None


def test_unused_entries_are_revived():
    pictures, model = some_pictures(), first_stage(1, 4, entries=64)
    with torch.no_grad():
        model.quantize.embedding.weight.fill_(1e3)
        model.quantize.embedding.weight[0] = 0
    loss, rng = AutoencoderLoss(model, pictures), np.random.RandomState(0)
    for _ in range(100):
        loss(Stage(share=1, batch_size=1, crop=32), rng)
    assert (model.quantize.embedding.weight.abs().max(1).values < 1e2).all()


def test_the_count_of_uses_can_be_taken_up_again():
    pictures, stage = some_pictures(), Stage(share=1, batch_size=1, crop=32)
    found = []
    for stop in (None, 60):
        model, rng = first_stage(1, 4, entries=64), np.random.RandomState(0)
        loss = AutoencoderLoss(model, pictures)
        for step in range(100):
            if step == stop:
                state = loss.state_dict()
                loss = AutoencoderLoss(model, pictures)
                loss.load_state_dict(state)
            loss(stage, rng)
        found.append(model.quantize.embedding.weight.detach().clone())
    assert torch.equal(*found)
    assert not torch.equal(found[0], first_stage(1, 4, entries=64).quantize.embedding.weight)


def test_round_trip_psnr_is_that_of_the_written_pictures():
    pictures = some_pictures(2)

    class Off(torch.nn.Conv2d):
        """A round trip that adds 8 of 255 grey levels."""

        def encode(self, x):
            return x

        def decode(self, z, force_not_quantize):
            return z + 8 / 127.5

    dark = (pictures // 2).astype(np.uint8)
    psnr, _ = round_trip_psnr(Off(1, 1, 1), dark)
    assert psnr == pytest.approx(20 * np.log10(255 / 8), abs=1e-3)
