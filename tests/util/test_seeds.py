"""The random streams of a run."""

import numpy as np
import torch

from util.seeds import random_stream, torch_stream


def test_streams_differ_by_seed_image_and_purpose_and_repeat():
    keys = [(0, "a", "noise"), (1, "a", "noise"), (0, "b", "noise"), (0, "a", "operator"), (0, "an", "oise")]
    draws = [tuple(random_stream(*key).randn(4)) for key in keys]
    assert len(set(draws)) == len(keys)
    assert draws == [tuple(random_stream(*key).randn(4)) for key in keys]
    draws = [tuple(torch.randn(4, generator=torch_stream(*key)).tolist()) for key in keys]
    assert len(set(draws)) == len(keys)
    assert draws == [tuple(torch.randn(4, generator=torch_stream(*key)).tolist()) for key in keys]


def test_streams_leave_global_random_state_alone():
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    random_stream(0, "a", "noise").randn(3)
    torch.randn(3, generator=torch_stream(0, "a", "solver"))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
