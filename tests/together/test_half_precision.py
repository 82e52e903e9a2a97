"""Models in bfloat16 and float16, beside the same parameters and the same model in float64."""

from __future__ import annotations

import functools
import importlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import ihvp
from ihvp.algebra import to_numpy
from ihvp.errors import NonFinite, Stagnated

DAMPING = 0.1
ROWS, TESTS, WIDTH, PLACES, CLASSES = 48, 8, 4, 3, 3


def framework(name: str) -> SimpleNamespace:
    """What the models are written in: torch's functions by the same names, and dtypes."""
    if name == "torch":
        torch = importlib.import_module("torch")
        return SimpleNamespace(
            cast=lambda x, dtype: torch.as_tensor(x).to(dtype),
            variable=lambda x, dtype: torch.as_tensor(x).to(dtype),
            swap=lambda x: x.transpose(-1, -2),
            mean=lambda x: x.mean(-1, keepdim=True),
            over=lambda x: x.mean(1),
            log_softmax=lambda x: torch.log_softmax(x, -1),
            softmax=lambda x: torch.softmax(x, -1),
            total=torch.sum,
            tanh=torch.tanh,
            dtype=lambda name: getattr(torch, name),
        )
    if name == "jax":
        jnp, nn = importlib.import_module("jax.numpy"), importlib.import_module("jax.nn")
        return SimpleNamespace(
            cast=lambda x, dtype: jnp.asarray(x).astype(dtype),
            variable=lambda x, dtype: jnp.asarray(x).astype(dtype),
            swap=lambda x: jnp.swapaxes(x, -1, -2),
            mean=lambda x: x.mean(-1, keepdims=True),
            over=lambda x: x.mean(1),
            log_softmax=nn.log_softmax,
            softmax=nn.softmax,
            total=jnp.sum,
            tanh=jnp.tanh,
            dtype=jnp.dtype,
        )
    tf = importlib.import_module("tensorflow")
    return SimpleNamespace(
        cast=tf.cast,
        variable=lambda x, dtype: tf.Variable(tf.cast(x, dtype)),
        swap=tf.linalg.matrix_transpose,
        mean=lambda x: tf.reduce_mean(x, -1, keepdims=True),
        over=lambda x: tf.reduce_mean(x, 1),
        log_softmax=tf.nn.log_softmax,
        softmax=tf.nn.softmax,
        total=tf.reduce_sum,
        tanh=tf.tanh,
        dtype=tf.as_dtype,
    )


def mlp(f: SimpleNamespace, p: Any, x: Any) -> Any:
    return f.tanh(f.over(f.cast(x, p["w"].dtype)) @ p["w"] + p["b"]) @ p["out"]


def block(f: SimpleNamespace, p: Any, x: Any) -> Any:
    """Attention and a norm whose gain is in float32, as trainers keep it."""
    x = f.cast(x, p["q"].dtype)
    attention = f.softmax((x @ p["q"]) @ f.swap(x @ p["k"]) / WIDTH**0.5)
    x = x + attention @ (x @ p["v"])
    centred = f.cast(x - f.mean(x), p["gain"].dtype)
    normed = f.cast(centred * (f.mean(centred**2) + 1e-3) ** -0.5 * p["gain"], p["q"].dtype)
    return f.over(f.tanh(normed @ p["w"])) @ p["out"]


MODELS = {
    "MLP": (mlp, {"w": (WIDTH, 6), "b": (6,), "out": (6, CLASSES)}),
    "transformer": (
        block,
        dict.fromkeys("qkv", (WIDTH, WIDTH)) | {"gain": (WIDTH,), "w": (WIDTH, 6), "out": (6, CLASSES)},
    ),
}


@functools.cache
def objectives(name: str, model: str, dtype: str) -> tuple[ihvp.Objective, ihvp.Objective, tuple[Any, ...]]:
    """In half precision, the same in float64, and a batch of test points."""
    f, (forward, shapes) = framework(name), MODELS[model]
    rng = np.random.default_rng(0)
    # Numbers of few digits, which every dtype has.
    x = np.round(8 * rng.normal(size=(ROWS + TESTS, PLACES, WIDTH)).astype(np.float32)) / 8
    targets = np.eye(CLASSES, dtype=np.float32)[np.argmax(x.sum(1) @ rng.normal(size=(WIDTH, CLASSES)), -1)]
    rounded = {
        key: f.variable(rng.normal(size=shape) * 1.5 / shape[0] ** 0.5 + (key == "gain"), f.dtype(kind))
        for key, shape in shapes.items()
        for kind in ["float32" if key == "gain" else dtype]
    }
    exact = {
        key: f.variable(f.cast(value, f.dtype("float64")), f.dtype("float64"))
        for key, value in rounded.items()
    }

    def predict(p: Any, batch: Any) -> Any:
        return forward(f, p, batch[0])

    def loss(logits: Any, batch: Any) -> Any:
        # As everywhere where models are in half precision, the loss itself is not.
        wide = f.dtype("float64" if "64" in str(logits.dtype) else "float32")
        return -f.total(f.cast(batch[1], wide) * f.log_softmax(f.cast(logits, wide))) / batch[1].shape[0]

    data = x[:ROWS], targets[:ROWS]
    half, double = (
        ihvp.Objective(loss, p, data, predict=predict, batch_size=ROWS // 2, backend=name)
        for p in (rounded, exact)
    )
    return half, double, (x[ROWS:], targets[ROWS:])


def bits(objective: ihvp.Objective) -> list[bytes]:
    return [to_numpy(objective.space.backend.flatten(objective.params)).tobytes()]


# Both models on the framework that compiles nothing, and one of them on each of the others.
CASES = [
    pytest.param(name, model, dtype, id=f"{name} {model} {dtype}")
    for name, model, dtype in (
        ("torch", "MLP", "float16"),
        ("torch", "transformer", "bfloat16"),
        ("jax", "transformer", "bfloat16"),
        ("tf", "MLP", "float16"),
    )
]
SOLVERS = {"torch": ["auto", ihvp.CG(), ihvp.MINRES(), ihvp.Direct(), ihvp.LiSSA()]}


@pytest.mark.parametrize(("name", "model", "dtype"), CASES)
def test_default_options_solve_to_what_the_precision_permits(name, model, dtype):
    half, double, _ = objectives(name, model, dtype)
    before, eps = bits(half), {"bfloat16": 2**-7, "float16": 2**-10}[dtype]
    assert "float32" in str(half.space.dtype)
    assert half.space.product_eps == eps
    A, exact = ihvp.GaussNewton(half), to_numpy(ihvp.GaussNewton(double).to_dense())
    v = np.random.default_rng(1).normal(size=len(exact)).astype(np.float32)
    damped = exact + DAMPING * np.eye(len(exact))
    expected = np.linalg.solve(damped, v)
    for solver in SOLVERS.get(name, ["auto", ihvp.CG()]):
        solution = ihvp.solve(A, v, DAMPING, solver)
        assert solution.converged
        assert solution.x.dtype == np.float32
        assert 0 < solution.noise < solution.residual <= eps**0.5
        # The matrix that is computed in half precision is another one than the exact one.
        assert np.linalg.norm(v - damped @ solution.x) <= 1.2 * eps**0.5 * np.linalg.norm(v)
        assert np.linalg.norm(solution.x - expected) <= eps**0.5 * np.linalg.norm(expected)
    with pytest.raises(Stagnated, match=r"half precision .* Ask for rtol ≥"):
        ihvp.solve(A, v, DAMPING, ihvp.CG(rtol=1e-6))
    assert bits(half) == before
    largest = np.linalg.eigvalsh(exact)[-1]
    assert ihvp.eigsh(A, 1).values[0] == pytest.approx(largest, rel=4 * eps)


@pytest.mark.parametrize(("name", "model", "dtype"), CASES)
def test_scores_are_those_of_the_exact_model(name, model, dtype):
    half, double, points = objectives(name, model, dtype)
    influence = ihvp.Influence(half, DAMPING, curvature=ihvp.GaussNewton(half))
    influence._model._optimum_checked = True  # the model is not trained
    exact = to_numpy(ihvp.GaussNewton(double).to_dense()) + DAMPING * np.eye(half.num_params)
    rows, tests = (
        np.concatenate([to_numpy(part) for part in objective.per_example_gradient_chunks()])
        for objective in (double, double.on(points))
    )
    scores = influence.scores(points)
    assert scores.dtype == np.float32
    assert correlation(scores, tests @ np.linalg.solve(exact, rows.T)) >= 0.97
    own = influence.self_influence()
    assert correlation(own, np.einsum("ij,ji->i", rows, np.linalg.solve(exact, rows.T))) >= 0.97
    top = influence.top_k(points, 3)
    assert np.array_equal(top.indices, np.argsort(-np.abs(np.asarray(scores)), axis=1)[:, :3])


def correlation(found: Any, exact: Any) -> float:
    return float(np.corrcoef(np.ravel(np.asarray(found)), np.ravel(exact))[0, 1])


@pytest.mark.parametrize("name", ["torch", "jax", "tf"])
def test_kronecker_factors_are_solved_in_single_precision(name):
    factors = ihvp.KFAC(objectives(name, "MLP", "float16")[0])
    v = np.random.default_rng(1).normal(size=factors.shape[0]).astype(np.float32)
    assert ihvp.solve(factors, v, DAMPING).residual <= 1e-4
    # They do not depend on the framework, nor these numbers on the order of its parameters.
    exact = ihvp.KFAC(objectives("torch", "MLP", "float16")[1])
    assert factors.trace() == pytest.approx(exact.trace(), rel=1e-2)
    assert factors.logdet(DAMPING) == pytest.approx(exact.logdet(DAMPING), rel=1e-3)


@pytest.mark.parametrize("name", ["torch", "jax", "tf"])
def test_what_leaves_the_range_of_float16_is_named(name):
    f = framework(name)
    params = {"w": f.variable(np.full(2, 300.0), f.dtype("float16"))}
    objective = ihvp.Objective(lambda p, batch: f.total(p["w"] ** 2 * p["w"]), params, backend=name)
    with pytest.raises(NonFinite, match=r"float16 ends at 65,504.* scale the loss"):
        objective.gradient()


@pytest.mark.parametrize("name", ["torch", "jax", "tf"])
@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_products_take_vectors_beyond_the_range_of_float16(name, size):
    A = ihvp.GaussNewton(objectives(name, "MLP", "float16")[0])
    v = np.random.default_rng(1).normal(size=A.shape[0]).astype(np.float32)
    block = np.stack([v, 0 * v, -v], axis=1)
    expected = np.asarray(A @ v)
    np.testing.assert_allclose(
        A @ (np.float32(size) * block) / np.float32(size),
        np.outer(expected, [1, 0, -1]),
        atol=2e-3 * np.abs(expected).max(),
    )


@pytest.mark.parametrize(("name", "model", "dtype"), CASES)
def test_flattening_is_exact(name, model, dtype):
    half, _, _ = objectives(name, model, dtype)
    backend, flat = half.space.backend, half.space.backend.flatten(half.params)
    moved = half.at(backend.unflatten(flat, half.params))
    assert bits(moved) == bits(half)
    assert [str(moved.params[key].dtype) for key in half.params] == [
        str(p.dtype) for p in half.params.values()
    ]
    assert np.array_equal(to_numpy(moved.gradient()), to_numpy(half.gradient()))
