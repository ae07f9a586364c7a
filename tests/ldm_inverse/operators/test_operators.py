"""Properties that every registered operator must have. An operator is tested by being registered.

One that cannot be built or drawn from its defaults has its settings in `settings`.
"""

from typing import Any

import numpy as np
import pytest

from ldm_inverse.measurements import get_operator, operator_names
from ldm_inverse.properties import PROPERTIES
from util.errors import UserError

SETTINGS: dict[str, list[dict[str, Any]]] = {
    "deepinv": [],  # an extra: tests/ldm_inverse/test_deepinv.py
    "camera_blur": [{"kernel_size": 9}],
    "gaussian_blur": [{"kernel_size": 61, "intensity": 3.0}, {"kernel_size": 7, "intensity": 2.0}]
    + [{"kernel_size": 9, "intensity": 1.0, "boundary": boundary} for boundary in ("circular", "valid", "zero")],
    "inpainting": [
        {"mask_type": "random", "mask_prob_range": (0.3, 0.6)},
        {"mask_type": "box", "mask_len_range": (5, 12), "margin": (4, 6)},
        {"mask_type": "extreme", "mask_len_range": (5, 12), "margin": (4, 6)},
        {"mask_type": "both", "mask_len_range": (5, 12), "mask_prob_range": (0.3, 0.6), "margin": (4, 6)},
    ],
    "jpeg": [{}, {"quality": 90, "subsampling": 444}],
    "motion_blur": [
        {"kernel_size": 61},
        {"kernel_size": 3},
        {"kernel": np.triu(np.ones((5, 9)))},
        *({"kernel_size": 9, "boundary": boundary} for boundary in ("circular", "valid", "zero")),
        *(
            {"kernel": np.triu(np.ones((4, 9))), "kernel_is": "psf", "boundary": boundary}
            for boundary in ("circular", "valid")
        ),
    ],
    "phase_retrieval": [{"oversample": 1.0}],
    "super_resolution": [{"scale_factor": factor} for factor in (4, 3, 1)]
    + [{"downsampling": kind} for kind in ("area", "nearest", "lanczos")]
    + [{"scale_factor": 3, "kernel": np.triu(np.ones((5, 9))), "phase": [1, 2]}],
}
CASES = [(name, i) for name in operator_names() for i in range(len(SETTINGS.get(name, [{}])))]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def build(request, tiny_blur_options):
    """A function that builds the operator under test."""
    name, i = request.param
    settings = {"opt_yml_path": tiny_blur_options, "random_code": True} if name == "nonlinear_blur" else {}
    settings |= SETTINGS.get(name, [{}])[i]
    return lambda: get_operator(name, **settings)


@pytest.mark.parametrize("name", PROPERTIES)
def test_property(name, build):
    assert PROPERTIES[name](build)


def test_unknown_operator_offers_the_nearest():
    with pytest.raises(UserError, match="did you mean 'gaussian_blur'"):
        get_operator("gausian_blur")
    with pytest.raises(UserError, match="did you mean 'kernel_size'"):
        get_operator("gaussian_blur", kernelsize=61)
