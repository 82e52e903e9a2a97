"""The network of "Efficient computation of Hessian matrices in TensorFlow" on every backend, in one process.

8-4-4-2 softplus, P = 66, N = 1,000: the full, minibatch and per-example matrices, against numpy with the
gradient written by hand and complex steps.
"""

import functools

import numpy as np
import pytest
from numpy.testing import assert_allclose

import ihvp
from ihvp._problems import SeedNetwork
from ihvp._registry import usable_plugin
from ihvp.algebra import to_numpy
from ihvp.eigen.opg import opg_eigenpairs
from ihvp.errors import MissingCapability
from ihvp.operators.gauss_newton import GaussNewton
from ihvp.operators.opg import OPG

NETWORK = SeedNetwork()
EXACT = ("torch", "tf", "jax")
ROWS = {"full": slice(0, 1000), "minibatch": slice(300, 400), "example": slice(17, 18)}

every_backend = pytest.mark.parametrize("backend", [*EXACT, "numdiff"])
each_part = pytest.mark.parametrize("part", ROWS)


@functools.cache
def objective(backend, **options):
    """The network's loss over all examples."""
    return ihvp.Objective(**written(backend), **{"data": NETWORK.batch, "backend": backend, **options})


@functools.cache
def written(backend):
    """The loss and the parameters: the same for all objectives, so that they are compiled once."""
    plugin = usable_plugin(backend)
    dialect = plugin.dialect()
    params = dialect.parameters(NETWORK.params)
    if plugin.differentiates == "gradient":
        return {"params": params, "grad": NETWORK.gradient}
    loss, predict = (functools.partial(part, dialect.xp) for part in (NETWORK.output_loss, NETWORK.predict))
    return {"loss": loss, "params": params, "predict": predict}


def restricted(backend, part, **options):
    return objective(backend, **options).on(tuple(array[ROWS[part]] for array in NETWORK.batch))


@functools.cache
def oracle(kind, part):
    return getattr(NETWORK, kind)(ROWS[part])


def test_the_network_has_the_sizes_of_the_example():
    assert (NETWORK.size, NETWORK.rows) == (66, 1000)


@every_backend
@each_part
def test_the_hessian_is_the_oracles(backend, part):
    # Finite differences of a gradient reach ε^(2/3): 1e-8 is met by the automatic step of order 2.
    H = ihvp.Hessian(restricted(backend, part)).to_dense()
    bound = 1e-8 if backend == "numdiff" else 1e-13
    assert_allclose(to_numpy(H), oracle("hessian", part), rtol=0, atol=bound)


@every_backend
def test_the_hessian_is_indefinite_and_blind_to_what_shifts_both_logits(backend):
    # Both columns of w3 and both biases: 4 + 1 directions, in which no other eigenvalue is near 0.
    values = np.linalg.eigvalsh(to_numpy(ihvp.Hessian(restricted(backend, "full")).to_dense()))
    assert [int(np.sum(some)) for some in (values > 1e-5, np.abs(values) < 1e-8, values < -1e-5)] == [
        30,
        5,
        31,
    ]


@every_backend
@each_part
def test_the_opg_is_the_oracles(backend, part):
    G = OPG(restricted(backend, part)).to_dense()
    assert_allclose(to_numpy(G), oracle("opg", part), rtol=0, atol=1e-13)


@every_backend
def test_products_with_the_opg_are_the_oracles_over_ragged_batches(backend):
    v = np.random.default_rng(0).standard_normal((66, 2))
    G = OPG(objective(backend, batch_size=300))
    assert_allclose(G @ v, oracle("opg", "full") @ v, rtol=0, atol=1e-12)
    assert_allclose(G @ v[:, 0], oracle("opg", "full") @ v[:, 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", EXACT)
@each_part
def test_the_gauss_newton_matrix_is_the_oracles(backend, part):
    N = GaussNewton(restricted(backend, part)).to_dense()
    assert_allclose(to_numpy(N), oracle("gauss_newton", part), rtol=0, atol=1e-13)


@pytest.mark.parametrize("backend", EXACT)
def test_the_gauss_newton_matrix_of_a_convex_loss_is_semi_definite_where_the_hessian_is_not(backend):
    H = to_numpy(ihvp.Hessian(restricted(backend, "full")).to_dense())
    N = to_numpy(GaussNewton(restricted(backend, "full")).to_dense())
    assert np.linalg.eigvalsh(H)[0] < -0.1
    assert np.linalg.eigvalsh(N)[0] > -1e-14


@pytest.mark.parametrize("backend", EXACT)
def test_gauss_newton_products_of_a_summed_loss_are_the_same_over_ragged_dict_batches(backend):
    dialect = usable_plugin(backend).dialect()

    def predict(params, batch):
        return NETWORK.predict(dialect.xp, params, (batch["x"],))

    def loss(outputs, batch):
        return NETWORK.output_loss(dialect.xp, outputs, (None, batch["y"])) * outputs.shape[0]

    x, y = NETWORK.batch
    pieces = [{"x": x[rows], "y": y[rows]} for rows in (slice(0, 450), slice(450, 900), slice(900, 1000))]
    summed = ihvp.Objective(
        loss, objective(backend).params, pieces, predict=predict, reduction="sum", backend=backend
    )
    v = np.random.default_rng(1).standard_normal((66, 2))
    assert_allclose(GaussNewton(summed) @ v, oracle("gauss_newton", "full") @ v, rtol=0, atol=1e-12)
    assert_allclose(OPG(summed) @ v, oracle("opg", "full") @ v, rtol=0, atol=1e-12)


@every_backend
@pytest.mark.parametrize("batch_size", [100, 300])
def test_ten_eigenpairs_of_the_opg_are_those_of_the_dense_decomposition(backend, batch_size):
    values, vectors = np.linalg.eigh(oracle("opg", "full"))
    found = opg_eigenpairs(OPG(objective(backend, batch_size=batch_size)), 10, rank=20)
    assert np.all(found.converged)
    assert 0 < found.truncation_error < 1e-2
    assert_allclose(found.values, values[::-1][:10], rtol=1e-8)
    overlaps = np.sum(to_numpy(found.vectors) * vectors[:, ::-1][:, :10], axis=0)
    assert_allclose(to_numpy(found.vectors) * np.sign(overlaps), vectors[:, ::-1][:, :10], rtol=0, atol=1e-6)
    assert type(found.vectors) is type(objective(backend).gradient())


@pytest.mark.parametrize("backend", ["tf", "jax"])
def test_other_data_of_the_same_shape_finds_the_compiled_loss_again(backend):
    xp, traces = usable_plugin(backend).dialect().xp, []

    def loss(params, batch):
        traces.append(batch)
        return NETWORK.loss(xp, params, batch)

    one, other = (tuple(array[rows] for array in NETWORK.batch) for rows in (slice(0, 10), slice(10, 20)))
    traced = ihvp.Objective(loss, objective(backend).params, one, backend=backend)
    _ = ihvp.Hessian(traced) @ np.ones(66)
    before = len(traces)
    _ = ihvp.Hessian(traced.on(other)) @ np.ones(66)
    assert before > 0
    assert len(traces) == before


@every_backend
def test_the_low_rank_form_of_all_eigenpairs_is_the_hessian(backend):
    H = ihvp.Hessian(objective(backend))
    low_rank = ihvp.LowRank(ihvp.eigsh(H, k=66)).to_dense()
    assert_allclose(to_numpy(low_rank), oracle("hessian", "full"), rtol=0, atol=1e-8)


@every_backend
def test_the_full_rank_form_of_ten_eigenpairs_is_equation_16(backend):
    # The ten largest of the Hessian's thirty positive eigenvalues, of which the tenth becomes all the others.
    eig = ihvp.eigsh(ihvp.Hessian(objective(backend)), k=10)
    q, tail = to_numpy(eig.vectors), eig.values[-1]
    expected = q @ np.diag(eig.values) @ q.T + tail * (np.eye(66) - q @ q.T)
    full_rank = ihvp.FullRank(eig)
    assert_allclose(to_numpy(full_rank.to_dense()), expected, rtol=0, atol=1e-10)
    x = np.random.default_rng(0).standard_normal(66)
    assert_allclose(full_rank.quadratic_form(x), x @ expected @ x, rtol=0, atol=1e-10)
    solution = ihvp.solve(full_rank, x, damping=0.1)
    assert_allclose(solution.x, np.linalg.solve(expected + 0.1 * np.eye(66), x), rtol=1e-10)


def test_finite_differences_say_that_they_have_no_gauss_newton_products():
    numdiff = ihvp.Objective(
        functools.partial(NETWORK.output_loss, np),
        NETWORK.params,
        NETWORK.batch,
        predict=functools.partial(NETWORK.predict, np),
        grad=NETWORK.gradient,
        backend="numdiff",
    )
    with pytest.raises(MissingCapability, match="gauss_newton"):
        GaussNewton(numdiff)
