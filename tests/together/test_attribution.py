"""Methods of attribution and indices on every framework, against dense formulas in numpy."""

from __future__ import annotations

import functools
import pickle

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import ihvp
from ihvp._problems import TanhMLP
from ihvp._registry import usable_plugin
from ihvp.errors import DataError, InvalidOption, MissingFile, ParameterError

FRAMEWORKS = ("torch", "tf", "jax")
each_framework = pytest.mark.parametrize("backend", FRAMEWORKS)
NETWORK = TanhMLP(rows=12)
N, P, DIM = 12, NETWORK.size, 10
TEST = tuple(array[:3] for array in NETWORK.batch)
RATES = (0.1, 0.3)


@functools.cache
def written(backend):
    """The loss, the parameters and the model: the same for all objectives, so that they are compiled once."""
    dialect = usable_plugin(backend).dialect()
    loss, predict = (functools.partial(part, dialect.xp) for part in (NETWORK.output_loss, NETWORK.predict))
    return loss, dialect.parameters(NETWORK.params), predict


@functools.cache
def objective(backend, **options):
    loss, params, predict = written(backend)
    return ihvp.Objective(loss, params, NETWORK.batch, predict=predict, backend=backend, **options)


def other_params(seed):
    rng = np.random.default_rng(seed)
    return {name: array + 0.2 * rng.standard_normal(array.shape) for name, array in NETWORK.params.items()}


def margin(xp, outputs, batch):
    """``log p/(1 − p)`` of the label."""
    right = xp.sum(outputs * batch[1], axis=1)
    others = xp.log(xp.sum(xp.exp(outputs) * (1 - batch[1]), axis=1))
    return xp.mean(right - others)


def probabilities(params, rows=slice(None)):
    outputs = NETWORK.predict(np, params, NETWORK.batch)[rows]
    return np.sum(np.exp(outputs) * NETWORK.batch[1][rows], axis=1) / np.exp(outputs).sum(axis=1)


def gradients(params=None, pull=None):
    """The gradients of single losses; or of single outputs, pulled back by ``pull(outputs, targets)``."""
    params, found = NETWORK.params if params is None else params, []
    for n in range(N):
        batch = tuple(array[n : n + 1] for array in NETWORK.batch)
        outer = (pull or NETWORK.output_gradient)(NETWORK.predict(np, params, batch), batch[1])
        found.append(NETWORK.flat(NETWORK.pulled_back(params, batch, outer)))
    return np.array(found)


def pull_margin(outputs, targets):
    others = np.exp(outputs) * (1 - targets)
    return targets - others / others.sum(axis=1, keepdims=True)


def relative(found, expected):
    return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()


@each_framework
def test_products_and_cosines(backend):
    G = gradients()
    assert relative(ihvp.GradientDot(objective(backend)).scores(TEST), G[:3] @ G.T / N) <= 1e-8
    lengths = np.linalg.norm(G, axis=1)
    method = ihvp.GradientCosine(objective(backend, batch_size=5))
    assert relative(method.scores(TEST), G[:3] @ G.T / np.outer(lengths[:3], lengths)) <= 1e-8


@each_framework
@pytest.mark.parametrize("relative_to", ["loss", "parameters"])
def test_relative_influence(backend, relative_to):
    G, inverse = gradients(), np.linalg.inv(NETWORK.gauss_newton() + 0.1 * np.eye(P))
    own = np.einsum("ip,pq,iq->i", G, inverse if relative_to == "loss" else inverse @ inverse, G)
    target = objective(backend)
    options = {"curvature": ihvp.GaussNewton(target), "relative_to": relative_to}
    method = ihvp.RelatIF(target, 0.1, ihvp.Direct(), **options)
    method._models[0][1]._optimum_checked = True
    assert relative(method.scores(TEST), G[:3] @ inverse @ G.T / N / own**0.5) <= 1e-8


def traced():
    found = [gradients(other_params(seed)) for seed in (0, 1)]
    return sum(rate * G[:3] @ G.T for rate, G in zip(RATES, found, strict=True)) / N


@each_framework
def test_the_course_of_training(backend, tmp_path):
    target, make = objective(backend), usable_plugin(backend).dialect().parameters
    structures = [make(other_params(seed)) for seed in (0, 1)]
    files = [tmp_path / f"{seed}.npz" for seed in (0, 1)]
    for seed, file in enumerate(files):
        np.savez(file, **other_params(seed))
    for checkpoints in (structures, files, [other_params(seed) for seed in (0, 1)]):
        method = ihvp.TracIn(target, checkpoints, RATES)
        assert relative(method.scores(TEST), traced()) <= 1e-8
    G = [gradients(other_params(seed)) for seed in (0, 1)]
    own = sum(rate * np.sum(rows**2, axis=1) for rate, rows in zip(RATES, G, strict=True)) / N
    assert relative(method.self_influence(), own) <= 1e-8
    assert_array_equal(method.top_k(TEST, 4).indices, method.scores(TEST).top_k(4).indices)
    kept = method.scores(TEST, out=tmp_path / "scores")
    assert_array_equal(kept, method.scores(TEST))


@each_framework
def test_checkpoints_that_are_none(backend, tmp_path):
    target = objective(backend)
    np.savez(tmp_path / "other.npz", **{**NETWORK.params, "b2": np.zeros(5)})
    np.savez(tmp_path / "few.npz", b1=NETWORK.params["b1"])
    np.savez(tmp_path / "objects.npz", b1=np.array([print], dtype=object))
    (tmp_path / "pickled.pkl").write_bytes(pickle.dumps(NETWORK.params))
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    for name, error, message in (
        ("other.npz", ParameterError, "b2 .*expected \\(3,\\)"),
        ("few.npz", ParameterError, "another architecture"),
        ("objects.npz", DataError, "pickled code is never run"),
        ("pickled.pkl", DataError, "ends in .pkl"),
        ("torn.safetensors", DataError, "cannot be read"),
        ("nowhere.npz", MissingFile, "nowhere"),
    ):
        with pytest.raises(error, match=message):
            ihvp.TracIn(target, [tmp_path / name])
    for checkpoints in ([], None, "few.npz"):
        with pytest.raises(InvalidOption, match="checkpoints"):
            ihvp.TracIn(target, checkpoints)
    for rates in ([0.1, 0.2], -1.0, np.nan, "fast"):
        with pytest.raises(InvalidOption, match="learning_rates"):
            ihvp.TracIn(target, [NETWORK.params], rates)


@each_framework
def test_trak_is_its_formula_in_the_projected_space(backend, tmp_path):
    target, dialect = objective(backend), usable_plugin(backend).dialect()
    checkpoints = [dialect.parameters(other_params(seed)) for seed in (0, 1)]
    method = ihvp.TRAK(
        target,
        functools.partial(margin, dialect.xp),
        tmp_path,
        checkpoints,
        projection=ihvp.Projection(DIM, "rademacher", 5),
        damping=1e-3,
        dtype="float64",
    )
    kernel, errors = 0, 0
    for seed, index in enumerate(method.indices):
        R = index.features.pull_back(np.eye(DIM)).T
        F = gradients(other_params(seed), pull_margin) @ R
        kernel = kernel + F[:3] @ np.linalg.solve(F.T @ F / N + 1e-3 * np.eye(DIM), F.T) / N / 2
        errors = errors + (1 - probabilities(other_params(seed))) / 2
    assert relative(method.derivatives, -errors) <= 1e-8
    assert relative(method.scores(TEST), kernel * errors) <= 1e-8
    others = tuple(array[4:7] for array in NETWORK.batch)
    assert relative(method.scores(TEST, others), (kernel * errors)[:, 4:7]) <= 1e-8
    assert_array_equal(method.top_k(TEST, 4).indices, method.scores(TEST).top_k(4).indices)


@each_framework
def test_factored_projections_are_those_of_the_gradients(backend, tmp_path):
    target = objective(backend)
    index = ihvp.build_index(target, tmp_path / "index", ihvp.Projection(DIM, "factored", 1), "float64")
    R = index.features.pull_back(np.eye(index.dim)).T
    A = gradients() @ R
    assert index.dim <= DIM
    assert index.features.map.project(np.eye(P)).shape == (P, index.dim)
    assert relative(index.rows(), A) <= 1e-10
    parts = index.scores_by("layer", TEST)
    assert len(parts) == 2
    assert relative(sum(np.asarray(part) for part in parts.values()), A[:3] @ A.T / N) <= 1e-10
    found = ihvp.LoGra(target, tmp_path / "logra", DIM, 1e-3, seed=1, dtype="float64").scores(TEST)
    expected = A[:3] @ np.linalg.solve(A.T @ A / N + 1e-3 * np.eye(index.dim), A.T) / N
    assert relative(found, expected) <= 1e-8


@pytest.mark.parametrize(("backend", "kind"), [("torch", "sparse"), ("torch", "factored"), ("tf", "sparse")])
def test_an_index_of_the_curvature_of_factors(backend, kind, tmp_path):
    target = objective(backend)
    K, damping = ihvp.EKFAC(target), 0.1
    index = ihvp.build_index(
        target, tmp_path, ihvp.Projection(DIM, kind), "float64", curvature=K, damping=damping
    )
    values, vectors = np.linalg.eigh(np.asarray(K.to_dense()))
    root = (vectors * (values + damping) ** -0.5) @ vectors.T
    A = gradients() @ root @ index.features.map.pull_back(np.eye(index.dim)).T
    opened = ihvp.GradientIndex(tmp_path, target)
    for found in (index, opened):
        assert relative(found.scores(TEST), A[:3] @ A.T / N) <= 1e-8


@each_framework
def test_an_index_along_the_eigenvectors_of_its_curvature(backend, tmp_path):
    target = objective(backend)
    K, damping = ihvp.EKFAC(target), 0.1
    options = {"curvature": K, "damping": damping, "dtype": "float64"}
    values, vectors = np.linalg.eigh(np.asarray(K.to_dense()))
    whitened = gradients() @ (vectors * (values + damping) ** -0.5)
    for dim in (DIM, P):
        index = ihvp.build_index(target, tmp_path / str(dim), ihvp.Projection(dim, "eigen"), **options)
        A = whitened[:, -dim:]
        for found in (index, ihvp.GradientIndex(tmp_path / str(dim), target)):
            assert relative(found.scores(TEST), A[:3] @ A.T / N) <= 1e-8
        # Row by row as well: by layers above, of gradients that are formed here, and backwards.
        assert relative(index.features.map.project(gradients()), index.rows()) <= 1e-8
        assert relative(gradients() @ index.features.pull_back(np.eye(dim)).T, index.rows()) <= 1e-8
        parts = index.scores_by("layer", TEST)
        assert relative(sum(np.asarray(part) for part in parts.values()), index.scores(TEST)) <= 1e-8


def test_frameworks_have_one_matrix(tmp_path):
    for kind in ("sparse", "rademacher", "factored"):
        rows = [
            ihvp.build_index(
                objective(backend), tmp_path / f"{kind}-{backend}", ihvp.Projection(DIM, kind), "float64"
            ).rows()
            for backend in FRAMEWORKS
        ]
        assert max(relative(other, rows[0]) for other in rows[1:]) <= 1e-10
