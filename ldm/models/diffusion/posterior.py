"""What every posterior sampler is given: the problem, a watch that reports the run, and a name in the registry."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.models.diffusion.cost import Cost
from ldm.models.diffusion.optimise import IterationCallback, Minimum
from ldm.models.diffusion.passes import PassCounter, Passes
from ldm.models.diffusion.posterior_settings import PosteriorSettings
from ldm.models.diffusion.prior import DDIMSchedule
from util.errors import UserError
from util.memory import peak_memory_text
from util.registry import Registry

# tqdm's own without the rate: what is beside it should fit a terminal.
BAR_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
BAR_SECONDS = 0.5  # between two looks at an optimisation that goes on
Function = TypeVar("Function", bound=Callable[..., Tensor])


class PosteriorSampler(NamedTuple):
    """A sampler that explains a measurement.

    Attributes:
        solve: LatentPrior, InverseProblem, noise z (B, C, h, w), settings and `Watch`, to the restored latents; None
            where the result is the first guess itself.
        settings: the class of its settings.
        cost: settings and the number of steps, to the most passes that a restoration takes.
    """

    solve: Callable[..., Tensor] | None
    settings: type[PosteriorSettings]
    cost: Callable[[Any, int], Cost]


POSTERIOR_SAMPLERS = Registry("sampler")
get_sampler: Callable[[str], PosteriorSampler] = POSTERIOR_SAMPLERS.get


def register_sampler(
    name: str, settings: type[PosteriorSettings], cost: Callable[[Any, int], Cost]
) -> Callable[[Function], Function]:
    """Return a decorator that files a posterior sampler's function under ``name``; see `PosteriorSampler`."""

    def decorate(solve: Function) -> Function:
        POSTERIOR_SAMPLERS.register(name)(PosteriorSampler(solve, settings, cost))
        return solve

    return decorate


@dataclass(frozen=True)
class InverseProblem:
    """A measurement ``y = A(x) + noise`` of images x (B, 3, H, W) in [-1, 1].

    Attributes:
        measurement: y, (B or 1, ...).
        operator_fn: A, differentiable: images, and ``state`` as keywords, to measurements.
        condition_fn: the soft step, `conditioning` of a conditioning method: keywords x_t, measurement,
            noisy_measurement, x_prev, x_0_hat, scale and ``state`` to (x_t, norm of each residual). None where no step
            is soft.
        noise_sigma: root mean square of the noise over all entries of each y, one number or B of them; None when it is
            not known.
        initial: a first guess at x, (B or 1, 3, H, W); None where there is none.
        state: what the operator drew for each image (a mask, a kernel, a code), each tensor (B or 1, ...).
        equivalents_fn: images to images that have the same measurement and are far from each other, themselves the
            first (`Operator.equivalents`); None where there is none.
    """

    measurement: Tensor
    operator_fn: Callable[..., Tensor]
    condition_fn: Callable[..., tuple[Tensor, Tensor]] | None = None
    noise_sigma: float | Sequence[float] | None = None
    initial: Tensor | None = None
    state: Mapping[str, Tensor] = field(default_factory=dict)
    equivalents_fn: Callable[[Tensor], Sequence[Tensor]] | None = None

    @classmethod
    def stack(cls, problems: Sequence["InverseProblem"]) -> "InverseProblem":
        """The problems of single images with one operator as that of a batch of them, in this order; of one, itself.

        Raises:
            UserError: their measurements or states have different shapes, or only some know their noise's level.
        """
        first = problems[0]
        if len(problems) == 1:
            return first
        sigmas = [problem.noise_sigma for problem in problems]
        if None in sigmas and any(sigma is not None for sigma in sigmas):
            raise UserError("the noise's level is known of some of a batch's measurements only")
        try:
            return replace(
                first,
                measurement=torch.cat([problem.measurement for problem in problems]),
                noise_sigma=None if None in sigmas else tuple(sigmas),
                initial=None if first.initial is None else torch.cat([problem.initial for problem in problems]),
                state={name: torch.cat([problem.state[name] for problem in problems]) for name in first.state},
            )
        except RuntimeError as error:
            raise UserError("measurements of different shapes do not go into one batch") from error

    def predict(self, x: Tensor) -> Tensor:
        """A(x): what the measurement of images x (B, 3, H, W) would be without noise."""
        return self.operator_fn(x, **self.state)

    def sigmas(self, batch: int) -> list[float | None]:
        """``noise_sigma`` of each of a batch's measurements."""
        return list(self.noise_sigma) if isinstance(self.noise_sigma, Sequence) else [self.noise_sigma] * batch

    def select(self, rows: Sequence[int], batch: int) -> "InverseProblem":
        """The problem of the images at these positions of a batch; what all share stays shared."""
        if len(rows) == batch:
            return self
        rows = list(rows)

        def pick(tensor: Tensor) -> Tensor:
            return tensor[rows] if len(tensor) == batch else tensor

        sigmas = [self.sigmas(batch)[row] for row in rows]
        return replace(
            self,
            measurement=pick(self.measurement),
            noise_sigma=sigmas[0] if len(set(sigmas)) == 1 else tuple(sigmas),
            initial=None if self.initial is None else pick(self.initial),
            state={name: pick(tensor) for name, tensor in self.state.items()},
        )


@dataclass(frozen=True)
class TraceEvent:
    """One thing a sampler did to one sample.

    Attributes:
        step: position in the run, from 0; the number of steps for what comes after the last.
        timestep: the diffusion timestep of that step; 0 after the last.
        stage: a step without ("ddim") or with ("soft") the gradient of the measurement, hard consistency over
            "pixel" or "latent", the "final" latent stage, Langevin steps over the clean latent ("langevin"), an
            optimisation of what the UNet is given ("input"), or what "refine" does to the decoded image.
        iterations: optimiser iterations.
        first_loss, last_loss: mean squared residuals; for "soft" both are the norm that the step descends.
        losses: mean squared residuals before each iteration; for "soft" the one of the estimate, where the norm is the
            residual's own.
        target: the loss that the optimisation stops below; None where it has no such rule.
        noise_floor: mean square of the noise, which the residual of the true image has; None where it is not known.
        stop: why the optimisation stopped; "" where there was none.
        seconds: since the event before, shared out over the batch.
        sample: position in the batch.
        unet, decoder_forward, ...: passes through the networks since the event before
            (`Passes`), as counted where they ran. What a callback decodes to look at is not among them.
    """

    step: int
    timestep: int
    stage: Literal["ddim", "soft", "pixel", "latent", "final", "langevin", "input", "refine"]
    iterations: int = 0
    first_loss: float | None = None
    last_loss: float | None = None
    stop: Literal["", "threshold", "plateau", "limit", "not finite"] = ""
    seconds: float = 0.0
    sample: int = 0
    unet: int = 0
    decoder_forward: int = 0
    decoder_backward: int = 0
    unet_backward: int = 0
    encoder_forward: int = 0
    encoder_backward: int = 0
    losses: Sequence[float] = ()
    target: float | None = None
    noise_floor: float | None = None


class Watch:
    """Reports a run to whoever looks: trace events, the evolving estimate, a progress bar, intermediate latents.

    Args:
        schedule: the steps of the run.
        callback: receives each TraceEvent.
        img_callback: receives the estimate of the clean latent (B, C, h, w) and the step, once a step.
        log_every_t: ``intermediates`` keep the first step and every one whose index this divides.
        progress: show a bar on stderr.
        passes: counts the passes of the model that is sampled.
        done: steps that are done already: the run begins after them.
        state_callback: receives the latent (B, C, h, w) and the number of steps done, once a step.
        problem: what is solved; with it events tell the noise's floor.
    """

    def __init__(
        self,
        schedule: DDIMSchedule,
        callback: Callable[[TraceEvent], Any] | None = None,
        img_callback: Callable[[Tensor, int], Any] | None = None,
        log_every_t: int = 100,
        progress: bool = False,
        passes: PassCounter | None = None,
        done: int = 0,
        state_callback: Callable[[Tensor, int], Any] | None = None,
        problem: InverseProblem | None = None,
    ):
        self.done, self.state_callback, self.problem = done, state_callback, problem
        self.schedule, self.callback, self.img_callback = schedule, callback, img_callback
        self.log_every_t, self.progress = log_every_t, progress
        self.intermediates: dict[str, list[Tensor]] = {"x_inter": [], "pred_x0": []}
        self.bar = tqdm(disable=True)
        self.clock = time.perf_counter()
        self.passes = passes or PassCounter()
        self.spent = {sample: self.passes.of(sample) for sample in self.passes.images()}

    def steps(self, first_index: int | None = None) -> Iterator[tuple[int, int]]:
        """(step, index) of each step: 0 .. S-1 and S-1 .. 0; those before ``first_index``, or done, are left out."""
        total = len(self.schedule)
        first = max(self.done, 0 if first_index is None else total - 1 - first_index)
        look = {"bar_format": BAR_FORMAT, "leave": None, "dynamic_ncols": True}
        self.bar = tqdm(total=total - first, desc="sampling", disable=not self.progress, **look)
        for step in range(first, total):
            yield step, total - 1 - step
            self.bar.update()

    def close(self) -> None:
        """Take the bar away. Until then it also shows what comes after the last step."""
        self.bar.close()

    def stepped(self, step: int, batch: int, norm: Tensor | None = None) -> None:
        """Report a step of all samples; ``norm``: of the residual whose gradient the step took (one, or (B,))."""
        if norm is None:
            self._report(step, "ddim", [{}] * batch)
        elif self.callback is not None:  # reading the norm waits for the device: only where someone looks
            norms = norm.detach().flatten().expand(batch).tolist()
            fields = [{"first_loss": value, "last_loss": value} for value in norms]
            if self.problem is not None:
                entries = self.problem.measurement[0].numel()
                for sample, floor in zip(fields, self._noise_floors(batch), strict=True):
                    # Noise of unknown level is noise that depends on the signal: its norm is weighted.
                    sample["losses"] = () if floor is None else (sample["last_loss"] ** 2 / entries,)
            self._report(step, "soft", fields)

    def optimised(self, step: int, stage: str, minimum: Minimum) -> None:
        """Report an optimisation of all samples."""
        self._report(
            step,
            stage,
            [
                {
                    **{"iterations": len(losses), "first_loss": losses[0], "last_loss": losses[-1]},
                    **{"losses": losses, "target": target, "stop": stop},
                }
                for losses, target, stop in zip(minimum.losses, minimum.targets, minimum.stops, strict=True)
            ],
        )

    def _report(self, step: int, stage: str, samples: list[dict[str, Any]]) -> None:
        now = time.perf_counter()
        seconds, self.clock = (now - self.clock) / len(samples), now
        timestep = self.schedule.timesteps[-1 - step] if step < len(self.schedule) else 0
        losses = [fields["last_loss"] for fields in samples if "last_loss" in fields]
        if losses and self.progress:
            self._say(stage, sum(losses) / len(losses), samples[0].get("target"))
        if self.callback is not None:
            floors = self._noise_floors(len(samples))
            for sample, fields in enumerate(samples):
                about = {"seconds": seconds, "sample": sample, "noise_floor": floors[sample]}
                self.callback(TraceEvent(step, timestep, stage, **about, **fields, **self._passes(sample)))

    def _noise_floors(self, batch: int) -> list[float | None]:
        """The mean square of the noise of each sample's measurement."""
        sigmas = [None] * batch if self.problem is None else self.problem.sigmas(batch)
        return [None if sigma is None else sigma**2 for sigma in sigmas]

    def follow(self, stage: str, max_iters: int, target: float | None) -> IterationCallback | None:
        """What shows an optimisation on the bar while it goes on, as `minimise` calls it; None where nobody looks."""
        if not self.progress:
            return None
        shown = time.monotonic()

        def iteration(done: int, losses: Tensor) -> None:
            nonlocal shown
            if time.monotonic() - shown < BAR_SECONDS:  # reading losses waits for the device
                return
            shown = time.monotonic()
            self._say(f"{stage} {done}/{max_iters}", losses.mean().item(), target)

        return iteration

    def _say(self, stage: str, loss: float, target: float | None) -> None:
        """Say beside the bar what is going on."""
        aim = "" if target is None else f", target {target:.1e}"
        self.bar.set_postfix_str(f"{stage}, loss {loss:.1e}{aim}, {peak_memory_text()}", refresh=stage != "soft")

    def _passes(self, sample: int) -> dict[str, int]:
        """What the networks did for a sample since the event before, as keywords of a TraceEvent."""
        before, self.spent[sample] = self.spent.get(sample, Passes()), self.passes.of(sample)
        return self.spent[sample].since(before)._asdict()

    def finished(self, step: int, z: Tensor, x0: Tensor) -> None:
        """Report the end of a step with its latent and its estimate of the clean latent."""
        if step == 0 or (len(self.schedule) - 1 - step) % self.log_every_t == 0:
            self.intermediates["x_inter"].append(z)
            self.intermediates["pred_x0"].append(x0)
        if self.img_callback is not None:
            with self.passes.counting_for(()):
                self.img_callback(x0, step)
        if self.state_callback is not None:
            self.state_callback(z, step + 1)
