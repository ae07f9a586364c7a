"""Whole restorations by presets, in every mode, beside the same steps in the plain rendering."""

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ldm.acceleration.arithmetic import Arithmetic
from ldm.acceleration.memory import peak_memory
from ldm_inverse.runs.job import solver_of
from ldm_inverse.runs.measured_picture import MeasuredPicture
from ldm_inverse.runs.presets import find_preset, preset_layers, samplers_of
from ldm_inverse.runs.settings import from_words, resolve
from ldm_inverse.solvers.restore import restore
from ldm_inverse.solvers.solver import Solver
from scripts.benchmarks import modes
from scripts.benchmarks.measure import seconds
from scripts.benchmarks.parts import Setting, as_told
from scripts.benchmarks.report import Row, rows_of
from util.cli import split_word
from util.errors import UserError

# What a restoration takes from settings; the measurement and the arithmetic are the benchmark's own.
TIMED = ("ddim_steps", "ddim_eta", "conditioning.restarts", "conditioning.resample")


def restoration_rows(
    setting: Setting, presets: Sequence[str], operator: str, words: Sequence[str] = ()
) -> Iterator[Row]:
    """Yield the median seconds and the peak memory of a restoration by each preset, in each mode.

    A mode has a process of its own, and random weights; a restoration by the first preset goes first and is not
    counted. On a processor the peak is that of the process so far, so that later presets have the earlier ones' at
    least.

    Args:
        setting: how to time.
        presets: their names or files.
        operator: what measures, one of `modes.OPERATORS`.
        words: settings `key=value` laid over each preset.

    Raises:
        UserError: a preset or setting that there is not, or that is not of the sampler `resample`.
    """
    solvers = {preset: preset_solver(preset, operator, words) for preset in presets}
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for mode, arithmetic in {modes.PLAIN: None, **setting.chosen}.items():
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            arguments = (replace(setting, state={}), arithmetic, operator, solvers, torch.get_num_threads())
            found[mode] = pool.apply(_restored, arguments)
    for preset in presets:
        for place, (what, unit) in enumerate((("", "s"), (", peak memory", "MB"))):
            medians = {mode: own[preset][place] for mode, own in found.items()}
            yield from rows_of(f"{preset}, {setting.side}x{setting.side}{what}", medians, modes.PLAIN, unit)


def preset_solver(preset: str, operator: str, words: Sequence[str] = ()) -> Solver:
    """Return the solver of a preset, by its name or file, for an operator; ``words`` are settings laid over it.

    Raises:
        UserError: there is no such preset or setting, it is for another sampler, or nothing would read the setting.
    """
    own = [split_word(word) for word in words]
    for key, _ in own:
        if not key.startswith(TIMED):
            raise UserError(f"{key} has no effect on restorations that are timed: only {', '.join(TIMED)} have")
    layers = preset_layers(find_preset(preset), operator)
    if "resample" not in samplers_of(layers[0][1]):
        raise UserError(f"preset {preset} has no conditioning.resample, whose restorations are timed")
    measured = {"measurement": {"operator": {"name": operator, **modes.OPERATORS[operator]}}}
    told = ("the command line", from_words(own))
    return solver_of(resolve([(operator, measured), *layers, told]))


def _restored(
    setting: Setting, arithmetic: Arithmetic | None, operator: str, solvers: Mapping[str, Solver], threads: int
) -> dict[str, tuple[float, float]]:
    """Return seconds and megabytes of a restoration by each preset."""
    torch.set_num_threads(threads)
    device = setting.device
    model = modes.build_model(setting.config, modes.build_state(setting.config), device)
    subject = modes.make_subject(model, arithmetic, operator, setting.side)
    picture = MeasuredPicture(
        "", "", subject.task, subject.measurement, tuple(subject.image.shape), (setting.side, setting.side)
    )
    problem = picture.problem(model, from_baseline=True)
    if subject.plain:
        problem = replace(problem, operator_fn=subject.plain_operator(), state={})

    def run(solver: Solver) -> Callable[[], Any]:
        return as_told(
            arithmetic, partial(restore, model, problem, solver, None, torch.Generator(device).manual_seed(0))
        )

    run(next(iter(solvers.values())))()
    return {preset: _measured(run(solver), device, setting.repeats) for preset, solver in solvers.items()}


def _measured(run: Callable[[], Any], device: torch.device, repeats: int) -> tuple[float, float]:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times = sorted(seconds(run, device) for _ in range(repeats))
    held = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()
    return times[len(times) // 2], held / 1e6
