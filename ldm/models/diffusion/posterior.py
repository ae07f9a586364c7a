"""What every posterior sampler is given: the problem, a watch that reports the run, and a name in the registry."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from tqdm import tqdm

from ldm.models.diffusion.optimise import Minimum
from ldm.models.diffusion.prior import DDIMSchedule
from util.registry import Registry

POSTERIOR_SAMPLERS = Registry("sampler")
register_sampler = POSTERIOR_SAMPLERS.register
get_sampler = POSTERIOR_SAMPLERS.get


@dataclass(frozen=True)
class InverseProblem:
    """A measurement ``y = A(x) + noise`` of images x (B, 3, H, W) in [-1, 1].

    Attributes:
        measurement: y, (B or 1, ...).
        operator_fn: A, differentiable.
        condition_fn: the soft step, `conditioning` of a conditioning method: keywords x_t, measurement,
            noisy_measurement, x_prev, x_0_hat and scale to (x_t, norm of the residual). None where no step is soft.
        noise_sigma: root mean square of the noise over all entries of y; None when it is not known.
        initial: a first guess at x, (B or 1, 3, H, W); None where there is none.
    """

    measurement: Tensor
    operator_fn: Callable[[Tensor], Tensor]
    condition_fn: Callable[..., tuple[Tensor, Tensor]] | None = None
    noise_sigma: float | None = None
    initial: Tensor | None = None


@dataclass(frozen=True)
class TraceEvent:
    """One thing a sampler did to one sample.

    Attributes:
        step: position in the run, from 0; the number of steps for what comes after the last.
        timestep: the diffusion timestep of that step; 0 after the last.
        stage: a step without ("ddim") or with ("soft") the gradient of the measurement, hard consistency over
            "pixel" or "latent", the "final" latent stage, or what "refine" does to the decoded image.
        iterations: optimiser iterations.
        first_loss, last_loss: mean squared residuals; for "soft" both are the norm that the step descends.
        stop: why the optimisation stopped; "" where there was none.
        seconds: since the event before.
        sample: position in the batch.
    """

    step: int
    timestep: int
    stage: Literal["ddim", "soft", "pixel", "latent", "final", "refine"]
    iterations: int = 0
    first_loss: float | None = None
    last_loss: float | None = None
    stop: Literal["", "threshold", "plateau", "limit"] = ""
    seconds: float = 0.0
    sample: int = 0


class Watch:
    """Reports a run to whoever looks: trace events, the evolving estimate, a progress bar, intermediate latents.

    Args:
        schedule: the steps of the run.
        callback: receives each TraceEvent.
        img_callback: receives the estimate of the clean latent (B, C, h, w) and the step, once a step.
        log_every_t: ``intermediates`` keep the first step and every one whose index this divides.
        progress: show a bar on stderr.
        done: steps that are done already: the run begins after them.
        state_callback: receives the latent (B, C, h, w) and the number of steps done, once a step.
    """

    def __init__(
        self,
        schedule: DDIMSchedule,
        callback: Callable[[TraceEvent], Any] | None = None,
        img_callback: Callable[[Tensor, int], Any] | None = None,
        log_every_t: int = 100,
        progress: bool = False,
        done: int = 0,
        state_callback: Callable[[Tensor, int], Any] | None = None,
    ):
        self.done, self.state_callback = done, state_callback
        self.schedule, self.callback, self.img_callback = schedule, callback, img_callback
        self.log_every_t, self.progress = log_every_t, progress
        self.intermediates: dict[str, list[Tensor]] = {"x_inter": [], "pred_x0": []}
        self.clock = time.perf_counter()

    def steps(self, first_index: int | None = None) -> Iterator[tuple[int, int]]:
        """(step, index) of each step: 0 .. S-1 and S-1 .. 0; those before ``first_index``, or done, are left out."""
        total = len(self.schedule)
        first = max(self.done, 0 if first_index is None else total - 1 - first_index)
        with tqdm(range(first, total), disable=not self.progress, desc="sampling", leave=None, dynamic_ncols=True) as self.bar:
            for step in self.bar:
                yield step, total - 1 - step

    def stepped(self, step: int, batch: int, norm: Tensor | None = None) -> None:
        """Report a step of all samples; ``norm``: of the residual whose gradient the step took (one, or (B,))."""
        if norm is None:
            self._report(step, "ddim", [{}] * batch)
        elif self.callback is not None:  # reading the norm waits for the device: only where someone looks
            norms = norm.detach().flatten().expand(batch).tolist()
            self._report(step, "soft", [{"first_loss": value, "last_loss": value} for value in norms])

    def optimised(self, step: int, stage: str, minimum: Minimum) -> None:
        """Report an optimisation of all samples."""
        self._report(
            step,
            stage,
            [
                {"iterations": len(losses), "first_loss": losses[0], "last_loss": losses[-1], "stop": stop}
                for losses, stop in zip(minimum.losses, minimum.stops, strict=True)
            ],
        )

    def _report(self, step: int, stage: str, samples: list[dict[str, Any]]) -> None:
        now = time.perf_counter()
        seconds, self.clock = now - self.clock, now
        timestep = self.schedule.timesteps[-1 - step] if step < len(self.schedule) else 0
        losses = [fields["last_loss"] for fields in samples if "last_loss" in fields]
        if losses:
            self.bar.set_postfix(stage=stage, loss=f"{sum(losses) / len(losses):.2e}", refresh=False)
        if self.callback is not None:
            for sample, fields in enumerate(samples):
                self.callback(TraceEvent(step, timestep, stage, seconds=seconds, sample=sample, **fields))

    def finished(self, step: int, z: Tensor, x0: Tensor) -> None:
        """Report the end of a step with its latent and its estimate of the clean latent."""
        if step == 0 or (len(self.schedule) - 1 - step) % self.log_every_t == 0:
            self.intermediates["x_inter"].append(z)
            self.intermediates["pred_x0"].append(x0)
        if self.img_callback is not None:
            self.img_callback(x0, step)
        if self.state_callback is not None:
            self.state_callback(z, step + 1)
