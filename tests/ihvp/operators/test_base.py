"""What every operator does: products, arithmetic, conversions."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse.linalg

import ihvp
from ihvp.errors import InvalidOption, VectorError, WrongShape

A = np.array([[2.0, 1.0, 0.0], [1.0, 3.0, -1.0], [0.0, -1.0, 4.0]])
B = np.diag([1.0, -2.0, 0.5])
V = np.array([1.0, -2.0, 0.5])
BLOCK = np.array([[1.0, 0.0], [2.0, 1.0], [-1.0, 3.0]])


@pytest.fixture
def a():
    return ihvp.Dense(A)


@pytest.fixture
def b():
    return ihvp.Dense(B)


class WithError(ihvp.Dense):
    """Claims products with a known error."""

    def product_error(self, v):
        return 0.25


EXPRESSIONS = {
    "A + B": (lambda a, b: a + b, A + B),
    "A - B": (lambda a, b: a - b, A - B),
    "2 * A": (lambda a, b: 2 * a, 2 * A),
    "A * 2": (lambda a, b: a * 2, 2 * A),
    "A / 4": (lambda a, b: a / 4, A / 4),
    "-A": (lambda a, b: -a, -A),
    "A + 0.5": (lambda a, b: a + 0.5, A + 0.5 * np.eye(3)),
    "0.5 + A": (lambda a, b: 0.5 + a, A + 0.5 * np.eye(3)),
    "A - 0.5": (lambda a, b: a - 0.5, A - 0.5 * np.eye(3)),
    "0.5 - A": (lambda a, b: 0.5 - a, 0.5 * np.eye(3) - A),
    "numpy scalar * A": (lambda a, b: np.float32(2) * a, 2 * A),
    "A + numpy scalar": (lambda a, b: a + np.float64(2), A + 2 * np.eye(3)),
    "2 * (A + B) / 3 - 1": (lambda a, b: 2 * (a + b) / 3 - 1, 2 * (A + B) / 3 - np.eye(3)),
}


@pytest.mark.parametrize("name", EXPRESSIONS)
@pytest.mark.parametrize("v", [V, BLOCK], ids=["vector", "block"])
def test_arithmetic_agrees_with_that_of_matrices(a, b, name, v):
    make, dense = EXPRESSIONS[name]
    np.testing.assert_allclose(make(a, b) @ v, dense @ v, rtol=1e-14)


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_to_dense_is_the_matrix(a, b, name):
    make, dense = EXPRESSIONS[name]
    np.testing.assert_allclose(make(a, b).to_dense(), dense, rtol=1e-14)


def test_to_dense_joins_blocks_of_columns(rng):
    matrix = rng.normal(size=(150, 150))
    matrix += matrix.T
    np.testing.assert_allclose((ihvp.Dense(matrix) * 1.0).to_dense(), matrix, rtol=1e-14)


@pytest.mark.parametrize("v", [V, BLOCK], ids=["vector", "block"])
def test_products_leave_v_and_the_matrix_as_they_are(a, v):
    before_v, before_a = v.tobytes(), A.tobytes()
    (2 * (a + 0.5) + a) @ v
    assert (v.tobytes(), A.tobytes()) == (before_v, before_a)


def test_product_keeps_the_dtype():
    product = (ihvp.Dense(A.astype(np.float32)) + 0.1) @ V.astype(np.float32)
    assert product.dtype == np.float32


def test_shape_dtype_and_repr_describe_the_operator(a):
    assert a.shape == (3, 3)
    assert a.dtype == np.float64
    assert repr(a + 1) == "Shifted(shape=(3, 3), dtype=float64, device=cpu)"


def test_quadratic_form_of_a_vector_is_a_float(a):
    value = a.quadratic_form(V)
    assert type(value) is float
    np.testing.assert_allclose(value, V @ A @ V, rtol=1e-15)


def test_quadratic_form_of_a_block_is_one_number_a_column(a):
    np.testing.assert_allclose(a.quadratic_form(BLOCK), np.diag(BLOCK.T @ A @ BLOCK), rtol=1e-14)


def test_to_scipy_multiplies_vectors_blocks_and_transposes(a):
    operator = (a + 0.5).to_scipy()
    dense = A + 0.5 * np.eye(3)
    np.testing.assert_allclose(operator @ V, dense @ V, rtol=1e-14)
    np.testing.assert_allclose(operator @ BLOCK, dense @ BLOCK, rtol=1e-14)
    np.testing.assert_allclose(operator.T @ V, dense @ V, rtol=1e-14)
    assert operator.shape == (3, 3)
    assert operator.dtype == np.float64


def test_to_scipy_serves_scipys_own_solvers(a):
    x, code = scipy.sparse.linalg.cg(a.to_scipy(), V, rtol=1e-12)
    assert code == 0
    np.testing.assert_allclose(A @ x, V, rtol=1e-10)
    values = scipy.sparse.linalg.eigsh(a.to_scipy(), k=1, which="LA", return_eigenvectors=False)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(A)[-1:], rtol=1e-12)


def test_to_scipy_takes_float64_vectors_for_a_float32_operator():
    operator = ihvp.Dense(A.astype(np.float32)).to_scipy()
    assert (operator @ V).dtype == np.float32


def test_product_error_of_exact_operators_is_zero(a, b):
    assert (2 * (a + b) + 1).product_error(V) == 0.0


def test_product_error_follows_the_arithmetic(a):
    noisy = WithError(A)
    assert (-2 * (noisy + noisy) + 1 + a).product_error(V) == 1.0


@pytest.mark.parametrize(
    "make",
    [
        lambda a: a + "1",
        lambda a: a * None,
        lambda a: a * a,
        lambda a: a / "2",
        lambda a: a / a,
        lambda a: a + np.ones(3),
        lambda a: np.ones(3) @ a,
        lambda a: np.ones(3) * a,
    ],
)
def test_arithmetic_with_anything_else_is_a_type_error(a, make):
    with pytest.raises(TypeError):
        make(a)


@pytest.mark.parametrize("factor", [np.nan, np.inf, 1j, np.complex64(1j)])
def test_factors_that_are_not_finite_and_real_are_refused(a, factor):
    with pytest.raises(InvalidOption, match=r"expected a finite real number"):
        factor * a


@pytest.mark.parametrize("other", [np.eye(2), np.eye(3, dtype=np.float32)])
def test_sums_of_operators_on_different_vectors_are_refused(a, other):
    with pytest.raises(VectorError, match=r"Cannot add Dense.* expected operators of one shape, dtype"):
        a + ihvp.Dense(other)


def test_wrong_length_is_refused(a):
    with pytest.raises(WrongShape):
        a @ np.ones(4)


def test_operator_without_products_cannot_be_made():
    with pytest.raises(TypeError, match="abstract"):
        ihvp.LinearOperator(None)
