"""L-BFGS against SciPy's and torch's."""

import pytest
import torch
from scipy.optimize import minimize, rosen

from ldm_inverse.solvers.lbfgs import MOST_TRIALS, lbfgs


class Counted:
    """A function of x with its gradient, as `lbfgs` asks for it, and the number of evaluations."""

    def __init__(self, function):
        self.function, self.count = function, 0

    def __call__(self, x):
        self.count += 1
        x = x.detach().requires_grad_()
        value = self.function(x)
        return value.detach(), torch.autograd.grad(value, x)[0]


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2).square() + (1 - x[:-1]).square()).sum()


def start(size=12):
    return torch.linspace(-1, 1, size, dtype=torch.float64)


def test_it_finds_scipys_minimum():
    found, ended = lbfgs(Counted(rosenbrock), start(), 200)
    assert ended == "plateau"
    want = minimize(rosen, start().numpy(), method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-9}).x
    assert torch.allclose(found, torch.from_numpy(want), atol=1e-4)


@pytest.mark.parametrize("iterations", [5, 20])
def test_it_goes_as_far_as_torchs_in_as_many_evaluations(iterations):
    ours, theirs, x = Counted(rosenbrock), Counted(rosenbrock), start()
    found, ended = lbfgs(ours, x, iterations)
    assert ended == "limit"
    optimiser = torch.optim.LBFGS([x.requires_grad_()], max_iter=iterations, line_search_fn="strong_wolfe")

    def closure():
        value, x.grad = theirs(x)
        return value

    optimiser.step(closure)
    assert ours.count <= theirs.count + 1
    assert rosenbrock(found) < 1.1 * rosenbrock(x)


def test_a_quadratic_takes_about_as_many_iterations_as_it_has_curvatures():
    scales = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64).repeat(50)
    objective = Counted(lambda x: (scales * (x - 1).square()).sum())
    found, _ = lbfgs(objective, torch.zeros(150, dtype=torch.float64), 12)
    assert (found - 1).abs().max() < 1e-3
    assert objective.count < 20


def test_a_step_to_where_the_value_is_not_finite_is_shortened():
    found, ended = lbfgs(Counted(lambda x: (50 * x - x.log()).sum()), torch.ones(3, dtype=torch.float64), 60)
    assert ended == "plateau"
    assert torch.allclose(found, torch.full_like(found, 1 / 50), rtol=1e-5)


def test_it_stops_at_once_where_there_is_nothing_to_gain():
    objective = Counted(lambda x: x.square().sum())
    found, ended = lbfgs(objective, torch.zeros(3), 10)
    assert (found == 0).all()
    assert (ended, objective.count) == ("plateau", 1)


def test_one_iteration_takes_no_more_than_a_line_search():
    objective = Counted(rosenbrock)
    assert lbfgs(objective, start(), 1)[1] == "limit"
    assert objective.count <= 1 + MOST_TRIALS
