"""Several runs for a restoration, of which the one nearest the measurement is kept."""

from types import SimpleNamespace

import pytest
import torch
import yaml

from ldm.models.diffusion.listeners import Listeners
from ldm.models.diffusion.posterior import InverseProblem, TraceEvent
from ldm.models.diffusion.restarts import restore_best
from sample_condition import main
from tests.runs import snapshot
from tests.test_batch_size import interrupt
from tests.test_sample_condition import place, rows, words  # noqa: F401
from util.errors import ImageError
from util.sampler_state import SamplerState

STEPS = 4


def images(*values):
    return torch.tensor(values).reshape(-1, 1, 1, 1).expand(-1, 3, 2, 2).clone()


def solver_of(*outcomes):
    """A solver of two steps whose runs, one after the other, end with these images."""
    left = list(outcomes)

    def restore(model, problem, shape, generator, listeners, progress, resume):
        done = 0 if resume is None else resume[0].done
        for step in range(done, 2):
            listeners.event(TraceEvent(step, 9, "ddim"))
            listeners.estimate(outcomes[0], step)
            listeners.keep([SamplerState(step + 1, image[None], torch.zeros(1)) for image in outcomes[0]])
        listeners.event(TraceEvent(2, 0, "final"))
        return left.pop(0)

    return SimpleNamespace(steps=2, restore=restore)


class Told:
    """What the listeners were told."""

    def __init__(self):
        self.steps, self.estimates, self.states = [], [], []

    def listeners(self):
        return Listeners(
            lambda event: self.steps.append(event.step),
            lambda _, step: self.estimates.append(step),
            self.states.append,
        )


PROBLEM = InverseProblem(images(0.5, -0.5), lambda x: x)
OUTCOMES = images(0.1, 0.9), images(0.4, 0.8), images(0.9, -0.4)


def test_each_image_keeps_the_run_that_is_nearest_its_measurement():
    told = Told()
    best = restore_best(solver_of(*OUTCOMES), 3, None, PROBLEM, (2, 3, 2, 2), None, told.listeners())
    assert torch.equal(best, images(0.4, -0.4))
    assert told.steps == [0, 1, 2, 2, 3, 4, 4, 5, 6]
    assert told.estimates == [0, 1, 2, 3, 4, 5]
    assert [state.done for states in told.states for state in states] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]


def test_every_state_leads_to_the_same_end():
    told = Told()
    wanted = restore_best(solver_of(*OUTCOMES), 3, None, PROBLEM, (2, 3, 2, 2), None, told.listeners())
    for states in told.states:
        left = solver_of(*OUTCOMES[(states[0].done - 1) // 2 :])
        again = Told()
        found = restore_best(left, 3, None, PROBLEM, (2, 3, 2, 2), None, again.listeners(), resume=states)
        assert torch.equal(found, wanted)
        assert again.estimates == list(range(states[0].done, 6))


def test_restarts_begin_from_one_equivalent_after_the_other():
    begun = []

    def restore(model, problem, *_, **__):
        begun.append(problem.initial)
        return problem.initial

    solver = SimpleNamespace(steps=2, restore=restore)
    problem = InverseProblem(images(-0.5), lambda x: x, initial=images(0.5), equivalents_fn=lambda x: [x, -x])
    best = restore_best(solver, 3, None, problem, (1, 3, 2, 2), None)
    assert torch.equal(torch.cat(begun), images(0.5, -0.5, 0.5))
    assert torch.equal(best, images(-0.5))


def test_a_failure_is_told_with_its_step():
    def restore(model, problem, shape, generator, listeners, *_):
        listeners.failed(ImageError("it is not finite", 1, 0))
        return images(0.0, 0.0)

    heard = []
    solver = SimpleNamespace(steps=2, restore=restore)
    restore_best(solver, 2, None, PROBLEM, (2, 3, 2, 2), None, Listeners(failed=heard.append))
    assert [(error.step, error.sample) for error in heard] == [(1, 0), (3, 0)]


def command(place, out, restarts, *extra):  # noqa: F811
    task = yaml.safe_load((place / "task.yaml").read_text())
    task["measurement"]["operator"] = {"name": "phase_retrieval", "oversample": 1.0}
    task["measurement"].pop("mask_opt", None)
    path = place / "phase.yaml"
    path.write_text(yaml.safe_dump(task))
    given = ["--task_config", str(path), "--limit", "1", "--quiet", f"conditioning.restarts={restarts}"]
    return words(place, out, *given, *extra, steps=STEPS)


@pytest.fixture(scope="module")
def three(place, tmp_path_factory):  # noqa: F811
    """What a run with three restarts leaves."""
    out = tmp_path_factory.mktemp("three") / "out"
    assert main(command(place, out, 3)) == 0
    return out


def test_the_command_runs_each_and_keeps_one(place, three, tmp_path):  # noqa: F811
    (trace,) = three.glob("progress/*/trace.csv")
    ends = [int(row["step"]) for row in rows(trace) if row["stage"] == "final"]
    assert ends == [STEPS, 2 * STEPS, 3 * STEPS]
    assert len(list(three.glob("recon/*.png"))) == 1
    # One run is what it was without restarts, and three are no three times the same.
    assert main(command(place, tmp_path, 1)) == 0
    (first,) = tmp_path.glob("progress/*/trace.csv")
    losses = [[row["last_loss"] for row in rows(path)] for path in (first, trace)]
    assert losses[1][: len(losses[0])] == losses[0]
    assert losses[1][len(losses[0]) : 2 * len(losses[0])] != losses[0]


@pytest.mark.parametrize("call", [STEPS + 9, pytest.param(2 * STEPS + 20, marks=pytest.mark.slow)])
def test_an_interrupted_run_goes_on_inside_a_restart(call, place, three, tmp_path, monkeypatch):  # noqa: F811
    with monkeypatch.context() as patch:
        interrupt(patch, call, KeyboardInterrupt)
        assert main(command(place, tmp_path / "out", 3)) == 130
    assert len(list(tmp_path.rglob("state.safetensors"))) == 1
    assert main(command(place, tmp_path / "out", 3)) == 0
    assert snapshot(tmp_path / "out") == snapshot(three)


def test_the_cost_is_that_of_all(place, tmp_path, capsys):  # noqa: F811
    costs = []
    for restarts in (1, 4):
        assert main(command(place, tmp_path, restarts, "--dry_run")) == 0
        line = next(line for line in capsys.readouterr().out.splitlines() if "UNet, forward" in line)
        costs.append(int(line.split()[2].replace(",", "")))
    assert costs[1] == 4 * costs[0] > 0


def test_bad_number(place, tmp_path, capsys):  # noqa: F811
    assert main(command(place, tmp_path / "out", 0)) == 2
    assert "conditioning.restarts: expected a whole number, 1 or more, got 0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
