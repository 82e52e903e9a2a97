"""The comparison of a product with differences of gradients, on losses with derivatives by hand."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ihvp.space import VectorSpace
from ihvp.verification.second_derivative import Comparison, compare_with_gradients

DTYPES = [np.float64, np.float32]


@dataclass
class ByHand:
    """A backend of one gradient and one product, over arrays of several dtypes in a dict or one array."""

    gradient: Callable[[Any, Any], np.ndarray]
    product: Callable[[Any, Any, np.ndarray], np.ndarray]
    calls: Counter[str] = field(default_factory=Counter)
    device: str = "cpu"

    def flatten(self, params: Any) -> np.ndarray:
        if isinstance(params, dict):
            return np.concatenate(list(params.values()))
        return params.astype(np.result_type(np.float32, params))

    def unflatten(self, vector: np.ndarray, like: Any) -> Any:
        if not isinstance(like, dict):
            return vector.astype(like.dtype)
        ends = np.cumsum([len(value) for value in like.values()])
        parts = np.split(vector, ends[:-1])
        return {name: part.astype(like[name].dtype) for name, part in zip(like, parts, strict=True)}

    def grad(self, loss: Any, params: Any, batch: Any) -> np.ndarray:
        self.calls["grad"] += 1
        return self.gradient(params, batch)

    def hvp(self, loss: Any, params: Any, batch: Any, v: np.ndarray) -> np.ndarray:
        self.calls["hvp"] += 1
        return self.product(params, batch, v)


def compare(
    gradient: Callable[[Any, Any], np.ndarray],
    product: Callable[[Any, Any, np.ndarray], np.ndarray],
    params: Any,
    batch: Any = None,
) -> Comparison:
    backend = ByHand(gradient, product)
    space = VectorSpace.of(backend.flatten(params), backend, params)
    return compare_with_gradients(backend, None, params, batch, space)


# The mean of ½ (tanh(x·w) − y)², and what its second derivative becomes by some mistakes


def gradient(w, batch):
    x, y = batch
    t = np.tanh(x @ w)
    return ((t - y) * (1 - t * t)) @ x / x.dtype.type(len(y))


def hessian(w, batch):
    x, y = batch
    t = np.tanh(x @ w)
    return (x.T * ((1 - t * t) ** 2 - 2 * (t - y) * t * (1 - t * t))) @ x / x.dtype.type(len(y))


def product(w, batch, v):
    return hessian(w, batch) @ v


def problem(dtype, size=6, rows=100, seed=0):
    random = np.random.default_rng(seed)
    arrays = random.standard_normal(size), random.standard_normal((rows, size)), random.standard_normal(rows)
    w, x, y = (array.astype(dtype) for array in arrays)
    return w, (x, y)


def gauss_newton(w, batch, v):
    x, _ = batch
    slope = 1 - np.tanh(x @ w) ** 2
    return (x.T * slope**2) @ (x @ v) / x.dtype.type(len(x))


def without_column(w, batch, v):
    v = v.copy()
    v[2] = 0
    return product(w, batch, v)


def without_row(w, batch, v):
    result = product(w, batch, v)
    result[2] = 0
    return result


def off_diagonal_sign(w, batch, v):
    signs = np.ones((6, 6), v.dtype)
    signs[:3, 3:] = signs[3:, :3] = -1
    return (signs * hessian(w, batch)) @ v


def diagonal(w, batch, v):
    return np.diag(hessian(w, batch)) * v


def antisymmetric(w, batch, v):
    full = hessian(w, batch)
    return (full + np.triu(full, 1) - np.tril(full, -1)) @ v


WRONG = {
    "a lost term": gauss_newton,
    "a lost column": without_column,
    "a lost row": without_row,
    "a sign off the diagonal": off_diagonal_sign,
    "the diagonal alone": diagonal,
    "unlike halves": antisymmetric,
    "nothing": lambda w, batch, v: 0 * v,
    "a thousand times": lambda w, batch, v: 1000 * product(w, batch, v),
    "the other sign": lambda w, batch, v: -product(w, batch, v),
    "an identity added": lambda w, batch, v: product(w, batch, v) + v,
    "one entry": lambda w, batch, v: product(w, batch, v) * np.array([1, 1, 1, 1, 1, -1], v.dtype),
}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_right_product_passes(dtype):
    comparison = compare(gradient, product, *problem(dtype))
    assert comparison.outcome == "passed"
    assert comparison.error <= comparison.allowed == {np.float64: 0.01, np.float32: 0.1}[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_product_is_found(what, dtype):
    comparison = compare(gradient, WRONG[what], *problem(dtype))
    assert comparison.outcome == "wrong", comparison
    assert comparison.error > comparison.allowed


@given(seed=st.integers(0, 10_000), factor=st.floats(-3, 3), size=st.integers(10, 40))
@settings(max_examples=60)
def test_a_factor_passes_where_it_is_within_one_percent(seed, factor, size):
    def times(w, batch, v):
        return factor * product(w, batch, v)

    comparison = compare(gradient, times, *problem(np.float64, size, seed=seed))
    error = abs(1 - factor) / max(1, abs(factor))
    if abs(error - 0.01) > 1e-4:
        assert comparison.outcome == ("passed" if error < 0.01 else "wrong")
    assert comparison.error == pytest.approx(error, rel=1e-3, abs=1e-4)


def test_the_bar_is_ten_percent_in_float32():
    w, batch = problem(np.float32)
    outcomes = [
        compare(gradient, lambda w, batch, v, f=factor: f * product(w, batch, v), w, batch).outcome
        for factor in (0.95, 0.8)
    ]
    assert outcomes == ["passed", "wrong"]


# What it costs


@pytest.mark.parametrize("rows", [1, 20, 1000])
def test_a_right_product_costs_two_gradients_of_a_few_rows(rows):
    seen = []

    def seeing(w, batch):
        seen.append(len(batch[1]))
        return gradient(w, batch)

    w, batch = problem(np.float64, rows=rows)
    backend = ByHand(seeing, product)
    assert compare_with_gradients(backend, None, w, batch, VectorSpace.of(w)).outcome == "passed"
    assert backend.calls == {"grad": 2, "hvp": 1}
    assert seen == [min(rows, 32)] * 2


def test_at_a_kink_it_costs_three_gradients():
    w, x = np.ones(3), np.eye(3)
    backend = ByHand(lambda w, batch: np.sign(w - 1 - 2**-20 * w), lambda w, batch, v: 0 * v)
    backend.gradient = lambda w, batch: x @ np.sign(np.sin(w * 1e12)) + 2.0
    assert compare_with_gradients(backend, None, w, None, VectorSpace.of(w)).outcome == "inconclusive"
    assert backend.calls == {"grad": 3, "hvp": 1}


@pytest.mark.parametrize("reason", ["refused", "zero", "not finite"])
def test_rows_that_tell_nothing_give_way_to_the_batch(reason):
    def whole(w, batch):
        if len(batch[1]) < 100:
            if reason == "refused":
                raise ValueError("expected 100 rows")
            return w * (0.0 if reason == "zero" else math.nan)
        return gradient(w, batch)

    w, batch = problem(np.float64)
    assert compare(whole, product, w, batch).outcome == "passed"
    assert compare(whole, gauss_newton, w, batch).outcome == "wrong"


def test_what_the_whole_batch_raises_is_the_callers():
    def refusing(w, batch):
        raise ValueError("no rows at all")

    with pytest.raises(ValueError, match="no rows at all"):
        compare(refusing, product, *problem(np.float64))


def test_half_precision_costs_nothing():
    backend = ByHand(gradient, product)
    w, batch = problem(np.float16)
    comparison = compare_with_gradients(
        backend, None, w, batch, VectorSpace.of(backend.flatten(w), backend, w)
    )
    assert comparison.outcome == "inconclusive"
    assert math.isnan(comparison.error)
    assert not backend.calls


def test_parameters_stay():
    w, batch = problem(np.float64)
    before = w.tobytes()
    compare(gradient, gauss_newton, w, batch)
    assert w.tobytes() == before


# Parameters


@pytest.mark.parametrize("right", [True, False])
def test_parameters_of_two_precisions_are_judged_by_the_coarser(right):
    w, batch = problem(np.float32)
    params = {"coarse": w[:3], "fine": w[3:].astype(np.float64)}

    def flat(params):
        return np.concatenate(list(params.values()))

    comparison = compare(
        lambda p, b: gradient(flat(p), b),
        lambda p, b, v: (product if right else gauss_newton)(flat(p), b, v),
        params,
        tuple(array.astype(np.float64) for array in batch),
    )
    assert comparison.outcome == ("passed" if right else "wrong")
    assert comparison.allowed == 0.1


@given(seed=st.integers(0, 10_000), spread=st.floats(0, 8), dtype=st.sampled_from(DTYPES))
@settings(max_examples=60)
def test_parameters_of_unlike_sizes_are_told_apart(seed, spread, dtype):
    units = (10 ** np.random.default_rng(seed).uniform(-spread, spread, 6)).astype(dtype)
    w, (x, y) = problem(dtype, seed=seed)
    x = (x / units).astype(dtype)
    assert compare(gradient, product, w * units, (x, y)).outcome != "wrong"
    # Where the cosine is flat, rounding hides how it changes.
    w = np.copysign(np.clip(np.abs(w), 0.3, 2.8), w)
    assert (
        compare(
            lambda w, b: np.cos(w / units) / units,
            lambda w, b, v: -np.sin(w / units) / units**2 * v,
            w * units,
        ).outcome
        == "passed"
    )


@pytest.mark.parametrize("size", [1, 100_000])
def test_one_parameter_and_many(size):
    w = np.random.default_rng(0).standard_normal(size)
    assert compare(lambda w, b: np.sin(w), lambda w, b, v: np.cos(w) * v, w).outcome == "passed"
    assert compare(lambda w, b: np.sin(w), lambda w, b, v: 2 * v, w).outcome == "wrong"


def test_parameters_without_a_gradient_stay_where_they_are():
    # The padding of an embedding: the loss depends on it, its gradient is left out.
    def padded(w, batch):
        return gradient(w, batch) * (np.arange(6) != 0)

    def padded_product(w, batch, v):
        keep = np.arange(6) != 0
        return keep * (hessian(w, batch) @ (keep * v))

    assert compare(padded, padded_product, *problem(np.float64)).outcome == "passed"


@pytest.mark.parametrize("scale", [1e-20, 1e-10, 1e10, 1e20])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_scale_of_the_loss_does_not_matter(scale, dtype):
    scale = dtype(scale)
    for made, outcome in ((product, "passed"), (gauss_newton, "wrong")):
        comparison = compare(
            lambda w, b: scale * gradient(w, b),
            lambda w, b, v, made=made: scale * made(w, b, v),
            *problem(dtype),
        )
        assert comparison.outcome == outcome


# Losses that differences say little of: never wrong

ROWS = np.random.default_rng(5).standard_normal(20_000)


def relu(z):
    return np.maximum(z, 0)


QUIET = {
    "L1 at zero": (lambda w, x: np.sign(w), lambda w, x, v: 0 * v, np.zeros(5)),
    "L1 near zero": (lambda w, x: np.sign(w), lambda w, x, v: 0 * v, np.full(5, 1e-12)),
    "a median": (lambda w, x: np.sign(w - ROWS[:, None]).mean(0), lambda w, x, v: 0 * v, np.array([0.1])),
    "a quantile": (
        lambda w, x: (np.where(ROWS[:, None] < w, 0.1, -0.9)).mean(0),
        lambda w, x, v: 0 * v,
        np.array([0.7, -0.2]),
    ),
    "the square of a ReLU at zero": (lambda w, x: 2 * relu(w), lambda w, x, v: 2 * (w > 0) * v, np.zeros(5)),
    "a ReLU of every sign at zero": (
        lambda w, x: np.append(w[1:] * (w[0] > 0), 0) + 0 * w + np.append(relu(w[:1]), np.zeros(4)),
        lambda w, x, v: np.append(v[1:] * (w[0] > 0), 0) + np.append(v[:1] * (w[:1] > 0), np.zeros(4)),
        np.zeros(5),
    ),
    "a product of absolute values at zero": (
        lambda w, x: np.sign(w) * np.abs(w[::-1]),
        lambda w, x, v: np.sign(w) * np.sign(w[::-1]) * v[::-1],
        np.zeros(4),
    ),
    "a tie": (
        lambda w, x: np.where(np.arange(4) == np.argmax(w), 2 * w, 0.0),
        lambda w, x, v: np.where(np.arange(4) == np.argmax(w), 2 * v, 0.0),
        np.ones(4),
    ),
    "nothing that moves": (lambda w, x: 0 * w, lambda w, x, v: 0 * v, np.ones(4)),
    "a product that is not finite": (lambda w, x: w, lambda w, x, v: v * np.nan, np.ones(4)),
    "noise": (
        lambda w, x: 1 + np.sin(1e18 * w) * 1e-3,
        lambda w, x, v: 0 * v,
        np.ones(4),
    ),
    "a curvature far narrower than a step": (
        lambda w, x: np.tanh(1e20 * (w - 1)),
        lambda w, x, v: 1e20 * v,
        np.ones(4),
    ),
    "a large offset": (
        lambda w, x: np.tanh(w - 1e8),
        lambda w, x, v: v / np.cosh(np.clip(w - 1e8, -20, 20)) ** 2,
        np.full(3, 1e8),
    ),
    "numbers of eight bits": (
        lambda w, x: np.ldexp(np.round(np.ldexp(np.frexp(w)[0], 8)), np.frexp(w)[1] - 8) + 0.01 * w,
        lambda w, x, v: 1.01 * v,
        np.array([0.3, -1.7]),
    ),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("what", QUIET)
def test_a_right_product_is_not_called_wrong(what, dtype):
    grad, hvp, w = QUIET[what]
    w = w.astype(dtype)
    comparison = compare(lambda w, b: grad(w, b).astype(dtype), lambda w, b, v: hvp(w, b, v).astype(dtype), w)
    assert comparison.outcome != "wrong", comparison


@pytest.mark.parametrize(
    "what", ["L1 at zero", "the square of a ReLU at zero", "a tie", "a ReLU of every sign at zero"]
)
def test_a_kink_at_the_parameters_is_left_behind(what):
    assert compare(*QUIET[what]).outcome == "passed"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("margin", [1.0, 5.0, 12.0, 20.0, 30.0, 34.0, 40.0, 100.0])
def test_a_saturated_model_is_not_called_wrong(margin, dtype):
    # Softmax minus the labels: its rounding is that of 1, however small it is.
    random = np.random.default_rng(1)
    x = random.standard_normal((20, 4)).astype(dtype)
    labels = np.eye(3, dtype=dtype)[
        np.argmax(x @ (teacher := random.standard_normal((4, 3)).astype(dtype)), 1)
    ]
    x = x[np.diff(np.sort(x @ teacher, 1)[:, 1:], axis=1)[:, 0] > 1]
    labels = np.eye(3, dtype=dtype)[np.argmax(x @ teacher, 1)]

    def probabilities(w):
        z = x @ w.reshape(4, 3)
        e = np.exp(z - z.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    def softmax_gradient(w, batch):
        return (x.T @ (probabilities(w) - labels)).ravel() / dtype(len(x))

    def softmax_product(w, batch, v):
        p, d = probabilities(w), x @ v.reshape(4, 3)
        return (x.T @ (p * (d - (p * d).sum(1, keepdims=True)))).ravel() / dtype(len(x))

    comparison = compare(softmax_gradient, softmax_product, dtype(margin) * teacher.ravel())
    assert comparison.outcome == "passed" if margin <= 5 else comparison.outcome != "wrong", comparison


@given(seed=st.integers(0, 100_000), dtype=st.sampled_from(DTYPES), rows=st.sampled_from([1, 30, 3000]))
@settings(max_examples=100)
def test_a_layer_of_relus_is_never_called_wrong(seed, dtype, rows):
    random = np.random.default_rng(seed)
    zeros = random.random() < 0.3
    x = (random.standard_normal((rows, 4)) * (random.random((rows, 1)) > 0.2 * zeros)).astype(dtype)
    y = random.standard_normal(rows).astype(dtype)
    w = (random.standard_normal(12) * (random.random(12) > 0.3 * zeros)).astype(dtype)
    out = random.standard_normal(3).astype(dtype)

    def relu_gradient(w, batch):
        z = x @ w.reshape(4, 3)
        return (x.T @ ((relu(z) @ out - y)[:, None] * out * (z > 0))).ravel() / dtype(rows)

    def relu_product(w, batch, v):
        on = x @ w.reshape(4, 3) > 0
        return (x.T @ (((x @ v.reshape(4, 3) * on) @ out)[:, None] * out * on)).ravel() / dtype(rows)

    assert compare(relu_gradient, relu_product, w).outcome != "wrong"
