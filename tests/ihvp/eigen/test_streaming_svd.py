import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from sklearn.decomposition import IncrementalPCA

from ihvp.eigen.streaming_svd import streaming_svd
from ihvp.errors import EmptyData, InvalidOption

EPS = np.finfo(np.float64).eps


def matrix(rows=60, columns=40, decay=0.7, mean=0.0):
    rng = np.random.default_rng(0)
    return (rng.standard_normal((rows, columns)) + mean) * decay ** np.arange(columns)


def cut(J, size):
    return [J[start : start + size] for start in range(0, len(J), size)]


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=20))
def test_it_is_exact_for_any_chunks_when_no_value_is_truncated(sizes):
    J = matrix(sum(sizes), 12)
    svd = streaming_svd(np.split(J, np.cumsum(sizes)[:-1]), rank=12)
    _, values, right = np.linalg.svd(J, full_matrices=False)
    assert svd.rows == len(J)
    assert_allclose(svd.values, values, atol=1e-13 * values[0])
    assert_allclose(svd.vectors * svd.values @ svd.vectors.T, right.T * values @ right, atol=1e-12)
    assert svd.discarded <= 1e-26 * values[0] ** 2


def test_a_matrix_of_low_rank_is_decomposed_exactly_in_one_pass():
    rng = np.random.default_rng(1)
    J = rng.standard_normal((200, 5)) @ rng.standard_normal((5, 50))
    svd = streaming_svd(cut(J, 7), rank=5)
    values = np.linalg.svd(J, compute_uv=False)
    assert_allclose(svd.values, values[:5], rtol=1e-13)
    assert svd.discarded <= 1e-26 * values[0] ** 2
    assert_allclose(
        (svd.vectors * svd.values**2) @ svd.vectors.T, J.T @ J, rtol=0, atol=100 * EPS * values[0] ** 2
    )


@pytest.mark.parametrize("size", [1, 7, 50, 300])
@pytest.mark.parametrize("decay", [0.7, 0.95, 1.0])
def test_what_was_discarded_is_the_trace_of_the_error_and_bounds_every_value(size, decay):
    J = matrix(300, 40, decay)
    svd = streaming_svd(cut(J, size), rank=15)
    error = J.T @ J - (svd.vectors * svd.values**2) @ svd.vectors.T
    rounding = 100 * EPS * svd.values[0] ** 2
    assert_allclose(np.trace(error), svd.discarded, rtol=1e-10, atol=rounding)
    assert svd.discarded > 10 * rounding
    assert np.linalg.eigvalsh(error)[0] >= -rounding
    true = np.linalg.svd(J, compute_uv=False)[:15] ** 2
    assert np.all(true - svd.values**2 <= svd.discarded)
    assert np.all(svd.values**2 <= true * (1 + 1e-12))


@pytest.mark.parametrize("size", [1, 7, 50, 300])
def test_the_sizes_of_the_chunks_do_not_matter(size):
    J = matrix(300, 40, 0.95)
    one, other = streaming_svd([J], rank=15), streaming_svd(cut(J, size), rank=15)
    assert_allclose(other.values, one.values, rtol=1e-12)
    assert_allclose(other.discarded, one.discarded, rtol=1e-10)


def test_rows_are_not_centred_which_incremental_pca_does():
    J = matrix(200, 20, 0.8, mean=3.0)
    truth = np.linalg.svd(J, compute_uv=False)[:5]
    assert_allclose(streaming_svd(cut(J, 50), rank=20).values[:5], truth, rtol=1e-12)
    centred = IncrementalPCA(n_components=5, batch_size=50).fit(J).singular_values_
    assert centred[0] < 0.5 * truth[0]


def test_the_vectors_stay_orthonormal_over_many_blocks():
    svd = streaming_svd(cut(matrix(3000, 30, 0.9), 1), rank=10)
    assert_allclose(svd.vectors.T @ svd.vectors, np.eye(10), atol=1e-13)


def test_more_rows_than_columns_and_a_rank_above_both():
    svd = streaming_svd([matrix(50, 3)], rank=10)
    assert svd.vectors.shape == (3, 3)
    assert_allclose(svd.values, np.linalg.svd(matrix(50, 3), compute_uv=False), rtol=1e-13)


def test_zero_rows_are_of_no_consequence():
    svd = streaming_svd([np.zeros((5, 8)), matrix(4, 8), np.zeros((5, 8))], rank=4)
    assert_allclose(svd.values, np.linalg.svd(matrix(4, 8), compute_uv=False), rtol=1e-12)
    assert svd.rows == 14


def test_the_precision_is_that_of_the_rows():
    J = matrix(40, 10).astype(np.float32)
    svd = streaming_svd(cut(J, 8), rank=10)
    assert svd.vectors.dtype == np.float32
    assert_allclose(svd.values, np.linalg.svd(J.astype(np.float64), compute_uv=False), atol=1e-5)


def test_no_rows_are_refused():
    with pytest.raises(EmptyData, match="no row"):
        streaming_svd([], rank=2)


@pytest.mark.parametrize("rank", [0, -1, 2.5])
def test_a_rank_below_one_is_refused(rank):
    with pytest.raises(InvalidOption, match=f"rank is {rank}"):
        streaming_svd([np.eye(3)], rank=rank)
