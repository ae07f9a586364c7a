"""The sampler's parts and whole restorations against recorded outputs of the reference implementation."""

from functools import partial

import pytest
import torch
from omegaconf import OmegaConf

from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm_inverse.condition_methods import get_conditioning_method
from ldm_inverse.measurements import get_noise, get_operator
from ldm_inverse.solvers import resample
from ldm_inverse.solvers.problem import InverseProblem
from ldm_inverse.solvers.resample_settings import LatentSettings, PixelSettings, ResampleSettings
from tests.reference.recorded import fill_parameters, recorded, relative_error

PARTS, PARTS_META = recorded("sampler")
RUNS, RUNS_META = recorded("end_to_end")


@pytest.fixture(scope="module")
def model():
    """The tiny model of both recordings."""
    assert (PARTS_META["params"], PARTS_META["weights_seed"]) == (RUNS_META["params"], RUNS_META["weights_seed"])
    return fill_parameters(LatentDiffusion(**OmegaConf.create(PARTS_META["params"])), PARTS_META["weights_seed"])


@pytest.fixture
def sampler(model):
    return DDIMSampler(model)


@pytest.fixture(autouse=True)
def _default_stream():
    """The recordings use torch's default stream; leave it as it was."""
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


def operator(name, **kwargs):
    return get_operator(name, device="cpu", **kwargs).double()


def super_resolution():
    return operator("super_resolution", in_shape=(1, 3, 32, 32), scale_factor=4)


# Parts.


@pytest.mark.parametrize(("eta", "index"), [(0.0, 39), (0.0, 10), (1.0, 20)])
def test_one_step(sampler, eta, index):
    name = f"p_sample_ddim/S40_eta{eta}_index{index}"
    sampler.make_schedule(40, ddim_eta=eta)
    t = torch.full((2,), sampler.ddim_timesteps[index])
    torch.manual_seed(900 + index)
    step = sampler.p_sample_ddim(PARTS[f"{name}/x"], None, t, index=index)
    for part, value in zip(("x_prev", "pred_x0", "pseudo_x0"), step, strict=True):
        assert relative_error(value, PARTS[f"{name}/{part}"]) < 1e-9


@pytest.mark.parametrize("shaped", [True, False])
def test_stochastic_resampling(sampler, shaped):
    a_t, sigma = (torch.full((1, 1, 1, 1), v, dtype=torch.float64) if shaped else v for v in (0.37, 1.9))
    torch.manual_seed(PARTS_META["noise_seeds"]["stochastic_resample"])
    got = sampler.stochastic_resample(
        PARTS["stochastic_resample/pseudo_x0"], PARTS["stochastic_resample/x_t"], a_t, sigma
    )
    assert relative_error(got, PARTS["stochastic_resample/output_a0.37_sigma1.9"]) < 1e-9


def check_trace(name, optimise):
    losses = []
    result = optimise(callback=lambda iteration, loss: losses.append(float(loss)))
    want = PARTS[f"{name}/losses"]
    assert len(losses) == len(want)
    assert relative_error(torch.tensor(losses, dtype=torch.float64), want) < 1e-9
    assert relative_error(result, PARTS[f"{name}/result"]) < 1e-7  # lr 0.2 was float64 when recorded


@pytest.mark.parametrize(
    ("name", "measurement", "operator_fn", "kwargs"),
    [
        ("pixel/sr4", "pixel/measurement_sr4", super_resolution(), {}),
        ("pixel/sr4_max60", "pixel/measurement_sr4", super_resolution(), {"max_iters": 60}),
        (
            "pixel/blur_9_1.5",
            "pixel/measurement_blur",
            operator("gaussian_blur", kernel_size=9, intensity=1.5),
            {"max_iters": 300},
        ),
    ],
)
def test_pixel_optimization(sampler, name, measurement, operator_fn, kwargs):
    start = PARTS["pixel/x_prime"]
    check_trace(name, partial(sampler.pixel_optimization, PARTS[measurement], start, operator_fn, **kwargs))


@pytest.mark.parametrize(
    ("name", "measurement", "kwargs"),
    [
        ("latent/reachable_eps0.05", "latent/measurement_reachable", {"eps": 0.05}),
        ("latent/max_iters_30", "pixel/measurement_sr4", {"max_iters": 30}),
        pytest.param("latent/default", "pixel/measurement_sr4", {}, marks=pytest.mark.slow),
        pytest.param(
            "latent/lr0.2_plateau", "pixel/measurement_sr4", {"lr": torch.tensor(0.2)}, marks=pytest.mark.slow
        ),
    ],
)
def test_latent_optimization(sampler, name, measurement, kwargs):
    start = PARTS["latent/z_init"]
    optimise = partial(sampler.latent_optimization, PARTS[measurement], start, super_resolution(), **kwargs)
    check_trace(name, optimise)


# Whole restorations.


def problem(name, model):
    """Operator and soft step of a recorded run."""
    case = RUNS_META["cases"][name]
    kwargs = {"kernel": RUNS["motion/kernel"].numpy()} if name == "motion" else case["kwargs"]
    degrade = operator(case["operator"], **kwargs)
    condition = get_conditioning_method("ps", model, degrade, get_noise("gaussian", sigma=0.01), scale=0.5).conditioning
    if name == "inpaint":
        mask = RUNS["inpaint/mask"].double()
        degrade, condition = partial(degrade, mask=mask), partial(condition, mask=mask)
    return degrade, condition


@pytest.mark.parametrize(
    "name", ["gaussian", *(pytest.param(n, marks=pytest.mark.slow) for n in ("sr4", "motion", "inpaint"))]
)
def test_restoration(model, sampler, name):
    case = RUNS_META["cases"][name]
    operator_fn, condition_fn = problem(name, model)
    estimates = {}
    torch.manual_seed(case["torch_seed"])
    latent, _ = sampler.posterior_sampler(
        measurement=RUNS[f"{name}/measurement"],
        measurement_cond_fn=condition_fn,
        operator_fn=operator_fn,
        S=case["S"],
        batch_size=1,
        shape=[3, 8, 8],
        cond_method=case["sampler"],
        verbose=False,
        eta=case["eta"],
        img_callback=lambda x0, i: estimates.__setitem__(i, x0),
    )
    prefix = f"{name}/pred_x0_after_iteration_"
    for key in (key for key in RUNS if key.startswith(prefix)):
        assert relative_error(estimates[int(key.removeprefix(prefix))], RUNS[key]) < 1e-8
    assert relative_error(latent, RUNS[f"{name}/latent"]) < 1e-8
    assert relative_error(model.decode_first_stage(latent), RUNS[f"{name}/decoded"]) < 1e-8
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_kl_model_encodes_by_the_mode_times_scale_factor_and_runs_end_to_end():
    first_stage = {
        "target": "ldm.models.autoencoder.AutoencoderKL",
        "params": {
            "embed_dim": 3,
            "ddconfig": {**PARTS_META["params"]["first_stage_config"]["params"]["ddconfig"], "double_z": True},
        },
    }
    params = {**PARTS_META["params"], "first_stage_config": first_stage, "scale_factor": 0.5}
    model = fill_parameters(LatentDiffusion(**OmegaConf.create(params)), 1)
    degrade = super_resolution()
    problem = InverseProblem(PARTS["pixel/measurement_sr4"], degrade)
    z, settings = PARTS["latent/z_init"], PixelSettings(max_iters=3)
    before = torch.get_rng_state()
    image = resample.fit_pixel(problem, model.decode_first_stage(z), settings).x
    assert torch.equal(model.encode_mode(image), 0.5 * model.first_stage_model.encode(image).mean)
    assert torch.equal(torch.get_rng_state(), before)
    latent, _ = DDIMSampler(model).posterior_sampler(
        problem.measurement,
        get_conditioning_method("ps", model, degrade, get_noise("gaussian", sigma=0.01), scale=0.5).conditioning,
        degrade,
        S=6,
        batch_size=1,
        shape=[3, 8, 8],
        verbose=False,
        settings=ResampleSettings(interval=2, pixel=settings, latent=LatentSettings(max_iters=3)),
    )
    assert latent.isfinite().all()


def test_a_class_conditional_model_is_guided_between_its_class_and_none():
    unet = {
        **PARTS_META["params"]["unet_config"]["params"],
        "use_spatial_transformer": True,
        "transformer_depth": 1,
        "context_dim": 8,
    }
    params = {
        **PARTS_META["params"],
        "unet_config": {**PARTS_META["params"]["unet_config"], "params": unet},
        "cond_stage_config": {
            "target": "ldm.modules.encoders.modules.ClassEmbedder",
            "params": {"n_classes": 11, "embed_dim": 8, "key": "class_label"},
        },
    }
    model = fill_parameters(LatentDiffusion(**OmegaConf.create(params)), 2)
    sampler, z = DDIMSampler(model), PARTS["latent/z_init"]
    some, none = (model.get_learned_conditioning({"class_label": torch.tensor([label])}) for label in (3, 10))
    got, _ = sampler.sample(
        1,
        1,
        z.shape[1:],
        conditioning=some,
        x_T=z,
        verbose=False,
        unconditional_guidance_scale=3.0,
        unconditional_conditioning=none,
    )
    t = torch.tensor(sampler.ddim_timesteps)
    e_some, e_none = (model.apply_model(z, t, condition) for condition in (some, none))
    assert not torch.allclose(e_some, e_none, rtol=0.01)
    e, a, a_prev = e_none + 3 * (e_some - e_none), sampler.schedule.alphas[0], sampler.schedule.alphas_prev[0]
    expected = a_prev**0.5 * (z - (1 - a) ** 0.5 * e) / a**0.5 + (1 - a_prev) ** 0.5 * e
    assert relative_error(got, expected) < 1e-12
