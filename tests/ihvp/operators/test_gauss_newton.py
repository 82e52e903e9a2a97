import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

import ihvp
from ihvp._problems import TanhMLP
from ihvp.errors import InvalidOption, MissingCapability
from ihvp.operators.gauss_newton import GaussNewton

NETWORK = TanhMLP()


class NetworkBackend:
    """Products with the network's matrix over the rows of the batch, formed by the problem itself.

    It takes the problem's own functions, and counts the calls that pass other ones.
    """

    device = "cpu"

    def __init__(self, factor=lambda rows: 1):
        self.factor = factor

    def flatten(self, params):
        return NETWORK.flat(params)

    def unflatten(self, vector, like):
        return NETWORK.structured(vector)

    def grad(self, loss, params, batch):
        return NETWORK.flat(NETWORK.gradient(params, batch)) * self.factor(len(batch[0]))

    def hvp(self, loss, params, batch, v):
        raise NotImplementedError

    def gnvp(self, predict, loss, params, batch, v):
        assert predict is model
        assert loss is cross_entropy
        x, targets = batch
        rows = [int(np.flatnonzero((NETWORK.batch[0] == row).all(axis=1))[0]) for row in x]
        examples = [NETWORK.gauss_newton(slice(n, n + 1)) for n in rows]
        return np.mean(examples, axis=0) @ v * self.factor(len(targets))


def model(params, batch):
    return NETWORK.predict(np, params, batch)


def cross_entropy(outputs, batch):
    return NETWORK.output_loss(np, outputs, batch)


def network(data=NETWORK.batch, backend=None, **options):
    options = {"predict": model, "backend": backend or NetworkBackend(), **options}
    return ihvp.Objective(cross_entropy, NETWORK.params, data, **options)


def test_it_is_the_gauss_newton_matrix():
    assert_allclose(GaussNewton(network()).to_dense(), NETWORK.gauss_newton(), rtol=1e-12, atol=1e-15)


@given(batch_size=st.integers(1, 10))
def test_ragged_batches_are_weighted_by_their_examples(batch_size):
    v = np.random.default_rng(0).standard_normal((NETWORK.size, 2))
    N = GaussNewton(network(batch_size=batch_size))
    assert_allclose(N @ v, NETWORK.gauss_newton() @ v, rtol=1e-11, atol=1e-14)


@given(batch_size=st.integers(1, 10))
def test_a_summed_loss_has_the_same_matrix(batch_size):
    v = np.random.default_rng(1).standard_normal(NETWORK.size)
    N = GaussNewton(
        network(backend=NetworkBackend(lambda rows: rows), batch_size=batch_size, reduction="sum")
    )
    assert_allclose(N @ v, NETWORK.gauss_newton() @ v, rtol=1e-11, atol=1e-14)


def test_it_can_be_had_on_one_example():
    example = tuple(array[4:5] for array in NETWORK.batch)
    found = GaussNewton(network().on(example)).to_dense()
    assert_allclose(found, NETWORK.gauss_newton(slice(4, 5)), rtol=1e-12, atol=1e-15)


def test_an_objective_without_predict_is_refused_and_told_how_to_pass_it():
    with pytest.raises(InvalidOption, match=r"predict is None; expected .*Objective\(.*predict=…\)"):
        GaussNewton(network(predict=None))


def test_a_backend_without_such_products_is_named():
    objective = ihvp.Objective(
        cross_entropy, NETWORK.params, NETWORK.batch, predict=model, grad=NETWORK.gradient
    )
    with pytest.raises(
        MissingCapability, match=r"'NumdiffBackend' does not implement 'gauss_newton'.*Hessian"
    ):
        GaussNewton(objective)
