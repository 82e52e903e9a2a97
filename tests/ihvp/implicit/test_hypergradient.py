"""Hypergradients of quadratic problems, whose derivatives are matrices, and what is said of bad input."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

import ihvp
from ihvp.backend import GradientFunction
from ihvp.influence.optimum import NotAtOptimum


@dataclass(frozen=True, eq=False)
class Quadratic:
    """``zᵀ M z / 2 − mᵀ z`` of the parameters and the hyperparameters together."""

    M: Any
    m: Any

    def __call__(self, params, hyper, batch):
        raise AssertionError("it is known by its derivatives")


class Exact:
    """Nested tuples and lists of arrays, with the derivatives of a quadratic."""

    device = "cpu"

    def flatten(self, params):
        if isinstance(params, np.ndarray):
            return params.ravel().copy()
        return np.concatenate([self.flatten(part) for part in params])

    def unflatten(self, vector, like):
        if isinstance(like, np.ndarray):
            return vector.reshape(like.shape)
        ends = np.cumsum([self.flatten(part).size for part in like])
        return type(like)(map(self.unflatten, np.split(vector, ends[:-1]), like))

    def grad(self, loss, params, batch):
        return loss.loss.M @ self.flatten(params) - loss.loss.m

    def hvp(self, loss, params, batch, v):
        return loss.loss.M @ v


def problem(rng, size, count, damping=0.0):
    """An inner and an outer quadratic, the optimum, and the hyperparameters."""
    axes = np.linalg.qr(rng.standard_normal((size, size)))[0]
    H = (axes * np.logspace(0, -rng.uniform(0, 4), size)) @ axes.T
    C, B = rng.standard_normal((count, size)), rng.standard_normal((count, count))
    M, z = np.block([[H, C.T], [C, B + B.T]]), rng.standard_normal(size + count)
    inner = Quadratic(M, np.concatenate([(M @ z)[:size], np.zeros(count)]))
    outer = Quadratic(np.eye(size + count), rng.standard_normal(size + count))
    slope = z - outer.m
    exact = slope[size:] - C @ np.linalg.solve(H + damping * np.eye(size), slope[:size])
    return inner, outer, z[:size], z[size:], exact


def test_error_bound_holds_and_is_near_the_error():
    rng = np.random.default_rng(0)
    ratios = []
    for number in range(150):  # 500 take 20 seconds, with the same outcome
        damping = 0.01 * (number % 2)
        sizes = int(rng.integers(6, 20)), int(rng.integers(1, 6))
        inner, outer, w, h, exact = problem(rng, *sizes, damping)
        solver = ihvp.CG(rtol=10 ** rng.uniform(-5, -1))
        found = ihvp.hypergradient(
            outer, inner, w, h, damping=damping, solver=solver, backend=Exact(), checks=False
        )
        error = np.linalg.norm(found.gradient - exact)
        # What is compared with is rounded, too.
        rounding = 1e-15 * np.linalg.cond(inner.M[: w.size, : w.size]) * np.linalg.norm(exact)
        assert error <= found.error + rounding
        if error > 100 * rounding:
            ratios.append(found.error / error)
    assert len(ratios) > 90
    assert max(ratios) < 10


def test_several_outer_losses_share_one_solve():
    rng = np.random.default_rng(1)
    inner, one, w, h, exact = problem(rng, 6, 3)
    other = Quadratic(2 * one.M, 2 * one.m)
    found = ihvp.hypergradient([one, other], inner, w, h, solver=ihvp.CG(rtol=1e-12), backend=Exact())
    assert_allclose(found.gradient, [exact, 2 * exact], rtol=1e-9)
    assert found.solution.x.shape == (6, 2)
    assert found.error.shape == (2,)
    with pytest.raises(ihvp.errors.InvalidOption, match="a list of 2"):
        ihvp.hypergradient([one, other], inner, w, h, test_data=[None], backend=Exact())


def ridge(rng):
    """A decay for each weight, and what is known of it by hand."""
    x, y = rng.standard_normal((20, 4)), rng.standard_normal(20)
    xt, yt = rng.standard_normal((15, 4)), rng.standard_normal(15)

    def inner(w, h, batch):
        x, y = batch
        return x.T @ (x @ w - y) / len(y) + h["decay"] * w, {"decay": w**2 / 2}

    def outer(w, h, batch):
        x, y = batch
        return x.T @ (x @ w - y) / len(y), {"decay": 0 * w}

    def fit(decay):
        return np.linalg.solve(x.T @ x / 20 + np.diag(decay), x.T @ y / 20)

    return GradientFunction(inner), GradientFunction(outer), fit, (x, y), (xt, yt)


def ridge_by_hand(fit, decay, train, test):
    (x, y), (xt, yt), w = train, test, fit(decay)
    adjoint = np.linalg.solve(x.T @ x / len(y) + np.diag(decay), xt.T @ (xt @ w - yt) / len(yt))
    return -w * adjoint


@pytest.mark.parametrize(
    "options", [{}, {"batch_size": 5}, {"weights": lambda batch: np.ones(len(batch[1]))}]
)
def test_ridge_by_finite_differences(options):
    inner, outer, fit, train, test = ridge(np.random.default_rng(2))
    decay = np.array([0.1, 0.2, 0.5, 1.0])
    found = ihvp.hypergradient(outer, inner, fit(decay), {"decay": decay}, train, test, **options)
    exact = ridge_by_hand(fit, decay, train, test)
    assert np.linalg.norm(found.gradient["decay"] - exact) <= found.error < 1e-7
    assert found.inner_gradient_norm < 1e-12


def test_an_inner_problem_moves_to_other_hyperparameters():
    inner, outer, fit, train, test = ridge(np.random.default_rng(3))
    decay, other = np.full(4, 0.1), np.full(4, 0.7)
    problem = ihvp.InnerProblem(inner, fit(decay), {"decay": decay}, train).at(fit(other), {"decay": other})
    found = problem.hypergradient(outer, test, bound=False)
    assert_allclose(found.gradient["decay"], ridge_by_hand(fit, other, train, test), rtol=1e-7)
    assert found.error is None
    with pytest.raises(ihvp.errors.ParameterError, match=r"of shape \(5,\) among the parameters"):
        problem.at(np.ones(5))
    for hyper in (other, [other], {"decay": other, "more": other}, {"decay": other[:3]}):
        with pytest.raises(ihvp.errors.ParameterError, match="among the hyperparameters"):
            problem.at(hyper=hyper)
    with pytest.raises(ihvp.errors.MissingCapability, match="implicit"):
        problem.optimum()


def test_away_from_the_optimum_it_warns_with_the_size_of_the_gradient():
    inner, outer, fit, train, test = ridge(np.random.default_rng(4))
    with pytest.warns(NotAtOptimum, match=r"gradient has norm \d\.\de"):
        found = ihvp.hypergradient(outer, inner, fit(np.ones(4)) + 1, {"decay": np.ones(4)}, train, test)
    assert found.inner_gradient_norm > 0.1


def test_a_solve_that_misses_is_an_error():
    inner, outer, fit, train, test = ridge(np.random.default_rng(5))
    solver = ihvp.CG(rtol=1e-12, max_iterations=1)
    with pytest.raises(ihvp.errors.SolverError):
        ihvp.hypergradient(outer, inner, fit(np.ones(4)), {"decay": np.ones(4)}, train, test, solver=solver)


def with_offset(function, used):
    def gradient(w, h, batch):
        by_w, by_h = function.grad(w, h, batch)
        return by_w, {"decay": by_h["decay"], "offset": 2 * h["offset"] if used else 0 * h["offset"]}

    return GradientFunction(gradient)


def test_hyperparameters_without_effect_are_named():
    inner, outer, fit, train, test = ridge(np.random.default_rng(6))
    hyper = {"decay": np.ones(4), "offset": np.array(3.0)}
    arguments = fit(np.ones(4)), hyper, train, test
    with pytest.raises(ihvp.errors.HyperparametersWithoutEffect, match="depends on offset;"):
        ihvp.hypergradient(with_offset(outer, False), with_offset(inner, False), *arguments)
    with pytest.warns(ihvp.implicit.NoImplicitPart, match="does not depend on offset:"):
        found = ihvp.hypergradient(with_offset(outer, True), with_offset(inner, False), *arguments)
    assert found.direct_only == ("offset",)
    assert found.gradient["offset"] == 6.0


def test_a_mixed_derivative_that_vanishes_here_alone_is_no_missing_one():
    inner = GradientFunction(lambda w, h, batch: (w - 1 + h**2 * w, h * w @ w))
    outer = GradientFunction(lambda w, h, batch: (2 * w, 0.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ihvp.hypergradient(outer, inner, np.ones(1), 0.0).gradient == 0.0


def test_the_order_of_keys_does_not_count():
    inner = GradientFunction(
        lambda w, h, batch: ({"a": w["a"] - h["p"], "b": 2 * w["b"] - h["q"]}, {"p": -w["a"], "q": -w["b"]})
    )
    outer = GradientFunction(
        lambda w, h, batch: (
            {"a": np.array(3.0), "b": np.array(5.0)},
            {"p": np.array(0.0), "q": np.array(0.0)},
        )
    )
    w, h = {"a": np.array(1.0), "b": np.array(2.0)}, {"p": np.array(1.0), "q": np.array(4.0)}
    problem = ihvp.InnerProblem(inner, w, h).at({"b": w["b"], "a": w["a"]}, {"q": h["q"], "p": h["p"]})
    found = problem.hypergradient(outer, bound=False).gradient
    assert (found["p"], found["q"]) == pytest.approx((3.0, 2.5))


PAIR = GradientFunction(lambda w, h, batch: (w, 0 * h))
REFUSED = [
    ({"inner": None, "backend": Exact()}, "inner"),
    ({"inner": lambda w, batch: w, "backend": Exact()}, "inner is"),
    ({"inner": lambda w, h, batch: w}, r"in a hypergradient an ihvp\.backend\.GradientFunction"),
    ({"outer": lambda w, h, batch: 0.0}, r"outer is .*GradientFunction, as the inner"),
    ({"outer": []}, "an outer loss, or a list of one or more"),
    ({"outer": GradientFunction(lambda w, h, batch: w)}, "a pair, by the parameters and by"),
    *(({"hyper": hyper}, "hyperparam") for hyper in (1, None, "1", np.array([1]), np.zeros(0), {})),
]


@pytest.mark.parametrize(("options", "text"), REFUSED)
def test_what_cannot_be_differentiated_is_named(options, text):
    given = {"outer": PAIR, "inner": PAIR, "params": np.zeros(1), "hyper": 1.0} | options
    with pytest.raises(ihvp.IhvpError, match=text):
        ihvp.hypergradient(**given)
