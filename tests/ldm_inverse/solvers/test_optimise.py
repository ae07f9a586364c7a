"""The optimiser loop and each rule that stops it, alone."""

import pytest
import torch

from ldm_inverse.solvers.optimise import StopRule, minimise
from ldm_inverse.solvers.problem import mean_squared_residual

TARGET = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(2, 3, 2, 2)


def quadratic(x, rows):
    """Each sample's mean squared distance to its target."""
    return mean_squared_residual(TARGET[list(rows)], x)


def start(batch=1):
    return torch.zeros((batch, 3, 2, 2), dtype=torch.float64)


# The rules.


def test_limit_alone():
    found = minimise(quadratic, start(), StopRule(max_iters=7), lr=1e-2)
    assert found.stops == ["limit"]
    assert len(found.losses[0]) == 7


def test_threshold_alone_stops_after_the_step_whose_loss_was_below_it():
    found = minimise(quadratic, start(), StopRule(max_iters=1000, threshold=1e-3), lr=1e-2)
    assert found.stops == ["threshold"]
    losses = found.losses[0]
    assert losses[-1] < 1e-3 <= losses[-2]
    # That step was still taken: the result is better than the last loss says.
    assert quadratic(found.x, [0]).item() < losses[-1]


def test_a_loss_at_the_threshold_goes_on():
    assert StopRule(max_iters=10, threshold=0.5).reason([0.5]) == ""
    assert StopRule(max_iters=10, threshold=0.5).reason([0.4]) == "threshold"


def test_plateau_alone_compares_with_the_loss_of_a_window_before():
    rule = StopRule(max_iters=100, window=3)
    assert rule.reason([1.0, 2.0, 3.0]) == ""  # the window only fills
    assert rule.reason([1.0, 2.0, 3.0, 1.1]) == "plateau"
    assert rule.reason([1.0, 2.0, 3.0, 1.0]) == ""
    assert rule.reason([9.0, 1.0, 2.0, 3.0, 0.9]) == ""
    # A step far too large oscillates: the first chance to stop is the one after the window.
    found = minimise(quadratic, start(), StopRule(max_iters=100, window=3), lr=10.0)
    assert found.stops == ["plateau"]
    assert found.losses[0][-4] < found.losses[0][-1]


def test_without_window_a_rising_loss_does_not_stop():
    assert StopRule(max_iters=100).reason(list(range(1, 50))) == ""


# The loop.


def test_it_is_adamw_with_torchs_defaults():
    x = torch.nn.Parameter(start())
    optimiser = torch.optim.AdamW([x], lr=3e-2)
    for _ in range(20):
        optimiser.zero_grad()
        torch.nn.functional.mse_loss(x, TARGET[:1]).backward()
        optimiser.step()
    assert torch.allclose(minimise(quadratic, start(), StopRule(max_iters=20), lr=3e-2).x, x, rtol=1e-12, atol=0)


def test_weight_decay_pulls_what_the_loss_does_not_see():
    x = torch.ones((1, 3, 2, 2), dtype=torch.float64)
    found = minimise(lambda x, _: 0 * x.flatten(1).sum(1), x, StopRule(max_iters=10), lr=0.1, weight_decay=0.5)
    assert torch.allclose(found.x, x * 0.95**10)
    assert torch.equal(x, torch.ones_like(x))  # the start is left as it was


def test_callback_sees_every_iteration_and_loss():
    seen = []
    found = minimise(quadratic, start(), StopRule(max_iters=4), 1e-2, callback=lambda i, loss: seen.append((i, loss)))
    assert [i for i, _ in seen] == [0, 1, 2, 3]
    assert [losses for _, losses in seen] == [[loss] for loss in found.losses[0]]


def test_each_sample_of_a_batch_ends_as_it_would_alone():
    # The second sample starts near its target and stops long before the first.
    x = torch.cat([start(), TARGET[1:] + 0.01])
    rule = StopRule(max_iters=300, threshold=1e-5)
    both = minimise(quadratic, x, rule, lr=1e-2)
    first = minimise(quadratic, x[:1], rule, lr=1e-2)
    second = minimise(lambda z, _: quadratic(z, [1]), x[1:], rule, lr=1e-2)
    assert len(second.losses[0]) < len(first.losses[0])
    assert both.losses == first.losses + second.losses
    assert both.stops == first.stops + second.stops
    assert torch.equal(both.x, torch.cat([first.x, second.x]))


def test_a_sample_that_has_stopped_is_evaluated_no_more():
    x = torch.cat([TARGET[:1] + 0.01, start()])  # the first stops long before the second
    sizes, seen = [], []

    def loss(x, rows):
        sizes.append((len(x), list(rows)))
        return quadratic(x, rows)

    rule = StopRule(max_iters=300, threshold=1e-5)
    found = minimise(loss, x, rule, lr=1e-2, callback=lambda i, losses: seen.append((i, losses)))
    first, second = map(len, found.losses)
    assert sizes == [(2, [0, 1])] * first + [(1, [1])] * (second - first)
    assert [i for i, _ in seen] == list(range(second))
    assert [losses[1] for _, losses in seen] == found.losses[1]
    assert [losses[0] for _, losses in seen] == found.losses[0] + [found.losses[0][-1]] * (second - first)


@pytest.mark.parametrize("look_ahead", [0, 1, 3])
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_a_sample_whose_loss_is_not_finite_leaves_at_once_and_the_others_go_on(broken, look_ahead):
    calls = []

    def loss(x, rows):
        calls.append(len(x))
        spoilt = torch.tensor([broken if row == 0 and len(calls) == 4 else 1.0 for row in rows], dtype=x.dtype)
        return quadratic(x, rows) * spoilt

    rule = StopRule(max_iters=300, threshold=1e-3)
    found = minimise(loss, start(2), rule, lr=1e-2, look_ahead=look_ahead)
    alone = minimise(lambda x, _: quadratic(x, [1]), start(), rule, lr=1e-2)
    assert found.stops == ["not finite", "threshold"]
    assert len(found.losses[0]) == 4
    assert found.losses[1] == alone.losses[0]
    assert torch.equal(found.x[1:], alone.x)
    assert calls[:5] == [2, 2, 2, 2, 2 if look_ahead else 1]


def test_each_sample_may_have_a_rule_of_its_own():
    rules = [StopRule(max_iters=5), StopRule(max_iters=300, threshold=0.1)]
    found = minimise(quadratic, start(2), rules, lr=1e-2)
    assert found.stops == ["limit", "threshold"]
    assert len(found.losses[0]) == 5


@pytest.mark.parametrize("look_ahead", [1, 3])
@pytest.mark.parametrize(
    "rule",
    [StopRule(9), StopRule(300, threshold=1e-3), StopRule(300, window=4)],
    ids=["limit", "threshold", "plateau"],
)
def test_looking_ahead_changes_neither_result_nor_stop(rule, look_ahead):
    x, lr = torch.cat([start(), TARGET[1:] + 0.03]), 10.0 if rule.window else 1e-2
    calls = []

    def run(look_ahead):
        seen = []

        def loss(x, rows):
            calls.append(len(x))
            return quadratic(x, rows)

        found = minimise(loss, x, rule, lr, callback=lambda *args: seen.append(args), look_ahead=look_ahead)
        return found, [(i, losses) for i, losses in seen]

    (expected, told), (found, told_ahead) = run(0), run(look_ahead)
    assert torch.equal(found.x, expected.x)
    assert (found.losses, found.stops, told_ahead) == (expected.losses, expected.stops, told)


def test_looking_ahead_begins_an_iteration_before_a_loss_is_read_and_none_beyond_the_limit():
    begun = []
    found = minimise(
        lambda x, rows: begun.append("loss") or quadratic(x, rows),
        start(),
        StopRule(4),
        lr=1e-2,
        callback=lambda i, _: begun.append(i),
        look_ahead=1,
    )
    assert begun == ["loss", "loss", 0, "loss", 1, "loss", 2, 3]
    assert len(found.losses[0]) == 4


def test_only_x_gets_a_gradient():
    weight = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
    minimise(lambda x, rows: quadratic(weight * x, rows), start(), StopRule(max_iters=3), lr=1e-2)
    assert weight.grad is None


def test_it_works_where_gradients_are_off():
    with torch.no_grad():
        found = minimise(quadratic, start(), StopRule(max_iters=200, threshold=1e-3), lr=0.05)
    assert found.stops == ["threshold"]
    assert not found.x.requires_grad


def test_a_penalty_pulls_and_is_not_in_the_reported_loss():
    """mean (x - t)^2 + w sum x^2, n = 12 entries, has its minimum at t / (1 + w n)."""

    def penalty(x, _):
        return 0.25 * x.square().flatten(1).sum(1)

    rule = StopRule(max_iters=2000)
    found = minimise(quadratic, start(), rule, lr=1e-3, weight_decay=0, penalty_fn=penalty)
    assert torch.allclose(found.x, TARGET[:1] / 4, atol=1e-6)
    assert abs(found.losses[0][-1] - quadratic(TARGET[:1] / 4, [0]).item()) < 1e-6
