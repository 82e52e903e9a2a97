"""An objective on other data."""

import pytest
from numpy.testing import assert_allclose

import ihvp
from ihvp._problems import TanhMLP
from ihvp.errors import InvalidOption, NotReiterable

NETWORK = TanhMLP()


@pytest.fixture
def objective():
    return ihvp.Objective(params=NETWORK.params, data=NETWORK.batch, batch_size=4, grad=NETWORK.gradient)


def part(start, stop):
    return tuple(array[start:stop] for array in NETWORK.batch)


@pytest.mark.parametrize("rows", [slice(0, 9), slice(1, 7), slice(3, 4)])
def test_it_is_the_mean_over_the_other_data(objective, rows):
    other = objective.on(tuple(array[rows] for array in NETWORK.batch))
    assert_allclose(other.gradient(), NETWORK.flat_gradient(rows=rows), rtol=1e-13)
    assert_allclose(ihvp.Hessian(other).to_dense(), NETWORK.hessian(rows), rtol=0, atol=1e-8)


def test_the_original_keeps_its_data(objective):
    assert objective.num_examples == 9
    other = objective.on(part(0, 2))
    assert (other.num_examples, objective.num_examples) == (2, 9)
    assert_allclose(objective.gradient(), NETWORK.flat_gradient(), rtol=1e-13)


def test_it_shares_the_parameters_and_the_backend(objective):
    other = objective.on(part(0, 2))
    assert other.params is objective.params
    assert other.backend is objective.backend


def test_its_batches_are_cut_to_the_same_size(objective):
    assert [count for _, count in objective.on(part(0, 6)).batches] == [4, 2]


def test_data_that_cannot_be_iterated_twice_is_refused(objective):
    with pytest.raises(NotReiterable):
        objective.on(iter([part(0, 2)]))


@pytest.mark.parametrize("loss", [3.0, "mean"])
def test_another_loss_is_a_function(objective, loss):
    with pytest.raises(InvalidOption, match=r"loss is .*; expected a function"):
        objective.on(part(0, 6), loss=loss)
