"""LowRank and FullRank against the matrices that they stand for."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

import ihvp
from ihvp._problems import SeedNetwork
from ihvp.errors import InvalidOption, VectorError

P = 40


def orthonormal(rng, k, size=P):
    return np.linalg.qr(rng.normal(size=(size, k)))[0]


@pytest.fixture(scope="module")
def hessian():
    """The seed network's Hessian, P = 66."""
    return SeedNetwork().hessian()


def pair(rng, values, tail):
    """An operator from eigenpairs, and the same matrix by equation 15 or 16."""
    Q = orthonormal(rng, len(values))
    dense = (Q * values) @ Q.T
    if tail is None:
        return ihvp.LowRank.of(values, Q), dense
    return ihvp.FullRank.of(values, Q, tail), dense + tail * (np.eye(P) - Q @ Q.T)


SPECTRA = [
    (np.array([5.0, 2.0, 1.0]), None),
    (np.array([5.0, 0.0, -3.0]), None),
    (np.linspace(4, -1, P), None),
    (np.array([5.0, 2.0, 1.0]), 0.5),
    (np.array([5.0, 0.0, -3.0]), 2.0),
    (np.linspace(4, -1, P), 1.0),
]
every_spectrum = pytest.mark.parametrize(("values", "tail"), SPECTRA)


def test_low_rank_of_all_pairs_is_the_matrix(hessian):
    L = ihvp.LowRank(ihvp.eigsh(ihvp.Dense(hessian), 66))
    assert_allclose(L.to_dense(), hessian, rtol=0, atol=1e-8)


@pytest.mark.parametrize("k", [1, 5, 10])
def test_full_rank_is_equation_16(hessian, k):
    values, vectors = np.linalg.eigh(hessian)
    Q, kept = vectors[:, ::-1][:, :k], values[::-1][:k]
    expected = (Q * kept) @ Q.T + kept[-1] * (np.eye(66) - Q @ Q.T)
    F = ihvp.FullRank(ihvp.eigsh(ihvp.Dense(hessian), k))
    assert F.tail == pytest.approx(kept[-1])
    assert_allclose(F.to_dense(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("k", [1, 10, 40])
def test_low_rank_is_equation_15(hessian, k):
    values, vectors = np.linalg.eigh(hessian)
    Q, kept = vectors[:, ::-1][:, :k], values[::-1][:k]
    L = ihvp.LowRank(ihvp.eigsh(ihvp.Dense(hessian), k))
    assert_allclose(L.to_dense(), (Q * kept) @ Q.T, rtol=0, atol=1e-10)


@every_spectrum
def test_products_forms_and_traces_are_those_of_the_matrix(rng, values, tail):
    A, dense = pair(rng, values, tail)
    x, X = rng.normal(size=P), rng.normal(size=(P, 3))
    assert_allclose(A @ x, dense @ x, atol=1e-13)
    assert_allclose(A @ X, dense @ X, atol=1e-13)
    assert isinstance(A.quadratic_form(x), float)
    assert A.quadratic_form(x) == pytest.approx(x @ dense @ x, abs=1e-12)
    assert_allclose(A.quadratic_form(X), np.diag(X.T @ dense @ X), atol=1e-12)
    assert A.trace() == pytest.approx(np.trace(dense), abs=1e-12)


@every_spectrum
def test_the_log_determinant_is_numpys(rng, values, tail):
    A, dense = pair(rng, values, tail)
    sign, expected = np.linalg.slogdet(dense + 3.5 * np.eye(P))
    assert sign == 1
    assert A.logdet(damping=3.5) == pytest.approx(expected, rel=1e-12)


@every_spectrum
def test_the_damped_solve_is_numpys(rng, values, tail):
    A, dense = pair(rng, values, tail)
    V = rng.normal(size=(P, 2))
    expected = np.linalg.solve(dense + 0.7 * np.eye(P), V)
    assert_allclose(A.solve_damped(V, 0.7), expected, rtol=1e-10, atol=1e-12)
    assert_allclose(A.solve_damped(V[:, 0], 0.7), expected[:, 0], rtol=1e-10, atol=1e-12)


def test_a_solve_where_there_is_no_inverse_is_the_pseudo_inverses(rng):
    A, dense = pair(rng, np.array([5.0, 0.0, -3.0]), None)
    v = rng.normal(size=P)
    assert A.is_singular(0.0)
    assert_allclose(A.solve_damped(v, 0.0), np.linalg.pinv(dense, rcond=1e-12) @ v, atol=1e-12)


def test_nothing_of_length_p_is_squared():
    size = 3_000_000  # a matrix of that size would take 72 TB
    vectors = np.zeros((size, 2))
    vectors[0, 0] = vectors[1, 1] = 1.0
    F = ihvp.FullRank.of([4.0, 2.0], vectors)
    v = np.ones(size)
    assert_allclose((F @ v)[:3], [4.0, 2.0, 2.0])
    assert_allclose(F.solve_damped(v, 1.0)[:3], [1 / 5, 1 / 3, 1 / 3])
    assert F.trace() == 4.0 + 2.0 * (size - 1)
    assert F.quadratic_form(v) == pytest.approx(4.0 + 2.0 * (size - 1))


@pytest.mark.parametrize(
    ("values", "damping", "text"),
    [
        ([3.0, 1.0], 0.0, "lowest eigenvalue is 0.000e"),
        ([3.0, -1.0], 0.5, "a number above 1.000e.*-5.000e-01"),
    ],
)
def test_the_logarithm_of_a_determinant_that_is_not_positive_is_refused(values, damping, text):
    with pytest.raises(InvalidOption, match=text):
        ihvp.LowRank.of(values, np.eye(5, 2)).logdet(damping)


@pytest.mark.parametrize(("values", "tail"), [([3.0, -1.0], None), ([3.0, 0.0], None), ([3.0, 1.0], 0.0)])
def test_a_tail_that_is_not_positive_is_refused(values, tail):
    with pytest.raises(InvalidOption, match=r"above 0.*pass tail="):
        ihvp.FullRank.of(values, np.eye(5, 2), tail)


@pytest.mark.parametrize("tail", [-1.0, np.inf, np.nan, "1"])
def test_a_tail_that_is_no_positive_number_is_refused(tail):
    with pytest.raises(InvalidOption, match="tail is"):
        ihvp.FullRank.of([3.0, 1.0], np.eye(5, 2), tail)


@pytest.mark.parametrize(
    ("values", "vectors", "text"),
    [
        ([1.0, 2.0], np.ones((5, 2)), "not orthonormal"),
        ([1.0, 2.0], np.eye(5, 2) * (1 + 1e-6), "differs from the identity by 2.0e-06"),
        ([1.0], np.eye(5, 2), r"shape \(1,\); expected \(2,\)"),
        ([1.0, np.nan], np.eye(5, 2), "finite"),
        ([1.0, 2.0], np.full((5, 2), np.nan), "not orthonormal"),
        ([1.0, 2.0], np.eye(2, 5), r"\(P, K\)"),
        ([1.0, 2.0], np.eye(5, 2).tolist(), r"list.*\(P, K\)"),
        ([1.0, 2.0], np.eye(5, 2, dtype=int), "real floating"),
    ],
)
def test_pairs_that_are_no_eigenpairs_are_refused(values, vectors, text):
    with pytest.raises(VectorError, match=text):
        ihvp.LowRank.of(values, vectors)


def test_low_precision_keeps_its_dtype(rng):
    Q = orthonormal(rng, 3).astype(np.float32)
    F, v = ihvp.FullRank.of([3.0, 2.0, 1.0], Q), rng.normal(size=P).astype(np.float32)
    assert (F @ v).dtype == F.solve_damped(v, 0.1).dtype == np.float32
    assert_allclose(F @ F.solve_damped(v, 0.0), v, atol=1e-5)


def test_their_sums_are_operators(rng):
    A, dense = pair(rng, np.array([5.0, 2.0]), 0.5)
    assert_allclose((2 * A + 0.1).to_dense(), 2 * dense + 0.1 * np.eye(P), atol=1e-13)
