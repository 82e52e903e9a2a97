"""A pair that is called converged is the j-th one, multiple eigenvalues counted as often as they occur."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

import ihvp
from ihvp._problems import TanhMLP
from ihvp.eigen import search
from ihvp.errors import EigenpairsNotConverged

TOLERANCE = {"float64": np.finfo(np.float64).eps ** (2 / 3), "float32": np.finfo(np.float32).eps ** (2 / 3)}


def symmetric(seed, values, dtype="float64"):
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))[0]
    matrix = (basis * values) @ basis.T
    return ((matrix + matrix.T) / 2).astype(dtype)


def wanted(matrix, k, which):
    """The k wanted eigenvalues by a full decomposition, descending; for "LM" their magnitudes."""
    spectrum = np.linalg.eigvalsh(np.asarray(matrix, dtype=np.float64))[::-1]
    if which == "LA":
        return spectrum[:k]
    if which == "SA":
        return spectrum[spectrum.size - k :]
    if which == "LM":
        return np.sort(np.abs(spectrum))[::-1][:k]
    upper = (k + 1) // 2
    return np.concatenate([spectrum[:upper], spectrum[spectrum.size - (k - upper) :]])


def false_claims(matrix, pairs, which, tol):
    """How many pairs are called converged and are not the eigenvalue of their place."""
    k, converged, values = pairs.values.size, pairs.converged, pairs.values
    if which == "LM":
        order = np.argsort(-np.abs(values), kind="stable")
        values, converged = np.abs(values)[order], converged[order]
    size = np.abs(np.linalg.eigvalsh(np.asarray(matrix, dtype=np.float64))).max()
    rounding = 50 * np.finfo(np.asarray(matrix).dtype).eps
    errors = np.abs(values - wanted(matrix, k, which))
    return int(np.count_nonzero(converged & (errors > (tol + rounding) * size)))


SIZES = st.sampled_from([1, 2, 3, 30, 60, 110])


@st.composite
def spectra(draw):
    size, seed = draw(SIZES), draw(st.integers(0, 10**6))
    rng = np.random.default_rng(seed)
    half = size // 2
    kind = draw(
        st.sampled_from(["copies", "zeros", "decay", "cluster", "identity", "rank one", "shift", "any"])
    )
    if kind == "copies":
        values = rng.integers(-3, 4, size).astype(float)
    elif kind == "zeros":
        values = np.concatenate([np.zeros(half), rng.uniform(0, 1, size - half)])
    elif kind == "decay":
        values = rng.uniform(0.3, 0.95) ** np.arange(size)
    elif kind == "cluster":
        width = 10.0 ** -rng.integers(3, 11)
        values = np.concatenate([1 + width * rng.uniform(-1, 1, half), rng.uniform(-0.9, 0.9, size - half)])
    elif kind == "identity":
        values = np.full(size, rng.integers(-1, 2).astype(float))
    elif kind == "rank one":
        values = np.eye(size)[0] * rng.uniform(-1, 1)
    elif kind == "shift":
        values = 0.3 + np.where(np.arange(size) < 9, 0.7 ** np.arange(size), 0.0)
    else:
        values = rng.normal(size=size)
    return values * 10.0 ** rng.integers(-6, 7)


@pytest.mark.parametrize("decomposed", [True, False], ids=["small", "iterated"])
@settings(max_examples=30)
@given(
    spectra(),
    st.integers(1, 12),
    st.sampled_from(["LA", "SA", "LM", "BE"]),
    st.sampled_from([None, 1e-3]),
    st.sampled_from(["float64", "float32"]),
    st.integers(0, 99),
)
def test_no_pair_is_called_converged_in_a_place_that_is_not_its_own(
    decomposed, values, k, which, tol, dtype, seed
):
    matrix, k = symmetric(seed, values, dtype), min(k, values.size)
    with pytest.MonkeyPatch.context() as patch:
        if not decomposed:
            patch.setattr(search, "_DECOMPOSED", 0)
        pairs = ihvp.eigsh(
            ihvp.Dense(matrix), k, which, tol=tol, seed=seed, max_restarts=200, on_failure="return"
        )
    assert false_claims(matrix, pairs, which, tol or TOLERANCE[dtype]) == 0
    assert_allclose(pairs.vectors.T @ pairs.vectors, np.eye(k), atol=100 * np.finfo(dtype).eps)
    assert np.all(np.diff(pairs.values) <= 0)
    if decomposed:
        assert np.all(pairs.converged)


@pytest.mark.parametrize("k", [1, 5, 12])
@pytest.mark.parametrize("decomposed", [True, False], ids=["small", "iterated"])
def test_a_null_space_is_counted(k, decomposed, monkeypatch):
    if not decomposed:
        monkeypatch.setattr(search, "_DECOMPOSED", 0)
    spectrum = np.concatenate([np.zeros(9), np.arange(1.0, 60)])
    pairs = ihvp.eigsh(ihvp.Dense(np.diag(spectrum)), k, "SA")
    assert np.all(pairs.converged)
    assert_allclose(pairs.values[::-1], spectrum[:k], atol=60 * TOLERANCE["float64"])


@pytest.mark.parametrize("ncv", [None, 8, 30])
def test_more_copies_than_the_basis_has_vectors_are_found(ncv):
    matrix = symmetric(0, np.concatenate([np.full(60, -1.0), np.linspace(0, 1, 140)]))
    pairs = ihvp.eigsh(ihvp.Dense(matrix), 6, "SA", ncv=ncv)
    assert_allclose(pairs.values, np.full(6, -1.0), atol=1e-9)
    assert np.all(pairs.converged)


@pytest.mark.parametrize("factor", [0.0, 1.0, -3.0])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
def test_multiples_of_the_identity_are_certain(factor, dtype, which):
    pairs = ihvp.eigsh(ihvp.Dense((factor * np.eye(500)).astype(dtype)), 4, which)
    assert np.all(pairs.converged)
    assert_allclose(pairs.values, np.full(4, factor), atol=4 * abs(factor) * np.finfo(dtype).eps)


def test_both_ends_are_found_with_one_more_of_the_upper_one():
    pairs = ihvp.eigsh(ihvp.Dense(np.diag(np.arange(200.0))), 5, "BE")
    assert_allclose(pairs.values, [199, 198, 197, 1, 0], atol=1e-6)


def test_a_place_that_is_not_certain_is_an_error_that_says_so(monkeypatch):
    monkeypatch.setattr(search, "_DECOMPOSED", 0)
    matrix = symmetric(1, np.concatenate([[2.0, 1.9], 1 - 1e-7 * np.arange(198)]))
    with pytest.raises(EigenpairsNotConverged, match=r"not certain, with confidence 0.999") as caught:
        ihvp.eigsh(ihvp.Dense(matrix), 2, tol=1e-6, max_restarts=0)
    assert_allclose(caught.value.eigenpairs.values, [2.0, 1.9], rtol=1e-6)
    assert np.all(ihvp.eigsh(ihvp.Dense(matrix), 2, tol=1e-6, max_restarts=0, confidence=None).converged)


def test_the_smallest_eigenvalues_that_decay_below_rounding_are_right():
    matrix = symmetric(2, 0.5 ** np.arange(60))
    pairs = ihvp.eigsh(ihvp.Dense(matrix), 5, "SA")
    assert false_claims(matrix, pairs, "SA", TOLERANCE["float64"]) == 0
    assert np.all(pairs.converged)


def softmax(rows=80):
    """The Hessian of softmax regression, whose null space has a dimension for each feature."""
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(rows, 12)), rng.normal(size=(12, 5))
    p = np.exp(x @ weights)
    p /= p.sum(axis=1, keepdims=True)
    outer = np.einsum("na,ab->nab", p, np.eye(5)) - np.einsum("na,nb->nab", p, p)
    return np.einsum("ni,nj,nab->iajb", x, x, outer).reshape(60, 60) / rows


@pytest.mark.parametrize("which", ["SA", "LA"])
def test_the_null_space_of_a_softmax_head_is_counted(which):
    matrix = softmax()
    pairs = ihvp.eigsh(ihvp.Dense(matrix), 14, which)
    assert np.all(pairs.converged)
    assert false_claims(matrix, pairs, which, TOLERANCE["float64"]) == 0
    if which == "SA":  # one vector of shifts for each of the 12 features
        assert np.count_nonzero(np.abs(pairs.values) < 1e-9) == 12


@pytest.mark.parametrize("which", ["SA", "LA"])
def test_finite_differences_of_a_network_are_counted_to_their_noise(which):
    network = TanhMLP(6, 4, 3, 1)
    operator = ihvp.Hessian(ihvp.Objective(params=network.params, data=network.batch, grad=network.gradient))
    pairs = ihvp.eigsh(operator, 5, which)
    expected = wanted(network.hessian(), 5, which)
    assert np.all(pairs.converged)
    assert_allclose(pairs.values, expected, atol=1e-6 * np.abs(expected).max() + 1e-7)


def test_a_direction_of_the_opg_that_every_truncation_drops_is_found():
    # A row of it in each block of 32, and each time 32 stronger directions are kept.
    rows = np.zeros((32 * 11, 4000))
    rows[np.arange(32), np.arange(32)] = np.linspace(1.2, 1.0, 32)
    rows[np.arange(32, len(rows), 32), 3000] = 0.9
    objective = ihvp.Objective(params=np.zeros(4000), data=rows, grad=lambda w, x: x.mean(axis=0))
    pairs = ihvp.eigsh(ihvp.OPG(objective), 3)
    expected = np.array([0.81 * 10, 1.2**2, np.linspace(1.2, 1.0, 32)[1] ** 2]) / len(rows)
    assert np.all(pairs.converged)
    assert_allclose(pairs.values, expected, rtol=1e-8)
    assert pairs.truncation_error > 0


class SummedInHalf(ihvp.Dense):
    """Products whose sums are rounded to half precision after every term, as some processors do."""

    def __init__(self, matrix):
        super().__init__(matrix)
        self.space.__dict__["product_eps"] = 2**-10  # as of parameters in float16

    def apply(self, v):
        if v.ndim == 2:
            return np.stack([self.apply(column) for column in v.T], axis=1)
        total = np.zeros(v.shape, np.float16)
        for column, entry in zip(self.matrix.T, v, strict=True):
            total = (total + column * entry).astype(np.float16)
        return total.astype(np.float32)


@pytest.mark.parametrize("which", ["LA", "BE"])
def test_half_precision_converges_however_sums_are_rounded(which):
    matrix = symmetric(3, np.geomspace(5, 1e-3, 200), np.float16)
    pairs = ihvp.eigsh(SummedInHalf(matrix), 5, which)
    assert np.all(pairs.converged)
    assert_allclose(pairs.values, wanted(matrix, 5, which), atol=0.1)
