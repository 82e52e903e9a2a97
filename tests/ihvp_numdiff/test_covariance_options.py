"""Weights, structures, large problems, and what has no covariance."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import ihvp
from ihvp import errors
from ihvp.influence.optimum import NotAtOptimum
from tests.statistics import models
from tests.statistics.models import CLUSTERS, N, X


def least_squares(x, y, weights=None, *, reduction="mean", params=None, **options):
    """Weighted least squares at its optimum; the data are triples with the weights."""
    weights = np.ones(len(y)) if weights is None else weights
    optimum = np.linalg.lstsq(np.sqrt(weights)[:, None] * x, np.sqrt(weights) * y, rcond=None)[0]

    def gradient(w, batch):
        x, y, weights = batch
        total = x.T @ (weights * (x @ w - y))
        return total if reduction == "sum" else total / weights.sum()

    params = optimum if params is None else params
    with ihvp.use("numdiff", order=4):
        return ihvp.Objective(
            params=params,
            data=(x, y, weights),
            grad=gradient,
            reduction=reduction,
            weights=lambda batch: batch[2],
            **options,
        )


@pytest.fixture
def targets():
    return models.model("OLS").y


@pytest.mark.parametrize("kind", ["hessian", "opg", "sandwich"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_frequency_is_that_many_equal_examples(targets, kind, reduction):
    counts = np.random.default_rng(0).integers(1, 4, N)
    weighted = least_squares(X, targets, counts.astype(float), reduction=reduction)
    repeated = least_squares(np.repeat(X, counts, axis=0), np.repeat(targets, counts))
    correction = kind == "sandwich"
    found = ihvp.covariance(weighted, kind, frequency_weights=True, correction=correction)
    expected = ihvp.covariance(repeated, kind, correction=correction)
    np.testing.assert_allclose(found.to_dense(), expected.to_dense(), rtol=1e-6)


@pytest.mark.parametrize("batch_size", [None, 7])
def test_a_weighted_example_is_one_draw(targets, batch_size):
    """HC0 of weighted least squares."""
    weights = np.random.default_rng(1).uniform(0.2, 3, N)
    weights[5] = 0.0
    objective = least_squares(X, targets, weights, batch_size=batch_size)
    scores = (weights * (X @ objective.params - targets))[:, None] * X
    bread = np.linalg.inv(X.T @ (weights[:, None] * X))
    found = ihvp.covariance(objective, "sandwich").to_dense()
    np.testing.assert_allclose(found, bread @ scores.T @ scores @ bread, rtol=1e-6)
    sums = np.array([scores[label == CLUSTERS].sum(axis=0) for label in np.unique(CLUSTERS)])
    for frequency_weights in (False, True):
        found = ihvp.covariance(objective, "sandwich", clusters=CLUSTERS, frequency_weights=frequency_weights)
        np.testing.assert_allclose(found.to_dense(), bread @ sums.T @ sums @ bread, rtol=1e-6)


def test_each_example_in_a_cluster_of_its_own_is_hc0(targets):
    objective = least_squares(X, targets)
    alone = ihvp.covariance(objective, "sandwich", clusters=np.random.default_rng(0).permutation(N))
    np.testing.assert_allclose(alone.to_dense(), ihvp.covariance(objective, "sandwich").to_dense(), rtol=1e-9)


def test_results_have_the_structure_of_the_parameters(targets):
    flat = least_squares(X, targets)
    expected = ihvp.standard_errors(ihvp.covariance(flat, dispersion=2.0))
    params = {"slopes": flat.params[1:].copy(), "intercept": flat.params[:1].copy()}
    before = {name: value.copy() for name, value in params.items()}

    def gradient(w, batch):
        x, y = batch
        g = x.T @ (x @ np.concatenate([w["intercept"], w["slopes"]]) - y) / len(y)
        return {"slopes": g[1:], "intercept": g[:1]}

    with ihvp.use("numdiff", order=4):
        covariance = ihvp.covariance(
            ihvp.Objective(params=params, data=(X, targets), grad=gradient), dispersion=2.0
        )
    found = ihvp.standard_errors(covariance)
    np.testing.assert_allclose(found["slopes"], expected[1:], rtol=1e-8)
    np.testing.assert_allclose(found["intercept"], expected[:1], rtol=1e-8)
    interval = ihvp.confidence_intervals(covariance)
    np.testing.assert_allclose(
        interval.upper["slopes"] - params["slopes"], 1.959964 * expected[1:], rtol=1e-6
    )
    slope = {"slopes": np.array([1.0, 0.0]), "intercept": np.zeros(1)}
    np.testing.assert_allclose(ihvp.standard_errors(covariance, gradient=slope), expected[1], rtol=1e-8)
    assert all(np.array_equal(params[name], before[name]) for name in before)


def test_parameters_that_are_left_out_are_certain(targets):
    """Of two terms of a mean, one."""
    params = {"fixed": np.array([7.0]), "free": np.array([targets.mean() - 7.0])}

    def gradient(w, y):
        error = np.mean(w["fixed"] + w["free"] - y[:, None], axis=0)
        return {"fixed": error, "free": error}

    objective = ihvp.Objective(params=params, data=targets, grad=gradient, only="free")
    found = ihvp.covariance(objective, "sandwich")
    deviation = targets.std() / N**0.5
    error = ihvp.standard_errors(found)
    np.testing.assert_allclose(error["free"], deviation, rtol=1e-6)
    np.testing.assert_array_equal(error["fixed"], 0.0)
    interval = ihvp.confidence_intervals(found)
    np.testing.assert_array_equal([interval.lower["fixed"], interval.upper["fixed"]], [[7.0], [7.0]])
    np.testing.assert_array_equal(params["fixed"], 7.0)


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_units_of_the_regressors_do_not_count(targets, unit):
    """Finite differences and a certificate in the parameters' own units would not reach this far."""
    expected = ihvp.standard_errors(ihvp.covariance(least_squares(X, targets), "sandwich"))
    found = ihvp.standard_errors(ihvp.covariance(least_squares(X * [1, 1, unit], targets), "sandwich"))
    np.testing.assert_allclose(found, expected / [1, 1, unit], rtol=1e-6)


def test_a_loss_without_data_is_the_whole_likelihood():
    objective = ihvp.Objective(params=np.array([0.5]), grad=lambda p, batch: 10 * (1 / (1 - p) - 1 / p))
    variance = ihvp.covariance(objective).to_dense()  # ten heads and ten tails
    np.testing.assert_allclose(variance, [[0.25 / 20]], rtol=1e-6)


@pytest.fixture(scope="module")
def large():
    """A mean of P correlated numbers, whose Hessian is known."""
    generator, size = np.random.default_rng(0), 110
    basis = np.linalg.qr(generator.normal(size=(size, size)))[0]
    matrix = basis @ (np.geomspace(1, 30, size)[:, None] * basis.T)
    x = generator.normal(size=(50, size))
    params = np.linalg.solve(matrix, x.mean(axis=0))
    objective = ihvp.Objective(params=params, data=x, grad=lambda w, x: matrix @ w - x.mean(axis=0))
    return objective, np.linalg.inv(matrix)


def test_variances_by_random_products_come_with_a_standard_error(large):
    objective, inverse = large
    covariance = ihvp.covariance(objective)
    estimate = covariance.diagonal(num_samples=80)
    z = (estimate.value - np.diag(inverse) / 50) / estimate.standard_error
    assert 0.5 < np.sqrt(np.mean(z**2)) < 2
    np.testing.assert_allclose(ihvp.standard_errors(covariance, num_samples=80) ** 2, estimate.value)
    np.testing.assert_allclose(ihvp.standard_errors(covariance), np.sqrt(np.diag(inverse) / 50), rtol=1e-6)


def test_a_variance_that_samples_leave_unknown_is_refused(large):
    covariance = ihvp.covariance(large[0])
    assert np.all(covariance.diagonal(num_samples=16).value > 0)  # it is not for a negative one
    with pytest.raises(errors.InvalidOption, match="variances are known to no better"):
        ihvp.standard_errors(covariance, num_samples=16)


def test_the_sandwich_is_the_same_by_either_solver(large):
    objective, inverse = large
    rows, v = objective.per_example_gradients(), np.ones(110)
    expected = inverse @ (rows.T @ (rows @ (inverse @ v))) / 50**2
    for solver in (None, ihvp.CG(rtol=1e-8)):
        found = ihvp.covariance(objective, "sandwich", solver=solver) @ v
        assert np.linalg.norm(found - expected) < 1e-6 * np.linalg.norm(expected)


COLLINEAR = np.column_stack([X, X[:, 1] + 2 * X[:, 0]])


@pytest.mark.parametrize("solver", [None, ihvp.CG()])
def test_collinear_columns_are_named(targets, solver):
    with pytest.raises(errors.UndefinedCovariance, match="no curvature") as caught:
        ihvp.covariance(least_squares(COLLINEAR, targets), solver=solver).to_dense()
    text = str(caught.value)
    assert "collinear" in text
    assert all(str(entry) in text.partition("entries ")[2].partition(")")[0] for entry in (0, 1, 3))
    assert "2" not in text.partition("entries ")[2].partition(")")[0]
    assert list(caught.value.parts.values()) == [pytest.approx(1.0)]
    assert abs(caught.value.curvature) < 1e-8


def test_negative_curvature_is_named():
    params = {"good": np.zeros(2), "bad": np.zeros(1)}
    objective = ihvp.Objective(params=params, grad=lambda w, batch: {"good": w["good"], "bad": -w["bad"]})
    with pytest.raises(errors.UndefinedCovariance, match=r"negative curvature .*'bad' 100%") as caught:
        ihvp.standard_errors(ihvp.covariance(objective))
    assert caught.value.curvature == pytest.approx(-1.0)
    assert caught.value.parts == {"good": pytest.approx(0.0), "bad": pytest.approx(1.0)}


def test_fewer_examples_than_parameters_have_no_outer_product():
    model = models.model("Logit")
    with ihvp.use("numdiff"):
        objective = ihvp.Objective(
            params=model["params"], data=(X[:2], model.y[:2]), grad=models.gradient("Logit")
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotAtOptimum)
        with pytest.raises(errors.UndefinedCovariance, match="outer product"):
            ihvp.covariance(objective, "opg").to_dense()


def test_away_from_the_optimum_it_warns(targets):
    """Of a mean, whose standard error is that of the data, whatever their unit."""
    for unit in (1e-3, 1.0, 1e3):
        y = unit * (targets - targets.mean())[:, None] / targets.std()
        dispersion, error = unit**2, unit / N**0.5

        def at(mean, kind, y=y, dispersion=dispersion):
            with ihvp.use("numdiff", order=4):
                objective = ihvp.Objective(
                    params=np.array([mean]), data=y, grad=lambda w, y: w - y.mean(axis=0)
                )
            return ihvp.covariance(objective, kind, dispersion=1.0 if kind == "sandwich" else dispersion)

        for kind in ("hessian", "opg", "sandwich"):
            with pytest.warns(NotAtOptimum, match=r"by (0\.49|0\.5|0\.51) standard errors"):
                at(0.5 * error, kind)
            at(0.05 * error, kind)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"kind": "fisher"}, "kind is 'fisher'"),
        ({"dispersion": 0.0}, "dispersion is 0.0"),
        ({"dispersion": -1.0}, "dispersion is -1.0"),
        ({"dispersion": np.nan}, "dispersion is nan"),
        ({"dispersion": "auto"}, "dispersion"),
        ({"clusters": CLUSTERS}, "clusters is .* with kind='sandwich'"),
        ({"correction": True}, "correction is True"),
        ({"kind": "sandwich", "clusters": CLUSTERS[:-1]}, r"of shape \(60,\)"),
        ({"kind": "sandwich", "clusters": [["a"]] * N}, r"of shape \(60,\)"),
        ({"kind": "sandwich", "clusters": ["a"] * N}, "two clusters"),
        ({"kind": "sandwich", "clusters": [np.nan] + [1.0, 2.0] * 29 + [1.0]}, "1 are missing"),
        ({"kind": "sandwich", "clusters": 3}, "label for each example"),
        ({"kind": "sandwich", "clusters": np.array(["a", 1] * 30, dtype=object)}, "clusters"),
        ({"kind": "sandwich", "correction": "HC1"}, "correction"),
        ({"frequency_weights": 1}, "frequency_weights"),
        ({"solver": "cholesky"}, "solver"),
    ],
)
def test_bad_options_are_named(targets, options, match):
    with pytest.raises(errors.InvalidOption, match=match):
        ihvp.covariance(least_squares(X, targets), **options)


def test_a_loss_without_data_has_no_examples_that_scatter():
    objective = ihvp.Objective(params=np.zeros(1), grad=lambda w, batch: w)
    for kind in ("opg", "sandwich"):
        with pytest.raises(errors.InvalidOption, match="without data"):
            ihvp.covariance(objective, kind)


def test_a_correction_takes_more_examples_than_parameters(targets):
    with pytest.raises(errors.InvalidOption, match="N = 3, P = 3"):
        ihvp.covariance(least_squares(X[:3], targets[:3]), "sandwich", correction=True)


@pytest.mark.parametrize("level", [0, 1, 95, -0.5, np.nan, "95%"])
def test_levels_outside_0_to_1_are_refused(targets, level):
    covariance = ihvp.covariance(least_squares(X, targets))
    with pytest.raises(errors.InvalidOption, match="level"):
        ihvp.confidence_intervals(covariance, level=level)


def test_functions_that_do_not_fit_are_named(targets):
    covariance = ihvp.covariance(least_squares(X, targets))
    with pytest.raises(errors.WrongShape):
        ihvp.standard_errors(covariance, gradient=np.ones(4))
    with pytest.raises(errors.InvalidOption, match="function, gradient"):
        covariance.of()
    with pytest.raises(errors.MissingCapability, match="gradient="):
        covariance.of(lambda w: w[:2])
    with pytest.raises(errors.GradientRequired):
        covariance.of(lambda w: w[0])
    with pytest.raises(errors.FunctionFailed, match="IndexError"):
        covariance.of(lambda w: w[3])
    with pytest.raises(errors.InvalidOption, match="function"):
        ihvp.confidence_intervals(covariance, gradient=np.ones(3))
    with pytest.raises(errors.InvalidOption, match="degrees_of_freedom"):
        ihvp.confidence_intervals(covariance, degrees_of_freedom=0)
    with pytest.raises(errors.InvalidOption, match="covariance"):
        ihvp.standard_errors(np.eye(3))
