"""Public callables with arguments that work, and what happens when one of these is replaced."""

from __future__ import annotations

import io
import random
import tempfile
import warnings
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import ihvp
from ihvp.influence import NotAtOptimum, detection_curve
from ihvp.operators import Product

from .values import VALUES, Stopped


@dataclass
class Problem:
    """Least squares of one framework at its optimum: 3 parameters, 6 examples."""

    source: dict[str, Any]  # loss=…, or grad=…
    params: Any
    data: Any
    predict: Any = None  # with it and `output_loss` Gauss-Newton products exist
    output_loss: Any = None
    values: dict[str, Any] = field(default_factory=dict)  # of the framework's own

    def objective(self):
        return ihvp.Objective(**self.source, params=self.params, data=self.data)


X = np.random.default_rng(0).standard_normal((6, 3))
Y = np.random.default_rng(1).standard_normal(6)
W = np.linalg.lstsq(X, Y, rcond=None)[0]
A = np.diag([3.0, 2.0, 1.0])
V = np.ones(3)


def loss(params, batch):
    """Of frameworks whose arrays have operators and methods, as those of torch and JAX do."""
    x, y = batch
    return ((x @ params["w"] - y) ** 2).mean() / 2


def predict(params, batch):
    return batch[0] @ params["w"]


def output_loss(outputs, batch):
    return ((outputs - batch[1]) ** 2).mean() / 2


def of_losses(array):
    """The calls with ``loss``, over arrays that ``array`` makes of numpy's."""
    problem = Problem({"loss": loss}, {"w": array(W)}, (array(X), array(Y)), predict, output_loss)
    return [*of_objectives(problem), *removals(problem, loss)]


def used(objective):
    """What an objective is for."""
    v = objective.space.asarray(V)
    return objective.gradient(), ihvp.Hessian(objective) @ v, objective.per_example_gradients()


def of_matrices():
    """The calls that take arrays of numpy."""
    operator, pairs = ihvp.Dense(A), ihvp.eigsh(ihvp.Dense(A), 2)
    many = ihvp.Dense(np.diag(np.arange(1.0, 13.0)))
    density = ihvp.spectral_density(operator)
    yield "Dense", lambda matrix: ihvp.Dense(matrix) @ np.ones(len(matrix)), {"matrix": A}
    yield "A @ v", lambda v: operator @ v, {"v": V}
    yield "quadratic_form", operator.quadratic_form, {"x": V}
    yield "Product", lambda left, right: Product(left, right) @ V, {"left": operator, "right": operator}
    yield (
        "solve",
        ihvp.solve,
        {
            "operator": operator,
            "v": V,
            "damping": 0.1,
            "solver": ihvp.CG(),
            "x0": V,
            "check": True,
            "on_failure": "raise",
            "callback": None,
            "progress": False,
        },
    )
    yield "solve, dampings", ihvp.solve, {"operator": operator, "v": V, "damping": [0.1, 1.0], "solver": None}
    inverse = {"operator": operator, "damping": 0.1, "solver": None}
    yield "inverse", lambda **options: ihvp.inverse(**options) @ V, inverse
    for kind, options in {
        ihvp.CG: {
            "rtol": 1e-5,
            "atol": 0.0,
            "max_iterations": 50,
            "preconditioner": "nystrom",
            "shared": True,
            "on_indefinite": "raise",
        },
        ihvp.MINRES: {"rtol": 1e-5, "atol": 0.0, "max_iterations": 50},
        ihvp.Direct: {"rtol": 1e-5, "atol": 0.0, "on_indefinite": "raise"},
        ihvp.Auto: {"rtol": 1e-5, "atol": 0.0},
        ihvp.LiSSA: {
            "scale": 4.0,
            "recursion_depth": 50,
            "num_samples": 1,
            "batch_size": None,
            "replace": True,
            "average": 0.5,
            "rtol": 0.05,
            "on_divergence": "raise",
            "seed": 0,
        },
    }.items():
        yield kind.__name__, _solving(kind, operator), options
    closed = ihvp.LowRank(pairs)
    yield (
        "ClosedForm",
        lambda **options: ihvp.solve(closed, V, 1.0, ihvp.ClosedForm(**options)),
        {
            "rtol": 1e-5,
            "atol": 0.0,
        },
    )
    yield (
        "Nystrom",
        lambda **options: ihvp.solve(operator, V, 0.1, ihvp.CG(preconditioner=ihvp.Nystrom(**options))),
        {"rank": 2, "test_matrix": "gaussian", "seed": 0},
    )
    yield (
        "eigsh",
        ihvp.eigsh,
        {
            "operator": operator,
            "k": 1,
            "which": "LA",
            "tol": 1e-6,
            "ncv": 3,
            "max_restarts": 100,
            "confidence": 0.99,
            "seed": 0,
            "v0": V,
            "check": True,
            "on_failure": "raise",
            "callback": None,
            "progress": False,
        },
    )
    yield "trace", ihvp.trace, {"operator": many, "num_samples": 6, "method": "xtrace", "seed": 0}
    yield "diagonal", ihvp.diagonal, {"operator": many, "num_samples": 6, "seed": 0}
    yield (
        "suggest_damping",
        ihvp.suggest_damping,
        {
            "operator": many,
            "condition": 10.0,
            "steps": 5,
            "seed": 0,
        },
    )
    yield (
        "spectral_density",
        ihvp.spectral_density,
        {
            "operator": many,
            "num_samples": 2,
            "steps": 3,
            "seed": 0,
        },
    )
    yield "density", density.density, {"grid": V, "width": 0.1}
    yield "cumulative", density.cumulative, {"grid": V, "width": 0.1}
    yield "expectation", density.expectation, {"function": np.exp}
    yield "LowRank", lambda eigenpairs: ihvp.LowRank(eigenpairs) @ V, {"eigenpairs": pairs}
    yield "LowRank.of", ihvp.LowRank.of, {"values": pairs.values, "vectors": pairs.vectors}
    yield "FullRank", ihvp.FullRank, {"eigenpairs": pairs, "tail": 0.5}
    yield "FullRank.of", ihvp.FullRank.of, {"values": pairs.values, "vectors": pairs.vectors, "tail": 0.5}
    yield "logdet", ihvp.FullRank(pairs).logdet, {"damping": 0.1}
    yield "Eigenpairs.of", ihvp.Eigenpairs.of, {"values": pairs.values, "vectors": pairs.vectors}
    yield "use", _use, {"name": "numdiff"}
    scores = ihvp.influence.Scores(np.arange(6.0).reshape(2, 3), ("test", "train"), 0.0)
    yield "Scores.top_k", scores.top_k, {"k": 1, "which": "both"}
    yield "Scores.most_helpful", scores.most_helpful, {"k": 1}
    yield "detection_curve", detection_curve, {"scores": V, "mislabelled": np.array([True, False, False])}
    curve = detection_curve(V, np.array([True, False, False]))
    yield "DetectionCurve.at", curve.at, {"fraction": 0.5}
    yield "InverseProducts.load", _loading, {"path": "products.npz"}


def of_objectives(problem):
    """The calls that take an objective of a framework."""
    objective = problem.objective()
    influence = ihvp.Influence(objective, damping=0.1)
    products = influence.inverse_products(problem.data)
    whole = {
        "params": problem.params,
        "data": problem.data,
        "batch_size": 3,
        "reduction": "mean",
        "backend": None,
        "weights": lambda batch: np.ones(len(batch[0])),
        "checks": True,
    }
    yield "Objective", lambda **options: used(ihvp.Objective(**options)), {**problem.source, **whole}
    if problem.predict is not None:
        outputs = {"loss": problem.output_loss, "predict": problem.predict}
        yield (
            "Objective, predict",
            lambda **options: used(ihvp.Objective(**options)),
            {
                **outputs,
                "params": problem.params,
                "data": problem.data,
            },
        )
        predicting = ihvp.Objective(**outputs, params=problem.params, data=problem.data)
        yield "GaussNewton", ihvp.GaussNewton, {"objective": predicting}
        yield "GaussNewton @ v", lambda v: ihvp.GaussNewton(predicting) @ v, {"v": V}
    loss = problem.source.get("loss", problem.source.get("grad"))
    yield (
        "on",
        lambda **options: used(objective.on(**options)),
        {
            "data": problem.data,
            "loss": loss,
            "weights": None,
        },
    )
    yield "at", lambda params: used(objective.at(params)), {"params": problem.params}
    yield "per_example_gradients", objective.per_example_gradients, {"data": problem.data}
    for kind in (ihvp.Hessian, ihvp.OPG):
        yield kind.__name__, kind, {"objective": objective}
    hessian = ihvp.Hessian(objective)
    yield (
        "Hessian, budget",
        lambda memory_budget: ihvp.Hessian(objective, memory_budget) @ V,
        {"memory_budget": 0},
    )
    yield "Hessian @ v", lambda v: hessian @ v, {"v": V}
    yield "solve with a Hessian", ihvp.solve, {"operator": hessian, "v": V, "x0": V, "damping": 0.1}
    yield "eigsh of a Hessian", ihvp.eigsh, {"operator": hessian, "k": 1, "v0": V}
    yield "trace of a Hessian", ihvp.trace, {"operator": hessian, "seed": 0}
    yield (
        "LiSSA with batches",
        _solving(ihvp.LiSSA, hessian),
        {
            "batch_size": 2,
            "recursion_depth": 20,
            "seed": 0,
            "rtol": None,
        },
    )
    yield (
        "Influence",
        lambda **options: ihvp.Influence(**options).scores(problem.data),
        {
            "objective": objective,
            "damping": 0.1,
            "solver": None,
            "train_loss": loss,
            "curvature": hessian,
        },
    )
    asked = {"test_data": problem.data, "train_data": problem.data, "test_loss": loss, "progress": False}
    yield "scores", influence.scores, {**asked, "out": None}
    yield "top_k", influence.top_k, {**asked, "k": 1, "which": "both"}
    yield "self_influence", influence.self_influence, {"data": problem.data, "progress": False}
    yield "of_new_points", influence.of_new_points, {"data": problem.data, "test_data": problem.data}
    yield "on_inputs", influence.on_inputs, asked
    yield (
        "group",
        influence.group,
        {
            "indices": [0, 1],
            "test_data": problem.data,
            "test_loss": loss,
            "second_order": True,
            "progress": False,
        },
    )
    yield "inverse_products", influence.inverse_products, {"test_data": problem.data, "test_loss": loss}
    yield "scores of products", influence.scores, {"test_data": products, "train_data": problem.data}
    yield "save", _saving(products), {"path": "products.npz"}


def removals(problem, value):
    """Leaving out needs the value of the loss."""
    objective = problem.objective()
    yield (
        "leave_one_out",
        ihvp.leave_one_out,
        {
            "objective": objective,
            "train_fn": lambda removed, start: start,
            "indices": [0, 1],
            "test_data": problem.data,
            "test_loss": value,
            "damping": 0.1,
            "solver": None,
            "train_loss": None,
            "second_order": False,
            "n_jobs": 1,
            "progress": False,
        },
    )


def evaluations(problem, value):
    """How good scores are, with the value of the loss."""
    objective, train = problem.objective(), lambda kept, seed: W + 0.1 * kept.mean() + 0.01 * kept[0]
    evaluate, common = ihvp.evaluate, {"objective": objective, "train_fn": train, "test_data": problem.data}
    options = {"test_loss": value, "seeds": 1, "n_jobs": 1, "progress": False}
    yield "retrain", evaluate.retrain, {**common, **options, "subsets": 6, "out": None}
    yield (
        "brittleness",
        evaluate.brittleness,
        {**common, **options, "scores": np.diag(Y), "ks": [1], "wrong": None, "draws": 1, "seed": 0},
    )
    outcomes = evaluate.retrain(objective, train, problem.data, 8, value, progress=False)
    masks, losses = outcomes.subsets, outcomes.losses
    yield "Outcomes", evaluate.Outcomes, {"subsets": masks, "losses": losses, "num_examples": 6}
    question = {"outcomes": outcomes, "test_data": problem.data, "test_loss": value}
    for judge in (evaluate.lds, evaluate.leave_one_out):
        yield judge.__name__, judge, {**question, "scores": np.outer(Y, X[:, 0])}
    dampings = {"objective": objective, "dampings": [0.1, 1.0], "curvature": ihvp.Dense(A), "solver": None}
    yield "dampings", evaluate.dampings, {**question, **dampings, "train_loss": None, "progress": False}
    yield "detection", evaluate.detection, {"self_scores": V, "mislabelled": np.array([True, False, False])}
    yield (
        "random_subsets",
        evaluate.random_subsets,
        {"num_examples": 6, "count": 3, "fraction": 0.5, "seed": 0},
    )
    yield "all_but", evaluate.all_but, {"num_examples": 6, "removed": [0, [1, 2]]}


def _solving(kind, operator):
    return lambda **options: ihvp.solve(operator, V, 0.1, kind(**options))


def _use(name):
    with ihvp.use(name):
        pass


def _saving(products):
    def save(path):
        with tempfile.TemporaryDirectory() as folder:
            products.save(_inside(folder, path))

    return save


def _loading(path):
    with tempfile.TemporaryDirectory() as folder:
        ihvp.InverseProducts(np.eye(2), 1e-9, {"damping": "0.1"}).save(_inside(folder, "products.npz"))
        return ihvp.InverseProducts.load(_inside(folder, path))


def _inside(folder, path):
    return f"{folder}/{path}" if isinstance(path, str) and path == "products.npz" else path


@dataclass
class Outcome:
    """How many inputs worked, were named, and what else happened."""

    counts: Counter = field(default_factory=Counter)
    unnamed: list[str] = field(default_factory=list)


def outcomes(calls, count, seed, own=None, timing=None):
    """Call with ``count`` inputs, in each of which one argument has a value of another kind."""
    values = {**VALUES, **(own or {})}
    calls = list(calls)
    for _, function, arguments in calls:
        _called(function, arguments)  # what is replaced must have worked
    inputs = [
        (name, function, arguments, option, value)
        for name, function, arguments in calls
        for option in arguments
        for value in values
    ]
    random.Random(seed).shuffle(inputs)
    found = Outcome()
    for name, function, arguments, option, value in inputs[:count]:
        try:
            _called(function, {**arguments, option: values[value]()})
            found.counts["worked"] += 1
        except Stopped:
            found.counts["worked"] += 1  # what a callback raises is its own, and ends the work
        except ihvp.IhvpError as error:
            found.counts["named"] += 1
            if not str(error):
                found.unnamed.append(f"{name}({option}={value}): {type(error).__name__} without a text")
        except Exception as error:
            import traceback

            place = traceback.extract_tb(error.__traceback__)[-1]
            found.unnamed.append(
                f"{name}({option}={value}): {type(error).__name__}: {str(error)[:150]} "
                f"[{place.filename}:{place.lineno}]"
            )
    return found


def _called(function, arguments):
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", NotAtOptimum)
        return function(**arguments)
