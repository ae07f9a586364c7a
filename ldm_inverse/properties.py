"""Checks of a measurement operator: the tests run them on all that are registered, `check_operator.py` on any."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from ldm_inverse.operators.base import Operator
from util.errors import UserError

Build = Callable[[], Operator]  # makes the operator anew, always the same one
Property = Callable[[Build], str]

SIZES = [(32, 32), (33, 40), (45, 37), (128, 128)]
LARGE = [(256, 256), (512, 512)]  # for operators that take none of those
REFUSED = [(1, 1), (2, 300), (300, 2)]  # which an operator may refuse, in a line
ROUNDING = 1e-12  # of a computation in float64

PROPERTIES: dict[str, Property] = {}


class PropertyError(AssertionError):
    """An operator lacks a property. The message says what was found, and what to correct."""


def _property(check: Property) -> Property:
    """File a check: of a function that builds an operator, it says in a line what it found, or raises PropertyError."""
    PROPERTIES[check.__name__] = check
    return check


def require(holds: bool, message: str) -> None:
    """Raise PropertyError with a message unless something holds."""
    if not holds:
        raise PropertyError(message)


def image(shape: Sequence[int], dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Return a random image in [-0.9, 0.9]."""
    return torch.from_numpy(np.random.RandomState(seed).uniform(-0.9, 0.9, tuple(shape))).to(dtype)


def accepted(operator: Operator, sizes: Sequence[tuple[int, int]] = SIZES) -> list[tuple[int, int]]:
    """Return those (height, width) that the operator takes."""
    return [size for size in sizes if _refusal(operator, *size) is None]


def sizes_of(operator: Operator) -> list[tuple[int, int]]:
    """Return the sizes to check an operator on: all of `SIZES` that it takes, or else the first of `LARGE`."""
    sizes = accepted(operator) or accepted(operator, LARGE)[:1]
    tried = ", ".join(f"{height}x{width}" for height, width in SIZES + LARGE)
    require(bool(sizes), f"check_size refuses every size that was tried: {tried}")
    return sizes


def draw(operator: Operator, shape: Sequence[int]) -> dict[str, Tensor]:
    """Return the state that an operator draws for images of ``shape`` from the stream that all checks use."""
    return operator.draw(torch.Size(shape), np.random.RandomState(1))


def case(build: Build, batch: int = 2) -> tuple[Operator, Tensor, dict[str, Tensor]]:
    """Return an operator in float64, images (batch, 3, H, W) of the first size it takes, and drawn state."""
    operator = build().double()
    x = image((batch, 3, *sizes_of(operator)[0]))
    return operator, x, draw(operator, x.shape)


def _distance(a: Tensor, b: Tensor) -> float:
    """Return the largest difference of two tensors of one shape, infinite for NaN."""
    require(a.shape == b.shape, f"shapes differ: {tuple(a.shape)} and {tuple(b.shape)}")
    distance = float((a.double() - b.double()).abs().max())
    return distance if np.isfinite(distance) else float("inf")


@_property
def sizes(build: Build) -> str:
    """Images of every size that `check_size` lets pass are measured; the others are refused in a line."""
    operator = build().double()
    found = []
    for height, width in sizes_of(operator):
        x = image((2, 3, height, width))
        y = operator(x, **draw(operator, x.shape))
        require(torch.is_tensor(y), f"forward returns {type(y).__name__}, not a tensor")
        require(y.shape[:1] == x.shape[:1], f"2 images of {height}x{width} give a measurement of {tuple(y.shape)}")
        require(bool(y.isfinite().all()), f"NaN or infinity in the measurement of an image of {height}x{width}")
        found.append(f"{height}x{width} to {tuple(y.shape[1:])}")
    for height, width in sorted({*SIZES, *REFUSED} - set(accepted(operator, [*SIZES, *REFUSED]))):
        told = _refusal(operator, height, width) or ""
        good = f"{height} x {width}" in told and len(told.splitlines()) == 1
        require(good, f"check_size should refuse in one line that says '{height} x {width}', not {told!r}")
    return ", ".join(found)


def _refusal(operator: Operator, height: int, width: int) -> str | None:
    """Return what `check_size` says against a size; None where the operator takes it."""
    try:
        operator.check_size(height, width)
    except UserError as error:
        return str(error)
    return None


@_property
def linear(build: Build) -> str:
    """A(a x + b z) = a A(x) + b A(z) where, and only where, the class says `linear = True`."""
    operator, x, state = case(build)
    other = image(x.shape, seed=3)
    together = operator(2 * x - 0.5 * other, **state)
    distance = _distance(together, 2 * operator(x, **state) - 0.5 * operator(other, **state))
    is_linear = distance <= ROUNDING * max(1.0, float(together.abs().max()))
    require(
        is_linear == operator.linear,
        f"the class says linear = {operator.linear}, and A(2x - z/2) differs from 2 A(x) - A(z)/2 by {distance:.1e}",
    )
    return f"{'linear' if is_linear else 'not linear'}: A(2x - z/2) and 2 A(x) - A(z)/2 differ by {distance:.1e}"


@_property
def adjoint(build: Build) -> str:
    """A linear operator's `transpose` is its adjoint, by the dot-product test; another has none."""
    operator = build().double()
    if not operator.linear:
        _require_no_transpose(operator)
        return "not linear: none is needed"
    worst = 0.0
    for size in sizes_of(operator):
        x = image((2, 3, *size))
        state = draw(operator, x.shape)
        measured = operator(x, **state)
        y = image(measured.shape, seed=2)
        back = operator.transpose(y, shape=x.shape, **state)
        require(back.shape == x.shape, f"transpose gives {tuple(back.shape)} for images of {tuple(x.shape)}")
        left, right = (measured * y).sum().item(), (x * back).sum().item()
        worst = max(worst, abs(left - right) / max(abs(left), 1e-300))
        where = f"for images of {size[0]}x{size[1]}"
        require(worst <= ROUNDING, f"<A x, y> = {left:.9g} and <x, A^T y> = {right:.9g} {where}: correct transpose")
    return f"<A x, y> = <x, A^T y> to {worst:.0e}"


def _require_no_transpose(operator: Operator) -> None:
    try:
        operator.transpose(torch.zeros(1, 3, 8, 8))
    except NotImplementedError:
        return
    raise PropertyError("it has a transpose and does not say linear = True: only a linear operator has an adjoint")


@_property
def gradient(build: Build) -> str:
    """The gradient is that of central finite differences (of `smooth`, A itself by default), in a random direction."""
    operator, x, state = case(build, batch=1)
    direction = image(x.shape, seed=4)
    weight = image(operator(x, **state).shape, seed=5)

    def value(step: float) -> float:
        return (operator.smooth(x + step * direction, **state) * weight).sum().item()

    x.requires_grad_()
    total = (operator(x, **state) * weight).sum()
    require(total.requires_grad, "no gradient reaches the image: something is detached, or done under no_grad")
    (found,) = torch.autograd.grad(total, x)
    told = "the gradient is zero everywhere, so nothing leads to the image: see `smooth` for rounding and thresholds"
    require(float(found.abs().max()) > 0, told)
    slope, differences = (found * direction).sum().item(), (value(1e-6) - value(-1e-6)) / 2e-6
    good = abs(slope - differences) <= max(1e-6 * abs(differences), 1e-6)
    require(good, f"the gradient gives a slope of {slope:.9g}, finite differences of {differences:.9g}")
    return f"slope {slope:.6g}, by finite differences {differences:.6g}"


@_property
def gradient_reaches_the_image_alone(build: Build) -> str:
    """No parameter and no buffer asks for a gradient or gets one."""
    operator, x, state = case(build)
    asking = [name for name, p in operator.named_parameters() if p.requires_grad]
    require(not asking, f"parameters ask for gradients: {', '.join(asking)}: make them buffers")
    asked = {key: value.requires_grad_() if value.is_floating_point() else value for key, value in state.items()}
    operator(x.requires_grad_(), **asked).square().mean().backward()
    require(x.grad is not None, "no gradient reaches the image")
    got = [name for name, p in operator.named_parameters() if p.grad is not None]
    got += [name for name, b in operator.named_buffers() if b.grad is not None or b.requires_grad]
    require(not got, f"gradients reach {', '.join(got)}")
    return "no parameter or buffer takes part"


@_property
def dtype(build: Build) -> str:
    """The measurement has the image's number format, float32 or float64, and the same values to rounding."""
    double, x, state = case(build)
    y, single = double(x, **state), build()(x.float(), **state)
    for measured, wanted in ((single, torch.float32), (y, torch.float64)):
        require(measured.dtype == wanted, f"an image in {wanted} gives a measurement in {measured.dtype}")
    distance = _distance(single, y)
    require(distance <= 1e-5 * max(1.0, float(y.abs().max())), f"float32 and float64 differ by {distance:.1e}")
    return f"float32 and float64 differ by {distance:.0e}"


@_property
def device(build: Build) -> str:
    """Every tensor of the module moves with `.to(device)`; on an accelerator, where there is one, the values agree."""
    operator, x, state = case(build)
    for module in operator.modules():
        loose = [name for name, value in vars(module).items() if torch.is_tensor(value)]
        named = ", ".join(f"self.{name}" for name in loose)
        require(not loose, f"{named} would stay behind at .to(device): use self.register_buffer(name, tensor)")
    place = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if place is None:
        return "every tensor is a buffer (no accelerator here to compute on)"
    there = {key: value.to(place) for key, value in state.items()}
    y = build().to(place)(x.float().to(place), **there)
    require(y.device.type == place.type, f"an image on {place} gives a measurement on {y.device}")
    distance = _distance(y.cpu(), operator(x, **state))
    require(distance <= 1e-3, f"{place} and cpu differ by {distance:.1e}")
    return f"{place} and cpu differ by {distance:.0e}"


@_property
def batch(build: Build) -> str:
    """A batch's measurement is that of each image alone."""
    operator, x, state = case(build, batch=3)
    together = operator(x, **state)
    worst = 0.0
    for i in range(3):
        own = {key: value[i : i + 1] if len(value) > 1 else value for key, value in state.items()}
        worst = max(worst, _distance(together[i : i + 1], operator(x[i : i + 1], **own)))
    require(worst <= ROUNDING, f"an image alone and the same image in a batch of 3 differ by {worst:.1e}")
    return f"an image alone and in a batch of 3 differ by {worst:.0e}"


@_property
def draws_one_after_the_other(build: Build) -> str:
    """`draw` for a batch gives what it gives for one image after the other, with a leading dimension of 1 or B."""
    operator, x, state = case(build, batch=2)
    rng = np.random.RandomState(1)
    for i in range(2):
        for key, value in operator.draw(x[:1].shape, rng).items():
            require(len(state[key]) in (1, 2), f"{key} for 2 images has a leading dimension of {len(state[key])}")
            own = state[key][i if len(state[key]) > 1 else 0]
            require(torch.equal(value[0], own), f"{key} of image {i} in a batch differs from the one drawn alone")
    return ", ".join(f"{key} {tuple(value.shape[1:])}" for key, value in state.items()) or "nothing is random"


@_property
def determinism(build: Build) -> str:
    """Built, drawn and measured twice, all is equal to the bit, and no global random stream is touched."""
    before = _global_streams()
    results = []
    for _ in range(2):
        operator, x, state = case(build)
        results.append(operator(x, **state))
    require(torch.equal(*results), "measured twice, it is not the same: what is random belongs in draw(shape, rng)")
    require(_global_streams() == before, "a global random stream was used: take numbers from draw's rng alone")
    return "equal to the bit; global random streams untouched"


def _global_streams() -> tuple[int, bytes, bytes]:
    numpy = np.random.get_state(legacy=False)["state"]
    return numpy["pos"], numpy["key"].tobytes(), torch.get_rng_state().numpy().tobytes()


@_property
def memory_layout(build: Build) -> str:
    """Images in channels-last order give the same measurement, and the image given is not changed."""
    operator, x, state = case(build)
    kept = x.clone()
    y = operator(x, **state).clone()
    require(torch.equal(x, kept), "forward changes the image it is given: compute out of place")
    distance = _distance(y, operator(x.to(memory_format=torch.channels_last), **state))
    require(distance <= ROUNDING, f"channels-last images give a measurement that differs by {distance:.1e}")
    return f"channels-last and usual order differ by {distance:.0e}"


@_property
def state_given_back(build: Build) -> str:
    """State and measurement go through a file, and a new operator makes the same measurement of that state."""
    operator, x, state = case(build)
    saved = save({"measurement": operator(x, **state).contiguous(), **state})
    restored = load(saved)
    measurement = restored.pop("measurement")
    same = torch.equal(build().double()(x, **restored), measurement)
    require(same, "the state that draw returned, given to a new operator, makes another measurement")
    return f"{', '.join(state) or 'no state'}; the same measurement to the bit"


@_property
def baseline(build: Build) -> str:
    """The baseline is a finite image of the right shape, with and without a known noise level."""
    operator, x, state = case(build)
    y = operator(x, **state)
    for sigma in (None, 0.01):
        found = operator.baseline(y, x.shape, sigma, **state)
        require(found.shape == x.shape, f"the baseline of images {tuple(x.shape)} is {tuple(found.shape)}")
        require(bool(found.isfinite().all()), f"NaN or infinity in the baseline, with sigma = {sigma}")
    return f"root mean square error {float((found.clamp(-1, 1) - x).square().mean().sqrt()):.2f} on random pixels"
