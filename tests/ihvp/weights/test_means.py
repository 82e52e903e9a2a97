"""Values, gradients, products and eigenpairs of weighted means, beside dense algebra."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import ihvp
from ihvp.errors import WeightError

V = np.array([0.3, -1.0, 2.0, 0.5])


def test_the_gradient(objective, problem):
    assert_allclose(objective.gradient(), problem.gradient, rtol=1e-12)


def test_the_value(objective, problem, loss):
    expected = problem.shares @ loss.terms(problem.omega, problem.data)[0]
    assert objective.value() == pytest.approx(expected, rel=1e-12)


def test_products_with_the_hessian(objective, problem):
    H = ihvp.Hessian(objective)
    assert_allclose(H @ V, problem.hessian() @ V, rtol=1e-11)
    assert_allclose(H.to_dense(), problem.hessian(), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("memory_budget", [0, None])
def test_products_of_kept_batches(problem, form, loss, memory_budget):
    H = ihvp.Hessian(problem.objective(form, loss), memory_budget)
    for _ in range(2):
        assert_allclose(H @ V, problem.hessian() @ V, rtol=1e-11)


def test_the_outer_product_of_gradients(objective, problem):
    G = ihvp.OPG(objective)
    assert_allclose(G.to_dense(), problem.opg, rtol=1e-11, atol=1e-14)
    assert_allclose(G @ V, problem.opg @ V, rtol=1e-11)


def test_eigenpairs_of_the_outer_product(objective, problem):
    found = ihvp.eigsh(ihvp.OPG(objective), k=4)
    assert_allclose(found.values, np.linalg.eigvalsh(problem.opg)[::-1], rtol=1e-10)
    assert_allclose((found.vectors * found.values) @ found.vectors.T, problem.opg, rtol=1e-9, atol=1e-12)


def test_eigenpairs_of_more_examples_than_are_kept(problem, form, loss):
    """The streaming decomposition truncates, and products refine it."""
    from ihvp.eigen.opg import opg_eigenpairs

    found = opg_eigenpairs(ihvp.OPG(problem.objective(form, loss)), 1, rank=1)
    assert_allclose(found.values, np.linalg.eigvalsh(problem.opg)[-1:], rtol=1e-10)


def test_eigenpairs_of_the_hessian(objective, problem):
    found = ihvp.eigsh(ihvp.Hessian(objective), k=2)
    assert_allclose(found.values, np.linalg.eigvalsh(problem.hessian())[::-1][:2], rtol=1e-9)


def test_rows_are_gradients_by_their_weights_and_average_to_the_gradient(objective, problem):
    rows = objective.per_example_gradients()
    expected = len(problem.shares) * problem.shares[:, None] * problem.slopes(problem.data)
    assert_allclose(rows, expected, rtol=1e-12)
    assert_allclose(rows.mean(axis=0), objective.gradient(), rtol=1e-11)


def test_rows_without_weight_are_exactly_zero(objective, problem):
    rows = objective.per_example_gradients()
    assert_array_equal(rows[problem.data[2] == 0], 0)


def test_rows_in_chunks(objective, monkeypatch):
    expected = objective.per_example_gradients()
    monkeypatch.setattr("ihvp.objective.example_gradients._CHUNK_NUMBERS", 8)
    chunks = list(objective.per_example_gradient_chunks())
    assert max(len(chunk) for chunk in chunks) <= 2
    assert_array_equal(np.concatenate(chunks), expected)


def test_rows_by_the_root_of_their_weights_make_the_outer_product(objective, problem):
    roots = np.concatenate(list(objective.per_example_gradient_chunks(power=0.5)))
    assert_allclose(roots.T @ roots / len(roots), problem.opg, rtol=1e-11, atol=1e-14)


def test_rows_of_other_data_weigh_among_themselves(problem, loss, backend):
    rows = problem.objective("whole", loss, backend).per_example_gradients(problem.test)
    w = problem.test[2]
    assert_allclose(rows, (5 * w / w.sum())[:, None] * problem.slopes(problem.test), rtol=1e-12)


def test_gauss_newton_and_other_means_over_examples(problem, form, loss):
    class SecondMoment(ihvp.operators.CurvatureOperator):
        def batch_product(self, batch, v):
            return batch[0].T @ (batch[2] * (batch[0] @ v)) / loss.divisor(batch)

    x = problem.data[0]
    found = SecondMoment(problem.objective(form, loss)) @ V
    assert_allclose(found, (x.T * problem.shares) @ (x @ V), rtol=1e-12)


@pytest.mark.parametrize("make", [ihvp.Hessian, ihvp.OPG])
def test_the_mean_of_many_samples_is_the_operator(problem, form, loss, make):
    operator = make(problem.objective(form, loss))
    draw, generator = operator.sampler(5), np.random.default_rng(0)
    with np.errstate(all="raise"):
        matrices = np.array([draw(generator).to_dense() for _ in range(400)])
    error = matrices.std(axis=0) / np.sqrt(len(matrices))
    assert np.all(np.abs(matrices.mean(axis=0) - operator.to_dense()) < 5 * error)


def test_all_examples_without_replacement_are_the_operator_itself(problem, form, loss):
    draw = ihvp.Hessian(problem.objective(form, loss)).sampler(23, replace=False)
    found = draw(np.random.default_rng(0)).to_dense()
    assert_allclose(found, problem.hessian(), rtol=1e-11, atol=1e-13)


def test_batches_that_are_lists_of_arrays_are_sampled_as_others(problem):
    def matrix(batches):
        operator = ihvp.Hessian(ihvp.Objective(**options, data=batches, batch_size=3))
        return operator.sampler(7)(np.random.default_rng(0)).to_dense()

    known, (batches, _) = problem.objective(), problem.batched("list")
    options = {
        "loss": known.loss,
        "params": problem.omega,
        "weights": lambda b: b[2],
        "backend": known.backend,
    }
    assert_array_equal(matrix([list(batch) for batch in batches]), matrix(batches))


def test_a_sample_in_which_nothing_weighs_is_zero(problem):
    class LastRows(np.random.Generator):
        """Draws the examples 8 and 9, which weigh nothing."""

        def __init__(self):
            super().__init__(np.random.PCG64(0))

        def integers(self, low, high, size):
            return np.array([8, 9])[:size]

    draw = ihvp.Hessian(problem.objective()).sampler(2)
    with np.errstate(all="raise"):
        assert_array_equal(draw(LastRows()).to_dense(), np.zeros((4, 4)))


@pytest.mark.parametrize("form", ["whole", "cut list"])
def test_lissa_finds_the_solution(problem, form, loss):
    H = ihvp.Hessian(problem.objective(form, loss))
    solver = ihvp.LiSSA(batch_size=5, recursion_depth=1000, num_samples=2, rtol=None, scale=20.0)
    found = ihvp.solve(H, V, damping=3.0, solver=solver).x
    exact = np.linalg.solve(problem.hessian() + 3 * np.eye(4), V)
    assert np.linalg.norm(found - exact) < 0.05 * np.linalg.norm(exact)


@pytest.mark.parametrize("scale", [1e-200, 1e-9, 1e12, 1e200])
def test_the_unit_of_weights_does_not_matter(problem, form, scale):
    objective = problem.objective(form, weights=lambda batch: scale * batch[2])
    assert_allclose(objective.gradient(), problem.gradient, rtol=1e-12)
    assert_allclose(ihvp.OPG(objective).to_dense(), problem.opg, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("first", [1e-300, 1e-30, 1e30, 1e300])
def test_a_first_batch_that_weighs_far_less_or_more_than_the_others(problem, first):
    parts = problem.rows(slice(1, 8), slice(10, 23))
    parts[0][2][:] = first
    w = np.concatenate([part[2] for part in parts])
    x, y = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    expected = (w / w.max() / (w / w.max()).sum()) @ problem.slopes((x, y, w))
    found = problem.objective().on(parts).gradient()
    assert_allclose(found, expected, rtol=1e-12, atol=1e-15)


def test_single_precision_keeps_its_dtype(problem):
    data = tuple(array.astype(np.float32) for array in problem.data)
    known = problem.objective()
    single = ihvp.Objective(
        known.loss, problem.omega.astype(np.float32), data, 4, weights=lambda b: b[2], backend=known.backend
    )
    for found in (single.gradient(), single.per_example_gradients(), ihvp.Hessian(single).to_dense()):
        assert found.dtype == np.float32
    assert_allclose(single.gradient(), problem.gradient, rtol=1e-4)


def test_other_weights_at_another_pass_are_refused(problem):
    scale = [1.0]
    objective = problem.objective("cut", weights=lambda batch: scale[0] * batch[2])
    objective.gradient()
    scale[0] = 2.0
    with pytest.raises(WeightError, match=r"add up to .* at first and to .* now; .* always the same"):
        objective.gradient()


def test_weights_of_one_are_no_weights(problem, form, backend):
    data, batch_size = problem.batched(form)
    ones = [(x, y, np.ones_like(y)) for x, y, _ in (data if not isinstance(data, tuple) else [data])]
    data = ones if not isinstance(data, tuple) else ones[0]
    loss = problem.objective().loss
    weighted, plain = (
        ihvp.Objective(loss, problem.omega, data, batch_size, backend=backend, weights=weights)
        for weights in (lambda batch: batch[2], None)
    )
    assert_allclose(weighted.gradient(), plain.gradient(), rtol=1e-13)
    assert_allclose(weighted.per_example_gradients(), plain.per_example_gradients(), rtol=1e-13)
    assert_allclose(ihvp.OPG(weighted) @ V, ihvp.OPG(plain) @ V, rtol=1e-13)
    assert_allclose(ihvp.Hessian(weighted) @ V, ihvp.Hessian(plain) @ V, rtol=1e-13)


@given(
    weights=st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1e6)), min_size=23, max_size=23).filter(
        lambda weights: sum(weights) > 0
    ),
    cuts=st.sets(st.integers(1, 22)),
    batch_size=st.one_of(st.none(), st.integers(1, 23)),
)
@settings(max_examples=60)
def test_no_partition_of_the_data_changes_the_gradient(weights, cuts, batch_size):
    rng = np.random.default_rng(3)
    x, y, w = rng.normal(size=(23, 3)), rng.normal(size=23), np.array(weights)
    omega = rng.normal(size=3)

    def gradient(omega, batch):
        x, y, w = batch
        return x.T @ (w * (x @ omega - y)) / w.sum()

    edges = [0, *sorted(cuts), 23]
    batches = [tuple(array[i:j] for array in (x, y, w)) for i, j in itertools.pairwise(edges)]
    found = ihvp.Objective(
        params=omega, data=batches, batch_size=batch_size, grad=gradient, weights=lambda batch: batch[2]
    )
    sizes = (w / w.sum()) @ np.linalg.norm(x * (x @ omega - y)[:, None], axis=1)
    assert np.linalg.norm(found.gradient() - gradient(omega, (x, y, w))) <= 1e-12 * sizes
    assert_allclose(
        found.per_example_gradients().mean(axis=0), found.gradient(), rtol=1e-9, atol=1e-12 * sizes
    )
