"""Updates of vectors as torch makes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ihvp import algebra


@pytest.mark.parametrize("update", [algebra.axpy, algebra.xpay])
@pytest.mark.parametrize("a", [0.5, 1e39, -1e39, np.inf])
def test_updates_are_those_of_numpy_whatever_the_number(update, a):
    x, y = np.float32([1.0, 2.0]), np.float32([3.0, 4.0])
    with np.errstate(all="ignore"):
        scalar = float(np.float32(a))
    expected = update(y.copy(), scalar, x)
    target = torch.tensor(y)
    found = update(target, a, torch.tensor(x))
    assert found is target
    np.testing.assert_array_equal(found.numpy(), expected)


def test_columns_are_updated_by_numbers_of_their_own():
    x, y, a = (torch.randn(shape, dtype=torch.float64) for shape in ((5, 3), (5, 3), (3,)))
    torch.testing.assert_close(algebra.xpay(y.clone(), a, x), y * a + x)
