import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.decomposition import IncrementalPCA

import ihvp
from ihvp._problems import SeedNetwork, TanhMLP
from ihvp.eigen.opg import opg_eigenpairs
from ihvp.errors import InvalidOption
from ihvp.operators.opg import OPG

NETWORK = SeedNetwork()
NETWORK.batch = tuple(array[:150] for array in NETWORK.batch)
SMALL = TanhMLP()


def opg(problem=NETWORK, dtype=np.float64, **options):
    params = {key: value.astype(dtype) for key, value in problem.params.items()}
    batch = tuple(array.astype(dtype) for array in problem.batch)
    return OPG(ihvp.Objective(params=params, data=batch, grad=problem.gradient, **options))


@pytest.fixture(scope="module")
def dense():
    """The seed network's OPG and its eigenpairs, the largest first."""
    matrix = NETWORK.opg()
    values, vectors = np.linalg.eigh(matrix)
    return matrix, values[::-1], vectors[:, ::-1]


@pytest.mark.parametrize("batch_size", [1, 10, 64, None])
@pytest.mark.parametrize("rank", [None, 10, 20])
def test_ten_pairs_are_those_of_the_dense_decomposition(dense, batch_size, rank):
    _, values, vectors = dense
    found = opg_eigenpairs(opg(batch_size=batch_size), 10, rank=rank)
    assert_allclose(found.values, values[:10], rtol=1e-8)
    assert_allclose(np.abs(np.sum(found.vectors * vectors[:, :10], axis=0)), 1, atol=1e-6)
    signs = np.sign(np.sum(found.vectors * vectors[:, :10], axis=0))
    assert_allclose(found.vectors * signs, vectors[:, :10], atol=1e-6)
    assert np.all(found.converged)


@pytest.mark.parametrize("rank", [10, 20, 66])
def test_the_truncation_error_bounds_what_one_pass_misses(dense, rank):
    _, values, _ = dense
    found = opg_eigenpairs(opg(batch_size=40), 10, rank=rank, max_passes=1)
    missed = values[:10] - found.values
    assert np.all(missed >= -1e-14)
    assert np.all(missed <= found.truncation_error + 1e-14)
    assert (found.truncation_error < 1e-25) == (rank == 66)


def test_a_spectrum_that_fits_takes_one_pass_and_one_to_check():
    found = opg_eigenpairs(opg(), 10)
    assert found.matvecs == 10
    assert found.truncation_error < 1e-25
    assert found.residuals.max() < 1e-13


def test_the_residuals_are_those_of_the_returned_pairs(dense):
    matrix, _, _ = dense
    found = opg_eigenpairs(opg(), 10, rank=10, max_passes=3)
    true = np.linalg.norm(matrix @ found.vectors - found.vectors * found.values, axis=0)
    assert_allclose(found.residuals, true, rtol=1e-6, atol=1e-15)


def test_pairs_that_have_not_converged_are_marked():
    found = opg_eigenpairs(opg(), 10, rank=10, tol=1e-10, max_passes=3)
    assert not np.all(found.converged)
    assert np.array_equal(found.converged, found.residuals <= 1e-10 * found.values[0])


def test_it_is_not_the_decomposition_of_centred_gradients(dense):
    _, values, _ = dense
    J = np.stack([NETWORK.flat_gradient(rows=slice(n, n + 1)) for n in range(NETWORK.rows)])
    centred = IncrementalPCA(n_components=10, batch_size=40).fit(J).singular_values_ ** 2 / len(J)
    assert np.max(np.abs(centred / values[:10] - 1)) > 0.1
    assert_allclose(opg_eigenpairs(opg(), 10).values, values[:10], rtol=1e-8)


@pytest.mark.parametrize("k", [9, 20, SMALL.size])
def test_fewer_examples_than_pairs_leave_zero_eigenvalues(k):
    found = opg_eigenpairs(opg(SMALL), k)
    assert_allclose(found.values, np.linalg.eigvalsh(SMALL.opg())[::-1][:k], atol=1e-14)
    assert_allclose(found.vectors.T @ found.vectors, np.eye(k), atol=1e-13)
    assert np.all(found.converged)


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float32, 1e-4), (np.float16, 2e-2)])
def test_low_precision_reaches_its_own_tolerance(dense, dtype, rtol):
    _, values, _ = dense
    found = opg_eigenpairs(opg(dtype=dtype), 3)
    assert found.vectors.dtype == np.float32
    assert_allclose(found.values, values[:3], rtol=rtol)
    assert np.all(found.converged)


def test_a_summed_loss_has_the_same_pairs(dense):
    _, values, _ = dense

    def gradient(params, batch):
        return {key: value * len(batch[0]) for key, value in NETWORK.gradient(params, batch).items()}

    summed = ihvp.Objective(
        params=NETWORK.params, data=NETWORK.batch, grad=gradient, batch_size=40, reduction="sum"
    )
    assert_allclose(opg_eigenpairs(OPG(summed), 10).values, values[:10], rtol=1e-8)


@pytest.mark.parametrize("k", [0, -1, 67, 2.5])
def test_a_number_of_pairs_out_of_range_is_refused(k):
    with pytest.raises(InvalidOption, match="from 1 to P = 66"):
        opg_eigenpairs(opg(), k)


@pytest.mark.parametrize(
    ("option", "expected"), [({"rank": 9}, "at least k = 10"), ({"tol": 0.0}, "between 0 and 1")]
)
def test_options_out_of_range_are_refused(option, expected):
    with pytest.raises(InvalidOption, match=expected):
        opg_eigenpairs(opg(), 10, **option)
