"""Products by oneDNN against torch's own, in float64."""

import pytest
import torch

from ldm.acceleration import products
from tests.reference.recorded import relative_error


@pytest.fixture(params=["as this torch has it", "without oneDNN"])
def either_way(request, monkeypatch):
    if request.param == "without oneDNN":
        monkeypatch.setattr(products, "_has_onednn", lambda: False)


def matrices(dtype=torch.float32):
    torch.manual_seed(0)
    shapes = [(7, 5), (5, 7)], [(300, 36), (36, 300)]
    for (m, k), (_, n) in shapes:
        a, b = torch.randn(m, k, dtype=dtype), torch.randn(k, n, dtype=dtype)
        yield a, b
        yield torch.randn(k, m, dtype=dtype).t(), torch.randn(n, k, dtype=dtype).t()
        yield torch.randn(m, 2 * k, dtype=dtype)[:, ::2], torch.randn(k, n + 3, dtype=dtype)[:, 3:]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-15)])
def test_a_product_and_its_gradients_are_torchs(dtype, tolerance, either_way):
    for a, b in matrices(dtype):
        seed = torch.randn(len(a), b.shape[1], dtype=dtype)
        mine = a.clone().requires_grad_(), b.clone().requires_grad_()
        exact = a.double().requires_grad_(), b.double().requires_grad_()
        found, expected = products.product(*mine), exact[0] @ exact[1]
        assert found.dtype == dtype
        assert relative_error(products.product(a, b), expected) < tolerance
        assert relative_error(found, expected) < tolerance
        gradients = torch.autograd.grad(found, mine, seed), torch.autograd.grad(expected, exact, seed.double())
        for one, other in zip(*gradients, strict=True):
            assert relative_error(one, other) < tolerance


def test_a_product_can_be_differentiated_twice(either_way):
    a, b, direction = torch.randn(4, 3), torch.randn(3, 4), torch.randn(4, 3)
    twice = []
    for multiply, dtype in ((products.product, torch.float32), (torch.matmul, torch.float64)):
        x, y = a.to(dtype).requires_grad_(), b.to(dtype).requires_grad_()
        (first,) = torch.autograd.grad(multiply(x, y).square().sum(), x, create_graph=True)
        twice.append(torch.autograd.grad((first * direction.to(dtype)).sum(), (x, y)))
    for one, other in zip(*twice, strict=True):
        assert relative_error(one, other) < 1e-5


def test_many_products_are_written_at_once(either_way):
    a, b, out = torch.randn(5, 40, 8), torch.randn(5, 6, 8).transpose(1, 2), torch.empty(5, 40, 6)
    products.multiply_each(a, b, out)
    assert relative_error(out, a.double() @ b.double()) < 1e-6


def test_a_torch_without_the_operation_multiplies_by_its_own(monkeypatch):
    def missing(*_):
        raise AttributeError("_linear_pointwise")

    products._has_onednn.cache_clear()
    monkeypatch.setattr(products, "_multiply", missing)
    try:
        assert torch.equal(products.product(torch.eye(3), torch.ones(3, 2)), torch.ones(3, 2))
    finally:
        products._has_onednn.cache_clear()


def test_half_precision_is_left_to_torch():
    a, b = torch.randn(6, 4), torch.randn(4, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert products.product(a, b).dtype == torch.bfloat16
    assert products.product(a.bfloat16(), b.bfloat16()).dtype == torch.bfloat16


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
def test_this_torch_has_the_operation():
    assert products._has_onednn()
    assert products.product(torch.ones(2, 2).requires_grad_(), torch.ones(2, 2)).grad_fn.name() == "_ProductBackward"
