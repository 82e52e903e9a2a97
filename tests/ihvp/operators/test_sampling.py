"""Matrices of random batches: what they are made of, and that their mean is the operator."""

from __future__ import annotations

from collections import UserDict

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import ihvp
from ihvp.data import Batches, Examples
from ihvp.errors import DataError, InvalidOption


@pytest.fixture
def hessian(regression, rows):
    return ihvp.Hessian(ihvp.Objective(regression.loss, np.ones(3), rows, backend=regression))


def sample(operator, batch_size, seed=0, **options):
    return operator.sampler(batch_size, **options)(np.random.default_rng(seed))


def test_a_sample_is_the_mean_over_the_rows_that_the_generator_draws(hessian, rows):
    x = rows[0][np.random.default_rng(5).integers(0, 7, size=4)]
    assert_allclose(sample(hessian, 4, seed=5).to_dense(), x.T @ x / 4, rtol=1e-13)


def test_the_mean_of_many_samples_is_the_operator(hessian):
    draw, generator = hessian.sampler(2), np.random.default_rng(0)
    matrices = np.array([draw(generator).to_dense() for _ in range(4000)])
    error = matrices.std(axis=0) / np.sqrt(len(matrices))
    assert np.all(np.abs(matrices.mean(axis=0) - hessian.to_dense()) < 5 * error)


def test_all_examples_without_replacement_are_the_operator_itself(hessian):
    assert_allclose(sample(hessian, 7, replace=False).to_dense(), hessian.to_dense(), rtol=1e-13)


def test_replacement_lets_an_example_occur_twice(hessian):
    assert np.abs(sample(hessian, 7, replace=True).to_dense() - hessian.to_dense()).max() > 1e-3


def test_the_sum_of_losses_gives_the_mean_too(hessian, sum_regression, rows):
    objective = ihvp.Objective(sum_regression.loss, np.ones(3), rows, backend=sum_regression, reduction="sum")
    found = sample(ihvp.Hessian(objective), 4, seed=3)
    assert_allclose(found.to_dense(), sample(hessian, 4, seed=3).to_dense(), rtol=1e-13)


def test_shifts_multiples_and_sums_are_sampled_by_their_parts(hessian):
    base = sample(hessian, 4, seed=1).to_dense()
    prior = np.diag([1.0, 2.0, 3.0])
    assert_allclose(sample(hessian + 0.5, 4, seed=1).to_dense(), base + 0.5 * np.eye(3), rtol=1e-13)
    assert_allclose(sample(3 * hessian, 4, seed=1).to_dense(), 3 * base, rtol=1e-13)
    assert_allclose(sample(hessian + ihvp.Dense(prior), 4, seed=1).to_dense(), base + prior, rtol=1e-13)
    assert_allclose(sample(ihvp.Dense(prior) + hessian, 4, seed=1).to_dense(), base + prior, rtol=1e-13)


def test_both_terms_of_a_sum_are_sampled(hessian):
    draw, generator = (hessian - hessian).sampler(2), np.random.default_rng(0)
    matrices = np.array([draw(generator).to_dense() for _ in range(500)])
    assert np.abs(matrices).max() > 0.1
    assert np.abs(matrices.mean(axis=0)).max() < 0.2


def test_operators_without_examples_have_no_sampler(toy_gradient_function):
    alone = ihvp.Hessian(ihvp.Objective(grad=toy_gradient_function, params=np.array([1.0, 1 / 3])))
    matrix = ihvp.Dense(np.eye(2))
    for operator in (matrix, matrix + 1.0, 2 * matrix, matrix + matrix, alone):
        assert operator.sampler(1) is None


def test_a_batch_larger_than_the_data_is_refused(hessian):
    with pytest.raises(InvalidOption, match=r"batch_size is 8; expected at most 7, the number of examples"):
        hessian.sampler(8)


def test_batches_in_a_list_are_sampled_as_if_they_were_one(hessian, regression, rows):
    x, y = rows
    data = [(x[:3], y[:3]), (x[3:4], y[3:4]), (x[4:], y[4:])]
    listed = ihvp.Hessian(ihvp.Objective(regression.loss, np.ones(3), data, backend=regression))
    assert_array_equal(sample(listed, 5, seed=2).to_dense(), sample(hessian, 5, seed=2).to_dense())


def test_an_iterable_is_read_once_for_all_samples(regression, rows):
    class Loader:
        passes = 0

        def __iter__(self):
            self.passes += 1
            yield rows

    loader = Loader()
    H = ihvp.Hessian(ihvp.Objective(regression.loss, np.ones(3), loader, backend=regression))
    H.objective.verify()
    before = loader.passes
    draw, generator = H.sampler(2), np.random.default_rng(0)
    for _ in range(20):
        draw(generator).apply(np.ones(3))
    assert loader.passes == before + 1


def test_no_more_examples_than_the_objective_allows_meet_the_loss(hessian, regression, rows):
    sizes = []

    def loss(params, batch):
        sizes.append(len(batch[1]))
        return 1.0

    small = ihvp.Hessian(ihvp.Objective(loss, np.ones(3), rows, batch_size=2, backend=regression))
    found = sample(small, 5, seed=4).to_dense()
    assert max(sizes) == 2
    assert_allclose(found, sample(hessian, 5, seed=4).to_dense(), rtol=1e-13)


def test_processes_sample_their_own_share_and_add_up(regression, rows):
    class OfTwo(type(regression)):
        """One of two processes; the other has 14 examples and zeros."""

        def reduce(self, vector):
            if vector.dtype.kind == "i":
                return vector + np.array([0, 14 if vector[0] == 7 else vector[0]])
            return vector

        def place(self):
            return 0, 2

        def tell(self, error):
            pass

    backend = OfTwo()
    objective = ihvp.Objective(regression.loss, np.ones(3), rows, backend=backend, checks=False)
    H = ihvp.Hessian(objective)
    x = rows[0][np.random.default_rng(0).integers(0, 7, size=4)]
    assert_allclose(sample(H, 4).to_dense(), x.T @ x / 4 * 7 / 21, rtol=1e-13)


# The examples in memory


def test_arrays_in_memory_are_shared_not_copied():
    data = {"x": np.zeros((4, 2)), "nested": (np.ones(4), "mean")}
    examples = Examples.of(Batches(data))
    assert examples.count == 4
    assert examples.batch["x"] is data["x"]
    assert examples.batch["nested"][1] == "mean"


def test_rows_keep_the_structure_and_the_class_of_mappings():
    data = UserDict(x=np.arange(8).reshape(4, 2), tag="a", pair=[np.arange(4), np.arange(4.0)])
    rows = Examples.of(Batches(data)).rows(np.array([3, 0, 3]))
    assert isinstance(rows, UserDict)
    assert_array_equal(rows["x"], [[6, 7], [0, 1], [6, 7]])
    assert_array_equal(rows["pair"][1], [3.0, 0.0, 3.0])
    assert rows["tag"] == "a"
    assert data["x"].shape == (4, 2)


def test_arrays_that_take_no_row_numbers_are_converted_once():
    class Sliceable:
        """As tensors of TensorFlow: slices and a numpy form, but no integer arrays."""

        shape, conversions = (3,), 0

        def __getitem__(self, key):
            raise TypeError("only slices")

        def __array__(self, dtype=None, copy=None):
            type(self).conversions += 1
            return np.array([5.0, 6.0, 7.0])

    examples = Examples.of(Batches((Sliceable(),)))
    for _ in range(3):
        assert_array_equal(examples.rows(np.array([2, 1]))[0], [7.0, 6.0])
    assert Sliceable.conversions == 1


def test_examples_of_different_shapes_cannot_be_joined():
    with pytest.raises(DataError, match=r"shapes \[\(4,\), \(5,\)\]; expected one shape.*Pad"):
        Examples.of(Batches([(np.zeros((2, 4)),), (np.zeros((2, 5)),)]))


def test_batches_with_different_settings_cannot_be_joined():
    with pytest.raises(DataError, match="different values of an entry that is str"):
        Examples.of(Batches([(np.zeros(2), "a"), (np.zeros(2), "b")]))
