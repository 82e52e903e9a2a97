import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

import ihvp
from ihvp._problems import SoftmaxRegression, TanhMLP
from ihvp.errors import NonFinite, VectorError
from ihvp.operators.opg import OPG

NETWORK = TanhMLP()
SOFTMAX = SoftmaxRegression()


def summed(params, batch):
    return {key: value * len(batch[0]) for key, value in NETWORK.gradient(params, batch).items()}


def network(data=NETWORK.batch, grad=NETWORK.gradient, **options):
    return ihvp.Objective(params=NETWORK.params, data=data, grad=grad, **options)


def pieces(cuts):
    stops = [*cuts, NETWORK.rows]
    return [
        tuple(array[a:b] for array in NETWORK.batch)
        for a, b in zip([0, *stops], stops, strict=False)
        if b > a
    ]


@pytest.fixture
def vectorised(regression):
    """The regression's backend with the gradients of its examples made together; it notes their numbers."""

    class Vectorised(type(regression)):
        rows = ()

        def per_example_grads(self, loss, params, batch):
            x, y = batch
            self.rows = (*self.rows, len(y))
            return (x @ self.flatten(params) - y)[:, None] * x

    backend = Vectorised()
    backend.loss = regression.loss
    return backend


def over_rows(backend, data, w, **options):
    return ihvp.Objective(backend.loss, w, data, backend=backend, **options)


def test_a_product_is_that_of_the_mean_outer_product():
    v = np.random.default_rng(0).standard_normal((NETWORK.size, 3))
    G = OPG(network())
    assert_allclose(G @ v, NETWORK.opg() @ v, rtol=1e-13, atol=1e-14)
    assert_allclose(G @ v[:, 0], NETWORK.opg() @ v[:, 0], rtol=1e-13, atol=1e-14)


@given(cuts=st.lists(st.integers(0, 9), max_size=4).map(sorted), batch_size=st.none() | st.integers(1, 10))
def test_ragged_batches_are_weighted_by_their_examples(cuts, batch_size):
    v = np.random.default_rng(1).standard_normal(NETWORK.size)
    G = OPG(network(pieces(cuts), batch_size=batch_size))
    assert_allclose(G @ v, NETWORK.opg() @ v, rtol=1e-12, atol=1e-14)


@given(cuts=st.lists(st.integers(0, 9), max_size=4).map(sorted))
def test_a_summed_loss_has_the_same_matrix(cuts):
    v = np.random.default_rng(2).standard_normal(NETWORK.size)
    G = OPG(network(pieces(cuts), summed, reduction="sum"))
    assert_allclose(G @ v, NETWORK.opg() @ v, rtol=1e-12, atol=1e-14)
    assert_allclose(G.to_dense(), NETWORK.opg(), rtol=1e-12, atol=1e-14)


def test_batches_may_be_dicts():
    objective = ihvp.Objective(
        params=SOFTMAX.params,
        data={"x": SOFTMAX.batch[0], "y": SOFTMAX.batch[1]},
        batch_size=3,
        grad=lambda params, batch: SOFTMAX.gradient(params, (batch["x"], batch["y"])),
    )
    assert_allclose(OPG(objective).to_dense(), SOFTMAX.opg(), rtol=1e-13, atol=1e-15)


def test_it_is_not_the_outer_product_of_the_mean_gradient():
    gradient = NETWORK.flat_gradient()
    difference = OPG(network()).to_dense() - np.outer(gradient, gradient)
    assert np.linalg.norm(difference, 2) > 0.5 * np.linalg.norm(NETWORK.opg(), 2)


def test_its_rank_is_the_number_of_examples():
    values = np.linalg.eigvalsh(OPG(network()).to_dense())
    assert NETWORK.rows < NETWORK.size
    assert np.all(values[-NETWORK.rows :] > 1e-6 * values[-1])
    assert np.all(np.abs(values[: -NETWORK.rows]) < 1e-14 * values[-1])


def test_gradients_made_together_are_used_and_a_bounded_number_at_a_time(vectorised, rows, rng, monkeypatch):
    monkeypatch.setattr("ihvp.objective.example_gradients._CHUNK_NUMBERS", 2 * 3 + 1)
    x, y = rows
    w, v = rng.normal(size=3), rng.normal(size=3)
    J = (x @ w - y)[:, None] * x
    assert_allclose(OPG(over_rows(vectorised, rows, w)) @ v, J.T @ (J @ v) / 7, rtol=1e-13)
    assert vectorised.rows == (2, 2, 2, 1)


def test_without_that_capability_a_product_takes_one_gradient_an_example(regression, rows, rng):
    G = OPG(over_rows(regression, rows, rng.normal(size=3)))
    _ = G @ rng.normal(size=3)
    regression.gradients = 0
    _ = G @ rng.normal(size=(3, 5))
    assert regression.gradients == 7


def test_the_whole_matrix_takes_one_pass(vectorised, rng):
    x, y, w = rng.normal(size=(7, 150)), rng.normal(size=7), rng.normal(size=150)
    J = (x @ w - y)[:, None] * x
    assert_allclose(OPG(over_rows(vectorised, (x, y), w)).to_dense(), J.T @ J / 7, rtol=1e-12, atol=1e-12)
    assert vectorised.rows == (7,)


def test_weights_changed_in_place_count_at_the_next_product(regression, rows, rng):
    x, y = rows
    w, v = rng.normal(size=3), rng.normal(size=3)
    G = OPG(over_rows(regression, rows, w))
    _ = G @ v
    w *= 2
    J = (x @ w - y)[:, None] * x
    assert_allclose(G @ v, J.T @ (J @ v) / 7, rtol=1e-13)


def test_single_precision_stays_single():
    params = {key: value.astype(np.float32) for key, value in NETWORK.params.items()}
    batch = tuple(array.astype(np.float32) for array in NETWORK.batch)
    G = OPG(ihvp.Objective(params=params, data=batch, grad=NETWORK.gradient))
    v = np.random.default_rng(3).standard_normal(NETWORK.size).astype(np.float32)
    assert (G @ v).dtype == np.float32
    assert_allclose(G @ v, NETWORK.opg() @ v, rtol=1e-4, atol=1e-5)


def test_a_gradient_that_is_not_finite_is_refused_with_its_batch(vectorised, rows, rng):
    x, y = rows
    spoilt = y.copy()
    spoilt[5] = np.nan
    G = OPG(over_rows(vectorised, (x, spoilt), rng.normal(size=3), batch_size=2))
    with pytest.raises(NonFinite, match=r"OPG is not finite .* on batch 2") as caught:
        _ = G @ rng.normal(size=3)
    assert caught.value.batch == 2


def test_a_vector_that_is_not_finite_is_refused():
    with pytest.raises(VectorError, match="NaN"):
        _ = OPG(network()) @ np.full(NETWORK.size, np.nan)


@pytest.mark.parametrize("rows", [slice(0, 9), slice(2, 6), slice(8, 9)])
def test_it_can_be_had_on_other_data(rows):
    objective = network()
    part = tuple(array[rows] for array in NETWORK.batch)
    assert_allclose(OPG(objective.on(part)).to_dense(), NETWORK.opg(rows), rtol=1e-13, atol=1e-15)
