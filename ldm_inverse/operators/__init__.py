"""The measurement operators, one family a file; importing this package registers them all."""

from ldm_inverse.operators import (
    blur,
    camera_blur,
    colourisation,
    deepinv_physics,
    high_dynamic_range,
    identity,
    inpainting,
    jpeg,
    nonlinear_blur,
    phase_retrieval,
    super_resolution,
    tomography,
)
from ldm_inverse.operators.base import OPERATORS, Operator

__all__ = [
    "OPERATORS",
    "Operator",
    "blur",
    "camera_blur",
    "colourisation",
    "deepinv_physics",
    "high_dynamic_range",
    "identity",
    "inpainting",
    "jpeg",
    "nonlinear_blur",
    "phase_retrieval",
    "super_resolution",
    "tomography",
]
