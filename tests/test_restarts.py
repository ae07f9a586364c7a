"""Several runs for a restoration, of which the one nearest the measurement is kept."""

import pytest
import torch
import yaml

from ldm_inverse.solvers.observer import Lost, StageEnded, Started, StepEnded
from ldm_inverse.solvers.optimise import Minimum
from ldm_inverse.solvers.problem import InverseProblem
from ldm_inverse.solvers.restore import restore
from ldm_inverse.solvers.samplers import POSTERIOR_SAMPLERS, Sampler
from ldm_inverse.solvers.settings import SamplerSettings
from ldm_inverse.solvers.solver import Solver
from sample_condition import main
from tests.ldm.gaussian import GaussianLatents
from tests.runs import rows, snapshot, words
from tests.test_batch_size import interrupt
from util.errors import ImageError

STEPS = 4


def images(*values):
    return torch.tensor(values).reshape(-1, 1, 1, 1).expand(-1, 3, 2, 2).clone()


MODEL = GaussianLatents(torch.zeros(3, 2, 2), torch.ones(3, 2, 2))
PROBLEM = InverseProblem(images(0.5, -0.5), lambda x: x, size=(2, 2))
OUTCOMES = images(0.1, 0.9), images(0.4, 0.8), images(0.9, -0.4)


@pytest.fixture
def told():
    """Every event of a restoration."""
    return []


def of_kind(told, kind):
    return [event for event in told if isinstance(event, kind)]


@pytest.fixture
def sampler_of(monkeypatch):
    """Make the sampler `fake`, whose runs, one after the other, end with these images."""

    def make(*outcomes):
        left = list(outcomes)

        def sample(prior, problem, z, settings, run):
            for step, _ in run.steps():
                run.stepped(step)
                run.finished(step, outcomes[0], outcomes[0])
            run.optimised(2, "final", Minimum(z, [[0.0]] * len(z), ["limit"] * len(z), [None] * len(z)))
            return left.pop(0)

        monkeypatch.setitem(POSTERIOR_SAMPLERS._entries, "fake", Sampler(sample, SamplerSettings))

    return make


def test_each_image_keeps_the_run_that_is_nearest_its_measurement(sampler_of, told):
    sampler_of(*OUTCOMES)
    best = restore(MODEL, PROBLEM, Solver("fake", 2, restarts=3), told.append)
    assert torch.equal(best, images(0.4, -0.4))
    steps = [event.step for event in of_kind(told, StageEnded) if event.sample == 0]
    assert steps == [0, 1, 2, 2, 3, 4, 4, 5, 6]
    ended = of_kind(told, StepEnded)
    assert [event.step for event in ended] == [0, 1, 2, 3, 4, 5]
    assert [event.state.done for event in ended] == [1, 2, 3, 4, 5, 6]
    assert [event.state.best is None for event in ended] == [True, True, False, False, False, False]


def test_every_state_leads_to_the_same_end(sampler_of, told):
    sampler_of(*OUTCOMES)
    wanted = restore(MODEL, PROBLEM, Solver("fake", 2, restarts=3), told.append)
    for state in [event.state for event in of_kind(told, StepEnded)]:
        sampler_of(*OUTCOMES[(state.done - 1) // 2 :])
        again = []
        found = restore(MODEL, PROBLEM, Solver("fake", 2, restarts=3), again.append, resume=state)
        assert torch.equal(found, wanted)
        assert [event.step for event in of_kind(again, StepEnded)] == list(range(state.done, 6))


def test_restarts_begin_from_one_equivalent_after_the_other(monkeypatch):
    begun = []

    def sample(prior, problem, *_):
        begun.append(problem.initial)
        return problem.initial

    monkeypatch.setitem(POSTERIOR_SAMPLERS._entries, "fake", Sampler(sample, SamplerSettings))
    problem = InverseProblem(
        images(-0.5), lambda x: x, initial=images(0.5), equivalents_fn=lambda x: [x, -x], size=(2, 2)
    )
    best = restore(MODEL, problem, Solver("fake", 2, restarts=3))
    assert torch.equal(torch.cat(begun), images(0.5, -0.5, 0.5))
    assert torch.equal(best, images(-0.5))


def test_a_lost_image_is_told_once_and_with_its_step(sampler_of, told):
    sampler_of(images(0.1, 0.2), images(0.1, torch.nan), images(0.3, 0.4))
    best = restore(MODEL, PROBLEM, Solver("fake", 2, restarts=3), told.append)
    assert of_kind(told, Lost) == [Lost(1, 4, "the image is not finite")]
    assert torch.equal(best[:1], images(0.3))
    assert [event.step for event in of_kind(told, StageEnded) if event.sample == 1][-1] == 4


def test_when_all_are_lost_no_restart_is_left(sampler_of, told):
    sampler_of(images(torch.nan, torch.nan))
    restore(MODEL, PROBLEM, Solver("fake", 2, restarts=3), told.append)
    assert [(event.sample, event.step) for event in of_kind(told, Lost)] == [(0, 0), (1, 0)]
    assert len(of_kind(told, Started)) == 1
    assert len(of_kind(told, StepEnded)) == 1


def test_a_lost_image_of_which_nobody_is_told_is_an_error(sampler_of):
    sampler_of(images(0.1, torch.nan))
    with pytest.raises(ImageError, match="the image is not finite") as raised:
        restore(MODEL, PROBLEM, Solver("fake", 2))
    assert raised.value.sample == 1


def command(place, out, restarts, *extra):
    task = yaml.safe_load((place / "task.yaml").read_text())
    task["measurement"]["operator"] = {"name": "phase_retrieval", "oversample": 1.0}
    task["measurement"].pop("mask_opt", None)
    path = place / "phase.yaml"
    path.write_text(yaml.safe_dump(task))
    given = ["--task_config", str(path), "--limit", "1", "--quiet", f"conditioning.restarts={restarts}"]
    return words(place, out, *given, *extra, steps=STEPS)


@pytest.fixture(scope="module")
def three(place, tmp_path_factory):
    """The folder of a run with three restarts."""
    out = tmp_path_factory.mktemp("three") / "out"
    assert main(command(place, out, 3)) == 0
    return out


def test_the_command_runs_each_and_keeps_one(place, three, tmp_path):
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
def test_an_interrupted_run_goes_on_inside_a_restart(call, place, three, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, call, KeyboardInterrupt)
        assert main(command(place, tmp_path / "out", 3)) == 130
    assert len(list(tmp_path.rglob("state.safetensors"))) == 1
    assert main(command(place, tmp_path / "out", 3)) == 0
    assert snapshot(tmp_path / "out") == snapshot(three)


def test_the_cost_is_that_of_all(place, tmp_path, capsys):
    costs = []
    for restarts in (1, 4):
        assert main(command(place, tmp_path, restarts, "--dry_run")) == 0
        line = next(line for line in capsys.readouterr().out.splitlines() if "UNet, forward" in line)
        costs.append(int(line.split()[2].replace(",", "")))
    assert costs[1] == 4 * costs[0] > 0


def test_bad_number(place, tmp_path, capsys):
    assert main(command(place, tmp_path / "out", 0)) == 2
    assert "conditioning.restarts: expected a whole number, 1 or more, got 0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
